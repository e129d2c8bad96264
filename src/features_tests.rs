//! `docs/features.md`: each capability has a state, and a test that shows it says so (`// covers MW-6`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each group's ids run from 1 to this.
const GROUPS: [(&str, u32); 6] = [("MW", 13), ("RM", 7), ("CC", 5), ("CL", 13), ("EM", 18), ("BY", 12)];

const STATES: [&str; 4] = ["yes", "preview", "in part", "no"];

const CODE: [&str; 3] = ["src", "tests", "agent/tests"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A line of the table.
struct Row {
    id: String,
    state: String,
    missing: String,
}

fn cells(line: &str) -> Vec<String> {
    let inside = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or_default();
    inside.split('|').map(|cell| cell.trim().to_owned()).collect()
}

fn rows() -> Vec<Row> {
    let table = read(&root().join("docs/features.md"));
    let lines = table.lines().filter(|line| line.starts_with("| ") && id(&cells(line)[0]).is_some());
    lines
        .map(|line| match &cells(line)[..] {
            [id, _, state, _, missing] => Row { id: id.clone(), state: state.clone(), missing: missing.clone() },
            other => panic!("docs/features.md: {} cells instead of 5: {line}", other.len()),
        })
        .collect()
}

/// An id, known or not.
fn id(text: &str) -> Option<&str> {
    let (group, number) = text.split_once('-')?;
    let is_id = group.len() == 2
        && group.bytes().all(|byte| byte.is_ascii_uppercase())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then_some(text)
}

/// Files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The ids after `covers`: of a test in Rust alone, with commas; of a scenario with words about them.
fn covered(line: &str, is_scenario: bool) -> Option<Vec<String>> {
    if is_scenario {
        let words = line.strip_prefix("# covers ")?.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        return Some(words.filter_map(id).map(str::to_owned).collect());
    }
    Some(line.trim().strip_prefix("// covers ")?.split(", ").map(str::to_owned).collect())
}

/// Where each id is covered.
fn covers() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in CODE.iter().flat_map(|directory| files(&root().join(directory))) {
        let is_scenario = match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => false,
            Some("yaml") => true,
            _ => continue,
        };
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            let Some(ids) = covered(line, is_scenario) else { continue };
            let place = format!("{}:{}", path.strip_prefix(root()).unwrap().display(), number + 1);
            let mut after = text.lines().skip(number + 1).map(str::trim);
            let next = after.find(|line| !line.starts_with("#[") && !line.starts_with("//")).unwrap_or_default();
            assert!(is_scenario || next.contains("fn "), "{place}: it stands above no test, but above {next:?}");
            for id in ids {
                found.entry(id).or_default().push(place.clone());
            }
        }
    }
    found
}

#[test]
fn each_capability_has_one_state_and_says_what_is_missing() {
    let expected: Vec<String> =
        GROUPS.iter().flat_map(|(group, last)| (1..=*last).map(move |number| format!("{group}-{number}"))).collect();
    let rows = rows();
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    assert_eq!(ids, expected, "an id is not there, there twice, not known, or not in its place");
    for Row { id, state, missing } in rows {
        assert!(STATES.contains(&state.as_str()), "{id}: {state:?} is none of {STATES:?}");
        assert!(state == "no" || (state == "yes") == missing.is_empty(), "{id}, {state}: {missing:?} is missing");
    }
}

#[test]
fn what_is_said_to_be_there_is_covered_by_a_test_and_nothing_else_is() {
    let states: BTreeMap<String, String> = rows().into_iter().map(|row| (row.id, row.state)).collect();
    let covers = covers();
    for (id, places) in &covers {
        let state =
            states.get(id).unwrap_or_else(|| panic!("{places:?} cover {id:?}, which is not in docs/features.md"));
        assert_ne!(state, "no", "{places:?} cover {id}, which is not there by docs/features.md");
    }
    let bare: Vec<_> = states.iter().filter(|(id, state)| *state != "no" && !covers.contains_key(*id)).collect();
    assert!(bare.is_empty(), "no test covers {bare:?}");
}

#[test]
fn the_readme_counts_as_the_table_does() {
    let mut counts: BTreeMap<String, [usize; 4]> = BTreeMap::new();
    for Row { id, state, .. } in rows() {
        let at = STATES.iter().position(|known| *known == state).expect("a state that is known");
        for group in [&id[..2], "all"] {
            counts.entry(group.to_owned()).or_default()[at] += 1;
        }
    }
    let readme = read(&root().join("README.md"));
    let told: BTreeMap<String, [usize; 4]> = readme
        .lines()
        .filter_map(|line| match &cells(line)[..] {
            [group, .., yes, preview, part, no] if counts.contains_key(group.as_str()) => {
                let numbers = [yes, preview, part, no].map(|cell| cell.parse().unwrap_or_else(|_| panic!("{line}")));
                Some((group.clone(), numbers))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, counts);
}

#[test]
fn links_of_the_table_lead_somewhere() {
    let docs = root().join("docs");
    let table = read(&docs.join("features.md"));
    let links: BTreeSet<&str> =
        table.split("](").skip(1).map(|rest| rest.split_once(')').expect("a link ends").0).collect();
    assert!(links.len() > 30, "{links:?}");
    for link in links {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let text = read(&docs.join(file));
        let headings =
            text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
        assert!(anchor.is_empty() || headings.map(slug).any(|it| it == anchor), "{link}: there is no such heading");
    }
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
