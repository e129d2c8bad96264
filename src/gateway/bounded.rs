//! What holds for every request at a gRPC door: it has an id, and is bounded. One that is larger than a door takes, or that never ends, is
//! refused before anybody here sees it, and is to be in the audit all the same.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;

use super::request_id::RequestId;
use super::{Shared, clean, doors};

/// A request that is one message is there within this time, counted from its head.
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// What gRPC puts before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A gRPC service whose requests are bounded, and whose refusals of that kind are told.
#[derive(Clone)]
pub struct Bounded<S> {
    inner: S,
    shared: Arc<Shared>,
    largest: usize,
    /// The method whose request has no end.
    stream: Option<&'static str>,
}

impl<S> Bounded<S> {
    /// Requests of `inner` are one message of at most so many bytes, but for those of the method `stream`.
    pub fn new(inner: S, shared: &Arc<Shared>, largest: usize, stream: Option<&'static str>) -> Self {
        Self { inner, shared: shared.clone(), largest, stream }
    }
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (shared, peer) = (self.shared.clone(), doors::peer(request.extensions()));
        let method = request.uri().path().rsplit('/').next();
        let is_stream = self.stream.is_some() && method == self.stream;
        let path = clean(request.uri().path(), 253);
        let request = if is_stream { request } else { request.map(|body| message(body, self.largest)) };
        let id = RequestId::of(request.headers());
        let span = id.span();
        let answer = span.in_scope(|| self.inner.call(request));
        let answered = async move {
            let mut response = answer.await?;
            id.tell(response.headers_mut());
            let Some(status) = Status::from_header_map(response.headers()) else { return Ok(response) };
            // What a handler itself says is never one of these: tonic's codec says OutOfRange, and below both are said. Of other codes an
            // install Job takes DeadlineExceeded for the end of its order, and tonic Cancelled for the end of the request.
            let reason = match status.code() {
                Code::OutOfRange => "TooLarge",
                Code::Unknown if status.message().starts_with(INCOMPLETE) => "TooSlow",
                _ => return Ok(response),
            };
            tracing::warn!(peer, path, reason, "a request is refused");
            let (who, detail) = (format!("peer {peer}"), clean(status.message(), 253));
            shared.audit_refusal(&who, "Request", &path, reason, &detail).await;
            Ok(response)
        };
        Box::pin(answered.instrument(span))
    }
}

/// What is said of a request that is too slow.
const INCOMPLETE: &str = "the request is not complete after";

/// The body of a request that is one message.
fn message(inner: Body, largest: usize) -> Body {
    Body::new(Message { inner, largest, left: largest + PREFIX, until: Box::pin(sleep(MESSAGE_TIME)) })
}

struct Message {
    inner: Body,
    largest: usize,
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Pending => self.until.as_mut().poll(context).map(|()| {
                let seconds = MESSAGE_TIME.as_secs();
                Some(Err(Status::unknown(format!("{INCOMPLETE} {seconds} s"))))
            }),
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(left) = self.left.checked_sub(length) else {
                    let largest = self.largest;
                    return Poll::Ready(Some(Err(Status::out_of_range(format!(
                        "the request is larger than {largest} bytes"
                    )))));
                };
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            ended @ Poll::Ready(_) => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
