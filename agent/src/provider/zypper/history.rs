//! libzypp's history (`/var/log/zypp/history`). Pure, but for [`runs`].
//!
//! Lines of fields between `|`, in which `\` makes the next character an ordinary one (HistoryLog.h of libzypp):
//! `2026-11-28 09:10:00|command|root@host|'zypper' 'install' 'x'|`, then what it did:
//! `2026-11-28 09:10:01|install|x|2.0-1|noarch|root@host|repository|checksum|` and `...|remove |x|1.0-1|noarch|root@host|`. Times are
//! the machine's. An `install` does not name the version that it replaces.

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::provider::history::{MAX_RUNS, PastRun, Step, lines_of, local_time};

/// What comes so long after the last line of a command was not done by it: a command that downloads for longer stays unnamed.
const LONGEST_PAUSE_SECONDS: u64 = 1800;

/// What has been done since then, the oldest first.
pub(super) fn runs(root: &Path, since: Timestamp, zone: &TimeZone) -> Vec<PastRun> {
    let mut runs = parse(&lines_of(&root.join("var/log/zypp/history")), zone);
    runs.retain(|run| run.is_after(since));
    runs
}

fn parse(lines: &[String], zone: &TimeZone) -> Vec<PastRun> {
    let mut runs: Vec<PastRun> = Vec::new();
    for line in lines.iter().filter(|line| !line.starts_with('#')) {
        let fields = fields(line);
        let (Some(time), Some(what)) = (fields.first(), fields.get(1)) else { continue };
        let Some(at) = local_time(time, zone) else { continue };
        let field = |index: usize| fields.get(index).map(String::as_str).filter(|text| !text.is_empty());
        match what.trim() {
            "command" => {
                let mut run = PastRun::new(at, "zypper");
                run.set_user(field(2).unwrap_or_default());
                run.set_command(field(3).unwrap_or_default());
                runs.push(run);
            }
            verb @ ("install" | "remove") => {
                // What another program than zypper does (PackageKit, YaST) has no line for its command.
                if runs.last().is_none_or(|run| at.as_second().abs_diff(run.until.as_second()) > LONGEST_PAUSE_SECONDS)
                {
                    let mut run = PastRun::new(at, "zypper");
                    run.set_user(field(5).unwrap_or_default());
                    runs.push(run);
                }
                let (Some(run), Some(name), Some(version)) = (runs.last_mut(), field(2), field(3)) else { continue };
                run.until = run.until.max(at);
                run.steps.push(if verb == "install" {
                    Step { is_before_told: false, ..Step::new(name, None, Some(version)) }
                } else {
                    Step::new(name, Some(version), None)
                });
            }
            _ => {}
        }
    }
    runs.retain(|run| !run.steps.is_empty());
    runs.drain(..runs.len().saturating_sub(MAX_RUNS));
    runs
}

fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        let char = match char {
            '|' => {
                fields.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            char => char,
        };
        if let Some(field) = fields.last_mut() {
            field.push(char);
        }
    }
    fields
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let runs = parse(&lines, &TimeZone::UTC);
    crate::provider::history::assert_harmless(&runs);
    assert!(runs.iter().map(|run| run.steps.len()).sum::<usize>() <= lines.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = include_str!("../../../tests/data/zypper/history.txt");

    fn read(text: &str) -> Vec<PastRun> {
        parse(&text.lines().map(str::to_owned).collect::<Vec<_>>(), &TimeZone::UTC)
    }

    #[test]
    fn each_command_is_told_with_what_it_did() {
        let runs = read(HISTORY);
        let told: Vec<(&str, &str)> = runs.iter().map(|run| (run.user.as_str(), run.command.as_str())).collect();
        let expected = [
            ("root@web-1", "'zypper' '--non-interactive' 'install' 'a|b' 'pw-b'"),
            ("root@web-1", "'zypper' 'remove' 'pw-b'"),
            ("root@web-1", ""),
        ];
        assert_eq!(told, expected);
        let new = |name, version| Step { is_before_told: false, ..Step::new(name, None, Some(version)) };
        assert_eq!(runs[0].steps, [new("pw-new", "1.0-1"), new("pw-b", "2.0-1")]);
        assert_eq!(runs[1].steps, [Step::new("pw-b", Some("2.0-1"), None)]);
        assert_eq!(runs[2].steps, [new("pw-c", "1:2.0-1")], "hours later, by PackageKit");
        assert_eq!(runs[0].at.to_string(), "2026-11-28T09:10:00Z");
    }

    #[test]
    fn odd_lines_do_no_harm() {
        for odd in ["", "|", "x|command|a|b|", "2026-11-28 09:10:00|install|", "2026-11-28 09:10:00|install||1|", "\\"]
        {
            assert_eq!(read(odd), [], "{odd}");
        }
        let alone = read("2026-11-28 09:10:00|install|x|1|noarch|a\u{1b}b|r|\\");
        assert_eq!((alone.len(), alone[0].user.as_str()), (1, "a b"));
        let many = "2026-11-28 09:10:00|command|r|c|\n2026-11-28 09:10:00|install|x|1|\n".repeat(MAX_RUNS + 3);
        assert_eq!(read(&many).len(), MAX_RUNS);
    }
}
