//! A command that outlives the agent: in a process group of its own. When a job ends, launchd kills what is left of the job's own
//! group alone (`AbandonProcessGroup` of launchd.plist(5)).

use std::io;
use std::path::Path;

use tokio::process::Command;

use super::own_program;
use crate::provider::CommandLine;

/// What waits for `go` on its input, runs `line` and leaves its exit code in the file `exit` of `directory`: this program.
pub(crate) fn command(line: &CommandLine, directory: &Path, _: &str) -> io::Result<Command> {
    let mut words = vec![own_program()?.into(), "around".into(), directory.into(), "--".into()];
    words.extend(line.words.iter().cloned());
    let mut command = CommandLine { words, environment: line.environment.clone() }.command();
    command.process_group(0);
    Ok(command)
}
