//! What `ask.py` answers. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchwarden_protocol::result::ResultReason;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::provider::history::{PastRun, Step};
use crate::provider::rpm::{File, Offers};
use crate::provider::support::{MAX_MESSAGE, broken};
use crate::provider::{Failure, bounded};

/// To `scan`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Scan {
    pub(super) arch: String,
    #[serde(flatten)]
    pub(super) offers: Offers,
    /// Packages installed since the start by such an advisory.
    pub(super) restart_for: Vec<String>,
}

/// To `refresh`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Refreshed {
    pub(super) problems: Vec<String>,
}

/// To `plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Plan {
    pub(super) changes: Vec<File>,
    /// Names of packages that would go and for which no newer or older version comes.
    pub(super) removals: Vec<String>,
    /// Names of packages kept in several versions of which the oldest would go.
    pub(super) oldest: Vec<String>,
    missing: Vec<String>,
    excluded: Vec<String>,
}

/// A package by name, architecture and version.
pub(super) type Exact = (String, String, String);

/// To `repair`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Repair {
    /// What was to come, and is there beside another version.
    pub(super) left: Vec<Exact>,
    /// These other versions.
    pub(super) others: Vec<Exact>,
    /// A repository and what it must not be asked for.
    pub(super) rivals: Vec<(String, String)>,
    /// What dnf would remove beside.
    pub(super) removed: Vec<Exact>,
    /// What else it would change.
    pub(super) more: Vec<String>,
}

/// To `files`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Files {
    pub(super) files: Vec<File>,
}

/// To `download`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Downloaded {
    #[serde(default)]
    pub(super) missing: Vec<String>,
}

/// To `several`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Named {
    pub(super) names: Vec<String>,
}

/// To `history`: the latest transactions, the earliest of them first.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct History {
    transactions: Vec<Transaction>,
}

#[derive(Clone, Debug, Deserialize)]
struct Transaction {
    begin: i64,
    /// 0 while it is at work, and where it was interrupted.
    end: i64,
    /// `name (uid)`; empty where nobody was logged in.
    user: String,
    command: String,
    /// Name, architecture, version, and whether it came.
    items: Vec<(String, String, String, bool)>,
}

impl History {
    pub(super) fn into_runs(self) -> Vec<PastRun> {
        self.transactions.into_iter().filter_map(Transaction::into_run).collect()
    }
}

impl Transaction {
    fn into_run(self) -> Option<PastRun> {
        let Self { begin, end, user, command, items } = self;
        let at = Timestamp::from_second(begin).ok()?;
        let until = if end > 0 { Timestamp::from_second(end).ok()? } else { Timestamp::MAX };
        let mut run = PastRun { until, ..PastRun::new(at, "dnf") };
        run.set_user(&user);
        run.set_command(&command);
        // As in the list of what is installed: one that went and one that came are one change.
        let mut packages: BTreeMap<(&str, &str), [Vec<&str>; 2]> = BTreeMap::new();
        for (name, arch, version, came) in &items {
            packages.entry((name, arch)).or_default()[usize::from(*came)].push(version);
        }
        for ((name, _), [gone, new]) in packages {
            match (gone.as_slice(), new.as_slice()) {
                ([gone], [new]) => run.steps.push(Step::new(name, Some(gone), Some(new))),
                (gone, new) => {
                    run.steps.extend(gone.iter().map(|gone| Step::new(name, Some(gone), None)));
                    run.steps.extend(new.iter().map(|new| Step::new(name, None, Some(new))));
                }
            }
        }
        Some(run)
    }
}

/// No answer has more values: some dozens for each of thousands of updates, or four for each of ten thousands of changes. Each
/// takes some memory beside its text.
const MAX_VALUES: usize = 600_000;

/// Reads an answer, or why there is none.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let unreadable = |error: serde_json::Error| broken(format!("dnf's answer cannot be read: {error}")).general();
    // Each but the first of a list is behind a comma.
    if text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        return Err(broken(format!("dnf's answer has more than {MAX_VALUES} values")).general());
    }
    let value: Value = serde_json::from_str(text).map_err(unreadable)?;
    match value.get("failure") {
        None => serde_json::from_value(value).map_err(unreadable),
        Some(failure) => {
            let word = |key: &str| failure.get(key).and_then(Value::as_str).unwrap_or_default();
            let reason = match word("kind") {
                "download" => ResultReason::DownloadFailed,
                _ => ResultReason::PackageManagerFailed,
            };
            let failure = Failure::new(reason, bounded(word("message").trim(), MAX_MESSAGE));
            Err(if word("kind") == "packages" { failure } else { failure.general() })
        }
    }
}

impl Plan {
    /// Without those that cannot be planned.
    pub(super) fn checked(self) -> Result<Self, Failure> {
        let all = |names: &[String]| bounded(&names.join(", "), MAX_MESSAGE);
        if !self.missing.is_empty() {
            let message = format!("not offered any more: {}", all(&self.missing));
            return Err(Failure::new(ResultReason::Superseded, message));
        }
        if !self.excluded.is_empty() {
            return Err(broken(format!("this machine excludes {}", all(&self.excluded))));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_dnf_made_it() {
        let plan: Plan = read(include_str!("../../../tests/data/dnf/plan.json")).unwrap();
        let changes: Vec<(String, Option<String>, String)> =
            plan.changes.iter().cloned().map(File::into_change).map(|c| (c.name, c.old, c.new)).collect();
        let expected =
            [("pw-eat", Some("1.0-1"), "2.0-1"), ("pw-needs", Some("1.0-1"), "2.0-1"), ("pw-new", None, "1.0-1")];
        assert_eq!(changes, expected.map(|(name, old, new)| (name.into(), old.map(Into::into), new.into())));
        assert_eq!(plan.removals, ["pw-victim"], "an obsolete package goes");
        let artifact = plan.changes[1].clone().into_artifact(true);
        assert_eq!((artifact.file_name.as_str(), artifact.sha256.len()), ("pw-needs-2.0-1.noarch.rpm", 64));
    }

    #[test]
    fn what_is_gone_is_superseded_and_what_is_excluded_is_not_forced() {
        let checked = |text: &str| read::<Plan>(text).and_then(Plan::checked).unwrap_err();
        let gone = checked(r#"{"missing": ["a-2-1.noarch"], "excluded": ["b-2-1.noarch"]}"#);
        assert_eq!(
            (gone.reason, gone.message.as_str()),
            (ResultReason::Superseded, "not offered any more: a-2-1.noarch")
        );
        let excluded = checked(r#"{"missing": [], "excluded": ["b-2-1.noarch"]}"#);
        assert_eq!(excluded.reason, ResultReason::PackageManagerFailed);
        assert!(excluded.message.contains("excludes b-2-1.noarch"));
    }

    #[test]
    fn a_failure_keeps_dnfs_words_and_says_whether_it_is_about_the_packages() {
        let failure = read::<Plan>(r#"{"failure": {"kind": "packages", "message": "\n Problem: conflict"}}"#);
        assert_eq!(failure, Err(broken("Problem: conflict")));
        let other = read::<Plan>(r#"{"failure": {"kind": "other", "message": "no such repository"}}"#);
        assert_eq!(other, Err(broken("no such repository").general()));
        let download =
            read::<Downloaded>(r#"{"failure": {"kind": "download", "message": "all mirrors"}}"#).unwrap_err();
        assert_eq!((download.reason, download.is_general), (ResultReason::DownloadFailed, true));
        for odd in ["", "{", "[]", r#"{"files": 1}"#] {
            assert!(read::<Files>(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_transaction_is_a_run_of_changes() {
        let text = r#"{"transactions": [
            {"begin": 1795856738, "end": 1795856761, "user": "alice (1000)", "command": "install pw-new\u001b[2J", "items": [
                ["pw-new", "noarch", "1.0-1", true], ["pw-b", "noarch", "1.0-1", false], ["pw-b", "noarch", "2.0-1", true],
                ["kernel", "x86_64", "1-1", false], ["kernel", "x86_64", "3-1", true], ["kernel", "x86_64", "4-1", true]]},
            {"begin": 1795856800, "end": 0, "user": "", "command": "", "items": [["pw-b", "noarch", "2.0-1", false]]},
            {"begin": 9223372036854775807, "end": 0, "user": "", "command": "", "items": []}]}"#;
        let runs = read::<History>(text).unwrap().into_runs();
        let expected = [
            Step::new("kernel", Some("1-1"), None),
            Step::new("kernel", None, Some("3-1")),
            Step::new("kernel", None, Some("4-1")),
            Step::new("pw-b", Some("1.0-1"), Some("2.0-1")),
            Step::new("pw-new", None, Some("1.0-1")),
        ];
        assert_eq!((runs.len(), &runs[0].steps[..]), (2, &expected[..]));
        assert_eq!((runs[0].user.as_str(), runs[0].command.as_str()), ("alice (1000)", "install pw-new [2J"));
        assert_eq!(
            (runs[1].until, &runs[1].steps[..]),
            (Timestamp::MAX, &[Step::new("pw-b", Some("2.0-1"), None)][..])
        );
    }
}
