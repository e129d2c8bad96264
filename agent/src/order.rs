//! Whether an order is to be carried out. Pure: everything that is known of the machine comes in as [`Facts`].
//!
//! The checks run in a fixed order and the first refusal wins; each has its [`ResultReason`].

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use patchwarden_protocol::canonical;
use patchwarden_protocol::envelope;
use patchwarden_protocol::key::{Fingerprint, PublicKey};
use patchwarden_protocol::order::{
    Action, Order, PackageChange, RESTART, RestartRule, RestartWhen, Sequence, SignedOrder, Verb,
};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::result::ResultReason;

use crate::provider::bounded;

/// An order of more actions than a report can list updates was not planned from a report.
const MAX_ACTIONS: usize = patchwarden_protocol::report::MAX_UPDATES;

/// Bounds of a [`RestartRule`], which are those of a policy: characters, restarts, and seconds (a day, and four hours).
const MAX_RESTART_MESSAGE: usize = 300;
const MAX_RESTARTS: u32 = 10;
const MAX_RESTART_WITHIN: u32 = 24 * 3600;
const MAX_RESTART_WARNING: u32 = 4 * 3600;

/// What is true of this machine now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The pinned root.
    pub(crate) root: &'a PublicKey,
    /// This device by name.
    pub(crate) device: &'a DeviceRef,
    /// This device by key.
    pub(crate) device_key: &'a Fingerprint,
    /// The highest order that was ever accepted.
    pub(crate) highest: Option<Sequence>,
    /// Digest of the current report.
    pub(crate) report_digest: &'a str,
    /// This device's clock.
    pub(crate) now: Timestamp,
    /// How far the gateway's clock is ahead, when it has said so.
    pub(crate) skew: Option<SignedDuration>,
}

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Code.
    pub(crate) reason: ResultReason,
    /// For people.
    pub(crate) message: String,
    /// Digest of the order as it claims to be.
    pub(crate) digest: String,
    /// Sequence as the order claims it.
    pub(crate) sequence: Sequence,
    /// Signed by the order key, for this device, and above what was accepted before: refusing it uses its sequence up,
    /// so that a refused order is never carried out later. Otherwise anyone could use up sequences.
    pub(crate) uses_sequence: bool,
}

/// Reads a `SignedOrder`.
pub(crate) fn parse(bytes: &[u8]) -> Result<SignedOrder, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal {
        reason: ResultReason::Unreadable,
        message: format!("the order cannot be read: {error}"),
        digest: canonical::digest(bytes),
        sequence: Sequence::default(),
        uses_sequence: false,
    })
}

/// The order, if it is to be carried out now. The caller has made sure that the journal can be read and that the order
/// is not one it knows already.
pub(crate) fn verify(signed: &SignedOrder, facts: &Facts<'_>) -> Result<Order, Refusal> {
    let claimed = signed.order.peek().map(|order| order.sequence).unwrap_or_default();
    let refuse = |reason, message: String, uses_sequence| Refusal {
        reason,
        message,
        digest: signed.order.digest(),
        sequence: claimed,
        uses_sequence,
    };
    let order = signed.open(facts.root, facts.now).map_err(|refused| {
        let reason = match &refused {
            envelope::Refused::Unreadable(_) => ResultReason::Unreadable,
            envelope::Refused::Unsigned | envelope::Refused::WrongType { .. } | envelope::Refused::BadSignature(_) => {
                ResultReason::BadSignature
            }
        };
        refuse(reason, refused.to_string(), false)
    })?;
    for check in [device, sequence] {
        check(&order, facts).map_err(|(reason, message)| refuse(reason, message, false))?;
    }
    for check in [clock, report, content] {
        check(&order, facts).map_err(|(reason, message)| refuse(reason, message, true))?;
    }
    Ok(order)
}

type Check = Result<(), (ResultReason, String)>;

fn device(order: &Order, facts: &Facts<'_>) -> Check {
    if order.device_key != *facts.device_key || order.device != *facts.device {
        return Err((
            ResultReason::OtherDevice,
            format!(
                "the order is for {} ({}), this is {} ({})",
                order.device, order.device_key, facts.device, facts.device_key
            ),
        ));
    }
    Ok(())
}

/// Before the clock, so that an old order cannot be refused a second time under a sequence that was used.
fn sequence(order: &Order, facts: &Facts<'_>) -> Check {
    match facts.highest {
        Some(highest) if order.sequence <= highest => Err((
            ResultReason::Replayed,
            format!("order {} is not above {highest}, the last one accepted", order.sequence),
        )),
        _ => Ok(()),
    }
}

fn clock(order: &Order, facts: &Facts<'_>) -> Check {
    if let Some(skew) = facts.skew.filter(|skew| skew.as_secs().abs() > MAX_CLOCK_SKEW_SECONDS) {
        let seconds = skew.as_secs();
        return Err((
            ResultReason::Expired,
            format!("clock skew: this device's clock is {seconds} s behind the gateway's, 120 are allowed"),
        ));
    }
    if facts.now > order.not_after {
        return Err((
            ResultReason::Expired,
            format!("it is {}, and the order was good until {}", facts.now, order.not_after),
        ));
    }
    if facts.now < order.not_before {
        return Err((
            ResultReason::TooEarly,
            format!("it is {}, and the order is good from {}", facts.now, order.not_before),
        ));
    }
    Ok(())
}

fn report(order: &Order, facts: &Facts<'_>) -> Check {
    if order.report_digest == facts.report_digest {
        return Ok(());
    }
    Err((
        ResultReason::ReportMismatch,
        format!(
            "the order was planned from report {}, the current one is {}",
            order.report_digest, facts.report_digest
        ),
    ))
}

/// What goes on a package manager's command line is checked although it is signed.
fn content(order: &Order, _: &Facts<'_>) -> Check {
    let unreadable = |message: String| Err((ResultReason::Unreadable, message));
    if order.actions.is_empty() || order.actions.len() > MAX_ACTIONS {
        return unreadable(format!("an order has 1 to {MAX_ACTIONS} actions, this one has {}", order.actions.len()));
    }
    if let Err(why) = restart_rule(&order.restart) {
        return unreadable(format!("restart: {why}"));
    }
    let mut seen = std::collections::BTreeSet::new();
    let verb = order.actions[0].verb;
    for action in &order.actions {
        if action.verb != verb {
            let (update, other) = (bounded(&action.update, 253), action.verb);
            return unreadable(format!("{update}: {other:?} in an order to {verb:?}: an order has one verb"));
        }
        if verb == Verb::Restart || action.update == RESTART {
            if is_restart_alone(order, action) {
                return Ok(());
            }
            return unreadable(
                "a restart is an order's only action, without packages and files, and its rule allows one".to_owned(),
            );
        }
        if action.packages.is_empty() {
            return unreadable(format!("{}: no packages", action.update));
        }
        for change in &action.packages {
            if !is_safe(change) {
                return unreadable(format!("{}: not a package, architecture and version: {change:?}", action.update));
            }
            if !seen.insert((&change.name, &change.arch)) {
                return unreadable(format!("{}: {}:{} is ordered twice", action.update, change.name, change.arch));
            }
        }
    }
    Ok(())
}

fn is_restart_alone(order: &Order, action: &Action) -> bool {
    let Action { verb, update, packages, artifacts_digest } = action;
    order.actions.len() == 1
        && *verb == Verb::Restart
        && update == RESTART
        && packages.is_empty()
        && artifacts_digest.is_empty()
        && order.restart.when != RestartWhen::Never
}

fn restart_rule(rule: &RestartRule) -> Result<(), String> {
    let RestartRule { when, not_after: _, within_seconds, warning_seconds, message, limit } = rule;
    let at_most = |what: &str, found: u32, most: u32| {
        if found > most { Err(format!("{what} is at most {most}, and {found} is ordered")) } else { Ok(()) }
    };
    at_most("limit", *limit, MAX_RESTARTS)?;
    at_most("withinSeconds", *within_seconds, MAX_RESTART_WITHIN)?;
    at_most("warningSeconds", *warning_seconds, MAX_RESTART_WARNING)?;
    if message.chars().count() > MAX_RESTART_MESSAGE {
        return Err(format!("the message is longer than {MAX_RESTART_MESSAGE} characters"));
    }
    // It goes to terminals.
    if message.chars().any(char::is_control) {
        return Err("the message contains control characters".to_owned());
    }
    if *when != RestartWhen::Never && *limit == 0 {
        return Err(format!("{when:?}, and at most 0 restarts"));
    }
    Ok(())
}

/// Debian policy 5.6.1 and 5.6.12, which also fit RPM but for `_` and `^`.
fn is_safe(change: &PackageChange) -> bool {
    let PackageChange { name, arch, installed, candidate } = change;
    let only = |text: &str, more: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    only(name, "+-._") && only(arch, "-_") && only(installed, "+-.~:^_") && only(candidate, "+-.~:^_")
}

#[cfg(test)]
pub(crate) mod tests {
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
        };
        World { root: PrivateKey::generate(), order_key: PrivateKey::generate(), device, device_key, order }
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
            (
                "an option for a name",
                |o| o.actions[0].packages[0].name = "-oX=y".into(),
                ResultReason::Unreadable,
                true,
            ),
            (
                "a path for a name",
                |o| o.actions[0].packages[0].name = "/tmp/x.deb".into(),
                ResultReason::Unreadable,
                true,
            ),
            (
                "a space in a version",
                |o| o.actions[0].packages[0].candidate = "1 x".into(),
                ResultReason::Unreadable,
                true,
            ),
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
        w.order.actions =
            vec![Action { verb: Verb::Restart, update, packages: vec![], artifacts_digest: String::new() }];
        w.order.restart = RestartRule {
            when: RestartWhen::IfRequired,
            not_after: w.order.not_after,
            within_seconds: MAX_RESTART_WITHIN,
            warning_seconds: MAX_RESTART_WARNING,
            message: "\u{e9}".repeat(MAX_RESTART_MESSAGE),
            limit: MAX_RESTARTS,
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
            assert_eq!(
                (refusal.reason, refusal.uses_sequence),
                (ResultReason::BadSignature, false),
                "{}",
                refusal.message
            );
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
            assert_eq!(
                (refusal.reason, refusal.uses_sequence),
                (ResultReason::Unreadable, false),
                "{}",
                refusal.message
            );
        }
        for bad in ["", "{}", "[]", "\u{0}", "{\"order\":{}}"] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().reason, ResultReason::Unreadable, "{bad}");
        }
    }
}
