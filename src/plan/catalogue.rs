//! The updates of a fleet, each once, however many devices offer it: what is decided for one is decided for all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model::{Name, Update};

/// Every update that any device of a snapshot offers.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By [`UpdateId`].
    updates: Vec<Entry>,
    by_content: BTreeMap<Arc<Update>, UpdateId>,
    by_id: BTreeMap<Name, u32>,
    /// By number.
    ids: Vec<Name>,
}

#[derive(Clone, Debug)]
struct Entry {
    update: Arc<Update>,
    /// The same for updates of one id that differ otherwise (in the packages that a device has of it).
    id: u32,
}

/// An update of the [`Catalogue`] that gave this out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateId(u32);

impl Catalogue {
    /// The place of `update`, which it gets now if it has none yet.
    pub fn intern(&mut self, update: Update) -> UpdateId {
        if let Some(known) = self.by_content.get(&update) {
            return *known;
        }
        let id = self.by_id.get(&update.id).copied().unwrap_or_else(|| {
            let number = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
            self.ids.push(update.id.clone());
            self.by_id.insert(update.id.clone(), number);
            number
        });
        let place = UpdateId(u32::try_from(self.updates.len()).unwrap_or(u32::MAX));
        let update = Arc::new(update);
        self.updates.push(Entry { update: update.clone(), id });
        self.by_content.insert(update, place);
        place
    }

    /// The update; none if another catalogue gave `place` out.
    pub fn get(&self, place: UpdateId) -> Option<&Arc<Update>> {
        self.updates.get(place.index()).map(|entry| &entry.update)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.updates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// Every id, by its number.
    pub(super) fn all_ids(&self) -> impl Iterator<Item = &Name> {
        self.ids.iter()
    }

    /// The id of a number.
    pub(super) fn id(&self, number: usize) -> Option<&Name> {
        self.ids.get(number)
    }

    /// How many different ids there are.
    pub(super) fn ids(&self) -> usize {
        self.ids.len()
    }

    /// The number of `id`, below [`Self::ids`].
    pub(super) fn number_of(&self, id: &Name) -> Option<usize> {
        self.by_id.get(id).and_then(|number| usize::try_from(*number).ok())
    }

    /// The number of its id, below [`Self::ids`].
    pub(super) fn id_of(&self, place: UpdateId) -> Option<usize> {
        self.updates.get(place.index()).and_then(|entry| usize::try_from(entry.id).ok())
    }
}

impl UpdateId {
    /// Its number, below the catalogue's length.
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}
