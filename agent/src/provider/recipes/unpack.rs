//! What is made of a downloaded file. Pure but for the files that it writes; nothing that an archive says leads out of the place
//! that is being filled. With no place to fill it is only looked at.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use patchwarden_protocol::recipes::Content;

use super::archive::{self, Entry, Kind};
use crate::files;
use crate::platform::recipes;

/// More files no application has: the largest of the library has 20,000.
pub(super) const MAX_ENTRIES: usize = 50_000;

/// Longest name in an archive, and longest target of a link, in bytes.
pub(super) const MAX_NAME: usize = 400;

/// Of programs and directories.
const EXECUTABLE: u32 = 0o755;

/// Of other files.
const PLAIN: u32 = 0o644;

/// Why a file is not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{name}: {why}")]
    Entry { name: String, why: String },
    #[error("it holds more than {0} bytes, which the recipe says")]
    TooLarge(u64),
    #[error("it has more than {MAX_ENTRIES} files")]
    TooMany,
    #[error("it has no {0}")]
    Missing(String),
    #[error("it has no files")]
    Empty,
}

/// Bytes of all files that `content` makes of the file `from`, which are at most `limit`. They are put at `to`, where nothing is.
pub(crate) fn unpack(from: &Path, content: &Content, limit: u64, to: Option<&Path>) -> Result<u64, UnpackError> {
    let mut file = File::open(from)?;
    match content {
        Content::File => copy(&mut file, to, EXECUTABLE, limit).map_err(|error| too_large(error, limit)),
        Content::Member { strip, path } => member(&mut file, *strip, path, limit, to),
        Content::Tree { strip } => Tree { to, limit, left: limit, seen: HashMap::new() }.unpack(&mut file, *strip),
    }
}

/// What is made of an entry.
enum Made {
    File { mode: u32 },
    Directory,
    Link { target: PathBuf },
}

/// The entry's name without its first `strip` directories, and what is made of it. Nothing where the name has no more.
fn judge(name: &[u8], kind: &Kind, strip: u8) -> Result<Option<(PathBuf, Made)>, UnpackError> {
    let refuse = |why: &str| {
        let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned();
        UnpackError::Entry { name, why: why.to_owned() }
    };
    if name.len() > MAX_NAME {
        return Err(refuse("its name is too long"));
    }
    let path = Path::new(std::str::from_utf8(name).map_err(|_| refuse("its name is not UTF-8"))?);
    let made = match kind {
        Kind::File { mode } if mode & 0o6000 != 0 => return Err(refuse("is setuid or setgid")),
        Kind::File { mode } => Made::File { mode: if mode & 0o111 == 0 { PLAIN } else { EXECUTABLE } },
        Kind::Directory => Made::Directory,
        Kind::Link { target } if target.is_empty() => return Err(refuse("is a link to nothing")),
        Kind::Link { target } if target.len() > MAX_NAME => return Err(refuse("is a link to a name that is too long")),
        Kind::Link { target } => {
            let target = std::str::from_utf8(target).map_err(|_| refuse("is a link to a name that is not UTF-8"))?;
            Made::Link { target: target.into() }
        }
        Kind::Other(what) => return Err(refuse(&format!("is of a type that is not unpacked ({what})"))),
    };
    let mut kept = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                if depth >= usize::from(strip) {
                    kept.push(name);
                }
                depth += 1;
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refuse("leads out of the archive"));
            }
        }
    }
    if kept.as_os_str().is_empty() {
        return Ok(None);
    }
    if let Made::Link { target } = &made
        && !stays_inside(&kept, target)
    {
        return Err(refuse(&format!("is a link that leads out of the archive, to {}", target.display())));
    }
    Ok(Some((kept, made)))
}

/// Whether a link stays in the tree. Only leading `..` are allowed, and no more than there are directories above it, which are
/// real ones: what follows may go through other links, each of which stays inside as well.
fn stays_inside(link: &Path, target: &Path) -> bool {
    let mut up = 0;
    let mut down = 0;
    for component in target.components() {
        match component {
            Component::ParentDir if down == 0 => up += 1,
            Component::Normal(_) => down += 1,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    let above = link.components().count() - 1;
    up <= above && up + down > 0
}

fn member(file: &mut File, strip: u8, path: &str, limit: u64, to: Option<&Path>) -> Result<u64, UnpackError> {
    let mut found = None;
    archive::walk(file, &mut |Entry { name, kind, content }| {
        let Some((name, made)) = judge(&name, &kind, strip)? else { return Ok(()) };
        if name != Path::new(path) {
            return Ok(());
        }
        let refuse = |why: &str| UnpackError::Entry { name: path.to_owned(), why: why.to_owned() };
        match (made, found) {
            (Made::File { .. }, None) => {
                found = Some(copy(content, to, EXECUTABLE, limit).map_err(|error| too_large(error, limit))?);
                Ok(())
            }
            (Made::File { .. }, Some(_)) => Err(refuse("is there twice")),
            (Made::Directory | Made::Link { .. }, _) => Err(refuse("is not a file")),
        }
    })?;
    found.ok_or_else(|| UnpackError::Missing(path.to_owned()))
}

struct Tree<'a> {
    to: Option<&'a Path>,
    limit: u64,
    /// Bytes that may still come.
    left: u64,
    /// Every name so far, and whether it is a directory.
    seen: HashMap<PathBuf, bool>,
}

impl Tree<'_> {
    fn unpack(mut self, file: &mut File, strip: u8) -> Result<u64, UnpackError> {
        if let Some(to) = self.to {
            recipes::make_directory(to)?;
        }
        archive::walk(file, &mut |Entry { name, kind, content }| match judge(&name, &kind, strip)? {
            Some((name, made)) => self.take(&name, &made, content),
            None => Ok(()),
        })?;
        if self.seen.values().all(|is_directory| *is_directory) {
            Err(UnpackError::Empty)
        } else {
            Ok(self.limit - self.left)
        }
    }

    fn take(&mut self, name: &Path, made: &Made, content: &mut dyn Read) -> Result<(), UnpackError> {
        if self.seen.len() >= MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        if let Some(parent) = name.parent() {
            self.directory(parent)?;
        }
        match made {
            Made::Directory => self.directory(name)?,
            Made::File { mode } => {
                self.add(name)?;
                let to = self.to.map(|to| to.join(name));
                let taken =
                    copy(content, to.as_deref(), *mode, self.left).map_err(|error| too_large(error, self.limit))?;
                self.left -= taken;
            }
            Made::Link { target } => {
                self.add(name)?;
                if let Some(to) = self.to {
                    recipes::link(target, &to.join(name))?;
                }
            }
        }
        Ok(())
    }

    fn refuse(name: &Path, why: &str) -> UnpackError {
        UnpackError::Entry { name: name.display().to_string(), why: why.to_owned() }
    }

    /// A name that must not be there yet.
    fn add(&mut self, name: &Path) -> Result<(), UnpackError> {
        match self.seen.insert(name.to_owned(), false) {
            None => Ok(()),
            Some(_) => Err(Self::refuse(name, "is there twice")),
        }
    }

    /// A directory, with all above it. Nothing is ever written through a link.
    fn directory(&mut self, name: &Path) -> Result<(), UnpackError> {
        let mut path = PathBuf::new();
        for component in name.components() {
            path.push(component);
            match self.seen.get(&path) {
                Some(true) => {}
                Some(false) => return Err(Self::refuse(&path, "is a file or a link, and a directory as well")),
                None => {
                    if let Some(to) = self.to {
                        recipes::make_directory(&to.join(&path))?;
                    }
                    self.seen.insert(path.clone(), true);
                }
            }
        }
        Ok(())
    }
}

/// Copies all of it, which is at most `limit` bytes. Without `to` it is only read.
fn copy(from: &mut dyn Read, to: Option<&Path>, mode: u32, limit: u64) -> io::Result<u64> {
    let mut from = from.take(limit.saturating_add(1));
    let copied = match to {
        None => io::copy(&mut from, &mut io::sink())?,
        Some(to) => {
            let mut file = files::options(mode).write(true).create_new(true).open(to)?;
            // Whatever the umask.
            files::set_mode(&file, mode)?;
            io::copy(&mut from, &mut file)?
        }
    };
    if copied > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(copied) }
}

fn too_large(error: io::Error, limit: u64) -> UnpackError {
    match error.kind() {
        io::ErrorKind::FileTooLarge => UnpackError::TooLarge(limit),
        _ => UnpackError::Io(error),
    }
}

/// Any archive.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let place =
        std::env::temp_dir().join(format!("patchwarden-fuzz-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    if std::fs::write(&place, bytes).is_ok() {
        let member = Content::Member { strip: 0, path: "a".into() };
        for content in [member, Content::Tree { strip: 1 }, Content::File] {
            let _ = unpack(&place, &content, 1 << 20, None);
        }
    }
    let _ = std::fs::remove_file(&place);
}

#[cfg(test)]
mod tests;
