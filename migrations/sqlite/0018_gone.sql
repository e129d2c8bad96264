-- Devices of which the store has something and of which there is no DeviceInventory, and since when that is known.
CREATE TABLE gone_device (
    namespace TEXT   NOT NULL,
    device    TEXT   NOT NULL,
    since     BIGINT NOT NULL,
    PRIMARY KEY (namespace, device)
);
-- When a device was last seen to offer it; NULL until somebody has looked.
ALTER TABLE update_seen ADD COLUMN offered BIGINT;
