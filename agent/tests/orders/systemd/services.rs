//! Services on old libraries: of a real systemd, with a library that an update replaces.

use std::io::Read as _;
use std::process::{Command, Stdio};

use patchwarden_protocol::order::{Order, RestartRule, RestartWhen};
use patchwarden_protocol::report::{OutdatedServices, Report};
use patchwarden_protocol::result::{InstallResult, Outcome, Step};
use patchwarden_protocol::safeguards::{Check, Probe, Rollback, Safeguards};

use super::machine::Machine;
use crate::device::Package;
use crate::gateway::Granting;
use crate::guards::hook;
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
    machine_of("").await
}

/// With these settings.
async fn machine_of(settings: &str) -> (Machine, Report) {
    let machine = Machine::start(&[installed()], &[offered()]).await;
    machine.install(&Packages::new().build("deb", "1.0"));
    machine.join(settings);
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

fn told(names: &[&str]) -> OutdatedServices {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    OutdatedServices { count: u32::try_from(names.len()).unwrap(), names, partial: false }
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
    assert_eq!(report.outdated_services, Some(told(&[])));
    let login = "LD_PRELOAD=/usr/lib/pw-lib/libpw.so sleep infinity >/dev/null 2>&1 & echo started";
    assert_eq!(machine.run(login), "started");

    world.order(1, &report, &["pw-lib"]).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let report = world.report_after(1).await;
    assert_eq!(report.outdated_services, Some(told(&["pw-private.service", "pw-web.service"])));
    assert_eq!(processes(&machine), before, "nothing was restarted");
    let status = machine.run("patchwarden-agent status");
    assert!(status.contains("2 still run what was replaced: pw-private.service, pw-web.service\n"), "{status}");

    machine.run("systemctl restart pw-web");
    machine.restart_the_service().await;
    let is_other = |report: &Report| report.outdated_services == Some(told(&["pw-private.service"]));
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
    // One that others would need by its name, one that ends once it is up, one that does not come back, and one that is to run once.
    run_service(&machine, "lxc-pw", "ExecStart=/bin/sleep infinity");
    let brief = "ExecStart=/bin/sh -c 'mkdir /run/pw-brief && exec sleep infinity; sleep 0.3; exit 1'";
    run_service(&machine, "pw-brief", brief);
    let fails = "ExecStartPre=/bin/sh -c 'mkdir /run/pw-fails || { sleep 1; exit 1; }'\nExecStart=/bin/sleep infinity";
    run_service(&machine, "pw-fails", fails);
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
        (Step::ServiceRestart, "pw-brief.service", false),
        (Step::ServiceRestart, "pw-fails.service", false),
        (Step::ServiceRestart, "pw-web.service", true),
        check(Step::CheckAfter),
    ];
    assert_eq!(steps(&result), expected, "{result:#?}");
    assert_eq!(result.steps[1].message, "pw-brief.service is failed");
    assert!(result.steps[2].message.contains("pw-fails.service"), "{result:#?}");
    let left = told(&["lxc-pw.service", "pw-once.service", "pw-private.service"]);
    assert_eq!(world.report_after(1).await.outdated_services, Some(left));
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
    assert!(history.contains("restart of pw-fails.service: "), "{history}");
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
            // It is down, and comes first.
            (back, "pw-strict.service"),
            (back, "pw-private.service"),
            (back, "pw-web.service"),
        ],
        "{result:#?}"
    );
    assert_eq!(world.configured("pw-lib"), ["1.0", "2.0", "1.0"]);
    assert_eq!(world.report_after(1).await.outdated_services, Some(told(&[])));
    assert_eq!(machine.say("systemctl is-active pw-strict pw-web pw-private"), "active\nactive\nactive");
    let last = result.steps.last().unwrap();
    assert_eq!((last.step, last.ok), (Step::CheckRolledBack, true), "{result:#?}");
}

/// The first of them is named, with why all were left.
fn assert_left(result: &InstallResult, step: Step, name: &str, why: &str) {
    let of_step: Vec<_> = result.steps.iter().filter(|it| it.step == step).collect();
    let [left] = of_step[..] else { panic!("{result:#?}") };
    let words = "it and those after it were left as they are: ";
    assert!(left.message.starts_with(words) && left.message.contains(why), "{result:#?}");
    assert_eq!((left.name.as_str(), left.ok), (name, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_left_where_the_controller_has_denied_a_restart() {
    let (machine, report) = machine_of("restart_command = ['true']\n").await;
    let world = &machine.world;
    machine.run("touch /run/reboot-required");
    let before = processes(&machine);
    world.gateway.set_granting_restarts(Granting::Deny);
    let rule = RestartRule { services: true, ..rule(RestartWhen::IfRequired) };
    world.give(&order(world, 1, &report, &["pw-lib"], rule)).await;
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    assert_eq!(result.restart_postponed, "Suspended: the policy is suspended");
    let why = "the controller has denied a restart: Suspended";
    assert_left(&result, Step::ServiceRestart, "pw-private.service", why);
    assert_eq!(processes(&machine), before);
}

/// On the way forth they were not tried, so that they are none of its on the way back either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_restarts_no_services_that_the_order_had_to_leave() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    world.script("break", "systemctl stop pw-other; exit 1");
    let rollback = Some(Rollback { exclude_packages: Vec::new() });
    let checks = vec![active("pw-other.service")];
    let safeguards = Safeguards { after: vec![hook("break")], checks, rollback, ..Safeguards::default() };
    let before = machine.run(&unit("pw-web pw-private"));
    let first = order(world, 1, &report, &["pw-lib"], services());
    world.give(&Order { safeguards: safeguards.clone(), ..first }).await;
    let result = world.gateway.result(1).await;
    assert_eq!(world.configured("pw-lib"), ["1.0", "2.0", "1.0"], "{result:#?}");
    for step in [Step::ServiceRestart, Step::ServiceRolledBack] {
        assert_left(&result, step, "pw-private.service", "a hook failed after which nothing more is done");
    }
    let of_way_back = [Step::Rollback, Step::ServiceRolledBack, Step::CheckRolledBack];
    assert_eq!(result.steps.iter().rev().take(3).rev().map(|it| it.step).collect::<Vec<_>>(), of_way_back);
    assert_eq!(machine.run(&unit("pw-web pw-private")), before);

    // When it is too late. What the owner excludes is none of those that were left for it.
    let report = world.report_after(1).await;
    machine.run("systemctl start pw-other");
    world.script("break", "sleep 2; systemctl stop pw-other");
    world.device.write("etc/patchwarden/limits.toml", "exclude_services = ['pw-private']\n");
    let soon = RestartRule { within_seconds: 1, ..services() };
    world.give(&Order { safeguards, ..order(world, 2, &report, &["pw-lib"], soon) }).await;
    let result = world.gateway.result(2).await;
    assert_eq!(world.configured("pw-lib"), ["1.0", "2.0", "1.0", "2.0", "1.0"], "{result:#?}");
    for step in [Step::ServiceRestart, Step::ServiceRolledBack] {
        assert_left(&result, step, "pw-web.service", "none is restarted after");
    }
    assert_eq!(machine.run(&unit("pw-web pw-private")), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_wait_for_another_program_that_uses_the_package_manager() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    world.script("hold", "touch /var/log/reached; while [ ! -e /var/log/go ]; do sleep 0.1; done");
    let safeguards = Safeguards { after: vec![hook("hold")], ..Safeguards::default() };
    let before = processes(&machine);
    world.give(&Order { safeguards, ..order(world, 1, &report, &["pw-lib"], services()) }).await;
    world.until_on_device("var/log/reached").await;
    let lock = world.device.root.join("var/lib/dpkg/lock-frontend");
    let script = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('x', flush=True); sys.stdin.read()";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(lock).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut other = command.spawn().unwrap();
    other.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    world.device.write("var/log/go", "");
    let is_waiting = |text: &str| text == "waits for another program that uses the package manager";
    world
        .gateway
        .until("waiting", |gateway| gateway.progress().iter().any(|(_, text)| is_waiting(text)).then_some(()))
        .await;
    assert_eq!(processes(&machine), before);
    drop(other.stdin.take());
    other.wait().unwrap();
    let result = world.gateway.result(1).await;
    let restarted = |name| (Step::ServiceRestart, name, true);
    let expected = [(Step::HookAfter, "hold", true), restarted("pw-private.service"), restarted("pw-web.service")];
    assert_eq!(steps(&result), expected, "{result:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_while_it_restarts_a_service_tells_what_became_of_it_and_goes_on() {
    let (machine, report) = machine().await;
    let world = &machine.world;
    let slow =
        "ExecStartPre=/bin/sh -c 'while [ -e /var/log/hold ]; do sleep 0.1; done'\nExecStart=/bin/sleep infinity";
    run_service(&machine, "pw-slow", slow);
    world.device.write("var/log/hold", "");
    world.give(&order(world, 1, &report, &["pw-lib"], services())).await;
    let state = || machine.say("systemctl show --property=ActiveState --value pw-slow");
    world.gateway.until("restart", |_| (state() == "activating").then_some(())).await;
    machine.run("systemctl stop patchwarden-agent");
    world.gateway.forget_session();
    machine.run("rm /var/log/hold");
    world.gateway.until("slow service", |_| (state() == "active").then_some(())).await;
    let process = machine.run(&unit("pw-slow"));
    machine.run("systemctl start patchwarden-agent");
    let result = world.gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}");
    let restarted = ["pw-private.service", "pw-slow.service", "pw-web.service"];
    assert_eq!(steps(&result), restarted.map(|name| (Step::ServiceRestart, name, true)), "{result:#?}");
    assert_eq!(result.steps[1].message, "the agent was interrupted while it was restarted");
    assert_eq!(machine.run(&unit("pw-slow")), process, "once");
}
