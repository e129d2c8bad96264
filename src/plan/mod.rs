//! The decision core: whether, when and how many.
//!
//! Pure: no kube, no tokio, no clock, no logging, no randomness, no order of a hash. A [`Snapshot`] of one client's
//! namespace and an instant go in, a [`Plan`] comes out, and the same input always gives the same output. [`plan`] is
//! total: it cannot fail, and every refusal is a typed [`Blocked`].
//!
//! ```text
//! Snapshot --+-- select:   which policy and which group a device has
//!            +-- approval: what the group says of each update        (decisions, then rules, up the parents, the default)
//!            +-- sightings: since when the client knows an update    (what ages does so from then on)
//!            +-- window:   when a window is open, and when it is next
//!            +-- policy:   a policy with its windows, and whether they let an install start
//!            +-- gates:    what blocks what is approved              (an ordered list; the first refusal wins)
//!            +-- device:   all of that for one device, and whether it complies
//!            +-- summary:  what that comes to for a policy, a group, a window
//!            +-- rollout:  whose turn it is                          (concurrency)
//!            `-- look:     when the clock alone changes the answer                          --> Plan
//! ```
//!
//! Retired devices keep their part of the plan and count in no policy or group.

#![deny(clippy::disallowed_methods)] // clippy.toml: whatever reads a clock

pub mod approval;
mod blocked;
mod catalogue;
mod device;
pub mod expression;
mod gates;
mod grant;
mod look;
pub mod model;
pub mod outcome;
pub mod package;
mod policy;
mod rollout;
mod select;
mod sightings;
mod summary;
pub mod window;

pub use gates::STALE_AFTER;
pub use grant::may_act;
pub use model::Snapshot;
pub use outcome::{Blocked, Plan};

use jiff::Timestamp;

use device::Examiner;
use look::Look;
use model::Device;
use outcome::DevicePlan;
use summary::Tally;

/// Decides what is approved, for which devices, when and how many at a time, as of `now`.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut look = Look::after(now);
    let mut examiner = Examiner::new(snapshot, now);
    let mut devices: Vec<&Device> = snapshot.devices.iter().collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    let mut devices: Vec<(&Device, DevicePlan)> =
        devices.into_iter().map(|device| (device, examiner.examine(device, &mut look))).collect();
    let tally = Tally::of(&devices);
    rollout::give_turns(&mut devices, examiner.governors(), &tally);
    Plan {
        policies: summary::policies(examiner.governors(), &tally, now),
        groups: summary::groups(&examiner, &tally),
        windows: summary::windows(&snapshot.windows, now, &mut look),
        next_look: look.next(),
        devices: devices.into_iter().map(|(_, plan)| plan).collect(),
    }
}
