//! Later versions that apt has and does not bring: of packages on hold, those that a pin of their own in
//! apt_preferences(5) keeps back, and those that are being phased and are not for this machine yet.
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

use super::commands::{Indexes, describe_known, origins, policies, simulate};
use super::parse::{Description, Row, qualified};
use super::policy::Policy;
use crate::provider::support::broken;
use crate::provider::{Change, Failure, words};

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
    let offer = |row: &Row| offered.get(&(row.name(), own(row.arch(), arch))).copied();
    let has_more = |row: &&Row| {
        let known = offer(row).unwrap_or(row.version());
        let may_be_kept = |indexes| {
            let mut later = versions(indexes, row, arch).filter(|(_, version, _)| deb::compare(version, known).is_gt());
            later.any(|(_, _, is_phased)| may_be_pinned || row.is_held() || is_phased)
        };
        row.is_present() && indexes.is_none_or(may_be_kept)
    };
    let asked: BTreeMap<(&str, &str), &Row> =
        rows.iter().filter(has_more).map(|row| ((row.name(), own(row.arch(), arch)), row)).collect();
    let policies = policies(asked.values().map(|row| qualified(row.name(), row.arch()))).await?;
    let kept: Vec<(&Row, &Policy, &str, HeldReason)> = policies
        .iter()
        .filter_map(|policy| {
            let row = asked.get(&(policy.name.as_str(), policy.foreign.as_deref().unwrap_or(arch)))?;
            let (version, reason) = reason(policy, row, offer(row))?;
            Some((*row, policy, version, reason))
        })
        .collect();
    let is_it = |found: &Description, row: &Row, version: &str| {
        found.name == row.name() && found.version == version && own(&found.arch, arch) == own(row.arch(), arch)
    };
    let described = |row: &Row, version: &str| {
        let of_it = versions(indexes?, row, arch).filter(|(_, it, _)| *it == version);
        let mut keys = of_it.map(|(arch, version, _)| (row.name().to_owned(), arch.to_owned(), version.to_owned()));
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
        // Its index may have been read anew meanwhile.
        let Some(found) = found else {
            tracing::warn!("apt-cache does not describe {} {version}", row.name());
            return None;
        };
        let change = Change {
            name: found.name.clone(),
            arch: found.arch.clone(),
            old: Some(row.version().to_owned()),
            new: found.version.clone(),
            origin: indexes.map_or_else(|| of_files(policy, version), |indexes| indexes.origin(&found.key())),
        };
        Some(Kept { change, reason, description: found.clone() })
    };
    Ok(kept.into_iter().filter_map(change).collect())
}

/// The later version that is kept back, and as what.
fn reason<'a>(policy: &'a Policy, row: &Row, offered: Option<&str>) -> Option<(&'a str, HeldReason)> {
    let candidate = policy.candidate.as_deref().filter(|version| deb::compare(version, row.version()).is_gt());
    let held = candidate.filter(|_| row.is_held()).map(|version| (version, HeldReason::Hold));
    held.or_else(|| policy.kept(offered))
}

/// Versions of the package that the indexes have, with their architectures.
fn versions<'a>(indexes: &'a Indexes, row: &'a Row, arch: &'a str) -> impl Iterator<Item = (&'a str, &'a str, bool)> {
    indexes.versions(row.name()).filter(move |(it, ..)| own(it, arch) == own(row.arch(), arch))
}

/// A package for all architectures is one of the machine's own to apt.
fn own<'a>(arch: &'a str, machine: &'a str) -> &'a str {
    if arch == "all" { machine } else { arch }
}

/// An order names its versions, which apt would bring whatever its preferences say and whosever turn it is.
pub(super) async fn check(packages: &[PackageChange]) -> Result<(), Failure> {
    let policies = policies(packages.iter().map(|package| qualified(&package.name, &package.arch))).await?;
    let policy = |package: &PackageChange| {
        let of = |foreign: Option<&str>| {
            policies.iter().find(|it| it.name == package.name && it.foreign.as_deref() == foreign)
        };
        of(Some(&package.arch)).or_else(|| of(None)).filter(|it| it.installed.as_ref() != Some(&package.candidate))
    };
    let limited = |why: String| Err(Failure::new(ResultReason::LimitedByDevice, why));
    let mut phased = Vec::new();
    for package in packages {
        let PackageChange { name, candidate, .. } = package;
        let Some(policy) = policy(package) else { continue };
        if policy.is_phased(candidate) {
            phased.push(package);
        } else if policy.is_against(candidate) {
            let prefers = policy.candidate.as_deref().unwrap_or("no version");
            return limited(format!("apt_preferences(5) are against {name} {candidate}: by them apt takes {prefers}"));
        }
    }
    if phased.is_empty() {
        return Ok(());
    }
    let brought = simulate(&words(["dist-upgrade"])).await?.changes;
    let is_brought = |package: &&PackageChange| {
        brought.iter().any(|it| (&it.name, &it.arch, &it.new) == (&package.name, &package.arch, &package.candidate))
    };
    match phased.into_iter().find(|package| !is_brought(package)) {
        Some(PackageChange { name, candidate, .. }) => {
            limited(format!("{name} {candidate} is being phased, and apt does not bring it to this machine yet"))
        }
        None => Ok(()),
    }
}

fn has_preferences() -> Result<bool, Failure> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(broken(format!("{DIRECTORY}: {error}"))),
    };
    Ok(entries || Path::new(FILE).exists())
}
