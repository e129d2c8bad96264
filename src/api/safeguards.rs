//! What a `PatchPolicy` says of hooks and checks.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use patchwarden_protocol::safeguards::OnFailure;

/// Scripts that are run on a device around an install, or around what takes updates back. They lie on the device itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hooks {
    /// After the controller has said "now" and before anything is changed, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub before: Vec<Hook>,
    /// Once the package manager has ended, also where it failed or a hook before it did; before a restart. A hook that ends
    /// with code 194 asks for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub after: Vec<Hook>,
}

/// A script on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// Its file name in `/etc/patchwarden/hooks.d` of the device, or that of a script of its publishers.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_.]*$"))]
    pub name: String,
    /// Seconds after which it is killed, with everything that it has started.
    #[serde(default = "default_hook_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u32,
    /// What follows when it fails; where it is absent `Abort` for a hook before the install, and `Continue` for one after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
}

fn default_hook_seconds() -> u32 {
    300
}

/// What must be true of a device that is healthy. Tried once before an install, which does not take place where it fails; and
/// after an install and its restarts, which has failed then. Everything but a script reaches the device itself and nothing
/// beyond it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.serviceActive), has(self.tcp), has(self.http), has(self.fileExists), has(self.command)].filter(it, it).size() == 1")
    .message("give exactly one of serviceActive, tcp, http, fileExists and command"))]
pub struct Check {
    /// Name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A unit of systemd is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_active: Option<ServiceActive>,
    /// A TCP port of the device's loopback address takes a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// A GET over HTTP of the device's loopback address is answered as expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// A file exists on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_exists: Option<FileExists>,
    /// A script on the device ends with code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Seconds after which one try has failed.
    #[serde(default = "default_check_seconds")]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u32,
    /// After the install it is tried until it succeeds, for so many seconds.
    #[serde(default = "default_settle_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub settle_seconds: u32,
}

fn default_check_seconds() -> u32 {
    10
}

fn default_settle_seconds() -> u32 {
    60
}

/// What follows where a check fails after an install: each update that it has installed is taken back to the packages that were
/// there before, as far as that is possible. Their files are saved before the install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollback {
    /// When.
    pub when: RollbackWhen,
    /// Names of packages, with `*` and `?`, whose data an earlier version might not understand (databases): an update with one of
    /// them is never taken back by itself. Firmware, the C library and what else needs a restart never are, and a kernel by its
    /// boot entry alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[!-~]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude_packages: Vec<String>,
}

/// When updates are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RollbackWhen {
    /// By a person only: a decision `Uninstall`.
    Never,
    /// Where a check fails after the install.
    CheckFailed,
}

/// A unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceActive {
    /// Its name: `nginx.service`.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9:_.\\@][-A-Za-z0-9:_.\\@]*$"))]
    pub unit: String,
}

/// A TCP port of 127.0.0.1, or else of ::1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tcp {
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// `GET path` of `http://localhost:port`, at 127.0.0.1 or else at ::1. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Path and query.
    #[serde(default = "root_path")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^/[!-~]*$"))]
    pub path: String,
    /// The status of the answer.
    #[serde(default = "ok_status")]
    #[schemars(range(min = 100, max = 599))]
    pub status: u16,
}

fn root_path() -> String {
    "/".to_owned()
}

fn ok_status() -> u16 {
    200
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileExists {
    /// Its absolute path.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^/[^\x00-\x1f\x7f]*$"))]
    pub path: String,
}

/// A script on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Command {
    /// Its file name in `/etc/patchwarden/hooks.d` of the device, or that of a script of its publishers.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9_.]*$"))]
    pub name: String,
}
