//! When updates may start, found by asking at later instants.
//!
//! ```text
//!   now            blocked until a, as far as the clock goes: it cannot be eligible before
//!   a              the same gates are asked, as of a:  blocked until b > a
//!   b              ...                                 nothing blocks it                     --> From(b)
//!                                                      what blocks it ends by no clock       --> Unknown
//! ```
//!
//! In between nothing happens but what the clock does: decisions end, updates age, soak times pass, windows open. What devices
//! are at work at, whose turn it is, what fails and what people do cannot be foreseen. All updates are looked at together, the earliest
//! instant first, since what was worked out for an instant holds for none before it.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::order::Verb;

use super::{Planner, Slot};
use crate::device::Obstacle;
use crate::gates;
use crate::look::Look;
use crate::model::{Device, Name};
use crate::outcome::{Absence, Blocked, Eligible, Foresight, Unproved, UpdatePlan};
use crate::rings::{Place, tells_all};

/// An update is looked at at no more instants: beyond them it is not known.
const INSTANTS: u32 = 100;

/// One update that is to be looked at again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Later {
    at: Timestamp,
    /// The device's number.
    number: usize,
    /// The update's place in the device's report.
    place: usize,
    /// Its place in the device's plan.
    planned: usize,
    /// At so many instants it has been looked at.
    looked: u32,
}

impl<D: Borrow<Device>> Planner<'_, D> {
    /// The plan that was made for `now`, and what can be foreseen of all devices, or of the one that is named.
    pub(crate) fn into_foresight(mut self, only: Option<&str>, now: Timestamp) -> Foresight {
        let numbers = match only {
            Some(name) => self.roster.find(name).into_iter().collect(),
            None => self.roster.by_name().collect::<Vec<usize>>(),
        };
        let named = |number: usize| self.roster.name(number).cloned();
        // All devices are looked through for it.
        let asked = || numbers.iter().copied().filter(|_| only.is_some());
        let absent = asked().filter_map(|number| Some((named(number)?, self.absent(number)?))).collect();
        let unproved = asked().flat_map(|number| self.unproved(number)).collect();
        let eligible = self.eligible_from(&numbers, now).into_iter().collect();
        Foresight { plan: self.into_plan(), eligible, absent, unproved }
    }

    /// Why rings have not proved the updates of a device that have to wait for them, whatever else these wait for.
    fn unproved(&self, number: usize) -> BTreeMap<Name, Unproved> {
        let Some(Slot { ruled: Some(ruled), planned: Some(planned), .. }) = self.slot(number) else {
            return BTreeMap::new();
        };
        let rings = &self.examiner.around.rings;
        let unproved = |update: &UpdatePlan| {
            let id = self.updates().id_of(update.update)?;
            let name = self.updates().id_at(id)?;
            let of_device = ruled.reign.place?;
            rings.waits(of_device, id)?;
            let (place, unproved) = rings.unproved(of_device.policy, name)?;
            Some(((place, id), (name, unproved)))
        };
        let mut told: BTreeMap<(Place, usize), (&Name, Unproved)> =
            planned.plan.updates.iter().filter_map(unproved).collect();
        let asked: BTreeSet<Place> = told.keys().map(|(place, _)| *place).collect();
        for other in self.roster.by_name().filter(|_| !asked.is_empty()) {
            let Some(Slot { device, ruled: Some(ruled), .. }) = self.slot(other) else { continue };
            let device = device.borrow();
            let Some(place) = ruled.reign.place.filter(|place| asked.contains(place) && !device.retired) else {
                continue;
            };
            let offers = device.report.iter().flat_map(|report| &report.offers);
            let offers: BTreeSet<usize> = offers.filter_map(|offer| self.updates().id_of(offer.update)).collect();
            for (at, (_, unproved)) in told.iter_mut().filter(|(at, _)| at.0 == place) {
                if offers.contains(&at.1) {
                    unproved.offering.push(device.name.clone());
                } else if !tells_all(device) && device.installed.iter().all(|id| id.index() != at.1) {
                    unproved.silent.push(device.name.clone());
                }
            }
        }
        told.into_values().map(|(name, unproved)| (name.clone(), unproved)).collect()
    }

    /// Who keeps a device's service at its limit, if that is what it waits for.
    fn absent(&self, number: usize) -> Option<Vec<(Name, Absence)>> {
        let planned = self.slot(number)?.planned.as_ref()?;
        let service = self.ledger.service_at_limit(planned.turn.as_deref()?)?;
        let waiting = planned.stake.as_ref()?;
        let absence = |other: usize| {
            let planned = self.slot(other).filter(|_| other != number)?.planned.as_ref()?;
            let stake = (planned.stake.as_ref()?, planned.plan.install.is_some());
            Some((self.roster.name(other)?.clone(), self.ledger.absence(service, stake, waiting)?))
        };
        Some(self.roster.by_name().filter_map(absence).collect())
    }

    /// When each update of the devices with these numbers may start. Nothing can be planned any more afterwards.
    fn eligible_from(&mut self, numbers: &[usize], now: Timestamp) -> Vec<(Name, Vec<Eligible>)> {
        self.renew(now);
        // By the numbers of devices.
        let mut told: Vec<Vec<Eligible>> = Vec::new();
        told.resize_with(self.slots.len(), Vec::new);
        let mut queue = BinaryHeap::new();
        for number in numbers.iter().copied() {
            let places = self.slot(number).map_or(0, places);
            let places: Vec<usize> = (0..places).collect();
            for (place, obstacle) in places.iter().zip(self.obstacles(number, &places)) {
                let Some(obstacle) = obstacle else { continue };
                let Some(told) = told.get_mut(number) else { continue };
                let later = Later { at: now, number, place: *place, planned: told.len(), looked: 0 };
                told.push(self.eligible(later, obstacle, now, &mut queue));
            }
            // What the device tells of no more stands behind what it tells of: it waits for a person.
            let Some(told) = told.get_mut(number) else { continue };
            let planned = self.slot(number).and_then(|slot| slot.planned.as_ref());
            let checked = planned.and_then(|planned| planned.plan.updates.get(told.len()..)).unwrap_or_default();
            let waits = |why: &Arc<Blocked>| Eligible::Unknown { from: now, why: why.clone() };
            told.extend(checked.iter().filter_map(|update| update.blocked.as_ref().map(waits)));
        }
        let (mut at, mut soaked) = (now, self.pass_rings(now));
        while let Some(Reverse(first)) = queue.pop() {
            // A ring's soak time begins when the one before it is over, whether or not anything is looked at then.
            while let Some(over) = soaked.filter(|over| *over < first.at) {
                soaked = self.pass_rings(over);
            }
            if first.at > at {
                at = first.at;
                self.renew(at);
                soaked = self.pass_rings(at);
            }
            let mut of_device = vec![first];
            while let Some(Reverse(next)) = queue.peek()
                && of_device.first().is_some_and(|first| (first.at, first.number) == (next.at, next.number))
            {
                of_device.extend(queue.pop().map(|Reverse(next)| next));
            }
            let number = of_device.first().map(|first| first.number).unwrap_or_default();
            let places: Vec<usize> = of_device.iter().map(|later| later.place).collect();
            for (later, obstacle) in of_device.into_iter().zip(self.obstacles(number, &places)) {
                let planned = later.planned;
                let eligible = match obstacle {
                    Some(obstacle) => self.eligible(later, obstacle, now, &mut queue),
                    // It is not to be taken back any more.
                    None => Eligible::Unknown { from: at, why: self.stays(number, planned) },
                };
                if let Some(told) = told.get_mut(number).and_then(|told| told.get_mut(planned)) {
                    *told = eligible;
                }
            }
        }
        let named = numbers.iter().copied().filter_map(|number| {
            let mut told = std::mem::take(told.get_mut(number)?);
            self.wait_for_twins(number, &mut told);
            Some((self.roster.name(number)?.clone(), told))
        });
        named.collect()
    }

    /// Brings updates as far through their rings as they are by then; when the next soak time is over.
    fn pass_rings(&mut self, at: Timestamp) -> Option<Timestamp> {
        let around = &mut self.examiner.around;
        let mut look = Look::after(at);
        around.rings.advance(&around.updates, at, &mut look);
        look.next()
    }

    /// What is known of an update that has been looked at. Where it is to be looked at again it is queued.
    fn eligible(
        &self,
        later: Later,
        obstacle: Obstacle,
        now: Timestamp,
        queue: &mut BinaryHeap<Reverse<Later>>,
    ) -> Eligible {
        let Later { at, number, place, planned, looked } = later;
        let Some((why, lifted)) = obstacle else {
            let update = || self.slot(number)?.planned.as_ref()?.plan.updates.get(planned);
            let Some(update) = update().filter(|_| at == now) else { return Eligible::From(at) };
            // It waits for its turn, for others of the device, for what is at work on it.
            let Some(why) = update.blocked.clone() else { return Eligible::From(at) };
            // Or it is told twice, and what blocks its twin ends then: by itself it may be blocked again by that time.
            let is_twins = !matches!(*why, Blocked::InstallRunning { .. });
            if let Some(lifted) = update.eligible_at.filter(|lifted| is_twins && *lifted > now) {
                queue.push(Reverse(Later { at: lifted, number, place, planned, looked: looked + 1 }));
            }
            return Eligible::Unknown { from: now, why };
        };
        if let Some(lifted) = lifted.filter(|lifted| *lifted > at && looked < INSTANTS) {
            queue.push(Reverse(Later { at: lifted, number, place, planned, looked: looked + 1 }));
        }
        // By then it would not have been heard of for long, but that it stays away is not known.
        let is_stale = |slot: &Slot<D>| gates::is_stale(slot.device.borrow(), now);
        let why = match &*why {
            Blocked::DeviceStale if !self.slot(number).is_some_and(is_stale) => Arc::new(Blocked::DeviceOffline),
            _ => why,
        };
        Eligible::Unknown { from: at, why }
    }

    fn obstacles(&mut self, number: usize, places: &[usize]) -> Vec<Option<Obstacle>> {
        let Self { examiner, slots, blasts, .. } = self;
        let Some(Slot { device, ruled: Some(ruled), planned: Some(planned) }) =
            slots.get(number).and_then(Option::as_ref)
        else {
            return vec![];
        };
        let held = blasts.held(ruled.reign.place, planned.is_new);
        examiner.obstacles(number, (device.borrow(), &ruled.reign), held, places.iter().copied())
    }

    /// What is said of an update that is not to be taken back any more.
    fn stays(&self, number: usize, planned: usize) -> Arc<Blocked> {
        let update = || self.slot(number)?.planned.as_ref()?.plan.updates.get(planned);
        let id = update().and_then(|update| Some(self.updates().get(update.update)?.id.clone()));
        Arc::new(Blocked::Stays { update: id.unwrap_or_else(|| "it".into()) })
    }

    /// What a report tells twice under one id is done together, once nothing blocks either.
    fn wait_for_twins(&self, number: usize, told: &mut [Eligible]) {
        let Some(slot) = self.slot(number) else { return };
        let Some(planned) = slot.planned.as_ref() else { return };
        let updates = planned.plan.updates.iter().enumerate();
        let mut ids: Vec<(Option<usize>, Verb, usize)> =
            updates.map(|(planned, update)| (self.updates().id_of(update.update), update.verb, planned)).collect();
        ids.sort_unstable();
        let twins = ids.chunk_by(|(id, verb, _), other| (*id, *verb) == (other.0, other.1));
        for twins in twins.filter(|twins| twins.len() > 1) {
            let all = || twins.iter().filter_map(|(_, _, planned)| told.get(*planned));
            // Those that are not known, then those that wait for longest.
            let last = all().max_by_key(|eligible| match eligible {
                Eligible::Unknown { from, .. } => (true, *from),
                Eligible::From(at) => (false, *at),
            });
            let Some(last) = last.cloned() else { continue };
            for (_, _, planned) in twins {
                if let Some(told) = told.get_mut(*planned) {
                    told.clone_from(&last);
                }
            }
        }
    }
}

/// How much a device's report tells of.
fn places<D: Borrow<Device>>(slot: &Slot<D>) -> usize {
    let report = slot.device.borrow().report.as_ref();
    report.map_or(0, |report| report.offers.len() + report.removable.len() + usize::from(report.restart.is_some()))
}
