//! What recipes need of the system: to replace a file or a directory in one step, and to run a program as nobody.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::mounts;
use crate::provider::{CommandLine, words};

pub(crate) use super::attributes::keep;
pub(crate) use super::tree::digest;

/// Why third-party applications cannot be updated here, if they cannot.
pub(crate) const WHY_NONE: Option<&str> = None;

/// Of the user and the group `nobody`, whatever they are called: what the kernel shows for ids that it cannot map
/// (`/proc/sys/kernel/overflowuid`).
const NOBODY: &str = "65534";

/// The command that runs `program` as nobody, who gains no privilege by it, and kills it after so many seconds together with what it
/// has started in its process group. It has no terminal, into which it could type, and no variables but these: proxies may have
/// passwords. Who is not root anyway runs it as himself.
pub(crate) fn unprivileged(program: &Path, arguments: &[String], seconds: u32) -> CommandLine {
    let path = format!("PATH={}", super::PATH);
    let mut line = CommandLine {
        words: words(["env", "--ignore-environment", "LC_ALL=C", "HOME=/nonexistent", &path]),
        environment: vec![("PATH", super::PATH.into())],
    };
    // As the leader of a session timeout(1) is the leader of a process group, all of which it kills.
    line.words.extend(words(["setsid", "--wait", "timeout", "--signal=KILL"]));
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

/// Moves a file or a directory to where nothing is, in one step: renameat2(2), `RENAME_NOREPLACE`.
pub(crate) fn put(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Whether nothing is mounted at `path` or below it, which must be without links; if something is, what. A mount moves along with the
/// directory that it is in, and who removes that directory removes what is mounted.
pub(crate) fn check_mounts(path: &Path) -> Result<(), String> {
    let points = mounts::points().map_err(|error| error.to_string())?;
    match mounted_below(points, path) {
        None => Ok(()),
        Some(at) => Err(format!("something is mounted at {}: unmount it, or update this by hand", at.display())),
    }
}

fn mounted_below(points: Vec<PathBuf>, path: &Path) -> Option<PathBuf> {
    points.into_iter().find(|point| point.starts_with(path))
}

/// Removes a directory and everything in it, but nothing of another file system: where one begins it is an error. That the
/// directory is not there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match open_directory(CWD, path.as_os_str().as_bytes()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(directory) => {
            let device = rustix::fs::fstat(&directory)?.st_dev;
            empty(directory.as_fd(), device)?;
        }
    }
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

fn empty(directory: BorrowedFd<'_>, device: u64) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => continue,
            // unlink(2): Linux says so of a directory; POSIX has the other one.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        let below = open_directory(directory, name.to_bytes())?;
        if rustix::fs::fstat(&below)?.st_dev != device {
            let why = format!("{} is on another file system: it stays", name.to_string_lossy());
            return Err(io::Error::new(io::ErrorKind::CrossesDevices, why));
        }
        empty(below.as_fd(), device)?;
        rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> Result<rustix::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
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

/// Makes a directory of mode 0755, where nothing is; not through a link.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(CWD, path, mode)?;
    // Whatever the umask.
    Ok(rustix::fs::fchmod(open_directory(CWD, path.as_os_str().as_bytes())?, mode)?)
}

/// Whether only root can change this program, whose path is without links, or put something else in its place; if not, why not.
pub(crate) fn check_program(path: &Path) -> Result<(), String> {
    path.ancestors().skip(1).try_for_each(check_directory)?;
    let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a plain file".to_owned());
    }
    check_writers(path, &metadata)
}

/// Whether only root can put something else at a name in this directory; if not, why not.
pub(crate) fn check_directory(path: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory", path.display()));
    }
    check_writers(path, &metadata)
}

/// Whether only root, or who runs this, can write it.
fn check_writers(path: &Path, metadata: &fs::Metadata) -> Result<(), String> {
    let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("{} belongs to user {owner}, not to root: chown root it", path.display()));
    }
    if mode & 0o002 != 0 {
        return Err(format!("{} can be written by everybody (mode {mode:04o}): chmod o-w it", path.display()));
    }
    if mode & 0o020 != 0 && group != 0 && !is_staffs(path, group) {
        return Err(format!("{} can be written by group {group} (mode {mode:04o}): chmod g-w it", path.display()));
    }
    Ok(())
}

/// Whether it is Debian's group `staff` in `/usr/local`, which it may write: it is as good as root by Debian's policy (9.1.2).
fn is_staffs(path: &Path, group: u32) -> bool {
    let is_named = |groups: String| groups.lines().any(|line| is_staff(line, group));
    path.starts_with("/usr/local") && fs::read_to_string("/etc/group").is_ok_and(is_named)
}

/// Whether a line of group(5) says that `staff` has this number. Others than Debian give it to whom they like: 50 is Debian's.
fn is_staff(line: &str, group: u32) -> bool {
    let mut fields = line.split(':');
    group == 50 && fields.next() == Some("staff") && fields.nth(1) == Some("50")
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
        // What is there already is not replaced, whatever it is.
        assert!(put(&a, &b).is_err() && fs::read_to_string(a.join("who")).unwrap() == "b");
        put(&a, &place.path().join("none")).unwrap();
        assert!(!a.exists() && fs::read_to_string(place.path().join("none/who")).unwrap() == "b");
    }

    #[test]
    fn what_others_than_root_can_write_is_not_roots() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("bin");
        make_directory(&directory).unwrap();
        assert!(make_directory(&directory).is_err());
        let to_it = place.path().join("link");
        link(Path::new("nowhere"), &to_it).unwrap();
        assert!(make_directory(&to_it).is_err() && !place.path().join("nowhere").exists());
        let judged = |owner, group, mode| {
            chown(&directory, Some(owner), Some(group)).unwrap();
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            check_directory(&directory).map_err(|why| why.split(' ').skip(1).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(judged(0, 0, 0o775), Ok(()));
        assert_eq!(judged(0, 1000, 0o755), Ok(()));
        assert_eq!(judged(1000, 0, 0o755), Err("belongs to user 1000, not to root: chown root it".into()));
        assert_eq!(judged(0, 0, 0o757), Err("can be written by everybody (mode 0757): chmod o-w it".into()));
        for group in [1000, 50] {
            let why = format!("can be written by group {group} (mode 0775): chmod g-w it");
            assert_eq!(judged(0, group, 0o775), Err(why));
        }
        assert!(is_staff("staff:x:50:", 50));
        for (line, group) in [("staff:x:51:", 50), ("staff:x:51:", 51), ("ftp:x:50:", 50), ("staff", 50)] {
            assert!(!is_staff(line, group), "{line}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_asked_has_neither_a_terminal_nor_proxies() {
        let script = "env; cut -d' ' -f6 /proc/$$/stat";
        let line = unprivileged(Path::new("/bin/sh"), &["-c".into(), script.into()], 10);
        let output = line.command().env("https_proxy", "http://name:password@proxy").output().await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("LC_ALL=C\n") && !said.contains("password"), "{said}");
        // From proc(5), as the script has it: the leader of a session may be in another PID namespace, whose session is 0 here.
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3);
        assert!(output.status.success() && session.is_some() && said.lines().last() != session, "{said}");
    }

    #[tokio::test]
    async fn what_a_program_has_started_ends_with_it() {
        let line = unprivileged(Path::new("/bin/sh"), &["-c".into(), "sleep 60 & sleep 60".into()], 1);
        // The output's end is waited for, which whoever is left would keep open.
        let output = tokio::time::timeout(std::time::Duration::from_secs(30), line.command().output()).await;
        assert!(!output.unwrap().unwrap().status.success());
    }

    #[test]
    fn a_mount_is_seen_at_a_path_and_below_it() {
        let points = ["/proc", "/opt/a b/data"].map(PathBuf::from).to_vec();
        let found = |path: &str| mounted_below(points.clone(), Path::new(path));
        for path in ["/opt/a b", "/opt/a b/data", "/opt"] {
            assert_eq!(found(path), Some("/opt/a b/data".into()), "{path}");
        }
        for path in ["/opt/a", "/opt/a b/dat", "/opt/a b/data/x", "/usr"] {
            assert_eq!(found(path), None, "{path}");
        }
        check_mounts(Path::new("/proc")).unwrap_err();
    }

    #[test]
    fn what_is_removed_ends_where_another_file_system_begins() {
        let place = tempfile::tempdir().unwrap();
        let [tree, other] = ["tree", "other"].map(|name| place.path().join(name));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        for file in [tree.join("a/b/c"), other.join("kept")] {
            fs::write(file, "x").unwrap();
        }
        link(&other, &tree.join("a/to")).unwrap();
        let device = rustix::fs::stat(&tree).unwrap().st_dev;
        let directory = open_directory(CWD, tree.as_os_str().as_bytes()).unwrap();
        let error = empty(directory.as_fd(), device + 1).unwrap_err();
        assert!(error.kind() == io::ErrorKind::CrossesDevices && tree.join("a/b/c").exists(), "{error}");
        remove(&tree).unwrap();
        assert!(!tree.exists() && other.join("kept").exists());
        remove(&tree).unwrap();
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
