//! One update of a device, looked at from all sides, and what all of a device's come to.

use std::rc::Rc;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;

use crate::durations::Share;
use crate::gates::{self, LastStart};
use crate::model::{Device, DeviceReport, Offer, Restart, Update, UpdateId};
use crate::outcome::{Blocked, Compliance, Decision, Due, State, UpdatePlan};
use crate::policy::Opening;

/// Which of a device's updates is looked at.
#[derive(Clone, Copy)]
pub(super) enum Asking<'o> {
    /// One that it offers, and what would be done with it.
    Offered(&'o Offer, Verb),
    /// One that is installed and can be taken back.
    Installed(UpdateId),
    /// The restart that the device waits for.
    Restart(UpdateId),
}

/// One update of a device, looked at from all sides.
pub(super) struct Looked<'a> {
    pub(super) plan: UpdatePlan,
    /// The number of its id.
    pub(super) id: usize,
    /// It, or an earlier version of it, is approved and missing.
    pub(super) is_missing: bool,
    /// The last instant at which it may start alone; none for what is blocked.
    pub(super) last_start: Option<LastStart>,
    /// The window of its own that it follows; none where it follows those of its policy.
    pub(super) own_opening: Option<Rc<Opening<'a>>>,
    /// It may start, and a restart may follow if it starts by the policy's windows.
    pub(super) follows_policy: bool,
    /// How long it is expected to take.
    pub(super) share: Share,
    /// Since when it is known; none for what is not offered.
    pub(super) since: Option<Timestamp>,
    /// Until when it must be installed, of what is missing or ages.
    pub(super) deadline: Option<Timestamp>,
    /// When the clock alone approves it.
    pub(super) approved_at: Option<Timestamp>,
    /// From when on it may start outside its windows, freezes aside; none if it waits for one.
    pub(super) outside_from: Option<Timestamp>,
}

impl Asking<'_> {
    pub(super) fn update(self) -> UpdateId {
        match self {
            Self::Offered(offer, _) => offer.update,
            Self::Installed(update) | Self::Restart(update) => update,
        }
    }
}

/// What is worse to overlook comes first: a device that is not heard of, an install at work, a decision against.
pub(super) fn state(device: &Device, update: &Update, asking: Asking<'_>, decision: Decision) -> State {
    let claim = device.current.as_ref().filter(|claim| claim.updates.contains(&update.id));
    let claim = claim.filter(|claim| match asking {
        Asking::Offered(..) => matches!(claim.verb, Verb::Install | Verb::Download),
        Asking::Installed(_) => claim.verb == Verb::Uninstall,
        Asking::Restart(_) => claim.verb == Verb::Restart,
    });
    // An order that was out of date or withdrawn is no failure of the update.
    let failed = || gates::failure(device, &update.id).is_some_and(|failure| failure.attempts > 0);
    match (claim, decision, asking) {
        (Some(claim), _, _) if claim.granted => State::Installing,
        (Some(_), _, _) => State::Pending,
        (None, _, Asking::Installed(_) | Asking::Restart(_)) if failed() => State::Failed,
        (None, _, Asking::Restart(_)) => State::RestartRequired,
        (None, _, Asking::Installed(_)) => State::Installed,
        (None, Decision::Ignored | Decision::Waived | Decision::Remove, Asking::Offered(..)) => State::Ignored,
        (None, _, Asking::Offered(offer, _)) if offer.held => State::Held,
        (None, _, Asking::Offered(..)) if failed() => State::Failed,
        (None, _, Asking::Offered(offer, _)) if offer.downloaded => State::Downloaded,
        (None, _, Asking::Offered(..)) => State::Missing,
    }
}

/// An order has one verb: what is to be taken back goes first, then what is installed, then a restart alone.
pub(super) fn one_verb(looked: &mut [Looked<'_>]) {
    let rank = |verb: Verb| match verb {
        Verb::Uninstall => 0,
        Verb::Install | Verb::Download => 1,
        Verb::Restart => 2,
    };
    let is_free = |looked: &Looked<'_>| looked.plan.blocked.is_none();
    let first = looked.iter().filter(|looked| is_free(looked)).map(|looked| rank(looked.plan.verb)).min();
    let Some(first) = first else { return };
    for looked in looked.iter_mut().filter(|looked| is_free(looked) && rank(looked.plan.verb) > first) {
        looked.plan.blocked = Some(Arc::new(Blocked::OthersFirst));
    }
}

/// What blocks an update blocks every other that the report tells under the same id: the order goes by ids.
pub(super) fn block_twins(looked: &mut [Looked<'_>]) {
    let ids = looked.iter().enumerate();
    let mut ids: Vec<(usize, Verb, usize)> = ids.map(|(place, looked)| (looked.id, looked.plan.verb, place)).collect();
    ids.sort_unstable();
    let twins = ids.chunk_by(|(id, verb, _), other| (*id, *verb) == (other.0, other.1));
    let twins = twins.filter(|twins| twins.len() > 1);
    for twins in twins {
        let plan = |place: usize| looked.get(place).map(|looked| &looked.plan);
        let blocked = twins.iter().filter_map(|(_, _, place)| plan(*place)).find(|plan| plan.blocked.is_some());
        let Some((blocked, eligible_at)) = blocked.map(|plan| (plan.blocked.clone(), plan.eligible_at)) else {
            continue;
        };
        for (_, _, place) in twins {
            if let Some(looked) = looked.get_mut(*place).filter(|looked| looked.plan.blocked.is_none()) {
                (looked.plan.blocked, looked.plan.eligible_at) = (blocked.clone(), eligible_at);
            }
        }
    }
}

/// What follows an order, if restarts may begin `until` then.
pub(super) fn restart_rule(restart: &Restart, verb: Verb, until: Option<Timestamp>) -> RestartRule {
    let seconds = |duration: SignedDuration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    // A restart alone leaves no service as it was.
    let services = restart.services && matches!(verb, Verb::Install | Verb::Uninstall);
    match until {
        Some(not_after) if (restart.when != RestartWhen::Never || services) && verb != Verb::Download => RestartRule {
            when: restart.when,
            not_after,
            within_seconds: seconds(restart.within),
            warning_seconds: seconds(restart.warning),
            message: restart.message.clone(),
            limit: restart.limit,
            services,
        },
        _ => RestartRule::never(),
    }
}

/// Whether a device complies, by a report that is believed, recent, and of a device with a policy and a group.
///
/// An update that is approved and held back on the device itself is missing: the hold says why it is not installed, not
/// that it need not be. What nobody approved, or somebody decided against, does not count. A report that may not tell
/// everything (a repository that could not be read) is never up to date, as one that was cut is not; nor is a device of
/// whose updates it cannot be told whether they are approved. What may still be missing, because its deadline is to come, is no
/// breach; removals and restarts have no deadline.
pub(super) fn compliance(report: Option<&DeviceReport>, updates: &[Looked<'_>], now: Timestamp) -> Compliance {
    let Some(report) = report else { return Compliance::Unknown };
    let missing = || updates.iter().filter(|update| update.is_missing);
    if report.truncated {
        Compliance::Truncated
    } else if missing().any(|update| update.deadline.is_some_and(|by| by <= now)) {
        Compliance::DeadlineMissed
    } else if missing().any(|update| update.deadline.is_none()) {
        Compliance::UpdatesMissing
    } else if updates.iter().any(|update| update.plan.verb == Verb::Uninstall) {
        Compliance::RemovalDue
    } else if report.restart_required == Tristate::Yes {
        Compliance::RestartRequired
    } else if report.problems.iter().any(|code| code.hides_updates())
        || updates.iter().any(|update| update.plan.blocked.as_ref().is_some_and(|blocked| blocked.is_doubt()))
    {
        Compliance::Unknown
    } else if missing().next().is_some() {
        Compliance::WithinDeadline
    } else {
        Compliance::UpToDate
    }
}

/// The earliest deadline of what is missing.
pub(super) fn due(updates: &[Looked<'_>], now: Timestamp) -> Option<Due> {
    let missing = || updates.iter().filter(|update| update.is_missing);
    let at = missing().filter_map(|update| update.deadline).min()?;
    let of_it = missing().filter(|update| update.deadline == Some(at));
    Some(Due { at, overdue: at <= now, updates: of_it.map(|update| update.plan.update).collect() })
}
