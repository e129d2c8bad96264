//! By which files an operating system's own updaters are switched off. Pure, but for looking what there is.
//!
//! - apt: `APT::Periodic::Enable "0"` ends `apt.systemd.daily`, which refreshes the indexes, downloads and starts
//!   unattended-upgrades, for its timers and for cron (/usr/lib/apt/apt.systemd.daily, apt.conf(5)).
//!   `Unattended-Upgrade::InstallOnShutdown` is its other way (README of unattended-upgrades). Of files in `apt.conf.d` the
//!   last one counts.
//! - dnf-automatic, PackageKit's offline updates, os-update (SUSE): a drop-in with a condition (systemd.unit(5)), which their
//!   service is skipped by. It counts only as long as this agent's own file is there: once the state directory is gone, so
//!   is the condition.

use std::path::{Path, PathBuf};

/// For people: where to look.
pub(super) const OURS: &str = "the files zz-patchwarden below /etc/apt/apt.conf.d and /etc/systemd/system";

/// Services that install or download updates by themselves.
const SERVICES: [&str; 6] = [
    "dnf-automatic.service",
    "dnf-automatic-install.service",
    "dnf-automatic-download.service",
    "dnf5-automatic.service",
    "os-update.service",
    "packagekit-offline-update.service",
];

/// Where units lie (systemd.unit(5)); `/lib` where it is not `/usr/lib`.
const UNITS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

const WHY: &str = "Written by patchwarden-agent, which installs the updates of this machine (os_updater in agent.toml, spec.osUpdater of its PatchPolicy).";

const HOW: &str = "`patchwarden-agent leave` removes it. Whoever changes or removes it has the last word.";

/// A file that is to be there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Means {
    pub(super) path: PathBuf,
    pub(super) content: String,
}

/// What a file of ours switches off: `apt`, or the service whose drop-in it is.
pub(super) fn name_of(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match path.parent().and_then(name).as_deref() {
        Some("apt.conf.d") => "apt".to_owned(),
        Some(directory) if directory.ends_with(".service.d") => directory.trim_end_matches(".d").to_owned(),
        _ => name(path).unwrap_or_default(),
    }
}

/// What switches off the updaters of the system under `root`, while `book` is there.
pub(super) fn of(root: &Path, book: &Path) -> Vec<Means> {
    let mut all = Vec::new();
    let apt = root.join("etc/apt/apt.conf.d");
    if apt.is_dir() {
        let content = format!(
            "// {WHY}\n// {HOW}\nAPT::Periodic::Enable \"0\";\nUnattended-Upgrade::InstallOnShutdown \"false\";\n"
        );
        all.push(Means { path: apt.join("zz-patchwarden"), content });
    }
    let is_there = |service: &str| UNITS.iter().any(|place| root.join(place).join(service).exists());
    // A specifier begins with a percent sign.
    let book = book.display().to_string().replace('%', "%%");
    for service in SERVICES.into_iter().filter(|service| is_there(service)) {
        let path = root.join("etc/systemd/system").join(format!("{service}.d")).join("zz-patchwarden.conf");
        let content = format!("# {WHY}\n# {HOW}\n[Unit]\nConditionPathExists=!{book}\n");
        all.push(Means { path, content });
    }
    all
}
