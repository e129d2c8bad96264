//! One device: its group, its policy, each update's decision, state and refusal, and whether it complies.
//!
//! In: a device and the policies around it. Out: its [`DevicePlan`], in which `install` holds what it would install if
//! it were its turn; `rollout` decides whose turn it is.

use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use patchwarden_protocol::report::{ProblemCode, Tristate};

use super::approval::{self, Verdict};
use super::gates::{self, Case};
use super::look::Look;
use super::model::{Device, DeviceReport, Group, Snapshot, Update};
use super::outcome::{Compliance, Decision, DevicePlan, Install, State, UpdatePlan};
use super::policy::{Governor, Opening, Resolved};
use super::select::Selection;

/// What devices are looked at with, and what has been worked out for one and holds for others.
pub(super) struct Examiner<'a> {
    now: Timestamp,
    selection: Selection<'a>,
    governors: &'a BTreeMap<&'a str, Governor<'a>>,
    /// By policy and the name of the device's zone, where the policy has a window on the device's clock.
    openings: BTreeMap<(&'a str, Option<&'a str>), Rc<Opening>>,
}

impl<'a> Examiner<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, governors: &'a BTreeMap<&'a str, Governor<'a>>, now: Timestamp) -> Self {
        Self { now, selection: Selection::of(snapshot), governors, openings: BTreeMap::new() }
    }

    /// Everything about one device but its turn.
    pub(super) fn examine(&mut self, device: &'a Device, look: &mut Look) -> DevicePlan {
        let group = self.selection.group(device);
        let policy = self.selection.policy(device, group.winner);
        let governor = policy.winner.and_then(|policy| self.governors.get(policy.name.as_str()));
        let opening = governor.and_then(|governor| self.opening(governor, device));
        look.at(gates::stale_from(device));
        look.at(device.current.as_ref().map(gates::released));
        look.at(opening.as_ref().and_then(|opening| opening.changes));

        let report = device.report.as_ref().ok();
        let around = Surroundings { now: self.now, device, group: group.winner, governor, opening: opening.as_deref() };
        let mut updates: Vec<UpdatePlan> = report
            .map(|report| report.updates.iter().map(|update| around.update(report, update, look)).collect())
            .unwrap_or_default();
        block_twins(&mut updates);
        let governed = group.winner.is_some() && governor.is_some();
        DevicePlan {
            name: device.name.clone(),
            policy: policy.winner.map(|policy| policy.name.clone()),
            shadowed_policies: policy.shadowed,
            group: group.winner.map(|group| group.name.clone()),
            shadowed_groups: group.shadowed,
            install: around.install(&updates),
            compliance: compliance(report.filter(|_| governed && !gates::is_stale(device, self.now)), &updates),
            updates,
        }
    }

    /// Worked out once for each policy, or for each policy and zone.
    fn opening(&mut self, governor: &'a Governor<'a>, device: &'a Device) -> Option<Rc<Opening>> {
        let resolved = governor.resolved.as_ref().ok()?;
        let zone = resolved.needs_zone().and(zone(device));
        let work_out = || Rc::new(opening(resolved, zone, self.now));
        let zone_name = match zone {
            None => None,
            Some(zone) => match zone.iana_name() {
                Some(name) => Some(name),
                // Nothing to know it by again.
                None => return Some(work_out()),
            },
        };
        Some(self.openings.entry((governor.policy.name.as_str(), zone_name)).or_insert_with(work_out).clone())
    }
}

/// What is the same for every update of a device.
struct Surroundings<'a> {
    now: Timestamp,
    device: &'a Device,
    group: Option<&'a Group>,
    governor: Option<&'a Governor<'a>>,
    opening: Option<&'a Opening>,
}

impl Surroundings<'_> {
    fn update(&self, report: &DeviceReport, update: &Update, look: &mut Look) -> UpdatePlan {
        let Self { now, device, group, governor, opening } = *self;
        let verdict = group.map(|group| approval::decide(group, update, now));
        let refusal = gates::refusal(&Case {
            now,
            device,
            report,
            online: device.online,
            claim: device.current.as_ref(),
            update,
            verdict: verdict.as_ref(),
            governor,
            opening,
        });
        let (blocked, eligible_at) = refusal.unzip();
        let eligible_at = eligible_at.flatten();
        look.at(eligible_at);
        look.at(verdict.as_ref().and_then(|verdict| verdict.until));
        let decision = verdict.as_ref().map_or(Decision::AwaitingApproval, |verdict| verdict.decision);
        UpdatePlan {
            id: update.id.clone(),
            state: self.state(update, decision),
            decision,
            decided_by: verdict.map(|Verdict { by, .. }| by),
            blocked,
            eligible_at,
        }
    }

    /// What is worse to overlook comes first: a device that is not heard of, an install at work, a decision against.
    fn state(&self, update: &Update, decision: Decision) -> State {
        let claim = self.device.current.as_ref().filter(|claim| claim.updates.contains(&update.id));
        if gates::is_stale(self.device, self.now) {
            return State::Unknown;
        }
        match (claim, decision) {
            (Some(claim), _) if claim.granted => State::Installing,
            (Some(_), _) => State::Pending,
            (None, Decision::Ignored | Decision::Waived) => State::Ignored,
            (None, Decision::Approved | Decision::AwaitingApproval) if update.held => State::Held,
            (None, Decision::Approved | Decision::AwaitingApproval) => {
                // An order that was out of date or withdrawn is no failure of the update.
                let failure = gates::failure(self.device, &update.id).filter(|failure| failure.attempts > 0);
                failure.map_or(State::Missing, |_| State::Failed)
            }
        }
    }

    /// All that nothing blocks, in one install; an id that a report tells twice, once.
    fn install(&self, updates: &[UpdatePlan]) -> Option<Install> {
        let governor = self.governor?;
        let resolved = governor.resolved.as_ref().ok()?;
        let not_after = *self.opening?.last_start.as_ref().ok()?;
        let mut ids: Vec<String> = Vec::new();
        for update in updates.iter().filter(|update| update.blocked.is_none()) {
            if !ids.contains(&update.id) {
                ids.push(update.id.clone());
            }
        }
        (!ids.is_empty()).then(|| Install {
            updates: ids,
            policy: governor.policy.name.clone(),
            dependencies: resolved.settings.dependencies,
            not_after,
            limit: resolved.settings.install_limit,
        })
    }
}

/// What blocks an update blocks every other that the report tells under the same id: the order goes by ids.
fn block_twins(updates: &mut [UpdatePlan]) {
    let refusals: Vec<_> = updates
        .iter()
        .filter(|update| update.blocked.is_none())
        .filter_map(|free| {
            let twin = updates.iter().find(|other| other.id == free.id && other.blocked.is_some())?;
            Some((free.id.clone(), twin.blocked.clone(), twin.eligible_at))
        })
        .collect();
    for (id, blocked, eligible_at) in refusals {
        for free in updates.iter_mut().filter(|update| update.id == id && update.blocked.is_none()) {
            (free.blocked, free.eligible_at) = (blocked.clone(), eligible_at);
        }
    }
}

/// The device's own zone, if it has one that is understood.
pub(super) fn zone(device: &Device) -> Option<&TimeZone> {
    device.zone.as_ref().and_then(|zone| zone.as_ref().ok())
}

fn opening(resolved: &Resolved<'_>, zone: Option<&TimeZone>, now: Timestamp) -> Opening {
    resolved.opening(zone, resolved.settings.install_limit, now)
}

/// Whether a device complies, by a report that is believed, recent, and of a device with a policy and a group.
///
/// An update that is approved and held back on the device itself is missing: the hold says why it is not installed, not
/// that it need not be. What nobody approved, or somebody decided against, does not count. A report that may not tell
/// everything (a repository that could not be read) is never up to date, as one that was cut is not.
fn compliance(report: Option<&DeviceReport>, updates: &[UpdatePlan]) -> Compliance {
    let Some(report) = report else { return Compliance::Unknown };
    if report.truncated {
        Compliance::Truncated
    } else if updates.iter().any(|update| update.decision == Decision::Approved) {
        Compliance::UpdatesMissing
    } else if report.restart_required == Tristate::Yes {
        Compliance::RestartRequired
    } else if report.problems.iter().any(|code| hides_updates(*code)) {
        Compliance::Unknown
    } else {
        Compliance::UpToDate
    }
}

/// Whether a report with this problem may lack updates.
fn hides_updates(code: ProblemCode) -> bool {
    match code {
        ProblemCode::RepositoryUnavailable
        | ProblemCode::PackageManagerBroken
        | ProblemCode::ScanFailed
        | ProblemCode::Unsupported => true,
        ProblemCode::JournalCorrupt => false,
    }
}
