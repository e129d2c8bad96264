//! What is counted: pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use patchwarden_protocol::report::Severity;
use serde::Serialize;

use super::Objects;
use super::todo::{self, Todo};
use crate::api::conditions as c;
use crate::api::device_inventory::{Decision, Lifecycle, UpdateState};
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};

/// A client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub namespace: String,
    pub policies: Vec<Policy>,
    pub groups: Vec<Group>,
    pub windows: Vec<Window>,
    pub devices: Devices,
    pub missing: Vec<Missing>,
    pub todo: Vec<Todo>,
}

/// A policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    pub name: String,
    pub mode: String,
    pub ready: Ready,
    pub compliant: Option<String>,
    pub installing: u32,
    pub failed: u32,
    pub overdue: Option<u32>,
    pub next_window: Option<Timestamp>,
    pub rings: Vec<Ring>,
}

/// A ring of a policy's rollout.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Ring {
    pub name: String,
    pub compliant: String,
}

/// A group.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    pub name: String,
    pub parent: Option<String>,
    pub devices: u32,
    pub decisions: usize,
    pub ready: Ready,
}

/// A window.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Window {
    pub name: String,
    pub active: bool,
    pub current_end: Option<Timestamp>,
    pub next_start: Option<Timestamp>,
    pub ready: Ready,
}

/// The condition `Ready`, or what it lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Ready {
    /// Nothing where the controller has not said anything yet.
    pub status: Option<bool>,
    pub reason: String,
    pub message: String,
}

/// Devices.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Devices {
    /// All but those that are retired.
    pub total: usize,
    pub online: usize,
    pub installing: usize,
    pub retired: usize,
    /// By the reason of their condition `Compliant`.
    pub states: BTreeMap<String, usize>,
}

/// Updates of a severity that devices lack.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Missing {
    pub severity: Severity,
    /// Different ones.
    pub updates: usize,
    /// Devices that lack one.
    pub devices: usize,
    /// How often, by what approval says and what became of it.
    pub approved: usize,
    pub aging: usize,
    pub awaiting_approval: usize,
    pub failed: usize,
}

impl Summary {
    /// Counts, as of this time.
    pub(super) fn of(namespace: String, objects: &Objects, now: Timestamp) -> Self {
        let todo = todo::of(&namespace, objects, now);
        Self {
            namespace,
            policies: objects.policies.iter().map(policy).collect(),
            groups: objects.groups.iter().map(group).collect(),
            windows: objects.windows.iter().map(window).collect(),
            devices: devices(&objects.devices),
            missing: missing(&objects.devices),
            todo,
        }
    }
}

fn policy(object: &PatchPolicy) -> Policy {
    let status = object.status.clone().unwrap_or_default();
    let rings = status.rings.iter().map(|ring| Ring { name: ring.name.clone(), compliant: ring.compliant.clone() });
    Policy {
        name: object.name_any(),
        mode: if object.spec.suspend { "Suspended".to_owned() } else { format!("{:?}", object.spec.mode) },
        ready: ready(&status.conditions),
        compliant: status.compliant,
        installing: status.installing,
        failed: status.failed,
        overdue: status.overdue,
        next_window: status.next_window,
        rings: rings.collect(),
    }
}

fn group(object: &ApprovalGroup) -> Group {
    let status = object.status.clone().unwrap_or_default();
    Group {
        name: object.name_any(),
        parent: object.spec.parent.as_ref().map(|parent| parent.name.clone()),
        devices: status.devices,
        decisions: object.spec.decisions.len(),
        ready: ready(&status.conditions),
    }
}

fn window(object: &MaintenanceWindow) -> Window {
    let status = object.status.clone().unwrap_or_default();
    Window {
        name: object.name_any(),
        active: status.active,
        current_end: status.current_end,
        next_start: status.next_start,
        ready: ready(&status.conditions),
    }
}

fn ready(conditions: &[Condition]) -> Ready {
    match conditions.iter().find(|condition| condition.type_ == c::READY) {
        Some(it) => Ready { status: Some(it.status == "True"), reason: it.reason.clone(), message: it.message.clone() },
        None => {
            Ready { status: None, reason: String::new(), message: "the controller has not looked at it yet".into() }
        }
    }
}

/// A device's condition, by its type.
pub(super) fn condition<'d>(device: &'d DeviceInventory, type_: &str) -> Option<&'d Condition> {
    device.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether it is still in use.
pub(super) fn is_active(device: &DeviceInventory) -> bool {
    device.spec.lifecycle == Lifecycle::Active
}

fn devices(all: &[DeviceInventory]) -> Devices {
    let mut found = Devices::default();
    for device in all {
        if !is_active(device) {
            found.retired += 1;
            continue;
        }
        found.total += 1;
        let status = device.status.as_ref();
        found.online += usize::from(status.and_then(|it| it.inventory.as_ref()).is_some_and(|it| it.online));
        let compliance = status.and_then(|it| it.compliance.as_ref());
        found.installing += usize::from(compliance.is_some_and(|it| it.current.is_some()));
        let reason = condition(device, c::COMPLIANT).map_or(c::REASON_UNKNOWN, |condition| &condition.reason);
        *found.states.entry(reason.to_owned()).or_default() += 1;
    }
    found
}

/// The worst first; what nobody lacks is left out.
fn missing(all: &[DeviceInventory]) -> Vec<Missing> {
    #[derive(Default)]
    struct Count<'d> {
        updates: BTreeSet<&'d str>,
        devices: BTreeSet<&'d str>,
        approved: usize,
        aging: usize,
        awaiting_approval: usize,
        failed: usize,
    }
    let mut counts: BTreeMap<Severity, Count<'_>> = BTreeMap::new();
    for device in all.iter().filter(|device| is_active(device)) {
        let Some(status) = &device.status else { continue };
        let report = status.inventory.as_ref().and_then(|inventory| inventory.report.as_ref());
        let severities: BTreeMap<&str, Severity> = report
            .map(|report| report.updates.iter().map(|update| (update.id.as_str(), update.severity)).collect())
            .unwrap_or_default();
        for update in status.compliance.iter().flat_map(|compliance| &compliance.updates) {
            let Some(severity) = severities.get(update.id.as_str()) else { continue };
            let is_wanted = match update.decision {
                Decision::Approved | Decision::Aging | Decision::AwaitingApproval => true,
                Decision::Ignored | Decision::Waived | Decision::Remove => false,
            };
            if !is_wanted || update.state == UpdateState::Held {
                continue;
            }
            let count = counts.entry(*severity).or_default();
            count.updates.insert(&update.id);
            count.devices.insert(device.metadata.name.as_deref().unwrap_or_default());
            count.failed += usize::from(update.state == UpdateState::Failed);
            match update.decision {
                Decision::Approved => count.approved += 1,
                Decision::Aging => count.aging += 1,
                _ => count.awaiting_approval += 1,
            }
        }
    }
    let of = |(severity, count): (Severity, Count<'_>)| Missing {
        severity,
        updates: count.updates.len(),
        devices: count.devices.len(),
        approved: count.approved,
        aging: count.aging,
        awaiting_approval: count.awaiting_approval,
        failed: count.failed,
    };
    counts.into_iter().rev().map(of).collect()
}
