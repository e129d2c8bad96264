//! What a planner says beside what is planned: when to look again, who is at work, what anybody offers.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::durations::Durations;
use patchwarden_plan::model::{
    Cause, Claim, Device, Exclusion, Failure, Measured, Name, NoReport, Offer, Progress, Snapshot, Update,
};
use patchwarden_plan::outcome::{Blocked, Decision};
use patchwarden_plan::{Planner, STALE_AFTER, plan};
use patchwarden_protocol::order::{Sequence, Verb};

use crate::fleet::{in_no_catalogue, into_catalogue};
use crate::scenario::{Past, World};

const NOW: &str = "2026-01-05T02:10:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("an instant")
}

fn fleet(yaml: &str) -> Snapshot {
    let yaml = format!(
        "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}, u-2: {{}}}}}}, web-2: {{}}}}\n{yaml}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    world.snapshot(&Past::default(), now())
}

const APPROVED: &str = "groups: {all: {selector: {}, default: Approve}}\n";

/// Nothing of the second device has changed.
#[test]
fn a_device_sees_that_its_ring_has_got_an_update() {
    let yaml = format!(
        "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n\
         devices: {{web-1: {{labels: {{ring: a}}, updates: {{u-1: {{}}}}}}, web-2: {{updates: {{u-1: {{}}}}}}}}\n{APPROVED}\
         policies: {{all: {{mode: Install, windows: [nights], maxConcurrent: 2, rings: [{{name: a, selector: {{matchLabels: {{ring: a}}}}, soak: 0h}}]}}}}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    // What is not written down yet is looked at again anyway.
    for device in &mut snapshot.devices {
        (device.last_policy, device.last_group) = (Some("all".into()), Some("all".into()));
    }
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
    planner.plan(now());
    let installs = |planner: &Planner<'_, Device>| planner.device("web-2").is_some_and(|plan| plan.install.is_some());
    assert!(!installs(&planner));
    let mut first = snapshot.devices[0].clone();
    first.report.as_mut().expect("a report").offers.clear();
    first.installed = [planner.updates_mut().number("u-1")].into();
    planner.put(first);
    planner.plan(now());
    assert!(installs(&planner));
}

/// That of another device is planned again, and it is written down.
#[test]
fn what_one_device_measured_is_expected_of_the_others_at_once() {
    let snapshot = fleet(&format!(
        "{APPROVED}policies: {{all: {{mode: Install, windows: [nights], installLimit: 90m, maxConcurrent: 2}}}}"
    ));
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
    planner.plan(now());
    let expected = |planner: &Planner<'_, Device>| -> Option<SignedDuration> {
        Some(planner.device("web-1")?.install.as_ref()?.expected)
    };
    let known = |planner: &Planner<'_, Device>| -> usize {
        planner.policies().map(|policy| policy.progress.durations.updates.len()).sum()
    };
    assert_eq!((expected(&planner), known(&planner)), (Some(SignedDuration::from_mins(90)), 0));
    let measured = Measured { updates: vec!["u-1".into(), "u-2".into()], kinds: vec![], seconds: 600, at: now() };
    planner.put(Device { measured: vec![measured], ..snapshot.devices[1].clone() });
    planner.plan(now());
    assert_eq!(known(&planner), 2);
    assert!(expected(&planner).is_some_and(|expected| expected < SignedDuration::from_mins(90)));
}

/// Each fits alone for longer than both do together.
#[test]
fn it_is_looked_again_when_two_do_not_fit_together_any_more() {
    let mut snapshot =
        fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights], installLimit: 1h}}}}"));
    let updates = ["u-1", "u-2"].map(|id| (id.into(), 20 * 60)).into();
    let durations = Durations { updates, ..Durations::default() };
    snapshot.policies[0].progress = Arc::new(Progress { durations, ..Progress::default() });
    let answer = plan(&snapshot, now());
    let install = answer.devices[0].install.as_ref().expect("an install");
    assert_eq!(install.updates.len(), 2);
    let over = install.not_after + SignedDuration::from_nanos(1);
    assert_eq!(answer.next_look, Some(over));
    let install = plan(&snapshot, over).devices[0].install.clone().expect("an install");
    assert_eq!(install.updates.len(), 1, "one of them still fits");
}

/// A fleet of which installs are expected to take 20 of 60 minutes (760 s, half as much again, and one minute), and only `u-1` is offered.
fn measured(exclusions: &str) -> Snapshot {
    let mut snapshot =
        fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights], installLimit: 1h}}}}"));
    if let Ok(calendar) = &mut snapshot.windows[0].calendar {
        let edges: Vec<Timestamp> = exclusions.split_whitespace().map(|at| at.parse().expect("an instant")).collect();
        let frozen = edges.chunks_exact(2).map(|edges| (edges[0], edges[1]));
        calendar.exclusions.extend(frozen.map(|(from, to)| Exclusion { name: "x".into(), from, to }));
    }
    let durations = Durations { updates: [("u-1".into(), 760)].into(), ..Durations::default() };
    snapshot.policies[0].progress = Arc::new(Progress { durations, ..Progress::default() });
    snapshot.devices[0].report.as_mut().expect("a report").offers.truncate(1);
    snapshot
}

/// It is not the window that changes then, nor is there room for what takes its limit before and after.
#[test]
fn what_does_not_fit_any_more_does_not_start_by_what_was_worked_out_before() {
    let snapshot = measured("");
    let at = |text: &str| -> Timestamp { text.parse().expect("an instant") };
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, at("2026-01-05T03:30:00Z"));
    planner.plan(at("2026-01-05T03:30:00Z"));
    let last = planner.device("web-1").and_then(|plan| plan.install.as_ref()).map(|install| install.not_after);
    assert_eq!(last, Some(at("2026-01-05T03:40:00Z")));
    planner.plan(at("2026-01-05T03:50:00Z"));
    assert!(planner.device("web-1").is_some_and(|plan| plan.install.is_none()));
}

/// At the very instants at which something changes, by one planner.
#[test]
fn a_window_opens_and_closes_when_it_says() {
    let snapshot = measured("");
    let at = |text: &str| -> Timestamp { text.parse().expect("an instant") };
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, at("2026-01-06T01:00:00Z"));
    let steps = [
        ("2026-01-06T01:00:00Z", false),
        ("2026-01-06T01:59:59.999999999Z", false),
        ("2026-01-06T02:00:00Z", true),
        ("2026-01-06T03:40:00Z", true),
        ("2026-01-06T03:40:00.000000001Z", false),
        ("2026-01-06T04:00:00Z", false),
        ("2026-01-07T02:00:00Z", true),
    ];
    for (now, installs) in steps {
        planner.plan(at(now));
        let plan = planner.device("web-1").expect("a plan");
        assert_eq!(plan.install.is_some(), installs, "{now}");
    }
}

/// The next opening is cut to ten minutes: too few for it, although something could start then.
#[test]
fn it_is_eligible_when_there_is_room_for_what_it_takes() {
    let snapshot = measured("2026-01-05T02:00:00Z 2026-01-06T00:00:00Z 2026-01-06T02:10:00Z 2026-01-06T06:00:00Z");
    let answer = plan(&snapshot, now());
    let eligible = answer.devices[0].updates[0].eligible_at;
    assert_eq!(eligible.map(|at| at.to_string()).as_deref(), Some("2026-01-07T02:00:00Z"));
}

/// Decisions are looked up by the numbers of ids, of which there are more now.
#[test]
fn a_decision_is_about_an_update_that_nobody_offered_when_it_was_made() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve, decisions: [{update: u-9*, action: Ignore}]}}\n\
         policies: {all: {mode: Install, windows: [nights]}}",
    );
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
    planner.plan(now());
    let mut device = snapshot.devices[0].clone();
    let offers = &mut device.report.as_mut().expect("a report").offers;
    let known = snapshot.updates.get(offers[0].update).expect("an update");
    let new = planner.updates_mut().intern(Update { id: "u-99".into(), ..(**known).clone() });
    offers.push(Offer { update: new, ..offers[0].clone() });
    planner.put(device);
    planner.plan(now());
    let updates = &planner.device("web-1").expect("a plan").updates;
    let decisions: Vec<Decision> = updates.iter().map(|update| update.decision).collect();
    assert_eq!(decisions, [Decision::Approved, Decision::Approved, Decision::Ignored]);
}

/// Puts a device like `web-1` that offers these updates, each since then.
fn offering(snapshot: &Snapshot, planner: &mut Planner<'_, Device>, name: &str, seen: &[(&str, &str)]) {
    let mut device = Device { name: name.into(), ..snapshot.devices[0].clone() };
    let offers = &mut device.report.as_mut().expect("a report").offers;
    let known = snapshot.updates.get(offers[0].update).expect("an update");
    let offer = offers[0].clone();
    *offers = seen
        .iter()
        .map(|(id, first_seen)| Offer {
            update: planner.updates_mut().intern(Update { id: (*id).into(), ..(**known).clone() }),
            first_seen: first_seen.parse().expect("an instant"),
            ..offer.clone()
        })
        .collect();
    planner.put(device);
}

/// Two have told of it before: for the client it is no news.
#[test]
fn what_a_group_offers_for_the_first_time_is_written_down_with_it() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}, other: {names: [web-9], default: Approve}}\n\
         policies: {all: {mode: Install, windows: [nights]}}",
    );
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
    offering(&snapshot, &mut planner, "web-1", &[("u-1", "2026-01-01T00:00:00Z")]);
    offering(&snapshot, &mut planner, "web-2", &[("u-1", "2026-01-02T00:00:00Z")]);
    offering(&snapshot, &mut planner, "web-9", &[]);
    planner.plan(now());
    let seen = |planner: &Planner<'_, Device>| {
        let group = planner.groups().find(|group| &*group.name == "other").expect("a group");
        group.seen.iter().map(|seen| seen.id.to_string()).collect::<Vec<_>>()
    };
    assert!(seen(&planner).is_empty());
    offering(&snapshot, &mut planner, "web-9", &[("u-1", "2026-01-03T00:00:00Z")]);
    planner.plan(now());
    assert_eq!(seen(&planner), ["u-1"]);
}

#[test]
fn of_too_many_updates_the_latest_waits_to_be_written_down() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
    let ids: Vec<String> = (0..513).map(|number| format!("u-{number:03}")).collect();
    let times = |id: &str| if id == "u-007" { "2026-01-02T00:00:00Z" } else { "2026-01-01T00:00:00Z" };
    let seen: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), times(id))).collect();
    offering(&snapshot, &mut planner, "web-1", &seen);
    planner.plan(now());
    let group = planner.groups().next().expect("a group");
    let kept: Vec<&str> = group.seen.iter().map(|seen| &*seen.id).collect();
    let expected: Vec<&str> = ids.iter().map(String::as_str).filter(|id| *id != "u-007").collect();
    assert_eq!(kept, expected);
}

#[test]
fn as_many_as_are_written_down_leave_no_room_for_what_nobody_offers_any_more() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    for (offered, room) in [(512, 0), (511, 1), (510, 2)] {
        let mut planner: Planner<'_, _> =
            Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now());
        let since = "2026-01-01T00:00:00Z";
        offering(&snapshot, &mut planner, "web-1", &[("old-1", since), ("old-2", since), ("old-3", since)]);
        planner.plan(now());
        let ids: Vec<String> = (0..offered).map(|number| format!("u-{number:03}")).collect();
        let seen: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), since)).collect();
        offering(&snapshot, &mut planner, "web-1", &seen);
        planner.plan(now());
        let group = planner.groups().next().expect("a group");
        let old = group.seen.iter().filter(|seen| seen.id.starts_with("old")).count();
        assert_eq!((group.seen.len(), old), (512, room));
    }
}

/// Whichever of them was told of first.
#[test]
fn of_two_sightings_at_one_instant_the_first_by_name_is_written_down() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    for names in [["web-1", "web-2"], ["web-2", "web-1"]] {
        let mut planner: Planner<'_, _> =
            Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), vec![], now());
        for name in names {
            offering(&snapshot, &mut planner, name, &[("u-1", "2026-01-01T00:00:00Z")]);
        }
        planner.plan(now());
        let group = planner.groups().next().expect("a group");
        assert_eq!(group.seen.iter().map(|seen| &*seen.by).collect::<Vec<_>>(), ["web-1"], "{names:?}");
    }
}

/// It is known by the device of another group, and the one that has installed it does not offer it.
#[test]
fn a_group_writes_down_no_sighting_of_what_is_installed_though_a_check_failed_after_it() {
    let groups = "groups: {one: {names: [web-1], default: Approve}, two: {names: [web-2], default: Approve}}\n";
    let mut snapshot = fleet(&format!("{groups}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let mut failure =
        Failure { update: "u-1".into(), attempts: 1, last: now(), again: now(), cause: in_no_catalogue() };
    into_catalogue(&mut failure, &mut snapshot.updates);
    snapshot.devices[1].failures = vec![failure];
    let answer = plan(&snapshot, now());
    assert!(answer.devices[1].updates[0].is_checked());
    let seen = |group: usize| answer.groups[group].seen.iter().map(|seen| &*seen.id).collect::<Vec<_>>();
    assert_eq!((seen(0), seen(1)), (vec!["u-1", "u-2"], vec![]));
}

#[test]
fn of_many_updates_after_which_a_check_failed_the_latest_of_as_many_as_an_order_has_are_told_of() {
    let mut snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let failure = |number: i64| {
        let last = now() - SignedDuration::from_mins(number);
        let mut failure =
            Failure { update: format!("c-{number}").into(), attempts: 1, last, again: last, cause: in_no_catalogue() };
        into_catalogue(&mut failure, &mut snapshot.updates);
        failure
    };
    snapshot.devices[0].failures = (0..26).map(failure).collect();
    let told = |snapshot: &Snapshot| {
        let checked =
            plan(snapshot, now()).devices[0].updates.iter().filter(|it| it.is_checked()).cloned().collect::<Vec<_>>();
        checked.iter().map(|it| snapshot.updates.get(it.update).expect("interned").id.to_string()).collect::<Vec<_>>()
    };
    let latest: Vec<String> = (0..24).rev().map(|number| format!("c-{number}")).collect();
    assert_eq!(told(&snapshot), latest);
    snapshot.devices[0].failures.reverse();
    assert_eq!(told(&snapshot), latest);
    // Of one that is told twice the worst counts.
    let again = Failure { attempts: 2, ..snapshot.devices[0].failures[25].clone() };
    snapshot.devices[0].failures.push(again);
    assert_eq!(told(&snapshot), latest);
    snapshot.devices[0].report = Err(NoReport::None);
    assert!(told(&snapshot).is_empty(), "nothing is told of a device that is not believed");
}

#[test]
fn where_the_clock_changes_nothing_it_is_never_looked_again() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: DownloadOnly}}}}"));
    let answer = plan(&snapshot, now());
    assert_eq!(answer.devices[0].install.as_ref().map(|install| install.verb), Some(Verb::Download));
    // The window is nobody's, and still opens and closes.
    let closes = "2026-01-05T04:00:00Z".parse().expect("an instant");
    assert_eq!(answer.next_look, Some(closes));
    let without = Snapshot { windows: vec![], ..snapshot };
    assert_eq!(plan(&without, now()).next_look, None);
}

/// `failedBefore` pardons what failed before that instant, and nothing that failed at it.
#[test]
fn what_failed_at_the_very_instant_still_counts_against_an_update() {
    let is_stopped = |failed_before: &str, update: &str, cause: Cause| {
        let decision = format!("{{update: {update}, action: Reprocess, failedBefore: {failed_before}}}");
        let mut snapshot = fleet(&format!(
            "groups: {{all: {{selector: {{}}, default: Approve, decisions: [{decision}]}}}}\n\
             policies: {{all: {{mode: Install, windows: [nights]}}}}"
        ));
        let last = "2026-01-05T01:00:00Z".parse().expect("an instant");
        let mut failure = Failure { update: update.into(), attempts: 1, last, again: last, cause };
        into_catalogue(&mut failure, &mut snapshot.updates);
        snapshot.devices[0].failures.push(failure);
        let again = |name: &str| Device { name: name.into(), ..snapshot.devices[0].clone() };
        let (second, third) = (again("web-2"), again("web-3"));
        snapshot.devices.truncate(1);
        snapshot.devices.extend([second, third]);
        plan(&snapshot, now()).policies[0].progress.updates.values().any(|update| update.stopped.is_some())
    };
    // What is offered, and what is installed and of which a check failed then.
    for (update, cause) in [("u-1", Cause::Update), ("u-9", in_no_catalogue())] {
        assert!(is_stopped("2026-01-05T01:00:00Z", update, cause));
        assert!(!is_stopped("2026-01-05T01:00:01Z", update, cause));
    }
}

#[test]
fn it_is_known_who_is_at_work_and_what_anybody_offers() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), snapshot.devices.clone(), now());
    planner.plan(now());
    assert_eq!(planner.at_work(), 0);
    assert!(planner.is_offered(&"u-1".into()) && !planner.is_offered(&"u-3".into()));
    for (held, device) in [(1, 0), (2, 1)] {
        let mut device = snapshot.devices[device].clone();
        device.report.as_mut().expect("a report").offers.clear();
        device.current = Some(Claim {
            sequence: Sequence { epoch: 0, number: 1 },
            policy: "all".into(),
            verb: Verb::Install,
            updates: vec!["u-1".into()],
            not_after: now(),
            limit: SignedDuration::from_hours(1),
            restart: SignedDuration::ZERO,
            expected: SignedDuration::from_hours(1),
            granted: true,
        });
        planner.put(device);
        planner.plan(now());
        assert_eq!(planner.at_work(), held);
    }
    assert!(!planner.is_offered(&"u-1".into()), "nobody offers it any more");
    let in_use = |planner: &Planner<'_, Device>| -> Vec<(Name, bool)> {
        let all = planner.in_use(now());
        all.map(|(plan, is_stale)| (plan.name.clone(), is_stale)).collect()
    };
    assert_eq!(in_use(&planner), [("web-1".into(), false), ("web-2".into(), false)]);
    let long_ago = now() - STALE_AFTER;
    planner.put(Device { online: false, online_since: Some(long_ago), ..snapshot.devices[1].clone() });
    planner.put(Device { online: false, online_since: None, ..snapshot.devices[0].clone() });
    planner.plan(now());
    assert_eq!(
        in_use(&planner),
        [("web-1".into(), false), ("web-2".into(), true)],
        "one that never was heard of is not"
    );
    planner.put(Device { retired: true, ..snapshot.devices[1].clone() });
    planner.plan(now());
    assert_eq!(in_use(&planner), [("web-1".into(), false)]);
    planner.remove("web-1");
    assert_eq!(planner.at_work(), 0);
}

/// With so many devices that have installed it beside three on which it failed.
fn tried(succeeded: usize) -> Snapshot {
    let mut snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let id = snapshot.updates.number("u-1");
    let template = snapshot.devices[1].clone();
    let last = now() - SignedDuration::from_hours(1);
    let failure = Failure { update: "u-1".into(), attempts: 1, last, again: last, cause: Cause::Update };
    snapshot.devices = (0..3 + succeeded)
        .map(|number| {
            let mut device = Device { name: format!("web-{number:03}").into(), ..template.clone() };
            if number < 3 {
                device.failures.push(failure.clone());
            } else {
                device.installed = [id].into();
            }
            device
        })
        .collect();
    snapshot
}

fn is_stopped(succeeded: usize) -> bool {
    plan(&tried(succeeded), now()).policies[0].progress.updates.values().any(|update| update.stopped.is_some())
}

/// With so many devices that have installed it beside three on which it failed; then those that installed it tell of it no
/// more, and half of them are gone. How many are known, and whether it is stopped.
fn of_those_that_installed_it_once(succeeded: usize) -> (u32, bool) {
    let mut snapshot = tried(succeeded);
    let before = plan(&snapshot, now()).policies[0].progress.clone();
    let known = before.updates.values().map(|update| update.anywhere).sum();
    snapshot.policies[0].progress = before;
    snapshot.devices.iter_mut().for_each(|device| device.installed.clear());
    snapshot.devices.truncate(3 + succeeded / 2);
    let after = plan(&snapshot, now());
    (known, after.policies[0].progress.updates.values().any(|update| update.stopped.is_some()))
}

// covers BY-10
#[test]
fn a_good_update_is_not_stopped_once_devices_have_installed_others_or_are_gone() {
    assert_eq!(of_those_that_installed_it_once(58), (58, false));
    assert_eq!(of_those_that_installed_it_once(76), (58, false), "as much as stands as many failures");
    assert_eq!(of_those_that_installed_it_once(77), (77, false));
}

/// Also if the only device on which it fails is counted anew at that moment, after the one that has installed it.
#[test]
fn one_more_that_installed_an_update_is_known_whoever_else_is_counted_anew() {
    let mut snapshot = tried(58);
    snapshot.devices.drain(..2);
    snapshot.devices[0].name = "web-last".into();
    let (failing, installed) = (snapshot.devices[0].clone(), snapshot.devices[1].clone());
    snapshot.devices[1].installed.clear();
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), snapshot.devices.clone(), now());
    let mut anywhere = |changed: &[Device]| {
        for device in changed {
            planner.put(device.clone());
        }
        planner.plan(now());
        planner.policies().next().expect("a policy").progress.updates["u-1"].anywhere
    };
    assert_eq!(anywhere(&[]), 0);
    assert_eq!(anywhere(&[installed, failing]), 58);
}

/// Nor is it written down where it has failed nowhere.
#[test]
fn of_an_update_that_few_have_installed_nothing_is_written_down_that_does_not_matter() {
    let mut snapshot = tried(100);
    snapshot.devices.iter_mut().for_each(|device| device.failures.clear());
    assert_eq!(plan(&snapshot, now()).policies[0].progress.updates.len(), 0);
    let mut snapshot = tried(57);
    snapshot.devices[0].failures.clear();
    let progress = plan(&snapshot, now()).policies[0].progress.clone();
    let told = progress.updates.values().map(|update| (update.anywhere, update.failed.len()));
    assert_eq!(told.collect::<Vec<_>>(), [(0, 2)], "on how many it is installed");
}

/// Each tells of it for a while only, and never both at once.
#[test]
fn a_ring_proves_an_update_by_the_most_devices_that_told_so_at_a_time() {
    let mut snapshot = fleet(&format!(
        "{APPROVED}policies: {{all: {{mode: Install, windows: [nights], rings: [{{name: a, selector: {{}}, soak: 9h, minSuccessPercent: 50, \
         minSuccesses: 2}}]}}}}"
    ));
    let id = snapshot.updates.number("u-1");
    let mut progress_when = |first: bool, second: bool, fails: bool| {
        for (device, tells) in snapshot.devices.iter_mut().zip([first, second]) {
            device.installed = tells.then_some(id).into_iter().collect();
        }
        let last = now() - SignedDuration::from_hours(1);
        let failure = Failure { update: "u-1".into(), attempts: 1, last, again: last, cause: Cause::Update };
        snapshot.devices[1].failures = fails.then_some(failure).into_iter().collect();
        snapshot.policies[0].progress = plan(&snapshot, now()).policies[0].progress.clone();
        let update = snapshot.policies[0].progress.updates.get("u-1").expect("it is written down");
        (update.installed, update.reached.is_some())
    };
    assert_eq!(progress_when(true, false, false), (1, false));
    assert_eq!(progress_when(false, false, false), (1, false));
    assert_eq!(progress_when(true, true, false), (2, true));
    assert_eq!(progress_when(false, false, false), (2, true));
    // Half of all are required: two of three have it.
    assert_eq!(progress_when(false, false, true), (2, true));
}

// covers BY-10
#[test]
fn three_failures_stop_an_update_where_they_are_five_percent() {
    assert!(is_stopped(57));
    assert!(!is_stopped(58));
}

#[test]
fn what_failed_at_the_instant_of_resuming_was_seen_by_whoever_resumed() {
    let paused = |resumed: &str, since: Option<&str>| {
        let at = |text: &str| -> Timestamp { text.parse().expect("an instant") };
        let mut snapshot = fleet(&format!(
            "{APPROVED}policies: {{all: {{mode: Install, windows: [nights], failureBudget: 0, resumed: \"{resumed}\"}}}}"
        ));
        let last = at("2026-01-05T01:00:00Z");
        snapshot.devices[0].failures.push(Failure {
            update: "u-1".into(),
            attempts: 1,
            last,
            again: last,
            cause: Cause::Update,
        });
        let paused = since.map(at);
        snapshot.policies[0].progress = Arc::new(Progress { paused, ..Progress::default() });
        plan(&snapshot, now()).policies[0].progress.paused.is_some()
    };
    assert!(!paused("2026-01-05T01:00:00Z", None));
    assert!(paused("2026-01-05T00:59:59Z", None));
    // Paused at the very instant of resuming: resumed.
    assert!(!paused("2026-01-05T01:30:00Z", Some("2026-01-05T01:30:00Z")));
    assert!(paused("2026-01-05T01:30:00Z", Some("2026-01-05T01:30:01Z")));
}

/// What needs no window may begin where it ends as the next freeze begins.
#[test]
fn between_two_freezes_there_is_room_for_exactly_as_long_as_it_takes() {
    let at = |text: &str| -> Timestamp { text.parse().expect("an instant") };
    let opens = |second: &str| {
        let yaml = format!(
            "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n{APPROVED}\
             policies: {{all: {{mode: InstallImmediately, windows: [nights], installLimit: 1h}}}}\n\
             devices: {{web-1: {{updates: {{u-1: {{restart: \"No\", interrupts: \"No\"}}}}}}}}"
        );
        let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let mut snapshot = world.snapshot(&Past::default(), now());
        if let Ok(calendar) = &mut snapshot.windows[0].calendar {
            let freeze = |from: &str, to: &str| Exclusion { name: "x".into(), from: at(from), to: at(to) };
            let first = freeze("2026-01-05T00:00:00Z", "2026-01-05T03:00:00Z");
            calendar.exclusions = vec![first, freeze(second, "2026-01-05T06:00:00Z")];
        }
        let blocked = plan(&snapshot, now()).devices[0].updates[0].blocked.clone().expect("it is blocked");
        match &*blocked {
            Blocked::Frozen { opens, .. } => opens.map(|at| at.to_string()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(opens("2026-01-05T04:00:00Z").as_deref(), Some("2026-01-05T03:00:00Z"));
    assert_eq!(opens("2026-01-05T03:59:59Z").as_deref(), Some("2026-01-05T06:00:00Z"));
}

/// Names are known again by where they are held: the answer must not depend on it.
#[test]
fn it_does_not_matter_whether_devices_hold_the_same_name() {
    let device = |number: usize, service: &str| {
        format!("  web-{number}: {{labels: {{service: {service}}}, updates: {{u-1: {{}}}}}}\n")
    };
    let services = ["a", "b", "b", "c", "a", "c"];
    let devices: String = services.iter().enumerate().map(|(number, service)| device(number, service)).collect();
    let yaml = format!(
        "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n\
         groups: {{all: {{selector: {{}}, default: Approve}}, b: {{rule: 'device.labels[\"service\"] == \"b\"', parent: all, priority: 1}}}}\n\
         policies: {{all: {{mode: Install, windows: [nights], maxConcurrent: 6, \
         disruption: {{groupBy: service, maxUnavailable: 1}}}}}}\ndevices:\n{devices}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    let apart = plan(&snapshot, now()).devices;
    for device in &mut snapshot.devices {
        let names = device.labels.iter().map(|(key, value)| (snapshot.updates.name(key), snapshot.updates.name(value)));
        device.labels = names.collect::<Vec<_>>().into_iter().collect();
    }
    assert_eq!(plan(&snapshot, now()).devices, apart);
    assert_eq!(apart.iter().filter(|device| device.install.is_some()).count(), 3);
    assert_eq!(apart.iter().filter(|device| device.group.as_deref() == Some("b")).count(), 2);
}
