//! Everything that orders change on this machine: packages of its package manager, and applications of recipes. Which is which
//! is told by a package's name; one order may have both.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::applications::Application;
use patchwarden_protocol::order::PackageChange;

use super::recipes::{self, Recipes, is_recipe};
use super::{
    Artifact, Change, CommandLine, Direction, Failure, Installed, Inventory, Line, Native, PastRun, Provider,
    Simulation, Space, Stamp,
};
use crate::platform::Outdated;
use crate::provider::Unconfigured;

/// Both.
#[derive(Clone, Debug)]
pub(crate) struct Managed {
    native: Native,
    recipes: Recipes,
}

impl Managed {
    pub(crate) fn new(native: Native, recipes: Recipes) -> Self {
        Self { native, recipes }
    }

    /// For people.
    pub(crate) fn name(&self) -> &'static str {
        self.native.name()
    }
}

/// The package manager's own, and applications.
fn split<T: Clone>(all: &[T], name: impl Fn(&T) -> &str) -> (Vec<T>, Vec<T>) {
    let (recipes, native) = all.iter().cloned().partition(|one| is_recipe(name(one)));
    (native, recipes)
}

fn packages_of(all: &[PackageChange]) -> (Vec<PackageChange>, Vec<PackageChange>) {
    split(all, |package| &package.name)
}

fn files_of(all: &[Artifact]) -> (Vec<Artifact>, Vec<Artifact>) {
    split(all, |artifact| &artifact.name)
}

impl Provider for Managed {
    fn want(&self, applications: Vec<Application>) {
        self.recipes.want(applications);
    }

    async fn scan(&self, refresh: bool) -> Result<Inventory, Failure> {
        let mut inventory = self.native.scan(refresh).await?;
        self.recipes.scan(&self.native, &mut inventory).await;
        Ok(inventory)
    }

    async fn simulate(&self, direction: Direction, packages: &[PackageChange]) -> Result<Simulation, Failure> {
        let (native, recipes) = packages_of(packages);
        let mut simulation = match native[..] {
            [] => Simulation::default(),
            _ => self.native.simulate(direction, &native).await?,
        };
        if !recipes.is_empty() {
            let more = match direction {
                Direction::Forward | Direction::Removing => self.recipes.simulate(&self.native, &recipes).await?,
                Direction::Back => self.recipes.simulate_back(&self.native, &recipes).await?,
            };
            simulation.changes.extend(more.changes);
        }
        Ok(simulation)
    }

    async fn artifacts(&self, direction: Direction, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let (native, recipes) = packages_of(packages);
        let mut artifacts = match native[..] {
            [] => Vec::new(),
            _ => self.native.artifacts(direction, &native).await?,
        };
        match direction {
            _ if recipes.is_empty() => {}
            Direction::Forward | Direction::Removing => artifacts.extend(self.recipes.artifacts(&recipes)),
            Direction::Back => artifacts.extend(self.recipes.earlier(&recipes).await),
        }
        Ok(artifacts)
    }

    async fn offered(&self, packages: &[PackageChange]) -> Result<Vec<Artifact>, Failure> {
        let (native, recipes) = packages_of(packages);
        let mut artifacts = match native[..] {
            [] => Vec::new(),
            _ => self.native.offered(&native).await?,
        };
        if !recipes.is_empty() {
            artifacts.extend(self.recipes.earlier(&recipes).await);
        }
        Ok(artifacts)
    }

    async fn space(&self, changes: &[Change], artifacts: &[Artifact]) -> Result<Space, Failure> {
        let ((native, recipes), (files, of_recipes)) = (split(changes, |change| &change.name), files_of(artifacts));
        let mut space = match (native.is_empty(), files.is_empty()) {
            (true, true) => Space::default(),
            _ => self.native.space(&native, &files).await?,
        };
        if !recipes.is_empty() || !of_recipes.is_empty() {
            let more = self.recipes.space(&recipes, &of_recipes);
            space.download = space.download.saturating_add(more.download);
            space.unpacked = space.unpacked.saturating_add(more.unpacked);
        }
        Ok(space)
    }

    fn takes_proxy(&self) -> bool {
        self.native.takes_proxy()
    }

    async fn download(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        missing: &[Artifact],
        archives: &Path,
        line: Line<'_>,
    ) -> Result<(), Failure> {
        match (packages_of(packages), files_of(missing)) {
            ((native, _), _) if native.is_empty() => Ok(()),
            ((native, _), (files, _)) => self.native.download(direction, &native, &files, archives, line).await,
        }
    }

    async fn download_each(&self, missing: &[Artifact], archives: &Path, limit: Duration) -> Vec<(String, Failure)> {
        let (_, of_recipes) = files_of(missing);
        self.recipes.download(&of_recipes, archives, limit).await
    }

    /// Of applications the install itself keeps the earlier version.
    async fn save(&self, files: &[Artifact], archives: &Path, line: Line<'_>) -> Result<(), Failure> {
        self.native.save(files, archives, line).await
    }

    async fn rehearse(&self, direction: Direction, packages: &[PackageChange], archives: &Path) -> Result<(), Failure> {
        let (native, recipes) = packages_of(packages);
        if !native.is_empty() {
            self.native.rehearse(direction, &native, archives).await?;
        }
        if recipes.is_empty() {
            return Ok(());
        }
        match direction {
            Direction::Forward | Direction::Removing => self.recipes.rehearse(&recipes, archives).await,
            Direction::Back => self.recipes.rehearse_back(&recipes).await,
        }
    }

    fn install_command(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        artifacts: &[Artifact],
        archives: &Path,
    ) -> CommandLine {
        let ((native, recipes), (files, _)) = (packages_of(packages), files_of(artifacts));
        let command = || self.native.install_command(direction, &native, &files, archives);
        match (native.is_empty(), recipes.is_empty()) {
            (_, true) => command(),
            (true, false) => self.recipes.command(direction, &recipes, archives, None),
            (false, false) => self.recipes.command(direction, &recipes, archives, Some(command())),
        }
    }

    async fn repair_commands(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        removals: &[PackageChange],
        archives: &Path,
    ) -> Result<Vec<CommandLine>, Failure> {
        let (native, recipes) = packages_of(packages);
        let mut commands = match native[..] {
            [] => Vec::new(),
            _ => self.native.repair_commands(direction, &native, removals, archives).await?,
        };
        if !recipes.is_empty() {
            commands.extend(self.recipes.repair(direction, &recipes, archives));
        }
        Ok(commands)
    }

    async fn completing_commands(&self) -> Result<Vec<CommandLine>, Failure> {
        self.native.completing_commands().await
    }

    async fn unconfigured(&self) -> Result<Vec<Unconfigured>, Failure> {
        self.native.unconfigured().await
    }

    async fn installed(&self, packages: &[PackageChange]) -> Result<Vec<Installed>, Failure> {
        let (native, recipes) = packages_of(packages);
        let mut rows = match native[..] {
            [] => Vec::new(),
            _ => self.native.installed(&native).await?,
        };
        if !recipes.is_empty() {
            rows.extend(self.recipes.installed(&recipes).await);
        }
        Ok(rows)
    }

    async fn past_runs(&self, since: Timestamp) -> Vec<PastRun> {
        self.native.past_runs(since).await
    }

    async fn outdated_services(&self) -> Option<Outdated> {
        self.native.outdated_services().await
    }

    fn is_busy(&self) -> Result<bool, Failure> {
        Ok(self.recipes.is_busy()? || self.native.is_busy()?)
    }

    fn holder(&self) -> Option<String> {
        self.native.holder()
    }

    fn is_later(&self, a: &str, b: &str) -> bool {
        self.native.is_later(a, b)
    }

    fn comes_after(&self, package: &str, a: &str, b: &str) -> bool {
        if is_recipe(package) { recipes::is_later(a, b) } else { self.native.is_later(a, b) }
    }

    fn goes_back(&self, name: &str, source: &str) -> bool {
        if is_recipe(name) { self.recipes.goes_back(name) } else { self.native.goes_back(name, source) }
    }

    fn is_kernel(&self, name: &str) -> bool {
        self.native.is_kernel(name)
    }

    fn is_image(&self, name: &str) -> bool {
        self.native.is_image(name)
    }

    fn stamp(&self) -> Result<Stamp, Failure> {
        let Stamp(mut stamps) = self.native.stamp()?;
        stamps.extend(self.recipes.stamp().0);
        Ok(Stamp(stamps))
    }

    fn explain(&self, output: &str, code: Option<i32>, packages: &[PackageChange]) -> Failure {
        let (native, recipes) = packages_of(packages);
        if native.is_empty() && !recipes.is_empty() {
            return recipes::explain(output, code, &recipes);
        }
        self.native.explain(output, code, &native)
    }

    fn remarks(&self, output: &str, packages: &[PackageChange]) -> String {
        match packages_of(packages) {
            (native, _) if native.is_empty() => String::new(),
            (native, _) => self.native.remarks(output, &native),
        }
    }
}
