//! The agent as a service of Windows: `patchwarden-agent service`.
//!
//! ```text
//!   install:  directory of the state, registered          uninstall:  stopped, the updater given back, not registered
//!   service control manager -- starts --> run:  Running -> (asked to stop) StopPending -> Stopped
//! ```

mod events;
mod life;
mod manage;

use std::path::Path;

use anyhow::bail;
use windows_service::Error;

pub(crate) use self::life::{begin, stop_asked};
use super::{default_config, default_state};

/// As it is registered, for `net start` and `sc.exe`.
const NAME: &str = "patchwarden-agent";

/// `ERROR_ACCESS_DENIED`.
const ACCESS_DENIED: i32 = 5;

/// `ERROR_INVALID_LEVEL`: a service of this system has no such property. Every Windows that is supported has all of them, Wine has not.
const NOT_KNOWN: i32 = 124;

/// `ERROR_SERVICE_DOES_NOT_EXIST`.
const NOT_THERE: i32 = 1060;

/// `ERROR_SERVICE_NOT_ACTIVE`.
const NOT_RUNNING: i32 = 1062;

/// `ERROR_FAILED_SERVICE_CONTROLLER_CONNECT`: the program was not started by the service control manager.
const STARTED_BY_HAND: i32 = 1063;

/// `ERROR_SERVICE_MARKED_FOR_DELETE`.
const BEING_DELETED: i32 = 1072;

/// What is done with the service.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Is the service. For the service control manager, not for people.
    Run,
    /// Registers this program as a service that starts with the machine, as the system, and makes its directory. It must lie where
    /// administrators alone can change it. Of a service that is there the program alone is changed.
    Install,
    /// Stops the service and removes it. The operating system gets its own updater back; identity, configuration and log stay.
    Uninstall {
        /// These too: this machine leaves, and the directory is removed.
        #[arg(long)]
        purge: bool,
    },
}

impl Command {
    /// Does it, apart from [`Command::Run`], which is [`begin`]'s.
    pub(crate) async fn carry_out(self, config: &Path, state: &Path) -> anyhow::Result<()> {
        if config != default_config() || state != default_state() {
            bail!("the service keeps everything in {}: leave --config and --state-dir out", default_state().display());
        }
        match self {
            Self::Run => bail!("the service control manager alone starts the service"),
            Self::Install => manage::install(state),
            Self::Uninstall { purge } => manage::uninstall(state, purge).await,
        }
    }
}

/// The code of Windows.
fn code(error: &Error) -> Option<i32> {
    if let Error::Winapi(source) = error { source.raw_os_error() } else { None }
}

/// What has failed, why, and what helps.
fn failed(what: &str, error: &Error) -> anyhow::Error {
    let why = if let Error::Winapi(source) = error { source.to_string() } else { error.to_string() };
    let advice = match code(error) {
        Some(ACCESS_DENIED) => ": this needs an administrator: open the window with \"Run as administrator\"",
        Some(NOT_THERE) => ": `patchwarden-agent service install` registers it",
        Some(STARTED_BY_HAND) => {
            ": the service control manager alone starts it: `net start patchwarden-agent`; `patchwarden-agent run` runs in a window"
        }
        Some(BEING_DELETED) => ": it is being removed: close what has it open (Services, Task Manager) and try again",
        _ => "",
    };
    anyhow::anyhow!("{what}: {why}{advice}")
}
