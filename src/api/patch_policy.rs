//! `PatchPolicy`: what happens to approved updates on which devices.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use patchwarden_protocol::order::Dependencies;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::device_inventory::DeviceType;
use super::selector::Selector;

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
#[x_kube(validation = Rule::new("!has(self.mode) || self.mode != 'Install' || (has(self.windows) && size(self.windows) > 0)")
    .message("mode Install needs at least one window: without one nothing could ever be installed").field_path(".windows"))]
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
    /// MaintenanceWindows of this namespace: something is done while any of them is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub windows: Vec<String>,
    /// How many at a time.
    #[serde(default)]
    pub rollout: Rollout,
    /// What the package manager may do beyond the approved updates.
    #[serde(default)]
    pub dependencies: Dependencies,
    /// How long one install may take, in hours and minutes. It is started only where this much of the window is left.
    #[serde(default = "default_install_limit")]
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^([0-9]{1,3}h)?([0-9]{1,4}m)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')")
        .message("must be from 1m to 24h"))]
    pub install_limit: String,
    /// What follows a failure.
    #[serde(default)]
    pub retries: Retries,
    /// While true nothing is started and no grant is given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

fn default_install_limit() -> String {
    "30m".to_owned()
}

/// What is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Nothing is installed; compliance is reported.
    #[default]
    Audit,
    /// Approved updates are installed in the windows.
    Install,
}

/// How many at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Devices that may be installing at a time: a number, or a percentage of the policy's devices (rounded down, at
    /// least one).
    #[serde(default = "default_max_concurrent")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 && self <= 100000 : self.matches('^(100|[1-9][0-9]?)%$')")
        .message("must be a number from 1 to 100000, or a percentage from 1% to 100%"))]
    pub max_concurrent: IntOrString,
}

fn default_max_concurrent() -> IntOrString {
    IntOrString::Int(1)
}

impl Default for Rollout {
    fn default() -> Self {
        Self { max_concurrent: default_max_concurrent() }
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
    /// Devices with an install that is claimed or running.
    #[serde(default)]
    pub installing: u32,
    /// Devices with an update that failed.
    #[serde(default)]
    pub failed: u32,
    /// When the next window opens; absent while one is open or none will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_window: Option<Timestamp>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Stalled`, `Compliant`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}
