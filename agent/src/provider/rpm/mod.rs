//! What every package manager on top of rpm shares: the database, the order of versions, restarts, what an update is.

mod database;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod restart;
mod updates;
mod words;

pub(super) use database::{Row, all_rows, interrupted_by, providing, rows_of};
pub(super) use patchwarden_protocol::versions::rpm::compare;
pub(super) use restart::{goes_back, is_kernel, needs_restart, restart};
pub(super) use updates::{Advisory, File, Offered, Offers, updates};
pub(super) use words::{error_lines, is_about, is_disk_full, remarks};

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode};

use super::support::{PATH, is_locked};
use super::{Artifact, Change, CommandLine, Environment, Failure, Installed, Space, bounded, words};

/// Where the lock of a running transaction is: below either of the database's places (`%_dbpath`).
pub(super) const LOCKS: [&str; 2] = ["/var/lib/rpm/.rpm.lock", "/usr/lib/sysimage/rpm/.rpm.lock"];

/// The database's files, in all its formats. Only what a transaction changes: reading touches the `-shm` file, too.
pub(super) const DATABASES: [&str; 7] = [
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite-wal",
    "/var/lib/rpm/Packages",
    "/var/lib/rpm/Packages.db",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
    "/usr/lib/sysimage/rpm/Packages.db",
];

/// Fixed variables: parsing depends on the language, and an alias of dnf's could make another command of what it is told.
pub(super) fn environment() -> Environment {
    vec![("LC_ALL", "C".into()), ("HOME", "/root".into()), ("PATH", PATH.into()), ("DNF_DISABLE_ALIASES", "1".into())]
}

/// Whether a transaction runs.
pub(super) fn is_busy() -> Result<bool, Failure> {
    for path in LOCKS {
        if is_locked(path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Packages, by name and architecture, that are there in several versions. A transaction that was interrupted leaves
/// them: rpm removes the old version after all new ones are there.
pub(super) fn doubled(rows: &[Row]) -> BTreeSet<(&str, &str)> {
    let mut seen = BTreeSet::new();
    rows.iter().map(|row| (row.name.as_str(), row.arch.as_str())).filter(|key| !seen.insert(*key)).collect()
}

/// What was left in two versions, with what completes it.
pub(super) fn doubled_problem(unfinished: &BTreeSet<(String, String)>, remedy: &str) -> Option<Problem> {
    let names: Vec<String> = unfinished.iter().map(|(name, arch)| format!("{name}.{arch}")).collect();
    (!names.is_empty()).then(|| Problem {
        code: ProblemCode::PackageManagerBroken,
        message: bounded(
            &format!("an interrupted transaction left two versions of {}; {remedy}", names.join(", ")),
            300,
        ),
    })
}

/// What takes the rest of `removals` away, once all of `packages` have come: rpm removes what is to go last. It takes nothing else with
/// it, and refuses what another package needs.
pub(super) async fn removal_of_the_rest(
    packages: &[PackageChange],
    removals: &[PackageChange],
) -> Result<Vec<CommandLine>, Failure> {
    let names: Vec<&str> = packages.iter().chain(removals).map(|package| package.name.as_str()).collect();
    let rows = match removals {
        [] => return Ok(Vec::new()),
        _ => rows_of(&names).await?,
    };
    Ok(erasure(packages, removals, &rows).into_iter().collect())
}

fn erasure(packages: &[PackageChange], removals: &[PackageChange], rows: &[Row]) -> Option<CommandLine> {
    let is_there = |package: &PackageChange, version: &str| {
        rows.iter().any(|row| (&row.name, &row.arch, row.version.as_str()) == (&package.name, &package.arch, version))
    };
    let left: Vec<&PackageChange> = removals.iter().filter(|gone| is_there(gone, &gone.installed)).collect();
    if left.is_empty() || !packages.iter().all(|package| is_there(package, &package.candidate)) {
        return None;
    }
    let mut line = CommandLine { words: words(["/usr/bin/rpm", "--erase"]), environment: environment() };
    // A label has no epoch (rpm(8)).
    let label = |gone: &PackageChange| {
        let version = gone.installed.split_once(':').map_or(gone.installed.as_str(), |(_, bare)| bare);
        format!("{}-{version}.{}", gone.name, gone.arch)
    };
    line.words.extend(left.into_iter().map(|gone| label(gone).into()));
    Some(line)
}

/// The room that `new` needs.
pub(super) async fn space(new: Vec<File>, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
    let names: Vec<&str> = changes.iter().filter(|c| c.old.is_some()).map(|c| c.name.as_str()).collect();
    let old: BTreeMap<(String, String), u64> =
        newest(rows_of(&names).await?).into_iter().map(|row| ((row.name, row.arch), row.size)).collect();
    let (mut growth, mut largest) = (0_u64, 0);
    for file in new {
        let before = old.get(&(file.name, file.arch)).copied().unwrap_or_default();
        growth = growth.saturating_add(file.unpacked.saturating_sub(before));
        // What it has grown by is counted already.
        largest = largest.max(file.unpacked.min(before));
    }
    let download = artifacts.iter().map(|artifact| artifact.size).sum();
    Ok(Space { download, unpacked: growth.saturating_add(largest) })
}

/// The newest version of each, which is whole unless it is one of `unfinished`.
pub(super) fn installed(rows: Vec<Row>, unfinished: &BTreeSet<(String, String)>) -> Vec<Installed> {
    newest(rows)
        .into_iter()
        .map(|Row { name, arch, version, source, .. }| {
            let complete = !unfinished.contains(&(name.clone(), arch.clone()));
            Installed { name, arch, version, source: source_name(&source).to_owned(), complete }
        })
        .collect()
}

/// Of several versions of one package the newest, by name: several kernels are there beside each other.
///
/// rpm's order is none that could be sorted by: `1.0` is as new as `1.0-1`, and as `1.0-2`, which is newer.
pub(super) fn newest(rows: Vec<Row>) -> Vec<Row> {
    let mut newest: BTreeMap<(String, String), Row> = BTreeMap::new();
    for row in rows {
        match newest.entry((row.name.clone(), row.arch.clone())) {
            Entry::Vacant(first) => drop(first.insert(row)),
            Entry::Occupied(mut known) if compare(&row.version, &known.get().version).is_gt() => {
                known.insert(row);
            }
            Entry::Occupied(_) => {}
        }
    }
    newest.into_values().collect()
}

/// `bash` of `bash-5.1.8-9.el9.src.rpm`.
pub(super) fn source_name(file: &str) -> &str {
    source_parts(file).map_or("", |(name, _)| name)
}

/// `bash` and `5.1.8-9.el9` of `bash-5.1.8-9.el9.src.rpm`.
pub(super) fn source_parts(file: &str) -> Option<(&str, &str)> {
    let bare = file.strip_suffix(".src.rpm").or_else(|| file.strip_suffix(".nosrc.rpm"))?;
    let (release, _) = bare.rmatch_indices('-').next()?;
    let (version, _) = bare[..release].rmatch_indices('-').next()?;
    Some((&bare[..version], &bare[version + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, arch: &str, version: &str) -> Row {
        Row {
            name: name.into(),
            arch: arch.into(),
            version: version.into(),
            source: format!("{name}-{version}.src.rpm"),
            installed_at: 0,
            size: 1,
        }
    }

    #[test]
    fn the_newest_of_several_versions_counts_and_what_is_doubled_is_known() {
        let rows = vec![
            row("k", "x86_64", "5.14.0-9"),
            row("k", "x86_64", "5.14.0-10"),
            row("a", "noarch", "1-1"),
            row("k", "i686", "6.0-1"),
        ];
        assert_eq!(doubled(&rows), BTreeSet::from([("k", "x86_64")]));
        let found = installed(rows.clone(), &BTreeSet::from([("k".to_owned(), "x86_64".to_owned())]));
        let versions: Vec<(&str, &str, bool)> =
            found.iter().map(|row| (row.name.as_str(), row.version.as_str(), row.complete)).collect();
        assert_eq!(versions, [("a", "1-1", true), ("k", "6.0-1", true), ("k", "5.14.0-10", false)]);
        assert_eq!(found[1].source, "k");
    }

    #[test]
    fn what_was_to_go_is_removed_once_all_has_come() {
        let change = |name: &str, installed: &str, candidate: &str| PackageChange {
            name: name.into(),
            arch: "noarch".into(),
            installed: installed.into(),
            candidate: candidate.into(),
        };
        let (packages, removals) = ([change("a", "1-1", "2-1")], [change("x", "3:1-1", ""), change("y", "1-1", "")]);
        let command = |rows: &[Row]| {
            let line = erasure(&packages, &removals, rows)?;
            Some(line.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
        };
        let there = |name: &str, version: &str| row(name, "noarch", version);
        let all = [there("a", "2-1"), there("x", "3:1-1"), there("y", "2-1")];
        assert_eq!(command(&all).as_deref(), Some("/usr/bin/rpm --erase x-1-1.noarch"));
        assert_eq!(command(&[there("a", "1-1"), there("x", "3:1-1")]), None, "it has not come");
        assert_eq!(command(&[there("a", "2-1")]), None, "it is gone");
    }

    /// What cannot be sorted: a sort would have ended the agent.
    #[test]
    fn versions_of_which_some_have_no_release_have_a_newest_one_too() {
        let versions: Vec<String> =
            (0..60).map(|at| if at % 3 == 0 { "1.0".to_owned() } else { format!("1.0-{}", at * 7 % 60) }).collect();
        let rows = |versions: &[String]| versions.iter().map(|it| row("k", "x86_64", it)).collect();
        let found = newest(rows(&versions));
        assert_eq!(found.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["k"]);
        assert!(newest(rows(&versions[1..3])).iter().all(|row| row.version == "1.0-14"));
    }

    #[test]
    fn a_source_package_is_read_from_its_file_name() {
        assert_eq!(source_parts("bash-5.1.8-9.el9.src.rpm"), Some(("bash", "5.1.8-9.el9")));
        assert_eq!(source_parts("java-17-openjdk-17.0.1-1.nosrc.rpm"), Some(("java-17-openjdk", "17.0.1-1")));
        for odd in ["", "(none)", "x.src.rpm", "x-1.src.rpm", "bash-5.1.8-9.x86_64.rpm"] {
            assert_eq!(source_parts(odd), None, "{odd}");
        }
    }
}
