//! When to look again: the earliest of the instants at which the clock alone changes the answer.

use jiff::Timestamp;

/// Collects instants after `now` and keeps the earliest.
pub(super) struct Look {
    now: Timestamp,
    next: Option<Timestamp>,
}

impl Look {
    pub(super) fn after(now: Timestamp) -> Self {
        Self { now, next: None }
    }

    /// Something changes then; what is over already does not count.
    pub(super) fn at(&mut self, instant: Option<Timestamp>) {
        if let Some(instant) = instant.filter(|instant| *instant > self.now) {
            self.next = Some(self.next.map_or(instant, |next| next.min(instant)));
        }
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.next
    }
}
