//! Something dies, or somebody interferes, in the middle of an install: it goes on, and nothing is installed twice.

use patchwarden::api::DeviceInventory;
use patchwarden::api::device_inventory::{Compliance, InstallPhase};
use patchwarden_protocol::result::Outcome;

use crate::Test;
use crate::world::{Device, MAY_GO, Tenant, World, eventually};

pub const TESTS: &[Test] = &[
    ("the_controller_is_killed_in_the_middle_of_an_install", the_controller_is_killed_in_the_middle_of_an_install),
    ("the_gateway_is_killed_in_the_middle_of_an_install", the_gateway_is_killed_in_the_middle_of_an_install),
    ("the_agent_is_killed_in_the_middle_of_an_install", the_agent_is_killed_in_the_middle_of_an_install),
    ("a_job_deleted_in_the_middle_starts_no_second_install", a_job_deleted_in_the_middle_starts_no_second_install),
    ("an_approval_withdrawn_before_the_device_acts_stops_it", an_approval_withdrawn_before_the_device_acts_stops_it),
];

// covers BY-9
fn the_controller_is_killed_in_the_middle_of_an_install(world: &World) {
    in_the_middle_of_an_install(world, "crash-1", |_, _| {
        world.program("kill", "controller");
        world.program("start", "controller");
    });
}

fn the_gateway_is_killed_in_the_middle_of_an_install(world: &World) {
    in_the_middle_of_an_install(world, "crash-2", |_, _| {
        world.program("kill", "gateway");
        world.program("start", "gateway");
    });
}

fn the_agent_is_killed_in_the_middle_of_an_install(world: &World) {
    in_the_middle_of_an_install(world, "crash-3", |device, _| {
        device.kill_agent();
        eventually("its agent has come back", || device.log_since_kill()?.contains("connected to").then_some(()))
            .unwrap();
    });
}

fn a_job_deleted_in_the_middle_starts_no_second_install(world: &World) {
    in_the_middle_of_an_install(world, "crash-4", |device, tenant| {
        let job = format!("{}-0-1", device.name);
        world.kubectl(&["delete", "job", "-n", &tenant.name, &job, "--wait=false"]);
        let kept = tenant.get(&["job", &job]);
        assert!(kept["metadata"]["deletionTimestamp"].is_string(), "its finalizer keeps it: {kept}");
    });
}

/// Starts an install, lets `happen` happen in its middle, and checks that it ended once and well.
fn in_the_middle_of_an_install(world: &World, name: &str, happen: impl Fn(&Device<'_>, &Tenant<'_>)) {
    let slow = format!("slow=1.1,postinst-waits={MAY_GO}");
    let repository = world.repository(name, &["slow=1.0", &slow, "quick=1.0", "quick=1.1"]);
    let device = world.device(name, &repository, &[]);
    device.install(&["slow=1.0", "quick=1.0"]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.join(&device);
    eventually("the package manager is configuring slow", || {
        let log = device.run(&["cat", "/var/log/dpkg.log"]);
        log.contains(" configure slow:all 1.1").then_some(())
    })
    .unwrap();
    tenant.wait_for(name, "it is installing", |device| {
        compliance(device).current.as_ref().is_some_and(|current| current.phase == InstallPhase::Installing)
    });

    happen(&device, &tenant);
    device.let_go();

    let done = tenant.wait_for(name, "the install has ended", |device| compliance(device).current.is_none());
    let compliance = compliance(&done);
    assert_eq!(compliance.last.len(), 1, "one install: {:?}", compliance.last);
    assert_eq!(compliance.last[0].outcome, Some(Outcome::Succeeded));
    assert_eq!((compliance.counts.missing, compliance.counts.failed), (0, 0));
    assert!(compliance.failures.is_empty());
    for package in ["slow", "quick"] {
        assert_eq!(device.version(package), "1.1");
        assert_eq!(device.upgrades(package), 1, "{package} changed its version once");
    }
    eventually("every Job is over", || {
        let jobs = tenant.jobs();
        let over = |job: &serde_json::Value| {
            let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|condition| condition["type"] == "Complete" && condition["status"] == "True")
        };
        (jobs.len() <= 1 && jobs.iter().all(over)).then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}: {:?}", tenant.jobs()));
}

// covers BY-2
fn an_approval_withdrawn_before_the_device_acts_stops_it(world: &World) {
    let repository = world.repository("withdraw", &["alpha=1.0", "alpha=1.1"]);
    let device = world.device("withdraw-1", &repository, &[]);
    device.install(&["alpha=1.0"]);
    let tenant = world.tenant();
    tenant.apply(crate::world::OPEN_WINDOW);
    tenant.apply(crate::world::POLICY);
    tenant.apply(UNDECIDED);
    tenant.join(&device);
    tenant.wait_for("withdraw-1", "the update awaits approval", |device| {
        compliance(device).counts.awaiting_approval == 1
    });
    // The device hears nothing now, and keeps its session for as long as its gateway waits for a sign of life.
    device.pause_agent();
    tenant.apply(crate::world::APPROVE_SECURITY);
    eventually("a Job for the approved update", || (tenant.jobs().len() == 1).then_some(())).unwrap();
    tenant.apply(UNDECIDED);
    tenant.wait_for("withdraw-1", "the controller has seen the withdrawal", |device| {
        compliance(device)
            .updates
            .iter()
            .any(|update| update.decision == patchwarden::api::device_inventory::Decision::AwaitingApproval)
    });
    device.resume_agent();
    let done = tenant.wait_for("withdraw-1", "the install has ended", |device| compliance(device).current.is_none());
    assert_eq!(compliance(&done).last[0].outcome, Some(Outcome::Withdrawn), "{:?}", compliance(&done).last);
    assert_eq!(device.version("alpha"), "1.0");
    assert_eq!(device.upgrades("alpha"), 0);
    assert_eq!(tenant.jobs().len(), 1, "and nothing was tried again");
}

const UNDECIDED: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec: {members: {selector: {}}, rules: []}
";

/// The controller's part of a device's status; empty before its first.
pub fn compliance(device: &DeviceInventory) -> Compliance {
    device.status.as_ref().and_then(|status| status.compliance.clone()).unwrap_or_default()
}
