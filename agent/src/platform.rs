//! What the kernel and os-release(5) say of the machine.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use crate::journal::Process;

/// A fact that could not be read: without it the agent does not go on.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub(crate) struct PlatformError {
    path: String,
    why: String,
}

fn unreadable(path: &str, why: &dyn std::fmt::Display) -> PlatformError {
    PlatformError { path: path.to_owned(), why: why.to_string() }
}

fn read(path: &str) -> Result<String, PlatformError> {
    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

/// This device's clock. The only place that reads it: everywhere else time is an argument.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// One boot of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// The kernel's random id of it.
    pub(crate) id: String,
    /// When it was, to the second.
    pub(crate) time: Timestamp,
}

/// The current boot.
pub(crate) fn boot() -> Result<Boot, PlatformError> {
    let stat = read("/proc/stat")?;
    let time = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|seconds| seconds.trim().parse().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| unreadable("/proc/stat", &"no btime line"))?;
    Ok(Boot { id: boot_id()?, time })
}

/// The kernel's random id of the current boot.
pub(crate) fn boot_id() -> Result<String, PlatformError> {
    Ok(read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Release of the running kernel.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// First label of the hostname.
pub(crate) fn short_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// `ID`, `ID_LIKE` and `VERSION_ID` (with Debian's point release).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OsRelease {
    /// `debian`.
    pub(crate) id: String,
    /// The systems that it is derived from: `rhel centos fedora`.
    pub(crate) like: String,
    /// `12.11`; empty where the system states none (Debian's testing).
    pub(crate) version: String,
}

/// Reads os-release(5) and `/etc/debian_version`.
pub(crate) fn os_release() -> Result<OsRelease, PlatformError> {
    let text = read("/etc/os-release").or_else(|_| read("/usr/lib/os-release"))?;
    let point = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    Ok(parse_os_release(&text, point.trim()))
}

fn parse_os_release(text: &str, debian_version: &str) -> OsRelease {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    // os-release(5): "linux" if there is no ID.
    let id = field("ID").unwrap_or_else(|| "linux".to_owned());
    let mut version = field("VERSION_ID").unwrap_or_default();
    if id == "debian" && debian_version.strip_prefix(version.as_str()).is_some_and(|rest| rest.starts_with('.')) {
        debian_version.clone_into(&mut version);
    }
    OsRelease { id, like: field("ID_LIKE").unwrap_or_default(), version }
}

/// A running process as it can be found again.
pub(crate) fn process(pid: u32) -> Result<Process, PlatformError> {
    let path = format!("/proc/{pid}/stat");
    let (_, start_time) =
        parse_stat(&read(&path)?).ok_or_else(|| unreadable(&path, &"is not of the form of proc_pid_stat(5)"))?;
    Ok(Process { pid, start_time, boot_id: boot_id()? })
}

/// Whether the process still runs. A zombie does not.
pub(crate) fn is_alive(process: &Process) -> Result<bool, PlatformError> {
    if boot_id()? != process.boot_id {
        return Ok(false);
    }
    let path = format!("/proc/{}/stat", process.pid);
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        // ESRCH: it ended between opening and reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => return Ok(false),
        Err(error) => return Err(unreadable(&path, &error)),
    };
    let (state, start_time) =
        parse_stat(&stat).ok_or_else(|| unreadable(&path, &"is not of the form of proc_pid_stat(5)"))?;
    Ok(start_time == process.start_time && !matches!(state, 'Z' | 'X'))
}

/// State and start time (fields 3 and 22). The second field is a name in parentheses that may contain anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Free bytes for root on the file system of `path`, and the file system's identity.
pub(crate) fn free_space(path: &Path) -> io::Result<FreeSpace> {
    use std::os::unix::fs::MetadataExt as _;
    let stat = rustix::fs::statvfs(path)?;
    Ok(FreeSpace { device: fs::metadata(path)?.dev(), bytes: stat.f_bfree.saturating_mul(stat.f_frsize) })
}

/// See [`free_space`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeSpace {
    /// `st_dev`.
    pub(crate) device: u64,
    /// Bytes.
    pub(crate) bytes: u64,
}

/// Any text in the place of what the system says of itself and of a process.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (release, version) = text.split_once('\0').unwrap_or((text, ""));
    let _ = (parse_os_release(release, version), parse_stat(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_gives_id_and_version() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        let of = |id: &str, version: &str| OsRelease { id: id.into(), like: String::new(), version: version.into() };
        assert_eq!(parse_os_release(debian, "12.11"), of("debian", "12.11"));
        assert_eq!(parse_os_release(debian, "trixie/sid"), of("debian", "12"));
        assert_eq!(parse_os_release(debian, "120.1"), of("debian", "12"));
        assert_eq!(parse_os_release("ID=ubuntu\nVERSION_ID='24.04'\n", "trixie/sid"), of("ubuntu", "24.04"));
        let rocky = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\n";
        let expected = OsRelease { like: "rhel centos fedora".into(), ..of("rocky", "9.4") };
        assert_eq!(parse_os_release(rocky, ""), expected);
        assert_eq!(parse_os_release("", ""), of("linux", ""));
    }

    #[test]
    fn a_process_name_may_contain_anything() {
        let stat = "7 (a) S 1) R 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2";
        assert_eq!(parse_stat(stat), Some(('R', 4242)));
        assert_eq!(parse_stat("7 (x) R 1"), None);
    }

    #[test]
    fn a_process_is_alive_until_it_ends_and_is_not_another_of_the_same_number() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = process(child.id()).unwrap();
        assert!(is_alive(&found).unwrap());
        assert!(!is_alive(&Process { start_time: found.start_time + 1, ..found.clone() }).unwrap());
        assert!(!is_alive(&Process { boot_id: "other".into(), ..found.clone() }).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(&found).unwrap());
    }

    #[test]
    fn this_machine_can_be_described() {
        assert!(boot().unwrap().time.as_second() > 0);
        assert!(!kernel().is_empty() && !short_hostname().contains('.'));
    }
}
