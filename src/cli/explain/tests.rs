use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::{Problem, ProblemCode, Report};
use serde_json::{Value, json};

use super::*;
use crate::api::DeviceInventory;
use crate::cli::testing::{device, group, live, object, place};

/// A Sunday.
fn now() -> Timestamp {
    "2026-11-29T12:00:00Z".parse().unwrap()
}

/// Of a client whose group approves everything after a day, unless it says otherwise.
fn explained(policy: &Value, devices: Vec<DeviceInventory>, only: Option<&str>) -> Explanation {
    explained_under(&json!({ "spec": policy }), devices, only)
}

fn explained_under(policy: &Value, devices: Vec<DeviceInventory>, only: Option<&str>) -> Explanation {
    let rules = json!([{"name": "day", "action": "Approve", "after": "24h"}]);
    let everyone = json!({"members": {"selector": {}}, "rules": rules, "minArtifactAge": "0s"});
    let window = json!({"timeZone": "UTC", "duration": "2h", "schedules": [{"weekly": {"weekdays": ["Saturday"], "at": "22:00"}}]});
    let window = object("MaintenanceWindow", "saturdays", json!({ "spec": window }));
    let policy = object("PatchPolicy", "all", policy.clone());
    let name = devices[0].metadata.name.clone().unwrap();
    let live = live(vec![group("everyone", &everyone)], vec![policy], vec![window], devices);
    let snapshot = live.snapshot(&place(), now());
    let foresight = foresee(&snapshot, Some(&name), now());
    let planned = foresight.plan.devices.iter().find(|planned| *planned.name == *name).unwrap();
    explain((planned, &live.devices[&name]), &foresight, (&live, &snapshot.updates), only, now())
}

fn installs() -> Value {
    json!({"mode": "Install", "windows": ["saturdays"]})
}

/// With another report, signed as it is.
fn telling(mut device: DeviceInventory, change: impl FnOnce(&mut Report)) -> DeviceInventory {
    let inventory = device.status.as_mut().unwrap().inventory.as_mut().unwrap();
    let mut report = inventory.report.clone().unwrap();
    change(&mut report);
    let key = PrivateKey::generate();
    inventory.signature = Some(Envelope::seal(&report, &key).unwrap().signatures[0].clone());
    (inventory.report, inventory.public_key) = (Some(report), Some(key.public()));
    device.spec.accepted_key = Some(key.public().fingerprint().to_string());
    device
}

// covers BY-4
#[test]
fn what_ages_and_waits_for_a_window_is_eligible_when_both_are_over() {
    let told = text(&explained(&installs(), vec![device("web-1", &[("KB-1", "High")])], None));
    assert!(told.contains("  Blocked:   Aging: "), "{told}");
    assert!(told.contains("\n  Eligible:  2026-12-05T22:00:00Z at the earliest\n"), "{told}");
    let suspended = json!({"mode": "Install", "windows": ["saturdays"], "suspend": true});
    let told = text(&explained(&suspended, vec![device("web-1", &[("KB-1", "High")])], None));
    let expected = "\n  Eligible:  not known: not before 2026-11-30T12:00:00Z, and then no clock ends PolicySuspended: PatchPolicy/all is \
                    suspended\n";
    assert!(told.contains(expected), "{told}");
    let now_known = explained(&installs(), vec![device("web-1", &[("KB-1", "High")])], None);
    let json = serde_json::to_value(&now_known).unwrap();
    assert_eq!(json["updates"][0]["eligibleAt"], "2026-12-05T22:00:00Z");
    assert_eq!(json["updates"][0]["notKnown"], Value::Null);
    let json = serde_json::to_value(explained(&suspended, vec![device("web-1", &[("KB-1", "High")])], None)).unwrap();
    assert_eq!(json["updates"][0]["notKnown"]["reason"], "PolicySuspended");
    assert_eq!(json["updates"][0]["notKnown"]["from"], "2026-11-30T12:00:00Z");
}

#[test]
fn a_device_that_is_not_believed_is_not_one_that_offers_nothing() {
    let mut stranger = device("web-1", &[("KB-1", "High")]);
    stranger.spec.accepted_key = None;
    let told = text(&explained(&installs(), vec![stranger.clone()], None));
    assert!(told.contains("Report:      none that is believed, KeyPending: no key is accepted yet"), "{told}");
    assert!(told.contains("What the device offers is not known.") && !told.contains("offers no updates"), "{told}");
    let error = explained(&installs(), vec![stranger], Some("KB-1")).has("KB-1").unwrap_err().to_string();
    assert!(error.starts_with("whether web-1 offers KB-1 is not known: "), "{error}");
    let mut forged = device("web-1", &[("KB-1", "High")]);
    let inventory = forged.status.as_mut().unwrap().inventory.as_mut().unwrap();
    inventory.report.as_mut().unwrap().counter = 2;
    let told = text(&explained(&installs(), vec![forged], None));
    assert!(told.contains("Report:      none that is believed, ReportRefused: status.inventory.report: "), "{told}");
    let told = text(&explained(&installs(), vec![device("web-1", &[])], None));
    assert!(told.contains("The device offers no updates.") && !told.contains("Report:"), "{told}");
}

#[test]
fn it_is_told_on_which_devices_an_update_failed_that_a_ring_waits_for_or_that_is_stopped() {
    let told = |updates: &Value| {
        let ring = |name: &str| json!({"name": name, "selector": {"matchLabels": {"tier": name}}, "soak": "720h", "minSuccessPercent": 50});
        let rings = [ring("pilot"), ring("second")];
        let spec = json!({"mode": "Install", "windows": ["saturdays"], "rollout": {"rings": rings}});
        let status = json!({"updates": updates});
        let devices = vec![device("web-1", &[("KB-1", "High")]), device("web-2", &[("KB-1", "High")])];
        text(&explained_under(&json!({"spec": spec, "status": status}), devices, None))
    };
    let failed =
        |device: &str, ring: Option<&str>| json!({"device": device, "last": "2026-11-20T12:00:00Z", "ring": ring});
    let (old, seen) = ("2026-11-01T12:00:00Z", json!([failed("web-2", Some("pilot")), failed("web-9", Some("pilot"))]));
    let waits = json!([{"id": "KB-1", "ring": "pilot", "opened": old, "failed": seen}]);
    let words = told(&waits);
    assert!(words.contains("RingWaits: ") && words.contains("; it failed on web-2, web-9 (gone)\n"), "{words}");
    let elsewhere = json!([{"id": "KB-1", "ring": "pilot", "opened": old, "failed": [failed("web-9", None)]}]);
    let words = told(&elsewhere);
    assert!(words.contains("RingWaits: ") && !words.contains("it failed on"), "{words}");
    // The ring has proved it all the same, and soaks.
    let soaks = json!([{"id": "KB-1", "ring": "pilot", "opened": old, "reached": "2026-11-29T11:00:00Z", "installed": 19, "failed": seen}]);
    let words = told(&soaks);
    assert!(words.contains("RingWaits: ") && !words.contains("it failed on"), "{words}");
    let stopped =
        json!([{"id": "KB-1", "ring": "pilot", "opened": old, "stopped": old, "failed": [failed("web-9", None)]}]);
    let words = told(&stopped);
    assert!(words.contains("UpdateStopped: ") && words.contains("; it failed on web-9 (gone)\n"), "{words}");
    let many = |count: usize| -> Value {
        (0..count).map(|number| json!({"id": format!("KB-2{number:03}"), "ring": "rest", "opened": old})).collect()
    };
    let beyond = "pilot of PatchPolicy/all must prove it first; it is installed on 0 of its devices, and must be on 1 and on 50% of those that try it; none of them offers it; status tells of 256 updates of it, and not what went farther before these\n";
    assert!(told(&many(256)).contains(beyond), "{}", told(&many(256)));
    assert!(!told(&many(255)).contains("status tells of"));
}

#[test]
fn it_is_told_whom_a_ring_waits_for() {
    let rings =
        json!([{"name": "pilot", "selector": {"matchLabels": {"tier": "pilot"}}, "minSuccesses": 2, "soak": "24h"}]);
    let spec = json!({"mode": "Install", "windows": ["saturdays"], "rollout": {"rings": rings}});
    let told = |pilots: Vec<DeviceInventory>| {
        let pilots = pilots.into_iter().map(|mut pilot| {
            pilot.metadata.labels = Some([("tier".to_owned(), "pilot".to_owned())].into());
            pilot
        });
        let devices = [device("web-1", &[("KB-1", "High")])].into_iter().chain(pilots).collect();
        text(&explained(&spec, devices, None))
    };
    let needed =
        "must prove it first; it is installed on 0 of its devices, and must be on 2 and on 100% of those that try it";
    let words = told(vec![]);
    assert!(words.contains(&format!("{needed}; none of them offers it\n")), "{words}");
    let mut pending = device("pilot-2", &[]);
    pending.spec.accepted_key = None;
    let words = told(vec![device("pilot-1", &[("KB-1", "High")]), pending, device("pilot-3", &[])]);
    let whom = "; those that offer it: pilot-1; those that do not tell whether they need it: pilot-2\n";
    assert!(words.contains(&format!("{needed}{whom}")), "{words}");
}

#[test]
fn what_apt_leaves_out_by_itself_is_neither_installed_nor_needless() {
    let device = || {
        telling(device("web-1", &[("KB-1", "High"), ("KB-2", "High"), ("KB-3", "High"), ("KB-4", "High")]), |report| {
            let reasons = [HeldReason::Phased, HeldReason::Pinned, HeldReason::Unauthenticated, HeldReason::Hold];
            for (update, reason) in report.updates.iter_mut().zip(reasons) {
                (update.held, update.held_reason) = (true, reason);
            }
        })
    };
    let told = text(&explained(&installs(), vec![device()], None));
    for words in [
        "\nKB-1\n  Left out by the device: Phased: the version is being phased",
        "\nKB-2\n  Left out by the device: Pinned: a pin",
        "\nKB-3\n  Left out by the device: Unauthenticated: it comes from",
        "\nKB-4\n  State:     Held",
    ] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
    let one = explained(&installs(), vec![device()], Some("KB-1"));
    one.has("KB-1").unwrap();
    assert_eq!((one.updates.len(), one.left_out.len()), (0, 1));
    let error = explained(&installs(), vec![device()], Some("KB-9")).has("KB-9").unwrap_err().to_string();
    assert_eq!(error, "web-1 does not offer KB-9: it is installed, or the device never needed it");
    // What fills its report, and what it could not ask for, may hide it.
    let cut = |report: &mut Report| report.truncated = true;
    let broken = |report: &mut Report| {
        let problem = Problem { code: ProblemCode::RepositoryUnavailable, message: "no answer".into() };
        report.problems = vec![problem];
    };
    let without = |change: &dyn Fn(&mut Report)| {
        explained(&installs(), vec![telling(self::device("web-1", &[]), change)], Some("KB-9"))
    };
    for (one, why) in [
        (without(&cut), "it offers more than its report has room for"),
        (without(&broken), "it has a problem with which it does not tell all (RepositoryUnavailable)"),
    ] {
        let error = one.has("KB-9").unwrap_err().to_string();
        assert_eq!(error, format!("whether web-1 offers KB-9 is not known: {why}"));
        assert!(text(&one).contains(&format!("Report:      {why}")), "{}", text(&one));
    }
}

#[test]
fn words_fit_what_is_done() {
    let next = |policy: &Value| {
        let mut updates = explained(policy, vec![telling(device("web-1", &[]), |_| ())], None).updates;
        assert_eq!(updates, []);
        let approved = json!({"members": {"selector": {}}, "default": "Approve", "minArtifactAge": "0s"});
        let policy = object("PatchPolicy", "all", json!({ "spec": policy }));
        let live =
            live(vec![group("all", &approved)], vec![policy], vec![], vec![device("web-1", &[("KB-1", "High")])]);
        let snapshot = live.snapshot(&place(), now());
        let foresight = foresee(&snapshot, None, now());
        let [planned] = foresight.plan.devices.as_slice() else { panic!("one device") };
        updates =
            explain((planned, &live.devices["web-1"]), &foresight, (&live, &snapshot.updates), None, now()).updates;
        (updates[0].why.clone(), updates[0].when())
    };
    assert_eq!(next(&json!({"mode": "DownloadOnly"})), ("it is downloaded next".to_owned(), None));
    let immediately = next(&json!({"mode": "InstallImmediately"}));
    assert_eq!(immediately.1.as_deref(), Some("not known: no clock ends that"), "{}", immediately.0);
}

// covers BY-5
#[test]
fn a_service_at_its_limit_names_who_keeps_it_there() {
    let labelled = |name: &str, online: bool| {
        let mut device = device(name, &[("KB-1", "High")]);
        device.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        let inventory = device.status.as_mut().unwrap().inventory.as_mut().unwrap();
        inventory.online = online;
        inventory.last_transition_time = Some(now());
        device
    };
    let policy = json!({
        "mode": "InstallImmediately", "windows": ["always"], "rollout": {"maxConcurrent": "100%"},
        "disruption": {"groupBy": "app", "maxUnavailable": 4},
    });
    let approved = json!({"members": {"selector": {}}, "default": "Approve", "minArtifactAge": "0s"});
    let always = json!({"timeZone": "UTC", "duration": "24h", "schedules": [{"daily": {"at": "00:00"}}]});
    let mut devices: Vec<DeviceInventory> = (1..=4).map(|number| labelled(&format!("off-{number}"), false)).collect();
    devices.push(labelled("waits-1", true));
    let live = live(
        vec![group("all", &approved)],
        vec![object("PatchPolicy", "all", json!({ "spec": policy }))],
        vec![object("MaintenanceWindow", "always", json!({ "spec": always }))],
        devices,
    );
    let snapshot = live.snapshot(&place(), now());
    let foresight = foresee(&snapshot, Some("waits-1"), now());
    let planned = foresight.plan.devices.iter().find(|planned| &*planned.name == "waits-1").unwrap();
    let told = text(&explain((planned, &live.devices["waits-1"]), &foresight, (&live, &snapshot.updates), None, now()));
    let expected = "ServiceAtLimit: of the devices with app=web 4 may be unavailable at a time, and as many are: off-1 (no session), off-2 \
                    (no session), off-3 (no session) and 1 more\n";
    assert!(told.contains(expected), "{told}");
}

// covers EM-10
#[test]
fn a_decision_is_told_with_its_reason_wherever_it_was_made() {
    let everywhere = json!({"members": {"selector": {}}, "decisions": [
        {"update": "KB-6", "action": "Ignore", "locked": true, "reason": "no client has it"},
    ]});
    let everyone = json!({
        "members": {"selector": {}}, "parent": {"name": "all", "scope": "Organisation"}, "minArtifactAge": "0s",
        "decisions": [
            {"update": "KB-1", "action": "Reprocess", "failedBefore": "2026-01-01T00:00:00Z", "reason": "another one"},
            {"update": "KB-1", "action": "Approve", "reason": "asked for\nby the client"},
            {"update": "KB-2", "action": "Ignore", "reason": "breaks the printer"},
            {"update": "KB-3", "action": "Ignore", "until": "2026-11-29T11:00:00Z", "reason": "over"},
            {"update": "KB-3*", "action": "Ignore", "until": "2027-01-01T00:00:00Z", "reason": "the vendor's case 7"},
            {"update": "KB-4", "action": "Uninstall", "reason": "it was a mistake"},
            {"update": "KB-5", "action": "DoNothing", "reason": "we shall see"},
            {"update": "KB-6", "action": "Approve", "reason": "not the one that counts"},
            {"update": "KB-7", "action": "Approve"},
        ],
    });
    let updates: Vec<(String, &str)> = (1..=8).map(|number| (format!("KB-{number}"), "High")).collect();
    let updates: Vec<(&str, &str)> = updates.iter().map(|(id, severity)| (id.as_str(), *severity)).collect();
    let policy = object("PatchPolicy", "all", json!({ "spec": {} }));
    let mut live = live(vec![group("everyone", &everyone)], vec![policy], vec![], vec![device("web-1", &updates)]);
    live.organisation.insert("all".to_owned(), group("all", &everywhere));
    let snapshot = live.snapshot(&place(), now());
    let foresight = foresee(&snapshot, None, now());
    let of_web = (&foresight.plan.devices[0], &live.devices["web-1"]);
    let explained = explain(of_web, &foresight, (&live, &snapshot.updates), None, now());
    let reasons: Vec<Option<&str>> = explained.updates.iter().map(|it| it.decision_reason.as_deref()).collect();
    assert_eq!(
        reasons,
        [
            Some("asked for\nby the client"),
            Some("breaks the printer"),
            Some("the vendor's case 7"),
            Some("it was a mistake"),
            Some("we shall see"),
            Some("no client has it"),
            None,
            None,
        ]
    );
    assert_eq!(serde_json::to_value(&explained).unwrap()["updates"][1]["decisionReason"], "breaks the printer");
    let told = text(&explained);
    for words in [
        "  Decision:  Approved, by ApprovalGroup/everyone decision KB-1\n  Reason:    asked for by the client\n",
        "  Decision:  Waived, by ApprovalGroup/everyone decision KB-3*\n  Reason:    the vendor's case 7\n",
        "  Decision:  Ignored, by ApprovalGroup/patchwarden-system/all decision KB-6\n  Reason:    no client has it\n",
        "  Decision:  Approved, by ApprovalGroup/everyone decision KB-7\n  Blocked:   ",
    ] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
}

// covers MW-5
#[test]
fn a_device_of_which_the_group_cannot_be_told_has_the_others_shown() {
    let gentle = json!({"priority": 5, "members": {"rule": "device.labels.tier == 'gentle'"}});
    let groups = vec![group("gentle", &gentle), group("everyone", &json!({"members": {"selector": {}}}))];
    let live = live(groups, vec![], vec![], vec![device("web-1", &[("KB-1", "High")])]);
    let snapshot = live.snapshot(&place(), now());
    let foresight = foresee(&snapshot, Some("web-1"), now());
    let planned = &foresight.plan.devices[0];
    let explanation = explain((planned, &live.devices["web-1"]), &foresight, (&live, &snapshot.updates), None, now());
    let told = text(&explanation);
    assert!(told.contains("\nGroup:       gentle (perhaps everyone) (over everyone)\n"), "{told}");
    assert_eq!(serde_json::to_value(explanation).unwrap()["possibleGroups"], json!(["everyone"]));
}
