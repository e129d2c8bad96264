//! Who changed what, told to the gateway: by an order, or by somebody else with the package managers themselves.

use patchwarden_protocol::changes::{By, Change, Run};
use patchwarden_protocol::order::Verb;

use crate::gateway::Keeping;
use crate::world::World;
use crate::{dnf, zypper};

/// A change in a few words: name, versions, by whom, the command's last words.
fn told(run: Option<&Run>, change: &Change) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
    let by = match (change.by, run) {
        (By::SomebodyElse, Some(run)) => format!("{} {}: {}", run.told_by, run.user, run.command),
        (by, _) => by.to_string(),
    };
    format!("{} {} {} {by}", change.name, version(&change.before), version(&change.after))
}

/// Waits until so many changes are recorded.
pub(crate) async fn changes(world: &World, count: usize) -> Vec<String> {
    let found = |world: &World| -> Vec<String> {
        world.gateway.changes().iter().map(|(run, change)| told(run.as_ref(), change)).collect()
    };
    world.gateway.until("changes", |_| (found(world).len() >= count).then_some(())).await;
    found(world)
}

fn file(world: &World, name: &str) -> String {
    world.device.read(&format!("var/lib/patchwarden/{name}"))
}

// covers RM-1, CL-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_apt_and_dpkg_arrives_with_who_did_it_and_how() {
    let world = World::new().await;
    let (mut running, before) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a", "pw-needs"]).await;
    let expected = ["pw-a 1.0 2.0 order 1-1", "pw-needs 1.0 2.0 order 1-1", "pw-new - 1.0 beside order 1-1"];
    assert_eq!(changes(&world, 3).await, expected);
    let first = &world.gateway.messages_of_changes()[0].changed[0];
    assert!(first.order.as_ref().is_some_and(|digest| digest.starts_with("sha256:")), "{first:?}");
    let run = first.run.as_ref().unwrap();
    assert!(run.told_by == "apt" && run.command.contains("apt-get"), "{run:?}");
    running.kill();
    // As sudo(8) tells apt. `daemon` has the number 1 everywhere.
    world.device.chroot("SUDO_UID=1 apt-get -qq install -y pw-b >/dev/null 2>&1; dpkg -r pw-victim >/dev/null");
    world.device.chroot("cp /srv/repo/pool/pw-pair-1_* /tmp; dpkg -i /tmp/pw-pair-1_*2.0*.deb >/dev/null 2>&1");
    running = world.device.start();
    world.gateway.report(|report| report.counts.packages == before.counts.packages).await;
    let expected = [
        "pw-b 1.0 2.0 apt daemon (1): apt-get -qq install -y pw-b",
        "pw-victim 1.0 - dpkg : ",
        "pw-pair-1 1:1.0 1:2.0+x dpkg : ",
    ];
    assert_eq!(changes(&world, 6).await[3..], expected);
    let table = String::from_utf8(world.device.agent(&["changes"]).output().unwrap().stdout).unwrap();
    assert!(table.contains("daemon (1): apt-get -qq install -y pw-b\n"), "{table}");
    assert!(table.contains("somebody else, with dpkg\n"), "{table}");
    drop(running);
}

// covers RM-1, CL-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_dnf_4_arrives_with_who_did_it_and_how() {
    by_dnf(dnf::world(dnf::Dnf::Four).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_dnf_5_arrives_with_who_did_it_and_how() {
    by_dnf(dnf::world(dnf::Dnf::Five).await).await;
}

async fn by_dnf(world: World) {
    let (mut running, _) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(changes(&world, 1).await, ["pw-a 1.0-1 3.0-1 order 1-1"]);
    let report = world.report_after(1).await;
    running.kill();
    world.device.chroot("dnf -q -y upgrade pw-b >/dev/null 2>&1; dnf -q -y remove pw-victim >/dev/null 2>&1");
    running = world.device.start();
    world.gateway.report(|now| now.counts.packages < report.counts.packages).await;
    let found = changes(&world, 3).await;
    // Who was logged in is what the kernel says of this very test.
    assert!(found[1].starts_with("pw-b 1.0-1 2.0-1 dnf ") && found[1].ends_with(": -q -y upgrade pw-b"), "{found:#?}");
    assert!(
        found[2].starts_with("pw-victim 1.0-1 - dnf ") && found[2].ends_with(": -q -y remove pw-victim"),
        "{found:#?}"
    );
    drop(running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_with_zypper_arrives_with_who_did_it_and_how() {
    let world = zypper::world().await;
    let (mut running, _) = world.run().await;
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(changes(&world, 1).await, ["pw-a 1.0-1 3.0-1 order 1-1"]);
    let report = world.report_after(1).await;
    running.kill();
    world.device.chroot("zypper -n -q update pw-b >/dev/null 2>&1; zypper -n -q remove pw-victim >/dev/null 2>&1");
    running = world.device.start();
    world.gateway.report(|now| now.counts.packages < report.counts.packages).await;
    let found = changes(&world, 3).await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let who = format!("zypper root@{}:", host.trim());
    let expected = [
        format!("pw-b 1.0-1 2.0-1 {who} 'zypper' '-n' '-q' 'update' 'pw-b'"),
        format!("pw-victim 1.0-1 - {who} 'zypper' '-n' '-q' 'remove' 'pw-victim'"),
    ];
    assert_eq!(found[1..], expected);
    drop(running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_confirmed_is_sent_again_and_is_the_same() {
    let world = World::new().await;
    let (mut running, before) = world.run().await;
    world.gateway.set_keeping(Keeping::Lose);
    world.carry_out_all(1, Verb::Install, &["pw-a"]).await;
    assert_eq!(changes(&world, 1).await.len(), 1);
    assert!(!world.device.has("var/lib/patchwarden/changes-recorded.json"));
    // The connection is lost before the acknowledgement.
    world.gateway.set_down(true);
    world.gateway.set_keeping(Keeping::Confirm);
    world.gateway.set_down(false);
    world.gateway.until("sent again", |gateway| (gateway.messages_of_changes().len() > 1).then_some(())).await;
    world
        .gateway
        .until("recorded", |_| file(&world, "changes-recorded.json").contains("\"number\":1").then_some(()))
        .await;
    // The agent is killed in between.
    world.gateway.set_keeping(Keeping::Lose);
    world.device.chroot("apt-get -qq install -y pw-b >/dev/null 2>&1");
    world.rescan(&mut running, |report| report.counts.updates < before.counts.updates - 1).await;
    assert_eq!(changes(&world, 2).await.len(), 2);
    world.gateway.set_keeping(Keeping::Confirm);
    let known = world.gateway.messages_of_changes().len();
    running.kill();
    running = world.device.start();
    world.gateway.until("sent again", |gateway| (gateway.messages_of_changes().len() > known).then_some(())).await;
    world
        .gateway
        .until("recorded", |_| file(&world, "changes-recorded.json").contains("\"number\":2").then_some(()))
        .await;
    let expected = ["pw-a 1.0 2.0 order 1-1", "pw-b 1.0 2.0 apt root: apt-get -qq install -y pw-b"];
    assert_eq!(changes(&world, 2).await, expected, "each once");
    // What is recorded is sent no more.
    let (known, scans) = (world.gateway.messages_of_changes().len(), world.scans());
    running.kill();
    running = world.device.start();
    world.gateway.until("scan", |_| (world.scans() > scans).then_some(())).await;
    assert_eq!(world.gateway.messages_of_changes().len(), known);
    // A machine that was set back to an earlier state uses numbers again that the gateway has.
    world.gateway.set_keeping(Keeping::Refuse);
    world.device.chroot("dpkg -r pw-victim >/dev/null");
    world.rescan(&mut running, |report| report.counts.packages < before.counts.packages).await;
    assert_eq!(changes(&world, 3).await[2], "pw-victim 1.0 - dpkg : ");
    let messages = world.gateway.messages_of_changes();
    let last = &messages.last().unwrap().changed[0];
    assert!(last.first == 1 && last.log != messages[0].changed[0].log, "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_was_tampered_with_does_no_harm() {
    let world = World::new().await;
    let (mut running, before) = world.run().await;
    running.kill();
    world.device.chroot("apt-get -qq install -y pw-b >/dev/null 2>&1; dpkg -r pw-victim >/dev/null");
    let history = world.device.read("var/log/apt/history.log");
    let hostile = format!(
        "\u{0}\u{1b}]0;x\u{7}\nStart-Date: 9999-99-99\nUpgrade: {}\n{}\nStart-Date: 2026-01-01  00:00:00\nCommandline: {}\n",
        "pw-b:amd64 (1.0, 2.0), ".repeat(100_000),
        history.replace("apt-get -qq", "apt-get\u{1b}[2J -qq"),
        "x".repeat(5_000_000)
    );
    std::fs::write(world.device.root.join("var/log/apt/history.log"), hostile).unwrap();
    std::fs::write(world.device.root.join("var/log/dpkg.log"), [0xff, 0xfe, b'\n'].repeat(100_000)).unwrap();
    std::fs::write(world.device.root.join("var/log/dpkg.log.1.gz"), b"\x1f\x8bno archive").unwrap();
    running = world.device.start();
    world.gateway.report(|report| report.counts.packages < before.counts.packages).await;
    let found = world.gateway.until("changes", |gateway| Some(gateway.changes()).filter(|all| all.len() == 2)).await;
    let texts = serde_json::to_string(&found.iter().map(|(run, _)| run).collect::<Vec<_>>()).unwrap();
    assert!(!texts.contains("\\u001b") && texts.len() < 2000, "{texts}");
    let names: Vec<&str> = found.iter().map(|(_, change)| change.name.as_str()).collect();
    assert_eq!(names, ["pw-b", "pw-victim"]);
    drop(running);
}
