//! Numbers for devices: for those that are there, and for those that are only known to have been.

use std::collections::BTreeMap;

use super::model::Name;

/// Names of devices by number. A number once given stays.
#[derive(Default)]
pub(super) struct Roster {
    names: Vec<Name>,
    /// So many of them, the first ones, are in order.
    sorted: usize,
    /// Numbers of the others.
    others: BTreeMap<Name, u32>,
}

impl Roster {
    /// Of names that are in order.
    pub(super) fn of_sorted(names: impl Iterator<Item = Name>) -> Self {
        let mut names: Vec<Name> = names.collect();
        names.dedup();
        Self { sorted: names.len(), names, others: BTreeMap::new() }
    }

    /// The number of a device, which it gets now if it has none yet.
    pub(super) fn number(&mut self, name: &Name) -> usize {
        let next = self.names.len();
        let number = self.find(name).unwrap_or(next);
        if number == next {
            self.names.push(name.clone());
            self.others.insert(name.clone(), u32::try_from(next).unwrap_or(u32::MAX));
        }
        number
    }

    /// The number of a device.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let other = || self.others.get(name).and_then(|number| usize::try_from(*number).ok());
        self.sorted().binary_search_by(|known| (**known).cmp(name)).ok().or_else(other)
    }

    /// The name of a number.
    pub(super) fn name(&self, number: usize) -> Option<&Name> {
        self.names.get(number)
    }

    /// All numbers, in the order of the names.
    pub(super) fn by_name(&self) -> impl Iterator<Item = usize> {
        let mut sorted = self.sorted().iter().zip(0_usize..).peekable();
        let others = self.others.iter().filter_map(|(name, number)| Some((name, usize::try_from(*number).ok()?)));
        let mut others = others.peekable();
        std::iter::from_fn(move || {
            let is_other = others.peek().is_some_and(|(other, _)| sorted.peek().is_none_or(|(name, _)| other < name));
            let next = if is_other { others.next() } else { sorted.next() };
            next.map(|(_, number)| number)
        })
    }

    fn sorted(&self) -> &[Name] {
        self.names.get(..self.sorted).unwrap_or_default()
    }
}

/// Numbers of names that many devices hold.
///
/// Whoever makes devices holds such a name once for all of them: most are known again by where they are held, which compares
/// one number instead of letters. The names are kept, so that nothing else can be held in their place.
#[derive(Default)]
pub(super) struct Numbers {
    by_name: BTreeMap<Name, usize>,
    by_place: BTreeMap<usize, (Name, usize)>,
}

impl Numbers {
    /// The number of `name`; where it has none yet it gets `new`.
    pub(super) fn of(&mut self, name: &Name, new: impl FnOnce() -> usize) -> usize {
        let Self { by_name, by_place } = self;
        let place = name.as_ptr().addr();
        if let Some((_, number)) = by_place.get(&place) {
            return *number;
        }
        let known = by_name.get(name).copied();
        let number = known.unwrap_or_else(|| *by_name.entry(name.clone()).or_insert_with(new));
        // Of names that each device holds for itself it is of no use, and no more are kept than are known.
        if by_place.len() > 2 * by_name.len() {
            by_place.clear();
        }
        by_place.insert(place, (name.clone(), number));
        number
    }

    /// How many names have a number.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_came_later_are_among_the_first_by_name() {
        let mut roster = Roster::of_sorted(["b", "d", "d", "f"].map(Name::from).into_iter());
        for (name, number) in [("e", 3), ("a", 4), ("d", 1), ("g", 5), ("e", 3)] {
            assert_eq!(roster.number(&name.into()), number, "{name}");
        }
        let names = roster.by_name().filter_map(|number| roster.name(number).cloned());
        assert_eq!(names.collect::<Vec<_>>(), ["a", "b", "d", "e", "f", "g"].map(Name::from));
    }
}
