//! What is written down goes forward.

use jiff::Timestamp;
use patchwarden_plan::Plan;
use patchwarden_plan::model::{Device, Durations, Name, Snapshot, UpdateProgress, WhenEmpty};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::reference;

/// Nothing goes back by itself, and stops and pauses are what the reference says.
pub(super) fn what_was_written_down_goes_forward(snapshot: &Snapshot, answer: &Plan, now: Timestamp) -> TestCaseResult {
    for policy in &snapshot.policies {
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        let expected = reference::progress(snapshot, policy, now);
        prop_assert_eq!(planned.progress.paused, expected.paused);
        prop_assert_eq!(&planned.progress.durations, &expected.durations);
        let longest = |known: &Durations| known.updates.values().max().copied();
        prop_assert!(longest(&planned.progress.durations) >= longest(&policy.progress.durations));
        let Ok(settings) = &policy.settings else { continue };
        let rings = &settings.rollout.rings;
        for device in &snapshot.devices {
            let wanted = rings.get(reference::ring_of(policy, device)).map(|ring| ring.name.clone());
            prop_assert_eq!(patchwarden_plan::ring_of(policy, device), wanted, "{}", device.name);
        }
        let open = |progress: &UpdateProgress| match &progress.ring {
            None => rings.len(),
            Some(name) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
        };
        for (id, before) in &policy.progress.updates {
            let after = planned.progress.updates.get(id).expect("nothing is forgotten");
            prop_assert!(open(after) >= open(before), "{} went back", id);
            prop_assert!(after.stopped >= before.stopped, "{} is not stopped any more", id);
            prop_assert!(after.anywhere >= before.anywhere, "{} was installed on fewer", id);
            let is_same = (&after.ring, after.opened) == (&before.ring, before.opened);
            prop_assert!(!is_same || after.installed >= before.installed, "{} was installed on fewer of its ring", id);
        }
        for (id, after) in &planned.progress.updates {
            let wanted = expected.updates.get(id).and_then(|update| update.stopped);
            prop_assert_eq!(after.stopped, wanted, "{}", id);
            let wanted = expected.updates.get(id).map_or(vec![], |update| update.failed.clone());
            prop_assert_eq!(&after.failed, &wanted, "{}", id);
            if let Some(before) = policy.progress.updates.get(id).filter(|before| open(before) < open(after)) {
                let ring = &rings[open(before)];
                let in_ring = |device: &&Device| {
                    reference::policy_of(snapshot, device).is_some_and(|it| it.name == policy.name)
                        && reference::ring_of(policy, device) == open(before)
                        && !device.retired
                };
                let installed = snapshot
                    .devices
                    .iter()
                    .filter(in_ring)
                    .filter(|it| reference::has_installed(snapshot, it, id))
                    .count();
                let known = if before.ring.as_ref() == Some(&ring.name) { before.installed as usize } else { 0 };
                let counted = |device: &&Device| !reference::is_pardoned(snapshot, device, id, now);
                let tried = snapshot.devices.iter().filter(in_ring).filter(counted).flat_map(|device| &device.failures);
                let failed = tried.filter(|failure| failure.update == *id && failure.tells()).count();
                let gone = reference::failed_on(snapshot, policy, id, now).1;
                let is_known = |name: &Name| rings.iter().any(|it| it.name == *name);
                let counts = |name: &Name| *name == ring.name || !is_known(name);
                let failed = failed + gone.iter().filter(|it| it.ring.as_ref().is_some_and(counts)).count();
                let is_good = |has: usize| has * 100 >= ring.min_success_percent as usize * (has + failed);
                prop_assert!(is_good(installed.max(known)), "{} went on though it failed on {}", id, failed);
                let proved = before.reached.is_some() || installed.max(known) >= ring.min_successes as usize;
                prop_assert!(proved || ring.when_empty == WhenEmpty::Promote, "{} went on without proof", id);
            }
        }
        prop_assert!(expected.updates.keys().all(|id| planned.progress.updates.contains_key(id)));
    }
    Ok(())
}

/// Before it is written down: afterwards it is believed.
pub(super) fn what_is_written_down_of_updates_is_what_several_devices_told(
    snapshot: &Snapshot,
    answer: &Plan,
) -> TestCaseResult {
    for seen in answer.groups.iter().flat_map(|group| group.seen.iter()) {
        prop_assert_eq!(seen.shared, reference::shared(snapshot, &seen.id), "{}", seen.id);
        let dates = (seen.dates.shared, seen.dates.alone.clone());
        prop_assert_eq!(dates, reference::vendors_dates(snapshot, &seen.id), "{}", seen.id);
    }
    Ok(())
}

pub fn written_down(snapshot: &Snapshot, answer: &Plan) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for policy in &mut snapshot.policies {
        let planned = answer.policies.iter().find(|it| it.name == policy.name).expect("a plan for each policy");
        policy.progress = planned.progress.clone();
    }
    for group in &mut snapshot.groups {
        let planned = answer.groups.iter().find(|it| it.name == group.name).expect("a plan for each group");
        group.seen = planned.seen.to_vec();
    }
    for device in &mut snapshot.devices {
        let planned = answer.devices.iter().find(|it| it.name == device.name).expect("a plan for each device");
        device.last_policy.clone_from(&planned.policy);
        device.last_group.clone_from(&planned.group);
        device.last_possible.clone_from(&planned.possible_groups);
        device.moved.clone_from(&planned.moved);
        device.eligible = planned.eligible;
    }
    snapshot
}
