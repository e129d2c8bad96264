//! Text that a database might take for a part of a statement, in every field of whatever a device sends: it stays text.

use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use patchwarden_protocol::agent_v1::{self as wire, EnrollRequest};
use patchwarden_protocol::changes::{By, Change, Changed, Changes, Run};
use patchwarden_protocol::details::{Details, Disk, Hardware, Interface, Module};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::report::{DeviceRef, Problem, ProblemCode, Report, Restart, Tristate, Update};
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, Step, StepResult};
use patchwarden_protocol::{Envelope, canonical};
use serde_json::{Value, json};
use tonic::Code;

use super::door_tests::{World, envelope, software};
use super::refused_tests::{api_server, request_of};
use super::tls::tests::Ca;
use super::*;
use crate::store::StoredReport;
use crate::store::testing::{Temporary, on_both};

on_both!(hostile_text_in_whatever_a_device_sends_is_text);

/// Texts of the kinds that end a statement, begin another one, or are read as a parameter.
const HOSTILE: [&str; 4] = [
    "'; DROP TABLE install; --",
    "\" UNION SELECT token, key FROM join_token_use --",
    "$1::text || (SELECT pg_sleep(20))",
    "\0', NULL); DELETE FROM device; --",
];

/// A document whose texts are to be replaced one by one.
fn texts(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(place.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| texts(item, &format!("{place}/{n}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, item)| texts(item, &format!("{place}/{name}"), found));
        }
        _ => {}
    }
}

/// The value with a text in the place of each of its texts; what cannot be read any more cannot be sent by a device either.
fn with_each<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T, text: &str) -> Vec<(String, T)> {
    let value = serde_json::to_value(value).unwrap();
    let mut places = Vec::new();
    texts(&value, "", &mut places);
    let replaced = places.into_iter().filter_map(|place| {
        let mut value = value.clone();
        *value.pointer_mut(&place).unwrap() = json!(text);
        Some((place, serde_json::from_value(value).ok()?))
    });
    replaced.collect()
}

/// A device of which something is told, with a text in each field that has one.
fn telling(key: &PrivateKey) -> (Report, InstallResult, Changes, Details) {
    let (list, report) = software();
    let report = Report {
        restart: Restart { required: Tristate::Yes, reasons: vec!["kernel".into()] },
        updates: vec![Update { cves: vec!["CVE-2026-1".into()], ..testing::update("DSA-1") }],
        problems: vec![Problem { code: ProblemCode::ScanFailed, message: "m".into() }],
        ..report
    };
    let now = shell::now();
    let result = InstallResult {
        device: report.device.clone(),
        device_key: key.public().fingerprint(),
        sequence: Sequence { epoch: 1, number: 1 },
        order_digest: "sha256:order".into(),
        outcome: Outcome::Failed,
        reason: None,
        message: "m".into(),
        actions: vec![ActionResult {
            update: "DSA-1".into(),
            verb: Verb::Install,
            done: false,
            reason: None,
            message: "m".into(),
        }],
        started_at: now,
        finished_at: now,
        restart_required: Tristate::No,
        restarts: 0,
        restart_postponed: "p".into(),
        phases: vec![],
        steps: vec![StepResult { step: Step::CheckAfter, name: "web".into(), ok: false, message: "m".into() }],
    };
    let change = Change {
        name: "curl".into(),
        arch: "all".into(),
        before: Some("1".into()),
        after: Some("2".into()),
        by: By::SomebodyElse,
    };
    let run = Run { at: now, told_by: "apt".into(), user: "alice (1000)".into(), command: "apt-get upgrade".into() };
    let one = Changed {
        log: "0".repeat(32),
        first: 1,
        found_at: now,
        from: report.software_digest.clone(),
        to: canonical::digest_of(&list).unwrap(),
        order: Some("sha256:order".into()),
        run: Some(run),
        packages: vec![change],
    };
    let changes = Changes { device: report.device.clone(), changed: vec![one] };
    let hardware = Hardware {
        vendor: "v".into(),
        product: "p".into(),
        serial: "s".into(),
        processor: "c".into(),
        disks: vec![Disk { name: "sda".into(), model: "m".into(), bytes: 1 }],
        interfaces: vec![Interface { name: "eth0".into(), mac: "m".into(), link: Tristate::Yes }],
        modules: vec![Module { name: "m".into(), version: "v".into(), taints: "O".into() }],
        ..Hardware::default()
    };
    let details = Details { device: report.device.clone(), since: now, hardware };
    (report, result, changes, details)
}

/// What comes of a message of the device: the reason of its refusal, if it is refused.
async fn outcome(world: &World, key: &PrivateKey, message: Outbound) -> Option<String> {
    // A device may not say much in one second, nor begin many sessions.
    world.shared.sessions.refill();
    let mut session = world.try_session("web", key, "", None).await.unwrap();
    session.say(message).await;
    session.say(Outbound::GrantRequest(wire::GrantRequest::default())).await;
    let mut refused = None;
    loop {
        match session.hear().await {
            Inbound::Refused(it) if it.what == "GrantRequest" => return refused,
            Inbound::Refused(it) => refused = Some(it.reason),
            _ => {}
        }
    }
}

async fn hostile_text_in_whatever_a_device_sends_is_text(db: &Temporary) {
    let key = PrivateKey::generate();
    let world =
        World::on(db.same(), api_server(HashMap::new()), Arc::new(Ca::new()), Arc::new(PrivateKey::generate())).await;
    world.show_device("web", &key, "Active", &json!({}));
    let (report, result, changes, details) = telling(&key);
    let other = Report { device: DeviceRef { namespace: "acme".into(), name: "db".into() }, ..report.clone() };
    let sealed = Envelope::seal(&other, &key).unwrap();
    let stored = StoredReport { counter: 1, digest: sealed.digest(), envelope: sealed };
    let fingerprint = key.public().fingerprint();
    db.store.record_report(&fingerprint, &other, &stored, Some(&software().0), shell::now()).await.unwrap();

    let (mut counter, mut accepted, mut refused) = (1, 0, 0);
    let mut count = |outcome: &Option<String>| if outcome.is_some() { refused += 1 } else { accepted += 1 };
    for hostile in HOSTILE {
        for (place, report) in with_each(&report, hostile) {
            counter += 1;
            let report = Report { counter, ..report };
            let message = wire::Report { envelope: envelope(&report, &key), ..wire::Report::default() };
            let outcome = outcome(&world, &key, Outbound::Report(message)).await;
            count(&outcome);
            if outcome.is_none() {
                let kept = db.store.device(&report.device).await.unwrap().unwrap().report.unwrap();
                assert_eq!(kept.envelope.open(&key.public()).unwrap(), report, "{place}");
            }
        }
        for (place, list) in with_each(&software().0, hostile) {
            counter += 1;
            let report = Report { counter, software_digest: canonical::digest_of(&list).unwrap(), ..report.clone() };
            let software = serde_json::to_vec(&list).unwrap();
            let message = wire::Report { envelope: envelope(&report, &key), software, ..wire::Report::default() };
            let outcome = outcome(&world, &key, Outbound::Report(message)).await;
            count(&outcome);
            if outcome.is_none() {
                assert_eq!(db.store.software(&report.device).await.unwrap(), list, "{place}");
            }
        }
        for (place, result) in with_each(&result, hostile) {
            let message = wire::Result { envelope: envelope(&result, &key), output: hostile.into() };
            let outcome = outcome(&world, &key, Outbound::Result(message)).await;
            count(&outcome);
            if outcome.is_none() {
                let kept = db.store.result(&result.device, &result.order_digest).await.unwrap().unwrap();
                assert_eq!(kept.output, hostile.replace('\0', "\u{fffd}"), "{place}");
            }
        }
        for (_, changes) in with_each(&changes, hostile) {
            let message = wire::Changes { envelope: envelope(&changes, &key) };
            count(&outcome(&world, &key, Outbound::Changes(message)).await);
        }
        for (_, details) in with_each(&details, hostile) {
            let message = wire::Details { envelope: envelope(&details, &key) };
            count(&outcome(&world, &key, Outbound::Details(message)).await);
        }
        let order = testing::order("acme", "web", &key.public());
        let signed = testing::signed_order(&order, &world.root);
        let digest = signed.order.digest();
        let (now, deadline) = (shell::now(), orders::deadline(&order));
        db.store.record_order(&order.device, &digest, order.sequence, &signed, deadline, now).await.unwrap();
        for digest in [digest.as_str(), hostile] {
            let (order_digest, phase, text) = (digest.into(), hostile.into(), hostile.into());
            let message = wire::Progress { order_digest, phase, text };
            assert_eq!(outcome(&world, &key, Outbound::Progress(message)).await, None);
        }
        let hello = wire::Hello {
            agent_version: hostile.into(),
            report_digest: hostile.into(),
            device_time: hostile.into(),
            recipes_digest: Some(hostile.into()),
            settings_digest: Some(hostile.into()),
            trust_digest: Some(hostile.into()),
            instance: Some(wire::Instance {
                id: format!("{:032x}", 1),
                predecessor: hostile.into(),
                host_name: hostile.into(),
                started: hostile.into(),
            }),
        };
        let mut session = world.greet("web", &key, hello).await.unwrap();
        assert!(matches!(session.hear().await, Inbound::Welcome(_)));
        let mut client = world.connect(None).await.unwrap();
        let [token, name, device_type] = [(); 3].map(|()| hostile.to_owned());
        let request = EnrollRequest { token, name, device_type, certificate_request: request_of(&key) };
        assert_eq!(client.enroll(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(accepted > 100 && refused > 50, "{accepted} {refused}");
    let kept = db.store.device(&other.device).await.unwrap().unwrap().report.unwrap();
    assert_eq!(kept.envelope.open(&key.public()).unwrap(), other, "what others have told is still there");
    let software = db.store.software(&other.device).await.unwrap();
    assert!(software.packages.iter().any(|package| package.name == "curl"));
}
