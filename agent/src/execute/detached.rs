//! Commands that outlive the agent.
//!
//! The command runs in a session of its own (with systemd also in a scope of its own, so that stopping the agent's
//! service does not stop it), prints into a file and leaves its exit code in another. It starts in two steps: the
//! process is made and waits; then the agent journals which process it is; then it says "go". An agent that dies in
//! between leaves a process that reads end-of-file and ends without having done anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;

use crate::files;
use crate::journal::Process;
use crate::platform::{self, PlatformError};
use crate::provider::CommandLine;

/// What the command prints.
pub(super) const OUTPUT: &str = "output";

/// Its exit code.
const EXIT: &str = "exit";

/// Is there once it has printed so much that only the end is kept.
const CUT: &str = "cut";

/// Why a command could not be started or followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetachedError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("{path}: not an exit code: {text:?}")]
    Code { path: PathBuf, text: String },
    #[error("the process ended before it was told to start")]
    Gone,
}

/// A process that waits for "go".
#[derive(Debug)]
pub(super) struct Waiting {
    child: Child,
    /// Which one it is, for the journal.
    pub(super) process: Process,
}

/// Makes the process. `directory` is made anew; `unit` is its name under systemd.
pub(super) fn prepare(command: &CommandLine, directory: &Path, unit: &str) -> Result<Waiting, DetachedError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| DetachedError::Io { path, source }
    };
    files::remove_tree(directory).map_err(io(directory))?;
    files::ensure_directory(directory, files::PASSAGE).map_err(io(directory))?;
    let output = directory.join(OUTPUT);
    let file = files::options(files::PRIVATE).create(true).append(true).open(&output).map_err(io(&output))?;
    let second = file.try_clone().map_err(io(&output))?;
    let child = platform::detached::command(command, directory, unit)
        .map_err(io(directory))?
        .stdin(Stdio::piped())
        .stdout(Stdio::from(file))
        .stderr(Stdio::from(second))
        .spawn()
        .map_err(io(directory))?;
    let pid = child.id().ok_or(DetachedError::Gone)?;
    let process = platform::process(pid)?;
    Ok(Waiting { child, process })
}

impl Waiting {
    /// Lets it go.
    pub(super) async fn go(mut self) -> Result<(), DetachedError> {
        let mut stdin = self.child.stdin.take().ok_or(DetachedError::Gone)?;
        stdin.write_all(b"go\n").await.map_err(|_| DetachedError::Gone)?;
        stdin.shutdown().await.map_err(|_| DetachedError::Gone)?;
        // Reaps it, so that it does not stay as a zombie; how it ended is read from its file.
        tokio::spawn(async move {
            if let Err(error) = self.child.wait().await {
                tracing::warn!("waiting for the package manager: {error}");
            }
        });
        Ok(())
    }
}

/// The exit code, once it is there.
pub(super) fn exit_code(directory: &Path) -> Result<Option<i32>, DetachedError> {
    let path = directory.join(EXIT);
    let bytes = files::read_if_exists(&path).map_err(|source| DetachedError::Io { path: path.clone(), source })?;
    let Some(bytes) = bytes else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    match text.parse() {
        Ok(code) => Ok(Some(code)),
        Err(_) => Err(DetachedError::Code { path, text }),
    }
}

/// Whether only the end is kept of what it printed.
pub(super) fn is_cut(directory: &Path) -> bool {
    directory.join(CUT).exists()
}

/// The last `limit` bytes that it printed.
pub(super) fn output_tail(directory: &Path, limit: u64) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(directory.join(OUTPUT))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // For people only: that it is missing says enough.
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::words;

    fn shell(script: &str) -> CommandLine {
        CommandLine { words: words(["/bin/sh", "-c", script]), environment: vec![("PATH", "/usr/bin:/bin".into())] }
    }

    async fn until(condition: impl Fn() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 10 s");
    }

    /// Each of its own: where systemd runs, they are there beside each other.
    fn unit() -> String {
        format!("patchwarden-test-{:08x}", rand::random::<u32>())
    }

    #[tokio::test]
    async fn the_exit_code_and_the_output_are_in_files() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("attempt-1");
        let waiting = prepare(&shell("echo hello; echo oops >&2; exit 7"), &place, &unit()).unwrap();
        let process = waiting.process.clone();
        waiting.go().await.unwrap();
        until(|| exit_code(&place).unwrap().is_some() && !platform::is_alive(&process).unwrap()).await;
        assert_eq!(exit_code(&place).unwrap(), Some(7));
        assert_eq!(output_tail(&place, 1000), "hello\noops\n");
        assert_eq!(output_tail(&place, 5), "oops\n");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn of_much_output_the_end_is_kept_and_the_rest_takes_no_room() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("attempt-1");
        let flood = "seq 1000000; sleep 2; seq 1000000; sleep 2; echo last words >&2";
        let waiting = prepare(&shell(flood), &place, &unit()).unwrap();
        assert!(!is_cut(&place));
        waiting.go().await.unwrap();
        until(|| exit_code(&place).unwrap().is_some()).await;
        assert!(is_cut(&place));
        let about = fs::metadata(place.join(OUTPUT)).unwrap();
        assert!(about.blocks() * 512 < 1 << 20, "{} bytes are kept", about.blocks() * 512);
        let end: String = (990_000..=1_000_000).flat_map(|number| [number.to_string(), "\n".into()]).collect();
        let end = end + "last words\n";
        assert_eq!(output_tail(&place, end.len() as u64), end);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_is_beside_a_command_ends_with_it_or_with_its_shell() {
        let is_left = |place: &Path| {
            let name = place.display().to_string().into_bytes();
            let lines = fs::read_dir("/proc").unwrap().flatten().map(|entry| fs::read(entry.path().join("cmdline")));
            lines.flatten().any(|line| line.windows(name.len()).any(|part| part == name))
        };
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in [("ended", "exit 0"), ("killed", "kill -9 $PPID; sleep 1")] {
            let place = directory.path().join(name);
            let waiting = prepare(&shell(script), &place, &unit()).unwrap();
            // In the moment after it was started a process has no arguments yet.
            until(|| is_left(&place)).await;
            waiting.go().await.unwrap();
            until(|| !is_left(&place)).await;
            assert_eq!(exit_code(&place).unwrap(), (name == "ended").then_some(0));
        }
    }

    #[tokio::test]
    async fn it_has_the_agents_own_priority() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("attempt-1");
        // The 19th field of all (proc_pid_stat(5)), the 17th behind the name.
        let nice = |stat: &str| stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().to_owned();
        let waiting = prepare(&shell("cat /proc/self/stat"), &place, &unit()).unwrap();
        waiting.go().await.unwrap();
        until(|| exit_code(&place).unwrap().is_some()).await;
        assert_eq!(nice(&output_tail(&place, 1000)), nice(&fs::read_to_string("/proc/self/stat").unwrap()));
    }

    #[tokio::test]
    async fn an_agent_that_dies_before_it_says_go_has_started_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("attempt-1");
        let witness = directory.path().join("witness");
        let waiting = prepare(&shell(&format!("touch {}", witness.display())), &place, &unit()).unwrap();
        let process = waiting.process.clone();
        drop(waiting);
        until(|| !platform::is_alive(&process).unwrap()).await;
        assert!(!witness.exists());
        assert_eq!(exit_code(&place).unwrap(), None);
    }
}
