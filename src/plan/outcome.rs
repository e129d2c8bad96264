//! The planner's output.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Dependencies, RestartRule, RestartWhen, Verb};

pub use super::blocked::Blocked;
use super::model::{Moved, Name, Progress, Seen, UpdateId};
use super::window::{Span, later};

/// How many occurrences of a window are told ahead.
pub const UPCOMING: usize = 5;

/// How many of several objects are named.
pub const NAMED: usize = 3;

/// Of how many updates that a device tells of no more it is told that a check failed after them: as many as an order may have.
pub const CHECKED: usize = 24;

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

/// How many of the groups that a device may be in are written down with it, beside the one that it is said to be in.
pub const POSSIBLE_GROUPS: usize = 16;

/// What is decided for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Name.
    pub name: Name,
    /// The policy that governs it.
    pub policy: Option<Name>,
    /// Policies that select it too, and lost.
    pub shadowed_policies: Vec<Name>,
    /// Its effective group.
    pub group: Option<Name>,
    /// Groups that claim it too, and lost.
    pub shadowed_groups: Vec<Name>,
    /// Others of which it cannot be told whether it is in them: those that have it if `group` has not, and those that had it
    /// or may have had it before. Strongest first, at most [`POSSIBLE_GROUPS`]; to be written down.
    pub possible_groups: Box<[Name]>,
    /// Every update that it offers, in the report's order; then those that are to be taken back, then a restart that
    /// is due; then those that it tells of no more and after which a check failed, the latest [`CHECKED`] of them, the last one last.
    pub updates: Vec<UpdatePlan>,
    /// The install to start now.
    pub install: Option<Install>,
    /// Whether it complies.
    pub compliance: Compliance,
    /// Since when it has its policy and group, if it had others before; to be written down with them.
    pub moved: Option<Box<Moved>>,
    /// Whether the specs that are in force have updates installed on it, now or later; to be written down.
    pub eligible: bool,
    /// Until when what it lacks must be installed, as far as its policy says.
    pub due: Option<Due>,
}

/// Until when what a device lacks must be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The earliest deadline of what is approved and missing.
    pub at: Timestamp,
    /// Whether that is over.
    pub overdue: bool,
    /// What must be installed by then, in the report's order.
    pub updates: Vec<UpdateId>,
}

/// Whether a device complies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compliance {
    /// Nothing approved is missing, no restart is due.
    UpToDate,
    /// Approved updates are missing, and the deadlines of all of them are to come.
    WithinDeadline,
    /// Approved updates are missing, one of them without a deadline.
    UpdatesMissing,
    /// An approved update is missing, and its deadline is over.
    DeadlineMissed,
    /// Updates are installed that are to be taken back.
    RemovalDue,
    /// It waits for a restart.
    RestartRequired,
    /// Its report was cut: there is more than it says.
    Truncated,
    /// Not heard of for too long, not believed, or governed by no policy or group.
    Unknown,
}

impl Compliance {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::UpToDate,
        Self::WithinDeadline,
        Self::UpdatesMissing,
        Self::DeadlineMissed,
        Self::RemovalDue,
        Self::RestartRequired,
        Self::Truncated,
        Self::Unknown,
    ];

    /// Whether that is compliance.
    pub fn complies(self) -> bool {
        match self {
            Self::UpToDate | Self::WithinDeadline => true,
            Self::UpdatesMissing
            | Self::DeadlineMissed
            | Self::RemovalDue
            | Self::RestartRequired
            | Self::Truncated
            | Self::Unknown => false,
        }
    }
}

/// How many devices there are of each [`Compliance`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComplianceCounts([u32; Compliance::ALL.len()]);

impl ComplianceCounts {
    /// One more, or one less.
    pub fn change(&mut self, compliance: Compliance, adds: bool) {
        for (count, _) in self.0.iter_mut().zip(Compliance::ALL).filter(|(_, kind)| *kind == compliance) {
            *count = if adds { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }

    /// How many.
    pub fn of(&self, compliance: Compliance) -> u32 {
        self.0.iter().zip(Compliance::ALL).filter(|(_, kind)| *kind == compliance).map(|(count, _)| *count).sum()
    }

    /// How many comply.
    pub fn compliant(&self) -> u32 {
        self.0.iter().zip(Compliance::ALL).filter(|(_, kind)| kind.complies()).map(|(count, _)| *count).sum()
    }
}

/// Who will miss a deadline if things go on as they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Devices that will, or have already.
    pub missing: u32,
    /// Of so many that have one.
    pub of: u32,
    /// By this full hour all are done that can be; none if none can.
    pub done: Option<Timestamp>,
}

/// What is decided for one update on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdatePlan {
    /// Which.
    pub update: UpdateId,
    /// What would be done with it.
    pub verb: Verb,
    /// What is true of it.
    pub state: State,
    /// The same, but of a device that was not heard of for too long: what was true of it then.
    pub last_known: State,
    /// What approval says.
    pub decision: Decision,
    /// What decided.
    pub decided_by: Option<Arc<DecidedBy>>,
    /// Why it is not started now: the first gate that refused. Absent when it is part of the install to start.
    pub blocked: Option<Arc<Blocked>>,
    /// The first instant at which the clock alone could lift `blocked`.
    pub eligible_at: Option<Timestamp>,
}

impl UpdatePlan {
    /// Whether the device tells of it no more, and a check failed after it.
    pub fn is_checked(&self) -> bool {
        matches!(self.blocked.as_deref(), Some(Blocked::CheckFailed { .. }))
    }
}

/// A plan, and what follows from it and is no part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    /// The plan.
    pub plan: Plan,
    /// When each update may start, by the device's name, in the order of its plan.
    pub eligible: BTreeMap<Name, Vec<Eligible>>,
    /// Of the device that is named, by its name, if its service is at its limit: who is unavailable, by name, and why.
    pub absent: BTreeMap<Name, Vec<(Name, Absence)>>,
    /// Of the updates of the device that is named that a ring of its policy has to prove first, by their ids: why it has not.
    pub unproved: BTreeMap<Name, Unproved>,
}

/// Why a ring has not proved an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproved {
    /// On how many of its devices the update was installed, as far as that is written down.
    pub installed: u32,
    /// On how many it must be, ...
    pub needed: u32,
    /// ... and of those that tried it on so many of a hundred.
    pub percent: u32,
    /// Its devices that offer the update.
    pub offering: Vec<Name>,
    /// Its devices of which it cannot be told whether they need the update.
    pub silent: Vec<Name>,
}

/// Why a device counts as unavailable for its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It has an install, or begins one now.
    AtWork,
    /// It has no session.
    Offline,
    /// Since a restore nobody knows what is at work on it.
    MayBeAtWork,
    /// An update has failed on it, it has a problem, or it says nothing that is believed.
    Unwell,
    /// It waits for a restart.
    WaitsForRestart,
}

/// When an update may start, as far as that can be foreseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// At this instant at the earliest: until before it something blocks it, from it on nothing that can be foreseen does.
    From(Timestamp),
    /// Not known: no clock lifts what blocks it.
    Unknown {
        /// It does so from this instant on. Before it the clock lifts what does.
        from: Timestamp,
        /// What it is.
        why: Arc<Blocked>,
    },
}

/// What is true of an update on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not installed.
    Missing,
    /// Not installed, and all its files lie on the device.
    Downloaded,
    /// Installed, and to be taken back.
    Installed,
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
    /// In the place of an update: the device waits for a restart.
    RestartRequired,
    /// The device was not heard of for too long.
    Unknown,
}

impl Decision {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Approved, Self::Ignored, Self::Waived, Self::Aging, Self::AwaitingApproval, Self::Remove];
}

impl State {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Missing,
        Self::Downloaded,
        Self::Installed,
        Self::Pending,
        Self::Installing,
        Self::Failed,
        Self::Ignored,
        Self::Held,
        Self::RestartRequired,
        Self::Unknown,
    ];
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
    /// To be installed from a known time on.
    Aging,
    /// Nothing decides it.
    AwaitingApproval,
    /// Not to be on the device: to be taken back where it is installed.
    Remove,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// A decision of the group, by what it names.
    Decision {
        /// The group.
        group: Name,
        /// What it names: an id, a pattern, a CVE.
        update: Name,
    },
    /// A rule of the group.
    Rule {
        /// The group.
        group: Name,
        /// The rule.
        rule: Name,
    },
    /// The group's default.
    Default {
        /// The group.
        group: Name,
    },
    /// What the policy says of restarts.
    Restart {
        /// The policy.
        policy: Name,
        /// That.
        when: RestartWhen,
    },
}

impl std::fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Decision { group, update } => write!(f, "ApprovalGroup/{group} decision {update}"),
            Self::Rule { group, rule } => write!(f, "ApprovalGroup/{group} rule {rule}"),
            Self::Default { group } => write!(f, "ApprovalGroup/{group} default"),
            Self::Restart { policy, when } => write!(f, "PatchPolicy/{policy} restart {when:?}"),
        }
    }
}

/// A claimed order must be started within this time, and that of the checks and hooks before its actions. A device that goes offline in
/// between gives its place in the concurrency back soon after, and the agent acts on a decision that is minutes old at most.
const START_WITHIN: SignedDuration = SignedDuration::from_mins(15);

/// An install to start: or a download, or what takes updates back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// What is done.
    pub verb: Verb,
    /// Ids, in the report's order.
    pub updates: Vec<Name>,
    /// Since when each of them is known in the client, as what ages goes by it.
    pub since: Vec<Timestamp>,
    /// The policy in whose name.
    pub policy: Name,
    /// What the package manager may do beyond.
    pub dependencies: Dependencies,
    /// The last instant at which it may start, so that it ends in its window and before the cutoff.
    pub not_after: Timestamp,
    /// How long it may take.
    pub limit: SignedDuration,
    /// What follows it.
    pub restart: RestartRule,
    /// How long it is expected to take.
    pub expected: SignedDuration,
}

impl Install {
    /// The last instant at which an order that is made `now` may be started, if its checks and hooks take `guarded` at most: the grant
    /// that counts is asked for after these.
    pub fn start_by(&self, guarded: SignedDuration, now: Timestamp) -> Timestamp {
        self.not_after.min(later(now, START_WITHIN.saturating_add(guarded)))
    }
}

/// What is true of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPlan {
    /// Name.
    pub name: Name,
    /// Devices that it governs.
    pub devices: u32,
    /// Of these, compliant.
    pub compliant: u32,
    /// All of them by their compliance.
    pub states: ComplianceCounts,
    /// Of these, with a deadline that is over.
    pub overdue: u32,
    /// Who will miss a deadline; none where nobody has one.
    pub forecast: Option<Forecast>,
    /// Of these, held by an install.
    pub installing: u32,
    /// Of these, with a failed update, by what was last heard of them.
    pub failed: u32,
    /// Whether one of its windows is open (for UTC where the window is on the device's clock).
    pub open: bool,
    /// When the next window opens, if none is open.
    pub next_window: Option<Timestamp>,
    /// What a person must fix before anything is installed.
    pub stalled: Option<Arc<Blocked>>,
    /// It acts in windows, and none of its windows is open or opens again.
    pub never_opens: bool,
    /// The first ring that others wait for in vain.
    pub unprovable: Option<Unprovable>,
    /// The first window that groups give to updates of its devices alone, and that is not longer than its installs may take.
    pub too_short: Option<Name>,
    /// Groups that it names and that are not there, in order.
    pub missing_groups: Arc<[Name]>,
    /// Groups whose devices it leaves out and that are not there, in order.
    pub missing_excluded_groups: Arc<[Name]>,
    /// Devices that it leaves out by name and that are not there, by name.
    pub unknown_devices: Others,
    /// It limits how many devices of one service may be unavailable, by a label that none of its servers has, though it governs some.
    pub unlabelled: bool,
    /// Devices that other policies select as well, where that is worth a word.
    pub overlap: Option<Overlap>,
    /// Its rings in their order, then the rest; empty without rings.
    pub rings: Vec<RingPlan>,
    /// How far its updates have come, to be written down before anything follows from it.
    pub progress: Arc<Progress>,
}

/// Devices that a policy selects and other policies as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// With the same priority: only the names decide which policy has them.
    SamePriority {
        /// So many of them are its own.
        won: u32,
        /// So many are another's.
        lost: u32,
        /// The other policies, strongest first.
        others: Others,
    },
    /// With a higher priority: they have the devices.
    HigherPriority {
        /// How many.
        lost: u32,
        /// The other policies, strongest first.
        others: Others,
    },
}

/// Of several objects the first few, and how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// At most [`NAMED`].
    pub first: Vec<Name>,
    /// So many more.
    pub more: usize,
}

impl Others {
    /// Of so many names.
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n Name>, count: usize) -> Self {
        Self { first: names.take(NAMED).cloned().collect(), more: count.saturating_sub(NAMED) }
    }
}

/// What is true of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingPlan {
    /// Name; none for the rest of the devices.
    pub name: Option<Name>,
    /// Devices in it.
    pub devices: u32,
    /// Of these, compliant.
    pub compliant: u32,
}

/// A ring that can prove no update, however well all goes, as it has too few devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unprovable {
    /// Its place among the rings.
    pub place: usize,
    /// Its name.
    pub ring: Name,
    /// Devices in it.
    pub devices: u32,
    /// Those of them that were not heard of for too long.
    pub unknown: u32,
    /// On so many an update has to be installed.
    pub needs: u32,
    /// Devices in the rings after it and in the rest.
    pub waiting: u32,
}

/// What is true of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// Name.
    pub name: Name,
    /// Devices whose effective group it is.
    pub devices: u32,
    /// The same by their compliance.
    pub states: ComplianceCounts,
    /// Since when the updates that its devices offer are known in the client, and what was written down before.
    pub seen: Arc<[Seen]>,
    /// What could not be understood.
    pub invalid: Option<String>,
    /// What a person must fix.
    pub stalled: Option<Arc<Blocked>>,
    /// An expression that cannot be evaluated for something that is there.
    pub failed: Option<Failed>,
    /// Devices that belong to it by name and are not there, by name.
    pub unknown_devices: Others,
}

/// An expression that cannot be evaluated, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub expression: FailedExpression,
    /// Why.
    pub error: Name,
    /// The first device or the id of the first update of which it fails.
    pub example: Name,
    /// How many more there are.
    pub more: usize,
}

/// An expression of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailedExpression {
    /// The rule that says who its members are: it fails for devices that belong to the group neither by name nor by selector.
    Members,
    /// A rule's: it fails for updates that are offered, and of which nothing before it has decided.
    Rule {
        /// The group whose rule it is: itself, or one of the organisation's above it.
        group: Name,
        /// The rule.
        rule: Name,
    },
}

/// What is true of a window (for UTC where it is on the device's clock).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowPlan {
    /// Name.
    pub name: Name,
    /// When it closes, if it is open.
    pub open_until: Option<Timestamp>,
    /// The next occurrences, in order; at most [`UPCOMING`].
    pub upcoming: Vec<Span>,
    /// It is neither open nor opens again; where it is on the device's clock, on no clock that there is.
    pub never_opens: bool,
    /// What could not be understood.
    pub invalid: Option<String>,
}
