//! How a machine becomes a device: a join token and a key in, a certificate or "pending" out; and how it stays one.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use patchwarden_protocol::agent_v1::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse};
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::key::{Fingerprint, PublicKey};
use patchwarden_protocol::report::DeviceRef;
use tokio::time::Instant;
use tonic::Status;

use super::certificates::{self, NoCertificate, Purpose};
use super::devices::{DeviceError, NotAdmitted, Seen};
use super::identity::{BadRequest, Identity, NotIdentified, is_label, key_of_request};
use super::join::{self, Admission, TokenRefused};
use super::sessions::Purse;
use super::{Shared, clean};
use crate::api::device_inventory::{DeviceType, Lifecycle};
use crate::api::{DeviceInventory, DeviceInventorySpec};
use crate::shell;
use crate::store::{StoreError, TokenUse, TokenUser};

/// A device gets a new certificate no more often than this; an agent wants one at half of its life.
pub const RENEWAL_PAUSE: Duration = Duration::from_mins(1);

/// Why a machine gets no certificate now.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    /// A field of the request.
    #[error("{0}")]
    BadField(&'static str),
    /// The certificate request.
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    /// The join token.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// The client certificate.
    #[error(transparent)]
    NotIdentified(#[from] NotIdentified),
    /// The device.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// Another key than the certificate's.
    #[error("certificate_request is for another key than the client certificate's")]
    OtherKey,
    /// The client certificate has ended: it may renew itself and nothing else.
    #[error("the client certificate has ended: renew it first")]
    Ended,
    /// The client certificate ended too long ago.
    #[error("the client certificate ended at {0}, more than 180 days ago: enrol anew")]
    TooLate(Timestamp),
    /// Too many at once.
    #[error("too many requests for certificates at the moment: ask again")]
    Busy,
    /// This device begins too many sessions.
    #[error(
        "this device begins sessions too often: is its agent started again and again, or is there a copy of this machine? Ask again later"
    )]
    TooOften,
    /// The token's ConfigMap cannot be read now.
    #[error("join token: {0}")]
    TokenUnread(Box<kube::Error>),
    /// The resource cannot be read or written now.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No certificate was signed now.
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no CA yet.
    #[error("the controller has not published its CA yet")]
    NoTrust,
}

impl NotEnrolled {
    /// Whether this is a verdict about the peer, and its reason code; otherwise asking again may help.
    fn verdict(&self) -> Option<&'static str> {
        match self {
            Self::BadField(_) | Self::BadRequest(_) => Some("BadRequest"),
            Self::Token(refused) => Some(refused.reason()),
            Self::NotIdentified(_) => Some("NotIdentified"),
            Self::NotAdmitted(NotAdmitted::Retired(_)) => Some("Retired"),
            Self::NotAdmitted(NotAdmitted::OtherKey { .. }) | Self::OtherKey => Some("OtherKey"),
            Self::Ended => Some("CertificateEnded"),
            Self::TooOften => Some("TooOften"),
            Self::TooLate(_) => Some("TooLate"),
            Self::NoCertificate(NoCertificate::Refused { .. }) => Some("SignerRefused"),
            Self::Device(DeviceError::Gone(_)) => Some("Deleted"),
            Self::Device(DeviceError::NoNamespace(_)) => Some("NoNamespace"),
            Self::Device(DeviceError::Invalid { .. }) => Some("Invalid"),
            Self::Busy
            | Self::TokenUnread(_)
            | Self::Device(DeviceError::Api { .. })
            | Self::NoCertificate(_)
            | Self::Store(_)
            | Self::NoTrust => None,
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::BadField(_) | Self::BadRequest(_) => Status::invalid_argument(self.to_string()),
            Self::NotIdentified(_) | Self::Ended => Status::unauthenticated(self.to_string()),
            Self::Busy | Self::TooOften => Status::resource_exhausted(self.to_string()),
            Self::Store(_) => Status::unavailable("the gateway's database fails"),
            Self::TokenUnread(_) | Self::Device(DeviceError::Api { .. }) => {
                Status::unavailable("the Kubernetes API cannot be asked at the moment")
            }
            Self::NoCertificate(NoCertificate::Refused { .. }) => Status::permission_denied(self.to_string()),
            Self::NoCertificate(_) | Self::NoTrust => Status::unavailable(self.to_string()),
            Self::Token(_) | Self::NotAdmitted(_) | Self::OtherKey | Self::TooLate(_) | Self::Device(_) => {
                Status::permission_denied(self.to_string())
            }
        }
    }
}

/// Answers Enroll.
pub async fn enroll(shared: &Arc<Shared>, request: EnrollRequest, peer: &str) -> Result<EnrollResponse, Status> {
    let wanted = clean(&request.name, 63);
    match try_enroll(shared, request).await {
        Ok(response) => {
            let pending = response.certificate_chain_pem.is_empty();
            shared.metrics.enrolments.with_label_values(&[if pending { "pending" } else { "issued" }]).inc();
            Ok(response)
        }
        Err(error) => {
            failed(shared, "Enroll", &format!("peer {peer}"), &wanted, &error, &shared.metrics.enrolments).await;
            Err(error.status())
        }
    }
}

/// Answers Renew.
pub async fn renew(
    shared: &Arc<Shared>,
    identity: Result<Identity, NotIdentified>,
    request: &RenewRequest,
    peer: &str,
) -> Result<RenewResponse, Status> {
    let device = identity.as_ref().map_or_else(|_| String::new(), |identity| identity.device.to_string());
    match try_renew(shared, identity, request).await {
        Ok(response) => {
            shared.metrics.renewals.with_label_values(&["issued"]).inc();
            Ok(response)
        }
        Err(error) => {
            failed(shared, "Renew", &format!("peer {peer}"), &device, &error, &shared.metrics.renewals).await;
            Err(error.status())
        }
    }
}

async fn failed(
    shared: &Shared,
    what: &str,
    who: &str,
    object: &str,
    error: &NotEnrolled,
    counter: &prometheus::IntCounterVec,
) {
    if let Some(reason) = error.verdict() {
        tracing::warn!(what, who, object, reason, %error, "refused");
        counter.with_label_values(&["refused"]).inc();
        shared.audit_refusal(who, what, object, reason, &error.to_string()).await;
    } else {
        tracing::warn!(what, who, object, %error, "failed; the agent asks again");
        counter.with_label_values(&["failed"]).inc();
    }
}

async fn try_enroll(shared: &Arc<Shared>, request: EnrollRequest) -> Result<EnrollResponse, NotEnrolled> {
    if !shared.may_enroll() {
        return Err(NotEnrolled::Busy);
    }
    let token: JoinToken =
        request.token.parse().map_err(|_| NotEnrolled::BadField("token is not of the form <id>.<secret>"))?;
    if !is_label(&request.name) {
        return Err(NotEnrolled::BadField("name is not a DNS-1123 label (a-z, 0-9 and -, at most 63)"));
    }
    let device_type = match request.device_type.as_str() {
        "Server" => DeviceType::Server,
        "Workstation" => DeviceType::Workstation,
        _ => return Err(NotEnrolled::BadField("device_type is neither Server nor Workstation")),
    };
    let key = key_of_request(&request.certificate_request)?;
    let trust = shared.trust.borrow().clone().ok_or(NotEnrolled::NoTrust)?;
    let admission = admit(shared, &token).await?;
    let device = DeviceRef { namespace: admission.namespace.clone(), name: request.name };

    let found = find(shared, &device).await?;
    spend(shared, &token, &admission, &device, &key.fingerprint(), found.as_deref()).await?;
    let seen = match found {
        Some(found) => found,
        None => create(shared, &device, device_type, &key, admission.accept).await?,
    };
    let mut response = EnrollResponse {
        ca_pem: trust.ca_pem,
        root_public_key: trust.root.to_bytes().to_vec(),
        namespace: device.namespace.clone(),
        name: device.name.clone(),
        ..EnrollResponse::default()
    };
    let fingerprint = key.fingerprint();
    match seen.admits(&device, &fingerprint) {
        Ok(()) => {
            let purpose = Purpose::Device(&device);
            response.certificate_chain_pem =
                certificates::request(&shared.client, &shared.metrics, purpose, &request.certificate_request).await?;
            tracing::info!(%device, key = %fingerprint, token = token.id(), "device enrolled");
            let detail = format!("by join token {}", token.id());
            shared.audit(fingerprint.as_str(), "Enroll", &device.to_string(), "Issued", &detail).await;
        }
        Err(retired @ NotAdmitted::Retired(_)) => return Err(retired.into()),
        Err(NotAdmitted::OtherKey { .. }) => {
            let pending = Some(fingerprint.to_string());
            let new = shared.devices.write(&device, |inventory| inventory.pending_key = pending).await?;
            if new {
                tracing::info!(%device, key = %fingerprint, token = token.id(), "a key waits to be accepted");
                let detail = format!("by join token {}", token.id());
                shared.audit(fingerprint.as_str(), "Enroll", &device.to_string(), "Pending", &detail).await;
            }
            response.pending_fingerprint = fingerprint.into();
        }
    }
    Ok(response)
}

/// Checks the token.
async fn admit(shared: &Shared, token: &JoinToken) -> Result<Admission, NotEnrolled> {
    let maps: Api<ConfigMap> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let map = maps.get_opt(&token.config_map()).await.map_err(|error| NotEnrolled::TokenUnread(Box::new(error)))?;
    Ok(join::admit(token, map.as_ref(), shell::now())?)
}

/// Spends one of the token's uses, unless this device and key have spent one before.
async fn spend(
    shared: &Shared,
    token: &JoinToken,
    admission: &Admission,
    device: &DeviceRef,
    key: &Fingerprint,
    found: Option<&Seen>,
) -> Result<(), NotEnrolled> {
    let user = TokenUser { key, device, is_enrolled: found.is_some_and(|seen| seen.has(key)) };
    match shared.store.use_join_token(token.id(), user, admission.uses, shell::now()).await? {
        TokenUse::Spent | TokenUse::Repeated => Ok(()),
        TokenUse::Exhausted => Err(TokenRefused::Spent.into()),
    }
}

/// The device, by the API server's word and not the watch's: a person may have accepted the key this moment.
async fn find(shared: &Shared, device: &DeviceRef) -> Result<Option<Arc<Seen>>, NotEnrolled> {
    match shared.devices.fetch(device).await {
        Ok(seen) => Ok(Some(seen)),
        Err(DeviceError::Gone(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn create(
    shared: &Shared,
    device: &DeviceRef,
    device_type: DeviceType,
    key: &PublicKey,
    accept: bool,
) -> Result<Arc<Seen>, NotEnrolled> {
    let spec = DeviceInventorySpec {
        duplicate_resolved: None,
        device_type,
        time_zone: None,
        accepted_key: accept.then(|| key.fingerprint().into()),
        lifecycle: Lifecycle::Active,
        suspend: false,
    };
    let mut object = DeviceInventory::new(&device.name, spec);
    object.metadata.namespace = Some(device.namespace.clone());
    match shared.devices.create(&object).await? {
        Some(created) => Ok(created),
        // Another request was faster.
        None => Ok(shared.devices.fetch(device).await?),
    }
}

async fn try_renew(
    shared: &Shared,
    identity: Result<Identity, NotIdentified>,
    request: &RenewRequest,
) -> Result<RenewResponse, NotEnrolled> {
    let identity = identity?;
    let Identity { device, key, not_after } = &identity;
    // Seconds matter here no more than the days of the certificate; TLS has refused what ended long ago, at its start.
    if shell::now().duration_since(*not_after) > super::tls::RENEWABLE_FOR + SignedDuration::from_hours(1) {
        return Err(NotEnrolled::TooLate(*not_after));
    }
    if key_of_request(&request.certificate_request)? != *key {
        return Err(NotEnrolled::OtherKey);
    }
    admitted(shared, device, &key.fingerprint()).await?;
    if shared.renewed_lately(device) {
        return Err(NotEnrolled::Busy);
    }
    let purpose = Purpose::Device(device);
    let certificate_chain_pem =
        certificates::request(&shared.client, &shared.metrics, purpose, &request.certificate_request).await?;
    shared.renewed(device);
    tracing::info!(%device, "certificate renewed");
    shared.audit(key.fingerprint().as_str(), "Renew", &device.to_string(), "Issued", "").await;
    Ok(RenewResponse { certificate_chain_pem })
}

/// Whether a device is believed by `key` now, by the watch or else by the API server's own word.
pub async fn admitted(shared: &Shared, device: &DeviceRef, key: &Fingerprint) -> Result<(), NotEnrolled> {
    if let Some(seen) = shared.devices.cached(device)
        && seen.admits(device, key).is_ok()
    {
        return Ok(());
    }
    Ok(shared.devices.fetch(device).await?.admits(device, key)?)
}

/// Opens the way to a session: who is it, is it believed, and does it not come too often?
pub async fn admit_session(
    shared: &Shared,
    identity: Result<Identity, NotIdentified>,
    peer: &str,
) -> Result<(Identity, Purse), Status> {
    let device = identity.as_ref().map_or_else(|_| String::new(), |identity| identity.device.to_string());
    let checked = async {
        let identity = identity?;
        if shell::now() >= identity.not_after {
            return Err(NotEnrolled::Ended);
        }
        admitted(shared, &identity.device, &identity.fingerprint()).await?;
        let purse = shared.sessions.begin(&identity.device, Instant::now()).ok_or(NotEnrolled::TooOften)?;
        Ok((identity, purse))
    };
    match checked.await {
        Ok(admitted) => Ok(admitted),
        Err(error) => {
            if let Some(reason) = error.verdict() {
                tracing::warn!(peer, device, reason, %error, "session refused");
                shared.audit_refusal(&format!("peer {peer}"), "Session", &device, reason, &error.to_string()).await;
            }
            Err(error.status())
        }
    }
}
