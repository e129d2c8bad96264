-- Each package once, and by numbers where it is installed: names and versions are the same on many machines, and a list of numbers in the order of
-- devices touches few pages of the file.
ALTER TABLE device RENAME TO device_before;
CREATE TABLE device (
    id              INTEGER PRIMARY KEY,
    namespace       TEXT   NOT NULL,
    name            TEXT   NOT NULL,
    key             TEXT   NOT NULL,
    last_seen       BIGINT NOT NULL,
    -- The last accepted report: DSSE envelope, digest of its payload, its counter. All or none.
    report          TEXT,
    digest          TEXT,
    counter         BIGINT,
    -- Digest of what `installed` holds for this device.
    software_digest TEXT,
    UNIQUE (namespace, name)
);
INSERT INTO device (namespace, name, key, last_seen, report, digest, counter, software_digest)
SELECT namespace, name, key, last_seen, report, digest, counter, software_digest FROM device_before ORDER BY namespace, name;
DROP TABLE device_before;

ALTER TABLE package RENAME TO package_before;
DROP INDEX package_by_name;
DROP INDEX package_by_source;
CREATE TABLE package (
    id             INTEGER PRIMARY KEY,
    name           TEXT NOT NULL,
    arch           TEXT NOT NULL,
    version        TEXT NOT NULL,
    source         TEXT NOT NULL,
    -- Version of the source package, where it is another than the binary package's; empty where it is the same, or was not told.
    source_version TEXT NOT NULL
);
CREATE INDEX package_by_name ON package (name, arch, version);
CREATE INDEX package_by_source ON package (source);
INSERT INTO package (name, arch, version, source, source_version)
SELECT DISTINCT name, arch, version, source, COALESCE(source_version, '') FROM package_before;

-- What is installed now.
CREATE TABLE installed (
    device         BIGINT NOT NULL,
    package        BIGINT NOT NULL,
    -- When it was first recorded on its device in this version; NULL where that was before this was kept.
    first_recorded BIGINT,
    PRIMARY KEY (device, package)
) WITHOUT ROWID;
INSERT INTO installed (device, package, first_recorded)
SELECT device.id, package.id, before.first_recorded
FROM package_before AS before
JOIN device ON device.namespace = before.namespace AND device.name = before.device
JOIN package ON package.name = before.name AND package.arch = before.arch AND package.version = before.version
    AND package.source = before.source AND package.source_version = COALESCE(before.source_version, '');
CREATE INDEX installed_by_package ON installed (package, device);
DROP TABLE package_before;
