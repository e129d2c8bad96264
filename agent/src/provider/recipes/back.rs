//! The way back of applications: to the version before, which an install has kept beside them.
//!
//! No repository has its file: its digest is that of all that lies there ([`recipes::digest`]), and nothing is downloaded.

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::recipes::Recipe;
use patchwarden_protocol::result::ResultReason;

use super::detect::{Found, look, path_of};
use super::{ARCH, Recipes, apply, earlier, named, origin, owner, wanted};
use crate::platform::recipes;
use crate::provider::{Artifact, Change, Failure, Native, Simulation, support};

impl Recipes {
    /// Whether an application of this name may ever be brought to an earlier version.
    pub(in crate::provider) fn goes_back(&self, name: &str) -> bool {
        let catalogue = self.shelf.latest();
        catalogue.as_ref().and_then(|catalogue| named(catalogue, name)).is_some_and(|recipe| !recipe.stateful)
    }

    /// What would be done: exactly what is ordered, where that is still kept.
    pub(in crate::provider) async fn simulate_back(
        &self,
        native: &Native,
        packages: &[PackageChange],
    ) -> Result<Simulation, Failure> {
        let gone = |package: &PackageChange, why: &str| {
            Failure::new(ResultReason::Superseded, format!("{} {}: {why}", package.name, package.candidate))
        };
        let catalogue = self.shelf.latest();
        let catalogue = catalogue.as_ref();
        let mut ordered = Vec::new();
        for package in packages {
            let recipe = catalogue.and_then(|catalogue| Some((catalogue, named(catalogue, &package.name)?)));
            ordered.push((package, recipe.ok_or_else(|| gone(package, "no recipe says any more where it lies"))?));
        }
        let all: Vec<&Recipe> = ordered.iter().map(|(_, (_, recipe))| *recipe).collect();
        let owned = owner::owned(native, &all).await?;
        let mut changes = Vec::new();
        for (package, (catalogue, recipe)) in ordered {
            if owned.contains(&recipe.install.path) {
                let message = format!("{}: {} belongs to a package by now", package.name, recipe.install.path);
                return Err(Failure::new(ResultReason::ReportMismatch, message));
            }
            let found = look(recipe).await;
            if found == Found::Nothing && package.is_removal() {
                continue;
            }
            let Found::Version(there) = found else {
                let message = format!("{} is not installed, or says no version", package.name);
                return Err(Failure::new(ResultReason::ReportMismatch, message));
            };
            if there == package.candidate {
                continue;
            }
            if !package.is_removal()
                && earlier::of(recipe, &there).is_none_or(|earlier| earlier.version != package.candidate)
            {
                return Err(gone(package, "is not kept beside it any more"));
            }
            apply::check(recipe)
                .map_err(|why| Failure::new(ResultReason::PackageManagerFailed, format!("{}: {why}", package.name)))?;
            changes.push(Change {
                name: package.name.clone(),
                arch: ARCH.to_owned(),
                old: Some(there),
                new: package.candidate.clone(),
                origin: origin(catalogue),
            });
        }
        Ok(Simulation { changes, ..Simulation::default() })
    }

    /// What these packages go back to, as it is kept; or, of one that is still to be replaced, as it lies there. Without those of which
    /// there is nothing.
    pub(in crate::provider) async fn earlier(&self, packages: &[PackageChange]) -> Vec<Artifact> {
        let Some(catalogue) = self.shelf.latest() else { return Vec::new() };
        let mut found = Vec::new();
        for package in packages.iter().filter(|package| package.arch == ARCH) {
            let Some(recipe) = named(&catalogue, &package.name) else { continue };
            // Before its first install there was nothing.
            if package.is_removal() {
                found.push(wanted::no_file(package));
                continue;
            }
            let kept = earlier::of(recipe, &package.installed).filter(|kept| kept.version == package.candidate);
            let sha256 = match kept {
                Some(kept) => Some(kept.sha256),
                None if look(recipe).await == Found::Version(package.candidate.clone()) => {
                    let path = path_of(recipe);
                    let digest = tokio::task::spawn_blocking(move || recipes::digest(&path)).await;
                    digest.ok().and_then(Result::ok)
                }
                None => None,
            };
            found.extend(sha256.map(|sha256| Artifact {
                name: package.name.clone(),
                arch: ARCH.to_owned(),
                version: package.candidate.clone(),
                sha256,
                size: 0,
                file_name: String::new(),
                local: None,
                needed: false,
                rivals: Vec::new(),
            }));
        }
        found
    }

    /// Whether what is kept is what was put there.
    pub(in crate::provider) async fn rehearse_back(&self, packages: &[PackageChange]) -> Result<(), Failure> {
        let Some(catalogue) = self.shelf.latest() else { return Ok(()) };
        for package in packages {
            let Some(recipe) = named(&catalogue, &package.name).cloned() else { continue };
            let Some(kept) = earlier::of(&recipe, &package.installed) else { continue };
            let verified = tokio::task::spawn_blocking(move || earlier::verify(&recipe, &kept)).await;
            let failed = |why: String| support::broken(format!("{}: {why}", package.name));
            verified.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
        }
        Ok(())
    }
}
