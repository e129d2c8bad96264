//! What an administrator has given to a program beside its content: who may run it, and what it may do.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::recipes::check_program;

/// Capabilities (capabilities(7), "File capabilities").
const CAPABILITY: &str = "security.capability";

/// Access control lists (acl(5)) and the label of SELinux. What is signed about a file's content (`security.ima`, `security.evm`) does
/// not hold for another one.
const OTHERS: [&str; 3] = ["system.posix_acl_access", "system.posix_acl_default", "security.selinux"];

/// Longest value of an attribute (xattr(7), "Filesystem differences").
const MAX_VALUE: usize = 64 << 10;

/// Gives `new`, which is to take the place of `old`, its group and mode, and each file and directory in both of them the
/// capabilities, the access control list and the label that the old one has. What would be lost is an error.
pub(crate) fn keep(old: &Path, new: &Path) -> Result<(), String> {
    let (was, is) = (metadata(old)?, metadata(new)?);
    let failed = |error: io::Error| format!("{}: {error}", new.display());
    if was.is_file() == is.is_file() {
        // Before the capabilities, which another owner takes away: chown(2).
        chown(new, None, Some(was.gid())).map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(was.mode() & 0o777);
        fs::set_permissions(new, mode).map_err(failed)?;
    }
    keep_below(old, new)
}

fn keep_below(old: &Path, new: &Path) -> Result<(), String> {
    let Ok(was) = fs::symlink_metadata(old) else { return Ok(()) };
    let is = metadata(new)?;
    if was.file_type() != is.file_type() || is.is_symlink() {
        return Ok(());
    }
    if was.is_file() && was.mode() & 0o6000 != 0 {
        return Err(format!(
            "{} is setuid or setgid, which its successor could not be: update it by hand",
            old.display()
        ));
    }
    if let Some(capabilities) = read(old, CAPABILITY)? {
        // Who can give it another name would choose what gets its capabilities.
        check_program(old).map_err(|why| format!("{} has capabilities (getcap), but {why}", old.display()))?;
        write(new, CAPABILITY, &capabilities)?;
    }
    for name in OTHERS {
        if let Some(value) = read(old, name)? {
            write(new, name, &value)?;
        }
    }
    if is.is_dir() {
        for entry in fs::read_dir(new).map_err(|error| format!("{}: {error}", new.display()))? {
            let name = entry.map_err(|error| format!("{}: {error}", new.display()))?.file_name();
            keep_below(&old.join(&name), &new.join(&name))?;
        }
    }
    Ok(())
}

fn metadata(path: &Path) -> Result<fs::Metadata, String> {
    fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Nothing where it has none of that name, or its file system knows none.
fn read(path: &Path, name: &str) -> Result<Option<Vec<u8>>, String> {
    let mut value = vec![0; MAX_VALUE];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(format!("{}: {name}: {error}", path.display())),
    }
}

fn write(path: &Path, name: &str, value: &[u8]) -> Result<(), String> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .map_err(|error| format!("{}: {name} of the earlier version cannot be kept: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// `cap_net_bind_service=ep`, as `setcap` writes it: `struct vfs_cap_data` of linux/capability.h, version 2.
    const BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn what(path: &Path) -> (u32, u32, Option<Vec<u8>>) {
        let metadata = fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.gid(), read(path, CAPABILITY).unwrap())
    }

    #[test]
    fn a_program_keeps_its_group_its_mode_and_its_capabilities() {
        let place = tempfile::tempdir_in("/var/lib").unwrap();
        let [old, new] = ["old", "new"].map(|name| place.path().join(name));
        for file in [&old, &new] {
            fs::write(file, "").unwrap();
        }
        chown(&old, None, Some(1234)).unwrap();
        set_mode(&old, 0o750);
        write(&old, CAPABILITY, &BIND).unwrap();
        keep(&old, &new).unwrap();
        assert_eq!(what(&new), (0o750, 1234, Some(BIND.to_vec())));
        // Setting an owner has taken the bit away.
        set_mode(&old, 0o4750);
        assert!(keep(&old, &new).unwrap_err().contains("is setuid or setgid"));
    }

    #[test]
    fn a_tree_keeps_what_its_files_have_where_they_are_still_there() {
        let place = tempfile::tempdir_in("/var/lib").unwrap();
        let [old, new] = ["old", "new"].map(|name| place.path().join(name));
        for (tree, names) in [(&old, ["bin/a", "bin/gone"]), (&new, ["bin/a", "bin/added"])] {
            fs::create_dir_all(tree.join("bin")).unwrap();
            for name in names {
                fs::write(tree.join(name), "").unwrap();
            }
        }
        for name in ["bin/a", "bin/gone"] {
            write(&old.join(name), CAPABILITY, &BIND).unwrap();
        }
        set_mode(&old, 0o700);
        set_mode(&old.join("bin/a"), 0o700);
        std::os::unix::fs::symlink("a", new.join("bin/link")).unwrap();
        fs::write(old.join("bin/link"), "").unwrap();
        let before = what(&new.join("bin/a"));
        keep(&old, &new).unwrap();
        assert_eq!(
            what(&new.join("bin/a")),
            (before.0, 0, Some(BIND.to_vec())),
            "within a tree the archive's modes count"
        );
        assert_eq!((what(&new).0, what(&new.join("bin/added")).2), (0o700, None));
        // Another user could have given this name to it.
        chown(old.join("bin"), Some(1234), None).unwrap();
        let why = keep(&old, &new).unwrap_err();
        assert!(why.contains("bin/a has capabilities (getcap), but ") && why.contains("belongs to user 1234"), "{why}");
    }
}
