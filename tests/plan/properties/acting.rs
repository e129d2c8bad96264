//! What is installed, taken back or restarted, and when.

use proptest::prelude::*;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Claim, Device, Name, Snapshot};
use patchwarden_plan::outcome::{Decision, DevicePlan, Install, UpdatePlan};
use patchwarden_plan::{Blocked, Plan, may_act, may_restart, plan};
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;
use proptest::test_runner::TestCaseResult;

use super::told::stale;
use super::{NANOSECOND, claim, id_of, installed, offered, pairs, without_look};
use crate::reference::{self, What};

/// Promises 1 and 2: approved at that moment, inside a window, before the cutoff, with room to end; and nothing
/// that may start is left out but for want of a place.
pub(super) fn an_update_is_installed_or_waits_for_a_place_exactly_when_it_may(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let takes_back = installed(snapshot, device)
            .iter()
            .any(|update| reference::eligible(snapshot, device, What::TakeBack(update), now));
        let offers = device.report.iter().flat_map(|report| &report.offers);
        let installs_some =
            offers.into_iter().any(|it| reference::eligible(snapshot, device, What::with(snapshot, device, it), now));
        let mut told = decided.updates.iter().filter(|it| !it.is_checked());
        let restart = told.next_back().filter(|it| id_of(snapshot, it) == "restart".into());
        let waits = device.report.as_ref().is_ok_and(|report| report.restart_required == Tristate::Yes);
        prop_assert_eq!(restart.is_some(), waits);
        if let Some(planned) = restart {
            let starts = decided.install.as_ref().is_some_and(|it| it.verb == Verb::Restart);
            let after_others = planned.blocked.as_deref() == Some(&Blocked::OthersFirst);
            let may = reference::eligible(snapshot, device, What::Restart, now);
            prop_assert!(!after_others || takes_back || installs_some);
            prop_assert_eq!(starts || after_others || waits_for_a_place(device, planned), may, "{:?}", planned);
            prop_assert_eq!(starts, planned.blocked.is_none());
        }
        let verb = decided.install.as_ref().map(|install| install.verb);
        for update in installed(snapshot, device) {
            let planned = removals(snapshot, device, &decided).into_iter().find(|(id, _)| *id == update.id);
            prop_assert_eq!(planned.is_some(), reference::removes(snapshot, device, update, now));
            let Some((_, planned)) = planned else { continue };
            prop_assert_eq!(planned.decision, Decision::Remove);
            let orders = |install: &Install| install.verb == Verb::Uninstall && install.updates.contains(&update.id);
            let starts = decided.install.as_ref().is_some_and(orders);
            let may = reference::eligible(snapshot, device, What::TakeBack(update), now);
            prop_assert_eq!(starts || waits_for_a_place(device, planned), may, "{}: {:?}", update.id, planned);
            prop_assert_eq!(starts, planned.blocked.is_none());
        }
        for (offer, update, decided_update) in offered(snapshot, device, &decided) {
            let what = What::with(snapshot, device, offer);
            let expected = if matches!(what, What::Download(_)) { Verb::Download } else { Verb::Install };
            let orders = |install: &Install| install.updates.contains(&update.id);
            let installs = verb == Some(expected) && decided.install.as_ref().is_some_and(orders);
            let after_removals = decided_update.blocked.as_deref() == Some(&Blocked::OthersFirst);
            prop_assert!(!after_removals || takes_back);
            prop_assert!(!installs || !takes_back);
            let waits = after_removals || waits_for_a_place(device, decided_update);
            // While something is taken back it is not asked yet what fits in together.
            let may = if takes_back {
                reference::eligible_by_itself(snapshot, device, what, now)
            } else {
                reference::eligible(snapshot, device, what, now)
            };
            prop_assert_eq!(installs || waits, may, "{} on {}: {:?}", update.id, device.name, decided_update);
            prop_assert_eq!(installs, decided_update.blocked.is_none());
            prop_assert_eq!(
                decided_update.decision == Decision::Approved,
                reference::approved(snapshot, device, offer, now)
            );
        }
    }
    Ok(())
}

pub(super) fn an_install_may_start_until_the_last_instant_that_a_window_allows(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let Some(install) = decided.install else { continue };
        let Install { verb, updates, since, policy, dependencies, not_after, limit, expected, restart } = install;
        let governs = reference::policy_of(snapshot, device).expect("a policy");
        let settings = governs.settings.as_ref().expect("settings");
        prop_assert_eq!(&policy, &governs.name);
        prop_assert_eq!((dependencies, limit), (settings.dependencies, settings.install_limit));
        if verb == Verb::Install {
            let together = reference::install(snapshot, device, now).expect("an install");
            prop_assert_eq!((&updates, expected), (&together.0, together.1));
        } else {
            prop_assert_eq!(expected, limit);
        }
        prop_assert!(!updates.is_empty() && expected <= limit);
        let known = if matches!(verb, Verb::Install | Verb::Download) { updates.len() } else { 0 };
        prop_assert!(since.len() == known && since.iter().all(|since| *since <= now));
        let offers = &device.report.as_ref().expect("a report").offers;
        let ordered: Vec<What<'_>> = match verb {
            Verb::Uninstall => installed(snapshot, device).into_iter().map(What::TakeBack).collect(),
            Verb::Restart => vec![What::Restart],
            Verb::Install | Verb::Download => offers.iter().map(|it| What::with(snapshot, device, it)).collect(),
        };
        let is_ordered = |what: &What<'_>| match what {
            What::TakeBack(update) => updates.contains(&update.id),
            What::Restart => true,
            What::Install(offer) | What::Download(offer) => updates.contains(&reference::update_of(snapshot, offer).id),
        };
        let last = |at| {
            let ordered = ordered.iter().filter(|what| is_ordered(what));
            ordered.map(|what| reference::last_start(snapshot, device, *what, now, at)).min().flatten()
        };
        prop_assert_eq!(Some(not_after), last(now));
        prop_assert!(not_after == Timestamp::MAX || last(not_after).is_some(), "it may not start at {}", not_after);
        let by_windows =
            |what: &&What<'_>| is_ordered(what) && reference::goes_by_windows(snapshot, device, **what, now);
        for what in ordered.iter().filter(by_windows) {
            let ends = reference::open_until(snapshot, device, *what, now, not_after);
            let in_time = ends.is_some_and(|end| not_after + expected <= end);
            prop_assert!(in_time, "it is not expected to end by {:?}", ends);
        }
        let until = ordered.iter().filter(|what| is_ordered(what));
        let until = until.map(|what| reference::restart_until(snapshot, device, *what, now));
        let until = until.reduce(|one, other| one.zip(other).map(|(one, other)| one.min(other))).flatten();
        let services = settings.restart.services && matches!(verb, Verb::Install | Verb::Uninstall);
        let is_followed = services || verb != Verb::Download && settings.restart.when != RestartWhen::Never;
        match until.filter(|_| is_followed) {
            None => prop_assert_eq!(restart, RestartRule::never()),
            Some(until) => {
                let rule = (restart.when, restart.services, restart.not_after);
                prop_assert_eq!(rule, (settings.restart.when, services, until));
            }
        }
    }
    Ok(())
}

/// Promise 3.
pub(super) fn a_device_that_is_held_by_an_install_gets_no_second_one(
    snapshot: &Snapshot,
    answer: &Plan,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        prop_assert!(device.current.is_none() || decided.install.is_none());
    }
    Ok(())
}

/// The clock alone changes nothing until the next look.
pub(super) fn nothing_changes_before_the_next_look(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
    part: f64,
) -> TestCaseResult {
    let end = answer.next_look.unwrap_or(now + SignedDuration::from_hours(24 * 365));
    prop_assert!(end > now);
    // Whoever keeps the status lets go of a claim then.
    for claim in snapshot.devices.iter().filter_map(|device| device.current.as_ref()) {
        let released = claim.not_after.saturating_add(claim.limit).expect("a duration");
        prop_assert!(released <= now || end <= released, "a claim is let go at {}", released);
    }
    let somewhere = now + now.duration_until(end).mul_f64(part);
    for at in [now + NANOSECOND, somewhere, end - NANOSECOND].into_iter().filter(|at| now < *at && *at < end) {
        let later = plan(snapshot, at);
        prop_assert_eq!(without_look(&later), without_look(answer), "at {}, next look {}", at, end);
        prop_assert_eq!(later.next_look, answer.next_look, "at {}", at);
    }
    Ok(())
}

/// It is the first instant at which the clock could lift it: not before, and then indeed.
pub(super) fn a_refusal_ends_when_it_says(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    let mut plans: BTreeMap<Timestamp, Plan> = BTreeMap::new();
    let mut at = |at: Timestamp| plans.entry(at).or_insert_with(|| plan(snapshot, at)).clone();
    for (position, device) in answer.devices.iter().enumerate() {
        let named = |it: &&Device| it.name == device.name;
        let offers =
            snapshot.devices.iter().find(named).and_then(|it| it.report.as_ref().ok()).map(|it| it.offers.len());
        for (place, update) in device.updates.iter().enumerate() {
            let Some(end) = update.eligible_at else { continue };
            prop_assert!(end > now && update.blocked.is_some());
            // What is not taken back any more is not told of.
            let is_removal = Some(place) >= offers;
            let mut then = |instant: Timestamp| {
                let updates = at(instant).devices[position].updates.clone();
                let mut same = updates.into_iter().enumerate();
                same.find(|(other, it)| (Some(*other) >= offers) == is_removal && it.update == update.update)
                    .map(|(_, update)| update)
            };
            let Some(before) = then(end - NANOSECOND) else { continue };
            // Another reason may have come meanwhile, but never none.
            prop_assert!(before.blocked.is_some(), "not blocked any more just before {}", end);
            let Some(after) = then(end) else { continue };
            match update.blocked.as_deref() {
                // A claim is let go by whoever keeps the status, not by the planner.
                Some(Blocked::InstallRunning { .. }) => {}
                Some(
                    Blocked::WindowClosed { .. }
                    | Blocked::Frozen { .. }
                    | Blocked::FreezeAhead { .. }
                    | Blocked::WindowEnding { .. }
                    | Blocked::OnBattery,
                ) => {
                    // What decides now may send it to another window.
                    if after.decided_by != update.decided_by {
                        continue;
                    }
                    let closed = matches!(
                        after.blocked.as_deref(),
                        Some(
                            Blocked::WindowClosed { .. }
                                | Blocked::Frozen { .. }
                                | Blocked::FreezeAhead { .. }
                                | Blocked::WindowEnding { .. },
                        )
                    );
                    let of_it = snapshot.devices.iter().find(|it| it.name == device.name).expect("the device");
                    let offer = of_it.report.as_ref().expect("a report").offers.get(place);
                    // There may be room for it alone, and the updates before it take it.
                    let alone = offer.is_some_and(|offer| reference::starts_alone(snapshot, of_it, offer, end));
                    let may = !closed || alone;
                    prop_assert!(may, "no window lets it start at {}", end);
                }
                blocked => {
                    let changed = after.blocked.as_deref() != blocked || after.decided_by != update.decided_by;
                    prop_assert!(changed, "still {:?} at {}", blocked, end);
                }
            }
        }
    }
    Ok(())
}

/// What the plan would start, once it is claimed, may begin for as long as the plan would start it, and no longer.
pub(super) fn a_claim_may_act_exactly_while_the_plan_would_start_it(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
    part: f64,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let Some(install) = decided.install else { continue };
        let claimed = with_claim(snapshot, &device.name, &claim(&install));
        prop_assert_eq!(may_act(&claimed, &device.name, now), Ok(()));
        // What needs no window may begin at any time.
        let last = install.not_after.min(now + SignedDuration::from_hours(24 * 400));
        let at = now + now.duration_until(last).mul_f64(part);
        prop_assert_eq!(may_act(&claimed, &device.name, at).is_ok(), reference_may_act(&claimed, &device.name, at));
        prop_assert_eq!(may_act(&claimed, &device.name, last).is_ok(), reference_may_act(&claimed, &device.name, last));
        let Ok(over) = install.not_after.checked_add(NANOSECOND) else { continue };
        let expired = Err(Blocked::OrderExpired { not_after: install.not_after });
        prop_assert_eq!(may_act(&claimed, &device.name, over), expired);
    }
    Ok(())
}

/// Also for claims that came from another world: of other policies, of updates that are not offered any more.
pub(super) fn a_claim_may_act_only_if_everything_still_holds(snapshot: &Snapshot, now: Timestamp) -> TestCaseResult {
    for device in &snapshot.devices {
        let may = may_act(snapshot, &device.name, now);
        prop_assert_eq!(may.is_ok(), reference_may_act(snapshot, &device.name, now), "{}: {:?}", device.name, may);
    }
    prop_assert_eq!(may_act(snapshot, "nobody", now), Err(Blocked::UnknownDevice));
    for device in &snapshot.devices {
        let may = may_restart(snapshot, &device.name, now);
        let expected = device
            .current
            .as_ref()
            .is_some_and(|claim| !stale(device, now) && reference::may_restart(snapshot, device, claim, now));
        prop_assert_eq!(may.is_ok(), expected, "{} may restart: {:?}", device.name, may);
    }
    Ok(())
}

/// What is planned for it, by id: that comes after what is offered.
fn removals<'a>(snapshot: &'a Snapshot, device: &Device, decided: &'a DevicePlan) -> Vec<(Name, &'a UpdatePlan)> {
    let offers = device.report.as_ref().map_or(0, |report| report.offers.len());
    let rest = decided.updates.iter().skip(offers).filter(|update| update.decision == Decision::Remove);
    let rest = rest.filter(|update| !update.is_checked());
    rest.map(|update| (id_of(snapshot, update), update)).collect()
}

fn waits_for_a_place(device: &Device, decided: &UpdatePlan) -> bool {
    match decided.blocked.as_deref() {
        Some(Blocked::OnHold) => device.on_hold,
        Some(Blocked::ConcurrencyReached { .. } | Blocked::ServiceAtLimit { .. } | Blocked::PeersFirst { .. }) => {
            !device.on_hold
        }
        _ => false,
    }
}

fn with_claim(snapshot: &Snapshot, device: &str, claim: &Claim) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for one in snapshot.devices.iter_mut().filter(|one| &*one.name == device) {
        one.current = Some(claim.clone());
    }
    snapshot
}

/// As if the device held no claim and were connected, with what the claim expected to take.
fn reference_may_act(snapshot: &Snapshot, device: &str, now: Timestamp) -> bool {
    let Some(device) = snapshot.devices.iter().find(|one| &*one.name == device) else { return false };
    let (Some(claim), Ok(report)) = (&device.current, &device.report) else { return false };
    let free = Device { current: None, online: true, clock_off: None, ..device.clone() };
    let may = |id: &Name| {
        let offer = report.offers.iter().find(|offer| reference::update_of(snapshot, offer).id == *id);
        let what = match claim.verb {
            Verb::Install => offer.map(What::Install),
            Verb::Download => offer.map(What::Download),
            Verb::Uninstall => {
                installed(snapshot, device).into_iter().find(|update| update.id == *id).map(What::TakeBack)
            }
            Verb::Restart => (**id == *"restart").then_some(What::Restart),
        };
        what.is_some_and(|what| reference::eligible_within(snapshot, &free, what, (claim.expected, claim.limit), now))
    };
    let governs = reference::policy_of(snapshot, &free).is_some_and(|policy| policy.name == claim.policy);
    !stale(device, now)
        && governs
        && now <= claim.not_after
        && !claim.updates.is_empty()
        && claim.updates.iter().all(may)
}
