//! The step that changes the machine: one application is replaced by another version of it.
//!
//! ```text
//!   /usr/local/go                   the application
//!   /usr/local/.patchwarden-go/go   what is to come: unpacked, asked for its version, made durable
//! ```
//! Then both change places in one step (renameat2(2)): whatever crashes, the application is the old one or the new one. What is
//! left in the second place is removed, by the next run at the latest.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::recipes::{Artifact, Catalogue, Recipe};
use patchwarden_protocol::result::ResultReason;

use super::detect::{Found, look, look_at, path_of};
use super::unpack::{self, unpack};
use super::{ARCH, LOCK, file_name};
use crate::files;
use crate::platform::{self, recipes};
use crate::provider::{Failure, megabytes};
use crate::shelf::Shelf;

/// Bytes that must stay free beyond what is unpacked.
const SPACE_MARGIN: u64 = 32 << 20;

/// Beside an application, while it is replaced.
const BESIDE: &str = ".patchwarden-";

/// What a line about an application begins with: `recipe kubectl: `.
const LINE: &str = "recipe ";

/// Brings each of `changes` (`NAME=VERSION`) to its version, by the files in `archives`; what happens is printed. Then the package
/// manager's own command has its turn, whatever came of that, and its exit code is the one that counts. Without one it is 1 where
/// something failed. `shelf` is an error where this device's configuration cannot be read.
pub(crate) async fn apply<E: std::fmt::Display>(
    shelf: Result<Shelf, E>,
    state: &Path,
    archives: &Path,
    changes: &[String],
    native: &[OsString],
    now: Timestamp,
) -> anyhow::Result<i32> {
    // Held until the end: whoever looks whether somebody is at work, looks here.
    let lock = lock(&state.join(LOCK));
    let catalogue = match (&lock, shelf) {
        (Ok(_), Ok(shelf)) => match shelf.load(now) {
            Ok(Some(catalogue)) => Ok(catalogue),
            Ok(None) => Err(superseded("this device has no recipes any more")),
            Err(error) => Err(superseded(&error.to_string())),
        },
        (Err(why), _) => Err(failed(why)),
        (_, Err(error)) => Err(failed(error.to_string())),
    };
    let mut code = 0;
    for change in changes {
        let (name, version) = change.split_once('=').unwrap_or((change, ""));
        let brought = match &catalogue {
            Ok(catalogue) => bring(catalogue, name, version, archives).await,
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
    clean(recipe).map_err(failed)?;
    let there = match look(recipe).await {
        Found::Version(there) if there == version => return Ok(there),
        Found::Version(there) => there,
        Found::Nothing => return Err(failed(format!("{} is not there any more", recipe.install.path))),
        Found::Unclear(why) => return Err(failed(why)),
    };
    let replaced = replace(recipe, artifact, &archives.join(file_name(recipe, artifact))).await;
    let cleaned = clean(recipe);
    replaced?;
    if let Err(why) = cleaned {
        say(&format!("{LINE}{name}: the old version stays beside it: {why}"));
    }
    Ok(there)
}

async fn replace(recipe: &Recipe, artifact: &Artifact, file: &Path) -> Result<(), Failure> {
    let path = path_of(recipe);
    let (Some(parent), Some(own_name)) = (path.parent(), path.file_name()) else {
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
    let new = beside.join(own_name);
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
    recipes::sync_filesystem(&beside).map_err(io(&beside))?;
    recipes::check_mounts(&path).map_err(failed)?;
    recipes::exchange(&new, &path).map_err(io(&path))?;
    files::sync_directory(parent).map_err(io(parent))
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

/// The place beside the application, where only root can put anything.
fn beside(recipe: &Recipe) -> Result<PathBuf, String> {
    let path = path_of(recipe);
    for directory in path.ancestors().skip(1) {
        recipes::check_directory(directory)?;
    }
    Ok(path.with_file_name(format!("{BESIDE}{}", recipe.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_package_manager_has_its_turn_whatever_stands_against_applications() {
        let (place, now) = (tempfile::tempdir().unwrap(), platform::now());
        let native = |file: &str| {
            let script = format!("touch {}; exit 7", place.path().join(file).display());
            ["/bin/sh", "-c", &script].map(OsString::from)
        };
        let changes = ["a=2.0".to_owned()];
        let unreadable: Result<Shelf, &str> = Err("agent.toml: is no TOML");
        let found = apply(unreadable, place.path(), place.path(), &changes, &native("one"), now).await;
        assert_eq!((found.unwrap(), place.path().join("one").exists()), (7, true));
        let (shelf, gone) = (Shelf::new(place.path(), Vec::new()), place.path().join("gone"));
        let found = apply(Ok::<_, &str>(shelf.clone()), &gone, place.path(), &changes, &native("two"), now).await;
        assert_eq!((found.unwrap(), place.path().join("two").exists()), (7, true), "no lock");
        let alone = apply(Ok::<_, &str>(shelf), place.path(), place.path(), &changes, &[], now).await;
        assert_eq!(alone.unwrap(), 1, "there are no recipes");
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
