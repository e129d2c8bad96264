//! Until when updates must be installed: what a policy says by severity.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::Severity;

use super::model::{AgeClock, Update};
use super::window::later;

/// What a policy says, by severity; none for every other severity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deadlines(pub BTreeMap<Option<Severity>, Deadline>);

/// How long an update may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// So long.
    pub within: SignedDuration,
    /// From when on.
    pub clock: AgeClock,
}

impl Deadlines {
    /// Until when `update` must be installed on a device for which it, or a version that the device lacks as well, `ages_from`
    /// then by a clock; none if the policy does not say.
    pub(super) fn of(&self, update: &Update, ages_from: impl FnOnce(AgeClock) -> Timestamp) -> Option<Timestamp> {
        let Deadline { within, clock } = self.0.get(&Some(update.severity)).or_else(|| self.0.get(&None))?;
        let by = later(ages_from(*clock), *within);
        // Whole seconds, as everything in Kubernetes.
        Some(Timestamp::from_second(by.as_second()).unwrap_or(by))
    }
}
