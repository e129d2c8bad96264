//! Certificates through the Kubernetes CSR API. The gateway asks; the controller, which holds the CA, decides and signs.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use patchwarden_protocol::report::DeviceRef;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::metrics::Metrics;
use crate::api::{ANNOTATION_DEVICE, MANAGER_GATEWAY, SIGNER_AGENT, SIGNER_GATEWAY};

/// Days, so that a stolen certificate dies by itself; agents renew at half of it.
const LIFETIME_SECONDS: i32 = 7 * 24 * 3600;

/// The controller signs within a second; longer means that it is not there, and the agent asks again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NoCertificate {
    /// The API server refuses or is away.
    #[error("CertificateSigningRequest: {0}")]
    Api(#[from] kube::Error),
    /// Watching it fails.
    #[error("CertificateSigningRequest {name}: {source}")]
    Watch {
        /// The object.
        name: String,
        /// Why.
        source: kube::runtime::wait::Error,
    },
    /// Nobody signed in time.
    #[error("CertificateSigningRequest {0} was not signed within 20 s: is the controller running?")]
    Late(String),
    /// It disappeared.
    #[error("CertificateSigningRequest {0} was deleted by somebody else")]
    Deleted(String),
    /// The controller said no.
    #[error("CertificateSigningRequest {name} was {verdict}: {message}")]
    Refused {
        /// The object.
        name: String,
        /// `Denied` or `Failed`.
        verdict: String,
        /// The controller's words.
        message: String,
    },
    /// What was signed is no certificate.
    #[error("CertificateSigningRequest {0}: its certificate is not PEM")]
    NotPem(String),
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// This gateway's own doors.
    Serving,
    /// A device, by the name that the controller has to put into it.
    Device(&'a DeviceRef),
}

/// Asks for a certificate for a PKCS #10 request (DER); answers leaf and CA in PEM.
pub async fn request(
    client: &Client,
    metrics: &Metrics,
    purpose: Purpose<'_>,
    request: &[u8],
) -> Result<String, NoCertificate> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let parameters = PostParams { field_manager: Some(MANAGER_GATEWAY.to_owned()), ..PostParams::default() };
    let created = api.create(&parameters, &object(purpose, request)).await?;
    metrics.wrote("create", "certificatesigningrequests");
    let name = created.name_any();
    let certificate = signed(&api, &name).await;
    // It has served; if this fails, Kubernetes collects it after an hour.
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => metrics.wrote("delete", "certificatesigningrequests"),
        Err(error) => tracing::warn!(%name, %error, "a CertificateSigningRequest that has served cannot be deleted"),
    }
    certificate
}

async fn signed(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String, NoCertificate> {
    let decided = |object: Option<&CertificateSigningRequest>| object.is_none_or(|object| verdict(object).is_some());
    let object = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, decided))
        .await
        .map_err(|_| NoCertificate::Late(name.to_owned()))?
        .map_err(|source| NoCertificate::Watch { name: name.to_owned(), source })?
        .ok_or_else(|| NoCertificate::Deleted(name.to_owned()))?;
    let bytes = verdict(&object).unwrap_or(Err(NoCertificate::Late(name.to_owned())))?;
    let pem = String::from_utf8(bytes).map_err(|_| NoCertificate::NotPem(name.to_owned()))?;
    let count = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().count();
    if count == 0 { Err(NoCertificate::NotPem(name.to_owned())) } else { Ok(pem) }
}

/// The certificate or the refusal; `None` while there is neither.
fn verdict(object: &CertificateSigningRequest) -> Option<Result<Vec<u8>, NoCertificate>> {
    let status = object.status.as_ref()?;
    if let Some(certificate) = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty()) {
        return Some(Ok(certificate.0.clone()));
    }
    let refusal = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed")?;
    Some(Err(NoCertificate::Refused {
        name: object.name_any(),
        verdict: refusal.type_.clone(),
        message: refusal.message.clone().or_else(|| refusal.reason.clone()).unwrap_or_default(),
    }))
}

fn object(purpose: Purpose<'_>, request: &[u8]) -> CertificateSigningRequest {
    let (prefix, signer, auth, device) = match purpose {
        Purpose::Serving => ("patchwarden-gateway-", SIGNER_GATEWAY, "server auth", None),
        Purpose::Device(device) => ("patchwarden-agent-", SIGNER_AGENT, "client auth", Some(device)),
    };
    let mut object = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem("CERTIFICATE REQUEST", request).into_bytes()),
            signer_name: signer.to_owned(),
            expiration_seconds: Some(LIFETIME_SECONDS),
            usages: Some(vec!["digital signature".to_owned(), auth.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    object.metadata.generate_name = Some(prefix.to_owned());
    object.metadata.annotations = device.map(|device| [(ANNOTATION_DEVICE.to_owned(), device.to_string())].into());
    object
}

/// RFC 7468: lines of 64 characters.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};

    use super::*;

    #[test]
    fn a_request_survives_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
        let text = pem("CERTIFICATE REQUEST", request.der());
        let again = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).unwrap();
        assert_eq!(again.as_ref(), request.der().as_ref());
    }

    #[test]
    fn a_device_is_named_in_its_request() {
        let device = DeviceRef { namespace: "acme".into(), name: "web".into() };
        let object = object(Purpose::Device(&device), b"x");
        assert_eq!(object.spec.signer_name, "patchwarden.io/agent");
        assert_eq!(object.spec.usages.unwrap(), ["digital signature", "client auth"]);
        assert_eq!(object.metadata.annotations.unwrap()["patchwarden.io/device"], "acme/web");
    }

    #[test]
    fn a_verdict_is_a_certificate_or_a_refusal() {
        let mut object = object(Purpose::Serving, b"x");
        assert!(verdict(&object).is_none());
        let condition = |type_: &str| CertificateSigningRequestCondition {
            type_: type_.into(),
            message: Some("because".into()),
            ..CertificateSigningRequestCondition::default()
        };
        let mut status =
            CertificateSigningRequestStatus { conditions: Some(vec![condition("Approved")]), certificate: None };
        object.status = Some(status.clone());
        assert!(verdict(&object).is_none(), "approved and not signed yet");
        status.conditions = Some(vec![condition("Denied")]);
        object.status = Some(status.clone());
        assert!(matches!(verdict(&object), Some(Err(NoCertificate::Refused { message, .. })) if message == "because"));
        status.certificate = Some(ByteString(b"pem".to_vec()));
        object.status = Some(status);
        assert_eq!(verdict(&object).unwrap().unwrap(), b"pem");
    }
}
