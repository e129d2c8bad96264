//! Condition types and reasons, each defined here and nowhere else.
//!
//! `Ready`, `Reconciling` and `Stalled` follow kstatus (sigs.k8s.io/cli-utils, pkg/kstatus): `Ready` is "accepted and being enforced",
//! also while a window is closed; `Reconciling` is "it becomes right without anybody doing anything to it"; `Stalled` is "a person must
//! act". At most one of the last two is there, and only while `Ready` is `False`. `Compliant` is a matter of its own.

/// Accepted and being enforced.
pub const READY: &str = "Ready";
/// What it waits for comes without a change of the spec.
pub const RECONCILING: &str = "Reconciling";
/// A person must act: fix the spec, or whatever the message names.
pub const STALLED: &str = "Stalled";
/// Every approved update is installed and no restart is due.
pub const COMPLIANT: &str = "Compliant";

/// Other policies select devices of this one, too; only where it is so, and whatever else is true of the policy: nothing stops for it.
pub const OVERLAPPING: &str = "Overlapping";

/// The spec names what is not there, and may come yet; only where it is so, and whatever else is true of the object: nothing stops for it.
pub const NAMES_UNKNOWN: &str = "NamesUnknown";

/// The operating system's own updater is as the device's policy says; only where a policy says anything of it.
pub const OS_UPDATER: &str = "OsUpdater";

/// Several machines use the device's key; only where it is so.
pub const DUPLICATE_IDENTITY: &str = "DuplicateIdentity";

/// `Ready`: being enforced.
pub const REASON_ENFORCED: &str = "Enforced";
/// `Ready` of a policy: nothing is known of what happened under its name before, and nothing begins until that was read.
pub const REASON_RECORD_UNREAD: &str = "RecordUnread";
/// `Ready`: suspended by its spec.
pub const REASON_SUSPENDED: &str = "Suspended";
/// `Stalled`: the spec passed the schema and cannot be understood all the same.
pub const REASON_INVALID_SPEC: &str = "InvalidSpec";
/// `Stalled`: more devices failed than the rollout's budget allows.
pub const REASON_ROLLOUT_PAUSED: &str = "RolloutPaused";
/// `Stalled`: a change makes more devices eligible than the policy's `blastLimit` allows.
pub const REASON_BLAST_LIMIT: &str = "BlastLimitExceeded";
/// `Stalled`: the spec names an object that does not exist.
pub const REASON_NOT_FOUND: &str = "ReferenceNotFound";
/// `Stalled`: a window is neither open nor opens again, or none of a policy's does.
pub const REASON_NEVER_OPENS: &str = "NeverOpens";
/// `Stalled` of a policy: a ring has fewer devices than have to prove an update in it, and others wait for it.
pub const REASON_RING_TOO_SMALL: &str = "RingTooSmall";
/// `Ready` of a policy: a window that groups give to some of its updates is shorter than an install may take.
pub const REASON_WINDOW_TOO_SHORT: &str = "WindowTooShort";
/// `Stalled`: an expression cannot be evaluated for an update that is offered, or for a device.
pub const REASON_EXPRESSION_FAILED: &str = "ExpressionFailed";
/// `Overlapping`: with policies of the same priority, so that only the names decide who has a device.
pub const REASON_SAME_PRIORITY: &str = "SamePriority";
/// `Overlapping`: with policies of a higher priority, which have those devices.
pub const REASON_HIGHER_PRIORITY: &str = "HigherPriority";
/// `NamesUnknown`: a device that a policy leaves out, or a group has, is not there.
pub const REASON_DEVICE_NOT_FOUND: &str = "DeviceNotFound";
/// `NamesUnknown` of a policy: none of its servers has the label that makes services of them.
pub const REASON_LABEL_NOT_FOUND: &str = "LabelNotFound";
/// `Ready` of a device: its key waits to be accepted.
pub const REASON_KEY_PENDING: &str = "KeyPending";
/// `Ready` of a device: no report yet.
pub const REASON_NO_REPORT: &str = "NoReport";
/// `Ready` of a device: it has not followed into the present epoch yet.
pub const REASON_EPOCH_NOT_FOLLOWED: &str = "EpochNotFollowed";
/// `Ready` of a device: it has had orders of which its record knows nothing.
pub const REASON_RECORD_SET_BACK: &str = "RecordSetBack";
/// `Ready` and `DuplicateIdentity` of a device: several machines use its key.
pub const REASON_DUPLICATE_IDENTITY: &str = "DuplicateIdentity";
/// `Ready` of a device: its report is not believed.
pub const REASON_REPORT_REFUSED: &str = "ReportRefused";
/// `Ready` of a device: the result of its install is not believed.
pub const REASON_RESULT_REFUSED: &str = "ResultRefused";
/// `Ready` of a device: its clock is so far off that its agent takes no orders.
pub const REASON_CLOCK_OFF: &str = "ClockOff";
/// `Ready` of a device: it has updates to install in windows on its own clock, and no time zone.
pub const REASON_NO_TIME_ZONE: &str = "NoTimeZone";
/// `Ready` of a device: it is retired.
pub const REASON_RETIRED: &str = "Retired";
/// `Compliant`: nothing approved is missing.
pub const REASON_UP_TO_DATE: &str = "UpToDate";
/// `Compliant`: approved updates are missing.
pub const REASON_UPDATES_MISSING: &str = "UpdatesMissing";
/// `Compliant`: updates are installed that are to be taken back.
pub const REASON_REMOVAL_DUE: &str = "RemovalDue";
/// `Compliant`: what is missing has a deadline that is to come.
pub const REASON_WITHIN_DEADLINE: &str = "WithinDeadline";
/// `Compliant`: an approved update is missing, and its deadline is over.
pub const REASON_DEADLINE_MISSED: &str = "DeadlineMissed";
/// `Compliant`: the device waits for a restart.
pub const REASON_RESTART_REQUIRED: &str = "RestartRequired";
/// `Compliant`: not heard of for too long, not believed, or governed by no policy.
pub const REASON_UNKNOWN: &str = "Unknown";
/// `Compliant` of a policy: it governs no device.
pub const REASON_NO_DEVICES: &str = "NoDevices";
/// `Compliant`: more updates than a report can carry.
pub const REASON_TRUNCATED: &str = "Truncated";
/// `OsUpdater`: it is as the policy says.
pub const REASON_AS_POLICY_SAYS: &str = "AsPolicySays";
/// `OsUpdater`: the device has not told yet, or does not know what the policy says.
pub const REASON_NOT_TOLD_YET: &str = "NotToldYet";
/// `OsUpdater`: the device's own `agent.toml` or `limits.toml` says otherwise.
pub const REASON_REFUSED_BY_DEVICE: &str = "RefusedByDevice";
/// `OsUpdater`: the agent cannot switch off the updater of such a system.
pub const REASON_UNSUPPORTED: &str = "Unsupported";
/// `OsUpdater`: the device had no contact for 30 days and gave it back.
pub const REASON_GIVEN_BACK: &str = "GivenBack";
/// `OsUpdater`: somebody has changed on the device what switches it off, or something stands in the way.
pub const REASON_CHANGED_ON_DEVICE: &str = "ChangedOnDevice";
