//! The machine that the tests run on, which is only read.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use patchwarden_protocol::canonical;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode, Report, Update};

use crate::device::{agent_binary, stdout};

// covers MW-2, RM-1
#[test]
fn a_scan_lists_exactly_what_apt_would_bring() {
    let simulated = stdout(Command::new("apt-get").args(["-s", "dist-upgrade"]).env("LC_ALL", "C"));
    let expected: BTreeSet<_> = simulated.lines().filter_map(replaced).collect();
    let place = tempfile::tempdir().unwrap();
    let mut scan = Command::new(agent_binary());
    scan.arg("--config").arg(place.path().join("agent.toml")).arg("--state-dir").arg(place.path());
    let report: Report = serde_json::from_str(&stdout(scan.args(["scan", "--all"]))).unwrap();
    let is_whole = |problem: &Problem| problem.code == ProblemCode::UpdateTooLarge;
    assert!(report.problems.iter().all(is_whole) && !report.truncated, "{:?}", report.problems);
    let offered = report.updates.iter().filter(|update| !update.held);
    let found: BTreeSet<_> = offered
        .flat_map(|update| &update.packages)
        .map(|package| [&package.name, &package.installed, &package.candidate, &package.arch].map(String::clone))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(report.updates.len(), usize::try_from(report.counts.updates).unwrap());
    let files = shown(&report.updates);
    for update in &report.updates {
        let file = |package: &PackageChange| &files[&(package.name.clone(), package.arch.clone())];
        assert_eq!(
            update.size_bytes,
            update.packages.iter().map(|package| file(package).1).sum::<u64>(),
            "{}",
            update.id
        );
        let lines: BTreeSet<&str> = update.packages.iter().map(|package| file(package).0.as_str()).collect();
        let digest = canonical::digest(lines.into_iter().collect::<String>().as_bytes());
        assert_eq!(update.artifacts_digest, digest, "{}", update.id);
    }
}

/// The line in [`Update::artifacts_digest`] and the bytes of each file of these updates, by name and architecture, as
/// `apt-cache show` has them.
fn shown(updates: &[Update]) -> BTreeMap<(String, String), (String, u64)> {
    let packages = updates.iter().flat_map(|update| &update.packages);
    let versions = packages.map(|package| format!("{}:{}={}", package.name, package.arch, package.candidate));
    let text = stdout(Command::new("apt-cache").arg("show").args(versions).env("LC_ALL", "C"));
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.is_empty());
    paragraphs
        .map(|paragraph| {
            let field = |name: &str| {
                paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
            };
            let (name, arch) = (field("Package"), field("Architecture"));
            let line = format!("{name} {arch} {} {}\n", field("Version"), field("SHA256"));
            ((name.to_owned(), arch.to_owned()), (line, field("Size").parse().unwrap()))
        })
        .collect()
}

/// Name, both versions and architecture of what is replaced by a line like
/// `Inst libc6:i386 [2.36-9] (2.36-10 Debian:12.1/stable, Debian-Security:12/stable-security [i386]) []`.
fn replaced(line: &str) -> Option<[String; 4]> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" [")?;
    let (installed, rest) = rest.split_once("] (")?;
    let (inner, _) = rest.split_once("])")?;
    let (candidate, arch) = (inner.split_once(' ')?.0, inner.rsplit_once('[')?.1);
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    Some([name, installed, candidate, arch].map(str::to_owned))
}
