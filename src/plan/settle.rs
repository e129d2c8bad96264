//! A device that loses its policy or its group waits before another one acts on it.
//!
//! In: which policy and group a device had when it was last planned, as it was written down, and which it has now. Out: since
//! when it has the present ones, if there is anything to wait for, to be written down with them.
//!
//! ```text
//! (p, g) ----deleted----> (none, g) ----again within the time----> (p, g)      nothing to wait for: it is what it was
//!    \\----------------> (q, g)  waits for q's `settle`                         q acts then
//! ```
//!
//! - A device that had none, or lacked one, has lost nothing and waits for nothing.
//! - What had not settled yet has never acted; with what was before it, it is as if nothing had happened. Where it cannot be
//!   told any more whether it had, because its policy is gone and with it the time to wait, nothing can be returned to.

use jiff::{SignedDuration, Timestamp};

use super::model::{Device, Moved, Name, Pair};
use super::window::later;

/// How long a device waits where no policy says otherwise.
pub const DEFAULT_SETTLE: SignedDuration = SignedDuration::from_mins(10);

/// The longest that a policy may ask for.
pub const MAX_SETTLE: SignedDuration = SignedDuration::from_hours(24);

impl Pair {
    /// Whether whoever had this and has `other` now has lost anything.
    fn loses(&self, other: &Self) -> bool {
        (self.policy.is_some() && self.policy != other.policy) || (self.group.is_some() && self.group != other.group)
    }
}

/// What is to be written down of a device that has the policy and group `present` now. `settle_of` says how long a policy has devices wait; none
/// if it is not there or cannot be read.
pub(super) fn moved(
    device: &Device,
    present: (Option<&Name>, Option<&Name>),
    settle_of: impl Fn(&str) -> Option<SignedDuration>,
    now: Timestamp,
) -> Option<Box<Moved>> {
    if (device.last_policy.as_ref(), device.last_group.as_ref()) == present {
        return device.moved.clone();
    }
    let present = Pair { policy: present.0.cloned(), group: present.1.cloned() };
    let last = || Pair { policy: device.last_policy.clone(), group: device.last_group.clone() };
    let before = match &device.moved {
        None => Some(last()),
        Some(moved) => {
            let policy = device.last_policy.as_deref();
            let settle = policy.map_or(Some(DEFAULT_SETTLE), settle_of);
            let has_settled = now >= later(moved.since, settle.unwrap_or(MAX_SETTLE));
            match settle {
                _ if has_settled => Some(last()),
                Some(_) => moved.before.clone(),
                None => None,
            }
        }
    };
    let has_lost = before.as_ref().is_none_or(|before| before.loses(&present));
    has_lost.then(|| Box::new(Moved { since: next_second(now), before }))
}

/// What is written down has whole seconds, as everything in Kubernetes; nobody waits for less than is asked for.
fn next_second(now: Timestamp) -> Timestamp {
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    if whole < now { later(whole, SignedDuration::from_secs(1)) } else { now }
}
