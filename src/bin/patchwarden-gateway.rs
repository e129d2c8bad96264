//! The gateway: where agents and install Jobs come in.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use jiff::SignedDuration;
use patchwarden::gateway::api::API_AUDIENCE;
use patchwarden::gateway::vulnerabilities::fetch::{Fetched, Source, fetch};
use patchwarden::gateway::{self, Config};
use patchwarden::shell::{self, LogFormat};
use patchwarden::store::{Database, Retention};

/// That of musl makes a plan half as slow again (benches/RESULTS.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Patchwarden's gateway: where agents and install Jobs come in.
///
/// It verifies and keeps what devices report, shows it in DeviceInventory resources, and carries signed orders to the
/// devices. It needs the controller, which publishes the trust anchors and signs the certificates. The cluster is the one of
/// KUBECONFIG, or the one that it runs in.
#[derive(Debug, Parser)]
#[command(
    name = "patchwarden-gateway",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Patchwarden's own namespace: the trust anchors and the join tokens are there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "patchwarden-system")]
    namespace: String,
    /// User name of the controller, the only one that may read and write the record of each client's history.
    /// Default: the service account patchwarden-controller of the namespace.
    #[arg(long, env = "PATCHWARDEN_CONTROLLER_USER")]
    controller_user: Option<String>,
    /// Where agents connect: gRPC over TLS 1.3, client certificates by Patchwarden's CA.
    #[arg(long, env = "PATCHWARDEN_AGENTS_ADDRESS", default_value = "0.0.0.0:8443")]
    agents_address: SocketAddr,
    /// Where the pods of install Jobs and the controller connect: gRPC over TLS 1.3, service-account tokens.
    #[arg(long, env = "PATCHWARDEN_RUNNERS_ADDRESS", default_value = "0.0.0.0:8444")]
    runners_address: SocketAddr,
    /// Where people's programs and the kubectl plugin connect, for /api/v1: HTTP/1.1 over TLS 1.3, Kubernetes tokens. See docs/api.md.
    #[arg(long, env = "PATCHWARDEN_API_ADDRESS", default_value = "0.0.0.0:8445")]
    api_address: SocketAddr,
    /// Where the API server's proxy connects, for the aggregation layer (`kubectl get softwarepackages`): nowhere unless this is given, as
    /// 0.0.0.0:8446. It takes a client certificate of the request-header CA in ConfigMap kube-system/extension-apiserver-authentication
    /// and nothing else. See docs/aggregation.md, also for what an APIService that is down does to a cluster.
    #[arg(long, env = "PATCHWARDEN_AGGREGATION_ADDRESS", value_name = "ADDRESS")]
    aggregation_address: Option<SocketAddr>,
    /// Audience of the tokens that the API takes. The API server's own one would make whoever holds this gateway get tokens that count at
    /// the API server.
    #[arg(long, env = "PATCHWARDEN_API_AUDIENCE", default_value = API_AUDIENCE)]
    api_audience: String,
    /// Address of /healthz, /readyz and /metrics, plain HTTP.
    #[arg(long, env = "PATCHWARDEN_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    health_address: SocketAddr,
    /// The database: the path of a file (SQLite; it is made if it does not exist, and serves one gateway), or PostgreSQL for any number
    /// of gateways, as postgres://USER@HOST/DATABASE. Over a network its certificate is verified, by the public authorities or by
    /// those in the file of the URL's sslrootcert, unless its sslmode is another one than verify-full.
    #[arg(
        long,
        env = "PATCHWARDEN_DATABASE",
        default_value = "/var/lib/patchwarden/gateway.db",
        hide_env_values = true
    )]
    database: String,
    /// The password for PostgreSQL, such as the key of a Secret that is mounted. It is read at the start.
    #[arg(long, env = "PATCHWARDEN_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    database_password_file: Option<PathBuf>,
    /// DNS name or IP address in the serving certificate; every one that agents and Jobs use.
    #[arg(long = "server-name", env = "PATCHWARDEN_SERVER_NAMES", value_delimiter = ',', required = true)]
    server_names: Vec<String>,
    /// Days for which lines of the audit are kept.
    #[arg(long, env = "PATCHWARDEN_KEEP_AUDIT_DAYS", default_value_t = 400, value_parser = clap::value_parser!(u16).range(30..))]
    keep_audit_days: u16,
    /// Days for which orders, their results and changes of packages are kept.
    #[arg(long, env = "PATCHWARDEN_KEEP_HISTORY_DAYS", default_value_t = 1100, value_parser = clap::value_parser!(u16).range(30..))]
    keep_history_days: u16,
    /// Days for which is kept what there is of devices that were deleted, of join tokens that are over, and of updates that nobody offers
    /// any more.
    #[arg(long, env = "PATCHWARDEN_KEEP_GONE_DAYS", default_value_t = 400, value_parser = clap::value_parser!(u16).range(90..))]
    keep_gone_days: u16,
    /// Time between two scans of a device, such as 4h or 30m (from 1m to 7 days).
    #[arg(long, env = "PATCHWARDEN_SCAN_INTERVAL", default_value = "4h")]
    scan_interval: SignedDuration,
    /// Recipes for third-party applications, signed by a publisher (`patchwarden-agent recipes sign`), for devices that believe that
    /// publisher. The file is read again when it changes.
    #[arg(long, env = "PATCHWARDEN_RECIPES", value_name = "FILE")]
    recipes: Option<PathBuf>,
    /// Directory of vulnerability data: OSV, CSAF, KEV and EPSS files. They are imported again, all or none, when any changes.
    #[arg(long, env = "PATCHWARDEN_VULNERABILITIES", value_name = "DIRECTORY")]
    vulnerabilities: Option<PathBuf>,
    /// What is logged, as tracing's EnvFilter reads it.
    #[arg(long, env = "PATCHWARDEN_LOG", default_value = "info")]
    log: String,
    /// How it is written.
    #[arg(long, env = LogFormat::VARIABLE, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Works on vulnerability data, without a cluster.
    #[command(subcommand)]
    Vulnerabilities(Vulnerabilities),
}

#[derive(Debug, clap::Subcommand)]
enum Vulnerabilities {
    /// Reads a directory of OSV, CSAF, KEV and EPSS files as a gateway would import it, and says what is in it or what is wrong.
    Check {
        /// The directory.
        directory: PathBuf,
    },
    /// Fetches files into such a directory, once: whoever wants them daily runs it daily. A file takes the place of the one before after it was read to
    /// its end, and is asked for only if it has changed. Proxies are those of the environment. Ends with 1 where any file was not fetched.
    Fetch {
        /// The directory.
        directory: PathBuf,
        /// Where a file is: https://HOST/PATH, whose last part is its name in the directory, or NAME=https://HOST/PATH.
        #[arg(required = true, value_name = "[NAME=]URL")]
        sources: Vec<Source>,
        /// Certificate authorities in PEM that are believed instead of the public ones.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
}

impl Vulnerabilities {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Check { directory } => print!("{}", gateway::vulnerabilities::check(directory)?),
            Self::Fetch { directory, sources, ca } => {
                let mut missing = 0;
                for source in sources {
                    match fetch(directory, source, ca.as_deref()) {
                        Ok(Fetched::New(bytes)) => println!("{source}: {bytes} bytes"),
                        Ok(Fetched::Unchanged) => println!("{source}: unchanged"),
                        Err(error) => {
                            eprintln!("{error}");
                            missing += 1;
                        }
                    }
                }
                anyhow::ensure!(missing == 0, "{missing} of {} files were not fetched", sources.len());
            }
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Vulnerabilities(command)) = &arguments.command {
        return command.run();
    }
    let Arguments {
        command: _,
        namespace,
        controller_user,
        agents_address,
        runners_address,
        api_address,
        aggregation_address,
        api_audience,
        health_address,
        database,
        database_password_file,
        server_names,
        keep_audit_days,
        keep_history_days,
        keep_gone_days,
        scan_interval,
        recipes,
        vulnerabilities,
        log,
        log_format,
    } = arguments;
    shell::log_to_stderr(&log, log_format)?;
    gateway::open_files::allow_all();
    let stop = shell::stop_on_signal()?;
    let client = shell::kube_client("patchwarden-gateway").await?;
    let controller_user =
        controller_user.unwrap_or_else(|| format!("system:serviceaccount:{namespace}:patchwarden-controller"));
    let days = |days: u16| SignedDuration::from_hours(i64::from(days) * 24);
    let config = Config {
        retention: Retention {
            audit: days(keep_audit_days),
            history: days(keep_history_days),
            gone: days(keep_gone_days),
        },
        database: Database::parse(&database, database_password_file.as_deref())?,
        replica: shell::replica_name(),
        namespace,
        controller_user,
        agents_address,
        runners_address,
        api_address,
        aggregation_address,
        api_audience,
        health_address,
        server_names,
        scan_interval,
        recipes,
        vulnerabilities,
    };
    gateway::run(config, client, stop.cancelled()).await?;
    Ok(())
}
