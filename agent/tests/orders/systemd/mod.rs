//! The agent's package on a machine that a real systemd has started, and restarts.

mod machine;
mod services;

use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::result::{Outcome, ResultReason};
use patchwarden_protocol::safeguards::{Check, Probe, Rollback, Safeguards};

use self::machine::Machine;
use crate::device::{Package, SLOW};
use crate::package::Packages;
use crate::restarts::{assert_installed, order, rule};
use crate::world::{summary, update};

const SERVICE: &str = "patchwarden-agent.service";

const RETURN: &str = "var/lib/patchwarden/return";

/// What it would be if the machine were no container, which never restarts itself by its own.
const RESTARTS: &str = "restart_command = ['systemctl', 'reboot']\n";

// covers EM-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_starts_the_agent_restarts_the_machine_for_it_and_starts_it_again() {
    let offered = [Package { postinst: "touch /run/reboot-required", ..Package::new("pw-kernel", "2.0") }];
    let machine = Machine::start(&[Package::new("pw-kernel", "1.0")], &offered).await;
    let Machine { world, .. } = &machine;
    machine.install(&Packages::new().build("deb", "1.0"));
    assert_eq!(machine.say(&format!("systemctl is-enabled {SERVICE}")), "enabled");
    assert_eq!(machine.say(&format!("systemctl is-active {SERVICE}")), "inactive", "it has not joined");
    machine.join("");
    assert_eq!(machine.run(&format!("systemctl is-active {SERVICE}")), "active");
    assert!(machine.groups_of("patchwarden-age").iter().all(|group| group.ends_with(SERVICE)));

    // A container says so, and what would restart it says whoever runs it.
    let report = world.report_after(0).await;
    world.give(&order(world, 1, &report, &["pw-kernel"], rule(RestartWhen::IfRequired))).await;
    let result = world.gateway.result(1).await;
    assert_installed(&result, 0, "it is a container");
    let first = machine.boot_id();
    let settings = world.device.read(crate::device::CONFIGURATION);
    world.device.write(crate::device::CONFIGURATION, &format!("{RESTARTS}{settings}"));
    machine.restart_the_service().await;

    let report = world.report_after(1).await;
    world.give(&crate::restarts::restart_alone(world, 2, &report, rule(RestartWhen::IfRequired))).await;
    let result = world.gateway.result(2).await;
    assert_eq!((result.outcome, result.restarts), (Outcome::Succeeded, 1), "{result:#?}");
    let second = machine.boot_id();
    assert!(first != second && !second.is_empty(), "{first} {second}");
    assert_eq!(machine.run(&format!("systemctl is-active {SERVICE}")), "active");
    let log = machine.log();
    assert!(log.contains("the machine was restarted (1)") && !log.contains('\u{1b}'), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_installed_is_in_no_group_of_the_service_and_outlives_it() {
    let offered = [Package { postinst: SLOW, ..Package::new("pw-slow", "2.0") }];
    let machine = Machine::start(&[Package::new("pw-slow", "1.0")], &offered).await;
    let Machine { world, .. } = &machine;
    machine.install(&Packages::new().build("deb", "1.0"));
    machine.join("");
    let report = world.report_after(0).await;
    world.order(1, &report, &["pw-slow"]).await;
    world.until_on_device("var/log/slow.begun").await;
    let groups = machine.groups_of("dpkg");
    assert!(!groups.is_empty() && groups.iter().all(|group| !group.contains(SERVICE)), "{groups:?}");
    machine.restart_the_service().await;
    assert_eq!(machine.groups_of("dpkg"), groups, "it goes on");
    assert!(!world.device.has("var/log/slow.done"));
    world.device.let_go();
    let result = world.gateway.result(1).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.configured("pw-slow"), ["1.0", "2.0"]);
    world.gateway.until("the end of the scope", |_| machine.groups_of("dpkg").is_empty().then_some(())).await;
}

// covers EM-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unattended_upgrades_installs_nothing_while_the_device_is_managed_and_does_again_once_the_agent_is_removed() {
    const UPDATER: &str = "systemctl start apt-daily-upgrade.service";
    let machine = Machine::start(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await;
    let Machine { world, .. } = &machine;
    let origins = "Unattended-Upgrade::Origins-Pattern { \"origin=Test\"; };\n";
    world.device.write("etc/apt/apt.conf.d/60test", origins);
    world.device.write("etc/apt/apt.conf.d/20auto-upgrades", "APT::Periodic::Unattended-Upgrade \"always\";\n");
    machine.install(&Packages::new().build("deb", "1.0"));
    machine.join("os_updater = 'Disable'\n");
    world.report_after(0).await;
    world.until_on_device("etc/apt/apt.conf.d/zz-patchwarden").await;
    machine.run(UPDATER);
    assert_eq!(world.configured("pw-a"), ["1.0"], "{}", machine.say("cat /var/log/unattended-upgrades/*.log"));
    machine.run("dpkg -r patchwarden-agent");
    assert_eq!(machine.say(&format!("systemctl is-active {SERVICE}")), "inactive");
    machine.run(UPDATER);
    assert_eq!(world.configured("pw-a"), ["1.0", "2.0"], "{}", machine.say("cat /var/log/unattended-upgrades/*.log"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_next_version_is_started_and_one_that_does_not_start_is_taken_back_by_its_unit() {
    let packages = Packages::new();
    let whole = std::fs::read(packages.program()).unwrap();
    let machine = Machine::start(&[Package::new("pw-a", "1.0")], &[Package::new("pw-a", "2.0")]).await;
    let Machine { world, .. } = &machine;
    let offer = |package: &std::path::Path| {
        std::fs::copy(package, world.device.root.join("srv/repo/pool").join(package.file_name().unwrap())).unwrap();
        world.device.offer(&[]);
    };
    let first = packages.build("deb", "1.0");
    machine.install(&first);
    offer(&first);
    offer(&packages.another("1.1"));
    machine.join("check_in_seconds = 20\n");
    let result = world.carry_out_all(1, Verb::Install, &["patchwarden-agent"]).await;
    assert_eq!(summary(&result), (Outcome::Succeeded, None, vec![(true, None)]), "{result:#?}");
    assert_eq!(world.at("patchwarden-agent"), "1.1");
    world.gateway.until("its check-in", |_| (!world.device.has(RETURN)).then_some(())).await;

    offer(&packages.pack_program("deb", "1.2", &whole[..8192]));
    machine.restart_the_service().await;
    let is_offered = |report: &patchwarden_protocol::report::Report| {
        report.updates.iter().any(|update| update.packages[0].candidate == "1.2")
    };
    let report = world.gateway.report(is_offered).await;
    world.order(2, &report, &["patchwarden-agent", "pw-a"]).await;
    world.gateway.until("1.2", |_| (world.at("patchwarden-agent") == "1.2").then_some(())).await;
    let back = Some(ResultReason::RolledBack);
    let result = world.gateway.result(2).await;
    assert_eq!(summary(&result), (Outcome::Failed, back, vec![(false, back), (true, None)]), "{result:#?}");
    assert_eq!((world.at("patchwarden-agent"), world.at("pw-a")), ("1.1".into(), "2.0".into()));
    assert_eq!(machine.run(&format!("systemctl is-active {SERVICE}")), "active");
    // The service that has taken it back ends after the agent that it has started.
    world.gateway.until("the end of its way back", |_| (!world.device.has(RETURN)).then_some(())).await;
    assert!(update(&world.report_after(2).await, "patchwarden-agent").held, "it is not installed again");
}

/// A package of a service that does this, restarted by each install.
const fn service(version: &'static str, postinst: &'static str) -> Package {
    Package { postinst, ..Package::new("pw-web", version) }
}

// covers CC-5, EM-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_whose_service_does_not_start_is_taken_back_and_the_service_runs_again() {
    macro_rules! unit {
        ($command:literal) => {
            concat!(
                "printf '[Service]\nExecStart=",
                $command,
                "\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/pw-web.service\n\
                 systemctl enable pw-web\n\
                 [ ! -d /run/systemd/system ] || { systemctl daemon-reload; systemctl restart pw-web; }"
            )
        };
    }
    let installed = [service("1.0", unit!("/bin/sleep infinity"))];
    let machine = Machine::start(&installed, &[service("2.0", unit!("/bin/false"))]).await;
    let Machine { world, .. } = &machine;
    machine.install(&Packages::new().build("deb", "1.0"));
    machine.join("");
    assert_eq!(machine.run("systemctl is-active pw-web"), "active");
    let report = world.report_after(0).await;
    let probe = Probe::ServiceActive { unit: "pw-web.service".into() };
    let check = Check { name: "web".into(), probe, timeout_seconds: 10, settle_seconds: 3 };
    let rollback = Some(Rollback { exclude_packages: Vec::new() });
    let safeguards = Safeguards { checks: vec![check], rollback, ..Safeguards::default() };
    let order = order(world, 1, &report, &["pw-web"], rule(RestartWhen::Never));
    world.give(&patchwarden_protocol::order::Order { safeguards, ..order }).await;
    let result = world.gateway.result(1).await;
    let back = Some(ResultReason::RolledBack);
    assert_eq!(summary(&result), (Outcome::Failed, back, vec![(false, back)]), "{result:#?}");
    assert!(result.message.contains("pw-web.service is failed"), "{}", result.message);
    assert_eq!(world.configured("pw-web"), ["1.0", "2.0", "1.0"]);
    assert_eq!(machine.run("systemctl is-active pw-web"), "active");
}
