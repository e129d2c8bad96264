//! How many at a time.

use jiff::Timestamp;
use patchwarden_plan::model::{Device, DeviceType, Disruption, Mode, NoReport, Policy, Snapshot};
use patchwarden_plan::outcome::{DevicePlan, UpdatePlan};
use patchwarden_plan::{Blocked, Plan};
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Tristate;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::pairs;
use super::told::stale;
use crate::reference;

/// Promise 3.
pub(super) fn no_policy_has_more_devices_at_work_than_it_allows(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
    for policy in &snapshot.policies {
        let claims = |device: &&Device| device.current.as_ref().is_some_and(|claim| claim.policy == policy.name);
        let taken = snapshot.devices.iter().filter(claims).count();
        let starts = answer.devices.iter().filter_map(|it| it.install.as_ref()).filter(|it| it.policy == policy.name);
        let starts = starts.count();
        let places = reference::places(snapshot, policy);
        prop_assert!(starts == 0 || taken + starts <= places, "{} + {} of {}", taken, starts, places);
        let waits = answer.devices.iter().flat_map(|device| &device.updates).any(
            |it| matches!(it.blocked.as_deref(), Some(Blocked::ConcurrencyReached { policy: full, .. }) if *full == policy.name),
        );
        prop_assert!(!waits || taken + starts >= places, "a place of {} is free and something waits", policy.name);
    }
    Ok(())
}

/// Promise 3: one ledger for all policies, whoever patches a service's devices.
pub fn no_service_has_more_devices_unavailable_than_it_may(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    for value in ["web", "db"] {
        let of_service: Vec<(&Device, DevicePlan)> = pairs(snapshot, answer)
            .into_iter()
            .filter(|(device, _)| device.labels.get("role").is_some_and(|role| **role == *value))
            .filter(|(device, _)| device.device_type == DeviceType::Server)
            .filter(|(device, _)| !device.retired || device.current.is_some())
            .collect();
        let policies = of_service.iter().filter_map(|(device, _)| reference::policy_of(snapshot, device));
        let mut policies: Vec<&Policy> = policies.collect();
        policies.sort_by_key(|policy| (std::cmp::Reverse(policy.priority), &policy.name));
        let disruptions: Vec<&Disruption> =
            policies.into_iter().filter_map(|policy| policy.disruption.as_ref()).collect();
        let known = of_service.iter().filter(|(device, _)| !stale(device, now)).count();
        let Some(limit) = disruptions.iter().map(|it| reference::some_of(it.max_unavailable, known)).min() else {
            continue;
        };
        let healthy = disruptions.iter().any(|it| it.healthy_peers);
        let is_ill = |device: &Device| {
            reference::has_failed(snapshot, device, now)
                || !device.report.as_ref().is_ok_and(|it| !it.problems.iter().any(|problem| problem.blocks_installs()))
        };
        let is_down = |device: &Device| {
            let may_be_at_work =
                matches!(device.report, Err(NoReport::BeforeEpoch { .. } | NoReport::AheadOfRecord { .. }));
            let is_down = !device.online || may_be_at_work || (healthy && is_ill(device));
            device.current.as_ref().is_some_and(|claim| claim.verb != Verb::Download)
                || (!stale(device, now) && is_down)
        };
        // A download takes nobody away, and waits for nobody.
        let acts = |decided: &DevicePlan| decided.install.as_ref().is_some_and(|it| it.verb != Verb::Download);
        let down = of_service.iter().filter(|(device, _)| is_down(device)).count();
        // One that is not well counts already.
        let starts = of_service.iter().filter(|(it, decided)| acts(decided) && !is_down(it)).count();
        prop_assert!(starts == 0 || down + starts <= limit, "{}: {} + {} of {}", value, down, starts, limit);
        let refused = |decided: &DevicePlan| {
            decided.updates.iter().any(|it| matches!(it.blocked.as_deref(), Some(Blocked::ServiceAtLimit { .. })))
        };
        let downloads = |device: &Device| {
            let settings = reference::policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
            settings.is_some_and(|settings| settings.mode == Mode::DownloadOnly)
        };
        let mut held = of_service.iter().filter(|(device, decided)| downloads(device) && refused(decided));
        prop_assert!(held.next().is_none(), "a download waits for {}", value);
        let is_due = |device: &Device| device.report.as_ref().is_ok_and(|it| it.restart_required == Tristate::Yes);
        let counts_as_due = |device: &Device| healthy && is_due(device) && !is_down(device) && !stale(device, now);
        let due = of_service.iter().filter(|(it, decided)| counts_as_due(it) && !acts(decided)).count();
        for (device, _) in of_service.iter().filter(|(_, decided)| refused(decided)) {
            // Those that are well wait for those that are to be restarted, too.
            let missed = if is_due(device) || is_ill(device) { down + starts } else { down + starts + due };
            prop_assert!(missed >= limit, "{} has room for {}", value, device.name);
        }
        for (device, _) in of_service.iter().filter(|(_, decided)| acts(decided)) {
            let is_first = is_due(device) || is_ill(device) || down + starts + due <= limit;
            prop_assert!(is_first, "{} does not wait for those that are to be restarted", device.name);
        }
        if let Some(order) = disruptions.iter().find_map(|it| it.order.as_ref()) {
            let rank = |device: &Device| {
                let value = device.labels.get(&order.label);
                order
                    .values
                    .iter()
                    .position(|it| value.is_some_and(|value| **value == **it))
                    .unwrap_or(order.values.len())
            };
            let claims = |it: &Device| it.current.as_ref().is_some_and(|claim| claim.verb != Verb::Download);
            let at_work = of_service.iter().filter(|(it, decided)| claims(it) || acts(decided));
            let first = at_work.map(|(device, _)| rank(device)).min();
            // Those that are well wait for one that is not: it waits for none of them.
            let is_missed = |device: &Device| healthy && (is_due(device) || is_ill(device));
            for (device, decided) in of_service.iter().filter(|(device, _)| !is_missed(device)) {
                prop_assert!(!acts(decided) || Some(rank(device)) == first, "{} is not first", device.name);
            }
            for (device, decided) in of_service.iter().filter(|(device, _)| is_missed(device)) {
                let waits = |it: &UpdatePlan| matches!(it.blocked.as_deref(), Some(Blocked::PeersFirst { .. }));
                prop_assert!(!decided.updates.iter().any(waits), "{} waits for those that wait for it", device.name);
            }
        }
    }
    Ok(())
}

/// Whoever failed least comes first, then whoever failed longest ago.
pub(super) fn places_go_to_those_that_failed_least(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
    let failed = |device: &Device| {
        let attempts = device.failures.iter().map(|failure| failure.attempts).sum::<u32>();
        (attempts, device.failures.iter().map(|failure| failure.last).max())
    };
    for (device, decided) in pairs(snapshot, answer) {
        let Some(install) = &decided.install else { continue };
        for (other, others) in pairs(snapshot, answer) {
            let waits = others.policy.as_ref() == Some(&install.policy)
                && others
                    .updates
                    .iter()
                    .any(|it| matches!(it.blocked.as_deref(), Some(Blocked::ConcurrencyReached { .. })));
            if waits {
                prop_assert!((failed(device), &device.name) < (failed(other), &other.name));
            }
        }
    }
    Ok(())
}
