//! The controller's metrics, each defined here; `docs/metrics.md` is generated from this list.

use jiff::Timestamp;
use patchwarden_protocol::result::ResultReason;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::keys::Keys;
use crate::api::device_inventory::PastInstall;
use crate::metrics::series::Series;
use crate::metrics::{Definition, Definitions, There};
use crate::telemetry::SPAN_RESULTS;

/// The metrics.
pub struct Metrics {
    /// Their registry.
    pub registry: Registry,
    /// What they are.
    pub definitions: Vec<Definition>,
    /// Whether this replica leads.
    pub leader: IntGauge,
    /// How long one plan of a namespace takes.
    pub plan_seconds: Histogram,
    /// How long a pass takes.
    pub pass_seconds: Histogram,
    /// Passes.
    pub passes: IntCounter,
    /// When the last pass ended.
    pub last_pass: IntGauge,
    /// What waits to be done.
    pub queue: QueueMetrics,
    /// Writes to the API server, by resource and verb.
    pub api_writes: IntCounterVec,
    /// Writes that the API server refused, by resource.
    pub api_errors: IntCounterVec,
    /// Installs that ended, by outcome.
    pub installs: IntCounterVec,
    /// Orders that devices refused, by reason.
    pub orders_refused: IntCounterVec,
    /// Grants answered, by verdict.
    pub grants: IntCounterVec,
    /// How long installs take, by namespace.
    pub install_seconds: HistogramVec,
    /// Time from an update's release, and from its first sighting, to the record that it was installed on a device.
    pub time_to_deploy: HistogramVec,
    /// When certificates and the delegation of the order key end.
    pub certificates: IntGaugeVec,
    /// What there is in each namespace.
    pub tenants: TenantMetrics,
    /// The lasting record.
    pub record: RecordMetrics,
    /// Data on vulnerabilities.
    pub vulnerabilities: VulnerabilityMetrics,
    /// Spans of traces, by result.
    pub trace_spans: IntCounterVec,
}

/// What waits. There is no queue of objects: whatever has changed when a pass begins is looked at by it.
#[derive(Clone)]
pub struct QueueMetrics {
    /// What the watches have told since the last pass began.
    pub changes: IntGauge,
    /// Devices whose status the pass has still to write.
    pub writes: IntGauge,
    /// Devices for which nothing is written for a while.
    pub on_hold: IntGauge,
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
    /// All of them.
    all: Vec<Series>,
}

/// From when on the time to deploy runs: the first sighting, or the vendor's date.
const SINCE: [&str; 2] = ["FirstSeen", "Published"];

/// From when on figures of namespaces are there.
const WITH_A_CLIENT: There = There::Once("a namespace has a device, or any other object of Patchwarden's");
const WITH_A_POLICY: There = There::Once("there is a PatchPolicy");
const WITH_A_WINDOW: There = There::Once("there is a MaintenanceWindow");

impl TenantMetrics {
    fn new(define: &mut Definitions) -> Result<Self, prometheus::Error> {
        let mut series = |name: &str, help: &str, labels: &[&str], there| define.series(name, help, labels, there);
        Ok(Self {
            devices: series(
                "devices",
                "Devices that are not retired, by namespace and compliance",
                &["compliance"],
                WITH_A_CLIENT,
            )?,
            stale: series(
                "devices_stale",
                "Devices that are not retired and were not heard of for more than 3 days, by namespace; without those that never were",
                &[],
                WITH_A_CLIENT,
            )?,
            updates: series(
                "updates",
                "Updates that status tells of, by namespace and state",
                &["state"],
                WITH_A_CLIENT,
            )?,
            missing: series(
                "updates_missing",
                "Updates that devices lack, those that are heard of, and that are not decided against, once for each device, by namespace and severity",
                &["severity"],
                WITH_A_CLIENT,
            )?,
            oldest_missing: series(
                "updates_oldest_missing_timestamp_seconds",
                "Unix time since which the oldest update that a device lacks is known in the namespace, by severity",
                &["severity"],
                There::While("an update of that severity is missing"),
            )?,
            running: series(
                "installs_running",
                "Installs that are claimed or running, by namespace",
                &[],
                WITH_A_CLIENT,
            )?,
            overdue: series(
                "devices_overdue",
                "Devices with a deadline that is over, by namespace and policy",
                &["policy"],
                WITH_A_POLICY,
            )?,
            forecast_missing: series(
                "devices_forecast_missing",
                "Devices that will miss a deadline, or have, by namespace and policy",
                &["policy"],
                WITH_A_POLICY,
            )?,
            policies: series(
                "policy_info",
                "1 for each PatchPolicy, with its mode and whether it is suspended",
                &["policy", "mode", "suspended"],
                WITH_A_POLICY,
            )?,
            open: series(
                "window_open",
                "1 while the MaintenanceWindow is open, else 0 (for UTC where it is on the device's clock)",
                &["window"],
                WITH_A_WINDOW,
            )?,
            next_opening: series(
                "window_next_opening_timestamp_seconds",
                "Unix time at which the MaintenanceWindow opens next",
                &["window"],
                There::While("the window opens again"),
            )?,
            conditions: series(
                "condition",
                "1 for the status that a condition of a PatchPolicy, ApprovalGroup or MaintenanceWindow has, 0 for the others",
                &["kind", "name", "type", "status"],
                There::Once("there is one of these"),
            )?,
            all: define.series.clone(),
        })
    }

    /// Takes the series of all namespaces away but those.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        for series in &self.all {
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
    fn new(define: &mut Definitions) -> Result<Self, prometheus::Error> {
        Ok(Self {
            read: define.gauge(
                "vulnerabilities_read_timestamp_seconds",
                "Unix time at which vulnerability data were read last; 0 before that",
            )?,
            refused: define.gauge(
                "vulnerabilities_refused",
                "1 while vulnerability data are refused, and what was read before counts",
            )?,
        })
    }
}

impl RecordMetrics {
    fn new(define: &mut Definitions) -> Result<Self, prometheus::Error> {
        let calls = ["read", "write", "check"];
        Ok(Self {
            reachable: define
                .gauge("record_reachable", "1 while the gateway's store answers, 0 while status alone counts")?,
            unsent: define.gauge("record_unsent", "Entries of the record that the store has not yet")?,
            unread: define.gauge("record_unread", "Namespaces whose record was not read from the store yet")?,
            calls: define.counters(
                "record_calls_total",
                "Calls to the gateway's store, by result",
                ["call", "result"],
                calls.into_iter().flat_map(|call| ["ok", "refused", "failed"].map(|result| [call, result])),
            )?,
            unsigned: define.counter(
                "record_unsigned_total",
                "Entries that the store told and this controller's key has not signed: they do not count",
            )?,
        })
    }
}

impl QueueMetrics {
    fn new(define: &mut Definitions) -> Result<Self, prometheus::Error> {
        Ok(Self {
            changes: define.gauge(
                "changes_waiting",
                "Changes of objects that the API server has told since the last pass began, the controller's own included",
            )?,
            writes: define.gauge(
                "writes_waiting",
                "Devices of the namespace that the pass is at whose status it has still to compare with their plan, and to write where it differs",
            )?,
            on_hold: define.gauge(
                "devices_on_hold",
                "Devices that get no turn for 30 s because the API server refused a write for them",
            )?,
        })
    }
}

/// What a device refuses a whole order for, doing nothing: any other reason is exported with its first order.
const REFUSALS: [&str; 13] = [
    "BadSignature",
    "Unreadable",
    "OtherDevice",
    "Replayed",
    "Expired",
    "TooEarly",
    "ReportMismatch",
    "WouldDoMore",
    "Superseded",
    "JournalCorrupt",
    "SiteCacheDown",
    "LimitedByDevice",
    "Unhealthy",
];

impl Metrics {
    /// All of them, registered. An error is a defect: a name twice, or one that Prometheus does not allow.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut define = Definitions::new("patchwarden_");
        let status = ["deviceinventories", "patchpolicies", "approvalgroups", "maintenancewindows", "jobs"];
        let hours = [1, 6, 24, 48, 72, 7 * 24, 14 * 24, 30 * 24, 60 * 24, 90 * 24];
        Ok(Self {
            leader: define.gauge("leader", "1 while this replica leads")?,
            plan_seconds: define.histogram(
                "plan_duration_seconds",
                "Time to plan a namespace once",
                &[0.000_1, 0.001, 0.01, 0.1, 0.25, 1.0, 5.0],
            )?,
            pass_seconds: define.histogram(
                "pass_duration_seconds",
                "Time of a pass over all namespaces, with all that it writes",
                &[0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0],
            )?,
            passes: define.counter("passes_total", "Passes over all namespaces")?,
            last_pass: define.gauge("last_pass_timestamp_seconds", "Unix time of the last pass over all namespaces")?,
            queue: QueueMetrics::new(&mut define)?,
            api_writes: define.counters(
                "api_writes_total",
                "Writes that the API server accepted",
                ["resource", "verb"],
                status.map(|resource| [resource, "patch"]).into_iter().chain([["jobs", "create"]]),
            )?,
            api_errors: define.counters(
                "api_write_errors_total",
                "Writes that the API server refused, or did not answer; without conflicts",
                ["resource"],
                status.map(|resource| [resource]),
            )?,
            installs: define.counters(
                "installs_total",
                "Installs that ended, by outcome",
                ["outcome"],
                ["Succeeded", "Failed", "Refused", "Withdrawn", "Expired", "TimedOut", "Released"].map(|it| [it]),
            )?,
            orders_refused: define.counters(
                "orders_refused_total",
                "Orders that devices refused without having done anything, by the device's reason",
                ["reason"],
                REFUSALS.map(|reason| [reason]),
            )?,
            grants: define.counters(
                "grants_total",
                "Grant requests answered, by verdict",
                ["verdict"],
                [["granted"], ["denied"]],
            )?,
            install_seconds: define.histograms(
                "install_duration_seconds",
                "From a device's acceptance of an order until it was done, by the device's clock",
                &["namespace"],
                &[10, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200].map(f64::from),
                WITH_A_CLIENT,
            )?,
            time_to_deploy: define.histograms(
                "time_to_deploy_seconds",
                "From an update's first sighting, or the vendor's date, to its installation on a device",
                &["namespace", "from"],
                &hours.map(|hours| f64::from(hours * 3600)),
                WITH_A_CLIENT,
            )?,
            certificates: define.gauges(
                "certificate_expiry_timestamp_seconds",
                "Unix time at which it ends: the CA, which itself signs all certificates (`CA`), the CA before while gateways still have certificates of it (`PreviousCA`), and the delegation of the key that signs orders (`OrderKey`)",
                &["certificate"],
                There::Once("this replica has led"),
            )?,
            tenants: TenantMetrics::new(&mut define)?,
            record: RecordMetrics::new(&mut define)?,
            vulnerabilities: VulnerabilityMetrics::new(&mut define)?,
            trace_spans: define.counters(
                "trace_spans_total",
                "Spans of traces, by what came of them",
                ["result"],
                SPAN_RESULTS.map(|result| [result]),
            )?,
            registry: define.registry,
            definitions: define.all,
        })
    }

    /// A namespace is there: what is counted of it begins at zero, so that `increase()` sees its first install.
    pub fn begin(&self, namespace: &str) {
        self.install_seconds.with_label_values(&[namespace]);
        for from in SINCE {
            self.time_to_deploy.with_label_values(&[namespace, from]);
        }
    }

    /// A namespace is gone.
    pub fn forget(&self, namespace: &str) {
        // An error says that there is none.
        let _ = self.install_seconds.remove_label_values(&[namespace]);
        for from in SINCE {
            let _ = self.time_to_deploy.remove_label_values(&[namespace, from]);
        }
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
            let [first_seen, since_published] = SINCE;
            observe(first_seen, update.first_seen);
            if let Some(published) = update.published {
                observe(since_published, published);
            }
        }
    }

    /// An install that has ended: how, and what the device had against it if it refused.
    pub fn ended(&self, outcome: &str, reason: Option<ResultReason>) {
        self.installs.with_label_values(&[outcome]).inc();
        if outcome == "Refused" {
            let reason = reason.map_or_else(|| "Unknown".to_owned(), |reason| format!("{reason:?}"));
            self.orders_refused.with_label_values(&[reason.as_str()]).inc();
        }
    }

    /// When the keys that are used now end.
    pub fn keys(&self, keys: &Keys) {
        self.certificates.reset();
        for (certificate, ends) in keys.ends() {
            self.certificates.with_label_values(&[certificate]).set(ends.as_second());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing;
    use serde_json::json;

    #[test]
    fn metrics_are_there_when_their_definitions_say_so() {
        let metrics = Metrics::new().unwrap();
        testing::are_as_defined(&metrics.definitions, &metrics.registry);
    }

    #[test]
    fn a_refused_order_is_counted_by_the_devices_reason() {
        let metrics = Metrics::new().unwrap();
        let count = |reason| metrics.orders_refused.with_label_values(&[reason]).get();
        metrics.ended("Refused", Some(ResultReason::WouldDoMore));
        metrics.ended("Refused", None);
        metrics.ended("Failed", Some(ResultReason::WouldDoMore));
        assert_eq!((count("WouldDoMore"), count("Unknown")), (1, 1));
        assert_eq!(metrics.installs.with_label_values(&["Refused"]).get(), 2);
    }

    // covers CC-4, EM-14
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

    #[test]
    fn what_a_namespace_installs_is_counted_from_zero_and_gone_with_it() {
        let metrics = Metrics::new().unwrap();
        let shown = || -> usize {
            let ours =
                |name: &str| name.ends_with("install_duration_seconds") || name.ends_with("time_to_deploy_seconds");
            let families = metrics.registry.gather();
            families.iter().filter(|family| ours(family.name())).map(|family| family.get_metric().len()).sum()
        };
        metrics.begin("acme");
        metrics.begin("other");
        assert_eq!(shown(), 6);
        metrics.forget("acme");
        metrics.forget("acme");
        assert_eq!(shown(), 3);
    }
}
