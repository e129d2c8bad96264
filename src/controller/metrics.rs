//! The controller's metrics, each defined here; `docs/metrics.md` is generated from this list.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

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
    /// When the last pass ended.
    pub last_pass: IntGauge,
}

impl Metrics {
    /// All of them, registered. An error is a defect: a name twice, or one that Prometheus does not allow.
    pub fn new() -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("patchwarden_{name}"), help);
        let metrics = Self {
            registry: Registry::new(),
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
            last_pass: IntGauge::with_opts(opts(
                "last_pass_timestamp_seconds",
                "Unix time of the last pass over all namespaces",
            ))?,
        };
        let collectors: [Box<dyn Collector>; 11] = [
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
            Box::new(metrics.last_pass.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector)?;
        }
        metrics.export_zeros();
        Ok(metrics)
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
