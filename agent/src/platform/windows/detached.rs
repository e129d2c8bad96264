//! A command that outlives the agent: without its console, and where there is a job object that ends with the agent, it is
//! stopped with it. A service's processes are in none.

use std::env;
use std::io;
use std::path::Path;

use tokio::process::Command;

use crate::provider::CommandLine;

/// No console, and no Ctrl-C from the agent's ("Process Creation Flags": `CREATE_NO_WINDOW`, `CREATE_NEW_PROCESS_GROUP`).
const APART: u32 = 0x0800_0000 | 0x0000_0200;

/// What waits for `go` on its input, runs `line` and leaves its exit code in the file `exit` of `directory`: this program.
pub(crate) fn command(line: &CommandLine, directory: &Path, _: &str) -> io::Result<Command> {
    let mut words = vec![env::current_exe()?.into(), "around".into(), directory.into(), "--".into()];
    words.extend(line.words.iter().cloned());
    let mut command = CommandLine { words, environment: line.environment.clone() }.command();
    command.creation_flags(APART);
    Ok(command)
}
