//! What came of an order, signed by the device.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Document;
use crate::key::Fingerprint;
use crate::order::{Sequence, Verb};
use crate::report::{DeviceRef, Tristate};

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Outcome {
    /// Every action was done.
    Succeeded,
    /// At least one action failed.
    Failed,
    /// The device did nothing: the order was not acceptable, or would have done more than it says.
    Refused,
    /// The device did nothing: the controller denied the grant.
    Withdrawn,
    /// The device did nothing: its time was over before a grant came.
    Expired,
}

/// Why an order or an action did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ResultReason {
    /// The order's signature or delegation does not verify.
    BadSignature,
    /// The order's content or delegation cannot be understood: unknown fields, or packages that cannot be named.
    Unreadable,
    /// The order is for another device.
    OtherDevice,
    /// The order's sequence is not above the last accepted one.
    Replayed,
    /// It is after `notAfter` (or the clock is off).
    Expired,
    /// It is before `notBefore`.
    TooEarly,
    /// The order was planned from another report than the device's current one.
    ReportMismatch,
    /// The package manager would do more than the order allows. The message lists what.
    WouldDoMore,
    /// An ordered version, or its exact file, is no longer offered.
    Superseded,
    /// The journal cannot be read.
    JournalCorrupt,
    /// The grant was denied. The message has the controller's reason.
    Denied,
    /// Not enough space on the device.
    DiskFull,
    /// A download failed.
    DownloadFailed,
    /// The site's cache does not answer, and the order says to wait for it. Nothing was downloaded.
    SiteCacheDown,
    /// Another program held the package manager's lock for too long.
    Locked,
    /// The package manager failed. The message is its own.
    PackageManagerFailed,
    /// The package manager said it succeeded and its database says otherwise.
    NotInstalled,
    /// The package manager refused the whole order because of another update in it, and did nothing.
    OtherFailed,
    /// The install ran longer than its limit.
    TimedOut,
    /// A restart is due and was left to a later order. The message says why.
    RestartPostponed,
    /// The device was to restart and did not.
    RestartFailed,
    /// This machine cannot restart itself (a container).
    RestartImpossible,
    /// The device's own limits, which its owner has set, do not allow it. The message says which.
    LimitedByDevice,
    /// A check failed before anything was done: the device was not healthy as it was.
    Unhealthy,
    /// A hook failed that must not.
    HookFailed,
    /// A check failed afterwards. The update is installed.
    CheckFailed,
    /// A check failed afterwards, and the device was brought back to what it had before.
    RolledBack,
}

impl ResultReason {
    /// Whether it could not even be tried, and may be once a server answers again, there is room, or another program is through.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::DiskFull | Self::DownloadFailed | Self::SiteCacheDown | Self::Locked)
    }

    /// Whether it is the update's own fault: it would fail in the same way on other devices. A network that is down, a
    /// disk that is full or an order that is out of date is not.
    pub fn is_of_the_update(self) -> bool {
        match self {
            Self::PackageManagerFailed | Self::NotInstalled | Self::CheckFailed | Self::RolledBack => true,
            Self::BadSignature
            | Self::Unreadable
            | Self::OtherDevice
            | Self::Replayed
            | Self::Expired
            | Self::TooEarly
            | Self::ReportMismatch
            | Self::WouldDoMore
            | Self::Superseded
            | Self::JournalCorrupt
            | Self::Denied
            | Self::DiskFull
            | Self::DownloadFailed
            | Self::SiteCacheDown
            | Self::Locked
            | Self::OtherFailed
            | Self::TimedOut
            | Self::RestartPostponed
            | Self::RestartFailed
            | Self::RestartImpossible
            | Self::LimitedByDevice
            | Self::Unhealthy
            | Self::HookFailed => false,
        }
    }
}

/// What was looked at or run beside the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Step {
    /// A check before the actions.
    CheckBefore,
    /// A hook before them.
    HookBefore,
    /// A hook after them.
    HookAfter,
    /// A service that still ran what the actions have replaced was restarted.
    ServiceRestart,
    /// A check after them, and after their restarts.
    CheckAfter,
    /// The way back to what there was before, because a check failed.
    Rollback,
    /// A service that still ran what there was before that was restarted.
    ServiceRolledBack,
    /// A check after that.
    CheckRolledBack,
}

/// What came of a hook, a check or the restart of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StepResult {
    /// What it was.
    pub step: Step,
    /// Its name.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub name: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// For people: what it printed last, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 400)))]
    pub message: String,
}

/// What came of one action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ActionResult {
    /// The update's id.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub update: String,
    /// What was to be done.
    #[serde(default)]
    pub verb: Verb,
    /// Whether it is done: every package has its ordered version now, by the package manager's database, and no check failed
    /// after that; for a download, whether all files lie on the device.
    pub done: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResultReason>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 1000)))]
    pub message: String,
}

/// Phases that a result tells at most: an order has about ten.
pub const MAX_PHASES: usize = 24;

/// Characters of a phase's word at most.
pub const MAX_PHASE: usize = 32;

/// When an order came into a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTime {
    /// One of [`crate::progress::Phase`]; a text, so that whoever does not know a later one reads the others.
    pub phase: String,
    /// Milliseconds after `startedAt`, measured by what no setting of the clock changes as long as the agent's process lives.
    pub after_millis: u64,
}

/// The result of one order. At most a few KB: what the package manager printed goes to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstallResult {
    /// The device by name.
    pub device: DeviceRef,
    /// The device by key.
    pub device_key: Fingerprint,
    /// The order's sequence (as the order claimed it).
    pub sequence: Sequence,
    /// The order.
    pub order_digest: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not succeed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResultReason>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// One for each action of the order; empty when the device did nothing.
    pub actions: Vec<ActionResult>,
    /// What came of hooks, checks and restarts of services, in the order in which they ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepResult>,
    /// When it came into its phases, in their order, for whoever wants to see what took its time. Decides nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
    /// When the device accepted the order.
    pub started_at: Timestamp,
    /// When it was done.
    pub finished_at: Timestamp,
    /// Whether the machine waits for a restart now.
    pub restart_required: Tristate,
    /// How often it was restarted for this order.
    #[serde(default)]
    pub restarts: u32,
    /// Why a restart that is due did not take place.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub restart_postponed: String,
}

impl Document for InstallResult {
    const TYPE: &'static str = "application/vnd.patchwarden.result.v1+json";
}
