//! `kubectl patchwarden`: one file a command.

pub mod access;
pub mod enroll;
pub mod epoch;
pub mod explain;
pub mod inventory;
pub mod live;
pub mod preview;
pub mod rotate;
mod surroundings;
pub mod table;

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
    /// The devices that there are.
    Devices(inventory::Devices),
    /// A device: what it is, what it lacks, what is installed on it.
    Device(inventory::Device),
    /// Updates that devices lack, and where.
    Updates(inventory::Updates),
    /// Where a package is installed, in which versions.
    Search(inventory::Search),
    /// What has changed on a device, and who did it; or its installs.
    History(inventory::History),
    /// Vulnerabilities of a device, or the devices that have one.
    Vulns(inventory::Vulns),
    /// Put new keys in the place of the root key, the order key, or the CA.
    Rotate(rotate::Arguments),
    /// After etcd or the gateway's store was restored: no order from before counts any more, and each device tells anew what it has
    /// done before it gets one.
    RaiseEpoch(epoch::Arguments),
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
    let done = match cli.command {
        Command::Preview(arguments) => return Box::pin(preview::run(&client, arguments)).await,
        Command::Rotate(arguments) => rotate::run(&client, arguments).await,
        Command::RaiseEpoch(arguments) => epoch::run(&client, arguments).await,
        Command::Enroll(arguments) => enroll::run(&client, arguments).await,
        Command::Explain(arguments) => explain::run(&client, arguments).await,
        Command::Devices(arguments) => Box::pin(inventory::devices(&client, arguments)).await,
        Command::Device(arguments) => Box::pin(inventory::device(&client, arguments)).await,
        Command::Updates(arguments) => Box::pin(inventory::updates(&client, arguments)).await,
        Command::Search(arguments) => Box::pin(inventory::search(&client, arguments)).await,
        Command::History(arguments) => Box::pin(inventory::history(&client, arguments)).await,
        Command::Vulns(arguments) => Box::pin(inventory::vulns(&client, arguments)).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}
