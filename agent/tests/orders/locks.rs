//! Another program that has the package manager for longer than an order waits: it is named, and neither stopped nor broken in on.

use std::process::Child;

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::CONFIGURATION;
use crate::dnf::{self, Dnf};
use crate::rpm::{self, start};
use crate::world::{World, summary};
use crate::zypper;

/// An order for `pw-b` beside this other program, which has begun what [`crate::device::SLOW`] lets it end.
async fn is_waited_for_and_named(world: &World, mut other: Child, lock: &str, name: &str) {
    let configuration = world.device.read(CONFIGURATION);
    world.device.write(CONFIGURATION, &format!("lock_wait_seconds = 2\n{configuration}"));
    let (_running, _) = world.run().await;
    let begun = std::time::Instant::now();
    let result = world.carry_out_all(1, Verb::Install, &["pw-b"]).await;
    let locked = Some(ResultReason::Locked);
    assert_eq!(summary(&result), (Outcome::Failed, locked, vec![(false, locked)]), "{result:#?}");
    assert!(begun.elapsed().as_secs() >= 2, "it was waited for");
    let message = &result.message;
    assert!(message.contains(&format!("{lock} is held by process ")), "{message}");
    assert!(message.ends_with(&format!("({name}); it is not stopped")), "{message}");
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked whether it may begin");
    assert!(other.try_wait().unwrap().is_none() && !world.device.has("var/log/slow.done"), "it goes on");
    world.device.let_go();
    assert!(other.wait().unwrap().success());
    let result = world.carry_out_all(2, Verb::Install, &["pw-b"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_dpkgs_lock_for_too_long_is_named_and_not_stopped() {
    let world = World::new().await;
    let other = start(&world.device, "DEBIAN_FRONTEND=noninteractive apt-get -q -y install pw-slow=2.0");
    world.until_on_device("var/log/slow.begun").await;
    is_waited_for_and_named(&world, other, "/var/lib/dpkg/lock-frontend", "apt-get").await;
    assert_eq!((world.at("pw-slow"), world.at("pw-b")), ("2.0".into(), "2.0".into()));
}

async fn by_rpm(world: World) {
    let other = start(&world.device, "rpm -U --nodeps /srv/repo/pw-slow-2.0-1.noarch.rpm");
    world.until_on_device("var/log/slow.begun").await;
    is_waited_for_and_named(&world, other, ".rpm.lock", "rpm").await;
    assert_eq!(["pw-slow", "pw-b"].map(|name| rpm::versions(&world.device)[name].clone()), [["2.0-1"]; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_rpms_lock_for_too_long_is_named_by_dnf_4_and_not_stopped() {
    by_rpm(dnf::world(Dnf::Four).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_rpms_lock_for_too_long_is_named_by_dnf_5_and_not_stopped() {
    by_rpm(dnf::world(Dnf::Five).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_rpms_lock_for_too_long_is_named_by_zypper_and_not_stopped() {
    by_rpm(zypper::world().await).await;
}
