use std::path::Path;

use patchwarden_protocol::Envelope;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Dependencies;

use super::*;

pub(crate) struct World {
    root: PrivateKey,
    order_key: PrivateKey,
    device: DeviceRef,
    device_key: Fingerprint,
    order: Order,
    limits: Result<Limits, LimitsError>,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn change(name: &str) -> PackageChange {
    PackageChange {
        name: name.into(),
        arch: "amd64".into(),
        installed: "1:1.0-1".into(),
        candidate: "1:1.1~rc+b1-1".into(),
    }
}

fn world() -> World {
    let device = DeviceRef { namespace: "acme".into(), name: "web-1".into() };
    let device_key = PrivateKey::generate().public().fingerprint();
    let order = Order {
        device: device.clone(),
        device_key: device_key.clone(),
        sequence: Sequence { epoch: 2, number: 8 },
        actions: vec![Action {
            verb: Verb::Install,
            update: "pkg:deb/debian/foo@1%3A1.1".into(),
            packages: vec![change("foo"), change("libstdc++6")],
            artifacts_digest: "sha256:a".into(),
        }],
        dependencies: Dependencies::Strict,
        report_digest: "sha256:r".into(),
        decisions_digest: "sha256:d".into(),
        policy: "servers".into(),
        not_before: at("2026-01-10T12:00:00Z"),
        not_after: at("2026-01-10T13:00:00Z"),
        limit_seconds: 900,
        restart: patchwarden_protocol::order::RestartRule::never(),
        safeguards: patchwarden_protocol::safeguards::Safeguards::default(),
        site_cache: None,
    };
    let (root, order_key) = (PrivateKey::generate(), PrivateKey::generate());
    World { root, order_key, device, device_key, order, limits: Ok(Limits::none(Path::new("limits.toml"))) }
}

impl World {
    fn sign(&self) -> SignedOrder {
        self.sign_with(&self.order_key)
    }

    fn sign_with(&self, key: &PrivateKey) -> SignedOrder {
        let delegation = Delegation {
            order_key: self.order_key.public(),
            not_before: at("2026-01-01T00:00:00Z"),
            not_after: at("2026-02-01T00:00:00Z"),
        };
        SignedOrder {
            order: Envelope::seal(&self.order, key).unwrap(),
            delegation: Envelope::seal(&delegation, &self.root).unwrap(),
        }
    }

    fn verify(&self, signed: &SignedOrder) -> Result<Order, Refusal> {
        self.verify_at(signed, "2026-01-10T12:30:00Z", None)
    }

    fn verify_at(&self, signed: &SignedOrder, now: &str, skew: Option<i64>) -> Result<Order, Refusal> {
        let facts = Facts {
            root: &self.root.public(),
            device: &self.device,
            device_key: &self.device_key,
            highest: Some(Sequence { epoch: 2, number: 7 }),
            report_digest: "sha256:r",
            now: at(now),
            skew: skew.map(SignedDuration::from_secs),
            limits: &self.limits,
        };
        super::verify(signed, &facts)
    }
}

#[test]
fn a_good_order_is_carried_out() {
    let w = world();
    assert_eq!(w.verify(&w.sign()), Ok(w.order.clone()));
    let first_and_last_instant = ["2026-01-10T12:00:00Z", "2026-01-10T13:00:00Z"];
    assert!(first_and_last_instant.iter().all(|now| w.verify_at(&w.sign(), now, Some(120)).is_ok()));
}

#[test]
fn an_application_of_a_recipe_may_be_ordered_like_a_package() {
    let mut w = world();
    w.order.actions[0].packages[0].name = "recipe:node_exporter".into();
    assert_eq!(w.verify(&w.sign()).map_err(|refusal| refusal.message), Ok(w.order.clone()));
}

#[test]
fn each_bad_order_is_refused_with_its_reason() {
    type Spoil = fn(&mut Order);
    let table: Vec<(&str, Spoil, ResultReason, bool)> = vec![
        ("another device's key", |o| o.device_key = Fingerprint::of(b"x"), ResultReason::OtherDevice, false),
        ("another device's name", |o| o.device.name = "web-2".into(), ResultReason::OtherDevice, false),
        ("another namespace", |o| o.device.namespace = "other".into(), ResultReason::OtherDevice, false),
        ("the last sequence", |o| o.sequence.number = 7, ResultReason::Replayed, false),
        ("an old epoch", |o| o.sequence = Sequence { epoch: 1, number: 99 }, ResultReason::Replayed, false),
        (
            "replayed and expired",
            |o| (o.sequence.number, o.not_after) = (7, o.not_before),
            ResultReason::Replayed,
            false,
        ),
        ("expired", |o| o.not_after = at("2026-01-10T12:29:59Z"), ResultReason::Expired, true),
        ("too early", |o| o.not_before = at("2026-01-10T12:30:01Z"), ResultReason::TooEarly, true),
        ("another report", |o| o.report_digest = "sha256:s".into(), ResultReason::ReportMismatch, true),
        ("no actions", |o| o.actions.clear(), ResultReason::Unreadable, true),
        ("no packages", |o| o.actions[0].packages.clear(), ResultReason::Unreadable, true),
        ("an option for a name", |o| o.actions[0].packages[0].name = "-oX=y".into(), ResultReason::Unreadable, true),
        ("a path for a name", |o| o.actions[0].packages[0].name = "/tmp/x.deb".into(), ResultReason::Unreadable, true),
        (
            "a path of an application",
            |o| o.actions[0].packages[0].name = "recipe:../x".into(),
            ResultReason::Unreadable,
            true,
        ),
        (
            "an application without a name",
            |o| o.actions[0].packages[0].name = "recipe:".into(),
            ResultReason::Unreadable,
            true,
        ),
        (
            "two of its signs",
            |o| o.actions[0].packages[0].name = "recipe:recipe:x".into(),
            ResultReason::Unreadable,
            true,
        ),
        ("another colon", |o| o.actions[0].packages[0].name = "foo:bar".into(), ResultReason::Unreadable, true),
        ("a space in a version", |o| o.actions[0].packages[0].candidate = "1 x".into(), ResultReason::Unreadable, true),
        ("a removal sign", |o| o.actions[0].packages[0].candidate = String::new(), ResultReason::Unreadable, true),
        (
            "two verbs",
            |o| {
                let mut other = o.actions[0].clone();
                (other.verb, other.packages[0].name) = (Verb::Download, "bar".into());
                other.packages.truncate(1);
                o.actions.push(other);
            },
            ResultReason::Unreadable,
            true,
        ),
        ("a package twice", |o| o.actions[0].packages[1].name = "foo".into(), ResultReason::Unreadable, true),
    ];
    for (name, spoil, reason, uses_sequence) in table {
        let mut w = world();
        spoil(&mut w.order);
        let refusal = w.verify(&w.sign()).unwrap_err();
        assert_eq!((refusal.reason, refusal.uses_sequence), (reason, uses_sequence), "{name}: {}", refusal.message);
        assert_eq!(refusal.sequence, w.order.sequence, "{name}");
        assert_eq!(refusal.digest, w.sign().order.digest(), "{name}");
    }
}

/// An order to restart, and nothing else.
fn restart_world() -> World {
    let mut w = world();
    let update = RESTART.to_owned();
    w.order.actions = vec![Action { verb: Verb::Restart, update, packages: vec![], artifacts_digest: String::new() }];
    w.order.restart = RestartRule {
        when: RestartWhen::IfRequired,
        not_after: w.order.not_after,
        within_seconds: MAX_RESTART_WITHIN,
        warning_seconds: MAX_RESTART_WARNING,
        message: "\u{e9}".repeat(MAX_RESTART_MESSAGE),
        limit: MAX_RESTARTS,
        services: false,
    };
    w
}

#[test]
fn a_restart_is_an_orders_only_action_and_its_rule_is_within_bounds() {
    type Spoil = fn(&mut Order);
    let w = restart_world();
    assert_eq!(w.verify(&w.sign()), Ok(w.order.clone()));
    let table: Vec<(&str, Spoil, &str)> = vec![
        ("never", |o| o.restart = RestartRule::never(), "only action"),
        ("of an update", |o| o.actions[0].update = "pkg:deb/debian/foo@1".into(), "only action"),
        ("to install a restart", |o| o.actions[0].verb = Verb::Install, "only action"),
        ("packages", |o| o.actions[0].packages = vec![change("foo")], "only action"),
        ("files", |o| o.actions[0].artifacts_digest = "sha256:a".into(), "only action"),
        ("twice", |o| o.actions.push(o.actions[0].clone()), "only action"),
        (
            "after another action",
            |o| {
                let mut other = o.actions[0].clone();
                (other.verb, other.update, other.packages) = (Verb::Install, "x".into(), vec![change("foo")]);
                o.actions.insert(0, other);
            },
            "one verb",
        ),
        ("too many", |o| o.restart.limit = 11, "limit is at most 10"),
        ("none", |o| o.restart.limit = 0, "at most 0 restarts"),
        ("too late", |o| o.restart.within_seconds = 86_401, "withinSeconds is at most 86400"),
        ("warned too early", |o| o.restart.warning_seconds = 14_401, "warningSeconds is at most 14400"),
        ("too long", |o| o.restart.message = "x".repeat(301), "longer than 300"),
        ("services", |o| o.restart.services = true, "services in an order to Restart"),
        ("an escape", |o| o.restart.message = "\u{1b}[2J".into(), "control characters"),
    ];
    for (name, spoil, words) in table {
        let mut w = restart_world();
        spoil(&mut w.order);
        let refusal = w.verify(&w.sign()).unwrap_err();
        assert_eq!((refusal.reason, refusal.uses_sequence), (ResultReason::Unreadable, true), "{name}");
        assert!(refusal.message.contains(words), "{name}: {}", refusal.message);
    }
    // The rule counts for every order.
    let mut w = world();
    w.order.restart.limit = 11;
    assert_eq!(w.verify(&w.sign()).unwrap_err().reason, ResultReason::Unreadable);
}

#[test]
fn hooks_and_checks_are_looked_at_before_they_are_run() {
    use patchwarden_protocol::safeguards::{Check, Hook, OnFailure, Probe};
    let hook = |name: &str| Hook { name: name.into(), timeout_seconds: 5, on_failure: OnFailure::Abort };
    let probe = Probe::Tcp { port: 80 };
    let check = Check { name: "web".into(), probe, timeout_seconds: 5, settle_seconds: 5 };
    let good =
        || Safeguards { before: vec![hook("drain")], after: vec![], checks: vec![check.clone()], rollback: None };
    let mut w = world();
    w.order.safeguards = good();
    assert_eq!(w.verify(&w.sign()), Ok(w.order.clone()));
    w.order.safeguards.before = vec![hook("../../bin/sh")];
    let refusal = w.verify(&w.sign()).unwrap_err();
    assert_eq!((refusal.reason, refusal.uses_sequence), (ResultReason::Unreadable, true));
    assert!(refusal.message.contains("hooks.before[0].name"), "{}", refusal.message);
    // Nothing would run them there.
    let mut restart = restart_world();
    restart.order.safeguards = good();
    let mut download = world();
    download.order.actions.iter_mut().for_each(|action| action.verb = Verb::Download);
    assert!(download.verify(&download.sign()).is_ok());
    download.order.safeguards = good();
    for w in [restart, download] {
        let refusal = w.verify(&w.sign()).unwrap_err();
        assert!(refusal.message.contains("it changes no package"), "{}", refusal.message);
    }
}

#[test]
fn an_order_that_is_not_signed_by_the_delegated_key_uses_no_sequence() {
    let w = world();
    let mut unsigned = w.sign();
    unsigned.order.signatures.clear();
    let mut altered = w.sign();
    altered.order.payload = world().sign().order.payload;
    let mut undelegated = w.sign();
    undelegated.delegation.signatures.clear();
    for signed in [unsigned, altered, undelegated, w.sign_with(&PrivateKey::generate()), w.sign_with(&w.root)] {
        let refusal = w.verify(&signed).unwrap_err();
        assert_eq!((refusal.reason, refusal.uses_sequence), (ResultReason::BadSignature, false), "{}", refusal.message);
    }
    let after_the_delegation = w.verify_at(&w.sign(), "2026-02-10T12:30:00Z", None).unwrap_err();
    assert!(!after_the_delegation.uses_sequence);
}

#[test]
fn a_clock_that_is_off_stops_orders() {
    let w = world();
    for skew in [-121, 121] {
        let refusal = w.verify_at(&w.sign(), "2026-01-10T12:30:00Z", Some(skew)).unwrap_err();
        assert_eq!(refusal.reason, ResultReason::Expired);
        assert!(refusal.message.contains("clock skew"), "{}", refusal.message);
    }
}

/// An order of a version to come.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Later(serde_json::Value);
impl patchwarden_protocol::Document for Later {
    const TYPE: &'static str = <Order as patchwarden_protocol::Document>::TYPE;
}

#[test]
fn an_order_with_an_unknown_field_or_of_another_form_is_unreadable() {
    let w = world();
    for (field, value) in [("hooks", "[]"), ("verb", "\"Install\"")] {
        let json = serde_json::to_string(&w.order).unwrap().replacen('{', &format!("{{\"{field}\":{value},"), 1);
        let later = Envelope::seal(&Later(serde_json::from_str(&json).unwrap()), &w.order_key).unwrap();
        let mut signed = serde_json::to_value(w.sign()).unwrap();
        signed["order"] = serde_json::to_value(later).unwrap();
        let signed = parse(signed.to_string().as_bytes()).unwrap();
        let refusal = w.verify(&signed).unwrap_err();
        assert_eq!((refusal.reason, refusal.uses_sequence), (ResultReason::Unreadable, false), "{}", refusal.message);
    }
    for bad in ["", "{}", "[]", "\u{0}", "{\"order\":{}}"] {
        assert_eq!(parse(bad.as_bytes()).unwrap_err().reason, ResultReason::Unreadable, "{bad}");
    }
}

#[test]
fn what_the_devices_owner_does_not_allow_is_refused_and_uses_its_sequence_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.toml");
    for (text, words) in [
        ("verbs = ['Download']", Some("verbs: Install")),
        ("verbs = ['Install']", None),
        ("[[freezes]]\nfrom = 2026-01-10\nto = 2026-01-10", Some("freezes: nothing begins until 2026-01-1")),
        ("[[freezes]]\nfrom = 2026-01-12\nto = 2026-01-12", None),
        ("exclude_packages = ['foo']", Some("exclude_packages: every update")),
        ("exclude_packages = ['bar']", None),
        ("nonsense", Some("no order is carried out")),
    ] {
        std::fs::write(&path, text).unwrap();
        let w = World { limits: Limits::load(&path), ..world() };
        let verified = w.verify(&w.sign());
        let Some(words) = words else {
            assert_eq!(verified, Ok(w.order), "{text}");
            continue;
        };
        let Refusal { reason, message, uses_sequence, .. } = verified.unwrap_err();
        assert_eq!((reason, uses_sequence), (ResultReason::LimitedByDevice, true), "{text}");
        assert!(message.contains(words), "{text}: {message}");
    }
}

#[test]
fn an_order_with_one_update_that_is_not_excluded_is_left_to_the_simulation() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.toml");
    std::fs::write(&path, "exclude_packages = ['foo']").unwrap();
    let mut w = World { limits: Limits::load(&path), ..world() };
    w.order.actions.push(Action {
        update: "other".into(),
        packages: vec![change("bar")],
        ..w.order.actions[0].clone()
    });
    assert_eq!(w.verify(&w.sign()), Ok(w.order.clone()));
}
