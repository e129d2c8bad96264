//! Every `*.yaml` beside this file is a scenario, and the `.trace` beside it what must come of it.
//!
//! `UPDATE_GOLDEN=1 cargo test --test plan golden` writes the traces anew: read the difference before you commit it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::scenario::Scenario;
use crate::simulation;

#[test]
fn golden_traces_are_what_comes_of_the_scenarios() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differences = Vec::new();
    let scenarios = scenarios();
    assert!(scenarios.len() >= 15, "only {} scenarios found", scenarios.len());
    for path in scenarios {
        let yaml = fs::read_to_string(&path).expect("the scenario can be read");
        let scenario: Scenario =
            serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let trace = simulation::run(scenario);
        let golden = path.with_extension("trace");
        if update {
            fs::write(&golden, &trace).expect("the trace can be written");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if let Some(difference) = difference(&expected, &trace) {
            differences.push(format!("{}: {difference}", golden.display()));
        }
    }
    assert!(
        differences.is_empty(),
        "{}\n(UPDATE_GOLDEN=1 writes them anew, if that is what is meant)",
        differences.join("\n\n")
    );
}

#[test]
fn every_trace_has_its_scenario() {
    for entry in fs::read_dir(directory()).expect("the directory can be read") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "trace") {
            assert!(path.with_extension("yaml").exists(), "{} is of no scenario", path.display());
        }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/plan")
}

fn scenarios() -> Vec<PathBuf> {
    let entries = fs::read_dir(directory()).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut scenarios: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    scenarios.sort();
    scenarios
}

/// The first line that differs, with what came before it.
fn difference(expected: &str, actual: &str) -> Option<String> {
    let (expected, actual): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let at = (0..expected.len().max(actual.len())).find(|line| expected.get(*line) != actual.get(*line))?;
    let line = |lines: &[&str]| lines.get(at).map_or("(nothing)".to_owned(), |line| (*line).to_owned());
    let instant = actual.iter().take(at + 1).rev().find(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    Some(format!(
        "line {}, at {}:\n- {}\n+ {}",
        at + 1,
        instant.unwrap_or(&"the start"),
        line(&expected).trim(),
        line(&actual).trim()
    ))
}
