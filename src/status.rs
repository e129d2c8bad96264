//! Plan and old status to new status. Pure; an unchanged world gives an equal status, which nobody writes.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use patchwarden_protocol::order::RESTART;
use patchwarden_protocol::report::Tristate;

use crate::api::approval_group::SeenUpdate;
use crate::api::conditions as c;
use crate::api::device_inventory::{self as devinv, Compliance, Lifecycle, StateCounts, UpdateCompliance};
use crate::api::maintenance_window::Occurrence;
use crate::api::patch_policy::{
    DeviceStates, Durations, Forecast, KindDuration, Mode, PendingSpecs, REST, RingStatus, SpecsInForce,
    UpdateDuration, UpdateProgress,
};
use crate::api::{
    ApprovalGroup, ApprovalGroupStatus, DeviceInventory, MaintenanceWindow, MaintenanceWindowStatus, PatchPolicy,
    PatchPolicyStatus,
};
use crate::convert::{self, Sighting, whole_seconds};
use crate::plan::model::{self, Catalogue, Name, NoReport, Pair, Pending, Progress, Seen};
use crate::plan::outcome::{
    self, Blocked, ComplianceCounts, Decision, DevicePlan, GroupPlan, PolicyPlan, State, UpdatePlan, WindowPlan,
};

/// What a group that cannot be resolved comes to.
const NOTHING_APPROVED: &str = "nothing is approved for its devices";

/// How many updates of a policy status tells of: what its schema allows.
const FOLLOWED: usize = 256;

/// How many losing policies or groups status names.
const SHADOWED_IN_STATUS: usize = 16;

/// The controller's part of a device's status.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceStatus {
    /// The decisions and the claim.
    pub compliance: Compliance,
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// The generation that both are about.
    pub observed_generation: Option<i64>,
}

impl DeviceStatus {
    /// What `device` has now.
    pub fn of(device: &DeviceInventory) -> Option<Self> {
        let status = device.status.as_ref()?;
        Some(Self {
            compliance: status.compliance.clone()?,
            conditions: status.conditions.clone(),
            observed_generation: status.observed_generation,
        })
    }
}

/// A device. `settled` is the claim's part, after results and time have been applied to it; `refused_result` says why a
/// result that lies there is not believed.
pub fn device(
    object: &DeviceInventory,
    settled: Compliance,
    plan: &DevicePlan,
    catalogue: &Catalogue,
    refused_result: Option<&str>,
    now: Timestamp,
) -> DeviceStatus {
    let report = convert::believed_report(object);
    let Compliance { current, sequence, report_counter, last, mut failures, updates: before, .. } = settled;
    if let Ok(report) = &report {
        let offered = report.updates.iter().map(|update| &update.id);
        let told: BTreeSet<&String> = offered.chain(report.removable.iter().map(|update| &update.id)).collect();
        let waits_for_restart = report.restart.required == Tristate::Yes;
        failures.retain(|failure| told.contains(&failure.update) || (waits_for_restart && failure.update == RESTART));
    }
    let compliance = Compliance {
        policy: plan.policy.as_deref().map(str::to_owned),
        shadowed_policies: shadowed(&plan.shadowed_policies),
        approval_group: plan.group.as_deref().map(str::to_owned),
        shadowed_groups: shadowed(&plan.shadowed_groups),
        counts: counts(&plan.updates),
        deadline: plan.due.as_ref().map(|due| whole_seconds(due.at)),
        updates: updates(plan, catalogue, &before, now).collect(),
        current,
        sequence,
        report_counter: report.as_ref().map_or(report_counter, |report| report.counter),
        last,
        failures,
        eligible: plan.eligible,
        governed_since: plan.moved.as_ref().map(|moved| moved.since),
        governed_before: plan.moved.as_ref().and_then(|moved| moved.before.as_ref()).map(governance),
    };
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    match device_trouble(object, report.err(), refused_result) {
        Some((reason, message)) => conditions.set(c::READY, false, reason, &message),
        None if object.spec.lifecycle == Lifecycle::Retired => {
            conditions.set(c::READY, true, c::REASON_RETIRED, "retired: its key is revoked and its record is kept");
        }
        None if object.spec.suspend => {
            conditions.set(c::READY, true, c::REASON_SUSPENDED, "suspended by spec.suspend: nothing is installed");
        }
        None => conditions.set(c::READY, true, c::REASON_ENFORCED, "reports are believed and decisions enforced"),
    }
    device_compliant(&mut conditions, plan, catalogue);
    DeviceStatus { compliance, conditions: conditions.list, observed_generation: object.metadata.generation }
}

/// What is decided for each update of a device, whose status had `before`.
pub fn updates<'a>(
    plan: &'a DevicePlan,
    catalogue: &'a Catalogue,
    before: &'a [UpdateCompliance],
    now: Timestamp,
) -> impl Iterator<Item = UpdateCompliance> + 'a {
    plan.updates.iter().filter_map(move |update| {
        let id = &catalogue.get(update.update)?.id;
        let Sighting { first_seen, missing_since } = convert::sighting(before, id, now);
        Some(UpdateCompliance {
            first_seen: Some(first_seen),
            missing_since: Some(missing_since).filter(|missing| *missing < first_seen),
            ..update_compliance(id, update, plan.policy.as_deref())
        })
    })
}

fn governance(pair: &Pair) -> devinv::Governance {
    let Pair { policy, group } = pair;
    let name = |name: &Option<Name>| name.as_deref().map(str::to_owned);
    devinv::Governance { policy: name(policy), approval_group: name(group) }
}

fn shadowed(names: &[Name]) -> Vec<String> {
    names.iter().take(SHADOWED_IN_STATUS).map(|name| (**name).to_owned()).collect()
}

/// Whether nothing was written of a policy yet that could tell what happened under its name before.
pub fn is_new(object: &PatchPolicy) -> bool {
    let is_unread = |condition: &Condition| condition.type_ == c::READY && condition.reason == c::REASON_RECORD_UNREAD;
    object.status.as_ref().is_none_or(|status| status.conditions.iter().any(is_unread))
}

/// A policy. With `record_unread` nothing begins for it before the client's record was read, and how far its updates have come is
/// not said: what is said now would count for later than what the record says.
pub fn policy(object: &PatchPolicy, plan: &PolicyPlan, record_unread: bool, now: Timestamp) -> PatchPolicyStatus {
    let unknown = Progress::default();
    let come = if record_unread { &unknown } else { &plan.progress };
    let invalid = convert::policy(object).settings.err().map(|invalid| invalid.0);
    let paused = come.paused.map(|since| {
        let after = "more devices failed than spec.rollout.failureBudget allows; look into them, then set \
                     spec.rollout.resumed to a time after that";
        (c::REASON_ROLLOUT_PAUSED, format!("paused at {since}: {after}"))
    });
    let waits = paused.or_else(|| come.blast.pending.as_ref().map(|pending| blast_limit(object, pending)));
    let stalled = match (&plan.stalled, invalid) {
        (_, Some(message)) => Some((c::REASON_INVALID_SPEC, message)),
        (Some(blocked), None) => Some(match &**blocked {
            Blocked::WindowNotFound { window, .. } => {
                let what = "does not exist in this namespace: nothing is installed";
                (c::REASON_NOT_FOUND, format!("spec.windows: MaintenanceWindow/{window} {what}"))
            }
            other => (c::REASON_INVALID_SPEC, other.to_string()),
        }),
        (None, None) => waits,
    };
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let enforced = match (object.spec.suspend, object.spec.mode) {
        (true, _) => (c::REASON_SUSPENDED, "suspended by spec.suspend: nothing is started".to_owned()),
        (false, Mode::Audit) => {
            (c::REASON_ENFORCED, "mode Audit: compliance is reported, nothing is installed".to_owned())
        }
        (false, Mode::DownloadOnly) => (c::REASON_ENFORCED, "mode DownloadOnly: nothing is installed".to_owned()),
        (false, Mode::Install | Mode::InstallImmediately) => (c::REASON_ENFORCED, window_message(plan)),
    };
    if record_unread {
        conditions.set_stalled(stalled.as_ref());
        let why =
            "what happened under this name before was not read from the gateway's store yet: nothing begins until then";
        conditions.set(c::READY, false, c::REASON_RECORD_UNREAD, why);
    } else {
        conditions.set_ready(stalled.as_ref(), &enforced);
    }
    let all = plan.compliant == plan.devices;
    let reason = match (all, plan.overdue) {
        (true, _) if plan.states.of(outcome::Compliance::WithinDeadline) > 0 => c::REASON_WITHIN_DEADLINE,
        (true, _) => c::REASON_UP_TO_DATE,
        (false, 0) => c::REASON_UPDATES_MISSING,
        (false, _) => c::REASON_DEADLINE_MISSED,
    };
    let message = format!("{} of {} devices comply", plan.compliant, plan.devices);
    conditions.set(c::COMPLIANT, all, reason, &message);
    PatchPolicyStatus {
        devices: plan.devices,
        compliant: Some(format!("{}/{}", plan.compliant, plan.devices)),
        states: Some(states(&plan.states)),
        overdue: Some(plan.overdue),
        forecast: plan.forecast.as_ref().map(|it| Forecast { missing: it.missing, of: it.of, done: it.done }),
        installing: plan.installing,
        failed: plan.failed,
        next_window: plan.next_window,
        rings: plan
            .rings
            .iter()
            .map(|ring| RingStatus {
                name: ring.name.as_deref().unwrap_or(REST).to_owned(),
                compliant: format!("{}/{}", ring.compliant, ring.devices),
            })
            .collect(),
        paused: come.paused.map(whole_seconds),
        updates: progress(come),
        in_force: come.blast.accepted.as_ref().map(|it| SpecsInForce {
            specs: it.specs.to_string(),
            since: whole_seconds(it.since),
            devices: it.devices,
        }),
        pending: come.blast.pending.as_ref().map(|it| PendingSpecs {
            specs: it.specs.to_string(),
            since: whole_seconds(it.since),
            devices: it.devices,
        }),
        durations: durations(&come.durations),
        observed_generation: object.metadata.generation,
        conditions: conditions.list,
    }
}

/// Whether a policy's status tells already what `wanted` tells of how far its updates have come and which specs are in force.
pub fn tells_progress(status: Option<&PatchPolicyStatus>, wanted: &PatchPolicyStatus) -> bool {
    let told = |status: &PatchPolicyStatus| {
        let PatchPolicyStatus { updates, paused, in_force, pending, durations, .. } = status;
        (updates.clone(), *paused, in_force.clone(), pending.clone(), durations.clone())
    };
    status.is_some_and(|status| told(status) == told(wanted))
}

/// Why a change is not in force, and what makes it so.
fn blast_limit(object: &PatchPolicy, pending: &Pending) -> (&'static str, String) {
    let Pending { specs, since: _, devices } = pending;
    let limit = match &object.spec.blast_limit {
        IntOrString::Int(count) => count.to_string(),
        IntOrString::String(percent) => percent.clone(),
    };
    let message = format!(
        "a change of policies, groups or windows makes {devices} devices newly eligible, more than spec.blastLimit \
         ({limit}) allows: nothing is installed on them; if it is meant, set spec.confirm to {specs}"
    );
    (c::REASON_BLAST_LIMIT, message)
}

/// How far updates have come: of more than status can hold those that went forward last.
fn progress(progress: &Progress) -> Vec<UpdateProgress> {
    let moved = |update: &model::UpdateProgress| Some(update.opened).max(update.reached).max(update.stopped);
    let mut updates: Vec<_> = progress.updates.iter().collect();
    if updates.len() > FOLLOWED {
        updates.sort_by_key(|(_, update)| Reverse(moved(update)));
        updates.truncate(FOLLOWED);
        updates.sort_by_key(|(id, _)| *id);
    }
    let written = |(id, update): (&Name, &model::UpdateProgress)| UpdateProgress {
        id: id.to_string(),
        ring: update.ring.as_deref().unwrap_or(REST).to_owned(),
        opened: whole_seconds(update.opened),
        reached: update.reached.map(whole_seconds),
        stopped: update.stopped.map(whole_seconds),
    };
    updates.into_iter().map(written).collect()
}

fn states(counts: &ComplianceCounts) -> DeviceStates {
    use outcome::Compliance as C;
    DeviceStates {
        up_to_date: counts.of(C::UpToDate),
        within_deadline: counts.of(C::WithinDeadline),
        updates_missing: counts.of(C::UpdatesMissing),
        deadline_missed: counts.of(C::DeadlineMissed),
        removal_due: counts.of(C::RemovalDue),
        restart_required: counts.of(C::RestartRequired),
        truncated: counts.of(C::Truncated),
        unknown: counts.of(C::Unknown),
    }
}

fn durations(known: &model::Durations) -> Option<Durations> {
    let model::Durations { updates, kinds } = known;
    let durations = Durations {
        kinds: kinds.iter().map(|(kind, seconds)| KindDuration { classification: *kind, seconds: *seconds }).collect(),
        updates: updates.iter().map(|(id, seconds)| UpdateDuration { id: id.to_string(), seconds: *seconds }).collect(),
    };
    (durations != Durations::default()).then_some(durations)
}

/// A group.
pub fn group(object: &ApprovalGroup, plan: &GroupPlan, now: Timestamp) -> ApprovalGroupStatus {
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let stalled = match (&plan.invalid, &plan.stalled) {
        (Some(message), _) => Some((c::REASON_INVALID_SPEC, message.clone())),
        (None, Some(blocked)) => Some(match &**blocked {
            Blocked::ParentNotFound { .. } => {
                (c::REASON_NOT_FOUND, format!("spec.parent: {blocked}: {NOTHING_APPROVED}"))
            }
            Blocked::WindowNotFound { window, .. } => {
                let what = "does not exist in this namespace: what is to be installed in it waits";
                (c::REASON_NOT_FOUND, format!("MaintenanceWindow/{window} {what}"))
            }
            Blocked::VulnerabilitiesUnknown { rule, .. } => {
                let what = "asks knownExploited or epssAtLeast, and nobody has told of any vulnerability yet: updates that \
                            fix some wait there";
                (c::REASON_NOT_FOUND, format!("spec.rules: {rule} {what}"))
            }
            other => (c::REASON_INVALID_SPEC, format!("spec.parent: {other}: {NOTHING_APPROVED}")),
        }),
        (None, None) => None,
    };
    conditions.set_ready(stalled.as_ref(), &(c::REASON_ENFORCED, "decisions and rules are in force".to_owned()));
    ApprovalGroupStatus {
        devices: plan.devices,
        states: Some(states(&plan.states)),
        seen: seen(&plan.seen),
        observed_generation: object.metadata.generation,
        conditions: conditions.list,
    }
}

fn seen(seen: &[Seen]) -> Vec<SeenUpdate> {
    seen.iter()
        .map(|seen| SeenUpdate {
            id: seen.id.to_string(),
            first: whole_seconds(seen.first),
            by: seen.by.to_string(),
            since: seen.shared.map(whole_seconds),
        })
        .collect()
}

/// A window.
pub fn window(object: &MaintenanceWindow, plan: &WindowPlan, now: Timestamp) -> MaintenanceWindowStatus {
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let stalled = plan.invalid.clone().map(|message| (c::REASON_INVALID_SPEC, message));
    let enforced = if plan.open_until.is_none() && plan.upcoming.is_empty() {
        "accepted; it will not open again".to_owned()
    } else {
        "accepted".to_owned()
    };
    conditions.set_ready(stalled.as_ref(), &(c::REASON_ENFORCED, enforced));
    MaintenanceWindowStatus {
        active: plan.open_until.is_some(),
        current_end: plan.open_until,
        next_start: plan.upcoming.first().map(|span| span.start),
        next_end: plan.upcoming.first().map(|span| span.end),
        upcoming: plan.upcoming.iter().map(|span| Occurrence { start: span.start, end: span.end }).collect(),
        observed_generation: object.metadata.generation,
        conditions: conditions.list,
    }
}

fn window_message(plan: &PolicyPlan) -> String {
    match (plan.open, plan.next_window) {
        (true, _) => "a window is open: approved updates are being installed".to_owned(),
        (false, Some(opens)) => format!("the next window opens at {opens}"),
        (false, None) => "no window will open again".to_owned(),
    }
}

fn device_trouble(
    object: &DeviceInventory,
    no_report: Option<NoReport>,
    refused_result: Option<&str>,
) -> Option<(&'static str, String)> {
    if object.spec.lifecycle == Lifecycle::Retired {
        return None;
    }
    match no_report {
        Some(NoReport::KeyNotAccepted) => Some((c::REASON_KEY_PENDING, key_pending(object))),
        Some(NoReport::None) => Some((c::REASON_NO_REPORT, "the device has not reported yet".to_owned())),
        Some(NoReport::Refused(why)) => Some((c::REASON_REPORT_REFUSED, why)),
        None => refused_result.map(|why| (c::REASON_RESULT_REFUSED, why.to_owned())),
    }
}

fn key_pending(object: &DeviceInventory) -> String {
    let pending = object
        .status
        .as_ref()
        .and_then(|status| status.inventory.as_ref())
        .and_then(|inventory| inventory.pending_key.as_deref());
    match (pending, &object.spec.accepted_key) {
        (Some(key), _) => format!("to accept the device, put its key in spec.acceptedKey: {key}"),
        (None, None) => "no key is accepted yet: spec.acceptedKey is empty and no device has asked".to_owned(),
        (None, Some(key)) => format!("the device that reports does not hold the accepted key {key}"),
    }
}

/// How many updates a condition names.
const NAMED: usize = 3;

/// What must be installed, and by when.
fn due(plan: &DevicePlan, catalogue: &Catalogue) -> String {
    let Some(due) = &plan.due else { return String::new() };
    let ids = due.updates.iter().filter_map(|update| catalogue.get(*update)).map(|update| &*update.id);
    let named: Vec<&str> = ids.take(NAMED).collect();
    let more = due.updates.len().saturating_sub(named.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}: {}{more}", whole_seconds(due.at), named.join(", "))
}

fn device_compliant(conditions: &mut Conditions, plan: &DevicePlan, catalogue: &Catalogue) {
    use outcome::Compliance as C;
    match plan.compliance {
        C::WithinDeadline => {
            let message = format!("approved updates are missing, the first of them until {}", due(plan, catalogue));
            conditions.set(c::COMPLIANT, true, c::REASON_WITHIN_DEADLINE, &message);
        }
        C::DeadlineMissed => {
            let message = format!("approved updates are missing that were due at {}", due(plan, catalogue));
            conditions.set(c::COMPLIANT, false, c::REASON_DEADLINE_MISSED, &message);
        }
        C::UpToDate => conditions.set(c::COMPLIANT, true, c::REASON_UP_TO_DATE, "every approved update is installed"),
        C::UpdatesMissing => {
            conditions.set(c::COMPLIANT, false, c::REASON_UPDATES_MISSING, "approved updates are missing");
        }
        C::RemovalDue => {
            conditions.set(
                c::COMPLIANT,
                false,
                c::REASON_REMOVAL_DUE,
                "updates are installed that are to be taken back",
            );
        }
        C::RestartRequired => {
            conditions.set(c::COMPLIANT, false, c::REASON_RESTART_REQUIRED, "the device waits for a restart");
        }
        C::Truncated => conditions.set(
            c::COMPLIANT,
            false,
            c::REASON_TRUNCATED,
            "more updates are offered than a report carries; they are planned in passes",
        ),
        C::Unknown => conditions.set_unknown(
            c::COMPLIANT,
            c::REASON_UNKNOWN,
            "no recent report that is believed, or no policy or group has the device",
        ),
    }
}

fn counts(updates: &[UpdatePlan]) -> StateCounts {
    let mut counts = StateCounts::default();
    for update in updates {
        let count = match (update.state, update.decision) {
            (State::Pending, _) => &mut counts.pending,
            (State::Installing, _) => &mut counts.installing,
            (State::Failed, _) => &mut counts.failed,
            (State::Held, _) => &mut counts.held,
            // No update: the device's conditions tell it.
            (State::RestartRequired, _) => continue,
            (State::Ignored, _) => &mut counts.ignored,
            (State::Installed, _) => &mut counts.to_be_removed,
            (State::Missing | State::Downloaded | State::Unknown, Decision::AwaitingApproval) => {
                &mut counts.awaiting_approval
            }
            (State::Missing | State::Downloaded | State::Unknown, Decision::Aging) => &mut counts.aging,
            (State::Missing | State::Downloaded | State::Unknown, _) => {
                counts.downloaded += u32::from(update.state == State::Downloaded);
                &mut counts.missing
            }
        };
        *count += 1;
    }
    counts
}

fn update_compliance(id: &str, update: &UpdatePlan, policy: Option<&str>) -> UpdateCompliance {
    let blocked_by = match update.blocked.as_deref() {
        Some(blocked) if !blocked.is_passing() => Some(format!("{}: {blocked}", blocked.code())),
        Some(_) | None if matches!(update.state, State::Pending | State::Installing) => None,
        Some(_) | None => {
            let does = match update.state {
                State::Installed => "takes it back",
                State::RestartRequired => "restarts the device",
                _ => "installs it",
            };
            policy.map(|policy| format!("Scheduled: PatchPolicy/{policy} {does} in its windows, in its turn"))
        }
    };
    UpdateCompliance {
        id: id.to_owned(),
        state: match update.state {
            State::Missing => devinv::UpdateState::Missing,
            State::Downloaded => devinv::UpdateState::Downloaded,
            State::Installed => devinv::UpdateState::Installed,
            State::Pending => devinv::UpdateState::Pending,
            State::Installing => devinv::UpdateState::Installing,
            State::Failed => devinv::UpdateState::Failed,
            State::Ignored => devinv::UpdateState::Ignored,
            State::Held => devinv::UpdateState::Held,
            State::RestartRequired => devinv::UpdateState::RestartRequired,
            State::Unknown => devinv::UpdateState::Unknown,
        },
        decision: match update.decision {
            Decision::Approved => devinv::Decision::Approved,
            Decision::Ignored => devinv::Decision::Ignored,
            Decision::Waived => devinv::Decision::Waived,
            Decision::Aging => devinv::Decision::Aging,
            Decision::AwaitingApproval => devinv::Decision::AwaitingApproval,
            Decision::Remove => devinv::Decision::Remove,
        },
        rule: update.decided_by.as_ref().map(|by| bounded(&by.to_string())),
        blocked_by: blocked_by.as_deref().map(bounded),
        first_seen: None,
        missing_since: None,
    }
}

/// Two names of 253 characters each do not fit into the 400 that the schema allows.
fn bounded(text: &str) -> String {
    text.chars().take(400).collect()
}

/// A list of conditions that keeps `lastTransitionTime` while a status stays the same.
struct Conditions {
    list: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Conditions {
    fn of<K: kube::Resource>(old: Option<&[Condition]>, object: &K, now: Timestamp) -> Self {
        Self { list: old.unwrap_or_default().to_vec(), generation: object.meta().generation, now }
    }

    /// kstatus: `Stalled` is there only while a person must act, and `Ready` says the same.
    fn set_ready(&mut self, stalled: Option<&(&'static str, String)>, enforced: &(&'static str, String)) {
        self.set_stalled(stalled);
        match stalled {
            Some((reason, message)) => self.set(c::READY, false, reason, message),
            None => self.set(c::READY, true, enforced.0, &enforced.1),
        }
    }

    fn set_stalled(&mut self, stalled: Option<&(&'static str, String)>) {
        match stalled {
            Some((reason, message)) => self.set(c::STALLED, true, reason, message),
            None => self.list.retain(|condition| condition.type_ != c::STALLED),
        }
    }

    fn set(&mut self, type_: &str, holds: bool, reason: &str, message: &str) {
        self.put(type_, if holds { "True" } else { "False" }, reason, message);
    }

    fn set_unknown(&mut self, type_: &str, reason: &str, message: &str) {
        self.put(type_, "Unknown", reason, message);
    }

    fn put(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let since = self
            .list
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .map_or_else(|| Time(whole_seconds(self.now)), |condition| condition.last_transition_time.clone());
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(1024).collect(),
            last_transition_time: since,
            observed_generation: self.generation,
        };
        match self.list.iter_mut().find(|condition| condition.type_ == type_) {
            Some(old) => *old = condition,
            None => self.list.push(condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{Accepted, Blast, Moved, Snapshot, Update};
    use crate::plan::plan as plan_all;
    use jiff::SignedDuration;
    use patchwarden_protocol::report::{Classification, Severity};
    use serde_json::json;
    use std::sync::Arc;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn a_policy() -> PatchPolicy {
        serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "PatchPolicy",
            "metadata": {"name": "servers", "namespace": "acme", "generation": 4},
            "spec": {"mode": "Install", "windows": ["nights"]}
        }))
        .unwrap()
    }

    fn plan() -> PolicyPlan {
        PolicyPlan {
            name: "servers".into(),
            devices: 2,
            compliant: 1,
            states: ComplianceCounts::default(),
            overdue: 0,
            forecast: None,
            installing: 0,
            failed: 0,
            open: false,
            next_window: Some(at("2026-01-11T02:00:00Z")),
            stalled: None,
            rings: vec![],
            progress: Arc::default(),
        }
    }

    #[test]
    fn a_window_tells_what_comes_and_the_clock_alone_changes_nothing_while_it_is_closed() {
        let object: MaintenanceWindow = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "MaintenanceWindow",
            "metadata": {"name": "nights", "generation": 3},
            "spec": {
                "timeZone": "Europe/Berlin", "duration": "2h",
                "schedules": [{"cron": {"expression": "30 2 * * FRI-SUN"}}],
            }
        }))
        .unwrap();
        let snapshot = Snapshot { windows: vec![convert::window(&object)], ..Snapshot::default() };
        let status = |now| window(&object, &plan_all(&snapshot, now).windows[0], at("2026-03-23T00:00:00Z"));
        let closed = status(at("2026-03-27T03:30:00Z"));
        let start = |hour: &str| Occurrence { start: at(hour), end: at(hour) + SignedDuration::from_hours(2) };
        assert_eq!(
            closed.upcoming,
            [
                start("2026-03-28T01:30:00Z"),
                // 02:30 does not exist on this day.
                start("2026-03-29T01:30:00Z"),
                start("2026-04-03T00:30:00Z"),
                start("2026-04-04T00:30:00Z"),
                start("2026-04-05T00:30:00Z"),
            ]
        );
        assert_eq!((closed.active, closed.current_end), (false, None));
        assert_eq!(closed.next_start, Some(closed.upcoming[0].start));
        assert_eq!(closed.next_end, Some(closed.upcoming[0].end));
        assert_eq!(status(at("2026-03-28T01:29:59Z")), closed);
        let open = status(at("2026-03-28T01:30:00Z"));
        assert_eq!((open.active, &open.upcoming[0], open.upcoming.len()), (true, &closed.upcoming[1], 5));
        assert_eq!(status(at("2026-03-28T03:29:59Z")), open);
    }

    #[test]
    fn a_policy_is_ready_while_its_window_is_closed_and_says_when_it_opens() {
        let status = policy(&a_policy(), &plan(), false, at("2026-01-10T12:00:00Z"));
        let ready = status.conditions.iter().find(|condition| condition.type_ == c::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", c::REASON_ENFORCED));
        assert_eq!(ready.message, "the next window opens at 2026-01-11T02:00:00Z");
        assert_eq!(status.compliant.as_deref(), Some("1/2"));
        assert_eq!(status.observed_generation, Some(4));
    }

    #[test]
    fn a_policy_without_its_window_is_stalled_and_no_longer_once_it_is_there() {
        let mut object = a_policy();
        let missing = Blocked::WindowNotFound { by: "PatchPolicy/servers".into(), window: "nights".into() };
        let status = policy(
            &object,
            &PolicyPlan { stalled: Some(Arc::new(missing)), ..plan() },
            false,
            at("2026-01-10T12:00:00Z"),
        );
        let stalled = status.conditions.iter().find(|condition| condition.type_ == c::STALLED).unwrap();
        assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", c::REASON_NOT_FOUND));
        assert!(stalled.message.starts_with("spec.windows: MaintenanceWindow/nights does not exist"));
        object.status = Some(status);
        let status = policy(&object, &plan(), false, at("2026-01-10T13:00:00Z"));
        assert!(status.conditions.iter().all(|condition| condition.type_ != c::STALLED));
    }

    #[test]
    fn a_change_that_waits_for_a_person_says_what_confirms_it_and_is_read_back_as_it_was_written() {
        let mut object = a_policy();
        let now = at("2026-01-10T12:00:00Z");
        let accepted = Accepted { specs: "00112233445566ff".into(), since: now, devices: 3 };
        let pending = Pending { specs: "ffeeddccbbaa9988".into(), since: now, devices: 60 };
        let mut plan = plan();
        Arc::make_mut(&mut plan.progress).blast = Blast { accepted: Some(accepted), pending: Some(pending) };
        let status = policy(&object, &plan, false, now);
        let stalled = status.conditions.iter().find(|condition| condition.type_ == c::STALLED).unwrap();
        assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", c::REASON_BLAST_LIMIT));
        assert_eq!(
            stalled.message,
            "a change of policies, groups or windows makes 60 devices newly eligible, more than spec.blastLimit (10%) allows: \
             nothing is installed on them; if it is meant, set spec.confirm to ffeeddccbbaa9988"
        );
        object.status = Some(serde_json::from_value(serde_json::to_value(&status).unwrap()).unwrap());
        assert_eq!(convert::policy(&object).progress, plan.progress);
        Arc::make_mut(&mut plan.progress).blast.pending = None;
        let status = policy(&object, &plan, false, now);
        assert!(status.conditions.iter().all(|condition| condition.type_ != c::STALLED));
    }

    #[test]
    fn a_policy_of_which_nothing_is_known_waits_and_says_so_until_the_record_was_read() {
        let mut object = a_policy();
        assert!(is_new(&object));
        let mut plan = plan();
        Arc::make_mut(&mut plan.progress).updates = [("u".into(), come(10))].into();
        Arc::make_mut(&mut plan.progress).paused = Some(at("2026-01-10T11:00:00Z"));
        let waits = policy(&object, &plan, true, at("2026-01-10T12:00:00Z"));
        let ready = waits.conditions.iter().find(|condition| condition.type_ == c::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", c::REASON_RECORD_UNREAD));
        assert!(waits.updates.is_empty() && waits.paused.is_none(), "it would count for later than the record");
        object.status = Some(waits.clone());
        assert!(is_new(&object), "also after a restart");
        assert_eq!(policy(&object, &plan, true, at("2026-01-10T13:00:00Z")), waits);
        assert!(!tells_progress(object.status.as_ref(), &policy(&object, &plan, false, at("2026-01-10T13:00:00Z"))));
        object.status = Some(policy(&object, &plan, false, at("2026-01-10T13:00:00Z")));
        assert!(!is_new(&object));
        assert_eq!(object.status.as_ref().map(|status| status.updates.len()), Some(1));
        // Stalled for another reason, it still waits.
        let mut missing = a_policy();
        let window = Blocked::WindowNotFound { by: "PatchPolicy/servers".into(), window: "nights".into() };
        let stalled = PolicyPlan { stalled: Some(Arc::new(window)), ..plan };
        missing.status = Some(policy(&missing, &stalled, true, at("2026-01-10T12:00:00Z")));
        assert!(is_new(&missing));
        let conditions = missing.status.map(|status| status.conditions).unwrap_or_default();
        assert!(conditions.iter().any(|condition| condition.type_ == c::STALLED));
    }

    #[test]
    fn a_group_says_which_of_its_rules_asks_what_nobody_has_told() {
        let object: ApprovalGroup = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "ApprovalGroup", "metadata": {"name": "g"}, "spec": {},
        }))
        .unwrap();
        let blocked = Blocked::VulnerabilitiesUnknown { group: "g".into(), rule: "exploited".into() };
        let plan = GroupPlan {
            name: "g".into(),
            devices: 1,
            states: ComplianceCounts::default(),
            seen: Arc::default(),
            invalid: None,
            stalled: Some(Arc::new(blocked)),
        };
        let status = group(&object, &plan, at("2026-01-10T12:00:00Z"));
        let stalled = status.conditions.iter().find(|condition| condition.type_ == c::STALLED).unwrap();
        assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", c::REASON_NOT_FOUND));
        assert!(stalled.message.starts_with("spec.rules: exploited asks knownExploited"), "{}", stalled.message);
    }

    fn come(second: i64) -> model::UpdateProgress {
        let opened = Timestamp::from_second(second).unwrap();
        model::UpdateProgress { ring: None, opened, reached: None, stopped: None }
    }

    #[test]
    fn of_more_updates_than_status_holds_it_tells_those_that_went_forward_last() {
        let mut plan = plan();
        let updates = (0..300_i64).map(|number| (Name::from(format!("u{:03}", (number * 7) % 300)), come(number)));
        Arc::make_mut(&mut plan.progress).updates = updates.collect();
        let stopped = Arc::make_mut(&mut plan.progress).updates.get_mut("u000").unwrap();
        stopped.stopped = Some(Timestamp::from_second(1000).unwrap());
        let status = policy(&a_policy(), &plan, false, at("2026-01-10T12:00:00Z"));
        assert_eq!(status.updates.len(), 256);
        let told = |id: &str| status.updates.iter().any(|update| update.id == id);
        let opened = |second: i64| format!("u{:03}", (second * 7) % 300);
        assert!(told("u000") && told(&opened(299)) && told(&opened(45)) && !told(&opened(44)) && !told(&opened(1)));
        assert!(status.updates.is_sorted_by_key(|update| &update.id));
    }

    #[test]
    fn a_condition_names_what_is_missing_until_when_and_the_clock_alone_rewrites_nothing() {
        let mut catalogue = Catalogue::default();
        let mut intern = |id: &str| {
            catalogue.intern(Update {
                id: id.into(),
                classification: Classification::Security,
                severity: Severity::High,
                packages: vec![],
                cves: vec![],
                published: None,
            })
        };
        let updates: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(&mut intern).collect();
        let object = DeviceInventory::new("web-1", devinv::DeviceInventorySpec::default());
        let status = |compliance, overdue, now| {
            let plan = DevicePlan {
                name: "web-1".into(),
                policy: None,
                shadowed_policies: vec![],
                group: None,
                shadowed_groups: vec![],
                updates: vec![],
                install: None,
                compliance,
                due: Some(outcome::Due { at: at("2026-01-12T00:00:00Z"), overdue, updates: updates.clone() }),
                moved: None,
                eligible: false,
            };
            let before = at("2026-01-10T00:00:00Z");
            let status = device(&object, Compliance::default(), &plan, &catalogue, None, before.max(at(now)));
            let compliant = status.conditions.into_iter().find(|condition| condition.type_ == c::COMPLIANT).unwrap();
            (status.compliance.deadline, compliant.status, compliant.reason, compliant.message)
        };
        let within = status(outcome::Compliance::WithinDeadline, false, "2026-01-10T00:00:00Z");
        assert_eq!(within.0, Some(at("2026-01-12T00:00:00Z")));
        assert_eq!((within.1.as_str(), within.2.as_str()), ("True", c::REASON_WITHIN_DEADLINE));
        assert_eq!(
            within.3,
            "approved updates are missing, the first of them until 2026-01-12T00:00:00Z: a, b, c and 2 more"
        );
        assert_eq!(status(outcome::Compliance::WithinDeadline, false, "2026-01-11T00:00:00Z"), within);
        let missed = status(outcome::Compliance::DeadlineMissed, true, "2026-01-12T00:00:00Z");
        assert_eq!((missed.0, missed.1.as_str(), missed.2.as_str()), (within.0, "False", c::REASON_DEADLINE_MISSED));
        assert_eq!(missed.3, "approved updates are missing that were due at 2026-01-12T00:00:00Z: a, b, c and 2 more");
    }

    #[test]
    fn what_was_measured_is_read_back_as_it_was_written() {
        let mut object = a_policy();
        let durations = model::Durations {
            updates: [("a".into(), 90), ("b".into(), 30)].into(),
            kinds: [(Classification::Security, 90)].into(),
        };
        let progress = Arc::new(Progress { durations, ..Progress::default() });
        object.status = Some(policy(
            &object,
            &PolicyPlan { progress: progress.clone(), ..plan() },
            false,
            at("2026-01-10T12:00:00Z"),
        ));
        assert_eq!(convert::policy(&object).progress, progress);
    }

    #[test]
    fn nothing_new_gives_an_equal_status_an_hour_later() {
        let mut object = a_policy();
        object.status = Some(policy(&object, &plan(), false, at("2026-01-10T12:00:00Z")));
        assert_eq!(Some(policy(&object, &plan(), false, at("2026-01-10T13:00:00Z"))), object.status);
    }

    /// The plan of a device that offers nothing.
    fn device_plan(moved: Option<Box<Moved>>) -> DevicePlan {
        DevicePlan {
            name: "web-1".into(),
            policy: Some("servers".into()),
            shadowed_policies: vec![],
            group: Some("all".into()),
            shadowed_groups: vec![],
            updates: vec![],
            install: None,
            compliance: outcome::Compliance::Unknown,
            due: None,
            moved,
            eligible: true,
        }
    }

    #[test]
    fn what_a_device_had_and_was_is_read_back_as_it_was_written() {
        let (now, since) = (at("2026-01-10T12:00:00Z"), at("2026-01-10T11:55:00Z"));
        let object = DeviceInventory::new("web-1", devinv::DeviceInventorySpec::default());
        for before in [None, Some(Pair { policy: Some("others".into()), group: None })] {
            let moved = Some(Box::new(Moved { since, before }));
            let plan = device_plan(moved.clone());
            let written = device(&object, Compliance::default(), &plan, &Catalogue::default(), None, now).compliance;
            let stored: Compliance = serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
            let read = convert::device(&object, &stored, &mut Catalogue::default(), now);
            assert_eq!((read.last_policy, read.last_group, read.moved), (plan.policy, plan.group, moved));
            assert!(read.eligible);
        }
        let never = device(&object, Compliance::default(), &device_plan(None), &Catalogue::default(), None, now);
        assert_eq!((never.compliance.governed_since, never.compliance.governed_before), (None, None));
    }

    #[test]
    fn what_only_the_clock_or_a_neighbour_lifts_is_not_in_a_devices_status() {
        let mut catalogue = Catalogue::default();
        let offered = catalogue.intern(Update {
            id: "u".into(),
            classification: Classification::Security,
            severity: Severity::Unknown,
            packages: vec![],
            cves: vec![],
            published: None,
        });
        let update = |blocked: Option<Blocked>| UpdatePlan {
            update: offered,
            state: State::Missing,
            decision: Decision::Approved,
            decided_by: None,
            blocked: blocked.map(Arc::new),
            eligible_at: None,
        };
        let compliance = |blocked| update_compliance("u", &update(blocked), Some("p"));
        let closed = compliance(Some(Blocked::WindowClosed { opens: None }));
        let waits = Blocked::ConcurrencyReached { policy: "p".into(), limit: 1 };
        assert_eq!(closed, compliance(Some(waits)));
        assert_eq!(closed, compliance(None));
        let suspended = compliance(Some(Blocked::DeviceSuspended));
        assert_eq!(suspended.blocked_by.as_deref(), Some("DeviceSuspended: the device is suspended"));
    }
}
