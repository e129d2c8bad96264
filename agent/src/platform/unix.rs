//! What Linux and macOS have in common: POSIX.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use jiff::tz::TimeZone;
use tokio::signal::unix::{SignalKind, signal};

use super::FreeSpace;

/// Release of the running kernel.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// What the kernel says of how it was built (`uname -v`).
pub(crate) fn build() -> String {
    rustix::system::uname().version().to_string_lossy().into_owned()
}

/// First label of the hostname.
pub(crate) fn short_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Free bytes for root on the file system of `path`, and the file system's identity.
pub(crate) fn free_space(path: &Path) -> io::Result<FreeSpace> {
    use std::os::unix::fs::MetadataExt as _;
    let stat = rustix::fs::statvfs(path)?;
    Ok(FreeSpace { device: fs::metadata(path)?.dev(), bytes: stat.f_bfree.saturating_mul(stat.f_frsize) })
}

/// Device and inode of a file that has other names beside this one.
pub(crate) fn linked_file(about: &fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    (about.nlink() > 1).then(|| (about.dev(), about.ino()))
}

/// nice(1)'s own default. On Linux the priority of input and output follows (ioprio_set(2)).
const GIVING_WAY: i32 = 10;

/// Lowers the priority of a child, and so of what it starts from now on. That it has ended by now does not matter.
pub(crate) fn give_way(child: &tokio::process::Child) {
    let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?)) else { return };
    let lower = || match rustix::process::getpriority_process(Some(pid))? {
        // This agent gives way already.
        GIVING_WAY.. => Ok(()),
        _ => rustix::process::setpriority_process(Some(pid), GIVING_WAY),
    };
    if let Err(error) = lower() {
        tracing::debug!("the priority of process {} stays: {error}", pid.as_raw_nonzero());
    }
}

/// Whether the file system of `path` can only be read.
pub(crate) fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statvfs(path)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Which process holds a write lock (fcntl) on the file; 0 where it is another container's. Only asked: taking the lock, even for an
/// instant, could make another program fail.
pub(crate) fn write_locker(file: &File) -> io::Result<Option<u32>> {
    let wanted = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
    let found = rustix::process::fcntl_getlk(file, &wanted)?;
    Ok(found.map(|lock| lock.pid.map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned())))
}

/// localtime(5): without `/etc/localtime` it is UTC.
pub(crate) fn local_zone() -> Result<TimeZone, String> {
    let is_set = std::env::var_os("TZ").is_some();
    if !is_set && !Path::new("/etc/localtime").try_exists().map_err(|error| format!("/etc/localtime: {error}"))? {
        return Ok(TimeZone::UTC);
    }
    TimeZone::try_system().map_err(|error| error.to_string())
}

/// From now on SIGTERM and SIGINT do not end the program; they end the wait that this returns.
pub(crate) fn stop_asked() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
