//! dnf 4 (Red Hat Enterprise Linux and its children from 8 on, Fedora up to 40, Amazon Linux 2023) and dnf 5 (Fedora from 41
//! on); what differs between them is in [`dialect`].
//!
//! - What could be done is asked through dnf's own API ([`ask`]): exact packages, advisories and checksums as JSON, with no
//!   table to read. What is done is one ordinary `dnf upgrade` or `downgrade` of exact packages, from files that lie there
//!   already (`--cacheonly`), so that the machine's own history, plugins and signature checks see it.
//! - Updates are what is newer than an installed package, grouped by the advisory that brings exactly that version, else by
//!   source package. What the machine excludes (dnf.conf, versionlock) is listed as held.
//! - An update is as severe as the worst advisory between the installed version and its own.
//! - Signatures are checked as each repository's `gpgcheck` says: this agent neither sets nor unsets it.
//! - Of packages that are kept in several versions (kernels) a new one comes beside the old ones, and the oldest go as the
//!   machine's `installonly_limit` says; dnf never removes the running one.
//! - rpm has no half-installed state. A transaction that was interrupted leaves packages in two versions: these count as not
//!   complete, and [`Provider::repair_commands`] lets dnf install the newest of them again and remove the others.
//! - A script of a package that fails after its files are there does not undo the update: to rpm it is installed.

mod answer;
mod ask;
mod dialect;
mod explain;
mod lock;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Package, Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;

use self::answer::{Exact, Repair};
use self::ask::{Ask, Interpreter};
use super::rpm::{self, Row};
use super::support::{MAX_MESSAGE, holder, stamp_of, verify};
use super::upstream;
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp, bounded, words,
};
use crate::files;

/// Where repositories are (`reposdir` of dnf.conf(5)).
const REPOSITORIES: [&str; 2] = ["/etc/yum.repos.d", "/etc/distro.repos.d"];

/// What dnf 5 sets over them (dnf5-plugin-config-manager(8)).
const OVERRIDES: &str = "/etc/dnf/repos.override.d";

/// Lets what stands in the way go (dnf(8)).
const ERASING: &str = "--allowerasing";

/// For people.
const REMEDY: &str =
    "`dnf remove --duplicates` completes its work, or `rpm --erase --noscripts` where a script of the old one fails";

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Dnf {
    /// `ID` of os-release(5).
    distribution: String,
    ask: Ask,
}

impl Dnf {
    /// Finds dnf, or says what is there instead.
    pub(super) fn detect(root: &Path, distribution: String) -> Result<Self, String> {
        let interpreter = Interpreter::find(root).and_then(Interpreter::checked);
        match interpreter {
            Ok(interpreter) => Ok(Self { distribution, ask: Ask::new(interpreter) }),
            Err(why) => Err(format!("{distribution}: {why}")),
        }
    }

    /// Nothing that is only suggested, nothing removed that is no longer needed, and a repository that cannot be asked now does
    /// not matter: what is installed lies in `archives`. Each of `rivals` is a repository and what is not to be taken from it:
    /// of the same version in several repositories dnf takes any (`dnf.conf(5)`: such an option is added to what is set).
    fn dnf(
        &self,
        archives: &Path,
        rivals: impl IntoIterator<Item = (String, String)>,
        verb: &[&str],
        names: impl IntoIterator<Item = String>,
    ) -> CommandLine {
        let mut line =
            CommandLine { words: words([self.ask.program(), "--assumeyes"]), environment: rpm::environment() };
        line.words.push(self.ask.dialect().place(archives));
        line.words.extend(words([
            "--setopt=best=1",
            "--setopt=color=never",
            "--setopt=install_weak_deps=0",
            "--setopt=clean_requirements_on_remove=0",
            "--setopt=*.skip_if_unavailable=1",
        ]));
        line.words.extend(rivals.into_iter().map(|(id, name)| format!("--setopt={id}.excludepkgs={name}").into()));
        line.words.push("--cacheonly".into());
        line.words.extend(verb.iter().map(Into::into));
        line.words.extend(names.into_iter().map(Into::into));
        line
    }

    /// Packages that an interrupted transaction left in two versions.
    async fn unfinished(&self, rows: &[Row]) -> Result<BTreeSet<(String, String)>, Failure> {
        let doubled = rpm::doubled(rows);
        if doubled.is_empty() {
            return Ok(BTreeSet::new());
        }
        let several = self.ask.several().await?;
        let is_unfinished = |(name, _): &(&str, &str)| !several.iter().any(|kept| kept == name);
        Ok(doubled.into_iter().filter(is_unfinished).map(|(name, arch)| (name.to_owned(), arch.to_owned())).collect())
    }
}

impl Provider for Dnf {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let mut problems = Vec::new();
        if refresh {
            problems.extend(self.ask.refresh().await);
        }
        let rows = rpm::all_rows().await?;
        let unfinished = self.unfinished(&rows).await?;
        problems.extend(rpm::doubled_problem(&unfinished, REMEDY));
        let answer = self.ask.scan().await?;
        problems.extend(unreadable(&answer.offers.problems));
        let restart = rpm::restart(&rows, &answer.restart_for)?;
        let names: Vec<&str> = answer.offers.updates.iter().map(|update| update.file.name.as_str()).collect();
        let interruptions = rpm::interrupted_by(&names).await;
        let arch = answer.arch.clone();
        let (updates, files) = rpm::updates(&self.distribution, answer.offers, &interruptions);
        let mut packages: Vec<Package> = rows.iter().map(Row::package).collect();
        packages.sort_unstable();
        Ok(Inventory {
            arch,
            updates,
            files,
            removable: Vec::new(),
            packages,
            restart,
            problems,
            unconfigured: Vec::new(),
            upstream: upstream::rpm(&REPOSITORIES, Some(OVERRIDES)),
        })
    }

    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let plan = self.ask.plan(direction, packages).await?;
        let changes = plan.changes.into_iter().map(rpm::File::into_change).collect();
        Ok(Simulation { changes, removals: plan.removals, configures: Vec::new(), oldest: plan.oldest })
    }

    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let plan = self.ask.plan(direction, packages).await?;
        let mut artifacts: Vec<Artifact> = plan.changes.into_iter().map(|file| file.into_artifact(true)).collect();
        let there: Vec<PackageChange> = packages
            .iter()
            .filter(|package| !artifacts.iter().any(|a| a.name == package.name && a.arch == package.arch))
            .cloned()
            .collect();
        artifacts.extend(self.offered(&there).await?);
        Ok(artifacts)
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let keys = packages.iter().map(|p| (p.name.as_str(), p.arch.as_str(), p.candidate.as_str()));
        let found = self.ask.files(keys).await?.into_iter().map(|file| file.into_artifact(false));
        Ok(found.filter(|artifact| !artifact.sha256.is_empty()).collect())
    }

    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        let keys = changes.iter().map(|change| (change.name.as_str(), change.arch.as_str(), change.new.as_str()));
        let new = self.ask.files(keys).await?;
        rpm::space(new, changes, artifacts).await
    }

    async fn download(
        &self,
        _: Direction,
        _: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        files::ensure_directory(archives, files::PASSAGE)
            .map_err(|error| Failure::new(ResultReason::DownloadFailed, format!("{}: {error}", archives.display())))?;
        if missing.is_empty() {
            return Ok(());
        }
        self.ask.download(missing, archives, line).await?;
        verify(missing, archives).await
    }

    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure> {
        self.download(Direction::Forward, &[], files, archives, line).await
    }

    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        self.ask.rehearse(direction, packages, archives).await
    }

    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        let verb: &[&str] = match direction {
            Direction::Forward => &["upgrade"],
            Direction::Removing => &["upgrade", ERASING],
            Direction::Back => &["downgrade"],
        };
        let rivals = artifacts.iter().flat_map(|file| {
            let name = exact_name(&file.name, &file.arch, &file.version);
            file.rivals.iter().map(move |repository| (repository.clone(), name.clone()))
        });
        let names = packages.iter().map(|package| exact_name(&package.name, &package.arch, &package.candidate));
        self.dnf(archives, rivals, verb, names)
    }

    async fn repair_commands(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        removals: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        if rpm::doubled(&rpm::rows_of(&names).await?).is_empty() {
            return rpm::removal_of_the_rest(packages, removals).await;
        }
        let Repair { left, others, rivals, removed, mut more } = self.ask.repair(direction, packages, archives).await?;
        let is_meant = |(name, arch, _): &&Exact| removals.iter().any(|gone| (&gone.name, &gone.arch) == (name, arch));
        more.extend(
            removed.iter().filter(|gone| !is_meant(gone)).map(|(name, arch, version)| exact_name(name, arch, version)),
        );
        if !more.is_empty() {
            let message = format!("to complete what was interrupted dnf would also change {}", more.join(", "));
            return Err(Failure::new(ResultReason::WouldDoMore, bounded(&message, MAX_MESSAGE)));
        }
        let exactly = |packages: &[Exact]| -> Vec<String> {
            packages.iter().map(|(name, arch, version)| exact_name(name, arch, version)).collect()
        };
        let completing = |verb: &[&str]| self.dnf(archives, rivals.clone(), verb, exactly(&left));
        Ok(match direction {
            _ if left.is_empty() => Vec::new(),
            // The other version goes with it.
            Direction::Forward => vec![completing(&["reinstall"])],
            Direction::Removing => vec![completing(&["reinstall", ERASING])],
            // dnf takes it for a downgrade, and rpm does not install the same once more, until the later one is gone.
            Direction::Back => vec![self.dnf(archives, [], &["remove"], exactly(&others)), completing(&["reinstall"])],
        })
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        let rows = rpm::rows_of(&names).await?;
        let unfinished = self.unfinished(&rows).await?;
        Ok(rpm::installed(rows, &unfinished))
    }

    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun> {
        self.ask.history(since).await.unwrap_or_else(|failure| {
            tracing::warn!("who changed packages is not known: {failure}");
            Vec::new()
        })
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        Ok(self.ask.dialect().is_busy()? || rpm::is_busy()?)
    }

    fn holder(&self) -> Option<String> {
        let of_dnf = self.ask.dialect().locks().unwrap_or_default();
        holder(of_dnf.into_iter().chain(rpm::LOCKS.map(PathBuf::from)))
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        rpm::compare(a, b).is_gt()
    }

    fn goes_back(&self, name: &str, source: &str) -> bool {
        rpm::goes_back(name, source)
    }

    fn is_kernel(&self, name: &str) -> bool {
        rpm::is_kernel(name)
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let mut paths: Vec<PathBuf> = rpm::DATABASES.iter().map(PathBuf::from).collect();
        let dialect = self.ask.dialect();
        paths.extend(dialect.stamped()?);
        stamp_of(paths, dialect.directories())
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        explain::explain(output, code, packages)
    }

    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String {
        explain::remarks(output, packages)
    }
}

/// `NAME-EPOCH:VERSION-RELEASE.ARCH`: without an epoch dnf would take any.
fn exact_name(name: &str, arch: &str, version: &str) -> String {
    let epoch = if version.contains(':') { "" } else { "0:" };
    format!("{name}-{epoch}{version}.{arch}")
}

fn unreadable(problems: &[String]) -> Option<Problem> {
    let message = bounded(&problems.join("; "), 300);
    (!message.is_empty()).then_some(Problem { code: ProblemCode::RepositoryUnavailable, message })
}

#[cfg(test)]
mod tests {
    use super::dialect::Dialect;
    use super::*;

    fn change() -> PackageChange {
        PackageChange {
            name: "openssl-libs".into(),
            arch: "x86_64".into(),
            installed: "1:3.0.7-27.el9".into(),
            candidate: "1:3.0.7-28.el9".into(),
        }
    }

    fn artifact(rivals: &[&str]) -> Artifact {
        Artifact {
            name: "openssl-libs".into(),
            arch: "x86_64".into(),
            version: "1:3.0.7-28.el9".into(),
            sha256: "00".into(),
            size: 1,
            file_name: "openssl-libs-3.0.7-28.el9.x86_64.rpm".into(),
            local: None,
            needed: true,
            rivals: rivals.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn provider(dialect: Dialect) -> Dnf {
        let interpreter = Interpreter { words: vec!["/usr/bin/python3".into()], program: "/usr/bin/dnf", dialect };
        Dnf { distribution: "rocky".into(), ask: Ask::new(interpreter) }
    }

    fn text(command: &CommandLine) -> String {
        command.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_one_command_names_exact_packages_and_their_place_and_leaves_signatures_alone() {
        let provider = provider(Dialect::Four);
        let install = |direction, change, rivals: &[&str]| {
            text(&provider.install_command(direction, &[change], &[artifact(rivals)], Path::new("/a")))
        };
        let forward = install(Direction::Forward, change(), &[]);
        assert!(forward.starts_with("/usr/bin/dnf --assumeyes --setopt=destdir=/a "), "{forward}");
        assert!(forward.ends_with(" --cacheonly upgrade openssl-libs-1:3.0.7-28.el9.x86_64"), "{forward}");
        let back = install(Direction::Back, change(), &[]);
        assert!(back.contains(" downgrade openssl-libs-1:3.0.7-28.el9.x86_64"), "{back}");
        let without = PackageChange { candidate: "1.0-1".into(), ..change() };
        let forward_without = install(Direction::Forward, without, &[]);
        assert!(forward_without.ends_with(" upgrade openssl-libs-0:1.0-1.x86_64"), "{forward_without}");
        let bound = install(Direction::Forward, change(), &["own.x", "epel"]);
        for id in ["own.x", "epel"] {
            let option = format!(" --setopt={id}.excludepkgs=openssl-libs-1:3.0.7-28.el9.x86_64 ");
            assert!(bound.contains(&option), "{bound}");
        }
        for command in [&forward, &back, &bound] {
            assert!(!command.contains("gpg") && !command.contains("allowerasing"), "{command}");
        }
    }

    #[test]
    fn dnf_5_is_not_told_to_bring_files_anywhere_which_is_all_that_it_would_do_then() {
        let command =
            provider(Dialect::Five).install_command(Direction::Forward, &[change()], &[artifact(&[])], Path::new("/a"));
        let command = text(&command);
        assert!(!command.contains("destdir") && command.contains(" --comment=/a "), "{command}");
        assert!(command.ends_with(" --cacheonly upgrade openssl-libs-1:3.0.7-28.el9.x86_64"), "{command}");
    }
}
