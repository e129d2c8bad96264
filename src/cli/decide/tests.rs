use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::change::{Draft, manifest};
use super::effect::{self, Effect};
use crate::api::ApprovalGroup;
use crate::api::approval_group::UpdateDecision;
use crate::api::device_inventory::Compliance;
use crate::cli::live::Live;
use crate::cli::testing::{device, group, live, object, place};

fn now() -> Timestamp {
    "2026-11-29T12:00:00Z".parse().unwrap()
}

fn decision(value: Value) -> UpdateDecision {
    serde_json::from_value(value).unwrap()
}

fn approve(update: &str) -> UpdateDecision {
    decision(json!({"update": update, "action": "Approve"}))
}

/// Two servers and their group beneath one for all.
fn client() -> Live {
    let everyone = json!({"level": "Client", "decisions": [
        {"update": "KB-locked", "action": "Ignore", "locked": true, "reason": "no client has it"},
    ]});
    let servers = json!({"parent": {"name": "everyone"}, "members": {"selector": {}}, "decisions": [
        {"update": "KB-*", "action": "Ignore"},
        {"update": "KB-1", "action": "Ignore", "reason": "breaks the printer"},
        {"update": "KB-1", "action": "Reprocess", "failedBefore": "2026-01-01T00:00:00Z"},
    ]});
    let policy = object("PatchPolicy", "all", json!({"spec": {}}));
    let updates = [("KB-1", "High"), ("KB-locked", "Low")];
    live(
        vec![group("everyone", &everyone), group("servers", &servers)],
        vec![policy],
        vec![],
        vec![device("db-1", &updates), device("web-1", &updates)],
    )
}

fn decided(live: &Live, draft: &Draft, decisions: &[UpdateDecision]) -> (ApprovalGroup, Effect) {
    let changed = draft.changed(decisions);
    (changed.clone(), effect::of(live, &place(), changed, decisions, now()))
}

#[test]
fn a_decision_comes_first_and_takes_the_place_of_others_on_the_same_update() {
    let live = client();
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let (changed, effect) = decided(&live, &draft, &[approve("KB-1")]);
    let left: Vec<(String, String)> = changed
        .spec
        .decisions
        .iter()
        .map(|decision| (decision.update.clone(), format!("{:?}", decision.action)))
        .collect();
    let expected = [("KB-1", "Approve"), ("KB-*", "Ignore"), ("KB-1", "Reprocess")];
    assert_eq!(left, expected.map(|(update, action)| (update.to_owned(), action.to_owned())));
    assert_eq!(effect.does, ["KB-1: Approve by ApprovalGroup acme/servers decides on db-1, web-1"]);
    assert_eq!(effect.against, Vec::<String>::new());
    let yaml = manifest(&changed).unwrap();
    assert!(yaml.starts_with("apiVersion: patchwarden.io/v1alpha1\nkind: ApprovalGroup\nmetadata:\n"), "{yaml}");
    assert!(!yaml.contains("managedFields") && !yaml.contains("status"), "{yaml}");
}

#[test]
fn to_reprocess_tells_where_an_update_is_tried_again_and_where_a_check_after_it_was_seen_to() {
    let mut live = client();
    let web = live.devices.get_mut("web-1").unwrap();
    let failure = json!({
        "update": "KB-2", "attempts": 1, "last": "2026-11-29T00:00:00Z", "reason": "CheckFailed", "message": "",
    });
    let compliance = Compliance { failures: vec![serde_json::from_value(failure).unwrap()], ..Compliance::default() };
    web.status.as_mut().unwrap().compliance = Some(compliance);
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let of = |draft: &Draft, update: &str| {
        let reprocess = json!({"update": update, "action": "Reprocess", "failedBefore": "2026-11-29T12:00:00Z"});
        decided(&live, draft, &[decision(reprocess)]).1.does
    };
    // In a group that it has only then.
    let own = Draft::of_device(&live, &place(), "web-1", now()).unwrap();
    let seen_to = "KB-2: that a check failed after it counts as seen to, by ApprovalGroup acme/device-web-1 on web-1";
    assert!(of(&own, "KB-2").iter().any(|line| line == seen_to), "{:?}", of(&own, "KB-2"));
    let does = |update: &str| of(&draft, update);
    let by = "by ApprovalGroup acme/servers";
    assert_eq!(does("KB-1"), [format!("KB-1: where it has failed it is tried once more, {by} on db-1, web-1")]);
    let expected = [
        format!("KB-2: where it has failed it is tried once more, {by}"),
        format!("KB-2: that a check failed after it counts as seen to, {by} on web-1"),
    ];
    assert_eq!(does("KB-2"), expected);
}

// covers RM-3
#[test]
fn what_is_locked_above_stands_against_a_decision() {
    let live = client();
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let (_, effect) = decided(&live, &draft, &[approve("KB-locked")]);
    assert_eq!(effect.against.len(), 2, "{effect:?}");
    assert!(effect.against[0].starts_with("KB-locked stays Ignored on db-1, by "), "{effect:?}");
    assert!(effect.against[0].ends_with("everyone decision KB-locked (no client has it)"), "{effect:?}");
    assert!(effect.does.is_empty(), "{effect:?}");
    let (_, unknown) = decided(&live, &draft, &[approve("KB-9")]);
    assert!(unknown.does[0].contains("decides for no device that there is"), "{unknown:?}");
}

#[test]
fn a_decision_for_a_device_is_of_a_group_of_its_own_beneath_the_one_it_has() {
    let live = client();
    let draft = Draft::of_device(&live, &place(), "web-1", now()).unwrap();
    assert!(draft.is_new);
    let (changed, effect) = decided(&live, &draft, &[approve("KB-1")]);
    assert_eq!(changed.name_any(), "device-web-1");
    assert_eq!(changed.spec.parent.as_ref().unwrap().name, "servers");
    assert_eq!(effect.does, ["KB-1: Approve by ApprovalGroup acme/device-web-1 decides on web-1"]);
    assert_eq!(effect.against, Vec::<String>::new());

    // Once it is there it is changed, and not made again.
    let mut with = live.clone();
    with.groups.insert(changed.name_any(), changed);
    let again = Draft::of_device(&with, &place(), "web-1", now()).unwrap();
    assert!(!again.is_new && again.group.name_any() == "device-web-1");
    let missing = Draft::of_device(&live, &place(), "web-9", now()).unwrap_err().to_string();
    assert_eq!(missing, "DeviceInventory acme/web-9 does not exist");
}

#[test]
fn a_device_that_would_lose_its_policy_to_a_group_of_its_own_is_told() {
    let mut live = client();
    live.policies.insert("all".into(), object("PatchPolicy", "all", json!({"spec": {"approvalGroups": ["servers"]}})));
    let draft = Draft::of_device(&live, &place(), "web-1", now()).unwrap();
    let (_, effect) = decided(&live, &draft, &[approve("KB-1")]);
    assert_eq!(effect.against.len(), 1, "{effect:?}");
    assert!(effect.against[0].starts_with("web-1: its PatchPolicy would be none, not all"), "{effect:?}");
    // One that leaves the device out by its group would take it on.
    let policy = object("PatchPolicy", "all", json!({"spec": {"excludeApprovalGroups": ["servers"]}}));
    live.policies.insert("all".into(), policy);
    let (_, effect) = decided(&live, &draft, &[approve("KB-1")]);
    assert_eq!(effect.against.len(), 1, "{effect:?}");
    assert!(effect.against[0].starts_with("web-1: its PatchPolicy would be all, not none"), "{effect:?}");
}

#[test]
fn a_group_that_would_be_stalled_stands_against_a_decision_and_one_that_is_does_not() {
    let mut live = client();
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let in_window = decision(json!({"update": "KB-1", "action": "Approve", "window": "sundays"}));
    let (changed, effect) = decided(&live, &draft, std::slice::from_ref(&in_window));
    let stalled = "ApprovalGroup/servers would be Stalled: MaintenanceWindow/sundays does not exist in this namespace: what \
                   is to be installed in it waits";
    assert_eq!(effect.against, [stalled]);
    live.groups.insert("servers".into(), changed);
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let (_, again) = decided(&live, &draft, &[in_window]);
    assert_eq!(again.against, Vec::<String>::new());
}

#[test]
fn what_is_applied_is_the_plugins_own_and_nothing_of_others() {
    let mut live = client();
    let servers = live.groups.get_mut("servers").unwrap();
    let fields = |fields: Value| {
        json!([{
            "manager": "kubectl-patchwarden", "operation": "Apply", "apiVersion": "patchwarden.io/v1alpha1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": fields},
        }])
    };
    let one = fields(json!({"f:decisions": {"k:{\"action\":\"Ignore\",\"update\":\"KB-*\"}": {".": {}}}}));
    servers.metadata.managed_fields = Some(serde_json::from_value(one).unwrap());
    servers.metadata.resource_version = Some("17".into());
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let applied = draft.applied(&[approve("KB-2")]).unwrap();
    // On what was read, or not at all: it takes away what somebody else has decided by the plugin since.
    assert_eq!(applied["metadata"]["resourceVersion"], "17");
    assert_eq!(
        applied["spec"],
        json!({"decisions": [{"update": "KB-2", "action": "Approve"}, {"update": "KB-*", "action": "Ignore"}]})
    );

    // A group that it has made is its own as a whole.
    let whole = fields(json!({"f:members": {".": {}}, "f:decisions": {}}));
    live.groups.get_mut("servers").unwrap().metadata.managed_fields = Some(serde_json::from_value(whole).unwrap());
    let draft = Draft::of_group(&live, &place(), "servers").unwrap();
    let applied = draft.applied(&[approve("KB-2")]).unwrap();
    assert_eq!(applied["spec"]["members"], json!({"selector": {}}));
    assert_eq!(applied["spec"]["decisions"], json!([{"update": "KB-2", "action": "Approve"}]));
}

#[test]
fn whoever_keeps_an_object_is_named() {
    let keeper = |metadata: Value| {
        let group = object("ApprovalGroup", "g", json!({"metadata": metadata, "spec": {}}));
        Draft { group, is_new: false }.keeper()
    };
    assert_eq!(keeper(json!({})), None);
    assert_eq!(keeper(json!({"labels": {"app.kubernetes.io/instance": "x"}})), None, "that may be anything");
    let argo = json!({"annotations": {"argocd.argoproj.io/tracking-id": "fleet:x"}});
    assert_eq!(keeper(argo).unwrap(), "Argo CD (fleet:x)");
    let flux = json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "fleet"}});
    assert_eq!(keeper(flux).unwrap(), "Flux (Kustomization fleet)");
    let manager = json!({"managedFields": [{"manager": "kustomize-controller", "operation": "Apply"}]});
    assert_eq!(keeper(manager).unwrap(), "Flux (kustomize-controller)");
}
