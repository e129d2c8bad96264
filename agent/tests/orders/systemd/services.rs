//! Services on old libraries: of a real systemd, with a library that an update replaces.

use patchwarden_protocol::report::{OutdatedServices, Report};
use patchwarden_protocol::result::Outcome;

use super::machine::Machine;
use crate::device::Package;
use crate::package::Packages;

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
    mkdir -p /srv/jail/usr /srv/jail/proc /srv/jail/dev; ln -s usr/lib usr/lib64 usr/bin /srv/jail/\n\
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
