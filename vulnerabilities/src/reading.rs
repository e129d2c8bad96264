//! What reading has in common: refusals, and files that end where their limit is.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::limits::MAX_ID;

/// A file that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {place}{reason}", file.display())]
pub struct Refused {
    /// Which.
    pub file: PathBuf,
    /// Where in it: `line 3: `, `record DEBIAN-CVE-2026-0001: `; empty where it is about the whole file.
    pub place: String,
    /// What is wrong, and where it helps, what to do.
    pub reason: String,
}

/// Why there is nothing to use.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file is not as it must be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Who takes what is read takes no more.
    #[error("nobody takes what is read any more")]
    Stopped,
}

/// What is wrong with a file, without the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) place: String,
    pub(crate) reason: String,
}

impl Fault {
    /// Of the file as a whole.
    pub(crate) fn whole(reason: impl Display) -> Self {
        Self { place: String::new(), reason: reason.to_string() }
    }

    /// At a place in it.
    pub(crate) fn at(place: impl Display, reason: impl Display) -> Self {
        Self { place: format!("{place}: "), reason: reason.to_string() }
    }

    pub(crate) fn of(self, file: &Path) -> Refused {
        Refused { file: file.to_owned(), place: self.place, reason: self.reason }
    }
}

/// A fault, or nobody who takes what is read.
#[derive(Debug)]
pub(crate) enum Halt {
    Fault(Fault),
    Stopped,
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Halt {
    pub(crate) fn of(self, file: &Path) -> ReadError {
        match self {
            Self::Fault(fault) => ReadError::Refused(fault.of(file)),
            Self::Stopped => ReadError::Stopped,
        }
    }
}

/// All of a source, which must not have more than `limit` bytes.
pub(crate) fn all(source: impl Read, limit: u64, buffer: &mut Vec<u8>) -> Result<(), Fault> {
    buffer.clear();
    source.take(limit + 1).read_to_end(buffer).map_err(Fault::whole)?;
    if buffer.len() as u64 > limit {
        return Err(Fault::whole(format!("has more than {limit} bytes, which are allowed")));
    }
    Ok(())
}

pub(crate) fn open(path: &Path) -> Result<File, Fault> {
    File::open(path).map_err(|error: io::Error| Fault::whole(error))
}

/// Of a text that is a key or is shown: not empty, no control characters, no longer than `max` bytes.
pub(crate) fn check_text(field: &str, text: &str, max: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        return Err(format!("{field}: `{}` is empty, has control characters, or more than {max} bytes", shown(text)));
    }
    Ok(())
}

/// The beginning of what was found, for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_default).collect()
}

/// Whether it is the identifier of a vulnerability: `CVE-`, a year, and at least four digits
/// (<https://www.cve.org/ResourcesSupport/FAQs>).
pub(crate) fn is_cve(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= MAX_ID
        && text
            .strip_prefix("CVE-")
            .and_then(|rest| rest.split_once('-'))
            .is_some_and(|(year, number)| year.len() == 4 && digits(year) && number.len() >= 4 && digits(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cve_is_none() {
        for good in ["CVE-2026-0001", "CVE-1999-0001", "CVE-2026-1234567"] {
            assert!(is_cve(good), "{good}");
        }
        for bad in
            ["", "CVE-2026-001", "CVE-26-0001", "cve-2026-0001", "CVE-2026-0001 ", "CVE-2026-000x", "DSA-2026-0001"]
        {
            assert!(!is_cve(bad), "{bad}");
        }
        assert!(!is_cve(&format!("CVE-2026-{}", "1".repeat(200))));
    }

    #[test]
    fn a_source_ends_at_its_limit() {
        let mut buffer = vec![1];
        assert!(all(&b"12345"[..], 5, &mut buffer).is_ok());
        assert_eq!(buffer, b"12345");
        let fault = all(&b"123456"[..], 5, &mut buffer).unwrap_err();
        assert!(fault.reason.contains("more than 5 bytes"), "{fault:?}");
    }
}
