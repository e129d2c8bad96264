//! The aggregation layer's door: what the store has as objects of Kubernetes, so that `kubectl get` reads it. Off unless it is given an address.
//!
//! ```text
//!   kubectl -> API server -> its proxy's certificate -> Anchors (ConfigMap kube-system/extension-apiserver-authentication)
//!                               '-> headers -> Caller -> Scope (SubjectAccessReview) -> the API's own questions -> objects, Table
//!                                      '----------------------- Status -----------------------'
//! ```
//!
//! Nobody but the API server's proxy gets as far as a request. Who asks is in its headers; what they may see is asked of the API server
//! again, as any aggregated API does, and remembered as in [`super::api`]. Everything is read only, and there is no watch.

mod anchors;
mod discovery;
mod identity;
mod kinds;
mod options;
mod records;
mod render;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::middleware;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use patchwarden_protocol::report::DeviceRef;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use self::anchors::Anchors;
use self::identity::{Named, Shown};
use self::kinds::{GROUP, Kind, VERSION};
use self::options::{Form, Query};
use super::api::page::{Params, Segments};
use super::api::problem::Problem;
use super::api::{self, Door, bounded};
use super::identity::is_label;
use super::tls::Serving;
use super::{GatewayError, TlsConfig, request_id};

/// What the requests of this door share.
struct Layer {
    /// The API's own door: its questions, its turns, and what was answered lately.
    door: Arc<Door>,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
}

/// Name of the APIService that leads here.
pub fn api_service() -> String {
    format!("{VERSION}.{GROUP}")
}

type Certificate = watch::Receiver<Option<Arc<Serving>>>;

/// Serves it until the gateway ends.
pub(super) async fn serve(door: Arc<Door>, listener: TcpListener, serving: Certificate) -> Result<(), GatewayError> {
    let (to_anchors, anchors) = watch::channel(None);
    let (to_config, config) = watch::channel(None);
    // Neither of the first two ends by itself; both end with the door.
    tokio::select! {
        () = anchors::follow(door.shared().client.clone(), to_anchors) => Ok(()),
        () = keep_configured(anchors.clone(), serving, to_config) => Ok(()),
        served = serve_with(door.clone(), listener, anchors, config) => served,
    }
}

async fn serve_with(
    door: Arc<Door>,
    listener: TcpListener,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
    config: TlsConfig,
) -> Result<(), GatewayError> {
    let router = router(&Arc::new(Layer { door: door.clone(), anchors }));
    let with_certificate = move |stream: &TlsStream<TcpStream>| {
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = Shown(Arc::new(shown.iter().map(|it| it.clone().into_owned()).collect()));
        router.clone().layer(Extension(shown)).layer(Extension(api::peer(stream)))
    };
    api::serve_http("aggregation layer's", &door, listener, config, with_certificate).await
}

/// TLS by the newest certificate of ours and the newest anchors of the API server's.
async fn keep_configured(
    mut anchors: watch::Receiver<Option<Arc<Anchors>>>,
    mut serving: Certificate,
    config: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    loop {
        let known = (anchors.borrow_and_update().clone(), serving.borrow_and_update().clone());
        if let (Some(anchors), Some(serving)) = known {
            match serving.aggregation(anchors.clients.clone()) {
                Ok(new) => drop(config.send_replace(Some(new))),
                Err(error) => tracing::error!(%error, "the aggregation layer's door stays as it was"),
            }
        }
        let changed = tokio::select! {
            changed = anchors.changed() => changed,
            changed = serving.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn router(layer: &Arc<Layer>) -> Router {
    let root = format!("/apis/{GROUP}/{VERSION}");
    let records = Router::new()
        .route(&format!("{root}/{{resource}}"), get(everywhere))
        .route(&format!("{root}/namespaces/{{namespace}}/{{resource}}"), get(within))
        .route(&format!("{root}/namespaces/{{namespace}}/{{resource}}/{{name}}"), get(one))
        .route_layer(middleware::from_fn_with_state(layer.door.clone(), bounded));
    // What the API server asks for itself waits for nobody: a group that cannot be discovered holds up namespaces.
    Router::new()
        .merge(records)
        .route("/apis", get(discovery::groups))
        .route(&format!("/apis/{GROUP}"), get(discovery::group))
        .route(&root, get(discovery::resources))
        .route("/openapi/v3", get(discovery::openapi_paths))
        .route(&format!("/openapi/v3/apis/{GROUP}/{VERSION}"), get(discovery::openapi))
        .route(&format!("{root}/watch/{{*rest}}"), get(async || Problem::not_watched()))
        .route("/healthz", get(async || "ok"))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(async || "ok"))
        .fallback(async || Problem::not_found("the server could not find the requested resource"))
        .method_not_allowed_fallback(async || Problem::method())
        .layer(middleware::from_fn_with_state(layer.clone(), identity::only_the_proxy))
        .layer(middleware::map_response(status::instead_of_problems))
        .layer(middleware::from_fn(request_id::identified))
        .with_state(layer.clone())
}

async fn everywhere(
    layer: State<Arc<Layer>>,
    caller: Named,
    Segments(resource): Segments<String>,
    headers: HeaderMap,
    query: Params<Query>,
) -> Result<Response, Problem> {
    list(layer, caller, &resource, None, &headers, query).await
}

async fn within(
    layer: State<Arc<Layer>>,
    caller: Named,
    Segments((namespace, resource)): Segments<(String, String)>,
    headers: HeaderMap,
    query: Params<Query>,
) -> Result<Response, Problem> {
    list(layer, caller, &resource, Some(&namespace), &headers, query).await
}

async fn list(
    State(layer): State<Arc<Layer>>,
    Named(caller): Named,
    resource: &str,
    namespace: Option<&str>,
    headers: &HeaderMap,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    let kind = kind(resource)?;
    let scope = caller.may_list(&layer.door, GROUP, kind.resource, namespace).await?;
    let options = query.understood()?;
    let form = Form::accepted(headers, &[Form::Table, Form::Objects])?;
    let listed = records::list(&layer.door, kind, &scope, &options).await?;
    Ok(render::list(kind, form, options.include, listed))
}

async fn one(
    State(layer): State<Arc<Layer>>,
    Named(caller): Named,
    Segments((namespace, resource, name)): Segments<(String, String, String)>,
    headers: HeaderMap,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    let kind = kind(&resource)?;
    let not_found =
        || Problem::not_found(format!("{}.{GROUP} \"{}\" not found", kind.resource, super::clean(&name, 253)));
    let device = name.split_once('.').map(|(device, _)| device).filter(|device| is_label(device));
    let device = DeviceRef { namespace, name: device.unwrap_or_default().to_owned() };
    // The right comes first, also for a name that no object can have.
    let of = caller.may_get(&layer.door, GROUP, kind.resource, &name, &device).await?;
    if device.name.is_empty() {
        return Err(not_found());
    }
    let include = query.of_one()?;
    let form = Form::accepted(&headers, &[Form::Table, Form::Objects])?;
    let object = records::get(&layer.door, kind, &of, &name).await?;
    Ok(render::object(kind, form, include, object))
}

fn kind(resource: &str) -> Result<&'static Kind, Problem> {
    Kind::of(resource).ok_or_else(|| Problem::not_found("the server could not find the requested resource"))
}
