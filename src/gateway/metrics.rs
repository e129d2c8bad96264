//! The gateway's metrics: every name is here and nowhere else.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Metrics that cannot be registered or rendered: a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// Everything that the gateway counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Their registry.
    pub registry: Registry,
    /// Sessions that are open.
    pub sessions: IntGauge,
    /// Sessions whose device waits because the database is busy with what others have sent.
    pub waiting_sessions: IntGauge,
    /// Sessions that ended, by `reason`.
    pub sessions_ended: IntCounterVec,
    /// Reports, by `result`: unchanged, changed, refused.
    pub reports: IntCounterVec,
    /// Enrolments, by `result`: issued, pending, refused, failed.
    pub enrolments: IntCounterVec,
    /// Renewed certificates, by `result`: issued, refused, failed.
    pub renewals: IntCounterVec,
    /// Orders sent to devices, repetitions included.
    pub orders_delivered: IntCounter,
    /// Results, by `result`: new, repeated, refused.
    pub results: IntCounterVec,
    /// Writes to the API server, by `verb` and `resource`.
    pub api_writes: IntCounterVec,
    /// Calls on the runners' door, by `result`: attached, finished, refused, failed.
    pub runs: IntCounterVec,
    /// Calls to the record, by `call` (read, write) and `result` (ok, refused, failed).
    pub record_calls: IntCounterVec,
    /// Requests of the API, by `result`: answered, invalid, refused, failed.
    pub api_requests: IntCounterVec,
    /// Token reviews, by `result`: authenticated, refused, failed.
    pub token_reviews: IntCounterVec,
    /// Vulnerability data.
    pub vulnerabilities: VulnerabilityMetrics,
}

/// What is counted of vulnerability data.
#[derive(Clone, Debug)]
pub struct VulnerabilityMetrics {
    /// Looks at files that had changed, by `result`: imported, refused, failed.
    pub imports: IntCounterVec,
    /// When they were imported last.
    pub imported: IntGauge,
    /// Whether the files that are there now are not what counts.
    pub refused: IntGauge,
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, label: &str, values: &[&str]| -> Result<_, MetricsError> {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            for value in values {
                // Asking for it exports its zero.
                let _ = counter.with_label_values(&[value]);
            }
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| gauge(&registry, name, help);
        let orders_delivered = IntCounter::new(
            "patchwarden_gateway_orders_delivered_total",
            "Orders sent to devices, repetitions included.",
        )?;
        registry.register(Box::new(orders_delivered.clone()))?;
        let api_writes = IntCounterVec::new(
            Opts::new("patchwarden_gateway_api_writes_total", "Writes to the Kubernetes API server."),
            &["verb", "resource"],
        )?;
        registry.register(Box::new(api_writes.clone()))?;
        let _ = api_writes.with_label_values(&["patch", "deviceinventories/status"]);
        let record_calls = record_calls(&registry)?;
        Ok(Self {
            record_calls,
            sessions: gauge("patchwarden_gateway_sessions", "Open sessions of devices.")?,
            waiting_sessions: gauge(
                "patchwarden_gateway_waiting_sessions",
                "Sessions whose device waits because the database is busy with what others have sent.",
            )?,
            sessions_ended: counters(
                "patchwarden_gateway_sessions_ended_total",
                "Sessions of devices that ended, by reason.",
                "reason",
                &["Disconnected", "Revoked", "Replaced", "Forgotten", "Protocol", "Stalled", "Shutdown", "Store"],
            )?,
            reports: counters(
                "patchwarden_gateway_reports_total",
                "Reports of devices, by result.",
                "result",
                &["unchanged", "changed", "refused"],
            )?,
            enrolments: counters(
                "patchwarden_gateway_enrolments_total",
                "Requests to enrol, by result.",
                "result",
                &["issued", "pending", "refused", "failed"],
            )?,
            renewals: counters(
                "patchwarden_gateway_renewals_total",
                "Requests to renew a certificate, by result.",
                "result",
                &["issued", "refused", "failed"],
            )?,
            results: counters(
                "patchwarden_gateway_results_total",
                "Results of orders, by result.",
                "result",
                &["new", "repeated", "refused"],
            )?,
            runs: counters(
                "patchwarden_gateway_runs_total",
                "Calls of install Jobs, by result.",
                "result",
                &["attached", "finished", "refused", "failed"],
            )?,
            api_requests: counters(
                "patchwarden_gateway_api_requests_total",
                "Requests of the HTTP API, by result.",
                "result",
                &["answered", "invalid", "refused", "failed"],
            )?,
            token_reviews: counters(
                "patchwarden_gateway_token_reviews_total",
                "Token reviews, by result.",
                "result",
                &["authenticated", "refused", "failed"],
            )?,
            vulnerabilities: VulnerabilityMetrics {
                imports: counters(
                    "patchwarden_gateway_vulnerability_imports_total",
                    "Imports of vulnerability data, by result.",
                    "result",
                    &["imported", "refused", "failed"],
                )?,
                imported: gauge(
                    "patchwarden_gateway_vulnerability_import_timestamp_seconds",
                    "Unix time of the last import of vulnerability data by this process.",
                )?,
                refused: gauge(
                    "patchwarden_gateway_vulnerability_files_refused",
                    "1 while the files of vulnerability data are refused and earlier ones count.",
                )?,
            },
            orders_delivered,
            api_writes,
            registry,
        })
    }

    /// Counts one write to the API server.
    pub fn wrote(&self, verb: &str, resource: &str) {
        self.api_writes.with_label_values(&[verb, resource]).inc();
    }

    /// Prometheus' text format.
    pub fn render(&self) -> Result<String, MetricsError> {
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn record_calls(registry: &Registry) -> Result<IntCounterVec, MetricsError> {
    let calls = IntCounterVec::new(
        Opts::new("patchwarden_gateway_record_calls_total", "Calls of the controller to the record, by result."),
        &["call", "result"],
    )?;
    registry.register(Box::new(calls.clone()))?;
    for call in ["read", "write"] {
        for result in ["ok", "refused", "failed"] {
            let _ = calls.with_label_values(&[call, result]);
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_exported() {
        let metrics = Metrics::new().unwrap();
        let text = metrics.render().unwrap();
        assert!(text.contains("patchwarden_gateway_reports_total{result=\"unchanged\"} 0"), "{text}");
        metrics.wrote("patch", "deviceinventories/status");
        let text = metrics.render().unwrap();
        assert!(
            text.contains(
                "patchwarden_gateway_api_writes_total{resource=\"deviceinventories/status\",verb=\"patch\"} 1"
            )
        );
    }
}
