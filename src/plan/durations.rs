//! How long installs take: what was measured, and what is expected of the next one.
//!
//! In: installs that succeeded, with the seconds that the device took. Out, for each policy, the longest share of them per
//! update and per kind of update; and from that the time that an install is expected to take:
//!
//! ```text
//! 1 min + 1.5 x (for each update: its own longest share, else that of its kind), in whole minutes, never above the limit
//! ```
//!
//! - The share of an update is the install's time divided by the number of its updates.
//! - Where neither the update nor its kind was measured in the policy, and where the update failed on the device before,
//!   the whole limit is expected.
//! - What was written down only grows, and outlasts the devices that it was measured on.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::Classification;

use super::catalogue::Catalogue;
use super::model::Name;
use super::window::later;

/// How many updates of a policy are written down.
pub const FOLLOWED: usize = 256;

/// An install counts for so long after it was recorded. By then it is written down: a plan need not read all that was
/// ever installed.
const COUNTED_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What goes before and after the updates: simulation, refreshed lists, the report.
const FIXED_SECONDS: u64 = 60;

/// The longest that was measured in a policy, in seconds for one update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// By the updates' ids.
    pub updates: BTreeMap<Name, u32>,
    /// By their kinds.
    pub kinds: BTreeMap<Classification, u32>,
}

/// An install that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Ids of what it installed.
    pub updates: Vec<Name>,
    /// Their kinds, as far as they are known.
    pub kinds: Vec<Classification>,
    /// How long it took.
    pub seconds: u32,
    /// When that was recorded.
    pub at: Timestamp,
}

impl Measured {
    /// Whether it was measured of late.
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        later(self.at, COUNTED_FOR) > now
    }
}

impl Durations {
    /// Adds what was measured. Returns whether any of it took longer than what is known.
    pub(super) fn count(&mut self, measured: &Measured, is_offered: impl Fn(&Name) -> bool) -> bool {
        let number = u32::try_from(measured.updates.len()).unwrap_or(u32::MAX);
        if number == 0 {
            return false;
        }
        let share = measured.seconds.div_ceil(number);
        let mut is_new = false;
        for kind in &measured.kinds {
            is_new |= self.kinds.get(kind).is_none_or(|longest| *longest < share);
            let longest = self.kinds.entry(*kind).or_default();
            *longest = (*longest).max(share);
        }
        for id in &measured.updates {
            if let Some(longest) = self.updates.get_mut(id) {
                is_new |= *longest < share;
                *longest = (*longest).max(share);
                continue;
            }
            // Of more than are written down those that nobody offers are forgotten first; their kinds are known.
            if self.updates.len() >= FOLLOWED {
                self.updates.retain(|id, _| is_offered(id));
                is_new = true;
            }
            if self.updates.len() < FOLLOWED {
                self.updates.insert(id.clone(), share);
                is_new = true;
            }
        }
        is_new
    }
}

/// What is expected of a policy's installs.
pub(super) struct Expected {
    limit: SignedDuration,
    /// By the numbers of the updates' ids; empty where nothing was measured.
    shares: Vec<Option<u32>>,
    kinds: BTreeMap<Classification, u32>,
}

/// Seconds that one update is expected to take; none for the whole limit.
pub(super) type Share = Option<u32>;

impl Expected {
    pub(super) fn of(limit: SignedDuration, durations: &Durations, catalogue: &Catalogue) -> Self {
        let Durations { updates, kinds } = durations;
        let mut shares = if updates.is_empty() { vec![] } else { vec![None; catalogue.ids()] };
        for (id, share) in updates {
            if let Some(place) = catalogue.number_of(id).and_then(|number| shares.get_mut(number)) {
                *place = Some(*share);
            }
        }
        Self { limit, shares, kinds: kinds.clone() }
    }

    /// How long an install may take.
    pub(super) fn limit(&self) -> SignedDuration {
        self.limit
    }

    /// What is expected of an update, by the number of its id and its kind.
    pub(super) fn share(&self, number: usize, kind: Classification) -> Share {
        if self.kinds.is_empty() && self.shares.is_empty() {
            return None;
        }
        self.shares.get(number).copied().flatten().or_else(|| self.kinds.get(&kind).copied())
    }

    /// What is expected of an install of updates with these shares.
    pub(super) fn install(&self, mut shares: impl Iterator<Item = Share>) -> SignedDuration {
        let sum = shares.try_fold(0_u64, |sum, share| Some(sum.saturating_add(u64::from(share?))));
        let Some(sum) = sum else { return self.limit };
        let seconds = sum.saturating_mul(3).div_ceil(2).saturating_add(FIXED_SECONDS);
        let minutes = i64::try_from(seconds.div_ceil(60)).unwrap_or(i64::MAX / 60);
        SignedDuration::from_secs(minutes.saturating_mul(60)).min(self.limit)
    }
}
