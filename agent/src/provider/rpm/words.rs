//! What rpm, and whatever is on top of it, prints under `LC_ALL=C`. Pure.

use patchwarden_protocol::order::PackageChange;

use crate::provider::bounded;
use crate::provider::support::MAX_MESSAGE;

/// Whether the output tells of a full disk.
pub(in crate::provider) fn is_disk_full(output: &str) -> bool {
    ["No space left on device", "more space needed on the", "more space on the"]
        .iter()
        .any(|words| output.contains(words))
}

/// Scripts of these packages that failed after their files were there.
pub(in crate::provider) fn remarks(output: &str, packages: &[PackageChange]) -> String {
    let is_about_one = |line: &&str| packages.iter().any(|package| is_about(line, &package.name));
    let lines = output.lines().map(str::trim).filter(|line| line.contains("scriptlet failed")).filter(is_about_one);
    bounded(&lines.collect::<Vec<_>>().join("\n"), MAX_MESSAGE)
}

/// Lines that say what is wrong, those about `names` first.
pub(in crate::provider) fn error_lines(output: &str, names: &[&str], says: &[&str]) -> String {
    let says = |line: &&str| says.iter().any(|words| line.contains(words));
    let names_one = |line: &&str| names.iter().any(|name| is_about(line, name));
    let lines: Vec<&str> = output.lines().map(str::trim).filter(says).collect();
    let (own, others): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(names_one);
    let mut chosen: Vec<&str> = Vec::new();
    for line in own.into_iter().chain(others) {
        if !chosen.contains(&line) {
            chosen.push(line);
        }
    }
    bounded(&chosen.join("\n"), MAX_MESSAGE)
}

/// `NAME` as a whole, or in front of a version: not `pw-a` in `pw-ab`, nor in `pw-a-tools`.
pub(in crate::provider) fn is_about(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let mut after = line[at + name.len()..].chars();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+');
        let ends = match after.next() {
            None => true,
            Some('-') => after.next().is_some_and(|c| c.is_ascii_digit()),
            Some(c) => !is_part(c),
        };
        ends && !before.is_some_and(is_part)
    })
}
