//! The agents' door over real TLS, with an API server that is away: what devices and install Jobs see of it.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::SignedDuration;
use kube::core::DeserializeGuard;
use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::agent_v1::{
    self as wire, FromAgent, RenewRequest, ToAgent, from_agent::Message as Outbound, to_agent::Message as Inbound,
};
use patchwarden_protocol::changes::{By, Change, Changed, Changes, NUMBER_REUSED};
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::details::{Details, Hardware};
use patchwarden_protocol::grant::{Grant, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::SignedOrder;
use patchwarden_protocol::report::{DeviceRef, Package, Report, Software, Tristate};
use patchwarden_protocol::result::{InstallResult, Outcome};
use patchwarden_protocol::runner_v1::{RunEvent, run_event};
use patchwarden_protocol::{Envelope, canonical};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use tonic::{Code, Status, Streaming};

use super::tls::tests::Ca;
use super::*;
use crate::api::DeviceInventory;
use crate::api::device_inventory::AnsweredGrant;
use crate::shell;
use crate::store::testing::Temporary;
use crate::telemetry::Traces;

/// Long enough for a loaded machine, short enough for a person.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const CONTROLLER: &str = "system:serviceaccount:patchwarden-system:patchwarden-controller";

pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) ca: Arc<Ca>,
    pub(super) root: Arc<PrivateKey>,
    pub(super) address: SocketAddr,
    version: AtomicU64,
    trust: watch::Sender<Option<Trust>>,
    _serving: watch::Sender<Option<Timestamp>>,
    _shutdown: watch::Sender<bool>,
    recipes: watch::Sender<Option<Arc<recipes::Offered>>>,
    _tls: watch::Sender<Option<Arc<ServerConfig>>>,
    pub(super) database: Temporary,
}

impl World {
    async fn new() -> Self {
        let mut away = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        away.default_retry = false;
        Self::with(Client::try_from(away).unwrap()).await
    }

    pub(super) async fn with(client: Client) -> Self {
        let (ca, root) = (Arc::new(Ca::new()), Arc::new(PrivateKey::generate()));
        Self::on(Temporary::sqlite().await, client, ca, root).await
    }

    /// A gateway on this database, with these keys.
    pub(super) async fn on(database: Temporary, client: Client, ca: Arc<Ca>, root: Arc<PrivateKey>) -> Self {
        let metrics = Metrics::new().unwrap();
        let trust = watch::Sender::new(Some(ca.trust(&root)));
        let (serving, shutdown) = (watch::Sender::new(None), watch::Sender::new(false));
        let recipes = watch::Sender::new(None);
        let shared = Arc::new(Shared {
            devices: Devices::new(client.clone(), metrics.clone()),
            namespace: "patchwarden-system".into(),
            controller_user: CONTROLLER.into(),
            store: database.store.clone(),
            replica: format!("gateway-{:08x}", rand::random::<u32>()),
            limits: Limits::new().unwrap(),
            sessions: Sessions::default(),
            turns: Turns::new(metrics.waiting_sessions.clone()),
            asks: Turns::new(metrics.waiting_sessions.clone()),
            orders: Orders::default(),
            trust: trust.subscribe(),
            serving_until: serving.subscribe(),
            shutdown: shutdown.subscribe(),
            seen: Mutex::default(),
            enrolments: Mutex::new(Budget::new(ENROLMENTS.0, ENROLMENTS.1)),
            reviews: Mutex::new(Budget::new(REVIEWS.0, REVIEWS.1)),
            refusals: Mutex::default(),
            renewals: Mutex::default(),
            traces: Traces::default(),
            scan_interval_seconds: 3600,
            recipes: recipes.subscribe(),
            client,
            metrics,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving_with = watch::Sender::new(Some(ca.serving(&["localhost"]).agents(&ca.trust(&root)).unwrap()));
        if shared.store.is_shared() {
            shared.store.join(&shared.replica).await.unwrap();
            tokio::spawn(replicas::run(shared.clone()));
        }
        let (door, config) = (shared.clone(), serving_with.subscribe());
        let limits = tls::Limits::of_certificates();
        tokio::spawn(async move { open_door("agents'", agents_router(&door), listener, config, limits, &door).await });
        Self {
            shared,
            ca,
            root,
            address,
            version: AtomicU64::new(1),
            trust,
            _serving: serving,
            _shutdown: shutdown,
            recipes,
            _tls: serving_with,
            database,
        }
    }

    /// The watch shows the device.
    fn show(&self, accepted: &PrivateKey, lifecycle: &str, status: &serde_json::Value) {
        self.show_device("web", accepted, lifecycle, status);
    }

    pub(super) fn show_device(&self, name: &str, accepted: &PrivateKey, lifecycle: &str, status: &serde_json::Value) {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        let object: DeviceInventory = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1",
            "kind": "DeviceInventory",
            "metadata": { "namespace": "acme", "name": name, "uid": "u", "resourceVersion": version.to_string() },
            "spec": { "type": "Server", "acceptedKey": accepted.public().fingerprint(), "lifecycle": lifecycle },
            "status": status,
        }))
        .unwrap();
        self.shared.devices.apply(DeserializeGuard(Ok(object)), false, &self.shared.sessions);
    }

    pub(super) async fn connect(
        &self,
        certificate: Option<(String, &PrivateKey)>,
    ) -> Result<AgentsClient<Channel>, tonic::transport::Error> {
        Ok(AgentsClient::new(self.channel(certificate).await?))
    }

    pub(super) async fn channel(
        &self,
        certificate: Option<(String, &PrivateKey)>,
    ) -> Result<Channel, tonic::transport::Error> {
        let ca = Certificate::from_pem(self.ca.trust(&self.root).ca_pem);
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        if let Some((certificate, key)) = certificate {
            tls = tls.identity(TlsIdentity::from_pem(certificate, key.to_pem().unwrap()));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls).unwrap();
        endpoint.connect().await
    }

    /// A session of the device, past its Hello.
    async fn session(&self, key: &PrivateKey, report_digest: &str) -> Device {
        self.session_with_recipes(key, report_digest, None).await
    }

    async fn session_with_recipes(&self, key: &PrivateKey, report_digest: &str, recipes: Option<&str>) -> Device {
        let mut device = self.try_session("web", key, report_digest, recipes).await.unwrap();
        assert!(matches!(device.hear().await, Inbound::Welcome(welcome) if welcome.scan_interval == 3600));
        device
    }

    /// A session of a device that has said Hello, unless this gateway is gone.
    pub(super) async fn try_session(
        &self,
        name: &str,
        key: &PrivateKey,
        report_digest: &str,
        recipes: Option<&str>,
    ) -> Result<Device, Box<dyn std::error::Error>> {
        let hello = wire::Hello {
            settings_digest: Some(String::new()),
            agent_version: "0.1.0".into(),
            report_digest: report_digest.into(),
            device_time: shell::now().to_string(),
            recipes_digest: recipes.map(Into::into),
            trust_digest: None,
            instance: None,
        };
        self.greet(name, key, hello).await
    }

    /// A session of a device that has said this.
    pub(super) async fn greet(
        &self,
        name: &str,
        key: &PrivateKey,
        hello: wire::Hello,
    ) -> Result<Device, Box<dyn std::error::Error>> {
        let certificate = self.ca.device(&format!("acme/{name}"), key, (2036, 1, 1));
        let mut client = self.connect(Some((certificate, key))).await?;
        let (sender, receiver) = mpsc::channel(8);
        sender.send(FromAgent { message: Some(Outbound::Hello(hello)) }).await?;
        let inbound = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Device { sender, inbound })
    }
}

pub(super) struct Device {
    pub(super) sender: mpsc::Sender<FromAgent>,
    pub(super) inbound: Streaming<ToAgent>,
}

impl Device {
    pub(super) async fn say(&self, message: Outbound) {
        self.sender.send(FromAgent { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn hear(&mut self) -> Inbound {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message()).await.unwrap();
        message.unwrap().unwrap().message.unwrap()
    }

    /// How the session ended.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.inbound.message()).await.unwrap() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

pub(super) fn envelope<T: patchwarden_protocol::Document>(document: &T, key: &PrivateKey) -> Vec<u8> {
    serde_json::to_vec(&Envelope::seal(document, key).unwrap()).unwrap()
}

pub(super) fn software() -> (Software, Report) {
    let package = Package {
        name: "curl".into(),
        arch: "amd64".into(),
        version: "7".into(),
        source: "curl".into(),
        source_version: None,
    };
    let software = Software { packages: vec![package] };
    let report = Report { software_digest: canonical::digest_of(&software).unwrap(), ..testing::report("acme", "web") };
    (software, report)
}

#[tokio::test]
async fn only_a_valid_certificate_of_our_ca_opens_a_session() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let no_messages = || tokio_stream::empty::<FromAgent>();

    let mut nobody = world.connect(None).await.unwrap();
    let status = nobody.session(no_messages()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "no client certificate: enrol first"));

    let foreign = Ca::new().device("acme/web", &key, (2036, 1, 1));
    match world.connect(Some((foreign, &key))).await {
        Err(_) => {}
        // The handshake's end may reach the client with its first call.
        Ok(mut client) => assert!(client.session(no_messages()).await.is_err()),
    }

    let today = shell::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let past = today.checked_sub(jiff::Span::new().days(30)).unwrap();
    let ends = (past.year().into(), past.month().unsigned_abs(), past.day().unsigned_abs());
    let expired = world.ca.device("acme/web", &key, ends);
    let mut late = world.connect(Some((expired, &key))).await.unwrap();
    let status = late.session(no_messages()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("renew it first"), "{status:?}");
    // It gets as far as its certificate request, which is none.
    let status = late.renew(RenewRequest { certificate_request: Vec::new() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn a_device_that_pins_another_root_is_led_on_at_once_and_when_one_follows() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let said = |trust_digest: Option<String>| wire::Hello {
        agent_version: "0.1.0".into(),
        device_time: shell::now().to_string(),
        trust_digest,
        ..wire::Hello::default()
    };
    let pins = |trust: &Trust| Some(patchwarden_protocol::trust::digest(&trust.root, &trust.ca_pem));
    let first = world.ca.trust(&world.root);
    let second = Trust { chain: Some("[]".into()), ..world.ca.trust(&PrivateKey::generate()) };
    let mut there = world.greet("web", &key, said(pins(&first))).await.unwrap();
    for expected in ["Welcome", "SendReport"] {
        assert!(format!("{:?}", there.hear().await).starts_with(expected), "nothing leads anywhere yet");
    }
    world.trust.send_replace(Some(second.clone()));
    assert!(matches!(there.hear().await, Inbound::Trust(trust) if trust.chain == b"[]"));

    let mut back = world.greet("web", &key, said(pins(&first))).await.unwrap();
    assert!(matches!(back.hear().await, Inbound::Welcome(_)));
    assert!(matches!(back.hear().await, Inbound::Trust(_)), "before anything that the new root has signed");
    for hello in [said(pins(&second)), said(None)] {
        let mut other = world.greet("web", &key, hello).await.unwrap();
        assert!(matches!(other.hear().await, Inbound::Welcome(_)));
        assert!(matches!(other.hear().await, Inbound::SendReport(_)), "it is there already, or cannot follow");
    }
}

// covers BY-8
#[tokio::test]
async fn a_report_is_kept_once_and_a_foreign_one_is_refused_and_told() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(asked) if asked.software && !asked.scan));

    let (list, report) = software();
    let first = wire::Report {
        envelope: envelope(&report, &key),
        software: serde_json::to_vec(&list).unwrap(),
        ..Default::default()
    };
    device.say(Outbound::Report(first.clone())).await;
    device.say(Outbound::Report(wire::Report { software: Vec::new(), ..first.clone() })).await;
    let foreign = testing::report("acme", "db");
    device.say(Outbound::Report(wire::Report { envelope: envelope(&foreign, &key), ..Default::default() })).await;
    match device.hear().await {
        Inbound::Refused(refused) => {
            assert_eq!((refused.what.as_str(), refused.reason.as_str()), ("Report", "OtherDevice"));
        }
        other => panic!("{other:?}"),
    }
    let store = &world.database.store;
    let kept = store.device(&report.device).await.unwrap().unwrap();
    assert_eq!(kept.report.unwrap().envelope.open(&key.public()).unwrap(), report);
    assert!(store.software(&report.device).await.unwrap().packages.iter().any(|package| package.name == "curl"));
    assert!(store.device(&foreign.device).await.unwrap().is_none());
    let told = store.audit_tail(1).await.unwrap();
    assert_eq!((told[0].what.as_str(), told[0].outcome.as_str()), ("Report", "OtherDevice"));
    let metrics = world.shared.metrics.render().unwrap();
    for (result, count) in [("changed", 1), ("unchanged", 1), ("refused", 1)] {
        let line = format!("patchwarden_gateway_reports_total{{result=\"{result}\"}} {count}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn changes_are_recorded_once_and_only_the_devices_own() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let own = testing::report("acme", "web").device;
    let changes = |device: &DeviceRef, first: u64, name: &str| Changes {
        device: device.clone(),
        changed: vec![Changed {
            log: "0".repeat(32),
            first,
            found_at: Timestamp::UNIX_EPOCH,
            from: "sha256:a".into(),
            to: "sha256:b".into(),
            order: None,
            run: None,
            packages: vec![Change {
                name: name.into(),
                arch: "all".into(),
                before: None,
                after: Some("1".into()),
                by: By::SomebodyElse,
            }],
        }],
    };
    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(_)));
    let foreign = DeviceRef { name: "db".into(), ..own.clone() };
    for (document, signer, expected) in [
        (changes(&own, 1, "curl"), &key, ""),
        (changes(&own, 1, "curl"), &key, ""),
        (changes(&own, 1, "wget"), &key, NUMBER_REUSED),
        (changes(&own, 2, &"x".repeat(200)), &key, "OverLimit"),
        (changes(&own, 2, "wget"), &PrivateKey::generate(), "BadSignature"),
        (changes(&foreign, 2, "wget"), &key, "OtherDevice"),
    ] {
        device.say(Outbound::Changes(wire::Changes { envelope: envelope(&document, signer) })).await;
        match device.hear().await {
            Inbound::ChangesRecorded(recorded) => {
                assert_eq!((recorded.log.as_str(), recorded.number, expected), ("0".repeat(32).as_str(), 1, ""));
            }
            Inbound::Refused(refused) => {
                assert_eq!((refused.what.as_str(), refused.reason.as_str()), ("Changes", expected));
            }
            other => panic!("{other:?}"),
        }
    }
    let store = &world.database.store;
    let kept = store.changes(&own, 10).await.unwrap();
    assert_eq!(kept.iter().map(|one| one.change.name.as_str()).collect::<Vec<_>>(), ["curl"]);
    assert_eq!(store.changes(&foreign, 10).await.unwrap(), []);
    let message = store.change_message(&own, &kept[0].log, 1).await.unwrap().unwrap();
    assert_eq!(message.open(&key.public()).unwrap(), changes(&own, 1, "curl"), "signed by the device");
}

#[tokio::test]
async fn a_changed_package_is_told_by_itself_and_the_whole_list_is_asked_for_where_that_does_not_fit() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(asked) if asked.software));
    let (before, report) = software();
    let first = wire::Report {
        envelope: envelope(&report, &key),
        software: serde_json::to_vec(&before).unwrap(),
        ..Default::default()
    };
    device.say(Outbound::Report(first)).await;
    let package = |name: &str| Package { name: name.into(), ..before.packages[0].clone() };
    let after = Software { packages: vec![package("bash"), package("zsh")] };
    let digest = canonical::digest_of(&after).unwrap();
    let changed = |counter| Report { counter, software_digest: digest.clone(), ..report.clone() };
    let delta = SoftwareDelta::between(&report.software_digest, &before, &after);
    let say = |report: Report, delta: SoftwareDelta| {
        let software_delta = serde_json::to_vec(&delta).unwrap();
        Outbound::Report(wire::Report { envelope: envelope(&report, &key), software_delta, ..Default::default() })
    };
    // It leads to another list than the report says, then it is of another list than the known one.
    let mut wrong = delta.clone();
    wrong.new.pop();
    for (counter, wrong) in [(2, wrong), (3, SoftwareDelta { from: "sha256:x".into(), ..delta.clone() })] {
        device.say(say(changed(counter), wrong)).await;
        assert!(matches!(device.hear().await, Inbound::SendReport(asked) if asked.software && !asked.scan));
    }
    let store = &world.database.store;
    assert_eq!(store.software(&report.device).await.unwrap(), before);
    device.say(say(changed(4), delta)).await;
    // What follows it is answered after it.
    device.say(Outbound::Details(wire::Details { envelope: envelope(&report, &key) })).await;
    assert!(matches!(device.hear().await, Inbound::Refused(refused) if refused.what == "Details"));
    assert_eq!(store.software(&report.device).await.unwrap(), after);
    assert_eq!(store.device(&report.device).await.unwrap().unwrap().software_digest, Some(digest));
}

#[tokio::test]
async fn what_a_device_is_made_of_is_kept_and_its_digest_told() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let own = testing::report("acme", "web").device;
    let details = |device: &DeviceRef| Details {
        device: device.clone(),
        since: Timestamp::UNIX_EPOCH,
        hardware: Hardware { product: "x".into(), ..Hardware::default() },
    };
    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(_)));
    let mut large = details(&own);
    large.hardware.product = "x".repeat(200);
    let foreign = details(&DeviceRef { name: "db".into(), ..own.clone() });
    let say =
        |document: &Details, key: &PrivateKey| Outbound::Details(wire::Details { envelope: envelope(document, key) });
    device.say(say(&details(&own), &key)).await;
    for (document, signer, reason) in [
        (&large, &key, "OverLimit"),
        (&foreign, &key, "OtherDevice"),
        (&details(&own), &PrivateKey::generate(), "BadSignature"),
    ] {
        device.say(say(document, signer)).await;
        assert!(matches!(device.hear().await, Inbound::Refused(refused) if refused.reason == reason), "{reason}");
    }
    let kept = world.database.store.details(&own).await.unwrap().unwrap().envelope;
    assert_eq!(kept.open(&key.public()).unwrap(), details(&own));
    let known = world.database.store.details_digest(&own, &key.public().fingerprint()).await.unwrap();
    assert_eq!(known, kept.digest());
}

// covers EM-17
#[tokio::test]
async fn a_session_ends_at_once_when_its_key_is_revoked() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let mut device = world.session(&key, "").await;
    world.show(&key, "Retired", &json!({}));
    let status = device.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("retired"), "{status:?}");

    world.show(&key, "Active", &json!({}));
    let mut device = world.session(&key, "").await;
    world.show(&PrivateKey::generate(), "Active", &json!({}));
    let status = device.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("acceptedKey"), "{status:?}");
}

#[tokio::test]
async fn a_second_session_of_the_same_key_replaces_the_first() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let mut first = world.session(&key, "").await;
    let second = world.session(&key, "").await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    let told = world.database.store.audit_tail(1).await.unwrap();
    assert_eq!(told[0].outcome, "Replaced");
    assert!(world.shared.sessions.is_open(&testing::report("acme", "web").device));
    drop(second);
}

#[tokio::test]
async fn recipes_reach_the_devices_that_take_them_and_have_others() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let offer = |text: &str| {
        let envelope = text.as_bytes().to_vec();
        world.recipes.send_replace(Some(Arc::new(recipes::Offered { digest: format!("sha256:{text}"), envelope })));
    };
    let recipes_of = async |device: &mut Device| loop {
        match device.hear().await {
            Inbound::Recipes(recipes) => break String::from_utf8(recipes.envelope).unwrap(),
            Inbound::SendReport(_) => {}
            other => panic!("{other:?}"),
        }
    };
    offer("one");
    let mut device = world.session_with_recipes(&key, "", Some("")).await;
    assert_eq!(recipes_of(&mut device).await, "one");
    offer("two");
    assert_eq!(recipes_of(&mut device).await, "two", "in the same session");
    // What it has, and a device that takes none: what comes next is the answer to something else.
    for held in [Some("sha256:two"), None] {
        let mut device = world.session_with_recipes(&key, "", held).await;
        assert!(matches!(device.hear().await, Inbound::SendReport(_)));
        let nonsense = wire::GrantRequest { order_digest: String::new(), nonce: String::new(), purpose: 0 };
        device.say(Outbound::GrantRequest(nonsense)).await;
        assert!(matches!(device.hear().await, Inbound::Refused(_)), "{held:?}");
    }
}

fn order(world: &World, key: &PrivateKey) -> (SignedOrder, Arc<orders::Run>) {
    let order = testing::order("acme", "web", &key.public());
    let signed = testing::signed_order(&order, &world.root);
    let run =
        world.shared.orders.begin(&order, &signed.order.digest(), serde_json::to_vec(&signed).unwrap(), shell::now());
    (signed, run)
}

#[tokio::test]
async fn an_order_reaches_the_device_and_its_story_the_job() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let (signed, run) = order(&world, &key);
    let digest = signed.order.digest();
    let (sender, mut job) = mpsc::channel(8);
    tokio::spawn(runner::follow(world.shared.clone(), runner::Attached::Running(run), sender));

    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(_)));
    match device.hear().await {
        Inbound::Order(order) => {
            assert_eq!(serde_json::from_slice::<SignedOrder>(&order.signed_order).unwrap(), signed);
        }
        other => panic!("{other:?}"),
    }
    let progress =
        wire::Progress { order_digest: digest.clone(), phase: "Installing".into(), text: "1 of 1\u{7}".into() };
    device.say(Outbound::Progress(progress)).await;
    let now = shell::now();
    let result = InstallResult {
        device: testing::report("acme", "web").device,
        device_key: key.public().fingerprint(),
        sequence: patchwarden_protocol::order::Sequence { epoch: 1, number: 1 },
        order_digest: digest.clone(),
        outcome: Outcome::Succeeded,
        reason: None,
        message: String::new(),
        actions: Vec::new(),
        started_at: now,
        finished_at: now + SignedDuration::from_secs(1),
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: String::new(),
        steps: vec![],
        phases: vec![],
    };
    let sealed = envelope(&result, &key);
    device.say(Outbound::Result(wire::Result { envelope: sealed, output: "Setting up".into() })).await;

    let mut story = Vec::new();
    while let Some(event) = tokio::time::timeout(PATIENCE, job.recv()).await.unwrap() {
        match event.unwrap() {
            RunEvent { event: Some(run_event::Event::Progress(line)) } => {
                story.push(format!("{} {}", line.phase, line.text));
            }
            RunEvent { event: Some(run_event::Event::Finished(finished)) } => {
                let heard: InstallResult = serde_json::from_slice(&finished.result).unwrap();
                assert_eq!(heard, result);
            }
            RunEvent { event: None } => panic!("an empty event"),
        }
    }
    assert_eq!(story, ["Delivered the device has the order", "Installing 1 of 1 "]);
    let kept = world.database.store.result(&result.device, &digest).await.unwrap().unwrap();
    assert_eq!(kept.output, "Setting up");
    // The API server is away, so the result is not in the resource: the device must not forget it yet.
    let confirmed = tokio::time::timeout(Duration::from_millis(600), device.hear()).await;
    assert!(confirmed.is_err(), "{confirmed:?}");
}

#[tokio::test]
async fn a_grant_is_handed_on_for_its_order_and_nonce_only() {
    let world = World::new().await;
    let key = PrivateKey::generate();
    world.show(&key, "Active", &json!({}));
    let (signed, _) = order(&world, &key);
    let digest = signed.order.digest();
    let grant = |nonce: &str| {
        let document = Grant {
            device_key: key.public().fingerprint(),
            order_digest: digest.clone(),
            nonce: nonce.into(),
            purpose: Purpose::Act,
            issued_at: shell::now(),
            verdict: Verdict::Granted,
        };
        let signed = SignedGrant {
            grant: Envelope::seal(&document, &world.root).unwrap(),
            delegation: signed.delegation.clone(),
        };
        AnsweredGrant { nonce: nonce.into(), signed }
    };
    let current = |order: &str, grant: &AnsweredGrant| {
        let now = shell::now();
        json!({ "compliance": { "current": {
            "sequence": { "epoch": 1, "number": 1 }, "job": "web-1-1", "orderDigest": order, "policy": "p",
            "phase": "Claimed", "since": now, "notAfter": now, "limitSeconds": 60, "updates": [], "grant": grant,
        } } })
    };
    let mut device = world.session(&key, "").await;
    assert!(matches!(device.hear().await, Inbound::SendReport(_)));
    assert!(matches!(device.hear().await, Inbound::Order(_)));
    let request = wire::GrantRequest { order_digest: digest.clone(), nonce: "n1".into(), purpose: 0 };
    device.say(Outbound::GrantRequest(request)).await;
    // The request must have been read before the answers: an unusable one is refused, and that can be heard.
    device
        .say(Outbound::GrantRequest(wire::GrantRequest {
            order_digest: digest.clone(),
            nonce: "x".repeat(65),
            purpose: 0,
        }))
        .await;
    assert!(matches!(device.hear().await, Inbound::Refused(refused) if refused.what == "GrantRequest"));

    let (wrong, right) = (grant("n0"), grant("n1"));
    world.show(&key, "Active", &current(&digest, &wrong));
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.show(&key, "Active", &current("sha256:another", &right));
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.show(&key, "Active", &current(&digest, &right));
    match device.hear().await {
        Inbound::Grant(heard) => {
            assert_eq!(serde_json::from_slice::<SignedGrant>(&heard.signed_grant).unwrap(), right.signed);
        }
        other => panic!("{other:?}"),
    }
}
