//! Orders to install, to download and to take back.

use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::device::{index, use_repository};
use super::{at, world};
use crate::device::serve;
use crate::gateway::taking_back;
use crate::restarts;
use crate::rpm::{Rpm, build, start, versions};
use crate::world::{removable, summary, update};

// covers BY-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_carried_out_exactly() {
    let world = world().await;
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a", "pw-needs", "kernel-default", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 4]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}\n{}", world.gateway.output(), world.device.log());
    // Before any other program uses the package manager.
    world.until_cleaned_up("1-1").await;
    let found = versions(&world.device);
    for (package, versions) in [
        ("pw-a", &["3.0-1"][..]),
        ("pw-needs", &["2.0-1"]),
        ("pw-new", &["1.0-1"]),
        ("kernel-default", &["5.14.0-1", "5.14.1-1"]),
        ("pw-epoch", &["1:2.0~rc1-1"]),
        ("pw-b", &["1.0-1"]),
    ] {
        assert_eq!(found[package], versions, "{package}");
    }
    assert!(!found.contains_key("pw-suggested"), "what is only recommended does not come");
    let phases = ["Verified", "Simulated", "Downloaded", "Granted", "Installing", "Checking", "Done"];
    assert_eq!(world.gateway.phases(), phases);
    // The machine's own history has it, with the repository, and what came as a dependency is known as one.
    let history = world.device.read("var/log/zypp/history");
    assert!(history.contains("|install|pw-a|3.0-1|noarch|") && history.contains("|test|"), "{history}");
    assert!(world.device.read("var/lib/zypp/AutoInstalled").lines().any(|line| line == "pw-new"));
    let after = world.report_after(1).await;
    assert_eq!((after.counts.updates, after.counts.security, after.problems.len()), (8, 0, 0), "{after:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_requires_a_restart_is_followed_by_one_after_which_none_is_required() {
    let world = world().await;
    // For which libzypp itself leaves a file in /run.
    build(&world.device, &[Rpm { tags: "Provides: installhint(reboot-needed)\n", ..Rpm::new("pw-z", "2.1-1") }]);
    index(&world.device);
    world.device.own_boot();
    world.device.restart_by("restart");
    let (mut running, report) = world.run().await;
    assert_eq!((report.restart.required, &report.restart.reasons[..]), (Tristate::No, &[][..]));
    let order = restarts::order(&world, 1, &report, &["pw-a", "pw-z"], restarts::rule(RestartWhen::Never));
    let result = world.restart_for(&mut running, &order).await;
    restarts::assert_installed(&result, 0, "");
    assert_eq!(result.restart_required, Tristate::Yes, "libzypp says so");
    let report = world.report_after(1).await;
    let needed = "/run/reboot-needed is there: what zypper installed asks for it";
    assert_eq!((report.restart.required, &report.restart.reasons[..]), (Tristate::Yes, &[needed.to_owned()][..]));
    let (mut boot, mut calls) = (report.boot_id.clone(), 0);
    // For what was there already; for what an advisory suggests; for a kernel.
    for (number, names) in [(2, &["pw-epoch"][..]), (3, &["pw-b", "pw-conf"]), (4, &["kernel-default"])] {
        let report = world.report_after(number - 1).await;
        let order = restarts::order(&world, number, &report, names, restarts::rule(RestartWhen::IfRequired));
        let result = world.restart_for(&mut running, &order).await;
        restarts::assert_installed(&result, 1, "");
        calls += 1;
        assert_eq!((result.restart_required, world.calls()), (Tristate::No, calls), "{names:?}: {result:#?}");
        let after = world.report_after(number).await;
        assert_eq!((after.restart.required, &after.restart.reasons[..]), (Tristate::No, &[][..]), "{names:?}");
        assert_ne!(std::mem::replace(&mut boot, after.boot_id.clone()), after.boot_id, "{names:?}");
    }
    // What asks for none is followed by none.
    let report = world.report_after(4).await;
    let order = restarts::order(&world, 5, &report, &["pw-needs"], restarts::rule(RestartWhen::IfRequired));
    restarts::assert_installed(&world.restart_for(&mut running, &order).await, 0, "");
    assert_eq!(world.calls(), calls);
    let found = versions(&world.device);
    assert_eq!((&found["pw-z"][..], &found["pw-b"][..]), (&["2.1-1".to_owned()][..], &["2.0-1".to_owned()][..]));
    assert_eq!(found["kernel-default"], ["5.14.0-1", "5.14.1-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_fetched_once_verified_and_installed_without_the_network() {
    let world = world().await;
    let served = serve(world.device.root.join("srv/repo")).await;
    use_repository(&world.device, &format!("http://{}", served.address), "gpgcheck=0");
    let (_running, _) = world.run().await;
    served.spoil("pw-b-2.0-1.noarch.rpm");
    let result = world.carry_out_all(1, Verb::Install, &["pw-b"]).await;
    assert_eq!(summary(&result).1, Some(ResultReason::DownloadFailed), "{result:#?}");
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked for a grant");
    served.mend();
    let result = world.carry_out_all(2, Verb::Download, &["pw-a", "pw-needs"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(at(&world, "pw-a"), ["1.0-1"]);
    let report = world.report_after(2).await;
    assert!(update(&report, "pw-a").downloaded && !update(&report, "pw-b").downloaded);
    let asked = served.requests("pw-a-3.0-1.noarch.rpm");
    let requests =
        || ["pw-a-3.0-1", "pw-needs-2.0-1", "pw-new-1.0-1"].map(|n| served.requests(&format!("{n}.noarch.rpm")));
    let before = requests();
    let result = world.carry_out_all(3, Verb::Install, &["pw-a", "pw-needs"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!((asked > 0, requests()), (true, before), "what is here is not fetched again");
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-new")), (vec!["3.0-1".into()], vec!["1.0-1".into()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_steps_are_taken_in_three_orders() {
    let world = world().await;
    let step = |version, before| Rpm { tags: before, ..Rpm::new("pw-b", version) };
    // Each needs the one before it to be installed, and is all that the repository offers then.
    for (number, package) in [
        step("2.1-1", "Conflicts: pw-b < 1.0-1\n"),
        step("2.2-1", "Conflicts: pw-b < 2.1-1\n"),
        step("2.3-1", "Conflicts: pw-b < 2.2-1\n"),
    ]
    .into_iter()
    .enumerate()
    {
        build(&world.device, &[package]);
        index(&world.device);
        let number = u32::try_from(number).unwrap() + 1;
        let mut running = world.device.start();
        let version = package.version;
        let is = |report: &patchwarden_protocol::report::Report| {
            report.updates.iter().any(|u| u.packages.iter().any(|p| p.name == "pw-b" && p.candidate == version))
        };
        let report = world.gateway.report(is).await;
        world.order(number, &report, &["pw-b"]).await;
        let result = world.gateway.result(number).await;
        assert_eq!((result.outcome, at(&world, "pw-b")), (Outcome::Succeeded, vec![version.to_owned()]), "{result:#?}");
        running.kill();
    }
    assert_eq!(world.configured("pw-b"), ["1.0-1", "2.1-1", "2.2-1", "2.3-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_file_that_was_changed_by_hand_stays() {
    let world = world().await;
    world.device.write("etc/pw-conf.conf", "by hand\n");
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-conf"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(at(&world, "pw-conf"), ["2.0-1"]);
    assert_eq!(world.device.read("etc/pw-conf.conf"), "by hand\n");
    assert_eq!(world.device.read("etc/pw-conf.conf.rpmnew"), "2.0\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_transaction_is_waited_for() {
    let world = world().await;
    let (_running, report) = world.run().await;
    let mut other = start(&world.device, "ZYPP_LOCK_TIMEOUT=120 zypper -n --no-refresh install pw-slow=2.0-1");
    world.until_on_device("var/log/slow.begun").await;
    world.order(1, &report, &["pw-epoch"]).await;
    world.gateway.waits_for_another().await;
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert!(world.device.has("var/log/slow.done"), "the order began after the other transaction had ended");
    assert!(other.wait().unwrap().success());
    assert_eq!((at(&world, "pw-slow"), at(&world, "pw-epoch")), (vec!["2.0-1".into()], vec!["1:2.0~rc1-1".into()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_order_installed_is_taken_back_exactly() {
    let world = world().await;
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-epoch", "kernel-default"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(result.restart_required, Tristate::Yes, "for the kernel");
    let report = world.report_after(1).await;
    assert!(removable(&report, "kernel-default").is_none(), "a kernel is never taken back");
    let actions = ["pw-a", "pw-epoch"].map(|name| taking_back(removable(&report, name).unwrap()));
    let result = world.carry_out(2, actions.to_vec()).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-epoch")), (vec!["1.0-1".into()], vec!["1:1.0-1".into()]));
    assert_eq!(world.configured("pw-a"), ["1.0-1", "3.0-1", "1.0-1"]);
    assert_eq!(update(&world.report_after(2).await, "pw-a").packages[0].candidate, "3.0-1", "it is offered again");
}
