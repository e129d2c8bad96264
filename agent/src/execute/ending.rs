//! How an order ends, by what came of its actions. Pure but for the identity of the boot.

use patchwarden_protocol::order::Action;
use patchwarden_protocol::result::{ActionResult, Outcome, ResultReason};
use serde::{Deserialize, Serialize};

use super::MAX_MESSAGE;
use super::restart::Restarts;
use crate::journal::{Active, Restarting};
use crate::platform;
use crate::provider::{Failure, bounded};

/// Of an action that was done before the order came to it: by somebody else, or by an earlier order.
pub(super) const ALREADY: &str = "was at this version already";

/// What is known of each action; `None` while it is still to be done.
pub(super) type Settled = Vec<Option<ActionResult>>;

/// How the order ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<ResultReason>,
    pub(super) message: String,
    pub(super) actions: Vec<ActionResult>,
    /// The package manager still runs: its files must stay.
    pub(super) still_running: bool,
}

impl Ending {
    pub(crate) fn nothing_done(outcome: Outcome, reason: ResultReason, message: String) -> Self {
        Self { outcome, reason: Some(reason), message, actions: Vec::new(), still_running: false }
    }

    /// From what is known of every action; `started` says whether the package manager was let go.
    pub(super) fn of(settled: Settled, started: bool) -> Self {
        let actions: Vec<ActionResult> = settled.into_iter().flatten().collect();
        let Some(first) = actions.iter().find(|action| !action.done) else {
            return Self {
                outcome: Outcome::Succeeded,
                reason: None,
                message: String::new(),
                actions,
                still_running: false,
            };
        };
        let (reason, message) = (first.reason, first.message.clone());
        let refusals = [
            ResultReason::WouldDoMore,
            ResultReason::Superseded,
            ResultReason::ReportMismatch,
            ResultReason::LimitedByDevice,
            ResultReason::OtherFailed,
        ];
        let refused = |action: &ActionResult| action.reason.is_some_and(|reason| refusals.contains(&reason));
        if !started && actions.iter().all(refused) {
            let each: Vec<String> =
                actions.iter().map(|action| format!("{}: {}", action.update, action.message)).collect();
            return Self {
                outcome: Outcome::Refused,
                reason,
                message: each.join("; "),
                actions: Vec::new(),
                still_running: false,
            };
        }
        Self { outcome: Outcome::Failed, reason, message, actions, still_running: false }
    }
}

/// Where the package manager cannot be used (any more), what the journal has of the order is all there is to tell.
pub(super) fn without_provider(active: &Active, failure: &Failure) -> (Ending, Restarts) {
    let Active { accepted, started, guarded, restarting, rolling_back, .. } = active;
    let known = rolling_back.as_ref().map(|rolling| (rolling.ending.clone(), rolling.restarts));
    let of_restart = |restarting: &Restarting| {
        let is_over = platform::boot_id().is_ok_and(|boot| boot != restarting.boot_id);
        let count = if is_over { restarting.number } else { restarting.number.saturating_sub(1) };
        (Ending::of(restarting.settled.clone(), true), count)
    };
    let known = known.or_else(|| restarting.as_ref().map(of_restart));
    let known = known.or_else(|| Some((guarded.as_ref()?.ending.clone()?, 0)));
    if let Some((ending, count)) = known {
        let why = format!("it was not looked at again: {}", failure.message);
        let message = if ending.message.is_empty() { why } else { format!("{}; {why}", ending.message) };
        let reason = ending.reason.or(Some(failure.reason));
        return (
            Ending { outcome: Outcome::Failed, reason, message, ..ending },
            Restarts { count, ..Restarts::default() },
        );
    }
    if started.is_none() {
        let ending = Ending::nothing_done(Outcome::Failed, failure.reason, failure.message.clone());
        return (ending, Restarts::default());
    }
    let why = format!("the package manager was let go, and what came of it is not known: {}", failure.message);
    let failure = Failure::new(failure.reason, why);
    let actions = accepted.order.actions.iter().map(|action| Some(failed(action, &failure)));
    (Ending::of(actions.collect(), true), Restarts::default())
}

pub(super) fn open(settled: &Settled) -> Vec<usize> {
    (0..settled.len()).filter(|index| settled[*index].is_none()).collect()
}

/// Done by this order, and not [`ALREADY`].
pub(crate) fn is_own(result: &ActionResult) -> bool {
    result.done && result.message != ALREADY
}

pub(super) fn done(action: &Action, message: &str) -> ActionResult {
    ActionResult {
        update: action.update.clone(),
        verb: action.verb,
        done: true,
        reason: None,
        message: message.to_owned(),
    }
}

pub(super) fn failed(action: &Action, failure: &Failure) -> ActionResult {
    ActionResult {
        update: action.update.clone(),
        verb: action.verb,
        done: false,
        reason: Some(failure.reason),
        message: bounded(&failure.message, MAX_MESSAGE),
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::order::{Order, PackageChange, Verb};

    use super::*;
    use crate::journal::{Accepted, Guarded, Record, RollingBack, tests as journal};

    fn result(reason: Option<ResultReason>) -> ActionResult {
        let done = reason.is_none();
        ActionResult { update: "u".into(), verb: Verb::Install, done, reason, message: String::new() }
    }

    fn told(active: &Active) -> (Outcome, Option<ResultReason>, String, Vec<ActionResult>, u32) {
        let failure = Failure::new(ResultReason::PackageManagerFailed, "no package manager");
        let (Ending { outcome, reason, message, actions, .. }, Restarts { count, .. }) =
            without_provider(active, &failure);
        (outcome, reason, message, actions, count)
    }

    #[test]
    fn what_the_journal_has_is_told_where_the_package_manager_is_gone() {
        const GONE: Option<ResultReason> = Some(ResultReason::PackageManagerFailed);
        let Record::Accepted(accepted) = journal::accepted(1) else { unreachable!() };
        let Record::Started(started) = journal::started(1) else { unreachable!() };
        let Record::Restarting(second) = journal::restarting(1, 2) else { unreachable!() };
        let Record::RollingBack(rolling) = journal::rolling_back(1, false) else { unreachable!() };
        let package =
            PackageChange { name: "p".into(), arch: "all".into(), installed: "1".into(), candidate: "2".into() };
        let action = Action {
            verb: Verb::Install,
            update: "u".into(),
            packages: vec![package],
            artifacts_digest: String::new(),
        };
        let digest = accepted.digest.clone();
        let order = Order { actions: vec![action], ..accepted.order.clone() };
        let mut active = Active::new(Accepted { order, ..*accepted });
        assert_eq!(told(&active), (Outcome::Failed, GONE, "no package manager".into(), vec![], 0));

        active.started = Some(*started);
        let (outcome, reason, message, actions, _) = told(&active);
        assert_eq!((outcome, reason, actions.len()), (Outcome::Failed, GONE, 1));
        assert!(message.contains("what came of it is not known: no package manager"), "{message}");

        let ending = |reason| Ending::of(vec![Some(result(reason))], true);
        active.guarded = Some(Guarded { ending: Some(ending(None)), ..Guarded::new(digest.clone()) });
        let not_seen = "it was not looked at again: no package manager";
        assert_eq!(told(&active), (Outcome::Failed, GONE, not_seen.into(), vec![result(None)], 0));

        let settled = vec![Some(result(None))];
        let restarting =
            |boot_id: &str| Restarting { boot_id: boot_id.into(), settled: settled.clone(), ..(*second).clone() };
        active.restarting = Some(restarting("another"));
        assert_eq!(told(&active), (Outcome::Failed, GONE, not_seen.into(), vec![result(None)], 2));
        active.restarting = Some(restarting(&platform::boot_id().unwrap()));
        assert_eq!(told(&active).4, 1, "the second has not taken place yet");

        let sick = Some(ResultReason::CheckFailed);
        active.rolling_back = Some(RollingBack { ending: ending(sick), restarts: 3, ..*rolling });
        let (outcome, reason, message, actions, count) = told(&active);
        assert_eq!((outcome, reason, actions, count), (Outcome::Failed, sick, vec![result(sick)], 3));
        assert!(message.ends_with(not_seen), "{message}");
    }
}
