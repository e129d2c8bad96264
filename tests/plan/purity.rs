//! The decision core stays pure: what it may not use, it does not name.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// What would make an answer depend on anything but the snapshot and the instant, or let the core reach outside.
const FORBIDDEN: [&str; 30] = [
    "kube",
    "k8s_openapi",
    "tokio",
    "futures",
    "tracing",
    "rand",
    "sqlx",
    "anyhow",
    "SystemTime",
    "Instant",
    "HashMap",
    "HashSet",
    "RandomState",
    "thread",
    "thread_local",
    "env",
    "fs",
    "net",
    "process",
    "println",
    "eprintln",
    "dbg",
    "unsafe",
    "async",
    "await",
    "Mutex",
    "OnceLock",
    "LazyLock",
    "Cell",
    "RefCell",
];

#[test]
fn the_decision_core_names_nothing_that_is_not_pure() {
    let mut files = 0;
    let mut paths = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).expect("it can be read").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        if path.ends_with("Cargo.toml") {
            continue;
        }
        assert!(
            path.extension().is_some_and(|extension| extension == "rs"),
            "{}: not a file of this test",
            path.display()
        );
        let source = fs::read_to_string(&path).expect("the source can be read");
        for (number, line) in source.lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            let code = without_strings(line.split("//").next().unwrap_or_default());
            let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for word in FORBIDDEN {
                assert!(!words.contains(&word), "{place} names {word}: {line}");
            }
            assert!(!code.contains("::now("), "{place} reads a clock: {line}");
            assert!(!code.contains("now()"), "{place} reads a clock: {line}");
        }
        files += 1;
    }
    assert!(files >= 30, "only {files} files were read");
}

/// Words in messages are not code.
fn without_strings(code: &str) -> String {
    code.split('"').step_by(2).collect::<Vec<_>>().join("\"")
}

/// Whatever it names, it can only use what it is built with.
#[test]
fn the_decision_core_is_built_without_anything_that_is_not_pure() {
    let cargo = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let tree = String::from_utf8(cargo.stdout).expect("text");
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"jiff"), "not its dependencies: {tree}");
    for forbidden in ["kube", "kube-client", "k8s-openapi", "tokio", "tonic", "futures-util", "tracing", "sqlx"] {
        assert!(!crates.contains(&forbidden), "the decision core is built with {forbidden}");
    }
}
