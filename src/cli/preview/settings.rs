//! What of the objects themselves would be another, whatever follows from it at this moment: a limit, a soak time or a rule acts on
//! devices later.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kube::core::object::HasSpec;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use crate::api::DeviceInventory;
use crate::cli::explain::first;
use crate::cli::live::Live;
use crate::plan::model::Name;
use crate::plan::{Plan, Snapshot, ring_of};

/// So many characters of a value are shown.
const SHOWN: usize = 80;

/// An object whose spec, or a device whose labels, would be others.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    kind: String,
    name: String,
    /// It would be made.
    is_new: bool,
    /// Devices that would have it as their policy or group.
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<usize>,
    /// Of one that is there already.
    settings: Vec<Setting>,
}

/// A field, and what it says before and after; nothing where it says nothing.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    field: String,
    before: Value,
    after: Value,
}

/// Devices that would be in another ring of their policy.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rings {
    policy: String,
    devices: Vec<Move>,
}

/// A device, and its rings; none for the rest of the devices.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Move {
    device: String,
    before: Option<String>,
    after: Option<String>,
}

/// Objects that would be others, by kind and name.
pub(super) fn objects(before: &Live, (after, plan): (&Live, &Plan)) -> serde_json::Result<Vec<Object>> {
    let of_policy = |name: &str| plan.devices.iter().filter(|device| device.policy.as_deref() == Some(name)).count();
    let of_group = |name: &str| plan.devices.iter().filter(|device| device.group.as_deref() == Some(name)).count();
    let mut found = changed(&before.policies, &after.policies, |name| Some(of_policy(name)))?;
    found.extend(changed(&before.groups, &after.groups, |name| Some(of_group(name)))?);
    // The devices that it has a say in are those of the groups beneath it.
    found.extend(changed(&before.organisation, &after.organisation, |_| None)?);
    found.extend(changed(&before.windows, &after.windows, |_| None)?);
    found.extend(changed(&before.devices, &after.devices, |_| None)?);
    Ok(found)
}

fn changed<K: Resource<DynamicType = ()> + HasSpec<Spec: Serialize>>(
    before: &BTreeMap<String, K>,
    after: &BTreeMap<String, K>,
    devices: impl Fn(&str) -> Option<usize>,
) -> serde_json::Result<Vec<Object>> {
    let mut found = Vec::new();
    for (name, object) in after {
        let was = before.get(name);
        let mut settings = Vec::new();
        if let Some(was) = was {
            let specs = (serde_json::to_value(was.spec())?, serde_json::to_value(object.spec())?);
            compare("spec", &specs.0, &specs.1, &mut settings);
            // Of the others nobody asks.
            if K::kind(&()) == DeviceInventory::kind(&()) {
                let labels = (serde_json::to_value(was.labels())?, serde_json::to_value(object.labels())?);
                compare("metadata.labels", &labels.0, &labels.1, &mut settings);
            }
        }
        if was.is_none() || !settings.is_empty() {
            let kind = K::kind(&()).into_owned();
            let (is_new, devices) = (was.is_none(), devices(name));
            found.push(Object { kind, name: name.clone(), is_new, devices, settings });
        }
    }
    Ok(found)
}

/// Fields of which one says another than the other.
fn compare(field: &str, before: &Value, after: &Value, found: &mut Vec<Setting>) {
    if before == after {
        return;
    }
    let mut all =
        |before: &BTreeMap<String, &Value>, after: &BTreeMap<String, &Value>, path: &dyn Fn(&str) -> String| {
            for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let of = |all: &BTreeMap<String, &Value>| all.get(key).copied().unwrap_or(&Value::Null).clone();
                compare(&path(key), &of(before), &of(after), found);
            }
        };
    match (fields(before), fields(after)) {
        (Some(before), Some(after)) if !(before.is_empty() && after.is_empty()) => {
            all(&before, &after, &|key| format!("{field}.{key}"));
            return;
        }
        _ => {}
    }
    match (by_name(before), by_name(after)) {
        // In another order they are another list.
        (Some(before), Some(after)) if in_one_order(&before, &after) => {
            all(&before.1, &after.1, &|key| format!("{field}[{key}]"));
        }
        _ => found.push(Setting { field: field.to_owned(), before: before.clone(), after: after.clone() }),
    }
}

fn fields(value: &Value) -> Option<BTreeMap<String, &Value>> {
    match value {
        Value::Null => Some(BTreeMap::new()),
        Value::Object(fields) => Some(fields.iter().map(|(key, value)| (key.clone(), value)).collect()),
        _ => None,
    }
}

/// Names in their order, and what has them.
type Named<'v> = (Vec<String>, BTreeMap<String, &'v Value>);

/// Objects by the names that tell them apart, which decisions have as update and action.
fn by_name(value: &Value) -> Option<Named<'_>> {
    let list = value.as_array()?;
    let name = |one: &Value| {
        let text = |field: &str| one.get(field)?.as_str();
        text("name").map(str::to_owned).or_else(|| Some(format!("{} {}", text("update")?, text("action")?)))
    };
    let names: Vec<String> = list.iter().map(name).collect::<Option<_>>()?;
    let by_name: BTreeMap<String, &Value> = names.iter().cloned().zip(list).collect();
    (by_name.len() == names.len()).then_some((names, by_name))
}

/// Whether what both have is in the same order in both.
fn in_one_order(before: &Named<'_>, after: &Named<'_>) -> bool {
    let kept = before.0.iter().filter(|name| after.1.contains_key(*name));
    kept.eq(after.0.iter().filter(|name| before.1.contains_key(*name)))
}

/// Devices that keep their policy and would be in another of its rings, by policy.
pub(super) fn rings(before: (&Snapshot, &Plan), after: (&Snapshot, &Plan)) -> Vec<Rings> {
    let all = |(snapshot, plan): (&Snapshot, &Plan)| -> BTreeMap<Name, (Name, Option<Name>)> {
        let policies: BTreeMap<&str, _> = snapshot.policies.iter().map(|policy| (&*policy.name, policy)).collect();
        let devices: BTreeMap<&str, _> = snapshot.devices.iter().map(|device| (&*device.name, device)).collect();
        let of = |planned: &crate::plan::outcome::DevicePlan| {
            let policy = policies.get(planned.policy.as_deref()?)?;
            let ring = ring_of(policy, devices.get(&*planned.name)?);
            Some((planned.name.clone(), (policy.name.clone(), ring)))
        };
        plan.devices.iter().filter_map(of).collect()
    };
    let (before, after) = (all(before), all(after));
    let mut found: BTreeMap<Name, Vec<Move>> = BTreeMap::new();
    for (device, (policy, ring)) in &after {
        let Some((_, was)) = before.get(device).filter(|(before, was)| before == policy && was != ring) else {
            continue;
        };
        let [before, after] = [was, ring].map(|ring| ring.as_ref().map(ToString::to_string));
        found.entry(policy.clone()).or_default().push(Move { device: device.to_string(), before, after });
    }
    found.into_iter().map(|(policy, devices)| Rings { policy: policy.to_string(), devices }).collect()
}

/// For people.
pub(super) fn text(objects: &[Object], rings: &[Rings]) -> String {
    let mut text = String::new();
    for Object { kind, name, is_new, devices, settings } in objects {
        let devices = devices.map(|devices| format!(", {devices} devices")).unwrap_or_default();
        let is_new = if *is_new { ": it would be new" } else { ":" };
        let _ = writeln!(text, "\n{kind}/{name}{devices}{is_new}");
        for Setting { field, before, after } in settings {
            let [after, before] = shown([after, before]);
            let _ = writeln!(text, "  {field}: {after} instead of {before}");
        }
    }
    for Rings { policy, devices } in rings {
        let none = "the rest";
        let moves = devices.iter().map(|Move { device, before, after }| {
            format!("{device} (from {} to {})", before.as_deref().unwrap_or(none), after.as_deref().unwrap_or(none))
        });
        let moves: Vec<String> = moves.collect();
        let _ = writeln!(
            text,
            "\nPatchPolicy/{policy}: {} devices would be in another ring: {}",
            devices.len(),
            first(&moves)
        );
    }
    text
}

/// Two values, each cut where it is long, and so that where they differ is seen.
fn shown(values: [&Value; 2]) -> [String; 2] {
    let texts = values.map(|value| match value {
        Value::Null => "nothing".to_owned(),
        // As it is written in JSON where a line would not hold it.
        Value::String(text) if !text.contains(char::is_control) => text.clone(),
        other => other.to_string(),
    });
    let [one, other] = &texts;
    let same = one.chars().zip(other.chars()).take_while(|(one, other)| one == other).count();
    let from = if same < SHOWN { 0 } else { same - SHOWN / 4 };
    texts.map(|text| {
        let (before, after) = (if from > 0 { "…" } else { "" }, text.chars().nth(from + SHOWN).map_or("", |_| "…"));
        format!("{before}{}{after}", text.chars().skip(from).take(SHOWN).collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{device, group, live, object, place};
    use crate::plan::plan;

    /// What is said of the change of a policy's spec, for twelve devices that offer nothing.
    fn told(before: &Value, after: &Value) -> String {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let machines: Vec<_> = (0..12).map(|number| device(&format!("web-{number:02}"), &[])).collect();
        let lives = [before, after].map(|spec| {
            let everyone = json!({"members": {"selector": {}}});
            let policy = object("PatchPolicy", "all", json!({ "spec": spec }));
            live(vec![group("everyone", &everyone)], vec![policy], vec![], machines.clone())
        });
        let [was, is] = [&lives[0], &lives[1]].map(|live| live.snapshot(&place(), now));
        let [planned_before, planned] = [&was, &is].map(|snapshot| plan(snapshot, now));
        let objects = objects(&lives[0], (&lives[1], &planned)).unwrap();
        text(&objects, &rings((&was, &planned_before), (&is, &planned)))
    }

    // covers BY-3
    #[test]
    fn what_acts_later_is_told_though_nothing_waits_for_it_now() {
        let plain = json!({"mode": "Audit"});
        assert_eq!(told(&plain, &plain), "");
        for (field, changed, says) in [
            ("rollout", json!({"maxConcurrent": 3}), "spec.rollout.maxConcurrent: 3 instead of "),
            (
                "disruption",
                json!({"groupBy": "app", "maxUnavailable": 1}),
                "spec.disruption.maxUnavailable: 1 instead of nothing",
            ),
            ("retries", json!({"backoff": "8h"}), "spec.retries.backoff: 8h instead of "),
            ("catchUp", json!({"after": "48h"}), "spec.catchUp.after: 48h instead of nothing"),
            ("settle", json!("3h"), "spec.settle: 3h instead of 10m"),
        ] {
            let mut spec = plain.clone();
            spec[field] = changed;
            let told = told(&plain, &spec);
            assert!(told.starts_with("\nPatchPolicy/all, 12 devices:\n"), "{told}");
            assert!(told.contains(&format!("\n  {says}")), "{says:?} is not in:\n{told}");
        }
    }

    // covers BY-3
    #[test]
    fn devices_that_would_change_their_ring_are_named() {
        let ringed = |percent: u32, soak: &str| json!({"mode": "Audit", "rollout": {"rings": [{"name": "pilot", "percent": percent, "soak": soak}]}});
        let said = told(&ringed(100, "24h"), &ringed(0, "24h"));
        let expected = "\n  spec.rollout.rings[pilot].percent: 0 instead of 100\n\nPatchPolicy/all: 12 devices would be in another \
                        ring: web-00 (from pilot to the rest), web-01 (from pilot to the rest), web-02 (from pilot to the rest) and 9 \
                        more\n";
        assert!(said.ends_with(expected), "{said}");
        let said = told(&ringed(100, "24h"), &ringed(100, "48h"));
        assert_eq!(said, "\nPatchPolicy/all, 12 devices:\n  spec.rollout.rings[pilot].soak: 48h instead of 24h\n");
    }

    #[test]
    fn lists_are_told_by_their_names_or_as_a_whole_and_what_is_new_is_new() {
        let mut found = vec![];
        let rules = |after: &str| json!({"rules": [{"name": "a", "after": "1h"}, {"name": "b", "after": after}]});
        compare("spec", &rules("1h"), &rules("2h"), &mut found);
        let expected = Setting { field: "spec.rules[b].after".into(), before: json!("1h"), after: json!("2h") };
        assert_eq!(found, [expected]);
        let mut found = vec![];
        compare(
            "spec",
            &json!({"a": [{"name": "x"}, {"name": "y"}]}),
            &json!({"a": [{"name": "y"}, {"name": "x"}]}),
            &mut found,
        );
        assert_eq!(found.iter().map(|setting| setting.field.as_str()).collect::<Vec<_>>(), ["spec.a"]);
        let mut found = vec![];
        compare(
            "spec",
            &json!({"windows": ["a"], "same": {}}),
            &json!({"windows": ["a", "b"], "same": {}}),
            &mut found,
        );
        assert_eq!(found.iter().map(|setting| setting.field.as_str()).collect::<Vec<_>>(), ["spec.windows"]);
        let moved = |app: &str| {
            let mut device = device("web-1", &[]);
            device.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
            device
        };
        let machine = moved("web");
        let mut other = machine.clone();
        other.metadata.labels = moved("db").metadata.labels;
        let [was, is] = [machine, other].map(|machine| live(vec![], vec![], vec![], vec![machine]));
        let objects_of = |before: &Live, after: &Live| objects(before, (after, &Plan::default())).unwrap();
        let told = text(&objects_of(&was, &is), &[]);
        assert_eq!(told, "\nDeviceInventory/web-1:\n  metadata.labels.app: db instead of web\n");
        assert_eq!(objects_of(&was, &was), []);
        let none = live(vec![], vec![], vec![], vec![]);
        let some = live(vec![group("new", &json!({}))], vec![], vec![], vec![]);
        assert_eq!(text(&objects_of(&none, &some), &[]), "\nApprovalGroup/new, 0 devices: it would be new\n");
        // What is added, in the middle of a list, too.
        let mut found = vec![];
        let decision = |update: &str| json!({"update": update, "action": "Approve"});
        compare(
            "spec.decisions",
            &json!([decision("a"), decision("c")]),
            &json!([decision("a"), decision("b"), decision("c")]),
            &mut found,
        );
        let fields: Vec<_> = found.iter().map(|setting| setting.field.as_str()).collect();
        assert_eq!(fields, ["spec.decisions[b Approve].action", "spec.decisions[b Approve].update"]);
    }

    #[test]
    fn long_values_are_cut_so_that_where_they_differ_is_seen() {
        let long = "x".repeat(100);
        let [one, other] = shown([&json!(format!("{long}a{long}")), &json!(format!("{long}ä"))]);
        assert_eq!(one, format!("…{}a{}…", "x".repeat(20), "x".repeat(59)));
        assert_eq!(other, format!("…{}ä", "x".repeat(20)));
        assert_eq!(
            shown([&json!("x".repeat(81)), &Value::Null]),
            [format!("{}…", "x".repeat(80)), "nothing".to_owned()]
        );
        assert_eq!(shown([&json!("a\nb"), &json!({"a": 1})]), ["\"a\\nb\"", "{\"a\":1}"]);
    }
}
