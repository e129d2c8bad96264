//! macOS: what its own programs say, which lie where only the system can change them, and what they are told.

#[path = "../windows/around.rs"]
mod around;
pub(crate) mod detached;
#[path = "../linux/files.rs"]
pub(crate) mod files;
mod processes;
#[path = "../windows/recipes.rs"]
pub(crate) mod recipes;
pub(crate) mod restart;

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use patchwarden_protocol::details::Hardware;
use patchwarden_protocol::report::Power;

use super::{Boot, BringUp, NoScript, OsRelease, Outdated, PlatformError, answers, unreadable};
use crate::provider::{CommandLine, words};

pub(crate) use self::around::Internal;
pub(crate) use self::processes::{is_alive, is_any_running, process};
pub(crate) use super::unix::{
    build, free_space, give_way, is_read_only, kernel, linked_file, local_zone, short_hostname, stop_asked,
    write_locker,
};

/// As a report calls it.
pub(crate) const FAMILY: &str = "macos";

/// Of the agent's own environment only these reach a command.
pub(crate) const PASSED_ON: [&str; 7] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TZ"];

/// Why the operating system's own updater cannot be switched off by this agent.
pub(crate) const WHY_UPDATER_STAYS: Option<&str> = Some(
    "this agent cannot switch off macOS' own automatic updates: leave it at Leave, and set them by a configuration profile \
     (com.apple.SoftwareUpdate)",
);

/// Where kernels lie, if that may be a file system of its own.
pub(crate) const BOOT: Option<&str> = None;

/// Places with free space of their own that packages have files in. Here all share one.
pub(crate) fn parts() -> Vec<PathBuf> {
    Vec::new()
}

/// How a person starts the agent.
pub(crate) const START_ADVICE: &str =
    "start it: launchctl bootstrap system /Library/LaunchDaemons/io.patchwarden.agent.plist";

/// How a person repairs what installs updates.
pub(crate) const REPAIR_ADVICE: &str = "look at what `softwareupdate --list` says, and restart the Mac";

/// Directory of this program's data for all users, with the configuration in it.
const DATA: &str = "/Library/Application Support/Patchwarden";

/// Where the configuration lies unless the command line says otherwise.
pub(crate) fn default_config() -> PathBuf {
    PathBuf::from(DATA).join("agent.toml")
}

/// Where keys, journal and downloads lie unless the command line says otherwise.
pub(crate) fn default_state() -> PathBuf {
    PathBuf::from(DATA).join("state")
}

/// The directory above all others.
pub(crate) fn root() -> PathBuf {
    "/".into()
}

/// A program of the system's, with nothing of the agent's environment.
fn line<const N: usize>(command: [&str; N]) -> CommandLine {
    let environment =
        vec![("LC_ALL", "C".into()), ("HOME", "/var/root".into()), ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin".into())];
    CommandLine { words: words(command), environment }
}

/// What a program says that answers at once.
fn said<const N: usize>(command: [&str; N]) -> Result<String, PlatformError> {
    let name = command.join(" ");
    let mut process = line(command).command().into_std();
    let output = process.stdin(Stdio::null()).output().map_err(|error| unreadable(&name, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(unreadable(&name, &format!("ended with {}", output.status)))
}

/// The current boot.
pub(crate) fn boot() -> Result<Boot, PlatformError> {
    let command = ["/usr/sbin/sysctl", "-n", "kern.boottime"];
    let text = said(command)?;
    let time = answers::boot_time(&text)
        .ok_or_else(|| unreadable(&command.join(" "), &format!("no time: {:?}", text.trim())))?;
    Ok(Boot { id: boot_id()?, time })
}

/// The kernel's random id of the current boot. Its time is none: that moves with the clock.
pub(crate) fn boot_id() -> Result<String, PlatformError> {
    // It outlives every process.
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id.clone());
    }
    let command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"];
    let text = said(command)?;
    let id = answers::boot_id(&text)
        .ok_or_else(|| unreadable(&command.join(" "), &format!("no UUID: {:?}", text.trim())))?;
    Ok(ID.get_or_init(|| id).clone())
}

/// By `sw_vers`.
pub(crate) fn os_release() -> Result<OsRelease, PlatformError> {
    let command = ["/usr/bin/sw_vers"];
    answers::os_release(&said(command)?).ok_or_else(|| unreadable(command[0], &"names no version of macOS"))
}

/// What the machine runs on.
pub(crate) fn power() -> Power {
    said(["/usr/bin/pmset", "-g", "batt"]).map_or(Power::Unknown, |text| answers::power(&text))
}

/// Why no script of this name is run.
pub(crate) fn find_script(name: &str) -> Result<PathBuf, NoScript> {
    Err(NoScript::Refused(format!("{name:?}: scripts of the machine are not run on macOS yet")))
}

/// What the machine is made of is not told here yet.
pub(crate) fn hardware(_is_impersonal: bool) -> Option<Hardware> {
    None
}

/// What services of Linux' systemd are for is none of launchd's here.
pub(crate) async fn start_service(unit: &str) -> Result<(), String> {
    Err(format!("{unit} is no service of macOS"))
}

/// Which services still run what was replaced is not known: the system itself is updated as a whole.
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
    env::current_exe()
}

/// Fails with the state of a service of the system that does not run, by its label.
pub(crate) async fn service_active(unit: &str) -> Result<(), String> {
    let text = ask(["/bin/launchctl", "print", &format!("system/{unit}")]).await?.1;
    match answers::service_state(&text) {
        Some("running") => Ok(()),
        Some(state) => Err(format!("{unit} is {state}")),
        None => Err(format!("{unit} is not there")),
    }
}

/// Fails where there is no such file. By a process of its own: on a file system that hangs (a server of files that is gone) nobody
/// waits for it.
pub(crate) async fn file_exists(path: &str) -> Result<(), String> {
    if ask(["/bin/test", "-e", path]).await?.0 { Ok(()) } else { Err(format!("{path} does not exist")) }
}

/// Runs a command that is killed, and not waited for, where its time is over: whether it succeeded, and what it said.
async fn ask<const N: usize>(command: [&str; N]) -> Result<(bool, String), String> {
    let mut process = line(command).command();
    process.stdin(Stdio::null()).kill_on_drop(true);
    let output = process.output().await.map_err(|error| format!("{}: {error}", command.join(" ")))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}
