//! The controller's metrics, each defined here; `docs/metrics.md` is generated from this list.

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::series::Series;
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
    /// What there is in each namespace.
    pub tenants: TenantMetrics,
    /// How long installs take, by namespace.
    pub install_seconds: HistogramVec,
    /// Time from an update's release, and from its first sighting, to the record that it was installed on a device.
    pub time_to_deploy: HistogramVec,
    /// When the last pass ended.
    pub last_pass: IntGauge,
    /// The lasting record.
    pub record: RecordMetrics,
    /// Data on vulnerabilities.
    pub vulnerabilities: VulnerabilityMetrics,
}

/// What there is in each namespace, which a pass shows anew.
pub struct TenantMetrics {
    /// Devices by compliance.
    pub devices: Series,
    /// Devices that were not heard of for too long.
    pub stale: Series,
    /// Updates by state.
    pub updates: Series,
    /// Updates that are missing, by severity.
    pub missing: Series,
    /// Since when the oldest of these is known, by severity.
    pub oldest_missing: Series,
    /// Installs claimed or running.
    pub running: Series,
    /// Devices with a deadline that is over, by policy.
    pub overdue: Series,
    /// Devices that will miss a deadline, by policy.
    pub forecast_missing: Series,
    /// What each policy does.
    pub policies: Series,
    /// Whether each window is open.
    pub open: Series,
    /// When each window opens next.
    pub next_opening: Series,
    /// The conditions of policies, groups and windows.
    pub conditions: Series,
}

impl TenantMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let series = |name: &str, help: &str, labels: &[&str]| Series::new(registry, name, help, labels);
        Ok(Self {
            devices: series("devices", "Devices that are not retired, by namespace and compliance", &["compliance"])?,
            stale: series(
                "devices_stale",
                "Devices that are not retired and were not heard of for more than 3 days, by namespace; without those that never were",
                &[],
            )?,
            updates: series("updates", "Updates that are not installed, by namespace and state", &["state"])?,
            missing: series(
                "updates_missing",
                "Updates that devices lack and that are not decided against, once for each device, by namespace and severity",
                &["severity"],
            )?,
            oldest_missing: series(
                "updates_oldest_missing_timestamp_seconds",
                "Unix time since which the oldest update that a device lacks is known in the namespace, by severity; absent where none is missing",
                &["severity"],
            )?,
            running: series("installs_running", "Installs that are claimed or running, by namespace", &[])?,
            overdue: series(
                "devices_overdue",
                "Devices with a deadline that is over, by namespace and policy",
                &["policy"],
            )?,
            forecast_missing: series(
                "devices_forecast_missing",
                "Devices that will miss a deadline, or have, by namespace and policy",
                &["policy"],
            )?,
            policies: series(
                "policy_info",
                "1 for each PatchPolicy, with its mode and whether it is suspended",
                &["policy", "mode", "suspended"],
            )?,
            open: series(
                "window_open",
                "1 while the MaintenanceWindow is open, else 0 (for UTC where it is on the device's clock)",
                &["window"],
            )?,
            next_opening: series(
                "window_next_opening_timestamp_seconds",
                "Unix time at which the MaintenanceWindow opens next; absent where it never does",
                &["window"],
            )?,
            conditions: series(
                "condition",
                "1 for the status that a condition of a PatchPolicy, ApprovalGroup or MaintenanceWindow has, 0 for the others",
                &["kind", "name", "type", "status"],
            )?,
        })
    }

    /// Takes the series of all namespaces away but those.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let Self {
            devices,
            stale,
            updates,
            missing,
            oldest_missing,
            running,
            overdue,
            forecast_missing,
            policies,
            open,
            next_opening,
            conditions,
        } = self;
        let all = [
            devices,
            stale,
            updates,
            missing,
            oldest_missing,
            running,
            overdue,
            forecast_missing,
            policies,
            open,
            next_opening,
            conditions,
        ];
        for series in all {
            for gone in series.namespaces().iter().filter(|namespace| !is_there(namespace)) {
                series.show::<0>(gone, []);
            }
        }
    }
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
            tenants: TenantMetrics::new(&registry)?,
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
                opts(
                    "api_write_errors_total",
                    "Writes that the API server refused, or did not answer; without conflicts",
                ),
                &["resource"],
            )?,
            installs: IntCounterVec::new(opts("installs_total", "Installs that ended, by outcome"), &["outcome"])?,
            grants: IntCounterVec::new(opts("grants_total", "Grant requests answered, by verdict"), &["verdict"])?,
            install_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "patchwarden_install_duration_seconds",
                    "From a device's acceptance of an order until it was done, by the device's clock",
                )
                .buckets([10, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200].map(f64::from).to_vec()),
                &["namespace"],
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
        let collectors: [Box<dyn Collector>; 10] = [
            Box::new(metrics.leader.clone()),
            Box::new(metrics.plan_seconds.clone()),
            Box::new(metrics.passes.clone()),
            Box::new(metrics.api_writes.clone()),
            Box::new(metrics.api_errors.clone()),
            Box::new(metrics.installs.clone()),
            Box::new(metrics.grants.clone()),
            Box::new(metrics.install_seconds.clone()),
            Box::new(metrics.time_to_deploy.clone()),
            Box::new(metrics.last_pass.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector)?;
        }
        metrics.export_zeros();
        Ok(metrics)
    }

    /// What a result that was recorded installed: how long that took, and how long it was since the client, and the vendor, had it.
    pub fn deployed(&self, namespace: &str, past: &PastInstall) {
        let observe = |from: &str, since: Timestamp| {
            let took = since.duration_until(past.finished_at);
            self.time_to_deploy.with_label_values(&[namespace, from]).observe(took.as_secs_f64().max(0.0));
        };
        if let Some(seconds) = past.seconds {
            self.install_seconds.with_label_values(&[namespace]).observe(f64::from(seconds));
        }
        for update in &past.deployed {
            observe("FirstSeen", update.first_seen);
            if let Some(published) = update.published {
                observe("Published", published);
            }
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
            "seconds": 90, "deployed": [
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
        let took = metrics.install_seconds.with_label_values(&["acme"]);
        assert!((took.get_sample_count(), took.get_sample_sum()) == (1, 90.0));
    }
}
