//! What is true of a device's packages, by what advisories say.

use std::collections::{BTreeMap, BTreeSet};

use patchwarden_protocol::report::Severity;

use crate::statement::{Names, Order, Statement};

/// An installed package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed<'a> {
    /// Binary package name.
    pub name: &'a str,
    /// The package manager's architecture.
    pub arch: &'a str,
    /// Of the binary package.
    pub version: &'a str,
    /// Source package.
    pub source: &'a str,
    /// Its version, where that is known: it is not always the binary's (libdevmapper1.02.1 2:1.02.185-2 is built from lvm2 2.03.16-2).
    pub source_version: Option<&'a str>,
}

/// What a statement says of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'s> {
    /// It is affected.
    Affected {
        /// The version with the fix, of the package that the statement names; none where there is none.
        fixed_in: Option<&'s str>,
    },
    /// It is not.
    NotAffected,
    /// It is about this package, whose version is not known, or none to the package manager.
    Unknown,
}

/// A vulnerability that is open in a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open<'s> {
    /// The CVE, or the advisory's id where it names none.
    pub id: &'s str,
    /// Those who say so, sorted.
    pub advisories: Vec<&'s str>,
    /// The version with the fix: the latest, where several say one. None where any says that there is none.
    pub fixed_in: Option<&'s str>,
    /// The worst that is said.
    pub severity: Severity,
}

/// What is known of a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment<'s> {
    /// What is open, by CVE or advisory.
    pub open: BTreeMap<&'s str, Open<'s>>,
    /// Of which it cannot be told whether it is open, and that is not open by another's word.
    pub unknown: BTreeSet<&'s str>,
}

/// What an update fixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixes<'s> {
    /// CVEs or advisories that are open before it and are not after it.
    pub fixed: BTreeSet<&'s str>,
    /// Of which it cannot be told.
    pub unknown: BTreeSet<&'s str>,
}

impl Statement {
    /// What it says of an installed package; nothing where it is not about it. The caller sees to the platform.
    pub fn of(&self, installed: &Installed<'_>) -> Option<Answer<'_>> {
        let is_arch = self.arches.is_empty() || self.arches.iter().any(|arch| arch == installed.arch);
        let signed_kernel = self.platform.signed_kernel(installed.source);
        let is_source = installed.source == self.package || signed_kernel.as_ref() == Some(&self.package);
        let version = match self.names {
            Names::Binary | Names::Either if installed.name == self.package => Some(installed.version),
            Names::Source | Names::Either if is_source && signed_kernel.is_some() => Some(installed.version),
            Names::Source | Names::Either if is_source => installed.source_version,
            _ => return None,
        };
        if !is_arch {
            return None;
        }
        Some(version.map_or(Answer::Unknown, |version| self.of_version(version)))
    }

    fn of_version(&self, version: &str) -> Answer<'_> {
        let order = self.order();
        if !order.is_valid(version) {
            Answer::Unknown
        } else if self.affected.contains(order, version) {
            Answer::Affected { fixed_in: self.affected.fixed_in(order, version) }
        } else {
            Answer::NotAffected
        }
    }

    fn order(&self) -> Order {
        self.platform.order()
    }

    /// What it is about.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let advisory = self.cves.is_empty().then_some(self.advisory.as_str());
        self.cves.iter().map(String::as_str).chain(advisory)
    }
}

/// What the statements about its platform say of a package.
pub fn assess<'s>(statements: &'s [Statement], installed: &Installed<'_>) -> Assessment<'s> {
    let mut found = Assessment::default();
    for statement in statements {
        match statement.of(installed) {
            None | Some(Answer::NotAffected) => {}
            Some(Answer::Unknown) => found.unknown.extend(statement.ids()),
            Some(Answer::Affected { fixed_in }) => {
                for id in statement.ids() {
                    note(&mut found.open, statement, id, fixed_in);
                }
            }
        }
    }
    found.unknown.retain(|id| !found.open.contains_key(id));
    found
}

fn note<'s>(open: &mut BTreeMap<&'s str, Open<'s>>, statement: &'s Statement, id: &'s str, fixed_in: Option<&'s str>) {
    let advisory = statement.advisory.as_str();
    let new = || Open { id, advisories: Vec::new(), fixed_in, severity: statement.severity };
    let known = open.entry(id).or_insert_with(new);
    if let Err(at) = known.advisories.binary_search(&advisory) {
        known.advisories.insert(at, advisory);
    }
    known.severity = known.severity.max(statement.severity);
    known.fixed_in =
        known.fixed_in.zip(fixed_in).map(|(a, b)| if statement.order().compare(a, b).is_lt() { b } else { a });
}

/// What an update fixes that brings a package from one version to another.
pub fn fixes<'s>(statements: &'s [Statement], from: &Installed<'_>, to: &Installed<'_>) -> Fixes<'s> {
    let (before, after) = (assess(statements, from), assess(statements, to));
    let is_known = |id: &&str| !after.unknown.contains(id) && !before.unknown.contains(id);
    let fixed = before.open.keys().copied().filter(|id| !after.open.contains_key(id));
    Fixes { fixed: fixed.filter(is_known).collect(), unknown: before.unknown.union(&after.unknown).copied().collect() }
}
