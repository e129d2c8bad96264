//! Rings, failure budgets, the ledger of disruption, and groups that cannot be resolved: on real machines.

use jiff::Timestamp;
use serde_json::Value;

use crate::Test;
use crate::crash::compliance;
use crate::quiet::condition;
use crate::world::{APPROVE_SECURITY, Device, OPEN_WINDOW, Tenant, World, eventually};

pub const TESTS: &[Test] = &[
    ("a_ring_proves_an_update_before_the_rest_gets_it", a_ring_proves_an_update_before_the_rest_gets_it),
    ("a_ring_that_fails_pauses_the_rollout", a_ring_that_fails_pauses_the_rollout),
    ("one_ledger_holds_across_two_policies", one_ledger_holds_across_two_policies),
    ("a_group_that_cannot_be_resolved_approves_nothing", a_group_that_cannot_be_resolved_approves_nothing),
    ("explain_and_preview_tell_what_the_controller_decides", explain_and_preview_tell_what_the_controller_decides),
];

/// With a ring of the devices labelled so. Suspended, until the devices have their labels.
pub const RINGS: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {name: everything}
spec:
  mode: Install
  windows: [anytime]
  suspend: true
  retries: {limit: 0}
  rollout:
    maxConcurrent: 100%
    failureBudget: 0
    rings: [{name: pilot, selector: {matchLabels: {patch-ring: pilot}}, soak: 0m}]
";

// covers EM-9
fn a_ring_proves_an_update_before_the_rest_gets_it(world: &World) {
    let repository = world.repository("rings", &["alpha=1.0", "alpha=1.1"]);
    let pilot = world.device("ring-pilot", &repository, &[]);
    let rest = world.device("ring-rest", &repository, &[]);
    let tenant = world.tenant();
    let policy = with_devices(&tenant, RINGS, &[(&pilot, "patch-ring=pilot"), (&rest, "patch-ring=none")]);
    tenant.apply(&policy.replace("suspend: true", "suspend: false"));
    tenant.wait_for("ring-rest", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!((pilot.version("alpha"), rest.version("alpha")), ("1.1".into(), "1.1".into()));
    let proved = compliance(&tenant.device("ring-pilot")).last[0].finished_at;
    let started = created(&tenant, "ring-rest-0-1");
    assert!(started >= proved, "the rest began at {started}, the ring had ended at {proved}");
    let status = eventually("the policy tells of its rings", || {
        let status = tenant.get(&["pp", "everything"])["status"].clone();
        (status["compliant"] == "2/2").then_some(status)
    })
    .unwrap();
    assert_eq!(status["rings"][0], serde_json::json!({"name": "pilot", "compliant": "1/1"}));
    assert_eq!(status["rings"][1], serde_json::json!({"name": "rest", "compliant": "1/1"}));
    assert_eq!(status["updates"][0]["ring"], "rest", "{status}");
}

// covers EM-9
fn a_ring_that_fails_pauses_the_rollout(world: &World) {
    let repository = world.repository("ring-fails", &["alpha=1.0", "alpha=1.1,postinst-fail"]);
    let pilot = world.device("fails-pilot", &repository, &[]);
    let rest = world.device("fails-rest", &repository, &[]);
    let tenant = world.tenant();
    let policy = with_devices(&tenant, RINGS, &[(&pilot, "patch-ring=pilot"), (&rest, "patch-ring=none")]);
    let policy = policy.replace("suspend: true", "suspend: false");
    tenant.apply(&policy);
    let paused = eventually("the rollout is paused", || {
        let policy = tenant.get(&["pp", "everything"]);
        policy["status"]["paused"].is_string().then_some(policy)
    })
    .unwrap();
    let stalled = condition(&paused, "Stalled");
    assert_eq!((&stalled["status"], &stalled["reason"]), (&"True".into(), &"RolloutPaused".into()));
    assert!(stalled["message"].as_str().unwrap().contains("spec.rollout.resumed"), "{stalled}");
    let blocked = tenant.wait_for("fails-rest", "it is kept from the update", |device| {
        let blocked = |why: &String| why.starts_with("RolloutPaused");
        compliance(device).updates.iter().any(|update| update.blocked_by.as_ref().is_some_and(blocked))
    });
    assert!(compliance(&blocked).last.is_empty());
    let events = eventually("an event tells of it", || {
        let events = tenant.get(&["events", "--field-selector", "reason=RolloutPaused"])["items"].clone();
        events.as_array().is_some_and(|events| !events.is_empty()).then_some(events)
    })
    .unwrap();
    assert_eq!(events.as_array().map(Vec::len), Some(1), "{events}");

    // A person has looked.
    tenant.apply(&policy.replace("failureBudget: 0", &format!("failureBudget: 0\n    resumed: {}", Timestamp::now())));
    eventually("the rollout goes on", || {
        let policy = tenant.get(&["pp", "everything"]);
        (policy["status"]["paused"].is_null() && condition(&policy, "Ready")["status"] == "True").then_some(())
    })
    .unwrap();
    assert_eq!(rest.version("alpha"), "1.0", "its ring has not got what the first did not prove");
    assert!(tenant.jobs().iter().all(|job| job["metadata"]["name"] != "fails-rest-0-1"));
}

// covers BY-5
fn one_ledger_holds_across_two_policies(world: &World) {
    let repository = world.repository("ledger", &["alpha=1.0", "alpha=1.1,postinst-sleep=4"]);
    let one = world.device("ledger-1", &repository, &[]);
    let other = world.device("ledger-2", &repository, &[]);
    let tenant = world.tenant();
    let policy = |name: &str| {
        format!(
            "
apiVersion: patchwarden.io/v1alpha1
kind: PatchPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{set: {name}}}}}
  mode: Install
  windows: [anytime]
  suspend: true
  disruption: {{groupBy: app, maxUnavailable: 1}}
"
        )
    };
    let policies = format!("{}---{}", policy("red"), policy("blue"));
    let policies = with_devices(&tenant, &policies, &[(&one, "app=db set=red"), (&other, "app=db set=blue")]);
    tenant.apply(&policies.replace("suspend: true", "suspend: false"));
    let ended =
        |name: &str| tenant.wait_for(name, "its install has ended", |device| compliance(device).last.len() == 1);
    let ends = [ended("ledger-1"), ended("ledger-2")].map(|device| compliance(&device).last[0].finished_at);
    let starts = ["ledger-1-0-1", "ledger-2-0-1"].map(|job| created(&tenant, job));
    assert!(starts[0] >= ends[1] || starts[1] >= ends[0], "both were down at once: from {starts:?} to {ends:?}");
    assert_eq!((one.version("alpha"), other.version("alpha")), ("1.1".into(), "1.1".into()));
}

// covers RM-3
fn a_group_that_cannot_be_resolved_approves_nothing(world: &World) {
    let repository = world.repository("unresolved", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("unresolved-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.apply(OPEN_WINDOW);
    tenant.apply(crate::world::POLICY);
    let group = |rest: &str| APPROVE_SECURITY.replace("spec:\n", &format!("spec:\n  {rest}\n"));
    tenant.apply(&group("parent: {name: nobody}"));
    tenant.join(&device);
    let blocked_by = |why: &str| {
        tenant.wait_for("unresolved-1", why, |device| {
            let blocked = |by: &String| by.starts_with(why);
            compliance(device).updates.iter().any(|update| update.blocked_by.as_ref().is_some_and(blocked))
        })
    };
    let stalled = |what: &str| {
        eventually(what, || {
            let group = tenant.get(&["agrp", "everybody"]);
            let message = condition(&group, "Stalled")["message"].as_str().unwrap_or_default().to_owned();
            message.contains(what).then_some(())
        })
        .unwrap();
    };
    blocked_by("ParentNotFound");
    stalled("spec.parent: ApprovalGroup/everybody has the parent nobody, which does not exist");
    // What cannot be compiled is told with its field, and approves nothing either.
    let nonsense = "match: {classifications: [Security], expression: update.nonsense == 1}";
    tenant.apply(&APPROVE_SECURITY.replace("match: {classifications: [Security]}", nonsense));
    blocked_by("GroupInvalid");
    stalled("spec.rules[0].match.expression: No such key: nonsense");
    assert!(tenant.jobs().is_empty());
    assert_eq!(device.version("alpha"), "1.0");

    let sense = "match: {expression: 'update.packages.exists(name, name == \"alpha\")'}";
    tenant.apply(&APPROVE_SECURITY.replace("match: {classifications: [Security]}", sense));
    tenant.wait_for("unresolved-1", "its install has ended", |device| compliance(device).last.len() == 1);
    assert_eq!(device.version("alpha"), "1.1");
}

// covers BY-3, BY-4
fn explain_and_preview_tell_what_the_controller_decides(world: &World) {
    let repository = world.repository("explain", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("explain-1", &repository, &[]);
    let tenant = world.tenant();
    let suspended = crate::world::POLICY.replace("mode: Install", "suspend: true, mode: Install");
    with_devices(&tenant, &suspended, &[(&device, "app=web")]);
    let told = tenant.plugin(&["explain", "explain-1"], "");
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    for words in [
        "Group:       everybody",
        "pkg:deb/debian/alpha@1.1",
        "Decision:  Approved, by ApprovalGroup/everybody rule security",
        "Blocked:   PolicySuspended: PatchPolicy/everything is suspended",
    ] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
    let nobody = tenant.plugin(&["explain", "nobody"], "");
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("does not exist"), "{nobody:?}");

    // Nothing of it is written.
    let same = tenant.plugin(&["preview", "-f", "-"], &suspended);
    assert_eq!(
        (same.status.code(), String::from_utf8_lossy(&same.stdout)),
        (Some(0), "Nothing would change.\n".into())
    );
    let changed = tenant.plugin(&["preview", "-f", "-"], crate::world::POLICY);
    let text = String::from_utf8_lossy(&changed.stdout).into_owned();
    assert_eq!(changed.status.code(), Some(1), "{changed:?}");
    assert!(text.contains("1 updates on 1 devices would change") && text.contains("+ Approved"), "{text}");
    assert!(text.contains("Next: it is installed next"), "{text}");
    let wrong = tenant.plugin(&["preview", "-f", "-"], &crate::world::POLICY.replace("100%", "-1"));
    assert_eq!(wrong.status.code(), Some(2));
    let why = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(why.contains("PatchPolicy/everything") && why.contains("spec.rollout.maxConcurrent"), "{why}");
    assert_eq!(tenant.get(&["pp", "everything"])["spec"]["suspend"], true);
    assert!(tenant.jobs().is_empty());
}

/// Installs alpha 1.0 on machines, joins them under `policies`, which are suspended, and gives them labels. Returns the
/// policies.
pub fn with_devices(tenant: &Tenant<'_>, policies: &str, devices: &[(&Device<'_>, &str)]) -> String {
    tenant.apply(OPEN_WINDOW);
    tenant.apply(APPROVE_SECURITY);
    tenant.apply(policies);
    for (device, labels) in devices {
        device.install(&["alpha=1.0"]);
        tenant.join(device);
        tenant.label(&device.name, labels);
        tenant.wait_for(&device.name, "its update is approved", |device| compliance(device).counts.missing == 1);
    }
    policies.to_owned()
}

fn created(tenant: &Tenant<'_>, job: &str) -> Timestamp {
    let job: Value = tenant.get(&["job", job]);
    job["metadata"]["creationTimestamp"].as_str().and_then(|at| at.parse().ok()).expect("a time")
}
