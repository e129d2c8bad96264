-- One row for each device that used a token with a key. Those from before have no device: they count as a use, and are given the device that
-- the key has already when it asks again.
CREATE TABLE join_token_use_of_device (
    token     TEXT   NOT NULL,
    key       TEXT   NOT NULL,
    namespace TEXT   NOT NULL DEFAULT '',
    device    TEXT   NOT NULL DEFAULT '',
    time      BIGINT NOT NULL,
    PRIMARY KEY (token, key, namespace, device)
);
INSERT INTO join_token_use_of_device (token, key, time) SELECT token, key, time FROM join_token_use;
DROP TABLE join_token_use;
ALTER TABLE join_token_use_of_device RENAME TO join_token_use;
