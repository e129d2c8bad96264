//! The planner's input: validated, so that nothing in here can be wrong, and nothing is checked twice.
//!
//! An object that passed the schema and cannot be understood all the same (a time zone that this program's database does
//! not know) is not left out: it stays with [`Invalid`] in place of what could not be read, so that it still claims its
//! devices and blocks them, instead of leaving them to the next policy.

use std::collections::BTreeMap;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Dependencies, Sequence};
use patchwarden_protocol::report::{Classification, ProblemCode, Severity, Tristate};

/// One client's namespace at one instant. The order of the lists does not matter.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Policies.
    pub policies: Vec<Policy>,
    /// Approval groups.
    pub groups: Vec<Group>,
    /// Maintenance windows.
    pub windows: Vec<Window>,
    /// Devices.
    pub devices: Vec<Device>,
}

/// What could not be understood: a sentence that names the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

/// A label selector; all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<Requirement>);

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label has one of the values.
    In(String, Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

/// Server or workstation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceType {
    /// Serves others.
    Server,
    /// Somebody works on it.
    Workstation,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// Devices by labels.
    pub selector: Selector,
    /// Devices by type; empty for all.
    pub types: Vec<DeviceType>,
    /// Devices by effective group; empty for all.
    pub groups: Vec<String>,
    /// Never these devices.
    pub exclude: Vec<String>,
    /// The highest wins.
    pub priority: i32,
    /// The rest, if it could be read.
    pub settings: Result<Settings, Invalid>,
}

/// What a policy says of the devices that it governs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done.
    pub mode: Mode,
    /// Suspended by its spec.
    pub suspended: bool,
    /// Names of windows.
    pub windows: Vec<String>,
    /// How many devices at a time.
    pub max_concurrent: Concurrency,
    /// What the package manager may do beyond the updates.
    pub dependencies: Dependencies,
    /// How long one install may take.
    pub install_limit: SignedDuration,
    /// How often a failed update is tried again.
    pub retry_limit: u32,
    /// Time before the first retry, doubled for each later one.
    pub retry_backoff: SignedDuration,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only reports.
    Audit,
    /// Installs in the windows.
    Install,
}

/// How many devices at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// So many.
    Count(u32),
    /// Percent of the policy's devices, rounded down, at least one.
    Percent(u32),
}

/// An approval group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Devices by labels; absent selects none.
    pub selector: Option<Selector>,
    /// Devices by name.
    pub names: Vec<String>,
    /// The highest wins.
    pub priority: i32,
    /// Decisions on single updates, in order.
    pub decisions: Vec<UpdateDecision>,
    /// Rules, in order.
    pub rules: Vec<Rule>,
    /// What holds when nothing matches.
    pub default: RuleAction,
}

/// A decision on single updates.
#[derive(Clone, Debug)]
pub struct UpdateDecision {
    /// Glob over update ids.
    pub update: Glob,
    /// What it says.
    pub action: DecisionAction,
    /// It counts until then.
    pub until: Option<Timestamp>,
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionAction {
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name.
    pub name: String,
    /// One of these kinds; empty for all.
    pub classifications: Vec<Classification>,
    /// One of these severities; empty for all.
    pub severities: Vec<Severity>,
    /// A package matches one of these; empty for all.
    pub packages: Vec<Glob>,
    /// What it says.
    pub action: RuleAction,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// A person decides.
    AwaitApproval,
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
}

/// A pattern in which `*` stands for any text and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(pub String);

/// A maintenance window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Name.
    pub name: String,
    /// When it is open, if that could be read.
    pub calendar: Result<Calendar, Invalid>,
}

/// When a window is open.
#[derive(Clone, Debug)]
pub struct Calendar {
    /// Whose clock the schedules are on.
    pub zone: Zone,
    /// When it opens: any of these.
    pub schedules: Vec<Schedule>,
    /// How long it stays open (elapsed time).
    pub duration: SignedDuration,
    /// Nothing new starts in its last part, this long.
    pub cutoff: SignedDuration,
    /// Freezes.
    pub exclusions: Vec<Exclusion>,
}

/// Whose clock.
#[derive(Clone, Debug)]
pub enum Zone {
    /// A named one.
    Fixed(TimeZone),
    /// Each device's own.
    Device,
}

/// When a window opens, in local time.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// On the `week`th `weekday` of the month, `offset_days` later (negative: earlier).
    Monthly {
        /// 1 to 4, or -1 for the last.
        week: i8,
        /// The weekday.
        weekday: jiff::civil::Weekday,
        /// Days after it.
        offset_days: i32,
        /// Local time.
        at: Time,
    },
    /// On days of the week.
    Weekly {
        /// The days.
        weekdays: Vec<jiff::civil::Weekday>,
        /// Local time.
        at: Time,
    },
    /// Every day.
    Daily {
        /// Local time.
        at: Time,
    },
    /// Once.
    Once {
        /// Local date and time.
        at: DateTime,
    },
}

/// A freeze: closed from `from` until before `to`.
#[derive(Clone, Debug)]
pub struct Exclusion {
    /// Name.
    pub name: String,
    /// Start.
    pub from: Timestamp,
    /// End.
    pub to: Timestamp,
}

/// A device.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Type.
    pub device_type: DeviceType,
    /// Its own time zone: absent, or a name that could not be understood.
    pub zone: Option<Result<TimeZone, Invalid>>,
    /// Suspended by its spec.
    pub suspended: bool,
    /// Out of use.
    pub retired: bool,
    /// What it says, if it is believed.
    pub report: Result<DeviceReport, NoReport>,
    /// Whether it has a session.
    pub online: bool,
    /// When `online` last changed.
    pub online_since: Option<Timestamp>,
    /// Whether the controller could not write for it a moment ago: it gets no turn for a while.
    pub on_hold: bool,
    /// The install that holds it.
    pub current: Option<Claim>,
    /// Updates that failed.
    pub failures: Vec<Failure>,
}

/// Why there is nothing to plan from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoReport {
    /// Nothing came yet.
    None,
    /// Its key is not accepted.
    KeyNotAccepted,
    /// What came is not believed (a signature that does not verify, a counter that went back).
    Refused(String),
}

/// The part of a report that decisions use.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Updates offered.
    pub updates: Vec<Update>,
    /// Whether the list was cut.
    pub truncated: bool,
    /// Whether it waits for a restart.
    pub restart_required: Tristate,
    /// What is wrong with it.
    pub problems: Vec<ProblemCode>,
}

/// An update offered on a device.
#[derive(Clone, Debug)]
pub struct Update {
    /// Id.
    pub id: String,
    /// Kind.
    pub classification: Classification,
    /// Severity.
    pub severity: Severity,
    /// Names of its binary packages.
    pub packages: Vec<String>,
    /// Held back by the device itself.
    pub held: bool,
}

/// The install that holds a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its place in the device's life.
    pub sequence: Sequence,
    /// The policy whose place it takes.
    pub policy: String,
    /// Ids of what it is to install.
    pub updates: Vec<String>,
    /// Whether the device has a grant.
    pub granted: bool,
    /// The order cannot be started after this.
    pub not_after: Timestamp,
    /// How long it may run once started.
    pub limit: SignedDuration,
}

/// An update that failed on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Id.
    pub update: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed last.
    pub last: Timestamp,
}
