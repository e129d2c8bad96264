-- When a package was first recorded on its device in this version; NULL where that was before this was kept.
ALTER TABLE package ADD COLUMN first_recorded BIGINT;

-- What each device is made of: the signed document as the device sent it, and the digest of its payload.
CREATE TABLE device_details (
    namespace TEXT   NOT NULL,
    device    TEXT   NOT NULL,
    key       TEXT   NOT NULL,
    digest    TEXT   NOT NULL,
    envelope  TEXT   NOT NULL,
    recorded  BIGINT NOT NULL,
    PRIMARY KEY (namespace, device)
);
