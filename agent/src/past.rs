//! Updates that orders have installed, so that they can be taken back.
//!
//! `installed.json` in the state directory: the last [`MEMORY`] of them, the latest first. It is written before the result
//! of an order is journaled; an order that is carried out again after a crash writes the same once more. A scan forgets
//! what is not at the update's version any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use patchwarden_protocol::order::{Action, PackageChange, Verb};
use patchwarden_protocol::report::{Package, Removable};
use patchwarden_protocol::result::ActionResult;
use serde::{Deserialize, Serialize};

use crate::execute::is_own;
use crate::files;
use crate::provider::recipes::application_of;
use crate::provider::{Artifact, Failure, Inventory, Provider, artifacts_digest};

const FILE: &str = "installed.json";

/// A report has room for a few; the others come up as those are taken back or replaced.
const MEMORY: usize = 64;

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    path: PathBuf,
}

/// One update that was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remembered {
    /// The update's id.
    update: String,
    /// What the order changed: from `installed` to `candidate`.
    packages: Vec<PackageChange>,
}

impl Past {
    /// The file in a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// What is remembered. A file that cannot be read is as good as none: nothing can be taken back.
    pub(crate) fn read(&self) -> Vec<Remembered> {
        let read = files::read_if_exists(&self.path).and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            None => Ok(Vec::new()),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}: nothing that was installed can be taken back", self.path.display());
            Vec::new()
        })
    }

    /// Writes down what came of an order. What it installed where it has changed or removed `others` cannot be taken back.
    pub(crate) fn record(
        &self,
        actions: &[Action],
        results: &[ActionResult],
        others: bool,
    ) -> Result<(), (PathBuf, io::Error)> {
        let before = self.read();
        let after = after(before.clone(), actions, results, others);
        self.write(&before, &after).map_err(|error| (self.path.clone(), error))
    }

    /// Forgets what is not installed any more. Applications that are not listed may only not have been looked at: their recipes
    /// have expired, say.
    pub(crate) fn forget(&self, packages: &[Package]) -> io::Result<()> {
        let before = self.read();
        let known = still_installed(before.clone(), packages);
        let is_unseen = |change: &PackageChange| {
            application_of(&change.name).is_some() && packages.iter().all(|package| package.name != change.name)
        };
        let mut after = before.clone();
        after.retain(|past| known.contains(past) || past.packages.iter().all(is_unseen));
        self.write(&before, &after)
    }

    /// Whether an order has installed this, so that `action` takes it back.
    pub(crate) fn is_taken_back_by(&self, action: &Action) -> bool {
        let mut wanted = action.packages.clone();
        wanted.sort_unstable();
        self.read().into_iter().any(|past| past.update == action.update && past.back() == wanted)
    }

    fn write(&self, before: &[Remembered], after: &[Remembered]) -> io::Result<()> {
        if before == after {
            return Ok(());
        }
        files::write_atomic(&self.path, &serde_json::to_vec(after)?, files::PRIVATE)
    }
}

impl Remembered {
    /// The way back, sorted.
    fn back(&self) -> Vec<PackageChange> {
        let mut packages: Vec<PackageChange> = self
            .packages
            .iter()
            .map(|PackageChange { name, arch, installed, candidate }| PackageChange {
                name: name.clone(),
                arch: arch.clone(),
                installed: candidate.clone(),
                candidate: installed.clone(),
            })
            .collect();
        packages.sort_unstable();
        packages
    }
}

/// What can be taken back now, the latest first.
pub(crate) async fn removable<P: Provider>(
    provider: &P,
    past: Vec<Remembered>,
    inventory: &Inventory,
) -> Result<Vec<Removable>, Failure> {
    let sources: BTreeMap<(&str, &str), &str> =
        inventory.packages.iter().map(|p| ((p.name.as_str(), p.arch.as_str()), p.source.as_str())).collect();
    let goes_back = |package: &PackageChange| {
        let source = sources.get(&(package.name.as_str(), package.arch.as_str())).copied().unwrap_or_default();
        provider.goes_back(&package.name, source)
            && provider.comes_after(&package.name, &package.installed, &package.candidate)
    };
    let back: Vec<(String, Vec<PackageChange>)> = still_installed(past, &inventory.packages)
        .into_iter()
        .map(|past| (past.update.clone(), past.back()))
        .filter(|(_, packages)| packages.iter().all(goes_back))
        .collect();
    let all: Vec<PackageChange> = back.iter().flat_map(|(_, packages)| packages.iter().cloned()).collect();
    let offered = provider.offered(&all).await?;
    Ok(back.into_iter().filter_map(|(id, packages)| still_offered(id, packages, &offered)).collect())
}

/// The way back of an update, if all of its files are offered.
pub(crate) fn still_offered(id: String, packages: Vec<PackageChange>, offered: &[Artifact]) -> Option<Removable> {
    let mut files = Vec::with_capacity(packages.len());
    for package in &packages {
        files.push(offered.iter().find(|file| {
            file.name == package.name && file.arch == package.arch && file.version == package.candidate
        })?);
    }
    let artifacts_digest = artifacts_digest(files.iter().map(|f| f.line()));
    Some(Removable { id, packages, artifacts_digest })
}

/// Every package of them is at the update's version.
fn still_installed(mut past: Vec<Remembered>, packages: &[Package]) -> Vec<Remembered> {
    let versions: BTreeMap<(&str, &str), &str> =
        packages.iter().map(|p| ((p.name.as_str(), p.arch.as_str()), p.version.as_str())).collect();
    past.retain(|past| {
        past.packages.iter().all(|package| {
            versions.get(&(package.name.as_str(), package.arch.as_str())) == Some(&package.candidate.as_str())
        })
    });
    past
}

/// An update that was installed in two parts (one was held back) is one.
fn after(mut past: Vec<Remembered>, actions: &[Action], results: &[ActionResult], others: bool) -> Vec<Remembered> {
    for action in actions {
        let is_this = |result: &&ActionResult| result.update == action.update && result.verb == action.verb;
        // What was there already is whose it was.
        let counts = |result: &ActionResult| match action.verb {
            Verb::Install => is_own(result),
            Verb::Uninstall => result.done,
            Verb::Download | Verb::Restart => false,
        };
        if !results.iter().find(is_this).is_some_and(counts) {
            continue;
        }
        // What is not there any more is not taken back, and neither is what had led to it.
        if others || action.packages.iter().any(PackageChange::is_removal) {
            past.retain(|past| past.packages.iter().all(|old| action.packages.iter().all(|new| new.name != old.name)));
            if action.verb == Verb::Install {
                continue;
            }
        }
        let known = past.iter().position(|past| past.update == action.update).map(|at| past.remove(at));
        if action.verb == Verb::Install {
            let mut packages = action.packages.clone();
            let is_new = |old: &PackageChange| {
                !action.packages.iter().any(|new| (&new.name, &new.arch) == (&old.name, &old.arch))
            };
            packages.extend(known.into_iter().flat_map(|known| known.packages).filter(is_new));
            past.insert(0, Remembered { update: action.update.clone(), packages });
        }
    }
    past.truncate(MEMORY);
    past
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(verb: Verb, update: &str, packages: &[&str]) -> Action {
        let package = |name: &&str| PackageChange {
            name: (*name).into(),
            arch: "amd64".into(),
            installed: "1".into(),
            candidate: "2".into(),
        };
        Action {
            verb,
            update: update.into(),
            packages: packages.iter().map(package).collect(),
            artifacts_digest: String::new(),
        }
    }

    fn result(action: &Action, done: bool) -> ActionResult {
        ActionResult { update: action.update.clone(), verb: action.verb, done, reason: None, message: String::new() }
    }

    fn end(past: Vec<Remembered>, action: &Action, done: bool) -> Vec<Remembered> {
        after(past, std::slice::from_ref(action), &[result(action, done)], false)
    }

    fn updates(past: &[Remembered]) -> Vec<&str> {
        past.iter().map(|past| past.update.as_str()).collect()
    }

    fn at(name: &str, version: &str) -> Package {
        let (arch, source) = ("amd64".into(), name.into());
        Package { name: name.into(), arch, version: version.into(), source, source_version: None }
    }

    #[test]
    fn what_was_installed_is_remembered_until_it_is_taken_back() {
        let (a, b) = (action(Verb::Install, "a", &["a1", "a2"]), action(Verb::Install, "b", &["b"]));
        let past = end(vec![], &a, true);
        let past = end(past, &b, true);
        assert_eq!(updates(&past), ["b", "a"]);
        assert_eq!(end(past.clone(), &b, true), past, "said once more after a crash");
        assert_eq!(updates(&end(past.clone(), &a, true)), ["a", "b"]);
        for (verb, done) in [(Verb::Install, false), (Verb::Uninstall, false), (Verb::Download, true)] {
            assert_eq!(end(past.clone(), &action(verb, "b", &["b"]), done), past, "{verb:?} {done}");
        }
        assert_eq!(updates(&end(past, &action(Verb::Uninstall, "b", &["b"]), true)), ["a"]);
        assert_eq!(after(vec![], &[a, b], &[], false), [], "the device did nothing");
    }

    #[test]
    fn what_has_changed_others_as_well_is_not_taken_back_and_neither_is_what_had_led_to_it() {
        let (a, b) = (action(Verb::Install, "a", &["a"]), action(Verb::Install, "b", &["b"]));
        let past = end(end(vec![], &a, true), &b, true);
        let again = Action { update: "a again".into(), ..a };
        let found = after(past, std::slice::from_ref(&again), &[result(&again, true)], true);
        assert_eq!(updates(&found), ["b"]);
    }

    #[test]
    fn parts_of_an_update_add_up() {
        let past = end(vec![], &action(Verb::Install, "a", &["a1"]), true);
        let past = end(past, &action(Verb::Install, "a", &["a2"]), true);
        assert_eq!(past.len(), 1);
        assert_eq!(past[0].packages.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a2", "a1"]);
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let past = (0..=MEMORY)
            .fold(vec![], |past, number| end(past, &action(Verb::Install, &number.to_string(), &["x"]), true));
        assert_eq!((past.len(), updates(&past)[0], updates(&past)[MEMORY - 1]), (MEMORY, "64", "1"));
    }

    #[test]
    fn what_is_at_another_version_is_forgotten() {
        let past = end(vec![], &action(Verb::Install, "a", &["a1", "a2"]), true);
        let forgotten = |packages: &[Package]| still_installed(past.clone(), packages).is_empty();
        assert!(!forgotten(&[at("a1", "2"), at("a2", "2"), at("x", "1")]));
        assert!(forgotten(&[at("a1", "2"), at("a2", "3")]));
        assert!(forgotten(&[at("a1", "2")]));
        assert!(forgotten(&[at("a1", "2"), Package { arch: "i386".into(), ..at("a2", "2") }]));
    }

    #[test]
    fn an_application_that_was_not_looked_at_is_not_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let past = Past::new(state.path());
        let installs = [action(Verb::Install, "a", &["recipe:a"]), action(Verb::Install, "b", &["b"])];
        past.record(&installs, &[result(&installs[0], true), result(&installs[1], true)], false).unwrap();
        past.forget(&[]).unwrap();
        assert_eq!(updates(&past.read()), ["a"]);
        past.forget(&[at("recipe:a", "1")]).unwrap();
        assert_eq!(past.read(), [], "it is at another version");
    }

    #[test]
    fn an_order_takes_back_exactly_what_is_remembered() {
        let state = tempfile::tempdir().unwrap();
        let past = Past::new(state.path());
        let install = action(Verb::Install, "a", &["a1", "a2"]);
        past.record(std::slice::from_ref(&install), &[result(&install, true)], false).unwrap();
        let mut back = Action { verb: Verb::Uninstall, ..install.clone() };
        assert!(!past.is_taken_back_by(&back), "the way back is the other way");
        for package in &mut back.packages {
            std::mem::swap(&mut package.installed, &mut package.candidate);
        }
        back.packages.reverse();
        assert!(past.is_taken_back_by(&back));
        for spoil in [
            (|a: &mut Action| a.update = "b".into()) as fn(&mut Action),
            |a| a.packages[0].candidate = "0".into(),
            |a| a.packages.truncate(1),
        ] {
            let mut other = back.clone();
            spoil(&mut other);
            assert!(!past.is_taken_back_by(&other), "{other:?}");
        }
        past.forget(&[]).unwrap();
        assert!(!past.is_taken_back_by(&back));
        std::fs::write(&past.path, "{").unwrap();
        assert_eq!(past.read(), []);
    }

    #[test]
    fn an_update_of_which_a_file_is_gone_cannot_be_taken_back() {
        let packages = action(Verb::Uninstall, "a", &["a1", "a2"]).packages;
        let file = |name: &str, version: &str| Artifact {
            name: name.into(),
            arch: "amd64".into(),
            version: version.into(),
            sha256: "00".into(),
            size: 0,
            file_name: String::new(),
            local: None,
            needed: false,
            rivals: vec![],
        };
        let found = |files: &[Artifact]| still_offered("a".into(), packages.clone(), files);
        let both = found(&[file("a2", "2"), file("a1", "2")]).unwrap();
        assert_eq!(both.artifacts_digest, artifacts_digest([("a1", "amd64", "2", "00"), ("a2", "amd64", "2", "00")]));
        assert_eq!(found(&[file("a1", "2")]), None);
        assert_eq!(found(&[file("a1", "2"), file("a2", "1")]), None);
    }
}
