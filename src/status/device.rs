//! A device.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use patchwarden_protocol::order::{RESTART, Verb};
use patchwarden_protocol::report::{MAX_UPDATES, Tristate};
use patchwarden_protocol::result::ResultReason;

use crate::api::DeviceInventory;
use crate::api::conditions as c;
use crate::api::device_inventory::{self as devinv, Compliance, Failure, Lifecycle, StateCounts, UpdateCompliance};
use crate::convert::{self, Sighting, whole_seconds};
use crate::plan::model::{Catalogue, Name, NoReport, Pair};
use crate::plan::outcome::{self, Blocked, Decision, DevicePlan, State, UpdatePlan};
use crate::settings;

use super::conditions::{Conditions, Progress};

/// Of how many updates that are not offered any more status remembers that the device was brought back from them.
const ROLLED_BACK_IN_STATUS: usize = MAX_UPDATES;

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
    let Compliance {
        current, sequence, report_counter, last, installed, mut failures, updates: before, settings, ..
    } = settled;
    if let Ok(report) = &report {
        let offered = report.updates.iter().map(|update| &update.id);
        let told: BTreeSet<&String> = offered.chain(report.removable.iter().map(|update| &update.id)).collect();
        let waits_for_restart = report.restart.required == Tristate::Yes;
        let checked: BTreeSet<&str> = checked(plan, catalogue).collect();
        let is_told = |update: &String| told.contains(update) || (waits_for_restart && update == RESTART);
        forget(&mut failures, is_told, |update| checked.contains(update.as_str()));
    }
    let compliance = Compliance {
        policy: plan.policy.as_deref().map(str::to_owned),
        shadowed_policies: shadowed(&plan.shadowed_policies),
        approval_group: plan.group.as_deref().map(str::to_owned),
        shadowed_groups: shadowed(&plan.shadowed_groups),
        possible_groups: plan.possible_groups.iter().map(|name| (**name).to_owned()).collect(),
        counts: counts(&plan.updates),
        deadline: plan.due.as_ref().map(|due| whole_seconds(due.at)),
        updates: updates(plan, catalogue, &before, now).collect(),
        current,
        sequence: match &report {
            Ok(report) if report_counter == 0 => sequence.max(report.last_sequence.unwrap_or_default()),
            _ => sequence,
        },
        report_counter: report.as_ref().map_or(report_counter, |report| report.counter),
        last,
        installed,
        failures,
        eligible: plan.eligible,
        governed_since: plan.moved.as_ref().map(|moved| moved.since),
        governed_before: plan.moved.as_ref().and_then(|moved| moved.before.as_ref()).map(governance),
        settings,
    };
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let (believed, trouble) = match report {
        Ok(report) => (Some(report), None),
        Err(no_report) => (None, Some(no_report)),
    };
    match &trouble {
        Some(NoReport::DuplicateIdentity(words)) => {
            conditions.set(c::DUPLICATE_IDENTITY, true, c::REASON_DUPLICATE_IDENTITY, words);
        }
        _ => conditions.remove(c::DUPLICATE_IDENTITY),
    }
    let enforced = |reason, message: &str| Progress::Enforced((reason, message.to_owned()));
    conditions.set_progress(&match device_trouble(object, trouble, refused_result, plan) {
        Some(trouble) => trouble,
        None if object.spec.lifecycle == Lifecycle::Retired => {
            enforced(c::REASON_RETIRED, "retired: its key is revoked and its record is kept")
        }
        None if object.spec.suspend => enforced(c::REASON_SUSPENDED, "suspended by spec.suspend: nothing is installed"),
        None => enforced(c::REASON_ENFORCED, "reports are believed and decisions enforced"),
    });
    device_compliant(&mut conditions, plan, catalogue);
    match settings::condition(compliance.settings.as_ref(), believed) {
        Some((holds, reason, message)) => conditions.put(c::OS_UPDATER, holds, reason, &message),
        None => conditions.remove(c::OS_UPDATER),
    }
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
        let told = update_compliance(id, update, plan.policy.as_deref());
        if update.is_checked() {
            // It is not lacked, nor are later versions of it for as long.
            return Some(told);
        }
        let Sighting { first_seen, missing_since } = convert::sighting(before, id, now);
        Some(UpdateCompliance {
            first_seen: Some(first_seen),
            missing_since: Some(missing_since).filter(|missing| *missing < first_seen),
            ..told
        })
    })
}

/// Ids of updates that are told of only because a check failed after them.
fn checked<'a>(plan: &'a DevicePlan, catalogue: &'a Catalogue) -> impl Iterator<Item = &'a str> {
    let checked = plan.updates.iter().filter(|update| update.is_checked());
    checked.filter_map(|update| Some(&*catalogue.get(update.update)?.id))
}

/// Forgets failures of what the device does not tell of any more; but neither what a check found after an update that stays, for as long
/// as the plan tells of it, nor that the device was brought back from one, which may be offered again: of those the latest are kept,
/// which come last.
pub(super) fn forget(
    failures: &mut Vec<Failure>,
    is_told: impl Fn(&String) -> bool,
    is_checked: impl Fn(&String) -> bool,
) {
    let is_back = |failure: &Failure| failure.reason == Some(ResultReason::RolledBack) && !is_told(&failure.update);
    let mut surplus = failures.iter().filter(|failure| is_back(failure)).count().saturating_sub(ROLLED_BACK_IN_STATUS);
    failures.retain(|failure| {
        let is_back = is_back(failure);
        let is_surplus = is_back && surplus > 0;
        surplus -= usize::from(is_surplus);
        is_told(&failure.update)
            || (is_back && !is_surplus)
            || (failure.reason == Some(ResultReason::CheckFailed) && is_checked(&failure.update))
    });
}

fn governance(pair: &Pair) -> devinv::Governance {
    let Pair { policy, group } = pair;
    let name = |name: &Option<Name>| name.as_deref().map(str::to_owned);
    devinv::Governance { policy: name(policy), approval_group: name(group) }
}

fn shadowed(names: &[Name]) -> Vec<String> {
    names.iter().take(SHADOWED_IN_STATUS).map(|name| (**name).to_owned()).collect()
}

/// What keeps a device from being patched: either it has yet to do something by itself, or a person has.
fn device_trouble(
    object: &DeviceInventory,
    no_report: Option<NoReport>,
    refused_result: Option<&str>,
    plan: &DevicePlan,
) -> Option<Progress> {
    if object.spec.lifecycle == Lifecycle::Retired {
        return None;
    }
    let Some(no_report) = no_report else {
        let refused = refused_result.map(|why| (c::REASON_RESULT_REFUSED, why.to_owned()));
        let clock = || Some((c::REASON_CLOCK_OFF, clock_off(object)?));
        let zone = || Some((c::REASON_NO_TIME_ZONE, no_time_zone(plan)?));
        return refused.or_else(clock).or_else(zone).map(Progress::Stalled);
    };
    let waits = match &no_report {
        // Where no device has asked there is nothing to accept yet.
        NoReport::KeyNotAccepted => pending_key(object).is_none(),
        NoReport::None | NoReport::BeforeEpoch { .. } => true,
        NoReport::AheadOfRecord { .. } | NoReport::DuplicateIdentity(_) | NoReport::Refused(_) => false,
    };
    let why = no_report_words(object, no_report);
    Some(if waits { Progress::Waits(why) } else { Progress::Stalled(why) })
}

/// Why nothing of a device is believed: the reason of its condition, and its words.
pub fn no_report_words(object: &DeviceInventory, why: NoReport) -> (&'static str, String) {
    match why {
        NoReport::KeyNotAccepted => (c::REASON_KEY_PENDING, key_pending(object)),
        NoReport::None => (c::REASON_NO_REPORT, "the device has not reported yet".to_owned()),
        NoReport::BeforeEpoch { epoch } => (
            c::REASON_EPOCH_NOT_FOLLOWED,
            format!(
                "the device has not followed into epoch {epoch} yet: it gets no orders before it has reported in it"
            ),
        ),
        NoReport::AheadOfRecord { told, known } => (
            c::REASON_RECORD_SET_BACK,
            format!(
                "the device has had order {told}, and its record knows of none after {known}: was etcd restored from a backup? It gets \
                 no orders until the epoch is raised (kubectl patchwarden raise-epoch)"
            ),
        ),
        NoReport::DuplicateIdentity(words) => (c::REASON_DUPLICATE_IDENTITY, words),
        NoReport::Refused(why) => (c::REASON_REPORT_REFUSED, why),
    }
}

/// That its agent refuses orders for its clock, and what to do.
fn clock_off(object: &DeviceInventory) -> Option<String> {
    let inventory = object.status.as_ref()?.inventory.as_ref()?;
    // Of one that is not there nobody knows whether it still is.
    let seconds = convert::clock_off(inventory).filter(|_| inventory.online)?;
    let blocked = Blocked::ClockOff { seconds };
    Some(format!("{blocked} (status.inventory.clockSkewSeconds); set its clock, by NTP at best"))
}

/// That updates of the device wait for windows on its clock, which nobody knows, and what to do.
fn no_time_zone(plan: &DevicePlan) -> Option<String> {
    let blocked = plan.updates.iter().filter_map(|update| update.blocked.as_deref());
    let mut of_zone = blocked.filter(|blocked| matches!(blocked, Blocked::NoTimeZone { .. }));
    let (first, more) = (of_zone.next()?, of_zone.count());
    Some(format!("{first}: set it, or give the window a time zone of its own; {} updates wait for that", more + 1))
}

/// The key that waits for a person. One that was accepted meanwhile waits for its device to use it.
pub fn pending_key(object: &DeviceInventory) -> Option<&str> {
    let pending = object.status.as_ref()?.inventory.as_ref()?.pending_key.as_deref();
    pending.filter(|key| object.spec.accepted_key.as_deref() != Some(*key))
}

fn key_pending(object: &DeviceInventory) -> String {
    match (pending_key(object), &object.spec.accepted_key) {
        (Some(key), _) => format!("to accept the device, put its key in spec.acceptedKey: {key}"),
        (None, None) => "no key is accepted yet: spec.acceptedKey is empty and no device has asked".to_owned(),
        (None, Some(key)) => {
            format!(
                "the device that reported last does not hold the accepted key {key}; the one that does has not reported yet"
            )
        }
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

/// The reason of the condition `Compliant`.
pub(super) fn compliance_reason(compliance: outcome::Compliance) -> &'static str {
    use outcome::Compliance as C;
    match compliance {
        C::UpToDate => c::REASON_UP_TO_DATE,
        C::WithinDeadline => c::REASON_WITHIN_DEADLINE,
        C::UpdatesMissing => c::REASON_UPDATES_MISSING,
        C::DeadlineMissed => c::REASON_DEADLINE_MISSED,
        C::RemovalDue => c::REASON_REMOVAL_DUE,
        C::RestartRequired => c::REASON_RESTART_REQUIRED,
        C::Truncated => c::REASON_TRUNCATED,
        C::Unknown => c::REASON_UNKNOWN,
    }
}

fn device_compliant(conditions: &mut Conditions, plan: &DevicePlan, catalogue: &Catalogue) {
    use outcome::Compliance as C;
    let (status, message) = match plan.compliance {
        C::WithinDeadline => {
            let message = format!("approved updates are missing, the first of them until {}", due(plan, catalogue));
            ("True", message)
        }
        C::DeadlineMissed => ("False", format!("approved updates are missing that were due at {}", due(plan, catalogue))),
        C::UpToDate => ("True", "every approved update is installed".to_owned()),
        C::UpdatesMissing => ("False", "approved updates are missing".to_owned()),
        C::RemovalDue => ("False", "updates are installed that are to be taken back".to_owned()),
        C::RestartRequired => ("False", "the device waits for a restart".to_owned()),
        C::Truncated => {
            ("False", "more updates are offered than a report carries; they are planned in passes".to_owned())
        }
        C::Unknown => (
            "Unknown",
            "no recent report that is believed, a problem that may hide updates, no policy or group has the device, it cannot be told what is approved for it, or it does not \
             know yet what its policy says of applications"
                .to_owned(),
        ),
    };
    conditions.put(c::COMPLIANT, status, compliance_reason(plan.compliance), &message);
}

/// Of a device that is not heard of any more they stay what they were.
fn counts(updates: &[UpdatePlan]) -> StateCounts {
    let mut counts = StateCounts::default();
    for update in updates {
        let count = match (update.last_known, update.decision) {
            (State::Pending, _) => &mut counts.pending,
            (State::Installing, _) => &mut counts.installing,
            (State::Failed, _) => &mut counts.failed,
            (State::Held, _) => &mut counts.held,
            // No update: the device's conditions tell it.
            (State::RestartRequired, _) => continue,
            (State::Ignored, Decision::Waived) => &mut counts.waived,
            (State::Ignored, _) => &mut counts.ignored,
            (State::Installed, _) => &mut counts.to_be_removed,
            (State::Missing | State::Downloaded | State::Unknown, Decision::AwaitingApproval) => {
                &mut counts.awaiting_approval
            }
            (State::Missing | State::Downloaded | State::Unknown, Decision::Aging) => &mut counts.aging,
            (State::Missing | State::Downloaded | State::Unknown, _) => {
                counts.downloaded += u32::from(update.last_known == State::Downloaded);
                &mut counts.missing
            }
        };
        *count += 1;
    }
    counts
}

pub(super) fn update_compliance(id: &str, update: &UpdatePlan, policy: Option<&str>) -> UpdateCompliance {
    let blocked_by = match update.blocked.as_deref() {
        Some(blocked) if !blocked.is_passing() => Some(format!("{}: {blocked}", blocked.code())),
        Some(_) | None if matches!(update.state, State::Pending | State::Installing) => None,
        Some(_) | None => {
            let does = match update.verb {
                Verb::Install => "installs it",
                Verb::Download => "downloads it",
                Verb::Uninstall => "takes it back",
                Verb::Restart => "restarts the device",
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
