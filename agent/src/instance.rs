//! Which process of the agent this is, so that a gateway finds out copies of a machine: each names the one before it on the same state directory.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::DUPLICATE_IDENTITY;
use patchwarden_protocol::agent_v1 as wire;

use crate::{files, platform};

/// Id of the last process that a gateway has welcomed.
const INSTANCE: &str = "instance";

/// Why the gateway refuses sessions of this key, for as long as it does.
const DUPLICATE: &str = "duplicate-identity";

/// Bytes that are read of either.
const MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Instance {
    state: PathBuf,
    id: String,
    predecessor: String,
    started: Timestamp,
    is_noted: Cell<bool>,
}

impl Instance {
    /// This process. What the one before has left may be lost: then it looks as if the machine had been set back, which does no harm.
    pub(crate) fn begin(state: &Path, now: Timestamp) -> Self {
        let predecessor = read(&state.join(INSTANCE)).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", state.join(INSTANCE).display());
            None
        });
        Self {
            state: state.to_owned(),
            id: format!("{:032x}", rand::random::<u128>()),
            predecessor: predecessor.unwrap_or_default(),
            started: now,
            is_noted: Cell::new(false),
        }
    }

    /// As the Hello says it.
    pub(crate) fn hello(&self) -> wire::Instance {
        wire::Instance {
            id: self.id.clone(),
            predecessor: self.predecessor.clone(),
            host_name: platform::short_hostname(),
            started: self.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }

    /// A gateway has welcomed this process: the next one comes from it.
    pub(crate) fn was_welcomed(&self) -> io::Result<()> {
        if !self.is_noted.get() {
            files::write_atomic(&self.state.join(INSTANCE), self.id.as_bytes(), files::PRIVATE)?;
            self.is_noted.set(true);
        }
        match std::fs::remove_file(self.state.join(DUPLICATE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A session was refused for this reason: where other machines use the key, `status` tells.
    pub(crate) fn was_refused(&self, reason: &str) -> io::Result<()> {
        let path = self.state.join(DUPLICATE);
        if !reason.starts_with(DUPLICATE_IDENTITY) || read(&path)?.as_deref() == Some(reason) {
            return Ok(());
        }
        files::write_atomic(&path, reason.as_bytes(), files::PRIVATE)
    }
}

/// Why the gateway refuses sessions of this machine's key, if it does as others use it.
pub(crate) fn duplicate(state: &Path) -> io::Result<Option<String>> {
    read(&state.join(DUPLICATE))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let Some(bytes) = files::read_if_exists(path)? else { return Ok(None) };
    Ok(Some(String::from_utf8_lossy(&bytes[..bytes.len().min(MAX)]).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_comes_from_the_last_one_that_was_welcomed() {
        let place = tempfile::tempdir().unwrap();
        let begin = || Instance::begin(place.path(), Timestamp::UNIX_EPOCH);
        let (first, unheard) = (begin(), begin());
        assert_eq!(first.hello().predecessor, "");
        assert_ne!(first.hello().id, unheard.hello().id);
        assert_eq!((first.hello().id.len(), first.hello().started.as_str()), (32, "1970-01-01T00:00:00Z"));
        first.was_welcomed().unwrap();
        assert_eq!(first.hello().predecessor, "", "its own word stays the same");
        assert_eq!(begin().hello().predecessor, first.hello().id);
    }

    #[test]
    fn that_others_use_the_key_is_known_until_a_session_begins() {
        let place = tempfile::tempdir().unwrap();
        let instance = Instance::begin(place.path(), Timestamp::UNIX_EPOCH);
        instance.was_refused("the gateway is away").unwrap();
        assert_eq!(duplicate(place.path()).unwrap(), None);
        instance.was_refused("DuplicateIdentity: two machines").unwrap();
        assert_eq!(duplicate(place.path()).unwrap().as_deref(), Some("DuplicateIdentity: two machines"));
        instance.was_welcomed().unwrap();
        assert_eq!(duplicate(place.path()).unwrap(), None);
        instance.was_welcomed().unwrap();
    }
}
