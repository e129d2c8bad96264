//! A command that outlives the agent: in a session of its own, with systemd also in a scope of its own, so that stopping the
//! agent's service does not stop it.

use std::io;
use std::path::Path;

use tokio::process::Command;

use crate::provider::{CommandLine, words};

/// The code's file is written at once and only overwritten at the end: a full disk must not lose the code.
const SCRIPT: &str = r#"
read -r go || exit 75
[ "$go" = go ] || exit 75
directory=$1
shift
echo 000 >"$directory/.exit" || exit 74
"$@" </dev/null
code=$?
printf '%03d\n' "$code" 1<>"$directory/.exit"
sync "$directory/.exit"
mv "$directory/.exit" "$directory/exit"
sync "$directory"
"#;

/// What waits for `go` on its input, runs `line` and leaves its exit code in the file `exit` of `directory`; `unit` is its name
/// under systemd.
#[expect(clippy::unnecessary_wraps, reason = "on other systems it may fail")]
pub(crate) fn command(line: &CommandLine, directory: &Path, unit: &str) -> io::Result<Command> {
    let mut around = CommandLine { words: Vec::new(), environment: line.environment.clone() };
    if Path::new("/run/systemd/system").exists() {
        around.words.extend(words(["systemd-run", "--scope", "--collect", "--quiet"]));
        around.words.push(format!("--unit={unit}").into());
        around.words.extend(words(["--"]));
    }
    around.words.extend(words(["setsid", "/bin/sh", "-c", SCRIPT, "patchwarden-install"]));
    around.words.push(directory.into());
    around.words.extend(line.words.iter().cloned());
    Ok(around.command())
}
