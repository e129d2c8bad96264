//! When the gateway was last heard of: a machine that nobody manages any more is given its own updater back.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use crate::files;

/// In the state directory: a time as RFC 3339 writes it.
const FILE: &str = "contact";

/// Without contact for so long nobody manages this machine.
pub(crate) const PATIENCE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Written down no more often than this.
const GRAIN: SignedDuration = SignedDuration::from_hours(1);

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    path: PathBuf,
}

impl Contact {
    /// In a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// When it was. Nothing, if it was never written down or cannot be read.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        let bytes = files::read_if_exists(&self.path).ok()??;
        String::from_utf8(bytes).ok()?.trim().parse().ok()
    }

    /// There is contact now.
    pub(crate) fn note(&self, now: Timestamp) -> std::io::Result<()> {
        let is_recent = |last: Timestamp| (SignedDuration::ZERO..GRAIN).contains(&now.duration_since(last));
        if self.last().is_some_and(is_recent) {
            return Ok(());
        }
        files::write_atomic(&self.path, format!("{now}\n").as_bytes(), files::PRIVATE)
    }

    /// Whether it is too long ago. What is not known begins to count now; a time to come is one of a clock that was wrong.
    pub(crate) fn is_over(&self, now: Timestamp) -> std::io::Result<bool> {
        match self.last() {
            Some(last) if last <= now => Ok(now.duration_since(last) > PATIENCE),
            _ => self.note(now).map(|()| false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contact_is_over_after_thirty_days_and_a_clock_that_was_wrong_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let contact = Contact::new(directory.path());
        let day = |days: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * (1000 + days));
        assert!(!contact.is_over(day(0)).unwrap());
        assert_eq!(contact.last(), Some(day(0)), "it counts from the first look");
        assert!(!contact.is_over(day(30)).unwrap());
        assert!(contact.is_over(day(30) + SignedDuration::from_secs(1)).unwrap());
        contact.note(day(31)).unwrap();
        assert!(!contact.is_over(day(60)).unwrap());
        assert!(!contact.is_over(day(20)).unwrap(), "the clock was set back");
        assert_eq!(contact.last(), Some(day(20)));
        contact.note(day(20) + SignedDuration::from_mins(59)).unwrap();
        assert_eq!(contact.last(), Some(day(20)), "not written each time");
        std::fs::write(directory.path().join("contact"), "gibberish").unwrap();
        assert!(!contact.is_over(day(99)).unwrap());
        assert_eq!(contact.last(), Some(day(99)));
    }
}
