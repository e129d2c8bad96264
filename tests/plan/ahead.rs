//! When updates may start: what is foreseen can be worked out by hand, and comes true.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    Amount, Claim, Device, Failure, Moved, Name, Offer, Progress, Snapshot, Update, UpdateProgress,
};
use patchwarden_plan::outcome::{Absence, DevicePlan, Eligible, Foresight, Unproved, UpdatePlan};
use patchwarden_plan::{Blocked, Planner, foresee, plan};
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::report::Severity;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult};

use crate::fleet::fleet;
use crate::properties::{config, written_down};
use crate::scenario::{Past, World};

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

/// So often a plan is made on the way to an instant.
const LOOKS: usize = 200;

/// A Monday.
const NOW: &str = "2026-01-05T12:00:00Z";

const SATURDAYS: &str =
    "saturdays: {timeZone: UTC, schedules: [weekly: {weekdays: [Saturday], at: \"22:00\"}], duration: 2h}";

fn now() -> Timestamp {
    NOW.parse().expect("an instant")
}

/// All devices have had their policy and group before.
fn world(yaml: &str) -> Snapshot {
    let world: World = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let snapshot = world.snapshot(&Past::default(), now());
    let answer = plan(&snapshot, now());
    written_down(&snapshot, &answer)
}

/// One device with one update, which ages for a day; what else the group and the policy say.
fn aging(windows: &str, group: &str, policy: &str, device: &str) -> Snapshot {
    world(&format!(
        "windows: {{{windows}}}\n\
         groups: {{all: {{selector: {{}}, rules: [{{name: r, action: Approve, after: 24h}}], {group}}}}}\n\
         policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h, {policy}}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}}}, {device}}}}}"
    ))
}

/// Of the first update of the first device: when, or from when on and why not.
fn said(snapshot: &Snapshot) -> String {
    let Foresight { eligible, .. } = foresee(snapshot, None, now());
    let first = eligible.values().next().and_then(|updates| updates.first()).expect("an update");
    let short = |at: &Timestamp| at.strftime("%m-%dT%H:%M").to_string();
    match first {
        Eligible::From(at) => short(at),
        Eligible::Unknown { from, why } => format!("{} {}", short(from), why.code()),
    }
}

// covers BY-4
#[test]
fn what_ages_and_waits_for_a_window_is_eligible_when_both_are_over() {
    assert_eq!(said(&aging(SATURDAYS, "", "", "")), "01-10T22:00");
    let frozen = "saturdays: {timeZone: UTC, schedules: [weekly: {weekdays: [Saturday], at: \"22:00\"}], duration: 2h, \
                  exclusions: [{name: x, from: 2026-01-10T00:00:00Z, to: 2026-01-12T00:00:00Z}]}";
    assert_eq!(said(&aging(frozen, "", "", "")), "01-17T22:00");
    // An exclusion leaves too little of it.
    let cut = "saturdays: {timeZone: UTC, schedules: [weekly: {weekdays: [Saturday], at: \"22:00\"}], duration: 2h, \
               exclusions: [{name: x, from: 2026-01-10T22:30:00Z, to: 2026-01-12T00:00:00Z}]}";
    assert_eq!(said(&aging(cut, "", "", "")), "01-17T22:00");
    // The window opens while it still ages.
    let daily = "saturdays: {timeZone: UTC, schedules: [daily: {at: \"11:00\"}], duration: 90m}";
    assert_eq!(said(&aging(daily, "", "", "")), "01-07T11:00");
    let open = "saturdays: {timeZone: UTC, schedules: [daily: {at: \"11:00\"}], duration: 3h}";
    assert_eq!(said(&aging(open, "", "", "")), "01-06T12:00");
}

#[test]
fn a_window_of_its_own_counts_instead_of_the_policys() {
    let windows = format!(
        "{SATURDAYS}, thursdays: {{timeZone: UTC, schedules: [weekly: {{weekdays: [Thursday], at: \"03:00\"}}], duration: 2h}}"
    );
    let own = "decisions: [{update: \"u-*\", action: Approve, window: thursdays}], minArtifactAge: 48h";
    assert_eq!(said(&aging(&windows, own, "", "")), "01-08T03:00");
}

#[test]
fn what_ends_by_no_clock_is_not_known_and_says_from_when_on() {
    assert_eq!(said(&aging(SATURDAYS, "", "suspend: true", "")), "01-06T12:00 PolicySuspended");
    let asks =
        "decisions: [{update: u-1, action: Ignore, until: 2026-01-08T00:00:00Z}, {update: u-1, action: DoNothing}]";
    assert_eq!(said(&aging(SATURDAYS, asks, "", "")), "01-08T00:00 LeftAlone");
    let never = "saturdays: {timeZone: UTC, schedules: [once: {at: \"2026-01-05T22:00\"}], duration: 2h}";
    assert_eq!(said(&aging(never, "", "", "")), "01-06T12:00 WindowClosed");
    // Whoever is away for longer than three days is stale by then; that it stays away is not known.
    for (age, says) in [("24h", "01-06T12:00 DeviceOffline"), ("120h", "01-10T12:00 DeviceOffline")] {
        let mut away = aging(SATURDAYS, &format!("minArtifactAge: {age}"), "", "online: false");
        away.devices[0].online_since = Some(now());
        assert_eq!(said(&away), says);
    }
    let mut stale = aging(SATURDAYS, "", "", "online: false");
    stale.devices[0].online_since = None;
    assert_eq!(said(&stale), "01-06T12:00 DeviceStale");
}

#[test]
fn retries_and_a_new_policy_wait_for_their_time_and_then_for_the_window() {
    let nights = "saturdays: {timeZone: UTC, schedules: [daily: {at: \"22:00\"}], duration: 2h}";
    let approved = "decisions: [{update: u-1, action: Approve}]";
    let mut failed = aging(nights, approved, "retryLimit: 3, retryBackoff: 36h", "");
    let failure = Failure {
        update: "u-1".into(),
        attempts: 1,
        last: now(),
        again: now(),
        cause: patchwarden_plan::model::Cause::Other,
    };
    failed.devices[0].failures = vec![failure];
    // 36 hours from Monday noon on it is midnight, when the window closes.
    assert_eq!(said(&failed), "01-07T22:00");
    let mut moved = aging(nights, approved, "settle: 11h", "");
    moved.devices[0].moved = Some(Box::new(Moved { since: now(), before: None }));
    assert_eq!(said(&moved), "01-05T23:00");
}

/// Devices of two rings, the first of which has proved the update at an instant, or has not.
fn ringed(reached: Option<&str>, device: &str) -> Snapshot {
    let mut snapshot = world(&format!(
        "windows: {{{SATURDAYS}}}\n\
         groups: {{all: {{selector: {{}}, decisions: [{{update: u-1, action: Approve}}]}}}}\n\
         policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h, rings: [\
         {{name: pilot, selector: {{matchLabels: {{ring: pilot}}}}, soak: 200h}}, \
         {{name: next, selector: {{matchLabels: {{ring: next}}}}, soak: 48h, whenEmpty: Promote}}]}}}}\n\
         devices:\n  a-1: {{labels: {{ring: {device}}}, updates: {{u-1: {{}}}}}}\n  \
         pilot-1: {{labels: {{ring: pilot}}}}"
    ));
    let installed = snapshot.updates.number("u-1");
    let pilot = snapshot.devices.iter_mut().find(|device| &*device.name == "pilot-1").expect("the pilot");
    if let Some(reached) = reached {
        pilot.installed = vec![installed];
        let at: Timestamp = reached.parse().expect("an instant");
        let progress = UpdateProgress {
            ring: Some("pilot".into()),
            opened: at,
            reached: Some(at),
            stopped: None,
            installed: 1,
            anywhere: 0,
            failed: vec![],
        };
        let updates: BTreeMap<Name, UpdateProgress> = [("u-1".into(), progress)].into();
        let known = Progress { updates, ..(*snapshot.policies[0].progress).clone() };
        snapshot.policies[0].progress = Arc::new(known);
    }
    snapshot
}

// covers BY-4
#[test]
fn a_soak_time_that_runs_is_waited_for_and_the_next_ones_follow() {
    // From Monday noon on 200 hours end on the 13th at 20:00, and the window after that opens on the 17th.
    assert_eq!(said(&ringed(Some("2026-01-05T12:00:00Z"), "next")), "01-17T22:00");
    // The ring in between has no device that needs it: 48 hours more.
    assert_eq!(said(&ringed(Some("2026-01-05T12:00:00Z"), "none")), "01-17T22:00");
    assert_eq!(said(&ringed(Some("2026-01-07T23:00:00Z"), "next")), "01-17T22:00");
    assert_eq!(said(&ringed(Some("2026-01-07T23:00:00Z"), "none")), "01-24T22:00");
    // They do so while something else blocks the device: its failure, until the 17th at 14:00.
    let mut failed = ringed(Some("2026-01-05T12:00:00Z"), "none");
    failed.policies[0].settings.as_mut().expect("settings").retry_backoff = SignedDuration::from_hours(290);
    let cause = patchwarden_plan::model::Cause::Other;
    failed.devices[0].failures = vec![Failure { update: "u-1".into(), attempts: 1, last: now(), again: now(), cause }];
    assert_eq!(said(&failed), "01-17T22:00");
}

#[test]
fn what_a_ring_has_yet_to_prove_is_not_known() {
    let unproved = ringed(None, "next");
    let mut needs = unproved.clone();
    let offers = unproved.devices[0].report.clone();
    needs.devices.iter_mut().for_each(|device| device.report.clone_from(&offers));
    assert_eq!(said(&needs), "01-05T12:00 RingWaits");
}

#[test]
fn what_waits_for_others_is_not_known() {
    let two = "windows: {saturdays: {timeZone: UTC, schedules: [daily: {at: \"11:00\"}], duration: 6h}}\n\
               groups: {all: {selector: {}, default: Approve}}\n\
               policies: {all: {mode: Install, windows: [saturdays], installLimit: 1h, maxConcurrent: 1}}\n\
               devices: {web-1: {updates: {u-1: {}}}, web-2: {updates: {u-1: {}}}}";
    let Foresight { plan, eligible, .. } = foresee(&world(two), Some("web-2"), now());
    assert_eq!(plan.devices.len(), 2);
    let told: Vec<&Eligible> = eligible.values().flatten().collect();
    assert_eq!(eligible.len(), 1);
    let [Eligible::Unknown { from, why }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((*from, why.code()), (now(), "ConcurrencyReached"));
    assert_eq!(said(&world(two)), "01-05T12:00");
}

// covers BY-5
#[test]
fn a_service_at_its_limit_says_who_keeps_it_there() {
    let fleet = |healthy_peers: bool| {
        world(&format!(
            "windows: {{saturdays: {{timeZone: UTC, schedules: [daily: {{at: \"11:00\"}}], duration: 6h}}}}\n\
             groups: {{all: {{selector: {{}}, default: Approve}}}}\n\
             policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h, \
             disruption: {{groupBy: app, maxUnavailable: 4, healthyPeers: {healthy_peers}}}}}}}\n\
             devices:\n  a-db: {{labels: {{app: db}}, online: false}}\n  \
             a-desk: {{labels: {{app: web}}, type: Workstation, online: false}}\n  \
             a-offline: {{labels: {{app: web}}, online: false}}\n  \
             a-restored: {{labels: {{app: web}}, noReport: BeforeEpoch}}\n  \
             a-stale: {{labels: {{app: web}}, online: false}}\n  \
             b-first: {{labels: {{app: web}}, updates: {{u-1: {{}}}}}}\n  \
             c-broken: {{labels: {{app: web}}, problems: [PackageManagerBroken]}}\n  \
             d-due: {{labels: {{app: web}}, restart: \"Yes\"}}\n  \
             e-fine: {{labels: {{app: web}}}}\n  \
             g-waits: {{labels: {{app: web}}, updates: {{u-1: {{}}}}}}\n"
        ))
    };
    let absent = |mut snapshot: Snapshot| {
        for device in &mut snapshot.devices {
            device.online_since = (*device.name != *"a-stale").then(now);
        }
        let names = snapshot.devices.iter().map(|device| device.name.to_string());
        let absent = names.flat_map(|name| foresee(&snapshot, Some(&name), now()).absent);
        absent.map(|(name, absent)| (name.to_string(), names_of(absent))).collect::<Vec<_>>()
    };
    // Two are missing where peers need not be well, and four where they have to.
    assert_eq!(absent(fleet(false)), []);
    let told = [
        "a-offline: no session",
        "a-restored: since a restore nobody knows what is at work on it",
        "c-broken: an update has failed on it, it has a problem, or its report is not believed",
        "d-due: waits for a restart",
    ];
    let told = told.map(ToString::to_string).to_vec();
    assert_eq!(absent(fleet(true)), [("b-first".to_owned(), told.clone()), ("g-waits".to_owned(), told)]);
    let mut of_two = fleet(false);
    of_two.policies[0].disruption.as_mut().expect("a ledger").max_unavailable = Amount::Count(3);
    let restored = "a-restored: since a restore nobody knows what is at work on it";
    let told = ["a-offline: no session", restored, "b-first: an install is at work on it, or begins now"];
    let told = told.map(ToString::to_string).to_vec();
    assert_eq!(absent(of_two), [("g-waits".to_owned(), told)]);
}

#[test]
fn each_of_several_devices_has_its_own_time() {
    let three = world(&format!(
        "windows: {{{SATURDAYS}}}\n\
         groups: {{all: {{selector: {{}}, rules: [{{name: r, action: Approve, after: 24h}}], \
         decisions: [{{update: u-2, action: Ignore, until: 2026-01-12T00:00:00Z}}]}}}}\n\
         policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}}}}}, web-2: {{updates: {{u-2: {{}}}}}}, web-3: {{updates: {{u-3: {{}}}}}}}}"
    ));
    let Foresight { eligible, .. } = foresee(&three, None, now());
    let told = eligible.into_iter().map(|(name, told)| format!("{name} {told:?}")).collect::<Vec<_>>();
    let (soon, later) = ("[From(2026-01-10T22:00:00Z)]", "[From(2026-01-17T22:00:00Z)]");
    assert_eq!(told, [format!("web-1 {soon}"), format!("web-2 {later}"), format!("web-3 {soon}")]);
}

/// They are done together: with the one that is not known, else with the later one.
#[test]
fn what_is_told_twice_waits_for_its_twin() {
    let told_in = |windows: &str, rules: &str, is_first: bool| {
        let mut twins = world(&format!(
            "windows: {{{windows}}}\n\
             groups: {{all: {{selector: {{}}, rules: [{rules}]}}}}\n\
             policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h}}}}\n\
             devices: {{web-1: {{updates: {{u-0: {{}}, u-1: {{severity: High}}}}}}}}"
        ));
        let offers = &mut twins.devices[0].report.as_mut().expect("a report").offers;
        let known = twins.updates.get(offers[1].update).expect("an update");
        let low = twins.updates.intern(Update { severity: Severity::Low, ..(**known).clone() });
        let twin = Offer { update: low, ..offers[1].clone() };
        offers.insert(if is_first { 0 } else { 2 }, twin);
        let planned = written_down(&twins, &plan(&twins, now()));
        let eligible = foresee(&planned, Some("web-1"), now()).eligible.into_values().next().unwrap_or_default();
        eligible.iter().map(|eligible| format!("{eligible:?}")).collect::<Vec<_>>()
    };
    let told = |rules: &str, is_first: bool| told_in(SATURDAYS, rules, is_first);
    let (low, high) = (
        "{name: low, severities: [Low], action: Approve, after: 24h}",
        "{name: high, severities: [High], action: Approve, after: 200h}",
    );
    let (later, unknown) =
        ("From(2026-01-17T22:00:00Z)", "Unknown { from: 2026-01-05T12:00:00Z, why: AwaitingApproval }");
    for rules in [format!("{low}, {high}"), format!("{high}, {low}")] {
        assert_eq!(told(&rules, true), [later, unknown, later]);
        assert_eq!(told(&rules, false), [unknown, later, later]);
    }
    for rule in [low, high] {
        assert_eq!(told(rule, true), [unknown; 3]);
        assert_eq!(told(rule, false), [unknown; 3]);
    }
    // The other may be installed now.
    let open = "saturdays: {timeZone: UTC, schedules: [daily: {at: \"11:00\"}], duration: 6h}";
    let rules = format!("{low}, {{name: high, severities: [High], action: Approve}}");
    let tomorrow = "From(2026-01-06T12:00:00Z)";
    assert_eq!(told_in(open, &rules, true), [tomorrow, unknown, tomorrow]);
    assert_eq!(told_in(open, &rules, false), [unknown, tomorrow, tomorrow]);
}

/// How long it takes is not known: the plan only says when it lets go of the device at the latest.
#[test]
fn what_waits_for_an_install_of_its_device_is_not_known() {
    let mut busy = world(
        "windows: {week: {timeZone: UTC, schedules: [once: {at: \"2026-01-05T00:00\"}], duration: 168h}}\n\
         groups: {all: {selector: {}, default: Approve}}\n\
         policies: {all: {mode: Install, windows: [week], installLimit: 1h}}\n\
         devices: {web-1: {updates: {u-1: {}, u-2: {}}}}",
    );
    busy.devices[0].current = Some(Claim {
        sequence: Sequence { epoch: 0, number: 1 },
        policy: "all".into(),
        verb: Verb::Install,
        updates: vec!["u-1".into()],
        granted: true,
        not_after: now(),
        limit: SignedDuration::from_hours(1),
        restart: SignedDuration::ZERO,
        expected: SignedDuration::from_hours(1),
    });
    let Foresight { plan, eligible, .. } = foresee(&busy, Some("web-1"), now());
    assert!(plan.devices[0].updates.iter().all(|update| update.eligible_at.is_some()));
    let told = eligible.into_values().flatten().map(|eligible| match eligible {
        Eligible::Unknown { from, why } => (from, why.code().to_owned()),
        Eligible::From(at) => (at, "known".to_owned()),
    });
    assert_eq!(told.collect::<Vec<_>>(), vec![(now(), "InstallRunning".to_owned()); 2]);
}

#[test]
fn why_a_ring_has_not_proved_an_update_is_told_by_its_devices() {
    let fleet = |more: &str| {
        let mut fleet = world(&format!(
            "windows: {{saturdays: {{timeZone: UTC, schedules: [daily: {{at: \"11:00\"}}], duration: 6h}}}}\n\
             groups: {{all: {{selector: {{}}, default: Approve}}}}\n\
             policies: {{all: {{mode: Install, windows: [saturdays], installLimit: 1h, rings: [\
             {{name: pilot, selector: {{matchLabels: {{ring: pilot}}}}, minSuccesses: 2, soak: 24h}}, \
             {{name: second, selector: {{matchLabels: {{ring: second}}}}, soak: 24h}}]}}}}\n\
             devices:\n  a-offers: {{labels: {{ring: pilot}}, updates: {{u-1: {{}}}}}}\n  \
             b-silent: {{labels: {{ring: pilot}}, noReport: NeverEnrolled}}\n  \
             c-has-2: {{labels: {{ring: pilot}}}}\n  \
             d-retired: {{labels: {{ring: pilot}}, retired: true, updates: {{u-1: {{}}}}}}\n  \
             e-second: {{labels: {{ring: second}}, updates: {{u-1: {{}}}}}}\n  \
             f-rest: {{updates: {{u-1: {{}}, u-2: {{}}}}}}\n{more}"
        ));
        let other = fleet.updates.number("u-2");
        fleet.devices[2].installed = vec![other];
        // What it has it need not tell.
        fleet.devices[2].report.as_mut().expect("a report").truncated = true;
        fleet
    };
    let told = |snapshot: &Snapshot, of: &str| {
        let unproved = foresee(snapshot, Some(of), now()).unproved;
        let names = |names: Vec<Name>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let told = unproved.into_iter().map(|(id, Unproved { installed, needed, percent, offering, silent })| {
            assert_eq!(percent, 100);
            format!("{id} {installed}/{needed} [{}] [{}]", names(offering), names(silent))
        });
        told.collect::<Vec<_>>()
    };
    let new = fleet("");
    let of_pilot = "u-1 0/2 [a-offers] [b-silent c-has-2]";
    assert_eq!(told(&new, "f-rest"), [of_pilot, "u-2 1/2 [] [b-silent]"]);
    assert_eq!(told(&new, "e-second"), [of_pilot]);
    // It is the pilot's turn.
    assert_eq!(told(&new, "a-offers"), [""; 0]);
    let with = |ring: &str, reached: Option<Timestamp>, installed: u32| {
        let mut known = fleet("  g-has-it: {labels: {ring: second}}\n");
        let update = UpdateProgress {
            ring: Some(ring.into()),
            opened: now(),
            reached,
            stopped: None,
            installed,
            anywhere: 0,
            failed: vec![],
        };
        Arc::make_mut(&mut known.policies[0].progress).updates.insert("u-1".into(), update);
        known
    };
    assert_eq!(told(&with("pilot", None, 1), "e-second"), ["u-1 1/2 [a-offers] [b-silent c-has-2]"]);
    // It soaks.
    assert_eq!(told(&with("pilot", Some(now()), 2), "e-second"), [""; 0]);
    assert_eq!(told(&with("second", None, 0), "f-rest"), ["u-1 0/1 [e-second] []", "u-2 1/2 [] [b-silent]"]);
    let mut counted = with("second", None, 0);
    let installed = counted.updates.number("u-1");
    let has_it = counted.devices.iter_mut().find(|device| *device.name == *"g-has-it").expect("it");
    has_it.installed = vec![installed];
    assert_eq!(told(&counted, "f-rest"), ["u-2 1/2 [] [b-silent]"]);
}

fn names_of(absent: Vec<(Name, Absence)>) -> Vec<String> {
    absent.into_iter().map(|(name, absence)| format!("{name}: {absence}")).collect()
}

/// Not how long an install or its device's turn takes.
fn is_of_others(blocked: &Blocked) -> bool {
    matches!(
        blocked,
        Blocked::InstallRunning { .. }
            | Blocked::OthersFirst
            | Blocked::OnHold
            | Blocked::PeersFirst { .. }
            | Blocked::ServiceAtLimit { .. }
            | Blocked::ConcurrencyReached { .. }
    )
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 200, ..config() })]

    // covers BY-4
    #[test]
    fn what_is_foreseen_comes_true((snapshot, now) in fleet()) {
        comes_true(&written_down(&snapshot, &plan(&snapshot, now)), now, false)?;
        // An install that is at work hides what else blocks a device, and by then nothing is heard of it any more.
        let mut idle = snapshot;
        idle.devices.iter_mut().for_each(|device| device.current = None);
        comes_true(&written_down(&idle, &plan(&idle, now)), now, true)?;
    }
}

fn comes_true(snapshot: &Snapshot, now: Timestamp, goes_on: bool) -> TestCaseResult {
    let Foresight { plan: answer, eligible, .. } = foresee(snapshot, None, now);
    for device in &answer.devices {
        let told = &eligible[&device.name];
        prop_assert_eq!(told.len(), device.updates.len());
        for (place, (update, told)) in device.updates.iter().zip(told).enumerate() {
            match (told, &update.blocked) {
                (Eligible::From(at), None) => prop_assert_eq!(*at, now),
                (Eligible::From(at), Some(blocked)) => {
                    prop_assert!(*at > now, "blocked by {:?} and eligible at once", blocked);
                    // An install ends by itself long before it would be given up.
                    let first = update.eligible_at.filter(|_| !matches!(**blocked, Blocked::InstallRunning { .. }));
                    prop_assert!(first.is_none_or(|first| first <= *at));
                    if goes_on {
                        starts_then(snapshot, (device, place), *at, now)?;
                    }
                }
                (Eligible::Unknown { from, why }, blocked) => {
                    prop_assert!(blocked.is_some(), "nothing blocks it, and {} is said to", why.code());
                    if *from == now {
                        let is_same = blocked.as_deref() == Some(&**why);
                        let is_hidden = blocked.as_deref().is_some_and(is_of_others);
                        prop_assert!(is_same || is_hidden, "{:?} blocks it, and {:?} is said to", blocked, why);
                    }
                }
            }
        }
    }
    Ok(())
}

/// By a plan that is kept nothing lets it start before `at`, and from then on nothing but others keep it from starting.
fn starts_then(
    snapshot: &Snapshot,
    (device, place): (&DevicePlan, usize),
    at: Timestamp,
    now: Timestamp,
) -> TestCaseResult {
    let mut planner = Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, now);
    planner.plan(now);
    // As the controller does, since what is written down follows from it. Years are too long.
    for _ in 0..LOOKS {
        let Some(next) = planner.next_look().filter(|next| *next < at) else { break };
        planner.plan(next);
    }
    if planner.next_look().is_some_and(|next| next < at) {
        return Ok(());
    }
    let of_it = |planner: &Planner<'_, &Device>| -> Option<UpdatePlan> {
        let then = planner.device(&device.name)?;
        // What is not taken back any more is not told of: then it is another one that stands there, if any does.
        let is_it = |it: &&UpdatePlan| {
            it.update == device.updates[place].update && it.is_checked() == device.updates[place].is_checked()
        };
        then.updates.get(place).filter(is_it).filter(|_| then.updates.len() == device.updates.len()).cloned()
    };
    planner.plan(at - NANOSECOND);
    // What waits since others of its device fill the window starts as soon as those do not.
    let is_crowded_out = device.install.is_some()
        && matches!(
            device.updates[place].blocked.as_deref(),
            Some(Blocked::WindowEnding { .. } | Blocked::WindowClosed { .. })
        );
    if let Some(before) = of_it(&planner).filter(|_| !is_crowded_out) {
        let blocked = before.blocked.as_deref();
        prop_assert!(
            blocked.is_some_and(|blocked| !is_of_others(blocked)),
            "{:?} alone blocks it just before {}",
            blocked,
            at
        );
    }
    planner.plan(at);
    if let Some(after) = of_it(&planner) {
        let installs = planner.device(&device.name).is_some_and(|then| then.install.is_some());
        let lets_it = after.blocked.as_deref().is_none_or(|blocked| match blocked {
            // What is left of the time is for others of the device ...
            Blocked::WindowClosed { .. } => installs,
            // ... or too many devices become eligible with it.
            Blocked::WindowEnding { .. } | Blocked::UpdateStopped { .. } | Blocked::BlastLimit { .. } => true,
            other => is_of_others(other),
        });
        prop_assert!(lets_it, "{:?} blocks it at {}", after.blocked, at);
    }
    Ok(())
}
