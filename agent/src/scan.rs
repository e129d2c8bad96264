//! From a scan to a signed report that changes only when the machine does.

mod fit;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::applications::Ensure;
use patchwarden_protocol::envelope::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, HeldReason, MAX_PROBLEM, MAX_PROBLEMS, MAX_SERVICE, MAX_SERVICES,
    OperatingSystem, OutdatedServices, Package, Problem, ProblemCode, Report, Restart, Software, Update,
};
use patchwarden_protocol::surroundings::{REPORT_VERSION, UpdaterReport};
use patchwarden_protocol::{canonical, report};

pub(crate) use self::fit::worst_first;
use self::fit::{Cut, cut, cut_removable, left_out};
use crate::files;
use crate::keep::Keep;
use crate::past::{self, Past};
use crate::platform::{self, Boot, OsRelease, Outdated};
use crate::provider::{Failure, Inventory, Provider, bounded};

const REPORT: &str = "report.json";
const SOFTWARE: &str = "software.json";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error(transparent)]
    Platform(#[from] platform::PlatformError),
    #[error(transparent)]
    Canonical(#[from] canonical::NotCanonical),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {why}")]
    Invalid { path: PathBuf, why: String },
}

/// What a report says beside the inventory.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// This device.
    pub(crate) device: DeviceRef,
    /// The highest order accepted.
    pub(crate) last_sequence: Option<Sequence>,
    /// The current boot.
    pub(crate) boot: Boot,
    /// os-release(5).
    pub(crate) os: OsRelease,
    /// Running kernel.
    pub(crate) kernel: String,
    /// What it runs on.
    pub(crate) power: report::Power,
    /// Problems of the agent itself.
    pub(crate) problems: Vec<Problem>,
    /// Its own updater, where that was looked at.
    pub(crate) os_updater: Option<UpdaterReport>,
    /// Its services that still run what was replaced, where the system tells.
    pub(crate) outdated: Option<Outdated>,
    /// Which fields the report may have.
    pub(crate) version: u32,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn look(
        device: DeviceRef,
        last_sequence: Option<Sequence>,
        problems: Vec<Problem>,
    ) -> Result<Self, ReportError> {
        Ok(Self {
            device,
            last_sequence,
            boot: platform::boot()?,
            os: platform::os_release()?,
            kernel: platform::kernel(),
            power: platform::power(),
            problems,
            os_updater: None,
            outdated: None,
            version: REPORT_VERSION,
        })
    }
}

/// Of a gateway that knows of source packages' versions: see [`REPORT_VERSION`].
const SOURCE_VERSIONS: u32 = 2;

/// Of a gateway that knows as what an update is held, and that no signature vouches for it.
const HELD_REASONS: u32 = 5;

/// Of a gateway that knows first installs and removals of applications.
const APPLICATIONS: u32 = 3;

/// Of a gateway that knows services that still run what was replaced.
pub(crate) const SERVICES: u32 = 5;

/// The least version of a gateway that knows every field of a report and its software list: see [`REPORT_VERSION`].
fn version(report: &Report, software: &Software) -> u32 {
    if report.outdated_services.is_some() {
        SERVICES
    } else if report.updates.iter().any(|update| update.unauthenticated || !update.held_reason.is_hold()) {
        HELD_REASONS
    } else if report.updates.iter().any(is_of_application) {
        APPLICATIONS
    } else if report.updates.iter().any(|update| update.source_installed.is_some())
        || software.packages.iter().any(|package| package.source_version.is_some())
    {
        SOURCE_VERSIONS
    } else {
        u32::from(report.os_updater.is_some() || report.upstream.is_some())
    }
}

/// Whether it is no update of what is installed, but something that a policy says of an application.
fn is_of_application(update: &Update) -> bool {
    Ensure::of(update.classification).is_some()
}

/// What the package manager says, with what this agent knows: what was downloaded, and what can be taken back.
pub(crate) async fn look<P: Provider>(
    provider: &P,
    refresh: bool,
    keep: &Keep,
    past: &Past,
) -> Result<Inventory, Failure> {
    let mut inventory = provider.scan(refresh).await?;
    keep.mark(&mut inventory);
    let remembered = past.read();
    if !remembered.is_empty() {
        inventory.removable = past::removable(provider, remembered, &inventory).await.unwrap_or_else(|failure| {
            tracing::warn!("what can be taken back is not known: {failure}");
            Vec::new()
        });
    }
    Ok(inventory)
}

/// The report and its software list. A scan that failed leaves what the last good one found.
pub(crate) fn assemble(
    machine: Machine,
    scan: Result<Inventory, Problem>,
    previous: Option<&Report>,
) -> Result<(Report, Option<Software>), ReportError> {
    let Machine { device, last_sequence, boot, os, kernel, power, mut problems, os_updater, outdated, version } =
        machine;
    let boot_time = match previous {
        // The kernel works it out from the clock: a step of the clock is no change of the machine.
        Some(previous) if previous.boot_id == boot.id => previous.boot_time,
        _ => boot.time,
    };
    let mut report = Report {
        device,
        counter: previous.map_or(0, |previous| previous.counter),
        last_sequence,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot.id,
        boot_time,
        os: OperatingSystem {
            family: platform::FAMILY.to_owned(),
            name: bounded(&os.id, 63),
            version: bounded(&os.version, 63),
            arch: String::new(),
            kernel: bounded(&kernel, 128),
        },
        restart: Restart { required: report::Tristate::Unknown, reasons: Vec::new() },
        power,
        os_updater: os_updater.filter(|_| version > 0),
        upstream: None,
        outdated_services: outdated.filter(|_| version >= SERVICES).map(|found| outdated_services(&found)),
        updates: Vec::new(),
        removable: Vec::new(),
        truncated: false,
        counts: Counts::default(),
        software_digest: String::new(),
        problems: Vec::new(),
    };
    let software = match scan {
        Ok(inventory) => {
            let Inventory { arch, updates, files: _, removable, mut packages, .. } = inventory;
            let Inventory { restart, problems: found, unconfigured: _, upstream, .. } = inventory;
            report.upstream = upstream.filter(|_| version > 0);
            let is_known = |update: &Update| version >= APPLICATIONS || !is_of_application(update);
            let updates: Vec<Update> = updates.into_iter().filter(is_known).collect();
            let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            let security = updates.iter().filter(|update| update.classification == Classification::Security).count();
            report.counts =
                Counts { updates: number(updates.len()), security: number(security), packages: number(packages.len()) };
            report.os.arch = bounded(&arch, 20);
            report.restart = restart;
            let Cut { kept, truncated, too_large } = cut(updates)?;
            (report.updates, report.truncated) = (kept, truncated);
            report.removable = cut_removable(removable)?;
            let found: Vec<Problem> = found.into_iter().filter(|found| !problems.contains(found)).collect();
            problems.extend(found);
            problems.extend(left_out(&too_large));
            if version < SOURCE_VERSIONS {
                for package in &mut packages {
                    package.source_version = None;
                }
            }
            let software = Software { packages };
            report.software_digest = canonical::digest_of(&software)?;
            Some(software)
        }
        Err(problem) => {
            if let Some(previous) = previous {
                report.os.arch.clone_from(&previous.os.arch);
                report.restart.clone_from(&previous.restart);
                report.updates.clone_from(&previous.updates);
                report.updates.retain(|update| version >= APPLICATIONS || !is_of_application(update));
                report.removable.clone_from(&previous.removable);
                report.truncated = previous.truncated;
                report.counts = previous.counts;
                report.software_digest.clone_from(&previous.software_digest);
                report.upstream = previous.upstream.clone().filter(|_| version > 0);
            }
            problems.push(problem);
            None
        }
    };
    if version < SOURCE_VERSIONS {
        for update in &mut report.updates {
            update.source_installed = None;
        }
    }
    if version < HELD_REASONS {
        for update in &mut report.updates {
            (update.held_reason, update.unauthenticated) = (HeldReason::Hold, false);
        }
    }
    for problem in &mut problems {
        problem.message = bounded(&problem.message, MAX_PROBLEM);
    }
    problems.truncate(MAX_PROBLEMS);
    report.problems = problems;
    Ok((report, software))
}

fn outdated_services(Outdated { units, left: _, partial }: &Outdated) -> OutdatedServices {
    OutdatedServices {
        count: u32::try_from(units.len()).unwrap_or(u32::MAX),
        names: units.iter().take(MAX_SERVICES).map(|unit| bounded(unit, MAX_SERVICE)).collect(),
        partial: *partial,
    }
}

/// A scan that failed, as a problem.
pub(crate) fn scan_failed(failure: &Failure) -> Problem {
    Problem { code: ProblemCode::ScanFailed, message: failure.message.clone() }
}

/// The current report, on disk and in memory. The software list stays on disk.
#[derive(Debug)]
pub(crate) struct Reports {
    state: PathBuf,
    current: Option<Current>,
}

#[derive(Clone, Debug)]
struct Current {
    report: Report,
    envelope: Envelope<Report>,
    /// See [`version`].
    version: u32,
}

impl Reports {
    /// Reads the last report, if there is one.
    pub(crate) fn load(state: &Path) -> Result<Self, ReportError> {
        let path = state.join(REPORT);
        let bytes = files::read_if_exists(&path).map_err(|source| ReportError::Io { path: path.clone(), source })?;
        let current = match bytes {
            None => None,
            Some(bytes) => {
                let invalid = |why: String| ReportError::Invalid { path: path.clone(), why };
                let envelope: Envelope<Report> =
                    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
                // Our own file, written before it was sent.
                let report = envelope.peek().ok_or_else(|| invalid("its payload is not a report".to_owned()))?;
                Some((report, envelope))
            }
        };
        let mut reports = Self { state: state.to_owned(), current: None };
        if let Some((report, envelope)) = current {
            // There is none before the first scan that succeeds.
            let software =
                if report.software_digest.is_empty() { Software::default() } else { reports.known_software()? };
            let version = version(&report, &software);
            reports.current = Some(Current { report, envelope, version });
        }
        Ok(reports)
    }

    /// The least version of a gateway that knows every field of the last report and its software list.
    pub(crate) fn version(&self) -> Option<u32> {
        self.current.as_ref().map(|current| current.version)
    }

    /// The last report.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.current.as_ref().map(|current| &current.report)
    }

    /// The signed last report.
    pub(crate) fn envelope(&self) -> Option<&Envelope<Report>> {
        self.current.as_ref().map(|current| &current.envelope)
    }

    /// Its digest; empty while there is none.
    pub(crate) fn digest(&self) -> String {
        self.envelope().map(Envelope::digest).unwrap_or_default()
    }

    /// The software list as JSON.
    pub(crate) fn software(&self) -> Result<Vec<u8>, ReportError> {
        let path = self.state.join(SOFTWARE);
        let bytes = files::read_if_exists(&path).map_err(|source| ReportError::Io { path: path.clone(), source })?;
        bytes.ok_or_else(|| ReportError::Invalid { path, why: "no scan has succeeded yet".to_owned() })
    }

    /// The software list.
    pub(crate) fn known_software(&self) -> Result<Software, ReportError> {
        let invalid =
            |error: serde_json::Error| ReportError::Invalid { path: self.state.join(SOFTWARE), why: error.to_string() };
        serde_json::from_slice(&self.software()?).map_err(invalid)
    }

    /// When the known software list was written, if these are other packages, or other versions of them.
    pub(crate) fn software_since(&self, packages: &[Package]) -> Option<Timestamp> {
        let modified = std::fs::metadata(self.state.join(SOFTWARE)).and_then(|metadata| metadata.modified()).ok()?;
        let known = self.known_software().ok()?.packages;
        let key = |package: &Package| (package.name.clone(), package.arch.clone(), package.version.clone());
        let is_other = !known.iter().map(key).eq(packages.iter().map(key));
        Timestamp::try_from(modified).ok().filter(|_| is_other)
    }

    /// Signs and keeps `report` if it says anything new. Whether it did. The counter starts at the clock's seconds, so
    /// that a device whose last report was lost does not seem to count backwards.
    pub(crate) fn update(
        &mut self,
        mut report: Report,
        software: Option<&Software>,
        key: &PrivateKey,
        now: Timestamp,
    ) -> Result<bool, ReportError> {
        report.counter = match self.report() {
            Some(previous) if *previous == report => return Ok(false),
            Some(previous) => previous.counter + 1,
            None => u64::try_from(now.as_second()).unwrap_or_default(),
        };
        let known = self.current.as_ref().map_or(0, |current| current.version);
        let version = software.map_or(known, |software| version(&report, software));
        if let Some(software) = software {
            let known = self.report().map(|report| report.software_digest.as_str());
            if known != Some(report.software_digest.as_str()) {
                self.write(SOFTWARE, &canonical::to_bytes(software)?)?;
            }
        }
        let envelope = Envelope::seal(&report, key)?;
        self.write(REPORT, &canonical::to_bytes(&envelope)?)?;
        self.current = Some(Current { report, envelope, version });
        Ok(true)
    }

    /// Signs the report again with a counter of the clock, as the gateway knows later ones. False: the clock is behind them.
    pub(crate) fn raise(&mut self, key: &PrivateKey, now: Timestamp) -> Result<bool, ReportError> {
        let counter = u64::try_from(now.as_second()).unwrap_or_default();
        let Some(current) = self.current.as_ref().filter(|current| current.report.counter < counter) else {
            return Ok(false);
        };
        let (report, version) = (Report { counter, ..current.report.clone() }, current.version);
        let envelope = Envelope::seal(&report, key)?;
        self.write(REPORT, &canonical::to_bytes(&envelope)?)?;
        self.current = Some(Current { report, envelope, version });
        Ok(true)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ReportError> {
        let path = self.state.join(name);
        files::write_atomic(&path, bytes, files::PRIVATE).map_err(|source| ReportError::Io { path, source })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use patchwarden_protocol::order::PackageChange;
    use patchwarden_protocol::report::{Package, Removable, Severity, Tristate, Update};

    use super::*;

    pub(crate) fn update(id: &str, severity: Severity, classification: Classification, packages: usize) -> Update {
        let package = |n| PackageChange {
            name: format!("package-{n}"),
            arch: "amd64".into(),
            installed: "1".into(),
            candidate: "2".into(),
        };
        Update {
            id: id.into(),
            title: id.into(),
            classification,
            severity,
            cves: vec![],
            published: None,
            packages: (0..packages).map(package).collect(),
            origin: "Debian:12/stable".into(),
            size_bytes: 1,
            requires_restart: Tristate::Unknown,
            interrupts_service: Tristate::Unknown,
            artifacts_digest: "sha256:0".into(),
            held: false,
            held_reason: HeldReason::Hold,
            unauthenticated: false,
            downloaded: false,
            source_installed: None,
        }
    }

    pub(crate) fn inventory(updates: Vec<Update>) -> Inventory {
        let package = Package {
            name: "bash".into(),
            arch: "amd64".into(),
            version: "5".into(),
            source: "bash".into(),
            source_version: None,
        };
        Inventory {
            arch: "amd64".into(),
            updates,
            files: BTreeMap::new(),
            removable: vec![],
            packages: vec![package],
            restart: Restart { required: Tristate::No, reasons: vec![] },
            problems: vec![],
            unconfigured: vec![],
            upstream: None,
        }
    }

    fn machine(second: i64) -> Machine {
        Machine {
            device: DeviceRef { namespace: "acme".into(), name: "web-1".into() },
            last_sequence: None,
            boot: Boot { id: "b".into(), time: Timestamp::from_second(second).unwrap() },
            os: OsRelease { id: "debian".into(), like: String::new(), version: "12.1".into() },
            kernel: "6.1".into(),
            power: report::Power::Mains,
            problems: vec![],
            os_updater: None,
            outdated: None,
            version: 1,
        }
    }

    #[test]
    fn an_unchanged_machine_keeps_its_envelope_and_a_changed_one_counts_on() {
        let directory = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate();
        let mut reports = Reports::load(directory.path()).unwrap();
        let mut scan = |second, updates: Vec<Update>| {
            let (report, software) = assemble(machine(second), Ok(inventory(updates)), reports.report()).unwrap();
            let changed =
                reports.update(report, software.as_ref(), &key, Timestamp::from_second(1000).unwrap()).unwrap();
            (changed, reports.report().unwrap().counter, reports.digest())
        };
        let one = || vec![update("a", Severity::Unknown, Classification::Updates, 1)];
        let (changed, counter, digest) = scan(7, vec![]);
        assert!(changed && counter == 1000);
        // The clock moved the boot time; nothing else did.
        assert_eq!(scan(8, vec![]), (false, 1000, digest.clone()));
        assert_eq!(scan(8, one()).1, 1001);
        let last = scan(8, vec![]);
        assert!(last.1 == 1002 && last.2 != digest);
        let again = Reports::load(directory.path()).unwrap();
        assert_eq!((again.digest(), again.report()), (reports.digest(), reports.report()));
        assert_eq!(canonical::digest(&again.software().unwrap()), again.report().unwrap().software_digest);
        assert!(again.envelope().unwrap().open(&key.public()).is_ok());
    }

    #[test]
    fn a_machine_that_was_set_back_reports_with_a_counter_of_the_present_time() {
        let directory = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate();
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut reports = Reports::load(directory.path()).unwrap();
        assert!(!reports.raise(&key, at(3000)).unwrap(), "there is none yet");
        let (report, software) = assemble(machine(7), Ok(inventory(vec![])), None).unwrap();
        reports.update(report, software.as_ref(), &key, at(1000)).unwrap();
        let before = reports.report().unwrap().clone();
        assert!(!reports.raise(&key, at(1000)).unwrap(), "a clock that is behind makes nothing new");
        assert_eq!(reports.report(), Some(&before));
        assert!(reports.raise(&key, at(3000)).unwrap());
        let raised = Report { counter: 3000, ..before };
        let kept = Reports::load(directory.path()).unwrap();
        assert_eq!(kept.report(), Some(&raised));
        assert_eq!(kept.envelope().unwrap().open(&key.public()).unwrap(), raised);
    }

    #[test]
    fn a_scan_that_failed_keeps_the_last_updates_and_says_so() {
        let updates = vec![update("a", Severity::Unknown, Classification::Security, 1)];
        let Update { id, packages, artifacts_digest, .. } = updates[0].clone();
        let mut inventory = inventory(updates);
        inventory.removable.push(Removable { id, packages, artifacts_digest });
        let (good, _) = assemble(machine(7), Ok(inventory), None).unwrap();
        assert_eq!(good.removable.len(), 1);
        let problem = Problem { code: ProblemCode::ScanFailed, message: "x".repeat(400) };
        let (report, software) = assemble(machine(7), Err(problem.clone()), Some(&good)).unwrap();
        assert_eq!((&report.updates, &report.removable), (&good.updates, &good.removable));
        assert_eq!((report.counts, software), (good.counts, None));
        assert!(report.problems[0].message.len() <= 300);
        let (first, _) = assemble(machine(7), Err(problem), None).unwrap();
        assert_eq!((first.updates.len(), first.problems.len()), (0, 1));
    }

    #[test]
    fn services_are_told_to_a_gateway_that_knows_of_them_the_first_by_name() {
        let unit = |number: usize| format!("{}{number}.service", "s".repeat(60));
        let outdated =
            Some(Outdated { units: (0..=MAX_SERVICES).map(unit).collect(), left: BTreeMap::new(), partial: true });
        let told = |version, outdated: &Option<Outdated>| {
            let machine = Machine { outdated: outdated.clone(), version, ..machine(7) };
            let (report, software) = assemble(machine, Ok(inventory(vec![])), None).unwrap();
            (super::version(&report, &software.unwrap()), report.outdated_services)
        };
        assert_eq!(told(SERVICES - 1, &outdated), (0, None));
        assert_eq!(told(SERVICES, &None), (0, None), "it is not known");
        let (version, services) = told(SERVICES, &outdated);
        let OutdatedServices { count, names, partial } = services.unwrap();
        assert_eq!((version, count, names.len(), partial), (SERVICES, 9, MAX_SERVICES, true));
        assert!(names.iter().all(|name| name.len() <= MAX_SERVICE && name.ends_with('…')), "{names:?}");
        let none = Some(Outdated { units: BTreeSet::new(), left: BTreeMap::new(), partial: false });
        assert_eq!(told(SERVICES, &none).1, Some(OutdatedServices::default()));
    }

    #[test]
    fn a_damaged_report_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(REPORT), "{").unwrap();
        assert!(Reports::load(directory.path()).unwrap_err().to_string().contains("report.json"));
    }
}
