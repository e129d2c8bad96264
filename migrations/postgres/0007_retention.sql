-- What is dropped first when it is old.
CREATE INDEX install_by_age ON install (first_seen);
CREATE INDEX package_change_by_age ON package_change (recorded);
