//! What a simulated agent has in common with a real one: its way to the gateway, and how long it waits before it tries again.

use std::time::Duration;

use patchwarden_protocol::agent_v1::agents_client::AgentsClient;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use tonic::transport::Channel;

use crate::identity::Identity;
use crate::{session, tls};

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
