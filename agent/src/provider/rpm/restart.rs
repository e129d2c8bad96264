//! Whether the machine waits for a restart, and which updates need one.
//!
//! - The machine: `Yes` when one of [`RESTART_SOURCES`] or a kernel was installed after it started, or when a newer kernel
//!   than the running one is installed; else `No`: rpm knows when each package came.
//! - An update needs one when it brings one of these.

use patchwarden_protocol::report::{Restart, Tristate};

use super::{Row, compare, source_name};
use crate::platform;
use crate::provider::support::broken;
use crate::provider::{Failure, bounded};

/// Source packages whose old code keeps running in every process, or in those that cannot be replaced (what
/// needs-restarting(1) and `zypper needs-rebooting` look at).
const RESTART_SOURCES: [&str; 12] = [
    "glibc",
    "systemd",
    "dbus",
    "dbus-broker",
    "dbus-1",
    "openssl",
    "gnutls",
    "linux-firmware",
    "kernel-firmware",
    "microcode_ctl",
    "ucode-intel",
    "ucode-amd",
];

/// The packages that hold a kernel.
const KERNELS: [&str; 8] = [
    "kernel",
    "kernel-core",
    "kernel-rt",
    "kernel-rt-core",
    "kernel-uek",
    "kernel-uek-core",
    "kernel-default",
    "kernel-64k-core",
];

/// Reasons listed; the report has room for 16.
const MAX_REASONS: usize = 15;

/// Whether a new version of the package is in use only after a restart. Such a package is never taken back either: a
/// machine is not put on an older libc, or on a kernel that it does not run.
pub(in crate::provider) fn needs_restart(name: &str, source: &str) -> bool {
    RESTART_SOURCES.contains(&source) || is_kernel(name)
}

fn is_kernel(name: &str) -> bool {
    KERNELS.contains(&name)
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

/// Another kernel than the running one would start next. One that no package brought (a container's) says nothing.
fn newer_kernel(rows: &[Row], running: &str) -> Option<String> {
    let release = |row: &Row| format!("{}.{}", row.version, row.arch);
    let own = rows.iter().find(|row| is_kernel(&row.name) && release(row) == running)?;
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
        let glibc = found(&[row("glibc-common", "2-1", "glibc", 101)], &[]);
        assert_eq!(glibc.reasons, ["glibc-common 2-1 was installed after the start"]);
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
    fn an_update_needs_a_restart_by_its_name_or_source() {
        for (name, source) in [("glibc-common", "glibc"), ("kernel-core", "kernel"), ("openssl-libs", "openssl")] {
            assert!(needs_restart(name, source), "{name}");
        }
        assert!(!needs_restart("kernel-tools", "kernel") && !needs_restart("curl", "curl"));
    }
}
