//! What can be seen on the machine itself.

use std::path::Path;

use jiff::Timestamp;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::recipes::Catalogue;
use patchwarden_protocol::report::Problem;
use patchwarden_protocol::settings::OsUpdater;
use patchwarden_protocol::surroundings::UpdaterChoice;

use super::Finding;
use crate::config::{Config, ConfigError};
use crate::identity::{Identity, IdentityError};
use crate::journal::{Journal, JournalError};
use crate::limits::{self, Limits};
use crate::provider::{Native, Previews, Provider as _, megabytes};
use crate::shelf::Shelf;
use crate::updater::Updater;
use crate::{agent, files, platform};

const JOIN: &str = "run the join command that `kubectl patchwarden enroll` prints";

/// Less is a problem, and less a warning.
const LITTLE: u64 = 100_000_000;
const TIGHT: u64 = 1_000_000_000;

pub(super) fn configuration(path: &Path) -> (Option<Config>, Finding) {
    let name = "configuration";
    let check = || files::check_owner(path, &path.metadata().map_err(|error| error.to_string())?);
    let finding = |config: &Config| match check() {
        // restart_command is run by root.
        Err(why) => {
            Finding::problem(name, format!("{}: {why}", path.display()), "see to it that root alone can write it")
        }
        Ok(()) => Finding::ok(name, format!("{}: {} at {}", path.display(), config.device, config.gateway)),
    };
    match Config::load(path) {
        Ok(config) => {
            let finding = finding(&config);
            (Some(config), finding)
        }
        Err(error @ ConfigError::Missing(_)) => (None, Finding::problem(name, error.to_string(), JOIN)),
        Err(error) => (None, Finding::problem(name, error.to_string(), "correct the file")),
    }
}

pub(super) fn limits(config: &Path) -> Finding {
    let path = limits::beside(config);
    match Limits::load(&path) {
        Err(error) => Finding::problem("limits", error.to_string(), "until it is corrected no order is carried out"),
        Ok(limits) if limits.is_none() => Finding::ok("limits", "nothing is limited"),
        Ok(limits) => match limits.check(Verb::Install, platform::now()) {
            Ok(()) => Finding::ok("limits", format!("{} is in force", path.display())),
            Err(failure) => Finding::warning("limits", format!("no install begins: {failure}"), ""),
        },
    }
}

pub(super) fn identity(state: &Path) -> (Option<Identity>, Finding) {
    let name = "identity";
    match Identity::load(state) {
        Err(error @ IdentityError::Missing(_)) => (None, Finding::problem(name, error.to_string(), JOIN)),
        Err(error) => (None, Finding::problem(name, error.to_string(), "join again, with --force for another key")),
        Ok(identity) => {
            let finding = match identity.validity() {
                Err(why) => Finding::problem(name, format!("certificate.pem: {why}"), JOIN),
                Ok(validity) => certificate(validity.from, validity.until, platform::now()),
            };
            (Some(identity), finding)
        }
    }
}

fn certificate(from: Timestamp, until: Timestamp, now: Timestamp) -> Finding {
    let name = "identity";
    let running = "see to it that the agent runs and reaches the gateway: it renews its certificate by itself";
    if now < from {
        let message = format!("the certificate is valid from {from} on, and it is {now}");
        return Finding::problem(name, message, "set the clock");
    }
    if now >= until {
        return Finding::problem(name, format!("the certificate has expired at {until}"), running);
    }
    // It is renewed from half its life on.
    let (left, life) = (until.duration_since(now).as_secs(), until.duration_since(from).as_secs());
    if left < life / 4 {
        return Finding::warning(name, format!("the certificate ends at {until} and is not renewed yet"), running);
    }
    Finding::ok(name, format!("the certificate is valid until {until}"))
}

pub(super) fn agent(state: &Path) -> Finding {
    match agent::is_running(state) {
        Ok(true) => Finding::ok("agent", "runs"),
        Ok(false) => Finding::problem("agent", "does not run", platform::START_ADVICE),
        Err(error) => Finding::problem("agent", format!("{}: {error}", state.display()), "run this as root"),
    }
}

/// Nothing where the machine takes no recipes.
pub(super) fn recipes(config: &Config, state: &Path) -> Option<Finding> {
    let name = "recipes";
    let advice = "docs/recipes.md: the publisher has to sign newer ones, and the gateway to be given them";
    let shelf = Shelf::new(state, config.recipe_publishers.clone());
    shelf.digest()?;
    Some(match shelf.load(platform::now()) {
        Ok(Some(Catalogue { publisher, serial, expires, recipes, scripts, .. })) => {
            let scripts = match (scripts.len(), config.script_publishers.is_empty()) {
                (0, _) => String::new(),
                (number, true) => format!(" and {number} scripts, which script_publishers does not allow,"),
                (number, false) => format!(" and {number} scripts"),
            };
            Finding::ok(name, format!("{}{scripts} of {publisher}, serial {serial}, until {expires}", recipes.len()))
        }
        Ok(None) => Finding::warning(name, "the gateway has brought none yet", advice),
        Err(error) => Finding::warning(name, error.to_string(), advice),
    })
}

pub(super) async fn packages(previews: Previews) -> Vec<Finding> {
    let name = "packages";
    let provider = match Native::detect(previews) {
        Ok(provider) => provider,
        Err(failure) => return vec![Finding::problem(name, failure.message, "docs/agent.md lists what is supported")],
    };
    let broken = platform::REPAIR_ADVICE;
    // As a report would say it, by what is known of the repositories already.
    let found = match provider.scan(false).await {
        Ok(inventory) if inventory.problems.is_empty() => vec![Finding::ok(
            name,
            format!(
                "{} is well: {} packages, {} updates",
                provider.name(),
                inventory.packages.len(),
                inventory.updates.len()
            ),
        )],
        Ok(inventory) => {
            let problem =
                |problem: &Problem| Finding::problem(name, format!("{}: {}", provider.name(), problem.message), broken);
            inventory.problems.iter().map(problem).collect()
        }
        Err(failure) => vec![Finding::problem(name, failure.message, broken)],
    };
    let lock = match provider.is_busy() {
        Ok(false) => None,
        Ok(true) => {
            Some(Finding::warning(name, "another program uses the package manager now", "orders wait for its end"))
        }
        Err(failure) => Some(Finding::problem(name, failure.message, "run this as root")),
    };
    found.into_iter().chain(lock).collect()
}

pub(super) fn space(state: &Path) -> Vec<Finding> {
    let name = "free space";
    let (root, boot) = (platform::root(), platform::BOOT.map(Path::new));
    let mut seen = Vec::new();
    let mut findings = Vec::new();
    for path in [root.as_path(), state].into_iter().chain(boot) {
        match platform::free_space(path) {
            Ok(free) if seen.contains(&free.device) => {}
            Ok(free) => {
                seen.push(free.device);
                let message = format!("{} has {}", path.display(), megabytes(free.bytes));
                // A file system of its own for kernels alone is never large.
                let tight = if Some(path) == boot { LITTLE } else { TIGHT };
                findings.push(if free.bytes < LITTLE {
                    Finding::problem(name, message, "updates need more than that: remove something")
                } else if free.bytes < tight {
                    Finding::warning(name, message, "large updates may need more than that")
                } else {
                    Finding::ok(name, message)
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => findings.push(Finding::warning(name, format!("{}: {error}", path.display()), "")),
        }
    }
    findings
}

pub(super) fn journal(state: &Path) -> Finding {
    let name = "journal";
    match Journal::read(&state.join(agent::JOURNAL)) {
        Ok(history) => {
            let (outcomes, unsent) = (history.outcomes.len(), history.unrecorded().count());
            let active = history.active.as_ref().map(|active| active.accepted.order.sequence);
            let at_work = active.map_or_else(String::new, |sequence| format!(", order {sequence} is at work"));
            let waits = if unsent > 0 { format!(", {unsent} results wait for the gateway") } else { String::new() };
            Finding::ok(name, format!("{outcomes} orders are remembered{at_work}{waits}"))
        }
        Err(error @ JournalError::Corrupt { .. }) => {
            Finding::problem(name, error.to_string(), "no order is carried out until a person has looked")
        }
        Err(error) => Finding::problem(name, error.to_string(), ""),
    }
}

pub(super) fn restart(config: &Config) -> Finding {
    match platform::restart::command(config) {
        Ok(command) => {
            let words: Vec<_> = command.words.iter().map(|word| word.to_string_lossy()).collect();
            Finding::ok("restart", format!("by `{}`", words.join(" ")))
        }
        Err(why) => Finding::warning("restart", why, "until then it is restarted by hand"),
    }
}

pub(super) fn updater(config: &Config, config_path: &Path, identity: Option<&Identity>, state: &Path) -> Finding {
    let name = "os updater";
    let found = match Updater::new(state).state() {
        Ok(found) => found,
        Err(error) => return Finding::problem(name, error.to_string(), ""),
    };
    let limits = Limits::load(&limits::beside(config_path));
    let ruling = agent::ruling(config, &limits, identity, state, platform::now());
    let note = if ruling.note.is_empty() { String::new() } else { format!(": {}", ruling.note) };
    let starts = "it is done when the agent starts";
    match (ruling.choice, found.off.is_empty()) {
        _ if !found.remarks.is_empty() => Finding::warning(name, found.remarks.join("; "), "it may install by itself"),
        _ if found.is_unfinished => Finding::warning(name, "is not switched off or given back completely", starts),
        (_, true) if ruling.by == UpdaterChoice::NoContact => {
            Finding::warning(name, "was given back: the gateway was not heard of for 30 days", "see `gateway`")
        }
        (None, _) => Finding::warning(name, "stays as it is: see `limits`", ""),
        (Some(OsUpdater::Leave), true) => Finding::ok(name, format!("is left to itself{note}")),
        (Some(OsUpdater::Leave), false) => Finding::warning(name, "is off and is to be left to itself", starts),
        (Some(OsUpdater::Disable), false) => Finding::ok(name, format!("is switched off{note}")),
        (Some(OsUpdater::Disable), true) => {
            Finding::ok(name, "there is none to switch off, or the agent has not started yet")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_certificate_that_was_not_renewed_in_time_is_told_before_it_ends() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let of = |now| certificate(at(100), at(140), at(now)).health;
        assert_eq!(
            [99, 100, 129, 130, 131, 139, 140].map(of),
            [Health::Problem, Health::Ok, Health::Ok, Health::Ok, Health::Warning, Health::Warning, Health::Problem]
        );
    }

    #[test]
    fn a_machine_that_has_not_joined_says_how() {
        let nowhere = tempfile::tempdir().unwrap();
        let (config, finding) = configuration(&nowhere.path().join("agent.toml"));
        assert!(config.is_none() && finding.health == Health::Problem && finding.advice == JOIN, "{finding:?}");
        let (identity, finding) = identity(nowhere.path());
        assert!(identity.is_none() && finding.health == Health::Problem && finding.advice == JOIN, "{finding:?}");
    }
}
