//! The planner's input: validated, so that nothing in here can be wrong, and nothing is checked twice.
//!
//! An object that passed the schema and cannot be understood all the same (a time zone that this program's database does
//! not know) is not left out: it stays with [`Invalid`] in place of what could not be read, so that it still claims its
//! devices and blocks them, instead of leaving them to the next policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Dependencies, RESTART, RestartWhen, Sequence, Verb};
use patchwarden_protocol::report::{Classification, Power, ProblemCode, Severity, Tristate};

pub use super::catalogue::{Catalogue, IdNumber, UpdateId};
pub use super::cron::Cron;
pub use super::deadlines::{Deadline, Deadlines};
pub use super::durations::{Durations, Measured};
pub use super::expression::Expression;
pub use super::labels::Labels;
pub use super::package::PackageVersion;

/// A name that many hold: cloning it copies nothing.
pub type Name = Arc<str>;

/// One client's namespace at one instant. The order of the lists does not matter.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Policies.
    pub policies: Vec<Policy>,
    /// Approval groups: the client's, and those of the organisation, which are parents only and whose names are
    /// `namespace/name`.
    pub groups: Vec<Group>,
    /// Maintenance windows.
    pub windows: Vec<Window>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Every update that any of the devices offers, once.
    pub updates: Catalogue,
    /// What is known of vulnerabilities, by CVE.
    pub vulnerabilities: BTreeMap<Name, Vulnerability>,
}

/// What is known of a vulnerability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vulnerability {
    /// In a catalogue of vulnerabilities that are known to be exploited (KEV).
    pub known_exploited: bool,
    /// Likelihood of exploitation in the next 30 days (EPSS).
    pub epss: Option<Probability>,
}

/// A probability in units of 10^-5, which is what EPSS publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(pub u32);

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
    pub name: Name,
    /// Devices by labels.
    pub selector: Selector,
    /// Devices by type; empty for all.
    pub types: Vec<DeviceType>,
    /// Devices by effective group; empty for all.
    pub groups: Vec<Name>,
    /// Never these devices.
    pub exclude: Vec<Name>,
    /// The highest wins.
    pub priority: i32,
    /// The rest, if it could be read.
    pub settings: Result<Settings, Invalid>,
    /// How far its updates have come.
    pub progress: Progress,
    /// Digests of its spec.
    pub specs: Specs,
}

/// Digests of a policy's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specs {
    /// Of what says which devices it governs: another policy's devices depend on that, too.
    pub selection: Name,
    /// Of what else decides whether updates are installed on them.
    pub rest: Name,
}

/// What a policy says of the devices that it governs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done.
    pub mode: Mode,
    /// Approved updates that it leaves out.
    pub filters: Filters,
    /// Suspended by its spec.
    pub suspended: bool,
    /// Names of windows.
    pub windows: Vec<Name>,
    /// Which devices come first, and how many at a time.
    pub rollout: Rollout,
    /// How many devices of one service may be unavailable at a time.
    pub disruption: Option<Disruption>,
    /// What the package manager may do beyond the updates.
    pub dependencies: Dependencies,
    /// When and how devices are restarted.
    pub restart: Restart,
    /// How long one install may take.
    pub install_limit: SignedDuration,
    /// How often a failed update is tried again.
    pub retry_limit: u32,
    /// Until when updates must be installed.
    pub deadlines: Deadlines,
    /// Time before the first retry, doubled for each later one.
    pub retry_backoff: SignedDuration,
    /// Whether workstations catch up outside the windows.
    pub catch_up: Option<CatchUp>,
    /// How long a device that had another policy or group waits before this one acts on it.
    pub settle: SignedDuration,
    /// A change of the specs that makes more devices newly eligible than this waits for a person; of a percentage at least
    /// ten.
    pub blast_limit: Amount,
    /// Digest of specs that a person has confirmed.
    pub confirm: Option<Name>,
}

/// How workstations catch up outside the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Once they have lacked an update for so long.
    pub after: SignedDuration,
    /// Only on mains power.
    pub require_mains: bool,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only reports.
    Audit,
    /// Downloads: in the windows if there are any, else at any time.
    DownloadOnly,
    /// Installs in the windows.
    Install,
    /// Installs at any time what needs no restart and interrupts no service, freezes aside; the rest in the windows.
    InstallImmediately,
}

/// When and how devices are restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// Whether.
    pub when: RestartWhen,
    /// Only so long after the start of the install; later it is left to the next window.
    pub within: SignedDuration,
    /// How long before it users are warned.
    pub warning: SignedDuration,
    /// What they are told.
    pub message: String,
    /// At most so many in a row.
    pub limit: u32,
}

/// Approved updates that a policy leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Those that are known to need a restart.
    pub skip_restart: bool,
    /// Those of other kinds; empty for none.
    pub classifications: Vec<Classification>,
    /// Those with a package that matches one of these.
    pub exclude_packages: Vec<Glob>,
}

/// Some of a number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// Percent of them.
    Percent(u32),
}

impl Amount {
    /// Of `devices`: a percentage is rounded down.
    pub fn of(self, devices: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => u32::try_from(u64::from(devices) * u64::from(percent) / 100).unwrap_or(u32::MAX),
        }
    }
}

/// Which devices come first, and how many at a time.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Devices that may be installing at a time; of a percentage at least one.
    pub max_concurrent: Amount,
    /// The stages before the rest of the devices. Each update goes through them on its own record.
    pub rings: Vec<Ring>,
    /// The rollout pauses once more than so many of the policy's devices have failed.
    pub failure_budget: Option<Amount>,
    /// Failures and a pause before this do not count any more: somebody has looked.
    pub resumed: Option<Timestamp>,
}

/// A stage of a rollout.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Name.
    pub name: Name,
    /// Which devices; of several rings that a device fits in the first has it.
    pub members: RingMembers,
    /// How long after its minimum was reached an update waits before the next ring gets it.
    pub soak: SignedDuration,
    /// On at least so many of its devices the update must have been installed.
    pub min_successes: u32,
    /// Of its devices that tried, at least so many percent must have installed it.
    pub min_success_percent: u32,
    /// What holds for an update that none of its devices needs.
    pub when_empty: WhenEmpty,
}

/// Which devices are in a ring.
#[derive(Clone, Debug)]
pub enum RingMembers {
    /// Those with such labels.
    Selector(Selector),
    /// So many percent of the policy's devices, always the same ones.
    Percent(u32),
}

/// What a ring without a device that needs an update does to that update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    /// It waits until a device has proved it.
    Wait,
    /// The next ring gets it after the soak time.
    Promote,
}

/// How many devices of one service may be unavailable at a time. One ledger for all policies of a client: the strictest
/// that governs a device of the service counts, whoever patches the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disruption {
    /// Devices with the same value of this label are one service.
    pub label: String,
    /// So many at a time; of a percentage at least one.
    pub max_unavailable: Amount,
    /// Which of them come first.
    pub order: Option<TurnOrder>,
    /// A device that waits for a restart, has failed or has a problem counts as unavailable.
    pub healthy_peers: bool,
}

/// Which devices of a service come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnOrder {
    /// The label that tells.
    pub label: String,
    /// Its values, first come first; devices with another value come last.
    pub values: Vec<String>,
}

/// How far a policy's updates have come: what was written down, so that nothing is forgotten and nothing goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By the updates' ids.
    pub updates: BTreeMap<Name, UpdateProgress>,
    /// Since when the rollout is paused.
    pub paused: Option<Timestamp>,
    /// Which specs are in force for its devices.
    pub blast: Blast,
    /// How long its updates took.
    pub durations: Durations,
}

/// Which specs are in force for a policy's devices: its own and those of all groups and windows of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blast {
    /// In force; none for a policy that is new.
    pub accepted: Option<Accepted>,
    /// They make too many devices eligible: a person must confirm them.
    pub pending: Option<Pending>,
}

/// Specs that are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Their digest.
    pub specs: Name,
    /// Since when.
    pub since: Timestamp,
    /// How many devices they, and others not long before them, made eligible without anybody's confirmation.
    pub devices: u32,
}

/// Specs that wait for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Their digest.
    pub specs: Name,
    /// Since when specs wait: the first of several that came one after another.
    pub since: Timestamp,
    /// How many devices they make eligible, the most that there were.
    pub devices: u32,
}

/// How far an update has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateProgress {
    /// The last ring that has it; none: the rest of the devices have it, too.
    pub ring: Option<Name>,
    /// Since when.
    pub opened: Timestamp,
    /// When that ring reached its minimum, or had no device that needs the update, if that still holds.
    pub reached: Option<Timestamp>,
    /// When it was stopped, everywhere, because it failed on several devices.
    pub stopped: Option<Timestamp>,
}

/// An approval group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name.
    pub name: Name,
    /// The group that is asked where this one says nothing.
    pub parent: Option<Name>,
    /// How near to the single device it is: of groups that claim a device in the same way the nearest wins.
    pub level: Level,
    /// Who belongs to it.
    pub members: Members,
    /// Among groups of one level the highest wins.
    pub priority: i32,
    /// What it says of updates, if that could be read.
    pub approvals: Result<Approvals, Invalid>,
    /// Since when the client's devices know updates: what was written down, so that it outlasts the devices that saw them.
    pub seen: Vec<Seen>,
    /// Digest of its spec.
    pub spec: Name,
}

/// Since when an update is known in the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The update.
    pub id: Name,
    /// The first sighting.
    pub first: Timestamp,
    /// Whose that was. What one device tells does not count for the others.
    pub by: Name,
    /// The first by another device, from which on it counts for all.
    pub shared: Option<Timestamp>,
}

/// How near to the single device a group is, farthest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All devices of a type.
    DeviceType,
    /// All devices of the client.
    Client,
    /// All devices of a site.
    Site,
    /// Some devices.
    #[default]
    Group,
    /// One device.
    Device,
}

/// Who belongs to a group: whoever is named, selected, or meets the rule.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Devices by labels; absent selects none.
    pub selector: Option<Selector>,
    /// Devices by name.
    pub names: Vec<Name>,
    /// Devices by an expression, if it could be read.
    pub rule: Option<Result<Expression, Invalid>>,
}

/// What a group says of updates.
#[derive(Clone, Debug, Default)]
pub struct Approvals {
    /// Decisions on single updates, in order.
    pub decisions: Vec<UpdateDecision>,
    /// Rules, in order.
    pub rules: Vec<Rule>,
    /// What holds when nothing matches, here and in the parents; absent leaves it to the parent.
    pub default: Option<RuleAction>,
    /// How long an exact version must be known in the client before a rule approves it; absent leaves it to the parent.
    pub min_artifact_age: Option<SignedDuration>,
}

/// A decision on single updates.
#[derive(Clone, Debug)]
pub struct UpdateDecision {
    /// As it is written: it is shown where the decision counts.
    pub name: Name,
    /// Which updates.
    pub target: Target,
    /// What it says.
    pub action: DecisionAction,
    /// It counts until then.
    pub until: Option<Timestamp>,
    /// No group beneath can say otherwise.
    pub locked: bool,
    /// Updates that it approves follow this window instead of the policy's.
    pub window: Option<Name>,
}

/// Which updates a decision is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one with this very id.
    Id(Name),
    /// Those whose ids match.
    Ids(Glob),
    /// Those that fix a vulnerability whose CVE matches.
    Cves(Glob),
    /// Those of a package in this version or a later one.
    From(PackageVersion),
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionAction {
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
    /// Leave it as it is: rules are not asked.
    DoNothing,
    /// Take it back where it is installed, and do not install it.
    Uninstall,
    /// Decides nothing: where it failed before then, it is tried once more.
    Reprocess {
        /// Failures since then count again.
        failed_before: Timestamp,
    },
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name.
    pub name: Name,
    /// Which updates.
    pub matches: UpdateMatch,
    /// What it says.
    pub action: RuleAction,
    /// An approval counts only so long after `clock`.
    pub after: SignedDuration,
    /// From when on `after` runs.
    pub clock: AgeClock,
    /// Updates that it approves follow this window instead of the policy's.
    pub window: Option<Name>,
}

/// Which updates a rule is about: every part must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateMatch {
    /// One of these kinds; empty for all.
    pub classifications: Vec<Classification>,
    /// One of these severities; empty for all.
    pub severities: Vec<Severity>,
    /// A package matches one of these; empty for all.
    pub packages: Vec<Glob>,
    /// A CVE that it fixes matches one of these; empty for all.
    pub cves: Vec<Glob>,
    /// Whether a vulnerability that it fixes is known to be exploited.
    pub known_exploited: Option<bool>,
    /// A vulnerability that it fixes is exploited with at least this likelihood.
    pub epss_at_least: Option<Probability>,
    /// It meets this.
    pub expression: Option<Expression>,
}

/// From when on an update ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgeClock {
    /// Its first sighting.
    #[default]
    FirstSeen,
    /// The vendor's date, where the device tells one; else the first sighting.
    Published,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob(pub String);

/// A maintenance window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Name.
    pub name: Name,
    /// When it is open, if that could be read.
    pub calendar: Result<Calendar, Invalid>,
    /// Digest of its spec.
    pub spec: Name,
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
    /// At the local dates and times that an expression names.
    Cron(Cron),
}

/// A freeze: closed from `from` until before `to`.
#[derive(Clone, Debug)]
pub struct Exclusion {
    /// Name.
    pub name: Name,
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
    pub name: Name,
    /// Labels.
    pub labels: Labels,
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
    /// The group that it was in when it was last planned.
    pub last_group: Option<Name>,
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
    /// Updates that its last installs installed, by the numbers of their ids.
    pub installed: Vec<IdNumber>,
    /// The policy that it had when it was last planned.
    pub last_policy: Option<Name>,
    /// Since when it has `last_policy` and `last_group`, if it had others before.
    pub moved: Option<Box<Moved>>,
    /// Whether the specs had updates installed on it when it was last planned.
    pub eligible: bool,
    /// How long those of its last installs took that succeeded.
    pub measured: Vec<Measured>,
}

/// A device's policy and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The policy that governs it.
    pub policy: Option<Name>,
    /// Its effective group.
    pub group: Option<Name>,
}

/// A device has lost its policy or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Since when it has the present ones.
    pub since: Timestamp,
    /// The ones that last acted on it, if that is known: with them again there is nothing to wait for.
    pub before: Option<Pair>,
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
    /// The operating system.
    pub os: Arc<Os>,
    /// Updates offered.
    pub offers: Vec<Offer>,
    /// Updates that are installed and can be taken back.
    pub removable: Vec<UpdateId>,
    /// Whether the list was cut.
    pub truncated: bool,
    /// Whether it waits for a restart.
    pub restart_required: Tristate,
    /// The place of [`Update::restart`] in the catalogue, if it waits for one.
    pub restart: Option<UpdateId>,
    /// What is wrong with it.
    pub problems: Vec<ProblemCode>,
    /// What it runs on.
    pub power: Power,
}

/// An operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Os {
    /// `linux`, `windows` or `macos`.
    pub family: Name,
    /// `debian`.
    pub name: Name,
    /// `12.11`.
    pub version: Name,
    /// `amd64`.
    pub arch: Name,
    /// Release of the running kernel.
    pub kernel: Name,
}

/// An update as one device offers it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which.
    pub update: UpdateId,
    /// Held back by the device itself.
    pub held: bool,
    /// All its files lie on the device.
    pub downloaded: bool,
    /// Whether installing it needs a restart.
    pub requires_restart: Tristate,
    /// Whether installing it interrupts a service.
    pub interrupts_service: Tristate,
    /// When this device first offered this very update.
    pub first_seen: Timestamp,
    /// When this device first lacked any version of the same package, without a time since in which it lacked none.
    pub missing_since: Timestamp,
    /// The version that is installed, as the package manager writes it.
    pub installed: Option<Name>,
}

/// An update: what is the same on every device that offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Update {
    /// Id.
    pub id: Name,
    /// Kind.
    pub classification: Classification,
    /// Severity.
    pub severity: Severity,
    /// Names of its binary packages.
    pub packages: Vec<Name>,
    /// Vulnerabilities that it fixes.
    pub cves: Vec<Name>,
    /// When the vendor published it.
    pub published: Option<Timestamp>,
}

impl Update {
    /// What stands in the place of an update where a device waits for a restart.
    pub fn restart() -> Self {
        Self {
            id: RESTART.into(),
            classification: Classification::Unclassified,
            severity: Severity::Unknown,
            packages: vec![],
            cves: vec![],
            published: None,
        }
    }
}

/// The install that holds a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its place in the device's life.
    pub sequence: Sequence,
    /// The policy whose place it takes.
    pub policy: Name,
    /// What it does.
    pub verb: Verb,
    /// Ids of what it does that to.
    pub updates: Vec<Name>,
    /// Whether the device has a grant.
    pub granted: bool,
    /// The order cannot be started after this.
    pub not_after: Timestamp,
    /// How long it may run once started.
    pub limit: SignedDuration,
    /// How much longer it holds the device, for restarts after it.
    pub restart: SignedDuration,
    /// How long it was expected to run: so much of its window must be left where it starts.
    pub expected: SignedDuration,
}

/// An update that failed on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Id.
    pub update: Name,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed last.
    pub last: Timestamp,
    /// Whether it was the update's own fault: not the network's, the disk's or the order's.
    pub attributable: bool,
}
