//! What will come of a decision, by the planner.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::change::named;
use crate::api::ApprovalGroup;
use crate::api::approval_group::{DecisionAction, UpdateDecision};
use crate::cli::live::{Live, Place};
use crate::cli::{screen, stalled};
use crate::plan::outcome::{DecidedBy, Decision, DevicePlan, UpdatePlan};
use crate::plan::{self, Plan, Snapshot};

/// So many devices are named in a line.
const SHOWN: usize = 5;

/// What a person should know before it counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// What it does.
    pub does: Vec<String>,
    /// What stands against it.
    pub against: Vec<String>,
}

impl Effect {
    /// Says it, beside what is printed.
    pub(super) fn tell(&self) {
        self.does.iter().for_each(|line| screen::note(line));
        self.against.iter().for_each(|line| screen::warn(line));
    }
}

/// Of a group as it would be.
pub(super) fn of(
    live: &Live,
    place: &Place,
    changed: ApprovalGroup,
    decisions: &[UpdateDecision],
    now: Timestamp,
) -> Effect {
    let (named, name) = (named(&changed), changed.name_any());
    let before = live.snapshot(place, now);
    let mut then = live.clone();
    then.groups.insert(name.clone(), changed);
    let after = then.snapshot(place, now);
    let (planned_before, planned) = (plan::plan(&before, now), plan::plan(&after, now));
    let beneath = beneath(&then, &name);
    let mut effect = Effect::default();
    for decision in decisions {
        if decision.action == DecisionAction::Reprocess {
            of_reprocess(&mut effect, decision, &named, (&before, &planned_before), (&planned, &beneath));
        } else {
            of_decision(&mut effect, decision, &name, &named, (&then, &after, &planned), &beneath);
        }
    }
    for (device, was) in planned.devices.iter().zip(&planned_before.devices) {
        if device.policy != was.policy {
            let or_none = |name: Option<&str>| name.unwrap_or("none").to_owned();
            effect.against.push(format!(
                "{}: its PatchPolicy would be {}, not {}: policies choose by spec.approvalGroups and spec.excludeApprovalGroups. Add {name} there, or decide with --group",
                device.name,
                or_none(device.policy.as_deref()),
                or_none(was.policy.as_deref()),
            ));
        }
    }
    for stalled in stalled::newly((live, &planned_before), (&then, &planned), now) {
        // That a policy waits to be confirmed is no reason against a decision, nor is what stops nothing.
        let told =
            if stalled.kind == "PatchPolicy" || !stalled.stops() { &mut effect.does } else { &mut effect.against };
        told.push(stalled.to_string());
    }
    effect
}

/// Of the devices that are then beneath the group, by what is planned without it: to what has been seen nothing is told of any more.
fn of_reprocess(
    effect: &mut Effect,
    decision: &UpdateDecision,
    named: &str,
    (snapshot, planned): (&Snapshot, &Plan),
    (then, beneath): (&Plan, &BTreeSet<String>),
) {
    let update = &decision.update;
    let is_it = |planned: &&UpdatePlan| snapshot.updates.get(planned.update).is_some_and(|known| *known.id == **update);
    let is_beneath = |it: &&DevicePlan| it.group.as_deref().is_some_and(|own| beneath.contains(own));
    let reached: BTreeSet<&str> = then.devices.iter().filter(is_beneath).map(|device| &*device.name).collect();
    let members = || planned.devices.iter().filter(|device| reached.contains(&*device.name));
    let devices = |is_checked: bool| -> Vec<String> {
        let of_device =
            |device: &&DevicePlan| device.updates.iter().filter(is_it).any(|it| it.is_checked() == is_checked);
        members().filter(of_device).map(|device| device.name.to_string()).collect()
    };
    let (offer, checked) = (devices(false), devices(true));
    effect.does.push(format!("{update}: where it has failed it is tried once more, by {named}{}", listed(&offer)));
    if !checked.is_empty() {
        effect
            .does
            .push(format!("{update}: that a check failed after it counts as seen to, by {named}{}", listed(&checked)));
    }
}

fn of_decision(
    effect: &mut Effect,
    decision: &UpdateDecision,
    name: &str,
    named: &str,
    (live, snapshot, planned): (&Live, &Snapshot, &Plan),
    beneath: &BTreeSet<String>,
) {
    let UpdateDecision { update, action, .. } = decision;
    let id = |planned: &UpdatePlan| snapshot.updates.get(planned.update).map(|known| known.id.to_string());
    let members = || planned.devices.iter().filter(|it| it.group.as_deref().is_some_and(|own| beneath.contains(own)));
    let offered = |device: &'_ DevicePlan| -> Vec<UpdatePlan> {
        device.updates.iter().filter(|it| id(it).as_deref() == Some(update.as_str())).cloned().collect()
    };
    let is_ours = |planned: &UpdatePlan| {
        matches!(planned.decided_by.as_deref(), Some(DecidedBy::Decision { group, update: by })
            if **group == *name && **by == **update)
            // There may be another one on it, before this one in the list. What ages is approved all the same.
            && (agrees(*action, planned.decision) || (*action, planned.decision) == (DecisionAction::Approve, Decision::Aging))
    };
    let mut counts: Vec<String> = vec![];
    let known = effect.against.len();
    for device in members() {
        if device.updates.iter().any(is_ours) {
            counts.push(device.name.to_string());
            continue;
        }
        for other in offered(device).iter().filter(|it| !agrees(*action, it.decision)) {
            let by = other.decided_by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
            let because = live.reason(other).map(|reason| format!(" ({reason})")).unwrap_or_default();
            effect.against.push(format!("{update} stays {:?} on {}{by}{because}", other.decision, device.name));
        }
    }
    if !counts.is_empty() {
        effect.does.push(format!("{update}: {action:?} by {named} decides{}", listed(&counts)));
    } else if effect.against.len() == known {
        let none = "decides for no device that there is: it counts once one offers it";
        effect.does.push(format!("{update}: {action:?} by {named} {none}"));
    }
}

fn agrees(action: DecisionAction, decision: Decision) -> bool {
    match action {
        // Whoever approves it means now.
        DecisionAction::Approve => decision == Decision::Approved,
        DecisionAction::Ignore => matches!(decision, Decision::Ignored | Decision::Waived),
        DecisionAction::DoNothing => decision == Decision::AwaitingApproval,
        DecisionAction::Uninstall => decision == Decision::Remove,
        DecisionAction::Reprocess => true,
    }
}

fn listed(devices: &[String]) -> String {
    let (shown, more) = devices.split_at(devices.len().min(SHOWN));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    if shown.is_empty() { String::new() } else { format!(" on {}{more}", shown.join(", ")) }
}

/// The group and all that ask it, near or far.
fn beneath(live: &Live, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::from([name.to_owned()]);
    loop {
        let known = found.len();
        let parent = |group: &ApprovalGroup| group.spec.parent.as_ref().map(|parent| parent.name.clone());
        let children = live.groups.iter().filter(|(_, group)| parent(group).is_some_and(|it| found.contains(&it)));
        let children: Vec<String> = children.map(|(name, _)| name.clone()).collect();
        found.extend(children);
        if found.len() == known {
            return found;
        }
    }
}
