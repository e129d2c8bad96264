//! The lasting record of each client's history, in the gateway's store: read before a client is planned from it for the first time,
//! and told what passes decide. Nothing waits for the store but a policy of which nothing is known.
//!
//! ```text
//!   status ---> snapshot ---> plan ---> status ---> note --.
//!                  ^                                       v
//!                  `------- complete <------------------ Held <---- read, written in the background ----> store
//! ```
//!
//! - What a pass decides is in status before anything follows from it. The store is told afterwards, as soon as it can be reached:
//!   it is for what happens to status later.
//! - While the store cannot be reached, status counts alone, with what the store told before. A policy without a status of its own,
//!   which may be one that was deleted or restored, waits: what is not known blocks.
//! - What is told are differences, and what is still offered once in 30 days. The store is read again when it was opened anew, since
//!   it may be a backup then.

mod held;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use patchwarden_protocol::record_v1::record_client::RecordClient;
use patchwarden_protocol::record_v1::{ReadRequest, WriteRequest};
use patchwarden_protocol::{MAX_RECORD_BYTES, MAX_RECORD_ENTRIES};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub use self::held::Decided;
use self::held::Held;
use super::metrics::Metrics;
use crate::api::PatchPolicy;
use crate::gateway_client::{NoToken, authorized, channel};
use crate::plan::Snapshot;
use crate::plan::model::Name;
use crate::record::{self, BadEntry, Entries};
use crate::status;

/// How long a pass waits for what the store tells of a client that is new to this controller.
const FIRST_READ: Duration = Duration::from_secs(5);

/// One call, and the reading of a whole record.
const WRITE_TIME: Duration = Duration::from_secs(10);
const READ_TIME: Duration = Duration::from_mins(1);

/// The first pause after a failed call, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the store refuses for a client is tried again after so long; the others are not kept waiting.
const REFUSED_FOR: Duration = Duration::from_mins(10);

/// With nothing to tell the store is asked so often whether it still is the one that was read.
const CHECK_EVERY: Duration = Duration::from_mins(5);

/// Who signs entries of the record, and who has before: those count, too.
#[derive(Clone, Copy)]
pub struct Signers<'k> {
    /// Signs.
    pub key: &'k PrivateKey,
    /// Have signed.
    pub before: &'k [PublicKey],
}

/// Where the store is, and who this is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// URL of a gateway's runners' door.
    pub url: String,
    /// File of this controller's service-account token for the gateway.
    pub token_file: PathBuf,
    /// Patchwarden's own namespace.
    pub namespace: String,
}

/// The record of all clients. One for a leadership.
pub struct Recorder {
    settings: Settings,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// There is something to read or to tell.
    work: Notify,
    /// A call has ended, well or not.
    called: watch::Sender<()>,
    /// A record was read: what was planned without it is to be planned again.
    read: Notify,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<String, Client>,
    /// Which opening of the store answered last.
    store: String,
    reachable: Reachable,
}

/// Whether the store can be reached, and why not, as far as it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reachable {
    #[default]
    Untried,
    Yes,
    No(Code),
}

#[derive(Default)]
struct Client {
    held: Held,
    readings: u64,
    /// Whether somebody has tried to read it, with success or without.
    tried: bool,
    /// Whether it is to be read again.
    stale: bool,
    /// Entries were refused that were decided without what the store has: so often since the last that were not.
    conflicts: u32,
    /// The store refuses something: until then nothing is tried.
    refused_until: Option<Instant>,
}

/// What is to be done next.
enum Task {
    Read(String),
    Write(String, Entries),
    /// Ask whether the store is still the one that was read.
    Check,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Token(#[from] NoToken),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("no answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the answer cannot be read: {0}")]
    Answer(#[from] BadEntry),
    #[error("an entry cannot be signed: {0}")]
    Unsigned(#[from] NotCanonical),
}

impl CallError {
    fn code(&self) -> Code {
        match self {
            Self::Token(_) => Code::Unauthenticated,
            Self::Status(status) => status.code(),
            Self::Timeout(_) => Code::DeadlineExceeded,
            Self::Answer(_) => Code::DataLoss,
            Self::Unsigned(_) => Code::InvalidArgument,
        }
    }
}

impl Recorder {
    /// Of nobody yet.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            settings,
            metrics,
            state: Mutex::default(),
            work: Notify::new(),
            called: watch::Sender::new(()),
            read: Notify::new(),
        }
    }

    /// Sees to it that the records of these clients are read, and waits for a moment for those that are new. Forgets the others,
    /// once the store has all of them.
    pub async fn attend(&self, namespaces: impl Iterator<Item = &String>) {
        let wait = {
            let mut state = self.state();
            let present: BTreeSet<&String> = namespaces.collect();
            state.clients.retain(|namespace, client| present.contains(namespace) || client.held.unsent() > 0);
            for namespace in present {
                state.clients.entry(namespace.clone()).or_default();
            }
            self.measure(&state);
            !matches!(state.reachable, Reachable::No(_)) && !state.all_tried()
        };
        self.work.notify_one();
        if wait {
            let mut called = self.called.subscribe();
            let tried = called.wait_for(|()| self.state().all_tried());
            // Whoever could not be read in time is planned by status alone; that is told where the call fails.
            let _ = tokio::time::timeout(FIRST_READ, tried).await;
        }
    }

    /// Returns when a record was read that passes have not seen yet.
    pub async fn news(&self) {
        self.read.notified().await;
    }

    /// Adds to a snapshot what the record knows beside status. Returns the policies of which status told less.
    pub fn complete(&self, namespace: &str, snapshot: &mut Snapshot) -> BTreeSet<Name> {
        let mut state = self.state();
        state.clients.get_mut(namespace).map(|client| client.held.complete(snapshot)).unwrap_or_default()
    }

    /// The policies for which nothing may begin by a plan that was made when the record had been read so often: before the first time
    /// those that have no status of their own yet.
    pub fn waiting<'p>(readings: u64, policies: impl Iterator<Item = &'p Arc<PatchPolicy>>) -> BTreeSet<Name> {
        if readings > 0 {
            return BTreeSet::new();
        }
        policies
            .filter(|policy| status::is_new(policy))
            .filter_map(|it| it.metadata.name.as_deref())
            .map(Into::into)
            .collect()
    }

    /// How often the store was read for a client: what was planned before does not know what it told since.
    pub fn readings(&self, namespace: &str) -> u64 {
        self.state().clients.get(namespace).map(|client| client.readings).unwrap_or_default()
    }

    /// Takes up what was decided by a plan that was made when the store had been read so often for the client. If it was read again since
    /// then, what was decided does not know what that told: the next plan does.
    pub fn note(&self, namespace: &str, readings: u64, decided: &Decided<'_>, now: Timestamp) {
        let mut state = self.state();
        let Some(client) = state.clients.get_mut(namespace).filter(|client| client.readings == readings) else {
            return;
        };
        client.held.note(decided, now);
        if client.held.unsent() > 0 {
            self.work.notify_one();
        }
        self.measure(&state);
    }

    /// Reads and tells, for ever. `ca` are the CA's certificates in PEM.
    pub async fn run(&self, ca: &str, signers: Signers<'_>, clock: fn() -> Timestamp) {
        let channel = match channel(&self.settings.url, ca) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::error!(url = self.settings.url, %error, "the record's URL or the CA cannot be used: status alone counts");
                self.unreachable(Code::InvalidArgument);
                return std::future::pending().await;
            }
        };
        let client = RecordClient::new(channel)
            .max_decoding_message_size(MAX_RECORD_BYTES)
            .max_encoding_message_size(MAX_RECORD_BYTES);
        let (first, longest) = BACKOFF;
        let mut pause = first;
        let mut check = Instant::now();
        loop {
            let task = match self.next() {
                Some(task) => task,
                None if check <= Instant::now() => Task::Check,
                None => {
                    // In vain or not: what is to be done is looked for again.
                    let _ = tokio::time::timeout_at(check, self.work.notified()).await;
                    continue;
                }
            };
            if self.carry_out(&client, task, signers, clock).await {
                pause = first;
                check = Instant::now() + CHECK_EVERY;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
                check = Instant::now();
            }
        }
    }

    fn next(&self) -> Option<Task> {
        let state = self.state();
        let now = Instant::now();
        let mut free = state.clients.iter().filter(|(_, client)| client.refused_until.is_none_or(|until| until <= now));
        let unread = free.clone().find(|(_, client)| client.stale || !client.held.is_known());
        if let Some((namespace, _)) = unread {
            return Some(Task::Read(namespace.clone()));
        }
        let (namespace, client) = free.find(|(_, client)| client.held.unsent() > 0)?;
        Some(Task::Write(namespace.clone(), client.held.to_send(MAX_RECORD_ENTRIES)))
    }

    /// Whether the store could be reached.
    async fn carry_out(
        &self,
        client: &RecordClient<Channel>,
        task: Task,
        signers: Signers<'_>,
        clock: fn() -> Timestamp,
    ) -> bool {
        let (call, namespace) = match &task {
            Task::Read(namespace) => ("read", namespace.clone()),
            Task::Write(namespace, _) => ("write", namespace.clone()),
            Task::Check => ("check", self.settings.namespace.clone()),
        };
        let done = match task {
            Task::Read(_) => self.read_record(client.clone(), &namespace, signers).await,
            Task::Write(_, entries) => self.write_record(client.clone(), &namespace, entries, signers, clock).await,
            Task::Check => self.write_record(client.clone(), &namespace, Entries::default(), signers, clock).await,
        };
        let (result, reached) = match done {
            Ok(()) => {
                self.reached();
                ("ok", true)
            }
            Err(error) => match error.code() {
                // It is a matter of this client alone.
                Code::Aborted | Code::InvalidArgument | Code::ResourceExhausted | Code::DataLoss => {
                    self.refused(&namespace, &error);
                    ("refused", true)
                }
                code => {
                    self.failed(&error, code);
                    ("failed", false)
                }
            },
        };
        self.metrics.record.calls.with_label_values(&[call, result]).inc();
        let mut state = self.state();
        if let Some(client) = state.clients.get_mut(&namespace) {
            client.tried = true;
        }
        self.measure(&state);
        drop(state);
        self.called.send_replace(());
        reached
    }

    async fn read_record(
        &self,
        mut client: RecordClient<Channel>,
        namespace: &str,
        signers: Signers<'_>,
    ) -> Result<(), CallError> {
        let request = authorized(ReadRequest { namespace: namespace.to_owned() }, &self.settings.token_file).await?;
        let believed: Vec<PublicKey> =
            std::iter::once(signers.key.public()).chain(signers.before.iter().copied()).collect();
        let (mut read, mut unsigned, mut store) = (Entries::default(), 0, String::new());
        let reading = async {
            let mut pages = client.read(request).await?.into_inner();
            while let Some(page) = pages.message().await? {
                store = page.store;
                let mut entries = record::entries(page.entries.unwrap_or_default())?;
                unsigned += entries.drop_unsigned(namespace, &believed);
                let Entries { sightings, progress, pauses } = entries;
                read.sightings.extend(sightings);
                read.progress.extend(progress);
                read.pauses.extend(pauses);
                // Signatures take their time: the passes go on meanwhile.
                tokio::task::yield_now().await;
            }
            Ok::<_, CallError>(())
        };
        tokio::time::timeout(READ_TIME, reading).await??;
        if unsigned > 0 {
            let why = "they count as if they were not there";
            tracing::error!(
                namespace,
                unsigned,
                "the store has entries that this controller's key has not signed: {why}"
            );
            self.metrics.record.unsigned.inc_by(u64::try_from(unsigned).unwrap_or(u64::MAX));
        }
        let entries = read.len();
        let mut state = self.state();
        state.answered(store);
        let Some(client) = state.clients.get_mut(namespace) else { return Ok(()) };
        client.held.read(read);
        client.readings += 1;
        client.stale = false;
        tracing::info!(namespace, entries, unsent = client.held.unsent(), "the record was read");
        drop(state);
        self.read.notify_one();
        Ok(())
    }

    async fn write_record(
        &self,
        mut client: RecordClient<Channel>,
        namespace: &str,
        mut entries: Entries,
        signers: Signers<'_>,
        clock: fn() -> Timestamp,
    ) -> Result<(), CallError> {
        entries.sign(namespace, signers.key)?;
        let message = WriteRequest { namespace: namespace.to_owned(), entries: Some(record::to_wire(entries.clone())) };
        let request = authorized(message, &self.settings.token_file).await?;
        let answer = tokio::time::timeout(WRITE_TIME, client.write(request)).await??.into_inner();
        let mut state = self.state();
        if let Some(client) = state.clients.get_mut(namespace) {
            client.held.sent(&entries, clock());
            client.conflicts = 0;
        }
        state.answered(answer.store);
        Ok(())
    }

    /// The store refused what was told of a client.
    fn refused(&self, namespace: &str, error: &CallError) {
        /// One is what a leader before this one has told last.
        const CONFLICTS: u32 = 2;
        let mut state = self.state();
        let Some(client) = state.clients.get_mut(namespace) else { return };
        if error.code() == Code::Aborted {
            client.conflicts += 1;
            client.stale = true;
            if client.conflicts < CONFLICTS {
                tracing::info!(namespace, %error, "the record is read again");
                return;
            }
        }
        client.conflicts = 0;
        client.refused_until = Some(Instant::now() + REFUSED_FOR);
        let what = "the record of this client can be neither read nor told: status alone counts for it";
        tracing::error!(namespace, %error, "{what}");
    }

    fn failed(&self, error: &CallError, code: Code) {
        if !self.unreachable(code) {
            tracing::debug!(%error, "the record still cannot be reached");
            return;
        }
        let url = &self.settings.url;
        let what = "the record cannot be reached: status alone counts, and policies without a status wait";
        match code {
            // The gateway is away, or restarts.
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled => {
                tracing::warn!(url, %error, "{what}");
            }
            // A person has to do something about it.
            _ => tracing::error!(url, %error, "{what}"),
        }
    }

    /// Whether that is news.
    fn unreachable(&self, code: Code) -> bool {
        let mut state = self.state();
        // Nobody waits for what cannot be read now.
        state.clients.values_mut().for_each(|client| client.tried = true);
        let news = state.reachable != Reachable::No(code);
        state.reachable = Reachable::No(code);
        self.metrics.record.reachable.set(0);
        drop(state);
        self.called.send_replace(());
        news
    }

    fn reached(&self) {
        let before = std::mem::replace(&mut self.state().reachable, Reachable::Yes);
        self.metrics.record.reachable.set(1);
        if before != Reachable::Yes {
            tracing::info!(url = self.settings.url, "the record can be reached");
        }
    }

    fn measure(&self, state: &State) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.record.unsent.set(count(state.clients.values().map(|client| client.held.unsent()).sum()));
        self.metrics.record.unread.set(count(state.clients.values().filter(|it| !it.held.is_known()).count()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn all_tried(&self) -> bool {
        self.clients.values().all(|client| client.tried)
    }

    /// Another opening of the store may be a backup: everything is read again, and told what it lacks.
    fn answered(&mut self, store: String) {
        if self.store != store && !store.is_empty() {
            self.clients.values_mut().filter(|client| client.held.is_known()).for_each(|client| client.stale = true);
            self.store = store;
        }
    }
}
