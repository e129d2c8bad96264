//! Since when a client's devices know an update, and from when on it ages for them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::model::{AgeClock, Catalogue, Name, Offer, PackageVersion, Seen};
use super::package::{of_package, package_of};
use super::published::Published;
use super::roster::Roster;

/// How many sightings are written down with a group.
const KEPT: usize = 512;

/// When each update was first seen in the client.
///
/// An update ages for a device from the first sighting anywhere in the client, so that neither a new device nor one that
/// was off starts the clock again. What a single device tells of an update does not count for the others: one that is
/// odd, or that somebody plays with, must not age an update that is yet to come. Sightings are written down with the
/// groups, and outlast the devices that made them: what has been seen once stays seen.
#[derive(Default)]
pub(super) struct Sightings {
    /// By the number of the id.
    by_number: Vec<OfId>,
    published: Published,
    /// The places of the ids in their alphabetical order, by number.
    alphabet: Vec<usize>,
    /// By package, as far as somebody has asked.
    versions: BTreeMap<Name, Versions>,
    /// Numbers of the ids of which something new is known since that was last asked.
    news: BTreeSet<usize>,
}

/// What is known of the updates of an id. All in one place: it is asked for of every offer.
#[derive(Clone, Debug, Default)]
struct OfId {
    known: Option<Known>,
    /// Since when a version is known that devices lack which offer the update and have a version installed, in the order
    /// of those; as far as somebody has asked.
    older: Vec<(Name, Option<Timestamp>)>,
}

/// The versions of a package.
struct Versions {
    /// Those that several devices have seen, and since when.
    shared: Vec<(PackageVersion, Timestamp)>,
    /// Since when one of these is known that devices lack which have a version installed, in the order of those.
    lacked: Vec<(Name, Option<Timestamp>)>,
}

/// Since when an update is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// The first sighting.
    first: Timestamp,
    /// Whose it was: the device's number.
    by: u32,
    /// The first by another device.
    shared: Option<Timestamp>,
}

/// What a device lacks: an update that it offers, or an earlier version of it.
#[derive(Clone, Copy)]
pub(super) struct Lacking<'o> {
    /// Of the update's id.
    number: usize,
    device: usize,
    offer: &'o Offer,
    /// When the update was published, by the device's own word.
    published: Option<Timestamp>,
    /// Since when any of that is known.
    pub since: Timestamp,
}

impl Sightings {
    /// What was written down.
    pub(super) fn recall(&mut self, catalogue: &Catalogue, seen: &Seen, roster: &mut Roster) {
        let by = roster.number(&seen.by);
        let Some(number) = catalogue.number_of(&seen.id) else { return };
        self.add(number, seen.first, by, roster);
        if let (Some(known), Some(shared)) =
            (self.by_number.get_mut(number).and_then(|it| it.known.as_mut()), seen.shared)
        {
            known.shared = Some(known.shared.map_or(shared, |known| known.min(shared)));
            self.news.insert(number);
        }
        let alone = seen.dates.alone.as_ref().map(|(_, by)| by_number(roster.number(by)));
        if self.published.recall(number, &seen.dates, alone) {
            self.news.insert(number);
        }
    }

    /// A device, by its number, offers an update.
    pub(super) fn offered(&mut self, catalogue: &Catalogue, offer: &Offer, device: usize, roster: &Roster) {
        let Some(number) = catalogue.id_of(offer.update) else { return };
        self.add(number, offer.first_seen, device, roster);
        if self.published.add(catalogue, number, offer.update, by_number(device)) {
            self.news.insert(number);
        }
    }

    /// A device, by its number, knows an update of the id of that number since then.
    fn add(&mut self, number: usize, at: Timestamp, device: usize, roster: &Roster) {
        if self.by_number.len() <= number {
            self.by_number.resize(number + 1, OfId::default());
        }
        let Some(place) = self.by_number.get_mut(number).map(|of_id| &mut of_id.known) else { return };
        let before = *place;
        count(place, at, by_number(device), roster);
        if *place != before {
            self.news.insert(number);
        }
    }

    /// Numbers of the ids of which something new is known.
    pub(super) fn take_news(&mut self, catalogue: &Catalogue) -> BTreeSet<usize> {
        let news = std::mem::take(&mut self.news);
        for id in news.iter().filter_map(|number| catalogue.id_at(*number)) {
            let package = package_of(id);
            self.published.renew(catalogue, package);
            if self.versions.remove(package).is_some() {
                for (_, other) in of_package(catalogue, package) {
                    if let Some(of_id) = self.by_number.get_mut(other) {
                        of_id.older.clear();
                    }
                }
            }
        }
        if self.alphabet.len() != catalogue.ids() {
            self.alphabet = vec![0; catalogue.ids()];
            for (place, (_, number)) in catalogue.ids_from("").enumerate() {
                if let Some(letter) = self.alphabet.get_mut(number) {
                    *letter = place;
                }
            }
        }
        news
    }

    /// Since when the very update that a device offers is known, both by their numbers: to several devices, or to itself.
    pub(super) fn since(&self, number: usize, device: usize, offer: &Offer) -> Timestamp {
        let known = self.by_number.get(number).and_then(|of_id| of_id.known.as_ref());
        let Some(known) = known else { return offer.first_seen };
        let own = if known.by == by_number(device) { known.first } else { offer.first_seen };
        known.shared.map_or(own, |shared| shared.min(own)).min(offer.first_seen)
    }

    /// What a device lacks, by its number, that offers an update: its id by its number, since when it is known, and when the
    /// device says that it was published.
    pub(super) fn lacking<'o>(
        &mut self,
        catalogue: &Catalogue,
        (number, device): (usize, usize),
        offer: &'o Offer,
        (since, published): (Timestamp, Option<Timestamp>),
    ) -> Lacking<'o> {
        let since = self.lacking_since(catalogue, number, offer, since);
        Lacking { number, device, offer, published, since }
    }

    /// From when on it ages.
    pub(super) fn ages_from(&mut self, catalogue: &Catalogue, lacking: &Lacking<'_>, clock: AgeClock) -> Timestamp {
        match clock {
            AgeClock::FirstSeen => lacking.since,
            AgeClock::Published => {
                let Lacking { number, device, offer, published, since } = *lacking;
                let known = self.published.since(catalogue, number, by_number(device), offer.installed.as_ref());
                known.into_iter().chain(published).min().unwrap_or(since)
            }
        }
    }

    /// Since when any version is known that a device lacks, which offers an update of the id of that number that is known
    /// `since` then.
    fn lacking_since(&mut self, catalogue: &Catalogue, number: usize, offer: &Offer, since: Timestamp) -> Timestamp {
        let since = since.min(offer.missing_since);
        let Some(installed) = &offer.installed else { return since };
        let Self { versions, by_number, .. } = self;
        let Some(OfId { older, .. }) = by_number.get(number) else { return since };
        // Names that the snapshot's maker holds once are told by where they are.
        if let Some((_, known)) = older.iter().find(|(other, _)| Arc::ptr_eq(other, installed)) {
            return known.map_or(since, |older| older.min(since));
        }
        let known = match older.binary_search_by(|(other, _)| other.cmp(installed)) {
            Ok(place) => older.get(place).and_then(|(_, known)| *known),
            Err(place) => {
                let Some(id) = catalogue.id_at(number) else { return since };
                let package = package_of(id);
                let known = if let Some(versions) = versions.get_mut(package) {
                    versions.lacked_with(installed)
                } else {
                    let shared = shared_versions(catalogue, package, by_number);
                    let versions = versions.entry(package.into()).or_insert(Versions { shared, lacked: vec![] });
                    versions.lacked_with(installed)
                };
                if let Some(of_id) = by_number.get_mut(number) {
                    of_id.older.insert(place, (installed.clone(), known));
                }
                known
            }
        };
        known.map_or(since, |older| older.min(since))
    }

    /// What is to be written down with a group of whose devices so many offer updates of each id, by number, and which had
    /// `before`. Should it be too much, what nobody offers any more goes first, what has been known for longest before the
    /// rest; of what is offered the latest waits.
    pub(super) fn to_keep(
        &self,
        catalogue: &Catalogue,
        offered: &[u32],
        before: &[Seen],
        roster: &Roster,
    ) -> Vec<Seen> {
        let known = |number: usize| {
            let known = self.by_number.get(number)?.known?;
            Some((known.since(), self.alphabet.get(number).copied()?, number, known))
        };
        let numbers = offered.iter().enumerate().filter(|(_, devices)| **devices > 0).map(|(number, _)| number);
        let mut numbered: Vec<(Timestamp, usize, usize, Known)> = numbers.filter_map(known).collect();
        if numbered.len() > KEPT {
            numbered.select_nth_unstable_by_key(KEPT, |(since, letter, ..)| (*since, *letter));
            numbered.truncate(KEPT);
        }
        numbered.sort_unstable_by_key(|(_, letter, ..)| *letter);
        let mut kept: Vec<(&Name, usize, Known)> = Vec::new();
        if numbered.len() < KEPT {
            let is_offered = |number: usize| offered.get(number).is_some_and(|devices| *devices > 0);
            let others = before.iter().filter_map(|seen| Some((&seen.id, catalogue.number_of(&seen.id)?)));
            let others = others.filter(|(_, number)| !is_offered(*number));
            kept.extend(others.filter_map(|(id, number)| Some((id, number, self.by_number.get(number)?.known?))));
            kept.sort_by_key(|(_, _, known)| Reverse(known.since()));
            kept.truncate(KEPT - numbered.len());
        }
        let seen = |(id, number, Known { first, by, shared }): (&Name, usize, Known)| {
            let by = roster.name(usize::try_from(by).ok()?)?.clone();
            Some(Seen { id: id.clone(), first, by, shared, dates: self.published.to_keep(number, roster) })
        };
        let numbered = numbered.into_iter();
        let numbered = numbered.filter_map(|(_, _, number, known)| Some((catalogue.id_at(number)?, number, known)));
        let has_others = !kept.is_empty();
        let mut all: Vec<Seen> = numbered.chain(kept).filter_map(seen).collect();
        if has_others {
            all.sort_by(|a, b| a.id.cmp(&b.id));
        }
        all
    }
}

impl Versions {
    fn lacked_with(&mut self, installed: &Name) -> Option<Timestamp> {
        let Self { shared, lacked } = self;
        match lacked.binary_search_by(|(other, _)| other.cmp(installed)) {
            Ok(place) => lacked.get(place).and_then(|(_, known)| *known),
            Err(place) => {
                let known = PackageVersion::lacked_by(shared, installed).min().copied();
                lacked.insert(place, (installed.clone(), known));
                known
            }
        }
    }
}

impl Known {
    fn since(self) -> Timestamp {
        self.shared.unwrap_or(self.first)
    }
}

/// One more sighting: of the two earliest by different devices the later one counts for all; of two at the same time the
/// one of the device whose name comes first is the first.
fn count(place: &mut Option<Known>, at: Timestamp, by: u32, roster: &Roster) {
    let Some(known) = place else {
        *place = Some(Known { first: at, by, shared: None });
        return;
    };
    if known.by == by {
        known.first = known.first.min(at);
        return;
    }
    let name = |by: u32| usize::try_from(by).ok().and_then(|by| roster.name(by));
    let mut later = at;
    if at < known.first || (at == known.first && name(by) < name(known.by)) {
        later = known.first;
        (known.first, known.by) = (at, by);
    }
    known.shared = Some(known.shared.map_or(later, |shared| shared.min(later)));
}

/// Those versions of a package that several devices have seen, and since when.
fn shared_versions(catalogue: &Catalogue, package: &str, by_number: &[OfId]) -> Vec<(PackageVersion, Timestamp)> {
    let known = of_package(catalogue, package).filter_map(|(id, number)| Some((id, by_number.get(number)?.known?)));
    known.filter_map(|(id, known)| Some((PackageVersion::parse(id).ok()?, known.shared?))).collect()
}

fn by_number(device: usize) -> u32 {
    u32::try_from(device).unwrap_or(u32::MAX)
}
