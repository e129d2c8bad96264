-- The record of each client's history. Times are whole seconds, in milliseconds since 1970 (UTC) as everywhere; `told` is when
-- the controller last told of an entry: what nobody offers any more is told of no more, and is dropped in the end. `signature` is
-- the controller's, over everything but `told`: a row is replaced as a whole, by one that is ahead of it.

-- Since when a client's devices know an update. `shared` is the first sighting by another device than `by_device`.
CREATE TABLE sighting (
    namespace TEXT   NOT NULL,
    update_id TEXT   NOT NULL,
    first     BIGINT NOT NULL,
    by_device TEXT   NOT NULL,
    shared    BIGINT,
    told      BIGINT NOT NULL,
    signature TEXT   NOT NULL,
    PRIMARY KEY (namespace, update_id)
);
CREATE INDEX sighting_by_told ON sighting (told);

-- How far an update has come in a policy, which may not be there any more. `rings` are the names of the policy's rings, one a
-- line; `ring` is the last that has the update, NULL when the rest of the devices have it, too.
CREATE TABLE progress (
    namespace TEXT   NOT NULL,
    policy    TEXT   NOT NULL,
    update_id TEXT   NOT NULL,
    rings     TEXT   NOT NULL,
    ring      TEXT,
    opened    BIGINT NOT NULL,
    reached   BIGINT,
    undone    BIGINT,
    stopped   BIGINT,
    told      BIGINT NOT NULL,
    signature TEXT   NOT NULL,
    PRIMARY KEY (namespace, policy, update_id)
);
CREATE INDEX progress_by_told ON progress (told);

-- The last pause of a policy's rollout; pauses until `resumed` are over.
CREATE TABLE pause (
    namespace TEXT   NOT NULL,
    policy    TEXT   NOT NULL,
    paused    BIGINT NOT NULL,
    resumed   BIGINT,
    told      BIGINT NOT NULL,
    signature TEXT   NOT NULL,
    PRIMARY KEY (namespace, policy)
);
CREATE INDEX pause_by_told ON pause (told);
