//! Scripts of a publisher: what an order may name beside what lies on the device.
//!
//! An order names a script and carries none. One that comes with a catalogue is run only on a device that names its publisher
//! for scripts, and not for recipes alone: a recipe is confined, a script does whatever root can.

use serde::{Deserialize, Serialize};

use super::check::{Checked, require};
use crate::safeguards::is_script_name;

/// At most so many scripts.
pub const MAX_SCRIPTS: usize = 64;

/// The longest script, in bytes.
pub const MAX_SCRIPT: usize = 64 << 10;

/// One script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Script {
    /// By which orders name it.
    pub name: String,
    /// All of it, as it is run: its first line names the interpreter.
    pub text: String,
}

impl Script {
    /// Whether every field is within its limits.
    pub fn check(&self) -> Result<(), super::Wrong> {
        check(self)
    }
}

pub(super) fn check(script: &Script) -> Checked {
    let Script { name, text } = script;
    require(
        is_script_name(name),
        "name",
        "must be 1 to 63 letters, digits and any of `-_.`, and begin with a letter or digit",
    )?;
    require(text.len() <= MAX_SCRIPT, "text", format!("has {} bytes, at most {MAX_SCRIPT} are allowed", text.len()))?;
    // execve(2): the kernel reads the interpreter's path, which is absolute for root, up to the line's end.
    let first = text.lines().next().unwrap_or_default();
    require(
        first.strip_prefix("#!").is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with('/')),
        "text",
        "must begin with the line of an interpreter, such as `#!/bin/sh`",
    )?;
    let is_odd = |c: char| c == '\0' || c == '\r';
    require(!text.contains(is_odd), "text", "must not contain zeros nor carriage returns: save it with plain line ends")
}
