//! An id for each request: what its caller is told of is found by it in the gateway's log.
//!
//! Everything that is logged while a request is answered lies in the span `request` with its id; for a session that is all of it. The
//! answer has the id in [`HEADER`]. A caller that has an id of its own sends it in the same header.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Instrument as _, Span};

/// Where it is told, and taken from.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a caller's own id.
const LONGEST: usize = 64;

/// The id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's own, if that is some letters, digits and `-_.`; else one that nobody has.
    pub fn of(headers: &HeaderMap) -> Self {
        let is_id = |id: &[u8]| {
            let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
            (1..=LONGEST).contains(&id.len()) && id.iter().all(is_plain)
        };
        let own = headers.get(HEADER).filter(|id| is_id(id.as_bytes()));
        let new = || HeaderValue::try_from(format!("{:016x}", rand::random::<u64>())).ok();
        Self(own.cloned().or_else(new).unwrap_or(HeaderValue::from_static("unknown")))
    }

    /// What is logged in it has the id, whatever `--log` leaves out.
    pub fn span(&self) -> Span {
        tracing::error_span!("request", request_id = self.0.to_str().unwrap_or_default())
    }

    /// Tells the caller.
    pub fn tell(self, headers: &mut HeaderMap) {
        headers.insert(HEADER, self.0);
    }
}

/// Gives each request of the API its id.
pub async fn identified(request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let mut response = next.run(request).instrument(id.span()).await;
    id.tell(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(own: &'static str) -> String {
        let headers = HeaderMap::from_iter([(HEADER, HeaderValue::from_static(own))]);
        RequestId::of(&headers).0.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_callers_own_id_is_taken_where_it_is_one() {
        assert_eq!(of("7f1e-a.b_C"), "7f1e-a.b_C");
        let longest = "a".repeat(LONGEST);
        assert_eq!(of(longest.clone().leak()), longest);
        for other in ["", "two words", "\"quoted\"", "a=b", "a".repeat(LONGEST + 1).leak()] {
            let made = of(other);
            assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{other:?}: {made}");
        }
    }

    #[test]
    fn no_two_requests_have_the_same() {
        let none = HeaderMap::new();
        assert_ne!(RequestId::of(&none), RequestId::of(&none));
    }
}
