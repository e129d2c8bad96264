//! Whose turn it is: never more devices of a policy at a time than it allows.
//!
//! In: devices with what each would install. Out: the same, where `install` stays for as many as there are places, and
//! the others are blocked. A place is taken by every device that holds a claim in the policy's name, also by one that
//! the policy no longer governs: what it does, it does in that policy's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::model::{Concurrency, Device, Name};
use super::outcome::{Blocked, DevicePlan};
use super::policy::Governor;
use super::summary::Tally;

/// Leaves `install` to those whose turn it is: the fewest failed attempts first, then who failed longest ago (also without an
/// attempt, by not answering), so that no device keeps the others waiting by failing; then by name. A device on hold is
/// no candidate.
pub(super) fn give_turns(devices: &mut [(&Device, DevicePlan)], governors: &[Governor<'_>], tally: &Tally) {
    let mut waiting: BTreeMap<Name, Vec<(Failed, &mut DevicePlan)>> = BTreeMap::new();
    for (device, plan) in devices {
        if device.on_hold {
            pass_over(plan, &Arc::new(Blocked::OnHold));
        }
        if let Some(policy) = plan.install.as_ref().map(|install| install.policy.clone()) {
            waiting.entry(policy).or_default().push((failed(device), plan));
        }
    }
    for governor in governors {
        let policy = &governor.policy.name;
        let Some(mut candidates) = waiting.remove(policy) else { continue };
        candidates.sort_by(|(a_failed, a), (b_failed, b)| a_failed.cmp(b_failed).then_with(|| a.name.cmp(&b.name)));
        let limit = places(governor, tally.policy(policy).devices);
        let free = usize::try_from(limit.saturating_sub(tally.taken(policy))).unwrap_or(usize::MAX);
        let reached = Arc::new(Blocked::ConcurrencyReached { policy: policy.clone(), limit });
        for (_, plan) in candidates.into_iter().skip(free) {
            pass_over(plan, &reached);
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

/// Failed attempts of all the device's updates, and when the last one failed.
type Failed = (u32, Option<Timestamp>);

fn failed(device: &Device) -> Failed {
    let attempts = device.failures.iter().fold(0, |sum: u32, failure| sum.saturating_add(failure.attempts));
    (attempts, device.failures.iter().map(|failure| failure.last).max())
}

fn pass_over(plan: &mut DevicePlan, why: &Arc<Blocked>) {
    if plan.install.take().is_some() {
        for update in plan.updates.iter_mut().filter(|update| update.blocked.is_none()) {
            update.blocked = Some(why.clone());
        }
    }
}
