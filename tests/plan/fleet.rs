//! Generated fleets: small enough to be fast, with so few names that everything meets everything.

use std::collections::BTreeMap;

use jiff::civil::{Time, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden::plan::model::{
    Calendar, Claim, Concurrency, DecisionAction, Device, DeviceReport, DeviceType, Exclusion, Failure, Glob, Group,
    Invalid, Mode, NoReport, Policy, Requirement, Rule, RuleAction, Schedule, Selector, Settings, Snapshot, Update,
    UpdateDecision, Window, Zone,
};
use patchwarden_protocol::order::{Dependencies, Sequence};
use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate};
use proptest::collection::{btree_set, vec};
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Zones whose clocks change within the months that are generated, on other days, and one that does not.
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];

/// An instant around the changes of the clocks in the spring of 2026.
pub fn instant() -> impl Strategy<Value = Timestamp> {
    let start = Timestamp::from_second(1_772_323_200).expect("2026-03-01");
    (0..40 * 24 * 12_i64).prop_map(move |fives| start + SignedDuration::from_mins(5 * fives))
}

/// A fleet, and an instant at which to look at it.
pub fn fleet() -> impl Strategy<Value = (Snapshot, Timestamp)> {
    instant().prop_flat_map(|now| (snapshot(now), Just(now)))
}

fn snapshot(now: Timestamp) -> impl Strategy<Value = Snapshot> {
    let named = move |prefix: &'static str, count: usize| -> Vec<String> {
        (0..count).map(|number| format!("{prefix}{number}")).collect()
    };
    let policies = subsequence(named("p", 3), 1..=3).prop_flat_map(|names| one_each(names, policy));
    let groups = prop_oneof![1 => Just(0_usize), 9 => 1..=3_usize]
        .prop_flat_map(move |count| subsequence(named("g", 3), count))
        .prop_flat_map(move |names| one_each(names, move |it| group(it, now)));
    let windows = prop_oneof![1 => Just(2_usize), 5 => Just(3)]
        .prop_flat_map(move |count| subsequence(named("w", 3), count))
        .prop_flat_map(move |names| one_each(names, move |it| window(it, now)));
    let devices =
        subsequence(named("d", 7), 3..=7).prop_flat_map(move |names| one_each(names, move |it| device(it, now)));
    (policies, groups, windows, devices).prop_map(|(policies, groups, windows, devices)| Snapshot {
        policies,
        groups,
        windows,
        devices,
    })
}

fn one_each<S: Strategy>(names: Vec<String>, make: impl Fn(String) -> S) -> Vec<S> {
    names.into_iter().map(make).collect()
}

fn minutes(range: std::ops::Range<i64>) -> impl Strategy<Value = SignedDuration> + Clone {
    range.prop_map(SignedDuration::from_mins)
}

/// An instant within some hours of `now`.
fn near(now: Timestamp, hours: i64) -> impl Strategy<Value = Timestamp> {
    minutes(-60 * hours..60 * hours).prop_map(move |offset| now + offset)
}

fn names(prefix: &'static str, count: usize, upto: usize) -> impl Strategy<Value = Vec<String>> {
    btree_set((0..count).prop_map(move |number| format!("{prefix}{number}")), 0..=upto)
        .prop_map(|names| names.into_iter().collect())
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    (weighted(0.8, select(vec!["web", "db"])), weighted(0.5, select(vec!["prod", "test"]))).prop_map(|(role, env)| {
        let role = role.map(|role| ("role".to_owned(), role.to_owned()));
        role.into_iter().chain(env.map(|env| ("env".to_owned(), env.to_owned()))).collect()
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let role = || "role".to_owned();
    let values = || subsequence(vec!["web".to_owned(), "db".to_owned()], 1..=2);
    let requirement = prop_oneof![
        values().prop_map(move |values| Requirement::In(role(), values)),
        values().prop_map(move |values| Requirement::NotIn(role(), values)),
        Just(Requirement::Exists("env".to_owned())),
        Just(Requirement::DoesNotExist("env".to_owned())),
    ];
    prop_oneof![5 => Just(Selector::default()), 1 => vec(requirement, 1..=2).prop_map(Selector)]
}

fn policy(name: String) -> impl Strategy<Value = Policy> {
    let settings = prop_oneof![
        29 => settings().prop_map(Ok),
        1 => Just(Err(Invalid("spec.installLimit is not a duration".to_owned()))),
    ];
    let types = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![DeviceType::Server]),
        1 => Just(vec![DeviceType::Workstation]),
    ];
    let groups = prop_oneof![3 => Just(vec![]), 1 => names("g", 3, 2)];
    (selector(), types, groups, names("d", 7, 1), -1..=1, settings).prop_map(
        move |(selector, types, groups, exclude, priority, settings)| Policy {
            name: name.clone(),
            selector,
            types,
            groups,
            exclude,
            priority,
            settings,
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let windows = prop_oneof![
        8 => subsequence(vec!["w0".to_owned(), "w1".to_owned(), "w2".to_owned()], 1..=2),
        1 => Just(vec![]),
    ];
    let max_concurrent =
        prop_oneof![(1..4_u32).prop_map(Concurrency::Count), (1..=100_u32).prop_map(Concurrency::Percent)];
    (
        prop_oneof![1 => Just(Mode::Audit), 20 => Just(Mode::Install)],
        prop::bool::weighted(0.04),
        windows,
        max_concurrent,
        select(vec![Dependencies::Strict, Dependencies::AllowInstalls]),
        minutes(1..120),
        0..3_u32,
        minutes(1..120),
    )
        .prop_map(
            |(mode, suspended, windows, max_concurrent, dependencies, install_limit, retry_limit, backoff)| Settings {
                mode,
                suspended,
                windows,
                max_concurrent,
                dependencies,
                install_limit,
                retry_limit,
                retry_backoff: backoff,
            },
        )
}

fn group(name: String, now: Timestamp) -> impl Strategy<Value = Group> {
    let glob = || select(vec!["u0", "u1", "u?", "*", "*0", "u*2", "x"]).prop_map(|glob| Glob(glob.to_owned()));
    let until = weighted(0.6, near(now, 20));
    let decision = (glob(), select(vec![DecisionAction::Approve, DecisionAction::Ignore]), until)
        .prop_map(|(update, action, until)| UpdateDecision { update, action, until });
    let action = || {
        select(vec![
            RuleAction::Approve,
            RuleAction::Approve,
            RuleAction::Approve,
            RuleAction::Approve,
            RuleAction::AwaitApproval,
            RuleAction::Ignore,
        ])
    };
    let rule = (
        subsequence(vec![Classification::Security, Classification::Updates], 0..=2),
        subsequence(vec![Severity::Unknown, Severity::High], 0..=1),
        prop_oneof![2 => Just(vec![]), 1 => select(vec!["lib*", "?url"]).prop_map(|it| vec![Glob(it.to_owned())])],
        action(),
    )
        .prop_map(|(classifications, severities, packages, action)| Rule {
            name: format!("{action:?}"),
            classifications,
            severities,
            packages,
            action,
        });
    (weighted(0.9, selector()), names("d", 7, 2), -1..=1, vec(decision, 0..=2), vec(rule, 0..=2), action()).prop_map(
        move |(selector, names, priority, decisions, rules, default)| Group {
            name: name.clone(),
            selector,
            names,
            priority,
            decisions,
            rules,
            default,
        },
    )
}

fn window(name: String, now: Timestamp) -> impl Strategy<Value = Window> {
    let calendar = prop_oneof![
        24 => calendar(now).prop_map(Ok),
        1 => Just(Err(Invalid("spec.timeZone is not known".to_owned()))),
    ];
    calendar.prop_map(move |calendar| Window { name: name.clone(), calendar })
}

/// A calendar with something to do around `now`.
pub fn calendar(now: Timestamp) -> impl Strategy<Value = Calendar> {
    let zone = prop_oneof![
        4 => select(ZONES.to_vec()).prop_map(|zone| Zone::Fixed(TimeZone::get(zone).expect("a time zone"))),
        1 => Just(Zone::Device),
    ];
    let exclusion = (near(now, 30), minutes(1..60 * 20), 0..9).prop_map(|(from, length, number)| Exclusion {
        name: format!("x{number}"),
        from,
        to: from + length,
    });
    let duration = prop_oneof![1 => minutes(10..60 * 2), 2 => minutes(60 * 2..60 * 12), 1 => minutes(60 * 12..60 * 40)];
    let duration_and_cutoff = duration.prop_flat_map(|duration| {
        let cutoff = prop_oneof![2 => Just(SignedDuration::ZERO), 1 => minutes(0..duration.as_mins())];
        (Just(duration), cutoff)
    });
    let exclusions = prop_oneof![2 => Just(vec![]), 1 => vec(exclusion, 1..=3)];
    // Half of them are open now, exclusions aside.
    let opened = weighted(0.5, minutes(-120..0)).prop_map(move |ago| ago.map(|ago| now + ago));
    (zone, vec(schedule(now), 1..=3), opened, duration_and_cutoff, exclusions).prop_map(
        |(zone, mut schedules, opened, (duration, cutoff), exclusions)| {
            let local = match &zone {
                Zone::Fixed(zone) => zone.clone(),
                Zone::Device => TimeZone::get("Europe/Berlin").expect("a time zone"),
            };
            schedules.extend(opened.map(|at| Schedule::Once { at: local.to_datetime(at) }));
            Calendar { zone, schedules, duration, cutoff, exclusions }
        },
    )
}

fn schedule(now: Timestamp) -> impl Strategy<Value = Schedule> {
    let time = || (0..24_i8, select(vec![0_i8, 30])).prop_map(|(hour, minute)| Time::constant(hour, minute, 0, 0));
    let weekdays = vec![
        Weekday::Monday,
        Weekday::Tuesday,
        Weekday::Wednesday,
        Weekday::Thursday,
        Weekday::Friday,
        Weekday::Saturday,
        Weekday::Sunday,
    ];
    prop_oneof![
        2 => (select(vec![1_i8, 2, 3, 4, -1]), select(weekdays.clone()), -27..=27_i32, time()).prop_map(
            |(week, weekday, offset_days, at)| Schedule::Monthly { week, weekday, offset_days, at }
        ),
        3 => (subsequence(weekdays, 1..=4), time()).prop_map(|(weekdays, at)| Schedule::Weekly { weekdays, at }),
        3 => time().prop_map(|at| Schedule::Daily { at }),
        2 => near(now, 5).prop_map(|at| Schedule::Once { at: TimeZone::UTC.to_datetime(at) }),
        1 => (0..20_i64).prop_map(|days| Schedule::Once {
            at: (date(2026, 3, 1).at(2, 30, 0, 0)) + SignedDuration::from_hours(24 * days)
        }),
    ]
}

fn device(name: String, now: Timestamp) -> impl Strategy<Value = Device> {
    let zone = option::of(prop_oneof![
        6 => select(ZONES.to_vec()).prop_map(|zone| Ok(TimeZone::get(zone).expect("a time zone"))),
        1 => Just(Err(Invalid("spec.timeZone is not known".to_owned()))),
    ]);
    let report = prop_oneof![
        12 => report().prop_map(Ok),
        1 => Just(Err(NoReport::None)),
        1 => Just(Err(NoReport::KeyNotAccepted)),
    ];
    let claim = (names("u", 4, 3), 0..3, any::<bool>(), near(now, 4), minutes(1..240)).prop_map(
        |(updates, policy, granted, not_after, limit)| Claim {
            sequence: Sequence { epoch: 1, number: 7 },
            policy: format!("p{policy}"),
            updates,
            granted,
            not_after,
            limit,
        },
    );
    let failure = (0..4, 0..4_u32, near(now, 3)).prop_map(|(update, attempts, last)| Failure {
        update: format!("u{update}"),
        attempts,
        last,
    });
    let rarely = || prop::bool::weighted(0.03);
    let online_since = option::of(near(now, 100));
    (
        (labels(), any::<bool>(), zone, rarely(), rarely(), rarely(), report),
        (
            prop::bool::weighted(0.92),
            online_since,
            weighted(0.15, claim),
            prop_oneof![2 => Just(vec![]), 1 => vec(failure, 1..=2)],
        ),
    )
        .prop_map(
            move |(
                (labels, server, zone, suspended, retired, on_hold, report),
                (online, online_since, current, failures),
            )| {
                Device {
                    name: name.clone(),
                    labels,
                    device_type: if server { DeviceType::Server } else { DeviceType::Workstation },
                    zone,
                    suspended,
                    retired,
                    report,
                    online,
                    online_since,
                    on_hold,
                    current,
                    failures,
                }
            },
        )
}

fn report() -> impl Strategy<Value = DeviceReport> {
    let problem = select(vec![
        ProblemCode::JournalCorrupt,
        ProblemCode::RepositoryUnavailable,
        ProblemCode::PackageManagerBroken,
        ProblemCode::ScanFailed,
        ProblemCode::Unsupported,
    ]);
    let updates = subsequence(vec!["u0", "u1", "u2", "u3"], 0..=4)
        .prop_flat_map(|ids| ids.into_iter().map(|id| update(id.to_owned())).collect::<Vec<_>>());
    let problems = prop_oneof![15 => Just(vec![]), 1 => vec(problem, 1..=2)];
    (
        updates,
        prop::bool::weighted(0.1),
        select(vec![Tristate::No, Tristate::No, Tristate::Yes, Tristate::Unknown]),
        problems,
    )
        .prop_map(|(updates, truncated, restart_required, problems)| DeviceReport {
            updates,
            truncated,
            restart_required,
            problems,
        })
}

fn update(id: String) -> impl Strategy<Value = Update> {
    (
        select(vec![Classification::Security, Classification::Updates, Classification::Unclassified]),
        select(vec![Severity::Unknown, Severity::High, Severity::Critical]),
        subsequence(vec!["curl".to_owned(), "libssl3".to_owned(), "nano".to_owned()], 1..=2),
        prop::bool::weighted(0.1),
    )
        .prop_map(move |(classification, severity, packages, held)| Update {
            id: id.clone(),
            classification,
            severity,
            packages,
            held,
        })
}
