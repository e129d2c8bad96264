//! What is reported of a device with zypper.

use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate};
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{at, device, world};
use crate::world::{summary, update};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_and_ordinary_updates_are_listed_with_what_their_advisories_say() {
    let world = world().await;
    let (_running, report) = world.run().await;
    assert_eq!(report.problems, []);
    let os = &report.os;
    assert_eq!((os.name.as_str(), os.version.as_str(), os.arch.as_str()), ("opensuse-leap", "15.6", "x86_64"));
    let mut names: Vec<&str> = report.updates.iter().map(|u| u.packages[0].name.as_str()).collect();
    assert_eq!(names[0], "pw-a", "worst first");
    names.sort_unstable();
    let expected = [
        "kernel-default",
        "pw-a",
        "pw-b",
        "pw-bad",
        "pw-clash",
        "pw-conf",
        "pw-epoch",
        "pw-greedy",
        "pw-needs",
        "pw-sad",
        "pw-slow",
        "pw-z",
    ];
    assert_eq!(names, expected);
    assert_eq!((report.counts.security, report.counts.packages), (1, 14));
    let a = update(&report, "pw-a");
    assert_eq!((a.id.as_str(), a.packages[0].candidate.as_str()), ("openSUSE-2026-9", "3.0-1"));
    // What 2.0 fixed.
    assert_eq!(
        (a.classification, a.severity, a.cves.as_slice()),
        (Classification::Security, Severity::High, &["CVE-2026-0001".to_owned()][..])
    );
    assert_eq!((a.origin.as_str(), a.size_bytes > 1000), ("test", true));
    assert_eq!(a.published.unwrap().to_string(), "2026-11-03T12:46:40Z");
    let b = update(&report, "pw-b");
    assert_eq!(
        (b.id.as_str(), b.classification, b.requires_restart),
        ("openSUSE-2026-5", Classification::Updates, Tristate::Yes)
    );
    let epoch = update(&report, "pw-epoch");
    assert_eq!(epoch.id, "pkg:rpm/opensuse-leap/pw-epoch@2.0~rc1-1?epoch=1");
    assert_eq!((epoch.classification, epoch.requires_restart), (Classification::Unclassified, Tristate::No));
    assert_eq!(epoch.packages[0].installed, "1:1.0-1");
    // As if it had been installed while the machine ran.
    assert_eq!(report.restart.reasons, ["kernel-default 5.14.0-1 was installed after the start"]);
    // An advisory that suggests a restart says so afterwards, too; and so does what libzypp leaves.
    world.device.write("run/reboot-needed", "");
    world.order(1, &report, &["pw-b"]).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let report = world.report_after(1).await;
    assert_eq!(report.restart.required, Tristate::Yes);
    for reason in
        ["pw-b 2.0-1 was installed after the start", "/run/reboot-needed is there: what zypper installed asks for it"]
    {
        assert!(report.restart.reasons.contains(&reason.to_owned()), "{:?}", report.restart);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_locked_is_held_and_never_forced() {
    let world = world().await;
    world.device.chroot("zypper addlock pw-a >/dev/null");
    let (_running, report) = world.run().await;
    let held = ["pw-a", "pw-b", "pw-epoch"].map(|name| update(&report, name).held);
    assert_eq!(held, [true, false, false]);
    let a = update(&report, "pw-a");
    assert_eq!((a.packages[0].candidate.as_str(), a.severity), ("3.0-1", Severity::High));
    world.order(1, &report, &["pw-a", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed), (true, None)]), "{result:#?}");
    assert!(result.actions[0].message.contains("remove lock to allow"), "{}", result.actions[0].message);
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-epoch")), (vec!["1.0-1".into()], vec!["1:2.0~rc1-1".into()]));
    assert!(world.device.chroot("ZYPP_LOCK_TIMEOUT=120 zypper locks").contains("pw-a"), "the lock is still there");
}

// covers MW-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_vendors_packages_are_not_offered_and_not_installed() {
    let world = world().await;
    let foreign = crate::rpm::Rpm { tags: "Vendor: Other\n", ..crate::rpm::Rpm::new("pw-b", "3.0-1") };
    crate::rpm::build(&world.device, &[foreign]);
    device::index(&world.device);
    let (_running, report) = world.run().await;
    let b = update(&report, "pw-b");
    assert_eq!(b.packages[0].candidate, "2.0-1");
    let mut order = world.gateway.order(1, &report, &[b, update(&report, "pw-a")]);
    order.actions[0].packages[0].candidate = "3.0-1".into();
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed), (true, None)]), "{result:#?}");
    assert_eq!(result.actions[0].message, "pw-b 3.0-1 is another vendor's than the installed one");
    assert_eq!(at(&world, "pw-b"), ["1.0-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_is_down_is_reported_and_what_is_known_of_it_stays() {
    let world = world().await;
    let (mut running, report) = world.run().await;
    assert_eq!(report.problems, []);
    device::use_repository(&world.device, "http://127.0.0.1:9", "gpgcheck=0");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    let codes: Vec<ProblemCode> = report.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [ProblemCode::RepositoryUnavailable], "{:?}", report.problems);
    assert!(report.problems[0].message.starts_with("Problem retrieving files from 'Test'."), "{:?}", report.problems);
    assert_eq!(report.counts.updates, 12, "those of yesterday");
    // One of which nothing is known does not keep the other's updates from being installed.
    device::use_repository(&world.device, "file:///srv/repo", "gpgcheck=0");
    let second = "[second]\nname=Second\nenabled=1\nbaseurl=http://127.0.0.1:9/x\ntype=rpm-md\ngpgcheck=0\n";
    world.device.write("etc/zypp/repos.d/second.repo", second);
    let is = |report: &_| matches!(report, patchwarden_protocol::report::Report { problems, .. } if problems.iter().any(|p| p.message.contains("second")));
    let report = world.rescan(&mut running, is).await;
    world.order(1, &report, &["pw-b"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!((result.outcome, at(&world, "pw-b")), (Outcome::Succeeded, vec!["2.0-1".into()]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_of_a_package_are_a_broken_package_manager_but_not_of_a_kernel() {
    let world = world().await;
    world.device.chroot("rpm -i --nodeps /srv/repo/kernel-default-5.14.1-1.noarch.rpm 2>&1");
    let (mut running, report) = world.run().await;
    assert_eq!(report.problems, []);
    world.device.chroot("rpm -i --nodeps --force /srv/repo/pw-b-2.0-1.noarch.rpm 2>&1");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken);
    assert!(report.problems[0].message.contains("two versions of pw-b.noarch"), "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_setting_a_machine_with_zypper_is_not_supported() {
    let world = world().await;
    let settings = world.device.read("etc/patchwarden/agent.toml").replace("preview_zypper = true\n", "");
    world.device.write("etc/patchwarden/agent.toml", &settings);
    let _running = world.device.start();
    let report = world.gateway.report(|report| !report.problems.is_empty()).await;
    assert_eq!((report.problems[0].code, report.updates.len()), (ProblemCode::Unsupported, 0));
    assert!(report.problems[0].message.contains("`preview_zypper = true`"), "{:?}", report.problems);
}
