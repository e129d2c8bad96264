//! Agents of machines that do not exist, all in this process: each joins by the same join command, keeps its session and carries out orders
//! by the agent's own code. What is simulated is their package manager alone (`agent/src/simulation/machine.rs`).
//!
//! `tests/cluster/simulated.rs` starts it, and reads in the machines' directories what each has done.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use futures::future::try_join_all;
use patchwarden::shell::{self, LogFormat};
use patchwarden_agent::simulation;
use tokio::task::LocalSet;

/// Agents of machines that do not exist.
#[derive(Debug, Parser)]
struct Arguments {
    /// Below it each machine has a directory of its name.
    #[arg(long)]
    directory: PathBuf,
    /// Their names.
    #[arg(long, value_delimiter = ',', required = true)]
    names: Vec<String>,
    /// The join command, of a token for all of them.
    #[arg(long)]
    join: String,
    /// What is logged, as tracing's EnvFilter reads it.
    #[arg(long, default_value = "info")]
    log: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { directory, names, join, log } = Arguments::parse();
    shell::log_to_stderr(&log, LogFormat::Text)?;
    let live = async |name: &String| {
        let place = directory.join(name);
        std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        simulation::join(&join, name, &place).await.with_context(|| format!("{name} cannot join"))?;
        simulation::run(&place).await.with_context(|| format!("{name} cannot run"))
    };
    LocalSet::new().run_until(try_join_all(names.iter().map(live))).await?;
    Ok(())
}
