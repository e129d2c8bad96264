//! What changed among the installed packages from one scan to the next, and who did it.
//!
//! `changes.jsonl` in the state directory, a line for each run of a package manager that a scan found to have changed something
//! ([`trail`]), the latest last; of more than [`MAX_BYTES`] the oldest lines go. The two software lists are compared, whoever changed
//! the machine and by whatever means: so nothing is missed that is still there at the next scan. A line is written before the list
//! that it leads to; what is found again after a crash between the two is not told once more. What the gateway has not recorded
//! yet is sent from here ([`outbox`]).

mod outbox;
mod trail;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
pub(crate) use patchwarden_protocol::changes::{By, Change, Changed};
use patchwarden_protocol::changes::{MAX_WORD, Run};
use patchwarden_protocol::order::{Action, Sequence};
use patchwarden_protocol::report::{Package, Software};

use crate::files;
use crate::provider::{PastRun, bounded};

const FILE: &str = "changes.jsonl";

/// Some thousand changed packages.
const MAX_BYTES: usize = 1 << 20;

/// The file, and how much of it is recorded.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    path: PathBuf,
    recorded: PathBuf,
    /// Users and command lines are left out.
    is_impersonal: bool,
}

/// What one scan found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// When.
    pub(crate) at: Timestamp,
    /// Digest of the software list before.
    pub(crate) from: String,
    /// Digest of the software list that it led to.
    pub(crate) to: String,
    /// Digest and directory of the order that is carried out.
    pub(crate) order: Option<(String, PathBuf)>,
    /// What differs.
    pub(crate) changes: Vec<Change>,
    /// What the package manager's history says, the earliest run first.
    pub(crate) runs: Vec<PastRun>,
}

impl Changes {
    /// The file in a state directory.
    pub(crate) fn new(state: &Path, is_impersonal: bool) -> Self {
        Self { path: state.join(FILE), recorded: state.join(outbox::FILE), is_impersonal }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is written down, the latest last.
    pub(crate) fn read(&self) -> io::Result<Vec<Changed>> {
        let bytes = files::read_if_exists(&self.path)?.unwrap_or_default();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
    }

    /// Writes down what one scan found, but for what the last lines say already. A file that cannot be read is kept aside.
    pub(crate) fn note(&self, found: Found) -> io::Result<()> {
        let mut all = match self.read() {
            Ok(all) => all,
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                let aside = self.path.with_extension("unreadable");
                tracing::warn!("{}: {error}: it is kept as {}", self.path.display(), aside.display());
                std::fs::rename(&self.path, aside)?;
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let Found { at, from, to, order, mut changes, runs } = found;
        // The list that the last lines lead to was not kept.
        let told: Vec<&Change> =
            all.iter().rev().take_while(|last| last.from == from).flat_map(|last| &last.packages).collect();
        let (order, place) = order.unzip();
        let place = place.map(|place| place.display().to_string());
        let is_new = |change: &Change| !told.iter().any(|told| is_same(told, change));
        // One that was told in steps, or is part of one that was.
        changes.retain(is_new);
        let mut new: Vec<(Option<Run>, Vec<Change>)> = trail::attributed(changes, &runs, place.as_deref());
        for (_, packages) in &mut new {
            packages.retain(is_new);
        }
        new.retain(|(_, packages)| !packages.is_empty());
        if new.is_empty() {
            return Ok(());
        }
        for (run, packages) in new {
            let run = run.map(|run| if self.is_impersonal { without_people(run) } else { run });
            let (log, first) = outbox::next(all.last());
            let (from, to, order) = (from.clone(), to.clone(), order.clone());
            all.push(Changed { log, first, found_at: at, from, to, order, run, packages });
        }
        self.write(&all)
    }

    fn write(&self, all: &[Changed]) -> io::Result<()> {
        let lines: Vec<String> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        files::write_atomic(&self.path, lines_within(&lines, MAX_BYTES).as_bytes(), files::PRIVATE)
    }
}

/// Whether it is the same change, whoever is said to have made it.
fn is_same(change: &Change, other: &Change) -> bool {
    let Change { name, arch, before, after, by: _ } = change;
    (name, arch, before, after) == (&other.name, &other.arch, &other.before, &other.after)
}

/// Names of users and command lines are personal data.
fn without_people(run: Run) -> Run {
    Run { user: String::new(), command: String::new(), ..run }
}

/// The latest of the lines, and at least one.
fn lines_within(lines: &[String], limit: usize) -> String {
    let mut bytes = 0;
    let kept = lines.iter().rev().take_while(|line| {
        let is_first = bytes == 0;
        bytes += line.len() + 1;
        is_first || bytes <= limit
    });
    let kept = kept.count();
    lines[lines.len() - kept..].iter().flat_map(|line| [line, "\n"]).collect()
}

/// What differs, by name, then architecture. `order` is the one that is carried out, and what it is to do.
pub(crate) fn differences(before: &Software, after: &Software, order: Option<(Sequence, &[Action])>) -> Vec<Change> {
    let mut versions: BTreeMap<(&str, &str), [Vec<&str>; 2]> = BTreeMap::new();
    for (side, software) in [before, after].into_iter().enumerate() {
        for Package { name, arch, version, .. } in &software.packages {
            versions.entry((name, arch)).or_default()[side].push(version);
        }
    }
    let mut changes = Vec::new();
    for ((name, arch), [before, after]) in versions {
        let gone: Vec<&str> = before.iter().copied().filter(|version| !after.contains(version)).collect();
        let new: Vec<&str> = after.iter().copied().filter(|version| !before.contains(version)).collect();
        let mut change = |before: Option<&str>, after: Option<&str>| {
            let by = by(order, name, arch, after);
            let word = |text: &str| bounded(text, MAX_WORD);
            let [before, after] = [before, after].map(|version| version.map(word));
            changes.push(Change { name: word(name), arch: word(arch), before, after, by });
        };
        match (gone.as_slice(), new.as_slice()) {
            ([gone], [new]) => change(Some(gone), Some(new)),
            // Several versions side by side, as kernels are.
            (gone, new) => {
                for version in gone {
                    change(Some(version), None);
                }
                for version in new {
                    change(None, Some(version));
                }
            }
        }
    }
    changes
}

fn by(order: Option<(Sequence, &[Action])>, name: &str, arch: &str, after: Option<&str>) -> By {
    let Some((sequence, actions)) = order else { return By::SomebodyElse };
    let is_named = actions.iter().flat_map(|action| &action.packages).any(|package| {
        // What is ordered away has no version afterwards.
        (package.name.as_str(), package.arch.as_str(), package.candidate.as_str())
            == (name, arch, after.unwrap_or_default())
    });
    if is_named { By::Order(sequence) } else { By::BesideOrder(sequence) }
}

#[cfg(test)]
pub(crate) mod tests {
    use patchwarden_protocol::order::{PackageChange, Verb};

    use super::*;
    use crate::provider::Step;

    fn software(packages: &[(&str, &str)]) -> Software {
        let package = |(name, version): &(&str, &str)| Package {
            name: (*name).into(),
            arch: "amd64".into(),
            version: (*version).into(),
            source: (*name).into(),
            source_version: None,
        };
        Software { packages: packages.iter().map(package).collect() }
    }

    pub(crate) fn change(name: &str, before: Option<&str>, after: Option<&str>, by: By) -> Change {
        let [before, after] = [before, after].map(|version| version.map(str::to_owned));
        Change { name: name.into(), arch: "amd64".into(), before, after, by }
    }

    fn changed(number: u32, changes: Vec<Change>) -> Found {
        Found {
            at: Timestamp::from_second(i64::from(number)).unwrap(),
            from: number.to_string(),
            to: (number + 1).to_string(),
            order: None,
            changes,
            runs: vec![],
        }
    }

    fn bash() -> Vec<Change> {
        vec![change("bash", Some("1"), Some("2"), By::SomebodyElse)]
    }

    /// From which list it came, its number, and what changed.
    fn lines(changes: &Changes) -> Vec<(String, u64, Vec<Change>)> {
        changes.read().unwrap().into_iter().map(|line| (line.from, line.first, line.packages)).collect()
    }

    #[test]
    fn what_came_went_and_was_replaced_is_told_with_who_did_it() {
        let before =
            software(&[("bash", "1"), ("gone", "1"), ("kernel", "1"), ("kernel", "2"), ("libc", "1"), ("same", "1")]);
        let after = software(&[
            ("bash", "2"),
            ("kernel", "2"),
            ("kernel", "3"),
            ("kernel", "4"),
            ("libc", "2"),
            ("new", "1"),
            ("same", "1"),
        ]);
        let by = By::SomebodyElse;
        let expected = [
            change("bash", Some("1"), Some("2"), by),
            change("gone", Some("1"), None, by),
            change("kernel", Some("1"), None, by),
            change("kernel", None, Some("3"), by),
            change("kernel", None, Some("4"), by),
            change("libc", Some("1"), Some("2"), by),
            change("new", None, Some("1"), by),
        ];
        assert_eq!(differences(&before, &after, None), expected);
        let package = |name: &str, candidate: &str| PackageChange {
            name: name.into(),
            arch: "amd64".into(),
            installed: "1".into(),
            candidate: candidate.into(),
        };
        let packages = vec![package("bash", "2"), package("libc", "3"), package("gone", "2")];
        let action = Action { update: "u".into(), verb: Verb::Install, packages, artifacts_digest: String::new() };
        let sequence = Sequence { epoch: 1, number: 7 };
        let found = differences(&before, &after, Some((sequence, &[action])));
        let by: Vec<By> = found.into_iter().map(|change| change.by).collect();
        let beside = By::BesideOrder(sequence);
        assert_eq!(by[..2], [By::Order(sequence), beside]);
        assert!(by[2..].iter().all(|by| *by == beside), "libc is at another version than the order's: {by:?}");
        assert_eq!(differences(&before, &before, None), []);
    }

    #[test]
    fn what_is_written_down_is_read_again_and_not_written_twice() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        assert_eq!(changes.read().unwrap(), []);
        for number in [1, 1, 2] {
            changes.note(changed(number, bash())).unwrap();
        }
        let first = [("1".to_owned(), 1, bash()), ("2".to_owned(), 2, bash())];
        assert_eq!(lines(&changes), first);
        // The agent died before it kept the list, and more has changed meanwhile.
        let more = change("zsh", None, Some("1"), By::SomebodyElse);
        let again = Found { to: "9".into(), ..changed(2, [bash(), vec![more.clone()]].concat()) };
        changes.note(again).unwrap();
        let second = ("2".to_owned(), 3, vec![more]);
        assert_eq!(lines(&changes), [&first[..], std::slice::from_ref(&second)].concat());
        changes.note(changed(3, vec![])).unwrap();
        // There and back again is two changes.
        changes.note(changed(1, bash())).unwrap();
        assert_eq!(lines(&changes), [&first[..], &[second, ("1".to_owned(), 4, bash())]].concat());
    }

    #[test]
    fn what_was_told_step_by_step_is_not_told_once_more() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        let run = |second: i64, before: &str, after: &str| PastRun {
            at: Timestamp::from_second(second).unwrap(),
            until: Timestamp::from_second(second).unwrap(),
            told_by: "apt",
            user: "alice (1000)".into(),
            command: format!("apt install bash={after}"),
            steps: vec![Step {
                name: "bash".into(),
                before: Some(before.into()),
                is_before_told: true,
                after: Some(after.into()),
            }],
        };
        let found = |to: &str, runs| Found {
            runs,
            order: Some(("sha256:order".into(), PathBuf::from("/state/orders/1-1"))),
            ..changed(1, vec![change("bash", Some("1"), Some(to), By::SomebodyElse)])
        };
        let runs = vec![run(1, "1", "2"), run(2, "2", "3"), run(3, "3", "4")];
        changes.note(found("3", runs[..2].to_vec())).unwrap();
        let told = changes.read().unwrap();
        assert_eq!((told.len(), told[1].first), (2, 2));
        assert_eq!(told[0].order.as_deref(), Some("sha256:order"));
        assert_eq!(told[0].run.as_ref().unwrap().command, "apt install bash=2");
        changes.note(found("3", runs[..2].to_vec())).unwrap();
        assert_eq!(changes.read().unwrap(), told);
        changes.note(found("4", runs)).unwrap();
        let told = lines(&changes);
        assert_eq!(told[2].2, [change("bash", Some("3"), Some("4"), By::SomebodyElse)], "{told:?}");
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn where_no_personal_data_is_to_be_told_there_is_none() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), true);
        let at = Timestamp::from_second(1).unwrap();
        let steps =
            vec![Step { name: "bash".into(), before: Some("1".into()), is_before_told: true, after: Some("2".into()) }];
        let run = PastRun { at, until: at, told_by: "apt", user: "alice".into(), command: "apt".into(), steps };
        changes.note(Found { runs: vec![run], ..changed(1, bash()) }).unwrap();
        let run = changes.read().unwrap()[0].run.clone().unwrap();
        assert_eq!(run, Run { at, told_by: "apt".into(), user: String::new(), command: String::new() });
    }

    #[test]
    fn a_file_that_cannot_be_read_is_kept_aside() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        for bad in ["{\n", "\u{0}\n", "{\"foundAt\":\"never\"}\n"] {
            std::fs::write(changes.path(), bad).unwrap();
            assert!(changes.read().is_err() && changes.pending().is_err());
            changes.note(changed(1, bash())).unwrap();
            assert_eq!(lines(&changes), [("1".to_owned(), 1, bash())]);
            assert_eq!(std::fs::read_to_string(place.path().join("changes.unreadable")).unwrap(), bad);
        }
    }

    #[test]
    fn the_oldest_lines_go() {
        let lines = ["1111", "22", "33"].map(str::to_owned);
        assert_eq!(lines_within(&lines, 11), "1111\n22\n33\n");
        assert_eq!(lines_within(&lines, 10), "22\n33\n");
        assert_eq!(lines_within(&lines, 5), "33\n");
        assert_eq!(lines_within(&lines, 0), "33\n", "the latest stays");
        assert_eq!(lines_within(&[], 10), "");
    }
}
