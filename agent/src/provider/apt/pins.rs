//! Packages that apt_preferences(5) keep at an earlier version.
//!
//! `apt-cache policy` lists the packages that have a pin of their own. What apt would bring of these if there were no
//! preferences, and does not bring with them, is kept back. Pins of whole releases are no hold: who has another release's
//! source at a low priority does not wait for what it offers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::commands::{checked, line, simulate};
use super::parse::Row;
use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, broken};
use crate::provider::{Change, Failure, words};

/// Where apt has them unless it is configured otherwise.
const FILE: &str = "/etc/apt/preferences";
const DIRECTORY: &str = "/etc/apt/preferences.d";

/// How the list of pinned packages begins.
const PINNED: &str = "Pinned packages:";

/// What apt would bring of the pinned packages without any preferences. Where there are none nothing is run.
pub(super) async fn pinned_changes(rows: &[Row]) -> Result<Vec<Change>, Failure> {
    if !has_preferences()? {
        return Ok(Vec::new());
    }
    let policy = checked(run(&line("/usr/bin/apt-cache", ["policy"]), LOCAL_LIMIT).await?)?;
    let pinned = pinned(&policy);
    let names: Vec<&Row> =
        rows.iter().filter(|row| row.is_present() && row.held().is_none() && pinned.contains(row.name())).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut arguments = words([
        "-o",
        "Dir::Etc::Preferences=/dev/null",
        "-o",
        "Dir::Etc::PreferencesParts=/dev/null",
        "install",
        "--only-upgrade",
    ]);
    arguments.extend(names.iter().map(|row| OsString::from(row.qualified())));
    let mut changes = simulate(&arguments).await?.changes;
    changes.retain(|change| pinned.contains(change.name.as_str()));
    Ok(changes)
}

fn has_preferences() -> Result<bool, Failure> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(broken(format!("{DIRECTORY}: {error}"))),
    };
    Ok(entries || Path::new(FILE).exists())
}

/// The names in the list of pinned packages, `     NAME -> VERSION with priority NUMBER`, without the `:arch` that apt adds for
/// foreign architectures.
fn pinned(policy: &str) -> BTreeSet<&str> {
    let lines = policy.lines().skip_while(|line| *line != PINNED).skip(1).take_while(|line| line.starts_with(' '));
    let names = lines.filter_map(|line| line.split_once(" -> ")).map(|(name, _)| name.trim());
    names.map(|name| name.split(':').next().unwrap_or(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_with_a_pin_of_their_own_are_listed() {
        let files = "Package files:\n 100 /var/lib/dpkg/status\n     release a=now\n";
        let policy =
            format!("{files}{PINNED}\n     pw-a -> 1.0 with priority 1001\n     x:i386 -> 2 with priority -1\n");
        assert_eq!(pinned(&policy), BTreeSet::from(["pw-a", "x"]));
        assert_eq!(pinned(&format!("{files}{PINNED}\n")), BTreeSet::new());
        assert_eq!(pinned(files), BTreeSet::new());
    }
}
