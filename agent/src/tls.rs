//! TLS 1.3 to the gateway, believing the pinned CA and nobody else.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use patchwarden_protocol::key::Fingerprint;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::identity::{self, Identity};

/// Name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// A gateway that is silent for this and [`KEEPALIVE_TIMEOUT`] more is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{what}: {why}")]
    Material { what: &'static str, why: String },
    #[error("{gateway}: {source}")]
    Connect { gateway: String, source: tonic::transport::Error },
}

/// For `join`: no certificate of our own; the server's chain must lead to the CA with this fingerprint.
pub(crate) fn pinned(pin: Fingerprint) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PinnedCa { pin, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// For everything else: both sides show a certificate.
pub(crate) fn mutual(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    let material = |what| move |why| TlsError::Material { what, why };
    for certificate in identity::certificates(&identity.ca_pem).map_err(material("ca.pem"))? {
        roots.add(certificate)?;
    }
    let chain = identity::certificates(&identity.chain_pem).map_err(material("certificate.pem"))?;
    let pem = identity.key.to_pem().map_err(|error| material("key.pem")(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| material("key.pem")(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connects to `gateway` (`host:port`), whose certificate must be for `server_name`.
pub(crate) async fn connect(gateway: &str, server_name: &str, config: ClientConfig) -> Result<Channel, TlsError> {
    let material = |what, why: String| TlsError::Material { what, why };
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|error| material("server name", format!("{server_name:?}: {error}")))?;
    // `http` because TLS is ours; the authority is what the gateway sees as host.
    let uri: Uri = format!("http://{gateway}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| material("gateway", format!("{gateway:?}: {error}")))?;
    let connector = TlsConnector::from(Arc::new(config));
    let address = gateway.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(dial)
        .await
        .map_err(|source| TlsError::Connect { gateway: gateway.to_owned(), source })
}

/// Accepts a chain that contains the pinned CA's certificate and is valid under it: signatures, name and time.
#[derive(Debug)]
struct PinnedCa {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.pin)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        der: CertificateDer<'static>,
    }

    fn ca() -> Ca {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = parameters.self_signed(&key).unwrap().der().clone();
        Ca { issuer: Issuer::new(parameters, key), der }
    }

    fn leaf(ca: &Ca, name: &str, last_day: u8) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 1, last_day);
        parameters.signed_by(&key, &ca.issuer).unwrap().der().clone()
    }

    fn verify(leaf: &CertificateDer<'_>, sent: &[CertificateDer<'_>], pin: &CertificateDer<'_>) -> bool {
        let provider = Arc::new(ring::default_provider());
        let verifier = PinnedCa { pin: Fingerprint::of(pin), provider };
        // 2026-01-10T12:00:00Z
        let now = UnixTime::since_unix_epoch(Duration::from_hours(491_124));
        verifier.verify_server_cert(leaf, sent, &ServerName::try_from("gw").unwrap(), &[], now).is_ok()
    }

    #[test]
    fn only_a_valid_chain_under_the_pinned_ca_is_accepted() {
        let (ours, theirs) = (ca(), ca());
        let good = leaf(&ours, "gw", 20);
        assert!(verify(&good, std::slice::from_ref(&ours.der), &ours.der));
        assert!(verify(&good, &[theirs.der.clone(), ours.der.clone()], &ours.der));
        assert!(!verify(&good, &[], &ours.der), "the CA was not sent");
        assert!(!verify(&good, std::slice::from_ref(&theirs.der), &ours.der), "another CA was sent");
        let forged = leaf(&theirs, "gw", 20);
        assert!(
            !verify(&forged, &[theirs.der.clone(), ours.der.clone()], &ours.der),
            "the pinned CA is only decoration"
        );
        assert!(!verify(&leaf(&ours, "other", 20), std::slice::from_ref(&ours.der), &ours.der), "another name");
        assert!(!verify(&leaf(&ours, "gw", 5), std::slice::from_ref(&ours.der), &ours.der), "expired");
        assert!(!verify(&good, std::slice::from_ref(&good), &good), "the leaf itself is pinned");
    }
}
