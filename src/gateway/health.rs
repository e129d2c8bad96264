//! `/healthz`, `/readyz` and `/metrics`, over plain HTTP for the kubelet and Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Shared;

use crate::shell;

/// The routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
}

/// Ready: trust anchors, a serving certificate that is valid, the devices listed, and a database that answers.
pub(super) async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let mut missing = Vec::new();
    if shared.trust.borrow().is_none() {
        missing.push("the controller has not published its CA".to_owned());
    }
    match *shared.serving_until.borrow() {
        Some(until) if shell::now() < until => {}
        Some(until) => missing.push(format!("the serving certificate ended at {until}")),
        None => missing.push("there is no serving certificate".to_owned()),
    }
    if !*shared.devices.synced().borrow() {
        missing.push("DeviceInventories are not listed yet".to_owned());
    }
    if let Err(error) = shared.store.ping().await {
        missing.push(error.to_string());
    }
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n")))
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
