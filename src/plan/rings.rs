//! How far each update has come: rings, soak times, stops and pauses.
//!
//! In: devices with their policies, what was installed and what failed on them, and what was written down before. Out:
//! for each policy its [`Progress`]. It only ever goes forward: a ring that has an update keeps it, an update that was
//! stopped stays so until a person says otherwise, and what is not known blocks.
//!
//! ```text
//!   ring 1 ----minimum reached----soak----> ring 2 ----...----> the rest
//!            \\-- too many failures: the minimum is lost, the soak begins anew when it is reached again
//! ```
//!
//! - An update is proved in a ring by devices of it that installed it, against those on which it failed.
//! - An update that failed by its own fault on at least 3 devices, and on 5% of those that tried it, is stopped in the
//!   whole client, alone.
//! - A rollout in which more devices failed than its budget allows is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::order::RESTART;
use sha2::{Digest as _, Sha256};

use super::bits::Bits;
use super::look::Look;
use super::model::{
    Amount, Catalogue, Device, Failure, Name, Policy, Progress, Ring, RingMembers, Rollout, Snapshot, UpdateProgress,
    WhenEmpty,
};
use super::outcome::Blocked;
use super::window::later;

/// How many updates of a policy are followed, and written down.
pub const FOLLOWED: usize = 256;

/// An update is stopped once it failed on so many devices ...
const STOPPED_BY_DEVICES: u32 = 3;
/// ... and on so many percent of those that tried it.
const STOPPED_BY_PERCENT: u32 = 5;

/// A device in its place: its policy and its ring, by their positions. The ring after the last is the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub policy: usize,
    pub ring: usize,
}

/// What devices tell of an update.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    installed: u32,
    failed: u32,
    waiting: u32,
    /// Devices that may not tell all that they lack.
    silent: u32,
}

impl Evidence {
    fn tried(self) -> u32 {
        self.installed.saturating_add(self.failed)
    }
}

/// A device of the client in its place, if a policy governs it.
pub(super) type Placed<'a> = (&'a Device, Option<Place>);

/// Failures that do not count, by device and update: somebody has said to try again.
pub(super) type Pardoned<'a> = BTreeSet<(&'a Name, &'a Name)>;

/// How far a client's updates have come.
pub(super) struct Rings {
    /// As in the list of policies.
    progress: Vec<Progress>,
    /// What of it devices are asked about, as in the list of policies.
    views: Vec<View>,
    /// What blocks updates everywhere, by the numbers of their ids.
    stopped: BTreeMap<usize, Arc<Blocked>>,
}

/// A policy's rings as devices see them; empty without rings.
#[derive(Default)]
struct View {
    /// That of an update of which nothing was written down.
    first: Option<Seen>,
    /// Numbers of the ids of which something was, which are few.
    written: Bits,
    seen: BTreeMap<usize, Seen>,
}

/// The last ring that has an update, and what blocks the others.
struct Seen {
    open: usize,
    /// The next ring, and those after it.
    blocked: Option<(Arc<Blocked>, Arc<Blocked>)>,
}

/// The ring that `device` is in; the one after the last is the rest.
pub(super) fn ring_of(rollout: &Rollout, policy: &Name, device: &Device) -> usize {
    let share = rollout.rings.iter().any(|ring| matches!(ring.members, RingMembers::Percent(_)));
    let share = if share { share_of(policy, &device.name) } else { 0 };
    let mut before = 0;
    let fits = |ring: &Ring| match &ring.members {
        RingMembers::Selector(selector) => selector.matches(&device.labels),
        RingMembers::Percent(percent) => {
            let from = before;
            before += percent * 100;
            (from..before).contains(&share)
        }
    };
    rollout.rings.iter().position(fits).unwrap_or(rollout.rings.len())
}

/// A number below 10,000 that is always the same for a device in a policy, whatever other devices come and go.
fn share_of(policy: &str, device: &str) -> u32 {
    let digest = Sha256::new().chain_update(policy).chain_update([0]).chain_update(device).finalize();
    let first = digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    first % 10_000
}

impl Rings {
    /// As they were written down.
    pub(super) fn recorded(snapshot: &Snapshot, policies: &[&Policy]) -> Self {
        let progress = policies.iter().map(|policy| policy.progress.clone()).collect();
        Self { progress, views: vec![], stopped: BTreeMap::new() }.with_views(snapshot, policies)
    }

    /// As they are at `now`. What is written down has whole seconds, as everything in Kubernetes.
    pub(super) fn of(
        snapshot: &Snapshot,
        policies: &[&Policy],
        devices: &[Placed<'_>],
        pardoned: &Pardoned<'_>,
        now: Timestamp,
        look: &mut Look,
    ) -> Self {
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let mut progress: Vec<Progress> = policies.iter().map(|policy| policy.progress.clone()).collect();
        stop(&mut progress, snapshot, policies, devices, pardoned, now);
        let mut governed: Vec<Vec<(&Device, usize)>> = vec![vec![]; policies.len()];
        for (device, place) in devices.iter().filter(|(device, _)| !device.retired) {
            let place = place.as_ref();
            if let Some((governed, place)) = place.and_then(|place| governed.get_mut(place.policy).zip(Some(place))) {
                governed.push((device, place.ring));
            }
        }
        for (position, (policy, progress)) in policies.iter().zip(&mut progress).enumerate() {
            let Ok(settings) = &policy.settings else { continue };
            let rollout = &settings.rollout;
            // What is still to come is no word on failures yet.
            look.at(rollout.resumed);
            let resumed = rollout.resumed.filter(|resumed| *resumed <= now);
            let governed = governed.get(position).map(Vec::as_slice).unwrap_or_default();
            if progress.paused.is_some_and(|since| resumed.is_some_and(|resumed| resumed >= since)) {
                progress.paused = None;
            }
            if let Some(budget) = rollout.failure_budget {
                pause(progress, budget, resumed, governed.iter().map(|(device, _)| *device), now);
            }
            if !rollout.rings.is_empty() {
                let evidence = evidence(snapshot, rollout.rings.len() + 1, governed);
                advance_all(progress, snapshot, rollout, &evidence, now, look);
            }
        }
        Self { progress, views: vec![], stopped: BTreeMap::new() }.with_views(snapshot, policies)
    }

    fn with_views(mut self, snapshot: &Snapshot, policies: &[&Policy]) -> Self {
        let catalogue = &snapshot.updates;
        for (policy, progress) in policies.iter().zip(&self.progress) {
            self.views.push(View::of(policy, progress, catalogue));
            let stopped = progress.updates.iter().filter_map(|(id, it)| Some((catalogue.number_of(id)?, it.stopped?)));
            for (number, since) in stopped {
                let known = self.stopped.get(&number).and_then(|blocked| stopped_since(blocked));
                if known.is_none_or(|known| known < since) {
                    self.stopped.insert(number, Arc::new(Blocked::UpdateStopped { since }));
                }
            }
        }
        self
    }

    /// All policies' progress, to be added to.
    pub(super) fn progress_mut(&mut self) -> &mut [Progress] {
        &mut self.progress
    }

    /// How far a policy's updates have come.
    pub(super) fn progress(&self, policy: usize) -> Option<&Progress> {
        self.progress.get(policy)
    }

    /// Why an update, by the number of its id, is installed nowhere; unless it was to be tried again after that.
    pub(super) fn stopped(&self, id: usize, tried_again: Option<Timestamp>) -> Option<&Arc<Blocked>> {
        let blocked = self.stopped.get(&id)?;
        let pardoned = tried_again.zip(stopped_since(blocked)).is_some_and(|(again, since)| again > since);
        (!pardoned).then_some(blocked)
    }

    /// Why a device in its place has to wait for an update, by the number of its id.
    pub(super) fn waits(&self, place: Place, id: usize) -> Option<&Arc<Blocked>> {
        let view = self.views.get(place.policy).filter(|_| place.ring > 0)?;
        let seen = if view.written.contains(id) { view.seen.get(&id) } else { view.first.as_ref() }?;
        let (next, later) = seen.blocked.as_ref().filter(|_| place.ring > seen.open)?;
        Some(if place.ring == seen.open + 1 { next } else { later })
    }
}

impl View {
    fn of(policy: &Policy, progress: &Progress, catalogue: &Catalogue) -> Self {
        let Ok(settings) = &policy.settings else { return Self::default() };
        let rings = &settings.rollout.rings;
        let Some(first) = rings.first() else { return Self::default() };
        let waits = |ring: &Ring, until: Option<Timestamp>| {
            Arc::new(Blocked::RingWaits { policy: policy.name.clone(), ring: ring.name.clone(), until })
        };
        let blocked = |ring: &Ring, reached: Option<Timestamp>| {
            (waits(ring, reached.map(|at| later(at, ring.soak))), waits(ring, None))
        };
        let mut view = Self {
            first: Some(Seen { open: 0, blocked: Some(blocked(first, None)) }),
            written: Bits::below(catalogue.ids()),
            seen: BTreeMap::new(),
        };
        for (id, progress) in &progress.updates {
            let open = open_ring(rings, progress);
            if let Some(number) = catalogue.number_of(id) {
                view.written.insert(number);
                let seen = Seen { open, blocked: rings.get(open).map(|ring| blocked(ring, progress.reached)) };
                view.seen.insert(number, seen);
            }
        }
        view
    }
}

fn stopped_since(blocked: &Blocked) -> Option<Timestamp> {
    match blocked {
        Blocked::UpdateStopped { since } => Some(*since),
        _ => None,
    }
}

/// On how many devices an update was tried.
#[derive(Default)]
struct Tried {
    installed: u32,
    failed: u32,
    /// When it failed last.
    last: Option<Timestamp>,
}

impl Tried {
    fn is_bad(&self) -> bool {
        let (failed, installed) = (u64::from(self.failed), u64::from(self.installed));
        self.failed >= STOPPED_BY_DEVICES && failed * 100 >= u64::from(STOPPED_BY_PERCENT) * (failed + installed)
    }
}

/// Writes down which updates are stopped, with every policy that governs a device that offers or failed them.
fn stop(
    progress: &mut [Progress],
    snapshot: &Snapshot,
    policies: &[&Policy],
    devices: &[Placed<'_>],
    pardoned: &Pardoned<'_>,
    now: Timestamp,
) {
    let stopped = |progress: &[Progress], id: &Name| -> Option<Timestamp> {
        progress.iter().filter_map(|progress| progress.updates.get(id)?.stopped).max()
    };
    let mut tried: BTreeMap<&Name, Tried> = BTreeMap::new();
    for (device, _) in devices {
        // What stopped it once, and was tried again since, does not stop it again.
        let counts = |it: &&Failure| {
            // A restart is no update that could be bad everywhere.
            *it.update != *RESTART
                && it.attributable
                && it.attempts > 0
                && stopped(progress, &it.update).is_none_or(|since| it.last > since)
                && !pardoned.contains(&(&device.name, &it.update))
        };
        let mut failed: BTreeMap<&Name, Timestamp> = BTreeMap::new();
        for failure in device.failures.iter().filter(counts) {
            let last = failed.entry(&failure.update).or_insert(failure.last);
            *last = (*last).max(failure.last);
        }
        for (id, last) in failed {
            let tried = tried.entry(id).or_default();
            tried.failed += 1;
            tried.last = tried.last.max(Some(last));
        }
    }
    if tried.is_empty() {
        return;
    }
    let catalogue = &snapshot.updates;
    let mut installed = vec![0; catalogue.ids()];
    for id in devices.iter().flat_map(|(device, _)| &device.installed) {
        if let Some(installed) = installed.get_mut(id.index()) {
            *installed += 1;
        }
    }
    for (id, tried) in &mut tried {
        tried.installed = catalogue.number_of(id).and_then(|number| installed.get(number).copied()).unwrap_or(0);
    }
    // Not before the failures that are the reason, whatever the clock says: they must not count again.
    let since = |tried: &Tried| tried.last.map_or(now, |last| last.max(now));
    let bad = tried.iter().filter(|(_, tried)| tried.is_bad());
    let bad: BTreeMap<&Name, Timestamp> = bad.map(|(id, tried)| (*id, since(tried))).collect();
    let mut numbers = Bits::below(catalogue.ids());
    for number in bad.keys().filter_map(|id| catalogue.number_of(id)) {
        numbers.insert(number);
    }
    for (device, place) in devices {
        let Some((policy, progress)) =
            place.and_then(|place| policies.get(place.policy).zip(progress.get_mut(place.policy)))
        else {
            continue;
        };
        let offers = device.report.iter().flat_map(|report| &report.offers);
        let offered = offers.filter_map(|offer| catalogue.id_of(offer.update)).filter(|id| numbers.contains(*id));
        let failed = device.failures.iter().map(|failure| &failure.update);
        for (id, since) in
            offered.filter_map(|id| catalogue.id_at(id)).chain(failed).filter_map(|id| bad.get_key_value(id))
        {
            // A name that no ring has is read as the first: should there be rings one day, it begins with that.
            let blank = || {
                let ring = Some(first_ring(policy).unwrap_or_default());
                UpdateProgress { ring, opened: now, reached: None, stopped: None }
            };
            progress.updates.entry((*id).clone()).or_insert_with(blank).stopped = Some(*since);
        }
    }
}

fn first_ring(policy: &Policy) -> Option<Name> {
    policy.settings.as_ref().ok()?.rollout.rings.first().map(|ring| ring.name.clone())
}

/// The position of the last ring that has the update. What was written of a ring that is not there any more is as if
/// nothing had been written.
fn open_ring(rings: &[Ring], progress: &UpdateProgress) -> usize {
    match &progress.ring {
        None => rings.len(),
        Some(name) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
    }
}

/// By the number of the update's id times the number of rings, and the ring; of the devices that a policy governs, each
/// with its ring.
fn evidence(snapshot: &Snapshot, rings: usize, governed: &[(&Device, usize)]) -> Vec<Evidence> {
    let catalogue = &snapshot.updates;
    let mut evidence = vec![Evidence::default(); catalogue.ids() * rings];
    let mut silent = vec![0; rings];
    for (device, ring) in governed {
        if let Some(silent) = silent.get_mut(*ring).filter(|_| !tells_all(device)) {
            *silent += 1;
        }
        let mut at = |id: Option<usize>, count: fn(&mut Evidence)| {
            if let Some(evidence) = id.and_then(|id| evidence.get_mut(id * rings + ring)) {
                count(evidence);
            }
        };
        for offer in device.report.iter().flat_map(|report| &report.offers) {
            at(catalogue.id_of(offer.update), |evidence| evidence.waiting += 1);
        }
        for failure in device.failures.iter().filter(|failure| failure.attempts > 0) {
            at(catalogue.offered(&failure.update), |evidence| evidence.failed += 1);
        }
        for (nth, id) in device.installed.iter().enumerate() {
            let is_first = !device.installed.iter().take(nth).any(|other| other == id);
            let number = Some(id.index()).filter(|number| is_first && catalogue.is_offered(*number));
            at(number, |evidence| evidence.installed += 1);
        }
    }
    for by_ring in evidence.chunks_mut(rings) {
        by_ring.iter_mut().zip(&silent).for_each(|(evidence, silent)| evidence.silent = *silent);
    }
    evidence
}

/// Whether it can be told from the device's report that it does not need an update.
fn tells_all(device: &Device) -> bool {
    device
        .report
        .as_ref()
        .is_ok_and(|report| !report.truncated && report.problems.iter().all(|problem| !problem.hides_updates()))
}

fn advance_all(
    progress: &mut Progress,
    snapshot: &Snapshot,
    rollout: &Rollout,
    evidence: &[Evidence],
    now: Timestamp,
    look: &mut Look,
) {
    let rings = rollout.rings.len() + 1;
    // Of more updates than are written down those that nobody offers are forgotten first.
    if progress.updates.len() >= FOLLOWED {
        progress.updates.retain(|id, update| update.stopped.is_some() || snapshot.updates.offered(id).is_some());
    }
    for (id, by_ring) in snapshot.updates.all_ids().zip(evidence.chunks(rings)) {
        if by_ring.iter().all(|seen| seen.tried() + seen.waiting == 0) {
            continue;
        }
        let recorded = progress.updates.get(id).cloned();
        let was_recorded = recorded.is_some();
        let next = advance(rollout, recorded, by_ring, now, look);
        // What is at the very beginning need not be written down.
        let first = rollout.rings.first();
        let begins = next.reached.is_none() && first.is_some_and(|first| next.ring.as_ref() == Some(&first.name));
        // What does not fit waits at the beginning: nothing is forgotten for it.
        let fits = was_recorded || progress.updates.len() < FOLLOWED;
        if fits && (was_recorded || !begins) {
            progress.updates.insert(id.clone(), next);
        }
    }
}

fn advance(
    rollout: &Rollout,
    recorded: Option<UpdateProgress>,
    evidence: &[Evidence],
    now: Timestamp,
    look: &mut Look,
) -> UpdateProgress {
    let mut open = recorded.as_ref().map_or(0, |recorded| open_ring(&rollout.rings, recorded));
    let known = recorded
        .as_ref()
        .is_some_and(|recorded| recorded.ring.as_ref() == rollout.rings.get(open).map(|ring| &ring.name));
    let mut progress = UpdateProgress {
        ring: None,
        opened: recorded.as_ref().filter(|_| known).map_or(now, |recorded| recorded.opened),
        reached: recorded.as_ref().filter(|_| known).and_then(|recorded| recorded.reached),
        stopped: recorded.and_then(|recorded| recorded.stopped),
    };
    while let Some(ring) = rollout.rings.get(open) {
        progress.ring = Some(ring.name.clone());
        let seen = evidence.get(open).copied().unwrap_or_default();
        let is_proved = is_good(ring, seen) && seen.installed >= ring.min_successes.max(1);
        let holds = match ring.when_empty {
            // Once reached, only failures undo it: what was installed long ago is not told any more.
            WhenEmpty::Wait => is_proved || (progress.reached.is_some() && is_good(ring, seen)),
            // Or nobody needs it. A device that comes to need it has to prove it.
            WhenEmpty::Promote => is_proved || seen.tried() + seen.waiting + seen.silent == 0,
        };
        progress.reached = if holds { Some(progress.reached.unwrap_or(now)) } else { None };
        let proved_since = progress.reached;
        let Some(since) = proved_since else { return progress };
        let soaked = later(since, ring.soak);
        if now < soaked {
            look.at(Some(soaked));
            return progress;
        }
        open += 1;
        progress = UpdateProgress { ring: None, opened: now, reached: None, stopped: progress.stopped };
    }
    progress
}

/// Whether enough of those that tried it have it; also where nobody tells of it.
fn is_good(ring: &Ring, seen: Evidence) -> bool {
    u64::from(seen.installed) * 100 >= u64::from(ring.min_success_percent) * u64::from(seen.tried())
}

/// More devices failed since `resumed` than the budget allows.
fn pause<'a>(
    progress: &mut Progress,
    budget: Amount,
    resumed: Option<Timestamp>,
    devices: impl Iterator<Item = &'a Device>,
    now: Timestamp,
) {
    if progress.paused.is_some() {
        return;
    }
    let counts = |device: &Device| {
        let since = |last: Timestamp| resumed.is_none_or(|resumed| last > resumed);
        device.failures.iter().any(|failure| failure.attempts > 0 && since(failure.last))
    };
    let (devices, failed) = devices.fold((0_u32, 0_u32), |(devices, failed), device| {
        (devices.saturating_add(1), failed.saturating_add(u32::from(counts(device))))
    });
    if failed > budget.of(devices) {
        progress.paused = Some(now);
    }
}
