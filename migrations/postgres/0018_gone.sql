-- Devices of which the store has something and of which there is no DeviceInventory, and since when that is known.
CREATE TABLE gone_device (
    namespace TEXT COLLATE "C" NOT NULL,
    device    TEXT COLLATE "C" NOT NULL,
    since     BIGINT NOT NULL,
    PRIMARY KEY (namespace, device)
);
-- Compared bytewise, as everywhere.
ALTER TABLE lineage ALTER COLUMN namespace TYPE TEXT COLLATE "C", ALTER COLUMN device TYPE TEXT COLLATE "C";
-- When a device was last seen to offer it; NULL until somebody has looked.
ALTER TABLE update_seen ADD COLUMN offered BIGINT;
