//! `DeviceInventory`: one managed machine.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::envelope::Signature;
use patchwarden_protocol::grant::{Purpose, SignedGrant};
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::order::{Sequence, Verb};
use patchwarden_protocol::report::{Classification, Report};
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason, StepResult};
use patchwarden_protocol::settings::SignedSettings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine with an agent. Its identity is its key, never its hostname.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "patchwarden.io",
    version = "v1alpha1",
    kind = "DeviceInventory",
    plural = "deviceinventories",
    shortname = "devinv",
    category = "patching",
    namespaced,
    status = "DeviceInventoryStatus",
    derive = "PartialEq",
    doc = "A machine with an agent: what it is, what could be updated on it, and how far it complies.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Online", type_ = "boolean", json_path = ".status.inventory.online"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".status.compliance.policy"),
    printcolumn(name = "Group", type_ = "string", json_path = ".status.compliance.approvalGroup"),
    printcolumn(name = "Missing", type_ = "integer", json_path = ".status.compliance.counts.missing"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.compliance.counts.failed"),
    printcolumn(name = "Unapproved", type_ = "integer", json_path = ".status.compliance.counts.awaitingApproval"),
    printcolumn(name = "Restart", type_ = "string", json_path = ".status.inventory.report.restart.required"),
    printcolumn(
        name = "Compliant",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Compliant\")].status"
    ),
    printcolumn(name = "Deadline", type_ = "string", json_path = ".status.compliance.deadline"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceInventorySpec {
    /// What kind of machine it is.
    #[serde(rename = "type", default)]
    pub device_type: DeviceType,
    /// IANA time zone of the machine, for windows whose `timeZone` is `Device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self != 'Local' && self != 'Device' && !self.matches('^[+-]') && timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0")
        .message("must be an IANA time zone such as Europe/Berlin"))]
    pub time_zone: Option<String>,
    /// Fingerprint of the key that this device is believed by. A device that shows another one is pending: it gets no
    /// certificate and no orders until the fingerprint (shown in `status.inventory.pendingKey`) is put here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), regex(pattern = r"^SHA256:[A-Za-z0-9+/]{43}$"))]
    pub accepted_key: Option<String>,
    /// `Retired` revokes the key and keeps the history.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// The `status.inventory.duplicateIdentity.since` that a person has dealt with: the machine that uses the key from here on is the only one.
    /// It means nothing for what is found later, and may stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_resolved: Option<Timestamp>,
    /// While true nothing is installed on this device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// What kind of machine a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DeviceType {
    /// Serves others.
    #[default]
    Server,
    /// Somebody works on it.
    Workstation,
}

/// Whether the device is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Lifecycle {
    /// In use.
    #[default]
    Active,
    /// Out of use: its key is revoked, its record stays.
    Retired,
}

/// What is known of the device. Two writers, each owning its part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceInventoryStatus {
    /// What the device says (written by the gateway).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// What was decided (written by the controller).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance: Option<Compliance>,
    /// Generation of the spec that `compliance` was decided from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `Compliant`, `OsUpdater`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// The gateway's part. Nothing in it changes while the device does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// The device's own words, exactly as it signed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// The device's signature over `report` (DSSE over canonical JSON): whoever holds the gateway cannot change a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// The key that verifies it; its fingerprint must be `spec.acceptedKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub public_key: Option<PublicKey>,
    /// Fingerprint of a key that asks to be accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub pending_key: Option<String>,
    /// Whether the device has a session.
    #[serde(default)]
    pub online: bool,
    /// When `online` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// By how many seconds the device's clock was behind the gateway's when its session began; negative: ahead. Only where that is more
    /// than 30. With more than 120 it takes no orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<i64>,
    /// Until when the certificate counts with which the device began its last session. It renews it by itself at half of its life (7 days), and
    /// for 180 days after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_until: Option<Timestamp>,
    /// The device asks to act on its order now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_request: Option<GrantRequest>,
    /// The last result that the device signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Envelope<InstallResult>>,
    /// Several machines use the device's key: neither has a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_identity: Option<DuplicateIdentity>,
}

/// Machines that use one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DuplicateIdentity {
    /// When that was found: what `spec.duplicateResolved` has to be once it is dealt with.
    pub since: Timestamp,
    /// Fingerprint of the key.
    #[schemars(length(max = 50))]
    pub key: String,
    /// The two that took turns last: host name, address, and when its agent was started.
    #[schemars(length(max = 2), inner(length(max = 256)))]
    pub machines: Vec<String>,
}

impl DuplicateIdentity {
    /// Whether it counts: of another key there may be one machine only, and a person may have dealt with it.
    pub fn counts(&self, accepted_key: Option<&str>, resolved: Option<Timestamp>) -> bool {
        accepted_key == Some(self.key.as_str()) && resolved != Some(self.since)
    }

    /// What a person has to do.
    pub fn words(&self) -> String {
        format!(
            "since {} several machines use this device's key: {}. None of them gets orders. Enrol the copy anew (patchwarden-agent join --force \
             with another --name), then put spec.duplicateResolved: {0}; where it is not known which is the copy, enrol both anew",
            self.since,
            self.machines.join(", and ")
        )
    }
}

/// "May I act now?"
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantRequest {
    /// The order.
    #[schemars(length(max = 71))]
    pub order_digest: String,
    /// Chosen by the agent.
    #[schemars(length(max = 64))]
    pub nonce: String,
    /// What it asks for.
    #[serde(default)]
    pub purpose: Purpose,
}

/// The controller's part. Nothing in it changes because time goes by or a neighbour changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compliance {
    /// The PatchPolicy that governs the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub policy: Option<String>,
    /// Policies that select the device too and lost by priority or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub shadowed_policies: Vec<String>,
    /// The ApprovalGroup whose decisions count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub approval_group: Option<String>,
    /// Groups that claim the device too and lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub shadowed_groups: Vec<String>,
    /// Other groups that perhaps have the device, strongest first: those that have it if `approvalGroup` has not, where that
    /// cannot be told (`MembershipUnknown`), and those that had it, or may have had it, when their own `members.rule` could
    /// be evaluated for the last time. None of these loses it to a weaker one while its rule cannot be evaluated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub possible_groups: Vec<String>,
    /// Updates by state.
    #[serde(default)]
    pub counts: StateCounts,
    /// The earliest deadline of an approved update that is missing, whether to come or over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Each update of the report, and those that it tells of no more and after which a check failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub updates: Vec<UpdateCompliance>,
    /// The install that is claimed or running. It holds the device, and its place in the policy's concurrency, until a
    /// signed result or until `notAfter` and the limit are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<CurrentInstall>,
    /// Highest sequence that was ever claimed.
    #[serde(default)]
    pub sequence: Sequence,
    /// Counter of the last report that was believed: an older one is not.
    #[serde(default)]
    pub report_counter: u64,
    /// The last installs, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub last: Vec<PastInstall>,
    /// Ids of updates that orders have installed, latest first; they prove updates in rings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub installed: Vec<String>,
    /// Updates that failed and are still offered; that are not any more, after which a check failed, and to which nobody has seen; or from
    /// which the device was brought back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub failures: Vec<Failure>,
    /// Whether the specs that are in force have updates installed on it, now or later: what the device is itself, what is open
    /// and whose turn it is aside. Of a device that offers nothing: whether whatever may come would be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eligible: bool,
    /// Since when the device has its policy and group, if it had others before: the policy acts on it from `settle` after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governed_since: Option<Timestamp>,
    /// What last acted on it, if that is known for sure: with these again there is nothing to wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governed_before: Option<Governance>,
    /// What the policy says of the device beside orders, for its agent: signed when it is another, and once more than half of its time is
    /// over. The condition `OsUpdater` says what it is and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SignedSettings>,
}

/// A policy and a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Governance {
    /// The PatchPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub policy: Option<String>,
    /// The ApprovalGroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub approval_group: Option<String>,
}

/// Updates by state, of a device that is not heard of any more by the last one that is known; the full number is in
/// `inventory.report.counts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateCounts {
    /// Approved and not installed.
    pub missing: u32,
    /// Of these, downloaded.
    #[serde(default)]
    pub downloaded: u32,
    /// Installed and to be taken back.
    #[serde(default)]
    pub to_be_removed: u32,
    /// Claimed by an install that has not begun.
    pub pending: u32,
    /// Being installed.
    pub installing: u32,
    /// Tried, and failed: also such as are installed and after which a check failed.
    pub failed: u32,
    /// Approved once they have been known for long enough.
    #[serde(default)]
    pub aging: u32,
    /// Offered and not decided.
    pub awaiting_approval: u32,
    /// Decided against, for good.
    pub ignored: u32,
    /// Decided against until a date, with a reason.
    #[serde(default)]
    pub waived: u32,
    /// Held back by the device itself.
    pub held: u32,
}

/// State of one update on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum UpdateState {
    /// Approved, ageing or undecided, and not installed.
    Missing,
    /// Not installed, and all its files lie on the device.
    Downloaded,
    /// Installed, and to be taken back.
    Installed,
    /// Claimed by an install that has not begun.
    Pending,
    /// The device has its grant.
    Installing,
    /// The last attempt failed.
    Failed,
    /// Decided against.
    Ignored,
    /// Held back by the device itself.
    Held,
    /// In the place of an update (`restart`): the device waits for a restart.
    RestartRequired,
    /// The device was not heard of for too long.
    Unknown,
}

/// What approval says of one update on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Decision {
    /// To be installed.
    Approved,
    /// Not to be installed.
    Ignored,
    /// Not to be installed until a date, with a reason.
    Waived,
    /// To be installed once it has been known for long enough.
    Aging,
    /// Nothing decides it.
    AwaitingApproval,
    /// Not to be on the device: to be taken back where it is installed.
    Remove,
}

/// One update of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateCompliance {
    /// The update.
    #[schemars(length(max = 253))]
    pub id: String,
    /// What is true of it.
    pub state: UpdateState,
    /// What approval says of it.
    pub decision: Decision,
    /// What decided: `ApprovalGroup/servers rule security`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 400))]
    pub rule: Option<String>,
    /// Why it is not being installed: a reason and the object behind it. Which of several reasons that change with the
    /// clock or a neighbour's turn holds at this moment is not written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 400))]
    pub blocked_by: Option<String>,
    /// When the device first offered this very update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Timestamp>,
    /// When the device first lacked any version of the same package, if that was earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
}

/// Where a claimed install is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InstallPhase {
    /// Claimed; the device has no grant.
    Claimed,
    /// The device has a grant and may be acting.
    Installing,
}

/// The install that holds the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurrentInstall {
    /// Its place in the device's life; also the end of the Job's name.
    pub sequence: Sequence,
    /// Its Job.
    #[schemars(length(max = 63))]
    pub job: String,
    /// Its order.
    #[schemars(length(max = 71))]
    pub order_digest: String,
    /// The controller that claimed the device or answered it last, `<holderIdentity>/<leaseTransitions>` of its Lease: the API server
    /// takes neither from one that leads no more.
    #[serde(default)]
    #[schemars(length(max = 300))]
    pub leader: String,
    /// The policy in whose name it runs: it takes a place in that policy's concurrency.
    #[schemars(length(max = 253))]
    pub policy: String,
    /// What it does.
    #[serde(default)]
    pub verb: Verb,
    /// Where it is.
    pub phase: InstallPhase,
    /// When it was claimed.
    pub since: Timestamp,
    /// The order cannot be started after this.
    pub not_after: Timestamp,
    /// Seconds that an install may run once started.
    pub limit_seconds: u32,
    /// Seconds for which it may hold the device longer, for restarts and the checks after them, and for a way back.
    #[serde(default)]
    pub restart_seconds: u32,
    /// Seconds that it is expected to run: so much of its window must be left where it starts. Absent: `limitSeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seconds: Option<u32>,
    /// Ids of what it is to install.
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub updates: Vec<String>,
    /// What was known of them then, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub known: Vec<KnownUpdate>,
    /// The answer to the device's last grant request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<AnsweredGrant>,
}

/// What is known of an update before it is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KnownUpdate {
    /// Its kind.
    pub classification: Classification,
    /// When it was first seen: in the namespace, as far as several devices have seen it, else on this device.
    pub first_seen: Timestamp,
    /// When the vendor published it, if the device tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Timestamp>,
}

/// An answer to a grant request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnsweredGrant {
    /// The request's nonce.
    #[schemars(length(max = 64))]
    pub nonce: String,
    /// The signed answer.
    pub signed: SignedGrant,
}

/// An install that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastInstall {
    /// Its place in the device's life.
    pub sequence: Sequence,
    /// Its Job.
    #[schemars(length(max = 63))]
    pub job: String,
    /// How it ended; absent when no result came before its time was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResultReason>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1000))]
    pub message: String,
    /// What came of each update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub updates: Vec<ActionResult>,
    /// When it was recorded.
    pub finished_at: Timestamp,
    /// Seconds from when the device accepted the order until it was done, by its own clock; absent where it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u32>,
    /// The kinds of the updates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub kinds: Vec<Classification>,
    /// Since when what was installed had been known: with `finishedAt` the time that it took to deploy it. Of the newest install
    /// the first 16 updates, of the others the first 8, as far as there is room for their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub deployed: Vec<DeployedUpdate>,
    /// The hooks and checks that failed. Of the newest install.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub steps: Vec<StepResult>,
}

/// Since when an update had been known that was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeployedUpdate {
    /// The update.
    #[schemars(length(max = 253))]
    pub id: String,
    /// When it was first seen: in the namespace, as far as several devices had seen it, else on this device.
    pub first_seen: Timestamp,
    /// When the vendor published it, if the device told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Timestamp>,
}

/// An update that failed on this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The update.
    #[schemars(length(max = 253))]
    pub update: String,
    /// How often it was tried in earnest. An attempt in which the device did nothing because the order was out of date
    /// does not count.
    pub attempts: u32,
    /// When it failed last.
    pub last: Timestamp,
    /// When the last attempt failed that counts, where what came after it was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<Timestamp>,
    /// Why the last attempt failed; absent when no result came before the install's time was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResultReason>,
    /// For people.
    #[schemars(length(max = 1000))]
    pub message: String,
}
