//! What must not matter.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_plan::model::{
    Catalogue, Cause, Device, DeviceType, Group, Members, Name, NoReport, Policy, Requirement, Selector, Snapshot,
    Update, UpdateId,
};
use patchwarden_plan::outcome::PolicyPlan;
use patchwarden_plan::{Plan, plan};
use proptest::test_runner::TestCaseResult;

pub(super) fn the_order_of_the_input_does_not_matter(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
    seed: u64,
) -> TestCaseResult {
    prop_assert_eq!(&plan(&shuffled(snapshot, seed), now), answer);
    Ok(())
}

pub(super) fn what_has_nothing_to_do_with_a_device_changes_nothing_for_it(
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
    let free = Device {
        retired: false,
        current: None,
        last_policy: None,
        last_group: None,
        last_possible: Box::default(),
        moved: None,
        ..device.clone()
    };
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
pub(super) fn stays(before: &Plan, after: &Plan, of_policy: impl Fn(&PolicyPlan) -> PolicyPlan) -> TestCaseResult {
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
