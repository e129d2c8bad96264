//! The agent for Windows, under Wine: `make windows-tests`. Windows Update is played by a stand-in for PowerShell, so what is tested is
//! the agent: its files, processes, boots and orders on another system. How a real Windows answers is not.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "what is tested here runs on the real clock")]

#[path = "../orders/gateway/mod.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod gateway;
mod kills;
mod machine;
mod package;
mod service;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::grant::Purpose;
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};
use patchwarden_protocol::report::{Classification, Tristate};
use patchwarden_protocol::result::{Outcome, ResultReason};

use crate::gateway::{Gateway, action};
use crate::machine::Machine;

/// Longer than it takes to end an agent and to start another one.
const INSTALLING: Duration = Duration::from_secs(8);

async fn joined() -> (Machine, Gateway) {
    let (machine, gateway) = (Machine::new(), Gateway::start().await);
    let arguments = gateway.join_arguments();
    let said = tokio::task::block_in_place(|| machine.said(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(said.starts_with("Joined as acme/device-1, key SHA256:"), "{said}");
    (machine, gateway)
}

// covers BY-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_scans_installs_restarts_and_reports() {
    let (machine, gateway) = joined().await;
    let running = machine.start();
    let report = gateway.report(|report| report.counts.updates > 0).await;
    assert_eq!((report.os.family.as_str(), report.os.arch.as_str()), ("windows", "amd64"), "{report:#?}");
    let ids: Vec<&str> = report.updates.iter().map(|update| update.id.as_str()).collect();
    assert_eq!(ids, ["KB5031364", "KB5031605"]);
    assert_eq!(report.updates[0].classification, Classification::Security);
    assert_eq!((report.restart.required, &report.problems), (Tristate::No, &vec![]));
    assert!(report.counts.packages > 5, "{report:#?}");

    let now = Timestamp::now();
    let mut order = gateway.order(1, &report, &report.updates.iter().collect::<Vec<_>>());
    order.restart = RestartRule {
        when: RestartWhen::IfRequired,
        not_after: now + SignedDuration::from_mins(30),
        within_seconds: 1800,
        warning_seconds: 0,
        message: String::new(),
        limit: 1,
        services: false,
    };
    gateway.send(&gateway.sign(&order)).await;
    gateway.phase("Restarting").await;
    let texts = |gateway: &Gateway| -> Vec<String> {
        gateway.progress().into_iter().filter(|(phase, _)| phase == "Restarting").map(|(_, text)| text).collect()
    };
    gateway
        .until("shutdown.exe", |gateway| texts(gateway).iter().any(|t| t.contains("restarts now")).then_some(()))
        .await;
    let said = texts(&gateway).join("; ");
    assert!(said.contains(r"C:\windows\System32\shutdown.exe /r /t 0 /d p:2:17"), "{said}");
    assert_eq!(gateway.purposes(), [Purpose::Act, Purpose::Restart]);
    assert!(gateway.results().is_empty(), "the result follows the restart");
    // The report before it says that the machine waits.
    let waiting = gateway.report(|report| report.restart.required == Tristate::Yes).await;
    assert_eq!(waiting.counts.updates, 0, "neither is offered any more");

    machine.restart(running);
    gateway.forget_session();
    let _running = machine.start();
    let result = gateway.result(1).await;
    assert_eq!((result.outcome, result.restarts), (Outcome::Succeeded, 1), "{result:#?}\n{}", machine.log());
    assert!(result.actions.iter().all(|action| action.done), "{result:#?}");
    assert_eq!(result.actions[0].message, "a restart completes it");
    let after = gateway.report(|report| report.last_sequence == Some(result.sequence)).await;
    assert_eq!((after.restart.required, after.counts.updates), (Tristate::No, 0));
    assert_ne!(after.boot_id, report.boot_id, "another boot has another id");
    assert_eq!(gateway.arrivals().last(), Some(&"result"));
    let installs = machine.questions().into_iter().filter(|question| question["ask"] == "install").count();
    assert_eq!(installs, 1, "nothing is installed twice");
    let said = tokio::task::block_in_place(|| machine.said(&["history"]));
    assert!(said.contains("Succeeded"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_during_an_install_follows_it_and_what_cannot_be_done_is_refused() {
    let (machine, gateway) = joined().await;
    let mut running = machine.start();
    let report = gateway.report(|report| report.counts.updates > 0).await;
    // Beside the agent that runs no other does.
    let said = tokio::task::block_in_place(|| machine.said(&["run"]));
    assert!(said.contains("another patchwarden-agent is running"), "{said}");
    // Windows fetches ahead, into its own place.
    let order = gateway.order_of(1, &report, vec![action(Verb::Download, &report.updates[1])]);
    gateway.send(&gateway.sign(&order)).await;
    assert_eq!(gateway.result(1).await.outcome, Outcome::Succeeded, "{}", machine.log());
    let report = gateway.report(|report| report.updates.iter().any(|update| update.downloaded)).await;
    // A revision that is not offered.
    let mut other = action(Verb::Install, &report.updates[1]);
    other.packages[0].candidate = "999".into();
    let order = gateway.order_of(2, &report, vec![other]);
    gateway.send(&gateway.sign(&order)).await;
    let result = gateway.result(2).await;
    assert_eq!((result.outcome, result.reason), (Outcome::Refused, Some(ResultReason::Superseded)), "{result:#?}");
    let report = gateway.report(|report| report.last_sequence == Some(result.sequence)).await;

    machine.slow_down(INSTALLING);
    let order = gateway.order(3, &report, &[&report.updates[1]]);
    gateway.send(&gateway.sign(&order)).await;
    gateway.phase("Installing").await;
    running.kill();
    gateway.forget_session();
    let _running = machine.start();
    let result = gateway.result(3).await;
    assert_eq!(result.outcome, Outcome::Succeeded, "{result:#?}\n{}", machine.log());
    let installs = machine.questions().into_iter().filter(|question| question["ask"] == "install").count();
    assert_eq!(installs, 1, "nothing is installed twice");
    let after = gateway.report(|report| report.last_sequence == Some(result.sequence)).await;
    assert_eq!((after.counts.updates, after.restart.required), (1, Tristate::No));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_than_administrators_could_have_made_is_not_taken() {
    let (machine, gateway) = joined().await;
    std::fs::write(machine.state("limits.toml"), "verbs = ['Download']\n").unwrap();
    let running = machine.start();
    let report = gateway.report(|report| report.counts.updates > 0).await;
    assert_eq!(report.problems, []);
    gateway.send(&gateway.sign(&gateway.order(1, &report, &[&report.updates[0]]))).await;
    assert_eq!(gateway.result(1).await.reason, Some(ResultReason::LimitedByDevice));
    drop(running);
    machine.owned_by("BU");
    let said = tokio::task::block_in_place(|| machine.said(&["run"]));
    assert!(said.contains(r"C:\ProgramData\Patchwarden") && said.contains("belongs to"), "{said}");
    let said = tokio::task::block_in_place(|| machine.said(&["doctor"]));
    assert!(said.contains("problem  limits") && said.contains("problem  configuration"), "{said}");
}
