//! Processes, by the kernel's list.

use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

use super::boot_id;
use crate::journal::Process;
use crate::platform::{PlatformError, unreadable};

/// When a process started, in seconds since 1970, if it is there and no zombie. This program is looked for beside it: a list without
/// it is no list of processes.
fn start_time(pid: u32) -> Result<Option<u64>, PlatformError> {
    let (own, pid) = (Pid::from_u32(std::process::id()), Pid::from_u32(pid));
    let system = list(ProcessesToUpdate::Some(&[own, pid]))?;
    if system.process(own).is_none() {
        return Err(unreadable("the list of processes", &"cannot be read"));
    }
    let alive =
        system.process(pid).filter(|process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead));
    Ok(alive.map(sysinfo::Process::start_time))
}

fn list(which: ProcessesToUpdate<'_>) -> Result<System, PlatformError> {
    let mut system = System::new().map_err(|error| unreadable("the list of processes", &error))?;
    system.refresh_processes_specifics(which, true, ProcessRefreshKind::nothing());
    Ok(system)
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
    let system = list(ProcessesToUpdate::All)?;
    if system.processes().is_empty() {
        return Err(unreadable("the list of processes", &"cannot be read"));
    }
    Ok(system.processes().values().any(|process| names.iter().any(|name| process.name() == *name)))
}
