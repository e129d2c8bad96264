//! Orders to install, to download and to take back.

use patchwarden_protocol::order::{Dependencies, RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::device::{KERNEL, Rpm, build, index, start, use_repository};
use super::{Dnf, at};
use crate::device::serve;
use crate::gateway::taking_back;
use crate::restarts;
use crate::room::small_boot;
use crate::rpm::sign;
use crate::world::{World, removable, summary, update};

for_each_dnf! {
    an_order_is_carried_out_exactly,
    after_the_restart_that_an_update_requires_none_is_required_any_more,
    one_bad_update_does_not_hold_up_the_others,
    a_conflict_of_files_is_found_before_the_grant_and_does_not_hold_up_the_others,
    only_what_is_signed_by_the_repositorys_key_is_installed,
    files_are_fetched_once_verified_and_installed_without_the_network,
    the_oldest_kernel_goes_as_the_machine_says,
    a_version_that_is_gone_is_superseded,
    what_the_solver_finds_no_way_for_is_told_in_its_words,
    another_programs_transaction_is_waited_for,
    what_an_order_installed_is_taken_back_exactly,
}

// covers BY-11
async fn an_order_is_carried_out_exactly(world: World) {
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-a", "pw-needs", "kernel-core", "pw-epoch"]).await;
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Succeeded, None, vec![(true, None); 4]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}\n{}", world.gateway.output(), world.device.log());
    // Before any other program uses the package manager.
    world.until_cleaned_up("1-1").await;
    let found = super::device::versions(&world.device);
    for (package, versions) in [
        ("pw-a", &["3.0-1"][..]),
        ("pw-needs", &["2.0-1"]),
        ("pw-new", &["1.0-1"]),
        ("kernel-core", &["5.14.0-1", "5.14.0-2"]),
        ("pw-epoch", &["1:2.0~rc1-1"]),
        ("pw-b", &["1.0-1"]),
    ] {
        assert_eq!(found[package], versions, "{package}");
    }
    assert!(!found.contains_key("pw-suggested"), "what is only recommended does not come");
    let phases = ["Verified", "Simulated", "Downloaded", "Granted", "Installing", "Checking", "Done"];
    assert_eq!(world.gateway.phases(), phases);
    // The machine's own history has it, and what came as a dependency is known as one.
    let history = world.device.chroot("dnf history info last; dnf -q repoquery --userinstalled 2>/dev/null");
    assert!(
        history.contains(" upgrade pw-a-0:3.0-1.noarch pw-needs-0:2.0-1.noarch kernel-core-0:5.14.0-2.noarch"),
        "{history}"
    );
    let words: Vec<&str> = history.split_whitespace().collect();
    let kernel = Dnf::of(&world).either("kernel-core-5.14.0-2.noarch", "kernel-core-0:5.14.0-2.noarch");
    assert!(words.windows(2).any(|pair| pair == ["Install", kernel]), "{history}");
    let is_user_installed = |name: &str| history.lines().any(|line| line == name);
    assert!(is_user_installed("pw-needs-0:2.0-1.noarch") && !is_user_installed("pw-new-0:1.0-1.noarch"), "{history}");
    let after = world.report_after(1).await;
    assert_eq!((after.counts.updates, after.counts.security, after.problems.len()), (6, 0, 0), "{after:#?}");
}

async fn after_the_restart_that_an_update_requires_none_is_required_any_more(world: World) {
    world.device.own_boot();
    world.device.restart_by("restart");
    let (mut running, report) = world.run().await;
    assert_eq!((report.restart.required, &report.restart.reasons[..]), (Tristate::No, &[][..]));
    let order = restarts::order(&world, 1, &report, &["pw-b"], restarts::rule(RestartWhen::Never));
    let result = world.restart_for(&mut running, &order).await;
    restarts::assert_installed(&result, 0, "");
    assert_eq!(result.restart_required, Tristate::Yes, "its advisory suggests one");
    let report = world.report_after(1).await;
    assert_eq!(report.restart.reasons, ["pw-b 2.0-1 was installed after the start"]);
    let order = restarts::order(&world, 2, &report, &["kernel-core"], restarts::rule(RestartWhen::IfRequired));
    let result = world.restart_for(&mut running, &order).await;
    restarts::assert_installed(&result, 1, "");
    assert_eq!((result.restart_required, world.calls()), (Tristate::No, 1));
    let report = world.report_after(2).await;
    assert_eq!((report.restart.required, report.restart.reasons), (Tristate::No, vec![]));
}

async fn one_bad_update_does_not_hold_up_the_others(world: World) {
    use ResultReason::{PackageManagerFailed, Superseded, WouldDoMore};
    let (_running, report) = world.run().await;
    let names = ["pw-greedy", "pw-a", "pw-needs", "pw-b", "pw-bad", "pw-epoch", "pw-sad"];
    let updates: Vec<_> = names.iter().map(|name| update(&report, name)).collect();
    let mut order = world.gateway.order(1, &report, &updates);
    order.dependencies = Dependencies::Strict;
    order.actions[3].artifacts_digest = "sha256:other".into();
    order.actions[5].packages[0].candidate = "1:2.5-1".into();
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    let expected = [
        Some(WouldDoMore),
        None,
        Some(WouldDoMore),
        Some(Superseded),
        Some(PackageManagerFailed),
        Some(Superseded),
        None,
    ];
    let expected = expected.map(|reason| (reason.is_none(), reason)).to_vec();
    assert_eq!(
        summary(&result),
        (Outcome::Failed, Some(WouldDoMore), expected),
        "{result:#?}\n{}",
        world.gateway.output()
    );
    let messages: Vec<&str> = result.actions.iter().map(|action| action.message.as_str()).collect();
    assert!(messages[0].contains("remove pw-victim"), "{messages:?}");
    assert!(messages[2].contains("install pw-new 1.0-1"), "{messages:?}");
    let error = Dnf::of(&world).either("error: ", "");
    assert!(
        messages[4].starts_with(&format!("pw-bad is at 1.0-1: {error}%prein(pw-bad-2.0-1.noarch) scriptlet failed")),
        "{messages:?}"
    );
    // A script that fails after the files are there does not undo the update; it is not kept secret either.
    assert!(messages[6].contains("%post(pw-sad-2.0-1.noarch) scriptlet failed, exit status 3"), "{messages:?}");
    let versions = ["pw-a", "pw-victim", "pw-needs", "pw-b", "pw-bad", "pw-sad"].map(|name| at(&world, name));
    assert_eq!(
        versions,
        ["3.0-1", "1.0-1", "1.0-1", "1.0-1", "1.0-1", "2.0-1"].map(|version| vec![version.to_owned()])
    );
}

async fn a_conflict_of_files_is_found_before_the_grant_and_does_not_hold_up_the_others(world: World) {
    let (_running, report) = world.run().await;
    world.order(1, &report, &["pw-clash"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).1, Some(ResultReason::PackageManagerFailed));
    assert!(result.message.contains("conflicts with file from package pw-b-1.0-1.noarch"), "{}", result.message);
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked for a grant");
    world.carry_out_all(2, Verb::Install, &["pw-a", "pw-clash", "pw-epoch"]).await;
    let result = world.gateway.result(2).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    let expected = vec![(true, None), (false, failed), (true, None)];
    assert_eq!(summary(&result), (Outcome::Failed, failed, expected), "{result:#?}");
    let versions = ["pw-a", "pw-clash", "pw-epoch"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "1.0-1", "1:2.0~rc1-1"].map(|version| vec![version.to_owned()]));
}

async fn only_what_is_signed_by_the_repositorys_key_is_installed(world: World) {
    let signed =
        [("vendor", "pw-a-3.0"), ("vendor", "pw-needs-2.0"), ("vendor", "pw-new-1.0"), ("other", "pw-epoch-2.0")];
    sign(&world.device, &signed);
    index(&world.device);
    use_repository(&world.device, "file:///srv/repo", "gpgcheck=1\ngpgkey=file:///srv/key.asc");
    let (_running, _) = world.run().await;
    let dnf = Dnf::of(&world);
    let not_signed =
        dnf.either("Package pw-b-2.0-1.noarch.rpm is not signed", "pw-b-2.0-1.noarch.rpm: The package is not signed.");
    let by_another = dnf.either(
        "Public key for pw-epoch-2.0~rc1-1.noarch.rpm is not installed",
        "pw-epoch-2.0~rc1-1.noarch.rpm) from repo \"test\" has failed: Import of the key didn't help, wrong key?",
    );
    for (number, name, words) in [(1, "pw-b", not_signed), (2, "pw-epoch", by_another)] {
        let result = world.carry_out_all(number, Verb::Install, &[name]).await;
        assert_eq!(summary(&result).1, Some(ResultReason::PackageManagerFailed), "{result:#?}");
        assert!(result.message.contains(words), "{}", result.message);
    }
    assert_eq!(world.gateway.nonces().len(), 1, "what is not signed is noticed before the grant");
    // Another key's package stops the whole transaction: the other update is tried once more without it.
    let result = world.carry_out_all(3, Verb::Install, &["pw-a", "pw-epoch"]).await;
    let reasons: Vec<_> = result.actions.iter().map(|action| action.reason).collect();
    assert_eq!(reasons, [None, Some(ResultReason::PackageManagerFailed)], "{result:#?}");
    let result = world.carry_out_all(4, Verb::Install, &["pw-needs", "pw-b"]).await;
    assert_eq!(result.actions.iter().map(|action| action.done).collect::<Vec<_>>(), [true, false], "{result:#?}");
    let versions = ["pw-a", "pw-needs", "pw-b", "pw-epoch"].map(|name| at(&world, name));
    assert_eq!(versions, ["3.0-1", "2.0-1", "1.0-1", "1:1.0-1"].map(|version| vec![version.to_owned()]));
}

async fn files_are_fetched_once_verified_and_installed_without_the_network(world: World) {
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
    served.hide("pw-a-3.0-1.noarch.rpm");
    let report = world.report_after(2).await;
    assert!(update(&report, "pw-a").downloaded && !update(&report, "pw-b").downloaded);
    let asked = served.requests("pw-a-3.0-1.noarch.rpm");
    let result = world.carry_out_all(3, Verb::Install, &["pw-a", "pw-needs"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!((asked, served.requests("pw-a-3.0-1.noarch.rpm")), (1, 1));
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-new")), (vec!["3.0-1".into()], vec!["1.0-1".into()]));
}

async fn the_oldest_kernel_goes_as_the_machine_says(world: World) {
    world.device.chroot("sed -i s/installonly_limit=3/installonly_limit=2/ /etc/dnf/dnf.conf");
    world.device.chroot("rpm -i --nodeps /srv/repo/kernel-core-5.14.0-2.noarch.rpm 2>&1");
    build(&world.device, &[Rpm { tags: KERNEL, ..Rpm::new("kernel-core", "5.14.0-3") }]);
    index(&world.device);
    // There is no room for one more, and none is needed.
    small_boot(&world.device, "5.14.0-1");
    let (_running, report) = world.run().await;
    assert_eq!(update(&report, "kernel-core").packages[0].installed, "5.14.0-2", "the newest");
    world.order(1, &report, &["kernel-core"]).await;
    let result = world.gateway.result(1).await;
    world.device.chroot("umount /boot");
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(at(&world, "kernel-core"), ["5.14.0-2", "5.14.0-3"]);
}

async fn a_version_that_is_gone_is_superseded(world: World) {
    let (_running, report) = world.run().await;
    build(&world.device, &[Rpm::new("pw-b", "2.1-1")]);
    world.device.chroot("rm /srv/repo/pw-b-2.0-1.noarch.rpm");
    index(&world.device);
    // The agent's own next look at the repository, which only another program's may be ahead of.
    world.device.chroot("dnf -q makecache --refresh");
    world.order(1, &report, &["pw-b"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
    assert_eq!(at(&world, "pw-b"), ["1.0-1"]);
}

async fn what_the_solver_finds_no_way_for_is_told_in_its_words(world: World) {
    build(&world.device, &[Rpm { tags: "Requires: pw-absent\n", ..Rpm::new("pw-b", "2.0-2") }]);
    index(&world.device);
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-b"]).await;
    let failed = Some(ResultReason::PackageManagerFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(true, None), (false, failed)]), "{result:#?}");
    let words = "nothing provides pw-absent needed by pw-b-2.0-2.noarch";
    assert!(result.actions[1].message.contains(words), "{}", result.actions[1].message);
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-b")), (vec!["3.0-1".into()], vec!["1.0-1".into()]));
}

async fn another_programs_transaction_is_waited_for(world: World) {
    let (_running, report) = world.run().await;
    let mut other = start(&world.device, "dnf -y upgrade pw-slow-2.0-1.noarch");
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

async fn what_an_order_installed_is_taken_back_exactly(world: World) {
    let (_running, _) = world.run().await;
    let result = world.carry_out_all(1, Verb::Install, &["pw-a", "pw-epoch", "kernel-core"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let report = world.report_after(1).await;
    assert!(removable(&report, "kernel-core").is_none(), "a kernel is never taken back");
    let actions = ["pw-a", "pw-epoch"].map(|name| taking_back(removable(&report, name).unwrap()));
    let result = world.carry_out(2, actions.to_vec()).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!((at(&world, "pw-a"), at(&world, "pw-epoch")), (vec!["1.0-1".into()], vec!["1:1.0-1".into()]));
    assert_eq!(world.configured("pw-a"), ["1.0-1", "3.0-1", "1.0-1"]);
    assert_eq!(update(&world.report_after(2).await, "pw-a").packages[0].candidate, "3.0-1", "it is offered again");
}
