//! Windows: what the registry and the kernel say, and what the system's own programs are told.

mod around;
pub(crate) mod detached;
pub(crate) mod files;
pub(crate) mod recipes;
pub(crate) mod restart;
pub(crate) mod service;

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use patchwarden_protocol::details::Hardware;
use patchwarden_protocol::report::Power;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_shutdown};
use windows_registry::LOCAL_MACHINE;

use super::{Boot, BringUp, FreeSpace, NoScript, OsRelease, Outdated, PlatformError, unreadable};
use crate::journal::Process;
use crate::provider::{CommandLine, powershell, words};

pub(crate) use self::around::Internal;

/// As a report calls it.
pub(crate) const FAMILY: &str = "windows";

/// Of the agent's own environment only these reach a command: proxies, and what Windows' own programs cannot do without.
pub(crate) const PASSED_ON: [&str; 21] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALLUSERSPROFILE",
    "COMPUTERNAME",
    "ComSpec",
    "NUMBER_OF_PROCESSORS",
    "OS",
    "PATH",
    "PATHEXT",
    "PROCESSOR_ARCHITECTURE",
    "ProgramData",
    "ProgramFiles",
    "ProgramFiles(x86)",
    "ProgramW6432",
    "PSModulePath",
    "SystemDrive",
    "SystemRoot",
    "TEMP",
    "TMP",
    "windir",
];

/// Why the operating system's own updater cannot be switched off by this agent.
pub(crate) const WHY_UPDATER_STAYS: Option<&str> = Some(
    "this agent cannot switch off Windows' own automatic updates: leave it at Leave, and set the policy \"Configure Automatic Updates\" \
     to Disabled",
);

/// Where kernels lie, if that may be a file system of its own.
pub(crate) const BOOT: Option<&str> = None;

/// Places with free space of their own that packages have files in. Here all share one.
pub(crate) fn parts() -> Vec<PathBuf> {
    Vec::new()
}

/// How a person starts the agent.
pub(crate) const START_ADVICE: &str =
    "start it: `net start patchwarden-agent`; `patchwarden-agent service install` registers it as a service";

/// How a person repairs what installs updates.
pub(crate) const REPAIR_ADVICE: &str =
    "repair it: `DISM /Online /Cleanup-Image /RestoreHealth`, and Windows Update's own troubleshooting";

/// Of the product that is installed: "Windows NT" is what it is called here, whatever the box says.
const VERSION_KEY: &str = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion";

/// A volatile key is gone once the machine has shut down (`RegCreateKeyExW`, `REG_OPTION_VOLATILE`: "For HKEY_LOCAL_MACHINE,
/// this occurs only when the system initiates a full shutdown"). So what is in it belongs to one boot. Windows has no random
/// id of a boot of its own, and works its start time out from the clock.
const BOOT_KEY: &str = r"SOFTWARE\PatchwardenBoot";

const BOOT_VALUE: &str = "Id";

/// Directory of this program's data for all users, with the configuration in it.
fn program_data() -> PathBuf {
    let data = env::var_os("ProgramData").unwrap_or_else(|| OsString::from(r"C:\ProgramData"));
    Path::new(&data).join("Patchwarden")
}

/// Where the configuration lies unless the command line says otherwise.
pub(crate) fn default_config() -> PathBuf {
    program_data().join("agent.toml")
}

/// Where keys, journal and downloads lie unless the command line says otherwise.
pub(crate) fn default_state() -> PathBuf {
    program_data()
}

/// The root of the drive that Windows is on.
pub(crate) fn root() -> PathBuf {
    let mut drive = env::var_os("SystemDrive").unwrap_or_else(|| OsString::from("C:"));
    drive.push(r"\");
    drive.into()
}

/// A program of Windows by its path below the directory of the system's programs: never another one of its name in `PATH`.
pub(crate) fn system_program(name: &str) -> PathBuf {
    let windows = env::var_os("SystemRoot").unwrap_or_else(|| OsString::from(r"C:\Windows"));
    Path::new(&windows).join("System32").join(name)
}

/// The current boot.
pub(crate) fn boot() -> Result<Boot, PlatformError> {
    let what = "the time since the machine started";
    let seconds = System::boot_time().map_err(|error| unreadable(what, &error))?;
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let time = time.ok_or_else(|| unreadable(what, &format!("{seconds} is no time")))?;
    Ok(Boot { id: boot_id()?, time })
}

/// The random id of the current boot: see [`BOOT_KEY`].
pub(crate) fn boot_id() -> Result<String, PlatformError> {
    let read = || -> windows_registry::Result<String> {
        let key = LOCAL_MACHINE.options().read().write().create().volatile().open(BOOT_KEY)?;
        if let Ok(id) = key.get_string(BOOT_VALUE) {
            return Ok(id);
        }
        key.set_string(BOOT_VALUE, format!("{:032x}", rand::random::<u128>()))?;
        // Of two programs that make it at once the later one counts.
        key.get_string(BOOT_VALUE)
    };
    read().map_err(|error| unreadable(&format!(r"HKEY_LOCAL_MACHINE\{BOOT_KEY}"), &error))
}

/// Version of the running kernel.
pub(crate) fn kernel() -> String {
    System::kernel_version().unwrap_or_default()
}

/// How the system was built: `20348.1.amd64fre.fe_release.210507-1500`.
pub(crate) fn build() -> String {
    let read = || LOCAL_MACHINE.open(VERSION_KEY)?.get_string("BuildLabEx");
    read().unwrap_or_default()
}

/// First label of the DNS host name.
pub(crate) fn short_hostname() -> String {
    let name = System::host_name().unwrap_or_default().to_lowercase();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// By the registry. `ProductName` is not asked: Windows 11 calls itself 10 there; its builds begin with 22000.
pub(crate) fn os_release() -> Result<OsRelease, PlatformError> {
    let read = || -> windows_registry::Result<OsRelease> {
        let key = LOCAL_MACHINE.open(VERSION_KEY)?;
        // "Client", "Server", "Server Core".
        let kind = key.get_string("InstallationType").unwrap_or_default();
        let id = if kind.starts_with("Server") { "windows-server" } else { "windows" };
        let build = key.get_string("CurrentBuild")?;
        // Before Windows 10 there was neither.
        let major = key.get_u32("CurrentMajorVersionNumber").unwrap_or(10);
        let minor = key.get_u32("CurrentMinorVersionNumber").unwrap_or(0);
        let mut version = format!("{major}.{minor}.{build}");
        if let Ok(revision) = key.get_u32("UBR") {
            // Writing into a String cannot fail.
            let _ = write!(version, ".{revision}");
        }
        Ok(OsRelease { id: id.to_owned(), like: String::new(), version })
    };
    read().map_err(|error| unreadable(&format!(r"HKEY_LOCAL_MACHINE\{VERSION_KEY}"), &error))
}

/// When a process started, in seconds since 1970, if it is there. This program is looked for beside it: a list without it is no
/// list of processes.
fn start_time(pid: u32) -> Result<Option<u64>, PlatformError> {
    let wrong = |why: &dyn std::fmt::Display| unreadable("the list of processes", why);
    let (own, pid) = (Pid::from_u32(std::process::id()), Pid::from_u32(pid));
    let mut system = System::new().map_err(|error| wrong(&error))?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own, pid]), true, ProcessRefreshKind::nothing());
    if system.process(own).is_none() {
        return Err(wrong(&"cannot be read"));
    }
    Ok(system.process(pid).map(sysinfo::Process::start_time))
}

/// A running process as it can be found again.
pub(crate) fn process(pid: u32) -> Result<Process, PlatformError> {
    let gone = || unreadable(&format!("process {pid}"), &"is not there");
    Ok(Process { pid, start_time: start_time(pid)?.ok_or_else(gone)?, boot_id: boot_id()? })
}

/// Whether the process still runs.
pub(crate) fn is_alive(process: &Process) -> Result<bool, PlatformError> {
    Ok(boot_id()? == process.boot_id && start_time(process.pid)? == Some(process.start_time))
}

/// Whether a program of one of these names runs.
pub(crate) fn is_any_running(names: &[&str]) -> Result<bool, PlatformError> {
    let mut system = System::new().map_err(|error| unreadable("the list of processes", &error))?;
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing());
    if system.processes().is_empty() {
        return Err(unreadable("the list of processes", &"cannot be read"));
    }
    let is_one = |process: &sysinfo::Process| names.iter().any(|name| process.name().eq_ignore_ascii_case(name));
    Ok(system.processes().values().any(is_one))
}

/// Commands are run as they are: Windows Update does its work in a service of its own.
pub(crate) fn give_way(_: &tokio::process::Child) {}

/// A file that has other names beside this one, as far as that is known here.
pub(crate) fn linked_file(_: &std::fs::Metadata) -> Option<(u64, u64)> {
    None
}

/// Free bytes on the volume of `path`. A volume is known by the drive and its size: another one may be mounted in a directory.
pub(crate) fn free_space(path: &Path) -> io::Result<FreeSpace> {
    path.metadata()?;
    let path = std::path::absolute(path)?;
    let space = fs4::statvfs(&path)?;
    let mut hasher = DefaultHasher::new();
    (path.components().next(), space.total_space()).hash(&mut hasher);
    Ok(FreeSpace { device: hasher.finish(), bytes: space.available_space() })
}

/// Whether the file system of a Linux can only be read is no matter of this system.
pub(crate) fn is_read_only(_: &Path) -> io::Result<bool> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "mounts are not looked at on Windows"))
}

/// Locks of fcntl(2), which Linux' package managers take, are no matter of this system.
pub(crate) fn write_locker(_: &File) -> io::Result<Option<u32>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "there are no locks of fcntl(2) on Windows"))
}

/// What the machine runs on: not found out, which counts as a battery.
pub(crate) fn power() -> Power {
    Power::Unknown
}

/// Model, firmware and drivers are in the software list.
pub(crate) fn hardware(_is_impersonal: bool) -> Option<Hardware> {
    None
}

/// The zone that is set in the system (`GetDynamicTimeZoneInformation`).
pub(crate) fn local_zone() -> Result<TimeZone, String> {
    TimeZone::try_system().map_err(|error| error.to_string())
}

/// Why no script of this name is run.
pub(crate) fn find_script(name: &str) -> Result<PathBuf, NoScript> {
    Err(NoScript::Refused(format!(
        "{name:?}: scripts of the machine are not run on Windows: whether administrators alone can change one is not looked at yet"
    )))
}

/// From now on Ctrl-C, Ctrl-Break, a shutdown of the system and the stop of the service end the wait that this returns.
pub(crate) fn stop_asked() -> io::Result<impl Future<Output = ()>> {
    let (mut c, mut r#break, mut shutdown) = (ctrl_c()?, ctrl_break()?, ctrl_shutdown()?);
    Ok(async move {
        tokio::select! {
            _ = c.recv() => {}
            _ = r#break.recv() => {}
            _ = shutdown.recv() => {}
            () = service::stop_asked() => {}
        }
    })
}

/// Fails with the state of a service that is not running. `Status` is a word of .NET (`ServiceControllerStatus`), in every language
/// of the system the same.
pub(crate) async fn start_service(unit: &str) -> Result<(), String> {
    Err(format!("{unit} is no service of Windows"))
}

/// Which services still run what was replaced is not known: a file cannot be replaced while one has it.
pub(crate) async fn outdated_services() -> Option<Outdated> {
    None
}

/// None is known to need it.
pub(crate) async fn may_restart_service(unit: &str) -> Result<(), String> {
    start_service(unit).await
}

/// See there.
pub(crate) async fn bring_up_service(unit: &str, _how: BringUp, _limit: Duration) -> Result<(), String> {
    start_service(unit).await
}

/// Where the program lies that runs.
pub(crate) fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// See there.
pub(crate) async fn service_active(unit: &str) -> Result<(), String> {
    let script = "$ErrorActionPreference = 'Stop'; [string](Get-Service -Name $env:PATCHWARDEN_ASKED).Status";
    let state = ask(script, unit).await?;
    if state == "Running" {
        return Ok(());
    }
    Err(if state.is_empty() { format!("{unit} is not there") } else { format!("{unit} is {state}") })
}

/// Fails where there is no such file. By a process of its own: where a server of files is gone nobody waits for it.
pub(crate) async fn file_exists(path: &str) -> Result<(), String> {
    let found = ask("[string](Test-Path -LiteralPath $env:PATCHWARDEN_ASKED)", path).await?;
    if found == "True" { Ok(()) } else { Err(format!("{path} does not exist")) }
}

/// Runs a script that is killed, and not waited for, where its time is over. What is asked about goes by a variable: it is data
/// and no part of the script.
async fn ask(script: &str, about: &str) -> Result<String, String> {
    let mut line = CommandLine { words: vec![powershell().into()], environment: Vec::new() };
    line.words.extend(words(["-NoProfile", "-NonInteractive", "-Command", script]));
    line.environment.push(("PATCHWARDEN_ASKED", about.into()));
    let mut process = line.command();
    process.stdin(Stdio::null()).kill_on_drop(true);
    let output = process.output().await.map_err(|error| format!("powershell.exe: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
