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

mod end;
mod lineage;
mod received;

use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::agent_v1::{
    self as wire, FromAgent, ToAgent, from_agent::Message as Inbound, to_agent::Message as Outbound,
};
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::settings::SignedSettings;
use patchwarden_protocol::surroundings::REPORT_VERSION;
use patchwarden_protocol::{MAX_CLOCK_SKEW_SECONDS, trust};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use self::end::End;
use self::lineage::Unproven;
use super::asking::Asking;
use super::budget::Budget;
use super::devices::DeviceError;
use super::identity::Identity;
use super::orders::Line;
use super::pending::{HOLD, Pending};
use super::report::{self, Kept, Refusal};
use super::sessions::{self, Command, Purse, Registration, Spending};
use super::turns::{self, Turn};
use super::{Shared, clean, recipes, replicas, traces};
use crate::api::device_inventory::GrantRequest;
use crate::shell;
use crate::store::{Place, StoredReport};

/// An agent says hello at once.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// A device that takes nothing for so long is gone: the same as the keepalive's time.
const SEND_TIME: Duration = Duration::from_secs(20);

/// The device's side of the stream.
pub type ToDevice = mpsc::Sender<Result<ToAgent, Status>>;

/// Runs the session of a device that was admitted, to its end.
///
/// Most sessions wait for hours. What one does is on the heap while it does it: else each would keep the room for the largest of that.
pub async fn run(
    shared: Arc<Shared>,
    (identity, purse): (Identity, Purse),
    peer: String,
    inbound: Streaming<FromAgent>,
    outbound: ToDevice,
) {
    let registration = shared.sessions.open(&identity.device);
    shared.metrics.sessions.inc();
    let mut session = Session {
        fingerprint: identity.fingerprint(),
        identity,
        peer,
        skew: SignedDuration::ZERO,
        unproven: None,
        is_set_back: false,
        outbound,
        kept: None,
        software_digest: None,
        recipes: None,
        settings: None,
        trust: None,
        pending: Pending::default(),
        asked: None,
        brought: Weak::new(),
        place: None,
        purse,
        asking: Asking::No,
        turn: None,
        shared,
    };
    let end = session.live(registration, inbound).await;
    Box::pin(session.close(end)).await;
}

struct Session {
    shared: Arc<Shared>,
    identity: Identity,
    fingerprint: Fingerprint,
    /// Its address.
    peer: String,
    /// How far its clock was behind this one when it said Hello.
    skew: SignedDuration,
    /// A process that has said Hello and nothing since, where it is not the one that is known.
    unproven: Option<Unproven>,
    /// Its report counts backwards, and it has not told anew yet.
    is_set_back: bool,
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
    /// The order that this session has brought last: it may find one on its list as well as be told of it.
    brought: Weak<Vec<u8>>,
    /// What the other gateways know of it, where there may be others.
    place: Option<Place>,
    purse: Purse,
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
        let begun = Box::pin(async {
            self.replace(&registration).await;
            self.announce(&registration).await?;
            self.begin(&mut inbound).await
        });
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
                    Some(Command::Deliver(order)) => Box::pin(self.deliver(&order)).await,
                    Some(Command::Replaced) | None => Err(End::Replaced),
                    Some(Command::Forgotten) => Err(End::Forgotten),
                },
                () = registration.changed.notified() => Box::pin(self.resource_changed()).await,
                () = recipes::changed(&mut offers) => Box::pin(self.offer_recipes()).await,
                // Its sender ends with the gateway.
                Ok(()) = trust.changed() => Box::pin(self.offer_trust()).await,
                // While something waits its turn must not come to a session that waits for the API server; and what waits is often written with it.
                () = until(due), if due.is_some() && waiting.is_none() => Box::pin(self.flush()).await,
                turn = self.asking.step() => Box::pin(self.asked_in_turn(turn)).await,
                received = in_turn(&mut waiting) => match received {
                    Some((message, turn)) => {
                        waiting = None;
                        Box::pin(self.keep(message, turn)).await
                    }
                    None => Err(End::Shutdown),
                },
                message = read(&mut inbound, read_from), if waiting.is_none() => match message {
                    Ok(Some(FromAgent { message: Some(message) })) => {
                        self.shared.heard_of(&self.identity.device);
                        let is_kept = matches!(message, Inbound::Report(_) | Inbound::Result(_) | Inbound::Changes(_) | Inbound::Details(_));
                        if is_kept || matches!(message, Inbound::GrantRequest(_)) {
                            read_from = sessions::open(&self.purse).changes.spend(Instant::now());
                        }
                        let is_asked_for = matches!(&message, Inbound::Report(report) if !report.software.is_empty());
                        if is_asked_for && let Some(turn) = self.asking.answered() {
                            Box::pin(self.keep(message, turn)).await
                        } else if is_kept {
                            waiting = Some(Waiting { message: Some(message), turn: self.shared.turns.next() });
                            Ok(())
                        } else {
                            Box::pin(self.receive(message)).await
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

    /// Tells of the session whose place it takes.
    async fn replace(&self, registration: &Registration) {
        if registration.replaced {
            let device = &self.identity.device;
            tracing::warn!(%device, "a second session of the same device replaces the first");
            let detail = "a second session of the same key has begun";
            let (who, device) = (self.fingerprint.as_str(), device.to_string());
            self.shared.audit_refusal(who, "Session", &device, "Replaced", detail).await;
        }
    }

    /// After its last message.
    async fn close(mut self, end: End) {
        let device = self.identity.device.clone();
        if let Some(place) = self.place.take()
            && let Err(error) = self.shared.store.close_session(&place).await
        {
            tracing::warn!(%device, %error, "the other gateways do not hear of the session's end");
        }
        if !matches!(end, End::Revoked(_) | End::Duplicate(_)) && self.pending.due().is_some() {
            // Accepted and held back for a moment; the store has it in any case.
            self.pending.schedule(Instant::now());
            if let Err(error) = write_pending(&self.shared, &device, &self.identity, &self.pending).await {
                tracing::warn!(%device, %error, "the last change waits for the device's next session");
            }
        }
        self.shared.heard_of(&device);
        self.shared.metrics.sessions.dec();
        self.shared.metrics.sessions_ended.with_label_values(&[end.reason()]).inc();
        match &end {
            End::Store(error) => tracing::error!(%device, %error, "session ended"),
            other => tracing::info!(%device, reason = other.reason(), "session ended: {other}"),
        }
        if let End::Protocol(_) | End::Revoked(_) | End::Duplicate(_) = end {
            let (who, device) = (self.fingerprint.as_str(), device.to_string());
            self.shared.audit_refusal(who, "Session", &device, end.reason(), &end.to_string()).await;
        }
        // Nobody listens when the device hung up.
        let _ = self.outbound.try_send(Err(end.status()));
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
        self.measure_skew(&hello.device_time);
        self.pending.certificate_until = Some(self.identity.not_after);
        if let Some(record) = self.shared.store.device(&device).await?.filter(|known| known.key == self.fingerprint) {
            self.kept = record.report.and_then(|stored| self.read_kept(&stored)).map(|(_, kept)| kept);
            self.software_digest = record.software_digest;
        }
        self.recognise(hello.instance).await?;
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
            let is_known = self.kept.as_ref().is_some_and(|kept| kept.digest == hello.report_digest);
            if !is_known || self.unproven.is_some() {
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

    /// The device's resource is another one than before: is the device still believed, is there an answer for it, does
    /// the resource say what it should?
    async fn resource_changed(&mut self) -> Result<(), End> {
        let device = self.identity.device.clone();
        let seen = self.shared.devices.get(&device).await.map_err(|error| End::Revoked(error.to_string()))?;
        seen.admits(&device, &self.fingerprint).map_err(|error| End::Revoked(error.to_string()))?;
        if let Some(found) = seen.duplicate() {
            return Err(End::Duplicate(found.words()));
        }
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
        if let Some((_, grant)) = answered.filter(|_| !self.is_held()) {
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
                if let Some((result, _)) = result.map(|result| *result) {
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
        if self.is_held() {
            // It is brought once the device is known to be the one that it is for.
            return Ok(());
        }
        if std::ptr::eq(self.brought.as_ptr(), Arc::as_ptr(order)) {
            return Ok(());
        }
        self.send(Outbound::Order(wire::Order { signed_order: order.to_vec() })).await?;
        self.brought = Arc::downgrade(order);
        self.shared.metrics.orders_delivered.inc();
        let device = &self.identity.device;
        let now = shell::now();
        let text = "the device has the order".to_owned();
        for run in self.shared.orders.open(device, now).into_iter().filter(|run| Arc::ptr_eq(&run.order, order)) {
            let line = Line { time: now, phase: Phase::Delivered.as_str().to_owned(), text: text.clone() };
            replicas::show(&self.shared, device, &run, &line).await?;
            run.progress(line);
            traces::delivered(&self.shared.traces, &run, now);
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
            self.pending.report = Some(Box::new((report, kept.signature.clone())));
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

    /// Whether the device may spend one of these now.
    fn may_spend(&self, of: impl FnOnce(&mut Spending) -> &mut Budget) -> bool {
        of(&mut sessions::open(&self.purse)).try_spend(Instant::now())
    }

    fn measure_skew(&mut self, device_time: &str) {
        let device = &self.identity.device;
        let Ok(time) = device_time.parse::<Timestamp>() else {
            tracing::warn!(%device, "the device's clock cannot be read from its Hello");
            return;
        };
        self.skew = shell::now().duration_since(time);
        let skew = self.skew.as_secs();
        self.pending.skew = Some(skew);
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
