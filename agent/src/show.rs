//! What is printed for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use patchwarden_protocol::changes::Run;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::OutdatedServices;
use patchwarden_protocol::result::{InstallResult, Step};
use patchwarden_protocol::settings::OsUpdater;
use patchwarden_protocol::surroundings::UpdaterChoice;

use crate::changes::{By, Change, Changed};
use crate::updater::{Ruling, State};

/// Orders as a table, one line each, and below it why it did not succeed.
pub(crate) fn history(results: &[InstallResult]) -> String {
    if results.is_empty() {
        return "no orders yet\n".to_owned();
    }
    let head = ["ORDER", "FINISHED", "TOOK", "WHAT", "OUTCOME", "DONE", "RESTARTS"];
    let lines = table(head, &results.iter().map(row).collect::<Vec<_>>());
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        text.push_str(line);
        text.push('\n');
        for why in index.checked_sub(1).map(|index| reasons(&results[index])).unwrap_or_default() {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "    {why}");
        }
    }
    text
}

/// Changed packages as a table, one line each.
pub(crate) fn changes(all: &[Changed]) -> String {
    let rows: Vec<[String; 5]> =
        all.iter().flat_map(|changed| changed.packages.iter().map(|one| of(changed, one))).collect();
    if rows.is_empty() {
        return "no changes yet\n".to_owned();
    }
    table(["FOUND", "PACKAGE", "BEFORE", "AFTER", "BY"], &rows).iter().flat_map(|line| [line, "\n"]).collect()
}

fn of(changed: &Changed, change: &Change) -> [String; 5] {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
    let package = format!("{}:{}", change.name, change.arch);
    let by = match (change.by, &changed.run) {
        (By::SomebodyElse, Some(run)) => somebody(run),
        (by, _) => by.to_string(),
    };
    [clock(changed.found_at), package, version(&change.before), version(&change.after), by]
}

/// `alice (1000): apt install x`, or the package manager alone.
fn somebody(run: &Run) -> String {
    let words = [run.user.as_str(), run.command.as_str()];
    let said: Vec<&str> = words.into_iter().filter(|text| !text.is_empty()).collect();
    if said.is_empty() { format!("somebody else, with {}", run.told_by) } else { said.join(": ") }
}

/// The lines of a table, the first of which is its head.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let head = head.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&head).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(rows).map(line).collect()
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The operating system's own updater in a few words.
pub(crate) fn updater(state: &State, ruling: &Ruling) -> String {
    let State { off, remarks, is_unfinished } = state;
    let how = if off.is_empty() { "left to itself" } else { "switched off" };
    let whose = match ruling.by {
        UpdaterChoice::Policy => "its policy says",
        UpdaterChoice::Owner => "agent.toml says",
        UpdaterChoice::Limits => "limits.toml says",
        UpdaterChoice::Nobody | UpdaterChoice::NoContact | UpdaterChoice::Unsupported => "",
    };
    let is_as_ruled = ruling.choice.is_none_or(|choice| (choice == OsUpdater::Leave) == off.is_empty());
    let mut words = vec![match (whose, is_as_ruled) {
        ("", _) => how.to_owned(),
        (whose, true) => format!("{how}, as {whose}"),
        (whose, false) => format!("{how}, not yet as {whose}"),
    }];
    if !ruling.note.is_empty() {
        words.push(ruling.note.clone());
    }
    if *is_unfinished {
        words.push("not completed".to_owned());
    }
    words.extend(remarks.iter().cloned());
    words.join("; ")
}

/// Services that still run what was replaced, in a few words.
pub(crate) fn services(told: Option<&OutdatedServices>) -> String {
    let Some(OutdatedServices { count, names, partial }) = told else {
        return "it is not known which run what was replaced".to_owned();
    };
    let what = match count {
        0 => "none runs what was replaced".to_owned(),
        count => format!("{count} still run what was replaced: {}", names.join(", ")),
    };
    let more = if (*count as usize) > names.len() { ", ..." } else { "" };
    let partial = if *partial { "; not every process could be looked at" } else { "" };
    format!("{what}{more}{partial}")
}

fn row(result: &InstallResult) -> [String; 7] {
    let done = result.actions.iter().filter(|action| action.done).count();
    let took = result.finished_at.duration_since(result.started_at).as_secs().max(0);
    [
        result.sequence.to_string(),
        clock(result.finished_at),
        format!("{}:{:02} min", took / 60, took % 60),
        result.actions.first().map_or_else(|| "-".to_owned(), |action| verb(action.verb).to_owned()),
        format!("{:?}", result.outcome),
        if result.actions.is_empty() { "-".to_owned() } else { format!("{done} of {}", result.actions.len()) },
        result.restarts.to_string(),
    ]
}

fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Install => "install",
        Verb::Download => "download",
        Verb::Uninstall => "take back",
        Verb::Restart => "restart",
    }
}

/// Why not all of it was done.
fn reasons(result: &InstallResult) -> Vec<String> {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let reason = |reason: Option<_>, message: &str| match reason {
        Some(reason) => format!("{reason:?}: {}", one_line(message)),
        None => one_line(message),
    };
    let failed = result.actions.iter().filter(|action| !action.done);
    let mut all: Vec<String> =
        failed.map(|action| format!("{}: {}", action.update, reason(action.reason, &action.message))).collect();
    if all.is_empty() && result.reason.is_some() {
        all.push(reason(result.reason, &result.message));
    }
    if !result.restart_postponed.is_empty() {
        all.push(format!("not restarted: {}", one_line(&result.restart_postponed)));
    }
    let services = result.steps.iter().filter(|step| is_of_service(step.step) && !step.ok);
    all.extend(services.map(|step| format!("restart of {}: {}", step.name, one_line(&step.message))));
    all
}

fn is_of_service(step: Step) -> bool {
    matches!(step, Step::ServiceRestart | Step::ServiceRolledBack)
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::Fingerprint;
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::{DeviceRef, Tristate};
    use patchwarden_protocol::result::{ActionResult, Outcome, ResultReason, StepResult};

    use super::*;
    use crate::changes::tests::change;

    #[test]
    fn an_order_is_a_line_and_what_went_wrong_stands_below() {
        let action = |update: &str, reason: Option<ResultReason>| ActionResult {
            update: update.into(),
            verb: Verb::Install,
            done: reason.is_none(),
            reason,
            message: "a\n  b".into(),
        };
        let good = InstallResult {
            device: DeviceRef { namespace: "acme".into(), name: "web-1".into() },
            device_key: Fingerprint::of(b"x"),
            sequence: Sequence { epoch: 1, number: 9 },
            order_digest: String::new(),
            outcome: Outcome::Succeeded,
            reason: None,
            message: String::new(),
            actions: vec![action("DSA-1", None)],
            started_at: "2026-11-27T01:00:00Z".parse().unwrap(),
            finished_at: "2026-11-27T01:02:05Z".parse().unwrap(),
            restart_required: Tristate::Yes,
            restarts: 0,
            restart_postponed: "Suspended: by hand".into(),
            steps: vec![],
            phases: vec![],
        };
        let failed = InstallResult {
            sequence: Sequence { epoch: 1, number: 10 },
            outcome: Outcome::Failed,
            actions: vec![action("DSA-1", None), action("DSA-2", Some(ResultReason::DiskFull))],
            restart_postponed: String::new(),
            restarts: 2,
            steps: [("web.service", false), ("cron.service", true)]
                .map(|(name, ok)| StepResult {
                    step: Step::ServiceRestart,
                    name: name.into(),
                    ok,
                    message: "it is failed".into(),
                })
                .into(),
            ..good.clone()
        };
        let refused = InstallResult {
            outcome: Outcome::Refused,
            reason: Some(ResultReason::LimitedByDevice),
            message: "frozen".into(),
            steps: vec![],
            actions: vec![],
            ..failed.clone()
        };
        let expected = "\
ORDER  FINISHED              TOOK      WHAT     OUTCOME    DONE    RESTARTS
1-9    2026-11-27 01:02:05Z  2:05 min  install  Succeeded  1 of 1  0
    not restarted: Suspended: by hand
1-10   2026-11-27 01:02:05Z  2:05 min  install  Failed     1 of 2  2
    DSA-2: DiskFull: a b
    restart of web.service: it is failed
1-10   2026-11-27 01:02:05Z  2:05 min  -        Refused    -       2
    LimitedByDevice: frozen
";
        assert_eq!(history(&[good, failed, refused]), expected);
        assert_eq!(history(&[]), "no orders yet\n");
    }

    #[test]
    fn services_are_a_line_with_the_first_names() {
        let told = |count, names: &[&str], partial| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            services(Some(&OutdatedServices { count, names, partial }))
        };
        assert_eq!(services(None), "it is not known which run what was replaced");
        assert_eq!(told(0, &[], false), "none runs what was replaced");
        let two = ["a.service", "b.service"];
        assert_eq!(told(2, &two, false), "2 still run what was replaced: a.service, b.service");
        let many = "9 still run what was replaced: a.service, b.service, ...; not every process could be looked at";
        assert_eq!(told(9, &two, true), many);
    }

    #[test]
    fn a_changed_package_is_a_line() {
        let by = By::Order(Sequence { epoch: 1, number: 9 });
        let found_at: Timestamp = "2026-11-27T01:02:05Z".parse().unwrap();
        let changed = |run: Option<(&str, &str)>, packages: Vec<Change>| Changed {
            log: String::new(),
            first: 1,
            found_at,
            from: String::new(),
            to: String::new(),
            order: None,
            run: run.map(|(user, command)| Run {
                at: found_at,
                told_by: "dpkg".into(),
                user: user.into(),
                command: command.into(),
            }),
            packages,
        };
        let nano = || vec![change("nano", None, Some("7"), By::SomebodyElse)];
        let all = [
            changed(None, vec![change("bash", Some("5.1"), Some("5.2"), by)]),
            changed(None, nano()),
            changed(Some(("alice (1000)", "apt install nano")), nano()),
            changed(Some(("", "")), nano()),
        ];
        let expected = "\
FOUND                 PACKAGE     BEFORE  AFTER  BY
2026-11-27 01:02:05Z  bash:amd64  5.1     5.2    order 1-9
2026-11-27 01:02:05Z  nano:amd64  -       7      somebody else
2026-11-27 01:02:05Z  nano:amd64  -       7      alice (1000): apt install nano
2026-11-27 01:02:05Z  nano:amd64  -       7      somebody else, with dpkg
";
        assert_eq!(changes(&all), expected);
        assert_eq!(changes(&[]), "no changes yet\n");
    }
}
