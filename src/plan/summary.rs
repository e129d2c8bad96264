//! What the devices' plans come to for their policies and groups, and how the windows stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::Planned;
use super::approval::Line;
use super::bits::Bits;
use super::device::Examiner;
use super::forecast;
use super::look::Look;
use super::model::{Catalogue, Group, Invalid, Name, Ring, Window};
use super::outcome::{Blocked, ComplianceCounts, GroupPlan, PolicyPlan, RingPlan, State, UPCOMING, WindowPlan};
use super::policy::Governor;
use super::rollout;
use super::window::Moment;

/// Counts over all devices. Retired ones count only where they hold a claim.
pub(super) struct Tally {
    /// As in the lists of policies and groups that devices have their places in.
    policies: Vec<PolicyTally>,
    groups: Vec<GroupTally>,
    taken: BTreeMap<Name, u32>,
}

/// What the devices that a policy governs come to.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyTally {
    /// All of them.
    pub devices: u32,
    states: ComplianceCounts,
    overdue: u32,
    installing: u32,
    failed: u32,
    /// Devices and compliant ones, by ring.
    rings: Vec<(u32, u32)>,
}

/// What the devices of a group come to.
#[derive(Clone, Debug)]
struct GroupTally {
    devices: u32,
    states: ComplianceCounts,
    /// Numbers of the ids that they offer.
    offered: Bits,
}

impl Tally {
    pub(super) fn of(devices: &[Planned<'_>], policies: usize, groups: usize, catalogue: &Catalogue) -> Self {
        let mut tally = Self {
            policies: vec![PolicyTally::default(); policies],
            groups: vec![
                GroupTally {
                    devices: 0,
                    states: ComplianceCounts::default(),
                    offered: Bits::below(catalogue.ids())
                };
                groups
            ],
            taken: BTreeMap::new(),
        };
        for Planned { device, group, place, plan, says: _ } in devices {
            if let Some(claim) = &device.current {
                add(tally.taken.entry(claim.policy.clone()).or_default(), true);
            }
            if device.retired {
                continue;
            }
            if let Some(group) = group.and_then(|group| tally.groups.get_mut(group)) {
                add(&mut group.devices, true);
                group.states.add(plan.compliance);
                for number in plan.updates.iter().filter_map(|update| catalogue.id_of(update.update)) {
                    group.offered.insert(number);
                }
            }
            let policy = place.and_then(|place| tally.policies.get_mut(place.policy).zip(Some(place.ring)));
            if let Some((counts, ring)) = policy {
                add(&mut counts.devices, true);
                counts.states.add(plan.compliance);
                add(&mut counts.overdue, plan.due.as_ref().is_some_and(|due| due.overdue));
                add(&mut counts.installing, device.current.is_some());
                add(&mut counts.failed, plan.updates.iter().any(|update| update.state == State::Failed));
                if counts.rings.len() <= ring {
                    counts.rings.resize(ring + 1, (0, 0));
                }
                if let Some((devices, compliant)) = counts.rings.get_mut(ring) {
                    add(devices, true);
                    add(compliant, plan.compliance.complies());
                }
            }
        }
        tally
    }

    /// What the devices that the policy at `place` governs come to.
    pub(super) fn policy(&self, place: usize) -> PolicyTally {
        self.policies.get(place).cloned().unwrap_or_default()
    }

    /// Devices that hold a claim in the policy's name.
    pub(super) fn taken(&self, policy: &str) -> u32 {
        self.taken.get(policy).copied().unwrap_or_default()
    }
}

/// Every policy, by name.
pub(super) fn policies(examiner: &mut Examiner<'_>, tally: &Tally, now: Timestamp, look: &mut Look) -> Vec<PolicyPlan> {
    let mut outlooks = examiner.take_outlooks();
    let examiner = &*examiner;
    let plan = |(position, governor): (usize, &Governor<'_>)| {
        let name = governor.policy.name.clone();
        let PolicyTally { devices, states, overdue, installing, failed, rings: by_ring } = tally.policy(position);
        let resolved = governor.resolved.as_ref();
        let outlooks = outlooks.get_mut(position).map(std::mem::take).unwrap_or_default();
        let places = rollout::places((position, governor), tally);
        let forecast = forecast::forecast(resolved.ok(), places, outlooks, now, look);
        let compliant = states.compliant();
        let (open, next_window) = resolved.map_or((false, None), |resolved| resolved.windows.open_or_next(now));
        let stalled = governor.stalled().cloned();
        let rings = resolved.map_or_else(|_| vec![], |resolved| rings(&resolved.settings.rollout.rings, &by_ring));
        let progress = examiner.rings().progress(position).cloned().unwrap_or_default();
        PolicyPlan {
            name,
            devices,
            compliant,
            states,
            overdue,
            forecast,
            installing,
            failed,
            open,
            next_window,
            stalled,
            rings,
            progress,
        }
    };
    let mut plans: Vec<PolicyPlan> = examiner.governors().iter().enumerate().map(plan).collect();
    plans.sort_by(|a, b| a.name.cmp(&b.name));
    plans
}

fn rings(rings: &[Ring], counts: &[(u32, u32)]) -> Vec<RingPlan> {
    if rings.is_empty() {
        return vec![];
    }
    let names = rings.iter().map(|ring| Some(ring.name.clone())).chain([None]);
    let plan = |(ring, name): (usize, _)| {
        let (devices, compliant) = counts.get(ring).copied().unwrap_or_default();
        RingPlan { name, devices, compliant }
    };
    names.enumerate().map(plan).collect()
}

/// Every group, by name.
pub(super) fn groups(examiner: &Examiner<'_>, tally: &Tally) -> Vec<GroupPlan> {
    let plan = |((group, line), counts): ((&Group, &Line<'_>), &GroupTally)| GroupPlan {
        name: group.name.clone(),
        devices: counts.devices,
        states: counts.states.clone(),
        seen: examiner.sightings().to_keep(&counts.offered, &group.seen, examiner.devices()),
        invalid: invalid(group).map(|invalid| invalid.0.clone()),
        stalled: line.resolved.as_ref().err().cloned().or_else(|| missing_window(group, examiner).map(Arc::new)),
    };
    let mut plans: Vec<GroupPlan> = examiner.groups().zip(&tally.groups).map(plan).collect();
    plans.sort_by(|a, b| a.name.cmp(&b.name));
    plans
}

fn invalid(group: &Group) -> Option<&Invalid> {
    group.approvals.as_ref().err().or_else(|| group.members.rule.as_ref()?.as_ref().err())
}

/// A window that the group gives to updates and that is not there. The organisation's groups give windows of each client.
fn missing_window(group: &Group, examiner: &Examiner<'_>) -> Option<Blocked> {
    let approvals = group.approvals.as_ref().ok()?;
    let named = approvals.decisions.iter().filter_map(|decision| decision.window.as_ref());
    let named = named.chain(approvals.rules.iter().filter_map(|rule| rule.window.as_ref()));
    let missing = named.filter(|window| !examiner.windows().contains_key(&***window)).min()?;
    Some(Blocked::WindowNotFound { by: format!("ApprovalGroup/{}", group.name).into(), window: missing.clone() })
}

/// Every window, by name.
pub(super) fn windows(windows: &[Window], now: Timestamp, look: &mut Look) -> Vec<WindowPlan> {
    let mut plans: Vec<WindowPlan> = windows.iter().map(|window| window_plan(window, now, look)).collect();
    plans.sort_by(|a, b| a.name.cmp(&b.name));
    plans
}

fn window_plan(window: &Window, now: Timestamp, look: &mut Look) -> WindowPlan {
    let name = window.name.clone();
    let calendar = match &window.calendar {
        Ok(calendar) => calendar,
        Err(invalid) => {
            return WindowPlan { name, open_until: None, upcoming: vec![], invalid: Some(invalid.0.clone()) };
        }
    };
    let zone = calendar.zone_or_utc();
    look.at(calendar.next_change(&zone, now));
    let open_until = match calendar.at(&zone, now) {
        Moment::Open { until } => Some(until),
        Moment::Closed | Moment::Frozen { .. } => None,
    };
    let upcoming = calendar.openings(&zone, now).take(UPCOMING).collect();
    WindowPlan { name, open_until, upcoming, invalid: None }
}

fn add(count: &mut u32, counts: bool) {
    *count = count.saturating_add(u32::from(counts));
}
