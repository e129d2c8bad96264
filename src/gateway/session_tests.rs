//! What a session makes of its device's resource, with an API server that takes every status and tells of it; and of a database that is busy.

use std::convert::Infallible;

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use kube::client::Body;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1 as wire;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::Report;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::door_tests::{PATIENCE, World};
use super::*;

/// An API server, and what it is shown of the device.
fn api_server(key: &PrivateKey) -> (Client, mpsc::UnboundedReceiver<Value>) {
    let (told, shown) = mpsc::unbounded_channel();
    let accepted = key.public().fingerprint();
    let answer = move |request: HttpRequest<Body>| {
        let (told, accepted) = (told.clone(), accepted.clone());
        async move {
            let (parts, body) = request.into_parts();
            if !parts.uri.path().ends_with("/status") {
                let response = HttpResponse::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                return Ok::<_, Infallible>(response.body(Body::empty()).unwrap());
            }
            let mut object: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
            // What the watch shows next is newer.
            object["metadata"]["resourceVersion"] = json!("1");
            object["spec"] = json!({ "type": "Server", "acceptedKey": accepted, "lifecycle": "Active" });
            told.send(object["status"]["inventory"].clone()).unwrap();
            Ok(HttpResponse::builder().body(Body::from(serde_json::to_vec(&object).unwrap())).unwrap())
        }
    };
    (Client::new(tower::service_fn(answer), "default"), shown)
}

#[tokio::test]
async fn a_resource_that_was_set_back_is_shown_the_kept_report_again() {
    let key = PrivateKey::generate();
    let (client, mut shown) = api_server(&key);
    let world = World::with(client).await;
    world.show_device("web", &key, "Active", &json!({}));
    let mut device = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    let report = Report { software_digest: String::new(), counter: 7, ..testing::report("acme", "web") };
    let envelope = serde_json::to_vec(&Envelope::seal(&report, &key).unwrap()).unwrap();
    device.say(Outbound::Report(wire::Report { envelope, ..wire::Report::default() })).await;
    let mut next = async || {
        let inventory = tokio::time::timeout(PATIENCE, shown.recv()).await.unwrap().unwrap();
        inventory["report"]["counter"].as_u64()
    };
    // "Online" may be written first.
    while next().await != Some(7) {}
    // As after a restore of etcd.
    world.show_device("web", &key, "Active", &json!({}));
    assert_eq!(next().await, Some(7));
}

#[tokio::test]
async fn a_clock_that_is_off_is_shown_until_a_session_begins_with_one_that_is_right() {
    let key = PrivateKey::generate();
    let (client, mut shown) = api_server(&key);
    let world = World::with(client).await;
    world.show_device("web", &key, "Active", &json!({}));
    let mut next =
        async || tokio::time::timeout(PATIENCE, shown.recv()).await.unwrap().unwrap()["clockSkewSeconds"].clone();
    let hello = |behind: i64| {
        let device_time = shell::now() - jiff::SignedDuration::from_secs(behind);
        wire::Hello { device_time: device_time.to_string(), ..wire::Hello::default() }
    };
    let _late = world.greet("web", &key, hello(3_600)).await.unwrap();
    let skew = next().await.as_i64().unwrap();
    assert!((3_595..3_660).contains(&skew), "{skew}");
    // At the next session, once somebody has set it.
    let _right = world.greet("web", &key, hello(0)).await.unwrap();
    assert_eq!(next().await, Value::Null);
}

/// Every turn there is.
async fn all_turns(of: &Turns) -> Vec<turns::Turn> {
    let mut taken = Vec::new();
    for _ in 0..turns::AT_ONCE {
        taken.push(of.next().await.unwrap());
    }
    taken
}

/// As many sessions wait for their turn.
async fn waiting(world: &World, sessions: i64) {
    let gauge = &world.shared.metrics.waiting_sessions;
    let counted = async {
        while gauge.get() != sessions {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("{} sessions wait", gauge.get()));
}

#[tokio::test]
async fn a_report_waits_while_the_database_is_busy_and_orders_and_revocations_do_not() {
    let key = PrivateKey::generate();
    let (client, _shown) = api_server(&key);
    let world = World::with(client).await;
    world.show_device("web", &key, "Active", &json!({}));
    let mut device = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    let report = Report { software_digest: String::new(), counter: 7, ..testing::report("acme", "web") };
    let sent = wire::Report {
        envelope: serde_json::to_vec(&Envelope::seal(&report, &key).unwrap()).unwrap(),
        ..wire::Report::default()
    };
    let counter = async || {
        let known = world.database.store.device(&report.device).await.unwrap();
        known.and_then(|known| known.report).map(|report| report.counter)
    };

    let taken = all_turns(&world.shared.turns).await;
    device.say(Outbound::Report(sent.clone())).await;
    waiting(&world, 1).await;
    // What comes after it waits, too.
    device.say(Outbound::GrantRequest(wire::GrantRequest::default())).await;
    assert!(world.shared.sessions.deliver(&report.device, &Arc::new(b"an order".to_vec())));
    // Whether a report is asked for is older than all this.
    let mut heard = device.hear().await;
    if let Inbound::SendReport(_) = heard {
        heard = device.hear().await;
    }
    assert!(matches!(&heard, Inbound::Order(order) if order.signed_order == b"an order"), "{heard:?}");
    assert_eq!(counter().await, None);
    drop(taken);
    // The answer to what came after it.
    assert!(matches!(device.hear().await, Inbound::Refused(refused) if refused.what == "GrantRequest"));
    assert_eq!(counter().await, Some(7));
    waiting(&world, 0).await;

    let _taken = all_turns(&world.shared.turns).await;
    device.say(Outbound::Report(sent)).await;
    waiting(&world, 1).await;
    world.show_device("web", &key, "Retired", &json!({}));
    assert_eq!(device.end().await.code(), tonic::Code::PermissionDenied);
    waiting(&world, 0).await;
}

#[tokio::test]
async fn an_order_that_a_session_is_told_of_again_is_brought_once() {
    let key = PrivateKey::generate();
    let (client, _shown) = api_server(&key);
    let world = World::with(client).await;
    world.show_device("web", &key, "Active", &json!({}));
    let mut device = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    let web = testing::report("acme", "web").device;
    let [first, second] = [b"one", b"two"].map(|order| Arc::new(order.to_vec()));
    for order in [&first, &first, &second] {
        assert!(world.shared.sessions.deliver(&web, order));
    }
    let mut brought = Vec::new();
    while brought.len() < 2 {
        if let Inbound::Order(order) = device.hear().await {
            brought.push(order.signed_order);
        }
    }
    assert_eq!(brought, [b"one", b"two"]);
}

#[tokio::test]
async fn while_others_send_their_software_a_device_is_asked_for_its_report_alone_and_for_the_rest_in_its_turn() {
    let key = PrivateKey::generate();
    let (client, _shown) = api_server(&key);
    let world = World::with(client).await;
    world.show_device("web", &key, "Active", &json!({}));
    let mut taken = all_turns(&world.shared.asks).await;
    let mut device = world.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    assert!(matches!(device.hear().await, Inbound::SendReport(asked) if !asked.software));
    waiting(&world, 1).await;
    let software = patchwarden_protocol::report::Software { packages: Vec::new() };
    let digest = patchwarden_protocol::canonical::digest_of(&software).unwrap();
    let report = Report { software_digest: digest.clone(), counter: 7, ..testing::report("acme", "web") };
    let envelope = serde_json::to_vec(&Envelope::seal(&report, &key).unwrap()).unwrap();
    device.say(Outbound::Report(wire::Report { envelope: envelope.clone(), ..wire::Report::default() })).await;
    // One answer makes room for one.
    taken.pop();
    assert!(matches!(device.hear().await, Inbound::SendReport(asked) if asked.software));
    assert!(world.shared.asks.now().is_none());
    let software = serde_json::to_vec(&software).unwrap();
    device.say(Outbound::Report(wire::Report { envelope, software, ..wire::Report::default() })).await;
    let known = async {
        let store = &world.database.store;
        while store.device(&report.device).await.unwrap().is_none_or(|it| it.software_digest.as_ref() != Some(&digest))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
    // Its turn ends a moment after the answer is kept.
    let _turn = tokio::time::timeout(PATIENCE, world.shared.asks.next()).await.unwrap().unwrap();
    waiting(&world, 0).await;
}
