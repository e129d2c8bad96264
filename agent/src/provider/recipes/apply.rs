//! The step that changes the machine: one application is replaced by another version of it.
//!
//! ```text
//!   /usr/local/go                      the application
//!   /usr/local/.patchwarden-go/of-go   what is to come: unpacked, asked for its version, made durable
//! ```
//! Then both change places in one step (renameat2(2)): whatever crashes, the application is the old one or the new one. The earlier
//! version is kept (see [`super::earlier`]); what else is left in the second place is removed, by the next run at the latest.
//!
//! The way back is the same: what was kept is moved to the second place, and both change places.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::recipes::{Artifact, Catalogue, Recipe};
use patchwarden_protocol::result::ResultReason;

use super::detect::{Found, look, look_at, path_of};
use super::earlier;
use super::unpack::{self, unpack};
use super::{ARCH, LOCK, file_name};
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

/// Brings each of `changes` (`NAME=VERSION`) to its version, by the files in `archives` or by what was kept; what happens is printed. Then the package
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
            Direction::Forward => shelf.load(now).map_err(|error| superseded(&error.to_string())),
            // What was here already needs nothing new of anybody.
            Direction::Back => Ok(shelf.latest()),
        }
        .and_then(|catalogue| catalogue.ok_or_else(|| superseded("this device has no recipes any more"))),
        (Err(why), _) => Err(failed(why)),
        (_, Err(error)) => Err(failed(error.to_string())),
    };
    let mut code = 0;
    for change in changes {
        let (name, version) = change.split_once('=').unwrap_or((change, ""));
        let brought = match &catalogue {
            Ok(catalogue) => match direction {
                Direction::Forward => bring(catalogue, name, version, archives).await,
                Direction::Back => put_back(catalogue, name, version).await,
            },
            Err(failure) => Err(failure.clone()),
        };
        match brought {
            Ok(from) => say(&format!("{LINE}{name}: {from} -> {version}")),
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

/// Returns the version that was there.
async fn bring(catalogue: &Catalogue, name: &str, version: &str, archives: &Path) -> Result<String, Failure> {
    let recipe = catalogue.recipes.iter().find(|recipe| recipe.name == name && recipe.release.version == version);
    let offered = recipe.and_then(|recipe| Some((recipe, recipe.release.artifact(ARCH)?)));
    let (recipe, artifact) = offered.ok_or_else(|| superseded("the publisher does not offer this version any more"))?;
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

/// Returns whether the version that was there lies beside it now, to be kept.
async fn replace(recipe: &Recipe, artifact: &Artifact, there: &str, file: &Path) -> Result<bool, Failure> {
    let path = path_of(recipe);
    let Some(parent) = path.parent() else {
        return Err(failed(format!("{}: has no directory above it", path.display())));
    };
    let beside = beside(recipe).map_err(failed)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| {
            let reason = match error.kind() {
                std::io::ErrorKind::StorageFull => ResultReason::DiskFull,
                _ => ResultReason::PackageManagerFailed,
            };
            Failure::new(reason, format!("{}: {error}", path.display()))
        }
    };
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
