//! What a file or a directory is, in one number: to know later whether it is still the same.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use sha2::{Digest as _, Sha256};

/// Deeper than this nobody's application is.
const MAX_DEPTH: usize = 128;

/// Of the answers, so much is read at a time.
const BUFFER: usize = 128 << 10;

/// Hexadecimal SHA-256 over everything at `path`: names, kinds, modes, owners, contents and the texts of links, in the order of the
/// names. Neither follows a link nor opens what is no plain file; another file system in it is an error. Times and extended attributes
/// do not count.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut hasher = Sha256::new();
    let stat = rustix::fs::statat(CWD, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    entry(&mut hasher, CWD, &name, b"", stat.st_dev, 0)?;
    Ok(crate::files::hexadecimal(&hasher.finalize()))
}

/// One entry, which is called `name` in `at` and `told` in the digest.
fn entry(
    hasher: &mut Sha256,
    at: BorrowedFd<'_>,
    name: &CStr,
    told: &[u8],
    device: u64,
    depth: usize,
) -> io::Result<()> {
    let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let in_it = |why: &str| io::Error::other(format!("{}: {why}", name.to_string_lossy()));
    if stat.st_dev != device {
        return Err(in_it("is on another file system"));
    }
    if depth > MAX_DEPTH {
        return Err(in_it("is too deep"));
    }
    let Stat { st_mode, st_uid, st_gid, .. } = stat;
    field(hasher, told);
    field(hasher, &st_mode.to_le_bytes());
    field(hasher, &st_uid.to_le_bytes());
    field(hasher, &st_gid.to_le_bytes());
    match FileType::from_raw_mode(st_mode) {
        FileType::RegularFile => content(hasher, at, name),
        FileType::Symlink => {
            field(hasher, rustix::fs::readlinkat(at, name, Vec::new())?.as_bytes());
            Ok(())
        }
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(at, name, flags, Mode::empty())?;
            let mut names = Vec::new();
            for below in Dir::read_from(&directory)? {
                let below = below?.file_name().to_owned();
                if !matches!(below.as_bytes(), b"." | b"..") {
                    names.push(below);
                }
            }
            names.sort_unstable();
            // So that a name in the directory and one after it are two things.
            field(hasher, &(names.len() as u64).to_le_bytes());
            for below in &names {
                entry(hasher, directory.as_fd(), below, below.as_bytes(), device, depth + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn content(hasher: &mut Sha256, at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(at, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{}: is not a plain file any more", name.to_string_lossy())));
    }
    let mut own = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        own.update(&buffer[..read]);
    }
    field(hasher, &own.finalize());
    Ok(())
}

fn field(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    type Change = fn(&Path);

    #[test]
    fn whatever_changes_in_a_tree_changes_its_digest() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("app");
        let make = || {
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("bin/empty")).unwrap();
            fs::write(root.join("bin/app"), "one").unwrap();
            fs::write(root.join("bin/more"), "two").unwrap();
            symlink("app", root.join("bin/link")).unwrap();
        };
        make();
        let first = digest(&root).unwrap();
        make();
        assert_eq!(digest(&root).unwrap(), first, "the same once more");
        let moved = place.path().join("elsewhere");
        fs::rename(&root, &moved).unwrap();
        assert_eq!(digest(&moved).unwrap(), first, "wherever it lies");
        let changes: [Change; 8] = [
            |root| fs::write(root.join("bin/app"), "onf").unwrap(),
            |root| fs::write(root.join("bin/new"), "").unwrap(),
            |root| fs::remove_dir(root.join("bin/empty")).unwrap(),
            |root| fs::rename(root.join("bin/empty"), root.join("empty")).unwrap(),
            |root| fs::rename(root.join("bin/more"), root.join("bin/other")).unwrap(),
            |root| fs::set_permissions(root.join("bin/app"), fs::Permissions::from_mode(0o755)).unwrap(),
            |root| {
                fs::remove_file(root.join("bin/link")).unwrap();
                symlink("more", root.join("bin/link")).unwrap();
            },
            |root| std::os::unix::fs::chown(root.join("bin/app"), None, Some(1234)).unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            make();
            change(&root);
            assert_ne!(digest(&root).unwrap(), first, "change {number}");
        }
        assert!(digest(&place.path().join("none")).is_err());
    }

    #[test]
    fn what_would_never_end_is_not_read() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        digest(place.path()).unwrap();
        let mut deep = place.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        assert!(digest(place.path()).unwrap_err().to_string().contains("is too deep"));
    }
}
