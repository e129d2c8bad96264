//! Recipes: third-party applications that no package manager knows, and how they are brought to a later version.
//!
//! A publisher signs a [`Catalogue`] with a key that is held outside of the cluster; each device names the keys that it
//! believes. The gateway carries the catalogue, and can neither make nor change one.
//!
//! A recipe is data and no script. It says where an application lies, how its version is found out, and which file, by its
//! SHA-256, takes its place. What can be said is confined: to `/usr/local` and `/opt`, to what lies at the application's own
//! path, and to what is installed already.
//!
//! Beside recipes a catalogue may have [`Script`]s for hooks and checks, for devices that want those of its publisher, too.

mod check;
mod script;
mod version;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::{Document, Envelope, Refused};
use crate::key::PublicKey;
use crate::report::{Classification, Severity};

pub use check::{Wrong, is_name};
pub use script::{MAX_SCRIPT, MAX_SCRIPTS, Script};
pub use version::Version;

/// The largest signed catalogue, in bytes: what a ConfigMap can hold.
pub const MAX_BYTES: usize = 1_000_000;

/// At most so many recipes.
pub const MAX_RECIPES: usize = 256;

/// The largest file to download, in bytes.
pub const MAX_SIZE: u64 = 4 << 30;

/// The most bytes that a file may unpack to.
pub const MAX_UNPACKED: u64 = 16 << 30;

/// All recipes of a publisher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Catalogue {
    /// What the publisher is called: the origin of the updates is `recipes:` and this.
    pub publisher: String,
    /// Only grows: a device takes no catalogue with a lower one than it has.
    pub serial: u64,
    /// When it was made.
    pub made: Timestamp,
    /// No device uses it after this.
    pub expires: Timestamp,
    /// One for each application.
    pub recipes: Vec<Recipe>,
    /// For hooks and checks. Devices of earlier versions take a catalogue that has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Script>,
}

impl Document for Catalogue {
    const TYPE: &'static str = "application/vnd.patchwarden.recipes.v1+json";
}

/// One application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// Its name: `kubectl`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Where it lies and what it consists of.
    pub install: Install,
    /// How its version is found out.
    pub detect: Detect,
    /// The version to bring it to.
    pub release: Release,
    /// A later version changes data in a way that an earlier one does not understand: it never goes back. Devices of earlier versions
    /// take a catalogue in which nothing says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stateful: bool,
}

/// Where an application lies and what it consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Install {
    /// The file or directory that is replaced, below `/usr/local` or `/opt`.
    pub path: String,
    /// By what.
    pub content: Content,
}

/// What is made of the downloaded file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Content {
    /// The file itself, a program.
    File,
    /// One file, a program, of an archive (`tar`, `tar.gz`, `tar.xz`, `zip`).
    Member {
        /// So many leading directories of each name in the archive are left out.
        strip: u8,
        /// The name that is left.
        path: String,
    },
    /// The directory that an archive holds.
    Tree {
        /// So many leading directories of each name in the archive are left out.
        strip: u8,
    },
}

/// How the version of what lies at an application's path is found out. `path` is below it, and empty for the file itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Detect {
    /// A file says it; nothing is run.
    File {
        /// Which.
        #[serde(default)]
        path: String,
        /// A regular expression, whose first group is the version.
        pattern: String,
    },
    /// A program says it, run as nobody.
    Program {
        /// Which.
        #[serde(default)]
        path: String,
        /// Its arguments.
        #[serde(default)]
        arguments: Vec<String>,
        /// A regular expression, whose first group is the version.
        pattern: String,
    },
}

/// A version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Release {
    /// As [`Version`] reads it.
    pub version: String,
    /// When the vendor published it.
    pub published: Timestamp,
    /// Kind of the update.
    pub classification: Classification,
    /// Severity.
    pub severity: Severity,
    /// What it fixes.
    pub cves: Vec<String>,
    /// One for each architecture.
    pub artifacts: Vec<Artifact>,
}

/// A file to download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Artifact {
    /// As Rust calls it: `x86_64`, `aarch64`.
    pub arch: String,
    /// `https://`.
    pub url: String,
    /// Hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of all the files that are installed of it.
    pub unpacked: u64,
}

/// Why a catalogue was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Too large.
    #[error("the catalogue has {0} bytes, at most {MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// Not an envelope.
    #[error("not a signed catalogue: {0}")]
    NotSigned(String),
    /// No key that is believed has signed it.
    #[error("signed by no publisher that this device believes")]
    UnknownPublisher,
    /// Signed, and not what its type promises.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Signed, and over a limit.
    #[error(transparent)]
    Wrong(#[from] Wrong),
}

impl Catalogue {
    /// Reads a signed catalogue, which one of `publishers` must have signed, and checks every field. Its time and its serial are
    /// the caller's to check.
    pub fn open(bytes: &[u8], publishers: &[PublicKey]) -> Result<Self, CatalogueError> {
        let envelope = envelope(bytes)?;
        let opened = publishers.iter().map(|key| envelope.open(key));
        let found = opened.into_iter().find(|opened| !matches!(opened, Err(Refused::BadSignature(_))));
        let catalogue = found.ok_or(CatalogueError::UnknownPublisher)??;
        catalogue.check()?;
        Ok(catalogue)
    }

    /// Whether every field is within its limits.
    pub fn check(&self) -> Result<(), Wrong> {
        check::catalogue(self)
    }
}

/// The envelope of a catalogue, of which nothing is verified.
pub fn envelope(bytes: &[u8]) -> Result<Envelope<Catalogue>, CatalogueError> {
    if bytes.len() > MAX_BYTES {
        return Err(CatalogueError::TooLarge(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| CatalogueError::NotSigned(error.to_string()))
}

impl Detect {
    /// The file that is read or run, below the application's path.
    pub fn path(&self) -> &str {
        match self {
            Self::File { path, .. } | Self::Program { path, .. } => path,
        }
    }

    /// The version in what the file or the program says. Nothing where the pattern does not match.
    pub fn version_in(&self, text: &str) -> Option<String> {
        let (Self::File { pattern, .. } | Self::Program { pattern, .. }) = self;
        let pattern = check::pattern(pattern).ok()?;
        Some(pattern.captures(text)?.get(1)?.as_str().to_owned())
    }
}

impl Release {
    /// The file for an architecture.
    pub fn artifact(&self, arch: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.arch == arch)
    }
}

impl Recipe {
    /// Whether every field is within its limits.
    pub fn check(&self) -> Result<(), Wrong> {
        check::recipe(self)
    }
}

#[cfg(test)]
mod tests;
