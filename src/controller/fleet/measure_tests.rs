//! How many series there are: as many as there are namespaces, policies and windows ask for, however many devices there are.

#![allow(clippy::disallowed_methods, reason = "what is measured takes real time")]

use std::borrow::Cow;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::{Classification, Power, Severity, Tristate};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::controller::cache::Tenant;
use crate::controller::metrics::Metrics;
use crate::convert;
use crate::plan::model::{Catalogue, Device, DeviceReport, DeviceType, Name, Offer, Os, Update};
use crate::plan::{Planner, Snapshot};

const POLICIES: usize = 5;
const GROUPS: usize = 5;
const WINDOWS: usize = 3;
const OFFERS: usize = 20;
const PACKAGES: usize = 1_500;

const SEVERITIES: [Severity; 5] =
    [Severity::Unknown, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

fn now() -> Timestamp {
    "2026-03-14T22:30:00Z".parse().unwrap()
}

#[allow(clippy::needless_pass_by_value, reason = "it is made where it is passed")]
fn objects<K: DeserializeOwned>(kind: &str, count: usize, spec: Value) -> impl Iterator<Item = (String, Arc<K>)> {
    let conditions = ["Ready", "Reconciling", "Stalled"].map(
        |kind| json!({"type": kind, "status": "False", "reason": "Any", "message": "", "lastTransitionTime": now()}),
    );
    (0..count).map(move |number| {
        let name = format!("{}-{number}", kind.to_lowercase());
        let mut spec = spec.clone();
        if kind == "PatchPolicy" {
            spec["windows"] = json!([format!("maintenancewindow-{}", number % WINDOWS)]);
        }
        let object = json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "acme"},
            "spec": spec, "status": {"conditions": conditions},
        });
        (name, Arc::new(serde_json::from_value(object).unwrap()))
    })
}

/// What a client has beside devices.
fn tenant() -> Tenant {
    Tenant {
        policies: objects("PatchPolicy", POLICIES, json!({"selector": {}})).collect(),
        groups: objects("ApprovalGroup", GROUPS, json!({"members": {"selector": {}}})).collect(),
        windows: objects(
            "MaintenanceWindow",
            WINDOWS,
            json!({"timeZone": "UTC", "duration": "4h", "schedules": [{"daily": {"at": "22:00"}}]}),
        )
        .collect(),
        ..Tenant::default()
    }
}

fn fleet(tenant: &Tenant, devices: usize) -> Snapshot {
    let mut updates = Catalogue::default();
    let devices = (0..devices).map(|number| device(number, &mut updates)).collect();
    Snapshot {
        policies: tenant.policies.values().map(|policy| convert::policy(policy)).collect(),
        groups: tenant.groups.values().map(|group| convert::group(group, "patchwarden-system")).collect(),
        windows: tenant.windows.values().map(|window| convert::window(window)).collect(),
        devices,
        updates,
        ..Snapshot::default()
    }
}

fn device(number: usize, catalogue: &mut Catalogue) -> Device {
    let first_seen = now() - SignedDuration::from_hours(i64::try_from(number % 500).unwrap());
    let offers = (0..OFFERS).map(|nth| {
        let package = (number * 7 + nth * 37) % PACKAGES;
        let update = Update {
            id: Name::from(format!("pkg:deb/debian/package-{package}@1.1")),
            classification: Classification::Security,
            severity: SEVERITIES[package % SEVERITIES.len()],
            packages: vec![format!("package-{package}").into()],
            cves: vec![],
            published: None,
        };
        Offer {
            update: catalogue.intern(update),
            held: false,
            downloaded: false,
            requires_restart: Tristate::No,
            interrupts_service: Tristate::No,
            first_seen,
            missing_since: first_seen,
            installed: None,
        }
    });
    let report = DeviceReport {
        offers: offers.collect(),
        os: Arc::new(Os::default()),
        removable: vec![],
        restart: None,
        truncated: false,
        restart_required: Tristate::No,
        problems: vec![],
        power: Power::Mains,
        applications: std::collections::BTreeMap::new(),
    };
    Device {
        name: format!("device-{number}").into(),
        labels: std::iter::once((catalogue.name("asset"), catalogue.name(&number.to_string()))).collect(),
        device_type: DeviceType::Server,
        zone: None,
        suspended: false,
        retired: false,
        report: Ok(report),
        last_group: None,
        last_possible: Box::default(),
        online: !number.is_multiple_of(10),
        online_since: Some(first_seen),
        clock_off: None,
        on_hold: false,
        current: None,
        failures: vec![],
        installed: vec![],
        last_policy: None,
        moved: None,
        eligible: false,
        measured: vec![],
    }
}

/// Shows namespaces with so many devices in each; how long that takes for one of them, with its plan made.
fn show(metrics: &Metrics, namespaces: usize, devices: usize) -> std::time::Duration {
    let tenant = tenant();
    let snapshot = fleet(&tenant, devices);
    let updates = Cow::Borrowed(&snapshot.updates);
    let mut planner: Planner<'_, Device> = Planner::new(snapshot.specs(), updates, snapshot.devices.clone(), now());
    planner.plan(now());
    let took = (0..namespaces).map(|number| {
        let namespace = format!("client-{number}");
        let start = std::time::Instant::now();
        metrics.tenants.measure(&namespace, &tenant, &planner, now());
        let took = start.elapsed();
        // Each device installs something, and tells how long it took.
        for hours in 0..i64::try_from(devices).unwrap() {
            let past = json!({
                "sequence": {"epoch": 0, "number": 1}, "job": "any", "finishedAt": now(), "seconds": hours % 7_200,
                "deployed": [{"id": "a", "firstSeen": now() - SignedDuration::from_hours(hours % 2_000), "published": now()}],
            });
            metrics.deployed(&namespace, &serde_json::from_value(past).unwrap());
        }
        took
    });
    took.min().unwrap()
}

/// As Prometheus counts them.
fn series(metrics: &Metrics) -> usize {
    let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn there_are_no_more_series_where_there_are_more_devices() {
    let of = |devices| {
        let metrics = Metrics::new().unwrap();
        show(&metrics, 1, devices);
        series(&metrics)
    };
    let few = of(100);
    assert_eq!(few, of(1_000));
    assert!(few > series(&Metrics::new().unwrap()) + POLICIES + WINDOWS, "{few}");
}

#[test]
#[ignore = "prints figures for benches/RESULTS.md"]
fn how_many_series_there_are_and_how_long_they_take() {
    let empty = series(&Metrics::new().unwrap());
    println!("without a client: {empty} series");
    for (namespaces, devices) in [(1, 10_000), (20, 500), (1, 100_000)] {
        let metrics = Metrics::new().unwrap();
        let took = show(&metrics, namespaces, devices);
        let all = series(&metrics);
        println!(
            "{namespaces} namespaces of {devices} devices: {all} series, {} for each namespace; measured in {:.2} ms each",
            (all - empty) / namespaces,
            took.as_secs_f64() * 1e3,
        );
    }
}
