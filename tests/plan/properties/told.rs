//! What is told of devices, policies and windows.

use proptest::prelude::*;
use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Calendar, Device, Name, Offer, Snapshot, Update};
use patchwarden_plan::outcome::{Compliance, Decision, DevicePlan, Failed, Forecast, State};
use patchwarden_plan::{Blocked, Plan, plan};
use patchwarden_protocol::report::{ProblemCode, Tristate};
use proptest::test_runner::TestCaseResult;

use super::{id_of, installed, pairs};
use crate::reference;

pub(super) fn each_device_has_the_policy_and_group_that_the_reference_says(
    snapshot: &Snapshot,
    answer: &Plan,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let policy = reference::policy_of(snapshot, device).map(|policy| &policy.name);
        let group = reference::group_of(snapshot, device).map(|group| &group.name);
        prop_assert_eq!((decided.policy.as_ref(), decided.group.as_ref()), (policy, group), "{}", device.name);
        let remembered = reference::remembered_groups_of(snapshot, device);
        prop_assert_eq!(decided.possible_groups.iter().collect::<Vec<_>>(), remembered);
    }
    Ok(())
}

pub(super) fn a_window_tells_its_next_five_openings(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for window in &snapshot.windows {
        let told = answer.windows.iter().find(|it| it.name == window.name).expect("every window has a plan");
        let told: Vec<_> = told.upcoming.iter().map(|span| (span.start, span.end)).collect();
        let openings = |calendar: &Calendar| reference::openings(calendar, &calendar.zone_or_utc(), now, 5);
        prop_assert_eq!(told, window.calendar.as_ref().map_or(vec![], openings), "{:?}", window);
    }
    Ok(())
}

pub(super) fn what_a_person_must_mend_says_so(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    for (window, told) in snapshot.windows.iter().zip(&answer.windows) {
        let expected = window.calendar.as_ref().is_ok_and(|calendar| reference::never_opens(calendar, now));
        prop_assert_eq!(told.never_opens, expected, "{:?}", window);
    }
    for (policy, told) in snapshot.policies.iter().zip(&answer.policies) {
        let never_opens = reference::policy_never_opens(snapshot, policy, now);
        prop_assert_eq!(told.never_opens, never_opens, "{}", policy.name);
        let unprovable = told.unprovable.as_ref().map(|it| (it.place, it.devices, it.unknown, it.needs, it.waiting));
        let is_unknown = |device: &Device| device.online_since.is_some() && stale(device, now);
        prop_assert_eq!(unprovable, reference::unprovable(snapshot, policy, is_unknown), "{}", policy.name);
        let rows = || answer.devices.iter().filter(|device| device.policy.as_ref() == Some(&policy.name));
        let in_use = |name: &Name| snapshot.devices.iter().any(|device| device.name == *name && !device.retired);
        let rows = rows().filter(|device| in_use(&device.name)).flat_map(|device| &device.updates);
        let too_short = rows.filter_map(|row| match row.blocked.as_deref()? {
            Blocked::OwnWindowTooShort { policy: _, window } => Some(window),
            _ => None,
        });
        prop_assert_eq!(told.too_short.as_ref(), too_short.min(), "{}", policy.name);
        let is_there = |name: &&Name| snapshot.groups.iter().any(|group| group.name == **name);
        for (named, told) in
            [(&policy.groups, &told.missing_groups), (&policy.exclude_groups, &told.missing_excluded_groups)]
        {
            let missing: BTreeSet<&Name> = named.iter().filter(|name| !is_there(name)).collect();
            prop_assert_eq!(told.iter().collect::<Vec<_>>(), missing.into_iter().collect::<Vec<_>>());
        }
        prop_assert_eq!(&told.overlap, &reference::overlap(snapshot, policy), "{}", policy.name);
        prop_assert_eq!(&told.unknown_devices, &reference::unknown(snapshot, &policy.exclude), "{}", policy.name);
        prop_assert_eq!(told.unlabelled, reference::unlabelled(snapshot, policy), "{}", policy.name);
    }
    for (group, told) in snapshot.groups.iter().zip(&answer.groups) {
        let failed =
            told.failed.clone().map(|Failed { expression, error: _, example, more }| (expression, example, more));
        prop_assert_eq!(failed, reference::failed(snapshot, group, now), "{}", group.name);
        let unknown = reference::unknown(snapshot, &group.members.names);
        prop_assert_eq!(&told.unknown_devices, &unknown, "{}", group.name);
    }
    Ok(())
}

pub(super) fn a_device_complies_only_if_nothing_approved_is_missing_and_all_is_known(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let missing = |offer: &Offer| reference::missing(snapshot, device, offer, now);
        let removed = |update: &Update| reference::removes(snapshot, device, update, now);
        let deadline = |offer: &Offer| reference::deadline(snapshot, device, offer, now);
        let overdue = |offer: &Offer| deadline(offer).is_some_and(|by| by <= now);
        let undated = |offer: &Offer| missing(offer) && deadline(offer).is_none();
        let doubtful = |offer: &Offer| reference::doubtful(snapshot, device, offer, now);
        let known = reference::certain_group_of(snapshot, device).is_some()
            && reference::policy_of(snapshot, device).is_some()
            && !stale(device, now);
        let expected = match &device.report {
            Ok(report) if known && report.truncated => Compliance::Truncated,
            Ok(report) if known && report.offers.iter().any(overdue) => Compliance::DeadlineMissed,
            Ok(report) if known && report.offers.iter().any(undated) => Compliance::UpdatesMissing,
            Ok(_) if known && installed(snapshot, device).into_iter().any(removed) => Compliance::RemovalDue,
            Ok(report) if known && report.restart_required == Tristate::Yes => Compliance::RestartRequired,
            Ok(report)
                if known
                    && report.problems.iter().all(|code| *code == ProblemCode::JournalCorrupt)
                    && !report.offers.iter().any(doubtful) =>
            {
                if report.offers.iter().any(missing) {
                    Compliance::WithinDeadline
                } else {
                    Compliance::UpToDate
                }
            }
            Ok(_) | Err(_) => Compliance::Unknown,
        };
        prop_assert_eq!(decided.compliance, expected, "{}", device.name);
        let offers = device.report.iter().flat_map(|report| &report.offers);
        let earliest = offers.filter_map(deadline).min();
        prop_assert_eq!(decided.due.as_ref().map(|due| due.at), earliest);
        let overdue = earliest.is_some_and(|by| by <= now);
        prop_assert_eq!(decided.due.as_ref().is_some_and(|due| due.overdue), overdue);
        prop_assert!(!overdue || !decided.compliance.complies(), "{} complies and is overdue", device.name);
    }
    Ok(())
}

/// Also where nothing else tells of the update any more, and nowhere else.
pub(super) fn what_a_check_found_is_told_until_somebody_has_seen_to_it(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let expected = reference::checked(snapshot, device, now);
        prop_assert_eq!(decided.updates.iter().filter(|it| it.is_checked()).count(), expected.len());
        let others = decided.updates.len() - expected.len();
        for (place, update) in decided.updates.iter().enumerate() {
            let Some((at, id)) = place.checked_sub(others).and_then(|place| expected.get(place)) else {
                prop_assert!(!update.is_checked(), "{}: {:?}", device.name, update);
                continue;
            };
            prop_assert_eq!(
                (&id_of(snapshot, update), update.blocked.as_deref()),
                (id, Some(&Blocked::CheckFailed { at: *at }))
            );
            prop_assert_eq!(update.last_known, State::Failed);
            let removed = reference::removes(snapshot, device, &Update::by_id(id.clone()), now);
            prop_assert_eq!(update.decision, if removed { Decision::Remove } else { Decision::Approved });
        }
    }
    Ok(())
}

/// What counts of devices is what was last known of them; only the state of each update is not known any more.
pub(super) fn a_device_that_is_not_heard_of_counts_as_it_was(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    let mut heard_of = snapshot.clone();
    heard_of.devices.iter_mut().for_each(|device| (device.online, device.online_since) = (true, None));
    let then = plan(&heard_of, now);
    for (device, decided) in pairs(snapshot, answer) {
        let known = then.devices.iter().find(|it| it.name == device.name).expect("every device has a plan");
        for (update, as_heard_of) in decided.updates.iter().zip(&known.updates) {
            let expected = if stale(device, now) { State::Unknown } else { as_heard_of.state };
            prop_assert_eq!((update.state, update.last_known), (expected, as_heard_of.state));
            prop_assert_eq!(as_heard_of.state, as_heard_of.last_known);
        }
    }
    for policy in &answer.policies {
        let has_failed = |it: &DevicePlan| it.updates.iter().any(|update| update.last_known == State::Failed);
        let governed = pairs(snapshot, answer).into_iter().filter(|(it, _)| !it.retired);
        let failed = governed.filter(|(_, it)| it.policy.as_ref() == Some(&policy.name) && has_failed(it)).count();
        prop_assert_eq!(policy.failed as usize, failed);
    }
    Ok(())
}

pub(super) fn a_forecast_counts_no_more_than_there_are(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for policy in &answer.policies {
        let governed = || {
            let pairs = pairs(snapshot, answer).into_iter();
            pairs.filter(|(device, it)| it.policy.as_ref() == Some(&policy.name) && !device.retired)
        };
        prop_assert_eq!(policy.states.compliant(), policy.compliant);
        prop_assert_eq!(Compliance::ALL.iter().map(|it| policy.states.of(*it)).sum::<u32>(), policy.devices);
        let overdue = governed().filter(|(_, it)| it.due.as_ref().is_some_and(|due| due.overdue)).count();
        prop_assert_eq!(overdue, policy.overdue as usize);
        let due = governed().filter(|(_, it)| it.due.is_some()).count();
        let Some(Forecast { missing, of, done }) = policy.forecast else {
            prop_assert_eq!(due, 0, "{} has a deadline and no forecast", policy.name);
            continue;
        };
        // Also what ages has a deadline.
        prop_assert!(due <= of as usize && of <= policy.devices);
        prop_assert!(overdue <= missing as usize && missing <= of, "{} of {}", missing, of);
        prop_assert!(done.is_none_or(|done| done >= now - SignedDuration::from_hours(1)), "done at {:?}", done);
        prop_assert!(policy.stalled.is_none() || missing == of, "a policy that is stalled patches nobody");
    }
    Ok(())
}

pub(super) fn stale(device: &Device, now: Timestamp) -> bool {
    let three_days_ago = now - SignedDuration::from_hours(72);
    !device.online && device.online_since.is_none_or(|since| since <= three_days_ago)
}
