//! What a person reads of a reason.

use std::fmt;

use jiff::Timestamp;

use super::blocked::Blocked;
use super::outcome::Absence;

/// What a person reads. The only place with these words.
impl fmt::Display for Blocked {
    #[allow(clippy::too_many_lines, reason = "a table: one entry for each reason")]
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
            Self::VulnerabilitiesUnknown { group, rule } => write!(
                f,
                "rule {rule} of ApprovalGroup/{group} asks for known exploitation (KEV) or its likelihood (EPSS), and no \
                 such data are there: it waits"
            ),
            Self::ExpressionFailed { group, rule, error } => {
                write!(f, "whether rule {rule} of ApprovalGroup/{group} is about it cannot be told: {error}")
            }
            Self::LeftAlone => f.write_str("a decision says to do nothing with it"),
            // Without the time: it is what the client's other devices have seen, and those are no matter of this one's status.
            Self::Aging { until: _ } => f.write_str("approved once it has been known for long enough"),
            Self::AwaitingApproval => f.write_str("it waits for approval: no decision or rule approves it"),
            Self::Ignored => f.write_str("decided against"),
            Self::Waived { until } => write!(f, "waived until {until}"),
            Self::ToBeRemoved => f.write_str("a decision says Uninstall: it is not to be on the device"),
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
            Self::PolicyDownloadOnly { policy } => {
                write!(f, "PatchPolicy/{policy} has mode DownloadOnly: it downloads, and does nothing else")
            }
            Self::Filtered { policy, filter } => {
                write!(f, "spec.filters.{filter} of PatchPolicy/{policy} leaves it out")
            }
            Self::NeverRestarts { policy } => {
                write!(f, "spec.restart of PatchPolicy/{policy} says Never: restart the device yourself")
            }
            Self::PolicySuspended { policy } => write!(f, "PatchPolicy/{policy} is suspended"),
            Self::RolloutPaused { policy, since } => write!(
                f,
                "the rollout of PatchPolicy/{policy} is paused since {since}, because more devices failed than its \
                 failureBudget allows; it goes on when spec.rollout.resumed is set to a time after that"
            ),
            // Without the number: it is about the others, and no matter of this one's status.
            Self::BlastLimit { policy, devices: _ } => write!(
                f,
                "a change made more devices of PatchPolicy/{policy} eligible than its blastLimit allows, this one among \
                 them; its conditions say how to confirm it"
            ),
            Self::DeviceSuspended => f.write_str("the device is suspended"),
            Self::DeviceRetired => f.write_str("the device is retired"),
            Self::NoTimeZone { window } => write!(
                f,
                "MaintenanceWindow/{window} is on the device's clock and the device has no valid spec.timeZone"
            ),
            Self::DeviceStale => f.write_str("the device was not heard of for more than 3 days"),
            Self::DeviceOffline => f.write_str("the device has no session"),
            Self::ClockOff { seconds } => {
                let direction = if *seconds < 0 { "ahead of" } else { "behind" };
                write!(f, "the device's clock is {} s {direction} the gateway's: it takes no orders", seconds.unsigned_abs())
            }
            Self::DeviceProblem { code } => write!(f, "the device reports {code:?}"),
            Self::CheckFailed { at } => write!(
                f,
                "a check failed after it at {at}, and it stays; a decision Reprocess with a later failedBefore says that somebody has \
                 seen to it"
            ),
            Self::RolledBack { at } => write!(
                f,
                "brought back at {at}, because a check failed with it; a decision Reprocess with a later failedBefore tries \
                 it again"
            ),
            Self::RetriesExhausted { attempts } => write!(f, "failed {attempts} times; not tried again"),
            Self::UpdateStopped { since } => write!(
                f,
                "stopped everywhere at {since}, because it failed on at least 3 devices, or they were not heard of again; a decision Reprocess with a \
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
            Self::OthersFirst => f.write_str("another order of the device comes first"),
            Self::Settling { until } => write!(
                f,
                "another PatchPolicy or ApprovalGroup had the device until a moment ago; the present ones act from {until}"
            ),
            Self::OnBattery => f.write_str(
                "no window for it is open, and outside of them it is only installed on mains power, which the device does not \
                 say it is on",
            ),
            Self::OnHold => {
                f.write_str("the API server refused to write for this device; tried again in half a minute")
            }
            Self::RetryBackoff { until } => write!(f, "failed; tried again from {until}"),
            Self::WindowClosed { opens } => write!(f, "no window for it is open; {}", opening(opens)),
            Self::Frozen { window, exclusion, opens } => {
                write!(f, "exclusion {exclusion} keeps MaintenanceWindow/{window} closed; {}", opening(opens))
            }
            Self::FreezeAhead { window, exclusion, opens } => {
                let again = opens.map_or_else(|| "never again".to_owned(), |at| format!("again from {at}"));
                write!(
                    f,
                    "exclusion {exclusion} of MaintenanceWindow/{window} begins too soon for it to end before; {again}"
                )
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
            Self::RestartTooLate { opens } => write!(f, "no window is open for a restart; {}", opening(opens)),
            Self::Stays { update } => write!(f, "no decision says any more to take {update} back"),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtWork => "an install is at work on it, or begins now",
            Self::Offline => "no session",
            Self::MayBeAtWork => "since a restore nobody knows what is at work on it",
            Self::Unwell => "an update has failed on it, it has a problem, or its report is not believed",
            Self::WaitsForRestart => "waits for a restart",
        })
    }
}
