//! A policy.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::conditions as c;
use crate::api::patch_policy::{
    DeviceStates, Durations, FailedOn, Forecast, KindDuration, Mode, PendingSpecs, REST, RingStatus, SpecsInForce,
    UpdateDuration, UpdateProgress,
};
use crate::api::{PatchPolicy, PatchPolicyStatus};
use crate::convert::{self, whole_seconds};
use crate::plan::model::{self, Name, Pending, Progress};
use crate::plan::outcome::{self, Blocked, ComplianceCounts, NAMED, Others, Overlap, PolicyPlan, Unprovable};

use super::conditions::{Conditions, Progress as Advance};
use super::device::compliance_reason;
use super::{and_more, unknown_devices};

/// How many updates of a policy status tells of: what its schema allows.
pub const FOLLOWED: usize = 256;

/// Whether nothing was written of a policy yet that could tell what happened under its name before.
pub fn is_new(object: &PatchPolicy) -> bool {
    let is_read = |condition: &Condition| condition.type_ == c::READY && condition.reason != c::REASON_RECORD_UNREAD;
    // What the API server says of an object before we do (`api::crd`) has no conditions.
    !object.status.iter().flat_map(|status| &status.conditions).any(is_read)
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
        (None, None) => waits
            .or_else(|| never_opens(object, plan))
            .or_else(|| plan.unprovable.as_ref().map(ring_too_small))
            .or_else(|| plan.too_short.as_ref().map(window_too_short))
            .or_else(|| missing_groups(object, plan)),
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
    let unread =
        "what happened under this name before was not read from the gateway's store yet: nothing begins until then";
    conditions.set_progress(&match stalled {
        Some(stalled) => Advance::Stalled(stalled),
        None if record_unread => Advance::Waits((c::REASON_RECORD_UNREAD, unread.to_owned())),
        None => Advance::Enforced(enforced),
    });
    // Also of one that is stalled: `is_new` goes by it.
    if record_unread {
        conditions.set(c::READY, false, c::REASON_RECORD_UNREAD, unread);
    }
    match &plan.overlap {
        Some(overlap) => {
            let (reason, message) = overlapping(object, overlap);
            conditions.set(c::OVERLAPPING, true, reason, &message);
        }
        None => conditions.remove(c::OVERLAPPING),
    }
    conditions.set_names_unknown(names_unknown(object, plan));
    let (status, reason) = compliant(plan);
    let message = format!("{} of {} devices comply", plan.compliant, plan.devices);
    conditions.put(c::COMPLIANT, status, reason, &message);
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

/// What is to be said of all its devices together: the worst that is true of one of them.
fn compliant(plan: &PolicyPlan) -> (&'static str, &'static str) {
    use outcome::Compliance as C;
    let is_any = |kind: &C| plan.states.of(*kind) > 0;
    // One that is not heard of any more had until then, too.
    let overdue = Some(C::DeadlineMissed).filter(|_| plan.overdue > 0);
    let worst = [C::DeadlineMissed, C::UpdatesMissing, C::RemovalDue, C::RestartRequired, C::Truncated];
    if plan.devices == 0 {
        ("True", c::REASON_NO_DEVICES)
    } else if let Some(kind) = overdue.or_else(|| worst.into_iter().find(is_any)) {
        ("False", compliance_reason(kind))
    } else if plan.compliant < plan.devices {
        ("Unknown", compliance_reason(C::Unknown))
    } else {
        ("True", compliance_reason(if is_any(&C::WithinDeadline) { C::WithinDeadline } else { C::UpToDate }))
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

/// Nothing is installed in windows that are over.
fn never_opens(object: &PatchPolicy, plan: &PolicyPlan) -> Option<(&'static str, String)> {
    let windows = object.spec.windows.iter().map(|window| format!("MaintenanceWindow/{window}"));
    let message = format!(
        "spec.windows: {}: none of them is open, and none will open any more: nothing is done in them; give one another \
         schedule, or name another one",
        listed(&windows.collect::<Vec<_>>())
    );
    plan.never_opens.then_some((c::REASON_NEVER_OPENS, message))
}

/// Others wait for what a ring can never prove.
fn ring_too_small(ring: &Unprovable) -> (&'static str, String) {
    let Unprovable { place, ring, devices, unknown, needs, waiting } = ring;
    let unheard =
        if *unknown == 0 { String::new() } else { format!(", of which {unknown} were not heard of for too long") };
    let message = format!(
        "spec.rollout.rings[{place}]: an update has to be installed on {needs} devices of ring {ring} (minSuccesses), which has \
         {devices}{unheard}: it proves none, and the {waiting} devices after it wait for what is new; give it more devices, another \
         minSuccesses, or, where it has none, whenEmpty: Promote"
    );
    (c::REASON_RING_TOO_SMALL, message)
}

/// Updates wait for a window of their own in which nothing of this policy could ever start.
fn window_too_short(window: &Name) -> (&'static str, String) {
    let message = format!(
        "spec.installLimit: MaintenanceWindow/{window}, which a rule or decision of an ApprovalGroup gives updates of its devices, is \
         not longer than its cutoff and than that: they are never installed; give the window a longer duration, the updates \
         another one, or lower the limit"
    );
    (c::REASON_WINDOW_TOO_SHORT, message)
}

/// Nobody is governed for a group that is not there, and nobody is left out for one.
fn missing_groups(object: &PatchPolicy, plan: &PolicyPlan) -> Option<(&'static str, String)> {
    let of = |field: &str, named: &[String], missing: &[Name], follows: &str| {
        let named = named.iter().enumerate().filter(|(_, name)| missing.iter().any(|missing| **missing == ***name));
        let missing: Vec<String> =
            named.map(|(index, name)| format!("spec.{field}[{index}]: ApprovalGroup/{name}")).collect();
        let (verb, whom) = if missing.len() == 1 { ("does", "it") } else { ("do", "them") };
        let follows = follows.replace("{}", whom);
        (!missing.is_empty()).then(|| format!("{} {verb} not exist in this namespace: {follows}", listed(&missing)))
    };
    let governed = of(
        "approvalGroups",
        &object.spec.approval_groups,
        &plan.missing_groups,
        "no device is governed for {}, those of other groups are",
    );
    let excluded = of(
        "excludeApprovalGroups",
        &object.spec.exclude_approval_groups,
        &plan.missing_excluded_groups,
        "no device is left out for {}, and one that was meant to be is governed",
    );
    let told: Vec<String> = governed.into_iter().chain(excluded).collect();
    (!told.is_empty()).then(|| (c::REASON_NOT_FOUND, told.join("; ")))
}

/// Devices that are named and not there, and a label that no server has.
fn names_unknown(object: &PatchPolicy, plan: &PolicyPlan) -> impl Iterator<Item = (&'static str, String)> {
    let field = ("spec.exclude", object.spec.exclude.iter());
    let devices = unknown_devices(field, &plan.unknown_devices, "no device is left out for");
    let label = object.spec.disruption.as_ref().filter(|_| plan.unlabelled).map(|disruption| {
        format!(
            "spec.disruption.groupBy: none of the servers that this policy governs has the label {}: it limits how many of them are \
             unavailable at a time in no way; correct the label, or give it to the servers",
            disruption.group_by
        )
    });
    let devices = devices.map(|message| (c::REASON_DEVICE_NOT_FOUND, message));
    devices.into_iter().chain(label.map(|message| (c::REASON_LABEL_NOT_FOUND, message)))
}

/// Which other policies select its devices, who has them, and what to do.
fn overlapping(object: &PatchPolicy, overlap: &Overlap) -> (&'static str, String) {
    let priority = object.spec.priority;
    match overlap {
        Overlap::SamePriority { won, lost, others } => {
            let message = format!(
                "{} of the devices that this policy selects are also selected with the same spec.priority ({priority}) by {}: the \
                 name that sorts first has them, this policy {won}, others {lost}; give one of them another spec.priority",
                won.saturating_add(*lost),
                policies(others)
            );
            (c::REASON_SAME_PRIORITY, message)
        }
        Overlap::HigherPriority { lost, others } => {
            let message = format!(
                "{lost} of the devices that this policy selects are governed by others, whose spec.priority is higher than \
                 {priority}: {}",
                policies(others)
            );
            (c::REASON_HIGHER_PRIORITY, message)
        }
    }
}

fn policies(Others { first, more }: &Others) -> String {
    let first: Vec<String> = first.iter().map(|name| format!("PatchPolicy/{name}")).collect();
    and_more(&first, *more)
}

/// The first few.
fn listed(all: &[String]) -> String {
    let (first, rest) = all.split_at(all.len().min(NAMED));
    and_more(first, rest.len())
}

/// How far updates have come: of more than status can hold those that are stopped or failed, and then those that went forward last.
fn progress(progress: &Progress) -> Vec<UpdateProgress> {
    let moved = |update: &model::UpdateProgress| Some(update.opened).max(update.reached).max(update.stopped);
    let mut updates: Vec<_> = progress.updates.iter().collect();
    if updates.len() > FOLLOWED {
        // What is stopped must not begin again, and on which devices it failed nothing else tells.
        let matters = |update: &model::UpdateProgress| update.stopped.is_some() || !update.failed.is_empty();
        updates.sort_by_key(|(_, update)| (!matters(update), Reverse(moved(update))));
        updates.truncate(FOLLOWED);
        updates.sort_by_key(|(id, _)| *id);
    }
    let failed_on = |it: &model::FailedOn| {
        let ring = it.ring.as_deref().map(str::to_owned);
        FailedOn { device: it.device.to_string(), last: whole_seconds(it.last), ring }
    };
    let written = |(id, update): (&Name, &model::UpdateProgress)| UpdateProgress {
        id: id.to_string(),
        ring: update.ring.as_deref().unwrap_or(REST).to_owned(),
        opened: whole_seconds(update.opened),
        reached: update.reached.map(whole_seconds),
        stopped: update.stopped.map(whole_seconds),
        installed: update.installed,
        installed_anywhere: update.anywhere,
        failed: update.failed.iter().map(failed_on).collect(),
    };
    updates.into_iter().map(written).collect()
}

pub(super) fn states(counts: &ComplianceCounts) -> DeviceStates {
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

fn window_message(plan: &PolicyPlan) -> String {
    match (plan.open, plan.next_window) {
        (true, _) => "a window is open: approved updates are being installed".to_owned(),
        (false, Some(opens)) => format!("the next window opens at {opens}"),
        (false, None) => "no window will open again in UTC; one may where devices' own clocks are behind it".to_owned(),
    }
}
