//! `limits.toml`: what the owner of this machine lets orders do, whoever signs them.
//!
//! It lies beside `agent.toml`, belongs to root, and nothing that comes over the network changes it. Without it every order
//! may do what it says. It is read anew whenever something is about to begin. What cannot be read or understood, or could
//! have been written by somebody else than root, allows nothing.

mod applications;
mod freeze;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use patchwarden_protocol::order::{Action, Dependencies, Order, PackageChange, Verb};
use patchwarden_protocol::report::{Problem, ProblemCode};
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::settings::OsUpdater;
use serde::Deserialize;

use self::applications::{Applications, Removals};
use self::freeze::Freeze;
use crate::glob::Glob;
use crate::provider::{Change, Failure, Inventory, Simulation, bounded};
use crate::{files, platform};

/// Its name, beside `agent.toml`.
const FILE: &str = "limits.toml";

/// A file of more bytes was not written by a person.
const MAX_BYTES: u64 = 64 << 10;

/// More links than that Linux follows nowhere (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Longest message: an action's has room for 1000.
const MAX_MESSAGE: usize = 900;

/// What is wrong with the file. Nothing is allowed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {why}")]
    Unsafe { path: PathBuf, why: String },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    #[error("{path}: freezes: this machine's time zone is not known: {why}")]
    NoTimeZone { path: PathBuf, why: String },
}

impl From<&LimitsError> for Failure {
    fn from(error: &LimitsError) -> Self {
        Self::new(ResultReason::LimitedByDevice, bounded(&format!("no order is carried out: {error}"), MAX_MESSAGE))
    }
}

impl LimitsError {
    /// For the report.
    pub(crate) fn problem(&self) -> Problem {
        Problem { code: ProblemCode::LimitsInvalid, message: self.to_string() }
    }
}

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// For messages.
    path: PathBuf,
    verbs: Option<Vec<Verb>>,
    exclude_packages: Vec<Glob>,
    origins: Option<Vec<Glob>>,
    site_caches: Option<Vec<Glob>>,
    publishers_scripts: Option<Vec<Glob>>,
    exclude_services: Vec<Glob>,
    dependencies: Option<Dependencies>,
    os_updater: Option<OsUpdater>,
    applications: Applications,
    freezes: Vec<Freeze>,
    /// On whose clock the freezes are.
    zone: TimeZone,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    verbs: Option<Vec<Verb>>,
    #[serde(default)]
    exclude_packages: Vec<String>,
    origins: Option<Vec<String>>,
    site_caches: Option<Vec<String>>,
    publishers_scripts: Option<Vec<String>>,
    #[serde(default)]
    exclude_services: Vec<String>,
    dependencies: Option<Dependencies>,
    os_updater: Option<OsUpdater>,
    first_installs: Option<bool>,
    removals: Option<Removals>,
    #[serde(default)]
    freezes: Vec<freeze::Written>,
}

/// Where the limits lie that belong to this configuration.
pub(crate) fn beside(config: &Path) -> PathBuf {
    config.with_file_name(FILE)
}

impl Limits {
    /// Reads the file; that it is not there limits nothing.
    pub(crate) fn load(path: &Path) -> Result<Self, LimitsError> {
        let Some(text) = read(path)? else { return Ok(Self::none(path)) };
        let zone = || platform::local_zone().map_err(|why| LimitsError::NoTimeZone { path: path.to_owned(), why });
        Self::parse(path, &text, zone)
    }

    /// Everything is allowed.
    pub(crate) fn none(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            verbs: None,
            exclude_packages: Vec::new(),
            origins: None,
            site_caches: None,
            publishers_scripts: None,
            exclude_services: Vec::new(),
            dependencies: None,
            os_updater: None,
            applications: Applications::default(),
            freezes: Vec::new(),
            zone: TimeZone::UTC,
        }
    }

    fn parse(
        path: &Path,
        text: &str,
        zone: impl FnOnce() -> Result<TimeZone, LimitsError>,
    ) -> Result<Self, LimitsError> {
        let invalid = |message: String| LimitsError::Invalid { path: path.to_owned(), message };
        // toml's messages name the line and the field.
        let written: Written = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let Written {
            verbs,
            exclude_packages,
            origins,
            site_caches,
            publishers_scripts,
            exclude_services,
            dependencies,
            os_updater,
            first_installs,
            removals,
            freezes,
        } = written;
        let some = |field, patterns: Option<Vec<String>>| patterns.map(|patterns| globs(field, patterns)).transpose();
        let freezes = freezes.into_iter().enumerate().map(|(index, written)| {
            Freeze::try_from(written).map_err(|why| invalid(format!("freezes: number {}: {why}", index + 1)))
        });
        let freezes = freezes.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            path: path.to_owned(),
            verbs,
            exclude_packages: globs("exclude_packages", exclude_packages).map_err(invalid)?,
            origins: some("origins", origins).map_err(invalid)?,
            site_caches: some("site_caches", site_caches).map_err(invalid)?,
            publishers_scripts: some("publishers_scripts", publishers_scripts).map_err(invalid)?,
            exclude_services: globs("exclude_services", exclude_services).map_err(invalid)?,
            dependencies,
            os_updater,
            applications: Applications::of(first_installs, removals),
            zone: if freezes.is_empty() { TimeZone::UTC } else { zone()? },
            freezes,
        })
    }

    /// Whether anything is limited.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::none(&self.path)
    }

    /// Whether this may begin at this time.
    pub(crate) fn check(&self, verb: Verb, at: Timestamp) -> Result<(), Failure> {
        if self.verbs.as_ref().is_some_and(|verbs| !verbs.contains(&verb)) {
            return Err(self.failure(&format!("verbs: {verb:?} is not among those that are allowed")));
        }
        match self.freezes.iter().filter_map(|freeze| freeze.end(at, &self.zone)).max() {
            None => Ok(()),
            Some(end) => {
                let end = end.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z");
                Err(self.failure(&format!("freezes: nothing begins until {end}")))
            }
        }
    }

    /// Whether the package manager may do this, with all that follows from what was ordered.
    pub(crate) fn check_changes(&self, simulation: &Simulation) -> Result<(), Failure> {
        let Simulation { changes, removals, configures, oldest: _ } = simulation;
        let mut wrong = Vec::new();
        let touched = changes.iter().map(|change| &change.name).chain(removals).chain(configures);
        wrong.extend(touched.filter(|name| self.excludes(name)).map(|name| format!("exclude_packages: {name}")));
        let from_elsewhere = changes.iter().filter(|change| !self.allows_origin(&change.origin));
        wrong.extend(from_elsewhere.map(|change| {
            let origin = if change.origin.is_empty() { "an unknown origin" } else { &change.origin };
            format!("origins: {} {} comes from {origin}", change.name, change.new)
        }));
        if wrong.is_empty() { Ok(()) } else { Err(self.failure(&wrong.join(", "))) }
    }

    /// Whether the package manager may do so much beyond what is ordered.
    pub(crate) fn check_dependencies(&self, simulation: &Simulation, ordered: &[PackageChange]) -> Result<(), Failure> {
        let Some(most) = self.dependencies else { return Ok(()) };
        match simulation.beyond(ordered, most).as_slice() {
            [] => Ok(()),
            more => Err(self.failure(&format!("dependencies: {most:?}: it would also {}", more.join(", ")))),
        }
    }

    /// Whether files may come through this proxy.
    pub(crate) fn check_site_cache(&self, url: &str) -> Result<(), Failure> {
        match &self.site_caches {
            Some(allowed) if !allowed.iter().any(|glob| glob.matches(url)) => {
                Err(self.failure(&format!("site_caches: {url} is not among those that are allowed")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a script of this name may be run that a publisher has signed. Those in `hooks.d` are not asked about: what lies there is
    /// the owner's.
    pub(crate) fn check_script(&self, name: &str) -> Result<(), Failure> {
        match &self.publishers_scripts {
            Some(allowed) if !allowed.iter().any(|glob| glob.matches(name)) => {
                Err(self.failure(&format!("publishers_scripts: {name} is not among those that are allowed")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a service may be restarted: by the name of its unit, also without `.service`, and by that of its template.
    pub(crate) fn check_service(&self, unit: &str) -> Result<(), Failure> {
        let stem = unit.strip_suffix(".service").unwrap_or(unit);
        let template = stem.split_once('@').map(|(template, _)| format!("{template}@"));
        let of_template = template.iter().flat_map(|template| [template.clone(), format!("{template}.service")]);
        let names: Vec<String> = [unit.to_owned(), stem.to_owned()].into_iter().chain(of_template).collect();
        if self.exclude_services.iter().any(|glob| names.iter().any(|name| glob.matches(name))) {
            return Err(self.failure(&format!("exclude_services: {unit}")));
        }
        Ok(())
    }

    /// What becomes of the operating system's own updater, whatever anybody else says.
    pub(crate) fn os_updater(&self) -> Option<OsUpdater> {
        self.os_updater
    }

    /// Whether an order is to be accepted: whether there is anything in it that may begin now. What else it leads to is
    /// seen when it is simulated.
    pub(crate) fn check_order(&self, order: &Order, now: Timestamp) -> Result<(), Failure> {
        if let Some(action) = order.actions.first() {
            self.check(action.verb, now)?;
        }
        let excluded = |action: &Action| action.packages.iter().any(|package| self.excludes(&package.name));
        if order.actions.iter().all(excluded) {
            return Err(self.failure("exclude_packages: every update of the order has such a package"));
        }
        Ok(())
    }

    /// An update that no order may install here is held back by the device.
    pub(crate) fn mark(&self, inventory: &mut Inventory, is_stateful: impl Fn(&str) -> bool) {
        for update in &mut inventory.updates {
            let excluded = update.packages.iter().any(|package| self.excludes(&package.name));
            let refused = update.packages.iter().any(|package| {
                let PackageChange { name, arch: _, installed, candidate } = package;
                self.applications.refuses(name, installed, candidate, &is_stateful).is_some()
            });
            update.held = update.held || excluded || refused || !self.allows_origin(&update.origin);
        }
    }

    /// Whether applications may come or go as these changes say. What of them is stateful their recipes say.
    pub(crate) fn check_applications(
        &self,
        changes: &[Change],
        is_stateful: impl Fn(&str) -> bool,
    ) -> Result<(), Failure> {
        let refused = changes.iter().find_map(|Change { name, old, new, .. }| {
            self.applications.refuses(name, old.as_deref().unwrap_or_default(), new, &is_stateful)
        });
        refused.map_or(Ok(()), |why| Err(self.failure(&why)))
    }

    fn excludes(&self, package: &str) -> bool {
        self.exclude_packages.iter().any(|glob| glob.matches(package))
    }

    /// The same version may be offered by several, one of which is enough, as for unattended-upgrades.
    fn allows_origin(&self, origins: &str) -> bool {
        let Some(allowed) = &self.origins else { return true };
        origins.split(", ").any(|origin| !origin.is_empty() && allowed.iter().any(|glob| glob.matches(origin)))
    }

    fn failure(&self, why: &str) -> Failure {
        let message = format!("{} does not allow it: {why}", self.path.display());
        Failure::new(ResultReason::LimitedByDevice, bounded(&message, MAX_MESSAGE))
    }
}

#[cfg(test)]
impl Limits {
    /// What a file of this text says.
    pub(crate) fn of(text: &str) -> Result<Self, LimitsError> {
        Self::parse(Path::new(FILE), text, || Ok(TimeZone::UTC))
    }
}

/// The text of a file that root alone could have written.
fn read(path: &Path) -> Result<Option<String>, LimitsError> {
    let io = |source| LimitsError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        // A link to nothing is no absent file: its owner meant to set limits.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    files::check_owner(path, &file.metadata().map_err(io)?)
        .map_err(|why| LimitsError::Unsafe { path: path.to_owned(), why })?;
    // Whoever may write a directory may put another file there.
    for path in names_of(path).map_err(io)? {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let metadata = directory.metadata().map_err(|source| LimitsError::Io { path: directory.to_owned(), source })?;
        files::check_owner(directory, &metadata)
            .map_err(|why| LimitsError::Unsafe { path: directory.to_owned(), why })?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    let invalid = |message: String| LimitsError::Invalid { path: path.to_owned(), message };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(format!("is larger than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| invalid("is not UTF-8".to_owned()))
}

/// Every name by which a file is found: its own, that of each link on the way, and the last one without any.
fn names_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = vec![path.to_owned()];
    let mut name = path.to_owned();
    while names.len() <= MAX_LINKS && name.is_symlink() {
        name = name.with_file_name("").join(name.read_link()?);
        names.push(name.clone());
    }
    names.push(path.canonicalize()?);
    Ok(names)
}

fn globs(field: &str, patterns: Vec<String>) -> Result<Vec<Glob>, String> {
    if patterns.iter().any(|pattern| pattern.trim().is_empty()) {
        return Err(format!("{field}: a pattern must not be empty"));
    }
    Ok(patterns.into_iter().map(Glob::new).collect())
}

/// What a file may say.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let zone = || Ok(TimeZone::UTC);
    if let Ok(limits) = Limits::parse(Path::new(FILE), text, zone) {
        let _ = limits.check(Verb::Install, Timestamp::UNIX_EPOCH);
        let _ = (limits.excludes("bash"), limits.allows_origin("Debian:12/stable"));
    }
}

#[cfg(test)]
mod tests;
