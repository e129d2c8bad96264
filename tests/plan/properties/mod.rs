//! What must hold for every fleet at every instant. The generator is in `fleet`, what should come out in `reference`.
//!
//! 2,000 fleets; `PROPTEST_CASES` asks for more.

mod acting;
mod holding;
mod limits;
mod order;
mod reasons;
mod told;
mod written;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use patchwarden_plan::model::{Claim, Device, Glob, Name, Offer, Snapshot, Update};
use patchwarden_plan::outcome::{DevicePlan, Install, UpdatePlan};
use patchwarden_plan::window::Moment;
use patchwarden_plan::{Plan, plan};
use patchwarden_protocol::order::Sequence;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm};

use self::acting::{
    a_claim_may_act_exactly_while_the_plan_would_start_it, a_claim_may_act_only_if_everything_still_holds,
    a_device_that_is_held_by_an_install_gets_no_second_one, a_refusal_ends_when_it_says,
    an_install_may_start_until_the_last_instant_that_a_window_allows,
    an_update_is_installed_or_waits_for_a_place_exactly_when_it_may, nothing_changes_before_the_next_look,
};
use self::holding::{
    a_change_of_the_specs_lets_few_devices_loose, a_device_that_lost_its_policy_or_group_waits,
    what_changes_by_itself_is_not_held,
};
pub use self::limits::no_service_has_more_devices_unavailable_than_it_may;
use self::limits::{no_policy_has_more_devices_at_work_than_it_allows, places_go_to_those_that_failed_least};
use self::order::{
    the_order_of_the_input_does_not_matter, what_has_nothing_to_do_with_a_device_changes_nothing_for_it,
};
use self::told::{
    a_device_complies_only_if_nothing_approved_is_missing_and_all_is_known,
    a_device_that_is_not_heard_of_counts_as_it_was, a_forecast_counts_no_more_than_there_are,
    a_window_tells_its_next_five_openings, each_device_has_the_policy_and_group_that_the_reference_says,
    what_a_check_found_is_told_until_somebody_has_seen_to_it, what_a_person_must_mend_says_so,
};
pub use self::written::written_down;
use self::written::{what_is_written_down_of_updates_is_what_several_devices_told, what_was_written_down_goes_forward};
use crate::fleet::{calendar, fleet, instant};
use crate::reference;

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
                prop_assert_eq!(calendar.last_opening(zone, opening.start + NANOSECOND), Some(opening));
                if let Some(last) = calendar.last_opening(zone, opening.start) {
                    prop_assert_eq!(calendar.next_opening(zone, last.start), Some(opening), "after {}", last.start);
                    prop_assert!(last.end <= opening.end, "{} and {}", last.start, opening.start);
                }
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

fn id_of(snapshot: &Snapshot, update: &UpdatePlan) -> Name {
    snapshot.updates.get(update.update).expect("interned").id.clone()
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
