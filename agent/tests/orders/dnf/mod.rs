//! Orders on a real dnf 4 and a real dnf 5, the same on both as far as they can be; rpm's database is the judge.

/// Each of these tests on each dnf.
macro_rules! for_each_dnf {
    ($($name:ident),* $(,)?) => {
        mod four {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(crate::dnf::world(crate::dnf::Dnf::Four).await).await;
                }
            )*
        }

        mod five {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(crate::dnf::world(crate::dnf::Dnf::Five).await).await;
                }
            )*
        }
    };
}

mod crashes;
mod device;
mod installs;
mod paths;
mod reports;
mod repositories;

pub(crate) use self::device::{index, use_repository};
use crate::gateway::Gateway;
use crate::world::World;

/// Which dnf a device has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dnf {
    Four,
    Five,
}

impl Dnf {
    fn of(world: &World) -> Self {
        if world.device.has("usr/bin/dnf5") { Self::Five } else { Self::Four }
    }

    /// What differs.
    fn either<T>(self, four: T, five: T) -> T {
        match self {
            Self::Four => four,
            Self::Five => five,
        }
    }
}

/// A joined device of rpm packages whose agent does not run yet.
pub(crate) async fn world(dnf: Dnf) -> World {
    // The first one builds all packages.
    let device = tokio::task::spawn_blocking(move || device::make(dnf)).await.unwrap();
    let world = World { device, gateway: Gateway::start().await };
    let joined = world.join().await;
    assert!(joined.starts_with("Joined as acme/device-1"), "{joined}");
    world
}

/// The newest version of a package; nothing where it is not there.
fn at(world: &World, package: &str) -> Vec<String> {
    device::versions(&world.device).remove(package).unwrap_or_default()
}
