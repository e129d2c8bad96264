//! What is installed, as rpm's database has it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use patchwarden_protocol::report::{Package, Tristate};

use super::environment;
use crate::provider::run::{Output, run};
use crate::provider::services::{of_files, restarts_a_service, worst};
use crate::provider::support::{LOCAL_LIMIT, MAX_ENTRIES, MAX_MESSAGE, broken, counted};
use crate::provider::{CommandLine, Failure, bounded, words};

const RPM: &str = "/usr/bin/rpm";

/// A line for each package. `EPOCHNUM` is 0 where there is none.
const ROW_FORMAT: &str =
    "%{NAME}\\t%{ARCH}\\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\t%{SOURCERPM}\\t%{INSTALLTIME}\\t%{LONGSIZE}\\n";

/// Key of a vendor that signs packages: in the database, and no package.
const KEY: &str = "gpg-pubkey";

/// The files of each package, then its scripts.
const CONTENT_FORMAT: &str = "@package %{NAME}\\n[%{FILENAMES}\\n]@scripts\\n%{PREIN}\\n%{POSTIN}\\n%{PREUN}\\n%{POSTUN}\\n%{PRETRANS}\\n%{POSTTRANS}\\n";

/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::provider) struct Row {
    pub(in crate::provider) name: String,
    pub(in crate::provider) arch: String,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub(in crate::provider) version: String,
    /// File name of the source package.
    pub(in crate::provider) source: String,
    /// Seconds since 1970.
    pub(in crate::provider) installed_at: i64,
    /// Bytes unpacked.
    pub(in crate::provider) size: u64,
}

impl Row {
    pub(in crate::provider) fn package(&self) -> Package {
        let Self { name, arch, version, source, installed_at: _, size: _ } = self;
        let source = super::source_name(source).to_owned();
        Package { name: name.clone(), arch: arch.clone(), version: version.clone(), source, source_version: None }
    }
}

/// Everything that is installed.
pub(in crate::provider) async fn all_rows() -> Result<Vec<Row>, Failure> {
    let output = run(&line(&["-qa", "--queryformat", ROW_FORMAT]), LOCAL_LIMIT).await?;
    if !output.succeeded() {
        return Err(failed(&output));
    }
    rows(&output.stdout).map_err(broken)
}

/// The rows of these names; what is not installed has none.
pub(in crate::provider) async fn rows_of(names: &[&str]) -> Result<Vec<Row>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = line(&["-q", "--queryformat", ROW_FORMAT]);
    command.words.extend(names.iter().map(OsString::from));
    let output = run(&command, LOCAL_LIMIT).await?;
    if output.code.is_none() || output.stderr.contains("error:") {
        return Err(failed(&output));
    }
    // The code is the number of names that are not known: "package x is not installed" has no tab.
    let said: Vec<&str> = output.stdout.lines().filter(|line| line.contains('\t')).collect();
    rows(&said.join("\n")).map_err(broken)
}

/// Names of the installed packages that provide any of these.
pub(in crate::provider) async fn providing(capabilities: &[String]) -> Result<BTreeSet<String>, Failure> {
    let mut command = line(&["-q", "--queryformat", "%{NAME}\\t\\n", "--whatprovides"]);
    command.words.extend(capabilities.iter().map(OsString::from));
    let output = run(&command, LOCAL_LIMIT).await?;
    if output.code.is_none() || output.stderr.contains("error:") {
        return Err(failed(&output));
    }
    // "no package provides x" has no tab.
    Ok(output.stdout.lines().filter_map(|line| line.strip_suffix('\t')).map(str::to_owned).collect())
}

/// Whether an update of each of these installed packages interrupts a service. What cannot be told is left out.
pub(in crate::provider) async fn interrupted_by(names: &[&str]) -> BTreeMap<String, Tristate> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let mut command = line(&["-q", "--queryformat", CONTENT_FORMAT]);
    command.words.extend(names.iter().map(OsString::from));
    match run(&command, LOCAL_LIMIT).await {
        Ok(output) if output.succeeded() => interruptions(&output.stdout),
        Ok(output) => {
            tracing::warn!("which updates interrupt a service is not known: {}", failed(&output));
            BTreeMap::new()
        }
        Err(failure) => {
            tracing::warn!("which updates interrupt a service is not known: {failure}");
            BTreeMap::new()
        }
    }
}

fn line(arguments: &[&str]) -> CommandLine {
    let mut line = CommandLine { words: words([RPM]), environment: environment() };
    line.words.extend(arguments.iter().map(OsString::from));
    line
}

fn failed(output: &Output) -> Failure {
    broken(bounded(&format!("rpm: {}", output.all().trim()), MAX_MESSAGE))
}

fn rows(output: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for line in counted(output.lines().filter(|line| !line.is_empty())) {
        let line = line?;
        let unreadable = || format!("rpm printed a line of an unknown form: {}", bounded(line, 200));
        let fields: Vec<&str> = line.split('\t').collect();
        let &[name, arch, version, source, installed_at, size] = fields.as_slice() else { return Err(unreadable()) };
        if name == KEY {
            continue;
        }
        rows.push(Row {
            name: name.to_owned(),
            arch: arch.to_owned(),
            version: version.strip_prefix("0:").unwrap_or(version).to_owned(),
            source: source.to_owned(),
            installed_at: installed_at.parse().map_err(|_| unreadable())?,
            size: size.parse().map_err(|_| unreadable())?,
        });
    }
    Ok(rows)
}

/// Of several versions or architectures of one name the worst counts.
fn interruptions(output: &str) -> BTreeMap<String, Tristate> {
    let mut found = BTreeMap::new();
    for package in format!("\n{output}").split("\n@package ").skip(1).take(MAX_ENTRIES) {
        let (name, content) = package.split_once('\n').unwrap_or((package, ""));
        let (files, scripts) = content.split_once("@scripts\n").unwrap_or((content, ""));
        let of_scripts = if restarts_a_service(scripts) { Tristate::Unknown } else { Tristate::No };
        let before = found.get(name).copied().unwrap_or(Tristate::No);
        found.insert(name.to_owned(), worst([before, of_files(files), of_scripts].into_iter()));
    }
    found
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    if let Ok(rows) = rows(text) {
        super::fuzzing::rows(rows);
    }
    let packages = text.matches("@package ").count();
    assert!(interruptions(text).len() <= packages);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_with_their_epoch_and_without_keys() {
        let text = "bash\tx86_64\t0:5.1.8-9.el9\tbash-5.1.8-9.el9.src.rpm\t1763970000\t7738634\n\
            openssl-libs\tx86_64\t1:3.0.7-28.el9\topenssl-3.0.7-28.el9.src.rpm\t1763970001\t6\n\
            gpg-pubkey\t(none)\t0:350d275d-6279464b\t(none)\t1763970000\t0\n";
        let rows = rows(text).unwrap();
        let package = rows[1].package();
        assert_eq!((rows.len(), rows[0].version.as_str(), rows[0].size), (2, "5.1.8-9.el9", 7_738_634));
        assert_eq!((package.version.as_str(), package.source.as_str()), ("1:3.0.7-28.el9", "openssl"));
        for odd in ["x\n", "a\tb\tc\td\te\tf\n", "a\tb\tc\td\t1\t2\t3\n"] {
            assert!(super::rows(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn files_and_scripts_tell_whether_a_service_is_interrupted() {
        use Tristate::{No, Unknown, Yes};
        let of = |files: &str, scripts: &str| interruptions(&format!("@package x\n{files}@scripts\n{scripts}"))["x"];
        assert_eq!(of("/usr/share/x\n", "(none)\n(none)\n"), No);
        assert_eq!(of("/usr/lib/systemd/system/x.service\n", "(none)\n"), Yes);
        assert_eq!(of("/usr/lib64/libx.so.1\n", "(none)\n"), Unknown);
        let of_macro =
            "if [ $1 -ge 1 ]; then /usr/lib/systemd/systemd-update-helper mark-restart-system-units x.service || :\nfi";
        assert_eq!(of("/usr/share/x\n", of_macro), Unknown);
        let several = "@package x\n/a\n@scripts\n@package y\n/b\n@scripts\n@package x\n/etc/init.d/x\n@scripts\n";
        assert_eq!(interruptions(several), BTreeMap::from([("x".to_owned(), Yes), ("y".to_owned(), No)]));
    }
}
