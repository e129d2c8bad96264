//! The Kubernetes around the gateway: the controller's keys and its signer without the rest of it, the devices, and what the API server
//! counts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use patchwarden::api::device_inventory::{DeviceType, Lifecycle};
use patchwarden::api::{DeviceInventory, DeviceInventorySpec};
use patchwarden::controller::{certificates, keys};
use patchwarden::shell;
use patchwarden_protocol::key::PrivateKey;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::cost::Cost;

/// Patchwarden's own namespace.
pub const SYSTEM: &str = "patchwarden-system";

/// Whose certificates are signed.
const GATEWAY_USER: &str = "system:serviceaccount:patchwarden-system:patchwarden-gateway";

/// Objects of a page of a list.
const PAGE: u32 = 500;

/// Requests at the same time, where many devices are made.
const REQUESTS: usize = 32;

/// Life of the agents' certificates: no run lasts half of it.
const LIFETIME: Duration = Duration::from_hours(48);

/// The cluster.
pub struct World {
    client: Client,
    keys: keys::Keys,
    namespace: String,
}

/// Writes that the API server has counted, by verb and resource.
pub type Writes = BTreeMap<(String, String), u64>;

impl World {
    /// Makes the keys, publishes what gateways trust, and makes a namespace for the devices.
    pub async fn new(namespace: &str) -> anyhow::Result<Self> {
        let client = shell::kube_client("patchwarden-bench").await?;
        let keys = keys::load(&client, SYSTEM, shell::now()).await?;
        let object = serde_json::from_value(serde_json::json!({ "metadata": { "name": namespace } }))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await?;
        Ok(Self { client, keys, namespace: namespace.to_owned() })
    }

    /// Signs the gateway's certificates for ever, as the controller does.
    pub async fn sign(&self) {
        certificates::run(self.client.clone(), &self.keys, GATEWAY_USER, shell::now).await;
    }

    /// As its administrator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The devices'.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The keys.
    pub fn keys(&self) -> &keys::Keys {
        &self.keys
    }

    /// Makes a DeviceInventory for each of these keys.
    pub async fn make_devices<'a>(
        &self,
        devices: impl Iterator<Item = (String, &'a PrivateKey)>,
    ) -> anyhow::Result<()> {
        let api = self.devices();
        let make = |(name, key): (String, &PrivateKey)| {
            let spec = DeviceInventorySpec {
                device_type: DeviceType::Server,
                time_zone: None,
                accepted_key: Some(key.public().fingerprint().into()),
                lifecycle: Lifecycle::Active,
                suspend: false,
                duplicate_resolved: None,
            };
            let object = DeviceInventory::new(&name, spec);
            let api = api.clone();
            async move { api.create(&PostParams::default(), &object).await.map(drop) }
        };
        let requests: Vec<_> = devices.map(make).collect();
        stream::iter(requests).buffer_unordered(REQUESTS).try_for_each(async |()| Ok(())).await?;
        Ok(())
    }

    /// A certificate as a device gets it when it enrols, PEM: ten thousand of them take minutes where the gateway is asked.
    pub fn certificate(&self, name: &str, key: &PrivateKey) -> anyhow::Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{}/{name}", self.namespace));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = std::time::SystemTime::from(shell::now());
        (params.not_before, params.not_after) = ((now - Duration::from_mins(10)).into(), (now + LIFETIME).into());
        let pair = KeyPair::from_pem(&key.to_pem()?)?;
        Ok(format!("{}{}", params.signed_by(&pair, &self.keys.ca.issuer)?.pem(), self.keys.ca_pem))
    }

    /// The counters of the reports that the API server shows, and how many devices are online.
    pub async fn shown(&self) -> anyhow::Result<(BTreeMap<String, u64>, usize)> {
        let (api, mut counters, mut online) = (self.devices(), BTreeMap::new(), 0);
        let mut parameters = ListParams::default().limit(PAGE);
        loop {
            let page = api.list(&parameters).await?;
            for device in page.items {
                let name = device.name_any();
                let inventory = device.status.and_then(|status| status.inventory).unwrap_or_default();
                online += usize::from(inventory.online);
                if let Some(report) = inventory.report {
                    counters.insert(name, report.counter);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok((counters, online)),
            }
        }
    }

    /// What Kubernetes takes for all of it.
    pub async fn cost(&self) -> anyhow::Result<Cost> {
        Cost::now(&self.client).await
    }

    /// Bytes of a DeviceInventory as JSON: of a page of them, the mean.
    pub async fn object_bytes(&self) -> anyhow::Result<usize> {
        let page = self.devices().list(&ListParams::default().limit(PAGE)).await?;
        let bytes = page.items.iter().map(|device| serde_json::to_vec(device).map(|bytes| bytes.len()));
        let total: usize = bytes.sum::<Result<_, _>>()?;
        Ok(total / page.items.len().max(1))
    }

    /// Writes of Patchwarden's kinds and of requests for certificates, by the API server's own count.
    pub async fn writes(&self) -> anyhow::Result<Writes> {
        let text = self.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        let mut writes = Writes::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let (labels, value) = line.rsplit_once("} ").context("apiserver_request_total")?;
            let label = |name: &str| {
                labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
            };
            let ours = ["patchwarden.io", "certificates.k8s.io"].contains(&label("group").unwrap_or_default());
            let verb = label("verb").unwrap_or_default();
            if ours && ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&verb) {
                let resource = label("resource").unwrap_or_default();
                let subresource = label("subresource").filter(|name| !name.is_empty()).map(|name| format!("/{name}"));
                let key = (verb.to_owned(), format!("{resource}{}", subresource.unwrap_or_default()));
                // Whole numbers, large ones with an exponent.
                let count: f64 = value.parse().context("apiserver_request_total")?;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
                let count = count as u64;
                *writes.entry(key).or_default() += count;
            }
        }
        ensure!(!writes.is_empty(), "the API server counts no writes");
        Ok(writes)
    }

    fn devices(&self) -> Api<DeviceInventory> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
