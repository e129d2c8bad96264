//! Files: who may read and write them is said by the access control list of the state directory, which all below it inherit.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::system_program;
use crate::files::FileStamp;
use crate::platform::sddl;
use crate::provider::powershell;

/// Without it a directory cannot be opened (`CreateFileW`, `FILE_FLAG_BACKUP_SEMANTICS`).
const BACKUP_SEMANTICS: u32 = 0x0200_0000;

/// 100 ns, from 1601, in a second (`FILETIME`).
const TICKS_PER_SECOND: u64 = 10_000_000;

/// Full control, for all below too, of the system and of administrators, by their identifiers: names are translated ("Well-known
/// SIDs").
const ENTRIES: [&str; 2] = ["*S-1-5-18:(OI)(CI)F", "*S-1-5-32-544:(OI)(CI)F"];

/// Between looks whether PowerShell has ended, which takes a second or two.
const PAUSE: Duration = Duration::from_millis(20);

/// Half a minute of them.
const LOOKS: u32 = 1500;

/// Prints a file's security descriptor. Its path goes by a variable: it is data and no part of the script.
const LOOK: &str = "$ErrorActionPreference = 'Stop'; (Get-Acl -LiteralPath $env:PATCHWARDEN_ASKED).Sddl";

/// To open a file. It inherits the directory's list.
pub(crate) fn options(_: u32) -> OpenOptions {
    OpenOptions::new()
}

/// A file keeps the list that it has inherited.
#[expect(clippy::unnecessary_wraps, reason = "on other systems it may fail")]
pub(crate) fn set_mode(_: &File, _: u32) -> io::Result<()> {
    Ok(())
}

/// Makes `path` a directory, which inherits the list of the one above.
pub(crate) fn ensure_directory(path: &Path, _: u32) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Makes the state directory one that only the system and administrators enter: any user may make directories below
/// `%ProgramData%`. One that is there, and could have been made or filled by others, is not taken.
pub(crate) fn ensure_state(path: &Path) -> io::Result<()> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => return refuse("is not a directory".to_owned()),
        Ok(found) => {
            return check_owner(path, &found).or_else(|why| {
                refuse(format!("{why}; if nobody knows where it is from, remove it with all that is in it, and join"))
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(above) = path.parent() {
        fs::create_dir_all(above)?;
    }
    // It fails where somebody has made it meanwhile.
    fs::create_dir(path)?;
    // icacls: `/inheritance:r` removes what comes from above.
    icacls(path, &["/inheritance:r", "/grant:r", ENTRIES[0], ENTRIES[1], "/Q"])?;
    match fs::read_dir(path)?.next() {
        None => Ok(()),
        Some(_) => refuse("somebody has put a file into it just now: remove it".to_owned()),
    }
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

/// Whether a file is the system's or administrators', and nobody else's to write; if not, why not.
pub(crate) fn check_owner(path: &Path, _: &Metadata) -> Result<(), String> {
    let descriptor = descriptor(path).map_err(|error| format!("who may write it cannot be found out: {error}"))?;
    sddl::check(&descriptor)
}

fn descriptor(path: &Path) -> io::Result<String> {
    let mut command = Command::new(powershell());
    command.args(["-NoProfile", "-NonInteractive", "-Command", LOOK]).env("PATCHWARDEN_ASKED", path);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // A descriptor fits the pipe.
    let mut looks = 0;
    while child.try_wait()?.is_none() {
        if looks >= LOOKS {
            child.kill()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "powershell.exe did not end in time"));
        }
        looks += 1;
        std::thread::sleep(PAUSE);
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() { Err(io::Error::other(format!("Get-Acl says nothing ({})", output.status))) } else { Ok(text) }
}

/// When it was made and last written, and its size.
pub(crate) fn stamp(metadata: &Metadata) -> FileStamp {
    let written = metadata.last_write_time();
    let number = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
    let (seconds, ticks) = (written / TICKS_PER_SECOND, written % TICKS_PER_SECOND);
    (metadata.creation_time(), number(seconds), number(ticks * 100), metadata.file_size())
}
