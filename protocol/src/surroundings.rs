//! What else has a say in a device's updates: its operating system's own updater, and a server that decides what is offered.
//!
//! Both are told in the report, to a gateway that knows these fields ([`REPORT_VERSION`]); nothing is decided by them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which fields of a report and a software list a gateway knows, as its Welcome says: 1 since `osUpdater` and `upstream`, 2 since
/// `sourceInstalled` and `sourceVersion`, 3 since the kinds of updates `FirstInstall` and `Removal`, 4 since a result's `phases`, 5 since
/// `heldReason`, `unauthenticated` and `outdatedServices`. A gateway refuses a report or a result with a field that it does not know, since
/// it could not show what was signed.
pub const REPORT_VERSION: u32 = 5;

/// Longest name of an upstream, in characters.
pub const MAX_UPSTREAM: usize = 200;

/// At most so many updaters, each of [`MAX_UPDATER`] characters at most.
pub const MAX_UPDATERS: usize = 8;

/// See [`MAX_UPDATERS`].
pub const MAX_UPDATER: usize = 63;

/// Longest message on the updater, in characters.
pub const MAX_UPDATER_MESSAGE: usize = 300;

/// Whether the operating system's own updater is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum UpdaterState {
    /// It does what it is set up to do, as far as this agent is concerned.
    Left,
    /// All of it that the agent knows is switched off.
    Off,
    /// It is not as it was to be: the message says why.
    Partly,
}

/// By whose choice it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum UpdaterChoice {
    /// Nobody has said anything: it is left to itself.
    Nobody,
    /// The policy's, by signed settings.
    Policy,
    /// Of the device's owner, in `agent.toml`.
    Owner,
    /// Of the device's owner, in `limits.toml`.
    Limits,
    /// It was given back: the gateway was not heard of for 30 days.
    NoContact,
    /// The agent cannot switch off this system's updater.
    Unsupported,
}

/// The operating system's own updater on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpdaterReport {
    /// How it is.
    pub state: UpdaterState,
    /// By whose choice.
    pub by: UpdaterChoice,
    /// What is switched off: `apt`, or a service's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_UPDATERS), inner(length(max = MAX_UPDATER))))]
    pub updaters: Vec<String>,
    /// When the settings were issued that the device has, whether they are followed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Timestamp>,
    /// For people: what is not as it was to be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_UPDATER_MESSAGE)))]
    pub message: String,
}

/// What kind of upstream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum UpstreamKind {
    /// Windows Server Update Services.
    #[serde(rename = "WSUS")]
    Wsus,
    /// A distribution's archive as it was at a certain time.
    Snapshot,
    /// Red Hat Satellite or Katello, to which the device is subscribed.
    Satellite,
    /// SUSE Manager or Uyuni, whose channels the device has.
    #[serde(rename = "SUSEManager")]
    SuseManager,
    /// SUSE's Repository Mirroring Tool, at which the device is registered.
    #[serde(rename = "RMT")]
    Rmt,
}

/// Something other than the vendor that decides what is offered to a device. What it does not offer is not in the report, and the
/// agent never goes around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Upstream {
    /// What kind.
    pub kind: UpstreamKind,
    /// Its address or time, as the device's own configuration has it, without credentials.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_UPSTREAM)))]
    pub name: String,
    /// Some of the repositories come from elsewhere: what those offer it has not decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}
