//! Whether each file system has room for what packages bring there: by the files in them, and by those of the versions that go.
//!
//! dpkg unpacks one package after the other, each beside its old version. So what is needed at once is by how much all grow, and the
//! most that one of them has in both versions. What their scripts make is in no list.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

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

/// Bytes on one file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    new: u64,
    old: u64,
}

/// A file system, and a directory on it.
#[derive(Clone, Debug)]
struct Place {
    directory: PathBuf,
    free: u64,
    packages: Vec<Sizes>,
}

/// Fails where one has less free than what these files bring there needs.
pub(super) async fn check(files: &[Artifact], archives: &Path) -> Result<(), Failure> {
    let mut places: BTreeMap<u64, Place> = BTreeMap::new();
    for file in files {
        let mut package = Package::default();
        let mut command = line("/usr/bin/dpkg-deb", ["--contents"]);
        command.words.push(archives.join(&file.file_name).into());
        let output = stream(&command, LOCAL_LIMIT, |bytes| package.read(bytes)).await?;
        checked(output)?;
        package.read_installed(file).map_err(|error| broken(format!("{INFO}: {}: {error}", file.name)))?;
        for (device, (place, sizes)) in package.found {
            places.entry(device).or_insert(place).packages.push(sizes);
        }
    }
    for Place { directory, free, packages } in places.into_values() {
        let needed = needed(&packages);
        if needed > free {
            let mounted = platform::mount_point(&directory).unwrap_or(directory);
            return Err(no_room(&mounted.display().to_string(), needed, free));
        }
    }
    Ok(())
}

/// What these packages need at once on one file system.
fn needed(packages: &[Sizes]) -> u64 {
    let growth: u64 = packages.iter().map(|Sizes { new, old }| new.saturating_sub(*old)).sum();
    growth + packages.iter().map(|Sizes { new, old }| *new.min(old)).max().unwrap_or_default()
}

/// One package's files.
#[derive(Default)]
struct Package {
    found: BTreeMap<u64, (Place, Sizes)>,
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
                self.add(Path::new(path), |sizes| sizes.new += blocks(size));
            }
        }
        self.begun.extend_from_slice(rest);
        if self.begun.len() > MAX_LINE {
            return Err(io::Error::other(format!("printed a line of more than {MAX_LINE} bytes")));
        }
        Ok(())
    }

    /// The files of the version that is installed, where one is.
    fn read_installed(&mut self, file: &Artifact) -> io::Result<()> {
        let names = [format!("{INFO}/{}:{}.list", file.name, file.arch), format!("{INFO}/{}.list", file.name)];
        for name in names {
            let list = match File::open(name) {
                Ok(list) => list,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for path in BufReader::new(list).split(b'\n') {
                let path = PathBuf::from(String::from_utf8_lossy(&path?).into_owned());
                // What is not there any more frees nothing.
                if let Ok(about) = fs::symlink_metadata(&path)
                    && about.is_file()
                {
                    self.add(&path, |sizes| sizes.old += blocks(about.len()));
                }
            }
            break;
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
                let Some((above, FreeSpace { device, bytes: free })) = directory.ancestors().find_map(look) else {
                    return;
                };
                let place = || (Place { directory: above, free, packages: Vec::new() }, Sizes::default());
                self.found.entry(device).or_insert_with(place);
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
    bytes.div_ceil(BLOCK) * BLOCK
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
            let found: Vec<_> = package.found.into_values().map(|(place, sizes)| (place.directory, sizes)).collect();
            assert_eq!(found, [("/proc".into(), Sizes { new: 3 * BLOCK, old: 0 })], "{cut}");
        }
        assert!(Package::default().read(&vec![b'x'; MAX_LINE + 1]).is_err());
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
