use super::device::{forget, update_compliance};
use super::*;
use crate::api::conditions as c;
use crate::api::device_inventory::{self as devinv, Compliance};
use crate::api::{DeviceInventory, PatchPolicy};
use crate::convert;
use crate::gateway::testing;
use crate::plan::model::{self, Catalogue, Name, Pair, Pending, Progress};
use crate::plan::model::{Accepted, Blast, Moved, Snapshot, Update};
use crate::plan::outcome::{self, ComplianceCounts, Decision, DevicePlan, PolicyPlan, State, Unprovable, UpdatePlan};
use crate::plan::plan as plan_all;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{Sequence, Verb};
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
        never_opens: false,
        unprovable: None,
        too_short: None,
        missing_groups: Arc::default(),
        missing_excluded_groups: Arc::default(),
        unknown_devices: outcome::Others::default(),
        unlabelled: false,
        overlap: None,
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

// covers BY-1
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
    let status =
        policy(&object, &PolicyPlan { stalled: Some(Arc::new(missing)), ..plan() }, false, at("2026-01-10T12:00:00Z"));
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
    let reconciling = waits.conditions.iter().find(|condition| condition.type_ == c::RECONCILING).unwrap();
    assert_eq!((reconciling.status.as_str(), reconciling.reason.as_str()), ("True", c::REASON_RECORD_UNREAD));
    // What the API server says of an object before anybody has looked at it.
    object.status = serde_json::from_value(json!({"observedGeneration": -1})).unwrap();
    assert!(is_new(&object));
    // Stalled for another reason, it still waits; kstatus says the first of the two that it finds.
    let mut missing = a_policy();
    let window = Blocked::WindowNotFound { by: "PatchPolicy/servers".into(), window: "nights".into() };
    let stalled = PolicyPlan { stalled: Some(Arc::new(window)), ..plan };
    missing.status = Some(policy(&missing, &stalled, true, at("2026-01-10T12:00:00Z")));
    assert!(is_new(&missing));
    let conditions = missing.status.map(|status| status.conditions).unwrap_or_default();
    assert!(conditions.iter().any(|condition| condition.type_ == c::STALLED));
    assert!(conditions.iter().all(|condition| condition.type_ != c::RECONCILING));
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
        failed: None,
        unknown_devices: outcome::Others::default(),
    };
    let status = group(&object, &plan, at("2026-01-10T12:00:00Z"));
    let stalled = status.conditions.iter().find(|condition| condition.type_ == c::STALLED).unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", c::REASON_NOT_FOUND));
    assert!(stalled.message.starts_with("spec.rules: exploited asks knownExploited"), "{}", stalled.message);
}

fn said<'c>(conditions: &'c [Condition], type_: &str) -> Option<(&'c str, &'c str, &'c str)> {
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&found.status, &found.reason, &found.message))
}

fn a_window(schedules: &serde_json::Value) -> MaintenanceWindow {
    serde_json::from_value(json!({
        "apiVersion": "patchwarden.io/v1alpha1", "kind": "MaintenanceWindow", "metadata": {"name": "nights"},
        "spec": {"timeZone": "UTC", "duration": "2h", "schedules": schedules},
    }))
    .unwrap()
}

#[test]
fn a_window_that_will_not_open_any_more_is_stalled_from_its_end_on() {
    let object = a_window(&json!([{"once": {"at": "2026-01-10T02:00"}}]));
    let snapshot = Snapshot { windows: vec![convert::window(&object)], ..Snapshot::default() };
    let status = |now: &str| window(&object, &plan_all(&snapshot, at(now)).windows[0], at(now));
    for open in ["2026-01-09T00:00:00Z", "2026-01-10T03:59:59Z"] {
        let conditions = status(open).conditions;
        assert_eq!(said(&conditions, c::READY), Some(("True", c::REASON_ENFORCED, "accepted")));
        assert_eq!(said(&conditions, c::STALLED), None);
    }
    let conditions = status("2026-01-10T04:00:00Z").conditions;
    let stalled = said(&conditions, c::STALLED).unwrap();
    assert_eq!((stalled.0, stalled.1), ("True", c::REASON_NEVER_OPENS));
    assert!(stalled.2.starts_with("spec.schedules: it is not open and will not open any more"), "{}", stalled.2);
    assert!(stalled.2.ends_with("give it another schedule, or delete it"), "{}", stalled.2);
    assert_eq!(said(&conditions, c::READY).unwrap().0, "False");
}

#[test]
fn a_policy_of_which_no_window_opens_any_more_names_them_and_one_that_has_another_is_ready() {
    let mut object = a_policy();
    object.spec.windows = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
    let over = PolicyPlan { next_window: None, never_opens: true, ..plan() };
    let conditions = policy(&object, &over, false, at("2026-01-10T12:00:00Z")).conditions;
    let (status, reason, message) = said(&conditions, c::STALLED).unwrap();
    assert_eq!((status, reason), ("True", c::REASON_NEVER_OPENS));
    let expected =
        "spec.windows: MaintenanceWindow/a, MaintenanceWindow/b, MaintenanceWindow/c and 2 more: none of them is open";
    assert!(message.starts_with(expected), "{message}");
    let ready = policy(&object, &plan(), false, at("2026-01-10T12:00:00Z")).conditions;
    assert_eq!((said(&ready, c::READY).unwrap().0, said(&ready, c::STALLED)), ("True", None));
    // Over in UTC, and not on every clock that a device may have.
    let elsewhere = PolicyPlan { next_window: None, ..plan() };
    let ready = policy(&object, &elsewhere, false, at("2026-01-10T12:00:00Z")).conditions;
    assert!(said(&ready, c::READY).unwrap().2.contains("where devices' own clocks are behind it"), "{ready:?}");
    // What a person is asked to look into first.
    let mut paused = over.clone();
    Arc::make_mut(&mut paused.progress).paused = Some(at("2026-01-10T11:00:00Z"));
    let conditions = policy(&object, &paused, false, at("2026-01-10T12:00:00Z")).conditions;
    assert_eq!(said(&conditions, c::STALLED).unwrap().1, c::REASON_ROLLOUT_PAUSED);
}

#[test]
fn a_ring_that_can_prove_nothing_says_what_it_lacks_by_field() {
    let ring = Unprovable { place: 1, ring: "pilot".into(), devices: 2, unknown: 1, needs: 3, waiting: 40 };
    let too_small = PolicyPlan { unprovable: Some(ring), missing_groups: Arc::new(["gone".into()]), ..plan() };
    let conditions = policy(&a_policy(), &too_small, false, at("2026-01-10T12:00:00Z")).conditions;
    let (status, reason, message) = said(&conditions, c::STALLED).unwrap();
    assert_eq!((status, reason), ("True", c::REASON_RING_TOO_SMALL));
    assert_eq!(
        message,
        "spec.rollout.rings[1]: an update has to be installed on 3 devices of ring pilot (minSuccesses), which has 2, of which 1 were not heard of for too long: it proves \
         none, and the 40 devices after it wait for what is new; give it more devices, another minSuccesses, or, where it has \
         none, whenEmpty: Promote"
    );
    // Nothing at all happens in windows that are over.
    let over = PolicyPlan { next_window: None, never_opens: true, ..too_small };
    let conditions = policy(&a_policy(), &over, false, at("2026-01-10T12:00:00Z")).conditions;
    assert_eq!(said(&conditions, c::STALLED).unwrap().1, c::REASON_NEVER_OPENS);
}

#[test]
fn a_policy_says_that_a_window_of_a_groups_is_too_short_for_its_installs() {
    let too_short = PolicyPlan { too_short: Some("lunch".into()), ..plan() };
    let conditions = policy(&a_policy(), &too_short, false, at("2026-01-10T12:00:00Z")).conditions;
    let (status, reason, message) = said(&conditions, c::STALLED).unwrap();
    assert_eq!((status, reason), ("True", c::REASON_WINDOW_TOO_SHORT));
    assert!(message.starts_with("spec.installLimit: MaintenanceWindow/lunch, which"), "{message}");
}

#[test]
fn a_policy_that_names_groups_that_are_not_there_says_which_by_field() {
    let mut object = a_policy();
    object.spec.approval_groups = ["one", "gone", "lost"].map(str::to_owned).into();
    let message = |missing: &[&str]| {
        let missing_groups = missing.iter().map(|name| Name::from(*name)).collect();
        let conditions =
            policy(&object, &PolicyPlan { missing_groups, ..plan() }, false, at("2026-01-10T12:00:00Z")).conditions;
        let (status, reason, message) = said(&conditions, c::STALLED)?;
        assert_eq!((status, reason), ("True", c::REASON_NOT_FOUND));
        Some(message.to_owned())
    };
    assert_eq!(
        message(&["gone"]).unwrap(),
        "spec.approvalGroups[1]: ApprovalGroup/gone does not exist in this namespace: no device is governed for it, those of \
         other groups are"
    );
    let both = message(&["gone", "lost"]).unwrap();
    assert!(
        both.starts_with(
            "spec.approvalGroups[1]: ApprovalGroup/gone, spec.approvalGroups[2]: ApprovalGroup/lost do not"
        )
    );
    assert_eq!(message(&[]), None);
}

#[test]
fn a_policy_that_leaves_out_devices_of_groups_that_are_not_there_says_that_nobody_is_left_out_for_them() {
    let mut object = a_policy();
    object.spec.approval_groups = ["one", "lost"].map(str::to_owned).into();
    object.spec.exclude_approval_groups = ["two", "gone"].map(str::to_owned).into();
    let message = |missing: &[&str]| {
        let missing_groups = missing.iter().map(|name| Name::from(*name)).collect();
        let plan = PolicyPlan { missing_groups, missing_excluded_groups: Arc::new(["gone".into()]), ..plan() };
        let conditions = policy(&object, &plan, false, at("2026-01-10T12:00:00Z")).conditions;
        let (status, reason, message) = said(&conditions, c::STALLED).unwrap();
        assert_eq!((status, reason), ("True", c::REASON_NOT_FOUND));
        message.to_owned()
    };
    let excluded = "spec.excludeApprovalGroups[1]: ApprovalGroup/gone does not exist in this namespace: no device is left out for \
                    it, and one that was meant to be is governed";
    assert_eq!(message(&[]), excluded);
    let both = message(&["lost"]);
    assert!(both.starts_with("spec.approvalGroups[1]: ApprovalGroup/lost does not exist") && both.ends_with(excluded));
}

#[test]
fn policies_that_overlap_say_so_and_are_ready_and_the_clock_alone_rewrites_nothing() {
    let mut object = a_policy();
    object.spec.priority = 7;
    let tied = outcome::Overlap::SamePriority { won: 3, lost: 2, others: others(&["a", "b", "c"], 4) };
    let tied = PolicyPlan { overlap: Some(tied), ..plan() };
    let status = policy(&object, &tied, false, at("2026-01-10T12:00:00Z"));
    let expected = "5 of the devices that this policy selects are also selected with the same spec.priority (7) by PatchPolicy/a, \
                    PatchPolicy/b, PatchPolicy/c and 4 more: the name that sorts first has them, this policy 3, others 2; give \
                    one of them another spec.priority";
    assert_eq!(said(&status.conditions, c::OVERLAPPING), Some(("True", c::REASON_SAME_PRIORITY, expected)));
    assert_eq!(said(&status.conditions, c::READY).unwrap().0, "True");
    assert_eq!(said(&status.conditions, c::STALLED), None);
    object.status = Some(status);
    assert_eq!(Some(policy(&object, &tied, false, at("2026-01-10T13:00:00Z"))), object.status);
    let loses = outcome::Overlap::HigherPriority { lost: 5, others: others(&["a"], 0) };
    let status = policy(&object, &PolicyPlan { overlap: Some(loses), ..plan() }, false, at("2026-01-10T13:00:00Z"));
    let expected = "5 of the devices that this policy selects are governed by others, whose spec.priority is higher than 7: PatchPolicy/a";
    assert_eq!(said(&status.conditions, c::OVERLAPPING), Some(("True", c::REASON_HIGHER_PRIORITY, expected)));
    let status = policy(&object, &plan(), false, at("2026-01-10T14:00:00Z"));
    assert_eq!(said(&status.conditions, c::OVERLAPPING), None);
}

fn others(first: &[&str], more: usize) -> outcome::Others {
    outcome::Others { first: first.iter().map(|name| Name::from(*name)).collect(), more }
}

#[test]
fn a_policy_that_names_devices_that_are_not_there_or_a_label_that_no_server_has_says_so_and_is_ready() {
    let mut object = a_policy();
    object.spec.exclude = ["web-9", "web-1", "web-8", "web-7", "web-6"].map(str::to_owned).into();
    object.spec.disruption = serde_json::from_value(json!({"groupBy": "aplication", "maxUnavailable": 1})).unwrap();
    let unknown = |first: &[&str], more| PolicyPlan { unknown_devices: others(first, more), ..plan() };
    let status = policy(&object, &unknown(&["web-6", "web-7", "web-8"], 1), false, at("2026-01-10T12:00:00Z"));
    let expected = "spec.exclude[4]: DeviceInventory/web-6, spec.exclude[3]: DeviceInventory/web-7, spec.exclude[2]: \
                    DeviceInventory/web-8 and 1 more do not exist in this namespace: no device is left out for them; correct the \
                    name, unless such a device is yet to enrol";
    assert_eq!(said(&status.conditions, c::NAMES_UNKNOWN), Some(("True", c::REASON_DEVICE_NOT_FOUND, expected)));
    assert_eq!(said(&status.conditions, c::READY).unwrap().0, "True", "nothing stops for it");
    assert_eq!(said(&status.conditions, c::STALLED), None);
    object.status = Some(status);

    let both = PolicyPlan { unlabelled: true, ..unknown(&["web-1"], 0) };
    let status = policy(&object, &both, false, at("2026-01-10T13:00:00Z"));
    let device = "spec.exclude[1]: DeviceInventory/web-1 does not exist in this namespace: no device is left out for it; correct \
                  the name, unless such a device is yet to enrol";
    let label = "spec.disruption.groupBy: none of the servers that this policy governs has the label aplication: it limits how many \
                 of them are unavailable at a time in no way; correct the label, or give it to the servers";
    let expected = format!("{device}; {label}");
    assert_eq!(said(&status.conditions, c::NAMES_UNKNOWN), Some(("True", c::REASON_DEVICE_NOT_FOUND, &*expected)));
    let unlabelled = PolicyPlan { unlabelled: true, ..plan() };
    let status = policy(&object, &unlabelled, false, at("2026-01-10T13:00:00Z"));
    assert_eq!(said(&status.conditions, c::NAMES_UNKNOWN), Some(("True", c::REASON_LABEL_NOT_FOUND, label)));
    object.status = Some(status);
    let status = policy(&object, &plan(), false, at("2026-01-10T14:00:00Z"));
    assert_eq!(said(&status.conditions, c::NAMES_UNKNOWN), None);
}

/// The conditions of groups, by name, as they come of the objects and of a device that offers an update.
fn groups_of(groups: serde_json::Value) -> std::collections::BTreeMap<String, Vec<Condition>> {
    let objects: Vec<ApprovalGroup> = serde_json::from_value::<Vec<serde_json::Value>>(groups)
        .unwrap()
        .into_iter()
        .map(|spec| {
            let name = spec["name"].clone();
            let spec = json!({"members": spec["members"], "parent": spec["parent"], "rules": spec["rules"]});
            let spec: serde_json::Map<_, _> =
                spec.as_object().unwrap().clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
            serde_json::from_value(json!({
                "apiVersion": "patchwarden.io/v1alpha1", "kind": "ApprovalGroup",
                "metadata": {"name": name, "namespace": "acme"}, "spec": spec,
            }))
            .unwrap()
        })
        .collect();
    let key = PrivateKey::generate();
    let mut report = testing::report("acme", "web-1");
    report.updates = vec![testing::update("u-1")];
    report.updates[0].cves.clear();
    let signature = Envelope::seal(&report, &key).unwrap().signatures[0].clone();
    let spec = json!({"acceptedKey": key.public().fingerprint()});
    let mut device = DeviceInventory::new("web-1", serde_json::from_value(spec).unwrap());
    device.metadata.namespace = Some("acme".into());
    device.status = Some(devinv::DeviceInventoryStatus {
        inventory: Some(devinv::Inventory {
            report: Some(report),
            signature: Some(signature),
            public_key: Some(key.public()),
            ..devinv::Inventory::default()
        }),
        ..devinv::DeviceInventoryStatus::default()
    });
    let mut snapshot =
        Snapshot { groups: objects.iter().map(|group| convert::group(group, "own")).collect(), ..Snapshot::default() };
    let now = at("2026-01-10T12:00:00Z");
    let advice = &mut convert::Advice::default();
    snapshot.devices = vec![convert::device(&device, &Compliance::default(), (&mut snapshot.updates, advice), now)];
    let planned = plan_all(&snapshot, now);
    let conditions = |object: &ApprovalGroup| {
        let name = object.metadata.name.clone().unwrap();
        let plan = planned.groups.iter().find(|plan| *plan.name == *name).unwrap();
        (name, group(object, plan, now).conditions)
    };
    objects.iter().map(conditions).collect()
}

#[test]
fn a_group_that_has_devices_that_are_not_there_says_which_and_is_ready() {
    let conditions = groups_of(json!([
        {"name": "g", "members": {"names": ["web-1", "web-3", "web-2"]}}, {"name": "all", "members": {"names": ["web-1"]}},
    ]));
    let expected = "spec.members.names[2]: DeviceInventory/web-2, spec.members.names[1]: DeviceInventory/web-3 do not exist in this \
                    namespace: no device is in the group for them; correct the name, unless such a device is yet to enrol";
    assert_eq!(said(&conditions["g"], c::NAMES_UNKNOWN), Some(("True", c::REASON_DEVICE_NOT_FOUND, expected)));
    assert_eq!(said(&conditions["g"], c::READY).unwrap().0, "True");
    assert_eq!(said(&conditions["all"], c::NAMES_UNKNOWN), None);
}

#[test]
fn a_group_whose_expressions_fail_says_which_for_what_and_why() {
    let said_of = |groups: serde_json::Value, name: &str| {
        let conditions = groups_of(groups).remove(name).unwrap();
        said(&conditions, c::STALLED).map(|(status, reason, message)| {
            assert_eq!((status, reason), ("True", c::REASON_EXPRESSION_FAILED));
            message.to_owned()
        })
    };
    let rules =
        json!([{"name": "first-cve", "action": "Approve", "match": {"expression": "update.cves[0] == 'CVE-1'"}}]);
    let by_rule = said_of(json!([{"name": "g", "members": {"selector": {}}, "rules": rules}]), "g").unwrap();
    assert!(by_rule.starts_with("spec.rules[first-cve].match.expression: Index out of bounds"), "{by_rule}");
    assert!(by_rule.contains("it cannot be evaluated for u-1: "), "{by_rule}");
    assert!(by_rule.ends_with(": such updates are not approved"), "{by_rule}");
    let nobodys = json!([{"name": "g", "members": {"names": ["none"]}, "rules": rules}]);
    assert_eq!(said_of(nobodys, "g"), None, "none of its devices offers such an update");
    let by_members = said_of(json!([{"name": "g", "members": {"rule": "device.labels.env == 'prod'"}}]), "g").unwrap();
    assert_eq!(
        by_members,
        "spec.members.rule: No such key: env: it cannot be evaluated for DeviceInventory/web-1: nothing is approved for such a \
         device where no group comes before this one"
    );
    // The organisation's own groups do not see the client's devices.
    let plan = GroupPlan {
        name: "g".into(),
        devices: 1,
        states: ComplianceCounts::default(),
        seen: Arc::default(),
        invalid: None,
        stalled: None,
        failed: Some(outcome::Failed {
            expression: outcome::FailedExpression::Rule { group: "own/all".into(), rule: "r".into() },
            error: "why".into(),
            example: "u".into(),
            more: 2,
        }),
        unknown_devices: outcome::Others::default(),
    };
    let object = ApprovalGroup::new("g", serde_json::from_value(json!({})).unwrap());
    let conditions = group(&object, &plan, at("2026-01-10T12:00:00Z")).conditions;
    assert_eq!(
        said(&conditions, c::STALLED).unwrap().2,
        "spec.parent: spec.rules[r].match.expression of ApprovalGroup/own/all: why: it cannot be evaluated for u and 2 more: such \
         updates are not approved"
    );
}

#[test]
fn groups_in_a_circle_are_stalled_each_and_one_beside_them_is_not() {
    let conditions = groups_of(json!([
        {"name": "a", "parent": {"name": "b"}}, {"name": "b", "parent": {"name": "a"}},
        {"name": "beside", "members": {"selector": {}}},
    ]));
    for name in ["a", "b"] {
        let expected =
            format!("spec.parent: ApprovalGroup/{name} is its own ancestor: nothing is approved for its devices");
        assert_eq!(said(&conditions[name], c::STALLED), Some(("True", c::REASON_INVALID_SPEC, expected.as_str())));
    }
    assert_eq!(said(&conditions["beside"], c::STALLED), None);
}

#[test]
fn what_a_group_tells_of_sightings_and_dates_is_read_as_it_was_written() {
    let object = ApprovalGroup::new("g", serde_json::from_value(json!({})).unwrap());
    let seen = |id: &str, shared: Option<&str>, dates| model::Seen {
        id: id.into(),
        first: at("2026-01-05T00:00:00Z"),
        by: "web-1".into(),
        shared: shared.map(at),
        dates,
    };
    let (first, again) = (at("2026-01-04T00:00:00Z"), at("2026-01-09T00:00:00Z"));
    let both = model::Dates { shared: Some(again), alone: Some((first, "web-2".into())) };
    let seen: [model::Seen; 2] =
        [seen("u", None, model::Dates::default()), seen("v", Some("2026-01-06T00:00:00Z"), both)];
    let plan = GroupPlan {
        name: "g".into(),
        devices: 1,
        states: ComplianceCounts::default(),
        seen: seen.clone().into(),
        invalid: None,
        stalled: None,
        failed: None,
        unknown_devices: outcome::Others::default(),
    };
    let status = group(&object, &plan, at("2026-01-10T12:00:00Z"));
    let told = serde_json::to_value(&status.seen).unwrap();
    assert_eq!(told[0], json!({"id": "u", "first": "2026-01-05T00:00:00Z", "by": "web-1"}));
    assert_eq!(
        (&told[1]["published"], &told[1]["publishedAlone"]),
        (&json!("2026-01-09T00:00:00Z"), &json!({"at": "2026-01-04T00:00:00Z", "by": "web-2"}))
    );
    assert_eq!(crate::convert::seen(&status), seen);
}

#[test]
fn what_is_waived_is_counted_by_itself() {
    let now = at("2026-01-10T12:00:00Z");
    let mut catalogue = Catalogue::default();
    let decisions = [Decision::Waived, Decision::Ignored, Decision::Waived];
    let updates = decisions.into_iter().enumerate().map(|(number, decision)| UpdatePlan {
        update: catalogue.intern(model::Update { id: format!("u-{number}").into(), ..model::Update::restart() }),
        verb: Verb::Install,
        state: State::Ignored,
        last_known: State::Ignored,
        decision,
        decided_by: None,
        blocked: None,
        eligible_at: None,
    });
    let plan = DevicePlan { updates: updates.collect(), ..device_plan(None) };
    let object = DeviceInventory::new("web-1", serde_json::from_value(json!({})).unwrap());
    let told = device(&object, Compliance::default(), &plan, &catalogue, None, now).compliance;
    assert_eq!((told.counts.waived, told.counts.ignored), (2, 1));
}

fn come(second: i64) -> model::UpdateProgress {
    let opened = Timestamp::from_second(second).unwrap();
    model::UpdateProgress {
        ring: None,
        opened,
        reached: None,
        stopped: None,
        installed: 0,
        anywhere: 0,
        failed: vec![],
    }
}

#[test]
fn of_more_updates_than_status_holds_it_tells_those_that_are_stopped_or_failed_or_went_forward_last() {
    let mut plan = plan();
    let updates = (0..300_i64).map(|number| (Name::from(format!("u{:03}", (number * 7) % 300)), come(number)));
    Arc::make_mut(&mut plan.progress).updates = updates.collect();
    let stopped = Arc::make_mut(&mut plan.progress).updates.get_mut("u000").unwrap();
    stopped.stopped = Some(Timestamp::from_second(1).unwrap());
    let last = Timestamp::from_second(1).unwrap();
    let failed = Arc::make_mut(&mut plan.progress).updates.get_mut("u007").unwrap();
    failed.failed = vec![model::FailedOn { device: "web-1".into(), last, ring: None }];
    let status = policy(&a_policy(), &plan, false, at("2026-01-10T12:00:00Z"));
    assert_eq!(status.updates.len(), 256);
    let told = |id: &str| status.updates.iter().any(|update| update.id == id);
    let opened = |second: i64| format!("u{:03}", (second * 7) % 300);
    assert!(
        told("u000")
            && told("u007")
            && told(&opened(299))
            && told(&opened(46))
            && !told(&opened(45))
            && !told(&opened(2))
    );
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
            possible_groups: Box::default(),
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
fn on_which_devices_an_update_failed_is_read_back_as_it_was_written() {
    let mut object = a_policy();
    let failed = |device: &str| model::FailedOn {
        device: device.into(),
        last: at("2026-01-10T11:00:00Z"),
        ring: Some("pilot".into()),
    };
    let update = model::UpdateProgress { failed: vec![failed("db-1"), failed("web-1")], ..come(10) };
    let progress = Arc::new(Progress { updates: [("u".into(), update)].into(), ..Progress::default() });
    let plan = PolicyPlan { progress: progress.clone(), ..plan() };
    object.status = Some(policy(&object, &plan, false, at("2026-01-10T12:00:00Z")));
    assert_eq!(convert::policy(&object).progress, progress);
}

#[test]
fn what_was_measured_is_read_back_as_it_was_written() {
    let mut object = a_policy();
    let durations = model::Durations {
        updates: [("a".into(), 90), ("b".into(), 30)].into(),
        kinds: [(Classification::Security, 90)].into(),
    };
    let progress = Arc::new(Progress { durations, ..Progress::default() });
    object.status =
        Some(policy(&object, &PolicyPlan { progress: progress.clone(), ..plan() }, false, at("2026-01-10T12:00:00Z")));
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
        possible_groups: Box::default(),
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
        let possible_groups = Box::from(["servers".into(), "others".into()]);
        let plan = DevicePlan { possible_groups, ..device_plan(moved.clone()) };
        let written = device(&object, Compliance::default(), &plan, &Catalogue::default(), None, now).compliance;
        let stored: Compliance = serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
        let read = convert::device(&object, &stored, (&mut Catalogue::default(), &mut convert::Advice::default()), now);
        assert_eq!((read.last_policy, read.last_group, read.moved), (plan.policy, plan.group, moved));
        assert_eq!(read.last_possible, plan.possible_groups);
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
    let update = |blocked: Option<Blocked>, verb| UpdatePlan {
        update: offered,
        verb,
        state: State::Missing,
        last_known: State::Missing,
        decision: Decision::Approved,
        decided_by: None,
        blocked: blocked.map(Arc::new),
        eligible_at: None,
    };
    let compliance = |blocked| update_compliance("u", &update(blocked, Verb::Install), Some("p"));
    let closed = compliance(Some(Blocked::WindowClosed { opens: None }));
    let waits = Blocked::ConcurrencyReached { policy: "p".into(), limit: 1 };
    assert_eq!(closed, compliance(Some(waits)));
    assert_eq!(closed, compliance(None));
    let suspended = compliance(Some(Blocked::DeviceSuspended));
    assert_eq!(suspended.blocked_by.as_deref(), Some("DeviceSuspended: the device is suspended"));
    for (verb, does) in [
        (Verb::Install, "installs it"),
        (Verb::Download, "downloads it"),
        (Verb::Uninstall, "takes it back"),
        (Verb::Restart, "restarts the device"),
    ] {
        let told = update_compliance("u", &update(None, verb), Some("p")).blocked_by.unwrap();
        assert_eq!(told, format!("Scheduled: PatchPolicy/p {does} in its windows, in its turn"));
    }
}

#[test]
fn what_a_check_found_is_not_forgotten_when_the_update_is_not_offered_any_more() {
    use patchwarden_protocol::result::ResultReason;
    let failure = |update: String, reason| devinv::Failure {
        tried: None,
        update,
        attempts: 1,
        last: at("2026-01-10T12:00:00Z"),
        reason: Some(reason),
        message: String::new(),
    };
    let mut failures = vec![
        failure("offered".into(), ResultReason::CheckFailed),
        failure("gone".into(), ResultReason::NotInstalled),
        failure("told".into(), ResultReason::NotInstalled),
    ];
    failures.extend((0..20).map(|n| failure(format!("installed-{n}"), ResultReason::CheckFailed)));
    failures.extend((0..30).map(|n| failure(format!("back-{n}"), ResultReason::RolledBack)));
    let is_told = |update: &String| ["offered", "told"].contains(&update.as_str());
    forget(&mut failures, is_told, |update| ["gone", "installed-3", "installed-7"].contains(&update.as_str()));
    let left: Vec<&str> = failures.iter().map(|failure| failure.update.as_str()).collect();
    assert_eq!(left[..5], ["offered", "told", "installed-3", "installed-7", "back-6"]);
    assert_eq!((left.len(), left[27]), (28, "back-29"));
}

/// A machine that has installed `u@1`, after which a check failed, and offers nothing.
fn checked(failures: &[&str]) -> DeviceInventory {
    let key = PrivateKey::generate();
    let report = testing::report("acme", "web-1");
    let signature = Envelope::seal(&report, &key).unwrap().signatures[0].clone();
    let spec = json!({"acceptedKey": key.public().fingerprint()});
    let mut object = DeviceInventory::new("web-1", serde_json::from_value(spec).unwrap());
    object.metadata.namespace = Some("acme".into());
    let failure = |id: &&str| devinv::Failure {
        tried: None,
        update: (*id).to_owned(),
        attempts: 1,
        last: at("2026-01-10T12:00:00Z"),
        reason: Some(patchwarden_protocol::result::ResultReason::CheckFailed),
        message: String::new(),
    };
    object.status = Some(devinv::DeviceInventoryStatus {
        inventory: Some(devinv::Inventory {
            report: Some(report),
            signature: Some(signature),
            public_key: Some(key.public()),
            online: true,
            ..devinv::Inventory::default()
        }),
        compliance: Some(Compliance { failures: failures.iter().map(failure).collect(), ..Compliance::default() }),
        ..devinv::DeviceInventoryStatus::default()
    });
    object
}

// covers RM-6
#[test]
fn what_a_check_found_after_an_update_that_stays_is_failed_in_status_until_a_person_has_seen_to_it() {
    let now = at("2026-01-11T12:00:00Z");
    let mut object = checked(&["pkg:deb/debian/u@1", "other"]);
    let mut status_of = |decisions: serde_json::Value| {
        let group: ApprovalGroup = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "ApprovalGroup",
            "metadata": {"name": "g", "namespace": "acme"}, "spec": {"members": {"selector": {}}, "decisions": decisions},
        }))
        .unwrap();
        let compliance = object.status.as_ref().and_then(|status| status.compliance.clone()).unwrap();
        let mut snapshot = Snapshot {
            policies: vec![convert::policy(&a_policy())],
            groups: vec![convert::group(&group, "own")],
            ..Snapshot::default()
        };
        let advice = &mut convert::Advice::default();
        snapshot.devices = vec![convert::device(&object, &compliance, (&mut snapshot.updates, advice), now)];
        let plan = plan_all(&snapshot, now);
        let told = device(&object, compliance, &plan.devices[0], &snapshot.updates, None, now);
        object.status.as_mut().unwrap().compliance = Some(told.compliance.clone());
        let failed: Vec<String> = told.compliance.failures.iter().map(|failure| failure.update.clone()).collect();
        let compliant = said(&told.conditions, c::COMPLIANT).map(|(status, reason, _)| format!("{status} {reason}"));
        assert_eq!(plan.policies[0].failed, u32::from(!failed.is_empty()));
        (told.compliance.updates, told.compliance.counts.failed, failed, compliant.unwrap())
    };
    let (updates, failed, failures, compliant) = status_of(json!([]));
    assert_eq!((failed, failures.len(), compliant.as_str()), (2, 2, "True UpToDate"));
    let row = updates.iter().find(|update| update.id == "pkg:deb/debian/u@1").unwrap();
    assert_eq!((row.state, row.decision), (devinv::UpdateState::Failed, devinv::Decision::Approved));
    let expected = "CheckFailed: a check failed after it at 2026-01-10T12:00:00Z, and it stays; a decision Reprocess with a later \
                    failedBefore says that somebody has seen to it";
    assert_eq!(row.blocked_by.as_deref(), Some(expected));
    // The next version is not lacked since then.
    assert_eq!((row.first_seen, row.missing_since), (None, None));
    let sighting = convert::sighting(&updates, "pkg:deb/debian/u@2", now);
    assert_eq!(sighting, convert::Sighting { first_seen: now, missing_since: now });
    let seen_to =
        |before: &str| json!([{"update": "pkg:deb/debian/u@1", "action": "Reprocess", "failedBefore": before}]);
    assert_eq!(status_of(seen_to("2026-01-10T12:00:00Z")).1, 2, "it failed at that very instant");
    let (updates, failed, failures, _) = status_of(seen_to("2026-01-11T00:00:00Z"));
    assert_eq!((updates.len(), failed, failures.as_slice()), (1, 1, ["other".to_owned()].as_slice()));
    assert_eq!(status_of(json!([])).2, ["other"], "what was seen to is not remembered");
}

#[test]
fn a_device_that_is_not_heard_of_any_more_is_counted_as_it_was() {
    let mut catalogue = Catalogue::default();
    let was = [
        (State::Ignored, Decision::Waived),
        (State::Ignored, Decision::Ignored),
        (State::Ignored, Decision::Remove),
        (State::Installed, Decision::Remove),
        (State::Held, Decision::Approved),
        (State::Failed, Decision::Approved),
        (State::RestartRequired, Decision::Approved),
        (State::Downloaded, Decision::Approved),
        (State::Missing, Decision::Aging),
    ];
    let mut counts = |is_stale: bool| {
        let updates = was.iter().enumerate().map(|(number, (last_known, decision))| UpdatePlan {
            verb: Verb::Install,
            update: catalogue.intern(Update::by_id(format!("u-{number}").into())),
            state: if is_stale { State::Unknown } else { *last_known },
            last_known: *last_known,
            decision: *decision,
            decided_by: None,
            blocked: None,
            eligible_at: None,
        });
        let plan = DevicePlan { updates: updates.collect(), ..device_plan(None) };
        let object = DeviceInventory::new("web-1", serde_json::from_value(json!({})).unwrap());
        let now = at("2026-01-10T12:00:00Z");
        device(&object, Compliance::default(), &plan, &catalogue, None, now).compliance.counts
    };
    let expected = devinv::StateCounts {
        missing: 1,
        downloaded: 1,
        to_be_removed: 1,
        failed: 1,
        aging: 1,
        ignored: 2,
        waived: 1,
        held: 1,
        ..devinv::StateCounts::default()
    };
    assert_eq!((counts(false), counts(true)), (expected, expected));
}

#[test]
fn a_policy_says_of_compliance_the_worst_that_is_true_of_a_device() {
    use outcome::Compliance as C;
    let said_of = |states: &[C], overdue: u32| {
        let mut plan = PolicyPlan { devices: 0, compliant: 0, overdue, ..plan() };
        for state in states {
            plan.states.change(*state, true);
            plan.devices += 1;
            plan.compliant += u32::from(state.complies());
        }
        let conditions = policy(&a_policy(), &plan, false, at("2026-01-10T12:00:00Z")).conditions;
        said(&conditions, c::COMPLIANT).map(|(status, reason, _)| format!("{status} {reason}")).unwrap()
    };
    assert_eq!(said_of(&[], 0), "True NoDevices");
    assert_eq!(said_of(&[C::UpToDate], 0), "True UpToDate");
    assert_eq!(said_of(&[C::UpToDate, C::WithinDeadline], 0), "True WithinDeadline");
    assert_eq!(said_of(&[C::UpToDate, C::Unknown, C::Unknown], 0), "Unknown Unknown");
    // The deadline of one that is not heard of any more.
    assert_eq!(said_of(&[C::UpToDate, C::Unknown], 1), "False DeadlineMissed");
    let worst_first =
        [C::DeadlineMissed, C::UpdatesMissing, C::RemovalDue, C::RestartRequired, C::Truncated, C::Unknown];
    for (place, worst) in worst_first.iter().enumerate().take(5) {
        let better: Vec<C> = worst_first.iter().skip(place).rev().copied().collect();
        assert_eq!(said_of(&better, 0), format!("False {worst:?}"));
    }
}

/// The first column of the table under a heading of docs/decisions.md, or its second one.
fn documented(heading: &str, column: usize) -> std::collections::BTreeSet<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/decisions.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows =
        section.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').nth(column).unwrap().trim().trim_matches('`').to_owned()).collect()
}

#[test]
fn the_tables_of_states_decisions_and_compliance_name_exactly_those_that_there_are() {
    use std::collections::BTreeSet;
    // As the CRD has them: they may be described one by one.
    fn values<T: schemars::JsonSchema>() -> BTreeSet<String> {
        let schema = schemars::schema_for!(T);
        let of = |schema: &serde_json::Value| -> Vec<String> {
            let listed = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
            listed.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let one_of = schema.as_value()["oneOf"].as_array().into_iter().flatten().flat_map(of);
        one_of.chain(of(schema.as_value())).collect()
    }
    let states: BTreeSet<String> = State::ALL.iter().map(|state| format!("{state:?}")).collect();
    assert_eq!((documented("States\n", 1), values::<devinv::UpdateState>()), (states.clone(), states));
    let decisions: BTreeSet<String> = Decision::ALL.iter().map(|decision| format!("{decision:?}")).collect();
    assert_eq!((documented("Decisions\n", 1), values::<devinv::Decision>()), (decisions.clone(), decisions));
    let compliance = outcome::Compliance::ALL.iter().map(|kind| super::device::compliance_reason(*kind).to_owned());
    let compliance: BTreeSet<String> = compliance.chain([c::REASON_NO_DEVICES.to_owned()]).collect();
    assert_eq!(documented("Deadlines\n", 2), compliance);
}

#[test]
fn a_record_that_is_made_anew_goes_on_with_the_devices_orders_and_one_that_was_set_back_says_so() {
    let now = at("2026-01-10T12:00:00Z");
    let key = PrivateKey::generate();
    let sequence = |number| Sequence { epoch: 0, number };
    let status_of = |settled: Compliance| {
        let mut report = testing::report("acme", "web-1");
        report.counter = 5;
        report.last_sequence = Some(sequence(7));
        let signature = Envelope::seal(&report, &key).unwrap().signatures[0].clone();
        let spec = json!({"acceptedKey": key.public().fingerprint()});
        let mut object = DeviceInventory::new("web-1", serde_json::from_value(spec).unwrap());
        object.metadata.namespace = Some("acme".into());
        object.status = Some(devinv::DeviceInventoryStatus {
            inventory: Some(devinv::Inventory {
                report: Some(report),
                signature: Some(signature),
                public_key: Some(key.public()),
                ..devinv::Inventory::default()
            }),
            compliance: Some(settled.clone()),
            ..devinv::DeviceInventoryStatus::default()
        });
        let status = device(&object, settled, &device_plan(None), &Catalogue::default(), None, now);
        let ready = status.conditions.into_iter().find(|it| it.type_ == c::READY).unwrap();
        (status.compliance, ready.reason, ready.message)
    };
    let (anew, reason, _) = status_of(Compliance::default());
    assert_eq!((anew.sequence, anew.report_counter, reason.as_str()), (sequence(7), 5, c::REASON_ENFORCED));
    let (next, reason, _) = status_of(anew);
    assert_eq!((next.sequence, reason.as_str()), (sequence(7), c::REASON_ENFORCED));
    let (set_back, reason, message) = status_of(Compliance { sequence: sequence(3), ..next });
    assert_eq!((set_back.sequence, reason.as_str()), (sequence(3), c::REASON_RECORD_SET_BACK));
    assert!(message.contains("has had order 0-7") && message.contains("raise-epoch"), "{message}");
}

#[test]
fn a_device_whose_key_several_machines_use_has_a_condition_of_its_own_while_it_is_so() {
    let key = PrivateKey::generate().public().fingerprint();
    let mut object = DeviceInventory::new("web-1", serde_json::from_value(json!({ "acceptedKey": key })).unwrap());
    let found = devinv::DuplicateIdentity {
        since: at("2026-01-10T12:00:00Z"),
        key: key.into(),
        machines: vec!["a".into(), "b".into()],
    };
    let inventory = devinv::Inventory { duplicate_identity: Some(found.clone()), ..devinv::Inventory::default() };
    object.status = Some(devinv::DeviceInventoryStatus { inventory: Some(inventory), ..Default::default() });
    let conditions = |object: &DeviceInventory| {
        let status =
            device(object, Compliance::default(), &device_plan(None), &Catalogue::default(), None, found.since);
        let said = |kind| {
            status.conditions.iter().find(|it| it.type_ == kind).map(|it| (it.status.clone(), it.reason.clone()))
        };
        [said(c::READY), said(c::DUPLICATE_IDENTITY)].map(|it| it.map(|(status, reason)| format!("{status} {reason}")))
    };
    let told = [Some("False DuplicateIdentity".to_owned()), Some("True DuplicateIdentity".to_owned())];
    assert_eq!(conditions(&object), told);
    // What it had is taken away.
    let duplicate =
        device(&object, Compliance::default(), &device_plan(None), &Catalogue::default(), None, found.since);
    object.status.as_mut().unwrap().conditions = duplicate.conditions;
    object.spec.duplicate_resolved = Some(found.since);
    assert_eq!(conditions(&object), [Some("False NoReport".to_owned()), None]);
}

#[test]
fn a_device_stalls_where_a_person_must_act_and_reconciles_where_it_has_yet_to_do_something() {
    let now = at("2026-01-10T12:00:00Z");
    let key = PrivateKey::generate().public().fingerprint();
    let mut before = vec![];
    let mut said = |spec: serde_json::Value, inventory: Option<devinv::Inventory>| {
        let mut object = DeviceInventory::new("web-1", serde_json::from_value(spec).unwrap());
        object.metadata.namespace = Some("acme".into());
        // Each begins with what the one before had.
        let conditions = std::mem::take(&mut before);
        object.status = Some(devinv::DeviceInventoryStatus { inventory, conditions, ..Default::default() });
        before =
            device(&object, Compliance::default(), &device_plan(None), &Catalogue::default(), None, now).conditions;
        let is_progress = |type_: &str| [c::READY, c::RECONCILING, c::STALLED].contains(&type_);
        let mut all: Vec<_> = before.iter().filter(|it| is_progress(&it.type_)).collect();
        all.sort_by_key(|it| &it.type_);
        all.iter().map(|it| format!("{} {} {}", it.type_, it.status, it.reason)).collect::<Vec<_>>()
    };
    let asks = devinv::Inventory { pending_key: Some(key.to_string()), ..devinv::Inventory::default() };
    assert_eq!(said(json!({}), None), ["Ready False KeyPending", "Reconciling True KeyPending"]);
    assert_eq!(said(json!({}), Some(asks.clone())), ["Ready False KeyPending", "Stalled True KeyPending"]);
    let accepted = json!({"acceptedKey": key});
    // A machine that was installed anew: its last report is by another key until it uses the one that was accepted now.
    let earlier = PrivateKey::generate();
    let report = testing::report("acme", "web-1");
    let signature = Envelope::seal(&report, &earlier).unwrap().signatures.remove(0);
    let report = (Some(report), Some(signature), Some(earlier.public()));
    let again = devinv::Inventory { report: report.0, signature: report.1, public_key: report.2, ..asks.clone() };
    assert_eq!(said(json!({}), Some(again.clone())), ["Ready False KeyPending", "Stalled True KeyPending"]);
    assert_eq!(said(accepted.clone(), Some(again)), ["Ready False KeyPending", "Reconciling True KeyPending"]);
    assert_eq!(said(accepted, None), ["Ready False NoReport", "Reconciling True NoReport"]);
    // Believed, with a clock that is off: orders are refused from two minutes on.
    let with_clock = |skew| {
        let report = testing::report("acme", "web-1");
        let signature = Envelope::seal(&report, &earlier).unwrap().signatures.remove(0);
        let report = (Some(report), Some(signature), Some(earlier.public()));
        devinv::Inventory {
            report: report.0,
            signature: report.1,
            public_key: report.2,
            clock_skew_seconds: skew,
            online: true,
            ..devinv::Inventory::default()
        }
    };
    let believed = json!({"acceptedKey": earlier.public().fingerprint()});
    for (skew, expected) in [
        (None, vec!["Ready True Enforced"]),
        (Some(120), vec!["Ready True Enforced"]),
        (Some(-121), vec!["Ready False ClockOff", "Stalled True ClockOff"]),
    ] {
        assert_eq!(said(believed.clone(), Some(with_clock(skew))), expected, "{skew:?}");
    }
    let away = devinv::Inventory { online: false, ..with_clock(Some(-121)) };
    assert_eq!(said(believed.clone(), Some(away)), ["Ready True Enforced"], "nobody knows whether it still is");
    // Believed, and its windows are on a clock that nobody knows.
    let mut catalogue = Catalogue::default();
    let updates = ["u-1", "u-2"].map(|id| UpdatePlan {
        verb: Verb::Install,
        update: catalogue.intern(Update::by_id(id.into())),
        state: State::Missing,
        last_known: State::Missing,
        decision: Decision::Approved,
        decided_by: None,
        blocked: Some(Arc::new(Blocked::NoTimeZone { window: "nights".into() })),
        eligible_at: None,
    });
    let plan = DevicePlan { updates: updates.into(), ..device_plan(None) };
    let mut object = DeviceInventory::new("web-1", serde_json::from_value(believed).unwrap());
    object.metadata.namespace = Some("acme".into());
    let inventory = Some(with_clock(None));
    object.status = Some(devinv::DeviceInventoryStatus { inventory, ..Default::default() });
    let conditions = device(&object, Compliance::default(), &plan, &catalogue, None, now).conditions;
    let (status, reason, message) = super::tests::said(&conditions, c::STALLED).unwrap();
    assert_eq!((status, reason), ("True", c::REASON_NO_TIME_ZONE), "{message}");
    assert_eq!(
        message,
        "MaintenanceWindow/nights is on the device's clock and the device has no valid spec.timeZone: set it, or give the window a \
         time zone of its own; 2 updates wait for that"
    );
    let retired = json!({"acceptedKey": key, "lifecycle": "Retired"});
    assert_eq!(said(retired, None), ["Ready True Retired"]);
    let message = &before.iter().find(|it| it.type_ == c::READY).unwrap().message;
    assert_eq!(message, "retired: its key is revoked and its record is kept");
}
