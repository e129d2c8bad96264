//! The version that was there before, which is kept so that it can be put back.
//!
//! ```text
//!   /usr/local/go                           the application, in the version that has come
//!   /usr/local/.patchwarden~go/of-go        the earlier one, as it was: moved and not copied
//!   /usr/local/.patchwarden~go/earlier.json which version it is, what took its place, and the digest of all its files
//! ```
//! Beside the application both are first in `.patchwarden-go`, the place of what is under way (see [`super::apply`]); `earlier.json` is there
//! before the two change places. So whatever crashes, the digest tells which of them lies there: the earlier one is kept, everything
//! else is removed.

use std::io;
use std::path::{Path, PathBuf};

use patchwarden_protocol::recipes::Recipe;
use serde::{Deserialize, Serialize};

use super::apply;
use super::detect::path_of;
use crate::files;
use crate::platform::recipes;

/// The place's name begins with this; names of recipes have no `~`.
const PLACE: &str = ".patchwarden~";

/// What is written down of it. A tree and its name cannot be in each other's way: see [`name_of`].
const FILE: &str = "earlier.json";

/// What is known of an earlier version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Earlier {
    /// Which it is.
    pub(super) version: String,
    /// The version that took its place.
    pub(super) replaced_by: String,
    /// Of everything in it: [`recipes::digest`].
    pub(super) sha256: String,
}

/// The earlier version of an application that is at `installed` now, if one is kept.
pub(super) fn of(recipe: &Recipe, installed: &str) -> Option<Earlier> {
    read(&place(recipe).ok()?).filter(|earlier| earlier.replaced_by == installed)
}

/// Where it lies itself.
pub(super) fn tree(recipe: &Recipe) -> Result<PathBuf, String> {
    Ok(place(recipe)?.join(name_of(recipe)))
}

/// Whether it still is what was put there.
pub(super) fn verify(recipe: &Recipe, earlier: &Earlier) -> Result<(), String> {
    let tree = tree(recipe)?;
    match recipes::digest(&tree) {
        Ok(sha256) if sha256 == earlier.sha256 => Ok(()),
        Ok(_) => Err(format!("{}: has changed since it was put aside", tree.display())),
        Err(error) => Err(format!("{}: {error}", tree.display())),
    }
}

/// Writes down, in the place of what is under way, what will lie there once the application has been replaced.
pub(super) fn announce(recipe: &Recipe, version: &str, beside: &Path) -> io::Result<()> {
    let sha256 = recipes::digest(&path_of(recipe))?;
    let (version, replaced_by) = (version.to_owned(), recipe.release.version.clone());
    let text = serde_json::to_vec(&Earlier { version, replaced_by, sha256 })?;
    files::write_atomic(&beside.join(FILE), &text, files::PRIVATE)
}

/// Keeps what is in the place of what is under way, in the stead of what was kept so far.
pub(super) fn keep(recipe: &Recipe, beside: &Path) -> Result<(), String> {
    let place = place(recipe)?;
    let io = |error: io::Error| format!("{}: {error}", place.display());
    // Nobody else is to run a version any more that has been replaced.
    files::ensure_directory(beside, files::SECLUDED).map_err(io)?;
    if place.symlink_metadata().is_ok() {
        recipes::check_mounts(&place)?;
        recipes::exchange(beside, &place).map_err(io)?;
        recipes::remove(beside).map_err(io)?;
    } else {
        std::fs::rename(beside, &place).map_err(io)?;
    }
    place.parent().map_or(Ok(()), files::sync_directory).map_err(io)
}

/// Moves it to the place of what is under way.
pub(super) fn take_out(recipe: &Recipe, beside: &Path) -> io::Result<()> {
    let place = place(recipe).map_err(io::Error::other)?;
    std::fs::rename(&place, beside)?;
    place.parent().map_or(Ok(()), files::sync_directory)
}

/// Whether what an earlier run has left in `beside` is the earlier version of what is installed now.
pub(super) fn is_in(beside: &Path, recipe: &Recipe, installed: &str) -> bool {
    read(beside).is_some_and(|earlier| {
        earlier.replaced_by == installed
            && recipes::digest(&beside.join(name_of(recipe))).is_ok_and(|sha256| sha256 == earlier.sha256)
    })
}

/// Removes what was kept, where it is not the earlier version of what is installed now: somebody else has changed that.
pub(super) fn forget_another(recipe: &Recipe, installed: &str) -> Result<(), String> {
    let place = place(recipe)?;
    if of(recipe, installed).is_some() {
        return Ok(());
    }
    recipes::check_mounts(&place)?;
    recipes::remove(&place).map_err(|error| format!("{}: {error}", place.display()))
}

fn read(place: &Path) -> Option<Earlier> {
    serde_json::from_slice(&files::read_if_exists(&place.join(FILE)).ok()??).ok()
}

fn place(recipe: &Recipe) -> Result<PathBuf, String> {
    apply::next_to(recipe, PLACE)
}

/// What the application is called in either place. Not as at its own, which might be that of [`FILE`].
pub(super) fn name_of(recipe: &Recipe) -> String {
    format!("of-{}", recipe.name)
}
