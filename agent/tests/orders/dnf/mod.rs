//! Orders on a real dnf; rpm's database is the judge.

mod crashes;
mod device;
mod installs;
mod reports;
mod repositories;

pub(crate) use self::device::use_repository;
use crate::gateway::Gateway;
use crate::world::World;

/// A joined device of rpm packages whose agent does not run yet.
pub(crate) async fn world() -> World {
    // The first one builds all packages.
    let device = tokio::task::spawn_blocking(device::make).await.unwrap();
    let world = World { device, gateway: Gateway::start().await };
    let joined = world.join().await;
    assert!(joined.starts_with("Joined as acme/device-1"), "{joined}");
    world
}

/// The newest version of a package; nothing where it is not there.
fn at(world: &World, package: &str) -> Vec<String> {
    device::versions(&world.device).remove(package).unwrap_or_default()
}
