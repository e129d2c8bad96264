//! The kubectl plugin's program.

use std::process::ExitCode;

use clap::Parser as _;
use patchwarden::cli::screen::{BAD, safe};
use patchwarden::cli::{self, Cli};

/// Exit code of an error, as of diff(1): `preview` says with 1 that something would change.
const FAILED: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    cli::run(Cli::parse()).await.unwrap_or_else(|error| {
        anstream::eprintln!("{BAD}Error:{BAD:#} {}", safe(&cli::words(&error)));
        ExitCode::from(FAILED)
    })
}
