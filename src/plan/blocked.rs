//! Why something is not done: typed reasons. Their words are in `words`.

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
    /// A rule asks what is known of vulnerabilities, and nobody has told.
    VulnerabilitiesUnknown {
        /// The group.
        group: Name,
        /// The rule.
        rule: Name,
    },
    /// Whether a rule is about the update cannot be told.
    ExpressionFailed {
        /// The group.
        group: Name,
        /// The rule.
        rule: Name,
        /// Why.
        error: Name,
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
    /// It is not to be on the device: where it is installed it is taken back.
    ToBeRemoved,
    /// The device itself holds it back.
    Held,
    /// A check failed after it, and it stays: a person must see to the device.
    CheckFailed {
        /// When.
        at: Timestamp,
    },
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
    /// The policy only downloads, and everything of the update is on the device.
    PolicyDownloadOnly {
        /// The policy.
        policy: Name,
    },
    /// The policy leaves the update out.
    Filtered {
        /// The policy.
        policy: Name,
        /// Which of its filters.
        filter: &'static str,
    },
    /// The policy restarts no device.
    NeverRestarts {
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
    /// A change of the specs made too many devices of the policy eligible, this one among them: a person must confirm it.
    BlastLimit {
        /// The policy.
        policy: Name,
        /// How many.
        devices: u32,
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
    /// The device's clock is so far off that it takes no orders.
    ClockOff {
        /// By so many it is behind; negative: ahead.
        seconds: i32,
    },
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
    /// A check failed with it on this device, which was brought back to what it had before.
    RolledBack {
        /// When.
        at: Timestamp,
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
    /// Another order of the device comes first: what takes updates back, then installs, then a restart alone.
    OthersFirst,
    /// The device had another policy or group until a moment ago.
    Settling {
        /// The present ones act from then on.
        until: Timestamp,
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
    /// It needs no window, and an exclusion begins before it could end.
    FreezeAhead {
        /// The window whose exclusion it is.
        window: Name,
        /// The exclusion.
        exclusion: Name,
        /// When it may start.
        opens: Option<Timestamp>,
    },
    /// A window is open, and too little of it is left for an install or its cutoff has come.
    WindowEnding {
        /// The window.
        window: Name,
        /// When one opens next, if ever.
        opens: Option<Timestamp>,
    },
    /// No window is open, and the device could catch up outside them, were it on mains power.
    OnBattery,
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
    /// Asked for a grant: the device no longer offers what it is to install, or to take back.
    NotOffered {
        /// The update.
        update: Name,
    },
    /// Asked for a grant to restart: no window is open in which its install could have begun.
    RestartTooLate {
        /// When the next window opens.
        opens: Option<Timestamp>,
    },
    /// Asked for a grant: what it is to take back stays.
    Stays {
        /// The update.
        update: Name,
    },
}

impl Blocked {
    /// Whether the clock or a neighbour alone can lift it. Such a reason is computed, never written to a device's status.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::OnHold
            | Self::OnBattery
            | Self::InstallRunning { .. }
            | Self::OthersFirst
            | Self::Settling { .. }
            | Self::RetryBackoff { .. }
            | Self::RingWaits { .. }
            | Self::PeersFirst { .. }
            | Self::ServiceAtLimit { .. }
            | Self::WindowClosed { .. }
            | Self::Frozen { .. }
            | Self::FreezeAhead { .. }
            | Self::WindowEnding { .. }
            | Self::ConcurrencyReached { .. } => true,
            Self::NoGroup
            | Self::MembershipUnknown { .. }
            | Self::GroupInvalid { .. }
            | Self::ParentNotFound { .. }
            | Self::ParentsInCircle { .. }
            | Self::TooManyParents { .. }
            | Self::VulnerabilitiesUnknown { .. }
            | Self::ExpressionFailed { .. }
            | Self::AwaitingApproval
            | Self::LeftAlone
            | Self::Aging { .. }
            | Self::Ignored
            | Self::Waived { .. }
            | Self::ToBeRemoved
            | Self::Held
            | Self::CheckFailed { .. }
            | Self::NoPolicy
            | Self::PolicyInvalid { .. }
            | Self::WindowNotFound { .. }
            | Self::WindowInvalid { .. }
            | Self::WindowTooShort { .. }
            | Self::OwnWindowTooShort { .. }
            | Self::PolicyAudit { .. }
            | Self::PolicyDownloadOnly { .. }
            | Self::Filtered { .. }
            | Self::NeverRestarts { .. }
            | Self::PolicySuspended { .. }
            | Self::RolloutPaused { .. }
            | Self::BlastLimit { .. }
            | Self::DeviceSuspended
            | Self::DeviceRetired
            | Self::NoTimeZone { .. }
            | Self::DeviceStale
            | Self::DeviceOffline
            | Self::ClockOff { .. }
            | Self::DeviceProblem { .. }
            | Self::RolledBack { .. }
            | Self::RetriesExhausted { .. }
            | Self::UpdateStopped { .. }
            | Self::UnknownDevice
            | Self::NotClaimed
            | Self::OrderExpired { .. }
            | Self::NoReport
            | Self::PolicyChanged { .. }
            | Self::NotOffered { .. }
            | Self::Stays { .. }
            | Self::RestartTooLate { .. } => false,
        }
    }

    /// Whether no window lets it start now.
    pub(super) fn is_of_windows(&self) -> bool {
        matches!(self, Self::WindowClosed { .. } | Self::Frozen { .. } | Self::WindowEnding { .. } | Self::OnBattery)
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
                | Self::VulnerabilitiesUnknown { .. }
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
            Self::VulnerabilitiesUnknown { .. } => "VulnerabilitiesUnknown",
            Self::ExpressionFailed { .. } => "ExpressionFailed",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::LeftAlone => "LeftAlone",
            Self::Aging { .. } => "Aging",
            Self::Ignored => "Ignored",
            Self::Waived { .. } => "Waived",
            Self::ToBeRemoved => "ToBeRemoved",
            Self::Held => "Held",
            Self::CheckFailed { .. } => "CheckFailed",
            Self::NoPolicy => "NoPolicy",
            Self::PolicyInvalid { .. } => "PolicyInvalid",
            Self::WindowNotFound { .. } => "WindowNotFound",
            Self::WindowInvalid { .. } => "WindowInvalid",
            Self::WindowTooShort { .. } => "WindowTooShort",
            Self::OwnWindowTooShort { .. } => "OwnWindowTooShort",
            Self::PolicyAudit { .. } => "PolicyAudit",
            Self::PolicyDownloadOnly { .. } => "PolicyDownloadOnly",
            Self::Filtered { .. } => "Filtered",
            Self::NeverRestarts { .. } => "NeverRestarts",
            Self::PolicySuspended { .. } => "PolicySuspended",
            Self::RolloutPaused { .. } => "RolloutPaused",
            Self::BlastLimit { .. } => "BlastLimit",
            Self::DeviceSuspended => "DeviceSuspended",
            Self::DeviceRetired => "DeviceRetired",
            Self::NoTimeZone { .. } => "NoTimeZone",
            Self::DeviceStale => "DeviceStale",
            Self::DeviceOffline => "DeviceOffline",
            Self::ClockOff { .. } => "ClockOff",
            Self::DeviceProblem { .. } => "DeviceProblem",
            Self::RolledBack { .. } => "RolledBack",
            Self::RetriesExhausted { .. } => "RetriesExhausted",
            Self::UpdateStopped { .. } => "UpdateStopped",
            Self::InstallRunning { .. } => "InstallRunning",
            Self::OthersFirst => "OthersFirst",
            Self::Settling { .. } => "Settling",
            Self::RingWaits { .. } => "RingWaits",
            Self::PeersFirst { .. } => "PeersFirst",
            Self::ServiceAtLimit { .. } => "ServiceAtLimit",
            Self::OnHold => "OnHold",
            Self::OnBattery => "OnBattery",
            Self::RetryBackoff { .. } => "RetryBackoff",
            Self::WindowClosed { .. } => "WindowClosed",
            Self::Frozen { .. } => "Frozen",
            Self::FreezeAhead { .. } => "FreezeAhead",
            Self::WindowEnding { .. } => "WindowEnding",
            Self::ConcurrencyReached { .. } => "ConcurrencyReached",
            Self::UnknownDevice => "UnknownDevice",
            Self::NotClaimed => "NotClaimed",
            Self::OrderExpired { .. } => "OrderExpired",
            Self::NoReport => "NoReport",
            Self::PolicyChanged { .. } => "PolicyChanged",
            Self::NotOffered { .. } => "NotOffered",
            Self::Stays { .. } => "Stays",
            Self::RestartTooLate { .. } => "RestartTooLate",
        }
    }
}
