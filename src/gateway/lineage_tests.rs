//! Copies of a machine, over real TLS and on both databases: two that live stop, and one that connects again, restarts or was set back does not.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use kube::client::Body;
use kube::core::DeserializeGuard;
use patchwarden_protocol::agent_v1 as wire;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{COUNTER_BACKWARDS, COUNTER_REUSED, Report};
use serde_json::{Value, json};
use tonic::Code;

use super::door_tests::{Device, PATIENCE, World, envelope};
use super::tls::tests::Ca;
use super::*;
use crate::api::DeviceInventory;
use crate::shell;
use crate::store::Lineage;
use crate::store::testing::{Temporary, on_both};

on_both!(
    two_machines_with_one_key_stop_and_a_person_lets_one_go_on,
    who_connects_again_or_restarts_is_one_machine_also_at_another_gateway,
    a_machine_that_was_set_back_gets_its_orders_after_it_has_told_anew,
);

/// The last `status.inventory` that the API server was shown.
type Shown = Arc<Mutex<Value>>;

/// Of the device's resource: each write and each change has the next one, whoever makes it.
#[derive(Clone, Default)]
struct Versions(Arc<AtomicU64>);

impl Versions {
    fn next(&self) -> String {
        // The world shows the device itself once, as version 1.
        (self.0.fetch_add(1, Ordering::Relaxed) + 2).to_string()
    }
}

struct Fleet {
    world: World,
    key: Arc<PrivateKey>,
    shown: Shown,
    versions: Versions,
    counter: std::cell::Cell<u64>,
}

/// An API server that takes every status.
fn api_server(key: &PrivateKey, shown: Shown, versions: Versions) -> Client {
    let accepted = key.public().fingerprint();
    let answer = move |request: HttpRequest<Body>| {
        let (shown, accepted, versions) = (shown.clone(), accepted.clone(), versions.clone());
        async move {
            let (parts, body) = request.into_parts();
            if !parts.uri.path().ends_with("/status") {
                let response = HttpResponse::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                return Ok::<_, Infallible>(response.body(Body::empty()).unwrap());
            }
            let mut object: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
            object["metadata"]["resourceVersion"] = json!(versions.next());
            object["spec"] = json!({ "type": "Server", "acceptedKey": accepted, "lifecycle": "Active" });
            *shown.lock().unwrap() = object["status"]["inventory"].clone();
            Ok(HttpResponse::builder().body(Body::from(serde_json::to_vec(&object).unwrap())).unwrap())
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

impl Fleet {
    async fn on(db: &Temporary) -> Self {
        Self::of(db, Arc::new(PrivateKey::generate()), 1).await
    }

    async fn of(db: &Temporary, key: Arc<PrivateKey>, counter: u64) -> Self {
        let (shown, versions) = (Shown::default(), Versions::default());
        let database = db.again().await;
        let client = api_server(&key, shown.clone(), versions.clone());
        let world = World::on(database, client, Arc::new(Ca::new()), Arc::new(PrivateKey::generate())).await;
        world.show_device("web", &key, "Active", &json!({}));
        Self { world, key, shown, versions, counter: counter.into() }
    }

    /// The watch shows the device, of which a person has dealt with what was found at that time.
    fn show(&self, resolved: Option<&Value>, inventory: &Value) {
        let version = self.versions.next();
        let object: DeviceInventory = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1",
            "kind": "DeviceInventory",
            "metadata": { "namespace": "acme", "name": "web", "uid": "u", "resourceVersion": version },
            "spec": { "type": "Server", "acceptedKey": self.key.public().fingerprint(), "duplicateResolved": resolved },
            "status": { "inventory": inventory },
        }))
        .unwrap();
        self.world.shared.devices.apply(DeserializeGuard(Ok(object)), false, &self.world.shared.sessions);
    }

    async fn lineage(&self) -> Option<Lineage> {
        let device = testing::report("acme", "web").device;
        self.world.shared.store.lineage(&device, &self.key.public().fingerprint()).await.unwrap()
    }

    /// A process says Hello that comes from another one.
    async fn hello(&self, id: u128, predecessor: u128) -> Device {
        let instance = wire::Instance {
            id: format!("{id:032x}"),
            predecessor: format!("{predecessor:032x}"),
            host_name: format!("host-{id}"),
            started: "2026-01-01T00:00:00Z".into(),
        };
        let hello =
            wire::Hello { device_time: shell::now().to_string(), instance: Some(instance), ..wire::Hello::default() };
        self.world.greet("web", &self.key, hello).await.unwrap()
    }

    /// The same, and answers what it is asked for, with a report as of a machine that goes on.
    async fn speak(&self, id: u128, predecessor: u128) -> Device {
        let mut device = self.hello(id, predecessor).await;
        assert!(matches!(device.hear().await, Inbound::Welcome(_)));
        assert!(matches!(device.hear().await, Inbound::SendReport(_)));
        self.counter.set(self.counter.get() + 1);
        device.say(self.report(self.counter.get())).await;
        device
    }

    fn report(&self, counter: u64) -> Outbound {
        let report = Report { software_digest: String::new(), counter, ..testing::report("acme", "web") };
        Outbound::Report(wire::Report { envelope: envelope(&report, &self.key), ..wire::Report::default() })
    }

    /// Until this process is remembered.
    async fn remembers(&self, id: u128) {
        let known = async {
            while self.lineage().await.is_none_or(|lineage| lineage.current.id != format!("{id:032x}")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.unwrap_or_else(|_| panic!("{id} is not remembered"));
    }

    fn finding(&self) -> Option<Value> {
        Some(self.shown.lock().unwrap()["duplicateIdentity"].clone()).filter(|found| !found.is_null())
    }

    async fn audited(&self) -> Vec<String> {
        self.world.shared.store.audit_tail(20).await.unwrap().into_iter().map(|line| line.outcome).collect()
    }

    /// An order that the device has not had.
    fn order(&self) -> Arc<orders::Run> {
        let order = testing::order("acme", "web", &self.key.public());
        self.world.shared.orders.begin(&order, "sha256:order", b"an order".to_vec(), shell::now())
    }
}

async fn two_machines_with_one_key_stop_and_a_person_lets_one_go_on(db: &Temporary) {
    let fleet = Fleet::on(db).await;
    for (id, predecessor) in [(1, 0), (2, 0), (1, 0)] {
        let _device = fleet.speak(id, predecessor).await;
        fleet.remembers(id).await;
    }
    assert_eq!(fleet.finding(), None);
    fleet.order();
    // One of them waits for a grant.
    fleet.show(None, &json!({ "online": true, "grantRequest": { "orderDigest": "sha256:order", "nonce": "n" } }));
    let mut copy = fleet.speak(2, 0).await;
    let mut heard = Vec::new();
    let status = loop {
        match tokio::time::timeout(PATIENCE, copy.inbound.message()).await.unwrap() {
            Ok(message) => heard.push(message.unwrap().message.unwrap()),
            Err(status) => break status,
        }
    };
    assert!(!heard.iter().any(|message| matches!(message, Inbound::Order(_))), "{heard:?}");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let found = fleet.finding().expect("it is in the status");
    for expected in ["DuplicateIdentity: since ", "host-1 at 127.0.0.1", "host-2 at 127.0.0.1", "join --force"] {
        assert!(status.message().contains(expected), "{status:?}");
    }
    let machines: Vec<_> = found["machines"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert!(machines.len() == 2 && machines[0].starts_with("host-1") && machines[1].starts_with("host-2"), "{found}");
    assert!(fleet.audited().await.contains(&"DuplicateIdentity".to_owned()));
    assert_eq!(fleet.shown.lock().unwrap()["grantRequest"], Value::Null, "nobody is to answer it");

    // Neither has a session any more, a third one of it not, and the status is written once.
    for id in [1, 2, 3] {
        let status = fleet.hello(id, 2).await.end().await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }
    assert_eq!(fleet.finding().as_ref(), Some(&found));

    // What the status says is lost, and comes back with the next Hello: the store knows it.
    *fleet.shown.lock().unwrap() = Value::Null;
    fleet.show(None, &json!({ "online": false }));
    assert_eq!(fleet.hello(1, 0).await.end().await.code(), Code::FailedPrecondition);
    assert_eq!(fleet.finding().as_ref(), Some(&found));

    // A person has seen to it, and says which finding that was.
    let resolve = |since: &Value| {
        fleet.show(Some(since), &json!({ "online": false, "duplicateIdentity": found }));
    };
    resolve(&json!("2026-01-01T00:00:00Z"));
    assert_eq!(fleet.hello(1, 0).await.end().await.code(), Code::FailedPrecondition, "that is another finding");
    assert!(fleet.lineage().await.is_some_and(|lineage| lineage.found.is_some()));
    assert!(!fleet.audited().await.contains(&"DuplicateResolved".to_owned()));
    resolve(&found["since"]);
    let mut device = fleet.speak(1, 0).await;
    fleet.remembers(1).await;
    assert!(matches!(device.hear().await, Inbound::Order(_)), "it goes on");
    assert_eq!(fleet.finding(), None);
    assert!(fleet.audited().await.contains(&"DuplicateResolved".to_owned()));
}

async fn who_connects_again_or_restarts_is_one_machine_also_at_another_gateway(db: &Temporary) {
    let fleet = Fleet::on(db).await;
    let _first = fleet.speak(1, 0).await;
    fleet.remembers(1).await;
    // The session before is still there, and ends when the next one begins.
    for _ in 0..5 {
        let mut again = fleet.hello(1, 0).await;
        assert!(matches!(again.hear().await, Inbound::Welcome(_)));
    }
    let _restarted = fleet.speak(2, 1).await;
    fleet.remembers(2).await;
    let before = fleet.lineage().await;
    let (key, counter) = (fleet.key.clone(), fleet.counter.get());
    fleet.world.shared.store.close().await;
    drop(fleet);

    let next = Fleet::of(db, key, counter).await;
    let mut again = next.hello(2, 1).await;
    assert!(matches!(again.hear().await, Inbound::Welcome(_)));
    assert_eq!(next.lineage().await, before, "nothing is written for it");
    next.order();
    let mut again = next.hello(2, 1).await;
    while !matches!(again.hear().await, Inbound::Order(_)) {}
    assert!(next.audited().await.iter().all(|outcome| outcome == "Replaced"), "{:?}", next.audited().await);
    assert_eq!(next.finding(), None);
}

async fn a_machine_that_was_set_back_gets_its_orders_after_it_has_told_anew(db: &Temporary) {
    let fleet = Fleet::on(db).await;
    let mut device = fleet.speak(1, 0).await;
    fleet.remembers(1).await;
    device.say(fleet.report(7)).await;
    for (counter, reason) in [(5, COUNTER_BACKWARDS), (7, COUNTER_REUSED)] {
        let other = Report { software_digest: "sha256:x".into(), counter, ..testing::report("acme", "web") };
        let other = wire::Report { envelope: envelope(&other, &fleet.key), ..wire::Report::default() };
        device.say(Outbound::Report(other)).await;
        assert!(matches!(device.hear().await, Inbound::Refused(refused) if refused.reason == reason));
    }
    let run = fleet.order();
    assert!(fleet.world.shared.sessions.deliver(&run.device, &run.order));
    // What was delivered would come before the answer to this.
    device.say(Outbound::GrantRequest(wire::GrantRequest::default())).await;
    let heard = device.hear().await;
    assert!(matches!(&heard, Inbound::Refused(refused) if refused.what == "GrantRequest"), "{heard:?}");
    device.say(fleet.report(8)).await;
    let heard = device.hear().await;
    assert!(matches!(&heard, Inbound::Order(order) if order.signed_order == b"an order"), "{heard:?}");
    assert_eq!(fleet.finding(), None);
}
