//! `watch-successor`: run by the earlier program, beside the agent.
//!
//! Nothing of the next version is relied on: neither its program nor its unit. What was interrupted here (the machine lost its
//! power, say) begins anew at the next start: the database of packages says what is left to be done.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use patchwarden_protocol::order::{Dependencies, PackageChange};
use tokio::time::Instant;

use super::super::rollback::reversed;
use super::super::{OUTPUT_LIMIT, detached, judge};
use crate::platform;
use crate::provider::{self, CommandLine, Direction, Installed, Provider, bounded};
use crate::successor::{Plan, Returned, Successor};

/// Between looks at the database of packages.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Looks at the running package manager.
const WATCH: Duration = Duration::from_millis(250);

/// How often going back is tried.
const MAX_TRIES: u32 = 3;

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
}

/// Waits until the next version has a session or its time is over, and goes back then.
pub(crate) async fn watch<P: Provider>(provider: &P, state: &Path) -> anyhow::Result<()> {
    let successor = Successor::new(state);
    let Some(plan) = successor.plan().with_context(|| successor.place().display().to_string())? else {
        println!("No new version of the agent is awaited.");
        return Ok(());
    };
    let limit = Duration::from_secs(plan.limit_seconds.into());
    let mut owes_since = None;
    let why = loop {
        let rows = provider.installed(std::slice::from_ref(&plan.package)).await?;
        match look(&plan, &successor, provider::row(&rows, &plan.package))? {
            Found::Over(why) => break why,
            Found::NotYet => owes_since = None,
            Found::Owes => {
                let since = *owes_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limit && !provider.is_busy()? {
                    return go_back(provider, &successor, &plan).await;
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN.min(limit)).await;
    };
    tracing::info!("{why}");
    successor.clear().with_context(|| successor.place().display().to_string())
}

fn look(plan: &Plan, successor: &Successor, row: Option<&Installed>) -> anyhow::Result<Found> {
    if successor.has_checked_in() {
        return Ok(Found::Over("the agent's next version has a session"));
    }
    let Some(row) = row else { return Ok(Found::Over("the agent was removed")) };
    if row.version == plan.package.installed {
        let is_over = platform::now() > plan.until;
        return Ok(if is_over { Found::Over("the agent's next version was not installed") } else { Found::NotYet });
    }
    if row.version != plan.package.candidate {
        return Ok(Found::Over("somebody has installed another version of the agent"));
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

async fn go_back<P: Provider>(provider: &P, successor: &Successor, plan: &Plan) -> anyhow::Result<()> {
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
    let mut said = String::new();
    for number in 1..=MAX_TRIES {
        match bring_back(provider, successor, &reversed(package), number).await {
            Ok(None) => {
                tracing::info!("the agent is at {} again", package.installed);
                return successor.clear().with_context(|| successor.place().display().to_string());
            }
            Ok(Some(output)) => said = output,
            Err(error) => said = format!("{error:#}"),
        }
        tracing::error!("going back failed: {said}");
    }
    note(format!("{why}, and could not be taken back: {}", bounded(&said, MAX_SAID)))?;
    successor.clear().with_context(|| successor.place().display().to_string())?;
    anyhow::bail!("the agent is still at {}: install {} by hand", package.candidate, package.installed)
}

/// What the package manager said, where the earlier version is not there afterwards.
async fn bring_back<P: Provider>(
    provider: &P,
    successor: &Successor,
    back: &PackageChange,
    number: u32,
) -> anyhow::Result<Option<String>> {
    let packages = std::slice::from_ref(back);
    let archives = successor.archives();
    while provider.is_busy()? {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut said = String::new();
    let repairs = provider.repair_commands(Direction::Back, packages, &archives).await?;
    for (step, command) in repairs.iter().enumerate() {
        said = run(successor, command, &format!("{number}-{step}")).await?;
    }
    let rows = provider.installed(packages).await?;
    if !judge::is_done(&rows, back) {
        let simulation = provider.simulate(Direction::Back, packages).await?;
        judge::judge(&simulation, packages, packages, Dependencies::Strict, &rows)?;
        provider.rehearse(Direction::Back, packages, &archives).await?;
        let artifacts = provider.artifacts(Direction::Back, packages).await?;
        let command = provider.install_command(Direction::Back, packages, &artifacts, &archives);
        said = run(successor, &command, &number.to_string()).await?;
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
