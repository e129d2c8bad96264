//! Third-party applications, by the recipes of a publisher that this device believes.
//!
//! They are packages like others, with names that no package manager has: `recipe:kubectl`. Which version is installed is looked
//! up where the application lies, each time. They go forward where they are installed, back to the version before alone, and come and go where a
//! policy says so ([`wanted`]).

mod apply;
mod archive;
mod back;
mod detect;
mod earlier;
mod fetch;
mod owner;
mod unpack;
mod wanted;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use patchwarden_protocol::applications::{Application, Ensure, PACKAGE_PREFIX as PREFIX};
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::recipes::{self as protocol, Catalogue, Recipe, Version};
use patchwarden_protocol::report::{HeldReason, MAX_TITLE, Package, Problem, ProblemCode, Tristate, Update};
use patchwarden_protocol::result::ResultReason;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::detect::{Found, look};
use super::support::{self, application_url};
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Native, Simulation, Space, Stamp,
    artifacts_digest, bounded,
};
use crate::files;
use crate::platform;
use crate::shelf::Shelf;

use self::apply::Step;

pub(crate) use apply::apply;
pub(crate) use fetch::{Size, fetch};
#[cfg(any(test, fuzzing))]
pub(crate) use unpack::fuzz as fuzz_archive;
pub(crate) use unpack::unpack;

/// What their origin begins with; the publisher's name follows.
const ORIGIN: &str = "recipes:";

/// This machine's, as Rust and recipes call it.
pub(crate) const ARCH: &str = std::env::consts::ARCH;

/// In the state directory: locked while an application is replaced.
const LOCK: &str = "recipes.lock";

/// So many applications are asked for their versions at a time: a scan is not to be felt, nor to wait for one that hangs.
const AT_A_TIME: usize = 4;

/// In the place of a version that cannot be told.
const UNCLEAR: &str = "unknown";

/// Whether a package is an application of a recipe.
pub(crate) fn is_recipe(name: &str) -> bool {
    application_of(name).is_some()
}

/// The applications of a device.
#[derive(Clone, Debug)]
pub(crate) struct Recipes {
    shelf: Shelf,
    config: PathBuf,
    state: PathBuf,
    /// What the policy says of applications; one list, whoever has a copy of this.
    wanted: Arc<RwLock<Vec<Application>>>,
}

impl Recipes {
    /// Those of the catalogue on this shelf. `config` and `state` are for the process that replaces them.
    pub(crate) fn new(shelf: Shelf, config: &Path, state: &Path) -> Self {
        // What replaces them has another working directory.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { shelf, config: absolute(config), state: absolute(state), wanted: Arc::default() }
    }

    /// Adds to what the package manager has found.
    pub(super) async fn scan(&self, native: &Native, inventory: &mut Inventory) {
        let catalogue = match self.shelf.load(platform::now()) {
            Ok(Some(catalogue)) => catalogue,
            Ok(None) => return inventory.problems.extend(self.unknown(None)),
            Err(error) => {
                inventory.problems.push(error.problem());
                return;
            }
        };
        let found = look_at_all(&catalogue.recipes).await;
        let mut there: Vec<&Recipe> = found.iter().map(|(recipe, _)| *recipe).collect();
        let missing: Vec<&Recipe> = self.missing(&catalogue).filter(|recipe| !there.contains(recipe)).collect();
        there.extend(&missing);
        // What the package manager has put there is its own to update.
        let owned = match owner::owned(native, &there).await {
            Ok(owned) => owned,
            Err(failure) => return inventory.problems.push(problem(&failure.message)),
        };
        for (recipe, version) in found.iter().filter(|(recipe, _)| !owned.contains(&recipe.install.path)) {
            match version {
                Ok(version) if self.wants(&recipe.name, Ensure::Absent) => {
                    wanted::offer_removal(&catalogue, recipe, version, inventory);
                }
                Ok(version) => add(&catalogue, recipe, version, inventory),
                Err(why) => inventory.problems.push(problem(why)),
            }
        }
        for recipe in missing.iter().filter(|recipe| !owned.contains(&recipe.install.path)) {
            wanted::offer_first_install(&catalogue, recipe, inventory);
        }
        for recipe in there.iter().filter(|recipe| owned.contains(&recipe.install.path)) {
            if self.wants(&recipe.name, Ensure::Absent) {
                let (name, path) = (&recipe.name, &recipe.install.path);
                let why =
                    format!("{name}: the policy does not want it, and {path} is a package's: remove that package");
                inventory.problems.push(problem(&why));
            }
        }
        inventory.problems.extend(self.unknown(Some(&catalogue)));
        inventory.packages.sort_unstable();
    }

    /// What would be done: exactly what is ordered, where that is still offered.
    pub(super) async fn simulate(&self, native: &Native, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let catalogue = self.catalogue()?;
        let ordered: Vec<&Recipe> =
            packages.iter().map(|package| ordered_recipe(&catalogue, package)).collect::<Result<_, _>>()?;
        let owned = owner::owned(native, &ordered).await?;
        let mut changes = Vec::new();
        for package in packages {
            let recipe = ordered_recipe(&catalogue, package)?;
            if owned.contains(&recipe.install.path) {
                let message = format!("{}: {} belongs to a package by now", package.name, recipe.install.path);
                return Err(Failure::new(ResultReason::ReportMismatch, message));
            }
            if package.is_first_install() || package.is_removal() {
                changes.extend(self.simulate_wanted(&catalogue, recipe, package).await?);
                continue;
            }
            let Found::Version(there) = look(recipe).await else {
                let message = format!("{} is not installed, or says no version", package.name);
                return Err(Failure::new(ResultReason::ReportMismatch, message));
            };
            if there != recipe.release.version {
                apply::check(recipe).map_err(|why| {
                    Failure::new(ResultReason::PackageManagerFailed, format!("{}: {why}", package.name))
                })?;
                changes.push(Change {
                    name: package.name.clone(),
                    arch: ARCH.to_owned(),
                    old: Some(there),
                    new: recipe.release.version.clone(),
                    origin: origin(&catalogue),
                });
            }
        }
        Ok(Simulation { changes, ..Simulation::default() })
    }

    /// The files of these packages, without those that are not offered (any more): none where there is no catalogue.
    pub(super) fn artifacts(&self, packages: &[PackageChange]) -> Vec<Artifact> {
        let Ok(catalogue) = self.catalogue() else { return Vec::new() };
        let of = |package: &PackageChange| {
            let recipe = ordered_recipe(&catalogue, package).ok()?;
            if package.is_removal() { Some(wanted::no_file(package)) } else { artifact_of(recipe) }
        };
        packages.iter().filter_map(of).collect()
    }

    /// A new version lies beside the old one for a moment.
    pub(super) fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Space {
        let catalogue = self.shelf.latest();
        let recipes = changes.iter().filter_map(|change| {
            // What goes back is here.
            named(catalogue.as_ref()?, &change.name).filter(|recipe| recipe.release.version == change.new)
        });
        let unpacked =
            recipes.filter_map(|recipe| recipe.release.artifact(ARCH)).map(|artifact| artifact.unpacked).sum();
        let download = artifacts.iter().filter(|artifact| artifact.needed).map(|artifact| artifact.size).sum();
        Space { download, unpacked }
    }

    /// Fetches and verifies each of `missing`, all within `limit`. Names of those packages whose file is not there, and why.
    pub(super) async fn download(
        &self,
        missing: &[Artifact],
        archives: &Path,
        limit: Duration,
    ) -> Vec<(String, Failure)> {
        let (began, mut failures) = (Instant::now(), Vec::new());
        for artifact in missing {
            let left = limit.saturating_sub(began.elapsed());
            if let Err(failure) = self.download_one(artifact, archives, left).await {
                failures.push((artifact.name.clone(), failure));
            }
        }
        failures
    }

    async fn download_one(&self, artifact: &Artifact, archives: &Path, limit: Duration) -> Result<(), Failure> {
        let catalogue = self.catalogue()?;
        let gone = || Failure::new(ResultReason::Superseded, format!("{} is not offered any more", artifact.file_name));
        let url = named(&catalogue, &artifact.name)
            .and_then(|recipe| recipe.release.artifact(ARCH))
            .filter(|offered| offered.sha256 == artifact.sha256)
            .map(|offered| offered.url.clone())
            .ok_or_else(gone)?;
        if limit.is_zero() {
            let message = format!("{url}: other files took all of the time");
            return Err(Failure::new(ResultReason::DownloadFailed, message));
        }
        let (size, to) = (artifact.size, archives.join(&artifact.file_name));
        let fetched = tokio::task::spawn_blocking(move || fetch(&url, Size::Exactly(size), &to, limit));
        fetched.await.map_err(|error| Failure::new(ResultReason::DownloadFailed, error.to_string()))??;
        support::verify(std::slice::from_ref(artifact), archives).await
    }

    /// Whether the files are what recipes say, and hold nothing that is not unpacked.
    pub(super) async fn rehearse(&self, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        let catalogue = self.catalogue()?;
        for package in packages.iter().filter(|package| !package.is_removal()) {
            let recipe = recipe_of(&catalogue, package)?.clone();
            let Some(artifact) = recipe.release.artifact(ARCH).cloned() else { continue };
            let file = archives.join(file_name(&recipe, &artifact));
            let looked =
                tokio::task::spawn_blocking(move || unpack(&file, &recipe.install.content, artifact.unpacked, None));
            let failed = |why: String| support::broken(format!("{}: {why}", package.name));
            looked.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// The command that brings `packages` to their versions by the files in `archives`, or by what was kept, and then lets `native`
    /// have its turn.
    pub(super) fn command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        archives: &Path,
        native: Option<CommandLine>,
    ) -> CommandLine {
        // The file of that name, also where an upgrade of the agent itself has put another one there.
        let own = std::env::current_exe().ok().filter(|program| program.exists());
        let program = own.unwrap_or_else(|| "patchwarden-agent".into());
        let mut words = vec![program.into_os_string(), "--config".into(), self.config.clone().into()];
        words.extend(["--state-dir".into(), self.state.clone().into(), "recipes".into(), "apply".into()]);
        words.extend(["--archives".into(), archives.into()]);
        if direction == Direction::Back {
            words.push("--back".into());
        }
        words.extend(packages.iter().filter_map(Step::of).map(|step| step.to_string().into()));
        let mut environment = vec![("PATH", support::PATH.into()), ("LC_ALL", "C".into()), ("HOME", "/root".into())];
        if let Some(native) = native {
            words.push("--".into());
            words.extend(native.words);
            environment = native.environment;
        }
        CommandLine { words, environment }
    }

    /// What removes the rest of an interrupted run, if there is any. Each application is whole in any case.
    pub(super) fn repair(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        archives: &Path,
    ) -> Option<CommandLine> {
        let catalogue = self.shelf.latest()?;
        let is_unclean = |package: &&PackageChange| named(&catalogue, &package.name).is_some_and(apply::is_unclean);
        let unclean: Vec<PackageChange> = packages.iter().filter(is_unclean).cloned().collect();
        (!unclean.is_empty()).then(|| self.command(direction, &unclean, archives, None))
    }

    /// What is installed of these packages: what has no recipe (any more) is not found. A catalogue that has expired meanwhile still
    /// says where they are.
    pub(super) async fn installed(&self, packages: &[PackageChange]) -> Vec<Installed> {
        let catalogue = self.shelf.latest();
        let mut rows = Vec::new();
        for package in packages {
            let recipe = catalogue.as_ref().and_then(|catalogue| named(catalogue, &package.name));
            let found = match recipe {
                Some(recipe) => look(recipe).await,
                None => Found::Unclear(String::new()),
            };
            // That something is not there must be known where it is what counts.
            let version = match found {
                Found::Version(version) => version,
                Found::Unclear(_) if package.is_first_install() || package.is_removal() => UNCLEAR.to_owned(),
                Found::Nothing | Found::Unclear(_) => continue,
            };
            let source = recipe.map(|recipe| recipe.name.clone()).unwrap_or_default();
            let (name, complete) = (package.name.clone(), version != UNCLEAR);
            rows.push(Installed { name, arch: ARCH.to_owned(), version, source, complete });
        }
        rows
    }

    /// Whether an application is being replaced.
    pub(super) fn is_busy(&self) -> Result<bool, Failure> {
        support::is_locked(&self.state.join(LOCK).to_string_lossy())
    }

    /// The catalogue, and the files that say a version. Not the directories of applications, in which things come and go; and what
    /// cannot be looked at is as good as not there: orders that have nothing to do with it go on.
    pub(super) fn stamp(&self) -> Stamp {
        let mut paths = vec![self.shelf.path().to_owned()];
        if let Ok(Some(catalogue)) = self.shelf.load(platform::now()) {
            paths.extend(catalogue.recipes.iter().map(detect::says_version));
        }
        let stamped = paths.into_iter().map(|path| {
            let stamp = std::fs::symlink_metadata(&path).ok().map(|metadata| files::stamp_of(&metadata));
            (path, stamp)
        });
        Stamp(stamped.collect())
    }

    fn catalogue(&self) -> Result<Catalogue, Failure> {
        match self.shelf.load(platform::now()) {
            Ok(Some(catalogue)) => Ok(catalogue),
            Ok(None) => Err(Failure::new(ResultReason::Superseded, "this device has no recipes (any more)")),
            Err(error) => Err(Failure::new(ResultReason::Superseded, error.to_string())),
        }
    }
}

/// What is there of these applications, in their order: a version, or why it is not told. Several are asked at a time.
async fn look_at_all(recipes: &[Recipe]) -> Vec<(&Recipe, Result<String, String>)> {
    let (turns, mut looks) = (Arc::new(Semaphore::new(AT_A_TIME)), JoinSet::new());
    for (number, recipe) in recipes.iter().enumerate() {
        let (turns, recipe) = (Arc::clone(&turns), recipe.clone());
        looks.spawn(async move {
            // Closed it never is.
            let _turn = turns.acquire_owned().await;
            (number, look(&recipe).await)
        });
    }
    let mut looked = looks.join_all().await;
    looked.sort_unstable_by_key(|(number, _)| *number);
    let found = looked.into_iter().filter_map(|(number, found)| match found {
        Found::Nothing => None,
        Found::Version(version) => Some((&recipes[number], Ok(version))),
        Found::Unclear(why) => Some((&recipes[number], Err(why))),
    });
    found.collect()
}

/// See [`super::Provider::explain`].
pub(super) fn explain(output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
    let name = packages.first().and_then(|package| application_of(&package.name)).unwrap_or_default();
    apply::explain(output, code, name)
}

/// Whether version `a` is later than `b`.
pub(super) fn is_later(a: &str, b: &str) -> bool {
    match (Version::parse(a), Version::parse(b)) {
        (Some(a), Some(b)) => a.is_later_than(&b),
        // Whatever is there is later than nothing.
        (Some(_), None) => b.is_empty(),
        (None, _) => false,
    }
}

/// The name of the application, of a package that is one.
pub(crate) fn application_of(package: &str) -> Option<&str> {
    package.strip_prefix(PREFIX)
}

fn named<'a>(catalogue: &'a Catalogue, package: &str) -> Option<&'a Recipe> {
    let name = application_of(package)?;
    catalogue.recipes.iter().find(|recipe| recipe.name == name)
}

/// The recipe of exactly the ordered version.
fn recipe_of<'a>(catalogue: &'a Catalogue, package: &PackageChange) -> Result<&'a Recipe, Failure> {
    let offers = |recipe: &&Recipe| recipe.release.version == package.candidate && package.arch == ARCH;
    named(catalogue, &package.name).filter(offers).ok_or_else(|| {
        let message = format!("{} {} is not offered any more", package.name, package.candidate);
        Failure::new(ResultReason::Superseded, message)
    })
}

/// The recipe of an ordered package; of one that is to be removed whatever version the publisher offers.
fn ordered_recipe<'a>(catalogue: &'a Catalogue, package: &PackageChange) -> Result<&'a Recipe, Failure> {
    match named(catalogue, &package.name) {
        Some(recipe) if package.is_removal() && package.arch == ARCH => Ok(recipe),
        _ => recipe_of(catalogue, package),
    }
}

fn artifact_of(recipe: &Recipe) -> Option<Artifact> {
    let artifact = recipe.release.artifact(ARCH)?;
    Some(Artifact {
        name: format!("{PREFIX}{}", recipe.name),
        arch: ARCH.to_owned(),
        version: recipe.release.version.clone(),
        sha256: artifact.sha256.clone(),
        size: artifact.size,
        file_name: file_name(recipe, artifact),
        local: None,
        needed: true,
        rivals: Vec::new(),
    })
}

/// Where its file lies in the archives.
fn file_name(recipe: &Recipe, artifact: &protocol::Artifact) -> String {
    format!("recipe_{}_{}_{}", recipe.name, recipe.release.version, artifact.arch)
}

fn origin(catalogue: &Catalogue) -> String {
    format!("{ORIGIN}{}", catalogue.publisher)
}

fn problem(why: &str) -> Problem {
    Problem { code: ProblemCode::RecipesRefused, message: format!("recipes: {why}") }
}

/// The package, and the update where there is one.
fn add(catalogue: &Catalogue, recipe: &Recipe, version: &str, inventory: &mut Inventory) {
    let name = format!("{PREFIX}{}", recipe.name);
    let (arch, source) = (ARCH.to_owned(), recipe.name.clone());
    let package =
        Package { name: name.clone(), arch: arch.clone(), version: version.to_owned(), source, source_version: None };
    inventory.packages.push(package);
    let protocol::Release { version: candidate, published, classification, severity, cves, artifacts: _ } =
        &recipe.release;
    let Some(artifact) = artifact_of(recipe).filter(|_| is_later(candidate, version)) else { return };
    if let Err(why) = apply::check(recipe) {
        return inventory.problems.push(problem(&format!("{}: {why}", recipe.name)));
    }
    let digest = artifacts_digest([artifact.line()]);
    inventory.files.insert(digest.clone(), vec![artifact.sha256.clone()]);
    inventory.updates.push(Update {
        id: application_url(&recipe.name, candidate),
        title: bounded(&format!("{} {candidate}", recipe.title), MAX_TITLE),
        classification: *classification,
        severity: *severity,
        cves: cves.clone(),
        published: Some(*published),
        packages: vec![PackageChange { name, arch, installed: version.to_owned(), candidate: candidate.clone() }],
        origin: origin(catalogue),
        size_bytes: artifact.size,
        requires_restart: Tristate::No,
        // Nobody says whether a service runs it.
        interrupts_service: Tristate::Unknown,
        artifacts_digest: digest,
        held: false,
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: false,
        source_installed: None,
    });
}
