//! Since when a client's devices know an update.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::model::{Catalogue, Device, Name, Offer, PackageVersion, Seen, Snapshot};

/// How many sightings are written down with a group.
const KEPT: usize = 512;

/// When each update was first seen in the client.
///
/// An update ages for a device from the first sighting anywhere in the client, so that neither a new device nor one that
/// was off starts the clock again. What a single device tells of an update does not count for the others: one that is
/// odd, or that somebody plays with, must not age an update that is yet to come. Sightings are written down with the
/// groups, and outlast the devices that made them.
pub(super) struct Sightings {
    /// By update.
    known: BTreeMap<Name, Known>,
    /// The same, by the number of the id.
    by_number: Vec<Option<Known>>,
    /// Versions that several devices have seen, by package, where there is more than one.
    versions: BTreeMap<Name, Vec<(PackageVersion, Timestamp)>>,
    /// Since when a version is known that devices lack which offer an update, by its id's number, and have a version
    /// installed; as far as somebody has asked.
    older: BTreeMap<(usize, Name), Option<Timestamp>>,
}

/// Since when an update is known.
#[derive(Clone, Debug)]
struct Known {
    /// The first sighting, and whose it was.
    first: (Timestamp, Name),
    /// The first by another device.
    shared: Option<Timestamp>,
}

impl Sightings {
    /// What was written down, and what the devices offer.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut known: BTreeMap<Name, Known> = BTreeMap::new();
        for seen in snapshot.groups.iter().flat_map(|group| &group.seen) {
            let mut place = known.remove(&seen.id);
            count(&mut place, seen.first, &seen.by);
            if let Some(place) = &mut place {
                place.shared = place.shared.into_iter().chain(seen.shared).min();
            }
            known.extend(place.map(|place| (seen.id.clone(), place)));
        }
        let catalogue = &snapshot.updates;
        let mut by_number: Vec<Option<Known>> = catalogue.all_ids().map(|id| known.remove(id)).collect();
        for device in &snapshot.devices {
            for offer in offers(device) {
                let place = catalogue.id_of(offer.update).and_then(|number| by_number.get_mut(number));
                if let Some(place) = place {
                    count(place, offer.first_seen, &device.name);
                }
            }
        }
        for (id, seen) in catalogue.all_ids().zip(&by_number) {
            if let Some(seen) = seen {
                known.insert(id.clone(), seen.clone());
            }
        }
        let versions = versions(&known);
        Self { known, by_number, versions, older: BTreeMap::new() }
    }

    /// Since when the very update that `device` offers is known: to several devices, or to itself.
    pub(super) fn since(&self, catalogue: &Catalogue, device: &Device, offer: &Offer) -> Timestamp {
        let known = catalogue.id_of(offer.update).and_then(|number| self.by_number.get(number)?.as_ref());
        let own = known.filter(|known| known.first.1 == device.name).map(|known| known.first.0);
        let shared = known.and_then(|known| known.shared);
        own.into_iter().chain(shared).fold(offer.first_seen, Timestamp::min)
    }

    /// Since when any version is known that `device` lacks, which offers the update.
    pub(super) fn lacking_since(&mut self, catalogue: &Catalogue, device: &Device, offer: &Offer) -> Timestamp {
        let since = self.since(catalogue, device, offer).min(offer.missing_since);
        if self.versions.is_empty() {
            return since;
        }
        let (Some(number), Some(installed)) = (catalogue.id_of(offer.update), &offer.installed) else { return since };
        let Self { versions, older, .. } = self;
        let older = older.entry((number, installed.clone())).or_insert_with(|| {
            let update = catalogue.get(offer.update)?;
            let versions = versions.get(super::package::package_of(&update.id))?;
            versions.iter().filter(|(version, _)| version.is_lacked_by(installed)).map(|(_, since)| *since).min()
        });
        older.map_or(since, |older| older.min(since))
    }

    /// What is to be written down with a group whose devices offer updates of these ids, and which had `before`. Should it
    /// be too much, what nobody offers any more goes first, what has been known for longest before the rest; of what is
    /// offered the latest waits.
    pub(super) fn to_keep<'a>(&self, offered: impl Iterator<Item = &'a Name>, before: &'a [Seen]) -> Vec<Seen> {
        let offered: BTreeSet<&Name> = offered.collect();
        let kept = before.iter().map(|seen| &seen.id).filter(|id| !offered.contains(id));
        let since = |id: &Name| self.known.get(id).map(Known::since);
        let mut kept: Vec<&Name> = kept.collect();
        kept.sort_by_key(|id| Reverse(since(id)));
        let mut ids: Vec<&Name> = offered.iter().copied().collect();
        ids.sort_by_key(|id| since(id));
        ids.extend(kept);
        ids.truncate(KEPT);
        ids.sort_unstable();
        let seen = |id: &Name| {
            let Known { first: (first, by), shared } = self.known.get(id)?.clone();
            Some(Seen { id: id.clone(), first, by, shared })
        };
        ids.into_iter().filter_map(seen).collect()
    }
}

impl Known {
    fn since(&self) -> Timestamp {
        self.shared.unwrap_or(self.first.0)
    }
}

fn offers(device: &Device) -> &[Offer] {
    device.report.as_ref().map(|report| report.offers.as_slice()).unwrap_or_default()
}

/// One more sighting: of the two earliest by different devices the later one counts for all.
fn count(place: &mut Option<Known>, at: Timestamp, by: &Name) {
    let Some(known) = place else {
        *place = Some(Known { first: (at, by.clone()), shared: None });
        return;
    };
    if known.first.1 == *by {
        known.first.0 = known.first.0.min(at);
        return;
    }
    let is_first = (at, by) < (known.first.0, &known.first.1);
    let later = if is_first { std::mem::replace(&mut known.first, (at, by.clone())).0 } else { at };
    known.shared = Some(known.shared.map_or(later, |shared| shared.min(later)));
}

fn versions(known: &BTreeMap<Name, Known>) -> BTreeMap<Name, Vec<(PackageVersion, Timestamp)>> {
    let mut versions: BTreeMap<Name, Vec<(PackageVersion, Timestamp)>> = BTreeMap::new();
    let shared = known.iter().filter_map(|(id, known)| Some((PackageVersion::parse(id).ok()?, known.shared?)));
    for (version, since) in shared {
        versions.entry(version.package().clone()).or_default().push((version, since));
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}
