//! `kubectl patchwarden`: one file a command.

pub mod access;
pub mod completion;
pub mod decide;
pub mod doctor;
pub mod enroll;
pub mod epoch;
pub mod events;
pub mod explain;
pub mod hardware;
pub mod init;
pub mod inventory;
#[cfg(test)]
mod krew_tests;
pub mod live;
pub mod preview;
pub mod reference;
pub mod rotate;
pub mod screen;
mod stalled;
pub mod status;
mod surroundings;
pub mod table;
#[cfg(test)]
mod testing;
mod unseen;

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
    #[command(flatten)]
    Local(Local),
    #[command(flatten)]
    Remote(Box<Remote>),
}

/// What needs no cluster.
#[derive(Debug, Subcommand)]
enum Local {
    /// Write the first set-up of a client: a short interview, and a directory of YAML for Git.
    Init(init::Arguments),
    /// What a shell completes.
    Completion(completion::Arguments),
    /// Write the manual pages.
    Man(reference::Arguments),
    /// What kubectl asks.
    #[command(name = "__complete", hide = true)]
    Complete(completion::Asked),
}

#[derive(Debug, Subcommand)]
enum Remote {
    /// How a client's devices stand, and what a person must do.
    Status(status::Arguments),
    /// Whether everything is there that Patchwarden and these commands need, and what to do where it is not.
    Doctor(doctor::Arguments),
    /// What happened to a client's devices, policies, groups and windows.
    Events(events::Arguments),
    /// Make a join token, and print the command that a machine joins with.
    Enroll(enroll::Arguments),
    /// What decided for each update of a device, what blocks it now, and when it is next eligible.
    Explain(explain::Arguments),
    /// What objects that are not applied yet would change, for each device and update.
    Preview(preview::Arguments),
    /// Approve updates, for a device or for a group.
    Approve(decide::Approve),
    /// Decide against updates, for good.
    Decline(decide::Decline),
    /// Decide against updates until a time, with a reason: an exception that ends.
    Waive(decide::Waive),
    /// Leave updates as they are: they wait for approval, whatever the rules say.
    Leave(decide::Leave),
    /// Try updates once more where they have failed, or say that somebody has seen to a check that failed.
    Reprocess(decide::Reprocess),
    /// Take updates back where Patchwarden has installed them.
    Uninstall(decide::Uninstall),
    /// The devices that there are.
    Devices(inventory::Devices),
    /// A device: what it is, what it lacks, what is installed on it, what it is made of.
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

/// An error and its causes, in one line; of what the API server refuses its own words alone.
pub fn words(error: &anyhow::Error) -> String {
    let mut words: Vec<String> = vec![];
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref() {
            words.push(status.message.clone());
            break;
        }
        words.push(cause.to_string());
    }
    words.join(": ")
}

/// Runs the command; its exit code. An error is for the caller to tell.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let command = match cli.command {
        Command::Local(command) => return local(command).map(|()| ExitCode::SUCCESS),
        Command::Remote(command) => *command,
    };
    let client = shell::kube_client("kubectl-patchwarden").await?;
    let done = match command {
        Remote::Preview(arguments) => return Box::pin(preview::run(&client, arguments)).await,
        Remote::Doctor(arguments) => return Box::pin(doctor::run(&client, arguments)).await,
        Remote::Rotate(arguments) => rotate::run(&client, arguments).await,
        Remote::RaiseEpoch(arguments) => epoch::run(&client, arguments).await,
        Remote::Enroll(arguments) => enroll::run(&client, arguments).await,
        Remote::Explain(arguments) => explain::run(&client, arguments).await,
        Remote::Status(arguments) => Box::pin(status::run(&client, arguments)).await,
        Remote::Events(arguments) => Box::pin(events::run(&client, arguments)).await,
        Remote::Approve(arguments) => Box::pin(decide::approve(&client, arguments)).await,
        Remote::Decline(arguments) => Box::pin(decide::decline(&client, arguments)).await,
        Remote::Waive(arguments) => Box::pin(decide::waive(&client, arguments)).await,
        Remote::Leave(arguments) => Box::pin(decide::leave(&client, arguments)).await,
        Remote::Reprocess(arguments) => Box::pin(decide::reprocess(&client, arguments)).await,
        Remote::Uninstall(arguments) => Box::pin(decide::uninstall(&client, arguments)).await,
        Remote::Devices(arguments) => Box::pin(inventory::devices(&client, arguments)).await,
        Remote::Device(arguments) => Box::pin(inventory::device(&client, arguments)).await,
        Remote::Updates(arguments) => Box::pin(inventory::updates(&client, arguments)).await,
        Remote::Search(arguments) => Box::pin(inventory::search(&client, arguments)).await,
        Remote::History(arguments) => Box::pin(inventory::history(&client, arguments)).await,
        Remote::Vulns(arguments) => Box::pin(inventory::vulns(&client, arguments)).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn local(command: Local) -> anyhow::Result<()> {
    match command {
        Local::Init(arguments) => init::run(arguments),
        Local::Completion(arguments) => completion::run(&arguments),
        Local::Man(arguments) => reference::man(&arguments),
        Local::Complete(asked) => completion::complete(&asked),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use kube::core::Status;

    use super::words;

    #[test]
    fn an_error_is_told_in_the_words_of_whoever_refused() {
        let status = Status::failure("spec.update: must not be empty", "Invalid");
        let refused: anyhow::Result<()> = Err(kube::Error::Api(status.boxed())).context("the API server refuses X");
        assert_eq!(words(&refused.unwrap_err()), "the API server refuses X: spec.update: must not be empty");
        let read: anyhow::Result<()> = Err(anyhow::anyhow!("no such file")).context("servers.yaml");
        assert_eq!(words(&read.unwrap_err()), "servers.yaml: no such file");
    }
}
