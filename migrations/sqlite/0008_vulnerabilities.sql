-- What is known of vulnerabilities. Each import is written beside the one that counts, in many small transactions, so that
-- reports and results go on being recorded; it counts from the one transaction on that sets `imported`. The greatest such id counts, the
-- others are deleted, unless another gateway is writing them.
CREATE TABLE vulnerability_import (
    id       BIGINT NOT NULL PRIMARY KEY,
    -- SHA-256 over the files.
    digest   TEXT   NOT NULL,
    -- When it began, in milliseconds since 1970.
    begun    BIGINT NOT NULL,
    -- NULL until it is complete.
    imported BIGINT
);

-- What an advisory says of a package of a distribution's release (patchwarden_vulnerabilities::Statement, as JSON).
CREATE TABLE vulnerability_statement (
    import    BIGINT NOT NULL,
    number    BIGINT NOT NULL,
    platform  TEXT   NOT NULL,
    package   TEXT   NOT NULL,
    statement TEXT   NOT NULL,
    PRIMARY KEY (import, number)
);
CREATE INDEX vulnerability_statement_by_package ON vulnerability_statement (import, platform, package);

-- Since when a vulnerability is known to be exploited (KEV, a date), and how likely that is (EPSS, in units of 10^-5).
CREATE TABLE vulnerability_known (
    import BIGINT NOT NULL,
    cve    TEXT   NOT NULL,
    added  TEXT,
    epss   BIGINT,
    PRIMARY KEY (import, cve)
);
