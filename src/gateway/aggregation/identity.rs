//! Who asks: the API server's proxy says it in headers, and shows by its certificate that it is the proxy.
//!
//! The certificate was verified when the connection was made, and is verified again at each request, by what the API server publishes
//! then: a CA that was taken away, a name that is not allowed any more or a certificate that has ended meanwhile counts for nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use k8s_openapi::api::authentication::v1::UserInfo;
use percent_encoding::percent_decode_str;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Layer;
use super::anchors::Anchors;
use crate::gateway::api::auth::{Caller, Peer, refuse};
use crate::gateway::api::problem::Problem;
use crate::gateway::clean;
use crate::shell;

/// The certificates that a connection has shown, its own first.
#[derive(Clone, Debug)]
pub struct Shown(pub Arc<Vec<CertificateDer<'static>>>);

/// Why a connection may say nothing about who asks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheProxy {
    /// None was shown.
    #[error("no client certificate: only the API server's proxy is answered here")]
    NoCertificate,
    /// It is not one of the request-header CA's.
    #[error("the client certificate does not count: {0}")]
    NotTrusted(String),
    /// It is one of another client of the same CA.
    #[error("the client certificate's common name \"{0}\" is not among requestheader-allowed-names")]
    OtherName(String),
}

/// Whether these certificates are of the API server's proxy.
pub fn verify(anchors: &Anchors, shown: &[CertificateDer<'_>], now: UnixTime) -> Result<(), NotTheProxy> {
    let (leaf, others) = shown.split_first().ok_or(NotTheProxy::NoCertificate)?;
    let verified = anchors.clients.verify_client_cert(leaf, others, now);
    verified.map_err(|error| NotTheProxy::NotTrusted(error.to_string()))?;
    if anchors.allowed_names.is_empty() {
        return Ok(());
    }
    let unreadable = |_| NotTheProxy::NotTrusted("it cannot be read".to_owned());
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(unreadable)?;
    // Of several the last counts, as in Go.
    let name = leaf.subject().iter_common_name().last().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if anchors.allowed_names.iter().any(|allowed| allowed == name) {
        Ok(())
    } else {
        Err(NotTheProxy::OtherName(clean(name, 64)))
    }
}

/// Who asks, by the headers of a request of the proxy's; none where it names nobody.
pub fn user(anchors: &Anchors, headers: &HeaderMap) -> Option<UserInfo> {
    let text = |value: &axum::http::HeaderValue| std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned);
    let first = |names: &[axum::http::HeaderName]| {
        names.iter().filter_map(|name| text(headers.get(name)?)).find(|value| !value.is_empty())
    };
    let username = first(&anchors.username)?;
    let groups = anchors.group.iter().flat_map(|name| headers.get_all(name)).filter_map(text);
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let key = anchors.extra.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
        if let (Some(key), Some(value)) = (key.filter(|key| !key.is_empty()), text(value)) {
            extra.entry(percent_decode_str(key).decode_utf8_lossy().to_lowercase()).or_default().push(value);
        }
    }
    Some(UserInfo {
        username: Some(username),
        uid: first(&anchors.uid),
        groups: Some(groups.collect()),
        extra: Some(extra).filter(|extra| !extra.is_empty()),
    })
}

/// Lets nobody through but the proxy, and notes whom it names.
pub async fn only_the_proxy(State(layer): State<Arc<Layer>>, mut request: Request, next: Next) -> Response {
    let path = clean(request.uri().path(), 253);
    let verified = {
        let anchors = layer.anchors.borrow().clone();
        let shown = request.extensions().get::<Shown>().map(|shown| shown.0.clone()).unwrap_or_default();
        let now = u64::try_from(shell::now().as_second()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        match anchors {
            None => Err(Problem::unavailable("the API server's request-header CA has not been read yet")),
            Some(anchors) => verify(&anchors, &shown, now)
                .map(|()| user(&anchors, request.headers()))
                .map_err(|error| Problem::unauthenticated(error.to_string())),
        }
    };
    match verified {
        Ok(user) => {
            if let Some(user) = user {
                request.extensions_mut().insert(Caller::named(user, &path));
            }
            next.run(request).await
        }
        Err(problem) => {
            let peer = request.extensions().get::<Peer>().map_or_else(|| "unknown".to_owned(), |it| it.0.to_string());
            match refuse(&layer.door, &format!("address {peer}"), &path, "Unauthenticated", problem).await {
                Err(problem) => problem.into_response(),
                Ok::<Infallible, _>(never) => match never {},
            }
        }
    }
}

/// Somebody whom the proxy has named.
pub struct Named(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let named = parts.extensions.get::<Caller>().cloned().map(Self);
        named.ok_or_else(|| Problem::unauthenticated("the request names no user"))
    }
}
