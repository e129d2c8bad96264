//! Ed25519 keys (RFC 8032) and their fingerprints.
//!
//! A device is its key: the same key signs its reports and proves it in TLS (RFC 8410). The two uses cannot be confused:
//! TLS 1.3 signs under a context of its own (RFC 8446, 4.4.3) and documents under DSSE's prefix.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes, or no point of the curve.
    #[error("not an Ed25519 public key")]
    Public,
    /// Not a PKCS #8 private key in PEM.
    #[error("not an Ed25519 private key in PKCS #8 PEM")]
    Private,
    /// Not `SHA256:` and 43 characters of base64.
    #[error("not a fingerprint: expected SHA256: and 43 characters of base64, as `ssh-keygen -l` prints them")]
    Fingerprint,
}

/// SHA-256 of a public key or certificate as OpenSSH prints it: `SHA256:` and base64 without padding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of any bytes (a public key's 32, a certificate's DER).
    pub fn of(bytes: &[u8]) -> Self {
        Self(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(bytes))))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        let encoded = text.strip_prefix("SHA256:").ok_or(KeyError::Fingerprint)?;
        match STANDARD_NO_PAD.decode(encoded) {
            Ok(bytes) if bytes.len() == 32 => Ok(Self(text)),
            _ => Err(KeyError::Fingerprint),
        }
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key; base64 of its 32 bytes in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// From the 32 bytes of RFC 8032.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Public)?;
        VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| KeyError::Public)
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// SHA-256 over the 32 bytes.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }

    /// Strict verification: no small-order keys, no malleable signatures.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::from_bytes(&STANDARD.decode(text).map_err(|_| KeyError::Public)?)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        STANDARD.encode(key.0.as_bytes())
    }
}

/// A private key. Never printed: its `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&rand::random()))
    }

    /// From PKCS #8 PEM (RFC 8410).
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::Private)
    }

    /// As PKCS #8 PEM, which TLS libraries read too. A secret.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Private)?;
        Ok(pem.as_str().to_owned())
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public().fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_pem() {
        let key = PrivateKey::generate();
        let again = PrivateKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(key.public(), again.public());
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let key = PrivateKey::generate();
        assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.public().fingerprint()));
    }

    #[test]
    fn a_fingerprint_of_another_form_is_refused() {
        for bad in ["", "SHA256:", "MD5:aa", "SHA256:short", "SHA256:!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
        let good = Fingerprint::of(b"x");
        assert_eq!(good.as_str().parse::<Fingerprint>().unwrap(), good);
    }
}
