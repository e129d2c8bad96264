//! Whose turn it is: never more devices of a policy at a time than it allows, and never more of one service.
//!
//! In: all devices, and which of them would install something. Out: those of these that have to wait, for there are only so
//! many places. A place is taken by every device that holds a claim in the policy's name, also by one that
//! the policy no longer governs: what it does, it does in that policy's name.
//!
//! The ledger is one for all policies of a client: a label that any of them names makes services of the devices that
//! have it, and the strictest policy that governs a device of a service counts for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::report::Tristate;

use super::gates;
use super::model::{Amount, Device, DeviceType, Disruption, Name, TurnOrder};
use super::outcome::{Blocked, DevicePlan};
use super::policy::Governor;
use super::rings::Place;
use super::summary::Tally;

/// A device as it counts here.
#[derive(Clone, Copy)]
pub(super) struct Standing<'d> {
    /// Its number.
    pub number: usize,
    pub device: &'d Device,
    pub stake: &'d Stake,
}

/// All of a device that decides about turns, its labels aside: while it stays the same nobody's turn changes.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stake {
    place: Option<Place>,
    /// Whether it would install something.
    is_candidate: bool,
    failed: Failed,
    claim: Option<Name>,
    device_type: DeviceType,
    retired: bool,
    counts: bool,
    online: bool,
    is_unhealthy: bool,
}

impl Stake {
    pub(super) fn of(device: &Device, place: Option<Place>, is_candidate: bool, now: Timestamp) -> Self {
        Self {
            place,
            is_candidate,
            failed: failed(device),
            claim: device.current.as_ref().map(|claim| claim.policy.clone()),
            device_type: device.device_type,
            retired: device.retired,
            counts: counts(device, now),
            online: device.online,
            is_unhealthy: is_unhealthy(device),
        }
    }
}

/// Whose turn it is not, of those who would install something, and why: the fewest failed attempts come first, then who
/// failed longest ago (also without an attempt, by not answering), so that no device keeps the others waiting by failing; then
/// by name.
pub(super) fn turns(
    devices: &[Standing<'_>],
    governors: &[Governor<'_>],
    tally: &Tally,
    now: Timestamp,
) -> BTreeMap<usize, Arc<Blocked>> {
    let mut ledger = Ledger::of(devices, governors, now);
    let mut policies: Vec<Places> = governors.iter().enumerate().map(|it| Places::of(it, tally)).collect();
    let mut candidates: Vec<&Standing<'_>> = devices.iter().filter(|standing| standing.stake.is_candidate).collect();
    candidates.sort_by_cached_key(|standing| (standing.stake.failed, &standing.device.name));
    let mut refusals = BTreeMap::new();
    for Standing { number, device, stake } in candidates {
        let Some(places) = stake.place.and_then(|place| policies.get_mut(place.policy)) else { continue };
        if let Some(refusal) = ledger.refusal(device).or(places.refusal()) {
            refusals.insert(*number, refusal);
        } else {
            ledger.take(device);
            places.free = places.free.saturating_sub(1);
        }
    }
    refusals
}

/// What a policy has left.
struct Places {
    free: u32,
    reached: Arc<Blocked>,
}

impl Places {
    fn of((place, governor): (usize, &Governor<'_>), tally: &Tally) -> Self {
        let policy = &governor.policy.name;
        let limit = places((place, governor), tally);
        let reached = Arc::new(Blocked::ConcurrencyReached { policy: policy.clone(), limit });
        Self { free: limit.saturating_sub(tally.taken(policy)), reached }
    }

    fn refusal(&self) -> Option<Arc<Blocked>> {
        (self.free == 0).then(|| self.reached.clone())
    }
}

/// How many devices a policy allows at a time.
pub(super) fn places((place, governor): (usize, &Governor<'_>), tally: &Tally) -> u32 {
    let settings = governor.resolved.as_ref().map(|resolved| resolved.settings);
    settings.map_or(0, |settings| at_least_one(settings.rollout.max_concurrent, tally.devices(place)))
}

/// A percentage of some devices is one of them at least.
fn at_least_one(amount: Amount, devices: u32) -> u32 {
    match amount {
        Amount::Count(count) => count,
        Amount::Percent(_) => amount.of(devices).max(1),
    }
}

/// Who of which service is unavailable.
struct Ledger<'a> {
    /// By label and value.
    services: BTreeMap<(&'a str, &'a str), Service<'a>>,
    labels: Vec<&'a str>,
    now: Timestamp,
}

/// Devices with the same value of a label.
#[derive(Default)]
struct Service<'a> {
    /// Its devices.
    devices: u32,
    /// Of these, for any reason unavailable; and those that will be.
    unavailable: u32,
    limit: u32,
    /// What the policies that govern its devices say, by their places: the strongest first.
    settings: BTreeMap<usize, &'a Disruption>,
    /// Of those that are at work or could be the least far behind in the order.
    first: Option<usize>,
}

impl<'a> Service<'a> {
    /// The strongest policy's that states one: of two that contradict each other neither could ever begin.
    fn order(&self) -> Option<&'a TurnOrder> {
        self.settings.values().find_map(|disruption| disruption.order.as_ref())
    }

    /// Whether the device is among its unavailable ones before anything starts.
    fn counted(&self, device: &Device, now: Timestamp) -> bool {
        let healthy_peers = self.settings.values().any(|it| it.healthy_peers);
        device.current.is_some() || (counts(device, now) && is_unavailable(device, healthy_peers))
    }
}

impl<'a> Ledger<'a> {
    fn of(devices: &[Standing<'a>], governors: &'a [Governor<'_>], now: Timestamp) -> Self {
        let settings: Vec<Option<&Disruption>> = governors.iter().map(disruption).collect();
        let mut labels: Vec<&str> = settings.iter().flatten().map(|disruption| disruption.label.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        let mut ledger = Ledger { services: BTreeMap::new(), labels, now };
        for standing in devices.iter().filter(|_| !ledger.labels.is_empty()) {
            let own = standing.stake.place.and_then(|place| settings.get(place.policy).copied().flatten());
            for label in &ledger.labels {
                let Some(value) = service_of(standing.device, label) else { continue };
                let service = ledger.services.entry((label, value)).or_default();
                service.devices += u32::from(counts(standing.device, now));
                if let Some((place, own)) = standing.stake.place.zip(own).filter(|(_, own)| own.label == *label) {
                    service.settings.insert(place.policy, own);
                }
            }
        }
        ledger.services.retain(|_, service| !service.settings.is_empty());
        for service in ledger.services.values_mut() {
            let limits = service.settings.values().map(|it| at_least_one(it.max_unavailable, service.devices));
            service.limit = limits.min().unwrap_or_default();
        }
        for standing in devices {
            ledger.count(*standing, now);
        }
        ledger
    }

    fn count(&mut self, Standing { device, stake, .. }: Standing<'a>, now: Timestamp) {
        let at_work = device.current.is_some() || stake.is_candidate;
        for label in &self.labels {
            let key = service_of(device, label).map(|value| (*label, value));
            let Some(service) = key.and_then(|key| self.services.get_mut(&key)) else { continue };
            service.unavailable += u32::from(service.counted(device, now));
            if let Some(order) = service.order().filter(|_| at_work) {
                let rank = rank(device, order);
                service.first = Some(service.first.map_or(rank, |first| first.min(rank)));
            }
        }
    }

    fn refusal(&self, device: &'a Device) -> Option<Arc<Blocked>> {
        self.services_of(device).find_map(|((label, value), service)| {
            let (label, service_name) = (Name::from(label), Name::from(value));
            let behind = service.order().zip(service.first).is_some_and(|(order, first)| rank(device, order) > first);
            if behind {
                return Some(Arc::new(Blocked::PeersFirst { label, service: service_name }));
            }
            // One that counts already, because it is not well, does not count twice.
            let others = service.unavailable.saturating_sub(u32::from(service.counted(device, self.now)));
            let is_full = others >= service.limit;
            let limit = service.limit;
            is_full.then(|| Arc::new(Blocked::ServiceAtLimit { label, service: service_name, limit }))
        })
    }

    fn take(&mut self, device: &'a Device) {
        for label in &self.labels {
            let key = service_of(device, label).map(|value| (*label, value));
            if let Some(service) = key.and_then(|key| self.services.get_mut(&key)) {
                service.unavailable += u32::from(!service.counted(device, self.now));
            }
        }
    }

    fn services_of(&self, device: &'a Device) -> impl Iterator<Item = ((&'a str, &'a str), &Service<'a>)> {
        self.labels.iter().filter_map(|label| {
            let key = (*label, service_of(device, label)?);
            Some((key, self.services.get(&key)?))
        })
    }
}

/// Also of a policy that installs nothing itself because its windows are not there: its services are still services.
fn disruption<'a>(governor: &'a Governor<'_>) -> Option<&'a Disruption> {
    governor.policy.settings.as_ref().ok()?.disruption.as_ref()
}

/// The service that a device is of, by such a label. Workstations and what is out of use, and not at work, are of none.
fn service_of<'a>(device: &'a Device, label: &str) -> Option<&'a str> {
    let serves = device.device_type == DeviceType::Server && (!device.retired || device.current.is_some());
    device.labels.get(label).filter(|_| serves).map(|value| &**value)
}

/// Whether it counts among a service's devices: one that was not heard of for days is not missed any more.
fn counts(device: &Device, now: Timestamp) -> bool {
    !gates::is_stale(device, now)
}

fn is_unavailable(device: &Device, healthy_peers: bool) -> bool {
    !device.online || (healthy_peers && is_unhealthy(device))
}

fn is_unhealthy(device: &Device) -> bool {
    let failed = device.failures.iter().any(|failure| failure.attempts > 0);
    failed
        || device.report.as_ref().map_or(true, |it| {
            it.restart_required == Tristate::Yes || it.problems.iter().any(|it| it.blocks_installs())
        })
}

/// How far a device is behind: the place of its value, or after all of them.
fn rank(device: &Device, order: &TurnOrder) -> usize {
    let TurnOrder { label, values } = order;
    let value = device.labels.get(label);
    value.and_then(|value| values.iter().position(|other| **other == **value)).unwrap_or(values.len())
}

/// Failed attempts of all the device's updates, and when the last one failed.
type Failed = (u32, Option<Timestamp>);

fn failed(device: &Device) -> Failed {
    let attempts = device.failures.iter().fold(0, |sum: u32, failure| sum.saturating_add(failure.attempts));
    (attempts, device.failures.iter().map(|failure| failure.last).max())
}

/// Nothing is installed on a device now, because of `why`.
pub(super) fn pass_over(plan: &mut DevicePlan, why: &Arc<Blocked>) {
    if plan.install.take().is_some() {
        for update in plan.updates.iter_mut().filter(|update| update.blocked.is_none()) {
            update.blocked = Some(why.clone());
        }
    }
}
