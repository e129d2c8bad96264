//! Whom the API server has its proxy's certificate from, and how it says who asks: the ConfigMap that it publishes for that.
//!
//! What is in the headers of a request counts by the certificate of the connection alone, so nothing else is trusted here: not the CA of the
//! cluster's users, and not Patchwarden's own.

use std::sync::Arc;

use futures::{StreamExt as _, pin_mut};
use http::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch as channel;

/// The ConfigMap, in [`NAMESPACE`].
pub const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// Where the API server publishes it.
pub const NAMESPACE: &str = "kube-system";

const KEY_CA: &str = "requestheader-client-ca-file";
const KEY_USERS_CA: &str = "client-ca-file";
const KEY_NAMES: &str = "requestheader-allowed-names";
const KEY_USERNAME: &str = "requestheader-username-headers";
const KEY_UID: &str = "requestheader-uid-headers";
const KEY_GROUP: &str = "requestheader-group-headers";
const KEY_EXTRA: &str = "requestheader-extra-headers-prefix";

/// The ConfigMap cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ConfigMap {NAMESPACE}/{CONFIG_MAP}: {key} {problem}")]
pub struct BadAnchors {
    key: &'static str,
    problem: String,
}

/// What a request of the aggregation layer is judged by.
#[derive(Debug)]
pub struct Anchors {
    /// Takes certificates of the request-header CA, and wants one.
    pub clients: Arc<dyn ClientCertVerifier>,
    /// Common names of which one must be the certificate's; any will do if there is none, as the API server has it.
    pub allowed_names: Vec<String>,
    /// Headers with the name of the user: the first that is there counts.
    pub username: Vec<HeaderName>,
    /// Headers with the user's UID.
    pub uid: Vec<HeaderName>,
    /// Headers with a group each.
    pub group: Vec<HeaderName>,
    /// Beginnings of headers with what else is known of the user, in lower case.
    pub extra: Vec<String>,
}

impl Anchors {
    /// Reads the ConfigMap.
    pub fn of(map: &ConfigMap) -> Result<Self, BadAnchors> {
        let entry = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
        let bad = |key, problem: &str| BadAnchors { key, problem: problem.to_owned() };
        let list = |key: &'static str| -> Result<Vec<String>, BadAnchors> {
            let parsed = entry(key).map(|text| serde_json::from_str(text)).transpose();
            Ok(parsed.map_err(|_| bad(key, "is no JSON list of texts"))?.unwrap_or_default())
        };
        let headers = |key| -> Result<Vec<HeaderName>, BadAnchors> {
            let names = list(key)?.into_iter().map(|name| name.parse());
            names.collect::<Result<_, _>>().map_err(|_| bad(key, "has a text that is no name of a header"))
        };
        let pem = entry(KEY_CA)
            .ok_or_else(|| bad(KEY_CA, "is missing: is the API server started with --requestheader-client-ca-file?"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_| bad(KEY_CA, "is not PEM"))?;
            roots.add(certificate).map_err(|error| BadAnchors { key: KEY_CA, problem: error.to_string() })?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let username = headers(KEY_USERNAME)?;
        if username.is_empty() {
            return Err(bad(KEY_USERNAME, "names no header"));
        }
        let allowed_names = list(KEY_NAMES)?;
        let users = entry(KEY_USERS_CA).map(String::as_bytes).unwrap_or_default();
        let users: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(users).filter_map(Result::ok).collect();
        let mut of_clients = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
        if allowed_names.is_empty() && of_clients.any(|it| users.contains(&it)) {
            let problem = "names nobody, so that everybody counts, and the request-header CA also signs certificates of the \
                           cluster's users: any of them could say who they are; give the API server a request-header CA of \
                           its own, or --requestheader-allowed-names";
            return Err(bad(KEY_NAMES, problem));
        }
        Ok(Self {
            clients: clients.map_err(|error| BadAnchors { key: KEY_CA, problem: error.to_string() })?,
            allowed_names,
            username,
            uid: headers(KEY_UID)?,
            group: headers(KEY_GROUP)?,
            extra: list(KEY_EXTRA)?.into_iter().map(|prefix| prefix.to_ascii_lowercase()).collect(),
        })
    }
}

/// Follows the ConfigMap for ever. What was read last stays when it disappears or breaks, as with the API server itself.
pub async fn follow(client: Client, anchors: channel::Sender<Option<Arc<Anchors>>>) {
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let events = watch(api, config).default_backoff();
    pin_mut!(events);
    let mut read = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) if read != map.data => match Anchors::of(&map) {
                Ok(new) => {
                    anchors.send_replace(Some(Arc::new(new)));
                    read = map.data;
                    tracing::info!("the request-header CA is read from ConfigMap {NAMESPACE}/{CONFIG_MAP}");
                }
                Err(error) => tracing::error!(%error, "the request-header CA stays as it was"),
            },
            Ok(Event::InitDone) if anchors.borrow().is_none() => {
                tracing::warn!("the aggregation layer's door waits for ConfigMap {NAMESPACE}/{CONFIG_MAP}");
            }
            Ok(Event::Delete(_)) => {
                tracing::warn!("ConfigMap {NAMESPACE}/{CONFIG_MAP} was deleted; the request-header CA stays as it was");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "watching ConfigMap {NAMESPACE}/{CONFIG_MAP} fails; trying again");
            }
        }
    }
}
