//! Files that must be whole after a crash.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub(crate) use crate::platform::files::{
    check_owner, ensure_directory, ensure_state, options, set_mode, stamp as stamp_of, sync_directory,
};

/// Only root reads: keys and everything that says what is installed.
pub(crate) const PRIVATE: u32 = 0o600;

/// Root lists, others may pass through: apt's unprivileged download user must reach the archives below.
pub(crate) const PASSAGE: u32 = 0o711;

/// Only root enters.
pub(crate) const SECLUDED: u32 = 0o700;

/// What the file system tells a file by (the inode, or when it was made), modification time in seconds and nanoseconds, and
/// size: a cheap sign that a file is still the same.
pub(crate) type FileStamp = (u64, i64, i64, u64);

/// Replaces `path` by `bytes`: after a crash it holds either the old content or the new.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(temporary)) = (path.parent(), temporary(path)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file's path", path.display())));
    };
    let mut file = options(mode).write(true).create(true).truncate(true).open(&temporary)?;
    // An older temporary file keeps its mode through `open`.
    set_mode(&file, mode)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// What a crash in the middle of [`write_atomic`] may leave beside `path`.
pub(crate) fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".new");
    Some(path.with_file_name(name))
}

/// Removes a directory and everything in it; that it is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The file's text, or `None` if it does not exist.
pub(crate) fn read_if_exists(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file's stamp, or `None` if it does not exist.
pub(crate) fn stamp(path: &Path) -> io::Result<Option<FileStamp>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(stamp_of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes `to`, which is not there, the same file as `from`: the same inode where the file system can, otherwise a copy.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            fs::copy(from, to).map(|_| ())
        }
        linked => linked,
    }
}

/// Hexadecimal SHA-256 of the file's content.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Hexadecimal SHA-256 of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        write_atomic(&path, b"one", PRIVATE).unwrap();
        write_atomic(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
