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
    let of_requirement = scenarios.iter().filter(|path| requirement(path).is_some()).count();
    assert!(of_requirement >= 100, "only {of_requirement} scenarios found");
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

/// Each says by its name which requirement it is about.
#[test]
fn every_scenario_is_named_for_what_it_shows() {
    for path in scenarios() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        assert!(requirement(&path).is_some(), "{name}: name it for its requirement, as in em-3-...");
    }
}

/// The id in a scenario's name: `EM-3` of `em-3-vendors-date.yaml`.
fn requirement(path: &Path) -> Option<String> {
    let mut parts = path.file_name()?.to_str()?.split('-');
    let (area, number) = (parts.next()?, parts.next()?);
    let known = ["by", "cc", "cl", "em", "mw", "rm"].contains(&area) && number.parse::<u32>().is_ok();
    known.then(|| format!("{}-{number}", area.to_uppercase()))
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
