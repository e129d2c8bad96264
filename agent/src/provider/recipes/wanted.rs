//! Applications that the policy wants on this device and that are not there, and those that it does not want and that are.
//!
//! Each is an update of its own kind in the scan (see [`patchwarden_protocol::applications`]). Whatever is ordered, the signed settings
//! that this device has must still say so when it is simulated.

use std::sync::PoisonError;

use patchwarden_protocol::applications::{Application, Ensure};
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::recipes::{Catalogue, Recipe};
use patchwarden_protocol::report::{
    Classification, HeldReason, MAX_TITLE, Package, Problem, Severity, Tristate, Update,
};
use patchwarden_protocol::result::ResultReason;

use super::detect::{Found, look, path_of};
use super::{ARCH, PREFIX, Recipes, apply, artifact_of, origin, problem};
use crate::provider::support::application_url;
use crate::provider::{Artifact, Change, Failure, Inventory, artifacts_digest, bounded};

/// What the id of a removal begins with. Not as that of an update: who approves one has not approved the other.
const REMOVAL: &str = "remove:generic/";

impl Recipes {
    /// See [`crate::provider::Provider::want`].
    pub(in crate::provider) fn want(&self, applications: Vec<Application>) {
        *self.wanted.write().unwrap_or_else(PoisonError::into_inner) = applications;
    }

    /// Whether the policy says so of the application of this name.
    pub(super) fn wants(&self, name: &str, ensure: Ensure) -> bool {
        let wanted = self.wanted.read().unwrap_or_else(PoisonError::into_inner);
        wanted.iter().any(|one| one.name == name && one.ensure == ensure)
    }

    /// Recipes of what is to be installed, whether it is or not.
    pub(super) fn missing<'c>(&self, catalogue: &'c Catalogue) -> impl Iterator<Item = &'c Recipe> {
        catalogue.recipes.iter().filter(|recipe| self.wants(&recipe.name, Ensure::Installed))
    }

    /// Applications of which the policy says something, and no recipe here does.
    pub(super) fn unknown(&self, catalogue: Option<&Catalogue>) -> Option<Problem> {
        let wanted = self.wanted.read().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            |name: &str| catalogue.is_some_and(|catalogue| catalogue.recipes.iter().any(|recipe| recipe.name == name));
        let names: Vec<&str> = wanted.iter().map(|one| one.name.as_str()).filter(|name| !is_known(name)).collect();
        let why = format!("the policy says something of {}, and this device has no recipe for it", names.join(", "));
        (!names.is_empty()).then(|| problem(&why))
    }

    /// What would be done to an application that is to come or to go, if the policy still wants that.
    pub(super) async fn simulate_wanted(
        &self,
        catalogue: &Catalogue,
        recipe: &Recipe,
        package: &PackageChange,
    ) -> Result<Option<Change>, Failure> {
        let mismatch = |why: &str| Failure::new(ResultReason::ReportMismatch, format!("{}: {why}", package.name));
        let ensure = if package.is_removal() { Ensure::Absent } else { Ensure::Installed };
        if !self.wants(&recipe.name, ensure) {
            return Err(mismatch(&format!("the policy does not say {ensure:?} of it (any more)")));
        }
        let there = match look(recipe).await {
            Found::Version(there) => Some(there),
            Found::Nothing => None,
            Found::Unclear(why) => return Err(mismatch(&why)),
        };
        if there.as_deref().unwrap_or_default() == package.candidate {
            return Ok(None);
        }
        let checked = if package.is_removal() { apply::check(recipe) } else { apply::check_free(recipe) };
        checked.map_err(|why| Failure::new(ResultReason::PackageManagerFailed, format!("{}: {why}", package.name)))?;
        Ok(Some(Change {
            name: package.name.clone(),
            arch: ARCH.to_owned(),
            old: there,
            new: package.candidate.clone(),
            origin: origin(catalogue),
        }))
    }
}

/// What a removal needs of files: none. It stands in the digest all the same, so that an order names what it is for.
pub(super) fn no_file(package: &PackageChange) -> Artifact {
    Artifact {
        name: package.name.clone(),
        arch: package.arch.clone(),
        version: String::new(),
        sha256: String::new(),
        size: 0,
        file_name: String::new(),
        local: None,
        needed: false,
        rivals: Vec::new(),
    }
}

/// The application is not there, and is to be.
pub(super) fn offer_first_install(catalogue: &Catalogue, recipe: &Recipe, inventory: &mut Inventory) {
    if let Err(why) = apply::check_free(recipe) {
        return inventory.problems.push(problem(&format!("{}: {why}", recipe.name)));
    }
    let Some(artifact) = artifact_of(recipe) else {
        let why = format!("{}: its publisher has no file for {ARCH}", recipe.name);
        return inventory.problems.push(problem(&why));
    };
    let release = &recipe.release;
    let digest = artifacts_digest([artifact.line()]);
    inventory.files.insert(digest.clone(), vec![artifact.sha256.clone()]);
    inventory.updates.push(Update {
        id: application_url(&recipe.name, &release.version),
        title: bounded(&format!("{} {} (first install)", recipe.title, release.version), MAX_TITLE),
        classification: Classification::FirstInstall,
        published: Some(release.published),
        size_bytes: artifact.size,
        artifacts_digest: digest,
        ..update(catalogue, recipe, "", &release.version)
    });
}

/// The application is there in this version, and is not to be.
pub(super) fn offer_removal(catalogue: &Catalogue, recipe: &Recipe, version: &str, inventory: &mut Inventory) {
    let (name, arch, source) = (format!("{PREFIX}{}", recipe.name), ARCH.to_owned(), recipe.name.clone());
    inventory.packages.push(Package { name, arch, version: version.to_owned(), source, source_version: None });
    if let Err(why) = apply::check(recipe) {
        return inventory.problems.push(problem(&format!("{}: {why}", recipe.name)));
    }
    let update = update(catalogue, recipe, version, "");
    let digest = artifacts_digest(update.packages.iter().map(no_file).collect::<Vec<_>>().iter().map(Artifact::line));
    inventory.updates.push(Update {
        id: format!("{REMOVAL}{}", recipe.name),
        title: bounded(&format!("{} {version} (removal)", recipe.title), MAX_TITLE),
        classification: Classification::Removal,
        artifacts_digest: digest,
        // There is nothing to download.
        downloaded: true,
        ..update
    });
}

/// What a first install and a removal have in common. Neither mends what the recipe's release mends: it is not there, or goes.
fn update(catalogue: &Catalogue, recipe: &Recipe, installed: &str, candidate: &str) -> Update {
    let (name, arch) = (format!("{PREFIX}{}", recipe.name), ARCH.to_owned());
    Update {
        id: String::new(),
        title: String::new(),
        classification: Classification::Unclassified,
        severity: Severity::Unknown,
        cves: Vec::new(),
        published: None,
        packages: vec![PackageChange { name, arch, installed: installed.into(), candidate: candidate.into() }],
        origin: origin(catalogue),
        size_bytes: 0,
        requires_restart: Tristate::No,
        // Nobody says whether a service runs it; nothing runs what is not there.
        interrupts_service: if installed.is_empty() { Tristate::No } else { Tristate::Unknown },
        artifacts_digest: String::new(),
        held: false,
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: false,
        source_installed: None,
    }
}

/// Whether nothing at all is at the recipe's path.
pub(super) fn is_free(recipe: &Recipe) -> Result<(), String> {
    let path = path_of(recipe);
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
        Ok(_) => Err(format!("{}: something else is there already: move it away", path.display())),
    }
}
