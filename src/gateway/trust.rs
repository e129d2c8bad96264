//! What everybody trusts: the CA's certificates and the root's public key, published by the controller in a ConfigMap.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::trust::{self, Trust as Pinned};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch as channel;

use crate::api::TRUST_CONFIG_MAP;

/// Key of the ConfigMap: the CAs' certificates in PEM, several while one replaces another: that of the gateways' certificates first.
pub const KEY_CA: &str = "ca.pem";
/// Key of the ConfigMap: base64 of the root's 32 bytes.
pub const KEY_ROOT: &str = "root.pub";
/// Key of the ConfigMap: JSON of the chain that leads from earlier roots and CAs to these. Not there before the first rotation.
pub const KEY_CHAIN: &str = "chain.json";

/// The ConfigMap cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ConfigMap {TRUST_CONFIG_MAP}: {key} {problem}")]
pub struct BadTrust {
    key: &'static str,
    problem: &'static str,
}

/// What is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The CA's certificates, as published.
    pub ca_pem: String,
    /// The same in DER.
    pub ca: Vec<CertificateDer<'static>>,
    /// The root's key.
    pub root: PublicKey,
    /// What leads there, for devices that pin something else; as published.
    pub chain: Option<String>,
}

impl Trust {
    /// Reads the ConfigMap.
    pub fn of(map: &ConfigMap) -> Result<Self, BadTrust> {
        let text = |key: &'static str| {
            map.data.as_ref().and_then(|data| data.get(key)).ok_or(BadTrust { key, problem: "is missing" })
        };
        let ca_pem = text(KEY_CA)?.clone();
        let ca: Vec<_> = CertificateDer::pem_slice_iter(ca_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| BadTrust { key: KEY_CA, problem: "is not PEM" })?;
        if ca.is_empty() {
            return Err(BadTrust { key: KEY_CA, problem: "holds no certificate" });
        }
        let bad_root = BadTrust { key: KEY_ROOT, problem: "is not base64 of an Ed25519 public key" };
        let root = STANDARD.decode(text(KEY_ROOT)?.trim()).map_err(|_| bad_root.clone())?;
        let root = PublicKey::from_bytes(&root).map_err(|_| bad_root)?;
        let chain = map.data.as_ref().and_then(|data| data.get(KEY_CHAIN)).cloned();
        if let Some(chain) = &chain {
            serde_json::from_str::<Vec<Envelope<Pinned>>>(chain)
                .map_err(|_| BadTrust { key: KEY_CHAIN, problem: "is no list of signed documents" })?;
        }
        Ok(Self { ca_pem, ca, root, chain })
    }
}

impl Trust {
    /// What a device has to be sent that pins what has this digest; none where it pins the same, or nothing leads on.
    pub fn chain_for(&self, pinned: &str) -> Option<&str> {
        self.chain.as_deref().filter(|_| trust::digest(&self.root, &self.ca_pem) != pinned)
    }
}

/// Follows the ConfigMap for ever. What was read last stays when it disappears or breaks: agents pin it anyway.
pub async fn run(client: Client, namespace: String, trust: channel::Sender<Option<Trust>>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={TRUST_CONFIG_MAP}"));
    let events = watch(api, config).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) => match Trust::of(&map) {
                Ok(new) => {
                    let changed = trust.send_if_modified(|known| {
                        let differs = known.as_ref() != Some(&new);
                        if differs {
                            *known = Some(new);
                        }
                        differs
                    });
                    if changed {
                        tracing::info!(%namespace, "trust anchors read from ConfigMap {TRUST_CONFIG_MAP}");
                    }
                }
                Err(error) => tracing::error!(%namespace, %error, "trust anchors stay as they were"),
            },
            Ok(Event::InitDone) if trust.borrow().is_none() => {
                tracing::info!(%namespace, "waiting for the controller to publish ConfigMap {TRUST_CONFIG_MAP}");
            }
            Ok(Event::Delete(_)) => {
                tracing::warn!(%namespace, "ConfigMap {TRUST_CONFIG_MAP} was deleted; trust anchors stay as they were");
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(%namespace, %error, "watching ConfigMap {TRUST_CONFIG_MAP} fails; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::key::PrivateKey;

    use super::*;

    fn map(ca: &str, root: &str) -> ConfigMap {
        let data = [(KEY_CA.to_owned(), ca.to_owned()), (KEY_ROOT.to_owned(), root.to_owned())];
        ConfigMap { data: Some(data.into()), ..ConfigMap::default() }
    }

    #[test]
    fn the_config_map_is_read_or_named() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let root = PrivateKey::generate().public();
        let trust = Trust::of(&map(&ca, &String::from(root))).unwrap();
        assert_eq!((trust.ca.len(), trust.root, &trust.chain), (1, root, &None));
        assert_eq!(trust.chain_for("sha256:other"), None, "nothing leads there");
        let mut rotated = map(&ca, &String::from(root));
        rotated.data.as_mut().unwrap().insert(KEY_CHAIN.to_owned(), "[]".to_owned());
        let trust = Trust::of(&rotated).unwrap();
        assert_eq!(trust.chain_for("sha256:other"), Some("[]"));
        assert_eq!(trust.chain_for(&trust::digest(&root, &ca)), None, "it pins that already");
        rotated.data.as_mut().unwrap().insert(KEY_CHAIN.to_owned(), "{}".to_owned());
        assert_eq!(Trust::of(&rotated).unwrap_err().key, KEY_CHAIN);
        assert_eq!(Trust::of(&map("", &String::from(root))).unwrap_err().key, KEY_CA);
        assert_eq!(Trust::of(&map(&ca, "x")).unwrap_err().key, KEY_ROOT);
        assert_eq!(Trust::of(&ConfigMap::default()).unwrap_err().problem, "is missing");
    }
}
