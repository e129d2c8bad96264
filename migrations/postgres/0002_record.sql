CREATE TABLE sighting (
    namespace TEXT COLLATE "C" NOT NULL,
    update_id TEXT COLLATE "C" NOT NULL,
    first     BIGINT           NOT NULL,
    by_device TEXT             NOT NULL,
    shared    BIGINT,
    told      BIGINT           NOT NULL,
    signature TEXT             NOT NULL,
    PRIMARY KEY (namespace, update_id)
);
CREATE INDEX sighting_by_told ON sighting (told);

CREATE TABLE progress (
    namespace TEXT COLLATE "C" NOT NULL,
    policy    TEXT COLLATE "C" NOT NULL,
    update_id TEXT COLLATE "C" NOT NULL,
    rings     TEXT             NOT NULL,
    ring      TEXT,
    opened    BIGINT           NOT NULL,
    reached   BIGINT,
    undone    BIGINT,
    stopped   BIGINT,
    told      BIGINT           NOT NULL,
    signature TEXT             NOT NULL,
    PRIMARY KEY (namespace, policy, update_id)
);
CREATE INDEX progress_by_told ON progress (told);

CREATE TABLE pause (
    namespace TEXT COLLATE "C" NOT NULL,
    policy    TEXT COLLATE "C" NOT NULL,
    paused    BIGINT           NOT NULL,
    resumed   BIGINT,
    told      BIGINT           NOT NULL,
    signature TEXT             NOT NULL,
    PRIMARY KEY (namespace, policy)
);
CREATE INDEX pause_by_told ON pause (told);
