//! The controller's shell: everything that has a clock, a network or a log. What decides is in [`crate::plan`].
//!
//! ```text
//!   watches -> cache -> pass:  settle -> plan -> grants, claims -> plan -> status writes -> Jobs -> finalizers
//!                       ^                                                                     |
//!                       `------------------- what was just written overlays the watch --------'
//! ```
//!
//! Only the leader does any of it; one that has lost its lease writes nothing more, and the API server itself refuses its claims
//! and Jobs.

mod apply;
mod cache;
pub mod certificates;
mod client;
mod election;
mod events;
mod fleet;
pub mod health;
pub mod keys;
pub mod leader;
pub mod metrics;
mod record;
mod registration;
pub mod rotation;
mod vulnerabilities;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::build::RunnerSettings;
use crate::telemetry::Traces;
pub use keys::SECRET;
use metrics::Metrics;

/// Everything that a start decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Patchwarden's own namespace: keys, trust, lease.
    pub namespace: String,
    /// This replica, in the lease.
    pub identity: String,
    /// User name of the gateways' service account.
    pub gateway_user: String,
    /// Image of the runner.
    pub runner_image: String,
    /// `imagePullPolicy` of the runner.
    pub runner_image_pull_policy: String,
    /// URL of the gateways' runners' door, as pods reach it.
    pub gateway_url: String,
    /// URL of the same door, as this controller reaches it.
    pub record_url: String,
    /// File of this controller's service-account token for the gateway.
    pub token_file: PathBuf,
    /// Directory of what is known of vulnerabilities, if there is one.
    pub vulnerabilities: Option<PathBuf>,
    /// Whether gateways are a part of the API server, whose CA is to be told.
    pub aggregation: bool,
    /// What else the environment of install Jobs' pods says: of traces and logs.
    pub runner_environment: Vec<(String, String)>,
    /// Where spans go.
    pub traces: Traces,
}

/// What ends the controller.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Keys.
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    /// The caches.
    #[error("a watch ended before its first list: {0}")]
    Cache(#[from] kube::runtime::reflector::store::WriterDropped),
    /// The lease went to another replica: this one must not act any more.
    #[error("lost the lease: another replica leads now")]
    LostLease,
}

/// What a controller speaks to the API server by.
pub struct Clients {
    /// For the lease.
    pub lease: Client,
    /// For everything else: it writes only while this replica leads ([`leader::Leads::layer`]).
    pub work: Client,
    /// Whether it does.
    pub leads: leader::Leads,
}

/// Leads when it can, and works while it leads. Returns when `stop` is cancelled, with the lease released.
pub async fn run(
    clients: Clients,
    settings: Settings,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let Clients { lease, work: client, leads } = clients;
    let Some(leadership) = leader::acquire(&lease, &settings, &leads, &stop).await else {
        return Ok(());
    };
    metrics.leader.set(1);
    let worked = tokio::select! {
        biased;
        () = leadership.lost() => Err(ControllerError::LostLease),
        () = stop.cancelled() => Ok(()),
        worked = work(&client, &settings, &leadership.token, &metrics) => worked,
    };
    metrics.leader.set(0);
    leadership.release().await;
    worked
}

/// How long a new leader waits for what is known of vulnerabilities: it has to act within 20 s of the last one's death.
const FIRST_READING: Duration = Duration::from_secs(3);

/// Works with one set of keys after another: each until its delegation is to be renewed.
async fn work(
    client: &Client,
    settings: &Settings,
    leader: &str,
    metrics: &Arc<Metrics>,
) -> Result<(), ControllerError> {
    let cache = cache::Cache::start(client, metrics.queue.changes.clone()).await?;
    let record = record::Settings {
        url: settings.record_url.clone(),
        token_file: settings.token_file.clone(),
        namespace: settings.namespace.clone(),
    };
    let recorder = record::Recorder::new(record, metrics.clone());
    let (sender, known) = watch::channel(vulnerabilities::Known::default());
    // Dropped with what plans: it reads for nobody else.
    let mut reading = tokio::task::JoinSet::new();
    if let Some(directory) = settings.vulnerabilities.clone() {
        reading.spawn(vulnerabilities::watch(directory, sender, metrics.vulnerabilities.clone()));
    }
    if settings.vulnerabilities.is_some() {
        // Rules that ask for them would stall, and be in force a moment later. What takes longer they wait for.
        let _ = tokio::time::timeout(FIRST_READING, known.clone().changed()).await;
    }
    loop {
        let keys = keys::load(client, &settings.namespace, now()).await?;
        metrics.keys(&keys);
        let runner = RunnerSettings {
            image: settings.runner_image.clone(),
            image_pull_policy: settings.runner_image_pull_policy.clone(),
            gateway: settings.gateway_url.clone(),
            ca: keys.ca_pem.clone(),
            environment: settings.runner_environment.clone(),
            sampler: settings.traces.sampler(),
        };
        let mut fleet = fleet::Fleet::new(
            client.clone(),
            &keys,
            runner,
            leader.to_owned(),
            settings.namespace.clone(),
            metrics.clone(),
            fleet::Beside { recorder: &recorder, known: known.clone(), traces: settings.traces.clone() },
        );
        let registered = async {
            if settings.aggregation {
                registration::keep(client, &keys.ca_pem).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = registered => {}
            () = certificates::run(client.clone(), &keys, &settings.gateway_user, now) => {}
            () = passes(&cache, &recorder, &mut fleet, known.clone()) => {}
            () = recorder.run(&keys.ca_pem, keys.signers(), now) => {}
            () = keys.superseded(client, &settings.namespace) => {}
            () = tokio::time::sleep(keys.good_for(now())) => {}
        }
    }
}

/// A pass for every change, and one when the clock alone changes something.
async fn passes(
    cache: &cache::Cache,
    recorder: &record::Recorder,
    fleet: &mut fleet::Fleet<'_>,
    mut known: watch::Receiver<vulnerabilities::Known>,
) {
    /// Events that come together are planned together.
    const DEBOUNCE: Duration = Duration::from_millis(50);
    /// A pass at least so often, should a timer or an event ever be missed.
    const AT_LEAST_EVERY: Duration = Duration::from_mins(5);
    loop {
        let next_look = fleet.pass(cache, now()).await;
        let wait = next_look
            .map(|at| at.duration_since(now()))
            .and_then(|wait| Duration::try_from(wait).ok().or(Some(DEBOUNCE)))
            .map_or(AT_LEAST_EVERY, |wait| wait.min(AT_LEAST_EVERY));
        tokio::select! {
            () = cache.changed() => tokio::time::sleep(DEBOUNCE).await,
            () = recorder.news() => {}
            // An error says that nobody reads any.
            Ok(()) = known.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The clock of the whole controller: everything else is told what time it is.
#[allow(clippy::disallowed_methods)]
fn now() -> Timestamp {
    Timestamp::now()
}
