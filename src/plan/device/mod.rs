//! One device: its group, its policy, each update's decision, state and refusal, and whether it complies.
//!
//! In: a device and everything around it. Out: its [`DevicePlan`], in which `install` holds what it would install if it
//! were its turn; `rollout` decides whose turn it is. A claimed install that asks to begin is asked about here, too.

mod looked;
mod memory;
mod surroundings;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{RestartWhen, Verb};

use super::approval::Line;
use super::bits::Bits;
use super::blast::{self, Say};
use super::durations::{self};
use super::fit::Fit;
use super::forecast::Outlook;
use super::gates::{self, Around, DeviceRefusal};
use super::look::Look;
use super::model::{Claim, Device, Group, Moved, Name, Snapshot, Window};
use super::outcome::{Blocked, DevicePlan, UpdatePlan};
use super::policy::{Governor, Opening};
use super::rings::{self, Pardoned, Place, Placed, Rings};
use super::rulings::Rulings;
use super::select::{Claimants, Selection};
use super::settle;
use super::sightings::Sightings;
use super::window::later;
use looked::{Asking, Looked, block_twins, compliance, due, one_verb};

/// What devices are looked at with, and what has been worked out for one and holds for others.
pub(super) struct Examiner<'a> {
    selection: Selection<'a>,
    around: Surroundings<'a>,
    memory: Memory<'a>,
}

/// What is the same whichever device is looked at.
struct Surroundings<'a> {
    now: Timestamp,
    snapshot: &'a Snapshot,
    /// By name.
    devices: Vec<&'a Device>,
    windows: BTreeMap<&'a str, &'a Window>,
    /// As in the selection's groups.
    lines: Vec<Line<'a>>,
    /// As in the selection's policies.
    governors: Vec<Governor<'a>>,
    rings: Rings,
}

/// What devices have in common, as far as it has been worked out.
struct Memory<'a> {
    sightings: Sightings<'a>,
    rulings: Rulings<'a>,
    openings: BTreeMap<OpeningKey<'a>, Rc<Opening<'a>>>,
    fit: Fit,
    /// What the devices with a deadline have before them, as in the list of policies.
    outlooks: Vec<Vec<Outlook>>,
    /// Empty but while the ids of a device's updates are looked through.
    ids: Bits,
    /// Empty, with room for a device's updates.
    looked: Vec<Looked<'a>>,
}

/// A policy by its place, how long an install may take, an update's own window with the group that gives it, and the
/// name of the device's zone where one is needed.
type OpeningKey<'a> = (usize, SignedDuration, Option<(Name, Name)>, Option<&'a str>);

/// A device with its group, its policy and its ring.
pub(super) struct Governed<'a> {
    /// By its place among all devices.
    position: usize,
    device: &'a Device,
    group: Claimants,
    policy: Claimants,
    place: Option<Place>,
    /// How much time the install is given.
    limit: SignedDuration,
    /// How long it is expected to take, where it has been claimed.
    expected: Option<SignedDuration>,
    /// Since when it has them, if it had others before.
    moved: Option<Box<Moved>>,
}

/// What is asked of a device once, and of none of its updates again.
struct Asked<'g, 'a> {
    around: Around<'g>,
    refusal: Option<DeviceRefusal>,
    is_stale: bool,
    /// The policy's windows.
    opening: Option<Rc<Opening<'a>>>,
}

impl<'a> Governed<'a> {
    /// The device.
    pub(super) fn device(&self) -> &'a Device {
        self.device
    }

    /// The place of its group.
    pub(super) fn group(&self) -> Option<usize> {
        self.group.winner
    }

    /// Its policy and ring.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }
}

impl<'a> Examiner<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, now: Timestamp) -> Self {
        let windows: BTreeMap<&str, &Window> = snapshot.windows.iter().map(|one| (&*one.name, one)).collect();
        let groups: BTreeMap<&str, &Group> = snapshot.groups.iter().map(|one| (&*one.name, one)).collect();
        let mut devices: Vec<&Device> = snapshot.devices.iter().collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        let selection = Selection::of(snapshot);
        let rings = Rings::recorded(snapshot, &selection.policies);
        Self {
            memory: Memory {
                fit: Fit::of(&selection.policies, &rings, snapshot),
                outlooks: vec![vec![]; selection.policies.len()],
                sightings: Sightings::of(snapshot, &devices),
                rulings: Rulings::of(snapshot, selection.groups.len(), now),
                openings: BTreeMap::new(),
                ids: Bits::below(snapshot.updates.ids()),
                looked: vec![],
            },
            around: Surroundings {
                now,
                snapshot,
                devices,
                lines: selection.groups.iter().map(|group| Line::of(group, &groups)).collect(),
                governors: selection.policies.iter().map(|policy| Governor::of(policy, &windows)).collect(),
                rings,
                windows,
            },
            selection,
        }
    }

    /// The devices, by name.
    pub(super) fn devices(&self) -> &[&'a Device] {
        &self.around.devices
    }

    /// The device of that name, with its place.
    pub(super) fn device(&self, name: &str) -> Option<(usize, &'a Device)> {
        let position = self.around.devices.binary_search_by(|device| (*device.name).cmp(name)).ok()?;
        Some((position, self.around.devices.get(position)?))
    }

    /// The policies, strongest first.
    pub(super) fn governors(&self) -> &[Governor<'a>] {
        &self.around.governors
    }

    /// The groups, strongest first, each with its parents.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&'a Group, &Line<'a>)> {
        self.selection.groups.iter().copied().zip(&self.around.lines)
    }

    /// Since when updates are known.
    pub(super) fn sightings(&self) -> &Sightings<'a> {
        &self.memory.sightings
    }

    /// Windows by name.
    pub(super) fn windows(&self) -> &BTreeMap<&'a str, &'a Window> {
        &self.around.windows
    }

    /// What the devices that were examined have before them, by policy.
    pub(super) fn take_outlooks(&mut self) -> Vec<Vec<Outlook>> {
        std::mem::take(&mut self.memory.outlooks)
    }

    /// How far each policy's updates have come.
    pub(super) fn rings(&self) -> &Rings {
        &self.around.rings
    }

    /// The group, policy and ring of the device at `position`.
    pub(super) fn governed(&mut self, position: usize) -> Option<Governed<'a>> {
        let device: &'a Device = self.around.devices.get(position)?;
        let group = self.selection.group(device);
        let policy = self.selection.policy(device, self.group(&group));
        let governor = policy.winner.and_then(|place| self.around.governors.get(place));
        let settings = governor.and_then(|governor| governor.resolved.as_ref().ok());
        let limit = settings.map_or(SignedDuration::ZERO, |resolved| resolved.settings.install_limit);
        // Also of a policy whose windows are not there: what its devices tell must not count for another ring.
        let said = governor.and_then(|governor| Some((governor.policy, governor.policy.settings.as_ref().ok()?)));
        let ring = said.map_or(0, |(policy, settings)| rings::ring_of(&settings.rollout, &policy.name, device));
        let place = policy.winner.map(|policy| Place { policy, ring });
        let present = (governor.map(|governor| &governor.policy.name), self.group(&group).map(|group| &group.name));
        let settle_of = |policy: &str| {
            let governor = self.around.governors.iter().find(|governor| &*governor.policy.name == policy);
            governor.and_then(|governor| governor.policy.settings.as_ref().ok()).map(|settings| settings.settle)
        };
        let moved = settle::moved(device, present, settle_of, self.around.now);
        Some(Governed { position, device, group, policy, place, limit, expected: None, moved })
    }

    /// Works out how far the updates have come, with what all the devices tell. Without it what was written down counts.
    pub(super) fn advance(&mut self, governed: &[Governed<'a>], look: &mut Look) {
        let placed: Vec<Placed<'_>> = governed.iter().map(|governed| (governed.device, governed.place)).collect();
        let pardoned = self.pardoned(governed);
        let Surroundings { snapshot, now, .. } = self.around;
        let rings = &mut self.around.rings;
        *rings = Rings::of(snapshot, &self.selection.policies, &placed, &pardoned, now, look);
        durations::advance(rings.progress_mut(), &snapshot.updates, &placed, now);
        self.memory.fit = Fit::of(&self.selection.policies, rings, snapshot);
    }

    /// Failures of updates that are still offered, before which somebody has said to try again.
    fn pardoned(&mut self, governed: &[Governed<'a>]) -> Pardoned<'a> {
        let Self { around, memory, .. } = self;
        let mut pardoned = Pardoned::new();
        for governed in governed.iter().filter(|governed| !governed.device.failures.is_empty()) {
            let device = governed.device;
            for offer in device.report.iter().flat_map(|report| &report.offers) {
                let Some(update) = around.snapshot.updates.get(offer.update) else { continue };
                let Some(failure) = gates::failure(device, &update.id) else { continue };
                let ruling = memory.ruling(around, governed, offer.update);
                let before = ruling.and_then(|ruling| ruling.retry_failed_before);
                if before.is_some_and(|before| failure.last < before) {
                    pardoned.insert((&device.name, &update.id));
                }
            }
        }
        pardoned
    }

    /// Everything about one device but its turn, and what the specs say of it.
    pub(super) fn examine(&mut self, governed: Governed<'a>, look: &mut Look) -> (DevicePlan, Say) {
        let Self { around, memory, selection } = self;
        let device = governed.device;
        look.at(gates::stale_from(device));
        look.at(device.current.as_ref().map(gates::released));
        look.at(around.settles(&governed));
        let opening = memory.opening(around, &governed, None);
        look.at(opening.as_ref().and_then(|opening| opening.changes));

        let report = device.report.as_ref().ok();
        let mut looked = std::mem::take(&mut memory.looked);
        let windows = opening.clone();
        if let Some(report) = report {
            let asked = around.asked(&governed, report, device.online, device.current.as_ref(), opening);
            let verb = around.verb_of_offers(&governed);
            let offered = report.offers.iter().map(|offer| Asking::Offered(offer, verb));
            let installed = report.removable.iter().map(|update| Asking::Installed(*update));
            for asking in offered.chain(installed).chain(report.restart.map(Asking::Restart)) {
                looked.extend(memory.look_at(around, &governed, &asked, asking, look));
            }
        }
        if memory.has_twins(&looked) {
            block_twins(&mut looked);
        }
        // What is free alone may wait for others of the device, and is not free any more from then on.
        for last in looked.iter().filter(|one| one.plan.blocked.is_none()).filter_map(|one| one.last_start) {
            look.at(Some(later(last.at, SignedDuration::from_nanos(1))).filter(|_| last.at < Timestamp::MAX));
        }
        one_verb(&mut looked);
        let known =
            governed.group.winner.is_some() && governed.group.doubt.is_none() && governed.policy.winner.is_some();
        let install = memory.install(around, &governed, windows.as_ref(), &mut looked);
        // Less is expected to fit from then on.
        let last = install.as_ref().map(|install| install.not_after).filter(|last| *last < Timestamp::MAX);
        look.at(last.map(|last| later(last, SignedDuration::from_nanos(1))));
        let report = report.filter(|_| known && !gates::is_stale(device, around.now));
        let compliance = compliance(report, &looked, around.now);
        let due = due(&looked, around.now);
        memory.note_outlook(around, &governed, &looked);
        let mut updates: Vec<UpdatePlan> = Vec::with_capacity(looked.len());
        updates.extend(looked.drain(..).map(|looked| looked.plan));
        memory.looked = looked;
        let says = device.report.as_ref().map_or(Say::Unknown, |report| {
            // A download is no install: nothing has been allowed yet that could do harm.
            if around.verb_of_offers(&governed) == Verb::Download {
                return Say::No;
            }
            let refusal = around.asked(&governed, report, device.online, None, None).refusal;
            blast::of_device(updates.iter(), refusal.as_ref().map(|refusal| &**refusal.blocked()))
        });
        let plan = DevicePlan {
            name: device.name.clone(),
            policy: around.governor(&governed).map(|governor| governor.policy.name.clone()),
            group: governed.group.winner.and_then(|place| Some(selection.groups.get(place)?.name.clone())),
            install,
            compliance,
            due,
            updates,
            shadowed_policies: governed.policy.shadowed,
            shadowed_groups: governed.group.shadowed,
            moved: governed.moved,
            eligible: device.eligible,
        };
        (plan, says)
    }

    /// What keeps the device at `position` from beginning with what it holds a `claim` for, that claim and its session
    /// aside.
    pub(super) fn refusal_of_claimed(&mut self, position: usize, claim: &Claim) -> Option<Arc<Blocked>> {
        let Some(governed) = self.governed(position) else { return Some(Arc::new(Blocked::UnknownDevice)) };
        let Ok(report) = &governed.device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let governed = Governed { limit: claim.limit, expected: Some(claim.expected), ..governed };
        let Self { around, memory, .. } = self;
        if let Some(other) =
            around.governor(&governed).map(|governor| &governor.policy.name).filter(|name| **name != claim.policy)
        {
            return Some(Arc::new(Blocked::PolicyChanged { claimed: claim.policy.clone(), governs: other.clone() }));
        }
        if let Some(held) = around.held(&governed) {
            return Some(held);
        }
        let opening = memory.opening(around, &governed, None);
        let asked = around.asked(&governed, report, true, None, opening);
        let mut look = Look::after(around.now);
        claim.updates.iter().find_map(|id| {
            let asking: Vec<Asking<'_>> = match claim.verb {
                Verb::Install | Verb::Download => {
                    report.offers.iter().map(|offer| Asking::Offered(offer, claim.verb)).collect()
                }
                Verb::Uninstall => report.removable.iter().map(|update| Asking::Installed(*update)).collect(),
                Verb::Restart => report.restart.into_iter().map(Asking::Restart).collect(),
            };
            let is_it =
                |asking: &Asking<'_>| around.snapshot.updates.get(asking.update()).is_some_and(|it| it.id == *id);
            let asking: Vec<Asking<'_>> = asking.into_iter().filter(is_it).collect();
            if asking.is_empty() {
                return Some(Arc::new(Blocked::NotOffered { update: id.clone() }));
            }
            asking.into_iter().find_map(|asking| {
                let looked = memory.look_at(around, &governed, &asked, asking, &mut look);
                looked.map_or_else(|| Some(Arc::new(Blocked::Stays { update: id.clone() })), |it| it.plan.blocked)
            })
        })
    }

    /// What keeps the device at `position` from restarting after it has carried out what it holds a `claim` for. Nothing
    /// is asked of its updates: they are installed.
    pub(super) fn refusal_of_restart(&mut self, position: usize, claim: &Claim) -> Option<Arc<Blocked>> {
        let Some(governed) = self.governed(position) else { return Some(Arc::new(Blocked::UnknownDevice)) };
        let device = governed.device;
        let Ok(report) = &device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let around = &self.around;
        let Some(governor) = around.governor(&governed) else { return Some(Arc::new(Blocked::NoPolicy)) };
        let policy = &governor.policy.name;
        if *policy != claim.policy {
            let (claimed, governs) = (claim.policy.clone(), policy.clone());
            return Some(Arc::new(Blocked::PolicyChanged { claimed, governs }));
        }
        if let Some(refusal) = around.asked(&governed, report, true, None, None).refusal {
            return Some(refusal.blocked().clone());
        }
        // Else it would have been refused already.
        let resolved = governor.resolved.as_ref().ok()?;
        if resolved.settings.restart.when == RestartWhen::Never {
            return Some(Arc::new(Blocked::NeverRestarts { policy: policy.clone() }));
        }
        let opens = resolved.windows.is_open(zone(device), around.now).err()?;
        Some(Arc::new(Blocked::RestartTooLate { opens }))
    }

    fn group(&self, claimants: &Claimants) -> Option<&'a Group> {
        claimants.winner.and_then(|place| self.selection.groups.get(place).copied())
    }
}

/// The device's own zone, if it has one that is understood.
fn zone(device: &Device) -> Option<&TimeZone> {
    device.zone.as_ref().and_then(|zone| zone.as_ref().ok())
}
