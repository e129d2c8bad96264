-- On which devices an update of `progress` failed, and as of when that was decided: JSON, as it is signed. NULL where none was.
ALTER TABLE progress ADD COLUMN failed TEXT;
