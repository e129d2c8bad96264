//! Orders to install.

use std::os::unix::fs::MetadataExt as _;

use patchwarden_protocol::order::Dependencies;
use patchwarden_protocol::report::Classification;
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::{self, Device, Package};
use crate::gateway::{Gateway, Granting};
use crate::world::{World, removable, summary, update};

/// It would refuse what it could not show as it was signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_for_an_older_gateway_has_no_phases() {
    let world = World::new().await;
    world.gateway.set_report_version(3);
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!((result.outcome, result.phases), (Outcome::Succeeded, vec![]));
}

// covers BY-2, BY-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_carried_out_exactly() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    assert_eq!(report.counts.updates, 7, "{report:#?}");
    assert_eq!(report.problems, []);
    let pair = update(&report, "pw-pair-1");
    assert_eq!(pair.id, "pkg:deb/debian/pw-pair@1%3A2.0%2Bx");
    assert_eq!((pair.packages.len(), pair.classification), (2, Classification::Security));
    world.order(1, &report, &["pw-a", "pw-pair-1", "pw-needs"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 3]),
        "{result:#?}\n{}",
        world.device.log()
    );
    for (package, version) in [("pw-a", "2.0"), ("pw-pair-2", "1:2.0+x"), ("pw-new", "1.0"), ("pw-b", "1.0")] {
        assert_eq!(world.device.version(package), format!("install ok installed {version}"));
    }
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0"]);
    let phases = ["Verified", "Simulated", "Downloaded", "Granted", "Installing", "Checking", "Done"];
    assert_eq!(world.gateway.phases(), phases);
    assert!(result.phases.iter().any(|time| time.phase == "Installing"), "{:?}", result.phases);
    assert!(world.gateway.output().contains("Setting up pw-a (2.0)"), "{}", world.gateway.output());
    // The report that shows it came first, and it is the one that the next order is planned from.
    assert_eq!(world.gateway.arrivals().last(), Some(&"result"));
    let after = world.gateway.report(|report| report.counts.updates == 4).await;
    assert_eq!(after.last_sequence, Some(result.sequence));
    world.until_cleaned_up("1-1").await;
    let manual = world.device.chroot("apt-mark showmanual");
    assert!(!manual.contains("pw-new"), "a dependency is not marked as manually installed: {manual}");
    let history = world.device.agent(&["history", "--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&history.stdout).contains(&result.order_digest));
}

// covers BY-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_order_gets_the_recorded_result_and_changes_nothing() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let order = world.gateway.sign(&world.gateway.order(1, &report, &[update(&report, "pw-a")]));
    world.gateway.send(&order).await;
    let first = world.gateway.result(1).await;
    world.gateway.send(&order).await;
    world.gateway.until("second result", |gateway| (gateway.results().len() == 2).then_some(())).await;
    assert_eq!(world.gateway.results()[1], first);
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0"]);
}

// covers BY-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_order_is_refused_with_a_signed_result_and_the_agent_goes_on() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let gateway = &world.gateway;
    let good = |number| gateway.order(number, &report, &[update(&report, "pw-a")]);
    let refused =
        async |count: usize| gateway.until("refusal", |gateway| gateway.results().get(count - 1).cloned()).await;
    gateway.send_raw(b"{".to_vec()).await;
    assert_eq!(summary(&refused(1).await).1, Some(ResultReason::Unreadable));
    let mut unsigned = gateway.sign(&good(1));
    unsigned.order.signatures.clear();
    gateway.send(&unsigned).await;
    assert_eq!(summary(&refused(2).await), (Outcome::Refused, Some(ResultReason::BadSignature), vec![]));
    let mut other = good(1);
    other.device.name = "device-2".into();
    gateway.send(&gateway.sign(&other)).await;
    assert_eq!(summary(&refused(3).await).1, Some(ResultReason::OtherDevice));
    let mut late = good(1);
    late.report_digest = "sha256:old".into();
    let late = gateway.sign(&late);
    gateway.send(&late).await;
    assert_eq!(summary(&refused(4).await).1, Some(ResultReason::ReportMismatch));
    // Its sequence is used up: the same one is answered as before, another of the same number is a replay.
    gateway.send(&late).await;
    assert_eq!(refused(5).await, refused(4).await);
    gateway.send(&gateway.sign(&good(1))).await;
    assert_eq!(summary(&refused(6).await).1, Some(ResultReason::Replayed));
    assert_eq!(world.device.version("pw-a"), "install ok installed 1.0");
    // The refusals made the agent scan again: the report says that sequence 1 is used up.
    let report = gateway.report(|report| report.last_sequence.is_some()).await;
    world.order(2, &report, &["pw-a"]).await;
    assert_eq!(gateway.result(2).await.outcome, Outcome::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_update_does_not_hold_up_the_others() {
    use ResultReason::{PackageManagerFailed, Superseded, WouldDoMore};
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let gateway = &world.gateway;
    let mut order = gateway.order(
        1,
        &report,
        &[
            update(&report, "pw-greedy"),
            update(&report, "pw-a"),
            update(&report, "pw-needs"),
            update(&report, "pw-b"),
            update(&report, "pw-bad"),
            update(&report, "pw-pair-1"),
        ],
    );
    order.dependencies = Dependencies::Strict;
    order.actions[3].artifacts_digest = "sha256:other".into();
    order.actions[5].packages.iter_mut().for_each(|package| package.candidate = "1:2.5".into());
    gateway.send(&gateway.sign(&order)).await;
    let result = gateway.result(1).await;
    let expected =
        [Some(WouldDoMore), None, Some(WouldDoMore), Some(Superseded), Some(PackageManagerFailed), Some(Superseded)];
    let expected = expected.map(|reason| (reason.is_none(), reason)).to_vec();
    assert_eq!(summary(&result), (Outcome::Failed, Some(WouldDoMore), expected), "{result:#?}");
    assert!(result.actions[0].message.contains("remove pw-victim"), "{}", result.actions[0].message);
    assert!(result.actions[2].message.contains("install pw-new 1.0"), "{}", result.actions[2].message);
    let bad = &result.actions[4].message;
    assert!(bad.contains("pw-bad is at 2.0, not complete") && bad.contains("post-installation"), "{bad}");
    assert_eq!(world.device.version("pw-a"), "install ok installed 2.0");
    assert_eq!(world.device.version("pw-victim"), "install ok installed 1.0");
    assert_eq!(world.device.version("pw-bad"), "install ok half-configured 2.0", "dpkg says no more of it");
    // The broken package manager is in the report.
    let report = gateway.report(|report| !report.problems.is_empty()).await;
    assert!(report.problems[0].message.contains("pw-bad"), "{:?}", report.problems);
}

// covers BY-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_would_only_do_more_is_refused_whole() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-greedy"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]));
    assert!(result.message.contains("remove pw-victim"), "{}", result.message);
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked for a grant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_grant_leaves_everything_as_it_was() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Deny);
    world.order(1, &report, &["pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Withdrawn, Some(ResultReason::Denied), vec![]));
    assert!(result.message.contains("the policy is suspended"));
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_grant_an_order_expires() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    let mut order = world.gateway.order(1, &report, &[update(&report, "pw-a")]);
    order.not_after = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(8);
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Expired, Some(ResultReason::Expired), vec![]));
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_that_change_during_the_simulation_are_looked_at_again() {
    let world = World::new().await;
    world.device.chroot("mv /usr/bin/apt-get /usr/bin/apt-get.real");
    let once = "case \"$*\" in *' -s '*pw-b*) [ -e /srv/done ] || { touch /srv/done; dpkg -i /srv/repo/pool/pw-b_2.0*.deb >/dev/null; };; esac";
    world.device.write("usr/bin/apt-get", &format!("#!/bin/sh\n{once}\nexec /usr/bin/apt-get.real \"$@\"\n"));
    world.device.chroot("chmod 755 /usr/bin/apt-get");
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a", "pw-b"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!(result.actions[1].message, "was at this version already");
    assert_eq!(world.configured("pw-b"), ["1.0", "2.0"]);
    let again = |(_, text): &(String, String)| text == "packages changed during the simulation: simulating again";
    assert!(world.gateway.progress().iter().any(again), "{:?}", world.gateway.progress());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_changed_by_another_program_void_the_simulation() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    world.order(1, &report, &["pw-a", "pw-b"]).await;
    world.gateway.until("grant request", |gateway| gateway.nonces().first().cloned()).await;
    world.device.chroot("apt-get -q -y install pw-b");
    world.gateway.set_granting(Granting::Grant);
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]));
    assert_eq!(result.actions[1].message, "was at this version already");
    assert_eq!(world.configured("pw-b"), ["1.0", "2.0"]);
    let report = world.report_after(1).await;
    let back = ["pw-a", "pw-b"].map(|name| removable(&report, name).is_some());
    assert_eq!(back, [true, false], "only what the order has installed can be taken back by one");
    assert!(world.gateway.progress().iter().any(|(_, text)| text.contains("simulating again")));
}

// covers RM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_are_downloaded_by_apts_own_unprivileged_user_and_verified() {
    let world = World::new().await;
    let served = world.serve().await;
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a", "pw-needs"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let downloaded = world.gateway.progress().into_iter().find(|(phase, _)| phase == "Downloaded").unwrap().1;
    assert!(downloaded.starts_with("downloaded 3 files, "), "{downloaded}");
    assert!(!world.device.log().contains("unsandboxed"));
    // What comes from the network is not what the index says: nothing is installed.
    served.spoil("pool/pw-b_2.0_all.deb");
    let report = world.gateway.report(|report| report.last_sequence == Some(result.sequence)).await;
    world.order(2, &report, &["pw-b"]).await;
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed), "{result:#?}");
    assert_eq!(world.configured("pw-b"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_noticed_before_anything_is_done() {
    let world = World::new().await;
    world.device.shrink_state("24m");
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a"]).await;
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Failed, Some(ResultReason::DiskFull), vec![(false, Some(ResultReason::DiskFull))]);
    assert_eq!(summary(&result), expected);
    assert!(result.message.contains("are needed"), "{}", result.message);
    assert_eq!(world.gateway.nonces().len(), 0);
    assert_eq!(world.device.version("pw-a"), "install ok installed 1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_prints_without_end_fills_no_disk_also_while_the_agent_is_dead() {
    // 300 MB in all.
    const FLOOD: &str = "touch /var/log/flood.begun; for i in $(seq 100); do head -c 3000000 /dev/zero | tr '\\0' y; sleep 0.05; \
        done; echo last words";
    let flooding = Package { postinst: FLOOD, ..Package::new("pw-flood", "2.0") };
    let world = World::of(&[Package::new("pw-flood", "1.0")], &[flooding]).await;
    world.device.shrink_state("100m");
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-flood"]).await;
    world.until_on_device("var/log/flood.begun").await;
    running.kill();
    world.gateway.until("its end", |_| world.device.processes().is_empty().then_some(())).await;
    assert_eq!(world.device.version("pw-flood"), "install ok installed 2.0", "its output did no harm");
    let output = world.device.root.join("var/lib/patchwarden/orders/1-1/attempt-1/output");
    let about = std::fs::metadata(output).unwrap();
    assert!(about.len() > 300_000_000, "all of it was printed: {} bytes", about.len());
    assert!(about.blocks() * 512 < 10_000_000, "{} bytes are kept", about.blocks() * 512);
    running = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(result.message, "the package manager printed more than is kept: of that only the end is told");
    let told = world.gateway.output();
    assert!(told.ends_with("last words\n") && told.len() <= 64 << 10, "{}", &told[told.len() - 100..]);
    running.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_hangs_is_reported_and_not_stopped_and_the_next_one_waits() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    let mut order = world.gateway.order(1, &report, &[update(&report, "pw-slow")]);
    order.limit_seconds = 2;
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::TimedOut));
    world.until_on_device("var/log/slow.begun").await;
    let report = world.gateway.report(|report| report.last_sequence == Some(result.sequence)).await;
    world.order(2, &report, &["pw-b"]).await;
    world.gateway.waits_for_another().await;
    world.device.let_go();
    let result = world.gateway.result(2).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert!(world.device.has("var/log/slow.done"), "the second install began after the first had ended");
    assert_eq!(world.device.version("pw-slow"), "install ok installed 2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_comes_during_another_waits_and_is_judged_afterwards() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.order(2, &report, &["pw-a"]).await;
    let waits = |(_, text): &(String, String)| text == "waits until order 1-1 has ended";
    world.gateway.until("waiting", |gateway| gateway.progress().iter().any(waits).then_some(())).await;
    world.device.let_go();
    let second = world.gateway.result(2).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    // It was planned from a report that the first one made an old one.
    assert_eq!(summary(&second), (Outcome::Refused, Some(ResultReason::ReportMismatch), vec![]));
    assert_eq!(world.configured("pw-a"), ["1.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_file_that_was_changed_is_kept() {
    let base = device::base_root();
    let conf = |version| Package { conffile: true, ..Package::new("pw-conf", version) };
    let world = World { device: Device::new(&base, &[conf("1.0")], &[conf("2.0")]), gateway: Gateway::start().await };
    assert!(world.join().await.contains("Joined"));
    world.device.write("etc/pw-conf.conf", "mine\n");
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-conf"]).await;
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    assert_eq!(world.device.version("pw-conf"), "install ok installed 2.0");
    assert_eq!(world.device.read("etc/pw-conf.conf"), "mine\n");
    assert_eq!(world.device.read("etc/pw-conf.conf.dpkg-dist"), "2.0", "the new one lies beside it");
}
