//! Nothing to do: nothing is written.

use std::time::Instant;

use serde_json::Value;

use crate::Test;
use crate::crash::compliance;
use crate::world::{World, eventually};

pub const TESTS: &[Test] = &[
    ("nothing_is_installed_while_the_window_is_closed", nothing_is_installed_while_the_window_is_closed),
    ("a_controller_with_nothing_to_do_writes_nothing", a_controller_with_nothing_to_do_writes_nothing),
    ("changes_that_come_together_are_planned_together", changes_that_come_together_are_planned_together),
];

// covers MW-6, MW-7
fn nothing_is_installed_while_the_window_is_closed(world: &World) {
    let repository = world.repository("closed", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("closed-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.apply(
        "
apiVersion: patchwarden.io/v1alpha1
kind: MaintenanceWindow
metadata: {name: anytime}
spec: {timeZone: UTC, schedules: [{once: {at: '2099-01-01T00:00'}}], duration: 4h}
",
    );
    tenant.join(&device);
    let record = tenant.wait_for("closed-1", "its update is approved", |device| compliance(device).counts.missing == 1);
    let compliance = compliance(&record);
    assert_eq!(compliance.current, None);
    let blocked = compliance.updates[0].blocked_by.clone().unwrap();
    assert!(blocked.starts_with("Scheduled: PatchPolicy/everything"), "{blocked}");
    let policy = eventually("the policy says when its window opens, and for whom", || {
        let policy = tenant.get(&["pp", "everything"]);
        let status = &policy["status"];
        (status["nextWindow"] == "2099-01-01T00:00:00Z" && status["compliant"] == "0/1").then_some(policy)
    })
    .unwrap();
    let ready = condition(&policy, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&"True".into(), &"Enforced".into()));
    assert_eq!(ready["message"], "the next window opens at 2099-01-01T00:00:00Z");
    let window = eventually("the window says when it opens", || {
        let window = tenant.get(&["mw", "anytime"]);
        (window["status"]["nextStart"] == "2099-01-01T00:00:00Z").then_some(window)
    })
    .unwrap();
    assert_eq!(window["status"]["active"], false);
    assert!(tenant.jobs().is_empty());
    assert_eq!(device.version("alpha"), "1.0");
}

// covers BY-8
fn a_controller_with_nothing_to_do_writes_nothing(world: &World) {
    let repository = world.repository("quiet", &["alpha=1.0", "alpha=1.1", "beta=1.0", "beta=1.1"]);
    let device = world.device("quiet-1", &repository, &[]);
    device.install(&["alpha=1.0", "beta=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.join(&device);
    tenant.wait_for("quiet-1", "its install has ended", |device| compliance(device).last.len() == 1);
    eventually("its Job is let go", || {
        tenant.jobs().iter().all(|job| job["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)).then_some(())
    })
    .unwrap();
    // What an earlier test has left is being removed, and would be written to.
    eventually("the namespaces of earlier tests are gone", || {
        let phases = world.kubectl(&["get", "namespaces", "-o", "jsonpath={.items[*].status.phase}"]);
        (!phases.contains("Terminating")).then_some(())
    })
    .unwrap();
    world.program("stop", "controller");
    let before = world.audit().len();
    world.program("start", "controller");
    // Two passes: the first after the lists, the second after the watches have begun.
    eventually("the controller leads and has planned", || {
        (world.metric("controller", "patchwarden_passes_total") >= 2.0).then_some(())
    })
    .unwrap();
    // The same machine again: its agent starts, opens a session and has nothing new to say.
    device.kill_agent();
    eventually("its agent has come back, scanned, and found nothing new", || {
        let since = device.log_since_kill()?;
        (since.contains("connected to") && since.contains("unchanged")).then_some(())
    })
    .unwrap();
    assert!(world.metric("gateway", "patchwarden_gateway_sessions") >= 1.0);
    let writes: Vec<_> = world.audit().split_off(before).into_iter().filter(is_our_write).collect();
    assert!(writes.is_empty(), "{}", serde_json::to_string_pretty(&writes).unwrap());
}

// covers BY-8
fn changes_that_come_together_are_planned_together(world: &World) {
    const DEVICES: u32 = 200;
    let tenant = world.tenant();
    let device = |number: u32| {
        format!(
            "---\napiVersion: patchwarden.io/v1alpha1\nkind: DeviceInventory\nmetadata: {{name: burst-{number}}}\nspec: {{}}\n"
        )
    };
    let passes = || world.metric("controller", "patchwarden_passes_total");
    let (before, began) = (passes(), Instant::now());
    tenant.apply(&(0..DEVICES).map(device).collect::<String>());
    eventually("the controller has written of each of them", || {
        let devices = tenant.get(&["devinv"]);
        let devices = devices["items"].as_array()?;
        let is_written = |device: &&Value| condition(device, "Ready")["reason"] == "KeyPending";
        (devices.iter().filter(is_written).count() == DEVICES as usize).then_some(())
    })
    .unwrap();
    let (passes, took) = (passes() - before, began.elapsed());
    // One waits for 50 ms after an event; the first may have been under way.
    let most = took.as_secs_f64() / 0.05 + 2.0;
    println!("{passes} passes for {DEVICES} devices in {took:?}");
    assert!(passes <= most, "{passes} passes in {took:?}");
    assert!(passes <= f64::from(DEVICES) / 2.0, "{passes} passes for {DEVICES} devices in {took:?}");
}

/// A write by the controller or the gateway that is neither a Lease nor a review of a token.
fn is_our_write(event: &Value) -> bool {
    let ours = event["user"]["username"]
        .as_str()
        .is_some_and(|user| user.starts_with("system:serviceaccount:patchwarden-system:"));
    let writes = ["create", "update", "patch", "delete", "deletecollection"]
        .contains(&event["verb"].as_str().unwrap_or_default());
    let allowed = ["leases", "tokenreviews"].contains(&event["objectRef"]["resource"].as_str().unwrap_or_default());
    event["stage"] == "ResponseComplete" && ours && writes && !allowed
}

pub fn condition(object: &Value, type_: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}
