//! Services on old libraries: of a real systemd, with a library that an update replaces.

use patchwarden_protocol::order::{Order, RestartRule, RestartWhen};
use patchwarden_protocol::report::{OutdatedServices, Report};
use patchwarden_protocol::result::{InstallResult, Outcome, Step};
use patchwarden_protocol::safeguards::{Check, Probe, Rollback, Safeguards};

use super::machine::Machine;
use crate::device::Package;
use crate::package::Packages;
use crate::restarts::{order, rule};

const LIBRARY: &str = "usr/lib/pw-lib/libpw.so";

/// Three services that have loaded the library, and one that has not. Two have a mount name space of their own, one of these another
/// root, as a container has; and a process that is of no service.
const UNITS: &str = "\
    service() { printf '[Service]\\nExecStart=/bin/sleep infinity\\n%b\\n[Install]\\nWantedBy=multi-user.target\\n' \"$2\" \
      >/etc/systemd/system/$1.service; systemctl enable $1; }\n\
    preload='Environment=LD_PRELOAD=/usr/lib/pw-lib/libpw.so'\n\
    service pw-web \"$preload\"\n\
    service pw-private \"$preload\\nPrivateTmp=yes\"\n\
    service pw-other\n\
    mkdir -p /srv/jail/usr /srv/jail/proc /srv/jail/dev; ln -sfn usr/lib usr/lib64 usr/bin /srv/jail/\n\
    service pw-jailed \"$preload\\nRootDirectory=/srv/jail\\nBindReadOnlyPaths=/usr\\nMountAPIVFS=yes\"\n";

fn installed() -> Package {
    Package { postinst: UNITS, library: LIBRARY, ..Package::new("pw-lib", "1.0") }
}

/// Brings another library, and restarts nothing.
fn offered() -> Package {
    Package { library: LIBRARY, ..Package::new("pw-lib", "2.0") }
}

/// A machine with the agent, and its first report.
async fn machine() -> (Machine, Report) {
    let machine = Machine::start(&[installed()], &[offered()]).await;
    machine.install(&Packages::new().build("deb", "1.0"));
    machine.join("");
    let report = machine.world.report_after(0).await;
    (machine, report)
}

fn unit(name: &str) -> String {
    format!("systemctl show --property=MainPID --value {name}")
}

/// What came of these, in the order of the result.
fn steps(result: &InstallResult) -> Vec<(Step, &str, bool)> {
    result.steps.iter().map(|it| (it.step, it.name.as_str(), it.ok)).collect()
}

fn told(names: &[&str]) -> Option<OutdatedServices> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Some(OutdatedServices { count: u32::try_from(names.len()).unwrap(), names, partial: false })
}

/// The first process of each.
fn processes(machine: &Machine) -> String {
    machine.run("systemctl show --property=MainPID --value pw-web pw-private pw-other pw-jailed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_still_run_what_an_update_has_replaced_are_told_and_go_on() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    let before = processes(&machine);
    assert!(!before.split_whitespace().any(|process| process == "0"), "{before}");
    let maps = machine.run("cat /proc/$(systemctl show --property=MainPID --value pw-jailed)/maps");
    assert!(maps.contains("/usr/lib/pw-lib/libpw.so"), "{maps}");
    assert_eq!(report.outdated_services, told(&[]));
    let login = "LD_PRELOAD=/usr/lib/pw-lib/libpw.so sleep infinity >/dev/null 2>&1 & echo started";
    assert_eq!(machine.run(login), "started");

    world.order(1, &report, &["pw-lib"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let report = world.report_after(1).await;
    assert_eq!(report.outdated_services, told(&["pw-private.service", "pw-web.service"]));
    assert_eq!(processes(&machine), before, "nothing was restarted");
    let status = machine.run("patchwarden-agent status");
    assert!(status.contains("2 still run what was replaced: pw-private.service, pw-web.service\n"), "{status}");

    machine.run("systemctl restart pw-web");
    machine.restart_the_service().await;
    let is_other = |report: &Report| report.outdated_services == told(&["pw-private.service"]);
    world.gateway.report(is_other).await;
}

/// Restarts services, and not the machine.
fn services() -> RestartRule {
    RestartRule { services: true, limit: 0, ..rule(RestartWhen::Never) }
}

/// One more that has loaded the library.
fn run_service(machine: &Machine, name: &str, lines: &str) {
    let unit = format!("[Service]\nEnvironment=LD_PRELOAD=/{LIBRARY}\n{lines}\n");
    machine.world.device.write(&format!("etc/systemd/system/{name}.service"), &unit);
    machine.run(&format!("systemctl daemon-reload; systemctl start {name}"));
}

fn active(unit: &str) -> Check {
    let probe = Probe::ServiceActive { unit: unit.into() };
    Check { name: unit.into(), probe, timeout_seconds: 10, settle_seconds: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_restarted_where_the_rule_says_so_but_those_that_others_need_and_that_the_owner_excludes() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    // One that others would need by its name, one that does not come back, and one that is to run once.
    run_service(&machine, "lxc-pw", "ExecStart=/bin/sleep infinity");
    run_service(&machine, "pw-fails", "ExecStartPre=/bin/mkdir /run/pw-fails\nExecStart=/bin/sleep infinity");
    let once = "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'sleep infinity &'";
    run_service(&machine, "pw-once", once);
    world.device.write("etc/patchwarden/limits.toml", "exclude_services = ['pw-private.*']\n");
    let kept = ["pw-private", "pw-other", "pw-jailed", "lxc-pw"].map(|name| (name, machine.run(&unit(name))));
    let web = machine.run(&unit("pw-web"));

    let safeguards = Safeguards { checks: vec![active("pw-web.service")], ..Safeguards::default() };
    let order = order(world, 1, &report, &["pw-lib"], services());
    world.give(&Order { safeguards, ..order }).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let check = |step| (step, "pw-web.service", true);
    let expected = [
        check(Step::CheckBefore),
        (Step::ServiceRestart, "pw-fails.service", false),
        (Step::ServiceRestart, "pw-web.service", true),
        check(Step::CheckAfter),
    ];
    assert_eq!(steps(&result), expected, "{result:#?}");
    assert!(result.steps[1].message.contains("pw-fails.service"), "{result:#?}");
    let left = told(&["lxc-pw.service", "pw-once.service", "pw-private.service"]);
    assert_eq!(world.report_after(1).await.outdated_services, left);
    for (name, process) in kept {
        assert_eq!(machine.run(&unit(name)), process, "{name}");
    }
    assert_ne!(machine.run(&unit("pw-web")), web);
    let progress: Vec<String> = world.gateway.progress().into_iter().map(|(_, text)| text).collect();
    for words in [
        "lxc-pw.service still runs what was replaced: it is never",
        "exclude_services: pw-private.service",
        "Type=oneshot",
    ] {
        assert!(progress.iter().any(|text| text.contains(words)), "{words} in {progress:#?}");
    }
    let history = machine.run("patchwarden-agent history");
    assert!(history.contains("pw-fails.service was not restarted: "), "{history}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_restarted_once_more_where_a_check_takes_the_update_back() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    let strict = "ExecStart=/bin/sh -c 'grep -q 1.0 /usr/share/pw-lib/version && exec sleep infinity'";
    run_service(&machine, "pw-strict", strict);
    let rollback = Some(Rollback { exclude_packages: Vec::new() });
    let check = Check { settle_seconds: 2, ..active("pw-strict.service") };
    let safeguards = Safeguards { checks: vec![check], rollback, ..Safeguards::default() };
    let order = order(world, 1, &report, &["pw-lib"], services());
    world.give(&Order { safeguards, ..order }).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Failed, "{result:#?}");
    let (forth, back) = (Step::ServiceRestart, Step::ServiceRolledBack);
    let of_services: Vec<_> = steps(&result).into_iter().filter(|(step, _, _)| [forth, back].contains(step)).collect();
    assert_eq!(
        of_services.iter().map(|(step, name, _)| (*step, *name)).collect::<Vec<_>>(),
        [
            (forth, "pw-private.service"),
            (forth, "pw-strict.service"),
            (forth, "pw-web.service"),
            (back, "pw-private.service"),
            (back, "pw-web.service"),
        ],
        "{result:#?}"
    );
    assert_eq!(world.configured("pw-lib"), ["1.0", "2.0", "1.0"]);
    assert_eq!(world.report_after(1).await.outdated_services, told(&[]));
    assert_eq!(machine.run("systemctl is-active pw-web pw-private"), "active\nactive");
}
