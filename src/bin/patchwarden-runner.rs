//! The program in the pod of an install Job.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use patchwarden::runner::{self, Config, RunnerError, env, exit};
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
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { gateway, ca, job, token_file } = Arguments::parse();
    match work(Config { gateway, ca, job, token_file }).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("patchwarden-runner: {error}");
            ExitCode::from(exit::REFUSED)
        }
    }
}

async fn work(config: Config) -> Result<u8, RunnerError> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        code = runner::run(config) => code,
        _ = terminate.recv() => runner::told_to_stop(),
    }
}
