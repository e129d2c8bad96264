-- One row for each device that used a token with a key. Those from before have no device: they count as a use, and are given the device that
-- the key has already when it asks again.
ALTER TABLE join_token_use
    ADD COLUMN namespace TEXT COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN device    TEXT COLLATE "C" NOT NULL DEFAULT '',
    DROP CONSTRAINT join_token_use_pkey,
    ADD PRIMARY KEY (token, key, namespace, device);
