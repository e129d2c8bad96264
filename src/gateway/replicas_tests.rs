//! Gateways that share a PostgreSQL database, with agents and runners that come to any of them; some die.

use std::collections::HashMap;
use std::convert::Infallible;

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use kube::client::Body;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::agent_v1::{self as wire, FromAgent};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::SignedOrder;
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{InstallResult, Outcome};
use patchwarden_protocol::runner_v1::{RunEvent, run_event};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::door_tests::{Device, PATIENCE, World};
use super::tls::tests::Ca;
use super::*;
use crate::store::testing::{Server, Temporary};

/// Jobs by name, as the API server has them: each with its order, and one pod of the same name.
type Jobs = Arc<Mutex<HashMap<String, SignedOrder>>>;

/// An API server that knows the Jobs and whose token is whose (the token is the pod's name), and refuses everything else for now.
fn api_server(jobs: Jobs) -> Client {
    let answer = move |request: HttpRequest<Body>| {
        let jobs = jobs.clone();
        async move {
            let path = request.uri().path().to_owned();
            let (kind, name) = path.rsplit_once('/').unwrap();
            let order = jobs.lock().unwrap().get(name).map(|order| serde_json::to_string(order).unwrap());
            let body: Option<Value> = match kind.rsplit('/').next().unwrap() {
                "v1" if name == "tokenreviews" => {
                    let body = request.into_body().collect_bytes().await.unwrap();
                    let mut review: Value = serde_json::from_slice(&body).unwrap();
                    let pod = review["spec"]["token"].clone();
                    let extra = |value: &Value| json!([value]);
                    review["status"] = json!({
                        "authenticated": true,
                        "audiences": [patchwarden_protocol::GATEWAY_AUDIENCE],
                        "user": { "username": "system:serviceaccount:acme:patchwarden-runner", "extra": {
                            "authentication.kubernetes.io/pod-name": extra(&pod),
                            "authentication.kubernetes.io/pod-uid": extra(&pod),
                        } },
                    });
                    Some(review)
                }
                "pods" => {
                    Some(json!({ "metadata": { "namespace": "acme", "name": name, "uid": name, "ownerReferences": [
                    { "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": name, "controller": true },
                ] } }))
                }
                "jobs" => Some(json!({ "metadata": { "namespace": "acme", "name": name, "uid": name,
                    "annotations": { crate::api::ANNOTATION_ORDER: order } } })),
                _ => None,
            };
            let response = HttpResponse::builder();
            Ok::<_, Infallible>(match body {
                Some(body) => response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap(),
                None => response.status(StatusCode::SERVICE_UNAVAILABLE).body(Body::empty()).unwrap(),
            })
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

/// What gateways have in common.
struct Fleet {
    database: Temporary,
    jobs: Jobs,
    ca: Arc<Ca>,
    root: Arc<PrivateKey>,
}

impl Fleet {
    async fn new() -> Self {
        Self::on(Temporary::postgres().await)
    }

    fn on(database: Temporary) -> Self {
        Self { database, jobs: Jobs::default(), ca: Arc::new(Ca::new()), root: Arc::new(PrivateKey::generate()) }
    }

    async fn gateway(&self) -> World {
        let database = self.database.beside().await;
        World::on(database, api_server(self.jobs.clone()), self.ca.clone(), self.root.clone()).await
    }

    /// A Job with an order for a device. Its name is the device's.
    fn job(&self, device: &str, key: &PrivateKey) -> SignedOrder {
        let signed = testing::signed_order(&testing::order("acme", device, &key.public()), &self.root);
        self.jobs.lock().unwrap().insert(device.to_owned(), signed.clone());
        signed
    }
}

/// What the pod of a Job hears, from its call on.
async fn run(gateway: &Arc<Shared>, job: &str) -> Result<mpsc::Receiver<Result<RunEvent, Status>>, Status> {
    let attached = runner::attach(gateway, Some(job.to_owned()), job).await?;
    let (sender, events) = mpsc::channel(64);
    tokio::spawn(runner::follow(gateway.clone(), attached, sender));
    Ok(events)
}

fn result(device: &str, key: &PrivateKey, digest: &str) -> wire::Result {
    let now = shell::now();
    let result = InstallResult {
        device: testing::report("acme", device).device,
        device_key: key.public().fingerprint(),
        sequence: patchwarden_protocol::order::Sequence { epoch: 1, number: 1 },
        order_digest: digest.to_owned(),
        outcome: Outcome::Succeeded,
        reason: None,
        message: String::new(),
        actions: Vec::new(),
        started_at: now,
        finished_at: now,
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: String::new(),
        steps: vec![],
        phases: vec![],
    };
    wire::Result {
        envelope: serde_json::to_vec(&Envelope::seal(&result, key).unwrap()).unwrap(),
        output: String::new(),
    }
}

/// The digest of the order that comes next.
async fn ordered(device: &mut Device) -> String {
    loop {
        if let Inbound::Order(order) = device.hear().await {
            break serde_json::from_slice::<SignedOrder>(&order.signed_order).unwrap().order.digest();
        }
    }
}

/// What a pod hears to its end: phases, and whether the result came.
async fn heard(events: &mut mpsc::Receiver<Result<RunEvent, Status>>) -> (Vec<String>, bool) {
    let mut phases = Vec::new();
    while let Some(event) = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap() {
        match event.unwrap().event.unwrap() {
            run_event::Event::Progress(line) => phases.push(line.phase),
            run_event::Event::Finished(_) => return (phases, true),
        }
    }
    (phases, false)
}

#[tokio::test]
async fn an_order_reaches_its_device_at_another_gateway_and_the_result_comes_back() {
    let fleet = Fleet::new().await;
    let (a, b) = (fleet.gateway().await, fleet.gateway().await);
    let key = PrivateKey::generate();
    for gateway in [&a, &b] {
        gateway.show_device("web", &key, "Active", &json!({}));
    }
    let digest = fleet.job("web", &key).order.digest();
    let mut device = b.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    let mut pod = run(&a.shared, "web").await.unwrap();
    assert_eq!(ordered(&mut device).await, digest);
    let progress = wire::Progress { order_digest: digest.clone(), phase: "Installing".into(), text: "1 of 1".into() };
    device.say(Outbound::Progress(progress)).await;
    device.say(Outbound::Result(result("web", &key, &digest))).await;
    let (phases, finished) = heard(&mut pod).await;
    assert!(finished);
    assert_eq!(phases, ["Delivered", "Installing"]);
    let (again, finished) = heard(&mut run(&b.shared, "web").await.unwrap()).await;
    assert!(finished && again.is_empty(), "the result alone: {again:?}");
}

#[tokio::test]
async fn a_device_that_goes_to_another_gateway_leaves_its_session_and_is_not_offline() {
    let fleet = Fleet::new().await;
    let (a, b) = (fleet.gateway().await, fleet.gateway().await);
    let key = PrivateKey::generate();
    for gateway in [&a, &b] {
        gateway.show_device("web", &key, "Active", &json!({}));
    }
    let web = testing::report("acme", "web").device;
    let mut first = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(first.hear().await, Inbound::Welcome(_)));
    let mut second = b.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(second.hear().await, Inbound::Welcome(_)));
    assert_eq!(first.end().await.code(), Code::Aborted);
    assert!(b.shared.sessions.is_here(&web));
    assert!(a.shared.sessions.is_open(&web) && !a.shared.sessions.is_here(&web));
    let places = fleet.database.store.sessions().await.unwrap();
    assert_eq!(places.iter().map(|place| &place.replica).collect::<Vec<_>>(), [&b.shared.replica]);
}

#[tokio::test]
async fn all_gateways_name_the_same_store_until_it_is_another_one() {
    let fleet = Fleet::new().await;
    let (a, b) = (fleet.gateway().await, fleet.gateway().await);
    let identity = a.shared.store.identity().await.unwrap();
    assert_eq!(b.shared.store.identity().await.unwrap(), identity);
    let restored = Store::open(&fleet.database.backup().await, "restored").await.unwrap();
    assert_ne!(restored.identity().await.unwrap(), identity);
}

#[tokio::test]
async fn a_gateway_that_the_others_took_for_dead_ends_its_sessions() {
    let fleet = Fleet::new().await;
    let a = fleet.gateway().await;
    let key = PrivateKey::generate();
    a.show_device("web", &key, "Active", &json!({}));
    let mut device = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    fleet.database.store.leave(&a.shared.replica).await.unwrap();
    assert_eq!(fleet.database.store.sessions().await.unwrap(), []);
    assert_eq!(device.end().await.code(), Code::Unavailable);
    let mut device = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    assert_eq!(fleet.database.store.sessions().await.unwrap().len(), 1);
}

/// A server that crashes may lose sessions: they are committed without waiting for the disk.
#[tokio::test]
async fn a_session_that_the_database_has_lost_is_opened_anew() {
    let fleet = Fleet::new().await;
    let a = fleet.gateway().await;
    let key = PrivateKey::generate();
    a.show_device("web", &key, "Active", &json!({}));
    let mut device = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    let lose = "DELETE FROM session;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    fleet.database.execute(lose).await;
    assert_eq!(device.end().await.code(), Code::Unavailable);
    let mut device = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
    assert_eq!(fleet.database.store.sessions().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_gateway_whose_database_has_vanished_is_not_ready_says_so_and_goes_on_when_it_is_back() {
    let (ca, root) = (Arc::new(Ca::new()), Arc::new(PrivateKey::generate()));
    let server = Server::start("", |_| {});
    let database = Temporary::impatient(&server, Duration::from_secs(1)).await;
    let a = World::on(database, api_server(Jobs::default()), ca, root).await;
    let key = PrivateKey::generate();
    a.show_device("web", &key, "Active", &json!({}));
    let database = async || health::readyz(axum::extract::State(a.shared.clone())).await.1;
    assert!(!database().await.contains("database"));
    let gone = server.vanish();
    let said = database().await;
    assert!(said.contains("database: ") && said.contains("the server has not answered for 5 s"), "{said}");
    let mut refused = a.try_session("web", &key, "", None).await.unwrap();
    let refused = refused.end().await;
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "the gateway's database fails"));
    drop(gone);
    assert!(!database().await.contains("database"));
    let mut device = a.try_session("web", &key, "", None).await.unwrap();
    assert!(matches!(device.hear().await, Inbound::Welcome(_)));
}

/// A gateway in a runtime of its own, which can end without a word, as a process does that is killed.
struct Mortal {
    world: Arc<World>,
    runtime: Runtime,
}

impl Mortal {
    fn alive(&self) -> (Arc<World>, Handle) {
        (self.world.clone(), self.runtime.handle().clone())
    }
}

/// Those that live, in any order.
type Living = Arc<Mutex<Vec<(Arc<World>, Handle)>>>;

fn any_of(living: &Living) -> (Arc<World>, Handle) {
    let living = living.lock().unwrap();
    living[rand::random_range(0..living.len())].clone()
}

/// So that those who find no gateway do not keep the machine from making one.
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// An agent with a journal: it carries out an order once, and tells its result in each session until the test is over.
async fn agent(living: Living, name: String, key: Arc<PrivateKey>, carried_out: mpsc::UnboundedSender<String>) {
    let mut journal: HashMap<String, wire::Result> = HashMap::new();
    loop {
        let (gateway, _) = any_of(&living);
        let Ok(Device { sender, mut inbound }) = gateway.try_session(&name, &key, "", None).await else {
            tokio::time::sleep(BETWEEN_TRIES).await;
            continue;
        };
        for known in journal.values() {
            let _ = sender.send(FromAgent { message: Some(Outbound::Result(known.clone())) }).await;
        }
        while let Ok(Some(message)) = inbound.message().await {
            let Some(Inbound::Order(order)) = message.message else { continue };
            let digest = serde_json::from_slice::<SignedOrder>(&order.signed_order).unwrap().order.digest();
            let result = journal.entry(digest.clone()).or_insert_with(|| {
                carried_out.send(digest.clone()).unwrap();
                result(&name, &key, &digest)
            });
            let _ = sender.send(FromAgent { message: Some(Outbound::Result(result.clone())) }).await;
        }
    }
}

/// The pod of a Job: it asks until it has a result.
async fn pod(living: Living, job: String) -> String {
    loop {
        let (gateway, there) = any_of(&living);
        let called = job.clone();
        // In the gateway's own runtime, so that it ends with it.
        let call = there.spawn(async move { run(&gateway.shared, &called).await });
        let Ok(Ok(mut events)) = call.await else {
            tokio::time::sleep(BETWEEN_TRIES).await;
            continue;
        };
        while let Some(Ok(event)) = events.recv().await {
            if let Some(run_event::Event::Finished(finished)) = event.event {
                return serde_json::from_slice::<InstallResult>(&finished.result).unwrap().order_digest;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_order_ends_once_while_gateways_die_and_their_database_crashes() {
    const DEVICES: usize = 20;
    let seed = std::env::var("PATCHWARDEN_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!("PATCHWARDEN_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = Arc::new(Server::start("", |_| {}));
    let database = Temporary::at(Database::Postgres(server.url("postgres"))).await;
    let fleet = Arc::new(Fleet::on(database));
    let keys: Arc<Vec<_>> = Arc::new((0..DEVICES).map(|_| Arc::new(PrivateKey::generate())).collect());
    let mortal = async || {
        let (fleet, keys) = (fleet.clone(), keys.clone());
        let begin = move || {
            let runtime = Runtime::new().unwrap();
            let world = runtime.block_on(fleet.gateway());
            for (n, key) in keys.iter().enumerate() {
                world.show_device(&format!("web-{n}"), key, "Active", &json!({}));
            }
            Mortal { world: Arc::new(world), runtime }
        };
        tokio::task::spawn_blocking(begin).await.unwrap()
    };
    let mut gateways = vec![mortal().await, mortal().await, mortal().await];
    let living: Living = Arc::new(Mutex::new(gateways.iter().map(Mortal::alive).collect()));
    let (carried_out, mut done) = mpsc::unbounded_channel();
    let mut agents = tokio::task::JoinSet::new();
    let mut pods = tokio::task::JoinSet::new();
    let mut orders: Vec<String> = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let name = format!("web-{n}");
        orders.push(fleet.job(&name, key).order.digest());
        agents.spawn(agent(living.clone(), name.clone(), key.clone(), carried_out.clone()));
        pods.spawn(pod(living.clone(), name));
    }
    let mut carried: Vec<String> = Vec::new();
    let crash = random.random_range(0..3);
    for death in 0..3 {
        let at = death * DEVICES / 4 + random.random_range(1..=DEVICES / 4);
        while carried.len() < at {
            carried.push(tokio::time::timeout(PATIENCE, done.recv()).await.unwrap().unwrap());
        }
        if death == crash {
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.crash()).await.unwrap();
        }
        let Mortal { world, runtime } = gateways.remove(0);
        living.lock().unwrap().retain(|(one, _)| !Arc::ptr_eq(one, &world));
        runtime.shutdown_background();
        let next = mortal().await;
        living.lock().unwrap().push(next.alive());
        gateways.push(next);
    }
    let mut finished: Vec<String> = Vec::new();
    while let Some(order) = tokio::time::timeout(PATIENCE, pods.join_next()).await.unwrap() {
        finished.push(order.unwrap());
    }
    agents.shutdown().await;
    while let Ok(order) = done.try_recv() {
        carried.push(order);
    }
    for all in [&mut orders, &mut finished, &mut carried] {
        all.sort();
    }
    assert_eq!(finished, orders, "each pod heard of its own order");
    assert_eq!(carried, orders, "each device carried its order out once");
    for (n, key) in keys.iter().enumerate() {
        let device = testing::report("acme", &format!("web-{n}")).device;
        let digest = fleet.jobs.lock().unwrap()[&device.name].order.digest();
        let kept = fleet.database.store.result(&device, &digest).await.unwrap().unwrap();
        assert_eq!(kept.envelope.open(&key.public()).unwrap().order_digest, digest);
    }
    let audit = fleet.database.store.audit_tail(1000).await.unwrap();
    assert!(audit.iter().all(|line| line.outcome != "ResultConflict"), "{audit:?}");
    for gateway in gateways {
        gateway.runtime.shutdown_background();
    }
}
