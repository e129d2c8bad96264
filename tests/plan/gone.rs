//! Devices on which updates failed, and that are gone then.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::Planner;
use patchwarden_plan::model::{Cause, Device, FailedOn, Failure, Labels, Name, NoReport, Snapshot, UpdateProgress};

use patchwarden_protocol::report::ProblemCode;

use crate::news::{device, fleet, now, planner_of};

fn failed(mut device: Device, update: &str, last: Timestamp) -> Device {
    device.failures = vec![Failure { update: update.into(), attempts: 1, last, again: last, cause: Cause::Update }];
    device
}

fn progress(planner: &Planner<'_, Device>, update: &str) -> Option<UpdateProgress> {
    planner.policies().find(|policy| &*policy.name == "all")?.progress.updates.get(update).cloned()
}

/// The names of those on which it failed.
fn failed_on(planner: &Planner<'_, Device>, update: &str) -> Vec<Name> {
    progress(planner, update).into_iter().flat_map(|it| it.failed).map(|it| it.device).collect()
}

fn world(policy: &str, devices: &str) -> Snapshot {
    fleet(&format!(
        "groups: {{all: {{selector: {{}}, default: Approve}}}}\n\
         policies: {{all: {{mode: Install, windows: [week]{policy}}}}}\n\
         devices: {{{devices}}}"
    ))
}

// covers BY-10
#[test]
fn a_device_that_is_made_anew_under_its_name_still_counts_until_it_has_the_update() {
    let snapshot = world(
        ", selector: {matchLabels: {app: web}}",
        "web-1: {labels: {app: web}, updates: {u-1: {}}}, web-2: {labels: {app: web}, updates: {u-1: {}}}",
    );
    let whole = device(&snapshot, "web-1");
    let installed = Device { report: device(&world("", "web-1: {}"), "web-1").report, ..whole.clone() };
    let unheard = Device { report: Err(NoReport::None), ..whole.clone() };
    let mut planner = planner_of(&snapshot);
    planner.put(failed(whole.clone(), "u-1", now()));
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()]);
    planner.remove("web-1");
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()], "deleted");
    let mut silent = installed.clone();
    silent.report.as_mut().expect("a report").problems.push(ProblemCode::RepositoryUnavailable);
    let mut unlabelled = whole.clone();
    unlabelled.labels = Labels::default();
    let passing = |cause, attempts| Failure { update: "u-1".into(), attempts, last: now(), again: now(), cause };
    let tried = |failure| Device { failures: vec![failure], ..whole.clone() };
    for (again, what) in [
        (unheard, "nothing was heard of it yet"),
        (silent, "it does not tell what it lacks"),
        (unlabelled, "no policy governs it yet"),
        (tried(passing(Cause::Passing, 1)), "its mirror was down"),
        (tried(passing(Cause::Update, 0)), "its order was out of date"),
        (whole, "it offers the update again"),
    ] {
        planner.put(again);
        planner.plan(now());
        assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()], "{what}");
    }
    planner.put(installed);
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), [] as [Name; 0], "it has the update");
}

#[test]
fn a_device_that_another_policy_governs_now_counts_there() {
    let mut snapshot =
        world(", selector: {matchLabels: {app: web}}", "web-1: {labels: {app: web}, updates: {u-1: {}}}");
    let others = world(", selector: {matchLabels: {app: db}}", "web-1: {labels: {app: db}, updates: {u-1: {}}}");
    snapshot.policies.push(others.policies[0].clone());
    snapshot.policies[1].name = "others".into();
    let mut planner = planner_of(&snapshot);
    planner.put(failed(device(&snapshot, "web-1"), "u-1", now()));
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()]);
    planner.put(failed(device(&others, "web-1"), "u-1", now()));
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), [] as [Name; 0]);
}

// covers EM-9
#[test]
fn devices_that_are_gone_count_for_the_budget_once() {
    let updates = "{updates: {u-1: {}, u-2: {}}}";
    let snapshot = world(", failureBudget: 1", &format!("web-1: {updates}, web-2: {updates}, web-3: {updates}"));
    let is_paused = |names: &[&str]| {
        let mut planner = planner_of(&snapshot);
        for (name, update) in names.iter().zip(["u-1", "u-2"]) {
            planner.put(failed(device(&snapshot, name), update, now()));
            planner.plan(now());
            planner.remove(name);
            planner.plan(now());
        }
        planner.policies().any(|policy| policy.progress.paused.is_some())
    };
    assert!(is_paused(&["web-1", "web-2"]), "two devices");
    assert!(!is_paused(&["web-1", "web-1"]), "one, twice");
}

/// Another device of the ring has it, so that half of them do.
#[test]
fn what_failed_in_one_ring_is_no_word_on_the_next() {
    let ring = |name: &str, percent: u32| {
        format!("{{name: {name}, selector: {{matchLabels: {{ring: {name}}}}}, soak: 1h, minSuccessPercent: {percent}}}")
    };
    let snapshot = world(
        &format!(", rings: [{}, {}]", ring("a", 50), ring("b", 100)),
        "a-1: {labels: {ring: a}, updates: {u-1: {}}}, a-2: {labels: {ring: a}}, b-1: {labels: {ring: b}, updates: {u-1: {}}}, \
         b-2: {labels: {ring: b}, updates: {u-1: {}}}, web: {updates: {u-1: {}}}",
    );
    let has = |name: &str| {
        let mut device = device(&snapshot, name);
        let number = snapshot.updates.clone().number("u-1");
        device.installed = [number].into();
        device
    };
    let ring = |planner: &Planner<'_, Device>| progress(planner, "u-1").and_then(|it| it.ring);
    let mut planner = planner_of(&snapshot);
    let hours = |hours| now() + SignedDuration::from_hours(hours);
    planner.put(has("a-2"));
    planner.put(failed(device(&snapshot, "a-1"), "u-1", now()));
    planner.plan(now());
    planner.remove("a-1");
    planner.plan(hours(1));
    assert_eq!(ring(&planner), Some("b".into()), "half of the first ring");
    planner.put(has("b-1"));
    planner.plan(hours(2));
    planner.plan(hours(3));
    assert_eq!(ring(&planner), None, "all of the second");
    // What fails in the ring itself does count.
    let mut planner = planner_of(&snapshot);
    planner.put(failed(device(&snapshot, "a-1"), "u-1", now()));
    planner.plan(now());
    planner.remove("a-1");
    let other = Failure { update: "u-1".into(), attempts: 1, last: now(), again: now(), cause: Cause::Other };
    planner.put(Device { failures: vec![other], ..has("a-2") });
    planner.plan(hours(1));
    planner.plan(hours(2));
    assert_eq!(ring(&planner), Some("a".into()), "one of three");
}

/// A third has it: that is less than half of those that tried it.
#[test]
fn devices_that_go_one_after_the_other_all_count_for_their_ring() {
    let ring = "{name: a, selector: {matchLabels: {ring: a}}, soak: 0h, minSuccessPercent: 50}";
    let offers = "{labels: {ring: a}, updates: {u-1: {}}}";
    let snapshot = world(
        &format!(", rings: [{ring}]"),
        &format!("a-1: {offers}, a-2: {offers}, a-3: {{labels: {{ring: a}}}}, web: {{updates: {{u-1: {{}}}}}}"),
    );
    let mut planner = planner_of(&snapshot);
    for name in ["a-1", "a-2"] {
        planner.put(failed(device(&snapshot, name), "u-1", now()));
    }
    planner.plan(now());
    for name in ["a-1", "a-2"] {
        planner.remove(name);
        planner.plan(now());
    }
    let installed = [planner.updates_mut().number("u-1")].into();
    planner.put(Device { installed, ..device(&snapshot, "a-3") });
    planner.plan(now());
    assert_eq!(progress(&planner, "u-1").and_then(|it| it.ring), Some("a".into()));
}

#[test]
fn devices_that_go_one_after_the_other_all_count_for_a_stop() {
    let names = ["web-1", "web-2", "web-3"];
    let devices: Vec<String> = names.iter().map(|name| format!("{name}: {{updates: {{u-1: {{}}}}}}")).collect();
    let snapshot = world("", &devices.join(", "));
    let mut planner = planner_of(&snapshot);
    let is_stopped = |planner: &Planner<'_, Device>| progress(planner, "u-1").is_some_and(|it| it.stopped.is_some());
    for name in names {
        assert!(!is_stopped(&planner), "before {name}");
        planner.put(failed(device(&snapshot, name), "u-1", now()));
        planner.plan(now());
        planner.remove(name);
        planner.plan(now());
    }
    assert!(is_stopped(&planner));
}

#[test]
fn a_device_that_fails_next_counts_for_the_budget_at_once() {
    let updates = "{updates: {u-1: {}, u-2: {}}}";
    let snapshot = world(", failureBudget: 1", &format!("web-1: {updates}, web-2: {updates}, web-3: {updates}"));
    let mut planner = planner_of(&snapshot);
    let mut is_paused = |name: &str| {
        planner.put(failed(device(&snapshot, name), "u-1", now()));
        planner.plan(now());
        planner.policies().any(|policy| policy.progress.paused.is_some())
    };
    assert!(!is_paused("web-1"));
    assert!(is_paused("web-2"));
}

/// Nobody knows which it was.
#[test]
fn what_failed_in_a_ring_that_is_not_there_any_more_counts_in_those_that_are() {
    let ring = |name: &str| format!("{{name: {name}, selector: {{matchLabels: {{ring: {name}}}}}, soak: 0h}}");
    let mut snapshot = world(
        &format!(", rings: [{}, {}]", ring("a"), ring("b")),
        "a-1: {labels: {ring: a}}, web: {updates: {u-1: {}}}",
    );
    snapshot.devices[0].installed = [snapshot.updates.number("u-1")].into();
    let mut passes = |ring: Option<&str>| {
        let failed = FailedOn { device: "web-9".into(), last: now(), ring: ring.map(Into::into) };
        let update = UpdateProgress {
            ring: Some("a".into()),
            opened: now(),
            reached: None,
            stopped: None,
            installed: 0,
            anywhere: 0,
            failed: vec![failed],
        };
        Arc::make_mut(&mut snapshot.policies[0].progress).updates = [("u-1".into(), update)].into();
        let mut planner = planner_of(&snapshot);
        planner.plan(now());
        progress(&planner, "u-1").and_then(|it| it.ring) != Some("a".into())
    };
    assert!(!passes(Some("a")));
    assert!(passes(Some("b")));
    assert!(passes(None), "in the rest");
    assert!(!passes(Some("before")));
}

#[test]
fn of_too_many_devices_those_are_named_that_are_gone() {
    let devices: Vec<String> = (10..40).map(|number| format!("web-{number}: {{updates: {{u-1: {{}}}}}}")).collect();
    let snapshot = world("", &devices.join(", "));
    let mut planner = planner_of(&snapshot);
    for device in &snapshot.devices {
        planner.put(failed(device.clone(), "u-1", now()));
    }
    planner.plan(now());
    let named = failed_on(&planner, "u-1");
    assert_eq!((named.len(), named.first().map(|name| &**name)), (16, Some("web-10")));
    planner.remove("web-25");
    planner.plan(now());
    planner.put(failed(device(&snapshot, "web-10"), "u-1", now() + SignedDuration::from_secs(1)));
    planner.plan(now() + SignedDuration::from_secs(1));
    let named = failed_on(&planner, "u-1");
    assert!(named.len() == 16 && named.iter().any(|name| &**name == "web-25"), "{named:?}");
}

/// It is looked at then, though nothing else happens and nobody offers the update.
#[test]
fn a_decision_that_is_still_to_come_counts_for_devices_that_are_gone_from_then_on() {
    let mut snapshot = world("", "web-1: {updates: {u-1: {}}}, web-2: {}");
    let at = now() + SignedDuration::from_hours(5);
    let with = fleet(&format!(
        "groups: {{all: {{selector: {{}}, default: Approve, decisions: [{{update: u-1, action: Reprocess, failedBefore: {at}}}]}}}}"
    ));
    snapshot.groups = with.groups;
    let mut planner = planner_of(&snapshot);
    planner.put(failed(device(&snapshot, "web-1"), "u-1", now()));
    planner.plan(now());
    planner.remove("web-1");
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()]);
    let mut looks = 0;
    while let Some(look) = planner.next_look().filter(|look| *look < at) {
        looks += 1;
        assert!(looks < 100, "again and again at {look}");
        planner.plan(look);
        assert_eq!(failed_on(&planner, "u-1"), ["web-1".into()]);
    }
    assert_eq!(planner.next_look(), Some(at));
    // Whoever looks is a little late.
    planner.plan(at + SignedDuration::from_secs(1));
    assert_eq!(failed_on(&planner, "u-1"), [] as [Name; 0]);
}

/// Of an application that its policy does not ask for any more nothing else is looked at.
#[test]
fn a_decision_that_is_still_to_come_counts_for_what_a_device_offers_and_nobody_wants() {
    let at = now() + SignedDuration::from_hours(5);
    let decision = format!("{{update: kubectl-1, action: Reprocess, failedBefore: {at}}}");
    let snapshot = fleet(&format!(
        "groups: {{all: {{selector: {{}}, decisions: [{decision}]}}}}\n\
         policies: {{all: {{mode: Install, windows: [week]}}}}\n\
         devices: {{web-1: {{updates: {{kubectl-1: {{classification: FirstInstall, packages: [\"recipe:kubectl\"]}}}}}}}}"
    ));
    let mut planner = planner_of(&snapshot);
    planner.put(failed(device(&snapshot, "web-1"), "kubectl-1", now()));
    planner.plan(now());
    assert_eq!(failed_on(&planner, "kubectl-1"), ["web-1".into()]);
    while let Some(look) = planner.next_look().filter(|look| *look < at) {
        planner.plan(look);
    }
    assert_eq!(planner.next_look(), Some(at));
    planner.plan(at);
    assert_eq!(failed_on(&planner, "kubectl-1"), [] as [Name; 0]);
}

/// It still tells what failed on it.
#[test]
fn a_device_that_is_retired_counts_once_for_a_stop() {
    let names = ["web-1", "web-2", "web-3"];
    let devices: Vec<String> = names.iter().map(|name| format!("{name}: {{updates: {{u-1: {{}}}}}}")).collect();
    let snapshot = world("", &devices.join(", "));
    let mut planner = planner_of(&snapshot);
    let failing = names.map(|name| failed(device(&snapshot, name), "u-1", now()));
    planner.put(failing[0].clone());
    planner.plan(now());
    planner.put(Device { retired: true, ..failing[0].clone() });
    planner.put(failing[1].clone());
    planner.plan(now());
    assert_eq!(failed_on(&planner, "u-1"), ["web-1".into(), "web-2".into()]);
    assert!(progress(&planner, "u-1").is_some_and(|it| it.stopped.is_none()), "two devices");
    planner.put(failing[2].clone());
    planner.plan(now());
    assert!(progress(&planner, "u-1").is_some_and(|it| it.stopped.is_some()), "three");
}

#[test]
fn what_was_written_down_counts_for_a_planner_that_is_new() {
    let snapshot = world("", "web-1: {updates: {u-1: {}}}, web-2: {updates: {u-1: {}}}, web-3: {updates: {u-1: {}}}");
    let mut planner = planner_of(&snapshot);
    for name in ["web-1", "web-2"] {
        planner.put(failed(device(&snapshot, name), "u-1", now()));
    }
    planner.plan(now());
    let kept = planner.policies().next().expect("a policy").progress.clone();
    let mut snapshot = snapshot.clone();
    snapshot.policies[0].progress = kept;
    snapshot.devices.retain(|device| &*device.name == "web-3");
    let mut planner = planner_of(&snapshot);
    planner.put(failed(device(&snapshot, "web-3"), "u-1", now()));
    planner.plan(now());
    assert!(progress(&planner, "u-1").is_some_and(|it| it.stopped.is_some()), "two that are gone, and one");
}

/// Before one does nobody would keep the stop.
#[test]
fn what_has_failed_on_devices_of_no_policy_is_stopped_once_a_device_of_one_offers_it() {
    let names = ["web-1", "web-2", "web-3"];
    let devices: Vec<String> = names.iter().map(|name| format!("{name}: {{updates: {{u-1: {{}}}}}}")).collect();
    let snapshot = world(
        ", selector: {matchLabels: {app: web}}",
        &format!("{}, later: {{labels: {{app: web}}, updates: {{u-1: {{}}}}}}", devices.join(", ")),
    );
    let mut planner = planner_of(&snapshot);
    planner.remove("later");
    for name in names {
        planner.put(failed(device(&snapshot, name), "u-1", now()));
    }
    planner.plan(now());
    assert_eq!(progress(&planner, "u-1"), None);
    planner.put(device(&snapshot, "later"));
    planner.plan(now());
    assert!(progress(&planner, "u-1").is_some_and(|it| it.stopped.is_some()));
    assert!(planner.device("later").is_some_and(|plan| plan.install.is_none()));
}
