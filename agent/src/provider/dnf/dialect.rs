//! What differs between dnf 4 and dnf 5.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock;
use crate::files;
use crate::provider::Failure;
use crate::provider::support::{broken, is_locked};

/// Which dnf this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Written in Python.
    Four,
    /// A program with a library that has Python modules.
    Five,
}

const CONFIGURATION: &str = "/etc/dnf/dnf.conf";

/// Read before it by dnf 5, in the order of their names: `dnf5.conf(5)`.
const DROP_INS: &str = "/etc/dnf/libdnf5.conf.d";

/// dnf 4's own lock of a running transaction.
const TRANSACTION_LOCK: &str = "/var/lib/dnf/rpmdb_lock.pid";

/// Its locks of a program that reads the indexes or brings packages, in its cache.
const CACHE_LOCKS: [&str; 2] = ["metadata_lock.pid", "download_lock.pid"];

/// dnf 5's, which are free when their process is gone: of rpm's transaction, and of all that it decided before that.
const FILE_LOCKS: [&str; 2] = ["/run/dnf/rpmtransaction.lock", "/var/lib/dnf/system-repo.lock"];

impl Dialect {
    /// The program that answers questions.
    pub(super) fn script(self) -> &'static str {
        match self {
            Self::Four => include_str!("ask.py"),
            Self::Five => include_str!("ask5.py"),
        }
    }

    /// The first release that can be asked. Of dnf 4 the first that looks at the priorities of repositories where several offer
    /// an update; of dnf 5 the first that distributions have had as their `dnf`.
    pub(super) fn oldest(self) -> [u32; 3] {
        match self {
            Self::Four => [4, 2, 23],
            Self::Five => [5, 2, 0],
        }
    }

    /// How dnf is told where the files are. To dnf 5 the same option says to do nothing but bring them there: it gets them into
    /// its cache (`ask5.py`), and the place is a comment in its history, by which the order's own run is known again.
    pub(super) fn place(self, archives: &Path) -> OsString {
        let mut option = OsString::from(match self {
            Self::Four => "--setopt=destdir=",
            Self::Five => "--comment=",
        });
        option.push(archives);
        option
    }

    /// Whether another program uses dnf.
    pub(super) fn is_busy(self) -> Result<bool, Failure> {
        match self {
            Self::Four => {
                for lock in self.locks()? {
                    if lock::is_held(&lock)? {
                        return Ok(true);
                    }
                }
            }
            Self::Five => {
                for lock in FILE_LOCKS {
                    if is_locked(lock)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// The files that its locks are, or that they are on.
    pub(super) fn locks(self) -> Result<Vec<PathBuf>, Failure> {
        Ok(match self {
            Self::Four => {
                let cache = self.cache()?;
                let in_cache = CACHE_LOCKS.map(|name| cache.join(name));
                std::iter::once(PathBuf::from(TRANSACTION_LOCK)).chain(in_cache).collect()
            }
            Self::Five => FILE_LOCKS.map(PathBuf::from).into(),
        })
    }

    /// Files that what dnf would do depends on, beside rpm's.
    pub(super) fn stamped(self) -> Result<Vec<PathBuf>, Failure> {
        let cache = self.cache()?;
        let mut paths = indexes(&cache).map_err(|error| broken(format!("{}: {error}", cache.display())))?;
        paths.push(CONFIGURATION.into());
        if self == Self::Five {
            paths.push("/etc/dnf/versionlock.toml".into());
        }
        Ok(paths)
    }

    /// Directories of such files.
    pub(super) fn directories(self) -> &'static [&'static str] {
        match self {
            Self::Four => &["/etc/yum.repos.d", "/etc/dnf/vars", "/etc/dnf/plugins", "/etc/dnf/modules.d"],
            Self::Five => &[
                "/etc/yum.repos.d",
                "/etc/dnf/repos.override.d",
                "/etc/dnf/vars",
                DROP_INS,
                "/etc/dnf/libdnf5-plugins",
                "/etc/dnf/modules.d",
            ],
        }
    }

    /// Where dnf keeps its indexes: `cachedir` of dnf.conf(5), `system_cachedir` of dnf5.conf(5).
    fn cache(self) -> Result<PathBuf, Failure> {
        let mut configuration = String::new();
        for path in self.configurations()? {
            let text = files::read_if_exists(&path).map_err(|error| broken(format!("{}: {error}", path.display())))?;
            configuration.push_str(&String::from_utf8_lossy(&text.unwrap_or_default()));
            configuration.push('\n');
        }
        let (option, usual) = match self {
            Self::Four => ("cachedir", "/var/cache/dnf"),
            Self::Five => ("system_cachedir", "/var/cache/libdnf5"),
        };
        Ok(setting(&configuration, option).unwrap_or(usual).into())
    }

    /// The last one that sets an option counts.
    fn configurations(self) -> Result<Vec<PathBuf>, Failure> {
        let mut paths = Vec::new();
        if self == Self::Five {
            match fs::read_dir(DROP_INS) {
                Ok(entries) => paths.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(broken(format!("{DROP_INS}: {error}"))),
            }
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            paths.sort_unstable();
        }
        paths.push(CONFIGURATION.into());
        Ok(paths)
    }
}

fn setting<'a>(configuration: &'a str, option: &str) -> Option<&'a str> {
    let mut settings = configuration.lines().rev().filter_map(|line| line.split_once('='));
    settings.find(|(name, _)| name.trim() == option).map(|(_, value)| value.trim())
}

/// What says which index of each repository is in the cache.
fn indexes(cache: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let index = entry?.path().join("repodata/repomd.xml");
        if index.exists() {
            paths.push(index);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_dnf_has_it() {
        assert_eq!(setting("[main]\nbest=1\n", "cachedir"), None);
        let text = "[main]\n#cachedir=/x\ncachedir = /srv/dnf\nsystem_cachedir=/srv/dnf5\n";
        assert_eq!(setting(text, "cachedir"), Some("/srv/dnf"));
        assert_eq!(setting(text, "system_cachedir"), Some("/srv/dnf5"));
    }

    #[test]
    fn the_indexes_of_all_repositories_in_the_cache_are_looked_at() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(indexes(&cache.path().join("none")).unwrap(), Vec::<PathBuf>::new());
        fs::create_dir_all(cache.path().join("base-0123/repodata")).unwrap();
        fs::create_dir_all(cache.path().join("empty")).unwrap();
        let index = cache.path().join("base-0123/repodata/repomd.xml");
        fs::write(&index, "").unwrap();
        assert_eq!(indexes(cache.path()).unwrap(), [index]);
    }
}
