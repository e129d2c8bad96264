//! What has changed among a device's packages, and who did it: sent by the device until it is recorded, signed by its key.
//!
//! Changes are numbered in the order in which they were found, without gaps, in a *log* that has a random name: whoever
//! keeps them knows by log and number what is kept already, and sees where some are missing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Document;
use crate::order::Sequence;
use crate::report::DeviceRef;

/// At most so many changed packages in one message.
pub const MAX_CHANGES: usize = 256;

/// Longest name, architecture or version of a package, in bytes.
pub const MAX_WORD: usize = 128;

/// Longest name of a user, in bytes.
pub const MAX_USER: usize = 64;

/// Longest command line, in bytes. Longer ones are cut by the device.
pub const MAX_COMMAND: usize = 300;

/// The name of a log: 32 hexadecimal digits.
pub const LOG_NAME: usize = 32;

/// Why changes are refused of which a number is kept as another change: a restored backup counts from an old number on. The
/// device begins a new log then.
pub const NUMBER_REUSED: &str = "NumberReused";

/// Changes that follow each other in one log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Changes {
    /// Whose.
    pub device: DeviceRef,
    /// By number.
    pub changed: Vec<Changed>,
}

impl Document for Changes {
    const TYPE: &'static str = "application/vnd.patchwarden.changes.v1+json";
}

/// What one scan found changed by one run of a package manager, or by what is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Changed {
    /// The log: [`LOG_NAME`] hexadecimal digits. Empty in what an agent wrote down before there were logs.
    #[serde(default)]
    pub log: String,
    /// Number of the first package; the others follow.
    #[serde(default)]
    pub first: u64,
    /// When the scan found it: it happened before.
    pub found_at: Timestamp,
    /// Digest of the software list before.
    pub from: String,
    /// Digest of the software list that it led to.
    pub to: String,
    /// Digest of the order that was carried out meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// What the package manager's own history says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// By name, then architecture.
    pub packages: Vec<Change>,
}

/// One run of a package manager, as its own history on the device tells it. Whoever is root on the device can write there
/// what they like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// When it began.
    pub at: Timestamp,
    /// Whose history: `apt`, `dpkg`, `dnf` or `zypper`.
    pub told_by: String,
    /// Who asked for it: `alice (1000)`. Empty where that is not told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Its command line. Empty where that is not told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
}

/// One package that was installed, removed or replaced by another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    /// Binary package name.
    pub name: String,
    /// Architecture.
    pub arch: String,
    /// The version that is gone, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The version that is new, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Who changed it.
    pub by: By,
}

/// Who changed a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum By {
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

impl Changed {
    /// Number of the last package.
    pub fn last(&self) -> u64 {
        let packages = u64::try_from(self.packages.len()).unwrap_or(u64::MAX);
        self.first.saturating_add(packages).saturating_sub(1)
    }
}

impl Changes {
    /// Whether it is within its limits: one log, numbers without gaps, nothing too long. Names the field that is not.
    pub fn check(&self) -> Result<(), String> {
        let first = self.changed.first().ok_or("changed: is empty")?;
        let is_name = |name: &str| name.len() == LOG_NAME && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_name(&first.log) {
            return Err(format!("changed[0].log: is not {LOG_NAME} hexadecimal digits"));
        }
        let count: usize = self.changed.iter().map(|changed| changed.packages.len()).sum();
        if count > MAX_CHANGES {
            return Err(format!("changed: {count} packages, at most {MAX_CHANGES} are allowed"));
        }
        let mut next = first.first.max(1);
        for (index, changed) in self.changed.iter().enumerate() {
            let field = |name: &str| format!("changed[{index}].{name}");
            if changed.log != first.log {
                return Err(format!("{}: is another log than that of changed[0]", field("log")));
            }
            // RFC 8785 writes numbers as IEEE 754 doubles.
            if changed.first != next || changed.last() > 1 << 53 {
                return Err(format!("{}: is {}, and {next} follows", field("first"), changed.first));
            }
            if changed.packages.is_empty() {
                return Err(format!("{}: is empty", field("packages")));
            }
            next = changed.last() + 1;
            changed.check_words().map_err(|(name, max)| {
                format!("{}: is longer than {max} bytes, or has a NUL character", field(&name))
            })?;
        }
        Ok(())
    }
}

impl Changed {
    fn check_words(&self) -> Result<(), (String, usize)> {
        let Self { log: _, first: _, found_at: _, from, to, order, run, packages } = self;
        let within = |name: &str, text: &str, max| {
            // No database that keeps it takes a NUL.
            if text.len() <= max && !text.contains('\0') { Ok(()) } else { Err((name.to_owned(), max)) }
        };
        for (name, text) in [("from", Some(from)), ("to", Some(to)), ("order", order.as_ref())] {
            within(name, text.map_or("", String::as_str), MAX_WORD)?;
        }
        if let Some(Run { at: _, told_by, user, command }) = run {
            within("run.toldBy", told_by, MAX_WORD)?;
            within("run.user", user, MAX_USER)?;
            within("run.command", command, MAX_COMMAND)?;
        }
        for (index, Change { name, arch, before, after, by: _ }) in packages.iter().enumerate() {
            let words =
                [("name", Some(name)), ("arch", Some(arch)), ("before", before.as_ref()), ("after", after.as_ref())];
            for (field, text) in words {
                within(&format!("packages[{index}].{field}"), text.map_or("", String::as_str), MAX_WORD)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(first: u64, packages: usize) -> Changed {
        let change = Change {
            name: "bash".into(),
            arch: "amd64".into(),
            before: None,
            after: Some("1".into()),
            by: By::SomebodyElse,
        };
        let run = Run {
            at: Timestamp::UNIX_EPOCH,
            told_by: "apt".into(),
            user: "alice (1000)".into(),
            command: "apt-get install bash".into(),
        };
        Changed {
            log: "0".repeat(LOG_NAME),
            first,
            found_at: Timestamp::UNIX_EPOCH,
            from: "sha256:a".into(),
            to: "sha256:b".into(),
            order: None,
            run: Some(run),
            packages: vec![change; packages],
        }
    }

    fn check(changed: Vec<Changed>) -> Result<(), String> {
        Changes { device: DeviceRef { namespace: "acme".into(), name: "web".into() }, changed }.check()
    }

    #[test]
    fn numbers_follow_each_other_in_one_log_and_nothing_is_too_long() {
        assert_eq!(check(vec![changed(3, 2), changed(5, 1)]), Ok(()));
        assert_eq!(check(vec![changed(1, MAX_CHANGES)]), Ok(()));
        let spoilt = |spoil: fn(&mut Vec<Changed>)| {
            let mut all = vec![changed(3, 2), changed(5, 1)];
            spoil(&mut all);
            check(all).unwrap_err()
        };
        for (spoil, words) in [
            ((|all| all.clear()) as fn(&mut Vec<Changed>), "changed: is empty"),
            (|all| all[0].first = 0, "changed[0].first: is 0, and 1 follows"),
            (|all| all[1].first = 6, "changed[1].first: is 6, and 5 follows"),
            (|all| all[1].first = 4, "changed[1].first: is 4"),
            (|all| all.iter_mut().for_each(|one| one.first += 1 << 53), "changed[0].first"),
            (|all| all[0].packages.clear(), "changed[0].packages: is empty"),
            (|all| all[0].log = "x".repeat(LOG_NAME), "changed[0].log: is not 32"),
            (|all| all[1].log = "1".repeat(LOG_NAME), "changed[1].log: is another"),
            (|all| all[1].packages = changed(1, MAX_CHANGES).packages, "at most 256"),
            (|all| all[1].from = "x".repeat(129), "changed[1].from: is longer than 128"),
            (|all| all[1].from = "\0".into(), "changed[1].from: is longer than 128 bytes, or has a NUL"),
            (|all| all[1].order = Some("x".repeat(129)), "changed[1].order"),
            (|all| all[0].run.as_mut().unwrap().told_by = "x".repeat(129), "changed[0].run.toldBy"),
            (|all| all[0].run.as_mut().unwrap().user = "x".repeat(65), "changed[0].run.user"),
            (|all| all[0].run.as_mut().unwrap().command = "x".repeat(301), "changed[0].run.command"),
            (|all| all[0].packages[1].name = "x".repeat(129), "changed[0].packages[1].name"),
            (|all| all[0].packages[1].before = Some("x".repeat(129)), "changed[0].packages[1].before"),
        ] {
            let error = spoilt(spoil);
            assert!(error.contains(words), "{error}: {words}");
        }
    }
}
