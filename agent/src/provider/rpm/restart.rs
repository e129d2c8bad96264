//! Whether the machine waits for a restart, and which updates need one.
//!
//! - The machine: `Yes` when one of [`RESTART_PACKAGES`] or a kernel was installed after it started, or when a newer kernel
//!   than the running one is installed; else `No`: rpm knows when each package came.
//! - An update needs one when it brings one of these.

use patchwarden_protocol::report::{Restart, Tristate};

use super::{Row, compare, source_name};
use crate::platform;
use crate::provider::support::broken;
use crate::provider::{Failure, bounded};

/// Packages whose old code keeps running in every process, or in those that cannot be replaced: what needs-restarting(1) and
/// `zypper needs-rebooting` look at, by the names that Red Hat's and SUSE's systems have for them.
const RESTART_PACKAGES: [&str; 18] = [
    "glibc",
    "systemd",
    "systemd-libs",
    "systemd-udev",
    "udev",
    "dbus",
    "dbus-daemon",
    "dbus-libs",
    "dbus-broker",
    "dbus-1",
    "dbus-1-daemon",
    "openssl-libs",
    "openssl-fips-provider",
    "gnutls",
    "linux-firmware",
    "microcode_ctl",
    "ucode-intel",
    "ucode-amd",
];

/// Their source packages, of which also the libraries that are named after their version (`libopenssl3`, `libsystemd0`) count.
const RESTART_SOURCES: [&str; 14] = [
    "glibc",
    "systemd",
    "dbus",
    "dbus-broker",
    "dbus-1",
    "openssl",
    "openssl-1_1",
    "openssl-3",
    "gnutls",
    "linux-firmware",
    "kernel-firmware",
    "microcode_ctl",
    "ucode-intel",
    "ucode-amd",
];

/// Parts of a kernel's name behind `kernel` and its version: flavours, and what holds the image where the rest of it is in
/// packages of its own (`kernel-core`, `kernel-64k-debug-core`, `kernel6.12`, `kernel-default-base`, `kernel-uek64k-core`).
const KERNEL_PARTS: [&str; 20] = [
    "core",
    "base",
    "debug",
    "rt",
    "64k",
    "16k",
    "automotive",
    "zfcpdump",
    "uek",
    "uek64k",
    "ml",
    "lt",
    "default",
    "azure",
    "preempt",
    "kvmsmall",
    "longterm",
    "vanilla",
    "pae",
    "64kb",
];

/// Reasons listed; the report has room for 16.
const MAX_REASONS: usize = 15;

/// Whether a new version of the package is in use only after a restart. What else is built from the same source
/// (`glibc-devel`, the program `openssl`) does not count.
pub(in crate::provider) fn needs_restart(name: &str, source: &str) -> bool {
    let is_library = || {
        let bare = name.strip_suffix("-32bit").unwrap_or(name);
        bare.starts_with("lib") && bare.ends_with(|c: char| c.is_ascii_digit()) && RESTART_SOURCES.contains(&source)
    };
    RESTART_PACKAGES.contains(&name) || name.starts_with("kernel-firmware") || is_library() || is_kernel(name)
}

/// Whether a package may ever be brought to an earlier version: a machine is put neither on an older libc, with anything that
/// is built from its source, nor on a kernel that it does not run.
pub(in crate::provider) fn goes_back(name: &str, source: &str) -> bool {
    !needs_restart(name, source) && !RESTART_SOURCES.contains(&source)
}

/// Whether the package holds a kernel.
pub(in crate::provider) fn is_kernel(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("kernel") else { return false };
    // Amazon's: `kernel6.12`.
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    rest.is_empty()
        || rest.strip_prefix('-').is_some_and(|parts| parts.split('-').all(|part| KERNEL_PARTS.contains(&part)))
}

/// The flavour in a kernel's name, in order: `64k debug` of `kernel-64k-debug-core`.
fn flavour_of(name: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = name.split('-').skip(1).filter(|part| !matches!(*part, "core" | "base")).collect();
    parts.sort_unstable();
    parts
}

/// `more` are the installed packages of which the vendor says so (`reboot_suggested` of an advisory).
pub(in crate::provider) fn restart(rows: &[Row], more: &[String]) -> Result<Restart, Failure> {
    let boot = platform::boot().map_err(|error| broken(error.to_string()))?;
    Ok(judge(rows, more, boot.time.as_second(), &platform::kernel()))
}

fn judge(rows: &[Row], more: &[String], booted_at: i64, running: &str) -> Restart {
    let is_new = |row: &&Row| row.installed_at > booted_at;
    let needs = |row: &&Row| needs_restart(&row.name, source_name(&row.source)) || more.contains(&row.name);
    let mut reasons: Vec<String> = rows
        .iter()
        .filter(is_new)
        .filter(needs)
        .map(|row| bounded(&format!("{} {} was installed after the start", row.name, row.version), 128))
        .collect();
    reasons.extend(newer_kernel(rows, running));
    reasons.sort_unstable();
    reasons.dedup();
    reasons.truncate(MAX_REASONS);
    let required = if reasons.is_empty() { Tristate::No } else { Tristate::Yes };
    Restart { required, reasons }
}

/// Another kernel than the running one would start next. One that no package brought (a container's) says nothing. The
/// running one is known by `uname -r`, which has the flavour behind a `+` (`5.14.0-427.el9.x86_64+64k-debug`); a flavour that is
/// built from a source of its own has it in its release instead.
fn newer_kernel(rows: &[Row], running: &str) -> Option<String> {
    let (release, flavour) = running.split_once('+').unwrap_or((running, ""));
    let mut parts: Vec<&str> = flavour.split('-').filter(|part| !part.is_empty()).collect();
    parts.sort_unstable();
    let release_of = |row: &Row| format!("{}.{}", row.version, row.arch);
    let is_running = |row: &&Row| is_kernel(&row.name) && release_of(row) == release;
    let own = rows.iter().filter(is_running).max_by_key(|row| flavour_of(&row.name) == parts)?;
    let newest = rows.iter().filter(|row| row.name == own.name).max_by(|a, b| compare(&a.version, &b.version))?;
    compare(&newest.version, &own.version)
        .is_gt()
        .then(|| bounded(&format!("{} {} is installed, {running} is running", newest.name, newest.version), 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, version: &str, source: &str, installed_at: i64) -> Row {
        Row {
            name: name.into(),
            arch: "x86_64".into(),
            version: version.into(),
            source: format!("{source}-1-1.src.rpm"),
            installed_at,
            size: 0,
        }
    }

    #[test]
    fn what_came_after_the_start_counts_if_it_is_one_that_needs_a_restart() {
        let found = |rows: &[Row], more: &[String]| judge(rows, more, 100, "5.14.0-1.el9.x86_64");
        let none = found(&[row("glibc", "2-1", "glibc", 100), row("vim", "9-1", "vim", 200)], &[]);
        assert_eq!((none.required, none.reasons.len()), (Tristate::No, 0));
        let glibc = found(&[row("glibc", "2-1", "glibc", 101), row("glibc-devel", "2-1", "glibc", 101)], &[]);
        assert_eq!(glibc.reasons, ["glibc 2-1 was installed after the start"]);
        let own = found(&[row("vim", "9-1", "vim", 200)], &["vim".to_owned()]);
        assert_eq!(own.required, Tristate::Yes, "the vendor says so");
        assert_eq!(found(&[row("vim", "9-1", "vim", 50)], &["vim".to_owned()]).required, Tristate::No);
    }

    #[test]
    fn a_newer_kernel_than_the_running_one_waits_for_a_restart() {
        let kernel = |version: &str| row("kernel-core", version, "kernel", 50);
        let found = |rows: &[Row]| judge(rows, &[], 100, "5.14.0-9.el9.x86_64").reasons;
        assert_eq!(found(&[kernel("5.14.0-9.el9"), kernel("5.14.0-8.el9")]), [""; 0]);
        let newer = found(&[kernel("5.14.0-9.el9"), kernel("5.14.0-10.el9")]);
        assert_eq!(newer, ["kernel-core 5.14.0-10.el9 is installed, 5.14.0-9.el9.x86_64 is running"]);
        assert_eq!(found(&[kernel("6.0-1")]), [""; 0], "the running one is not a package's");
    }

    #[test]
    fn a_kernel_of_a_flavour_is_compared_with_its_own_kind() {
        let rows = |names: &[(&str, &str)]| -> Vec<Row> {
            names.iter().map(|(name, version)| row(name, version, "kernel", 50)).collect()
        };
        let two = |name| rows(&[(name, "5.14.0-9.el9"), (name, "5.14.0-10.el9"), ("kernel-core", "5.14.0-9.el9")]);
        for (running, name) in [
            ("5.14.0-9.el9.x86_64+rt", "kernel-rt-core"),
            ("5.14.0-9.el9.x86_64+64k-debug", "kernel-64k-debug-core"),
            ("5.14.0-9.el9.x86_64+debug", "kernel-debug-core"),
        ] {
            let found = judge(&two(name), &[], 100, running).reasons;
            assert_eq!(found, [format!("{name} 5.14.0-10.el9 is installed, {running} is running")]);
            assert_eq!(judge(&two(name), &[], 100, "5.14.0-9.el9.x86_64").reasons, [""; 0], "beside {name}");
        }
        let amazon = rows(&[("kernel6.12", "6.12.1-1.amzn2023"), ("kernel6.12", "6.12.2-1.amzn2023")]);
        assert_eq!(judge(&amazon, &[], 100, "6.12.1-1.amzn2023.x86_64").required, Tristate::Yes);
    }

    #[test]
    fn an_update_needs_a_restart_by_its_name() {
        let plain = ["glibc", "systemd", "openssl-libs", "kernel-firmware-amdgpu", "kernel", "kernel-core"];
        let flavours =
            ["rt-core", "64k-debug-core", "uek-core", "ml", "lt-core", "default"].map(|f| format!("kernel-{f}"));
        let names = plain.map(str::to_owned).into_iter().chain(flavours).chain(["kernel6.12".to_owned()]);
        let libraries = [("libopenssl1_1", "openssl-1_1"), ("libopenssl3", "openssl-3"), ("libsystemd0", "systemd")];
        let libraries = libraries.map(|(name, source)| (name.to_owned(), source));
        for (name, source) in names.map(|name| (name, "x")).chain(libraries) {
            assert!(needs_restart(&name, source) && !goes_back(&name, source), "{name}");
        }
        for (name, source) in [
            ("glibc-devel", "glibc"),
            ("glibc-langpack-en", "glibc"),
            ("openssl", "openssl"),
            ("libopenssl-devel", "openssl"),
            ("libopenssl3-devel", "openssl"),
        ] {
            assert!(!needs_restart(name, source), "{name}");
            assert!(!goes_back(name, source), "{name} is built with what is never put back");
        }
        for name in [
            "kernel-tools",
            "kernel-headers",
            "kernel-devel",
            "kernel-modules",
            "kernel6.12-tools",
            "kernel-debug-devel",
            "kernel-srpm-macros",
            "kernelshark",
            "curl",
        ] {
            assert!(!needs_restart(name, "kernel") && goes_back(name, "x"), "{name}");
        }
    }
}
