//! What a session still has to write to its device's status: everything that waits goes in one write. Pure.

use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::envelope::Signature;
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::InstallResult;
use tokio::time::Instant;

use crate::api::device_inventory::{GrantRequest, Inventory};

/// So long a change waits for another one that goes with it: a report for the result of the same install, "online" for
/// the report that a device sends first.
pub const HOLD: Duration = Duration::from_millis(300);

/// The first pause after a failed write, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The changes of one write.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// A believed report with its signature.
    pub report: Option<Box<(Report, Signature)>>,
    /// A grant is asked for.
    pub grant: Option<GrantRequest>,
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
        let Self { report, grant, result, due: _, failures: _ } = self;
        if !inventory.online {
            inventory.online = true;
            inventory.last_transition_time = Some(to_seconds(now));
        }
        if inventory.pending_key.as_deref() == Some(key.fingerprint().as_str()) {
            inventory.pending_key = None;
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
