//! How large a device's status gets: what its agent, its gateway and the controller write, each by its own code or within its own limits.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::delegation::Delegation;
use patchwarden_protocol::grant::{Grant, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::order::{PackageChange, Sequence, Verb};
use patchwarden_protocol::report::{
    Classification, Counts, DeviceRef, MAX_PROBLEM, MAX_PROBLEMS, MAX_REMOVABLE, MAX_REMOVABLE_BYTES, MAX_SERVICES,
    MAX_UPDATES, MAX_UPDATES_BYTES, OutdatedServices, Problem, ProblemCode, Removable, Report, Severity, Tristate,
};
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason};
use patchwarden_protocol::settings::{OsUpdater, Settings, SignedSettings};
use patchwarden_protocol::{Envelope, canonical};
use serde::Serialize;
use serde_json::json;

use super::device;
use crate::api::device_inventory::{
    AnsweredGrant, Compliance, CurrentInstall, DeviceInventoryStatus, InstallPhase, Inventory, KnownUpdate,
};
use crate::api::{ApprovalGroup, DeviceInventory, PatchPolicy};
use crate::gateway::testing;
use crate::install::{JobPresence, Settled, settle};
use crate::plan::model::Snapshot;
use crate::plan::plan as plan_all;
use crate::{convert, shell};

/// After a restore.
const EPOCH: u32 = 1_790_000_000;

const DEVICE: &str = "web-frontend-production-0042";
const NAMESPACE: &str = "customer-with-a-long-name";

/// What apt says when a maintainer script fails.
const FAILED: &str = "dpkg: error processing package (--configure): installed post-installation script subprocess returned error exit status 1; \
     dependency problems prevent configuration of the packages that need it; E: Sub-process /usr/bin/dpkg returned an error code (1)";

fn bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).unwrap().len()
}

/// How a fleet's updates look.
#[derive(Clone, Copy)]
struct Updates {
    /// So many are offered: the report has as many of them as fit.
    offered: usize,
    /// Between `lib` and the number.
    name: &'static str,
    /// CVEs of each.
    cves: usize,
}

/// Updates as an agent tells them: worst first as far as there is room (`agent/src/scan/fit.rs`).
fn report(updates: Updates) -> Report {
    let mut report = testing::report(NAMESPACE, DEVICE);
    let mut room = MAX_UPDATES_BYTES - 2;
    for number in 0..updates.offered {
        let name = format!("lib{}{number:02}", updates.name);
        let package = PackageChange {
            name: name.clone(),
            arch: "amd64".into(),
            installed: "2:1.22.0-3+deb12u4".into(),
            candidate: "2:1.22.0-3+deb12u5".into(),
        };
        let mut update = testing::update(&format!("pkg:deb/debian/{name}@2:1.22.0-3+deb12u5?arch=amd64"));
        update.title = name;
        update.packages = vec![package];
        update.cves = (0..updates.cves).map(|n| format!("CVE-2026-{n:05}")).collect();
        update.severity = Severity::High;
        update.artifacts_digest = canonical::digest(b"files");
        let size = canonical::to_bytes(&update).unwrap().len() + 1;
        if report.updates.len() < MAX_UPDATES && size <= room {
            room -= size;
            report.updates.push(update);
        }
    }
    report.last_sequence = Some(Sequence { epoch: EPOCH, number: 0 });
    report.truncated = report.updates.len() < updates.offered;
    report.counts = Counts { updates: 64, security: 64, packages: 2_000 };
    report.software_digest = canonical::digest(b"software");
    report.restart.required = Tristate::Yes;
    report.restart.reasons = vec!["linux-image-6.1.0-38-amd64".into(), "libc6".into()];
    report
}

/// Everything else that a report may have, to its limits.
fn filled(mut report: Report) -> Report {
    let service = |n: usize| format!("a-service-with-a-rather-long-name-{n:02}.service");
    report.outdated_services =
        Some(OutdatedServices { count: 40, names: (0..MAX_SERVICES).map(service).collect(), partial: true });
    let problem = || Problem { code: ProblemCode::RepositoryUnavailable, message: "x".repeat(MAX_PROBLEM) };
    report.problems = (0..MAX_PROBLEMS).map(|_| problem()).collect();
    let mut room = MAX_REMOVABLE_BYTES - 2;
    for number in 0..MAX_REMOVABLE {
        let update = testing::update(&format!("pkg:deb/debian/removable-{number:02}@2:1.22.0-3+deb12u5?arch=amd64"));
        let digest = canonical::digest(b"files");
        let removable = Removable { id: update.id, packages: update.packages, artifacts_digest: digest };
        let size = canonical::to_bytes(&removable).unwrap().len() + 1;
        if size <= room {
            room -= size;
            report.removable.push(removable);
        }
    }
    report
}

/// The object with this report, a policy and a group that govern it, and what the controller makes of it.
struct Fleet {
    key: PrivateKey,
    object: DeviceInventory,
    now: Timestamp,
}

impl Fleet {
    fn new(report: Report) -> Self {
        let (key, now) = (PrivateKey::generate(), shell::now());
        let signature = Envelope::seal(&report, &key).unwrap().signatures[0].clone();
        let spec = json!({ "acceptedKey": key.public().fingerprint() });
        let mut object = DeviceInventory::new(DEVICE, serde_json::from_value(spec).unwrap());
        object.metadata.namespace = Some(NAMESPACE.into());
        object.status = Some(DeviceInventoryStatus {
            inventory: Some(Inventory {
                report: Some(report),
                signature: Some(signature),
                public_key: Some(key.public()),
                online: true,
                last_transition_time: Some(now),
                certificate_until: Some(now),
                ..Inventory::default()
            }),
            compliance: Some(Compliance::default()),
            ..DeviceInventoryStatus::default()
        });
        Self { key, object, now }
    }

    fn compliance(&mut self) -> &mut Compliance {
        self.object.status.as_mut().unwrap().compliance.as_mut().unwrap()
    }

    fn inventory(&mut self) -> &mut Inventory {
        self.object.status.as_mut().unwrap().inventory.as_mut().unwrap()
    }

    fn offered(&self) -> Vec<String> {
        let report = self.object.status.as_ref().unwrap().inventory.as_ref().unwrap().report.as_ref().unwrap();
        report.updates.iter().map(|update| update.id.clone()).collect()
    }

    /// A claim on so many updates that were offered.
    fn claim(&mut self, number: u32, updates: Vec<String>) {
        let now = self.now;
        let delegation = Delegation { order_key: self.key.public(), not_before: now, not_after: now };
        let grant = Grant {
            device_key: self.key.public().fingerprint(),
            order_digest: canonical::digest(&number.to_be_bytes()),
            nonce: "n".repeat(32),
            purpose: Purpose::Act,
            issued_at: now,
            verdict: Verdict::Granted,
        };
        let signed = SignedGrant {
            grant: Envelope::seal(&grant, &self.key).unwrap(),
            delegation: Envelope::seal(&delegation, &self.key).unwrap(),
        };
        let known = KnownUpdate {
            classification: Classification::Security,
            first_seen: convert::whole_seconds(now),
            published: Some(convert::whole_seconds(now)),
        };
        let sequence = Sequence { epoch: EPOCH, number };
        self.compliance().sequence = sequence;
        self.compliance().current = Some(CurrentInstall {
            sequence,
            job: format!("{DEVICE}-1790000000-{number}"),
            order_digest: grant.order_digest.clone(),
            leader: "patchwarden-controller-6d5f7c9b8d-x2x4z/12".into(),
            policy: "servers-of-the-production-environment".into(),
            verb: Verb::Install,
            phase: InstallPhase::Installing,
            since: now,
            not_after: now + SignedDuration::from_hours(1),
            limit_seconds: 3600,
            restart_seconds: 1200,
            expected_seconds: Some(900),
            known: vec![known; updates.len()],
            updates,
            grant: Some(AnsweredGrant { nonce: grant.nonce, signed }),
        });
    }

    /// The device's result for the claim, of which these have failed.
    fn result(&mut self, has_failed: impl Fn(usize) -> bool, message: &str) {
        let current = self.compliance().current.clone().unwrap();
        let action = |(index, update): (usize, &String)| ActionResult {
            update: update.clone(),
            verb: Verb::Install,
            done: !has_failed(index),
            reason: has_failed(index).then_some(ResultReason::PackageManagerFailed),
            message: if has_failed(index) { message.to_owned() } else { String::new() },
        };
        let is_failed = (0..current.updates.len()).any(&has_failed);
        let result = InstallResult {
            device: DeviceRef { namespace: NAMESPACE.into(), name: DEVICE.into() },
            device_key: self.key.public().fingerprint(),
            sequence: current.sequence,
            order_digest: current.order_digest.clone(),
            outcome: if is_failed { Outcome::Failed } else { Outcome::Succeeded },
            reason: is_failed.then_some(ResultReason::PackageManagerFailed),
            message: if is_failed { message.to_owned() } else { String::new() },
            actions: current.updates.iter().enumerate().map(action).collect(),
            started_at: self.now,
            finished_at: self.now,
            restart_required: Tristate::No,
            restarts: 0,
            restart_postponed: String::new(),
            steps: vec![],
            phases: vec![],
        };
        self.inventory().result = Some(Envelope::seal(&result, &self.key).unwrap());
        let mut compliance = self.compliance().clone();
        let settled = settle(&self.object, JobPresence::Present, &mut compliance, self.now);
        assert!(matches!(settled, Settled::Recorded(_)), "{settled:?}");
        *self.compliance() = compliance;
    }

    fn settings(&mut self) {
        let now = self.now;
        let delegation = Delegation { order_key: self.key.public(), not_before: now, not_after: now };
        let settings = Settings {
            device: DeviceRef { namespace: NAMESPACE.into(), name: DEVICE.into() },
            device_key: self.key.public().fingerprint(),
            policy: "servers-of-the-production-environment".into(),
            os_updater: OsUpdater::Disable,
            applications: vec![],
            epoch: EPOCH,
            issued_at: now,
            not_after: now,
        };
        self.compliance().settings = Some(SignedSettings {
            settings: Envelope::seal(&settings, &self.key).unwrap(),
            delegation: Envelope::seal(&delegation, &self.key).unwrap(),
        });
    }

    /// What the controller writes then.
    fn write(&mut self) {
        let policy: PatchPolicy = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "PatchPolicy",
            "metadata": {"name": "servers-of-the-production-environment", "namespace": NAMESPACE},
            "spec": {"mode": "Install", "windows": ["nights"]}
        }))
        .unwrap();
        let group: ApprovalGroup = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "ApprovalGroup",
            "metadata": {"name": "production-servers", "namespace": NAMESPACE},
            "spec": {"members": {"selector": {}}, "rules": [
                {"name": "security-updates-at-once", "match": {"classifications": ["Security"]}, "action": "Approve"}]},
        }))
        .unwrap();
        let compliance = self.compliance().clone();
        let mut snapshot = Snapshot {
            policies: vec![convert::policy(&policy)],
            groups: vec![convert::group(&group, "own")],
            ..Snapshot::default()
        };
        let advice = &mut convert::Advice::default();
        snapshot.devices = vec![convert::device(&self.object, &compliance, (&mut snapshot.updates, advice), self.now)];
        let plan = plan_all(&snapshot, self.now);
        let told = device(&self.object, compliance, &plan.devices[0], &snapshot.updates, None, self.now);
        let status = self.object.status.as_mut().unwrap();
        (status.compliance, status.conditions) = (Some(told.compliance), told.conditions);
    }

    /// Bytes of the whole status, and of its parts.
    fn sizes(&self) -> (usize, String) {
        let status = self.object.status.as_ref().unwrap();
        let (inventory, compliance) = (status.inventory.as_ref().unwrap(), status.compliance.as_ref().unwrap());
        let parts = [
            ("report", bytes(&inventory.report)),
            ("result", bytes(&inventory.result)),
            ("updates", bytes(&compliance.updates)),
            ("current", bytes(&compliance.current)),
            ("last", bytes(&compliance.last)),
            ("failures", bytes(&compliance.failures)),
            ("installed", bytes(&compliance.installed)),
            ("settings", bytes(&compliance.settings)),
            ("conditions", bytes(&status.conditions)),
        ];
        (bytes(status), format!("{} bytes: {parts:?}", bytes(status)))
    }
}

/// A server with as much as usual: a month's security updates, which wait for their window; three installs that went well.
fn usual() -> Fleet {
    let mut fleet = Fleet::new(report(Updates { offered: 10, name: "", cves: 3 }));
    fleet.settings();
    for number in 1..=3 {
        let updates =
            (0..10).map(|n| format!("pkg:deb/debian/lib{number}{n:02}@2:1.22.0-3+deb12u4?arch=amd64")).collect();
        fleet.claim(number, updates);
        fleet.result(|_| false, "");
    }
    fleet.write();
    fleet
}

/// One that was left alone for long: 64 updates of ordinary names, of which an order has failed at some; the next one runs.
fn neglected(name: &'static str, cves: usize, failed: usize) -> Fleet {
    let mut fleet = Fleet::new(report(Updates { offered: 64, name, cves }));
    fleet.settings();
    let offered = fleet.offered();
    for number in 1..=2 {
        fleet.claim(number, offered.clone());
        fleet.result(|index| index < failed, FAILED);
    }
    fleet.claim(3, offered);
    fleet.write();
    fleet
}

/// With everything to its limits: each update has failed with as many words as a device may send, thrice.
fn worst(name: &'static str) -> Fleet {
    let mut fleet = Fleet::new(filled(report(Updates { offered: 64, name, cves: 0 })));
    fleet.settings();
    let offered = fleet.offered();
    for number in 1..=3 {
        fleet.claim(number, offered.clone());
        fleet.result(|_| true, &"x".repeat(1000));
    }
    fleet.claim(4, offered);
    fleet.write();
    fleet
}

/// Bytes of a report with everything to its limits: what issue 6 means by 10 KB. A DeviceInventory has much more beside it.
const REPORT: usize = 10_240;

#[test]
fn a_report_that_is_full_stays_under_10_kb_and_a_device_as_small_as_it_is_said_to_be() {
    for (what, fleet, most) in [
        ("usual", usual(), 22_000),
        ("neglected, short names", neglected("", 0, 4), 31_500),
        ("neglected, long names and CVEs", neglected("reoffice-l10n-", 3, 4), 29_000),
        ("worst, short names", worst(""), 56_000),
        ("worst, long names", worst("reoffice-l10n-"), 55_000),
    ] {
        let inventory = fleet.object.status.as_ref().unwrap().inventory.as_ref().unwrap();
        let (all, parts) = fleet.sizes();
        assert!(bytes(&inventory.report) <= REPORT, "{what}: {parts}");
        assert!(all <= most, "{what}: {parts}");
        // It is believed, and what is decided of it is there.
        let decided = fleet.object.status.as_ref().unwrap().compliance.as_ref().unwrap().updates.len();
        assert!(decided > fleet.offered().len(), "the restart is decided, too: {what}: {parts}");
        println!("{what}: {decided} updates, {parts}");
    }
}

#[test]
fn words_of_what_failed_do_not_grow_with_how_much_has_failed() {
    let fleet = worst("");
    let compliance = fleet.object.status.as_ref().unwrap().compliance.as_ref().unwrap();
    let messages = |failures: usize| {
        let words = compliance.failures.iter().map(|failure| failure.message.len());
        (words.clone().sum::<usize>(), words.take(failures).collect::<Vec<_>>())
    };
    assert_eq!(messages(6), (1024, vec![200, 200, 200, 200, 200, 24]), "the first of the latest keep theirs");
    let actions = compliance.last.iter().map(|past| past.updates.iter().map(|update| update.message.len()).sum());
    assert_eq!(actions.collect::<Vec<usize>>(), [1024, 0, 0], "the newest install keeps its");
    assert_eq!(compliance.last.iter().map(|past| past.message.len()).collect::<Vec<_>>(), [1000, 200, 200]);
    assert!(compliance.failures.iter().all(|failure| failure.reason.is_some() && failure.attempts == 3));
}
