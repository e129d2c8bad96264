//! What is offered, from what zypper lists, what the repositories' indexes say, and what is installed. Pure.

use std::collections::BTreeSet;

use super::answer::Version;
use super::ask::Listed;
use super::index::{Index, Notice, chosen};
use crate::provider::rpm::{self, Advisory, File, Offered, Offers, Row};

/// Everything that is offered; what no index describes is offered without a checksum.
pub(super) fn offers(listed: &Listed, rows: &[Row], index: &Index) -> Offers {
    let newest = rpm::newest(rows.to_vec());
    let all = listed.offered.iter().map(|version| (version, false));
    let all = all.chain(listed.locked.iter().map(|version| (version, true)));
    let mut seen = BTreeSet::new();
    let mut updates = Vec::new();
    let mut passed_by: Vec<&Notice> = Vec::new();
    for (version, held) in all {
        let Some(old) = predecessor(&newest, version) else { continue };
        if !seen.insert((&version.name, &version.arch)) || !rpm::compare(&version.version, &old.version).is_gt() {
            continue;
        }
        let file = match chosen(&index.entries, version) {
            Some(entry) => entry.file,
            None => unknown(version, old),
        };
        // What the versions between the installed one and this one fix is fixed by this one, too.
        let passed: Vec<&Notice> = index.notices.iter().filter(|n| brings(n, version, Some(&old.version))).collect();
        updates.push(Offered {
            advisories: ids(index.notices.iter().filter(|notice| brings(notice, version, None))),
            passed: ids(passed.iter().copied()),
            file: File { old: Some(old.version.clone()), ..file },
            held,
        });
        passed_by.extend(passed);
    }
    let mut advisories: Vec<Advisory> = passed_by.iter().map(|notice| notice.advisory.clone()).collect();
    advisories.sort_by(|a, b| a.id.cmp(&b.id));
    advisories.dedup_by(|a, b| a.id == b.id);
    Offers {
        updates,
        advisories,
        rebooting: ids(passed_by.into_iter().filter(|notice| notice.reboots)),
        problems: Vec::new(),
        is_unadvised: false,
    }
}

/// Names of packages that came after the start with an advisory that suggests a restart.
pub(super) fn restart_for(rows: &[Row], index: &Index, booted_at: i64) -> Vec<String> {
    let suggests = |row: &&Row| {
        let version = Version { name: row.name.clone(), arch: row.arch.clone(), version: row.version.clone() };
        index.notices.iter().any(|notice| notice.reboots && brings(notice, &version, None))
    };
    rows.iter().filter(|row| row.installed_at > booted_at).filter(suggests).map(|row| row.name.clone()).collect()
}

/// Whether the advisory is about exactly this version, or with `from` about one later than that and not later than this.
fn brings(notice: &Notice, version: &Version, from: Option<&String>) -> bool {
    notice.packages.iter().any(|package| {
        (&package.name, &package.arch) == (&version.name, &version.arch)
            && match from {
                None => rpm::compare(&package.version, &version.version).is_eq(),
                Some(from) => {
                    rpm::compare(&package.version, from).is_gt()
                        && rpm::compare(&package.version, &version.version).is_le()
                }
            }
    })
}

/// The newest installed package that this one is a newer or an older version of.
pub(super) fn predecessor<'a>(newest: &'a [Row], version: &Version) -> Option<&'a Row> {
    let mut same = newest.iter().filter(|row| row.name == version.name);
    newest
        .iter()
        .find(|row| (&row.name, &row.arch) == (&version.name, &version.arch))
        .or_else(|| same.next().filter(|_| same.next().is_none()))
}

/// What is installed was built from the same source, as far as is known.
fn unknown(version: &Version, old: &Row) -> File {
    let Version { name, arch, version } = version.clone();
    let source = match rpm::source_name(&old.source) {
        "" => String::new(),
        source => format!("{source}-{}.src.rpm", version.split_once(':').map_or(version.as_str(), |(_, bare)| bare)),
    };
    File {
        name,
        arch,
        version,
        source,
        repository: String::new(),
        sha256: String::new(),
        size: 0,
        unpacked: 0,
        base_name: String::new(),
        local: None,
        old: None,
        restarts: false,
        rivals: Vec::new(),
    }
}

fn ids<'a>(notices: impl Iterator<Item = &'a Notice>) -> Vec<String> {
    let ids: BTreeSet<&str> = notices.map(|notice| notice.advisory.id.as_str()).collect();
    ids.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::zypper::index::Entry;

    fn version(name: &str, version: &str) -> Version {
        Version { name: name.into(), arch: "noarch".into(), version: version.into() }
    }

    fn row(name: &str, version: &str, installed_at: i64) -> Row {
        Row {
            name: name.into(),
            arch: "noarch".into(),
            version: version.into(),
            source: format!("{name}-{version}.src.rpm"),
            installed_at,
            size: 1,
        }
    }

    fn notice(id: &str, packages: &[Version], reboots: bool) -> Notice {
        let advisory = Advisory {
            id: id.into(),
            kind: "security".into(),
            severity: "low".into(),
            title: String::new(),
            updated: 0,
            cves: vec![],
        };
        Notice { advisory, packages: packages.to_vec(), reboots }
    }

    #[test]
    fn advisories_count_from_the_installed_version_to_the_offered_one() {
        let listed = Listed {
            offered: vec![version("a", "3-1"), version("gone", "2-1"), version("old", "1-1")],
            locked: vec![version("b", "1:2-1"), version("a", "3-1")],
            problem: None,
        };
        let rows = [row("a", "1-1", 0), row("b", "1:1-1", 0), row("old", "2-1", 0)];
        let notices = vec![
            notice("before", &[version("a", "1-1")], true),
            notice("between", &[version("a", "2-1"), version("x", "1")], true),
            notice("own", &[version("a", "3-1")], false),
            notice("after", &[version("a", "3.1-1")], true),
        ];
        let file = unknown(&version("a", "3-1"), &rows[0]);
        let entry = Entry { file: rpm::File { sha256: "00".into(), ..file }, place: "a.rpm".into(), priority: 99 };
        let offers = offers(&listed, &rows, &Index { entries: vec![entry], notices });
        let found: Vec<(&str, bool, &str)> = offers
            .updates
            .iter()
            .map(|offered| (offered.file.name.as_str(), offered.held, offered.file.old.as_deref().unwrap()))
            .collect();
        assert_eq!(found, [("a", false, "1-1"), ("b", true, "1:1-1")]);
        assert_eq!(
            (offers.updates[0].advisories.as_slice(), offers.updates[0].passed.len()),
            (&["own".to_owned()][..], 2)
        );
        assert_eq!((offers.updates[0].file.sha256.as_str(), offers.updates[1].file.sha256.as_str()), ("00", ""));
        assert_eq!(offers.updates[1].file.source, "b-2-1.src.rpm", "what no index describes is told all the same");
        assert_eq!((offers.rebooting.as_slice(), offers.advisories.len()), (&["between".to_owned()][..], 2));
    }

    #[test]
    fn what_came_after_the_start_by_an_advisory_that_suggests_it_needs_a_restart() {
        let notices = vec![
            notice("r", &[version("a", "2-1"), version("b", "2-1")], true),
            notice("n", &[version("c", "2-1")], false),
        ];
        let rows = [row("a", "2-1", 11), row("b", "2-1", 9), row("c", "2-1", 11), row("a", "1-1", 12)];
        assert_eq!(restart_for(&rows, &Index { entries: vec![], notices }, 10), ["a"]);
    }
}
