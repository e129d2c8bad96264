//! What a person must mend is a condition with a reason on that very object, and nothing else stops.

use crate::Test;
use crate::crash::compliance;
use crate::quiet::condition;
use crate::world::{OPEN_WINDOW, POLICY, Tenant, World, eventually};

pub const TESTS: &[Test] = &[(
    "what_a_person_must_mend_is_a_condition_with_a_reason_and_nothing_else_stops",
    what_a_person_must_mend_is_a_condition_with_a_reason_and_nothing_else_stops,
)];

/// All of it is accepted by the API server. `twin-1` is a record that no machine has joined.
const BAD: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: DeviceInventory
metadata: {name: twin-1}
spec: {type: Workstation}
---
apiVersion: patchwarden.io/v1alpha1
kind: MaintenanceWindow
metadata: {name: over}
spec: {timeZone: Europe/Berlin, schedules: [{once: {at: '2020-01-01T00:00'}}], duration: 4h}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: late}
spec: {mode: Install, windows: [over], types: [Workstation], exclude: [twin-1]}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: left}
spec: {types: [Workstation]}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: right}
spec: {types: [Workstation]}
---
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: of-groups}
spec: {approvalGroups: [round-a, gone], exclude: [twin-l]}
---
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: round-a}
spec: {parent: {name: round-b}}
---
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: round-b}
spec: {parent: {name: round-a}}
---
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: of-production}
spec: {level: DeviceType, members: {rule: 'device.labels.env == \"production\"'}}
";

/// The second rule can be evaluated for updates of two packages and more.
const GROUP: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec:
  members: {selector: {}}
  rules:
    - {name: alpha, match: {packages: [alpha]}, action: Approve}
    - {name: pairs, match: {expression: 'update.packages[1] != \"gamma\"'}, action: Approve}
  minArtifactAge: 0m
";

/// Kind, name, type, reason, and parts of the message.
type Said<'s> = (&'s str, &'s str, &'s str, &'s str, &'s [&'s str]);

const SAID: &[Said<'_>] = &[
    (
        "mw",
        "over",
        "Stalled",
        "NeverOpens",
        &["spec.schedules: it is not open and will not open any more", "or delete it"],
    ),
    ("pp", "late", "Stalled", "NeverOpens", &["spec.windows: MaintenanceWindow/over: none of them is open"]),
    (
        "pp",
        "left",
        "Overlapping",
        "SamePriority",
        &["1 of the devices", "spec.priority (0) by PatchPolicy/right", "this policy 1"],
    ),
    (
        "pp",
        "right",
        "Overlapping",
        "SamePriority",
        &["spec.priority (0) by PatchPolicy/left", "this policy 0, others 1", "give one"],
    ),
    ("pp", "of-groups", "Stalled", "ReferenceNotFound", &["spec.approvalGroups[1]: ApprovalGroup/gone does not exist"]),
    (
        "pp",
        "of-groups",
        "NamesUnknown",
        "DeviceNotFound",
        &["spec.exclude[0]: DeviceInventory/twin-l does not exist in this namespace"],
    ),
    ("agrp", "round-a", "Stalled", "InvalidSpec", &["spec.parent: ApprovalGroup/round-a is its own ancestor"]),
    ("agrp", "round-b", "Stalled", "InvalidSpec", &["spec.parent: ApprovalGroup/round-b is its own ancestor"]),
    (
        "agrp",
        "of-production",
        "Stalled",
        "ExpressionFailed",
        &["spec.members.rule: No such key: env", "DeviceInventory/mended-1 and 1 more"],
    ),
    (
        "agrp",
        "everybody",
        "Stalled",
        "ExpressionFailed",
        &["spec.rules[pairs].match.expression: Index out of bounds", "for pkg:deb/debian/beta@1.1"],
    ),
];

// covers BY-1
fn what_a_person_must_mend_is_a_condition_with_a_reason_and_nothing_else_stops(world: &World) {
    let repository = world.repository("mended", &["alpha=1.0", "alpha=1.1", "beta=1.0", "beta=1.1"]);
    let device = world.device("mended-1", &repository, &[]);
    device.install(&["alpha=1.0", "beta=1.0"]);
    let tenant = world.tenant();
    for yaml in [BAD, GROUP, OPEN_WINDOW, &POLICY.replace("spec: {", "spec: {types: [Server], ")] {
        tenant.apply(yaml);
    }
    tenant.join(&device);
    for said in SAID {
        is_said(&tenant, said);
    }
    // What can be installed is, also in the group whose other rule fails.
    let patched = tenant.wait_for("mended-1", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!((device.version("alpha"), device.version("beta")), ("1.1".into(), "1.0".into()));
    let waits =
        |by: &String| by.starts_with("ExpressionFailed: whether rule pairs of ApprovalGroup/everybody is about it");
    assert!(
        compliance(&patched).updates.iter().any(|update| update.blocked_by.as_ref().is_some_and(waits)),
        "{patched:?}"
    );
    let everything = tenant.get(&["pp", "everything"]);
    assert_eq!(condition(&everything, "Ready")["status"], "True", "{everything:#}");
    assert_eq!(everything["status"]["devices"], 1);
    for name in ["left", "right"] {
        assert_eq!(
            condition(&tenant.get(&["pp", name]), "Ready")["status"],
            "True",
            "nothing stops because they overlap"
        );
    }
    let status = tenant.plugin(&["status", "-o", "wide"], "");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for words in [
        "PatchPolicy/left, PatchPolicy/right: SamePriority",
        "MaintenanceWindow/over: NeverOpens",
        "PatchPolicy/of-groups: ReferenceNotFound",
    ] {
        assert!(status.contains(words), "{words:?} is not in:\n{status}");
    }

    // Mended, each says so by itself.
    let right = "apiVersion: patchwarden.io/v1alpha1\nkind: PatchPolicy\nmetadata: {name: right}\nspec: {types: [Workstation], priority: 1}";
    tenant.apply(right);
    tenant.apply("apiVersion: patchwarden.io/v1alpha1\nkind: ApprovalGroup\nmetadata: {name: gone}\nspec: {members: {names: [none]}}");
    tenant.apply(&GROUP.replace("update.packages[1] != \"gamma\"", "!(\"gamma\" in update.packages)"));
    tenant.wait_for("mended-1", "beta is installed as well", |device| compliance(device).last.len() == 2);
    assert_eq!(device.version("beta"), "1.1");
    is_said(&tenant, &("pp", "left", "Overlapping", "HigherPriority", &["1 of the devices", "PatchPolicy/right"]));
    for (kind, name, type_) in
        [("pp", "right", "Overlapping"), ("pp", "of-groups", "Stalled"), ("agrp", "everybody", "Stalled")]
    {
        eventually(&format!("{kind}/{name} is mended"), || {
            let object = tenant.get(&[kind, name]);
            (condition(&object, type_).is_null() && condition(&object, "Ready")["status"] == "True").then_some(())
        })
        .unwrap();
    }
}

/// Waits until an object says so.
fn is_said(tenant: &Tenant<'_>, (kind, name, type_, reason, words): &Said<'_>) {
    let mut last = serde_json::Value::Null;
    eventually(&format!("{kind}/{name} says {type_}: {reason}"), || {
        last = condition(&tenant.get(&[kind, name]), type_);
        let message = last["message"].as_str().unwrap_or_default();
        let is_it =
            last["status"] == "True" && last["reason"] == *reason && words.iter().all(|it| message.contains(it));
        is_it.then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}, with {words:?}; it says {last:#}"));
    println!("{kind}/{name}: {type_}=True, {reason}: {}", last["message"]);
}
