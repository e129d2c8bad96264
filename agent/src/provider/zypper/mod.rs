//! zypper (SUSE Linux Enterprise, openSUSE).
//!
//! - What could be done is asked with `zypper --xmlout` ([`ask`]). What zypper does not tell (checksums, sizes, what an
//!   advisory is about) is read from the repositories' indexes in libzypp's cache ([`index`]), which it has verified.
//! - What is done is one ordinary `zypper install` of exact versions, whose cache of packages is a directory with the files
//!   that were verified: it looks at each one's checksum and signature once more.
//! - Updates are what `zypper list-updates` lists, grouped by the advisory that brings exactly that version, else by source
//!   package. Newer versions of locked packages are listed as held.
//! - Signatures are checked as each repository says (`gpgcheck`, `pkg_gpgcheck`): this agent neither sets nor unsets it, and
//!   no key is taken that nobody has accepted.
//! - Of packages that are kept in several versions (`multiversion` in zypp.conf) a new one comes beside the old ones.
//! - rpm has no half-installed state. What was interrupted is there in two versions, or at its old one; of an order's
//!   packages [`Provider::repair_commands`] installs the ordered version of the former once more, so that its scripts run to their end.
//! - A script of a package that fails after its files are there does not undo the update: to rpm it is installed.

mod answer;
mod ask;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod history;
mod index;
mod multiversion;
mod offers;
mod xml;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Package, Problem, Tristate};
use patchwarden_protocol::result::ResultReason;

use self::answer::{Step, Version, What};
use self::ask::{INSTALL_WAITS, command, install, unavailable, with_cache};
use self::index::{Entry, Index, chosen, is_of};
use super::history::zone;
use super::rpm::{self, Row};
use super::support::{broken, holder, stamp_of, verify};
use super::upstream;
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp,
};
use crate::files;
use crate::platform;

/// zypper's lock: the number of the process that has it.
const LOCK: &str = "/run/zypp.pid";

/// Where the repositories are (zypper(8), FILES).
const REPOSITORIES: &str = "/etc/zypp/repos.d";

/// Where libzypp keeps the repositories' indexes.
const INDEXES: &str = "/var/cache/zypp/raw";

/// Made by libzypp when what it installed asks for a restart; `zypper needs-rebooting` looks at it.
const REBOOT_NEEDED: &str = "/run/reboot-needed";

/// Below the archives: a cache of packages as libzypp lays it out, of links to the files there.
const CACHE: &str = "zypp";

/// Installs what is there already, once more (zypper(8)).
const FORCE: &str = "--force";

/// What a simulation depends on, beside the database, the indexes and some directories.
const STAMPED: [&str; 4] =
    ["/etc/zypp/zypp.conf", "/usr/etc/zypp/zypp.conf", "/etc/zypp/zypper.conf", "/etc/zypp/locks"];

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Zypper {
    /// `ID` of os-release(5).
    distribution: String,
}

impl Zypper {
    /// The zypper of a system with this `ID` of os-release(5).
    pub(super) fn new(distribution: String) -> Self {
        Self { distribution }
    }

    /// What zypper would do, without what is listed twice.
    async fn plan(&self, direction: Direction, packages: &[PackageChange]) -> Result<Plan, Failure> {
        let steps = ask::plan(direction, packages, &[]).await?;
        let names: BTreeSet<&str> = steps.iter().map(|step| step.package.name.as_str()).collect();
        let newest = rpm::newest(rpm::rows_of(&names.into_iter().collect::<Vec<_>>()).await?);
        let plan = Plan::of(steps, &newest);
        if direction != Direction::Back && !plan.other_vendor.is_empty() {
            // What is named is installed from any vendor: only what zypper would update by itself may change it.
            let offered = ask::list().await?.offered;
            if let Some(foreign) = plan.other_vendor.iter().find(|version| !offered.contains(version)) {
                let Version { name, version, .. } = foreign;
                return Err(broken(format!("{name} {version} is another vendor's than the installed one")));
            }
        }
        Ok(plan)
    }

    /// Packages that are there in two versions and should not be.
    async fn unfinished(&self, rows: &[Row]) -> Result<BTreeSet<(String, String)>, Failure> {
        let doubled = rpm::doubled(rows);
        if doubled.is_empty() {
            return Ok(BTreeSet::new());
        }
        let several = multiversion::names().await?;
        let unfinished = doubled.into_iter().filter(|(name, _)| !several.contains(*name));
        Ok(unfinished.map(|(name, arch)| (name.to_owned(), arch.to_owned())).collect())
    }

    /// Brings `missing` into `archives`, and lays all of `coming` where an install looks for it.
    async fn bring(
        &self,
        coming: &[Version],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        if let Some(file) = missing.iter().find(|file| file.sha256.is_empty()) {
            let message = format!("{}: its repository states no SHA-256 of it, or several", file.file_name);
            return Err(Failure::new(ResultReason::DownloadFailed, message));
        }
        let failed = |path: &Path, error: &io::Error| {
            let reason = match error.kind() {
                io::ErrorKind::StorageFull => ResultReason::DiskFull,
                _ => ResultReason::DownloadFailed,
            };
            Failure::new(reason, format!("{}: {error}", path.display()))
        };
        let cache = archives.join(CACHE);
        files::ensure_directory(archives, files::PASSAGE)
            .and_then(|()| files::ensure_directory(&cache, files::PASSAGE))
            .map_err(|error| failed(archives, &error))?;
        let index = entries_of(coming.iter()).await?;
        let mut refused = String::new();
        if !missing.is_empty() {
            // What it fetches lies where an install looks for it.
            let answer = ask::download(missing, &cache, line).await?;
            for path in &answer.files {
                let Some(name) = path.file_name() else { continue };
                files::link_or_copy(path, &archives.join(name)).map_err(|error| failed(path, &error))?;
            }
            refused = answer.errors.join("\n");
        }
        let is_there = |artifact: &Artifact| archives.join(&artifact.file_name).exists();
        let (here, absent): (Vec<Artifact>, Vec<Artifact>) = missing.iter().cloned().partition(is_there);
        verify(&here, archives).await?;
        for version in coming {
            let Some(best) = chosen(&index, version) else { continue };
            let from = archives.join(&best.file.base_name);
            for entry in index.iter().filter(|entry| is_of(entry, version) && entry.file.sha256 == best.file.sha256) {
                lay(&from, &cache, entry).map_err(|error| failed(&from, &error))?;
            }
        }
        // Whose signature is bad is for the rehearsal to say: it does not hold up the others.
        match absent.first() {
            Some(_) if refused.contains("Signature verification failed") => Ok(()),
            Some(first) => {
                let reason = explain::reason_of(&refused).unwrap_or(ResultReason::DownloadFailed);
                let why = if refused.is_empty() { "zypper did not bring it".to_owned() } else { refused };
                Err(Failure::new(
                    reason,
                    super::bounded(&format!("{}: {why}", first.file_name), super::support::MAX_MESSAGE),
                ))
            }
            None => Ok(()),
        }
    }
}

/// What would be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Versions that come, and the installed ones that they are newer or older ones of.
    coming: Vec<(Version, Option<String>)>,
    removals: Vec<String>,
    other_vendor: Vec<Version>,
}

impl Plan {
    fn of(steps: Vec<Step>, newest: &[Row]) -> Self {
        let mut plan = Self::default();
        let mut going = Vec::new();
        for Step { what, package } in steps {
            match what {
                What::Goes => going.push(package),
                // Listed once more as what comes.
                What::OtherVendor => plan.other_vendor.push(package),
                What::Comes if plan.coming.iter().any(|(version, _)| *version == package) => {}
                What::Comes => {
                    let old = offers::predecessor(newest, &package).map(|row| row.version.clone());
                    plan.coming.push((package, old));
                }
            }
        }
        // One of two versions that an interrupted run left goes when the other comes once more.
        going.retain(|gone| !plan.coming.iter().any(|(c, _)| (&c.name, &c.arch) == (&gone.name, &gone.arch)));
        plan.removals = going.into_iter().map(|gone| gone.name).collect();
        plan.removals.sort_unstable();
        plan
    }
}

impl Provider for Zypper {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let mut problems = Vec::new();
        if refresh {
            problems.extend(ask::refresh().await);
        }
        let rows = rpm::all_rows().await?;
        let remedy = "`zypper install --force NAME` completes its work";
        problems.extend(rpm::doubled_problem(&self.unfinished(&rows).await?, remedy));
        let listed = ask::list().await?;
        if problems.is_empty() {
            problems.extend(listed.problem.clone());
        }
        let booted_at = platform::boot().map_err(|error| broken(error.to_string()))?.time.as_second();
        let fresh = rows.iter().filter(|row| row.installed_at > booted_at).map(|row| row.name.clone());
        let offered = listed.offered.iter().chain(&listed.locked).map(|version| version.name.clone());
        let (index, unreadable) = indexes(offered.chain(fresh).collect()).await?;
        problems.extend(unreadable);
        let offers = offers::offers(&listed, &rows, &index);
        let mut restart = rpm::restart(&rows, &offers::restart_for(&rows, &index, booted_at))?;
        if fs::exists(REBOOT_NEEDED).map_err(|error| broken(format!("{REBOOT_NEEDED}: {error}")))? {
            restart.required = Tristate::Yes;
            restart.reasons.push(format!("{REBOOT_NEEDED} is there: what zypper installed asks for it"));
        }
        let names: Vec<&str> = offers.updates.iter().map(|update| update.file.name.as_str()).collect();
        let interruptions = rpm::interrupted_by(&names).await;
        let (updates, files) = rpm::updates(&self.distribution, offers, &interruptions);
        let mut packages: Vec<Package> = rows.iter().map(Row::package).collect();
        packages.sort_unstable();
        let arch = std::env::consts::ARCH.to_owned();
        Ok(Inventory {
            arch,
            updates,
            files,
            removable: Vec::new(),
            packages,
            restart,
            problems,
            unconfigured: Vec::new(),
            upstream: upstream::rpm(&[REPOSITORIES], None),
        })
    }

    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let Plan { coming, removals, .. } = self.plan(direction, packages).await?;
        let index = entries_of(coming.iter().map(|(version, _)| version)).await?;
        let changes = coming.into_iter().map(|(version, old)| {
            // zypper does not tell it.
            let origin = chosen(&index, &version).map(|entry| entry.file.repository).unwrap_or_default();
            let Version { name, arch, version } = version;
            Change { name, arch, old, new: version, origin }
        });
        Ok(Simulation { changes: changes.collect(), removals, ..Simulation::default() })
    }

    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let coming: Vec<Version> =
            self.plan(direction, packages).await?.coming.into_iter().map(|(version, _)| version).collect();
        let there = packages.iter().map(candidate).filter(|package| !coming.contains(package));
        let there: Vec<Version> = there.collect();
        let index = entries_of(coming.iter().chain(&there)).await?;
        let mut artifacts = Vec::with_capacity(coming.len() + there.len());
        for version in &coming {
            let Some(entry) = chosen(&index, version) else {
                let Version { name, version, .. } = version;
                return Err(Failure::new(ResultReason::Superseded, format!("{name} {version} is in no repository")));
            };
            artifacts.push(entry.file.into_artifact(true));
        }
        let known = there.iter().filter_map(|version| chosen(&index, version));
        artifacts.extend(known.map(|entry| entry.file.into_artifact(false)).filter(|a| !a.sha256.is_empty()));
        Ok(artifacts)
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let versions: Vec<Version> = packages.iter().map(candidate).collect();
        let index = entries_of(versions.iter()).await?;
        let found = versions.iter().filter_map(|version| chosen(&index, version));
        Ok(found.map(|entry| entry.file.into_artifact(false)).filter(|a| !a.sha256.is_empty()).collect())
    }

    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        let versions: Vec<Version> = changes
            .iter()
            .map(|Change { name, arch, new, .. }| Version {
                name: name.clone(),
                arch: arch.clone(),
                version: new.clone(),
            })
            .collect();
        let index = entries_of(versions.iter()).await?;
        let new = versions.iter().filter_map(|version| chosen(&index, version)).map(|entry| entry.file).collect();
        rpm::space(new, changes, artifacts).await
    }

    async fn download(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        let coming = self.plan(direction, packages).await?.coming;
        let coming: Vec<Version> = coming.into_iter().map(|(version, _)| version).collect();
        self.bring(&coming, missing, archives, line).await
    }

    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure> {
        let versions: Vec<Version> = files
            .iter()
            .map(|Artifact { name, arch, version, .. }| Version {
                name: name.clone(),
                arch: arch.clone(),
                version: version.clone(),
            })
            .collect();
        self.bring(&versions, files, archives, line).await?;
        // Also what was left for the rehearsal to say.
        verify(files, archives).await
    }

    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        ask::rehearse(direction, packages, &archives.join(CACHE)).await
    }

    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        _: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        install_command(direction, packages, archives, &[])
    }

    async fn repair_commands(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        removals: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        let unfinished = self.unfinished(&rpm::rows_of(&names).await?).await?;
        let is_unfinished = |p: &&PackageChange| unfinished.iter().any(|(n, a)| (n, a) == (&p.name, &p.arch));
        let left: Vec<PackageChange> = packages.iter().filter(is_unfinished).cloned().collect();
        if left.is_empty() {
            return rpm::removal_of_the_rest(packages, removals).await;
        }
        if direction != Direction::Back {
            let newest = rpm::newest(rpm::rows_of(&names).await?);
            let plan = Plan::of(ask::plan(direction, &left, &[FORCE]).await?, &newest);
            let is_meant = |name: &&String| removals.iter().any(|gone| gone.name == **name);
            if let Some(more) = plan.removals.iter().find(|name| !is_meant(name)) {
                let message = format!("to complete what was interrupted zypper would also remove {more}");
                return Err(Failure::new(ResultReason::WouldDoMore, message));
            }
        }
        // It is there: without the option zypper would do nothing. The other version goes with it.
        Ok(vec![install_command(direction, &left, archives, &[FORCE])])
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        let rows = rpm::rows_of(&names).await?;
        let unfinished = self.unfinished(&rows).await?;
        Ok(rpm::installed(rows, &unfinished))
    }

    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun> {
        history::runs(&platform::root(), since, &zone())
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        Ok(rpm::is_busy()? || is_held(Path::new(LOCK))?)
    }

    fn holder(&self) -> Option<String> {
        holder(std::iter::once(LOCK).chain(rpm::LOCKS).map(PathBuf::from))
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        rpm::compare(a, b).is_gt()
    }

    fn goes_back(&self, name: &str, source: &str) -> bool {
        !rpm::needs_restart(name, source)
    }

    fn is_kernel(&self, name: &str) -> bool {
        rpm::is_kernel(name)
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let mut paths: Vec<PathBuf> = rpm::DATABASES.iter().chain(&STAMPED).map(PathBuf::from).collect();
        paths.extend(index::all(Path::new(INDEXES)).map_err(|error| broken(format!("{INDEXES}: {error}")))?);
        stamp_of(paths, &["/etc/zypp/repos.d", "/etc/zypp/vendors.d", "/etc/zypp/vars.d", multiversion::DIRECTORY])
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        explain::explain(output, code, packages)
    }

    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String {
        rpm::remarks(output, packages)
    }
}

/// Everything is fetched, or rather found, before anything is installed.
fn install_command(direction: Direction, packages: &[PackageChange], archives: &Path, more: &[&str]) -> CommandLine {
    let mut line = with_cache(command(INSTALL_WAITS), &archives.join(CACHE));
    line.words.extend(install(direction, packages, &[&["--download", "in-advance"], more].concat()));
    line
}

fn candidate(package: &PackageChange) -> Version {
    Version { name: package.name.clone(), arch: package.arch.clone(), version: package.candidate.clone() }
}

/// Whether a process has zypper's lock, as libzypp looks at it: it is there, and no zombie, which has no command line.
fn is_held(path: &Path) -> Result<bool, Failure> {
    let failed = |error: &dyn std::fmt::Display| broken(format!("{}: {error}", path.display()));
    let text = files::read_if_exists(path).map_err(|error| failed(&error))?.unwrap_or_default();
    let Ok(pid) = String::from_utf8_lossy(&text).trim().parse::<u32>() else { return Ok(false) };
    let line = files::read_if_exists(Path::new(&format!("/proc/{pid}/cmdline")));
    match line {
        Ok(line) => Ok(line.is_some_and(|line| !line.is_empty())),
        // ESRCH: it ended between opening and reading.
        Err(error) if error.raw_os_error() == Some(3) => Ok(false),
        Err(error) => Err(failed(&error)),
    }
}

/// Links a file to the place where libzypp looks for it.
fn lay(from: &Path, cache: &Path, entry: &Entry) -> io::Result<()> {
    let to = index::directory(cache, &entry.file.repository).join(&entry.place);
    if !from.exists() || to.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    files::link_or_copy(from, &to)
}

async fn entries_of(versions: impl Iterator<Item = &Version>) -> Result<Vec<Entry>, Failure> {
    let (index, problems) = indexes(versions.map(|version| version.name.clone()).collect()).await?;
    for problem in problems {
        tracing::warn!("{}", problem.message);
    }
    Ok(index.entries)
}

/// What the repositories in use say of packages with these names, and which say nothing.
async fn indexes(names: BTreeSet<String>) -> Result<(Index, Vec<Problem>), Failure> {
    if names.is_empty() {
        return Ok((Index::default(), Vec::new()));
    }
    let repositories = ask::repositories().await?;
    let read = move || {
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let (mut index, mut problems) = (Index::default(), Vec::new());
        for repository in &repositories {
            if let Err(why) = index::read(Path::new(INDEXES), repository, &wanted, &mut index) {
                problems.push(unavailable(&format!("{}: {why}", repository.alias)));
            }
        }
        (index, problems)
    };
    // Unpacking what is large must not stop the session's keepalive.
    tokio::task::spawn_blocking(read).await.map_err(|error| broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> PackageChange {
        PackageChange {
            name: "openssl-3".into(),
            arch: "x86_64".into(),
            installed: "3.1.4-1".into(),
            candidate: "3.1.4-2".into(),
        }
    }

    fn text(command: &CommandLine) -> String {
        command.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_one_command_names_exact_packages_and_their_place_and_leaves_signatures_and_locks_alone() {
        let forward = text(&install_command(Direction::Forward, &[change()], Path::new("/a"), &[]));
        assert!(forward.starts_with("/usr/bin/zypper --non-interactive --no-refresh --pkg-cache-dir /a/zypp install "));
        assert!(forward.ends_with(" --download in-advance openssl-3.x86_64=3.1.4-2"), "{forward}");
        let back = text(&install_command(Direction::Back, &[change()], Path::new("/a"), &["--force"]));
        assert!(back.contains(" --oldpackage ") && !forward.contains("--oldpackage"), "{back}");
        for command in [&forward, &back] {
            let without = command.replace("--no-force-resolution", "");
            let never = ["gpg", "--force-resolution", "unsigned", "vendor", "license", "replacefiles", "import"];
            assert!(never.iter().all(|word| !without.contains(word)), "{command}");
        }
        assert!(!forward.replace("--no-force-resolution", "").contains("force"), "{forward}");
    }

    #[test]
    fn what_is_listed_twice_counts_once_and_of_two_versions_one_goes() {
        let version =
            |name: &str, version: &str| Version { name: name.into(), arch: "noarch".into(), version: version.into() };
        let step = |what, name, text| Step { what, package: version(name, text) };
        let steps = vec![
            step(What::Comes, "a", "2-1"),
            step(What::Comes, "b", "2-1"),
            step(What::Comes, "new", "1-1"),
            step(What::Goes, "b", "3-1"),
            step(What::Goes, "gone", "1-1"),
            step(What::OtherVendor, "a", "2-1"),
            step(What::Comes, "a", "2-1"),
        ];
        let row = |name: &str, version: &str| Row {
            name: name.into(),
            arch: "noarch".into(),
            version: version.into(),
            source: String::new(),
            installed_at: 0,
            size: 0,
        };
        let plan = Plan::of(steps, &[row("a", "1-1"), row("b", "3-1"), row("gone", "1-1")]);
        let coming = vec![
            (version("a", "2-1"), Some("1-1".into())),
            (version("b", "2-1"), Some("3-1".into())),
            (version("new", "1-1"), None),
        ];
        assert_eq!(plan, Plan { coming, removals: vec!["gone".into()], other_vendor: vec![version("a", "2-1")] });
    }

    #[test]
    fn a_lock_counts_while_its_process_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zypp.pid");
        assert_eq!(is_held(&path), Ok(false));
        for (text, expected) in
            [(std::process::id().to_string(), true), ("4194305".into(), false), (String::new(), false)]
        {
            fs::write(&path, &text).unwrap();
            assert_eq!(is_held(&path), Ok(expected), "{text}");
        }
    }
}
