//! A gateway and a controller in one: enrols, takes reports, gives orders and grants, records results.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::agent_v1::agents_server::{Agents, AgentsServer};
use patchwarden_protocol::agent_v1::{self as wire, FromAgent, ToAgent, from_agent, to_agent};
use patchwarden_protocol::changes::{Change, Changes, NUMBER_REUSED, Run};
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::details::Details;
use patchwarden_protocol::grant::{Grant, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::key::{Fingerprint, PrivateKey, PublicKey};
use patchwarden_protocol::order::{Action, Dependencies, Order, RestartRule, Sequence, SignedOrder, Verb};
use patchwarden_protocol::report::{DeviceRef, Removable, Report, Software, Update};
use patchwarden_protocol::result::InstallResult;
use patchwarden_protocol::safeguards::Safeguards;
use patchwarden_protocol::settings::{OsUpdater, Settings, SignedSettings};
use patchwarden_protocol::surroundings::REPORT_VERSION;
use patchwarden_protocol::{Envelope, canonical};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const NAMESPACE: &str = "acme";

/// The longest that anything takes here is some twenty questions to dnf: each a second, and many on a machine that is busy.
const LIMIT_SECONDS: u32 = 600;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Granting {
    Grant,
    Deny,
    Silent,
    /// Grants what was not asked for: to act for a restart, a restart for an act.
    Confuse,
    /// Grants, most of a grant's life ago.
    Late,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keeping {
    /// Records changes and says so.
    Confirm,
    /// Records them, and the connection ends before it is said.
    Lose,
    /// Has other changes under these numbers.
    Refuse,
}

struct Inner {
    granting: Granting,
    granting_restarts: Granting,
    /// Whether Enroll gives a certificate.
    accepting: bool,
    recording: bool,
    /// Seconds between two scans, as sessions are told.
    scan_interval: u32,
    /// Whether changes are recorded, whether that is said, and what is recorded.
    keeping: Keeping,
    changes: Vec<Changes>,
    details: Vec<Details>,
    /// The last list, and its digest.
    list: Option<(Software, String)>,
    /// Of each report: bytes of the whole list, and of what differs.
    list_bytes: Vec<(usize, usize)>,
    /// Reports with fields of the present version.
    new_reports: u32,
    session: Option<mpsc::Sender<Result<ToAgent, Status>>>,
    task: Option<tokio::task::AbortHandle>,
    report: Option<(Report, String)>,
    software: BTreeSet<String>,
    /// Offered to whoever has others.
    recipes: Option<Vec<u8>>,
    /// The digest that the last Hello told.
    recipes_held: Option<String>,
    /// What its Welcome says of reports.
    report_version: u32,
    /// Offered to whoever has others.
    settings: Option<SignedSettings>,
    /// The digest that the last Hello told.
    settings_held: Option<String>,
    results: Vec<InstallResult>,
    outputs: Vec<String>,
    /// (phase, text)
    progress: Vec<(String, String)>,
    nonces: Vec<String>,
    /// What each nonce was for.
    purposes: Vec<Purpose>,
    /// In the order they came: "report" and "result".
    sequence: Vec<&'static str>,
    device_key: Option<PublicKey>,
    certificate_age: SignedDuration,
    renewals: u32,
    /// Sessions that were refused while down.
    refused: u32,
}

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) root: PrivateKey,
    pub(crate) order_key: PrivateKey,
    pub(crate) token: JoinToken,
    pub(crate) ca_pin: Fingerprint,
    inner: Arc<Mutex<Inner>>,
    down: Arc<AtomicBool>,
}

struct Door {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    root: PublicKey,
    order_key: PrivateKey,
    root_key: PrivateKey,
    token: JoinToken,
    inner: Arc<Mutex<Inner>>,
    down: Arc<AtomicBool>,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let ca_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = parameters.self_signed(&ca_key).unwrap();
        let (ca_pem, ca_pin) = (ca.pem(), Fingerprint::of(ca.der()));
        let issuer = Issuer::new(parameters, ca_key);
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let leaf = CertificateParams::new(vec!["gateway.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(format!("{}{ca_pem}", leaf.pem()), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&ca_pem))
            .client_auth_optional(true);
        let (root, order_key, token) = (PrivateKey::generate(), PrivateKey::generate(), JoinToken::generate());
        let inner = Arc::new(Mutex::new(Inner {
            granting: Granting::Grant,
            granting_restarts: Granting::Grant,
            accepting: true,
            recording: true,
            scan_interval: 3600,
            keeping: Keeping::Confirm,
            changes: vec![],
            details: vec![],
            list: None,
            list_bytes: vec![],
            new_reports: 0,
            session: None,
            task: None,
            report: None,
            software: BTreeSet::new(),
            recipes: None,
            recipes_held: None,
            report_version: REPORT_VERSION,
            settings: None,
            settings_held: None,
            results: vec![],
            outputs: vec![],
            progress: vec![],
            nonces: vec![],
            purposes: vec![],
            sequence: vec![],
            device_key: None,
            certificate_age: SignedDuration::ZERO,
            renewals: 0,
            refused: 0,
        }));
        let down = Arc::new(AtomicBool::new(false));
        let door = Door {
            issuer,
            ca_pem,
            root: root.public(),
            order_key: order_key.clone(),
            root_key: root.clone(),
            token: token.clone(),
            inner: inner.clone(),
            down: down.clone(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = AgentsServer::new(door).max_decoding_message_size(patchwarden_protocol::MAX_MESSAGE_BYTES);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { address, root, order_key, token, ca_pin, inner, down }
    }

    /// Arguments of `join`.
    pub(crate) fn join_arguments(&self) -> Vec<String> {
        [
            "join",
            "--gateway",
            &self.address.to_string(),
            "--server-name",
            "gateway.test",
            "--token",
            &self.token.to_string(),
            "--root",
            self.root.public().fingerprint().as_str(),
            "--ca",
            self.ca_pin.as_str(),
            "--name",
            "device-1",
            "--refresh-spread",
            "0",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn look<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap())
    }

    pub(crate) fn set_granting(&self, granting: Granting) {
        self.look(|inner| inner.granting = granting);
    }

    pub(crate) fn set_granting_restarts(&self, granting: Granting) {
        self.look(|inner| inner.granting_restarts = granting);
    }

    pub(crate) fn set_accepting(&self, accepting: bool) {
        self.look(|inner| inner.accepting = accepting);
    }

    pub(crate) fn set_recording(&self, recording: bool) {
        self.look(|inner| inner.recording = recording);
    }

    pub(crate) fn set_scan_interval(&self, seconds: u32) {
        self.look(|inner| inner.scan_interval = seconds);
    }

    pub(crate) fn set_keeping(&self, keeping: Keeping) {
        self.look(|inner| inner.keeping = keeping);
    }

    /// Every message of what the device is made of.
    pub(crate) fn details(&self) -> Vec<Details> {
        self.look(|inner| inner.details.clone())
    }

    /// The last software list.
    pub(crate) fn software(&self) -> Option<Software> {
        self.look(|inner| inner.list.clone()).map(|(list, _)| list)
    }

    /// Its digest.
    pub(crate) fn software_digest(&self) -> String {
        self.look(|inner| inner.list.clone()).map(|(_, digest)| digest).unwrap_or_default()
    }

    /// Of each report: bytes of the whole list, and of what differs.
    pub(crate) fn software_bytes(&self) -> Vec<(usize, usize)> {
        self.look(|inner| inner.list_bytes.clone())
    }

    /// Every message of changes, also those that came twice.
    pub(crate) fn messages_of_changes(&self) -> Vec<Changes> {
        self.look(|inner| inner.changes.clone())
    }

    /// What a gateway would have kept of them: each number of a log once. The same number must be the same change.
    pub(crate) fn changes(&self) -> Vec<(Option<Run>, Change)> {
        let mut kept: Vec<(String, u64, Option<Run>, Change)> = Vec::new();
        for changed in self.messages_of_changes().into_iter().flat_map(|message| message.changed) {
            for (number, change) in (changed.first..).zip(changed.packages) {
                match kept.iter().find(|(log, known, _, _)| (log, *known) == (&changed.log, number)) {
                    Some((_, _, run, known)) => assert_eq!((run, known), (&changed.run, &change)),
                    None => kept.push((changed.log.clone(), number, changed.run.clone(), change)),
                }
            }
        }
        kept.into_iter().map(|(_, _, run, change)| (run, change)).collect()
    }

    /// The certificates that come until the next renewal were made so long ago.
    pub(crate) fn set_certificate_age(&self, age: SignedDuration) {
        self.look(|inner| inner.certificate_age = age);
    }

    /// Refuses sessions and ends the open one.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
        if down {
            self.look(|inner| {
                inner.session = None;
                inner.task.take().iter().for_each(tokio::task::AbortHandle::abort);
            });
        }
    }

    pub(crate) fn results(&self) -> Vec<InstallResult> {
        self.look(|inner| inner.results.clone())
    }

    pub(crate) fn output(&self) -> String {
        self.look(|inner| inner.outputs.last().cloned().unwrap_or_default())
    }

    pub(crate) fn progress(&self) -> Vec<(String, String)> {
        self.look(|inner| inner.progress.clone())
    }

    pub(crate) fn phases(&self) -> Vec<String> {
        let mut phases: Vec<String> = self.progress().into_iter().map(|(phase, _)| phase).collect();
        phases.dedup();
        phases
    }

    pub(crate) fn nonces(&self) -> Vec<String> {
        self.look(|inner| inner.nonces.clone())
    }

    /// What the agent asked for, each once however often it asked.
    pub(crate) fn purposes(&self) -> Vec<Purpose> {
        self.look(|inner| inner.purposes.clone())
    }

    pub(crate) fn renewals(&self) -> u32 {
        self.look(|inner| inner.renewals)
    }

    /// Sessions that were refused while it was down.
    pub(crate) fn refused(&self) -> u32 {
        self.look(|inner| inner.refused)
    }

    pub(crate) fn arrivals(&self) -> Vec<&'static str> {
        self.look(|inner| inner.sequence.clone())
    }

    /// Waits until `find` finds.
    pub(crate) async fn until<T>(&self, what: &str, find: impl Fn(&Self) -> Option<T>) -> T {
        self.until_mut(what, || find(self)).await
    }

    /// The same of something that changes what it looks at.
    pub(crate) async fn until_mut<T>(&self, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
        for _ in 0..LIMIT_SECONDS * 20 {
            if let Some(found) = find() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "{what}: not within {LIMIT_SECONDS} s; progress: {:#?}, results: {:#?}",
            self.progress(),
            self.results()
        );
    }

    /// Waits for a report that `is` likes.
    pub(crate) async fn report(&self, is: impl Fn(&Report) -> bool) -> Report {
        self.until("report", |gateway| gateway.look(|inner| inner.report.clone()).map(|(report, _)| report).filter(&is))
            .await
    }

    pub(crate) fn report_digest(&self) -> String {
        self.look(|inner| inner.report.clone()).map(|(_, digest)| digest).unwrap_or_default()
    }

    pub(crate) async fn phase(&self, phase: &str) {
        self.until(phase, |gateway| gateway.phases().iter().any(|found| found == phase).then_some(())).await;
    }

    /// The agent is dead, and what is sent waits for the next one.
    pub(crate) fn forget_session(&self) {
        self.look(|inner| inner.session = None);
    }

    /// Waits until the agent says that it waits for another program.
    pub(crate) async fn waits_for_another(&self) {
        let waits = |(_, text): &(String, String)| text == "waits for another program that uses the package manager";
        self.until("waiting", |gateway| gateway.progress().iter().any(waits).then_some(())).await;
    }

    pub(crate) async fn connected(&self) {
        self.until("session", |gateway| gateway.look(|inner| inner.session.is_some()).then_some(())).await;
    }

    pub(crate) async fn result(&self, number: u32) -> InstallResult {
        self.until("result", |gateway| gateway.results().into_iter().find(|result| result.sequence.number == number))
            .await
    }

    /// An order to install these updates, good for half an hour.
    pub(crate) fn order(&self, number: u32, report: &Report, updates: &[&Update]) -> Order {
        self.order_of(number, report, updates.iter().map(|update| action(Verb::Install, update)).collect())
    }

    /// An order for these actions, good for half an hour.
    pub(crate) fn order_of(&self, number: u32, report: &Report, actions: Vec<Action>) -> Order {
        let now = Timestamp::now();
        Order {
            device: report.device.clone(),
            device_key: self.look(|inner| inner.device_key).unwrap().fingerprint(),
            sequence: Sequence { epoch: 1, number },
            actions,
            dependencies: Dependencies::AllowInstalls,
            report_digest: self.report_digest(),
            decisions_digest: "sha256:d".into(),
            policy: "servers".into(),
            not_before: now - SignedDuration::from_secs(5),
            not_after: now + SignedDuration::from_mins(30),
            limit_seconds: 600,
            restart: RestartRule::never(),
            safeguards: Safeguards::default(),
            site_cache: None,
        }
    }

    pub(crate) fn sign(&self, order: &Order) -> SignedOrder {
        SignedOrder {
            order: Envelope::seal(order, &self.order_key).unwrap(),
            delegation: delegation(&self.root, &self.order_key),
        }
    }

    /// Offers these recipes from now on.
    pub(crate) async fn offer_recipes(&self, envelope: Vec<u8>) {
        self.look(|inner| inner.recipes = Some(envelope.clone()));
        if let Some(session) = self.look(|inner| inner.session.clone()) {
            let _ = session.send(Ok(to(to_agent::Message::Recipes(wire::Recipes { envelope })))).await;
        }
    }

    /// Whether no report had what only the present version of a gateway knows.
    pub(crate) fn reports_had_no_updater(&self) -> bool {
        self.look(|inner| inner.new_reports == 0)
    }

    /// What its next Welcome says of reports.
    pub(crate) fn set_report_version(&self, version: u32) {
        self.look(|inner| inner.report_version = version);
    }

    /// Settings of the device, issued now and good for a day.
    pub(crate) fn settings(&self, os_updater: OsUpdater) -> Settings {
        let issued_at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        Settings {
            device: DeviceRef { namespace: NAMESPACE.into(), name: "device-1".into() },
            device_key: self.look(|inner| inner.device_key).unwrap().fingerprint(),
            policy: "servers".into(),
            os_updater,
            applications: Vec::new(),
            epoch: 0,
            issued_at,
            not_after: issued_at + SignedDuration::from_hours(20),
        }
    }

    pub(crate) fn sign_settings(&self, settings: &Settings) -> SignedSettings {
        SignedSettings {
            settings: Envelope::seal(settings, &self.order_key).unwrap(),
            delegation: delegation(&self.root, &self.order_key),
        }
    }

    /// Offers these settings from now on.
    pub(crate) async fn offer_settings(&self, settings: &SignedSettings) {
        self.look(|inner| inner.settings = Some(settings.clone()));
        if let Some(session) = self.look(|inner| inner.session.clone()) {
            let _ = session.send(Ok(to(to_agent::Message::Settings(settings_message(settings))))).await;
        }
    }

    /// Digest of the settings that the device had when its session began.
    pub(crate) fn settings_held(&self) -> Option<String> {
        self.look(|inner| inner.settings_held.clone())
    }

    /// Digest of the recipes that the device had when its session began; nothing where it takes none.
    pub(crate) fn recipes_held(&self) -> Option<String> {
        self.look(|inner| inner.recipes_held.clone())
    }

    pub(crate) async fn send(&self, order: &SignedOrder) {
        self.send_raw(serde_json::to_vec(order).unwrap()).await;
    }

    pub(crate) async fn send_raw(&self, signed_order: Vec<u8>) {
        self.connected().await;
        let session = self.look(|inner| inner.session.clone()).unwrap();
        session.send(Ok(to(to_agent::Message::Order(wire::Order { signed_order })))).await.unwrap();
    }
}

pub(crate) fn action(verb: Verb, update: &Update) -> Action {
    let Update { id, packages, artifacts_digest, .. } = update.clone();
    Action { verb, update: id, packages, artifacts_digest }
}

/// To take it back.
pub(crate) fn taking_back(removable: &Removable) -> Action {
    let Removable { id, packages, artifacts_digest } = removable.clone();
    Action { verb: Verb::Uninstall, update: id, packages, artifacts_digest }
}

/// Of signed recipes, by what they are and not whether they are good.
pub(crate) fn digest(recipes: &[u8]) -> String {
    patchwarden_protocol::recipes::envelope(recipes).unwrap().digest()
}

fn settings_message(settings: &SignedSettings) -> wire::Settings {
    wire::Settings { signed_settings: serde_json::to_vec(settings).unwrap() }
}

fn to(message: to_agent::Message) -> ToAgent {
    ToAgent { message: Some(message) }
}

fn delegation(root: &PrivateKey, order_key: &PrivateKey) -> Envelope<Delegation> {
    let now = Timestamp::now();
    let delegation = Delegation {
        order_key: order_key.public(),
        not_before: now - SignedDuration::from_hours(1),
        not_after: now + SignedDuration::from_hours(24),
    };
    Envelope::seal(&delegation, root).unwrap()
}

impl Door {
    fn certificate(&self, request: &[u8]) -> (String, PublicKey) {
        let made = Timestamp::now() - self.inner.lock().unwrap().certificate_age;
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
        request.params.not_before = seconds_of(made);
        request.params.not_after = seconds_of(made + SignedDuration::from_hours(24));
        let certificate = request.signed_by(&self.issuer).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        let key = PublicKey::from_bytes(&parsed.public_key().subject_public_key.data).unwrap();
        (format!("{}{}", certificate.pem(), self.ca_pem), key)
    }
}

fn seconds_of(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap()
}

type Messages = Pin<Box<dyn tokio_stream::Stream<Item = Result<ToAgent, Status>> + Send>>;

#[tonic::async_trait]
impl Agents for Door {
    async fn enroll(&self, request: Request<wire::EnrollRequest>) -> Result<Response<wire::EnrollResponse>, Status> {
        let request = request.into_inner();
        let token: JoinToken = request.token.parse().map_err(|_| Status::unauthenticated("no token"))?;
        if token != self.token {
            return Err(Status::unauthenticated("the token is not known"));
        }
        assert_eq!(request.device_type, "Server");
        let (chain, key) = self.certificate(&request.certificate_request);
        let mut inner = self.inner.lock().unwrap();
        inner.device_key = Some(key);
        Ok(Response::new(wire::EnrollResponse {
            certificate_chain_pem: if inner.accepting { chain } else { String::new() },
            ca_pem: self.ca_pem.clone(),
            root_public_key: self.root.to_bytes().to_vec(),
            namespace: NAMESPACE.into(),
            name: request.name,
            pending_fingerprint: key.fingerprint().to_string(),
        }))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewResponse>, Status> {
        assert!(request.peer_certs().is_some(), "Renew needs the old certificate");
        self.inner.lock().unwrap().renewals += 1;
        self.inner.lock().unwrap().certificate_age = SignedDuration::ZERO;
        let (certificate_chain_pem, _) = self.certificate(&request.into_inner().certificate_request);
        Ok(Response::new(wire::RenewResponse { certificate_chain_pem }))
    }

    type SessionStream = Messages;

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Messages>, Status> {
        let certificates = request.peer_certs().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
        let key = PublicKey::from_bytes(&certificate.public_key().subject_public_key.data).unwrap();
        if self.down.load(Ordering::SeqCst) {
            self.inner.lock().unwrap().refused += 1;
            return Err(Status::unavailable("down"));
        }
        let (sender, receiver) = mpsc::channel(64);
        let inner = self.inner.clone();
        let (order_key, root_key, down) = (self.order_key.clone(), self.root_key.clone(), self.down.clone());
        let mut inbound = request.into_inner();
        let task = tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                if down.load(Ordering::SeqCst) {
                    break;
                }
                let answers = take(&inner, &key, &order_key, &root_key, &sender, message.message.unwrap());
                for answer in answers {
                    if sender.send(Ok(to(answer))).await.is_err() {
                        return;
                    }
                }
            }
        });
        self.inner.lock().unwrap().task = Some(task.abort_handle());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn take(
    inner: &Mutex<Inner>,
    key: &PublicKey,
    order_key: &PrivateKey,
    root_key: &PrivateKey,
    sender: &mpsc::Sender<Result<ToAgent, Status>>,
    message: from_agent::Message,
) -> Vec<to_agent::Message> {
    let mut inner = inner.lock().unwrap();
    match message {
        from_agent::Message::Hello(hello) => {
            inner.session = Some(sender.clone());
            let details_digest =
                Some(inner.details.last().map(|last| canonical::digest_of(last).unwrap()).unwrap_or_default());
            let welcome = wire::Welcome {
                report_version: inner.report_version,
                gateway_time: Timestamp::now().to_string(),
                scan_interval: inner.scan_interval,
                takes_changes: true,
                details_digest,
            };
            let mut answers = vec![to_agent::Message::Welcome(welcome)];
            if inner.report.as_ref().is_none_or(|(_, digest)| *digest != hello.report_digest) {
                answers.push(to_agent::Message::SendReport(wire::SendReport { scan: false, software: false }));
            }
            inner.settings_held.clone_from(&hello.settings_digest);
            let has_others =
                |settings: &SignedSettings| hello.settings_digest.is_some_and(|held| held != settings.digest());
            if let Some(settings) = inner.settings.clone().filter(has_others) {
                answers.push(to_agent::Message::Settings(settings_message(&settings)));
            }
            inner.recipes_held.clone_from(&hello.recipes_digest);
            let has_others = |envelope: &Vec<u8>| hello.recipes_digest.is_some_and(|held| held != digest(envelope));
            if let Some(envelope) = inner.recipes.clone().filter(has_others) {
                answers.push(to_agent::Message::Recipes(wire::Recipes { envelope }));
            }
            answers
        }
        from_agent::Message::Report(message) => take_report(&mut inner, key, &message),
        from_agent::Message::Progress(progress) => {
            inner.progress.push((progress.phase, progress.text));
            vec![]
        }
        from_agent::Message::GrantRequest(request) => {
            let asked = match request.purpose() {
                wire::GrantPurpose::Act => Purpose::Act,
                wire::GrantPurpose::Restart => Purpose::Restart,
            };
            if !inner.nonces.contains(&request.nonce) {
                inner.purposes.push(asked);
            }
            inner.nonces.push(request.nonce.clone());
            let granting = if asked == Purpose::Act { inner.granting } else { inner.granting_restarts };
            let purpose = match (granting, asked) {
                (Granting::Confuse, Purpose::Act) => Purpose::Restart,
                (Granting::Confuse, Purpose::Restart) => Purpose::Act,
                _ => asked,
            };
            let verdict = match granting {
                Granting::Silent => return vec![],
                Granting::Grant | Granting::Confuse | Granting::Late => Verdict::Granted,
                Granting::Deny => {
                    Verdict::Denied { reason: "Suspended".into(), message: "the policy is suspended".into() }
                }
            };
            let grant = Grant {
                device_key: key.fingerprint(),
                order_digest: request.order_digest,
                nonce: request.nonce,
                purpose,
                issued_at: Timestamp::now()
                    - SignedDuration::from_secs(if granting == Granting::Late { 50 } else { 0 }),
                verdict,
            };
            let signed = SignedGrant {
                grant: Envelope::seal(&grant, order_key).unwrap(),
                delegation: delegation(root_key, order_key),
            };
            vec![to_agent::Message::Grant(wire::Grant { signed_grant: serde_json::to_vec(&signed).unwrap() })]
        }
        from_agent::Message::Result(message) => {
            let envelope: Envelope<InstallResult> = serde_json::from_slice(&message.envelope).unwrap();
            let result = envelope.open(key).unwrap();
            let order_digest = result.order_digest.clone();
            inner.results.push(result);
            inner.outputs.push(message.output);
            inner.sequence.push("result");
            if inner.recording {
                vec![to_agent::Message::ResultRecorded(wire::ResultRecorded { order_digest })]
            } else {
                vec![]
            }
        }
        from_agent::Message::Details(message) => {
            let envelope: Envelope<Details> = serde_json::from_slice(&message.envelope).unwrap();
            let details = envelope.open(key).unwrap();
            assert_eq!(details.check(), Ok(()));
            inner.details.push(details);
            vec![]
        }
        from_agent::Message::Changes(message) => take_changes(&mut inner, key, &message),
    }
}

fn take_report(inner: &mut Inner, key: &PublicKey, message: &wire::Report) -> Vec<to_agent::Message> {
    let envelope: Envelope<Report> = serde_json::from_slice(&message.envelope).unwrap();
    let report = envelope.open(key).unwrap();
    if let Some((before, _)) = &inner.report {
        assert!(report.counter >= before.counter, "the report counts backwards");
    }
    if !message.software.is_empty() {
        let software: Software = serde_json::from_slice(&message.software).unwrap();
        assert_eq!(canonical::digest_of(&software).unwrap(), report.software_digest);
        inner.software.insert(report.software_digest.clone());
        inner.list = Some((software, report.software_digest.clone()));
    }
    if !message.software_delta.is_empty() {
        let delta: SoftwareDelta = serde_json::from_slice(&message.software_delta).unwrap();
        if let Some((list, digest)) = inner.list.clone().filter(|(_, digest)| *digest == delta.from) {
            let list = delta.applied(list);
            assert_ne!(digest, report.software_digest);
            assert_eq!(canonical::digest_of(&list).unwrap(), report.software_digest);
            inner.software.insert(report.software_digest.clone());
            inner.list = Some((list, report.software_digest.clone()));
        }
    }
    inner.new_reports += u32::from(report.os_updater.is_some());
    inner.list_bytes.push((message.software.len(), message.software_delta.len()));
    let known = inner.software.contains(&report.software_digest) || report.software_digest.is_empty();
    inner.report = Some((report, envelope.digest()));
    inner.sequence.push("report");
    if known { vec![] } else { vec![to_agent::Message::SendReport(wire::SendReport { scan: false, software: true })] }
}

fn take_changes(inner: &mut Inner, key: &PublicKey, message: &wire::Changes) -> Vec<to_agent::Message> {
    let envelope: Envelope<Changes> = serde_json::from_slice(&message.envelope).unwrap();
    let changes = envelope.open(key).unwrap();
    assert_eq!(changes.check(), Ok(()));
    let last = changes.changed.last().unwrap();
    let recorded = wire::ChangesRecorded { log: last.log.clone(), number: last.last() };
    match inner.keeping {
        Keeping::Confirm => {
            inner.changes.push(changes);
            vec![to_agent::Message::ChangesRecorded(recorded)]
        }
        Keeping::Lose => {
            inner.changes.push(changes);
            vec![]
        }
        Keeping::Refuse => {
            inner.keeping = Keeping::Confirm;
            vec![to_agent::Message::Refused(wire::Refused {
                what: "Changes".into(),
                reason: NUMBER_REUSED.into(),
                message: String::new(),
            })]
        }
    }
}
