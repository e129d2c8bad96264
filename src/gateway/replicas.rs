//! Gateways that share a PostgreSQL database: each knows where the devices of the others are, hands orders on and hears of results.
//!
//! ```text
//!   runner -> gateway A --- order kept, "Order" ---> gateway B -> agent
//!   runner <- gateway A <-- result kept, "Result" -- gateway B <- agent
//! ```
//!
//! A gateway may die at any point. Its agents and runners come back to another one; an order whose result is not kept is brought again
//! to the device, whose journal carries it out once, and a result is kept once. What only a notice said is lost: lines of progress.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use patchwarden_protocol::order::SignedOrder;
use patchwarden_protocol::report::DeviceRef;
use tokio::time::Instant;

use super::Shared;
use super::orders::{Line, Run};
use crate::shell;
use crate::store::{Notice, StoreError};

/// How often a gateway shows that it lives.
const BEAT: Duration = Duration::from_secs(2);

/// A gateway that has not shown it for so long is dead to the others; one that has heard nothing for so long, not even itself, has lost
/// its connection.
const SILENCE: Duration = Duration::from_secs(15);

/// How often the tables are read whole, whatever was heard.
const CATCH_UP: Duration = Duration::from_mins(1);

/// After the database could not be heard.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until it is dropped; at once over where the database is not shared.
pub async fn run(shared: Arc<Shared>) {
    if shared.store.is_shared() {
        tokio::join!(beat(&shared), hear(&shared));
    }
}

/// Shows that this gateway lives, and finds out which of the others do.
async fn beat(shared: &Shared) {
    let mut known: HashMap<String, (i64, Instant)> = HashMap::new();
    let mut tick = tokio::time::interval(BEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let beaten = tokio::time::timeout(SILENCE, shared.store.beat(&shared.replica)).await;
        let outcome = match beaten.unwrap_or(Err(StoreError::Query(sqlx::Error::PoolTimedOut))) {
            Ok(Some(beats)) => look_around(shared, &mut known, beats).await,
            Ok(None) => come_back(shared).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "this gateway cannot show that it lives; trying again");
        }
    }
}

/// Buries the gateways whose beats have stood still for too long, by this gateway's own clock.
async fn look_around(
    shared: &Shared,
    known: &mut HashMap<String, (i64, Instant)>,
    beats: Vec<(String, i64)>,
) -> Result<(), StoreError> {
    let now = Instant::now();
    let gone = known.extract_if(|name, _| !beats.iter().any(|(lives, _)| lives == name));
    let gone: Vec<String> = gone.map(|(name, _)| name).collect();
    shared.sessions.gone(&gone);
    for (name, beat) in beats {
        let since = known.get(&name).filter(|(last, _)| *last == beat).map_or(now, |(_, since)| *since);
        known.insert(name.clone(), (beat, since));
        if name != shared.replica && now.duration_since(since) > SILENCE {
            tracing::warn!(replica = name, "this gateway is dead; its devices come back to the others");
            shared.store.bury(&name, beat).await?;
        }
    }
    Ok(())
}

/// The others took this gateway for dead, or the database is another one: sessions that they do not know of have to begin again.
async fn come_back(shared: &Shared) -> Result<(), StoreError> {
    tracing::warn!("the other gateways took this one for dead: its sessions end, and the devices come back");
    shared.store.join(&shared.replica).await?;
    shared.sessions.end_all();
    Ok(())
}

/// Hears what the other gateways tell, for ever.
async fn hear(shared: &Shared) {
    loop {
        match hear_until_lost(shared).await {
            Ok(()) => tracing::warn!("the notices of the other gateways were lost; reading what they have done"),
            Err(error) => tracing::error!(%error, "the other gateways cannot be heard; trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear_until_lost(shared: &Shared) -> Result<(), StoreError> {
    let mut listener = shared.store.listen().await?;
    let mut caught_up: Option<Instant> = None;
    loop {
        if caught_up.is_none_or(|at| at.elapsed() > CATCH_UP) {
            catch_up(shared).await?;
            caught_up = Some(Instant::now());
        }
        match tokio::time::timeout(SILENCE, listener.next()).await {
            Ok(notice) => match notice? {
                Some(notice) => take(shared, notice).await?,
                None => return Ok(()),
            },
            Err(_) => return Ok(()),
        }
    }
}

/// Reads what notices may have told while nobody heard them, and what a gateway that died has not told. Notices of what is committed
/// after that are taken after it.
async fn catch_up(shared: &Shared) -> Result<(), StoreError> {
    let mut told = shared.sessions.here();
    let places = shared.store.sessions().await?;
    // A server that crashed may have lost the sessions that were opened last: the others do not know of them.
    for place in places.iter().filter(|place| place.replica == shared.replica) {
        if told.get(&place.device) == Some(&place.number) {
            told.remove(&place.device);
        }
    }
    if !told.is_empty() {
        tracing::warn!(
            sessions = told.len(),
            "the database does not know of these sessions: they end, and the devices come back"
        );
        shared.sessions.forget(&told);
    }
    shared.sessions.elsewhere(places.into_iter().filter(|place| place.replica != shared.replica).collect());
    for signed in shared.store.open_orders(shell::now()).await? {
        bring(shared, &signed).await;
    }
    for run in shared.orders.unfinished() {
        finish(shared, &run).await?;
    }
    Ok(())
}

async fn take(shared: &Shared, notice: Notice) -> Result<(), StoreError> {
    match notice {
        Notice::Beat => {}
        Notice::Opened(place) if place.replica == shared.replica => {}
        Notice::Opened(place) => shared.sessions.opened_elsewhere(place),
        Notice::Closed(place) => shared.sessions.closed_elsewhere(&place),
        Notice::Order { device, digest } => {
            if shared.sessions.is_here(&device) {
                let open = shared.store.open_orders_of(&device, shell::now()).await?;
                for signed in open.iter().filter(|signed| signed.order.digest() == digest) {
                    bring(shared, signed).await;
                }
            }
        }
        Notice::Progress { replica, device, digest, time, phase, text } => {
            if replica != shared.replica
                && let Some(run) = shared.orders.find(&device, &digest)
            {
                run.progress(Line { time, phase, text });
            }
        }
        Notice::Result { device, digest } => {
            if let Some(run) = shared.orders.find(&device, &digest) {
                finish(shared, &run).await?;
            }
        }
    }
    Ok(())
}

/// Brings an order to a device that has its session here.
async fn bring(shared: &Shared, signed: &SignedOrder) {
    let is_here = signed.order.peek().is_some_and(|order| shared.sessions.is_here(&order.device));
    if is_here && let Some(run) = take_up(shared, signed).await {
        // A session that takes nothing now reads it from the store when the device comes back.
        shared.sessions.deliver(&run.device, &run.order);
    }
}

/// Takes up an order that is kept: brought to another gateway, or to one that is no more. It was verified before it was kept, and is again:
/// whoever can write to the database cannot write orders.
pub async fn take_up(shared: &Shared, signed: &SignedOrder) -> Option<Arc<Run>> {
    let digest = signed.order.digest();
    let Some((order, json)) = signed.order.peek().zip(serde_json::to_vec(signed).ok()) else {
        tracing::error!(order = %digest, "a kept order cannot be read");
        return None;
    };
    let trust = shared.trust.borrow().clone()?;
    // Once a root was replaced there are orders of the one before, which are for the device to judge: it may not have followed yet.
    if let Err(refused) = signed.open(&trust.root, order.not_before)
        && trust.chain.is_none()
    {
        let device = order.device.to_string();
        tracing::error!(device, order = %digest, why = %refused, "a kept order is not what the controller has signed");
        let detail = format!("kept order {digest}: {refused}");
        shared.audit_refusal("the database", "Order", &device, "BadSignature", &detail).await;
        return None;
    }
    Some(shared.orders.begin(&order, &digest, json, shell::now()))
}

/// Ends a run whose result is kept.
pub async fn finish(shared: &Shared, run: &Run) -> Result<(), StoreError> {
    let recorded = if run.is_finished() { None } else { shared.store.result(&run.device, &run.digest).await? };
    // It was verified with the device's key before it was kept.
    let result = recorded.and_then(|recorded| recorded.envelope.peek());
    if let Some(json) = result.and_then(|result| serde_json::to_vec(&result).ok()) {
        run.finish(json);
    }
    Ok(())
}

/// Tells the other gateways of a line that nobody follows here.
pub async fn show(shared: &Shared, device: &DeviceRef, run: &Run, line: &Line) -> Result<(), StoreError> {
    if !shared.store.is_shared() || run.is_followed() {
        return Ok(());
    }
    let Line { time, phase, text } = line.clone();
    let (replica, device, digest) = (shared.replica.clone(), device.clone(), run.digest.clone());
    shared.store.tell(&Notice::Progress { replica, device, digest, time, phase, text }).await
}
