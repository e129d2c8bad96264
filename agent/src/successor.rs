//! The agent's own next version, which has to show that it can do what the one before could: get a session.
//!
//! ```text
//!   an order installs it -> return/: the program that runs now, its package, plan.json
//!   a service of its own runs return/patchwarden-agent watch-successor: see `execute::successor`
//!     the next version has a session: checked-in -> return/ is removed
//!     it gets none in time -> the package manager goes back -> returned.json
//! ```
//! Versions of the agent share names of files here: `return/patchwarden-agent`, `return/plan.json` and `return/checked-in`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::journal::Process;
use crate::platform;
use crate::provider::Inventory;

/// Its package.
pub(crate) const PACKAGE: &str = "patchwarden-agent";

/// The service that runs the earlier program, and may do so only while there is a plan.
pub(crate) const UNIT: &str = "patchwarden-agent-return.service";

const DIRECTORY: &str = "return";
const PROGRAM: &str = "patchwarden-agent";
const PLAN: &str = "plan.json";
const CHECKED_IN: &str = "checked-in";
const RETURNED: &str = "returned.json";

/// What is to be done where the next version gets no session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Of the order that installs it.
    pub(crate) order_digest: String,
    /// From the version that runs now to the next one.
    pub(crate) package: PackageChange,
    /// The agent that runs now.
    pub(crate) predecessor: Process,
    /// Where its program was started from, and where the next one's will be.
    pub(crate) program: PathBuf,
    /// How long the next version has to get a session, in seconds.
    pub(crate) limit_seconds: u32,
    /// When the install is over, whatever came of it.
    pub(crate) until: Timestamp,
}

/// A version that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Returned {
    /// Of the order that had installed it.
    pub(crate) order_digest: String,
    /// From the earlier version to the one that was taken back.
    pub(crate) package: PackageChange,
    /// When.
    pub(crate) at: Timestamp,
    /// Why, and how it went, for people.
    pub(crate) message: String,
}

/// Where the earlier version lies.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    state: PathBuf,
}

impl Successor {
    /// Below a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// The directory.
    pub(crate) fn place(&self) -> PathBuf {
        self.state.join(DIRECTORY)
    }

    /// The files of the earlier version.
    pub(crate) fn archives(&self) -> PathBuf {
        self.place().join("archives")
    }

    /// The earlier program.
    pub(crate) fn program(&self) -> PathBuf {
        self.place().join(PROGRAM)
    }

    /// Keeps the program that runs now, and then the plan: without it the other does not count.
    pub(crate) fn write(&self, plan: &Plan) -> io::Result<()> {
        let program = self.program();
        fs::copy(platform::own_program()?, &program)?;
        fs::File::open(&program)?.sync_all()?;
        files::write_atomic(&self.place().join(PLAN), &serde_json::to_vec(plan)?, files::PRIVATE)
    }

    /// What is to be done, if anything is.
    pub(crate) fn plan(&self) -> io::Result<Option<Plan>> {
        let bytes = files::read_if_exists(&self.place().join(PLAN))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).transpose()
    }

    /// Nothing is left to be done.
    pub(crate) fn clear(&self) -> io::Result<()> {
        // The plan first: nobody must follow one of which a part is gone.
        match fs::remove_file(self.place().join(PLAN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        files::remove_tree(&self.place())
    }

    /// Whether the program at `path` is another one than the earlier one.
    pub(crate) fn is_next(&self, path: &Path) -> io::Result<bool> {
        Ok(files::sha256_of(path)? != files::sha256_of(&self.program())?)
    }

    /// Says that the next version has a session, where it is that which runs.
    pub(crate) fn check_in(&self) -> io::Result<()> {
        if self.is_awaited()? {
            files::write_atomic(&self.place().join(CHECKED_IN), b"", files::PRIVATE)?;
            tracing::info!("this version of the agent has a session: the earlier one is not needed any more");
        }
        Ok(())
    }

    /// Whether it did.
    pub(crate) fn has_checked_in(&self) -> bool {
        self.place().join(CHECKED_IN).exists()
    }

    /// Whether what runs is the next version and has no session yet.
    pub(crate) fn is_awaited(&self) -> io::Result<bool> {
        if !self.place().join(PLAN).exists() || self.has_checked_in() {
            return Ok(false);
        }
        self.is_next(&platform::own_program()?)
    }

    /// The version that was taken back last.
    pub(crate) fn returned(&self) -> io::Result<Option<Returned>> {
        let bytes = files::read_if_exists(&self.state.join(RETURNED))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).transpose()
    }

    /// Remembers it.
    pub(crate) fn note(&self, returned: &Returned) -> io::Result<()> {
        files::write_atomic(&self.state.join(RETURNED), &serde_json::to_vec(returned)?, files::PRIVATE)
    }

    /// The version that was taken back is not installed again: another one is awaited, or a person who removes the file.
    pub(crate) fn hold(&self, inventory: &mut Inventory) {
        let returned = match self.returned() {
            Ok(Some(returned)) => returned,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!("{}: {error}", self.state.join(RETURNED).display());
                return;
            }
        };
        let is_it = |package: &PackageChange| {
            (&package.name, &package.candidate) == (&returned.package.name, &returned.package.candidate)
        };
        for update in &mut inventory.updates {
            update.held = update.held || update.packages.iter().any(is_it);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            order_digest: "sha256:1".into(),
            package: PackageChange {
                name: PACKAGE.into(),
                arch: "all".into(),
                installed: "1".into(),
                candidate: "2".into(),
            },
            predecessor: Process { pid: 1, start_time: 2, boot_id: "b".into() },
            program: "/usr/bin/patchwarden-agent".into(),
            limit_seconds: 600,
            until: crate::journal::tests::at(0),
        }
    }

    #[test]
    fn only_another_program_than_the_earlier_one_is_the_next_version() {
        let state = tempfile::tempdir().unwrap();
        let successor = Successor::new(state.path());
        assert!(!successor.is_awaited().unwrap(), "nothing is planned");
        files::ensure_directory(&successor.place(), files::SECLUDED).unwrap();
        successor.write(&plan()).unwrap();
        assert_eq!(successor.plan().unwrap(), Some(plan()));
        successor.check_in().unwrap();
        assert!(!successor.is_awaited().unwrap() && !successor.has_checked_in(), "what runs is the earlier one");
        fs::write(successor.program(), "another").unwrap();
        assert!(successor.is_awaited().unwrap());
        successor.check_in().unwrap();
        assert!(!successor.is_awaited().unwrap() && successor.has_checked_in());
        successor.clear().unwrap();
        assert_eq!(successor.plan().unwrap(), None);
        successor.clear().unwrap();
        successor.check_in().unwrap();
        assert!(!successor.place().exists(), "there is nothing to check in for");
    }
}
