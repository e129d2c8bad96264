CREATE TABLE package_change (
    id           BIGINT           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace    TEXT COLLATE "C" NOT NULL,
    device       TEXT COLLATE "C" NOT NULL,
    log          TEXT COLLATE "C" NOT NULL,
    number       BIGINT           NOT NULL,
    missing      BIGINT           NOT NULL,
    found_at     BIGINT           NOT NULL,
    package      TEXT COLLATE "C" NOT NULL,
    arch         TEXT             NOT NULL,
    old_version  TEXT,
    new_version  TEXT,
    by_whom      TEXT             NOT NULL,
    epoch        BIGINT,
    order_number BIGINT,
    order_digest TEXT,
    run_at       BIGINT,
    told_by      TEXT,
    actor        TEXT,
    command      TEXT,
    recorded     BIGINT           NOT NULL,
    UNIQUE (namespace, device, log, number)
);
CREATE INDEX package_change_by_device ON package_change (namespace, device, id);
CREATE INDEX package_change_by_package ON package_change (package, namespace);

CREATE TABLE change_message (
    namespace TEXT COLLATE "C" NOT NULL,
    device    TEXT COLLATE "C" NOT NULL,
    log       TEXT COLLATE "C" NOT NULL,
    last      BIGINT           NOT NULL,
    envelope  TEXT             NOT NULL,
    PRIMARY KEY (namespace, device, log, last)
);
