//! The screen, for 80 columns where names are of the usual length.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::Status;
use super::summary::{Ready, Summary};
use super::todo::Todo;
use crate::cli::screen::{BAD, Cell, FAINT, GOOD, PLAIN, TITLE, WARNING, cell, columns, plain, safe, styled, wrapped};

/// So many objects of one thing to do are named, but in wide answers.
const SHOWN: usize = 3;

/// So many things to do are told, but in wide answers.
const MOST: usize = 10;

pub(super) fn text(status: &Status, is_wide: bool) -> String {
    if status.clients.is_empty() {
        return "No client has anything of Patchwarden: kubectl patchwarden init writes a beginning.\n".to_owned();
    }
    let clients: Vec<String> = status.clients.iter().map(|client| client_screen(client, status.at, is_wide)).collect();
    clients.join("\n")
}

fn client_screen(client: &Summary, at: Timestamp, is_wide: bool) -> String {
    let Summary { namespace, policies, groups, windows, devices, missing, todo } = client;
    let mut text = format!("{}  {}\n", styled(TITLE, &safe(namespace)), styled(FAINT, &format!("as of {at}")));
    let states = devices.states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
    let summary = format!(
        "Devices: {} ({} online, {} installing{}){}",
        devices.total,
        devices.online,
        devices.installing,
        if devices.retired > 0 { format!(", {} retired", devices.retired) } else { String::new() },
        if states.is_empty() { String::new() } else { format!(": {states}") },
    );
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", wrapped(&summary, 9));
    if policies.is_empty() && groups.is_empty() && windows.is_empty() {
        text.push_str("\nNo policies, groups and windows: kubectl patchwarden init writes a beginning.\n");
    }
    let mut section = |titles: &[&str], rows: Vec<Vec<Cell>>| {
        if !rows.is_empty() {
            let _ = write!(text, "\n{}", columns(titles, &rows));
        }
    };
    let count = |count: u32| cell(if count > 0 { BAD } else { PLAIN }, &count);
    let policy_rows = policies.iter().map(|policy| {
        let overdue = policy.overdue.map_or_else(|| plain(""), &count);
        let compliant = policy.compliant.clone().unwrap_or_default();
        let next = when(policy.next_window, windows.iter().any(|it| it.active), at);
        let failed = count(policy.failed);
        vec![
            plain(&policy.name),
            ready(&policy.ready),
            plain(&policy.mode),
            plain(&compliant),
            plain(&policy.installing),
            failed,
            overdue,
            plain(&next),
        ]
    });
    section(
        &["POLICY", "READY", "MODE", "COMPLIANT", "BUSY", "FAILED", "OVERDUE", "NEXT (UTC)"],
        policy_rows.collect(),
    );
    if is_wide {
        let rings = policies.iter().flat_map(|policy| {
            policy.rings.iter().map(|ring| vec![plain(&policy.name), plain(&ring.name), plain(&ring.compliant)])
        });
        section(&["POLICY", "RING", "COMPLIANT"], rings.collect());
    }
    // A group that is as it should be is no news.
    let group_rows = groups.iter().filter(|group| is_wide || group.ready.status != Some(true)).map(|group| {
        let parent = group.parent.clone().unwrap_or_default();
        vec![plain(&group.name), ready(&group.ready), plain(&parent), plain(&group.devices), plain(&group.decisions)]
    });
    section(&["GROUP", "READY", "PARENT", "DEVICES", "DECISIONS"], group_rows.collect());
    let window_rows = windows.iter().map(|window| {
        let open = if window.active { cell(GOOD, "open") } else { plain("closed") };
        let until = window.current_end.map(|end| format!("until {}", short(end, at)));
        let next = window.next_start.map_or_else(|| "never".to_owned(), |next| short(next, at));
        vec![plain(&window.name), ready(&window.ready), open, plain(&until.unwrap_or_default()), plain(&next)]
    });
    section(&["WINDOW", "READY", "NOW", "UNTIL", "NEXT (UTC)"], window_rows.collect());
    let missing_rows = missing.iter().map(|it| {
        vec![
            plain(&format!("{:?}", it.severity)),
            plain(&it.updates),
            plain(&it.devices),
            plain(&it.approved),
            plain(&it.aging),
            cell(if it.awaiting_approval > 0 { WARNING } else { PLAIN }, &it.awaiting_approval),
            cell(if it.failed > 0 { BAD } else { PLAIN }, &it.failed),
        ]
    });
    section(
        &["MISSING", "UPDATES", "DEVICES", "APPROVED", "AGING", "AWAITING APPROVAL", "FAILED"],
        missing_rows.collect(),
    );
    text.push_str(&todos(todo, is_wide));
    text
}

fn ready(ready: &Ready) -> Cell {
    match ready.status {
        Some(true) => cell(GOOD, "yes"),
        Some(false) => cell(BAD, &ready.reason),
        None => cell(WARNING, "not yet"),
    }
}

fn when(next: Option<Timestamp>, is_any_open: bool, at: Timestamp) -> String {
    match next {
        Some(next) => short(next, at),
        None if is_any_open => "open".to_owned(),
        None => String::new(),
    }
}

/// In UTC, without the year where that is the present one.
fn short(time: Timestamp, now: Timestamp) -> String {
    let year = |time: Timestamp| time.strftime("%Y").to_string();
    let form = if year(time) == year(now) { "%a %b %d %H:%M" } else { "%Y-%m-%d %H:%M" };
    time.strftime(form).to_string()
}

fn todos(todo: &[Todo], is_wide: bool) -> String {
    if todo.is_empty() {
        return format!("\n{}\n", styled(GOOD, "Nothing waits for a person."));
    }
    let mut text = format!("\n{}\n", styled(TITLE, "To do"));
    let shown = if is_wide { todo.len() } else { todo.len().min(MOST) };
    for Todo { objects, what, action } in todo.iter().take(shown) {
        let listed = if is_wide { objects.len() } else { objects.len().min(SHOWN) };
        let more = objects.len() - listed;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = objects.iter().take(listed).map(|name| safe(name)).collect::<Vec<_>>().join(", ");
        let what = wrapped(&safe(&format!("{names}{more}: {what}")), 2);
        let what = what.replacen(&names, &styled(WARNING, &names), 1);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- {what}\n  {}", wrapped(&safe(action), 2));
    }
    if todo.len() > shown {
        let _ = writeln!(text, "and {} more (-o wide)", todo.len() - shown);
    }
    text
}
