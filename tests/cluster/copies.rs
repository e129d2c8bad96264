//! A copy of a machine: it has the key, the journal and everything else of the other one, and both stop. One that is put back to what it
//! was goes on.

use patchwarden::api::DeviceInventory;
use patchwarden_protocol::result::Outcome;
use serde_json::Value;

use crate::Test;
use crate::crash::compliance;
use crate::world::{Device, World, eventually};

pub const TESTS: &[Test] = &[
    (
        "a_copied_machine_and_its_copy_stop_until_a_person_has_dealt_with_it",
        a_copied_machine_and_its_copy_stop_until_a_person_has_dealt_with_it,
    ),
    ("a_machine_that_is_put_back_to_a_snapshot_goes_on", a_machine_that_is_put_back_to_a_snapshot_goes_on),
];

pub fn condition<'a>(device: &'a DeviceInventory, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let status = device.status.as_ref()?;
    let found = status.conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((found.status.as_str(), found.reason.as_str(), found.message.as_str()))
}

/// The copy has the key, the journal and the configuration of the other one from now on.
pub fn copy_identity(original: &Device<'_>, copy: &Device<'_>) {
    let files = original.run(&["sh", "-c", "tar -C / -czf - var/lib/patchwarden etc/patchwarden | base64 -w0"]);
    copy.run(&["sh", "-c", &format!("echo {files} | base64 -d | tar -C / -xzf -")]);
}

fn a_copied_machine_and_its_copy_stop_until_a_person_has_dealt_with_it(world: &World) {
    let repository = world.repository("copies", &["alpha=1.0", "alpha=1.1"]);
    let (original, copy) = (world.device("copies-1", &repository, &[]), world.device("copies-2", &repository, &[]));
    original.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.join(&original);
    let is_ready = |device: &DeviceInventory| condition(device, "Ready").is_some_and(|it| it.0 == "True");
    tenant.wait_for("copies-1", "it is ready", is_ready);

    // What is one machine all the same: its agent dies, and the gateway does.
    for _ in 0..2 {
        original.kill_agent();
        eventually("its agent has come back", || original.log_since_kill()?.contains("connected to").then_some(()))
            .unwrap();
    }
    world.program("kill", "gateway");
    world.program("start", "gateway");
    eventually("it is connected again", || {
        let log = original.log_since_kill()?;
        (log.matches("connected to").count() > 1).then_some(())
    })
    .unwrap();
    let device = tenant.wait_for("copies-1", "it is online and ready", |device| {
        let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
        is_ready(device) && inventory.is_some_and(|inventory| inventory.online)
    });
    assert_eq!(condition(&device, "DuplicateIdentity"), None);

    copy_identity(&original, &copy);
    let found =
        tenant.wait_for("copies-1", "the copy is found", |device| condition(device, "DuplicateIdentity").is_some());
    let (status, reason, message) = condition(&found, "DuplicateIdentity").unwrap();
    assert_eq!((status, reason), ("True", "DuplicateIdentity"));
    // Each by what it calls itself and by its address; and what there is to do.
    for expected in ["copies-1 at ", "copies-2 at ", "join --force", "spec.duplicateResolved"] {
        assert!(message.contains(expected), "{message}");
    }
    let ready = condition(&found, "Ready").unwrap();
    assert_eq!((ready.0, ready.1), ("False", "DuplicateIdentity"));
    for device in [&original, &copy] {
        eventually("its own status says so", || {
            device.run(&["patchwarden-agent", "status"]).contains("identity     DuplicateIdentity: ").then_some(())
        })
        .unwrap();
    }

    // Everything is approved now, and nothing is installed on either.
    tenant.install_everything();
    let single = world.device("copies-3", &repository, &[]);
    single.install(&["alpha=1.0"]);
    tenant.join(&single);
    eventually("another one is updated", || (single.version("alpha") == "1.1").then_some(())).unwrap();
    assert_eq!(original.version("alpha"), "1.0");
    let is_for_it = |job: &Value| job["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("copies-1-"));
    assert!(!tenant.jobs().iter().any(is_for_it), "{:?}", tenant.jobs());

    // The copy is taken away, and a person says so.
    copy.run(&["rm", "/etc/patchwarden/agent.toml"]);
    copy.kill_agent();
    let since = &tenant.get(&["devinv", "copies-1"])["status"]["inventory"]["duplicateIdentity"]["since"];
    let patch = serde_json::json!({ "spec": { "duplicateResolved": since } }).to_string();
    world.kubectl(&["patch", "-n", &tenant.name, "devinv", "copies-1", "--type=merge", "-p", &patch]);
    eventually("it is updated", || (original.version("alpha") == "1.1").then_some(())).unwrap();
    let device = tenant.wait_for("copies-1", "the condition is gone", |device| {
        condition(device, "DuplicateIdentity").is_none() && is_ready(device)
    });
    assert_eq!(device.status.unwrap().inventory.unwrap().duplicate_identity, None);
    assert!(!original.run(&["patchwarden-agent", "status"]).contains("DuplicateIdentity"));
}

fn a_machine_that_is_put_back_to_a_snapshot_goes_on(world: &World) {
    let repository = world.repository("snapshot", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("snapshot-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.join(&device);
    tenant.wait_for("snapshot-1", "it has reported", |device| {
        condition(device, "Ready").is_some_and(|it| it.0 == "True")
    });
    // All that the agent and dpkg know, at an instant at which neither writes.
    device.pause_agent();
    let kept = "var/lib/patchwarden var/lib/dpkg/status var/lib/dpkg/info";
    device.run(&["sh", "-c", &format!("tar -C / -cf /root/snapshot.tar {kept}")]);
    device.resume_agent();

    tenant.install_everything();
    tenant.wait_for("snapshot-1", "its update is installed", |device| compliance(device).last.len() == 1);
    assert_eq!(device.version("alpha"), "1.1");
    let before = compliance(&tenant.device("snapshot-1"));

    device.pause_agent();
    device.run(&["sh", "-c", &format!("rm -r /var/lib/patchwarden && tar -C / -xf /root/snapshot.tar {kept}")]);
    assert_eq!(device.version("alpha"), "1.0");
    device.kill_agent();
    let again = tenant.wait_for("snapshot-1", "its update is installed again", |device| {
        compliance(device).last.len() == 2 && compliance(device).current.is_none()
    });
    let after = compliance(&again);
    assert_eq!(device.version("alpha"), "1.1");
    assert_eq!(device.upgrades("alpha"), 2, "once before, and once after");
    let ends: Vec<_> = after.last.iter().map(|past| (past.sequence.number, past.outcome)).collect();
    assert_eq!(ends, [(2, Some(Outcome::Succeeded)), (1, Some(Outcome::Succeeded))], "each order is of its own");
    assert!(after.report_counter > before.report_counter, "no report of the time before counts again");
    assert_eq!(condition(&again, "DuplicateIdentity"), None, "it is one machine");
}
