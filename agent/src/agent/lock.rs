//! One agent for one state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use anyhow::Context as _;

use crate::files;

const FILE: &str = "lock";

/// Whether an agent runs on this state directory. Asked by a shared lock, for an instant.
pub(crate) fn is_running(state: &Path) -> io::Result<bool> {
    let file = match File::open(state.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes the state directory for this process alone; the lock ends with the returned file.
pub(crate) fn lock(state: &Path) -> anyhow::Result<File> {
    files::ensure_state(state).with_context(|| state.display().to_string())?;
    let path = state.join(FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.try_lock().with_context(|| format!("{}: another patchwarden-agent is running", path.display()))?;
    Ok(file)
}
