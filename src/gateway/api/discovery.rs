//! Since when a device has been known to have a vulnerability: since both were recorded, a package in a version that has it, and data that
//! say so.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::changes::Change;
use patchwarden_protocol::report::{DeviceRef, Package};
use patchwarden_vulnerabilities::matching::{self, Assessment, Installed};
use patchwarden_vulnerabilities::{Platform, Statement};

use super::vulnerabilities::{Status, Vulnerability, installed, names};
use crate::store::{FoundPackage, RecordedChange, Store, StoreError};

/// The last changes of a package that tell since when it has a vulnerability.
const CHANGES: u32 = 50;

/// A device, as far as its vulnerabilities go.
pub struct Scanned {
    /// What the data are about.
    pub platform: Platform,
    /// When it was enrolled: what no change has brought was there then.
    pub enrolled: Option<Timestamp>,
}

impl Scanned {
    /// With when those that are open were discovered.
    pub async fn discovered(
        &self,
        store: &Store,
        statements: &[Statement],
        found: &FoundPackage,
        mut all: Vec<Vulnerability>,
    ) -> Result<Vec<Vulnerability>, StoreError> {
        let open: BTreeSet<_> = all.iter().filter(|one| one.status == Status::Open).map(|one| one.id.clone()).collect();
        if open.is_empty() {
            return Ok(all);
        }
        let known = store.known_since(&self.platform, &open).await?;
        let Package { name, arch, version, .. } = &found.package;
        let changes = store.changes_of_package(&found.device, (name, arch), CHANGES).await?;
        let built = Built::of(store, changes.iter().map(|recorded| &recorded.change)).await?;
        let versions =
            changes.iter().filter_map(|RecordedChange { change, .. }| Some((change, change.before.as_deref()?)));
        let before: BTreeMap<&str, Assessment<'_>> = versions
            .map(|(change, version)| (version, matching::assess(statements, &built.changed(change, version))))
            .collect();
        for one in all.iter_mut().filter(|one| one.status == Status::Open) {
            let is_open = |version: &str| before.get(version).is_some_and(|it| it.open.contains_key(one.id.as_str()));
            let exposed = exposed_since(&changes, version, found.first_recorded, is_open).or(self.enrolled);
            one.discovered_at = discovered(known.get(&one.id).copied(), exposed, None);
        }
        Ok(all)
    }

    /// The changes of a package before one of them.
    pub async fn before(
        &self,
        store: &Store,
        device: &DeviceRef,
        recorded: &RecordedChange,
    ) -> Result<Vec<RecordedChange>, StoreError> {
        let changes = store.changes_of_package(device, (&recorded.change.name, &recorded.change.arch), CHANGES).await?;
        let is_later = |one: &RecordedChange| (&one.log, one.number) != (&recorded.log, recorded.number);
        Ok(changes.into_iter().skip_while(is_later).skip(1).collect())
    }
}

/// Packages in the versions that changes are about, with what they were built from, as far as any device has told it.
#[derive(Debug, Default)]
pub struct Built(BTreeMap<(String, String, String), Package>);

impl Built {
    /// Of all versions of these changes.
    pub async fn of(store: &Store, changes: impl IntoIterator<Item = &Change>) -> Result<Self, StoreError> {
        let versions = |change: &'_ Change| [change.before.clone(), change.after.clone()];
        let all: Vec<_> = changes
            .into_iter()
            .flat_map(|change| {
                versions(change).into_iter().flatten().map(|version| (&change.name, &change.arch, version))
            })
            .collect();
        if all.is_empty() {
            return Ok(Self::default());
        }
        let wanted = all.iter().map(|(name, arch, version)| (name.as_str(), arch.as_str(), version.as_str())).collect();
        let built = store.built_from(&wanted).await?;
        let key = |package: &Package| (package.name.clone(), package.arch.clone(), package.version.clone());
        Ok(Self(built.into_iter().map(|package| (key(&package), package)).collect()))
    }

    /// By these names statements may be about them.
    pub fn names(&self, platform: &Platform, into: &mut BTreeSet<String>) {
        for package in self.0.values() {
            names(platform, package, into);
        }
    }

    /// A package in one of the versions that a change is about.
    pub fn changed<'c>(&'c self, change: &'c Change, version: &'c str) -> Installed<'c> {
        let key = (change.name.clone(), change.arch.clone(), version.to_owned());
        self.0.get(&key).map_or(
            Installed { name: &change.name, arch: &change.arch, version, source: "", source_version: None },
            installed,
        )
    }
}

/// Since when a package is recorded in versions that are open: by the changes of this package, the latest first, from `version` back to the first
/// that was not open. `recorded` is since when `version` itself is recorded, where that is known. Nothing where no record tells it.
pub fn exposed_since<'c>(
    changes: impl IntoIterator<Item = &'c RecordedChange>,
    version: &str,
    recorded: Option<Timestamp>,
    is_open: impl Fn(&str) -> bool,
) -> Option<Timestamp> {
    let (mut version, mut since) = (version.to_owned(), recorded);
    for RecordedChange { change: Change { before, after, .. }, found_at, .. } in changes {
        // Of a package that is installed in several versions, as kernels are, another one may have changed.
        if after.as_ref() != Some(&version) {
            continue;
        }
        since = Some(since.map_or(*found_at, |since| since.min(*found_at)));
        match before.as_ref().filter(|before| is_open(before)) {
            Some(before) => version.clone_from(before),
            None => break,
        }
    }
    since
}

/// When the later of both was recorded; nothing where either is not known, or where the data came after it was `fixed`.
pub fn discovered(known: Option<Timestamp>, exposed: Option<Timestamp>, fixed: Option<Timestamp>) -> Option<Timestamp> {
    let discovered = known?.max(exposed?);
    Some(discovered).filter(|discovered| fixed.is_none_or(|fixed| *discovered <= fixed))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::changes::By;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn change(second: i64, before: Option<&str>, after: Option<&str>) -> RecordedChange {
        RecordedChange {
            log: "a".into(),
            number: 1,
            missing: 0,
            found_at: at(second),
            change: Change {
                name: "p".into(),
                arch: "amd64".into(),
                before: before.map(str::to_owned),
                after: after.map(str::to_owned),
                by: By::SomebodyElse,
            },
            order: None,
            run: None,
        }
    }

    #[test]
    fn exposure_begins_with_the_first_of_the_versions_that_are_open() {
        let is_open = |version: &str| version >= "2";
        let changes =
            [change(40, Some("3"), Some("4")), change(30, Some("2"), Some("3")), change(20, Some("1"), Some("2"))];
        assert_eq!(exposed_since(&changes, "4", Some(at(41)), is_open), Some(at(20)));
        assert_eq!(exposed_since(&changes, "3", None, is_open), Some(at(20)), "of an earlier version");
        assert_eq!(exposed_since(&changes, "4", Some(at(41)), |version| version == "4"), Some(at(40)));
        assert_eq!(exposed_since(&changes[..1], "4", None, is_open), Some(at(40)), "older changes are kept no more");
        assert_eq!(exposed_since(&[], "4", Some(at(41)), is_open), Some(at(41)));
        assert_eq!(exposed_since(&[], "4", None, is_open), None);
    }

    #[test]
    fn a_version_that_was_removed_meanwhile_does_not_count() {
        let changes = [change(40, None, Some("2")), change(30, Some("2"), None), change(20, None, Some("2"))];
        assert_eq!(exposed_since(&changes, "2", None, |_| true), Some(at(40)));
    }

    #[test]
    fn both_have_to_be_known_before_it_is_fixed() {
        assert_eq!(discovered(Some(at(5)), Some(at(7)), None), Some(at(7)));
        assert_eq!(discovered(Some(at(9)), Some(at(7)), Some(at(9))), Some(at(9)));
        assert_eq!(discovered(Some(at(9)), Some(at(7)), Some(at(8))), None, "the data came too late");
        assert_eq!(discovered(None, Some(at(7)), None), None);
        assert_eq!(discovered(Some(at(5)), None, None), None);
    }
}
