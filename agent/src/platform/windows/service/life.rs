//! From its start to its end: what the service control manager is told, and what it asks.

use std::fs;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::service_dispatcher;

use super::{NAME, events, failed};
use crate::platform::log::Log;
use crate::{Cli, LogFormat, files, identity};

/// How long a stop may take. The agent ends where it waits: at most it asks PowerShell for half a minute whose a file is.
const STOPPING: Duration = Duration::from_secs(40);

/// Of the directory with the log, in that of the state.
const LOG: &str = "log";

/// Bytes of one of its two files.
const LOG_MOST: usize = 5 << 20;

/// The agent could not go on: the log says why.
const FAILED: u32 = 1;

/// It has no log but the event log: its directory is not there, or not administrators' alone.
const NO_LOG: u32 = 2;

/// The service control manager has asked the service to stop.
static STOP: Notify = Notify::const_new();

/// To tell the service control manager how the service stands.
static STATUS: OnceLock<ServiceStatusHandle> = OnceLock::new();

/// What the command line says, on its way to the service's thread.
static LINE: Mutex<Option<Cli>> = Mutex::new(None);

/// Ends once the service is asked to stop; never where the agent is no service.
pub(crate) async fn stop_asked() {
    STOP.notified().await;
}

/// Becomes the service, until it has stopped.
pub(crate) fn begin(cli: Cli) -> ExitCode {
    if let Ok(mut line) = LINE.lock() {
        *line = Some(cli);
    }
    // Returns at the service's end.
    match service_dispatcher::start(NAME, main) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchwarden-agent: {:#}", failed("service run", &error));
            ExitCode::FAILURE
        }
    }
}

/// The service's thread. What the service control manager passes on is for nobody.
extern "system" fn main(_: u32, _: *mut *mut u16) {
    let Ok(status) = service_control_handler::register(NAME, asked) else { return };
    STATUS.get_or_init(|| status);
    tell(ServiceState::Running, ServiceExitCode::NO_ERROR);
    let line = LINE.lock().ok().and_then(|mut line| line.take());
    let code = match line.map_or(FAILED, work) {
        0 => ServiceExitCode::NO_ERROR,
        code => ServiceExitCode::ServiceSpecific(code),
    };
    tell(ServiceState::Stopped, code);
}

/// What the service control manager asks, on a thread of its own.
fn asked(control: ServiceControl) -> ServiceControlHandlerResult {
    match control {
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        ServiceControl::Stop | ServiceControl::Shutdown => {
            tell(ServiceState::StopPending, ServiceExitCode::NO_ERROR);
            STOP.notify_one();
            ServiceControlHandlerResult::NoError
        }
        _ => ServiceControlHandlerResult::NotImplemented,
    }
}

/// `SetServiceStatus`: a state that is passing has a wait hint, and a checkpoint that is not zero.
fn tell(state: ServiceState, exit_code: ServiceExitCode) {
    let is_stopping = state == ServiceState::StopPending;
    let controls_accepted = match state {
        ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
        _ => ServiceControlAccept::empty(),
    };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code,
        checkpoint: u32::from(is_stopping),
        wait_hint: if is_stopping { STOPPING } else { Duration::ZERO },
        process_id: None,
    };
    if let Some(handle) = STATUS.get()
        && let Err(error) = handle.set_service_status(status)
    {
        tracing::error!("the service control manager cannot be told that the service is {state:?}: {error}");
    }
}

/// The agent, with its log. Returns the service's own exit code.
fn work(cli: Cli) -> u32 {
    let directory = cli.state_dir.join(LOG);
    let log = files::ensure_state(&cli.state_dir)
        .and_then(|()| fs::create_dir_all(&directory))
        .and_then(|()| Log::open(&directory, LOG_MOST));
    let (log, no_log) = match log {
        Ok(log) => (Some(log), None),
        Err(error) => (None, Some(error)),
    };
    let layer = log.map(|log| {
        let layer = tracing_subscriber::fmt::layer().with_writer(Mutex::new(log)).with_ansi(false);
        match cli.log_format {
            LogFormat::Text => layer.with_target(false).boxed(),
            LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        }
    });
    tracing_subscriber::registry().with(layer).with(events::layer()).with(cli.log.clone()).init();
    if let Some(error) = no_log {
        tracing::error!("{}: {error}: there is no log", directory.display());
        return NO_LOG;
    }
    if !identity::has_joined(&cli.state_dir) {
        tracing::info!("this machine has not joined: `patchwarden-agent join`, then `net start {NAME}`");
        return 0;
    }
    match crate::on_one_thread(Cli { command: crate::Command::Run, ..cli }) {
        Ok(_) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            FAILED
        }
    }
}
