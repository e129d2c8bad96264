//! Whatever dies in the middle of an order.

use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::gateway::Granting;
use crate::world::{World, summary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_in_the_middle_of_an_install_neither_stops_nor_repeats_it() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-a"]).await;
    world.until_on_device("var/log/slow.begun").await;
    running.kill();
    world.gateway.forget_session();
    let _again = world.device.start();
    world.gateway.connected().await;
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None); 2]), "{}", world.device.log());
    assert_eq!(world.configured("pw-slow"), ["1.0", "2.0"], "configured once");
    assert_eq!(world.gateway.nonces().len(), 1, "what was granted is not asked for again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_that_ends_while_the_agent_is_dead_is_reported_from_its_exit_code() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    running.kill();
    world.device.let_go();
    world.until_on_device("var/lib/patchwarden/orders/1-1/attempt-1/exit").await;
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded);
    assert!(!world.device.log().contains("the package manager died"), "{}", world.device.log());
    assert_eq!(world.configured("pw-slow"), ["1.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_in_the_middle_of_an_install_completes_it() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow", "pw-a"]).await;
    world.until_on_device("var/log/slow.begun").await;
    world.device.pull_the_plug();
    running.kill();
    assert!(!world.device.has("var/log/slow.done"));
    world.device.let_go();
    let _again = world.device.start();
    let result = world.gateway.result(1).await;
    assert_eq!(
        summary(&result),
        (Outcome::Succeeded, None, vec![(true, None); 2]),
        "{result:#?}\n{}",
        world.device.log()
    );
    for package in ["pw-slow", "pw-a"] {
        assert_eq!(world.device.version(package), "install ok installed 2.0");
    }
    assert!(world.device.has("var/log/slow.done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_grant_asks_again_with_a_new_nonce() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.gateway.set_granting(Granting::Silent);
    world.order(1, &report, &["pw-a"]).await;
    world.gateway.until("grant request", |gateway| gateway.nonces().first().cloned()).await;
    running.kill();
    world.gateway.set_granting(Granting::Grant);
    let _again = world.device.start();
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let nonces = world.gateway.nonces();
    assert_ne!(nonces.first(), nonces.last());
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_sent_again_until_it_is_recorded() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    world.gateway.set_recording(false);
    world.order(1, &report, &["pw-a"]).await;
    let first = world.gateway.result(1).await;
    running.kill();
    world.gateway.set_recording(true);
    let _again = world.device.start();
    world.gateway.until("second result", |gateway| (gateway.results().len() == 2).then_some(())).await;
    assert_eq!(world.gateway.results()[1], first);
    assert!(world.gateway.output().contains("Setting up pw-a"), "the output is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_stops_orders_and_not_reports() {
    let world = World::new().await;
    let (mut running, report) = world.run().await;
    for (number, name) in [(1, "pw-a"), (2, "pw-b")] {
        let report = world
            .gateway
            .report(|r| r.counter >= report.counter && r.last_sequence.map_or(0, |s| s.number) == number - 1)
            .await;
        world.order(number, &report, &[name]).await;
        world.gateway.result(number).await;
    }
    running.kill();
    let path = "var/lib/patchwarden/journal";
    let damaged = world.device.read(path).replacen("pw-a", "pw-x", 1);
    world.device.write(path, &damaged);
    let mut running = world.device.start();
    let report = world.gateway.report(|report| !report.problems.is_empty()).await;
    let message = &report.problems[0].message;
    assert!(message.contains("/var/lib/patchwarden/journal: line 1") && message.contains("journal reset"), "{message}");
    world.order(3, &report, &["pw-slow"]).await;
    assert_eq!(summary(&world.gateway.result(3).await).1, Some(ResultReason::JournalCorrupt));
    running.kill();
    let reset = world.device.agent(&["journal", "reset"]).output().unwrap();
    assert!(String::from_utf8_lossy(&reset.stdout).contains("Orders up to 1-2 stay used up"), "{reset:?}");
    let _running = world.device.start();
    let report = world.gateway.report(|report| report.problems.is_empty()).await;
    assert_eq!(report.last_sequence.map(|sequence| sequence.number), Some(2));
    world.device.let_go();
    world.order(4, &report, &["pw-slow"]).await;
    assert_eq!(world.gateway.result(4).await.outcome, Outcome::Succeeded);
}

/// systemd itself is not there: this tests what it is asked for, and that the rest works around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_systemd_the_package_manager_gets_a_scope_of_its_own() {
    let world = World::new().await;
    let script =
        "#!/bin/sh\necho \"$@\" >>/var/log/scopes\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n";
    world.device.write("usr/bin/systemd-run", script);
    world.device.chroot("chmod 755 /usr/bin/systemd-run; mkdir -p /run/systemd/system");
    let (mut running, report) = world.run().await;
    world.order(1, &report, &["pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    running.kill();
    let _again = world.device.start();
    world.device.let_go();
    assert_eq!(world.gateway.result(1).await.outcome, Outcome::Succeeded);
    let asked = world.device.read("var/log/scopes");
    assert!(asked.starts_with("--scope --collect --quiet --unit=patchwarden-install-1-1-1 -- setsid "), "{asked}");
    assert_eq!(world.configured("pw-slow"), ["1.0", "2.0"]);
}
