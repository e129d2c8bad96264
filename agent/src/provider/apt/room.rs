//! Whether each file system has room for what packages bring there: by the files in them, and by those of the versions that go.
//!
//! dpkg unpacks one package after the other, each beside its old version. So what is needed at once is by how much all grow, and the
//! most that one of them has in both versions. What their scripts make is in no list. To list a package's files is to decompress it,
//! so it is done where there are several file systems alone, and once for each file. What cannot be listed refuses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::commands::{checked, line};
use crate::platform::{self, FreeSpace};
use crate::provider::run::stream;
use crate::provider::support::{LOCAL_LIMIT, broken};
use crate::provider::{Artifact, Failure, no_room};

/// Where dpkg keeps lists of packages' files.
const INFO: &str = "/var/lib/dpkg/info";

/// What most file systems take for a file, however small.
const BLOCK: u64 = 4096;

/// Longest line of a list that is read: longer than any path may be.
const MAX_LINE: usize = 16 << 10;

/// Bytes of a package that are decompressed in a second, also with little of a slow processor.
const SLOWEST: u64 = 256 << 10;

/// Bytes that must stay free where others write as well: the journal, dpkg's database, scripts.
const MARGIN: u64 = 32 << 20;

/// Packages of which is remembered what was found.
const REMEMBERED: usize = 1024;

/// Bytes on one file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    new: u64,
    old: u64,
}

/// What one package has on each file system, with a directory that is on it.
type Found = BTreeMap<u64, (PathBuf, Sizes)>;

/// What was found: an order's files are looked at again and again where there is too little room for all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<BTreeMap<Key, Found>>>);

/// A file by its digest, and when what is installed of the package was unpacked.
type Key = (String, Option<SystemTime>);

impl Memory {
    /// Fails where a file system has less free than what these files bring there needs.
    pub(super) async fn check(&self, files: &[Artifact], archives: &Path) -> Result<(), Failure> {
        let mut places: BTreeMap<u64, (PathBuf, Vec<Sizes>)> = BTreeMap::new();
        for file in files {
            match self.find(file, archives).await {
                Ok(found) => {
                    for (device, (directory, sizes)) in found {
                        places.entry(device).or_insert((directory, Vec::new())).1.push(sizes);
                    }
                }
                Err(error) => tracing::warn!("{}: what it brings where is not known: {error}", file.file_name),
            }
        }
        let shared: Vec<u64> = [Path::new("/"), Path::new(INFO)]
            .into_iter()
            .filter_map(|place| Some(platform::free_space(place).ok()?.device))
            .collect();
        for (device, (directory, packages)) in places {
            let Ok(FreeSpace { bytes: free, .. }) = platform::free_space(&directory) else { continue };
            let margin = if shared.contains(&device) { MARGIN } else { 0 };
            let needed = needed(&packages).saturating_add(margin);
            if needed > free {
                let mounted = platform::mount_point(&directory).unwrap_or(directory);
                return Err(no_room(&mounted.display().to_string(), needed, free));
            }
        }
        Ok(())
    }

    async fn find(&self, file: &Artifact, archives: &Path) -> Result<Found, Failure> {
        let list = list_of(file);
        let unpacked = list.as_ref().and_then(|list| fs::metadata(list).ok()?.modified().ok());
        let key = (file.sha256.clone(), unpacked);
        let known = |memory: &Self| memory.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(found) = known(self) {
            return Ok(found);
        }
        let mut package = Package::default();
        if let Some(list) = list {
            package.read_installed(&list).map_err(|error| broken(format!("{}: {error}", list.display())))?;
        }
        let mut command = line("/usr/bin/dpkg-deb", ["--contents"]);
        command.words.push(archives.join(&file.file_name).into());
        let limit = LOCAL_LIMIT + Duration::from_secs(file.size / SLOWEST);
        checked(stream(&command, limit, |bytes| package.read(bytes)).await?)?;
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= REMEMBERED {
            memory.clear();
        }
        Ok(memory.entry(key).or_insert(package.found).clone())
    }
}

/// The list of files of the version that is installed, where one is.
fn list_of(file: &Artifact) -> Option<PathBuf> {
    let names = [format!("{INFO}/{}:{}.list", file.name, file.arch), format!("{INFO}/{}.list", file.name)];
    names.map(PathBuf::from).into_iter().find(|list| list.exists())
}

/// What these packages need at once on one file system.
fn needed(packages: &[Sizes]) -> u64 {
    let growth = packages.iter().map(|Sizes { new, old }| new.saturating_sub(*old)).fold(0, u64::saturating_add);
    growth.saturating_add(packages.iter().map(|Sizes { new, old }| *new.min(old)).max().unwrap_or_default())
}

/// One package's files.
#[derive(Default)]
struct Package {
    found: Found,
    /// Files of the installed version that are not there: dpkg was told not to unpack them (`path-exclude`), or they were removed.
    absent: BTreeSet<PathBuf>,
    /// Files of the installed version that have several names.
    linked: BTreeSet<(u64, u64)>,
    /// The directory that was looked at last, of which the next file mostly is, and its file system.
    last: Option<(PathBuf, u64)>,
    /// The beginning of a line.
    begun: Vec<u8>,
}

impl Package {
    /// A piece of what `dpkg-deb --contents` prints.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = [&std::mem::take(&mut self.begun)[..], &rest[..end]].concat();
            rest = &rest[end + 1..];
            if let Some((path, size)) = file_of(&String::from_utf8_lossy(&line)) {
                let path = Path::new(path);
                if !self.absent.contains(path) {
                    self.add(path, |sizes| sizes.new = sizes.new.saturating_add(blocks(size)));
                }
            }
        }
        self.begun.extend_from_slice(rest);
        if self.begun.len() > MAX_LINE {
            return Err(io::Error::other(format!("printed a line of more than {MAX_LINE} bytes")));
        }
        Ok(())
    }

    /// The files of the version that is installed, by their list.
    fn read_installed(&mut self, list: &Path) -> io::Result<()> {
        for path in BufReader::new(File::open(list)?).split(b'\n') {
            let path = PathBuf::from(String::from_utf8_lossy(&path?).into_owned());
            match fs::symlink_metadata(&path) {
                // Two names of one file take its room once, and so does what comes.
                Ok(about) if about.is_file() => {
                    if platform::linked_file(&about).is_none_or(|file| self.linked.insert(file)) {
                        self.add(&path, |sizes| sizes.old = sizes.old.saturating_add(blocks(about.len())));
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    self.absent.insert(path);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, count: impl FnOnce(&mut Sizes)) {
        let Some(directory) = path.parent() else { return };
        let device = match &self.last {
            Some((last, device)) if last == directory => *device,
            _ => {
                let look = |directory: &Path| Some((directory.to_owned(), platform::free_space(directory).ok()?));
                // One that is new is made where the one above it is.
                let Some((above, FreeSpace { device, .. })) = directory.ancestors().find_map(look) else {
                    return;
                };
                self.found.entry(device).or_insert_with(|| (above, Sizes::default()));
                self.last = Some((directory.to_owned(), device));
                device
            }
        };
        if let Some((_, sizes)) = self.found.get_mut(&device) {
            count(sizes);
        }
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Path and bytes of a regular file: `-rwxr-xr-x root/root     44016 2022-09-20 15:27 ./bin/cat`. A link has no bytes of its own.
fn file_of(line: &str) -> Option<(&str, u64)> {
    let mut rest = line.strip_prefix('-')?;
    let mut word = || {
        let (word, after) = rest.trim_start_matches(' ').split_once(' ')?;
        rest = after;
        Some(word)
    };
    let (_mode, _owner, size, _date, _time) = (word()?, word()?, word()?, word()?, word()?);
    Some((rest.strip_prefix('.').filter(|path| path.starts_with('/'))?, size.parse().ok()?))
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    for line in text.lines() {
        if let Some((path, _)) = file_of(line) {
            assert!(path.starts_with('/'), "{path} is where dpkg would put it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contents_of_a_package_are_its_regular_files() {
        for (line, expected) in [
            ("-rwxr-xr-x root/root     44016 2022-09-20 15:27 ./bin/cat", Some(("/bin/cat", 44016))),
            ("-rw-r--r-- 0/0 7 2022-09-20 15:27 ./a b/ c", Some(("/a b/ c", 7))),
            ("drwxr-xr-x root/root         0 2022-09-20 15:27 ./bin/", None),
            ("lrwxrwxrwx root/root         0 2022-09-20 15:27 ./bin/sh -> dash", None),
            ("hrwxrwxrwx root/root         0 2022-09-20 15:27 ./bin/x link to ./bin/y", None),
            ("-rw-r--r-- root/root many 2022-09-20 15:27 ./bin/cat", None),
            ("-rw-r--r-- root/root 7 2022-09-20 15:27 elsewhere", None),
            ("-", None),
        ] {
            assert_eq!(file_of(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_read_in_pieces_is_what_is_read_at_once() {
        let text = "-rw-r--r-- root/root 1 2022-09-20 15:27 ./proc/none/a\n-rw-r--r-- root/root 4097 2022-09-20 15:27 ./proc/none/b\n";
        for cut in 0..text.len() {
            let mut package = Package::default();
            package.read(&text.as_bytes()[..cut]).unwrap();
            package.read(&text.as_bytes()[cut..]).unwrap();
            let found: Vec<_> = package.found.into_values().collect();
            assert_eq!(found, [("/proc".into(), Sizes { new: 3 * BLOCK, old: 0 })], "{cut}");
        }
        assert!(Package::default().read(&vec![b'x'; MAX_LINE + 1]).is_err());
    }

    #[test]
    fn of_what_is_installed_a_file_counts_once_and_what_was_left_out_does_not_come_either() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("a"), vec![b'x'; 5000]).unwrap();
        fs::hard_link(at("a"), at("b")).unwrap();
        let list = ["", "a", "b", "excluded"].map(|name| at(name).display().to_string()).join("\n");
        fs::write(at("list"), list).unwrap();
        let mut package = Package::default();
        package.read_installed(&at("list")).unwrap();
        let line = |name: &str| format!("-rw-r--r-- root/root 9000 2022-09-20 15:27 .{}\n", at(name).display());
        for name in ["a", "excluded", "new"] {
            package.read(line(name).as_bytes()).unwrap();
        }
        let found: Vec<Sizes> = package.found.into_values().map(|(_, sizes)| sizes).collect();
        assert_eq!(found, [Sizes { new: 6 * BLOCK, old: 2 * BLOCK }]);
        assert_eq!(blocks(u64::MAX), u64::MAX, "a size that somebody made up");
    }

    #[test]
    fn at_once_all_growth_is_needed_and_the_largest_package_in_both_versions() {
        let of = |new, old| Sizes { new, old };
        assert_eq!(needed(&[]), 0);
        assert_eq!(needed(&[of(300, 0)]), 300, "nothing is there that it would lie beside");
        assert_eq!(needed(&[of(300, 290)]), 300);
        assert_eq!(needed(&[of(300, 290), of(50, 45), of(10, 100)]), 10 + 5 + 290);
    }
}
