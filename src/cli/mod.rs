//! `kubectl patchwarden`: one file a command.

pub mod enroll;

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
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people and for the shell.
    Text,
    /// For programs.
    Json,
}

/// Runs the command.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { command } = cli;
    match command {
        Command::Enroll(arguments) => enroll::run(&shell::kube_client("kubectl-patchwarden").await?, arguments).await,
    }
}
