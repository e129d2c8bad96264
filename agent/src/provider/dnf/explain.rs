//! Why an install did not do what was ordered, by what dnf and rpm print under `LC_ALL=C`. Pure.

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::result::ResultReason;

use crate::provider::Failure;
use crate::provider::rpm::{self, error_lines, is_about, is_disk_full};

/// Words of a line that says what is wrong, of either dnf.
const SAYS: [&str; 15] = [
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
    // dnf 5.
    "PGP check for package",
    "Cannot download the",
    "No match for argument:",
];

/// What dnf 5 puts before what rpm says.
const RPM_SAYS: &str = ">>> [RPM] ";

/// A file is not there, or is not what the repository's index says.
const NOT_FETCHED: [&str; 4] = [
    "invalid cache, but cannot be downloaded",
    "Error downloading packages",
    "Failed to download",
    "Cannot download the",
];

pub(super) fn explain(output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let message = error_lines(&output.replace(RPM_SAYS, ""), &names, &SAYS);
    let any = |words: &[&str]| words.iter().any(|words| output.contains(words));
    let reason = if is_disk_full(output) {
        ResultReason::DiskFull
    } else if is_gone(output, &names) {
        ResultReason::Superseded
    } else if any(&NOT_FETCHED) {
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

/// What it complained of about packages that are installed.
pub(super) fn remarks(output: &str, packages: &[PackageChange]) -> String {
    rpm::remarks(&output.replace(RPM_SAYS, ""), packages)
}

/// dnf does not know the version: none at all, or that of one of these packages.
fn is_gone(output: &str, names: &[&str]) -> bool {
    output.contains("No packages marked for")
        || output
            .lines()
            .filter_map(|line| line.split_once("No match for argument:"))
            .any(|(_, spec)| names.is_empty() || names.iter().any(|name| is_about(spec, name)))
}

/// Before rpm's transaction, one package that cannot be installed stops them all.
fn is_refused_whole(output: &str) -> bool {
    let by_dnf_4 = ["GPG check FAILED", "Transaction test error", "transaction check vs depsolve"];
    let by_dnf_5 = ["Failed to resolve the transaction", "Signature verification failed"];
    by_dnf_4.iter().chain(&by_dnf_5).any(|words| output.contains(words))
        // It says no more of rpm's test than of the transaction itself, which begins with this line.
        || output.contains("Transaction failed: Rpm transaction failed") && !output.contains("] Prepare transaction")
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

    /// What dnf 5 printed: see `tests/data/dnf5/README.md`.
    macro_rules! of_five {
        ($name:literal) => {
            include_str!(concat!("../../../tests/data/dnf5/", $name, ".txt"))
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
    fn the_cause_of_a_failure_is_read_from_what_dnf_5_prints() {
        use ResultReason::{DiskFull, DownloadFailed, PackageManagerFailed, Superseded};
        for (output, reason, words) in [
            (of_five!("pre"), PackageManagerFailed, "%prein(pw-bad-2.0-1.noarch) scriptlet failed, exit status 3"),
            (of_five!("clash"), PackageManagerFailed, "conflicts with file from package pw-c-1.0-1.noarch"),
            (of_five!("unsigned"), PackageManagerFailed, "has failed: The package is not signed."),
            (of_five!("other-key"), PackageManagerFailed, "Import of the key didn't help, wrong key?"),
            (of_five!("absent"), DownloadFailed, "Cannot download the \"pw-o-2.0-1.noarch\" package"),
            (of_five!("full"), DiskFull, "needs 3MB more space on the /usr/share/pw-big filesystem"),
            (of_five!("gone"), Superseded, "No match for argument: pw-u-3.0-1.noarch"),
            (of_five!("unmet"), PackageManagerFailed, "nothing provides nothing-there needed by pw-dep-2.0-1.noarch"),
        ] {
            let failure = explain(output, Some(1), &[]);
            assert_eq!(failure.reason, reason, "{output}");
            assert!(failure.message.contains(words) && !failure.message.contains(">>>"), "{}", failure.message);
        }
    }

    #[test]
    fn an_update_that_is_not_the_cause_is_not_blamed() {
        for (output, culprit) in [
            (recorded!("unsigned"), "pw-b"),
            (recorded!("clash"), "pw-clash"),
            (of_five!("unsigned"), "pw-u"),
            (of_five!("clash"), "pw-clash"),
            (of_five!("unmet"), "pw-dep"),
        ] {
            let reason = |name| explain(output, Some(1), &[package(name)]).reason;
            assert_eq!(reason(culprit), ResultReason::PackageManagerFailed);
            assert_eq!(reason("pw-a"), ResultReason::OtherFailed);
        }
        for output in [recorded!("pre"), of_five!("pre")] {
            assert_eq!(explain(output, Some(1), &[package("pw-a")]).reason, ResultReason::PackageManagerFailed);
        }
    }

    #[test]
    fn a_script_that_failed_is_told_though_the_package_is_installed() {
        let said = remarks(recorded!("post"), &[package("pw-bad")]);
        assert_eq!(said, "warning: %post(pw-bad-2.0-1.noarch) scriptlet failed, exit status 3");
        assert_eq!(remarks(recorded!("post"), &[package("pw-b")]), "");
        let of_five = remarks(of_five!("post"), &[package("pw-sad")]);
        assert_eq!(of_five, "%post(pw-sad-0:2.0-1.noarch) scriptlet failed, exit status 3");
    }

    #[test]
    fn a_version_that_dnf_does_not_know_is_that_of_its_own_package() {
        let output = "No match for argument: pw-b-0:2.0-1.noarch\nerror: %prein(pw-a-2.0-1.noarch) scriptlet failed";
        let reason = |name| explain(output, Some(1), &[package(name)]).reason;
        assert_eq!((reason("pw-b"), reason("pw-a")), (ResultReason::Superseded, ResultReason::PackageManagerFailed));
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
