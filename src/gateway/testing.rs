//! Documents for tests.

use jiff::Timestamp;
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, OperatingSystem, Report, Restart, Severity, Tristate, Update,
};

pub(crate) fn report(namespace: &str, name: &str) -> Report {
    Report {
        device: DeviceRef { namespace: namespace.into(), name: name.into() },
        counter: 1,
        last_sequence: None,
        agent_version: "0.1.0".into(),
        boot_id: "b".into(),
        boot_time: Timestamp::UNIX_EPOCH,
        os: OperatingSystem {
            family: "linux".into(),
            name: "debian".into(),
            version: "12.11".into(),
            arch: "amd64".into(),
            kernel: "6.1.0".into(),
        },
        restart: Restart { required: Tristate::No, reasons: Vec::new() },
        updates: Vec::new(),
        truncated: false,
        counts: Counts::default(),
        software_digest: "sha256:software".into(),
        problems: Vec::new(),
    }
}

pub(crate) fn update(id: &str) -> Update {
    Update {
        id: id.into(),
        title: "openssl".into(),
        classification: Classification::Security,
        severity: Severity::Unknown,
        cves: Vec::new(),
        packages: vec![PackageChange {
            name: "openssl".into(),
            arch: "amd64".into(),
            installed: "3.0.16-1".into(),
            candidate: "3.0.17-1".into(),
        }],
        origin: "Debian bookworm-security".into(),
        size_bytes: 1,
        requires_restart: Tristate::No,
        artifacts_digest: "sha256:artifacts".into(),
        held: false,
    }
}
