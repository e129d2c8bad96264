//! Which changes the gateway has not recorded yet.
//!
//! `changes-recorded.json` in the state directory names the last one that it has, by log and number; it is written when the gateway
//! says so. Without it everything is sent again: the gateway knows what it has. What `changes.jsonl` had no more room for before it
//! was sent is missing there, and its number is not used again, so that this can be seen.

use std::io;

use patchwarden_protocol::changes::{Changed, MAX_CHANGES};
use serde::{Deserialize, Serialize};

use super::Changes;
use crate::files;

pub(super) const FILE: &str = "changes-recorded.json";

/// The last change that the gateway has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    log: String,
    number: u64,
}

/// Log and number of what comes after `last`.
pub(super) fn next(last: Option<&Changed>) -> (String, u64) {
    match last.filter(|last| !last.log.is_empty()) {
        Some(last) => (last.log.clone(), last.last().saturating_add(1)),
        None => (new_log(), 1),
    }
}

/// 128 random bits.
fn new_log() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Changes {
    /// What is to be sent next: the oldest that is not recorded, of one log, at most [`MAX_CHANGES`] packages.
    pub(crate) fn pending(&self) -> io::Result<Vec<Changed>> {
        let (_, pending) = split(self.read()?, self.last_recorded().as_ref());
        Ok(first_message(pending))
    }

    /// The gateway has everything up to this one.
    pub(crate) fn set_recorded(&self, log: &str, number: u64) -> io::Result<()> {
        let recorded = Recorded { log: log.to_owned(), number };
        files::write_atomic(&self.recorded, &serde_json::to_vec(&recorded)?, files::PRIVATE)
    }

    /// The gateway has other changes under these numbers: this machine was set back to an earlier state, or is a copy. What is not
    /// recorded gets a log of its own.
    pub(crate) fn begin_new_log(&self) -> io::Result<()> {
        let (mut all, mut pending) = split(self.read()?, self.last_recorded().as_ref());
        let (log, mut number) = (new_log(), 1);
        for changed in &mut pending {
            (changed.log, changed.first) = (log.clone(), number);
            number = changed.last() + 1;
        }
        all.append(&mut pending);
        self.write(&all)
    }

    /// A file that cannot be read is as good as none.
    fn last_recorded(&self) -> Option<Recorded> {
        let read = files::read_if_exists(&self.recorded).and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            None => Ok(None),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}: all changes are sent again", self.recorded.display());
            None
        })
    }
}

/// What is recorded, and what is not. What was written down before there were logs is not for the gateway.
fn split(all: Vec<Changed>, recorded: Option<&Recorded>) -> (Vec<Changed>, Vec<Changed>) {
    let is_recorded = |changed: &Changed| {
        changed.log.is_empty() || recorded.is_some_and(|r| r.log == changed.log && changed.first <= r.number)
    };
    let end = all.iter().rposition(is_recorded).map_or(0, |last| last + 1);
    let mut done = all;
    let mut pending = done.split_off(end);
    // A message may end within a line.
    if let (Some(last), Some(recorded)) = (done.last_mut(), recorded)
        && last.log == recorded.log
        && last.last() > recorded.number
    {
        let kept = usize::try_from(recorded.number + 1 - last.first).unwrap_or(last.packages.len());
        let rest = last.packages.split_off(kept.min(last.packages.len()));
        pending.insert(0, Changed { first: recorded.number + 1, packages: rest, ..last.clone() });
    }
    (done, pending)
}

fn first_message(pending: Vec<Changed>) -> Vec<Changed> {
    let mut room = MAX_CHANGES;
    let mut message: Vec<Changed> = Vec::new();
    for mut changed in pending {
        let follows = message.last().is_none_or(|last| (&last.log, last.last() + 1) == (&changed.log, changed.first));
        if room == 0 || !follows {
            break;
        }
        changed.packages.truncate(room);
        room -= changed.packages.len();
        message.push(changed);
    }
    message
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patchwarden_protocol::changes::{By, LOG_NAME};
    use patchwarden_protocol::report::DeviceRef;

    use super::super::Found;
    use super::super::tests::change;
    use super::*;

    fn found(number: usize, packages: usize) -> Found {
        let name = |package: usize| format!("p{number}-{package}");
        Found {
            at: Timestamp::UNIX_EPOCH,
            from: number.to_string(),
            to: (number + 1).to_string(),
            order: None,
            changes: (0..packages).map(|p| change(&name(p), None, Some("1"), By::SomebodyElse)).collect(),
            runs: vec![],
        }
    }

    fn names(message: &[Changed]) -> Vec<&str> {
        message.iter().flat_map(|changed| changed.packages.iter().map(|package| package.name.as_str())).collect()
    }

    fn acknowledge(changes: &Changes) -> Vec<Changed> {
        let message = changes.pending().unwrap();
        let device = DeviceRef { namespace: "acme".into(), name: "web".into() };
        let document = patchwarden_protocol::changes::Changes { device, changed: message.clone() };
        assert_eq!(document.check(), Ok(()));
        let last = message.last().unwrap();
        changes.set_recorded(&last.log, last.last()).unwrap();
        message
    }

    #[test]
    fn everything_is_sent_once_it_is_recorded_no_more() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        assert_eq!(changes.pending().unwrap(), []);
        changes.note(found(1, 2)).unwrap();
        changes.note(found(2, 1)).unwrap();
        let first = changes.pending().unwrap();
        assert_eq!(names(&first), ["p1-0", "p1-1", "p2-0"]);
        assert_eq!((first[0].first, first[1].first, first[0].log.len()), (1, 3, LOG_NAME));
        assert_eq!(changes.pending().unwrap(), first, "until it is recorded it is the same");
        assert_eq!(acknowledge(&changes), first);
        assert_eq!(changes.pending().unwrap(), []);
        changes.note(found(3, 1)).unwrap();
        let next = acknowledge(&changes);
        assert_eq!((names(&next), next[0].first, &next[0].log), (vec!["p3-0"], 4, &first[0].log));
        // Without the file everything is sent once more, under the same numbers.
        for lost in [None, Some("{")] {
            std::fs::remove_file(place.path().join(FILE)).unwrap();
            if let Some(text) = lost {
                std::fs::write(place.path().join(FILE), text).unwrap();
            }
            assert_eq!(names(&changes.pending().unwrap()).len(), 4);
            assert_eq!(acknowledge(&changes)[..2], first[..]);
        }
    }

    #[test]
    fn many_changes_go_in_messages_of_a_bounded_size() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        changes.note(found(1, 100)).unwrap();
        changes.note(found(2, 2 * MAX_CHANGES)).unwrap();
        let sizes: Vec<(usize, u64)> = (0..3)
            .map(|_| {
                let message = acknowledge(&changes);
                (names(&message).len(), message[0].first)
            })
            .collect();
        assert_eq!(sizes, [(256, 1), (256, 257), (100, 513)]);
        assert_eq!(changes.pending().unwrap(), []);
    }

    #[test]
    fn what_there_was_no_room_for_leaves_its_numbers_unused() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        changes.note(found(1, 1)).unwrap();
        acknowledge(&changes);
        // Some 90 bytes each: more than the file may have.
        for number in 2..6 {
            changes.note(found(number, 4000)).unwrap();
        }
        let first = changes.pending().unwrap()[0].first;
        assert!(first > 2 && (first - 2).is_multiple_of(4000), "{first}");
        let kept = changes.read().unwrap();
        assert_eq!(kept.last().unwrap().last(), 1 + 4 * 4000);
    }

    #[test]
    fn a_machine_that_was_set_back_begins_a_new_log() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        changes.note(found(1, 3)).unwrap();
        let log = changes.pending().unwrap()[0].log.clone();
        changes.set_recorded(&log, 2).unwrap();
        changes.note(found(2, 1)).unwrap();
        changes.begin_new_log().unwrap();
        let message = acknowledge(&changes);
        assert_eq!((names(&message), message[0].first), (vec!["p1-2", "p2-0"], 1));
        assert!(message[0].log != log && message[1].log == message[0].log);
        assert_eq!(changes.pending().unwrap(), []);
        let all = changes.read().unwrap();
        assert_eq!(names(&all), ["p1-0", "p1-1", "p1-2", "p2-0"]);
    }

    #[test]
    fn what_was_written_down_before_there_were_logs_is_not_sent() {
        let place = tempfile::tempdir().unwrap();
        let changes = Changes::new(place.path(), false);
        let old = r#"{"foundAt":"2026-11-27T01:02:05Z","from":"a","to":"b","packages":[{"name":"x","arch":"all","after":"1","by":"somebodyElse"}]}"#;
        std::fs::write(changes.path(), format!("{old}\n")).unwrap();
        assert_eq!(changes.pending().unwrap(), []);
        changes.note(found(2, 1)).unwrap();
        assert_eq!(names(&acknowledge(&changes)), ["p2-0"]);
        assert_eq!(changes.read().unwrap().len(), 2);
    }
}
