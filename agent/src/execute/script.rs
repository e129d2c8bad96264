//! Scripts for hooks and checks, run apart from the agent: for a limited time, with what they print in a file.
//!
//! `timeout` of coreutils kills a script that takes too long together with its whole process group, also while the agent is
//! dead. A process that has made itself a session of its own is not reached by that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::detached::{self, DetachedError};
use crate::journal::Process;
use crate::platform;
use crate::provider::{CommandLine, Environment, bounded, words};

/// Of what it printed so many bytes are told, from the end.
const TOLD: usize = 300;

/// What `timeout` ends with where it has killed (timeout(1)): the shell's code for a process that signal 9 ended.
const KILLED: i32 = 137;

/// A script that is still there so long after it was to be killed hangs in the kernel.
const GRACE: Duration = Duration::from_secs(30);

/// Looks at a running script.
const WATCH: Duration = Duration::from_millis(100);

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a script that was let go has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Code(i32),
    /// It was killed because it took too long.
    TookTooLong,
    /// It died with the machine, or something else killed it and its shell.
    Died,
}

/// What every program is told.
fn environment() -> Environment {
    vec![("LC_ALL", "C".into()), ("HOME", "/root".into()), ("PATH", PATH.into())]
}

/// The command that runs a script for at most so many `seconds`.
pub(super) fn command(path: PathBuf, seconds: u32, more: Environment) -> CommandLine {
    let mut environment = environment();
    environment.extend(more);
    let mut line = CommandLine { words: words(["timeout", "--signal=KILL"]), environment };
    line.words.push(seconds.to_string().into());
    line.words.push(path.into());
    line
}

/// Follows a script that was let go at `at`.
pub(super) async fn follow(
    directory: &Path,
    process: &Process,
    at: Timestamp,
    seconds: u32,
) -> Result<Ended, DetachedError> {
    let limit = SignedDuration::from_secs(i64::from(seconds));
    // By the clock that stands still while the machine sleeps, as the script does: it takes none of its time then.
    let begun = Instant::now();
    let took = || platform::now().duration_since(at);
    loop {
        // In this order: the code is written before the process ends.
        let alive = platform::is_alive(process)?;
        match detached::exit_code(directory)? {
            Some(KILLED) if took() >= limit => return Ok(Ended::TookTooLong),
            Some(code) => return Ok(Ended::Code(code)),
            None if !alive => return Ok(Ended::Died),
            None if begun.elapsed() > GRACE + Duration::from_secs(seconds.into()) => return Ok(Ended::TookTooLong),
            None => {}
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// What it printed last, in one line.
pub(super) fn said(directory: &Path) -> String {
    let tail = detached::output_tail(directory, TOLD as u64);
    let line: String = tail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    bounded(&line.split_whitespace().collect::<Vec<_>>().join(" "), TOLD)
}
