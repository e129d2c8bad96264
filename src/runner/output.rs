//! What `kubectl logs job/...` shows.

use std::collections::VecDeque;
use std::io::{self, Write as _};

use jiff::Timestamp;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason, Step};
use patchwarden_protocol::runner_v1::Progress;
use serde_json::json;

use super::Config;
use crate::shell::{self, LogFormat};
use crate::telemetry::ids::TraceId;

/// Lines remembered so that a gateway that tells them again after a reconnect is not printed twice; it keeps 200.
const REMEMBERED: usize = 400;

/// Standard output.
#[derive(Debug)]
pub struct Output {
    printed: VecDeque<String>,
    format: LogFormat,
    /// The install's trace, in lines of JSON.
    trace: Option<TraceId>,
}

impl Output {
    /// As the pod is told.
    pub fn new(config: &Config) -> Self {
        let trace = config.trace.map(|context| context.trace);
        Self { printed: VecDeque::new(), format: config.format, trace }
    }

    /// One line of progress, once.
    pub fn progress(&mut self, progress: &Progress) -> io::Result<()> {
        let line = match self.format {
            LogFormat::Text => progress_line(progress),
            LogFormat::Json => self.json(&plain(&progress.time), &plain(&progress.phase), &plain(&progress.text)),
        };
        if self.printed.contains(&line) {
            return Ok(());
        }
        print(&line)?;
        if self.printed.len() == REMEMBERED {
            self.printed.pop_front();
        }
        self.printed.push_back(line);
        Ok(())
    }

    /// The runner's own words.
    pub fn note(&self, text: &str) -> io::Result<()> {
        let time = shell::now();
        let time = Timestamp::from_second(time.as_second()).unwrap_or(time);
        match self.format {
            LogFormat::Text => print(&format!("{time} {:<12} {}", "Runner", plain(text))),
            LogFormat::Json => print(&self.json(&time.to_string(), "Runner", &plain(text))),
        }
    }

    /// How it ended, with a line for each update.
    pub fn summary(&self, result: &InstallResult) -> io::Result<()> {
        let lines = summary_lines(result);
        match self.format {
            LogFormat::Text => lines.iter().try_for_each(|line| print(line)),
            LogFormat::Json => {
                let time = result.finished_at.to_string();
                lines.iter().try_for_each(|line| print(&self.json(&time, "Result", line.trim())))
            }
        }
    }

    /// One line, with the fields that the other programs' lines have.
    fn json(&self, time: &str, phase: &str, message: &str) -> String {
        let mut line = json!({"timestamp": time, "level": "INFO", "phase": phase, "message": message});
        if let Some(trace) = self.trace {
            line["trace_id"] = trace.to_string().into();
        }
        line.to_string()
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn progress_line(progress: &Progress) -> String {
    let Progress { time, phase, text } = progress;
    format!("{} {:<12} {}", plain(time), plain(phase), plain(text)).trim_end().to_owned()
}

fn summary_lines(result: &InstallResult) -> Vec<String> {
    let outcome = match result.outcome {
        Outcome::Succeeded => "Succeeded",
        Outcome::Failed => "Failed",
        Outcome::Refused => "Refused: the device did nothing",
        Outcome::Withdrawn => "Withdrawn: the device did nothing",
        Outcome::Expired => "Expired: the device did nothing",
    };
    let head = format!("{outcome} (order {} of {})", result.sequence, result.device);
    let mut lines = vec![head + &because(result.reason, &result.message)];
    lines.extend(result.actions.iter().map(|action| {
        let ActionResult { update, verb, done, reason, message } = action;
        let word = match (verb, done) {
            (Verb::Install, true) => "installed",
            (Verb::Install, false) => "not installed",
            (Verb::Download, true) => "downloaded",
            (Verb::Download, false) => "not downloaded",
            (Verb::Uninstall, true) => "taken back",
            (Verb::Uninstall, false) => "not taken back",
            (Verb::Restart, true) => "done",
            (Verb::Restart, false) => "not done",
        };
        format!("  {word:<14} {}{}", plain(update), because(*reason, message))
    }));
    lines.extend(result.steps.iter().map(|step| {
        let what = match step.step {
            Step::CheckBefore => "check before",
            Step::HookBefore => "hook before",
            Step::HookAfter => "hook after",
            Step::ServiceRestart => "restart of",
            Step::CheckAfter => "check after",
            Step::Rollback => "rollback of",
            Step::ServiceRolledBack => "after the rollback, restart of",
            Step::CheckRolledBack => "check after the rollback",
        };
        let came = if step.ok { "succeeded" } else { "failed" };
        let said = if step.message.is_empty() { String::new() } else { format!(": {}", plain(&step.message)) };
        format!("  {what} {} {came}{said}", plain(&step.name))
    }));
    if result.restarts > 0 {
        lines.push(format!("  the machine was restarted (times: {})", result.restarts));
    }
    if !result.restart_postponed.is_empty() {
        lines.push(format!("  a restart was postponed: {}", plain(&result.restart_postponed)));
    }
    match result.restart_required {
        Tristate::Yes => lines.push("  the machine waits for a restart".into()),
        Tristate::Unknown => lines.push("  whether the machine waits for a restart is not known".into()),
        Tristate::No => {}
    }
    lines
}

fn because(reason: Option<ResultReason>, message: &str) -> String {
    let reason = reason.map(|reason| format!(": {reason:?}")).unwrap_or_default();
    if message.is_empty() { reason } else { format!("{reason}: {}", plain(message)) }
}

/// Without control characters: what a device says must not drive a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::Fingerprint;
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::DeviceRef;
    use patchwarden_protocol::result::StepResult;

    use super::*;

    #[test]
    fn a_line_has_time_phase_and_text() {
        let progress = Progress {
            time: "2026-11-24T10:00:01Z".into(),
            phase: "Installing".into(),
            text: "openssl 3.0.16-1 -> 3.0.17-1~deb12u3\u{1b}[2J".into(),
        };
        let expected = "2026-11-24T10:00:01Z Installing   openssl 3.0.16-1 -> 3.0.17-1~deb12u3 [2J";
        assert_eq!(progress_line(&progress), expected);
    }

    #[test]
    fn a_line_of_json_has_the_fields_of_other_logs_and_the_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736".parse().ok();
        let output = Output { printed: VecDeque::new(), format: LogFormat::Json, trace };
        let line: serde_json::Value = serde_json::from_str(&output.json("t", "Installing", "say \"x\"\n")).unwrap();
        let expected = json!({"timestamp": "t", "level": "INFO", "phase": "Installing", "message": "say \"x\"\n",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"});
        assert_eq!(line, expected);
        let nameless = Output { trace: None, ..output };
        assert!(!nameless.json("t", "Runner", "x").contains("trace_id"));
    }

    #[test]
    fn the_summary_names_every_update() {
        let action = |update: &str, reason: Option<ResultReason>| ActionResult {
            update: update.into(),
            verb: Verb::Install,
            done: reason.is_none(),
            reason,
            message: String::new(),
        };
        let result = InstallResult {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            device_key: Fingerprint::of(b"k"),
            sequence: Sequence { epoch: 1, number: 4 },
            order_digest: "sha256:1".into(),
            outcome: Outcome::Failed,
            reason: Some(ResultReason::PackageManagerFailed),
            message: "1 of 2".into(),
            actions: vec![action("DSA-1", None), action("DSA-2", Some(ResultReason::DiskFull))],
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            restart_required: Tristate::Yes,
            restarts: 0,
            restart_postponed: String::new(),
            phases: vec![],
            steps: vec![StepResult {
                step: Step::CheckAfter,
                name: "web".into(),
                ok: false,
                message: "port 80:\nconnection refused".into(),
            }],
        };
        assert_eq!(
            summary_lines(&result),
            [
                "Failed (order 1-4 of acme/web): PackageManagerFailed: 1 of 2",
                "  installed      DSA-1",
                "  not installed  DSA-2: DiskFull",
                "  check after web failed: port 80: connection refused",
                "  the machine waits for a restart",
            ]
        );
    }
}
