//! What macOS says, as a report says it. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{
    Classification, HeldReason, Package, Problem, ProblemCode, Restart, Severity, Tristate, Update,
};
use patchwarden_protocol::result::ResultReason;

use super::listing::{After, Listing, Offer};
use super::profile::{Entry, Profile};
use crate::provider::support::package_url;
use crate::provider::{Artifact, Change, Failure, Installed, Inventory, Simulation, artifacts_digest, bounded, rpm};

/// Version of what was never installed.
pub(super) const ABSENT: &str = "0";

/// Whose updates they are.
const ORIGIN: &str = "Apple Software Update";

/// Of the sources in the history.
const SOURCE: &str = "package_source_";

/// A name or version as an order can have it: a space is `_`, and what else has no place there is `+` and two hexadecimal digits.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // An order's words begin with a letter or a digit.
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        out.push_str("x-");
    }
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('_'),
            b'-' | b'.' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                // Writing into a String cannot fail.
                let _ = write!(out, "+{byte:02x}");
            }
        }
    }
    out
}

/// What is downloaded already, by name and version.
pub(super) type Downloaded = BTreeSet<(String, String)>;

/// Everything, as a report has it.
pub(super) fn inventory(arch: &str, listing: &Listing, profile: &Profile, downloaded: &Downloaded) -> Inventory {
    Inventory {
        arch: arch.to_owned(),
        updates: best(&listing.offers)
            .into_iter()
            .map(|(name, found)| update(arch, name, &found, profile, downloaded))
            .collect(),
        // macOS keeps its files itself.
        files: BTreeMap::new(),
        removable: Vec::new(),
        packages: packages(arch, profile),
        restart: Restart { required: Tristate::Unknown, reasons: Vec::new() },
        problems: problems(listing),
        unconfigured: Vec::new(),
        upstream: None,
    }
}

/// The latest version of each title, by its name.
struct Best<'a> {
    offer: &'a Offer,
    /// Another label has the same title and version: which of them is meant nobody can say.
    is_ambiguous: bool,
}

/// What counts as missing. What is not recommended is for who wants it.
fn best(offers: &[Offer]) -> BTreeMap<String, Best<'_>> {
    let mut best: BTreeMap<String, Best<'_>> = BTreeMap::new();
    for offer in offers.iter().filter(|offer| offer.recommended) {
        let name = encoded(&offer.title);
        let order = best.get(&name).map(|before| rpm::compare(&offer.version, &before.offer.version));
        match (order, best.get_mut(&name)) {
            (Some(Ordering::Less), _) => {}
            (Some(Ordering::Equal), Some(before)) => before.is_ambiguous |= before.offer.label != offer.label,
            _ => {
                best.insert(name, Best { offer, is_ambiguous: false });
            }
        }
    }
    best
}

/// Why an update is not for this agent to install, if it is not.
fn by_hand(found: &Best<'_>, profile: &Profile) -> Option<&'static str> {
    let Best { offer, is_ambiguous } = found;
    let is_there = profile.history.get(&offer.title).is_some_and(|entry| !is_later(&offer.version, &entry.version));
    if offer.after == After::Restart && profile.is_apple_silicon {
        Some("only by a volume owner's password or MDM")
    } else if offer.after == After::Restart {
        Some("restarts the Mac by itself: by a person or MDM")
    } else if offer.deferred {
        Some("delayed by a profile")
    } else if *is_ambiguous {
        Some("offered twice under the same name: by a person")
    } else if is_there {
        Some("offered although it is installed: by a person")
    } else {
        None
    }
}

fn update(arch: &str, name: String, found: &Best<'_>, profile: &Profile, downloaded: &Downloaded) -> Update {
    let offer = found.offer;
    let by_hand = by_hand(found, profile);
    let candidate = encoded(&offer.version);
    let installed = profile.history.get(&offer.title);
    let package = PackageChange {
        installed: installed.map_or_else(|| ABSENT.to_owned(), |entry| encoded(&entry.version)),
        arch: arch.to_owned(),
        candidate: candidate.clone(),
        name,
    };
    Update {
        id: bounded(&package_url("generic", "apple", &offer.title, &offer.version), 253),
        title: bounded(&by_hand.map_or_else(|| offer.title.clone(), |why| format!("{} [{why}]", offer.title)), 200),
        // Apple's own word; of the others it is not told.
        classification: if offer.title.contains("Security") {
            Classification::Security
        } else {
            Classification::Unclassified
        },
        severity: Severity::Unknown,
        cves: Vec::new(),
        published: None,
        origin: ORIGIN.to_owned(),
        size_bytes: offer.size,
        requires_restart: match offer.after {
            After::Restart => Tristate::Yes,
            After::Nothing => Tristate::No,
        },
        interrupts_service: Tristate::Unknown,
        artifacts_digest: artifacts_digest([(package.name.as_str(), arch, candidate.as_str(), "")]),
        held: by_hand.is_some(),
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: downloaded.contains(&(package.name.clone(), candidate)),
        packages: vec![package],
        source_installed: None,
    }
}

fn problems(listing: &Listing) -> Vec<Problem> {
    let Listing { offers: _, unread } = listing;
    let message = format!("softwareupdate lists {unread} entries that cannot be read: look at `softwareupdate --list`");
    let problem = Problem { code: ProblemCode::RepositoryUnavailable, message };
    (*unread > 0).then_some(problem).into_iter().collect()
}

/// What was installed, the system, its firmware and the model of the machine.
fn packages(arch: &str, profile: &Profile) -> Vec<Package> {
    let Profile { history, system, model, firmware, is_apple_silicon: _ } = profile;
    let one = |name: &str, version: &str, source: &str| Package {
        name: bounded(name, 128),
        arch: arch.to_owned(),
        version: bounded(version, 128),
        source: bounded(source, 128),
        source_version: None,
    };
    let installed = history.iter().map(|(title, Entry { version, date: _, source })| {
        one(&encoded(title), &encoded(version), source.strip_prefix(SOURCE).unwrap_or(source))
    });
    let machine = [
        ("system", system.as_str(), "system"),
        ("firmware", firmware.as_str(), "firmware: Apple"),
        ("model", model.as_str(), "model: Apple"),
    ];
    let machine = machine.into_iter().filter(|(_, version, _)| !version.is_empty());
    let mut all: Vec<Package> =
        installed.chain(machine.map(|(name, version, source)| one(name, version, source))).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Every ordered version must be offered, and be one that this agent may install.
pub(super) fn simulation(
    arch: &str,
    packages: &[PackageChange],
    listing: &Listing,
    profile: &Profile,
) -> Result<Simulation, Failure> {
    let best = best(&listing.offers);
    let mut changes = Vec::new();
    for package in packages {
        let offered = best.get(&package.name).filter(|found| encoded(&found.offer.version) == package.candidate);
        let Some(found) = offered else {
            let message = format!("{} {} is not offered any more", package.name, package.candidate);
            return Err(Failure::new(ResultReason::Superseded, message));
        };
        if let Some(why) = by_hand(found, profile) {
            return Err(Failure::new(ResultReason::PackageManagerFailed, format!("{}: {why}", package.name)));
        }
        let installed = profile.history.get(&found.offer.title);
        changes.push(Change {
            name: package.name.clone(),
            arch: arch.to_owned(),
            old: Some(installed.map_or_else(|| ABSENT.to_owned(), |entry| encoded(&entry.version))),
            new: package.candidate.clone(),
            origin: ORIGIN.to_owned(),
        });
    }
    Ok(Simulation { changes, ..Simulation::default() })
}

/// What is offered of `packages` in exactly their version.
pub(super) fn artifacts(arch: &str, packages: &[PackageChange], listing: &Listing) -> Vec<Artifact> {
    let best = best(&listing.offers);
    let artifact = |package: &PackageChange| {
        let Best { offer, .. } =
            best.get(&package.name).filter(|found| encoded(&found.offer.version) == package.candidate)?;
        Some(Artifact {
            name: package.name.clone(),
            arch: arch.to_owned(),
            version: package.candidate.clone(),
            // Not for the agent to fetch: macOS does, and verifies Apple's signature.
            sha256: String::new(),
            size: offer.size,
            // How it is called to be installed.
            file_name: offer.label.clone(),
            local: None,
            needed: false,
            rivals: Vec::new(),
        })
    };
    packages.iter().filter_map(artifact).collect()
}

/// One row for each of `packages`: at the version that was installed last, or absent.
pub(super) fn rows(arch: &str, packages: &[PackageChange], profile: &Profile) -> Vec<Installed> {
    let history: BTreeMap<String, &Entry> =
        profile.history.iter().map(|(title, entry)| (encoded(title), entry)).collect();
    let row = |package: &PackageChange| Installed {
        name: package.name.clone(),
        arch: arch.to_owned(),
        version: history.get(&package.name).map_or_else(|| ABSENT.to_owned(), |entry| encoded(&entry.version)),
        source: package.name.clone(),
        complete: true,
    };
    packages.iter().map(row).collect()
}

/// Whether version `a` is later than `b`: by numbers and words in turns.
pub(super) fn is_later(a: &str, b: &str) -> bool {
    rpm::compare(a, b).is_gt()
}
