//! The decision core: whether, when and how many.
//!
//! Pure: no kube, no tokio, no clock, no logging, no randomness, no order of a hash. A [`Snapshot`] of one client's
//! namespace and an instant go in, a [`Plan`] comes out, and the same input always gives the same output. [`plan`] is
//! total: it cannot fail, and every refusal is a typed [`Blocked`].
//!
//! ```text
//! Snapshot --+-- select:   which policy and which group a device has
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
//!            +-- rings:    how far each update has come              (stages, soak times, stops, pauses)
//!            +-- deadlines: until when updates must be installed
//!            +-- device:   all of that for one device, and whether it complies    (looked, memory, surroundings)
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
mod grant;
mod labels;
mod look;
pub mod model;
mod native;
pub mod outcome;
pub mod package;
mod policy;
mod profiles;
mod rings;
mod rollout;
mod rulings;
mod select;
mod settle;
mod sightings;
mod summary;
pub mod window;
mod words;

pub use blast::AT_LEAST as BLAST_LIMIT_AT_LEAST;
pub use gates::STALE_AFTER;
pub use grant::{Grants, may_act, may_restart};
pub use model::Snapshot;
pub use outcome::{Blocked, Plan};
pub use settle::{DEFAULT_SETTLE, MAX_SETTLE};

use jiff::Timestamp;

use blast::Say;
use device::{Examiner, Governed};
use look::Look;
use model::Device;
use outcome::DevicePlan;
use rings::Place;
use summary::Tally;

/// Decides what is approved, for which devices, when and how many at a time, as of `now`.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut look = Look::after(now);
    let mut examiner = Examiner::new(snapshot, now);
    let governed: Vec<Governed<'_>> =
        (0..snapshot.devices.len()).filter_map(|position| examiner.governed(position)).collect();
    examiner.advance(&governed, &mut look);
    let planned = governed.into_iter().map(|governed| {
        let (device, group, place) = (governed.device(), governed.group(), governed.place());
        let (plan, says) = examiner.examine(governed, &mut look);
        Planned { device, group, place, plan, says }
    });
    let mut planned: Vec<Planned<'_>> = planned.collect();
    let tally = Tally::of(&planned, snapshot.policies.len(), snapshot.groups.len(), &snapshot.updates);
    let blasts = blast::hold(&mut planned, snapshot, examiner.governors(), &tally, now);
    rollout::give_turns(&mut planned, examiner.governors(), &tally, now);
    let mut policies = summary::policies(&mut examiner, &tally, now, &mut look);
    blast::note(&mut policies, examiner.governors(), blasts);
    Plan {
        policies,
        groups: summary::groups(&examiner, &tally),
        windows: summary::windows(&snapshot.windows, now, &mut look),
        next_look: look.next(),
        devices: planned.into_iter().map(|planned| planned.plan).collect(),
    }
}

/// A device, its places and what is planned for it.
struct Planned<'a> {
    device: &'a Device,
    /// The place of its group.
    group: Option<usize>,
    place: Option<Place>,
    plan: DevicePlan,
    /// What the specs say of it.
    says: Say,
}
