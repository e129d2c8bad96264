-- Each package once, and by numbers where it is installed: names and versions are the same on many machines.
ALTER TABLE device ADD COLUMN id BIGINT GENERATED ALWAYS AS IDENTITY;
ALTER TABLE device ADD CONSTRAINT device_by_id UNIQUE (id);

ALTER TABLE package RENAME TO package_before;
DROP INDEX package_by_name;
DROP INDEX package_by_source;
CREATE TABLE package (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           TEXT COLLATE "C" NOT NULL,
    arch           TEXT COLLATE "C" NOT NULL,
    version        TEXT COLLATE "C" NOT NULL,
    source         TEXT COLLATE "C" NOT NULL,
    -- Version of the source package, where it is another than the binary package's; empty where it is the same, or was not told.
    source_version TEXT COLLATE "C" NOT NULL
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
    first_recorded BIGINT
);
INSERT INTO installed (device, package, first_recorded)
SELECT device.id, package.id, before.first_recorded
FROM package_before AS before
JOIN device ON device.namespace = before.namespace AND device.name = before.device
JOIN package ON package.name = before.name AND package.arch = before.arch AND package.version = before.version
    AND package.source = before.source AND package.source_version = COALESCE(before.source_version, '');
ALTER TABLE installed ADD PRIMARY KEY (device, package);
CREATE INDEX installed_by_package ON installed (package, device);
DROP TABLE package_before;
