//! The package manager of a machine that does not exist: one package, of which a later version is offered.
//!
//! `installed` is its database. The command that an install runs is a real process, apart from the agent as any is, and writes a line into
//! `log` each time that it changes the version: what an agent has done is counted there, whatever it says of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::canonical;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Classification, HeldReason, Package, Restart, Severity, Tristate, Update};
use patchwarden_protocol::result::ResultReason;

use crate::files;
use crate::provider::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp, artifacts_digest, bounded, row, words,
};

/// The package.
pub const PACKAGE: &str = "simulated";

/// Its version at first, and the one that is offered.
pub const BEFORE: &str = "1.0";
/// See [`BEFORE`].
pub const AFTER: &str = "1.1";

/// The package manager's log, below the machine's directory: a line for each change.
pub const LOG: &str = "machine/log";

const ARCH: &str = "all";

/// Takes the machine, the file, and the versions before and after. The line comes first: a run that dies before the end is seen, too.
const INSTALL: &str = r#"
set -eu
test -s "$2"
echo "upgrade $3 $4" >>"$1/log"
sleep 1
printf %s "$4" >"$1/installed.new"
mv "$1/installed.new" "$1/installed"
echo "simulated is at $4"
"#;

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    place: PathBuf,
}

impl Machine {
    /// The machine of a directory, which is made where it is not there.
    pub(super) fn open(place: &Path) -> io::Result<Self> {
        files::ensure_directory(place, files::SECLUDED)?;
        Ok(Self { place: place.to_owned() })
    }

    fn database(&self) -> PathBuf {
        self.place.join("installed")
    }

    fn version(&self) -> Result<String, Failure> {
        let path = self.database();
        let found = files::read_if_exists(&path).map_err(|error| broken(&path, &error))?;
        Ok(found.map_or_else(|| BEFORE.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn change(&self) -> Result<Option<PackageChange>, Failure> {
        let installed = self.version()?;
        let [name, arch, candidate] = [PACKAGE, ARCH, AFTER].map(str::to_owned);
        Ok((installed != candidate).then_some(PackageChange { name, arch, installed, candidate }))
    }
}

/// The file of the version that is offered.
fn content() -> String {
    format!("{PACKAGE} {AFTER}\n")
}

fn artifact() -> Artifact {
    let content = content();
    Artifact {
        name: PACKAGE.to_owned(),
        arch: ARCH.to_owned(),
        version: AFTER.to_owned(),
        sha256: canonical::digest(content.as_bytes()).replace("sha256:", ""),
        size: content.len() as u64,
        file_name: format!("{PACKAGE}_{AFTER}"),
        local: None,
        needed: true,
        rivals: Vec::new(),
    }
}

fn is_offered(package: &PackageChange) -> bool {
    (package.name.as_str(), package.candidate.as_str()) == (PACKAGE, AFTER)
}

fn broken(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ResultReason::PackageManagerFailed, format!("{}: {error}", path.display()))
}

impl Provider for Machine {
    async fn scan(&self, _refresh: bool) -> Result<Inventory, Failure> {
        let artifact = artifact();
        let digest = artifacts_digest([artifact.line()]);
        let update = |change: PackageChange| Update {
            id: format!("pkg:deb/debian/{PACKAGE}@{AFTER}"),
            title: format!("{PACKAGE} {} -> {AFTER}", change.installed),
            classification: Classification::Security,
            severity: Severity::Unknown,
            cves: Vec::new(),
            published: None,
            packages: vec![change],
            source_installed: None,
            origin: "Patchwarden:simulated".to_owned(),
            size_bytes: artifact.size,
            requires_restart: Tristate::No,
            interrupts_service: Tristate::No,
            artifacts_digest: digest.clone(),
            held: false,
            held_reason: HeldReason::Hold,
            unauthenticated: false,
            downloaded: false,
        };
        let package = Package {
            name: PACKAGE.to_owned(),
            arch: ARCH.to_owned(),
            version: self.version()?,
            source: PACKAGE.to_owned(),
            source_version: None,
        };
        Ok(Inventory {
            arch: "amd64".to_owned(),
            updates: self.change()?.map(update).into_iter().collect(),
            files: BTreeMap::from([(digest.clone(), vec![artifact.sha256.clone()])]),
            removable: Vec::new(),
            packages: vec![package],
            unconfigured: Vec::new(),
            restart: Restart { required: Tristate::No, reasons: Vec::new() },
            problems: Vec::new(),
            upstream: None,
        })
    }

    async fn simulate(&self, _: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let change = self.change()?.filter(|_| packages.iter().any(is_offered));
        let changes = change.map(|change| Change {
            name: change.name,
            arch: change.arch,
            old: Some(change.installed),
            new: change.candidate,
            origin: "Patchwarden:simulated".to_owned(),
        });
        Ok(Simulation { changes: changes.into_iter().collect(), ..Simulation::default() })
    }

    async fn artifacts(&self, _: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        self.offered(packages).await
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        Ok(packages.iter().filter(|package| is_offered(package)).map(|_| artifact()).collect())
    }

    async fn space(&self, _: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        Ok(Space { download: artifacts.iter().map(|artifact| artifact.size).sum(), ..Space::default() })
    }

    async fn download(
        &self,
        _: Direction,
        _: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        _: Line<'_>,
    ) -> Result<(), Failure> {
        self.save(missing, archives, Line { limit: std::time::Duration::MAX, proxy: None }).await
    }

    async fn save(&self, wanted: &[Artifact], archives: &Path, _: Line<'_>) -> Result<(), Failure> {
        for artifact in wanted {
            let path = archives.join(&artifact.file_name);
            std::fs::write(&path, content()).map_err(|error| broken(&path, &error))?;
        }
        Ok(())
    }

    async fn rehearse(&self, _: Direction, _: &[PackageChange], _: &Path) -> Result<(), Failure> {
        Ok(())
    }

    fn install_command(
        &self,
        _: Direction,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        let mut words = words(["/bin/sh", "-c", INSTALL, PACKAGE]);
        words.push(self.place.clone().into());
        words.extend(artifacts.iter().map(|artifact| archives.join(&artifact.file_name).into()));
        words.extend(packages.iter().flat_map(|package| [&package.installed, &package.candidate]).map(OsString::from));
        CommandLine { words, environment: vec![("PATH", "/usr/bin:/bin".into())] }
    }

    async fn repair_commands(
        &self,
        _: Direction,
        _: &[PackageChange],
        _: &[PackageChange],
        _: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        Ok(Vec::new())
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let installed = Installed {
            name: PACKAGE.to_owned(),
            arch: ARCH.to_owned(),
            version: self.version()?,
            source: PACKAGE.to_owned(),
            complete: true,
        };
        let rows = [installed];
        Ok(packages.iter().filter_map(|package| row(&rows, package)).cloned().collect())
    }

    async fn past_runs(&self, _since: Timestamp) -> Vec<PastRun> {
        Vec::new()
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        Ok(false)
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        a > b
    }

    fn goes_back(&self, _: &str, _: &str) -> bool {
        false
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let path = self.database();
        let stamp = files::stamp(&path).map_err(|error| broken(&path, &error))?;
        Ok(Stamp(vec![(path, stamp)]))
    }

    fn explain(&self, output: &str, code: Option<i32>, _: &[PackageChange]) -> Failure {
        let message = format!("ended with code {code:?}: {}", bounded(output.trim(), 500));
        Failure::new(ResultReason::PackageManagerFailed, message)
    }

    fn remarks(&self, _: &str, _: &[PackageChange]) -> String {
        String::new()
    }
}
