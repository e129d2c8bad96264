//! Documents for tests.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use patchwarden_protocol::order::{Dependencies, Order, PackageChange, Sequence, SignedOrder};
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, HeldReason, OperatingSystem, Power, Report, Restart, Severity, Tristate, Update,
};

use crate::shell;

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
        power: Power::Unknown,
        os_updater: None,
        upstream: None,
        outdated_services: None,
        updates: Vec::new(),
        removable: Vec::new(),
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
        published: None,
        packages: vec![PackageChange {
            name: "openssl".into(),
            arch: "amd64".into(),
            installed: "3.0.16-1".into(),
            candidate: "3.0.17-1".into(),
        }],
        origin: "Debian bookworm-security".into(),
        size_bytes: 1,
        requires_restart: Tristate::No,
        interrupts_service: Tristate::Unknown,
        artifacts_digest: "sha256:artifacts".into(),
        held: false,
        held_reason: HeldReason::Hold,
        unauthenticated: false,
        downloaded: false,
        source_installed: None,
    }
}

/// An order that is good for an hour.
pub(crate) fn order(namespace: &str, name: &str, device: &PublicKey) -> Order {
    let now = shell::now();
    Order {
        device: DeviceRef { namespace: namespace.into(), name: name.into() },
        device_key: device.fingerprint(),
        sequence: Sequence { epoch: 1, number: 1 },
        actions: Vec::new(),
        dependencies: Dependencies::Strict,
        report_digest: String::new(),
        decisions_digest: String::new(),
        policy: "p".into(),
        not_before: now,
        not_after: now + SignedDuration::from_hours(1),
        limit_seconds: 60,
        restart: patchwarden_protocol::order::RestartRule::never(),
        safeguards: patchwarden_protocol::safeguards::Safeguards::default(),
        site_cache: None,
    }
}

/// The order, signed by an order key of `root`.
pub(crate) fn signed_order(order: &Order, root: &PrivateKey) -> SignedOrder {
    let key = PrivateKey::generate();
    let delegation = Delegation { order_key: key.public(), not_before: order.not_before, not_after: order.not_after };
    SignedOrder { order: Envelope::seal(order, &key).unwrap(), delegation: Envelope::seal(&delegation, root).unwrap() }
}
