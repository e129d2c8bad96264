//! A directory of files, such as a mounted volume or ConfigMap. What a file is its name's end and its content tell.
//!
//! Names that begin with a dot are left out: the kubelet keeps a volume's versions in such. Everything else must be one of the
//! formats: a file that is silently not read would look like data that are there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use jiff::civil::Date;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

use crate::limits::{MAX_CATALOGUE, MAX_DEPTH, MAX_DOCUMENT, MAX_RECORDS};
use crate::reading::{Fault, Halt, ReadError, Refused, all, open};
use crate::statement::Statement;
use crate::{csaf, epss, kev, osv};

/// One thing that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An advisory's word on a package.
    Statement(Statement),
    /// A vulnerability that is known to be exploited.
    Exploited {
        /// Which.
        cve: String,
        /// Since when it is in the catalogue.
        added: Date,
    },
    /// How likely a vulnerability is exploited.
    Likelihood {
        /// Which.
        cve: String,
        /// In units of 10^-5.
        epss: u32,
    },
}

/// What takes entries, until it has enough.
pub(crate) type Take<'t> = dyn FnMut(Entry) -> Result<(), Halt> + 't;

/// What was read, and what was not and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files.
    pub files: u64,
    /// Records of OSV and documents of CSAF.
    pub records: u64,
    /// Statements about packages.
    pub statements: u64,
    /// Vulnerabilities known to be exploited.
    pub exploited: u64,
    /// Vulnerabilities with a likelihood.
    pub likelihoods: u64,
    /// Records that were withdrawn.
    pub withdrawn: u64,
    /// Statements with a version that the package manager would not take.
    pub unreadable: u64,
    /// Statements about what is not told apart here, by what that is: the most frequent kinds, and `others`.
    pub left_out: BTreeMap<String, u64>,
}

/// So many kinds of what is left out are told apart.
const MAX_KINDS: usize = 40;

impl Summary {
    /// An ecosystem's release says no more than the ecosystem.
    pub(crate) fn leave_out(&mut self, kind: &str) {
        let is_known = self.left_out.len() < MAX_KINDS || self.left_out.contains_key(kind);
        *self.left_out.entry(if is_known { kind } else { "others" }.to_owned()).or_default() += 1;
    }
}

/// Which files there are, and when each was changed: another value where any is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, u64, Option<std::time::SystemTime>)>);

/// Looks at all files without reading any.
pub fn stamp(directory: &Path) -> Result<Stamp, Refused> {
    let mut found = Vec::new();
    for path in files(directory)? {
        let metadata = fs::metadata(&path).map_err(|error| Fault::whole(error).of(&path))?;
        found.push((path, metadata.len(), metadata.modified().ok()));
    }
    Ok(Stamp(found))
}

/// SHA-256 over the names and contents of all files, hexadecimal.
pub fn digest(directory: &Path) -> Result<String, Refused> {
    let mut all = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    for path in files(directory)? {
        let fail = |error: std::io::Error| Fault::whole(error).of(&path);
        let mut one = Sha256::new();
        let mut file = File::open(&path).map_err(fail)?;
        loop {
            match file.read(&mut buffer).map_err(fail)? {
                0 => break,
                read => one.update(&buffer[..read]),
            }
        }
        let name = path.strip_prefix(directory).unwrap_or(&path).as_os_str().as_encoded_bytes();
        all.update((name.len() as u64).to_be_bytes());
        all.update(name);
        all.update(one.finalize());
    }
    let mut text = String::with_capacity(64);
    for byte in all.finalize() {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Reads all files in the order of their names and hands over what is in them. Where it fails nothing that was handed over counts.
pub fn read(directory: &Path, take: &mut dyn FnMut(Entry) -> Result<(), ReadError>) -> Result<Summary, ReadError> {
    let mut summary = Summary::default();
    let mut buffer = Vec::new();
    for path in files(directory)? {
        summary.files += 1;
        let mut counts = (0, 0, 0);
        let mut counted = |entry: Entry| -> Result<(), Halt> {
            let (statements, exploited, likelihoods) = &mut counts;
            *match entry {
                Entry::Statement(_) => statements,
                Entry::Exploited { .. } => exploited,
                Entry::Likelihood { .. } => likelihoods,
            } += 1;
            take(entry).map_err(|_| Halt::Stopped)
        };
        file(&path, &mut buffer, &mut summary, &mut counted).map_err(|halt| halt.of(&path))?;
        summary.statements += counts.0;
        summary.exploited += counts.1;
        summary.likelihoods += counts.2;
    }
    if summary.files == 0 {
        return Err(Fault::whole("has no files").of(directory).into());
    }
    Ok(summary)
}

/// Whether one catalogue is already there is not asked: two that say the same vulnerability are one.
fn file(path: &Path, buffer: &mut Vec<u8>, summary: &mut Summary, take: &mut Take<'_>) -> Result<(), Halt> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut ends = name.rsplit('.');
    match (ends.next(), ends.next()) {
        (Some("json"), Some(_)) => {
            all(open(path)?, MAX_DOCUMENT, buffer)?;
            json(buffer, summary, take)
        }
        (Some("zip"), Some(_)) => osv::archive(open(path)?, summary, take),
        (Some("csv"), Some(_)) => table(BufReader::new(open(path)?), take),
        (Some("gz"), Some("csv")) => table(BufReader::new(MultiGzDecoder::new(BufReader::new(open(path)?))), take),
        _ => {
            let what =
                "is none of .json (OSV, CSAF, KEV), .zip (OSV), .csv (KEV, EPSS) and .csv.gz (EPSS): take it away";
            Err(Fault::whole(what).into())
        }
    }
}

/// What formats are known by, at the top of their objects.
#[derive(Deserialize)]
struct Marks {
    document: Option<IgnoredAny>,
    id: Option<IgnoredAny>,
    modified: Option<IgnoredAny>,
    #[serde(rename = "catalogVersion")]
    catalog_version: Option<IgnoredAny>,
}

/// A JSON file of any of the formats.
pub(crate) fn json(bytes: &[u8], summary: &mut Summary, take: &mut Take<'_>) -> Result<(), Halt> {
    let marks: Marks = serde_json::from_slice(bytes).map_err(Fault::whole)?;
    match marks {
        Marks { document: Some(_), .. } => csaf::document(bytes, summary, take),
        Marks { catalog_version: Some(_), .. } => hand_over(kev::json(bytes)?, take),
        Marks { id: Some(_), modified: Some(_), .. } => osv::record(bytes, summary, take),
        _ => Err(Fault::whole(
            "is none of OSV (id, modified), CSAF (document) and KEV (catalogVersion), by what is at the top of it",
        )
        .into()),
    }
}

/// A table of either format, known by its first line.
pub(crate) fn table(mut source: impl BufRead, take: &mut Take<'_>) -> Result<(), Halt> {
    let first = source.fill_buf().map_err(Fault::whole)?;
    if first.starts_with(b"#") || first.starts_with(b"cve,") {
        return epss::csv(source, &mut |cve, epss| take(Entry::Likelihood { cve, epss })).map(|_| ());
    }
    hand_over(kev::csv(source.take(MAX_CATALOGUE))?, take)
}

fn hand_over(catalogue: kev::Catalogue, take: &mut Take<'_>) -> Result<(), Halt> {
    catalogue.into_iter().try_for_each(|(cve, added)| take(Entry::Exploited { cve, added }))
}

/// In the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Refused> {
    let mut found = Vec::new();
    let mut open = vec![(directory.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let fail = |error: std::io::Error| Fault::whole(error).of(&path);
        if depth > MAX_DEPTH {
            return Err(Fault::whole(format!("has directories within it: more than {MAX_DEPTH} levels")).of(&path));
        }
        for entry in fs::read_dir(&path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // A ConfigMap's files are links.
            let metadata = fs::metadata(&path).map_err(|error| Fault::whole(error).of(&path))?;
            if metadata.is_dir() {
                open.push((path, depth + 1));
            } else {
                found.push(path);
            }
            if found.len() + open.len() > MAX_RECORDS {
                return Err(Fault::whole(format!("has more than {MAX_RECORDS} files")).of(directory));
            }
        }
    }
    found.sort();
    Ok(found)
}
