//! What a caller is told that gets no answer: `metav1.Status`, in the words of the API's problems.

use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::gateway::api::problem::Problem;

/// A problem as clients of Kubernetes read it.
pub fn of(problem: &Problem) -> Value {
    let status = problem.status();
    let reason = match status {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
        StatusCode::NOT_ACCEPTABLE => "NotAcceptable",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let mut status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": problem.detail,
        "reason": reason,
        "code": status.as_u16(),
    });
    if problem.status() == StatusCode::SERVICE_UNAVAILABLE {
        status["details"] = json!({ "retryAfterSeconds": 1 });
    }
    status
}

/// Says a problem as a Status; whatever else is an answer stays as it is.
pub async fn instead_of_problems(response: Response) -> Response {
    let Some(problem) = response.extensions().get::<Problem>() else { return response };
    let body = Json(of(problem)).into_response();
    let (mut parts, _) = response.into_parts();
    let (told, body): (_, Body) = body.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    if let Some(kind) = told.headers.get(CONTENT_TYPE) {
        parts.headers.insert(CONTENT_TYPE, kind.clone());
    }
    Response::from_parts(parts, body)
}
