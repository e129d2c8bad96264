//! The updates of a fleet, each once, however many devices offer it: what is decided for one is decided for all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::model::{Name, Update};

/// Every update that any device of a snapshot offers.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By [`UpdateId`].
    updates: Vec<Arc<Update>>,
    /// By [`UpdateId`]: the number of its id, the same for updates of one id that differ otherwise (in the packages that
    /// a device has of it). By themselves, because plans ask for them of every offer.
    id_of: Vec<u32>,
    by_content: BTreeMap<Arc<Update>, UpdateId>,
    by_id: BTreeMap<Name, u32>,
    /// By number.
    ids: Vec<Name>,
    names: BTreeSet<Name>,
    /// Numbers of the ids of what fixes a vulnerability.
    by_cve: BTreeMap<Name, Vec<u32>>,
}

/// The number of an update's id in the [`Catalogue`] that gave this out, whether anybody offers the update or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdNumber(u32);

/// An update of the [`Catalogue`] that gave this out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateId(u32);

impl Catalogue {
    /// The place of `update`, which it gets now if it has none yet.
    pub fn intern(&mut self, update: Update) -> UpdateId {
        if let Some(known) = self.by_content.get(&update) {
            return *known;
        }
        let IdNumber(id) = self.number(&update.id);
        let place = UpdateId(u32::try_from(self.updates.len()).unwrap_or(u32::MAX));
        for cve in &update.cves {
            let ids = self.by_cve.entry(cve.clone()).or_default();
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
        let update = Arc::new(update);
        self.updates.push(update.clone());
        self.id_of.push(id);
        self.by_content.insert(update, place);
        place
    }

    /// The number of an update's id, which it gets now if it has none yet.
    pub fn number(&mut self, id: &str) -> IdNumber {
        if let Some(known) = self.by_id.get(id) {
            return IdNumber(*known);
        }
        let number = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        let name = self.name(id);
        self.ids.push(name.clone());
        self.by_id.insert(name, number);
        IdNumber(number)
    }

    /// The name that all devices share whose labels, versions and the like say the same.
    pub fn name(&mut self, text: &str) -> Name {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name = Name::from(text);
        self.names.insert(name.clone());
        name
    }

    /// The id of a number; none if another catalogue gave it out.
    pub fn id(&self, number: IdNumber) -> Option<&Name> {
        self.ids.get(number.index())
    }

    /// The update; none if another catalogue gave `place` out.
    pub fn get(&self, place: UpdateId) -> Option<&Arc<Update>> {
        self.updates.get(place.index())
    }

    /// All of them, by [`UpdateId::index`].
    pub fn all(&self) -> std::slice::Iter<'_, Arc<Update>> {
        self.updates.iter()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.updates.len()
    }

    /// The id of a number.
    pub(super) fn id_at(&self, number: usize) -> Option<&Name> {
        self.ids.get(number)
    }

    /// How many different ids there are.
    pub(super) fn ids(&self) -> usize {
        self.ids.len()
    }

    /// The number of `id`, below [`Self::ids`], whether anybody offers it or not.
    pub(super) fn number_of(&self, id: &Name) -> Option<usize> {
        self.by_id.get(id).and_then(|number| usize::try_from(*number).ok())
    }

    /// Ids that begin with `prefix`, in order, with their numbers.
    pub(super) fn ids_from(&self, prefix: &str) -> impl Iterator<Item = (&Name, usize)> {
        let known = from(&self.by_id, prefix);
        known.filter_map(|(id, number)| Some((id, usize::try_from(*number).ok()?)))
    }

    /// CVEs that begin with `prefix`, in order, with the numbers of the ids of what fixes them.
    pub(super) fn cves_from(&self, prefix: &str) -> impl Iterator<Item = (&Name, impl Iterator<Item = usize>)> {
        from(&self.by_cve, prefix)
            .map(|(cve, ids)| (cve, ids.iter().filter_map(|number| usize::try_from(*number).ok())))
    }

    /// The number of its id, below [`Self::ids`].
    pub(super) fn id_of(&self, place: UpdateId) -> Option<usize> {
        self.id_of.get(place.index()).and_then(|id| usize::try_from(*id).ok())
    }
}

impl IdNumber {
    /// Below [`Catalogue::ids`].
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl UpdateId {
    /// Its number, below the catalogue's length.
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Entries whose names begin with `prefix`.
fn from<'a, T>(names: &'a BTreeMap<Name, T>, prefix: &str) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let bounds = (Bound::Included(prefix), Bound::Unbounded);
    names.range::<str, _>(bounds).take_while(move |(name, _)| name.starts_with(prefix))
}
