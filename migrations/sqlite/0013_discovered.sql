-- Since when the data say something of a release about a vulnerability (a CVE, or the advisory where it names none): the import that first did.
CREATE TABLE vulnerability_first (
    platform TEXT NOT NULL,
    id       TEXT NOT NULL,
    known    BIGINT NOT NULL,
    PRIMARY KEY (platform, id)
);
INSERT INTO vulnerability_first (platform, id, known)
SELECT said.platform, subject.id, MIN(import.imported)
FROM vulnerability_import AS import
JOIN vulnerability_subject AS subject ON subject.import = import.id
JOIN vulnerability_statement AS said ON said.import = subject.import AND said.number = subject.number
WHERE import.imported IS NOT NULL GROUP BY said.platform, subject.id;

-- Changes of a device's package.
DROP INDEX package_change_by_package;
CREATE INDEX package_change_by_package ON package_change (package, namespace, device, id);
