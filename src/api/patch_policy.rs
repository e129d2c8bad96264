//! `PatchPolicy`: what happens to approved updates on which devices.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use patchwarden_protocol::order::{Dependencies, RestartWhen};
use patchwarden_protocol::report::Classification;
use patchwarden_protocol::settings::OsUpdater;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::applications::Application;
use super::approval_group::AgeClock;
use super::device_inventory::DeviceType;
use super::safeguards::{Check, Hooks, Rollback};
use super::selector::Selector;
use super::site_cache::SiteCache;

/// How devices are patched.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "patchwarden.io",
    version = "v1alpha1",
    kind = "PatchPolicy",
    plural = "patchpolicies",
    shortname = "pp",
    category = "patching",
    namespaced,
    status = "PatchPolicyStatus",
    derive = "PartialEq",
    doc = "When and how many at a time approved updates are installed on the devices that it selects. Where several policies select a device, the highest priority wins, then the name that sorts first.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Compliant", type_ = "string", json_path = ".status.compliant"),
    printcolumn(name = "Overdue", type_ = "integer", json_path = ".status.overdue"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.installing"),
    printcolumn(name = "Next window", type_ = "string", json_path = ".status.nextWindow"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.mode) || !(self.mode in ['Install', 'InstallImmediately']) || (has(self.windows) && size(self.windows) > 0)")
    .message("modes Install and InstallImmediately need at least one window: without one not everything could ever be installed").field_path(".windows"))]
#[x_kube(validation = Rule::new("!has(self.rollback) || self.rollback.when != 'CheckFailed' || (has(self.checks) && size(self.checks) > 0)")
    .message("there is no check that could fail: give checks").field_path(".rollback"))]
#[x_kube(validation = Rule::new("!has(self.approvalGroups) || !has(self.excludeApprovalGroups) || !self.excludeApprovalGroups.exists(g, g in self.approvalGroups)")
    .message("a group cannot be in approvalGroups as well: its devices are governed or they are not").field_path(".excludeApprovalGroups"))]
pub struct PatchPolicySpec {
    /// Devices by their labels; an empty selector selects every device of the namespace.
    #[serde(default)]
    pub selector: Selector,
    /// Only devices of these types; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub types: Vec<DeviceType>,
    /// Only devices whose effective ApprovalGroup is one of these; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub approval_groups: Vec<String>,
    /// Never devices whose effective ApprovalGroup is one of these; nor one of which that cannot be told, if it may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude_approval_groups: Vec<String>,
    /// Never these devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
    /// Where several policies select a device, the highest wins.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// What is done.
    #[serde(default)]
    pub mode: Mode,
    /// Approved updates that are left out: they stay missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Filters>,
    /// MaintenanceWindows of this namespace: something is done while any of them is open. `DownloadOnly` without any
    /// downloads at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub windows: Vec<String>,
    /// Which devices come first, and how many at a time.
    #[serde(default)]
    pub rollout: Rollout,
    /// How many devices of one service may be unavailable at a time; absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<Disruption>,
    /// What the package manager may do beyond the approved updates.
    #[serde(default)]
    pub dependencies: Dependencies,
    /// The proxy of the devices' site that they download packages through; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_cache: Option<SiteCache>,
    /// What becomes of the operating systems' own updaters (unattended-upgrades, dnf-automatic) while the policy governs the devices:
    /// `Disable` switches them off, so that nothing is installed outside the windows; with a mode that installs nothing such devices get
    /// no updates at all. `Leave` leaves them as they are set up. Absent: nothing is said of it. Where no policy says anything any
    /// more, what was switched off is given back. A device's own `agent.toml` and `limits.toml` count more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_updater: Option<OsUpdater>,
    /// Third-party applications that are to be installed on its devices, or not to be there. A device is told by signed settings, which say
    /// `Leave` of its own updater where `osUpdater` is absent. What is not said here stays as it is: it is updated, and neither installed nor removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub applications: Vec<Application>,
    /// When and how devices are restarted; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Scripts that are run on the device around an install; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// What must be true of a device before an install, and after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub checks: Vec<Check>,
    /// Whether an update with which a check fails is taken back; absent: by a person only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// How long one install may take, hooks and checks included, in hours and minutes. It is started only where as much of the window is left as it is
    /// expected to take: all of this as long as nothing was measured, later what `status.durations` makes of it. One
    /// window of the policy at least must be longer than this.
    #[serde(default = "default_install_limit")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')")
        .message("must be from 1m to 24h"))]
    pub install_limit: String,
    /// What follows a failure.
    #[serde(default)]
    pub retries: Retries,
    /// Workstations catch up outside the windows with what they have lacked for so long that they must have missed them; absent for
    /// never. What a rule or decision gives a window of its own waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
    /// How long a device that had another policy or ApprovalGroup waits before this policy acts on it, in hours and minutes:
    /// what is deleted and applied again within this time was never gone. `0m` for not at all.
    #[serde(default = "default_settle")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub settle: String,
    /// A change of policies, groups or windows that makes more of the policy's devices newly eligible than this waits until
    /// `confirm` says that it is meant: a number, or a percentage of its devices (rounded down, at least 10). `100%` for no
    /// limit.
    #[serde(default = "default_blast_limit")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 && self <= 100000 : self.matches('^(100|[1-9][0-9]?)%$')")
        .message("must be a number from 0 to 100000, or a percentage from 1% to 100%"))]
    pub blast_limit: IntOrString,
    /// A person has looked at the change that waits: `status.pending.specs`. It says nothing of any other change, and may be
    /// taken out again once the change is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9a-f]{16}$"))]
    pub confirm: Option<String>,
    /// Until when approved updates must be installed, by severity. A device complies while it lacks only what has a deadline
    /// that is still to come; what has no deadline makes it incompliant as long as it is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["severity".into()]))]
    pub deadlines: Vec<Deadline>,
    /// While true nothing is started and no grant is given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

fn default_install_limit() -> String {
    "30m".to_owned()
}

fn default_blast_limit() -> IntOrString {
    IntOrString::String("10%".to_owned())
}

fn default_settle() -> String {
    "10m".to_owned()
}

/// How workstations catch up. Exclusions of the windows hold them all the same, and servers never do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatchUp {
    /// An update is installed outside the windows on a workstation that has lacked it for so long, in days, hours and minutes:
    /// since it was first seen there, and was old enough to be approved. Whether one was open meanwhile is not asked: give it longer
    /// than the windows are apart.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}d)?([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    pub after: String,
    /// Only while the device says that it is on mains power.
    #[serde(default = "yes")]
    pub require_mains: bool,
}

fn yes() -> bool {
    true
}

/// What is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Nothing is installed; compliance is reported.
    #[default]
    Audit,
    /// Approved updates are downloaded, in the windows or, without any, at any time; nothing is installed.
    DownloadOnly,
    /// Approved updates are installed in the windows.
    Install,
    /// Approved updates of which the device knows that they need no restart and interrupt no service are installed at
    /// once, but never during an exclusion of one of the windows; all others in the windows.
    InstallImmediately,
}

/// When and how devices, and their services, are restarted: only in the policy's windows, each time with the controller's word at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.warning) < duration(self.within)")
    .message("warning must be shorter than within: the restart begins after it").field_path(".warning"))]
pub struct Restart {
    /// Whether.
    #[serde(default)]
    pub when: RestartWhen,
    /// Only so long after the start of an install, the warning included, in hours and minutes. Later the restart is left to the next window.
    #[serde(default = "default_restart_within")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')")
        .message("must be from 1m to 24h"))]
    pub within: String,
    /// How long before it users who are logged in are warned, in hours and minutes.
    #[serde(default = "default_restart_warning")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('4h')").message("must be at most 4h"))]
    pub warning: String,
    /// What they are told, in one line; words of the agent's own where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub message: Option<String>,
    /// At most so many restarts in a row.
    #[serde(default = "default_restart_limit")]
    #[schemars(range(min = 1, max = 10))]
    pub limit: u32,
    /// After an install in the policy's windows that is not followed by a restart, services that still run what was replaced are restarted, also
    /// where `when` is `Never`: within `within`, and before the checks. Of a service whose restart would take away what others need (dbus, systemd's own,
    /// logins, the network) it is only told, and of those that the device's own `limits.toml` excludes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub services: bool,
}

fn default_restart_within() -> String {
    "2h".to_owned()
}

fn default_restart_warning() -> String {
    "5m".to_owned()
}

fn default_restart_limit() -> u32 {
    3
}

/// Approved updates that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filters {
    /// Updates that are known to need a restart. One of which the device cannot tell is not left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_restart: bool,
    /// Only updates of these kinds; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub classifications: Vec<Classification>,
    /// Updates with a package that matches one of these globs (`*` and `?`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub exclude_packages: Vec<String>,
}

/// Which devices come first, and how many at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.rings) || self.rings.map(r, has(r.percent) ? r.percent : 0).sum() <= 100")
    .message("the rings' percentages come to more than 100").field_path(".rings"))]
pub struct Rollout {
    /// Devices that may be installing at a time: a number, or a percentage of the policy's devices (rounded down, at
    /// least one).
    #[serde(default = "default_max_concurrent")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 && self <= 100000 : self.matches('^(100|[1-9][0-9]?)%$')")
        .message("must be a number from 1 to 100000, or a percentage from 1% to 100%"))]
    pub max_concurrent: IntOrString,
    /// Stages before the rest of the devices, in their order. Each update goes through them on its own record: the next
    /// ring gets it once the one before has proved it. A device is in the first ring that it fits in; one that fits in
    /// none is of the rest, which comes last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rings: Vec<Ring>,
    /// Once more than so many of the policy's devices have failed, a number or a percentage (rounded down), the rollout
    /// is paused until a person sets `resumed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 && self <= 100000 : self.matches('^(100|[1-9]?[0-9])%$')")
        .message("must be a number from 0 to 100000, or a percentage from 0% to 100%"))]
    pub failure_budget: Option<IntOrString>,
    /// A person has looked: a pause and failures before this do not count any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub resumed: Option<Timestamp>,
}

/// A stage of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.selector) != has(self.percent)").message("give either selector or percent"))]
#[x_kube(validation = Rule::new("self.name != 'rest'").message("rest is the name of the devices that are in no ring"))]
pub struct Ring {
    /// Name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The policy's devices with such labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// So many percent of the policy's devices, by a digest of the name: always the same ones, whatever other devices
    /// come and go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<u32>,
    /// How long after its minimum was reached an update waits before the next ring gets it, in days, hours and minutes.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}d)?([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    pub soak: String,
    /// The minimum: on at least so many of its devices the update was installed; 1 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_successes: Option<u32>,
    /// The minimum: of its devices that tried, so many percent have installed it; 100 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_success_percent: Option<u32>,
    /// What holds for an update that none of its devices needs; `Wait` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_empty: Option<WhenEmpty>,
}

/// What a ring does to an update that none of its devices needs; `Wait` where it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenEmpty {
    /// It waits until a device has proved it.
    Wait,
    /// The next ring gets it after the soak time.
    Promote,
}

/// How many devices of one service may be unavailable at a time. There is one ledger for all policies of a namespace: the
/// strictest policy that governs a device of a service counts for all its devices, whoever patches them. Servers that
/// hold an install or are offline are unavailable; workstations, retired devices and those that were not heard of for
/// days do not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disruption {
    /// Devices with the same value of this label are one service.
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub group_by: String,
    /// So many at a time: a number, or a percentage of the service's devices (rounded down, at least one).
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 && self <= 100000 : self.matches('^(100|[1-9][0-9]?)%$')")
        .message("must be a number from 1 to 100000, or a percentage from 1% to 100%"))]
    pub max_unavailable: IntOrString,
    /// Which of them come first: replicas before primaries. A device waits while one that comes before it is at work or
    /// could be; one that is stuck holds nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<TurnOrder>,
    /// Also unavailable is a device on which an update failed (one that is still offered, or that stays though a check failed) or that reports a problem; and, for those that are well, one that waits
    /// for a restart: it is restarted first, by its own policy or by a person, and waits for no other that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_peers: Option<bool>,
}

/// Which devices of a service come first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TurnOrder {
    /// The label that tells.
    #[schemars(length(min = 1, max = 317))]
    pub label: String,
    /// Its values, first come first; devices with another value come last.
    #[schemars(length(min = 1, max = 8), inner(length(max = 63)))]
    pub values: Vec<String>,
}

fn default_max_concurrent() -> IntOrString {
    IntOrString::Int(1)
}

impl Default for Rollout {
    fn default() -> Self {
        Self { max_concurrent: default_max_concurrent(), rings: vec![], failure_budget: None, resumed: None }
    }
}

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// How often an update is tried again on the same device.
    #[serde(default = "default_retry_limit")]
    #[schemars(range(min = 0, max = 10))]
    pub limit: u32,
    /// Time before the first retry; each later one waits twice as long.
    #[serde(default = "default_retry_backoff")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')").message("must be at least 1m"))]
    pub backoff: String,
}

fn default_retry_limit() -> u32 {
    2
}

fn default_retry_backoff() -> String {
    "15m".to_owned()
}

impl Default for Retries {
    fn default() -> Self {
        Self { limit: default_retry_limit(), backoff: default_retry_backoff() }
    }
}

/// Until when updates must be installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deadline {
    /// Updates of this severity; `Any` for those of which no other deadline says anything. Where the source of the packages tells no
    /// severity (apt never does) it is `Unknown`.
    pub severity: DeadlineSeverity,
    /// So long after `clock`, in days and hours.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}d)?([0-9]{1,3}h)?$"))]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("must be at least 1h"))]
    pub within: String,
    /// From when on it runs; `FirstSeen` where it is absent: since the namespace knows a version of it that the device lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<AgeClock>,
}

/// Severities that a deadline can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeadlineSeverity {
    /// Every one that no other deadline is about.
    Any,
    /// Critical.
    Critical,
    /// High, or important.
    High,
    /// Medium, or moderate.
    Medium,
    /// Low.
    Low,
    /// The source of the packages does not say.
    Unknown,
}

/// What is true of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchPolicyStatus {
    /// Devices that it governs.
    #[serde(default)]
    pub devices: u32,
    /// `compliant/governed`: `9812/10000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub compliant: Option<String>,
    /// The same by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<DeviceStates>,
    /// Devices with a deadline that is over; those of unknown compliance among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue: Option<u32>,
    /// Who will miss a deadline if things go on as they do; absent where no device has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Devices with an install that is claimed or running.
    #[serde(default)]
    pub installing: u32,
    /// Devices with an update that failed.
    #[serde(default)]
    pub failed: u32,
    /// When the next window opens; absent while one is open or none will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_window: Option<Timestamp>,
    /// The rings in their order, then the rest; empty without rings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    pub rings: Vec<RingStatus>,
    /// Since when the rollout is paused, because more devices failed than its budget allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Timestamp>,
    /// How far each update has come. A ring that has an update keeps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub updates: Vec<UpdateProgress>,
    /// The specs that are in force for its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<SpecsInForce>,
    /// Specs that make more devices eligible than `blastLimit` allows: they wait until `spec.confirm` is their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingSpecs>,
    /// How long updates took, where anything was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durations: Option<Durations>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `Compliant`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// Specs that are in force: what of the policy, and of all policies, groups and windows of the namespace, decides on which
/// devices updates are installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpecsInForce {
    /// Their digest.
    #[schemars(length(max = 16))]
    pub specs: String,
    /// Since when.
    pub since: Timestamp,
    /// How many devices they made eligible, together with those within ten minutes before them, without a confirmation.
    pub devices: u32,
}

/// Specs that wait for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingSpecs {
    /// Their digest: what `spec.confirm` has to be.
    #[schemars(length(max = 16))]
    pub specs: String,
    /// Since when specs wait: the first of several that came one after another.
    pub since: Timestamp,
    /// How many devices they make newly eligible.
    pub devices: u32,
}

/// Devices by how far they comply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStates {
    /// Compliant: nothing approved is missing.
    pub up_to_date: u32,
    /// Compliant: what is missing has a deadline that is to come.
    pub within_deadline: u32,
    /// Something is missing that has no deadline.
    pub updates_missing: u32,
    /// Something is missing, and its deadline is over.
    pub deadline_missed: u32,
    /// Something is installed that is to be taken back.
    #[serde(default)]
    pub removal_due: u32,
    /// They wait for a restart.
    pub restart_required: u32,
    /// They offer more updates than a report carries.
    pub truncated: u32,
    /// Not heard of for too long, not believed, or governed by no policy or group.
    pub unknown: u32,
}

/// Who will miss a deadline: as many devices as there are places install in each coming window, the earliest deadline first,
/// each for as long as it is expected to take. Devices that are offline, stale or blocked until a person does something are
/// never done. Failures and updates that are yet to come are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// Devices that will miss a deadline, or have already.
    pub missing: u32,
    /// Devices with a deadline.
    pub of: u32,
    /// The full hour by which all are done that can be; absent where none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Timestamp>,
}

/// What is true of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RingStatus {
    /// Name; `rest` for the devices that are in no ring.
    #[schemars(length(max = 63))]
    pub name: String,
    /// `compliant/devices`: `48/50`.
    #[schemars(length(max = 32))]
    pub compliant: String,
}

/// How far an update has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateProgress {
    /// The update.
    #[schemars(length(max = 253))]
    pub id: String,
    /// The last ring that has it; `rest` once all have; empty where the policy had no rings when it was stopped.
    #[schemars(length(max = 63))]
    pub ring: String,
    /// Since when.
    pub opened: Timestamp,
    /// When that ring reached its minimum, or no device in it needed the update any more; the soak time runs from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Timestamp>,
    /// When it was stopped in the whole namespace, because it failed on several devices. A decision `Reprocess` with a
    /// later `failedBefore` tries it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
    /// Devices of that ring that are known to have installed it, the most there were at a time.
    #[serde(default, skip_serializing_if = "is_none")]
    pub installed: u32,
    /// Devices of the namespace that are known to have, from 58 on, once it has failed on some.
    #[serde(default, skip_serializing_if = "is_none")]
    pub installed_anywhere: u32,
    /// Devices of the policy on which it failed by its own fault: those that still count as failed, and those that were deleted, retired or
    /// set up anew since, which count until a decision `Reprocess` with a later `failedBefore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failed: Vec<FailedOn>,
}

/// A device on which an update failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedOn {
    /// Its name.
    #[schemars(length(max = 253))]
    pub device: String,
    /// When it failed last.
    pub last: Timestamp,
    /// The ring that it was in; absent in the rest, or without rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub ring: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// The longest that updates took in the policy: the seconds of an install that succeeded, divided by the number of its
/// updates. What is written here only grows. An install is expected to take 1 minute and 1.5 times the sum over its
/// updates, each with its own seconds or those of its kind, in whole minutes and never more than `installLimit`; all of
/// `installLimit` where neither is known of one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Durations {
    /// By kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub kinds: Vec<KindDuration>,
    /// By update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub updates: Vec<UpdateDuration>,
}

/// The longest that an update of a kind took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KindDuration {
    /// The kind.
    pub classification: Classification,
    /// Seconds.
    pub seconds: u32,
}

/// The longest that an update took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateDuration {
    /// The update.
    #[schemars(length(max = 253))]
    pub id: String,
    /// Seconds.
    pub seconds: u32,
}

/// The name, in status, of the devices that are in no ring.
pub const REST: &str = "rest";
