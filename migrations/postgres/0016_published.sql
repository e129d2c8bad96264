-- The vendor's earliest date for the update that several devices tell, and an earlier one that a single device tells, and which.
ALTER TABLE sighting ADD COLUMN published BIGINT;
ALTER TABLE sighting ADD COLUMN published_alone BIGINT;
ALTER TABLE sighting ADD COLUMN published_by TEXT;
