//! One device: its group, its policy, each update's decision, state and refusal, and whether it complies.
//!
//! In: a device and everything around it. Out: its [`DevicePlan`], in which `install` holds what it would install if it
//! were its turn; `rollout` decides whose turn it is. A claimed install that asks to begin is asked about here, too.

mod ahead;
mod looked;
mod memory;
mod surroundings;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{RestartWhen, Verb};

use super::approval::Line;
use super::bits::Bits;
use super::blast::{self, Say};
use super::fit::Fit;
use super::forecast::Outlook;
use super::gates::{self, Around, DeviceRefusal};
use super::look::Look;
use super::model::{Catalogue, Claim, Device, Group, Moved, Name, Specs, UpdateId, Window};
use super::outcome::{Blocked, DevicePlan, UpdatePlan};
use super::policy::{Governor, Opening};
use super::rings::{self, Place, Rings};
use super::rulings::Rulings;
use super::select::{Claimants, Selection, Unknown};
use super::settle;
use super::sightings::Sightings;
use super::summary::is_organisations;
use super::window::later;
pub(super) use ahead::Obstacle;
use looked::{Asking, Looked, block_twins, compliance, due, one_verb};

/// What devices are looked at with, and what has been worked out for one and holds for others.
pub(super) struct Examiner<'a> {
    selection: Selection<'a>,
    pub(super) around: Surroundings<'a>,
    pub(super) memory: Memory<'a>,
}

/// What is the same whichever device is looked at.
pub(super) struct Surroundings<'a> {
    now: Timestamp,
    /// Every update that a device tells of.
    pub(super) updates: Cow<'a, Catalogue>,
    windows: BTreeMap<&'a str, &'a Window>,
    /// As in the selection's groups.
    lines: Vec<Line<'a>>,
    /// As in the selection's policies.
    pub(super) governors: Vec<Governor<'a>>,
    pub(super) rings: Rings<'a>,
}

/// What devices have in common, as far as it has been worked out.
pub(super) struct Memory<'a> {
    pub(super) sightings: Sightings,
    rulings: Rulings<'a>,
    openings: BTreeMap<OpeningKey, Rc<Opening<'a>>>,
    /// When the first of them is over.
    next_over: Option<Timestamp>,
    /// How many openings have got a number.
    numbered: usize,
    /// Names of zones that openings depend on, by numbers.
    zones: BTreeMap<String, usize>,
    fit: Fit,
    /// Empty but while the ids of a device's updates are looked through.
    ids: Bits,
    /// Empty, with room for a device's updates.
    looked: Vec<Looked<'a>>,
}

/// A policy by its place, how long an install may take, an update's own window with the group that gives it, and the
/// number of the device's zone where one is needed.
type OpeningKey = (usize, SignedDuration, Option<(Name, Name)>, Option<usize>);

/// A device's group, policy and ring.
#[derive(Clone)]
pub(super) struct Reign {
    pub(super) group: Claimants,
    pub(super) policy: Claimants,
    pub(super) place: Option<Place>,
    /// Groups whose rule cannot tell whether they have it.
    pub(super) unknown: Unknown,
    /// How much time an install is given.
    limit: SignedDuration,
    /// Since when it has them, if it had others before.
    moved: Option<Box<Moved>>,
}

/// A device with its group, its policy and its ring.
struct Governed<'g> {
    /// Its number.
    number: usize,
    device: &'g Device,
    reign: &'g Reign,
    /// How much time the install is given.
    limit: SignedDuration,
    /// How long it is expected to take, where it has been claimed.
    expected: Option<SignedDuration>,
}

/// What is asked of a device once, and of none of its updates again.
struct Asked<'g, 'a> {
    around: Around<'g>,
    refusal: Option<DeviceRefusal>,
    /// Which gates are asked of its updates.
    gates: gates::Asked,
    is_stale: bool,
    /// The policy's windows.
    opening: Option<Rc<Opening<'a>>>,
}

/// All about one device but its turn.
pub(super) struct Examined {
    pub(super) plan: DevicePlan,
    /// What the specs say of it.
    pub(super) says: Say,
    /// What it has before it, if it has a deadline.
    pub(super) outlook: Option<Outlook>,
}

impl<'a> Governed<'a> {
    fn of(number: usize, device: &'a Device, reign: &'a Reign) -> Self {
        Self { number, device, reign, limit: reign.limit, expected: None }
    }
}

impl<'a> Examiner<'a> {
    pub(super) fn new(specs: Specs<'a>, updates: Cow<'a, Catalogue>, now: Timestamp) -> Self {
        let windows: BTreeMap<&str, &Window> = specs.windows.iter().map(|one| (&*one.name, one)).collect();
        let groups: BTreeMap<&str, &Group> = specs.groups.iter().map(|one| (&*one.name, one)).collect();
        let selection = Selection::of(specs);
        Self {
            memory: Memory {
                fit: Fit::of(&selection.policies, &updates),
                sightings: Sightings::default(),
                rulings: Rulings::of(specs, selection.groups.len(), now),
                openings: BTreeMap::new(),
                next_over: None,
                numbered: 0,
                zones: BTreeMap::new(),
                ids: Bits::default(),
                looked: vec![],
            },
            around: Surroundings {
                now,
                lines: Line::all(&selection.groups),
                governors: selection.policies.iter().map(|policy| Governor::of(policy, &windows, &groups)).collect(),
                rings: Rings::recorded(&selection.policies, &updates),
                updates,
                windows,
            },
            selection,
        }
    }

    /// What is looked at from here on is looked at as of `now`.
    pub(super) fn renew(&mut self, now: Timestamp) {
        let Self { around, memory, .. } = self;
        around.now = now;
        if memory.next_over.is_some_and(|over| over <= now) {
            memory.openings.retain(|_, opening| opening.over.is_none_or(|over| now < over));
            memory.next_over = memory.openings.values().filter_map(|opening| opening.over).min();
            memory.fit.forget_starts();
        }
        memory.rulings.renew(&around.updates, now);
        memory.ids.grow(around.updates.ids());
    }

    /// How long the updates of a policy take is not what it was.
    pub(super) fn expect(&mut self, policy: usize) {
        let Self { around, memory, selection } = self;
        if let Some((policy_of, progress)) = selection.policies.get(policy).zip(around.rings.progress(policy)) {
            memory.fit.expect(policy, policy_of, &progress.durations, &around.updates);
        }
    }

    /// The policies, strongest first.
    pub(super) fn governors(&self) -> &[Governor<'a>] {
        &self.around.governors
    }

    /// The groups, strongest first, each with its parents.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&'a Group, &Line<'a>)> + Clone {
        self.selection.groups.iter().copied().zip(&self.around.lines)
    }

    /// Windows by name.
    pub(super) fn windows(&self) -> &BTreeMap<&'a str, &'a Window> {
        &self.around.windows
    }

    /// The group, policy and ring of a device.
    pub(super) fn reign(&mut self, device: &Device) -> Reign {
        let (group, unknown) = self.selection.group(device);
        let policy = self.selection.policy(device, &group);
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
        Reign { group, policy, place, unknown, limit, moved }
    }

    /// Whether that was written down of the device when it was planned.
    pub(super) fn is_written(&self, device: &Device, reign: &Reign) -> bool {
        let policy = reign.policy.winner.and_then(|place| self.around.governors.get(place));
        (device.last_policy.as_ref(), device.last_group.as_ref())
            == (policy.map(|governor| &governor.policy.name), self.group(&reign.group).map(|group| &group.name))
            && device.last_possible == self.selection.possible(device, &reign.group)
    }

    /// Numbers of the ids of updates that the device still offers, or after which a check failed, and of a restart that is due,
    /// after whose failure somebody has said to try again, or that it was seen to.
    pub(super) fn pardoned(&mut self, number: usize, device: &Device, reign: &Reign) -> Vec<usize> {
        let Self { around, memory, .. } = self;
        let mut pardoned = Vec::new();
        if device.failures.is_empty() {
            return pardoned;
        }
        let governed = Governed::of(number, device, reign);
        for (failure, update) in gates::checked(device) {
            let ruling = memory.ruling(around, &governed, update);
            let before = ruling.and_then(|ruling| ruling.retry_failed_before);
            if before.is_some_and(|before| failure.last < before) {
                pardoned.extend(around.updates.id_of(update));
            }
        }
        let offered = device.report.iter().flat_map(|report| report.offers.iter().map(|offer| offer.update));
        for place in offered.chain(device.report.iter().filter_map(|report| report.restart)) {
            let Some(update) = around.updates.get(place) else { continue };
            let Some(failure) = gates::failure(device, &update.id) else { continue };
            let ruling = memory.ruling(around, &governed, place);
            let before = ruling.and_then(|ruling| ruling.retry_failed_before);
            if before.is_some_and(|before| failure.last < before) {
                pardoned.extend(around.updates.id_of(place));
            }
        }
        pardoned
    }

    /// Before when failures of an update do not count on devices that are gone, of which no group can be told: somebody has said to try it
    /// again, in whichever group of the client. And from when on that is so of later ones.
    pub(super) fn tried_again(&mut self, update: UpdateId) -> (Option<Timestamp>, Option<Timestamp>) {
        let Self { around, memory, selection } = self;
        let (mut before, mut next) = (None, None);
        for (place, (group, line)) in selection.groups.iter().zip(&around.lines).enumerate() {
            // Those of the organisation's are asked by those that have one for a parent.
            if is_organisations(&group.name) {
                continue;
            }
            if let Some(ruling) = memory.rulings.get(&around.updates, place, line, update) {
                before = before.max(ruling.retry_failed_before);
                next = next.into_iter().chain(ruling.retry_from).min();
            }
        }
        (before, next)
    }

    /// Everything about one device but its turn. Of the updates of which the ids' numbers are `pardoned` failures do not count.
    pub(super) fn examine(
        &mut self,
        number: usize,
        device: &Device,
        (reign, pardoned): (&Reign, &[usize]),
        look: &mut Look,
    ) -> Examined {
        let Self { around, memory, selection } = self;
        let governed = Governed::of(number, device, reign);
        look.at(gates::stale_from(device));
        look.at(device.current.as_ref().map(gates::released));
        look.at(around.settles(&governed));
        look.at(memory.retry_of_unwanted(around, &governed));
        let opening = memory.opening(around, &governed, None);
        look.at(opening.as_ref().and_then(|opening| opening.changes));

        let report = device.report.as_ref().ok();
        let mut looked = std::mem::take(&mut memory.looked);
        let windows = opening.clone();
        if let Some(report) = report {
            let asked = around.asked(&governed, report, false, device.current.as_ref(), opening);
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
        let known = reign.group.winner.is_some() && reign.group.doubt.is_none() && reign.policy.winner.is_some();
        let install = memory.install(around, &governed, windows.as_ref(), &mut looked);
        // Less is expected to fit from then on.
        let last = install.as_ref().map(|install| install.not_after).filter(|last| *last < Timestamp::MAX);
        look.at(last.map(|last| later(last, SignedDuration::from_nanos(1))));
        let report = report.filter(|report| known && around.knows_applications(&governed, report));
        let report = report.filter(|_| !gates::is_stale(device, around.now));
        let compliance = compliance(report, &looked, around.now);
        let due = due(&looked, around.now);
        let outlook = memory.outlook(around, &governed, &looked, look);
        let checked = memory.checked(around, &governed, (&looked, pardoned), look);
        let mut updates: Vec<UpdatePlan> = Vec::with_capacity(looked.len() + checked.len());
        for Looked { plan, .. } in looked.drain(..) {
            updates.push(plan);
        }
        updates.extend(checked);
        memory.looked = looked;
        let says = device.report.as_ref().map_or(Say::Unknown, |report| {
            // A download is no install: nothing has been allowed yet that could do harm.
            if around.verb_of_offers(&governed) == Verb::Download {
                return Say::No;
            }
            let refusal = around.asked(&governed, report, false, None, None).refusal;
            blast::of_device(updates.iter(), refusal.as_ref().map(|refusal| &**refusal.blocked()))
        });
        let plan = DevicePlan {
            name: device.name.clone(),
            policy: around.governor(&governed).map(|governor| governor.policy.name.clone()),
            group: reign.group.winner.and_then(|place| Some(selection.groups.get(place)?.name.clone())),
            install,
            compliance,
            due,
            updates,
            shadowed_policies: names(&reign.policy.shadowed, |place| Some(&selection.policies.get(place)?.name)),
            shadowed_groups: names(&reign.group.shadowed, |place| Some(&selection.groups.get(place)?.name)),
            possible_groups: selection.possible(device, &reign.group),
            moved: reign.moved.clone(),
            eligible: device.eligible,
        };
        Examined { plan, says, outlook }
    }

    /// What keeps a device from beginning with what it holds a `claim` for, that claim and its session aside.
    pub(super) fn refusal_of_claimed(
        &mut self,
        number: usize,
        device: &Device,
        reign: &Reign,
        claim: &Claim,
    ) -> Option<Arc<Blocked>> {
        let Ok(report) = &device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let governed = Governed { number, device, reign, limit: claim.limit, expected: Some(claim.expected) };
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
            let is_it = |asking: &Asking<'_>| {
                around.updates.get(asking.update()).is_some_and(|it| it.id == *id && around.wants(&governed, it))
            };
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

    /// What keeps a device from restarting after it has carried out what it holds a `claim` for. Nothing is asked of its
    /// updates: they are installed.
    pub(super) fn refusal_of_restart(&self, device: &Device, reign: &Reign, claim: &Claim) -> Option<Arc<Blocked>> {
        let Ok(report) = &device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let around = &self.around;
        let governed = Governed::of(0, device, reign);
        let Some(governor) = around.governor(&governed) else { return Some(Arc::new(Blocked::NoPolicy)) };
        let policy = &governor.policy.name;
        if *policy != claim.policy {
            let (claimed, governs) = (claim.policy.clone(), policy.clone());
            return Some(Arc::new(Blocked::PolicyChanged { claimed, governs }));
        }
        let asked = around.asked(&governed, report, true, None, None);
        if let Some(refusal) = asked.refusal {
            return Some(refusal.blocked().clone());
        }
        // What is taken back is only gone once it has restarted.
        if let Some(paused) = asked.around.pause().filter(|_| claim.verb != Verb::Uninstall) {
            return Some(paused);
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

fn names<'n>(places: &[usize], name: impl Fn(usize) -> Option<&'n Name>) -> Vec<Name> {
    places.iter().filter_map(|place| name(*place).cloned()).collect()
}

/// The device's own zone, if it has one that is understood.
fn zone(device: &Device) -> Option<&TimeZone> {
    device.zone.as_ref().and_then(|zone| zone.as_ref().ok())
}
