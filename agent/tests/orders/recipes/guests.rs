//! What others have put where applications lie.

use patchwarden_protocol::order::Verb;
use patchwarden_protocol::recipes::Detect;
use patchwarden_protocol::report::ProblemCode;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{Shop, program};
use crate::device::Package;
use crate::world::summary;

/// What is mounted in an application would move along with the old version, and go with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_mounted_in_an_application_is_kept() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let [early, late] = ["pw-early", "pw-late"].map(|name| shop.tree(name, 1));
    let mount = |name: &str| {
        let data = format!("/opt/{name}/data");
        world.device.chroot(&format!("mkdir {data}; mount -t tmpfs -o mode=755 tmpfs {data}; echo x > {data}/kept"));
    };
    mount("pw-early");
    let (_running, report) = shop.run(1, &[early, late]).await;
    let [problem] = &report.problems[..] else { panic!("{report:#?}") };
    let why = "recipes: pw-early: something is mounted at /opt/pw-early/data: unmount it, or update this by hand";
    assert_eq!((problem.code, problem.message.as_str()), (ProblemCode::RecipesRefused, why));
    assert!(report.updates.iter().all(|update| !update.id.contains("pw-early")), "{report:#?}");
    // Between the scan and the order.
    mount("pw-late");
    world.order(1, &report, &["recipe:pw-late", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2, [(false, Some(ResultReason::PackageManagerFailed)), (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("mounted at /opt/pw-late/data"), "{result:#?}");
    assert_eq!(shop.says("/opt/pw-late/bin/app"), "1.0");
    assert_eq!(world.device.chroot("cat /opt/pw-early/data/kept /opt/pw-late/data/kept"), "x\nx\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_can_change_is_neither_run_nor_replaced() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let read = |name: &str, directory: &str| {
        let mut recipe = shop.recipe(name, &program("2.0"));
        recipe.install.path = format!("{directory}/{name}");
        shop.install(&recipe.install.path[1..], &program("1.0"));
        recipe.detect = Detect::File { path: String::new(), pattern: "version ([0-9.]+)".into() };
        recipe
    };
    // What is read can be read of anybody's: it is not replaced.
    let recipes =
        [shop.tool("pw-users"), read("pw-group", "/opt/group"), read("pw-real", "/opt/real"), shop.tool("pw-good")];
    let mut linked = recipes[2].clone();
    linked.install.path = "/opt/link/pw-real".into();
    world.device.chroot(
        "chown 1000 /usr/local/bin/pw-users; chgrp 1000 /opt/group; chmod 775 /opt/group; ln -s real /opt/link",
    );
    let recipes = [recipes[0].clone(), recipes[1].clone(), linked, recipes[3].clone()];
    let (_running, report) = shop.run(1, &recipes).await;
    let told: Vec<&str> = report.problems.iter().map(|problem| problem.message.as_str()).collect();
    let expected = [
        "recipes: pw-users: /usr/local/bin/pw-users: /usr/local/bin/pw-users belongs to user 1000, not to root: chown root it",
        "recipes: pw-group: /opt/group can be written by group 1000 (mode 0775): chmod g-w it",
        "recipes: pw-real: /opt/link is not a directory",
    ];
    assert_eq!(told, expected);
    let ids: Vec<&str> =
        report.updates.iter().map(|update| update.id.as_str()).filter(|id| id.contains("generic")).collect();
    assert_eq!(ids, ["pkg:generic/pw-good@2.0"]);
    // Before the order.
    world.device.chroot("chgrp 1000 /usr/local/bin; chmod 775 /usr/local/bin");
    world.order(1, &report, &["recipe:pw-good", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2[1], (true, None), "{result:#?}");
    assert!(!result.actions[0].done && shop.says("/usr/local/bin/pw-good") == "1.0", "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_paths_do_not_hold_up_packages() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let mut recipes = ["pw-loop", "pw-file", "pw-self"].map(|name| shop.recipe(name, &program("2.0")));
    recipes[0].install.path = "/usr/local/loop/pw-loop".into();
    recipes[1].install.path = "/usr/local/plain/pw-file".into();
    world.device.chroot("ln -s loop /usr/local/loop; touch /usr/local/plain; ln -s pw-self /usr/local/bin/pw-self");
    let good = shop.tool("pw-good");
    let (_running, report) = shop.run(1, &[&recipes[..], &[good]].concat()).await;
    assert_eq!(report.problems, [], "{report:#?}");
    let result = world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_package_has_put_there_since_the_scan_is_its_own() {
    let offered = Package { file: "opt/pw-tree/lib/part", ..Package::new("pw-b", "1.0") };
    let shop = Shop::of(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0"), offered]).await;
    let world = &shop.world;
    let (_running, report) = shop.run(1, &[shop.tree("pw-tree", 1)]).await;
    world.device.chroot("apt-get -q update; apt-get -q -y install pw-b");
    world.order(1, &report, &["recipe:pw-tree", "pw-a"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result).2, [(false, Some(ResultReason::ReportMismatch)), (true, None)], "{result:#?}");
    assert!(result.actions[0].message.contains("/opt/pw-tree belongs to a package"), "{result:#?}");
    assert!(world.device.has("opt/pw-tree/lib/part") && shop.says("/opt/pw-tree/bin/app") == "1.0");
}
