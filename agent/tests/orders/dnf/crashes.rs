//! Whatever dies in the middle of an order.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{at, device};
use crate::gateway::taking_back;
use crate::world::{World, removable, summary};

for_each_dnf! {
    a_machine_that_dies_in_the_middle_of_an_install_completes_it,
    a_machine_that_dies_while_an_update_is_taken_back_completes_it,
    a_repair_leaves_alone_what_somebody_else_left_in_two_versions,
    what_fails_in_the_rehearsal_after_a_crash_does_not_undo_what_was_completed,
}

async fn a_machine_that_dies_in_the_middle_of_an_install_completes_it(world: World) {
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-a", "pw-epoch"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert_eq!(at(&world, "pw-slow"), ["1.0-1", "2.0-1"], "what rpm leaves");
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 3]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    for (package, version) in [("pw-slow", "2.0-1"), ("pw-a", "3.0-1"), ("pw-epoch", "1:2.0~rc1-1")] {
        assert_eq!(at(&world, package), [version], "{package}");
    }
    // Its script did not come to its end the first time.
    assert_eq!(world.configured("pw-slow"), ["1.0-1", "2.0-1", "2.0-1"]);
    assert!(world.device.has("var/log/slow.done"));
    assert_eq!(world.report_after(1).await.problems, []);
    assert_eq!(world.device.chroot("dnf -q -C check 2>&1 || true"), "");
}

async fn a_machine_that_dies_while_an_update_is_taken_back_completes_it(world: World) {
    let (mut running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-epoch"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let report = world.report_after(1).await;
    // As the old version's script did not do when it was installed.
    let slow = [device::Rpm { post: device::SLOW, ..device::Rpm::new("pw-a", "1.0-1") }];
    device::build(&world.device, &slow);
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
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 2]),
        "{result:#?}\n{}",
        world.device.log()
    );
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-epoch")), (vec!["1.0-1".into()], vec!["1:1.0-1".into()]));
    // Never forward again, and its script came to its end.
    assert_eq!(world.configured("pw-a"), ["1.0-1", "3.0-1", "1.0-1", "1.0-1"]);
    assert!(world.device.has("var/log/slow.done"));
    assert_eq!(world.device.chroot("dnf -q -C check 2>&1 || true"), "");
}

async fn a_repair_leaves_alone_what_somebody_else_left_in_two_versions(world: World) {
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-epoch"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    world.device.chroot("rpm -i --nodeps --force /srv/repo/pw-b-2.0-1.noarch.rpm 2>&1");
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    assert_eq!((at(&world, "pw-slow"), at(&world, "pw-epoch")), (vec!["2.0-1".into()], vec!["1:2.0~rc1-1".into()]));
    assert_eq!(at(&world, "pw-b"), ["1.0-1", "2.0-1"], "as it was left");
    assert_eq!(world.configured("pw-b"), ["1.0-1", "2.0-1"]);
    let problems = world.report_after(1).await.problems;
    assert!(problems.len() == 1 && problems[0].message.contains("two versions of pw-b.noarch"), "{problems:?}");
}

async fn what_fails_in_the_rehearsal_after_a_crash_does_not_undo_what_was_completed(world: World) {
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-a"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert_eq!(at(&world, "pw-a"), ["1.0-1"], "its turn had not come");
    // A file of the other update belongs to another package now.
    let squatter = device::Rpm { file: "/usr/share/pw-a-1/3.0", ..device::Rpm::new("pw-squatter", "1.0-1") };
    device::build(&world.device, &[squatter]);
    world.device.chroot("rpm -i --nodeps /srv/repo/pw-squatter-1.0-1.noarch.rpm 2>&1; rm /srv/repo/pw-squatter*");
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = (Outcome::Failed, failed, vec![(true, None), (false, failed)]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    assert!(result.actions[1].message.contains("conflicts with file from package pw-squatter"), "{result:#?}");
    assert_eq!((at(&world, "pw-slow"), at(&world, "pw-a")), (vec!["2.0-1".into()], vec!["1.0-1".into()]));
}
