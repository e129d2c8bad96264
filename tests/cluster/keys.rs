//! New keys in the place of old ones, while a machine is off.

use patchwarden_protocol::result::Outcome;

use crate::Test;
use crate::crash::compliance;
use crate::world::{Device, World, eventually};

pub const TESTS: &[Test] = &[(
    "a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders",
    a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders,
)];

const STATE: &str = "/var/lib/patchwarden";

fn a_machine_that_is_off_while_all_keys_are_replaced_follows_and_takes_orders(world: &World) {
    let repository = world.repository("keys", &["alpha=1.0", "alpha=1.1"]);
    let [off, on] = ["keys-off", "keys-on"].map(|name| {
        let device = world.device(name, &repository, &[]);
        device.install(&["alpha=1.0"]);
        device
    });
    let tenant = world.tenant();
    for device in [&off, &on] {
        tenant.join(device);
        tenant.wait_for(&device.name, "it has reported", has_reported);
    }
    let pinned =
        |device: &Device<'_>| ["root.pub", "ca.pem"].map(|name| device.run(&["cat", &format!("{STATE}/{name}")]));
    let before = pinned(&off);
    off.pause_agent();

    let said = rotate(world, &["order", "root", "ca"]);
    assert!(said.0 && said.1.contains("root SHA256:") && said.1.matches("ca   SHA256:").count() == 2, "{said:?}");
    let refused = rotate(world, &["ca"]);
    assert!(!refused.0 && refused.1.contains("a CA is being replaced until"), "{refused:?}");
    // Twice: whoever is off has more than one link to follow.
    assert!(rotate(world, &["root"]).0);
    eventually("the machine that is on has followed", || (pinned(&on)[0] != before[0]).then_some(())).unwrap();
    let now = pinned(&on);
    assert!(now[0] != before[0] && now[1].starts_with(&before[1]) && now[1].len() > before[1].len());
    // Whoever joins now pins the same.
    let new = world.device("keys-new", &repository, &[]);
    tenant.join(&new);
    assert_eq!(pinned(&new), now);
    assert_eq!(pinned(&off), before, "it is off");

    // Its session is gone: it has to connect again, by what it pins.
    world.program("kill", "gateway");
    world.program("start", "gateway");
    off.resume_agent();
    tenant.install_everything();
    for device in [&off, &on] {
        let done = tenant.wait_for(&device.name, "what is approved was installed", |device| {
            compliance(device).last.iter().any(|past| past.outcome == Some(Outcome::Succeeded))
        });
        assert_eq!(compliance(&done).last.len(), 1, "by the first order: {:?}", compliance(&done).last);
        assert_eq!((device.version("alpha"), device.upgrades("alpha")), ("1.1".to_owned(), 1));
        eventually("it pins what counts", || (pinned(device) == now).then_some(())).unwrap();
    }
    // What is pinned is enough for a machine that starts anew.
    off.kill_agent();
    eventually("it is back", || off.log_since_kill()?.contains("connected to").then_some(())).unwrap();
}

fn has_reported(device: &patchwarden::api::DeviceInventory) -> bool {
    let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
    inventory.is_some_and(|inventory| inventory.online && inventory.report.is_some())
}

/// `kubectl patchwarden rotate`: whether it has done it, and what it says.
fn rotate(world: &World, what: &[&str]) -> (bool, String) {
    let output = world.run_plugin(&[&["rotate"], what].concat());
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}
