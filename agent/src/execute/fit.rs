//! A result of many words is made short enough for whoever takes it: one that the gateway refuses would be told for ever.

use patchwarden_protocol::canonical::{self, NotCanonical};
use patchwarden_protocol::envelope::MAX_SIGNED;
use patchwarden_protocol::result::{InstallResult, Step};

use crate::provider::bounded;

/// Bytes of a message at most, from try to try. What an order names by itself is a part of the order, which has the same limit.
const MESSAGES: [usize; 5] = [400, 200, 100, 50, 0];

/// Leaves out words of a result that is too large, the longest first, then what came of services: those that are up again before those
/// that are not.
///
/// # Errors
/// Where the result cannot be written as canonical JSON.
pub(super) fn shorten(result: &mut InstallResult) -> Result<(), NotCanonical> {
    for limit in MESSAGES {
        if fits(result)? {
            return Ok(());
        }
        // What is said of an action that is done is short, and others go by it.
        for action in result.actions.iter_mut().filter(|action| !action.done) {
            action.message = bounded(&action.message, limit);
        }
        for step in &mut result.steps {
            step.message = bounded(&step.message, limit);
        }
    }
    for also_failed in [false, true] {
        if fits(result)? {
            return Ok(());
        }
        result.steps.retain(|step| {
            let is_service = matches!(step.step, Step::ServiceRestart | Step::ServiceRolledBack);
            !is_service || !(step.ok || also_failed)
        });
    }
    Ok(())
}

fn fits(result: &InstallResult) -> Result<bool, NotCanonical> {
    Ok(canonical::to_bytes(result)?.len() <= MAX_SIGNED)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::order::{Sequence, Verb};
    use patchwarden_protocol::report::{DeviceRef, Tristate};
    use patchwarden_protocol::result::{ActionResult, MAX_PHASE, MAX_PHASES, Outcome, PhaseTime};
    use patchwarden_protocol::result::{ResultReason, StepResult};

    use super::*;
    use crate::execute::MAX_MESSAGE;

    /// Of 64 updates that failed and of services on both ways, with as many words as there may be.
    fn largest(services: usize, word: &str) -> InstallResult {
        let words = |bytes: usize| bounded(&word.repeat(bytes), bytes);
        let action = |index: usize| ActionResult {
            update: format!("{index:03}{}", "u".repeat(250)),
            verb: Verb::Uninstall,
            done: index == 0,
            reason: (index > 0).then_some(ResultReason::PackageManagerFailed),
            message: if index == 0 { "was at this version already".to_owned() } else { words(MAX_MESSAGE) },
        };
        let step = |step: Step, index: usize| StepResult {
            step,
            name: format!("{index:03}{}", "n".repeat(60)),
            ok: index.is_multiple_of(2),
            message: words(200),
        };
        let of = |kind: Step| (0..services).map(move |index| step(kind, index));
        let phase = PhaseTime { phase: "p".repeat(MAX_PHASE), after_millis: 1 << 40 };
        InstallResult {
            device: DeviceRef { namespace: "n".repeat(63), name: "d".repeat(253) },
            device_key: PrivateKey::generate().public().fingerprint(),
            sequence: Sequence { epoch: 1, number: 1 },
            order_digest: format!("sha256:{}", "0".repeat(64)),
            outcome: Outcome::Failed,
            reason: Some(ResultReason::RolledBack),
            message: words(MAX_MESSAGE),
            actions: (0..64).map(action).collect(),
            steps: of(Step::ServiceRestart)
                .chain([step(Step::CheckAfter, 1)])
                .chain(of(Step::ServiceRolledBack))
                .collect(),
            phases: vec![phase; MAX_PHASES],
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            restart_required: Tristate::Unknown,
            restarts: 3,
            restart_postponed: words(MAX_MESSAGE),
        }
    }

    fn shortened(services: usize, word: &str) -> InstallResult {
        let mut result = largest(services, word);
        shorten(&mut result).unwrap();
        let bytes = canonical::to_bytes(&result).unwrap().len();
        assert!(bytes <= MAX_SIGNED, "{bytes}");
        result
    }

    #[test]
    fn the_largest_result_fits_and_says_what_came_of_everything() {
        for word in ["e", "é", "\"\\"] {
            let result = shortened(64, word);
            assert_eq!((result.actions.len(), result.steps.len()), (64, 129), "{word:?}");
            assert_eq!(result.actions[0].message, "was at this version already");
        }
        assert!(shortened(0, "e").actions[1].message.len() > 100);
        // A control character is six in JSON (RFC 8259, section 7).
        assert_eq!(shortened(64, "\u{1}").actions.len(), 64);
    }

    #[test]
    fn of_more_services_than_fit_those_that_are_down_are_told() {
        let count = |result: &InstallResult, ok: bool| result.steps.iter().filter(|step| step.ok == ok).count();
        let result = shortened(100, "e");
        assert_eq!((count(&result, true), count(&result, false)), (0, 101));
        let result = shortened(1000, "e");
        assert_eq!(result.steps.iter().map(|step| step.step).collect::<Vec<_>>(), [Step::CheckAfter]);
    }

    #[test]
    fn one_that_fits_is_left_as_it_is() {
        let mut result = largest(1, "e");
        result.actions.truncate(3);
        let before = result.clone();
        shorten(&mut result).unwrap();
        assert_eq!(result, before);
    }
}
