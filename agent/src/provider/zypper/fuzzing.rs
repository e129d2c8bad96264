//! Any bytes in the place of what zypper prints, and of a repository's index.

use super::explain::explain;
use super::{answer, history, index};

/// `zypper --xmlout`, and its table.
pub(crate) fn answers(text: &str) {
    let _ = (answer::read(text), explain(text, Some(8), &[]));
    let lines = text.lines().count();
    assert!(answer::locked(text).len() <= lines);
}

/// libzypp's history.
pub(crate) fn histories(text: &str) {
    history::fuzz(text);
}

/// `primary` and `updateinfo`, packed or not.
pub(crate) fn indexes(bytes: &[u8]) {
    index::fuzz(bytes);
}
