//! What changed among the installed packages from one scan to the next, and by which order, if by one.
//!
//! `changes.jsonl` in the state directory, a line for each scan that found something changed, the latest last; of more than
//! [`MAX_BYTES`] the oldest lines go. The two software lists are compared, whoever changed the machine and by whatever means:
//! so nothing is missed that is still there at the next scan. A line is written before the list that it leads to; what is
//! found again after a crash between the two is not told once more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::{Action, Sequence};
use patchwarden_protocol::report::{Package, Software};
use serde::{Deserialize, Serialize};

use crate::files;

const FILE: &str = "changes.jsonl";

/// Some thousand changed packages.
const MAX_BYTES: usize = 1 << 20;

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    path: PathBuf,
}

/// What one scan found changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Changed {
    /// When the scan found it: it happened before.
    pub(crate) found_at: Timestamp,
    /// Digest of the software list before.
    pub(crate) from: String,
    /// Digest of the software list that it led to.
    pub(crate) to: String,
    /// By name, then architecture.
    pub(crate) packages: Vec<Change>,
}

/// One package that was installed, removed or replaced by another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) arch: String,
    /// The version that is gone, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<String>,
    /// The version that is new, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<String>,
    pub(crate) by: By,
}

/// Who changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum By {
    /// An order that names the package and the version.
    Order(Sequence),
    /// It changed while this order was carried out, which does not name it: what it needs beside, or somebody else.
    BesideOrder(Sequence),
    /// A person or another program.
    SomebodyElse,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Order(sequence) => write!(f, "order {sequence}"),
            Self::BesideOrder(sequence) => write!(f, "beside order {sequence}"),
            Self::SomebodyElse => f.write_str("somebody else"),
        }
    }
}

impl Change {
    /// Whether it is the same change, whoever is said to have made it.
    fn is_same(&self, other: &Self) -> bool {
        let Self { name, arch, before, after, by: _ } = self;
        (name, arch, before, after) == (&other.name, &other.arch, &other.before, &other.after)
    }
}

impl Changes {
    /// The file in a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
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

    /// Writes down what one scan found, but for what the last line says already. A file that cannot be read is kept aside.
    pub(crate) fn note(&self, mut changed: Changed) -> io::Result<()> {
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
        // The list that the last line leads to was not kept.
        if let Some(last) = all.last().filter(|last| last.from == changed.from) {
            changed.packages.retain(|change| !last.packages.iter().any(|told| told.is_same(change)));
        }
        if changed.packages.is_empty() {
            return Ok(());
        }
        all.push(changed);
        let lines: Vec<String> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        files::write_atomic(&self.path, lines_within(&lines, MAX_BYTES).as_bytes(), files::PRIVATE)
    }
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
        for Package { name, arch, version, source: _ } in &software.packages {
            versions.entry((name, arch)).or_default()[side].push(version);
        }
    }
    let mut changes = Vec::new();
    for ((name, arch), [before, after]) in versions {
        let gone: Vec<&str> = before.iter().copied().filter(|version| !after.contains(version)).collect();
        let new: Vec<&str> = after.iter().copied().filter(|version| !before.contains(version)).collect();
        let mut change = |before: Option<&str>, after: Option<&str>| {
            let by = by(order, name, arch, after);
            let [before, after] = [before, after].map(|version| version.map(str::to_owned));
            changes.push(Change { name: name.to_owned(), arch: arch.to_owned(), before, after, by });
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
        (package.name.as_str(), package.arch.as_str(), Some(package.candidate.as_str())) == (name, arch, after)
    });
    if is_named { By::Order(sequence) } else { By::BesideOrder(sequence) }
}

#[cfg(test)]
pub(crate) mod tests {
    use patchwarden_protocol::order::{PackageChange, Verb};

    use super::*;

    fn software(packages: &[(&str, &str)]) -> Software {
        let package = |(name, version): &(&str, &str)| Package {
            name: (*name).into(),
            arch: "amd64".into(),
            version: (*version).into(),
            source: (*name).into(),
        };
        Software { packages: packages.iter().map(package).collect() }
    }

    pub(crate) fn change(name: &str, before: Option<&str>, after: Option<&str>, by: By) -> Change {
        let [before, after] = [before, after].map(|version| version.map(str::to_owned));
        Change { name: name.into(), arch: "amd64".into(), before, after, by }
    }

    fn changed(number: u32) -> Changed {
        let packages = vec![change("bash", Some("1"), Some("2"), By::SomebodyElse)];
        let found_at = Timestamp::from_second(i64::from(number)).unwrap();
        Changed { found_at, from: number.to_string(), to: (number + 1).to_string(), packages }
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
        let changes = Changes::new(place.path());
        assert_eq!(changes.read().unwrap(), []);
        for number in [1, 1, 2] {
            changes.note(changed(number)).unwrap();
        }
        assert_eq!(changes.read().unwrap(), [changed(1), changed(2)]);
        // The agent died before it kept the list, and more has changed meanwhile.
        let more = change("zsh", None, Some("1"), By::SomebodyElse);
        let again =
            Changed { packages: vec![changed(2).packages[0].clone(), more.clone()], to: "9".into(), ..changed(2) };
        changes.note(again.clone()).unwrap();
        let more = Changed { packages: vec![more], ..again };
        assert_eq!(changes.read().unwrap(), [changed(1), changed(2), more.clone()]);
        changes.note(Changed { packages: vec![], ..changed(3) }).unwrap();
        // There and back again is two changes.
        changes.note(changed(1)).unwrap();
        assert_eq!(changes.read().unwrap(), [changed(1), changed(2), more, changed(1)]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_kept_aside() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path());
        for bad in ["{\n", "\u{0}\n", "{\"foundAt\":\"never\"}\n"] {
            std::fs::write(changes.path(), bad).unwrap();
            assert!(changes.read().is_err());
            changes.note(changed(1)).unwrap();
            assert_eq!(changes.read().unwrap(), [changed(1)]);
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
