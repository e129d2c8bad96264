//! TLS of the doors: 1.3 only, the serving certificate renewed at half of its life, nothing restarted for it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::trust::Trust;

/// A certificate that has ended may still renew itself for so long, unless its key was revoked: a machine that was off.
pub const RENEWABLE_FOR: SignedDuration = SignedDuration::from_hours(180 * 24);

/// A peer that has not finished its handshake by then is dropped.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Handshakes at the same time: each costs about a millisecond of one core, so more would only queue.
const HANDSHAKES: usize = 256;

/// What cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum NotServable {
    /// rustls does not take it.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The CA is no trust anchor.
    #[error("TLS: the CA's certificates cannot verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// No key or request could be made.
    #[error("TLS: the certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The signed certificate is unreadable.
    #[error("TLS: the signed certificate cannot be read: {0}")]
    Unreadable(String),
}

/// A fresh key and the request for its serving certificate.
pub struct ServingRequest {
    key: KeyPair,
    /// PKCS #10 in DER.
    pub request: Vec<u8>,
}

impl ServingRequest {
    /// For these DNS names and addresses.
    pub fn new(server_names: &[String]) -> Result<Self, NotServable> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(server_names.to_vec())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, request })
    }

    /// The key with its certificate: leaf first, then the CA's.
    pub fn complete(self, chain_pem: &str) -> Result<Serving, NotServable> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| NotServable::Unreadable(error.to_string()))?;
        let leaf = chain.first().ok_or_else(|| NotServable::Unreadable("there is none".into()))?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| NotServable::Unreadable(error.to_string()))?;
        let time =
            |seconds| Timestamp::from_second(seconds).map_err(|error| NotServable::Unreadable(error.to_string()));
        let not_before = time(leaf.validity().not_before.timestamp())?;
        let not_after = time(leaf.validity().not_after.timestamp())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Ok(Serving { chain, key, not_before, not_after })
    }
}

/// A serving certificate with its key.
pub struct Serving {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
}

impl Serving {
    /// When to ask for the next one.
    pub fn half_life(&self) -> Timestamp {
        let half = self.not_after.duration_since(self.not_before) / 2;
        self.not_before.checked_add(half).unwrap_or(self.not_after)
    }

    /// The agents' door: a client certificate by the CA is read if there is one.
    pub fn agents(&self, trust: &Trust) -> Result<Arc<ServerConfig>, NotServable> {
        let mut roots = RootCertStore::empty();
        for certificate in &trust.ca {
            roots.add(certificate.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated().build()?;
        self.config(Arc::new(RenewableClients { inner }), b"h2")
    }

    /// The runners' door: no client certificates.
    pub fn runners(&self) -> Result<Arc<ServerConfig>, NotServable> {
        self.config(WebPkiClientVerifier::no_client_auth(), b"h2")
    }

    /// The API's door: no client certificates, HTTP/1.1.
    pub fn people(&self) -> Result<Arc<ServerConfig>, NotServable> {
        self.config(WebPkiClientVerifier::no_client_auth(), b"http/1.1")
    }

    /// The door of the aggregation layer: the API server's own client certificate, which is checked by `clients` and must be there, HTTP/1.1.
    pub fn aggregation(&self, clients: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, NotServable> {
        self.config(clients, b"http/1.1")
    }

    fn config(&self, clients: Arc<dyn ClientCertVerifier>, protocol: &[u8]) -> Result<Arc<ServerConfig>, NotServable> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        // No resumption: each session shows its certificate anew.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// Accepts, beside valid client certificates, those that ended no longer ago than [`RENEWABLE_FOR`]. Whoever uses the
/// certificate compares its end with the clock: such a peer may renew and nothing else.
#[derive(Debug)]
struct RenewableClients {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for RenewableClients {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verdict = self.inner.verify_client_cert(end_entity, intermediates, now);
        let Err(TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) =
            &verdict
        else {
            return verdict;
        };
        let Ok((_, certificate)) = X509Certificate::from_der(end_entity) else { return verdict };
        let Ok(not_after) = u64::try_from(certificate.validity().not_after.timestamp()) else { return verdict };
        let expired_for = now.as_secs().saturating_sub(not_after);
        if i64::try_from(expired_for).is_ok_and(|seconds| seconds <= RENEWABLE_FOR.as_secs()) {
            self.inner.verify_client_cert(
                end_entity,
                intermediates,
                UnixTime::since_unix_epoch(Duration::from_secs(not_after)),
            )
        } else {
            verdict
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A peer that was refused before it could ask for anything.
#[derive(Debug)]
pub struct TurnedAway {
    /// Its address.
    pub peer: IpAddr,
    /// The reason code in the audit.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

impl TurnedAway {
    /// Only of what a peer has shown: most that do not finish a handshake look whether the port is open, or do not trust the gateway.
    fn for_its_certificate(peer: IpAddr, error: &std::io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<TlsError>()?;
        let TlsError::InvalidCertificate(why) = error else { return None };
        let reason = match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "CertificateEnded",
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "OtherIssuer",
            _ => "BadCertificate",
        };
        Some(Self { peer, reason, detail: error.to_string() })
    }
}

/// Connections of one door, after their handshakes, and those that did not get there. Each is made with the configuration of its moment.
pub fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
) -> (ReceiverStream<std::io::Result<TlsStream<TcpStream>>>, mpsc::Receiver<TurnedAway>) {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    let (turned_away, told) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept(listener, config, sender, turned_away));
    (ReceiverStream::new(receiver), told)
}

async fn accept(
    listener: TcpListener,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    sender: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
    turned_away: mpsc::Sender<TurnedAway>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(permit) = handshakes.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(config) = config.borrow().clone() else { continue };
        let (sender, turned_away, ip) = (sender.clone(), turned_away.clone(), peer.ip());
        tokio::spawn(async move {
            let handshake = async {
                stream.set_nodelay(true)?;
                TlsAcceptor::from(config).accept(stream).await
            };
            match tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                // The receiver is gone only when the door closes.
                Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    if let Some(one) = TurnedAway::for_its_certificate(ip, &error) {
                        // In a flood some are left out, as in the audit.
                        _ = turned_away.try_send(one);
                    }
                }
                Err(_) => {
                    let detail = format!("no TLS handshake within {} s", HANDSHAKE_TIME.as_secs());
                    _ = turned_away.try_send(TurnedAway { peer: ip, reason: "TooSlow", detail });
                }
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, date_time_ymd};

    use super::*;

    /// A CA as the controller has it.
    pub(crate) struct Ca {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Ca {
        pub(crate) fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.distinguished_name.push(DnType::CommonName, "Patchwarden");
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        pub(crate) fn trust(&self, root: &PrivateKey) -> Trust {
            let ca = CertificateDer::pem_slice_iter(self.pem.as_bytes()).map(Result::unwrap).collect();
            Trust { ca_pem: self.pem.clone(), ca, root: root.public(), chain: None }
        }

        pub(crate) fn serving(&self, names: &[&str]) -> Serving {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let request = ServingRequest::new(&names).unwrap();
            let parsed = rcgen::CertificateSigningRequestParams::from_der(&request.request.clone().into()).unwrap();
            let leaf = parsed.signed_by(&self.issuer).unwrap().pem();
            request.complete(&format!("{leaf}{}", self.pem)).unwrap()
        }

        /// PEM of a device's certificate.
        pub(crate) fn device(&self, common_name: &str, key: &PrivateKey, ends: (i32, u8, u8)) -> String {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(ends.0, ends.1, ends.2);
            let pair = KeyPair::from_pem(&key.to_pem().unwrap()).unwrap();
            params.signed_by(&pair, &self.issuer).unwrap().pem()
        }
    }

    fn verify(ca: &Ca, certificate_by: &Ca, now: &str) -> bool {
        let trust = ca.trust(&PrivateKey::generate());
        let mut roots = RootCertStore::empty();
        roots.add(trust.ca[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .unwrap();
        let pem = certificate_by.device("acme/web", &PrivateKey::generate(), (2026, 1, 1));
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let now: Timestamp = now.parse().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().try_into().unwrap()));
        RenewableClients { inner }.verify_client_cert(&certificate, &[], now).is_ok()
    }

    #[test]
    fn an_ended_certificate_is_read_for_180_days() {
        let ca = Ca::new();
        assert!(verify(&ca, &ca, "2025-12-31T00:00:00Z"));
        assert!(verify(&ca, &ca, "2026-06-29T00:00:00Z"));
        assert!(!verify(&ca, &ca, "2026-07-01T00:00:00Z"));
    }

    #[test]
    fn a_certificate_of_another_ca_never_counts() {
        let ca = Ca::new();
        assert!(!verify(&ca, &Ca::new(), "2025-12-31T00:00:00Z"));
        assert!(!verify(&ca, &Ca::new(), "2026-06-29T00:00:00Z"));
    }

    #[test]
    fn a_serving_certificate_is_renewed_at_half_of_its_life() {
        let serving = Ca::new().serving(&["gateway.example", "127.0.0.1"]);
        assert!(serving.half_life() > serving.not_before && serving.half_life() < serving.not_after);
        assert!(serving.runners().is_ok());
    }
}
