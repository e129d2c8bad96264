//! What keeps an update from being installed now: gates in order, the first refusal wins.
//!
//! In: a device with everything around it ([`Around`]), and one of its updates ([`Case`]). Out: the first [`Blocked`], if
//! any. The order is that of `Blocked`'s variants: stable reasons come before passing ones, so that a device's status,
//! which holds stable ones only, changes when a person, the device or an object does, never when a window opens. How
//! many devices may install at a time is asked last, of all devices together (see `rollout`).
//!
//! Gates that ask of the device alone are asked once for all its updates.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::approval::{Ruling, Verdict};
use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;

use super::catch_up::Outside;
use super::model::{Cause, Claim, Device, DeviceReport, Failure, Filters, Mode, Name, Offer, Update, UpdateId};
use super::outcome::Blocked;
use super::policy::{Governor, Opening, Resolved, Starts};
use super::window::later;

/// A device that has been offline for so long is not known any more. A machine that is switched off from Friday evening
/// to Monday morning (62 hours) still is.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_hours(3 * 24);

/// The longest pause before what could not even be tried is tried again, unless the policy's first one is longer: a window of every
/// night sees one attempt at least.
pub const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_hours(12);

/// A device, and everything around it.
pub(super) struct Around<'a> {
    /// When.
    pub now: Timestamp,
    /// The device.
    pub device: &'a Device,
    /// Its report.
    pub report: &'a DeviceReport,
    /// It has taken its order, and asks whether it may act on it: then it has a session.
    pub is_asking: bool,
    /// The install that holds it.
    pub claim: Option<&'a Claim>,
    /// Why no group's word counts for it.
    pub no_group: Option<Arc<Blocked>>,
    /// The policy that governs it.
    pub governor: Option<&'a Governor<'a>>,
    /// Since when that policy's rollout is paused.
    pub paused: Option<Timestamp>,
    /// From when on its policy and group act on it.
    pub settles: Option<Timestamp>,
}

/// One of its updates.
pub(super) struct Case<'a> {
    /// The update.
    pub update: &'a Update,
    /// What would be done.
    pub verb: Verb,
    /// As the device offers it; absent for one that is installed and to be taken back.
    pub offer: Option<&'a Offer>,
    /// What its group says of the update; absent where no group has it.
    pub ruling: Option<&'a Ruling>,
    /// What that comes to.
    pub verdict: Option<&'a Verdict>,
    /// Why it is installed nowhere.
    pub stopped: Option<&'a Arc<Blocked>>,
    /// Why the device's ring has not got it yet.
    pub ring_waits: Option<&'a Arc<Blocked>>,
    /// The windows that it follows; absent where the policy cannot be resolved.
    pub opening: Option<&'a Opening<'a>>,
    /// Whether they let it start.
    pub starts: Option<&'a Starts>,
    /// Whether it may start though they do not let it.
    pub outside: Option<&'a Outside>,
}

/// A refusal, and when the clock alone could lift it.
pub(super) type Refusal = (Arc<Blocked>, Option<Timestamp>);

/// The first refusal that asks of the device alone, with its place among all gates.
pub(super) struct DeviceRefusal {
    place: usize,
    refusal: Refusal,
}

impl DeviceRefusal {
    /// What it is.
    pub(super) fn blocked(&self) -> &Arc<Blocked> {
        &self.refusal.0
    }
}

enum Gate {
    Device(fn(&Around<'_>) -> Option<Arc<Blocked>>),
    /// And whether it can be against any update of a device: asked once, so that most need not be asked of each.
    Update(fn(&Around<'_>, &Case<'_>) -> Option<Arc<Blocked>>, fn(&Around<'_>) -> bool),
}

/// Gates that can be against an update of a device: the place of each is a bit.
#[derive(Clone, Copy)]
pub(super) struct Asked(u32);

// As many as it has bits.
const _: () = assert!(GATES.len() <= 32);

/// In the order of `Blocked`'s variants.
const GATES: &[Gate] = &[
    Gate::Device(has_group),
    Gate::Update(is_approved, always),
    Gate::Update(is_not_held, always),
    Gate::Device(has_policy),
    Gate::Device(policy_resolves),
    Gate::Update(own_window_can_be_used, always),
    Gate::Device(policy_acts),
    Gate::Update(policy_installs, policy_only_downloads),
    Gate::Update(policy_takes_it, policy_filters),
    Gate::Update(policy_restarts, policy_never_restarts),
    Gate::Device(policy_is_not_suspended),
    Gate::Update(rollout_is_not_paused, policy_is_paused),
    Gate::Device(device_is_not_suspended),
    Gate::Device(device_is_in_use),
    Gate::Update(device_has_time_zone, always),
    Gate::Device(device_was_heard_of),
    Gate::Device(device_is_online),
    Gate::Device(clock_is_right),
    Gate::Device(device_has_no_problem),
    Gate::Update(is_not_stopped, always),
    Gate::Update(was_not_rolled_back, something_failed),
    Gate::Update(has_retries_left, something_failed),
    Gate::Device(nothing_holds_the_device),
    Gate::Device(has_settled),
    Gate::Update(backoff_is_over, something_failed),
    Gate::Update(ring_has_it, always),
    Gate::Update(window_lets_it_start, always),
];

impl Around<'_> {
    /// The first refusal that asks of the device alone.
    pub(super) fn refusal(&self) -> Option<DeviceRefusal> {
        let (place, blocked) = GATES.iter().enumerate().find_map(|(place, gate)| match gate {
            Gate::Device(gate) => Some((place, gate(self)?)),
            Gate::Update(..) => None,
        })?;
        let lifted = match &*blocked {
            Blocked::InstallRunning { .. } => self.claim.map(released).filter(|at| *at > self.now),
            Blocked::Settling { until } => Some(*until),
            _ => None,
        };
        Some(DeviceRefusal { place, refusal: (blocked, lifted) })
    }

    /// Which gates are to be asked of the device's updates: those before the one that refuses the device.
    pub(super) fn asked(&self, device: Option<&DeviceRefusal>) -> Asked {
        let upto = device.map_or(GATES.len(), |device| device.place);
        let gates = GATES.iter().take(upto).enumerate();
        let asked = gates.filter(|(_, gate)| matches!(gate, Gate::Update(_, can_refuse) if can_refuse(self)));
        Asked(asked.fold(0, |asked, (place, _)| asked | 1 << place))
    }

    /// What keeps the update from being installed now.
    pub(super) fn refusal_of(&self, case: &Case<'_>, asked: Asked, device: Option<&DeviceRefusal>) -> Option<Refusal> {
        let update = asked.gates().find_map(|gate| match gate {
            Gate::Update(gate, _) => gate(self, case),
            Gate::Device(_) => None,
        });
        let Some(blocked) = update else { return device.map(|device| device.refusal.clone()) };
        // When a decision's time is over something else decides, perhaps for another window.
        let decided_anew = case.ruling.and_then(|ruling| ruling.until);
        let retried = case.ruling.and_then(|ruling| ruling.retry_from);
        let lifted = match &*blocked {
            Blocked::RetryBackoff { until } => Some(retried.map_or(*until, |from| from.min(*until))),
            Blocked::RolledBack { .. } | Blocked::RetriesExhausted { .. } | Blocked::UpdateStopped { .. } => retried,
            Blocked::Aging { until } => Some(decided_anew.map_or(*until, |anew| anew.min(*until))),
            Blocked::Frozen { opens, .. } | Blocked::FreezeAhead { opens, .. } if needs_no_window(self, case) => {
                opens.iter().copied().chain(decided_anew).min()
            }
            Blocked::WindowClosed { .. }
            | Blocked::Frozen { .. }
            | Blocked::WindowEnding { .. }
            | Blocked::OnBattery => {
                let opens = case.starts.and_then(|starts| starts.next);
                opens.into_iter().chain(case.outside.and_then(|outside| outside.from)).chain(decided_anew).min()
            }
            Blocked::RingWaits { until, .. } => until.filter(|until| *until > self.now),
            Blocked::RolloutPaused { .. } => self.resumed().into_iter().chain(decided_anew).min(),
            Blocked::Held => None,
            _ => decided_anew,
        };
        Some((blocked, lifted))
    }

    /// Why its policy begins nothing new, should its rollout be paused.
    pub(super) fn pause(&self) -> Option<Arc<Blocked>> {
        let policy = &self.governor?.policy.name;
        self.paused.map(|since| Arc::new(Blocked::RolloutPaused { policy: policy.clone(), since }))
    }

    /// When the rollout goes on, should a person have said so of an instant that is still to come.
    fn resumed(&self) -> Option<Timestamp> {
        self.settings()?.settings.rollout.resumed.filter(|resumed| *resumed > self.now)
    }

    fn settings(&self) -> Option<&Resolved<'_>> {
        self.governor?.resolved.as_ref().ok()
    }
}

impl Asked {
    fn gates(self) -> impl Iterator<Item = &'static Gate> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let gate = GATES.get(usize::try_from(left.trailing_zeros()).ok()?)?;
            // The lowest bit.
            left &= left - 1;
            Some(gate)
        })
    }
}

/// When a claim lets go of its device, if no result comes: its install cannot be at work any more.
pub(super) fn released(claim: &Claim) -> Timestamp {
    later(later(claim.not_after, claim.limit), claim.restart)
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
pub(super) fn failure<'a>(device: &'a Device, update: &Name) -> Option<&'a Failure> {
    // Of most devices there is none: the name need not even be looked at.
    if device.failures.is_empty() {
        return None;
    }
    let of_update = device.failures.iter().filter(|failure| failure.update == *update);
    of_update.max_by_key(|failure| (failure.attempts, failure.last))
}

/// Failures of a device that a check found after an order whose work stays, with the updates; of one update the worst.
pub(super) fn checked(device: &Device) -> impl Iterator<Item = (&Failure, UpdateId)> {
    device.failures.iter().filter_map(|one| match one.cause {
        Cause::Check(update) => {
            let is_worst = failure(device, &one.update).is_some_and(|worst| std::ptr::eq(worst, one));
            (one.tells() && is_worst).then_some((one, update))
        }
        Cause::Update | Cause::RolledBack | Cause::Other | Cause::Passing => None,
    })
}

fn always(_: &Around<'_>) -> bool {
    true
}

fn policy_only_downloads(around: &Around<'_>) -> bool {
    around.settings().is_some_and(|policy| policy.settings.mode == Mode::DownloadOnly)
}

fn policy_filters(around: &Around<'_>) -> bool {
    around.settings().is_some_and(|policy| policy.settings.filters != Filters::default())
}

fn policy_never_restarts(around: &Around<'_>) -> bool {
    around.settings().is_some_and(|policy| policy.settings.restart.when == RestartWhen::Never)
}

fn policy_is_paused(around: &Around<'_>) -> bool {
    around.paused.is_some()
}

fn something_failed(around: &Around<'_>) -> bool {
    !around.device.failures.is_empty()
}

fn has_group(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.no_group.clone()
}

fn is_approved(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.verdict?.refusal.clone()
}

fn is_not_held(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.offer.is_some_and(|offer| offer.held).then(|| Arc::new(Blocked::Held))
}

fn has_policy(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.governor.is_none().then(|| Arc::new(Blocked::NoPolicy))
}

/// Four reasons: the policy or one of its windows cannot be understood, a window does not exist, or all are too short.
fn policy_resolves(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.governor?.stalled().cloned()
}

fn own_window_can_be_used(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.opening?.unusable.clone()
}

fn policy_acts(around: &Around<'_>) -> Option<Arc<Blocked>> {
    let policy = &around.governor?.policy.name;
    (around.settings()?.settings.mode == Mode::Audit).then(|| Arc::new(Blocked::PolicyAudit { policy: policy.clone() }))
}

fn policy_installs(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let policy = &around.governor?.policy.name;
    let only_downloads = around.settings()?.settings.mode == Mode::DownloadOnly;
    let refused = only_downloads
        && match case.verb {
            Verb::Install | Verb::Uninstall | Verb::Restart => true,
            Verb::Download => case.offer.is_some_and(|offer| offer.downloaded),
        };
    refused.then(|| Arc::new(Blocked::PolicyDownloadOnly { policy: policy.clone() }))
}

fn policy_restarts(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let policy = &around.governor?.policy.name;
    let never = case.verb == Verb::Restart && around.settings()?.settings.restart.when == RestartWhen::Never;
    never.then(|| Arc::new(Blocked::NeverRestarts { policy: policy.clone() }))
}

/// A filter says what is put on devices; what is to be taken back is no matter of it.
fn policy_takes_it(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let Filters { skip_restart, classifications, exclude_packages } = &around.settings()?.settings.filters;
    let offer = case.offer?;
    let filter = if *skip_restart && offer.requires_restart == Tristate::Yes {
        "skipRestart"
    } else if !classifications.is_empty() && !classifications.contains(&case.update.classification) {
        "classifications"
    } else if exclude_packages.iter().any(|glob| case.update.packages.iter().any(|name| glob.matches(name))) {
        "excludePackages"
    } else {
        return None;
    };
    Some(Arc::new(Blocked::Filtered { policy: around.governor?.policy.name.clone(), filter }))
}

fn policy_is_not_suspended(around: &Around<'_>) -> Option<Arc<Blocked>> {
    let policy = &around.governor?.policy.name;
    around.settings()?.settings.suspended.then(|| Arc::new(Blocked::PolicySuspended { policy: policy.clone() }))
}

/// What has done harm can be taken back all the same.
fn rollout_is_not_paused(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    around.pause().filter(|_| case.verb != Verb::Uninstall)
}

fn device_is_not_suspended(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.device.suspended.then(|| Arc::new(Blocked::DeviceSuspended))
}

fn device_is_in_use(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.device.retired.then(|| Arc::new(Blocked::DeviceRetired))
}

/// Also where another window is on a named clock: which windows a device has must not depend on a typo.
fn device_has_time_zone(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.opening?.no_zone.clone()
}

fn device_was_heard_of(around: &Around<'_>) -> Option<Arc<Blocked>> {
    is_stale(around.device, around.now).then(|| Arc::new(Blocked::DeviceStale))
}

/// No order is made for a device that could not take it, so that it takes no place from one that can.
fn device_is_online(around: &Around<'_>) -> Option<Arc<Blocked>> {
    (!around.is_asking && !around.device.online).then(|| Arc::new(Blocked::DeviceOffline))
}

/// Its agent would refuse the order.
fn clock_is_right(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.device.clock_off.filter(|_| !around.is_asking).map(|seconds| Arc::new(Blocked::ClockOff { seconds }))
}

fn device_has_no_problem(around: &Around<'_>) -> Option<Arc<Blocked>> {
    let blocking = around.report.problems.iter().copied().filter(|code| code.blocks_installs());
    blocking.min().map(|code| Arc::new(Blocked::DeviceProblem { code }))
}

/// What a device could not live with is not tried on it again, whatever the policy says of retries.
fn was_not_rolled_back(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let failure = counted_failure(around, case).filter(|failure| failure.cause == Cause::RolledBack)?;
    (case.verb != Verb::Uninstall).then(|| Arc::new(Blocked::RolledBack { at: failure.last }))
}

fn has_retries_left(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let Failure { attempts, cause, .. } = *counted_failure(around, case)?;
    match cause {
        Cause::Passing => return None,
        // What was found of an update is a reason to take it back.
        Cause::Check(_) if case.verb == Verb::Uninstall => return None,
        Cause::Check(_) | Cause::Update | Cause::RolledBack | Cause::Other => {}
    }
    let exhausted = attempts > around.settings()?.settings.retry_limit;
    exhausted.then(|| Arc::new(Blocked::RetriesExhausted { attempts }))
}

fn nothing_holds_the_device(around: &Around<'_>) -> Option<Arc<Blocked>> {
    around.claim.map(|claim| Arc::new(Blocked::InstallRunning { sequence: claim.sequence }))
}

/// Its policy or group may be there for a moment only, between two that are applied one after the other.
fn has_settled(around: &Around<'_>) -> Option<Arc<Blocked>> {
    let until = around.settles.filter(|until| around.now < *until)?;
    Some(Arc::new(Blocked::Settling { until }))
}

fn backoff_is_over(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    let failure = failure(around.device, &case.update.id)?;
    let pardoned = case.ruling.and_then(|ruling| ruling.retry_failed_before);
    if pardoned.is_some_and(|before| failure.again < before) {
        return None;
    }
    let doublings = failure.attempts.saturating_sub(1).min(30);
    let first = around.settings()?.settings.retry_backoff;
    let wait = first.saturating_mul(1 << doublings);
    let wait = if failure.cause == Cause::Passing { wait.min(LONGEST_BACKOFF.max(first)) } else { wait };
    let until = later(failure.again, wait);
    (around.now < until).then(|| Arc::new(Blocked::RetryBackoff { until }))
}

/// An update that failed is taken back all the same: the more so.
fn is_not_stopped(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.stopped.filter(|_| case.verb != Verb::Uninstall).cloned()
}

/// Rings are about what changes a device by what is new: neither about downloads nor about what was there before.
fn ring_has_it(_: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    case.ring_waits.filter(|_| case.verb == Verb::Install).cloned()
}

fn window_lets_it_start(around: &Around<'_>, case: &Case<'_>) -> Option<Arc<Blocked>> {
    last_start(around, case).err()
}

/// The last instant at which something may start.
#[derive(Clone, Copy)]
pub(super) struct LastStart {
    /// When.
    pub at: Timestamp,
    /// Its windows say so, for the time that it is expected to take; else whatever it is installed with must start by
    /// then.
    pub by_windows: bool,
}

/// The last instant at which it may start, or why it may not start now.
pub(super) fn last_start(around: &Around<'_>, case: &Case<'_>) -> Result<LastStart, Arc<Blocked>> {
    let without = |at: Timestamp| LastStart { at, by_windows: false };
    let (Some(opening), Some(starts)) = (case.opening, case.starts) else {
        return Err(Arc::new(Blocked::WindowClosed { opens: None }));
    };
    if needs_no_window(around, case) {
        return opening.unscheduled.clone().map(without);
    }
    match (&starts.last, case.outside) {
        (Ok(at), _) => Ok(LastStart { at: *at, by_windows: true }),
        (Err(_), Some(Outside { until: Some(until), .. })) => Ok(without(*until)),
        (Err(closed), outside) => Err(outside.and_then(|outside| outside.why.as_ref()).unwrap_or(closed).clone()),
    }
}

/// Whether a restart may follow if it starts by its windows: restarts keep to those of the policy.
pub(super) fn follows_policy(around: &Around<'_>, case: &Case<'_>) -> bool {
    !has_own_window(case) && !needs_no_window(around, case)
}

fn has_own_window(case: &Case<'_>) -> bool {
    case.ruling.is_some_and(|ruling| ruling.window.is_some())
}

/// Whether it may start at any time, freezes aside. A window of its own is always waited for.
pub(super) fn needs_no_window(around: &Around<'_>, case: &Case<'_>) -> bool {
    let Some(policy) = around.settings().filter(|_| !has_own_window(case)) else { return false };
    match policy.settings.mode {
        Mode::DownloadOnly => policy.settings.windows.is_empty(),
        Mode::InstallImmediately => case.offer.is_some_and(interrupts_nothing),
        Mode::Audit | Mode::Install => false,
    }
}

/// Neither a restart nor an interruption of a service follows, as the device knows.
fn interrupts_nothing(offer: &Offer) -> bool {
    offer.requires_restart == Tristate::No && offer.interrupts_service == Tristate::No
}

/// Unless somebody has said since that it is to be tried once more.
fn counted_failure<'a>(around: &Around<'a>, case: &Case<'_>) -> Option<&'a Failure> {
    let failure = failure(around.device, &case.update.id)?;
    let pardoned = case.ruling.and_then(|ruling| ruling.retry_failed_before);
    pardoned.is_none_or(|before| failure.last >= before).then_some(failure)
}
