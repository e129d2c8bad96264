-- What the API asks for: where a package is, by its own name or by its source's, device by device.
DROP INDEX package_by_name;
CREATE INDEX package_by_name ON package (name, namespace, device);
CREATE INDEX package_by_source ON package (source, namespace, device);

-- Which statements are about a vulnerability (a CVE, or the advisory where it names none).
CREATE TABLE vulnerability_subject (
    import BIGINT NOT NULL,
    id     TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    PRIMARY KEY (import, id, number)
);
-- What was imported before has none: it is imported again, and counts until then.
UPDATE vulnerability_import SET digest = '';
