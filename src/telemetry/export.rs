//! Sending spans: OTLP over HTTP, by a thread of its own, so that neither a collector that is down nor a slow one holds anything up.
//!
//! ```text
//!   tell -> queue (bounded; what does not fit is dropped and counted) -> thread: batches, retries, at last drops and counts
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span, status};
use prometheus::IntCounterVec;
use prost::Message as _;
use rustls::crypto::ring;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::time::Instant;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::ids::TraceId;
use super::settings::{Settings, TelemetryError};
use super::{Kind, Service, Span, Value, words};

/// Spans that wait, and spans of one request (OpenTelemetry's defaults).
pub(super) const QUEUE: usize = 2048;
const BATCH: usize = 512;

/// What is told together is sent together.
const DELAY: Duration = Duration::from_secs(1);

/// Between tries of the same batch.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// A collector that is down is logged so often.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// A span that waits.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) service: Service,
    pub(super) trace: TraceId,
    pub(super) span: Span,
}

/// Spans that wait to be sent.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    counter: Option<IntCounterVec>,
}

#[derive(Debug, Default)]
struct State {
    spans: VecDeque<Told>,
    is_ending: bool,
    is_over: bool,
    /// Of the last batch something was dropped.
    has_failed: bool,
}

impl Queue {
    pub(super) fn new(counter: Option<IntCounterVec>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), counter }
    }

    /// Never waits for more than the lock, which nobody holds while he waits for anything.
    pub(super) fn push(&self, told: Told) {
        let mut state = self.state();
        if state.is_ending || state.spans.len() == QUEUE {
            drop(state);
            self.count("dropped", 1);
            return;
        }
        state.spans.push_back(told);
        let number = state.spans.len();
        drop(state);
        if number == 1 || number == BATCH {
            self.changed.notify_all();
        }
    }

    /// Has the thread send what there is and end. False: it has not within `time`, or the collector has not taken it.
    pub(super) fn end(&self, time: Duration) -> bool {
        let mut state = self.state();
        state.is_ending = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.is_over);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.is_over && !state.has_failed
    }

    /// The next batch, when it is time for it; nothing at the end.
    fn next(&self) -> Option<Vec<Told>> {
        let state = self.state();
        let state = self.changed.wait_while(state, |state| state.spans.is_empty() && !state.is_ending);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let gather = |state: &mut State| state.spans.len() < BATCH && !state.is_ending;
        let waited = self.changed.wait_timeout_while(state, DELAY, gather);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let number = state.spans.len().min(BATCH);
        let batch: Vec<_> = state.spans.drain(..number).collect();
        if batch.is_empty() {
            state.is_over = true;
            self.changed.notify_all();
            return None;
        }
        Some(batch)
    }

    /// False: it is ending, and nothing is tried again.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.is_ending);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_ending
    }

    fn count(&self, result: &str, number: usize) {
        if let Some(counter) = &self.counter {
            counter.with_label_values(&[result]).inc_by(u64::try_from(number).unwrap_or(u64::MAX));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole values only are ever put into it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a batch was not taken.
enum NotTaken {
    /// It may be later.
    Later(String),
    /// It will not be.
    Never(String),
}

/// Sends to one collector.
pub(super) struct Exporter {
    agent: ureq::Agent,
    settings: Settings,
    own: Resource,
    agents: Resource,
    warned: Option<Instant>,
    /// Spans lost since the last warning.
    lost: usize,
}

impl Exporter {
    pub(super) fn new(settings: Settings, program: &str, instance: &str) -> Result<Self, TelemetryError> {
        let agent = client(&settings)?;
        let said = settings.resource.iter().map(|(key, value)| attribute(key, &Value::Text(value.clone())));
        let resource = |service: &str, more: Vec<KeyValue>| {
            let own = [("service.name", service), ("service.namespace", "patchwarden")];
            let own = own.map(|(key, value)| attribute(key, &value.into()));
            // What the program knows of itself stands last, and so counts.
            let is_known = |key: &KeyValue| own.iter().chain(&more).any(|other| other.key == key.key);
            let attributes = said.clone().filter(|key| !is_known(key)).chain(own.clone()).chain(more.clone()).collect();
            Resource { attributes, ..Resource::default() }
        };
        let of_program = [("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", instance)];
        let of_program = of_program.map(|(key, value)| attribute(key, &value.into()));
        let own = resource(settings.service.as_deref().unwrap_or(program), of_program.to_vec());
        // Of the agent no more is known here than its device, which its spans name.
        let agents = resource(words::AGENT, Vec::new());
        Ok(Self { agent, settings, own, agents, warned: None, lost: 0 })
    }

    /// Sends until the queue ends.
    pub(super) fn begin(mut self, queue: Arc<Queue>) -> Result<(), TelemetryError> {
        let work = move || {
            while let Some(batch) = queue.next() {
                self.send(&queue, &batch);
            }
        };
        std::thread::Builder::new().name("traces".to_owned()).spawn(work)?;
        Ok(())
    }

    fn send(&mut self, queue: &Queue, batch: &[Told]) {
        let body = self.request(batch).encode_to_vec();
        let mut pauses = PAUSES.iter();
        let (dropped, why) = loop {
            match self.post(&body) {
                Ok((0, _)) => break (0, String::new()),
                Ok((rejected, why)) => break (rejected.min(batch.len()), why),
                Err(NotTaken::Never(why)) => break (batch.len(), why),
                Err(NotTaken::Later(why)) => {
                    if !pauses.next().is_some_and(|pause| queue.pause(*pause)) {
                        break (batch.len(), why);
                    }
                }
            }
        };
        queue.state().has_failed = dropped > 0;
        queue.count("exported", batch.len() - dropped);
        queue.count("dropped", dropped);
        self.lost += dropped;
        if dropped > 0 && self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            tracing::warn!(spans = self.lost, why, "spans were dropped: the collector does not take them");
            (self.warned, self.lost) = (Some(Instant::now()), 0);
        }
    }

    /// How many spans the collector has refused, and why.
    fn post(&self, body: &[u8]) -> Result<(usize, String), NotTaken> {
        let mut request =
            self.agent.post(self.settings.endpoint.as_str()).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        let mut response = request.send(body).map_err(|error| NotTaken::Later(error.to_string()))?;
        let status = response.status();
        match status.as_u16() {
            200..=299 => {}
            // OTLP: what may be tried again.
            429 | 502 | 503 | 504 => return Err(NotTaken::Later(format!("it answers {status}"))),
            _ => return Err(NotTaken::Never(format!("it answers {status}"))),
        }
        // It has them; what it says of them is only told.
        let said = response.body_mut().read_to_vec().unwrap_or_default();
        let said = ExportTraceServiceResponse::decode(said.as_slice()).unwrap_or_default();
        let partial = said.partial_success.unwrap_or_default();
        Ok((usize::try_from(partial.rejected_spans).unwrap_or_default(), partial.error_message))
    }

    fn request(&self, batch: &[Told]) -> ExportTraceServiceRequest {
        let of = |service: Service, resource: &Resource| {
            let spans: Vec<_> = batch.iter().filter(|told| told.service == service).map(to_otlp).collect();
            let scope = InstrumentationScope {
                name: "patchwarden".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            };
            let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
            ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() }
        };
        let all = [of(Service::Own, &self.own), of(Service::Agent, &self.agents)];
        let is_there = |spans: &ResourceSpans| spans.scope_spans.iter().any(|scope| !scope.spans.is_empty());
        ExportTraceServiceRequest { resource_spans: all.into_iter().filter(is_there).collect() }
    }
}

fn client(settings: &Settings) -> Result<ureq::Agent, TelemetryError> {
    let roots = match &settings.certificate {
        None => RootCerts::WebPki,
        Some(path) => RootCerts::Specific(Arc::new(
            certificates(path)
                .map_err(|why| TelemetryError::Variable { name: "OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), why })?,
        )),
    };
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(roots)
        .build();
    let config = ureq::Agent::config_builder()
        .https_only(settings.endpoint.scheme() == "https")
        // Headers may hold a secret, and are for this collector alone.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_global(Some(settings.timeout))
        .tls_config(tls)
        .user_agent(concat!("patchwarden/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.into())
}

fn certificates(path: &PathBuf) -> Result<Vec<Certificate<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all = all.map_err(|error| format!("{}: {error}", path.display()))?;
    if all.is_empty() {
        return Err(format!("{} has no certificate in PEM", path.display()));
    }
    Ok(all.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

fn to_otlp(told: &Told) -> OtlpSpan {
    let Told { service: _, trace, span } = told;
    let Span { name, id, parent, kind, start, end, attributes, failed } = span;
    let nanoseconds = |at: &jiff::Timestamp| u64::try_from(at.as_nanosecond()).unwrap_or_default();
    let kind = match kind {
        Kind::Internal => span::SpanKind::Internal,
        Kind::Client => span::SpanKind::Client,
        Kind::Server => span::SpanKind::Server,
    };
    let status = failed.as_ref().map(|why| Status { message: why.clone(), code: status::StatusCode::Error.into() });
    OtlpSpan {
        trace_id: trace.bytes().to_vec(),
        span_id: id.bytes().to_vec(),
        parent_span_id: parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        // Sampled (W3C Trace Context).
        flags: 1,
        name: name.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(start),
        // No span ends before it begins, whatever clocks say.
        end_time_unix_nano: nanoseconds(end.max(start)),
        attributes: attributes.iter().map(|(key, value)| attribute(key.name, value)).collect(),
        status,
        ..OtlpSpan::default()
    }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(*number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
