//! apt's history (`/var/log/apt/history.log`) and dpkg's (`/var/log/dpkg.log`). Pure, but for [`runs`].
//!
//! apt tells who called it (`Requested-By`, where sudo(8) or polkit has) and how; dpkg tells what it did and no more. What both
//! tell is apt's.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::provider::history::{MAX_RUNS, PastRun, Step, lines_of, lines_of_gz, local_time};

/// What has been done since then, the oldest first.
pub(super) fn runs(root: &Path, since: Timestamp, zone: &TimeZone) -> Vec<PastRun> {
    let log = |name: &str| root.join("var/log").join(name);
    let read = |name: &str, parse: fn(&[String], &TimeZone) -> Vec<PastRun>| {
        let mut runs = parse(&lines_of(&log(name)), zone);
        if runs.first().is_none_or(|first| first.at > since) {
            // logrotate(8) has begun a new file meanwhile; it compresses the old one at once, or the next time.
            let mut older = parse(&lines_of(&log(&format!("{name}.1"))), zone);
            older.extend(parse(&lines_of_gz(&log(&format!("{name}.1.gz"))), zone));
            older.append(&mut runs);
            runs = older;
        }
        runs.retain(|run| run.is_after(since));
        runs
    };
    both(read("apt/history.log", of_apt), read("dpkg.log", of_dpkg))
}

/// What dpkg did within a run of apt that says so, too, is apt's.
fn both(apt: Vec<PastRun>, dpkg: Vec<PastRun>) -> Vec<PastRun> {
    let key = |step: &Step| (step.name.clone(), step.after.clone());
    let told: Vec<BTreeSet<(String, Option<String>)>> =
        apt.iter().map(|run| run.steps.iter().map(key).collect()).collect();
    let is_told = |at: Timestamp, step: &Step| {
        apt.iter().zip(&told).any(|(run, steps)| (run.at..=run.until).contains(&at) && steps.contains(&key(step)))
    };
    let own: Vec<PastRun> = dpkg
        .into_iter()
        .filter_map(|mut run| {
            run.steps.retain(|step| !is_told(run.at, step));
            (!run.steps.is_empty()).then_some(run)
        })
        .collect();
    // Within one second apt's come first: whoever waits for it and calls dpkg does so afterwards.
    let mut all = apt;
    all.extend(own);
    all.sort_by_key(|run| run.at);
    all
}

/// Paragraphs of apt's history, `Start-Date` first; a run that is at work has no end yet.
fn of_apt(lines: &[String], zone: &TimeZone) -> Vec<PastRun> {
    let mut runs: Vec<PastRun> = Vec::new();
    // Of a paragraph that does not begin as it should nothing is known.
    let mut is_open = false;
    for line in lines {
        let Some((field, value)) = line.split_once(": ") else {
            is_open &= !line.trim().is_empty();
            continue;
        };
        if field == "Start-Date" {
            let at = local_time(value, zone);
            is_open = at.is_some();
            if let Some(at) = at {
                // One that did not say when it ended had ended by then: there is one at a time.
                if let Some(before) = runs.last_mut().filter(|before| before.until == Timestamp::MAX) {
                    before.until = at;
                }
                let mut run = PastRun { until: Timestamp::MAX, ..PastRun::new(at, "apt") };
                // Whoever calls it without sudo(8) or polkit is root, or it would have done nothing.
                run.set_user("root");
                runs.push(run);
            }
            continue;
        }
        let Some(run) = runs.last_mut().filter(|_| is_open) else { continue };
        match field {
            "Commandline" => run.set_command(value),
            "Requested-By" => run.set_user(value),
            "End-Date" => run.until = local_time(value, zone).unwrap_or(run.until),
            "Install" => run.steps.extend(packages(value).map(|(name, new, _)| Step::new(name, None, Some(new)))),
            "Upgrade" | "Downgrade" => run
                .steps
                .extend(packages(value).filter_map(|(name, old, new)| Some(Step::new(name, Some(old), Some(new?))))),
            "Remove" | "Purge" => {
                run.steps.extend(packages(value).map(|(name, old, _)| Step::new(name, Some(old), None)));
            }
            _ => {}
        }
    }
    latest(runs)
}

/// `name:arch (1.0, 2.0), other:arch (1.0, automatic)`: name, and what stands in the parentheses.
fn packages(value: &str) -> impl Iterator<Item = (&str, &str, Option<&str>)> {
    value.split("), ").filter_map(|entry| {
        let (name, versions) = entry.trim_end_matches(')').split_once(" (")?;
        let mut versions = versions.split(", ").filter(|version| !version.is_empty());
        let name = Some(without_arch(name)).filter(|name| !name.is_empty() && !name.contains([',', ' ']))?;
        Some((name, versions.next()?, versions.next()))
    })
}

fn without_arch(name: &str) -> &str {
    name.split_once(':').map_or(name, |(name, _)| name)
}

/// Lines `DATE TIME ACTION PACKAGE:ARCH OLD NEW` (dpkg(1), `--log`). Each start of dpkg is a run: `startup` begins one.
fn of_dpkg(lines: &[String], zone: &TimeZone) -> Vec<PastRun> {
    let mut runs: Vec<PastRun> = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ([_, _, "startup", ..] | [_, _, "install" | "upgrade" | "remove" | "purge", _, _, _]) = words.as_slice()
        else {
            continue;
        };
        let Some(at) = local_time(line, zone) else { continue };
        match (words.as_slice(), runs.last_mut()) {
            ([_, _, "startup", ..], _) => runs.push(PastRun::new(at, "dpkg")),
            ([_, _, "purge", ..], _) => {}
            ([_, _, _, name, old, new], Some(run)) => {
                // What is installed again over its own configuration files names their version.
                let old = (words[2] != "install").then_some(*old);
                let new = Some(*new).filter(|new| *new != "<none>");
                run.steps.push(Step::new(without_arch(name), old, new));
                // As long as it goes on it is at work.
                run.until = run.until.max(at);
            }
            _ => {}
        }
    }
    runs.retain(|run| !run.steps.is_empty());
    latest(runs)
}

fn latest(mut runs: Vec<PastRun>) -> Vec<PastRun> {
    runs.drain(..runs.len().saturating_sub(MAX_RUNS));
    runs
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let (apt, dpkg) = (of_apt(&lines, &TimeZone::UTC), of_dpkg(&lines, &TimeZone::UTC));
    crate::provider::history::assert_harmless(&apt);
    crate::provider::history::assert_harmless(&dpkg);
    let count = |runs: &[PastRun]| runs.iter().map(|run| run.steps.len()).sum::<usize>();
    assert!(count(&both(apt.clone(), dpkg.clone())) <= count(&apt) + count(&dpkg));
}

#[cfg(test)]
mod tests {
    use super::*;

    const APT: &str = include_str!("../../../tests/data/apt/history.log");
    const DPKG: &str = include_str!("../../../tests/data/apt/dpkg.log");

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn apt(text: &str) -> Vec<PastRun> {
        of_apt(&lines(text), &TimeZone::UTC)
    }

    fn step(name: &str, before: Option<&str>, after: Option<&str>) -> Step {
        Step::new(name, before, after)
    }

    #[test]
    fn apt_tells_who_asked_for_what_and_how() {
        let runs = apt(APT);
        let told: Vec<(&str, &str)> = runs.iter().map(|run| (run.user.as_str(), run.command.as_str())).collect();
        let expected = [
            ("root", "/usr/bin/unattended-upgrade"),
            ("alice (1000)", "apt install -o Acquire::http::Proxy=http://***@proxy:3128 hello cowsay"),
            ("root", "apt-get -y --allow-downgrades install hello=2.10-2"),
            ("root", "apt-get -y purge cowsay"),
        ];
        assert_eq!(told, expected);
        assert_eq!(
            (runs[1].at.to_string(), runs[1].until.to_string()),
            ("2026-11-28T09:05:38Z".into(), "2026-11-28T09:06:01Z".into())
        );
        assert_eq!(
            runs[0].steps[..2],
            [
                step("libssl3", Some("3.0.15-1~deb12u1"), Some("3.0.17-1~deb12u3")),
                step("openssl", Some("3.0.15-1~deb12u1"), Some("3.0.17-1~deb12u3"))
            ]
        );
        assert_eq!(
            runs[1].steps,
            [
                step("hello", None, Some("2.10-3")),
                step("cowsay", None, Some("3.03+dfsg2-8")),
                step("libtext", None, Some("1:1.0"))
            ]
        );
        assert_eq!(runs[2].steps, [step("hello", Some("2.10-3"), Some("2.10-2"))]);
        assert_eq!(runs[3].steps, [step("cowsay", Some("3.03+dfsg2-8"), None)]);
        assert_eq!(runs[3].until, Timestamp::MAX, "it is at work, or was killed");
        let killed = apt("Start-Date: 2026-11-28  01:00:00\nStart-Date: 2026-11-28  02:00:00\n");
        assert_eq!(killed[0].until, killed[1].at);
    }

    #[test]
    fn what_apt_did_is_not_told_once_more_by_dpkg() {
        let dpkg = of_dpkg(&lines(DPKG), &TimeZone::UTC);
        let steps: Vec<&Step> = dpkg.iter().flat_map(|run| &run.steps).collect();
        assert_eq!(steps.len(), 5, "{steps:#?}");
        let runs = both(apt(APT), dpkg);
        let own: Vec<&PastRun> = runs.iter().filter(|run| run.told_by == "dpkg").collect();
        assert_eq!(own.len(), 2);
        assert_eq!(own[0].steps, [step("hello", Some("2.10-3"), Some("2.10-4"))], "between two runs of apt");
        assert_eq!(own[1].steps, [step("again", None, Some("2")), step("gone", Some("1"), None)]);
        assert_eq!((own[1].user.as_str(), own[1].command.as_str()), ("", ""));
        assert!(runs.is_sorted_by_key(|run| run.at));
        // The same once more, at another time.
        let once = apt("Start-Date: 2026-11-28  01:00:00\nInstall: x:all (1)\nEnd-Date: 2026-11-28  01:01:00\n");
        let again = |minute: u8| {
            let startup = format!("2026-11-28 01:0{minute}:00 startup archives install");
            let install = format!("2026-11-28 01:0{minute}:00 install x:all <none> 1");
            both(once.clone(), of_dpkg(&[startup, install], &TimeZone::UTC)).len()
        };
        assert_eq!((again(0), again(1), again(2)), (1, 1, 2));
    }

    #[test]
    fn odd_lines_do_no_harm() {
        for odd in [
            "Install: x:amd64 (1)\n",
            "Start-Date: never\nInstall: x:amd64 (1)\n",
            "Start-Date: 2026-11-28  01:00:00\nUpgrade: x:amd64 (1)\nInstall: x, (, ()\nRemove:\n",
            "Start-Date: 2026-11-28  01:00:00\n\nInstall: x:amd64 (1)\n",
        ] {
            assert!(apt(odd).iter().all(|run| run.steps.is_empty()), "{odd}");
        }
        let long = format!(
            "Start-Date: 2026-11-28  01:00:00\nRequested-By: \u{1b}[2J{}\nCommandline: a\u{0}b\n",
            "x".repeat(500)
        );
        let runs = apt(&long);
        crate::provider::history::assert_harmless(&runs);
        assert_eq!(runs[0].command, "a b");
        let many = "Start-Date: 2026-11-28  01:00:00\n".repeat(MAX_RUNS + 5);
        assert_eq!(apt(&many).len(), MAX_RUNS);
        assert_eq!(
            of_dpkg(&lines("2026-11-28 01:00:00 upgrade x:all 1 2\n2026 startup\n"), &TimeZone::UTC),
            [],
            "of no run"
        );
    }

    #[test]
    fn a_file_that_was_rotated_meanwhile_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("var/log/apt");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("history.log"), "\nStart-Date: 2026-11-28  03:00:00\nInstall: b:all (1)\n").unwrap();
        std::fs::write(place.join("history.log.1"), "\nStart-Date: 2026-11-28  01:00:00\nInstall: a:all (1)\n")
            .unwrap();
        let names = |since: &str| -> Vec<String> {
            let runs = runs(root.path(), since.parse().unwrap(), &TimeZone::UTC);
            runs.iter().flat_map(|run| &run.steps).map(|step| step.name.clone()).collect()
        };
        assert_eq!(names("2026-11-28T02:00:00Z"), ["a", "b"], "it ended when the next began");
        assert_eq!(names("2026-11-28T03:30:00Z"), ["b"]);
        assert_eq!(names("2026-11-29T03:00:00Z"), ["b"], "it has not ended");
    }
}
