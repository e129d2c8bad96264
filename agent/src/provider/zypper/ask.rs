//! Questions to zypper.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;

use super::answer::{Answer, Repository, Step, Version, locked, read};
use super::explain;
use crate::provider::rpm;
use crate::provider::run::{Output, run};
use crate::provider::support::{LOCAL_LIMIT, MAX_MESSAGE, broken};
use crate::provider::{Artifact, CommandLine, Direction, Failure, Line, bounded, words};

/// Asking every repository: each that is dead takes a minute or so.
const REFRESH_LIMIT: Duration = Duration::from_mins(10);

/// It reads every file.
const REHEARSAL_LIMIT: Duration = Duration::from_mins(10);

/// Seconds that a question waits for another program to be done: less than [`LOCAL_LIMIT`].
const QUESTION_WAITS: u32 = 60;

/// Seconds that an install waits for it.
pub(super) const INSTALL_WAITS: u32 = 300;

/// zypper(8), "EXIT CODES": something was done, and there is more to say.
const INFORMS: [i32; 7] = [0, 100, 101, 102, 103, 106, 107];

/// Repositories were left out: there is no index of them in the cache.
const REPOSITORIES_SKIPPED: i32 = 106;

/// Nothing of this name and version.
const NOT_FOUND: i32 = 104;

/// Another program has zypper's lock.
pub(super) const LOCKED: i32 = 7;

/// Brings the indexes up to date. Whatever goes wrong is a problem of the report: those of yesterday are still there.
pub(super) async fn refresh() -> Option<Problem> {
    let mut line = CommandLine { words: words(["/usr/bin/zypper"]), environment: environment(QUESTION_WAITS) };
    line.words.extend(words(["--non-interactive", "--xmlout", "refresh"]));
    let message = match answered(&line, REFRESH_LIMIT).await {
        Ok((_, answer)) if answer.errors.is_empty() => return None,
        Ok((_, answer)) => answer.errors.join("; "),
        Err(failure) => failure.message,
    };
    Some(unavailable(&message))
}

pub(super) fn unavailable(message: &str) -> Problem {
    // A report's problem is one line.
    let line = message.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    Problem { code: ProblemCode::RepositoryUnavailable, message: bounded(&line, 300) }
}

/// Those that are in use.
pub(super) async fn repositories() -> Result<Vec<Repository>, Failure> {
    let (_, answer) = ask(LOCAL_LIMIT, &["repos"]).await?;
    Ok(answer.repositories.into_iter().filter(|repository| repository.is_enabled).collect())
}

/// What is offered.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// What zypper would update by itself.
    pub(super) offered: Vec<Version>,
    /// Newer versions of packages that are locked.
    pub(super) locked: Vec<Version>,
    /// Repositories that were left out.
    pub(super) problem: Option<Problem>,
}

pub(super) async fn list() -> Result<Listed, Failure> {
    let (output, answer) = ask(LOCAL_LIMIT, &["list-updates", "--type", "package"]).await?;
    let problem = (output.code == Some(REPOSITORIES_SKIPPED))
        .then(|| unavailable(&answer.errors.join("; ")))
        .filter(|problem| !problem.message.is_empty());
    let everything = ["list-updates", "--type", "package", "--all"];
    let table = run(&question(&[&["--no-abbrev"], &everything[..]].concat()), LOCAL_LIMIT).await?;
    let names = locked(&table.stdout);
    let locked = if names.is_empty() {
        Vec::new()
    } else {
        let (_, all) = ask(LOCAL_LIMIT, &everything).await?;
        all.updates
            .into_iter()
            .filter(|update| names.iter().any(|(n, a)| (n, a) == (&update.name, &update.arch)))
            .collect()
    };
    Ok(Listed { offered: answer.updates, locked, problem })
}

/// What zypper would do.
pub(super) async fn plan(
    direction: Direction,
    packages: &[PackageChange],
    more: &[&str],
) -> Result<Vec<Step>, Failure> {
    let mut line = question(&["--xmlout"]);
    line.words.extend(install(direction, packages, &[&["--dry-run"], more].concat()));
    let (_, answer) = checked(answered(&line, LOCAL_LIMIT).await?)?;
    answer.steps.ok_or_else(|| broken("zypper said nothing of what it would do"))
}

/// The options and packages of an install: nothing that is merely recommended, of nothing another version, and no way
/// out that nobody chose: what stands in the way goes where the package that comes says so (`Obsoletes`), and zypper offers no other
/// that would need that.
pub(super) fn install(direction: Direction, packages: &[PackageChange], more: &[&str]) -> Vec<OsString> {
    let mut line = words(["install", "--name", "--no-recommends", "--no-force-resolution"]);
    if direction == Direction::Back {
        line.push("--oldpackage".into());
    }
    line.extend(more.iter().map(OsString::from));
    line.extend(packages.iter().map(|p| exact(&p.name, &p.arch, &p.candidate)));
    line
}

fn exact(name: &str, arch: &str, version: &str) -> OsString {
    format!("{name}.{arch}={version}").into()
}

/// Brings files into the cache, where they are to be found as the answer says. What is wrong with a signature is not told
/// here: such a file does not come, and [`rehearse`] says whose it is.
pub(super) async fn download(files: &[Artifact], cache: &Path, by: Line<'_>) -> Result<Answer, Failure> {
    let mut line = with_cache(question(&["--xmlout"]), cache);
    line.words.push("download".into());
    line.words.extend(files.iter().map(|file| exact(&file.name, &file.arch, &file.version)));
    let (_, answer) = checked(answered(&line.through(by.proxy), by.limit).await?)?;
    Ok(answer)
}

/// Whether checksums, signatures and zypper's own test for conflicts of files allow it, by the files in the cache.
pub(super) async fn rehearse(direction: Direction, packages: &[PackageChange], cache: &Path) -> Result<(), Failure> {
    let mut line = with_cache(question(&["--xmlout"]), cache);
    line.words.extend(install(direction, packages, &["--dry-run", "--download-only"]));
    let (output, answer) = answered(&line, REHEARSAL_LIMIT).await?;
    if !answer.conflicts.is_empty() {
        return Err(broken(bounded(&answer.conflicts.join("; "), MAX_MESSAGE)));
    }
    // Its code is 0 also where a signature is bad.
    let (output, answer) = checked((output, answer))?;
    if answer.failures.is_empty() { Ok(()) } else { Err(failed(&answer.failures, output.code)) }
}

/// The same with the packages of this directory alone.
pub(super) fn with_cache(mut line: CommandLine, cache: &Path) -> CommandLine {
    line.words.extend(["--pkg-cache-dir".into(), cache.into()]);
    line
}

/// A command that nobody is asked about and that leaves the repositories' indexes as they are.
fn question(options: &[&str]) -> CommandLine {
    let mut line = command(QUESTION_WAITS);
    line.words.extend(options.iter().map(OsString::from));
    line
}

pub(super) fn command(waits: u32) -> CommandLine {
    CommandLine {
        words: words(["/usr/bin/zypper", "--non-interactive", "--no-refresh"]),
        environment: environment(waits),
    }
}

fn environment(waits: u32) -> crate::provider::Environment {
    let mut environment = rpm::environment();
    environment.push(("ZYPP_LOCK_TIMEOUT", waits.to_string().into()));
    environment
}

async fn ask(limit: Duration, arguments: &[&str]) -> Result<(Output, Answer), Failure> {
    checked(answered(&question(&[&["--xmlout"], arguments].concat()), limit).await?)
}

async fn answered(line: &CommandLine, limit: Duration) -> Result<(Output, Answer), Failure> {
    let output = run(line, limit).await?;
    let unreadable = |why: String| broken(bounded(&format!("{why}: {}", output.all().trim()), MAX_MESSAGE));
    let answer = read(&output.stdout).map_err(unreadable)?;
    Ok((output, answer))
}

fn checked((output, answer): (Output, Answer)) -> Result<(Output, Answer), Failure> {
    if output.code.is_some_and(|code| INFORMS.contains(&code)) {
        return Ok((output, answer));
    }
    let Answer { errors, problems, .. } = &answer;
    let said = if problems.is_empty() { errors } else { problems };
    Err(failed(said, output.code))
}

fn failed(said: &[String], code: Option<i32>) -> Failure {
    let message = match (said.is_empty(), code) {
        (false, _) => bounded(&said.join("\n"), MAX_MESSAGE),
        (true, Some(code)) => format!("zypper ended with code {code}"),
        (true, None) => "zypper was ended before it was done".to_owned(),
    };
    let reason = match code {
        Some(LOCKED) => ResultReason::Locked,
        Some(NOT_FOUND) => ResultReason::Superseded,
        _ => explain::reason_of(&message).unwrap_or(ResultReason::PackageManagerFailed),
    };
    Failure::new(reason, message)
}
