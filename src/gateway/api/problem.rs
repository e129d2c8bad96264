//! What a caller is told that gets no answer: problem details (RFC 9457).

use axum::Json;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::store::StoreError;

/// Media type of a problem (RFC 9457, section 6.1).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Seconds after which a caller should try again what failed for want of room.
const AGAIN: HeaderValue = HeaderValue::from_static("1");

/// Why a request is not answered (RFC 9457). `type` is `about:blank`: `title` is the status in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this very request, and what to do.
    pub detail: String,
}

/// The answers that every request can get beside its own.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "it describes them")]
pub(super) enum Refusals {
    /// A parameter is not as it must be.
    #[response(status = 400, content_type = "application/problem+json")]
    Bad(Problem),
    /// There is no token, or it does not count here.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(Problem),
    /// The caller lacks a right in Kubernetes; `detail` names it.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// Another method than GET.
    #[response(status = 405, content_type = "application/problem+json")]
    Method(Problem),
    /// Too much is asked at once, or the database or the API server do not answer: try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error").to_owned();
        Self { kind: "about:blank", title, status: status.as_u16(), detail: detail.into() }
    }

    /// A parameter is not as it must be.
    pub fn bad(parameter: &str, must: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("{parameter}: {must}"))
    }

    /// The token does not count.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// A right is missing.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// There is none.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The answer cannot be had as it is asked for.
    pub fn not_acceptable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, detail)
    }

    /// Not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Another method than GET.
    pub fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "everything here is read only: use GET")
    }

    /// A watch, where there are only lists.
    pub fn not_watched() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "the store cannot be watched: get and list are all that there is")
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<StoreError> for Problem {
    /// What exactly is wrong with the database is in the log, and no caller's business.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a request of the API cannot be answered");
        Self::unavailable("the gateway's database fails; its log says why")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        match status {
            // RFC 9110, section 11.6.1 and RFC 6750, section 3.
            StatusCode::UNAUTHORIZED => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(RETRY_AFTER, AGAIN)),
            // RFC 9110, section 15.5.6.
            StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(ALLOW, HeaderValue::from_static("GET,HEAD"))),
            _ => {}
        }
        let mut response = (status, Json(&self)).into_response();
        response.headers_mut().extend(headers);
        // For a door that says it in other words.
        response.extensions_mut().insert(self);
        response
    }
}
