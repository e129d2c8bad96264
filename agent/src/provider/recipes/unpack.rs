//! What is made of a downloaded file. Pure but for the files that it writes; nothing that an archive says leads out of the place
//! that is being filled.
//!
//! An archive is gone through twice: first its raw headers, whose sizes are limited before anything believes them, then its
//! files. With no place to fill it is only looked at.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use patchwarden_protocol::recipes::{Content, MAX_UNPACKED};
use tar::{Archive, EntryType};

use crate::files;
use crate::platform::recipes;

/// More files no application has: the largest of the library has 20,000.
const MAX_ENTRIES: usize = 50_000;

/// Longest name in an archive, in bytes.
const MAX_NAME: usize = 400;

/// Longest extended header: names, and what a file has beside its content.
const MAX_EXTENSION: u64 = 64 << 10;

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
        Content::Member { strip, path } => {
            check_headers(&mut file)?;
            member(&mut file, *strip, path, limit, to)
        }
        Content::Tree { strip } => {
            check_headers(&mut file)?;
            Tree { to, limit, left: limit, seen: HashMap::new() }.unpack(&mut file, *strip)
        }
    }
}

/// The archive's own bytes. gzip has a magic number (RFC 1952, 2.3.1); anything else is taken for `tar`.
fn archive(file: &mut File) -> io::Result<Archive<io::Take<Box<dyn Read + '_>>>> {
    file.seek(SeekFrom::Start(0))?;
    let mut magic = Vec::new();
    (&*file).take(2).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let reader = BufReader::with_capacity(128 << 10, file);
    let reader: Box<dyn Read + '_> =
        if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) };
    Ok(Archive::new(reader.take(MAX_UNPACKED)))
}

fn check_headers(file: &mut File) -> Result<(), UnpackError> {
    let mut archive = archive(file)?;
    for (number, entry) in archive.entries()?.raw(true).enumerate() {
        let entry = entry?;
        if number >= 2 * MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let header = entry.header();
        let is_file = matches!(header.entry_type(), EntryType::Regular | EntryType::Continuous);
        if !is_file && entry.size() > MAX_EXTENSION {
            let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            return Err(UnpackError::Entry { name, why: format!("its header has {} bytes", entry.size()) });
        }
    }
    Ok(())
}

/// What an entry is.
enum Kind {
    File { mode: u32 },
    Directory,
    Link { target: PathBuf },
}

/// The entry's name without its first `strip` directories, and what it is. Nothing where there is nothing to be made of it.
fn judge<R: Read>(entry: &tar::Entry<'_, R>, strip: u8) -> Result<Option<(PathBuf, Kind)>, UnpackError> {
    let name = entry.path_bytes().into_owned();
    let refuse = |why: &str| {
        let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned();
        UnpackError::Entry { name, why: why.to_owned() }
    };
    if name.len() > MAX_NAME {
        return Err(refuse("its name is too long"));
    }
    let header = entry.header();
    let kind = match header.entry_type() {
        // Comments of whoever made the archive, as `git archive` writes them.
        EntryType::XGlobalHeader => return Ok(None),
        EntryType::Regular | EntryType::Continuous => {
            let mode = header.mode()?;
            if mode & 0o6000 != 0 {
                return Err(refuse("is setuid or setgid"));
            }
            Kind::File { mode: if mode & 0o111 == 0 { PLAIN } else { EXECUTABLE } }
        }
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or_else(|| refuse("is a link to nothing"))?;
            Kind::Link { target: target.into_owned() }
        }
        other => return Err(refuse(&format!("is of a type that is not unpacked ({other:?})"))),
    };
    let path = entry.path()?;
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
    if let Kind::Link { target } = &kind
        && !stays_inside(&kept, target)
    {
        return Err(refuse(&format!("is a link that leads out of the archive, to {}", target.display())));
    }
    Ok(Some((kept, kind)))
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
    let mut archive = archive(file)?;
    let mut found = None;
    for (number, entry) in archive.entries()?.enumerate() {
        if number >= MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let mut entry = entry?;
        let Some((name, kind)) = judge(&entry, strip)? else { continue };
        if name != Path::new(path) {
            continue;
        }
        let refuse = |why: &str| UnpackError::Entry { name: path.to_owned(), why: why.to_owned() };
        match (kind, found) {
            (Kind::File { .. }, None) => {
                found = Some(copy(&mut entry, to, EXECUTABLE, limit).map_err(|error| too_large(error, limit))?);
            }
            (Kind::File { .. }, Some(_)) => return Err(refuse("is there twice")),
            (Kind::Directory | Kind::Link { .. }, _) => return Err(refuse("is not a file")),
        }
    }
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
        let mut archive = archive(file)?;
        if let Some(to) = self.to {
            recipes::make_directory(to)?;
        }
        for entry in archive.entries()? {
            let mut entry = entry?;
            let Some((name, kind)) = judge(&entry, strip)? else { continue };
            if self.seen.len() >= MAX_ENTRIES {
                return Err(UnpackError::TooMany);
            }
            if let Some(parent) = name.parent() {
                self.directory(parent)?;
            }
            match kind {
                Kind::Directory => self.directory(&name)?,
                Kind::File { mode } => {
                    self.add(&name)?;
                    let to = self.to.map(|to| to.join(&name));
                    let taken = copy(&mut entry, to.as_deref(), mode, self.left)
                        .map_err(|error| too_large(error, self.limit))?;
                    self.left -= taken;
                }
                Kind::Link { target } => {
                    self.add(&name)?;
                    if let Some(to) = self.to {
                        recipes::link(&target, &to.join(&name))?;
                    }
                }
            }
        }
        if self.seen.values().all(|is_directory| *is_directory) {
            Err(UnpackError::Empty)
        } else {
            Ok(self.limit - self.left)
        }
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
fn copy(from: &mut impl Read, to: Option<&Path>, mode: u32, limit: u64) -> io::Result<u64> {
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
