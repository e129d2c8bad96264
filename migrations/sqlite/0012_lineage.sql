-- Which processes have spoken with each device's key: what copies of a machine are found out by.
CREATE TABLE lineage (
    namespace TEXT NOT NULL,
    device    TEXT NOT NULL,
    key       TEXT NOT NULL,
    state     TEXT NOT NULL,
    PRIMARY KEY (namespace, device)
);
