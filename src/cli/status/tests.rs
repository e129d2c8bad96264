use patchwarden_protocol::report::{Problem, ProblemCode};
use serde_json::{Value, json};

use super::screens;
use super::summary::Summary;
use super::{Objects, Status};
use crate::api::DeviceInventory;
use crate::cli::testing::{device, group, object};

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// A device whose updates were decided.
fn decided(
    name: &str,
    severity: &str,
    decision: &str,
    state: &str,
    blocked_by: &str,
    compliant: &str,
) -> DeviceInventory {
    let mut value = serde_json::to_value(device(name, &[("KB-1", severity)])).unwrap();
    value["status"]["compliance"] = json!({
        "policy": "servers", "approvalGroup": "all",
        "counts": {"missing": 0, "pending": 0, "installing": 0, "failed": 0, "awaitingApproval": 0, "ignored": 0, "held": 0},
        "updates": [{"id": "KB-1", "state": state, "decision": decision, "blockedBy": blocked_by}],
    });
    value["status"]["conditions"] =
        json!([condition("Ready", "True", "Enforced", ""), condition("Compliant", "False", compliant, "")]);
    serde_json::from_value(value).unwrap()
}

fn client() -> Objects {
    let stalled = [
        condition(
            "Ready",
            "False",
            "ReferenceNotFound",
            "spec.windows[0]: MaintenanceWindow acme/nights does not exist",
        ),
        condition(
            "Stalled",
            "True",
            "ReferenceNotFound",
            "spec.windows[0]: MaintenanceWindow acme/nights does not exist",
        ),
    ];
    let policy = object(
        "PatchPolicy",
        "servers",
        json!({
            "spec": {"mode": "Install", "windows": ["nights"]},
            "status": {"devices": 3, "compliant": "0/3", "installing": 1, "failed": 1, "overdue": 2, "conditions": stalled},
        }),
    );
    let window = object(
        "MaintenanceWindow",
        "days",
        json!({
            "spec": {"timeZone": "UTC", "schedules": [{"daily": {"at": "12:00"}}], "duration": "1h"},
            "status": {"active": true, "currentEnd": "2026-11-29T13:00:00Z", "nextStart": "2027-01-05T12:00:00Z",
                "conditions": [condition("Ready", "True", "Enforced", "")]},
        }),
    );
    let mut pending = device("new-1", &[]);
    pending.spec.accepted_key = None;
    pending.status.as_mut().unwrap().inventory.as_mut().unwrap().pending_key = Some("SHA256:abc".into());
    let mut retired = device("old-1", &[]);
    retired.spec.lifecycle = crate::api::device_inventory::Lifecycle::Retired;
    // As the controller writes them: the reason and its words.
    let exhausted = "RetriesExhausted: it failed 3 times on this device";
    let waits = "AwaitingApproval: it waits for approval: no decision or rule approves it";
    Objects {
        policies: vec![policy],
        groups: vec![group("all", &json!({"members": {"selector": {}}}))],
        windows: vec![window],
        devices: vec![
            decided("db-1", "Critical", "Approved", "Failed", exhausted, "UpdatesMissing"),
            decided("db-2", "Critical", "AwaitingApproval", "Missing", waits, "UpToDate"),
            decided("db-3", "Low", "Ignored", "Ignored", "Ignored: decided against", "RestartRequired"),
            pending,
            retired,
        ],
    }
}

fn screen(objects: &Objects, is_wide: bool) -> String {
    let at = "2026-11-29T12:30:00Z".parse().unwrap();
    let status = Status { at, clients: vec![Summary::of("acme".into(), objects, at)] };
    anstream::adapter::strip_str(&screens::text(&status, is_wide)).to_string()
}

// covers MW-9, CL-13
#[test]
fn one_screen_says_how_it_stands_and_what_to_do() {
    let shown = screen(&client(), false);
    let expected = "\
acme  as of 2026-11-29T12:30:00Z
Devices: 4 (4 online, 0 installing, 1 retired): 1 RestartRequired, 1 Unknown, 1 UpToDate, 1 UpdatesMissing

POLICY   READY              MODE     COMPLIANT  BUSY  FAILED  OVERDUE  NEXT (UTC)
servers  ReferenceNotFound  Install  0/3        1     1       2        open

GROUP  READY    PARENT  DEVICES  DECISIONS
all    not yet  -       0        0

WINDOW  READY  NOW   UNTIL                   NEXT (UTC)
days    yes    open  until Sun Nov 29 13:00  2027-01-05 12:00

MISSING   UPDATES  DEVICES  APPROVED  AGING  AWAITING APPROVAL  FAILED
Critical  1        2        1         0      1                  1

To do
- PatchPolicy/servers: ReferenceNotFound: spec.windows[0]: MaintenanceWindow acme/nights does not exist
  correct its spec
- DeviceInventory/new-1: a key waits to be accepted: SHA256:abc
  compare it with `patchwarden-agent status` on the machine, then: kubectl patch devinv -n acme new-1 --type=merge -p '{\"spec\":{\"acceptedKey\":\"SHA256:abc\"}}'
- DeviceInventory/db-3: they wait for a restart, which no policy gives them
  restart them, or set spec.restart of their PatchPolicy
- DeviceInventory/db-1: KB-1 has failed and is not tried again
  find out why, then: kubectl patchwarden reprocess -n acme --group GROUP 'KB-1'
- ApprovalGroup/all: KB-1 await approval
  kubectl patchwarden approve (or decline) -n acme --group all UPDATE
";
    assert_eq!(shown, expected, "\n{shown}");
}

#[test]
fn policies_of_which_only_the_name_decides_are_told_together_and_those_that_lose_by_priority_are_not() {
    let policy = |name: &str, reason: &str| {
        let conditions =
            json!([condition("Ready", "True", "Enforced", ""), condition("Overlapping", "True", reason, "why")]);
        object("PatchPolicy", name, json!({"spec": {}, "status": {"conditions": conditions}}))
    };
    let policies = vec![policy("a", "SamePriority"), policy("b", "SamePriority"), policy("base", "HigherPriority")];
    let shown = screen(&Objects { policies, ..Objects::default() }, false);
    let expected = "To do
- PatchPolicy/a, PatchPolicy/b: SamePriority: they select the same devices, and only their names decide which has them
  read the messages of their conditions Overlapping, then give them different spec.priority
";
    assert!(shown.ends_with(expected), "{shown}");
}

#[test]
fn names_of_what_is_not_there_are_told_though_nothing_stops_for_them() {
    let spec = |reason: &str| {
        let conditions =
            json!([condition("Ready", "True", "Enforced", ""), condition("NamesUnknown", "True", reason, "why")]);
        json!({"spec": {}, "status": {"conditions": conditions, "devices": 0}})
    };
    let policies = vec![object("PatchPolicy", "p", spec("LabelNotFound"))];
    let groups = vec![object("ApprovalGroup", "g", spec("DeviceNotFound"))];
    let shown = screen(&Objects { policies, groups, ..Objects::default() }, false);
    let expected = "To do
- PatchPolicy/p: LabelNotFound: why
  do as the message says
- ApprovalGroup/g: DeviceNotFound: why
  correct the name in its spec, or enrol the device
";
    assert!(shown.ends_with(expected), "{shown}");
}

#[test]
fn what_to_do_about_a_window_that_is_over_and_an_expression_that_fails_is_told() {
    let stalled = |kind: &str, name: &str, spec: Value, reason: &str| {
        let conditions =
            json!([condition("Ready", "False", reason, "why"), condition("Stalled", "True", reason, "why")]);
        json!({"apiVersion": "patchwarden.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
            "status": {"conditions": conditions, "devices": 0, "active": false}})
    };
    let spec = json!({"timeZone": "UTC", "schedules": [{"daily": {"at": "12:00"}}], "duration": "1h"});
    let windows = vec![serde_json::from_value(stalled("MaintenanceWindow", "w", spec, "NeverOpens")).unwrap()];
    let groups = vec![serde_json::from_value(stalled("ApprovalGroup", "g", json!({}), "ExpressionFailed")).unwrap()];
    let policies = ["RingTooSmall", "WindowTooShort"];
    let policies =
        policies.map(|reason| serde_json::from_value(stalled("PatchPolicy", "p", json!({}), reason)).unwrap());
    let policies = policies.into();
    let shown = screen(&Objects { policies, groups, windows, ..Objects::default() }, false);
    for action in [
        "correct the expression that the message names",
        "give a window another schedule",
        "give the ring more devices",
        "give the window a longer duration",
    ] {
        assert!(shown.contains(action), "{shown}");
    }
}

#[test]
fn a_client_that_has_nothing_is_told_how_to_begin() {
    let shown = screen(&Objects::default(), false);
    assert!(shown.contains("kubectl patchwarden init") && shown.contains("Nothing waits for a person."), "{shown}");
}

#[test]
fn what_was_left_alone_waits_for_nobody() {
    let left = "LeftAlone: a decision says to do nothing with it";
    let devices = vec![decided("db-1", "Low", "AwaitingApproval", "Missing", left, "UpToDate")];
    let shown = screen(&Objects { devices, ..Objects::default() }, false);
    assert!(shown.contains("Nothing waits for a person."), "{shown}");
}

#[test]
fn devices_that_get_nothing_for_the_same_reason_are_told_together() {
    for (reason, expected) in [
        (
            "ClockOff",
            "To do
- DeviceInventory/db-1, DeviceInventory/db-2: their clocks are so far off that they take no orders
  set their clocks, by NTP at best
",
        ),
        (
            "NoTimeZone",
            "To do
- DeviceInventory/db-1, DeviceInventory/db-2: windows are on their clocks, and they have no time zone: nothing is installed
  set their spec.timeZone
",
        ),
    ] {
        let devices = ["db-1", "db-2"].map(|name| {
            let mut device = decided(name, "Low", "Ignored", "Ignored", "Ignored: decided against", "UpToDate");
            let off = serde_json::from_value(condition("Ready", "False", reason, "why")).unwrap();
            device.status.as_mut().unwrap().conditions[0] = off;
            device
        });
        let shown = screen(&Objects { devices: devices.into(), ..Objects::default() }, false);
        assert!(shown.ends_with(expected), "{shown}");
    }
}

#[test]
fn a_device_on_which_a_check_failed_after_an_update_that_stays_waits_for_a_person() {
    let found = "CheckFailed: a check failed after it at 2026-11-29T12:00:00Z, and it stays";
    let devices = vec![decided("db-1", "Low", "Approved", "Failed", found, "UpToDate")];
    let shown = screen(&Objects { devices, ..Objects::default() }, false);
    let expected = "To do
- DeviceInventory/db-1: a check failed after KB-1, which stays
  see to the device, then: kubectl patchwarden reprocess -n acme --group GROUP 'KB-1'
";
    assert!(shown.ends_with(expected), "{shown}");
}

#[test]
fn a_devices_own_problem_is_told_and_not_that_nothing_was_heard_of_it() {
    let mut broken = decided("db-1", "Low", "Approved", "Missing", "DeviceProblem: it must be solved first", "Unknown");
    let inventory = broken.status.as_mut().unwrap().inventory.as_mut().unwrap();
    let problem = Problem { code: ProblemCode::PackageManagerBroken, message: "dpkg was interrupted".into() };
    inventory.report.as_mut().unwrap().problems.push(problem);
    let todo = |device: &DeviceInventory| {
        let shown = screen(&Objects { devices: vec![device.clone()], ..Objects::default() }, false);
        shown.split_once("To do\n").expect("something to do").1.to_owned()
    };
    let expected = "- DeviceInventory/db-1: PackageManagerBroken: dpkg was interrupted\n  on the machine: patchwarden-agent doctor\n";
    assert_eq!(todo(&broken), expected);
    broken.status.as_mut().unwrap().inventory.as_mut().unwrap().online = false;
    assert!(todo(&broken).contains("not heard of for too long"), "{}", todo(&broken));
}

#[test]
fn devices_that_cannot_renew_their_certificates_any_more_are_told() {
    let ended = |name: &str, until: &str, online: bool| {
        let mut device = device(name, &[]);
        let inventory = device.status.as_mut().unwrap().inventory.as_mut().unwrap();
        (inventory.certificate_until, inventory.online) = (Some(until.parse().unwrap()), online);
        device
    };
    let devices = vec![
        ended("web-1", "2026-06-02T12:30:00Z", false),
        ended("web-2", "2026-06-02T12:30:01Z", false),
        // The status of a device that is there is what it is.
        ended("web-3", "2026-06-01T00:00:00Z", true),
    ];
    let shown = screen(&Objects { devices, ..Objects::default() }, false);
    let expected = "\
- DeviceInventory/web-1: their certificates ended more than 180 days ago, and cannot be renewed any more
  on the machine: patchwarden-agent join --force, with a new join token; or set spec.lifecycle: Retired
";
    assert!(shown.contains(expected), "\n{shown}");
}
