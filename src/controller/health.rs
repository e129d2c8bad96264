//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

/// Whether the program can do its work now; the words say what is missing.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A flag and the readiness that it stands for: ready once it is set, `missing` until then.
pub fn flag(missing: &'static str) -> (Arc<AtomicBool>, Ready) {
    let flag = Arc::new(AtomicBool::new(false));
    let read = flag.clone();
    (flag, Arc::new(move || if read.load(Ordering::Relaxed) { Ok(()) } else { Err(missing.to_owned()) }))
}

/// Serves until `stop` is cancelled.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    ready: Ready,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state((registry, ready));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn readyz(State((_, ready)): State<(Registry, Ready)>) -> impl IntoResponse {
    match ready() {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
    }
}

async fn metrics(State((registry, _)): State<(Registry, Ready)>) -> impl IntoResponse {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string().into_bytes())
        }
    }
}
