//! What apt offers, as a report says it: one update for each source package in a new version.

use std::collections::{BTreeMap, BTreeSet};

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Classification, HeldReason, Package, Severity, Tristate, Update};
use patchwarden_protocol::versions::deb;

use super::commands::describe;
use super::parse::{self, Description, PackageKey};
use super::restart::needs_restart;
use super::services;
use super::trust::Doubt;
use crate::provider::support::{broken, package_url};
use crate::provider::{Change, Failure, artifacts_digest, bounded};

/// Hexadecimal SHA-256 of the files of each update, by its `artifacts_digest`.
type Files = BTreeMap<String, Vec<String>>;

/// Source package, its version, and as what the changes are held back, if they are.
type Group = (String, String, Option<HeldReason>);

/// Everything that the offered changes become in a report; a change that is held back comes with the reason. What is not
/// in `descriptions` is asked of apt. `doubts` are of these changes, `installed` is sorted.
pub(super) async fn updates(
    distribution: &str,
    changes: Vec<(Change, Option<HeldReason>)>,
    mut descriptions: BTreeMap<PackageKey, Description>,
    doubts: &BTreeMap<PackageKey, Doubt>,
    installed: &[Package],
) -> Result<(Vec<Update>, Files), Failure> {
    let is_missing = |change: &&Change| !descriptions.contains_key(&key(change));
    let more = describe(changes.iter().map(|(change, _)| change).filter(is_missing)).await?;
    descriptions.extend(more);
    let mut sources: BTreeMap<Group, Vec<(Change, Description)>> = BTreeMap::new();
    for (change, held) in changes {
        let Some(found) = descriptions.get(&key(&change)) else {
            return Err(broken(format!("apt-cache does not describe {} {}", change.name, change.new)));
        };
        sources
            .entry((found.source.clone(), found.source_version.clone(), held))
            .or_default()
            .push((change, found.clone()));
    }
    let mut files = Files::new();
    let mut updates = Vec::with_capacity(sources.len());
    for ((source, version, held), members) in sources {
        let hashes = members.iter().map(|(_, description)| description.sha256.clone()).collect();
        let source_installed = source_installed((&source, &version), &members, installed);
        let unauthenticated = members.iter().any(|(change, _)| doubts.contains_key(&key(change)));
        let update =
            Update { source_installed, unauthenticated, ..update(distribution, &source, &version, held, members) };
        files.insert(update.artifacts_digest.clone(), hashes);
        updates.push(update);
    }
    Ok((updates, files))
}

/// Of the new version.
pub(super) fn key(change: &Change) -> PackageKey {
    (change.name.clone(), change.arch.clone(), change.new.clone())
}

/// Version of the source package that these are of as they are installed, the oldest; nothing where each has its source's version as
/// its own, before and after. A package that changes its source package says nothing.
fn source_installed(
    (source, version): (&str, &str),
    members: &[(Change, Description)],
    installed: &[Package],
) -> Option<String> {
    let changes = || members.iter().map(|(change, _)| change);
    let same = |change: &Change| {
        let order = |it: &Package| (it.name.as_str(), it.arch.as_str()).cmp(&(&change.name, &change.arch));
        let place = installed.binary_search_by(order).ok()?;
        installed.get(place).filter(|package| package.source == source)
    };
    let known: Vec<&Package> = changes().filter_map(same).collect();
    let is_another = |package: &&Package| package.source_version.as_ref().is_some_and(|it| *it != package.version);
    let has_own = known.iter().any(is_another) || changes().any(|change| change.new != version);
    has_own.then_some(())?;
    let versions = known.iter().map(|package| package.source_version.as_ref().unwrap_or(&package.version));
    versions.min_by(|a, b| deb::compare(a, b)).cloned()
}

fn update(
    distribution: &str,
    source: &str,
    version: &str,
    held: Option<HeldReason>,
    members: Vec<(Change, Description)>,
) -> Update {
    let classification = members
        .iter()
        .map(|(change, _)| parse::classification(&change.origin))
        .min()
        .unwrap_or(Classification::Unclassified);
    let origins: BTreeSet<&str> = members.iter().map(|(change, _)| change.origin.as_str()).collect();
    let origin = bounded(&origins.into_iter().collect::<Vec<_>>().join(", "), 200);
    let interrupts_service =
        services::interrupted_by(members.iter().map(|(change, _)| (change.name.as_str(), change.arch.as_str())));
    let requires_restart = if members.iter().any(|(change, _)| needs_restart(&change.name, source)) {
        Tristate::Yes
    } else if interrupts_service == Tristate::No {
        // No process runs or uses anything of it that would have to be started again.
        Tristate::No
    } else {
        Tristate::Unknown
    };
    let artifacts_digest = artifacts_digest(
        members.iter().map(|(_, d)| (d.name.as_str(), d.arch.as_str(), d.version.as_str(), d.sha256.as_str())),
    );
    let size_bytes = members.iter().map(|(_, description)| description.size).sum();
    let mut packages: Vec<PackageChange> = members
        .into_iter()
        .map(|(change, _)| PackageChange {
            name: change.name,
            arch: change.arch,
            installed: change.old.unwrap_or_default(),
            candidate: change.new,
        })
        .collect();
    packages.sort_unstable();
    // The binary's versions: a rebuild (`+b1`) has the same source version.
    let versions = packages.first().map(|p| format!("{} -> {}", p.installed, p.candidate)).unwrap_or_default();
    Update {
        id: bounded(&package_url("deb", distribution, source, version), 253),
        title: bounded(&format!("{source} {versions}"), 200),
        classification,
        severity: Severity::Unknown,
        cves: Vec::new(),
        published: None,
        origin,
        size_bytes,
        requires_restart,
        interrupts_service,
        artifacts_digest,
        held: held.is_some(),
        held_reason: held.unwrap_or_default(),
        unauthenticated: false,
        downloaded: false,
        packages,
        source_installed: None,
    }
}
