//! Questions to dnf, answered by a small program through dnf's own API (`ask.py`, `ask5.py`).

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
use super::dialect::Dialect;
use crate::platform;
use crate::provider::history::PastRun;
use crate::provider::rpm::{self, File as Offered, is_disk_full};
use crate::provider::run::run;
use crate::provider::support::{LOCAL_LIMIT, MAX_MESSAGE, broken};
use crate::provider::{Artifact, CommandLine, Direction, Failure, Line, bounded, words};

/// Asking every repository: each that is dead takes a minute or so.
const REFRESH_LIMIT: Duration = Duration::from_mins(10);

/// It reads every file.
const REHEARSAL_LIMIT: Duration = Duration::from_mins(10);

/// Longer than any `#!` line.
const MAX_FIRST_LINE: u64 = 4096;

/// What every program begins with that is no script: `elf(5)`.
const ELF: &[u8] = b"\x7fELF";

/// What runs dnf's modules.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    /// The program and its arguments.
    pub(super) words: Vec<String>,
    /// dnf itself.
    pub(super) program: &'static str,
    pub(super) dialect: Dialect,
}

impl Interpreter {
    /// The one of `/usr/bin/dnf`, whichever dnf that is; dnf 5 is also looked for under its own name.
    pub(super) fn find(root: &Path) -> Result<Self, String> {
        let programs = ["/usr/bin/dnf", "/usr/bin/dnf5"];
        let Some(program) = programs.into_iter().find(|path| root.join(&path[1..]).exists()) else {
            let other = ["microdnf", "yum"].into_iter().find(|name| root.join("usr/bin").join(name).exists());
            return Err(match other {
                Some("yum") => "yum 3 is not supported, only dnf 4 and 5 are".to_owned(),
                Some(other) => format!("{other} is not supported, only dnf 4 and 5 are: install dnf"),
                None => "/usr/bin/dnf is not there".to_owned(),
            });
        };
        let path = root.join(&program[1..]);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut line = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        BufReader::new(file).take(MAX_FIRST_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if line.starts_with(ELF) {
            return Ok(Self { words: vec!["/usr/bin/python3".to_owned()], program, dialect: Dialect::Five });
        }
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> =
            line.strip_prefix("#!").map(|line| line.split_whitespace().collect()).unwrap_or_default();
        match words.first() {
            Some(python) if python.contains("python") => {
                Ok(Self { words: vec![(*python).to_owned()], program, dialect: Dialect::Four })
            }
            _ => Err(format!("{program} is neither dnf 4 nor dnf 5")),
        }
    }

    /// If its dnf can be asked.
    pub(super) fn checked(self) -> Result<Self, String> {
        let modules = |code: &str| {
            let mut line = self.line();
            line.words.push(code.into());
            printed(&line)
        };
        let version = match self.dialect {
            Dialect::Four => modules("import dnf.const; print(dnf.const.VERSION)")?,
            Dialect::Five => {
                modules("import libdnf5").map_err(|why| {
                    format!("dnf 5 is asked through the Python modules of its library, which are not there ({why}): install python3-libdnf5")
                })?;
                let said = printed(&CommandLine {
                    words: words([self.program, "--version"]),
                    environment: rpm::environment(),
                })?;
                said.lines().find_map(|line| line.strip_prefix("dnf5 version ")).unwrap_or_default().to_owned()
            }
        };
        check_version(version.trim(), self.dialect)?;
        Ok(self)
    }

    /// Isolated: neither the environment nor the working directory adds modules.
    fn line(&self) -> CommandLine {
        let words = self.words.iter().map(OsString::from).chain(["-I", "-c"].map(OsString::from));
        CommandLine { words: words.collect(), environment: rpm::environment() }
    }
}

/// What a program prints that only says what it is.
fn printed(line: &CommandLine) -> Result<String, String> {
    let name = line.words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    let output = line.command().as_std_mut().output().map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim_end().lines().last().unwrap_or("no words");
        return Err(format!("which dnf this is cannot be told: {}", bounded(last, 200)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check_version(version: &str, dialect: Dialect) -> Result<(), String> {
    let oldest = dialect.oldest();
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    match parts {
        Some(parts) if parts.as_slice() >= oldest.as_slice() => Ok(()),
        Some(_) => {
            let (major, oldest) = (oldest[0], oldest.map(|part| part.to_string()).join("."));
            Err(format!("dnf {version} is not supported, only dnf {major} from {oldest} on is: upgrade dnf"))
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

    pub(super) fn dialect(&self) -> Dialect {
        self.interpreter.dialect
    }

    /// dnf itself.
    pub(super) fn program(&self) -> &'static str {
        self.interpreter.program
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
    pub(super) async fn repair(
        &self,
        direction: Direction,
        packages: &[PackageChange],
        place: &Path,
    ) -> Result<Repair, Failure> {
        let words = ["repair".into(), word(direction).into(), place.into()];
        self.ask::<Repair>(LOCAL_LIMIT, words.into_iter().chain(flat(candidates(packages)))).await
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
        line.words.push(self.dialect().script().into());
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
        Direction::Removing => "removing",
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
    fn dnf_is_known_by_what_runs_it_and_everything_else_is_named() {
        let found = |name: &str, text: &str| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("usr/bin")).unwrap();
            fs::write(root.path().join("usr/bin").join(name), text).unwrap();
            let Interpreter { words, program, dialect } = Interpreter::find(root.path())?;
            Ok::<_, String>((words.join(" "), program, dialect))
        };
        let four = |python: &str| Ok((python.to_owned(), "/usr/bin/dnf", Dialect::Four));
        assert_eq!(
            found("dnf", "#!/usr/libexec/platform-python -s\nimport sys\n"),
            four("/usr/libexec/platform-python")
        );
        assert_eq!(found("dnf", "#!/usr/bin/python3\n"), four("/usr/bin/python3"));
        for name in ["dnf", "dnf5"] {
            let (python, program, dialect) = found(name, "\x7fELF\x02\x01").unwrap();
            assert_eq!((python.as_str(), dialect), ("/usr/bin/python3", Dialect::Five));
            assert_eq!(program, format!("/usr/bin/{name}"));
        }
        assert!(found("dnf", "#!/bin/sh\n").unwrap_err().contains("neither dnf 4 nor dnf 5"));
        assert!(found("yum", "#!/usr/bin/python\n").unwrap_err().contains("yum 3 is not supported"));
        assert!(found("microdnf", "").unwrap_err().contains("install dnf"));
        assert!(found("true", "").unwrap_err().contains("/usr/bin/dnf is not there"));
    }

    #[test]
    fn a_dnf_that_is_too_old_is_named() {
        for version in ["4.2.23", "4.7.0", "4.14.0", "4.20"] {
            assert_eq!(check_version(version, Dialect::Four), Ok(()), "{version}");
        }
        for version in ["4.2.17", "4.0.9", "3.6.1", "4.2"] {
            let why = check_version(version, Dialect::Four).unwrap_err();
            assert!(why.contains(version) && why.contains("only dnf 4 from 4.2.23 on"), "{why}");
        }
        assert_eq!(check_version("5.4.6.0", Dialect::Five), Ok(()));
        assert!(check_version("5.1.17", Dialect::Five).unwrap_err().contains("only dnf 5 from 5.2.0 on"));
        assert!(check_version("4.x", Dialect::Four).is_err() && check_version("", Dialect::Five).is_err());
    }
}
