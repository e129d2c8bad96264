//! The operating system's own updater, by a policy's word.

use patchwarden::api::DeviceInventory;
use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterReport, UpdaterState};

use crate::Test;
use crate::crash::compliance;
use crate::world::{Device, POLICY, World, eventually};

pub const TESTS: &[Test] = &[(
    "a_policy_has_the_systems_own_updater_switched_off_and_given_back",
    a_policy_has_the_systems_own_updater_switched_off_and_given_back,
)];

const LIMITS: &str = "/etc/patchwarden/limits.toml";

// covers EM-5
fn a_policy_has_the_systems_own_updater_switched_off_and_given_back(world: &World) {
    let repository = world.repository("updater", &["alpha=1.0"]);
    let device = world.device("updater-1", &repository, &[]);
    let tenant = world.tenant();
    tenant.install_everything();
    tenant.apply(&POLICY.replace("mode: Install", "osUpdater: Disable, mode: Install"));
    tenant.join(&device);
    let until = |status: &str, reason: &str| {
        tenant.wait_for("updater-1", reason, |device| {
            condition(device).is_some_and(|found| found == (status.to_owned(), reason.to_owned()))
        })
    };
    let off = until("True", "AsPolicySays");
    let told = updater(&off).unwrap();
    assert_eq!((told.state, told.by), (UpdaterState::Off, UpdaterChoice::Policy));
    assert!(is_switched_off(&device));
    let explained = tenant.plugin(&["explain", "updater-1"], "");
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("OS updater:  switched off (apt"), "{explained}");

    // It is signed once: neither the agent's return nor the device's other changes make it anew.
    let signed = compliance(&off).settings.clone().unwrap();
    device.run(&["sh", "-c", &format!("echo \"os_updater = 'Leave'\" >{LIMITS}")]);
    device.kill_agent();
    let refused = until("False", "RefusedByDevice");
    assert!(!is_switched_off(&device));
    assert!(updater(&refused).unwrap().message.contains("PatchPolicy/everything says Disable"));
    device.run(&["rm", LIMITS]);
    device.kill_agent();
    let off = until("True", "AsPolicySays");
    assert_eq!(compliance(&off).settings.as_ref(), Some(&signed));

    // The policy says nothing of it any more.
    tenant.apply(POLICY);
    let left = tenant.wait_for("updater-1", "it is given back", |device| {
        condition(device).is_none() && updater(device).is_some_and(|told| told.state == UpdaterState::Left)
    });
    assert_ne!(compliance(&left).settings.as_ref(), Some(&signed));
    eventually("its file is gone", || (!is_switched_off(&device)).then_some(())).unwrap();
}

/// What the machine's settings say of its updater: nothing while it is as it was.
pub fn is_switched_off(device: &Device<'_>) -> bool {
    match &*device.run(&["apt-config", "dump", "APT::Periodic::Enable"]) {
        "" => false,
        "APT::Periodic::Enable \"0\";\n" => true,
        other => panic!("{other}"),
    }
}

pub fn updater(device: &DeviceInventory) -> Option<UpdaterReport> {
    device.status.as_ref()?.inventory.as_ref()?.report.as_ref()?.os_updater.clone()
}

/// Status and reason of the condition `OsUpdater`.
pub fn condition(device: &DeviceInventory) -> Option<(String, String)> {
    let conditions = &device.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == "OsUpdater")?;
    Some((found.status.clone(), found.reason.clone()))
}
