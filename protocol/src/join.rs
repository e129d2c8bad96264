//! Join tokens: `<id>.<secret>`.
//!
//! The id is public and names the ConfigMap `join-token-<id>` in Patchwarden's own namespace; of the secret only the
//! SHA-256 is kept there. 160 random bits need no slow hash, and their hash is no secret: so the gateway needs no right to
//! read Secrets, among which the controller's keys are.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A token of another form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("join token is not of the form <id>.<secret> (8 and 40 hexadecimal digits)")]
pub struct NotAToken;

/// A join token. Its `Debug` hides the secret; `Display` is for the join command only.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
}

impl JoinToken {
    /// A new one from the operating system's randomness.
    pub fn generate() -> Self {
        let id: [u8; 4] = rand::random();
        let secret: [u8; 20] = rand::random();
        Self { id: hexadecimal(&id), secret: hexadecimal(&secret) }
    }

    /// The public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Name of the ConfigMap that describes it.
    pub fn config_map(&self) -> String {
        Self::config_map_of(&self.id)
    }

    /// Name of the ConfigMap of the token with this id.
    pub fn config_map_of(id: &str) -> String {
        format!("join-token-{id}")
    }

    /// What is stored: lower-case hexadecimal SHA-256 of the secret.
    pub fn hash(&self) -> String {
        hexadecimal(&Sha256::digest(self.secret.as_bytes()))
    }

    /// Whether `hash` is this token's, in time that does not depend on where they differ.
    pub fn matches(&self, hash: &str) -> bool {
        let own = self.hash();
        own.len() == hash.len() && own.bytes().zip(hash.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (id, secret) = text.trim().split_once('.').ok_or(NotAToken)?;
        let is = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if is(id, 8) && is(secret, 40) {
            Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
        } else {
            Err(NotAToken)
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.…)", self.id)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_text_and_matches_its_own_hash_only() {
        let token = JoinToken::generate();
        let again: JoinToken = token.to_string().parse().unwrap();
        assert_eq!(again, token);
        assert!(again.matches(&token.hash()));
        assert!(!JoinToken::generate().matches(&token.hash()));
        assert!(!token.matches(""));
    }

    #[test]
    fn a_token_of_another_form_is_refused() {
        for bad in ["", "abc", "abcdef01.", "ABCDEF01.0123456789012345678901234567890123456789", "../x.y"] {
            assert_eq!(bad.parse::<JoinToken>(), Err(NotAToken), "{bad}");
        }
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        let token = JoinToken::generate();
        assert!(!format!("{token:?}").contains(&token.secret));
    }
}
