//! Policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::order::{Dependencies, RestartWhen};
use patchwarden_protocol::report::Classification;

use super::{Deadlines, DeviceType, Durations, Glob, Invalid, Name, Selector};

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Name.
    pub name: Name,
    /// Devices by labels.
    pub selector: Selector,
    /// Devices by type; empty for all.
    pub types: Vec<DeviceType>,
    /// Devices by effective group; empty for all.
    pub groups: Vec<Name>,
    /// Never devices of these effective groups, nor what may be one.
    pub exclude_groups: Vec<Name>,
    /// Never these devices.
    pub exclude: Vec<Name>,
    /// The highest wins.
    pub priority: i32,
    /// How many devices of one service may be unavailable at a time: also where the rest could not be read.
    pub disruption: Option<Disruption>,
    /// The rest, if it could be read.
    pub settings: Result<Settings, Invalid>,
    /// How far its updates have come.
    pub progress: Arc<Progress>,
    /// Digests of its spec.
    pub specs: SpecDigests,
}

/// Digests of a policy's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecDigests {
    /// Of what says which devices it governs: another policy's devices depend on that, too.
    pub selection: Name,
    /// Of what else decides whether updates are installed on them.
    pub rest: Name,
}

/// What a policy says of the devices that it governs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done.
    pub mode: Mode,
    /// Approved updates that it leaves out.
    pub filters: Filters,
    /// Suspended by its spec.
    pub suspended: bool,
    /// Names of windows.
    pub windows: Vec<Name>,
    /// Which devices come first, and how many at a time.
    pub rollout: Rollout,
    /// What the package manager may do beyond the updates.
    pub dependencies: Dependencies,
    /// When and how devices are restarted.
    pub restart: Restart,
    /// How long one install may take.
    pub install_limit: SignedDuration,
    /// How often a failed update is tried again.
    pub retry_limit: u32,
    /// Until when updates must be installed.
    pub deadlines: Deadlines,
    /// Time before the first retry, doubled for each later one.
    pub retry_backoff: SignedDuration,
    /// Whether workstations catch up outside the windows.
    pub catch_up: Option<CatchUp>,
    /// How long a device that had another policy or group waits before this one acts on it.
    pub settle: SignedDuration,
    /// A change of the specs that makes more devices newly eligible than this waits for a person; of a percentage at least
    /// ten.
    pub blast_limit: Amount,
    /// Digest of specs that a person has confirmed.
    pub confirm: Option<Name>,
    /// What it says of applications, by the names of their packages.
    pub applications: BTreeMap<Name, Ensure>,
}

/// How workstations catch up outside the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Once they have lacked an update for so long.
    pub after: SignedDuration,
    /// Only on mains power.
    pub require_mains: bool,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only reports.
    Audit,
    /// Downloads: in the windows if there are any, else at any time.
    DownloadOnly,
    /// Installs in the windows.
    Install,
    /// Installs at any time what needs no restart and interrupts no service, freezes aside; the rest in the windows.
    InstallImmediately,
}

/// When and how devices are restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// Whether.
    pub when: RestartWhen,
    /// Only so long after the start of the install; later it is left to the next window.
    pub within: SignedDuration,
    /// How long before it users are warned.
    pub warning: SignedDuration,
    /// What they are told.
    pub message: String,
    /// At most so many in a row.
    pub limit: u32,
    /// Whether services are that still run what was replaced.
    pub services: bool,
}

/// Approved updates that a policy leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Those that are known to need a restart.
    pub skip_restart: bool,
    /// Those of other kinds; empty for none.
    pub classifications: Vec<Classification>,
    /// Those with a package that matches one of these.
    pub exclude_packages: Vec<Glob>,
}

/// Some of a number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// Percent of them.
    Percent(u32),
}

impl Amount {
    /// Of `devices`: a percentage is rounded down.
    pub fn of(self, devices: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => u32::try_from(u64::from(devices) * u64::from(percent) / 100).unwrap_or(u32::MAX),
        }
    }
}

/// Which devices come first, and how many at a time.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Devices that may be installing at a time; of a percentage at least one.
    pub max_concurrent: Amount,
    /// The stages before the rest of the devices. Each update goes through them on its own record.
    pub rings: Vec<Ring>,
    /// The rollout pauses once more than so many of the policy's devices have failed.
    pub failure_budget: Option<Amount>,
    /// Failures and a pause before this do not count any more: somebody has looked.
    pub resumed: Option<Timestamp>,
}

/// A stage of a rollout.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Name.
    pub name: Name,
    /// Which devices; of several rings that a device fits in the first has it.
    pub members: RingMembers,
    /// How long after its minimum was reached an update waits before the next ring gets it.
    pub soak: SignedDuration,
    /// On at least so many of its devices the update must have been installed.
    pub min_successes: u32,
    /// Of its devices that tried, at least so many percent must have installed it.
    pub min_success_percent: u32,
    /// What holds for an update that none of its devices needs.
    pub when_empty: WhenEmpty,
}

/// Which devices are in a ring.
#[derive(Clone, Debug)]
pub enum RingMembers {
    /// Those with such labels.
    Selector(Selector),
    /// So many percent of the policy's devices, always the same ones.
    Percent(u32),
}

/// What a ring without a device that needs an update does to that update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    /// It waits until a device has proved it.
    Wait,
    /// The next ring gets it after the soak time.
    Promote,
}

/// How many devices of one service may be unavailable at a time. One ledger for all policies of a client: the strictest
/// that governs a device of the service counts, whoever patches the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disruption {
    /// Devices with the same value of this label are one service.
    pub label: String,
    /// So many at a time; of a percentage at least one.
    pub max_unavailable: Amount,
    /// Which of them come first.
    pub order: Option<TurnOrder>,
    /// A device that waits for a restart, has failed or has a problem counts as unavailable.
    pub healthy_peers: bool,
}

/// Which devices of a service come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnOrder {
    /// The label that tells.
    pub label: String,
    /// Its values, first come first; devices with another value come last.
    pub values: Vec<String>,
}

/// How far a policy's updates have come: what was written down, so that nothing is forgotten and nothing goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By the updates' ids.
    pub updates: BTreeMap<Name, UpdateProgress>,
    /// Since when the rollout is paused.
    pub paused: Option<Timestamp>,
    /// Which specs are in force for its devices.
    pub blast: Blast,
    /// How long its updates took.
    pub durations: Durations,
}

/// Which specs are in force for a policy's devices: its own and those of all groups and windows of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blast {
    /// In force; none for a policy that is new.
    pub accepted: Option<Accepted>,
    /// They make too many devices eligible: a person must confirm them.
    pub pending: Option<Pending>,
}

/// Specs that are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Their digest.
    pub specs: Name,
    /// Since when.
    pub since: Timestamp,
    /// How many devices they, and others not long before them, made eligible without anybody's confirmation.
    pub devices: u32,
}

/// Specs that wait for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Their digest.
    pub specs: Name,
    /// Since when specs wait: the first of several that came one after another.
    pub since: Timestamp,
    /// How many devices they make eligible, the most that there were.
    pub devices: u32,
}

/// How far an update has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateProgress {
    /// The last ring that has it; none: the rest of the devices have it, too.
    pub ring: Option<Name>,
    /// Since when.
    pub opened: Timestamp,
    /// When that ring reached its minimum, or had no device that needs the update, if that still holds.
    pub reached: Option<Timestamp>,
    /// When it was stopped, everywhere, because it failed on several devices.
    pub stopped: Option<Timestamp>,
    /// On how many devices of that ring it is known to have been installed: the most that told so at a time since it was
    /// opened, whatever has become of them.
    pub installed: u32,
    /// The same of all devices of the client, once it has failed on any of the policy's: as much as stands as many failures as
    /// that number does, and 0 below what stands any.
    pub anywhere: u32,
    /// Devices of the policy on which it failed by its own fault, in order: those on which it still counts as failed, and those that have
    /// gone since. No more than [`FAILED_ON`](crate::rings::FAILED_ON).
    pub failed: Vec<FailedOn>,
}

/// A device on which an update failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FailedOn {
    /// Its name.
    pub device: Name,
    /// When it failed last.
    pub last: Timestamp,
    /// The ring that it was in; none in the rest, or without rings.
    pub ring: Option<Name>,
}
