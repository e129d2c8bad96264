//! The kubectl plugin's program.

use clap::Parser as _;
use patchwarden::cli::{self, Cli};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    cli::run(Cli::parse()).await
}
