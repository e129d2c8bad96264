//! What policies, groups and windows say of what a person must mend, and that a plan that is kept says so for as long as it is so.

use std::borrow::Cow;
use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::Planner;
use patchwarden_plan::model::{Device, DeviceReport, Group, Members, Name, NoReport, Snapshot};
use patchwarden_plan::outcome::{
    Blocked, Decision, Failed, FailedExpression, Others, Overlap, POSSIBLE_GROUPS, PolicyPlan, Unprovable,
};

use patchwarden_protocol::report::ProblemCode;

use crate::scenario::{Past, World};

fn at(text: &str) -> Timestamp {
    text.parse().expect("an instant")
}

fn now() -> Timestamp {
    at("2026-01-05T02:10:00Z")
}

fn fleet(yaml: &str) -> Snapshot {
    let world: World = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    // What is not written down yet is looked at again anyway.
    let planned = patchwarden_plan::plan(&snapshot, now()).devices;
    for device in &mut snapshot.devices {
        let planned = planned.iter().find(|planned| planned.name == device.name).expect("a plan for each device");
        (device.last_policy, device.last_group) = (planned.policy.clone(), planned.group.clone());
    }
    snapshot
}

fn planner_of(snapshot: &Snapshot) -> Planner<'_, Device> {
    Planner::new(snapshot.specs(), Cow::Owned(snapshot.updates.clone()), snapshot.devices.clone(), now())
}

fn policy<'p>(planner: &'p Planner<'_, Device>, name: &str) -> &'p PolicyPlan {
    planner.policies().find(|plan| &*plan.name == name).expect("a policy")
}

fn device(snapshot: &Snapshot, name: &str) -> Device {
    snapshot.devices.iter().find(|device| &*device.name == name).expect("a device").clone()
}

fn others(first: &[&str], more: usize) -> Others {
    Others { first: first.iter().map(|name| Name::from(*name)).collect(), more }
}

/// Whether each window and then the policy says that it never opens, and when that is looked at again.
fn never_opens(snapshot: &Snapshot, now: Timestamp) -> (Vec<bool>, bool, Option<Timestamp>) {
    let plan = patchwarden_plan::plan(snapshot, now);
    (plan.windows.iter().map(|window| window.never_opens).collect(), plan.policies[0].never_opens, plan.next_look)
}

#[test]
fn a_window_never_opens_once_its_last_occurrence_is_over() {
    let snapshot = fleet(
        "windows:\n  last: {timeZone: UTC, schedules: [once: {at: \"2026-01-05T00:00\"}], duration: 4h}\n\
         policies: {all: {mode: Install, windows: [last]}}",
    );
    let end = at("2026-01-05T04:00:00Z");
    let (windows, policy, _) = never_opens(&snapshot, at("2026-01-04T00:00:00Z"));
    assert_eq!((windows, policy), (vec![false], false), "it is to come");
    assert_eq!(never_opens(&snapshot, at("2026-01-05T03:59:59Z")), (vec![false], false, Some(end)));
    assert_eq!(never_opens(&snapshot, end), (vec![true], true, None));
}

#[test]
fn a_window_on_devices_own_clocks_is_over_when_it_is_over_everywhere() {
    let snapshot = fleet(
        "windows:\n  last: {timeZone: Device, schedules: [once: {at: \"2026-01-05T00:00\"}], duration: 4h}\n\
         policies: {all: {mode: Install, windows: [last]}}",
    );
    // Where it is 12 hours earlier than in UTC.
    let end = at("2026-01-05T16:00:00Z");
    for open in ["2026-01-05T04:00:00Z", "2026-01-05T09:00:00Z", "2026-01-05T15:59:59Z"] {
        let (windows, policy, look) = never_opens(&snapshot, at(open));
        assert_eq!((windows, policy), (vec![false], false), "at {open}");
        assert!(look.is_some_and(|look| look > at(open) && look <= end), "at {open}: {look:?}");
    }
    assert_eq!(never_opens(&snapshot, end), (vec![true], true, None));
}

/// At 10:00 in UTC it is frozen; far enough in the east it is 10:00 before that.
#[test]
fn a_window_on_devices_own_clocks_opens_if_it_opens_in_the_east_alone() {
    let snapshot = fleet(
        "windows:\n  last: {timeZone: Device, schedules: [once: {at: \"2026-01-05T10:00\"}], duration: 4h, \
         exclusions: [{name: ever, from: 2026-01-04T21:00:00Z, to: 2026-01-07T00:00:00Z}]}\n\
         policies: {all: {mode: Install, windows: [last]}}",
    );
    let (windows, policy, _) = never_opens(&snapshot, at("2026-01-04T00:00:00Z"));
    assert_eq!((windows, policy), (vec![false], false));
    assert_eq!(never_opens(&snapshot, at("2026-01-04T21:00:00Z")).0, [true]);
}

#[test]
fn a_window_that_is_frozen_for_good_never_opens_and_one_that_thaws_does() {
    for (to, never) in [("9999-01-01T00:00:00Z", false), ("9999-12-30T22:00:00Z", true)] {
        let snapshot = fleet(&format!(
            "windows:\n  nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 4h, \
             exclusions: [{{name: ever, from: 2026-01-01T00:00:00Z, to: {to}}}]}}\n\
             policies: {{all: {{mode: Install, windows: [nights]}}}}"
        ));
        assert_eq!(never_opens(&snapshot, now()).0, [never], "until {to}");
    }
}

#[test]
fn a_policy_is_over_with_the_last_of_its_windows_where_it_goes_by_them() {
    let world = |mode: &str, windows: &str| {
        fleet(&format!(
            "windows:\n  gone: {{timeZone: UTC, schedules: [once: {{at: \"2025-01-05T00:00\"}}], duration: 4h}}\n  \
             nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 4h}}\n\
             policies: {{all: {{mode: {mode}, windows: {windows}}}}}"
        ))
    };
    for (mode, windows, expected) in [
        ("Install", "[gone]", true),
        ("InstallImmediately", "[gone]", true),
        ("DownloadOnly", "[gone]", true),
        ("DownloadOnly", "[]", false),
        ("Audit", "[gone]", false),
        ("Install", "[gone, nights]", false),
    ] {
        assert_eq!(never_opens(&world(mode, windows), now()).1, expected, "{mode} in {windows}");
    }
}

#[test]
fn a_ring_with_too_few_devices_to_prove_anything_is_told_while_others_wait_for_it() {
    let unprovable = |mode: &str, ring: &str, pilots: u32, others: u32| {
        let of = |name: &str, label: &str, count: u32| -> Vec<String> {
            (0..count).map(|n| format!("{name}-{n}: {{labels: {{ring: {label}}}, updates: {{u-1: {{}}}}}}")).collect()
        };
        let devices = [of("pilot", "pilot", pilots), of("web", "none", others)].concat().join(", ");
        let snapshot = fleet(&format!(
            "windows:\n  nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 4h}}\n\
             policies:\n  all:\n    mode: {mode}\n    windows: [nights]\n    rings:\n\
             \x20     - {{name: empty, selector: {{matchLabels: {{ring: nobody}}}}, soak: 0m, whenEmpty: Promote}}\n\
             \x20     - {{name: pilot, selector: {{matchLabels: {{ring: pilot}}}}, soak: 0m{ring}}}\n\
             devices: {{{devices}}}"
        ));
        let mut planner = planner_of(&snapshot);
        planner.plan(now());
        let told = policy(&planner, "all").unprovable.clone();
        told.map(|Unprovable { place, ring, devices, unknown: _, needs, waiting }| {
            (place, ring.to_string(), devices, needs, waiting)
        })
    };
    let pilot = |devices, needs, waiting| Some((1, "pilot".to_owned(), devices, needs, waiting));
    assert_eq!(unprovable("Install", "", 0, 2), pilot(0, 1, 2));
    assert_eq!(unprovable("InstallImmediately", ", minSuccesses: 3", 2, 1), pilot(2, 3, 1));
    assert_eq!(unprovable("Install", ", minSuccesses: 2", 2, 1), None);
    assert_eq!(unprovable("Install", "", 0, 0), None, "nobody waits");
    assert_eq!(unprovable("Install", ", minSuccesses: 3", 2, 0), None, "nobody waits");
    assert_eq!(unprovable("Install", ", whenEmpty: Promote", 0, 2), None, "it is passed over");
    assert_eq!(unprovable("Install", ", whenEmpty: Promote, minSuccesses: 2", 1, 2), pilot(1, 2, 2));
    assert_eq!(unprovable("DownloadOnly", "", 0, 2), None, "downloads wait for no ring");
    assert_eq!(unprovable("Audit", "", 0, 2), None);
}

#[test]
fn devices_that_are_not_heard_of_prove_nothing() {
    let snapshot = fleet(
        "windows:\n  nights: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 4h}\n\
         policies: {all: {mode: Install, windows: [nights], rings: [{name: pilot, selector: {matchLabels: {ring: pilot}}, soak: 0m, minSuccesses: 2}]}}\n\
         devices: {pilot-1: {labels: {ring: pilot}}, pilot-2: {labels: {ring: pilot}}, web: {updates: {u-1: {}}}}",
    );
    let mut planner = planner_of(&snapshot);
    let mut told = |change: fn(&mut Device)| {
        let mut pilot = device(&snapshot, "pilot-1");
        change(&mut pilot);
        planner.put(pilot);
        planner.plan(now());
        policy(&planner, "all").unprovable.as_ref().map(|it| (it.devices, it.unknown, it.needs, it.waiting))
    };
    assert_eq!(told(|_| {}), None);
    let stale = |pilot: &mut Device| {
        pilot.online = false;
        pilot.online_since = Some(now() - SignedDuration::from_hours(73));
    };
    assert_eq!(told(stale), Some((2, 1, 2, 1)));
    assert_eq!(told(|pilot| pilot.report = Err(NoReport::None)), None, "it may report in a moment");
    let broken = |pilot: &mut Device| {
        pilot.report.as_mut().expect("a report").problems.push(ProblemCode::RepositoryUnavailable);
    };
    assert_eq!(told(broken), None, "a mirror that is down for an hour");
    let offline = |pilot: &mut Device| {
        pilot.online = false;
        pilot.online_since = Some(now() - SignedDuration::from_hours(1));
    };
    assert_eq!(told(offline), None, "it was there a moment ago");
}

#[test]
fn a_window_that_a_group_gives_and_in_which_no_install_could_start_is_told_of_the_policy() {
    let told = |limit: &str, of: &str| {
        let snapshot = fleet(&format!(
            "windows:\n  nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 8h}}\n  \
             lunch: {{timeZone: UTC, schedules: [daily: {{at: \"12:00\"}}], duration: 1h}}\n\
             policies: {{all: {{mode: Install, windows: [nights], installLimit: {limit}}}}}\n\
             groups: {{all: {{selector: {{}}, rules: [{{name: gentle, packages: [{of}], action: Approve, window: lunch}}], default: Approve}}}}\n\
             devices: {{web-1: {{updates: {{u-1: {{packages: [a]}}}}}}}}"
        ));
        let mut planner = planner_of(&snapshot);
        planner.plan(now());
        policy(&planner, "all").too_short.clone()
    };
    assert_eq!(told("1h", "a").as_deref(), Some("lunch"));
    assert_eq!(told("30m", "a"), None);
    assert_eq!(told("1h", "b"), None, "nothing waits for it");
}

#[test]
fn a_policy_that_names_a_group_that_is_not_there_governs_the_devices_of_the_others() {
    let yaml = |groups: &str| {
        fleet(&format!(
            "windows:\n  nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 4h}}\n\
             groups: {{all: {{names: [web-1], default: Approve}}{groups}}}\n\
             policies: {{all: {{mode: Install, windows: [nights], approvalGroups: [gone, all, \"organisation/all\"]}}}}\n\
             devices: {{web-1: {{updates: {{u-1: {{}}}}}}, web-2: {{updates: {{u-1: {{}}}}}}}}"
        ))
    };
    let mut snapshot = yaml("");
    // A parent of others, and nobody's own group.
    let all = snapshot.groups[0].clone();
    snapshot.groups.push(Group { name: "organisation/all".into(), members: Members::default(), ..all });
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(*policy(&planner, "all").missing_groups, ["gone".into(), "organisation/all".into()]);
    assert_eq!(policy(&planner, "all").devices, 1);
    assert!(planner.device("web-1").is_some_and(|plan| plan.install.is_some()), "it is patched");
    let snapshot = yaml(", gone: {names: [web-2], default: Approve}");
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(*policy(&planner, "all").missing_groups, ["organisation/all".into()]);
    assert_eq!(policy(&planner, "all").devices, 2);
}

#[test]
fn names_of_devices_that_are_not_there_are_told_until_they_come_and_again_once_they_are_gone() {
    let snapshot = fleet(
        "groups: {all: {names: [web-1, old, web-9], default: Approve}}\n\
         policies: {all: {exclude: [web-5, web-1, web-4, old, web-3, web-9, web-2]}, other: {exclude: [web-1]}}\n\
         devices: {web-1: {}, old: {retired: true}, plain: {}}",
    );
    let mut planner = planner_of(&snapshot);
    let told = |planner: &mut Planner<'_, Device>| {
        planner.plan(now());
        let group = planner.groups().find(|plan| &*plan.name == "all").expect("a group");
        let policies = ["all", "other"].map(|name| policy(planner, name).unknown_devices.clone());
        (policies, group.unknown_devices.clone())
    };
    let none = || others(&[], 0);
    let first = ([others(&["web-2", "web-3", "web-4"], 2), none()], others(&["web-9"], 0));
    assert_eq!(told(&mut planner), first, "one that is retired is there");
    // What the policy does not govern, and the group does not have.
    planner.put(Device { name: "web-9".into(), ..device(&snapshot, "plain") });
    assert_eq!(told(&mut planner), ([others(&["web-2", "web-3", "web-4"], 1), none()], none()));
    planner.remove("web-1");
    let gone = ([others(&["web-1", "web-2", "web-3"], 2), others(&["web-1"], 0)], others(&["web-1"], 0));
    assert_eq!(told(&mut planner), gone);
    planner.remove("web-1");
    planner.put(Device { on_hold: true, ..device(&snapshot, "plain") });
    assert_eq!(told(&mut planner), gone, "nothing of it has changed");
    planner.put(device(&snapshot, "web-1"));
    planner.remove("web-9");
    assert_eq!(told(&mut planner), first);
}

#[test]
fn a_label_by_which_no_server_is_of_a_service_is_told_while_there_are_servers() {
    let snapshot = fleet(
        "policies: {all: {disruption: {groupBy: app, maxUnavailable: 1}}, free: {priority: 1, selector: {matchLabels: {free: yes}}}}\n\
         devices: {web-1: {labels: {ap: web}}, desk-1: {type: Workstation, labels: {app: web}}, old: {retired: true, labels: {app: web}}, \
         free-1: {labels: {free: yes, app: web}}}",
    );
    let mut planner = planner_of(&snapshot);
    let told = |planner: &mut Planner<'_, Device>| {
        planner.plan(now());
        assert!(!policy(planner, "free").unlabelled, "it asks for no label");
        policy(planner, "all").unlabelled
    };
    assert!(
        told(&mut planner),
        "workstations, what is retired and other policies' devices are of none of its services"
    );
    let labelled = |name: &str| Device { labels: device(&snapshot, "desk-1").labels, ..device(&snapshot, name) };
    planner.put(labelled("web-1"));
    assert!(!told(&mut planner));
    planner.put(Device { name: "web-2".into(), ..device(&snapshot, "web-1") });
    assert!(!told(&mut planner), "one has it");
    planner.put(device(&snapshot, "web-1"));
    assert!(told(&mut planner));
    planner.remove("web-1");
    planner.remove("web-2");
    assert!(!told(&mut planner), "it governs no server");
}

#[test]
fn policies_that_select_the_same_devices_say_who_has_them_until_they_do_not_any_more() {
    let snapshot = fleet(
        "policies: {a: {}, b: {selector: {matchLabels: {app: web}}}, c: {selector: {matchLabels: {app: web}}}, \
         d: {selector: {matchLabels: {app: web}}}, e: {selector: {matchLabels: {app: web}}}, \
         base: {priority: -1}, strong: {priority: 5, selector: {matchLabels: {app: db}}}}\n\
         devices: {web-1: {labels: {app: web}}, web-2: {labels: {app: web}}, db-1: {labels: {app: db}}, plain: {}, old: {retired: true, labels: {app: web}}}",
    );
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    let overlap = |planner: &Planner<'_, Device>, name: &str| policy(planner, name).overlap.clone();
    let same = |won, lost, others| Some(Overlap::SamePriority { won, lost, others });
    let higher = |lost, others| Some(Overlap::HigherPriority { lost, others });
    assert_eq!(
        overlap(&planner, "a"),
        same(2, 0, others(&["b", "c", "d"], 1)),
        "what it loses to `strong` is the lesser matter"
    );
    // Between those that lose nothing is decided.
    assert_eq!(overlap(&planner, "e"), same(0, 2, others(&["a"], 0)));
    assert_eq!(overlap(&planner, "base"), higher(4, others(&["strong", "a"], 0)));
    assert_eq!(overlap(&planner, "strong"), None, "the others say so");

    let web = device(&snapshot, "web-1");
    planner.put(Device { labels: device(&snapshot, "db-1").labels, ..web.clone() });
    planner.plan(now());
    assert_eq!(overlap(&planner, "a"), same(1, 0, others(&["b", "c", "d"], 1)));
    assert_eq!(overlap(&planner, "e"), same(0, 1, others(&["a"], 0)));
    planner.remove("web-2");
    planner.plan(now());
    assert_eq!(overlap(&planner, "a"), higher(2, others(&["strong"], 0)));
    assert_eq!(overlap(&planner, "e"), None);
    planner.put(Device { retired: true, ..device(&snapshot, "db-1") });
    planner.put(web);
    planner.plan(now());
    assert_eq!(overlap(&planner, "a"), same(1, 0, others(&["b", "c", "d"], 1)));
    assert_eq!(overlap(&planner, "base"), higher(2, others(&["a"], 0)));
}

const RULES: &str = "groups:\n  \
    all: {selector: {}, parent: above, rules: [{name: own, classifications: [Updates], action: Approve, expression: \"update.cves[0] != 'x'\"}]}\n  \
    above: {decisions: [{update: u-ok, action: Approve}], rules: [{name: inherited, action: Approve, expression: \"update.packages[0] != 'x'\"}]}\n\
    devices:\n  web-1: {updates: {u-1: {packages: [curl]}}}\n  web-2: {updates: {u-3: {}, u-2: {}, u-ok: {}}}\n";

fn failed(planner: &Planner<'_, Device>, group: &str) -> Option<(FailedExpression, Name, usize)> {
    let plan = planner.groups().find(|plan| &*plan.name == group).expect("a group");
    plan.failed.clone().map(|Failed { expression, error, example, more }| {
        assert!(!error.is_empty());
        (expression, example, more)
    })
}

fn rule(group: &str, rule: &str) -> FailedExpression {
    FailedExpression::Rule { group: group.into(), rule: rule.into() }
}

#[test]
fn a_rule_whose_expression_fails_is_told_by_its_group_while_such_an_update_is_offered() {
    let snapshot = fleet(RULES);
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    // Of what a decision approves nobody asks the rule.
    assert_eq!(failed(&planner, "above"), Some((rule("above", "inherited"), "u-2".into(), 1)));
    assert_eq!(failed(&planner, "all"), None, "its own rule is about other updates");
    let plan = planner.device("web-2").expect("a plan");
    let decided: Vec<Decision> = plan.updates.iter().map(|update| update.decision).collect();
    assert_eq!(decided, [Decision::AwaitingApproval, Decision::AwaitingApproval, Decision::Approved]);
    assert!(matches!(plan.updates[0].blocked.as_deref(), Some(Blocked::ExpressionFailed { .. })), "as before");

    let without = |device: Device, left: usize| {
        let report = device.report.clone().expect("a report");
        let offers = report.offers.into_iter().skip(left).collect();
        Device { report: Ok(DeviceReport { offers, ..report }), ..device }
    };
    // The updates are in the order of their ids.
    planner.put(without(device(&snapshot, "web-2"), 1));
    planner.plan(now());
    assert_eq!(failed(&planner, "above"), Some((rule("above", "inherited"), "u-3".into(), 0)));
    planner.put(without(device(&snapshot, "web-2"), 2));
    planner.plan(now());
    assert_eq!(failed(&planner, "above"), None);
    planner.put(device(&snapshot, "web-2"));
    planner.plan(now());
    assert_eq!(failed(&planner, "above"), Some((rule("above", "inherited"), "u-2".into(), 1)));
    planner.put(Device { retired: true, ..device(&snapshot, "web-2") });
    planner.plan(now());
    assert_eq!(failed(&planner, "above"), None, "a device that is retired counts in no group");
}

#[test]
fn a_decision_that_is_over_leaves_its_update_to_a_rule_that_fails() {
    let yaml =
        RULES.replace("update: u-ok, action: Approve", "update: \"u-*\", action: Ignore, until: 2026-01-05T03:00:00Z");
    let snapshot = fleet(&yaml);
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(failed(&planner, "above"), None);
    let over = at("2026-01-05T03:00:00Z");
    assert_eq!(planner.next_look(), Some(over));
    planner.plan(over);
    assert_eq!(failed(&planner, "above"), Some((rule("above", "inherited"), "u-2".into(), 2)));
}

#[test]
fn what_fails_of_the_organisations_rules_is_told_by_the_group_of_the_devices() {
    let mut snapshot = fleet(RULES);
    for group in &mut snapshot.groups {
        if &*group.name == "above" {
            group.name = "organisation/above".into();
        } else {
            group.parent = Some("organisation/above".into());
        }
    }
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    assert_eq!(failed(&planner, "all"), Some((rule("organisation/above", "inherited"), "u-2".into(), 1)));
    assert_eq!(failed(&planner, "organisation/above"), None);
}

#[test]
fn a_rule_of_members_that_fails_is_told_by_its_group_while_there_is_such_a_device() {
    let snapshot = fleet(
        "groups: {all: {selector: {matchLabels: {app: web}}, rule: \"device.labels.env == 'prod'\", names: [named]}, near: {level: Device, names: [web-9]}}\n\
         devices: {named: {}, web-1: {labels: {env: prod}}, web-2: {labels: {app: web}}, web-3: {}, web-9: {}, old: {retired: true}}",
    );
    let mut planner = planner_of(&snapshot);
    planner.plan(now());
    // Whoever belongs to it anyway need not be asked; who belongs to a nearer group may lose that.
    assert_eq!(failed(&planner, "all"), Some((FailedExpression::Members, "web-3".into(), 1)));
    assert_eq!(planner.device("web-9").expect("a plan").group, Some("near".into()));
    planner.put(Device { labels: device(&snapshot, "web-1").labels, ..device(&snapshot, "web-3") });
    planner.plan(now());
    assert_eq!(failed(&planner, "all"), Some((FailedExpression::Members, "web-9".into(), 0)));
    planner.remove("web-9");
    planner.plan(now());
    assert_eq!(failed(&planner, "all"), None);
    planner.put(device(&snapshot, "web-3"));
    planner.plan(now());
    assert_eq!(failed(&planner, "all"), Some((FailedExpression::Members, "web-3".into(), 0)));
}

#[test]
fn groups_in_a_circle_are_told_each_and_no_other() {
    let snapshot = fleet(
        "groups: {a: {parent: b}, b: {parent: a}, below: {parent: a}, beside: {names: [web-1], default: Approve}}\n\
         devices: {web-1: {updates: {u-1: {}}}}",
    );
    let plan = patchwarden_plan::plan(&snapshot, now());
    let stalled: Vec<Option<Blocked>> = plan.groups.iter().map(|group| group.stalled.as_deref().cloned()).collect();
    let circle = |group: &str| Some(Blocked::ParentsInCircle { group: group.into() });
    assert_eq!(stalled, [circle("a"), circle("b"), circle("a"), None]);
    assert_eq!(plan.devices[0].updates[0].decision, Decision::Approved);
}

#[test]
fn of_more_possible_groups_than_are_written_down_those_stay_that_were_among_them() {
    let mut yaml = "devices: {web-1: {updates: {u-1: {}}}}\npolicies: {all: {}}\ngroups:\n".to_owned();
    for number in 0..POSSIBLE_GROUPS + 4 {
        writeln!(yaml, "  g{number:02}: {{priority: {}, rule: 'device.labels.tier == \"a\"'}}", 100 - number).unwrap();
    }
    let mut snapshot = fleet(&format!("{yaml}  last: {{selector: {{}}}}\n"));
    let decided = |snapshot: &Snapshot| {
        let planned = patchwarden_plan::plan(snapshot, now()).devices.remove(0);
        (planned.group, planned.possible_groups.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (group, strongest) = decided(&snapshot);
    assert_eq!(group.as_deref(), Some("g00"));
    assert_eq!(strongest, (1..=POSSIBLE_GROUPS).map(|number| format!("g{number:02}")).collect::<Vec<_>>());
    let device = &mut snapshot.devices[0];
    (device.last_group, device.last_possible) = (Some("last".into()), Box::from(["g19".into()]));
    let (_, known) = decided(&snapshot);
    assert_eq!(known[..known.len() - 2], strongest[..known.len() - 2]);
    assert_eq!(known[known.len() - 2..], ["g19", "last"]);
    snapshot.devices[0].last_group = Some("g00".into());
    snapshot.devices[0].last_possible = known.iter().map(|name| name.as_str().into()).collect();
    assert_eq!(decided(&snapshot).1, known, "as it was written down");
}
