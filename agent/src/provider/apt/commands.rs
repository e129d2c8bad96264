//! The commands of apt and dpkg, how they are run, and what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;

use super::index::{self, Search};
use super::parse::{self, Description, PackageKey, Row};
use crate::files;
use crate::provider::run::{Output, run, stream};
use crate::provider::support::{LOCAL_LIMIT, MAX_MESSAGE, PATH, broken};
use crate::provider::{
    Artifact, Change, CommandLine, Direction, Environment, Failure, Line, Simulation, bounded, words,
};

/// `apt-get update`: with a dead mirror it tries for a minute or so.
const UPDATE_LIMIT: Duration = Duration::from_mins(10);

/// Where apt has its indexes (`Dir::State::lists` of apt.conf(5)). Those that lie elsewhere are asked of apt.
const LISTS: &str = "/var/lib/apt/lists";

/// Whether the output tells of a full disk.
pub(super) fn is_disk_full(output: &str) -> bool {
    ["No space left on device", "You don't have enough free space"].iter().any(|words| output.contains(words))
}

/// Fixed variables: parsing depends on the language, and nobody is there to answer a question.
fn environment() -> Environment {
    [
        ("LC_ALL", "C"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBIAN_PRIORITY", "critical"),
        ("APT_LISTCHANGES_FRONTEND", "none"),
        // needrestart only lists: what is restarted is not for a maintainer script to decide.
        ("NEEDRESTART_MODE", "l"),
        ("HOME", "/root"),
        ("PATH", PATH),
    ]
    .map(|(name, value)| (name, value.into()))
    .to_vec()
}

pub(super) fn line<const N: usize>(program: &str, arguments: [&str; N]) -> CommandLine {
    let mut line = CommandLine { words: words([program]), environment: environment() };
    line.words.extend(words(arguments));
    line
}

pub(super) fn apt_get<const N: usize>(arguments: [&str; N]) -> CommandLine {
    let mut command = line("/usr/bin/apt-get", ["-q", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Color=0"]);
    command.words.extend(words(arguments));
    command
}

pub(super) fn archives_option(archives: &Path) -> [OsString; 2] {
    let mut option = OsString::from("Dir::Cache::archives=");
    option.push(archives);
    option.push("/");
    ["-o".into(), option]
}

/// `install --only-upgrade NAME:ARCH=VERSION ...`: what is not installed is not installed by it.
pub(super) fn install(direction: Direction, packages: &[PackageChange]) -> Vec<OsString> {
    let mut arguments = words(["install", "--only-upgrade"]);
    if direction == Direction::Back {
        arguments.extend(words(["--allow-downgrades"]));
    }
    arguments.extend(packages.iter().map(|p| format!("{}:{}={}", p.name, p.arch, p.candidate).into()));
    arguments
}

/// The files that `install` with these arguments would fetch, with nothing there already.
pub(super) async fn files_of(arguments: Vec<OsString>) -> Result<Vec<Artifact>, Failure> {
    // With an archives directory that does not exist nothing counts as downloaded already.
    let mut command = apt_get([
        "-y",
        "--print-uris",
        "--no-install-recommends",
        "-o",
        "Debug::NoLocking=1",
        "-o",
        "Acquire::ForceHash=SHA256",
        "-o",
        "Dir::Cache::archives=/nonexistent/",
    ]);
    command.words.extend(arguments);
    parse::artifacts(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

/// Makes a directory for archives as apt wants it to be, also where nothing is to be fetched.
pub(super) fn ensure_archives(archives: &Path) -> Result<(), Failure> {
    files::ensure_directory(&archives.join("partial"), files::PASSAGE)
        .map_err(|error| Failure::new(ResultReason::DownloadFailed, format!("{}: {error}", archives.display())))
}

/// Fetches what `install` with these arguments needs into `archives`, verified against the signed index, as apt's own user
/// (`APT::Sandbox::User`, apt.conf(5)).
pub(super) async fn fetch(arguments: Vec<OsString>, archives: &Path, line: Line<'_>) -> Result<(), Failure> {
    let mut command = apt_get([
        "-y",
        "--download-only",
        "--no-install-recommends",
        "-o",
        "Debug::NoLocking=1",
        "-o",
        "APT::Get::AllowUnauthenticated=false",
        "-o",
        "Acquire::http::Timeout=30",
        "-o",
        "Acquire::https::Timeout=30",
        "-o",
        "Acquire::Retries=3",
    ]);
    command.words.extend(archives_option(archives));
    command.words.extend(arguments);
    let output = run(&command.through(line.proxy), line.limit).await?;
    if output.succeeded() {
        return Ok(());
    }
    let text = output.all();
    let reason = if is_disk_full(&text) { ResultReason::DiskFull } else { ResultReason::DownloadFailed };
    Err(Failure::new(reason, parse::error_lines(&text, &[], MAX_MESSAGE)))
}

/// `install --reinstall NAME:ARCH=VERSION ...`: the files of versions that are installed.
pub(super) fn reinstall(files: &[Artifact]) -> Vec<OsString> {
    let mut arguments = words(["install", "--reinstall"]);
    arguments.extend(files.iter().map(|file| format!("{}:{}={}", file.name, file.arch, file.version).into()));
    arguments
}

/// Standard output of a run that succeeded; otherwise why it did not.
pub(super) fn checked(output: Output) -> Result<String, Failure> {
    if output.succeeded() {
        return Ok(output.stdout);
    }
    let text = output.all();
    let gone = text.contains("was not found") || text.contains("Unable to locate package");
    let reason = if gone { ResultReason::Superseded } else { ResultReason::PackageManagerFailed };
    let mut message = parse::error_lines(&text, &[], MAX_MESSAGE);
    if message.is_empty() {
        message = bounded(output.stderr.trim(), MAX_MESSAGE);
    }
    if message.is_empty() {
        message = format!("ended with code {:?}", output.code);
    }
    Err(Failure::new(reason, message))
}

/// `apt-get --simulate`. Without a name for its log (`Dir::Log::Planner` in apt's `examples/configure-index`) the plan of
/// the last real run stays what `/var/log/apt` tells.
pub(super) async fn simulate(arguments: &[OsString]) -> Result<Simulation, Failure> {
    let mut command = apt_get(["-s", "-o", "Debug::NoLocking=1", "-o", "Dir::Log::Planner="]);
    command.words.extend_from_slice(arguments);
    parse::simulation(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

/// `apt-get update`. Whatever goes wrong is a problem of the report: the indexes of yesterday are still there.
pub(super) async fn refresh_indexes() -> Option<Problem> {
    let command = apt_get([
        "-o",
        "Acquire::http::Timeout=20",
        "-o",
        "Acquire::https::Timeout=20",
        "-o",
        "Acquire::Retries=1",
        "update",
    ]);
    let message = match run(&command, UPDATE_LIMIT).await {
        Ok(output) => {
            let text = output.all();
            let lines = parse::unavailable(&text).join("; ");
            if lines.is_empty() && !output.succeeded() {
                format!("apt-get update ended with code {:?}", output.code)
            } else {
                lines
            }
        }
        Err(failure) => failure.message,
    };
    let code = ProblemCode::RepositoryUnavailable;
    (!message.is_empty()).then(|| Problem { code, message: bounded(&message, 300) })
}

/// What is wrong with dpkg.
pub(super) struct Audit {
    pub(super) problem: Problem,
    /// Nothing but that packages are not configured.
    pub(super) is_unconfigured: bool,
}

/// How `dpkg --audit` begins each of its lists.
const LISTS_BEGIN: &str = "The following packages";

/// The lists of what is not configured.
const UNCONFIGURED: [&str; 2] = [
    "The following packages have been unpacked but not yet configured.",
    "The following packages are only half configured, ",
];

/// What a person does about a dpkg that was interrupted.
pub(super) const INTERRUPTED: &str = "dpkg was interrupted; `dpkg --configure -a` completes its work";

/// Whether there is the journal of a dpkg that was interrupted, or is at work: with it apt-get does nothing but to say so.
pub(super) fn is_interrupted() -> Result<bool, Failure> {
    match fs::read_dir("/var/lib/dpkg/updates") {
        Ok(mut entries) => Ok(entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(broken(format!("/var/lib/dpkg/updates: {error}"))),
    }
}

/// `dpkg --audit`, and the journal of a dpkg that was interrupted.
pub(super) async fn audit() -> Result<Option<Audit>, Failure> {
    let interrupted = is_interrupted()?;
    let output = run(&line("/usr/bin/dpkg", ["--audit"]), LOCAL_LIMIT).await?;
    let said = output.stdout.trim();
    let message = if !said.is_empty() {
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    } else if !output.succeeded() {
        output.stderr.trim().to_owned()
    } else if interrupted {
        INTERRUPTED.to_owned()
    } else {
        return Ok(None);
    };
    let number: usize = UNCONFIGURED.iter().map(|list| message.matches(list).count()).sum();
    let is_unconfigured = !interrupted && number > 0 && number == message.matches(LISTS_BEGIN).count();
    let problem = Problem { code: ProblemCode::PackageManagerBroken, message: bounded(&message, 300) };
    Ok(Some(Audit { problem, is_unconfigured }))
}

pub(super) async fn all_rows() -> Result<Vec<Row>, Failure> {
    let command = line("/usr/bin/dpkg-query", ["--show", "--showformat", parse::ROW_FORMAT]);
    parse::rows(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

pub(super) async fn rows_of(names: &[&str]) -> Result<Vec<Row>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = line("/usr/bin/dpkg-query", ["--show", "--showformat", parse::ROW_FORMAT]);
    command.words.extend(names.iter().map(OsString::from));
    let output = run(&command, LOCAL_LIMIT).await?;
    // Code 1: some name is not known; the others are listed.
    if !matches!(output.code, Some(0 | 1)) {
        checked(output)?;
        return Ok(Vec::new());
    }
    parse::rows(&output.stdout).map_err(broken)
}

/// `apt-cache show` of every change, in one run.
pub(super) async fn describe(
    changes: impl Iterator<Item = &Change>,
) -> Result<BTreeMap<PackageKey, Description>, Failure> {
    match show(changes.map(|change| (change.name.as_str(), change.arch.as_str(), change.new.as_str()))) {
        Some(command) => Ok(described(&checked(run(&command, LOCAL_LIMIT).await?)?)),
        None => Ok(BTreeMap::new()),
    }
}

/// The same of versions that may not be there any more; those are left out.
pub(super) async fn describe_candidates(
    packages: &[PackageChange],
) -> Result<BTreeMap<PackageKey, Description>, Failure> {
    let candidates = packages.iter().map(|p| (p.name.as_str(), p.arch.as_str(), p.candidate.as_str()));
    let Some(command) = show(candidates) else { return Ok(BTreeMap::new()) };
    let output = run(&command, LOCAL_LIMIT).await?;
    // Code 100: nothing, or not all, was found.
    if !matches!(output.code, Some(0 | 100)) {
        checked(output)?;
        return Ok(BTreeMap::new());
    }
    Ok(described(&output.stdout))
}

fn show<'a>(versions: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Option<CommandLine> {
    let mut command = line("/usr/bin/apt-cache", ["show"]);
    let before = command.words.len();
    command.words.extend(versions.map(|(name, arch, version)| format!("{name}:{arch}={version}").into()));
    (command.words.len() > before).then_some(command)
}

fn described(output: &str) -> BTreeMap<PackageKey, Description> {
    parse::descriptions(output).into_iter().map(|found| (found.key(), found)).collect()
}

/// Every version of these packages that the indexes of the last `apt-get update` describe, in every one of them alike. What
/// is missing may be there all the same: [`describe`] knows.
///
/// An index of a source that has been taken away may lie there until the next update. What it alone has, nobody is offered.
pub(super) async fn describe_all(names: BTreeSet<&str>) -> BTreeMap<PackageKey, Description> {
    match read_indexes(names).await {
        Ok(found) => found,
        // Of an index that was not read it cannot be said whether it agrees.
        Err(failure) => {
            tracing::debug!("the indexes of packages were not read: {failure}");
            BTreeMap::new()
        }
    }
}

async fn read_indexes(names: BTreeSet<&str>) -> Result<BTreeMap<PackageKey, Description>, Failure> {
    let failed = |error: io::Error| broken(format!("{LISTS}: {error}"));
    let mut search = Search::new(names);
    for entry in fs::read_dir(LISTS).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !index::is_index(&entry.file_name().to_string_lossy()) {
            continue;
        }
        // It takes away whatever compression apt knows.
        let mut command = line("/usr/lib/apt/apt-helper", ["cat-file"]);
        command.words.push(entry.path().into());
        let output = stream(&command, LOCAL_LIMIT, |bytes| search.read(bytes).map_err(io::Error::other)).await?;
        checked(output)?;
        search.end_of_index().map_err(broken)?;
    }
    Ok(search.found())
}

/// Held packages that have a newer version.
pub(super) async fn held_changes(rows: &[Row]) -> Result<Vec<Change>, Failure> {
    let held: Vec<String> = rows.iter().filter_map(Row::held).collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut arguments = words(["--ignore-hold", "--allow-change-held-packages", "install", "--only-upgrade"]);
    arguments.extend(held.iter().map(OsString::from));
    let mut changes = simulate(&arguments).await?.changes;
    let bare: BTreeSet<&str> = rows.iter().filter(|row| row.held().is_some()).map(Row::name).collect();
    changes.retain(|change| bare.contains(change.name.as_str()));
    Ok(changes)
}
