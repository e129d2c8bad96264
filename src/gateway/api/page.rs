//! Query parameters, and lists page by page.
//!
//! Lists have one order, by the key of their entries. A cursor is the key of the last entry of a page: what is added or goes meanwhile
//! moves nothing else. It is a token to the caller, says nothing about rights, and is checked like any other parameter.

use std::collections::HashSet;
use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::problem::Problem;

/// Entries of a page where the caller does not say.
pub const DEFAULT_LIMIT: u16 = 100;

/// Entries of a page at most.
pub const MAX_LIMIT: u16 = 500;

/// Bytes of a query string at most.
const MAX_QUERY: usize = 4_096;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Where the next page begins, for `cursor`; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Of one entry more than the page has where there is more; `key` is what the next page comes after.
    pub fn of<K: Serialize>(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> K) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| Cursor::after(&key(last)));
        Self { items, next }
    }

    /// A page that comes after this key, whatever is on the page before.
    pub fn token(after: &impl Serialize) -> String {
        Cursor::after(after)
    }

    /// Each entry as something else.
    pub fn map<U>(self, with: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(with).collect(), next: self.next }
    }
}

/// How many entries.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u16")]
pub struct Limit(u16);

impl Default for Limit {
    fn default() -> Self {
        Self(DEFAULT_LIMIT)
    }
}

impl TryFrom<u16> for Limit {
    type Error = String;

    fn try_from(limit: u16) -> Result<Self, String> {
        let within = (1..=MAX_LIMIT).contains(&limit);
        within.then_some(Self(limit)).ok_or_else(|| format!("must be from 1 to {MAX_LIMIT}"))
    }
}

impl Limit {
    /// The number.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a page begins: after the entry of this key.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Cursor<K> {
    token: String,
    #[serde(skip)]
    key: PhantomData<K>,
}

impl Cursor<()> {
    fn after(key: &impl Serialize) -> String {
        // Keys are texts and numbers, which can always be written.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(key).unwrap_or_default())
    }
}

impl<K> From<String> for Cursor<K> {
    fn from(token: String) -> Self {
        Self { token, key: PhantomData }
    }
}

impl<K: DeserializeOwned> Cursor<K> {
    /// The key.
    pub fn read(cursor: Option<&Self>) -> Result<Option<K>, Problem> {
        let Some(Self { token, key: _ }) = cursor else { return Ok(None) };
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        // A key is a list of texts and numbers, and texts go to the database.
        let parts: Option<Vec<Value>> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let parts = parts.filter(|parts| parts.iter().all(is_sound));
        let key: Option<K> = parts.and_then(|parts| serde_json::from_value(Value::Array(parts)).ok());
        key.map(Some).ok_or_else(|| Problem::bad("cursor", "must be `next` of the page before, of the same list"))
    }
}

/// Query parameters. One that is not known, or given twice, is refused: a filter that is silently not applied shows too much.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(Problem::bad("query", &format!("has more than {MAX_QUERY} bytes")));
        }
        let mut names = HashSet::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
            check_text(&shown, &name)?;
            check_text(&shown, &value)?;
            if !names.insert(name) {
                return Err(Problem::bad(&shown, "is given twice"));
            }
        }
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => {
                let source = std::error::Error::source(&rejection).map(ToString::to_string);
                Err(Problem::bad("query", &source.unwrap_or_else(|| rejection.to_string())))
            }
        }
    }
}

/// What stands in the place of parts of the path.
#[derive(Debug)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments)).map_err(|rejection| Problem::bad("path", &rejection.body_text()))
    }
}

/// Whether all texts of a key are ones that a parameter may have.
fn is_sound(part: &Value) -> bool {
    match part {
        Value::String(text) => check_text("cursor", text).is_ok(),
        Value::Array(parts) => parts.iter().all(is_sound),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::Object(_) => false,
    }
}

/// PostgreSQL takes no NUL, and no control character belongs into a name.
pub fn check_text(parameter: &str, text: &str) -> Result<(), Problem> {
    if text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(Problem::bad(parameter, "must be UTF-8 without control characters"));
    }
    Ok(())
}
