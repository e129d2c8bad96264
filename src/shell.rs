//! What every program of this package does at its start.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The clock.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Logs go to standard error; in colours where that is a terminal whose user wants them (no-color.org).
pub fn log_to_stderr(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log: `{filter}` is not a filter"))?;
    let is_coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_coloured).init();
    Ok(())
}

/// A token that SIGTERM or SIGINT cancels.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

/// A client for the cluster of [`kube_config`].
pub async fn kube_client(program: &str) -> anyhow::Result<kube::Client> {
    Ok(kube::Client::try_from(kube_config(program).await?)?)
}

/// How to reach the cluster of KUBECONFIG, or the one that the program runs in.
pub async fn kube_config(program: &str) -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::infer().await.context("no cluster: set KUBECONFIG, or run in one")?;
    let agent = format!("{program}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, agent.parse()?));
    Ok(config)
}

/// The host's name and a random suffix: unique among replicas and restarts.
pub fn replica_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".to_owned());
    format!("{}-{:08x}", host.trim(), rand::random::<u32>())
}
