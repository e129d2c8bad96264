//! The machine that is restarted: by which command, and who is told before.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::system_program;
use crate::config::Config;
use crate::provider::{CommandLine, words};

/// To write into some sessions; one that blocks must not hold up the rest.
const TELLING_LIMIT: Duration = Duration::from_secs(10);

/// How long a message stays, in seconds: as long as the longest warning.
const SHOWN: &str = "/TIME:14400";

/// The command that restarts this machine in its own orderly way; or why it cannot. shutdown: `/r` restarts after a full
/// shutdown, `/t 0` at once, `/d p:2:17` is the planned reason "Operating System: Hot fix".
pub(crate) fn command(config: &Config) -> Result<CommandLine, String> {
    if let Some(configured) = &config.restart_command {
        return Ok(CommandLine { words: configured.iter().map(Into::into).collect(), environment: Vec::new() });
    }
    let path = system_program("shutdown.exe");
    if !path.is_file() {
        return Err(format!(
            "this machine cannot restart itself: it has no {}; restart_command in agent.toml says how else",
            path.display()
        ));
    }
    let mut all = vec![path.into_os_string()];
    all.extend(words(["/r", "/t", "0", "/d", "p:2:17"]));
    Ok(CommandLine { words: all, environment: Vec::new() })
}

/// Nothing is known of containers here.
pub(crate) fn container(_: &Path) -> Option<String> {
    None
}

/// Tells everybody who is logged in. The editions for homes have no `msg`.
pub(crate) async fn tell_users(message: &str) -> Result<(), String> {
    let mut line = CommandLine { words: vec![system_program("msg.exe").into()], environment: Vec::new() };
    line.words.extend(words(["*", SHOWN]));
    let told = async {
        let mut command = line.command();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        // On its input: on the command line a message could be taken for an option or a file.
        if let Some(mut input) = child.stdin.take() {
            input.write_all(message.as_bytes()).await?;
        }
        child.wait().await
    };
    match tokio::time::timeout(TELLING_LIMIT, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("msg: {status}")),
        Ok(Err(error)) => Err(format!("msg: {error}")),
        Err(_) => Err(format!("msg did not end within {} s", TELLING_LIMIT.as_secs())),
    }
}
