//! Of which specs the digest is that a person confirms.

use jiff::Timestamp;
use patchwarden_plan::plan;
use serde_json::{Value, json};

use crate::scenario::{Past, World};
use crate::simulation::merge;

/// The digests in force of the policies `servers` and `rest`, with a change (a JSON merge patch) of the client.
fn digests(change: &Value) -> [String; 2] {
    let daily = json!({"timeZone": "UTC", "schedules": [{"daily": {"at": "02:00"}}], "duration": "4h"});
    let mut world = json!({
        "windows": {"nights": daily, "days": daily, "of-a-rule": daily, "of-a-decision": daily, "nobodys": daily},
        "groups": {
            "top": {"rules": [{"name": "kernel", "packages": ["linux*"], "action": "Approve", "window": "of-a-rule"}]},
            "middle": {"parent": "top"},
            "by-name": {"names": ["web-1"], "parent": "middle", "default": "Approve"},
            "by-rule": {"rule": "device.name == 'web-2'", "decisions": [{"update": "u-9", "action": "Approve", "window": "of-a-decision"}]},
            "by-labels": {"selector": {"matchLabels": {"role": "db"}}},
            "template": {"parent": "top", "default": "Ignore", "rules": [{"name": "all", "action": "Approve", "window": "nobodys"}]},
            "beneath-it": {"parent": "template"},
        },
        "policies": {
            "servers": {"selector": {"matchLabels": {"role": "web"}}, "priority": 2, "mode": "Install", "windows": ["nights"]},
            "rest": {"mode": "Install", "windows": ["days"]},
        },
        "devices": {"web-1": {"labels": {"role": "web"}}},
    });
    merge(&mut world, change);
    let world: World = serde_json::from_value(world).expect("a world");
    let answer = plan(&world.snapshot(&Past::default(), Timestamp::UNIX_EPOCH), Timestamp::UNIX_EPOCH);
    ["servers", "rest"].map(|name| {
        let policy = answer.policies.iter().find(|policy| *policy.name == *name).expect("a policy");
        policy.progress.blast.accepted.as_ref().expect("specs in force").specs.to_string()
    })
}

#[test]
fn what_a_person_confirms_is_all_that_can_matter_for_a_policys_devices_and_nothing_else() {
    let before = digests(&json!({}));
    assert_ne!(before[0], before[1]);
    // For one policy, for the other one.
    let check = |matters: [bool; 2], change: Value| {
        let after = digests(&change);
        assert_eq!([after[0] != before[0], after[1] != before[1]], matters, "{change}");
    };
    let shorter = json!({"duration": "1h"});
    let of_window = |name: &str| json!({"windows": {name: shorter}});
    let ignores = json!({"default": "Ignore"});
    let of_group = |name: &str| json!({"groups": {name: ignores}});
    // Windows: those of the policy itself, and those that a group gives to updates of any policy.
    check([true, false], of_window("nights"));
    check([false, true], of_window("days"));
    check([true, true], of_window("of-a-rule"));
    check([true, true], of_window("of-a-decision"));
    check([false, false], of_window("nobodys"));
    check([false, false], json!({"windows": {"more": {"timeZone": "UTC", "schedules": [], "duration": "1h"}}}));
    check([true, true], json!({"windows": {"of-a-rule": null}}));
    // Groups: those that have members, and all above them, however far.
    for name in ["by-name", "by-rule", "by-labels", "middle", "top"] {
        check([true, true], of_group(name));
    }
    for name in ["template", "beneath-it", "more"] {
        check([false, false], of_group(name));
    }
    for change in [
        // Whoever gets members has devices, and a say.
        json!({"groups": {"beneath-it": {"names": ["web-1"]}}}),
        json!({"groups": {"more": {"selector": {}}}}),
        json!({"groups": {"more": {"rule": "false"}}}),
        // So has what is asked by one that has.
        json!({"groups": {"by-labels": {"parent": "template"}}}),
        json!({"groups": {"middle": null}}),
        // With its windows.
        json!({"groups": {"more": {"names": ["web-2"], "rules": [{"name": "all", "action": "Approve", "window": "nobodys"}]}}}),
        // What a policy says of whose its devices are is the other ones' matter, too.
        json!({"policies": {"rest": {"priority": 3}}}),
        json!({"policies": {"more": {"selector": {"matchLabels": {"role": "nobody"}}}}}),
    ] {
        check([true, true], change);
    }
    check([true, false], json!({"policies": {"servers": {"mode": "Audit"}}}));
    check([false, true], json!({"policies": {"rest": {"windows": ["nights"]}}}));
    // With a say its windows have one.
    let asked = digests(&json!({"groups": {"by-labels": {"parent": "template"}}}));
    let other =
        digests(&json!({"groups": {"by-labels": {"parent": "template"}}, "windows": {"nobodys": {"duration": "1h"}}}));
    assert!(asked[0] != other[0] && asked[1] != other[1]);
}
