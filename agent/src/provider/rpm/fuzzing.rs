//! Any bytes in the place of what rpm prints.

use super::{compare, database, doubled, installed, newest, source_parts};

/// `rpm -q` with the formats of the database, and names of source packages.
pub(crate) fn lists(text: &str) {
    database::fuzz(text);
    if let Some((name, version)) = source_parts(text) {
        assert!(text.starts_with(&format!("{name}-{version}.")));
    }
}

/// What is made of rows that were read.
pub(super) fn rows(rows: Vec<super::Row>) {
    let doubled_names = doubled(&rows).len();
    let newest = newest(rows.clone());
    assert!(newest.len() + doubled_names <= rows.len());
    assert_eq!(installed(rows, &std::collections::BTreeSet::new()).len(), newest.len());
}

/// Two versions.
pub(crate) fn versions(a: &str, b: &str) {
    assert_eq!(compare(a, b), compare(b, a).reverse());
    assert_eq!(compare(a, a), std::cmp::Ordering::Equal);
}
