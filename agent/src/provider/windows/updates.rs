//! What Windows says, as a report says it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Classification, HeldReason, Package, Problem, Restart, Severity, Tristate, Update};
use patchwarden_protocol::result::ResultReason;

use super::answer::{Bios, Computer, Driver, Found, Program, Reboot, Said, Source, State};
use super::script::Identity;
use super::{answer, unavailable, words};
use crate::provider::{Change, Failure, Installed, Inventory, Simulation, artifacts_digest, bounded, upstream};

/// Version of what is not installed.
pub(super) const ABSENT: &str = "0";

/// Category "Security Updates" ("Determining the localized name...": https://learn.microsoft.com/previous-versions/windows/desktop/ff357803).
const SECURITY: &str = "0fa1201d-4330-4fa8-8ae9-b877473b6441";

/// Category "Definition Updates": Defender's, several a day, which it fetches itself.
const DEFINITIONS: &str = "e0789628-ce08-4437-be74-2495b842f43b";

/// Of a CVE's name.
const CVE: &str = "CVE-";

/// Everything, as a report has it.
pub(super) fn inventory(arch: &str, found: answer::Inventory) -> Inventory {
    let origin = origin(found.source.as_ref());
    let problems = problems(&found);
    let upstream = found.source.as_ref().and_then(|source| upstream::wsus(&source.wsus));
    let restart = restart(found.reboot.as_ref());
    let offered: Vec<Found> = found.updates.iter().filter(|found| is_needed(found)).cloned().collect();
    Inventory {
        arch: arch.to_owned(),
        updates: updates(arch, &origin, &offered),
        // Windows keeps its files itself.
        files: BTreeMap::new(),
        removable: Vec::new(),
        packages: packages(arch, found),
        restart,
        problems,
        unconfigured: Vec::new(),
        upstream,
    }
}

/// What counts as missing. Others are for who wants them.
fn is_needed(found: &Found) -> bool {
    found.is_offered() && !found.is_optional && !found.categories.iter().any(|id| id.eq_ignore_ascii_case(DEFINITIONS))
}

/// By article of the knowledge base.
fn updates(arch: &str, origin: &str, offered: &[Found]) -> Vec<Update> {
    let mut groups: BTreeMap<String, Vec<&Found>> = BTreeMap::new();
    for found in offered {
        groups.entry(name_of(found)).or_default().push(found);
    }
    groups.into_iter().map(|(id, members)| update(arch, origin, id, &members)).collect()
}

/// `KB5031356`; without an article the UpdateID.
fn name_of(found: &Found) -> String {
    let article = found.kbs.iter().map(|kb| kb.trim_start_matches("KB")).find(|kb| {
        let is_number = kb.bytes().all(|byte| byte.is_ascii_digit());
        is_number && (1..=20).contains(&kb.len())
    });
    article.map_or_else(|| found.id.to_lowercase(), |kb| format!("KB{kb}"))
}

fn update(arch: &str, origin: &str, id: String, members: &[&Found]) -> Update {
    let mut packages: Vec<PackageChange> = members
        .iter()
        .map(|found| PackageChange {
            name: found.id.to_lowercase(),
            arch: arch.to_owned(),
            installed: ABSENT.to_owned(),
            candidate: found.revision.to_string(),
        })
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let cves: BTreeSet<&str> =
        members.iter().flat_map(|found| &found.cves).map(String::as_str).filter(|cve| cve.starts_with(CVE)).collect();
    let title = members.iter().map(|found| found.title.as_str()).find(|title| !title.is_empty()).unwrap_or(&id);
    Update {
        title: bounded(title, 200),
        classification: members.iter().map(|found| classification(found)).min().unwrap_or(Classification::Unclassified),
        severity: members.iter().map(|found| severity(&found.severity)).max().unwrap_or(Severity::Unknown),
        cves: cves.into_iter().map(str::to_owned).collect(),
        // The last of them: before that it was not what it is.
        published: members.iter().filter_map(|found| found.released).max(),
        origin: origin.to_owned(),
        size_bytes: members.iter().map(|found| found.max_bytes).fold(0, u64::saturating_add),
        requires_restart: worst(members.iter().map(|found| requires_restart(found.reboot_behavior))),
        interrupts_service: worst(members.iter().map(|found| interrupts(found.impact))),
        artifacts_digest: artifacts_digest(packages.iter().map(|p| (p.name.as_str(), arch, p.candidate.as_str(), ""))),
        held: members.iter().any(|found| found.asks_user),
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: members.iter().all(|found| found.is_downloaded),
        packages,
        source_installed: None,
        id,
    }
}

fn classification(found: &Found) -> Classification {
    if found.categories.iter().any(|id| id.eq_ignore_ascii_case(SECURITY)) {
        Classification::Security
    } else if found.categories.is_empty() {
        Classification::Unclassified
    } else {
        Classification::Updates
    }
}

/// Of the Microsoft Security Response Center ("Security Update Severity Rating System").
fn severity(word: &str) -> Severity {
    match word {
        "Critical" => Severity::Critical,
        "Important" => Severity::High,
        "Moderate" => Severity::Medium,
        "Low" => Severity::Low,
        _ => Severity::Unknown,
    }
}

fn requires_restart(behavior: i64) -> Tristate {
    match behavior {
        0 => Tristate::No,
        1 => Tristate::Yes,
        _ => Tristate::Unknown,
    }
}

fn interrupts(impact: i64) -> Tristate {
    if impact == 1 { Tristate::No } else { Tristate::Unknown }
}

/// One `Yes` counts, and else one `Unknown`.
fn worst(answers: impl Iterator<Item = Tristate>) -> Tristate {
    answers.fold(Tristate::No, |worst, answer| match (worst, answer) {
        (Tristate::Yes, _) | (_, Tristate::Yes) => Tristate::Yes,
        (Tristate::Unknown, _) | (_, Tristate::Unknown) => Tristate::Unknown,
        (Tristate::No, Tristate::No) => Tristate::No,
    })
}

/// `WSUS:http://wsus.example:8530`, else the service by its name.
fn origin(source: Option<&Source>) -> String {
    let Source { service, wsus } = source.cloned().unwrap_or_default();
    let origin = match (service.is_empty(), wsus.is_empty()) {
        (_, false) => format!("WSUS:{wsus}"),
        (false, true) => service,
        (true, true) => "Windows Update".to_owned(),
    };
    bounded(&origin, 200)
}

fn problems(found: &answer::Inventory) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(Said { hresult, message }) = &found.error {
        let what =
            format!("the server could not be asked, what is listed was known before: {}", words::of(*hresult, message));
        problems.push(unavailable(&what));
    }
    // The codes of a search that found all of it, or nothing wrong.
    if found.error.is_none() && found.result_code != 2 {
        let said: Vec<String> = found.warnings.iter().map(|said| words::of(said.hresult, &said.message)).collect();
        let code = found.result_code;
        problems.push(unavailable(&format!("Windows Update's search ended with code {code}: {}", said.join("; "))));
    }
    if found.cut {
        problems.push(unavailable("Windows Update offers more updates than are listed at once"));
    }
    problems
}

/// Windows' own word counts. The servicing stack's mark is also there when nothing is due, and files to be renamed are most of all
/// left by programs that were removed; so the one makes it unknown, and the other is told beside a restart that is due.
fn restart(reboot: Option<&Reboot>) -> Restart {
    let Some(Reboot { system, update_key, servicing, file_renames }) = reboot else {
        return Restart { required: Tristate::Unknown, reasons: Vec::new() };
    };
    let required = match (*system || *update_key, servicing) {
        (true, _) => Tristate::Yes,
        (false, true) => Tristate::Unknown,
        (false, false) => Tristate::No,
    };
    let marks = [
        (*system, "Windows Update says so"),
        (*update_key, r"WindowsUpdate\Auto Update\RebootRequired"),
        (*servicing, r"Component Based Servicing\RebootPending"),
        (*file_renames && required == Tristate::Yes, "PendingFileRenameOperations"),
    ];
    let reasons = marks.into_iter().filter(|(is_there, _)| *is_there).map(|(_, mark)| mark.to_owned()).collect();
    Restart { required, reasons }
}

/// Installed updates by their identity, programs, drivers, hotfixes, firmware and the model of the machine.
fn packages(arch: &str, found: answer::Inventory) -> Vec<Package> {
    let one = |name: &str, arch: &str, version: &str, source: &str| Package {
        name: bounded(name, 128),
        arch: arch.to_owned(),
        version: bounded(version, 128),
        source: bounded(source, 128),
        source_version: None,
    };
    let answer::Inventory { updates, installed, programs, drivers, hotfixes, bios, computer, .. } = found;
    let mut all: Vec<Package> = installed
        .iter()
        .chain(&updates)
        .filter(|found| found.is_there())
        .map(|found| one(&found.id.to_lowercase(), arch, &found.revision.to_string(), &name_of(found)))
        .collect();
    let programs = programs.iter().filter(|program| !program.name.is_empty());
    all.extend(programs.map(|Program { name, version, publisher, arch: own }| {
        let arch = if own == "x86" { "x86" } else { arch };
        one(name, arch, version, publisher)
    }));
    let drivers = drivers.iter().filter(|driver| !driver.name.is_empty());
    all.extend(
        drivers.map(|Driver { name, version, provider }| one(name, arch, version, &format!("driver: {provider}"))),
    );
    all.extend(hotfixes.iter().filter(|fix| fix.starts_with("KB")).map(|fix| one(fix, arch, "", "hotfix")));
    all.extend(
        bios.iter()
            .filter(|bios| !bios.version.is_empty())
            .map(|Bios { version, manufacturer }| one("BIOS", arch, version, &format!("firmware: {manufacturer}"))),
    );
    all.extend(
        computer
            .iter()
            .filter(|computer| !computer.model.is_empty())
            .map(|Computer { manufacturer, model }| one(model, arch, "", &format!("model: {manufacturer}"))),
    );
    all.sort_unstable();
    all.dedup();
    all
}

/// As the script is told them.
pub(super) fn identities(packages: &[PackageChange]) -> Vec<Identity<'_>> {
    packages.iter().map(|package| Identity { id: &package.name, revision: &package.candidate }).collect()
}

/// Every ordered identity must be offered as it is ordered.
pub(super) fn simulation(arch: &str, packages: &[PackageChange], state: &State) -> Result<Simulation, Failure> {
    let State { updates: found, source } = state;
    let origin = origin(source.as_ref());
    let mut changes = Vec::new();
    for package in packages {
        let Some(offered) = found.iter().find(|found| found.is(&package.name, &package.candidate)) else {
            let message = format!("{} {} is not offered any more", package.name, package.candidate);
            return Err(Failure::new(ResultReason::Superseded, message));
        };
        if offered.is_there() {
            continue;
        }
        if offered.is_hidden {
            let message = format!("{}: somebody has hidden it on this machine", package.name);
            return Err(Failure::new(ResultReason::Superseded, message));
        }
        if offered.asks_user {
            let message = format!("{}: it may ask a person something, and is installed by hand", package.name);
            return Err(Failure::new(ResultReason::PackageManagerFailed, message));
        }
        changes.push(Change {
            name: package.name.clone(),
            arch: arch.to_owned(),
            old: Some(ABSENT.to_owned()),
            new: package.candidate.clone(),
            origin: origin.clone(),
        });
    }
    Ok(Simulation { changes, ..Simulation::default() })
}

/// One row for each of `packages` that Windows knows: at the highest revision that is installed, or absent.
pub(super) fn rows(arch: &str, packages: &[PackageChange], found: &[Found]) -> Vec<Installed> {
    let row = |package: &PackageChange| {
        let mut known = found.iter().filter(|found| found.id.eq_ignore_ascii_case(&package.name)).peekable();
        known.peek()?;
        let there = known.filter(|found| found.is_there()).max_by_key(|found| found.revision);
        Some(Installed {
            name: package.name.clone(),
            arch: arch.to_owned(),
            version: there.map_or_else(|| ABSENT.to_owned(), |found| found.revision.to_string()),
            source: there.map(name_of).unwrap_or_default(),
            complete: true,
        })
    };
    packages.iter().filter_map(row).collect()
}
