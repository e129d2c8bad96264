//! `kubectl patchwarden doctor`: whether everything is there that Patchwarden and this plugin need. It reads what it may, and says what it
//! could not look at. Nothing is written.

mod clock;
mod definitions;
mod installation;
mod rights;
mod roles;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::Style;
use clap::Args;
use kube::Client;
use serde::Serialize;

use super::{Format, screen};

/// Exit codes: somebody should look, somebody must act.
const WARNINGS: u8 = 1;
const ERRORS: u8 = 2;

/// Where what was found begins.
const INDENT: usize = 21;

/// Flags of `doctor`. Exits with 0 if all is well, with 1 if somebody should look at something, and with 2 if something does not work.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Namespace of a client: what the plugin's commands may do there, and what is stalled in it. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// What the plugin's commands may do, and what is stalled, in all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Patchwarden's own namespace.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Where it looks.
struct Scope {
    namespace: Option<String>,
    own: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Level {
    Ok,
    Warning,
    Error,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    level: Level,
    check: &'static str,
    what: String,
    /// What to do; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, what: what.into(), action: None }
    }

    fn warning(check: &'static str, what: impl Into<String>, action: impl Into<String>) -> Self {
        Self { level: Level::Warning, check, what: what.into(), action: Some(action.into()) }
    }

    fn error(check: &'static str, what: impl Into<String>, action: impl Into<String>) -> Self {
        Self { level: Level::Error, check, what: what.into(), action: Some(action.into()) }
    }

    /// What could not be looked at.
    fn unseen(check: &'static str, what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::warning(
                check,
                format!("you may not look at {what}: {}", status.message),
                "ask somebody who may, or for the right to read it",
            ),
            _ => Self::error(check, format!("{what}: {error}"), "see whether the API server is well"),
        }
    }
}

/// Looks.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { namespace, all_namespaces, patchwarden_namespace: own, output } = arguments;
    let namespace = (!all_namespaces).then(|| namespace.unwrap_or_else(|| client.default_namespace().to_owned()));
    let scope = Scope { namespace, own };
    let (mut findings, time) = clock::check(client).await?;
    findings.extend(definitions::check(client).await);
    findings.extend(installation::programs(client, &scope, time).await);
    findings.extend(installation::trust(client, &scope).await);
    findings.extend(roles::check(client, &scope).await?);
    findings.extend(installation::admission(client).await?);
    findings.extend(installation::stalled(client, &scope).await);
    findings.extend(rights::check(client, &scope).await?);
    match output {
        Format::Json => screen::print(&format!("{}\n", serde_json::to_string_pretty(&findings)?))?,
        Format::Text => screen::print(&text(&findings))?,
    }
    Ok(exit_code(&findings))
}

fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().map(|finding| finding.level).max() {
        None | Some(Level::Ok) => ExitCode::SUCCESS,
        Some(Level::Warning) => ExitCode::from(WARNINGS),
        Some(Level::Error) => ExitCode::from(ERRORS),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { level, check, what, action } in findings {
        let (style, word) = words(*level);
        let what = screen::wrapped(&screen::safe(what), INDENT);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {check:<12} {what}", screen::styled(style, &format!("{word:<7}")));
        if let Some(action) = action {
            let action = screen::wrapped(&screen::safe(action), INDENT + 3);
            let _ = writeln!(text, "{:INDENT$}-> {action}", "");
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let (style, _) = words(findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok));
    let _ = writeln!(text, "\n{}", screen::styled(style, &format!("{errors} errors, {warnings} warnings")));
    text
}

fn words(level: Level) -> (Style, &'static str) {
    match level {
        Level::Ok => (screen::GOOD, "ok"),
        Level::Warning => (screen::WARNING, "warning"),
        Level::Error => (screen::BAD, "error"),
    }
}
