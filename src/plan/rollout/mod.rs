//! Whose turn it is: never more devices of a policy at a time than it allows, and never more of one service.
//!
//! In: all devices, and which of them would install something. Out: those of these that have to wait, for there are only so
//! many places. A place is taken by every device that holds a claim in the policy's name, also by one that
//! the policy no longer governs: what it does, it does in that policy's name.
//!
//! The ledger is one for all policies of a client: a label that any of them names makes services of the devices that
//! have it, and the strictest policy that governs a device of a service counts for all of them. A download disrupts nothing:
//! it takes a place of its policy, and neither waits for the ledger nor counts in it.
//!
//! What was given stays given until something moves: `turns` says who is asked again.

mod absent;
mod sorted;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Tristate;

use super::gates;
use super::model::{Amount, Catalogue, Cause, Device, DeviceType, Disruption, Failure, Name, NoReport, TurnOrder};
use super::outcome::{Blocked, DevicePlan};
use super::policy::Governor;
use super::rings::Place;
use super::roster::Numbers;
use super::summary::Tally;
use sorted::Sorted;
use turns::{Limits, Line, Moved};

/// All of a device that decides about turns, its place in an order aside: while it stays the same nobody's turn changes.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stake {
    place: Option<Place>,
    /// What it would do, if anything.
    would: Option<Verb>,
    failed: Failed,
    /// In whose name it is at work, and at what.
    claim: Option<(Name, Verb)>,
    /// Retired ones do not count for their policy.
    retired: bool,
    /// Whether it counts among a service's devices: one that was not heard of for days is not missed any more.
    counts: bool,
    online: bool,
    /// Since a restore nobody knows whether an install is at work on it.
    may_be_at_work: bool,
    health: Health,
    /// Numbers of the services that it is part of: workstations and what is out of use, and not at work, are of none.
    services: Box<[usize]>,
}

/// How a device is, as its peers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    /// It waits for a restart, and serves meanwhile. Only those that are well wait for it: were it to wait for others that do, too,
    /// a service of which two devices wait for a restart would never get one.
    Due,
    /// An update has failed on it and is offered or stays, it has a problem, or it says nothing that is believed.
    Ill,
}

impl Stake {
    /// Whether what it is at work at keeps it from its services.
    fn is_disrupted(&self) -> bool {
        self.claim.as_ref().is_some_and(|(_, verb)| disrupts(*verb))
    }

    /// The services of which it would take itself away.
    fn contended(&self) -> &[usize] {
        if self.would.is_some_and(disrupts) { &self.services } else { &[] }
    }

    /// Whether it is among a service's unavailable devices before anything starts.
    fn is_unavailable(&self, healthy_peers: bool) -> bool {
        let is_down = !self.online || self.may_be_at_work;
        self.is_disrupted() || (self.counts && (is_down || (healthy_peers && self.health == Health::Ill)))
    }

    /// Whether it is there and only waits for a restart.
    fn is_due(&self) -> bool {
        self.counts && self.health == Health::Due && !self.is_unavailable(true)
    }
}

/// Whether a device is not there for its service while it does that.
fn disrupts(verb: Verb) -> bool {
    match verb {
        Verb::Install | Verb::Uninstall | Verb::Restart => true,
        Verb::Download => false,
    }
}

/// How many devices a policy allows at a time.
pub(super) fn places((place, governor): (usize, &Governor<'_>), tally: &Tally<'_>) -> u32 {
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

/// Who of which service is unavailable, and who would install something.
pub(super) struct Ledger<'a> {
    /// What the policies say, by their places.
    settings: Vec<Option<&'a Disruption>>,
    /// The labels that any of them names, in order.
    labels: Vec<Label<'a>>,
    /// By their numbers.
    services: Vec<Service<'a>>,
    /// Of the policies, by their places.
    lines: Vec<Line>,
    /// Places of the policies.
    places: BTreeMap<&'a str, usize>,
    /// How many there are.
    candidates: usize,
    moved: Moved,
}

/// Who would install something. In their order turns are given: the fewest failed attempts first, then who failed longest
/// ago (also without an attempt, by not answering), so that no device keeps the others waiting by failing; then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    failed: Failed,
    name: Name,
    number: usize,
}

struct Label<'a> {
    name: &'a str,
    /// Services by the label's value.
    services: Numbers,
}

/// Devices with the same value of a label.
struct Service<'a> {
    label: &'a str,
    value: Name,
    /// Its devices.
    devices: u32,
    /// Of these, at work or not there.
    down: u32,
    /// Of the others, those that are ill.
    ill: u32,
    /// Of the rest, those that wait for a restart.
    due: u32,
    /// How many of them the policies govern that name the label, by their places: the strongest first.
    policies: BTreeMap<usize, u32>,
    /// Numbers of those that are at work or could be.
    at_work: BTreeSet<usize>,
    /// Those that could be.
    candidates: BTreeSet<Candidate>,
    /// Of these, those that have a turn and are well, so that it takes one more away.
    well_granted: Sorted,
    /// Likewise those that wait for a restart: where that counts, those that are well miss them already.
    due_granted: Sorted,
    /// Likewise those that are ill: where that counts, everybody misses them already.
    ill_granted: Sorted,
    /// By which the last turns were given.
    limits: Option<Limits<'a>>,
}

impl<'a> Service<'a> {
    fn of(label: &'a str, value: Name) -> Self {
        Self {
            label,
            value,
            devices: 0,
            down: 0,
            ill: 0,
            due: 0,
            policies: BTreeMap::new(),
            at_work: BTreeSet::new(),
            candidates: BTreeSet::new(),
            well_granted: Sorted::default(),
            due_granted: Sorted::default(),
            ill_granted: Sorted::default(),
            limits: None,
        }
    }
}

impl<'a> Ledger<'a> {
    /// With no devices.
    pub(super) fn of(governors: &[Governor<'a>]) -> Self {
        // Also of a policy that installs nothing itself because it is Stalled: its services are still services.
        let settings = governors.iter().map(|governor| governor.policy.disruption.as_ref());
        let settings: Vec<Option<&Disruption>> = settings.collect();
        let names: BTreeSet<&str> = settings.iter().flatten().map(|disruption| disruption.label.as_str()).collect();
        let labels = names.into_iter().map(|name| Label { name, services: Numbers::default() }).collect();
        Self {
            lines: governors.iter().map(Line::of).collect(),
            places: governors.iter().enumerate().map(|(place, it)| (&*it.policy.name, place)).collect(),
            settings,
            labels,
            services: vec![],
            candidates: 0,
            moved: Moved::default(),
        }
    }

    /// What of a device decides about turns.
    pub(super) fn stake(
        &mut self,
        (device, health): (&Device, Health),
        place: Option<Place>,
        would: Option<Verb>,
        now: Timestamp,
    ) -> Stake {
        let serves = device.device_type == DeviceType::Server && (!device.retired || device.current.is_some());
        Stake {
            place,
            would,
            failed: failed(device),
            claim: device.current.as_ref().map(|claim| (claim.policy.clone(), claim.verb)),
            retired: device.retired,
            counts: !gates::is_stale(device, now),
            online: device.online,
            may_be_at_work: device.report.as_ref().is_err_and(NoReport::hides_installs),
            health,
            services: if serves { self.services_of(device) } else { Box::default() },
        }
    }

    fn services_of(&mut self, device: &Device) -> Box<[usize]> {
        let Self { labels, services, .. } = self;
        let of_labels = labels.iter_mut().filter_map(|label| {
            let value = device.labels.get(label.name)?;
            Some(label.services.of(value, || {
                services.push(Service::of(label.name, value.clone()));
                services.len() - 1
            }))
        });
        of_labels.collect()
    }

    /// Has a device, by its number, count by its stake instead of what it had before, if it had or has any.
    pub(super) fn change(&mut self, (number, name): (usize, &Name), before: Option<&Stake>, stake: Option<&Stake>) {
        for (stake, adds) in before.map(|it| (it, false)).into_iter().chain(stake.map(|it| (it, true))) {
            self.count(number, stake, adds);
            if stake.would.is_some() {
                let candidate = Candidate { failed: stake.failed, name: name.clone(), number };
                if adds { self.enter(candidate, stake) } else { self.leave(&candidate, stake) }
            }
            let claimed = stake.claim.as_ref().and_then(|(policy, _)| self.places.get(&**policy).copied());
            self.moved.add(stake, claimed);
        }
    }

    /// A device has other labels, by which it may have another place in an order, and the same stake.
    pub(super) fn is_relabelled(&mut self, stake: &Stake) {
        self.moved.ask_services(stake);
    }

    /// Gives turns where something has moved. Returns whom was asked, and why it is not its turn, if it is not. `devices`
    /// are known by their numbers.
    pub(super) fn turns<'d>(
        &mut self,
        devices: impl Fn(usize) -> Option<(&'d Device, &'d Stake)>,
        governors: &[Governor<'_>],
        tally: &Tally<'_>,
    ) -> Vec<(usize, Option<Arc<Blocked>>)> {
        self.ask(devices, governors, tally)
    }

    fn count(&mut self, number: usize, stake: &Stake, adds: bool) {
        let Self { settings, services, .. } = self;
        let own = stake.place.and_then(|place| Some((place.policy, settings.get(place.policy).copied().flatten()?)));
        for service in &stake.services {
            let Some(service) = services.get_mut(*service) else { continue };
            let change = |count: &mut u32, counts: bool| {
                let one = u32::from(counts);
                *count = if adds { count.saturating_add(one) } else { count.saturating_sub(one) };
            };
            let is_down = stake.is_unavailable(false);
            change(&mut service.devices, stake.counts);
            change(&mut service.down, is_down);
            change(&mut service.ill, !is_down && stake.is_unavailable(true));
            change(&mut service.due, stake.is_due());
            if let Some((policy, _)) = own.filter(|(_, own)| own.label == service.label) {
                let governed = service.policies.entry(policy).or_default();
                change(governed, true);
                if *governed == 0 {
                    service.policies.remove(&policy);
                }
            }
            if stake.would.is_some_and(disrupts) || stake.is_disrupted() {
                put(&mut service.at_work, number, adds);
            }
        }
    }
}

fn put<T: Ord>(set: &mut BTreeSet<T>, one: T, adds: bool) {
    if adds {
        set.insert(one);
    } else {
        set.remove(&one);
    }
}

/// How a device is whose updates are of the catalogue, where failures of some do not count, by the numbers of their ids.
pub(super) fn health(device: &Device, catalogue: &Catalogue, pardoned: &[usize]) -> Health {
    let is_offered = |id: &Name| {
        let offers = device.report.iter().flat_map(|report| &report.offers);
        offers.filter_map(|offer| catalogue.get(offer.update)).any(|update| update.id == *id)
    };
    let is_left = |failure: &Failure| match failure.cause {
        // A person has seen to it.
        Cause::Check(update) => catalogue.id_of(update).is_none_or(|id| !pardoned.contains(&id)),
        // It has what it had before, and nothing is to be tried again.
        Cause::RolledBack => is_offered(&failure.update),
        Cause::Update | Cause::Other | Cause::Passing => true,
    };
    let failed = device.failures.iter().any(|failure| failure.tells() && is_left(failure));
    match &device.report {
        Ok(report) if !failed && !report.problems.iter().any(|problem| problem.blocks_installs()) => {
            if report.restart_required == Tristate::Yes { Health::Due } else { Health::Well }
        }
        Ok(_) | Err(_) => Health::Ill,
    }
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
