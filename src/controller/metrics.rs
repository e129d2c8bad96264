//! The controller's metrics, each defined here; `docs/metrics.md` is generated from this list.

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::api::device_inventory::PastInstall;

/// The metrics.
pub struct Metrics {
    /// Their registry.
    pub registry: Registry,
    /// Whether this replica leads.
    pub leader: IntGauge,
    /// How long one plan of all namespaces takes.
    pub plan_seconds: Histogram,
    /// Passes.
    pub passes: IntCounter,
    /// Writes to the API server, by resource and verb.
    pub api_writes: IntCounterVec,
    /// Writes that the API server refused, by resource.
    pub api_errors: IntCounterVec,
    /// Installs that ended, by outcome.
    pub installs: IntCounterVec,
    /// Grants answered, by verdict.
    pub grants: IntCounterVec,
    /// Devices by namespace and compliance.
    pub devices: IntGaugeVec,
    /// Updates by namespace and state.
    pub updates: IntGaugeVec,
    /// Installs claimed or running, by namespace.
    pub running: IntGaugeVec,
    /// Devices with a deadline that is over, by namespace and policy.
    pub overdue: IntGaugeVec,
    /// Devices that will miss a deadline, by namespace and policy.
    pub forecast_missing: IntGaugeVec,
    /// Time from an update's release, and from its first sighting, to the record that it was installed on a device.
    pub time_to_deploy: HistogramVec,
    /// When the last pass ended.
    pub last_pass: IntGauge,
    /// The lasting record.
    pub record: RecordMetrics,
    /// Data on vulnerabilities.
    pub vulnerabilities: VulnerabilityMetrics,
}

/// The metrics of data on vulnerabilities.
#[derive(Clone)]
pub struct VulnerabilityMetrics {
    /// When they were read last.
    pub read: IntGauge,
    /// Whether the files that are there now are refused.
    pub refused: IntGauge,
}

/// The metrics of the lasting record.
pub struct RecordMetrics {
    /// Whether its store can be reached.
    pub reachable: IntGauge,
    /// Entries that the store has not yet.
    pub unsent: IntGauge,
    /// Namespaces whose record was not read yet.
    pub unread: IntGauge,
    /// Calls, by call and result.
    pub calls: IntCounterVec,
    /// Entries of the store that this controller's key has not signed.
    pub unsigned: IntCounter,
}

impl VulnerabilityMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            read: IntGauge::new(
                "patchwarden_vulnerabilities_read_timestamp_seconds",
                "Unix time at which vulnerability data were read last; 0 before that",
            )?,
            refused: IntGauge::new(
                "patchwarden_vulnerabilities_refused",
                "1 while vulnerability data are refused, and what was read before counts",
            )?,
        };
        registry.register(Box::new(metrics.read.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }
}

impl RecordMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("patchwarden_record_{name}"), help);
        let metrics = Self {
            reachable: IntGauge::with_opts(opts(
                "reachable",
                "1 while the gateway's store answers, 0 while status alone counts",
            ))?,
            unsent: IntGauge::with_opts(opts("unsent", "Entries of the record that the store has not yet"))?,
            unread: IntGauge::with_opts(opts("unread", "Namespaces whose record was not read from the store yet"))?,
            calls: IntCounterVec::new(
                opts("calls_total", "Calls to the gateway's store, by result"),
                &["call", "result"],
            )?,
            unsigned: IntCounter::with_opts(opts(
                "unsigned_total",
                "Entries that the store told and this controller's key has not signed: they do not count",
            ))?,
        };
        let collectors: [Box<dyn Collector>; 5] = [
            Box::new(metrics.reachable.clone()),
            Box::new(metrics.unsent.clone()),
            Box::new(metrics.unread.clone()),
            Box::new(metrics.calls.clone()),
            Box::new(metrics.unsigned.clone()),
        ];
        for collector in collectors {
            registry.register(collector)?;
        }
        for call in ["read", "write", "check"] {
            for result in ["ok", "refused", "failed"] {
                // Asking for a counter exports its zero.
                let _ = metrics.calls.with_label_values(&[call, result]);
            }
        }
        Ok(metrics)
    }
}

impl Metrics {
    /// All of them, registered. An error is a defect: a name twice, or one that Prometheus does not allow.
    pub fn new() -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("patchwarden_{name}"), help);
        let registry = Registry::new();
        let metrics = Self {
            record: RecordMetrics::new(&registry)?,
            vulnerabilities: VulnerabilityMetrics::new(&registry)?,
            registry,
            leader: IntGauge::with_opts(opts("leader", "1 while this replica leads"))?,
            plan_seconds: Histogram::with_opts(
                HistogramOpts::new("patchwarden_plan_duration_seconds", "Time to plan all namespaces once")
                    .buckets(vec![0.000_1, 0.001, 0.01, 0.1, 0.25, 1.0, 5.0]),
            )?,
            passes: IntCounter::with_opts(opts("passes_total", "Passes over all namespaces"))?,
            api_writes: IntCounterVec::new(
                opts("api_writes_total", "Writes that the API server accepted"),
                &["resource", "verb"],
            )?,
            api_errors: IntCounterVec::new(
                opts("api_write_errors_total", "Writes that the API server refused"),
                &["resource"],
            )?,
            installs: IntCounterVec::new(opts("installs_total", "Installs that ended, by outcome"), &["outcome"])?,
            grants: IntCounterVec::new(opts("grants_total", "Grant requests answered, by verdict"), &["verdict"])?,
            devices: IntGaugeVec::new(
                opts("devices", "Devices by namespace and compliance"),
                &["namespace", "compliance"],
            )?,
            updates: IntGaugeVec::new(
                opts("updates", "Updates that are not installed, by namespace and state"),
                &["namespace", "state"],
            )?,
            running: IntGaugeVec::new(
                opts("installs_running", "Installs that are claimed or running, by namespace"),
                &["namespace"],
            )?,
            overdue: IntGaugeVec::new(
                opts("devices_overdue", "Devices with a deadline that is over, by namespace and policy"),
                &["namespace", "policy"],
            )?,
            forecast_missing: IntGaugeVec::new(
                opts("devices_forecast_missing", "Devices that will miss a deadline, or have, by namespace and policy"),
                &["namespace", "policy"],
            )?,
            time_to_deploy: HistogramVec::new(
                HistogramOpts::new(
                    "patchwarden_time_to_deploy_seconds",
                    "From an update's first sighting, or the vendor's date, to its installation on a device",
                )
                .buckets(
                    [1, 6, 24, 48, 72, 7 * 24, 14 * 24, 30 * 24, 60 * 24, 90 * 24]
                        .map(|hours| f64::from(hours * 3600))
                        .to_vec(),
                ),
                &["namespace", "from"],
            )?,
            last_pass: IntGauge::with_opts(opts(
                "last_pass_timestamp_seconds",
                "Unix time of the last pass over all namespaces",
            ))?,
        };
        let collectors: [Box<dyn Collector>; 14] = [
            Box::new(metrics.leader.clone()),
            Box::new(metrics.plan_seconds.clone()),
            Box::new(metrics.passes.clone()),
            Box::new(metrics.api_writes.clone()),
            Box::new(metrics.api_errors.clone()),
            Box::new(metrics.installs.clone()),
            Box::new(metrics.grants.clone()),
            Box::new(metrics.devices.clone()),
            Box::new(metrics.updates.clone()),
            Box::new(metrics.running.clone()),
            Box::new(metrics.overdue.clone()),
            Box::new(metrics.forecast_missing.clone()),
            Box::new(metrics.time_to_deploy.clone()),
            Box::new(metrics.last_pass.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector)?;
        }
        metrics.export_zeros();
        Ok(metrics)
    }

    /// What a result that was recorded installed: how long that took since the client, and the vendor, had it.
    pub fn deployed(&self, namespace: &str, past: &PastInstall) {
        let observe = |from: &str, since: Timestamp| {
            let took = since.duration_until(past.finished_at);
            self.time_to_deploy.with_label_values(&[namespace, from]).observe(took.as_secs_f64().max(0.0));
        };
        for update in &past.deployed {
            observe("FirstSeen", update.first_seen);
            if let Some(published) = update.published {
                observe("Published", published);
            }
        }
    }

    /// Takes the series of a policy that is gone away.
    pub fn forget_policy(&self, namespace: &str, policy: &str) {
        for gauge in [&self.overdue, &self.forecast_missing] {
            // An error says that there was none.
            let _ = gauge.remove_label_values(&[namespace, policy]);
        }
    }

    /// Asking for a counter exports its zero: a rate over it starts with its first increase.
    fn export_zeros(&self) {
        let _ = self.api_writes.with_label_values(&["jobs", "create"]);
        for resource in ["deviceinventories", "patchpolicies", "approvalgroups", "maintenancewindows", "jobs"] {
            let _ = self.api_writes.with_label_values(&[resource, "patch"]);
            let _ = self.api_errors.with_label_values(&[resource]);
        }
        for outcome in ["Succeeded", "Failed", "Refused", "Withdrawn", "Expired", "TimedOut", "Released"] {
            let _ = self.installs.with_label_values(&[outcome]);
        }
        for verdict in ["granted", "denied"] {
            let _ = self.grants.with_label_values(&[verdict]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_time_to_deploy_runs_from_the_first_sighting_and_from_the_vendors_date() {
        let metrics = Metrics::new().unwrap();
        let past: PastInstall = serde_json::from_value(json!({
            "sequence": {"epoch": 0, "number": 3}, "job": "web-1-0-3", "finishedAt": "2026-01-10T00:00:00Z",
            "deployed": [
                {"id": "a", "firstSeen": "2026-01-09T00:00:00Z", "published": "2026-01-07T00:00:00Z"},
                {"id": "b", "firstSeen": "2026-01-08T00:00:00Z"},
            ],
        }))
        .unwrap();
        metrics.deployed("acme", &past);
        let sum = |from| {
            let histogram = metrics.time_to_deploy.with_label_values(&["acme", from]);
            (histogram.get_sample_count(), histogram.get_sample_sum())
        };
        assert_eq!(sum("FirstSeen"), (2, 3.0 * 86_400.0));
        assert_eq!(sum("Published"), (1, 3.0 * 86_400.0));
    }
}
