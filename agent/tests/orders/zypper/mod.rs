//! Orders on a real zypper; rpm's database is the judge.

mod crashes;
mod device;
mod installs;
mod refusals;
mod reports;

pub(crate) use self::device::{index, use_repository};
use crate::gateway::Gateway;
use crate::rpm::versions;
use crate::world::World;

/// A joined device of rpm packages whose agent does not run yet.
pub(crate) async fn world() -> World {
    // The first one builds all packages.
    let device = tokio::task::spawn_blocking(device::make).await.unwrap();
    let world = World { device, gateway: Gateway::start().await };
    let joined = world.join().await;
    assert!(joined.starts_with("Joined as acme/device-1"), "{joined}");
    let settings = world.device.read("etc/patchwarden/agent.toml");
    world.device.write("etc/patchwarden/agent.toml", &format!("preview_zypper = true\n{settings}"));
    world
}

/// The versions of a package; nothing where it is not there.
fn at(world: &World, package: &str) -> Vec<String> {
    versions(&world.device).remove(package).unwrap_or_default()
}
