-- Several gateways on one database; a file of SQLite serves one, which knows its sessions. See src/store/replicas.rs.

-- The gateways that live. Each counts `beat` up; one that does so no more is dead, and its sessions are over.
CREATE TABLE replica (
    name TEXT COLLATE "C" PRIMARY KEY,
    beat BIGINT           NOT NULL
);

-- Where each device has its session. A later session of a device has a higher number.
CREATE SEQUENCE session_number;
CREATE TABLE session (
    namespace TEXT COLLATE "C" NOT NULL,
    device    TEXT COLLATE "C" NOT NULL,
    replica   TEXT COLLATE "C" NOT NULL REFERENCES replica ON DELETE CASCADE,
    number    BIGINT           NOT NULL,
    PRIMARY KEY (namespace, device)
);
CREATE INDEX session_by_replica ON session (replica);
