//! Whatever dies in the middle of an order.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::Outcome;

use super::{at, device, world};
use crate::device::SLOW;
use crate::gateway::taking_back;
use crate::rpm::{Rpm, build};
use crate::world::{removable, summary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_in_the_middle_of_an_install_completes_it() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-a", "pw-z"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert_eq!(at(&world, "pw-slow"), ["1.0-1", "2.0-1"], "what rpm leaves");
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 3]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    for (package, version) in [("pw-slow", "2.0-1"), ("pw-a", "3.0-1"), ("pw-z", "2.0-1")] {
        assert_eq!(at(&world, package), [version], "{package}");
    }
    // Its script did not come to its end the first time; those of the others ran once.
    assert_eq!(world.configured("pw-slow"), ["1.0-1", "2.0-1", "2.0-1"]);
    assert_eq!(
        (world.configured("pw-a"), world.configured("pw-z")),
        (lines(["1.0-1", "3.0-1"]), lines(["1.0-1", "2.0-1"]))
    );
    assert!(world.device.has("var/log/slow.done"));
    assert_eq!(world.report_after(1).await.problems, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_while_an_update_is_taken_back_completes_it() {
    let world = world().await;
    let (mut running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-epoch"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let report = world.report_after(1).await;
    // As the old version's script did not do when it was installed.
    build(&world.device, &[Rpm { post: SLOW, ..Rpm::new("pw-a", "1.0-1") }]);
    device::index(&world.device);
    let before = removable(&report, "pw-a").unwrap().artifacts_digest.clone();
    let is_new = |r: &_| removable(r, "pw-a").is_some_and(|entry| entry.artifacts_digest != before);
    let report = world.rescan(&mut running, is_new).await;
    let actions = ["pw-a", "pw-epoch"].map(|name| taking_back(removable(&report, name).unwrap()));
    let order = world.gateway.order_of(2, &report, actions.to_vec());
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert_eq!(at(&world, "pw-a"), ["1.0-1", "3.0-1"], "what rpm leaves");
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(2).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-epoch")), (vec!["1.0-1".into()], vec!["1:1.0-1".into()]));
}

fn lines<const N: usize>(versions: [&str; N]) -> Vec<String> {
    versions.map(str::to_owned).to_vec()
}
