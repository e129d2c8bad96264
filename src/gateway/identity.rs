//! Who a peer is: its client certificate, or the request for one.

use jiff::Timestamp;
use patchwarden_protocol::key::{Fingerprint, PublicKey};
use patchwarden_protocol::report::DeviceRef;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

/// RFC 8410: `id-Ed25519`, of keys and of signatures.
const ED25519: &str = "1.3.101.112";

/// RFC 1123: the longest label.
const MAX_LABEL: usize = 63;

/// Why a certificate says nothing that counts. Its issuer was checked by TLS before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotIdentified {
    /// None was shown.
    #[error("no client certificate: enrol first")]
    NoCertificate,
    /// Not X.509.
    #[error("the client certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not an Ed25519 key.
    #[error("the client certificate's key is not Ed25519")]
    WrongKey,
    /// The common name is not `<namespace>/<name>`.
    #[error("the client certificate's common name is not <namespace>/<name>")]
    WrongName,
}

/// A device as its certificate shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// By name.
    pub device: DeviceRef,
    /// By key.
    pub key: PublicKey,
    /// When the certificate ends.
    pub not_after: Timestamp,
}

impl Identity {
    /// Reads a client certificate in DER.
    pub fn of_certificate(der: &[u8]) -> Result<Self, NotIdentified> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| NotIdentified::Unreadable(error.to_string()))?;
        let key = ed25519(certificate.public_key()).ok_or(NotIdentified::WrongKey)?;
        let mut names = certificate.subject().iter_common_name();
        let device = names
            .next()
            .and_then(|name| name.as_str().ok())
            .and_then(device_ref)
            .filter(|_| names.next().is_none())
            .ok_or(NotIdentified::WrongName)?;
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|error| NotIdentified::Unreadable(error.to_string()))?;
        Ok(Self { device, key, not_after })
    }

    /// The fingerprint of the key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.key.fingerprint()
    }
}

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not PKCS #10.
    #[error("certificate_request is not a PKCS #10 request in DER: {0}")]
    Unreadable(String),
    /// Not an Ed25519 key.
    #[error("certificate_request: the key is not Ed25519")]
    WrongKey,
    /// Not signed by its own key.
    #[error("certificate_request is not signed by its own key")]
    NotSigned,
}

/// The key of a PKCS #10 request, once its signature has proved possession of it.
pub fn key_of_request(der: &[u8]) -> Result<PublicKey, BadRequest> {
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|error| BadRequest::Unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(BadRequest::Unreadable("bytes after its end".into()));
    }
    let info = &request.certification_request_info;
    let key = ed25519(&info.subject_pki).ok_or(BadRequest::WrongKey)?;
    if request.signature_algorithm.algorithm.to_id_string() != ED25519 {
        return Err(BadRequest::WrongKey);
    }
    let verifier = ed25519_dalek::VerifyingKey::from_bytes(&key.to_bytes()).map_err(|_| BadRequest::WrongKey)?;
    let signature =
        ed25519_dalek::Signature::from_slice(&request.signature_value.data).map_err(|_| BadRequest::NotSigned)?;
    // Strict: keys of small order, for which anyone could sign, are refused.
    verifier.verify_strict(info.raw, &signature).map_err(|_| BadRequest::NotSigned)?;
    Ok(key)
}

/// Whether `text` is a DNS-1123 label: a name that a DeviceInventory or a namespace can have.
pub fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL
        && bytes.first().copied().is_some_and(inner)
        && bytes.last().copied().is_some_and(inner)
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

fn device_ref(common_name: &str) -> Option<DeviceRef> {
    let (namespace, name) = common_name.split_once('/')?;
    (is_label(namespace) && is_label(name))
        .then(|| DeviceRef { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn ed25519(spki: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    if spki.algorithm.algorithm.to_id_string() != ED25519 || spki.algorithm.parameters.is_some() {
        return None;
    }
    PublicKey::from_bytes(&spki.subject_public_key.data).ok()
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn key_pair(key: &PrivateKey) -> KeyPair {
        KeyPair::from_pem(&key.to_pem().unwrap()).unwrap()
    }

    fn certificate(common_name: &str, key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.self_signed(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_a_device_and_its_key() {
        let key = PrivateKey::generate();
        let identity = Identity::of_certificate(&certificate("acme/web-1", &key_pair(&key))).unwrap();
        assert_eq!(identity.device, DeviceRef { namespace: "acme".into(), name: "web-1".into() });
        assert_eq!(identity.key, key.public());
    }

    #[test]
    fn other_names_and_keys_are_no_identity() {
        let key = key_pair(&PrivateKey::generate());
        for name in ["web", "acme/", "/web", "acme/web/x", "Acme/web", "acme/../x"] {
            assert_eq!(Identity::of_certificate(&certificate(name, &key)), Err(NotIdentified::WrongName), "{name}");
        }
        let ecdsa = KeyPair::generate().unwrap();
        assert_eq!(Identity::of_certificate(&certificate("acme/web", &ecdsa)), Err(NotIdentified::WrongKey));
        assert!(matches!(Identity::of_certificate(b"x"), Err(NotIdentified::Unreadable(_))));
    }

    #[test]
    fn a_request_proves_possession_of_its_key() {
        let key = PrivateKey::generate();
        let request = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key_pair(&key)).unwrap();
        assert_eq!(key_of_request(request.der()).unwrap(), key.public());
        let mut altered = request.der().to_vec();
        let last = altered.len() - 1;
        altered[last] ^= 1;
        assert_eq!(key_of_request(&altered), Err(BadRequest::NotSigned));
        let mut longer = request.der().to_vec();
        longer.push(0);
        assert!(matches!(key_of_request(&longer), Err(BadRequest::Unreadable(_))));
        let ecdsa = CertificateParams::new(Vec::new()).unwrap();
        let ecdsa = ecdsa.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(key_of_request(ecdsa.der()), Err(BadRequest::WrongKey));
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-1", "0a", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "ä", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
