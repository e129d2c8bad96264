//! What the devices' plans come to for their policies and groups, and how the windows stand.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::approval::Line;
use super::device::Reign;
use super::forecast::{self, Outlook, Prospect};
use super::look::Look;
use super::model::{
    Catalogue, Device, DeviceType, Group, Invalid, Mode, Name, Policy, Ring, Seen, Settings, WhenEmpty, Window,
};
use super::names::Names;
use super::outcome::{
    Blocked, ComplianceCounts, DevicePlan, Failed, FailedExpression, GroupPlan, PolicyPlan, RingPlan, State, UPCOMING,
    Unprovable, WindowPlan,
};
use super::overlaps::Overlaps;
use super::policy::Governor;
use super::rings::{Place, Rings};
use super::rollout;
use super::roster::Roster;
use super::sightings::Sightings;
use super::window::{Moment, Span};

/// Counts over all devices. Retired ones count only where they hold a claim.
pub(super) struct Tally<'a> {
    /// As in the lists of policies and groups that devices have their places in.
    policies: Vec<PolicyTally<'a>>,
    groups: Vec<GroupTally>,
    /// Places of the groups.
    places: BTreeMap<&'a str, usize>,
    pub(super) overlaps: Overlaps<'a>,
    /// Devices that the policies leave out by name.
    pub(super) excluded: Names<'a>,
    /// Devices that belong to the groups by name.
    pub(super) members: Names<'a>,
    taken: BTreeMap<Name, u32>,
}

/// What the devices that a policy governs come to.
#[derive(Clone, Debug, Default)]
struct PolicyTally<'a> {
    /// The label by which it limits how many devices of one service may be unavailable.
    label: Option<&'a str>,
    /// All of them.
    devices: u32,
    /// Of these, servers, and those of them that have the label.
    servers: u32,
    labelled: u32,
    states: ComplianceCounts,
    overdue: u32,
    installing: u32,
    failed: u32,
    rings: Vec<RingTally>,
    /// How many updates may only be installed in a window of their own that is not longer than what installs may take, by that window.
    too_short: BTreeMap<Name, u32>,
    /// What so many devices with a deadline have before them.
    outlooks: BTreeMap<Outlook, u32>,
    /// How many more or fewer devices have them than when that was last asked: mostly a device is counted again at once. None
    /// before that was first asked.
    moved: Option<BTreeMap<Outlook, i64>>,
    /// Whether anything was counted since that was last asked.
    is_new: bool,
}

/// What the devices of a ring come to.
#[derive(Clone, Copy, Debug, Default)]
struct RingTally {
    devices: u32,
    compliant: u32,
    /// Those that were not heard of for too long.
    unknown: u32,
}

/// What the devices of a group come to.
#[derive(Clone, Debug, Default)]
struct GroupTally {
    devices: u32,
    states: ComplianceCounts,
    /// How many of them offer an update of an id, by its number.
    offered: Vec<u32>,
    /// Devices, retired ones aside, for which the rule of its members fails, with why.
    unknown: BTreeMap<Name, Name>,
    /// How many devices offer an update of which a rule fails, its own or one of the organisation's above it: by that group, the rule,
    /// the update and why.
    failed: BTreeMap<(Name, Name, Name, Name), u32>,
    /// Whether anything was counted since that was last asked ...
    is_new: bool,
    /// ... and the numbers of the ids that are offered now and were not then, or the other way round; none before that was
    /// first asked.
    crossed: Option<BTreeSet<usize>>,
}

/// A device as it counts here.
#[derive(Clone, Copy)]
pub(super) struct Counted<'d> {
    pub device: &'d Device,
    /// The place of its group.
    pub group: Option<usize>,
    pub place: Option<Place>,
    pub plan: &'d DevicePlan,
    pub outlook: Option<&'d Outlook>,
    /// It was not heard of for too long.
    pub is_unheard: bool,
}

impl<'a> Tally<'a> {
    pub(super) fn of(
        policies: impl Iterator<Item = &'a Policy> + Clone,
        groups: impl Iterator<Item = &'a Group> + Clone,
    ) -> Self {
        let members = Names::of(groups.clone().map(|group| &group.members.names));
        let places: BTreeMap<&str, usize> = groups.enumerate().map(|(place, group)| (&*group.name, place)).collect();
        let label = |policy: &'a Policy| policy.disruption.as_ref().map(|disruption| disruption.label.as_str());
        let tally = |policy| PolicyTally { label: label(policy), ..PolicyTally::default() };
        Self {
            policies: policies.clone().map(tally).collect(),
            groups: vec![GroupTally::default(); places.len()],
            places,
            excluded: Names::of(policies.clone().map(|policy| &policy.exclude)),
            members,
            overlaps: Overlaps::of(policies),
            taken: BTreeMap::new(),
        }
    }

    /// A device comes, or is gone: also one that is retired is there.
    pub(super) fn count_name(&mut self, device: &Name, comes: bool) {
        self.excluded.count(device, comes);
        self.members.count(device, comes);
    }

    /// Counts what claims a device, or counts it no more.
    pub(super) fn count_claims(&mut self, device: &Device, reign: &Reign, adds: bool) {
        if device.retired {
            return;
        }
        self.overlaps.count(&reign.policy, adds);
        for (place, error) in &reign.unknown {
            let Some(group) = self.groups.get_mut(*place) else { continue };
            group.is_new = true;
            if adds {
                group.unknown.insert(device.name.clone(), error.clone());
            } else {
                group.unknown.remove(&device.name);
            }
        }
    }

    /// Counts a device, or counts it no more.
    pub(super) fn count(&mut self, catalogue: &Catalogue, counted: Counted<'_>, adds: bool) {
        let Counted { device, group, place, plan, outlook, is_unheard } = counted;
        let change = |count: &mut u32, counts: bool| {
            let one = u32::from(counts);
            *count = if adds { count.saturating_add(one) } else { count.saturating_sub(one) };
        };
        if let Some(claim) = &device.current {
            change(self.taken.entry(claim.policy.clone()).or_default(), true);
        }
        if device.retired {
            return;
        }
        let group_place = group;
        if let Some(group) = group.and_then(|place| self.groups.get_mut(place)) {
            group.is_new = true;
            change(&mut group.devices, true);
            group.states.change(plan.compliance, adds);
            group.offered.resize(catalogue.ids().max(group.offered.len()), 0);
            let told = plan.updates.iter().filter(|update| !update.is_checked());
            for number in told.filter_map(|update| catalogue.id_of(update.update)) {
                if let Some(offered) = group.offered.get_mut(number) {
                    let was_offered = *offered > 0;
                    change(offered, true);
                    // Mostly a device is counted again at once.
                    let crossed = group.crossed.as_mut().filter(|_| was_offered != (*offered > 0));
                    if let Some(crossed) = crossed
                        && !crossed.remove(&number)
                    {
                        crossed.insert(number);
                    }
                }
            }
        }
        self.count_blocked(catalogue, (group_place, place), plan, adds);
        let policy = place.and_then(|place| self.policies.get_mut(place.policy).zip(Some(place.ring)));
        if let Some((counts, ring)) = policy {
            counts.is_new = true;
            change(&mut counts.devices, true);
            let is_server = device.device_type == DeviceType::Server;
            change(&mut counts.servers, is_server);
            change(&mut counts.labelled, is_server && counts.label.is_some_and(|it| device.labels.get(it).is_some()));
            counts.states.change(plan.compliance, adds);
            change(&mut counts.overdue, plan.due.as_ref().is_some_and(|due| due.overdue));
            change(&mut counts.installing, device.current.is_some());
            change(&mut counts.failed, plan.updates.iter().any(|update| update.last_known == State::Failed));
            if counts.rings.len() <= ring {
                counts.rings.resize(ring + 1, RingTally::default());
            }
            if let Some(RingTally { devices, compliant, unknown }) = counts.rings.get_mut(ring) {
                change(devices, true);
                change(compliant, plan.compliance.complies());
                change(unknown, is_unheard);
            }
            if let Some(outlook) = outlook {
                let devices = counts.outlooks.entry(*outlook).or_default();
                change(devices, true);
                if *devices == 0 {
                    counts.outlooks.remove(outlook);
                }
                if let Some(all) = &mut counts.moved {
                    let moved = all.entry(*outlook).or_default();
                    *moved += if adds { 1 } else { -1 };
                    if *moved == 0 {
                        all.remove(outlook);
                    }
                }
            }
        }
    }

    /// Counts the updates of a device that wait for somebody to mend a group or policy. Of a rule that fails that is the group that has
    /// it: where it is one of the organisation's, which no client's plan tells of, the device's own group tells.
    fn count_blocked(
        &mut self,
        catalogue: &Catalogue,
        (own, policy): (Option<usize>, Option<Place>),
        plan: &DevicePlan,
        adds: bool,
    ) {
        for update in &plan.updates {
            match update.blocked.as_deref() {
                Some(Blocked::ExpressionFailed { group, rule, error }) => {
                    let named = self.places.get(&**group).copied().filter(|_| !is_organisations(group));
                    let (Some(place), Some(update)) = (named.or(own), catalogue.get(update.update)) else { continue };
                    let Some(tally) = self.groups.get_mut(place) else { continue };
                    tally.is_new = true;
                    let key = (group.clone(), rule.clone(), update.id.clone(), error.clone());
                    count_one(&mut tally.failed, key, adds);
                }
                Some(Blocked::OwnWindowTooShort { policy: _, window }) => {
                    let Some(tally) = policy.and_then(|place| self.policies.get_mut(place.policy)) else { continue };
                    count_one(&mut tally.too_short, window.clone(), adds);
                }
                _ => {}
            }
        }
    }

    /// How many devices the policy at `place` governs.
    pub(super) fn devices(&self, place: usize) -> u32 {
        self.policies.get(place).map(|policy| policy.devices).unwrap_or_default()
    }

    /// Devices that hold a claim in the policy's name.
    pub(super) fn taken(&self, policy: &str) -> u32 {
        self.taken.get(policy).copied().unwrap_or_default()
    }

    /// Whether anything was counted of the policy at `place` since that was last asked.
    pub(super) fn take_new_policy(&mut self, place: usize) -> bool {
        self.policies.get_mut(place).is_some_and(|policy| std::mem::take(&mut policy.is_new))
    }

    /// Whether devices of the policy at `place` have other outlooks than when that was last asked.
    fn take_new_outlooks(&mut self, place: usize) -> bool {
        let moved = self.policies.get_mut(place).map(|policy| policy.moved.replace(BTreeMap::new()));
        moved.is_some_and(|moved| moved.is_none_or(|moved| !moved.is_empty()))
    }

    /// Whether anything was counted of the group at `place` since that was last asked, and whether its devices offer updates
    /// of other ids.
    pub(super) fn take_new_group(&mut self, place: usize) -> (bool, bool) {
        let Some(group) = self.groups.get_mut(place) else { return (false, false) };
        let crossed = group.crossed.replace(BTreeSet::new());
        (std::mem::take(&mut group.is_new), crossed.is_none_or(|crossed| !crossed.is_empty()))
    }

    /// Whether devices of the group at `place` offer updates of the id of that number.
    pub(super) fn offers(&self, place: usize, number: usize) -> bool {
        self.groups.get(place).and_then(|group| group.offered.get(number)).is_some_and(|devices| *devices > 0)
    }
}

/// Counts one more or fewer of `key`.
fn count_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, adds: bool) {
    match counts.entry(key) {
        Entry::Vacant(place) => {
            if adds {
                place.insert(1);
            }
        }
        Entry::Occupied(mut place) => match place.get() {
            1 if !adds => drop(place.remove()),
            count => *place.get_mut() = if adds { count.saturating_add(1) } else { count.saturating_sub(1) },
        },
    }
}

/// The policy at `place`.
pub(super) fn policy<'a>(
    (place, governor, prospect): (usize, &Governor<'a>, &mut Prospect<'a>),
    rings: &Rings<'_>,
    tally: &mut Tally<'_>,
    now: Timestamp,
    look: &mut Look,
) -> PolicyPlan {
    let are_new = tally.take_new_outlooks(place);
    let none = PolicyTally::default();
    let PolicyTally {
        label,
        devices,
        servers,
        labelled,
        states,
        overdue,
        installing,
        failed,
        rings: by_ring,
        too_short,
        outlooks,
        moved: _,
        is_new: _,
    } = tally.policies.get(place).unwrap_or(&none);
    let resolved = governor.resolved.as_ref();
    let places = rollout::places((place, governor), tally);
    let (open, next_window) = resolved.map_or((false, None), |resolved| resolved.windows.open_or_next(now));
    PolicyPlan {
        name: governor.policy.name.clone(),
        devices: *devices,
        compliant: states.compliant(),
        states: states.clone(),
        overdue: *overdue,
        forecast: forecast::forecast((resolved.ok(), prospect), places, (outlooks, are_new), now, look),
        installing: *installing,
        failed: *failed,
        open,
        next_window,
        stalled: governor.stalled().cloned(),
        // What opens in UTC is not over, which is told at once.
        never_opens: !open && next_window.is_none() && governor.never_opens(now),
        unprovable: resolved.ok().and_then(|resolved| unprovable(resolved.settings, by_ring)),
        too_short: too_short.keys().next().cloned(),
        missing_groups: governor.missing_groups.clone(),
        missing_excluded_groups: governor.missing_excluded_groups.clone(),
        unknown_devices: tally.excluded.unknown(place),
        unlabelled: label.is_some() && *servers > 0 && *labelled == 0,
        overlap: tally.overlaps.get(place),
        rings: resolved.map_or_else(|_| vec![], |resolved| of_rings(&resolved.settings.rollout.rings, by_ring)),
        progress: rings.progress(place).cloned().unwrap_or_default(),
    }
}

fn of_rings(rings: &[Ring], counts: &[RingTally]) -> Vec<RingPlan> {
    if rings.is_empty() {
        return vec![];
    }
    let names = rings.iter().map(|ring| Some(ring.name.clone())).chain([None]);
    let plan = |(ring, name): (usize, _)| {
        let RingTally { devices, compliant, .. } = counts.get(ring).copied().unwrap_or_default();
        RingPlan { name, devices, compliant }
    };
    names.enumerate().map(plan).collect()
}

/// The first ring with too few devices to prove an update that others wait for.
fn unprovable(settings: &Settings, counts: &[RingTally]) -> Option<Unprovable> {
    if !matches!(settings.mode, Mode::Install | Mode::InstallImmediately) {
        return None;
    }
    let mut waiting: u32 = counts.iter().map(|ring| ring.devices).sum();
    for (place, ring) in settings.rollout.rings.iter().enumerate() {
        let RingTally { devices, unknown, .. } = counts.get(place).copied().unwrap_or_default();
        waiting = waiting.saturating_sub(devices);
        let needs = ring.min_successes.max(1);
        let is_passed_over = devices == 0 && ring.when_empty == WhenEmpty::Promote;
        // One that is not heard of proves nothing, however long.
        if devices - unknown.min(devices) < needs && !is_passed_over && waiting > 0 {
            return Some(Unprovable { place, ring: ring.name.clone(), devices, unknown, needs, waiting });
        }
    }
    None
}

/// The group at `place`, with what is to be written down with it.
pub(super) fn group(
    (place, group, line): (usize, &Group, &Line<'_>),
    seen: Arc<[Seen]>,
    (windows, knows_vulnerabilities): (&BTreeMap<&str, &Window>, bool),
    tally: &Tally<'_>,
) -> GroupPlan {
    let counts = tally.groups.get(place);
    GroupPlan {
        name: group.name.clone(),
        devices: counts.map(|counts| counts.devices).unwrap_or_default(),
        states: counts.map(|counts| counts.states.clone()).unwrap_or_default(),
        seen,
        invalid: invalid(group).map(|invalid| invalid.0.clone()),
        stalled: line.resolved.as_ref().err().cloned().or_else(|| {
            let unknown = || vulnerabilities_unknown(group).filter(|_| !knows_vulnerabilities);
            missing_window(line, windows).or_else(unknown).map(Arc::new)
        }),
        failed: counts.and_then(failed),
        unknown_devices: tally.members.unknown(place),
    }
}

/// The first of a group's expressions that fails: who belongs to it comes before what is approved.
fn failed(counts: &GroupTally) -> Option<Failed> {
    let of_members = || {
        let (device, error) = counts.unknown.first_key_value()?;
        let (error, example, more) = (error.clone(), device.clone(), counts.unknown.len() - 1);
        Some(Failed { expression: FailedExpression::Members, error, example, more })
    };
    let of_rule = || {
        let ((group, rule, update, error), _) = counts.failed.first_key_value()?;
        let of_it = counts.failed.keys().filter(|(of, named, _, _)| (of, named) == (group, rule));
        let updates: BTreeSet<&Name> = of_it.map(|(_, _, update, _)| update).collect();
        let expression = FailedExpression::Rule { group: group.clone(), rule: rule.clone() };
        let (error, example, more) = (error.clone(), update.clone(), updates.len() - 1);
        Some(Failed { expression, error, example, more })
    };
    of_members().or_else(of_rule)
}

/// Whether a name is of a group of the organisation's, among those of a client.
pub(super) fn is_organisations(group: &str) -> bool {
    group.contains('/')
}

/// The first rule that asks what is known of vulnerabilities, should nothing be.
fn vulnerabilities_unknown(group: &Group) -> Option<Blocked> {
    let rule = group.approvals.as_ref().ok()?.rules.iter().find(|rule| rule.matches.asks_vulnerabilities())?;
    Some(Blocked::VulnerabilitiesUnknown { group: group.name.clone(), rule: rule.name.clone() })
}

/// What is to be written down with the group at `place`, which had `before`.
pub(super) fn seen(
    place: usize,
    before: &[Seen],
    sightings: &Sightings,
    (catalogue, roster): (&Catalogue, &Roster),
    tally: &Tally<'_>,
) -> Vec<Seen> {
    let offered = tally.groups.get(place).map(|group| group.offered.as_slice()).unwrap_or_default();
    sightings.to_keep(catalogue, offered, before, roster)
}

fn invalid(group: &Group) -> Option<&Invalid> {
    group.approvals.as_ref().err().or_else(|| group.members.rule.as_ref()?.as_ref().err())
}

/// A window that the group gives to updates and that is not there. The organisation's groups give windows of each client: what
/// they miss there the client's groups tell that have them for parents, and in their own namespace nobody misses it.
fn missing_window(line: &Line<'_>, windows: &BTreeMap<&str, &Window>) -> Option<Blocked> {
    let (own, above) = line.resolved.as_ref().ok().filter(|_| line.is_followed)?.split_first()?;
    let shared = above.iter().take_while(|(group, _)| is_organisations(&group.name));
    std::iter::once(own).chain(shared).find_map(|(group, approvals)| {
        let named = approvals.decisions.iter().filter_map(|decision| decision.window.as_ref());
        let named = named.chain(approvals.rules.iter().filter_map(|rule| rule.window.as_ref()));
        let missing = named.filter(|window| !windows.contains_key(&***window)).min()?;
        Some(Blocked::WindowNotFound { by: format!("ApprovalGroup/{}", group.name).into(), window: missing.clone() })
    })
}

/// A window.
pub(super) fn window(window: &Window, now: Timestamp, look: &mut Look) -> WindowPlan {
    let name = window.name.clone();
    let calendar = match &window.calendar {
        Ok(calendar) => calendar,
        Err(invalid) => {
            let invalid = Some(invalid.0.clone());
            return WindowPlan { name, open_until: None, upcoming: vec![], never_opens: false, invalid };
        }
    };
    let zone = calendar.zone_or_utc();
    look.at(calendar.next_change(&zone, now));
    let open_until = match calendar.at(&zone, now) {
        Moment::Open { until } => Some(until),
        Moment::Closed | Moment::Frozen { .. } => None,
    };
    let upcoming: Vec<Span> = calendar.openings(&zone, now).take(UPCOMING).collect();
    let is_over = open_until.is_none() && upcoming.is_empty();
    if is_over {
        // What is over in UTC may have yet to come elsewhere.
        look.at(calendar.next_change_anywhere(now));
    }
    WindowPlan { name, open_until, upcoming, never_opens: is_over && calendar.never_opens(now), invalid: None }
}
