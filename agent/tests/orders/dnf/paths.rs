//! Updates one after the other, and what stands in their way on the machine itself.

use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::at;
use super::device::{Rpm, build, index};
use crate::world::{World, summary, update};

for_each_dnf! {
    three_steps_are_taken_in_three_orders,
    a_configuration_file_that_was_changed_by_hand_stays,
    a_file_system_that_is_full_stops_only_what_goes_there,
}

// covers CL-9
async fn three_steps_are_taken_in_three_orders(world: World) {
    let step = |version, before| Rpm { tags: before, ..Rpm::new("pw-b", version) };
    // Each needs the one before it to be installed, and is all that the repository offers then.
    let steps = [
        step("2.1-1", "Conflicts: pw-b < 1.0-1\n"),
        step("2.2-1", "Conflicts: pw-b < 2.1-1\n"),
        step("2.3-1", "Conflicts: pw-b < 2.2-1\n"),
    ];
    for (number, package) in (1..).zip(steps) {
        build(&world.device, &[package]);
        index(&world.device);
        let mut running = world.device.start();
        let is_offered = |report: &Report| {
            let mut packages = report.updates.iter().flat_map(|update| &update.packages);
            packages.any(|change| change.name == "pw-b" && change.candidate == package.version)
        };
        let report = world.gateway.report(is_offered).await;
        world.order(number, &report, &["pw-b"]).await;
        let result = world.gateway.result(number).await;
        assert_eq!(
            (result.outcome, at(&world, "pw-b")),
            (Outcome::Succeeded, vec![package.version.to_owned()]),
            "{result:#?}"
        );
        running.kill();
    }
    assert_eq!(world.configured("pw-b"), ["1.0-1", "2.1-1", "2.2-1", "2.3-1"]);
}

async fn a_configuration_file_that_was_changed_by_hand_stays(world: World) {
    let of = |version| Rpm { file: "/etc/pw-conf.conf", ..Rpm::new("pw-conf", version) };
    build(&world.device, &[of("1.0-1"), of("2.0-1")]);
    world.device.chroot("rpm -i --nodeps /srv/repo/pw-conf-1.0-1.noarch.rpm 2>&1");
    index(&world.device);
    world.device.write("etc/pw-conf.conf", "by hand\n");
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-conf"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(at(&world, "pw-conf"), ["2.0-1"]);
    assert_eq!(world.device.read("etc/pw-conf.conf"), "by hand\n");
    assert_eq!(world.device.read("etc/pw-conf.conf.rpmnew"), "2.0\n");
}

async fn a_file_system_that_is_full_stops_only_what_goes_there(world: World) {
    let big = Rpm { file: "/usr/share/pw-full/big", kilobytes: 3000, ..Rpm::new("pw-b", "2.2-1") };
    build(&world.device, &[big]);
    index(&world.device);
    world.device.chroot("mkdir -p /usr/share/pw-full; mount -t tmpfs -o size=1m tmpfs /usr/share/pw-full");
    let (_running, report) = world.run().await;
    assert_eq!(update(&report, "pw-b").packages[0].candidate, "2.2-1");
    world.order(1, &report, &["pw-a", "pw-b", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    world.device.chroot("umount /usr/share/pw-full");
    let full = Some(ResultReason::DiskFull);
    let expected = vec![(true, None), (false, full), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, full, expected), "{result:#?}\n{}", world.gateway.output());
    assert!(result.message.contains("more space"), "{}", result.message);
    assert!(result.message.contains("on the /usr/share/pw-full filesystem"), "{}", result.message);
    let versions = ["pw-a", "pw-b", "pw-epoch"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "1.0-1", "1:2.0~rc1-1"].map(|version| vec![version.to_owned()]));
}
