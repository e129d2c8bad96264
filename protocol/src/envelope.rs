//! DSSE, the Dead Simple Signing Envelope (github.com/secure-systems-lab/dsse, protocol.md, v1.0.2).
//!
//! The signature covers the payload's type and its exact bytes, so that a document of one type can never pass for
//! another, and the receiver never parses what it has not verified.

use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::canonical::{self, NotCanonical};
use crate::key::{Fingerprint, PrivateKey, PublicKey};

/// A type that is signed as a whole.
pub trait Document: Serialize + DeserializeOwned {
    /// DSSE's payload type: `application/vnd.patchwarden.<name>.v1+json`.
    const TYPE: &'static str;
}

/// Why an envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No signature at all.
    #[error("unsigned: the envelope carries no signature")]
    Unsigned,
    /// Signed as something else.
    #[error("payload type is {found}, expected {expected}")]
    WrongType {
        /// What the receiver wants.
        expected: &'static str,
        /// What the envelope says.
        found: String,
    },
    /// No signature by the expected key verifies.
    #[error("no valid signature by {0}")]
    BadSignature(Fingerprint),
    /// Verified, but not the document that its type promises.
    #[error("signed payload cannot be read: {0}")]
    Unreadable(String),
}

/// Characters of a payload at most.
pub const MAX_PAYLOAD: usize = 65_536;

/// Bytes of what is signed at most: a payload is its Base64 (RFC 4648, section 4).
pub const MAX_SIGNED: usize = MAX_PAYLOAD / 4 * 3;

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Signature {
    /// Fingerprint of the key.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub keyid: String,
    /// Base64 of the 64 bytes.
    #[cfg_attr(feature = "schema", schemars(length(max = 96)))]
    pub sig: String,
}

/// A signed `T`; nothing of it can be read before [`Envelope::open`] has verified it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(bound = "", rename = "Envelope"))]
pub struct Envelope<T> {
    /// DSSE payload type.
    #[cfg_attr(feature = "schema", schemars(length(max = 100)))]
    pub payload_type: String,
    /// Base64 of the canonical JSON.
    #[cfg_attr(feature = "schema", schemars(length(max = MAX_PAYLOAD)))]
    pub payload: String,
    /// Exactly one in what this project writes; others are ignored.
    #[cfg_attr(feature = "schema", schemars(length(max = 4)))]
    pub signatures: Vec<Signature>,
    #[serde(skip)]
    _document: PhantomData<fn() -> T>,
}

impl<T: Document> Envelope<T> {
    /// Signs `document` with `key`.
    pub fn seal(document: &T, key: &PrivateKey) -> Result<Self, NotCanonical> {
        let payload = canonical::to_bytes(document)?;
        let signature = key.sign(&pre_authentication_encoding(T::TYPE, &payload));
        Ok(Self::from_parts(&payload, key.public().fingerprint(), &signature))
    }

    /// Puts a detached signature and the document that it was made over together again.
    pub fn reassemble(document: &T, signature: Signature) -> Result<Self, NotCanonical> {
        Ok(Self {
            payload_type: T::TYPE.to_owned(),
            payload: STANDARD.encode(canonical::to_bytes(document)?),
            signatures: vec![signature],
            _document: PhantomData,
        })
    }

    /// The document, if `key` signed it.
    pub fn open(&self, key: &PublicKey) -> Result<T, Refused> {
        if self.signatures.is_empty() {
            return Err(Refused::Unsigned);
        }
        if self.payload_type != T::TYPE {
            return Err(Refused::WrongType { expected: T::TYPE, found: self.payload_type.chars().take(100).collect() });
        }
        let bad = || Refused::BadSignature(key.fingerprint());
        let payload = STANDARD.decode(&self.payload).map_err(|_| bad())?;
        let signed = pre_authentication_encoding(T::TYPE, &payload);
        let valid = self
            .signatures
            .iter()
            .any(|s| STANDARD.decode(&s.sig).is_ok_and(|signature| key.verifies(&signed, &signature)));
        if !valid {
            return Err(bad());
        }
        serde_json::from_slice(&payload).map_err(|error| Refused::Unreadable(error.to_string()))
    }

    /// The document without any verification: to look at, never to act on.
    pub fn peek(&self) -> Option<T> {
        serde_json::from_slice(&STANDARD.decode(&self.payload).ok()?).ok()
    }

    /// `sha256:` digest of the payload's bytes: how other documents name this one.
    pub fn digest(&self) -> String {
        canonical::digest(&STANDARD.decode(&self.payload).unwrap_or_default())
    }

    fn from_parts(payload: &[u8], keyid: Fingerprint, signature: &[u8]) -> Self {
        Self {
            payload_type: T::TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature { keyid: keyid.into(), sig: STANDARD.encode(signature) }],
            _document: PhantomData,
        }
    }
}

impl<T> Clone for Envelope<T> {
    fn clone(&self) -> Self {
        Self {
            payload_type: self.payload_type.clone(),
            payload: self.payload.clone(),
            signatures: self.signatures.clone(),
            _document: PhantomData,
        }
    }
}

impl<T> PartialEq for Envelope<T> {
    fn eq(&self, other: &Self) -> bool {
        self.payload_type == other.payload_type && self.payload == other.payload && self.signatures == other.signatures
    }
}

impl<T> std::fmt::Debug for Envelope<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Envelope({}, {} bytes of base64)", self.payload_type, self.payload.len())
    }
}

/// DSSE's PAE: `DSSEv1 SP len(type) SP type SP len(body) SP body`.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
    }
    impl Document for Note {
        const TYPE: &'static str = "application/vnd.patchwarden.note.v1+json";
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Other {
        text: String,
    }
    impl Document for Other {
        const TYPE: &'static str = "application/vnd.patchwarden.other.v1+json";
    }

    fn note() -> Note {
        Note { text: "hello".into() }
    }

    #[test]
    fn the_encoding_is_the_one_of_the_specification() {
        // The example of DSSE's protocol.md.
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn what_was_sealed_opens_with_the_right_key_only() {
        let key = PrivateKey::generate();
        let envelope = Envelope::seal(&note(), &key).unwrap();
        assert_eq!(envelope.open(&key.public()).unwrap(), note());
        let other = PrivateKey::generate().public();
        assert_eq!(envelope.open(&other), Err(Refused::BadSignature(other.fingerprint())));
    }

    #[test]
    fn an_unsigned_or_altered_envelope_is_refused() {
        let key = PrivateKey::generate();
        let mut envelope = Envelope::seal(&note(), &key).unwrap();
        let mut altered = envelope.clone();
        altered.payload = STANDARD.encode(br#"{"text":"hullo"}"#);
        assert!(matches!(altered.open(&key.public()), Err(Refused::BadSignature(_))));
        envelope.signatures.clear();
        assert_eq!(envelope.open(&key.public()), Err(Refused::Unsigned));
    }

    #[test]
    fn a_document_cannot_pass_for_one_of_another_type() {
        let key = PrivateKey::generate();
        let envelope = Envelope::seal(&note(), &key).unwrap();
        let relabelled: Envelope<Other> = Envelope {
            payload_type: Other::TYPE.into(),
            payload: envelope.payload.clone(),
            signatures: envelope.signatures.clone(),
            _document: PhantomData,
        };
        assert!(matches!(relabelled.open(&key.public()), Err(Refused::BadSignature(_))));
        let as_other: Envelope<Other> = serde_json::from_value(serde_json::to_value(&envelope).unwrap()).unwrap();
        assert!(matches!(as_other.open(&key.public()), Err(Refused::WrongType { .. })));
    }

    #[test]
    fn a_detached_signature_verifies_over_the_reassembled_document() {
        let key = PrivateKey::generate();
        let envelope = Envelope::seal(&note(), &key).unwrap();
        let again = Envelope::reassemble(&note(), envelope.signatures[0].clone()).unwrap();
        assert_eq!(again, envelope);
        assert!(again.open(&key.public()).is_ok());
    }
}
