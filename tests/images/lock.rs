//! Crates, by the lock file.

use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Crate {
    pub(crate) fn new(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: version.to_owned() }
    }

    /// As `cargo tree` prints one: `NAME vVERSION`, and perhaps where it is.
    pub(crate) fn of_tree(line: &str) -> Self {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        Self::new(name, words.next().and_then(|version| version.strip_prefix('v')).unwrap_or_else(|| panic!("{line}")))
    }
}

/// All of them, each with its SHA-256 where it is of a registry.
pub(crate) fn read(file: &Path) -> BTreeMap<Crate, Option<String>> {
    let text = std::fs::read_to_string(file).unwrap();
    let of = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let packages = text.split("[[package]]\n").skip(1);
    packages
        .map(|package| {
            let crate_ = Crate { name: of(package, "name").unwrap(), version: of(package, "version").unwrap() };
            (crate_, of(package, "checksum"))
        })
        .collect()
}
