//! The people's door: `/api/v1`, JSON over HTTP/1.1 and TLS 1.3, read only.
//!
//! ```text
//!   request -> turn (bounded) -> Caller (TokenReview) -> Params -> Scope (SubjectAccessReview) -> store and watch -> Page
//!                                      '------------------ Problem (RFC 9457) ------------------'
//! ```
//!
//! One file a subject, with its handlers and what they answer; OpenAPI is made of the very same functions and types. What is asked here
//! cannot stop what devices need: requests, connections and time are bounded, and of the store's connections a few are used at a time.

mod audit;
pub(super) mod auth;
pub(super) mod devices;
mod discovery;
mod hardware;
pub(super) mod history;
pub(super) mod page;
pub(super) mod problem;
pub(super) mod software;
mod statistics;
pub(super) mod updates;
pub(super) mod vulnerabilities;

#[cfg(test)]
mod knowledge_tests;
#[cfg(test)]
pub(super) mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tracing::Instrument as _;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::auth::{Memory, Peer, Right, TokenHash};
use self::problem::Problem;
use super::budget::Budget;
use super::{GatewayError, Shared, TlsConfig, audit_handshakes, request_id, tls};
use crate::store::{Store, StoreError};

pub use self::page::{DEFAULT_LIMIT, MAX_LIMIT};

/// Below this the API is.
pub const ROOT: &str = "/api/v1";

/// What tokens are for where nothing else is configured.
pub const API_AUDIENCE: &str = "patchwarden-api";

/// A request takes this long at most.
const REQUEST_TIME: Duration = Duration::from_secs(15);

/// The head of a request is there within this time, and the next request of a connection.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// A connection lasts this long at most: also one that does not read what it has asked for.
const CONNECTION_TIME: Duration = Duration::from_mins(10);

/// Bytes of the head of a request: a token of many groups has some KB.
const MAX_HEAD: usize = 64 * 1024;

/// Lines of the head: through the aggregation layer there is one for each of the user's groups.
const MAX_HEADERS: usize = 1_000;

/// Connections at a time, and requests that are worked on; what is beyond is told to come again.
const CONNECTIONS: usize = 256;
const REQUESTS: usize = 64;

/// Of the store's connections so many at a time: SQLite has four that read, for devices, too.
const STORE_TURNS: usize = 2;

/// New tokens are shown to the API server: so many at once, then 20 a second.
const REVIEWS: (u32, Duration) = (100, Duration::from_millis(50));

/// What the requests of the API share.
pub struct Door {
    shared: Arc<Shared>,
    /// What tokens have to be for.
    audience: String,
    tokens: Memory<TokenHash, Result<Arc<k8s_openapi::api::authentication::v1::UserInfo>, String>>,
    rights: Memory<Right, bool>,
    reviews: Mutex<Budget>,
    requests: Semaphore,
    store_turns: Arc<Semaphore>,
}

impl Door {
    /// A door to what a gateway knows.
    pub fn new(shared: Arc<Shared>, audience: String) -> Self {
        Self {
            shared,
            audience,
            tokens: Memory::default(),
            rights: Memory::default(),
            reviews: Mutex::new(Budget::new(REVIEWS.0, REVIEWS.1)),
            requests: Semaphore::new(REQUESTS),
            store_turns: Arc::new(Semaphore::new(STORE_TURNS)),
        }
    }

    /// As many requests as are worked on at a time.
    #[cfg(test)]
    pub(super) fn fill(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.requests.try_acquire_many(REQUESTS.try_into().unwrap()).unwrap()
    }

    fn may_review(&self) -> bool {
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner).try_spend(Instant::now())
    }

    /// What the whole gateway shares.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Asks the store. The turn is kept until the store has answered, also when nobody waits for it any more.
    async fn ask<T, F>(&self, ask: impl FnOnce(Store) -> F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let turn = self.store_turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Problem::unavailable("this gateway is shutting down"))?;
        let asked = ask(self.shared.store.clone());
        let answer = async move {
            let answer = asked.await;
            drop(turn);
            answer
        };
        let answer = tokio::spawn(answer.in_current_span());
        Ok(answer.await.map_err(|error| ended(&error))??)
    }

    /// Works something out that takes more than a moment, where it keeps nobody waiting.
    async fn work_out<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let turn = self.store_turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Problem::unavailable("this gateway is shutting down"))?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|error| ended(&error))
    }
}

fn ended(error: &tokio::task::JoinError) -> Problem {
    tracing::error!(%error, "a request of the API cannot be answered");
    Problem::unavailable("the answer cannot be worked out; the gateway's log says why")
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Patchwarden",
        description = "What a gateway's store knows of devices, read only. `docs/api.md` says who may ask, and how.",
    ),
    modifiers(&Bearer),
    components(schemas(problem::Problem)),
    security(("token" = [])),
)]
struct Described;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let text = "A token for the gateway's audience: `kubectl create token NAME --audience patchwarden-api`.";
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build();
        let components = api.components.get_or_insert_default();
        components.security_schemes.insert("token".to_owned(), SecurityScheme::Http(scheme).into());
    }
}

fn described() -> OpenApiRouter<Arc<Door>> {
    let endpoints = OpenApiRouter::new()
        .routes(routes!(devices::list))
        .routes(routes!(devices::one))
        .routes(routes!(hardware::of_device))
        .routes(routes!(updates::list))
        .routes(routes!(updates::missing))
        .routes(routes!(software::of_device))
        .routes(routes!(software::search))
        .routes(routes!(history::changes))
        .routes(routes!(history::installs))
        .routes(routes!(vulnerabilities::affected))
        .routes(routes!(vulnerabilities::known))
        .routes(routes!(vulnerabilities::of_device))
        .routes(routes!(vulnerabilities::fixed))
        .routes(routes!(statistics::tell))
        .routes(routes!(audit::list));
    OpenApiRouter::with_openapi(Described::openapi()).nest(ROOT, endpoints)
}

/// The description of the API: OpenAPI 3.1, of the code.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

/// The routes.
pub fn router(door: Arc<Door>) -> Router {
    let (router, description) = described().split_for_parts();
    let document = axum::routing::get(async move || Json(description.clone()));
    router
        .route(&format!("{ROOT}/openapi.json"), document)
        .fallback(async || Problem::not_found(format!("there is no such path; {ROOT}/openapi.json lists them")))
        .method_not_allowed_fallback(async || Problem::method())
        .layer(middleware::from_fn_with_state(door.clone(), bounded))
        .layer(middleware::from_fn(request_id::identified))
        .with_state(door)
}

/// Takes a request in its turn and within its time, and counts it.
pub(super) async fn bounded(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let response = match door.requests.try_acquire() {
        Err(_) => Problem::unavailable("too many requests at once").into_response(),
        Ok(_turn) => {
            if let Ok(response) = timeout(REQUEST_TIME, next.run(request)).await {
                response
            } else {
                let seconds = REQUEST_TIME.as_secs();
                Problem::unavailable(format!("not answered within {seconds} s; ask for less")).into_response()
            }
        }
    };
    let result = match response.status().as_u16() {
        401 | 403 => "refused",
        400..=499 => "invalid",
        500.. => "failed",
        _ => "answered",
    };
    door.shared.metrics.api_requests.with_label_values(&[result]).inc();
    response
}

/// Serves the API until the gateway ends.
pub(super) async fn serve(door: Arc<Door>, listener: TcpListener, config: TlsConfig) -> Result<(), GatewayError> {
    let router = router(door.clone());
    let with_peer = move |stream: &TlsStream<TcpStream>| router.clone().layer(axum::Extension(peer(stream)));
    serve_http("API's", &door, listener, config, with_peer).await
}

/// Where a connection comes from.
pub(super) fn peer(stream: &TlsStream<TcpStream>) -> Peer {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    Peer(stream.get_ref().0.peer_addr().unwrap_or(unknown).ip())
}

/// Serves HTTP/1.1 until the gateway ends, each connection with the routes that it is given.
pub(super) async fn serve_http(
    name: &'static str,
    door: &Door,
    listener: TcpListener,
    mut config: TlsConfig,
    routes: impl Fn(&TlsStream<TcpStream>) -> Router,
) -> Result<(), GatewayError> {
    let shared = &door.shared;
    let mut synced = shared.devices.synced();
    let is_ready = async {
        // An error means that nobody could say it any more: it ends.
        let _ = config.wait_for(Option::is_some).await.is_ok();
        let _ = synced.wait_for(|synced| *synced).await.is_ok();
    };
    tokio::select! {
        () = is_ready => {}
        () = shared.stopping() => return Ok(()),
    }
    tracing::info!("the {name} door is open");
    let (mut incoming, turned_away) = tls::incoming(listener, config, tls::Limits::of_tokens());
    let telling = audit_handshakes(shared, name, turned_away);
    tokio::pin!(telling);
    let mut connections = JoinSet::new();
    let stopping = shared.stopping();
    tokio::pin!(stopping);
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            Some(_) = connections.join_next() => continue,
            never = &mut telling => match never {},
            () = &mut stopping => break,
        };
        match accepted {
            Some(Ok(stream)) if connections.len() < CONNECTIONS => {
                connections.spawn(connection(routes(stream.tls()), stream, shared.stopping()));
            }
            // Dropped: there are too many, or it broke off.
            Some(_) => {}
            None => break,
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(router: Router, stream: tls::Connection, stopping: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(router);
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection, stopping);
    let over = tokio::time::sleep(CONNECTION_TIME);
    tokio::pin!(over);
    let mut is_ending = false;
    loop {
        tokio::select! {
            // How it ends is the caller's business.
            _ = connection.as_mut() => return,
            () = &mut over => return,
            () = &mut stopping, if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
