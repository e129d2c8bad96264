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
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

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

    /// The same through a proxy for `http://`, which counts where the program's own configuration names none (apt-transport-http(1),
    /// curl(1), libproxy).
    pub(crate) fn through(mut self, proxy: Option<&str>) -> Self {
        self.environment.extend(proxy.map(|proxy| ("http_proxy", proxy.into())));
        self
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

/// Runs to the end; what takes longer than `limit` is killed, and so is what prints more than [`MAX_OUTPUT`].
pub(super) async fn run(line: &CommandLine, limit: Duration) -> Result<Output, Failure> {
    let mut stdout = Vec::new();
    let output = stream(line, limit, |bytes| keep(&mut stdout, bytes)).await?;
    Ok(Output { stdout: text(stdout), ..output })
}

/// Runs to the end like [`run`]. Standard output goes to `sink` as it comes, however much it is, and not into [`Output`]; an
/// error of `sink` ends the command.
pub(super) async fn stream(
    line: &CommandLine,
    limit: Duration,
    sink: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<Output, Failure> {
    let name = line.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let failed =
        |error: std::io::Error| Failure::new(ResultReason::PackageManagerFailed, format!("{name}: {error}")).general();
    let mut command = line.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    // What is only asked or fetched waits for what the machine is for. The package manager's installs are not run here.
    platform::give_way(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Boxed: several of them beside each other are large.
    let finished = Box::pin(tokio::time::timeout(limit, async {
        let mut said = Vec::new();
        tokio::try_join!(read(stdout, sink), read(stderr, |bytes| keep(&mut said, bytes)))?;
        Ok((said, child.wait().await?))
    }));
    match finished.await {
        Ok(Ok((said, status))) => Ok(Output { code: status.code(), stdout: String::new(), stderr: text(said) }),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            let seconds = limit.as_secs();
            let message = format!("{name} did not end within {seconds} s and was stopped");
            Err(Failure::new(ResultReason::TimedOut, message).general())
        }
    }
}

/// Hands over what comes, until the end.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    // As much as a pipe holds.
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => sink(&buffer[..length])?,
        }
    }
}

/// What is no UTF-8 becomes `?`, in place: the usual mark takes three times the room.
fn text(mut bytes: Vec<u8>) -> String {
    let mut good = 0;
    while let Err(error) = std::str::from_utf8(&bytes[good..]) {
        good += error.valid_up_to();
        bytes[good] = b'?';
    }
    String::from_utf8(bytes).unwrap_or_default()
}

fn keep(output: &mut Vec<u8>, bytes: &[u8]) -> std::io::Result<()> {
    if output.len() + bytes.len() > MAX_OUTPUT {
        return Err(std::io::Error::other(format!("printed more than {MAX_OUTPUT} bytes")));
    }
    output.extend_from_slice(bytes);
    Ok(())
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
    async fn what_is_run_gives_way_to_others() {
        // Until it has been told, which is right after its start.
        let script =
            "until read -r stat </proc/self/stat; set -- ${stat##*) }; [ ${17} -ge 10 ]; do :; done; echo ${17}";
        let output = run(&shell(script), Duration::from_secs(10)).await.unwrap();
        assert!(output.stdout.trim().parse::<i32>().unwrap() >= 10, "{output:?}");
    }

    #[tokio::test]
    async fn what_is_handed_over_piece_by_piece_is_all_of_it() {
        let (mut length, limit) = (0, Duration::from_mins(1));
        let zeros = shell("head -c 70000000 /dev/zero; echo err >&2");
        let count = |bytes: &[u8]| {
            length += bytes.len();
            Ok(())
        };
        let output = stream(&zeros, limit, count).await.unwrap();
        assert_eq!(
            (output.code, length, output.stdout.as_str(), output.stderr.as_str()),
            (Some(0), 70_000_000, "", "err\n")
        );
        let refused = stream(&shell("yes"), limit, |_| Err(std::io::Error::other("no more"))).await.unwrap_err();
        assert_eq!(
            (refused.reason, refused.message.as_str()),
            (ResultReason::PackageManagerFailed, "/bin/sh: no more")
        );
    }

    #[tokio::test]
    async fn output_that_would_fill_the_memory_is_refused() {
        let error = run(&shell("head -c 17000000 /dev/zero"), Duration::from_mins(1)).await.unwrap_err();
        assert!(error.message.contains("printed more than 16777216 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_utf_8_takes_no_more_room_than_it_had() {
        assert_eq!(text("grün".into()), "grün");
        assert_eq!(text(b"a\xffb\xc3".into()), "a?b?");
        assert_eq!(text(vec![0xff; 5]), "?????");
        assert_eq!(text(b"\xe2\x82".into()), "??");
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
