//! What the agent needs of a package manager.
//!
//! A provider finds out and prepares. The one step that changes the machine is not its to take: it hands out the
//! command, and [`crate::execute`] lets it go, apart from the agent, after the grant.

mod apt;
mod dnf;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod history;
mod macos;
mod managed;
mod native;
pub(crate) mod recipes;
mod rpm;
mod run;
mod services;
mod support;
mod upstream;
mod windows;
mod zypper;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::applications::Application;
use patchwarden_protocol::canonical;
use patchwarden_protocol::order::{Dependencies, PackageChange, Verb};
use patchwarden_protocol::report::{Package, Problem, Removable, Restart, Update};
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::surroundings::Upstream;

use crate::files::FileStamp;
use crate::platform::Outdated;

pub(crate) use history::{PastRun, Step};
pub(crate) use managed::Managed;
pub(crate) use native::{Native, Previews};
pub(crate) use run::{CommandLine, Environment};
#[cfg(windows)]
pub(crate) use windows::powershell;

/// Package managers with what runs them, and this agent. What must not go beside these the package managers know (`Essential` and `Protected`
/// of deb-control(5), `protected_packages` of dnf.conf(5)), and the owner: `exclude_packages`.
const STAYS: [&str; 17] = [
    "apt",
    "dnf",
    "dnf-data",
    "dnf5",
    "dpkg",
    "init",
    "libdnf",
    "libdnf5",
    "libsolv",
    "libsolv-tools-base",
    "libzypp",
    "patchwarden-agent",
    "python3-dnf",
    "python3-libdnf5",
    "rpm",
    "yum",
    "zypper",
];

/// What their packages' names begin with.
const BOOT_LOADERS: [&str; 4] = ["grub", "shim", "systemd-boot", "u-boot"];

/// What a scan finds.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    /// The package manager's architecture.
    pub(crate) arch: String,
    /// Every update offered, in no order.
    pub(crate) updates: Vec<Update>,
    /// Hexadecimal SHA-256 of the files of each update, by its `artifacts_digest`; empty where the index states none.
    pub(crate) files: BTreeMap<String, Vec<String>>,
    /// What can be taken back, the latest first. Not the provider's to say: see [`crate::past`].
    pub(crate) removable: Vec<Removable>,
    /// Every installed package, sorted.
    pub(crate) packages: Vec<Package>,
    /// Whether the machine waits for a restart.
    pub(crate) restart: Restart,
    /// What keeps this from being the whole truth.
    pub(crate) problems: Vec<Problem>,
    /// Where the package manager is broken by these alone: what is unpacked and not configured.
    pub(crate) unconfigured: Vec<Unconfigured>,
    /// Who else than the vendor decides what is offered.
    pub(crate) upstream: Option<Upstream>,
}

/// Which way packages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To later versions.
    Forward,
    /// To later versions, and what stands in their way is removed.
    Removing,
    /// To earlier ones.
    Back,
}

impl From<Verb> for Direction {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Install | Verb::Download | Verb::Restart => Self::Forward,
            Verb::Uninstall => Self::Back,
        }
    }
}

/// What the package manager would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Simulation {
    /// Packages installed, upgraded or downgraded.
    pub(crate) changes: Vec<Change>,
    /// Names of packages removed.
    pub(crate) removals: Vec<String>,
    /// Names of packages configured without being changed: somebody else's unfinished work.
    pub(crate) configures: Vec<String>,
    /// Names of packages of which so many versions are kept that the oldest goes for the new one.
    pub(crate) oldest: Vec<String>,
}

impl Simulation {
    /// What would be done that neither `ordered` names nor `dependencies` allows, for people.
    pub(crate) fn beyond(&self, ordered: &[PackageChange], dependencies: Dependencies) -> Vec<String> {
        let Self { changes, removals, configures, oldest: _ } = self;
        let is_named = |name: &String| ordered.iter().any(|package| package.name == *name);
        let may_go = |name: &&String| dependencies == Dependencies::AllowAll && !is_named(name);
        let mut more: Vec<String> =
            removals.iter().filter(|name| !may_go(name)).map(|name| format!("remove {name}")).collect();
        more.extend(configures.iter().map(|name| format!("configure {name}")));
        more.extend(changes.iter().filter_map(|Change { name, arch, old, new, .. }| {
            let named = ordered.iter().find(|package| (&package.name, &package.arch) == (name, arch));
            match (named, old) {
                (Some(package), _) if package.candidate != *new => {
                    Some(format!("install {name} {new} instead of {}", package.candidate))
                }
                (None, None) if dependencies < Dependencies::AllowInstalls => Some(format!("install {name} {new}")),
                (None, Some(old)) if dependencies < Dependencies::AllowAll => {
                    Some(format!("change {name} from {old} to {new}"))
                }
                _ => None,
            }
        }));
        more
    }
}

/// One package that would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Name.
    pub(crate) name: String,
    /// Architecture of the new version.
    pub(crate) arch: String,
    /// Installed version, or nothing for a new package.
    pub(crate) old: Option<String>,
    /// Version to be installed; empty for an application that is removed.
    pub(crate) new: String,
    /// Where it comes from, as its repository calls itself.
    pub(crate) origin: String,
}

/// One file that an install would use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Package.
    pub(crate) name: String,
    /// Architecture.
    pub(crate) arch: String,
    /// Version.
    pub(crate) version: String,
    /// Hexadecimal SHA-256 by the repository's signed index; empty where it states none.
    pub(crate) sha256: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Name in the archives directory; of what the system keeps itself how it is called to be installed.
    pub(crate) file_name: String,
    /// Where it lies, for a repository on this machine, which the package manager would use in place.
    pub(crate) local: Option<PathBuf>,
    /// Whether it is to be fetched; the file of a version that is installed already only counts for the digest.
    pub(crate) needed: bool,
    /// Repositories that offer another file as the same version, which must not be taken instead.
    pub(crate) rivals: Vec<String>,
}

impl Artifact {
    /// What [`artifacts_digest`] takes.
    pub(crate) fn line(&self) -> (&str, &str, &str, &str) {
        (&self.name, &self.arch, &self.version, &self.sha256)
    }
}

/// Room that an install needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// Bytes to download.
    pub(crate) download: u64,
    /// Bytes by which installed packages grow, and the most that one of them has in both versions, which lie beside each other meanwhile.
    pub(crate) unpacked: u64,
}

/// A package as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Name.
    pub(crate) name: String,
    /// Architecture.
    pub(crate) arch: String,
    /// Version.
    pub(crate) version: String,
    /// Source package.
    pub(crate) source: String,
    /// Unpacked and configured, with no error.
    pub(crate) complete: bool,
}

/// A package whose files are there and which is not configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unconfigured {
    /// Name.
    pub(crate) name: String,
    /// Architecture.
    pub(crate) arch: String,
    /// Version.
    pub(crate) version: String,
    /// Its scripts were tried, and not only those of what it needs.
    pub(crate) has_failed: bool,
}

/// A fingerprint of everything that a simulation depends on: equal stamps, equal simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(pub(crate) Vec<(PathBuf, Option<FileStamp>)>);

/// Why the package manager did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// Code.
    pub(crate) reason: ResultReason,
    /// The package manager's own words, bounded.
    pub(crate) message: String,
    /// Says nothing of the packages that were asked about: the network, or the package manager itself. To ask once more for
    /// fewer of them is no use.
    pub(crate) is_general: bool,
}

impl Failure {
    /// A failure in words of our own.
    pub(crate) fn new(reason: ResultReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), is_general: false }
    }

    /// The same, of nothing that was asked about.
    pub(crate) fn general(self) -> Self {
        Self { is_general: true, ..self }
    }
}

/// How files come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// All of them within this time.
    pub(crate) limit: Duration,
    /// Through this proxy, as `http://HOST:PORT`.
    pub(crate) proxy: Option<&'a str>,
}

/// A package manager. Not to be used by two tasks at once.
pub(crate) trait Provider {
    /// From now on these applications are to be installed or not to be there, and nothing is asked of others.
    fn want(&self, _applications: Vec<Application>) {}
    /// What is installed and what could be updated; `refresh` asks the repositories first.
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure>;
    /// What would be done to bring `packages` to their candidates.
    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure>;
    /// The files of these packages and of new ones that they need, by the repository's index.
    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure>;
    /// The files of the candidates alone, which are those of earlier versions, without what is not offered (any more).
    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure>;
    /// The room that this would need.
    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure>;
    /// Whether downloads go through a proxy where [`Line`] names one.
    fn takes_proxy(&self) -> bool {
        true
    }
    /// Brings `missing` into `archives`, beside the other files of these packages, and verifies each.
    async fn download(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure>;
    /// The same for what does not come from the package manager, and which [`Self::download`] leaves out: each file by itself, all
    /// of them in the time of one download. Names of packages whose file is not there, and why: that holds up no other.
    async fn download_each(&self, _missing: &[Artifact], _archives: &Path, _limit: Duration) -> Vec<(String, Failure)> {
        Vec::new()
    }
    /// Brings `files`, as [`Self::offered`] gives them, into `archives`, each verified: those of versions that are installed now,
    /// so that [`Direction::Back`] finds them there once they are not.
    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure>;
    /// Whether the files in `archives` would let it do so, where one that does not would stop them all, and whether each file
    /// system has room for what they bring there.
    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure>;
    /// The command that brings `packages` to their candidates by these files, from `archives` alone.
    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> CommandLine;
    /// The commands that complete, one after the other, what an interrupted run was to do to `packages` from `archives`, for which
    /// `removals` were to go. None where nothing is left half done; a failure where more than that would change.
    async fn repair_commands(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        removals: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure>;
    /// The commands that complete what a run that failed has left half done although nothing was wrong with it.
    async fn completing_commands(&self) -> Result<Vec<CommandLine>, Failure> {
        Ok(Vec::new())
    }
    /// What is unpacked and not configured, where a package manager leaves packages so.
    async fn unconfigured(&self) -> Result<Vec<Unconfigured>, Failure> {
        Ok(Vec::new())
    }
    /// The database's rows of these packages.
    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure>;
    /// What the package manager's own history says of its runs since then, the earliest first. What cannot be read is left out.
    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun>;
    /// Services that still run what was replaced; nothing where the system does not tell.
    async fn outdated_services(&self) -> Option<Outdated> {
        None
    }
    /// Whether another program uses the package manager now.
    fn is_busy(&self) -> Result<bool, Failure>;
    /// Which, for people, where that can be told.
    fn holder(&self) -> Option<String> {
        None
    }
    /// Whether version `a` is later than `b`.
    fn is_later(&self, a: &str, b: &str) -> bool;
    /// Whether version `a` of this package is later than `b`, where not all packages have the same order of versions.
    fn comes_after(&self, _package: &str, a: &str, b: &str) -> bool {
        self.is_later(a, b)
    }
    /// Whether a package of this name and source may ever be brought to an earlier version.
    fn goes_back(&self, name: &str, source: &str) -> bool;
    /// Whether a package of this name brings a kernel, which is installed beside the one that runs.
    fn is_kernel(&self, _name: &str) -> bool {
        false
    }
    /// Whether no dependency ever removes a package of this name and source: without it the machine would not start, or nobody could
    /// install anything any more.
    fn stays(&self, name: &str, source: &str) -> bool {
        let is_boot_loader = BOOT_LOADERS.iter().any(|loader| name.starts_with(loader));
        STAYS.contains(&name) || is_boot_loader || self.is_kernel(name) || !self.goes_back(name, source)
    }
    /// Whether a package of this name has the kernel itself, and does not only need the one that has.
    fn is_image(&self, name: &str) -> bool {
        self.is_kernel(name)
    }
    /// See [`Stamp`].
    fn stamp(&self) -> Result<Stamp, Failure>;
    /// Why `packages` were not installed, by what the package manager printed and its exit code.
    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure;
    /// What it complained of about `packages`, although they are installed.
    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String;
}

/// [`Update::artifacts_digest`]: the digest of the sorted lines `name architecture version sha256`, each with its line
/// break.
pub(crate) fn artifacts_digest<'a>(files: impl IntoIterator<Item = (&'a str, &'a str, &'a str, &'a str)>) -> String {
    let mut lines: Vec<String> =
        files.into_iter().map(|(name, arch, version, sha256)| format!("{name} {arch} {version} {sha256}\n")).collect();
    lines.sort_unstable();
    canonical::digest(lines.concat().as_bytes())
}

/// The database's row of an ordered package: by name and architecture, or by name alone where there is only one (a
/// package may change from one architecture to `all`).
pub(crate) fn row<'a>(rows: &'a [Installed], change: &PackageChange) -> Option<&'a Installed> {
    let mut named = rows.iter().filter(|row| row.name == change.name);
    rows.iter()
        .find(|row| row.name == change.name && row.arch == change.arch)
        .or_else(|| named.next().filter(|_| named.next().is_none()))
}

/// `text` cut to at most `limit` bytes at a character, with a sign that it was.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let sign = "…";
    let mut end = limit.saturating_sub(sign.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{sign}", &text[..end])
}

/// `1.5 MB`, rounded up.
pub(crate) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// A place that has less free than is needed there.
pub(crate) fn no_room(place: &str, needed: u64, free: u64) -> Failure {
    let message = format!("{place}: {} are needed, {} are free: make room there", megabytes(needed), megabytes(free));
    Failure::new(ResultReason::DiskFull, message)
}

/// `/usr/bin/x` for `x` in a command line.
pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_files_does_not_depend_on_their_order() {
        let (a, b) = (("a", "amd64", "1", "00"), ("b", "all", "2", "11"));
        assert_eq!(artifacts_digest([a, b]), artifacts_digest([b, a]));
        assert_eq!(artifacts_digest([a, b]), canonical::digest(b"a amd64 1 00\nb all 2 11\n"));
    }

    #[test]
    fn a_row_is_found_by_architecture_or_alone() {
        let row_of = |arch: &str| Installed {
            name: "x".into(),
            arch: arch.into(),
            version: "1".into(),
            source: "x".into(),
            complete: true,
        };
        let change =
            PackageChange { name: "x".into(), arch: "all".into(), installed: "1".into(), candidate: "2".into() };
        assert_eq!(row(&[row_of("amd64")], &change), Some(&row_of("amd64")));
        assert_eq!(row(&[row_of("amd64"), row_of("all")], &change), Some(&row_of("all")));
        assert_eq!(row(&[row_of("amd64"), row_of("i386")], &change), None);
        assert_eq!(row(&[], &change), None);
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(bounded("short", 10), "short");
        assert_eq!(bounded("ééééé", 8), "éé…");
    }
}
