//! Requests that are larger than a door takes: tonic refuses them before anybody here sees them, and they are to be in the audit all the same.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::{Shared, clean, doors};

/// A gRPC service whose refusals of that kind are told.
#[derive(Clone)]
pub struct Oversized<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Oversized<S> {
    /// Tells of those of `inner`.
    pub fn told(inner: S, shared: &Arc<Shared>) -> Self {
        Self { inner, shared: shared.clone() }
    }
}

impl<S: NamedService> NamedService for Oversized<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Oversized<S>
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
        let path = clean(request.uri().path(), 253);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // What a handler itself says is never that (tonic's codec alone says OutOfRange).
            if let Some(status) = Status::from_header_map(response.headers()).filter(|it| it.code() == Code::OutOfRange)
            {
                tracing::warn!(peer, path, "a request is refused: it is larger than this door takes");
                let (who, detail) = (format!("peer {peer}"), clean(status.message(), 253));
                shared.audit_refusal(&who, "Request", &path, "TooLarge", &detail).await;
            }
            Ok(response)
        })
    }
}
