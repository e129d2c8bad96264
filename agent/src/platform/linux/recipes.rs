//! What recipes need of the system: to replace a file or a directory in one step, and to run a program as nobody.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags};

use crate::provider::{CommandLine, words};

/// Why third-party applications cannot be updated here, if they cannot.
pub(crate) const WHY_NONE: Option<&str> = None;

/// Of the user and the group `nobody`, whatever they are called: what the kernel shows for ids that it cannot map
/// (`/proc/sys/kernel/overflowuid`).
const NOBODY: &str = "65534";

/// The command that runs `program` as nobody, who gains no privilege by it, and kills it after so many seconds. Who is not root
/// anyway runs it as himself.
pub(crate) fn unprivileged(program: &Path, arguments: &[String], seconds: u32) -> CommandLine {
    let mut line = CommandLine {
        words: words(["timeout", "--signal=KILL"]),
        environment: vec![("LC_ALL", "C".into()), ("HOME", "/nonexistent".into()), ("PATH", super::PATH.into())],
    };
    line.words.push(seconds.to_string().into());
    if rustix::process::geteuid().is_root() {
        line.words.push("setpriv".into());
        line.words.extend([format!("--reuid={NOBODY}").into(), format!("--regid={NOBODY}").into()]);
        line.words.extend(words(["--clear-groups", "--no-new-privs", "--"]));
    }
    line.words.push(program.into());
    line.words.extend(arguments.iter().map(Into::into));
    line
}

/// Opens a plain file, and nothing that only looks like one: neither a link, nor what would let whoever opens it wait.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("is not a plain file")) }
}

/// Puts two files or directories each in the place of the other, in one step: renameat2(2), `RENAME_EXCHANGE`.
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Makes a link with the text `target`.
pub(crate) fn link(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

/// Makes everything on the file system of `path` durable.
pub(crate) fn sync_filesystem(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Waits for a write lock on the file, which ends with it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_lock(file, FlockOperation::LockExclusive)?)
}

/// Whether only root can put something else at a name in this directory; if not, why not. The group counts as root: Debian's
/// `staff`, which may write `/usr/local`, is as good as root by its policy (9.1.2).
pub(crate) fn check_directory(path: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory", path.display()));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("{} belongs to user {owner}, not to root: chown root it", path.display()));
    }
    if mode & 0o002 != 0 {
        return Err(format!("{} can be written by everybody (mode {mode:04o}): chmod o-w it", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_change_places() {
        let place = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| place.path().join(name));
        for path in [&a, &b] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("who"), path.file_name().unwrap().to_str().unwrap()).unwrap();
        }
        exchange(&a, &b).unwrap();
        assert_eq!(fs::read_to_string(a.join("who")).unwrap(), "b");
        assert_eq!(fs::read_to_string(b.join("who")).unwrap(), "a");
        assert!(exchange(&a, &place.path().join("none")).is_err() && a.exists());
    }

    #[test]
    fn only_a_plain_file_is_opened() {
        let place = tempfile::tempdir().unwrap();
        let [file, to_it, pipe] = ["file", "link", "pipe"].map(|name| place.path().join(name));
        fs::write(&file, "x").unwrap();
        link(&file, &to_it).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(open_plain(&file).is_ok());
        for path in [&to_it, &pipe, &place.path().to_owned()] {
            assert!(open_plain(path).is_err(), "{}", path.display());
        }
    }
}
