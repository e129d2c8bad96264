use clap::Parser as _;
use jiff::Timestamp;
use serde_json::Value;

use super::answers::{Answers, Approve, Given, Machines, Restart, ServerWindow, Start, WorkstationWindow};
use super::{Arguments, files, write};
use crate::api::{ApprovalGroup, MaintenanceWindow, PatchPolicy};
use crate::cli::testing::{live, place};
use crate::plan;

fn now() -> Timestamp {
    "2026-11-29T12:00:00Z".parse().unwrap()
}

fn recommended() -> Answers {
    Given { client: Some("acme".into()), time_zone: Some("Europe/Berlin".into()), ..Given::default() }
        .recommended()
        .unwrap()
}

fn each<C: clap::ValueEnum + Copy>(all: &[Answers], set: impl Fn(&mut Answers, C)) -> Vec<Answers> {
    let with = |answers: &Answers, choice: C| {
        let mut answers = answers.clone();
        set(&mut answers, choice);
        answers
    };
    all.iter()
        .flat_map(|answers| C::value_variants().iter().map(|choice| with(answers, *choice)).collect::<Vec<_>>())
        .collect()
}

/// Every combination of what may be chosen.
fn all() -> Vec<Answers> {
    let mut all = vec![recommended()];
    all = each::<Machines>(&all, |answers, choice| answers.machines = choice);
    all = each::<Approve>(&all, |answers, choice| answers.approve = choice);
    all = each::<ServerWindow>(&all, |answers, choice| answers.server_window = choice);
    all = each::<WorkstationWindow>(&all, |answers, choice| answers.workstation_window = choice);
    all = each::<Restart>(&all, |answers, choice| answers.restart = choice);
    all = each::<Start>(&all, |answers, choice| answers.start = choice);
    all.iter().flat_map(|answers| [true, false].map(|pilot| Answers { pilot, ..answers.clone() })).collect()
}

fn read<K: serde::de::DeserializeOwned>(document: &Value, name: &str) -> K {
    serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{name}: {error}\n{document:#}"))
}

#[test]
fn a_word_that_is_meant_for_pilot_is_no_directory() {
    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        arguments: Arguments,
    }
    let parse = |words: &[&str]| Only::try_parse_from(["init"].iter().chain(words)).map(|only| only.arguments);
    let refused = parse(&["--pilot", "false"]).unwrap_err().to_string();
    assert!(refused.contains("if it belongs to --pilot, write --pilot=false; if not, ./false"), "{refused}");
    let taken = parse(&["--pilot=false", "./false"]).unwrap();
    assert_eq!((taken.given.pilot, taken.directory), (Some(false), Some("./false".into())));
}

// covers MW-1
#[test]
fn whatever_is_answered_the_planner_takes_it_as_it_is() {
    let all = all();
    assert_eq!(all.len(), 3 * 3 * 3 * 3 * 2 * 2 * 2);
    for answers in all {
        let (mut groups, mut policies, mut windows) = (vec![], vec![], vec![]);
        for (name, text) in files::of(&answers, now()).unwrap() {
            assert!(text.ends_with('\n') && !text.contains('\t'), "{name}");
            if name == "README.md" {
                continue;
            }
            for document in
                serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
            {
                let kind = document["kind"].as_str().unwrap().to_owned();
                match kind.as_str() {
                    "ApprovalGroup" => groups.push(read::<ApprovalGroup>(&document, name)),
                    "PatchPolicy" => policies.push(read::<PatchPolicy>(&document, name)),
                    "MaintenanceWindow" => windows.push(read::<MaintenanceWindow>(&document, name)),
                    _ => assert_eq!(
                        document["apiVersion"].as_str().map(|version| version.contains("patchwarden.io/")),
                        Some(false)
                    ),
                }
            }
        }
        let kinds = if answers.machines == Machines::Both { 2 } else { 1 };
        let expected = kinds + usize::from(answers.pilot);
        assert_eq!((groups.len(), policies.len(), windows.len()), (expected + 1, expected, expected), "{answers:?}");
        let planned = plan::plan(&live(groups, policies, windows, vec![]).snapshot(&place(), now()), now());
        for policy in planned.policies {
            assert_eq!(policy.stalled, None, "PatchPolicy {} of {answers:?}", policy.name);
        }
        for group in planned.groups {
            assert_eq!((group.invalid, group.stalled), (None, None), "ApprovalGroup {} of {answers:?}", group.name);
        }
        for window in planned.windows {
            assert_eq!(window.invalid, None, "MaintenanceWindow {} of {answers:?}", window.name);
        }
    }
}

#[test]
fn what_is_not_given_is_as_recommended_and_what_is_wrong_names_its_flag() {
    let answers = recommended();
    assert_eq!((answers.start, answers.pilot, answers.machines), (Start::Audit, true, Machines::Both));
    let refused = |given: Given| given.recommended().unwrap_err().to_string();
    assert!(refused(Given::default()).contains("--client"));
    assert!(refused(Given { client: Some("Acme".into()), ..Given::default() }).contains("--client \"Acme\""));
    let zone = Given { client: Some("acme".into()), time_zone: Some("Mars/Olympus".into()), ..Given::default() };
    assert!(refused(zone).contains("--time-zone \"Mars/Olympus\""));
}

#[test]
fn the_freeze_is_the_one_that_is_on_or_comes_next() {
    let freeze = |now: &str| {
        let files = files::of(&recommended(), now.parse().unwrap()).unwrap();
        let windows = files.into_iter().find(|(name, _)| *name == "20-maintenance-windows.yaml").unwrap().1;
        windows.lines().find(|line| line.contains("turn-of-the-year")).unwrap().trim().to_owned()
    };
    assert_eq!(freeze("2026-11-29T12:00:00Z"), "- name: turn-of-the-year-2026");
    assert_eq!(freeze("2027-01-02T12:00:00Z"), "- name: turn-of-the-year-2026");
    assert_eq!(freeze("2027-01-05T12:00:00Z"), "- name: turn-of-the-year-2027");
}

#[test]
fn a_window_has_the_reason_of_what_is_recommended_where_that_was_chosen_alone() {
    let windows = |server_window| {
        let files = files::of(&Answers { server_window, ..recommended() }, now()).unwrap();
        files.into_iter().find(|(name, _)| *name == "20-maintenance-windows.yaml").unwrap().1
    };
    let reason = "# Four days after Patch Tuesday other people's trouble with an update is known";
    assert!(windows(ServerWindow::PatchTuesday).starts_with(reason));
    let weekly = windows(ServerWindow::Weekly);
    assert!(
        weekly.starts_with("# As chosen: on Sundays from 02:00 to 06:00.\n") && !weekly.contains(reason),
        "{weekly}"
    );
}

#[test]
fn a_file_that_is_there_is_not_overwritten_and_then_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("acme");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("b"), "mine").unwrap();
    let files = [("a", "A".to_owned()), ("b", "B".to_owned())];
    let refused = write(&place, &files, false).unwrap_err().to_string();
    assert!(refused.starts_with("b exists in ") && refused.contains("--force"), "{refused}");
    assert!(!place.join("a").exists());
    assert_eq!(std::fs::read_to_string(place.join("b")).unwrap(), "mine");
    write(&place, &files, true).unwrap();
    assert_eq!(std::fs::read_to_string(place.join("b")).unwrap(), "B");
    std::fs::write(place.join("elsewhere"), "somebody else's").unwrap();
    std::fs::remove_file(place.join("a")).unwrap();
    std::os::unix::fs::symlink(place.join("elsewhere"), place.join("a")).unwrap();
    write(&place, &files, true).unwrap();
    assert_eq!(std::fs::read_to_string(place.join("a")).unwrap(), "A");
    assert_eq!(std::fs::read_to_string(place.join("elsewhere")).unwrap(), "somebody else's");
}
