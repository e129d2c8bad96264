//! What several providers need.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_protocol::result::ResultReason;

use super::{Artifact, Failure, Stamp};
use crate::{files, platform};

/// What only reads the machine's own files.
pub(super) const LOCAL_LIMIT: Duration = Duration::from_mins(2);

/// Longest message taken from a package manager.
pub(super) const MAX_MESSAGE: usize = 800;

/// Where programs are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn broken(message: impl Into<String>) -> Failure {
    Failure::new(ResultReason::PackageManagerFailed, message)
}

/// The package URL of a source package (ECMA-427): name and version percent-encoded, the colon of an epoch too.
pub(super) fn package_url(kind: &str, distribution: &str, source: &str, version: &str) -> String {
    format!("pkg:{kind}/{}/{}@{}", encoded(distribution), encoded(source), encoded(version))
}

/// The package URL of an application that is no distribution's.
pub(super) fn application_url(name: &str, version: &str) -> String {
    format!("pkg:generic/{}@{}", encoded(name), encoded(version))
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b".-_~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The stamps of these files, and of everything in these directories.
pub(super) fn stamp_of(mut paths: Vec<PathBuf>, directories: &[&str]) -> Result<Stamp, Failure> {
    for directory in directories {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(broken(format!("{directory}: {error}"))),
        };
        for entry in entries {
            paths.push(entry.map_err(|error| broken(format!("{directory}: {error}")))?.path());
        }
    }
    paths.sort_unstable();
    let mut stamps = Vec::with_capacity(paths.len());
    for path in paths {
        let stamp = files::stamp(&path).map_err(|error| broken(format!("{}: {error}", path.display())))?;
        stamps.push((path, stamp));
    }
    Ok(Stamp(stamps))
}

/// Whether a process holds a write lock (fcntl) on the file: see [`platform::write_locker`].
pub(super) fn is_locked(path: &str) -> Result<bool, Failure> {
    let locker = locker(Path::new(path)).map_err(|error| broken(format!("{path}: {error}")))?;
    Ok(locker.is_some())
}

fn locker(path: &Path) -> io::Result<Option<u32>> {
    match File::open(path) {
        Ok(file) => platform::write_locker(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who holds one of these locks, for people: `/var/lib/dpkg/lock is held by process 77 (apt-get)`. A lock is one of fcntl(2), or the
/// number of a process in the file; what cannot be read is left out.
pub(super) fn holder(locks: impl IntoIterator<Item = PathBuf>) -> Option<String> {
    locks.into_iter().find_map(|path| {
        let named = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        let pid = locker(&path).ok().flatten().or_else(named)?;
        let place = path.display();
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => Some(format!("{place} is held by process {pid} ({})", name.trim_end())),
            // A process of another container has no number here; one that is gone holds nothing.
            Err(_) => (pid == 0).then(|| format!("{place} is held by a process of another container")),
        }
    })
}

/// No package manager tells of more packages than this: many times what a distribution installs.
pub(super) const MAX_ENTRIES: usize = 50_000;

/// Fails at the first line that is one too many.
pub(super) fn counted<'a>(lines: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Result<&'a str, String>> {
    lines.enumerate().map(|(number, line)| match number {
        0..MAX_ENTRIES => Ok(line),
        _ => Err(format!("more than {MAX_ENTRIES} packages are told")),
    })
}

/// Hashes the files that were to be fetched into the archives directory.
pub(super) async fn verify(missing: &[Artifact], archives: &Path) -> Result<(), Failure> {
    let (missing, archives) = (missing.to_vec(), archives.to_owned());
    // Hashing gigabytes must not stop the session's keepalive.
    tokio::task::spawn_blocking(move || missing.iter().try_for_each(|artifact| verify_file(artifact, &archives)))
        .await
        .map_err(|error| Failure::new(ResultReason::DownloadFailed, error.to_string()))?
}

/// A repository on this machine is used in place by its package manager: its file is copied first, so that what was
/// hashed lies where it is looked for.
fn verify_file(artifact: &Artifact, archives: &Path) -> Result<(), Failure> {
    let failed = |message: String| Failure::new(ResultReason::DownloadFailed, message);
    let path = archives.join(&artifact.file_name);
    if let Some(source) = &artifact.local {
        fs::copy(source, &path).map_err(|error| failed(format!("{}: {error}", source.display())))?;
    }
    let sha256 = files::sha256_of(&path).map_err(|error| failed(format!("{}: {error}", artifact.file_name)))?;
    if sha256 == artifact.sha256 {
        return Ok(());
    }
    Err(failed(format!("{} has SHA-256 {sha256}, the repository says {}", artifact.file_name, artifact.sha256)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_one_of_the_index_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source.deb");
        fs::write(&source, b"abc").unwrap();
        let mut artifact = Artifact {
            name: "x".into(),
            arch: "all".into(),
            version: "1".into(),
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
            size: 3,
            file_name: "x_1_all.deb".into(),
            local: Some(source),
            needed: true,
            rivals: vec![],
        };
        assert_eq!(verify_file(&artifact, directory.path()), Ok(()));
        artifact.sha256 = String::new();
        assert_eq!(verify_file(&artifact, directory.path()).unwrap_err().reason, ResultReason::DownloadFailed);
    }

    #[test]
    fn package_urls_are_encoded() {
        let openssl = package_url("deb", "debian", "openssl", "3.0.17-1~deb12u3");
        assert_eq!(openssl, "pkg:deb/debian/openssl@3.0.17-1~deb12u3");
        assert_eq!(package_url("deb", "debian", "gtk+3.0", "1:2+b1"), "pkg:deb/debian/gtk%2B3.0@1%3A2%2Bb1");
        assert_eq!(application_url("k3s", "1.29.3+k3s1"), "pkg:generic/k3s@1.29.3%2Bk3s1");
        assert_eq!(package_url("rpm", "rocky", "bash", "5.1^2-1.el9"), "pkg:rpm/rocky/bash@5.1%5E2-1.el9");
    }

    #[test]
    fn what_another_process_has_locked_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let text = path.to_str().unwrap().to_owned();
        assert_eq!(is_locked(&text), Ok(false), "no file, no lock");
        fs::write(&path, "").unwrap();
        assert_eq!(is_locked(&text), Ok(false));
        let script = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('x', flush=True); sys.stdin.read()";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script, &text]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut other = command.spawn().expect("python3 is there: hack/prerequisites installs it");
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert_eq!(is_locked(&text), Ok(true));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(is_locked(&text), Ok(false));
    }
}
