//! One leader, and a token by which the API server knows it.
//!
//! ```text
//!   acquire --> leads: renewed every 2 s --> stopped: the lease is given back, another replica takes it within 1 s
//!                        |
//!                        `--> not renewed for 8 s, or another holds it: nothing more is written, and the program ends
//! ```
//!
//! What keeps a leader that was paused, or cut off, from acting beside the next one:
//! - [`Leads`] refuses what it would write once its time is over, by its own clock (see [`super::election`]), which stands still while
//!   the whole machine is suspended;
//! - the token, `<holderIdentity>/<leaseTransitions>`, goes into each claim and each install Job; ValidatingAdmissionPolicies whose
//!   parameter is the Lease compare the two. So also what it had sent before it was paused makes no order.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::Body;
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::BoxError;
use tower::filter::FilterLayer;

use super::election::{self, Election, Next};
use super::{Settings, now};

/// Name of the Lease.
pub const LEASE: &str = "patchwarden-controller";

/// The API server's admission sees the Lease by a watch of its own: a new leader waits a moment before it lists and plans, since what
/// it decided sooner might be refused.
const ADMISSION_CACHE: Duration = Duration::from_secs(2);

/// Until when this replica leads, by its own clock.
#[derive(Clone, Debug)]
pub struct Leads(watch::Sender<Option<Instant>>);

impl Default for Leads {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Leads {
    /// Whether it does now.
    pub fn now(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Lets through what reads, and what writes while this replica leads.
    pub fn layer(
        &self,
    ) -> FilterLayer<impl FnMut(http::Request<Body>) -> Result<http::Request<Body>, BoxError> + Clone + use<>> {
        let leads = self.clone();
        FilterLayer::new(move |request: http::Request<Body>| {
            let reads = request.method() == http::Method::GET;
            if reads || leads.now() {
                Ok(request)
            } else {
                Err("this replica does not lead, and writes nothing".into())
            }
        })
    }

    /// Returns once it does not lead any more.
    async fn lost(&self) {
        let mut until = self.0.subscribe();
        loop {
            let Some(end) = *until.borrow_and_update() else { return };
            // Whoever was busy for longer than that is asked late, and it may have been renewed meanwhile.
            if end <= Instant::now() {
                return;
            }
            tokio::select! {
                changed = until.changed() => if changed.is_err() { return },
                () = sleep_until(end) => {}
            }
        }
    }

    fn renewed(&self, began: Instant) {
        self.0.send_replace(Some(began + election::DEADLINE));
    }

    fn end(&self) {
        self.0.send_replace(None);
    }
}

/// Leading.
pub struct Leadership {
    /// `<holderIdentity>/<leaseTransitions>`.
    pub token: String,
    leads: Leads,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

/// Waits until this replica leads; `None` when `stop` came first. `client` may write whether `leads` or not.
pub async fn acquire(
    client: &Client,
    settings: &Settings,
    leads: &Leads,
    stop: &CancellationToken,
) -> Option<Leadership> {
    let leases = Api::namespaced(client.clone(), &settings.namespace);
    let mut candidate = Candidate { leases, election: Election::new(&settings.identity) };
    tracing::info!(identity = settings.identity, "waiting for the lease");
    let token = loop {
        let began = Instant::now();
        let looked = tokio::select! {
            looked = candidate.look() => looked,
            () = stop.cancelled() => return None,
        };
        match looked {
            Ok(Looked::Ours(token)) => {
                leads.renewed(began);
                break token;
            }
            Ok(Looked::Anothers | Looked::Changed) => {}
            Err(error) => tracing::warn!(%error, "waiting for the lease"),
        }
        tokio::select! {
            () = sleep(election::RETRY_EVERY) => {}
            () = stop.cancelled() => return None,
        }
    };
    tracing::info!(token, "leading");
    let ends = CancellationToken::new();
    let keeper = tokio::spawn(keep(candidate, token.clone(), leads.clone(), ends.clone()));
    tokio::select! {
        () = sleep(ADMISSION_CACHE) => {}
        () = stop.cancelled() => {}
    }
    Some(Leadership { token, leads: leads.clone(), stop: ends, keeper })
}

impl Leadership {
    /// Returns when the lease is lost.
    pub async fn lost(&self) {
        self.leads.lost().await;
    }

    /// Gives the lease back, so that another replica need not wait for its end.
    pub async fn release(self) {
        self.stop.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "keeping the lease");
        }
    }
}

/// Renews the lease until it is lost or to be given back.
async fn keep(mut candidate: Candidate, token: String, leads: Leads, stop: CancellationToken) {
    let mut pause = election::RENEW_EVERY;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = leads.lost() => return,
            () = stop.cancelled() => {
                leads.end();
                match candidate.release().await {
                    Ok(()) => tracing::info!("released the lease"),
                    Err(error) => tracing::warn!(%error, "releasing the lease"),
                }
                return;
            }
        }
        let began = Instant::now();
        pause = match candidate.look().await {
            Ok(Looked::Ours(renewed)) if renewed == token => {
                leads.renewed(began);
                election::RENEW_EVERY
            }
            // Ours but another: somebody has deleted it, or given it away.
            Ok(Looked::Ours(_) | Looked::Anothers) => {
                leads.end();
                return;
            }
            Ok(Looked::Changed) => election::RETRY_EVERY,
            Err(error) => {
                tracing::warn!(%error, "renewing the lease");
                election::RETRY_EVERY
            }
        };
    }
}

/// A replica and the lease.
struct Candidate {
    leases: Api<Lease>,
    election: Election,
}

/// What came of a look at the lease.
enum Looked {
    /// It is this replica's from now on; its token.
    Ours(String),
    /// It is another's.
    Anothers,
    /// Somebody else wrote it at the same time: it is to be looked at again.
    Changed,
}

/// Why a look at the lease came to nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("Lease {LEASE}: {0}")]
    Api(#[from] kube::Error),
    #[error("Lease {LEASE}: the API server does not answer")]
    Silent(#[from] tokio::time::error::Elapsed),
}

impl Candidate {
    /// Takes or renews the lease, if it may.
    async fn look(&mut self) -> Result<Looked, LookError> {
        let until = Instant::now() + election::RENEW_EVERY;
        let found = timeout_at(until, self.leases.get_opt(LEASE)).await??;
        let found = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let Next::Write(lease) = self.election.look(found, Instant::now(), now()) else { return Ok(Looked::Anothers) };
        match timeout_at(until, self.write(&lease)).await? {
            Ok(written) => Ok(Looked::Ours(election::token(&written))),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(Looked::Changed),
            Err(error) => Err(error.into()),
        }
    }

    async fn release(&self) -> Result<(), LookError> {
        let until = Instant::now() + election::RENEW_EVERY;
        loop {
            let Some(found) = timeout_at(until, self.leases.get_opt(LEASE)).await?? else { return Ok(()) };
            let Some(released) = self.election.release(found, now()) else { return Ok(()) };
            match timeout_at(until, self.write(&released)).await? {
                // A renewal that was given up arrives late.
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                written => return written.map(|_| ()).map_err(Into::into),
            }
        }
    }

    /// On the very version that was looked at, or if there was none.
    async fn write(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        match lease.resource_version() {
            Some(_) => self.leases.replace(LEASE, &PostParams::default(), lease).await,
            None => self.leases.create(&PostParams::default(), lease).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    /// As the controller is while it looks at a fleet for the first time.
    #[tokio::test]
    async fn who_was_busy_for_longer_than_the_lease_lasts_leads_if_it_was_renewed_meanwhile() {
        const SHORT: Duration = Duration::from_millis(50);
        let mut tried = 0;
        // Which of two things that have happened is looked at first is a matter of chance.
        for _ in 0..16 {
            let leads = Leads(watch::Sender::new(Some(Instant::now() + SHORT)));
            let mut lost = Box::pin(leads.lost());
            if poll!(&mut lost).is_ready() {
                // Whoever tests was busy.
                continue;
            }
            sleep(SHORT * 2).await;
            leads.renewed(Instant::now());
            assert!(poll!(&mut lost).is_pending(), "it leads");
            leads.end();
            assert!(poll!(&mut lost).is_ready(), "and then no more");
            tried += 1;
        }
        assert!(tried > 0);
    }
}
