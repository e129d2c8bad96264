//! A command that outlives the agent: in a session of its own, with systemd also in a scope of its own, so that stopping the
//! agent's service does not stop it.

use std::io;
use std::path::Path;

use tokio::process::Command;

use crate::provider::{CommandLine, words};

/// Bytes that a command prints before only the end of them is kept. To upgrade a whole Debian prints less than a tenth of it.
const MAX_OUTPUT: u64 = 4 << 20;

/// Bytes of that end: more than is told of it to anybody.
const KEPT: u64 = 128 << 10;

/// The code's file is written at once and only overwritten at the end: a full disk must not lose the code.
///
/// What the command prints goes to a file and through nobody's hands: whoever stood in between could die, and the command with it
/// (SIGPIPE), or hang in a pipe that nobody reads. A process beside it gives back the room of all but the file's end where that grows
/// (`--punch-hole` of fallocate(1), or all of it where the file system cannot). No writer notices, and the end stays where it is. It
/// looks ten times a second, also while the agent is dead, until the command ends or the order's directory goes.
const SCRIPT: &str = r#"
read -r go || exit 75
[ "$go" = go ] || exit 75
directory=$1 most=$2 kept=$3
shift 3
bound() {
  PATH=/usr/bin:/bin output=$directory/output given=0
  while [ -e "$output" ] && sleep 0.1; do
    size=$(stat --format=%s "$output") || break
    [ $((size - given)) -gt "$most" ] || continue
    : >"$directory/cut"
    given=$((size - kept))
    fallocate --punch-hole --offset 0 --length "$given" "$output" && continue
    : >"$output"
    given=0
  done
}
echo 000 >"$directory/.exit" || exit 74
bound </dev/null >/dev/null 2>&1 &
"$@" </dev/null
code=$?
kill $! 2>/dev/null
printf '%03d\n' "$code" 1<>"$directory/.exit"
sync "$directory/.exit"
mv "$directory/.exit" "$directory/exit"
sync "$directory"
"#;

/// What waits for `go` on its input, runs `line` and leaves its exit code in the file `exit` of `directory`, and a file `cut` there once
/// it has printed more than is kept; `unit` is its name under systemd.
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
    around.words.extend([MAX_OUTPUT, KEPT].map(|bytes: u64| bytes.to_string().into()));
    around.words.extend(line.words.iter().cloned());
    Ok(around.command())
}
