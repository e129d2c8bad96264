//! The operating system's own updater while the device is managed, and afterwards.

use jiff::{SignedDuration, Timestamp};

use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::Report;
use patchwarden_protocol::settings::OsUpdater;
use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterReport, UpdaterState};

use crate::world::World;

const APT: &str = "etc/apt/apt.conf.d/zz-patchwarden";
const DNF: &str = "etc/systemd/system/dnf-automatic.service.d/zz-patchwarden.conf";
const BOOK: &str = "var/lib/patchwarden/os-updater.json";

/// A device with apt's periodic jobs, and the unit of dnf-automatic.
async fn world() -> World {
    let world = World::new().await;
    world.device.write("etc/apt/apt.conf.d/20auto-upgrades", "APT::Periodic::Unattended-Upgrade \"1\";\n");
    world.device.write("lib/systemd/system/dnf-automatic.service", "[Service]\nExecStart=/bin/true\n");
    set(&world, "Disable");
    world
}

fn set(world: &World, os_updater: &str) {
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    let rest: Vec<&str> = configuration.lines().filter(|line| !line.starts_with("os_updater")).collect();
    world.device.write("etc/patchwarden/agent.toml", &format!("os_updater = '{os_updater}'\n{}\n", rest.join("\n")));
}

/// Everything below /etc but the agent's own configuration.
fn etc(world: &World) -> String {
    world.device.chroot(
        "cd /etc && find . -path ./patchwarden -prune -o -printf '%M %u %p %l\\n' | sort; \
         find . -path ./patchwarden -prune -o -type f -print0 | sort -z | xargs -0 sha256sum",
    )
}

fn periodic(world: &World) -> String {
    world.device.chroot("apt-config dump APT::Periodic::Enable")
}

fn leave(world: &World, arguments: &[&str]) -> String {
    let output = world.device.agent(&[&["leave"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn until_off(world: &World) {
    let is_off = || world.device.read(BOOK).matches("\"Done\"").count() == 2;
    world.gateway.until("the updater off", |_| is_off().then_some(())).await;
}

async fn until_given_back(world: &World) {
    world.gateway.until("the updater given back", |_| (!world.device.has(BOOK)).then_some(())).await;
}

/// A systemd that is asked to read its units again, and does this.
fn systemctl(world: &World, script: &str) {
    let script = format!("#!/bin/sh\necho \"$@\" >>/var/log/systemctl\n{script}\n");
    world.device.write("usr/bin/systemctl", &script);
    world.device.chroot("chmod 755 /usr/bin/systemctl; mkdir -p /run/systemd/system");
}

// covers EM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_off_while_the_device_is_managed_and_exactly_as_before_once_it_has_left() {
    let world = world().await;
    let before = etc(&world);
    let (mut running, _) = world.run().await;
    until_off(&world).await;
    assert_eq!(periodic(&world), "APT::Periodic::Enable \"0\";\n");
    assert!(world.device.read(DNF).ends_with("[Unit]\nConditionPathExists=!/var/lib/patchwarden/os-updater.json\n"));
    running.kill();
    let said = leave(&world, &["--keep-identity"]);
    assert!(said.contains("has its own updater back"), "{said}");
    assert_eq!(etc(&world), before);
    assert_eq!(periodic(&world), "");
    // It is still joined: as if the package were removed and installed again.
    running = world.device.start();
    until_off(&world).await;
    running.kill();
    // Whoever sets it to `Leave` has it back as well.
    set(&world, "Leave");
    running = world.device.start();
    until_given_back(&world).await;
    assert_eq!(etc(&world), before);
    running.kill();
    leave(&world, &[]);
    assert!(!world.device.has("var/lib/patchwarden/key.pem"));
    let output = world.device.agent(&["run"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("has not joined"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_it_is_switched_off_or_given_back_is_gone_on_from() {
    let world = world().await;
    let before = etc(&world);
    let die = "grep -q ^patchwarden /proc/$PPID/comm && kill -9 $PPID";
    systemctl(&world, die);
    let mut running = world.device.start();
    world.gateway.until("the crash", |_| world.device.has("var/log/systemctl").then_some(())).await;
    running.kill();
    assert!(world.device.has(APT) && world.device.has(DNF) && world.device.read(BOOK).contains("Intended"));
    // The files are there, but systemd may not know of them: it is told once more.
    systemctl(&world, "");
    running = world.device.start();
    until_off(&world).await;
    assert_eq!(world.device.read("var/log/systemctl"), "daemon-reload\ndaemon-reload\n");
    running.kill();
    systemctl(&world, die);
    let output = world.device.agent(&["leave"]).output().unwrap();
    assert!(!output.status.success() && world.device.has(BOOK), "{output:?}");
    assert!(world.device.has("var/lib/patchwarden/key.pem"), "it has not left");
    systemctl(&world, "exit 1");
    let output = world.device.agent(&["leave"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("systemctl daemon-reload"), "{output:?}");
    systemctl(&world, "");
    leave(&world, &[]);
    assert_eq!(etc(&world), before);
    assert!(!world.device.has(BOOK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_administrator_has_changed_meanwhile_is_left_and_said() {
    let world = world().await;
    let (mut running, _) = world.run().await;
    until_off(&world).await;
    running.kill();
    world.device.write(APT, "APT::Periodic::Enable \"1\";\n");
    world.device.chroot(&format!("rm /{DNF}"));
    running = world.device.start();
    world.gateway.connected().await;
    world.gateway.until("the log", |_| world.device.log().contains("is not made again").then_some(())).await;
    running.kill();
    assert!(!world.device.has(DNF), "{}", world.device.log());
    assert!(world.device.log().contains("zz-patchwarden was changed by somebody else and is left as it is"));
    let said = leave(&world, &[]);
    assert!(
        said.contains("was changed by somebody else") && said.contains("had been removed by somebody else"),
        "{said}"
    );
    assert_eq!(world.device.read(APT), "APT::Periodic::Enable \"1\";\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_nobody_manages_any_more_has_it_back_until_the_gateway_is_heard_of() {
    let world = world().await;
    let (mut running, _) = world.run().await;
    until_off(&world).await;
    running.kill();
    world.gateway.set_down(true);
    let contact = |days: i64| {
        let then = Timestamp::now() - SignedDuration::from_hours(24 * days);
        world.device.write("var/lib/patchwarden/contact", &format!("{then}\n"));
    };
    contact(29);
    running = world.device.start();
    world.gateway.until("a refused session", |gateway| (gateway.refused() > 0).then_some(())).await;
    assert!(world.device.has(BOOK));
    running.kill();
    contact(31);
    let _running = world.device.start();
    until_given_back(&world).await;
    assert_eq!(periodic(&world), "");
    world.gateway.set_down(false);
    until_off(&world).await;
}

/// A device whose owner has said nothing of its updater.
async fn open_world() -> World {
    let world = world().await;
    let configuration = world.device.read("etc/patchwarden/agent.toml");
    let rest: Vec<&str> = configuration.lines().filter(|line| !line.starts_with("os_updater")).collect();
    world.device.write("etc/patchwarden/agent.toml", &format!("{}\n", rest.join("\n")));
    world
}

async fn told(world: &World, state: UpdaterState, by: UpdaterChoice) -> UpdaterReport {
    let is = |report: &Report| report.os_updater.as_ref().is_some_and(|told| (told.state, told.by) == (state, by));
    world.gateway.report(is).await.os_updater.unwrap()
}

fn status(world: &World) -> String {
    let output = world.device.agent(&["status"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find(|line| line.starts_with("os updater")).unwrap_or(&text).to_owned()
}

async fn until_logged(world: &World, words: &str) {
    world.gateway.until(words, |_| world.device.log().contains(words).then_some(())).await;
}

// covers EM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_has_it_switched_off_and_given_back_and_nobody_else_has() {
    let world = open_world().await;
    let before = etc(&world);
    let (mut running, report) = world.run().await;
    let Some(UpdaterReport { state: UpdaterState::Left, by: UpdaterChoice::Nobody, .. }) = report.os_updater else {
        panic!("{report:#?}")
    };
    assert_eq!(world.gateway.settings_held().as_deref(), Some(""));
    // Made by whoever has the gateway, of another device, or for good: it stays as it is.
    let disable = world.gateway.settings(OsUpdater::Disable);
    let mut forged = world.gateway.sign_settings(&disable);
    forged.settings = patchwarden_protocol::Envelope::seal(&disable, &PrivateKey::generate()).unwrap();
    world.gateway.offer_settings(&forged).await;
    until_logged(&world, "settings are refused: no valid signature").await;
    let mut other = disable.clone();
    other.device_key = PrivateKey::generate().public().fingerprint();
    world.gateway.offer_settings(&world.gateway.sign_settings(&other)).await;
    until_logged(&world, "settings are refused: the settings are for acme/device-1").await;
    let mut endless = disable.clone();
    endless.not_after = endless.issued_at + SignedDuration::from_hours(46 * 24);
    world.gateway.offer_settings(&world.gateway.sign_settings(&endless)).await;
    until_logged(&world, "which is more than 45 days").await;
    assert!(!world.device.has(BOOK) && !world.device.has("var/lib/patchwarden/settings.json"));
    // The policy's own word.
    let signed = world.gateway.sign_settings(&disable);
    world.gateway.offer_settings(&signed).await;
    until_off(&world).await;
    let off = told(&world, UpdaterState::Off, UpdaterChoice::Policy).await;
    assert_eq!(off.updaters, ["apt", "dnf-automatic.service"]);
    assert_eq!((off.settings, off.message.as_str()), (Some(disable.issued_at), ""));
    assert_eq!(status(&world), "os updater   switched off, as its policy says");
    // It outlasts the agent, which asks for nothing that it has.
    running.kill();
    world.gateway.forget_session();
    running = world.device.start();
    world.gateway.connected().await;
    assert_eq!(world.gateway.settings_held(), Some(signed.digest()));
    assert_eq!(periodic(&world), "APT::Periodic::Enable \"0\";\n");
    // The policy has lost it; and nobody brings back what it said before.
    let mut leave = world.gateway.settings(OsUpdater::Leave);
    leave.issued_at = disable.issued_at + SignedDuration::from_secs(1);
    world.gateway.offer_settings(&world.gateway.sign_settings(&leave)).await;
    until_given_back(&world).await;
    told(&world, UpdaterState::Left, UpdaterChoice::Policy).await;
    assert_eq!(etc(&world), before);
    world.gateway.offer_settings(&signed).await;
    until_logged(&world, "do not come after those of").await;
    assert!(!world.device.has(BOOK));
    running.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_owner_says_counts_more_than_the_policy_and_is_told() {
    let world = open_world().await;
    world.gateway.offer_settings(&world.gateway.sign_settings(&world.gateway.settings(OsUpdater::Disable))).await;
    let (mut running, _) = world.run().await;
    until_off(&world).await;
    // As limits.toml says, from the next scan on; agent.toml from the next start on.
    world.device.write("etc/patchwarden/limits.toml", "os_updater = 'Leave'\n");
    running.kill();
    running = world.device.start();
    until_given_back(&world).await;
    let refused = told(&world, UpdaterState::Left, UpdaterChoice::Limits).await;
    assert_eq!(refused.message, "os_updater of this device's limits.toml is Leave, PatchPolicy/servers says Disable");
    let said = status(&world);
    assert!(
        said.starts_with("os updater   left to itself, as limits.toml says; os_updater of this device's"),
        "{said}"
    );
    world.device.chroot("rm /etc/patchwarden/limits.toml");
    set(&world, "Leave");
    running.kill();
    running = world.device.start();
    let refused = told(&world, UpdaterState::Left, UpdaterChoice::Owner).await;
    assert!(refused.message.contains("agent.toml is Leave") && refused.settings.is_some(), "{refused:?}");
    assert!(!world.device.has(BOOK));
    let output = world.device.agent(&["doctor"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("ok       os updater      is left to itself: os_updater of this device's agent.toml"),
        "{said}"
    );
    running.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_gateway_gets_reports_that_it_knows() {
    let world = open_world().await;
    world.gateway.set_report_version(0);
    let (mut running, _) = world.run().await;
    // The first one was made before there was a session: it has not been sent.
    let report = world.report_after(0).await;
    assert_eq!(report.os_updater, None);
    assert_eq!(world.gateway.arrivals().first(), Some(&"report"));
    assert!(world.gateway.reports_had_no_updater());
    running.kill();
    world.gateway.set_report_version(1);
    running = world.device.start();
    told(&world, UpdaterState::Left, UpdaterChoice::Nobody).await;
    running.kill();
}
