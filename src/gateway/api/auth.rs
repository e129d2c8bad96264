//! Who calls, and what they may see: Kubernetes says both.
//!
//! A token is shown to the API server (TokenReview) with the audience that is asked for: by default one of the gateway's own, so that
//! whoever holds a gateway gets no token that counts at the API server. What its user may see is asked of the API server, too
//! (SubjectAccessReview). Both answers are remembered for [`REMEMBERED_FOR`]: so long a token or a right that was taken away may still
//! count. A token is remembered by its SHA-256 and logged nowhere.
//!
//! [`Scope`] and [`OfDevice`] are made here and nowhere else: whoever has one has the right to what it names.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use patchwarden_protocol::report::DeviceRef;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::problem::Problem;
use super::{Door, ROOT};
use crate::api::GROUP;
use crate::gateway::clean;
use crate::gateway::identity::is_label;
use crate::gateway::runner::{NotServed, reviewed_user};

/// How long an answer of the API server counts: short, since so long it may be out of date; long enough for a program that asks for page
/// after page.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Answers remembered at a time, of each kind; some hundred bytes each.
const REMEMBERED: usize = 4_096;

/// The resource whose readers may see devices and all that is known of them.
const DEVICES: &str = "deviceinventories";

/// To see devices, all of a namespace or of all.
const LIST_DEVICES: Wanted = Wanted { verb: "list", group: GROUP, resource: DEVICES };

/// To see one.
const GET_DEVICE: Wanted = Wanted { verb: "get", group: GROUP, resource: DEVICES };

/// To see the audit. The resource has no objects: it is a name for a right.
const LIST_AUDIT: Wanted = Wanted { verb: "list", group: GROUP, resource: "auditrecords" };

/// What was answered lately.
#[derive(Debug)]
pub struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn recall(&self, key: &K, now: Instant) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(_, at)| now.duration_since(*at) < REMEMBERED_FOR).map(|(value, _)| value.clone())
    }

    fn keep(&self, key: K, value: V, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, at)| now.duration_since(*at) < REMEMBERED_FOR);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(key, (value, now));
    }
}

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// What tells one caller from another: of a token its hash, of whoever was named otherwise the hash of all that is said of them.
pub type CallerHash = [u8; 32];

/// What somebody wants to do, in the words of a SubjectAccessReview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
}

/// A right that was asked for: whose, to what, where, and which.
pub type Right = (CallerHash, Wanted, Option<String>, Option<String>);

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Somebody of whom it is known who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    user: Arc<UserInfo>,
    hash: CallerHash,
    /// The path that they ask for.
    path: String,
}

/// The clients of which somebody may see everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(Option<String>);

impl Scope {
    /// The namespace, or none for all of them.
    pub fn namespace(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// A device of these clients.
    pub fn device(&self, device: &DeviceRef) -> Option<OfDevice> {
        let is_within = self.namespace().is_none_or(|namespace| namespace == device.namespace);
        is_within.then(|| OfDevice(device.clone()))
    }
}

/// A device that somebody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfDevice(DeviceRef);

impl OfDevice {
    /// Which.
    pub fn device(&self) -> &DeviceRef {
        &self.0
    }
}

impl FromRequestParts<Arc<Door>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Arc<Door>) -> Result<Self, Problem> {
        // The router has taken the root off.
        let path = clean(&format!("{ROOT}{}", parts.uri.path()), 253);
        let outcome = match bearer(parts) {
            Ok(token) => identify(door, token).await,
            Err(problem) => Err(problem),
        };
        match outcome {
            Ok((user, hash)) => Ok(Self { user, hash, path }),
            Err(problem) => {
                let peer =
                    parts.extensions.get::<Peer>().map_or_else(|| "unknown".to_owned(), |peer| peer.0.to_string());
                refuse(door, &format!("address {peer}"), &path, "Unauthenticated", problem).await
            }
        }
    }
}

/// The bearer token (RFC 6750, section 2.1).
fn bearer(parts: &Parts) -> Result<String, Problem> {
    let none = || Problem::unauthenticated("no bearer token: send `Authorization: Bearer TOKEN`");
    let value = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(none)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(none)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(none());
    }
    Ok(token.to_owned())
}

async fn identify(door: &Door, token: String) -> Result<(Arc<UserInfo>, TokenHash), Problem> {
    let hash: TokenHash = Sha256::digest(token.as_bytes()).into();
    let known = door.tokens.recall(&hash, Instant::now());
    let answer = if let Some(known) = known {
        known
    } else {
        if !door.may_review() {
            return Err(Problem::unavailable("too many new tokens are shown at once"));
        }
        let answer = match reviewed_user(&door.shared, Some(token), &door.audience).await {
            Ok(user) => Ok(Arc::new(user)),
            Err(NotServed::Unauthenticated(why)) => Err(why),
            Err(error) => return Err(unavailable(&error)),
        };
        door.tokens.keep(hash, answer.clone(), Instant::now());
        answer
    };
    answer.map(|user| (user, hash)).map_err(Problem::unauthenticated)
}

fn unavailable(error: &dyn std::fmt::Display) -> Problem {
    tracing::warn!(%error, "who calls the API, or what they may see, cannot be asked");
    Problem::unavailable("the Kubernetes API cannot be asked at the moment")
}

impl Caller {
    /// Somebody whom the API server names, which has shown its own certificate (`aggregation/identity.rs`).
    pub fn named(user: UserInfo, path: &str) -> Self {
        let said = serde_json::json!([user.username, user.uid, user.groups, user.extra]);
        // Tokens have no brackets, so that none has this hash.
        let hash = Sha256::digest(said.to_string().as_bytes()).into();
        Self { user: Arc::new(user), hash, path: clean(path, 253) }
    }

    /// May they list a resource of the aggregation layer in a namespace, or in all?
    pub async fn may_list(
        &self,
        door: &Door,
        group: &'static str,
        resource: &'static str,
        namespace: Option<&str>,
    ) -> Result<Scope, Problem> {
        if let Some(namespace) = namespace {
            namespaces_name(namespace)?;
        }
        self.must(door, Wanted { verb: "list", group, resource }, namespace, None).await?;
        Ok(Scope(namespace.map(str::to_owned)))
    }

    /// May they see this object of the aggregation layer, which is of this device?
    pub async fn may_get(
        &self,
        door: &Door,
        group: &'static str,
        resource: &'static str,
        name: &str,
        device: &DeviceRef,
    ) -> Result<OfDevice, Problem> {
        namespaces_name(&device.namespace)?;
        self.must(door, Wanted { verb: "get", group, resource }, Some(&device.namespace), Some(name)).await?;
        Ok(OfDevice(device.clone()))
    }

    /// May they list what is in a namespace, or in all?
    pub async fn scope(&self, door: &Door, namespace: Option<&str>) -> Result<Scope, Problem> {
        if let Some(namespace) = namespace {
            namespaces_name(namespace)?;
        }
        self.must(door, LIST_DEVICES, namespace, None).await?;
        Ok(Scope(namespace.map(str::to_owned)))
    }

    /// May they see a device?
    pub async fn device(&self, door: &Door, namespace: &str, name: &str) -> Result<OfDevice, Problem> {
        namespaces_name(namespace)?;
        if !is_label(name) {
            return Err(Problem::bad("name", "must be the name of a device"));
        }
        self.must(door, GET_DEVICE, Some(namespace), Some(name)).await?;
        Ok(OfDevice(DeviceRef { namespace: namespace.to_owned(), name: name.to_owned() }))
    }

    /// May they see the audit?
    pub async fn audit(&self, door: &Door) -> Result<(), Problem> {
        self.must(door, LIST_AUDIT, None, None).await
    }

    async fn must(
        &self,
        door: &Door,
        wanted: Wanted,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<(), Problem> {
        if self.may(door, wanted, namespace, name).await? {
            return Ok(());
        }
        let Wanted { verb, group, resource } = wanted;
        let user = clean(self.name(), 253);
        let place = namespace.map_or_else(|| "all namespaces".to_owned(), |it| format!("namespace {it}"));
        let object = name.map(|name| format!(" {name}")).unwrap_or_default();
        let hint = if namespace.is_none() && resource == DEVICES { "; give `namespace` for one" } else { "" };
        let detail = format!("user {user} may not {verb} {resource}.{group}{object} in {place}{hint}");
        let object = format!("{}: {}", namespace.unwrap_or("*"), self.path);
        refuse(door, &format!("user {user}"), &object, "Forbidden", Problem::forbidden(detail)).await
    }

    fn name(&self) -> &str {
        self.user.username.as_deref().unwrap_or_default()
    }

    async fn may(
        &self,
        door: &Door,
        wanted: Wanted,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<bool, Problem> {
        let right = (self.hash, wanted, namespace.map(str::to_owned), name.map(str::to_owned));
        if let Some(known) = door.rights.recall(&right, Instant::now()) {
            return Ok(known);
        }
        let UserInfo { username, uid, groups, extra } = (*self.user).clone();
        let attributes = ResourceAttributes {
            group: Some(wanted.group.to_owned()),
            resource: Some(wanted.resource.to_owned()),
            verb: Some(wanted.verb.to_owned()),
            // Empty: all of them.
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: username,
            uid,
            groups,
            extra,
            resource_attributes: Some(attributes),
            non_resource_attributes: None,
        };
        let api: Api<SubjectAccessReview> = Api::all(door.shared.client.clone());
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| unavailable(&error))?;
        let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        door.rights.keep(right, allowed, Instant::now());
        Ok(allowed)
    }
}

fn namespaces_name(namespace: &str) -> Result<(), Problem> {
    let must = || Problem::bad("namespace", "must be the name of a namespace");
    is_label(namespace).then_some(()).ok_or_else(must)
}

/// Notes a refusal in the audit and in the log, unless it only repeats others.
pub async fn refuse<T>(
    door: &Door,
    who: &str,
    object: &str,
    reason: &'static str,
    problem: Problem,
) -> Result<T, Problem> {
    // What cannot be asked now is no refusal.
    if problem.status().is_client_error() {
        let tell = {
            let mut refusals = door.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            // Of each caller: what one tried must not hide what another one tries.
            refusals.tell("Read", &format!("{who} {object}"), reason, Instant::now())
        };
        if tell {
            tracing::warn!(who, object, reason, why = problem.detail, "a request of the API is refused");
            door.shared.audit(who, "Read", object, reason, &problem.detail).await;
        }
    }
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let memory: Memory<usize, bool> = Memory::default();
        let now = Instant::now();
        for key in 0..3 * REMEMBERED {
            memory.keep(key, true, now);
        }
        assert!(memory.0.lock().unwrap().len() <= REMEMBERED);
        let last = 3 * REMEMBERED - 1;
        assert_eq!(memory.recall(&last, now + REMEMBERED_FOR - Duration::from_millis(1)), Some(true));
        assert_eq!(memory.recall(&last, now + REMEMBERED_FOR), None);
    }
}
