//! apt and dpkg (Debian, Ubuntu and their children).
//!
//! - Updates are what `apt-get -s dist-upgrade` would bring, grouped by source package; only packages that are
//!   installed already. Held packages that have a newer version are listed as such.
//! - **Restart.** `Yes` when `/run/reboot-required` is there, when a newer kernel than the running one is installed, or
//!   when the running kernel's package was replaced. `No` when the system has what writes that file (unattended-upgrades
//!   or update-notifier hooks) and none of this is so. Otherwise, as in containers, `Unknown`.
//! - An update `requires_restart` when it brings one of [`RESTART_SOURCES`] or a kernel image; of any other apt does not
//!   say, so it is `Unknown`.
//! - apt's signature checks are never switched off, and neither is its unprivileged download user.

mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{
    Classification, Package, Problem, ProblemCode, Restart, Severity, Tristate, Update,
};
use patchwarden_protocol::result::ResultReason;
use sha2::{Digest as _, Sha256};

use self::parse::{Description, Row};
use super::run::{Output, run};
use super::{
    Artifact, Change, CommandLine, Environment, Failure, Installed, Inventory, Provider, Simulation, Space, Stamp,
    artifacts_digest, bounded, words,
};
use crate::{files, platform};

/// What only reads the machine's own files.
const LOCAL_LIMIT: Duration = Duration::from_mins(2);

/// `apt-get update`: with a dead mirror it tries for a minute or so.
const UPDATE_LIMIT: Duration = Duration::from_mins(10);

/// Downloads: an hour is enough for gigabytes on a slow line.
const DOWNLOAD_LIMIT: Duration = Duration::from_hours(1);

/// Seconds that an install waits for another package manager run to end.
const LOCK_TIMEOUT: u32 = 300;

/// Longest message taken from apt.
const MAX_MESSAGE: usize = 800;

/// Source packages whose old code keeps running in every process, or in the one that cannot be replaced.
const RESTART_SOURCES: [&str; 6] = ["glibc", "systemd", "dbus", "intel-microcode", "amd64-microcode", "linux"];

/// What writes `/run/reboot-required`.
const RESTART_NOTIFIERS: [&str; 3] = [
    "/etc/kernel/postinst.d/unattended-upgrades",
    "/etc/kernel/postinst.d/update-notifier",
    "/usr/share/update-notifier/notify-reboot-required",
];

const LOCKS: [&str; 2] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"];

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Apt {
    /// `ID` of os-release(5).
    distribution: String,
}

impl Apt {
    /// Finds apt on this machine.
    pub(crate) fn detect() -> Result<Self, Failure> {
        let failed = |message: String| Failure::new(ResultReason::PackageManagerFailed, message);
        for program in ["/usr/bin/apt-get", "/usr/bin/dpkg"] {
            if !Path::new(program).exists() {
                return Err(failed(format!("{program} is not there: this agent knows apt only")));
            }
        }
        let distribution = platform::os_release().map_err(|error| failed(error.to_string()))?.id;
        Ok(Self { distribution })
    }

    /// Everything that the offered changes become in a report.
    async fn updates(&self, changes: Vec<(Change, bool)>) -> Result<Vec<Update>, Failure> {
        let descriptions = describe(changes.iter().map(|(change, _)| change)).await?;
        let mut sources: BTreeMap<(String, String, bool), Vec<(Change, Description)>> = BTreeMap::new();
        for (change, held) in changes {
            let key = (change.name.clone(), change.arch.clone(), change.new.clone());
            let Some(found) = descriptions.get(&key) else {
                return Err(broken(format!("apt-cache does not describe {} {}", change.name, change.new)));
            };
            sources
                .entry((found.source.clone(), found.source_version.clone(), held))
                .or_default()
                .push((change, found.clone()));
        }
        Ok(sources
            .into_iter()
            .map(|((source, version, held), members)| self.update(&source, &version, held, members))
            .collect())
    }

    fn update(&self, source: &str, version: &str, held: bool, members: Vec<(Change, Description)>) -> Update {
        let classification = members
            .iter()
            .map(|(change, _)| parse::classification(&change.origin))
            .min()
            .unwrap_or(Classification::Unclassified);
        let origins: BTreeSet<&str> = members.iter().map(|(change, _)| change.origin.as_str()).collect();
        let origin = bounded(&origins.into_iter().collect::<Vec<_>>().join(", "), 200);
        let restarts = RESTART_SOURCES.contains(&source)
            || source.starts_with("linux-signed")
            || members.iter().any(|(change, _)| change.name.starts_with("linux-image-"));
        let artifacts_digest = artifacts_digest(
            members.iter().map(|(_, d)| (d.name.as_str(), d.arch.as_str(), d.version.as_str(), d.sha256.as_str())),
        );
        let size_bytes = members.iter().map(|(_, description)| description.size).sum();
        let mut packages: Vec<PackageChange> = members
            .into_iter()
            .map(|(change, _)| PackageChange {
                name: change.name,
                arch: change.arch,
                installed: change.old.unwrap_or_default(),
                candidate: change.new,
            })
            .collect();
        packages.sort_unstable();
        // The binary's versions: a rebuild (`+b1`) has the same source version.
        let versions = packages.first().map(|p| format!("{} -> {}", p.installed, p.candidate)).unwrap_or_default();
        Update {
            id: bounded(&parse::package_url(&self.distribution, source, version), 253),
            title: bounded(&format!("{source} {versions}"), 200),
            classification,
            severity: Severity::Unknown,
            cves: Vec::new(),
            published: None,
            origin,
            size_bytes,
            requires_restart: if restarts { Tristate::Yes } else { Tristate::Unknown },
            interrupts_service: Tristate::Unknown,
            artifacts_digest,
            held,
            downloaded: false,
            packages,
        }
    }
}

impl Provider for Apt {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let mut problems = Vec::new();
        if refresh {
            problems.extend(refresh_indexes().await);
        }
        problems.extend(audit().await?);
        let arch = checked(run(&line("/usr/bin/dpkg", ["--print-architecture"]), LOCAL_LIMIT).await?)?;
        let rows = all_rows().await?;
        let restart = restart(&rows);
        let mut changes: Vec<(Change, bool)> = Vec::new();
        let offered = simulate(&words(["dist-upgrade"])).await?;
        changes.extend(offered.changes.into_iter().map(|change| (change, false)));
        changes.extend(held_changes().await?.into_iter().map(|change| (change, true)));
        changes.retain(|(change, _)| change.old.is_some());
        let updates = self.updates(changes).await?;
        let mut packages: Vec<Package> = rows.into_iter().filter_map(Row::into_package).collect();
        packages.sort_unstable();
        Ok(Inventory { arch: arch.trim().to_owned(), updates, packages, restart, problems })
    }

    async fn simulate(&self, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let mut arguments = words(["-y", "--no-install-recommends", "-o", "APT::Get::AutomaticRemove=false"]);
        arguments.extend(only_upgrade(packages));
        simulate(&arguments).await
    }

    async fn artifacts(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        // With an archives directory that does not exist nothing counts as downloaded already.
        let mut command = apt_get([
            "-y",
            "--print-uris",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "Acquire::ForceHash=SHA256",
            "-o",
            "Dir::Cache::archives=/nonexistent/",
        ]);
        command.words.extend(only_upgrade(packages));
        let output = checked(run(&command, LOCAL_LIMIT).await?)?;
        let mut artifacts = parse::artifacts(&output).map_err(broken)?;
        let there: Vec<Change> = packages
            .iter()
            .filter(|package| !artifacts.iter().any(|a| a.name == package.name && a.arch == package.arch))
            .map(|package| Change {
                name: package.name.clone(),
                arch: package.arch.clone(),
                old: Some(package.candidate.clone()),
                new: package.candidate.clone(),
                origin: String::new(),
            })
            .collect();
        artifacts.extend(describe(there.iter()).await?.into_values().map(|found| Artifact {
            name: found.name,
            arch: found.arch,
            version: found.version,
            sha256: found.sha256,
            size: 0,
            file_name: String::new(),
            local: None,
            needed: false,
        }));
        Ok(artifacts)
    }

    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        let descriptions = describe(changes.iter()).await?;
        let names: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
        let old: BTreeMap<String, u64> =
            rows_of(&names).await?.into_iter().map(|row| (row.name().to_owned(), row.installed_size)).collect();
        let (mut growth, mut largest) = (0_u64, 0);
        for description in descriptions.values() {
            let before = old.get(&description.name).copied().unwrap_or_default();
            growth = growth.saturating_add(description.installed_size.saturating_sub(before));
            largest = largest.max(description.installed_size);
        }
        let download = artifacts.iter().map(|artifact| artifact.size).sum();
        Ok(Space { download, unpacked: growth.saturating_add(largest) })
    }

    async fn download(
        &self,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(ResultReason::DownloadFailed, format!("{}: {error}", archives.display()))
        };
        files::remove_tree(archives).map_err(|error| failed(&error))?;
        files::ensure_directory(&archives.join("partial"), files::PASSAGE).map_err(|error| failed(&error))?;
        files::ensure_directory(archives, files::PASSAGE).map_err(|error| failed(&error))?;
        let mut command = apt_get([
            "-y",
            "--download-only",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "APT::Get::AllowUnauthenticated=false",
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
            "-o",
            "Acquire::Retries=3",
        ]);
        command.words.extend(archives_option(archives));
        command.words.extend(only_upgrade(packages));
        let output = run(&command, DOWNLOAD_LIMIT).await?;
        if !output.succeeded() {
            let text = output.all();
            let reason = if is_disk_full(&text) { ResultReason::DiskFull } else { ResultReason::DownloadFailed };
            return Err(Failure::new(reason, parse::error_lines(&text, &[], MAX_MESSAGE)));
        }
        let (artifacts, archives) = (artifacts.to_vec(), archives.to_owned());
        // Hashing gigabytes must not stop the session's keepalive.
        tokio::task::spawn_blocking(move || {
            artifacts
                .iter()
                .filter(|artifact| artifact.needed)
                .try_for_each(|artifact| verify_file(artifact, &archives))
        })
        .await
        .map_err(|error| Failure::new(ResultReason::DownloadFailed, error.to_string()))?
    }

    fn install_command(&self, packages: &[PackageChange], archives: &Path) -> CommandLine {
        let mut command = apt_get([
            "-y",
            "--no-download",
            "--no-remove",
            "--no-install-recommends",
            "-o",
            "APT::Get::AutomaticRemove=false",
            "-o",
            "APT::Get::AllowUnauthenticated=false",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            "-o",
        ]);
        command.words.push(format!("DPkg::Lock::Timeout={LOCK_TIMEOUT}").into());
        command.words.extend(archives_option(archives));
        command.words.extend(only_upgrade(packages));
        command
    }

    async fn needs_repair(&self) -> Result<bool, Failure> {
        Ok(audit().await?.is_some())
    }

    fn repair_command(&self) -> CommandLine {
        line("/usr/bin/dpkg", ["--force-confdef", "--force-confold", "--configure", "--pending"])
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        Ok(rows_of(&names).await?.into_iter().filter_map(Row::into_installed).collect())
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        for path in LOCKS {
            let failed = |error: &dyn std::fmt::Display| broken(format!("{path}: {error}"));
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&error)),
            };
            // Only asked: taking the lock, even for an instant, could make another program fail.
            let wanted = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
            if rustix::process::fcntl_getlk(&file, &wanted).map_err(|error| failed(&error))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let mut paths: Vec<PathBuf> = ["/var/lib/dpkg/status", "/var/lib/dpkg/updates", "/var/lib/apt/lists"]
            .into_iter()
            .chain(["/var/lib/apt/extended_states", "/etc/apt/sources.list", "/etc/apt/preferences"])
            .map(PathBuf::from)
            .collect();
        for directory in ["/etc/apt/sources.list.d", "/etc/apt/preferences.d", "/etc/apt/apt.conf.d"] {
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(broken(format!("{directory}: {error}"))),
            };
            for entry in entries {
                paths.push(entry.map_err(|error| broken(format!("{directory}: {error}")))?.path());
            }
        }
        paths.sort_unstable();
        let mut stamps = Vec::with_capacity(paths.len());
        for path in paths {
            let stamp = match fs::metadata(&path) {
                Ok(meta) => Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(broken(format!("{}: {error}", path.display()))),
            };
            stamps.push((path, stamp));
        }
        Ok(Stamp(stamps))
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        let message = parse::error_lines(output, &names, MAX_MESSAGE);
        let reason = if is_disk_full(output) {
            ResultReason::DiskFull
        } else if output.contains("Could not get lock") || output.contains("Unable to acquire the dpkg frontend lock") {
            ResultReason::Locked
        } else if code == Some(0) {
            ResultReason::NotInstalled
        } else {
            ResultReason::PackageManagerFailed
        };
        match (message.is_empty(), code) {
            (false, _) => Failure::new(reason, message),
            (true, Some(0)) => Failure::new(reason, "apt-get succeeded, and its database says otherwise"),
            (true, Some(code)) => Failure::new(reason, format!("apt-get ended with code {code}")),
            (true, None) => Failure::new(reason, "apt-get was ended before it was done"),
        }
    }
}

fn broken(message: impl Into<String>) -> Failure {
    Failure::new(ResultReason::PackageManagerFailed, message)
}

fn is_disk_full(output: &str) -> bool {
    ["No space left on device", "You don't have enough free space"].iter().any(|words| output.contains(words))
}

/// Fixed variables: parsing depends on the language, and nobody is there to answer a question.
fn environment() -> Environment {
    [
        ("LC_ALL", "C"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBIAN_PRIORITY", "critical"),
        ("APT_LISTCHANGES_FRONTEND", "none"),
        // needrestart only lists: what is restarted is not for a maintainer script to decide.
        ("NEEDRESTART_MODE", "l"),
        ("HOME", "/root"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ]
    .map(|(name, value)| (name, value.into()))
    .to_vec()
}

fn line<const N: usize>(program: &str, arguments: [&str; N]) -> CommandLine {
    let mut line = CommandLine { words: words([program]), environment: environment() };
    line.words.extend(words(arguments));
    line
}

fn apt_get<const N: usize>(arguments: [&str; N]) -> CommandLine {
    let mut command = line("/usr/bin/apt-get", ["-q", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Color=0"]);
    command.words.extend(words(arguments));
    command
}

fn archives_option(archives: &Path) -> [std::ffi::OsString; 2] {
    let mut option = std::ffi::OsString::from("Dir::Cache::archives=");
    option.push(archives);
    option.push("/");
    ["-o".into(), option]
}

/// `install --only-upgrade NAME:ARCH=VERSION ...`. A bare install would mark packages as manually installed.
fn only_upgrade(packages: &[PackageChange]) -> Vec<std::ffi::OsString> {
    let mut arguments = words(["install", "--only-upgrade"]);
    arguments.extend(packages.iter().map(|p| format!("{}:{}={}", p.name, p.arch, p.candidate).into()));
    arguments
}

/// Standard output of a run that succeeded; otherwise why it did not.
fn checked(output: Output) -> Result<String, Failure> {
    if output.succeeded() {
        return Ok(output.stdout);
    }
    let text = output.all();
    let gone = text.contains("was not found") || text.contains("Unable to locate package");
    let reason = if gone { ResultReason::Superseded } else { ResultReason::PackageManagerFailed };
    let mut message = parse::error_lines(&text, &[], MAX_MESSAGE);
    if message.is_empty() {
        message = bounded(output.stderr.trim(), MAX_MESSAGE);
    }
    if message.is_empty() {
        message = format!("ended with code {:?}", output.code);
    }
    Err(Failure::new(reason, message))
}

async fn simulate(arguments: &[std::ffi::OsString]) -> Result<Simulation, Failure> {
    let mut command = apt_get(["-s", "-o", "Debug::NoLocking=1"]);
    command.words.extend_from_slice(arguments);
    parse::simulation(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

/// `apt-get update`. Whatever goes wrong is a problem of the report: the indexes of yesterday are still there.
async fn refresh_indexes() -> Option<Problem> {
    let command = apt_get([
        "-o",
        "Acquire::http::Timeout=20",
        "-o",
        "Acquire::https::Timeout=20",
        "-o",
        "Acquire::Retries=1",
        "update",
    ]);
    let message = match run(&command, UPDATE_LIMIT).await {
        Ok(output) => {
            let text = output.all();
            let lines = parse::unavailable(&text).join("; ");
            if lines.is_empty() && !output.succeeded() {
                format!("apt-get update ended with code {:?}", output.code)
            } else {
                lines
            }
        }
        Err(failure) => failure.message,
    };
    let code = ProblemCode::RepositoryUnavailable;
    (!message.is_empty()).then(|| Problem { code, message: bounded(&message, 300) })
}

/// `dpkg --audit`, and the journal of a dpkg that was interrupted.
async fn audit() -> Result<Option<Problem>, Failure> {
    let interrupted = match fs::read_dir("/var/lib/dpkg/updates") {
        Ok(mut entries) => entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(broken(format!("/var/lib/dpkg/updates: {error}"))),
    };
    let output = run(&line("/usr/bin/dpkg", ["--audit"]), LOCAL_LIMIT).await?;
    let said = output.stdout.trim();
    let message = if !said.is_empty() {
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    } else if !output.succeeded() {
        output.stderr.trim().to_owned()
    } else if interrupted {
        "dpkg was interrupted; `dpkg --configure -a` completes its work".to_owned()
    } else {
        return Ok(None);
    };
    Ok(Some(Problem { code: ProblemCode::PackageManagerBroken, message: bounded(&message, 300) }))
}

async fn all_rows() -> Result<Vec<Row>, Failure> {
    let command = line("/usr/bin/dpkg-query", ["--show", "--showformat", parse::ROW_FORMAT]);
    parse::rows(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

async fn rows_of(names: &[&str]) -> Result<Vec<Row>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = line("/usr/bin/dpkg-query", ["--show", "--showformat", parse::ROW_FORMAT]);
    command.words.extend(names.iter().map(std::ffi::OsString::from));
    let output = run(&command, LOCAL_LIMIT).await?;
    // Code 1: some name is not known; the others are listed.
    if !matches!(output.code, Some(0 | 1)) {
        checked(output)?;
        return Ok(Vec::new());
    }
    parse::rows(&output.stdout).map_err(broken)
}

type PackageKey = (String, String, String);

/// `apt-cache show` of every change, in one run.
async fn describe(changes: impl Iterator<Item = &Change>) -> Result<BTreeMap<PackageKey, Description>, Failure> {
    let mut command = line("/usr/bin/apt-cache", ["show"]);
    let before = command.words.len();
    command.words.extend(changes.map(|change| format!("{}:{}={}", change.name, change.arch, change.new).into()));
    if command.words.len() == before {
        return Ok(BTreeMap::new());
    }
    let output = checked(run(&command, LOCAL_LIMIT).await?)?;
    Ok(parse::descriptions(&output)
        .into_iter()
        .map(|found| ((found.name.clone(), found.arch.clone(), found.version.clone()), found))
        .collect())
}

/// Held packages that have a newer version.
async fn held_changes() -> Result<Vec<Change>, Failure> {
    let output = checked(run(&line("/usr/bin/apt-mark", ["showhold"]), LOCAL_LIMIT).await?)?;
    let held: Vec<&str> = output.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut arguments = words(["--ignore-hold", "--allow-change-held-packages", "install", "--only-upgrade"]);
    arguments.extend(held.iter().map(std::ffi::OsString::from));
    let mut changes = simulate(&arguments).await?.changes;
    let bare: Vec<&str> = held.iter().map(|name| name.split(':').next().unwrap_or(name)).collect();
    changes.retain(|change| bare.contains(&change.name.as_str()));
    Ok(changes)
}

fn restart(rows: &[Row]) -> Restart {
    let running = platform::kernel();
    let version_line = rustix::system::uname().version().to_string_lossy().into_owned();
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

/// Hashes a file in the archives directory. A repository on this machine is used in place by apt: its file is copied
/// first, so that what was hashed is what will be installed.
fn verify_file(artifact: &Artifact, archives: &Path) -> Result<(), Failure> {
    let failed = |message: String| Failure::new(ResultReason::DownloadFailed, message);
    let path = archives.join(&artifact.file_name);
    if let Some(source) = &artifact.local {
        fs::copy(source, &path).map_err(|error| failed(format!("{}: {error}", source.display())))?;
    }
    let sha256 = sha256_of(&path).map_err(|error| failed(format!("{}: {error}", artifact.file_name)))?;
    if sha256 == artifact.sha256 {
        return Ok(());
    }
    Err(failed(format!("{} has SHA-256 {sha256}, the repository says {}", artifact.file_name, artifact.sha256)))
}

fn sha256_of(path: &Path) -> io::Result<String> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lines: &[(&str, &str)]) -> Vec<Row> {
        let lines: Vec<String> =
            lines.iter().map(|(name, version)| format!("ii \t{name}\tamd64\t{version}\tlinux\t1\n")).collect();
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
    fn a_file_that_is_not_the_one_of_the_index_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source.deb");
        fs::write(&source, b"abc").unwrap();
        let mut artifact = Artifact {
            name: "x".into(),
            arch: "all".into(),
            version: "1".into(),
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
            size: 3,
            file_name: "x_1_all.deb".into(),
            local: Some(source),
            needed: true,
        };
        assert_eq!(verify_file(&artifact, directory.path()), Ok(()));
        artifact.sha256 = String::new();
        assert_eq!(verify_file(&artifact, directory.path()).unwrap_err().reason, ResultReason::DownloadFailed);
    }

    #[test]
    fn the_cause_of_a_failure_is_read_from_the_output() {
        let apt = Apt { distribution: "debian".into() };
        for (output, code, reason) in [
            ("dpkg: error: ... No space left on device", Some(100), ResultReason::DiskFull),
            ("E: You don't have enough free space in /x.", Some(100), ResultReason::DiskFull),
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7",
                Some(100),
                ResultReason::Locked,
            ),
            ("", Some(0), ResultReason::NotInstalled),
            ("E: Sub-process /usr/bin/dpkg returned an error code (1)", Some(100), ResultReason::PackageManagerFailed),
            ("", None, ResultReason::PackageManagerFailed),
        ] {
            let failure = apt.explain(output, code, &[]);
            assert_eq!(failure.reason, reason, "{output}");
            assert!(!failure.message.is_empty());
        }
    }
}
