//! Running commands with limits.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use patchwarden_protocol::result::ResultReason;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::Failure;
use crate::platform;

/// No output that is read may be longer.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;

/// Variables of a command.
pub(crate) type Environment = Vec<(&'static str, OsString)>;

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Program and arguments.
    pub(crate) words: Vec<OsString>,
    /// All of its variables but those of [`platform::PASSED_ON`].
    pub(crate) environment: Environment,
}

impl CommandLine {
    /// Ready to be started: nothing inherited but proxies, working directory the root.
    pub(crate) fn command(&self) -> Command {
        let mut words = self.words.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command.args(words).env_clear().current_dir(platform::root());
        for name in platform::PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }
}

/// What came of a command.
#[derive(Clone, Debug)]
pub(super) struct Output {
    /// Exit code; nothing if a signal ended it.
    pub(super) code: Option<i32>,
    /// Standard output.
    pub(super) stdout: String,
    /// Standard error.
    pub(super) stderr: String,
}

impl Output {
    pub(super) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Both streams.
    pub(super) fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Runs to the end; what takes longer than `limit` is killed.
pub(super) async fn run(line: &CommandLine, limit: Duration) -> Result<Output, Failure> {
    let name = line.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let failed =
        |error: std::io::Error| Failure::new(ResultReason::PackageManagerFailed, format!("{name}: {error}")).general();
    let mut command = line.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finished = tokio::time::timeout(limit, async {
        let (stdout, stderr) = tokio::try_join!(read(stdout), read(stderr))?;
        Ok((stdout, stderr, child.wait().await?))
    });
    match finished.await {
        Ok(Ok((stdout, stderr, status))) => Ok(Output { code: status.code(), stdout, stderr }),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            let seconds = limit.as_secs();
            let message = format!("{name} did not end within {seconds} s and was stopped");
            Err(Failure::new(ResultReason::TimedOut, message).general())
        }
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_OUTPUT {
        return Err(std::io::Error::other(format!("printed more than {MAX_OUTPUT} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> CommandLine {
        CommandLine { words: super::super::words(["/bin/sh", "-c", script]), environment: vec![("LC_ALL", "C".into())] }
    }

    #[tokio::test]
    async fn output_and_code_come_back() {
        let output = run(&shell("echo out; echo err >&2; exit 3"), Duration::from_secs(10)).await.unwrap();
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (Some(3), "out\n", "err\n"));
    }

    #[tokio::test]
    async fn the_environment_is_the_commands_own() {
        let output = run(&shell("env"), Duration::from_secs(10)).await.unwrap();
        assert!(output.stdout.contains("LC_ALL=C") && !output.stdout.contains("HOME="), "{}", output.stdout);
    }

    #[tokio::test]
    async fn what_takes_too_long_is_stopped() {
        let error = run(&shell("sleep 60"), Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.reason, ResultReason::TimedOut);
    }
}
