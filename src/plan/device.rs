//! One device: its group, its policy, each update's decision, state and refusal, and whether it complies.
//!
//! In: a device and everything around it. Out: its [`DevicePlan`], in which `install` holds what it would install if it
//! were its turn; `rollout` decides whose turn it is. A claimed install that asks to begin is asked about here, too.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;

use super::approval::{Line, Ruling, Verdict};
use super::bits::Bits;
use super::blast::{self, Say};
use super::catch_up::{self, Outside};
use super::deadlines::Deadlines;
use super::durations::{self, Share};
use super::fit::{Bound, Fit, Fitting, Together};
use super::forecast::{self, Outlook};
use super::gates::{self, Around, Case, DeviceRefusal, LastStart};
use super::look::Look;
use super::model::{
    Claim, Device, DeviceReport, Group, Mode, Moved, Name, Offer, Restart, Snapshot, Update, UpdateId, Window,
};
use super::outcome::{Blocked, Compliance, DecidedBy, Decision, DevicePlan, Due, Install, State, UpdatePlan};
use super::policy::{Calendars, Governor, Opening, Starts};
use super::rings::{self, Pardoned, Place, Placed, Rings};
use super::rulings::Rulings;
use super::select::{Claimants, Selection};
use super::settle;
use super::sightings::Sightings;
use super::window::later;

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

/// Which of a device's updates is looked at.
#[derive(Clone, Copy)]
enum Asking<'o> {
    /// One that it offers, and what would be done with it.
    Offered(&'o Offer, Verb),
    /// One that is installed and can be taken back.
    Installed(UpdateId),
    /// The restart that the device waits for.
    Restart(UpdateId),
}

/// One update of a device, looked at from all sides.
struct Looked<'a> {
    plan: UpdatePlan,
    /// The number of its id.
    id: usize,
    /// It, or an earlier version of it, is approved and missing.
    is_missing: bool,
    /// What would be done.
    verb: Verb,
    /// The last instant at which it may start alone.
    last_start: Option<LastStart>,
    /// The window of its own that it follows; none where it follows those of its policy.
    own_opening: Option<Rc<Opening<'a>>>,
    /// A restart may follow if it starts by the policy's windows.
    follows_policy: bool,
    /// How long it is expected to take.
    share: Share,
    /// Since when it is known; none for what is not offered.
    since: Option<Timestamp>,
    /// Until when it must be installed, of what is missing or ages.
    deadline: Option<Timestamp>,
    /// When the clock alone approves it.
    approved_at: Option<Timestamp>,
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

impl<'a> Surroundings<'a> {
    /// By what was written down: specs wait for a person, and the device was not eligible by those that are in force.
    fn held(&self, governed: &Governed<'_>) -> Option<Arc<Blocked>> {
        let policy = self.governor(governed)?.policy;
        let pending =
            policy.progress.blast.pending.as_ref().filter(|_| !blast::was_eligible(governed.device, self.now))?;
        Some(Arc::new(Blocked::BlastLimit { policy: policy.name.clone(), devices: pending.devices }))
    }

    /// From when on the device's policy and group act on it, if it had others before.
    fn settles(&self, governed: &Governed<'_>) -> Option<Timestamp> {
        let moved = governed.moved.as_ref()?;
        let settings = self.governor(governed)?.policy.settings.as_ref().ok()?;
        Some(later(moved.since, settings.settle))
    }

    /// Whether an update may start though its windows do not let it; none where they do, or nothing catches up. `since`:
    /// when it was old enough to be approved.
    fn outside(
        &self,
        governed: &Governed<'_>,
        asked: &Asked<'_, 'a>,
        offer: &Offer,
        (opening, starts): (&Opening<'a>, &Starts),
        since: Timestamp,
    ) -> Option<Outside> {
        let settings = self.governor(governed)?.resolved.as_ref().ok()?.settings.catch_up?;
        let closed = starts.last.as_ref().err()?;
        let windows = (opening.freezes.as_slice(), &**closed);
        let since = since.max(offer.missing_since);
        let device = (governed.device, asked.around.report);
        catch_up::outside(settings, device, windows, since, governed.limit, self.now)
    }

    fn asked<'g>(
        &'g self,
        governed: &'g Governed<'a>,
        report: &'g DeviceReport,
        online: bool,
        claim: Option<&'g Claim>,
        opening: Option<Rc<Opening<'a>>>,
    ) -> Asked<'g, 'a> {
        let no_group = match (&governed.group.doubt, governed.group.winner) {
            (Some(doubt), _) => Some(doubt.clone()),
            (None, None) => Some(Arc::new(Blocked::NoGroup)),
            (None, Some(_)) => None,
        };
        let governor = self.governor(governed);
        let progress = governed.policy.winner.and_then(|policy| self.rings.progress(policy));
        let paused = progress.and_then(|progress| progress.paused);
        let (now, device) = (self.now, governed.device);
        let settles = self.settles(governed);
        let around = Around { now, device, report, online, claim, no_group, governor, paused, settles };
        Asked { refusal: around.refusal(), is_stale: gates::is_stale(device, now), around, opening }
    }

    /// Whether its policy lets workstations catch up.
    fn catches_up(&self, governed: &Governed<'_>) -> bool {
        let resolved = self.governor(governed).and_then(|governor| governor.resolved.as_ref().ok());
        resolved.is_some_and(|resolved| resolved.settings.catch_up.is_some())
    }

    /// What is done with what the device offers.
    fn verb_of_offers(&self, governed: &Governed<'_>) -> Verb {
        let resolved = self.governor(governed).and_then(|governor| governor.resolved.as_ref().ok());
        match resolved.map(|resolved| resolved.settings.mode) {
            Some(Mode::DownloadOnly) => Verb::Download,
            Some(Mode::Audit | Mode::Install | Mode::InstallImmediately) | None => Verb::Install,
        }
    }

    /// What the policy says of a restart that is due.
    fn restart_decision(&self, governed: &Governed<'_>) -> (Decision, Option<Arc<DecidedBy>>) {
        let governor = self.governor(governed);
        let resolved = governor.and_then(|governor| Some((governor, governor.resolved.as_ref().ok()?)));
        let Some((governor, resolved)) = resolved else { return (Decision::AwaitingApproval, None) };
        let when = resolved.settings.restart.when;
        let decision = if when == RestartWhen::Never { Decision::AwaitingApproval } else { Decision::Approved };
        (decision, Some(Arc::new(DecidedBy::Restart { policy: governor.policy.name.clone(), when })))
    }

    /// Until when updates must be installed on the device, if its policy can be read.
    fn deadlines(&self, governed: &Governed<'_>) -> Option<&'a Deadlines> {
        Some(&self.governor(governed)?.policy.settings.as_ref().ok()?.deadlines)
    }

    /// From when on an update can be installed as far as it goes by itself, in seconds; never if only a person, or the device,
    /// can help: nor where updates are downloaded only.
    fn ready(&self, place: Place, one: &Looked<'a>) -> Option<i64> {
        match one.plan.blocked.as_deref() {
            _ if one.verb == Verb::Download => None,
            // Whoever has a grant goes on.
            _ if one.plan.state == State::Installing => Some(i64::MIN),
            Some(Blocked::Aging { until } | Blocked::RingWaits { until: Some(until), .. }) => Some(until.as_second()),
            Some(Blocked::RingWaits { ring, until: None, .. }) => {
                let rings = &self.governors.get(place.policy)?.policy.settings.as_ref().ok()?.rollout.rings;
                let before = rings.iter().take(place.ring).skip_while(|one| one.name != *ring);
                Some(before.fold(forecast::today(self.now), |at, ring| at.saturating_add(ring.soak.as_secs())))
            }
            Some(blocked) if !blocked.is_passing() => None,
            Some(_) | None => Some(i64::MIN),
        }
    }

    fn governor(&self, governed: &Governed<'_>) -> Option<&Governor<'a>> {
        governed.policy.winner.and_then(|place| self.governors.get(place))
    }
}

impl<'a> Memory<'a> {
    /// None for an update that is installed and stays, and for one of another catalogue.
    fn look_at(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'a>,
        asked: &Asked<'_, 'a>,
        asking: Asking<'_>,
        look: &mut Look,
    ) -> Option<Looked<'a>> {
        let place = asking.update();
        let update = around.snapshot.updates.get(place)?;
        let id = around.snapshot.updates.id_of(place)?;
        let ruling = match asking {
            Asking::Offered(..) | Asking::Installed(_) => self.ruling(around, governed, place),
            Asking::Restart(_) => None,
        };
        look.at(ruling.as_ref().and_then(|ruling| ruling.until));
        let (mut known_since, mut old_enough_since, mut lacking) = (None, None, None);
        let (offer, verb, verdict) = match asking {
            Asking::Offered(offer, verb) => {
                let since = self.sightings.since(governed.position, offer);
                known_since = Some(since);
                let lacking_since = self.sightings.lacking_since(offer, since);
                lacking = Some(lacking_since);
                let verdict = ruling.as_ref().map(|ruling| ruling.on(update, since, lacking_since, around.now));
                if around.catches_up(governed) {
                    old_enough_since = ruling.as_ref().and_then(|it| it.old_enough_since(update, lacking_since));
                }
                (Some(offer), verb, verdict)
            }
            Asking::Installed(_) => (None, Verb::Uninstall, Some(ruling.as_ref()?.on_installed()?)),
            Asking::Restart(_) => (None, Verb::Restart, None),
        };
        let own_window = ruling.as_ref().and_then(|ruling| ruling.window.as_ref());
        let own_opening = own_window.and_then(|_| self.opening(around, governed, own_window));
        let opening = if own_window.is_some() { own_opening.as_deref() } else { asked.opening.as_deref() };
        look.at(own_opening.as_ref().and_then(|opening| opening.changes));
        look.at(ruling.as_ref().and_then(|ruling| ruling.retry_from));
        look.at(verdict.as_ref().and_then(|verdict| verdict.approved_at));

        let share = if verb == Verb::Install { self.share(governed, id, update) } else { None };
        let measured = opening.and_then(|opening| self.starts(governed, opening, share));
        let starts = opening.map(|opening| measured.as_deref().unwrap_or(opening.at_limit()));
        let outside = offer
            .zip(opening.zip(starts))
            .zip(old_enough_since)
            .and_then(|((offer, windows), since)| around.outside(governed, asked, offer, windows, since));
        look.at(outside.as_ref().and_then(|outside| outside.changes));

        let tried_again = ruling.as_ref().and_then(|ruling| ruling.retry_failed_before);
        let case = Case {
            update,
            verb,
            offer,
            stopped: around.rings.stopped(id, tried_again),
            ring_waits: governed.place.and_then(|place| around.rings.waits(place, id)),
            ruling: ruling.as_deref(),
            verdict: verdict.as_ref(),
            opening,
            starts,
            outside: outside.as_ref(),
        };
        let (blocked, eligible_at) = asked.around.refusal_of(&case, asked.refusal.as_ref()).unzip();
        let eligible_at = eligible_at.flatten();
        look.at(eligible_at);
        let (decision, decided_by) = match asking {
            Asking::Offered(..) | Asking::Installed(_) => (
                verdict.as_ref().map_or(Decision::AwaitingApproval, |verdict: &Verdict| verdict.decision),
                ruling.as_ref().and_then(|ruling| ruling.by.clone()),
            ),
            Asking::Restart(_) => around.restart_decision(governed),
        };
        let plan = UpdatePlan {
            update: place,
            state: if asked.is_stale { State::Unknown } else { state(governed.device, update, asking, decision) },
            decision,
            decided_by,
            blocked,
            eligible_at,
        };
        let missing_from = verdict.as_ref().and_then(|verdict| verdict.missing_from);
        look.at(missing_from);
        let is_missing = missing_from.is_some_and(|from| from <= around.now);
        let last_start = gates::last_start(&asked.around, &case).ok();
        let follows_policy = gates::follows_policy(&asked.around, &case);
        let approved_at = verdict.as_ref().and_then(|verdict| verdict.approved_at);
        let deadlines = around.deadlines(governed).filter(|_| is_missing || approved_at.is_some());
        let deadline = deadlines.zip(lacking).and_then(|(deadlines, since)| deadlines.of(update, since));
        look.at(deadline);
        let since = known_since;
        Some(Looked {
            plan,
            id,
            is_missing,
            verb,
            last_start,
            own_opening,
            follows_policy,
            share,
            since,
            deadline,
            approved_at,
        })
    }

    /// What the device has before it, if it has a deadline.
    fn note_outlook(&mut self, around: &Surroundings<'a>, governed: &Governed<'a>, looked: &[Looked<'a>]) {
        let Some(place) = governed.place.filter(|_| !governed.device.retired) else { return };
        let Some(deadline) = looked.iter().filter_map(|one| one.deadline).min() else { return };
        let Some(expectation) = self.fit.expectation(place.policy) else { return };
        let counts = |one: &&Looked<'a>| one.is_missing || one.approved_at.is_some();
        let takes = expectation.install(looked.iter().filter(counts).map(|one| one.share));
        let mut ready = Some(i64::MIN);
        for one in looked.iter().filter(|one| one.deadline.is_some()) {
            let from = around.ready(place, one).filter(|from| one.deadline.is_some_and(|by| *from <= by.as_second()));
            ready = ready.zip(from).map(|(a, b)| a.max(b));
        }
        let outlook = Outlook { deadline: deadline.as_second(), ready, takes: takes.as_secs() };
        if let Some(outlooks) = self.outlooks.get_mut(place.policy) {
            outlooks.push(outlook);
        }
    }

    /// What is expected of an update on a device: all of the limit where it failed there before.
    fn share(&self, governed: &Governed<'a>, id: usize, update: &Update) -> Share {
        let share = self.fit.expectation(governed.policy.winner?)?.share(id, update.classification)?;
        let failed = gates::failure(governed.device, &update.id).is_some_and(|failure| failure.attempts > 0);
        (!failed).then_some(share)
    }

    /// Whether an install of an update with such a share may start, or one that was claimed; none where it is expected to
    /// take its limit.
    fn starts(&mut self, governed: &Governed<'a>, opening: &Opening<'a>, share: Share) -> Option<Rc<Starts>> {
        let expected = match governed.expected {
            Some(expected) => expected,
            None => self.fit.expectation(governed.policy.winner?)?.install(std::iter::once(Some(share?))),
        };
        Some(self.fit.starts(opening, expected))
    }

    /// All that nothing blocks and that fits into what is left of its windows, in one order; an id that a report tells
    /// twice, once. The others are blocked. `windows` are the policy's.
    fn install(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'a>,
        windows: Option<&Rc<Opening<'a>>>,
        looked: &mut [Looked<'a>],
    ) -> Option<Install> {
        let is_free = |looked: &Looked<'a>| looked.plan.blocked.is_none();
        // Whatever is free is of one verb.
        let verb = looked.iter().find(|looked| is_free(looked))?.verb;
        let governor = around.governor(governed)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let mut offered: Vec<Together<'a>> = Vec::new();
        for one in looked.iter().filter(|looked| is_free(looked)) {
            let last = one.last_start?;
            let bound = match one.own_opening.as_ref().or(windows) {
                Some(opening) if last.by_windows => Bound::Windows(opening.clone()),
                _ => Bound::Until(last.at),
            };
            match offered.iter_mut().find(|other| other.number == one.id) {
                None => {
                    let (number, share, since) = (one.id, one.share, one.since);
                    offered.push(Together { number, share, since, bound, twins: vec![] });
                }
                Some(twin) => {
                    twin.share = twin.share.zip(one.share).map(|(a, b)| a.max(b));
                    twin.since = twin.since.into_iter().chain(one.since).min();
                    twin.twins.push(bound);
                }
            }
        }
        let Fitting { taken, left_out, not_after, limit, expected } =
            self.fit.choose(governed.policy.winner?, offered)?;
        for one in looked.iter_mut().filter(|looked| is_free(looked) && left_out.contains(&looked.id)) {
            // It waits for the others of the install, not for the clock alone.
            one.plan.blocked = one.own_opening.as_ref().or(windows).map(|opening| opening.closed().clone());
        }
        let keeps_to_policy =
            |one: &Looked<'a>| one.follows_policy && one.last_start.is_some_and(|last| last.by_windows);
        let restarts = looked.iter().filter(|looked| is_free(looked)).all(keeps_to_policy);
        let restart_until = windows.filter(|_| restarts).and_then(|windows| windows.open_until());
        let catalogue = &around.snapshot.updates;
        Some(Install {
            verb,
            updates: taken.iter().map(|one| catalogue.id_at(one.number).cloned()).collect::<Option<_>>()?,
            since: taken.iter().filter_map(|one| one.since).collect(),
            policy: governor.policy.name.clone(),
            dependencies: resolved.settings.dependencies,
            not_after,
            limit,
            expected,
            restart: restart_rule(&resolved.settings.restart, verb, restart_until),
        })
    }

    /// Whether a device's report tells an id twice.
    fn has_twins(&mut self, looked: &[Looked<'_>]) -> bool {
        let new = looked.iter().filter(|looked| self.ids.insert(looked.id)).count();
        for looked in looked {
            self.ids.remove(looked.id);
        }
        new < looked.len()
    }

    fn ruling(&mut self, around: &Surroundings<'a>, governed: &Governed<'_>, update: UpdateId) -> Option<Rc<Ruling>> {
        let group = governed.group.winner.filter(|_| governed.group.doubt.is_none())?;
        self.rulings.get(group, around.lines.get(group)?, update)
    }

    /// Worked out once for each policy, own window and zone.
    fn opening(
        &mut self,
        around: &Surroundings<'a>,
        governed: &Governed<'a>,
        own: Option<&(Name, Name)>,
    ) -> Option<Rc<Opening<'a>>> {
        let governor = around.governor(governed)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let (zone, limit, now) = (zone(governed.device), governed.limit, around.now);
        let install_limit = resolved.settings.install_limit;
        let work_out = |number: Option<usize>| {
            let opening = match own {
                None => resolved.windows.opening(zone, limit, now),
                Some((window, group)) => {
                    match Calendars::own(window, group, &governor.policy.name, install_limit, &around.windows) {
                        Ok(calendars) => calendars.opening(zone, limit, now),
                        Err(why) => Opening::none(why, limit, now),
                    }
                }
            };
            Rc::new(opening.numbered(number))
        };
        let zone_name = match zone {
            None => None,
            // Only windows on the device's clock depend on its zone.
            Some(_) if own.is_none() && resolved.windows.needs_zone().is_none() => None,
            Some(zone) => match zone.iana_name() {
                Some(name) => Some(name),
                // Nothing to know it by again.
                None => return Some(work_out(None)),
            },
        };
        let key = (governed.policy.winner?, limit, own.cloned(), zone_name);
        let number = self.openings.len();
        Some(self.openings.entry(key).or_insert_with(|| work_out(Some(number))).clone())
    }
}

/// What blocks an update blocks every other that the report tells under the same id: the order goes by ids.
fn block_twins(looked: &mut [Looked<'_>]) {
    let ids = looked.iter().enumerate();
    let mut ids: Vec<(usize, Verb, usize)> = ids.map(|(place, looked)| (looked.id, looked.verb, place)).collect();
    ids.sort_unstable();
    let twins = ids.chunk_by(|(id, verb, _), other| (*id, *verb) == (other.0, other.1));
    let twins = twins.filter(|twins| twins.len() > 1);
    for twins in twins {
        let plan = |place: usize| looked.get(place).map(|looked| &looked.plan);
        let blocked = twins.iter().filter_map(|(_, _, place)| plan(*place)).find(|plan| plan.blocked.is_some());
        let Some((blocked, eligible_at)) = blocked.map(|plan| (plan.blocked.clone(), plan.eligible_at)) else {
            continue;
        };
        for (_, _, place) in twins {
            if let Some(looked) = looked.get_mut(*place).filter(|looked| looked.plan.blocked.is_none()) {
                (looked.plan.blocked, looked.plan.eligible_at) = (blocked.clone(), eligible_at);
            }
        }
    }
}

/// What is worse to overlook comes first: a device that is not heard of, an install at work, a decision against.
fn state(device: &Device, update: &Update, asking: Asking<'_>, decision: Decision) -> State {
    let claim = device.current.as_ref().filter(|claim| claim.updates.contains(&update.id));
    let claim = claim.filter(|claim| match asking {
        Asking::Offered(..) => matches!(claim.verb, Verb::Install | Verb::Download),
        Asking::Installed(_) => claim.verb == Verb::Uninstall,
        Asking::Restart(_) => claim.verb == Verb::Restart,
    });
    // An order that was out of date or withdrawn is no failure of the update.
    let failed = || gates::failure(device, &update.id).is_some_and(|failure| failure.attempts > 0);
    match (claim, decision, asking) {
        (Some(claim), _, _) if claim.granted => State::Installing,
        (Some(_), _, _) => State::Pending,
        (None, _, Asking::Installed(_) | Asking::Restart(_)) if failed() => State::Failed,
        (None, _, Asking::Restart(_)) => State::RestartRequired,
        (None, _, Asking::Installed(_)) => State::Installed,
        (None, Decision::Ignored | Decision::Waived | Decision::Remove, Asking::Offered(..)) => State::Ignored,
        (None, _, Asking::Offered(offer, _)) if offer.held => State::Held,
        (None, _, Asking::Offered(..)) if failed() => State::Failed,
        (None, _, Asking::Offered(offer, _)) if offer.downloaded => State::Downloaded,
        (None, _, Asking::Offered(..)) => State::Missing,
    }
}

/// An order has one verb: what is to be taken back goes first, then what is installed, then a restart alone.
fn one_verb(looked: &mut [Looked<'_>]) {
    let rank = |verb: Verb| match verb {
        Verb::Uninstall => 0,
        Verb::Install | Verb::Download => 1,
        Verb::Restart => 2,
    };
    let is_free = |looked: &Looked<'_>| looked.plan.blocked.is_none();
    let first = looked.iter().filter(|looked| is_free(looked)).map(|looked| rank(looked.verb)).min();
    let Some(first) = first else { return };
    for looked in looked.iter_mut().filter(|looked| is_free(looked) && rank(looked.verb) > first) {
        looked.plan.blocked = Some(Arc::new(Blocked::OthersFirst));
    }
}

/// What follows an order, if restarts may begin `until` then.
fn restart_rule(restart: &Restart, verb: Verb, until: Option<Timestamp>) -> RestartRule {
    let seconds = |duration: SignedDuration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    match until {
        Some(not_after) if restart.when != RestartWhen::Never && verb != Verb::Download => RestartRule {
            when: restart.when,
            not_after,
            within_seconds: seconds(restart.within),
            warning_seconds: seconds(restart.warning),
            message: restart.message.clone(),
            limit: restart.limit,
        },
        _ => RestartRule::never(),
    }
}

impl Asking<'_> {
    fn update(self) -> UpdateId {
        match self {
            Self::Offered(offer, _) => offer.update,
            Self::Installed(update) | Self::Restart(update) => update,
        }
    }
}

/// The device's own zone, if it has one that is understood.
fn zone(device: &Device) -> Option<&TimeZone> {
    device.zone.as_ref().and_then(|zone| zone.as_ref().ok())
}

/// Whether a device complies, by a report that is believed, recent, and of a device with a policy and a group.
///
/// An update that is approved and held back on the device itself is missing: the hold says why it is not installed, not
/// that it need not be. What nobody approved, or somebody decided against, does not count. A report that may not tell
/// everything (a repository that could not be read) is never up to date, as one that was cut is not; nor is a device of
/// whose updates it cannot be told whether they are approved. What may still be missing, because its deadline is to come, is no
/// breach; removals and restarts have no deadline.
fn compliance(report: Option<&DeviceReport>, updates: &[Looked<'_>], now: Timestamp) -> Compliance {
    let Some(report) = report else { return Compliance::Unknown };
    let missing = || updates.iter().filter(|update| update.is_missing);
    if report.truncated {
        Compliance::Truncated
    } else if missing().any(|update| update.deadline.is_some_and(|by| by <= now)) {
        Compliance::DeadlineMissed
    } else if missing().any(|update| update.deadline.is_none()) {
        Compliance::UpdatesMissing
    } else if updates.iter().any(|update| update.verb == Verb::Uninstall) {
        Compliance::RemovalDue
    } else if report.restart_required == Tristate::Yes {
        Compliance::RestartRequired
    } else if report.problems.iter().any(|code| code.hides_updates())
        || updates.iter().any(|update| update.plan.blocked.as_ref().is_some_and(|blocked| blocked.is_doubt()))
    {
        Compliance::Unknown
    } else if missing().next().is_some() {
        Compliance::WithinDeadline
    } else {
        Compliance::UpToDate
    }
}

/// The earliest deadline of what is missing.
fn due(updates: &[Looked<'_>], now: Timestamp) -> Option<Due> {
    let missing = || updates.iter().filter(|update| update.is_missing);
    let at = missing().filter_map(|update| update.deadline).min()?;
    let of_it = missing().filter(|update| update.deadline == Some(at));
    Some(Due { at, overdue: at <= now, updates: of_it.map(|update| update.plan.update).collect() })
}
