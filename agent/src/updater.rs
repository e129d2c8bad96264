//! The operating system's own updater: switched off while this agent installs the updates, and given back.
//!
//! Switched off by files of our own alone ([`means`]): nothing that is there is changed. `os-updater.json` in the state
//! directory says which they are, before the first of them is made and until the last of them is gone:
//!
//! ```text
//!   Intended -> the files -> systemd is told -> Done          Restoring -> no files -> systemd is told -> no os-updater.json
//! ```
//! Whatever crashes, the next start goes on from there. A file that somebody has changed or removed meanwhile is left as it
//! is, and is spoken of.

mod contact;
mod means;
mod ruling;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use patchwarden_protocol::canonical;
use serde::{Deserialize, Serialize};

use self::means::Means;
use crate::files;

pub(crate) use contact::{Contact, PATIENCE};
pub(crate) use ruling::{Ruling, Voices};

/// In the state directory. What is switched off is so only while it is there.
const FILE: &str = "os-updater.json";

/// For systemd to read its units again.
const RELOAD_LIMIT: Duration = Duration::from_mins(1);

/// What stands in the way. The next look tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdaterError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {why}: remove the file once {} are gone", means::OURS)]
    Unreadable { path: PathBuf, why: String },
    #[error("systemctl daemon-reload: {0}")]
    Reload(String),
}

/// How far a file of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// It may be there or not.
    Intended,
    /// It is there, and counts.
    Done,
    /// It may be gone or not.
    Restoring,
}

/// One file of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    /// Digest of what we write.
    digest: String,
    /// Whether its directory is ours too.
    made_directory: bool,
    phase: Phase,
}

/// `os-updater.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    files: Vec<Entry>,
}

/// How a file of ours is found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Absent,
    Ours,
    Changed,
}

/// Whether the updater is off, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Files of ours that count.
    pub(crate) off: Vec<PathBuf>,
    /// What is not as this agent left it.
    pub(crate) remarks: Vec<String>,
    /// Something was begun and is not completed.
    pub(crate) is_unfinished: bool,
}

/// The updater of the system under `root`, and what is remembered of it.
#[derive(Debug)]
pub(crate) struct Updater {
    root: PathBuf,
    file: PathBuf,
}

impl Updater {
    /// Of this machine.
    pub(crate) fn new(state: &Path) -> Self {
        Self::at(Path::new("/"), state)
    }

    fn at(root: &Path, state: &Path) -> Self {
        Self { root: root.to_owned(), file: state.join(FILE) }
    }

    /// Switches off what there is. Returns what somebody else has decided otherwise.
    pub(crate) async fn switch_off(&self) -> Result<Vec<String>, UpdaterError> {
        let before = self.read()?;
        let mut book = before.clone();
        let mut remarks = Vec::new();
        let all = means::of(&self.root, &self.file);
        for means in &all {
            remarks.extend(intend(&mut book, means)?);
        }
        if book != before {
            self.write(&book)?;
        }
        if !book.files.iter().any(|entry| entry.phase == Phase::Intended) {
            return Ok(remarks);
        }
        for entry in book.files.iter_mut().filter(|entry| entry.phase == Phase::Intended) {
            if let Some(means) = all.iter().find(|means| means.path == entry.path) {
                make(means).map_err(|source| UpdaterError::Io { path: entry.path.clone(), source })?;
                tracing::info!("the operating system's own updater is switched off by {}", entry.path.display());
            }
            entry.phase = Phase::Done;
        }
        self.reload().await?;
        self.write(&book)?;
        Ok(remarks)
    }

    /// Gives it back. Returns what somebody else has changed, which is left.
    pub(crate) async fn give_back(&self) -> Result<Vec<String>, UpdaterError> {
        let mut book = self.read()?;
        let mut remarks = Vec::new();
        if book.files.is_empty() {
            self.forget()?;
            return Ok(remarks);
        }
        for entry in &book.files {
            match (look(entry)?, entry.phase) {
                (Found::Changed, _) => {
                    remarks.push(format!("{} was changed by somebody else and is left as it is", entry.path.display()));
                }
                (Found::Absent, Phase::Done) => {
                    remarks.push(format!("{} had been removed by somebody else", entry.path.display()));
                }
                (Found::Absent | Found::Ours, _) => {}
            }
        }
        for entry in &mut book.files {
            entry.phase = Phase::Restoring;
        }
        self.write(&book)?;
        for entry in &book.files {
            let error = |source| UpdaterError::Io { path: entry.path.clone(), source };
            if look(entry)? == Found::Ours {
                remove(&entry.path).map_err(error)?;
                tracing::info!("the operating system has its own updater back: {} is removed", entry.path.display());
            }
            if let Some(half) = files::temporary(&entry.path) {
                remove(&half).map_err(error)?;
            }
            if entry.made_directory {
                remove_if_empty(entry.path.parent()).map_err(error)?;
            }
        }
        self.reload().await?;
        self.forget()?;
        Ok(remarks)
    }

    /// How it stands. Changes nothing.
    pub(crate) fn state(&self) -> Result<State, UpdaterError> {
        let book = self.read()?;
        let mut state = State { off: Vec::new(), remarks: Vec::new(), is_unfinished: false };
        for entry in book.files {
            state.is_unfinished |= entry.phase != Phase::Done;
            match look(&entry)? {
                Found::Ours => state.off.push(entry.path),
                Found::Changed => state.remarks.push(changed(&entry.path)),
                Found::Absent => state.remarks.push(removed(&entry.path)),
            }
        }
        Ok(state)
    }

    /// Whether there is anything of ours, or may be.
    pub(crate) fn is_touched(&self) -> Result<bool, UpdaterError> {
        self.file.try_exists().map_err(|source| UpdaterError::Io { path: self.file.clone(), source })
    }

    fn read(&self) -> Result<Book, UpdaterError> {
        let path = || self.file.clone();
        let bytes = files::read_if_exists(&self.file).map_err(|source| UpdaterError::Io { path: path(), source })?;
        let Some(bytes) = bytes else { return Ok(Book::default()) };
        serde_json::from_slice(&bytes)
            .map_err(|error| UpdaterError::Unreadable { path: path(), why: error.to_string() })
    }

    fn write(&self, book: &Book) -> Result<(), UpdaterError> {
        let io = |source| UpdaterError::Io { path: self.file.clone(), source };
        let bytes = serde_json::to_vec_pretty(book).map_err(|error| io(error.into()))?;
        files::write_atomic(&self.file, &bytes, files::PRIVATE).map_err(io)
    }

    fn forget(&self) -> Result<(), UpdaterError> {
        remove(&self.file).map_err(|source| UpdaterError::Io { path: self.file.clone(), source })
    }

    /// Conditions count from when systemd has read them.
    async fn reload(&self) -> Result<(), UpdaterError> {
        if !self.root.join("run/systemd/system").exists() {
            return Ok(());
        }
        let mut command = tokio::process::Command::new("systemctl");
        command.arg("daemon-reload").stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(RELOAD_LIMIT, command.stderr(Stdio::piped()).output())
            .await
            .map_err(|_| UpdaterError::Reload(format!("did not end within {} s", RELOAD_LIMIT.as_secs())))?
            .map_err(|error| UpdaterError::Reload(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(UpdaterError::Reload(format!("{}: {}", output.status, said.trim())))
    }
}

/// Enters what is to be made. A remark where somebody else has the last word.
fn intend(book: &mut Book, means: &Means) -> Result<Option<String>, UpdaterError> {
    let directory = means.path.parent().map(Path::to_owned).unwrap_or_default();
    let entry = Entry {
        path: means.path.clone(),
        digest: canonical::digest(means.content.as_bytes()),
        made_directory: !directory.exists(),
        phase: Phase::Intended,
    };
    let known = book.files.iter().position(|known| known.path == means.path);
    let Some(index) = known else {
        // Our own content is ours, whoever put it there: a state directory that was lost.
        if look(&entry)? == Found::Changed {
            return Ok(Some(format!("{} is there already and is not this agent's", means.path.display())));
        }
        book.files.push(entry);
        return Ok(None);
    };
    let known = &book.files[index];
    let found = look(known)?;
    match (known.phase, found) {
        (_, Found::Changed) => Ok(Some(changed(&means.path))),
        (Phase::Done, Found::Absent) => Ok(Some(removed(&means.path))),
        (Phase::Done, Found::Ours) | (Phase::Intended, _) => Ok(None),
        (Phase::Restoring, _) => {
            let made_directory = known.made_directory || entry.made_directory;
            book.files[index] = Entry { made_directory, ..entry };
            Ok(None)
        }
    }
}

fn changed(path: &Path) -> String {
    format!("{} was changed by somebody else and is left as it is", path.display())
}

fn removed(path: &Path) -> String {
    format!("{} was removed by somebody else and is not made again", path.display())
}

fn look(entry: &Entry) -> Result<Found, UpdaterError> {
    // A link is nobody's but the administrator's.
    let is_link = fs::symlink_metadata(&entry.path).is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return Ok(Found::Changed);
    }
    let found =
        files::read_if_exists(&entry.path).map_err(|source| UpdaterError::Io { path: entry.path.clone(), source })?;
    Ok(match found {
        None => Found::Absent,
        Some(bytes) if canonical::digest(&bytes) == entry.digest => Found::Ours,
        Some(_) => Found::Changed,
    })
}

fn make(means: &Means) -> io::Result<()> {
    if let Some(directory) = means.path.parent() {
        fs::create_dir_all(directory)?;
    }
    files::write_atomic(&means.path, means.content.as_bytes(), 0o644)
}

/// That it is not there is fine.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), files::sync_directory),
    }
}

fn remove_if_empty(directory: Option<&Path>) -> io::Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    match fs::remove_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests;
