//! `kubectl patchwarden init`: the first set-up of a client. A short interview, or flags for the same, and a directory of YAML with comments
//! for Git. It asks no cluster.

mod answers;
mod files;
mod interview;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use self::answers::Given;
use super::screen;
use crate::{convert, shell};

/// Flags of `init`. What is not given is asked for; where nobody can be asked, or with --yes, what is recommended is taken.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where the files go. Default: a directory named after the client.
    #[arg(value_parser = directory)]
    directory: Option<PathBuf>,
    #[command(flatten)]
    given: Given,
    /// Ask nothing: what is not given is as recommended.
    #[arg(short, long)]
    yes: bool,
    /// Overwrite files of these names that are there.
    #[arg(long)]
    force: bool,
}

/// Asks, and writes.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { directory, given, yes, force } = arguments;
    let can_ask = !yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let answers = if can_ask { interview::ask(given)? } else { given.recommended()? };
    let directory = directory.unwrap_or_else(|| PathBuf::from(&answers.client));
    let files = files::of(&answers, convert::whole_seconds(shell::now()))?;
    write(&directory, &files, force)?;
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let shown = directory.display();
    let wrote = screen::wrapped(&format!("Wrote {} to {shown}. Next:", names.join(", ")), 0);
    let what = screen::wrapped(&format!("{shown}/README.md says what was decided and why, and how machines join."), 0);
    screen::print(&format!(
        "{wrote}\n\n  kubectl apply -f {shown}/00-namespace.yaml\n  kubectl apply --dry-run=server -k {shown}\n  git add {shown}\n\n{what}\n"
    ))
}

/// Of `--pilot false` the second word would be the directory, and pilots on.
fn directory(text: &str) -> Result<PathBuf, String> {
    match text {
        "true" | "false" => Err(format!("if it belongs to --pilot, write --pilot={text}; if not, ./{text}")),
        _ => Ok(text.into()),
    }
}

/// All of them, or none if one of them is there.
fn write(directory: &Path, files: &[(&str, String)], force: bool) -> anyhow::Result<()> {
    let there: Vec<&str> = files.iter().map(|(name, _)| *name).filter(|name| directory.join(name).exists()).collect();
    if !there.is_empty() && !force {
        bail!(
            "{} exists in {}: name another directory, or overwrite with --force",
            there.join(", "),
            directory.display()
        )
    }
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (name, text) in files {
        let path = directory.join(name);
        if force {
            // Not what a link points to: that is somebody else's.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
            .with_context(|| path.display().to_string())?;
        }
        // Whoever has made it meanwhile keeps it.
        let written = File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| path.display().to_string())?;
    }
    Ok(())
}
