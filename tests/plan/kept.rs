//! A plan that is kept while devices come, change and go says what one that is made anew would say.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    Catalogue, Dates, Device, DeviceReport, Group, Level, Members, Name, Offer, Seen, Snapshot, Update, UpdateId,
};
use patchwarden_plan::outcome::{DevicePlan, Due};
use patchwarden_plan::{Plan, Planner, may_act, may_restart, plan};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult};

use crate::fleet::{instant, into_catalogue, snapshot};
use crate::properties::config;

/// What happens between two plans.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Only time goes by.
    Wait,
    /// A device is as the other fleet has it.
    Change(usize),
    /// A device is gone.
    Leave(usize),
    /// A device comes or goes online.
    Switch(usize),
    /// A device's install has ended.
    End(usize),
    /// What was planned is written down with the devices.
    Write,
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 200, ..config() })]

    #[test]
    fn a_plan_that_is_kept_is_as_one_that_is_made_anew(
        (first, other, now) in instant().prop_flat_map(|now| (snapshot(now), snapshot(now), Just(now))),
        steps in prop::collection::vec((step(), 0..90_i64), 1..7),
    ) {
        keep(&first, &other, now, &steps)?;
    }
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..7_usize;
    prop_oneof![
        1 => Just(Step::Wait),
        4 => device.clone().prop_map(Step::Change),
        1 => device.clone().prop_map(Step::Leave),
        1 => device.clone().prop_map(Step::Switch),
        1 => device.prop_map(Step::End),
        2 => Just(Step::Write),
    ]
}

/// What there is, and everything that was ever told of first sightings and dates.
struct World {
    snapshot: Snapshot,
    sightings: Vec<Seen>,
}

/// Has no devices; what was seen lies with it, whoever saw it and is gone.
fn memory(seen: Vec<Seen>) -> Group {
    Group {
        name: "memory".into(),
        parent: None,
        level: Level::DeviceType,
        members: Members::default(),
        priority: -100,
        approvals: Ok(patchwarden_plan::model::Approvals::default()),
        seen,
        spec: "1".into(),
    }
}

fn keep(first: &Snapshot, other: &Snapshot, mut now: Timestamp, steps: &[(Step, i64)]) -> TestCaseResult {
    let mut world = World { snapshot: first.clone(), sightings: vec![] };
    world.snapshot.groups.push(memory(vec![]));
    let specs = world.snapshot.clone();
    let mut planner: Planner<'_, Device> = Planner::new(specs.specs(), Cow::Owned(Catalogue::default()), [], now);
    for device in world.snapshot.devices.clone() {
        put(&mut planner, &device, &mut world);
    }
    check(&mut planner, &mut world, now)?;
    for (step, minutes) in steps {
        now += SignedDuration::from_mins(*minutes);
        match *step {
            Step::Wait => {}
            Step::Change(number) => {
                if let Some(device) = other.devices.get(number) {
                    let device = translated(device, &other.updates, &mut world.snapshot.updates);
                    put(&mut planner, &device, &mut world);
                }
            }
            Step::Leave(number) => {
                let name = Name::from(format!("d{number}"));
                world.snapshot.devices.retain(|device| device.name != name);
                planner.remove(&name);
            }
            Step::Switch(number) => change(&mut planner, &mut world, number, |device| {
                device.online = !device.online;
                device.online_since = Some(now);
            }),
            Step::End(number) => change(&mut planner, &mut world, number, |device| device.current = None),
            Step::Write => {
                let answer = plan(&world.snapshot, now);
                for planned in &answer.devices {
                    let device = world.snapshot.devices.iter().find(|device| device.name == planned.name);
                    let mut device = device.expect("what is planned is there").clone();
                    device.last_policy.clone_from(&planned.policy);
                    device.last_group.clone_from(&planned.group);
                    device.last_possible.clone_from(&planned.possible_groups);
                    device.moved.clone_from(&planned.moved);
                    device.eligible = planned.eligible;
                    put(&mut planner, &device, &mut world);
                }
            }
        }
        check(&mut planner, &mut world, now)?;
    }
    Ok(())
}

fn change(planner: &mut Planner<'_, Device>, world: &mut World, number: usize, how: impl FnOnce(&mut Device)) {
    let name = Name::from(format!("d{number}"));
    let device = world.snapshot.devices.iter().find(|device| device.name == name).cloned();
    if let Some(mut device) = device {
        how(&mut device);
        put(planner, &device, world);
    }
}

fn put(planner: &mut Planner<'_, Device>, device: &Device, world: &mut World) {
    let translated = translated(device, &world.snapshot.updates, planner.updates_mut());
    planner.put(translated);
    for offer in device.report.iter().flat_map(|report| &report.offers) {
        let Update { id, published, .. } = (**world.snapshot.updates.get(offer.update).expect("an update")).clone();
        let dates = Dates { shared: None, alone: published.map(|at| (at, device.name.clone())) };
        world.sightings.push(Seen { id, first: offer.first_seen, by: device.name.clone(), shared: None, dates });
    }
    world.snapshot.devices.retain(|other| other.name != device.name);
    world.snapshot.devices.push(device.clone());
}

/// The device, with its updates in another catalogue.
fn translated(device: &Device, from: &Catalogue, to: &mut Catalogue) -> Device {
    let mut update = |id: UpdateId| to.intern((**from.get(id).expect("an update")).clone());
    let report = device.report.as_ref().map_err(Clone::clone).map(|report| DeviceReport {
        offers: report.offers.iter().map(|offer| Offer { update: update(offer.update), ..offer.clone() }).collect(),
        removable: report.removable.iter().map(|id| update(*id)).collect(),
        restart: report.restart.map(&mut update),
        ..report.clone()
    });
    let installed = device.installed.iter().map(|id| to.number(from.id(*id).expect("an id"))).collect();
    let mut failures = device.failures.clone();
    for failure in &mut failures {
        into_catalogue(failure, to);
    }
    Device { report, installed, failures, ..device.clone() }
}

/// Plans with the planner and anew, compares, and writes down how far updates have come.
fn check(planner: &mut Planner<'_, Device>, world: &mut World, now: Timestamp) -> TestCaseResult {
    let remembered = world.snapshot.groups.iter_mut().find(|group| &*group.name == "memory");
    remembered.expect("it is there").seen.clone_from(&world.sightings);
    let before: BTreeMap<Name, DevicePlan> =
        planner.devices().map(|planned| (planned.name.clone(), planned.clone())).collect();
    let changed = planner.plan(now);
    let anew = plan(&world.snapshot, now);
    let mut kept = Plan {
        devices: planner.devices().cloned().collect(),
        policies: planner.policies().cloned().collect(),
        groups: planner.groups().cloned().collect(),
        windows: planner.windows().cloned().collect(),
        next_look: planner.next_look(),
    };
    for planned in &kept.devices {
        let is_changed = before.get(&planned.name) != Some(planned);
        prop_assert_eq!(changed.contains(&planned.name), is_changed, "{} is told to have changed", planned.name);
    }
    kept.devices.iter_mut().for_each(|planned| speak_of(planned, planner.updates(), &world.snapshot.updates));
    kept.policies.sort_by(|a, b| a.name.cmp(&b.name));
    kept.groups.sort_by(|a, b| a.name.cmp(&b.name));
    kept.groups.retain(|group| &*group.name != "memory");
    kept.windows.sort_by(|a, b| a.name.cmp(&b.name));
    let mut expected = anew.clone();
    expected.groups.retain(|group| &*group.name != "memory");
    same(&kept.devices, &expected.devices)?;
    same(&kept.policies, &expected.policies)?;
    same(&kept.groups, &expected.groups)?;
    same(&kept.windows, &expected.windows)?;
    prop_assert_eq!(kept.next_look, expected.next_look);
    write_down(&mut world.snapshot, &anew);
    for device in &world.snapshot.devices {
        let answers = (planner.may_act(&device.name, now), planner.may_restart(&device.name, now));
        let anew = (may_act(&world.snapshot, &device.name, now), may_restart(&world.snapshot, &device.name, now));
        prop_assert_eq!(answers, anew, "may {} begin or restart", device.name);
    }
    Ok(())
}

/// How far updates have come, and what was seen.
fn write_down(snapshot: &mut Snapshot, answer: &Plan) {
    for policy in &mut snapshot.policies {
        let planned = answer.policies.iter().find(|planned| planned.name == policy.name);
        policy.progress = planned.expect("a plan for each policy").progress.clone();
    }
    for group in &mut snapshot.groups {
        let planned = answer.groups.iter().find(|planned| planned.name == group.name);
        group.seen = planned.expect("a plan for each group").seen.to_vec();
    }
}

/// One by one: only what differs is shown.
fn same<T: PartialEq + std::fmt::Debug>(kept: &[T], anew: &[T]) -> TestCaseResult {
    prop_assert_eq!(kept.len(), anew.len());
    for (kept, anew) in kept.iter().zip(anew) {
        prop_assert_eq!(kept, anew);
    }
    Ok(())
}

/// In the words of another catalogue.
fn speak_of(planned: &mut DevicePlan, from: &Catalogue, to: &Catalogue) {
    let mut to = to.clone();
    let mut update = |id: UpdateId| to.intern((**from.get(id).expect("an update")).clone());
    for one in &mut planned.updates {
        one.update = update(one.update);
    }
    if let Some(Due { updates, .. }) = &mut planned.due {
        for id in updates {
            *id = update(*id);
        }
    }
}
