//! Why something is not done: typed reasons, and the only words for them.

use std::fmt;

use jiff::Timestamp;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::ProblemCode;

/// Why an update is not being installed. Ordered as the gates are: the first refusal wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// No group has the device.
    NoGroup,
    /// Nothing approves it.
    AwaitingApproval,
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
        policy: String,
    },
    /// The policy names a window that does not exist.
    WindowNotFound {
        /// The policy.
        policy: String,
        /// The window.
        window: String,
    },
    /// A window of the policy cannot be understood.
    WindowInvalid {
        /// The window.
        window: String,
    },
    /// No window of the policy is longer than its cutoff or than the policy's install limit: nothing could ever start.
    WindowTooShort {
        /// The policy.
        policy: String,
    },
    /// The policy only reports.
    PolicyAudit {
        /// The policy.
        policy: String,
    },
    /// The policy is suspended.
    PolicySuspended {
        /// The policy.
        policy: String,
    },
    /// The device is suspended.
    DeviceSuspended,
    /// The device is out of use.
    DeviceRetired,
    /// A window is on the device's clock and the device has no (valid) time zone.
    NoTimeZone {
        /// The window.
        window: String,
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
    /// No window of the policy is open.
    WindowClosed {
        /// When one opens, if ever.
        opens: Option<Timestamp>,
    },
    /// A freeze keeps the window closed.
    Frozen {
        /// The window.
        window: String,
        /// The exclusion.
        exclusion: String,
        /// When one opens, if ever.
        opens: Option<Timestamp>,
    },
    /// A window is open, and too little of it is left for an install or its cutoff has come.
    WindowEnding {
        /// The window.
        window: String,
        /// When one opens next, if ever.
        opens: Option<Timestamp>,
    },
    /// The controller could not write for the device a moment ago.
    OnHold,
    /// Other devices of the policy have all its places.
    ConcurrencyReached {
        /// The policy.
        policy: String,
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
        claimed: String,
        /// The policy that governs.
        governs: String,
    },
    /// Asked for a grant: the device no longer offers what it is to install.
    NotOffered {
        /// The update.
        update: String,
    },
}

impl Blocked {
    /// Whether the clock or a neighbour alone can lift it. Such a reason is computed, never written to a device's status.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::OnHold
            | Self::InstallRunning { .. }
            | Self::RetryBackoff { .. }
            | Self::WindowClosed { .. }
            | Self::Frozen { .. }
            | Self::WindowEnding { .. }
            | Self::ConcurrencyReached { .. } => true,
            Self::NoGroup
            | Self::AwaitingApproval
            | Self::Ignored
            | Self::Waived { .. }
            | Self::Held
            | Self::NoPolicy
            | Self::PolicyInvalid { .. }
            | Self::WindowNotFound { .. }
            | Self::WindowInvalid { .. }
            | Self::WindowTooShort { .. }
            | Self::PolicyAudit { .. }
            | Self::PolicySuspended { .. }
            | Self::DeviceSuspended
            | Self::DeviceRetired
            | Self::NoTimeZone { .. }
            | Self::DeviceStale
            | Self::DeviceOffline
            | Self::DeviceProblem { .. }
            | Self::RetriesExhausted { .. }
            | Self::UnknownDevice
            | Self::NotClaimed
            | Self::OrderExpired { .. }
            | Self::NoReport
            | Self::PolicyChanged { .. }
            | Self::NotOffered { .. } => false,
        }
    }

    /// The reason code: one word, for machines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoGroup => "NoGroup",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::Ignored => "Ignored",
            Self::Waived { .. } => "Waived",
            Self::Held => "Held",
            Self::NoPolicy => "NoPolicy",
            Self::PolicyInvalid { .. } => "PolicyInvalid",
            Self::WindowNotFound { .. } => "WindowNotFound",
            Self::WindowInvalid { .. } => "WindowInvalid",
            Self::WindowTooShort { .. } => "WindowTooShort",
            Self::PolicyAudit { .. } => "PolicyAudit",
            Self::PolicySuspended { .. } => "PolicySuspended",
            Self::DeviceSuspended => "DeviceSuspended",
            Self::DeviceRetired => "DeviceRetired",
            Self::NoTimeZone { .. } => "NoTimeZone",
            Self::DeviceStale => "DeviceStale",
            Self::DeviceOffline => "DeviceOffline",
            Self::DeviceProblem { .. } => "DeviceProblem",
            Self::RetriesExhausted { .. } => "RetriesExhausted",
            Self::InstallRunning { .. } => "InstallRunning",
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
            Self::AwaitingApproval => f.write_str("it waits for approval: no decision or rule approves it"),
            Self::Ignored => f.write_str("decided against"),
            Self::Waived { until } => write!(f, "waived until {until}"),
            Self::Held => f.write_str("held back on the device itself"),
            Self::NoPolicy => f.write_str("no PatchPolicy selects this device"),
            Self::PolicyInvalid { policy } => write!(f, "PatchPolicy/{policy} is Stalled: see its conditions"),
            Self::WindowNotFound { policy, window } => {
                write!(f, "PatchPolicy/{policy} names MaintenanceWindow/{window}, which does not exist")
            }
            Self::WindowInvalid { window } => write!(f, "MaintenanceWindow/{window} is Stalled: see its conditions"),
            Self::WindowTooShort { policy } => write!(
                f,
                "PatchPolicy/{policy} has no window that is longer than its cutoff and than the policy's installLimit: \
                 nothing could ever start"
            ),
            Self::PolicyAudit { policy } => write!(f, "PatchPolicy/{policy} has mode Audit: it only reports"),
            Self::PolicySuspended { policy } => write!(f, "PatchPolicy/{policy} is suspended"),
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
            Self::InstallRunning { sequence } => write!(f, "install {sequence} holds the device"),
            Self::OnHold => {
                f.write_str("the API server refused to write for this device; tried again in half a minute")
            }
            Self::RetryBackoff { until } => write!(f, "failed; tried again from {until}"),
            Self::WindowClosed { opens } => write!(f, "no window of the policy is open; {}", opening(opens)),
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
