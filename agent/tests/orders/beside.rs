//! What an order may do to packages that it does not name: `dependencies` of the policy, and the owner's.

use patchwarden_protocol::order::{Dependencies, Order};
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};

use crate::changes::changes;
use crate::device::{Package, SLOW};
use crate::dnf::{self, Dnf};
use crate::guards::rollback::rolling_back;
use crate::guards::steps;
use crate::rpm::{self, Rpm};
use crate::world::{World, removable, summary, update};
use crate::zypper;

const LIMITS: &str = "etc/patchwarden/limits.toml";

/// What the package manager calls the first and the second version.
#[derive(Clone, Copy)]
struct Versions {
    old: &'static str,
    new: &'static str,
    /// What is said where others may not be removed.
    refused: (Outcome, ResultReason),
}

/// Of a package that was removed, and had no configuration files (dpkg-query(1)).
pub(crate) const GONE: &str = "unknown ok not-installed ";

const OF_APT: Versions = Versions { old: "1.0", new: "2.0", refused: (Outcome::Refused, ResultReason::WouldDoMore) };
/// Its solver finds no way then.
const OF_DNF: Versions =
    Versions { old: "1.0-1", new: "2.0-1", refused: (Outcome::Failed, ResultReason::PackageManagerFailed) };

/// It offers only what can be installed without that, or says itself that it comes in another's place.
const OF_ZYPPER: Versions = Versions { refused: (Outcome::Refused, ResultReason::WouldDoMore), ..OF_DNF };

/// `pw-app` needs a later `pw-lib` and stands against `pw-old`, `pw-slow` is the same for others of this kind, and takes its time;
/// `pw-rude` stands against the agent, and `pw-bare` against a kernel.
const APT_KERNEL: &str = "linux-image-9.9.9-amd64";
const RPM_KERNEL: &str = "kernel-core";

pub(crate) async fn apt() -> World {
    let names = [
        "pw-a",
        "pw-bare",
        "pw-lib",
        "pw-lib2",
        "pw-old",
        "pw-old2",
        "pw-rude",
        "pw-slow",
        "pw-app",
        "patchwarden-agent",
        APT_KERNEL,
    ];
    let installed: Vec<Package> = names.iter().map(|name| Package::new(name, "1.0")).collect();
    let offered = [
        Package::new("pw-a", "2.0"),
        Package::new("pw-lib", "2.0"),
        Package::new("pw-lib2", "2.0"),
        Package { control: "Depends: pw-lib (>= 2.0)\nConflicts: pw-old\n", ..Package::new("pw-app", "2.0") },
        Package {
            control: "Depends: pw-lib2 (>= 2.0)\nConflicts: pw-old2\n",
            postinst: SLOW,
            ..Package::new("pw-slow", "2.0")
        },
        Package { control: "Conflicts: patchwarden-agent\n", ..Package::new("pw-rude", "2.0") },
        Package { control: "Conflicts: linux-image-9.9.9-amd64\n", ..Package::new("pw-bare", "2.0") },
    ];
    World::of(&installed, &offered).await
}

/// By which line pw-app, pw-slow, pw-rude and pw-bare say that they do not go with another.
type Against = [&'static str; 4];

const CONFLICTS: Against = [
    "Requires: pw-lib >= 2.0\nConflicts: pw-old\n",
    "Requires: pw-lib2 >= 2.0\nConflicts: pw-old2\n",
    "Conflicts: patchwarden-agent\n",
    "Conflicts: kernel-core\n",
];

const OBSOLETES: Against = [
    "Requires: pw-lib >= 2.0\nObsoletes: pw-old\n",
    "Requires: pw-lib2 >= 2.0\nObsoletes: pw-old2\n",
    "Obsoletes: patchwarden-agent\n",
    "Obsoletes: kernel-core\n",
];

fn make_rpms(world: &World, [app, slow, rude, bare]: Against) {
    // A report has no room for the updates of all.
    world.device.chroot("rpm -e --nodeps $(rpm -qa --qf '%{NAME}\\n' 'pw-*' | grep -vx 'pw-a\\|pw-slow') 2>&1");
    let names = ["pw-app", "pw-bare", "pw-lib", "pw-lib2", "pw-old", "pw-old2", "pw-rude", "patchwarden-agent"];
    let made = |name: &&'static str| match *name {
        "pw-old" => Rpm { post: SLOWLY_GONE, ..Rpm::new(name, "1.0-1") },
        // They are removed before what they need.
        "pw-app" | "pw-lib" => Rpm { tags: "Requires: pw-old\n", ..Rpm::new(name, "1.0-1") },
        _ => Rpm::new(name, "1.0-1"),
    };
    let installed: Vec<Rpm> = names.iter().map(made).collect();
    let offered = [
        Rpm::new("pw-lib", "2.0-1"),
        Rpm::new("pw-lib2", "2.0-1"),
        Rpm { tags: app, ..Rpm::new("pw-app", "2.0-1") },
        Rpm { tags: slow, post: SLOW, ..Rpm::new("pw-slow", "2.0-2") },
        Rpm { tags: rude, ..Rpm::new("pw-rude", "2.0-1") },
        Rpm { tags: bare, ..Rpm::new("pw-bare", "2.0-1") },
    ];
    rpm::build(&world.device, &[&installed[..], &offered].concat());
    let files: Vec<String> = names.iter().map(|name| format!("/srv/repo/{name}-1.0-1.noarch.rpm")).collect();
    world.device.chroot(&format!("rpm -i --nodeps {} 2>&1", files.join(" ")));
}

pub(crate) async fn with_dnf(dnf: Dnf) -> World {
    let world = dnf::world(dnf).await;
    make_rpms(&world, CONFLICTS);
    dnf::index(&world.device);
    world
}

pub(crate) async fn with_zypper() -> World {
    let world = zypper::world().await;
    make_rpms(&world, OBSOLETES);
    rpm::build(&world.device, &[Rpm::new(RPM_KERNEL, "5.14.0-1")]);
    world.device.chroot("rpm -i --nodeps /srv/repo/kernel-core-5.14.0-1.noarch.rpm 2>&1");
    zypper::index(&world.device);
    world
}

async fn ordered(
    world: &World,
    number: u32,
    report: &Report,
    names: &[&str],
    dependencies: Dependencies,
) -> InstallResult {
    let updates: Vec<_> = names.iter().map(|name| update(report, name)).collect();
    let order = Order { dependencies, ..world.gateway.order(number, report, &updates) };
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.gateway.result(number).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_changes_and_removes_others_where_that_is_allowed() {
    let world = apt().await;
    others_change_and_go_where_that_is_allowed(&world, OF_APT, APT_KERNEL).await;
    assert_eq!(["pw-app", "pw-lib", "pw-a"].map(|name| world.at(name)), ["2.0", "2.0", "2.0"]);
    assert_eq!(world.device.version("pw-old"), GONE);
    assert_eq!(world.at("patchwarden-agent"), "1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_changes_and_removes_others_where_that_is_allowed() {
    let world = with_dnf(Dnf::Four).await;
    others_change_and_go_where_that_is_allowed(&world, OF_DNF, RPM_KERNEL).await;
    assert_rpms(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_changes_and_removes_others_where_that_is_allowed() {
    let world = with_dnf(Dnf::Five).await;
    others_change_and_go_where_that_is_allowed(&world, OF_DNF, RPM_KERNEL).await;
    assert_rpms(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_changes_and_removes_others_where_that_is_allowed() {
    let world = with_zypper().await;
    others_change_and_go_where_that_is_allowed(&world, OF_ZYPPER, RPM_KERNEL).await;
    assert_rpms(&world);
}

fn assert_rpms(world: &World) {
    assert_rpms_of_app(world);
    assert_eq!(rpm::versions(&world.device)["pw-a"], ["3.0-1"]);
}

fn assert_rpms_of_app(world: &World) {
    let found = rpm::versions(&world.device);
    for (name, version) in [("pw-app", "2.0-1"), ("pw-lib", "2.0-1"), ("patchwarden-agent", "1.0-1")] {
        assert_eq!(found[name], [version], "{name}");
    }
    assert!(!found.contains_key("pw-old"), "{found:?}");
}

// covers CL-9
async fn others_change_and_go_where_that_is_allowed(
    world: &World,
    Versions { old, new, refused: (outcome, reason) }: Versions,
    kernel: &str,
) {
    use Dependencies::{AllowAll, AllowInstalls};
    use ResultReason::{LimitedByDevice, WouldDoMore};
    let (_running, report) = world.run().await;
    let refused = |result: &InstallResult, reason: ResultReason| {
        assert_eq!(summary(result), (Outcome::Refused, Some(reason), vec![]), "{result:#?}");
        result.message.clone()
    };
    let result = ordered(world, 1, &report, &["pw-app"], AllowInstalls).await;
    assert_eq!((result.outcome, result.reason), (outcome, Some(reason)), "{result:#?}");
    let said = &result.message;
    assert!(said.contains("remove pw-old") || said.contains("pw-old-1.0-1"), "{said}");

    world.device.write(LIMITS, "dependencies = 'AllowInstalls'\n");
    let report = world.report_after(1).await;
    let said = refused(&ordered(world, 2, &report, &["pw-app"], AllowAll).await, LimitedByDevice);
    let more = format!("dependencies: AllowInstalls: it would also remove pw-old, change pw-lib from {old} to {new}");
    assert!(said.contains(&more), "{said}");

    world.device.write(LIMITS, "exclude_packages = ['pw-old']\n");
    let report = world.report_after(2).await;
    let said = refused(&ordered(world, 3, &report, &["pw-app"], AllowAll).await, LimitedByDevice);
    assert!(said.ends_with("exclude_packages: pw-old"), "{said}");

    world.device.write(LIMITS, "");
    let report = world.report_after(3).await;
    let said = refused(&ordered(world, 4, &report, &["pw-rude", "pw-bare"], AllowAll).await, WouldDoMore);
    for name in ["patchwarden-agent", kernel] {
        assert!(
            said.contains(&format!("would also remove {name}, which no dependency of an update ever removes")),
            "{said}"
        );
    }
    assert_eq!(world.gateway.nonces().len(), 0, "nobody was asked for a grant");

    let report = world.report_after(4).await;
    let result = ordered(world, 5, &report, &["pw-app", "pw-a", "pw-rude"], AllowAll).await;
    let expected = vec![(true, None), (true, None), (false, Some(WouldDoMore))];
    assert_eq!(
        summary(&result),
        (Outcome::Failed, Some(WouldDoMore), expected),
        "{result:#?}\n{}",
        world.gateway.output()
    );
    let beside = format!("beside it: pw-lib {old} -> {new}, pw-old {old} removed");
    assert_eq!((&result.actions[0].message, &result.actions[1].message), (&beside, &beside));
    let report = world.report_after(5).await;
    assert!(removable(&report, "pw-app").is_none() && removable(&report, "pw-a").is_none(), "{:#?}", report.removable);
    let told = changes(world, 4).await;
    for change in [format!("pw-lib {old} {new} beside order 1-5"), format!("pw-old {old} - beside order 1-5")] {
        assert!(told.contains(&change), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_completes_what_a_machine_that_died_was_to_remove() {
    let world = apt().await;
    what_was_to_be_removed_is_completed(&world, OF_APT).await;
    assert_eq!(["pw-slow", "pw-lib2"].map(|name| world.at(name)), ["2.0", "2.0"]);
    assert_eq!(world.device.version("pw-old2"), GONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_completes_what_a_machine_that_died_was_to_remove() {
    let world = with_dnf(Dnf::Four).await;
    what_was_to_be_removed_is_completed(&world, OF_DNF).await;
    assert_completed(&world);
    assert_eq!(world.device.chroot("dnf -q -C check 2>&1 || true"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_completes_what_a_machine_that_died_was_to_remove() {
    let world = with_dnf(Dnf::Five).await;
    what_was_to_be_removed_is_completed(&world, OF_DNF).await;
    assert_completed(&world);
    assert_eq!(world.device.chroot("dnf -q -C check 2>&1 || true"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_completes_what_a_machine_that_died_was_to_remove() {
    let world = with_zypper().await;
    what_was_to_be_removed_is_completed(&world, OF_ZYPPER).await;
    assert_completed(&world);
}

fn assert_completed(world: &World) {
    let found = rpm::versions(&world.device);
    assert_eq!((&found["pw-slow"][..], &found["pw-lib2"][..]), (&["2.0-2".to_owned()][..], &["2.0-1".to_owned()][..]));
    assert!(!found.contains_key("pw-old2"), "{found:?}");
}

/// `pw-app` 2.0 needs a later `pw-lib`, and `slow` is the one of them during the unpacking of which the machine dies: after what it does then
/// to dpkg's journal of it (`/var/lib/dpkg/updates`).
async fn dies_while_it_unpacks(slow: &str, then: &str) {
    let preinst = |name: &str| if name == slow { SLOW } else { "" };
    let installed = ["pw-app", "pw-lib", "pw-old"].map(|name| Package::new(name, "1.0"));
    let offered = [
        Package { preinst: preinst("pw-lib"), ..Package::new("pw-lib", "2.0") },
        Package {
            control: "Depends: pw-lib (>= 2.0)\nConflicts: pw-old\n",
            preinst: preinst("pw-app"),
            ..Package::new("pw-app", "2.0")
        },
    ];
    let world = World::of(&installed, &offered).await;
    let (mut running, report) = world.run().await;
    let order = world.gateway.order(1, &report, &[update(&report, "pw-app")]);
    let order = Order { dependencies: Dependencies::AllowAll, ..order };
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.until_on_device("var/log/slow.begun").await;
    assert_eq!(world.device.version(slow), "install reinstreq half-installed 1.0");
    world.device.pull_the_plug();
    running.kill();
    world.device.chroot(then);
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None)]),
        "{slow}: {result:#?}\n{}",
        world.device.log()
    );
    assert_eq!(["pw-app", "pw-lib"].map(|name| world.at(name)), ["2.0", "2.0"]);
    assert_eq!(world.device.version("pw-old"), GONE);
    assert_eq!(world.report_after(1).await.problems, []);
}

/// The last of dpkg's notes says that the package is of the new version, which it does a moment before it is unpacked.
const A_MOMENT_LATER: &str = "cd /var/lib/dpkg/updates; last=$(ls [0-9]* | tail -n 1); \
     grep -q '^Status: install reinstreq half-installed' $last; sed -i 's/^Version: 1.0/Version: 2.0/' $last; rm -rf ../tmp.ci";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_unpacks_once_more_what_died_in_the_middle_of_that() {
    for (slow, then) in [("pw-lib", "true"), ("pw-lib", A_MOMENT_LATER), ("pw-app", "true"), ("pw-app", A_MOMENT_LATER)]
    {
        dies_while_it_unpacks(slow, then).await;
    }
}

/// A script that takes its time when the package is removed, if it is to.
const SLOWLY_GONE: &str =
    "%preun\n[ -e /srv/slowly ] || exit 0; touch /var/log/slow.begun; while [ ! -e /srv/go ]; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_4_removes_the_rest_where_all_has_come() {
    the_rest_is_removed_where_all_has_come(with_dnf(Dnf::Four).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dnf_5_removes_the_rest_where_all_has_come() {
    the_rest_is_removed_where_all_has_come(with_dnf(Dnf::Five).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zypper_removes_the_rest_where_all_has_come() {
    the_rest_is_removed_where_all_has_come(with_zypper().await).await;
}

async fn the_rest_is_removed_where_all_has_come(world: World) {
    world.device.write("srv/slowly", "");
    let (mut running, report) = world.run().await;
    let order = world.gateway.order(1, &report, &[update(&report, "pw-app")]);
    let order = Order { dependencies: Dependencies::AllowAll, ..order };
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    let found = rpm::versions(&world.device);
    assert_eq!(["pw-app", "pw-lib", "pw-old"].map(|name| found[name].concat()), ["2.0-1", "2.0-1", "1.0-1"]);
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}\n{}", world.device.log());
    assert_eq!(result.actions[0].message, "beside it: pw-lib 1.0-1 -> 2.0-1, pw-old 1.0-1 removed");
    assert_rpms_of_app(&world);
}

async fn what_was_to_be_removed_is_completed(world: &World, Versions { old, new, .. }: Versions) {
    let (mut running, report) = world.run().await;
    let order = world.gateway.order(1, &report, &[update(&report, "pw-slow")]);
    let order = Order { dependencies: Dependencies::AllowAll, ..order };
    world.gateway.send(&world.gateway.sign(&order)).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}\n{}", world.device.log());
    assert_eq!(result.actions[0].message, format!("beside it: pw-lib2 {old} -> {new}, pw-old2 {old} removed"));
    let report = world.report_after(1).await;
    assert_eq!(report.problems, []);
    assert!(removable(&report, "pw-slow").is_none(), "{:#?}", report.removable);
}

/// apt ends at the first script that fails: the others are tried once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_in_several_runs_is_told_once() {
    let installed = ["pw-app", "pw-bad", "pw-b", "pw-old"].map(|name| Package::new(name, "1.0"));
    let offered = [
        Package { control: "Conflicts: pw-old\n", ..Package::new("pw-app", "2.0") },
        Package { postinst: "echo sad >&2; exit 3", ..Package::new("pw-bad", "2.0") },
        Package { control: "Pre-Depends: pw-bad (>= 2.0)\n", ..Package::new("pw-b", "2.0") },
    ];
    let world = World::of(&installed, &offered).await;
    let (_running, report) = world.run().await;
    let result = ordered(&world, 1, &report, &["pw-app", "pw-bad", "pw-b"], Dependencies::AllowAll).await;
    assert_eq!(result.outcome, Outcome::Failed, "{result:#?}");
    let told = result.actions.iter().map(|action| action.message.matches("beside it: pw-old 1.0 removed").count());
    assert_eq!(told.collect::<Vec<_>>(), [1, 1, 1], "{result:#?}\n{}", world.device.log());
    assert!(
        world.gateway.progress().iter().any(|(_, text)| text.contains("held up is tried")),
        "{}",
        world.device.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_changed_others_has_no_way_back_and_says_so() {
    let world = apt().await;
    world.script("healthy", "dpkg-query -W -f '${Status}' pw-old | grep -q 'ok installed'");
    let (_running, report) = world.run().await;
    let order = world.gateway.order(1, &report, &[update(&report, "pw-app")]);
    let order = Order { dependencies: Dependencies::AllowAll, safeguards: rolling_back(&[]), ..order };
    world.gateway.send(&world.gateway.sign(&order)).await;
    let result = world.gateway.result(1).await;
    let failed = Some(ResultReason::CheckFailed);
    assert_eq!(summary(&result), (Outcome::Failed, failed, vec![(false, failed)]), "{result:#?}");
    let said = &result.actions[0].message;
    assert!(said.contains("it is not taken back: pw-lib is changed beside it, which nobody takes back"), "{said}");
    assert!(steps(&result).iter().all(|(step, ..)| *step != Step::Rollback), "{result:#?}");
    assert_eq!(world.at("pw-app"), "2.0");
}
