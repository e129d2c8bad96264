ALTER TABLE package ADD COLUMN first_recorded BIGINT;

CREATE TABLE device_details (
    namespace TEXT COLLATE "C" NOT NULL,
    device    TEXT COLLATE "C" NOT NULL,
    key       TEXT             NOT NULL,
    digest    TEXT             NOT NULL,
    envelope  TEXT             NOT NULL,
    recorded  BIGINT           NOT NULL,
    PRIMARY KEY (namespace, device)
);
