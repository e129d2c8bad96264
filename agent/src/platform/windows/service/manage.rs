//! The service in the service control manager's list: registered, and removed again.

use std::env;
use std::ffi::{OsStr, OsString};
use std::iter;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceFailureActions,
    ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

use super::super::start_time;
use super::events;
use super::{NAME, NOT_KNOWN, NOT_RUNNING, NOT_THERE, code, failed};
use crate::platform::default_config;
use crate::{files, identity};

const DISPLAY_NAME: &str = "Patchwarden agent";

const DESCRIPTION: &str = "Reports which updates this machine could have and installs those that were approved.";

/// From a failure to the next start: soon, then in peace. The last one counts for all that follow.
const RESTARTS: [Duration; 3] = [Duration::from_secs(10), Duration::from_mins(1), Duration::from_mins(1)];

/// After a day without failures the first one counts again.
const RESET: Duration = Duration::from_hours(24);

/// Longer than a stop may take.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Between looks whether the service has stopped.
const PAUSE: Duration = Duration::from_millis(50);

/// Registers this program, unless it is so already.
pub(super) fn install(state: &Path) -> anyhow::Result<()> {
    let program = env::current_exe().context("where this program lies")?;
    check_program(&program)?;
    let manager = ServiceManager::local_computer(
        None::<&OsStr>,
        ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE,
    )
    .map_err(|error| failed("the service control manager", &error))?;
    let is_new_state = !state.exists();
    files::ensure_state(state).with_context(|| state.display().to_string())?;
    if is_new_state {
        println!("{} is made, for the system and administrators alone.", state.display());
    }
    let info = info(&program, state);
    let access = ServiceAccess::QUERY_CONFIG | ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let is_changed = match manager.open_service(NAME, access) {
        Ok(service) => repoint(&service, info)?,
        Err(error) if code(&error) == Some(NOT_THERE) => {
            create(&manager, &info, access)?;
            println!("The service {NAME} is registered. It starts with the machine, as the system.");
            true
        }
        Err(error) => return Err(failed(&format!("the service {NAME}"), &error)),
    };
    events::register()?;
    if !is_changed && !is_new_state {
        println!("The service {NAME} is registered already: nothing has changed.");
    }
    if identity::has_joined(state) {
        println!("Start it, unless it runs: net start {NAME}");
    } else {
        println!(
            "Next: `patchwarden-agent join` (kubectl patchwarden enroll prints the command), then `net start {NAME}`."
        );
    }
    Ok(())
}

/// What runs as the system must not be anybody's to change.
fn check_program(program: &Path) -> anyhow::Result<()> {
    for path in [Some(program), program.parent()].into_iter().flatten() {
        let metadata = path.symlink_metadata().with_context(|| path.display().to_string())?;
        if let Err(why) = files::check_owner(path, &metadata) {
            bail!(
                "{}: {why}. The service runs as the system: put the program where administrators alone can change it, such as \
                 \"C:\\Program Files\\Patchwarden\", and run it from there",
                path.display()
            );
        }
    }
    Ok(())
}

/// What the program is started with. Where its files lie is said: the environment of services may be another than that of people.
fn arguments(state: &Path) -> Vec<OsString> {
    let config = default_config();
    let words = ["--config".into(), config.into(), "--state-dir".into(), state.into(), "service".into(), "run".into()];
    words.into()
}

fn info(program: &Path, state: &Path) -> ServiceInfo {
    ServiceInfo {
        name: NAME.into(),
        display_name: DISPLAY_NAME.into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program.to_owned(),
        launch_arguments: arguments(state),
        dependencies: Vec::new(),
        // LocalSystem.
        account_name: None,
        account_password: None,
    }
}

/// All of it or nothing.
fn create(manager: &ServiceManager, info: &ServiceInfo, access: ServiceAccess) -> anyhow::Result<()> {
    let service = manager
        .create_service(info, access | ServiceAccess::DELETE)
        .map_err(|error| failed(&format!("the service {NAME} cannot be registered"), &error))?;
    if let Err(error) = describe(&service) {
        service.delete().map_err(|error| failed(&format!("the service {NAME} cannot be removed again"), &error))?;
        return Err(error);
    }
    Ok(())
}

/// What is said of a service beside its program. It restarts also where it has ended with an error, and not only where it died.
fn describe(service: &Service) -> anyhow::Result<()> {
    let action = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(RESET),
        reboot_msg: None,
        command: None,
        actions: Some(RESTARTS.into_iter().map(action).collect()),
    };
    for (what, set) in [
        ("description", service.set_description(DESCRIPTION)),
        ("delayed start", service.set_delayed_auto_start(true)),
        ("restart after a failure", service.update_failure_actions(actions)),
        ("restart after an error", service.set_failure_actions_on_non_crash_failures(true)),
    ] {
        let what = format!("the {what} of the service {NAME}");
        match set {
            Err(error) if code(&error) == Some(NOT_KNOWN) => {
                eprintln!("{what} is not set: this system has no such thing");
            }
            set => set.map_err(|error| failed(&what, &error))?,
        }
    }
    Ok(())
}

/// Points a service that is there to this program. Whether it was another one.
fn repoint(service: &Service, info: ServiceInfo) -> anyhow::Result<bool> {
    let wrong = |error| failed(&format!("the service {NAME}"), &error);
    let found = service.query_config().map_err(wrong)?;
    let (before, line) = (found.executable_path.into_os_string(), command_line(&info));
    if before == line {
        return Ok(false);
    }
    let info = ServiceInfo { start_type: found.start_type, display_name: found.display_name, ..info };
    service.change_config(&info).map_err(wrong)?;
    println!("From its next start the service {NAME} runs {}, and no longer {}.", line.display(), before.display());
    Ok(true)
}

/// As the service control manager keeps it: with quotes where there is a space, as `CommandLineToArgvW` reads it.
fn command_line(info: &ServiceInfo) -> OsString {
    let mut line = OsString::new();
    for word in
        iter::once(info.executable_path.as_os_str()).chain(info.launch_arguments.iter().map(OsString::as_os_str))
    {
        if !line.is_empty() {
            line.push(" ");
        }
        let quote = if word.to_string_lossy().contains([' ', '\t']) { "\"" } else { "" };
        line.push(quote);
        line.push(word);
        line.push(quote);
    }
    line
}

/// Stops the service and takes it out of the list, if it is there; and all that it has, if so asked.
pub(super) async fn uninstall(state: &Path, purge: bool) -> anyhow::Result<()> {
    let manager = ServiceManager::local_computer(None::<&OsStr>, ServiceManagerAccess::CONNECT)
        .map_err(|error| failed("the service control manager", &error))?;
    let access = ServiceAccess::QUERY_STATUS | ServiceAccess::STOP | ServiceAccess::DELETE;
    let service = match manager.open_service(NAME, access) {
        Ok(service) => Some(service),
        Err(error) if code(&error) == Some(NOT_THERE) => None,
        Err(error) => return Err(failed(&format!("the service {NAME}"), &error)),
    };
    if let Some(service) = &service {
        stop(service).await?;
    }
    crate::leave(state, !purge).await?;
    match service {
        Some(service) => {
            service.delete().map_err(|error| failed(&format!("the service {NAME} cannot be removed"), &error))?;
            println!("The service {NAME} is removed.");
        }
        None => println!("There is no service {NAME}."),
    }
    events::remove()?;
    if purge {
        files::remove_tree(state).with_context(|| state.display().to_string())?;
        println!("{} is removed.", state.display());
    } else if state.exists() {
        println!("{} stays; --purge removes it.", state.display());
    }
    Ok(())
}

/// Until its process is gone, which keeps its files open.
async fn stop(service: &Service) -> anyhow::Result<()> {
    let wrong = |error| failed(&format!("the service {NAME} cannot be stopped"), &error);
    let before = service.query_status().map_err(wrong)?;
    if before.current_state == ServiceState::Stopped {
        return Ok(());
    }
    if before.current_state != ServiceState::StopPending {
        match service.stop() {
            // It has ended by itself meanwhile.
            Err(error) if code(&error) == Some(NOT_RUNNING) => {}
            asked => asked.map(drop).map_err(wrong)?,
        }
    }
    let began = Instant::now();
    loop {
        let is_stopped = service.query_status().map_err(wrong)?.current_state == ServiceState::Stopped;
        let is_gone = match before.process_id {
            Some(pid) => start_time(pid)?.is_none(),
            None => true,
        };
        if is_stopped && is_gone {
            println!("The service {NAME} has stopped.");
            return Ok(());
        }
        if began.elapsed() > STOP_LIMIT {
            bail!("the service {NAME} did not stop within {} s: try again", STOP_LIMIT.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
