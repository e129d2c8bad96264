//! Numbers for devices: for those that are there, and for those that are only known to have been.

use std::collections::BTreeMap;

use super::model::Name;

/// Names of devices by number. A number once given stays.
#[derive(Default)]
pub(super) struct Roster {
    names: Vec<Name>,
    numbers: BTreeMap<Name, u32>,
}

impl Roster {
    /// Of names that are in order, each once.
    pub(super) fn of_sorted(names: Vec<Name>) -> Self {
        let numbers = names.iter().cloned().zip(0..).collect();
        Self { names, numbers }
    }

    /// The number of a device, which it gets now if it has none yet.
    pub(super) fn number(&mut self, name: &Name) -> usize {
        let next = self.names.len();
        let number = self.find(name).unwrap_or(next);
        if number == next {
            self.names.push(name.clone());
            self.numbers.insert(name.clone(), u32::try_from(next).unwrap_or(u32::MAX));
        }
        number
    }

    /// The number of a device.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).and_then(|number| usize::try_from(*number).ok())
    }

    /// The name of a number.
    pub(super) fn name(&self, number: usize) -> Option<&Name> {
        self.names.get(number)
    }

    /// All numbers, in the order of the names.
    pub(super) fn by_name(&self) -> impl Iterator<Item = usize> {
        self.numbers.values().filter_map(|number| usize::try_from(*number).ok())
    }
}

/// The number of a text, which it gets now if it has none yet.
pub(super) fn number_of(numbers: &mut BTreeMap<String, usize>, text: &str) -> usize {
    if let Some(known) = numbers.get(text) {
        return *known;
    }
    let next = numbers.len();
    *numbers.entry(text.to_owned()).or_insert(next)
}
