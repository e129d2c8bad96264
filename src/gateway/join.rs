//! What a join token allows. Pure: the token, the ConfigMap that describes it and the time in, a verdict out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use patchwarden_protocol::join::JoinToken;

use super::identity::is_label;
use crate::api::LABEL_JOIN_TOKEN;

/// Key of the ConfigMap: lower-case hexadecimal SHA-256 of the token's secret.
pub const KEY_HASH: &str = "hash";
/// Key of the ConfigMap: RFC 3339.
pub const KEY_EXPIRES: &str = "expires";
/// Key of the ConfigMap: how many devices may use it, each with one key.
pub const KEY_USES: &str = "uses";
/// Key of the ConfigMap: the client.
pub const KEY_NAMESPACE: &str = "namespace";
/// Key of the ConfigMap: `true` when keys are accepted without a person.
pub const KEY_ACCEPT: &str = "accept";

/// What a token is compared with when there is no such token, so that both take the same time.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a token that was verified allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The client's namespace.
    pub namespace: String,
    /// For so many devices, each with one key.
    pub uses: u32,
    /// Whether keys are accepted without a person.
    pub accept: bool,
}

/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Unknown id and wrong secret alike.
    #[error("join token: unknown or wrong")]
    Wrong,
    /// Its time is over.
    #[error("join token: expired at {0}")]
    Expired(Timestamp),
    /// Used up.
    #[error("join token: all its uses are spent")]
    Spent,
    /// Right, and its ConfigMap cannot be used.
    #[error("join token: its ConfigMap is not usable: {0}")]
    Unusable(String),
}

impl TokenRefused {
    /// The reason code in the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wrong => "TokenWrong",
            Self::Expired(_) => "TokenExpired",
            Self::Spent => "TokenSpent",
            Self::Unusable(_) => "TokenUnusable",
        }
    }
}

/// What `token` allows at `now`, by the ConfigMap of its name.
pub fn admit(token: &JoinToken, map: Option<&ConfigMap>, now: Timestamp) -> Result<Admission, TokenRefused> {
    let labelled = map.filter(|map| {
        map.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_JOIN_TOKEN)).is_some_and(|v| v == "true")
    });
    let empty = BTreeMap::new();
    let data = labelled.and_then(|map| map.data.as_ref()).unwrap_or(&empty);
    if !token.matches(text(data, KEY_HASH).unwrap_or(NO_HASH)) {
        return Err(TokenRefused::Wrong);
    }
    let unusable = |key: &str| TokenRefused::Unusable(format!("{key} is missing or malformed"));
    let expires: Timestamp =
        text(data, KEY_EXPIRES).and_then(|text| text.parse().ok()).ok_or_else(|| unusable(KEY_EXPIRES))?;
    if now >= expires {
        return Err(TokenRefused::Expired(expires));
    }
    let uses = text(data, KEY_USES).and_then(|text| text.parse().ok()).ok_or_else(|| unusable(KEY_USES))?;
    let namespace = text(data, KEY_NAMESPACE).filter(|text| is_label(text)).ok_or_else(|| unusable(KEY_NAMESPACE))?;
    Ok(Admission { namespace: namespace.to_owned(), uses, accept: text(data, KEY_ACCEPT) == Some("true") })
}

/// Whether a token counted for the last time before this, by the ConfigMap of its name. Not where that cannot be read: it may be mended.
pub fn is_over(map: Option<&ConfigMap>, before: Timestamp) -> bool {
    let Some(map) = map else { return true };
    let expires = map.data.as_ref().and_then(|data| text(data, KEY_EXPIRES)).and_then(|text| text.parse().ok());
    expires.is_some_and(|expires: Timestamp| expires < before)
}

fn text<'a>(data: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    data.get(key).map(|text| text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(token: &JoinToken, changes: &[(&str, Option<&str>)]) -> ConfigMap {
        let mut data: BTreeMap<String, String> = [
            (KEY_HASH, token.hash()),
            (KEY_EXPIRES, "2026-01-02T00:00:00Z".to_owned()),
            (KEY_USES, "3".to_owned()),
            (KEY_NAMESPACE, "acme".to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        for (key, value) in changes {
            match value {
                Some(value) => data.insert((*key).to_owned(), (*value).to_owned()),
                None => data.remove(*key),
            };
        }
        let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        map.metadata.labels = Some([(LABEL_JOIN_TOKEN.to_owned(), "true".to_owned())].into());
        map
    }

    fn reason(token: &JoinToken, map: Option<&ConfigMap>, now: &str) -> &'static str {
        admit(token, map, now.parse().unwrap()).unwrap_err().reason()
    }

    const DAY_ONE: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn a_good_token_says_what_it_allows() {
        let token = JoinToken::generate();
        let now = DAY_ONE.parse().unwrap();
        let expected = Admission { namespace: "acme".into(), uses: 3, accept: false };
        assert_eq!(admit(&token, Some(&described(&token, &[])), now), Ok(expected.clone()));
        let accepting = described(&token, &[(KEY_ACCEPT, Some("true"))]);
        assert_eq!(admit(&token, Some(&accepting), now), Ok(Admission { accept: true, ..expected }));
    }

    #[test]
    fn unknown_wrong_and_unlabelled_tokens_look_alike() {
        let token = JoinToken::generate();
        assert_eq!(reason(&token, None, DAY_ONE), "TokenWrong");
        assert_eq!(reason(&token, Some(&described(&JoinToken::generate(), &[])), DAY_ONE), "TokenWrong");
        let mut unlabelled = described(&token, &[]);
        unlabelled.metadata.labels = None;
        assert_eq!(reason(&token, Some(&unlabelled), DAY_ONE), "TokenWrong");
        assert_eq!(reason(&token, Some(&described(&token, &[(KEY_HASH, None)])), DAY_ONE), "TokenWrong");
    }

    #[test]
    fn expired_and_unusable_tokens_say_so() {
        let token = JoinToken::generate();
        assert_eq!(reason(&token, Some(&described(&token, &[])), "2026-01-02T00:00:00Z"), "TokenExpired");
        for (key, value) in [
            (KEY_EXPIRES, None),
            (KEY_EXPIRES, Some("tomorrow")),
            (KEY_USES, Some("-1")),
            (KEY_NAMESPACE, None),
            (KEY_NAMESPACE, Some("../x")),
        ] {
            assert_eq!(reason(&token, Some(&described(&token, &[(key, value)])), DAY_ONE), "TokenUnusable", "{key}");
        }
    }
}
