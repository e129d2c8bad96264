//! Canonical JSON (RFC 8785, JCS) and digests over it.
//!
//! Two programs that hold the same document must get the same bytes, whatever order the fields came in: the controller
//! verifies a device's signature over a report that went through the API server and etcd.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// A value that cannot be written as canonical JSON (RFC 8785 section 3.2.2: a NaN, or a map with keys that are no strings).
#[derive(Debug, thiserror::Error)]
#[error("cannot be written as canonical JSON: {0}")]
pub struct NotCanonical(#[from] serde_json::Error);

/// The canonical bytes of `value`.
pub fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, NotCanonical> {
    Ok(serde_json_canonicalizer::to_vec(value)?)
}

/// `sha256:` and the lower-case hexadecimal SHA-256 of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let hash = Sha256::digest(bytes);
    let mut text = String::with_capacity(7 + 64);
    text.push_str("sha256:");
    for byte in hash {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// [`digest`] of the canonical bytes of `value`.
pub fn digest_of<T: Serialize>(value: &T) -> Result<String, NotCanonical> {
    Ok(digest(&to_bytes(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_fields_does_not_matter() {
        let a: serde_json::Value = serde_json::from_str(r#"{"b":1,"a":{"d":[2],"c":"é"}}"#).unwrap();
        assert_eq!(to_bytes(&a).unwrap(), r#"{"a":{"c":"é","d":[2]},"b":1}"#.as_bytes());
    }

    #[test]
    fn the_digest_is_sha256_in_hexadecimal() {
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
