//! Devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::order::{RESTART, Sequence, Verb};
use patchwarden_protocol::report::{Classification, Power, ProblemCode, Severity, Tristate};

use crate::window::later;

use super::{DeviceType, IdNumber, Invalid, Labels, Measured, Name, UpdateId};

/// A device.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: Name,
    /// Labels.
    pub labels: Labels,
    /// Type.
    pub device_type: DeviceType,
    /// Its own time zone: absent, or a name that could not be understood.
    pub zone: Option<Result<TimeZone, Invalid>>,
    /// Suspended by its spec.
    pub suspended: bool,
    /// Out of use.
    pub retired: bool,
    /// What it says, if it is believed.
    pub report: Result<DeviceReport, NoReport>,
    /// The group that it was in when it was last planned.
    pub last_group: Option<Name>,
    /// The others that it may have been in then, or before that.
    pub last_possible: Box<[Name]>,
    /// Whether it has a session.
    pub online: bool,
    /// When `online` last changed.
    pub online_since: Option<Timestamp>,
    /// By how many seconds its clock is behind (negative: ahead), where that is more than orders allow.
    pub clock_off: Option<i32>,
    /// Whether the controller could not write for it a moment ago: it gets no turn for a while.
    pub on_hold: bool,
    /// The install that holds it.
    pub current: Option<Claim>,
    /// Updates that failed.
    pub failures: Vec<Failure>,
    /// Updates that its orders have installed of late, by the numbers of their ids, each once.
    pub installed: Vec<IdNumber>,
    /// The policy that it had when it was last planned.
    pub last_policy: Option<Name>,
    /// Since when it has `last_policy` and `last_group`, if it had others before.
    pub moved: Option<Box<Moved>>,
    /// Whether the specs had updates installed on it when it was last planned.
    pub eligible: bool,
    /// How long those of its last installs took that succeeded.
    pub measured: Vec<Measured>,
}

/// A device's policy and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The policy that governs it.
    pub policy: Option<Name>,
    /// Its effective group.
    pub group: Option<Name>,
}

/// A device has lost its policy or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Since when it has the present ones.
    pub since: Timestamp,
    /// The ones that last acted on it, if that is known: with them again there is nothing to wait for.
    pub before: Option<Pair>,
}

/// Why there is nothing to plan from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoReport {
    /// It was made before the epoch: what the device has done since is not known.
    BeforeEpoch {
        /// The epoch.
        epoch: u32,
    },
    /// The device has had orders of which its record knows nothing: that was set back.
    AheadOfRecord {
        /// The last one of the device's.
        told: Sequence,
        /// The last one of the record's.
        known: Sequence,
    },
    /// Several machines use its key: which of them has made it is not known. In a person's words.
    DuplicateIdentity(String),
    /// Nothing came yet.
    None,
    /// Its key is not accepted.
    KeyNotAccepted,
    /// What came is not believed (a signature that does not verify, a counter that went back).
    Refused(String),
}

impl NoReport {
    /// Whether an install may be at work that nobody has a record of.
    pub fn hides_installs(&self) -> bool {
        match self {
            Self::BeforeEpoch { .. } | Self::AheadOfRecord { .. } => true,
            // The one order that there may be is the claim's.
            Self::DuplicateIdentity(_) | Self::None | Self::KeyNotAccepted | Self::Refused(_) => false,
        }
    }
}

/// The part of a report that decisions use.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// The operating system.
    pub os: Arc<Os>,
    /// Updates offered.
    pub offers: Vec<Offer>,
    /// Updates that are installed and can be taken back.
    pub removable: Vec<UpdateId>,
    /// Whether the list was cut.
    pub truncated: bool,
    /// Whether it waits for a restart.
    pub restart_required: Tristate,
    /// The place of [`Update::restart`] in the catalogue, if it waits for one.
    pub restart: Option<UpdateId>,
    /// What is wrong with it.
    pub problems: Vec<ProblemCode>,
    /// What it runs on.
    pub power: Power,
    /// What it knows its policy to say of applications, by the names of their packages: what its offers were made by.
    pub applications: BTreeMap<Name, Ensure>,
}

/// An operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Os {
    /// `linux`, `windows` or `macos`.
    pub family: Name,
    /// `debian`.
    pub name: Name,
    /// `12.11`.
    pub version: Name,
    /// `amd64`.
    pub arch: Name,
    /// Release of the running kernel.
    pub kernel: Name,
}

/// An update as one device offers it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which.
    pub update: UpdateId,
    /// Held back by the device itself.
    pub held: bool,
    /// All its files lie on the device.
    pub downloaded: bool,
    /// Whether installing it needs a restart.
    pub requires_restart: Tristate,
    /// Whether installing it interrupts a service.
    pub interrupts_service: Tristate,
    /// When this device first offered this very update.
    pub first_seen: Timestamp,
    /// When this device first lacked any version of the same package, without a time since in which it lacked none.
    pub missing_since: Timestamp,
    /// The version that is installed, as the package manager writes it.
    pub installed: Option<Name>,
}

/// An update: what is the same on every device that offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Update {
    /// Id.
    pub id: Name,
    /// Kind.
    pub classification: Classification,
    /// Severity.
    pub severity: Severity,
    /// Names of its binary packages.
    pub packages: Vec<Name>,
    /// Vulnerabilities that it fixes.
    pub cves: Vec<Name>,
    /// When the vendor published it.
    pub published: Option<Timestamp>,
}

impl Update {
    /// What stands in the place of an update where a device waits for a restart.
    pub fn restart() -> Self {
        Self::by_id(RESTART.into())
    }

    /// What is known of an update of which there is nothing but its id.
    pub fn by_id(id: Name) -> Self {
        Self {
            id,
            classification: Classification::Unclassified,
            severity: Severity::Unknown,
            packages: vec![],
            cves: vec![],
            published: None,
        }
    }
}

/// The install that holds a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its place in the device's life.
    pub sequence: Sequence,
    /// The policy whose place it takes.
    pub policy: Name,
    /// What it does.
    pub verb: Verb,
    /// Ids of what it does that to.
    pub updates: Vec<Name>,
    /// Whether the device has a grant.
    pub granted: bool,
    /// The order cannot be started after this.
    pub not_after: Timestamp,
    /// How long it may run once started.
    pub limit: SignedDuration,
    /// How much longer it holds the device, for restarts after it.
    pub restart: SignedDuration,
    /// How long it was expected to run: so much of its window must be left where it starts.
    pub expected: SignedDuration,
}

impl Claim {
    /// When it no longer holds the device though no result came: the order can neither be started nor, if it was granted, still be at
    /// work, its restarts and a way back included, clocks being off by as much as an agent tolerates.
    pub fn expires(&self) -> Timestamp {
        let skew = SignedDuration::from_secs(MAX_CLOCK_SKEW_SECONDS);
        let working = if self.granted { self.limit.saturating_add(self.restart) } else { SignedDuration::ZERO };
        later(self.not_after, working.saturating_add(skew))
    }
}

/// An update that failed on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Id.
    pub update: Name,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed last.
    pub last: Timestamp,
    /// When it was last ordered in vain, also by an order that was no attempt: what waits before it is tried again waits from then.
    pub again: Timestamp,
    /// Whose fault it was.
    pub cause: Cause,
}

impl Failure {
    /// Whether it says anything of the update, or of the device.
    pub fn tells(&self) -> bool {
        self.attempts > 0 && self.cause != Cause::Passing
    }
}

/// Why an update failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The update's own fault.
    Update,
    /// Likewise, and what its order did stays: a check failed after it. The place in the catalogue of what is known of it without an offer.
    Check(UpdateId),
    /// Likewise, and the device was brought back to what it had before.
    RolledBack,
    /// The order's or the device's.
    Other,
    /// It could not even be tried: there was nothing to download it from, no room, or another program had the lock. Such a failure says
    /// nothing of the update, and is tried again without end.
    Passing,
}

impl Cause {
    /// Whether it would fail in the same way on other devices.
    pub fn is_of_the_update(self) -> bool {
        match self {
            Self::Update | Self::Check(_) | Self::RolledBack => true,
            Self::Other | Self::Passing => false,
        }
    }
}
