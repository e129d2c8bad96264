//! What a planner says beside what is planned: when to look again, who is at work, what anybody offers.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::durations::Durations;
use patchwarden_plan::model::{Claim, Device, Failure, Progress, Snapshot};
use patchwarden_plan::{Planner, plan};
use patchwarden_protocol::order::{Sequence, Verb};

use crate::scenario::{Past, World};

const NOW: &str = "2026-01-05T02:10:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("an instant")
}

fn fleet(yaml: &str) -> Snapshot {
    let yaml = format!(
        "windows: {{nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h}}}}\n\
         devices: {{web-1: {{updates: {{u-1: {{}}, u-2: {{}}}}}}, web-2: {{}}}}\n{yaml}"
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    world.snapshot(&Past::default(), now())
}

const APPROVED: &str = "groups: {all: {selector: {}, default: Approve}}\n";

/// Each fits alone for longer than both do together.
#[test]
fn it_is_looked_again_when_two_do_not_fit_together_any_more() {
    let mut snapshot =
        fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights], installLimit: 1h}}}}"));
    let updates = ["u-1", "u-2"].map(|id| (id.into(), 20 * 60)).into();
    let durations = Durations { updates, ..Durations::default() };
    snapshot.policies[0].progress = Arc::new(Progress { durations, ..Progress::default() });
    let answer = plan(&snapshot, now());
    let install = answer.devices[0].install.as_ref().expect("an install");
    assert_eq!(install.updates.len(), 2);
    let over = install.not_after + SignedDuration::from_nanos(1);
    assert_eq!(answer.next_look, Some(over));
    let install = plan(&snapshot, over).devices[0].install.clone().expect("an install");
    assert_eq!(install.updates.len(), 1, "one of them still fits");
}

#[test]
fn where_the_clock_changes_nothing_it_is_never_looked_again() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: DownloadOnly}}}}"));
    let answer = plan(&snapshot, now());
    assert_eq!(answer.devices[0].install.as_ref().map(|install| install.verb), Some(Verb::Download));
    // The window is nobody's, and still opens and closes.
    let closes = "2026-01-05T04:00:00Z".parse().expect("an instant");
    assert_eq!(answer.next_look, Some(closes));
    let without = Snapshot { windows: vec![], ..snapshot };
    assert_eq!(plan(&without, now()).next_look, None);
}

/// `failedBefore` pardons what failed before that instant, and nothing that failed at it.
#[test]
fn what_failed_at_the_very_instant_still_counts_against_an_update() {
    let is_stopped = |failed_before: &str| {
        let decision = format!("{{update: u-1, action: Reprocess, failedBefore: {failed_before}}}");
        let mut snapshot = fleet(&format!(
            "groups: {{all: {{selector: {{}}, default: Approve, decisions: [{decision}]}}}}\n\
             policies: {{all: {{mode: Install, windows: [nights]}}}}"
        ));
        let last = "2026-01-05T01:00:00Z".parse().expect("an instant");
        let failure = Failure { update: "u-1".into(), attempts: 1, last, attributable: true };
        snapshot.devices[0].failures.push(failure);
        let again = |name: &str| Device { name: name.into(), ..snapshot.devices[0].clone() };
        let (second, third) = (again("web-2"), again("web-3"));
        snapshot.devices.truncate(1);
        snapshot.devices.extend([second, third]);
        plan(&snapshot, now()).policies[0].progress.updates.values().any(|update| update.stopped.is_some())
    };
    assert!(is_stopped("2026-01-05T01:00:00Z"));
    assert!(!is_stopped("2026-01-05T01:00:01Z"));
}

#[test]
fn it_is_known_who_is_at_work_and_what_anybody_offers() {
    let snapshot = fleet(&format!("{APPROVED}policies: {{all: {{mode: Install, windows: [nights]}}}}"));
    let mut planner: Planner<'_, _> =
        Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), snapshot.devices.clone(), now());
    planner.plan(now());
    assert_eq!(planner.at_work(), 0);
    assert!(planner.is_offered(&"u-1".into()) && !planner.is_offered(&"u-3".into()));
    for (held, device) in [(1, 0), (2, 1)] {
        let mut device = snapshot.devices[device].clone();
        device.report.as_mut().expect("a report").offers.clear();
        device.current = Some(Claim {
            sequence: Sequence { epoch: 0, number: 1 },
            policy: "all".into(),
            verb: Verb::Install,
            updates: vec!["u-1".into()],
            not_after: now(),
            limit: SignedDuration::from_hours(1),
            restart: SignedDuration::ZERO,
            expected: SignedDuration::from_hours(1),
            granted: true,
        });
        planner.put(device);
        planner.plan(now());
        assert_eq!(planner.at_work(), held);
    }
    assert!(!planner.is_offered(&"u-1".into()), "nobody offers it any more");
    planner.remove("web-1");
    assert_eq!(planner.at_work(), 1);
}
