//! The planner's output, and the words for it.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Dependencies, Sequence};
use patchwarden_protocol::report::ProblemCode;

/// The answer for one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every device, by name.
    pub devices: Vec<DevicePlan>,
    /// Every policy, by name.
    pub policies: Vec<PolicyPlan>,
    /// Every group, by name.
    pub groups: Vec<GroupPlan>,
    /// Every window, by name.
    pub windows: Vec<WindowPlan>,
    /// When the answer changes by itself, if nothing else happens first.
    pub next_look: Option<Timestamp>,
}

/// What is decided for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Name.
    pub name: String,
    /// The policy that governs it.
    pub policy: Option<String>,
    /// Policies that select it too, and lost.
    pub shadowed_policies: Vec<String>,
    /// Its effective group.
    pub group: Option<String>,
    /// Groups that claim it too, and lost.
    pub shadowed_groups: Vec<String>,
    /// Every update of its report, in the report's order.
    pub updates: Vec<UpdatePlan>,
    /// The install to start now.
    pub install: Option<Install>,
    /// Whether it complies.
    pub compliance: Compliance,
}

/// Whether a device complies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compliance {
    /// Nothing approved is missing, no restart is due.
    UpToDate,
    /// Approved updates are missing.
    UpdatesMissing,
    /// It waits for a restart.
    RestartRequired,
    /// Its report was cut: there is more than it says.
    Truncated,
    /// Not heard of for too long, not believed, or governed by no policy or group.
    Unknown,
}

/// What is decided for one update on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdatePlan {
    /// Id.
    pub id: String,
    /// What is true of it.
    pub state: State,
    /// What approval says.
    pub decision: Decision,
    /// What decided.
    pub decided_by: Option<DecidedBy>,
    /// Why it is not started now: the first gate that refused. Absent when it is part of the install to start.
    pub blocked: Option<Blocked>,
    /// The first instant at which the clock alone could lift `blocked`.
    pub eligible_at: Option<Timestamp>,
}

/// What is true of an update on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not installed.
    Missing,
    /// Claimed by an install that has no grant.
    Pending,
    /// Claimed by an install that has one.
    Installing,
    /// The last attempt failed.
    Failed,
    /// Decided against.
    Ignored,
    /// Held back by the device itself.
    Held,
    /// The device was not heard of for too long.
    Unknown,
}

/// What approval says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// To be installed.
    Approved,
    /// Not to be installed.
    Ignored,
    /// Not to be installed until a date.
    Waived,
    /// Nothing decides it.
    AwaitingApproval,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// A decision of the group, by its glob.
    Decision {
        /// The group.
        group: String,
        /// The decision's glob.
        update: String,
    },
    /// A rule of the group.
    Rule {
        /// The group.
        group: String,
        /// The rule.
        rule: String,
    },
    /// The group's default.
    Default {
        /// The group.
        group: String,
    },
}

/// An install to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Ids, in the report's order.
    pub updates: Vec<String>,
    /// The policy in whose name.
    pub policy: String,
    /// What the package manager may do beyond.
    pub dependencies: Dependencies,
    /// The last instant at which it may start, so that it ends in its window and before the cutoff.
    pub not_after: Timestamp,
    /// How long it may take.
    pub limit: SignedDuration,
}

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
    /// Other devices of the policy have all its places.
    ConcurrencyReached {
        /// The policy.
        policy: String,
        /// Its places.
        limit: u32,
    },
}

impl Blocked {
    /// Whether the clock or a neighbour alone can lift it. Such a reason is computed, never written to a device's status.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::InstallRunning { .. }
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
            | Self::PolicyAudit { .. }
            | Self::PolicySuspended { .. }
            | Self::DeviceSuspended
            | Self::DeviceRetired
            | Self::NoTimeZone { .. }
            | Self::DeviceStale
            | Self::DeviceOffline
            | Self::DeviceProblem { .. }
            | Self::RetriesExhausted { .. } => false,
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
            Self::RetryBackoff { .. } => "RetryBackoff",
            Self::WindowClosed { .. } => "WindowClosed",
            Self::Frozen { .. } => "Frozen",
            Self::WindowEnding { .. } => "WindowEnding",
            Self::ConcurrencyReached { .. } => "ConcurrencyReached",
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
            Self::AwaitingApproval => f.write_str("nobody has approved it: no decision or rule of the group matches"),
            Self::Ignored => f.write_str("decided against"),
            Self::Waived { until } => write!(f, "waived until {until}"),
            Self::Held => f.write_str("held back on the device itself"),
            Self::NoPolicy => f.write_str("no PatchPolicy selects this device"),
            Self::PolicyInvalid { policy } => write!(f, "PatchPolicy/{policy} is Stalled: see its conditions"),
            Self::WindowNotFound { policy, window } => {
                write!(f, "PatchPolicy/{policy} names MaintenanceWindow/{window}, which does not exist")
            }
            Self::WindowInvalid { window } => write!(f, "MaintenanceWindow/{window} is Stalled: see its conditions"),
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
            Self::RetryBackoff { until } => write!(f, "failed; tried again from {until}"),
            Self::WindowClosed { opens } => write!(f, "no window of the policy is open; {}", opening(opens)),
            Self::Frozen { window, exclusion, opens } => {
                write!(f, "exclusion {exclusion} keeps MaintenanceWindow/{window} closed; {}", opening(opens))
            }
            Self::WindowEnding { window, opens } => {
                write!(f, "too little of MaintenanceWindow/{window} is left to start an install; {}", opening(opens))
            }
            Self::ConcurrencyReached { policy, limit } => {
                write!(f, "PatchPolicy/{policy} has {limit} installs at work, as many as it allows")
            }
        }
    }
}

/// What is true of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPlan {
    /// Name.
    pub name: String,
    /// Devices that it governs.
    pub devices: u32,
    /// Of these, compliant.
    pub compliant: u32,
    /// Of these, held by an install.
    pub installing: u32,
    /// Of these, with a failed update.
    pub failed: u32,
    /// Whether one of its windows is open (for UTC where the window is on the device's clock).
    pub open: bool,
    /// When the next window opens, if none is open.
    pub next_window: Option<Timestamp>,
    /// What a person must fix.
    pub stalled: Option<Blocked>,
}

/// What is true of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// Name.
    pub name: String,
    /// Devices whose effective group it is.
    pub devices: u32,
}

/// What is true of a window (for UTC where it is on the device's clock).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowPlan {
    /// Name.
    pub name: String,
    /// When it closes, if it is open.
    pub open_until: Option<Timestamp>,
    /// The next occurrence.
    pub next: Option<(Timestamp, Timestamp)>,
    /// What could not be understood.
    pub invalid: Option<String>,
}
