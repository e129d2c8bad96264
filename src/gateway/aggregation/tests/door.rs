//! Who gets in.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::HeaderMap;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::*;
use crate::gateway::aggregation::identity::user;
use crate::gateway::api::tests::{Api, report};
use crate::store::testing::Temporary;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway with this door.
struct Door {
    api: Api,
    shared: Arc<api::Door>,
    address: SocketAddr,
    anchors: watch::Sender<Option<Arc<Anchors>>>,
    _serving: watch::Sender<Option<Arc<Serving>>>,
    _database: Temporary,
}

impl Door {
    async fn open(proxy: &FrontProxy) -> Self {
        let database = Temporary::sqlite().await;
        let api = Api::on(&database).await;
        api.report(&report("acme", "web", "debian", Vec::new()), &[("openssl", "3.0.16-1", "openssl")]).await;
        let shared = api.world.shared.clone();
        let (anchors, known) = watch::channel(Some(proxy.anchors()));
        let (to_serving, serving) = watch::channel(Some(Arc::new(api.world.ca.serving(&["localhost"]))));
        let (to_config, config) = watch::channel(None);
        tokio::spawn(keep_configured(known.clone(), serving, to_config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Arc::new(api::Door::new(shared.clone(), "unused".to_owned()));
        shared.devices.set_synced();
        tokio::spawn(serve_with(door.clone(), listener, known, config));
        Self { api, shared: door, address, anchors, _serving: to_serving, _database: database }
    }

    /// A connection, with this certificate if there is one.
    async fn connect(&self, client: Option<&Client>) -> std::io::Result<SendRequest<Empty<Bytes>>> {
        let mut roots = RootCertStore::empty();
        let trust = self.api.world.ca.trust(&self.api.world.root);
        roots.add(trust.ca[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match client {
            Some(client) => config.with_client_auth_cert(vec![client.certificate.clone()], client.key()).unwrap(),
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Ok(sender)
    }

    /// What is answered on a connection of its own; nothing where the certificate is not taken.
    async fn ask(&self, client: Option<&Client>, path: &str, user: Option<&str>) -> Option<(StatusCode, Value)> {
        let mut connection = self.connect(client).await.ok()?;
        ask(&mut connection, path, user).await
    }
}

async fn ask(
    connection: &mut SendRequest<Empty<Bytes>>,
    path: &str,
    user: Option<&str>,
) -> Option<(StatusCode, Value)> {
    let mut request = http::Request::get(path).header("Host", "localhost");
    if let Some(user) = user {
        request = request.header("X-Remote-User", user).header("X-Remote-Group", "system:masters");
        // A line for each, as the API server writes them: in some organisations there are hundreds.
        for group in 0..500 {
            request = request.header("X-Remote-Group", format!("a-group-of-an-organisation-{group}"));
        }
    }
    let asked = connection.send_request(request.body(Empty::new()).unwrap());
    let response = timeout(PATIENCE, asked).await.expect("an answer or its refusal").ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

const DISCOVERY: &str = "/apis/store.patchwarden.io/v1alpha1";
const LIST: &str = "/apis/store.patchwarden.io/v1alpha1/namespaces/acme/softwarepackages";

#[tokio::test]
async fn only_the_api_servers_proxy_is_let_in_and_believed() {
    let (proxy, other) = (FrontProxy::new(), FrontProxy::new());
    let door = Door::open(&proxy).await;
    let good = proxy.client("front-proxy-client");

    let (status, body) = door.ask(Some(&good), LIST, Some("admin")).await.expect("an answer");
    assert_eq!((status, &body["items"][0]["status"]["name"]), (StatusCode::OK, &json!("openssl")), "{body}");
    let (status, body) = door.ask(Some(&good), LIST, Some("nobody")).await.expect("an answer");
    assert_eq!((status, &body["reason"]), (StatusCode::FORBIDDEN, &json!("Forbidden")), "the groups alone: {body}");
    let (status, body) = door.ask(Some(&good), LIST, None).await.expect("an answer");
    assert_eq!((status, &body["message"]), (StatusCode::UNAUTHORIZED, &json!("the request names no user")));
    let (status, body) = door.ask(Some(&good), DISCOVERY, None).await.expect("an answer");
    assert_eq!((status, &body["kind"]), (StatusCode::OK, &json!("APIResourceList")));

    // Without a certificate, with one of another CA, and of the CA of Patchwarden's own devices: no request at all.
    for path in [LIST, DISCOVERY, "/healthz"] {
        assert_eq!(door.ask(None, path, Some("admin")).await, None, "no certificate: {path}");
        let spoofed = other.client("front-proxy-client");
        assert_eq!(door.ask(Some(&spoofed), path, Some("admin")).await, None, "another CA: {path}");
    }
    // Another client of the same CA.
    let neighbour = proxy.client("kubelet-proxy");
    for path in [LIST, DISCOVERY, "/healthz"] {
        let (status, body) = door.ask(Some(&neighbour), path, Some("admin")).await.expect("an answer");
        assert_eq!((status, &body["reason"]), (StatusCode::UNAUTHORIZED, &json!("Unauthorized")), "{path}");
        let why = body["message"].as_str().unwrap();
        assert!(why.contains("\"kubelet-proxy\" is not among requestheader-allowed-names"), "{why}");
    }
    let audited = door.api.audited().await;
    let has = |outcome: &str, object: &str| audited.iter().any(|it| it.outcome == outcome && it.object == object);
    assert!(has("Unauthenticated", LIST) && has("Forbidden", &format!("acme: {LIST}")), "{audited:?}");
}

#[tokio::test]
async fn what_the_api_server_must_know_waits_for_no_users_request() {
    let proxy = FrontProxy::new();
    let door = Door::open(&proxy).await;
    let good = proxy.client("front-proxy-client");
    let full = door.shared.fill();
    let (status, body) = door.ask(Some(&good), LIST, Some("admin")).await.expect("an answer");
    assert_eq!((status, &body["reason"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("ServiceUnavailable")), "{body}");
    for path in [DISCOVERY, "/apis", "/healthz"] {
        let (status, body) = door.ask(Some(&good), path, None).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
    }
    drop(full);
    let (status, body) = door.ask(Some(&good), LIST, Some("admin")).await.expect("an answer");
    assert_eq!(status, StatusCode::OK, "{body}");
}

#[tokio::test]
async fn another_request_header_ca_counts_at_once_also_on_a_connection_that_is_open() {
    let (before, after) = (FrontProxy::new(), FrontProxy::new());
    let door = Door::open(&before).await;
    let old = before.client("front-proxy-client");
    let mut connection = door.connect(Some(&old)).await.unwrap();
    let (status, _) = ask(&mut connection, LIST, Some("admin")).await.expect("an answer");
    assert_eq!(status, StatusCode::OK);

    door.anchors.send_replace(Some(after.anchors()));
    let (status, body) = ask(&mut connection, LIST, Some("admin")).await.expect("an answer");
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    let new = after.client("front-proxy-client");
    // New connections are made with it once the door is configured anew, a moment later.
    let answered = timeout(PATIENCE, async {
        loop {
            match door.ask(Some(&new), LIST, Some("admin")).await {
                Some((status, _)) => return status,
                None => tokio::task::yield_now().await,
            }
        }
    });
    assert_eq!(answered.await.expect("the new CA is taken"), StatusCode::OK);
    assert_eq!(door.ask(Some(&old), LIST, Some("admin")).await, None, "the old one is not");
}

#[test]
fn where_nobody_is_named_the_ca_must_be_for_nothing_else() {
    let proxy = FrontProxy::new();
    let with = |names: &str, users: &str| {
        let mut map = proxy.config_map();
        let data = map.data.as_mut().unwrap();
        data.insert("requestheader-allowed-names".to_owned(), names.to_owned());
        data.insert("client-ca-file".to_owned(), users.to_owned());
        Anchors::of(&map).err().map(|error| error.to_string())
    };
    let other = FrontProxy::new();
    assert_eq!(with("[]", &other.pem), None);
    assert_eq!(with(r#"["front-proxy-client"]"#, &proxy.pem), None);
    let refused = with("[]", &format!("{}{}", other.pem, proxy.pem)).unwrap();
    assert!(refused.contains("requestheader-allowed-names") && refused.contains("names nobody"), "{refused}");
}

#[test]
fn a_user_is_read_as_the_api_server_writes_it() {
    let anchors = Anchors::of(&FrontProxy::new().config_map()).unwrap();
    let mut headers = HeaderMap::new();
    assert_eq!(user(&anchors, &headers), None);
    for (name, value) in [
        ("x-remote-user", "jürgen"),
        ("x-remote-uid", "42"),
        ("x-remote-group", "operators"),
        ("x-remote-group", "system:authenticated"),
        ("x-remote-extra-scopes.example.com%2fview", "a"),
        ("x-remote-extra-scopes.example.com%2fview", "b"),
        ("x-remote-extra-", "of no name"),
        ("x-remote-users", "another header"),
    ] {
        headers.append(name, axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let found = user(&anchors, &headers).unwrap();
    assert_eq!((found.username.as_deref(), found.uid.as_deref()), (Some("jürgen"), Some("42")));
    assert_eq!(found.groups.unwrap(), ["operators", "system:authenticated"]);
    let extra = found.extra.unwrap();
    assert_eq!(extra.len(), 1, "{extra:?}");
    assert_eq!(extra["scopes.example.com/view"], ["a", "b"]);
}
