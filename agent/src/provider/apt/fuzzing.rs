//! Any bytes in the place of what apt and dpkg print.

use patchwarden_protocol::versions::deb;

use super::index::Search;
use super::{history, parse, policy, room};
use crate::provider::support::MAX_MESSAGE;

/// `apt-get --simulate`.
pub(crate) fn simulation(text: &str) {
    if let Ok(simulation) = parse::simulation(text) {
        let told = simulation.changes.len() + simulation.removals.len() + simulation.configures.len();
        let lines =
            text.lines().filter(|line| ["Inst ", "Remv ", "Purg ", "Conf "].iter().any(|verb| line.starts_with(verb)));
        assert!(told <= lines.count(), "more is told than lines say");
    }
}

/// `apt-cache show` and `policy`, indexes, `dpkg-query`, `dpkg-deb --contents` and `apt-get --print-uris`.
pub(crate) fn lists(text: &str) {
    room::fuzz(text);
    let described = parse::descriptions(text);
    let search = |pieces: &[&[u8]]| {
        let mut search = Search::new(described.iter().map(|found| found.name.as_str()).collect());
        if pieces.iter().try_for_each(|piece| search.read(piece)).is_ok() {
            let _ = search.end_of_index();
        }
        search.found()
    };
    let found = search(&[text.as_bytes()]);
    let (before, after) = text.as_bytes().split_at(text.len() / 2);
    assert_eq!(search(&[before, after]), found, "an index may be cut anywhere");
    assert!(found.descriptions.values().all(|found| described.contains(found)), "an index tells what apt-cache would");
    for policy in policy::policies(text).unwrap_or_default() {
        let is_known = |(version, _)| policy.is_against(version) || policy.is_phased(version);
        assert!(policy.kept(None).is_none_or(is_known), "{policy:?}");
    }
    if let Ok(rows) = parse::rows(text) {
        assert_eq!(rows.len(), text.lines().count(), "no line is left out");
        for row in rows {
            let _ = (row.is_image_of_kernel(), row.clone().into_package(), row.into_installed());
        }
    }
    for artifact in parse::artifacts(text).unwrap_or_default() {
        assert!(!artifact.file_name.contains('/'), "{artifact:?} is a file of the archives directory");
    }
}

/// The histories of apt and dpkg.
pub(crate) fn histories(text: &str) {
    history::fuzz(text);
}

/// What apt complains of.
pub(crate) fn messages(text: &str) {
    let names: Vec<&str> = text.split_whitespace().take(3).collect();
    assert!(parse::error_lines(text, &names, MAX_MESSAGE).len() <= MAX_MESSAGE);
    assert!(parse::unavailable(text).len() <= text.lines().count());
    let _ = parse::classification(text);
}

/// Two versions, with a space between them.
pub(crate) fn versions(a: &str, b: &str) {
    assert_eq!(deb::compare(a, b), deb::compare(b, a).reverse());
    assert_eq!(deb::compare(a, a), std::cmp::Ordering::Equal);
    assert_eq!(parse::compare_releases(a, b), parse::compare_releases(b, a).reverse());
}
