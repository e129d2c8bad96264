//! What a plan that is kept sees of a device although something else has changed.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::Planner;
use patchwarden_plan::model::{
    Cause, Device, DeviceReport, DeviceType, Failure, Name, NoReport, Offer, Progress, Snapshot, Update, UpdateProgress,
};
use patchwarden_plan::outcome::{Blocked, Decision};
use patchwarden_protocol::report::ProblemCode;

use crate::scenario::{Past, World};

/// So many updates of a policy are followed.
const FOLLOWED: usize = 16_384;

pub fn now() -> Timestamp {
    "2026-01-05T02:10:00Z".parse().expect("an instant")
}

/// A window that is open, and what else the YAML says.
pub fn fleet(yaml: &str) -> Snapshot {
    let yaml = format!(
        "windows: {{week: {{timeZone: UTC, schedules: [once: {{at: \"2026-01-05T00:00\"}}], duration: 168h}}}}\n{yaml}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    // What is not written down yet is looked at again anyway.
    for device in &mut snapshot.devices {
        (device.last_policy, device.last_group) = (Some("all".into()), Some("all".into()));
    }
    snapshot
}

pub fn planner_of(snapshot: &Snapshot) -> Planner<'_, Device> {
    Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now())
}

pub fn device(snapshot: &Snapshot, name: &str) -> Device {
    snapshot.devices.iter().find(|device| &*device.name == name).expect("a device").clone()
}

/// The same device, which offers these updates since then; what is new to them is like the first update of the snapshot.
fn offering(
    planner: &mut Planner<'_, Device>,
    snapshot: &Snapshot,
    device: Device,
    ids: &[&str],
    since: &str,
) -> Device {
    let offers: Vec<&Offer> =
        snapshot.devices.iter().flat_map(|device| &device.report.as_ref().expect("a report").offers).collect();
    let template = offers.first().expect("an offer");
    let known = snapshot.updates.get(template.update).expect("an update");
    let offers = ids.iter().map(|id| Offer {
        update: planner.updates_mut().intern(Update { id: (*id).into(), ..(**known).clone() }),
        first_seen: since.parse().expect("an instant"),
        missing_since: since.parse().expect("an instant"),
        ..(*template).clone()
    });
    let mut report = device.report.clone().expect("a report");
    report.offers = offers.collect();
    Device { report: Ok(report), ..device }
}

/// These updates are in no ring any more: all devices have them.
fn everywhere(ids: &[String]) -> Progress {
    let update = |id: &String| -> (Name, UpdateProgress) {
        (
            id.as_str().into(),
            UpdateProgress {
                ring: None,
                opened: now(),
                reached: None,
                stopped: None,
                installed: 0,
                anywhere: 0,
                failed: vec![],
            },
        )
    };
    Progress { updates: ids.iter().map(update).collect(), ..Progress::default() }
}

fn progress_of(planner: &Planner<'_, Device>, policy: &str, id: &str) -> Option<UpdateProgress> {
    let plan = planner.policies().find(|plan| &*plan.name == policy).expect("a policy");
    plan.progress.updates.get(id).cloned()
}

#[test]
fn a_device_sees_since_when_an_older_version_that_it_lacks_is_known() {
    let (older, newer) = ("pkg:deb/debian/openssl@3.0.15-1", "pkg:deb/debian/openssl@3.0.16-1");
    let snapshot = fleet(&format!(
        "groups: {{all: {{selector: {{}}, rules: [{{name: a-week, action: Approve, after: 168h}}]}}}}\n\
         policies: {{all: {{mode: Install, windows: [week]}}}}\n\
         devices: {{web-1: {{updates: {{\"{newer}\": {{installed: 3.0.14-1}}}}}}, web-2: {{}}, web-3: {{}}}}"
    ));
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    let decision = |planner: &Planner<'_, Device>| planner.device("web-1").expect("a plan").updates[0].decision;
    assert_eq!(decision(&planner), Decision::Aging);
    for name in ["web-2", "web-3"] {
        let device = offering(&mut planner, &snapshot, device(&snapshot, name), &[older], "2025-12-20T00:00:00Z");
        planner.put(device);
    }
    planner.plan(now());
    assert_eq!(decision(&planner), Decision::Approved);
}

/// Whether one comes to wait, or two at once: of each it is asked whether anybody waits now who did not before.
#[test]
fn a_ring_that_nobody_waited_in_holds_what_some_come_to_wait_for() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 1h, whenEmpty: Promote}]}}\n\
         devices: {web-1: {labels: {ring: a}}, web-2: {labels: {ring: a}}, web-3: {updates: {u-1: {}}}}",
    );
    for names in [&["web-1"] as &[&str], &["web-1", "web-2"]] {
        let mut planner = planner_of(&snapshot);
        planner.plan(now());
        assert_eq!(progress_of(&planner, "all", "u-1").and_then(|update| update.reached), Some(now()));
        for name in names {
            let device = offering(&mut planner, &snapshot, device(&snapshot, name), &["u-1"], "2026-01-05T02:00:00Z");
            planner.put(device);
        }
        planner.plan(now() + SignedDuration::from_mins(10));
        assert_eq!(progress_of(&planner, "all", "u-1").map(|update| update.reached), Some(None), "{names:?}");
    }
}

#[test]
fn a_ring_is_asked_again_when_nobody_in_it_is_silent_any_more() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h, whenEmpty: Promote}]}}\n\
         devices: {web-1: {labels: {ring: a}}, web-2: {updates: {u-1: {}}}}",
    );
    let whole = device(&snapshot, "web-1");
    let silent = |change: fn(&mut DeviceReport)| {
        let mut device = whole.clone();
        change(device.report.as_mut().expect("a report"));
        device
    };
    let installs = |planner: &Planner<'_, Device>| planner.device("web-2").is_some_and(|plan| plan.install.is_some());
    for device in [
        silent(|report| report.truncated = true),
        silent(|report| report.problems.push(ProblemCode::RepositoryUnavailable)),
        Device { report: Err(NoReport::None), ..whole.clone() },
    ] {
        let mut planner = planner_of(&snapshot);
        planner.put(device);
        planner.plan(now());
        assert!(!installs(&planner));
        planner.put(whole.clone());
        planner.plan(now());
        assert!(installs(&planner));
    }
    let mut planner = planner_of(&snapshot);
    // Its updates are told all the same.
    planner.put(silent(|report| report.problems.push(ProblemCode::JournalCorrupt)));
    planner.plan(now());
    assert!(installs(&planner));
}

/// What was counted when it was still to come does not count then.
#[test]
fn a_rollout_goes_on_at_the_instant_that_it_is_resumed_at() {
    let resumed = now() + SignedDuration::from_hours(1);
    let mut snapshot = fleet(&format!(
        "groups: {{all: {{selector: {{}}, default: Approve}}}}\n\
         policies: {{all: {{mode: Install, windows: [week], failureBudget: 0, resumed: \"{resumed}\"}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}}}}}, web-2: {{updates: {{u-2: {{}}}}}}}}"
    ));
    let last = now() - SignedDuration::from_hours(1);
    snapshot.devices[0].failures.push(Failure {
        update: "u-1".into(),
        attempts: 1,
        last,
        again: last,
        cause: Cause::Update,
    });
    let mut planner = planner_of(&snapshot);
    let mut is_paused = |at: Timestamp| {
        planner.plan(at);
        // Those that wait for it are told until when.
        let waits = &planner.device("web-2").expect("a plan").updates[0];
        let why = waits.blocked.as_deref().map(Blocked::code);
        let is_paused = planner.policies().next().expect("a policy").progress.paused.is_some();
        let told = if is_paused { (Some("RolloutPaused"), Some(resumed)) } else { (None, None) };
        assert_eq!((why, waits.eligible_at), told, "at {at}");
        is_paused
    };
    assert!(is_paused(now()));
    assert!(is_paused(resumed - SignedDuration::from_nanos(1)));
    assert!(!is_paused(resumed));
}

/// There is room again; whoever comes to offer one of them begins at the first ring.
#[test]
fn what_nobody_offers_is_forgotten_for_more_updates_than_are_written_down() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h}]}}\n\
         devices: {web-1: {updates: {u-1: {}}}, web-2: {labels: {ring: a}}}",
    );
    let ids: Vec<String> = (0..FOLLOWED).map(|number| format!("v-{number:05}")).collect();
    snapshot.policies[0].progress = Arc::new(everywhere(&ids));
    let mut planner = planner_of(&snapshot);
    let (kept, forgotten) = ("v-00001", "v-00000");
    let offers = |planner: &mut Planner<'_, Device>, ids: &[&str]| {
        let device = offering(planner, &snapshot, device(&snapshot, "web-1"), ids, "2026-01-05T02:00:00Z");
        planner.put(device);
        planner.plan(now());
        planner.device("web-1").and_then(|plan| plan.install.clone()).map(|install| install.updates)
    };
    assert_eq!(offers(&mut planner, &[kept]), Some(vec![kept.into()]));
    assert_eq!(offers(&mut planner, &[forgotten]), None);
    assert_eq!(offers(&mut planner, &[kept]), Some(vec![kept.into()]), "what was offered then is not forgotten");
}

/// The policy's own devices tell nothing new.
#[test]
fn what_was_proved_counts_once_anybody_offers_it() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies:\n  all: {mode: Install, windows: [week], selector: {matchLabels: {of: all}}, rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h}]}\n  \
         other: {mode: Install, windows: [week], selector: {matchLabels: {of: other}}}\n\
         devices: {web-1: {labels: {of: all, ring: a}}, web-2: {labels: {of: other}, updates: {u-1: {}}}, web-3: {labels: {of: other}, updates: {u-2: {}}}}",
    );
    let id = snapshot.updates.number("u-1");
    snapshot.devices[0].installed = [id].into();
    let mut planner = planner_of(&snapshot);
    let second = device(&snapshot, "web-2");
    let without = offering(&mut planner, &snapshot, second.clone(), &[], "2026-01-05T02:00:00Z");
    planner.put(without);
    planner.plan(now());
    assert_eq!(progress_of(&planner, "all", "u-1"), None);
    planner.put(second);
    planner.plan(now());
    assert_eq!(progress_of(&planner, "all", "u-1").map(|update| update.ring), Some(None));
}

/// Of the only policy these updates are written down, and no others.
fn assert_followed(planner: &Planner<'_, Device>, ids: &[String]) {
    let updates = &planner.policies().next().expect("a policy").progress.updates;
    assert!(updates.keys().map(|id| &**id).eq(ids.iter()), "{} are followed", updates.len());
}

/// Nothing is forgotten for one more, and that one waits at the beginning.
#[test]
fn of_more_updates_than_are_written_down_those_that_are_offered_stay() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h}]}}\n\
         devices: {web-1: {updates: {u-1: {}}}, web-2: {labels: {ring: a}}}",
    );
    let ids: Vec<String> = (0..FOLLOWED).map(|number| format!("v-{number:05}")).collect();
    snapshot.policies[0].progress = Arc::new(everywhere(&ids));
    let proved = snapshot.updates.number("u-1");
    snapshot.devices[1].installed = [proved].into();
    let mut planner = planner_of(&snapshot);
    let offered: Vec<&str> = ids.iter().map(String::as_str).chain(["u-1"]).collect();
    let first = offering(&mut planner, &snapshot, device(&snapshot, "web-1"), &offered, "2026-01-05T02:00:00Z");
    planner.put(first);
    planner.plan(now());
    assert_followed(&planner, &ids);
}

/// Whoever is told of it may not have kept it: a planner that is new would begin there.
#[test]
fn a_move_that_was_not_written_down_begins_with_the_next_plan() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week]}}\n\
         devices: {web-1: {updates: {u-1: {}}}}",
    );
    snapshot.devices[0].last_policy = Some("before".into());
    let mut planner = planner_of(&snapshot);
    for at in [now(), now() + SignedDuration::from_mins(1)] {
        planner.plan(at);
        let moved = planner.device("web-1").and_then(|plan| plan.moved.as_ref());
        assert_eq!(moved.map(|moved| moved.since), Some(at));
    }
}

/// Of as many updates of a policy as there is room for something is written down, and another fails.
fn failing_beyond(stopped: Option<Timestamp>) -> (Snapshot, Vec<String>) {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h}]}}\n\
         devices: {web-1: {updates: {u-1: {}}}, web-2: {updates: {u-1: {}, u-2: {}}}, web-3: {}}",
    );
    let ids: Vec<String> = (0..FOLLOWED).map(|number| format!("v-{number:05}")).collect();
    let mut progress = everywhere(&ids);
    progress.updates.values_mut().for_each(|update| update.stopped = stopped);
    snapshot.policies[0].progress = Arc::new(progress);
    let failed = |id: &str| Failure { update: id.into(), attempts: 1, last: now(), again: now(), cause: Cause::Update };
    snapshot.devices[1].failures = vec![failed("u-1"), failed("u-2")];
    // So many installs that their number would be written down.
    snapshot.devices[2].installed = [snapshot.updates.number("u-1")].into();
    for number in 4..70 {
        snapshot.devices.push(Device { name: format!("web-{number}").as_str().into(), ..snapshot.devices[2].clone() });
    }
    (snapshot, ids)
}

#[test]
fn of_more_updates_than_are_written_down_those_that_are_stopped_stay() {
    let (snapshot, ids) = failing_beyond(Some(now()));
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_followed(&planner, &ids);
}

#[test]
fn on_which_devices_an_update_failed_is_written_down_once_there_is_room() {
    let (snapshot, ids) = failing_beyond(None);
    let mut planner = planner_of(&snapshot);
    let first = device(&snapshot, "web-1");
    let mut offers = |ids: &[String]| {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let device = offering(&mut planner, &snapshot, first.clone(), &ids, "2026-01-05T02:00:00Z");
        planner.put(device);
        planner.plan(now());
        planner.plan(now());
        ["u-1", "u-2"].map(|id| {
            let failed = progress_of(&planner, "all", id)?.failed;
            failed.first().map(|it| it.device.clone())
        })
    };
    assert_eq!(offers(&ids), [None, None]);
    assert_eq!(offers(&ids[2..]), [Some("web-2".into()), Some("web-2".into())]);
}

#[test]
fn a_group_writes_down_an_earlier_sighting_of_what_it_does_not_offer_any_more() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}, other: {names: [web-9], default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week]}}\n\
         devices: {web-1: {updates: {u-1: {}}}, web-2: {}, web-9: {}}",
    );
    let mut planner = planner_of(&snapshot);
    let put = |planner: &mut Planner<'_, Device>, name: &str, ids: &[&str], since: &str| {
        let device = offering(planner, &snapshot, device(&snapshot, name), ids, since);
        planner.put(device);
        planner.plan(now());
    };
    put(&mut planner, "web-1", &["u-1"], "2026-01-02T00:00:00Z");
    put(&mut planner, "web-9", &["u-1"], "2026-01-03T00:00:00Z");
    put(&mut planner, "web-9", &[], "2026-01-03T00:00:00Z");
    let first = |planner: &Planner<'_, Device>| {
        let group = planner.groups().find(|group| &*group.name == "other").expect("a group");
        group.seen.iter().map(|seen| seen.first.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(first(&planner), ["2026-01-02T00:00:00Z"]);
    put(&mut planner, "web-2", &["u-1"], "2026-01-01T00:00:00Z");
    assert_eq!(first(&planner), ["2026-01-01T00:00:00Z"]);
}

/// The decision says until when it counts, and is looked up in what was worked out before.
#[test]
fn a_decision_is_over_when_it_says() {
    let until = now() + SignedDuration::from_hours(1);
    let snapshot = fleet(&format!(
        "groups: {{all: {{selector: {{}}, decisions: [{{update: u-1, action: Approve, until: \"{until}\"}}]}}}}\n\
         policies: {{all: {{mode: Install, windows: [week]}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}}}}}}}"
    ));
    for (later, expected) in
        [(until - SignedDuration::from_nanos(1), Decision::Approved), (until, Decision::AwaitingApproval)]
    {
        let mut planner = planner_of(&snapshot);
        planner.plan(now());
        planner.plan(later);
        assert_eq!(planner.device("web-1").expect("a plan").updates[0].decision, expected, "{later}");
    }
}

/// What it would install is as before, and so is its service.
#[test]
fn whose_turn_it_is_changes_with_a_label_that_orders_a_service() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], disruption: {groupBy: app, maxUnavailable: 1, order: {label: role, values: [replica, primary]}}}}\n\
         devices:\n  db-1: {labels: {app: db, role: primary}, updates: {u-1: {}}}\n  db-2: {labels: {app: db, role: replica}, updates: {u-1: {}}}",
    );
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    let turns = |planner: &Planner<'_, Device>| {
        let goes = |name: &&str| planner.device(name).is_some_and(|plan| plan.install.is_some());
        ["db-1", "db-2"].into_iter().filter(goes).collect::<Vec<_>>()
    };
    assert_eq!(turns(&planner), ["db-2"]);
    let Device { labels, .. } = device(&snapshot, "db-2");
    planner.put(Device { labels, ..device(&snapshot, "db-1") });
    planner.plan(now());
    assert_eq!(turns(&planner), ["db-1"], "both are replicas, and it comes first by its name");
}

#[test]
fn whose_turn_it_is_changes_when_whoever_had_it_has_nothing_to_do_any_more() {
    let snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], maxConcurrent: 10, disruption: {groupBy: app, maxUnavailable: 1}}}\n\
         devices: {web-1: {labels: {app: web}, updates: {u-1: {}}}, web-2: {labels: {app: web}, updates: {u-1: {}}}}",
    );
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    let goes =
        |planner: &Planner<'_, Device>, name: &str| planner.device(name).is_some_and(|plan| plan.install.is_some());
    assert!(goes(&planner, "web-1") && !goes(&planner, "web-2"));
    let first = offering(&mut planner, &snapshot, device(&snapshot, "web-1"), &[], "2026-01-05T02:00:00Z");
    planner.put(first);
    planner.plan(now());
    assert!(goes(&planner, "web-2"));
}

/// What it installs itself, which is nothing, is as before, and so is what governs it.
#[test]
fn whose_turn_it_is_changes_where_the_only_device_of_a_policy_with_a_limit_leaves_its_service() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies:\n  all: {mode: Install, windows: [week]}\n  \
         careful: {priority: 1, selector: {matchLabels: {role: primary}}, mode: Audit, windows: [week], disruption: {groupBy: app, maxUnavailable: 1}}\n\
         devices:\n  db-1: {labels: {app: db, role: primary}}\n  db-2: {labels: {app: db}, updates: {u-1: {}}}\n  db-3: {labels: {app: db}, online: false}",
    );
    // Not for long: it is still missed.
    snapshot.devices[2].online_since = Some(now());
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    let blocked = |planner: &Planner<'_, Device>| planner.device("db-2").expect("a plan").updates[0].blocked.clone();
    let before = blocked(&planner);
    assert!(matches!(before.as_deref(), Some(Blocked::ServiceAtLimit { limit: 1, .. })), "{before:?}");
    planner.put(Device { device_type: DeviceType::Workstation, ..device(&snapshot, "db-1") });
    planner.plan(now());
    assert_eq!(blocked(&planner), None, "no policy of the service's servers names a limit any more");
}

/// Those that wait already offer what they did.
#[test]
fn all_that_wait_for_a_person_say_how_many_they_are() {
    let mut snapshot = fleet(
        "groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], blastLimit: 1}}\n\
         devices: {web-1: {updates: {u-1: {}}}, web-2: {updates: {u-1: {}}}, web-3: {updates: {u-1: {}}}}",
    );
    snapshot.devices[2].retired = true;
    let mut planner = planner_of(&snapshot);
    for waiting in [2, 3] {
        planner.plan(now());
        let plan = planner.device("web-1").expect("a plan");
        let blocked = plan.updates[0].blocked.as_deref();
        let says = matches!(blocked, Some(Blocked::BlastLimit { devices, .. }) if *devices == waiting);
        assert!(says, "{waiting}: {blocked:?}");
        planner.put(Device { retired: false, ..device(&snapshot, "web-3") });
    }
}

/// The date of the update of that id, as the device tells it.
fn dated(planner: &mut Planner<'_, Device>, device: Device, id: &str, date: &str) -> Device {
    let place = planner
        .updates_mut()
        .intern(Update { published: Some(date.parse().expect("an instant")), ..Update::by_id(id.into()) });
    let mut report = device.report.clone().expect("a report");
    report.offers.iter_mut().for_each(|offer| offer.update = place);
    Device { report: Ok(report), ..device }
}

fn decision(planner: &Planner<'_, Device>, name: &str) -> Decision {
    planner.device(name).expect("a device").updates[0].decision
}

const TWO_WEEKS: &str = "groups: {all: {selector: {}, rules: [{name: weeks, action: Approve, after: 336h, clock: Published}]}}\n\
     policies: {all: {mode: Audit}}\n";

// covers EM-3
#[test]
fn an_earlier_date_that_two_devices_tell_counts_for_all_at_once() {
    let new = "{updates: {u-1: {published: 2026-01-01T00:00:00Z}}}";
    let snapshot = fleet(&format!("{TWO_WEEKS}devices: {{a: {new}, b: {new}, c: {new}}}"));
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(decision(&planner, "c"), Decision::Aging);
    let a = dated(&mut planner, device(&snapshot, "a"), "u-1", "2025-12-01T00:00:00Z");
    planner.put(a);
    planner.plan(now());
    assert_eq!(
        ["a", "b", "c"].map(|name| decision(&planner, name)),
        [Decision::Approved, Decision::Aging, Decision::Aging]
    );
    let b = dated(&mut planner, device(&snapshot, "b"), "u-1", "2025-12-01T00:00:00Z");
    planner.put(b);
    planner.plan(now());
    assert_eq!(["a", "b", "c"].map(|name| decision(&planner, name)), [Decision::Approved; 3]);
}

// covers EM-3
#[test]
fn an_earlier_date_of_an_older_version_that_a_device_lacks_counts_for_it_at_once() {
    let (older, newer) = ("pkg:deb/debian/x@2", "pkg:deb/debian/x@3");
    let first = format!("{{updates: {{{older:?}: {{}}}}}}");
    let last = format!("{{updates: {{{newer:?}: {{installed: \"1\"}}}}}}");
    let snapshot = fleet(&format!("{TWO_WEEKS}devices: {{a: {first}, b: {first}, c: {last}}}"));
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(decision(&planner, "c"), Decision::Aging);
    for name in ["a", "b"] {
        let told = dated(&mut planner, device(&snapshot, name), older, "2025-12-01T00:00:00Z");
        planner.put(told);
        planner.plan(now());
    }
    assert_eq!(["a", "b", "c"].map(|name| decision(&planner, name)), [Decision::Approved; 3]);
}
