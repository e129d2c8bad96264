//! Who else than the vendor decides which updates a machine is offered, by the machine's own configuration (CL-7).
//!
//! Nothing follows from it: the agent asks the package manager, which asks what it is configured to. It is told, so that a person
//! knows why something is not offered. What cannot be told for sure (a mirror of one's own that looks like any other) is not told.

mod words;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use patchwarden_protocol::surroundings::Upstream;

use self::words::Repositories;
use super::run::{CommandLine, run};
use super::support::{LOCAL_LIMIT, PATH};
use super::words as arguments;

/// A file of more bytes was not written for a machine's own repositories.
const MAX_FILE: u64 = 1 << 20;

/// At most so many files of a directory.
const MAX_FILES: usize = 256;

/// Where apt has its sources (sources.list(5)) and its configuration (apt.conf(5)).
const APT: [&str; 4] = ["/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/apt.conf", "/etc/apt/apt.conf.d"];

/// subscription-manager's configuration (rhsm.conf(5)).
const RHSM: &str = "/etc/rhsm/rhsm.conf";

/// SUSEConnect's configuration (SUSEConnect(5)).
const SUSE_CONNECT: &str = "/etc/SUSEConnect";

/// An archive as it was at a certain time. apt itself is asked for what it makes of its sources, where they speak of any such
/// time at all.
pub(super) async fn apt() -> Option<Upstream> {
    let mut texts = APT.iter().flat_map(|path| files(Path::new(path), None).texts);
    if !texts.any(|(_, text)| words::may_be_dated(&text)) {
        return None;
    }
    let mut line = CommandLine {
        words: arguments(["/usr/bin/apt-get", "indextargets", "--format", words::TARGET, "Created-By: Packages"]),
        environment: vec![("LC_ALL", "C".into()), ("PATH", PATH.into())],
    };
    line.environment.push(("HOME", "/root".into()));
    let output = run(&line, LOCAL_LIMIT).await.ok().filter(|output| output.code == Some(0))?;
    words::snapshot(&output.stdout)
}

/// Whether apt's sources or its configuration have this word, in whatever case.
pub(super) fn apt_says(word: &str) -> bool {
    let mut texts = APT.iter().flat_map(|path| files(Path::new(path), None).texts);
    texts.any(|(_, text)| text.to_ascii_lowercase().contains(word))
}

/// Satellite, SUSE Manager or RMT, by the repositories of these directories; `overrides` are dnf 5's.
pub(super) fn rpm(directories: &[&str], overrides: Option<&str>) -> Option<Upstream> {
    let mut repositories = Repositories::default();
    for directory in directories {
        let found = files(Path::new(directory), Some("repo"));
        repositories.is_partial |= found.is_cut;
        for (name, text) in found.texts {
            repositories.add(&name, &text);
        }
    }
    for (_, text) in overrides.map(|path| files(Path::new(path), Some("repo")).texts).unwrap_or_default() {
        repositories.set(&text);
    }
    let text = |path: &str| files(Path::new(path), None).texts.pop().map(|(_, text)| text).unwrap_or_default();
    repositories.upstream(&text(RHSM), &text(SUSE_CONNECT))
}

/// Windows Server Update Services at this address.
pub(super) fn wsus(address: &str) -> Option<Upstream> {
    words::wsus(address)
}

/// What was read.
#[derive(Debug, Default)]
struct Files {
    /// Name and text, by name.
    texts: Vec<(String, String)>,
    /// Whether there is more that was not read.
    is_cut: bool,
}

/// A file, or those of a directory whose names end like this.
fn files(path: &Path, extension: Option<&str>) -> Files {
    let mut found = Files::default();
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_meant = |path: &std::path::PathBuf| extension.is_none_or(|it| path.extension().is_some_and(|e| e == it));
        paths = entries.filter(is_meant).collect();
        paths.sort();
    }
    found.is_cut = paths.len() > MAX_FILES;
    for path in paths.into_iter().take(MAX_FILES).filter(|path| path.is_file()) {
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
        match (read, path.file_name()) {
            (Ok(_), Some(name)) if bytes.len() as u64 <= MAX_FILE => {
                found.texts.push((name.to_string_lossy().into_owned(), String::from_utf8_lossy(&bytes).into_owned()));
            }
            _ => found.is_cut = true,
        }
    }
    found
}

#[cfg(any(test, fuzzing))]
pub(crate) use self::words::fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_too_large_or_too_many_are_not_read_and_that_is_known() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        write("b.repo", "b");
        write("a.repo", "a");
        write("c.repo.bak", "c");
        let found = files(place.path(), Some("repo"));
        let texts = [("a.repo", "a"), ("b.repo", "b")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!((found.texts, found.is_cut), (texts.to_vec(), false));
        write("d.repo", &"x".repeat(usize::try_from(MAX_FILE).unwrap() + 1));
        let found = files(place.path(), Some("repo"));
        assert_eq!((found.texts.len(), found.is_cut), (2, true));
        assert!(files(&place.path().join("nothing"), None).texts.is_empty());
        for number in 0..MAX_FILES {
            write(&format!("{number}.repo"), "");
        }
        assert!(files(place.path(), Some("repo")).texts.len() <= MAX_FILES);
    }
}
