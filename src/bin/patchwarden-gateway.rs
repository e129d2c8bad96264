//! The gateway's program: flags, client, signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use jiff::SignedDuration;
use kube::Client;
use patchwarden::gateway::{self, Config};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Patchwarden's gateway: where agents and install Jobs come in.
///
/// It verifies and keeps what devices report, shows it in DeviceInventory resources, and carries signed orders to the
/// devices. It needs the controller, which publishes the trust anchors and signs the certificates.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Patchwarden's own namespace: the trust anchors and the join tokens are there.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Where agents connect: gRPC over TLS 1.3, client certificates by Patchwarden's CA.
    #[arg(long, env = "PATCHWARDEN_AGENTS_ADDRESS", default_value = "0.0.0.0:8443")]
    agents_address: SocketAddr,
    /// Where the pods of install Jobs connect: gRPC over TLS 1.3, service-account tokens.
    #[arg(long, env = "PATCHWARDEN_RUNNERS_ADDRESS", default_value = "0.0.0.0:8444")]
    runners_address: SocketAddr,
    /// /healthz, /readyz and /metrics over plain HTTP.
    #[arg(long, env = "PATCHWARDEN_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    health_address: SocketAddr,
    /// The SQLite database; it is made if it does not exist. One gateway at a time may use it.
    #[arg(long, env = "PATCHWARDEN_DATABASE", default_value = "/var/lib/patchwarden/gateway.db")]
    database: PathBuf,
    /// DNS name or IP address in the serving certificate; for every one that agents and Jobs use.
    #[arg(long = "server-name", env = "PATCHWARDEN_SERVER_NAMES", value_delimiter = ',', required = true)]
    server_names: Vec<String>,
    /// Time between two scans of a device, such as 4h or 30m (from 1m to 7 days).
    #[arg(long, env = "PATCHWARDEN_SCAN_INTERVAL", default_value = "4h")]
    scan_interval: SignedDuration,
    /// What is logged (to standard error, as JSON): a level, or directives as tracing-subscriber's EnvFilter reads them.
    #[arg(long, env = "PATCHWARDEN_LOG", default_value = "info")]
    log: EnvFilter,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments {
        namespace,
        agents_address,
        runners_address,
        health_address,
        database,
        server_names,
        scan_interval,
        log,
    } = Arguments::parse();
    tracing_subscriber::fmt().json().with_env_filter(log).with_writer(std::io::stderr).init();
    let config =
        Config { namespace, agents_address, runners_address, health_address, database, server_names, scan_interval };
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let client = client().await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    gateway::run(config, client, stop).await?;
    Ok(())
}

/// In the cluster, or as the kubeconfig says.
async fn client() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await.context("no way to the Kubernetes API")?;
    let agent = concat!("patchwarden-gateway/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    Client::try_from(config).context("the Kubernetes client")
}
