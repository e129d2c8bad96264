//! What the indexes that `apt-get update` has left say of some packages. Pure.
//!
//! An index is a sequence of paragraphs, one for each version, with an empty line after each (deb822(5), "Packages" in
//! Debian's repository format). `apt-cache show` prints them as they are, but reads a compressed index from its start for
//! each package that it is asked about, and everything else before that where apt keeps no cache; here all are read in one
//! pass. Which of several files of a version apt would take is apt's to say: where indexes differ, nothing is found.

use std::collections::btree_map::Entry as MapEntry;
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

/// A version in the indexes.
#[derive(Debug)]
struct Entry {
    /// Nothing where indexes differ.
    description: Option<Description>,
    seen: Seen,
}

/// Where a version was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The indexes that have it: the first that was read is 0.
    pub(super) indexes: Vec<usize>,
    /// Whether one of them says that not all machines are to have it yet.
    pub(super) is_phased: bool,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Of what is the same in every index.
    pub(super) descriptions: BTreeMap<PackageKey, Description>,
    /// Every version.
    pub(super) versions: BTreeMap<PackageKey, Seen>,
}

/// Which of these files is the Release file of an index: the one that is for the longest part of the address that it came from.
pub(super) fn release_of<'a>(index: &str, files: &'a [String]) -> Option<&'a str> {
    let place = |file: &str| {
        let place = file.strip_suffix("InRelease").or_else(|| file.strip_suffix("Release"))?;
        (place.ends_with('_') && index.starts_with(place)).then_some(place.len())
    };
    let places = files.iter().filter_map(|file| Some((place(file)?, file.as_str())));
    places.max().map(|(_, file)| file)
}

/// Whether a signature vouches for an index: apt keeps one that it has verified, and no other, beside the Release file.
pub(super) fn is_signed(index: &str, files: &[String]) -> bool {
    let Some(release) = release_of(index, files) else { return false };
    let place = release.strip_suffix("InRelease").or_else(|| release.strip_suffix("Release")).unwrap_or(release);
    ["InRelease", "Release.gpg"].iter().any(|name| files.contains(&format!("{place}{name}")))
}

/// What a Release file calls its repository: see [`origin`].
pub(super) fn origin_of(release: &str) -> String {
    let field =
        |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim);
    origin(field("Label"), field("Version"), field("Suite"))
}

/// A repository as `apt-get -s` writes it: `LABEL:VERSION/SUITE`, each part only if it is there.
pub(super) fn origin(label: Option<&str>, version: Option<&str>, suite: Option<&str>) -> String {
    let label = label.map(|label| format!("{label}:")).unwrap_or_default();
    let suite = match (version, suite) {
        (Some(version), Some(suite)) => format!("{version}/{suite}"),
        (one, other) => one.or(other).unwrap_or_default().to_owned(),
    };
    format!("{label}{suite}")
}

/// Looks for packages of some names in indexes that come piece by piece.
#[derive(Debug)]
pub(super) struct Search<'a> {
    names: BTreeSet<&'a str>,
    /// The beginning of a paragraph whose end has not come yet.
    begun: Vec<u8>,
    found: BTreeMap<PackageKey, Entry>,
    /// How many indexes were read to their end.
    indexes: usize,
    /// What they take.
    bytes: usize,
}

impl<'a> Search<'a> {
    /// A search for every version of the packages of these names.
    pub(super) fn new(names: BTreeSet<&'a str>) -> Self {
        Self { names, begun: Vec::new(), found: BTreeMap::new(), indexes: 0, bytes: 0 }
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
        self.paragraph(&last)?;
        self.indexes += 1;
        Ok(())
    }

    pub(super) fn found(self) -> Found {
        let mut found = Found::default();
        for (key, Entry { description, seen }) in self.found {
            found.descriptions.extend(description.map(|description| (key.clone(), description)));
            found.versions.insert(key, seen);
        }
        found
    }

    fn paragraph(&mut self, bytes: &[u8]) -> Result<(), String> {
        let is_wanted = |name: &[u8]| str::from_utf8(name).is_ok_and(|name| self.names.contains(name));
        // Almost always its first line.
        let name = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Package: "));
        if !name.is_some_and(is_wanted) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(bytes);
        let is_phased = text
            .lines()
            .filter_map(|line| line.strip_prefix("Phased-Update-Percentage: "))
            .any(|of| of.trim() != "100");
        let description = parse::description(&text);
        self.bytes += description.bytes();
        if self.bytes > MAX_FOUND {
            return Err(format!("what they say of the installed packages takes more than {MAX_FOUND} bytes"));
        }
        match self.found.entry(description.key()) {
            MapEntry::Vacant(entry) => {
                let seen = Seen { indexes: vec![self.indexes], is_phased };
                entry.insert(Entry { description: Some(description), seen });
            }
            MapEntry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if known.description.as_ref() != Some(&description) {
                    known.description = None;
                }
                known.seen.is_phased |= is_phased;
                if known.seen.indexes.last() != Some(&self.indexes) {
                    known.seen.indexes.push(self.indexes);
                }
            }
        }
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
        search_all(pieces, names).descriptions
    }

    fn search_all(pieces: &[&[&[u8]]], names: &[&str]) -> Found {
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
    fn of_each_version_it_is_told_which_indexes_have_it() {
        let other = INDEX.replace("SHA256: 8213", "SHA256: 8214");
        let next = "Package: sed\nVersion: 4.9-2\nArchitecture: amd64\nPhased-Update-Percentage: 0\n\n\
                    Package: bash\nVersion: 9\nArchitecture: amd64\nPhased-Update-Percentage: 100\n";
        let pieces = [INDEX, next, &other].map(|index| [index.as_bytes()]);
        let found = search_all(&[&pieces[0], &pieces[1], &pieces[2]], &["bash", "sed"]);
        let expected = [
            (key("bash", "amd64", "5.2.15-2+b13"), Seen { indexes: vec![0, 2], is_phased: false }),
            (key("sed", "amd64", "4.9-1"), Seen { indexes: vec![0, 2], is_phased: false }),
            (key("sed", "amd64", "4.9-2"), Seen { indexes: vec![1], is_phased: true }),
            (key("bash", "amd64", "9"), Seen { indexes: vec![1], is_phased: false }),
        ];
        assert_eq!(found.versions, BTreeMap::from(expected), "also of what they do not agree on");
    }

    #[test]
    fn a_paragraph_without_end_is_no_index() {
        let mut search = Search::new(BTreeSet::from(["bash"]));
        let piece = vec![b'x'; 64 * 1024];
        let read = (0..=16).try_for_each(|_| search.read(&piece));
        assert!(read.unwrap_err().contains("1048576"));
    }

    #[test]
    fn a_release_file_names_its_repository_as_apt_does() {
        let signed = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nLabel: Debian-Security\nSuite: stable-security\n\
                      Version: 12\nCodename: bookworm-security\nSHA256:\n 00 1 main/Label: no\n";
        for (release, expected) in [
            (signed, "Debian-Security:12/stable-security"),
            ("Label: Test\nSuite: stable\n", "Test:stable"),
            ("Suite: stable\nVersion: 1\n", "1/stable"),
            ("Origin: Test\nLabel: Test\n", "Test:"),
            ("", ""),
        ] {
            assert_eq!(origin_of(release), expected);
        }
    }

    #[test]
    fn the_release_file_of_an_index_is_that_of_its_own_suite() {
        let files =
            ["deb.example_debian_dists_stable_InRelease", "deb.example_debian_dists_stable_updates_Release", "lock"]
                .map(str::to_owned);
        let of = |index: &str| release_of(index, &files).map(str::to_owned);
        let index = |suite: &str| format!("deb.example_debian_dists_{suite}_main_binary-amd64_Packages.lz4");
        assert_eq!(of(&index("stable")).as_ref(), Some(&files[0]));
        assert_eq!(of(&index("stable_updates")).as_ref(), Some(&files[1]));
        assert_eq!(of(&index("stable-updates")), None);
        let flat = ["_srv_repository_._Release".to_owned()];
        assert_eq!(release_of("_srv_repository_._Packages.xz", &flat), Some("_srv_repository_._Release"));
    }

    #[test]
    fn an_index_is_signed_whose_signature_apt_has_kept() {
        let files = ["a_dists_x_InRelease", "b_dists_x_Release", "b_dists_x_Release.gpg", "c_dists_x_Release"]
            .map(str::to_owned);
        let is_signed = |host: &str| is_signed(&format!("{host}_dists_x_main_binary-amd64_Packages"), &files);
        assert_eq!(["a", "b", "c", "d"].map(is_signed), [true, true, false, false]);
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
