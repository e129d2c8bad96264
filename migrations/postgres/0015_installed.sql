-- On how many devices an update of `progress` is known to have been installed: of its ring, and of the client as far as that matters.
ALTER TABLE progress ADD COLUMN installed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE progress ADD COLUMN anywhere BIGINT NOT NULL DEFAULT 0;
