//! The API, with an API server of the tests' own that knows tokens and rights, on both databases.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::body::Body;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewStatus};
use kube::Client;
use kube::core::DeserializeGuard;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::details::{Details, Disk, Firmware, Hardware, Interface, Module};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{DeviceRef, Package, Report, Software, Tristate, Update};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::gateway::door_tests::World;
use crate::gateway::testing;
use crate::gateway::tls::tests::Ca;
use crate::store::testing::{Temporary, on_both};
use crate::store::{AuditRecord, StoredReport};

on_both!(
    an_operator_sees_their_client_and_no_other,
    a_token_that_does_not_count_is_refused_and_kept_secret,
    what_the_api_server_has_said_counts_for_a_while,
    every_list_is_complete_page_by_page,
    versions_compare_in_the_order_of_each_device,
    what_is_missing_where_is_told,
    what_a_device_is_made_of_is_told_as_it_has_signed_it,
    hostile_text_in_any_parameter_is_text,
    a_parameter_that_is_not_understood_is_refused,
);

/// Texts that a database, a terminal or a parser might take for something else.
pub(super) const HOSTILE: [&str; 7] = [
    "' OR '1'='1",
    "'; DROP TABLE package; --",
    "\" UNION SELECT token, key FROM join_token_use --",
    "%' ESCAPE '!",
    "$1::text || (SELECT pg_sleep(20))",
    "\0",
    "\u{1f4a5}\u{202e}\u{1b}[2J",
];

/// What the API server of the tests was asked.
#[derive(Default)]
struct Asked {
    tokens: AtomicU32,
    rights: AtomicU32,
}

/// Tokens are names of users. `admin` may all, `acme-operator` may in acme, `expired` is nobody, `other-audience` is for others.
fn api_server(asked: Arc<Asked>) -> Client {
    let answer = move |request: http::Request<kube::client::Body>| {
        let asked = asked.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect_bytes().await.unwrap();
            let answer = if path.ends_with("/tokenreviews") {
                asked.tokens.fetch_add(1, Ordering::Relaxed);
                let mut review: TokenReview = serde_json::from_slice(&body).unwrap();
                let user = review.spec.token.clone();
                let audience = if user == "other-audience" { "https://kubernetes" } else { API_AUDIENCE };
                assert_eq!(review.spec.audiences, Some(vec![API_AUDIENCE.to_owned()]));
                review.status = Some(TokenReviewStatus {
                    authenticated: Some(user != "expired" && !user.starts_with("secret")),
                    audiences: Some(vec![audience.into()]),
                    user: Some(UserInfo { username: Some(user), ..UserInfo::default() }),
                    error: None,
                });
                serde_json::to_vec(&review)
            } else {
                asked.rights.fetch_add(1, Ordering::Relaxed);
                let mut review: SubjectAccessReview = serde_json::from_slice(&body).unwrap();
                let wanted = review.spec.resource_attributes.clone().unwrap();
                let is_stored = wanted.group.as_deref() == Some("store.patchwarden.io");
                assert!(is_stored || wanted.group.as_deref() == Some("patchwarden.io"));
                let is_of_acme = wanted.namespace.as_deref() == Some("acme");
                let is_reading = matches!(wanted.verb.as_deref(), Some("get" | "list"));
                let is_devices = is_stored || wanted.resource.as_deref() == Some("deviceinventories");
                let allowed = match review.spec.user.as_deref() {
                    Some("admin") => is_reading,
                    Some("acme-operator") => is_reading && is_devices && is_of_acme,
                    _ => false,
                };
                review.status = Some(SubjectAccessReviewStatus { allowed, ..SubjectAccessReviewStatus::default() });
                serde_json::to_vec(&review)
            };
            Ok::<_, Infallible>(http::Response::new(kube::client::Body::from(answer.unwrap())))
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

/// A gateway with its API.
pub(in crate::gateway) struct Api {
    pub(in crate::gateway) world: World,
    router: Router,
    asked: Arc<Asked>,
}

impl Api {
    pub(in crate::gateway) async fn on(db: &Temporary) -> Self {
        let asked = Arc::new(Asked::default());
        let root = Arc::new(PrivateKey::generate());
        let world = World::on(db.same(), api_server(asked.clone()), Arc::new(Ca::new()), root).await;
        let router = router(Arc::new(Door::new(world.shared.clone(), API_AUDIENCE.to_owned())));
        Self { world, router, asked }
    }

    /// The watch and the store know of this report.
    pub(in crate::gateway) async fn report(&self, report: &Report, packages: &[(&str, &str, &str)]) {
        let object = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1",
            "kind": "DeviceInventory",
            "metadata": { "namespace": report.device.namespace, "name": report.device.name, "uid": "u", "resourceVersion": "1" },
            "spec": { "type": "Server" },
            "status": { "inventory": { "online": true, "report": report } },
        }));
        let shared = &self.world.shared;
        shared.devices.apply(DeserializeGuard(Ok(object.unwrap())), false, &shared.sessions);
        let key = PrivateKey::generate();
        let envelope = Envelope::seal(report, &key).unwrap();
        let stored = StoredReport { digest: envelope.digest(), counter: report.counter, envelope };
        let package = |(name, version, source): &(&str, &str, &str)| Package {
            name: (*name).into(),
            arch: "amd64".into(),
            version: (*version).into(),
            source: (*source).into(),
            source_version: None,
        };
        let software = Software { packages: packages.iter().map(package).collect() };
        let fingerprint = key.public().fingerprint();
        let now = "2026-11-01T00:00:00Z".parse().unwrap();
        shared.store.record_report(&fingerprint, report, &stored, Some(&software), now).await.unwrap();
    }

    pub(super) async fn get(&self, token: &str, path: &str) -> (StatusCode, Value) {
        let mut request = http::Request::get(format!("{ROOT}{path}"));
        if !token.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        assert_eq!(kind, if status.is_success() { "application/json" } else { problem::MEDIA_TYPE }, "{path}");
        let body = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// What an administrator sees.
    pub(super) async fn see(&self, path: &str) -> Value {
        let (status, body) = self.get("admin", path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// All pages of a list.
    pub(super) async fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let page =
                self.see(&format!("{path}{}limit={limit}{next}", if path.contains('?') { "&" } else { "?" })).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit, "{page}");
            all.extend(items.iter().cloned());
            match page["next"].as_str() {
                Some(token) => next = format!("&cursor={token}"),
                None => return all,
            }
            assert!(all.len() < 10_000, "it does not end");
        }
    }

    pub(in crate::gateway) async fn audited(&self) -> Vec<AuditRecord> {
        self.world.shared.store.audit_tail(100).await.unwrap()
    }
}

pub(in crate::gateway) fn report(namespace: &str, name: &str, os: &str, updates: Vec<Update>) -> Report {
    let mut report = testing::report(namespace, name);
    os.clone_into(&mut report.os.name);
    report.updates = updates;
    report
}

/// Two clients with a device each.
async fn two_clients(api: &Api) {
    for namespace in ["acme", "other"] {
        let report = report(namespace, "web", "debian", vec![testing::update("DSA-1")]);
        api.report(&report, &[("openssl", "3.0.16-1", "openssl")]).await;
    }
}

fn at<'a>(items: &'a [Value], key: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[key].as_str().unwrap()).collect()
}

async fn an_operator_sees_their_client_and_no_other(db: &Temporary) {
    let api = Api::on(db).await;
    two_clients(&api).await;
    let lists = ["/devices", "/updates", "/updates/missing", "/search/software?name=openssl"];
    for list in lists {
        let join = if list.contains('?') { "&" } else { "?" };
        let (status, own) = api.get("acme-operator", &format!("{list}{join}namespace=acme")).await;
        assert_eq!(status, StatusCode::OK, "{list}: {own}");
        let own = own["items"].as_array().unwrap().clone();
        assert_eq!(at(&own, "namespace"), ["acme"], "{list}");
        for (of, what) in [(format!("{join}namespace=other"), "namespace other"), (String::new(), "all namespaces")] {
            let (status, refused) = api.get("acme-operator", &format!("{list}{of}")).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{list}{of}: {refused}");
            let detail = refused["detail"].as_str().unwrap();
            let right = format!("user acme-operator may not list deviceinventories.patchwarden.io in {what}");
            assert!(detail.starts_with(&right), "{detail}");
            assert_eq!((&refused["title"], &refused["status"]), (&json!("Forbidden"), &json!(403)));
        }
        assert_eq!(api.all(list, 10).await.len(), 2, "{list}");
        // A cursor gives no right.
        for start in [json!(["", "", "", "", ""]), json!(["", ""]), json!(["", "", ""])] {
            use base64::Engine as _;
            let cursor = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(start.to_string());
            let path = format!("{list}{join}namespace=acme&cursor={cursor}");
            let (status, page) = api.get("acme-operator", &path).await;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            assert!(at(&items, "namespace").iter().all(|it| *it == "acme"), "{path}: {page}");
            assert!(status == StatusCode::OK || status == StatusCode::BAD_REQUEST, "{path}: {page}");
        }
    }
    for one in ["", "/software", "/hardware"] {
        let (status, _) = api.get("acme-operator", &format!("/namespaces/acme/devices/web{one}")).await;
        assert_eq!(status, StatusCode::OK, "{one}");
        let (status, refused) = api.get("acme-operator", &format!("/namespaces/other/devices/web{one}")).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{one}");
        let right = "user acme-operator may not get deviceinventories.patchwarden.io web in namespace other";
        assert_eq!(refused["detail"], right);
        let (status, _) = api.get("acme-operator", &format!("/namespaces/other/devices/none{one}")).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "whether it exists is not told");
    }
    let audited = api.audited().await;
    let refused: Vec<_> = audited.iter().filter(|line| line.outcome == "Forbidden").collect();
    assert!(refused.iter().all(|line| (&*line.who, &*line.what) == ("user acme-operator", "Read")), "{refused:?}");
    let objects: Vec<_> = refused.iter().map(|line| line.object.as_str()).collect();
    for object in ["other: /api/v1/devices", "*: /api/v1/devices", "other: /api/v1/namespaces/other/devices/web"] {
        assert!(objects.contains(&object), "{object}: {objects:?}");
    }
}

// covers EM-12
async fn a_token_that_does_not_count_is_refused_and_kept_secret(db: &Temporary) {
    let api = Api::on(db).await;
    for (token, why) in [
        ("", "no bearer token: send `Authorization: Bearer TOKEN`"),
        ("expired", "the token is not valid: not authenticated"),
        ("secret-of-somebody", "the token is not valid: not authenticated"),
        ("other-audience", "the token is not for the audience patchwarden-api"),
    ] {
        let (status, refused) = api.get(token, &format!("/devices?text={}", token.len())).await;
        assert_eq!((status, &refused["detail"]), (StatusCode::UNAUTHORIZED, &json!(why)));
    }
    let audited = api.audited().await;
    assert!(audited.iter().any(|line| line.outcome == "Unauthenticated" && line.object == "/api/v1/devices"));
    assert!(!format!("{audited:?}").contains("secret-of-somebody"), "{audited:?}");
    let (status, _) = api.get("nobody", "/devices").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "a token without any right");
}

async fn what_the_api_server_has_said_counts_for_a_while(db: &Temporary) {
    let api = Api::on(db).await;
    for _ in 0..5 {
        api.see("/devices").await;
        api.get("acme-operator", "/devices").await;
        api.get("expired", "/devices").await;
    }
    assert_eq!((api.asked.tokens.load(Ordering::Relaxed), api.asked.rights.load(Ordering::Relaxed)), (3, 2));
}

async fn every_list_is_complete_page_by_page(db: &Temporary) {
    let api = Api::on(db).await;
    let names: Vec<String> = (0..23).map(|n| format!("p{n:02}")).collect();
    let packages: Vec<(&str, &str, &str)> = names.iter().map(|name| (name.as_str(), "1", "source")).collect();
    for name in ["c", "a", "b"] {
        let updates = (0..5).rev().map(|n| testing::update(&format!("DSA-{n}"))).collect();
        api.report(&report("acme", name, "debian", updates), &packages).await;
    }
    for limit in [1, 2, 3, 7, 500] {
        assert_eq!(at(&api.all("/devices", limit).await, "name"), ["a", "b", "c"]);
        let software = api.all("/namespaces/acme/devices/b/software", limit).await;
        assert_eq!(at(&software, "name"), names);
        let some = api.all("/namespaces/acme/devices/b/software?text=P1", limit).await;
        assert_eq!(at(&some, "name"), names[10..20]);
        let found = api.all("/search/software?name=source&by=source", limit).await;
        let found: Vec<(&str, &str)> = at(&found, "device").into_iter().zip(at(&found, "name")).collect();
        let expected = ["a", "b", "c"].iter().flat_map(|device| names.iter().map(move |name| (*device, name.as_str())));
        assert_eq!(found, expected.collect::<Vec<_>>());
        let missing = api.all("/updates/missing", limit).await;
        let missing: Vec<(&str, &str)> = at(&missing, "device").into_iter().zip(at(&missing, "update")).collect();
        let ids = ["DSA-0", "DSA-1", "DSA-2", "DSA-3", "DSA-4"];
        let expected = ["a", "b", "c"].iter().flat_map(|device| ids.iter().map(move |id| (*device, *id)));
        assert_eq!(missing, expected.collect::<Vec<_>>());
        let updates = api.all("/updates", limit).await;
        assert_eq!(at(&updates, "update"), ids);
        assert!(updates.iter().all(|update| update["devices"] == 3), "{updates:?}");
    }
}

// covers CL-12, EM-15
async fn versions_compare_in_the_order_of_each_device(db: &Temporary) {
    let api = Api::on(db).await;
    let devices = [
        ("deb-old", "debian", "3.0.17~rc1-1"),
        ("deb-new", "debian", "3.0.17-1"),
        ("deb-epoch", "ubuntu", "1:3.0.2"),
        // rpm knows `^`: later than the version before it, and no version to dpkg.
        ("rpm-snapshot", "rocky", "3.0.17^20260101-1.el9"),
        ("rpm-old", "almalinux", "1:3.0.7-1.el9"),
        ("rpm-older", "rhel", "3.0.7-1.el9"),
        ("unknown", "haiku", "3.0.7"),
    ];
    for (name, os, version) in devices {
        api.report(&report("acme", name, os, vec![]), &[("openssl", version, "openssl"), ("curl", "1", "curl")]).await;
    }
    let search = async |than: &str| {
        let found = api.all(&format!("/search/software?name=openssl&than={than}&version=3.0.17"), 2).await;
        at(&found, "device").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(search("older").await, ["deb-old", "rpm-older"]);
    assert_eq!(search("newer").await, ["deb-epoch", "deb-new", "rpm-old", "rpm-snapshot"]);
    assert_eq!(search("same").await, [""; 0]);
    assert_eq!(api.all("/search/software?name=openssl", 2).await.len(), devices.len());

    // The store keeps what it had.
    let (gone, shared) = (DeviceRef { namespace: "acme".into(), name: "deb-old".into() }, &api.world.shared);
    shared.devices.forget(&gone, &shared.sessions);
    let left = api.all("/search/software?name=openssl", 2).await;
    assert!(left.len() == devices.len() - 1 && !at(&left, "device").contains(&"deb-old"), "it is gone: {left:?}");
    assert_eq!(search("older").await, ["rpm-older"]);
}

// covers CL-12
async fn what_is_missing_where_is_told(db: &Temporary) {
    let api = Api::on(db).await;
    let mut kb = testing::update("KB5031356");
    kb.cves = vec!["CVE-2026-0001".into()];
    kb.severity = patchwarden_protocol::report::Severity::Critical;
    api.report(&report("acme", "pc-1", "windows", vec![kb.clone(), testing::update("DSA-1")]), &[]).await;
    api.report(&report("acme", "pc-2", "windows", vec![]), &[]).await;
    api.report(&report("other", "pc-3", "windows", vec![kb]), &[]).await;
    for filter in ["update=KB5031356", "cve=CVE-2026-0001", "text=kb50"] {
        let missing = api.all(&format!("/updates/missing?{filter}"), 10).await;
        assert_eq!(at(&missing, "device"), ["pc-1", "pc-3"], "{filter}");
        assert_eq!(missing[0]["firstSeen"], "2026-11-01T00:00:00Z");
        assert_eq!(missing[0]["packages"][0]["candidate"], "3.0.17-1");
    }
    let one = api.see("/namespaces/acme/devices/pc-1").await;
    assert_eq!(at(one["missing"].as_array().unwrap(), "update"), ["KB5031356", "DSA-1"], "in the report's order");
    assert_eq!(one["lastSeen"], "2026-11-01T00:00:00Z");
    let (status, _) = api.get("admin", "/namespaces/acme/devices/pc-9").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(at(&api.all("/devices?text=PC-2", 10).await, "name"), ["pc-2"]);
    assert_eq!(at(&api.all("/devices?os=windows&online=true&restart=false", 10).await, "name").len(), 3);
    assert_eq!(api.all("/devices?online=false", 10).await.len(), 0);
}

// covers EM-1, EM-15
async fn what_a_device_is_made_of_is_told_as_it_has_signed_it(db: &Temporary) {
    let api = Api::on(db).await;
    two_clients(&api).await;
    let told = api.see("/namespaces/acme/devices/web/hardware").await;
    assert_eq!(told, json!({ "namespace": "acme", "device": "web", "told": null }));
    let hardware = Hardware {
        vendor: "ACME".into(),
        product: "X1".into(),
        serial: "S123".into(),
        firmware: Firmware { vendor: "Phoenix".into(), version: "1.0".into(), date: "02/03/2026".into() },
        processor: "Fast".into(),
        processors: 8,
        memory_bytes: 1 << 34,
        disks: vec![Disk { name: "sda".into(), model: "Large".into(), bytes: 1 << 40 }],
        interfaces: vec![Interface { name: "eth0".into(), mac: "00:11:22:33:44:55".into(), link: Tristate::Yes }],
        modules: vec![Module { name: "nvidia".into(), version: "550".into(), taints: "PO".into() }],
    };
    let device = testing::report("acme", "web").device;
    let details = Details { device: device.clone(), since: "2026-10-30T00:00:00Z".parse().unwrap(), hardware };
    let key = PrivateKey::generate();
    let (envelope, fingerprint) = (Envelope::seal(&details, &key).unwrap(), key.public().fingerprint());
    let store = &api.world.shared.store;
    let now = "2026-11-01T00:00:00Z".parse().unwrap();
    store.record_details(&device, &fingerprint, &envelope, now).await.unwrap();
    let expected = json!({
        "key": fingerprint, "since": "2026-10-30T00:00:00Z", "recorded": "2026-11-01T00:00:00Z",
        "vendor": "ACME", "product": "X1", "serial": "S123",
        "firmware": { "vendor": "Phoenix", "version": "1.0", "date": "02/03/2026" },
        "processor": "Fast", "processors": 8, "memoryBytes": 17_179_869_184_u64,
        "disks": [{ "name": "sda", "model": "Large", "bytes": 1_099_511_627_776_u64 }],
        "interfaces": [{ "name": "eth0", "mac": "00:11:22:33:44:55", "link": "Yes" }],
        "modules": [{ "name": "nvidia", "version": "550", "taints": "PO" }],
    });
    assert_eq!(api.see("/namespaces/acme/devices/web/hardware").await["told"], expected);
    // Another client's device of the same name has told nothing; what nobody knows is no device without hardware.
    assert_eq!(api.see("/namespaces/other/devices/web/hardware").await["told"], Value::Null);
    let (status, refused) = api.get("admin", "/namespaces/acme/devices/pc-9/hardware").await;
    assert_eq!(
        (status, &refused["detail"]),
        (StatusCode::NOT_FOUND, &json!("nothing is known of the device acme/pc-9"))
    );
    // What it cannot read is no machine of which nothing is known.
    db.execute("UPDATE device_details SET envelope = '{\"payloadType\":\"\",\"payload\":\"e30=\",\"signatures\":[]}'")
        .await;
    let (status, _) = api.get("admin", "/namespaces/acme/devices/web/hardware").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Every path and parameter that there is, by the description.
async fn hostile_text_in_any_parameter_is_text(db: &Temporary) {
    let api = Api::on(db).await;
    two_clients(&api).await;
    let description = serde_json::to_value(openapi()).unwrap();
    let mut tried = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        let parameters = item["get"]["parameters"].as_array().cloned().unwrap_or_default();
        for parameter in &parameters {
            let name = parameter["name"].as_str().unwrap();
            for hostile in HOSTILE {
                let hostile: String = url::form_urlencoded::byte_serialize(hostile.as_bytes()).collect();
                let hostile = hostile.replace('+', "%20");
                let mut path = path.strip_prefix(ROOT).unwrap().to_owned();
                let mut query = vec![];
                for other in &parameters {
                    let of = other["name"].as_str().unwrap();
                    let value = match of {
                        _ if of == name => hostile.as_str(),
                        "namespace" => "acme",
                        "name" => "web",
                        _ => continue,
                    };
                    if other["in"] == "path" {
                        path = path.replace(&format!("{{{of}}}"), value);
                    } else {
                        query.push(format!("{of}={value}"));
                    }
                }
                let path = format!("{path}?{}", query.join("&"));
                let (status, body) = api.get("admin", &path).await;
                let found = body["items"].as_array().map_or(0, Vec::len);
                assert!(status == StatusCode::OK && found == 0 || status.is_client_error(), "{path}: {status} {body}");
                tried += 1;
            }
        }
    }
    assert!(tried > 150, "{tried}");
    assert_eq!(api.all("/search/software?name=openssl", 10).await.len(), 2, "everything is still there");
}

async fn a_parameter_that_is_not_understood_is_refused(db: &Temporary) {
    let api = Api::on(db).await;
    two_clients(&api).await;
    for (path, why) in [
        ("/devices?namespcae=acme", "unknown field `namespcae`"),
        ("/devices?namespace=acme&namespace=other", "namespace: is given twice"),
        ("/devices?namespace=", "namespace: must be the name of a namespace"),
        ("/devices?limit=0", "must be from 1 to 500"),
        ("/devices?limit=501", "must be from 1 to 500"),
        ("/devices?online=maybe", "online"),
        ("/devices?cursor=WyJhIl0", "cursor: must be `next` of the page before, of the same list"),
        ("/devices?cursor=WyJcdTAwMDAiLCJhIl0", "cursor: must be `next` of the page before, of the same list"),
        ("/search/software?name=a&than=older", "version: is needed where `than` is given"),
        ("/search/software?name=a&version=1", "than: is needed where `version` is given"),
        ("/search/software?name=a&version=a%20b&than=older", "version: is no version to dpkg or rpm"),
        ("/search/software", "missing field `name`"),
        ("/updates?classification=security", "unknown variant"),
    ] {
        let (status, refused) = api.get("admin", path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(why), "{path}: {refused}");
    }
    let (status, refused) = api.get("admin", "/namespaces/%FF/devices/web").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    let (status, _) = api.get("admin", "/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_database_that_fails_is_told_without_its_words() {
    let db = Temporary::sqlite().await;
    let api = Api::on(&db).await;
    db.execute("DROP TABLE package").await;
    let (status, refused) = api.get("admin", "/search/software?name=openssl").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused["detail"], "the gateway's database fails; its log says why");
}

#[tokio::test]
async fn what_is_too_much_is_told_to_come_again() {
    let db = Temporary::sqlite().await;
    let api = Api::on(&db).await;
    let door = Arc::new(Door::new(api.world.shared.clone(), API_AUDIENCE.to_owned()));
    let all = door.requests.acquire_many(REQUESTS.try_into().unwrap()).await.unwrap();
    let ask = async || {
        let request = http::Request::get(format!("{ROOT}/openapi.json")).body(Body::empty()).unwrap();
        router(door.clone()).oneshot(request).await.unwrap()
    };
    let refused = ask().await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let id = refused.headers()["x-request-id"].clone();
    drop(all);
    let answered = ask().await;
    assert_eq!(answered.status(), StatusCode::OK);
    assert_ne!(answered.headers()["x-request-id"], id);
    let request = http::Request::post(format!("{ROOT}/devices")).body(Body::empty()).unwrap();
    let refused = router(door.clone()).oneshot(request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(refused.headers()["allow"], "GET,HEAD");
}

/// `hack/schemathesis` runs it, with the program that asks.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes schemathesis: hack/schemathesis"]
async fn every_answer_is_as_described() {
    let program = std::env::var("PATCHWARDEN_SCHEMATHESIS").unwrap();
    let db = Temporary::sqlite().await;
    let api = Api::on(&db).await;
    two_clients(&api).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{ROOT}/openapi.json", listener.local_addr().unwrap());
    let router = api.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let mut command = tokio::process::Command::new(program);
    command.args(["run", &url, "--checks", checks, "--header", "Authorization: Bearer admin", "--max-examples", "50"]);
    command.args(["--seed", "1", "--generation-database", "none", "--no-color"]);
    // It leaves files where it runs.
    let place = tempfile::tempdir().unwrap();
    command.current_dir(place.path());
    assert!(command.status().await.unwrap().success());
}
