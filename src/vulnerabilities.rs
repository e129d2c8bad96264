//! What the planner is told of vulnerabilities: a directory of files, read whole.
//!
//! What they say can approve updates, so they are read by the controller itself, and the gateway must not be able to write them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchwarden_vulnerabilities::advisories::{Advisories, Reading};
use patchwarden_vulnerabilities::directory::{self, Entry};
use patchwarden_vulnerabilities::{ReadError, Refused};

use crate::plan::model::{Name, Probability, Vulnerability};

/// What a directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vulnerabilities {
    /// Which are known to be exploited (KEV), and how likely that is of others (EPSS); nothing where the directory has neither.
    pub known: Option<Arc<BTreeMap<Name, Vulnerability>>>,
    /// What updates fix whose repositories do not tell.
    pub advisories: Arc<Advisories>,
}

/// Why nothing of a directory counts.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// A file is not as it must be.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] Refused),
    /// A rule that asks for what is not there would never match, and the rules after it would decide instead.
    #[error("{}: has a list of {there} and none of {missing}: rules may ask for either, so both are needed", directory.display())]
    OneAlone {
        /// Where.
        directory: PathBuf,
        /// What it has.
        there: &'static str,
        /// What it has not.
        missing: &'static str,
    },
    /// Somebody writes to it.
    #[error("{}: changed while it was read", .0.display())]
    Moving(PathBuf),
}

/// Reads a directory. It takes seconds for all of a distribution.
pub fn read(directory: &Path) -> Result<Vulnerabilities, NotRead> {
    let before = directory::stamp(directory)?;
    let mut known: BTreeMap<Name, Vulnerability> = BTreeMap::new();
    let mut reading = Reading::default();
    let summary = directory::read(directory, &mut |entry| {
        match entry {
            Entry::Statement(statement) => reading.add(statement),
            Entry::Exploited { cve, added: _ } => known.entry(cve.into()).or_default().known_exploited = true,
            Entry::Likelihood { cve, epss } => known.entry(cve.into()).or_default().epss = Some(Probability(epss)),
        }
        Ok(())
    })?;
    let one_alone = |there, missing| NotRead::OneAlone { directory: directory.to_owned(), there, missing };
    let known = match (summary.exploited > 0, summary.likelihoods > 0) {
        (true, true) => Some(Arc::new(known)),
        (false, false) => None,
        (true, false) => return Err(one_alone("known exploited vulnerabilities (KEV)", "likelihoods (EPSS)")),
        (false, true) => return Err(one_alone("likelihoods (EPSS)", "known exploited vulnerabilities (KEV)")),
    };
    if directory::stamp(directory)? != before {
        return Err(NotRead::Moving(directory.to_owned()));
    }
    Ok(Vulnerabilities { known, advisories: Arc::new(reading.end()) })
}
