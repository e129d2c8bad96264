//! TLS of the doors: 1.3 only, the serving certificate renewed at half of its life, nothing restarted for it.
//!
//! Who has shown nothing yet gets little: an address so many handshakes at a time, and of the agents' door those without a client
//! certificate so many connections, for so long. With one there is no limit: a site may have all its machines behind one address.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::places::{Place, Places};
use super::trust::Trust;

/// A certificate that has ended may still renew itself for so long, unless its key was revoked: a machine that was off.
pub const RENEWABLE_FOR: SignedDuration = SignedDuration::from_hours(180 * 24);

/// A peer that has not finished its handshake by then is dropped.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Handshakes that are worked on at the same time, in all and of one address. Each costs about a millisecond of one core, so more would make
/// all of them slow.
const HANDSHAKES: (usize, usize) = (1_024, 64);

/// Connections whose handshake is not over, and how many of them a single address may have: a site whose ten thousand machines come back at once
/// behind one address waits for its turns. Who waits costs some KB.
const UNFINISHED: (usize, usize) = (20_480, 16_384);

/// And for so long: an agent waits no longer either.
const TURN_TIME: Duration = Duration::from_secs(20);

/// Connections of the agents' door without a client certificate, in all and of one address: machines that enrol.
const STRANGERS: (usize, usize) = (1_024, 256);

/// And for so long: to enrol takes a second, and a certificate that is waited for 20.
const STRANGER_TIME: Duration = Duration::from_mins(1);

/// Connections that were accepted and not served yet, and refusals that were not told yet.
const QUEUE: usize = 256;

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
    fn too_many(peer: IpAddr, what: &str) -> Self {
        Self { peer, reason: "TooMany", detail: format!("{what}, of this address or of all") }
    }

    /// Only of what a peer has shown: most that do not finish a handshake look whether the port is open, or do not trust the gateway.
    fn for_its_certificate(peer: IpAddr, error: &io::Error) -> Option<Self> {
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

/// What peers may have of a door before they have shown who they are.
#[derive(Clone, Debug)]
pub struct Limits {
    unfinished: Places,
    handshakes: Arc<Semaphore>,
    /// Connections without a client certificate, and how long they last, where the door is for those that have one.
    strangers: Option<(Places, Duration)>,
}

impl Limits {
    /// Of a door where a client certificate says who comes.
    pub fn of_certificates() -> Self {
        Self { strangers: Some((Places::new(STRANGERS.0, STRANGERS.1), STRANGER_TIME)), ..Self::of_tokens() }
    }

    /// Of a door where something else does.
    pub fn of_tokens() -> Self {
        Self::new(Places::new(UNFINISHED.0, HANDSHAKES.1).with_common(UNFINISHED.1))
    }

    fn new(unfinished: Places) -> Self {
        Self { unfinished, handshakes: Arc::new(Semaphore::new(HANDSHAKES.0)), strangers: None }
    }
}

/// A connection after its handshake. It ends by itself where it is a stranger's.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    stranger: Option<Stranger>,
}

#[derive(Debug)]
struct Stranger {
    until: Pin<Box<Sleep>>,
    _place: Place,
}

impl Connection {
    /// What TLS knows of it.
    pub fn tls(&self) -> &TlsStream<TcpStream> {
        &self.stream
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always reads, so that this is asked whatever else the connection waits for.
        if let Some(stranger) = &mut self.stranger
            && stranger.until.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// Connections of one door, after their handshakes, and those that did not get there. Each is made with the configuration of its moment.
pub fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    limits: Limits,
) -> (ReceiverStream<io::Result<Connection>>, mpsc::Receiver<TurnedAway>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (turned_away, told) = mpsc::channel(QUEUE);
    tokio::spawn(accept(listener, config, limits, sender, turned_away));
    (ReceiverStream::new(receiver), told)
}

async fn accept(
    listener: TcpListener,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    limits: Limits,
    sender: mpsc::Sender<io::Result<Connection>>,
    turned_away: mpsc::Sender<TurnedAway>,
) {
    loop {
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
        let ip = peer.ip();
        let Some(place) = limits.unfinished.take(ip) else {
            // In a flood some are left out, as in the audit.
            _ = turned_away.try_send(TurnedAway::too_many(ip, "too many handshakes that are not finished"));
            continue;
        };
        let (limits, sender, turned_away) = (limits.clone(), sender.clone(), turned_away.clone());
        tokio::spawn(async move {
            let turn = async { Some((place.turn().await?, limits.handshakes.clone().acquire_owned().await.ok()?)) };
            let Ok(Some(turn)) = tokio::time::timeout(TURN_TIME, turn).await else {
                _ = turned_away.try_send(TurnedAway::too_many(ip, "too many handshakes that are not finished"));
                return;
            };
            let handshake = async {
                stream.set_nodelay(true)?;
                TlsAcceptor::from(config).accept(stream).await
            };
            match tokio::time::timeout(HANDSHAKE_TIME, handshake).await {
                Ok(Ok(stream)) => match connection(stream, ip, &limits) {
                    // The receiver is gone only when the door closes.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(one) => _ = turned_away.try_send(one),
                },
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    if let Some(one) = TurnedAway::for_its_certificate(ip, &error) {
                        _ = turned_away.try_send(one);
                    }
                }
                Err(_) => {
                    let detail = format!("no TLS handshake within {} s", HANDSHAKE_TIME.as_secs());
                    _ = turned_away.try_send(TurnedAway { peer: ip, reason: "TooSlow", detail });
                }
            }
            drop((turn, place));
        });
    }
}

fn connection(stream: TlsStream<TcpStream>, peer: IpAddr, limits: &Limits) -> Result<Connection, TurnedAway> {
    let is_known = stream.get_ref().1.peer_certificates().is_some();
    let stranger = match &limits.strangers {
        Some((places, time)) if !is_known => {
            let place = places
                .take(peer)
                .ok_or_else(|| TurnedAway::too_many(peer, "too many connections without a client certificate"))?;
            Some(Stranger { until: Box::pin(tokio::time::sleep(*time)), _place: place })
        }
        _ => None,
    };
    Ok(Connection { stream, stranger })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use patchwarden_protocol::key::PrivateKey;
    use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, date_time_ymd};
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::{TlsConnector, client};
    use tokio_stream::StreamExt as _;

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

    /// A door that takes so many handshakes and strangers of an address, with what it has turned away and a client's configuration.
    async fn door(limits: Limits) -> (SocketAddr, Served, mpsc::Receiver<TurnedAway>, TlsConnector) {
        let ca = Ca::new();
        let trust = ca.trust(&PrivateKey::generate());
        let config = watch::Sender::new(Some(ca.serving(&["localhost"]).agents(&trust).unwrap()));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, told) = incoming(listener, config.subscribe(), limits);
        let mut roots = RootCertStore::empty();
        roots.add(trust.ca[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let connector =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let connector = connector.with_root_certificates(roots).with_no_client_auth();
        let served = Served { connections, _config: config };
        (([127, 0, 0, 1], port).into(), served, told, Arc::new(connector).into())
    }

    struct Served {
        connections: ReceiverStream<io::Result<Connection>>,
        _config: watch::Sender<Option<Arc<ServerConfig>>>,
    }

    /// A connection from this address.
    async fn from(source: [u8; 4], door: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        socket.connect(door).await.unwrap()
    }

    async fn handshake(connector: &TlsConnector, stream: TcpStream) -> client::TlsStream<TcpStream> {
        let within =
            tokio::time::timeout(Duration::from_secs(5), connector.connect("localhost".try_into().unwrap(), stream));
        within.await.expect("the door is kept by others").unwrap()
    }

    #[tokio::test]
    async fn an_address_that_holds_all_its_handshakes_keeps_no_other_out() {
        let limits = Limits::new(Places::new(100, 2).with_common(50));
        let (door, mut served, mut told, connector) = door(limits).await;
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(from([127, 0, 0, 1], door).await);
        }
        let refused = told.recv().await.unwrap();
        assert_eq!((refused.peer.to_string().as_str(), refused.reason), ("127.0.0.1", "TooMany"));
        let _other = handshake(&connector, from([127, 0, 0, 2], door).await).await;
        let connection = served.connections.next().await.unwrap().unwrap();
        assert_eq!(connection.tls().get_ref().0.peer_addr().unwrap().ip().to_string(), "127.0.0.2");
    }

    #[tokio::test]
    async fn strangers_have_few_connections_and_not_for_long() {
        let strangers = Some((Places::new(100, 1), Duration::from_secs(2)));
        let limits = Limits { strangers, ..Limits::of_tokens() };
        let (door, mut served, mut told, connector) = door(limits).await;
        let _first = handshake(&connector, from([127, 0, 0, 1], door).await).await;
        let mut connection = served.connections.next().await.unwrap().unwrap();
        let mut second = handshake(&connector, from([127, 0, 0, 1], door).await).await;
        assert_eq!(told.recv().await.unwrap().reason, "TooMany");
        assert!(matches!(second.read(&mut [0; 1]).await, Ok(0) | Err(_)), "it is closed");

        let ended = tokio::time::timeout(Duration::from_secs(10), connection.read(&mut [0; 1])).await;
        assert_eq!(ended.expect("it lasts").unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        let _third = handshake(&connector, from([127, 0, 0, 1], door).await).await;
        assert!(served.connections.next().await.unwrap().is_ok(), "its place is free again");
    }
}
