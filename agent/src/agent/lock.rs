//! One agent for one state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::files;

const FILE: &str = "lock";

/// How often a lock is tried: for two seconds. Of an agent that was killed it may live on for an instant, in a child that has not executed its program yet
/// (flock(2): a lock is the open file's, which a fork shares); and [`is_running`] holds it for an instant.
const TRIES: usize = 100;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

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
    let mut tries = 1..TRIES;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tries.next().is_some() => thread::sleep(PAUSE),
            Err(error) => {
                return Err(error).with_context(|| format!("{}: another patchwarden-agent is running", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_lives_on_for_an_instant_is_waited_for_and_that_of_a_running_agent_is_not_taken() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().join("state");
        let first = lock(&state).unwrap();
        let refused = lock(&state).unwrap_err();
        assert!(refused.to_string().contains("another patchwarden-agent is running"), "{refused:#}");
        assert!(is_running(&state).unwrap());
        let dying = thread::spawn(move || {
            thread::sleep(10 * PAUSE);
            drop(first);
        });
        let second = lock(&state).unwrap();
        dying.join().unwrap();
        drop(second);
        assert!(!is_running(&state).unwrap());
    }
}
