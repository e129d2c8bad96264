//! One policy's updates on their way through its rings.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;

use super::view::{View, open_ring};
use super::{FOLLOWED, Teller, tells_all};
use crate::bits::Bits;
use crate::look::Look;
use crate::model::{
    Amount, Blast, Catalogue, Device, FailedOn, Name, Policy, Progress, Ring, Rollout, Settings, UpdateProgress,
    WhenEmpty,
};
use crate::moves::Moves;
use crate::outcome::Unproved;
use crate::window::later;

/// As many updates as begin at once when a policy is planned for the first time, and not when one device has changed.
const MANY: usize = 256;

/// How far a policy's updates have come, and what its devices tell of them.
pub(super) struct Course<'a> {
    policy: &'a Policy,
    progress: Arc<Progress>,
    /// Numbers of the ids of updates that it tells of.
    recorded: Bits,
    view: View,
    /// Its rings and the rest; none without rings.
    stages: usize,
    /// By the number of the update's id times the number of stages, and the stage.
    evidence: Vec<Evidence>,
    /// By stage: devices that may not tell all that they lack.
    silent: Vec<u32>,
    /// Devices that count for the budget.
    devices: u32,
    /// Of these, by their names, those with a failed update, and when the last one failed.
    failed: BTreeMap<Name, Timestamp>,
    /// What of that has moved, by their numbers.
    failed_anew: Moves<(usize, Timestamp)>,
    /// By the number of an update's id: devices that are gone, on which it failed.
    gone: BTreeMap<usize, Vec<FailedOn>>,
    /// Of these, those that count for the budget, as far as that is known.
    failures: Option<usize>,
    /// From when on failures count.
    resumed: Option<Timestamp>,
    /// When an update's soak time is over, by the number of its id.
    soaking: Vec<Option<Timestamp>>,
    /// The same, the earliest first. What `soaking` does not say any more does not count.
    soaks: BinaryHeap<Reverse<(Timestamp, usize)>>,
    doubtful: Doubtful,
    /// What devices tell anew of updates, by the numbers of their ids and the stage.
    told: Moves<(usize, usize, Told)>,
    /// By stage: whether somebody was silent when that was last asked.
    was_silent: Vec<bool>,
    /// Whether something else is to be written down than when that was last asked.
    is_new: bool,
}

/// Numbers of the ids of updates that may have come farther.
enum Doubtful {
    All,
    Some(BTreeSet<usize>),
}

/// What devices in a ring tell of an update.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    installed: u32,
    failed: u32,
    waiting: u32,
}

/// Which of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Installed,
    Failed,
    /// Whether anybody waits: how many do does not matter.
    Waiting,
}

impl Evidence {
    fn tried(self) -> u32 {
        self.installed.saturating_add(self.failed)
    }
}

impl<'a> Course<'a> {
    /// As it was written down, with no devices.
    pub(super) fn recorded(policy: &'a Policy, catalogue: &Catalogue) -> Self {
        let rings = policy.settings.as_ref().map(|settings| settings.rollout.rings.as_slice()).unwrap_or_default();
        let stages = if rings.is_empty() { 0 } else { rings.len() + 1 };
        let mut course = Self {
            policy,
            progress: policy.progress.clone(),
            recorded: Bits::default(),
            view: View::default(),
            stages,
            evidence: vec![],
            silent: vec![0; stages],
            devices: 0,
            failed: BTreeMap::new(),
            failed_anew: Moves::default(),
            gone: BTreeMap::new(),
            failures: None,
            resumed: None,
            soaking: vec![],
            soaks: BinaryHeap::new(),
            doubtful: Doubtful::All,
            told: Moves::default(),
            was_silent: vec![false; stages],
            is_new: true,
        };
        course.look_anew(catalogue);
        course
    }

    /// What has been written down.
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether something else is to be written down than when this was last asked.
    pub(super) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// What devices see of it.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The name of a ring by its place; none for the rest.
    pub(super) fn ring(&self, place: usize) -> Option<&Name> {
        let settings = self.policy.settings.as_ref().ok()?;
        settings.rollout.rings.get(place).map(|ring| &ring.name)
    }

    /// Which specs are in force.
    pub(super) fn set_blast(&mut self, blast: Blast) {
        self.is_new = true;
        Arc::make_mut(&mut self.progress).blast = blast;
    }

    /// An update may have come farther.
    pub(super) fn doubt(&mut self, id: usize) {
        if let Doubtful::Some(ids) = &mut self.doubtful
            && self.stages > 0
        {
            ids.insert(id);
        }
    }

    /// Counts what a device tells, or takes it back. Retired ones do not count.
    pub(super) fn count(&mut self, catalogue: &Catalogue, teller: Teller<'_>, adds: bool) {
        let Teller { device, number, place: Some(place), pardoned } = teller else { return };
        if device.retired {
            return;
        }
        change(&mut self.devices, adds);
        let failures = device.failures.iter().filter(|failure| failure.tells());
        if let Some(last) = failures.map(|failure| failure.last).max() {
            self.failed_anew.note((number, last), adds);
            if adds {
                self.failed.insert(device.name.clone(), last);
            } else {
                self.failed.remove(&device.name);
            }
        }
        if self.stages == 0 {
            return;
        }
        if let Some(silent) = self.silent.get_mut(place.ring).filter(|_| !tells_all(device)) {
            change(silent, adds);
        }
        let Self { evidence, stages, doubtful, told, .. } = self;
        // Of what is looked at anyway nobody need know.
        let is_noted = matches!(doubtful, Doubtful::Some(_));
        evidence.resize((catalogue.ids() * *stages).max(evidence.len()), Evidence::default());
        for offer in device.report.iter().flat_map(|report| &report.offers) {
            let Some(id) = catalogue.id_of(offer.update) else { continue };
            let Some(Evidence { waiting, .. }) = evidence.get_mut(id * *stages + place.ring) else { continue };
            let before = *waiting;
            change(waiting, adds);
            if is_noted && (before == 0) != (*waiting == 0) {
                told.note((id, place.ring, Told::Waiting), adds);
            }
        }
        let mut at = |id: usize, what: Told, of: fn(&mut Evidence) -> &mut u32| {
            if let Some(evidence) = evidence.get_mut(id * *stages + place.ring) {
                change(of(evidence), adds);
                if is_noted {
                    told.note((id, place.ring, what), adds);
                }
            }
        };
        let failed = device.failures.iter().filter(|failure| failure.tells());
        let failed = failed.filter_map(|failure| catalogue.number_of(&failure.update));
        for id in failed.filter(|id| !pardoned.contains(id)) {
            at(id, Told::Failed, |evidence| &mut evidence.failed);
        }
        for id in &device.installed {
            at(id.index(), Told::Installed, |evidence| &mut evidence.installed);
        }
    }

    /// Adds what a device measured of late. Returns whether any of it took longer than what is known.
    pub(super) fn measure(&mut self, device: &Device, is_offered: impl Fn(&Name) -> bool, now: Timestamp) -> bool {
        let mut is_new = false;
        for measured in device.measured.iter().filter(|measured| measured.counts(now)) {
            is_new |= Arc::make_mut(&mut self.progress).durations.count(measured, &is_offered);
        }
        self.is_new |= is_new;
        is_new
    }

    /// Writes down that an update is stopped.
    pub(super) fn stop(&mut self, number: usize, id: &Name, since: Timestamp, now: Timestamp) {
        self.note((number, id), now, |update| update.stopped = Some(since));
    }

    /// Writes down on how many devices of the client an update was installed; not if no more can be written down.
    pub(super) fn mark(&mut self, number: usize, id: &Name, anywhere: u32, now: Timestamp) {
        let known = self.progress.updates.get(id).map(|update| update.anywhere);
        if known.map_or(self.progress.updates.len() < FOLLOWED, |known| known < anywhere) {
            self.note((number, id), now, |update| update.anywhere = anywhere);
        }
    }

    /// Writes down on which devices an update failed: those on which it still counts as failed, and those that are `gone`. Not if
    /// no more updates can be written down.
    pub(super) fn set_failed(
        &mut self,
        (number, id): (usize, &Name),
        (all, gone): (Vec<FailedOn>, Vec<FailedOn>),
        now: Timestamp,
    ) {
        let known = self.progress.updates.get(id).map(|update| &update.failed);
        let fits = known.is_some() || self.progress.updates.len() < FOLLOWED;
        if fits && known.map_or(!all.is_empty(), |known| *known != all) {
            self.note((number, id), now, |update| update.failed = all);
        }
        if self.gone.get(&number).map_or(gone.is_empty(), |known| *known == gone) {
            return;
        }
        self.failures = None;
        self.doubt(number);
        if gone.is_empty() {
            self.gone.remove(&number);
        } else {
            self.gone.insert(number, gone);
        }
    }

    fn note(&mut self, (number, id): (usize, &Name), now: Timestamp, change: impl FnOnce(&mut UpdateProgress)) {
        // A name that no ring has is read as the first: should there be rings one day, it begins with that.
        let blank = || {
            let rollout = self.policy.settings.as_ref().ok().map(|settings| &settings.rollout);
            let first = rollout.and_then(|rollout| rollout.rings.first()).map(|ring| ring.name.clone());
            UpdateProgress {
                ring: Some(first.unwrap_or_default()),
                opened: now,
                reached: None,
                stopped: None,
                installed: 0,
                anywhere: 0,
                failed: vec![],
            }
        };
        change(Arc::make_mut(&mut self.progress).updates.entry(id.clone()).or_insert_with(blank));
        self.recorded.add(number);
        self.is_new = true;
        self.doubt(number);
    }

    /// As it is at `now`. Tells of which updates devices see something new, or that it is new for all devices. Returns whether there is
    /// room now for updates of which nothing could be written down.
    pub(super) fn advance(
        &mut self,
        catalogue: &Catalogue,
        is_offered: impl Fn(usize) -> bool,
        now: Timestamp,
        look: &mut Look,
        news: &mut impl FnMut(Option<usize>),
    ) -> bool {
        if !self.failed_anew.take().is_empty() {
            self.failures = None;
        }
        let policy = self.policy;
        let Ok(Settings { rollout, .. }) = &policy.settings else { return false };
        if self.pause(rollout, now, look) {
            self.is_new = true;
            news(None);
        }
        let mut has_room = false;
        // Of more updates than are written down those that nobody offers are forgotten first.
        if self.progress.updates.len() >= FOLLOWED {
            self.doubtful = Doubtful::All;
            let before = self.progress.updates.len();
            let is_offered = |id: &Name| catalogue.number_of(id).is_some_and(&is_offered);
            let progress = Arc::make_mut(&mut self.progress);
            progress
                .updates
                .retain(|id, update| update.stopped.is_some() || !update.failed.is_empty() || is_offered(id));
            if self.progress.updates.len() < before {
                has_room = true;
                self.look_anew(catalogue);
                self.is_new = true;
                news(None);
            }
        }
        if self.stages == 0 {
            return has_room;
        }
        // Nobody is known not to need an update while somebody may not tell.
        let is_silent = self.silent.iter().map(|silent| *silent > 0);
        if is_silent.clone().ne(self.was_silent.iter().copied()) {
            (self.was_silent, self.doubtful) = (is_silent.collect(), Doubtful::All);
        }
        let told = self.told.take();
        let doubtful = match std::mem::replace(&mut self.doubtful, Doubtful::Some(BTreeSet::new())) {
            Doubtful::All => (0..catalogue.ids()).collect(),
            Doubtful::Some(mut ids) => {
                ids.extend(told.into_iter().map(|(id, ..)| id));
                while let Some((_, id)) = self.next_soak().filter(|(over, _)| *over <= now) {
                    self.soaks.pop();
                    ids.insert(id);
                }
                Vec::from_iter(ids)
            }
        };
        self.soaking.resize(catalogue.ids().max(self.soaking.len()), None);
        let mut begun: Vec<(usize, UpdateProgress)> = Vec::new();
        for id in doubtful {
            self.evaluate((catalogue, rollout), id, &is_offered, now, &mut begun, news);
        }
        self.write_down(catalogue, begun);
        look.at(self.next_soak().map(|(over, _)| over));
        has_room
    }

    /// The place of the ring that has yet to prove an update, and what of that is written down; none if no ring has to, or if it soaks.
    pub(super) fn unproved(&self, id: &Name) -> Option<(usize, Unproved)> {
        let settings = self.policy.settings.as_ref().ok()?;
        let recorded = self.progress.updates.get(id);
        let open = recorded.map_or(0, |recorded| open_ring(&settings.rollout.rings, recorded));
        let ring = settings.rollout.rings.get(open).filter(|_| recorded.is_none_or(|it| it.reached.is_none()))?;
        let unproved = Unproved {
            installed: recorded.map_or(0, |recorded| recorded.installed),
            needed: ring.min_successes.max(1),
            percent: ring.min_success_percent,
            offering: vec![],
            silent: vec![],
        };
        Some((open, unproved))
    }

    /// When the soak time of an update, by the number of its id, is over, if one runs.
    pub(super) fn soaks_until(&self, id: usize) -> Option<Timestamp> {
        self.soaking.get(id).copied().flatten()
    }

    /// The update, by the number of its id, whose soak time is over next, and when.
    fn next_soak(&mut self) -> Option<(Timestamp, usize)> {
        while let Some(Reverse((over, id))) = self.soaks.peek().copied() {
            if self.soaking.get(id).copied().flatten() == Some(over) {
                return Some((over, id));
            }
            self.soaks.pop();
        }
        None
    }

    /// What is to be written down for the first time goes to `begun`.
    fn evaluate(
        &mut self,
        (catalogue, rollout): (&Catalogue, &Rollout),
        number: usize,
        is_offered: impl Fn(usize) -> bool,
        now: Timestamp,
        begun: &mut Vec<(usize, UpdateProgress)>,
        news: &mut impl FnMut(Option<usize>),
    ) {
        let from = number * self.stages;
        let by_ring = self.evidence.get(from..from + self.stages).unwrap_or_default();
        let Some(soaking) = self.soaking.get_mut(number) else { return };
        let before = soaking.take();
        if !is_offered(number) || by_ring.iter().all(|seen| seen.tried() + seen.waiting == 0) {
            return;
        }
        let Some(id) = catalogue.id_at(number) else { return };
        let recorded = if self.recorded.contains(number) { self.progress.updates.get(id) } else { None };
        let was_recorded = recorded.is_some();
        let gone = self.gone.get(&number).map(Vec::as_slice).unwrap_or_default();
        let (next, soaked) = advance(rollout, recorded, (by_ring, gone), &self.silent, now);
        *soaking = soaked;
        // What is the same as before is among them already.
        if let Some(soaked) = soaked.filter(|_| soaked != before) {
            self.soaks.push(Reverse((soaked, number)));
        }
        // What is at the very beginning need not be written down.
        let first = rollout.rings.first();
        let is_first = first.is_some_and(|first| next.ring.as_ref() == Some(&first.name));
        let begins = is_first && next.reached.is_none() && next.installed == 0;
        // What does not fit waits at the beginning: nothing is forgotten for it.
        let fits = was_recorded || self.progress.updates.len() + begun.len() < FOLLOWED;
        if fits && (was_recorded || !begins) {
            if self.view.write(&self.policy.name, &rollout.rings, number, &next) {
                news(Some(number));
            }
            if !was_recorded {
                begun.push((number, next));
            } else if self.progress.updates.get(id) != Some(&next) {
                self.is_new = true;
                Arc::make_mut(&mut self.progress).updates.insert(id.clone(), next);
            }
        }
    }

    /// Writes down what has not been so far, by the numbers of the ids.
    fn write_down(&mut self, catalogue: &Catalogue, begun: Vec<(usize, UpdateProgress)>) {
        if begun.is_empty() {
            return;
        }
        self.is_new = true;
        for (number, _) in &begun {
            self.recorded.add(*number);
        }
        let updates = &mut Arc::make_mut(&mut self.progress).updates;
        let entry = |(number, progress)| Some((catalogue.id_at(number)?.clone(), progress));
        if begun.len() < MANY {
            updates.extend(begun.into_iter().filter_map(entry));
            return;
        }
        // Of so many that it costs less to go through all ids than to look up the place of each.
        let mut by_number: Vec<Option<UpdateProgress>> = vec![None; catalogue.ids()];
        for (number, progress) in begun {
            if let Some(place) = by_number.get_mut(number) {
                *place = Some(progress);
            }
        }
        let ids = catalogue.ids_from("").filter_map(|(_, number)| Some((number, by_number.get_mut(number)?.take()?)));
        let mut sorted: BTreeMap<Name, UpdateProgress> = ids.filter_map(entry).collect();
        updates.append(&mut sorted);
    }

    fn look_anew(&mut self, catalogue: &Catalogue) {
        self.recorded = Bits::default();
        for number in self.progress.updates.keys().filter_map(|id| catalogue.number_of(id)) {
            self.recorded.add(number);
        }
        let Ok(Settings { rollout: Rollout { rings, .. }, .. }) = &self.policy.settings else { return };
        self.view = View::of(&self.policy.name, rings);
        for (id, progress) in self.progress.updates.iter().filter(|_| !rings.is_empty()) {
            if let Some(number) = catalogue.number_of(id) {
                self.view.write(&self.policy.name, rings, number, progress);
            }
        }
    }

    /// Pauses once more devices failed, since somebody has looked, than the budget allows. Returns whether that is new.
    fn pause(&mut self, rollout: &Rollout, now: Timestamp, look: &mut Look) -> bool {
        // What is still to come is no word on failures yet.
        look.at(rollout.resumed);
        let resumed = rollout.resumed.filter(|resumed| *resumed <= now);
        let before = self.progress.paused;
        let mut paused = before.filter(|since| resumed.is_none_or(|resumed| resumed < *since));
        if let Some(budget) = rollout.failure_budget.filter(|_| paused.is_none()) {
            if self.resumed != resumed {
                (self.resumed, self.failures) = (resumed, None);
            }
            let failures = *self.failures.get_or_insert_with(|| {
                let gone = self.gone.values().flatten().map(|failed| (&failed.device, &failed.last));
                let all = self.failed.iter().chain(gone);
                let counted = all.filter(|(_, last)| resumed.is_none_or(|resumed| **last > resumed));
                counted.map(|(device, _)| device).collect::<BTreeSet<_>>().len()
            });
            paused = exceeds(failures, budget, self.devices).then_some(now);
        }
        if paused != before {
            Arc::make_mut(&mut self.progress).paused = paused;
        }
        paused != before
    }
}

fn exceeds(failed: usize, budget: Amount, devices: u32) -> bool {
    u32::try_from(failed).unwrap_or(u32::MAX) > budget.of(devices)
}

fn change(count: &mut u32, adds: bool) {
    *count = if adds { count.saturating_add(1) } else { count.saturating_sub(1) };
}

/// Where an update is now, and when its soak time is over.
fn advance(
    rollout: &Rollout,
    recorded: Option<&UpdateProgress>,
    (evidence, gone): (&[Evidence], &[FailedOn]),
    silent: &[u32],
    now: Timestamp,
) -> (UpdateProgress, Option<Timestamp>) {
    let mut open = recorded.map_or(0, |recorded| open_ring(&rollout.rings, recorded));
    let known =
        recorded.is_some_and(|recorded| recorded.ring.as_ref() == rollout.rings.get(open).map(|ring| &ring.name));
    let mut progress = UpdateProgress {
        ring: None,
        opened: recorded.filter(|_| known).map_or(now, |recorded| recorded.opened),
        reached: recorded.filter(|_| known).and_then(|recorded| recorded.reached),
        stopped: recorded.and_then(|recorded| recorded.stopped),
        installed: recorded.filter(|_| known).map_or(0, |recorded| recorded.installed),
        anywhere: recorded.map_or(0, |recorded| recorded.anywhere),
        failed: recorded.map(|recorded| recorded.failed.clone()).unwrap_or_default(),
    };
    while let Some(ring) = rollout.rings.get(open) {
        progress.ring = Some(ring.name.clone());
        let seen = evidence.get(open).copied().unwrap_or_default();
        // Of a ring that is not there any more nobody knows which it was.
        let is_ring = |name: &Name| rollout.rings.iter().any(|ring| ring.name == *name);
        let counts = |name: &Name| *name == ring.name || !is_ring(name);
        let gone = gone.iter().filter(|failed| failed.ring.as_ref().is_some_and(counts)).count();
        let failed = seen.failed.saturating_add(u32::try_from(gone).unwrap_or(u32::MAX));
        let seen = Evidence { failed, ..seen };
        let silent = silent.get(open).copied().unwrap_or_default();
        // What was installed long ago, or on a device that is gone, is not told any more, and counts.
        progress.installed = progress.installed.max(seen.installed);
        let known = Evidence { installed: progress.installed, ..seen };
        let is_proved = is_good(ring, known) && known.installed >= ring.min_successes.max(1);
        let holds = match ring.when_empty {
            // Once reached, only failures undo it.
            WhenEmpty::Wait => is_proved || (progress.reached.is_some() && is_good(ring, known)),
            // Or nobody needs it. A device that comes to need it has to prove it.
            WhenEmpty::Promote => is_proved || seen.tried() + seen.waiting + silent == 0,
        };
        progress.reached = if holds { Some(progress.reached.unwrap_or(now)) } else { None };
        let proved_since = progress.reached;
        let Some(since) = proved_since else { return (progress, None) };
        let soaked = later(since, ring.soak);
        if now < soaked {
            return (progress, Some(soaked));
        }
        open += 1;
        progress = UpdateProgress { ring: None, opened: now, reached: None, installed: 0, ..progress };
    }
    (progress, None)
}

/// Whether enough of those that tried it have it; also where nobody tells of it.
fn is_good(ring: &Ring, seen: Evidence) -> bool {
    u64::from(seen.installed) * 100 >= u64::from(ring.min_success_percent) * u64::from(seen.tried())
}
