//! Questions to dnf, answered by a small program in dnf's own language (`ask.py`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;
use serde::de::DeserializeOwned;

use super::answer::{Downloaded, Files, History, Named, Plan, Refreshed, Repair, Scan, read};
use crate::platform;
use crate::provider::history::PastRun;
use crate::provider::rpm::{self, File as Offered, is_disk_full};
use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, MAX_MESSAGE, broken};
use crate::provider::{Artifact, CommandLine, Direction, Failure, Line, bounded};

const SCRIPT: &str = include_str!("ask.py");

/// Asking every repository: each that is dead takes a minute or so.
const REFRESH_LIMIT: Duration = Duration::from_mins(10);

/// It reads every file.
const REHEARSAL_LIMIT: Duration = Duration::from_mins(10);

/// Longer than any `#!` line.
const MAX_FIRST_LINE: u64 = 4096;

/// The first that looks at the priorities of repositories where several offer an update.
const OLDEST: [u32; 3] = [4, 2, 23];

/// What runs dnf.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    /// The program and its arguments.
    pub(super) words: Vec<String>,
}

impl Interpreter {
    /// The one of `/usr/bin/dnf`, if that is dnf 4.
    pub(super) fn find(root: &Path) -> Result<Self, String> {
        let path = root.join("usr/bin/dnf");
        let Ok(file) = File::open(&path) else {
            let other = ["microdnf", "yum"].into_iter().find(|name| root.join("usr/bin").join(name).exists());
            return Err(match other {
                Some("yum") => "yum 3 is not supported, only dnf 4 is".to_owned(),
                Some(other) => format!("{other} is not supported, only dnf 4 is: install dnf"),
                None => "/usr/bin/dnf is not there".to_owned(),
            });
        };
        let mut line = Vec::new();
        BufReader::new(file)
            .take(MAX_FIRST_LINE)
            .read_until(b'\n', &mut line)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> =
            line.strip_prefix("#!").map(|line| line.split_whitespace().collect()).unwrap_or_default();
        match words.first() {
            Some(program) if program.contains("python") => Ok(Self { words: vec![(*program).to_owned()] }),
            _ => Err("dnf 5 is not supported yet, only dnf 4 is".to_owned()),
        }
    }

    /// If its dnf is not too old.
    pub(super) fn checked(self) -> Result<Self, String> {
        let mut line = self.line();
        line.words.push("import dnf.const; print(dnf.const.VERSION)".into());
        let output =
            line.command().as_std_mut().output().map_err(|error| format!("{}: {error}", self.words.join(" ")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim_end().lines().last().unwrap_or("no words");
            return Err(format!("which dnf this is cannot be told: {}", bounded(last, 200)));
        }
        check_version(String::from_utf8_lossy(&output.stdout).trim())?;
        Ok(self)
    }

    /// Isolated: neither the environment nor the working directory adds modules.
    fn line(&self) -> CommandLine {
        let words = self.words.iter().map(OsString::from).chain(["-I", "-c"].map(OsString::from));
        CommandLine { words: words.collect(), environment: rpm::environment() }
    }
}

fn check_version(version: &str) -> Result<(), String> {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    match parts {
        Some(parts) if parts.as_slice() >= OLDEST.as_slice() => Ok(()),
        Some(_) => {
            let oldest = OLDEST.map(|part| part.to_string()).join(".");
            Err(format!("dnf {version} is not supported, only dnf 4 from {oldest} on is: upgrade dnf"))
        }
        None => Err(format!("dnf {version} is not supported: its version is not a number")),
    }
}

/// Asks.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    interpreter: Interpreter,
}

impl Ask {
    pub(super) fn new(interpreter: Interpreter) -> Self {
        Self { interpreter }
    }

    /// Brings the indexes up to date. Whatever goes wrong is a problem of the report: those of yesterday are still there.
    pub(super) async fn refresh(&self) -> Option<Problem> {
        let message = match self.ask::<Refreshed>(REFRESH_LIMIT, ["refresh".into()]).await {
            Ok(answer) => answer.problems.join("; "),
            Err(failure) => failure.message,
        };
        let code = ProblemCode::RepositoryUnavailable;
        (!message.is_empty()).then(|| Problem { code, message: bounded(&message, 300) })
    }

    pub(super) async fn scan(&self) -> Result<Scan, Failure> {
        let boot = platform::boot().map_err(|error| broken(error.to_string()))?.time.as_second();
        self.ask(LOCAL_LIMIT, ["scan".into(), boot.to_string().into()]).await
    }

    pub(super) async fn plan(&self, direction: Direction, packages: &[PackageChange]) -> Result<Plan, Failure> {
        let words = ["plan".into(), word(direction).into()].into_iter().chain(flat(candidates(packages)));
        self.ask::<Plan>(LOCAL_LIMIT, words).await?.checked()
    }

    /// Whether signatures and rpm's own test allow it, by the files in `place`.
    pub(super) async fn rehearse(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        place: &Path,
    ) -> Result<(), Failure> {
        let words = ["rehearse".into(), word(direction).into(), place.into()];
        let answer = self.ask::<Plan>(REHEARSAL_LIMIT, words.into_iter().chain(flat(candidates(packages)))).await;
        match answer.and_then(Plan::checked) {
            Err(failure) if is_disk_full(&failure.message) => {
                Err(Failure { reason: ResultReason::DiskFull, ..failure })
            }
            answer => answer.map(|_| ()),
        }
    }

    /// What is to be done to complete what an interrupted run left.
    pub(super) async fn repair(&self, direction: Direction, packages: &[PackageChange]) -> Result<Repair, Failure> {
        let words = ["repair".into(), word(direction).into()].into_iter().chain(flat(candidates(packages)));
        self.ask::<Repair>(LOCAL_LIMIT, words).await
    }

    pub(super) async fn files<'a>(
        &self,
        packages: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
    ) -> Result<Vec<Offered>, Failure> {
        let packages: Vec<OsString> = flat(packages).collect();
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.ask::<Files>(LOCAL_LIMIT, std::iter::once("files".into()).chain(packages)).await?.files)
    }

    pub(super) async fn download(&self, files: &[Artifact], place: &Path, line: Line<'_>) -> Result<(), Failure> {
        let keys = files.iter().map(|file| (file.name.as_str(), file.arch.as_str(), file.version.as_str()));
        let words = ["download".into(), place.into()].into_iter().chain(flat(keys));
        let answer = self.ask_by::<Downloaded>(line, words).await.map_err(|failure| match failure.reason {
            ResultReason::PackageManagerFailed if is_disk_full(&failure.message) => {
                Failure { reason: ResultReason::DiskFull, ..failure }
            }
            ResultReason::PackageManagerFailed => Failure { reason: ResultReason::DownloadFailed, ..failure },
            _ => failure,
        })?;
        match answer.missing.first() {
            Some(name) => Err(Failure::new(ResultReason::Superseded, format!("{name} is not offered any more"))),
            None => Ok(()),
        }
    }

    /// Names of packages of which several versions are kept.
    pub(super) async fn several(&self) -> Result<Vec<String>, Failure> {
        Ok(self.ask::<Named>(LOCAL_LIMIT, ["several".into()]).await?.names)
    }

    /// dnf's history since then, the earliest run first.
    pub(super) async fn history(&self, since: Timestamp) -> Result<Vec<PastRun>, Failure> {
        let runs = self.ask::<History>(LOCAL_LIMIT, ["history".into()]).await?.into_runs();
        Ok(runs.into_iter().filter(|run| run.is_after(since)).collect())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        limit: Duration,
        question: impl IntoIterator<Item = OsString>,
    ) -> Result<T, Failure> {
        self.ask_by(Line { limit, proxy: None }, question).await
    }

    async fn ask_by<T: DeserializeOwned>(
        &self,
        by: Line<'_>,
        question: impl IntoIterator<Item = OsString>,
    ) -> Result<T, Failure> {
        let mut line = self.interpreter.line();
        line.words.push(SCRIPT.into());
        line.words.extend(question);
        let output = run(&line.through(by.proxy), by.limit).await?;
        if output.succeeded() {
            return read(&output.stdout);
        }
        // A traceback ends with what went wrong.
        let last = output.stderr.trim_end().lines().last().unwrap_or("no words");
        let message = format!("dnf's modules ended with code {:?}: {last}", output.code);
        Err(broken(bounded(&message, MAX_MESSAGE)).general())
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Back => "back",
    }
}

fn candidates(packages: &[PackageChange]) -> impl Iterator<Item = (&str, &str, &str)> {
    packages.iter().map(|p| (p.name.as_str(), p.arch.as_str(), p.candidate.as_str()))
}

fn flat<'a>(packages: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> impl Iterator<Item = OsString> {
    packages.flat_map(|(name, arch, version)| [name, arch, version].map(OsString::from))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn dnf_4_is_known_by_what_runs_it_and_everything_else_is_named() {
        let found = |name: &str, text: &str| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("usr/bin")).unwrap();
            fs::write(root.path().join("usr/bin").join(name), text).unwrap();
            Interpreter::find(root.path()).map(|interpreter| interpreter.words)
        };
        assert_eq!(
            found("dnf", "#!/usr/libexec/platform-python -s\nimport sys\n").unwrap(),
            ["/usr/libexec/platform-python"]
        );
        assert_eq!(found("dnf", "#!/usr/bin/python3\n").unwrap(), ["/usr/bin/python3"]);
        assert!(found("dnf", "\x7fELF\x02\x01").unwrap_err().contains("dnf 5 is not supported"));
        assert!(found("yum", "#!/usr/bin/python\n").unwrap_err().contains("yum 3 is not supported"));
        assert!(found("microdnf", "").unwrap_err().contains("install dnf"));
        assert!(found("true", "").unwrap_err().contains("/usr/bin/dnf is not there"));
    }

    #[test]
    fn a_dnf_that_is_too_old_is_named() {
        for version in ["4.2.23", "4.7.0", "4.14.0", "4.20"] {
            assert_eq!(check_version(version), Ok(()), "{version}");
        }
        for version in ["4.2.17", "4.0.9", "3.6.1", "4.2"] {
            let why = check_version(version).unwrap_err();
            assert!(why.contains(version) && why.contains("from 4.2.23 on"), "{why}");
        }
        assert!(check_version("4.x").is_err() && check_version("").is_err());
    }
}
