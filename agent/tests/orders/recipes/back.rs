//! The way back of applications: by an order, and where a check fails.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Action, Verb};
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason, Step};

use super::{KEPT, Shop, signed};
use crate::device::stdout;
use crate::guards::rollback::rolling_back;
use crate::guards::steps;
use crate::world::{removable, summary, update};

const TOOL: &str = "/usr/local/bin/pw-tool";
const TREE: &str = "/opt/pw-tree";

/// Takes back what the report says that can be.
async fn take_back(shop: &Shop, number: u32, report: &Report, names: &[&str]) -> InstallResult {
    let action = |name: &&str| {
        let found = removable(report, name).unwrap_or_else(|| panic!("{name}: {:#?}", report.removable)).clone();
        Action {
            verb: Verb::Uninstall,
            update: found.id,
            packages: found.packages,
            artifacts_digest: found.artifacts_digest,
        }
    };
    shop.world.carry_out(number, names.iter().map(action).collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_order_has_installed_an_order_takes_back_exactly_as_it_was() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let mut recipes = [shop.tool("pw-tool"), shop.tree("pw-tree", 2), shop.tool("pw-data")];
    recipes[2].stateful = true;
    world.device.chroot(&format!("chgrp 1234 {TOOL}; chmod 705 {TOOL}; ln -s part-0 {TREE}/link; touch {TREE}/own"));
    let listed = || world.device.chroot(&format!("cd {TREE}; find . {TOOL} -printf '%p %m %U:%G %l %s %T@\\n' | sort"));
    let before = listed();
    let (mut running, report) = shop.run(1, &recipes).await;
    let names = ["recipe:pw-tool", "recipe:pw-tree"];
    world.order(1, &report, &[names[0], names[1], "recipe:pw-data"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 3]), "{result:#?}");
    assert_eq!(shop.left(), "");
    let kept = "/opt/.patchwarden~pw-tree\n/usr/local/bin/.patchwarden~pw-data\n/usr/local/bin/.patchwarden~pw-tool\n";
    assert_eq!(shop.kept(), kept);
    assert_eq!(world.device.chroot("stat -c '%a %u' /opt/.patchwarden~pw-tree"), "700 0\n", "nobody runs it any more");
    let report = world.report_after(1).await;
    assert!(removable(&report, "recipe:pw-data").is_none(), "its recipe says that it never goes back");
    // An order that says otherwise is refused by the device.
    let mut forged = removable(&report, names[0]).unwrap().clone();
    forged.packages[0].candidate = "0.9".into();
    let action = |packages| Action {
        verb: Verb::Uninstall,
        update: forged.id.clone(),
        packages,
        artifacts_digest: forged.artifacts_digest.clone(),
    };
    let refused = world.carry_out(2, vec![action(forged.packages.clone())]).await;
    assert_eq!(summary(&refused).1, Some(ResultReason::ReportMismatch), "{refused:#?}");
    assert!(refused.message.contains("no order has installed this update") && shop.says(TOOL) == "2.0", "{refused:#?}");
    // While the recipes have expired nothing is forgotten.
    let good = world.device.read(KEPT);
    let expired = signed(&shop.key, 2, Timestamp::now() - SignedDuration::from_hours(1), &recipes);
    world.device.write(KEPT, &String::from_utf8(expired).unwrap());
    let result = world.carry_out_all(3, Verb::Install, &["pw-a"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert!(removable(&world.report_after(3).await, names[1]).is_none());
    world.device.write(KEPT, &good);
    let report = world.rescan(&mut running, |report| removable(report, names[1]).is_some()).await;
    let result = take_back(&shop, 4, &report, &names).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{result:#?}");
    assert_eq!((listed(), shop.left()), (before, String::new()));
    assert_eq!(shop.kept(), "/usr/local/bin/.patchwarden~pw-data\n");
    let report = world.report_after(4).await;
    assert!(removable(&report, names[0]).is_none() && update(&report, names[0]).packages[0].candidate == "2.0");
}

/// What the agent lets go, with what an interrupted run has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_interrupted_run_has_left_is_told_by_its_content() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipes = [shop.tree("pw-tree", 1)];
    let (running, _) = shop.run(1, &recipes).await;
    let result = world.carry_out_all(1, Verb::Install, &["recipe:pw-tree"]).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    drop(running);
    let apply = |arguments: &[&str]| {
        stdout(&mut world.device.agent(&[&["recipes", "apply", "--archives", "/srv"], arguments].concat()))
    };
    let [forth, back] = [&["pw-tree=2.0"][..], &["--back", "pw-tree=1.0"]];
    let under_way = "mv /opt/.patchwarden~pw-tree /opt/.patchwarden-pw-tree; cd /opt/.patchwarden-pw-tree";
    let swap = "mv of-pw-tree x; mv /opt/pw-tree of-pw-tree; mv x /opt/pw-tree";
    let state = || (shop.says("/opt/pw-tree/bin/app"), shop.left() + &shop.kept());
    let kept = || ("2.0".to_owned(), "/opt/.patchwarden~pw-tree\n".to_owned());
    assert_eq!(state(), kept());
    // Forth: both have changed places, and the earlier one is not where it is kept yet.
    world.device.chroot(under_way);
    apply(forth);
    assert_eq!(state(), kept());
    // Forth: something is there from an earlier time, beside what is kept.
    world.device.chroot(
        "cp -a /opt/.patchwarden~pw-tree /opt/.patchwarden-pw-tree; echo >>/opt/.patchwarden-pw-tree/of-pw-tree/part-0",
    );
    apply(forth);
    assert_eq!(state(), kept());
    // Forth: somebody has written into what is kept.
    world
        .device
        .chroot("cp -a /opt/.patchwarden~pw-tree /opt/aside; echo >>/opt/.patchwarden~pw-tree/of-pw-tree/part-0");
    let refused =
        world.device.agent(&["recipes", "apply", "--archives", "/srv", "--back", "pw-tree=1.0"]).output().unwrap();
    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(!refused.status.success() && said.contains("has changed since it was put aside"), "{said}");
    assert_eq!(state(), kept());
    world.device.chroot("rm -r /opt/.patchwarden~pw-tree; mv /opt/aside /opt/.patchwarden~pw-tree");
    // Back: it is taken out, and the two have not changed places.
    world.device.chroot(under_way);
    assert_eq!(apply(back), "recipe pw-tree: 2.0 -> 1.0\n");
    assert_eq!(state(), ("1.0".to_owned(), String::new()));
    // Back: they have, and what is left is not removed.
    let (_running, report) = shop.run(2, &recipes).await;
    world.order(2, &report, &["recipe:pw-tree"]).await;
    let result = world.gateway.result(2).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    world.device.chroot(&format!("{under_way}; {swap}"));
    assert_eq!(state(), ("1.0".to_owned(), "/opt/.patchwarden-pw-tree\n".to_owned()));
    apply(back);
    assert_eq!(state(), ("1.0".to_owned(), String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_with_which_a_check_fails_are_put_back_also_by_recipes_that_have_expired() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let mut recipes = [shop.tool("pw-tool"), shop.tree("pw-tree", 2), shop.tool("pw-data")];
    recipes[2].stateful = true;
    let expired = signed(&shop.key, 2, Timestamp::now() - SignedDuration::from_hours(1), &recipes);
    world.device.write("srv/expired", &String::from_utf8(expired).unwrap());
    let sick = format!("{TREE}/bin/app --version | grep -q 1.0 && exit 0; cp /srv/expired /{KEPT}; echo sick; exit 1");
    world.script("healthy", &sick);
    let (_running, _) = shop.run(1, &recipes).await;
    let names = ["recipe:pw-tool", "recipe:pw-tree", "pw-a", "recipe:pw-data"];
    let result = world.guard(1, &names, rolling_back(&[])).await;
    let (back, stays) = (Some(ResultReason::RolledBack), Some(ResultReason::CheckFailed));
    let expected = vec![(false, back), (false, back), (false, back), (false, stays)];
    assert_eq!(summary(&result), (Outcome::Failed, back, expected), "{result:#?}\n{}", world.gateway.output());
    assert!(result.actions[0].message.ends_with("taken back to recipe:pw-tool 1.0"), "{result:#?}");
    let why = &result.actions[3].message;
    assert!(why.ends_with("recipe:pw-data is never brought to an earlier version"), "{why}");
    assert!(steps(&result).ends_with(&[(Step::Rollback, "packages", true), (Step::CheckRolledBack, "healthy", true)]));
    let found = [TOOL, "/opt/pw-tree/bin/app", "/usr/local/bin/pw-data"].map(|program| shop.says(program));
    assert_eq!((found, world.at("pw-a")), (["1.0", "1.0", "2.0"].map(str::to_owned), "1.0".to_owned()));
    assert_eq!(shop.left() + &shop.kept(), "/usr/local/bin/.patchwarden~pw-data\n");
}
