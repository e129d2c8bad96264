//! What is offered, as a report says it: one update for each advisory, or for each source package in a new version. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Classification, HeldReason, MAX_CVE, MAX_CVES, Severity, Tristate, Update};
use serde::Deserialize;

use crate::provider::support::package_url;
use crate::provider::{Artifact, Change, artifacts_digest, bounded, rpm};

/// One package in one version, as its repository's index states it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::provider) struct File {
    pub(in crate::provider) name: String,
    pub(in crate::provider) arch: String,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub(in crate::provider) version: String,
    /// File name of the source package.
    pub(in crate::provider) source: String,
    pub(in crate::provider) repository: String,
    /// Empty where the index states another kind of checksum.
    pub(in crate::provider) sha256: String,
    pub(in crate::provider) size: u64,
    /// Bytes of its files.
    pub(in crate::provider) unpacked: u64,
    /// Last part of its place in the repository.
    #[serde(rename = "file")]
    pub(in crate::provider) base_name: String,
    /// Where it lies, for a repository on this machine.
    pub(in crate::provider) local: Option<PathBuf>,
    /// The installed version that it is a newer or an older one of.
    pub(in crate::provider) old: Option<String>,
    /// Whether the package itself says that it is in use only after a restart.
    #[serde(default)]
    pub(in crate::provider) restarts: bool,
    /// Repositories that offer another file as the same version.
    #[serde(default)]
    pub(in crate::provider) rivals: Vec<String>,
}

/// A version that is offered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::provider) struct Offered {
    #[serde(flatten)]
    pub(in crate::provider) file: File,
    /// Advisories that name exactly this version.
    pub(in crate::provider) advisories: Vec<String>,
    /// These, and those of versions between the installed one and this.
    pub(in crate::provider) passed: Vec<String>,
    /// Whether this machine excludes it.
    pub(in crate::provider) held: bool,
}

/// An entry of a repository's updateinfo.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::provider) struct Advisory {
    pub(in crate::provider) id: String,
    /// `security`, `bugfix`, `enhancement`, `newpackage` or `unknown`.
    pub(in crate::provider) kind: String,
    /// The vendor's word.
    pub(in crate::provider) severity: String,
    pub(in crate::provider) title: String,
    /// Seconds since 1970; 0 where it is not known.
    pub(in crate::provider) updated: i64,
    pub(in crate::provider) cves: Vec<String>,
}

/// What is offered, and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::provider) struct Offers {
    pub(in crate::provider) updates: Vec<Offered>,
    pub(in crate::provider) advisories: Vec<Advisory>,
    /// Advisories after which a restart is suggested.
    pub(in crate::provider) rebooting: Vec<String>,
    /// Why these may not be all.
    #[serde(default)]
    pub(in crate::provider) problems: Vec<String>,
    /// Whether there are advisories of which none could be read.
    #[serde(default, rename = "unadvised")]
    pub(in crate::provider) is_unadvised: bool,
}

impl File {
    pub(in crate::provider) fn into_change(self) -> Change {
        let Self { name, arch, version, repository, old, .. } = self;
        Change { name, arch, old, new: version, origin: repository }
    }

    pub(in crate::provider) fn into_artifact(self, needed: bool) -> Artifact {
        let Self { name, arch, version, sha256, size, base_name, local, rivals, .. } = self;
        Artifact { name, arch, version, sha256, size, file_name: base_name, local, needed, rivals }
    }
}

/// Hexadecimal SHA-256 of the files of each update, by its `artifacts_digest`.
type Files = BTreeMap<String, Vec<String>>;

/// Advisories that suggest a restart.
#[derive(Clone, Copy)]
struct Rebooting<'a> {
    ids: &'a [String],
    /// Whether these are all.
    is_known: bool,
    /// See [`Offers::is_unadvised`].
    is_unadvised: bool,
}

/// Everything that is offered. `interruptions` says of each installed package whether a change of it interrupts a service.
pub(in crate::provider) fn updates(
    distribution: &str,
    offers: Offers,
    interruptions: &BTreeMap<String, Tristate>,
) -> (Vec<Update>, Files) {
    let advisories: BTreeMap<&str, &Advisory> = offers.advisories.iter().map(|a| (a.id.as_str(), a)).collect();
    let mut groups: BTreeMap<(String, bool), Vec<Offered>> = BTreeMap::new();
    for offered in offers.updates {
        let id = match worst(&offered.advisories, &advisories).filter(|advisory| !advisory.id.is_empty()) {
            Some(advisory) => advisory.id.clone(),
            None => source_url(distribution, &offered),
        };
        groups.entry((id, offered.held)).or_default().push(offered);
    }
    let mut files = Files::new();
    let mut updates = Vec::with_capacity(groups.len());
    for ((id, held), members) in groups {
        let hashes = members.iter().map(|member| member.file.sha256.clone()).collect();
        let (ids, is_unadvised) = (&*offers.rebooting, offers.is_unadvised);
        let rebooting = Rebooting { ids, is_known: offers.problems.is_empty(), is_unadvised };
        let update = update(&id, held, members, &advisories, rebooting, interruptions);
        files.insert(update.artifacts_digest.clone(), hashes);
        updates.push(update);
    }
    (updates, files)
}

fn update(
    id: &str,
    held: bool,
    members: Vec<Offered>,
    advisories: &BTreeMap<&str, &Advisory>,
    rebooting: Rebooting<'_>,
    interruptions: &BTreeMap<String, Tristate>,
) -> Update {
    let passed: Vec<&Advisory> = members
        .iter()
        .flat_map(|member| &member.passed)
        .filter_map(|id| advisories.get(id.as_str()).copied())
        .collect();
    let mut cves: Vec<String> = passed.iter().flat_map(|advisory| advisory.cves.iter().cloned()).collect();
    // What a report has no room for: the latest are told.
    cves.retain(|cve| cve.len() <= MAX_CVE && cve.bytes().all(|byte| byte.is_ascii_graphic()));
    cves.sort_unstable_by(|a, b| b.cmp(a));
    cves.dedup();
    cves.truncate(MAX_CVES);
    cves.sort_unstable();
    let of_packages = members.iter().map(|m| interruptions.get(&m.file.name).copied().unwrap_or_default());
    let interrupts_service = crate::provider::services::worst(of_packages);
    let is_named = |Offered { file, .. }: &Offered| {
        file.restarts || rpm::needs_restart(&file.name, rpm::source_name(&file.source))
    };
    let requires_restart = if members.iter().any(is_named) || passed.iter().any(|a| rebooting.ids.contains(&a.id)) {
        Tristate::Yes
    } else if interrupts_service == Tristate::No && (rebooting.is_known || passed.is_empty() && !rebooting.is_unadvised)
    {
        // No process runs or uses anything of it that would have to be started again.
        Tristate::No
    } else {
        Tristate::Unknown
    };
    let own = advisories.get(id);
    let mut repositories: Vec<&str> = members.iter().map(|member| member.file.repository.as_str()).collect();
    repositories.sort_unstable();
    repositories.dedup();
    let lines = members.iter().map(|Offered { file, .. }| {
        (file.name.as_str(), file.arch.as_str(), file.version.as_str(), file.sha256.as_str())
    });
    Update {
        title: bounded(&plain(&title(own.copied(), &members)), 200),
        classification: classification(&passed),
        severity: passed.iter().map(|advisory| severity(&advisory.severity)).max().unwrap_or(Severity::Unknown),
        cves,
        published: own.filter(|a| a.updated > 0).and_then(|a| Timestamp::from_second(a.updated).ok()),
        origin: bounded(&repositories.join(", "), 200),
        size_bytes: members.iter().map(|member| member.file.size).sum(),
        requires_restart,
        interrupts_service,
        artifacts_digest: artifacts_digest(lines),
        held,
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: false,
        source_installed: None,
        packages: packages(members),
        id: bounded(&plain(id), 253),
    }
}

fn packages(members: Vec<Offered>) -> Vec<PackageChange> {
    let mut packages: Vec<PackageChange> = members
        .into_iter()
        .map(|Offered { file, .. }| PackageChange {
            name: file.name,
            arch: file.arch,
            installed: file.old.unwrap_or_default(),
            candidate: file.version,
        })
        .collect();
    packages.sort_unstable();
    packages
}

/// Of several advisories that bring the same version the one that says most: about security first, then the most severe.
fn worst<'a>(ids: &[String], advisories: &BTreeMap<&str, &'a Advisory>) -> Option<&'a Advisory> {
    ids.iter()
        .filter_map(|id| advisories.get(id.as_str()).copied())
        .min_by_key(|a| (a.kind != "security", std::cmp::Reverse(severity(&a.severity)), a.id.clone()))
}

/// The source package in its new version, with the epoch as ECMA-427 has it for rpm.
fn source_url(distribution: &str, offered: &Offered) -> String {
    let file = &offered.file;
    let (epoch, bare) = file.version.split_once(':').unwrap_or(("", file.version.as_str()));
    let (name, version) = rpm::source_parts(&file.source).unwrap_or((file.name.as_str(), bare));
    let url = package_url("rpm", distribution, name, version);
    if epoch.is_empty() { url } else { format!("{url}?epoch={epoch}") }
}

fn title(own: Option<&Advisory>, members: &[Offered]) -> String {
    if let Some(advisory) = own.filter(|advisory| !advisory.title.is_empty()) {
        return advisory.title.clone();
    }
    let Some(first) = members.iter().map(|member| &member.file).min_by_key(|file| (&file.name, &file.arch)) else {
        return String::new();
    };
    let name = match rpm::source_name(&first.source) {
        "" => &first.name,
        name => name,
    };
    format!("{name} {} -> {}", first.old.as_deref().unwrap_or_default(), first.version)
}

fn classification(passed: &[&Advisory]) -> Classification {
    if passed.iter().any(|advisory| advisory.kind == "security") {
        Classification::Security
    } else if passed.iter().any(|advisory| advisory.kind != "unknown") {
        Classification::Updates
    } else {
        Classification::Unclassified
    }
}

/// Red Hat's words, and SUSE's and Fedora's.
fn severity(word: &str) -> Severity {
    match word.to_ascii_lowercase().as_str() {
        "critical" => Severity::Critical,
        "important" | "high" | "urgent" => Severity::High,
        "moderate" | "medium" => Severity::Medium,
        "low" => Severity::Low,
        _ => Severity::Unknown,
    }
}

/// What a repository says goes to people's terminals.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a machine with an advisory that was passed over, one excluded package and a kernel.
    fn scanned() -> Offers {
        serde_json::from_str(include_str!("../../../tests/data/dnf/scan.json")).unwrap()
    }

    fn of<'a>(updates: &'a [Update], name: &str) -> &'a Update {
        updates.iter().find(|update| update.packages.iter().any(|package| package.name == name)).unwrap()
    }

    #[test]
    fn an_update_is_its_advisory_or_its_source_package() {
        let (updates, files) = updates("rocky", scanned(), &BTreeMap::new());
        let a = of(&updates, "pw-a");
        assert_eq!((a.id.as_str(), a.title.as_str()), ("RHEA-2026:9", "pw-a enhancement"));
        assert_eq!(a.packages[0].candidate, "3.0-1");
        assert_eq!(
            (a.classification, a.severity),
            (Classification::Security, Severity::High),
            "of the one passed over"
        );
        assert_eq!(a.cves, ["CVE-2026-0001", "CVE-2026-0002"]);
        assert_eq!(a.published.unwrap().to_string(), "2026-11-20T10:00:00Z");
        assert_eq!(a.origin, "test");
        let epoch = of(&updates, "pw-epoch");
        assert_eq!(epoch.id, "pkg:rpm/rocky/pw-epoch@2.0~rc1-1?epoch=1");
        assert_eq!(epoch.title, "pw-epoch 1:1.0-1 -> 1:2.0~rc1-1");
        assert_eq!((epoch.classification, epoch.severity), (Classification::Unclassified, Severity::Unknown));
        let b = of(&updates, "pw-b");
        assert_eq!((b.id.as_str(), b.classification, b.published), ("RHBA-2026:5", Classification::Updates, None));
        assert!(updates.iter().all(|update| files[&update.artifacts_digest].iter().all(|sha256| sha256.len() == 64)));
    }

    #[test]
    fn a_restart_is_needed_where_the_vendor_says_so_and_for_a_kernel() {
        let interruptions = ["pw-a", "pw-b"].map(|name| (name.to_owned(), Tristate::No));
        let (updates, _) = updates("rocky", scanned(), &BTreeMap::from(interruptions));
        let found = ["pw-a", "pw-b", "kernel-core", "pw-epoch"].map(|name| of(&updates, name).requires_restart);
        assert_eq!(found, [Tristate::No, Tristate::Yes, Tristate::Yes, Tristate::Unknown]);
    }

    #[test]
    fn where_an_advisory_cannot_be_read_whether_it_suggests_a_restart_is_not_known() {
        let mut answer = scanned();
        answer.problems = vec!["test: too large".into()];
        let interruptions = ["pw-a", "pw-epoch"].map(|name| (name.to_owned(), Tristate::No));
        let (updates, _) = updates("rocky", answer, &BTreeMap::from(interruptions));
        let found = ["pw-a", "pw-b", "pw-epoch"].map(|name| of(&updates, name).requires_restart);
        assert_eq!(found, [Tristate::Unknown, Tristate::Yes, Tristate::No], "pw-epoch has no advisory");
    }

    #[test]
    fn of_several_advisories_the_worst_names_the_update_and_packages_of_one_are_together() {
        let advisory = |id: &str, kind: &str, severity: &str| Advisory {
            id: id.into(),
            kind: kind.into(),
            severity: severity.into(),
            title: "a\u{1b}title".into(),
            updated: 0,
            cves: vec![],
        };
        let mut answer = scanned();
        answer.advisories = vec![
            advisory("B", "bugfix", "Critical"),
            advisory("S2", "security", "Low"),
            advisory("S1", "security", "Moderate"),
        ];
        answer.updates.truncate(3);
        for offered in &mut answer.updates {
            offered.advisories = ["B", "S2", "S1"].map(Into::into).to_vec();
            offered.passed.clone_from(&offered.advisories);
        }
        answer.updates[2].held = true;
        answer.advisories[1].cves = (0..70).map(|n| format!("CVE-2026-{n:04}")).collect();
        let (updates, _) = updates("rocky", answer, &BTreeMap::new());
        let found: Vec<(&str, usize, bool)> =
            updates.iter().map(|update| (update.id.as_str(), update.packages.len(), update.held)).collect();
        assert_eq!(found, [("S1", 2, false), ("S1", 1, true)]);
        assert_eq!((updates[0].severity, updates[0].title.as_str()), (Severity::Critical, "a title"));
        let cves = &updates[0].cves;
        assert_eq!((cves.len(), cves[0].as_str()), (MAX_CVES, "CVE-2026-0006"), "the latest");
    }
}
