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

use super::index::{self, Found, Search};
use super::parse::{self, Description, PackageKey, Row};
use super::policy::{self, Policy};
use crate::files;
use crate::provider::run::{Output, run, stream};
use crate::provider::support::{LOCAL_LIMIT, MAX_MESSAGE, PATH, broken};
use crate::provider::{
    Artifact, Change, CommandLine, Direction, Environment, Failure, Line, Simulation, bounded, words,
};

/// `apt-get update`: with a dead mirror it tries for a minute or so.
const UPDATE_LIMIT: Duration = Duration::from_mins(10);

/// Where apt has its indexes (`Dir::State::lists` of apt.conf(5)). Those that lie elsewhere are asked of apt.
pub(super) const LISTS: &str = "/var/lib/apt/lists";

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

/// The same of versions (name, architecture, version) that may not be there any more; those are left out.
pub(super) async fn describe_known<'a>(
    versions: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
) -> Result<BTreeMap<PackageKey, Description>, Failure> {
    let Some(command) = show(versions) else { return Ok(BTreeMap::new()) };
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

/// The indexes that the last `apt-get update` has left.
#[derive(Debug)]
pub(super) struct Indexes {
    found: Found,
    /// Names of their files, in the order in which they were read.
    files: Vec<String>,
    /// Names of all files beside them.
    beside: Vec<String>,
}

impl Indexes {
    /// Of each version that every index describes alike. What is missing may be there all the same: [`describe`] knows.
    ///
    /// An index of a source that has been taken away may lie there until the next update. What it alone has, nobody is offered.
    pub(super) fn descriptions(&self) -> &BTreeMap<PackageKey, Description> {
        &self.found.descriptions
    }

    pub(super) fn into_descriptions(self) -> BTreeMap<PackageKey, Description> {
        self.found.descriptions
    }

    /// Architecture and version of every package of this name, and whether not all machines are to have it yet.
    pub(super) fn versions(&self, name: &str) -> impl Iterator<Item = (&str, &str, bool)> {
        let from = (name.to_owned(), String::new(), String::new());
        let of_it = self.found.versions.range(from..).take_while(move |((it, ..), _)| it == name);
        of_it.map(|((_, arch, version), seen)| (arch.as_str(), version.as_str(), seen.is_phased))
    }

    /// Names of the indexes that have a version.
    pub(super) fn files(&self, key: &PackageKey) -> impl Iterator<Item = &str> {
        let numbers = self.found.versions.get(key).into_iter().flat_map(|seen| &seen.indexes);
        numbers.filter_map(|number| self.files.get(*number)).map(String::as_str)
    }

    /// Where a version comes from, as `apt-get -s` writes it, by the Release files beside the indexes that have it.
    pub(super) fn origin(&self, key: &PackageKey) -> String {
        let mut origins = Vec::new();
        for file in self.files(key) {
            let Some(release) = index::release_of(file, &self.beside) else { continue };
            let path = Path::new(LISTS).join(release);
            match fs::read(&path) {
                Ok(bytes) => origins.push(index::origin_of(&String::from_utf8_lossy(&bytes))),
                Err(error) => tracing::warn!("{}: {error}", path.display()),
            }
        }
        origins.dedup();
        origins.join(", ")
    }
}

/// Reads every index for packages of these names. Nothing if one cannot be read: of an index that was not read it cannot be said
/// whether it agrees with the others.
pub(super) async fn indexes(names: BTreeSet<&str>) -> Option<Indexes> {
    read_indexes(names)
        .await
        .inspect_err(|failure| tracing::debug!("the indexes of packages were not read: {failure}"))
        .ok()
}

async fn read_indexes(names: BTreeSet<&str>) -> Result<Indexes, Failure> {
    let failed = |error: io::Error| broken(format!("{LISTS}: {error}"));
    let mut search = Search::new(names);
    let (mut files, mut beside) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(LISTS).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !index::is_index(&name) {
            beside.push(name);
            continue;
        }
        // It takes away whatever compression apt knows.
        let mut command = line("/usr/lib/apt/apt-helper", ["cat-file"]);
        command.words.push(entry.path().into());
        let output = stream(&command, LOCAL_LIMIT, |bytes| search.read(bytes).map_err(io::Error::other)).await?;
        checked(output)?;
        search.end_of_index().map_err(broken)?;
        files.push(name);
    }
    // apt may keep them elsewhere (`Dir::State::lists`).
    if files.is_empty() {
        return Err(broken(format!("{LISTS}: there is no index of packages")));
    }
    Ok(Indexes { found: search.found(), files, beside })
}

/// What apt makes of these packages, each by itself: `apt-cache policy`.
pub(super) async fn policies(names: impl IntoIterator<Item = String>) -> Result<Vec<Policy>, Failure> {
    let mut command = line("/usr/bin/apt-cache", ["policy"]);
    let before = command.words.len();
    command.words.extend(names.into_iter().map(OsString::from));
    if command.words.len() == before {
        return Ok(Vec::new());
    }
    policy::policies(&checked(run(&command, LOCAL_LIMIT).await?)?).map_err(broken)
}

/// What the repository of each file calls itself, by what `apt-cache policy` calls the file.
pub(super) async fn origins() -> Result<BTreeMap<String, String>, Failure> {
    Ok(policy::origins(&checked(run(&line("/usr/bin/apt-cache", ["policy"]), LOCAL_LIMIT).await?)?))
}
