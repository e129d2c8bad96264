-- The tables of migrations/sqlite/0001_init.sql, which says what they are for: each migration has its twin there. Text that is
-- compared or sorted is COLLATE "C": bytewise, as the program itself and SQLite do it.

CREATE TABLE device (
    namespace       TEXT COLLATE "C" NOT NULL,
    name            TEXT COLLATE "C" NOT NULL,
    key             TEXT             NOT NULL,
    last_seen       BIGINT           NOT NULL,
    report          TEXT,
    digest          TEXT,
    counter         BIGINT,
    software_digest TEXT,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE package (
    namespace TEXT COLLATE "C" NOT NULL,
    device    TEXT COLLATE "C" NOT NULL,
    name      TEXT COLLATE "C" NOT NULL,
    arch      TEXT COLLATE "C" NOT NULL,
    version   TEXT COLLATE "C" NOT NULL,
    source    TEXT             NOT NULL,
    PRIMARY KEY (namespace, device, name, arch, version)
);
CREATE INDEX package_by_name ON package (name, version);

CREATE TABLE install (
    namespace    TEXT COLLATE "C" NOT NULL,
    device       TEXT COLLATE "C" NOT NULL,
    order_digest TEXT COLLATE "C" NOT NULL,
    epoch        BIGINT           NOT NULL,
    number       BIGINT           NOT NULL,
    signed_order TEXT,
    progress     TEXT,
    result       TEXT,
    output       TEXT,
    first_seen   BIGINT           NOT NULL,
    deadline     BIGINT,
    recorded     BIGINT,
    PRIMARY KEY (namespace, device, order_digest)
);
CREATE INDEX install_open ON install (deadline) WHERE result IS NULL;
CREATE INDEX install_by_sequence ON install (namespace, device, epoch, number);

CREATE TABLE update_seen (
    namespace  TEXT COLLATE "C" NOT NULL,
    id         TEXT COLLATE "C" NOT NULL,
    first_seen BIGINT           NOT NULL,
    PRIMARY KEY (namespace, id)
);

CREATE TABLE audit (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time    BIGINT NOT NULL,
    who     TEXT   NOT NULL,
    what    TEXT   NOT NULL,
    object  TEXT   NOT NULL,
    outcome TEXT   NOT NULL,
    detail  TEXT   NOT NULL
);
CREATE INDEX audit_by_time ON audit (time);

CREATE TABLE join_token_use (
    token TEXT COLLATE "C" NOT NULL,
    key   TEXT COLLATE "C" NOT NULL,
    time  BIGINT           NOT NULL,
    PRIMARY KEY (token, key)
);
