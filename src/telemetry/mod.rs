//! Traces: one for each install, told by OTLP to a collector that the environment names. Without one nothing of this runs.
//!
//! ```text
//!   controller  install ------------------------------------------------------------------ recorded
//!                 |- claim, create Job
//!   runner        |- run order (in the Job's pod)
//!   gateway       |    '- receive order
//!                 |- deliver order                                        |- record result
//!   agent         '- order: simulate, download, wait for grant, install, ...
//! ```
//!
//! No context is carried: a trace's id is the first half of its order's digest, and the id of its root follows from that digest, so
//! whoever knows the order knows both, after any restart ([`ids`]). Only the runner, which knows no order, is told by its Job.
//! The agent opens no connection for this: the gateway makes its spans of the signed result.
//!
//! What is told is never waited for: see [`export`].

mod export;
pub mod ids;
pub mod settings;
pub mod words;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::IntCounterVec;

use self::export::{Exporter, Queue};
use self::ids::{SpanId, TraceId};
use self::settings::{Sampler, Settings, TelemetryError};
use self::words::{Key, Name};

/// At a clean end so long for what has not been sent.
pub const FLUSH_TIME: Duration = Duration::from_secs(3);

/// The values of the label `result` of the metric that counts spans.
pub const SPAN_RESULTS: [&str; 2] = ["exported", "dropped"];

/// The trace's id of an order, as log lines have it.
pub fn trace_id(order_digest: &str) -> Option<tracing::field::DisplayValue<TraceId>> {
    TraceId::of_order(order_digest).map(tracing::field::display)
}

/// Whose a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// This program.
    Own,
    /// The agent, for which the gateway tells.
    Agent,
}

/// What a span is of a call between programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    Internal,
    /// The caller's side.
    Client,
    /// The side that answers.
    Server,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// A span that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub name: &'static Name,
    /// Its own.
    pub id: SpanId,
    /// Nothing for the root.
    pub parent: Option<SpanId>,
    /// Of a call.
    pub kind: Kind,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// By their names (`docs/traces.md`).
    pub attributes: Vec<(&'static Key, Value)>,
    /// Where it did not succeed: why, in a word.
    pub failed: Option<String>,
}

impl Span {
    /// One by a random id.
    pub fn below(parent: SpanId, name: &'static Name, start: Timestamp, end: Timestamp) -> Self {
        Self {
            name,
            id: SpanId::random(),
            parent: Some(parent),
            kind: Kind::Internal,
            start,
            end,
            attributes: Vec::new(),
            failed: None,
        }
    }
}

/// Where spans go. Cheap to clone; by default nowhere.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: Arc<Queue>,
    sampler: Sampler,
}

impl Traces {
    /// As the environment says (`OTEL_...`): to a collector, or nowhere. `program` is the service's name where the environment has none;
    /// `counter` counts spans by [`SPAN_RESULTS`].
    pub fn start(program: &str, instance: &str, counter: Option<IntCounterVec>) -> Result<Self, TelemetryError> {
        match Settings::of(|name| std::env::var(name).ok())? {
            None => Ok(Self::default()),
            Some(settings) => {
                let endpoint = settings.endpoint.clone();
                let traces = Self::to(settings, program, instance, counter)?;
                tracing::info!(%endpoint, "traces are exported");
                Ok(traces)
            }
        }
    }

    /// Likewise. What cannot be done is logged: nothing is patched less because nobody can watch it.
    pub fn start_or_none(program: &str, instance: &str, counter: IntCounterVec) -> Self {
        Self::start(program, instance, Some(counter)).unwrap_or_else(|error| {
            tracing::error!(%error, "no traces are exported");
            Self::default()
        })
    }

    fn to(
        settings: Settings,
        program: &str,
        instance: &str,
        counter: Option<IntCounterVec>,
    ) -> Result<Self, TelemetryError> {
        let sampler = settings.sampler;
        let queue = Arc::new(Queue::new(counter));
        Exporter::new(settings, program, instance)?.begin(queue.clone())?;
        Ok(Self(Some(Arc::new(Inner { queue, sampler }))))
    }

    /// Which orders have a trace; nothing where none has.
    pub fn sampler(&self) -> Option<Sampler> {
        self.0.as_ref().map(|inner| inner.sampler)
    }

    /// The trace of an order, if it is one to be told.
    pub fn install<'a>(&'a self, order_digest: &'a str) -> Option<Install<'a>> {
        let inner = self.0.as_deref()?;
        let trace = TraceId::of_order(order_digest).filter(|trace| inner.sampler.samples(*trace))?;
        Some(Install { inner, trace, root: SpanId::root(order_digest) })
    }

    /// The trace that a caller has decided to tell, whatever the sampler says here.
    pub fn follow(&self, context: &ids::Context) -> Option<Install<'_>> {
        let inner = self.0.as_deref().filter(|_| context.is_sampled)?;
        Some(Install { inner, trace: context.trace, root: context.span })
    }

    /// Sends what there is, for so long at most. Blocks. Nothing is taken after it. False: not all was sent.
    pub fn end(&self, time: Duration) -> bool {
        let is_sent = self.0.as_ref().is_none_or(|inner| inner.queue.end(time));
        if !is_sent {
            tracing::warn!("the collector has not taken the last spans");
        }
        is_sent
    }
}

/// The trace of one install.
#[derive(Clone, Copy, Debug)]
pub struct Install<'t> {
    inner: &'t Inner,
    trace: TraceId,
    root: SpanId,
}

impl Install<'_> {
    /// The id of its root span.
    pub fn root(&self) -> SpanId {
        self.root
    }

    /// Its id.
    pub fn id(&self) -> TraceId {
        self.trace
    }

    /// Tells a span. Never waits: where the collector is too slow the span is dropped and counted.
    pub fn tell(&self, service: Service, span: Span) {
        self.inner.queue.push(export::Told { service, trace: self.trace, span });
    }
}
