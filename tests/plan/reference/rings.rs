//! How far updates have come.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_plan::model::{
    Amount, Cause, Device, DeviceReport, FailedOn, Failure, Name, Policy, Progress, RingMembers, Snapshot, Update,
    UpdateProgress,
};
use patchwarden_protocol::report::ProblemCode;
use sha2::{Digest as _, Sha256};

use super::approval::update_of;
use super::eligible::{durations, pardoned_before, reprocessed, seen_to, worst};
use super::selection::{line_of, policy_of, selects};
use crate::fleet::IDS;

/// The devices that the policy governs.
pub(super) fn governed<'a>(snapshot: &'a Snapshot, policy: &'a Policy) -> impl Iterator<Item = &'a Device> + Clone {
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    snapshot.devices.iter().filter(governs).filter(|device| !device.retired)
}

/// What a plan would write down of the policy's updates at `now`.
pub fn progress(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> Progress {
    let durations = durations(snapshot, policy, now);
    let mut progress = Progress { durations, ..(*policy.progress).clone() };
    for id in IDS.map(Name::from) {
        let ring = policy.settings.as_ref().ok().and_then(|settings| settings.rollout.rings.first());
        let ring = ring.map(|it| it.name.clone());
        let (opened, reached, stopped_at) = (now, None, None);
        let blank =
            UpdateProgress { ring, opened, reached, stopped: stopped_at, installed: 0, anywhere: 0, failed: vec![] };
        let (failing, gone) = failed_on(snapshot, policy, &id, now);
        let mut failed: Vec<FailedOn> = failing.into_iter().chain(gone).collect();
        failed.sort();
        if !failed.is_empty() || progress.updates.contains_key(&id) {
            progress.updates.entry(id.clone()).or_insert(blank.clone()).failed = failed;
        }
        if let Some(since) = stopped(snapshot, policy, &id, now) {
            progress.updates.entry(id).or_insert(blank).stopped = Some(since);
        }
    }
    let Ok(settings) = &policy.settings else { return progress };
    let rollout = &settings.rollout;
    let resumed = rollout.resumed.filter(|resumed| *resumed <= now);
    progress.paused = progress.paused.filter(|since| resumed.is_none_or(|resumed| resumed < *since));
    if let Some(budget) = rollout.failure_budget {
        let after = |last: Timestamp| resumed.is_none_or(|resumed| last > resumed);
        let told = governed(snapshot, policy).filter(|device| {
            device.failures.iter().any(|it| it.attempts > 0 && it.cause != Cause::Passing && after(it.last))
        });
        let gone: Vec<FailedOn> =
            policy.progress.updates.keys().flat_map(|id| failed_on(snapshot, policy, id, now).1).collect();
        let gone = gone.iter().filter(|it| after(it.last)).map(|it| &it.device);
        let failed = told.map(|device| &device.name).chain(gone).collect::<BTreeSet<_>>().len();
        let devices = governed(snapshot, policy).count();
        let allowed = match budget {
            Amount::Count(count) => count as usize,
            Amount::Percent(percent) => devices * percent as usize / 100,
        };
        progress.paused = progress.paused.or((failed > allowed).then_some(now));
    }
    progress
}

/// Devices of the policy on which the update counts as failed by its own fault, and those on which it does though they are deleted,
/// retired, made anew or in no policy.
pub fn failed_on(snapshot: &Snapshot, policy: &Policy, id: &Name, now: Timestamp) -> (Vec<FailedOn>, Vec<FailedOn>) {
    let failing = governed(snapshot, policy).filter(|device| !is_pardoned(snapshot, device, id, now));
    let failing: Vec<FailedOn> = failing
        .filter_map(|device| {
            let last = device.failures.iter().filter(|it| is_of_update(it, id)).map(|it| it.last).max()?;
            let settings = policy.settings.as_ref().ok();
            let ring = settings.and_then(|it| it.rollout.rings.get(ring_of(policy, device))).map(|it| it.name.clone());
            Some(FailedOn { device: device.name.clone(), last, ring })
        })
        .collect();
    let known = Update::by_id(id.clone());
    let own = snapshot.groups.iter().filter(|group| !group.name.contains('/'));
    let again = own.filter_map(|group| reprocessed(&line_of(snapshot, group)?, &known, now)).max();
    let is_gone = |name: &Name| {
        let Some(device) = snapshot.devices.iter().find(|device| device.name == *name) else { return true };
        let is_whole = |report: &DeviceReport| {
            !report.truncated && report.problems.iter().all(|problem| *problem == ProblemCode::JournalCorrupt)
        };
        let offers = |report: &DeviceReport| report.offers.iter().any(|it| update_of(snapshot, it).id == *id);
        if device.failures.iter().any(|it| is_of_update(it, id)) {
            return device.retired || policy_of(snapshot, device).is_none();
        }
        device.retired || device.report.as_ref().map_or(true, |report| !is_whole(report) || offers(report))
    };
    let known = policy.progress.updates.get(id).into_iter().flat_map(|update| update.failed.clone());
    let others = known.filter(|it| failing.iter().all(|failing| failing.device != it.device));
    let counted = others.filter(|it| is_gone(&it.device) && again.is_none_or(|again| it.last >= again));
    let gone = counted.collect();
    (failing, gone)
}

fn is_of_update(failure: &Failure, id: &Name) -> bool {
    failure.update == *id && !matches!(failure.cause, Cause::Other | Cause::Passing) && failure.attempts > 0
}

/// Whether somebody has said since the update failed on the device that it is to be tried again.
pub fn is_pardoned(snapshot: &Snapshot, device: &Device, id: &Name, now: Timestamp) -> bool {
    if seen_to(snapshot, device, id, now) {
        return true;
    }
    let offers = device.report.iter().flat_map(|report| &report.offers);
    let due = device.report.iter().filter_map(|report| report.restart);
    let offers = offers
        .map(|offer| update_of(snapshot, offer))
        .chain(due.filter_map(|place| Some(&**snapshot.updates.get(place)?)));
    let mut offered = offers.filter(|update| update.id == *id);
    let before = offered.find_map(|update| pardoned_before(snapshot, device, update, now));
    worst(device, id).zip(before).is_some_and(|(failure, before)| failure.last < before)
}

/// Since when the update is stopped in the policy, if that is decided at `now`.
pub(super) fn stopped(snapshot: &Snapshot, policy: &Policy, id: &Name, now: Timestamp) -> Option<Timestamp> {
    let before = snapshot.policies.iter().filter_map(|policy| policy.progress.updates.get(id)?.stopped).max();
    let counts = |it: &&Failure| is_of_update(it, id) && before.is_none_or(|before| it.last > before);
    let counted = || snapshot.devices.iter().filter(|device| !is_pardoned(snapshot, device, id, now));
    let failed = counted().filter(|device| device.failures.iter().find(counts).is_some()).count();
    let of_policies = || snapshot.policies.iter().flat_map(|policy| failed_on(snapshot, policy, id, now).1);
    // A retired one tells it itself.
    let tells = |name: &Name| {
        counted().any(|device| device.name == *name && device.failures.iter().any(|it| is_of_update(it, id)))
    };
    let mut gone: BTreeMap<Name, Timestamp> = BTreeMap::new();
    for FailedOn { device, last, .. } in of_policies().filter(|it| !tells(&it.device)) {
        gone.entry(device).and_modify(|known| *known = last.max(*known)).or_insert(last);
    }
    let gone = || gone.values().filter(|last| before.is_none_or(|before| **last > before));
    let failed = failed + gone().count();
    let told = snapshot.devices.iter().filter(|device| has_installed(snapshot, device, id)).count();
    let written =
        snapshot.policies.iter().filter_map(|policy| Some(policy.progress.updates.get(id)?.anywhere as usize));
    let installed = written.max().unwrap_or(0).max(told);
    let is_bad = failed >= 3 && failed * 100 >= 5 * (failed + installed);
    let affected = |device: &&Device| {
        let offers = device.report.iter().flat_map(|report| &report.offers);
        device.failures.iter().any(|failure| failure.update == *id)
            || offers.into_iter().any(|offer| update_of(snapshot, offer).id == *id)
    };
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    let told = failed_on(snapshot, policy, id, now);
    let is_told = !told.0.is_empty() || !told.1.is_empty();
    let here = is_told || snapshot.devices.iter().filter(governs).any(|device| affected(&device));
    let last = counted().flat_map(|device| device.failures.iter().filter(counts)).map(|it| it.last);
    let last = last.chain(gone().copied()).max();
    (is_bad && here).then_some(now.max(last.unwrap_or(now)))
}

/// Which ring of the policy the device is in.
pub fn ring_of(policy: &Policy, device: &Device) -> usize {
    let Ok(settings) = &policy.settings else { return 0 };
    let digest = Sha256::digest(format!("{}\0{}", policy.name, device.name));
    let share = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % 10_000;
    let mut upto = 0;
    for (number, ring) in settings.rollout.rings.iter().enumerate() {
        let fits = match &ring.members {
            RingMembers::Selector(selector) => selects(selector, device),
            RingMembers::Percent(percent) => {
                let from = upto;
                upto += 100 * percent;
                from <= share && share < upto
            }
        };
        if fits {
            return number;
        }
    }
    settings.rollout.rings.len()
}

/// Whether the device's ring has the update, by what `progress` says of it.
pub(super) fn ring_has_it(policy: &Policy, progress: &Progress, device: &Device, id: &Name) -> bool {
    let Ok(settings) = &policy.settings else { return true };
    let rings = &settings.rollout.rings;
    let open = match progress.updates.get(id).map(|progress| &progress.ring) {
        Some(None) => rings.len(),
        Some(Some(name)) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
        None => 0,
    };
    ring_of(policy, device) <= open
}

/// How many devices the policy allows at a time.
pub fn places(snapshot: &Snapshot, policy: &Policy) -> usize {
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    let devices = snapshot.devices.iter().filter(governs).filter(|device| !device.retired).count();
    policy.settings.as_ref().map_or(0, |settings| some_of(settings.rollout.max_concurrent, devices))
}

/// Of a percentage at least one.
pub fn some_of(amount: Amount, devices: usize) -> usize {
    match amount {
        Amount::Count(count) => count as usize,
        Amount::Percent(percent) => (devices * percent as usize / 100).max(1),
    }
}

/// Whether it tells that an order installed the update.
pub fn has_installed(snapshot: &Snapshot, device: &Device, id: &Name) -> bool {
    device.installed.iter().any(|number| snapshot.updates.id(*number) == Some(id))
}
