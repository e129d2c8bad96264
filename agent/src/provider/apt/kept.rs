//! Later versions that apt has and does not bring: of packages on hold, and of those that a pin of their own in
//! apt_preferences(5) keeps back.
//!
//! Which packages have a later version the indexes tell. What apt makes of those that are left is asked in one run, of each by
//! itself, so that none hides another: a simulation of all together fails because of one that cannot be installed. Pins of
//! whole sources are no hold: who has another release's source at a low priority does not wait for what it offers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::HeldReason;
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::versions::deb;

use super::commands::{Indexes, describe_known, origins, policies};
use super::parse::{Description, Row, qualified};
use super::policy::Policy;
use crate::provider::support::broken;
use crate::provider::{Change, Failure};

/// Where apt has its preferences unless it is configured otherwise.
const FILE: &str = "/etc/apt/preferences";
const DIRECTORY: &str = "/etc/apt/preferences.d";

/// A later version that is kept back.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) change: Change,
    pub(super) reason: HeldReason,
    /// Of that version.
    pub(super) description: Description,
}

/// What is kept back of the installed packages, beside what is offered. `arch` is the machine's own; without indexes apt is asked about
/// every package that may be kept back.
pub(super) async fn kept(
    rows: &[Row],
    indexes: Option<&Indexes>,
    offered: &[Change],
    arch: &str,
) -> Result<Vec<Kept>, Failure> {
    let offered: BTreeMap<(&str, &str), &str> =
        offered.iter().map(|change| ((change.name.as_str(), own(&change.arch, arch)), change.new.as_str())).collect();
    let may_be_pinned = has_preferences()?;
    let has_more = |row: &&Row| {
        let offered = offered.get(&(row.name(), own(row.arch(), arch))).copied();
        row.is_present()
            && (may_be_pinned || row.is_held())
            && indexes.is_none_or(|indexes| {
                let known = offered.unwrap_or(row.version());
                versions(indexes, row, arch).any(|(_, version)| deb::compare(version, known).is_gt())
            })
    };
    let asked: BTreeMap<(&str, &str), &Row> =
        rows.iter().filter(has_more).map(|row| ((row.name(), own(row.arch(), arch)), row)).collect();
    let policies = policies(asked.values().map(|row| qualified(row.name(), row.arch()))).await?;
    let kept: Vec<(&Row, &Policy, &str, HeldReason)> = policies
        .iter()
        .filter_map(|policy| {
            let row = asked.get(&(policy.name.as_str(), policy.foreign.as_deref().unwrap_or(arch)))?;
            let (version, reason) = reason(policy, row)?;
            Some((*row, policy, version, reason))
        })
        .collect();
    let is_it = |found: &Description, row: &Row, version: &str| {
        found.name == row.name() && found.version == version && own(&found.arch, arch) == own(row.arch(), arch)
    };
    let described = |row: &Row, version: &str| {
        let of_it = versions(indexes?, row, arch).filter(|(_, it)| *it == version);
        let mut keys = of_it.map(|(arch, version)| (row.name().to_owned(), arch.to_owned(), version.to_owned()));
        keys.find_map(|key| indexes?.descriptions().get(&key))
    };
    let missing = kept.iter().filter(|(row, _, version, _)| described(row, version).is_none());
    let more = describe_known(missing.map(|(row, _, version, _)| (row.name(), row.arch(), *version))).await?;
    let origins = if indexes.is_none() && !kept.is_empty() { origins().await? } else { BTreeMap::new() };
    let of_files = |policy: &Policy, version: &str| {
        let mut of_files: Vec<&str> =
            policy.files(version).filter_map(|file| origins.get(file)).map(String::as_str).collect();
        of_files.dedup();
        of_files.join(", ")
    };
    let change = |(row, policy, version, reason): (&Row, &Policy, &str, HeldReason)| {
        let found = described(row, version).or_else(|| more.values().find(|found| is_it(found, row, version)));
        let found = found.ok_or_else(|| broken(format!("apt-cache does not describe {} {version}", row.name())))?;
        let change = Change {
            name: found.name.clone(),
            arch: found.arch.clone(),
            old: Some(row.version().to_owned()),
            new: found.version.clone(),
            origin: indexes.map_or_else(|| of_files(policy, version), |indexes| indexes.origin(&found.key())),
        };
        Ok(Kept { change, reason, description: found.clone() })
    };
    kept.into_iter().map(change).collect()
}

/// The later version that is kept back, and as what.
fn reason<'a>(policy: &'a Policy, row: &Row) -> Option<(&'a str, HeldReason)> {
    let candidate = policy.candidate.as_deref().filter(|version| deb::compare(version, row.version()).is_gt());
    let held = candidate.filter(|_| row.is_held()).map(|version| (version, HeldReason::Hold));
    held.or_else(|| policy.pinned().map(|version| (version, HeldReason::Pinned)))
}

/// Versions of the package that the indexes have, with their architectures.
fn versions<'a>(indexes: &'a Indexes, row: &'a Row, arch: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    indexes.versions(row.name()).filter(move |(it, _)| own(it, arch) == own(row.arch(), arch))
}

/// A package for all architectures is one of the machine's own to apt.
fn own<'a>(arch: &'a str, machine: &'a str) -> &'a str {
    if arch == "all" { machine } else { arch }
}

/// An order names its versions, which apt would bring whatever its preferences say.
pub(super) async fn check(packages: &[PackageChange]) -> Result<(), Failure> {
    let policies = policies(packages.iter().map(|package| qualified(&package.name, &package.arch))).await?;
    for PackageChange { name, arch, candidate, .. } in packages {
        let of =
            |foreign: Option<&str>| policies.iter().find(|it| it.name == *name && it.foreign.as_deref() == foreign);
        let policy = of(Some(arch)).or_else(|| of(None));
        if let Some(policy) = policy.filter(|policy| policy.is_against(candidate)) {
            let prefers = policy.candidate.as_deref().unwrap_or("no version");
            let why = format!("apt_preferences(5) are against {name} {candidate}: by them apt takes {prefers}");
            return Err(Failure::new(ResultReason::LimitedByDevice, why));
        }
    }
    Ok(())
}

fn has_preferences() -> Result<bool, Failure> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(broken(format!("{DIRECTORY}: {error}"))),
    };
    Ok(entries || Path::new(FILE).exists())
}
