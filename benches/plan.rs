//! How long a full plan takes, on a seeded fleet in which no two devices are alike and every feature is in use.
//!
//! `cargo bench -p patchwarden-plan` prints the table that `benches/RESULTS.md` keeps. One thread, nothing kept between runs.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::civil::{Time, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::expression::{Expression, Subject};
use patchwarden_plan::model::{
    AgeClock, Amount, Approvals, Calendar, Catalogue, CatchUp, Cause, Claim, Cron, Dates, Deadline, Deadlines,
    DecisionAction, Device, DeviceReport, DeviceType, Disruption, Durations, Exclusion, FailedOn, Failure, Filters,
    Glob, Group, Level, Measured, Members, Mode, Name, Offer, Os, PackageVersion, Policy, Probability, Progress,
    Requirement, Restart, Ring, RingMembers, Rollout, Rule, RuleAction, Schedule, Seen, Selector, Settings, Snapshot,
    SpecDigests, Target, TurnOrder, Update, UpdateDecision, UpdateMatch, UpdateProgress, Vulnerability, WhenEmpty,
    Window, Zone,
};
use patchwarden_plan::{Planner, plan};
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::order::{Dependencies, RestartWhen, Sequence, Verb};
use patchwarden_protocol::report::{Classification, Power, Severity, Tristate};

/// As in the programs that are shipped.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const POLICIES: usize = 50;
const GROUPS: usize = 100;
const WINDOWS: usize = 20;
const OFFERS: usize = 20;
const PACKAGES: usize = 1_500;
const RUNS: usize = 5;

/// One of these in a rule of each group.
const EXPRESSIONS: [&str; 7] = [
    r#"update.packages.exists(name, name.startsWith("package-7"))"#,
    r#"update.id.contains("package-11") && update.classification != "Security""#,
    r#"update.severity in ["High", "Critical"] || update.packages.size() > 2"#,
    r#"update.cves.exists(cve, cve.endsWith("99"))"#,
    r#"update.classification == "Security" && update.packages.all(name, !name.endsWith("-1"))"#,
    r#""package-13-0" in update.packages || update.id.endsWith("@1.2-1")"#,
    r#"update.id.matches("package-1[0-9]{2}@")"#,
];

fn main() {
    let start = Instant::now();
    drop(groups());
    println!("rules of {GROUPS} groups, read and compiled: {:.1} ms\n", start.elapsed().as_secs_f64() * 1e3);
    println!("{:>9}  {:>12}  {:>12}  {:>11}  {:>9}", "devices", "full plan", "per device", "model/device", "installs");
    // The largest first: what it frees is used again, so that nothing could be told of the memory of those after it.
    let mut largest = Some(resident());
    for devices in [100_000, 10_000, 1_000] {
        let snapshot = fleet(devices);
        let bytes = largest.take().map(|before| resident().saturating_sub(before) / devices);
        let bytes = bytes.map_or_else(String::new, |bytes| format!("{bytes} B"));
        let now = now();
        let mut times: Vec<Duration> = Vec::new();
        let mut installs = 0;
        for _ in 0..RUNS {
            let start = processor();
            let answer = plan(&snapshot, now);
            times.push(processor().saturating_sub(start));
            installs = answer.devices.iter().filter(|device| device.install.is_some()).count();
        }
        times.sort();
        let median = times[RUNS / 2];
        println!(
            "{devices:>9}  {:>9.1} ms  {:>9.2} us  {bytes:>11}  {installs:>9}",
            median.as_secs_f64() * 1e3,
            median.as_secs_f64() * 1e6 / devices as f64,
        );
        one_device_changes(&snapshot, now);
    }
}

/// What it takes to plan again when one device of a plan that is kept has changed, a second after the last one.
fn one_device_changes(snapshot: &Snapshot, mut now: Timestamp) {
    let updates = Cow::Borrowed(&snapshot.updates);
    let mut planner: Planner<'_, Device> = Planner::new(snapshot.specs(), updates, snapshot.devices.clone(), now);
    planner.plan(now);
    // As a controller does, once.
    let mut devices = snapshot.devices.clone();
    for device in &mut devices {
        let plan = planner.device(&device.name).expect("a plan");
        device.last_policy.clone_from(&plan.policy);
        device.last_group.clone_from(&plan.group);
        device.moved.clone_from(&plan.moved);
        device.eligible = plan.eligible;
        planner.put(device.clone());
    }
    planner.plan(now);
    let mut random = Random(0x5EED_1234_ABCD_0003);
    for (what, change) in CHANGES {
        let (mut times, mut others) = (Vec::with_capacity(CHANGED), 0);
        for _ in 0..CHANGED {
            let mut device = random.of::<Device>(&devices).clone();
            change(&mut device);
            now += SignedDuration::from_secs(1);
            let start = Instant::now();
            planner.put(device);
            others += planner.plan(now).len();
            times.push(start.elapsed());
        }
        times.sort();
        let micros = |part: usize| times[CHANGED * part / 100].as_secs_f64() * 1e6;
        println!(
            "           {what}: median {:.0} us, p99 {:.0} us; {others} plans are others after {CHANGED} changes",
            micros(50),
            micros(99),
        );
    }
}

/// How often each of them is made.
const CHANGED: usize = 1_000;

type Change = (&'static str, fn(&mut Device));

const CHANGES: [Change; 3] = [
    ("it reports one update less", |device| {
        if let Ok(report) = &mut device.report {
            report.offers.pop();
        }
    }),
    ("it goes offline", |device| device.online = !device.online),
    ("its install ends", |device| device.current = None),
];

fn now() -> Timestamp {
    "2026-03-14T22:30:00Z".parse().expect("an instant")
}

/// How long this thread has been on a processor: what else the machine does is not in it.
fn processor() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = schedstat.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("nanoseconds"))
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below the bound")
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<'l, T>(&mut self, list: &'l [T]) -> &'l T {
        &list[self.below(list.len())]
    }

    fn ago(&mut self, hours: usize) -> Timestamp {
        now() - SignedDuration::from_mins(i64::try_from(self.below(60 * hours)).expect("small"))
    }
}

fn fleet(devices: usize) -> Snapshot {
    let mut random = Random(0x5EED_1234_ABCD_0001);
    let mut updates = Catalogue::default();
    let devices = (0..devices).map(|number| device(number, &mut random, &mut updates)).collect();
    Snapshot {
        policies: (0..POLICIES).map(|number| policy(number, &mut random)).collect(),
        groups: groups(),
        windows: (0..WINDOWS).map(|number| window(number, &mut random)).collect(),
        devices,
        updates,
        vulnerabilities: Some(Arc::new(vulnerabilities(&mut random))),
        seen: (0..PACKAGES).map(|package| seen(package, &mut random)).collect(),
    }
}

/// Something is known of two in three: one in fifty of all is exploited.
fn vulnerabilities(random: &mut Random) -> BTreeMap<Name, Vulnerability> {
    (0..3 * PACKAGES)
        .filter(|number| !number.is_multiple_of(3))
        .map(|number| {
            let epss = u32::try_from(random.below(100_000)).expect("a probability");
            let known = Vulnerability { known_exploited: random.one_in(50), epss: Some(Probability(epss)) };
            (format!("CVE-2026-{number}").into(), known)
        })
        .collect()
}

/// What the client's record says of an update that devices have seen which may be gone.
fn seen(package: usize, random: &mut Random) -> Seen {
    let first = random.ago(24 * 25);
    Seen {
        id: id(package, 1).into(),
        first,
        by: format!("device-{}", random.below(1_000)).into(),
        shared: Some(first + SignedDuration::from_hours(2)),
        dates: Dates { shared: published(package, 1), alone: None },
    }
}

fn id(package: usize, version: usize) -> String {
    format!("pkg:deb/debian/package-{package}@1.{version}-1")
}

fn groups() -> Vec<Group> {
    let mut random = Random(0x5EED_1234_ABCD_0002);
    (0..GROUPS).map(|number| group(number, &mut random)).collect()
}

fn label(key: &str, value: usize) -> Requirement {
    Requirement::In(key.to_owned(), vec![format!("{key}-{value}")])
}

fn window(number: usize, random: &mut Random) -> Window {
    let zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Sydney"];
    let at = Time::constant(i8::try_from(random.below(24)).expect("an hour"), 0, 0, 0);
    let schedule = match number % 4 {
        0 => Schedule::Daily { at },
        1 => Schedule::Weekly { weekdays: vec![Weekday::Saturday, Weekday::Sunday], at },
        2 => Schedule::Monthly { week: 2, weekday: Weekday::Tuesday, offset_days: 4, at },
        _ if number % 8 == 3 => Schedule::Cron(Cron::parse("0 0 * * 1-6").expect("an expression")),
        _ => Schedule::Daily { at: Time::midnight() },
    };
    let freeze = Exclusion {
        name: "christmas".into(),
        from: now() + SignedDuration::from_hours(6_000),
        to: now() + SignedDuration::from_hours(6_400),
    };
    Window {
        name: format!("window-{number}").into(),
        calendar: Ok(Calendar {
            zone: if number % 7 == 3 {
                Zone::Device
            } else {
                Zone::Fixed(TimeZone::get(random.of::<&str>(&zones)).expect("a zone"))
            },
            schedules: vec![schedule, Schedule::Once { at: date(2026, 4, 3).at(1, 0, 0, 0) }],
            duration: SignedDuration::from_hours(if number % 4 == 3 { 24 } else { 4 }),
            cutoff: SignedDuration::from_mins(30),
            exclusions: vec![freeze],
        }),
        spec: format!("window-{number}").into(),
    }
}

fn policy(number: usize, random: &mut Random) -> Policy {
    let ring = |name: &str, members| Ring {
        name: name.into(),
        members,
        soak: SignedDuration::from_hours(24),
        min_successes: 1,
        min_success_percent: 95,
        when_empty: WhenEmpty::Promote,
    };
    let rings = if number.is_multiple_of(2) {
        vec![
            ring("pilot", RingMembers::Selector(Selector(vec![label("ring", 0)]))),
            ring("early", RingMembers::Percent(10)),
        ]
    } else {
        vec![]
    };
    let order = TurnOrder { label: "role".to_owned(), values: vec!["role-1".to_owned()] };
    Policy {
        name: format!("policy-{number}").into(),
        selector: Selector(if number == 0 { vec![] } else { vec![label("site", number)] }),
        types: vec![],
        groups: vec![],
        exclude_groups: vec![],
        exclude: vec![format!("device-{}", random.below(1_000)).into()],
        priority: i32::from(number != 0),
        disruption: number.is_multiple_of(5).then(|| Disruption {
            label: "service".to_owned(),
            max_unavailable: Amount::Percent(20),
            order: Some(order),
            healthy_peers: number.is_multiple_of(10),
        }),
        settings: Ok(Settings {
            deadlines: deadlines(),
            mode: match number % 10 {
                9 => Mode::Audit,
                8 => Mode::DownloadOnly,
                7 => Mode::InstallImmediately,
                _ => Mode::Install,
            },
            filters: Filters {
                skip_restart: number.is_multiple_of(4),
                classifications: if number % 8 == 1 { vec![Classification::Security] } else { vec![] },
                exclude_packages: if number % 8 == 2 { vec![Glob("package-14*".to_owned())] } else { vec![] },
            },
            suspended: number == 13,
            windows: vec![
                format!("window-{}", number % WINDOWS).into(),
                format!("window-{}", (number + 3) % WINDOWS).into(),
            ],
            rollout: Rollout {
                max_concurrent: Amount::Percent(10),
                rings,
                failure_budget: number.is_multiple_of(3).then_some(Amount::Percent(20)),
                resumed: number.is_multiple_of(6).then(|| now() - SignedDuration::from_hours(30)),
            },
            dependencies: Dependencies::AllowInstalls,
            restart: Restart {
                when: if number.is_multiple_of(3) { RestartWhen::IfRequired } else { RestartWhen::Never },
                within: SignedDuration::from_hours(2),
                warning: SignedDuration::from_mins(5),
                message: "Updates are being installed.".to_owned(),
                limit: 3,
                services: number.is_multiple_of(2),
            },
            install_limit: SignedDuration::from_mins(30),
            retry_limit: 2,
            retry_backoff: SignedDuration::from_mins(15),
            catch_up: number
                .is_multiple_of(4)
                .then_some(CatchUp { after: SignedDuration::from_hours(72), require_mains: true }),
            settle: SignedDuration::from_mins(10),
            blast_limit: Amount::Percent(10),
            confirm: None,
            applications: applications(number),
        }),
        progress: Arc::new(progress(random)),
        specs: SpecDigests { selection: format!("selection-{number}").into(), rest: "rest".into() },
    }
}

/// What a policy says of applications: one in ten does.
fn applications(policy: usize) -> BTreeMap<Name, Ensure> {
    if policy % 10 == 1 { BTreeMap::from([("kubectl".into(), Ensure::Installed)]) } else { BTreeMap::new() }
}

/// What policies have written down: how far some updates have come, of which a few are stopped, and how long they took.
fn progress(random: &mut Random) -> Progress {
    let of =
        |random: &mut Random, many| (0..many).map(|_| id(random.below(PACKAGES), random.below(3)).into()).collect();
    let come: Vec<Name> = of(random, 200);
    let took: Vec<Name> = of(random, 200);
    let updates = come.into_iter().map(|id| {
        let (ring, opened) = (random.one_in(2).then(|| "early".into()), random.ago(24 * 10));
        let stopped = random.one_in(20).then(|| opened + SignedDuration::from_hours(3));
        // Some have failed on devices that are gone.
        let gone =
            |number| FailedOn { device: format!("gone-{number}").into(), last: opened, ring: Some("early".into()) };
        let failed = if random.one_in(20) { (0..=random.below(2)).map(gone).collect() } else { vec![] };
        (id, UpdateProgress { ring, opened, reached: None, stopped, installed: 0, anywhere: 0, failed })
    });
    let mut progress = Progress { updates: updates.collect(), ..Progress::default() };
    progress.durations = Durations {
        updates: took.into_iter().map(|id| (id, 30 + u32::try_from(random.below(300)).expect("seconds"))).collect(),
        kinds: BTreeMap::from([(Classification::Security, 90), (Classification::Updates, 60)]),
    };
    progress
}

/// Every policy has some: the forecast is part of what is measured.
fn deadlines() -> Deadlines {
    let within = |days: i64, clock| Deadline { within: SignedDuration::from_hours(24 * days), clock };
    Deadlines(BTreeMap::from([
        (Some(Severity::Critical), within(7, AgeClock::Published)),
        (None, within(30, AgeClock::FirstSeen)),
    ]))
}

fn decisions(random: &mut Random) -> Vec<UpdateDecision> {
    let decision = |number: usize, action, target: Target, locked| UpdateDecision {
        name: format!("decision-{number}").into(),
        target,
        action,
        until: (number % 5 == 3).then(|| now() + SignedDuration::from_hours(100)),
        locked,
        window: (number.is_multiple_of(6) && action == DecisionAction::Approve).then(|| own_window(number)),
    };
    let package = |random: &mut Random| format!("pkg:deb/debian/package-{}", random.below(PACKAGES));
    (0..20)
        .map(|number| {
            let action = *random.of(&[
                DecisionAction::Approve,
                DecisionAction::Ignore,
                DecisionAction::DoNothing,
                DecisionAction::Uninstall,
                DecisionAction::Reprocess { failed_before: now() - SignedDuration::from_hours(12) },
            ]);
            let target = match number % 4 {
                0 => Target::Ids(Glob(format!("{}@*", package(random)))),
                1 => Target::Cves(Glob(format!("CVE-2026-{}", random.below(5_000)))),
                2 => Target::From(PackageVersion::parse(&format!("{}@1.1-1", package(random))).expect("a version")),
                _ => Target::Id(format!("{}@1.2-1", package(random)).into()),
            };
            decision(number, action, target, number == 0)
        })
        .collect()
}

fn group(number: usize, random: &mut Random) -> Group {
    let mut decisions = decisions(random);
    if number.is_multiple_of(10) {
        decisions.clear();
    }
    let rule = |name: &str, matches, action, days| Rule {
        name: name.into(),
        matches,
        action,
        after: SignedDuration::from_hours(24 * i64::from(days)),
        clock: if number.is_multiple_of(2) { AgeClock::FirstSeen } else { AgeClock::Published },
        window: (action == RuleAction::Approve && days == 0).then(|| own_window(number)),
    };
    let expression = EXPRESSIONS[number % EXPRESSIONS.len()];
    let members = match number {
        0 => Members { selector: Some(Selector::default()), ..Members::default() },
        1..10 => Members {
            rule: Some(Ok(Expression::compile(
                &format!(r#"device.type == "Server" && device.labels["site"] == "site-{}""#, 40 + number),
                Subject::Device,
            )
            .expect("an expression"))),
            ..Members::default()
        },
        _ => Members {
            selector: Some(Selector(vec![label("site", number % 40), label("role", number % 3)])),
            names: vec![format!("device-{}", random.below(1_000)).into()],
            rule: None,
        },
    };
    Group {
        name: format!("group-{number}").into(),
        parent: (!number.is_multiple_of(10)).then(|| format!("group-{}", number / 10 * 10).into()),
        level: if number == 0 { Level::Client } else { Level::Group },
        members,
        priority: 0,
        approvals: Ok(Approvals {
            decisions,
            rules: vec![
                rule(
                    "kernels",
                    UpdateMatch { packages: vec![Glob("linux-image-*".to_owned())], ..UpdateMatch::default() },
                    RuleAction::AwaitApproval,
                    0,
                ),
                rule(
                    "by-expression",
                    UpdateMatch {
                        expression: Some(Expression::compile(expression, Subject::Update).expect("an expression")),
                        ..UpdateMatch::default()
                    },
                    RuleAction::Ignore,
                    0,
                ),
                rule(
                    "exploited",
                    UpdateMatch { known_exploited: Some(true), ..UpdateMatch::default() },
                    RuleAction::Approve,
                    0,
                ),
                rule(
                    "likely",
                    UpdateMatch { epss_at_least: Some(Probability(90_000)), ..UpdateMatch::default() },
                    RuleAction::Approve,
                    0,
                ),
                rule(
                    "security",
                    UpdateMatch { classifications: vec![Classification::Security], ..UpdateMatch::default() },
                    RuleAction::Approve,
                    2,
                ),
                rule("rest", UpdateMatch::default(), RuleAction::Approve, 7),
            ],
            default: Some(RuleAction::AwaitApproval),
            min_artifact_age: number.is_multiple_of(5).then(|| SignedDuration::from_hours(24)),
        }),
        seen: if number == 0 { (0..PACKAGES).map(|package| seen(package, random)).collect() } else { vec![] },
        spec: format!("group-{number}").into(),
    }
}

/// A window of an update's own.
fn own_window(number: usize) -> Name {
    format!("window-{}", (number * 7 + 1) % WINDOWS).into()
}

fn device(number: usize, random: &mut Random, catalogue: &mut Catalogue) -> Device {
    let first = random.below(PACKAGES);
    let offers = (0..OFFERS).map(|nth| offer((first + nth * 37) % PACKAGES, random, catalogue)).collect::<Vec<_>>();
    let ids: Vec<Name> =
        offers.iter().filter_map(|offer| catalogue.get(offer.update)).map(|update| update.id.clone()).collect();
    // Updates that are on the device: an older one of a package that it offers, or one that it lacks nothing of.
    let removable = (0..random.below(5))
        .map(|nth| catalogue.intern(update((first + nth * 61) % PACKAGES, 0, random)))
        .collect::<Vec<_>>();
    let measured = Measured {
        updates: vec![ids[2].clone()],
        kinds: vec![Classification::Security],
        seconds: 120,
        at: random.ago(1),
    };
    let mut value = |key: &str, value: usize| (catalogue.name(key), catalogue.name(&format!("{key}-{value}")));
    let site = random.below(POLICIES);
    let labels = [
        value("site", site),
        value("role", random.below(3)),
        value("ring", random.below(10)),
        value("service", random.below(5_000)),
        value("asset", number),
    ];
    let claim = |random: &mut Random| Claim {
        sequence: Sequence { epoch: 0, number: 7 },
        policy: format!("policy-{}", random.below(POLICIES)).into(),
        verb: Verb::Install,
        updates: vec![ids[0].clone()],
        granted: true,
        not_after: now() + SignedDuration::from_mins(10),
        limit: SignedDuration::from_mins(30),
        restart: SignedDuration::ZERO,
        expected: SignedDuration::from_mins(30),
    };
    let zones = ["Europe/Berlin", "America/New_York", "Asia/Tokyo"];
    Device {
        name: format!("device-{number}").into(),
        labels: labels.into_iter().collect(),
        device_type: if number.is_multiple_of(3) { DeviceType::Workstation } else { DeviceType::Server },
        zone: Some(Ok(TimeZone::get(random.of::<&str>(&zones)).expect("a zone"))),
        suspended: random.one_in(500),
        retired: random.one_in(500),
        report: Ok(DeviceReport {
            os: Arc::new(Os {
                family: catalogue.name("linux"),
                name: catalogue.name("debian"),
                version: catalogue.name(random.of::<&str>(&["11", "12", "13"])),
                arch: catalogue.name("amd64"),
                kernel: catalogue.name(&format!("6.1.0-{}", random.below(40))),
            }),
            offers,
            removable,
            restart: random.one_in(4).then(|| catalogue.intern(Update::restart())),
            truncated: random.one_in(200),
            restart_required: *random.of(&[Tristate::No, Tristate::No, Tristate::Yes]),
            problems: vec![],
            power: *random.of(&[Power::Mains, Power::Mains, Power::Battery]),
            // One in twenty has not heard of them yet.
            applications: if random.one_in(20) { BTreeMap::new() } else { applications(site) },
        }),
        last_group: None,
        last_possible: Box::default(),
        online: !random.one_in(10),
        online_since: Some(random.ago(100)),
        clock_off: None,
        on_hold: false,
        current: random.one_in(50).then(|| claim(random)),
        failures: random
            .one_in(20)
            .then(|| Failure {
                update: ids[1].clone(),
                attempts: 1,
                last: random.ago(48),
                again: random.ago(48),
                cause: Cause::Update,
            })
            .into_iter()
            .collect(),
        // As many as status keeps, mostly what others have installed as well.
        installed: (0..32).map(|_| catalogue.number(&id(random.below(PACKAGES), random.below(3)))).collect(),
        last_policy: None,
        moved: None,
        eligible: false,
        measured: if random.one_in(100) { vec![measured] } else { vec![] },
    }
}

fn offer(package: usize, random: &mut Random, catalogue: &mut Catalogue) -> Offer {
    let first_seen = random.ago(24 * 20);
    let version = random.below(3);
    Offer {
        update: catalogue.intern(update(package, version, random)),
        held: random.one_in(100),
        downloaded: random.one_in(10),
        requires_restart: *random.of(&[Tristate::No, Tristate::Unknown, Tristate::Yes]),
        interrupts_service: *random.of(&[Tristate::No, Tristate::Unknown, Tristate::Yes]),
        first_seen,
        missing_since: first_seen,
        installed: Some(catalogue.name(random.of::<&str>(&["1.0-1", "0.9-3", "0.9-1"]))),
    }
}

fn update(package: usize, version: usize, random: &mut Random) -> Update {
    Update {
        id: id(package, version).into(),
        classification: if package.is_multiple_of(3) { Classification::Updates } else { Classification::Security },
        severity: [Severity::Unknown, Severity::Low, Severity::High, Severity::Critical][package % 7 % 4],
        // Not every device has the same packages of a source.
        packages: (0..=random.below(3)).map(|part| format!("package-{package}-{part}").into()).collect(),
        cves: vec![format!("CVE-2026-{}", package * 3 + version).into()],
        published: published(package, version),
    }
}

fn published(package: usize, version: usize) -> Option<Timestamp> {
    let ago = SignedDuration::from_hours(i64::try_from(24 + (package * 31 + version * 17) % 500).expect("small"));
    package.is_multiple_of(2).then(|| now() - ago)
}
