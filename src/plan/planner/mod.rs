//! A plan that is kept: what changes is planned anew, and what that can affect.
//!
//! ```text
//!   put, remove --> what the device told before is taken back, what it tells now is counted
//!   plan(now)   --> devices that are new or changed, or of which the clock changes something
//!                 + devices that see news: of a ring, a stop, a pause, a first sighting, a longer duration
//!                   --> looked at (device) --> counted (summary) --> held (blast) --> turns (rollout)
//!               --> policies, groups and windows, where something of theirs has changed
//! ```
//!
//! What comes of it is what planning everything anew would give, if what it says is to be written down (how far updates
//! have come, first sightings) counts as written.

mod ahead;
mod failures;
mod steps;

use std::borrow::{Borrow, Cow};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;

use super::bits::Bits;
use super::blast::{Blasts, Say};
use super::device::{Examiner, Reign};
use super::forecast::{Outlook, Prospect};
use super::gates;
use super::look::Look;
use super::model::{Catalogue, Claim, Device, Name, Specs, Update, Window};
use super::outcome::{Blocked, DevicePlan, GroupPlan, Plan, PolicyPlan, WindowPlan};
use super::rollout::{Ledger, Stake};
use super::roster::Roster;
use super::summary::Tally;
use steps::Before;

/// Plans for one client's namespace, and goes on from there: see the module's text.
pub struct Planner<'a, D> {
    examiner: Examiner<'a>,
    roster: Roster,
    /// By their numbers.
    slots: Vec<Option<Slot<D>>>,
    /// How many of them there are.
    present: usize,
    /// Numbers of those that each policy governs.
    governed: Vec<Bits>,
    tally: Tally<'a>,
    blasts: Blasts,
    ledger: Ledger<'a>,
    /// When the clock changes something for a device, the earliest first. Of a device that was looked at again, or is gone, the
    /// older ones count no longer.
    looks: BinaryHeap<Reverse<(Timestamp, usize)>>,
    /// Numbers of devices that were put and not planned yet, in any order; some may be gone again.
    fresh: Vec<usize>,
    /// Likewise of devices of which it is not written down yet which policy and group they have.
    unwritten: Vec<usize>,
    /// Empty but while a plan is made.
    looked_at: Bits,
    /// Numbers of the ids of updates that were seen for the first time, or by a second device.
    sighted: BTreeSet<usize>,
    /// As in the examiner's lists.
    policies: Vec<Kept<PolicyPlan>>,
    prospects: Vec<Prospect<'a>>,
    /// Whether anything is known of vulnerabilities.
    knows_vulnerabilities: bool,
    groups: Vec<Kept<GroupPlan>>,
    /// As they were given.
    windows: Vec<(&'a Window, Kept<WindowPlan>)>,
    next_look: Option<Timestamp>,
}

/// A device, and what was planned for it.
struct Slot<D> {
    device: D,
    /// None before it was planned.
    ruled: Option<Ruled>,
    planned: Option<Planned>,
}

/// What counts for its policy.
struct Ruled {
    reign: Reign,
    /// Numbers of the ids of updates whose failures do not count.
    pardoned: Vec<usize>,
}

struct Planned {
    plan: DevicePlan,
    says: Say,
    outlook: Option<Outlook>,
    look: Option<Timestamp>,
    /// The specs allow now what they did not before.
    is_new: bool,
    /// It was not heard of for too long.
    is_unheard: bool,
    /// What of it is in the ledger.
    stake: Option<Stake>,
    /// Why it is not its turn.
    turn: Option<Arc<Blocked>>,
    /// Whether it is among what is summed up.
    is_counted: bool,
}

/// Part of a plan that stays until something changes, or until the clock changes it.
struct Kept<T> {
    plan: Option<T>,
    look: Option<Timestamp>,
}

impl<T> Kept<T> {
    fn none() -> Self {
        Self { plan: None, look: None }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.plan.is_none() || self.look.is_some_and(|look| look <= now)
    }
}

impl<'a, D: Borrow<Device>> Planner<'a, D> {
    /// For what `specs` say, and devices whose updates are of `updates`, as of `now`. How far updates have come is as the
    /// specs' policies have it written down.
    pub fn new(
        specs: Specs<'a>,
        updates: Cow<'a, Catalogue>,
        devices: impl IntoIterator<Item = D>,
        now: Timestamp,
    ) -> Self {
        let updates = with_all_ids(specs, updates);
        let mut devices: Vec<(Name, D)> =
            devices.into_iter().map(|device| (device.borrow().name.clone(), device)).collect();
        devices.sort_by(|(a, _), (b, _)| a.cmp(b));
        let examiner = Examiner::new(specs, updates, now);
        let (policies, groups) = (examiner.governors().len(), specs.groups.len());
        let mut planner = Self {
            tally: Tally::of(
                examiner.governors().iter().map(|governor| governor.policy),
                examiner.groups().map(|(group, _)| group),
            ),
            blasts: Blasts::of(specs, examiner.governors()),
            ledger: Ledger::of(examiner.governors()),
            roster: Roster::of_sorted(devices.iter().map(|(name, _)| name.clone())),
            examiner,
            slots: vec![],
            present: 0,
            governed: vec![Bits::default(); policies],
            looks: BinaryHeap::new(),
            fresh: vec![],
            unwritten: vec![],
            looked_at: Bits::default(),
            sighted: BTreeSet::new(),
            policies: (0..policies).map(|_| Kept::none()).collect(),
            knows_vulnerabilities: specs.vulnerabilities.is_some(),
            prospects: (0..policies).map(|_| Prospect::default()).collect(),
            groups: (0..groups).map(|_| Kept::none()).collect(),
            windows: specs.windows.iter().map(|window| (window, Kept::none())).collect(),
            next_look: None,
        };
        let Examiner { around, memory, .. } = &mut planner.examiner;
        for seen in specs.groups.iter().flat_map(|group| &group.seen).chain(specs.seen) {
            memory.sightings.recall(&around.updates, seen, &mut planner.roster);
        }
        let mut number = 0;
        planner.slots.reserve(devices.len());
        for (name, device) in devices {
            // They are in the order of their numbers; should there be two of a name the last one counts.
            if planner.roster.name(number).is_some_and(|known| *known != name) {
                number += 1;
            }
            planner.put_at(number, device);
        }
        planner
    }

    /// The updates, to which those of devices that are yet to be put are added.
    pub fn updates_mut(&mut self) -> &mut Catalogue {
        self.examiner.around.updates.to_mut()
    }

    /// Whether a device offers an update of this id, or could take it back.
    pub fn is_offered(&self, id: &Name) -> bool {
        self.updates().number_of(id).is_some_and(|number| self.examiner.around.rings.is_offered(number))
    }

    /// The updates that plans speak of.
    pub fn updates(&self) -> &Catalogue {
        &self.examiner.around.updates
    }

    /// A device that is new, or has changed. Its updates are of [`Self::updates`].
    pub fn put(&mut self, device: D) {
        let number = self.roster.number(&device.borrow().name);
        self.put_at(number, device);
    }

    fn put_at(&mut self, number: usize, device: D) {
        let failed = device.borrow().failures.iter().map(|failure| &failure.update);
        for id in failed.chain(device.borrow().measured.iter().flat_map(|measured| &measured.updates)) {
            if self.updates().number_of(id).is_none() {
                self.updates_mut().number(id);
            }
        }
        if self.slots.len() <= number {
            self.slots.resize_with(number + 1, || None);
        }
        self.retract(number);
        let Examiner { around, memory, .. } = &mut self.examiner;
        for offer in device.borrow().report.iter().flat_map(|report| &report.offers) {
            memory.sightings.offered(&around.updates, offer, number, &self.roster);
        }
        if let Some(slot) = self.slots.get_mut(number) {
            let before = slot.take();
            if before.is_none() {
                self.present += 1;
                self.tally.count_name(&device.borrow().name, true);
            }
            let relabelled = before.as_ref().filter(|it| it.device.borrow().labels != device.borrow().labels);
            let stake = relabelled.and_then(|it| it.planned.as_ref()?.stake.as_ref());
            if let Some(stake) = stake {
                self.ledger.is_relabelled(stake);
            }
            *slot = Some(Slot { device, ruled: None, planned: before.and_then(|before| before.planned) });
            self.fresh.push(number);
        }
    }

    /// A device that is gone. What it told of first sightings stays.
    pub fn remove(&mut self, name: &str) {
        let Some(number) = self.roster.find(name) else { return };
        self.retract(number);
        if let Some(Slot { device, planned, .. }) = self.slots.get_mut(number).and_then(Option::take) {
            self.tally.count_name(&device.borrow().name, false);
            if let Some(stake) = planned.and_then(|planned| planned.stake) {
                self.ledger.change((number, &device.borrow().name), Some(&stake), None);
            }
            self.present -= 1;
        }
    }

    /// Plans as of `now`, which is never before the instant of the last plan. Returns the names of the devices for which something else is planned than before.
    pub fn plan(&mut self, now: Timestamp) -> Vec<Name> {
        self.renew(now);
        let mut look = Look::after(now);
        let mut dirty = self.due(now);
        dirty.extend(self.admit(now));
        dirty.sort_unstable();
        dirty.dedup();
        let sighted = std::mem::take(&mut self.sighted);
        let news = self.advance(now, &mut look);
        if dirty.len() < self.present && !(news.is_empty() && sighted.is_empty()) {
            dirty.extend(self.concerned(&news, &sighted));
            dirty.sort_unstable();
            dirty.dedup();
        }
        let mut before = Before::of(std::mem::take(&mut self.looked_at), self.slots.len());
        for number in dirty {
            self.examine(number, now, &mut before);
        }
        self.hold(now, &mut before);
        self.give_turns(now, &mut before);
        self.sum_up(now, &sighted, &mut look);
        look.at(self.next_of_devices());
        self.next_look = look.next();
        let (before, looked_at) = before.into_sorted();
        self.looked_at = looked_at;
        let changed = before.into_iter().filter(|(number, before)| {
            let plan = self.slot(*number).and_then(|slot| slot.planned.as_ref()).map(|planned| &planned.plan);
            plan != before.as_deref()
        });
        changed.filter_map(|(number, _)| self.roster.name(number).cloned()).collect()
    }

    /// What is planned for a device.
    pub fn device(&self, name: &str) -> Option<&DevicePlan> {
        Some(&self.slot(self.roster.find(name)?)?.planned.as_ref()?.plan)
    }

    /// What is planned for each device, by name.
    pub fn devices(&self) -> impl Iterator<Item = &DevicePlan> {
        let slots = self.roster.by_name().filter_map(|number| self.slot(number));
        slots.filter_map(|slot| slot.planned.as_ref().map(|planned| &planned.plan))
    }

    /// Devices that are not retired, and whether each has not been heard of for too long; one that never was is not.
    pub fn in_use(&self, now: Timestamp) -> impl Iterator<Item = (&DevicePlan, bool)> {
        self.slots.iter().flatten().filter_map(move |slot| {
            let device = slot.device.borrow();
            let planned = slot.planned.as_ref().filter(|_| !device.retired)?;
            Some((&planned.plan, device.online_since.is_some() && gates::is_stale(device, now)))
        })
    }

    /// How many devices are held by an install.
    pub fn at_work(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| slot.device.borrow().current.is_some()).count()
    }

    /// Every policy, the strongest first.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyPlan> {
        self.policies.iter().filter_map(|kept| kept.plan.as_ref())
    }

    /// Every group, the strongest first.
    pub fn groups(&self) -> impl Iterator<Item = &GroupPlan> {
        self.groups.iter().filter_map(|kept| kept.plan.as_ref())
    }

    /// Every window.
    pub fn windows(&self) -> impl Iterator<Item = &WindowPlan> {
        self.windows.iter().filter_map(|(_, kept)| kept.plan.as_ref())
    }

    /// When the plan changes by itself, if nothing else happens first.
    pub fn next_look(&self) -> Option<Timestamp> {
        self.next_look
    }

    /// All of it; the planner is not needed any more.
    pub(super) fn into_plan(mut self) -> Plan {
        let order: Vec<usize> = self.roster.by_name().collect();
        let planned = |number: usize| self.slots.get_mut(number)?.take()?.planned;
        let devices = order.into_iter().filter_map(planned).map(|planned| planned.plan).collect();
        let mut policies: Vec<PolicyPlan> = self.policies.into_iter().filter_map(|kept| kept.plan).collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let mut groups: Vec<GroupPlan> = self.groups.into_iter().filter_map(|kept| kept.plan).collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        let mut windows: Vec<WindowPlan> = self.windows.into_iter().filter_map(|(_, kept)| kept.plan).collect();
        windows.sort_by(|a, b| a.name.cmp(&b.name));
        Plan { devices, policies, groups, windows, next_look: self.next_look }
    }

    /// Whether `device` may begin at `now` with what it holds a claim for; else the first reason against it.
    ///
    /// Every gate of the plan is asked for every claimed update, with three differences. The claim itself is no obstacle,
    /// and neither concurrency nor the ledger is asked: it has its place. Nor are `DeviceOffline` and `ClockOff`: a device that asks
    /// has a session and has taken its order, and a record that does not show it yet is older than the question (one that was last
    /// seen days ago is refused all the same). And the window must have room for the time that the claim was expected to take,
    /// whatever was measured since. How far updates have come is as it was when it was last planned.
    pub fn may_act(&mut self, device: &str, now: Timestamp) -> Result<(), Blocked> {
        self.ask(device, now, |examiner, number, device, reign, claim| {
            if claim.updates.is_empty() {
                return Some(Arc::new(Blocked::NotClaimed));
            }
            if now > claim.not_after {
                return Some(Arc::new(Blocked::OrderExpired { not_after: claim.not_after }));
            }
            examiner.refusal_of_claimed(number, device, reign, claim)
        })
    }

    /// Whether `device` may restart at `now`, after what it holds a claim for and has had a grant to do; else the first reason
    /// against it. Only in a window of the policy's, while the policy governs it and restarts devices.
    pub fn may_restart(&mut self, device: &str, now: Timestamp) -> Result<(), Blocked> {
        self.ask(device, now, |examiner, _, device, reign, claim| {
            if !claim.granted {
                return Some(Arc::new(Blocked::NotClaimed));
            }
            examiner.refusal_of_restart(device, reign, claim)
        })
    }

    fn ask(
        &mut self,
        device: &str,
        now: Timestamp,
        refusal: impl FnOnce(&mut Examiner<'a>, usize, &Device, &Reign, &Claim) -> Option<Arc<Blocked>>,
    ) -> Result<(), Blocked> {
        self.renew(now);
        let Self { roster, slots, examiner, .. } = self;
        let number = roster.find(device).ok_or(Blocked::UnknownDevice)?;
        let slot = slots.get(number).and_then(Option::as_ref).ok_or(Blocked::UnknownDevice)?;
        let device = slot.device.borrow();
        let claim = device.current.as_ref().ok_or(Blocked::NotClaimed)?;
        let reign = examiner.reign(device);
        refusal(examiner, number, device, &reign, claim).map_or(Ok(()), |blocked| Err((*blocked).clone()))
    }

    fn slot(&self, number: usize) -> Option<&Slot<D>> {
        self.slots.get(number)?.as_ref()
    }

    fn planned_mut(&mut self, number: usize) -> Option<&mut Planned> {
        self.slots.get_mut(number)?.as_mut()?.planned.as_mut()
    }

    fn renew(&mut self, now: Timestamp) {
        self.examiner.renew(now);
        let Examiner { around, memory, .. } = &mut self.examiner;
        self.sighted.extend(memory.sightings.take_news(&around.updates));
    }
}

/// With the ids of all that was written down.
fn with_all_ids<'c>(specs: Specs<'_>, mut updates: Cow<'c, Catalogue>) -> Cow<'c, Catalogue> {
    let seen = specs.groups.iter().flat_map(|group| &group.seen).chain(specs.seen).map(|seen| &seen.id);
    let progress = || specs.policies.iter().map(|policy| &policy.progress);
    let followed = progress().flat_map(|progress| progress.updates.keys());
    let measured = progress().flat_map(|progress| progress.durations.updates.keys());
    for id in seen.chain(followed).chain(measured) {
        if updates.number_of(id).is_none() {
            updates.to_mut().number(id);
        }
    }
    // Decisions are asked of what failed on devices that are gone.
    for (id, _) in progress().flat_map(|progress| &progress.updates).filter(|(_, update)| !update.failed.is_empty()) {
        updates.to_mut().intern(Update::by_id(id.clone()));
    }
    updates
}
