//! What waits for a person, or for its time, after a change of the specs.

use proptest::prelude::*;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Amount, Blast, Device, Name, Snapshot};
use patchwarden_plan::outcome::DevicePlan;
use patchwarden_plan::{Blocked, Plan, plan};
use proptest::test_runner::TestCaseResult;

use super::written::written_down;
use super::{NANOSECOND, pairs};
use crate::reference;

/// Another digest for each object, as if something were changed in it.
pub(super) fn changed(mut snapshot: Snapshot) -> Snapshot {
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
pub(super) fn a_change_of_the_specs_lets_few_devices_loose(
    before: Snapshot,
    after: Snapshot,
    now: Timestamp,
) -> TestCaseResult {
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
pub(super) fn what_changes_by_itself_is_not_held(before: &Snapshot, after: Snapshot, now: Timestamp) -> TestCaseResult {
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
pub(super) fn a_device_that_lost_its_policy_or_group_waits(
    snapshot: &Snapshot,
    answer: &Plan,
    now: Timestamp,
) -> TestCaseResult {
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
