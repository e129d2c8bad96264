//! From a scan to a signed report that changes only when the machine does.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use patchwarden_protocol::envelope::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, MAX_REMOVABLE, MAX_REMOVABLE_BYTES, MAX_UPDATES, MAX_UPDATES_BYTES,
    OperatingSystem, Problem, ProblemCode, Removable, Report, Restart, Software, Update,
};
use patchwarden_protocol::{canonical, report};

use crate::files;
use crate::keep::Keep;
use crate::past::{self, Past};
use crate::platform::{self, Boot, OsRelease};
use crate::power;
use crate::provider::{Failure, Inventory, Provider, bounded};

/// An update of more packages does not fit the report's schema.
const MAX_PACKAGES: usize = 128;

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
            power: power::of(Path::new(power::SUPPLIES)),
            problems,
        })
    }
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
    let Machine { device, last_sequence, boot, os, kernel, power, mut problems } = machine;
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
            family: "linux".to_owned(),
            name: os.id,
            version: os.version,
            arch: String::new(),
            kernel,
        },
        restart: Restart { required: report::Tristate::Unknown, reasons: Vec::new() },
        power,
        updates: Vec::new(),
        removable: Vec::new(),
        truncated: false,
        counts: Counts::default(),
        software_digest: String::new(),
        problems: Vec::new(),
    };
    let software = match scan {
        Ok(Inventory { arch, updates, files: _, removable, packages, restart, problems: found }) => {
            let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            let security = updates.iter().filter(|update| update.classification == Classification::Security).count();
            report.counts =
                Counts { updates: number(updates.len()), security: number(security), packages: number(packages.len()) };
            report.os.arch = arch;
            report.restart = restart;
            (report.updates, report.truncated) = cut(updates)?;
            report.removable = cut_removable(removable)?;
            problems.extend(found);
            let software = Software { packages };
            report.software_digest = canonical::digest_of(&software)?;
            Some(software)
        }
        Err(problem) => {
            if let Some(previous) = previous {
                report.os.arch.clone_from(&previous.os.arch);
                report.restart.clone_from(&previous.restart);
                report.updates.clone_from(&previous.updates);
                report.removable.clone_from(&previous.removable);
                report.truncated = previous.truncated;
                report.counts = previous.counts;
                report.software_digest.clone_from(&previous.software_digest);
            }
            problems.push(problem);
            None
        }
    };
    for problem in &mut problems {
        problem.message = bounded(&problem.message, 300);
    }
    report.problems = problems;
    Ok((report, software))
}

/// A scan that failed, as a problem.
pub(crate) fn scan_failed(failure: &Failure) -> Problem {
    Problem { code: ProblemCode::ScanFailed, message: failure.message.clone() }
}

/// Worst first, within the limits; the second value says whether something was left out. An update that does not fit
/// does not hold back smaller ones below it, and the worst one is always in, or it would never be installed.
fn cut(mut updates: Vec<Update>) -> Result<(Vec<Update>, bool), ReportError> {
    updates.sort_by(|a, b| {
        b.severity.cmp(&a.severity).then(a.classification.cmp(&b.classification)).then_with(|| a.id.cmp(&b.id))
    });
    let mut kept = Vec::new();
    let mut truncated = false;
    // The brackets of the list.
    let mut bytes = 2;
    for update in updates {
        let size = canonical::to_bytes(&update)?.len() + 1;
        let fits = kept.len() < MAX_UPDATES && (bytes + size <= MAX_UPDATES_BYTES || kept.is_empty());
        if fits && update.packages.len() <= MAX_PACKAGES {
            bytes += size;
            kept.push(update);
        } else {
            truncated = true;
        }
    }
    Ok((kept, truncated))
}

/// The latest first, within the limits. One that does not fit does not hold back smaller ones.
fn cut_removable(removable: Vec<Removable>) -> Result<Vec<Removable>, ReportError> {
    let mut kept = Vec::new();
    // The brackets of the list.
    let mut bytes = 2;
    for entry in removable {
        let size = canonical::to_bytes(&entry)?.len() + 1;
        if kept.len() < MAX_REMOVABLE && bytes + size <= MAX_REMOVABLE_BYTES && entry.packages.len() <= MAX_PACKAGES {
            bytes += size;
            kept.push(entry);
        }
    }
    Ok(kept)
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
                Some(Current { report, envelope })
            }
        };
        Ok(Self { state: state.to_owned(), current })
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
        if let Some(software) = software {
            let known = self.report().map(|report| report.software_digest.as_str());
            if known != Some(report.software_digest.as_str()) {
                self.write(SOFTWARE, &canonical::to_bytes(software)?)?;
            }
        }
        let envelope = Envelope::seal(&report, key)?;
        self.write(REPORT, &canonical::to_bytes(&envelope)?)?;
        self.current = Some(Current { report, envelope });
        Ok(true)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ReportError> {
        let path = self.state.join(name);
        files::write_atomic(&path, bytes, files::PRIVATE).map_err(|source| ReportError::Io { path, source })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use patchwarden_protocol::order::PackageChange;
    use patchwarden_protocol::report::{Package, Severity, Tristate};

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
            downloaded: false,
        }
    }

    pub(crate) fn inventory(updates: Vec<Update>) -> Inventory {
        let package = Package { name: "bash".into(), arch: "amd64".into(), version: "5".into(), source: "bash".into() };
        Inventory {
            arch: "amd64".into(),
            updates,
            files: BTreeMap::new(),
            removable: vec![],
            packages: vec![package],
            restart: Restart { required: Tristate::No, reasons: vec![] },
            problems: vec![],
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
        }
    }

    fn ids(updates: &[Update]) -> Vec<&str> {
        updates.iter().map(|update| update.id.as_str()).collect()
    }

    #[test]
    fn the_worst_updates_come_first() {
        use Classification::{Security, Unclassified, Updates};
        let updates = vec![
            update("a", Severity::Unknown, Unclassified, 1),
            update("d", Severity::Unknown, Security, 1),
            update("c", Severity::Unknown, Security, 1),
            update("b", Severity::High, Updates, 1),
        ];
        let (kept, truncated) = cut(updates).unwrap();
        assert_eq!((ids(&kept), truncated), (vec!["b", "c", "d", "a"], false));
    }

    #[test]
    fn a_report_is_cut_and_says_so() {
        let security = Classification::Security;
        let many = (0..30).map(|n| update(&format!("{n:02}"), Severity::Unknown, security, 1)).collect();
        let (kept, truncated) = cut(many).unwrap();
        assert!(truncated && !kept.is_empty() && kept.len() <= MAX_UPDATES);
        assert!(canonical::to_bytes(&kept).unwrap().len() <= MAX_UPDATES_BYTES);
        let big = vec![update("a", Severity::Unknown, security, 1), update("b", Severity::Unknown, security, 100)];
        assert_eq!(cut(big).map(|(kept, truncated)| (ids(&kept) == ["a"], truncated)).unwrap(), (true, true));
        let bigger = vec![update("a", Severity::High, security, 100), update("b", Severity::Unknown, security, 1)];
        assert_eq!(cut(bigger).map(|(kept, truncated)| (ids(&kept) == ["a"], truncated)).unwrap(), (true, true));
        let impossible = vec![update("a", Severity::High, security, 129), update("b", Severity::Unknown, security, 1)];
        assert_eq!(cut(impossible).map(|(kept, truncated)| (ids(&kept) == ["b"], truncated)).unwrap(), (true, true));
    }

    #[test]
    fn what_can_be_taken_back_is_cut_from_the_oldest_on() {
        let entry = |id: &str, packages| {
            let Update { id, packages, artifacts_digest, .. } =
                update(id, Severity::Unknown, Classification::Updates, packages);
            Removable { id, packages, artifacts_digest }
        };
        let names = |kept: &[Removable]| kept.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>();
        let kept = cut_removable((0..20).map(|n| entry(&format!("{n}"), 1)).collect()).unwrap();
        assert_eq!(names(&kept), (0..kept.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(!kept.is_empty() && kept.len() <= MAX_REMOVABLE);
        assert!(canonical::to_bytes(&kept).unwrap().len() <= MAX_REMOVABLE_BYTES);
        let kept = cut_removable(vec![entry("large", 60), entry("small", 1)]).unwrap();
        assert_eq!(names(&kept), ["small"]);
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
    fn a_damaged_report_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(REPORT), "{").unwrap();
        assert!(Reports::load(directory.path()).unwrap_err().to_string().contains("report.json"));
    }
}
