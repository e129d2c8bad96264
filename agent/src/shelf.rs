//! The catalogue of recipes that this device holds: `recipes.json` in the state directory, as its publisher signed it.
//!
//! It is verified whenever it is read, and not only when it comes: whose publishers these are is its owner's to change. A device
//! whose `agent.toml` names no publisher takes none. Its scripts count only where `agent.toml` names the same key for scripts, too.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::recipes::{self, Catalogue, CatalogueError, Script};
use patchwarden_protocol::report::{Problem, ProblemCode};

use crate::files;

const FILE: &str = "recipes.json";

/// Why there are no recipes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShelfError {
    #[error("recipes: {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("recipes: {0}")]
    Catalogue(#[from] CatalogueError),
    #[error("recipes: the catalogue with serial {serial} expired at {expires}: its publisher has to sign a newer one")]
    Expired { serial: u64, expires: Timestamp },
    #[error("recipes: a catalogue with serial {offered} was refused: this device has {kept} already")]
    Older { offered: u64, kept: u64 },
    #[error(
        "recipes: another catalogue with serial {0}, which this device has, was refused: its publisher has to raise it"
    )]
    SameSerial(u64),
}

impl ShelfError {
    /// For the report.
    pub(crate) fn problem(&self) -> Problem {
        Problem { code: ProblemCode::RecipesRefused, message: self.to_string() }
    }
}

/// Why a publisher's script is not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOffered {
    #[error("agent.toml names nobody in script_publishers whose script would be run instead")]
    Nobody,
    #[error("no signed catalogue has come yet that might have it")]
    NoCatalogue,
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(
        "the catalogue with serial {serial} of {publisher} is signed by a key that script_publishers of agent.toml does not name"
    )]
    NotForScripts { serial: u64, publisher: String },
    #[error("the catalogue with serial {serial} of {publisher} has no script of this name")]
    Missing { serial: u64, publisher: String },
}

/// The place, and whom this device believes.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    path: PathBuf,
    publishers: Vec<PublicKey>,
    script_publishers: Vec<PublicKey>,
}

impl Shelf {
    /// The shelf in a state directory.
    pub(crate) fn new(state: &Path, publishers: Vec<PublicKey>) -> Self {
        Self { path: state.join(FILE), publishers, script_publishers: Vec::new() }
    }

    /// The same; of those publishers who are named here scripts are run, too.
    pub(crate) fn with_scripts_of(self, script_publishers: Vec<PublicKey>) -> Self {
        Self { script_publishers, ..self }
    }

    /// The file, whether it is there or not.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Digest of the catalogue that is here, empty where there is none that could be believed. Nothing where this device takes none.
    pub(crate) fn digest(&self) -> Option<String> {
        if self.publishers.is_empty() {
            return None;
        }
        let kept = self.kept().ok().flatten().map(|(bytes, _)| digest_of(&bytes));
        Some(kept.unwrap_or_default())
    }

    /// The catalogue, where there is one.
    pub(crate) fn load(&self, now: Timestamp) -> Result<Option<Catalogue>, ShelfError> {
        if self.publishers.is_empty() {
            return Ok(None);
        }
        let Some((_, catalogue)) = self.kept()? else { return Ok(None) };
        fresh(catalogue, now).map(Some)
    }

    /// The script of this name that the catalogue has, if it is one to be run.
    pub(crate) fn script(&self, name: &str, now: Timestamp) -> Result<Script, NotOffered> {
        if self.script_publishers.is_empty() {
            return Err(NotOffered::Nobody);
        }
        let (bytes, catalogue) = self.kept()?.ok_or(NotOffered::NoCatalogue)?;
        let Catalogue { publisher, serial, scripts, .. } = fresh(catalogue, now)?;
        if Catalogue::open(&bytes, &self.script_publishers).is_err() {
            return Err(NotOffered::NotForScripts { serial, publisher });
        }
        let found = scripts.into_iter().find(|script| script.name == name);
        found.ok_or(NotOffered::Missing { serial, publisher })
    }

    /// The catalogue that is here, also one that has expired: it brings nothing any more, but says where applications are. Nothing
    /// where none can be believed.
    pub(crate) fn latest(&self) -> Option<Catalogue> {
        self.kept().ok().flatten().map(|(_, catalogue)| catalogue)
    }

    /// Keeps a catalogue that came from the gateway, if it is to be believed and none that is older than what is here. Whether it
    /// is another one.
    pub(crate) fn take(&self, bytes: &[u8], now: Timestamp) -> Result<bool, ShelfError> {
        let offered = fresh(Catalogue::open(bytes, &self.publishers)?, now)?;
        // What is here and is not believed (any more) says nothing.
        if let Ok(Some((kept_bytes, kept))) = self.kept() {
            if digest_of(&kept_bytes) == digest_of(bytes) {
                return Ok(false);
            }
            if offered.serial < kept.serial {
                return Err(ShelfError::Older { offered: offered.serial, kept: kept.serial });
            }
            if offered.serial == kept.serial {
                return Err(ShelfError::SameSerial(kept.serial));
            }
        }
        files::write_atomic(&self.path, bytes, files::PRIVATE).map_err(|source| self.io(source))?;
        Ok(true)
    }

    /// What is here, verified; it may have expired.
    fn kept(&self) -> Result<Option<(Vec<u8>, Catalogue)>, ShelfError> {
        let Some(bytes) = files::read_if_exists(&self.path).map_err(|source| self.io(source))? else { return Ok(None) };
        let catalogue = Catalogue::open(&bytes, &self.publishers)?;
        Ok(Some((bytes, catalogue)))
    }

    fn io(&self, source: io::Error) -> ShelfError {
        ShelfError::Io { path: self.path.clone(), source }
    }
}

fn fresh(catalogue: Catalogue, now: Timestamp) -> Result<Catalogue, ShelfError> {
    let Catalogue { serial, expires, .. } = catalogue;
    if now > expires { Err(ShelfError::Expired { serial, expires }) } else { Ok(catalogue) }
}

fn digest_of(bytes: &[u8]) -> String {
    recipes::envelope(bytes).map(|envelope| envelope.digest()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::key::PrivateKey;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn signed(key: &PrivateKey, serial: u64, made: i64) -> Vec<u8> {
        let made = at(made);
        let expires = made + SignedDuration::from_hours(1);
        let script = Script { name: "drain".into(), text: format!("#!/bin/sh\necho {serial}\n") };
        let catalogue =
            Catalogue { publisher: "p".into(), serial, made, expires, recipes: vec![], scripts: vec![script] };
        serde_json::to_vec(&Envelope::seal(&catalogue, key).unwrap()).unwrap()
    }

    #[test]
    fn only_later_catalogues_of_a_publisher_that_is_named_are_kept() {
        let (place, key) = (tempfile::tempdir().unwrap(), PrivateKey::generate());
        let shelf = Shelf::new(place.path(), vec![key.public()]);
        assert_eq!(shelf.digest().as_deref(), Some(""));
        assert_eq!(shelf.load(at(0)).unwrap(), None);
        assert!(shelf.take(&signed(&key, 5, 0), at(0)).unwrap());
        assert!(!shelf.take(&signed(&key, 5, 0), at(0)).unwrap(), "it is the same");
        let why = |bytes: &[u8], now| shelf.take(bytes, at(now)).unwrap_err().to_string();
        assert!(why(&signed(&key, 4, 0), 0).contains("serial 4 was refused: this device has 5"));
        assert!(why(&signed(&key, 5, 1), 0).contains("another catalogue with serial 5"));
        assert!(why(&signed(&PrivateKey::generate(), 6, 0), 0).contains("no publisher"));
        assert!(why(&signed(&key, 6, 0), 3601).contains("expired"));
        assert_eq!(shelf.load(at(0)).unwrap().unwrap().serial, 5, "nothing of that counts");
        assert!(shelf.take(&signed(&key, 6, 0), at(0)).unwrap());
        assert_eq!(shelf.load(at(0)).unwrap().unwrap().serial, 6);
        // An expired one is not used, and still no older one replaces it.
        assert!(shelf.load(at(3601)).unwrap_err().to_string().contains("serial 6 expired"));
        assert!(why(&signed(&key, 5, 3600), 3601).contains("this device has 6"));
    }

    #[test]
    fn a_script_is_of_the_catalogue_that_counts_now_and_of_a_publisher_who_may() {
        let (place, key) = (tempfile::tempdir().unwrap(), PrivateKey::generate());
        let recipes_only = Shelf::new(place.path(), vec![key.public()]);
        let shelf = recipes_only.clone().with_scripts_of(vec![key.public()]);
        let why = |shelf: &Shelf, name, now| shelf.script(name, at(now)).unwrap_err().to_string();
        assert!(why(&shelf, "drain", 0).contains("no signed catalogue"));
        shelf.take(&signed(&key, 5, 0), at(0)).unwrap();
        assert_eq!(shelf.script("drain", at(0)).unwrap().text, "#!/bin/sh\necho 5\n");
        assert!(why(&shelf, "undrain", 0).contains("serial 5 of p has no script of this name"));
        assert!(why(&shelf, "drain", 3601).contains("serial 5 expired at"));
        assert!(why(&recipes_only, "drain", 0).contains("names nobody in script_publishers"));
        let others = PrivateKey::generate().public();
        let of_another = recipes_only.clone().with_scripts_of(vec![others]);
        assert!(why(&of_another, "drain", 0).contains("is signed by a key that script_publishers"));
        let of_nobody = Shelf::new(place.path(), vec![others]).with_scripts_of(vec![others]);
        assert!(why(&of_nobody, "drain", 0).contains("no publisher that this device believes"));
        shelf.take(&signed(&key, 6, 0), at(0)).unwrap();
        assert_eq!(shelf.script("drain", at(0)).unwrap().text, "#!/bin/sh\necho 6\n");
        let mut bytes = std::fs::read(shelf.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        std::fs::write(shelf.path(), bytes).unwrap();
        assert!(shelf.script("drain", at(0)).is_err(), "one byte is another one");
    }

    #[test]
    fn what_is_kept_is_verified_again_whenever_it_is_read() {
        let (place, key) = (tempfile::tempdir().unwrap(), PrivateKey::generate());
        let shelf = Shelf::new(place.path(), vec![key.public()]);
        shelf.take(&signed(&key, 5, 0), at(0)).unwrap();
        let other = Shelf::new(place.path(), vec![PrivateKey::generate().public()]);
        assert!(
            other.load(at(0)).unwrap_err().to_string().contains("no publisher"),
            "its key is not believed any more"
        );
        assert_eq!(other.latest(), None);
        assert_eq!(shelf.latest().map(|latest| latest.serial), Some(5));
        assert_eq!(other.digest().as_deref(), Some(""), "the gateway is asked for one that is");
        let off = Shelf::new(place.path(), vec![]);
        assert!(
            off.digest().is_none() && off.load(at(0)).unwrap().is_none(),
            "without publishers there are no recipes"
        );
        assert!(off.take(&signed(&key, 9, 0), at(0)).is_err());
        std::fs::write(place.path().join(FILE), "{").unwrap();
        assert!(shelf.load(at(0)).is_err());
        assert!(shelf.take(&signed(&key, 5, 0), at(0)).unwrap(), "a damaged file is replaced");
    }
}
