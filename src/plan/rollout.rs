//! Whose turn it is: never more devices of a policy at a time than it allows.
//!
//! In: devices with what each would install. Out: the same, where `install` stays for as many as there are places, and
//! the others are blocked. A place is taken by every device that holds a claim in the policy's name, also by one that
//! the policy no longer governs: what it does, it does in that policy's name.

use std::collections::BTreeMap;

use super::model::{Concurrency, Device};
use super::outcome::{Blocked, DevicePlan};
use super::policy::Governor;
use super::summary::Tally;

/// Leaves `install` to those whose turn it is: the fewest failed attempts first, so that a device that fails again and
/// again does not keep the others waiting, then by name.
pub(super) fn give_turns(
    devices: &mut [(&Device, DevicePlan)],
    governors: &BTreeMap<&str, Governor<'_>>,
    tally: &Tally,
) {
    let mut waiting: BTreeMap<&str, Vec<(u32, &mut DevicePlan)>> = BTreeMap::new();
    for (device, plan) in devices {
        if let Some((name, _)) =
            plan.install.as_ref().and_then(|install| governors.get_key_value(install.policy.as_str()))
        {
            waiting.entry(name).or_default().push((failed_attempts(device), plan));
        }
    }
    for (policy, mut candidates) in waiting {
        candidates.sort_by(|(a_failed, a), (b_failed, b)| a_failed.cmp(b_failed).then_with(|| a.name.cmp(&b.name)));
        let limit = governors.get(policy).map_or(0, |governor| places(governor, tally.policy(policy).devices));
        let free = usize::try_from(limit.saturating_sub(tally.taken(policy))).unwrap_or(usize::MAX);
        for (_, plan) in candidates.into_iter().skip(free) {
            plan.install = None;
            for update in plan.updates.iter_mut().filter(|update| update.blocked.is_none()) {
                update.blocked = Some(Blocked::ConcurrencyReached { policy: policy.to_owned(), limit });
            }
        }
    }
}

/// How many devices the policy allows at a time, of so many.
fn places(governor: &Governor<'_>, devices: u32) -> u32 {
    match governor.resolved.as_ref().map(|resolved| resolved.settings.max_concurrent) {
        Ok(Concurrency::Count(count)) => count,
        Ok(Concurrency::Percent(percent)) => {
            let part = u64::from(devices) * u64::from(percent) / 100;
            u32::try_from(part).unwrap_or(u32::MAX).max(1)
        }
        Err(_) => 0,
    }
}

fn failed_attempts(device: &Device) -> u32 {
    device.failures.iter().fold(0, |sum, failure| sum.saturating_add(failure.attempts))
}
