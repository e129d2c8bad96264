//! Since when a client's devices know an update.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::bits::Bits;
use super::model::{Catalogue, Device, Name, Offer, PackageVersion, Seen, Snapshot};

/// How many sightings are written down with a group.
const KEPT: usize = 512;

/// When each update was first seen in the client.
///
/// An update ages for a device from the first sighting anywhere in the client, so that neither a new device nor one that
/// was off starts the clock again. What a single device tells of an update does not count for the others: one that is
/// odd, or that somebody plays with, must not age an update that is yet to come. Sightings are written down with the
/// groups, and outlast the devices that made them.
pub(super) struct Sightings<'a> {
    catalogue: &'a Catalogue,
    /// By the number of the id.
    by_number: Vec<OfId>,
    /// Of ids that the catalogue does not have.
    others: BTreeMap<&'a Name, Known>,
    /// The places of the ids in their alphabetical order, by number.
    alphabet: Vec<usize>,
    /// Whose sightings were written down and who are not among the devices, by name.
    strangers: Vec<&'a Name>,
    /// Versions that several devices have seen, by package, where there is more than one.
    versions: BTreeMap<Name, Vec<(PackageVersion, Timestamp)>>,
}

/// What is known of the updates of an id. All in one place: it is asked for of every offer.
#[derive(Clone, Debug, Default)]
struct OfId {
    known: Option<Known>,
    /// Since when a version is known that devices lack which offer the update and have a version installed, in the order
    /// of those; as far as somebody has asked.
    older: Vec<(Name, Option<Timestamp>)>,
}

/// Who sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Observer {
    /// The place of the first device whose name is not before this one's.
    device: u32,
    /// For who is no device of the snapshot: the place among its like.
    stranger: Option<u32>,
}

impl Observer {
    fn device(place: usize) -> Self {
        Self { device: number(place), stranger: None }
    }

    /// As the names are ordered, without looking at them: a stranger is before the device that comes next.
    fn order(self) -> (u32, bool, Option<u32>) {
        (self.device, self.stranger.is_none(), self.stranger)
    }
}

/// Since when an update is known.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The first sighting.
    first: Timestamp,
    /// Whose it was.
    by: Observer,
    /// The first by another device.
    shared: Option<Timestamp>,
}

impl<'a> Sightings<'a> {
    /// What was written down, and what the `devices` offer, which are in the order of their names.
    pub(super) fn of(snapshot: &'a Snapshot, devices: &[&Device]) -> Self {
        let catalogue = &snapshot.updates;
        let written = || snapshot.groups.iter().flat_map(|group| &group.seen).chain(&snapshot.seen);
        let place_of = |name: &Name| devices.binary_search_by(|device| device.name.cmp(name));
        let mut strangers: Vec<&Name> = written().map(|seen| &seen.by).filter(|by| place_of(by).is_err()).collect();
        strangers.sort_unstable();
        strangers.dedup();
        let observer = |name: &Name| match place_of(name) {
            Ok(place) => Observer::device(place),
            Err(next) => Observer { device: number(next), stranger: strangers.binary_search(&name).ok().map(number) },
        };
        let mut by_number: Vec<OfId> = vec![OfId::default(); catalogue.ids()];
        let mut others: BTreeMap<&Name, Option<Known>> = BTreeMap::new();
        for seen in written() {
            let place = catalogue.number_of(&seen.id).and_then(|number| by_number.get_mut(number));
            let place = place.map(|of_id| &mut of_id.known);
            let place = place.unwrap_or_else(|| others.entry(&seen.id).or_default());
            count(place, seen.first, observer(&seen.by));
            if let Some(place) = place {
                place.shared = place.shared.into_iter().chain(seen.shared).min();
            }
        }
        for (position, device) in devices.iter().enumerate() {
            for offer in offers(device) {
                let place = catalogue.id_of(offer.update).and_then(|number| by_number.get_mut(number));
                if let Some(place) = place {
                    count(&mut place.known, offer.first_seen, Observer::device(position));
                }
            }
        }
        let others: BTreeMap<&Name, Known> = others.into_iter().filter_map(|(id, known)| Some((id, known?))).collect();
        let of_catalogue = catalogue.all_ids().zip(&by_number).filter_map(|(id, of_id)| Some((id, of_id.known?)));
        let versions = versions(of_catalogue.chain(others.iter().map(|(id, known)| (*id, *known))));
        let mut alphabet = vec![0; catalogue.ids()];
        for (place, (_, number)) in catalogue.ids_from("").enumerate() {
            if let Some(letter) = alphabet.get_mut(number) {
                *letter = place;
            }
        }
        Self { catalogue, by_number, others, alphabet, strangers, versions }
    }

    /// Since when the very update that the device at `position` offers is known: to several devices, or to itself.
    pub(super) fn since(&self, position: usize, offer: &Offer) -> Timestamp {
        let number = self.catalogue.id_of(offer.update);
        let known = number.and_then(|number| self.by_number.get(number)?.known.as_ref());
        let Some(known) = known else { return offer.first_seen };
        let own = if known.by == Observer::device(position) { known.first } else { offer.first_seen };
        known.shared.map_or(own, |shared| shared.min(own)).min(offer.first_seen)
    }

    /// Since when any version is known that a device lacks, which offers an update that is known `since` then.
    pub(super) fn lacking_since(&mut self, offer: &Offer, since: Timestamp) -> Timestamp {
        let since = since.min(offer.missing_since);
        if self.versions.is_empty() {
            return since;
        }
        let (Some(number), Some(installed)) = (self.catalogue.id_of(offer.update), &offer.installed) else {
            return since;
        };
        let Self { catalogue, versions, by_number, .. } = self;
        let Some(OfId { older, .. }) = by_number.get_mut(number) else { return since };
        // Names that the snapshot's maker holds once are told by where they are.
        if let Some((_, known)) = older.iter().find(|(other, _)| Arc::ptr_eq(other, installed)) {
            return known.map_or(since, |older| older.min(since));
        }
        let known = match older.binary_search_by(|(other, _)| other.cmp(installed)) {
            Ok(place) => older.get(place).and_then(|(_, known)| *known),
            Err(place) => {
                let package = catalogue.id_at(number).map(|id| super::package::package_of(id));
                let versions = package.and_then(|package| versions.get(package));
                let known = versions.and_then(|it| PackageVersion::lacked_by(it, installed).min().copied());
                older.insert(place, (installed.clone(), known));
                known
            }
        };
        known.map_or(since, |older| older.min(since))
    }

    /// What is to be written down with a group whose devices offer updates of ids with these numbers, and which had
    /// `before`. Should it be too much, what nobody offers any more goes first, what has been known for longest before the
    /// rest; of what is offered the latest waits. `devices` are in the order of their names.
    pub(super) fn to_keep(&self, offered: &Bits, before: &'a [Seen], devices: &[&Device]) -> Vec<Seen> {
        let known = |number: usize| {
            let known = self.by_number.get(number)?.known?;
            Some((known.since(), self.alphabet.get(number).copied()?, number, known))
        };
        let mut numbered: Vec<(Timestamp, usize, usize, Known)> = offered.iter().filter_map(known).collect();
        if numbered.len() > KEPT {
            numbered.select_nth_unstable_by_key(KEPT, |(since, letter, ..)| (*since, *letter));
            numbered.truncate(KEPT);
        }
        numbered.sort_unstable_by_key(|(_, letter, ..)| *letter);
        let mut kept: Vec<(&Name, Known)> = Vec::new();
        if numbered.len() < KEPT {
            let is_offered = |id: &Name| self.catalogue.number_of(id).is_some_and(|number| offered.contains(number));
            let others = before.iter().map(|seen| &seen.id).filter(|id| !is_offered(id));
            kept.extend(others.filter_map(|id| Some((id, self.known(id)?))));
            kept.sort_by_key(|(_, known)| Reverse(known.since()));
            kept.truncate(KEPT - numbered.len());
        }
        let seen = |(id, Known { first, by, shared }): (&Name, Known)| {
            let by = match by.stranger {
                None => &devices.get(usize::try_from(by.device).ok()?)?.name,
                Some(place) => self.strangers.get(usize::try_from(place).ok()?)?,
            };
            Some(Seen { id: id.clone(), first, by: by.clone(), shared })
        };
        let numbered = numbered.into_iter();
        let numbered = numbered.filter_map(|(_, _, number, known)| Some((self.catalogue.id_at(number)?, known)));
        let has_others = !kept.is_empty();
        let mut all: Vec<Seen> = numbered.chain(kept).filter_map(seen).collect();
        if has_others {
            all.sort_by(|a, b| a.id.cmp(&b.id));
        }
        all
    }

    fn known(&self, id: &Name) -> Option<Known> {
        match self.catalogue.number_of(id) {
            Some(number) => self.by_number.get(number)?.known,
            None => self.others.get(id).copied(),
        }
    }
}

impl Known {
    fn since(self) -> Timestamp {
        self.shared.unwrap_or(self.first)
    }
}

fn offers(device: &Device) -> &[Offer] {
    device.report.as_ref().map(|report| report.offers.as_slice()).unwrap_or_default()
}

/// One more sighting: of the two earliest by different devices the later one counts for all.
fn count(place: &mut Option<Known>, at: Timestamp, by: Observer) {
    let Some(known) = place else {
        *place = Some(Known { first: at, by, shared: None });
        return;
    };
    if known.by == by {
        known.first = known.first.min(at);
        return;
    }
    let mut later = at;
    if (at, by.order()) < (known.first, known.by.order()) {
        later = known.first;
        (known.first, known.by) = (at, by);
    }
    known.shared = Some(known.shared.map_or(later, |shared| shared.min(later)));
}

fn versions<'k>(known: impl Iterator<Item = (&'k Name, Known)>) -> BTreeMap<Name, Vec<(PackageVersion, Timestamp)>> {
    let mut versions: BTreeMap<Name, Vec<(PackageVersion, Timestamp)>> = BTreeMap::new();
    let shared = known.filter_map(|(id, known)| Some((PackageVersion::parse(id).ok()?, known.shared?)));
    for (version, since) in shared {
        versions.entry(version.package().clone()).or_default().push((version, since));
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}

fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
