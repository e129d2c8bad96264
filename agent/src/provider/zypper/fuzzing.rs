//! Any bytes in the place of what zypper prints, and of a repository's index.

use super::answer;
use super::explain::explain;
use super::index;

/// `zypper --xmlout`, and its table.
pub(crate) fn answers(text: &str) {
    let _ = (answer::read(text), explain(text, Some(8), &[]));
    let lines = text.lines().count();
    assert!(answer::locked(text).len() <= lines);
}

/// `primary` and `updateinfo`, packed or not.
pub(crate) fn indexes(bytes: &[u8]) {
    index::fuzz(bytes);
}
