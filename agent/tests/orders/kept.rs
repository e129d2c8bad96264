//! What apt keeps back: each is told as what it is, and never forced; apt's own simulation is the judge.

use std::collections::BTreeSet;

use patchwarden_protocol::report::{HeldReason, ProblemCode, Report};
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::Package;
use crate::world::{World, summary, update};

/// Each at its first version, with these offered.
async fn world(offered: &[Package]) -> World {
    let names: BTreeSet<&'static str> = offered.iter().map(|package| package.name).collect();
    let installed: Vec<Package> = names.into_iter().map(|name| Package::new(name, "1.0")).collect();
    World::of(&installed, offered).await
}

fn pin(package: &str, what: &str, priority: i32) -> String {
    format!("Package: {package}\nPin: {what}\nPin-Priority: {priority}\n\n")
}

/// What apt would bring: name and version.
fn brought(world: &World) -> Vec<(String, String)> {
    let own = world.device.chroot("apt-get -s dist-upgrade");
    let lines = own.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_once(" ["));
    let versions = lines.filter_map(|(name, rest)| Some((name, rest.split_once(" (")?.1.split(' ').next()?)));
    versions.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// What is told: each package with its version, and as what that is held back.
fn told(report: &Report) -> Vec<(&str, &str, Option<HeldReason>)> {
    let updates = report.updates.iter().map(|update| (update, update.held.then_some(update.held_reason)));
    let mut all: Vec<_> = updates
        .flat_map(|(update, held)| {
            update.packages.iter().map(move |it| (it.name.as_str(), it.candidate.as_str(), held))
        })
        .collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pin_of_its_own_keeps_back_is_told_and_never_forced() {
    let new = |name| Package::new(name, "2.0");
    let cannot = Package { control: "Depends: pw-nowhere\n", ..new("pw-cannot") };
    let offered =
        [new("pw-free"), new("pw-kept"), Package::new("pw-never", "1.5"), new("pw-never"), cannot, new("pw-wanted")];
    let world = world(&offered).await;
    world.device.offer_in("srv/other", "Other", "unstable", &[Package::new("pw-free", "3.0")]);
    world.device.write("etc/apt/sources.list.d/other.list", "deb [trusted=yes] file:/srv/other unstable main\n");
    let pins = [
        pin("pw-kept", "version 1.0", 1001),
        pin("pw-[n]ever", "version 2.0", -1),
        // Without its pin it could not be installed, which is no matter of the others.
        pin("pw-cannot", "version 1.*", 990),
        pin("pw-wanted", "version 2.0", 900),
        // Nobody waits for what a source as a whole is not asked for.
        pin("*", "release o=Other", 10),
    ];
    world.device.write("etc/apt/preferences.d/own", &pins.concat());
    world.gateway.set_report_version(4);
    let (mut running, report) = world.run().await;
    let apt = brought(&world);
    let by_apt: Vec<_> = apt.iter().map(|(name, version)| (name.as_str(), version.as_str(), None)).collect();
    assert_eq!(by_apt, [("pw-free", "2.0", None), ("pw-never", "1.5", None), ("pw-wanted", "2.0", None)]);
    let pinned = |reason| ["pw-cannot", "pw-kept", "pw-never"].map(|name| (name, "2.0", Some(reason)));
    let sorted = |kept: [(&'static str, &'static str, Option<HeldReason>); 3]| {
        let mut all = [by_apt.as_slice(), kept.as_slice()].concat();
        all.sort_unstable();
        all
    };
    assert_eq!(told(&report), sorted(pinned(HeldReason::Hold)), "to a gateway that knows no more");
    assert!(report.updates.iter().all(|update| !update.unauthenticated), "{report:#?}");
    world.gateway.set_report_version(5);
    let report = world.rescan(&mut running, |report| update(report, "pw-kept").held_reason == HeldReason::Pinned).await;
    assert_eq!(told(&report), sorted(pinned(HeldReason::Pinned)));
    assert!(report.updates.iter().all(|update| update.unauthenticated), "by [trusted=yes]: {report:#?}");
    assert_eq!(report.problems, []);
    assert_eq!(update(&report, "pw-kept").origin, update(&report, "pw-wanted").origin, "as apt would write it");

    // An order that was made before the pin was.
    let result = world.order_of(1, &report, &["pw-kept", "pw-wanted"]).await;
    let limited = Some(ResultReason::LimitedByDevice);
    assert_eq!(summary(&result), (Outcome::Failed, limited, vec![(false, limited), (true, None)]), "{result:#?}");
    assert_eq!(["pw-kept", "pw-wanted"].map(|name| world.at(name)), ["1.0", "2.0"]);
    assert!(result.actions[0].message.contains("by them apt takes 1.0"), "{result:#?}");

    world.device.chroot("rm /etc/apt/preferences.d/own");
    let report = world.rescan(&mut running, |report| report.updates.iter().all(|update| !update.held)).await;
    let apt = brought(&world);
    assert_eq!(
        told(&report),
        apt.iter().map(|(name, version)| (name.as_str(), version.as_str(), None)).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_on_what_cannot_be_installed_hides_nothing() {
    let cannot = Package { control: "Depends: pw-nowhere\n", ..Package::new("pw-cannot", "2.0") };
    let world = world(&[Package::new("pw-free", "2.0"), cannot, Package::new("pw-kept", "2.0")]).await;
    world.device.chroot("apt-mark hold pw-cannot pw-kept");
    let (_running, report) = world.run().await;
    let held = Some(HeldReason::Hold);
    assert_eq!(told(&report), [("pw-cannot", "2.0", held), ("pw-free", "2.0", None), ("pw-kept", "2.0", held)]);
    assert_eq!(report.problems, []);
    assert_eq!(brought(&world), [("pw-free".to_owned(), "2.0".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_whose_policy_cannot_be_asked_says_so_and_lacks_nothing_else() {
    let world = world(&[Package::new("pw-free", "2.0"), Package::new("pw-kept", "2.0")]).await;
    world.device.write("etc/apt/preferences.d/own", &pin("pw-kept", "version 1.0", 1001));
    world.device.chroot("mv /usr/bin/apt-cache /usr/bin/apt-cache.real");
    world.device.write("usr/bin/apt-cache", "#!/bin/sh\n[ \"$1\" = policy ] && exit 7\nexec apt-cache.real \"$@\"\n");
    world.device.chroot("chmod 755 /usr/bin/apt-cache");
    let (_running, report) = world.run().await;
    assert_eq!(told(&report), [("pw-free", "2.0", None)]);
    assert_eq!(report.problems.iter().map(|it| it.code).collect::<Vec<_>>(), [ProblemCode::RepositoryUnavailable]);
    assert!(report.problems[0].message.starts_with("what apt keeps back is not known"), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_phased_is_told_and_waits_for_its_turn() {
    let some = ["pw-1", "pw-2", "pw-3", "pw-4", "pw-5", "pw-6"];
    let names = [&["pw-all", "pw-free", "pw-none"], some.as_slice()].concat();
    let installed: Vec<Package> = names.iter().map(|name| Package::new(name, "1.0")).collect();
    let phased = |name, control| Package { control, ..Package::new(name, "2.0") };
    let world = World::of(&installed, &[]).await;
    let half = some.map(|name| phased(name, "Phased-Update-Percentage: 50\n"));
    let others = [
        phased("pw-all", "Phased-Update-Percentage: 100\n"),
        phased("pw-none", "Phased-Update-Percentage: 0\n"),
        Package::new("pw-free", "2.0"),
    ];
    world.device.offer_in("srv/updates", "Test", "stable-updates", &others);
    world.device.offer_in("srv/updates", "Test", "stable-updates", &half);
    world
        .device
        .write("etc/apt/sources.list.d/updates.list", "deb [trusted=yes] file:/srv/updates stable-updates main\n");
    // By this it is settled whose turn it is; in what it takes for a chroot apt phases nothing.
    world.device.write("etc/machine-id", "5b2d5a3c1f0e4d6a9b8c7d6e5f4a3b2c\n");
    world.device.write("etc/apt/apt.conf.d/90phasing", "Dir::Bin::ischroot \"/bin/false\";\n");
    let (mut running, report) = world.run().await;
    let apt = brought(&world);
    let is_brought = |name: &str| apt.iter().any(|(it, _)| it == name);
    assert_eq!(["pw-all", "pw-free", "pw-none"].map(is_brought), [true, true, false], "{apt:?}");
    assert!(some.iter().any(|name| is_brought(name)) && !some.iter().all(|name| is_brought(name)), "{apt:?}");
    let expected = |name: &&'static str| (*name, "2.0", (!is_brought(name)).then_some(HeldReason::Phased));
    let mut all: Vec<_> = names.iter().map(expected).collect();
    all.sort_unstable();
    assert_eq!(told(&report), all);
    assert_eq!(report.problems, []);

    // An order that was made before the vendor went back to nobody.
    let result = world.order_of(1, &report, &["pw-free", "pw-none"]).await;
    let limited = Some(ResultReason::LimitedByDevice);
    assert_eq!(summary(&result), (Outcome::Failed, limited, vec![(true, None), (false, limited)]), "{result:#?}");
    assert!(result.actions[1].message.contains("is being phased"), "{result:#?}");
    // One whose turn it is comes as any other does.
    let first = some.into_iter().find(|name| is_brought(name)).unwrap();
    let report = world.report_after(1).await;
    let result = world.order_of(2, &report, &[first]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(["pw-free", "pw-none", first].map(|name| world.at(name)), ["2.0", "1.0", "2.0"]);

    // The owner's choice.
    let always = "Dir::Bin::ischroot \"/bin/false\";\nAPT::Get::Always-Include-Phased-Updates \"true\";\n";
    world.device.write("etc/apt/apt.conf.d/90phasing", always);
    let report = world.rescan(&mut running, |report| report.updates.iter().all(|update| !update.held)).await;
    let result = world.order_of(3, &report, &["pw-none"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.at("pw-none"), "2.0");
}
