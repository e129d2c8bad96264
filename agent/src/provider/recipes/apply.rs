//! The step that changes the machine: one application is replaced by another version of it.
//!
//! ```text
//!   /usr/local/go                      the application
//!   /usr/local/.patchwarden-go/of-go   what is to come: unpacked, asked for its version, made durable
//! ```
//! Then both change places in one step (renameat2(2)): whatever crashes, the application is the old one or the new one. The earlier
//! version is kept (see [`super::earlier`]); what else is left in the second place is removed, by the next run at the latest.
//!
//! The way back is the same: what was kept is moved to the second place, and both change places. What is installed for the first time
//! is moved to its place, where nothing may be; what is removed is moved to the second place, and removed there.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::recipes::{Artifact, Catalogue, Recipe};
use patchwarden_protocol::result::ResultReason;

use super::detect::{Found, look, look_at, path_of};
use super::earlier;
use super::unpack::{self, unpack};
use super::{ARCH, LOCK, application_of, file_name, wanted};
use crate::files;
use crate::platform::{self, recipes};
use crate::provider::{Direction, Failure, megabytes};
use crate::shelf::Shelf;

/// Bytes that must stay free beyond what is unpacked.
const SPACE_MARGIN: u64 = 32 << 20;

/// Beside an application, while it is replaced.
const BESIDE: &str = ".patchwarden-";

/// What a line about an application begins with: `recipe kubectl: `.
const LINE: &str = "recipe ";

/// What is to be done to one application: one word of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `NAME=VERSION`: from another version to this one.
    Bring(String, String),
    /// `NAME=first:VERSION`: from nothing to this one.
    Place(String, String),
    /// `NAME=remove:VERSION`: from this one to nothing.
    Remove(String, String),
}

const FIRST: &str = "first:";
const REMOVE: &str = "remove:";

impl Step {
    /// What brings an ordered package to its candidate, if it is an application.
    pub(super) fn of(package: &PackageChange) -> Option<Self> {
        let PackageChange { name, arch: _, installed, candidate } = package;
        let name = application_of(name)?.to_owned();
        Some(if package.is_first_install() {
            Self::Place(name, candidate.clone())
        } else if package.is_removal() {
            Self::Remove(name, installed.clone())
        } else {
            Self::Bring(name, candidate.clone())
        })
    }

    fn parse(word: &str) -> Self {
        let (name, rest) = word.split_once('=').unwrap_or((word, ""));
        let of = |version: &str| (name.to_owned(), version.to_owned());
        if let Some((name, version)) = rest.strip_prefix(FIRST).map(of) {
            Self::Place(name, version)
        } else if let Some((name, version)) = rest.strip_prefix(REMOVE).map(of) {
            Self::Remove(name, version)
        } else {
            let (name, version) = of(rest);
            Self::Bring(name, version)
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Bring(name, _) | Self::Place(name, _) | Self::Remove(name, _) => name,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bring(name, version) => write!(f, "{name}={version}"),
            Self::Place(name, version) => write!(f, "{name}={FIRST}{version}"),
            Self::Remove(name, version) => write!(f, "{name}={REMOVE}{version}"),
        }
    }
}

/// Carries out each of `changes` (see [`Step`]), by the files in `archives` or by what was kept; what happens is printed. Then the package
/// manager's own command has its turn, whatever came of that, and its exit code is the one that counts. Without one it is 1 where
/// something failed. `shelf` is an error where this device's configuration cannot be read.
pub(crate) async fn apply<E: std::fmt::Display>(
    shelf: Result<Shelf, E>,
    state: &Path,
    direction: Direction,
    archives: &Path,
    changes: &[String],
    native: &[OsString],
    now: Timestamp,
) -> anyhow::Result<i32> {
    // Held until the end: whoever looks whether somebody is at work, looks here.
    let lock = lock(&state.join(LOCK));
    let catalogue = match (&lock, shelf) {
        (Ok(_), Ok(shelf)) => match direction {
            Direction::Forward | Direction::Removing => shelf.load(now).map_err(|error| superseded(&error.to_string())),
            // What was here already needs nothing new of anybody.
            Direction::Back => Ok(shelf.latest()),
        }
        .and_then(|catalogue| catalogue.ok_or_else(|| superseded("this device has no recipes any more"))),
        (Err(why), _) => Err(failed(why)),
        (_, Err(error)) => Err(failed(error.to_string())),
    };
    let mut code = 0;
    for change in changes {
        let step = Step::parse(change);
        let done = match &catalogue {
            Ok(catalogue) => match (&step, direction) {
                (Step::Bring(name, version), Direction::Forward | Direction::Removing) => {
                    bring(catalogue, name, version, archives).await.map(|from| format!("{from} -> {version}"))
                }
                (Step::Bring(name, version), Direction::Back) => {
                    put_back(catalogue, name, version).await.map(|from| format!("{from} -> {version}"))
                }
                (Step::Place(name, version), _) => {
                    place(catalogue, name, version, archives).await.map(|()| format!("installed as {version}"))
                }
                (Step::Remove(name, version), _) => {
                    remove(catalogue, name, version).await.map(|()| format!("{version} is removed"))
                }
            },
            Err(failure) => Err(failure.clone()),
        };
        let name = step.name();
        match done {
            Ok(done) => say(&format!("{LINE}{name}: {done}")),
            Err(failure) => {
                code = 1;
                say(&line_of(name, &failure));
            }
        }
    }
    let Some((program, arguments)) = native.split_first() else { return Ok(code) };
    let status = std::process::Command::new(program).args(arguments).status()?;
    Ok(status.code().unwrap_or(1))
}

/// A full disk, which takes no line, does not hold up what comes next.
fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).ok();
}

fn lock(path: &Path) -> Result<std::fs::File, String> {
    let open = || {
        let lock = files::options(files::PRIVATE).write(true).create(true).truncate(false).open(path)?;
        recipes::lock(&lock)?;
        Ok(lock)
    };
    open().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}

fn superseded(why: &str) -> Failure {
    Failure::new(ResultReason::Superseded, why)
}

fn failed(why: impl Into<String>) -> Failure {
    Failure::new(ResultReason::PackageManagerFailed, why)
}

/// One line, which [`explain`] reads.
fn line_of(name: &str, failure: &Failure) -> String {
    let reason = if failure.reason == ResultReason::DiskFull { "no room: " } else { "" };
    format!("{LINE}{name} failed: {reason}{}", failure.message.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Why an application is not at its version, by what was printed.
pub(super) fn explain(output: &str, code: Option<i32>, name: &str) -> Failure {
    let begins = format!("{LINE}{name} failed: ");
    match output.lines().rev().find_map(|line| line.strip_prefix(&begins)) {
        Some(why) => match why.strip_prefix("no room: ") {
            Some(why) => Failure::new(ResultReason::DiskFull, why),
            None => failed(why),
        },
        None => failed(match code {
            Some(code) => format!("replacing it ended with code {code}"),
            None => "replacing it was interrupted".to_owned(),
        }),
    }
}

/// The recipe of exactly this version, and its file.
fn offered<'c>(catalogue: &'c Catalogue, name: &str, version: &str) -> Result<(&'c Recipe, &'c Artifact), Failure> {
    let recipe = catalogue.recipes.iter().find(|recipe| recipe.name == name && recipe.release.version == version);
    let offered = recipe.and_then(|recipe| Some((recipe, recipe.release.artifact(ARCH)?)));
    offered.ok_or_else(|| superseded("the publisher does not offer this version any more"))
}

/// Installs what is not there.
async fn place(catalogue: &Catalogue, name: &str, version: &str, archives: &Path) -> Result<(), Failure> {
    let (recipe, artifact) = offered(catalogue, name, version)?;
    let path = path_of(recipe);
    match look(recipe).await {
        // A run that was interrupted was as far.
        Found::Version(there) if there == version => return settle(recipe, &there).map_err(failed),
        Found::Version(there) => {
            return Err(failed(format!("{} is there already, in version {there}", path.display())));
        }
        Found::Unclear(why) => return Err(failed(why)),
        Found::Nothing => wanted::is_free(recipe).map_err(failed)?,
    }
    settle(recipe, "").map_err(failed)?;
    let placed = prepare(recipe, artifact, &archives.join(file_name(recipe, artifact))).await.and_then(|new| {
        let beside = beside(recipe).map_err(failed)?;
        recipes::sync_filesystem(&beside).map_err(io(&beside))?;
        recipes::put(&new, &path).map_err(io(&path))?;
        recipes::sync_filesystem(&beside).map_err(io(&beside))
    });
    let cleaned = clean(recipe);
    placed?;
    if let Err(why) = cleaned {
        say(&format!("{LINE}{name}: what its installation has used stays beside it: {why}"));
    }
    Ok(())
}

/// Removes what is there in this version, and what is kept of an earlier one.
async fn remove(catalogue: &Catalogue, name: &str, version: &str) -> Result<(), Failure> {
    let recipe = catalogue.recipes.iter().find(|recipe| recipe.name == name);
    let recipe = recipe.ok_or_else(|| superseded("the publisher's catalogue does not have it any more"))?;
    let path = path_of(recipe);
    match look(recipe).await {
        Found::Version(there) if there == version => {
            settle(recipe, &there).map_err(failed)?;
            recipes::check_mounts(&path).map_err(failed)?;
            let beside = beside(recipe).map_err(failed)?;
            recipes::make_directory(&beside).map_err(io(&beside))?;
            // In one step: it is whole, or it is gone.
            recipes::put(&path, &beside.join(earlier::name_of(recipe))).map_err(io(&path))?;
            recipes::sync_filesystem(&beside).map_err(io(&beside))?;
        }
        Found::Version(there) => return Err(failed(format!("{} is at version {there}", path.display()))),
        Found::Unclear(why) => return Err(failed(why)),
        // A run that was interrupted was as far.
        Found::Nothing => wanted::is_free(recipe).map_err(failed)?,
    }
    if let Err(why) = settle(recipe, "") {
        say(&format!("{LINE}{name}: what is left of {version} stays beside its place: {why}"));
    }
    Ok(())
}

/// Returns the version that was there.
async fn bring(catalogue: &Catalogue, name: &str, version: &str, archives: &Path) -> Result<String, Failure> {
    let (recipe, artifact) = offered(catalogue, name, version)?;
    let there = installed(recipe).await?;
    settle(recipe, &there).map_err(failed)?;
    if there == version {
        return Ok(there);
    }
    let replaced = replace(recipe, artifact, &there, &archives.join(file_name(recipe, artifact))).await;
    let kept = match &replaced {
        Ok(true) => beside(recipe).and_then(|beside| earlier::keep(recipe, &beside)),
        Ok(false) | Err(_) => clean(recipe),
    };
    replaced?;
    if let Err(why) = kept {
        say(&format!("{LINE}{name}: what is left of {there} stays beside it: {why}"));
    }
    Ok(there)
}

/// Returns the version that was there.
async fn put_back(catalogue: &Catalogue, name: &str, version: &str) -> Result<String, Failure> {
    let recipe = catalogue.recipes.iter().find(|recipe| recipe.name == name);
    let recipe = recipe.ok_or_else(|| superseded("the publisher's catalogue does not have it any more"))?;
    let there = installed(recipe).await?;
    settle(recipe, &there).map_err(failed)?;
    if there == version {
        return Ok(there);
    }
    let kept = earlier::of(recipe, &there).filter(|earlier| earlier.version == version);
    let kept = kept.ok_or_else(|| superseded(&format!("{version} is not kept beside it any more")))?;
    earlier::verify(recipe, &kept).map_err(failed)?;
    let (path, beside) = (path_of(recipe), beside(recipe).map_err(failed)?);
    recipes::check_mounts(&path).map_err(failed)?;
    let exchanged = earlier::take_out(recipe, &beside)
        .and_then(|()| recipes::exchange(&beside.join(earlier::name_of(recipe)), &path))
        .and_then(|()| recipes::sync_filesystem(&beside));
    exchanged.map_err(|error| failed(format!("{}: {error}", path.display())))?;
    if let Err(why) = clean(recipe) {
        say(&format!("{LINE}{name}: what is left of {there} stays beside it: {why}"));
    }
    Ok(there)
}

/// The version of what is there.
async fn installed(recipe: &Recipe) -> Result<String, Failure> {
    match look(recipe).await {
        Found::Version(there) => Ok(there),
        Found::Nothing => Err(failed(format!("{} is not there any more", recipe.install.path))),
        Found::Unclear(why) => Err(failed(why)),
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |error| {
        let reason = match error.kind() {
            std::io::ErrorKind::StorageFull => ResultReason::DiskFull,
            _ => ResultReason::PackageManagerFailed,
        };
        Failure::new(reason, format!("{}: {error}", path.display()))
    }
}

fn parent_of(path: &Path) -> Result<&Path, Failure> {
    path.parent().ok_or_else(|| failed(format!("{}: has no directory above it", path.display())))
}

/// Unpacks what is to come beside the application's place, and asks it for its version. Returns where it lies.
async fn prepare(recipe: &Recipe, artifact: &Artifact, file: &Path) -> Result<PathBuf, Failure> {
    let path = path_of(recipe);
    let parent = parent_of(&path)?;
    let beside = beside(recipe).map_err(failed)?;
    let free = platform::free_space(parent).map_err(io(parent))?.bytes;
    let needed = artifact.unpacked.saturating_add(SPACE_MARGIN);
    if free < needed {
        let message = format!("{}: {} are needed, {} are free", parent.display(), megabytes(needed), megabytes(free));
        return Err(Failure::new(ResultReason::DiskFull, message));
    }
    let sha256 = files::sha256_of(file).map_err(io(file))?;
    if sha256 != artifact.sha256 {
        return Err(failed(format!("{} has SHA-256 {sha256}, the recipe says {}", file.display(), artifact.sha256)));
    }
    recipes::make_directory(&beside).map_err(io(&beside))?;
    let new = beside.join(earlier::name_of(recipe));
    unpack(file, &recipe.install.content, artifact.unpacked, Some(&new)).map_err(|error| match error {
        unpack::UnpackError::Io(error) => io(&new)(error),
        other => failed(other.to_string()),
    })?;
    match look_at(&new, recipe).await {
        Found::Version(version) if version == recipe.release.version => {}
        Found::Version(version) => {
            return Err(failed(format!("what was downloaded says that it is {version}: the recipe is wrong")));
        }
        Found::Nothing => return Err(failed("what was downloaded is not what the recipe says")),
        Found::Unclear(why) => return Err(failed(format!("what was downloaded does not run here: {why}"))),
    }
    Ok(new)
}

/// Returns whether the version that was there lies beside it now, to be kept.
async fn replace(recipe: &Recipe, artifact: &Artifact, there: &str, file: &Path) -> Result<bool, Failure> {
    let path = path_of(recipe);
    let (parent, beside) = (parent_of(&path)?, beside(recipe).map_err(failed)?);
    let new = prepare(recipe, artifact, file).await?;
    recipes::keep(&path, &new).map_err(failed)?;
    let announced = earlier::announce(recipe, there, &beside);
    if let Err(why) = &announced {
        say(&format!("{LINE}{}: {there} is not kept: {why}", recipe.name));
    }
    recipes::sync_filesystem(&beside).map_err(io(&beside))?;
    recipes::check_mounts(&path).map_err(failed)?;
    recipes::exchange(&new, &path).map_err(io(&path))?;
    files::sync_directory(parent).map_err(io(parent))?;
    Ok(announced.is_ok())
}

/// Keeps what an earlier run has put beside the application that is at `there` now, or removes it.
fn settle(recipe: &Recipe, there: &str) -> Result<(), String> {
    let beside = beside(recipe)?;
    if earlier::is_in(&beside, recipe, there) {
        return earlier::keep(recipe, &beside);
    }
    clean(recipe)?;
    earlier::forget_another(recipe, there)
}

/// Removes what an earlier run may have left beside the application.
fn clean(recipe: &Recipe) -> Result<(), String> {
    let beside = beside(recipe)?;
    recipes::check_mounts(&beside)?;
    recipes::remove(&beside).map_err(|error| format!("{}: {error}", beside.display()))
}

/// Whether an earlier run has left something beside the application.
pub(super) fn is_unclean(recipe: &Recipe) -> bool {
    beside(recipe).is_ok_and(|beside| beside.symlink_metadata().is_ok())
}

/// Whether the application at the recipe's path can be replaced at all; if not, why not.
pub(super) fn check(recipe: &Recipe) -> Result<(), String> {
    beside(recipe)?;
    recipes::check_mounts(&path_of(recipe))
}

/// Whether an application can be put at the recipe's path, where nothing is; if not, why not.
pub(super) fn check_free(recipe: &Recipe) -> Result<(), String> {
    beside(recipe)?;
    wanted::is_free(recipe)
}

/// The place beside the application for what is under way.
fn beside(recipe: &Recipe) -> Result<PathBuf, String> {
    next_to(recipe, BESIDE)
}

/// A place beside the application, where only root can put anything.
pub(super) fn next_to(recipe: &Recipe, begins: &str) -> Result<PathBuf, String> {
    let path = path_of(recipe);
    for directory in path.ancestors().skip(1) {
        recipes::check_directory(directory)?;
    }
    Ok(path.with_file_name(format!("{begins}{}", recipe.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_package_manager_has_its_turn_whatever_stands_against_applications() {
        let (place, now, forward) = (tempfile::tempdir().unwrap(), platform::now(), Direction::Forward);
        let native = |file: &str| {
            let script = format!("touch {}; exit 7", place.path().join(file).display());
            ["/bin/sh", "-c", &script].map(OsString::from)
        };
        let changes = ["a=2.0".to_owned()];
        let unreadable: Result<Shelf, &str> = Err("agent.toml: is no TOML");
        let found = apply(unreadable, place.path(), forward, place.path(), &changes, &native("one"), now).await;
        assert_eq!((found.unwrap(), place.path().join("one").exists()), (7, true));
        let (shelf, gone) = (Shelf::new(place.path(), Vec::new()), place.path().join("gone"));
        let found =
            apply(Ok::<_, &str>(shelf.clone()), &gone, forward, place.path(), &changes, &native("two"), now).await;
        assert_eq!((found.unwrap(), place.path().join("two").exists()), (7, true), "no lock");
        let alone = apply(Ok::<_, &str>(shelf.clone()), place.path(), forward, place.path(), &changes, &[], now).await;
        assert_eq!(alone.unwrap(), 1, "there are no recipes");
        let back = apply(Ok::<_, &str>(shelf), place.path(), Direction::Back, place.path(), &changes, &[], now).await;
        assert_eq!(back.unwrap(), 1, "nor for the way back");
    }

    #[test]
    fn what_is_to_be_done_is_one_word_and_read_as_it_was_written() {
        let package = |installed: &str, candidate: &str| PackageChange {
            name: "recipe:a-b.c".into(),
            arch: ARCH.into(),
            installed: installed.into(),
            candidate: candidate.into(),
        };
        for (package, word) in [
            (package("1.0", "2.0+x"), "a-b.c=2.0+x"),
            (package("", "2.0"), "a-b.c=first:2.0"),
            (package("1.0", ""), "a-b.c=remove:1.0"),
        ] {
            let step = Step::of(&package).unwrap();
            assert_eq!((step.to_string().as_str(), Step::parse(word)), (word, step));
        }
        assert_eq!(Step::of(&PackageChange { name: "libc6".into(), ..package("1", "2") }), None);
    }

    #[test]
    fn why_something_failed_is_read_from_what_was_printed() {
        let full = Failure::new(ResultReason::DiskFull, "/opt:\n1 MB are needed");
        let bad = failed("it has no bin/x");
        let output = format!("{}\n{}\n", line_of("a", &full), line_of("b", &bad));
        assert_eq!(explain(&output, Some(1), "a"), Failure::new(ResultReason::DiskFull, "/opt: 1 MB are needed"));
        assert_eq!(explain(&output, Some(1), "b"), bad);
        assert_eq!(explain(&output, Some(1), "c").message, "replacing it ended with code 1");
        assert_eq!(explain("", None, "c").message, "replacing it was interrupted");
    }
}
