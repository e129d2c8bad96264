//! What the API server refuses, with the words that a person reads.

use crate::Test;
use crate::world::World;

pub const TESTS: &[Test] = &[
    ("a_spec_that_makes_no_sense_is_refused_by_field", a_spec_that_makes_no_sense_is_refused_by_field),
    ("the_samples_applied_twice_are_unchanged", the_samples_applied_twice_are_unchanged),
];

const WINDOW: &str = r#"{"timeZone": "UTC", "schedules": [{"daily": {"at": "22:00"}}], "duration": "4h"}"#;

const GROUP: &str = r#"{"members": {"selector": {}}}"#;

/// Kind, a good spec, a change to it (JSON merge patch), and what the refusal must say.
const REFUSED: &[(&str, &str, &str, &[&str])] = &[
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "Mars/Olympus"}"#, &["spec.timeZone", "Mars/Olympus"]),
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "+05:00"}"#, &["spec.timeZone", "IANA"]),
    ("MaintenanceWindow", WINDOW, r#"{"timeZone": "Local"}"#, &["spec.timeZone", "IANA"]),
    ("MaintenanceWindow", WINDOW, r#"{"schedules": []}"#, &["spec.schedules", "should have at least 1 items"]),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"daily": {"at": "25:00"}}]}"#,
        &["spec.schedules[0].daily.at", "should match"],
    ),
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
        &["spec.schedules[0].once.at", "must be an existing date and time such as 2026-12-24T22:00"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"monthly": {"week": "Fifth", "weekday": "Tuesday", "at": "22:00"}}]}"#,
        &["spec.schedules[0].monthly.week", "Fifth"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"daily": {"at": "22:00"}, "cron": {"expression": "0 22 * * *"}}]}"#,
        &["spec.schedules[0]", "exactly one of"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"cron": {"expression": "0 22 * *"}}]}"#,
        &["spec.schedules[0].cron.expression", "must be five fields of digits, names, and"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"cron": {"expression": "0 0 22 * * *"}}]}"#,
        &["spec.schedules[0].cron.expression", "must be five fields"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"cron": {"expression": "0 22 * * 5#2"}}]}"#,
        &["spec.schedules[0].cron.expression", "must be five fields"],
    ),
    (
        "MaintenanceWindow",
        WINDOW,
        r#"{"schedules": [{"cron": {}}]}"#,
        &["spec.schedules[0].cron.expression", "Required"],
    ),
    ("MaintenanceWindow", WINDOW, r#"{"duration": "0m"}"#, &["spec.duration", "1m to 168h"]),
    ("MaintenanceWindow", WINDOW, r#"{"duration": "tomorrow"}"#, &["spec.duration", "must be from 1m to 168h"]),
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
    ("PatchPolicy", "{}", r#"{"mode": "InstallImmediately"}"#, &["spec.windows", "at least one window"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"approvalGroups": ["a", "b"], "excludeApprovalGroups": ["c", "b"]}"#,
        &["spec.excludeApprovalGroups", "cannot be in approvalGroups as well"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"filters": {"classifications": ["Cosmetic"]}}"#,
        &["spec.filters.classifications[0]", "Unsupported value"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"filters": {"excludePackages": [""]}}"#,
        &["spec.filters.excludePackages[0]", "should be at least 1 chars long"],
    ),
    ("PatchPolicy", "{}", r#"{"filters": {"skipReboot": true}}"#, &["spec.filters.skipReboot", "unknown field"]),
    ("PatchPolicy", "{}", r#"{"restart": {"when": "Sometimes"}}"#, &["spec.restart.when", "Sometimes"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"restart": {"within": "2d"}}"#,
        &["spec.restart.within", "must be shorter than within: the restart begins after it"],
    ),
    ("PatchPolicy", "{}", r#"{"restart": {"within": "25h"}}"#, &["spec.restart.within", "1m to 24h"]),
    ("PatchPolicy", "{}", r#"{"restart": {"within": "5m"}}"#, &["spec.restart.warning", "shorter than within"]),
    ("PatchPolicy", "{}", r#"{"restart": {"message": "two\nlines"}}"#, &["spec.restart.message", "should match"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"restart": {"limit": 0}}"#,
        &["spec.restart.limit", "should be greater than or equal to 1"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"rollout": {"maxConcurrent": -1}}"#,
        &["spec.rollout.maxConcurrent", "must be a number from 1 to 100000, or a percentage from 1% to 100%"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"rollout": {"maxConcurrent": 0}}"#,
        &["spec.rollout.maxConcurrent", "must be a number from 1 to 100000, or a percentage from 1% to 100%"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"rollout": {"maxConcurrent": "0%"}}"#,
        &["spec.rollout.maxConcurrent", "must be a number from 1 to 100000, or a percentage from 1% to 100%"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"rollout": {"maxConcurrent": "ten"}}"#,
        &["spec.rollout.maxConcurrent", "must be a number from 1 to 100000, or a percentage from 1% to 100%"],
    ),
    ("PatchPolicy", "{}", r#"{"osUpdater": "Off"}"#, &["spec.osUpdater", "Off"]),
    ("PatchPolicy", "{}", r#"{"mode": "Explode"}"#, &["spec.mode", "Explode"]),
    ("PatchPolicy", "{}", r#"{"installLimit": "2d"}"#, &["spec.installLimit", "must be from 1m to 24h"]),
    ("PatchPolicy", "{}", r#"{"siteCache": {}}"#, &["spec.siteCache.url", "Required"]),
    ("PatchPolicy", "{}", r#"{"siteCache": {"url": "https://cache:3142"}}"#, &["spec.siteCache.url", "should match"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"siteCache": {"url": "http://me:secret@cache:3142"}}"#,
        &["spec.siteCache.url", "should match"],
    ),
    ("PatchPolicy", "{}", r#"{"siteCache": {"url": "http://cache/debian"}}"#, &["spec.siteCache.url", "should match"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"siteCache": {"url": "http://cache", "whenDown": "Guess"}}"#,
        &["spec.siteCache.whenDown", "Guess"],
    ),
    ("PatchPolicy", "{}", r#"{"blastLimit": -1}"#, &["spec.blastLimit", "number from 0 to 100000"]),
    ("PatchPolicy", "{}", r#"{"blastLimit": "0%"}"#, &["spec.blastLimit", "percentage from 1% to 100%"]),
    ("PatchPolicy", "{}", r#"{"blastLimit": "many"}"#, &["spec.blastLimit", "percentage from 1% to 100%"]),
    ("PatchPolicy", "{}", r#"{"confirm": "yes"}"#, &["spec.confirm", "should match"]),
    ("PatchPolicy", "{}", r#"{"confirm": "00112233445566FF"}"#, &["spec.confirm", "should match"]),
    ("PatchPolicy", "{}", r#"{"catchUp": {}}"#, &["spec.catchUp.after", "Required"]),
    ("PatchPolicy", "{}", r#"{"catchUp": {"after": "a week"}}"#, &["spec.catchUp.after", "should match"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"catchUp": {"after": "7d", "requireMains": "yes"}}"#,
        &["spec.catchUp.requireMains", "must be of type boolean: \"string\""],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"hooks": {"before": [{"name": "../sh"}]}}"#,
        &["spec.hooks.before[0].name", "should match"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"hooks": {"before": [{"name": "a", "arguments": ["b"]}]}}"#,
        &["arguments", "unknown field"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"hooks": {"after": [{"name": "a", "timeoutSeconds": 3601}]}}"#,
        &["spec.hooks.after[0].timeoutSeconds", "3600"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"hooks": {"after": [{"name": "a", "onFailure": "Panic"}]}}"#,
        &["spec.hooks.after[0].onFailure", "Panic"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"hooks": {"before": [{"name": "a"}, {"name": "a"}]}}"#,
        &["spec.hooks.before[1]", "Duplicate"],
    ),
    ("PatchPolicy", "{}", r#"{"checks": [{"name": "a"}]}"#, &["spec.checks[0]", "exactly one of"]),
    ("PatchPolicy", "{}", r#"{"rollback": {}}"#, &["spec.rollback.when", "Required"]),
    ("PatchPolicy", "{}", r#"{"rollback": {"when": "Always"}}"#, &["spec.rollback.when", "Always"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"rollback": {"when": "CheckFailed", "excludePackages": ["a b"]}}"#,
        &["spec.rollback.excludePackages[0]", "should match"],
    ),
    ("PatchPolicy", "{}", r#"{"rollback": {"when": "CheckFailed"}}"#, &["spec.rollback", "checks"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "tcp": {"port": 80}, "fileExists": {"path": "/x"}}]}"#,
        &["spec.checks[0]", "exactly one of"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "tcp": {"port": 0}}]}"#,
        &["spec.checks[0].tcp.port", "should be greater than or equal to 1"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "http": {"port": 80, "path": "health"}}]}"#,
        &["spec.checks[0].http.path", "should match"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "http": {"port": 80, "host": "192.0.2.1"}}]}"#,
        &["spec.checks[0].http.host", "unknown field"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "serviceActive": {"unit": "--version"}}]}"#,
        &["spec.checks[0].serviceActive.unit", "should match"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"checks": [{"name": "a", "fileExists": {"path": "x"}}]}"#,
        &["fileExists.path", "should match"],
    ),
    ("PatchPolicy", "{}", r#"{"settle": "2d"}"#, &["spec.settle", "must be at most 24h"]),
    ("PatchPolicy", "{}", r#"{"settle": ""}"#, &["spec.settle", "must be at most 24h"]),
    ("PatchPolicy", "{}", r#"{"settle": "24h1m"}"#, &["spec.settle", "must be at most 24h"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"retries": {"limit": -1}}"#,
        &["spec.retries.limit", "should be greater than or equal to 0"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "Awful", "within": "7d"}]}"#,
        &["spec.deadlines[0].severity", "Awful"],
    ),
    ("PatchPolicy", "{}", r#"{"deadlines": [{"within": "7d"}]}"#, &["spec.deadlines[0].severity", "Required"]),
    ("PatchPolicy", "{}", r#"{"deadlines": [{"severity": "Any"}]}"#, &["spec.deadlines[0].within", "Required"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "Any", "within": "a week"}]}"#,
        &["spec.deadlines[0].within", "must be at least 1h"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "Any", "within": "90m"}]}"#,
        &["spec.deadlines[0].within", "should match"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "Any", "within": "0d"}]}"#,
        &["spec.deadlines[0].within", "must be at least 1h"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "Any", "within": "7d", "clock": "Disclosed"}]}"#,
        &["spec.deadlines[0].clock", "Disclosed"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"deadlines": [{"severity": "High", "within": "7d"}, {"severity": "High", "within": "8d"}]}"#,
        &["spec.deadlines[1]", "Duplicate"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"applications": [{"name": "../kubectl", "ensure": "Installed"}]}"#,
        &["spec.applications[0].name", "must be the name of a recipe"],
    ),
    (
        "PatchPolicy",
        "{}",
        r#"{"applications": [{"name": "kubectl", "ensure": "Latest"}]}"#,
        &["spec.applications[0].ensure", "Latest"],
    ),
    ("PatchPolicy", "{}", r#"{"applications": [{"name": "kubectl"}]}"#, &["spec.applications[0].ensure", "Required"]),
    (
        "PatchPolicy",
        "{}",
        r#"{"applications": [{"name": "go", "ensure": "Absent"}, {"name": "go", "ensure": "Installed"}]}"#,
        &["spec.applications[1]", "Duplicate"],
    ),
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
        &["spec.selector.matchLabels.tier", "should match"],
    ),
    ("ApprovalGroup", GROUP, r#"{"members": {"selector": null}}"#, &["spec.members", "give names"]),
    ("ApprovalGroup", GROUP, r#"{"members": {"rule": ""}}"#, &["spec.members.rule", "should be at least 1 chars long"]),
    ("ApprovalGroup", GROUP, r#"{"parent": {}}"#, &["spec.parent.name", "Required"]),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"parent": {"name": "org", "scope": "Everywhere"}}"#,
        &["spec.parent.scope", "Everywhere"],
    ),
    ("ApprovalGroup", GROUP, r#"{"level": "Planet"}"#, &["spec.level", "Planet"]),
    ("ApprovalGroup", GROUP, r#"{"priority": 5000}"#, &["spec.priority", "1000"]),
    ("ApprovalGroup", GROUP, r#"{"default": "Install"}"#, &["spec.default", "Install"]),
    ("ApprovalGroup", GROUP, r#"{"minArtifactAge": "a week"}"#, &["spec.minArtifactAge", "should match"]),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Explode"}]}"#,
        &["spec.decisions[0].action", "Explode"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Ignore", "until": "2027-01-01T00:00:00Z"}]}"#,
        &["spec.decisions[0]", "needs a reason"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Approve", "until": "9999-12-01T00:00:00Z"}]}"#,
        &["spec.decisions[0].until", "9999"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Reprocess"}]}"#,
        &["spec.decisions[0]", "failedBefore must be given for Reprocess"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Approve", "failedBefore": "2026-01-01T00:00:00Z"}]}"#,
        &["spec.decisions[0]", "failedBefore"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "pkg:deb/debian/openssl@*", "action": "Approve", "orLater": true}]}"#,
        &["spec.decisions[0]", "orLater is for"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "RHSA-2026:1", "action": "Approve", "orLater": true}]}"#,
        &["spec.decisions[0]", "orLater is for Approve and Ignore of a Debian or rpm package in one version"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "pkg:rpm/rocky/vim@9.0-1?epoch=x", "action": "Approve", "orLater": true}]}"#,
        &["spec.decisions[0]", "orLater is for Approve and Ignore of a Debian or rpm package in one version"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "pkg:deb/debian/openssl@1.0", "action": "DoNothing", "orLater": true}]}"#,
        &["spec.decisions[0]", "orLater is for"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Ignore", "window": "nights"}]}"#,
        &["spec.decisions[0]", "window is for Approve and Uninstall only"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Reprocess", "failedBefore": "2026-01-01T00:00:00Z", "locked": true}]}"#,
        &["spec.decisions[0]", "locked is not for Reprocess"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "x", "action": "Ignore"}, {"update": "x", "action": "Ignore"}]}"#,
        &["spec.decisions[1]", "Duplicate"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "pkg:deb/debian/nano@1", "action": "Uninstall", "orLater": true}]}"#,
        &["spec.decisions[0]", "orLater is for Approve and Ignore"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"decisions": [{"update": "CVE-2026-1*", "action": "Uninstall"}]}"#,
        &["spec.decisions[0]", "Uninstall is for updates and not for a CVE: what is installed does not tell"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a b", "action": "Approve"}]}"#,
        &["spec.rules[0].name", "should match"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "action": "Approve"}, {"name": "a", "action": "Ignore"}]}"#,
        &["spec.rules[1]", "Duplicate"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "match": {"knownExploited": false}, "action": "Approve"}]}"#,
        &["spec.rules[0].match.knownExploited", "must be true"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "match": {"epssAtLeast": "1.5"}, "action": "Approve"}]}"#,
        &["spec.rules[0].match.epssAtLeast", "should match"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "match": {"epssAtLeast": 0.5}, "action": "Approve"}]}"#,
        &["spec.rules[0].match.epssAtLeast", "must be of type string"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "action": "Ignore", "after": "7d"}]}"#,
        &["spec.rules[0]", "for action Approve only"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "action": "Approve", "clock": "Published"}]}"#,
        &["spec.rules[0]", "clock is for after only"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "action": "Approve", "after": "soon"}]}"#,
        &["spec.rules[0].after", "should match"],
    ),
    (
        "ApprovalGroup",
        GROUP,
        r#"{"rules": [{"name": "a", "action": "Approve", "match": {"severities": ["Awful"]}}]}"#,
        &["spec.rules[0].match.severities[0]", "Awful"],
    ),
    ("DeviceInventory", "{}", r#"{"acceptedKey": "SHA256:short"}"#, &["spec.acceptedKey", "should match"]),
    (
        "DeviceInventory",
        "{}",
        r#"{"timeZone": "Nowhere/Land"}"#,
        &["spec.timeZone", "must be an IANA time zone such as Europe/Berlin"],
    ),
    ("DeviceInventory", "{}", r#"{"type": "Toaster"}"#, &["spec.type", "Toaster"]),
];

fn a_spec_that_makes_no_sense_is_refused_by_field(world: &World) {
    assert!(REFUSED.len() >= 40, "only {} cases", REFUSED.len());
    let tenant = world.tenant();
    for (kind, good, change, words) in REFUSED {
        // The field, and what is wrong with it.
        assert!(words.len() >= 2, "{kind} {change}: say what the message must tell");
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
