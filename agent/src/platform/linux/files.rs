//! Files: who may read and write them is their mode.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::files::FileStamp;

/// To open a file that has this mode if it is made by it.
pub(crate) fn options(mode: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(mode);
    options
}

/// Gives an open file this mode.
pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Makes `path` a directory of `mode`, also when it exists.
pub(crate) fn ensure_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes the state directory, which others may pass through.
pub(crate) fn ensure_state(path: &Path) -> io::Result<()> {
    ensure_directory(path, crate::files::PASSAGE)
}

/// Makes names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Whether a file is root's, or of the user who runs this program, and nobody else's to write; if not, why not.
pub(crate) fn check_owner(_: &Path, metadata: &Metadata) -> Result<(), String> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("belongs to user {owner}, not to root: chown root it"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("others than root can write it (mode {mode:04o}): chmod go-w it"));
    }
    Ok(())
}

/// Inode, modification time in seconds and nanoseconds, and size.
pub(crate) fn stamp(metadata: &Metadata) -> FileStamp {
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size())
}
