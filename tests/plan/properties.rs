//! What must hold for every fleet at every instant. The generator is in `fleet`, what should come out in `reference`.
//!
//! 2,000 fleets; `PROPTEST_CASES` asks for more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    Amount, Blast, Calendar, Catalogue, Cause, Claim, Device, DeviceType, Disruption, Durations, Glob, Group, Members,
    Mode, Name, NoReport, Offer, Policy, Requirement, Selector, Snapshot, Update, UpdateId, UpdateProgress, WhenEmpty,
};
use patchwarden_plan::outcome::{
    Compliance, Decision, DevicePlan, Failed, FailedExpression, Forecast, Install, Overlap, PolicyPlan, State,
    UpdatePlan,
};
use patchwarden_plan::window::Moment;
use patchwarden_plan::{Blocked, Plan, may_act, may_restart, plan};
use patchwarden_protocol::order::{RestartRule, RestartWhen, Sequence, Verb};
use patchwarden_protocol::report::{ProblemCode, Tristate};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

use crate::fleet::{calendar, fleet, instant};
use crate::reference::{self, What};

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

pub fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000);
    // The fastest by far where nothing is optimised.
    let rng_algorithm = RngAlgorithm::XorShift;
    Config { cases, rng_algorithm, failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    /// One run for all, since most of the time goes into making the fleets.
    // covers BY-5, BY-9
    #[test]
    fn every_plan_keeps_the_promises((snapshot, now) in fleet(), seed in any::<u64>(), part in 0.0..1.2) {
        let answer = plan(&snapshot, now);
        what_was_written_down_goes_forward(&snapshot, &answer, now)?;
        what_is_written_down_of_updates_is_what_several_devices_told(&snapshot, &answer)?;
        a_device_that_lost_its_policy_or_group_waits(&snapshot, &answer, now)?;
        // The shell writes it down before anything follows from it.
        let snapshot = written_down(&snapshot, &answer);
        prop_assert_eq!(&plan(&snapshot, now), &answer, "writing down what was decided decides something else");
        each_device_has_the_policy_and_group_that_the_reference_says(&snapshot, &answer)?;
        no_service_has_more_devices_unavailable_than_it_may(&snapshot, &answer, now)?;
        an_update_is_installed_or_waits_for_a_place_exactly_when_it_may(&snapshot, &answer, now)?;
        an_install_may_start_until_the_last_instant_that_a_window_allows(&snapshot, &answer, now)?;
        no_policy_has_more_devices_at_work_than_it_allows(&snapshot, &answer)?;
        a_device_that_is_held_by_an_install_gets_no_second_one(&snapshot, &answer)?;
        places_go_to_those_that_failed_least(&snapshot, &answer)?;
        the_order_of_the_input_does_not_matter(&snapshot, &answer, now, seed)?;
        what_has_nothing_to_do_with_a_device_changes_nothing_for_it(&snapshot, &answer, now)?;
        nothing_changes_before_the_next_look(&snapshot, &answer, now, part)?;
        a_refusal_ends_when_it_says(&snapshot, &answer, now)?;
        a_claim_may_act_exactly_while_the_plan_would_start_it(&snapshot, &answer, now, part)?;
        a_claim_may_act_only_if_everything_still_holds(&snapshot, now)?;
        a_device_complies_only_if_nothing_approved_is_missing_and_all_is_known(&snapshot, &answer, now)?;
        what_a_check_found_is_told_until_somebody_has_seen_to_it(&snapshot, &answer, now)?;
        a_device_that_is_not_heard_of_counts_as_it_was(&snapshot, &answer, now)?;
        a_window_tells_its_next_five_openings(&snapshot, &answer, now)?;
        what_a_person_must_mend_says_so(&snapshot, &answer, now)?;
        a_forecast_counts_no_more_than_there_are(&snapshot, &answer, now)?;
    }

    #[test]
    fn a_calendar_opens_and_closes_when_the_reference_says(
        (calendar, from) in instant().prop_flat_map(|now| (calendar(now), Just(now))),
        zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    ) {
        let zone = TimeZone::get(zone).expect("a time zone");
        let zone = calendar.zone(Some(&zone)).expect("a zone");
        let mut now = from;
        for _ in 0..6 {
            let is_open = matches!(calendar.at(zone, now), Moment::Open { .. });
            prop_assert_eq!(is_open, reference::open(&calendar, zone, now), "at {}", now);
            let Some(next) = calendar.next_change(zone, now) else { break };
            prop_assert!(next > now);
            prop_assert_eq!(is_open, reference::open(&calendar, zone, next - NANOSECOND), "before {}", next);
            if let Some(opening) = calendar.next_opening(zone, now) {
                prop_assert!(reference::open(&calendar, zone, opening.start), "opens at {}", opening.start);
                let before_its_end = opening.end - NANOSECOND;
                prop_assert!(reference::open(&calendar, zone, before_its_end), "ends before {}", opening.end);
            }
            now = next;
        }
    }

    #[test]
    fn globs_match_what_the_reference_says(pattern in "[ab*?ü]{0,6}", text in "[abü]{0,6}") {
        let glob = Glob(pattern.clone());
        prop_assert_eq!(glob.matches(&text), reference::glob(&pattern, &text));
    }
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 100, ..config() })]

    #[test]
    fn only_a_change_of_the_specs_is_held((before, now) in fleet(), (after, _) in fleet()) {
        what_changes_by_itself_is_not_held(&before, after.clone(), now)?;
        a_change_of_the_specs_lets_few_devices_loose(before, after, now)?;
    }
}

fn each_device_has_the_policy_and_group_that_the_reference_says(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        let policy = reference::policy_of(snapshot, device).map(|policy| &policy.name);
        let group = reference::group_of(snapshot, device).map(|group| &group.name);
        prop_assert_eq!((decided.policy.as_ref(), decided.group.as_ref()), (policy, group), "{}", device.name);
    }
    Ok(())
}

/// Promises 1 and 2: approved at that moment, inside a window, before the cutoff, with room to end; and nothing
/// that may start is left out but for want of a place.
fn an_update_is_installed_or_waits_for_a_place_exactly_when_it_may(
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

fn an_install_may_start_until_the_last_instant_that_a_window_allows(
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
fn no_policy_has_more_devices_at_work_than_it_allows(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
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

/// Nothing goes back by itself, and stops and pauses are what the reference says.
fn what_was_written_down_goes_forward(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    for policy in &snapshot.policies {
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        let expected = reference::progress(snapshot, policy, now);
        prop_assert_eq!(planned.progress.paused, expected.paused);
        prop_assert_eq!(&planned.progress.durations, &expected.durations);
        let longest = |known: &Durations| known.updates.values().max().copied();
        prop_assert!(longest(&planned.progress.durations) >= longest(&policy.progress.durations));
        let Ok(settings) = &policy.settings else { continue };
        let rings = &settings.rollout.rings;
        for device in &snapshot.devices {
            let wanted = rings.get(reference::ring_of(policy, device)).map(|ring| ring.name.clone());
            prop_assert_eq!(patchwarden_plan::ring_of(policy, device), wanted, "{}", device.name);
        }
        let open = |progress: &UpdateProgress| match &progress.ring {
            None => rings.len(),
            Some(name) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
        };
        for (id, before) in &policy.progress.updates {
            let after = planned.progress.updates.get(id).expect("nothing is forgotten");
            prop_assert!(open(after) >= open(before), "{} went back", id);
            prop_assert!(after.stopped >= before.stopped, "{} is not stopped any more", id);
            prop_assert!(after.anywhere >= before.anywhere, "{} was installed on fewer", id);
            let is_same = (&after.ring, after.opened) == (&before.ring, before.opened);
            prop_assert!(!is_same || after.installed >= before.installed, "{} was installed on fewer of its ring", id);
        }
        for (id, after) in &planned.progress.updates {
            let wanted = expected.updates.get(id).and_then(|update| update.stopped);
            prop_assert_eq!(after.stopped, wanted, "{}", id);
            let wanted = expected.updates.get(id).map_or(vec![], |update| update.failed.clone());
            prop_assert_eq!(&after.failed, &wanted, "{}", id);
            if let Some(before) = policy.progress.updates.get(id).filter(|before| open(before) < open(after)) {
                let ring = &rings[open(before)];
                let in_ring = |device: &&Device| {
                    reference::policy_of(snapshot, device).is_some_and(|it| it.name == policy.name)
                        && reference::ring_of(policy, device) == open(before)
                        && !device.retired
                };
                let installed = snapshot
                    .devices
                    .iter()
                    .filter(in_ring)
                    .filter(|it| reference::has_installed(snapshot, it, id))
                    .count();
                let known = if before.ring.as_ref() == Some(&ring.name) { before.installed as usize } else { 0 };
                let tried = snapshot.devices.iter().filter(in_ring).flat_map(|device| &device.failures);
                let failed = tried.filter(|failure| failure.update == *id && failure.tells()).count();
                let gone = reference::failed_on(snapshot, policy, id, now).1;
                let is_known = |name: &Name| rings.iter().any(|it| it.name == *name);
                let counts = |name: &Name| *name == ring.name || !is_known(name);
                let failed = failed + gone.iter().filter(|it| it.ring.as_ref().is_some_and(counts)).count();
                let is_good = |has: usize| has * 100 >= ring.min_success_percent as usize * (has + failed);
                prop_assert!(is_good(installed.max(known)), "{} went on though it failed on {}", id, failed);
                let proved = before.reached.is_some() || installed.max(known) >= ring.min_successes as usize;
                prop_assert!(proved || ring.when_empty == WhenEmpty::Promote, "{} went on without proof", id);
            }
        }
        prop_assert!(expected.updates.keys().all(|id| planned.progress.updates.contains_key(id)));
    }
    Ok(())
}

/// Before it is written down: afterwards it is believed.
fn what_is_written_down_of_updates_is_what_several_devices_told(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
    for seen in answer.groups.iter().flat_map(|group| group.seen.iter()) {
        prop_assert_eq!(seen.shared, reference::shared(snapshot, &seen.id), "{}", seen.id);
        let dates = (seen.dates.shared, seen.dates.alone.clone());
        prop_assert_eq!(dates, reference::vendors_dates(snapshot, &seen.id), "{}", seen.id);
    }
    Ok(())
}

pub fn written_down(snapshot: &Snapshot, answer: &Plan) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for policy in &mut snapshot.policies {
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        policy.progress = planned.progress.clone();
    }
    for group in &mut snapshot.groups {
        let planned = answer.groups.iter().find(|it| it.name == group.name).expect("a plan for each group");
        group.seen = planned.seen.to_vec();
    }
    for device in &mut snapshot.devices {
        let planned = answer.devices.iter().find(|it| it.name == device.name).expect("a plan for each device");
        device.last_policy.clone_from(&planned.policy);
        device.last_group.clone_from(&planned.group);
        device.moved.clone_from(&planned.moved);
        device.eligible = planned.eligible;
    }
    snapshot
}

/// Another digest for each object, as if something were changed in it.
fn changed(mut snapshot: Snapshot) -> Snapshot {
    snapshot.groups.iter_mut().for_each(|group| group.spec = "2".into());
    snapshot.windows.iter_mut().for_each(|window| window.spec = "2".into());
    snapshot.policies.iter_mut().for_each(|policy| policy.specs.rest = "2".into());
    snapshot
}

/// As many fleets side by side, under policies that let all devices install at once and hold what is above `limit`.
fn multiplied(mut snapshot: Snapshot, times: usize, limit: Amount) -> Snapshot {
    let devices = snapshot.devices.into_iter().flat_map(|device| {
        (0..times).map(move |copy| Device {
            name: format!("{}-{copy}", device.name).into(),
            eligible: false,
            ..device.clone()
        })
    });
    snapshot.devices = devices.collect();
    for policy in &mut snapshot.policies {
        policy.disruption = None;
        let Ok(settings) = &mut policy.settings else { continue };
        settings.blast_limit = limit;
        settings.rollout.max_concurrent = Amount::Count(1_000);
        settings.settle = SignedDuration::ZERO;
    }
    snapshot
}

fn is_held(decided: &DevicePlan) -> bool {
    decided.updates.iter().any(|update| matches!(update.blocked.as_deref(), Some(Blocked::BlastLimit { .. })))
}

/// The blast limit: of devices that only a change of the specs makes eligible none gets a turn if there are too many; the
/// others are as if nothing were; and once a person has confirmed that change all are.
fn a_change_of_the_specs_lets_few_devices_loose(before: Snapshot, after: Snapshot, now: Timestamp) -> TestCaseResult {
    let (none, default) = (Amount::Percent(100), Amount::Percent(10));
    let mut before = multiplied(before, 4, none);
    before.policies.iter_mut().for_each(|policy| Arc::make_mut(&mut policy.progress).blast = Blast::default());
    let old = written_down(&before, &plan(&before, now));
    // Changes within ten minutes are counted together.
    let then = now + SignedDuration::from_mins(10);
    let mut world = Snapshot { devices: old.devices.clone(), updates: old.updates.clone(), ..changed(after) };
    for policy in &mut world.policies {
        let known = old.policies.iter().find(|it| it.name == policy.name);
        let blast = known.map(|known| known.progress.blast.clone()).unwrap_or_default();
        Arc::make_mut(&mut policy.progress).blast = blast;
    }
    let unlimited = multiplied(world.clone(), 1, none);
    let world = multiplied(world, 1, default);
    let with = |world: Snapshot| Snapshot { devices: old.devices.clone(), ..world };
    let (unlimited, mut world) = (with(unlimited), with(world));
    let (free, answer) = (plan(&unlimited, then), plan(&world, then));
    for policy in &world.policies {
        let of_policy = |device: &&Device| {
            !device.retired && reference::policy_of(&world, device).is_some_and(|it| it.name == policy.name)
        };
        let governed: Vec<&Device> = world.devices.iter().filter(of_policy).collect();
        let is_new =
            |device: &Device| reference::allowed(&world, device, then) && !reference::allowed(&old, device, now);
        let new = governed.iter().filter(|device| is_new(device)).count();
        let too_many = new > (governed.len() / 10).max(10);
        for device in governed {
            let decided = answer.devices.iter().find(|it| it.name == device.name).expect("a plan for each device");
            let unheld = free.devices.iter().find(|it| it.name == device.name).expect("a plan for each device");
            if is_new(device) && too_many {
                prop_assert_eq!(&decided.install, &None, "{} of {}", device.name, new);
                prop_assert!(!decided.eligible);
            } else {
                prop_assert!(!is_held(decided), "{} was eligible, or few are", device.name);
                prop_assert_eq!(&decided.updates, &unheld.updates);
            }
        }
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        // What cannot be resolved stays as it was.
        let pending = planned.progress.blast.pending.as_ref().filter(|_| planned.stalled.is_none());
        prop_assert_eq!(pending.map(|pending| pending.devices as usize), too_many.then_some(new));
    }
    // It stays so, also when devices go, until a person says otherwise, to this very change.
    let mut written = written_down(&world, &answer);
    prop_assert_eq!(&plan(&written, then).devices, &answer.devices);
    written.devices.truncate(written.devices.len() / 2);
    let fewer = plan(&written, then);
    let pending = |answer: &Plan| -> Vec<bool> {
        answer.policies.iter().map(|policy| policy.progress.blast.pending.is_some()).collect()
    };
    prop_assert_eq!(pending(&fewer), pending(&answer));
    for policy in &mut world.policies {
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        if let (Ok(settings), Some(pending)) = (&mut policy.settings, &planned.progress.blast.pending) {
            settings.confirm = Some(pending.specs.clone());
        }
    }
    prop_assert_eq!(plan(&world, then).devices, free.devices);
    Ok(())
}

/// What changes by itself (what devices offer and are, and which there are) is held nowhere.
fn what_changes_by_itself_is_not_held(before: &Snapshot, after: Snapshot, now: Timestamp) -> TestCaseResult {
    let (devices, updates) = (after.devices, after.updates);
    let before = multiplied(before.clone(), 1, Amount::Percent(100));
    let written = written_down(&before, &plan(&before, now));
    let later = multiplied(Snapshot { devices, updates, ..written }, 2, Amount::Count(0));
    for device in plan(&later, now).devices {
        prop_assert!(!is_held(&device), "{} is held", device.name);
    }
    Ok(())
}

/// By what was written down of it: from what it has lost on nothing is installed before `settle` is over, unless it is back
/// with what last acted.
fn a_device_that_lost_its_policy_or_group_waits(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    let settle_of = |name: &Name| {
        let policy = snapshot.policies.iter().find(|policy| policy.name == *name);
        policy.and_then(|policy| policy.settings.as_ref().ok()).map(|settings| settings.settle)
    };
    let minutes = SignedDuration::from_mins;
    for (device, decided) in pairs(snapshot, answer) {
        let stays = device.last_policy == decided.policy && device.last_group == decided.group;
        let loses = |policy: &Option<Name>, group: &Option<Name>| {
            (policy.is_some() && *policy != decided.policy) || (group.is_some() && *group != decided.group)
        };
        let lost = match &device.moved {
            _ if stays => {
                prop_assert_eq!(&decided.moved, &device.moved);
                continue;
            }
            None => loses(&device.last_policy, &device.last_group),
            Some(moved) => {
                let settle = match &device.last_policy {
                    None => Some(minutes(10)),
                    Some(policy) => settle_of(policy),
                };
                match (settle, &moved.before) {
                    (Some(settle), _) if now - settle >= moved.since => loses(&device.last_policy, &device.last_group),
                    (None, _) if now - minutes(24 * 60) >= moved.since => {
                        loses(&device.last_policy, &device.last_group)
                    }
                    (Some(_), Some(before)) => loses(&before.policy, &before.group),
                    (Some(_), None) | (None, _) => true,
                }
            }
        };
        prop_assert_eq!(decided.moved.as_ref().map(|moved| moved.since), lost.then_some(now), "{}", device.name);
        let settle = decided.policy.as_ref().and_then(settle_of).unwrap_or_default();
        prop_assert!(!(lost && settle > minutes(0)) || decided.install.is_none(), "{} acts at once", device.name);
        // In the last instant before it may, by what was written down.
        let then = plan(&written_down(snapshot, answer), now + settle - NANOSECOND);
        let then = then.devices.iter().find(|it| it.name == device.name).expect("a plan for each device");
        prop_assert!(!lost || settle == minutes(0) || then.install.is_none(), "{} acts too soon", device.name);
    }
    Ok(())
}

/// Promise 3.
fn a_device_that_is_held_by_an_install_gets_no_second_one(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
    for (device, decided) in pairs(snapshot, answer) {
        prop_assert!(device.current.is_none() || decided.install.is_none());
    }
    Ok(())
}

/// Whoever failed least comes first, then whoever failed longest ago.
fn places_go_to_those_that_failed_least(snapshot: &Snapshot, answer: &Plan) -> TestCaseResult {
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

fn a_window_tells_its_next_five_openings(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    for window in &snapshot.windows {
        let told = answer.windows.iter().find(|it| it.name == window.name).expect("every window has a plan");
        let told: Vec<_> = told.upcoming.iter().map(|span| (span.start, span.end)).collect();
        let openings = |calendar: &Calendar| reference::openings(calendar, &calendar.zone_or_utc(), now, 5);
        prop_assert_eq!(told, window.calendar.as_ref().map_or(vec![], openings), "{:?}", window);
    }
    Ok(())
}

fn what_a_person_must_mend_says_so(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
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

fn the_order_of_the_input_does_not_matter(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
    seed: u64,
) -> TestCaseResult {
    prop_assert_eq!(&plan(&shuffled(snapshot, seed), now), answer);
    Ok(())
}

fn what_has_nothing_to_do_with_a_device_changes_nothing_for_it(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
    let nobody = || vec!["nobody".to_owned()];
    let mut more = snapshot.clone();
    // None of the devices is in there; those that come are not asked for by anything that was there before.
    let outside = Requirement::NotIn("role".to_owned(), nobody());
    let selectors = more.policies.iter_mut().map(|policy| &mut policy.selector);
    for selector in selectors.chain(more.groups.iter_mut().filter_map(|group| group.members.selector.as_mut())) {
        selector.0.push(outside.clone());
    }
    let others = snapshot.devices.iter().flat_map(|device| {
        [device_of_others(&mut more.updates, device, false), device_of_others(&mut more.updates, device, true)]
    });
    more.devices.extend(others);
    more.windows.extend(snapshot.windows.iter().cloned().map(|mut window| {
        window.name = format!("a-{}", window.name).into();
        window
    }));
    // They have no members, and none that has asks them.
    more.groups.extend(snapshot.groups.iter().map(|group| Group {
        name: format!("b-{}", group.name).into(),
        members: Members::default(),
        // What was seen anywhere in the client does matter.
        seen: vec![],
        ..group.clone()
    }));
    let after = plan(&more, now);
    stays(answer, &after, PolicyPlan::clone)?;
    // The same with policies and groups that these have: some of it is done there.
    let selector = Selector(vec![Requirement::In("role".to_owned(), nobody())]);
    more.policies.extend(snapshot.policies.iter().map(|policy| Policy {
        name: format!("a-{}", policy.name).into(),
        selector: selector.clone(),
        priority: 1000,
        ..policy.clone()
    }));
    more.groups.extend(snapshot.groups.iter().map(|group| Group {
        name: format!("a-{}", group.name).into(),
        members: Members { selector: Some(selector.clone()), names: vec!["z".into()], rule: None },
        // An expression of a parent that fails for what a device beneath it offers is told with the parent.
        parent: group.parent.as_ref().map(|parent| format!("a-{parent}").into()),
        seen: vec![],
        priority: 1000,
        ..group.clone()
    }));
    let after = plan(&more, now);
    // Which specs are in force is about all that may have a device.
    stays(answer, &after, |policy| {
        let mut policy = policy.clone();
        let blast = &mut Arc::make_mut(&mut policy.progress).blast;
        blast.accepted.iter_mut().for_each(|accepted| accepted.specs = "any".into());
        blast.pending.iter_mut().for_each(|pending| pending.specs = "any".into());
        policy
    })
}

/// A device that only those with `role: nobody` are about: it is no server, for the one rule that asks
/// for these alone, and no group or policy has had it. In use it has updates of its own, some of them failed or installed:
/// those that others offer too would age by its sightings, and its failures stop them for all. Out of use it tells nothing.
fn device_of_others(updates: &mut Catalogue, device: &Device, in_use: bool) -> Device {
    let name = format!("{}{}", if in_use { "y" } else { "z" }, device.name).into();
    let labels = ["role", "env"].map(|label| (label.to_owned(), "nobody".to_owned()));
    let labels = BTreeMap::from(labels).into();
    let device_type = DeviceType::Workstation;
    let free =
        Device { retired: false, current: None, last_group: None, last_policy: None, moved: None, ..device.clone() };
    let mut other = Device { name, labels, device_type, ..free };
    if !in_use {
        let report = Err(NoReport::None);
        return Device { retired: true, failures: vec![], installed: vec![], report, ..other };
    }
    let own = |id: &Name| Name::from(format!("own-{id}"));
    let mut own_update = |place: UpdateId| {
        let update = updates.get(place).expect("an update").as_ref().clone();
        updates.intern(Update { id: own(&update.id), ..update })
    };
    if let Ok(report) = &mut other.report {
        report.offers.iter_mut().for_each(|offer| offer.update = own_update(offer.update));
        report.removable.iter_mut().for_each(|update| *update = own_update(*update));
    }
    for failure in &mut other.failures {
        failure.update = own(&failure.update);
        if let Cause::Check(place) = &mut failure.cause {
            *place = own_update(*place);
        }
    }
    let ids: Vec<Name> = device.installed.iter().filter_map(|id| updates.id(*id).cloned()).collect();
    other.installed = ids.iter().map(|id| updates.number(&own(id))).collect();
    other
}

/// What was decided before is decided now, whatever else is.
fn stays(before: &Plan, after: &Plan, of_policy: impl Fn(&PolicyPlan) -> PolicyPlan) -> TestCaseResult {
    let policies: Vec<PolicyPlan> = after.policies.iter().map(&of_policy).collect();
    for policy in &before.policies {
        prop_assert!(policies.contains(&of_policy(policy)), "{:?}", policy);
    }
    for group in &before.groups {
        prop_assert!(after.groups.contains(group), "{:?}", group);
    }
    for device in &before.devices {
        prop_assert!(after.devices.contains(device), "{:?}", device);
    }
    Ok(())
}

/// The clock alone changes nothing until the next look.
fn nothing_changes_before_the_next_look(
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
fn a_refusal_ends_when_it_says(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
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
fn a_claim_may_act_exactly_while_the_plan_would_start_it(
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
fn a_claim_may_act_only_if_everything_still_holds(snapshot: &Snapshot, now: Timestamp) -> TestCaseResult {
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

fn a_device_complies_only_if_nothing_approved_is_missing_and_all_is_known(
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
fn what_a_check_found_is_told_until_somebody_has_seen_to_it(
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
fn a_device_that_is_not_heard_of_counts_as_it_was(
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

fn a_forecast_counts_no_more_than_there_are(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
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

fn stale(device: &Device, now: Timestamp) -> bool {
    let three_days_ago = now - SignedDuration::from_hours(72);
    !device.online && device.online_since.is_none_or(|since| since <= three_days_ago)
}

/// Properties of which no case is interesting would hold of anything.
#[test]
fn the_generated_fleets_meet_every_reason() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 5_000, ..config() },
        TestRng::deterministic_rng(RngAlgorithm::XorShift),
    );
    let seen: Mutex<BTreeMap<&str, u32>> = Mutex::default();
    runner
        .run(&fleet(), |(snapshot, now)| {
            let mut seen = seen.lock().expect("not poisoned");
            for device in plan(&snapshot, now).devices {
                *seen.entry("install").or_default() += u32::from(device.install.is_some());
                for update in device.updates {
                    *seen.entry(update.blocked.as_deref().map_or("nothing", Blocked::code)).or_default() += 1;
                }
            }
            for what in to_be_mended(&plan(&snapshot, now)) {
                *seen.entry(what).or_default() += 1;
            }
            for device in &snapshot.devices {
                let answer = may_act(&snapshot, &device.name, now);
                *seen.entry(answer.map_or_else(|blocked| blocked.code(), |()| "granted")).or_default() += 1;
                let restart = may_restart(&snapshot, &device.name, now);
                *seen.entry(restart.map_or_else(|blocked| blocked.code(), |()| "restart")).or_default() += 1;
            }
            Ok(())
        })
        .expect("nothing is asserted");
    let seen = seen.into_inner().expect("not poisoned");
    let rare: BTreeSet<&str> =
        REASONS.into_iter().filter(|code| seen.get(code).is_none_or(|times| *times < 5)).collect();
    assert!(rare.is_empty(), "hardly ever or never met: {rare:?} of {seen:#?}");
    assert!(seen["install"] > 200, "{} installs are too few to say anything", seen["install"]);
}

/// What policies, groups and windows say of themselves beside what blocks updates.
fn to_be_mended(answer: &Plan) -> Vec<&'static str> {
    let windows = answer.windows.iter().filter(|window| window.never_opens).map(|_| "window never opens");
    let policies = answer.policies.iter().flat_map(|policy| {
        let overlap = policy.overlap.as_ref().map(|overlap| match overlap {
            Overlap::SamePriority { .. } => "same priority",
            Overlap::HigherPriority { .. } => "higher priority",
        });
        let never_opens = policy.never_opens.then_some("policy never opens");
        let unprovable = policy.unprovable.as_ref().map(|_| "ring too small");
        let missing = (!policy.missing_groups.is_empty()).then_some("missing group");
        let unknown = (!policy.unknown_devices.first.is_empty()).then_some("unknown excluded device");
        let unlabelled = policy.unlabelled.then_some("no server has the label");
        let not_left_out = (!policy.missing_excluded_groups.is_empty()).then_some("missing excluded group");
        let too_short = policy.too_short.as_ref().map(|_| "own window too short");
        [overlap, never_opens, unprovable, too_short, missing, not_left_out, unknown, unlabelled].into_iter().flatten()
    });
    let groups = answer.groups.iter().filter_map(|group| match group.failed.as_ref()?.expression {
        FailedExpression::Members => Some("members fail"),
        FailedExpression::Rule { .. } => Some("rule fails"),
    });
    let members = answer.groups.iter().filter(|group| !group.unknown_devices.first.is_empty());
    windows.chain(policies).chain(groups).chain(members.map(|_| "unknown member")).collect()
}

/// What a person reads of a reason is where a person looks for it.
#[test]
fn every_reason_is_documented() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/decisions.md");
    let text = std::fs::read_to_string(path).expect("the document can be read");
    let reasons = REASONS.into_iter().filter(|code| code.starts_with(char::is_uppercase));
    for code in reasons.chain(["UnknownDevice", "NoReport", "TooManyParents"]) {
        assert!(text.contains(&format!("`{code}`")), "{code} is not in docs/decisions.md");
    }
}

/// All but `UnknownDevice`, and what else is counted.
const REASONS: [&str; 73] = [
    "install",
    "nothing",
    "NoGroup",
    "MembershipUnknown",
    "GroupInvalid",
    "ParentNotFound",
    "ParentsInCircle",
    "VulnerabilitiesUnknown",
    "ExpressionFailed",
    "AwaitingApproval",
    "LeftAlone",
    "Aging",
    "Ignored",
    "Waived",
    "ToBeRemoved",
    "Held",
    "CheckFailed",
    "NoPolicy",
    "PolicyInvalid",
    "WindowNotFound",
    "WindowInvalid",
    "WindowTooShort",
    "OwnWindowTooShort",
    "PolicyAudit",
    "PolicyDownloadOnly",
    "Filtered",
    "NeverRestarts",
    "PolicySuspended",
    "RolloutPaused",
    "BlastLimit",
    "DeviceSuspended",
    "DeviceRetired",
    "NoTimeZone",
    "DeviceStale",
    "DeviceOffline",
    "ClockOff",
    "DeviceProblem",
    "RolledBack",
    "RetriesExhausted",
    "UpdateStopped",
    "InstallRunning",
    "OthersFirst",
    "Settling",
    "RetryBackoff",
    "RingWaits",
    "WindowClosed",
    "Frozen",
    "FreezeAhead",
    "WindowEnding",
    "OnBattery",
    "OnHold",
    "PeersFirst",
    "ServiceAtLimit",
    "ConcurrencyReached",
    "NotClaimed",
    "OrderExpired",
    "PolicyChanged",
    "NotOffered",
    "Stays",
    "RestartTooLate",
    "restart",
    "window never opens",
    "policy never opens",
    "missing group",
    "missing excluded group",
    "unknown excluded device",
    "no server has the label",
    "unknown member",
    "same priority",
    "higher priority",
    "members fail",
    "ring too small",
    "rule fails",
];

fn pairs<'a>(snapshot: &'a Snapshot, answer: &Plan) -> Vec<(&'a Device, DevicePlan)> {
    let plan = |device: &Device| answer.devices.iter().find(|plan| plan.name == device.name).cloned();
    snapshot.devices.iter().map(|device| (device, plan(device).expect("a plan for each device"))).collect()
}

fn offered<'a>(
    snapshot: &'a Snapshot,
    device: &'a Device,
    decided: &'a DevicePlan,
) -> Vec<(&'a Offer, &'a Update, &'a UpdatePlan)> {
    let offers = device.report.as_ref().map(|report| report.offers.as_slice()).unwrap_or_default();
    assert!(offers.len() <= decided.updates.len());
    let pairs = offers.iter().zip(&decided.updates);
    pairs
        .inspect(|(offer, decided)| assert_eq!(offer.update, decided.update))
        .map(|(offer, decided)| (offer, reference::update_of(snapshot, offer), decided))
        .collect()
}

/// What is installed and can be taken back.
fn installed<'a>(snapshot: &'a Snapshot, device: &'a Device) -> Vec<&'a Update> {
    let removable = device.report.iter().flat_map(|report| &report.removable);
    removable.map(|update| &**snapshot.updates.get(*update).expect("interned")).collect()
}

/// What is planned for it, by id: that comes after what is offered.
fn removals<'a>(snapshot: &'a Snapshot, device: &Device, decided: &'a DevicePlan) -> Vec<(Name, &'a UpdatePlan)> {
    let offers = device.report.as_ref().map_or(0, |report| report.offers.len());
    let rest = decided.updates.iter().skip(offers).filter(|update| update.decision == Decision::Remove);
    let rest = rest.filter(|update| !update.is_checked());
    rest.map(|update| (id_of(snapshot, update), update)).collect()
}

fn id_of(snapshot: &Snapshot, update: &UpdatePlan) -> Name {
    snapshot.updates.get(update.update).expect("interned").id.clone()
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

fn without_look(answer: &Plan) -> Plan {
    Plan { next_look: None, ..answer.clone() }
}

pub fn claim(install: &Install) -> Claim {
    let Install { verb, updates, since: _, policy, dependencies: _, not_after, limit, expected, restart: _ } =
        install.clone();
    Claim {
        sequence: Sequence { epoch: 1, number: 1 },
        policy,
        verb,
        updates,
        granted: false,
        not_after,
        limit,
        expected,
        restart: SignedDuration::ZERO,
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

fn shuffled(snapshot: &Snapshot, seed: u64) -> Snapshot {
    let mut state = seed | 1;
    let mut snapshot = snapshot.clone();
    shuffle(&mut snapshot.policies, &mut state);
    shuffle(&mut snapshot.groups, &mut state);
    shuffle(&mut snapshot.windows, &mut state);
    shuffle(&mut snapshot.devices, &mut state);
    for policy in &mut snapshot.policies {
        shuffle(&mut policy.selector.0, &mut state);
        shuffle(&mut policy.groups, &mut state);
        shuffle(&mut policy.exclude_groups, &mut state);
        shuffle(&mut policy.exclude, &mut state);
        if let Ok(settings) = &mut policy.settings {
            shuffle(&mut settings.windows, &mut state);
        }
    }
    for group in &mut snapshot.groups {
        shuffle(&mut group.members.names, &mut state);
    }
    for calendar in snapshot.windows.iter_mut().filter_map(|window| window.calendar.as_mut().ok()) {
        shuffle(&mut calendar.schedules, &mut state);
        shuffle(&mut calendar.exclusions, &mut state);
    }
    for device in &mut snapshot.devices {
        shuffle(&mut device.failures, &mut state);
        if let Ok(report) = &mut device.report {
            shuffle(&mut report.problems, &mut state);
        }
    }
    snapshot
}

/// Fisher-Yates, by a xorshift generator.
fn shuffle<T>(list: &mut [T], state: &mut u64) {
    for last in (1..list.len()).rev() {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let other = usize::try_from(*state % (last as u64 + 1)).expect("within the list");
        list.swap(last, other);
    }
}
