-- What has changed among the packages of each device, as the device tells it. Times are milliseconds since 1970 (UTC).

CREATE TABLE package_change (
    id           INTEGER PRIMARY KEY,
    namespace    TEXT   NOT NULL,
    device       TEXT   NOT NULL,
    -- The device's log, and the change's number in it. `missing` is how many numbers below it were never told.
    log          TEXT   NOT NULL,
    number       BIGINT NOT NULL,
    missing      BIGINT NOT NULL,
    -- By the device's clock: it happened before.
    found_at     BIGINT NOT NULL,
    package      TEXT   NOT NULL,
    arch         TEXT   NOT NULL,
    -- The version that is gone and the one that is new, if there are such.
    old_version  TEXT,
    new_version  TEXT,
    -- `Order`, `BesideOrder` or `SomebodyElse`; the order's sequence and digest.
    by_whom      TEXT   NOT NULL,
    epoch        BIGINT,
    order_number BIGINT,
    order_digest TEXT,
    -- What the package manager's history says: when it began, whose history that is, who asked for it, and how.
    run_at       BIGINT,
    told_by      TEXT,
    actor        TEXT,
    command      TEXT,
    recorded     BIGINT NOT NULL,
    UNIQUE (namespace, device, log, number)
);
CREATE INDEX package_change_by_device ON package_change (namespace, device, id);
CREATE INDEX package_change_by_package ON package_change (package, namespace);

-- The signed messages that these came in, as evidence. `last` is the number of the last change of each.
CREATE TABLE change_message (
    namespace TEXT   NOT NULL,
    device    TEXT   NOT NULL,
    log       TEXT   NOT NULL,
    last      BIGINT NOT NULL,
    envelope  TEXT   NOT NULL,
    PRIMARY KEY (namespace, device, log, last)
);
