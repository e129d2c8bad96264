//! Devices that policies leave out and groups have by name, and which of them are not there.
//!
//! A device may be named before it enrols: nothing stops for one that is not there, it is only told.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Name;
use super::outcome::Others;

/// Lists of devices' names, by the places of what has them.
pub(super) struct Names<'a> {
    /// Places of the lists that have a name.
    lists: BTreeMap<&'a Name, Vec<usize>>,
    /// Which names of each list are of no device that is there.
    unknown: Vec<BTreeSet<&'a Name>>,
    /// Places of lists of which other names are than when that was last asked.
    news: BTreeSet<usize>,
}

impl<'a> Names<'a> {
    /// Where no device is there.
    pub(super) fn of(lists: impl Iterator<Item = &'a Vec<Name>>) -> Self {
        let mut all = Self { lists: BTreeMap::new(), unknown: vec![], news: BTreeSet::new() };
        for (place, names) in lists.enumerate() {
            let unknown: BTreeSet<&Name> = names.iter().collect();
            for name in &unknown {
                all.lists.entry(*name).or_default().push(place);
            }
            all.unknown.push(unknown);
        }
        all
    }

    /// A device comes, or is gone.
    pub(super) fn count(&mut self, device: &Name, comes: bool) {
        let Self { lists, unknown, news } = self;
        let Some((name, places)) = lists.get_key_value(device) else { return };
        for place in places {
            let Some(unknown) = unknown.get_mut(*place) else { continue };
            if comes {
                unknown.remove(*name);
            } else {
                unknown.insert(*name);
            }
            news.insert(*place);
        }
    }

    /// Places of lists of which other names are of no device than when that was last asked.
    pub(super) fn take_news(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.news)
    }

    /// Names in the list at `place` that are of no device, by name.
    pub(super) fn unknown(&self, place: usize) -> Others {
        let none = BTreeSet::new();
        let unknown = self.unknown.get(place).unwrap_or(&none);
        Others::of(unknown.iter().copied(), unknown.len())
    }
}
