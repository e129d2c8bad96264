//! What the indexes that `apt-get update` has left say of some packages. Pure.
//!
//! An index is a sequence of paragraphs, one for each version, with an empty line after each (deb822(5), "Packages" in
//! Debian's repository format). `apt-cache show` prints them as they are, but reads a compressed index from its start for
//! each package that it is asked about, and everything else before that where apt keeps no cache; here all are read in one
//! pass. Which of several files of a version apt would take is apt's to say: where indexes differ, nothing is found.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::parse::{self, Description, PackageKey};

/// Bytes of the longest paragraph: what is longer is no index. Debian's longest have some ten thousand.
const MAX_PARAGRAPH: usize = 1024 * 1024;

/// Bytes of all that is found: some hundred for each version of an installed package.
const MAX_FOUND: usize = 8 * 1024 * 1024;

/// Whether a file in apt's directory of lists (`Dir::State::lists` of apt.conf(5)) is an index of packages, compressed or
/// not: its name is the address that it came from, with `_` for `/`.
pub(super) fn is_index(file_name: &str) -> bool {
    file_name.rsplit('_').next().is_some_and(|end| end == "Packages" || end.starts_with("Packages."))
}

/// Looks for packages of some names in indexes that come piece by piece.
#[derive(Debug)]
pub(super) struct Search<'a> {
    names: BTreeSet<&'a str>,
    /// The beginning of a paragraph whose end has not come yet.
    begun: Vec<u8>,
    /// Nothing where indexes differ.
    found: BTreeMap<PackageKey, Option<Description>>,
    /// What they take.
    bytes: usize,
}

impl<'a> Search<'a> {
    /// A search for every version of the packages of these names.
    pub(super) fn new(names: BTreeSet<&'a str>) -> Self {
        Self { names, begun: Vec::new(), found: BTreeMap::new(), bytes: 0 }
    }

    /// Reads the next bytes of the index, which may end anywhere. An error tells that it is none.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        // An empty line may begin with the last byte of what was there before.
        let mut from = self.begun.len().saturating_sub(1);
        let mut begun = mem::take(&mut self.begun);
        begun.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(end) = begun[from..].windows(2).position(|two| two == b"\n\n") {
            let end = from + end;
            self.paragraph(&begun[start..end])?;
            (start, from) = (end + 1, end + 1);
        }
        begun.drain(..start);
        self.begun = begun;
        if self.begun.len() > MAX_PARAGRAPH {
            return Err(format!("it has a paragraph of more than {MAX_PARAGRAPH} bytes"));
        }
        Ok(())
    }

    /// The index is at its end: what comes next is another one.
    pub(super) fn end_of_index(&mut self) -> Result<(), String> {
        let last = mem::take(&mut self.begun);
        self.paragraph(&last)
    }

    /// What was found and is the same in every index.
    pub(super) fn found(self) -> BTreeMap<PackageKey, Description> {
        self.found.into_iter().filter_map(|(key, found)| found.map(|found| (key, found))).collect()
    }

    fn paragraph(&mut self, bytes: &[u8]) -> Result<(), String> {
        let is_wanted = |name: &[u8]| str::from_utf8(name).is_ok_and(|name| self.names.contains(name));
        // Almost always its first line.
        let name = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Package: "));
        if !name.is_some_and(is_wanted) {
            return Ok(());
        }
        let description = parse::description(&String::from_utf8_lossy(bytes));
        self.bytes += description.bytes();
        if self.bytes > MAX_FOUND {
            return Err(format!("what they say of the installed packages takes more than {MAX_FOUND} bytes"));
        }
        self.found
            .entry(description.key())
            .and_modify(|known| {
                if known.as_ref() != Some(&description) {
                    *known = None;
                }
            })
            .or_insert(Some(description));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "Package: bash\nSource: bash (5.2.15-2)\nVersion: 5.2.15-2+b13\nArchitecture: amd64\n\
                         Size: 1490652\nSHA256: 8213\nDescription: x\n .\n Package: sed\n\n\
                         Package: bash-doc\nVersion: 5\nArchitecture: all\nSHA256: 00\n\n\n\
                         Priority: required\nPackage: sed\nVersion: 4.9-1\nArchitecture: amd64\nSHA256: 11\n";

    fn search(pieces: &[&[&[u8]]], names: &[&str]) -> BTreeMap<PackageKey, Description> {
        let mut search = Search::new(names.iter().copied().collect());
        for index in pieces {
            for piece in *index {
                search.read(piece).unwrap();
            }
            search.end_of_index().unwrap();
        }
        search.found()
    }

    fn key(name: &str, arch: &str, version: &str) -> PackageKey {
        (name.into(), arch.into(), version.into())
    }

    #[test]
    fn an_index_says_the_same_wherever_it_is_cut() {
        let whole = search(&[&[INDEX.as_bytes()]], &["bash", "sed", "zsh"]);
        let keys: Vec<_> = whole.keys().cloned().collect();
        assert_eq!(keys, [key("bash", "amd64", "5.2.15-2+b13"), key("sed", "amd64", "4.9-1")]);
        let shown: Vec<_> = parse::descriptions(INDEX).into_iter().filter(|found| found.name != "bash-doc").collect();
        assert_eq!(whole.values().cloned().collect::<Vec<_>>(), shown, "as apt-cache would show it");
        for at in 0..=INDEX.len() {
            let (before, after) = INDEX.as_bytes().split_at(at);
            assert_eq!(search(&[&[before, after]], &["bash", "sed"]), whole, "{at}");
        }
        let bytes: Vec<&[u8]> = INDEX.as_bytes().chunks(1).collect();
        assert_eq!(search(&[&bytes], &["bash", "sed"]), whole);
    }

    #[test]
    fn one_index_ends_where_the_next_begins() {
        let next = "Package: zsh\nVersion: 5.9\nArchitecture: amd64\n";
        let found = search(&[&[INDEX.as_bytes()], &[next.as_bytes()]], &["sed", "zsh"]);
        let keys: Vec<_> = found.keys().cloned().collect();
        assert_eq!(keys, [key("sed", "amd64", "4.9-1"), key("zsh", "amd64", "5.9")]);
    }

    #[test]
    fn of_a_version_that_indexes_do_not_agree_on_nothing_is_found() {
        let other = INDEX.replace("SHA256: 8213", "SHA256: 8214");
        let found = search(&[&[INDEX.as_bytes()], &[INDEX.as_bytes()]], &["bash", "sed"]);
        assert_eq!(found.len(), 2, "the same twice is no contradiction");
        for indexes in [[INDEX, &other, &other], [INDEX, &other, INDEX]] {
            let pieces = indexes.map(|index| [index.as_bytes()]);
            let found = search(&[&pieces[0], &pieces[1], &pieces[2]], &["bash", "sed"]);
            assert_eq!(found.into_keys().collect::<Vec<_>>(), [key("sed", "amd64", "4.9-1")]);
        }
    }

    #[test]
    fn a_paragraph_without_end_is_no_index() {
        let mut search = Search::new(BTreeSet::from(["bash"]));
        let piece = vec![b'x'; 64 * 1024];
        let read = (0..=16).try_for_each(|_| search.read(&piece));
        assert!(read.unwrap_err().contains("1048576"));
    }

    #[test]
    fn indexes_are_told_by_their_names() {
        for name in [
            "deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages",
            "deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages.lz4",
            "_srv_repository_._Packages.xz",
        ] {
            assert!(is_index(name), "{name}");
        }
        for name in [
            "deb.debian.org_debian_dists_bookworm_InRelease",
            "deb.debian.org_debian_dists_bookworm_main_i18n_Translation-en",
            "deb.debian.org_debian_dists_bookworm_main_dep11_Components-amd64.yml.gz",
            "example_Packages_main_source_Sources",
            "lock",
            "",
        ] {
            assert!(!is_index(name), "{name}");
        }
    }
}
