//! Why something is not done: typed reasons, and the only words for them.

use std::fmt;

use jiff::Timestamp;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::ProblemCode;

use super::model::Name;

/// Why an update is not being installed. Ordered as the gates are: the first refusal wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// No group has the device.
    NoGroup,
    /// Whether a group has the device cannot be told.
    MembershipUnknown {
        /// The group.
        group: Name,
        /// Why.
        error: String,
    },
    /// The group, or one above it, cannot be understood.
    GroupInvalid {
        /// The group that cannot.
        group: Name,
    },
    /// A group names a parent that does not exist.
    ParentNotFound {
        /// The group.
        group: Name,
        /// The parent.
        parent: Name,
    },
    /// A group is its own ancestor.
    ParentsInCircle {
        /// The group.
        group: Name,
    },
    /// Too many groups are above one another.
    TooManyParents {
        /// Where it became too many.
        group: Name,
    },
    /// Whether a rule is about the update cannot be told.
    ExpressionFailed {
        /// The group.
        group: Name,
        /// The rule.
        rule: Name,
        /// Why.
        error: String,
    },
    /// Nothing approves it.
    AwaitingApproval,
    /// A decision says to do nothing with it.
    LeftAlone,
    /// Approved once it has been known for long enough.
    Aging {
        /// From then on.
        until: Timestamp,
    },
    /// Decided against.
    Ignored,
    /// Decided against until then.
    Waived {
        /// Until.
        until: Timestamp,
    },
    /// The device itself holds it back.
    Held,
    /// No policy governs the device.
    NoPolicy,
    /// The policy cannot be understood.
    PolicyInvalid {
        /// The policy.
        policy: Name,
    },
    /// A policy or a group names a window that does not exist.
    WindowNotFound {
        /// Who names it: `PatchPolicy/...` or `ApprovalGroup/...`.
        by: Name,
        /// The window.
        window: Name,
    },
    /// A window cannot be understood.
    WindowInvalid {
        /// The window.
        window: Name,
    },
    /// No window of the policy is longer than its cutoff or than the policy's install limit: nothing could ever start.
    WindowTooShort {
        /// The policy.
        policy: Name,
    },
    /// The update's own window is not longer than its cutoff or than the policy's install limit.
    OwnWindowTooShort {
        /// The policy.
        policy: Name,
        /// The window.
        window: Name,
    },
    /// The policy only reports.
    PolicyAudit {
        /// The policy.
        policy: Name,
    },
    /// The policy is suspended.
    PolicySuspended {
        /// The policy.
        policy: Name,
    },
    /// Too many devices of the policy have failed.
    RolloutPaused {
        /// The policy.
        policy: Name,
        /// Since when.
        since: Timestamp,
    },
    /// The device is suspended.
    DeviceSuspended,
    /// The device is out of use.
    DeviceRetired,
    /// A window is on the device's clock and the device has no (valid) time zone.
    NoTimeZone {
        /// The window.
        window: Name,
    },
    /// The device was not heard of for too long.
    DeviceStale,
    /// The device has no session.
    DeviceOffline,
    /// The device reports a problem that must be solved first.
    DeviceProblem {
        /// Which.
        code: ProblemCode,
    },
    /// It failed on several devices, and is not installed anywhere any more.
    UpdateStopped {
        /// Since when.
        since: Timestamp,
    },
    /// It failed too often.
    RetriesExhausted {
        /// How often it was tried.
        attempts: u32,
    },
    /// The device is held by an install.
    InstallRunning {
        /// Which.
        sequence: Sequence,
    },
    /// It failed and waits.
    RetryBackoff {
        /// Until.
        until: Timestamp,
    },
    /// The device's ring has not got the update yet.
    RingWaits {
        /// The policy.
        policy: Name,
        /// The ring that has it and must prove it first.
        ring: Name,
        /// The first instant at which the next ring may get it, if that ring has proved it.
        until: Option<Timestamp>,
    },
    /// No window of the policy is open.
    WindowClosed {
        /// When one opens, if ever.
        opens: Option<Timestamp>,
    },
    /// A freeze keeps the window closed.
    Frozen {
        /// The window.
        window: Name,
        /// The exclusion.
        exclusion: Name,
        /// When one opens, if ever.
        opens: Option<Timestamp>,
    },
    /// A window is open, and too little of it is left for an install or its cutoff has come.
    WindowEnding {
        /// The window.
        window: Name,
        /// When one opens next, if ever.
        opens: Option<Timestamp>,
    },
    /// The controller could not write for the device a moment ago.
    OnHold,
    /// Devices of the same service come first.
    PeersFirst {
        /// The label.
        label: Name,
        /// Its value: the service.
        service: Name,
    },
    /// As many devices of the same service are unavailable as may be.
    ServiceAtLimit {
        /// The label.
        label: Name,
        /// Its value: the service.
        service: Name,
        /// How many may be.
        limit: u32,
    },
    /// Other devices of the policy have all its places.
    ConcurrencyReached {
        /// The policy.
        policy: Name,
        /// Its places.
        limit: u32,
    },
    /// Asked for a grant: there is no such device.
    UnknownDevice,
    /// Asked for a grant: nothing is claimed for the device.
    NotClaimed,
    /// Asked for a grant: the claim's time to start is over.
    OrderExpired {
        /// When it was.
        not_after: Timestamp,
    },
    /// Asked for a grant: there is no report of the device that is believed.
    NoReport,
    /// Asked for a grant: another policy governs the device now.
    PolicyChanged {
        /// The policy in whose name the claim is.
        claimed: Name,
        /// The policy that governs.
        governs: Name,
    },
    /// Asked for a grant: the device no longer offers what it is to install.
    NotOffered {
        /// The update.
        update: Name,
    },
}

impl Blocked {
    /// Whether the clock or a neighbour alone can lift it. Such a reason is computed, never written to a device's status.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::OnHold
            | Self::InstallRunning { .. }
            | Self::RetryBackoff { .. }
            | Self::RingWaits { .. }
            | Self::PeersFirst { .. }
            | Self::ServiceAtLimit { .. }
            | Self::WindowClosed { .. }
            | Self::Frozen { .. }
            | Self::WindowEnding { .. }
            | Self::ConcurrencyReached { .. } => true,
            Self::NoGroup
            | Self::MembershipUnknown { .. }
            | Self::GroupInvalid { .. }
            | Self::ParentNotFound { .. }
            | Self::ParentsInCircle { .. }
            | Self::TooManyParents { .. }
            | Self::ExpressionFailed { .. }
            | Self::AwaitingApproval
            | Self::LeftAlone
            | Self::Aging { .. }
            | Self::Ignored
            | Self::Waived { .. }
            | Self::Held
            | Self::NoPolicy
            | Self::PolicyInvalid { .. }
            | Self::WindowNotFound { .. }
            | Self::WindowInvalid { .. }
            | Self::WindowTooShort { .. }
            | Self::OwnWindowTooShort { .. }
            | Self::PolicyAudit { .. }
            | Self::PolicySuspended { .. }
            | Self::RolloutPaused { .. }
            | Self::DeviceSuspended
            | Self::DeviceRetired
            | Self::NoTimeZone { .. }
            | Self::DeviceStale
            | Self::DeviceOffline
            | Self::DeviceProblem { .. }
            | Self::RetriesExhausted { .. }
            | Self::UpdateStopped { .. }
            | Self::UnknownDevice
            | Self::NotClaimed
            | Self::OrderExpired { .. }
            | Self::NoReport
            | Self::PolicyChanged { .. }
            | Self::NotOffered { .. } => false,
        }
    }

    /// Whether it cannot be told if the update is approved, because something in a group cannot be resolved.
    pub(super) fn is_doubt(&self) -> bool {
        matches!(
            self,
            Self::MembershipUnknown { .. }
                | Self::GroupInvalid { .. }
                | Self::ParentNotFound { .. }
                | Self::ParentsInCircle { .. }
                | Self::TooManyParents { .. }
                | Self::ExpressionFailed { .. }
        )
    }

    /// The reason code: one word, for machines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoGroup => "NoGroup",
            Self::MembershipUnknown { .. } => "MembershipUnknown",
            Self::GroupInvalid { .. } => "GroupInvalid",
            Self::ParentNotFound { .. } => "ParentNotFound",
            Self::ParentsInCircle { .. } => "ParentsInCircle",
            Self::TooManyParents { .. } => "TooManyParents",
            Self::ExpressionFailed { .. } => "ExpressionFailed",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::LeftAlone => "LeftAlone",
            Self::Aging { .. } => "Aging",
            Self::Ignored => "Ignored",
            Self::Waived { .. } => "Waived",
            Self::Held => "Held",
            Self::NoPolicy => "NoPolicy",
            Self::PolicyInvalid { .. } => "PolicyInvalid",
            Self::WindowNotFound { .. } => "WindowNotFound",
            Self::WindowInvalid { .. } => "WindowInvalid",
            Self::WindowTooShort { .. } => "WindowTooShort",
            Self::OwnWindowTooShort { .. } => "OwnWindowTooShort",
            Self::PolicyAudit { .. } => "PolicyAudit",
            Self::PolicySuspended { .. } => "PolicySuspended",
            Self::RolloutPaused { .. } => "RolloutPaused",
            Self::DeviceSuspended => "DeviceSuspended",
            Self::DeviceRetired => "DeviceRetired",
            Self::NoTimeZone { .. } => "NoTimeZone",
            Self::DeviceStale => "DeviceStale",
            Self::DeviceOffline => "DeviceOffline",
            Self::DeviceProblem { .. } => "DeviceProblem",
            Self::RetriesExhausted { .. } => "RetriesExhausted",
            Self::UpdateStopped { .. } => "UpdateStopped",
            Self::InstallRunning { .. } => "InstallRunning",
            Self::RingWaits { .. } => "RingWaits",
            Self::PeersFirst { .. } => "PeersFirst",
            Self::ServiceAtLimit { .. } => "ServiceAtLimit",
            Self::OnHold => "OnHold",
            Self::RetryBackoff { .. } => "RetryBackoff",
            Self::WindowClosed { .. } => "WindowClosed",
            Self::Frozen { .. } => "Frozen",
            Self::WindowEnding { .. } => "WindowEnding",
            Self::ConcurrencyReached { .. } => "ConcurrencyReached",
            Self::UnknownDevice => "UnknownDevice",
            Self::NotClaimed => "NotClaimed",
            Self::OrderExpired { .. } => "OrderExpired",
            Self::NoReport => "NoReport",
            Self::PolicyChanged { .. } => "PolicyChanged",
            Self::NotOffered { .. } => "NotOffered",
        }
    }
}

/// What a person reads. The only place with these words.
impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opening = |opens: &Option<Timestamp>| {
            opens.map_or_else(|| "none will open again".to_owned(), |at| format!("the next one opens at {at}"))
        };
        match self {
            Self::NoGroup => f.write_str("no ApprovalGroup has this device: nothing is approved for it"),
            Self::MembershipUnknown { group, error } => {
                write!(f, "whether ApprovalGroup/{group} has this device cannot be told: {error}")
            }
            Self::GroupInvalid { group } => write!(f, "ApprovalGroup/{group} is Stalled: see its conditions"),
            Self::ParentNotFound { group, parent } => {
                write!(f, "ApprovalGroup/{group} has the parent {parent}, which does not exist")
            }
            Self::ParentsInCircle { group } => write!(f, "ApprovalGroup/{group} is its own ancestor"),
            Self::TooManyParents { group } => {
                write!(f, "too many groups are above one another: ApprovalGroup/{group} is one too many")
            }
            Self::ExpressionFailed { group, rule, error } => {
                write!(f, "whether rule {rule} of ApprovalGroup/{group} is about it cannot be told: {error}")
            }
            Self::LeftAlone => f.write_str("a decision says to do nothing with it"),
            // Without the time: it is what the client's other devices have seen, and those are no matter of this one's status.
            Self::Aging { until: _ } => f.write_str("approved once it has been known for long enough"),
            Self::AwaitingApproval => f.write_str("it waits for approval: no decision or rule approves it"),
            Self::Ignored => f.write_str("decided against"),
            Self::Waived { until } => write!(f, "waived until {until}"),
            Self::Held => f.write_str("held back on the device itself"),
            Self::NoPolicy => f.write_str("no PatchPolicy selects this device"),
            Self::PolicyInvalid { policy } => write!(f, "PatchPolicy/{policy} is Stalled: see its conditions"),
            Self::WindowNotFound { by, window } => {
                write!(f, "{by} names MaintenanceWindow/{window}, which does not exist")
            }
            Self::WindowInvalid { window } => write!(f, "MaintenanceWindow/{window} is Stalled: see its conditions"),
            Self::WindowTooShort { policy } => write!(
                f,
                "PatchPolicy/{policy} has no window that is longer than its cutoff and than the policy's installLimit: \
                 nothing could ever start"
            ),
            Self::OwnWindowTooShort { policy, window } => write!(
                f,
                "MaintenanceWindow/{window} is not longer than its cutoff and than the installLimit of \
                 PatchPolicy/{policy}: nothing could ever start"
            ),
            Self::PolicyAudit { policy } => write!(f, "PatchPolicy/{policy} has mode Audit: it only reports"),
            Self::PolicySuspended { policy } => write!(f, "PatchPolicy/{policy} is suspended"),
            Self::RolloutPaused { policy, since } => write!(
                f,
                "the rollout of PatchPolicy/{policy} is paused since {since}, because more devices failed than its \
                 failureBudget allows; it goes on when spec.rollout.resumed is set to a time after that"
            ),
            Self::DeviceSuspended => f.write_str("the device is suspended"),
            Self::DeviceRetired => f.write_str("the device is retired"),
            Self::NoTimeZone { window } => write!(
                f,
                "MaintenanceWindow/{window} is on the device's clock and the device has no valid spec.timeZone"
            ),
            Self::DeviceStale => f.write_str("the device was not heard of for more than 3 days"),
            Self::DeviceOffline => f.write_str("the device has no session"),
            Self::DeviceProblem { code } => write!(f, "the device reports {code:?}"),
            Self::RetriesExhausted { attempts } => write!(f, "failed {attempts} times; not tried again"),
            Self::UpdateStopped { since } => write!(
                f,
                "stopped everywhere at {since}, because it failed on at least 3 devices; a decision Reprocess with a \
                 later failedBefore tries it again"
            ),
            Self::RingWaits { policy, ring, until: _ } => {
                write!(f, "ring {ring} of PatchPolicy/{policy} must prove it first")
            }
            Self::PeersFirst { label, service } => {
                write!(f, "other devices with {label}={service} come first")
            }
            Self::ServiceAtLimit { label, service, limit } => {
                write!(f, "of the devices with {label}={service} {limit} may be unavailable at a time, and as many are")
            }
            Self::InstallRunning { sequence } => write!(f, "install {sequence} holds the device"),
            Self::OnHold => {
                f.write_str("the API server refused to write for this device; tried again in half a minute")
            }
            Self::RetryBackoff { until } => write!(f, "failed; tried again from {until}"),
            Self::WindowClosed { opens } => write!(f, "no window for it is open; {}", opening(opens)),
            Self::Frozen { window, exclusion, opens } => {
                write!(f, "exclusion {exclusion} keeps MaintenanceWindow/{window} closed; {}", opening(opens))
            }
            Self::WindowEnding { window, opens } => {
                write!(f, "too little of MaintenanceWindow/{window} is left to start an install; {}", opening(opens))
            }
            Self::ConcurrencyReached { policy, limit } => {
                write!(f, "PatchPolicy/{policy} allows {limit} at a time, and other devices have the places")
            }
            Self::UnknownDevice => f.write_str("there is no such device"),
            Self::NotClaimed => f.write_str("no install is claimed for the device"),
            Self::OrderExpired { not_after } => write!(f, "the install was to start by {not_after}"),
            Self::NoReport => f.write_str("there is no report of the device that is believed"),
            Self::PolicyChanged { claimed, governs } => {
                write!(f, "claimed for PatchPolicy/{claimed}; PatchPolicy/{governs} governs the device now")
            }
            Self::NotOffered { update } => write!(f, "the device no longer offers {update}"),
        }
    }
}
