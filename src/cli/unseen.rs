//! What these commands were not told and the controller may have been: what its own files say of vulnerabilities.

use patchwarden_protocol::report::Severity;

use crate::plan::Snapshot;
use crate::plan::model::{Group, Target, UpdateId};
use crate::plan::outcome::{DevicePlan, Plan};

use super::live::Place;

/// For the groups that have a say in a device's updates.
pub(super) fn of_device(snapshot: &Snapshot, planned: &DevicePlan, place: &Place) -> Option<String> {
    let named = |name: &str| snapshot.groups.iter().find(|group| *group.name == *name);
    let own = planned.group.as_deref().and_then(named);
    let line = std::iter::successors(own, |group| named(group.parent.as_deref()?));
    // Groups may be in a circle.
    hint(line.take(snapshot.groups.len()), has_unrated(snapshot, planned), place)
}

/// For all groups.
pub(super) fn of_all(snapshot: &Snapshot, plan: &Plan, place: &Place) -> Option<String> {
    let is_any_unrated = plan.devices.iter().any(|planned| has_unrated(snapshot, planned));
    hint(snapshot.groups.iter(), is_any_unrated, place)
}

/// Whether it is not known of an update how severe it is: the controller's files may tell.
fn has_unrated(snapshot: &Snapshot, planned: &DevicePlan) -> bool {
    let is_unrated = |update: UpdateId| {
        let update = snapshot.updates.get(update);
        update.is_some_and(|update| update.severity == Severity::Unknown && !update.packages.is_empty())
    };
    planned.updates.iter().any(|update| is_unrated(update.update))
}

/// What to say where a group decides by what this command does not know.
fn hint<'g>(mut groups: impl Iterator<Item = &'g Group>, has_unrated: bool, place: &Place) -> Option<String> {
    if place.vulnerabilities.is_some() {
        return None;
    }
    let (group, what) = groups.find_map(|group| Some((group, asks(group, has_unrated)?)))?;
    Some(format!(
        "{what} of ApprovalGroup/{} asks for vulnerabilities. What the controller's own files say of them (KEV, EPSS, which CVEs an \
         update fixes and how severe it is) this command was not told: the controller may decide otherwise. Give it the same files with \
         --vulnerabilities DIRECTORY.",
        group.name
    ))
}

/// Which rule or decision of a group asks for vulnerabilities, or for the severity of an update of which it is not known.
fn asks(group: &Group, has_unrated: bool) -> Option<String> {
    let approvals = group.approvals.as_ref().ok()?;
    let mut rules = approvals.rules.iter().filter(|rule| {
        let expression = rule.matches.expression.as_ref();
        let names = |field| expression.is_some_and(|expression| expression.names(field));
        let of_severity = !rule.matches.severities.is_empty() || names("severity");
        let of_cves = !rule.matches.cves.is_empty() || names("cves");
        rule.matches.asks_vulnerabilities() || of_cves || (has_unrated && of_severity)
    });
    let mut decisions = approvals.decisions.iter().filter(|decision| matches!(decision.target, Target::Cves(_)));
    let rule = rules.next().map(|rule| format!("rule {}", rule.name));
    rule.or_else(|| decisions.next().map(|decision| format!("decision {}", decision.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::testing::{device, group, live, place};
    use crate::plan;

    #[test]
    fn a_hint_is_given_where_a_rule_that_has_a_say_asks_for_vulnerabilities() {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let hint = |rule: Value, severity: &str, place: &Place| {
            let mut rule = rule;
            (rule["name"], rule["action"]) = (json!("r"), json!("Approve"));
            let own = json!({"parent": {"name": "above"}, "members": {"selector": {}}});
            let groups =
                vec![group("own", &own), group("above", &json!({"rules": [rule]})), group("aside", &json!({}))];
            let live = live(groups, vec![], vec![], vec![device("web-1", &[("KB-1", severity)])]);
            let snapshot = live.snapshot(place, now);
            let plan = plan::plan(&snapshot, now);
            let told = of_device(&snapshot, &plan.devices[0], place);
            assert_eq!(told, of_all(&snapshot, &plan, place));
            told
        };
        let told = hint(json!({"match": {"knownExploited": true}}), "High", &place()).unwrap();
        assert!(told.starts_with("rule r of ApprovalGroup/above asks for vulnerabilities."), "{told}");
        let by_cves = json!({"match": {"expression": "size(update.cves) > 0"}});
        for rule in [json!({"match": {"epssAtLeast": "0.5"}}), json!({"match": {"cves": ["CVE-2026-1"]}}), by_cves] {
            assert!(hint(rule.clone(), "High", &place()).is_some(), "{rule}");
        }
        let severe = || json!({"match": {"severities": ["Critical"]}});
        assert_eq!(hint(severe(), "High", &place()), None);
        assert!(hint(severe(), "Unknown", &place()).is_some());
        assert_eq!(hint(json!({"match": {"classifications": ["Security"]}}), "Unknown", &place()), None);
        let told = Place { vulnerabilities: Some("/data".into()), ..place() };
        assert_eq!(hint(json!({"match": {"knownExploited": true}}), "High", &told), None);
    }

    #[test]
    fn groups_that_have_no_say_do_not_matter_for_a_device() {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let asks = json!({"rules": [{"name": "r", "action": "Approve", "match": {"knownExploited": true}}]});
        let groups = vec![group("own", &json!({"members": {"selector": {}}})), group("aside", &asks)];
        let snapshot = live(groups, vec![], vec![], vec![device("web-1", &[])]).snapshot(&place(), now);
        let plan = plan::plan(&snapshot, now);
        assert_eq!(of_device(&snapshot, &plan.devices[0], &place()), None);
        assert!(of_all(&snapshot, &plan, &place()).is_some());
    }
}
