//! Why an install did not do what was ordered, by what dnf and rpm print under `LC_ALL=C`. Pure.

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::result::ResultReason;

use crate::provider::support::MAX_MESSAGE;
use crate::provider::{Failure, bounded};

/// Words of a line that says what is wrong.
const SAYS: [&str; 12] = [
    "rror:",
    "scriptlet failed",
    "conflicts with",
    "conflicting requests",
    "is not signed",
    "is not installed. Failing package",
    "not correct for this package",
    "Failing package is",
    "incorrect checksum",
    "more space",
    "nothing provides",
    "cannot install",
];

/// Whether the output tells of a full disk.
pub(super) fn is_disk_full(output: &str) -> bool {
    ["No space left on device", "more space needed on the", "more space on the"]
        .iter()
        .any(|words| output.contains(words))
}

pub(super) fn explain(output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let message = error_lines(output, &names);
    let any = |words: &[&str]| words.iter().any(|words| output.contains(words));
    let reason = if is_disk_full(output) {
        ResultReason::DiskFull
    } else if any(&["No packages marked for", "No match for argument"]) {
        ResultReason::Superseded
    } else if any(&["invalid cache, but cannot be downloaded", "Error downloading packages", "Failed to download"]) {
        ResultReason::DownloadFailed
    } else if !names.is_empty() && is_refused_whole(output) && !names.iter().any(|name| is_about(&message, name)) {
        ResultReason::OtherFailed
    } else if code == Some(0) {
        ResultReason::NotInstalled
    } else {
        ResultReason::PackageManagerFailed
    };
    match (message.is_empty(), code) {
        (false, _) => Failure::new(reason, message),
        (true, Some(0)) => Failure::new(reason, "dnf succeeded, and rpm's database says otherwise"),
        (true, Some(code)) => Failure::new(reason, format!("dnf ended with code {code}")),
        (true, None) => Failure::new(reason, "dnf was ended before it was done"),
    }
}

/// Before rpm's transaction, one package that cannot be installed stops them all.
fn is_refused_whole(output: &str) -> bool {
    ["GPG check FAILED", "Transaction test error", "transaction check vs depsolve"].iter().any(|w| output.contains(w))
}

/// Scripts of these packages that failed after their files were there.
pub(super) fn remarks(output: &str, packages: &[PackageChange]) -> String {
    let is_about_one = |line: &&str| packages.iter().any(|package| is_about(line, &package.name));
    let lines = output.lines().map(str::trim).filter(|line| line.contains("scriptlet failed")).filter(is_about_one);
    bounded(&lines.collect::<Vec<_>>().join("\n"), MAX_MESSAGE)
}

/// Lines that say what is wrong, those about `names` first.
fn error_lines(output: &str, names: &[&str]) -> String {
    let says = |line: &&str| SAYS.iter().any(|words| line.contains(words));
    let names_one = |line: &&str| names.iter().any(|name| is_about(line, name));
    let lines: Vec<&str> = output.lines().map(str::trim).filter(says).collect();
    let (own, others): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(names_one);
    let mut chosen: Vec<&str> = Vec::new();
    for line in own.into_iter().chain(others) {
        if !chosen.contains(&line) {
            chosen.push(line);
        }
    }
    bounded(&chosen.join("\n"), MAX_MESSAGE)
}

/// `NAME` as a whole, or in front of a version: not `pw-a` in `pw-ab`, nor in `pw-a-tools`.
fn is_about(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let mut after = line[at + name.len()..].chars();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+');
        let ends = match after.next() {
            None => true,
            Some('-') => after.next().is_some_and(|c| c.is_ascii_digit()),
            Some(c) => !is_part(c),
        };
        ends && !before.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> PackageChange {
        PackageChange { name: name.into(), arch: "noarch".into(), installed: "1".into(), candidate: "2".into() }
    }

    /// What dnf printed: see `tests/data/dnf/README.md`.
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../../tests/data/dnf/", $name, ".txt"))
        };
    }

    #[test]
    fn the_cause_of_a_failure_is_read_from_what_dnf_prints() {
        use ResultReason::{DiskFull, DownloadFailed, NotInstalled, PackageManagerFailed, Superseded};
        for (output, code, reason, words) in [
            (
                recorded!("pre"),
                Some(1),
                PackageManagerFailed,
                "%prein(pw-pre-2.0-1.noarch) scriptlet failed, exit status 3",
            ),
            (recorded!("clash"), Some(1), PackageManagerFailed, "conflicts with file from package pw-b-1.0-1.noarch"),
            (recorded!("unsigned"), Some(1), PackageManagerFailed, "Package pw-b-2.0-1.noarch.rpm is not signed"),
            (
                recorded!("other-key"),
                Some(1),
                PackageManagerFailed,
                "Public key for pw-b-2.0-1.noarch.rpm is not installed",
            ),
            (recorded!("wrong-key"), Some(1), PackageManagerFailed, "GPG check FAILED"),
            (recorded!("spoiled"), Some(1), DownloadFailed, "has incorrect checksum"),
            (recorded!("full"), Some(1), DiskFull, "3MB more space needed on the /usr/share/pw-big filesystem"),
            (recorded!("gone"), Some(1), Superseded, "No packages marked for upgrade"),
            ("", Some(0), NotInstalled, "says otherwise"),
            ("", Some(1), PackageManagerFailed, "ended with code 1"),
            ("", None, PackageManagerFailed, "ended before it was done"),
        ] {
            let failure = explain(output, code, &[]);
            assert_eq!(failure.reason, reason, "{output}");
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    #[test]
    fn an_update_that_is_not_the_cause_is_not_blamed() {
        for (output, culprit) in [(recorded!("unsigned"), "pw-b"), (recorded!("clash"), "pw-clash")] {
            let reason = |name| explain(output, Some(1), &[package(name)]).reason;
            assert_eq!(reason(culprit), ResultReason::PackageManagerFailed);
            assert_eq!(reason("pw-a"), ResultReason::OtherFailed);
        }
        assert_eq!(explain(recorded!("pre"), Some(1), &[package("pw-a")]).reason, ResultReason::PackageManagerFailed);
    }

    #[test]
    fn a_script_that_failed_is_told_though_the_package_is_installed() {
        let said = remarks(recorded!("post"), &[package("pw-bad")]);
        assert_eq!(said, "warning: %post(pw-bad-2.0-1.noarch) scriptlet failed, exit status 3");
        assert_eq!(remarks(recorded!("post"), &[package("pw-b")]), "");
    }

    #[test]
    fn lines_about_the_package_come_first() {
        let output =
            "error: %prein(pw-ab-2.0-1.noarch) scriptlet failed\nerror: %prein(pw-a-2.0-1.noarch) scriptlet failed";
        let message = explain(output, Some(1), &[package("pw-a")]).message;
        assert!(message.starts_with("error: %prein(pw-a-2"), "{message}");
        assert!(
            !is_about("x pw-a-tools-2.0", "pw-a") && !is_about("my-pw-a-2.0", "pw-a") && is_about("pw-a: bad", "pw-a")
        );
    }
}
