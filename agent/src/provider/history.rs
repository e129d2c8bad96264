//! What a package manager's own history says of its runs: who asked for what, and when. Reading; each provider parses its own.
//!
//! It is a help for people, and anybody who is root can write there what they like: what cannot be read is left out.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use patchwarden_protocol::changes::{MAX_USER, MAX_WORD};

use super::bounded;
use crate::platform;

/// Of a file of history the end is read: a release upgrade of a large machine is a tenth of it.
const MAX_READ: u64 = 4 << 20;

/// At most so many runs are looked at, the latest.
pub(super) const MAX_RUNS: usize = 1_000;

/// A line that is longer is cut. The command of an order's own run names every package.
const MAX_LINE: usize = 64 * 1024;

/// Beginning and end of a run differ from what a scan sees of it, and a clock may be set by an hour.
const SLACK_SECONDS: i64 = 2 * 3600;

/// One run of a package manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PastRun {
    /// When it began.
    pub(crate) at: Timestamp,
    /// When it ended, as far as that is told.
    pub(crate) until: Timestamp,
    /// Whose history this is.
    pub(crate) told_by: &'static str,
    /// Who asked for it; empty where that is not told.
    pub(crate) user: String,
    /// In full; empty where that is not told.
    pub(crate) command: String,
    /// What it did, in no order.
    pub(crate) steps: Vec<Step>,
}

/// One package of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Name.
    pub(crate) name: String,
    /// The version that went; `None` where none did, or that is not told.
    pub(crate) before: Option<String>,
    /// Whether `before` is told: zypper names new versions only.
    pub(crate) is_before_told: bool,
    /// The version that came, if one did.
    pub(crate) after: Option<String>,
}

impl PastRun {
    /// A run that began then, of which no more is known yet.
    pub(super) fn new(at: Timestamp, told_by: &'static str) -> Self {
        Self { at, until: at, told_by, user: String::new(), command: String::new(), steps: Vec::new() }
    }

    /// Who asked for it.
    pub(super) fn set_user(&mut self, user: &str) {
        self.user = bounded(&cleaned(user), MAX_USER);
    }

    /// How.
    pub(super) fn set_command(&mut self, command: &str) {
        self.command = without_credentials(&cleaned(command));
    }

    /// Whether it may have done what was not done yet at this time.
    pub(super) fn is_after(&self, since: Timestamp) -> bool {
        self.until.as_second() >= since.as_second().saturating_sub(SLACK_SECONDS)
    }
}

impl Step {
    /// From one version to another.
    pub(super) fn new(name: &str, before: Option<&str>, after: Option<&str>) -> Self {
        let word = |text: &str| bounded(&cleaned(text), MAX_WORD);
        Self { name: word(name), before: before.map(word), is_before_told: true, after: after.map(word) }
    }
}

/// The end of a file, as lines. None where there is no such file or it cannot be read.
pub(super) fn lines_of(path: &Path) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(MAX_READ);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(MAX_READ).read_to_end(&mut bytes)?;
        Ok(if from > 0 { after_first_line(&bytes) } else { bytes })
    };
    lines(path, read())
}

/// The same of a file that logrotate(8) has compressed. Of one that unpacks to more the rest is not read.
pub(super) fn lines_of_gz(path: &Path) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        MultiGzDecoder::new(File::open(path)?).take(MAX_READ).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    lines(path, read())
}

fn lines(path: &Path, read: io::Result<Vec<u8>>) -> Vec<String> {
    match read {
        Ok(bytes) => split(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!("{}: {error}: who changed packages is not known", path.display());
            Vec::new()
        }
    }
}

fn after_first_line(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().position(|byte| *byte == b'\n').map(|end| bytes[end + 1..].to_vec()).unwrap_or_default()
}

fn split(bytes: &[u8]) -> Vec<String> {
    let cut = |line: &[u8]| String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]).into_owned();
    bytes.split(|byte| *byte == b'\n').map(cut).collect()
}

/// The machine's time zone; UTC where it cannot be read.
pub(super) fn zone() -> TimeZone {
    platform::local_zone().unwrap_or(TimeZone::UTC)
}

/// `2026-11-28  09:05:38`, as the machine's clock showed it. Of a time that was twice the first is taken, of one that was
/// not what RFC 5545 (3.3.5) makes of it.
pub(super) fn local_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let mut words = text.split_ascii_whitespace();
    let (date, time) = (words.next()?, words.next()?);
    let local: DateTime = format!("{date}T{time}").parse().ok()?;
    local.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp())
}

/// On one line, without control characters.
fn cleaned(text: &str) -> String {
    let plain = |char: char| if char.is_control() { ' ' } else { char };
    text.trim().chars().map(plain).collect()
}

/// Without what stands before the host of an address (RFC 3986, userinfo): a proxy's password, say.
fn without_credentials(command: &str) -> String {
    let mut text = String::with_capacity(command.len());
    let mut rest = command;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        text.push_str(before);
        let end = after.find(|char: char| char == '/' || char == '\'' || char == '"' || char.is_whitespace());
        let authority = &after[..end.unwrap_or(after.len())];
        match authority.rfind('@') {
            Some(host) => {
                text.push_str("***");
                rest = &after[host..];
            }
            None => rest = after,
        }
    }
    text.push_str(rest);
    text
}

#[cfg(any(test, fuzzing))]
pub(super) fn assert_harmless(runs: &[PastRun]) {
    assert!(runs.len() <= MAX_RUNS);
    for PastRun { at: _, until: _, told_by: _, user, command, steps } in runs {
        let words = steps
            .iter()
            .flat_map(|step| [Some(&step.name), step.before.as_ref(), step.after.as_ref()].into_iter().flatten());
        assert!(user.len() <= MAX_USER && words.clone().all(|word| word.len() <= MAX_WORD));
        assert!(words.chain([user, command]).all(|text| !text.contains(char::is_control)));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_end_of_a_file_is_read_in_whole_lines() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        assert!(lines_of(&path).is_empty());
        std::fs::write(&path, b"one\n\xff two\n\nthree").unwrap();
        assert_eq!(lines_of(&path), ["one", "\u{fffd} two", "", "three"]);
        let mut text = vec![b'x'; usize::try_from(MAX_READ).unwrap()];
        text.extend_from_slice(b"\nlast\n");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(lines_of(&path), ["last", ""]);
        std::fs::write(&path, vec![b'x'; 2 * MAX_LINE]).unwrap();
        assert_eq!(lines_of(&path)[0].len(), MAX_LINE);
        assert!(lines_of(place.path()).is_empty(), "a directory");
    }

    #[test]
    fn a_compressed_file_is_read_with_a_limit() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log.1.gz");
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes).unwrap();
            std::fs::write(&path, encoder.finish().unwrap()).unwrap();
        };
        pack(b"one\ntwo\n");
        assert_eq!(lines_of_gz(&path), ["one", "two", ""]);
        pack(&vec![b'\n'; 1 << 24]);
        assert_eq!(lines_of_gz(&path).len() as u64, MAX_READ + 1);
        std::fs::write(&path, "no archive").unwrap();
        assert!(lines_of_gz(&path).is_empty());
    }

    #[test]
    fn times_are_the_machines() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let second = |text: &str, zone: &TimeZone| local_time(text, zone).map(|at| at.to_string());
        assert_eq!(second("2026-11-28  09:05:38", &TimeZone::UTC).unwrap(), "2026-11-28T09:05:38Z");
        assert_eq!(second("2026-07-01 09:00:00 more", &berlin).unwrap(), "2026-07-01T07:00:00Z");
        assert_eq!(second("2026-10-25 02:30:00", &berlin).unwrap(), "2026-10-25T00:30:00Z", "the first of two");
        for odd in ["", "2026-11-28", "2026-13-01 00:00:00", "x y", "9999-12-31 99:00:00", "-9999-01-01 00:00:00"] {
            assert_eq!(local_time(odd, &TimeZone::UTC), None, "{odd}");
        }
    }

    #[test]
    fn passwords_of_addresses_are_not_kept() {
        for (command, expected) in [
            (
                "apt -o Acquire::http::Proxy=http://me:se@cret@proxy:3128/ x",
                "apt -o Acquire::http::Proxy=http://***@proxy:3128/ x",
            ),
            ("dnf install https://host/a@b.rpm", "dnf install https://host/a@b.rpm"),
            ("'zypper' 'ar' 'ftp://u@h' 'https://a:b@c'", "'zypper' 'ar' 'ftp://***@h' 'https://***@c'"),
            ("a:// b@c", "a:// b@c"),
            ("://@", "://***@"),
        ] {
            assert_eq!(without_credentials(command), expected);
        }
    }
}
