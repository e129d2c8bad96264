//! Versions of source packages, which advisories name.

use patchwarden_protocol::report::Software;

use crate::device::Package;
use crate::world::{World, update};

fn version_of(software: &Software, name: &str) -> Option<String> {
    software.packages.iter().find(|package| package.name == name).unwrap().source_version.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_version_is_told_and_not_to_an_older_gateway() {
    let package = |name, version, control| Package { control, ..Package::new(name, version) };
    let world = World::of(
        &[
            package("pw-map", "2:1.02.185-2", "Source: pw-lvm (2.03.16-2)\n"),
            package("pw-rebuilt", "1.0-1+b1", "Source: pw-rebuilt (1.0-1)\n"),
            Package::new("pw-a", "1.0"),
            Package::new("pw-next", "1.0-1"),
        ],
        &[
            package("pw-map", "2:1.02.186-1", "Source: pw-lvm (2.03.17-1)\n"),
            Package::new("pw-rebuilt", "1.0-2"),
            Package::new("pw-a", "2.0"),
            package("pw-next", "1.0-2+b1", "Source: pw-next (1.0-2)\n"),
        ],
    )
    .await;
    let told =
        [("pw-map", Some("2.03.16-2")), ("pw-rebuilt", Some("1.0-1")), ("pw-a", None), ("pw-next", Some("1.0-1"))];
    world.gateway.set_report_version(1);
    let (mut running, report) = world.run().await;
    for (name, _) in told {
        assert_eq!(update(&report, name).source_installed, None, "{name}");
    }
    world.gateway.until("list", |gateway| gateway.software().is_some().then_some(())).await;
    let before = world.gateway.software().unwrap();
    assert!(before.packages.iter().all(|package| package.source_version.is_none()));
    running.kill();

    world.gateway.set_report_version(2);
    let _running = world.device.start();
    let report = world.gateway.report(|report| report.updates.iter().any(|it| it.source_installed.is_some())).await;
    for (name, source) in told {
        assert_eq!(update(&report, name).source_installed.as_deref(), source, "{name}");
    }
    assert_eq!(update(&report, "pw-map").id, "pkg:deb/debian/pw-lvm@2.03.17-1");
    let digest = report.software_digest.clone();
    world.gateway.until("list", |gateway| (gateway.software_digest() == digest).then_some(())).await;
    let software = world.gateway.software().unwrap();
    assert_eq!(version_of(&software, "pw-map").as_deref(), Some("2.03.16-2"));
    assert_eq!(version_of(&software, "pw-rebuilt").as_deref(), Some("1.0-1"));
    assert_eq!(version_of(&software, "pw-a").as_deref(), Some("1.0"), "also where it is the package's own");
    assert_eq!(version_of(&software, "pw-next").as_deref(), Some("1.0-1"));
    assert!(world.gateway.changes().is_empty(), "no package has changed");
}
