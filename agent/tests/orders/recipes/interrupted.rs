//! Servers that do not answer, catalogues that go away, and what an interrupted run has left.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::{KEPT, Shop, program, signed};
use crate::device::{Package, SLOW};
use crate::gateway::action;
use crate::world::{summary, update};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendor_who_does_not_answer_holds_up_nobody_else() {
    let shop = Shop::new().await;
    let world = &shop.world;
    // Each with other bytes: files that are the same are one.
    let mut recipes = ["pw-down", "pw-gone", "pw-good"].map(|name| {
        shop.tool(name);
        shop.recipe(name, &[program("2.0"), format!("# {name}\n").into_bytes()].concat())
    });
    recipes[0].release.artifacts[0].url = "https://localhost:1/pw-down".into();
    std::fs::remove_file(shop.place.join("pw-gone")).unwrap();
    let (_running, report) = shop.run(1, &recipes).await;
    let names = ["recipe:pw-down", "recipe:pw-gone", "recipe:pw-good", "pw-a"];
    let missed = (false, Some(ResultReason::DownloadFailed));
    let actions = |verb| names.iter().map(|name| action(verb, update(&report, name))).collect();
    let downloaded = world.carry_out(1, actions(Verb::Download)).await;
    assert_eq!(summary(&downloaded).2, [missed, missed, (true, None), (true, None)], "{downloaded:#?}");
    // Without what is here already, too.
    world.device.chroot("rm -r /var/lib/patchwarden/downloads");
    let result = world.carry_out(2, actions(Verb::Install)).await;
    for (result, name) in [(&downloaded, "downloaded"), (&result, "installed")] {
        let said: Vec<&str> = result.actions.iter().map(|action| action.message.as_str()).collect();
        assert!(said[0].contains("localhost:1/pw-down") && said[1].contains("404"), "{name}: {said:?}");
    }
    assert_eq!(summary(&result).2, [missed, missed, (true, None), (true, None)], "{result:#?}");
    assert_eq!((world.at("pw-a"), shop.says("/usr/local/bin/pw-good")), ("2.0".into(), "2.0".into()));
    assert_eq!(shop.says("/usr/local/bin/pw-down"), "1.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_download() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.tool("pw-tool");
    let (mut running, report) = shop.run(1, &[recipe]).await;
    shop.served.stall("pw-tool");
    world.order(1, &report, &["recipe:pw-tool"]).await;
    world.gateway.until("the download", |_| (shop.served.requests("pw-tool") == 1).then_some(())).await;
    assert!(running.stops_within(Duration::from_secs(20)).await, "{}", world.device.log());
    shop.served.mend();
    let _running = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_goes_away_during_an_order_falsifies_nothing() {
    const LATE: &str = "touch /var/log/late.begun; while [ ! -e /srv/late ]; do sleep 0.1; done";
    let names = ["pw-slow", "pw-late", "pw-a"];
    let offered = [
        Package { postinst: SLOW, ..Package::new("pw-slow", "2.0") },
        Package { postinst: LATE, ..Package::new("pw-late", "2.0") },
        Package::new("pw-a", "2.0"),
    ];
    let shop = Shop::of(&names.map(|name| Package::new(name, "1.0")), &offered).await;
    let world = &shop.world;
    let recipes = ["pw-one", "pw-two", "pw-three"].map(|name| shop.tool(name));
    let (_running, report) = shop.run(1, &recipes).await;
    let both = (Outcome::Succeeded, None, vec![(true, None); 2]);
    // Another one comes, without the application, after that was replaced.
    world.order(1, &report, &["recipe:pw-one", "pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    let later = shop.sign(2, &recipes[1..]);
    world.gateway.offer_recipes(later.clone()).await;
    let waits = || world.device.log().contains("looked at after the order").then_some(());
    world.gateway.until("the recipes", |_| waits()).await;
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), both, "{result:#?}");
    let is_taken = |now: &Report| now.last_sequence.is_some() && now.counts.packages + 1 == report.counts.packages;
    world.gateway.report(is_taken).await;
    assert_eq!(world.device.read(KEPT).as_bytes(), later);
    // It expires after the application was replaced.
    let report = world.report_after(1).await;
    world.order(2, &report, &["recipe:pw-two", "pw-late"]).await;
    world.until_on_device("var/log/late.begun").await;
    let hour = SignedDuration::from_hours(1);
    let expired = String::from_utf8(signed(&shop.key, 3, Timestamp::now() - hour, &recipes[1..])).unwrap();
    world.device.write(KEPT, &expired);
    world.device.write("srv/late", "");
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), both, "{result:#?}");
    // It has expired before anything is done.
    let actions = ["recipe:pw-three", "pw-a"].map(|name| action(Verb::Install, update(&report, name)));
    let result = world.carry_out(3, actions.into()).await;
    let superseded = (false, Some(ResultReason::Superseded));
    assert_eq!(summary(&result).2, [superseded, (true, None)], "{result:#?}");
    assert_eq!((world.at("pw-a"), shop.says("/usr/local/bin/pw-three")), ("2.0".into(), "1.0".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_an_interrupted_run_is_removed() {
    let shop = Shop::new().await;
    let world = &shop.world;
    let recipe = shop.tree("pw-tree", 1);
    shop.install("opt/.patchwarden-pw-tree/pw-tree/bin/app", b"half of it");
    let (_running, report) = shop.run(1, &[recipe]).await;
    world.order(1, &report, &["recipe:pw-tree"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!((shop.left(), shop.says("/opt/pw-tree/bin/app")), (String::new(), "2.0".to_owned()));
}
