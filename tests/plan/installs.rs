//! What an install carries, and what came before it means.

use std::sync::Arc;

use jiff::Timestamp;
use patchwarden_plan::model::{Cause, Device, Failure, Progress, Snapshot, UpdateProgress};
use patchwarden_plan::outcome::{Install, State};
use patchwarden_plan::plan;
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};

use crate::scenario::{Past, World};

fn now() -> Timestamp {
    "2026-01-05T02:10:00Z".parse().expect("an instant")
}

/// One device, which lacks one update, in a window that is open.
fn fleet(policy: &str, decisions: &str) -> Snapshot {
    let yaml = format!(
        "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n\
         groups: {{all: {{selector: {{}}, default: Approve, decisions: [{decisions}]}}}}\n\
         policies: {{all: {{windows: [nights], {policy}}}}}\n\
         devices: {{web-1: {{labels: {{ring: a}}, updates: {{u-1: {{}}}}}}}}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    world.snapshot(&Past::default(), now())
}

fn install(snapshot: &Snapshot) -> Option<Install> {
    plan(snapshot, now()).devices[0].install.clone()
}

#[test]
fn only_what_changes_the_machine_where_the_policy_restarts_it_carries_a_rule_for_restarts() {
    let of = |policy: &str| install(&fleet(policy, "")).expect("an install");
    let restarting = "restart: {when: IfRequired, within: 1h}";
    let install = of(&format!("mode: Install, {restarting}"));
    assert_eq!((install.verb, install.restart.when), (Verb::Install, RestartWhen::IfRequired));
    let download = of(&format!("mode: DownloadOnly, {restarting}"));
    assert_eq!((download.verb, download.restart), (Verb::Download, RestartRule::never()));
    assert_eq!(of("mode: Install, restart: {when: Never, within: 1h}").restart, RestartRule::never());
    // Services are restarted where devices are not, too, and where something is installed.
    let services = "restart: {when: Never, within: 1h, services: true}";
    let restart = of(&format!("mode: Install, {services}")).restart;
    assert_eq!((restart.when, restart.services, restart.within_seconds), (RestartWhen::Never, true, 3600));
    assert_eq!(of(&format!("mode: DownloadOnly, {services}")).restart, RestartRule::never());
}

/// An order that was out of date is an attempt that the device made nothing of.
#[test]
fn an_attempt_that_does_not_count_is_no_failure() {
    let state = |attempts: u32| {
        let mut snapshot = fleet("mode: Install", "");
        let last = "2026-01-05T02:09:00Z".parse().expect("an instant");
        snapshot.devices[0].failures.push(Failure {
            update: "u-1".into(),
            attempts,
            last,
            again: last,
            cause: Cause::Other,
        });
        plan(&snapshot, now()).devices[0].updates[0].state
    };
    assert_eq!((state(0), state(1)), (State::Missing, State::Failed));
}

/// Three devices, of which each made so many attempts.
fn three(attempts: u32) -> Snapshot {
    let mut snapshot = fleet(
        "mode: Install, rings: [{name: a, selector: {matchLabels: {ring: a}}, soak: 0h, minSuccessPercent: 100}]",
        "",
    );
    let last = "2026-01-05T01:00:00Z".parse().expect("an instant");
    let failure = Failure { update: "u-1".into(), attempts, last, again: last, cause: Cause::Update };
    let template = Device { failures: vec![failure], ..snapshot.devices[0].clone() };
    snapshot.devices =
        (1..4).map(|number| Device { name: format!("web-{number}").into(), ..template.clone() }).collect();
    snapshot
}

#[test]
fn attempts_that_do_not_count_neither_stop_an_update_nor_are_evidence_against_it() {
    let is_stopped = |attempts: u32| {
        let plan = plan(&three(attempts), now());
        plan.policies[0].progress.updates.values().any(|update| update.stopped.is_some())
    };
    assert_eq!((is_stopped(0), is_stopped(1)), (false, true));
    let is_proved = |attempts: u32| {
        let mut snapshot = three(attempts);
        let installed = snapshot.updates.number("u-1");
        snapshot.devices[1].failures.clear();
        snapshot.devices[2].failures.clear();
        snapshot.devices[0].installed = [installed].into();
        plan(&snapshot, now()).policies[0].progress.updates.get("u-1").is_some_and(|update| update.ring.is_none())
    };
    assert_eq!((is_proved(0), is_proved(1)), (true, false));
}

/// `failedBefore` lifts what was stopped before that instant, and not what was stopped at it.
#[test]
fn a_stop_is_lifted_by_what_comes_after_it() {
    let installs = |failed_before: &str| {
        let decision = format!("{{update: u-1, action: Reprocess, failedBefore: {failed_before}}}");
        let mut snapshot = fleet("mode: Install", &decision);
        let at = |text: &str| -> Timestamp { text.parse().expect("an instant") };
        let stopped = Some(at("2026-01-05T01:00:00Z"));
        let update = UpdateProgress {
            ring: None,
            opened: at("2026-01-04T00:00:00Z"),
            reached: None,
            stopped,
            installed: 0,
            anywhere: 0,
            failed: vec![],
        };
        snapshot.policies[0].progress =
            Arc::new(Progress { updates: [("u-1".into(), update)].into(), ..Progress::default() });
        install(&snapshot).is_some()
    };
    assert!(!installs("2026-01-05T01:00:00Z"));
    assert!(installs("2026-01-05T01:00:01Z"));
}

/// Both know what the update takes, so that for each it is looked whether that fits into what is left of its own window.
#[test]
fn each_policys_measured_installs_go_by_its_own_windows() {
    let yaml = "windows:\n\
                \x20 nights: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 2h}\n\
                \x20 noons: {timeZone: UTC, schedules: [daily: {at: \"12:00\"}], duration: 2h}\n\
                groups: {all: {selector: {}, default: Approve}}\n\
                policies:\n\
                \x20 a: {mode: Install, windows: [nights], installLimit: 1h}\n\
                \x20 b: {mode: Install, windows: [noons], installLimit: 1h, priority: 1, selector: {matchLabels: {ring: b}}}\n\
                devices:\n\
                \x20 web-1: {labels: {ring: a}, updates: {u-1: {}}}\n\
                \x20 web-2: {labels: {ring: b}, updates: {u-1: {}}}";
    let world: World = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut snapshot = world.snapshot(&Past::default(), now());
    for policy in &mut snapshot.policies {
        Arc::make_mut(&mut policy.progress).durations.updates.insert("u-1".into(), 120);
    }
    let installs = |at: &str| -> Vec<bool> {
        let plan = plan(&snapshot, at.parse().expect("an instant"));
        plan.devices.iter().map(|device| device.install.is_some()).collect()
    };
    assert_eq!(installs("2026-01-05T02:10:00Z"), [true, false]);
    assert_eq!(installs("2026-01-05T12:10:00Z"), [false, true]);
}
