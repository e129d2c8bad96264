//! Which script an order means by a name.
//!
//! The device's own in `hooks.d` wins. Only where nothing has the name there, one counts that a publisher has signed whom `agent.toml`
//! names in `script_publishers`: as the catalogue has it that is valid at this moment. It is written anew each time before it is run,
//! in the order's own directory, which goes with the order: what was withdrawn is not run again.

use std::path::PathBuf;

use patchwarden_protocol::recipes::Script;

use super::{Execution, script};
use crate::agent::order_directory;
use crate::files;
use crate::platform::{self, NoScript};
use crate::provider::{CommandLine, Environment, Provider};

/// Below an order's directory. Root alone enters.
const DIRECTORY: &str = "scripts";

impl<P: Provider> Execution<'_, P> {
    /// The command that runs the script `name` for at most so many `seconds`; or why it cannot be run, and where it was looked for.
    pub(super) fn script(&self, name: &str, seconds: u32, more: Environment) -> Result<CommandLine, String> {
        let path = match platform::find_script(name) {
            Ok(path) => path,
            Err(NoScript::Refused(why)) => return Err(why),
            Err(NoScript::Absent(why)) => {
                self.publishers_script(name).map_err(|and| format!("{why}; script {name}: {and}"))?
            }
        };
        Ok(script::command(path, seconds, more))
    }

    fn publishers_script(&self, name: &str) -> Result<PathBuf, String> {
        let script = self.agent.shelf.script(name, platform::now()).map_err(|why| why.to_string())?;
        let limits = self.agent.limits().map_err(|why| why.to_string())?;
        limits.check_script(name).map_err(|failure| failure.message)?;
        let directory = order_directory(&self.agent.state, self.order().sequence).join(DIRECTORY);
        write(&directory, &script)
    }
}

/// Writes it, and reads it again: what is run is what was signed.
fn write(directory: &std::path::Path, script: &Script) -> Result<PathBuf, String> {
    let path = directory.join(&script.name);
    let io = |error: std::io::Error| format!("{}: {error}", path.display());
    files::remove_tree(directory).map_err(io)?;
    files::ensure_directory(directory, files::SECLUDED).map_err(io)?;
    files::write_atomic(&path, script.text.as_bytes(), files::SECLUDED).map_err(io)?;
    let (found, signed) = (files::sha256_of(&path).map_err(io)?, files::sha256(script.text.as_bytes()));
    if found != signed {
        return Err(format!("{} has SHA-256 {found}, the signed one {signed}", path.display()));
    }
    Ok(path)
}
