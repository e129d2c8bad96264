//! A machine and its copy, each with a session at a gateway of its own: no gateway alone sees both.

use super::gateways::{Gateways, agents_port};
use super::postgres::Postgres;
use crate::copies::{condition, copy_identity};
use crate::world::{Device, World, eventually};

pub fn a_copy_at_another_gateway_is_found(world: &World) {
    let repository = world.repository("apart", &["alpha=1.0", "alpha=1.1"]);
    let (original, copy) = (world.device("apart-1", &repository, &[]), world.device("apart-2", &repository, &[]));
    original.install(&["alpha=1.0"]);
    let postgres = Postgres::start();
    let gateways = Gateways::start(world, &postgres.url());
    let tenant = world.tenant();
    tenant.join(&original);
    tenant.wait_for("apart-1", "it is ready", |device| condition(device, "Ready").is_some_and(|it| it.0 == "True"));

    let go_to = |device: &Device<'_>, replica| {
        let port = agents_port(replica);
        device.run(&["sed", "-i", &format!("s/^\\(gateway = .*\\):[0-9]*/\\1:{port}/"), "/etc/patchwarden/agent.toml"]);
    };
    go_to(&original, 0);
    original.kill_agent();
    let is_at = |device: &Device<'_>, replica| {
        let address = format!("connected to {}:{};", world.gateway_address(), agents_port(replica));
        device.log().contains(&address).then_some(())
    };
    eventually("the machine is at the first gateway", || is_at(&original, 0)).unwrap();
    let alone = condition(&tenant.device("apart-1"), "DuplicateIdentity").map(|it| it.2.to_owned());
    assert_eq!(alone, None, "it is one machine, whichever gateway it is at");

    original.pause_agent();
    // What is copied names the other gateway before the copy starts.
    go_to(&original, 1);
    copy_identity(&original, &copy);
    go_to(&original, 0);
    original.resume_agent();
    eventually("the copy is at the second gateway", || is_at(&copy, 1)).unwrap();
    let found =
        tenant.wait_for("apart-1", "the copy is found", |device| condition(device, "DuplicateIdentity").is_some());
    let (status, reason, message) = condition(&found, "DuplicateIdentity").unwrap();
    assert_eq!((status, reason), ("True", "DuplicateIdentity"));
    for expected in ["apart-1 at ", "apart-2 at "] {
        assert!(message.contains(expected), "{message}");
    }
    tenant.install_everything();
    for device in [&original, &copy] {
        eventually("its own status says so", || {
            device.run(&["patchwarden-agent", "status"]).contains("identity     DuplicateIdentity: ").then_some(())
        })
        .unwrap();
    }
    assert_eq!((original.version("alpha"), tenant.jobs().len()), ("1.0".to_owned(), 0));
    drop(gateways);
}
