//! The recorder with a gateway's door, over real TLS.

use std::future::Future;

use super::*;
use crate::controller::now;
use crate::convert;
use crate::gateway::door_tests::CONTROLLER;
use crate::gateway::record_tests::Door;
use crate::plan::Plan;
use crate::plan::model::{self, Seen, UpdateProgress};
use crate::plan::outcome::{ComplianceCounts, GroupPlan, Others, PolicyPlan};
use crate::store::Cursor;

const PATIENCE: Duration = Duration::from_secs(20);

struct Token(PathBuf);

impl Token {
    fn of(user: &str) -> Self {
        let path = std::env::temp_dir().join(format!("patchwarden-token-{:032x}", rand::random::<u128>()));
        std::fs::write(&path, user).unwrap();
        Self(path)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // Left behind in the worst case, in the system's own directory for such things.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn recorder(url: &str, token: &Token) -> Recorder {
    let settings = Settings { url: url.into(), token_file: token.0.clone(), namespace: "patchwarden-system".into() };
    Recorder::new(settings, Arc::new(Metrics::new().unwrap()))
}

/// The plan in which the rest of the devices has `update` since then, and a device has seen it then.
fn plan(update: &str, since: i64, by: &str) -> Plan {
    let opened = Timestamp::from_second(since).unwrap();
    let progress =
        UpdateProgress { ring: None, opened, reached: None, stopped: None, installed: 0, anywhere: 0, failed: vec![] };
    let policy = PolicyPlan {
        name: "servers".into(),
        devices: 0,
        compliant: 0,
        states: ComplianceCounts::default(),
        overdue: 0,
        forecast: None,
        installing: 0,
        failed: 0,
        open: false,
        next_window: None,
        stalled: None,
        never_opens: false,
        unprovable: None,
        too_short: None,
        missing_groups: Arc::default(),
        missing_excluded_groups: Arc::default(),
        unknown_devices: Others::default(),
        unlabelled: false,
        overlap: None,
        rings: vec![],
        progress: Arc::new(model::Progress {
            updates: [(update.into(), progress)].into(),
            ..model::Progress::default()
        }),
    };
    let group = GroupPlan {
        name: "all".into(),
        devices: 0,
        states: ComplianceCounts::default(),
        seen: [Seen { id: update.into(), first: opened, by: by.into(), shared: None, dates: model::Dates::default() }]
            .into(),
        invalid: None,
        stalled: None,
        failed: None,
        unknown_devices: Others::default(),
    };
    Plan { policies: vec![policy], groups: vec![group], windows: vec![], devices: vec![], next_look: None }
}

fn note(recorder: &Recorder, namespace: &str, plan: &Plan) {
    let policy = convert::policy(&PatchPolicy::new("servers", serde_json::from_value(serde_json::json!({})).unwrap()));
    let policies = plan.policies.iter().map(|planned| (&policy, planned)).collect();
    let groups = plan.groups.iter().collect();
    let readings = recorder.readings(namespace);
    recorder.note(namespace, readings, &Decided { policies, groups, is_offered: Box::new(|_| false) }, now());
}

/// Lets the recorder work until the other is done.
async fn while_working<T>(recorder: &Recorder, ca: &str, key: &PrivateKey, other: impl Future<Output = T>) -> T {
    while_signing(recorder, ca, Signers { key, before: &[] }, other).await
}

async fn while_signing<T>(recorder: &Recorder, ca: &str, signers: Signers<'_>, other: impl Future<Output = T>) -> T {
    tokio::select! {
        () = recorder.run(ca, signers, now) => panic!("it works for ever"),
        done = tokio::time::timeout(PATIENCE, other) => done.unwrap(),
    }
}

async fn all_told(recorder: &Recorder) {
    let mut called = recorder.called.subscribe();
    called.wait_for(|()| recorder.state().clients.values().all(|it| it.held.unsent() == 0 && !it.stale)).await.unwrap();
}

fn calls(recorder: &Recorder, call: &str, result: &str) -> u64 {
    recorder.metrics.record.calls.with_label_values(&[call, result]).get()
}

#[tokio::test]
async fn what_was_decided_is_told_once_and_read_by_the_next_controller() {
    let (door, token, key) = (Door::open().await, Token::of(CONTROLLER), PrivateKey::generate());
    let first = recorder(&door.url, &token);
    let acme = "acme".to_owned();
    while_working(&first, &door.ca(), &key, async {
        first.attend([&acme].into_iter()).await;
        assert!(first.state().clients["acme"].held.is_known(), "it was read before anything was planned");
        note(&first, "acme", &plan("u", 10, "web-1"));
        all_told(&first).await;
        note(&first, "acme", &plan("u", 10, "web-1"));
        all_told(&first).await;
    })
    .await;
    assert_eq!((calls(&first, "read", "ok"), calls(&first, "write", "ok")), (1, 1));
    assert_eq!(first.metrics.record.reachable.get(), 1);

    let second = recorder(&door.url, &token);
    while_working(&second, &door.ca(), &key, second.attend([&acme].into_iter())).await;
    let mut snapshot = Snapshot::default();
    second.complete("acme", &mut snapshot);
    assert_eq!(*snapshot.seen, *plan("u", 10, "web-1").groups[0].seen);

    // Another key has signed nothing of it.
    let stranger = recorder(&door.url, &token);
    while_working(&stranger, &door.ca(), &PrivateKey::generate(), stranger.attend([&acme].into_iter())).await;
    assert_eq!((stranger.metrics.record.unsigned.get(), stranger.state().clients["acme"].held.is_known()), (2, true));
    stranger.complete("acme", &mut snapshot);
    assert!(snapshot.seen.is_empty());

    // One that comes after it has.
    let (successor, next) = (recorder(&door.url, &token), PrivateKey::generate());
    let signers = Signers { key: &next, before: &[PrivateKey::generate().public(), key.public()] };
    while_signing(&successor, &door.ca(), signers, successor.attend([&acme].into_iter())).await;
    assert_eq!(successor.metrics.record.unsigned.get(), 0);
    successor.complete("acme", &mut snapshot);
    assert_eq!(*snapshot.seen, *plan("u", 10, "web-1").groups[0].seen);
}

#[tokio::test]
async fn two_controllers_that_tell_of_the_same_come_to_one_account() {
    let (door, token, key) = (Door::open().await, Token::of(CONTROLLER), PrivateKey::generate());
    let (old, new) = (recorder(&door.url, &token), recorder(&door.url, &token));
    let acme = "acme".to_owned();
    while_working(&new, &door.ca(), &key, new.attend([&acme].into_iter())).await;
    while_working(&old, &door.ca(), &key, async {
        old.attend([&acme].into_iter()).await;
        note(&old, "acme", &plan("u", 20, "web-2"));
        all_told(&old).await;
    })
    .await;
    // It does not know of that yet.
    note(&new, "acme", &plan("u", 10, "web-1"));
    while_working(&new, &door.ca(), &key, all_told(&new)).await;
    assert_eq!((calls(&new, "write", "refused"), calls(&new, "write", "ok")), (1, 1));
    let (kept, _) = door.store().recall("acme", Cursor::Start).await.unwrap();
    let sighting = &kept.sightings["u"].entry;
    assert_eq!((sighting.by.as_str(), sighting.shared.map(Timestamp::as_second)), ("web-1", Some(20)));
}

#[tokio::test]
async fn another_opening_of_the_store_is_read_again_and_told_what_it_lacks() {
    let (door, backup) = (Door::open().await, Door::open().await);
    let (token, key, acme) = (Token::of(CONTROLLER), PrivateKey::generate(), "acme".to_owned());
    let mut recorder = recorder(&door.url, &token);
    while_working(&recorder, &door.ca(), &key, async {
        recorder.attend([&acme].into_iter()).await;
        note(&recorder, "acme", &plan("u", 10, "web-1"));
        all_told(&recorder).await;
    })
    .await;
    // An empty one answers in its place.
    recorder.settings.url.clone_from(&backup.url);
    while_working(&recorder, &backup.ca(), &key, async {
        note(&recorder, "acme", &plan("v", 10, "web-1"));
        all_told(&recorder).await;
    })
    .await;
    let (kept, _) = backup.store().recall("acme", Cursor::Start).await.unwrap();
    assert_eq!(kept.sightings.keys().collect::<Vec<_>>(), ["u", "v"]);
}

#[tokio::test]
async fn nothing_but_a_new_policy_waits_for_a_store_that_cannot_be_reached() {
    let (token, key, acme) = (Token::of(CONTROLLER), PrivateKey::generate(), "acme".to_owned());
    let away = recorder("https://localhost:1", &token);
    let door = Door::open().await;
    let new = Arc::new(PatchPolicy::new("new", serde_json::from_str("{}").unwrap()));
    let mut known = (*new).clone();
    known.metadata.name = Some("known".into());
    let enforced = r#"{"type": "Ready", "status": "True", "reason": "Enforced", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}"#;
    known.status = Some(serde_json::from_str(&format!(r#"{{"conditions": [{enforced}]}}"#)).unwrap());
    let policies = [new, Arc::new(known)];
    let start = Instant::now();
    while_working(&away, &door.ca(), &key, away.attend([&acme].into_iter())).await;
    while_working(&away, &door.ca(), &key, away.attend([&acme, &"other".to_owned()].into_iter())).await;
    assert!(start.elapsed() < FIRST_READ, "nobody waits for what is known to be away");
    assert_eq!(Recorder::waiting(away.readings("acme"), policies.iter()), ["new".into()].into());
    assert_eq!((away.metrics.record.reachable.get(), away.metrics.record.unread.get()), (0, 2));

    // Neither is a token that the gateway does not accept more than a reason to wait.
    let wrong = Token::of("system:serviceaccount:acme:somebody");
    let refused = recorder(&door.url, &wrong);
    while_working(&refused, &door.ca(), &key, refused.attend([&acme].into_iter())).await;
    assert_eq!(Recorder::waiting(refused.readings("acme"), policies.iter()).len(), 1);
    assert_eq!(refused.state().reachable, Reachable::No(Code::PermissionDenied));
    std::fs::write(&wrong.0, CONTROLLER).unwrap();
    while_working(&refused, &door.ca(), &key, refused.news()).await;
    assert!(Recorder::waiting(refused.readings("acme"), policies.iter()).is_empty());
}

#[tokio::test]
async fn what_the_store_refuses_of_one_client_keeps_no_other_waiting() {
    let (door, token, key) = (Door::open().await, Token::of(CONTROLLER), PrivateKey::generate());
    let recorder = recorder(&door.url, &token);
    let (acme, other) = ("acme".to_owned(), "other".to_owned());
    while_working(&recorder, &door.ca(), &key, async {
        recorder.attend([&acme, &other].into_iter()).await;
        // A clock that is far ahead.
        note(&recorder, "acme", &plan("u", now().as_second() + 86_400, "web-1"));
        note(&recorder, "other", &plan("u", 10, "web-1"));
        let mut called = recorder.called.subscribe();
        called.wait_for(|()| recorder.state().clients["other"].held.unsent() == 0).await.unwrap();
    })
    .await;
    assert_eq!((calls(&recorder, "write", "refused"), calls(&recorder, "write", "ok")), (1, 1));
    assert_eq!(recorder.metrics.record.unsent.get(), 2);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_no_other_client_waiting() {
    let (door, token, key) = (Door::open().await, Token::of(CONTROLLER), PrivateKey::generate());
    let before = recorder(&door.url, &token);
    let (acme, other) = ("acme".to_owned(), "other".to_owned());
    while_working(&before, &door.ca(), &key, async {
        before.attend([&acme].into_iter()).await;
        note(&before, "acme", &plan("u", 10, "web-1"));
        all_told(&before).await;
    })
    .await;
    door.corrupt("UPDATE sighting SET first = 9223372036854775807").await;
    let recorder = recorder(&door.url, &token);
    while_working(&recorder, &door.ca(), &key, recorder.attend([&acme, &other].into_iter())).await;
    let known = ["acme", "other"].map(|namespace| recorder.state().clients[namespace].held.is_known());
    assert_eq!(known, [false, true]);
    assert_eq!((calls(&recorder, "read", "refused"), recorder.metrics.record.reachable.get()), (1, 1));
}
