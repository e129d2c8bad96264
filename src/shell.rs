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

/// How a program writes what it logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, the fields of the event beside `timestamp`, `level`, `target` and `message`, and in `span` the id of the
    /// request in which it was written.
    Json,
}

impl LogFormat {
    /// Variable of the environment that says which.
    pub const VARIABLE: &str = "PATCHWARDEN_LOG_FORMAT";

    /// As the command line and the environment have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Logs go to standard error; as text in colours where that is a terminal whose user wants them (no-color.org).
pub fn log_to_stderr(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log: `{filter}` is not a filter"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(true).with_span_list(false).init(),
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            let is_coloured = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            subscriber.with_ansi(is_coloured).init();
        }
    }
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

/// The host's name, which is a pod's as well.
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".to_owned());
    host.trim().to_owned()
}

/// The host's name and a random suffix: unique among replicas and restarts.
pub fn replica_name() -> String {
    format!("{}-{:08x}", host_name(), rand::random::<u32>())
}
