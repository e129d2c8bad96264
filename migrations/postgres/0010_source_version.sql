-- Version of the source package, where it is another than the binary package's; NULL where it is the same, or was not told.
ALTER TABLE package ADD COLUMN source_version TEXT;
