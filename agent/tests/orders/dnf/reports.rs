//! What is reported of a device with dnf.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate};
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{Dnf, at, device, world};
use crate::device::serve;
use crate::world::{World, summary, update};

for_each_dnf! {
    security_and_ordinary_updates_are_listed_with_what_their_advisories_say,
    what_the_machine_excludes_is_held_and_never_forced,
    a_repository_that_is_down_is_reported_and_what_is_known_of_it_stays,
    two_versions_of_a_package_are_a_broken_package_manager_but_not_of_a_kernel,
}

// covers CC-1, EM-2
async fn security_and_ordinary_updates_are_listed_with_what_their_advisories_say(world: World) {
    let (_running, report) = world.run().await;
    assert_eq!(report.problems, []);
    assert_eq!(
        (report.os.name.as_str(), report.os.version.as_str(), report.os.arch.as_str()),
        ("rocky", "9.4", "x86_64")
    );
    let names: Vec<&str> = report.updates.iter().map(|u| u.packages[0].name.as_str()).collect();
    let expected =
        ["pw-a", "pw-b", "kernel-core", "pw-bad", "pw-clash", "pw-epoch", "pw-greedy", "pw-needs", "pw-sad", "pw-slow"];
    assert_eq!(names, expected, "worst first");
    assert_eq!((report.counts.security, report.counts.packages), (1, 12));
    let a = update(&report, "pw-a");
    assert_eq!((a.id.as_str(), a.packages[0].candidate.as_str()), ("RHEA-2026:9", "3.0-1"));
    // What 2.0 fixed.
    assert_eq!(
        (a.classification, a.severity, a.cves.as_slice()),
        (Classification::Security, Severity::High, &["CVE-2026-0001".to_owned()][..])
    );
    let b = update(&report, "pw-b");
    assert_eq!(
        (b.id.as_str(), b.classification, b.requires_restart),
        ("RHBA-2026:5", Classification::Updates, Tristate::Yes)
    );
    let epoch = update(&report, "pw-epoch");
    assert_eq!(epoch.id, "pkg:rpm/rocky/pw-epoch@2.0~rc1-1?epoch=1");
    assert_eq!((epoch.classification, epoch.requires_restart), (Classification::Unclassified, Tristate::No));
    assert_eq!(epoch.packages[0].installed, "1:1.0-1");
    assert_eq!(report.restart.reasons, ["kernel-core 5.14.0-1 was installed after the start"]);
    // dnf's own list.
    let own = world.device.chroot("dnf -q -C check-update; test $? = 100");
    // Name, version and repository; dnf 5 has a heading before.
    let upgrades = own.split("Obsoleting").next().unwrap().lines();
    let listed: Vec<&str> = upgrades.filter(|line| line.split_whitespace().count() == 3).collect();
    assert_eq!(listed.len(), names.len(), "{own}");
    // An advisory that suggests a restart says so afterwards, too.
    world.order(1, &report, &["pw-b"]).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let report = world.report_after(1).await;
    assert_eq!(report.restart.required, Tristate::Yes);
    assert!(
        report.restart.reasons.contains(&"pw-b 2.0-1 was installed after the start".to_owned()),
        "{:?}",
        report.restart
    );
}

async fn what_the_machine_excludes_is_held_and_never_forced(world: World) {
    world.device.chroot("dnf -q versionlock add pw-a-1.0-1; echo excludepkgs=pw-b >>/etc/dnf/dnf.conf");
    let (_running, report) = world.run().await;
    let held = ["pw-a", "pw-b", "pw-epoch"].map(|name| update(&report, name).held);
    assert_eq!(held, [true, true, false]);
    world.order(1, &report, &["pw-a", "pw-b", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = vec![(false, failed), (false, failed), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, failed, expected), "{result:#?}");
    assert!(result.actions[0].message.contains("this machine excludes pw-a-3.0-1"), "{}", result.actions[0].message);
    let versions = ["pw-a", "pw-b", "pw-epoch"].map(|name| at(&world, name));
    assert_eq!(versions, ["1.0-1", "1.0-1", "1:2.0~rc1-1"].map(|version| vec![version.to_owned()]));
    assert!(world.device.chroot("dnf -q -C versionlock list").contains("pw-a"), "the lock is still there");
}

async fn a_repository_that_is_down_is_reported_and_what_is_known_of_it_stays(world: World) {
    let served = serve(world.device.root.join("srv/repo")).await;
    device::use_repository(&world.device, &format!("http://{}", served.address), "gpgcheck=0");
    let (mut running, report) = world.run().await;
    assert_eq!(report.problems, []);
    // At the same address: dnf keeps its cache by it.
    served.hide("repodata");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    let codes: Vec<ProblemCode> = report.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [ProblemCode::RepositoryUnavailable], "{:?}", report.problems);
    assert!(report.problems[0].message.starts_with("test: Failed to download metadata"), "{:?}", report.problems);
    assert_eq!((report.counts.updates, report.counts.security), (10, 1), "those of yesterday");
    // Its packages are there still.
    let result = world.carry_out_all(1, Verb::Install, &["pw-b"]).await;
    assert_eq!((result.outcome, at(&world, "pw-b")), (Outcome::Succeeded, vec!["2.0-1".into()]), "{result:#?}");
}

async fn two_versions_of_a_package_are_a_broken_package_manager_but_not_of_a_kernel(world: World) {
    world.device.chroot("rpm -i --nodeps /srv/repo/kernel-core-5.14.0-2.noarch.rpm 2>&1");
    let (mut running, report) = world.run().await;
    assert_eq!(report.problems, []);
    world.device.chroot("rpm -i --nodeps --force /srv/repo/pw-b-2.0-1.noarch.rpm 2>&1");
    let report = world.rescan(&mut running, |report| !report.problems.is_empty()).await;
    assert_eq!(report.problems[0].code, ProblemCode::PackageManagerBroken);
    assert!(report.problems[0].message.contains("two versions of pw-b.noarch"), "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_updateinfo_that_unpacks_to_too_much_hides_no_update() {
    let world = world(Dnf::Four).await;
    let large = world.device.read("srv/updateinfo.xml");
    let large = large.replacen("<description>d<", &format!("<description>{}<", "d".repeat(2 << 20)), 1);
    world.device.write("srv/updateinfo.xml", &large);
    world
        .device
        .chroot("modifyrepo_c --mdtype=updateinfo /srv/updateinfo.xml /srv/repo/repodata; dnf -q makecache --refresh");
    // The real limit would need as much memory of dnf itself.
    let script = include_str!("../../../src/provider/dnf/ask.py");
    let limited = script.replacen("MAX_UPDATEINFO = 1 << 30", "MAX_UPDATEINFO = 1 << 20", 1);
    assert_ne!(script, limited);
    let scan = |script: &str| -> serde_json::Value {
        world.device.write("srv/ask.py", script);
        let text = world.device.chroot("python3 -I -c \"$(cat /srv/ask.py)\" scan 0");
        serde_json::from_str(&text).unwrap()
    };
    let (whole, cut) = (scan(script), scan(&limited));
    assert_eq!(
        (&whole["problems"], &whole["rebooting"]),
        (&serde_json::json!([]), &serde_json::json!(["RHBA-2026:5"]))
    );
    assert_eq!((&cut["updates"], &cut["rebooting"]), (&whole["updates"], &serde_json::json!([])));
    let problem = cut["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("test: ") && problem.contains("File too large"), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advisory_on_which_dnf_5_aborts_hides_no_update() {
    let world = world(Dnf::Five).await;
    let bad = world.device.read("srv/updateinfo.xml").replacen(" id=\"777\"", "", 1);
    world.device.write("srv/updateinfo.xml", &bad);
    world.device.chroot("modifyrepo_c --mdtype=updateinfo /srv/updateinfo.xml /srv/repo/repodata");
    let (_running, report) = world.run().await;
    assert_eq!((report.updates.len(), report.counts.security), (10, 0), "{report:#?}");
    let problem = &report.problems[0];
    assert_eq!(problem.code, ProblemCode::RepositoryUnavailable);
    assert!(problem.message.contains("no advisory counts"), "{problem:?}");
    // Whether one of them suggests a restart is not known.
    assert_eq!(update(&report, "pw-b").requires_restart, Tristate::Unknown);
    world.order(1, &report, &["pw-b"]).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_that_is_an_image_is_left_alone() {
    let world = world(Dnf::Four).await;
    world.device.write("run/ostree-booted", "");
    let _running = world.device.start();
    let report = world.gateway.report(|report| !report.problems.is_empty()).await;
    assert_eq!((report.problems[0].code, report.updates.len()), (ProblemCode::Unsupported, 0));
    assert!(report.problems[0].message.contains("updated as a whole"), "{:?}", report.problems);
}
