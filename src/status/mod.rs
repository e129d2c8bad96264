//! Plan and old status to new status. Pure; an unchanged world gives an equal status, which nobody writes.

mod conditions;
mod device;
mod policy;
#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;

use jiff::Timestamp;

use crate::api::approval_group::{PublishedAlone, SeenUpdate};
use crate::api::conditions as c;
use crate::api::maintenance_window::Occurrence;
use crate::api::{ApprovalGroup, ApprovalGroupStatus, MaintenanceWindow, MaintenanceWindowStatus};
use crate::convert::whole_seconds;
use crate::plan::model::{Name, Seen};
use crate::plan::outcome::{Blocked, Failed, FailedExpression, GroupPlan, Others, WindowPlan};

use conditions::{Conditions, Progress};
pub use device::{DeviceStatus, device, no_report_words, pending_key, updates};
use policy::states;
pub use policy::{FOLLOWED, is_new, policy, tells_progress};

/// What a group that cannot be resolved comes to.
const NOTHING_APPROVED: &str = "nothing is approved for its devices";

/// What is to be said of a window that is over. That is known: whatever recurs does so within eight years.
const NEVER_OPENS: &str = "spec.schedules: it is not open and will not open any more: until the end of the calendar none of them has a \
                           time to come that spec.exclusions leave open; give it another schedule, or delete it";

/// A group.
pub fn group(object: &ApprovalGroup, plan: &GroupPlan, now: Timestamp) -> ApprovalGroupStatus {
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let stalled = match (&plan.invalid, plan.stalled.as_deref(), &plan.failed) {
        (Some(message), _, _) => Some((c::REASON_INVALID_SPEC, message.clone())),
        // What is known of vulnerabilities is no matter of the spec.
        (None, None | Some(Blocked::VulnerabilitiesUnknown { .. }), Some(failed)) => {
            Some((c::REASON_EXPRESSION_FAILED, failed_expression(plan, failed)))
        }
        (None, Some(blocked), _) => Some(match blocked {
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
        (None, None, None) => None,
    };
    conditions.set_progress(&stalled.map_or_else(
        || Progress::Enforced((c::REASON_ENFORCED, "decisions and rules are in force".to_owned())),
        Progress::Stalled,
    ));
    let field = ("spec.members.names", object.spec.members.iter().flat_map(|members| &members.names));
    let unknown = unknown_devices(field, &plan.unknown_devices, "no device is in the group for");
    conditions.set_names_unknown(unknown.into_iter().map(|message| (c::REASON_DEVICE_NOT_FOUND, message)));
    ApprovalGroupStatus {
        devices: plan.devices,
        states: Some(states(&plan.states)),
        seen: seen(&plan.seen),
        observed_generation: object.metadata.generation,
        conditions: conditions.list,
    }
}

/// Devices that a field names and that are not there, by its indices, and what does not come of them.
fn unknown_devices<'n>(
    (field, named): (&str, impl Iterator<Item = &'n String> + Clone),
    Others { first, more }: &Others,
    without: &str,
) -> Option<String> {
    let of = |name: &Name| {
        let index = named.clone().position(|other| **other == **name)?;
        Some(format!("{field}[{index}]: DeviceInventory/{name}"))
    };
    let told: Vec<String> = first.iter().filter_map(of).collect();
    let (verb, whom) = if told.len() + more == 1 { ("does", "it") } else { ("do", "them") };
    let message = format!(
        "{} {verb} not exist in this namespace: {without} {whom}; correct the name, unless such a device is yet to enrol",
        and_more(&told, *more)
    );
    (!told.is_empty()).then_some(message)
}

/// The first few, and how many more there are.
fn and_more(first: &[String], more: usize) -> String {
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", first.join(", "))
}

/// Which expression fails, for what, and what comes of it.
fn failed_expression(plan: &GroupPlan, failed: &Failed) -> String {
    let Failed { expression, error, example, more } = failed;
    let and_more = if *more > 0 { format!(" and {more} more") } else { String::new() };
    match expression {
        FailedExpression::Members => format!(
            "spec.members.rule: {error}: it cannot be evaluated for DeviceInventory/{example}{and_more}: nothing is approved for \
             such a device where no group comes before this one"
        ),
        FailedExpression::Rule { group, rule } => {
            let field = format!("spec.rules[{rule}].match.expression");
            let field =
                if *group == plan.name { field } else { format!("spec.parent: {field} of ApprovalGroup/{group}") };
            format!("{field}: {error}: it cannot be evaluated for {example}{and_more}: such updates are not approved")
        }
    }
}

fn seen(seen: &[Seen]) -> Vec<SeenUpdate> {
    seen.iter()
        .map(|seen| SeenUpdate {
            id: seen.id.to_string(),
            first: whole_seconds(seen.first),
            by: seen.by.to_string(),
            since: seen.shared.map(whole_seconds),
            published: seen.dates.shared.map(whole_seconds),
            published_alone: seen.dates.alone.as_ref().map(published_alone),
        })
        .collect()
}

fn published_alone((at, by): &(Timestamp, Name)) -> PublishedAlone {
    PublishedAlone { at: whole_seconds(*at), by: by.to_string() }
}

/// A window.
pub fn window(object: &MaintenanceWindow, plan: &WindowPlan, now: Timestamp) -> MaintenanceWindowStatus {
    let mut conditions = Conditions::of(object.status.as_ref().map(|s| s.conditions.as_slice()), object, now);
    let invalid = plan.invalid.clone().map(|message| (c::REASON_INVALID_SPEC, message));
    let never_opens = || (c::REASON_NEVER_OPENS, NEVER_OPENS.to_owned());
    let stalled = invalid.or_else(|| plan.never_opens.then(never_opens));
    conditions.set_progress(
        &stalled.map_or_else(|| Progress::Enforced((c::REASON_ENFORCED, "accepted".to_owned())), Progress::Stalled),
    );
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
