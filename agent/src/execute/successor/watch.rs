//! `watch-successor`: run by the earlier program, beside the agent.
//!
//! Nothing of the next version is relied on: neither its program nor its unit. What was interrupted here (the machine lost its
//! power, say) begins anew at the next start: the database of packages says what is left to be done.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use patchwarden_protocol::order::{Dependencies, PackageChange};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::rollback::reversed;
use super::super::{OUTPUT_LIMIT, detached, judge};
use crate::platform;
use crate::provider::{self, CommandLine, Direction, Installed, Native, Previews, Provider, bounded};
use crate::successor::{Decision, Plan, Returned, Successor};

/// Between looks at the database of packages.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Looks at the running package manager.
const WATCH: Duration = Duration::from_millis(250);

/// After going back has failed for the first time; twice as long after each.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Between further tries, which do not end: without it the machine is lost.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// Whoever does not answer in this time is not reachable.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Longest message of what the package manager said.
const MAX_SAID: usize = 600;

/// What is true of the next version.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It is not installed yet, or the earlier agent still runs.
    NotYet,
    /// There is nothing to watch over (any more): why.
    Over(&'static str),
    /// It is installed and should have a session.
    Owes,
    /// Its time is over.
    GoesBack,
    /// It cannot be told now.
    Unknown,
}

/// Waits until the next version has a session or its time is over, and goes back then.
pub(crate) async fn watch(state: &Path) -> anyhow::Result<()> {
    let successor = Successor::new(state);
    let place = || successor.place().display().to_string();
    let Some(plan) = successor.plan().with_context(place)? else {
        println!("No new version of the agent is awaited.");
        return Ok(());
    };
    let provider = Native::detect(Previews { zypper: plan.preview_zypper, ..Previews::default() })?;
    let why = wait(&provider, &successor, &plan).await?;
    tracing::info!("{why}");
    successor.clear().with_context(place)
}

/// Until nothing is left to be done: why.
async fn wait<P: Provider>(provider: &P, successor: &Successor, plan: &Plan) -> anyhow::Result<&'static str> {
    let limit = Duration::from_secs(plan.limit_seconds.into());
    let mut owes_since = None;
    let mut tries = 0;
    loop {
        let found = match provider.installed(std::slice::from_ref(&plan.package)).await {
            Ok(rows) => look(plan, successor, provider::row(&rows, &plan.package))?,
            // It is told again: the time goes on.
            Err(failure) => {
                tracing::warn!("{failure}");
                Found::Unknown
            }
        };
        let pause = match found {
            Found::Over(why) => return Ok(why),
            Found::Unknown => LOOK_AGAIN,
            Found::NotYet => {
                owes_since = None;
                LOOK_AGAIN
            }
            Found::GoesBack => {
                if let Some(why) = go_back(provider, successor, plan).await? {
                    return Ok(why);
                }
                tries += 1;
                FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(tries - 1)).min(LONGEST_PAUSE)
            }
            Found::Owes => {
                let since = *owes_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limit {
                    if is_reachable(&plan.gateway).await {
                        successor
                            .decide(Decision::GoingBack)
                            .with_context(|| successor.place().display().to_string())?;
                        continue;
                    }
                    tracing::warn!(
                        "{} cannot be reached from here: the agent's next version has its time again",
                        plan.gateway
                    );
                    owes_since = None;
                }
                LOOK_AGAIN.min(limit)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn look(plan: &Plan, successor: &Successor, row: Option<&Installed>) -> anyhow::Result<Found> {
    let decided = successor.decided().with_context(|| successor.place().display().to_string())?;
    let Some(row) = row else { return Ok(Found::Over("the agent was removed")) };
    let (is_earlier, is_next) = (row.version == plan.package.installed, row.version == plan.package.candidate);
    if !is_earlier && !is_next {
        return Ok(Found::Over("somebody has installed another version of the agent"));
    }
    match decided {
        Some(Decision::CheckedIn) => return Ok(Found::Over("the agent's next version has a session")),
        Some(Decision::GoingBack) => return Ok(Found::GoesBack),
        None => {}
    }
    if is_earlier {
        let is_over = platform::now() > plan.until;
        return Ok(if is_over { Found::Over("the agent's next version was not installed") } else { Found::NotYet });
    }
    if platform::is_alive(&plan.predecessor)? {
        return Ok(Found::NotYet);
    }
    // One that is not there can have no session either.
    Ok(match successor.is_next(&plan.program) {
        Ok(false) => Found::Over("the agent's next version has the same program"),
        Ok(true) | Err(_) => Found::Owes,
    })
}

/// Whether anybody answers there.
async fn is_reachable(gateway: &str) -> bool {
    matches!(tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(gateway)).await, Ok(Ok(_)))
}

/// Nothing where it is to be tried again.
async fn go_back<P: Provider>(
    provider: &P,
    successor: &Successor,
    plan: &Plan,
) -> anyhow::Result<Option<&'static str>> {
    let Plan { order_digest, package, limit_seconds, .. } = plan;
    let why = format!("the agent's version {} had no session within {limit_seconds} s", package.candidate);
    let note = |message: String| {
        let (order_digest, package) = (order_digest.clone(), package.clone());
        successor
            .note(&Returned { order_digest, package, at: platform::now(), message })
            .with_context(|| successor.place().display().to_string())
    };
    tracing::error!("{why}: going back to {}", package.installed);
    // Before the package manager starts the earlier agent, which tells of it.
    note(format!("{why} and was taken back to {}", package.installed))?;
    let said = match bring_back(provider, successor, &reversed(package)).await {
        Ok(None) => return Ok(Some("the earlier version of the agent is there again")),
        Ok(Some(output)) => output,
        Err(error) => format!("{error:#}"),
    };
    tracing::error!("it is tried again: {said}");
    note(format!("{why}, and could not be taken back yet: {}", bounded(&said, MAX_SAID)))?;
    Ok(None)
}

/// What the package manager said, where the earlier version is not there afterwards.
async fn bring_back<P: Provider>(
    provider: &P,
    successor: &Successor,
    back: &PackageChange,
) -> anyhow::Result<Option<String>> {
    let packages = std::slice::from_ref(back);
    let archives = successor.archives();
    while provider.is_busy()? {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut said = String::new();
    let repairs = provider.repair_commands(Direction::Back, packages, &[], &archives).await?;
    for (step, command) in repairs.iter().enumerate() {
        said = run(successor, command, &format!("repair-{step}")).await?;
    }
    let rows = provider.installed(packages).await?;
    if !judge::is_done(&rows, back) {
        let simulation = provider.simulate(Direction::Back, packages).await?;
        judge::judge(&simulation, packages, packages, Dependencies::Strict, &rows)?;
        provider.rehearse(Direction::Back, packages, &archives).await?;
        let artifacts = provider.artifacts(Direction::Back, packages).await?;
        let command = provider.install_command(Direction::Back, packages, &artifacts, &archives);
        said = run(successor, &command, "install").await?;
    }
    let is_back = judge::is_done(&provider.installed(packages).await?, back);
    Ok((!is_back).then_some(said))
}

/// Lets the package manager go, apart from this process, and waits for it; what it printed.
async fn run(successor: &Successor, command: &CommandLine, name: &str) -> Result<String, Failed> {
    let directory = successor.place().join(format!("attempt-{name}"));
    let waiting = detached::prepare(command, &directory, &format!("patchwarden-return-{name}"))?;
    let process = waiting.process.clone();
    waiting.go().await?;
    loop {
        let is_alive = platform::is_alive(&process)?;
        if detached::exit_code(&directory)?.is_some() || !is_alive {
            return Ok(detached::output_tail(&directory, OUTPUT_LIMIT));
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Why the package manager could not be run.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Detached(#[from] detached::DetachedError),
    #[error(transparent)]
    Platform(#[from] platform::PlatformError),
}
