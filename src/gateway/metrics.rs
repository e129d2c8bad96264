//! The gateway's metrics: every name is here and nowhere else.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::metrics::{Definition, Definitions, There};
use crate::telemetry::SPAN_RESULTS;

/// Metrics that cannot be registered or rendered: a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// Everything that the gateway counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Their registry.
    pub registry: Registry,
    /// What they are.
    pub definitions: Vec<Definition>,
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
    /// When the serving certificate ends.
    pub certificate: IntGaugeVec,
    /// Vulnerability data.
    pub vulnerabilities: VulnerabilityMetrics,
    /// Spans of traces, by `result`: exported, dropped.
    pub trace_spans: IntCounterVec,
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
        let mut define = Definitions::new("patchwarden_gateway_");
        let mut by = |name: &str, help: &str, label: &'static str, zeros: &[&'static str]| {
            define.counters(name, help, [label], zeros.iter().map(|value| [*value]))
        };
        let sessions_ended = by(
            "sessions_ended_total",
            "Sessions of devices that ended, by reason.",
            "reason",
            &["Disconnected", "Revoked", "Replaced", "Forgotten", "Protocol", "Stalled", "Shutdown", "Store"],
        )?;
        let reports =
            by("reports_total", "Reports of devices, by result.", "result", &["unchanged", "changed", "refused"])?;
        let enrolments = by(
            "enrolments_total",
            "Requests to enrol, by result.",
            "result",
            &["issued", "pending", "refused", "failed"],
        )?;
        let renewals = by(
            "renewals_total",
            "Requests to renew a certificate, by result.",
            "result",
            &["issued", "refused", "failed"],
        )?;
        let results = by("results_total", "Results of orders, by result.", "result", &["new", "repeated", "refused"])?;
        let runs = by(
            "runs_total",
            "Calls of install Jobs, by result.",
            "result",
            &["attached", "finished", "refused", "failed"],
        )?;
        let api_requests = by(
            "api_requests_total",
            "Requests of the HTTP API, by result.",
            "result",
            &["answered", "invalid", "refused", "failed"],
        )?;
        let token_reviews =
            by("token_reviews_total", "Token reviews, by result.", "result", &["authenticated", "refused", "failed"])?;
        let imports = by(
            "vulnerability_imports_total",
            "Imports of vulnerability data, by result.",
            "result",
            &["imported", "refused", "failed"],
        )?;
        let trace_spans = by("trace_spans_total", "Spans of traces, by what came of them.", "result", &SPAN_RESULTS)?;
        let results_of_calls = ["read", "write"].map(|call| ["ok", "refused", "failed"].map(|result| [call, result]));
        Ok(Self {
            sessions_ended,
            reports,
            enrolments,
            renewals,
            results,
            runs,
            api_requests,
            token_reviews,
            trace_spans,
            sessions: define.gauge("sessions", "Open sessions of devices.")?,
            waiting_sessions: define.gauge(
                "waiting_sessions",
                "Sessions whose device waits because the database is busy with what others have sent.",
            )?,
            orders_delivered: define
                .counter("orders_delivered_total", "Orders sent to devices, repetitions included.")?,
            api_writes: define.counters(
                "api_writes_total",
                "Writes to the Kubernetes API server.",
                ["verb", "resource"],
                [["patch", "deviceinventories/status"]],
            )?,
            record_calls: define.counters(
                "record_calls_total",
                "Calls of the controller to the record, by result.",
                ["call", "result"],
                results_of_calls.into_iter().flatten(),
            )?,
            certificate: define.gauges(
                "certificate_expiry_timestamp_seconds",
                "Unix time at which the certificate ends that this gateway serves with.",
                &[],
                There::Once("it has one"),
            )?,
            vulnerabilities: VulnerabilityMetrics {
                imports,
                imported: define.gauge(
                    "vulnerability_import_timestamp_seconds",
                    "Unix time of the last import of vulnerability data by this process.",
                )?,
                refused: define.gauge(
                    "vulnerability_files_refused",
                    "1 while the files of vulnerability data are refused and earlier ones count.",
                )?,
            },
            registry: define.registry,
            definitions: define.all,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing;

    #[test]
    fn metrics_are_there_when_their_definitions_say_so() {
        let metrics = Metrics::new().unwrap();
        testing::are_as_defined(&metrics.definitions, &metrics.registry);
    }

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
