//! Which version of an application lies at its path.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_protocol::recipes::{Content, Detect, Recipe, Version};

use crate::platform::{self, recipes};
use crate::provider::run::run;

/// A version is at the beginning of what says it.
const MAX_TEXT: u64 = 64 << 10;

/// A program has so long to say its version, in seconds.
const PROGRAM_LIMIT: u32 = 10;

/// Beyond [`PROGRAM_LIMIT`], for what runs and kills it.
const GRACE: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or something that is not the recipe's: a link, a directory in the place of a file.
    Nothing,
    /// The version, as the application says it.
    Version(String),
    /// Something, whose version cannot be told.
    Unclear(String),
}

/// Looks at the recipe's own path.
pub(super) async fn look(recipe: &Recipe) -> Found {
    look_at(&path_of(recipe), recipe).await
}

/// The recipe's own path.
pub(super) fn path_of(recipe: &Recipe) -> PathBuf {
    platform::root().join(recipe.install.path.trim_start_matches('/'))
}

/// What says the version of what is at the recipe's own path.
pub(super) fn says_version(recipe: &Recipe) -> PathBuf {
    file_in(&path_of(recipe), recipe)
}

fn file_in(place: &Path, recipe: &Recipe) -> PathBuf {
    match recipe.detect.path() {
        "" => place.to_owned(),
        below => place.join(below),
    }
}

/// The same for what is to be put there.
pub(super) async fn look_at(place: &Path, recipe: &Recipe) -> Found {
    let wants_directory = matches!(recipe.install.content, Content::Tree { .. });
    match std::fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() == wants_directory && !found.is_symlink() => {}
        _ => return Found::Nothing,
    }
    let at = file_in(place, recipe);
    let said = match &recipe.detect {
        Detect::File { .. } => read(&at).map_err(|error| error.to_string()),
        Detect::Program { arguments, .. } => ask(&at, arguments).await,
    };
    let unclear = |why: String| Found::Unclear(format!("{}: {}: {why}", recipe.name, at.display()));
    match said.map(|said| recipe.detect.version_in(&said)) {
        Err(why) => unclear(why),
        Ok(None) => unclear("says no version".to_owned()),
        Ok(Some(version)) if Version::parse(&version).is_some() => Found::Version(version),
        Ok(Some(version)) => unclear(format!("{version:?} is not read as a version")),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    recipes::open_plain(path)?.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a program says, whatever it ends with: some call it an error to be asked.
async fn ask(program: &Path, arguments: &[String]) -> Result<String, String> {
    // Without links: who can change one would choose what is run.
    let program = program.canonicalize().map_err(|error| error.to_string())?;
    recipes::check_program(&program)?;
    let line = recipes::unprivileged(&program, arguments, PROGRAM_LIMIT);
    let output = run(&line, Duration::from_secs(PROGRAM_LIMIT.into()) + GRACE).await;
    let mut said = output.map_err(|failure| failure.message)?.all();
    let end = said.floor_char_boundary(usize::try_from(MAX_TEXT).unwrap_or(usize::MAX));
    said.truncate(end);
    Ok(said)
}
