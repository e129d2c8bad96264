//! SQLite's gateway is killed (-9) while it writes: the file is whole, and what it has confirmed is in it.
//!
//! The gateway is a process of its own: this test program again, with [`the_gateway_that_is_killed`] alone. Its agents' door, its sessions
//! and its store are the real ones; the API server is one that takes every status, and tells of it.
//!
//! ```text
//!   this process: agents over mTLS, seeded kills, the file looked at -- reports, changes, results --> the gateway that is killed
//!                                                                    <-- confirmations, "SHOWN" ---
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use kube::client::Body;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::agent_v1::{self as wire, FromAgent};
use patchwarden_protocol::changes::{By, Change, Changed, Changes};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::{Report, Tristate};
use patchwarden_protocol::result::{InstallResult, Outcome};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

use super::door_tests::{PATIENCE, World};
use super::tls::tests::Ca;
use super::*;
use crate::store::testing::Temporary;

/// How often the gateway is killed, unless `PATCHWARDEN_KILLS` says otherwise.
const KILLS: u32 = 10;

const DEVICES: usize = 8;

/// So many results of each device are looked at after each kill, and all after the last one.
const RECENT: usize = 50;

/// The directory of the gateway that is killed.
const DIRECTORY: &str = "PATCHWARDEN_KILLED_DIRECTORY";

/// PEM of each device's key.
const KEYS: &str = "keys.json";

/// The log that the devices' changes are of.
const LOG: &str = "00000000000000000000000000000000";

/// What the gateway says of itself when its door is open.
#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
    ca_pem: String,
    /// PEM of each device's certificate.
    certificates: BTreeMap<String, String>,
}

/// An API server that takes every status, and says so before it answers: `SHOWN DEVICE COUNTER`, of its report.
fn api_server(keys: BTreeMap<String, String>) -> Client {
    let versions = Arc::new(AtomicU64::new(1_000_000));
    let answer = move |request: HttpRequest<Body>| {
        let (keys, versions) = (keys.clone(), versions.clone());
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path();
            let Some(name) = path.strip_suffix("/status").and_then(|path| path.rsplit('/').next()) else {
                return Ok::<_, Infallible>(
                    HttpResponse::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(Body::empty()).unwrap(),
                );
            };
            let mut object: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
            let key = PrivateKey::from_pem(&keys[name]).unwrap();
            let version = versions.fetch_add(1, Ordering::Relaxed);
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            object["spec"] =
                json!({ "type": "Server", "acceptedKey": key.public().fingerprint(), "lifecycle": "Active" });
            if let Some(counter) = object["status"]["inventory"]["report"]["counter"].as_u64() {
                println!("\nSHOWN {name} {counter}");
            }
            Ok(HttpResponse::builder().body(Body::from(serde_json::to_vec(&object).unwrap())).unwrap())
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process that what_was_confirmed_outlives_kill_9_of_the_gateway starts"]
async fn the_gateway_that_is_killed() {
    let directory = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let keys: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(directory.join(KEYS)).unwrap()).unwrap();
    let database = Temporary::at(Database::Sqlite(directory.join("gateway.db"))).await;
    let (ca, root) = (Arc::new(Ca::new()), Arc::new(PrivateKey::generate()));
    let world = World::on(database, api_server(keys.clone()), ca.clone(), root.clone()).await;
    let mut certificates = BTreeMap::new();
    for (name, pem) in keys {
        let key = PrivateKey::from_pem(&pem).unwrap();
        world.show_device(&name, &key, "Active", &json!({}));
        certificates.insert(name.clone(), ca.device(&format!("acme/{name}"), &key, (2036, 1, 1)));
    }
    let ready = Ready { address: world.address, ca_pem: ca.trust(&root).ca_pem, certificates };
    println!("\nREADY {}", serde_json::to_string(&ready).unwrap());
    // It ends with the process that has started it, too.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
}

/// What devices know to be kept.
#[derive(Clone, Default)]
struct Confirmed {
    /// The highest number of a change.
    changes: BTreeMap<String, u64>,
    /// Digests of orders whose result is recorded.
    results: BTreeMap<String, Vec<String>>,
    /// The highest counter of a report that the API server was shown.
    shown: BTreeMap<String, u64>,
    /// The highest counter of a report that was sent.
    sent: BTreeMap<String, u64>,
}

fn report(name: &str, counter: u64) -> Report {
    Report { counter, software_digest: String::new(), ..testing::report("acme", name) }
}

fn changes(name: &str, number: u64) -> Changes {
    let package = Change {
        name: format!("package-{number}"),
        arch: "all".into(),
        before: None,
        after: Some("1".into()),
        by: By::SomebodyElse,
    };
    let changed = Changed {
        log: LOG.into(),
        first: number,
        found_at: Timestamp::UNIX_EPOCH,
        from: "sha256:a".into(),
        to: "sha256:b".into(),
        order: None,
        run: None,
        packages: vec![package],
    };
    Changes { device: testing::report("acme", name).device, changed: vec![changed] }
}

fn result(name: &str, key: &PrivateKey, number: u64) -> InstallResult {
    InstallResult {
        device: testing::report("acme", name).device,
        device_key: key.public().fingerprint(),
        sequence: Sequence { epoch: 0, number: number.try_into().unwrap() },
        order_digest: format!("sha256:{number:064x}"),
        outcome: Outcome::Succeeded,
        reason: None,
        message: String::new(),
        actions: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: String::new(),
        steps: vec![],
        phases: vec![],
    }
}

fn sealed<T: patchwarden_protocol::Document>(document: &T, key: &PrivateKey) -> Vec<u8> {
    serde_json::to_vec(&Envelope::seal(document, key).unwrap()).unwrap()
}

/// Tells a new report, a change and a result, and when both are confirmed the next ones, until the gateway is gone. What was not confirmed is
/// told again to the next gateway.
async fn agent(
    ready: Arc<Ready>,
    name: String,
    key: Arc<PrivateKey>,
    confirmed: Arc<Mutex<Confirmed>>,
    told: mpsc::UnboundedSender<()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ready.ca_pem)).domain_name("localhost");
    let tls = tls.identity(TlsIdentity::from_pem(&ready.certificates[&name], key.to_pem()?));
    let endpoint = Endpoint::from_shared(format!("https://{}", ready.address))?.tls_config(tls)?;
    let mut client = AgentsClient::new(endpoint.connect().await?);
    let (sender, receiver) = mpsc::channel(8);
    let say = async |message| sender.send(FromAgent { message: Some(message) }).await;
    let hello = wire::Hello { device_time: shell::now().to_string(), ..wire::Hello::default() };
    say(Outbound::Hello(hello)).await?;
    let mut inbound = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    loop {
        let (number, counter) = {
            let mut confirmed = confirmed.lock().unwrap();
            let counter = confirmed.sent.entry(name.clone()).or_default();
            *counter += 1;
            let counter = *counter;
            (confirmed.changes.get(&name).copied().unwrap_or_default() + 1, counter)
        };
        let result = result(&name, &key, number);
        let digest = result.order_digest.clone();
        say(Outbound::Report(wire::Report { envelope: sealed(&report(&name, counter), &key), ..Default::default() }))
            .await?;
        say(Outbound::Changes(wire::Changes { envelope: sealed(&changes(&name, number), &key) })).await?;
        say(Outbound::Result(wire::Result { envelope: sealed(&result, &key), output: String::new() })).await?;
        let (mut change_kept, mut result_kept) = (false, false);
        while !(change_kept && result_kept) {
            match inbound.message().await?.and_then(|message| message.message) {
                Some(Inbound::ChangesRecorded(recorded)) => {
                    assert_eq!(recorded.number, number, "{name}");
                    confirmed.lock().unwrap().changes.insert(name.clone(), number);
                    change_kept = true;
                }
                Some(Inbound::ResultRecorded(recorded)) => {
                    // An earlier one is confirmed again at most.
                    result_kept = recorded.order_digest == digest;
                    let mut confirmed = confirmed.lock().unwrap();
                    confirmed.results.entry(name.clone()).or_default().push(recorded.order_digest);
                }
                Some(Inbound::Refused(refused)) => panic!("{name}: {refused:?}"),
                Some(_) => continue,
                None => return Ok(()),
            }
            let _ = told.send(());
        }
    }
}

/// Starts the gateway; where it is, and what it says from then on.
fn start(directory: &Path) -> (Child, Ready, impl Iterator<Item = String> + Send + use<>) {
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gateway::killed_tests::the_gateway_that_is_killed", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(gateway.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ready = said.find_map(|line| line.strip_prefix("READY ").map(str::to_owned)).expect("the gateway starts");
    (gateway, serde_json::from_str(&ready).unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_outlives_kill_9_of_the_gateway() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = variable("PATCHWARDEN_KILLS").unwrap_or(KILLS.into());
    let seed = variable("PATCHWARDEN_SEED").unwrap_or_else(rand::random);
    println!("{kills} kills, PATCHWARDEN_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let names = (0..DEVICES).map(|n| format!("web-{n}"));
    let keys: BTreeMap<String, Arc<PrivateKey>> = names.map(|name| (name, Arc::new(PrivateKey::generate()))).collect();
    let pems: BTreeMap<_, _> = keys.iter().map(|(name, key)| (name, key.to_pem().unwrap())).collect();
    std::fs::write(directory.path().join(KEYS), serde_json::to_vec(&pems).unwrap()).unwrap();
    let confirmed = Arc::new(Mutex::new(Confirmed::default()));
    for kill in 1..=kills {
        let (mut gateway, ready, said) = start(directory.path());
        let ready = Arc::new(ready);
        let (told, mut confirmations) = mpsc::unbounded_channel();
        let shown = confirmed.clone();
        let reader = std::thread::spawn(move || {
            for line in said {
                let Some((name, counter)) = line.strip_prefix("SHOWN ").and_then(|rest| rest.split_once(' ')) else {
                    continue;
                };
                shown.lock().unwrap().shown.insert(name.to_owned(), counter.parse().unwrap());
            }
        });
        let mut agents = tokio::task::JoinSet::new();
        for (name, key) in &keys {
            agents.spawn(agent(ready.clone(), name.clone(), key.clone(), confirmed.clone(), told.clone()));
        }
        for _ in 0..random.random_range(1..=5 * DEVICES) {
            tokio::time::timeout(PATIENCE, confirmations.recv()).await.unwrap().unwrap();
        }
        gateway.kill().unwrap();
        gateway.wait().unwrap();
        while let Some(ended) = agents.join_next().await {
            // A gateway that is gone is no failure of its agent's.
            let _gone = ended.unwrap();
        }
        reader.join().unwrap();
        let database = Temporary::at(Database::Sqlite(directory.path().join("gateway.db"))).await;
        assert_eq!(database.integrity().await, ["ok"], "kill {kill}");
        let known = confirmed.lock().unwrap().clone();
        check(&database.store, &known, &keys, if kill < kills { RECENT } else { usize::MAX }).await;
        database.store.close().await;
    }
    let confirmed = confirmed.lock().unwrap();
    let results: usize = confirmed.results.values().map(Vec::len).sum();
    println!(
        "{kills} kills: {results} results and {} changes confirmed, none lost",
        confirmed.changes.values().sum::<u64>()
    );
}

/// What was confirmed is kept, and nothing twice; of each device's results the latest, so many of them.
async fn check(store: &Store, confirmed: &Confirmed, keys: &BTreeMap<String, Arc<PrivateKey>>, results: usize) {
    for (name, key) in keys {
        let device = testing::report("acme", name).device;
        let kept = store.changes(&device, u32::MAX).await.unwrap();
        let numbers: Vec<u64> = kept.iter().map(|change| change.number).collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{name}: each change once");
        let last = confirmed.changes.get(name).copied().unwrap_or_default();
        assert!(last <= numbers.len() as u64, "{name}: change {last} was confirmed, {} are kept", numbers.len());
        for digest in confirmed.results.get(name).into_iter().flatten().rev().take(results) {
            let kept = store.result(&device, digest).await.unwrap();
            let kept = kept.unwrap_or_else(|| panic!("{name}: the result of {digest} was confirmed and is lost"));
            assert_eq!(kept.envelope.open(&key.public()).unwrap().order_digest, *digest);
        }
        if let Some(shown) = confirmed.shown.get(name) {
            let report = store.device(&device).await.unwrap().and_then(|record| record.report);
            let counter = report.map_or(0, |report| report.counter);
            assert!(counter >= *shown, "{name}: report {shown} was shown to the API server, {counter} is kept");
        }
    }
}
