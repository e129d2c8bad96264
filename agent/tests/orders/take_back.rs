//! What can be taken back, and orders to do so.

use patchwarden_protocol::order::{Action, PackageChange, Verb};
use patchwarden_protocol::report::{Tristate, Update};
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::device::Package;
use crate::gateway::{action, taking_back};
use crate::world::{World, removable, summary, update};

/// The action that takes `update` back, once it is installed.
fn back(update: &Update, artifacts_digest: &str) -> Action {
    let packages = update
        .packages
        .iter()
        .map(|PackageChange { name, arch, installed, candidate }| PackageChange {
            name: name.clone(),
            arch: arch.clone(),
            installed: candidate.clone(),
            candidate: installed.clone(),
        })
        .collect();
    let artifacts_digest = artifacts_digest.to_owned();
    Action { verb: Verb::Uninstall, update: update.id.clone(), packages, artifacts_digest }
}

// covers RM-2, EM-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_order_installed_is_taken_back_exactly() {
    let world = World::new().await;
    let (_running, report) = world.run().await;
    assert_eq!(report.removable, []);
    world.carry_out_all(1, Verb::Install, &["pw-b", "pw-a", "pw-pair-1"]).await;
    let report = world.report_after(1).await;
    let ids: Vec<&str> = report.removable.iter().map(|entry| entry.id.as_str()).collect();
    let expected = ["pkg:deb/debian/pw-pair@1%3A2.0%2Bx", "pkg:deb/debian/pw-a@2.0", "pkg:deb/debian/pw-b@2.0"];
    assert_eq!(ids, expected, "the latest first");
    let pair = removable(&report, "pw-pair-2").unwrap();
    assert_eq!((pair.packages[1].installed.as_str(), pair.packages[1].candidate.as_str()), ("1:2.0+x", "1:1.0"));
    let actions = ["pw-pair-1", "pw-a"].map(|name| taking_back(removable(&report, name).unwrap()));
    let result = world.carry_out(2, actions.to_vec()).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert!(result.actions.iter().all(|action| action.verb == Verb::Uninstall));
    for (package, version) in [("pw-pair-1", "1:1.0"), ("pw-pair-2", "1:1.0"), ("pw-a", "1.0"), ("pw-b", "2.0")] {
        assert_eq!(world.at(package), version, "{package}");
    }
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0", "1.0"]);
    assert_eq!(world.gateway.nonces().len(), 2, "a grant for each order");
    assert!(world.gateway.progress().iter().any(|(_, text)| text == "3 packages to earlier versions"));
    let report = world.report_after(2).await;
    assert!(removable(&report, "pw-a").is_none() && removable(&report, "pw-b").is_some(), "{:#?}", report.removable);
    assert_eq!(update(&report, "pw-a").packages[0].candidate, "2.0", "it is offered again");
    assert_eq!(world.device.chroot("apt-mark showhold; cat /etc/apt/preferences.d/* 2>/dev/null || true"), "");
    let result = world.carry_out_all(3, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded);
    assert!(removable(&world.report_after(3).await, "pw-a").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_offered_any_more_or_was_changed_cannot_be_taken_back() {
    let world = World::new().await;
    let (mut running, _) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a", "pw-b"]).await;
    let before = world.report_after(1).await;
    assert_eq!(before.removable.len(), 2);
    world.device.chroot("mv /srv/repo/pool/pw-a_1.0_all.deb /srv/repo/aside");
    world.device.offer(&[]);
    let report = world.rescan(&mut running, |report| report.removable.len() == 1).await;
    assert!(removable(&report, "pw-b").is_some());
    let result = world.carry_out(2, vec![taking_back(removable(&before, "pw-a").unwrap())]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::Superseded), vec![]), "{result:#?}");
    // It was not forgotten.
    world.device.chroot("mv /srv/repo/aside /srv/repo/pool/pw-a_1.0_all.deb");
    world.device.offer(&[]);
    world.rescan(&mut running, |report| report.removable.len() == 2).await;
    // Another version under the same name is not what the order names.
    let mut other = taking_back(removable(&before, "pw-a").unwrap());
    other.artifacts_digest = "sha256:other".into();
    let result = world.carry_out(3, vec![other]).await;
    assert_eq!(summary(&result).1, Some(ResultReason::Superseded));
    // Somebody else changes it, and back: no order has installed that.
    world.device.chroot("apt-get -q -y --allow-downgrades install pw-a=1.0");
    world.rescan(&mut running, |report| removable(report, "pw-a").is_none()).await;
    world.device.chroot("apt-get -q -y install pw-a=2.0");
    world.rescan(&mut running, |report| report.updates.iter().all(|update| !update.id.contains("pw-a"))).await;
    let result = world.carry_out(4, vec![taking_back(removable(&before, "pw-a").unwrap())]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::ReportMismatch), vec![]));
    assert!(result.message.contains("no order has installed"), "{}", result.message);
    assert_eq!(world.at("pw-a"), "2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_never_goes_back_and_taking_back_never_goes_forward() {
    let world = World::new().await;
    let (_running, first) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    let report = world.report_after(1).await;
    let downgrade = Action { verb: Verb::Install, ..taking_back(removable(&report, "pw-a").unwrap()) };
    for (number, verb) in [(2, Verb::Install), (3, Verb::Download)] {
        let result = world.carry_out(number, vec![Action { verb, ..downgrade.clone() }]).await;
        assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
        assert!(result.message.contains("downgrade pw-a from 2.0 to 1.0"), "{}", result.message);
    }
    let result = world.carry_out(4, vec![action(Verb::Uninstall, update(&first, "pw-b"))]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
    assert!(result.message.contains("upgrade pw-b from 1.0 to 2.0"), "{}", result.message);
    // Planned from a version that is not there any more.
    let mut late = downgrade;
    late.packages[0].installed = "0.5".into();
    let result = world.carry_out(5, vec![late]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::ReportMismatch), vec![]), "{result:#?}");
    assert!(result.message.contains("pw-a is at 2.0, the order was planned from 0.5"), "{}", result.message);
    assert_eq!((world.at("pw-a"), world.at("pw-b")), ("2.0".into(), "1.0".into()));
    assert_eq!(world.gateway.nonces().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_c_library_stays_where_it_is_and_nothing_is_removed_for_an_earlier_version() {
    let package = |name, version, control| Package { control, ..Package::new(name, version) };
    let world = World::of(
        &[package("pw-libc", "1.0", "Source: glibc\n"), Package::new("pw-dep", "1.0"), Package::new("pw-user", "1.0")],
        &[
            package("pw-libc", "2.0", "Source: glibc\n"),
            Package::new("pw-dep", "2.0"),
            package("pw-user", "2.0", "Depends: pw-dep (>= 2.0)\n"),
        ],
    )
    .await;
    let (_running, first) = world.run().await;
    assert_eq!(update(&first, "pw-libc").requires_restart, Tristate::Yes);
    let result = world.carry_out_all(1, Verb::Install, &["pw-libc", "pw-dep", "pw-user"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded);
    let report = world.report_after(1).await;
    assert!(removable(&report, "pw-libc").is_none() && removable(&report, "pw-dep").is_some());
    let result = world.carry_out(2, vec![back(update(&first, "pw-libc"), "sha256:a")]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::ReportMismatch), vec![]));
    assert!(result.message.contains("pw-libc is never brought"), "{}", result.message);
    let result = world.carry_out(3, vec![taking_back(removable(&report, "pw-dep").unwrap())]).await;
    assert_eq!(summary(&result), (Outcome::Refused, Some(ResultReason::WouldDoMore), vec![]), "{result:#?}");
    assert!(result.message.contains("remove pw-user"), "{}", result.message);
    let both = ["pw-dep", "pw-user"].map(|name| taking_back(removable(&report, name).unwrap()));
    let result = world.carry_out(4, both.to_vec()).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!(
        (world.at("pw-libc"), world.at("pw-dep"), world.at("pw-user")),
        ("2.0".into(), "1.0".into(), "1.0".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_while_an_update_is_taken_back_completes_it() {
    const SLOW: &str =
        "if [ -e /srv/wait ]; then touch /var/log/slow.begun; fi; while [ -e /srv/wait ]; do sleep 0.1; done";
    let slow = |version| Package { postinst: SLOW, control: "Source: pw-two\n", ..Package::new("pw-one", version) };
    // The other one is unpacked after this one is configured: the machine dies between the two.
    let other = |version, control| Package { control, ..Package::new("pw-other", version) };
    let (old, new) =
        ("Source: pw-two\nPre-Depends: pw-one (<< 2.0)\n", "Source: pw-two\nPre-Depends: pw-one (>= 2.0)\n");
    let world = World::of(&[slow("1.0"), other("1.0", old)], &[slow("2.0"), other("2.0", new)]).await;
    let (mut running, _) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-one"]).await;
    let report = world.report_after(1).await;
    world.device.write("srv/wait", "");
    let order = world.gateway.order_of(2, &report, vec![taking_back(removable(&report, "pw-one").unwrap())]);
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert_eq!((world.at("pw-other"), world.gateway.nonces().len()), ("2.0".into(), 2));
    world.device.chroot("rm /srv/wait");
    // As if a scan had come first, and forgotten what is not whole any more.
    world.device.write("var/lib/patchwarden/installed.json", "[]");
    let _again = world.device.start();
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!((world.at("pw-one"), world.at("pw-other")), ("1.0".into(), "1.0".into()));
    assert_eq!(world.gateway.nonces().len(), 3, "what was left was granted anew");
    assert_eq!(world.report_after(2).await.removable, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_ends_while_the_agent_is_dead_can_be_taken_back() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    running.kill();
    world.device.let_go();
    world.until_on_device("var/lib/patchwarden/orders/1-1/attempt-1/exit").await;
    let _again = world.device.start();
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let report = world.report_after(1).await;
    let result = world.carry_out(2, vec![taking_back(removable(&report, "pw-slow").unwrap())]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(world.at("pw-slow"), "1.0");
}
