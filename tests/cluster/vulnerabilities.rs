//! What is known of vulnerabilities approves updates whose package manager tells no CVEs.

use std::fs;

use patchwarden::api::DeviceInventory;
use patchwarden::api::device_inventory::Decision;

use crate::Test;
use crate::crash::compliance;
use crate::world::{OPEN_WINDOW, POLICY, World};

pub const TESTS: &[Test] = &[(
    "an_update_of_apt_is_approved_by_what_it_fixes_in_what_is_installed",
    an_update_of_apt_is_approved_by_what_it_fixes_in_what_is_installed,
)];

const KEV: &str = "cveID,dateAdded\nCVE-2026-4242,2026-01-02\n";
const EPSS: &str = "cve,epss,percentile\nCVE-2026-4242,0.1,0.9\nCVE-2026-4243,0.2,0.9\n";

/// Both are fixed by version 2 of a source package of which no other test's machine has an earlier one.
const OSV: &str = r#"{"id": "DEBIAN-CVE-2026-4242", "modified": "2026-01-02T03:04:05Z", "upstream": ["CVE-2026-4242"],
"affected": [{"package": {"ecosystem": "Debian:12", "name": "exploited"},
"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}]}]}"#;

const APPROVE_EXPLOITED: &str = "
apiVersion: patchwarden.io/v1alpha1
kind: ApprovalGroup
metadata: {name: everybody}
spec:
  members: {selector: {}}
  rules: [{name: exploited, match: {knownExploited: true}, action: Approve}]
  minArtifactAge: 0m
";

impl World {
    /// Puts down what both programs are started with.
    pub fn vulnerabilities(&self) {
        let directory = self.vulnerabilities_directory();
        fs::create_dir_all(&directory).unwrap();
        for (name, content) in [("kev.csv", KEV), ("epss.csv", EPSS), ("debian.json", OSV)] {
            fs::write(directory.join(name), content).unwrap();
        }
    }
}

// covers BY-7
fn an_update_of_apt_is_approved_by_what_it_fixes_in_what_is_installed(world: &World) {
    let packages = ["exploited=1.0", "exploited=2.0", "other=1.0", "other=2.0"];
    let device = world.device("exploited-1", &world.repository("exploited", &packages), &[]);
    device.install(&["exploited=1.0", "other=1.0"]);
    let tenant = world.tenant();
    for object in [OPEN_WINDOW, APPROVE_EXPLOITED, &POLICY.replace("mode: Install", "mode: Audit")] {
        tenant.apply(object);
    }
    tenant.join(&device);
    let decision = |device: &DeviceInventory, name: &str| {
        let updates = compliance(device).updates;
        updates.iter().find(|update| update.id.contains(name)).map(|update| update.decision)
    };
    tenant.wait_for("exploited-1", "it is approved", |device| {
        decision(device, "/exploited@") == Some(Decision::Approved)
    });
    assert_eq!(decision(&tenant.device("exploited-1"), "/other@"), Some(Decision::AwaitingApproval));

    let explained = |options: &[&str]| {
        let output =
            tenant.plugin(&[&["explain", "exploited-1", "pkg:deb/debian/exploited@2.0"], options].concat(), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let directory = world.vulnerabilities_directory();
    let same = explained(&["--vulnerabilities", directory.to_str().expect("UTF-8")]);
    assert!(same.contains("  Fixes:     CVE-2026-4242\n") && same.contains("Approved, by "), "{same}");
    let other = explained(&[]);
    assert!(!other.contains("Fixes:") && other.contains("AwaitingApproval"), "{other}");

    tenant.apply(POLICY);
    tenant.wait_for("exploited-1", "it is installed", |device| compliance(device).last.len() == 1);
    assert_eq!((device.version("exploited"), device.version("other")), ("2.0".into(), "1.0".into()));
}
