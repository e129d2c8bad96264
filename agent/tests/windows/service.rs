//! The agent as a service, by Wine's service control manager (`services.exe`), `net` and `sc`. It keeps, and does not carry out, what is to
//! happen after a failure.

use std::fs;

use patchwarden_protocol::result::Outcome;
use tokio::task::block_in_place;

use crate::gateway::Gateway;
use crate::machine::{Machine, Running};
use crate::{INSTALLING, joined};

const NAME: &str = "patchwarden-agent";
const LINE: &str = "\"C:\\Program Files\\Patchwarden\\patchwarden-agent.exe\" --config C:\\ProgramData\\Patchwarden\\agent.toml \
                    --state-dir C:\\ProgramData\\Patchwarden service run";
/// Bytes of one file of the log.
const LOG_MOST: usize = 5 << 20;

/// What the agent says to this.
pub(crate) fn said(machine: &Machine, arguments: &[&str]) -> String {
    block_in_place(|| machine.said(arguments))
}

/// `net start`, `net stop`.
fn net(machine: &Machine, verb: &str) {
    let (is_done, said) = block_in_place(|| machine.windows(&["net.exe", verb, NAME]));
    assert!(is_done, "net {verb}: {said}");
}

/// What `sc query` says of the service, once it is in this state.
pub(crate) async fn in_state(machine: &Machine, gateway: &Gateway, state: &str) -> String {
    let looked = || {
        let (_, said) = block_in_place(|| machine.windows(&["sc.exe", "query", NAME]));
        said.contains(state).then_some(said)
    };
    gateway.until_mut(state, looked).await
}

/// Those that `sc query` prints: the system's, and the service's own.
fn exit_codes(state: &str) -> Vec<&str> {
    let codes = state.lines().filter(|line| line.contains("EXIT_CODE"));
    codes.filter_map(|line| line.split_once(": ")?.1.split_whitespace().next()).collect()
}

pub(crate) fn is_registered(machine: &Machine) -> bool {
    block_in_place(|| machine.windows(&["sc.exe", "query", NAME])).0
}

/// A value of the service in the registry.
fn registered(machine: &Machine, value: &str) -> String {
    value_of(machine, NAME, value).unwrap_or_default()
}

/// A value of the service as a source of events.
fn source(machine: &Machine, value: &str) -> Option<String> {
    value_of(machine, &format!(r"EventLog\Application\{NAME}"), value)
}

fn value_of(machine: &Machine, service: &str, value: &str) -> Option<String> {
    let key = format!(r"HKLM\SYSTEM\CurrentControlSet\Services\{service}");
    let (_, said) = block_in_place(|| machine.windows(&["reg.exe", "query", &key, "/v", value]));
    said.lines().find_map(|line| Some(line.trim().strip_prefix(value)?.trim().to_owned()))
}

/// The texts of events of this kind, as far as Wine prints them.
fn events(machine: &Machine, kind: &str) -> Vec<String> {
    let mark = format!(":{kind}:eventlog:ReportEventW L\"");
    machine.events().lines().filter_map(|line| Some(line.split_once(&mark)?.1.to_owned())).collect()
}

fn log(machine: &Machine) -> String {
    fs::read_to_string(machine.state("log/agent.log")).unwrap_or_default()
}

async fn installed() -> (Machine, Gateway, Running) {
    let (machine, gateway) = joined().await;
    let session = machine.log_in();
    let text = said(&machine, &["service", "install"]);
    assert!(text.contains("is registered") && text.contains("net start patchwarden-agent"), "{text}");
    (machine, gateway, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_registered_once_for_a_program_of_administrators_and_waits_until_the_machine_has_joined() {
    let (machine, gateway) = (Machine::new(), Gateway::start().await);
    let _session = machine.log_in();
    let text = said(&machine, &["service", "run"]);
    assert!(text.contains("the service control manager alone starts it"), "{text}");
    machine.owned_by("BU");
    let text = said(&machine, &["service", "install"]);
    assert!(text.contains("patchwarden-agent.exe: belongs to \"BU\""), "{text}");
    assert!(!is_registered(&machine) && !machine.state("").exists(), "{text}");
    machine.owned_by("BA");
    let text = said(&machine, &["--state-dir", r"C:\elsewhere", "service", "install"]);
    assert!(text.contains("leave --config and --state-dir out"), "{text}");
    assert!(!is_registered(&machine));

    let text = said(&machine, &["service", "install"]);
    assert!(text.contains(r"C:\ProgramData\Patchwarden is made, for the system and administrators alone"), "{text}");
    assert!(text.contains("is registered") && text.contains("Next: `patchwarden-agent join`"), "{text}");
    for (value, expected) in [
        ("ImagePath", format!("REG_SZ    {LINE}")),
        ("DisplayName", "REG_SZ    Patchwarden agent".to_owned()),
        ("ObjectName", "REG_SZ    LocalSystem".to_owned()),
        ("Start", "REG_DWORD    0x2".to_owned()),
    ] {
        assert_eq!(registered(&machine, value), expected, "{value}");
    }
    assert!(registered(&machine, "Description").contains("installs those that were approved"));
    let messages = source(&machine, "EventMessageFile");
    assert_eq!(messages.as_deref(), Some(r"REG_EXPAND_SZ    %SystemRoot%\System32\EventCreate.exe"));
    assert_eq!(source(&machine, "TypesSupported").as_deref(), Some("REG_DWORD    0x7"));
    fs::write(machine.state("agent.toml"), "# an administrator's\n").unwrap();
    let text = said(&machine, &["service", "install"]);
    assert!(text.contains("is registered already: nothing has changed"), "{text}");
    assert_eq!(fs::read_to_string(machine.state("agent.toml")).unwrap(), "# an administrator's\n");

    // Without an identity there is nothing to run for, and nothing to be started again for.
    net(&machine, "start");
    gateway.until("log", |_| log(&machine).contains("this machine has not joined").then_some(())).await;
    let state = in_state(&machine, &gateway, "STOPPED").await;
    assert!(exit_codes(&state) == ["0", "0"] && !log(&machine).contains("ERROR"), "{state}{}", log(&machine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_stopped_while_an_install_runs_which_is_neither_ended_nor_begun_again() {
    let (machine, gateway, _session) = installed().await;
    fs::create_dir_all(machine.state("log")).unwrap();
    fs::write(machine.state("log/agent.log"), "x".repeat(LOG_MOST - 10)).unwrap();
    net(&machine, "start");
    let report = gateway.report(|report| report.counts.updates > 0).await;
    in_state(&machine, &gateway, "RUNNING").await;
    assert_eq!(fs::metadata(machine.state("log/agent.1.log")).unwrap().len(), LOG_MOST as u64 - 10);
    assert!(log(&machine).contains("packages are managed by"), "{}", log(&machine));

    machine.slow_down(INSTALLING);
    gateway.send(&gateway.sign(&gateway.order(1, &report, &[&report.updates[1]]))).await;
    gateway.phase("Installing").await;
    net(&machine, "stop");
    let state = in_state(&machine, &gateway, "STOPPED").await;
    assert_eq!(exit_codes(&state), ["0", "0"], "{state}");
    assert!(log(&machine).contains("stopping; an install that runs goes on by itself"), "{}", log(&machine));
    assert!(gateway.results().is_empty());
    gateway.forget_session();
    net(&machine, "start");
    let result = gateway.result(1).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}\n{}", log(&machine));
    let installs = machine.questions().into_iter().filter(|question| question["ask"] == "install").count();
    assert_eq!(installs, 1, "nothing is installed twice");

    // One that cannot go on says so.
    net(&machine, "stop");
    in_state(&machine, &gateway, "STOPPED").await;
    let configuration = fs::read_to_string(machine.state("agent.toml")).unwrap();
    fs::write(machine.state("agent.toml"), format!("os_updater = 'Disable'\n{configuration}")).unwrap();
    net(&machine, "start");
    gateway.until("log", |_| log(&machine).contains("os_updater: this agent cannot").then_some(())).await;
    // ERROR_SERVICE_SPECIFIC_ERROR, and the service's own.
    assert_eq!(exit_codes(&in_state(&machine, &gateway, "STOPPED").await), ["1066", "1"]);
    let errors = events(&machine, "err");
    assert!(errors.len() == 1 && errors[0].contains("os_updater: this agent cannot"), "{}", machine.events());
    assert!(events(&machine, "trace").is_empty(), "the log has the rest: {}", machine.events());

    // Without a log the event log alone says why.
    fs::remove_dir_all(machine.state("log")).unwrap();
    fs::write(machine.state("log"), "no directory").unwrap();
    net(&machine, "start");
    let no_log = || events(&machine, "err").iter().any(|event| event.contains("there is no log")).then_some(());
    gateway.until("event", |_| no_log()).await;
    assert_eq!(exit_codes(&in_state(&machine, &gateway, "STOPPED").await), ["1066", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_starts_with_the_machine_and_one_that_is_uninstalled_is_stopped_and_leaves_what_it_is_told_to() {
    let (machine, gateway, session) = installed().await;
    machine.pull_the_plug();
    drop(session);
    assert!(log(&machine).is_empty());
    let _session = machine.log_in();
    gateway.report(|report| report.counts.updates > 0).await;
    in_state(&machine, &gateway, "RUNNING").await;

    let text = said(&machine, &["service", "uninstall"]);
    for part in ["has stopped", "is removed", r"C:\ProgramData\Patchwarden stays; --purge removes it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!is_registered(&machine) && machine.state("key.pem").exists());
    assert_eq!(source(&machine, "EventMessageFile"), None);
    assert!(log(&machine).contains("stopping;"), "{}", log(&machine));
    let text = said(&machine, &["service", "uninstall"]);
    assert!(text.contains("There is no service patchwarden-agent"), "{text}");

    // It is who it was; and another program takes the place of the first.
    assert!(said(&machine, &["service", "install"]).contains("Start it"), "it has joined");
    gateway.forget_session();
    net(&machine, "start");
    gateway.connected().await;
    let next = machine.program().with_file_name("next.exe");
    fs::copy(machine.program(), &next).unwrap();
    let (_, text) = block_in_place(|| machine.windows(&[next.to_str().unwrap(), "service", "install"]));
    assert!(text.contains("From its next start the service patchwarden-agent runs"), "{text}");
    assert!(registered(&machine, "ImagePath").contains(r"next.exe"));

    let text = said(&machine, &["service", "uninstall", "--purge"]);
    assert!(
        text.contains("This machine has left") && text.contains(r"C:\ProgramData\Patchwarden is removed"),
        "{text}"
    );
    assert!(!is_registered(&machine) && !machine.state("").exists());
}
