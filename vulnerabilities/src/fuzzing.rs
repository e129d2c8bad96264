//! Everything that comes from outside, as a function of any bytes, for the fuzz targets in `vulnerabilities/fuzz`. None may panic,
//! take long, or hand over what contradicts itself.
//!
//! The tests run each over the files of its corpus.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a target fails")]

use std::io::BufReader;

use flate2::bufread::MultiGzDecoder;

use crate::directory::{Entry, Summary, json, table};
use crate::matching::{Installed, assess, fixes};
use crate::platform::Platform;
use crate::reading::{Halt, is_cve};
use crate::statement::{Statement, Until};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `vulnerabilities/fuzz/fuzz_targets` and of its corpus.
pub const TARGETS: [(&str, Target); 4] = [
    ("vulnerability_documents", documents),
    ("vulnerability_tables", tables),
    ("vulnerability_packed_tables", packed_tables),
    ("vulnerability_names", names),
];

/// JSON of any format.
pub fn documents(bytes: &[u8]) {
    let mut statements = Vec::new();
    let mut summary = Summary::default();
    let read = json(bytes, &mut summary, &mut |entry| keep(entry, &mut statements));
    if read.is_ok() {
        ask(&statements);
    }
}

/// CSV of either format.
pub fn tables(bytes: &[u8]) {
    let _ = table(bytes, &mut |entry| keep(entry, &mut Vec::new()));
}

/// CSV that is packed.
pub fn packed_tables(bytes: &[u8]) {
    let _ = table(BufReader::new(MultiGzDecoder::new(bytes)), &mut |entry| keep(entry, &mut Vec::new()));
}

/// A line each: an ecosystem, a CPE, an `ID` and a `VERSION_ID`.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default();
    let found = [Platform::of_ecosystem(line()), Platform::of_cpe(line()), Platform::of_device(line(), line())];
    for platform in found.into_iter().flatten() {
        let id = platform.as_str();
        assert!(id.len() < 40 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":.-".contains(&byte)), "{id}");
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what takes entries may refuse")]
fn keep(entry: Entry, statements: &mut Vec<Statement>) -> Result<(), Halt> {
    match entry {
        Entry::Statement(statement) => {
            assert!(statement.cves.iter().all(|cve| is_cve(cve)), "{statement:?}");
            assert!(!statement.package.is_empty() && !statement.advisory.is_empty(), "{statement:?}");
            statements.push(statement);
        }
        Entry::Exploited { cve, .. } => assert!(is_cve(&cve), "{cve}"),
        Entry::Likelihood { cve, epss } => assert!(is_cve(&cve) && epss <= 100_000, "{cve} {epss}"),
    }
    Ok(())
}

/// A version that has the fix is not affected by what it fixes, unless it is again later.
fn ask(statements: &[Statement]) {
    for statement in statements.iter().take(64) {
        let text = serde_json::to_string(statement).expect("it can be written");
        assert_eq!(serde_json::from_str::<Statement>(&text).expect("it can be read"), *statement);
        let order = statement.platform.order();
        for span in statement.affected.spans.iter().take(64) {
            if let (Some(from), Until::Fixed(fixed)) = (&span.from, &span.until) {
                assert!(order.compare(from, fixed).is_le(), "{statement:?}");
            }
            let version = span.from.as_deref().unwrap_or("0");
            let installed = |version| Installed {
                name: &statement.package,
                arch: "x",
                version,
                source: &statement.package,
                source_version: Some(version),
            };
            let one = std::slice::from_ref(statement);
            let before = assess(one, &installed(version));
            assert!(before.unknown.is_empty(), "{statement:?}");
            if let Until::Fixed(fixed) = &span.until {
                let fixes = fixes(one, &installed(version), &installed(fixed));
                assert!(fixes.fixed.len() <= before.open.len(), "{statement:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_by_fuzzing_is_read_without_harm() {
        let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let corpus = corpora.join(name);
            let files = std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
            let mut count = 0;
            for file in files {
                target(&std::fs::read(file.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
