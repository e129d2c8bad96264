//! What has come and what has gone since that was last asked.

/// What came and went. Of a device that has changed all is taken back and counted again: what is as it was has then gone and come, and
/// does not count as moved.
#[derive(Debug)]
pub(super) struct Moves<K>(Vec<(K, bool)>);

impl<K> Default for Moves<K> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<K: Ord> Moves<K> {
    /// One that comes, or else goes.
    pub(super) fn note(&mut self, key: K, comes: bool) {
        self.0.push((key, comes));
    }

    /// Those that came more often than they went, or went more often than they came, in order, each once. They are forgotten then.
    pub(super) fn take(&mut self) -> Vec<K> {
        self.0.sort_unstable();
        let mut moved = Vec::new();
        let mut all = self.0.drain(..).peekable();
        while let Some((key, comes)) = all.next() {
            let mut more = if comes { 1_i64 } else { -1 };
            while let Some((_, comes)) = all.next_if(|(other, _)| *other == key) {
                more += if comes { 1 } else { -1 };
            }
            if more != 0 {
                moved.push(key);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::Moves;

    #[test]
    fn what_goes_and_comes_again_has_not_moved() {
        let mut moves = Moves::default();
        for key in ["came", "twice", "twice", "same"] {
            moves.note(key, true);
        }
        for key in ["same", "went", "both", "both"] {
            moves.note(key, false);
        }
        assert_eq!(moves.take(), ["both", "came", "twice", "went"]);
        moves.note("went", true);
        assert_eq!(moves.take(), ["went"], "what was taken is forgotten");
        assert_eq!(moves.take(), [""; 0]);
    }
}
