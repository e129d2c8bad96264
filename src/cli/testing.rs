//! Objects for the tests of the commands.

use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PrivateKey;
use patchwarden_protocol::report::Report;
use serde_json::{Value, json};

use super::live::{Live, Place};
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};

/// The client `acme`.
pub(super) fn place() -> Place {
    Place { namespace: "acme".into(), patchwarden_namespace: "patchwarden-system".into(), vulnerabilities: None }
}

/// A device that is believed and offers security updates of the given severities.
pub(super) fn device(name: &str, updates: &[(&str, &str)]) -> DeviceInventory {
    let update = |(id, severity): &(&str, &str)| {
        json!({
            "id": id, "title": "t", "classification": "Security", "severity": severity, "origin": "o", "sizeBytes": 1,
            "packages": [{"name": "p", "arch": "amd64", "installed": "1", "candidate": "2"}],
            "requiresRestart": "No", "artifactsDigest": "sha256:0",
        })
    };
    let updates: Vec<Value> = updates.iter().map(update).collect();
    let counts = json!({"updates": updates.len(), "security": updates.len(), "packages": 1});
    let report = json!({
        "device": {"namespace": "acme", "name": name}, "counter": 1, "agentVersion": "0", "bootId": "b",
        "bootTime": "2026-01-01T00:00:00Z",
        "os": {"family": "linux", "name": "debian", "version": "12", "arch": "amd64", "kernel": "6"},
        "restart": {"required": "No"}, "updates": updates, "truncated": false, "counts": counts, "softwareDigest": "sha256:0",
    });
    let document: Report = serde_json::from_value(report.clone()).unwrap();
    let key = PrivateKey::generate();
    let signature = Envelope::seal(&document, &key).unwrap().signatures[0].clone();
    object(
        "DeviceInventory",
        name,
        json!({
            "spec": {"acceptedKey": key.public().fingerprint()},
            "status": {"inventory": {"report": report, "signature": signature, "publicKey": key.public(), "online": true}},
        }),
    )
}

/// An object of the client.
pub(super) fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, mut parts: Value) -> K {
    parts["apiVersion"] = json!("patchwarden.io/v1alpha1");
    parts["kind"] = json!(kind);
    parts["metadata"]["name"] = json!(name);
    parts["metadata"]["namespace"] = json!("acme");
    serde_json::from_value(parts).unwrap()
}

/// A group by its spec.
pub(super) fn group(name: &str, spec: &Value) -> ApprovalGroup {
    object("ApprovalGroup", name, json!({ "spec": spec }))
}

/// All of it as it would be read from the API server.
pub(super) fn live(
    groups: Vec<ApprovalGroup>,
    policies: Vec<PatchPolicy>,
    windows: Vec<MaintenanceWindow>,
    devices: Vec<DeviceInventory>,
) -> Live {
    fn by_name<K: kube::Resource>(all: Vec<K>) -> std::collections::BTreeMap<String, K> {
        all.into_iter().map(|object| (object.meta().name.clone().unwrap(), object)).collect()
    }
    Live {
        groups: by_name(groups),
        policies: by_name(policies),
        windows: by_name(windows),
        devices: by_name(devices),
        ..Live::default()
    }
}
