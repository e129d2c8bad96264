//! A collector: takes OTLP over HTTP and keeps what it got.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A span with its service.
#[derive(Clone, Debug)]
pub struct Received {
    pub service: String,
    pub span: Span,
}

impl Received {
    /// The value of an attribute, as text.
    pub fn attribute(&self, name: &str) -> Option<String> {
        text_of(&self.span.attributes, name)
    }
}

/// What it got, and what it answers.
#[derive(Clone, Debug)]
pub struct Collector {
    /// Where it is.
    pub port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    headers: Arc<Mutex<Option<HeaderMap>>>,
    /// A status, or nothing while requests are kept waiting.
    pub answer: watch::Sender<Option<u16>>,
}

impl Collector {
    pub async fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (received, headers) = (Arc::default(), Arc::default());
        let collector = Self { port, received, headers, answer: watch::Sender::new(Some(200)) };
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        collector
    }

    /// All spans so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Headers of the last request.
    pub fn headers(&self) -> HeaderMap {
        self.headers.lock().unwrap().clone().unwrap_or_default()
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    *collector.headers.lock().unwrap() = Some(headers);
    let mut answer = collector.answer.subscribe();
    let status = answer.wait_for(Option::is_some).await.unwrap().unwrap();
    if status == 200 {
        collector.received.lock().unwrap().extend(spans_of(&body));
    }
    StatusCode::from_u16(status).unwrap()
}

/// The spans of a request.
pub fn spans_of(body: &[u8]) -> Vec<Received> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let of = |resource: ResourceSpans| {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = text_of(&attributes, "service.name").unwrap_or_default();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.map(move |span| Received { service: service.clone(), span })
    };
    request.resource_spans.into_iter().flat_map(of).collect()
}

fn text_of(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == name)?.value.clone();
    match value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => Some(number.to_string()),
        _ => None,
    }
}
