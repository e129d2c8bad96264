//! The decision core: whether, when and how many.
//!
//! Pure: no kube, no tokio, no clock, no logging, no randomness, no order of a hash. A [`Snapshot`] of one client's
//! namespace and an instant go in, a [`Plan`] comes out, and the same input always gives the same output. [`plan`] is
//! total: it cannot fail, and every refusal is a typed [`Blocked`]. A [`Planner`] keeps such a plan and plans again only what a
//! change can affect: it is what [`plan`] is made of, too.
//!
//! ```text
//! Snapshot --+-- planner:  what must be planned again, and everything below in its order   (ahead: the same at later instants)
//!            +-- roster:   numbers for devices
//!            +-- select:   which policy and which group a device has
//!            +-- approval: what the group says of each update        (decisions, then rules, up the parents, the default)
//!            +-- profiles: which rules' conditions hold for an update
//!            +-- rulings:  the two above, each different question asked once
//!            +-- sightings: since when the client knows an update    (what ages does so from then on)
//!            +-- window:   when a window is open, and when it is next       (cron: the expressions in it)
//!            +-- settle:   since when a device has its policy and group   (another one waits before it acts)
//!            +-- policy:   a policy with its windows, and whether they let an install start
//!            +-- catch_up: whether a workstation may do without a window
//!            +-- durations: how long an install is expected to take   (what was measured)
//!            +-- fit:      what fits into what is left of the windows
//!            +-- gates:    what blocks what is approved              (an ordered list; the first refusal wins)
//!            +-- rings:    how far each update has come              (course: stages and soak times; stops; view; moves)
//!            +-- deadlines: until when updates must be installed
//!            +-- device:   all of that for one device, and whether it complies    (looked, memory, surroundings)
//!            +-- overlaps: which policies select the same devices             (names: which devices they name that are not there)
//!            +-- blast:    what a change of the specs makes eligible     (too much of it waits for a person)
//!            +-- summary:  what that comes to for a policy, a group, a window
//!            +-- rollout:  whose turn it is                          (concurrency, the ledger of disruption)
//!            +-- forecast: who will miss a deadline
//!            `-- look:     when the clock alone changes the answer                          --> Plan
//! ```
//!
//! Retired devices keep their part of the plan and count in no policy or group.

#![deny(clippy::disallowed_methods)] // clippy.toml: whatever reads a clock

pub mod approval;
mod bits;
mod blast;
mod blocked;
mod catalogue;
mod catch_up;
pub mod cron;
pub mod deadlines;
mod device;
pub mod durations;
pub mod expression;
mod fit;
mod forecast;
mod gates;
mod labels;
mod look;
pub mod model;
mod moves;
mod names;
mod native;
pub mod outcome;
mod overlaps;
pub mod package;
mod planner;
mod policy;
mod profiles;
mod published;
mod rings;
mod rollout;
mod roster;
mod rulings;
mod select;
mod settle;
mod sightings;
mod summary;
pub mod window;
mod words;

pub use blast::AT_LEAST as BLAST_LIMIT_AT_LEAST;
pub use gates::{LONGEST_BACKOFF, STALE_AFTER};
pub use model::Snapshot;
pub use outcome::{Blocked, Plan};
pub use planner::Planner;
pub use settle::{DEFAULT_SETTLE, MAX_SETTLE};

use std::borrow::Cow;

use jiff::Timestamp;

use model::{Device, Name, Policy};
use outcome::Foresight;

/// Decides what is approved, for which devices, when and how many at a time, as of `now`.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut planner = planner_of(snapshot, now);
    planner.plan(now);
    planner.into_plan()
}

/// The same, and what can be foreseen of all devices, or of the one that is named.
pub fn foresee(snapshot: &Snapshot, only: Option<&str>, now: Timestamp) -> Foresight {
    let mut planner = planner_of(snapshot, now);
    planner.plan(now);
    planner.into_foresight(only, now)
}

/// The ring of a policy that has a device, should it govern it; none for the rest of the devices.
pub fn ring_of(policy: &Policy, device: &Device) -> Option<Name> {
    let rollout = &policy.settings.as_ref().ok()?.rollout;
    rollout.rings.get(rings::ring_of(rollout, &policy.name, device)).map(|ring| ring.name.clone())
}

/// Whether `device` may begin now, as [`Planner::may_act`] answers it.
pub fn may_act(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    planner_of(snapshot, now).may_act(device, now)
}

/// Whether `device` may restart now, as [`Planner::may_restart`] answers it.
pub fn may_restart(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    planner_of(snapshot, now).may_restart(device, now)
}

fn planner_of(snapshot: &Snapshot, now: Timestamp) -> Planner<'_, &Device> {
    Planner::new(snapshot.specs(), Cow::Borrowed(&snapshot.updates), &snapshot.devices, now)
}
