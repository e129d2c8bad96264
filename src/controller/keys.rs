//! The controller's keys: made by itself, kept in one Secret of its namespace.
//!
//! | key      | signs                                    | lives                                  |
//! |----------|------------------------------------------|----------------------------------------|
//! | root     | the delegation of the order key          | until a person replaces it; agents pin it |
//! | order    | orders and grants                        | 90 days at most by its delegation      |
//! | CA       | certificates of agents and gateways      | ten years; agents pin it               |
//!
//! What agents pin is published in the ConfigMap `patchwarden-trust`.

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

use crate::api::{MANAGER_CONTROLLER, TRUST_CONFIG_MAP};

/// Name of the Secret.
pub const SECRET: &str = "patchwarden-keys";

/// A delegation is renewed when less than this is left of it: a device that sleeps for a month still finds one that it
/// believes.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(45 * 24);

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
    /// Signs certificates.
    pub ca: Issuer<'static, KeyPair>,
    /// The CA's certificate.
    pub ca_pem: String,
}

impl Keys {
    /// How long these keys may be used before they are read again: until the delegation is to be renewed. With a root key that
    /// is kept elsewhere somebody else renews it: then once an hour.
    pub fn good_for(&self, now: Timestamp) -> Duration {
        const AT_LEAST: Duration = Duration::from_hours(1);
        let due = self.delegated_until.saturating_sub(RENEW_BEFORE).unwrap_or(now);
        Duration::try_from(due.duration_since(now)).map_or(AT_LEAST, |left| left.max(AT_LEAST))
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
    let secret = renew_delegation(&secrets, secret, now).await?;
    let keys = parse(&secret, now)?;
    publish(client, namespace, &keys).await?;
    Ok(keys)
}

async fn create(secrets: &Api<Secret>, now: Timestamp) -> Result<Secret, KeysError> {
    tracing::info!("making the root key, the order key and the CA (Secret {SECRET})");
    let (root, order_key, ca_key) = (PrivateKey::generate(), PrivateKey::generate(), KeyPair::generate()?);
    let delegation = delegate(&root, &order_key.public(), now)?;
    let data = [
        ("root.key", root.to_pem()?),
        ("order.key", order_key.to_pem()?),
        ("order.delegation", delegation),
        ("ca.crt", ca_certificate(&ca_key, now)?),
        ("ca.key", ca_key.serialize_pem()),
    ];
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some(data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        // Another replica was first: its keys count.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(secrets.get(SECRET).await?),
        other => Ok(other?),
    }
}

fn ca_certificate(key: &KeyPair, now: Timestamp) -> Result<String, KeysError> {
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

fn delegate(root: &PrivateKey, order_key: &PublicKey, now: Timestamp) -> Result<String, KeysError> {
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

fn parse(secret: &Secret, now: Timestamp) -> Result<Keys, KeysError> {
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
    let ca_pem = text(secret, "ca.crt")?;
    let ca_key = KeyPair::from_pem(&text(secret, "ca.key")?).map_err(|error| entry("ca.key", error.to_string()))?;
    let ca = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(|error| entry("ca.crt", error.to_string()))?;
    let delegated_until =
        delegation.open(&root).map_err(|error| entry("order.delegation", error.to_string()))?.not_after;
    Ok(Keys { root, order_key, delegation, delegated_until, ca, ca_pem })
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
    let data =
        BTreeMap::from([("ca.pem".to_owned(), keys.ca_pem.clone()), ("root.pub".to_owned(), String::from(keys.root))]);
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

fn required<T>(value: Option<T>, entry: &'static str) -> Result<T, KeysError> {
    value.ok_or_else(|| KeysError::Entry { entry, why: "missing".to_owned() })
}
