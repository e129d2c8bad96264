//! What differs between two software lists, where a device has changed little.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::report::{Package, Software};

/// From the list that the receiver has to the one that a report speaks of. It is not signed: the digest in the signed report says
/// whether what it leads to is that list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SoftwareDelta {
    /// Digest of the list before.
    pub from: String,
    /// What is not in it any more.
    pub gone: Vec<Package>,
    /// What is new in it.
    pub new: Vec<Package>,
}

impl SoftwareDelta {
    /// What differs. `from` is the digest of `before`.
    pub fn between(from: &str, before: &Software, after: &Software) -> Self {
        let [old, new]: [BTreeSet<&Package>; 2] = [before, after].map(|list| list.packages.iter().collect());
        let only = |these: &BTreeSet<&Package>, those: &BTreeSet<&Package>| {
            these.difference(those).map(|package| (*package).clone()).collect()
        };
        Self { from: from.to_owned(), gone: only(&old, &new), new: only(&new, &old) }
    }

    /// The list that it leads to, sorted by name, architecture, version and source, each package once.
    pub fn applied(self, before: Software) -> Software {
        let mut packages: BTreeSet<Package> = before.packages.into_iter().collect();
        for package in &self.gone {
            packages.remove(package);
        }
        packages.extend(self.new);
        Software { packages: packages.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn software(packages: &[(&str, &str)]) -> Software {
        let package = |(name, version): &(&str, &str)| Package {
            name: (*name).into(),
            arch: "amd64".into(),
            version: (*version).into(),
            source: (*name).into(),
            source_version: None,
        };
        Software { packages: packages.iter().map(package).collect() }
    }

    #[test]
    fn what_differs_leads_from_one_list_to_the_other() {
        let before = software(&[("a", "1"), ("b", "1"), ("c", "1"), ("kernel", "1"), ("kernel", "2")]);
        let after = software(&[("a", "1"), ("b", "2"), ("d", "1"), ("kernel", "2"), ("kernel", "3")]);
        let delta = SoftwareDelta::between("sha256:x", &before, &after);
        assert_eq!(delta.gone, software(&[("b", "1"), ("c", "1"), ("kernel", "1")]).packages);
        assert_eq!(delta.new, software(&[("b", "2"), ("d", "1"), ("kernel", "3")]).packages);
        assert_eq!(delta.applied(before.clone()), after);
        let none = SoftwareDelta::between("sha256:x", &before, &before);
        assert_eq!(none.applied(before.clone()), before);
    }
}
