//! Signs the certificates of agents and gateways: the Kubernetes CSR API with signers of our own, so that the gateway
//! forwards requests and holds no CA key.
//!
//! A request is approved only if the gateway's service account made it and, for an agent, if its key is the accepted one of the
//! device that the request names. Whatever else the request asks for is ignored: the certificate's contents are decided here.

use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use patchwarden_protocol::key::PublicKey;
use rcgen::{
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use serde_json::json;

use super::keys::Keys;
use crate::api::device_inventory::Lifecycle;
use crate::api::{ANNOTATION_DEVICE, DeviceInventory, SIGNER_AGENT, SIGNER_GATEWAY};

/// A certificate counts from a little earlier, for clocks that are behind.
const BACKDATE: Duration = Duration::from_mins(10);

/// Life of an agent's certificate: it renews itself at half of it, so a machine may be off for some days.
const AGENT_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// Life of a gateway's certificate.
const GATEWAY_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
enum SignError {
    /// It is against the rules: denied for good.
    #[error("{0}")]
    Denied(String),
    /// The API server: tried again at the request's next event.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

/// Signs requests until the watch ends, which it does not.
pub async fn run(client: Client, keys: &Keys, gateway_user: &str, now: fn() -> Timestamp) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let mut events =
        std::pin::pin!(watcher(requests.clone(), watcher::Config::default()).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let request = match event {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%error, "watching CertificateSigningRequests");
                continue;
            }
        };
        let name = request.name_any();
        if ![SIGNER_AGENT, SIGNER_GATEWAY].contains(&request.spec.signer_name.as_str()) || is_done(&request) {
            continue;
        }
        match sign(&client, keys, &request, gateway_user, now()).await {
            Ok(certificate) => match approve(&requests, &name, &certificate, now()).await {
                Ok(()) => tracing::info!(request = name, "signed a certificate"),
                Err(error) => tracing::warn!(request = name, %error, "cannot write the certificate"),
            },
            Err(SignError::Denied(why)) => {
                tracing::warn!(request = name, why, "denied a certificate");
                if let Err(error) = deny(&requests, &name, &why, now()).await {
                    tracing::warn!(request = name, %error, "cannot write the denial");
                }
            }
            Err(error) => tracing::warn!(request = name, %error, "cannot sign"),
        }
    }
}

fn is_done(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .is_some_and(|status| status.certificate.is_some() || status.conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

async fn sign(
    client: &Client,
    keys: &Keys,
    request: &CertificateSigningRequest,
    gateway_user: &str,
    now: Timestamp,
) -> Result<String, SignError> {
    let denied = |why: &str| SignError::Denied(why.to_owned());
    if request.spec.username.as_deref() != Some(gateway_user) {
        return Err(SignError::Denied(format!("only {gateway_user} may ask for certificates of this signer")));
    }
    let pem = String::from_utf8(request.spec.request.0.clone()).map_err(|_| denied("spec.request is not PEM"))?;
    // Verifies the request's own signature: the proof that its maker holds the key.
    let mut parsed = CertificateSigningRequestParams::from_pem(&pem)
        .map_err(|error| SignError::Denied(format!("spec.request: {error}")))?;
    let (lifetime, ca) = if request.spec.signer_name == SIGNER_AGENT {
        describe_agent(client, request, &mut parsed).await?;
        (AGENT_LIFETIME, &keys.ca)
    } else {
        describe_gateway(&mut parsed)?;
        (GATEWAY_LIFETIME, keys.serving_ca())
    };
    let start = std::time::SystemTime::from(now);
    parsed.params.not_before = (start - BACKDATE).into();
    parsed.params.not_after = (start + lifetime).into();
    parsed.params.is_ca = IsCa::ExplicitNoCa;
    parsed.params.use_authority_key_identifier_extension = true;
    let certificate = parsed.signed_by(&ca.issuer)?;
    Ok(format!("{}{}", certificate.pem(), ca.pem))
}

/// An agent's certificate names its device and serves TLS clients only.
async fn describe_agent(
    client: &Client,
    request: &CertificateSigningRequest,
    parsed: &mut CertificateSigningRequestParams,
) -> Result<(), SignError> {
    let wanted = request.annotations().get(ANNOTATION_DEVICE).map(String::as_str).unwrap_or_default();
    let (namespace, name) = wanted
        .split_once('/')
        .ok_or_else(|| SignError::Denied(format!("annotation {ANNOTATION_DEVICE} must be <namespace>/<name>")))?;
    let devices: Api<DeviceInventory> = Api::namespaced(client.clone(), namespace);
    let device = devices
        .get_opt(name)
        .await?
        .ok_or_else(|| SignError::Denied(format!("DeviceInventory {wanted} does not exist")))?;
    let key = PublicKey::from_bytes(parsed.public_key.der_bytes())
        .map_err(|_| SignError::Denied("spec.request: the key of an agent must be Ed25519".to_owned()))?;
    if device.spec.lifecycle == Lifecycle::Retired {
        return Err(SignError::Denied(format!("DeviceInventory {wanted} is retired")));
    }
    if device.spec.accepted_key.as_deref() != Some(key.fingerprint().as_str()) {
        return Err(SignError::Denied(format!(
            "spec.acceptedKey of DeviceInventory {wanted} is not {}",
            key.fingerprint()
        )));
    }
    parsed.params.distinguished_name = DistinguishedName::new();
    parsed.params.distinguished_name.push(DnType::CommonName, wanted);
    parsed.params.subject_alt_names.clear();
    parsed.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parsed.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(())
}

/// A gateway's certificate keeps the DNS names and addresses that it asked for and serves TLS servers only.
fn describe_gateway(parsed: &mut CertificateSigningRequestParams) -> Result<(), SignError> {
    parsed.params.subject_alt_names.retain(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)));
    if parsed.params.subject_alt_names.is_empty() {
        return Err(SignError::Denied("spec.request: a gateway needs a DNS name or an IP address".to_owned()));
    }
    parsed.params.distinguished_name = DistinguishedName::new();
    parsed.params.distinguished_name.push(DnType::CommonName, "patchwarden-gateway");
    parsed.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parsed.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(())
}

async fn approve(
    requests: &Api<CertificateSigningRequest>,
    name: &str,
    certificate: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let approval = condition("Approved", "the gateway asked, and the key is accepted", now);
    requests.patch_approval(name, &PatchParams::default(), &Patch::Merge(approval)).await?;
    let certificate = json!({"status": {"certificate": ByteString(certificate.as_bytes().to_vec())}});
    requests.patch_status(name, &PatchParams::default(), &Patch::Merge(certificate)).await?;
    Ok(())
}

async fn deny(
    requests: &Api<CertificateSigningRequest>,
    name: &str,
    why: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let denial = condition("Denied", why, now);
    requests.patch_approval(name, &PatchParams::default(), &Patch::Merge(denial)).await?;
    Ok(())
}

fn condition(type_: &str, message: &str, now: Timestamp) -> serde_json::Value {
    json!({"status": {"conditions": [CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some("Patchwarden".to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }]}})
}
