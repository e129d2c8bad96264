//! apt and dpkg (Debian, Ubuntu and their children).
//!
//! - Updates are what `apt-get -s dist-upgrade` would bring, grouped by source package; only packages that are
//!   installed already. What is on hold or pinned and has a newer version is listed as such ([`kept`]).
//! - An update `interrupts_service` by the files and scripts of its installed packages ([`services`]).
//! - An update `requires_restart`: `Yes` when it brings one of the sources named in [`restart`] or a kernel image, `No`
//!   when it is none of these and interrupts no service, otherwise `Unknown`.
//! - Back to an earlier version goes only an order to take an update back (`--allow-downgrades`), and never what needs a
//!   restart.
//! - Other packages go (without `--no-remove`) only where that is what an order's simulation says and its `dependencies` allow.
//! - apt's signature checks are never switched off, and what is installed is downloaded by its unprivileged user. What is saved for
//!   the way back is not: `apt-get download` puts it into a directory of root's.

mod commands;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod history;
mod index;
mod kept;
mod parse;
mod policy;
mod restart;
mod room;
mod services;
mod trust;
mod updates;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{HeldReason, MAX_PROBLEM, Package, Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::versions::deb;

use self::commands::{
    INTERRUPTED, Indexes, all_rows, apt_get, archives_option, audit, checked, describe, describe_known, indexes,
    install, is_disk_full, is_interrupted, line, refresh_indexes, reinstall, rows_of, simulate,
};
use self::kept::Kept;
use self::parse::{Description, Row};
use self::trust::Doubt;
use super::history::zone;
use super::run::run;
use super::support::{LOCAL_LIMIT, MAX_MESSAGE, broken, holder, is_locked, stamp_of, verify};
use super::upstream;
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp, bounded, words,
};
use crate::platform;
use crate::provider::Unconfigured;

/// Seconds that an install waits for another package manager run to end.
const LOCK_TIMEOUT: u32 = 300;

const LOCKS: [&str; 2] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"];

/// What a simulation depends on, beside some directories of the configuration.
const STAMPED: [&str; 6] = [
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/updates",
    "/var/lib/apt/lists",
    "/var/lib/apt/extended_states",
    "/etc/apt/sources.list",
    "/etc/apt/preferences",
];

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Apt {
    /// `ID` of os-release(5).
    distribution: String,
    room: room::Memory,
}

impl Apt {
    /// The apt of a system with this `ID` of os-release(5).
    pub(super) fn new(distribution: String) -> Self {
        Self { distribution, room: room::Memory::default() }
    }
}

impl Provider for Apt {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let mut problems = Vec::new();
        if refresh {
            problems.extend(refresh_indexes().await);
        }
        // The simulation takes by far the longest: all else is done meanwhile. None is ended because of another, so that a
        // machine that does not change has the same failure again.
        let print_architecture = line("/usr/bin/dpkg", ["--print-architecture"]);
        let upgrade = words(["dist-upgrade"]);
        let (offered, audit, arch, database, upstream) = tokio::join!(
            simulate(&upgrade),
            audit(),
            run(&print_architecture, LOCAL_LIMIT),
            database(),
            upstream::apt()
        );
        let audit = audit?;
        let is_unconfigured = audit.as_ref().is_some_and(|audit| audit.is_unconfigured);
        problems.extend(audit.map(|audit| audit.problem));
        let arch = checked(arch?)?;
        let Database { rows, indexes } = database?;
        let restart = restart::restart(&rows);
        let mut offered = offered?.changes;
        offered.retain(|change| change.old.is_some());
        let kept = kept::kept(&rows, indexes.as_ref(), &offered, arch.trim()).await.unwrap_or_else(|failure| {
            problems.push(not_known("what apt keeps back", &failure));
            Vec::new()
        });
        let all = offered.iter().chain(kept.iter().map(|kept| &kept.change)).collect();
        let doubts = trust::doubts(all, indexes.as_ref(), arch.trim()).await.unwrap_or_else(|failure| {
            problems.push(not_known("whether a signature vouches for what is offered", &failure));
            BTreeMap::new()
        });
        let mut descriptions = indexes.map(Indexes::into_descriptions).unwrap_or_default();
        let mut changes: Vec<(Change, Option<HeldReason>)> = offered.into_iter().map(|change| (change, None)).collect();
        for Kept { change, reason, description } in kept {
            descriptions.insert(description.key(), description);
            changes.push((change, Some(reason)));
        }
        for (change, held) in &mut changes {
            let is_refused = doubts.get(&updates::key(change)) == Some(&Doubt::Refused);
            *held = held.or(is_refused.then_some(HeldReason::Unauthenticated));
        }
        let unconfigured =
            if is_unconfigured { rows.iter().filter_map(Row::unconfigured).collect() } else { Vec::new() };
        let mut packages: Vec<Package> = rows.into_iter().filter_map(Row::into_package).collect();
        packages.sort_unstable();
        let (updates, files) = updates::updates(&self.distribution, changes, descriptions, &doubts, &packages).await?;
        Ok(Inventory {
            arch: arch.trim().to_owned(),
            updates,
            files,
            removable: Vec::new(),
            packages,
            restart,
            problems,
            unconfigured,
            upstream,
        })
    }

    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        if direction != Direction::Back {
            kept::check(packages).await?;
        }
        let mut arguments = words(["-y", "--no-install-recommends", "-o", "APT::Get::AutomaticRemove=false"]);
        arguments.extend(install(direction, packages));
        let simulation = simulate(&arguments).await?;
        // What is half done is told by name; of a journal alone the simulation says nothing, and the install would do nothing.
        if simulation.configures.is_empty() && is_interrupted()? && !self.is_busy()? {
            return Err(Failure::new(ResultReason::WouldDoMore, INTERRUPTED).general());
        }
        Ok(simulation)
    }

    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let mut artifacts = commands::files_of(install(direction, packages)).await?;
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
        artifacts.extend(describe(there.iter()).await?.into_values().map(not_needed));
        Ok(artifacts)
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let candidates = packages.iter().map(|p| (p.name.as_str(), p.arch.as_str(), p.candidate.as_str()));
        let found = describe_known(candidates).await?.into_values();
        Ok(found.filter(|description| !description.sha256.is_empty()).map(not_needed).collect())
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
            // What it has grown by is counted already.
            largest = largest.max(description.installed_size.min(before));
        }
        let download = artifacts.iter().map(|artifact| artifact.size).sum();
        Ok(Space { download, unpacked: growth.saturating_add(largest) })
    }

    async fn download(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        commands::ensure_archives(archives)?;
        if missing.is_empty() {
            return Ok(());
        }
        commands::fetch(install(direction, packages), archives, line).await?;
        verify(missing, archives).await
    }

    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure> {
        commands::ensure_archives(archives)?;
        let found = commands::files_of(reinstall(files)).await?;
        // From where they come is told now: a repository on this machine would be used in place.
        let same = |wanted: &Artifact| found.iter().find(|found| found.line() == wanted.line()).cloned();
        let found: Vec<Artifact> = files.iter().filter_map(same).collect();
        if let Some(gone) = files.iter().find(|wanted| !found.iter().any(|found| found.line() == wanted.line())) {
            let message = format!("apt would not fetch {} {} as its index has it", gone.name, gone.version);
            return Err(Failure::new(ResultReason::Superseded, message));
        }
        commands::fetch(reinstall(files), archives, line).await?;
        verify(&found, archives).await
    }

    /// Of the rest the simulation is all: what dpkg cannot install stops that package, and not the others.
    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        if platform::parts().is_empty() {
            return Ok(());
        }
        // What is not there would have to be fetched by now: apt has read its indexes anew meanwhile, which is seen before the grant.
        let mut files = commands::files_of(install(direction, packages)).await?;
        files.retain(|file| archives.join(&file.file_name).exists());
        self.room.check(&files, archives).await
    }

    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        _: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        let mut command = apt_get([
            "-y",
            "--no-download",
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
        if direction != Direction::Removing {
            command.words.push("--no-remove".into());
        }
        command.words.extend(archives_option(archives));
        command.words.extend(install(direction, packages));
        command
    }

    async fn repair_commands(
        &self,
        _: Direction,
        _: &[PackageChange],
        _: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        if audit().await?.is_none() {
            return Ok(Vec::new());
        }
        let mut commands = Vec::new();
        // To apt one whose version is there already, or that is not named, needs nothing any more.
        let halves: Vec<Row> = all_rows().await?.into_iter().filter(Row::must_be_unpacked_again).collect();
        let files = archives_of(&halves, archives)?;
        if !files.is_empty() {
            let mut unpack = line("/usr/bin/dpkg", ["--unpack"]);
            unpack.words.extend(files.into_iter().map(Into::into));
            commands.push(unpack);
        }
        commands.push(line("/usr/bin/dpkg", ["--force-confdef", "--force-confold", "--configure", "--pending"]));
        Ok(commands)
    }

    /// apt ends at the first run of dpkg that fails: what that one has unpacked beside is not configured any more. What dpkg has
    /// tried to configure is not tried again.
    async fn completing_commands(&self) -> Result<Vec<CommandLine>, Failure> {
        let unpacked: Vec<String> = all_rows().await?.iter().filter_map(Row::unpacked).collect();
        if unpacked.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = line("/usr/bin/dpkg", ["--force-confdef", "--force-confold", "--configure"]);
        command.words.extend(unpacked.into_iter().map(Into::into));
        Ok(vec![command])
    }

    async fn unconfigured(&self) -> Result<Vec<Unconfigured>, Failure> {
        Ok(all_rows().await?.iter().filter_map(Row::unconfigured).collect())
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        Ok(rows_of(&names).await?.into_iter().filter_map(Row::into_installed).collect())
    }

    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun> {
        history::runs(&platform::root(), since, &zone())
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        for path in LOCKS {
            if is_locked(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn holder(&self) -> Option<String> {
        holder(LOCKS.map(PathBuf::from))
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        stamp_of(
            STAMPED.iter().map(PathBuf::from).collect(),
            &["/etc/apt/sources.list.d", "/etc/apt/preferences.d", "/etc/apt/apt.conf.d"],
        )
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        deb::compare(a, b).is_gt()
    }

    fn goes_back(&self, name: &str, source: &str) -> bool {
        !restart::needs_restart(name, source)
    }

    fn is_kernel(&self, name: &str) -> bool {
        restart::is_kernel(name)
    }

    fn is_image(&self, name: &str) -> bool {
        restart::is_image(name)
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        let message = parse::error_lines(output, &names, MAX_MESSAGE);
        let culprits = parse::culprits(output);
        let is_anothers =
            !names.is_empty() && !culprits.is_empty() && names.iter().all(|name| !culprits.contains(name));
        let reason = if is_anothers {
            // apt lets dpkg do no more after its first failure.
            ResultReason::OtherFailed
        } else if is_disk_full(output) {
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

    /// What dpkg could not complete is not installed to it.
    fn remarks(&self, _: &str, _: &[PackageChange]) -> String {
        String::new()
    }
}

/// Something that the report lacks.
fn not_known(what: &str, failure: &Failure) -> Problem {
    let message = bounded(&format!("{what} is not known: {failure}"), MAX_PROBLEM);
    Problem { code: ProblemCode::RepositoryUnavailable, message }
}

/// What the database of packages tells, with what can be found out of it.
struct Database {
    rows: Vec<Row>,
    indexes: Option<Indexes>,
}

async fn database() -> Result<Database, Failure> {
    let rows = all_rows().await?;
    let names: BTreeSet<&str> = rows.iter().filter(|row| row.is_present()).map(Row::name).collect();
    let indexes = indexes(names).await;
    Ok(Database { rows, indexes })
}

/// The file of a version, as the index states it, when it is not to be fetched.
fn not_needed(found: Description) -> Artifact {
    let file_name = found.archive_name();
    let Description { name, arch, version, sha256, size, .. } = found;
    Artifact { name, arch, version, sha256, size, file_name, local: None, needed: false, rivals: Vec::new() }
}

/// The files of these packages among an order's, which has each in one version alone.
fn archives_of(rows: &[Row], archives: &Path) -> Result<Vec<PathBuf>, Failure> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |error: std::io::Error| broken(format!("{}: {error}", archives.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(archives).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        // NAME_VERSION_ARCHITECTURE.deb, where none of these has an underscore (deb-version(7), deb-control(5)).
        let parts: Vec<&str> = name.to_str().unwrap_or_default().split('_').collect();
        let [package, _, end] = parts[..] else { continue };
        if rows.iter().any(|row| row.name() == package && end.strip_suffix(".deb") == Some(row.arch())) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_that_a_machine_needs_to_start_or_to_install_anything() {
        let apt = Apt::new("debian".into());
        for (name, source) in [
            ("linux-image-6.1.0-38-amd64", "linux-signed-amd64"),
            ("libc6", "glibc"),
            ("systemd-sysv", "systemd"),
            ("grub-efi-amd64", "grub2"),
            ("shim-signed", "shim-signed"),
            ("dpkg", "dpkg"),
            ("patchwarden-agent", "patchwarden-agent"),
        ] {
            assert!(apt.stays(name, source), "{name}");
        }
        assert!(!apt.stays("postfix", "postfix"));
    }

    #[test]
    fn the_cause_of_a_failure_is_read_from_the_output() {
        let apt = Apt::new("debian".into());
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
        let package = |name: &str| PackageChange {
            name: name.into(),
            arch: "all".into(),
            installed: "1".into(),
            candidate: "2".into(),
        };
        let full = "dpkg: error processing archive /a/x_2_all.deb (--unpack):\n cannot copy: No space left on device\n";
        let reason = |names: &[&str]| {
            apt.explain(full, Some(100), &names.iter().map(|name| package(name)).collect::<Vec<_>>()).reason
        };
        assert_eq!((reason(&["x"]), reason(&["y", "x"])), (ResultReason::DiskFull, ResultReason::DiskFull));
        assert_eq!(reason(&["y"]), ResultReason::OtherFailed, "it came after the cause");
    }
}
