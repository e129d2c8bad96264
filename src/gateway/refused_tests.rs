//! What the agents' door refuses, over real TLS: the peer is told, the audit has it, and no secret is in the audit or in the log.

use std::convert::Infallible;
use std::io::Write;

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::agent_v1::{self as wire, EnrollRequest, FromAgent, RenewRequest};
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Order, SignedOrder};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use tracing_subscriber::fmt::MakeWriter;

use super::door_tests::{Device, PATIENCE, World};
use super::tls::tests::Ca;
use super::*;
use crate::store::testing::{Temporary, on_both};

const ENROLL: &str = "/patchwarden.agent.v1.Agents/Enroll";

on_both!(an_order_that_was_altered_in_the_database_reaches_no_device_and_is_audited,);

/// An API server that has these objects, by the last part of their path; the others do not exist, and nothing can be written.
pub(super) fn api_server(objects: HashMap<String, Value>) -> Client {
    let answer = move |request: HttpRequest<Body>| {
        let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let found = objects.get(&name).filter(|_| request.method() == http::Method::GET).cloned();
        let (status, body) = match found {
            Some(object) => (StatusCode::OK, object),
            None if request.method() == http::Method::GET => {
                let reason = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 });
                (StatusCode::NOT_FOUND, reason)
            }
            None => (StatusCode::SERVICE_UNAVAILABLE, json!({})),
        };
        let response = HttpResponse::builder().status(status);
        let response = response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    };
    Client::new(tower::service_fn(answer), "default")
}

fn join_token(token: &JoinToken, expires: Timestamp, uses: u32) -> (String, Value) {
    let data = json!({
        join::KEY_HASH: token.hash(), join::KEY_EXPIRES: expires.to_string(), join::KEY_USES: uses.to_string(),
        join::KEY_NAMESPACE: "acme",
    });
    let labels = json!({ crate::api::LABEL_JOIN_TOKEN: "true" });
    let name = token.config_map();
    let metadata = json!({ "namespace": "patchwarden-system", "name": name, "labels": labels });
    (name, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data }))
}

fn device(name: &str, accepted: &PrivateKey, lifecycle: &str) -> (String, Value) {
    let metadata = json!({ "namespace": "acme", "name": name, "uid": "u", "resourceVersion": "1" });
    let spec = json!({ "type": "Server", "acceptedKey": accepted.public().fingerprint(), "lifecycle": lifecycle });
    let api = "patchwarden.io/v1alpha1";
    (name.to_owned(), json!({ "apiVersion": api, "kind": "DeviceInventory", "metadata": metadata, "spec": spec }))
}

pub(super) fn request_of(key: &PrivateKey) -> Vec<u8> {
    let pair = rcgen::KeyPair::from_pem(&key.to_pem().unwrap()).unwrap();
    rcgen::CertificateParams::default().serialize_request(&pair).unwrap().der().to_vec()
}

impl World {
    /// Waits for a line of the audit.
    async fn audited(&self, what: &str, object: &str, outcome: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.database.store.audit_tail(1_000).await.unwrap();
            let is_it = |line: &&crate::store::AuditRecord| {
                (line.what.as_str(), line.object.as_str(), line.outcome.as_str()) == (what, object, outcome)
            };
            if let Some(line) = lines.iter().find(is_it) {
                return format!("{}: {}", line.who, line.detail);
            }
            assert!(Instant::now() < deadline, "{what} {object} {outcome} is not in the audit: {lines:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What is logged on this thread, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let filter = tracing_subscriber::EnvFilter::new("patchwarden=trace");
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(log.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_join_token_that_does_not_count_is_refused_and_audited_and_never_told() {
    let (log, _guard) = Log::begin();
    let now = shell::now();
    let hour = SignedDuration::from_hours(1);
    let [good, late, unknown] = [(); 3].map(|()| JoinToken::generate());
    let wrong = format!("{}.{}", good.id(), "0".repeat(40));
    let objects = [join_token(&good, now + hour, 2), join_token(&late, now - hour, 2)];
    let world = World::with(api_server(objects.into())).await;
    let mut client = world.connect(None).await.unwrap();
    let keys = [(); 3].map(|()| PrivateKey::generate());
    let mut enroll = async |token: String, name: &str, key: &PrivateKey| {
        let certificate_request = request_of(key);
        let request = EnrollRequest { token, name: name.into(), certificate_request, device_type: "Server".into() };
        client.enroll(request).await.unwrap_err()
    };
    let (good_text, late_text, unknown_text) = (good.to_string(), late.to_string(), unknown.to_string());
    for (token, name, outcome, why) in [
        (&unknown_text, "unknown", "TokenWrong", "join token: unknown or wrong"),
        (&wrong, "wrong", "TokenWrong", "join token: unknown or wrong"),
        (&late_text, "late", "TokenExpired", "join token: expired at "),
    ] {
        let status = enroll(token.clone(), name, &keys[0]).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status:?}");
        assert!(status.message().starts_with(why), "{name}: {status:?}");
        assert!(world.audited("Enroll", name, outcome).await.contains(why));
    }
    // A wrong secret spends nothing. Two devices may use the token, each as often as it likes; the API server takes no devices here.
    for (name, key) in [("a", &keys[0]), ("b", &keys[1]), ("a", &keys[0])] {
        let status = enroll(good_text.clone(), name, key).await;
        assert_eq!(status.code(), Code::Unavailable, "{name}: {status:?}");
    }
    let status = enroll(good_text.clone(), "c", &keys[2]).await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "join token: all its uses are spent"));
    world.audited("Enroll", "c", "TokenSpent").await;
    // A key that has used it makes no further devices: another name is another device.
    for name in ["d", "e", "b"] {
        let status = enroll(good_text.clone(), name, &keys[0]).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status:?}");
        world.audited("Enroll", name, "TokenSpent").await;
    }
    let hostile = "x'; DROP TABLE audit; --";
    let status = enroll(good_text.clone(), hostile, &keys[0]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    world.audited("Enroll", hostile, "BadRequest").await;

    let told = format!("{:?}", world.database.store.audit_tail(1_000).await.unwrap());
    let log = log.text();
    assert!(log.contains("TokenSpent") && log.contains("TokenExpired"), "the log tells of refusals: {log}");
    for token in [good_text, late_text, unknown_text] {
        let secret = token.split_once('.').unwrap().1;
        assert!(!log.contains(secret), "a secret is logged: {log}");
        assert!(!told.contains(secret), "a secret is in the audit: {told}");
    }
}

#[tokio::test]
async fn a_request_is_found_in_the_log_by_the_id_that_its_caller_is_told() {
    let (log, _guard) = Log::begin();
    let world = World::with(api_server(HashMap::new())).await;
    let mut client = world.connect(None).await.unwrap();
    let request = EnrollRequest {
        token: JoinToken::generate().to_string(),
        name: "web-1".into(),
        certificate_request: request_of(&PrivateKey::generate()),
        device_type: "Server".into(),
    };
    let id_of = |status: &Status| status.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let made = id_of(&client.enroll(request.clone()).await.unwrap_err());
    let mut with_own = tonic::Request::new(request);
    with_own.metadata_mut().insert("x-request-id", "my-own-7".parse().unwrap());
    assert_eq!(id_of(&client.enroll(with_own).await.unwrap_err()), "my-own-7");
    let log = log.text();
    for id in [made.as_str(), "my-own-7"] {
        let of_request = |line: &str| line.contains(&format!("request_id=\"{id}\"")) && line.contains("TokenWrong");
        assert!(log.lines().any(of_request), "{id}: {log}");
    }
}

/// An API server whose signer signs whatever is asked for with this certificate, and that has nothing else.
fn signer(certificate: &str) -> Client {
    use base64::Engine as _;
    let certificate = base64::engine::general_purpose::STANDARD.encode(certificate);
    let answer = move |request: HttpRequest<Body>| {
        let metadata = json!({ "name": "patchwarden-agent-x", "resourceVersion": "1" });
        let spec = json!({ "request": "", "signerName": "patchwarden.io/agent" });
        let signed = json!({ "metadata": metadata, "spec": spec, "status": { "certificate": certificate } });
        let body = match request.method() {
            &http::Method::GET => json!({ "metadata": { "resourceVersion": "1" }, "items": [signed] }),
            _ => signed,
        };
        let is_known = request.uri().path().contains("certificatesigningrequests");
        let status = if is_known { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let response = HttpResponse::builder().status(status);
        let response = response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    };
    Client::new(tower::service_fn(answer), "default")
}

// covers EM-17
#[tokio::test]
async fn the_life_of_a_key_is_in_the_audit() {
    let (key, other, ca) = (PrivateKey::generate(), PrivateKey::generate(), Arc::new(Ca::new()));
    let certificate = ca.device("acme/web", &key, (2036, 1, 1));
    let world = World::on(Temporary::sqlite().await, signer(&certificate), ca, Arc::new(PrivateKey::generate())).await;
    tokio::spawn(audit_decisions(world.shared.clone()));
    let accepted = |key: &PrivateKey| format!("spec.acceptedKey {}, generation 0", key.public().fingerprint());
    for (accepts, lifecycle, outcome) in [
        (&key, "Active", "Accepted"),
        (&key, "Retired", "Retired"),
        (&other, "Retired", "KeyChanged"),
        (&other, "Active", "Active"),
    ] {
        world.show_device("web", accepts, lifecycle, &json!({}));
        // What does not change the key is no decision.
        world.show_device("web", accepts, lifecycle, &json!({ "inventory": { "online": true } }));
        let told = world.audited("Key", "acme/web", outcome).await;
        assert_eq!(told, format!("DeviceInventory: {}", accepted(accepts)));
    }
    world.show_device("db", &key, "Active", &json!({}));
    let mut client = world.connect(Some((world.ca.device("acme/db", &key, (2036, 1, 1)), &key))).await.unwrap();
    let renewed = client.renew(RenewRequest { certificate_request: request_of(&key) }).await.unwrap().into_inner();
    assert_eq!(renewed.certificate_chain_pem, certificate);
    let told = world.audited("Renew", "acme/db", "Issued").await;
    assert!(told.starts_with(key.public().fingerprint().as_str()), "{told}");
    world.audited("Key", "acme/db", "Accepted").await;
    let told = world.database.store.audit_tail(100).await.unwrap();
    let told: Vec<_> = told.iter().map(|line| (line.object.as_str(), line.outcome.as_str())).collect();
    assert_eq!(told.len(), 6, "{told:?}");
}

#[tokio::test]
async fn whoever_is_not_the_device_it_says_is_refused_and_audited() {
    let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
    let objects = [device("db", &other, "Active"), device("old", &key, "Retired")];
    let world = World::with(api_server(objects.into())).await;
    world.show_device("web", &key, "Active", &json!({}));
    let open = async |certificate: String| -> Result<(), Status> {
        let mut client =
            world.connect(Some((certificate, &key))).await.map_err(|error| Status::aborted(error.to_string()))?;
        client.session(tokio_stream::empty::<FromAgent>()).await.map(drop)
    };
    let until = |days: i64| {
        let day = shell::now().to_zoned(jiff::tz::TimeZone::UTC).date();
        let day = day.checked_sub(jiff::Span::new().days(days)).unwrap();
        (day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs())
    };
    let valid = (2036, 1, 1);

    // Certificates that our CA has signed.
    for (name, ends, code, outcome) in [
        ("acme/db", valid, Code::PermissionDenied, "OtherKey"),
        ("acme/old", valid, Code::PermissionDenied, "Retired"),
        ("acme/gone", valid, Code::PermissionDenied, "Deleted"),
        ("acme/web", until(30), Code::Unauthenticated, "CertificateEnded"),
    ] {
        let status = open(world.ca.device(name, &key, ends)).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status:?}");
        world.audited("Session", name, outcome).await;
    }
    // A revoked key gets no new certificate either, and nobody gets one for another's key.
    let mut retired = world.connect(Some((world.ca.device("acme/old", &key, valid), &key))).await.unwrap();
    for (name, certified) in [("acme/old", &key), ("acme/old", &other)] {
        let status = retired.renew(RenewRequest { certificate_request: request_of(certified) }).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status:?}");
    }
    world.audited("Renew", "acme/old", "Retired").await;
    world.audited("Renew", "acme/old", "OtherKey").await;
    // Certificates with which TLS itself does not begin.
    for (certificate, outcome) in [
        (Ca::new().device("acme/web", &key, valid), "OtherIssuer"),
        (world.ca.device("acme/web", &key, until(200)), "CertificateEnded"),
    ] {
        open(certificate).await.unwrap_err();
        let told = world.audited("Connect", "agents' door", outcome).await;
        assert!(told.starts_with("peer 127.0.0.1: "), "{told}");
    }
    // A key that is revoked while it has a session.
    let mut session = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(session.hear().await, Inbound::Welcome(_)));
    world.show_device("web", &other, "Active", &json!({}));
    assert_eq!(session.end().await.code(), Code::PermissionDenied);
    let told = world.audited("Session", "acme/web", "Revoked").await;
    assert!(told.starts_with(key.public().fingerprint().as_str()), "{told}");
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_refused_and_audited() {
    let key = PrivateKey::generate();
    let world = World::with(api_server(HashMap::new())).await;
    for name in ["web", "slow"] {
        world.show_device(name, &key, "Active", &json!({}));
    }
    let large = vec![b'x'; MAX_MESSAGE_BYTES + 1];
    let mut client = world.connect(None).await.unwrap();
    for size in [large.len(), MAX_REQUEST_BYTES] {
        let request = EnrollRequest { token: "x".repeat(size), ..EnrollRequest::default() };
        let status = client.enroll(request).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{size}: {status:?}");
    }
    world.audited("Request", ENROLL, "TooLarge").await;

    let mut session = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(session.hear().await, Inbound::Welcome(_)));
    session.say(Outbound::Report(wire::Report { envelope: large, ..wire::Report::default() })).await;
    assert_eq!(session.end().await.code(), Code::InvalidArgument);
    let told = world.audited("Session", "acme/web", "Protocol").await;
    assert!(told.ends_with(": a message is larger than 4 MiB"), "{told}");

    let no_hello = async {
        let certificate = world.ca.device("acme/slow", &key, (2036, 1, 1));
        let mut client = world.connect(Some((certificate, &key))).await.unwrap();
        let (sender, receiver) = mpsc::channel::<FromAgent>(1);
        let inbound = client.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut session = Device { sender, inbound };
        assert_eq!(session.end().await.code(), Code::InvalidArgument);
        let told = world.audited("Session", "acme/slow", "Protocol").await;
        assert!(told.ends_with(": no Hello within 10 s"), "{told}");
    };
    let no_handshake = async {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        world.audited("Connect", "agents' door", "TooSlow").await;
    };
    // A message of a hundred bytes whose first one never comes; the connection is alive all the time.
    let no_end = async {
        let begun = Ok::<_, Status>(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 100])));
        let body = StreamBody::new(tokio_stream::once(begun).chain(tokio_stream::pending()));
        let request =
            HttpRequest::post(format!("https://localhost{ENROLL}")).header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(tonic::body::Body::new(body)).unwrap();
        let answer = world.channel(None).await.unwrap().oneshot(request);
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("it waits for ever").unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::Unknown, "{status:?}");
        let told = world.audited("Request", ENROLL, "TooSlow").await;
        assert!(told.ends_with(": the request is not complete after 10 s"), "{told}");
    };
    tokio::join!(no_hello, no_handshake, no_end);
}

#[tokio::test]
async fn two_programs_with_one_key_that_take_turns_are_slowed_down_and_told_of_once() {
    let key = PrivateKey::generate();
    let world = World::with(api_server(HashMap::new())).await;
    world.show_device("web", &key, "Active", &json!({}));
    world.show_device("db", &key, "Active", &json!({}));
    let (mut begun, mut refused) = (Vec::new(), Vec::new());
    let since = std::time::Instant::now();
    for _ in 0..20 {
        match world.try_session("web", &key, "", None).await {
            Ok(session) => begun.push(session),
            Err(error) => refused.push(error.downcast_ref::<Status>().unwrap().code()),
        }
    }
    let most = 11 + usize::try_from(since.elapsed().as_secs() / 5).unwrap();
    assert!((10..=most).contains(&begun.len()), "ten at once, then one each five seconds: {}", begun.len());
    assert!(refused.iter().all(|code| *code == Code::ResourceExhausted), "{refused:?}");
    assert!(world.try_session("db", &key, "", None).await.is_ok(), "of this device alone");
    world.audited("Session", "acme/web", "TooOften").await;
    world.audited("Session", "acme/web", "Replaced").await;
    let told = world.database.store.audit_tail(1_000).await.unwrap();
    let told = |outcome: &str| told.iter().filter(|line| line.outcome == outcome).count();
    assert_eq!((told("Replaced"), told("TooOften")), (1, 1));
}

async fn an_order_that_was_altered_in_the_database_reaches_no_device_and_is_audited(db: &Temporary) {
    let (key, root) = (PrivateKey::generate(), Arc::new(PrivateKey::generate()));
    let world = World::on(db.same(), api_server(HashMap::new()), Arc::new(Ca::new()), root).await;
    world.show_device("web", &key, "Active", &json!({}));
    let keep = async |signed: &SignedOrder| {
        let (order, digest) = (signed.order.peek().unwrap(), signed.order.digest());
        let (now, deadline) = (shell::now(), orders::deadline(&order));
        db.store.record_order(&order.device, &digest, order.sequence, signed, deadline, now).await.unwrap();
        digest
    };
    let order = testing::order("acme", "web", &key.public());
    let good = testing::signed_order(&order, &world.root);
    // Other contents under the same signature, a signature by another key, and everything by another root.
    let altered = Order { limit_seconds: order.limit_seconds + 1, ..order.clone() };
    let signature = good.order.signatures[0].clone();
    let under_the_same = Envelope::reassemble(&altered, signature).unwrap();
    let by_another = Envelope::seal(&Order { limit_seconds: 7, ..order.clone() }, &PrivateKey::generate()).unwrap();
    let by_another_root = testing::signed_order(&Order { limit_seconds: 8, ..order }, &PrivateKey::generate());
    let delegation = &good.delegation;
    for envelope in [under_the_same, by_another] {
        keep(&SignedOrder { order: envelope, delegation: delegation.clone() }).await;
    }
    keep(&by_another_root).await;
    let digest = keep(&good).await;

    let mut session = world.try_session("web", &key, "", None).await.unwrap();
    session.say(Outbound::GrantRequest(wire::GrantRequest::default())).await;
    let mut ordered = Vec::new();
    loop {
        match session.hear().await {
            Inbound::Order(order) => {
                ordered.push(serde_json::from_slice::<SignedOrder>(&order.signed_order).unwrap().order.digest());
            }
            // The answer to the question: everything before it was sent.
            Inbound::Refused(_) => break,
            _ => {}
        }
    }
    assert_eq!(ordered, [digest], "what the controller has signed, and nothing else");
    let told = world.audited("Order", "acme/web", "BadSignature").await;
    assert!(told.starts_with("the database: kept order sha256:"), "{told}");
}
