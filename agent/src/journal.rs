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
//! Beside them, wherever a hook begins or ends, `Guarded`; and once a check has failed after it, `RollingBack` (again when the
//! package manager is let go for that, and after a crash) instead of all others but `Finished`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::order::{Action, Order, PackageChange, Sequence};
use patchwarden_protocol::result::{ActionResult, InstallResult, ResultReason, Step, StepResult};
use serde::{Deserialize, Serialize};

use crate::boot::Trial;
use crate::execute::Ending;
use crate::files;

/// Above this many bytes the file is rewritten with what still counts.
const COMPACT_ABOVE: u64 = 256 * 1024;

/// Results that the gateway has recorded are kept for `history` and for repeated orders, but not without end.
const KEEP_RESULTS: usize = 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record")]
pub(crate) enum Record {
    /// Orders up to this one were accepted once, or will not be any more: an epoch has begun.
    Highest { sequence: Sequence },
    /// An order was verified and will be carried out.
    Accepted(Box<Accepted>),
    /// The package manager is about to be let go.
    Started(Box<Started>),
    /// A hook is about to be let go, or has ended; or checks have.
    Guarded(Box<Guarded>),
    /// The command that restarts the machine is about to be run.
    Restarting(Box<Restarting>),
    /// A check failed, and what was installed is to be taken back; or the package manager is about to be let go for it.
    RollingBack(Box<RollingBack>),
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
    /// Which actions the package manager was let go for, this time or before.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) tried: BTreeSet<usize>,
    /// What the package manager was to do to other packages, this time or before: to bring them to later versions, or to remove them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) beside: Vec<PackageChange>,
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
    /// When it started: in clock ticks since boot on Linux (field 22 of proc_pid_stat(5)), in seconds since 1970 on Windows.
    pub(crate) start_time: u64,
    /// The boot it belongs to.
    pub(crate) boot_id: String,
}

/// See [`Record::Guarded`]: all that is known of an order's hooks and checks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guarded {
    /// Digest of the order.
    pub(crate) digest: String,
    /// What came of them, in the order in which they ended.
    pub(crate) steps: Vec<StepResult>,
    /// The hook that was let go last, if it has not ended.
    pub(crate) running: Option<Script>,
    /// Whether any hook was let go.
    #[serde(default)]
    pub(crate) has_begun: bool,
    /// Whether a hook asked for a restart.
    pub(crate) asks_restart: bool,
    /// How the actions ended, once hooks follow.
    pub(crate) ending: Option<Ending>,
    /// Of each update that is installed, where it may be taken back by itself.
    #[serde(default)]
    pub(crate) ways_back: Vec<WayBack>,
    /// Services that were restarted, or are about to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) services: Vec<TriedService>,
}

/// A service that was restarted for an order, whatever came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TriedService {
    /// After the actions or after the way back.
    pub(crate) step: Step,
    /// Its unit.
    pub(crate) unit: String,
}

/// What would take an update back, with its files saved; or why nothing would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WayBack {
    /// The update's id.
    pub(crate) update: String,
    /// What would.
    pub(crate) action: Option<Action>,
    /// Why nothing would.
    pub(crate) why: String,
}

/// A hook that was let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Script {
    /// Before the actions or after them.
    pub(crate) step: Step,
    /// 1 for the first time.
    pub(crate) run: u32,
    /// The process that runs it.
    pub(crate) process: Process,
    /// When.
    pub(crate) at: Timestamp,
}

impl Guarded {
    /// Nothing yet.
    pub(crate) fn new(digest: String) -> Self {
        Self {
            digest,
            steps: Vec::new(),
            running: None,
            has_begun: false,
            asks_restart: false,
            ending: None,
            ways_back: Vec::new(),
            services: Vec::new(),
        }
    }

    /// What came of hooks or checks of one kind.
    pub(crate) fn of(&self, step: Step) -> impl Iterator<Item = &StepResult> {
        self.steps.iter().filter(move |result| result.step == step)
    }

    /// The units of services that were restarted in this step.
    pub(crate) fn tried(&self, step: Step) -> impl Iterator<Item = &str> {
        self.services.iter().filter(move |service| service.step == step).map(|service| service.unit.as_str())
    }
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
    /// The kernel that this restart tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trial: Option<Trial>,
}

/// See [`Record::RollingBack`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RollingBack {
    /// Digest of the order.
    pub(crate) digest: String,
    /// When the check had failed.
    pub(crate) at: Timestamp,
    /// How the order would have ended without this.
    pub(crate) ending: Ending,
    /// Restarts that there were.
    pub(crate) restarts: u32,
    /// Why a restart that was due did not take place.
    pub(crate) restart_postponed: Option<String>,
    /// What kind of reason that is; `RestartPostponed` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restart_reason: Option<ResultReason>,
    /// What is taken back.
    pub(crate) actions: Vec<Action>,
    /// The last start of the package manager for it, if there was one.
    pub(crate) started: Option<Started>,
    /// The kernel that is taken back, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<KernelBack>,
}

/// A kernel that is taken back: it stays installed, and the earlier one is started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KernelBack {
    /// How it was tried.
    pub(crate) trial: Trial,
    /// Ids of the updates that brought it.
    pub(crate) updates: Vec<String>,
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
    /// What is known of its hooks and checks, if anything is.
    pub(crate) guarded: Option<Guarded>,
    /// The last restart that was begun, if there was one.
    pub(crate) restarting: Option<Restarting>,
    /// The way back, once it was begun.
    pub(crate) rolling_back: Option<RollingBack>,
}

impl Active {
    /// The actions that the package manager was let go for, and those of the way back.
    pub(crate) fn tried(&self) -> Vec<&Action> {
        let of = |started: &Option<Started>, actions| -> Vec<&Action> {
            let tried = started.iter().flat_map(|started| &started.tried);
            tried.filter_map(|index| <[Action]>::get(actions, *index)).collect()
        };
        let mut tried = of(&self.started, &self.accepted.order.actions[..]);
        tried.extend(self.rolling_back.iter().flat_map(|rolling| of(&rolling.started, &rolling.actions[..])));
        tried
    }

    /// Whether the package manager was to change or remove packages that the order does not name.
    pub(crate) fn has_touched_others(&self) -> bool {
        self.started.as_ref().is_some_and(|started| !started.beside.is_empty())
    }

    /// Of an order that nothing was done for.
    pub(crate) fn new(accepted: Accepted) -> Self {
        Self { accepted, started: None, guarded: None, restarting: None, rolling_back: None }
    }
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
            Record::Highest { sequence } => {
                // After a restore nobody may know any more what came of the orders before.
                if sequence.number == 0 && self.highest < Some(sequence) {
                    self.outcomes.iter_mut().for_each(|outcome| outcome.recorded = false);
                }
                self.raise(sequence);
            }
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
                self.active = Some(Active::new(*accepted));
            }
            Record::Started(started) => match &mut self.active {
                Some(active) if active.accepted.digest == started.digest => active.started = Some(*started),
                _ => return Err("an order is started that was not accepted".to_owned()),
            },
            Record::Guarded(guarded) => match &mut self.active {
                Some(active) if active.accepted.digest == guarded.digest => active.guarded = Some(*guarded),
                _ => return Err("a hook runs for an order that was not accepted".to_owned()),
            },
            Record::Restarting(restarting) => match &mut self.active {
                Some(active) if active.accepted.digest == restarting.digest => active.restarting = Some(*restarting),
                _ => return Err("the machine is restarted for an order that was not accepted".to_owned()),
            },
            Record::RollingBack(rolling) => match &mut self.active {
                Some(active) if active.accepted.digest == rolling.digest => active.rolling_back = Some(*rolling),
                _ => return Err("an order is rolled back that was not accepted".to_owned()),
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
        records.extend(self.outcomes.iter().map(|outcome| Record::Finished(Box::new(outcome.finished.clone()))));
        match &self.active {
            Some(Active { accepted, started, guarded, restarting, rolling_back }) => {
                records.push(Record::Accepted(Box::new(accepted.clone())));
                records.extend(started.clone().map(|started| Record::Started(Box::new(started))));
                records.extend(guarded.clone().map(|guarded| Record::Guarded(Box::new(guarded))));
                records.extend(restarting.clone().map(|restarting| Record::Restarting(Box::new(restarting))));
                records.extend(rolling_back.clone().map(|rolling| Record::RollingBack(Box::new(rolling))));
            }
            None => records.extend(self.highest.map(|sequence| Record::Highest { sequence })),
        }
        // Behind `Highest`, which may begin an epoch.
        let recorded = self.outcomes.iter().filter(|outcome| outcome.recorded);
        records.extend(recorded.map(|outcome| Record::Recorded { digest: outcome.finished.digest.clone() }));
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
        let file = files::options(files::PRIVATE).append(true).create(true).open(path).map_err(io)?;
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
        // The record counts, whatever becomes of the tidying: it is tried again with the next one.
        if self.length > COMPACT_ABOVE
            && let Err(error) = self.compact()
        {
            tracing::warn!("{}: cannot be made shorter: {error}", self.path.display());
        }
        Ok(())
    }

    fn compact(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in self.history.compact() {
            bytes.extend(encode(&record)?);
        }
        let written = files::write_atomic(&self.path, &bytes, files::PRIVATE);
        // Also after an error, when the name may stand for either file: records go on behind the one that a crash would leave.
        let (file, length) = self.reopen().inspect_err(|_| self.poisoned = true)?;
        self.file = file;
        self.length = length;
        written
    }

    fn reopen(&self) -> io::Result<(File, u64)> {
        if let Some(directory) = self.path.parent() {
            files::sync_directory(directory)?;
        }
        let file = OpenOptions::new().append(true).open(&self.path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
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
            Record::Started(_)
            | Record::Guarded(_)
            | Record::Restarting(_)
            | Record::RollingBack(_)
            | Record::Recorded { .. } => None,
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
    Ok(sealed(&serde_json::to_vec(record).map_err(io::Error::other)?))
}

fn sealed(json: &[u8]) -> Vec<u8> {
    let mut line = format!("{:08x} ", crc32fast::hash(json)).into_bytes();
    line.extend_from_slice(json);
    line.push(b'\n');
    line
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

/// Any bytes in the place of a journal, and of one whose checksums fit.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let fitting: Vec<u8> = lines.flat_map(sealed).collect();
    for bytes in [bytes, &fitting] {
        let highest = salvage_highest(bytes);
        let Ok(Replay { mut history, whole }) = replay(bytes) else { continue };
        assert!(whole <= bytes.len());
        assert!(whole < bytes.len() || history.highest >= highest, "an order that was accepted is forgotten");
        let lines: io::Result<Vec<Vec<u8>>> = history.compact().iter().map(encode).collect();
        let again = lines.map(|lines| replay(&lines.concat()).map(|replay| replay.history));
        assert!(matches!(again, Ok(Ok(again)) if again == history), "what was made shorter says something else");
    }
}

#[cfg(test)]
pub(crate) mod tests;
