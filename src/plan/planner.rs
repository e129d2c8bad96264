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

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::bits::Bits;
use super::blast::{self, Blasts, Say};
use super::device::{Examined, Examiner, Reign};
use super::forecast::Outlook;
use super::look::Look;
use super::model::{Catalogue, Claim, Device, Name, Seen, Specs, Window};
use super::outcome::{Blocked, DevicePlan, GroupPlan, Plan, PolicyPlan, WindowPlan};
use super::package::package_of;
use super::rings::{News, Teller};
use super::rollout::{self, Ledger, Stake};
use super::roster::Roster;
use super::summary::{self, Counted, Tally};

/// Plans for one client's namespace, and goes on from there: see the module's text.
pub struct Planner<'a, D> {
    examiner: Examiner<'a>,
    roster: Roster,
    /// By their numbers.
    slots: Vec<Option<Slot<D>>>,
    /// How many of them there are.
    present: usize,
    tally: Tally,
    blasts: Blasts,
    ledger: Ledger<'a>,
    /// When the clock changes something for a device.
    looks: BTreeSet<(Timestamp, usize)>,
    /// Numbers of devices that were put and not planned yet.
    fresh: BTreeSet<usize>,
    /// Numbers of devices of which it is not written down yet which policy and group they have.
    unwritten: BTreeSet<usize>,
    /// Numbers of the ids of updates that were seen for the first time, or by a second device.
    sighted: BTreeSet<usize>,
    /// Whose turn it is may have changed.
    turns: bool,
    /// As in the examiner's lists.
    policies: Vec<Kept<PolicyPlan>>,
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
    /// What of it decides about turns, and whether it is in the ledger.
    stake: Option<Stake>,
    is_staked: bool,
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
        let mut devices: Vec<D> = devices.into_iter().collect();
        devices.sort_by(|a, b| a.borrow().name.cmp(&b.borrow().name));
        let examiner = Examiner::new(specs, updates, now);
        let (policies, groups) = (examiner.governors().len(), specs.groups.len());
        let mut planner = Self {
            tally: Tally::of(policies, groups),
            blasts: Blasts::of(specs, examiner.governors()),
            ledger: Ledger::of(examiner.governors()),
            roster: Roster::of_sorted(devices.iter().map(|device| device.borrow().name.clone()).collect()),
            examiner,
            slots: vec![],
            present: 0,
            looks: BTreeSet::new(),
            fresh: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            sighted: BTreeSet::new(),
            turns: true,
            policies: (0..policies).map(|_| Kept::none()).collect(),
            groups: (0..groups).map(|_| Kept::none()).collect(),
            windows: specs.windows.iter().map(|window| (window, Kept::none())).collect(),
            next_look: None,
        };
        let Examiner { around, memory, .. } = &mut planner.examiner;
        for seen in specs.groups.iter().flat_map(|group| &group.seen).chain(specs.seen) {
            memory.sightings.recall(&around.updates, seen, &mut planner.roster);
        }
        for device in devices {
            planner.put(device);
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
            if let Some(id) = around.updates.id_of(offer.update) {
                memory.sightings.add(id, offer.first_seen, number, &self.roster);
            }
        }
        if let Some(slot) = self.slots.get_mut(number) {
            let before = slot.take();
            self.present += usize::from(before.is_none());
            // Labels say of which service it is.
            self.turns |= before.as_ref().is_none_or(|it| it.device.borrow().labels != device.borrow().labels);
            *slot = Some(Slot { device, ruled: None, planned: before.and_then(|before| before.planned) });
            self.fresh.insert(number);
        }
    }

    /// A device that is gone. What it told of first sightings stays.
    pub fn remove(&mut self, name: &str) {
        let Some(number) = self.roster.find(name) else { return };
        self.retract(number);
        if self.slots.get_mut(number).is_some_and(|slot| slot.take().is_some()) {
            self.fresh.remove(&number);
            self.unwritten.remove(&number);
            self.present -= 1;
            self.turns = true;
        }
    }

    /// Plans as of `now`. Returns the names of the devices for which something else is planned than before.
    pub fn plan(&mut self, now: Timestamp) -> Vec<Name> {
        self.renew(now);
        let mut look = Look::after(now);
        let mut dirty = self.due(now);
        dirty.extend(self.admit(now));
        let sighted = std::mem::take(&mut self.sighted);
        let news = self.advance(now, &mut look);
        if dirty.len() < self.present && !(news.is_empty() && sighted.is_empty()) {
            dirty.extend(self.concerned(&news, &sighted));
        }
        let mut before = Before::new();
        for number in dirty {
            self.examine(number, now, &mut before);
        }
        self.hold(now, &mut before);
        self.give_turns(now, &mut before);
        self.sum_up(now, &sighted, &mut look);
        look.at(self.looks.first().map(|(at, _)| *at));
        self.next_look = look.next();
        let changed = before.into_iter().filter(|(number, before)| {
            let plan = self.slot(*number).and_then(|slot| slot.planned.as_ref()).map(|planned| &planned.plan);
            plan != before.as_ref()
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
    /// and neither concurrency nor the ledger is asked: it has its place. Nor is `DeviceOffline`: a device that asks has a
    /// session, and a record that does not show it yet is older than the question (one that was last seen days ago is
    /// refused all the same). And the window must have room for the time that the claim was expected to take,
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

    /// Devices of which the clock changes something. Those that must be counted anew are fresh.
    fn due(&mut self, now: Timestamp) -> BTreeSet<usize> {
        let mut due = BTreeSet::new();
        while let Some((_, number)) = self.looks.first().copied().filter(|(at, _)| *at <= now) {
            self.looks.pop_first();
            let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else { continue };
            if let Some(planned) = &mut slot.planned {
                planned.look = None;
            }
            // Whether a failure counts is a matter of decisions, which have their time.
            if slot.device.borrow().failures.is_empty() {
                due.insert(number);
            } else {
                self.retract(number);
                self.fresh.insert(number);
            }
        }
        for number in std::mem::take(&mut self.unwritten) {
            self.retract(number);
            self.fresh.insert(number);
        }
        due
    }

    /// Takes back what counts of a device.
    fn retract(&mut self, number: usize) {
        self.discount(number);
        let Self { examiner, slots, ledger, .. } = self;
        let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { return };
        if let Some(Planned { stake: Some(stake), is_staked, .. }) = &mut slot.planned
            && std::mem::take(is_staked)
        {
            ledger.count(number, slot.device.borrow(), stake, false);
        }
        let Some(Ruled { reign, pardoned }) = slot.ruled.take() else { return };
        let teller = Teller { device: slot.device.borrow(), number, place: reign.place, pardoned: &pardoned };
        let around = &mut examiner.around;
        around.rings.remove(&around.updates, teller);
    }

    /// Takes back what was summed up of a device's plan.
    fn discount(&mut self, number: usize) {
        let Self { examiner, slots, tally, blasts, looks, .. } = self;
        let Some(Slot { device, ruled: Some(ruled), planned: Some(planned) }) =
            slots.get_mut(number).and_then(Option::as_mut)
        else {
            return;
        };
        if std::mem::take(&mut planned.is_counted) {
            tally.count(&examiner.around.updates, counted((*device).borrow(), &ruled.reign, planned), false);
            if let Some(place) = ruled.reign.place.filter(|_| planned.is_new) {
                blasts.count(place.policy, false);
            }
            if let Some(look) = planned.look.take() {
                looks.remove(&(look, number));
            }
        }
    }

    /// Counts what fresh devices tell, in the places that they have now.
    fn admit(&mut self, now: Timestamp) -> BTreeSet<usize> {
        let fresh = std::mem::take(&mut self.fresh);
        let mut measured = BTreeSet::new();
        for number in fresh.iter().copied() {
            let Self { examiner, slots, unwritten, .. } = self;
            let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { continue };
            let device = slot.device.borrow();
            let reign = examiner.reign(device);
            let pardoned = examiner.pardoned(number, device, &reign);
            if !examiner.is_written(device, &reign) {
                unwritten.insert(number);
            }
            let teller = Teller { device, number, place: reign.place, pardoned: &pardoned };
            let around = &mut examiner.around;
            around.rings.add(&around.updates, teller);
            if around.rings.measure(&around.updates, teller, now) {
                measured.extend(reign.place.map(|place| place.policy));
            }
            slot.ruled = Some(Ruled { reign, pardoned });
        }
        for policy in measured {
            self.examiner.expect(policy);
        }
        fresh
    }

    /// Works out how far updates have come. Returns what devices see of that.
    fn advance(&mut self, now: Timestamp, look: &mut Look) -> News {
        let Self { examiner, slots, .. } = self;
        let around = &mut examiner.around;
        let bad = around.rings.bad(now);
        let of_bad = |id: usize| bad.get_key_value(&id).map(|(id, since)| (*id, *since));
        for slot in slots.iter().flatten().filter(|_| !bad.is_empty()) {
            let Some(place) = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place) else { continue };
            let device = slot.device.borrow();
            let offers = device.report.iter().flat_map(|report| &report.offers);
            let offered = offers.filter_map(|offer| around.updates.id_of(offer.update));
            let failed = device.failures.iter().filter_map(|failure| around.updates.number_of(&failure.update));
            for (number, since) in offered.chain(failed).filter_map(of_bad) {
                if let Some(id) = around.updates.id_at(number) {
                    around.rings.stop(place.policy, number, id, since, now);
                }
            }
        }
        around.rings.advance(&around.updates, now, look);
        around.rings.take_news()
    }

    /// Devices that see news of rings, or of first sightings.
    fn concerned(&self, news: &News, sighted: &BTreeSet<usize>) -> Vec<usize> {
        let updates = self.updates();
        let mut everywhere = Bits::below(updates.ids());
        news.everywhere.iter().for_each(|id| everywhere.add(*id));
        // What is known of one version of a package counts for the others.
        let packages: BTreeSet<&str> = sighted.iter().filter_map(|id| Some(package_of(updates.id_at(*id)?))).collect();
        for package in packages {
            let ids = updates.ids_from(package).filter(|(id, _)| package_of(id) == package);
            ids.for_each(|(_, id)| everywhere.add(id));
        }
        let mut of_policy: BTreeMap<usize, Bits> = BTreeMap::new();
        for (policy, id) in &news.updates {
            of_policy.entry(*policy).or_default().add(*id);
        }
        let is_concerned = |slot: &Slot<D>| {
            let policy = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place).map(|place| place.policy);
            if policy.is_some_and(|policy| news.policies.contains(&policy)) {
                return true;
            }
            let of_policy = policy.and_then(|policy| of_policy.get(&policy));
            let report = slot.device.borrow().report.as_ref().ok();
            let offers = report.into_iter().flat_map(|report| &report.offers).map(|offer| offer.update);
            let removable = report.into_iter().flat_map(|report| report.removable.iter().copied());
            let all = offers.chain(removable).chain(report.and_then(|report| report.restart));
            all.filter_map(|update| updates.id_of(update))
                .any(|id| everywhere.contains(id) || of_policy.is_some_and(|ids| ids.contains(id)))
        };
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.as_ref().is_some_and(is_concerned)).map(|(number, _)| number).collect()
    }

    /// Looks at a device, and remembers what was planned for it before.
    fn examine(&mut self, number: usize, now: Timestamp, before: &mut Before) {
        self.discount(number);
        let Self { examiner, slots, tally, blasts, looks, .. } = self;
        let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { return };
        let (device, Some(ruled)) = (slot.device.borrow(), &slot.ruled) else { return };
        let mut look = Look::after(now);
        let Examined { plan, says, outlook } = examiner.examine(number, device, &ruled.reign, &mut look);
        let (old, stake, is_staked, turn) = match slot.planned.take() {
            Some(Planned { plan, stake, is_staked, turn, .. }) => (Some(plan), stake, is_staked, turn),
            None => (None, None, false, None),
        };
        before.entry(number).or_insert(old);
        let (look, is_new) = (look.next(), blast::is_new(device, says, now));
        let planned = Planned { plan, says, outlook, look, is_new, stake, is_staked, turn, is_counted: true };
        tally.count(&examiner.around.updates, counted(device, &ruled.reign, &planned), true);
        if let Some(place) = ruled.reign.place.filter(|_| is_new) {
            blasts.count(place.policy, true);
        }
        looks.extend(look.map(|look| (look, number)));
        slot.planned = Some(planned);
    }

    /// Holds what only specs allow that wait for a person.
    fn hold(&mut self, now: Timestamp, before: &mut Before) {
        let Self { examiner, slots, tally, blasts, .. } = self;
        let around = &mut examiner.around;
        let mut policies = BTreeSet::new();
        for (place, governor) in around.governors.iter().enumerate() {
            let recorded = around.rings.progress(place).map(|progress| &progress.blast);
            let Some(recorded) = recorded else { continue };
            let (decided, is_new) = blasts.decide((place, governor), recorded, tally.devices(place), now);
            if let Some(blast) = decided {
                around.rings.set_blast(place, blast);
            }
            if is_new {
                policies.insert(place);
            }
        }
        let is_concerned = |slot: &Slot<D>| {
            let place = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place);
            slot.planned.as_ref().is_some_and(|planned| planned.is_new)
                && place.is_some_and(|place| policies.contains(&place.policy))
        };
        let slots = slots.iter().enumerate().filter(|_| !policies.is_empty());
        let concerned = slots.filter(|(_, slot)| slot.as_ref().is_some_and(is_concerned));
        let concerned: Vec<usize> =
            concerned.map(|(number, _)| number).filter(|number| !before.contains_key(number)).collect();
        for number in concerned {
            self.examine(number, now, before);
        }
        for number in before.keys() {
            self.hold_device(*number);
        }
    }

    fn hold_device(&mut self, number: usize) {
        let Self { slots, blasts, .. } = self;
        let Some(Slot { device, ruled: Some(ruled), planned: Some(planned) }) =
            slots.get_mut(number).and_then(Option::as_mut)
        else {
            return;
        };
        let device = (*device).borrow();
        blasts.hold(ruled.reign.place, device, planned.says, planned.is_new, &mut planned.plan);
        if device.on_hold {
            rollout::pass_over(&mut planned.plan, &Arc::new(Blocked::OnHold));
        }
    }

    /// Leaves it to those whose turn it is to install something.
    fn give_turns(&mut self, now: Timestamp, before: &mut Before) {
        let Self { slots, ledger, turns, .. } = self;
        for number in before.keys() {
            let Some(slot) = slots.get_mut(*number).and_then(Option::as_mut) else { continue };
            let Slot { device, ruled: Some(ruled), planned: Some(planned) } = slot else { continue };
            let device = (*device).borrow();
            let is_candidate = planned.plan.install.is_some();
            let stake = Stake::of(device, ruled.reign.place, is_candidate, now);
            let is_new = planned.stake.as_ref() != Some(&stake);
            *turns |= is_new;
            if is_new || !planned.is_staked {
                if let Some(old) = planned.stake.as_ref().filter(|_| planned.is_staked) {
                    ledger.count(*number, device, old, false);
                }
                ledger.count(*number, device, &stake, true);
                (planned.stake, planned.is_staked) = (Some(stake), true);
            }
            if !is_candidate {
                planned.turn = None;
            }
        }
        if std::mem::take(turns) {
            let staked = |number: usize| {
                let slot = self.slot(number)?;
                Some((slot.device.borrow(), slot.planned.as_ref()?.stake.as_ref()?))
            };
            for (number, refusal) in self.ledger.turns(staked, self.examiner.governors(), &self.tally) {
                if self.planned_mut(number).is_none_or(|planned| planned.turn == refusal) {
                    continue;
                }
                if !before.contains_key(&number) {
                    self.examine(number, now, before);
                    self.hold_device(number);
                }
                if let Some(planned) = self.planned_mut(number) {
                    planned.turn = refusal;
                }
            }
        }
        for number in before.keys() {
            if let Some(Planned { plan, turn: Some(why), .. }) = self.planned_mut(*number) {
                rollout::pass_over(plan, why);
            }
        }
    }

    /// What it comes to for policies, groups and windows, where that may have changed.
    fn sum_up(&mut self, now: Timestamp, sighted: &BTreeSet<usize>, look: &mut Look) {
        let Self { examiner, tally, roster, policies, groups, windows, .. } = self;
        let mut has_moved = false;
        for (window, kept) in windows.iter_mut() {
            if kept.is_over(now) {
                let mut own = Look::after(now);
                *kept = Kept { plan: Some(summary::window(window, now, &mut own)), look: own.next() };
                has_moved = true;
            }
            look.at(kept.look);
        }
        let around = &mut examiner.around;
        for ((place, governor), kept) in around.governors.iter().enumerate().zip(policies) {
            let is_new = around.rings.take_new(place) | tally.take_new_policy(place);
            if is_new || has_moved || kept.is_over(now) {
                let mut own = Look::after(now);
                let plan = summary::policy((place, governor), &around.rings, tally, now, &mut own);
                *kept = Kept { plan: Some(plan), look: own.next() };
            }
            look.at(kept.look);
        }
        let Examiner { around, memory, .. } = &*examiner;
        for ((place, (group, line)), kept) in examiner.groups().enumerate().zip(groups) {
            let (is_new, offers_anew) = tally.take_new_group(place);
            let before: &[Seen] = kept.plan.as_ref().map_or(&group.seen, |plan| &plan.seen);
            let is_sighted = |id: &usize| {
                let is_kept = |id: &Name| before.iter().any(|seen| seen.id == *id);
                tally.offers(place, *id) || around.updates.id_at(*id).is_some_and(is_kept)
            };
            let seen = if kept.plan.is_none() || offers_anew || sighted.iter().any(is_sighted) {
                Some(summary::seen(place, before, &memory.sightings, (&around.updates, roster), tally).into())
            } else {
                None
            };
            if is_new || seen.is_some() {
                let kept_seen = || kept.plan.as_ref().map(|plan| plan.seen.clone());
                let seen: Arc<[Seen]> = seen.or_else(kept_seen).unwrap_or_default();
                kept.plan = Some(summary::group((place, group, line), seen, examiner.windows(), tally));
            }
        }
    }
}

/// What was planned for devices that were looked at, by their numbers.
type Before = BTreeMap<usize, Option<DevicePlan>>;

fn counted<'d>(device: &'d Device, reign: &Reign, planned: &'d Planned) -> Counted<'d> {
    let (plan, outlook) = (&planned.plan, planned.outlook.as_ref());
    Counted { device, group: reign.group.winner, place: reign.place, plan, outlook }
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
    updates
}
