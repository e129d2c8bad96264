//! `patchwarden-agent doctor`: whether this machine can be patched, and what a person has to do.
//!
//! It looks and changes nothing, beside an agent that runs as well as without one. It opens no session: that would end the
//! one that is open.

mod gateway;
mod local;

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::config::Config;

/// How something stands, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// Nothing can be installed.
    Problem,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    health: Health,
    /// How it is.
    message: String,
    /// What to do, if anything.
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'static str,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, health: Health::Ok, message: message.into(), advice: "" }
    }

    fn warning(check: &'static str, message: impl Into<String>, advice: &'static str) -> Self {
        Self { check, health: Health::Warning, message: message.into(), advice }
    }

    fn problem(check: &'static str, message: impl Into<String>, advice: &'static str) -> Self {
        Self { check, health: Health::Problem, message: message.into(), advice }
    }
}

/// Checks everything and prints one line for each check, or JSON. The exit code is 0, or 1 with a warning, or 2 with a
/// problem.
pub(crate) async fn examine(config: &Path, state: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let findings = all(config, state).await;
    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            println!("{}", line(finding));
        }
    }
    let worst = findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Ok);
    Ok(ExitCode::from(code(worst)))
}

async fn all(config_path: &Path, state: &Path) -> Vec<Finding> {
    let (config, finding) = local::configuration(config_path);
    let mut findings = vec![finding, local::limits(config_path)];
    let (identity, finding) = local::identity(state);
    findings.push(finding);
    findings.push(local::agent(state));
    findings.extend(match (&config, &identity) {
        (Some(config), Some(identity)) => gateway::check(config, identity).await,
        _ => Vec::new(),
    });
    findings.extend(local::packages(config.as_ref().map(Config::previews).unwrap_or_default()).await);
    findings.extend(config.as_ref().and_then(|config| local::recipes(config, state)));
    findings.extend(local::space(state));
    findings.push(local::journal(state));
    findings.extend(config.as_ref().map(local::restart));
    findings.extend(config.as_ref().map(|config| local::updater(config, config_path, identity.as_ref(), state)));
    findings
}

/// `warning  clock          it is 40 s behind: set up NTP`.
fn line(finding: &Finding) -> String {
    let Finding { check, health, message, advice } = finding;
    let word = match health {
        Health::Ok => "ok",
        Health::Warning => "warning",
        Health::Problem => "problem",
    };
    // Package managers and toml say things in several lines.
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let advice = if advice.is_empty() { String::new() } else { format!(" -> {advice}") };
    format!("{word:<8} {check:<15} {message}{advice}")
}

fn code(worst: Health) -> u8 {
    match worst {
        Health::Ok => 0,
        Health::Warning => 1,
        Health::Problem => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let warning = Finding::warning("clock", "is 40 s\n  behind", "set up NTP");
        assert_eq!(line(&warning), "warning  clock           is 40 s behind -> set up NTP");
        assert_eq!(line(&Finding::ok("journal", "12 orders")), "ok       journal         12 orders");
    }

    #[test]
    fn the_worst_finding_is_the_exit_code() {
        assert_eq!([Health::Ok, Health::Warning, Health::Problem].map(code), [0, 1, 2]);
        assert!(Health::Ok < Health::Warning && Health::Warning < Health::Problem);
    }
}
