//! Why an install did not do what was ordered, by what zypper and rpm print under `LC_ALL=C`. Pure.

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::result::ResultReason;

use super::ask::LOCKED;
use crate::provider::rpm::{error_lines, is_about, is_disk_full};
use crate::provider::support::MAX_MESSAGE;
use crate::provider::{Failure, bounded};

/// Words of a line that says what is wrong.
const SAYS: [&str; 13] = [
    "rror:",
    "scriptlet failed",
    "Problem:",
    "remove lock to allow",
    "nothing provides",
    "Signature verification failed",
    "Installation of ",
    "Removal of ",
    "' not found.",
    "(curl) error",
    "System management is locked",
    "more space",
    "No space left",
];

/// The reason that words of zypper's name by themselves.
pub(super) fn reason_of(said: &str) -> Option<ResultReason> {
    let any = |words: &[&str]| words.iter().any(|words| said.contains(words));
    if is_disk_full(said) {
        Some(ResultReason::DiskFull)
    } else if any(&["System management is locked"]) {
        Some(ResultReason::Locked)
    } else if said.lines().map(str::trim).any(is_gone) {
        Some(ResultReason::Superseded)
    } else if any(&["Download (curl) error", "not found on medium", "Failed to provide Package", "Timeout exceeded"]) {
        Some(ResultReason::DownloadFailed)
    } else {
        None
    }
}

/// `Package 'x=1-1' not found.`
fn is_gone(line: &str) -> bool {
    line.starts_with("No provider of '") || (line.starts_with("Package '") && line.ends_with("' not found."))
}

pub(super) fn explain(output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let message = match file_conflict(output) {
        Some(conflict) => conflict,
        None => error_lines(output, &names, &SAYS),
    };
    let is_anothers =
        !names.is_empty() && is_stopped_by_one(output) && !names.iter().any(|name| is_about(&message, name));
    let reason = match reason_of(output) {
        _ if is_anothers => ResultReason::OtherFailed,
        Some(reason) => reason,
        None if code == Some(LOCKED) => ResultReason::Locked,
        None if code.is_some_and(|code| code == 0 || code >= 100) => ResultReason::NotInstalled,
        None => ResultReason::PackageManagerFailed,
    };
    match (message.is_empty(), code) {
        (false, _) => Failure::new(reason, message),
        (true, Some(0)) => Failure::new(reason, "zypper succeeded, and rpm's database says otherwise"),
        (true, Some(code)) => Failure::new(reason, format!("zypper ended with code {code}")),
        (true, None) => Failure::new(reason, "zypper was ended before it was done"),
    }
}

/// What cannot be installed stops everything that would have come after it.
fn is_stopped_by_one(output: &str) -> bool {
    ["Installation of ", "Signature verification failed", "file conflict"].iter().any(|words| output.contains(words))
}

/// The files that two packages have, of the form of a list: `File F`, `from install of`, `P`, `conflicts with ...`.
pub(super) fn file_conflict(output: &str) -> Option<String> {
    let (_, list) = output
        .split_once("Detected ")
        .filter(|(_, list)| list.split_once(':').is_some_and(|(head, _)| head.contains("file conflict")))?;
    let list = list.split_once("File conflicts happen when").map_or(list, |(list, _)| list);
    let words = list.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(bounded(&format!("Detected {words}"), MAX_MESSAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> PackageChange {
        PackageChange { name: name.into(), arch: "noarch".into(), installed: "1".into(), candidate: "2".into() }
    }

    /// What zypper printed: see `tests/data/zypper/README.md`.
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../../tests/data/zypper/", $name, ".txt"))
        };
    }

    #[test]
    fn the_cause_of_a_failure_is_read_from_what_zypper_prints() {
        use ResultReason::{DiskFull, DownloadFailed, Locked, NotInstalled, PackageManagerFailed, Superseded};
        let full = "needs 3MB more space on the /usr/share/pw-big filesystem";
        for (output, code, reason, words) in [
            (recorded!("pre"), 8, PackageManagerFailed, "error: %prein(pw-bad-2.0-1.noarch) scriptlet failed"),
            (
                recorded!("clash"),
                8,
                PackageManagerFailed,
                "/usr/share/pw-b-1/1.0 from install of pw-clash-2.0-1.noarch",
            ),
            (recorded!("unsigned"), 8, PackageManagerFailed, "pw-b-2.0-1.noarch (Test): Signature verification failed"),
            (recorded!("other-key"), 8, PackageManagerFailed, "Signatures public key is not available"),
            (recorded!("locked"), 4, PackageManagerFailed, "remove lock to allow installation of pw-a-3.0-1.noarch"),
            (recorded!("gone"), 104, Superseded, "Package 'pw-b.noarch=2.5-1' not found."),
            (recorded!("busy"), 7, Locked, "System management is locked by the application with pid"),
            (recorded!("down"), 8, DownloadFailed, "Download (curl) error for"),
            (full, 8, DiskFull, full),
            ("", 0, NotInstalled, "says otherwise"),
            ("", 103, NotInstalled, "ended with code 103"),
            ("", 8, PackageManagerFailed, "ended with code 8"),
            ("sh: 'x' not found.", 8, PackageManagerFailed, "not found"),
        ] {
            let failure = explain(output, Some(code), &[]);
            assert_eq!(failure.reason, reason, "{output}");
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        assert_eq!(explain("", None, &[]).message, "zypper was ended before it was done");
    }

    #[test]
    fn what_only_came_after_the_cause_is_not_blamed() {
        for (output, culprit) in
            [(recorded!("unsigned"), "pw-b"), (recorded!("clash"), "pw-clash"), (recorded!("pre"), "pw-bad")]
        {
            let reason = |name| explain(output, Some(8), &[package(name)]).reason;
            assert_eq!(reason(culprit), ResultReason::PackageManagerFailed, "{culprit}");
            assert_eq!(reason("pw-sad"), ResultReason::OtherFailed, "{culprit}");
        }
    }
}
