//! Scripts that an order may name: those in a directory that root alone writes.
//!
//! An order carries names, never a script, so that whoever edits policies runs nothing on a machine that its root has not put
//! there, or wanted of a publisher. A script counts only where nobody else could have put or changed it: it and every directory above it belong to root
//! and are writable by root alone, and none of them is a symbolic link.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::platform::NoScript;

/// Where they lie, from the root of the file system.
const DIRECTORIES: [&str; 3] = ["etc", "patchwarden", "hooks.d"];

/// Who owns them.
const ROOT: u32 = 0;

/// Group and others may write (`S_IWGRP`, `S_IWOTH`). An access control list that lets somebody write shows as the group's bit
/// (acl(5)).
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The owner may execute.
const EXECUTABLE: u32 = 0o100;

/// The script of this name, or why there is none that may be run.
pub(crate) fn find(name: &str) -> Result<PathBuf, NoScript> {
    find_below(Path::new("/"), ROOT, name)
}

fn find_below(root: &Path, owner: u32, name: &str) -> Result<PathBuf, NoScript> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(NoScript::Refused(format!("{name:?} is not the name of a file")));
    }
    let mut path = root.to_owned();
    look(&path, owner, true)?;
    for directory in DIRECTORIES {
        path.push(directory);
        look(&path, owner, true)?;
    }
    path.push(name);
    look(&path, owner, false)?;
    Ok(path)
}

fn look(path: &Path, owner: u32, is_directory: bool) -> Result<(), NoScript> {
    let refuse = |why: &str| Err(NoScript::Refused(format!("{}: {why}", path.display())));
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NoScript::Absent(format!("{}: {error}", path.display())));
        }
        Err(error) => return refuse(&error.to_string()),
    };
    match (is_directory, found.is_dir(), found.is_file()) {
        (true, true, _) | (false, _, true) => {}
        (true, ..) => return refuse("is not a directory"),
        (false, ..) => return refuse("is not a regular file"),
    }
    if found.uid() != owner {
        return refuse("does not belong to root");
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return refuse("may be written by others than root");
    }
    if !is_directory && found.mode() & EXECUTABLE == 0 {
        return refuse("is not executable");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(place.0.path().join("etc/patchwarden/hooks.d")).unwrap();
            fs::write(place.path("drain"), "#!/bin/sh\n").unwrap();
            for path in ["", "etc", "etc/patchwarden", "etc/patchwarden/hooks.d", "etc/patchwarden/hooks.d/drain"] {
                place.mode(path, 0o755);
            }
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("etc/patchwarden/hooks.d").join(name)
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(self.0.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn find(&self, name: &str) -> Result<PathBuf, String> {
            find_below(self.0.path(), rustix::process::geteuid().as_raw(), name).map_err(|why| why.to_string())
        }
    }

    #[test]
    fn a_script_that_root_alone_can_change_is_found() {
        let place = Place::new();
        assert_eq!(place.find("drain"), Ok(place.path("drain")));
        let stranger = rustix::process::geteuid().as_raw() + 1;
        let error = find_below(place.0.path(), stranger, "drain").unwrap_err().to_string();
        assert!(error.contains("does not belong to root"), "{error}");
    }

    #[test]
    fn only_where_nothing_has_its_name_another_ones_may_be_run() {
        let place = Place::new();
        let find = |name| find_below(place.0.path(), rustix::process::geteuid().as_raw(), name).unwrap_err();
        assert!(matches!(find("gone"), NoScript::Absent(_)));
        symlink("nowhere", place.path("link")).unwrap();
        assert!(matches!(find("link"), NoScript::Refused(_)));
        place.mode("etc/patchwarden/hooks.d/drain", 0o644);
        assert!(matches!(find("drain"), NoScript::Refused(_)));
        fs::remove_dir_all(place.0.path().join("etc/patchwarden")).unwrap();
        assert!(matches!(find("drain"), NoScript::Absent(_)));
        assert!(matches!(find("../drain"), NoScript::Refused(_)));
    }

    #[test]
    fn what_somebody_else_could_have_put_there_is_not_run() {
        for path in ["", "etc", "etc/patchwarden", "etc/patchwarden/hooks.d", "etc/patchwarden/hooks.d/drain"] {
            for mode in [0o775, 0o757, 0o777] {
                let place = Place::new();
                place.mode(path, mode);
                let error = place.find("drain").unwrap_err();
                assert!(error.contains("may be written by others"), "{path} {mode:o}: {error}");
            }
        }
    }

    #[test]
    fn only_a_regular_executable_file_of_the_directory_itself_is_run() {
        let place = Place::new();
        for name in ["../../drain", "/bin/sh", ".hidden", "", "."] {
            assert!(place.find(name).unwrap_err().contains("is not the name of a file"), "{name}");
        }
        assert!(place.find("gone").unwrap_err().contains("No such file"));
        symlink("/bin/sh", place.path("link")).unwrap();
        assert!(place.find("link").unwrap_err().contains("is not a regular file"));
        fs::create_dir(place.path("directory")).unwrap();
        assert!(place.find("directory").unwrap_err().contains("is not a regular file"));
        place.mode("etc/patchwarden/hooks.d/drain", 0o644);
        assert!(place.find("drain").unwrap_err().contains("is not executable"));
        let place = Place::new();
        let (there, aside) = (place.0.path().join("etc/patchwarden"), place.0.path().join("etc/aside"));
        fs::rename(&there, &aside).unwrap();
        symlink(&aside, &there).unwrap();
        assert!(place.find("drain").unwrap_err().contains("is not a directory"));
    }
}
