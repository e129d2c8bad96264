//! A machine that does not exist: what its agent would tell, of the size that Debian's machines tell it.

use anyhow::Context as _;
use jiff::Timestamp;
use patchwarden_protocol::agent_v1 as wire;
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, HeldReason, MAX_UPDATES_BYTES, OperatingSystem, Package, Power, Report, Restart,
    Severity, Software, Tristate, Update,
};
use patchwarden_protocol::{Envelope, canonical};

/// Updates that a machine lacks. What does not fit a report is cut, as an agent does.
const UPDATES: usize = 20;

/// Packages of the smallest machine.
pub const FEWEST: usize = 200;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    device: DeviceRef,
    /// How many packages it has.
    packages: usize,
    /// Updates that were installed on it since the start.
    installed: usize,
    software_digest: String,
    report: wire::Report,
    report_digest: String,
    /// From the list before the last update.
    delta: Vec<u8>,
}

impl Machine {
    /// The machine of a number: 200 to 400 packages.
    pub fn new(number: usize, device: DeviceRef, key: &PrivateKey) -> anyhow::Result<Self> {
        let mut machine = Self {
            device,
            packages: FEWEST + number * 37 % 201,
            installed: 0,
            software_digest: String::new(),
            report: wire::Report::default(),
            report_digest: String::new(),
            delta: Vec::new(),
        };
        machine.software_digest = canonical::digest_of(&machine.software())?;
        machine.seal(key)?;
        Ok(machine)
    }

    /// Digest of its report.
    pub fn report_digest(&self) -> &str {
        &self.report_digest
    }

    /// Its counter.
    pub fn counter(&self) -> u64 {
        self.installed as u64 + 1
    }

    /// Its report, as an agent repeats it; with all software where the gateway asks for that.
    pub fn report(&self, with_software: bool) -> anyhow::Result<wire::Report> {
        let mut report = self.report.clone();
        if with_software {
            report.software = serde_json::to_vec(&self.software())?;
        }
        Ok(report)
    }

    /// Installs an update, after which another one is offered: its new report, with what differs in its software.
    pub fn change(&mut self, key: &PrivateKey) -> anyhow::Result<wire::Report> {
        let before = self.software();
        self.installed += 1;
        let after = self.software();
        self.delta = serde_json::to_vec(&SoftwareDelta::between(&self.software_digest, &before, &after))?;
        self.software_digest = canonical::digest_of(&after)?;
        self.seal(key)?;
        Ok(wire::Report { software_delta: self.delta.clone(), ..self.report.clone() })
    }

    /// Its name and packages.
    pub fn inventory(&self) -> serde_json::Value {
        let software = self.software();
        let packages: Vec<_> = software.packages.iter().map(|package| (&package.name, &package.version)).collect();
        serde_json::json!({ "name": self.device.name, "packages": packages })
    }

    fn seal(&mut self, key: &PrivateKey) -> anyhow::Result<()> {
        let envelope = Envelope::seal(&self.document()?, key)?;
        self.report_digest = envelope.digest();
        self.report = wire::Report { envelope: serde_json::to_vec(&envelope)?, ..wire::Report::default() };
        Ok(())
    }

    /// Updates go around: the package that was updated last is the last to be offered again.
    fn version(&self, package: usize, installed: usize) -> String {
        let updates = (installed + self.packages - 1 - package) / self.packages;
        format!("1.{}.{}-2+deb12u{}", package % 9, package % 23, updates + 1)
    }

    fn software(&self) -> Software {
        let package = |n| Package {
            name: name(n),
            arch: if n % 4 == 0 { "all" } else { "amd64" }.to_owned(),
            version: self.version(n, self.installed),
            source: source(n),
            source_version: None,
        };
        let mut packages: Vec<_> = (0..self.packages).map(package).collect();
        packages.sort();
        Software { packages }
    }

    fn update(&self, package: usize) -> Update {
        let candidate = self.version(package, self.installed + self.packages);
        let installed = self.version(package, self.installed);
        let is_security = package.is_multiple_of(3);
        let artifacts_digest = canonical::digest(format!("{package} {candidate}").as_bytes());
        Update {
            id: format!("pkg:deb/debian/{}@{candidate}", source(package)),
            title: format!("{} {installed} -> {candidate}", source(package)),
            classification: if is_security { Classification::Security } else { Classification::Updates },
            severity: Severity::Unknown,
            cves: Vec::new(),
            published: None,
            packages: vec![PackageChange { name: name(package), arch: "amd64".to_owned(), installed, candidate }],
            source_installed: None,
            origin: if is_security { "Debian-Security:12/stable-security" } else { "Debian:12/stable" }.to_owned(),
            size_bytes: 40_000 + 1_000 * package as u64,
            requires_restart: Tristate::No,
            interrupts_service: Tristate::No,
            artifacts_digest,
            held: false,
            held_reason: HeldReason::Hold,
            unauthenticated: false,
            downloaded: false,
        }
    }

    fn document(&self) -> anyhow::Result<Report> {
        let mut updates: Vec<_> = (0..UPDATES).map(|n| self.update((self.installed + n) % self.packages)).collect();
        let security = updates.iter().filter(|update| update.classification == Classification::Security).count();
        while canonical::to_bytes(&updates)?.len() > MAX_UPDATES_BYTES {
            updates.pop();
        }
        Ok(Report {
            device: self.device.clone(),
            counter: self.counter(),
            last_sequence: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: "6d8b2e0c-6c1f-4a0e-9d0e-2f5f3f7f1d11".to_owned(),
            boot_time: Timestamp::UNIX_EPOCH,
            os: OperatingSystem {
                family: "linux".to_owned(),
                name: "debian".to_owned(),
                version: "12.11".to_owned(),
                arch: "amd64".to_owned(),
                kernel: "6.1.0-37-amd64".to_owned(),
            },
            restart: Restart { required: Tristate::No, reasons: Vec::new() },
            power: Power::Mains,
            os_updater: None,
            upstream: None,
            outdated_services: None,
            truncated: updates.len() < UPDATES,
            updates,
            removable: Vec::new(),
            counts: Counts {
                updates: UPDATES.try_into().context("updates")?,
                security: security.try_into().context("security updates")?,
                packages: self.packages.try_into().context("packages")?,
            },
            software_digest: self.software_digest.clone(),
            problems: Vec::new(),
        })
    }
}

/// Two binary packages of each source.
fn source(package: usize) -> String {
    const STEMS: [&str; 16] = [
        "openssl",
        "glibc",
        "systemd",
        "perl",
        "python3.11",
        "krb5",
        "util-linux",
        "libxml2",
        "curl",
        "gnutls28",
        "shadow",
        "e2fsprogs",
        "apparmor",
        "dbus",
        "libcap2",
        "ncurses",
    ];
    let source = package / 2;
    match source / STEMS.len() {
        0 => STEMS[source].to_owned(),
        more => format!("{}-addon{more}", STEMS[source % STEMS.len()]),
    }
}

/// What a package is called.
pub fn name(package: usize) -> String {
    let source = source(package);
    if package.is_multiple_of(2) { source } else { format!("lib{source}-common") }
}
