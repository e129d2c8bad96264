//! `patchwarden-agent around`: what `/bin/sh` does elsewhere around a command that outlives the agent.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use super::files::sync_directory;

/// The code of a shell for a command that cannot be started.
const NOT_STARTED: i32 = 127;

/// It was not told to go (`EX_TEMPFAIL` of sysexits.h, as elsewhere).
const NOT_TOLD: u8 = 75;

/// The code could not be kept (`EX_IOERR`).
const NOT_KEPT: u8 = 74;

/// Commands that are not for people.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Internal {
    /// Waits for `go` on the input, runs the command, and leaves its exit code in the file `exit` of the directory.
    #[command(hide = true)]
    Around {
        /// Where the code is left.
        directory: PathBuf,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
}

impl Internal {
    /// Does it.
    pub(crate) fn run(self) -> ExitCode {
        let Self::Around { directory, words } = self;
        let mut told = String::new();
        if !io::stdin().lock().read_line(&mut told).is_ok_and(|_| told.trim() == "go") {
            return ExitCode::from(NOT_TOLD);
        }
        match around(&directory, &words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", directory.display());
                ExitCode::from(NOT_KEPT)
            }
        }
    }
}

/// The code's file is written at once and only overwritten at the end: a full disk must not lose the code.
fn around(directory: &Path, words: &[OsString]) -> io::Result<()> {
    let (temporary, exit) = (directory.join(".exit"), directory.join("exit"));
    let mut file = File::create(&temporary)?;
    file.write_all(b"           0\n")?;
    file.sync_all()?;
    let code = run(words);
    file.rewind()?;
    file.write_all(format!("{code:>12}\n").as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, exit)?;
    sync_directory(directory)
}

fn run(words: &[OsString]) -> i32 {
    let Some((program, arguments)) = words.split_first() else { return NOT_STARTED };
    match Command::new(program).args(arguments).stdin(Stdio::null()).status() {
        Ok(status) => code_of(status),
        Err(error) => {
            eprintln!("{}: {error}", program.to_string_lossy());
            NOT_STARTED
        }
    }
}

/// Every process of Windows ends with a code. Elsewhere a signal may end it: then a shell's code for that.
fn code_of(status: ExitStatus) -> i32 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128 + signal;
    }
    status.code().unwrap_or(NOT_STARTED)
}
