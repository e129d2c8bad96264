//! Files downloaded ahead, for an install to come.
//!
//! They lie in `downloads/` of the state directory, which only root enters, each under its SHA-256. `index.json` beside
//! them says of each what it looked like when it was verified, so that a scan need not hash it again, and for which
//! updates it was ordered. A file that does not look so any more, or that the index does not know, is as good as none.
//! Whoever takes a file out hashes it again.
//!
//! The caller holds the agent's turn.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use patchwarden_protocol::result::ResultReason;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileStamp};
use crate::provider::{Artifact, Failure, Inventory, megabytes};

const DIRECTORY: &str = "downloads";

const INDEX: &str = "index.json";

/// The place.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    directory: PathBuf,
    /// Bytes that all files together may take, if there is a limit beside the free space.
    limit: Option<u64>,
}

/// What is known of the files, by their SHA-256.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Index(BTreeMap<String, Entry>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The file when it was verified.
    stamp: FileStamp,
    /// `artifactsDigest` of the updates that it was ordered with. A new package that an update needs is in no update's own
    /// files: this is why it stays.
    wanted_by: BTreeSet<String>,
}

impl Keep {
    /// The keep below a state directory.
    pub(crate) fn new(state: &Path, limit: Option<u64>) -> Self {
        Self { directory: state.join(DIRECTORY), limit }
    }

    /// SHA-256 and bytes of every file that is as it was when it was verified.
    pub(crate) fn whole(&self) -> BTreeMap<String, u64> {
        let index = self.index();
        let is_whole = |sha256: &str, entry: &Entry| {
            self.path_of(sha256).is_some_and(|path| files::stamp(&path).ok().flatten() == Some(entry.stamp))
        };
        index.0.into_iter().filter(|(name, entry)| is_whole(name, entry)).map(|(name, e)| (name, e.stamp.3)).collect()
    }

    /// Whether `missing` bytes more may be kept.
    pub(crate) fn check_room(&self, missing: u64) -> Result<(), Failure> {
        let taken: u64 = self.whole().values().sum();
        match self.limit {
            Some(limit) if taken.saturating_add(missing) > limit => {
                let message = format!(
                    "downloads may take {} (downloads_max_mb in agent.toml), {} are taken and {} are ordered",
                    megabytes(limit),
                    megabytes(taken),
                    megabytes(missing)
                );
                Err(Failure::new(ResultReason::DiskFull, message))
            }
            _ => Ok(()),
        }
    }

    /// Puts the artifact's file at `to`, where nothing is, if it is here. What was put there has been hashed; a file that
    /// is another one than the index says is thrown away.
    pub(crate) fn lend(&self, artifact: &Artifact, to: &Path) -> io::Result<bool> {
        let Some(path) = self.path_of(&artifact.sha256) else { return Ok(false) };
        if put_verified(&path, to, &artifact.sha256)? {
            return Ok(true);
        }
        match fs::remove_file(&path) {
            Ok(()) => tracing::warn!("{}: is damaged, and removed", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    /// Takes what lies verifiably in `from`; each artifact comes with the digests of the updates that it was ordered for.
    pub(crate) fn take(&self, artifacts: Vec<(Artifact, Vec<String>)>, from: &Path) -> io::Result<()> {
        files::ensure_directory(&self.directory, files::SECLUDED)?;
        let whole = self.whole();
        let mut index = self.index();
        for (artifact, wanted_by) in artifacts {
            let Some(path) = self.path_of(&artifact.sha256) else { continue };
            if !whole.contains_key(&artifact.sha256) {
                let new = self.directory.join(".new");
                remove_file(&new)?;
                if !put_verified(&from.join(&artifact.file_name), &new, &artifact.sha256)? {
                    continue;
                }
                File::open(&new)?.sync_all()?;
                fs::rename(&new, &path)?;
            }
            let Some(stamp) = files::stamp(&path)? else { continue };
            let entry = index.0.entry(artifact.sha256).or_insert_with(|| Entry { stamp, wanted_by: BTreeSet::new() });
            entry.stamp = stamp;
            entry.wanted_by.extend(wanted_by);
        }
        files::sync_directory(&self.directory)?;
        self.write(&index)
    }

    /// Marks the updates whose files are all here. What the system keeps itself, and tells no files of, is as it says.
    pub(crate) fn mark(&self, inventory: &mut Inventory) {
        let whole = self.whole();
        for update in &mut inventory.updates {
            if let Some(files) = inventory.files.get(&update.artifacts_digest) {
                update.downloaded = !files.is_empty() && files.iter().all(|sha256| whole.contains_key(sha256));
            }
        }
    }

    /// Deletes what no offered update needs, and what is not whole.
    pub(crate) fn sweep(&self, inventory: &Inventory) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let own: BTreeSet<&str> = inventory.files.values().flatten().map(String::as_str).collect();
        let (whole, mut index) = (self.whole(), self.index());
        let before = index.0.len();
        index.0.retain(|sha256, entry| {
            let is_wanted = own.contains(sha256.as_str())
                || entry.wanted_by.iter().any(|digest| inventory.files.contains_key(digest));
            is_wanted && whole.contains_key(sha256)
        });
        if index.0.is_empty() {
            return files::remove_tree(&self.directory);
        }
        // The index first: what it does not know does not count.
        if index.0.len() != before {
            self.write(&index)?;
        }
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let is_known = name == INDEX || name.to_str().is_some_and(|name| index.0.contains_key(name));
            if !is_known {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }

    /// An index that cannot be read knows nothing: its files are fetched again.
    fn index(&self) -> Index {
        let path = self.directory.join(INDEX);
        let read = files::read_if_exists(&path).and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            None => Ok(Index::default()),
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}: {error}: what was downloaded does not count", path.display());
            Index::default()
        })
    }

    fn write(&self, index: &Index) -> io::Result<()> {
        files::write_atomic(&self.directory.join(INDEX), &serde_json::to_vec(index)?, files::PRIVATE)
    }

    /// Only of what is a hash: the text comes from a repository.
    fn path_of(&self, sha256: &str) -> Option<PathBuf> {
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hash.then(|| self.directory.join(sha256))
    }
}

/// Puts the file at `from`, if there is one, at `to`, and hashes it there; another one than `sha256` does not stay.
pub(crate) fn put_verified(from: &Path, to: &Path, sha256: &str) -> io::Result<bool> {
    match files::link_or_copy(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    if files::sha256_of(to)? == sha256 {
        return Ok(true);
    }
    fs::remove_file(to)?;
    Ok(false)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::canonical;
    use patchwarden_protocol::report::{Restart, Tristate};

    use super::*;

    struct World {
        state: tempfile::TempDir,
        keep: Keep,
    }

    fn world() -> World {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("from")).unwrap();
        World { keep: Keep::new(state.path(), Some(2_000_000)), state }
    }

    impl World {
        fn artifact(&self, name: &str, content: &[u8]) -> Artifact {
            let file_name = format!("{name}_1_all.deb");
            fs::write(self.state.path().join("from").join(&file_name), content).unwrap();
            Artifact {
                name: name.into(),
                arch: "all".into(),
                version: "1".into(),
                sha256: canonical::digest(content).trim_start_matches("sha256:").into(),
                size: content.len() as u64,
                file_name,
                local: None,
                needed: true,
                rivals: vec![],
            }
        }

        fn take(&self, artifacts: &[&Artifact], wanted_by: &str) {
            let artifacts = artifacts.iter().map(|artifact| ((*artifact).clone(), vec![wanted_by.into()])).collect();
            self.keep.take(artifacts, &self.state.path().join("from")).unwrap();
        }

        fn lend(&self, artifact: &Artifact) -> bool {
            let to = self.state.path().join("lent");
            let _ = fs::remove_file(&to);
            let lent = self.keep.lend(artifact, &to).unwrap();
            assert_eq!(to.exists(), lent);
            lent
        }

        fn path(&self, artifact: &Artifact) -> PathBuf {
            self.keep.path_of(&artifact.sha256).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let Ok(entries) = fs::read_dir(&self.keep.directory) else { return vec![] };
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    fn inventory(files: &[(&str, &[&Artifact])]) -> Inventory {
        let hashes = |files: &[&Artifact]| files.iter().map(|file| file.sha256.clone()).collect();
        Inventory {
            arch: "amd64".into(),
            updates: vec![],
            files: files.iter().map(|(digest, files)| ((*digest).to_owned(), hashes(files))).collect(),
            removable: vec![],
            packages: vec![],
            restart: Restart { required: Tristate::No, reasons: vec![] },
            problems: vec![],
            unconfigured: Vec::new(),
            upstream: None,
        }
    }

    #[test]
    fn only_what_is_verified_is_taken_and_only_what_is_as_it_was_counts() {
        use std::os::unix::fs::PermissionsExt as _;
        let w = world();
        let (good, mut bad, mut absent) = (w.artifact("a", b"a"), w.artifact("b", b"b"), w.artifact("c", b"c"));
        bad.sha256 = good.sha256.replace(|c: char| c.is_ascii_digit(), "0");
        absent.file_name = "elsewhere".into();
        w.take(&[&good, &bad, &absent], "sha256:1");
        assert_eq!(w.keep.whole(), BTreeMap::from([(good.sha256.clone(), 1)]));
        assert_eq!(w.names(), [good.sha256.clone(), INDEX.to_owned()]);
        assert_eq!(fs::metadata(&w.keep.directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(w.lend(&good) && !w.lend(&bad) && !w.lend(&absent));
        // Rewritten in place, to the same length.
        fs::write(w.path(&good), b"x").unwrap();
        assert!(w.keep.whole().is_empty());
        assert!(!w.lend(&good));
        assert!(!w.path(&good).exists(), "what is damaged does not stay");
        let good = w.artifact("a", b"a");
        w.take(&[&good], "sha256:1");
        assert!(w.lend(&good));
    }

    #[test]
    fn a_file_that_only_looks_as_it_did_is_not_lent() {
        let w = world();
        let good = w.artifact("a", b"a");
        w.take(&[&good], "sha256:1");
        fs::write(w.path(&good), b"x").unwrap();
        let mut index = w.keep.index();
        index.0.get_mut(&good.sha256).unwrap().stamp = files::stamp(&w.path(&good)).unwrap().unwrap();
        w.keep.write(&index).unwrap();
        assert_eq!(w.keep.whole().len(), 1);
        assert!(!w.lend(&good));
    }

    #[test]
    fn what_no_update_needs_is_deleted() {
        let w = world();
        let (own, new, old) = (w.artifact("own", b"own"), w.artifact("new", b"new"), w.artifact("old", b"old"));
        w.take(&[&own, &new], "sha256:1");
        w.take(&[&old], "sha256:0");
        fs::write(w.keep.directory.join("leftover"), b"x").unwrap();
        w.keep.sweep(&inventory(&[("sha256:1", &[&own])])).unwrap();
        let mut expected = [own.sha256.clone(), new.sha256.clone(), INDEX.to_owned()];
        expected.sort();
        assert_eq!(w.names(), expected);
        // The update with this file is another one now, and nothing says that it needs the new package.
        w.keep.sweep(&inventory(&[("sha256:2", &[&own])])).unwrap();
        assert_eq!(w.names(), [own.sha256.clone(), INDEX.to_owned()]);
        w.keep.sweep(&inventory(&[])).unwrap();
        assert!(!w.keep.directory.exists());
        w.keep.sweep(&inventory(&[])).unwrap();
    }

    #[test]
    fn a_damaged_index_makes_nothing_count() {
        let w = world();
        let own = w.artifact("own", b"own");
        w.take(&[&own], "sha256:1");
        fs::write(w.keep.directory.join(INDEX), b"{").unwrap();
        assert!(w.keep.whole().is_empty());
        w.keep.sweep(&inventory(&[("sha256:1", &[&own])])).unwrap();
        assert!(w.names().is_empty());
    }

    #[test]
    fn there_is_a_limit_and_its_name_is_said() {
        let w = world();
        let own = w.artifact("own", &vec![0; 1_500_000]);
        w.take(&[&own], "sha256:1");
        assert_eq!(w.keep.check_room(500_000), Ok(()));
        let full = w.keep.check_room(500_001).unwrap_err();
        assert_eq!(full.reason, ResultReason::DiskFull);
        assert!(full.message.contains("downloads_max_mb") && full.message.contains("2.0 MB"), "{}", full.message);
        assert_eq!(Keep::new(w.state.path(), None).check_room(u64::MAX), Ok(()));
    }

    #[test]
    fn what_is_not_a_hash_names_no_file() {
        let w = world();
        let uppercase = "A".repeat(64);
        for bad in ["", "../../etc/passwd", "abc", INDEX, &uppercase] {
            assert_eq!(w.keep.path_of(bad), None, "{bad}");
        }
    }
}
