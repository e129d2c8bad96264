//! The order: the exact actions for one device that one Job carries.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::delegation::Delegation;
use crate::envelope::{Document, Envelope, Refused};
use crate::key::{Fingerprint, PublicKey};
use crate::report::DeviceRef;
use crate::safeguards::Safeguards;
use crate::site_cache::SiteCache;

/// Place of an order in the device's life. Epochs are raised by a person after a restore; numbers by one for each order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sequence {
    /// Epoch.
    pub epoch: u32,
    /// Number within the epoch, from 1.
    pub number: u32,
}

impl Sequence {
    /// Before the first order of an epoch: what a device that has followed into it reports.
    pub fn start_of(epoch: u32) -> Self {
        Self { epoch, number: 0 }
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, number: self.number.saturating_add(1) }
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// Longest name of a package, in characters.
pub const MAX_NAME: usize = 128;

/// Longest name of an architecture, in characters.
pub const MAX_ARCH: usize = 20;

/// Longest version of a package, in characters.
pub const MAX_VERSION: usize = 128;

/// One binary package going from one version to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackageChange {
    /// Binary package name.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = MAX_NAME)))]
    pub name: String,
    /// Architecture as the package manager states it (`amd64`, `all`).
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_ARCH)))]
    pub arch: String,
    /// Installed version; empty for an application that is not installed.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_VERSION)))]
    pub installed: String,
    /// Version to install; empty for an application that is to be removed.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_VERSION)))]
    pub candidate: String,
}

/// What to do. All actions of an order have the same verb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Verb {
    /// Bring every package of the update to its ordered version.
    #[default]
    Install,
    /// Fetch and verify the files of an update, for an order to come. Nothing on the device changes.
    Download,
    /// Take an installed update back: bring every package of it to its earlier version.
    Uninstall,
    /// Restart the device, by the order's [`RestartRule`], and nothing else: the order's only action, of the update
    /// [`RESTART`].
    Restart,
}

/// What stands in the place of an update where the device is to be restarted.
pub const RESTART: &str = "restart";

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub verb: Verb,
    /// The update's id.
    pub update: String,
    /// Exact packages and versions.
    pub packages: Vec<PackageChange>,
    /// Exact files, of the versions to install: see [`crate::report::Update::artifacts_digest`].
    pub artifacts_digest: String,
}

/// What the package manager may do beyond the actions, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Dependencies {
    /// Nothing.
    Strict,
    /// Install new packages that an ordered one needs; neither change nor remove another.
    #[default]
    AllowInstalls,
    /// Also bring others to later versions, and remove those that stand in the way of an ordered one: whether or not anybody has
    /// approved that. Never removed are kernels, boot loaders, the C library, the init system, package managers, and the agent. What was removed
    /// does not come back by itself, and an update that has removed or changed others has no way back.
    AllowAll,
}

/// Whether a device is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RestartWhen {
    /// Never.
    #[default]
    Never,
    /// After the actions, if the system requires it then.
    IfRequired,
    /// After every order that changed something.
    Always,
}

/// When and how the device, or its services, are restarted after the actions. Each restart of the device needs a grant of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartRule {
    /// Whether.
    pub when: RestartWhen,
    /// No restart begins after this: the end of the window.
    pub not_after: Timestamp,
    /// Nor so many seconds after the order's start: then it is left to a later order.
    pub within_seconds: u32,
    /// Logged-in users are warned so many seconds before.
    pub warning_seconds: u32,
    /// What they are told; empty for words of the agent's own.
    pub message: String,
    /// At most so many restarts in a row.
    pub limit: u32,
    /// Services that still run what was replaced are restarted, where the device itself is not. Only devices that tell of such services
    /// ([`crate::report::Report::outdated_services`]) are ordered to: an older agent refuses what it does not know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub services: bool,
}

/// Services are restarted for so many seconds at most, after the actions of an order and once more after a way back.
pub const SERVICES_SECONDS: u32 = 600;

impl RestartRule {
    /// No restart.
    pub fn never() -> Self {
        Self {
            when: RestartWhen::Never,
            not_after: Timestamp::UNIX_EPOCH,
            within_seconds: 0,
            warning_seconds: 0,
            message: String::new(),
            limit: 0,
            services: false,
        }
    }
}

/// The order. Fields are never optional and unknown ones are refused: an older agent must not half-understand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// The device by name.
    pub device: DeviceRef,
    /// The device by key: what counts.
    pub device_key: Fingerprint,
    /// Above every order that the device has accepted.
    pub sequence: Sequence,
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What more is allowed.
    pub dependencies: Dependencies,
    /// Digest of the report that this was planned from: the device refuses an order planned from another state.
    pub report_digest: String,
    /// Digest of the decisions that led to this (for the audit).
    pub decisions_digest: String,
    /// The policy in whose name it is given.
    pub policy: String,
    /// Not to be started before.
    pub not_before: Timestamp,
    /// Not to be started after.
    pub not_after: Timestamp,
    /// Seconds from its start after which the install counts as hung.
    pub limit_seconds: u32,
    /// What follows the actions.
    pub restart: RestartRule,
    /// What surrounds them.
    pub safeguards: Safeguards,
    /// Through what their files come.
    pub site_cache: Option<SiteCache>,
}

impl Document for Order {
    const TYPE: &'static str = "application/vnd.patchwarden.order.v1+json";
}

/// An order with the proof that its signer may give orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignedOrder {
    /// Signed by the order key.
    pub order: Envelope<Order>,
    /// Signed by the root.
    pub delegation: Envelope<Delegation>,
}

impl SignedOrder {
    /// The order, if the root delegated to its signer at `now`.
    pub fn open(&self, root: &PublicKey, now: Timestamp) -> Result<Order, Refused> {
        self.order.open(&crate::delegation::order_key(&self.delegation, root, now)?)
    }
}
