//! Who will miss a deadline: small fleets whose forecast can be worked out by hand.
//!
//! All devices lack `u-1` since the instant at which they are looked at, and nothing has been measured: an install takes its
//! limit.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Device, Mode, Snapshot};
use patchwarden_plan::outcome::Forecast;
use patchwarden_plan::{Planner, plan};

use crate::scenario::{Past, World};

/// What is of low severity is approved half an hour after the nights' windows open, what is of high when they do.
const GROUPS: &str = "groups: {all: {selector: {}, default: Approve, rules: [\
                      {name: low, severities: [Low], action: Approve, after: 150m}, \
                      {name: high, severities: [High], action: Approve, after: 2h}]}}";

/// The windows, what else the policy says, and the devices. As in a scenario.
fn fleet(windows: &str, policy: &str, devices: &str, now: &str) -> (Snapshot, Timestamp) {
    let names: Vec<&str> = windows.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    let yaml = format!(
        "windows:\n{windows}\n{GROUPS}\n\
         policies: {{all: {{mode: Install, windows: [{}], {policy}}}}}\ndevices:\n{devices}\n",
        names.join(", ")
    );
    let world: World = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let now = now.parse().expect("an instant");
    (world.snapshot(&Past::default(), now), now)
}

/// How many miss their deadline, of how many, and by when the last is done.
fn forecast(windows: &str, policy: &str, devices: &str, now: &str) -> (u32, u32, Option<String>) {
    let (snapshot, now) = fleet(windows, policy, devices, now);
    said(plan(&snapshot, now).policies[0].forecast.as_ref())
}

fn said(forecast: Option<&Forecast>) -> (u32, u32, Option<String>) {
    let Forecast { missing, of, done } = forecast.expect("a forecast").clone();
    (missing, of, done.map(|done| done.strftime("%m-%dT%H:%M").to_string()))
}

fn done(missing: u32, of: u32, done: &str) -> (u32, u32, Option<String>) {
    (missing, of, Some(done.to_owned()))
}

const NIGHTS: &str = r#"  nights: {timeZone: UTC, schedules: [daily: {at: "02:00"}], duration: 2h}"#;
const ONE: &str = "  web-1: {updates: {u-1: {}}}";
const TWO: &str = "  web-1: {updates: {u-1: {}}}\n  web-2: {updates: {u-1: {}}}";

#[test]
fn what_is_done_at_its_deadline_is_done_in_time() {
    // 02:00 and 45 minutes, 2 h 45 min after midnight.
    let at = |within: &str| {
        forecast(NIGHTS, &format!("installLimit: 45m, deadlines: [{{within: {within}}}]"), ONE, "2026-01-05T00:00:00Z")
    };
    assert_eq!(at("165m"), done(0, 1, "01-05T03:00"));
    assert_eq!(at("164m"), done(1, 1, "01-05T03:00"));
}

#[test]
fn a_full_hour_is_told_as_it_is() {
    let policy = "installLimit: 1h, deadlines: [{within: 48h}]";
    assert_eq!(forecast(NIGHTS, policy, ONE, "2026-01-05T00:00:00Z"), done(0, 1, "01-05T03:00"));
}

/// The schema refuses it.
#[test]
fn where_nobody_may_install_nobody_is_done() {
    let policy = "maxConcurrent: 0, deadlines: [{within: 48h}]";
    assert_eq!(forecast(NIGHTS, policy, ONE, "2026-01-05T00:00:00Z"), (1, 1, None));
}

#[test]
fn what_is_only_downloaded_is_never_done() {
    let policy = "installLimit: 1h, deadlines: [{within: 48h}]";
    let (mut snapshot, now) = fleet(NIGHTS, policy, ONE, "2026-01-05T00:00:00Z");
    let settings = snapshot.policies[0].settings.as_mut().expect("settings");
    settings.mode = Mode::DownloadOnly;
    assert_eq!(said(plan(&snapshot, now).policies[0].forecast.as_ref()), (1, 1, None));
}

// covers BY-6
#[test]
fn whoever_does_not_fit_into_the_last_window_misses_the_deadline() {
    let once = r#"  once: {timeZone: UTC, schedules: [once: {at: "2026-01-06T02:00"}], duration: 90m}"#;
    let policy = "installLimit: 1h, deadlines: [{within: 48h}]";
    assert_eq!(forecast(once, policy, TWO, "2026-01-05T00:00:00Z"), done(1, 2, "01-06T03:00"));
}

#[test]
fn a_window_counts_for_a_year_ahead() {
    let policy = "installLimit: 1h, deadlines: [{within: 12000h}]";
    let opens = |at: &str| {
        let once = format!("  once: {{timeZone: UTC, schedules: [once: {{at: \"{at}\"}}], duration: 2h}}");
        forecast(&once, policy, ONE, "2026-01-05T00:00:00Z")
    };
    // 366 days.
    assert_eq!(opens("2027-01-05T23:00"), done(0, 1, "01-06T00:00"));
    assert_eq!(opens("2027-01-06T00:00"), (1, 1, None));
}

/// A window that opens every minute, for an hour each time, is open until one in which it opens no more: three installs one after the other, of
/// which the third has no room for itself. A freeze ends it as well.
#[test]
fn a_window_that_opens_again_before_it_closes_is_one() {
    let policy = "installLimit: 50m, maxConcurrent: 1, deadlines: [{within: 480h}]";
    let devices = format!("{TWO}\n  web-3: {{updates: {{u-1: {{}}}}}}");
    let said = |rest: &str| {
        let often = format!(
            r#"  often: {{timeZone: UTC, schedules: [cron: {{expression: "* 2 * * *"}}], duration: 1h{rest}}}"#
        );
        forecast(&often, policy, &devices, "2026-01-05T00:00:00Z")
    };
    // It closes at 03:59: 02:00 to 02:50 to 03:40, and the next night 02:50.
    assert_eq!(said(""), done(0, 3, "01-06T03:00"));
    let freeze = ", exclusions: [{name: freeze, from: \"2026-01-05T03:30:00Z\", to: \"2026-01-05T12:00:00Z\"}]";
    assert_eq!(said(freeze), done(0, 3, "01-06T04:00"));
}

#[test]
fn the_last_may_begin_at_the_last_instant() {
    let policy = "installLimit: 1h, deadlines: [{severity: Critical, within: 47h}, {within: 48h}]";
    let two = format!("{ONE}\n  web-2: {{updates: {{critical-1: {{severity: Critical}}}}}}");
    assert_eq!(forecast(NIGHTS, policy, &two, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T04:00"));
}

/// One after the other: the second device has no room left in the first.
#[test]
fn of_windows_that_follow_each_other_each_has_its_end() {
    let two = "  first: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 2h}\n  \
               second: {timeZone: UTC, schedules: [daily: {at: \"04:00\"}], duration: 2h}";
    let policy = "installLimit: 90m, deadlines: [{within: 48h}]";
    assert_eq!(forecast(two, policy, TWO, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T06:00"));
}

#[test]
fn windows_that_overlap_are_one_that_ends_with_the_last() {
    let two = "  first: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 2h}\n  \
               second: {timeZone: UTC, schedules: [daily: {at: \"03:00\"}], duration: 2h}";
    let policy = "installLimit: 90m, deadlines: [{within: 48h}]";
    assert_eq!(forecast(two, policy, TWO, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T05:00"));
    // One within the other adds nothing.
    let within = "  first: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 2h}\n  \
                  second: {timeZone: UTC, schedules: [daily: {at: \"02:15\"}], duration: 95m}";
    assert_eq!(forecast(within, policy, TWO, "2026-01-05T00:00:00Z"), done(0, 2, "01-06T04:00"));
    // Nor does it end the other.
    let policy = "installLimit: 115m, deadlines: [{within: 48h}]";
    assert_eq!(forecast(within, policy, ONE, "2026-01-05T00:00:00Z"), done(0, 1, "01-05T04:00"));
}

#[test]
fn a_window_that_has_just_closed_helps_nobody() {
    let short = r#"  nights: {timeZone: UTC, schedules: [daily: {at: "02:00"}], duration: 30m}"#;
    let policy = "installLimit: 20m, deadlines: [{within: 48h}]";
    assert_eq!(forecast(short, policy, ONE, "2026-01-05T02:30:00Z"), done(0, 1, "01-06T03:00"));
}

#[test]
fn installs_begin_before_the_cutoff() {
    let nights = r#"  nights: {timeZone: UTC, schedules: [daily: {at: "02:00"}], duration: 2h, cutoff: 90m}"#;
    let policy = "installLimit: 30m, deadlines: [{within: 48h}]";
    let three = format!("{TWO}\n  web-3: {{updates: {{u-1: {{}}}}}}");
    assert_eq!(forecast(nights, policy, TWO, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T03:00"));
    assert_eq!(forecast(nights, policy, &three, "2026-01-05T00:00:00Z"), done(0, 3, "01-06T03:00"));
}

/// Under a policy that installs at once what disturbs nobody.
fn at_once(windows: &str, policy: &str, devices: &str, now: &str) -> (u32, u32, Option<String>) {
    let (mut snapshot, now) = fleet(windows, policy, devices, now);
    snapshot.policies[0].settings.as_mut().expect("settings").mode = Mode::InstallImmediately;
    said(plan(&snapshot, now).policies[0].forecast.as_ref())
}

const QUIET: &str = "{updates: {u-1: {restart: \"No\", interrupts: \"No\"}}}";

// covers BY-6, MW-6
#[test]
fn what_needs_no_window_waits_for_none() {
    let policy = "installLimit: 45m, maxConcurrent: 1, deadlines: [{within: 2h}]";
    let (one, noon) = (format!("  web-1: {QUIET}"), "2026-01-05T12:00:00Z");
    assert_eq!(forecast(NIGHTS, policy, &one, noon), done(1, 1, "01-06T03:00"));
    assert_eq!(at_once(NIGHTS, policy, &one, noon), done(0, 1, "01-05T13:00"));
    // One after the other.
    let two = format!("{one}\n  web-2: {QUIET}");
    assert_eq!(at_once(NIGHTS, policy, &two, noon), done(0, 2, "01-05T14:00"));
    let restarts = "  web-1: {updates: {u-1: {restart: \"No\", interrupts: \"No\"}, u-2: {}}}";
    assert_eq!(at_once(NIGHTS, policy, restarts, noon), done(1, 1, "01-06T03:00"));
    // Nor does it matter that none of them is long enough.
    let over = "  over: {timeZone: UTC, schedules: [once: {at: \"2026-01-01T02:00\"}], duration: 2h}";
    assert_eq!(at_once(over, policy, &one, noon), done(0, 1, "01-05T13:00"));
    assert_eq!(at_once(over, policy, restarts, noon), (1, 1, None));
}

#[test]
fn what_needs_no_window_keeps_clear_of_exclusions() {
    let frozen = "  nights: {timeZone: UTC, schedules: [daily: {at: \"02:00\"}], duration: 2h, exclusions: \
                  [{name: x, from: 2026-01-05T12:30:00Z, to: 2026-01-05T20:00:00Z}]}";
    let policy = "installLimit: 45m, deadlines: [{within: 48h}]";
    assert_eq!(
        at_once(frozen, policy, &format!("  web-1: {QUIET}"), "2026-01-05T12:00:00Z"),
        done(0, 1, "01-05T21:00")
    );
    let with = |from: &str, to: &str| {
        let frozen = format!(
            "  nights: {{timeZone: UTC, schedules: [daily: {{at: \"02:00\"}}], duration: 2h, exclusions: [{{name: x, from: {from}, to: {to}}}]}}"
        );
        at_once(&frozen, policy, &format!("  web-1: {QUIET}"), "2026-01-05T12:00:00Z")
    };
    // One that begins as it ends, and one that is over.
    assert_eq!(with("2026-01-05T12:45:00Z", "2026-01-05T20:00:00Z"), done(0, 1, "01-05T13:00"));
    assert_eq!(with("2026-01-05T12:44:59Z", "2026-01-05T20:00:00Z"), done(0, 1, "01-05T21:00"));
    assert_eq!(with("2026-01-05T08:00:00Z", "2026-01-05T09:00:00Z"), done(0, 1, "01-05T13:00"));
    // One of no time.
    assert_eq!(with("2026-01-05T12:30:00Z", "2026-01-05T12:30:00Z"), done(0, 1, "01-05T13:00"));
}

#[test]
fn what_began_before_a_window_has_its_place_in_it() {
    let devices = format!("  web-1: {QUIET}\n  web-2: {{updates: {{u-1: {{}}}}}}");
    let policy = "installLimit: 95m, maxConcurrent: 1, deadlines: [{within: 48h}]";
    // From 01:00 to 02:35, and then too little of the night is left.
    assert_eq!(at_once(NIGHTS, policy, &devices, "2026-01-05T01:00:00Z"), done(0, 2, "01-06T04:00"));
}

// covers BY-6
#[test]
fn workstations_catch_up_outside_of_windows() {
    let policy = "installLimit: 45m, catchUp: {after: 6h}, deadlines: [{within: 48h}]";
    let device = |more: &str| format!("  lap-1: {{updates: {{u-1: {{}}}}, {more}}}");
    let noon = "2026-01-05T12:00:00Z";
    let laptop = device("type: Workstation, power: Mains");
    assert_eq!(forecast(NIGHTS, policy, &laptop, noon), done(0, 1, "01-05T19:00"));
    assert_eq!(forecast(NIGHTS, policy, &device("type: Workstation, power: Battery"), noon), done(0, 1, "01-06T03:00"));
    assert_eq!(forecast(NIGHTS, policy, &device("type: Server, power: Mains"), noon), done(0, 1, "01-06T03:00"));
    // The window comes first, and what does not fit into it goes on outside.
    assert_eq!(forecast(NIGHTS, policy, &laptop, "2026-01-05T00:00:00Z"), done(0, 1, "01-05T03:00"));
    let on_battery = policy.replace("after: 6h", "after: 6h, requireMains: false");
    assert_eq!(forecast(NIGHTS, &on_battery, &device("type: Workstation"), noon), done(0, 1, "01-05T19:00"));
}

/// The earliest deadline comes first.
// covers BY-6
#[test]
fn as_many_install_at_a_time_as_the_policy_allows() {
    let policy = "maxConcurrent: 2, installLimit: 90m, deadlines: [{severity: Critical, within: 47h}, {within: 48h}]";
    let critical = "  web-3: {updates: {critical-1: {severity: Critical}}}";
    let two = format!("{ONE}\n{critical}");
    assert_eq!(forecast(NIGHTS, policy, &two, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T04:00"));
    let three = format!("{TWO}\n{critical}");
    assert_eq!(forecast(NIGHTS, policy, &three, "2026-01-05T00:00:00Z"), done(0, 3, "01-06T04:00"));
}

/// A place is not kept for one that is approved in the middle of the window, though its deadline comes first.
#[test]
fn nobody_waits_for_one_that_is_not_ready() {
    let nights = r#"  nights: {timeZone: UTC, schedules: [daily: {at: "02:00"}], duration: 3h}"#;
    let policy = "installLimit: 90m, deadlines: [{severity: Unknown, within: 48h}, {within: 4h}]";
    let low = format!("{ONE}\n  web-2: {{updates: {{low-1: {{severity: Low}}}}}}");
    assert_eq!(forecast(nights, policy, &low, "2026-01-05T00:00:00Z"), done(1, 2, "01-05T05:00"));
    let high = format!("{ONE}\n  web-2: {{updates: {{high-1: {{severity: High}}}}}}");
    assert_eq!(forecast(nights, policy, &high, "2026-01-05T00:00:00Z"), done(0, 2, "01-05T05:00"));
}

/// Soak times that have not begun are counted from each day on: nothing else changes for the device at midnight.
#[test]
fn a_forecast_that_goes_by_soak_times_moves_on_at_midnight() {
    let policy =
        "rings: [{name: pilot, selector: {matchLabels: {ring: pilot}}, soak: 60h}], deadlines: [{within: 120h}]";
    // The pilot never proves anything.
    let devices = format!("  pilot-1: {{labels: {{ring: pilot}}, suspend: true, updates: {{u-1: {{}}}}}}\n{ONE}");
    let (mut snapshot, evening) = fleet(NIGHTS, policy, &devices, "2026-01-05T23:50:00Z");
    for device in &mut snapshot.devices {
        // Else it would be looked at again, for that is yet to be written down.
        (device.last_policy, device.last_group) = (Some("all".into()), Some("all".into()));
    }
    let midnight = "2026-01-06T00:00:00Z".parse().expect("an instant");
    let mut planner = Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, evening);
    // From the 5th at 00:00 on it is the 7th at noon, and the next window is that of the 8th.
    for (now, done_by) in [(evening, "01-08T03:00"), (midnight, "01-09T03:00")] {
        planner.plan(now);
        let policy = planner.policies().next().expect("a policy");
        assert_eq!(said(policy.forecast.as_ref()), done(1, 2, done_by));
    }
}

/// What was said is said again only while nothing has moved: in most minutes nothing does but the clock.
#[test]
fn a_forecast_that_is_kept_is_as_one_that_is_made_anew() {
    let windows = r#"  nights: {timeZone: UTC, schedules: [daily: {at: "00:10"}], duration: 130m}"#;
    let device = |number: usize| {
        let updates = if number < 6 { "{updates: {u-1: {}}}" } else { "{}" };
        format!("  web-{number}: {updates}\n")
    };
    let devices: String = (0..9).map(device).collect();
    let policy = "installLimit: 15m, maxConcurrent: 40%, deadlines: [{within: 35m}]";
    let (mut snapshot, start) = fleet(windows, policy, &devices, "2026-01-05T00:00:00Z");
    let written = snapshot.clone();
    let mut planner: Planner<'_, Device> =
        Planner::new(written.specs(), Cow::Owned(written.updates.clone()), written.devices.clone(), start);
    for minute in 0..240_usize {
        let now = start + SignedDuration::from_mins(i64::try_from(minute).expect("small"));
        let device = &mut snapshot.devices[minute % 9];
        match minute % 7 {
            0 => device.retired = !device.retired,
            3 => device.online = !device.online,
            _ => {}
        }
        planner.put(device.clone());
        planner.plan(now);
        let kept = planner.policies().next().expect("a policy").forecast.clone();
        assert_eq!(kept, plan(&snapshot, now).policies[0].forecast, "{now}");
    }
}

/// Nobody looked when the hour was over.
#[test]
fn a_forecast_that_was_kept_ends_with_its_hour() {
    let policy = "installLimit: 15m, maxConcurrent: 1, deadlines: [{within: 48h}]";
    let (snapshot, start) = fleet(NIGHTS, policy, ONE, "2026-01-05T02:20:00Z");
    let mut planner = Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, start);
    for (now, done_by) in [("02:20", "01-05T03:00"), ("02:50", "01-05T03:00"), ("03:05", "01-05T04:00")] {
        planner.plan(format!("2026-01-05T{now}:00Z").parse().expect("an instant"));
        let policy = planner.policies().next().expect("a policy");
        assert_eq!(said(policy.forecast.as_ref()), done(0, 1, done_by), "{now}");
    }
}
