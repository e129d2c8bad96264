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
//! - An update is proved in a ring by devices of it that installed it, against those on which it failed. How many have is
//!   written down, the most that there were: a device tells of its latest updates only, and may be gone.
//! - An update that failed by its own fault on at least 3 devices, and on 5% of those that tried it, is stopped in the
//!   whole client, alone.
//! - A device on which an update failed, and that is deleted or retired then, still counts as one on which it failed, for its ring, for
//!   stops and for the budget, until somebody says `Reprocess`: the policy's progress has its name.
//! - A rollout in which more devices failed than its budget allows is paused.
//!
//! What devices tell is counted when it comes and taken back when it changes (`course`, `stops`): how far an update has come
//! is worked out again only where a count, the clock or a stop could have moved it.

mod course;
mod stops;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::look::Look;
use super::model::{
    Blast, Catalogue, Device, FailedOn, Failure, Name, Policy, Progress, Ring, RingMembers, Rollout, UpdateId,
};
use super::moves::Moves;
use super::outcome::{Blocked, Unproved};
use course::Course;
use stops::Stops;

/// How many updates of a policy are followed. Its status tells of fewer, the gateway's store of all.
pub const FOLLOWED: usize = 16_384;

/// Of how many devices on which an update failed a policy keeps the names.
pub const FAILED_ON: usize = 16;

/// A device in its place: its policy and its ring, by their positions. The ring after the last is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub policy: usize,
    pub ring: usize,
}

/// A device as it counts here.
#[derive(Clone, Copy)]
pub(super) struct Teller<'d> {
    pub device: &'d Device,
    /// Its number.
    pub number: usize,
    /// Where it is, if a policy governs it.
    pub place: Option<Place>,
    /// Numbers of the ids of updates whose failures on it do not count: somebody has said to try again.
    pub pardoned: &'d [usize],
}

/// How far a client's updates have come.
pub(super) struct Rings<'a> {
    /// As in the list of policies.
    courses: Vec<Course<'a>>,
    stops: Stops,
    /// What blocks updates everywhere, by the numbers of their ids.
    stopped: BTreeMap<usize, Arc<Blocked>>,
    /// How many devices offer an update of an id, or could take it back, by its number.
    offered: Vec<u32>,
    news: News,
    /// Numbers of the ids of updates of which it must be asked anew on which devices they failed, ...
    review: BTreeSet<usize>,
    /// ... those of which the clock says so, and when, ...
    due: BTreeSet<(Timestamp, usize)>,
    /// ... and those that failed on a device, by its name, each with the policy for which that is written down.
    watched: BTreeMap<Name, BTreeSet<(usize, usize)>>,
    /// How these devices stand to them anew, by the numbers of the id and the device, and whether a policy governs it.
    watched_anew: Moves<(usize, usize, bool, Option<Standing>)>,
    /// The policies for which it is written down that an update failed on devices, by the number of its id.
    listed: BTreeMap<usize, BTreeSet<usize>>,
}

/// What was counted of updates that have failed.
#[derive(Default)]
pub(super) struct Judged {
    /// Those that are to be stopped, and since when.
    pub bad: BTreeMap<usize, Timestamp>,
    /// Those that are known to have been installed on more devices than before, how many those are, and the devices on which
    /// they failed.
    pub marks: Vec<(usize, u32, Vec<usize>)>,
}

/// On which devices of a policy an update failed.
pub(super) struct Failed {
    /// The policy's position.
    pub policy: usize,
    /// Those that tell it.
    pub failing: Vec<FailedOn>,
    /// Those that are gone, and whether they tell it all the same, since they are retired and still there.
    pub gone: Vec<(FailedOn, bool)>,
}

/// What is not as it was when devices were looked at.
#[derive(Debug, Default)]
pub(super) struct News {
    /// For all devices of these policies.
    pub policies: BTreeSet<usize>,
    /// For those of a policy that offer an update, by the number of its id.
    pub updates: Vec<(usize, usize)>,
    /// For all that offer an update, by the number of its id.
    pub everywhere: BTreeSet<usize>,
}

impl News {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.updates.is_empty() && self.everywhere.is_empty()
    }
}

/// The ring that `device` is in; the one after the last is the rest.
pub(super) fn ring_of(rollout: &Rollout, policy: &Name, device: &Device) -> usize {
    let (mut share, mut before) = (None, 0);
    let fits = |ring: &Ring| match &ring.members {
        RingMembers::Selector(selector) => selector.matches(&device.labels),
        RingMembers::Percent(percent) => {
            let from = before;
            before += percent * 100;
            (from..before).contains(share.get_or_insert_with(|| share_of(policy, &device.name)))
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

impl<'a> Rings<'a> {
    /// As they were written down, with no devices.
    pub(super) fn recorded(policies: &[&'a Policy], catalogue: &Catalogue) -> Self {
        let courses: Vec<Course<'_>> = policies.iter().map(|policy| Course::recorded(policy, catalogue)).collect();
        let mut rings = Self {
            courses,
            stops: Stops::default(),
            stopped: BTreeMap::new(),
            offered: vec![],
            news: News::default(),
            review: BTreeSet::new(),
            due: BTreeSet::new(),
            watched: BTreeMap::new(),
            watched_anew: Moves::default(),
            listed: BTreeMap::new(),
        };
        for (place, policy) in policies.iter().enumerate() {
            for (id, progress) in &policy.progress.updates {
                let Some(number) = catalogue.number_of(id) else { continue };
                if let Some(since) = progress.stopped {
                    rings.note_stop(number, since);
                }
                if progress.anywhere > 0 {
                    rings.stops.recall(number, progress.anywhere);
                }
                if !progress.failed.is_empty() {
                    rings.review.insert(number);
                    rings.watch(place, number, &progress.failed);
                }
            }
        }
        rings
    }

    /// Counts what a device tells.
    pub(super) fn add(&mut self, catalogue: &Catalogue, teller: Teller<'_>) {
        self.offered.resize(catalogue.ids().max(self.offered.len()), 0);
        for id in touched(catalogue, teller.device) {
            if let Some(devices) = self.offered.get_mut(id) {
                *devices = devices.saturating_add(1);
                if *devices == 1 {
                    self.courses.iter_mut().for_each(|course| course.doubt(id));
                }
            }
            self.stops.offered(id);
        }
        self.note_watched(catalogue, teller, true);
        self.stops.count(catalogue, teller, true);
        if let Some(course) = teller.place.and_then(|place| self.courses.get_mut(place.policy)) {
            course.count(catalogue, teller, true);
        }
    }

    /// Takes back what a device told, as it was then.
    pub(super) fn remove(&mut self, catalogue: &Catalogue, teller: Teller<'_>) {
        for id in touched(catalogue, teller.device) {
            if let Some(devices) = self.offered.get_mut(id) {
                *devices = devices.saturating_sub(1);
                if *devices == 0 {
                    self.courses.iter_mut().for_each(|course| course.doubt(id));
                }
            }
        }
        self.note_watched(catalogue, teller, false);
        self.stops.count(catalogue, teller, false);
        if let Some(course) = teller.place.and_then(|place| self.courses.get_mut(place.policy)) {
            course.count(catalogue, teller, false);
        }
    }

    /// The numbers of the ids of updates of which it must be asked anew on which devices they failed.
    pub(super) fn take_reviews(&mut self, now: Timestamp) -> BTreeSet<usize> {
        let mut review = std::mem::take(&mut self.review);
        review.append(&mut self.stops.take_changed());
        review.extend(self.watched_anew.take().into_iter().map(|(id, ..)| id));
        while let Some((at, id)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, id));
                break;
            }
            review.insert(id);
        }
        review
    }

    /// When that must be asked of one without anything else that happens.
    pub(super) fn next_review(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Devices, by their numbers, that tell that an update failed on them by its own fault, and when it did last.
    pub(super) fn failing(&self, id: usize) -> impl Iterator<Item = (usize, Timestamp)> {
        self.stops.failing(id)
    }

    /// Whether a device, by its number, tells that.
    pub(super) fn fails(&self, id: usize, number: usize) -> bool {
        self.stops.fails(id, number)
    }

    /// On which devices it is written down for a policy that an update failed.
    pub(super) fn failed_on(&self, policy: usize, id: &Name) -> &[FailedOn] {
        let update = self.courses.get(policy).and_then(|course| course.progress().updates.get(id));
        update.map(|update| update.failed.as_slice()).unwrap_or_default()
    }

    /// The policies for which that is written down of any, by the number of the update's id.
    pub(super) fn failed_in(&self, id: usize) -> Vec<usize> {
        self.listed.get(&id).into_iter().flatten().copied().collect()
    }

    /// The name of the ring of devices in a place; none for the rest.
    pub(super) fn ring(&self, place: Place) -> Option<&Name> {
        self.courses.get(place.policy)?.ring(place.ring)
    }

    /// Writes down on which devices an update failed, for all policies that are concerned. From `again` on that may have changed by itself.
    pub(super) fn set_failed(
        &mut self,
        (number, id): (usize, &Name),
        lists: Vec<Failed>,
        again: Option<Timestamp>,
        now: Timestamp,
    ) {
        let mut untold: BTreeMap<Name, Timestamp> = BTreeMap::new();
        for Failed { policy, failing, gone } in lists {
            for (FailedOn { device, last, .. }, _) in gone.iter().filter(|(_, tells)| !tells) {
                let known = untold.entry(device.clone()).or_insert(*last);
                *known = (*last).max(*known);
            }
            let gone: Vec<FailedOn> = gone.into_iter().map(|(failed, _)| failed).collect();
            // Of more than fit those that cannot tell it themselves.
            let mut all: Vec<FailedOn> = gone.iter().chain(&failing).take(FAILED_ON).cloned().collect();
            all.sort();
            let known = self.failed_on(policy, id).to_vec();
            if let Some(course) = self.courses.get_mut(policy) {
                course.set_failed((number, id), (all, gone), now);
            }
            let written = self.failed_on(policy, id);
            if *written != *known {
                let written = written.to_vec();
                self.unwatch(policy, number, &known);
                self.watch(policy, number, &written);
            }
        }
        self.stops.set_gone(number, untold);
        self.due.extend(again.map(|again| (again, number)));
    }

    fn watch(&mut self, policy: usize, id: usize, failed: &[FailedOn]) {
        for FailedOn { device, .. } in failed {
            self.watched.entry(device.clone()).or_default().insert((id, policy));
        }
        if !failed.is_empty() {
            self.listed.entry(id).or_default().insert(policy);
        }
    }

    fn unwatch(&mut self, policy: usize, id: usize, failed: &[FailedOn]) {
        for FailedOn { device, .. } in failed {
            take_out(&mut self.watched, device, &(id, policy));
        }
        take_out(&mut self.listed, &id, &policy);
    }

    /// Counts how a device stands to updates of which it is written down that they failed on it, or takes it back.
    fn note_watched(&mut self, catalogue: &Catalogue, teller: Teller<'_>, adds: bool) {
        let Teller { device, number, place, .. } = teller;
        for (id, _) in self.watched.get(&device.name).into_iter().flatten() {
            let standing = catalogue.id_at(*id).map(|name| Standing::of(catalogue, device, (*id, name)));
            self.watched_anew.note((*id, number, place.is_some(), standing), adds);
        }
    }

    /// Adds what a device measured of late to its policy's durations. Returns whether more is expected of an update now.
    pub(super) fn measure(&mut self, catalogue: &Catalogue, teller: Teller<'_>, now: Timestamp) -> bool {
        let Self { courses, offered, news, .. } = self;
        let Some(place) = teller.place.filter(|_| !teller.device.measured.is_empty()) else { return false };
        let Some(course) = courses.get_mut(place.policy) else { return false };
        let is_offered = |id: &Name| catalogue.number_of(id).is_some_and(|number| is_offered(offered, number));
        let is_new = course.measure(teller.device, is_offered, now);
        if is_new {
            news.policies.insert(place.policy);
        }
        is_new
    }

    /// What has been counted of updates that have failed, by the numbers of their ids.
    pub(super) fn judge(&mut self, now: Timestamp) -> Judged {
        let Self { stops, stopped, .. } = self;
        stops.judge(whole(now), |id| stopped_since(stopped.get(&id)?))
    }

    /// Writes down on how many devices of the client an update was installed, with a policy that governs a device on which it
    /// failed.
    pub(super) fn mark(&mut self, policy: usize, number: usize, id: &Name, anywhere: u32, now: Timestamp) {
        if let Some(course) = self.courses.get_mut(policy) {
            course.mark(number, id, anywhere, whole(now));
        }
    }

    /// Writes down that an update is stopped, with a policy that governs a device that offers or failed it.
    pub(super) fn stop(&mut self, policy: usize, number: usize, id: &Name, since: Timestamp, now: Timestamp) {
        if let Some(course) = self.courses.get_mut(policy) {
            course.stop(number, id, since, whole(now));
            self.stops.set_written(number);
            self.note_stop(number, since);
        }
    }

    /// As they are at `now`. What is written down has whole seconds, as everything in Kubernetes.
    pub(super) fn advance(&mut self, catalogue: &Catalogue, now: Timestamp, look: &mut Look) {
        let Self { courses, offered, news, stops, review, .. } = self;
        for (place, course) in courses.iter_mut().enumerate() {
            let has_room =
                course.advance(catalogue, |id| is_offered(offered, id), whole(now), look, &mut |new| match new {
                    None => drop(news.policies.insert(place)),
                    Some(id) => news.updates.push((place, id)),
                });
            // What could not be written down of updates that fail now can.
            if has_room {
                review.extend(stops.doubt_all());
            }
        }
    }

    /// The place of the ring of a policy that has yet to prove an update, and what of that is written down; none if no ring has to, or
    /// if it soaks.
    pub(super) fn unproved(&self, policy: usize, id: &Name) -> Option<(Place, Unproved)> {
        let (ring, unproved) = self.courses.get(policy)?.unproved(id)?;
        Some((Place { policy, ring }, unproved))
    }

    /// When the soak time of an update, by the number of its id, in the rings of a policy is over, if one runs.
    pub(super) fn soaks_until(&self, policy: usize, id: usize) -> Option<Timestamp> {
        self.courses.get(policy)?.soaks_until(id)
    }

    /// Whether any device offers an update of the id of this number.
    pub(super) fn is_offered(&self, id: usize) -> bool {
        is_offered(&self.offered, id)
    }

    /// What is not as it was when this was last asked.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Whether something else is to be written down of a policy than when this was last asked.
    pub(super) fn take_new(&mut self, policy: usize) -> bool {
        self.courses.get_mut(policy).is_some_and(Course::take_new)
    }

    /// How far a policy's updates have come.
    pub(super) fn progress(&self, policy: usize) -> Option<&Arc<Progress>> {
        self.courses.get(policy).map(Course::progress)
    }

    /// Which specs are in force for a policy's devices.
    pub(super) fn set_blast(&mut self, policy: usize, blast: Blast) {
        if let Some(course) = self.courses.get_mut(policy) {
            course.set_blast(blast);
        }
    }

    /// Why an update, by the number of its id, is installed nowhere; unless it was to be tried again after that.
    pub(super) fn stopped(&self, id: usize, tried_again: Option<Timestamp>) -> Option<&Arc<Blocked>> {
        let blocked = self.stopped.get(&id)?;
        let pardoned = tried_again.zip(stopped_since(blocked)).is_some_and(|(again, since)| again > since);
        (!pardoned).then_some(blocked)
    }

    /// Why a device in its place has to wait for an update, by the number of its id.
    pub(super) fn waits(&self, place: Place, id: usize) -> Option<&Arc<Blocked>> {
        self.courses.get(place.policy).filter(|_| place.ring > 0)?.view().waits(place.ring, id)
    }

    fn note_stop(&mut self, number: usize, since: Timestamp) {
        let known = self.stopped.get(&number).and_then(|blocked| stopped_since(blocked));
        if known.is_none_or(|known| known < since) {
            self.stopped.insert(number, Arc::new(Blocked::UpdateStopped { since }));
            self.news.everywhere.insert(number);
        }
    }
}

/// How a device that is there stands to an update of which it is written down that it failed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It is retired.
    Retired,
    /// It tells that the update failed on it by its own fault.
    Fails,
    /// It offers the update, or may not tell that it does.
    MayLack,
    /// It does without the update: it has it, or does not need it any more.
    DoesWithout,
}

impl Standing {
    /// That of a device to the update of an id, whose number is given too.
    pub(super) fn of(catalogue: &Catalogue, device: &Device, (number, id): (usize, &Name)) -> Self {
        let fails = |it: &Failure| it.update == *id && it.cause.is_of_the_update() && it.attempts > 0;
        let offers = || device.report.iter().flat_map(|report| &report.offers);
        if device.retired {
            Self::Retired
        } else if device.failures.iter().any(fails) {
            Self::Fails
        } else if !tells_all(device) || offers().any(|offer| catalogue.id_of(offer.update) == Some(number)) {
            Self::MayLack
        } else {
            Self::DoesWithout
        }
    }
}

/// Whether it can be told from the device's report that it does not need an update.
pub(super) fn tells_all(device: &Device) -> bool {
    device
        .report
        .as_ref()
        .is_ok_and(|report| !report.truncated && report.problems.iter().all(|problem| !problem.hides_updates()))
}

fn take_out<K: Ord, V: Ord>(all: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = all.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            all.remove(key);
        }
    }
}

fn is_offered(offered: &[u32], id: usize) -> bool {
    offered.get(id).is_some_and(|devices| *devices > 0)
}

/// Numbers of the ids of all updates that a device offers or could take back.
fn touched(catalogue: &Catalogue, device: &Device) -> impl Iterator<Item = usize> {
    let report = device.report.as_ref().ok();
    let offers = report.into_iter().flat_map(|report| &report.offers).map(|offer| offer.update);
    let removable = report.into_iter().flat_map(|report| report.removable.iter().copied());
    let all = offers.chain(removable).chain(report.and_then(|report| report.restart));
    all.filter_map(|update: UpdateId| catalogue.id_of(update))
}

fn stopped_since(blocked: &Blocked) -> Option<Timestamp> {
    match blocked {
        Blocked::UpdateStopped { since } => Some(*since),
        _ => None,
    }
}

fn whole(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
