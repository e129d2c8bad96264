//! Scenarios: YAML that reads like the resources, into a [`Snapshot`].
//!
//! ```yaml
//! about: One sentence.
//! start: 2026-03-01T00:00:00Z
//! end: 2026-04-01T00:00:00Z
//! windows: {NAME: {timeZone, schedules, duration, cutoff, exclusions, invalid}}
//! groups: {NAME: {selector, names, priority, decisions, rules, default}}
//! policies: {NAME: {selector, types, approvalGroups, exclude, priority, mode, windows, maxConcurrent, ..., invalid}}
//! devices: {NAME: {type, labels, timeZone, updates: {ID: {...}}, online, fails, takes, asksAfter, ...}}
//! events:
//!   - at: 2026-03-02T00:00:00Z
//!     note: What happens, for the reader.
//!     change: {policies: {NAME: {suspend: true}}}     # a JSON merge patch (RFC 7396) of the above
//! ```

use std::collections::BTreeMap;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden::plan::model;
use patchwarden_protocol::order::Dependencies;
use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate};
use serde::Deserialize;
use serde_json::Value;

/// A scenario as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub about: String,
    pub start: Timestamp,
    pub end: Timestamp,
    #[serde(default)]
    pub windows: Value,
    #[serde(default)]
    pub groups: Value,
    #[serde(default)]
    pub policies: Value,
    #[serde(default)]
    pub devices: Value,
    #[serde(default)]
    pub events: Vec<Event>,
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
}

#[derive(Deserialize)]
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

#[derive(Deserialize)]
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExclusionSpec {
    name: String,
    from: Timestamp,
    to: Timestamp,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorSpec {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RequirementSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementSpec {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    #[serde(default)]
    selector: Option<SelectorSpec>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    decisions: Vec<DecisionSpec>,
    #[serde(default)]
    rules: Vec<RuleSpec>,
    #[serde(default)]
    default: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionSpec {
    update: String,
    action: String,
    #[serde(default)]
    until: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    name: String,
    #[serde(default)]
    classifications: Vec<Classification>,
    #[serde(default)]
    severities: Vec<Severity>,
    #[serde(default)]
    packages: Vec<String>,
    action: String,
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
    exclude: Vec<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    windows: Vec<String>,
    #[serde(default)]
    max_concurrent: Option<Value>,
    #[serde(default)]
    dependencies: Dependencies,
    #[serde(default)]
    install_limit: Option<String>,
    #[serde(default)]
    retry_limit: Option<u32>,
    #[serde(default)]
    retry_backoff: Option<String>,
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
    updates: BTreeMap<String, UpdateSpec>,
    #[serde(default)]
    truncated: bool,
    #[serde(default)]
    restart: Tristate,
    #[serde(default)]
    problems: Vec<ProblemCode>,
    /// No report, for this reason.
    #[serde(default)]
    no_report: Option<String>,
    #[serde(default = "yes")]
    pub online: bool,
    /// Updates whose installation fails.
    #[serde(default)]
    pub fails: Vec<String>,
    /// How long an install takes.
    #[serde(default)]
    takes: Option<String>,
    /// How long after its claim the device asks for its grant.
    #[serde(default)]
    asks_after: Option<String>,
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
    held: bool,
}

/// What the world does not say of a device, because it comes from what happened.
#[derive(Clone, Default)]
pub struct History {
    pub online_since: Option<Timestamp>,
    pub current: Option<model::Claim>,
    pub failures: Vec<model::Failure>,
}

impl World {
    pub fn snapshot(&self, histories: &BTreeMap<String, History>) -> model::Snapshot {
        let history = |name: &String| histories.get(name).cloned().unwrap_or_default();
        model::Snapshot {
            policies: self.policies.iter().map(|(name, spec)| spec.policy(name)).collect(),
            groups: self.groups.iter().map(|(name, spec)| spec.group(name)).collect(),
            windows: self.windows.iter().map(|(name, spec)| spec.window(name)).collect(),
            devices: self.devices.iter().map(|(name, spec)| spec.device(name, history(name))).collect(),
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
        model::Window { name: name.to_owned(), calendar }
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
        }
    }
}

impl ExclusionSpec {
    fn exclusion(&self) -> model::Exclusion {
        model::Exclusion { name: self.name.clone(), from: self.from, to: self.to }
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
    fn group(&self, name: &str) -> model::Group {
        let decision = |spec: &DecisionSpec| model::UpdateDecision {
            update: model::Glob(spec.update.clone()),
            action: match spec.action.as_str() {
                "Approve" => model::DecisionAction::Approve,
                "Ignore" => model::DecisionAction::Ignore,
                other => panic!("action {other}"),
            },
            until: spec.until,
        };
        let rule = |spec: &RuleSpec| model::Rule {
            name: spec.name.clone(),
            classifications: spec.classifications.clone(),
            severities: spec.severities.clone(),
            packages: spec.packages.iter().cloned().map(model::Glob).collect(),
            action: rule_action(&spec.action),
        };
        model::Group {
            name: name.to_owned(),
            selector: self.selector.as_ref().map(SelectorSpec::selector),
            names: self.names.clone(),
            priority: self.priority,
            decisions: self.decisions.iter().map(decision).collect(),
            rules: self.rules.iter().map(rule).collect(),
            default: self.default.as_deref().map_or(model::RuleAction::AwaitApproval, rule_action),
        }
    }
}

impl PolicySpec {
    fn policy(&self, name: &str) -> model::Policy {
        let settings = model::Settings {
            mode: match self.mode.as_deref() {
                None | Some("Audit") => model::Mode::Audit,
                Some("Install") => model::Mode::Install,
                Some(other) => panic!("mode {other}"),
            },
            suspended: self.suspend,
            windows: self.windows.clone(),
            max_concurrent: match &self.max_concurrent {
                None => model::Concurrency::Count(1),
                Some(Value::String(percent)) => {
                    model::Concurrency::Percent(percent.trim_end_matches('%').parse().expect("a percentage"))
                }
                Some(count) => model::Concurrency::Count(serde_json::from_value(count.clone()).expect("a number")),
            },
            dependencies: self.dependencies,
            install_limit: duration(self.install_limit.as_deref().unwrap_or("30m")),
            retry_limit: self.retry_limit.unwrap_or(2),
            retry_backoff: duration(self.retry_backoff.as_deref().unwrap_or("15m")),
        };
        model::Policy {
            name: name.to_owned(),
            selector: self.selector.selector(),
            types: self.types.iter().map(|one| device_type(one)).collect(),
            groups: self.approval_groups.clone(),
            exclude: self.exclude.clone(),
            priority: self.priority,
            settings: self.invalid.clone().map_or(Ok(settings), |invalid| Err(model::Invalid(invalid))),
        }
    }
}

impl DeviceSpec {
    pub fn takes(&self) -> SignedDuration {
        duration(self.takes.as_deref().unwrap_or("10m"))
    }

    pub fn asks_after(&self) -> SignedDuration {
        self.asks_after.as_deref().map(duration).unwrap_or_default()
    }

    fn device(&self, name: &str, history: History) -> model::Device {
        let update = |(id, spec): (&String, &UpdateSpec)| model::Update {
            id: id.clone(),
            classification: spec.classification,
            severity: spec.severity,
            packages: spec.packages.clone(),
            held: spec.held,
        };
        let report = match self.no_report.as_deref() {
            None => Ok(model::DeviceReport {
                updates: self.updates.iter().map(update).collect(),
                truncated: self.truncated,
                restart_required: self.restart,
                problems: self.problems.clone(),
            }),
            Some("None") => Err(model::NoReport::None),
            Some("KeyNotAccepted") => Err(model::NoReport::KeyNotAccepted),
            Some(reason) => Err(model::NoReport::Refused(reason.to_owned())),
        };
        let zone = |name: &String| TimeZone::get(name).map_err(|error| model::Invalid(error.to_string()));
        let History { online_since, current, failures } = history;
        model::Device {
            name: name.to_owned(),
            labels: self.labels.clone(),
            device_type: self.device_type.as_deref().map_or(model::DeviceType::Server, device_type),
            zone: self.time_zone.as_ref().map(zone),
            suspended: self.suspend,
            retired: self.retired,
            report,
            online: self.online,
            online_since,
            on_hold: false,
            current,
            failures,
        }
    }
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
