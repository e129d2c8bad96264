//! The way back where a check fails after an install.

use patchwarden_protocol::order::Order;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};
use patchwarden_protocol::safeguards::{Check, Rollback, Safeguards};

use super::{VERSION, checks, command, steps};
use crate::device::{Package, serve};
use crate::world::{World, removable, summary, update};

const ROLLED_BACK: Option<ResultReason> = Some(ResultReason::RolledBack);
const CHECK_FAILED: Option<ResultReason> = Some(ResultReason::CheckFailed);

/// A script `healthy` decides, once; these packages are never taken back.
pub(crate) fn rolling_back(exclude: &[&str]) -> Safeguards {
    let soon = Check { settle_seconds: 0, timeout_seconds: 60, ..command("healthy") };
    let exclude_packages = exclude.iter().map(|&name| name.to_owned()).collect();
    Safeguards { rollback: Some(Rollback { exclude_packages }), ..checks(&[soon]) }
}

/// Healthy with version 1.0 of pw-a only; what it does where it is not.
fn only_with_the_old_one(then: &str) -> String {
    format!("{VERSION}[ $version = 1.0 ] && exit 0\n{then}\necho sick with $version; exit 1")
}

fn words(result: &InstallResult) -> Vec<&str> {
    result.actions.iter().map(|action| action.message.as_str()).collect()
}

// covers EM-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_with_which_a_check_fails_are_taken_back_by_the_files_that_were_saved() {
    let world = World::new().await;
    // The mirror drops the old ones meanwhile.
    world.script("healthy", &only_with_the_old_one("rm -f /srv/repo/pool/pw-a_1.0* /srv/repo/pool/pw-pair-*_1%3a1.0*"));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a", "pw-pair-1"], rolling_back(&[])).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.gateway.output());
    let sick = "check healthy failed: ended with code 1: sick with 2.0; taken back to";
    assert_eq!(words(&result), [format!("{sick} pw-a 1.0"), format!("{sick} pw-pair-1 1:1.0, pw-pair-2 1:1.0")]);
    assert_eq!(result.message, format!("{sick} pw-a 1.0"));
    let told = [
        (Step::CheckBefore, "healthy", true),
        (Step::CheckAfter, "healthy", false),
        (Step::Rollback, "packages", true),
        (Step::CheckRolledBack, "healthy", true),
    ];
    assert_eq!(steps(&result), told);
    for (package, version) in [("pw-a", "1.0"), ("pw-pair-1", "1:1.0"), ("pw-pair-2", "1:1.0")] {
        assert_eq!(world.at(package), version, "{package}");
    }
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0", "1.0"]);
    let output = world.gateway.output();
    let (forth, back) = output.split_once("\n--- back to the earlier versions ---\n").unwrap();
    assert!(forth.contains("Unpacking pw-a (2.0)") && back.contains("(1.0) over (2.0)"), "{output}");
    assert_eq!(world.gateway.nonces().len(), 1, "the order has allowed the way back");
    let report = world.report_after(1).await;
    assert!(report.removable.is_empty(), "{:#?}", report.removable);
    assert_eq!(update(&report, "pw-a").packages[0].candidate, "2.0", "it is offered again");
    assert!(!world.device.has("var/lib/patchwarden/orders/1-1/back/archives"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_way_back_stays_and_says_why() {
    let packages = |version| {
        let libc = Package { control: "Source: glibc\n", ..Package::new("pw-libc", version) };
        let mut all =
            ["pw-a", "pw-data", "pw-gone"].map(|name| Package::new(name, version)).into_iter().collect::<Vec<_>>();
        all.push(libc);
        all
    };
    let world = World::of(&packages("1.0"), &packages("2.0")).await;
    world.device.chroot("rm /srv/repo/pool/pw-gone_1.0*");
    world.device.offer(&[]);
    // Not by what is still there, either.
    world.script("healthy", &format!("{}\n", only_with_the_old_one("")));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a", "pw-data", "pw-gone", "pw-libc"], rolling_back(&["pw-d?t*"])).await;
    let stays = (false, CHECK_FAILED);
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK), stays, stays, stays]);
    assert_eq!(summary(&result), expected, "{result:#?}");
    let sick = "check healthy failed: ended with code 1: sick with 2.0; it is not taken back:";
    assert_eq!(
        words(&result)[1..],
        [
            format!("{sick} rollback.excludePackages of the policy has pw-data"),
            format!("{sick} no repository offers pw-gone 1.0 any more"),
            format!("{sick} pw-libc is never brought to an earlier version"),
        ]
    );
    let at = ["pw-a", "pw-data", "pw-gone", "pw-libc"].map(|package| world.at(package));
    assert_eq!(at, ["1.0", "2.0", "2.0", "2.0"]);
    // Without a policy that says so nothing is taken back.
    let result = world.guard(2, &["pw-a"], Safeguards { rollback: None, ..rolling_back(&[]) }).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![stays]), "{result:#?}");
    assert_eq!(words(&result), ["check healthy failed: ended with code 1: sick with 2.0"]);
    assert_eq!(world.at("pw-a"), "2.0");
    assert!(removable(&world.report_after(2).await, "pw-a").is_some(), "by a person it can be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_had_leaves_the_other_updates_their_way_back() {
    let names = ["pw-a", "pw-data", "pw-lost"];
    let world =
        World::of(&names.map(|name| Package::new(name, "1.0")), &names.map(|name| Package::new(name, "2.0"))).await;
    // The index has it still.
    world.device.chroot("rm /srv/repo/pool/pw-lost_1.0*");
    world.script("healthy", &only_with_the_old_one(""));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &names, rolling_back(&[])).await;
    let reasons = vec![(false, ROLLED_BACK), (false, ROLLED_BACK), (false, CHECK_FAILED)];
    assert_eq!(summary(&result), (Outcome::Failed, ROLLED_BACK, reasons), "{result:#?}");
    let why = words(&result)[2];
    assert!(why.contains("; it is not taken back: ") && why.contains("pw-lost"), "{why}");
    assert_eq!(names.map(|name| world.at(name)), ["1.0", "1.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_saved_needs_no_room_once_more() {
    let packages =
        |version, kilobytes| ["pw-a", "pw-b"].map(|name| Package { kilobytes, ..Package::new(name, version) });
    let world = World::of(&packages("1.0", 20_000), &packages("2.0", 500)).await;
    // All versions and the margin, but not the earlier ones twice.
    world.device.shrink_state("85m");
    world.script("healthy", &only_with_the_old_one(""));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a", "pw-b"], rolling_back(&[])).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}");
    assert_eq!((world.at("pw-a"), world.at("pw-b")), ("1.0".into(), "1.0".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_keeps_to_the_owners_limits() {
    let world = World::new().await;
    let forbid = "echo \"verbs = ['Install']\" >/etc/patchwarden/limits.toml";
    world.script("healthy", &only_with_the_old_one(forbid));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a"], rolling_back(&[])).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    assert!(
        result.message.contains("; it could not be taken back: ")
            && result.message.contains("limits.toml does not allow")
    );
    let told = [
        (Step::CheckBefore, "healthy", true),
        (Step::CheckAfter, "healthy", false),
        (Step::Rollback, "packages", false),
    ];
    assert_eq!(steps(&result), told);
    assert_eq!(world.at("pw-a"), "2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_order_has_not_changed_is_not_taken_back() {
    let world = World::new().await;
    let version = "version=$(dpkg-query -W -f '${Version}' pw-pair-2)";
    world.script("healthy", &format!("{version}\n[ $version = 1:1.0 ] || {{ echo sick; exit 1; }}"));
    let (_running, report) = world.run().await;
    world.device.chroot("apt-get -q -y -o APT::Get::Upgrade-By-Source-Package=false install pw-pair-1");
    world.send_guarded(1, &report, &["pw-pair-1"], rolling_back(&[])).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    assert!(words(&result)[0].ends_with("pw-pair-1 was not at 1:1.0 any more"), "{result:#?}");
    assert_eq!((world.at("pw-pair-1"), world.at("pw-pair-2")), ("1:2.0+x".into(), "1:2.0+x".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_needs_meanwhile_is_not_taken_back() {
    let world = World::new().await;
    world.device.chroot("mkdir -p /srv/user/DEBIAN");
    let control =
        "Package: user\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDepends: pw-a (>= 2.0)\nDescription: x\n";
    world.device.write("srv/user/DEBIAN/control", control);
    world.device.chroot("dpkg-deb -b /srv/user /srv/user.deb");
    world.script("healthy", &only_with_the_old_one("dpkg -i /srv/user.deb >/dev/null"));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a"], rolling_back(&[])).await;
    assert_eq!(summary(&result), (Outcome::Failed, CHECK_FAILED, vec![(false, CHECK_FAILED)]), "{result:#?}");
    assert!(result.message.contains("; it could not be taken back: "), "{}", result.message);
    assert_eq!((world.at("pw-a"), world.at("user")), ("2.0".into(), "1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_not_healthy_afterwards_either_says_so() {
    let world = World::new().await;
    world.script("healthy", "[ -e /var/log/once ] && { echo still sick; exit 1; }; touch /var/log/once");
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a"], rolling_back(&[])).await;
    assert_eq!(summary(&result), (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK)]), "{result:#?}");
    assert_eq!(steps(&result)[2..], [(Step::Rollback, "packages", true), (Step::CheckRolledBack, "healthy", false)]);
    assert_eq!(result.steps[3].message, "ended with code 1: still sick");
    assert_eq!(world.at("pw-a"), "1.0");
}

/// The old version says that it is being brought back, and takes its time.
const SLOW: &str = "if [ -e /var/log/go-slow ]; then touch /var/log/slow.begun; sleep 3; fi";

async fn slow_world() -> World {
    let old = Package { postinst: SLOW, ..Package::new("pw-a", "1.0") };
    let world =
        World::of(&[old, Package::new("pw-b", "1.0")], &[Package::new("pw-a", "2.0"), Package::new("pw-b", "2.0")])
            .await;
    world.script("healthy", &only_with_the_old_one("touch /var/log/go-slow"));
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_on_the_way_back_completes_it() {
    let world = slow_world().await;
    let (mut running, report) = world.run().await;
    world.send_guarded(1, &report, &["pw-a", "pw-b"], rolling_back(&[])).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK); 2]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}", world.device.log());
    assert_eq!((world.at("pw-a"), world.at("pw-b")), ("1.0".into(), "1.0".into()));
    assert_eq!(world.gateway.nonces().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_again_and_again_takes_back_each_package_once() {
    let world = slow_world().await;
    let (mut running, report) = world.run().await;
    let order = Order { limit_seconds: 600, ..world.guarded_order(1, &report, &["pw-a", "pw-b"], rolling_back(&[])) };
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.gateway.phase("Verified").await;
    let kills = world.kill_again_and_again(&mut running, 1500).await;
    let result = world.gateway.result(1).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK); 2]);
    assert_eq!(summary(&result), expected, "{kills} kills: {result:#?}");
    for package in ["pw-a", "pw-b"] {
        assert_eq!(world.configured(package), ["1.0", "2.0", "1.0"], "{package} after {kills} kills");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_once_to_be_taken_back_is_although_the_check_would_succeed_after_a_crash() {
    let world = World::new().await;
    // The second time it finds nothing. Somebody else uses the package manager, so that the way back waits.
    let once = "[ -e /var/log/once ] && exit 0\ntouch /var/log/once\n\
                setsid apt-get -q -y install pw-slow >/dev/null 2>&1 </dev/null &\n\
                while ! [ -e /var/log/slow.begun ]; do sleep 0.1; done";
    world.script("healthy", &only_with_the_old_one(once));
    let (mut running, report) = world.run().await;
    world.send_guarded(1, &report, &["pw-a"], rolling_back(&[])).await;
    world.gateway.waits_for_another().await;
    running.kill();
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK)]), "{result:#?}");
    assert_eq!((world.at("pw-a"), world.at("pw-slow")), ("1.0".into(), "2.0".into()));
}

/// On a device of rpm packages.
async fn an_rpm_is_taken_back(world: World) {
    let version = "version=$(rpm -q --queryformat '%{version}' pw-a)\n[ $version = 1.0 ] && exit 0\n";
    world.script("healthy", &format!("{version}rm -f /srv/repo/pw-*-1.0-1.*.rpm\necho sick with $version; exit 1"));
    let (_running, _) = world.run().await;
    let result = world.guard(1, &["pw-a", "pw-b"], rolling_back(&["pw-b"])).await;
    let expected = (Outcome::Failed, ROLLED_BACK, vec![(false, ROLLED_BACK), (false, CHECK_FAILED)]);
    assert_eq!(summary(&result), expected, "{result:#?}\n{}\n{}", world.gateway.output(), world.device.log());
    let versions = crate::rpm::versions(&world.device);
    assert_eq!((&*versions["pw-a"], &*versions["pw-b"]), (&["1.0-1".to_owned()][..], &["2.0-1".to_owned()][..]));
    assert!(steps(&result).ends_with(&[(Step::Rollback, "packages", true), (Step::CheckRolledBack, "healthy", true)]));
    let report = world.report_after(1).await;
    assert!(report.updates.iter().any(|update| update.packages.iter().any(|package| package.name == "pw-a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_takes_an_update_back() {
    let world = crate::dnf::world(crate::dnf::Dnf::Four).await;
    // What lies in a repository on the machine itself is used in place.
    let served = serve(world.device.root.join("srv/repo")).await;
    crate::dnf::use_repository(&world.device, &format!("http://{}", served.address), "gpgcheck=0");
    an_rpm_is_taken_back(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_takes_an_update_back() {
    an_rpm_is_taken_back(crate::zypper::world().await).await;
}
