//! Scripts beside the rules: every file of `scripts/`, as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use patchwarden_protocol::recipes::{MAX_SCRIPT, Script};

/// Below the directory with the rules.
const DIRECTORY: &str = "scripts";

/// Every script of a directory with rules, by name, each checked; none where it has no `scripts/`.
pub(super) fn read_all(rules: &Path) -> anyhow::Result<Vec<Script>> {
    let directory = rules.join(DIRECTORY);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let name = || directory.display().to_string();
    let mut paths = Vec::new();
    for entry in fs::read_dir(&directory).with_context(name)? {
        paths.push(entry.with_context(name)?.path());
    }
    paths.sort_unstable();
    paths.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
}

fn read(path: &Path) -> anyhow::Result<Script> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        bail!("is not a regular file: all that lies here is signed");
    }
    if metadata.len() > MAX_SCRIPT as u64 {
        bail!("has {} bytes, at most {MAX_SCRIPT} are allowed", metadata.len());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let script = Script { name, text: fs::read_to_string(path)? };
    script.check()?;
    Ok(script)
}
