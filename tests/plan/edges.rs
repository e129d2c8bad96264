//! Total: at the ends of time and with numbers that the schema would refuse there is still an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::durations::FOLLOWED;
use patchwarden_plan::model::{
    Amount, Approvals, Calendar, Catalogue, CatchUp, Cause, Claim, Cron, Deadlines, Device, DeviceReport, DeviceType,
    Exclusion, Failure, Filters, Group, Labels, Level, Measured, Members, Mode, Moved, Name, Offer, Policy, Restart,
    Ring, RingMembers, Rollout, RuleAction, Schedule, Selector, Settings, Snapshot, SpecDigests, Update, WhenEmpty,
    Window, Zone,
};
use patchwarden_plan::outcome::DecidedBy;
use patchwarden_plan::window::Moment;
use patchwarden_plan::{Blocked, may_act, may_restart, plan};
use patchwarden_protocol::order::{Dependencies, RestartWhen, Sequence, Verb};
use patchwarden_protocol::report::{Classification, Power, Severity, Tristate};

use crate::fleet::{in_no_catalogue, into_catalogue};
use crate::scenario::{Past, World};
use crate::vectors::step;

const DURATIONS: [SignedDuration; 4] =
    [SignedDuration::ZERO, SignedDuration::from_hours(1), SignedDuration::MAX, SignedDuration::MIN];

fn instants() -> [Timestamp; 5] {
    let today = Timestamp::from_second(1_772_323_200).expect("2026-03-01");
    [Timestamp::MIN, Timestamp::UNIX_EPOCH, today, Timestamp::MAX - SignedDuration::from_hours(1), Timestamp::MAX]
}

fn schedules() -> Vec<Schedule> {
    let at = Time::midnight();
    let monthly = |week, offset_days| Schedule::Monthly { week, weekday: Weekday::Friday, offset_days, at };
    vec![
        Schedule::Daily { at },
        Schedule::Weekly { weekdays: vec![], at },
        monthly(-1, i32::MAX),
        monthly(1, i32::MIN),
        monthly(i8::MAX, 0),
        monthly(0, 0),
        Schedule::Once { at: DateTime::MAX },
        Schedule::Once { at: DateTime::MIN },
        cron("* * * * *"),
        cron("0 0 29 2 *"),
    ]
}

fn cron(expression: &str) -> Schedule {
    Schedule::Cron(Cron::parse(expression).expect("a cron expression"))
}

#[allow(clippy::too_many_lines, reason = "every field has its extreme")]
fn snapshot(schedule: Schedule, duration: SignedDuration, cutoff: SignedDuration, at: Timestamp) -> Snapshot {
    let zone = TimeZone::get("Pacific/Apia").expect("a time zone");
    let exclusion = |from, to| Exclusion { name: "x".into(), from, to };
    let claim = Claim {
        sequence: Sequence { epoch: u32::MAX, number: u32::MAX },
        policy: "p".into(),
        verb: Verb::Install,
        updates: vec!["u".into()],
        granted: false,
        not_after: Timestamp::MAX,
        limit: duration,
        restart: SignedDuration::ZERO,
        expected: duration,
    };
    let mut updates = Catalogue::default();
    let update = updates.intern(Update {
        id: "u".into(),
        classification: Classification::Security,
        severity: Severity::Unknown,
        packages: vec![],
        cves: vec![],
        published: None,
    });
    let device = |name: &str, current: Option<Claim>| Device {
        name: name.into(),
        labels: Labels::default(),
        device_type: DeviceType::Server,
        zone: Some(Ok(zone.clone())),
        suspended: false,
        retired: false,
        report: Ok(DeviceReport {
            os: Arc::default(),
            offers: vec![Offer {
                update,
                held: false,
                downloaded: false,
                requires_restart: Tristate::Unknown,
                interrupts_service: Tristate::Unknown,
                first_seen: at,
                missing_since: Timestamp::MAX,
                installed: None,
            }],
            removable: vec![],
            restart: None,
            truncated: false,
            restart_required: Tristate::Unknown,
            problems: vec![],
            power: Power::Unknown,
            applications: BTreeMap::new(),
        }),
        last_group: Some("g".into()),
        last_possible: Box::default(),
        online: current.is_some(),
        online_since: Some(at),
        clock_off: None,
        on_hold: false,
        current,
        installed: vec![],
        last_policy: Some("p".into()),
        moved: Some(Box::new(Moved { since: at, before: None })),
        eligible: true,
        measured: vec![],
        failures: vec![Failure { update: "u".into(), attempts: u32::MAX, last: at, again: at, cause: Cause::Update }],
    };
    Snapshot {
        policies: vec![Policy {
            name: "p".into(),
            selector: Selector::default(),
            types: vec![],
            groups: vec![],
            exclude_groups: vec![],
            exclude: vec![],
            priority: i32::MIN,
            disruption: None,
            settings: Ok(Settings {
                deadlines: Deadlines::default(),
                mode: Mode::Install,
                filters: Filters::default(),
                restart: Restart::default(),
                suspended: false,
                windows: vec!["w".into(), "w".into()],
                rollout: Rollout {
                    max_concurrent: Amount::Percent(u32::MAX),
                    rings: vec![Ring {
                        name: "r".into(),
                        members: RingMembers::Percent(50),
                        soak: cutoff,
                        min_successes: 0,
                        min_success_percent: u32::MAX,
                        when_empty: WhenEmpty::Promote,
                    }],
                    failure_budget: None,
                    resumed: Some(at),
                },
                dependencies: Dependencies::Strict,
                install_limit: duration,
                retry_limit: u32::MAX,
                retry_backoff: cutoff,
                catch_up: Some(CatchUp { after: cutoff, require_mains: false }),
                settle: cutoff,
                blast_limit: Amount::Percent(u32::MAX),
                confirm: None,
                applications: BTreeMap::new(),
            }),
            progress: Arc::default(),
            specs: SpecDigests { selection: "s".into(), rest: "r".into() },
        }],
        groups: vec![Group {
            name: "g".into(),
            parent: None,
            level: Level::Group,
            members: Members { selector: Some(Selector::default()), names: vec![], rule: None },
            priority: i32::MAX,
            approvals: Ok(Approvals {
                decisions: vec![],
                rules: vec![],
                default: Some(RuleAction::Approve),
                min_artifact_age: Some(SignedDuration::MIN),
            }),
            seen: vec![],
            spec: "g".into(),
        }],
        windows: vec![Window {
            name: "w".into(),
            calendar: Ok(Calendar {
                zone: Zone::Device,
                schedules: vec![schedule],
                duration,
                cutoff,
                exclusions: vec![exclusion(at, at), exclusion(Timestamp::MAX, at), exclusion(at, Timestamp::MAX)],
            }),
            spec: "w".into(),
        }],
        devices: vec![device("free", None), device("held", Some(claim))],
        updates,
        vulnerabilities: None,
        seen: vec![],
    }
}

#[test]
fn there_is_an_answer_at_the_ends_of_time() {
    let schedules = schedules();
    let rooms = DURATIONS.into_iter().flat_map(|a| DURATIONS.into_iter().map(move |b| (a, b)));
    let times = instants().into_iter().flat_map(|now| instants().into_iter().map(move |at| (now, at)));
    let cases = rooms.flat_map(|room| times.clone().map(move |times| (room, times)));
    let cases = cases.flat_map(|case| schedules.iter().map(move |schedule| (schedule, case)));
    // All of them with `make test-long`: they take 20 seconds.
    for (schedule, ((duration, cutoff), (now, at))) in cases.step_by(step(7)) {
        let snapshot = snapshot(schedule.clone(), duration, cutoff, at);
        let answer = plan(&snapshot, now);
        assert!(answer.next_look.is_none_or(|look| look > now));
        for update in answer.devices.iter().flat_map(|device| &device.updates) {
            assert!(update.eligible_at.is_none_or(|eligible| eligible > now));
        }
        let _ = may_act(&snapshot, "held", now);
    }
}

#[test]
fn an_empty_snapshot_has_an_empty_plan() {
    let answer = plan(&Snapshot::default(), Timestamp::UNIX_EPOCH);
    assert_eq!(answer, patchwarden_plan::Plan::default());
    assert_eq!(may_act(&Snapshot::default(), "d", Timestamp::UNIX_EPOCH), Err(Blocked::UnknownDevice));
}

#[test]
fn a_freeze_of_twenty_years_does_not_hide_the_window_after_it() {
    let sundays = Schedule::Weekly { weekdays: vec![Weekday::Sunday], at: Time::midnight() };
    let mut calendar = calendar(sundays, 2);
    let (from, to) = (at("2026-01-01T00:00:00Z"), at("2046-01-01T01:00:00Z"));
    calendar.exclusions = vec![Exclusion { name: "x".into(), from, to }];
    let opening = calendar.next_opening(&TimeZone::UTC, at("2026-02-01T00:00:00Z")).expect("an opening");
    assert_eq!((opening.start, opening.end), (at("2046-01-07T00:00:00Z"), at("2046-01-07T02:00:00Z")));
}

/// Samoa had no 2011-12-30: at noon of that Friday, by the clock of the day before, it was noon of Saturday.
#[test]
fn a_start_on_a_day_that_was_skipped_comes_a_day_later_by_the_calendar() {
    let zone = TimeZone::get("Pacific/Apia").expect("a time zone");
    let fridays = Schedule::Weekly { weekdays: vec![Weekday::Friday], at: Time::constant(12, 0, 0, 0) };
    for fridays in [fridays, cron("0 12 * * FRI")] {
        let calendar = calendar(fridays, 2);
        let opening = calendar.next_opening(&zone, at("2011-12-30T15:00:00Z")).expect("an opening");
        assert_eq!(opening.start, at("2011-12-30T22:00:00Z"));
        let until = at("2011-12-31T00:00:00Z");
        assert_eq!(calendar.at(&zone, at("2011-12-30T23:00:00Z")), Moment::Open { until });
    }
}

/// Newfoundland's clocks once went from 00:01 on Sunday back to 23:01 on Saturday.
#[test]
fn a_start_before_midnight_came_twice_still_counts_on_the_day_before() {
    let zone = TimeZone::get("America/St_Johns").expect("a time zone");
    let sundays = Schedule::Weekly { weekdays: vec![Weekday::Sunday], at: Time::midnight() };
    let until = at("2005-10-30T04:30:00Z");
    for sundays in [sundays, cron("0 0 * * SUN")] {
        assert_eq!(calendar(sundays, 2).at(&zone, at("2005-10-30T02:45:00Z")), Moment::Open { until });
    }
}

/// 29 February comes after eight years where a century has none; the last is that of 4996, since croner ends with 5000.
#[test]
fn a_day_that_comes_once_in_eight_years_is_found_from_both_sides() {
    let calendar = calendar(cron("30 2 29 2 *"), 2);
    let zone = TimeZone::get("Europe/Berlin").expect("a time zone");
    let starts: Vec<Timestamp> =
        calendar.openings(&zone, at("2092-03-01T00:00:00Z")).take(2).map(|span| span.start).collect();
    assert_eq!(starts, [at("2096-02-29T01:30:00Z"), at("2104-02-29T01:30:00Z")]);
    assert_eq!(calendar.openings(&zone, at("4992-03-01T00:00:00Z")).count(), 1);
    let long = Calendar { duration: SignedDuration::from_hours(24 * 366 * 10), ..calendar };
    let until = starts[0] + long.duration;
    assert_eq!(long.at(&zone, starts[1] - SignedDuration::from_nanos(1)), Moment::Open { until });
}

/// In Berlin 02:00 to 03:00 does not exist on 2026-03-29 and exists twice on 2026-10-25.
#[test]
fn an_expression_that_fires_every_half_hour_meets_a_gap_and_an_overlap() {
    let calendar = calendar(cron("*/30 * * * *"), 1);
    let zone = TimeZone::get("Europe/Berlin").expect("a time zone");
    let starts = |after: &str, count| -> Vec<String> {
        let openings = calendar.openings(&zone, at(after)).take(count);
        openings.map(|span| span.start.strftime("%H:%M").to_string()).collect()
    };
    // 02:00 and 02:30 are the instants of 03:00 and 03:30.
    assert_eq!(starts("2026-03-29T00:15:00Z", 4), ["00:30", "01:00", "01:30", "02:00"]);
    // From the second 02:00, at 01:00Z, nothing fires for an hour: what was open goes on until then.
    assert_eq!(starts("2026-10-24T23:45:00Z", 4), ["00:00", "00:30", "02:00", "02:30"]);
    let until = at("2026-10-25T01:30:00Z");
    assert_eq!(calendar.at(&zone, at("2026-10-25T01:15:00Z")), Moment::Open { until });
    assert_eq!(calendar.at(&zone, until), Moment::Closed);
}

/// On Lord Howe Island 02:00 to 02:30 does not exist on 2026-10-04: it is 15:30 of the 3rd in UTC.
#[test]
fn what_is_named_within_a_gap_may_come_after_what_is_named_behind_it() {
    let calendar = calendar(cron("10,35 2 * * *"), 1);
    let zone = TimeZone::get("Australia/Lord_Howe").expect("a time zone");
    let starts = calendar.openings(&zone, at("2026-10-03T15:00:00Z")).take(2).map(|span| span.start);
    assert_eq!(starts.collect::<Vec<_>>(), [at("2026-10-03T15:35:00Z"), at("2026-10-03T15:40:00Z")]);
    let until = at("2026-10-03T16:40:00Z");
    assert_eq!(calendar.at(&zone, at("2026-10-03T15:42:00Z")), Moment::Open { until });
}

#[test]
fn an_opening_that_leaves_exactly_the_room_leaves_enough() {
    let daily = calendar(Schedule::Daily { at: Time::midnight() }, 2);
    let next = |room| daily.next_opening_with(&TimeZone::UTC, at("2026-01-01T12:00:00Z"), room);
    assert_eq!(next(SignedDuration::from_hours(2)), Some(at("2026-01-02T00:00:00Z")));
    assert_eq!(next(SignedDuration::from_hours(2) + SignedDuration::from_nanos(1)), None);
}

/// Neither should happen; neither may do harm.
#[test]
fn what_is_told_twice_counts_once_and_the_worst_failure_counts() {
    let noon = at("2026-03-02T12:00:00Z");
    let hour = SignedDuration::from_hours(1);
    let mut snapshot = snapshot(Schedule::Daily { at: Time::midnight() }, hour * 100, hour, noon);
    snapshot.windows[0].calendar.as_mut().expect("a calendar").exclusions.clear();
    snapshot.devices.retain(|device| &*device.name == "free");
    let device = &mut snapshot.devices[0];
    device.online = true;
    device.moved = None;
    device.failures.clear();
    let report = device.report.as_mut().expect("a report");
    report.offers.push(report.offers[0].clone());
    let settings = snapshot.policies[0].settings.as_mut().expect("settings");
    settings.install_limit = hour;
    settings.retry_limit = 2;
    settings.rollout.rings.clear();

    let install = plan(&snapshot, noon).devices[0].install.clone().expect("an install");
    assert_eq!(install.updates, [Name::from("u")]);

    // One of the two is held, which blocks both: the order goes by ids.
    let mut held = snapshot.clone();
    held.devices[0].report.as_mut().expect("a report").offers[1].held = true;
    let device = &plan(&held, noon).devices[0];
    assert_eq!(device.install, None);
    assert!(device.updates.iter().all(|update| update.blocked.as_deref() == Some(&Blocked::Held)), "{device:?}");

    let failed = |attempts, hours_ago: i32| Failure {
        update: "u".into(),
        attempts,
        last: noon - hour * hours_ago,
        again: noon - hour * hours_ago,
        cause: Cause::Other,
    };
    snapshot.devices[0].failures = vec![failed(1, 50), failed(3, 60), failed(2, 40)];
    let update = plan(&snapshot, noon).devices[0].updates[0].clone();
    assert_eq!(update.blocked.as_deref(), Some(&Blocked::RetriesExhausted { attempts: 3 }));
}

#[test]
fn all_of_a_hundred_updates_are_written_down_as_seen() {
    let noon = at("2026-03-02T12:00:00Z");
    let mut snapshot =
        snapshot(Schedule::Daily { at: Time::midnight() }, SignedDuration::from_hours(1), SignedDuration::ZERO, noon);
    let of_the_first = snapshot.devices[0].report.as_ref().expect("a report").offers[0].clone();
    let offers: Vec<Offer> = (0..100)
        .map(|number| {
            let content = snapshot.updates.get(of_the_first.update).expect("an update").clone();
            let update = Update { id: format!("u-{number}").as_str().into(), ..(*content).clone() };
            Offer { update: snapshot.updates.intern(update), ..of_the_first.clone() }
        })
        .collect();
    for device in &mut snapshot.devices {
        device.report.as_mut().expect("a report").offers.clone_from(&offers);
    }
    let answer = plan(&snapshot, noon);
    let seen: BTreeSet<&str> = answer.groups[0].seen.iter().map(|seen| &*seen.id).collect();
    assert!((0..100).all(|number| seen.contains(format!("u-{number}").as_str())), "{seen:?}");
}

/// Of more than can be written down the rest is forgotten, although it is all offered.
#[test]
fn what_was_measured_is_written_down_for_an_hour_and_for_so_many_updates() {
    let noon = at("2026-03-02T12:00:00Z");
    let hour = SignedDuration::from_hours(1);
    let mut snapshot = snapshot(Schedule::Daily { at: Time::midnight() }, hour * 24, SignedDuration::ZERO, noon);
    snapshot.windows[0].calendar.as_mut().expect("a calendar").exclusions.clear();
    snapshot.devices.retain(|device| &*device.name == "free");
    let mut measured = |number: usize, at: Timestamp| {
        let updates: Vec<Name> = (0..number).map(|number| format!("u-{number}").as_str().into()).collect();
        let offers = updates.iter().map(|id| Offer {
            update: snapshot.updates.intern(Update {
                id: id.clone(),
                classification: Classification::Security,
                severity: Severity::Unknown,
                packages: vec![],
                cves: vec![],
                published: None,
            }),
            ..snapshot.devices[0].report.as_ref().expect("a report").offers[0].clone()
        });
        let offers = offers.collect();
        let device = &mut snapshot.devices[0];
        device.report.as_mut().expect("a report").offers = offers;
        device.measured = vec![Measured { updates, kinds: vec![], seconds: 600, at }];
        plan(&snapshot, noon).policies[0].progress.durations.updates.len()
    };
    let nanosecond = SignedDuration::from_nanos(1);
    assert_eq!(measured(FOLLOWED + 1, noon), FOLLOWED);
    assert_eq!(measured(1, noon - hour + nanosecond), 1);
    assert_eq!(measured(1, noon - hour), 0);
}

/// A kind of which nothing is known says nothing of an update that was measured.
#[test]
fn an_update_that_was_measured_is_expected_to_take_as_long_whatever_its_kind() {
    let noon = at("2026-03-02T12:00:00Z");
    let hour = SignedDuration::from_hours(1);
    let mut snapshot = snapshot(Schedule::Daily { at: Time::midnight() }, hour * 24, SignedDuration::ZERO, noon);
    snapshot.windows[0].calendar.as_mut().expect("a calendar").exclusions.clear();
    snapshot.devices.retain(|device| &*device.name == "free");
    let device = &mut snapshot.devices[0];
    (device.online, device.moved) = (true, None);
    device.failures.clear();
    let policy = &mut snapshot.policies[0];
    let settings = policy.settings.as_mut().expect("settings");
    settings.rollout.rings.clear();
    settings.install_limit = hour;
    Arc::make_mut(&mut policy.progress).durations.updates.insert("u".into(), 120);
    let expected = |snapshot: &Snapshot| plan(snapshot, noon).devices[0].install.clone().expect("an install").expected;
    assert_eq!(expected(&snapshot), SignedDuration::from_mins(4));
    // One that does not count does not make it take its limit; one that does would.
    let failed = |attempts| Failure {
        update: "u".into(),
        attempts,
        last: noon - hour * 20,
        again: noon - hour * 20,
        cause: Cause::Other,
    };
    snapshot.devices[0].failures.push(failed(0));
    assert_eq!(expected(&snapshot), SignedDuration::from_mins(4));
    snapshot.devices[0].failures[0] = failed(1);
    assert_eq!(expected(&snapshot), hour);
}

/// It is in a device's status.
#[test]
fn what_decided_is_told_in_words() {
    let by = |by: DecidedBy| by.to_string();
    let (group, update, rule) = (Name::from("g"), Name::from("u"), Name::from("r"));
    assert_eq!(by(DecidedBy::Decision { group: group.clone(), update }), "ApprovalGroup/g decision u");
    assert_eq!(by(DecidedBy::Rule { group: group.clone(), rule }), "ApprovalGroup/g rule r");
    assert_eq!(by(DecidedBy::Default { group }), "ApprovalGroup/g default");
    let restart = DecidedBy::Restart { policy: "p".into(), when: RestartWhen::Never };
    assert_eq!(by(restart), "PatchPolicy/p restart Never");
}

#[test]
fn a_restart_is_asked_about_only_by_a_device_that_has_had_its_grant() {
    let noon = at("2026-03-02T12:00:00Z");
    let hour = SignedDuration::from_hours(1);
    let mut snapshot = snapshot(Schedule::Daily { at: Time::midnight() }, hour * 24, SignedDuration::ZERO, noon);
    let calendar = snapshot.windows[0].calendar.as_mut().expect("a calendar");
    (calendar.zone, calendar.exclusions) = (Zone::Fixed(TimeZone::UTC), vec![]);
    let settings = snapshot.policies[0].settings.as_mut().expect("settings");
    (settings.install_limit, settings.restart.when) = (hour, RestartWhen::Never);
    let mut may = |granted| {
        snapshot.devices.iter_mut().filter_map(|device| device.current.as_mut()).for_each(|it| it.granted = granted);
        may_restart(&snapshot, "held", noon).map_err(|blocked| blocked.code())
    };
    assert_eq!(may(false), Err("NotClaimed"));
    assert_eq!(may(true), Err("NeverRestarts"));
}

#[test]
fn a_restart_after_an_install_begins_only_while_a_window_is_open() {
    let one = at("2026-03-02T01:00:00Z");
    let minutes = SignedDuration::from_mins;
    let midnight = Schedule::Daily { at: Time::midnight() };
    let mut snapshot = snapshot(midnight, minutes(120), SignedDuration::ZERO, one - minutes(60 * 48));
    snapshot.windows[0].calendar.as_mut().expect("a calendar").exclusions.clear();
    for device in &mut snapshot.devices {
        device.zone = Some(Ok(TimeZone::UTC));
        device.failures.clear();
        device.current.iter_mut().for_each(|claim| claim.granted = true);
    }
    let settings = snapshot.policies[0].settings.as_mut().expect("settings");
    (settings.install_limit, settings.restart.when) = (minutes(60), RestartWhen::IfRequired);
    settings.rollout.rings.clear();
    assert_eq!(may_restart(&snapshot, "held", one), Ok(()));
    let opens = Some(at("2026-03-03T00:00:00Z"));
    let end = one + minutes(60);
    assert_eq!(may_restart(&snapshot, "held", end), Err(Blocked::RestartTooLate { opens }));
    // A rollout that is paused restarts nothing for an install, and what is to be taken back is only gone after a restart.
    Arc::make_mut(&mut snapshot.policies[0].progress).paused = Some(one - minutes(1));
    for (verb, expected) in [(Verb::Install, Err("RolloutPaused")), (Verb::Uninstall, Ok(()))] {
        snapshot.devices.iter_mut().filter_map(|device| device.current.as_mut()).for_each(|claim| claim.verb = verb);
        assert_eq!(may_restart(&snapshot, "held", one).map_err(|blocked| blocked.code()), expected, "{verb:?}");
    }
}

/// The claim goes by what it expected, whatever the policy has come to say or to measure since.
#[test]
fn a_grant_asks_for_room_for_the_time_that_the_claim_expected() {
    let one = at("2026-03-02T01:00:00Z");
    let minutes = SignedDuration::from_mins;
    let midnight = Schedule::Daily { at: Time::midnight() };
    let mut snapshot = snapshot(midnight, minutes(120), SignedDuration::ZERO, one - minutes(60 * 48));
    snapshot.windows[0].calendar.as_mut().expect("a calendar").exclusions.clear();
    let mut may = |claimed, now_says| {
        for device in &mut snapshot.devices {
            device.zone = Some(Ok(TimeZone::UTC));
            device.failures.clear();
            device.current.iter_mut().for_each(|claim| claim.expected = claimed);
        }
        let settings = snapshot.policies[0].settings.as_mut().expect("settings");
        settings.install_limit = now_says;
        settings.rollout.rings.clear();
        may_act(&snapshot, "held", one).map_err(|blocked| blocked.code())
    };
    assert_eq!(may(minutes(60), minutes(90)), Ok(()));
    assert_eq!(may(minutes(61), minutes(30)), Err("WindowEnding"));
}

/// One that did not answer, though nothing was tried.
#[test]
fn a_peer_is_healthy_while_nothing_was_tried_on_it() {
    let yaml = "groups: {all: {selector: {}, default: Approve}}\n\
        policies: {all: {mode: InstallImmediately, disruption: {groupBy: role, maxUnavailable: 1, healthyPeers: true}}}\n\
        devices: {web-1: {labels: {role: web}}, web-2: {labels: {role: web}, updates: {u-1: {restart: 'No', interrupts: 'No'}}}}\n";
    let world: World = serde_saphyr::from_str(yaml).expect("a world");
    let noon = at("2026-03-02T12:00:00Z");
    let installs = |attempts| {
        let mut snapshot = world.snapshot(&Past::default(), noon);
        snapshot.devices[0].failures =
            vec![Failure { update: "u-1".into(), attempts, last: noon, again: noon, cause: Cause::Update }];
        plan(&snapshot, noon).devices[1].install.is_some()
    };
    assert!(installs(0));
    assert!(!installs(1));
}

/// What it was brought back from and what nobody offers any more is neither there nor to be tried again.
#[test]
fn a_peer_is_healthy_that_was_brought_back_from_what_is_not_offered_any_more_and_not_one_on_which_it_stays() {
    let world = |offered: &str| -> World {
        let yaml = format!(
            "groups: {{all: {{selector: {{}}, default: Approve}}}}\n\
             policies: {{all: {{mode: InstallImmediately, disruption: {{groupBy: role, maxUnavailable: 1, healthyPeers: true}}}}}}\n\
             devices: {{web-1: {{labels: {{role: web}}, updates: {{{offered}}}}}, web-2: {{labels: {{role: web}}, \
             updates: {{u-1: {{restart: 'No', interrupts: 'No'}}}}}}}}\n"
        );
        serde_saphyr::from_str(&yaml).expect("a world")
    };
    let noon = at("2026-03-02T12:00:00Z");
    let installs = |offered: &str, cause: Cause| {
        let mut snapshot = world(offered).snapshot(&Past::default(), noon);
        let mut failure = Failure { update: "u-1".into(), attempts: 1, last: noon, again: noon, cause };
        into_catalogue(&mut failure, &mut snapshot.updates);
        snapshot.devices[0].failures = vec![failure];
        plan(&snapshot, noon).devices[1].install.is_some()
    };
    assert!(installs("", Cause::RolledBack));
    assert!(!installs("u-1: {held: true}", Cause::RolledBack));
    assert!(!installs("", in_no_catalogue()));
}

#[test]
fn an_exclusion_of_no_time_ends_no_window() {
    let mut calendar = calendar(Schedule::Daily { at: Time::midnight() }, 2);
    let one = at("2026-01-01T01:00:00Z");
    calendar.exclusions = vec![Exclusion { name: "x".into(), from: one, to: one }];
    let until = at("2026-01-01T02:00:00Z");
    assert_eq!(calendar.at(&TimeZone::UTC, at("2026-01-01T00:30:00Z")), Moment::Open { until });
}

/// From the first Monday of August 2026 to that of September it is 35 days, the longest time between two.
#[test]
fn what_is_open_for_longer_than_a_month_is_open_until_it_starts_again() {
    let late = Time::constant(23, 0, 0, 0);
    let mondays = Schedule::Monthly { week: 1, weekday: Weekday::Monday, offset_days: 0, at: late };
    let calendar = calendar(mondays, 24 * 36);
    let until = at("2026-09-08T23:00:00Z");
    assert_eq!(calendar.at(&TimeZone::UTC, at("2026-09-07T22:59:00Z")), Moment::Open { until });
}

#[test]
fn the_rest_that_a_freeze_leaves_does_not_hide_an_occurrence_that_starts_in_it() {
    let mut calendar = calendar(Schedule::Daily { at: Time::midnight() }, 2);
    calendar.schedules.push(Schedule::Daily { at: Time::constant(1, 45, 0, 0) });
    let (from, to) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T01:30:00Z"));
    calendar.exclusions = vec![Exclusion { name: "x".into(), from, to }];
    let next = calendar.next_opening_with(&TimeZone::UTC, at("2026-01-01T01:00:00Z"), SignedDuration::from_hours(1));
    assert_eq!(next, Some(at("2026-01-01T01:45:00Z")));
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("an instant")
}

fn calendar(schedule: Schedule, hours: i64) -> Calendar {
    Calendar {
        zone: Zone::Fixed(TimeZone::UTC),
        schedules: vec![schedule],
        duration: SignedDuration::from_hours(hours),
        cutoff: SignedDuration::ZERO,
        exclusions: vec![],
    }
}
