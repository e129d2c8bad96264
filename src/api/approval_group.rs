//! `ApprovalGroup`: which updates are approved for which devices.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use patchwarden_protocol::report::{Classification, Severity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    doc = "Devices and what is approved for them. A device has exactly one effective group: one that names it beats one that selects it, then the higher priority wins, then the name that sorts first.",
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices"),
    printcolumn(name = "Default", type_ = "string", json_path = ".spec.default"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalGroupSpec {
    /// Which devices belong to it.
    pub members: Members,
    /// Among groups that claim a device in the same way the highest wins.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Decisions on single updates. They come before the rules; the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["update".into()]))]
    pub decisions: Vec<UpdateDecision>,
    /// Rules in order: the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<ApprovalRule>,
    /// What holds when nothing matches.
    #[serde(default)]
    pub default: RuleAction,
}

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.selector) || (has(self.names) && size(self.names) > 0)")
    .message("give names, a selector, or both (an empty selector selects every device of the namespace)"))]
pub struct Members {
    /// By labels. An empty selector selects every device of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRule {
    /// Name, shown where the rule decided.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What it applies to; empty applies to every update.
    #[serde(rename = "match", default)]
    pub matches: UpdateMatch,
    /// What it says.
    pub action: RuleAction,
}

/// Which updates: every given part must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
}

/// What a rule says.
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
#[x_kube(validation = Rule::new("!has(self.until) || (self.action == 'Ignore' && has(self.reason))")
    .message("until is for Ignore only, and needs a reason: an exception that ends is a waiver"))]
pub struct UpdateDecision {
    /// The update's id, or a glob over ids (`*` and `?`): `pkg:deb/debian/openssl@3.0.17-1~deb12u3`,
    /// `pkg:deb/debian/openssl@*`.
    #[schemars(length(min = 1, max = 253))]
    pub update: String,
    /// What is decided.
    pub action: DecisionAction,
    /// The decision counts until then (`Ignore` only: the update is `Waived`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("timestamp(self) < timestamp('9999-01-01T00:00:00Z')").message("must be before the year 9999"))]
    pub until: Option<Timestamp>,
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
}

/// What is true of the group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGroupStatus {
    /// Devices whose effective group this is.
    #[serde(default)]
    pub devices: u32,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}
