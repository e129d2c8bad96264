//! When updates were published, as a client's devices tell it.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::bits::Bits;
use super::model::{Catalogue, Dates, Name, PackageVersion, UpdateId};
use super::package::{of_package, package_of};
use super::roster::Roster;

/// When each update was published first.
///
/// By the vendor's dates an update ages from the earliest that is known, of it and of the older versions of its package that a
/// device lacks, too: neither the same update with a later date nor a newer version starts the clock again. As with first
/// sightings, what a single device tells does not count for the others, and what was told once stays told.
#[derive(Default)]
pub(super) struct Published {
    /// By the number of the id.
    by_number: Vec<OfId>,
    /// Updates of which no device can tell anything new: most are offered by many.
    settled: Bits,
    /// Packages of which somebody has asked.
    asked: BTreeSet<Name>,
}

/// What is known of the updates of an id.
#[derive(Clone, Debug, Default)]
struct OfId {
    told: Told,
    /// The dates of the versions that devices lack which offer the update and have a version installed, in the order of those; as
    /// far as somebody has asked.
    older: Vec<(Name, Older)>,
}

/// [`Dates`], by the number of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    shared: Option<Timestamp>,
    /// Before `shared`.
    alone: Option<(Timestamp, u32)>,
}

/// The dates of several versions.
#[derive(Clone, Debug, Default)]
struct Older {
    /// The earliest that counts for all.
    shared: Option<Timestamp>,
    /// What single devices tell.
    alone: Vec<(Timestamp, u32)>,
}

impl Published {
    /// What was written down of the id of that number, with the number of the device that tells something alone. Returns whether
    /// it is new.
    pub(super) fn recall(&mut self, number: usize, dates: &Dates, by: Option<u32>) -> bool {
        self.change(number, |told| {
            if let Some(((at, _), by)) = dates.alone.as_ref().zip(by) {
                told.tell(*at, by);
            }
            if let Some(at) = dates.shared {
                told.share(at);
            }
        })
    }

    /// A device offers an update of the id of that number. Returns whether it tells anything new of it.
    pub(super) fn add(&mut self, catalogue: &Catalogue, number: usize, update: UpdateId, by: u32) -> bool {
        if self.settled.contains(update.index()) {
            return false;
        }
        let date = catalogue.get(update).and_then(|update| update.published);
        let is_new = date.is_some_and(|at| self.change(number, |told| told.tell(at, by)));
        let shared = self.by_number.get(number).and_then(|of_id| of_id.told.shared);
        if date.is_none_or(|at| shared.is_some_and(|shared| shared <= at)) {
            self.settled.add(update.index());
        }
        is_new
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Told)) -> bool {
        if self.by_number.len() <= number {
            self.by_number.resize(number + 1, OfId::default());
        }
        let Some(OfId { told, .. }) = self.by_number.get_mut(number) else { return false };
        let before = *told;
        change(told);
        *told != before
    }

    /// Forgets what was worked out of a package.
    pub(super) fn renew(&mut self, catalogue: &Catalogue, package: &str) {
        if self.asked.remove(package) {
            for (_, number) in of_package(catalogue, package) {
                if let Some(of_id) = self.by_number.get_mut(number) {
                    of_id.older.clear();
                }
            }
        }
    }

    /// The earliest date that counts for a device which offers an update of the id of that number and has a version installed.
    pub(super) fn since(
        &mut self,
        catalogue: &Catalogue,
        number: usize,
        by: u32,
        installed: Option<&Name>,
    ) -> Option<Timestamp> {
        let of_id = self.by_number.get(number);
        let own = of_id.and_then(|of_id| of_id.told.to(by));
        let Some(installed) = installed else { return own };
        let known = of_id.and_then(|of_id| {
            // Names that the snapshot's maker holds once are told by where they are.
            let same = of_id.older.iter().find(|(other, _)| Arc::ptr_eq(other, installed));
            same.map(|(_, older)| older.to(by))
        });
        earlier(own, known.unwrap_or_else(|| self.older(catalogue, number, by, installed)))
    }

    fn older(&mut self, catalogue: &Catalogue, number: usize, by: u32, installed: &Name) -> Option<Timestamp> {
        let Self { by_number, asked, .. } = self;
        if by_number.len() <= number {
            by_number.resize(number + 1, OfId::default());
        }
        let place = by_number.get(number)?.older.binary_search_by(|(other, _)| other.cmp(installed));
        if let Err(place) = place {
            let package = package_of(catalogue.id_at(number)?);
            let told = |number: usize| by_number.get(number).map(|of_id| of_id.told).unwrap_or_default();
            let versions = of_package(catalogue, package)
                .filter_map(|(id, number)| Some((PackageVersion::parse(id).ok()?, told(number))));
            let mut older = Older::default();
            for told in PackageVersion::lacked_by(&versions.collect::<Vec<_>>(), installed) {
                older.shared = earlier(older.shared, told.shared);
                older.alone.extend(told.alone);
            }
            if !asked.contains(package) {
                asked.insert(package.into());
            }
            by_number.get_mut(number)?.older.insert(place, (installed.clone(), older));
        }
        let (_, older) = by_number.get(number)?.older.get(place.unwrap_or_else(|place| place))?;
        older.to(by)
    }

    /// What is to be written down of the id of that number.
    pub(super) fn to_keep(&self, number: usize, roster: &Roster) -> Dates {
        let Told { shared, alone } = self.by_number.get(number).map(|of_id| of_id.told).unwrap_or_default();
        let name = |by: u32| roster.name(usize::try_from(by).ok()?).cloned();
        Dates { shared, alone: alone.and_then(|(at, by)| Some((at, name(by)?))) }
    }
}

impl Told {
    /// A device tells this date: of the two earliest by different devices the later one counts for all.
    fn tell(&mut self, at: Timestamp, by: u32) {
        if self.shared.is_some_and(|shared| shared <= at) {
            return;
        }
        match self.alone {
            Some((first, device)) if device != by => {
                self.alone = Some(if at < first { (at, by) } else { (first, device) });
                self.share(at.max(first));
            }
            Some((first, _)) if first <= at => {}
            Some(_) | None => self.alone = Some((at, by)),
        }
    }

    /// Several devices tell this date.
    fn share(&mut self, at: Timestamp) {
        self.shared = earlier(self.shared, Some(at));
        self.alone = self.alone.filter(|(alone, _)| self.shared.is_none_or(|shared| *alone < shared));
    }

    /// What counts for a device.
    fn to(self, device: u32) -> Option<Timestamp> {
        let own = self.alone.filter(|(_, by)| *by == device).map(|(at, _)| at);
        own.or(self.shared)
    }
}

impl Older {
    /// What counts for a device.
    fn to(&self, device: u32) -> Option<Timestamp> {
        let own = self.alone.iter().filter(|(_, by)| *by == device).map(|(at, _)| *at).min();
        earlier(own, self.shared)
    }
}

/// Of what is known.
fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, None) => a,
        (None, b) => b,
    }
}
