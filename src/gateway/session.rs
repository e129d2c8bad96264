//! One session of one device, from its first message to its end.
//!
//! ```text
//!   agent  -- Hello, Report, Progress, GrantRequest, Result, Changes --> session --> store, then status.inventory
//!          <- Welcome, SendReport, Settings, Order, Grant, ResultRecorded, ChangesRecorded, Refused --
//!   others -- Deliver, Replaced, "the resource has changed" --> session
//! ```
//!
//! The session holds nothing that a crash could lose: what was accepted is in the store before it is in the resource,
//! and what is in the store and not in the resource is written when the device comes back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::agent_v1::{
    self as wire, FromAgent, ToAgent, from_agent::Message as Inbound, to_agent::Message as Outbound,
};
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::{Report, Software};
use patchwarden_protocol::settings::SignedSettings;
use patchwarden_protocol::surroundings::REPORT_VERSION;
use patchwarden_protocol::{MAX_CLOCK_SKEW_SECONDS, canonical, trust};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::asking::Asking;
use super::budget::Budget;
use super::devices::DeviceError;
use super::identity::Identity;
use super::orders::Line;
use super::pending::{HOLD, Pending};
use super::report::{self, BelievedReport, IncomingReport, Kept, Refusal};
use super::sessions::{Command, Registration};
use super::turns::{self, Turn};
use super::{Shared, clean, limits, recipes, replicas, tail};
use patchwarden_protocol::grant::Purpose;

use crate::api::device_inventory::GrantRequest;
use crate::shell;
use crate::store::{ChangesRecording, Place, Recording, StoreError, StoredReport};

/// An agent says hello at once.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// A device that takes nothing for so long is gone: the same as the keepalive's time.
const SEND_TIME: Duration = Duration::from_secs(20);

/// What costs a write (changed reports, requests, results, changes of packages): so many at once, then one a second. An install needs four.
pub const CHANGES: (u32, Duration) = (20, Duration::from_secs(1));

/// Progress lines that go to the store, the first of each phase: so many at once, then one a second.
const PHASES: (u32, Duration) = (20, Duration::from_secs(1));

/// Progress lines that other gateways are told, for runners that are there: so many at once, then ten a second.
const LINES: (u32, Duration) = (50, Duration::from_millis(100));

/// Kept of what a package manager printed: its tail says why it failed.
const MAX_OUTPUT: usize = 64 * 1024;

/// The maximum of `grantRequest.orderDigest` and `.nonce` in the resource's schema.
const MAX_DIGEST: usize = 71;
const MAX_NONCE: usize = 64;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The device hung up or the network did.
    #[error("disconnected")]
    Disconnected,
    /// The device is not believed any more.
    #[error("{0}")]
    Revoked(String),
    /// The same key has opened another session.
    #[error("another session of this device has begun: is it a copy of this machine?")]
    Replaced,
    /// The device does not speak the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The device takes nothing.
    #[error("the device took no message for 20 s")]
    Stalled,
    /// The other gateways do not know of it.
    #[error("this gateway was cut off from the others")]
    Forgotten,
    /// The gateway ends.
    #[error("this gateway is shutting down")]
    Shutdown,
    /// The database fails: nothing can be accepted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl End {
    /// Of a stream that is broken: by the network, or by what the device has sent.
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::OutOfRange => Self::Protocol("a message is larger than 4 MiB"),
            Code::Internal | Code::InvalidArgument => Self::Protocol("a message cannot be read"),
            _ => Self::Disconnected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected => "Disconnected",
            Self::Revoked(_) => "Revoked",
            Self::Replaced => "Replaced",
            Self::Forgotten => "Forgotten",
            Self::Protocol(_) => "Protocol",
            Self::Stalled => "Stalled",
            Self::Shutdown => "Shutdown",
            Self::Store(_) => "Store",
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::Disconnected | Self::Stalled => Status::cancelled(self.to_string()),
            Self::Revoked(_) => Status::permission_denied(self.to_string()),
            Self::Replaced => Status::aborted(self.to_string()),
            Self::Protocol(_) => Status::invalid_argument(self.to_string()),
            Self::Forgotten | Self::Shutdown => Status::unavailable(self.to_string()),
            // Its details are for the log only.
            Self::Store(_) => Status::unavailable("the gateway's database fails"),
        }
    }
}

/// The device's side of the stream.
pub type ToDevice = mpsc::Sender<Result<ToAgent, Status>>;

/// Runs the session of a device that was admitted, to its end.
pub async fn run(shared: Arc<Shared>, identity: Identity, inbound: Streaming<FromAgent>, outbound: ToDevice) {
    let device = identity.device.clone();
    let registration = shared.sessions.open(&device);
    shared.metrics.sessions.inc();
    if registration.replaced {
        tracing::warn!(%device, "a second session of the same device replaces the first");
        let fingerprint = identity.fingerprint();
        let detail = "a second session of the same key has begun";
        shared.audit(fingerprint.as_str(), "Session", &device.to_string(), "Replaced", detail).await;
    }
    let mut session = Session {
        fingerprint: identity.fingerprint(),
        identity,
        outbound,
        kept: None,
        software_digest: None,
        recipes: None,
        settings: None,
        trust: None,
        pending: Pending::default(),
        asked: None,
        place: None,
        budget: Budget::new(CHANGES.0, CHANGES.1),
        phases: Budget::new(PHASES.0, PHASES.1),
        lines: Budget::new(LINES.0, LINES.1),
        asking: Asking::No,
        turn: None,
        shared,
    };
    let end = session.live(registration, inbound).await;
    let Session { shared, mut pending, outbound, place, .. } = session;
    if let Some(place) = place
        && let Err(error) = shared.store.close_session(&place).await
    {
        tracing::warn!(%device, %error, "the other gateways do not hear of the session's end");
    }
    if !matches!(end, End::Revoked(_)) && pending.due().is_some() {
        // Accepted and held back for a moment; the store has it in any case.
        pending.schedule(Instant::now());
        if let Err(error) = write_pending(&shared, &device, &session.identity, &pending).await {
            tracing::warn!(%device, %error, "the last change waits for the device's next session");
        }
    }
    shared.heard_of(&device);
    shared.metrics.sessions.dec();
    shared.metrics.sessions_ended.with_label_values(&[end.reason()]).inc();
    match &end {
        End::Store(error) => tracing::error!(%device, %error, "session ended"),
        other => tracing::info!(%device, reason = other.reason(), "session ended: {other}"),
    }
    if let End::Protocol(_) | End::Revoked(_) = end {
        let (who, device) = (session.fingerprint.as_str(), device.to_string());
        shared.audit_refusal(who, "Session", &device, end.reason(), &end.to_string()).await;
    }
    // Nobody listens when the device hung up.
    let _ = outbound.try_send(Err(end.status()));
}

struct Session {
    shared: Arc<Shared>,
    identity: Identity,
    fingerprint: Fingerprint,
    outbound: ToDevice,
    /// The last report that was believed from this key.
    kept: Option<Kept>,
    /// Digest of the software that the store has.
    software_digest: Option<String>,
    /// Digest of the recipes that the device has or was sent, empty for none; nothing where it takes none.
    recipes: Option<String>,
    /// The same of settings; nothing where the agent knows none.
    settings: Option<String>,
    /// Digest of what the device pins or was led to; nothing where it cannot follow.
    trust: Option<String>,
    pending: Pending,
    /// A grant that the device waits for.
    asked: Option<GrantRequest>,
    /// What the other gateways know of it, where there may be others.
    place: Option<Place>,
    budget: Budget,
    phases: Budget,
    lines: Budget,
    asking: Asking,
    /// While something is kept that the device has sent.
    turn: Option<Turn>,
}

/// Something that the device has sent and whose turn to be kept has not come.
struct Waiting {
    message: Option<Inbound>,
    turn: turns::Place,
}

impl Session {
    async fn live(&mut self, mut registration: Registration, mut inbound: Streaming<FromAgent>) -> End {
        let begun = async {
            self.announce(&registration).await?;
            self.begin(&mut inbound).await
        };
        if let Err(end) = begun.await {
            return end;
        }
        let stopping = self.shared.stopping();
        tokio::pin!(stopping);
        let (mut offers, mut trust) = (self.shared.recipes.clone(), self.shared.trust.clone());
        // What the device sends too fast waits in its own connection, as does everything after what waits for its turn.
        let (mut read_from, mut waiting) = (Instant::now(), None::<Waiting>);
        loop {
            let due = self.pending.due();
            let step = tokio::select! {
                () = &mut stopping => Err(End::Shutdown),
                command = registration.commands.recv() => match command {
                    Some(Command::Deliver(order)) => self.deliver(&order).await,
                    Some(Command::Replaced) | None => Err(End::Replaced),
                    Some(Command::Forgotten) => Err(End::Forgotten),
                },
                () = registration.changed.notified() => self.resource_changed().await,
                () = recipes::changed(&mut offers) => self.offer_recipes().await,
                // Its sender ends with the gateway.
                Ok(()) = trust.changed() => self.offer_trust().await,
                // While something waits its turn must not come to a session that waits for the API server; and what waits is often written with it.
                () = until(due), if due.is_some() && waiting.is_none() => self.flush().await,
                turn = self.asking.step() => self.asked_in_turn(turn).await,
                received = in_turn(&mut waiting) => match received {
                    Some((message, turn)) => {
                        waiting = None;
                        self.keep(message, turn).await
                    }
                    None => Err(End::Shutdown),
                },
                message = read(&mut inbound, read_from), if waiting.is_none() => match message {
                    Ok(Some(FromAgent { message: Some(message) })) => {
                        self.shared.heard_of(&self.identity.device);
                        let is_kept = matches!(message, Inbound::Report(_) | Inbound::Result(_) | Inbound::Changes(_) | Inbound::Details(_));
                        if is_kept || matches!(message, Inbound::GrantRequest(_)) {
                            read_from = self.budget.spend(Instant::now());
                        }
                        let is_asked_for = matches!(&message, Inbound::Report(report) if !report.software.is_empty());
                        if is_asked_for && let Some(turn) = self.asking.answered() {
                            self.keep(message, turn).await
                        } else if is_kept {
                            waiting = Some(Waiting { message: Some(message), turn: self.shared.turns.next() });
                            Ok(())
                        } else {
                            self.receive(message).await
                        }
                    }
                    Ok(Some(FromAgent { message: None })) => Err(End::Protocol("an empty or unknown message")),
                    Ok(None) => Err(End::Disconnected),
                    Err(status) => Err(End::of(&status)),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Tells the other gateways, if there may be such, that the device is here.
    async fn announce(&mut self, registration: &Registration) -> Result<(), End> {
        let Shared { store, replica, .. } = &*self.shared;
        if !store.is_shared() {
            return Ok(());
        }
        let place = store.open_session(&self.identity.device, replica).await?;
        let newest = registration.is_newest(place.number);
        self.place = Some(place);
        if newest { Ok(()) } else { Err(End::Replaced) }
    }

    /// Hello, Welcome, what differs, what waits.
    async fn begin(&mut self, inbound: &mut Streaming<FromAgent>) -> Result<(), End> {
        let first = tokio::time::timeout(HELLO_TIME, inbound.message()).await;
        let hello = match first.map_err(|_| End::Protocol("no Hello within 10 s"))? {
            Ok(Some(FromAgent { message: Some(Inbound::Hello(hello)) })) => hello,
            Ok(Some(_)) => return Err(End::Protocol("the first message is not Hello")),
            Ok(None) => return Err(End::Disconnected),
            Err(status) => return Err(End::of(&status)),
        };
        let device = self.identity.device.clone();
        tracing::info!(%device, agent = %clean(&hello.agent_version, 63), "session begins");
        self.shared.heard_of(&device);
        self.warn_of_skew(&hello.device_time);
        if let Some(record) = self.shared.store.device(&device).await?.filter(|known| known.key == self.fingerprint) {
            self.kept = record.report.and_then(|stored| self.read_kept(&stored)).map(|(_, kept)| kept);
            self.software_digest = record.software_digest;
        }
        let now = shell::now();
        self.send(Outbound::Welcome(wire::Welcome {
            gateway_time: now.to_string(),
            scan_interval: self.shared.scan_interval_seconds,
            takes_changes: true,
            details_digest: Some(self.shared.store.details_digest(&device, &self.fingerprint).await?),
            report_version: REPORT_VERSION,
        }))
        .await?;
        // Before anything that is signed in the word of another root.
        self.trust = hello.trust_digest;
        self.offer_trust().await?;
        if self.software_is_known() {
            if self.kept.as_ref().is_none_or(|kept| kept.digest != hello.report_digest) {
                self.ask_for_report(false).await?;
            }
        } else if !self.ask_for_software().await? {
            self.ask_for_report(false).await?;
        }
        self.recipes = hello.recipes_digest;
        self.offer_recipes().await?;
        self.settings = hello.settings_digest;
        self.resource_changed().await?;
        self.pending.schedule(Instant::now() + HOLD);
        // Brought to another gateway, or to one that is no more, or before a restart.
        for signed in self.shared.store.open_orders_of(&device, now).await? {
            replicas::take_up(&self.shared, &signed).await;
        }
        for run in self.shared.orders.open(&device, now) {
            self.deliver(&run.order).await?;
        }
        Ok(())
    }

    /// Leads the device to the root and the CAs that count, if it can follow and pins others.
    async fn offer_trust(&mut self) -> Result<(), End> {
        let trust = self.shared.trust.borrow().clone();
        let (Some(trust), Some(pinned)) = (trust, &mut self.trust) else { return Ok(()) };
        let Some(chain) = trust.chain_for(pinned) else { return Ok(()) };
        // What it refuses is not sent again in this session.
        *pinned = trust::digest(&trust.root, &trust.ca_pem);
        tracing::info!(device = %self.identity.device, "it pins another root or CA, and is sent what leads to the present ones");
        self.send(Outbound::Trust(wire::Trust { chain: chain.as_bytes().to_vec() })).await
    }

    /// Sends the recipes, if the device takes any and has others.
    async fn offer_recipes(&mut self) -> Result<(), End> {
        let offered = self.shared.recipes.borrow().clone();
        let (Some(offered), Some(held)) = (offered, &mut self.recipes) else { return Ok(()) };
        if offered.digest == *held {
            return Ok(());
        }
        // What it refuses is not sent again in this session.
        held.clone_from(&offered.digest);
        self.send(Outbound::Recipes(wire::Recipes { envelope: offered.envelope.clone() })).await
    }

    /// Sends the device's settings, if it knows such and has others.
    async fn offer_settings(&mut self, offered: &SignedSettings) -> Result<(), End> {
        let Some(held) = &mut self.settings else { return Ok(()) };
        let digest = offered.digest();
        if digest == *held {
            return Ok(());
        }
        // What it refuses is not sent again in this session.
        *held = digest;
        match serde_json::to_vec(offered) {
            Ok(signed_settings) => self.send(Outbound::Settings(wire::Settings { signed_settings })).await,
            Err(error) => {
                tracing::error!(device = %self.identity.device, %error, "settings cannot be sent");
                Ok(())
            }
        }
    }

    /// Receives what is to be kept, in its turn.
    async fn keep(&mut self, message: Inbound, turn: Turn) -> Result<(), End> {
        self.turn = Some(turn);
        let received = self.receive(message).await;
        self.turn = None;
        received
    }

    async fn receive(&mut self, message: Inbound) -> Result<(), End> {
        match message {
            Inbound::Hello(_) => Err(End::Protocol("a second Hello")),
            Inbound::Report(report) => self.report(&report).await,
            Inbound::Progress(progress) => self.progress(&progress).await,
            Inbound::GrantRequest(request) => self.grant_request(request).await,
            Inbound::Result(result) => self.result(result).await,
            Inbound::Changes(changes) => self.changes(&changes.envelope).await,
            Inbound::Details(details) => self.details(&details.envelope).await,
        }
    }

    async fn report(&mut self, message: &wire::Report) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let limits = &self.shared.limits;
        let read = report::read_report(&message.envelope, &message.software, key, device, self.kept.as_ref(), limits);
        let outcome = self.shared.metrics.reports.clone();
        let count = |result| outcome.with_label_values(&[result]).inc();
        match read {
            Ok(IncomingReport::Unchanged { software }) => {
                count("unchanged");
                if let Some(software) = software
                    && !self.software_is_known()
                    && let Some(digest) = self.expected_software().cloned()
                {
                    self.shared.store.record_software(device, &software, &digest, shell::now()).await?;
                    self.software_digest = Some(digest);
                }
                Ok(())
            }
            Ok(IncomingReport::Changed(believed)) => {
                count("changed");
                self.believe(*believed, &message.software_delta).await
            }
            Err(refusal) => {
                count("refused");
                self.refuse("Report", &refusal).await
            }
        }
    }

    async fn believe(&mut self, believed: BelievedReport, delta: &[u8]) -> Result<(), End> {
        let BelievedReport { report, stored, mut software } = believed;
        if software.is_none() && !delta.is_empty() {
            software = self.changed_software(delta, &report).await?;
        }
        let now = shell::now();
        self.shared.store.record_report(&self.fingerprint, &report, &stored, software.as_ref(), now).await?;
        if software.is_some() {
            self.software_digest = Some(report.software_digest.clone());
        }
        let kept = match Kept::of(&report, &stored) {
            Ok(kept) => kept,
            Err(refusal) => return self.refuse("Report", &refusal).await,
        };
        self.pending.report = Some((report, kept.signature.clone()));
        self.kept = Some(kept);
        let hold = if self.is_busy() { HOLD } else { Duration::ZERO };
        self.pending.schedule(Instant::now() + hold);
        if !self.software_is_known() {
            self.ask_for_software().await?;
        }
        Ok(())
    }

    /// Asks for the report with all software, unless others are asked before: whether the report will come with this now. What it was asked for
    /// before may have been overtaken.
    async fn ask_for_software(&mut self) -> Result<bool, End> {
        if matches!(self.asking, Asking::No) {
            self.asking = Asking::begin(&self.shared.asks);
        }
        let is_asked = matches!(self.asking, Asking::Asked { .. });
        if is_asked {
            self.ask_for_report(true).await?;
        }
        Ok(is_asked)
    }

    /// It is this device's turn to be asked for its software, or it has not sent it for too long.
    async fn asked_in_turn(&mut self, turn: Option<Turn>) -> Result<(), End> {
        self.asking = Asking::No;
        let Some(turn) = turn.filter(|_| !self.software_is_known()) else { return Ok(()) };
        self.asking = Asking::asked(turn);
        self.ask_for_report(true).await
    }

    async fn ask_for_report(&mut self, software: bool) -> Result<(), End> {
        self.send(Outbound::SendReport(wire::SendReport { scan: false, software })).await
    }

    async fn progress(&mut self, message: &wire::Progress) -> Result<(), End> {
        let device = &self.identity.device;
        let Some(run) = self.shared.orders.find(device, &message.order_digest) else { return Ok(()) };
        let line = Line { time: shell::now(), phase: clean(&message.phase, 32), text: clean(&message.text, 1000) };
        let kept = format!("{} {} {}", line.time, line.phase, line.text);
        if self.lines.try_spend(Instant::now()) {
            replicas::show(&self.shared, device, &run, &line).await?;
        }
        if run.progress(line) && self.phases.try_spend(Instant::now()) {
            self.shared.store.record_progress(device, &message.order_digest, &kept).await?;
        }
        Ok(())
    }

    async fn grant_request(&mut self, message: wire::GrantRequest) -> Result<(), End> {
        let purpose = match message.purpose() {
            wire::GrantPurpose::Act => Purpose::Act,
            wire::GrantPurpose::Restart => Purpose::Restart,
        };
        let wire::GrantRequest { order_digest, nonce, purpose: _ } = message;
        let printable =
            |text: &str, max| !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic());
        if !printable(&order_digest, MAX_DIGEST) || !printable(&nonce, MAX_NONCE) {
            return self.tell("GrantRequest", "OverLimit", "order_digest or nonce is empty or too long").await;
        }
        let request = GrantRequest { order_digest, nonce, purpose };
        self.asked = Some(request.clone());
        self.pending.grant = Some(request);
        self.pending.schedule(Instant::now());
        Ok(())
    }

    async fn result(&mut self, message: wire::Result) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let counter = self.shared.metrics.results.clone();
        let count = |result| counter.with_label_values(&[result]).inc();
        let (result, envelope) = match report::read_result(&message.envelope, key, device, &self.shared.limits) {
            Ok(read) => read,
            Err(refusal) => {
                count("refused");
                return self.refuse("Result", &refusal).await;
            }
        };
        let output = tail(&message.output, MAX_OUTPUT);
        let recording = self.shared.store.record_result(device, &result, &envelope, output, shell::now()).await?;
        match recording {
            Recording::New => {
                count("new");
                tracing::info!(%device, order = %result.order_digest, sequence = %result.sequence,
                    outcome = ?result.outcome, "result recorded");
            }
            Recording::Same => count("repeated"),
            Recording::Conflict => {
                count("refused");
                return self.refuse("Result", &Refusal::ResultConflict(result.order_digest)).await;
            }
        }
        if let Some(run) = self.shared.orders.find(device, &result.order_digest) {
            match serde_json::to_vec(&result) {
                Ok(json) => run.finish(json),
                // The runner finds it in the store when it asks again.
                Err(error) => tracing::error!(%device, %error, "a result cannot be handed to its runner"),
            }
        }
        if self.asked.as_ref().is_some_and(|asked| asked.order_digest == result.order_digest) {
            self.asked = None;
        }
        if self.pending.grant.as_ref().is_some_and(|asked| asked.order_digest == result.order_digest) {
            self.pending.grant = None;
        }
        self.pending.result = Some((result, envelope));
        self.pending.schedule(Instant::now());
        Ok(())
    }

    /// Keeps what has changed among the device's packages. It goes to the store alone.
    async fn changes(&mut self, envelope: &[u8]) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        let (changes, envelope) = match report::read_changes(envelope, key, device) {
            Ok(read) => read,
            Err(refusal) => return self.refuse("Changes", &refusal).await,
        };
        match self.shared.store.record_changes(&changes, &envelope, shell::now()).await? {
            ChangesRecording::Kept(new) => {
                tracing::debug!(%device, new, "changes recorded");
                let Some(last) = changes.changed.last() else { return Ok(()) };
                let recorded = wire::ChangesRecorded { log: last.log.clone(), number: last.last() };
                self.send(Outbound::ChangesRecorded(recorded)).await
            }
            ChangesRecording::Reused(number) => self.refuse("Changes", &Refusal::NumberReused(number)).await,
        }
    }

    /// Keeps what the device is made of. It goes to the store alone.
    async fn details(&mut self, envelope: &[u8]) -> Result<(), End> {
        let Identity { device, key, .. } = &self.identity;
        match report::read_details(envelope, key, device) {
            Ok(details) => {
                Ok(self.shared.store.record_details(device, &self.fingerprint, &details, shell::now()).await?)
            }
            Err(refusal) => self.refuse("Details", &refusal).await,
        }
    }

    /// The software list that a change of the known one leads to, if it is the one that the report speaks of.
    async fn changed_software(&self, delta: &[u8], report: &Report) -> Result<Option<Software>, End> {
        let delta = match serde_json::from_slice::<SoftwareDelta>(delta) {
            Ok(delta) if self.software_digest.as_ref() == Some(&delta.from) => delta,
            // Of another list, or not to be read: the whole list is asked for.
            _ => return Ok(None),
        };
        let software = delta.applied(self.shared.store.software(&self.identity.device).await?);
        let digest = canonical::digest_of(&software).unwrap_or_default();
        Ok(Some(software)
            .filter(|software| digest == report.software_digest && limits::check_software(software).is_ok()))
    }

    /// The device's resource is another one than before: is the device still believed, is there an answer for it, does
    /// the resource say what it should?
    async fn resource_changed(&mut self) -> Result<(), End> {
        let device = self.identity.device.clone();
        let seen = self.shared.devices.get(&device).await.map_err(|error| End::Revoked(error.to_string()))?;
        seen.admits(&device, &self.fingerprint).map_err(|error| End::Revoked(error.to_string()))?;
        if let Some(settings) = &seen.settings {
            self.offer_settings(settings).await?;
        }
        let shown = seen.inventory.signature.as_ref();
        let kept = self.kept.as_ref().map(|kept| &kept.signature);
        if kept.is_some() && shown != kept {
            self.show_report().await?;
            if self.pending.due().is_none() {
                self.pending.schedule(Instant::now() + HOLD);
            }
        }
        if !seen.inventory.online && self.pending.due().is_none() {
            self.pending.schedule(Instant::now() + HOLD);
        }
        let answered = self.asked.as_ref().zip(seen.grant.as_ref()).filter(|(asked, grant)| {
            grant.nonce == asked.nonce && seen.current_order.as_ref() == Some(&asked.order_digest)
        });
        if let Some((_, grant)) = answered {
            match serde_json::to_vec(&grant.signed) {
                Ok(signed_grant) => {
                    self.asked = None;
                    self.send(Outbound::Grant(wire::Grant { signed_grant })).await?;
                }
                Err(error) => tracing::error!(%device, %error, "a grant cannot be sent"),
            }
        }
        Ok(())
    }

    /// Writes everything that waits.
    async fn flush(&mut self) -> Result<(), End> {
        let device = self.identity.device.clone();
        match write_pending(&self.shared, &device, &self.identity, &self.pending).await {
            Ok(()) => {
                let Pending { result, .. } = std::mem::take(&mut self.pending);
                if let Some((result, _)) = result {
                    let order_digest = result.order_digest;
                    self.send(Outbound::ResultRecorded(wire::ResultRecorded { order_digest })).await?;
                }
                // The answer may have been there before the question was.
                self.resource_changed().await
            }
            Err(error @ (DeviceError::Gone(_) | DeviceError::NoNamespace(_))) => Err(End::Revoked(error.to_string())),
            Err(DeviceError::Invalid { message, .. }) => {
                tracing::error!(%device, %message, "the API server refuses the status of this device");
                self.shared.audit(self.fingerprint.as_str(), "Status", &device.to_string(), "Invalid", &message).await;
                self.pending = Pending::default();
                self.tell("Status", "Invalid", &message).await
            }
            Err(error @ DeviceError::Api { .. }) => {
                tracing::warn!(%device, %error, "the status cannot be written; trying again");
                self.pending.failed(Instant::now());
                Ok(())
            }
        }
    }

    async fn deliver(&mut self, order: &Arc<Vec<u8>>) -> Result<(), End> {
        self.send(Outbound::Order(wire::Order { signed_order: order.to_vec() })).await?;
        self.shared.metrics.orders_delivered.inc();
        let device = &self.identity.device;
        let now = shell::now();
        let text = "the device has the order".to_owned();
        for run in self.shared.orders.open(device, now).into_iter().filter(|run| Arc::ptr_eq(&run.order, order)) {
            let line = Line { time: now, phase: Phase::Delivered.as_str().to_owned(), text: text.clone() };
            replicas::show(&self.shared, device, &run, &line).await?;
            run.progress(line);
        }
        Ok(())
    }

    /// Puts the report that the store keeps among what waits to be written, unless a newer one waits already.
    async fn show_report(&mut self) -> Result<(), End> {
        if self.pending.report.is_some() {
            return Ok(());
        }
        let record = self.shared.store.device(&self.identity.device).await?;
        let stored = record.filter(|record| record.key == self.fingerprint).and_then(|record| record.report);
        if let Some((report, kept)) = stored.and_then(|stored| self.read_kept(&stored)) {
            self.pending.report = Some((report, kept.signature.clone()));
            self.kept = Some(kept);
        }
        Ok(())
    }

    /// What the store keeps, if the device's key has signed it.
    fn read_kept(&self, stored: &StoredReport) -> Option<(Report, Kept)> {
        let read = stored.envelope.open(&self.identity.key).map_err(Refusal::from);
        let read = read.and_then(|report| Kept::of(&report, stored).map(|kept| (report, kept)));
        read.inspect_err(
            |error| tracing::error!(device = %self.identity.device, %error, "the kept report cannot be read"),
        )
        .ok()
    }

    /// Digest of the software that the kept report speaks of.
    fn expected_software(&self) -> Option<&String> {
        self.kept.as_ref().map(|kept| &kept.software_digest)
    }

    /// Whether the store has it. A report of a failed scan may have none at all, and then there is nothing to ask for.
    fn software_is_known(&self) -> bool {
        self.expected_software()
            .is_some_and(|expected| expected.is_empty() || self.software_digest.as_ref() == Some(expected))
    }

    /// Whether a result may follow soon.
    fn is_busy(&self) -> bool {
        let device = &self.identity.device;
        self.shared.devices.cached(device).is_some_and(|seen| seen.current_order.is_some())
            || !self.shared.orders.open(device, shell::now()).is_empty()
    }

    async fn refuse(&mut self, what: &str, refusal: &Refusal) -> Result<(), End> {
        let device = self.identity.device.to_string();
        let message = refusal.to_string();
        tracing::warn!(%device, what, reason = refusal.reason(), %message, "refused");
        self.shared.audit_refusal(self.fingerprint.as_str(), what, &device, refusal.reason(), &message).await;
        self.tell(what, refusal.reason(), &message).await
    }

    async fn tell(&mut self, what: &str, reason: &str, message: &str) -> Result<(), End> {
        let refused = wire::Refused { what: what.to_owned(), reason: reason.to_owned(), message: message.to_owned() };
        self.send(Outbound::Refused(refused)).await
    }

    async fn send(&mut self, message: Outbound) -> Result<(), End> {
        // Nobody else waits for a device that takes nothing.
        self.turn = None;
        let message = Ok(ToAgent { message: Some(message) });
        match tokio::time::timeout(SEND_TIME, self.outbound.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Disconnected),
            Err(_) => Err(End::Stalled),
        }
    }

    fn warn_of_skew(&self, device_time: &str) {
        let device = &self.identity.device;
        let Ok(time) = device_time.parse::<Timestamp>() else {
            tracing::warn!(%device, "the device's clock cannot be read from its Hello");
            return;
        };
        let skew = shell::now().duration_since(time).as_secs();
        if skew.abs() > MAX_CLOCK_SKEW_SECONDS {
            tracing::warn!(%device, skew_seconds = skew, "the device's clock is off: it takes no orders");
        }
    }
}

async fn write_pending(
    shared: &Shared,
    device: &patchwarden_protocol::report::DeviceRef,
    identity: &Identity,
    pending: &Pending,
) -> Result<(), DeviceError> {
    let now = shell::now();
    shared.devices.write(device, |inventory| pending.apply(inventory, &identity.key, now)).await?;
    Ok(())
}

async fn until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// What has waited, once its turn has come; the place in the queue stays when this is given up. Nothing when there are no turns any more.
async fn in_turn(waiting: &mut Option<Waiting>) -> Option<(Inbound, Turn)> {
    match waiting {
        Some(Waiting { message, turn }) => {
            let turn = turn.await?;
            Some((message.take()?, turn))
        }
        None => std::future::pending().await,
    }
}

async fn read(inbound: &mut Streaming<FromAgent>, from: Instant) -> Result<Option<FromAgent>, Status> {
    tokio::time::sleep_until(from).await;
    inbound.message().await
}
