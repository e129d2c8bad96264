//! The controller: computes the desired patch state and creates the Jobs that bring it about.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use kube::Client;
use kube::client::ClientBuilder;
use patchwarden::controller::leader::Leads;
use patchwarden::controller::metrics::Metrics;
use patchwarden::controller::{self, Clients, Settings, health};
use patchwarden::shell::LogFormat;
use patchwarden::telemetry::settings::FOR_RUNNERS;
use patchwarden::telemetry::{FLUSH_TIME, Traces};
use patchwarden::{check, shell};
use url::Url;

/// That of musl makes a plan half as slow again (benches/RESULTS.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As the API server knows it.
const NAME: &str = "patchwarden-controller";

/// Computes the desired patch state of every device and creates the Jobs that bring it about.
///
/// Several replicas may run; one leads. The cluster is the one of KUBECONFIG, or the one that it runs in.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Patchwarden's own namespace: keys, trust and the lease are there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "patchwarden-system")]
    namespace: String,
    /// This replica's name in the lease. Default: the host's name and a random suffix.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// User name of the gateways, the only one that may ask for agents' certificates.
    /// Default: the service account patchwarden-gateway of the namespace.
    #[arg(long, env = "PATCHWARDEN_GATEWAY_USER")]
    gateway_user: Option<String>,
    /// Image of the runner, the pod of an install Job.
    #[arg(long, env = "PATCHWARDEN_RUNNER_IMAGE", required = true)]
    runner_image: Option<String>,
    /// When the runner's image is pulled.
    #[arg(long, env = "PATCHWARDEN_RUNNER_IMAGE_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    runner_image_pull_policy: String,
    /// URL at which install Jobs reach a gateway: https://HOST:PORT.
    #[arg(
        long,
        env = "PATCHWARDEN_GATEWAY_URL",
        default_value = "https://patchwarden-gateway.patchwarden-system.svc:8444"
    )]
    gateway_url: String,
    /// URL at which this controller reaches a gateway, which keeps the record of each client's history: https://HOST:PORT.
    /// Default: the one of the install Jobs.
    #[arg(long, env = "PATCHWARDEN_RECORD_URL")]
    record_url: Option<String>,
    /// File of this controller's projected service-account token (audience patchwarden-gateway).
    #[arg(long, env = "PATCHWARDEN_TOKEN_FILE", default_value = "/var/run/patchwarden/token")]
    token_file: PathBuf,
    /// Directory of vulnerability data (OSV, CSAF, KEV, EPSS), which is read again when a file changes: KEV and EPSS for rules with
    /// `knownExploited` and `epssAtLeast`, OSV of Debian and Ubuntu for what apt's updates fix.
    #[arg(long, env = "PATCHWARDEN_VULNERABILITIES", value_name = "DIRECTORY")]
    vulnerabilities: Option<PathBuf>,
    /// Keep the CA of the gateways' certificates in the APIService v1alpha1.store.patchwarden.io, for gateways with --aggregation-address.
    #[arg(long, env = "PATCHWARDEN_AGGREGATION")]
    aggregation: bool,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "PATCHWARDEN_HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    health_address: SocketAddr,
    /// What is logged, as tracing's EnvFilter reads it.
    #[arg(long, env = "PATCHWARDEN_LOG", default_value = "info")]
    log: String,
    /// How it is written. The pods of install Jobs write as this does.
    #[arg(long, env = LogFormat::VARIABLE, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Says whether an installation works, as `helm test` asks it from inside of the cluster: that the API server serves the kinds, and that
    /// programs are ready. Ends with 1 where anything is not so.
    Check {
        /// What answers 200 when a program is ready: http://HOST:PORT/readyz.
        #[arg(long, value_name = "URL")]
        ready: Vec<Url>,
        /// For how many seconds what is not so yet is asked again.
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        patience: u64,
    },
}

impl Command {
    async fn run(self) -> anyhow::Result<()> {
        let Self::Check { ready, patience } = self;
        let client = shell::kube_client("patchwarden-check").await?;
        let checked = check::check(&client, &ready, Duration::from_secs(patience)).await;
        for check::Checked { what, outcome } in &checked {
            match outcome {
                Ok(()) => println!("ok      {what}"),
                Err(why) => println!("FAILED  {what}: {why}"),
            }
        }
        let failed = checked.iter().filter(|checked| checked.outcome.is_err()).count();
        anyhow::ensure!(failed == 0, "{failed} of {} checks failed", checked.len());
        Ok(())
    }
}

/// What the pods of install Jobs are told of traces and logs, as this program was.
fn runner_environment(format: LogFormat) -> Vec<(String, String)> {
    let set = FOR_RUNNERS.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let format = (format != LogFormat::default()).then(|| (LogFormat::VARIABLE.to_owned(), format.as_str().to_owned()));
    set.chain(format).collect()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(command) = arguments.command {
        return command.run().await;
    }
    shell::log_to_stderr(&arguments.log, arguments.log_format)?;
    let stop = shell::stop_on_signal()?;
    let (config, leads) = (shell::kube_config(NAME).await?, Leads::default());
    let lease = Client::try_from(config.clone())?;
    let work = ClientBuilder::try_from(config)?.with_layer(&leads.layer()).build();
    let metrics = Arc::new(Metrics::new()?);
    let identity = arguments.identity.unwrap_or_else(shell::replica_name);
    let traces = Traces::start_or_none(NAME, &identity, metrics.trace_spans.clone());
    let settings = Settings {
        identity,
        gateway_user: arguments
            .gateway_user
            .unwrap_or_else(|| format!("system:serviceaccount:{}:patchwarden-gateway", arguments.namespace)),
        namespace: arguments.namespace,
        // Only `check` goes without it.
        runner_image: arguments.runner_image.context("--runner-image is missing")?,
        runner_image_pull_policy: arguments.runner_image_pull_policy,
        record_url: arguments.record_url.unwrap_or_else(|| arguments.gateway_url.clone()),
        token_file: arguments.token_file,
        vulnerabilities: arguments.vulnerabilities,
        aggregation: arguments.aggregation,
        gateway_url: arguments.gateway_url,
        runner_environment: runner_environment(arguments.log_format),
        traces: traces.clone(),
    };
    let (api_reached, ready) = health::flag("the API server was not reached yet");
    let health = health::serve(arguments.health_address, metrics.registry.clone(), ready, stop.clone());
    let health = tokio::spawn(health);
    lease.apiserver_version().await.context("cannot reach the API server")?;
    api_reached.store(true, Ordering::Relaxed);
    let worked = Box::pin(controller::run(Clients { lease, work, leads }, settings, metrics, stop.clone())).await;
    stop.cancel();
    tokio::task::spawn_blocking(move || traces.end(FLUSH_TIME)).await?;
    health.await?.with_context(|| format!("--health-address {}", arguments.health_address))?;
    Ok(worked?)
}
