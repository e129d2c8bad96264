//! Agents of machines that do not exist, for load and for tests of what is around agents.
//!
//! - [`Joined`]: what a simulated agent has in common with a real one is its way to the gateway, and how long it waits before it tries again.
//!   What it says is its owner's business.
//! - [`join`] and [`run`]: everything is the agent's own code, its key, journal and processes among it; what is simulated is the package
//!   manager alone (see [`machine`]). Many of them run in one process.

mod machine;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use tonic::transport::Channel;

use self::machine::Machine;
use crate::agent::{self, Agent};
use crate::config::Config;
use crate::identity::Identity;
use crate::{Cli, Command, limits, session, tls, work};

pub use self::machine::{AFTER, BEFORE, LOG, PACKAGE};

/// A device that has joined, as far as a connection needs one.
#[derive(Debug)]
pub struct Joined {
    identity: Identity,
    gateway: String,
    server_name: String,
}

impl Joined {
    /// The device of `key`, with its certificate and the gateways' CA (PEM) and the root, at a gateway (`host:port`) whose certificate is for
    /// `server_name`.
    pub fn new(
        key: PrivateKey,
        chain_pem: String,
        ca_pem: String,
        root: PublicKey,
        gateway: String,
        server_name: String,
    ) -> Self {
        Self { identity: Identity { key, chain_pem, ca_pem, root, since: None }, gateway, server_name }
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.identity.key
    }

    /// A new connection, as the agent makes one for each session. The error's words are the same for all devices.
    pub async fn connect(&self) -> anyhow::Result<AgentsClient<Channel>> {
        let config = tls::mutual(&self.identity)?;
        session::client(&self.gateway, &self.server_name, config).await.map_err(|error| match error {
            tls::TlsError::Connect { gateway: _, source } => anyhow::Error::from(source),
            other => other.into(),
        })
    }
}

/// How long an agent waits after so many sessions in a row that failed.
pub fn pause(failures: u32) -> Duration {
    session::next_pause(failures)
}

/// Joins a machine whose files are all below `place`, by a join command as an administrator pastes it.
pub async fn join(command: &str, name: &str, place: &Path) -> anyhow::Result<()> {
    let words = command.split_ascii_whitespace().chain(["--name", name]);
    match Cli::try_parse_from(words)?.command {
        Command::Join(arguments) => crate::join::join(*arguments, &config_of(place), &state_of(place)).await,
        other => bail!("{other:?} is no join command"),
    }
}

/// Runs the agent of a machine that has joined, for ever. All that it starts is of this thread (`tokio::task::LocalSet`).
pub async fn run(place: &Path) -> anyhow::Result<()> {
    let (config_path, state) = (config_of(place), state_of(place));
    let mut config = Config::load(&config_path)?;
    // There are no mirrors.
    config.refresh_spread_seconds = Some(0);
    let _lock = agent::lock(&state)?;
    let identity = Identity::load(&state)?;
    let machine = Machine::open(&place.join("machine")).with_context(|| place.display().to_string())?;
    let agent = Agent::open(config, identity, &state, limits::beside(&config_path), Ok(machine))?;
    // Large: whoever runs many of them need not have room for all.
    Box::pin(work(Rc::new(agent))).await;
    Ok(())
}

fn config_of(place: &Path) -> PathBuf {
    place.join("agent.toml")
}

fn state_of(place: &Path) -> PathBuf {
    place.join("state")
}
