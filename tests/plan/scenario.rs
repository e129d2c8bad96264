//! Scenarios: YAML that reads like the resources, into a [`Snapshot`].
//!
//! ```yaml
//! about: One sentence.
//! start: 2026-03-01T00:00:00Z
//! end: 2026-04-01T00:00:00Z
//! measured: true                                   # how long installs take is measured (false if absent)
//! windows: {NAME: {timeZone, schedules, duration, cutoff, exclusions, invalid}}
//! groups: {NAME: {selector, names, rule, level, parent, priority, decisions, rules, default, minArtifactAge (0 if absent)}}
//! policies: {NAME: {selector, types, approvalGroups, excludeApprovalGroups, exclude, priority, mode, windows, maxConcurrent, rings,
//!            failureBudget, resumed, disruption, deadlines, ..., invalid}}
//! vulnerabilities: {CVE: {knownExploited, epss (in 10^-5)}}    nobody has told of any where this is not there
//! devices: {NAME: {type, labels, timeZone, updates: {ID: {...}}, online, fails, takes, asksAfter, ...}}
//! events:
//!   - at: 2026-03-02T00:00:00Z
//!     note: What happens, for the reader.
//!     change: {policies: {NAME: {suspend: true}}}     # a JSON merge patch (RFC 7396) of the above
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::expression::{Expression, Subject};
use patchwarden_plan::model;
use patchwarden_plan::package::package_of;
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::order::{Dependencies, RestartWhen};
use patchwarden_protocol::report::{Classification, Power, ProblemCode, Severity, Tristate};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::fleet::into_catalogue;

/// A scenario as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub about: String,
    pub start: Timestamp,
    pub end: Timestamp,
    #[serde(default)]
    pub measured: bool,
    /// Of how many updates a device tells that it has them by orders.
    #[serde(default = "remembers")]
    pub remembers: usize,
    #[serde(default)]
    pub windows: Value,
    #[serde(default)]
    pub groups: Value,
    #[serde(default)]
    pub policies: Value,
    #[serde(default)]
    pub devices: Value,
    #[serde(default)]
    pub vulnerabilities: Value,
    #[serde(default)]
    pub events: Vec<Event>,
}

fn remembers() -> usize {
    32
}

/// Something that happens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub at: Timestamp,
    pub note: String,
    #[serde(default)]
    pub change: Value,
}

/// The world as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    #[serde(default)]
    pub windows: BTreeMap<String, WindowSpec>,
    #[serde(default)]
    pub groups: BTreeMap<String, GroupSpec>,
    #[serde(default)]
    pub policies: BTreeMap<String, PolicySpec>,
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceSpec>,
    #[serde(default)]
    vulnerabilities: Option<BTreeMap<String, VulnerabilitySpec>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowSpec {
    time_zone: String,
    schedules: Vec<ScheduleSpec>,
    duration: String,
    #[serde(default)]
    cutoff: Option<String>,
    #[serde(default)]
    exclusions: Vec<ExclusionSpec>,
    /// What could not be understood.
    #[serde(default)]
    invalid: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ScheduleSpec {
    #[serde(rename_all = "camelCase")]
    Monthly {
        week: String,
        weekday: String,
        #[serde(default)]
        offset_days: i32,
        at: String,
    },
    Weekly {
        weekdays: Vec<String>,
        at: String,
    },
    Daily {
        at: String,
    },
    Once {
        at: String,
    },
    Cron {
        expression: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExclusionSpec {
    name: String,
    from: Timestamp,
    to: Timestamp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorSpec {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RequirementSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementSpec {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupSpec {
    #[serde(default)]
    selector: Option<SelectorSpec>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    rule: Option<String>,
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    decisions: Vec<DecisionSpec>,
    #[serde(default)]
    rules: Vec<RuleSpec>,
    #[serde(default)]
    default: Option<String>,
    /// Without one nothing has to be known for a while: `default` for what holds where no group says otherwise.
    #[serde(default)]
    min_artifact_age: Option<String>,
    /// What could not be understood.
    #[serde(default)]
    invalid: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DecisionSpec {
    update: String,
    action: String,
    #[serde(default)]
    or_later: bool,
    #[serde(default)]
    until: Option<Timestamp>,
    #[serde(default)]
    failed_before: Option<Timestamp>,
    #[serde(default)]
    locked: bool,
    #[serde(default)]
    window: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    name: String,
    #[serde(default)]
    classifications: Vec<Classification>,
    #[serde(default)]
    severities: Vec<Severity>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    cves: Vec<String>,
    #[serde(default)]
    known_exploited: Option<bool>,
    #[serde(default)]
    epss_at_least: Option<u32>,
    #[serde(default)]
    expression: Option<String>,
    action: String,
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    clock: Option<String>,
    #[serde(default)]
    window: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VulnerabilitySpec {
    #[serde(default)]
    known_exploited: bool,
    #[serde(default)]
    epss: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RingSpec {
    name: String,
    #[serde(default)]
    selector: Option<SelectorSpec>,
    #[serde(default)]
    percent: Option<u32>,
    soak: String,
    #[serde(default)]
    min_successes: Option<u32>,
    #[serde(default)]
    min_success_percent: Option<u32>,
    #[serde(default)]
    when_empty: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DisruptionSpec {
    group_by: String,
    max_unavailable: Value,
    #[serde(default)]
    order: Option<OrderSpec>,
    #[serde(default)]
    healthy_peers: bool,
}

/// `severity` absent for any other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadlineSpec {
    #[serde(default)]
    severity: Option<Severity>,
    within: String,
    #[serde(default)]
    clock: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderSpec {
    label: String,
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartSpec {
    when: RestartWhen,
    #[serde(default)]
    within: Option<String>,
    #[serde(default)]
    warning: Option<String>,
    #[serde(default)]
    services: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CatchUpSpec {
    after: String,
    #[serde(default = "yes")]
    require_mains: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySpec {
    #[serde(default)]
    selector: SelectorSpec,
    #[serde(default)]
    types: Vec<String>,
    #[serde(default)]
    approval_groups: Vec<String>,
    #[serde(default)]
    exclude_approval_groups: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    windows: Vec<String>,
    #[serde(default)]
    skip_restart: bool,
    #[serde(default)]
    classifications: Vec<Classification>,
    #[serde(default)]
    exclude_packages: Vec<String>,
    #[serde(default)]
    max_concurrent: Option<Value>,
    #[serde(default)]
    rings: Vec<RingSpec>,
    #[serde(default)]
    failure_budget: Option<Value>,
    #[serde(default)]
    resumed: Option<Timestamp>,
    #[serde(default)]
    disruption: Option<DisruptionSpec>,
    #[serde(default)]
    dependencies: Dependencies,
    #[serde(default)]
    restart: Option<RestartSpec>,
    #[serde(default)]
    install_limit: Option<String>,
    #[serde(default)]
    retry_limit: Option<u32>,
    #[serde(default)]
    retry_backoff: Option<String>,
    #[serde(default)]
    deadlines: Vec<DeadlineSpec>,
    #[serde(default)]
    catch_up: Option<CatchUpSpec>,
    /// By the names of their packages.
    #[serde(default)]
    applications: BTreeMap<String, Ensure>,
    /// Without one nothing has to settle.
    #[serde(default)]
    settle: Option<String>,
    /// Without one nothing is held: `default` for what holds where nothing is said.
    #[serde(default)]
    blast_limit: Option<Value>,
    #[serde(default)]
    confirm: Option<String>,
    #[serde(default)]
    suspend: bool,
    /// What could not be understood.
    #[serde(default)]
    invalid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // as it is written in YAML
pub struct DeviceSpec {
    #[serde(rename = "type", default)]
    device_type: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    time_zone: Option<String>,
    #[serde(default)]
    suspend: bool,
    #[serde(default)]
    retired: bool,
    #[serde(default)]
    os_version: Option<String>,
    #[serde(default)]
    updates: BTreeMap<String, UpdateSpec>,
    /// Ids of what is installed and can be taken back.
    #[serde(default)]
    pub removable: Vec<String>,
    #[serde(default)]
    truncated: bool,
    #[serde(default)]
    restart: Tristate,
    #[serde(default)]
    problems: Vec<ProblemCode>,
    #[serde(default)]
    power: Power,
    /// What it was told of applications.
    #[serde(default)]
    applications: BTreeMap<String, Ensure>,
    /// No report, for this reason.
    #[serde(default)]
    no_report: Option<String>,
    #[serde(default = "yes")]
    pub online: bool,
    /// By so many seconds its clock is behind.
    #[serde(default)]
    clock_off: Option<i32>,
    /// Updates whose installation fails.
    #[serde(default)]
    pub fails: Vec<String>,
    /// They fail for a reason that is none of theirs.
    #[serde(default)]
    pub fails_otherwise: bool,
    /// They cannot even be tried.
    #[serde(default)]
    pub cannot_try: bool,
    /// The device is brought back after them.
    #[serde(default)]
    pub rolls_back: bool,
    /// They are installed, and a check fails after them.
    #[serde(default)]
    pub check_fails: bool,
    /// How long an install takes.
    #[serde(default)]
    takes: Option<String>,
    /// How long after its claim the device asks for its grant.
    #[serde(default)]
    asks_after: Option<String>,
    /// What it installs it can take back.
    #[serde(default)]
    pub takes_back: bool,
    /// It never says how an install ended.
    #[serde(default)]
    pub silent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateSpec {
    #[serde(default = "security")]
    classification: Classification,
    #[serde(default = "unknown")]
    severity: Severity,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    cves: Vec<String>,
    #[serde(default)]
    published: Option<Timestamp>,
    /// The version that is installed.
    #[serde(default)]
    installed: Option<String>,
    #[serde(default)]
    held: bool,
    #[serde(default)]
    downloaded: bool,
    /// Whether it needs a restart.
    #[serde(default)]
    restart: Tristate,
    /// Whether it interrupts a service.
    #[serde(default)]
    interrupts: Tristate,
}

/// What the world does not say, because it comes from what happened.
#[derive(Default)]
pub struct Past {
    pub devices: BTreeMap<String, History>,
    pub policies: BTreeMap<model::Name, Arc<model::Progress>>,
    pub groups: BTreeMap<model::Name, Vec<model::Seen>>,
}

/// What the world does not say of a device, because it comes from what happened.
#[derive(Clone, Default)]
pub struct History {
    pub online_since: Option<Timestamp>,
    pub current: Option<model::Claim>,
    pub failures: Vec<model::Failure>,
    /// By its installs, latest first, each once.
    pub installed: Vec<model::Name>,
    /// Its last three installs that succeeded.
    pub measured: Vec<model::Measured>,
    pub last_group: Option<model::Name>,
    pub last_possible: Box<[model::Name]>,
    pub last_policy: Option<model::Name>,
    pub moved: Option<Box<model::Moved>>,
    pub eligible: bool,
    /// Updates with their first sighting, and since when the device lacks the package.
    pub sightings: Vec<(model::Name, Timestamp, Timestamp)>,
}

impl History {
    /// An update has failed once more.
    pub fn fail(&mut self, id: &model::Name, cause: model::Cause, now: Timestamp) {
        let attempts = self.failures.iter().find(|failure| failure.update == *id).map_or(0, |it| it.attempts);
        self.failures.retain(|failure| failure.update != *id);
        self.failures.push(model::Failure { update: id.clone(), attempts: attempts + 1, last: now, again: now, cause });
    }
}

impl World {
    pub fn snapshot(&self, past: &Past, now: Timestamp) -> model::Snapshot {
        let history = |name: &String| past.devices.get(name).cloned().unwrap_or_default();
        let seen = |name: &String| past.groups.get(&**name).cloned().unwrap_or_default();
        let progress = |name: &String| past.policies.get(&**name).cloned().unwrap_or_default();
        let mut updates = model::Catalogue::default();
        let vulnerability = |(cve, spec): (&String, &VulnerabilitySpec)| {
            let epss = spec.epss.map(model::Probability);
            (cve.as_str().into(), model::Vulnerability { known_exploited: spec.known_exploited, epss })
        };
        model::Snapshot {
            policies: self.policies.iter().map(|(name, spec)| spec.policy(name, progress(name))).collect(),
            groups: self.groups.iter().map(|(name, spec)| spec.group(name, seen(name))).collect(),
            windows: self.windows.iter().map(|(name, spec)| spec.window(name)).collect(),
            devices: self
                .devices
                .iter()
                .map(|(name, spec)| spec.device(name, history(name), &mut updates, now))
                .collect(),
            vulnerabilities: self
                .vulnerabilities
                .as_ref()
                .map(|known| Arc::new(known.iter().map(vulnerability).collect())),
            updates,
            seen: vec![],
        }
    }
}

impl WindowSpec {
    fn window(&self, name: &str) -> model::Window {
        let calendar = match &self.invalid {
            Some(invalid) => Err(model::Invalid(invalid.clone())),
            None => Ok(model::Calendar {
                zone: match self.time_zone.as_str() {
                    "Device" => model::Zone::Device,
                    zone => model::Zone::Fixed(TimeZone::get(zone).expect("a time zone")),
                },
                schedules: self.schedules.iter().map(ScheduleSpec::schedule).collect(),
                duration: duration(&self.duration),
                cutoff: self.cutoff.as_deref().map(duration).unwrap_or_default(),
                exclusions: self.exclusions.iter().map(ExclusionSpec::exclusion).collect(),
            }),
        };
        model::Window { name: name.into(), calendar, spec: digest(&[self]) }
    }
}

impl ScheduleSpec {
    fn schedule(&self) -> model::Schedule {
        let time = |at: &str| at.parse::<Time>().expect("a time");
        match self {
            Self::Monthly { week, weekday: day, offset_days, at } => model::Schedule::Monthly {
                week: match week.as_str() {
                    "First" => 1,
                    "Second" => 2,
                    "Third" => 3,
                    "Fourth" => 4,
                    "Last" => -1,
                    other => panic!("week {other}"),
                },
                weekday: weekday(day),
                offset_days: *offset_days,
                at: time(at),
            },
            Self::Weekly { weekdays, at } => {
                model::Schedule::Weekly { weekdays: weekdays.iter().map(|day| weekday(day)).collect(), at: time(at) }
            }
            Self::Daily { at } => model::Schedule::Daily { at: time(at) },
            Self::Once { at } => model::Schedule::Once { at: at.parse::<DateTime>().expect("a date and time") },
            Self::Cron { expression } => {
                model::Schedule::Cron(model::Cron::parse(expression).expect("a cron expression"))
            }
        }
    }
}

impl ExclusionSpec {
    fn exclusion(&self) -> model::Exclusion {
        model::Exclusion { name: self.name.as_str().into(), from: self.from, to: self.to }
    }
}

impl SelectorSpec {
    fn selector(&self) -> model::Selector {
        let labels = self.match_labels.iter();
        let labels = labels.map(|(key, value)| model::Requirement::In(key.clone(), vec![value.clone()]));
        let expressions = self.match_expressions.iter().map(|one| match one.operator.as_str() {
            "In" => model::Requirement::In(one.key.clone(), one.values.clone()),
            "NotIn" => model::Requirement::NotIn(one.key.clone(), one.values.clone()),
            "Exists" => model::Requirement::Exists(one.key.clone()),
            "DoesNotExist" => model::Requirement::DoesNotExist(one.key.clone()),
            other => panic!("operator {other}"),
        });
        model::Selector(labels.chain(expressions).collect())
    }
}

impl GroupSpec {
    fn group(&self, name: &str, seen: Vec<model::Seen>) -> model::Group {
        let compile = |text: &String, subject| Expression::compile(text, subject);
        model::Group {
            name: name.into(),
            parent: self.parent.as_deref().map(Into::into),
            level: match self.level.as_deref() {
                Some("DeviceType") => model::Level::DeviceType,
                Some("Client") => model::Level::Client,
                Some("Site") => model::Level::Site,
                None | Some("Group") => model::Level::Group,
                Some("Device") => model::Level::Device,
                Some(other) => panic!("level {other}"),
            },
            members: model::Members {
                selector: self.selector.as_ref().map(SelectorSpec::selector),
                names: names(&self.names),
                rule: self.rule.as_ref().map(|rule| compile(rule, Subject::Device)),
            },
            priority: self.priority,
            approvals: match &self.invalid {
                Some(invalid) => Err(model::Invalid(invalid.clone())),
                None => Ok(model::Approvals {
                    decisions: self.decisions.iter().map(DecisionSpec::decision).collect(),
                    rules: self.rules.iter().map(RuleSpec::rule).collect(),
                    default: self.default.as_deref().map(rule_action),
                    min_artifact_age: match self.min_artifact_age.as_deref() {
                        None => Some(SignedDuration::ZERO),
                        Some("default") => None,
                        Some(age) => Some(duration(age)),
                    },
                }),
            },
            seen,
            spec: digest(&[self]),
        }
    }
}

impl DecisionSpec {
    fn decision(&self) -> model::UpdateDecision {
        model::UpdateDecision {
            name: self.update.as_str().into(),
            target: model::Target::read(&self.update, self.or_later).expect("a version of a package"),
            action: match (self.action.as_str(), self.failed_before) {
                ("Approve", None) => model::DecisionAction::Approve,
                ("Ignore", None) => model::DecisionAction::Ignore,
                ("DoNothing", None) => model::DecisionAction::DoNothing,
                ("Uninstall", None) => model::DecisionAction::Uninstall,
                ("Reprocess", Some(failed_before)) => model::DecisionAction::Reprocess { failed_before },
                (other, _) => panic!("action {other}"),
            },
            until: self.until,
            locked: self.locked,
            window: self.window.as_deref().map(Into::into),
        }
    }
}

impl RuleSpec {
    fn rule(&self) -> model::Rule {
        let globs = |patterns: &[String]| patterns.iter().cloned().map(model::Glob).collect();
        model::Rule {
            name: self.name.as_str().into(),
            matches: model::UpdateMatch {
                classifications: self.classifications.clone(),
                severities: self.severities.clone(),
                packages: globs(&self.packages),
                cves: globs(&self.cves),
                known_exploited: self.known_exploited,
                epss_at_least: self.epss_at_least.map(model::Probability),
                expression: self
                    .expression
                    .as_ref()
                    .map(|text| Expression::compile(text, Subject::Update).expect("an expression")),
            },
            action: rule_action(&self.action),
            after: self.after.as_deref().map(duration).unwrap_or_default(),
            clock: clock(self.clock.as_deref()),
            window: self.window.as_deref().map(Into::into),
        }
    }
}

impl RingSpec {
    fn ring(&self) -> model::Ring {
        model::Ring {
            name: self.name.as_str().into(),
            members: match (&self.selector, self.percent) {
                (Some(selector), None) => model::RingMembers::Selector(selector.selector()),
                (None, Some(percent)) => model::RingMembers::Percent(percent),
                _ => panic!("ring {}: either selector or percent", self.name),
            },
            soak: duration(&self.soak),
            min_successes: self.min_successes.unwrap_or(1),
            min_success_percent: self.min_success_percent.unwrap_or(100),
            when_empty: match self.when_empty.as_deref() {
                None | Some("Wait") => model::WhenEmpty::Wait,
                Some("Promote") => model::WhenEmpty::Promote,
                Some(other) => panic!("whenEmpty {other}"),
            },
        }
    }
}

impl DeadlineSpec {
    fn deadline(&self) -> (Option<Severity>, model::Deadline) {
        let clock = clock(self.clock.as_deref());
        (self.severity, model::Deadline { within: duration(&self.within), clock })
    }
}

impl DisruptionSpec {
    fn disruption(&self) -> model::Disruption {
        let order = |order: &OrderSpec| model::TurnOrder { label: order.label.clone(), values: order.values.clone() };
        model::Disruption {
            label: self.group_by.clone(),
            max_unavailable: amount(&self.max_unavailable),
            order: self.order.as_ref().map(order),
            healthy_peers: self.healthy_peers,
        }
    }
}

impl RestartSpec {
    fn restart(&self) -> model::Restart {
        model::Restart {
            when: self.when,
            within: duration(self.within.as_deref().unwrap_or("2h")),
            warning: self.warning.as_deref().map(duration).unwrap_or_default(),
            message: String::new(),
            limit: 3,
            services: self.services,
        }
    }
}

impl PolicySpec {
    fn policy(&self, name: &str, progress: Arc<model::Progress>) -> model::Policy {
        let settings = model::Settings {
            mode: match self.mode.as_deref() {
                None | Some("Audit") => model::Mode::Audit,
                Some("DownloadOnly") => model::Mode::DownloadOnly,
                Some("Install") => model::Mode::Install,
                Some("InstallImmediately") => model::Mode::InstallImmediately,
                Some(other) => panic!("mode {other}"),
            },
            suspended: self.suspend,
            filters: model::Filters {
                skip_restart: self.skip_restart,
                classifications: self.classifications.clone(),
                exclude_packages: self.exclude_packages.iter().cloned().map(model::Glob).collect(),
            },
            windows: names(&self.windows),
            rollout: model::Rollout {
                max_concurrent: self.max_concurrent.as_ref().map_or(model::Amount::Count(1), amount),
                rings: self.rings.iter().map(RingSpec::ring).collect(),
                failure_budget: self.failure_budget.as_ref().map(amount),
                resumed: self.resumed,
            },
            dependencies: self.dependencies,
            restart: self.restart.as_ref().map(RestartSpec::restart).unwrap_or_default(),
            install_limit: duration(self.install_limit.as_deref().unwrap_or("30m")),
            retry_limit: self.retry_limit.unwrap_or(2),
            retry_backoff: duration(self.retry_backoff.as_deref().unwrap_or("15m")),
            catch_up: self
                .catch_up
                .as_ref()
                .map(|it| model::CatchUp { after: duration(&it.after), require_mains: it.require_mains }),
            settle: self.settle.as_deref().map(duration).unwrap_or_default(),
            blast_limit: match &self.blast_limit {
                None => model::Amount::Percent(100),
                Some(Value::String(default)) if default == "default" => model::Amount::Percent(10),
                Some(limit) => amount(limit),
            },
            confirm: self.confirm.as_deref().map(Into::into),
            deadlines: model::Deadlines(self.deadlines.iter().map(DeadlineSpec::deadline).collect()),
            applications: applications(&self.applications),
        };
        model::Policy {
            name: name.into(),
            selector: self.selector.selector(),
            types: self.types.iter().map(|one| device_type(one)).collect(),
            groups: names(&self.approval_groups),
            exclude_groups: names(&self.exclude_approval_groups),
            exclude: names(&self.exclude),
            priority: self.priority,
            disruption: self.disruption.as_ref().map(DisruptionSpec::disruption),
            settings: self.invalid.clone().map_or(Ok(settings), |invalid| Err(model::Invalid(invalid))),
            progress,
            specs: model::SpecDigests {
                selection: self.selection(),
                rest: digest(&[&self.mode, &self.windows, &self.install_limit, &self.invalid]),
            },
        }
    }
}

impl PolicySpec {
    /// Like that of a policy's spec: it is what it was where a newer field says nothing.
    fn selection(&self) -> model::Name {
        let of: [&dyn std::fmt::Debug; 5] =
            [&self.selector, &self.types, &self.approval_groups, &self.exclude, &self.priority];
        let excluded = &self.exclude_approval_groups;
        if excluded.is_empty() { digest(&of) } else { digest(&[&of, excluded]) }
    }
}

/// As good as a digest, and shorter than what it is of.
fn digest(parts: &[&dyn std::fmt::Debug]) -> model::Name {
    format!("{:?}", Sha256::digest(format!("{parts:?}"))).into()
}

impl DeviceSpec {
    pub fn is_server(&self) -> bool {
        self.device_type() == model::DeviceType::Server
    }

    fn device_type(&self) -> model::DeviceType {
        self.device_type.as_deref().map_or(model::DeviceType::Server, device_type)
    }

    pub fn takes(&self) -> SignedDuration {
        duration(self.takes.as_deref().unwrap_or("10m"))
    }

    /// The kinds of updates that it offers.
    pub fn kinds(&self, ids: &[model::Name]) -> Vec<Classification> {
        let kinds = ids.iter().filter_map(|id| self.updates.get(&**id)).map(|update| update.classification);
        kinds.collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub fn asks_after(&self) -> SignedDuration {
        self.asks_after.as_deref().map(duration).unwrap_or_default()
    }

    fn device(&self, name: &str, history: History, catalogue: &mut model::Catalogue, now: Timestamp) -> model::Device {
        let History { online_since, current, mut failures, installed, measured, .. } = history;
        for failure in &mut failures {
            into_catalogue(failure, catalogue);
        }
        let History { last_group, last_possible, last_policy, moved, eligible, sightings, .. } = history;
        let offer = |(id, spec): (&String, &UpdateSpec)| {
            let package = package_of(id);
            let first_seen = sightings.iter().find(|(other, _, _)| **other == **id).map_or(now, |(_, seen, _)| *seen);
            let versions = sightings.iter().filter(|(other, _, _)| package_of(other) == package);
            model::Offer {
                update: catalogue.intern(model::Update {
                    id: id.as_str().into(),
                    classification: spec.classification,
                    severity: spec.severity,
                    packages: names(&spec.packages),
                    cves: names(&spec.cves),
                    published: spec.published,
                }),
                held: spec.held,
                downloaded: spec.downloaded,
                requires_restart: spec.restart,
                interrupts_service: spec.interrupts,
                first_seen,
                installed: spec.installed.as_deref().map(Into::into),
                missing_since: versions.map(|(_, _, missing)| *missing).min().unwrap_or(first_seen).min(first_seen),
            }
        };
        let offers = self.updates.iter().map(offer).collect();
        let waits = self.restart == Tristate::Yes;
        let restart = waits.then(|| catalogue.intern(model::Update::restart()));
        let report = match self.no_report.as_deref() {
            None => Ok(model::DeviceReport {
                os: Arc::new(model::Os {
                    family: "linux".into(),
                    name: "debian".into(),
                    version: self.os_version.as_deref().unwrap_or("12").into(),
                    ..model::Os::default()
                }),
                offers,
                removable: self.removable.iter().map(|id| removable(id, catalogue)).collect(),
                truncated: self.truncated,
                restart_required: self.restart,
                restart,
                problems: self.problems.clone(),
                power: self.power,
                applications: applications(&self.applications),
            }),
            Some("None") => Err(model::NoReport::None),
            Some("KeyNotAccepted") => Err(model::NoReport::KeyNotAccepted),
            Some("BeforeEpoch") => Err(model::NoReport::BeforeEpoch { epoch: 2 }),
            Some("DuplicateIdentity") => Err(model::NoReport::DuplicateIdentity("two machines".to_owned())),
            Some(reason) => Err(model::NoReport::Refused(reason.to_owned())),
        };
        let zone = |name: &String| TimeZone::get(name).map_err(|error| model::Invalid(error.to_string()));
        model::Device {
            name: name.into(),
            labels: self.labels.clone().into(),
            device_type: self.device_type(),
            zone: self.time_zone.as_ref().map(zone),
            suspended: self.suspend,
            retired: self.retired,
            report,
            last_group,
            last_possible,
            online: self.online,
            online_since,
            clock_off: self.clock_off,
            on_hold: false,
            current,
            failures,
            installed: installed.iter().map(|id| catalogue.number(id)).collect(),
            measured,
            last_policy,
            moved,
            eligible,
        }
    }
}

/// As little as a device says of what it has installed.
fn applications(spec: &BTreeMap<String, Ensure>) -> BTreeMap<model::Name, Ensure> {
    spec.iter().map(|(name, ensure)| (name.as_str().into(), *ensure)).collect()
}

fn removable(id: &str, catalogue: &mut model::Catalogue) -> model::UpdateId {
    catalogue.intern(model::Update {
        id: id.into(),
        classification: Classification::Unclassified,
        severity: Severity::Unknown,
        packages: vec![],
        cves: vec![],
        published: None,
    })
}

fn amount(value: &Value) -> model::Amount {
    match value {
        Value::String(percent) => model::Amount::Percent(percent.trim_end_matches('%').parse().expect("a percentage")),
        count => model::Amount::Count(serde_json::from_value(count.clone()).expect("a number")),
    }
}

fn names(list: &[String]) -> Vec<model::Name> {
    list.iter().map(|name| name.as_str().into()).collect()
}

fn yes() -> bool {
    true
}

fn security() -> Classification {
    Classification::Security
}

fn unknown() -> Severity {
    Severity::Unknown
}

fn duration(text: &str) -> SignedDuration {
    text.parse().expect("a duration")
}

fn clock(name: Option<&str>) -> model::AgeClock {
    match name {
        None | Some("FirstSeen") => model::AgeClock::FirstSeen,
        Some("Published") => model::AgeClock::Published,
        Some(other) => panic!("clock {other}"),
    }
}

fn device_type(name: &str) -> model::DeviceType {
    match name {
        "Server" => model::DeviceType::Server,
        "Workstation" => model::DeviceType::Workstation,
        other => panic!("type {other}"),
    }
}

fn rule_action(name: &str) -> model::RuleAction {
    match name {
        "AwaitApproval" => model::RuleAction::AwaitApproval,
        "Approve" => model::RuleAction::Approve,
        "Ignore" => model::RuleAction::Ignore,
        other => panic!("action {other}"),
    }
}

fn weekday(name: &str) -> Weekday {
    match name {
        "Monday" => Weekday::Monday,
        "Tuesday" => Weekday::Tuesday,
        "Wednesday" => Weekday::Wednesday,
        "Thursday" => Weekday::Thursday,
        "Friday" => Weekday::Friday,
        "Saturday" => Weekday::Saturday,
        "Sunday" => Weekday::Sunday,
        other => panic!("weekday {other}"),
    }
}
