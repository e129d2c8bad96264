//! `kubectl patchwarden`: one file a command.

pub mod enroll;
pub mod explain;
pub mod live;
pub mod preview;
mod surroundings;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::shell;

/// Patch management for fleets of machines. Uses the cluster and the rights of your kubeconfig.
#[derive(Debug, Parser)]
#[command(name = "kubectl patchwarden", bin_name = "kubectl patchwarden", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a join token, and print the command that a machine joins with.
    Enroll(enroll::Arguments),
    /// What decided for each update of a device, what blocks it now, and when it is next eligible.
    Explain(explain::Arguments),
    /// What objects that are not applied yet would change, for each device and update.
    Preview(preview::Arguments),
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people and for the shell.
    Text,
    /// For programs.
    Json,
}

/// Runs the command; its exit code. An error is for the caller to tell.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let client = shell::kube_client("kubectl-patchwarden").await?;
    match cli.command {
        Command::Enroll(arguments) => enroll::run(&client, arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Explain(arguments) => explain::run(&client, arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Preview(arguments) => Box::pin(preview::run(&client, arguments)).await,
    }
}
