//! Whether the machine waits for a restart, and which updates need one.
//!
//! - The machine: `Yes` when `/run/reboot-required` is there, when a newer kernel than the running one is installed, or
//!   when the running kernel's package was replaced. `No` when the system has what writes that file (unattended-upgrades
//!   or update-notifier hooks) and none of this is so. Otherwise, as in containers, `Unknown`.
//! - An update needs one when it brings one of [`RESTART_SOURCES`] or a kernel image.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use patchwarden_protocol::report::{Restart, Tristate};

use super::parse::{self, Row};
use crate::platform;
use crate::provider::bounded;

/// Source packages whose old code keeps running in every process, or in the one that cannot be replaced.
const RESTART_SOURCES: [&str; 6] = ["glibc", "systemd", "dbus", "intel-microcode", "amd64-microcode", "linux"];

/// What writes `/run/reboot-required`.
const RESTART_NOTIFIERS: [&str; 3] = [
    "/etc/kernel/postinst.d/unattended-upgrades",
    "/etc/kernel/postinst.d/update-notifier",
    "/usr/share/update-notifier/notify-reboot-required",
];

/// Whether a new version of the package is in use only after a restart. Such a package is never taken back either: a
/// machine is not put on an older libc, or on a kernel that it does not run.
pub(super) fn needs_restart(name: &str, source: &str) -> bool {
    RESTART_SOURCES.contains(&source) || source.starts_with("linux-signed") || is_kernel(name)
}

/// Whether the package holds a kernel, or brings the latest one with it (`linux-image-amd64`).
pub(super) fn is_kernel(name: &str) -> bool {
    name.starts_with("linux-image-")
}

pub(super) fn restart(rows: &[Row]) -> Restart {
    let running = platform::kernel();
    let version_line = platform::build();
    let mut reasons = Vec::new();
    if Path::new("/run/reboot-required").exists() {
        let packages = fs::read_to_string("/run/reboot-required.pkgs").unwrap_or_default();
        let names: BTreeSet<&str> = packages.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
        reasons.extend(names.into_iter().take(15).map(|name| bounded(name, 128)));
        if reasons.is_empty() {
            reasons.push("/run/reboot-required".to_owned());
        }
    } else {
        reasons.extend(kernel_reason(rows, &running, &version_line));
    }
    let required = if !reasons.is_empty() {
        Tristate::Yes
    } else if RESTART_NOTIFIERS.iter().any(|path| Path::new(path).exists()) {
        Tristate::No
    } else {
        Tristate::Unknown
    };
    Restart { required, reasons }
}

/// Says that another kernel than the running one would start next.
fn kernel_reason(rows: &[Row], running: &str, version_line: &str) -> Option<String> {
    let release = |row: &Row| row.name().strip_prefix("linux-image-").map(str::to_owned);
    let images: Vec<&Row> = rows
        .iter()
        .filter(|row| row.is_image_of_kernel())
        // Without a digit first it is a metapackage (linux-image-amd64).
        .filter(|row| release(row).is_some_and(|release| release.starts_with(|c: char| c.is_ascii_digit())))
        .collect();
    // A kernel that no package brought (a container's) says nothing of the packages.
    let own = images.iter().find(|row| release(row).as_deref() == Some(running))?;
    let newest = images.iter().filter_map(|row| release(row)).max_by(|a, b| parse::compare_releases(a, b))?;
    if parse::compare_releases(&newest, running).is_gt() {
        return Some(bounded(&format!("kernel {newest} is installed, {running} is running"), 128));
    }
    // Debian's `uname -v`: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)".
    let (_, built) = version_line.split_once(" Debian ")?;
    let built = built.split(' ').next()?;
    (built != own.version())
        .then(|| bounded(&format!("kernel {} is installed, {built} is running", own.version()), 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lines: &[(&str, &str)]) -> Vec<Row> {
        let lines: Vec<String> = lines
            .iter()
            .map(|(name, version)| format!("ii \t{name}\tamd64\t{version}\tlinux\t{version}\t1\n"))
            .collect();
        parse::rows(&lines.concat()).unwrap()
    }

    #[test]
    fn a_newer_or_replaced_kernel_needs_a_restart() {
        let running = "6.1.0-37-amd64";
        let said = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)";
        let own = ("linux-image-6.1.0-37-amd64", "6.1.140-1");
        let meta = ("linux-image-amd64", "6.1.147-1");
        let reason = |lines: &[(&str, &str)]| kernel_reason(&rows(lines), running, said);
        assert_eq!(reason(&[own, meta]), None);
        assert_eq!(reason(&[own, ("linux-image-6.1.0-9-amd64", "6.1.27-1")]), None);
        assert_eq!(
            reason(&[own, meta, ("linux-image-6.1.0-38-amd64", "6.1.147-1")]).as_deref(),
            Some("kernel 6.1.0-38-amd64 is installed, 6.1.0-37-amd64 is running")
        );
        assert_eq!(
            reason(&[("linux-image-6.1.0-37-amd64", "6.1.147-1")]).as_deref(),
            Some("kernel 6.1.147-1 is installed, 6.1.140-1 is running")
        );
        assert_eq!(reason(&[("linux-image-6.1.0-38-amd64", "6.1.147-1")]), None);
    }

    #[test]
    fn the_c_library_and_kernels_need_a_restart() {
        for (name, source) in [
            ("libc6", "glibc"),
            ("libc-bin", "glibc"),
            ("linux-image-6.1.0-38-amd64", "linux-signed-amd64"),
            ("linux-image-cloud-amd64", "linux-meta-cloud"),
            ("systemd", "systemd"),
        ] {
            assert!(needs_restart(name, source), "{name}");
        }
        assert!(!needs_restart("libcurl4", "curl") && !needs_restart("linux-base", "linux-base"));
    }
}
