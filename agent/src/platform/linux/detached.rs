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
/// looks each second, and ten times a second while a megabyte and more comes between two looks, also while the agent is dead, until
/// the command or the shell has ended: by its number it is stopped only while it is the shell's own child, and never another process
/// that has the number by then. `true` and not `:`, which would end the shell where a file cannot be made.
const SCRIPT: &str = r#"
read -r go || exit 75
[ "$go" = go ] || exit 75
directory=$1 most=$2 kept=$3
shift 3
bound() {
  PATH=/usr/bin:/bin output=$directory/output given=0 seen=0 pause=1
  while sleep $pause && [ ! -e "$directory/exit" ] && kill -0 $$; do
    size=$(stat --format=%s "$output") || break
    if [ $((size - seen)) -gt 1048576 ]; then pause=0.1; else pause=1; fi
    seen=$size
    [ $((size - given)) -gt "$most" ] || continue
    given=$((size - kept))
    if ! fallocate --punch-hole --offset 0 --length "$given" "$output"; then
      true >"$output"
      given=0 seen=0
    fi
    true >"$directory/cut"
  done
}
echo 000 >"$directory/.exit" || exit 74
bound </dev/null >/dev/null 2>&1 &
bounding=$!
"$@" </dev/null
code=$?
read -r _ _ _ parent _ 2>/dev/null <"/proc/$bounding/stat" && [ "$parent" = $$ ] && kill "$bounding"
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
