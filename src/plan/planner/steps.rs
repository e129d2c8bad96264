//! The steps of a plan, in their order.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::{Kept, Planned, Planner, Ruled, Slot};
use crate::bits::Bits;
use crate::blast;
use crate::device::{Examined, Examiner, Reign};
use crate::gates;
use crate::look::Look;
use crate::model::{Device, Name, Seen};
use crate::outcome::{Blocked, DevicePlan};
use crate::package::package_of;
use crate::rings::{Judged, News, Teller};
use crate::rollout;
use crate::summary::{self, Counted};

/// A device, by its number, and what was planned for it before.
pub(super) type WasPlanned = (usize, Option<Box<DevicePlan>>);

/// Devices that have been looked at, each once.
pub(super) struct Before {
    plans: Vec<WasPlanned>,
    numbers: Bits,
}

impl Before {
    /// For so many devices; `numbers` is empty.
    pub(super) fn of(mut numbers: Bits, devices: usize) -> Self {
        numbers.grow(devices);
        Self { plans: vec![], numbers }
    }

    fn contains(&self, number: usize) -> bool {
        self.numbers.contains(number)
    }

    /// The numbers of all that have been looked at, as many as there are now.
    fn numbers(&self) -> Vec<usize> {
        self.plans.iter().map(|(number, _)| *number).collect()
    }

    /// What was planned first counts.
    fn add(&mut self, number: usize, plan: Option<DevicePlan>) {
        if self.numbers.insert(number) {
            self.plans.push((number, plan.map(Box::new)));
        }
    }

    /// All of it in the order of the numbers, and what it was made of, empty again.
    pub(super) fn into_sorted(self) -> (Vec<WasPlanned>, Bits) {
        let Self { mut plans, mut numbers } = self;
        for (number, _) in &plans {
            numbers.remove(*number);
        }
        plans.sort_unstable_by_key(|(number, _)| *number);
        (plans, numbers)
    }
}

impl<D: Borrow<Device>> Planner<'_, D> {
    /// Devices of which the clock changes something. Those that must be counted anew are fresh.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<usize> {
        let mut due = Vec::new();
        while let Some(Reverse((at, number))) = self.looks.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.looks.pop();
            let Some(planned) = self.planned_mut(number).filter(|planned| planned.look == Some(at)) else { continue };
            planned.look = None;
            // Whether a failure counts is a matter of decisions, which have their time.
            if self.slot(number).is_some_and(|slot| slot.device.borrow().failures.is_empty()) {
                due.push(number);
            } else {
                self.retract(number);
                self.fresh.push(number);
            }
        }
        for number in std::mem::take(&mut self.unwritten) {
            self.retract(number);
            self.fresh.push(number);
        }
        due
    }

    /// When the clock changes something for a device next.
    pub(super) fn next_of_devices(&mut self) -> Option<Timestamp> {
        // Those that count no longer are few, but for a client whose devices change all the time.
        if self.looks.len() > 2 * self.slots.len() {
            let slots = self.slots.iter().enumerate();
            let looks = slots.filter_map(|(number, slot)| Some((slot.as_ref()?.planned.as_ref()?.look?, number)));
            self.looks = looks.map(Reverse).collect();
        }
        while let Some(Reverse((at, number))) = self.looks.peek().copied() {
            if self.planned_mut(number).is_some_and(|planned| planned.look == Some(at)) {
                return Some(at);
            }
            self.looks.pop();
        }
        None
    }

    /// Takes back what counts of a device.
    pub(super) fn retract(&mut self, number: usize) {
        self.discount(number);
        let Self { examiner, slots, governed, tally, .. } = self;
        let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { return };
        let Some(Ruled { reign, pardoned }) = slot.ruled.take() else { return };
        tally.count_claims(slot.device.borrow(), &reign, false);
        if let Some(governed) = reign.place.and_then(|place| governed.get_mut(place.policy)) {
            governed.remove(number);
        }
        let teller = Teller { device: slot.device.borrow(), number, place: reign.place, pardoned: &pardoned };
        let around = &mut examiner.around;
        around.rings.remove(&around.updates, teller);
    }

    /// Takes back what was summed up of a device's plan.
    pub(super) fn discount(&mut self, number: usize) {
        let Self { examiner, slots, tally, blasts, .. } = self;
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
            planned.look = None;
        }
    }

    /// Counts what fresh devices tell, in the places that they have now.
    pub(super) fn admit(&mut self, now: Timestamp) -> Vec<usize> {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|number| self.slot(*number).is_some());
        fresh.sort_unstable();
        fresh.dedup();
        let mut measured = BTreeSet::new();
        for number in fresh.iter().copied() {
            let Self { examiner, slots, unwritten, governed, tally, .. } = self;
            let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { continue };
            let device = slot.device.borrow();
            let reign = examiner.reign(device);
            let pardoned = examiner.pardoned(number, device, &reign);
            if !examiner.is_written(device, &reign) {
                unwritten.push(number);
            }
            let teller = Teller { device, number, place: reign.place, pardoned: &pardoned };
            let around = &mut examiner.around;
            around.rings.add(&around.updates, teller);
            if around.rings.measure(&around.updates, teller, now) {
                measured.extend(reign.place.map(|place| place.policy));
            }
            if let Some(governed) = reign.place.and_then(|place| governed.get_mut(place.policy)) {
                governed.add(number);
            }
            tally.count_claims(device, &reign, true);
            slot.ruled = Some(Ruled { reign, pardoned });
        }
        for policy in measured {
            self.examiner.expect(policy);
        }
        fresh
    }

    /// Works out how far updates have come. Returns what devices see of that.
    pub(super) fn advance(&mut self, now: Timestamp, look: &mut Look) -> News {
        self.note_failures(now, look);
        let Self { examiner, slots, .. } = self;
        let around = &mut examiner.around;
        let Judged { bad, marks } = around.rings.judge(now);
        for (number, anywhere, failed) in marks {
            let places = failed.iter().filter_map(|device| slots.get(*device)?.as_ref()?.ruled.as_ref()?.reign.place);
            let mut policies: BTreeSet<usize> = places.map(|place| place.policy).collect();
            if let Some(id) = around.updates.id_at(number) {
                policies.extend(around.rings.failed_in(number));
                for policy in policies {
                    around.rings.mark(policy, number, id, anywhere, now);
                }
            }
        }
        for (number, since) in &bad {
            let Some(id) = around.updates.id_at(*number) else { continue };
            for policy in around.rings.failed_in(*number) {
                around.rings.stop(policy, *number, id, *since, now);
            }
        }
        let of_bad = |id: usize| bad.get_key_value(&id).map(|(id, since)| (*id, *since));
        // Of nothing that is bad nobody need be asked.
        let asked: &[Option<Slot<D>>] = if bad.is_empty() { &[] } else { slots };
        for slot in asked.iter().flatten() {
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
    pub(super) fn concerned(&self, news: &News, sighted: &BTreeSet<usize>) -> Vec<usize> {
        let updates = self.updates();
        let mut everywhere = Bits::below(updates.ids());
        news.everywhere.iter().for_each(|id| everywhere.add(*id));
        // What is known of one version of a package counts for the others.
        let packages: BTreeSet<&str> = sighted.iter().filter_map(|id| Some(package_of(updates.id_at(*id)?))).collect();
        for package in packages {
            let ids = updates.ids_from(package).filter(|(id, _)| package_of(id) == package);
            ids.for_each(|(_, id)| everywhere.add(id));
        }
        let is_anywhere = !(news.everywhere.is_empty() && sighted.is_empty());
        let mut of_policy: BTreeMap<usize, Bits> = BTreeMap::new();
        for (policy, id) in &news.updates {
            of_policy.entry(*policy).or_default().add(*id);
        }
        let governed = |policy: &usize| self.governed.get(*policy).into_iter().flat_map(Bits::iter);
        let mut concerned: Vec<usize> = news.policies.iter().flat_map(governed).collect();
        let offers_any = |slot: &Slot<D>, ids: &Bits| {
            let report = slot.device.borrow().report.as_ref().ok();
            let offers = report.into_iter().flat_map(|report| &report.offers).map(|offer| offer.update);
            let removable = report.into_iter().flat_map(|report| report.removable.iter().copied());
            let all = offers.chain(removable).chain(report.and_then(|report| report.restart));
            all.filter_map(|update| updates.id_of(update)).any(|id| ids.contains(id))
        };
        for (policy, ids) in of_policy.iter().filter(|(policy, _)| !news.policies.contains(policy)) {
            let offers = |number: &usize| self.slot(*number).is_some_and(|slot| offers_any(slot, ids));
            concerned.extend(governed(policy).filter(offers));
        }
        if is_anywhere {
            let slots = self.slots.iter().enumerate();
            let offer = slots.filter(|(_, slot)| slot.as_ref().is_some_and(|slot| offers_any(slot, &everywhere)));
            concerned.extend(offer.map(|(number, _)| number));
        }
        concerned
    }

    /// Looks at a device, and remembers what was planned for it before.
    pub(super) fn examine(&mut self, number: usize, now: Timestamp, before: &mut Before) {
        self.discount(number);
        let Self { examiner, slots, tally, blasts, looks, .. } = self;
        let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { return };
        let (device, Some(ruled)) = (slot.device.borrow(), &slot.ruled) else { return };
        let mut look = Look::after(now);
        let Examined { plan, says, outlook } =
            examiner.examine(number, device, (&ruled.reign, &ruled.pardoned), &mut look);
        let (old, stake, turn) = match slot.planned.take() {
            Some(Planned { plan, stake, turn, .. }) => (Some(plan), stake, turn),
            None => (None, None, None),
        };
        before.add(number, old);
        let (look, is_new) = (look.next(), blast::is_new(device, says, now));
        let is_unheard = device.online_since.is_some() && gates::is_stale(device, now);
        let planned = Planned { plan, says, outlook, look, is_new, is_unheard, stake, turn, is_counted: true };
        tally.count(&examiner.around.updates, counted(device, &ruled.reign, &planned), true);
        if let Some(place) = ruled.reign.place.filter(|_| is_new) {
            blasts.count(place.policy, true);
        }
        looks.extend(look.map(|look| Reverse((look, number))));
        slot.planned = Some(planned);
    }

    /// Holds what only specs allow that wait for a person.
    pub(super) fn hold(&mut self, now: Timestamp, before: &mut Before) {
        let Self { examiner, slots, governed, tally, blasts, .. } = self;
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
        let is_new = |number: &usize| {
            let slot = slots.get(*number).and_then(Option::as_ref);
            slot.and_then(|slot| slot.planned.as_ref()).is_some_and(|planned| planned.is_new)
        };
        let devices = policies.iter().filter_map(|policy| governed.get(*policy)).flat_map(Bits::iter);
        let concerned: Vec<usize> = devices.filter(|number| is_new(number) && !before.contains(*number)).collect();
        for number in concerned {
            self.examine(number, now, before);
        }
        for number in before.numbers() {
            self.hold_device(number);
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
    pub(super) fn give_turns(&mut self, now: Timestamp, before: &mut Before) {
        let Self { examiner, slots, ledger, .. } = self;
        for number in before.numbers() {
            let Some(slot) = slots.get_mut(number).and_then(Option::as_mut) else { continue };
            let Slot { device, ruled: Some(ruled), planned: Some(planned) } = slot else { continue };
            let device = (*device).borrow();
            let would = planned.plan.install.as_ref().map(|install| install.verb);
            let health = rollout::health(device, &examiner.around.updates, &ruled.pardoned);
            let stake = ledger.stake((device, health), ruled.reign.place, would, now);
            if planned.stake.as_ref() != Some(&stake) {
                ledger.change((number, &device.name), planned.stake.as_ref(), Some(&stake));
                planned.stake = Some(stake);
            }
            if would.is_none() {
                planned.turn = None;
            }
        }
        let Self { examiner, slots, ledger, tally, .. } = self;
        let staked = |number: usize| {
            let slot = slots.get(number)?.as_ref()?;
            Some((slot.device.borrow(), slot.planned.as_ref()?.stake.as_ref()?))
        };
        for (number, refusal) in ledger.turns(staked, examiner.governors(), tally) {
            if self.planned_mut(number).is_none_or(|planned| planned.turn == refusal) {
                continue;
            }
            if !before.contains(number) {
                self.examine(number, now, before);
                self.hold_device(number);
            }
            if let Some(planned) = self.planned_mut(number) {
                planned.turn = refusal;
            }
        }
        for number in before.numbers() {
            if let Some(Planned { plan, turn: Some(why), .. }) = self.planned_mut(number) {
                rollout::pass_over(plan, why);
            }
        }
    }

    /// What it comes to for policies, groups and windows, where that may have changed.
    pub(super) fn sum_up(&mut self, now: Timestamp, sighted: &BTreeSet<usize>, look: &mut Look) {
        let Self { examiner, tally, roster, policies, groups, windows, prospects, knows_vulnerabilities, .. } = self;
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
        let (overlap, excluded, named) =
            (tally.overlaps.take_news(), tally.excluded.take_news(), tally.members.take_news());
        let policies = policies.iter_mut().zip(prospects);
        for ((place, governor), (kept, prospect)) in around.governors.iter().enumerate().zip(policies) {
            let is_new = around.rings.take_new(place) | tally.take_new_policy(place);
            let is_told = overlap.contains(&place) || excluded.contains(&place);
            if is_new || has_moved || is_told || kept.is_over(now) {
                let mut own = Look::after(now);
                let plan = summary::policy((place, governor, prospect), &around.rings, tally, now, &mut own);
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
            if is_new || named.contains(&place) || seen.is_some() {
                let kept_seen = || kept.plan.as_ref().map(|plan| plan.seen.clone());
                let seen: Arc<[Seen]> = seen.or_else(kept_seen).unwrap_or_default();
                kept.plan = Some(summary::group(
                    (place, group, line),
                    seen,
                    (examiner.windows(), *knows_vulnerabilities),
                    tally,
                ));
            }
        }
    }
}

fn counted<'d>(device: &'d Device, reign: &Reign, planned: &'d Planned) -> Counted<'d> {
    let (plan, outlook) = (&planned.plan, planned.outlook.as_ref());
    let is_unheard = planned.is_unheard;
    Counted { device, group: reign.group.winner, place: reign.place, plan, outlook, is_unheard }
}
