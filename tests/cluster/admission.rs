//! What the API server refuses, with the words that a person reads.

use crate::Test;
use crate::world::World;

pub const TESTS: &[Test] = &[
    ("a_spec_that_makes_no_sense_is_refused_by_field", a_spec_that_makes_no_sense_is_refused_by_field),
    ("the_samples_applied_twice_are_unchanged", the_samples_applied_twice_are_unchanged),
];

const WINDOW: &str = r#"{"timeZone": "UTC", "schedules": [{"daily": {"at": "22:00"}}], "duration": "4h"}"#;

/// Kind, a good spec, a change to it (JSON merge patch), and what the refusal must say.
const REFUSED: &[(&str, &str, &str, &[&str])] = &[
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "Mars/Olympus"}"#, &["spec.timeZone", "Mars/Olympus"]),
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "+05:00"}"#, &["spec.timeZone", "IANA"]),
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "Local"}"#, &["spec.timeZone", "IANA"]),
    ("MaintenanceWindow", WINDOW, r#"{"schedules": []}"#, &["spec.schedules"]),
    ("MaintenanceWindow", WINDOW, r#"{"schedules": [{"daily": {"at": "25:00"}}]}"#, &["spec.schedules[0].daily.at"]),
    ("MaintenanceWindow", WINDOW, r#"{"schedules": [{}]}"#, &["spec.schedules[0]", "exactly one of"]),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"daily": {"at": "22:00"}, "once": {"at": "2026-12-24T22:00"}}]}"#,
        &["spec.schedules[0]", "exactly one of"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"once": {"at": "2026-02-30T22:00"}}]}"#,
        &["spec.schedules[0].once.at"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"monthly": {"week": "Fifth", "weekday": "Tuesday", "at": "22:00"}}]}"#,
        &["spec.schedules[0].monthly.week", "Fifth"],
    ),
    ("MaintenanceWindow", WINDOW, r#"{"duration": "0m"}"#, &["spec.duration", "1m to 168h"]),
    ("MaintenanceWindow", WINDOW, r#"{"duration": "tomorrow"}"#, &["spec.duration"]),
    ("MaintenanceWindow", WINDOW, r#"{"cutoff": "4h"}"#, &["spec.cutoff", "shorter than duration"]),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"exclusions": [{"name": "x", "from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}]}"#,
        &["spec.exclusions[0]", "from must be before to"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"exclusions": [{"name": "x", "from": "2026-01-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"}]}"#,
        &["spec.exclusions[0].to", "before the year 9999"],
    ),
    ("PatchPolicy", "{}", r#"{"mode": "Install"}"#, &["spec.windows", "at least one window"]),
    ("PatchPolicy", "{}", r#"{"rollout": {"maxConcurrent": -1}}"#, &["spec.rollout.maxConcurrent"]),
    ("PatchPolicy", "{}", r#"{"rollout": {"maxConcurrent": 0}}"#, &["spec.rollout.maxConcurrent"]),
    ("PatchPolicy", "{}", r#"{"rollout": {"maxConcurrent": "0%"}}"#, &["spec.rollout.maxConcurrent"]),
    ("PatchPolicy", "{}", r#"{"rollout": {"maxConcurrent": "ten"}}"#, &["spec.rollout.maxConcurrent"]),
    ("PatchPolicy", "{}", r#"{"mode": "Explode"}"#, &["spec.mode", "Explode"]),
    ("PatchPolicy", "{}", r#"{"installLimit": "2d"}"#, &["spec.installLimit"]),
    ("PatchPolicy", "{}", r#"{"retries": {"limit": -1}}"#, &["spec.retries.limit"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"selector": {"matchExpressions": [{"key": "tier", "operator": "In"}]}}"#,
        &["spec.selector.matchExpressions[0]", "values must be given for In and NotIn"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"selector": {"matchExpressions": [{"key": "tier", "operator": "Like", "values": ["a"]}]}}"#,
        &["spec.selector.matchExpressions[0].operator", "Like"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"selector": {"matchLabels": {"tier": "not a label"}}}"#,
        &["spec.selector.matchLabels.tier"],
    ),
    (
        "ApprovalGroup",
        r#"{"members": {"selector": {}}}"#,
        r#"{"members": {"selector": null}}"#,
        &["spec.members", "give names"],
    ),
    (
        "ApprovalGroup",
        r#"{"members": {"selector": {}}}"#,
        r#"{"decisions": [{"update": "x", "action": "Approve", "until": "2027-01-01T00:00:00Z"}]}"#,
        &["spec.decisions", "until is for Ignore only"],
    ),
    (
        "ApprovalGroup",
        r#"{"members": {"selector": {}}}"#,
        r#"{"rules": [{"name": "a b", "action": "Approve"}]}"#,
        &["spec.rules[0].name"],
    ),
    (
        "ApprovalGroup",
        r#"{"members": {"selector": {}}}"#,
        r#"{"rules": [{"name": "a", "action": "Approve"}, {"name": "a", "action": "Ignore"}]}"#,
        &["spec.rules[1]", "Duplicate"],
    ),
    ("DeviceInventory", "{}", r#"{"acceptedKey": "SHA256:short"}"#, &["spec.acceptedKey"]),
    ("DeviceInventory", "{}", r#"{"timeZone": "Nowhere/Land"}"#, &["spec.timeZone"]),
    ("DeviceInventory", "{}", r#"{"type": "Toaster"}"#, &["spec.type", "Toaster"]),
];

fn a_spec_that_makes_no_sense_is_refused_by_field(world: &World) {
    let tenant = world.tenant();
    for (kind, good, change, words) in REFUSED {
        let mut spec: serde_json::Value = serde_json::from_str(good).unwrap();
        let object = |spec: &serde_json::Value| {
            serde_json::json!({"apiVersion": "patchwarden.io/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec})
                .to_string()
        };
        let dry_run = ["create", "-n", &tenant.name, "--dry-run=server", "-f", "-"];
        // The good one is accepted, so what is refused is the change.
        tenant.apply(&object(&spec));
        let change: serde_json::Value = serde_json::from_str(change).unwrap();
        for (field, value) in change.as_object().unwrap() {
            spec[field] = value.clone();
        }
        world.kubectl(&["delete", "-n", &tenant.name, &kind.to_lowercase(), "x"]);
        let refusal = world.kubectl_fails(&dry_run, &object(&spec));
        for word in *words {
            assert!(refusal.contains(word), "{kind} {change}: \"{word}\" is not in: {refusal}");
        }
    }
}

fn the_samples_applied_twice_are_unchanged(world: &World) {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/config/samples");
    world.kubectl(&["apply", "-f", samples]);
    let second = world.kubectl(&["apply", "-f", samples]);
    assert!(second.lines().count() >= 7, "{second}");
    for line in second.lines() {
        assert!(line.ends_with(" unchanged"), "{line}");
    }
    world.kubectl(&["delete", "-f", samples, "--wait=false"]);
}
