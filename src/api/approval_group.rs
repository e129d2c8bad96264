//! `ApprovalGroup`: which updates are approved for which devices.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use patchwarden_protocol::report::{Classification, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::patch_policy::DeviceStates;
use super::selector::Selector;

/// A group of devices and what is approved for them.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "patchwarden.io",
    version = "v1alpha1",
    kind = "ApprovalGroup",
    plural = "approvalgroups",
    shortname = "agrp",
    category = "patching",
    namespaced,
    status = "ApprovalGroupStatus",
    derive = "PartialEq",
    doc = "Devices and what is approved for them. A device has exactly one effective group: one that names it beats one that selects it, then the nearest level wins, then the higher priority, then the name that sorts first. Where that group says nothing of an update its parents are asked.",
    printcolumn(name = "Level", type_ = "string", json_path = ".spec.level"),
    printcolumn(name = "Parent", type_ = "string", json_path = ".spec.parent.name"),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices"),
    printcolumn(name = "Default", type_ = "string", json_path = ".spec.default"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalGroupSpec {
    /// The group that is asked where this one says nothing of an update. A parent that does not exist, or a circle of
    /// parents, approves nothing beneath it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// How near to the single device it is: of groups that claim a device in the same way the nearest wins.
    #[serde(default)]
    pub level: Level,
    /// Which devices belong to it. Absent for a group that is only a parent of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Members>,
    /// Among groups of one level that claim a device in the same way the highest wins.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Decisions on single updates. They come before the rules; the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["update".into(), "action".into()]))]
    pub decisions: Vec<UpdateDecision>,
    /// Rules in order: the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<ApprovalRule>,
    /// What holds when nothing matches, here or in a parent: the nearest group that states one counts, and
    /// `AwaitApproval` where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<RuleAction>,
    /// How long an exact version must have been known to the client's devices before a rule, a default or a pattern
    /// approves it, in days, hours and minutes: a brand-new build is not installed at once because an old vulnerability
    /// is fixed in it, too. A decision on one id does not wait. The nearest group that states one counts, and 24 h
    /// where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}d)?([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    pub min_artifact_age: Option<String>,
}

/// The group above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parent {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whose it is.
    #[serde(default)]
    pub scope: Scope,
}

/// Whose a parent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// The client's: it is in the same namespace.
    #[default]
    Client,
    /// The organisation's: it is in Patchwarden's own namespace.
    Organisation,
}

/// How near to the single device a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Level {
    /// All devices of a type: the farthest.
    DeviceType,
    /// All devices of the client.
    Client,
    /// All devices of a site.
    Site,
    /// Some devices.
    #[default]
    Group,
    /// One device: the nearest.
    Device,
}

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.selector) || has(self.rule) || (has(self.names) && size(self.names) > 0)")
    .message("give names, a selector or a rule (an empty selector selects every device of the namespace)"))]
pub struct Members {
    /// By labels. An empty selector selects every device of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Vec<String>,
    /// By a CEL expression over `device`: `name`, `type`, `labels`, `os.family`, `os.name`, `os.version`, `os.arch` and
    /// `os.kernel` (empty before the first report). `device.os.name == "debian" && device.os.version.startsWith("12")`.
    /// A device of which it cannot be told whether it belongs to the group has nothing approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub rule: Option<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.action == 'Approve' || (!has(self.after) && !has(self.clock) && !has(self.window))")
    .message("after, clock and window are for action Approve only"))]
#[x_kube(validation = Rule::new("!has(self.clock) || has(self.after)").message("clock is for after only"))]
pub struct ApprovalRule {
    /// Name, shown where the rule decided.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What it applies to; absent applies to every update.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<UpdateMatch>,
    /// What it says.
    pub action: RuleAction,
    /// The approval counts only so long after `clock`, in days, hours and minutes: `7d`, `36h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}d)?([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    pub after: Option<String>,
    /// From when on `after` runs; `FirstSeen` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<AgeClock>,
    /// A MaintenanceWindow of the device's namespace: what the rule approves is installed in that one, not in those of
    /// the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub window: Option<String>,
}

/// From when on an update ages; `FirstSeen` where it is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgeClock {
    /// From its first sighting by two of the client's devices or by the device itself; for a package from the oldest
    /// version that the device lacks, so that a newer version does not start it again.
    #[default]
    FirstSeen,
    /// From the vendor's date, where one is known; else from its first sighting. The earliest date counts that two of the
    /// client's devices were told, or the device itself, for a package of any version that the device lacks, so that neither
    /// a newer version nor the same one published again starts it again.
    Published,
}

/// Which updates: every given part must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateMatch {
    /// One of these kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub classifications: Vec<Classification>,
    /// One of these severities. apt tells none: such updates are `Unknown`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub severities: Vec<Severity>,
    /// A package of the update matches one of these globs (`*` and `?`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub packages: Vec<String>,
    /// A CVE that it fixes, as far as the device or the controller's data tell them, matches one of these globs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 24)))]
    pub cves: Vec<String>,
    /// A vulnerability that it fixes, as far as the device or the controller's data tell them, is in a catalogue of those that
    /// are known to be exploited (CISA's KEV). While the controller was given no such catalogue (`--vulnerabilities`), updates
    /// that fix some wait at this rule, and the group is `Stalled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self").message("must be true: rules in order say what holds for the others"))]
    pub known_exploited: Option<bool>,
    /// A vulnerability that it fixes is exploited within 30 days with at least this likelihood (FIRST's EPSS), a text from
    /// `"0"` to `"1"` with at most five decimal places. As `knownExploited` while nobody has told of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 7), regex(pattern = r"^(0(\.[0-9]{1,5})?|1(\.0{1,5})?)$"))]
    pub epss_at_least: Option<String>,
    /// A CEL expression over `update`: `id`, `classification`, `severity`, `packages` and `cves`.
    /// `update.packages.exists(name, name.startsWith("linux-image"))`. Where it cannot be evaluated the update waits for
    /// approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub expression: Option<String>,
}

/// What a rule says. As a group's default: where it is absent the parent's counts, and `AwaitApproval` where no group of
/// the line states one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RuleAction {
    /// A person decides.
    #[default]
    AwaitApproval,
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
}

/// A decision on single updates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.until) || self.action != 'Reprocess'").message("until is not for Reprocess"))]
#[x_kube(validation = Rule::new("!has(self.until) || self.action != 'Ignore' || has(self.reason)")
    .message("Ignore with until needs a reason: an exception that ends is a waiver"))]
#[x_kube(validation = Rule::new("has(self.failedBefore) == (self.action == 'Reprocess')")
    .message("failedBefore must be given for Reprocess, and for nothing else"))]
#[x_kube(validation = Rule::new("!has(self.orLater) || !self.orLater || (self.action in ['Approve', 'Ignore'] && self.update.matches('^pkg:(deb/[^*?@]+@[^*?@]+|rpm/[^*?@]+@[^*?@]+([?]epoch=[0-9]+)?)$'))")
    .message("orLater is for Approve and Ignore of a Debian or rpm package in one version (pkg:deb/...@VERSION, pkg:rpm/...@VERSION-RELEASE): advisories and applications have no order"))]
#[x_kube(validation = Rule::new("!has(self.window) || self.action in ['Approve', 'Uninstall']").message("window is for Approve and Uninstall only"))]
#[x_kube(validation = Rule::new("!has(self.locked) || !self.locked || self.action != 'Reprocess'")
    .message("locked is not for Reprocess"))]
#[x_kube(validation = Rule::new("self.action != 'Uninstall' || !self.update.startsWith('CVE-')")
    .message("Uninstall is for updates and not for a CVE: what is installed does not tell which vulnerabilities it has fixed"))]
pub struct UpdateDecision {
    /// The update's id, or a glob over ids (`*` and `?`): `pkg:deb/debian/openssl@3.0.17-1~deb12u3`,
    /// `pkg:deb/debian/openssl@*`. What begins with `CVE-` is about every update that fixes such a vulnerability, as far
    /// as the device or the controller's data tell them; not for `Uninstall`.
    #[schemars(length(min = 1, max = 253))]
    pub update: String,
    /// What is decided.
    pub action: DecisionAction,
    /// It is also about every later version of the same package, by the order of dpkg or rpm. An advisory is no version: one that
    /// brings a later version of an rpm package is an update of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_later: Option<bool>,
    /// The decision counts until then. `Ignore` until a time is a waiver: the update is `Waived`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub until: Option<Timestamp>,
    /// `Reprocess`: where the update failed before then, it is tried once more, also if no retries are left; where it stays though a check
    /// failed after it, that was seen to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub failed_before: Option<Timestamp>,
    /// No group beneath can say otherwise; of several the farthest parent's counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
    /// `Approve` and `Uninstall`: a MaintenanceWindow of the device's namespace, in which that is done instead of in
    /// those of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub window: Option<String>,
    /// Why, for whoever reads it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300))]
    pub reason: Option<String>,
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DecisionAction {
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
    /// Leave it as it is: it waits for approval, whatever the rules say.
    DoNothing,
    /// Take it back where Patchwarden installed it and the earlier packages are still offered, and do not install it.
    Uninstall,
    /// Decides nothing: where it failed before `failedBefore`, it is tried once more; where it stays though a check failed, that was seen to.
    Reprocess,
}

/// What is true of the group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGroupStatus {
    /// Devices whose effective group this is.
    #[serde(default)]
    pub devices: u32,
    /// The same by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<DeviceStates>,
    /// Since when the updates that its devices offer are known in the namespace: what ages does so from then on, whatever
    /// becomes of the devices that saw them first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub seen: Vec<SeenUpdate>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// Since when an update is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeenUpdate {
    /// The update.
    #[schemars(length(max = 253))]
    pub id: String,
    /// The first sighting.
    pub first: Timestamp,
    /// The device whose that was. What one device tells does not count for the others.
    #[schemars(length(max = 253))]
    pub by: String,
    /// The first sighting by another device, from which on it counts for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The vendor's earliest date that several devices tell: it counts for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Timestamp>,
    /// An earlier one that a single device tells: it counts for that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_alone: Option<PublishedAlone>,
}

/// A date that a single device tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublishedAlone {
    /// The date.
    pub at: Timestamp,
    /// The device.
    #[schemars(length(max = 253))]
    pub by: String,
}
