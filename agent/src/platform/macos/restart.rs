//! The machine that is restarted: by which command, and who is told before.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::line;
use crate::config::Config;
use crate::provider::CommandLine;

/// To write on some terminals; one that blocks must not hold up the rest.
const TELLING_LIMIT: Duration = Duration::from_secs(10);

/// The command that restarts this machine. With FileVault it then waits for a password before anything starts.
#[expect(clippy::unnecessary_wraps, reason = "on other systems it may fail")]
pub(crate) fn command(config: &Config) -> Result<CommandLine, String> {
    let mut command = line(["/sbin/shutdown", "-r", "now"]);
    if let Some(configured) = &config.restart_command {
        command.words = configured.iter().map(Into::into).collect();
    }
    Ok(command)
}

/// Nothing is known of containers here.
pub(crate) fn container(_: &Path) -> Option<String> {
    None
}

/// Tells everybody who is logged in at a terminal; windows are not reached.
pub(crate) async fn tell_users(message: &str) -> Result<(), String> {
    let told = async {
        let mut command = line(["/usr/bin/wall"]).command();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        // On its input: on the command line a message could be taken for a file.
        if let Some(mut input) = child.stdin.take() {
            input.write_all(message.as_bytes()).await?;
            input.write_all(b"\n").await?;
        }
        child.wait().await
    };
    match tokio::time::timeout(TELLING_LIMIT, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("wall: {status}")),
        Ok(Err(error)) => Err(format!("wall: {error}")),
        Err(_) => Err(format!("wall did not end within {} s", TELLING_LIMIT.as_secs())),
    }
}
