//! New keys in the place of old ones, of which none is believed from one moment to the next.
//!
//! ```text
//! order   the new key signs; what the old one has signed in the record still counts
//! root    the old one signs what leads to the new one (the chain); the order key is renewed with it
//! CA      agents get certificates of the new one at once; gateways keep those of the old one for 180 days, so that a device
//!         that pins the old one alone still reaches them, and is led on; then the old one is left out
//! ```
//!
//! A person asks for it by an annotation of the Secret ([`ANNOTATION`], which `kubectl patchwarden rotate` sets). All of it is one
//! write: a crash leaves the keys from before, or the new ones.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use patchwarden_protocol::trust::Trust;
use rcgen::KeyPair;

use super::keys::{self, KeysError};

/// Annotation of the Secret: what is to be replaced, words of [`What`] with commas between.
pub const ANNOTATION: &str = "patchwarden.io/rotate";

/// Annotation of the Secret: why the last one was not done.
pub const ANNOTATION_REFUSED: &str = "patchwarden.io/rotate-refused";

/// For so long gateways have certificates of the CA before: as long as a device whose certificate has ended may renew it.
pub const OVERLAP: SignedDuration = SignedDuration::from_hours(180 * 24);

/// Public keys of earlier order keys, a line each.
pub(super) const PREVIOUS_ORDER_KEYS: &str = "order.previous";
/// JSON of the chain that leads from earlier roots and CAs to the present ones.
pub(super) const CHAIN: &str = "trust.chain";
/// The CA before, while gateways still have certificates of it, and until when.
pub(super) const PREVIOUS_CA: &str = "ca.previous.crt";
pub(super) const PREVIOUS_CA_KEY: &str = "ca.previous.key";
pub(super) const PREVIOUS_CA_UNTIL: &str = "ca.previous.until";

/// What can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum What {
    /// The key that signs orders and grants.
    Order,
    /// The root key, and the order key with it.
    Root,
    /// The CA of agents and gateways.
    Ca,
}

impl What {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Root => "root",
            Self::Ca => "ca",
        }
    }
}

/// What the annotation asks for.
pub(super) fn asked(secret: &Secret) -> Option<Result<BTreeSet<What>, String>> {
    let text = secret.metadata.annotations.as_ref()?.get(ANNOTATION)?;
    let known = [What::Order, What::Root, What::Ca];
    let word = |word: &str| {
        let what = known.into_iter().find(|what| what.word() == word.trim());
        what.ok_or_else(|| format!("{word:?} is none of order, root, ca"))
    };
    Some(text.split(',').map(word).collect())
}

/// The entries of the Secret with new keys in the place of those that are asked for; or why they stay.
pub(super) fn rotate(secret: &Secret, what: &BTreeSet<What>, now: Timestamp) -> Result<Entries, Refusal> {
    let mut entries = Entries::of(secret);
    let root = entries.root()?;
    let new_root = if what.contains(&What::Root) { PrivateKey::generate() } else { root.clone() };
    if what.contains(&What::Ca) {
        if let Some(until) = entries.text(PREVIOUS_CA_UNTIL) {
            let why = format!("a CA is being replaced until {until}: another one can be after that");
            return Err(Refusal::Asked(why));
        }
        let until = now.saturating_add(OVERLAP).map_err(KeysError::Time)?;
        for (from, to) in [("ca.crt", PREVIOUS_CA), ("ca.key", PREVIOUS_CA_KEY)] {
            let entry = entries.required(from)?;
            entries.put(to, entry);
        }
        entries.put(PREVIOUS_CA_UNTIL, until.to_string());
        let key = KeyPair::generate().map_err(KeysError::Certificate)?;
        entries.put("ca.crt", keys::ca_certificate(&key, now)?);
        entries.put("ca.key", key.serialize_pem());
    }
    if what.contains(&What::Root) || what.contains(&What::Ca) {
        entries.extend_chain(&root, &new_root.public(), now)?;
        entries.put("root.key", new_root.to_pem().map_err(KeysError::Key)?);
        // Of a root that is kept elsewhere, and goes there again.
        if entries.text("root.pub").is_some() {
            entries.put("root.pub", String::from(new_root.public()));
        }
    }
    if what.contains(&What::Root) || what.contains(&What::Order) {
        let before = keys::required(entries.private_key("order.key")?, "order.key")?.public();
        let previous = entries.text(PREVIOUS_ORDER_KEYS).unwrap_or_default();
        entries.put(PREVIOUS_ORDER_KEYS, format!("{previous}{}\n", String::from(before)));
        let order_key = PrivateKey::generate();
        entries.put("order.delegation", keys::delegate(&new_root, &order_key.public(), now)?);
        entries.put("order.key", order_key.to_pem().map_err(KeysError::Key)?);
    }
    Ok(entries)
}

/// The entries without the CA before, once its time is over; none before that, or where its end cannot be signed.
pub(super) fn retire(secret: &Secret, now: Timestamp) -> Result<Option<Entries>, KeysError> {
    let mut entries = Entries::of(secret);
    let Some(until) = entries.text(PREVIOUS_CA_UNTIL) else { return Ok(None) };
    let until: Timestamp = until
        .parse()
        .map_err(|error: jiff::Error| KeysError::Entry { entry: PREVIOUS_CA_UNTIL, why: error.to_string() })?;
    if now < until {
        return Ok(None);
    }
    let Some(root) = entries.private_key("root.key")? else {
        tracing::warn!("the CA before stays: {NO_ROOT}");
        return Ok(None);
    };
    for entry in [PREVIOUS_CA, PREVIOUS_CA_KEY, PREVIOUS_CA_UNTIL] {
        entries.0.insert(entry.to_owned(), None);
    }
    entries.extend_chain(&root, &root.public(), now)?;
    Ok(Some(entries))
}

const NO_ROOT: &str =
    "root.key is not in the Secret, and must sign what devices pin from here on: put it back for as long as that takes";

/// Why nothing is replaced.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It cannot be done as it was asked for.
    #[error("{0}")]
    Asked(String),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Entries of the Secret; none for one that goes.
#[derive(Clone, PartialEq)]
pub(super) struct Entries(pub(super) BTreeMap<String, Option<ByteString>>);

impl Entries {
    fn of(secret: &Secret) -> Self {
        let data = secret.data.clone().unwrap_or_default();
        Self(data.into_iter().map(|(name, value)| (name, Some(value))).collect())
    }

    fn text(&self, entry: &str) -> Option<String> {
        String::from_utf8(self.0.get(entry)?.as_ref()?.0.clone()).ok()
    }

    fn required(&self, entry: &'static str) -> Result<String, KeysError> {
        self.text(entry).ok_or_else(|| KeysError::Entry { entry, why: "missing".to_owned() })
    }

    fn put(&mut self, entry: &str, text: String) {
        self.0.insert(entry.to_owned(), Some(ByteString(text.into_bytes())));
    }

    fn private_key(&self, entry: &'static str) -> Result<Option<PrivateKey>, KeysError> {
        let key = self.text(entry).map(|pem| PrivateKey::from_pem(&pem)).transpose();
        key.map_err(|error| KeysError::Entry { entry, why: error.to_string() })
    }

    fn root(&self) -> Result<PrivateKey, Refusal> {
        self.private_key("root.key")?.ok_or_else(|| Refusal::Asked(NO_ROOT.to_owned()))
    }

    /// What `root` says of the CAs as they are here, and of the root from here on.
    fn extend_chain(&mut self, root: &PrivateKey, next: &PublicKey, now: Timestamp) -> Result<(), KeysError> {
        let wrong = |why: serde_json::Error| KeysError::Entry { entry: CHAIN, why: why.to_string() };
        let mut chain: Vec<Envelope<Trust>> = match self.text(CHAIN) {
            Some(text) => serde_json::from_str(&text).map_err(wrong)?,
            None => Vec::new(),
        };
        // Later than the one before, also where the clock was set back.
        let last = chain.iter().filter_map(Envelope::peek).map(|link| link.issued_at).max();
        let after = last.and_then(|last| last.checked_add(SignedDuration::from_secs(1)).ok());
        let issued_at = after.map_or(now, |after| after.max(now));
        let ca_pem = bundle(self.text(PREVIOUS_CA).as_deref(), &self.required("ca.crt")?);
        chain.push(Envelope::seal(&Trust { root: *next, ca_pem, issued_at }, root)?);
        self.put(CHAIN, serde_json::to_string(&chain).map_err(wrong)?);
        Ok(())
    }
}

/// What is pinned: the CA of the gateways' certificates first.
pub(super) fn bundle(previous: Option<&str>, ca: &str) -> String {
    previous.map_or_else(|| ca.to_owned(), |previous| format!("{previous}{ca}"))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::{delegation, trust};

    use super::*;
    use crate::controller::keys::Keys;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn new() -> Secret {
        keys::make(at("2026-01-01T00:00:00Z")).unwrap()
    }

    /// As the API server keeps it.
    fn with(secret: &Secret, entries: Entries) -> Secret {
        let data = entries.0.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Secret { data: Some(data), ..secret.clone() }
    }

    fn rotated(secret: &Secret, what: &[What], now: &str) -> Secret {
        with(secret, rotate(secret, &what.iter().copied().collect(), at(now)).unwrap())
    }

    fn keys(secret: &Secret, now: &str) -> Keys {
        keys::parse(secret, at(now)).unwrap()
    }

    /// What a device pins that pinned what `before` says and is led on to `after`.
    fn followed(before: &Keys, after: &Keys) -> (PublicKey, String) {
        let chain: Vec<Envelope<Trust>> = serde_json::from_str(after.chain.as_deref().unwrap()).unwrap();
        let end = trust::follow(&before.root, None, &chain).unwrap();
        (end.root, end.ca_pem)
    }

    #[test]
    fn another_order_key_is_delegated_to_and_the_one_before_counts_in_the_record() {
        let first = new();
        let second = rotated(&first, &[What::Order], "2026-01-02T00:00:00Z");
        let (before, after) = (keys(&first, "2026-01-01T00:00:00Z"), keys(&second, "2026-01-02T00:00:00Z"));
        assert!(after.order_key.public() != before.order_key.public());
        assert_eq!(after.earlier_signers, [before.order_key.public()]);
        assert_eq!((after.root, &after.ca_pem, &after.chain), (before.root, &before.ca_pem, &None));
        let delegated = delegation::order_key(&after.delegation, &before.root, at("2026-01-02T00:00:00Z")).unwrap();
        assert_eq!(delegated, after.order_key.public(), "devices believe it by the root that they pin");
        let twice = keys(&rotated(&second, &[What::Order], "2026-01-03T00:00:00Z"), "2026-01-03T00:00:00Z");
        assert_eq!(twice.earlier_signers, [before.order_key.public(), after.order_key.public()]);
    }

    #[test]
    fn a_device_follows_from_any_root_to_the_last_one() {
        let first = new();
        let second = rotated(&first, &[What::Root], "2026-01-02T00:00:00Z");
        let third = rotated(&second, &[What::Root], "2026-01-02T00:00:00Z");
        let [first, second, third] = [&first, &second, &third].map(|it| keys(it, "2026-01-02T00:00:00Z"));
        assert!(first.root != second.root && second.root != third.root);
        let end = (third.root, first.ca_pem.clone());
        assert_eq!((followed(&first, &third), followed(&second, &third)), (end.clone(), end));
        assert!(first.order_key.public() != second.order_key.public(), "what it has signed leads to the root before");
        assert!(delegation::order_key(&third.delegation, &first.root, at("2026-01-02T00:00:00Z")).is_err());
        assert_eq!(third.earlier_signers, [first.order_key.public(), second.order_key.public()]);
    }

    #[test]
    fn another_ca_is_pinned_beside_the_one_before_which_serves_for_180_days() {
        let first = new();
        let second = rotated(&first, &[What::Ca], "2026-01-02T00:00:00Z");
        let (before, during) = (keys(&first, "2026-01-02T00:00:00Z"), keys(&second, "2026-01-02T00:00:00Z"));
        assert_eq!(during.serving_ca().pem, before.ca.pem, "whoever pins that one alone still gets through");
        assert!(during.ca.pem != before.ca.pem);
        assert_eq!(during.ca_pem, format!("{}{}", before.ca.pem, during.ca.pem));
        assert_eq!(followed(&before, &during), (before.root, during.ca_pem.clone()));
        let ends = |keys: &Keys| keys.ends().map(|(what, at)| format!("{what} {at}")).collect::<Vec<_>>();
        let order_key = "OrderKey 2026-03-31T23:50:00Z";
        assert_eq!(ends(&before), ["CA 2036-01-01T00:00:00Z", order_key]);
        assert_eq!(ends(&during), ["CA 2036-01-02T00:00:00Z", order_key, "PreviousCA 2036-01-01T00:00:00Z"]);
        let again = rotate(&second, &[What::Ca].into(), at("2026-02-01T00:00:00Z")).err().unwrap().to_string();
        assert_eq!(again, "a CA is being replaced until 2026-07-01T00:00:00Z: another one can be after that");

        assert!(retire(&second, at("2026-06-30T23:59:59Z")).unwrap().is_none());
        let third = with(&second, retire(&second, at("2026-07-01T00:00:00Z")).unwrap().unwrap());
        let renewed = rotated(&third, &[What::Order], "2026-07-01T00:00:00Z");
        let after = keys(&renewed, "2026-07-01T00:00:00Z");
        assert_eq!((&after.serving_ca().pem, &after.ca_pem), (&during.ca.pem, &during.ca.pem));
        assert_eq!(followed(&before, &after), (before.root, during.ca.pem.clone()));
        assert!(retire(&third, at("2027-01-01T00:00:00Z")).unwrap().is_none(), "once");
        // And one can be replaced again.
        assert!(rotate(&third, &[What::Ca].into(), at("2026-08-01T00:00:00Z")).is_ok());
    }

    #[test]
    fn all_of_them_at_once_and_a_clock_that_goes_back() {
        let first = new();
        let second = rotated(&first, &[What::Order, What::Root, What::Ca], "2026-01-02T00:00:00Z");
        let third = rotated(&second, &[What::Root], "2026-01-01T12:00:00Z");
        let [first, second, third] = [&first, &second, &third].map(|it| keys(it, "2026-01-02T00:00:00Z"));
        assert_eq!(second.earlier_signers, [first.order_key.public()]);
        assert_eq!(followed(&first, &second), (second.root, second.ca_pem.clone()));
        assert_eq!(followed(&first, &third), (third.root, second.ca_pem.clone()));
    }

    #[test]
    fn without_the_root_key_nothing_is_replaced() {
        let mut secret = new();
        let root = keys(&secret, "2026-01-01T00:00:00Z").root;
        let data = secret.data.as_mut().unwrap();
        data.remove("root.key");
        data.insert("root.pub".to_owned(), ByteString(String::from(root).into_bytes()));
        for what in [What::Order, What::Root, What::Ca] {
            let refused = rotate(&secret, &[what].into(), at("2026-01-02T00:00:00Z")).err().unwrap().to_string();
            assert!(refused.contains("root.key is not in the Secret"), "{refused}");
        }
    }

    #[test]
    fn a_root_that_was_put_back_for_it_can_be_taken_out_again() {
        let mut secret = new();
        let root = keys(&secret, "2026-01-01T00:00:00Z").root;
        secret.data.as_mut().unwrap().insert("root.pub".to_owned(), ByteString(String::from(root).into_bytes()));
        let mut second = rotated(&secret, &[What::Root], "2026-01-02T00:00:00Z");
        let with_it = keys(&second, "2026-01-02T00:00:00Z").root;
        second.data.as_mut().unwrap().remove("root.key");
        let without = keys(&second, "2026-01-02T00:00:00Z").root;
        assert!(without == with_it && without != root);
    }

    #[test]
    fn words_that_ask_for_nothing_are_named() {
        let mut secret = new();
        assert_eq!(asked(&secret), None);
        let mut ask = |text: &str| {
            secret.metadata.annotations = Some([(ANNOTATION.to_owned(), text.to_owned())].into());
            asked(&secret).unwrap()
        };
        assert_eq!(ask("ca, order"), Ok([What::Order, What::Ca].into()));
        assert_eq!(ask("orders"), Err("\"orders\" is none of order, root, ca".to_owned()));
    }
}
