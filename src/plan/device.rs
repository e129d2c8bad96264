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
use super::gates::{self, Around, Case, DeviceRefusal};
use super::look::Look;
use super::model::{
    Claim, Device, DeviceReport, Group, Mode, Name, Offer, Restart, Snapshot, Update, UpdateId, Window,
};
use super::outcome::{Blocked, Compliance, DecidedBy, Decision, DevicePlan, Install, State, UpdatePlan};
use super::policy::{Calendars, Governor, Opening};
use super::rings::{self, Pardoned, Place, Placed, Rings};
use super::select::{Claimants, Selection};
use super::sightings::Sightings;

/// What devices are looked at with, and what has been worked out for one and holds for others.
pub(super) struct Examiner<'a> {
    now: Timestamp,
    snapshot: &'a Snapshot,
    windows: BTreeMap<&'a str, &'a Window>,
    sightings: Sightings,
    selection: Selection<'a>,
    /// As in `selection.groups`.
    lines: Vec<Line<'a>>,
    /// As in `selection.policies`.
    governors: Vec<Governor<'a>>,
    openings: BTreeMap<OpeningKey<'a>, Rc<Opening>>,
    rulings: Rulings,
    rings: Rings,
}

/// A policy by its place, how long an install may take, an update's own window with the group that gives it, and the name of the device's zone where
/// one is needed.
type OpeningKey<'a> = (usize, SignedDuration, Option<(Name, Name)>, Option<&'a str>);

/// What each group says of each update, as far as somebody has asked.
struct Rulings {
    /// By the group's place, then the update's: the place of the ruling and one, or nothing yet.
    places: Vec<Vec<u32>>,
    rulings: Vec<Rc<Ruling>>,
}

/// A device with its group, its policy and its ring.
pub(super) struct Governed<'a> {
    device: &'a Device,
    group: Claimants,
    policy: Claimants,
    place: Option<Place>,
    /// How much time the install is given.
    limit: SignedDuration,
}

/// What is asked of a device once, and of none of its updates again.
struct Asked<'a> {
    report: &'a DeviceReport,
    online: bool,
    claim: Option<&'a Claim>,
    refusal: Option<DeviceRefusal>,
    /// The policy's windows.
    opening: Option<Rc<Opening>>,
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
struct Looked {
    plan: UpdatePlan,
    /// It, or an earlier version of it, is approved and missing.
    is_missing: bool,
    /// What would be done.
    verb: Verb,
    /// The last instant at which it may start.
    last_start: Option<Timestamp>,
    /// Until when a restart that follows may begin.
    restart_until: Option<Timestamp>,
}

impl Governed<'_> {
    /// Its policy and ring.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }
}

impl<'a> Examiner<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, now: Timestamp) -> Self {
        let windows: BTreeMap<&str, &Window> = snapshot.windows.iter().map(|one| (&*one.name, one)).collect();
        let groups: BTreeMap<&str, &Group> = snapshot.groups.iter().map(|one| (&*one.name, one)).collect();
        let selection = Selection::of(snapshot);
        Self {
            now,
            snapshot,
            sightings: Sightings::of(snapshot),
            lines: selection.groups.iter().map(|group| Line::of(group, &groups)).collect(),
            governors: selection.policies.iter().map(|policy| Governor::of(policy, &windows)).collect(),
            openings: BTreeMap::new(),
            rings: Rings::recorded(snapshot, &selection.policies),
            rulings: Rulings { places: vec![vec![]; selection.groups.len()], rulings: vec![] },
            windows,
            selection,
        }
    }

    /// When it looks.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// The policies, strongest first.
    pub(super) fn governors(&self) -> &[Governor<'a>] {
        &self.governors
    }

    /// The groups, strongest first, each with its parents.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&'a Group, &Line<'a>)> {
        self.selection.groups.iter().copied().zip(&self.lines)
    }

    /// Since when updates are known.
    pub(super) fn sightings(&self) -> &Sightings {
        &self.sightings
    }

    /// Windows by name.
    pub(super) fn windows(&self) -> &BTreeMap<&'a str, &'a Window> {
        &self.windows
    }

    /// The device's group, policy and ring.
    pub(super) fn governed(&mut self, device: &'a Device) -> Governed<'a> {
        let group = self.selection.group(device);
        let policy = self.selection.policy(device, self.group(&group));
        let governor = policy.winner.and_then(|place| self.governors.get(place));
        let settings = governor.and_then(|governor| governor.resolved.as_ref().ok());
        let limit = settings.map_or(SignedDuration::ZERO, |resolved| resolved.settings.install_limit);
        // Also of a policy whose windows are not there: what its devices tell must not count for another ring.
        let said = governor.and_then(|governor| Some((governor.policy, governor.policy.settings.as_ref().ok()?)));
        let ring = said.map_or(0, |(policy, settings)| rings::ring_of(&settings.rollout, &policy.name, device));
        let place = policy.winner.map(|policy| Place { policy, ring });
        Governed { device, group, policy, place, limit }
    }

    /// Works out how far the updates have come, with what all the devices tell. Without it what was written down counts.
    pub(super) fn advance(&mut self, governed: &[Governed<'a>], look: &mut Look) {
        let placed: Vec<Placed<'_>> = governed.iter().map(|governed| (governed.device, governed.place)).collect();
        let pardoned = self.pardoned(governed);
        self.rings = Rings::of(self.snapshot, &self.selection.policies, &placed, &pardoned, self.now, look);
    }

    /// Failures of updates that are still offered, before which somebody has said to try again.
    fn pardoned(&mut self, governed: &[Governed<'a>]) -> Pardoned<'a> {
        let mut pardoned = Pardoned::new();
        for governed in governed.iter().filter(|governed| !governed.device.failures.is_empty()) {
            let device = governed.device;
            for offer in device.report.iter().flat_map(|report| &report.offers) {
                let Some(update) = self.snapshot.updates.get(offer.update) else { continue };
                let Some(failure) = gates::failure(device, &update.id) else { continue };
                let ruling = self.ruling(governed, offer.update, update);
                let before = ruling.and_then(|ruling| ruling.retry_failed_before);
                if before.is_some_and(|before| failure.last < before) {
                    pardoned.insert((&device.name, &update.id));
                }
            }
        }
        pardoned
    }

    /// How far each policy's updates have come.
    pub(super) fn rings(&self) -> &Rings {
        &self.rings
    }

    /// Everything about one device but its turn.
    pub(super) fn examine(&mut self, governed: Governed<'a>, look: &mut Look) -> DevicePlan {
        let device = governed.device;
        look.at(gates::stale_from(device));
        look.at(device.current.as_ref().map(gates::released));
        let opening = self.opening(&governed, None);
        look.at(opening.as_ref().and_then(|opening| opening.changes));

        let report = device.report.as_ref().ok();
        let looked = report.map_or_else(Vec::new, |report| {
            let claim = device.current.as_ref();
            let refusal = self.around(&governed, report, device.online, claim).refusal();
            let asked = Asked { report, online: device.online, claim, refusal, opening };
            let mut looked: Vec<Looked> = Vec::with_capacity(report.offers.len());
            let verb = self.verb_of_offers(&governed);
            for offer in &report.offers {
                looked.extend(self.look_at(&governed, &asked, Asking::Offered(offer, verb), look));
            }
            for update in &report.removable {
                looked.extend(self.look_at(&governed, &asked, Asking::Installed(*update), look));
            }
            if let Some(restart) = report.restart {
                looked.extend(self.look_at(&governed, &asked, Asking::Restart(restart), look));
            }
            looked
        });
        let looked = one_verb(self.block_twins(looked));
        let known =
            governed.group.winner.is_some() && governed.group.doubt.is_none() && governed.policy.winner.is_some();
        let install = self.install(&governed, &looked);
        let report = report.filter(|_| known && !gates::is_stale(device, self.now));
        let compliance = compliance(report, &looked);
        let updates: Vec<UpdatePlan> = looked.into_iter().map(|looked| looked.plan).collect();
        DevicePlan {
            name: device.name.clone(),
            policy: self.governor(&governed).map(|governor| governor.policy.name.clone()),
            group: self.group(&governed.group).map(|group| group.name.clone()),
            install,
            compliance,
            updates,
            shadowed_policies: governed.policy.shadowed,
            shadowed_groups: governed.group.shadowed,
        }
    }

    /// What keeps the device from beginning with what it holds a `claim` for, that claim and its session aside.
    pub(super) fn refusal_of_claimed(&mut self, device: &'a Device, claim: &Claim) -> Option<Arc<Blocked>> {
        let Ok(report) = &device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let governed = Governed { limit: claim.limit, ..self.governed(device) };
        if let Some(other) =
            self.governor(&governed).map(|governor| &governor.policy.name).filter(|name| **name != claim.policy)
        {
            return Some(Arc::new(Blocked::PolicyChanged { claimed: claim.policy.clone(), governs: other.clone() }));
        }
        let refusal = self.around(&governed, report, true, None).refusal();
        let opening = self.opening(&governed, None);
        let asked = Asked { report, online: true, claim: None, refusal, opening };
        let mut look = Look::after(self.now);
        claim.updates.iter().find_map(|id| {
            let asking: Vec<Asking<'_>> = match claim.verb {
                Verb::Install | Verb::Download => {
                    report.offers.iter().map(|offer| Asking::Offered(offer, claim.verb)).collect()
                }
                Verb::Uninstall => report.removable.iter().map(|update| Asking::Installed(*update)).collect(),
                Verb::Restart => report.restart.into_iter().map(Asking::Restart).collect(),
            };
            let of_id = |asking: &Asking<'_>| self.id_of(asking.update()).is_some_and(|other| other == id);
            let asking: Vec<Asking<'_>> = asking.into_iter().filter(of_id).collect();
            if asking.is_empty() {
                return Some(Arc::new(Blocked::NotOffered { update: id.clone() }));
            }
            asking.into_iter().find_map(|asking| {
                let looked = self.look_at(&governed, &asked, asking, &mut look);
                looked.map_or_else(|| Some(Arc::new(Blocked::Stays { update: id.clone() })), |it| it.plan.blocked)
            })
        })
    }

    /// What keeps a device from restarting after it has carried out what it holds a `claim` for. Nothing is asked of its
    /// updates: they are installed.
    pub(super) fn refusal_of_restart(&mut self, device: &'a Device, claim: &Claim) -> Option<Arc<Blocked>> {
        let Ok(report) = &device.report else { return Some(Arc::new(Blocked::NoReport)) };
        let governed = self.governed(device);
        let Some(governor) = self.governor(&governed) else { return Some(Arc::new(Blocked::NoPolicy)) };
        let policy = &governor.policy.name;
        if *policy != claim.policy {
            let (claimed, governs) = (claim.policy.clone(), policy.clone());
            return Some(Arc::new(Blocked::PolicyChanged { claimed, governs }));
        }
        if let Some(refusal) = self.around(&governed, report, true, None).refusal() {
            return Some(refusal.blocked().clone());
        }
        // Else it would have been refused already.
        let resolved = governor.resolved.as_ref().ok()?;
        if resolved.settings.restart.when == RestartWhen::Never {
            return Some(Arc::new(Blocked::NeverRestarts { policy: policy.clone() }));
        }
        let opens = resolved.windows.is_open(zone(device), self.now).err()?;
        Some(Arc::new(Blocked::RestartTooLate { opens }))
    }

    fn around<'g>(
        &'g self,
        governed: &'g Governed<'a>,
        report: &'g DeviceReport,
        online: bool,
        claim: Option<&'g Claim>,
    ) -> Around<'g> {
        let no_group = match (&governed.group.doubt, governed.group.winner) {
            (Some(doubt), _) => Some(doubt.clone()),
            (None, None) => Some(Arc::new(Blocked::NoGroup)),
            (None, Some(_)) => None,
        };
        let governor = self.governor(governed);
        let progress = governed.policy.winner.and_then(|policy| self.rings.progress(policy));
        let paused = progress.and_then(|progress| progress.paused);
        Around { now: self.now, device: governed.device, report, online, claim, no_group, governor, paused }
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

    /// What is done with what the device offers.
    fn verb_of_offers(&self, governed: &Governed<'_>) -> Verb {
        let resolved = self.governor(governed).and_then(|governor| governor.resolved.as_ref().ok());
        match resolved.map(|resolved| resolved.settings.mode) {
            Some(Mode::DownloadOnly) => Verb::Download,
            Some(Mode::Audit | Mode::Install | Mode::InstallImmediately) | None => Verb::Install,
        }
    }

    /// None for an update that is installed and stays, and for one of another catalogue.
    fn look_at(
        &mut self,
        governed: &Governed<'a>,
        asked: &Asked<'_>,
        asking: Asking<'_>,
        look: &mut Look,
    ) -> Option<Looked> {
        let place = asking.update();
        let update = self.snapshot.updates.get(place)?;
        let ruling = match asking {
            Asking::Offered(..) | Asking::Installed(_) => self.ruling(governed, place, update),
            Asking::Restart(_) => None,
        };
        look.at(ruling.as_ref().and_then(|ruling| ruling.until));
        let (offer, verb, verdict) = match asking {
            Asking::Offered(offer, verb) => {
                let since = self.sightings.since(&self.snapshot.updates, governed.device, offer);
                let lacking_since = self.sightings.lacking_since(&self.snapshot.updates, governed.device, offer);
                let verdict = ruling.as_ref().map(|ruling| ruling.on(update, since, lacking_since, self.now));
                (Some(offer), verb, verdict)
            }
            Asking::Installed(_) => (None, Verb::Uninstall, Some(ruling.as_ref()?.on_installed()?)),
            Asking::Restart(_) => (None, Verb::Restart, None),
        };
        let own_window = ruling.as_ref().and_then(|ruling| ruling.window.as_ref());
        let opening = match own_window {
            None => asked.opening.clone(),
            Some(_) => self.opening(governed, own_window),
        };
        if own_window.is_some() {
            look.at(opening.as_ref().and_then(|opening| opening.changes));
        }
        look.at(ruling.as_ref().and_then(|ruling| ruling.retry_from));
        look.at(verdict.as_ref().and_then(|verdict| verdict.approved_at));

        let number = self.snapshot.updates.id_of(place)?;
        let stopped = self.rings.stopped(number, ruling.as_ref().and_then(|ruling| ruling.retry_failed_before));
        let ring_waits = governed.place.and_then(|place| self.rings.waits(place, number));
        let case = Case {
            update,
            verb,
            offer,
            stopped: stopped.as_ref(),
            ring_waits: ring_waits.as_ref(),
            ruling: ruling.as_deref(),
            verdict: verdict.as_ref(),
            opening: opening.as_deref(),
        };
        let around = self.around(governed, asked.report, asked.online, asked.claim);
        let refusal = around.refusal_of(&case, asked.refusal.as_ref());
        let last_start = gates::last_start(&around, &case).ok();
        let restart_until = gates::restart_until(&around, &case);
        let (blocked, eligible_at) = refusal.unzip();
        let eligible_at = eligible_at.flatten();
        look.at(eligible_at);
        let (decision, decided_by) = match asking {
            Asking::Offered(..) | Asking::Installed(_) => (
                verdict.as_ref().map_or(Decision::AwaitingApproval, |verdict: &Verdict| verdict.decision),
                ruling.and_then(|ruling| ruling.by.clone()),
            ),
            Asking::Restart(_) => self.restart_decision(governed),
        };
        let plan = UpdatePlan {
            update: place,
            state: self.state(governed.device, update, &asking, decision),
            decision,
            decided_by,
            blocked,
            eligible_at,
        };
        let missing_from = verdict.and_then(|verdict| verdict.missing_from);
        look.at(missing_from);
        let is_missing = missing_from.is_some_and(|from| from <= self.now);
        Some(Looked { plan, is_missing, verb, last_start, restart_until })
    }

    /// What is worse to overlook comes first: a device that is not heard of, an install at work, a decision against.
    fn state(&self, device: &Device, update: &Update, asking: &Asking<'_>, decision: Decision) -> State {
        if gates::is_stale(device, self.now) {
            return State::Unknown;
        }
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

    /// All that nothing blocks, in one order; an id that a report tells twice, once.
    fn install(&self, governed: &Governed<'_>, looked: &[Looked]) -> Option<Install> {
        let governor = self.governor(governed)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let mut ids: Vec<Name> = Vec::new();
        let mut not_after: Option<Timestamp> = None;
        let mut restart_until: Option<Timestamp> = Some(Timestamp::MAX);
        let free = || looked.iter().filter(|looked| looked.plan.blocked.is_none());
        // Whatever is free is of one verb.
        let verb = free().next()?.verb;
        for looked in free() {
            let id = self.id_of(looked.plan.update)?;
            if !ids.contains(id) {
                ids.push(id.clone());
            }
            // All of them must be able to start then.
            not_after = not_after.into_iter().chain(looked.last_start).min();
            restart_until = restart_until.zip(looked.restart_until).map(|(one, other)| one.min(other));
        }
        Some(Install {
            verb,
            updates: ids,
            policy: governor.policy.name.clone(),
            dependencies: resolved.settings.dependencies,
            not_after: not_after?,
            limit: governed.limit,
            restart: restart_rule(&resolved.settings.restart, verb, restart_until),
        })
    }

    /// What blocks an update blocks every other that the report tells under the same id: the order goes by ids.
    fn block_twins(&self, mut looked: Vec<Looked>) -> Vec<Looked> {
        let same_id = |a: &Looked, b: &Looked| {
            a.verb == b.verb && self.snapshot.updates.id_of(a.plan.update) == self.snapshot.updates.id_of(b.plan.update)
        };
        let refusals: Vec<_> = looked
            .iter()
            .map(|free| {
                let is_free = free.plan.blocked.is_none();
                let twin = || looked.iter().find(|other| other.plan.blocked.is_some() && same_id(free, other));
                is_free.then(twin).flatten().map(|twin| (twin.plan.blocked.clone(), twin.plan.eligible_at))
            })
            .collect();
        for (looked, refusal) in looked.iter_mut().zip(refusals) {
            if let Some(refusal) = refusal {
                (looked.plan.blocked, looked.plan.eligible_at) = refusal;
            }
        }
        looked
    }

    fn ruling(&mut self, governed: &Governed<'_>, place: UpdateId, update: &Update) -> Option<Rc<Ruling>> {
        let group = governed.group.winner.filter(|_| governed.group.doubt.is_none())?;
        let line = self.lines.get(group)?;
        let work_out = || line.rule(update, &self.snapshot.vulnerabilities, self.now);
        self.rulings.get(group, place, self.snapshot.updates.len(), work_out)
    }

    /// Worked out once for each policy, own window and zone.
    fn opening(&mut self, governed: &Governed<'a>, own: Option<&(Name, Name)>) -> Option<Rc<Opening>> {
        let policy = governed.policy.winner?;
        let governor = self.governors.get(policy)?;
        let resolved = governor.resolved.as_ref().ok()?;
        let (zone, limit, now) = (zone(governed.device), governed.limit, self.now);
        let work_out = || {
            Rc::new(match own {
                None => resolved.windows.opening(zone, limit, now),
                Some((window, group)) => {
                    match Calendars::own(window, group, &governor.policy.name, limit, &self.windows) {
                        Ok(calendars) => calendars.opening(zone, limit, now),
                        Err(why) => Opening::none(why),
                    }
                }
            })
        };
        let zone_name = match zone {
            None => None,
            // Only windows on the device's clock depend on its zone.
            Some(_) if own.is_none() && resolved.windows.needs_zone().is_none() => None,
            Some(zone) => match zone.iana_name() {
                Some(name) => Some(name),
                // Nothing to know it by again.
                None => return Some(work_out()),
            },
        };
        Some(self.openings.entry((policy, limit, own.cloned(), zone_name)).or_insert_with(work_out).clone())
    }

    fn group(&self, claimants: &Claimants) -> Option<&'a Group> {
        claimants.winner.and_then(|place| self.selection.groups.get(place).copied())
    }

    fn governor(&self, governed: &Governed<'_>) -> Option<&Governor<'a>> {
        governed.policy.winner.and_then(|place| self.governors.get(place))
    }

    fn id_of(&self, update: UpdateId) -> Option<&'a Name> {
        self.snapshot.updates.get(update).map(|update| &update.id)
    }
}

impl Rulings {
    fn get(
        &mut self,
        group: usize,
        update: UpdateId,
        updates: usize,
        work_out: impl FnOnce() -> Ruling,
    ) -> Option<Rc<Ruling>> {
        let places = self.places.get_mut(group)?;
        if places.is_empty() {
            places.resize(updates, 0);
        }
        let place = places.get_mut(update.index())?;
        if let Some(known) = usize::try_from(*place).ok().and_then(|place| self.rulings.get(place.checked_sub(1)?)) {
            return Some(known.clone());
        }
        let ruling = Rc::new(work_out());
        self.rulings.push(ruling.clone());
        *place = u32::try_from(self.rulings.len()).unwrap_or(0);
        Some(ruling)
    }
}

/// An order has one verb: what is to be taken back goes first, then what is installed, then a restart alone.
fn one_verb(mut looked: Vec<Looked>) -> Vec<Looked> {
    let rank = |verb: Verb| match verb {
        Verb::Uninstall => 0,
        Verb::Install | Verb::Download => 1,
        Verb::Restart => 2,
    };
    let is_free = |looked: &Looked| looked.plan.blocked.is_none();
    if let Some(first) = looked.iter().filter(|looked| is_free(looked)).map(|looked| rank(looked.verb)).min() {
        for looked in looked.iter_mut().filter(|looked| is_free(looked) && rank(looked.verb) > first) {
            looked.plan.blocked = Some(Arc::new(Blocked::OthersFirst));
        }
    }
    looked
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
/// whose updates it cannot be told whether they are approved.
fn compliance(report: Option<&DeviceReport>, updates: &[Looked]) -> Compliance {
    let Some(report) = report else { return Compliance::Unknown };
    if report.truncated {
        Compliance::Truncated
    } else if updates.iter().any(|update| update.is_missing) {
        Compliance::UpdatesMissing
    } else if updates.iter().any(|update| update.verb == Verb::Uninstall) {
        Compliance::RemovalDue
    } else if report.restart_required == Tristate::Yes {
        Compliance::RestartRequired
    } else if report.problems.iter().any(|code| code.hides_updates())
        || updates.iter().any(|update| update.plan.blocked.as_ref().is_some_and(|blocked| blocked.is_doubt()))
    {
        Compliance::Unknown
    } else {
        Compliance::UpToDate
    }
}
