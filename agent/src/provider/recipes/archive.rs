//! The archives that are unpacked: `tar`, by itself or packed by gzip or xz, and `zip`. Which it is their first bytes say.
//!
//! A `tar` is gone through twice: first its raw headers, whose sizes are limited before anything believes them, then its entries.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use patchwarden_protocol::recipes::MAX_UNPACKED;
use tar::{Archive, EntryType};
use zip::ZipArchive;

use super::unpack::{MAX_ENTRIES, MAX_NAME, UnpackError};

/// Longest extended header of a `tar`: names, and what a file has beside its content.
const MAX_EXTENSION: u64 = 64 << 10;

/// Memory for unpacking xz, in KiB: its dictionary and what comes with it. `xz -8` takes 33 MiB.
const MAX_XZ_MEMORY: u32 = 34 << 10;

/// gzip: RFC 1952, 2.3.1.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// xz: The .xz File Format 1.2.1, 2.1.1.1.
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// zip: APPNOTE 6.3.10, 4.3.7, the first header of a file.
const ZIP: &[u8] = b"PK\x03\x04";

/// Type of a file in the mode that `zip` keeps (st_mode: inode(7)).
const TYPE: u32 = 0o170_000;

/// A file that an archive holds.
pub(super) struct Entry<'a> {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Of a file.
    pub(super) content: &'a mut dyn Read,
}

/// What an entry is.
pub(super) enum Kind {
    File {
        /// Permissions and what is above them, 0 to 0o7777.
        mode: u32,
    },
    Directory,
    Link {
        target: Vec<u8>,
    },
    /// What is not unpacked, as it is called.
    Other(String),
}

/// Takes one after the other.
pub(super) type Taker<'a> = &'a mut dyn FnMut(Entry<'_>) -> Result<(), UnpackError>;

/// Hands every entry to `take`, in the archive's order, until that fails.
pub(super) fn walk(file: &mut File, take: Taker<'_>) -> Result<(), UnpackError> {
    file.seek(SeekFrom::Start(0))?;
    let mut begin = Vec::new();
    (&*file).take(8).read_to_end(&mut begin)?;
    let mut count = 0;
    let mut take = |entry: Entry<'_>| {
        count += 1;
        if count > MAX_ENTRIES { Err(UnpackError::TooMany) } else { take(entry) }
    };
    if begin.starts_with(ZIP) {
        return walk_zip(file, &mut take);
    }
    check_headers(&mut tar(file, &begin)?)?;
    walk_tar(&mut tar(file, &begin)?, &mut take)
}

type Tar<'a> = Archive<io::Take<Box<dyn Read + 'a>>>;

/// The `tar` in a file that begins so.
fn tar<'a>(file: &'a mut File, begin: &[u8]) -> io::Result<Tar<'a>> {
    file.seek(SeekFrom::Start(0))?;
    let reader = BufReader::with_capacity(128 << 10, file);
    let reader: Box<dyn Read + 'a> = if begin.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(reader))
    } else if begin.starts_with(XZ) {
        Box::new(XzReader::new_mem_limit(reader, true, MAX_XZ_MEMORY))
    } else {
        Box::new(reader)
    };
    Ok(Archive::new(reader.take(MAX_UNPACKED)))
}

fn check_headers(archive: &mut Tar<'_>) -> Result<(), UnpackError> {
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

fn walk_tar(archive: &mut Tar<'_>, take: Taker<'_>) -> Result<(), UnpackError> {
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header();
        let kind = match header.entry_type() {
            // Comments of whoever made the archive, as `git archive` writes them.
            EntryType::XGlobalHeader => continue,
            EntryType::Regular | EntryType::Continuous => Kind::File { mode: header.mode()? & 0o7777 },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                Kind::Link { target: entry.link_name_bytes().map(Cow::into_owned).unwrap_or_default() }
            }
            other => Kind::Other(format!("{other:?}")),
        };
        let name = entry.path_bytes().into_owned();
        take(Entry { name, kind, content: &mut entry })?;
    }
    Ok(())
}

fn walk_zip(file: &mut File, take: Taker<'_>) -> Result<(), UnpackError> {
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(io::Error::from)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(io::Error::from)?;
        // Where it was made by a system without them it has none.
        let mode = entry.unix_mode().unwrap_or_default();
        let kind = match mode & TYPE {
            _ if entry.is_dir() => Kind::Directory,
            0 | 0o100_000 => Kind::File { mode: mode & 0o7777 },
            0o120_000 => {
                let mut target = Vec::new();
                (&mut entry).take(MAX_NAME as u64 + 1).read_to_end(&mut target)?;
                Kind::Link { target }
            }
            other => Kind::Other(format!("{other:o}")),
        };
        let name = entry.name_raw().to_vec();
        take(Entry { name, kind, content: &mut entry })?;
    }
    Ok(())
}
