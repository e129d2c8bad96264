//! Applications that a policy wants on a device, or does not want there, whatever is on it now.
//!
//! A policy names an application as its publisher's recipe does (see [`crate::recipes`]). The device learns it by its signed
//! [`crate::settings::Settings`], and tells of each that is not as it is wanted an update of its own kind: a
//! [`Classification::FirstInstall`], whose package goes from no version to the recipe's, or a [`Classification::Removal`], whose
//! package goes from its version to none. No version is written as an empty one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::order::PackageChange;
use crate::recipes;
use crate::report::Classification;

/// At most so many of one policy: a report has room for as many updates beside those of the system.
pub const MAX_APPLICATIONS: usize = 16;

/// What the name of an application's package begins with: `recipe:kubectl`.
pub const PACKAGE_PREFIX: &str = "recipe:";

/// What is to be true of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Ensure {
    /// It is installed. Which version its recipe says.
    Installed,
    /// It is not installed.
    Absent,
}

/// What a policy says of one application.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// The name of its recipe: `kubectl`.
    pub name: String,
    /// What is to be true of it.
    pub ensure: Ensure,
}

impl Ensure {
    /// What an update of this kind brings about; nothing of one that is an update in the word's own sense.
    pub fn of(kind: Classification) -> Option<Self> {
        match kind {
            Classification::FirstInstall => Some(Self::Installed),
            Classification::Removal => Some(Self::Absent),
            Classification::Security | Classification::Updates | Classification::Unclassified => None,
        }
    }
}

impl PackageChange {
    /// Whether it goes from no version to one.
    pub fn is_first_install(&self) -> bool {
        self.installed.is_empty() && !self.candidate.is_empty()
    }

    /// Whether it goes from a version to none.
    pub fn is_removal(&self) -> bool {
        self.candidate.is_empty() && !self.installed.is_empty()
    }
}

/// Whether every name is one of a recipe, none is there twice, and there are not too many; if not, what is wrong.
pub fn check(applications: &[Application]) -> Result<(), String> {
    if applications.len() > MAX_APPLICATIONS {
        return Err(format!("{} applications, at most {MAX_APPLICATIONS} are allowed", applications.len()));
    }
    let mut names = BTreeSet::new();
    for Application { name, ensure: _ } in applications {
        if !recipes::is_name(name) {
            return Err(format!("{name:?} is no name of a recipe"));
        }
        if !names.insert(name) {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(name: &str, ensure: Ensure) -> Application {
        Application { name: name.into(), ensure }
    }

    #[test]
    fn names_are_those_of_recipes_and_each_is_there_once() {
        use Ensure::{Absent, Installed};
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[wants("kubectl", Installed), wants("node_exporter", Absent)]), Ok(()));
        let twice = check(&[wants("kubectl", Installed), wants("kubectl", Absent)]);
        assert_eq!(twice, Err("kubectl is there twice".to_owned()));
        for name in ["", "../etc", "Kubectl", "-x", "a b", &"x".repeat(64)] {
            assert!(check(&[wants(name, Installed)]).is_err(), "{name}");
        }
        let many: Vec<_> = (0..=MAX_APPLICATIONS).map(|number| wants(&format!("a{number}"), Installed)).collect();
        assert_eq!(check(&many[1..]), Ok(()));
        assert_eq!(check(&many), Err("17 applications, at most 16 are allowed".to_owned()));
    }

    #[test]
    fn a_change_says_by_its_empty_side_what_it_is() {
        let change = |installed: &str, candidate: &str| PackageChange {
            name: "recipe:kubectl".into(),
            arch: "x86_64".into(),
            installed: installed.into(),
            candidate: candidate.into(),
        };
        let of = |change: PackageChange| (change.is_first_install(), change.is_removal());
        assert_eq!(of(change("", "2")), (true, false));
        assert_eq!(of(change("1", "")), (false, true));
        assert_eq!(of(change("1", "2")), (false, false));
        assert_eq!(of(change("", "")), (false, false));
    }
}
