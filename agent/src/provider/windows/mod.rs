//! Windows Update, by Windows' own agent for it (COM) and CIM, through Windows PowerShell.
//!
//! One script ([`script`]) asks and does everything, and answers in JSON, which [`answer`] reads. What comes out of it is decided
//! in [`updates`]. Both are pure.
//!
//! - An update is what Windows Update offers and calls by one article of its knowledge base (`KB5031356`), with each of the
//!   identities (UpdateID and revision) that have it; without an article it is its UpdateID. A package is an UpdateID, its version
//!   the revision, `0` where it is not installed. Optional ones (previews) and definitions of Defender are left out.
//! - On a machine that a policy points to a WSUS server only what that one approved is offered: the search is Windows' own, and
//!   `origin` names the server.
//! - *What is ordered is an identity.* The metadata of an identity is signed by Microsoft and names its files; Windows fetches,
//!   verifies and keeps these itself. The agent sees no hash of them: `artifactsDigest` is that of identities.
//! - *There is no simulation.* Whether exactly the ordered identity is offered is looked at, and no more: what an update brings
//!   beside itself is said by nobody. So `dependencies: Strict` promises no more here than `AllowInstalls`.
//! - *Nothing is taken back.* What can be uninstalled is not told dependably, and cumulative updates mostly cannot be.
//! - An update that waits for a restart is at its revision already, with that remark. The machine then needs a restart; what fails
//!   in that is offered again afterwards.
//! - An update that may ask a person something is held.

mod answer;
mod script;
mod updates;
mod words;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;

use self::answer::{Done, Found, State};
use self::script::Question;
#[cfg(windows)]
pub(crate) use self::script::powershell;
use self::updates::identities;
use super::run::{Output, run};
use super::support::{MAX_MESSAGE, broken, stamp_of};
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, PastRun, Provider, Simulation,
    Space, Stamp, bounded,
};
use crate::platform;

/// A search that asks the server takes minutes on a machine that has not asked for long.
const SEARCH_LIMIT: Duration = Duration::from_mins(30);

/// What Windows knows already. Its database is large.
const STATE_LIMIT: Duration = Duration::from_mins(10);

/// Programs that are at work while something is installed: the servicing stack's worker, and the installers of single packages.
const INSTALLERS: [&str; 3] = ["TiWorker.exe", "wusa.exe", "dism.exe"];

/// What changes in the directory of Windows when packages are installed, or wait for a restart.
const STAMPED: [&str; 3] = [r"servicing\Packages", r"WinSxS\pending.xml", "Installer"];

const NEVER_BACK: &str = "this agent takes back no update of Windows";

/// Bytes in a megabyte of `RecommendedHardDiskSpace`.
const MEGABYTE: u64 = 1 << 20;

/// The provider.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    /// As packages have it: `amd64`.
    arch: String,
}

impl Windows {
    /// Windows Update of this machine, or why it cannot be asked.
    pub(super) fn detect() -> Result<Self, String> {
        let powershell = script::powershell();
        if !powershell.is_file() {
            return Err(format!("{} is not there: this agent asks Windows Update by it", powershell.display()));
        }
        // The program's own: there is one for each.
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self { arch: arch.to_owned() })
    }

    async fn ask(question: &Question<'_>, limit: Duration) -> Result<String, Failure> {
        let output = run(&script::line(question), limit).await?;
        answered(output)
    }

    /// What Windows knows of these identities.
    async fn state<'a>(ids: impl Iterator<Item = &'a str>) -> Result<State, Failure> {
        let ids: Vec<&str> = ids.collect();
        script::check_length(ids.len())?;
        if ids.is_empty() {
            return Ok(State::default());
        }
        let text = Self::ask(&Question::State { ids }, STATE_LIMIT).await?;
        answer::read(&text).map_err(broken)
    }

    /// Those of `packages` that are offered in exactly their revision.
    async fn offered_of(packages: &[PackageChange]) -> Result<Vec<Found>, Failure> {
        let mut found = Self::state(packages.iter().map(|package| package.name.as_str())).await?.updates;
        found.retain(|found| {
            found.is_offered() && packages.iter().any(|package| found.is(&package.name, &package.candidate))
        });
        Ok(found)
    }

    fn artifact(&self, found: &Found) -> Artifact {
        Artifact {
            name: found.id.clone(),
            arch: self.arch.clone(),
            version: found.revision.to_string(),
            // Not for the agent to fetch: Windows does, and verifies it by the metadata of this identity.
            sha256: String::new(),
            size: 0,
            file_name: String::new(),
            local: None,
            needed: false,
            rivals: Vec::new(),
        }
    }
}

/// Why Windows was not asked, in its own words.
fn answered(output: Output) -> Result<String, Failure> {
    if let Some(failure) = answer::failure(&output.stdout) {
        return Err(words::failure_of(failure.hresult, &failure.message).general());
    }
    if output.succeeded() {
        return Ok(output.stdout);
    }
    let said = bounded(output.stderr.trim(), MAX_MESSAGE);
    Err(broken(format!("powershell.exe ended with code {:?}: {said}", output.code)).general())
}

impl Provider for Windows {
    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let text = Self::ask(&Question::Inventory { online: refresh }, SEARCH_LIMIT).await?;
        let found = answer::read::<answer::Inventory>(&text).map_err(broken)?;
        Ok(updates::inventory(&self.arch, found))
    }

    /// Whether what is ordered is offered. Nobody says what more Windows would do: see above.
    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        if direction == Direction::Back {
            return Err(Failure::new(ResultReason::PackageManagerFailed, NEVER_BACK));
        }
        let state = Self::state(packages.iter().map(|package| package.name.as_str())).await?;
        updates::simulation(&self.arch, packages, &state)
    }

    async fn artifacts(&self, _: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        self.offered(packages).await
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        Ok(Self::offered_of(packages).await?.iter().map(|found| self.artifact(found)).collect())
    }

    /// What Windows recommends to have free. The most that a download may be is not counted: for cumulative updates that is many
    /// times what is fetched.
    async fn space(&self, changes: &[Change], _: &[Artifact]) -> Result<Space, Failure> {
        let found = Self::state(changes.iter().map(|change| change.name.as_str())).await?.updates;
        let megabytes: u64 = found.iter().map(|found| found.disk_megabytes).fold(0, u64::saturating_add);
        Ok(Space { unpacked: megabytes.saturating_mul(MEGABYTE), ..Space::default() })
    }

    /// Windows has a cache of its own for that (Delivery Optimization).
    fn takes_proxy(&self) -> bool {
        false
    }

    /// Into the place of Windows' own.
    async fn download(
        &self,
        _: Direction,
        packages: &[PackageChange],
        _: &[Artifact],
        _: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        let text = Self::ask(&Question::Download { updates: identities(packages) }, line.limit).await?;
        let done = answer::done(&text);
        let failures: Vec<(&PackageChange, Failure)> = packages
            .iter()
            .filter_map(|package| Some((package, words::download_failure(done_of(&done, package))?)))
            .collect();
        match failures.first() {
            None => Ok(()),
            Some((_, Failure { reason, .. })) => {
                let each: Vec<String> =
                    failures.iter().map(|(package, failure)| format!("{}: {failure}", package.name)).collect();
                Err(Failure::new(*reason, bounded(&each.join("; "), MAX_MESSAGE)))
            }
        }
    }

    /// There is no way back that files would be for.
    async fn save(&self, _: &[Artifact], _: &Path, _: Line<'_>) -> Result<(), Failure> {
        Err(Failure::new(ResultReason::PackageManagerFailed, NEVER_BACK))
    }

    /// Windows lets nothing be tried.
    async fn rehearse(&self, _: Direction, _: &[PackageChange], _: &Path) -> Result<(), Failure> {
        Ok(())
    }

    fn install_command(&self, _: Direction, packages: &[PackageChange], _: &[Artifact], _: &Path) -> CommandLine {
        script::line(&Question::Install { updates: identities(packages) })
    }

    /// Windows itself completes or undoes what it was interrupted in, at its next start.
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
        let found = Self::state(packages.iter().map(|package| package.name.as_str())).await?.updates;
        Ok(updates::rows(&self.arch, packages, &found))
    }

    async fn past_runs(&self, _since: Timestamp) -> Vec<PastRun> {
        // Windows Update's own history is not asked yet.
        Vec::new()
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        platform::is_any_running(&INSTALLERS).map_err(|error| broken(error.to_string()))
    }

    /// Revisions are numbers.
    fn is_later(&self, a: &str, b: &str) -> bool {
        let number = |text: &str| text.parse::<u64>().unwrap_or_default();
        number(a) > number(b)
    }

    fn goes_back(&self, _: &str, _: &str) -> bool {
        false
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let windows = script::directory();
        stamp_of(STAMPED.iter().map(|name| windows.join(name)).collect(), &[])
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        if let Some(failure) = answer::failure(output) {
            return words::failure_of(failure.hresult, &failure.message);
        }
        let done = answer::done(output);
        let failures = packages.iter().filter_map(|package| words::install_failure(done_of(&done, package)));
        let mut failures: Vec<Failure> = failures.collect();
        failures.dedup();
        match (failures.first(), code) {
            (Some(first), _) => {
                let each: Vec<&str> = failures.iter().map(|failure| failure.message.as_str()).collect();
                Failure::new(first.reason, bounded(&each.join("; "), MAX_MESSAGE))
            }
            (None, Some(0)) => {
                Failure::new(ResultReason::NotInstalled, "Windows Update succeeded, and says that it is not installed")
            }
            (None, Some(code)) => broken(format!("powershell.exe ended with code {code}")),
            (None, None) => broken("powershell.exe was ended before it was done"),
        }
    }

    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String {
        let done = answer::done(output);
        let waits = packages.iter().any(|package| done_of(&done, package).is_some_and(|done| done.reboot_required));
        let partly = packages.iter().any(|package| done_of(&done, package).is_some_and(Done::is_with_errors));
        let mut remarks = Vec::new();
        if waits {
            remarks.push("a restart completes it");
        }
        if partly {
            remarks.push("Windows Update calls it installed with errors");
        }
        remarks.join("; ")
    }
}

/// What came of a package last.
fn done_of<'a>(done: &'a [Done], package: &PackageChange) -> Option<&'a Done> {
    done.iter()
        .rev()
        .find(|done| done.id.eq_ignore_ascii_case(&package.name) && done.revision.to_string() == package.candidate)
}

/// What keeps a search from being the whole truth.
fn unavailable(message: &str) -> Problem {
    Problem { code: ProblemCode::RepositoryUnavailable, message: bounded(message, 300) }
}

/// Any text in the place of what Windows answers.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    if let Ok(found) = answer::read::<answer::Inventory>(text) {
        let _ = updates::inventory("amd64", found);
    }
    let _ = answer::read::<State>(text).map(|state| updates::rows("amd64", &[], &state.updates));
    let windows = Windows { arch: "amd64".to_owned() };
    let package = PackageChange {
        name: "7a2b8c1d-0000-4000-8000-000000000001".to_owned(),
        arch: "amd64".to_owned(),
        installed: updates::ABSENT.to_owned(),
        candidate: "200".to_owned(),
    };
    let _ = (windows.explain(text, Some(0), std::slice::from_ref(&package)), windows.remarks(text, &[package]));
}

#[cfg(test)]
mod tests;
