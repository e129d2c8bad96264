//! The controller's keys: made by itself, kept in one Secret of its namespace.
//!
//! | key      | signs                                    | lives                                  |
//! |----------|------------------------------------------|----------------------------------------|
//! | root     | the delegation of the order key          | until a person replaces it; agents pin it |
//! | order    | orders and grants                        | 90 days at most by its delegation      |
//! | CA       | certificates of agents and gateways      | ten years; agents pin it               |
//!
//! What agents pin is published in the ConfigMap `patchwarden-trust`. How one takes another's place: `rotation`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::delegation::{self, Delegation, MAX_LIFETIME};
use patchwarden_protocol::key::{KeyError, PrivateKey, PublicKey};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::record::Signers;
use super::rotation::{self, CHAIN, PREVIOUS_CA, PREVIOUS_CA_KEY, PREVIOUS_CA_UNTIL, PREVIOUS_ORDER_KEYS};
use crate::api::{MANAGER_CONTROLLER, TRUST_CONFIG_MAP};
use crate::gateway::trust::{KEY_CA, KEY_CHAIN, KEY_ROOT};

/// Name of the Secret.
pub const SECRET: &str = "patchwarden-keys";

/// Annotation of the Secret: the epoch of orders, 0 where it is missing. `kubectl patchwarden raise-epoch` raises it.
pub const EPOCH: &str = "patchwarden.io/epoch";

/// A delegation is renewed when less than this is left of it: a device that sleeps for a month still finds one that it
/// believes.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(45 * 24);

/// Between looks at the Secret. A watch would need the right to list.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A new delegation counts from a little earlier, for devices whose clock is behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(10);

/// Life of the CA certificate: longer than machines are kept, since every agent pins it.
const CA_YEARS: i16 = 10;

/// What goes wrong with the keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server.
    #[error("Secret {SECRET} or ConfigMap {TRUST_CONFIG_MAP}: {0}")]
    Api(#[from] kube::Error),
    /// An entry of the Secret.
    #[error("Secret {SECRET}, entry {entry}: {why}. Restore it from a backup; without it agents take no orders")]
    Entry {
        /// Which.
        entry: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It is gone, and agents pin what was in it.
    #[error(
        "Secret {SECRET} does not exist, and ConfigMap {TRUST_CONFIG_MAP} says that it did: restore it from a backup. Only if it is \
         lost for good delete the ConfigMap too; then every agent has to join again"
    )]
    Lost,
    /// A certificate could not be made.
    #[error("CA certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key could not be written.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A document could not be signed.
    #[error(transparent)]
    Document(#[from] NotCanonical),
    /// The epoch.
    #[error(
        "Secret {SECRET}, annotation {EPOCH}: {0:?} is no number from 0 to 4294967295: run kubectl patchwarden raise-epoch"
    )]
    Epoch(String),
    /// The clock is beyond what a calendar has.
    #[error("Secret {SECRET}: {0}")]
    Time(jiff::Error),
}

/// The keys.
pub struct Keys {
    /// What agents pin.
    pub root: PublicKey,
    /// Signs orders and grants.
    pub order_key: PrivateKey,
    /// The root's word for it.
    pub delegation: Envelope<Delegation>,
    /// Until when.
    pub delegated_until: Timestamp,
    /// Order keys from before, which count for what they have signed in the record.
    pub earlier_signers: Vec<PublicKey>,
    /// Signs agents' certificates.
    pub ca: Ca,
    /// Signs gateways' certificates while `ca` takes its place.
    pub previous_ca: Option<Ca>,
    /// The certificates of both, as agents pin them.
    pub ca_pem: String,
    /// JSON of what leads there from earlier roots and CAs.
    pub chain: Option<String>,
    /// The epoch of orders.
    pub epoch: u32,
    /// When the CA before is left out.
    previous_ca_until: Option<Timestamp>,
    /// Which state of the Secret they are.
    version: Option<String>,
}

/// A CA.
pub struct Ca {
    /// Signs.
    pub issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
    /// When that ends.
    pub not_after: Timestamp,
}

impl Keys {
    /// How long these keys may be used before they are read again: until the delegation is to be renewed. With a root key that
    /// is kept elsewhere somebody else renews it: then once an hour.
    pub fn good_for(&self, now: Timestamp) -> Duration {
        const AT_LEAST: Duration = Duration::from_hours(1);
        let due = self.delegated_until.saturating_sub(RENEW_BEFORE).unwrap_or(now);
        let due = self.previous_ca_until.map_or(due, |until| until.min(due));
        Duration::try_from(due.duration_since(now)).map_or(AT_LEAST, |left| left.max(AT_LEAST))
    }

    /// Who signs the record.
    pub fn signers(&self) -> Signers<'_> {
        Signers { key: &self.order_key, before: &self.earlier_signers }
    }

    /// When what these keys rest on ends, by its name in the metrics.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, Timestamp)> {
        let previous = self.previous_ca.as_ref().map(|ca| ("PreviousCA", ca.not_after));
        [("CA", self.ca.not_after), ("OrderKey", self.delegated_until)].into_iter().chain(previous)
    }

    /// What signs gateways' certificates.
    pub fn serving_ca(&self) -> &Ca {
        self.previous_ca.as_ref().unwrap_or(&self.ca)
    }

    /// Returns once the Secret is another one: somebody asks for new keys, or has put others there.
    pub async fn superseded(&self, client: &kube::Client, namespace: &str) {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match secrets.get_metadata_opt(SECRET).await {
                Ok(found) if found.as_ref().is_some_and(|it| it.metadata.resource_version == self.version) => {}
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "Secret {SECRET} cannot be looked at; trying again"),
            }
        }
    }
}

/// Reads the keys, makes those that are missing, renews the delegation when it is time, and publishes what agents pin.
pub async fn load(client: &kube::Client, namespace: &str, now: Timestamp) -> Result<Keys, KeysError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match secrets.get_opt(SECRET).await? {
        Some(secret) => secret,
        None if trust(client, namespace).await?.is_some() => return Err(KeysError::Lost),
        None => create(&secrets, now).await?,
    };
    let secret = rotate(&secrets, secret, now).await?;
    let secret = renew_delegation(&secrets, secret, now).await?;
    let keys = parse(&secret, now)?;
    publish(client, namespace, &keys).await?;
    Ok(keys)
}

async fn create(secrets: &Api<Secret>, now: Timestamp) -> Result<Secret, KeysError> {
    tracing::info!("making the root key, the order key and the CA (Secret {SECRET})");
    match secrets.create(&PostParams::default(), &make(now)?).await {
        // Another replica was first: its keys count.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(secrets.get(SECRET).await?),
        other => Ok(other?),
    }
}

/// All of them, new.
pub(super) fn make(now: Timestamp) -> Result<Secret, KeysError> {
    let (root, order_key, ca_key) = (PrivateKey::generate(), PrivateKey::generate(), KeyPair::generate()?);
    let delegation = delegate(&root, &order_key.public(), now)?;
    let data = [
        ("root.key", root.to_pem()?),
        ("order.key", order_key.to_pem()?),
        ("order.delegation", delegation),
        ("ca.crt", ca_certificate(&ca_key, now)?),
        ("ca.key", ca_key.serialize_pem()),
    ];
    Ok(Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some(data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    })
}

/// What somebody asks for, and what is due.
async fn rotate(secrets: &Api<Secret>, secret: Secret, now: Timestamp) -> Result<Secret, KeysError> {
    let secret = match rotation::asked(&secret) {
        None => secret,
        Some(asked) => {
            let rotated = asked
                .map_err(rotation::Refusal::Asked)
                .and_then(|what| Ok((rotation::rotate(&secret, &what, now)?, what)));
            match rotated {
                Ok((entries, what)) => {
                    tracing::info!(?what, "new keys are made");
                    replace(secrets, &secret, Some(&entries), None).await?
                }
                Err(rotation::Refusal::Asked(why)) => {
                    tracing::error!(why, "no new keys are made");
                    replace(secrets, &secret, None, Some(why)).await?
                }
                Err(rotation::Refusal::Keys(error)) => return Err(error),
            }
        }
    };
    match rotation::retire(&secret, now)? {
        None => Ok(secret),
        Some(entries) => {
            tracing::info!("the CA before is left out");
            replace(secrets, &secret, Some(&entries), None).await
        }
    }
}

/// All at once, and only where nobody has changed it meanwhile. What was asked for is asked for no longer.
async fn replace(
    secrets: &Api<Secret>,
    secret: &Secret,
    entries: Option<&rotation::Entries>,
    refused: Option<String>,
) -> Result<Secret, KeysError> {
    let data: Option<BTreeMap<_, _>> = entries.map(|entries| entries.0.iter().collect());
    let patch = serde_json::json!({
        "metadata": {
            "resourceVersion": secret.metadata.resource_version,
            "annotations": { rotation::ANNOTATION: null, rotation::ANNOTATION_REFUSED: refused },
        },
        "data": data.unwrap_or_default(),
    });
    Ok(secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await?)
}

pub(super) fn ca_certificate(key: &KeyPair, now: Timestamp) -> Result<String, KeysError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Patchwarden CA");
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = date(today.yesterday().unwrap_or(today));
    params.not_after = date(today.checked_add(jiff::Span::new().years(CA_YEARS)).unwrap_or(today));
    Ok(params.self_signed(key)?.pem())
}

pub(super) fn delegate(root: &PrivateKey, order_key: &PublicKey, now: Timestamp) -> Result<String, KeysError> {
    let not_before = now.saturating_sub(BACKDATE).unwrap_or(now);
    let document = Delegation {
        order_key: *order_key,
        not_before,
        not_after: not_before.saturating_add(MAX_LIFETIME).unwrap_or(Timestamp::MAX),
    };
    serde_json::to_string(&Envelope::seal(&document, root)?)
        .map_err(|error| KeysError::Entry { entry: "order.delegation", why: error.to_string() })
}

/// With the root key in the Secret the delegation is renewed here. A root key kept offline is not in it: then whoever holds it
/// signs a new delegation and puts it into `order.delegation`.
async fn renew_delegation(secrets: &Api<Secret>, secret: Secret, now: Timestamp) -> Result<Secret, KeysError> {
    let Some(root) = private_key(&secret, "root.key")? else { return Ok(secret) };
    let order_key = required(private_key(&secret, "order.key")?, "order.key")?;
    let current: Envelope<Delegation> = json(&secret, "order.delegation")?;
    let fresh = now.saturating_add(RENEW_BEFORE).unwrap_or(now);
    if delegation::order_key(&current, &root.public(), now).is_ok()
        && delegation::order_key(&current, &root.public(), fresh).is_ok()
    {
        return Ok(secret);
    }
    tracing::info!("renewing the delegation of the order key");
    let renewed = delegate(&root, &order_key.public(), now)?;
    let patch = serde_json::json!({"data": {"order.delegation": STANDARD.encode(renewed)}});
    Ok(secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await?)
}

pub(super) fn parse(secret: &Secret, now: Timestamp) -> Result<Keys, KeysError> {
    let order_key = required(private_key(secret, "order.key")?, "order.key")?;
    let root = match private_key(secret, "root.key")? {
        Some(root) => root.public(),
        None => root_public(secret)?,
    };
    let delegation: Envelope<Delegation> = json(secret, "order.delegation")?;
    let entry = |entry, why: String| KeysError::Entry { entry, why };
    let delegated =
        delegation::order_key(&delegation, &root, now).map_err(|error| entry("order.delegation", error.to_string()))?;
    if delegated != order_key.public() {
        return Err(entry("order.delegation", "delegates to another key than order.key".to_owned()));
    }
    let delegated_until =
        delegation.open(&root).map_err(|error| entry("order.delegation", error.to_string()))?.not_after;
    let ca = ca(secret, "ca.crt", "ca.key")?;
    let previous_ca =
        optional(secret, PREVIOUS_CA)?.map(|_| self::ca(secret, PREVIOUS_CA, PREVIOUS_CA_KEY)).transpose()?;
    let until = optional(secret, PREVIOUS_CA_UNTIL)?.map(|until| until.parse()).transpose();
    let until = until.map_err(|error: jiff::Error| entry(PREVIOUS_CA_UNTIL, error.to_string()))?;
    let earlier = optional(secret, PREVIOUS_ORDER_KEYS)?.unwrap_or_default();
    let earlier = earlier.lines().map(|key| PublicKey::try_from(key.to_owned()));
    let earlier: Result<Vec<_>, _> = earlier.collect();
    Ok(Keys {
        root,
        order_key,
        delegation,
        delegated_until,
        earlier_signers: earlier.map_err(|error| entry(PREVIOUS_ORDER_KEYS, error.to_string()))?,
        ca_pem: rotation::bundle(previous_ca.as_ref().map(|ca| ca.pem.as_str()), &ca.pem),
        ca,
        previous_ca,
        chain: optional(secret, CHAIN)?,
        epoch: epoch(&secret.metadata)?,
        previous_ca_until: until,
        version: secret.metadata.resource_version.clone(),
    })
}

/// The epoch of orders, as the Secret's metadata names it.
pub fn epoch(metadata: &ObjectMeta) -> Result<u32, KeysError> {
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(EPOCH));
    text.map_or(Ok(0), |text| text.parse().map_err(|_| KeysError::Epoch(text.clone())))
}

fn ca(secret: &Secret, certificate: &'static str, key: &'static str) -> Result<Ca, KeysError> {
    let entry = |entry, why: String| KeysError::Entry { entry, why };
    let pem = text(secret, certificate)?;
    let pair = KeyPair::from_pem(&text(secret, key)?).map_err(|error| entry(key, error.to_string()))?;
    let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|error| entry(certificate, error.to_string()))?;
    let not_after = ends(&pem).map_err(|why| entry(certificate, why))?;
    Ok(Ca { issuer, pem, not_after })
}

fn ends(pem: &str) -> Result<Timestamp, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|error| error.to_string())
}

/// `root.pub`: base64 of the 32 bytes, for a root key that is kept elsewhere.
fn root_public(secret: &Secret) -> Result<PublicKey, KeysError> {
    PublicKey::try_from(text(secret, "root.pub")?.trim().to_owned())
        .map_err(|error| KeysError::Entry { entry: "root.pub", why: error.to_string() })
}

async fn trust(client: &kube::Client, namespace: &str) -> Result<Option<ConfigMap>, kube::Error> {
    Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(TRUST_CONFIG_MAP).await
}

async fn publish(client: &kube::Client, namespace: &str, keys: &Keys) -> Result<(), KeysError> {
    let pinned = [(KEY_CA, keys.ca_pem.clone()), (KEY_ROOT, String::from(keys.root))];
    let data = pinned.into_iter().chain(keys.chain.clone().map(|chain| (KEY_CHAIN, chain)));
    let data: BTreeMap<String, String> = data.map(|(key, text)| (key.to_owned(), text)).collect();
    if trust(client, namespace).await?.is_some_and(|map| map.data.as_ref() == Some(&data)) {
        return Ok(());
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(TRUST_CONFIG_MAP.to_owned()), ..ObjectMeta::default() },
        data: Some(data),
        ..ConfigMap::default()
    };
    maps.patch(TRUST_CONFIG_MAP, &PatchParams::apply(MANAGER_CONTROLLER).force(), &Patch::Apply(&map)).await?;
    Ok(())
}

fn bytes<'a>(secret: &'a Secret, entry: &str) -> Option<&'a ByteString> {
    secret.data.as_ref()?.get(entry)
}

fn text(secret: &Secret, entry: &'static str) -> Result<String, KeysError> {
    let bytes = bytes(secret, entry).ok_or_else(|| KeysError::Entry { entry, why: "missing".to_owned() })?;
    String::from_utf8(bytes.0.clone()).map_err(|error| KeysError::Entry { entry, why: error.to_string() })
}

fn optional(secret: &Secret, entry: &'static str) -> Result<Option<String>, KeysError> {
    bytes(secret, entry).map(|_| text(secret, entry)).transpose()
}

fn json<T: serde::de::DeserializeOwned>(secret: &Secret, entry: &'static str) -> Result<T, KeysError> {
    serde_json::from_str(&text(secret, entry)?).map_err(|error| KeysError::Entry { entry, why: error.to_string() })
}

fn private_key(secret: &Secret, entry: &'static str) -> Result<Option<PrivateKey>, KeysError> {
    if bytes(secret, entry).is_none() {
        return Ok(None);
    }
    PrivateKey::from_pem(&text(secret, entry)?)
        .map(Some)
        .map_err(|error| KeysError::Entry { entry, why: error.to_string() })
}

pub(super) fn required<T>(value: Option<T>, entry: &'static str) -> Result<T, KeysError> {
    value.ok_or_else(|| KeysError::Entry { entry, why: "missing".to_owned() })
}
