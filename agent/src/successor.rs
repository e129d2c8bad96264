//! The agent's own next version, which has to show that it can do what the one before could: get a session.
//!
//! ```text
//!   an order installs it -> return/: the program that runs now, its package, plan.json
//!   a service of its own runs return/patchwarden-agent watch-successor: see `execute::successor`
//!     the next version has a session: decided, "checked-in" -> return/ is removed
//!     it gets none in time: decided, "going-back" -> returned.json -> the package manager goes back -> return/ is removed
//! ```
//! Versions of the agent share names of files here: `return/patchwarden-agent`, `return/plan.json` and `return/decided`.

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
const DECIDED: &str = "decided";
const RETURNED: &str = "returned.json";

/// Which it is to be. Whoever says so first has the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The next version has a session.
    CheckedIn,
    /// It had none in time.
    GoingBack,
}

impl Decision {
    fn word(self) -> &'static [u8] {
        match self {
            Self::CheckedIn => b"checked-in",
            Self::GoingBack => b"going-back",
        }
    }
}

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
    /// `host:port` of the gateway: where nobody can reach it the next version is not to blame.
    pub(crate) gateway: String,
    /// Whether the packages are zypper's, which is a preview: the configuration may be the next version's already.
    pub(crate) preview_zypper: bool,
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
            match self.decide(Decision::CheckedIn)? {
                Decision::CheckedIn => {
                    tracing::info!("this version of the agent has a session: the earlier one is not needed any more");
                }
                Decision::GoingBack => tracing::warn!("this version of the agent is being taken back"),
            }
        }
        Ok(())
    }

    /// What was decided, if anything was.
    pub(crate) fn decided(&self) -> io::Result<Option<Decision>> {
        let word = files::read_if_exists(&self.place().join(DECIDED))?;
        let is = |word: &[u8], decision: Decision| (word == decision.word()).then_some(decision);
        Ok(word.map(|word| is(&word, Decision::CheckedIn).unwrap_or(Decision::GoingBack)))
    }

    /// Decides, unless somebody has; what stands.
    pub(crate) fn decide(&self, decision: Decision) -> io::Result<Decision> {
        // Written as a whole, and then named where nothing is yet.
        let own = self.place().join(format!(".{DECIDED}-{}", std::process::id()));
        files::write_atomic(&own, decision.word(), files::PRIVATE)?;
        let named = fs::hard_link(&own, self.place().join(DECIDED));
        fs::remove_file(&own)?;
        match named {
            Ok(()) => files::sync_directory(&self.place())?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(self.decided()?.unwrap_or(decision))
    }

    /// Whether what runs is the next version and has no session yet.
    pub(crate) fn is_awaited(&self) -> io::Result<bool> {
        if !self.place().join(PLAN).exists() || self.decided()? == Some(Decision::CheckedIn) {
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
            gateway: "gateway:7443".into(),
            preview_zypper: false,
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
        assert!(!successor.is_awaited().unwrap(), "what runs is the earlier one");
        assert_eq!(successor.decided().unwrap(), None);
        fs::write(successor.program(), "another").unwrap();
        assert!(successor.is_awaited().unwrap());
        successor.check_in().unwrap();
        assert!(!successor.is_awaited().unwrap());
        assert_eq!(successor.decide(Decision::GoingBack).unwrap(), Decision::CheckedIn, "the first has the last word");
        successor.clear().unwrap();
        assert_eq!(successor.plan().unwrap(), None);
        successor.clear().unwrap();
        successor.check_in().unwrap();
        assert!(!successor.place().exists(), "there is nothing to check in for");
    }

    #[test]
    fn a_version_that_is_being_taken_back_is_awaited_and_cannot_check_in() {
        let state = tempfile::tempdir().unwrap();
        let successor = Successor::new(state.path());
        files::ensure_directory(&successor.place(), files::SECLUDED).unwrap();
        successor.write(&plan()).unwrap();
        fs::write(successor.program(), "another").unwrap();
        assert_eq!(successor.decide(Decision::GoingBack).unwrap(), Decision::GoingBack);
        successor.check_in().unwrap();
        assert_eq!(successor.decided().unwrap(), Some(Decision::GoingBack));
        assert!(successor.is_awaited().unwrap(), "it tells nothing of its order");
    }
}
