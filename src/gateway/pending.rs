//! What a session still has to write to its device's status: everything that waits goes in one write. Pure.

use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::envelope::Signature;
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::InstallResult;
use patchwarden_protocol::{Envelope, MAX_CLOCK_SKEW_SECONDS};
use tokio::time::Instant;

use crate::api::device_inventory::{GrantRequest, Inventory};

/// So long a change waits for another one that goes with it: a report for the result of the same install, "online" for
/// the report that a device sends first.
pub const HOLD: Duration = Duration::from_millis(300);

/// The first pause after a failed write, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Seconds by which a clock may be off before the status tells.
const NOTED_SKEW: i64 = 30;

/// Seconds by which what is told of a clock may change without being told anew.
const SAME_SKEW: u64 = 10;

/// The changes of one write.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// A believed report with its signature.
    pub report: Option<Box<(Report, Signature)>>,
    /// A grant is asked for.
    pub grant: Option<GrantRequest>,
    /// By how many seconds the device's clock is behind; negative: ahead.
    pub skew: Option<i64>,
    /// Until when its certificate counts.
    pub certificate_until: Option<Timestamp>,
    /// A recorded result.
    pub result: Option<Box<(InstallResult, Envelope<InstallResult>)>>,
    /// When to write.
    due: Option<Instant>,
    failures: u32,
}

impl Pending {
    /// When to write, if there is anything.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes at `at`, or earlier if that was settled before. While the API server is away its pause counts.
    pub fn schedule(&mut self, at: Instant) {
        self.due = Some(match self.due {
            Some(due) if self.failures > 0 || due <= at => due,
            _ => at,
        });
    }

    /// The write failed: once more, later.
    pub fn failed(&mut self, now: Instant) {
        let (first, longest) = BACKOFF;
        let pause = first.saturating_mul(1 << self.failures.min(8)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + pause);
    }

    /// Makes `inventory` what a device with an open session must have, by all that waits.
    pub fn apply(&self, inventory: &mut Inventory, key: &PublicKey, now: Timestamp) {
        let Self { report, grant, skew, certificate_until, result, due: _, failures: _ } = self;
        if !inventory.online {
            inventory.online = true;
            inventory.last_transition_time = Some(to_seconds(now));
        }
        if inventory.pending_key.as_deref() == Some(key.fingerprint().as_str()) {
            inventory.pending_key = None;
        }
        if let Some(skew) = *skew {
            inventory.clock_skew_seconds = shown_skew(skew, inventory.clock_skew_seconds);
        }
        if let Some(until) = *certificate_until {
            inventory.certificate_until = Some(to_seconds(until));
        }
        if let Some((report, signature)) = report.as_deref() {
            inventory.report = Some(report.clone());
            inventory.signature = Some(signature.clone());
            inventory.public_key = Some(*key);
        }
        if let Some(grant) = grant {
            inventory.grant_request = Some(grant.clone());
        }
        if let Some((result, envelope)) = result.as_deref() {
            if inventory.grant_request.as_ref().is_some_and(|asked| asked.order_digest == result.order_digest) {
                inventory.grant_request = None;
            }
            if !has_newer(inventory, result, key) {
                inventory.result = Some(envelope.clone());
            }
        }
    }
}

/// What the status says of a clock that is so many seconds behind, where it said `before`: nothing of what a slow start of a session
/// explains, and nothing new for each session of one that drifts.
fn shown_skew(skew: i64, before: Option<i64>) -> Option<i64> {
    let is_off = |skew: i64| skew.abs() > MAX_CLOCK_SKEW_SECONDS;
    let same = before.filter(|before| before.abs_diff(skew) < SAME_SKEW && is_off(*before) == is_off(skew));
    (skew.abs() > NOTED_SKEW).then(|| same.unwrap_or(skew))
}

/// Whole seconds, as Kubernetes writes its own times.
pub fn to_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Whether the status has the result of a later order of the same key: a device repeats what was not confirmed.
fn has_newer(inventory: &Inventory, result: &InstallResult, key: &PublicKey) -> bool {
    inventory
        .result
        .as_ref()
        .and_then(|envelope| envelope.open(key).ok())
        .is_some_and(|known| known.sequence > result.sequence)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::Tristate;
    use patchwarden_protocol::result::Outcome;

    use super::*;
    use crate::gateway::testing;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn result(number: u32, key: &PrivateKey) -> (InstallResult, Envelope<InstallResult>) {
        let result = InstallResult {
            device: testing::report("acme", "web").device,
            device_key: key.public().fingerprint(),
            sequence: Sequence { epoch: 1, number },
            order_digest: format!("sha256:{number}"),
            outcome: Outcome::Succeeded,
            reason: None,
            message: String::new(),
            actions: Vec::new(),
            started_at: at(0),
            finished_at: at(1),
            restart_required: Tristate::No,
            restarts: 0,
            restart_postponed: String::new(),
            steps: vec![],
            phases: vec![],
        };
        let envelope = Envelope::seal(&result, key).unwrap();
        (result, envelope)
    }

    fn asked(number: u32) -> GrantRequest {
        GrantRequest {
            order_digest: format!("sha256:{number}"),
            nonce: "n".into(),
            purpose: patchwarden_protocol::grant::Purpose::Act,
        }
    }

    #[test]
    fn applying_nothing_twice_changes_nothing() {
        let key = PrivateKey::generate().public();
        let mut inventory = Inventory::default();
        Pending::default().apply(&mut inventory, &key, at(1));
        assert!(inventory.online);
        assert_eq!(inventory.last_transition_time, Some(at(1)));
        let before = inventory.clone();
        Pending::default().apply(&mut inventory, &key, at(2));
        assert_eq!(inventory, before);
    }

    #[test]
    fn report_and_result_go_in_one_write_and_clear_the_request() {
        let key = PrivateKey::generate();
        let report = testing::report("acme", "web");
        let signature = Envelope::seal(&report, &key).unwrap().signatures[0].clone();
        let mut inventory = Inventory {
            grant_request: Some(asked(7)),
            pending_key: Some(key.public().fingerprint().into()),
            ..Inventory::default()
        };
        let (document, envelope) = result(7, &key);
        let pending = Pending {
            report: Some(Box::new((report.clone(), signature.clone()))),
            result: Some(Box::new((document, envelope.clone()))),
            certificate_until: Some(Timestamp::new(7, 900_000_000).unwrap()),
            ..Pending::default()
        };
        pending.apply(&mut inventory, &key.public(), at(1));
        let expected = Inventory {
            report: Some(report),
            signature: Some(signature),
            public_key: Some(key.public()),
            pending_key: None,
            online: true,
            last_transition_time: Some(at(1)),
            clock_skew_seconds: None,
            certificate_until: Some(at(7)),
            grant_request: None,
            result: Some(envelope),
            duplicate_identity: None,
        };
        assert_eq!(inventory, expected);
    }

    #[test]
    fn a_repeated_old_result_neither_replaces_a_newer_one_nor_its_request() {
        let key = PrivateKey::generate();
        let newer = result(9, &key).1;
        let mut inventory =
            Inventory { online: true, result: Some(newer), grant_request: Some(asked(10)), ..Inventory::default() };
        let before = inventory.clone();
        let pending = Pending { result: Some(Box::new(result(8, &key))), ..Pending::default() };
        pending.apply(&mut inventory, &key.public(), at(1));
        assert_eq!(inventory, before);
        // The result of a former key of this device does not stand in the way.
        inventory.result = Some(result(9, &PrivateKey::generate()).1);
        pending.apply(&mut inventory, &key.public(), at(1));
        assert_eq!(inventory.result, Some(result(8, &key).1));
    }

    #[test]
    fn a_clock_is_told_where_it_is_off_and_not_anew_for_every_second() {
        let mut inventory = Inventory::default();
        let mut told = |skew| {
            let pending = Pending { skew: Some(skew), ..Pending::default() };
            pending.apply(&mut inventory, &PrivateKey::generate().public(), at(1));
            inventory.clock_skew_seconds
        };
        assert_eq!([told(0), told(30), told(-30)], [None; 3]);
        assert_eq!([told(31), told(40), told(22), told(41)], [Some(31), Some(31), None, Some(41)]);
        // Orders are refused from there on.
        assert_eq!([told(115), told(120), told(121), told(120)], [Some(115), Some(115), Some(121), Some(120)]);
        assert_eq!([told(-3600), told(-3591), told(-3590), told(5)], [Some(-3600), Some(-3600), Some(-3590), None]);
        // What is not measured changes nothing.
        told(500);
        Pending::default().apply(&mut inventory, &PrivateKey::generate().public(), at(1));
        assert_eq!(inventory.clock_skew_seconds, Some(500));
    }

    #[test]
    fn the_end_of_a_certificate_is_that_of_the_last_session() {
        let mut inventory = Inventory::default();
        let mut told = |certificate_until| {
            let pending = Pending { certificate_until, ..Pending::default() };
            pending.apply(&mut inventory, &PrivateKey::generate().public(), at(1));
            inventory.certificate_until
        };
        // Also where it is an earlier one: a machine that was set back.
        assert_eq!(
            [told(None), told(Some(at(9))), told(None), told(Some(at(5)))],
            [None, Some(at(9)), Some(at(9)), Some(at(5))]
        );
    }

    #[test]
    fn the_earliest_time_counts_and_failures_pause() {
        let now = Instant::now();
        let mut pending = Pending::default();
        pending.schedule(now + HOLD);
        pending.schedule(now);
        pending.schedule(now + HOLD);
        assert_eq!(pending.due(), Some(now));
        pending.failed(now);
        assert_eq!(pending.due(), Some(now + Duration::from_secs(1)));
        pending.schedule(now);
        assert_eq!(pending.due(), Some(now + Duration::from_secs(1)));
        (0..20).for_each(|_| pending.failed(now));
        assert_eq!(pending.due(), Some(now + Duration::from_secs(30)));
    }
}
