//! What is of one operating system: one interface, and below it a module for each system.
//!
//! The rest of the agent asks here and is the same everywhere. What a system does not have is an error that says so.
//!
//! | what | Linux | Windows | macOS |
//! |---|---|---|---|
//! | a boot's id | the kernel's | made once for each boot, in a volatile registry key | the kernel's |
//! | private files | modes | the state directory's access control list | modes |
//! | a command that outlives the agent | a session (and scope) of its own, `/bin/sh` around it | this program around it | a process group of its own, this program around it |
//! | a script of the machine, the system's own updater | yes | refused | refused |
//! | recipes for third-party applications | yes | refused | refused |

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use self::linux as system;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
use self::windows as system;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use self::macos as system;

#[cfg(unix)]
mod unix;

// Tested everywhere.
#[cfg(any(target_os = "macos", test, fuzzing))]
#[path = "macos/answers.rs"]
mod answers;
#[cfg(any(windows, test))]
#[path = "windows/log.rs"]
mod log;
#[cfg(any(windows, test))]
#[path = "windows/sddl.rs"]
mod sddl;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

#[cfg(any(test, fuzzing))]
pub(crate) use self::answers::fuzz as fuzz_macos;
#[cfg(any(test, fuzzing))]
pub(crate) use self::linux::fuzz;
#[cfg(any(windows, target_os = "macos"))]
pub(crate) use self::system::Internal;
#[cfg(windows)]
pub(crate) use self::system::service;
pub(crate) use self::system::{
    BOOT, FAMILY, PASSED_ON, REPAIR_ADVICE, START_ADVICE, WHY_UPDATER_STAYS, boot, boot_id, bring_up_service, build,
    default_config, default_state, detached, file_exists, files, find_script, free_space, give_way, hardware, is_alive,
    is_any_running, is_read_only, kernel, linked_file, local_zone, may_restart_service, os_release, outdated_services,
    own_program, parts, power, process, recipes, restart, root, service_active, short_hostname, start_service,
    stop_asked, write_locker,
};

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

/// Why there is no script of the device's own that may be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoScript {
    /// Nothing has this name: a publisher may have signed one of it.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "scripts are run on Linux alone"))]
    #[error("{0}")]
    Absent(String),
    /// What there is is not to be run, and nothing else in its place.
    #[error("{0}")]
    Refused(String),
}

/// This device's clock. The only place that reads it: everywhere else time is an argument.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// One boot of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// A random id of it.
    pub(crate) id: String,
    /// When it was, to the second.
    pub(crate) time: Timestamp,
}

/// The highest directory above `path`, or this itself, on the same file system: where that is mounted.
pub(crate) fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    let device = free_space(&path)?.device;
    let is_same = |above: &&Path| free_space(above).is_ok_and(|space| space.device == device);
    Ok(path.ancestors().take_while(is_same).last().unwrap_or(&path).to_owned())
}

/// Which system it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OsRelease {
    /// `debian` (`ID` of os-release(5)), `windows`, `windows-server`, `macos`.
    pub(crate) id: String,
    /// The systems that it is derived from (`ID_LIKE`): `rhel centos fedora`.
    pub(crate) like: String,
    /// `12.11` (`VERSION_ID`, with Debian's point release), `10.0.20348.2113`, `26.7`; empty where the system states none (Debian's
    /// testing).
    pub(crate) version: String,
}

/// Services that still run what was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outdated {
    /// Their units.
    pub(crate) units: BTreeSet<String>,
    /// Those of them that are never restarted by themselves, with what would become of whoever needs them.
    pub(crate) left: BTreeMap<String, String>,
    /// Not every process could be looked at: there may be more.
    pub(crate) partial: bool,
}

/// How a service comes to run what is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BringUp {
    /// It runs, and is restarted.
    Restart,
    /// It is down, and is started, also where it has failed too often.
    Start,
}

/// Room on a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeSpace {
    /// The same number, the same file system.
    pub(crate) device: u64,
    /// Bytes that the agent may fill.
    pub(crate) bytes: u64,
}
