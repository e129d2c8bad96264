//! What keeps an update from being installed now: gates in order, the first refusal wins.
//!
//! In: a [`Case`], one update of one device with everything around it. Out: the first [`Blocked`], if any. The order is
//! that of `Blocked`'s variants: stable reasons come before passing ones, so that a device's status, which holds stable
//! ones only, changes when a person, the device or an object does, never when a window opens. How many devices may
//! install at a time is asked last, of all devices together (see `rollout`).

use jiff::{SignedDuration, Timestamp};

use super::approval::Verdict;
use super::model::{Claim, Device, DeviceReport, Failure, Mode, Update};
use super::outcome::{Blocked, Decision};
use super::policy::{Governor, Opening, Resolved};
use super::window::later;

/// A device that has been offline for so long is not known any more. A machine that is switched off from Friday evening
/// to Monday morning (62 hours) still is.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_hours(3 * 24);

/// One update of one device, and everything around it.
pub(super) struct Case<'a> {
    /// When.
    pub now: Timestamp,
    /// The device.
    pub device: &'a Device,
    /// Its report.
    pub report: &'a DeviceReport,
    /// Whether it can be given an order.
    pub online: bool,
    /// The install that holds it.
    pub claim: Option<&'a Claim>,
    /// The update.
    pub update: &'a Update,
    /// What its group says of the update; absent where no group has it.
    pub verdict: Option<&'a Verdict>,
    /// The policy that governs it.
    pub governor: Option<&'a Governor<'a>>,
    /// Whether that policy's windows let an install start; absent where the policy cannot be resolved.
    pub opening: Option<&'a Opening>,
}

type Gate = fn(&Case<'_>) -> Option<Blocked>;

/// In the order of `Blocked`'s variants.
const GATES: &[Gate] = &[
    has_group,
    is_approved,
    is_not_held,
    has_policy,
    policy_resolves,
    policy_installs,
    policy_is_not_suspended,
    device_is_not_suspended,
    device_is_in_use,
    device_has_time_zone,
    device_was_heard_of,
    device_is_online,
    device_has_no_problem,
    has_retries_left,
    nothing_holds_the_device,
    backoff_is_over,
    window_lets_it_start,
];

/// What keeps the update from being installed now, and when the clock alone could lift that.
pub(super) fn refusal(case: &Case<'_>) -> Option<(Blocked, Option<Timestamp>)> {
    let blocked = GATES.iter().find_map(|gate| gate(case))?;
    let lifted = match &blocked {
        Blocked::Waived { until } | Blocked::RetryBackoff { until } => Some(*until),
        Blocked::InstallRunning { .. } => case.claim.map(released).filter(|at| *at > case.now),
        Blocked::WindowClosed { .. } | Blocked::Frozen { .. } | Blocked::WindowEnding { .. } => {
            case.opening.and_then(|opening| opening.next_start)
        }
        _ => None,
    };
    Some((blocked, lifted))
}

/// When a claim lets go of its device, if no result comes: its install cannot be at work any more.
pub(super) fn released(claim: &Claim) -> Timestamp {
    later(claim.not_after, claim.limit)
}

/// From when on a device that stays offline is not known any more: the beginning of time if nobody knows since when it
/// is offline. None while it is online.
pub(super) fn stale_from(device: &Device) -> Option<Timestamp> {
    let offline_since = || device.online_since.map_or(Timestamp::MIN, |since| later(since, STALE_AFTER));
    (!device.online).then(offline_since)
}

/// Whether the device was not heard of for too long.
pub(super) fn is_stale(device: &Device, now: Timestamp) -> bool {
    stale_from(device).is_some_and(|from| now >= from)
}

/// The failure of `update` on `device`: the worst, should there be several.
pub(super) fn failure<'a>(device: &'a Device, update: &str) -> Option<&'a Failure> {
    let of_update = device.failures.iter().filter(|failure| failure.update == update);
    of_update.max_by_key(|failure| (failure.attempts, failure.last))
}

fn has_group(case: &Case<'_>) -> Option<Blocked> {
    case.verdict.is_none().then_some(Blocked::NoGroup)
}

fn is_approved(case: &Case<'_>) -> Option<Blocked> {
    let verdict = case.verdict?;
    match (verdict.decision, verdict.until) {
        (Decision::Approved, _) => None,
        (Decision::AwaitingApproval, _) => Some(Blocked::AwaitingApproval),
        (Decision::Waived, Some(until)) => Some(Blocked::Waived { until }),
        (Decision::Ignored | Decision::Waived, _) => Some(Blocked::Ignored),
    }
}

fn is_not_held(case: &Case<'_>) -> Option<Blocked> {
    case.update.held.then_some(Blocked::Held)
}

fn has_policy(case: &Case<'_>) -> Option<Blocked> {
    case.governor.is_none().then_some(Blocked::NoPolicy)
}

/// Four reasons: the policy or one of its windows cannot be understood, a window does not exist, or all are too short.
fn policy_resolves(case: &Case<'_>) -> Option<Blocked> {
    case.governor?.stalled().cloned()
}

fn policy_installs(case: &Case<'_>) -> Option<Blocked> {
    match case.settings()?.settings.mode {
        Mode::Audit => Some(Blocked::PolicyAudit { policy: case.policy_name()? }),
        Mode::Install => None,
    }
}

fn policy_is_not_suspended(case: &Case<'_>) -> Option<Blocked> {
    let suspended = case.settings()?.settings.suspended;
    if suspended { Some(Blocked::PolicySuspended { policy: case.policy_name()? }) } else { None }
}

fn device_is_not_suspended(case: &Case<'_>) -> Option<Blocked> {
    case.device.suspended.then_some(Blocked::DeviceSuspended)
}

fn device_is_in_use(case: &Case<'_>) -> Option<Blocked> {
    case.device.retired.then_some(Blocked::DeviceRetired)
}

/// Also where another window of the policy is on a named clock: which windows a device has must not depend on a typo.
fn device_has_time_zone(case: &Case<'_>) -> Option<Blocked> {
    let window = case.settings()?.needs_zone()?;
    match case.device.zone {
        Some(Ok(_)) => None,
        Some(Err(_)) | None => Some(Blocked::NoTimeZone { window: window.to_owned() }),
    }
}

fn device_was_heard_of(case: &Case<'_>) -> Option<Blocked> {
    is_stale(case.device, case.now).then_some(Blocked::DeviceStale)
}

/// No order is made for a device that could not take it, so that it takes no place from one that can.
fn device_is_online(case: &Case<'_>) -> Option<Blocked> {
    (!case.online).then_some(Blocked::DeviceOffline)
}

fn device_has_no_problem(case: &Case<'_>) -> Option<Blocked> {
    let blocking = case.report.problems.iter().copied().filter(|code| code.blocks_installs());
    blocking.min().map(|code| Blocked::DeviceProblem { code })
}

fn has_retries_left(case: &Case<'_>) -> Option<Blocked> {
    let attempts = failure(case.device, &case.update.id)?.attempts;
    (attempts > case.settings()?.settings.retry_limit).then_some(Blocked::RetriesExhausted { attempts })
}

fn nothing_holds_the_device(case: &Case<'_>) -> Option<Blocked> {
    case.claim.map(|claim| Blocked::InstallRunning { sequence: claim.sequence })
}

fn backoff_is_over(case: &Case<'_>) -> Option<Blocked> {
    let failure = failure(case.device, &case.update.id)?;
    let doublings = failure.attempts.saturating_sub(1).min(30);
    let wait = case.settings()?.settings.retry_backoff.saturating_mul(1 << doublings);
    let until = later(failure.last, wait);
    (case.now < until).then_some(Blocked::RetryBackoff { until })
}

fn window_lets_it_start(case: &Case<'_>) -> Option<Blocked> {
    match case.opening {
        Some(opening) => opening.last_start.as_ref().err().cloned(),
        None => Some(Blocked::WindowClosed { opens: None }),
    }
}

impl<'a> Case<'a> {
    fn settings(&self) -> Option<&'a Resolved<'a>> {
        self.governor?.resolved.as_ref().ok()
    }

    fn policy_name(&self) -> Option<String> {
        Some(self.governor?.policy.name.clone())
    }
}
