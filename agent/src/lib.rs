//! Patchwarden's agent: tells what could be updated on this machine and carries out signed orders.
//!
//! It opens one connection to the gateway and never listens. What it does is decided by documents that the controller
//! signed and that lead back to the root key pinned in `join`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics has failed"))]

mod agent;
mod boot;
mod changes;
mod config;
mod doctor;
mod execute;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod glob;
mod identity;
mod instance;
mod join;
mod journal;
mod keep;
mod limits;
mod link;
mod order;
mod past;
mod platform;
mod provider;
mod publish;
mod scan;
mod session;
mod settings;
mod shelf;
mod show;
#[cfg(feature = "simulation")]
pub mod simulation;
mod successor;
mod tls;
mod unfinished;
mod updater;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::result::InstallResult;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::agent::Agent;
use crate::changes::Changes;
use crate::config::Config;
use crate::identity::Identity;
use crate::journal::{Journal, JournalError};
use crate::keep::Keep;
use crate::limits::Limits;
use crate::past::Past;
use crate::provider::recipes::{Recipes, apply};
use crate::provider::{Direction, Managed, Native, Previews, Provider};
use crate::publish::Publish;
use crate::scan::{Machine, Reports};
use crate::shelf::Shelf;
use crate::successor::Successor;
use crate::unfinished::Unfinished;
use crate::updater::{Contact, Updater};

#[derive(Debug, Parser)]
#[command(name = "patchwarden-agent", version, about = "Reports what could be updated and carries out signed orders")]
struct Cli {
    /// Configuration, written by `join`.
    #[arg(long, global = true, value_name = "FILE", default_value_os_t = platform::default_config())]
    config: PathBuf,
    /// Keys, journal and downloads.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value_os_t = platform::default_state())]
    state_dir: PathBuf,
    /// What is logged: a level, or `target=level` pairs with commas.
    #[arg(long, global = true, env = "PATCHWARDEN_LOG", value_name = "LEVEL", default_value = "info")]
    log: Targets,
    /// How it is written: for people, or as one JSON object a line.
    #[arg(long, global = true, env = "PATCHWARDEN_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// How what is logged is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this device's key and gets it accepted.
    Join(Box<join::Arguments>),
    /// Keeps the session with the gateway: reports, and carries out orders.
    Run,
    /// Prints what a report would say now, as JSON. Changes nothing.
    Scan {
        /// Refreshes the package indexes first, which does change them.
        #[arg(long)]
        refresh: bool,
        /// With every update and in full, also what a report has no room for.
        #[arg(long)]
        all: bool,
    },
    /// Says who this device is and what it is doing.
    Status,
    /// Says whether this machine can be patched, and what to do. Changes nothing. The exit code is 1 with a warning, 2 with a
    /// problem.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the orders that were carried out or refused, oldest first.
    History {
        /// As JSON lines, with all that the results say.
        #[arg(long)]
        json: bool,
    },
    /// Lists what has changed among the installed packages since this machine joined, oldest first, and who did it.
    Changes {
        /// As JSON lines, one for each run of the package manager that changed something.
        #[arg(long)]
        json: bool,
    },
    /// Leaves: the operating system gets its own updater back, and this machine forgets who it is.
    Leave {
        /// It stays joined, and the agent may be started again: for the removal of the package.
        #[arg(long)]
        keep_identity: bool,
    },
    /// Recipes for third-party applications.
    Recipes {
        #[command(subcommand)]
        command: RecipesCommand,
    },
    /// The agent's journal.
    Journal {
        #[command(subcommand)]
        command: JournalCommand,
    },
    /// Goes back to this version of the agent where the next one gets no session. For its service.
    #[command(hide = true)]
    WatchSuccessor,
    /// The agent as a service of Windows.
    #[cfg(windows)]
    Service {
        #[command(subcommand)]
        command: platform::service::Command,
    },
    #[cfg(any(windows, target_os = "macos"))]
    #[command(flatten)]
    Internal(platform::Internal),
}

#[derive(Debug, Subcommand)]
enum RecipesCommand {
    #[command(flatten)]
    Publish(Publish),
    /// What an install runs, apart from the agent. Not for people.
    #[command(hide = true)]
    Apply {
        /// Where the downloaded files lie.
        #[arg(long, value_name = "DIRECTORY")]
        archives: PathBuf,
        /// They go back to what was kept of them.
        #[arg(long)]
        back: bool,
        /// Applications and the versions to bring them to.
        #[arg(value_name = "NAME=VERSION", required = true)]
        changes: Vec<String>,
        /// The package manager's command, to be run then.
        #[arg(last = true)]
        native: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Begins a new journal after a person has looked at a damaged one. The old one is kept beside it.
    Reset,
}

/// The program: reads the command line, and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(windows)]
    if matches!(cli.command, Command::Service { command: platform::service::Command::Run }) {
        return platform::service::begin(cli);
    }
    // A log file and systemd's journal are no place for colours; who sees them may want none (no-color.org).
    let is_coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match cli.log_format {
        LogFormat::Text => layer.with_target(false).with_ansi(is_coloured).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(layer).with(cli.log.clone()).init();
    match on_one_thread(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("patchwarden-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: an idle agent must cost nothing.
fn on_one_thread(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let done = runtime.block_on(tokio::task::LocalSet::new().run_until(run(cli)));
    // What still has a thread of its own (a download, the hash of a file) is begun again by the next one, as after a crash.
    runtime.shutdown_background();
    done
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { config, state_dir, log: _, log_format: _, command } = cli;
    match command {
        Command::Doctor { json } => return doctor::examine(&config, &state_dir, json).await,
        Command::Join(arguments) => join::join(*arguments, &config, &state_dir).await,
        // Large: what is not run need not have room for it.
        Command::Run => Box::pin(serve(&config, &state_dir)).await,
        Command::Scan { refresh, all } => print_scan(&config, &state_dir, refresh, all).await,
        Command::Status => print_status(&config, &state_dir),
        Command::History { json } => print_history(&state_dir, json),
        Command::Changes { json } => print_changes(&state_dir, json),
        Command::Leave { keep_identity } => leave(&state_dir, keep_identity).await,
        Command::Recipes { command: RecipesCommand::Publish(command) } => publish::run(command, platform::now()),
        Command::Recipes { command: RecipesCommand::Apply { archives, back, changes, native } } => {
            let direction = if back { Direction::Back } else { Direction::Forward };
            let shelf = Config::load(&config).map(|config| Shelf::new(&state_dir, config.recipe_publishers));
            let code = apply(shelf, &state_dir, direction, &archives, &changes, &native, platform::now()).await?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        Command::Journal { command: JournalCommand::Reset } => reset_journal(&state_dir),
        Command::WatchSuccessor => execute::watch(&state_dir).await,
        #[cfg(windows)]
        Command::Service { command } => command.carry_out(&config, &state_dir).await,
        #[cfg(any(windows, target_os = "macos"))]
        Command::Internal(command) => return Ok(command.run()),
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: &Path, state: &Path) -> anyhow::Result<()> {
    let (limits, config_path) = (limits::beside(config), config);
    let config = Config::load(config)?;
    let _lock = agent::lock(state)?;
    let identity = Identity::load(state)?;
    tracing::info!("{} ({})", config.device, identity.key.public().fingerprint());
    let recipes = Recipes::new(Shelf::new(state, config.recipe_publishers.clone()), config_path, state);
    let provider = Native::detect(config.previews()).map(|native| Managed::new(native, recipes));
    let provider = provider.inspect(|provider| tracing::info!("packages are managed by {}", provider.name()));
    let agent = Rc::new(Agent::open(config, identity, state, limits, provider)?);
    let stop_asked = platform::stop_asked().context("waiting to be stopped")?;
    tokio::select! {
        () = work(agent) => {}
        () = stop_asked => {}
    }
    tracing::info!("stopping; an install that runs goes on by itself and is picked up at the next start");
    Ok(())
}

/// Keeps the session, reports, and carries out orders, for ever.
async fn work<P: Provider>(agent: Rc<Agent<P>>) {
    tokio::select! {
        () = session::keep(agent.clone()) => {}
        () = agent.clone().scanner() => {}
        () = agent.worker() => {}
    }
}

async fn print_scan(config: &Path, state: &Path, refresh: bool, all: bool) -> anyhow::Result<()> {
    let limits = Limits::load(&limits::beside(config));
    let (previews, publishers, device) = match Config::load(config) {
        Ok(config) => (config.previews(), config.recipe_publishers, config.device),
        Err(config::ConfigError::Missing(_)) => {
            let device = DeviceRef { namespace: String::new(), name: platform::short_hostname() };
            (Previews::default(), Vec::new(), device)
        }
        Err(error) => return Err(error.into()),
    };
    let reports = Reports::load(state)?;
    let highest = Journal::read(&state.join(agent::JOURNAL))?.highest;
    let (keep, past) = (Keep::new(state, None), Past::new(state));
    let recipes = Recipes::new(Shelf::new(state, publishers), config, state);
    let provider = Managed::new(Native::detect(previews)?, recipes);
    if let Ok(identity) = Identity::load(state) {
        provider.want(agent::wanted_applications(&device, &identity, state, platform::now()));
    }
    let inventory = scan::look(&provider, refresh, &keep, &past).await;
    let mut inventory = inventory.map_err(|failure| scan::scan_failed(&failure));
    let mut problems = Vec::new();
    match (limits, &mut inventory) {
        (Ok(limits), Ok(inventory)) => limits.mark(inventory, |name| !provider.goes_back(name, "")),
        (Ok(_), Err(_)) => {}
        (Err(error), _) => problems.push(error.problem()),
    }
    if let Ok(inventory) = &mut inventory {
        Successor::new(state).hold(inventory);
    }
    let inventory = inventory.map(|inventory| Unfinished::new(state).excused(inventory));
    let machine = Machine { outdated: provider.outdated_services().await, ..Machine::look(device, highest, problems)? };
    let updates = inventory.as_ref().ok().filter(|_| all).map(|inventory| inventory.updates.clone());
    let (mut report, _) = scan::assemble(machine, inventory, reports.report())?;
    if let Some(mut updates) = updates {
        scan::worst_first(&mut updates);
        (report.updates, report.truncated) = (updates, false);
    }
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

fn print_status(config: &Path, state: &Path) -> anyhow::Result<()> {
    let limits = limits::beside(config);
    let config = Config::load(config)?;
    let identity = Identity::load(state)?;
    println!("device       {}", config.device);
    println!("key          {}", identity.key.public().fingerprint());
    println!("root         {}", identity.root.fingerprint());
    println!("gateway      {} ({})", config.gateway, config.server_name);
    match identity.validity() {
        Ok(validity) => println!("certificate  until {}", validity.until),
        Err(why) => println!("certificate  {why}"),
    }
    match Native::detect(config.previews()) {
        Ok(provider) => println!("packages     {}", provider.name()),
        Err(why) => println!("packages     unsupported: {why}"),
    }
    let limits_read = Limits::load(&limits);
    match &limits_read {
        Ok(limits) if limits.is_none() => println!("limits       none"),
        Ok(_) => println!("limits       {}", limits.display()),
        Err(error) => println!("limits       {error}"),
    }
    let ruling = agent::ruling(&config, &limits_read, Some(&identity), state, platform::now());
    println!("os updater   {}", show::updater(&Updater::new(state).state()?, &ruling));
    println!("agent        {}", if agent::is_running(state)? { "runs" } else { "does not run" });
    if let Some(why) = instance::duplicate(state)? {
        println!("identity     {why}");
    }
    match Contact::new(state).last() {
        Some(last) => println!("contact      {last}"),
        None => println!("contact      none yet"),
    }
    match Reports::load(state)?.report() {
        Some(report) => {
            println!(
                "report       {}: {} updates, {} of them security; restart needed: {:?}",
                report.counter, report.counts.updates, report.counts.security, report.restart.required
            );
            println!("services     {}", show::services(report.outdated_services.as_ref()));
        }
        None => println!("report       none yet"),
    }
    let history = match Journal::read(&state.join(agent::JOURNAL)) {
        Ok(history) => history,
        Err(error @ JournalError::Corrupt { .. }) => {
            println!("journal      {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match &history.active {
        Some(active) => {
            let order = &active.accepted.order;
            let step = match (&active.restarting, &active.started) {
                (Some(restarting), _) => format!("restart {} of the machine, at {}", restarting.number, restarting.at),
                (None, Some(_)) => "the package manager was started".to_owned(),
                (None, None) => "accepted".to_owned(),
            };
            println!("order        {} of policy {}: {step}", order.sequence, order.policy);
        }
        None => println!("order        none"),
    }
    println!("unconfirmed  {} results", history.unrecorded().count());
    Ok(())
}

fn print_history(state: &Path, json: bool) -> anyhow::Result<()> {
    let outcomes = Journal::read(&state.join(agent::JOURNAL))?.outcomes;
    let results: Option<Vec<InstallResult>> = outcomes.iter().map(|outcome| outcome.finished.result.peek()).collect();
    let results = results.context("a result in the journal is unreadable")?;
    if json {
        for result in &results {
            println!("{}", serde_json::to_string(result)?);
        }
    } else {
        print!("{}", show::history(&results));
    }
    Ok(())
}

fn print_changes(state: &Path, json: bool) -> anyhow::Result<()> {
    let changes = Changes::new(state, false);
    let all = changes.read().with_context(|| changes.path().display().to_string())?;
    if json {
        for changed in &all {
            println!("{}", serde_json::to_string(changed)?);
        }
    } else {
        print!("{}", show::changes(&all));
    }
    Ok(())
}

async fn leave(state: &Path, keep_identity: bool) -> anyhow::Result<()> {
    if !state.exists() {
        println!("This machine has not joined.");
        return Ok(());
    }
    let _lock = agent::lock(state)?;
    if !keep_identity
        && let Ok(history) = Journal::read(&state.join(agent::JOURNAL))
        && let Some(active) = history.active
    {
        let sequence = active.accepted.order.sequence;
        anyhow::bail!("order {sequence} is at work: start the agent again and wait until it has ended");
    }
    let updater = Updater::new(state);
    if updater.is_touched()? {
        for remark in updater.give_back().await? {
            eprintln!("patchwarden-agent: {remark}");
        }
        println!("The operating system has its own updater back.");
    }
    if !keep_identity {
        identity::forget(state)?;
        println!("This machine has left. Its DeviceInventory stays until an administrator retires or deletes it.");
    }
    Ok(())
}

fn reset_journal(state: &Path) -> anyhow::Result<()> {
    let _lock = agent::lock(state)?;
    let path = state.join(agent::JOURNAL);
    let name = || path.display().to_string();
    match Journal::read(&path) {
        Err(JournalError::Corrupt { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => anyhow::bail!("{}: can be read, so there is nothing to reset", path.display()),
    }
    // The last report remembers the sequence too; an order once accepted must stay used up.
    let reported = Reports::load(state)?.report().and_then(|report| report.last_sequence);
    let highest = journal::salvage_highest(&std::fs::read(&path).with_context(name)?).max(reported);
    let aside = journal::reset(&path, highest, platform::now()).with_context(name)?;
    println!("The old journal is kept as {}.", aside.display());
    match highest {
        Some(highest) => println!("Orders up to {highest} stay used up."),
        None => println!("No order could be found in it: an administrator has to raise the epoch."),
    }
    Ok(())
}
