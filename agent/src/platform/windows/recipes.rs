//! Recipes are for Linux so far.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::provider::CommandLine;

/// Why third-party applications cannot be updated here.
pub(crate) const WHY_NONE: Option<&str> = Some("third-party applications are updated on Linux only: leave it out");

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "recipes are for Linux")
}

pub(crate) fn unprivileged(_: &Path, _: &[String], _: u32) -> CommandLine {
    CommandLine { words: Vec::new(), environment: Vec::new() }
}

pub(crate) fn open_plain(_: &Path) -> io::Result<File> {
    Err(unsupported())
}

pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn put(_: &Path, _: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn digest(_: &Path) -> io::Result<String> {
    Err(unsupported())
}

pub(crate) fn keep(_: &Path, _: &Path) -> Result<(), String> {
    Err(unsupported().to_string())
}

pub(crate) fn check_mounts(_: &Path) -> Result<(), String> {
    Err(unsupported().to_string())
}

pub(crate) fn remove(_: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn sync_filesystem(_: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn lock(_: &File) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn make_directory(_: &Path) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn check_program(_: &Path) -> Result<(), String> {
    Err(unsupported().to_string())
}

pub(crate) fn check_directory(_: &Path) -> Result<(), String> {
    Err(unsupported().to_string())
}
