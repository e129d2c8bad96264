//! The gateway: where agents and install Jobs come in.
//!
//! ```text
//!                 agents' door (mTLS)                          runners' door (TLS, token)
//!   agent <------ enrol, session ------> gateway <------------ runner ------> pod of an install Job
//!                                         |   |  <------------ record ------> controller
//!                                         |   |  <---------- /api/v1 -------- people, the kubectl plugin (TLS, token)
//!                                  store -+   +- DeviceInventory.status.inventory, CertificateSigningRequests
//! ```
//!
//! It holds no key that could make an order, a report or a certificate: it verifies, keeps and forwards. Invariants:
//!
//! - What a device sent is believed only if the device's own key signed it and the key is `spec.acceptedKey`.
//! - It is in the store before the device is told so; it is in the resource before a result is confirmed.
//! - Nothing is written to the API server that is there already.

pub mod aggregation;
pub mod api;
pub mod asking;
mod bounded;
pub mod budget;
pub mod certificates;
pub mod devices;
mod doors;
pub mod enrol;
mod gone;
pub mod health;
pub mod identity;
pub mod join;
pub mod limits;
pub mod metrics;
pub mod open_files;
pub mod orders;
pub mod pending;
mod places;
pub mod recipes;
pub mod record;
pub mod refusals;
pub mod replicas;
pub mod report;
pub mod request_id;
pub mod runner;
pub mod session;
pub mod sessions;
pub mod tls;
mod traces;
pub mod trust;
pub mod turns;
pub mod vulnerabilities;

#[cfg(test)]
pub(crate) mod door_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod killed_tests;
#[cfg(test)]
mod lineage_tests;
#[cfg(test)]
pub(crate) mod record_tests;
#[cfg(test)]
mod refused_tests;
#[cfg(test)]
mod replicas_tests;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use patchwarden_protocol::agent_v1::agents_server::AgentsServer;
use patchwarden_protocol::record_v1::record_server::RecordServer;
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::runner_v1::runner_server::RunnerServer;
use patchwarden_protocol::{MAX_MESSAGE_BYTES, MAX_RECORD_BYTES};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::Server;

use self::bounded::Bounded;
use self::budget::Budget;
use self::certificates::{NoCertificate, Purpose};
use self::devices::{Decision, DeviceError, Devices};
use self::doors::{AgentsDoor, RecordDoor, RunnersDoor};
use self::limits::{Limits, NoSchema};
use self::metrics::{Metrics, MetricsError};
use self::orders::Orders;
use self::pending::to_seconds;
use self::recipes::{NotOffered, Offers};
use self::refusals::Refusals;
use self::sessions::Sessions;
use self::tls::{NotServable, Serving, ServingRequest, TurnedAway};
use self::trust::Trust;
use self::turns::Turns;
use crate::shell;
use crate::store::{AuditEntry, Database, Retention, Store, StoreError};
use crate::telemetry::{FLUSH_TIME, Traces};

/// HTTP/2 pings find peers that vanished without a word; so long between them, and so long for the answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Calls that one connection may have open: an agent has a session and a renewal.
const STREAMS: u32 = 8;

/// Enrolment is open to whoever reaches the door, and each call asks the API server: so many at once, then 50 a second.
const ENROLMENTS: (u32, Duration) = (200, Duration::from_millis(20));

/// Pods that show a token, and the controller: so many reviews of the API server at once, then 50 a second. Each Job makes one when it starts.
const REVIEWS: (u32, Duration) = (200, Duration::from_millis(20));

/// Bytes of a request that is a name, a token, a request for a certificate.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The head of an answer is there within this time, at whatever call: sessions and Jobs have theirs at once, and go on. A certificate is waited for 20 s.
const ANSWER_TIME: Duration = Duration::from_mins(1);

/// Within this time every gateway has seen what one has, also one whose watch was interrupted.
const SAME_DECISION: SignedDuration = SignedDuration::from_hours(1);

/// How often lost devices are looked for: well below their grace.
const SWEEP: Duration = Duration::from_secs(2);

/// How often "last seen" is written, for all devices at once.
const FLUSH_SEEN: Duration = Duration::from_secs(10);

/// How often what is over is dropped from memory, and what was kept for long enough from the record.
const PRUNE: Duration = Duration::from_mins(1);

/// After a serving certificate could not be had.
const CERTIFICATE_RETRY: Duration = Duration::from_secs(5);

/// Sessions and Jobs have this long to end by themselves; Kubernetes kills after 30 s.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);

/// What the gateway is told at its start, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Patchwarden's own namespace.
    pub namespace: String,
    /// User name of the controller's service account: the record is its alone.
    pub controller_user: String,
    /// Where agents come in.
    pub agents_address: SocketAddr,
    /// Where install Jobs come in.
    pub runners_address: SocketAddr,
    /// Where people's programs come in.
    pub api_address: SocketAddr,
    /// Where the API server's proxy comes in, for the aggregation layer; nowhere if there is none.
    pub aggregation_address: Option<SocketAddr>,
    /// What their tokens have to be for.
    pub api_audience: String,
    /// Where the kubelet and Prometheus come in.
    pub health_address: SocketAddr,
    /// The database.
    pub database: Database,
    /// This gateway's name among others.
    pub replica: String,
    /// DNS names and addresses in the serving certificate.
    pub server_names: Vec<String>,
    /// How long the store keeps what is only for people to read.
    pub retention: Retention,
    /// Between two scans of a device.
    pub scan_interval: SignedDuration,
    /// The signed catalogue of recipes for devices, if there is one.
    pub recipes: Option<PathBuf>,
    /// The directory of vulnerability data, if there is one.
    pub vulnerabilities: Option<PathBuf>,
}

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The schema.
    #[error(transparent)]
    Limits(#[from] NoSchema),
    /// An address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The recipes.
    #[error(transparent)]
    Recipes(#[from] NotOffered),
    /// The scan interval.
    #[error("scan-interval: {0} is not between 1 minute and 7 days")]
    ScanInterval(SignedDuration),
    /// A door.
    #[error("the {door} door: {source}")]
    Door {
        /// Which.
        door: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What every session, call and task shares.
pub struct Shared {
    client: Client,
    namespace: String,
    controller_user: String,
    store: Store,
    /// This gateway's name among those that share the store.
    replica: String,
    metrics: Metrics,
    limits: Limits,
    devices: Devices,
    sessions: Sessions,
    /// Of what is kept.
    turns: Turns,
    /// Of devices that are asked for their software.
    asks: Turns,
    orders: Orders,
    scan_interval_seconds: u32,
    recipes: Offers,
    trust: watch::Receiver<Option<Trust>>,
    serving_until: watch::Receiver<Option<Timestamp>>,
    shutdown: watch::Receiver<bool>,
    seen: Mutex<HashMap<DeviceRef, Timestamp>>,
    enrolments: Mutex<Budget>,
    reviews: Mutex<Budget>,
    refusals: Mutex<Refusals>,
    renewals: Mutex<HashMap<DeviceRef, Instant>>,
    traces: Traces,
}

impl Shared {
    /// Notes that a device was heard of; written with all others, every few seconds.
    fn heard_of(&self, device: &DeviceRef) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(device.clone(), shell::now());
    }

    /// Whether another request to enrol can be served now.
    fn may_enroll(&self) -> bool {
        self.enrolments.lock().unwrap_or_else(PoisonError::into_inner).try_spend(Instant::now())
    }

    /// Whether another token of the runners' door can be shown to the API server now.
    fn may_review(&self) -> bool {
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner).try_spend(Instant::now())
    }

    /// Notes that a device has just got a new certificate.
    fn renewed(&self, device: &DeviceRef) {
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        renewals.retain(|_, at| at.elapsed() < enrol::RENEWAL_PAUSE);
        renewals.insert(device.clone(), Instant::now());
    }

    /// Whether a device has got a new certificate so lately that it cannot need another.
    fn renewed_lately(&self, device: &DeviceRef) -> bool {
        let renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        renewals.get(device).is_some_and(|at| at.elapsed() < enrol::RENEWAL_PAUSE)
    }

    /// Writes a line of the audit. Its loss is logged: it must not stop what it tells of.
    async fn audit(&self, who: &str, what: &str, object: &str, outcome: &str, detail: &str) {
        let entry = AuditEntry { who, what, object, outcome, detail };
        if let Err(error) = self.store.audit(entry, shell::now()).await {
            tracing::error!(%error, who, what, object, outcome, detail, "audit line lost");
        }
    }

    /// Writes a refusal into the audit, unless it only repeats others of this caller: what one tried must not hide what another one tries.
    async fn audit_refusal(&self, who: &str, what: &str, object: &str, reason: &'static str, detail: &str) {
        let tell = {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            refusals.tell(what, &format!("{who} {object}"), reason, Instant::now())
        };
        if tell {
            self.audit(who, what, object, reason, detail).await;
        }
    }

    /// Resolves when the gateway ends.
    fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut shutdown = self.shutdown.clone();
        async move {
            // An error means that nobody could say it any more: it ends.
            let _ = shutdown.wait_for(|down| *down).await;
        }
    }

    async fn flush_seen(&self) {
        let seen: Vec<_> =
            std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect();
        if seen.is_empty() {
            return;
        }
        if let Err(error) = self.store.touch(&seen).await {
            tracing::error!(%error, "when devices were last seen cannot be kept");
        }
    }
}

/// Runs the gateway until `stop` resolves.
pub async fn run(config: Config, client: Client, stop: impl Future<Output = ()>) -> Result<(), GatewayError> {
    let scan_interval_seconds = scan_interval(config.scan_interval)?;
    let agents = listen(config.agents_address).await?;
    let runners = listen(config.runners_address).await?;
    let people = listen(config.api_address).await?;
    let aggregation = match config.aggregation_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let health = listen(config.health_address).await?;
    let metrics = Metrics::new()?;
    let traces = Traces::start_or_none("patchwarden-gateway", &config.replica, metrics.trace_spans.clone());
    let offered = config.recipes.as_deref().map(recipes::read).transpose()?;
    let (offers, offers_receiver) = watch::channel(offered.map(Arc::new));
    let (trust, trust_receiver) = watch::channel(None);
    let (serving_until, serving_until_receiver) = watch::channel(None);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let shared = Arc::new(Shared {
        devices: Devices::new(client.clone(), metrics.clone()),
        namespace: config.namespace.clone(),
        controller_user: config.controller_user,
        store: Store::open(&config.database, &config.replica).await?,
        replica: config.replica.clone(),
        limits: Limits::new()?,
        sessions: Sessions::default(),
        turns: Turns::new(metrics.waiting_sessions.clone()),
        asks: Turns::new(metrics.waiting_sessions.clone()),
        orders: Orders::default(),
        trust: trust_receiver,
        serving_until: serving_until_receiver,
        shutdown: shutdown_receiver,
        seen: Mutex::default(),
        enrolments: Mutex::new(Budget::new(ENROLMENTS.0, ENROLMENTS.1)),
        reviews: Mutex::new(Budget::new(REVIEWS.0, REVIEWS.1)),
        refusals: Mutex::default(),
        renewals: Mutex::default(),
        traces: traces.clone(),
        scan_interval_seconds,
        recipes: offers_receiver,
        client,
        metrics,
    });
    if shared.store.is_shared() {
        shared.store.join(&shared.replica).await?;
    }
    let (agents_tls, agents_config) = watch::channel(None);
    let (runners_tls, runners_config) = watch::channel(None);
    let (people_tls, people_config) = watch::channel(None);
    let (serving, serving_receiver) = watch::channel(None);
    let tls = Tls { agents: agents_tls, runners: runners_tls, people: people_tls, serving };

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(trust::run(shared.client.clone(), config.namespace.clone(), trust));
    tasks.spawn(serve_certificates(shared.clone(), config.server_names, tls, serving_until));
    tasks.spawn(shared.devices.clone().run(shared.sessions.clone()));
    tasks.spawn(audit_decisions(shared.clone()));
    tasks.spawn(housekeeping(shared.clone(), config.retention));
    tasks.spawn(gone::run(shared.clone(), config.retention));
    tasks.spawn(replicas::run(shared.clone()));
    if let Some(path) = config.recipes {
        tasks.spawn(recipes::watch(path, offers));
    }
    if let Some(directory) = config.vulnerabilities {
        tasks.spawn(vulnerabilities::watch(directory, shared.store.clone(), shared.metrics.vulnerabilities.clone()));
    }

    let mut doors = tokio::task::JoinSet::new();
    doors.spawn(health_door(shared.clone(), health));
    doors.spawn(agents_door(shared.clone(), agents, agents_config));
    doors.spawn(runners_door(shared.clone(), runners, runners_config));
    let questions = Arc::new(api::Door::new(shared.clone(), config.api_audience));
    doors.spawn(api::serve(questions.clone(), people, people_config));
    if let Some(listener) = aggregation {
        doors.spawn(aggregation::serve(questions, listener, serving_receiver));
    }

    tracing::info!(agents = %config.agents_address, runners = %config.runners_address, api = %config.api_address, database = %config.database,
        replica = config.replica, "gateway started");
    let outcome = tokio::select! {
        () = stop => Ok(()),
        Some(ended) = doors.join_next() => ended.unwrap_or_else(|error| Err(GatewayError::Door { door: "crashed", source: Box::new(error) })),
    };
    tracing::info!("gateway stops");
    shutdown.send_replace(true);
    let ends = async { while doors.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_TIME, ends).await.is_err() {
        tracing::warn!("connections that did not end by themselves are cut");
    }
    doors.shutdown().await;
    tasks.shutdown().await;
    shared.flush_seen().await;
    if shared.store.is_shared()
        && let Err(error) = shared.store.leave(&shared.replica).await
    {
        tracing::warn!(%error, "the other gateways will take this one for dead");
    }
    shared.store.close().await;
    let flushed = tokio::task::spawn_blocking(move || traces.end(FLUSH_TIME)).await;
    if let Err(error) = flushed {
        tracing::error!(%error, "the last spans are lost");
    }
    outcome
}

fn scan_interval(interval: SignedDuration) -> Result<u32, GatewayError> {
    let sensible = SignedDuration::from_mins(1)..=SignedDuration::from_hours(7 * 24);
    u32::try_from(interval.as_secs())
        .ok()
        .filter(|_| sensible.contains(&interval))
        .ok_or(GatewayError::ScanInterval(interval))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, GatewayError> {
    TcpListener::bind(address).await.map_err(|source| GatewayError::Listen { address, source })
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_keepalive(Some(KEEPALIVE))
        .timeout(ANSWER_TIME)
        .max_concurrent_streams(STREAMS)
}

type TlsConfig = watch::Receiver<Option<Arc<ServerConfig>>>;

async fn agents_door(shared: Arc<Shared>, listener: TcpListener, config: TlsConfig) -> Result<(), GatewayError> {
    // The doors open when everything behind them is there: an agent must not be refused for what is not listed yet.
    let mut synced = shared.devices.synced();
    tokio::select! {
        _ = synced.wait_for(|synced| *synced) => {}
        () = shared.stopping() => return Ok(()),
    }
    open_door("agents'", agents_router(&shared), listener, config, tls::Limits::of_certificates(), &shared).await
}

fn agents_router(shared: &Arc<Shared>) -> tonic::transport::server::Router {
    let agents = AgentsServer::new(AgentsDoor(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    server().add_service(Bounded::new(agents, shared, MAX_REQUEST_BYTES, Some("Session")))
}

async fn runners_door(shared: Arc<Shared>, listener: TcpListener, config: TlsConfig) -> Result<(), GatewayError> {
    open_door("runners'", runners_router(&shared), listener, config, tls::Limits::of_tokens(), &shared).await
}

fn runners_router(shared: &Arc<Shared>) -> tonic::transport::server::Router {
    let record = RecordServer::new(RecordDoor(shared.clone()))
        .max_decoding_message_size(MAX_RECORD_BYTES)
        .max_encoding_message_size(MAX_RECORD_BYTES);
    let runners = RunnerServer::new(RunnersDoor(shared.clone()));
    server().add_service(Bounded::new(runners, shared, MAX_REQUEST_BYTES, None)).add_service(Bounded::new(
        record,
        shared,
        MAX_RECORD_BYTES,
        None,
    ))
}

async fn open_door(
    door: &'static str,
    router: tonic::transport::server::Router,
    listener: TcpListener,
    mut config: TlsConfig,
    limits: tls::Limits,
    shared: &Shared,
) -> Result<(), GatewayError> {
    tokio::select! {
        _ = config.wait_for(Option::is_some) => {}
        () = shared.stopping() => return Ok(()),
    }
    tracing::info!("the {door} door is open");
    let (incoming, turned_away) = tls::incoming(listener, config, limits);
    let serving = router.serve_with_incoming_shutdown(incoming, shared.stopping());
    tokio::select! {
        served = serving => served.map_err(|source| GatewayError::Door { door, source: Box::new(source) }),
        never = audit_handshakes(shared, door, turned_away) => match never {},
    }
}

/// Tells of keys that were accepted or are believed no more: each decision once, though every gateway sees it.
async fn audit_decisions(shared: Arc<Shared>) {
    loop {
        for Decision { device, outcome, detail } in shared.devices.decided().await {
            tracing::info!(%device, outcome, detail, "a device's key");
            let (object, now) = (device.to_string(), shell::now());
            let since = now.saturating_sub(SAME_DECISION).unwrap_or(Timestamp::MIN);
            let entry = AuditEntry { who: "DeviceInventory", what: "Key", object: &object, outcome, detail: &detail };
            if let Err(error) = shared.store.audit_once(&device, entry, since, now).await {
                tracing::error!(%error, %device, outcome, detail, "audit line lost");
            }
        }
    }
}

/// Tells of peers that did not get as far as a request.
async fn audit_handshakes(shared: &Shared, door: &str, mut turned_away: mpsc::Receiver<TurnedAway>) -> Infallible {
    while let Some(TurnedAway { peer, reason, detail }) = turned_away.recv().await {
        tracing::warn!(%peer, door, reason, why = detail, "a connection is refused");
        shared.audit_refusal(&format!("peer {peer}"), "Connect", &format!("{door} door"), reason, &detail).await;
    }
    // Nothing is accepted any more.
    std::future::pending().await
}

async fn health_door(shared: Arc<Shared>, listener: TcpListener) -> Result<(), GatewayError> {
    let stop = shared.stopping();
    axum::serve(listener, health::router(shared))
        .with_graceful_shutdown(stop)
        .await
        .map_err(|source| GatewayError::Door { door: "health", source: Box::new(source) })
}

/// What each door serves with.
struct Tls {
    agents: watch::Sender<Option<Arc<ServerConfig>>>,
    runners: watch::Sender<Option<Arc<ServerConfig>>>,
    people: watch::Sender<Option<Arc<ServerConfig>>>,
    /// For the aggregation layer's door, which puts the API server's anchors beside it.
    serving: watch::Sender<Option<Arc<Serving>>>,
}

/// Keeps the doors in certificates: at the start, at half of each one's life, and when the CA changes.
async fn serve_certificates(
    shared: Arc<Shared>,
    server_names: Vec<String>,
    tls: Tls,
    until: watch::Sender<Option<Timestamp>>,
) {
    let mut trust = shared.trust.clone();
    loop {
        let Ok(anchors) = trust.wait_for(Option::is_some).await.map(|anchors| anchors.clone()) else { return };
        let Some(anchors) = anchors else { continue };
        trust.mark_unchanged();
        let pause = match new_certificate(&shared, &server_names, &anchors).await {
            Ok(New { agents, runners, people, serving, not_after, next }) => {
                tracing::info!(%not_after, %next, "new serving certificate");
                tls.agents.send_replace(Some(agents));
                tls.runners.send_replace(Some(runners));
                tls.people.send_replace(Some(people));
                tls.serving.send_replace(Some(serving));
                until.send_replace(Some(not_after));
                shared.metrics.certificate.with_label_values::<&str>(&[]).set(not_after.as_second());
                next.duration_since(shell::now()).max(SignedDuration::from_secs(60)).unsigned_abs()
            }
            Err(error) => {
                tracing::error!(%error, "no serving certificate; trying again");
                CERTIFICATE_RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = trust.changed() => if changed.is_err() { return },
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NoServing {
    #[error(transparent)]
    Tls(#[from] NotServable),
    #[error(transparent)]
    Certificate(#[from] NoCertificate),
}

struct New {
    agents: Arc<ServerConfig>,
    runners: Arc<ServerConfig>,
    people: Arc<ServerConfig>,
    serving: Arc<Serving>,
    not_after: Timestamp,
    next: Timestamp,
}

async fn new_certificate(shared: &Shared, names: &[String], trust: &Trust) -> Result<New, NoServing> {
    let request = ServingRequest::new(names)?;
    let chain = certificates::request(&shared.client, &shared.metrics, Purpose::Serving, &request.request).await?;
    let serving = request.complete(&chain)?;
    Ok(New {
        agents: serving.agents(trust)?,
        runners: serving.runners()?,
        people: serving.people()?,
        not_after: serving.not_after,
        next: serving.half_life(),
        serving: Arc::new(serving),
    })
}

/// What is done by the clock.
async fn housekeeping(shared: Arc<Shared>, retention: Retention) {
    let mut sweep = tokio::time::interval(SWEEP);
    let mut flush = tokio::time::interval(FLUSH_SEEN);
    let mut prune = tokio::time::interval(PRUNE);
    loop {
        tokio::select! {
            _ = sweep.tick() => set_offline(&shared).await,
            _ = flush.tick() => shared.flush_seen().await,
            _ = prune.tick() => {
                shared.sessions.prune();
                shared.orders.prune(shell::now());
                match shared.store.forget(shell::now()).await {
                    Ok(0) => {}
                    Ok(entries) => tracing::info!(entries, "dropped from the record what nobody has offered for long"),
                    Err(error) => tracing::error!(%error, "the record cannot be tidied up; trying again"),
                }
                match shared.store.prune(retention, shell::now()).await {
                    Ok(0) => {}
                    Ok(rows) => tracing::info!(rows, "dropped what was kept for long enough"),
                    Err(error) => tracing::error!(%error, "what is old cannot be dropped; trying again"),
                }
            }
        }
    }
}

/// Says of devices without a session that they are offline. What fails is tried again by the next sweep.
async fn set_offline(shared: &Shared) {
    for device in shared.sessions.lost(shared.devices.online()) {
        let sessions = shared.sessions.clone();
        let now = shell::now();
        let written = shared.devices.write(&device, |inventory| {
            // It may have come back while this was on its way.
            if !sessions.is_open(&device) && inventory.online {
                inventory.online = false;
                inventory.last_transition_time = Some(to_seconds(now));
            }
        });
        match written.await {
            Ok(true) => tracing::info!(%device, "offline"),
            Ok(false) | Err(DeviceError::Gone(_)) => {}
            Err(error) => tracing::warn!(%device, %error, "cannot be set offline; trying again"),
        }
    }
}

/// `text` without control characters, at most `max` characters: for logs and terminals.
fn clean(text: &str, max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max).collect()
}

/// The last `max` bytes of `text`, from a whole character on.
fn tail(text: &str, max: usize) -> &str {
    let mut from = text.len().saturating_sub(max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_say_cannot_drive_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc", 100), "a [2Jb c");
        assert_eq!(clean("äöü", 2), "äö");
    }

    #[test]
    fn a_tail_begins_with_a_whole_character() {
        assert_eq!(tail("abc", 2), "bc");
        assert_eq!(tail("aäb", 2), "b");
        assert_eq!(tail("abc", 10), "abc");
    }

    #[test]
    fn a_scan_interval_is_sensible() {
        assert_eq!(scan_interval(SignedDuration::from_hours(4)).unwrap(), 14_400);
        assert!(scan_interval(SignedDuration::from_secs(10)).is_err());
        assert!(scan_interval(SignedDuration::from_hours(200)).is_err());
    }
}
