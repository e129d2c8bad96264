//! Files: who may read and write them is said by the access control list of the state directory, which all below it inherit.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::system_program;
use crate::files::FileStamp;

/// Without it a directory cannot be opened (`CreateFileW`, `FILE_FLAG_BACKUP_SEMANTICS`).
const BACKUP_SEMANTICS: u32 = 0x0200_0000;

/// 100 ns, from 1601, in a second (`FILETIME`).
const TICKS_PER_SECOND: u64 = 10_000_000;

/// Full control, for all below too, of the system and of administrators, by their identifiers: names are translated ("Well-known
/// SIDs").
const ENTRIES: [&str; 2] = ["*S-1-5-18:(OI)(CI)F", "*S-1-5-32-544:(OI)(CI)F"];

/// Administrators.
const OWNER: &str = "*S-1-5-32-544";

/// To open a file. It inherits the directory's list.
pub(crate) fn options(_: u32) -> OpenOptions {
    OpenOptions::new()
}

/// A file keeps the list that it has inherited.
pub(crate) fn set_mode(_: &File, _: u32) -> io::Result<()> {
    Ok(())
}

/// Makes `path` a directory, which inherits the list of the one above.
pub(crate) fn ensure_directory(path: &Path, _: u32) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Makes the state directory one that only the system and administrators enter, whoever made it: any user may make directories
/// below `%ProgramData%`. icacls: `/reset` replaces the lists of all below it by inherited ones, `/inheritance:r` removes what
/// comes from above.
pub(crate) fn ensure_state(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    icacls(path, &["/setowner", OWNER, "/T", "/Q"])?;
    icacls(path, &["/reset", "/T", "/Q"])?;
    icacls(path, &["/inheritance:r", "/grant:r", ENTRIES[0], ENTRIES[1], "/Q"])
}

fn icacls(path: &Path, arguments: &[&str]) -> io::Result<()> {
    let mut command = Command::new(system_program("icacls.exe"));
    let output = command.arg(path).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("icacls {}: {}: {}", arguments.join(" "), output.status, said.trim())))
}

/// Makes names in `directory` durable, where the file system lets a directory be flushed. NTFS keeps names whole by a log of its
/// own; what it may forget is the last of them.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    let flushed =
        OpenOptions::new().write(true).custom_flags(BACKUP_SEMANTICS).open(directory).and_then(|d| d.sync_all());
    match flushed {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => Ok(()),
        flushed => flushed,
    }
}

/// Why a file cannot be trusted: see [`ensure_state`] for what is.
pub(crate) fn check_owner(_: &Path, _: &Metadata) -> Result<(), String> {
    Err("whether administrators alone can write it is not looked at on Windows yet".to_owned())
}

/// When it was made and last written, and its size.
pub(crate) fn stamp(metadata: &Metadata) -> FileStamp {
    let written = metadata.last_write_time();
    let number = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
    let (seconds, ticks) = (written / TICKS_PER_SECOND, written % TICKS_PER_SECOND);
    (metadata.creation_time(), number(seconds), number(ticks * 100), metadata.file_size())
}
