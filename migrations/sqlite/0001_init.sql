-- Times are milliseconds since 1970 (UTC). Digests are `sha256:` and hexadecimal, keys are `SHA256:` fingerprints.

CREATE TABLE device (
    namespace       TEXT   NOT NULL,
    name            TEXT   NOT NULL,
    key             TEXT   NOT NULL,
    last_seen       BIGINT NOT NULL,
    -- The last accepted report: DSSE envelope, digest of its payload, its counter. All or none.
    report          TEXT,
    digest          TEXT,
    counter         BIGINT,
    -- Digest of what `package` holds for this device.
    software_digest TEXT,
    PRIMARY KEY (namespace, name)
);

-- What is installed now.
CREATE TABLE package (
    namespace TEXT NOT NULL,
    device    TEXT NOT NULL,
    name      TEXT NOT NULL,
    arch      TEXT NOT NULL,
    version   TEXT NOT NULL,
    source    TEXT NOT NULL,
    PRIMARY KEY (namespace, device, name, arch, version)
);
CREATE INDEX package_by_name ON package (name, version);

-- An order that was brought to the gateway, a result that a device sent, or both. The digest alone is no key: a device
-- could otherwise answer for another one.
CREATE TABLE install (
    namespace    TEXT   NOT NULL,
    device       TEXT   NOT NULL,
    order_digest TEXT   NOT NULL,
    epoch        BIGINT NOT NULL,
    number       BIGINT NOT NULL,
    signed_order TEXT,
    progress     TEXT,
    result       TEXT,
    output       TEXT,
    first_seen   BIGINT NOT NULL,
    -- After it no result is waited for; of orders that were brought only.
    deadline     BIGINT,
    recorded     BIGINT,
    PRIMARY KEY (namespace, device, order_digest)
);
CREATE INDEX install_open ON install (deadline) WHERE result IS NULL;
CREATE INDEX install_by_sequence ON install (namespace, device, epoch, number);

-- When an update was first offered anywhere in a client's namespace.
CREATE TABLE update_seen (
    namespace  TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    first_seen BIGINT NOT NULL,
    PRIMARY KEY (namespace, id)
);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY,
    time    BIGINT NOT NULL,
    who     TEXT   NOT NULL,
    what    TEXT   NOT NULL,
    object  TEXT   NOT NULL,
    outcome TEXT   NOT NULL,
    detail  TEXT   NOT NULL
);
CREATE INDEX audit_by_time ON audit (time);

-- One row for each distinct key that used a token.
CREATE TABLE join_token_use (
    token TEXT   NOT NULL,
    key   TEXT   NOT NULL,
    time  BIGINT NOT NULL,
    PRIMARY KEY (token, key)
);
