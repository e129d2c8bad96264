//! How the plugin reaches the gateway's API: by a port that it forwards itself or by a URL, with a token for that API alone.
//!
//! The token is a ServiceAccount's, short, and for the gateway's audience: it is asked for with the rights of the kubeconfig, whatever
//! kind of credentials that has. So the kubeconfig's own credentials never reach the gateway, and whoever holds that can do nothing in
//! the cluster with what it is shown.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::api::TRUST_CONFIG_MAP;
use crate::gateway::api::{API_AUDIENCE, MAX_LIMIT, ROOT};
use crate::gateway::request_id;
use crate::gateway::trust::Trust;

/// The gateway's port for its API, in its pods.
const PORT: u16 = 8445;

/// By this its pods are found.
const SELECTOR: &str = "app.kubernetes.io/name=patchwarden-gateway";

/// Seconds that a token is good for: the shortest that Kubernetes gives.
const TOKEN_SECONDS: i64 = 600;

/// For a connection with its handshake, and for an answer.
const CONNECT_TIME: Duration = Duration::from_secs(15);
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Bytes of one answer at most.
const MAX_ANSWER: usize = 64 << 20;

/// Where the API is, and whose right is used.
#[derive(Clone, Debug, Args)]
pub struct Access {
    /// Namespace of the client. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of all clients.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// ServiceAccount whose rights are used: a short token of it is asked for. Its namespace is the client's, with -A Patchwarden's own.
    #[arg(long, default_value = "patchwarden-reader", value_name = "NAME")]
    service_account: String,
    /// File with a token for the gateway's API, which is used instead.
    #[arg(long, env = "PATCHWARDEN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Audience of the token that is asked for.
    #[arg(long, default_value = API_AUDIENCE)]
    audience: String,
    /// Where the API is, such as https://patchwarden.example.com:8445. Without it a port of a gateway's pod is forwarded.
    #[arg(long, env = "PATCHWARDEN_API_URL", value_name = "URL")]
    api_url: Option<Url>,
    /// Patchwarden's own namespace.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
}

/// An open connection to the API.
pub struct Gateway {
    sender: SendRequest<Empty<Bytes>>,
    host: HeaderValue,
    authorization: HeaderValue,
    namespace: Option<String>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Access {
    /// Connects.
    pub async fn connect(self, client: &Client) -> anyhow::Result<Gateway> {
        let namespace = match &self.namespace {
            _ if self.all_namespaces => None,
            Some(namespace) => Some(namespace.clone()),
            None => Some(client.default_namespace().to_owned()),
        };
        let trust = self.trust(client).await?;
        let token = self.token(client, namespace.as_deref()).await?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).context("the token is none")?;
        authorization.set_sensitive(true);
        let (stream, name): (Box<dyn Stream>, String) = match &self.api_url {
            Some(url) => direct(url).await?,
            None => self.forwarded(client).await?,
        };
        let host = HeaderValue::try_from(&name)?;
        let server_name = ServerName::try_from(name.clone()).with_context(|| format!("{name} is no name of a host"))?;
        let tls = TlsConnector::from(Arc::new(tls(&trust)?)).connect(server_name, stream);
        let tls = timeout(CONNECT_TIME, tls).await.context("no answer from the gateway")?;
        let tls =
            tls.with_context(|| format!("TLS with the gateway {name}, by the CA of ConfigMap {TRUST_CONFIG_MAP}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.context("HTTP with the gateway")?;
        // What goes wrong with it the request tells.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Gateway { sender, host, authorization, namespace })
    }

    async fn trust(&self, client: &Client) -> anyhow::Result<Trust> {
        let own = &self.patchwarden_namespace;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), own);
        let map =
            maps.get_opt(TRUST_CONFIG_MAP).await.with_context(|| format!("ConfigMap {own}/{TRUST_CONFIG_MAP}"))?;
        let missing = || anyhow!("ConfigMap {own}/{TRUST_CONFIG_MAP} does not exist: is the controller running there?");
        Ok(Trust::of(&map.ok_or_else(missing)?)?)
    }

    async fn token(&self, client: &Client, namespace: Option<&str>) -> anyhow::Result<String> {
        if let Some(path) = &self.token_file {
            let text = tokio::fs::read_to_string(path).await;
            return Ok(text.with_context(|| format!("--token-file: {}", path.display()))?.trim().to_owned());
        }
        let namespace = namespace.unwrap_or(&self.patchwarden_namespace);
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let spec = TokenRequestSpec {
            audiences: Some(vec![self.audience.clone()]),
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: None,
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let name = &self.service_account;
        let answer =
            accounts.create_token_request(name, &PostParams::default(), &request).await.with_context(|| {
                format!(
                    "no token of ServiceAccount {namespace}/{name}: it has to exist, and you need the right to create \
                 serviceaccounts/token of it (docs/api.md); or give --token-file"
                )
            })?;
        answer.status.and_then(|status| status.token).context("the API server gave no token")
    }

    /// A port of a gateway's pod, through the API server.
    async fn forwarded(&self, client: &Client) -> anyhow::Result<(Box<dyn Stream>, String)> {
        let own = &self.patchwarden_namespace;
        let pods: Api<Pod> = Api::namespaced(client.clone(), own);
        let found = pods.list(&ListParams::default().labels(SELECTOR)).await;
        let found = found.with_context(|| format!("cannot list pods in namespace {own}; or give --api-url"))?;
        let pod = found.items.into_iter().find(is_ready).with_context(|| {
            format!("no pod with the label {SELECTOR} is ready in namespace {own}: is the gateway running there? or give --api-url")
        })?;
        let name = pod.name_any();
        let forwarder = pods.portforward(&name, &[PORT]);
        let mut forwarder = timeout(CONNECT_TIME, forwarder).await.context("no answer from the API server")?;
        let forwarder =
            forwarder.as_mut().map_err(|error| anyhow!("cannot forward a port of pod {own}/{name}: {error}"))?;
        let stream = forwarder.take_stream(PORT).context("no stream of the forwarded port")?;
        Ok((Box::new(stream), format!("patchwarden-gateway.{own}.svc")))
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn direct(url: &Url) -> anyhow::Result<(Box<dyn Stream>, String)> {
    ensure!(
        url.scheme() == "https" && matches!(url.path(), "/" | ""),
        "--api-url: {url} is not like https://HOST:PORT"
    );
    let host = url.host_str().context("--api-url: there is no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port().unwrap_or(443);
    let connecting = TcpStream::connect((host.as_str(), port));
    let stream = timeout(CONNECT_TIME, connecting).await.with_context(|| format!("{host}:{port} does not answer"))?;
    Ok((Box::new(stream.with_context(|| format!("{host}:{port}"))?), host))
}

fn tls(trust: &Trust) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in &trust.ca {
        roots.add(certificate.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl Gateway {
    /// The client's namespace; none for all.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The one that a device is in.
    pub fn one_namespace(&self) -> anyhow::Result<&str> {
        self.namespace().context("a device is of one namespace: give -n instead of -A")
    }

    /// What is at a path below `/api/v1`.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let request = Request::get(format!("{ROOT}{path}"))
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json")
            .body(Empty::new())?;
        // The connection may not have seen the end of the answer before yet.
        self.sender.ready().await.context("the connection to the gateway")?;
        let response = timeout(ANSWER_TIME, self.sender.send_request(request)).await;
        let response = response.context("the gateway does not answer")?.context("the gateway's answer")?;
        let status = response.status();
        let id = response.headers().get(request_id::HEADER).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let body = timeout(ANSWER_TIME, Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
        let body = body.context("the gateway's answer does not end")?;
        let body = body.map_err(|error| anyhow!("the gateway's answer: {error}"))?.to_bytes();
        let body: Value =
            serde_json::from_slice(&body).with_context(|| format!("the gateway answers {status}, and no JSON"))?;
        if status != StatusCode::OK {
            // What has gone wrong there is in its log only.
            let id = id.filter(|_| status.is_server_error()).map(|id| format!(" (request {id})")).unwrap_or_default();
            bail!("{status}: {}{id}", body["detail"].as_str().unwrap_or_default());
        }
        Ok(body)
    }

    /// All entries of a list, page by page.
    pub async fn list(&mut self, path: &str, filters: &[(&str, Option<&str>)]) -> anyhow::Result<Vec<Value>> {
        let mut query = format!("limit={MAX_LIMIT}");
        for (name, value) in filters {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                let _ = write!(query, "&{name}={}", escaped(value));
            }
        }
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("{path}?{query}{cursor}")).await?;
            let Value::Array(items) = page["items"].take() else { bail!("the gateway's answer has no items") };
            all.extend(items);
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", escaped(next)),
                None => return Ok(all),
            }
        }
    }
}

/// As a part of a path or a value of a query.
pub fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}
