//! Turns of a plan that is kept: fleets that are made for it, in which nothing but turns keeps devices waiting.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Cause, Claim, Device, DeviceType, Failure, Name, Snapshot};
use patchwarden_plan::outcome::{Blocked, DevicePlan};
use patchwarden_plan::{Planner, plan};
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::report::Tristate;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestCaseResult};

use crate::properties::config;
use crate::scenario::{Past, World};

const DEVICES: usize = 14;
const SITES: usize = 3;

fn now() -> Timestamp {
    "2026-01-05T02:10:00Z".parse().expect("an instant")
}

/// What becomes of a device.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// It is of another service, or has another role, or another policy.
    Label(&'static str, usize),
    /// It is a server, or a workstation.
    Type(bool),
    Retire(bool),
    Connect(bool),
    Hold(bool),
    /// It is at work in the name of a policy, of which the last does not exist.
    Work(Option<usize>),
    /// Its update has failed so often.
    Fail(u32),
    /// It waits for a restart, and so is not well.
    Wait(bool),
    Leave,
    /// It is put as it is, or comes back.
    Come,
}

fn edit() -> impl Strategy<Value = Edit> {
    let is = any::<bool>();
    prop_oneof![
        3 => (prop::sample::select(&["app", "rack", "role"][..]), 0..2_usize).prop_map(|(key, value)| Edit::Label(key, value)),
        2 => (0..SITES).prop_map(|site| Edit::Label("site", site)),
        1 => is.prop_map(Edit::Type),
        1 => is.prop_map(Edit::Retire),
        3 => is.prop_map(Edit::Connect),
        1 => is.prop_map(Edit::Hold),
        3 => prop::option::of(0..=SITES).prop_map(Edit::Work),
        2 => (0..3_u32).prop_map(Edit::Fail),
        1 => is.prop_map(Edit::Wait),
        1 => Just(Edit::Leave),
        2 => Just(Edit::Come),
    ]
}

/// What a policy says, as YAML.
fn policy() -> impl Strategy<Value = String> {
    let amount =
        || prop_oneof![(0..5_u32).prop_map(|count| count.to_string()), (0..101_u32).prop_map(|it| format!("{it}%"))];
    let limit =
        || prop_oneof![(1..4_u32).prop_map(|count| count.to_string()), (1..60_u32).prop_map(|it| format!("{it}%"))];
    let key = prop::sample::select(&["app", "rack"][..]);
    let disruption =
        (key, limit(), prop::option::of(0..2_usize), any::<bool>()).prop_map(|(key, limit, first, peers)| {
            let order =
                first.map_or_else(String::new, |first| format!(", order: {{label: role, values: [role-{first}]}}"));
            format!(", disruption: {{groupBy: {key}, maxUnavailable: {limit}{order}, healthyPeers: {peers}}}")
        });
    (amount(), prop::option::weighted(0.6, disruption))
        .prop_map(|(concurrent, disruption)| format!("maxConcurrent: {concurrent}{}", disruption.unwrap_or_default()))
}

/// A window that is open, an update that each device lacks, and a policy for each site.
fn fleet(policies: &[String]) -> Snapshot {
    let policies = policies.iter().enumerate().map(|(site, says)| {
        format!("  policy-{site}: {{selector: {{matchLabels: {{site: site-{site}}}}}, mode: Install, windows: [week], {says}}}\n")
    });
    let devices = (0..DEVICES).map(|number| {
        let (app, rack, role) = (number % 2, number / 2 % 2, usize::from(number % 5 == 0));
        let labels = format!("{{app: app-{app}, rack: rack-{rack}, role: role-{role}, site: site-{}}}", number % SITES);
        format!("  d-{number}: {{labels: {labels}, updates: {{u-1: {{}}}}}}\n")
    });
    let yaml = format!(
        "windows: {{week: {{timeZone: UTC, schedules: [once: {{at: \"2026-01-05T00:00\"}}], duration: 168h}}}}\n\
         groups: {{all: {{selector: {{}}, default: Approve}}}}\npolicies:\n{}devices:\n{}",
        policies.collect::<String>(),
        devices.collect::<String>(),
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    snapshot.devices.iter_mut().for_each(settle);
    snapshot
}

/// It has had its policy and its group for long.
fn settle(device: &mut Device) {
    let site = device.labels.get("site").map(|site| site.replace("site", "policy"));
    device.last_policy = site.map(Into::into);
    device.last_group = Some("all".into());
    device.moved = None;
    device.eligible = true;
}

fn edited(snapshot: &mut Snapshot, device: &Device, edit: Edit) -> Device {
    let mut device = device.clone();
    match edit {
        Edit::Label(key, value) => {
            let mut labels: BTreeMap<Name, Name> =
                device.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            labels.insert(key.into(), format!("{key}-{value}").into());
            device.labels = labels.into_iter().collect();
        }
        Edit::Type(is_server) => {
            device.device_type = if is_server { DeviceType::Server } else { DeviceType::Workstation };
        }
        Edit::Retire(retired) => device.retired = retired,
        Edit::Connect(online) => {
            device.online = online;
            device.online_since = Some(now() - SignedDuration::from_mins(1));
        }
        Edit::Hold(on_hold) => device.on_hold = on_hold,
        Edit::Work(policy) => {
            device.current = policy.map(|policy| Claim {
                sequence: Sequence { epoch: 0, number: 1 },
                policy: format!("policy-{policy}").into(),
                verb: Verb::Install,
                updates: vec!["u-1".into()],
                granted: true,
                not_after: now() + SignedDuration::from_hours(1),
                limit: SignedDuration::from_hours(1),
                restart: SignedDuration::ZERO,
                expected: SignedDuration::from_hours(1),
            });
        }
        Edit::Fail(attempts) => {
            // Long enough ago to be tried again.
            let failure = Failure {
                update: "u-1".into(),
                attempts,
                last: now() - SignedDuration::from_hours(100),
                again: now() - SignedDuration::from_hours(100),
                cause: Cause::Other,
            };
            device.failures = if attempts == 0 { vec![] } else { vec![failure] };
        }
        Edit::Wait(waits) => {
            if let Ok(report) = &mut device.report {
                report.restart_required = if waits { Tristate::Yes } else { Tristate::No };
            }
        }
        Edit::Leave | Edit::Come => {}
    }
    settle(&mut device);
    snapshot.devices.retain(|other| other.name != device.name);
    if !matches!(edit, Edit::Leave) {
        snapshot.devices.push(device.clone());
    }
    device
}

type Rounds = Vec<Vec<(usize, Edit)>>;

proptest! {
    #![proptest_config(Config { max_shrink_iters: 2_000, ..config() })]

    #[test]
    fn whose_turn_it_is_does_not_depend_on_who_was_asked_again(
        policies in prop::collection::vec(policy(), SITES),
        rounds in prop::collection::vec(prop::collection::vec((0..DEVICES, edit()), 1..4), 1..12),
    ) {
        keep(&policies, &rounds)?;
    }
}

fn keep(policies: &[String], rounds: &Rounds) -> TestCaseResult {
    let mut snapshot = fleet(policies);
    let specs = snapshot.clone();
    let all = snapshot.devices.clone();
    let mut planner = Planner::new(specs.specs(), Cow::Borrowed(&specs.updates), all.iter().cloned(), now());
    check(&mut planner, &mut snapshot, &[])?;
    for round in rounds {
        for (number, edit) in round {
            let name = Name::from(format!("d-{number}"));
            let there = snapshot.devices.iter().chain(&all).find(|device| device.name == name).cloned();
            let device = edited(&mut snapshot, &there.expect("a device"), *edit);
            if matches!(edit, Edit::Leave) {
                planner.remove(&device.name);
            } else {
                planner.put(device);
            }
        }
        check(&mut planner, &mut snapshot, round)?;
    }
    Ok(())
}

fn check(planner: &mut Planner<'_, Device>, snapshot: &mut Snapshot, round: &[(usize, Edit)]) -> TestCaseResult {
    planner.plan(now());
    let anew = plan(snapshot, now());
    for (kept, anew) in planner.devices().zip(&anew.devices) {
        prop_assert_eq!(kept, anew, "after {:?}", round);
    }
    prop_assert_eq!(planner.devices().count(), anew.devices.len());
    for policy in &mut snapshot.policies {
        let says = anew.policies.iter().find(|says| says.name == policy.name);
        policy.progress = says.expect("a plan for each policy").progress.clone();
    }
    Ok(())
}

/// Why devices wait in these fleets: only if all of it comes up the property says something.
#[test]
fn the_fleets_made_for_turns_meet_every_reason_to_wait_for_one() {
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..40 {
        let policies = prop::collection::vec(policy(), SITES).new_tree(&mut runner).expect("policies").current();
        let answer = plan(&fleet(&policies), now());
        let reason = |device: &DevicePlan| match device.updates.first()?.blocked.as_deref() {
            None => Some("granted"),
            Some(Blocked::ConcurrencyReached { .. }) => Some("places"),
            Some(Blocked::ServiceAtLimit { .. }) => Some("service"),
            Some(Blocked::PeersFirst { .. }) => Some("peers"),
            Some(_) => Some("other"),
        };
        for reason in answer.devices.iter().filter_map(reason) {
            *met.entry(reason).or_default() += 1;
        }
    }
    for reason in ["granted", "places", "service", "peers"] {
        assert!(met.get(reason).is_some_and(|times| *times > 20), "{met:?}");
    }
    assert!(!met.contains_key("other"), "{met:?}");
}
