//! A policy's rings as devices see them.

use std::sync::Arc;

use jiff::Timestamp;

use crate::model::{Name, Ring, UpdateProgress};
use crate::outcome::Blocked;
use crate::window::later;

/// Which ring has an update, and what blocks the others; empty without rings.
#[derive(Default)]
pub(in crate::rings) struct View {
    /// That of an update of which nothing was written down.
    first: Option<Seen>,
    /// By the number of the id, of those of which something was.
    seen: Vec<Option<Seen>>,
    /// What was written down last, and when its ring reached its minimum: the same is true of many updates.
    last: Option<(Seen, Option<Timestamp>)>,
}

/// The last ring that has an update, and what blocks the others.
#[derive(Clone, PartialEq)]
struct Seen {
    open: usize,
    /// The next ring, and those after it.
    blocked: Option<(Arc<Blocked>, Arc<Blocked>)>,
}

impl View {
    /// Of a policy with these rings of whose updates nothing was written down.
    pub(super) fn of(policy: &Name, rings: &[Ring]) -> Self {
        let first = rings.first().map(|first| Seen { open: 0, blocked: Some(blocked(policy, first, None)) });
        Self { first, ..Self::default() }
    }

    /// What was written down of an update, by the number of its id. Returns whether that changes anything.
    pub(super) fn write(&mut self, policy: &Name, rings: &[Ring], number: usize, progress: &UpdateProgress) -> bool {
        let open = open_ring(rings, progress);
        let last = self.last.as_ref().filter(|(seen, reached)| (seen.open, *reached) == (open, progress.reached));
        let seen = match last {
            Some((seen, _)) => seen.clone(),
            None => Seen { open, blocked: rings.get(open).map(|ring| blocked(policy, ring, progress.reached)) },
        };
        if last.is_none() {
            self.last = Some((seen.clone(), progress.reached));
        }
        let is_new = self.seen(number) != Some(&seen);
        if self.seen.len() <= number {
            self.seen.resize_with(number + 1, || None);
        }
        if let Some(place) = self.seen.get_mut(number) {
            *place = Some(seen);
        }
        is_new
    }

    /// Why a device in a ring, which is not the first, has to wait for an update.
    pub(super) fn waits(&self, ring: usize, id: usize) -> Option<&Arc<Blocked>> {
        let seen = self.seen(id)?;
        let (next, later) = seen.blocked.as_ref().filter(|_| ring > seen.open)?;
        Some(if ring == seen.open + 1 { next } else { later })
    }

    fn seen(&self, id: usize) -> Option<&Seen> {
        self.seen.get(id).and_then(Option::as_ref).or(self.first.as_ref())
    }
}

fn blocked(policy: &Name, ring: &Ring, reached: Option<Timestamp>) -> (Arc<Blocked>, Arc<Blocked>) {
    let waits = |until: Option<Timestamp>| {
        Arc::new(Blocked::RingWaits { policy: policy.clone(), ring: ring.name.clone(), until })
    };
    (waits(reached.map(|at| later(at, ring.soak))), waits(None))
}

/// The position of the last ring that has the update. What was written of a ring that is not there any more is as if
/// nothing had been written.
pub(super) fn open_ring(rings: &[Ring], progress: &UpdateProgress) -> usize {
    match &progress.ring {
        None => rings.len(),
        Some(name) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
    }
}
