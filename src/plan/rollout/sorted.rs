//! Candidates in their order, of which one can ask how many are before another.

use super::Candidate;

/// A list is as long at most: putting one in moves no more than that.
const LONGEST: usize = 512;

/// In lists, none of them empty.
#[derive(Default)]
pub(super) struct Sorted {
    lists: Vec<Vec<Candidate>>,
    len: usize,
}

impl Sorted {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The one before which there are `nth`.
    pub(super) fn get(&self, nth: usize) -> Option<&Candidate> {
        let mut rest = nth;
        for list in &self.lists {
            if let Some(one) = list.get(rest) {
                return Some(one);
            }
            rest -= list.len();
        }
        None
    }

    /// How many are before `candidate`.
    pub(super) fn before(&self, candidate: &Candidate) -> usize {
        let number = self.list_of(candidate);
        let Some(list) = self.lists.get(number) else { return self.len };
        let earlier: usize = self.lists.iter().take(number).map(Vec::len).sum();
        earlier + list.binary_search(candidate).unwrap_or_else(|place| place)
    }

    /// Puts it in, or takes it out. Returns whether that changes anything.
    pub(super) fn put(&mut self, candidate: &Candidate, adds: bool) -> bool {
        if adds { self.insert(candidate) } else { self.remove(candidate) }
    }

    /// The first list whose last one is not before `candidate`.
    fn list_of(&self, candidate: &Candidate) -> usize {
        self.lists.partition_point(|list| list.last().is_some_and(|last| last < candidate))
    }

    fn insert(&mut self, candidate: &Candidate) -> bool {
        // What comes after all is put behind the last.
        let number = self.list_of(candidate).min(self.lists.len().saturating_sub(1));
        let Some(list) = self.lists.get_mut(number) else {
            self.lists.push(vec![candidate.clone()]);
            self.len += 1;
            return true;
        };
        let Err(place) = list.binary_search(candidate) else { return false };
        list.insert(place, candidate.clone());
        self.len += 1;
        if list.len() > LONGEST {
            let second = list.split_off(LONGEST / 2);
            self.lists.insert(number + 1, second);
        }
        true
    }

    pub(super) fn remove(&mut self, candidate: &Candidate) -> bool {
        let number = self.list_of(candidate);
        let Some(list) = self.lists.get_mut(number) else { return false };
        let Ok(place) = list.binary_search(candidate) else { return false };
        list.remove(place);
        self.len -= 1;
        if list.is_empty() {
            self.lists.remove(number);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_says_what_a_set_says() {
        let candidate = |number: usize| Candidate { failed: (0, None), name: format!("d{number:05}").into(), number };
        let (mut sorted, mut set) = (Sorted::default(), BTreeSet::new());
        let mut random = 1_usize;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let one = candidate((random >> 33) % 3_000);
            // It grows for a while and then shrinks.
            let adds = (random >> 20) % 10 < if step < 12_000 { 7 } else { 2 };
            let changes = if adds { set.insert(one.clone()) } else { set.remove(&one) };
            assert_eq!(sorted.put(&one, adds), changes);
            assert_eq!(sorted.len(), set.len());
            if step % 50 == 0 {
                assert_eq!(sorted.before(&one), set.range(..&one).count());
                let nth = (random >> 40) % (set.len() + 2);
                assert_eq!(sorted.get(nth), set.iter().nth(nth));
            }
        }
        assert!(sorted.lists.iter().all(|list| !list.is_empty() && list.len() <= LONGEST));
    }
}
