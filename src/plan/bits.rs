//! A set of small numbers.

/// Numbers below a bound that is known beforehand.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// None of the numbers below `bound`.
    pub(super) fn below(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(64)])
    }

    /// Whether it was not there yet; false as well for what is beyond the bound.
    pub(super) fn insert(&mut self, number: usize) -> bool {
        let Some(word) = self.0.get_mut(number / 64) else { return false };
        let bit = 1 << (number % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// One more, which may be beyond the bound.
    pub(super) fn add(&mut self, number: usize) {
        self.grow(number + 1);
        self.insert(number);
    }

    /// Room for all numbers below `bound`.
    pub(super) fn grow(&mut self, bound: usize) {
        self.0.resize(bound.div_ceil(64).max(self.0.len()), 0);
    }

    pub(super) fn remove(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(place, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = usize::try_from(left.trailing_zeros()).ok().filter(|bit| *bit < 64)?;
                // The lowest bit.
                left &= left - 1;
                Some(place * 64 + bit)
            })
        })
    }

    pub(super) fn contains(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_several_words_come_in_order() {
        let mut bits = Bits::below(130);
        for number in [129, 64, 0, 63, 128, 5, 127] {
            assert!(bits.insert(number));
        }
        assert!(!bits.insert(64), "it is there");
        assert!(!bits.insert(1_000), "beyond the bound");
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 5, 63, 64, 127, 128, 129]);
        bits.remove(64);
        bits.remove(1_000);
        bits.add(300);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 5, 63, 127, 128, 129, 300]);
        assert_eq!([64, 129, 300, 1_000].map(|number| bits.contains(number)), [false, true, true, false]);
    }
}
