//! Since when a client's devices know an update.

use jiff::Timestamp;

use super::model::{Catalogue, Offer, Snapshot};

/// When each update was first seen, by the two devices that saw it first.
///
/// An update ages for a device from the first sighting anywhere in the client, so that neither a new device nor one that
/// was off starts the clock again. What a single device tells of an update does not count for the others: one that is
/// odd, or that somebody plays with, must not age an update that is yet to come.
pub(super) struct Sightings {
    /// By the number of the id.
    firsts: Vec<Firsts>,
}

/// The two earliest sightings by different devices.
#[derive(Clone, Copy)]
struct Firsts {
    first: Option<Timestamp>,
    second: Option<Timestamp>,
    /// The device that was counted last: a report may tell an id twice.
    by: usize,
}

impl Sightings {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let none = Firsts { first: None, second: None, by: usize::MAX };
        let mut sightings = Self { firsts: vec![none; snapshot.updates.ids()] };
        for (number, device) in snapshot.devices.iter().enumerate() {
            for offer in device.report.iter().flat_map(|report| &report.offers) {
                let firsts = snapshot.updates.id_of(offer.update).and_then(|id| sightings.firsts.get_mut(id));
                if let Some(firsts) = firsts.filter(|firsts| firsts.by != number) {
                    firsts.count(offer.first_seen, number);
                }
            }
        }
        sightings
    }

    /// Since when `offer` of one of the devices is known in the client.
    pub(super) fn since(&self, catalogue: &Catalogue, offer: &Offer) -> Timestamp {
        let firsts = catalogue.id_of(offer.update).and_then(|id| self.firsts.get(id));
        firsts.and_then(|firsts| firsts.second).map_or(offer.first_seen, |second| second.min(offer.first_seen))
    }
}

impl Firsts {
    fn count(&mut self, seen: Timestamp, by: usize) {
        self.by = by;
        match self.first {
            Some(first) if first <= seen => self.second = Some(self.second.map_or(seen, |second| second.min(seen))),
            first => (self.first, self.second) = (Some(seen), first),
        }
    }
}
