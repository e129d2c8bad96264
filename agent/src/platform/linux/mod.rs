//! Linux: what the kernel, os-release(5) and systemd say, and what they are told.

mod attributes;
mod desktop;
pub(crate) mod detached;
pub(crate) mod files;
mod hardware;
mod hooks;
mod mounts;
mod power;
pub(crate) mod recipes;
pub(crate) mod restart;
mod services;
mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::details::Hardware;
use patchwarden_protocol::report::Power;

use super::{Boot, BringUp, OsRelease, Outdated, PlatformError, unreadable};
use crate::journal::Process;
use crate::provider::{CommandLine, words};

pub(crate) use self::hooks::find as find_script;
pub(crate) use self::mounts::parts;
pub(crate) use super::unix::{
    free_space, give_way, is_read_only, linked_file, local_zone, short_hostname, stop_asked, write_locker,
};

/// As a report calls it.
pub(crate) const FAMILY: &str = "linux";

/// Of the agent's own environment only these reach a command.
pub(crate) const PASSED_ON: [&str; 8] =
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TZ"];

/// Why the operating system's own updater cannot be switched off by this agent, if it cannot.
pub(crate) const WHY_UPDATER_STAYS: Option<&str> = None;

/// Where kernels lie, if that may be a file system of its own.
pub(crate) const BOOT: Option<&str> = Some("/boot");

/// How a person starts the agent.
pub(crate) const START_ADVICE: &str = "start it: systemctl enable --now patchwarden-agent";

/// How a person repairs what installs updates.
pub(crate) const REPAIR_ADVICE: &str =
    "repair it: `dpkg --configure -a` and `apt-get -f install`, `dnf check`, or `zypper verify`";

/// To look at what all processes map takes a second at most, where none of them is stuck.
const LOOKING: Duration = Duration::from_mins(1);

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the configuration lies unless the command line says otherwise.
pub(crate) fn default_config() -> PathBuf {
    "/etc/patchwarden/agent.toml".into()
}

/// Where keys, journal and downloads lie unless the command line says otherwise.
pub(crate) fn default_state() -> PathBuf {
    "/var/lib/patchwarden".into()
}

/// The directory above all others.
pub(crate) fn root() -> PathBuf {
    "/".into()
}

fn read(path: &str) -> Result<String, PlatformError> {
    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
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
    read("/proc/sys/kernel/osrelease").map_or_else(|_| super::unix::kernel(), |release| release.trim().to_owned())
}

/// What `uname -v` prints.
pub(crate) fn build() -> String {
    read("/proc/sys/kernel/version").map_or_else(|_| super::unix::build(), |line| line.trim().to_owned())
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

/// Whether a program of one of these names runs. The kernel keeps the first 15 characters of a name (proc_pid_comm(5)).
pub(crate) fn is_any_running(names: &[&str]) -> Result<bool, PlatformError> {
    let processes = fs::read_dir("/proc").map_err(|error| unreadable("/proc", &error))?;
    let runs = |name: &str| names.iter().any(|one| one.get(..15).unwrap_or(one) == name);
    // One that ends meanwhile has no name any more.
    let mut found = processes.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    Ok(found.any(|name| runs(name.trim_end())))
}

/// State and start time (fields 3 and 22). The second field is a name in parentheses that may contain anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// What the machine runs on.
pub(crate) fn power() -> Power {
    power::of(Path::new(power::SUPPLIES))
}

/// What the machine is made of, if it tells; without what tells of people if so asked.
pub(crate) fn hardware(is_impersonal: bool) -> Option<Hardware> {
    Some(hardware::hardware(&root(), is_impersonal)).filter(|found| *found != Hardware::default())
}

/// Fails with the state of a service that is not active. systemctl(1): `is-active` ends with code 0 where the unit is active,
/// and prints its state.
pub(crate) async fn service_active(unit: &str) -> Result<(), String> {
    let output = ask(["systemctl", "is-active", "--", unit]).await?;
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{unit} is {state}")) }
}

/// Has systemd start a service, and does not wait for it.
pub(crate) async fn start_service(unit: &str) -> Result<(), String> {
    if !Path::new("/run/systemd/system").exists() {
        return Err(format!("without systemd nobody starts {unit}"));
    }
    let output = ask(["systemctl", "start", "--no-block", "--", unit]).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("systemctl start {unit}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Services that still run what was replaced. By a thread of its own: the kernel lets nobody read what a process maps while that is stuck
/// in a change of it (`mmap_lock`), and the agent does not wait for that.
pub(crate) async fn outdated_services() -> Option<Outdated> {
    // One that still looks is stuck: another would be, too.
    static LOOKS: AtomicBool = AtomicBool::new(false);
    if LOOKS.swap(true, Ordering::AcqRel) {
        return None;
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let look = move || {
        let found = services::outdated(&root());
        LOOKS.store(false, Ordering::Release);
        // Nobody waits for it any more.
        let _ = tell.send(found);
    };
    if let Err(error) = std::thread::Builder::new().name("services".to_owned()).spawn(look) {
        LOOKS.store(false, Ordering::Release);
        tracing::warn!("which services still run what was replaced is not known: {error}");
        return None;
    }
    let Ok(found) = tokio::time::timeout(LOOKING, told).await else {
        tracing::warn!("which services still run what was replaced was not known within {} s", LOOKING.as_secs());
        return None;
    };
    found.ok().flatten()
}

/// Whether a service may be restarted by itself, by what systemd says of it.
pub(crate) async fn may_restart_service(unit: &str) -> Result<(), String> {
    services::may_restart(unit).await
}

/// Has systemd restart or start a service, and waits for it.
pub(crate) async fn bring_up_service(unit: &str, how: BringUp, limit: Duration) -> Result<(), String> {
    services::bring_up(unit, how, limit).await
}

/// Where the program lies that runs, also once another one lies in its place (proc_pid_exe(5)).
#[expect(clippy::unnecessary_wraps, reason = "on other systems it may fail")]
pub(crate) fn own_program() -> io::Result<PathBuf> {
    Ok("/proc/self/exe".into())
}

/// Fails where there is no such file. By a process of its own: on a file system that hangs (a server of files that is gone) nobody
/// waits for it.
pub(crate) async fn file_exists(path: &str) -> Result<(), String> {
    if ask(["test", "-e", path]).await?.status.success() { Ok(()) } else { Err(format!("{path} does not exist")) }
}

/// Runs a command that is killed, and not waited for, where its time is over.
async fn ask<const N: usize>(command: [&str; N]) -> Result<Output, String> {
    let environment = vec![("LC_ALL", "C".into()), ("HOME", "/root".into()), ("PATH", PATH.into())];
    let mut process = CommandLine { words: words(command), environment }.command();
    process.stdin(Stdio::null()).kill_on_drop(true);
    process.output().await.map_err(|error| format!("{}: {error}", command.join(" ")))
}

/// Any text in the place of what the system says of itself and of a process.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (release, version) = text.split_once('\0').unwrap_or((text, ""));
    let _ = (parse_os_release(release, version), parse_stat(text));
    hardware::fuzz(text);
    services::fuzz(text);
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
        assert!(is_any_running(&["a-program-of-a-long-name", "sleep"]).unwrap());
        assert!(!is_any_running(&["a-program-of-a-long-name"]).unwrap());
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
