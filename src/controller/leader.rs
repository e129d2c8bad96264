//! One leader, and a token by which the API server knows it.
//!
//! The token, `<holderIdentity>/<leaseTransitions>`, goes into each install Job; a ValidatingAdmissionPolicy whose parameter is
//! the Lease compares the two. A leader that was paused past its lease can therefore create nothing, whatever it believes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Settings;

/// Name of the Lease.
pub const LEASE: &str = "patchwarden-controller";

/// A lease is good for so long without renewal (seconds): a new leader acts within 20 s of the old one's death.
const DURATION_SECONDS: u64 = 15;

/// It is renewed so long before its end (seconds).
const GRACE_SECONDS: u64 = 5;

/// The API server's admission may use a Lease that is this old: a new leader waits before it lists and plans.
const ADMISSION_CACHE: Duration = Duration::from_secs(2);

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The lease manager.
    #[error("lease {LEASE}: {0}")]
    Lease(#[from] LeaseManagerError),
    /// The API server.
    #[error("lease {LEASE}: {0}")]
    Api(#[from] kube::Error),
}

/// Leading.
pub struct Leadership {
    /// `<holderIdentity>/<leaseTransitions>`.
    pub token: String,
    state: watch::Receiver<bool>,
    manager: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

/// Waits until this replica leads; `None` when `stop` came first.
pub async fn acquire(
    client: &Client,
    settings: &Settings,
    stop: &CancellationToken,
) -> Result<Option<Leadership>, LeaderError> {
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(settings.namespace.clone())
        .with_identity(settings.identity.clone())
        .with_duration(DURATION_SECONDS)
        .with_grace(GRACE_SECONDS)
        .build()
        .await?;
    let (mut state, manager) = manager.watch().await;
    tracing::info!(identity = settings.identity, "waiting for the lease");
    let led = tokio::select! {
        led = state.wait_for(|leads| *leads) => led.is_ok(),
        () = stop.cancelled() => false,
    };
    if !led {
        drop(state);
        // Stopped, or the manager ended without ever leading: then its error says why.
        return match manager.await {
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(_)) | Err(_) => Ok(None),
        };
    }
    let lease = Api::<Lease>::namespaced(client.clone(), &settings.namespace).get(LEASE).await?;
    let transitions = lease.spec.and_then(|spec| spec.lease_transitions).unwrap_or_default();
    let token = format!("{}/{transitions}", settings.identity);
    tracing::info!(token, "leading");
    tokio::time::sleep(ADMISSION_CACHE).await;
    Ok(Some(Leadership { token, state, manager }))
}

impl Leadership {
    /// Returns when the lease is lost.
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        // An error means that the manager ended: nobody renews the lease any more, which is the same.
        let _ = state.wait_for(|leads| !leads).await;
    }

    /// Gives the lease back, so that another replica need not wait for its end.
    pub async fn release(self) {
        drop(self.state);
        match self.manager.await {
            Ok(Ok(_)) => tracing::info!("released the lease"),
            Ok(Err(error)) => tracing::warn!(%error, "releasing the lease"),
            Err(error) => tracing::warn!(%error, "releasing the lease"),
        }
    }
}
