//! The program in the pod of an install Job.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use patchwarden::runner::{self, Config, RunnerError, env, exit};
use patchwarden::shell::{self, LogFormat};
use patchwarden::telemetry::ids::SpanId;
use patchwarden::telemetry::{FLUSH_TIME, Traces};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the order of an install Job through Patchwarden's gateway, and prints what the device does.
///
/// Exit codes: 0 the order succeeded; 10 the order is over and did not succeed, which is final (the controller decides
/// what follows); 11 the gateway refused this pod, or it is not set up rightly; 75 the gateway could not be reached for
/// 2 minutes, or the pod was told to stop (try again).
#[derive(Debug, Parser)]
#[command(name = "patchwarden-runner", version)]
struct Arguments {
    /// The gateway's runners' door: https://host:port.
    #[arg(long, env = env::GATEWAY)]
    gateway: String,
    /// The CA's certificates in PEM.
    #[arg(long, env = env::CA)]
    ca: String,
    /// Name of this pod's Job.
    #[arg(long, env = env::JOB)]
    job: String,
    /// File of the pod's projected service-account token (audience patchwarden-gateway).
    #[arg(long, env = env::TOKEN_FILE)]
    token_file: PathBuf,
    /// How lines are written: for people, or as one JSON object each.
    #[arg(long, env = LogFormat::VARIABLE, value_enum, default_value_t)]
    log_format: LogFormat,
    /// The install's trace, as W3C Trace Context has it. What cannot be read is as if there were none.
    #[arg(long, env = env::TRACEPARENT)]
    traceparent: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let since = shell::now();
    let Arguments { gateway, ca, job, token_file, log_format: format, traceparent } = Arguments::parse();
    let trace = traceparent.and_then(|context| context.parse().ok());
    let config = Config { gateway, ca, job, token_file, format, trace, span: SpanId::random() };
    // An install does not fail because nobody can watch it.
    let traces = Traces::start("patchwarden-runner", &shell::host_name(), None).unwrap_or_else(|error| {
        eprintln!("patchwarden-runner: no traces: {error}");
        Traces::default()
    });
    let code = work(&config).await.unwrap_or_else(|error| {
        eprintln!("patchwarden-runner: {error}");
        exit::REFUSED
    });
    runner::tell(&traces, &config, since, code);
    if !traces.end(FLUSH_TIME) {
        eprintln!("patchwarden-runner: the collector does not take spans: what this pod has done is not in the trace");
    }
    ExitCode::from(code)
}

async fn work(config: &Config) -> Result<u8, RunnerError> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        code = runner::run(config) => code,
        _ = terminate.recv() => runner::told_to_stop(config),
    }
}
