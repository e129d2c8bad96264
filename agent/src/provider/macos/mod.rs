//! macOS, by its own `softwareupdate` and `system_profiler`. A preview: nothing of it has run on a Mac (docs/agent.md).
//!
//! [`listing`] reads what is offered, [`profile`] what was installed, [`words`] what is complained of; what comes out of it is decided in
//! [`updates`]. All of that is pure.
//!
//! - A package is a title (`Safari`) in a version. Which versions of it are installed is told by the system's history of installs alone:
//!   `softwareupdate` ends without an error also where it has installed nothing.
//! - *What ends with a restart is not for this agent.* On Apple silicon `softwareupdate` asks for a volume owner's password, which
//!   root does not have ("Use secure token, bootstrap token, and volume ownership in deployments", Apple Platform Deployment); on
//!   Intel it restarts the machine in the same breath, outside of every rule for restarts. Such an update is held, and its title
//!   says by what it can be installed: the order of a device management server (MDM), or a person.
//! - *There is no simulation, and no hash.* Whether exactly the ordered version is offered is looked at, and no more. What is
//!   fetched macOS keeps itself, and verifies Apple's signature on it.
//! - *Nothing is taken back*: macOS cannot do that.

mod listing;
mod profile;
mod updates;
mod words;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::result::ResultReason;

use self::listing::Listing;
use self::profile::Profile;
use self::updates::Downloaded;
use super::run::{Output, run};
use super::support::{MAX_MESSAGE, broken, stamp_of};
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp, bounded, words as words_of,
};
use crate::platform;

const SOFTWARE_UPDATE: &str = "/usr/sbin/softwareupdate";
const SYSTEM_PROFILER: &str = "/usr/sbin/system_profiler";

/// Where `system_profiler` has its history of installs from.
const HISTORY: &str = "/Library/Receipts/InstallHistory.plist";

/// Programs for people that are at work while something is installed.
const INSTALLERS: [&str; 2] = ["softwareupdate", "installer"];

/// A scan asks Apple's servers, and takes minutes where these are far.
const SCAN_LIMIT: Duration = Duration::from_mins(15);

/// What the system knows already.
const LOCAL_LIMIT: Duration = Duration::from_mins(5);

const NEVER_BACK: &str = "macOS takes back no update";

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Macos {
    /// As the system calls it: `arm64`.
    arch: String,
    /// What this agent has downloaded since it was started: macOS does not tell. What is forgotten is downloaded once more, which
    /// costs nothing where it is still there.
    downloaded: Rc<RefCell<Downloaded>>,
}

impl Macos {
    /// Software Update of this machine, or why it cannot be asked.
    pub(super) fn detect(root: &Path) -> Result<Self, String> {
        for program in [SOFTWARE_UPDATE, SYSTEM_PROFILER] {
            if !root.join(program.trim_start_matches('/')).is_file() {
                return Err(format!("{program} is not there: this agent asks macOS by it"));
            }
        }
        // The program's own: there is one for each.
        let arch = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self { arch: arch.to_owned(), downloaded: Rc::default() })
    }

    /// What is offered; without `online` by the last scan that anybody made (`--no-scan` of softwareupdate(8)).
    async fn offered_now(online: bool) -> Result<Listing, Failure> {
        let (arguments, limit): (&[&str], _) =
            if online { (&["--list"], SCAN_LIMIT) } else { (&["--list", "--no-scan"], LOCAL_LIMIT) };
        let output = run(&line(SOFTWARE_UPDATE, arguments), limit).await?;
        listing_of(&output)
    }

    async fn profile() -> Result<Profile, Failure> {
        let arguments = ["-json", "SPInstallHistoryDataType", "SPSoftwareDataType", "SPHardwareDataType"];
        let output = run(&line(SYSTEM_PROFILER, &arguments), LOCAL_LIMIT).await?;
        profile_of(&output)
    }
}

fn listing_of(output: &Output) -> Result<Listing, Failure> {
    // That there is nothing new goes to the other stream.
    let said = output.all();
    if !output.succeeded() {
        return Err(words::failure(&said, output.code).general());
    }
    listing::parse(&said).map_err(|why| {
        let complaint = words::complaint(&said);
        words::known(&complaint).unwrap_or_else(|| broken(format!("{why}: {complaint}"))).general()
    })
}

fn profile_of(output: &Output) -> Result<Profile, Failure> {
    if output.succeeded() {
        return profile::parse(&output.stdout).map_err(|why| broken(why).general());
    }
    let said = bounded(output.stderr.trim(), MAX_MESSAGE);
    Err(broken(format!("system_profiler ended with code {:?}: {said}", output.code)).general())
}

fn line(program: &str, arguments: &[&str]) -> CommandLine {
    let environment =
        vec![("LC_ALL", "C".into()), ("HOME", "/var/root".into()), ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin".into())];
    let mut words = words_of([program]);
    words.extend(arguments.iter().map(Into::into));
    CommandLine { words, environment }
}

fn labels(artifacts: &[Artifact]) -> Vec<&str> {
    artifacts.iter().map(|artifact| artifact.file_name.as_str()).collect()
}

impl Provider for Macos {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let listing = Self::offered_now(refresh).await?;
        let profile = Self::profile().await?;
        Ok(updates::inventory(&self.arch, &listing, &profile, &self.downloaded.borrow()))
    }

    /// Whether what is ordered is offered. Nobody says what more macOS would do: see above.
    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        if direction == Direction::Back {
            return Err(Failure::new(ResultReason::PackageManagerFailed, NEVER_BACK));
        }
        let listing = Self::offered_now(false).await?;
        updates::simulation(&self.arch, packages, &listing, &Self::profile().await?)
    }

    async fn artifacts(&self, _: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        self.offered(packages).await
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        Ok(updates::artifacts(&self.arch, packages, &Self::offered_now(false).await?))
    }

    /// The files, and at least as much unpacked; more is not told.
    async fn space(&self, changes: &[Change], _: &[Artifact]) -> Result<Space, Failure> {
        let of = |change: &Change| PackageChange {
            name: change.name.clone(),
            arch: change.arch.clone(),
            installed: updates::ABSENT.to_owned(),
            candidate: change.new.clone(),
        };
        let offered = self.offered(&changes.iter().map(of).collect::<Vec<_>>()).await?;
        let size = offered.iter().map(|artifact| artifact.size).fold(0, u64::saturating_add);
        Ok(Space { unpacked: size.saturating_mul(2), ..Space::default() })
    }

    /// macOS has a cache of its own for that (content caching).
    fn takes_proxy(&self) -> bool {
        false
    }

    /// Into the place of macOS' own.
    async fn download(
        &self,
        _: Direction,
        packages: &[PackageChange],
        _: &[Artifact],
        _: &Path,
        Line { limit, .. }: Line<'_>,
    ) -> Result<(), Failure> {
        let offered = self.offered(packages).await?;
        let mut arguments = vec!["--download"];
        arguments.extend(labels(&offered));
        let output = run(&line(SOFTWARE_UPDATE, &arguments), limit).await?;
        let failure = words::known(&words::complaint(&output.all()));
        if let Some(failure) =
            failure.or_else(|| (!output.succeeded()).then(|| words::failure(&output.all(), output.code)))
        {
            return Err(failure);
        }
        let fetched = packages.iter().map(|package| (package.name.clone(), package.candidate.clone()));
        self.downloaded.borrow_mut().extend(fetched);
        Ok(())
    }

    /// There is no way back that files would be for.
    async fn save(&self, _: &[Artifact], _: &Path, _: Line<'_>) -> Result<(), Failure> {
        Err(Failure::new(ResultReason::PackageManagerFailed, NEVER_BACK))
    }

    /// macOS lets nothing be tried.
    async fn rehearse(&self, _: Direction, _: &[PackageChange], _: &Path) -> Result<(), Failure> {
        Ok(())
    }

    fn install_command(&self, _: Direction, _: &[PackageChange], artifacts: &[Artifact], _: &Path) -> CommandLine {
        let mut arguments = vec!["--install"];
        arguments.extend(labels(artifacts));
        line(SOFTWARE_UPDATE, &arguments)
    }

    /// macOS installs a package whole, or offers it again.
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
        Ok(updates::rows(&self.arch, packages, &Self::profile().await?))
    }

    async fn past_runs(&self, _since: Timestamp) -> Vec<PastRun> {
        // The system's history of installs names nobody.
        Vec::new()
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        platform::is_any_running(&INSTALLERS).map_err(|error| broken(error.to_string()))
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        updates::is_later(a, b)
    }

    fn goes_back(&self, _: &str, _: &str) -> bool {
        false
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        stamp_of(vec![HISTORY.into()], &[])
    }

    fn explain(&self, output: &str, code: Option<i32>, _: &[PackageChange]) -> Failure {
        words::failure(output, code)
    }

    fn remarks(&self, _: &str, _: &[PackageChange]) -> String {
        String::new()
    }
}

/// Any text in the place of what macOS answers: none of it becomes an option of a command, or a name that an order cannot have.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (list, profile) = text.split_once('\0').unwrap_or((text, text));
    let listing = listing::parse(list).unwrap_or_default();
    let profile = profile::parse(profile).unwrap_or_default();
    let found = updates::inventory("arm64", &listing, &profile, &Downloaded::new());
    let packages: Vec<PackageChange> = found.updates.into_iter().flat_map(|update| update.packages).collect();
    for package in &packages {
        for word in [&package.name, &package.installed, &package.candidate] {
            assert!(word.starts_with(|first: char| first.is_ascii_alphanumeric()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c)), "{word}");
        }
    }
    let artifacts = updates::artifacts("arm64", &packages, &listing);
    assert_eq!(artifacts.len(), packages.len(), "each of them is offered");
    assert!(labels(&artifacts).iter().all(|label| !label.starts_with('-')), "{artifacts:?}");
    let _ = (updates::simulation("arm64", &packages, &listing, &profile), updates::rows("arm64", &packages, &profile));
    let _ = (words::failure(text, Some(0)), words::known(&words::complaint(text)));
}

#[cfg(test)]
mod tests;
