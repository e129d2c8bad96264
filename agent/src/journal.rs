//! What the agent has promised and done, safe against a crash at any instant.
//!
//! One record a line, `<crc32 in hexadecimal> <json>\n`, appended and fsynced before the agent acts on it. A torn last
//! line is what a crash leaves behind: it was never acted on and is cut off. Any other line that cannot be read means
//! that history is lost, and an agent that does not know what it did takes no orders ([`JournalError::Corrupt`]).
//!
//! ```text
//! Accepted -> Started (again after a crash) -> Restarting (once for each restart) -> Finished -> Recorded
//!         \---------------------------------^---------------------------------------^
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::order::{Order, Sequence};
use patchwarden_protocol::result::{ActionResult, InstallResult};
use serde::{Deserialize, Serialize};

use crate::files;

/// Above this many bytes the file is rewritten with what still counts.
const COMPACT_ABOVE: u64 = 256 * 1024;

/// Results that the gateway has recorded are kept for `history` and for repeated orders, but not without end.
const KEEP_RESULTS: usize = 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record")]
pub(crate) enum Record {
    /// First line of a compacted journal: orders up to this one were accepted once.
    Highest { sequence: Sequence },
    /// An order was verified and will be carried out.
    Accepted(Box<Accepted>),
    /// The package manager is about to be let go.
    Started(Box<Started>),
    /// The command that restarts the machine is about to be run.
    Restarting(Box<Restarting>),
    /// An order ended. Also written, without `Accepted`, for a well-signed order that was refused.
    Finished(Box<Finished>),
    /// The gateway has the result.
    Recorded { digest: String },
}

/// See [`Record::Accepted`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// Digest of the order.
    pub(crate) digest: String,
    /// The order itself: what is carried out is what was verified.
    pub(crate) order: Order,
    /// When.
    pub(crate) at: Timestamp,
}

/// See [`Record::Started`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// Digest of the order.
    pub(crate) digest: String,
    /// 1 for the first time.
    pub(crate) attempt: u32,
    /// Nonce of the grant.
    pub(crate) nonce: String,
    /// When.
    pub(crate) at: Timestamp,
    /// When it was for the first time, if this is a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_at: Option<Timestamp>,
    /// The process that runs the package manager.
    pub(crate) process: Process,
    /// One for each action: what is known of it already, or nothing for those that are carried out now.
    pub(crate) settled: Vec<Option<ActionResult>>,
}

impl Started {
    /// When the order was first started.
    pub(crate) fn since(&self) -> Timestamp {
        self.first_at.unwrap_or(self.at)
    }
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Process number.
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub(crate) start_time: u64,
    /// The boot it belongs to.
    pub(crate) boot_id: String,
}

/// See [`Record::Restarting`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restarting {
    /// Digest of the order.
    pub(crate) digest: String,
    /// The boot that is to end: another one is the proof of the restart.
    pub(crate) boot_id: String,
    /// 1 for the order's first restart.
    pub(crate) number: u32,
    /// How often the command has been run for this restart, with this time.
    pub(crate) run: u32,
    /// When the controller allowed it: a grant counts for a minute.
    pub(crate) granted_at: Timestamp,
    /// When.
    pub(crate) at: Timestamp,
    /// One for each action: what came of it, or nothing for the restart that is an order's only action.
    pub(crate) settled: Vec<Option<ActionResult>>,
}

/// See [`Record::Finished`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    /// Digest of the order.
    pub(crate) digest: String,
    /// The order's sequence.
    pub(crate) sequence: Sequence,
    /// The signed result.
    pub(crate) result: Envelope<InstallResult>,
}

/// An order that is not finished.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Active {
    /// The order.
    pub(crate) accepted: Accepted,
    /// The last start, if there was one.
    pub(crate) started: Option<Started>,
    /// The last restart that was begun, if there was one.
    pub(crate) restarting: Option<Restarting>,
}

/// A finished order and whether the gateway has its result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// The result.
    pub(crate) finished: Finished,
    /// Whether it need not be sent again.
    pub(crate) recorded: bool,
}

/// What the records add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// The highest sequence that was ever accepted (or refused by a signed result).
    pub(crate) highest: Option<Sequence>,
    /// The order at work.
    pub(crate) active: Option<Active>,
    /// Finished orders, oldest first.
    pub(crate) outcomes: Vec<Outcome>,
}

impl History {
    /// The finished order of this digest.
    pub(crate) fn outcome(&self, digest: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.finished.digest == digest)
    }

    /// Results that the gateway has not confirmed.
    pub(crate) fn unrecorded(&self) -> impl Iterator<Item = &Finished> {
        self.outcomes.iter().filter(|outcome| !outcome.recorded).map(|outcome| &outcome.finished)
    }

    /// Adds a record; the error says why it cannot follow the ones before.
    fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Highest { sequence } => self.raise(sequence),
            Record::Accepted(accepted) => {
                if let Some(active) = &self.active {
                    return Err(format!(
                        "an order is accepted while {} is not finished",
                        active.accepted.order.sequence
                    ));
                }
                if self.highest.is_some_and(|highest| accepted.order.sequence <= highest) {
                    return Err(format!("order {} is accepted a second time", accepted.order.sequence));
                }
                self.raise(accepted.order.sequence);
                self.active = Some(Active { accepted: *accepted, started: None, restarting: None });
            }
            Record::Started(started) => match &mut self.active {
                Some(active) if active.accepted.digest == started.digest => active.started = Some(*started),
                _ => return Err("an order is started that was not accepted".to_owned()),
            },
            Record::Restarting(restarting) => match &mut self.active {
                Some(active) if active.accepted.digest == restarting.digest => active.restarting = Some(*restarting),
                _ => return Err("the machine is restarted for an order that was not accepted".to_owned()),
            },
            Record::Finished(finished) => {
                match &self.active {
                    Some(active) if active.accepted.digest == finished.digest => self.active = None,
                    Some(active) => {
                        return Err(format!("an order ends while {} is not finished", active.accepted.order.sequence));
                    }
                    None if self.highest.is_some_and(|highest| finished.sequence <= highest) => {
                        return Err(format!("order {} is finished that was not accepted", finished.sequence));
                    }
                    None => self.raise(finished.sequence),
                }
                self.outcomes.push(Outcome { finished: *finished, recorded: false });
            }
            Record::Recorded { digest } => {
                match self.outcomes.iter_mut().find(|outcome| outcome.finished.digest == digest) {
                    Some(outcome) => outcome.recorded = true,
                    None => return Err("a result is recorded that does not exist".to_owned()),
                }
            }
        }
        Ok(())
    }

    fn raise(&mut self, sequence: Sequence) {
        self.highest = self.highest.max(Some(sequence));
    }

    /// Drops old recorded results and returns the shortest list of records that says the same.
    fn compact(&mut self) -> Vec<Record> {
        let recorded = self.outcomes.iter().filter(|outcome| outcome.recorded).count();
        let mut surplus = recorded.saturating_sub(KEEP_RESULTS);
        self.outcomes.retain(|outcome| {
            let drop = outcome.recorded && surplus > 0;
            surplus -= usize::from(drop);
            !drop
        });
        // Sequences only rise, so results in their order replay without their `Accepted`; what is above them all comes
        // from an active order, or from results that were dropped, which `Highest` stands for at the end.
        let mut records = Vec::new();
        for Outcome { finished, recorded } in &self.outcomes {
            records.push(Record::Finished(Box::new(finished.clone())));
            if *recorded {
                records.push(Record::Recorded { digest: finished.digest.clone() });
            }
        }
        match &self.active {
            Some(Active { accepted, started, restarting }) => {
                records.push(Record::Accepted(Box::new(accepted.clone())));
                records.extend(started.clone().map(|started| Record::Started(Box::new(started))));
                records.extend(restarting.clone().map(|restarting| Record::Restarting(Box::new(restarting))));
            }
            None => records.extend(self.highest.map(|sequence| Record::Highest { sequence })),
        }
        records
    }
}

/// What is wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error(
        "{path}: line {line} cannot be read ({why}): what this agent did is not known, so it takes no orders. Look at the \
         file and at the package manager's own log, then run `patchwarden-agent journal reset` (it keeps a copy)"
    )]
    Corrupt { path: PathBuf, line: usize, why: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: an earlier write failed and could not be taken back: restart the agent")]
    Poisoned { path: PathBuf },
    #[error("{path}: {why}")]
    Impossible { path: PathBuf, why: String },
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    poisoned: bool,
    history: History,
}

impl Journal {
    /// Opens or creates the journal and replays it.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let existing = files::read_if_exists(path).map_err(io)?;
        let created = existing.is_none();
        let bytes = existing.unwrap_or_default();
        let Replay { history, whole } =
            replay(&bytes).map_err(|(line, why)| JournalError::Corrupt { path: path.to_owned(), line, why })?;
        let file = OpenOptions::new().append(true).create(true).mode(files::PRIVATE).open(path).map_err(io)?;
        let length = u64::try_from(whole).map_err(|error| io(io::Error::other(error)))?;
        if whole < bytes.len() {
            tracing::warn!(
                "{}: the last line is torn, as after a crash: {} bytes that were never acted on are cut off",
                path.display(),
                bytes.len() - whole
            );
            file.set_len(length).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        if created {
            file.sync_all().map_err(io)?;
            if let Some(directory) = path.parent() {
                files::sync_directory(directory).map_err(io)?;
            }
        }
        Ok(Self { path: path.to_owned(), file, length, poisoned: false, history })
    }

    /// Replays the file without changing anything.
    pub(crate) fn read(path: &Path) -> Result<History, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let bytes = files::read_if_exists(path).map_err(io)?.unwrap_or_default();
        let corrupt = |(line, why)| JournalError::Corrupt { path: path.to_owned(), line, why };
        Ok(replay(&bytes).map_err(corrupt)?.history)
    }

    /// What the records add up to.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// Writes a record durably. After an error nothing has changed.
    pub(crate) fn append(&mut self, record: Record) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned { path: self.path.clone() });
        }
        let mut next = self.history.clone();
        let line = encode(&record).map_err(|source| self.io(source))?;
        next.apply(record).map_err(|why| JournalError::Impossible { path: self.path.clone(), why })?;
        if let Err(source) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            // Half a line may be there: the next record must not follow it.
            self.poisoned = self.file.set_len(self.length).and_then(|()| self.file.sync_data()).is_err();
            return Err(self.io(source));
        }
        self.length += line.len() as u64;
        self.history = next;
        if self.length > COMPACT_ABOVE {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for record in self.history.compact() {
            bytes.extend(encode(&record).map_err(|source| self.io(source))?);
        }
        files::write_atomic(&self.path, &bytes, files::PRIVATE).map_err(|source| self.io(source))?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(|source| {
            self.poisoned = true;
            self.io(source)
        })?;
        self.length = bytes.len() as u64;
        Ok(())
    }

    fn io(&self, source: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), source }
    }
}

/// Puts the journal aside and begins a new one that only remembers `highest`. Returns where the old one is.
pub(crate) fn reset(path: &Path, highest: Option<Sequence>, now: Timestamp) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", now.strftime("%Y%m%dT%H%M%SZ")));
    let aside = PathBuf::from(aside);
    fs::copy(path, &aside)?;
    File::open(&aside)?.sync_all()?;
    let first = highest.map(|sequence| encode(&Record::Highest { sequence })).transpose()?.unwrap_or_default();
    files::write_atomic(path, &first, files::PRIVATE)?;
    Ok(aside)
}

/// The highest sequence that any readable line of a damaged journal mentions.
pub(crate) fn salvage_highest(bytes: &[u8]) -> Option<Sequence> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| match decode(line).ok()? {
            Record::Highest { sequence } => Some(sequence),
            Record::Accepted(accepted) => Some(accepted.order.sequence),
            Record::Finished(finished) => Some(finished.sequence),
            Record::Started(_) | Record::Restarting(_) | Record::Recorded { .. } => None,
        })
        .max()
}

struct Replay {
    history: History,
    /// Bytes up to the end of the last good line.
    whole: usize,
}

fn replay(bytes: &[u8]) -> Result<Replay, (usize, String)> {
    let mut history = History::default();
    let mut whole = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let last = whole + line.len() == bytes.len();
        let text = line.strip_suffix(b"\n");
        let torn = text.is_none();
        match decode(text.unwrap_or(line)) {
            Ok(_) if torn => break,
            Ok(record) => history.apply(record).map_err(|why| (index + 1, why))?,
            Err(Undecodable::Torn) if last => break,
            Err(why) => return Err((index + 1, why.to_string())),
        }
        whole += line.len();
    }
    Ok(Replay { history, whole })
}

#[derive(Debug, thiserror::Error)]
enum Undecodable {
    #[error("its checksum does not fit")]
    Torn,
    #[error("bytes follow a whole record")]
    Trailing,
    #[error("its checksum fits, but its content is unknown to this version: {0}")]
    Unknown(serde_json::Error),
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record).map_err(io::Error::other)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

fn decode(line: &[u8]) -> Result<Record, Undecodable> {
    let (Some(sum), Some(b' '), Some(json)) = (line.get(..8), line.get(8), line.get(9..)) else {
        return Err(Undecodable::Torn);
    };
    // Only the form that `encode` writes: `from_str_radix` would also take upper case and a sign.
    let hexadecimal = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let sum = std::str::from_utf8(sum)
        .ok()
        .filter(|sum| sum.as_bytes().iter().all(hexadecimal))
        .and_then(|sum| u32::from_str_radix(sum, 16).ok())
        .ok_or(Undecodable::Torn)?;
    if crc32fast::hash(json) == sum {
        return serde_json::from_slice(json).map_err(Undecodable::Unknown);
    }
    // A line break that was damaged joins two lines. Without this check the joined line, being the last, would pass
    // for a torn one, and a record that was acted on would be forgotten.
    let mut hasher = crc32fast::Hasher::new();
    for byte in json {
        hasher.update(std::slice::from_ref(byte));
        if *byte == b'}' && hasher.clone().finalize() == sum {
            return Err(Undecodable::Trailing);
        }
    }
    Err(Undecodable::Torn)
}

#[cfg(test)]
pub(crate) mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::order::Dependencies;
    use patchwarden_protocol::report::{DeviceRef, Tristate};
    use patchwarden_protocol::result::Outcome as ResultOutcome;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + second).unwrap()
    }

    fn device() -> DeviceRef {
        DeviceRef { namespace: "acme".into(), name: "web-1".into() }
    }

    fn accepted(number: u32) -> Record {
        let order = Order {
            device: device(),
            device_key: PrivateKey::generate().public().fingerprint(),
            sequence: Sequence { epoch: 1, number },
            actions: vec![],
            dependencies: Dependencies::Strict,
            report_digest: "sha256:r".into(),
            decisions_digest: "sha256:d".into(),
            policy: "p".into(),
            not_before: at(0),
            not_after: at(100),
            limit_seconds: 60,
            restart: patchwarden_protocol::order::RestartRule::never(),
        };
        Record::Accepted(Box::new(Accepted { digest: format!("sha256:{number}"), order, at: at(1) }))
    }

    fn started(number: u32) -> Record {
        Record::Started(Box::new(Started {
            digest: format!("sha256:{number}"),
            attempt: 1,
            nonce: "n".into(),
            at: at(2),
            first_at: None,
            process: Process { pid: 7, start_time: 9, boot_id: "b".into() },
            settled: vec![None],
        }))
    }

    fn restarting(number: u32, restart: u32) -> Record {
        Record::Restarting(Box::new(Restarting {
            digest: format!("sha256:{number}"),
            boot_id: format!("boot-{restart}"),
            number: restart,
            run: 1,
            granted_at: at(2),
            at: at(3),
            settled: vec![None],
        }))
    }

    fn finished(number: u32) -> Record {
        let key = PrivateKey::generate();
        let result = InstallResult {
            device: device(),
            device_key: key.public().fingerprint(),
            sequence: Sequence { epoch: 1, number },
            order_digest: format!("sha256:{number}"),
            outcome: ResultOutcome::Succeeded,
            reason: None,
            message: String::new(),
            actions: vec![],
            started_at: at(1),
            finished_at: at(3),
            restart_required: Tristate::Unknown,
            restarts: 0,
            restart_postponed: String::new(),
        };
        Record::Finished(Box::new(Finished {
            digest: format!("sha256:{number}"),
            sequence: Sequence { epoch: 1, number },
            result: Envelope::seal(&result, &key).unwrap(),
        }))
    }

    fn recorded(number: u32) -> Record {
        Record::Recorded { digest: format!("sha256:{number}") }
    }

    /// Two whole orders, one refused without being accepted, and one at work.
    fn story() -> Vec<Record> {
        let mut records = vec![];
        for number in [1, 2] {
            records.extend([accepted(number), started(number), started(number), restarting(number, 1)]);
            records.extend([finished(number), recorded(number)]);
        }
        records.extend([finished(4), accepted(5), started(5), restarting(5, 1), restarting(5, 2)]);
        records
    }

    fn bytes_of(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(|record| encode(record).unwrap()).collect()
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<Journal, JournalError>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        fs::write(&path, bytes).unwrap();
        let journal = Journal::open(&path);
        (directory, journal)
    }

    #[test]
    fn what_was_appended_is_there_after_opening_again() {
        let (directory, journal) = open(b"");
        let mut journal = journal.unwrap();
        for record in story() {
            journal.append(record).unwrap();
        }
        let history = journal.history().clone();
        assert_eq!(history.highest, Some(Sequence { epoch: 1, number: 5 }));
        assert_eq!(history.unrecorded().count(), 1);
        drop(journal);
        assert_eq!(*Journal::open(&directory.path().join("journal")).unwrap().history(), history);
    }

    #[test]
    fn records_that_cannot_follow_each_other_are_refused_and_leave_the_file_alone() {
        for (before, bad) in [
            (vec![], started(1)),
            (vec![], recorded(1)),
            (vec![], restarting(1, 1)),
            (vec![accepted(2)], restarting(1, 1)),
            (vec![accepted(1), finished(1)], restarting(1, 1)),
            (vec![accepted(1)], accepted(2)),
            (vec![accepted(2), finished(2)], accepted(1)),
            (vec![accepted(2), finished(2)], finished(2)),
            (vec![accepted(2)], finished(3)),
        ] {
            let (directory, journal) = open(&bytes_of(&before));
            let mut journal = journal.unwrap();
            let history = journal.history().clone();
            assert!(matches!(journal.append(bad), Err(JournalError::Impossible { .. })));
            assert_eq!(Journal::read(&directory.path().join("journal")).unwrap(), history);
        }
    }

    #[test]
    fn compacting_changes_nothing_but_the_oldest_recorded_results() {
        let mut history = History::default();
        for number in 1..=30 {
            for record in [accepted(number), started(number), finished(number), recorded(number)] {
                history.apply(record).unwrap();
            }
        }
        for tail in [
            vec![],
            vec![finished(31)],
            vec![accepted(31), started(31)],
            vec![accepted(31), started(31), restarting(31, 1), restarting(31, 2)],
            vec![accepted(31), restarting(31, 1)],
        ] {
            let mut history = history.clone();
            for record in tail {
                history.apply(record).unwrap();
            }
            let bytes = bytes_of(&history.compact());
            assert_eq!(history.outcomes.iter().filter(|o| o.recorded).count(), KEEP_RESULTS);
            assert_eq!(replay(&bytes).unwrap().history, history);
        }
    }

    #[test]
    fn a_large_journal_compacts_itself() {
        let (directory, journal) = open(b"");
        let mut journal = journal.unwrap();
        for number in 1..=400 {
            for record in [accepted(number), started(number), finished(number), recorded(number)] {
                journal.append(record).unwrap();
            }
        }
        let path = directory.path().join("journal");
        assert!(fs::metadata(&path).unwrap().len() <= COMPACT_ABOVE);
        assert_eq!(Journal::read(&path).unwrap(), *journal.history());
        assert_eq!(journal.history().highest, Some(Sequence { epoch: 1, number: 400 }));
    }

    #[test]
    fn a_reset_keeps_a_copy_and_the_highest_sequence() {
        let mut bytes = bytes_of(&story());
        bytes[20] ^= 1;
        let (directory, journal) = open(&bytes);
        let path = directory.path().join("journal");
        let error = journal.unwrap_err().to_string();
        assert!(error.contains("journal: line 1 cannot be read") && error.contains("journal reset"), "{error}");
        let aside = reset(&path, salvage_highest(&bytes), at(0)).unwrap();
        assert_eq!(fs::read(aside).unwrap(), bytes);
        let history = Journal::open(&path).unwrap().history().clone();
        assert_eq!(history, History { highest: Some(Sequence { epoch: 1, number: 5 }), ..History::default() });
    }

    #[test]
    fn a_start_of_an_earlier_version_is_read() {
        let Record::Started(started) = started(1) else { unreachable!() };
        let json = serde_json::to_string(&Record::Started(started.clone())).unwrap();
        assert!(!json.contains("first_at"), "{json}");
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), Record::Started(started));
    }

    #[test]
    fn a_record_of_a_later_version_is_not_taken_for_a_torn_one() {
        let json = br#"{"record":"Novelty"}"#;
        let mut bytes = format!("{:08x} ", crc32fast::hash(json)).into_bytes();
        bytes.extend_from_slice(json);
        bytes.push(b'\n');
        assert!(replay(&bytes).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_journal_cut_anywhere_recovers_the_whole_lines_before_the_cut(cut in any::<prop::sample::Index>()) {
            let records = story();
            let bytes = bytes_of(&records);
            let cut = cut.index(bytes.len() + 1);
            let lines = bytes[..cut].split(|byte| *byte == b'\n').count() - 1;
            let mut expected = History::default();
            for record in &records[..lines] {
                expected.apply(record.clone()).unwrap();
            }
            let (directory, journal) = open(&bytes[..cut]);
            prop_assert_eq!(journal.unwrap().history().clone(), expected);
            let path = directory.path().join("journal");
            prop_assert_eq!(fs::read(&path).unwrap(), bytes_of(&records[..lines]));
        }

        #[test]
        fn a_flipped_bit_before_the_last_line_is_noticed(place in any::<prop::sample::Index>(), bit in 0..8u8) {
            let records = story();
            let mut bytes = bytes_of(&records);
            let before = bytes.len() - encode(records.last().unwrap()).unwrap().len();
            bytes[place.index(before)] ^= 1 << bit;
            let noticed = matches!(open(&bytes).1, Err(JournalError::Corrupt { .. }));
            prop_assert!(noticed);
        }
    }
}
