//! What a change would do to a device as a whole, and to what its orders have beside their updates.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::api::PatchPolicy;
use crate::cli::live::Live;
use crate::plan::Plan;
use crate::plan::outcome::DevicePlan;

/// Fields of a policy's spec that its orders, and the settings of its devices, carry as they are.
const CARRIED: [&str; 9] = [
    "applications",
    "checks",
    "dependencies",
    "hooks",
    "installLimit",
    "osUpdater",
    "restart",
    "rollback",
    "siteCache",
];

/// A device that would stand otherwise.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    #[serde(rename = "device")]
    name: String,
    before: Option<Standing>,
    after: Option<Standing>,
}

/// How a device stands.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Standing {
    policy: Option<String>,
    group: Option<String>,
    compliance: String,
    /// Until when what it lacks must be installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
}

/// A policy whose devices would be told something else with their orders.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    #[serde(rename = "policy")]
    name: String,
    /// Devices that it would govern.
    devices: usize,
    /// Fields of its spec.
    fields: Vec<&'static str>,
}

/// Devices that would stand otherwise, by name.
pub(super) fn devices(before: &Plan, after: &Plan) -> Vec<Device> {
    let all = |plan: &Plan| -> BTreeMap<String, Standing> {
        plan.devices.iter().map(|device| (device.name.to_string(), standing(device))).collect()
    };
    let (mut before, mut after) = (all(before), all(after));
    let mut names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| {
            let (before, after) = (before.remove(&name), after.remove(&name));
            (before != after).then_some(Device { name, before, after })
        })
        .collect()
}

fn standing(device: &DevicePlan) -> Standing {
    Standing {
        policy: device.policy.as_ref().map(ToString::to_string),
        group: device.group.as_ref().map(ToString::to_string),
        compliance: format!("{:?}", device.compliance),
        due: device.due.as_ref().map(|due| due.at),
    }
}

/// Policies that are there before and after, govern devices, and would have other fields that are carried.
pub(super) fn policies(before: &Live, (after, plan): (&Live, &Plan)) -> serde_json::Result<Vec<Policy>> {
    let mut found = Vec::new();
    for (name, policy) in &after.policies {
        let governed = plan.devices.iter().filter(|device| device.policy.as_deref() == Some(name.as_str())).count();
        let Some(was) = before.policies.get(name).filter(|_| governed > 0) else { continue };
        let (was, is) = (spec(was)?, spec(policy)?);
        let fields: Vec<&str> = CARRIED.into_iter().filter(|field| was.get(field) != is.get(field)).collect();
        if !fields.is_empty() {
            found.push(Policy { name: name.clone(), devices: governed, fields });
        }
    }
    Ok(found)
}

fn spec(policy: &PatchPolicy) -> serde_json::Result<Value> {
    serde_json::to_value(&policy.spec)
}

/// For people.
pub(super) fn text(devices: &[Device], policies: &[Policy]) -> String {
    let of = |standing: Option<&Standing>| {
        let Some(Standing { policy, group, compliance, due }) = standing else { return "not there".to_owned() };
        let named = |kind: &str, name: &Option<String>| {
            name.as_ref().map_or_else(|| format!("no {kind}"), |name| format!("{kind}/{name}"))
        };
        let due = due.map(|at| format!(", due {at}")).unwrap_or_default();
        format!("{}, {}: {compliance}{due}", named("PatchPolicy", policy), named("ApprovalGroup", group))
    };
    let mut text = String::new();
    if !devices.is_empty() {
        let _ = writeln!(text, "\n{} devices would stand otherwise:", devices.len());
    }
    for Device { name, before, after } in devices {
        let _ = writeln!(text, "  {name}\n    - {}\n    + {}", of(before.as_ref()), of(after.as_ref()));
    }
    for Policy { name, devices, fields } in policies {
        let fields: Vec<String> = fields.iter().map(|field| format!("spec.{field}")).collect();
        let _ = writeln!(
            text,
            "\nPatchPolicy/{name}: orders for its {devices} devices would have other {}",
            fields.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{device, group, live, object, place};
    use crate::plan;

    fn told(before: &Value, after: &Value) -> (Vec<Device>, Vec<Policy>) {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let machine = device("web-1", &[("KB-1", "Critical")]);
        let lives = [before, after].map(|spec| {
            let everyone = json!({"members": {"selector": {}}, "decisions": [{"update": "KB-1", "action": "Approve"}]});
            let policy = object("PatchPolicy", "all", json!({ "spec": spec }));
            live(vec![group("everyone", &everyone)], vec![policy], vec![], vec![machine.clone()])
        });
        let [was, is] = [&lives[0], &lives[1]].map(|live| plan::plan(&live.snapshot(&place(), now), now));
        (devices(&was, &is), policies(&lives[0], (&lives[1], &is)).unwrap())
    }

    #[test]
    fn a_deadline_and_what_orders_carry_are_changes_though_no_update_waits_for_them() {
        let plain = json!({"mode": "Audit"});
        assert_eq!(told(&plain, &plain), (vec![], vec![]));
        let deadlines = json!({"mode": "Audit", "deadlines": [{"severity": "Critical", "within": "7d"}]});
        let (devices, policies) = told(&plain, &deadlines);
        let said = text(&devices, &policies);
        assert!(
            said.contains("1 devices would stand otherwise:\n  web-1\n    - PatchPolicy/all, ApprovalGroup/everyone: "),
            "{said}"
        );
        assert!(said.contains(", due 2026-"), "{said}");
        assert_eq!(policies, vec![]);

        let carried = json!({"mode": "Audit", "dependencies": "Strict", "restart": {"when": "IfRequired"}});
        let (devices, policies) = told(&plain, &carried);
        assert_eq!(devices, vec![]);
        let expected = "\nPatchPolicy/all: orders for its 1 devices would have other spec.dependencies, spec.restart\n";
        assert_eq!(text(&devices, &policies), expected);
    }

    #[test]
    fn a_device_that_would_lose_its_policy_is_told() {
        let other = json!({"mode": "Audit", "exclude": ["web-1"]});
        let (devices, policies) = told(&json!({"mode": "Audit"}), &other);
        assert!(
            text(&devices, &policies).contains("\n    + no PatchPolicy, ApprovalGroup/everyone: Unknown\n"),
            "{devices:?}"
        );
    }
}
