//! What a device says of itself, signed by its key.
//!
//! A report has no clock in it and its `counter` moves only when something else in it does, so an unchanged machine
//! keeps the very same envelope and costs nobody a write.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Document;
use crate::order::{PackageChange, Sequence};
use crate::surroundings::{UpdaterReport, Upstream};

/// Why a report is refused that counts backwards: an old backup or a copy of the machine has made it. The device tells what it has done again,
/// and then a report with a counter of the present time.
pub const COUNTER_BACKWARDS: &str = "CounterBackwards";

/// Likewise, of one whose counter another report has.
pub const COUNTER_REUSED: &str = "CounterReused";

/// A device by name. The name is for people; what is believed is the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceRef {
    /// The client's namespace.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub namespace: String,
    /// Name of the DeviceInventory.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub name: String,
}

impl std::fmt::Display for DeviceRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// "Unknown" is a value of its own, never "no".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Tristate {
    /// It is so.
    Yes,
    /// It is not so.
    No,
    /// The system cannot tell.
    #[default]
    Unknown,
}

impl Tristate {
    /// Whether the system cannot tell.
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// What a machine runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Power {
    /// The mains, or a machine that has no battery.
    Mains,
    /// A battery.
    Battery,
    /// The system cannot tell.
    #[default]
    Unknown,
}

impl Power {
    /// Whether the system cannot tell.
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// Kind of an update, as the vendor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Classification {
    /// From a security suite or advisory.
    Security,
    /// A vendor's update that is not about security.
    Updates,
    /// The source of the packages does not say.
    Unclassified,
    /// No update of what is installed: a policy wants the application, and it is not there.
    FirstInstall,
    /// No update of what is installed: a policy does not want the application, and it is there.
    Removal,
}

/// Severity, as the vendor says. The order is from the least to the worst; `Unknown` is the least because it must not
/// pass a rule that asks for a severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Severity {
    /// The source of the packages does not say (apt never does).
    #[default]
    Unknown,
    /// Low.
    Low,
    /// Medium, or moderate.
    Medium,
    /// High, or important.
    High,
    /// Critical.
    Critical,
}

/// As what the device holds an update back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HeldReason {
    /// A hold, an exclude or a lock of the package manager, its owner's limits, or something else that the agent has no word for.
    #[default]
    Hold,
    /// A pin of the package in apt_preferences(5), without which apt would take the version.
    Pinned,
    /// The version is being phased (`Phased-Update-Percentage`), and it is not this machine's turn yet.
    Phased,
    /// Its packages come from a repository that no signature vouches for, and the package manager does not install them.
    Unauthenticated,
}

impl HeldReason {
    /// Whether there is nothing more to say than that it is held.
    pub fn is_hold(&self) -> bool {
        *self == Self::Hold
    }
}

/// One change offered on the device: a source package in a new version, with every binary of it that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Update {
    /// The vendor's advisory, or the package URL of the source package in its new version
    /// (`pkg:deb/debian/openssl@3.0.17-1~deb12u3`).
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_ID)))]
    pub id: String,
    /// One line for people.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_TITLE)))]
    pub title: String,
    /// Kind of the update.
    pub classification: Classification,
    /// Severity.
    pub severity: Severity,
    /// CVE identifiers, where the source tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_CVES), inner(length(max = MAX_CVE))))]
    pub cves: Vec<String>,
    /// When the vendor published it, where the source tells (apt does not).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Timestamp>,
    /// Every installed binary package that changes, by name and architecture.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_PACKAGES)))]
    pub packages: Vec<PackageChange>,
    /// Version of the source package that the packages are of as they are installed, the oldest of several. Absent where each of them
    /// has its source's version as its own, before and after, where the package manager does not tell it, and where the gateway does
    /// not know the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = crate::order::MAX_VERSION)))]
    pub source_installed: Option<String>,
    /// Where the packages come from: origin and suite as the repository's signed Release file states them.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_ORIGIN)))]
    pub origin: String,
    /// Bytes to download.
    #[cfg_attr(feature = "schema", schemars(range(min = 0)))]
    pub size_bytes: u64,
    /// Whether installing it needs a restart.
    pub requires_restart: Tristate,
    /// Whether installing it interrupts a service: restarts one, or changes files that one may be using.
    #[serde(default, skip_serializing_if = "Tristate::is_unknown")]
    pub interrupts_service: Tristate,
    /// Digest over the sorted lines `name architecture version sha256` of the packages' files, as the repository's
    /// signed index states them. An order repeats it, so that it names exact files in few bytes.
    #[cfg_attr(feature = "schema", schemars(length(max = 71)))]
    pub artifacts_digest: String,
    /// Set when the device itself holds it back (`apt-mark hold`, a pin, dnf's excludes, its limits): reported and never forced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// As what; of an update that is not held, and to a gateway that does not know the field, nothing is told.
    #[serde(default, skip_serializing_if = "HeldReason::is_hold")]
    pub held_reason: HeldReason,
    /// No signature vouches for where its packages come from: the device's owner takes that repository without one, or it is held
    /// because of this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
    /// All its files lie on the device, verified: an install needs no network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downloaded: bool,
}

/// An update that an order has installed, that is still installed, and whose earlier packages are still offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Removable {
    /// The update's id.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub id: String,
    /// Every package that it changed: `installed` is the update's version, `candidate` the one to return to.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 128)))]
    pub packages: Vec<PackageChange>,
    /// Exact files of the versions to return to: see [`Update::artifacts_digest`].
    #[cfg_attr(feature = "schema", schemars(length(max = 71)))]
    pub artifacts_digest: String,
}

/// The operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OperatingSystem {
    /// `linux`, `windows` or `macos`.
    #[cfg_attr(feature = "schema", schemars(length(max = 20)))]
    pub family: String,
    /// `ID` of os-release(5): `debian`.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub name: String,
    /// `VERSION_ID` of os-release(5), or the point release where the system knows it: `12.11`.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub version: String,
    /// The package manager's architecture: `amd64`.
    #[cfg_attr(feature = "schema", schemars(length(max = 20)))]
    pub arch: String,
    /// Release of the running kernel.
    #[cfg_attr(feature = "schema", schemars(length(max = 128)))]
    pub kernel: String,
}

/// Whether the machine waits for a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restart {
    /// Whether one is needed.
    pub required: Tristate,
    /// Why: package names or the system's own words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16), inner(length(max = 128))))]
    pub reasons: Vec<String>,
}

/// Services of the system that still run what was replaced or removed under them: a library, or their own program. Until they are
/// restarted an update of it does nothing for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutdatedServices {
    /// How many.
    pub count: u32,
    /// Their units, the first by name, cut to [`MAX_SERVICES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_SERVICES), inner(length(max = MAX_SERVICE))))]
    pub names: Vec<String>,
    /// Not every process could be looked at: there may be more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Full counts, also when lists are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    /// Updates offered.
    pub updates: u32,
    /// Of these, security updates.
    pub security: u32,
    /// Packages installed.
    pub packages: u32,
}

/// What keeps a device from being trusted with orders or from telling the whole truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ProblemCode {
    /// The agent's journal cannot be read: it takes no orders until a person has looked.
    JournalCorrupt,
    /// Not every repository could be refreshed: updates may be missing from this report.
    RepositoryUnavailable,
    /// The package manager's own state needs repair (an interrupted dpkg, a package in two versions).
    PackageManagerBroken,
    /// The scan failed: the updates listed are those of the last good one.
    ScanFailed,
    /// No supported package manager.
    Unsupported,
    /// The device's own limits cannot be used: it takes no orders until a person has looked.
    LimitsInvalid,
    /// An update is over a limit of the report by itself, also without its CVEs, and is not in it: a person has to install it.
    UpdateTooLarge,
    /// The recipes for third-party applications cannot be used, or one of them: their updates may be missing from this report.
    RecipesRefused,
}

impl ProblemCode {
    /// Whether nothing may be installed while the problem lasts.
    pub fn blocks_installs(self) -> bool {
        match self {
            Self::JournalCorrupt
            | Self::PackageManagerBroken
            | Self::ScanFailed
            | Self::Unsupported
            | Self::LimitsInvalid => true,
            Self::RepositoryUnavailable | Self::UpdateTooLarge | Self::RecipesRefused => false,
        }
    }
}

impl ProblemCode {
    /// Whether a report with this problem may lack updates.
    pub fn hides_updates(self) -> bool {
        match self {
            Self::RepositoryUnavailable
            | Self::PackageManagerBroken
            | Self::ScanFailed
            | Self::Unsupported
            | Self::UpdateTooLarge
            | Self::RecipesRefused => true,
            Self::JournalCorrupt | Self::LimitsInvalid => false,
        }
    }
}

/// A problem in the device's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// Which.
    pub code: ProblemCode,
    /// For people.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_PROBLEM)))]
    pub message: String,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// The device that speaks. A report under another's name is refused.
    pub device: DeviceRef,
    /// Counts the distinct reports of this device: one that counts backwards is refused.
    pub counter: u64,
    /// The highest order that the device has accepted, ever: the next must be above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<Sequence>,
    /// The agent's version.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub agent_version: String,
    /// `/proc/sys/kernel/random/boot_id`: another value is the proof of a restart.
    #[cfg_attr(feature = "schema", schemars(length(max = 63)))]
    pub boot_id: String,
    /// When the machine started.
    pub boot_time: Timestamp,
    /// The operating system.
    pub os: OperatingSystem,
    /// Whether it waits for a restart.
    pub restart: Restart,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Power::is_unknown")]
    pub power: Power,
    /// Its own updater; absent where the gateway does not know the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_updater: Option<UpdaterReport>,
    /// What else than the vendor decides which updates it is offered; absent where nothing does, or the gateway does not know the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// Services that still run what was replaced; absent where the system does not tell, or the gateway does not know the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated_services: Option<OutdatedServices>,
    /// Updates offered, worst first, cut to [`MAX_UPDATES`] and [`MAX_UPDATES_BYTES`].
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub updates: Vec<Update>,
    /// Updates that can be taken back, the latest first, cut to [`MAX_REMOVABLE`] and [`MAX_REMOVABLE_BYTES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub removable: Vec<Removable>,
    /// Whether `updates` was cut: such a device is never compliant, and is patched in passes.
    pub truncated: bool,
    /// Full counts.
    pub counts: Counts,
    /// Digest of the full software list ([`Software`]), which goes to the store only.
    #[cfg_attr(feature = "schema", schemars(length(max = 71)))]
    pub software_digest: String,
    /// What is wrong, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_PROBLEMS)))]
    pub problems: Vec<Problem>,
}

impl Document for Report {
    const TYPE: &'static str = "application/vnd.patchwarden.report.v1+json";
}

/// Longest id of an update, in characters.
pub const MAX_ID: usize = 253;

/// Longest title of an update, in characters.
pub const MAX_TITLE: usize = 200;

/// Longest origin of an update, in characters.
pub const MAX_ORIGIN: usize = 200;

/// At most so many CVEs of one update, each of [`MAX_CVE`] characters at most.
pub const MAX_CVES: usize = 64;

/// See [`MAX_CVES`].
pub const MAX_CVE: usize = 20;

/// At most so many packages of one update.
pub const MAX_PACKAGES: usize = 128;

/// At most so many services, each of [`MAX_SERVICE`] characters at most.
pub const MAX_SERVICES: usize = 8;

/// See [`MAX_SERVICES`].
pub const MAX_SERVICE: usize = 64;

/// At most so many problems, each of [`MAX_PROBLEM`] characters at most.
pub const MAX_PROBLEMS: usize = 8;

/// See [`MAX_PROBLEMS`].
pub const MAX_PROBLEM: usize = 300;

/// At most so many updates in one report: with some 250 bytes each the report stays under 10 KB, whatever else is in it.
pub const MAX_UPDATES: usize = 24;

/// At most so many bytes of canonical JSON in `updates`, for the same reason.
pub const MAX_UPDATES_BYTES: usize = 5_500;

/// At most so many updates that can be taken back.
pub const MAX_REMOVABLE: usize = 8;

/// At most so many bytes of canonical JSON in `removable`: an administrator takes back what came last.
pub const MAX_REMOVABLE_BYTES: usize = 1_200;

/// Everything that is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// Sorted by name, then architecture.
    pub packages: Vec<Package>,
}

/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Binary package name.
    pub name: String,
    /// Architecture.
    pub arch: String,
    /// Installed version.
    pub version: String,
    /// Source package.
    pub source: String,
    /// Its version, where that is known. Older agents leave it out where it is the binary package's, so its absence says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_version: Option<String>,
}
