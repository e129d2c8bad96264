//! Generated fleets: small enough to be fast, with so few names that everything meets everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use jiff::civil::{Time, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::expression::Subject;
use patchwarden_plan::model::{
    Accepted, AgeClock, Amount, Approvals, Blast, Calendar, Catalogue, CatchUp, Cause, Claim, Cron, Dates, Deadline,
    Deadlines, DecisionAction, Device, DeviceReport, DeviceType, Disruption, Durations, Exclusion, Expression,
    FailedOn, Failure, Filters, Glob, Group, Invalid, Level, Measured, Members, Mode, Moved, Name, NoReport, Offer, Os,
    PackageVersion, Pair, Pending, Policy, Probability, Progress, Requirement, Restart, Ring, RingMembers, Rollout,
    Rule, RuleAction, Schedule, Seen, Selector, Settings, Snapshot, SpecDigests, Target, TurnOrder, Update,
    UpdateDecision, UpdateMatch, UpdateProgress, Vulnerability, WhenEmpty, Window, Zone,
};
use patchwarden_protocol::order::{Dependencies, RestartWhen, Sequence, Verb};
use patchwarden_protocol::report::{Classification, Power, ProblemCode, Severity, Tristate};
use proptest::collection::{btree_map, btree_set, vec};
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

/// One with something to do around `now`.
pub fn snapshot(now: Timestamp) -> impl Strategy<Value = Snapshot> {
    let named = move |prefix: &'static str, count: usize| -> Vec<Name> {
        (0..count).map(|number| format!("{prefix}{number}").into()).collect()
    };
    let policies =
        subsequence(named("p", 3), 1..=3).prop_flat_map(move |names| one_each(names, move |it| policy(it, now)));
    let groups = prop_oneof![1 => Just(0_usize), 9 => 1..=3_usize]
        .prop_flat_map(move |count| subsequence(named("g", 3), count))
        .prop_flat_map(move |names| one_each(names, move |it| group(it, now)));
    let windows = prop_oneof![1 => Just(2_usize), 5 => Just(3)]
        .prop_flat_map(move |count| subsequence(named("w", 3), count))
        .prop_flat_map(move |names| one_each(names, move |it| window(it, now)));
    let devices =
        subsequence(named("d", 7), 3..=7).prop_flat_map(move |names| one_each(names, move |it| device(it, now)));
    (policies, groups, windows, devices, vulnerabilities()).prop_map(
        |(policies, groups, windows, devices, vulnerabilities)| {
            let mut updates = Catalogue::default();
            let devices = devices.into_iter().map(|(mut device, report, installed)| {
                device.failures.iter_mut().for_each(|failure| into_catalogue(failure, &mut updates));
                Device {
                    report: report.map(|report| report.interned(&mut updates)),
                    installed: installed.iter().map(|id| updates.number(id)).collect(),
                    ..device
                }
            });
            Snapshot { policies, groups, windows, devices: devices.collect(), updates, vulnerabilities, seen: vec![] }
        },
    )
}

fn vulnerabilities() -> impl Strategy<Value = Option<Arc<BTreeMap<Name, Vulnerability>>>> {
    let known = (any::<bool>(), option::of((0..=100_000_u32).prop_map(Probability)))
        .prop_map(|(known_exploited, epss)| Vulnerability { known_exploited, epss });
    let known = vec(known, 0..=2).prop_map(|known| {
        known.into_iter().enumerate().map(|(number, one)| (format!("CVE-2026-{number}").into(), one)).collect()
    });
    let known = known.prop_map(Arc::new);
    weighted(0.8, known)
}

fn one_each<S: Strategy>(names: Vec<Name>, make: impl Fn(Name) -> S) -> Vec<S> {
    names.into_iter().map(make).collect()
}

fn minutes(range: std::ops::Range<i64>) -> impl Strategy<Value = SignedDuration> + Clone {
    range.prop_map(SignedDuration::from_mins)
}

/// An instant within some hours of `now`.
fn near(now: Timestamp, hours: i64) -> impl Strategy<Value = Timestamp> {
    minutes(-60 * hours..60 * hours).prop_map(move |offset| now + offset)
}

fn names(prefix: &'static str, count: usize, upto: usize) -> impl Strategy<Value = Vec<Name>> {
    btree_set((0..count).prop_map(move |number| Name::from(format!("{prefix}{number}"))), 0..=upto)
        .prop_map(|names| names.into_iter().collect())
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    (weighted(0.9, select(vec!["web", "web", "db"])), weighted(0.5, select(vec!["prod", "test"]))).prop_map(
        |(role, env)| {
            let role = role.map(|role| ("role".to_owned(), role.to_owned()));
            role.into_iter().chain(env.map(|env| ("env".to_owned(), env.to_owned()))).collect()
        },
    )
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

fn policy(name: Name, now: Timestamp) -> impl Strategy<Value = Policy> {
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
    let groups = (groups, prop_oneof![4 => Just(vec![]), 1 => names("g", 3, 2)]);
    let rest = (weighted(0.5, disruption()), settings, progress(now));
    (selector(), types, groups, names("d", 7, 1), -1..=1, rest).prop_map(
        move |(selector, types, (groups, not), exclude, priority, (disruption, settings, progress))| Policy {
            name: name.clone(),
            selector,
            types,
            exclude_groups: not.into_iter().filter(|group| !groups.contains(group)).collect(),
            groups,
            exclude,
            priority,
            disruption,
            settings,
            progress: Arc::new(progress),
            specs: SpecDigests { selection: "1".into(), rest: "1".into() },
        },
    )
}

fn amount(least: u32, most: u32) -> impl Strategy<Value = Amount> {
    prop_oneof![(least..most).prop_map(Amount::Count), (least..=100_u32).prop_map(Amount::Percent)]
}

fn rollout() -> impl Strategy<Value = Rollout> {
    let rings = prop_oneof![
        3 => Just(vec![]),
        1 => subsequence(vec![Name::from("r0"), "r1".into()], 1..=2)
            .prop_flat_map(|names| names.into_iter().map(ring).collect::<Vec<_>>()),
    ];
    // Near the middle of all instants that are generated.
    let resumed = instant().prop_map(Some);
    (amount(1, 4), rings, weighted(0.15, amount(0, 2)), prop_oneof![3 => Just(None), 1 => resumed]).prop_map(
        |(max_concurrent, rings, failure_budget, resumed)| Rollout { max_concurrent, rings, failure_budget, resumed },
    )
}

fn ring(name: Name) -> impl Strategy<Value = Ring> {
    let members = prop_oneof![selector().prop_map(RingMembers::Selector), (1..=50_u32).prop_map(RingMembers::Percent),];
    let when_empty = select(vec![WhenEmpty::Wait, WhenEmpty::Promote]);
    (members, minutes(0..60 * 6), 1..=2_u32, select(vec![1_u32, 50, 100]), when_empty).prop_map(
        move |(members, soak, min_successes, min_success_percent, when_empty)| Ring {
            name: name.clone(),
            members,
            soak,
            min_successes,
            min_success_percent,
            when_empty,
        },
    )
}

fn disruption() -> impl Strategy<Value = Disruption> {
    let order = select(vec![vec!["test"], vec!["test", "prod"], vec!["prod"]]).prop_map(|values| TurnOrder {
        label: "env".to_owned(),
        values: values.into_iter().map(str::to_owned).collect(),
    });
    (amount(1, 4), weighted(0.9, order), prop::bool::weighted(0.3)).prop_map(
        |(max_unavailable, order, healthy_peers)| Disruption {
            label: "role".to_owned(),
            max_unavailable,
            order,
            healthy_peers,
        },
    )
}

/// What was written down of a policy's updates, also of rings that are not there any more.
fn progress(now: Timestamp) -> impl Strategy<Value = Progress> {
    let ring =
        prop_oneof![1 => Just(None), 3 => select(vec!["r0", "r1", "r9"]).prop_map(|ring| Some(Name::from(ring)))];
    let ago = move || (0..60 * 30_i64).prop_map(move |ago| now - SignedDuration::from_mins(ago));
    let known = (0..3_u32, prop_oneof![4 => Just(0_u32), 1 => Just(58_u32)]);
    // Devices that are there, are retired, or are gone.
    let names = subsequence(vec!["d0", "d1", "d2", "gone-1", "gone-2"], 0..=3);
    let failed = prop_oneof![3 => Just(vec![]), 1 => names.prop_flat_map(move |names| {
        names.into_iter().map(|name| (ago(), select(vec![None, Some("r0"), Some("r1"), Some("r9")]))
            .prop_map(|(last, ring)| FailedOn { device: name.into(), last, ring: ring.map(Name::from) })).collect::<Vec<_>>()
    })];
    let since = (ago(), weighted(0.5, ago()), weighted(0.1, ago()));
    let update = (select(IDS.to_vec()), ring, since, known, failed).prop_map(
        |(id, ring, (opened, reached, stopped), (installed, anywhere), failed)| {
            (id.into(), UpdateProgress { ring, opened, reached, stopped, installed, anywhere, failed })
        },
    );
    (vec(update, 0..=3), weighted(0.05, ago()), blast(now), durations()).prop_map(
        |(updates, paused, blast, durations)| Progress {
            updates: updates.into_iter().collect(),
            paused,
            blast,
            durations,
        },
    )
}

fn kind() -> impl Strategy<Value = Classification> + Clone {
    select(vec![Classification::Security, Classification::Updates, Classification::Unclassified])
}

/// From nothing to longer than any limit.
fn seconds() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![3 => 0..600_u32, 1 => 0..9_000_u32]
}

fn durations() -> impl Strategy<Value = Durations> {
    let updates = btree_map(select(IDS.to_vec()).prop_map(Name::from), seconds(), 0..=3);
    let some = (updates, btree_map(kind(), seconds(), 0..=3)).prop_map(|(updates, kinds)| Durations { updates, kinds });
    prop_oneof![1 => Just(Durations::default()), 1 => some]
}

/// What its last installs took; also so long ago that it does not count any more.
fn measured(now: Timestamp) -> impl Strategy<Value = Vec<Measured>> {
    let updates = subsequence(IDS.map(Name::from).to_vec(), 0..=3);
    let one = (updates, btree_set(kind(), 0..=2), seconds(), minutes(0..120)).prop_map(
        move |(updates, kinds, seconds, ago)| Measured {
            updates,
            kinds: kinds.into_iter().collect(),
            seconds,
            at: now - ago,
        },
    );
    prop_oneof![3 => Just(vec![]), 1 => vec(one, 1..=2)]
}

fn catch_up() -> impl Strategy<Value = CatchUp> {
    (minutes(0..60 * 60), any::<bool>()).prop_map(|(after, require_mains)| CatchUp { after, require_mains })
}

/// Which specs were in force: never those of the snapshot.
fn blast(now: Timestamp) -> impl Strategy<Value = Blast> {
    let since = select(vec![0_i64, 9, 10, 500]).prop_map(move |ago| now - SignedDuration::from_mins(ago));
    let accepted = (since, 0..3_u32).prop_map(|(since, devices)| Accepted { specs: "before".into(), since, devices });
    let pending = (1..9_u32).prop_map(move |devices| Pending { specs: "before".into(), since: now, devices });
    (option::of(accepted), weighted(0.2, pending)).prop_map(|(accepted, pending)| Blast { accepted, pending })
}

fn settings() -> impl Strategy<Value = Settings> {
    let windows = prop_oneof![
        8 => subsequence(vec![Name::from("w0"), "w1".into(), "w2".into()], 1..=2),
        1 => Just(vec![]),
    ];
    (
        prop_oneof![
            1 => Just(Mode::Audit),
            2 => Just(Mode::DownloadOnly),
            18 => Just(Mode::Install),
            7 => Just(Mode::InstallImmediately)
        ],
        (prop::bool::weighted(0.04), weighted(0.1, filters())),
        windows,
        rollout(),
        (select(vec![Dependencies::Strict, Dependencies::AllowInstalls, Dependencies::AllowAll]), restart(), deadlines()),
        minutes(1..120),
        0..3_u32,
        (
            minutes(1..120),
            select(vec![0_i64, 10, 60]).prop_map(SignedDuration::from_mins),
            prop_oneof![4 => Just(Amount::Percent(100)), 1 => Just(Amount::Percent(10)), 1 => (0..4_u32).prop_map(Amount::Count)],
            weighted(0.5, catch_up()),
        ),
    )
        .prop_map(
            |(
                mode,
                (suspended, filters),
                windows,
                rollout,
                (dependencies, restart, deadlines),
                install_limit,
                retry_limit,
                (backoff, settle, blast_limit, catch_up),
            )| {
                Settings {
                    mode,
                    filters: filters.unwrap_or_default(),
                    suspended,
                    windows,
                    rollout,
                    dependencies,
                    restart,
                    install_limit,
                    retry_limit,
                    retry_backoff: backoff,
                    deadlines,
                    catch_up,
                    settle,
                    blast_limit,
                    confirm: None,
                    applications: BTreeMap::new(),
                }
            },
        )
}

fn deadlines() -> impl Strategy<Value = Deadlines> {
    let severity = option::of(select(vec![Severity::Unknown, Severity::High, Severity::Critical]));
    let deadline = (minutes(0..60 * 120), select(vec![AgeClock::FirstSeen, AgeClock::Published]))
        .prop_map(|(within, clock)| Deadline { within, clock });
    prop_oneof![2 => Just(Deadlines::default()), 1 => btree_map(severity, deadline, 1..=3).prop_map(Deadlines)]
}

fn restart() -> impl Strategy<Value = Restart> {
    let when = select(vec![RestartWhen::Never, RestartWhen::IfRequired, RestartWhen::Always]);
    (when, minutes(1..120), minutes(0..30), 1..4_u32, any::<bool>()).prop_map(
        |(when, within, warning, limit, services)| Restart {
            when,
            within,
            warning,
            message: "soon".to_owned(),
            limit,
            services,
        },
    )
}

fn filters() -> impl Strategy<Value = Filters> {
    let classifications = subsequence(vec![Classification::Security, Classification::Updates], 0..=1);
    let packages = subsequence(vec![Glob("na*".to_owned()), Glob("curl".to_owned())], 0..=1);
    (any::<bool>(), classifications, packages).prop_map(|(skip_restart, classifications, exclude_packages)| Filters {
        skip_restart,
        classifications,
        exclude_packages,
    })
}

/// Expressions that hold for some, for none, and that cannot be told of others; each with what it is for the reference.
pub static EXPRESSIONS: LazyLock<Vec<(&str, Expression)>> = LazyLock::new(|| {
    let compile = |text, subject| (text, Expression::compile(text, subject).expect("a sensible expression"));
    vec![
        compile(r#"update.id == "u1" || update.severity == "Critical""#, Subject::Update),
        compile(r#"update.packages[1] == "nano" || size(update.cves) > 7"#, Subject::Update),
        compile(r#"device.type == "Server""#, Subject::Device),
        compile(r#"device.name == "web-1" || device.labels.env == "prod""#, Subject::Device),
    ]
});

fn expressions(subject: &'static str) -> impl Strategy<Value = Expression> {
    let of_subject = EXPRESSIONS.iter().filter(|(text, _)| text.starts_with(subject));
    select(of_subject.map(|(_, expression)| expression.clone()).collect::<Vec<_>>())
}

fn group(name: Name, now: Timestamp) -> impl Strategy<Value = Group> {
    let parent = prop_oneof![
        10 => Just(None),
        3 => (0..4_i32).prop_map(|number| Some(Name::from(if number == 3 { "g9".to_owned() } else { format!("g{number}") }))),
    ];
    let level = prop_oneof![4 => Just(Level::Group), 1 => select(vec![Level::DeviceType, Level::Site, Level::Device])];
    let approvals = prop_oneof![
        40 => approvals(now).prop_map(Ok),
        1 => Just(Err(Invalid("spec.rules[0].after is not a duration".to_owned()))),
    ];
    let ago = || (0..60 * 70_i64).prop_map(move |ago| now - SignedDuration::from_mins(ago));
    let who = || select(vec!["d0", "d1", "gone"]).prop_map(Name::from);
    // The earlier of two dates is one device's alone.
    let dates = (weighted(0.5, ago()), weighted(0.5, (ago(), who()))).prop_map(|(shared, alone)| Dates {
        shared,
        alone: alone.filter(|(alone, _)| shared.is_none_or(|shared| *alone < shared)),
    });
    let seen =
        (select(IDS.to_vec()), ago(), who(), weighted(0.5, ago()), dates).prop_map(|(id, first, by, shared, dates)| {
            Seen { id: id.into(), first, by, shared: shared.map(|shared| shared.max(first)), dates }
        });
    let seen = btree_map(0..4_u8, seen, 0..=2).prop_map(|seen| seen.into_values().collect::<Vec<_>>());
    (parent, level, members(), -1..=1, approvals, seen).prop_map(
        move |(parent, level, members, priority, approvals, seen)| Group {
            name: name.clone(),
            parent,
            level,
            members,
            priority,
            approvals,
            seen,
            spec: "1".into(),
        },
    )
}

fn members() -> impl Strategy<Value = Members> {
    let rule = prop_oneof![
        10 => Just(None),
        2 => expressions("device").prop_map(|rule| Some(Ok(rule))),
        1 => Just(Some(Err(Invalid("spec.members.rule: not CEL".to_owned())))),
    ];
    (weighted(0.8, selector()), names("d", 7, 2), rule).prop_map(|(selector, names, rule)| Members {
        selector,
        names,
        rule,
    })
}

fn approvals(now: Timestamp) -> impl Strategy<Value = Approvals> {
    let target = prop_oneof![
        3 => select(vec!["u0", "u1", "pkg:deb/debian/u2@1.0"]).prop_map(|id| Target::Id(id.into())),
        3 => select(vec!["u?", "*", "*0", "u*2", "x"]).prop_map(|glob| Target::Ids(Glob(glob.to_owned()))),
        1 => select(vec!["CVE-2026-0", "CVE-*"]).prop_map(|glob| Target::Cves(Glob(glob.to_owned()))),
        1 => select(vec!["1.0", "1.1"]).prop_map(|version| {
            Target::From(PackageVersion::parse(&format!("pkg:deb/debian/u2@{version}")).expect("a version"))
        }),
    ];
    let action = prop_oneof![
        4 => Just(DecisionAction::Approve),
        3 => Just(DecisionAction::Ignore),
        1 => Just(DecisionAction::DoNothing),
        2 => Just(DecisionAction::Uninstall),
        1 => near(now, 5).prop_map(|failed_before| DecisionAction::Reprocess { failed_before }),
    ];
    let until = weighted(0.6, near(now, 20));
    let locked = prop::bool::weighted(0.2);
    let decision = (any::<u16>(), target, action, until, locked, own_window()).prop_map(
        |(number, target, action, until, locked, window)| {
            let name = format!("decision {number}").into();
            // As the schema has it.
            let until = until.filter(|_| !matches!(action, DecisionAction::Reprocess { .. }));
            UpdateDecision { name, target, action, until, locked, window }
        },
    );
    let age = || prop_oneof![4 => Just(SignedDuration::ZERO), 1 => minutes(0..60 * 40)];
    let default = weighted(0.9, rule_action());
    (vec(decision, 0..=3), vec(rule(age()), 0..=2), default, weighted(0.85, age())).prop_map(
        |(decisions, rules, default, min_artifact_age)| Approvals { decisions, rules, default, min_artifact_age },
    )
}

fn own_window() -> impl Strategy<Value = Option<Name>> {
    weighted(0.2, select(vec![Name::from("w0"), "w1".into(), "w2".into(), "w9".into()]))
}

fn rule_action() -> impl Strategy<Value = RuleAction> {
    prop_oneof![4 => Just(RuleAction::Approve), 1 => Just(RuleAction::AwaitApproval), 1 => Just(RuleAction::Ignore)]
}

fn rule(age: impl Strategy<Value = SignedDuration>) -> impl Strategy<Value = Rule> {
    let globs = |choices: Vec<&'static str>| prop_oneof![2 => Just(vec![]), 1 => select(choices).prop_map(|it| vec![Glob(it.to_owned())])];
    let matches = (
        subsequence(vec![Classification::Security, Classification::Updates], 0..=2),
        subsequence(vec![Severity::Unknown, Severity::High], 0..=1),
        globs(vec!["lib*", "?url"]),
        prop_oneof![4 => Just(vec![]), 1 => Just(vec![Glob("CVE-2026-?".to_owned())])],
        weighted(0.1, any::<bool>()),
        weighted(0.1, (0..=100_000_u32).prop_map(Probability)),
        weighted(0.2, expressions("update")),
    )
        .prop_map(|(classifications, severities, packages, cves, known_exploited, epss_at_least, expression)| {
            UpdateMatch { classifications, severities, packages, cves, known_exploited, epss_at_least, expression }
        });
    let clock = select(vec![AgeClock::FirstSeen, AgeClock::FirstSeen, AgeClock::Published]);
    (matches, rule_action(), age, clock, own_window()).prop_map(|(matches, action, after, clock, window)| Rule {
        name: format!("{action:?}").into(),
        matches,
        action,
        after,
        clock,
        window,
    })
}

fn window(name: Name, now: Timestamp) -> impl Strategy<Value = Window> {
    let calendar = prop_oneof![
        24 => calendar(now).prop_map(Ok),
        1 => Just(Err(Invalid("spec.timeZone is not known".to_owned()))),
    ];
    calendar.prop_map(move |calendar| Window { name: name.clone(), calendar, spec: "1".into() })
}

/// A calendar with something to do around `now`.
pub fn calendar(now: Timestamp) -> impl Strategy<Value = Calendar> {
    let zone = prop_oneof![
        4 => select(ZONES.to_vec()).prop_map(|zone| Zone::Fixed(TimeZone::get(zone).expect("a time zone"))),
        1 => Just(Zone::Device),
    ];
    let exclusion = (near(now, 30), minutes(1..60 * 20), 0..9).prop_map(|(from, length, number)| Exclusion {
        name: format!("x{number}").into(),
        from,
        to: from + length,
    });
    let duration = prop_oneof![1 => minutes(10..60 * 2), 2 => minutes(60 * 2..60 * 12), 1 => minutes(60 * 12..60 * 40)];
    let duration_and_cutoff = duration.prop_flat_map(|duration| {
        let cutoff = prop_oneof![2 => Just(SignedDuration::ZERO), 1 => minutes(0..duration.as_mins())];
        (Just(duration), cutoff)
    });
    let soon = (minutes(1..60), minutes(1..60 * 24)).prop_map(move |(ahead, length)| Exclusion {
        name: "soon".into(),
        from: now + ahead,
        to: now + ahead + length,
    });
    let exclusions = prop_oneof![6 => Just(vec![]), 3 => vec(exclusion, 1..=3), 1 => soon.prop_map(|soon| vec![soon])];
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
        3 => cron().prop_map(Schedule::Cron),
        2 => near(now, 5).prop_map(|at| Schedule::Once { at: TimeZone::UTC.to_datetime(at) }),
        1 => (0..20_i64).prop_map(|days| Schedule::Once {
            at: (date(2026, 3, 1).at(2, 30, 0, 0)) + SignedDuration::from_hours(24 * days)
        }),
    ]
}

/// From seldom to every minute.
fn cron() -> impl Strategy<Value = Cron> {
    let minute = prop_oneof![
        12 => select(vec!["0", "30", "15,45", "5-59/20", "*/30"]),
        1 => Just("*"),
    ];
    let hour = select(vec!["2", "22", "1-3", "*/6", "0,12-23/4", "*"]);
    let days = prop_oneof![
        4 => Just(("*", "*")),
        2 => select(vec!["8", "29-31", "1-15/2", "*/3"]).prop_map(|day| (day, "*")),
        2 => select(vec!["SUN", "1-5", "6,7", "*/2", "fri-sun"]).prop_map(|weekday| ("*", weekday)),
        1 => select(vec![("31", "TUE"), ("1,29", "0"), ("10-12", "MON-FRI/2")]),
    ];
    let month = prop_oneof![3 => Just("*"), 1 => select(vec!["3", "MAR-MAY/2", "4,10"])];
    (minute, hour, days, month).prop_map(|(minute, hour, (day, weekday), month)| {
        Cron::parse(&format!("{minute} {hour} {day} {month} {weekday}")).expect("a cron expression")
    })
}

/// A report whose updates have no place in a catalogue yet.
#[derive(Clone, Debug)]
struct RawReport {
    offers: Vec<(Update, Offered)>,
    removable: Vec<Update>,
    rest: DeviceReport,
}

/// An [`Offer`] without its update.
#[derive(Clone, Debug)]
struct Offered {
    held: bool,
    downloaded: bool,
    requires_restart: Tristate,
    interrupts_service: Tristate,
    first_seen: Timestamp,
    missing_since: Timestamp,
    installed: Option<Name>,
}

impl RawReport {
    fn interned(self, catalogue: &mut Catalogue) -> DeviceReport {
        let offer = |(update, offered): (Update, Offered)| Offer {
            update: catalogue.intern(update),
            held: offered.held,
            downloaded: offered.downloaded,
            requires_restart: offered.requires_restart,
            interrupts_service: offered.interrupts_service,
            first_seen: offered.first_seen,
            missing_since: offered.missing_since,
            installed: offered.installed,
        };
        let offers = self.offers.into_iter().map(offer).collect();
        let removable = self.removable.into_iter().map(|update| catalogue.intern(update)).collect();
        let waits = self.rest.restart_required == Tristate::Yes;
        let restart = waits.then(|| catalogue.intern(Update::restart()));
        DeviceReport { offers, removable, restart, ..self.rest }
    }
}

/// That a check failed after an update, before that has its place in the catalogue.
pub fn in_no_catalogue() -> Cause {
    Cause::Check(Catalogue::default().intern(Update::restart()))
}

/// Gives an update after which a check failed its place in the catalogue.
pub fn into_catalogue(failure: &mut Failure, catalogue: &mut Catalogue) {
    if let Cause::Check(place) = &mut failure.cause {
        *place = catalogue.intern(Update::by_id(failure.update.clone()));
    }
}

/// With its report, or why there is none, and what was installed on it.
fn device(
    name: Name,
    now: Timestamp,
) -> impl Strategy<Value = (Device, Result<RawReport, NoReport>, Vec<&'static str>)> {
    let zone = option::of(prop_oneof![
        6 => select(ZONES.to_vec()).prop_map(|zone| Ok(TimeZone::get(zone).expect("a time zone"))),
        1 => Just(Err(Invalid("spec.timeZone is not known".to_owned()))),
    ]);
    let report = prop_oneof![
        12 => report(now).prop_map(Ok),
        1 => Just(Err(NoReport::None)),
        1 => Just(Err(NoReport::KeyNotAccepted)),
        1 => Just(Err(NoReport::BeforeEpoch { epoch: 2 })),
    ];
    let verb = prop_oneof![
        4 => Just(Verb::Install),
        1 => Just(Verb::Download),
        2 => Just(Verb::Uninstall),
        1 => Just(Verb::Restart)
    ];
    let updates = prop_oneof![
        4 => subsequence(IDS.map(Name::from).to_vec(), 0..=3),
        1 => Just(vec!["restart".into()])
    ];
    let claim = (updates, 0..3, any::<bool>(), near(now, 4), minutes(1..240), minutes(1..240), verb).prop_map(
        |(updates, policy, granted, not_after, limit, expected, verb)| Claim {
            verb,
            sequence: Sequence { epoch: 1, number: 7 },
            policy: format!("p{policy}").into(),
            updates,
            granted,
            not_after,
            limit,
            expected: expected.min(limit),
            restart: SignedDuration::ZERO,
        },
    );
    let cause = prop_oneof![4 => Just(Cause::Update), 3 => Just(in_no_catalogue()), 1 => Just(Cause::RolledBack), 5 => Just(Cause::Other), 2 => Just(Cause::Passing)];
    let ago = (minutes(0..180), weighted(0.3, 0.0..1.0)).prop_map(move |(ago, part)| {
        let last = now - ago;
        (last, part.map_or(last, |part| last + ago.mul_f64(part)))
    });
    let failure = (0..5_usize, 0..4_u32, ago, cause).prop_map(|(update, attempts, (last, again), cause)| Failure {
        cause,
        update: ["u0", "u1", "pkg:deb/debian/u2@1.0", "pkg:deb/debian/u2@1.1", "restart"][update].into(),
        attempts,
        last,
        again,
    });
    let rarely = || prop::bool::weighted(0.03);
    let online_since = option::of(near(now, 100));
    (
        (labels(), any::<bool>(), zone, rarely(), rarely(), rarely(), report),
        (
            prop::bool::weighted(0.92),
            online_since,
            weighted(0.15, claim),
            prop_oneof![2 => Just(vec![]), 1 => vec(failure, 1..=2).prop_map(one_of_each)],
            (past(now), any::<bool>(), weighted(0.03, select(vec![-121, 3_600]))),
            (subsequence(IDS.to_vec(), 0..=2), measured(now)),
        ),
    )
        .prop_map(
            move |(
                (labels, server, zone, suspended, retired, on_hold, report),
                (online, online_since, current, failures, (past, eligible, clock_off), (installed, measured)),
            )| {
                let (last_policy, (last_group, last_possible), moved) = past;
                let device = Device {
                    name: name.clone(),
                    labels: labels.into(),
                    device_type: if server { DeviceType::Server } else { DeviceType::Workstation },
                    zone,
                    suspended,
                    retired,
                    // Until they have their places in the catalogue.
                    report: Err(NoReport::None),
                    last_group,
                    last_possible,
                    online,
                    online_since,
                    clock_off,
                    on_hold,
                    current,
                    failures,
                    installed: vec![],
                    last_policy,
                    moved,
                    eligible,
                    measured,
                };
                (device, report, installed)
            },
        )
}

/// A device has one failure of an update.
fn one_of_each(mut failures: Vec<Failure>) -> Vec<Failure> {
    let mut known = BTreeSet::new();
    failures.retain(|failure| known.insert(failure.update.clone()));
    failures
}

/// The policy and the group that a device had, with the others that it may have been in, and since when, if it had others
/// before.
fn past(now: Timestamp) -> impl Strategy<Value = Past> {
    let one = |prefix: &'static str| (0..3).prop_map(move |number| Name::from(format!("{prefix}{number}")));
    let pair = move || (weighted(0.8, one("p")), weighted(0.8, one("g")));
    let before = pair().prop_map(|(policy, group)| Pair { policy, group });
    let since =
        select(vec![0_i64, 5, 9, 10, 11, 45, 60, 61, 2_000]).prop_map(move |ago| now - SignedDuration::from_mins(ago));
    let moved = (since, weighted(0.9, before)).prop_map(|(since, before)| Box::new(Moved { since, before }));
    let possible = prop_oneof![2 => Just(vec![]), 1 => subsequence(vec!["g0", "g1", "g2"], 1..=2)];
    let some = (pair(), possible, weighted(0.4, moved)).prop_map(|((policy, group), possible, moved)| {
        let others = possible.into_iter().map(Name::from).filter(|name| group.as_ref().is_some_and(|it| it != name));
        let possible = others.collect();
        (policy, (group, possible), moved)
    });
    prop_oneof![5 => Just((None, (None, Box::default()), None)), 1 => some]
}

type Past = (Option<Name>, (Option<Name>, Box<[Name]>), Option<Box<Moved>>);

/// Two of them are versions of one package.
pub const IDS: [&str; 4] = ["u0", "u1", "pkg:deb/debian/u2@1.0", "pkg:deb/debian/u2@1.1"];

fn report(now: Timestamp) -> impl Strategy<Value = RawReport> {
    let problem = select(vec![
        ProblemCode::JournalCorrupt,
        ProblemCode::RepositoryUnavailable,
        ProblemCode::PackageManagerBroken,
        ProblemCode::ScanFailed,
        ProblemCode::Unsupported,
    ]);
    let offers = subsequence(IDS.to_vec(), 0..=4)
        .prop_flat_map(move |ids| ids.into_iter().map(|id| offer(id.into(), now)).collect::<Vec<_>>());
    let os = select(vec!["11", "12"]).prop_map(|version| Arc::new(Os { version: version.into(), ..Os::default() }));
    let removable = prop_oneof![1 => Just(vec![]), 1 => subsequence(IDS.to_vec(), 1..=2)];
    let installed = |id: &str| Update {
        id: id.into(),
        classification: Classification::Unclassified,
        severity: Severity::Unknown,
        packages: vec!["curl".into()],
        cves: vec![],
        published: None,
    };
    let problems = prop_oneof![15 => Just(vec![]), 1 => vec(problem, 1..=2)];
    (
        offers,
        os,
        prop::bool::weighted(0.1),
        select(vec![Tristate::No, Tristate::No, Tristate::Yes, Tristate::Unknown]),
        problems,
        (removable, select(vec![Power::Mains, Power::Battery, Power::Unknown])),
    )
        .prop_map(move |(offers, os, truncated, restart_required, problems, (removable, power))| RawReport {
            // What is offered in one version is not installed in it.
            removable: removable.into_iter().map(installed).collect(),
            offers,
            rest: DeviceReport {
                os,
                offers: vec![],
                removable: vec![],
                restart: None,
                truncated,
                restart_required,
                problems,
                power,
                applications: BTreeMap::new(),
            },
        })
}

fn offer(id: Name, now: Timestamp) -> impl Strategy<Value = (Update, Offered)> {
    let ago = |hours: i64| {
        prop_oneof![1 => Just(0), 3 => 0..60 * hours].prop_map(move |ago| now - SignedDuration::from_mins(ago))
    };
    let installed = select(vec![None, Some("0.9"), Some("1.0"), Some("no version")]).prop_map(|it| it.map(Name::from));
    let known = || select(vec![Tristate::No, Tristate::No, Tristate::No, Tristate::Yes, Tristate::Unknown]);
    let on_device = (prop::bool::weighted(0.1), prop::bool::weighted(0.2), known(), known());
    let offered = (on_device, ago(60), weighted(0.3, ago(100)), installed).prop_map(
        |((held, downloaded, requires_restart, interrupts_service), first_seen, missing, installed)| Offered {
            held,
            downloaded,
            requires_restart,
            interrupts_service,
            first_seen,
            missing_since: missing.map_or(first_seen, |missing| missing.min(first_seen)),
            installed,
        },
    );
    let update = (
        select(vec![Classification::Security, Classification::Updates, Classification::Unclassified]),
        select(vec![Severity::Unknown, Severity::High, Severity::Critical]),
        subsequence(vec![Name::from("curl"), "libssl3".into(), "nano".into()], 1..=2),
        subsequence(vec![Name::from("CVE-2026-0"), "CVE-2026-1".into(), "CVE-2025-7".into()], 0..=2),
        weighted(0.6, near(now, 100)),
    )
        .prop_map(move |(classification, severity, packages, cves, published)| Update {
            id: id.clone(),
            classification,
            severity,
            packages,
            cves,
            published,
        });
    (update, offered)
}
