//! Whether the machine waits for a restart, and which updates need one.
//!
//! - The machine: `Yes` when `/run/reboot-required` is there, when a newer kernel than the running one is installed, when
//!   the running kernel's package was replaced, or when one of the packages that [`keeps_running`] was installed after the
//!   start. Otherwise `No`; but `Unknown` in a container, whose processes have not started with the kernel, where a time
//!   cannot be read or lies in the future, and where no package brought the running kernel or it does not tell its version.
//!   What writes that file (unattended-upgrades or update-notifier hooks) makes it `No` there, too.
//! - An update needs one when it brings one of [`RESTART_SOURCES`] or a kernel image.
//!
//! When a package was installed is the modification time of its list of files, which dpkg writes anew whenever it unpacks
//! the package. dpkg.log tells the same, but in local time without a zone, may be switched off, and is rotated away. The start
//! is `btime`, the present clock less the time since: where a wrong clock was set right after the start, what was installed
//! before that looks older than it is, and is missed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::report::{Restart, Tristate};

use super::parse::{self, Row};
use super::services;
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

/// Their packages beside the libraries, of which no process takes the new code up by itself.
const RESTART_PACKAGES: [&str; 7] =
    ["systemd", "libsystemd-shared", "udev", "dbus", "dbus-daemon", "intel-microcode", "amd64-microcode"];

/// Reasons listed; the report has room for 16.
const MAX_REASONS: usize = 15;

/// Whether a new version of the package is in use only after a restart. Such a package is never taken back either: a
/// machine is not put on an older libc, or on a kernel that it does not run.
pub(super) fn needs_restart(name: &str, source: &str) -> bool {
    RESTART_SOURCES.contains(&source) || source.starts_with("linux-signed") || is_kernel(name)
}

/// Whether the package holds a kernel, or brings the latest one with it (`linux-image-amd64`).
pub(super) fn is_kernel(name: &str) -> bool {
    name.starts_with("linux-image-")
}

/// Whether the package holds a kernel: its name has the release (`linux-image-6.1.0-38-amd64`), where that of one that only needs it
/// has none (`linux-image-amd64`). `-dbg` holds what debuggers read.
pub(super) fn is_image(name: &str) -> bool {
    let rest = name.strip_prefix("linux-image-").unwrap_or_default();
    let release = rest.strip_prefix("unsigned-").unwrap_or(rest);
    release.starts_with(|c: char| c.is_ascii_digit()) && !name.ends_with("-dbg") && !name.ends_with("-dbgsym")
}

/// Whether old code of the package keeps running once it is replaced: what else is built from the same source (`libc6-dev`,
/// `locales`) does not count. Kernels are told by which one runs.
fn keeps_running(name: &str, source: &str) -> bool {
    let is_library = || name.starts_with("lib") && name.ends_with(|c: char| c.is_ascii_digit());
    RESTART_PACKAGES.contains(&name) || source != "linux" && RESTART_SOURCES.contains(&source) && is_library()
}

pub(super) fn restart(rows: &[Row]) -> Restart {
    let running = platform::kernel();
    let version_line = platform::build();
    let kernel = kernel(rows, &running, &version_line);
    let is_kernel_known = kernel != Kernel::Unknown;
    let mut reasons = Vec::new();
    if Path::new("/run/reboot-required").exists() {
        let packages = fs::read_to_string("/run/reboot-required.pkgs").unwrap_or_default();
        let names: BTreeSet<&str> = packages.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
        reasons.extend(names.into_iter().take(MAX_REASONS).map(|name| bounded(name, 128)));
        if reasons.is_empty() {
            reasons.push("/run/reboot-required".to_owned());
        }
    } else if let Kernel::Another(reason) = kernel {
        reasons.push(reason);
    }
    let installed_at = |row: &Row| services::unpacked_at(row.name(), row.arch());
    let since = match (platform::restart::container(Path::new("/")), platform::boot()) {
        (None, Ok(boot)) => since_the_start(rows, installed_at, boot.time, platform::now()),
        _ => None,
    };
    let is_told = || RESTART_NOTIFIERS.iter().any(|path| Path::new(path).exists());
    let is_known = is_kernel_known && since.is_some() || is_told();
    let room = MAX_REASONS - reasons.len();
    reasons.extend(since.unwrap_or_default().into_iter().take(room));
    let required = match (reasons.is_empty(), is_known) {
        (false, _) => Tristate::Yes,
        (true, true) => Tristate::No,
        (true, false) => Tristate::Unknown,
    };
    Restart { required, reasons }
}

/// Which packages that keep running came after the start; nothing where it cannot be told that none did.
fn since_the_start(
    rows: &[Row],
    installed_at: impl Fn(&Row) -> Option<Timestamp>,
    start: Timestamp,
    now: Timestamp,
) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut is_known = true;
    for row in rows.iter().filter(|row| row.is_present() && keeps_running(row.name(), row.source())) {
        match installed_at(row) {
            // To the second, as the start is.
            Some(time) if time <= now && time.as_second() > start.as_second() => {
                found.push(bounded(&format!("{} {} was installed after the start", row.name(), row.version()), 128));
            }
            Some(time) if time <= now => {}
            // Written while the clock was ahead, in this boot or before it.
            Some(_) | None => is_known = false,
        }
    }
    // One of several architectures.
    found.dedup();
    (is_known || !found.is_empty()).then_some(found)
}

/// What is known of the kernel that would start next.
#[derive(Debug, PartialEq, Eq)]
enum Kernel {
    /// It is the running one.
    Running,
    /// It is another one. Says so.
    Another(String),
    /// No package brought the running one (a container's, an own build), or it does not tell its package's version.
    Unknown,
}

fn kernel(rows: &[Row], running: &str, version_line: &str) -> Kernel {
    let release = |row: &Row| row.name().strip_prefix("linux-image-").map(str::to_owned);
    let images: Vec<&Row> = rows
        .iter()
        .filter(|row| row.is_image_of_kernel())
        // Without a digit first it is a metapackage (linux-image-amd64).
        .filter(|row| release(row).is_some_and(|release| release.starts_with(|c: char| c.is_ascii_digit())))
        .collect();
    let Some(own) = images.iter().find(|row| release(row).as_deref() == Some(running)) else {
        return Kernel::Unknown;
    };
    let another = |installed: &str, running: &str| {
        Kernel::Another(bounded(&format!("kernel {installed} is installed, {running} is running"), 128))
    };
    let newest = images.iter().filter_map(|row| release(row)).max_by(|a, b| parse::compare_releases(a, b));
    if let Some(newest) = newest.filter(|newest| parse::compare_releases(newest, running).is_gt()) {
        return another(&newest, running);
    }
    // Debian's `uname -v`: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)".
    match version_line.split_once(" Debian ").and_then(|(_, built)| built.split(' ').next()) {
        Some(built) if built == own.version() => Kernel::Running,
        Some(built) => another(own.version(), built),
        None => Kernel::Unknown,
    }
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
        let found = |lines: &[(&str, &str)]| kernel(&rows(lines), running, said);
        let another = |reason: &str| Kernel::Another(reason.into());
        assert_eq!(found(&[own, meta]), Kernel::Running);
        assert_eq!(found(&[own, ("linux-image-6.1.0-9-amd64", "6.1.27-1")]), Kernel::Running);
        let newer = ("linux-image-6.1.0-38-amd64", "6.1.147-1");
        let is_newer = "kernel 6.1.0-38-amd64 is installed, 6.1.0-37-amd64 is running";
        assert_eq!(found(&[own, meta, newer]), another(is_newer));
        assert_eq!(
            found(&[("linux-image-6.1.0-37-amd64", "6.1.147-1")]),
            another("kernel 6.1.147-1 is installed, 6.1.140-1 is running")
        );
        // A container's, or an own build.
        assert_eq!((found(&[]), found(&[meta, newer])), (Kernel::Unknown, Kernel::Unknown));
        let untold = |lines: &[(&str, &str)]| kernel(&rows(lines), running, "#1 SMP PREEMPT_DYNAMIC");
        assert_eq!((untold(&[own]), untold(&[own, newer])), (Kernel::Unknown, another(is_newer)));
    }

    #[test]
    fn what_keeps_running_is_judged_by_when_it_came() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let lines = [("libc6", "glibc"), ("libc6-dev", "glibc"), ("systemd", "systemd"), ("vim", "vim")];
        let lines = lines.map(|(name, source)| format!("ii \t{name}\tamd64\t2\t{source}\t2\t1\n"));
        let found = |times: [Option<i64>; 4]| {
            let rows = parse::rows(&lines.concat()).unwrap();
            let place = |row: &Row| rows.iter().position(|other| other == row).unwrap();
            since_the_start(&rows, |row| times[place(row)].map(at), at(100), at(1000))
        };
        let said = |name: &str| Some(vec![format!("{name} 2 was installed after the start")]);
        assert_eq!(found([Some(100), Some(500), Some(50), Some(500)]), Some(vec![]));
        assert_eq!(found([Some(101), Some(50), Some(50), None]), said("libc6"));
        assert_eq!(found([Some(50), None, None, None]), None, "of systemd nothing is known");
        assert_eq!(found([Some(1001), None, Some(50), None]), None, "the clock was ahead");
        assert_eq!(found([None, None, Some(1000), None]), said("systemd"), "what is known is enough");
    }

    #[test]
    fn of_a_source_only_what_runs_counts() {
        for (name, source) in [("libc6", "glibc"), ("libc6-i386", "glibc"), ("libudev1", "systemd"), ("dbus", "dbus")] {
            assert!(keeps_running(name, source), "{name}");
        }
        for (name, source) in
            [("locales", "glibc"), ("libc6-dev", "glibc"), ("libcpupower1", "linux"), ("libcurl4", "curl")]
        {
            assert!(!keeps_running(name, source), "{name}");
        }
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
