//! The gateway's view of every DeviceInventory, and the one place that writes to them.
//!
//! ```text
//!   watch --> cache --> sessions (accepted key, grants)
//!               ^  |
//!   own writes -+  +--> compare, then server-side apply of status.inventory
//! ```
//!
//! An object that was just written stands in the cache until the watch has caught up, so that two quick writes build
//! upon one another. Nothing is written that is already there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::DeviceRef;
use patchwarden_protocol::settings::SignedSettings;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::Metrics;
use super::sessions::Sessions;
use crate::api::device_inventory::{AnsweredGrant, DuplicateIdentity, Inventory, Lifecycle};
use crate::api::{DeviceInventory, MANAGER_GATEWAY};

/// The API server's watch cache lags by much less than this; after a restore of etcd, what this gateway wrote before it
/// must not count as newer for longer.
const OWN_WRITE_COUNTS_FOR: Duration = Duration::from_secs(30);

/// Objects of a page of the first list: each may have 10 KB.
const PAGE_SIZE: u32 = 100;

/// What somebody has decided of a device's key, as its resource shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of which device.
    pub device: DeviceRef,
    /// `Accepted`, `KeyChanged`, `KeyRemoved`, `Retired` or `Active`.
    pub outcome: &'static str,
    /// The key, and which change of the resource it was: the same at every gateway.
    pub detail: String,
}

/// What the gateway needs of a DeviceInventory.
#[derive(Clone, Debug)]
pub struct Seen {
    uid: Option<String>,
    version: u64,
    /// How often its spec has changed.
    generation: i64,
    written: Option<Instant>,
    /// When it was made.
    pub enrolled: Option<jiff::Timestamp>,
    /// `spec.acceptedKey`.
    pub accepted_key: Option<String>,
    /// `spec.lifecycle`.
    pub lifecycle: Lifecycle,
    /// `spec.duplicateResolved`.
    pub duplicate_resolved: Option<Timestamp>,
    /// `status.inventory`.
    pub inventory: Inventory,
    /// Digest of the order that holds the device.
    pub current_order: Option<String>,
    /// The controller's last answer for that order.
    pub grant: Option<AnsweredGrant>,
    /// What the policy says of the device beside orders.
    pub settings: Option<Arc<SignedSettings>>,
}

impl Seen {
    fn of(object: DeviceInventory) -> Self {
        let uid = object.uid();
        let generation = object.metadata.generation.unwrap_or_default();
        let enrolled = object.creation_timestamp().map(|time| time.0);
        // Comparable as integers since Kubernetes 1.35 (KEP-5504); etcd has never made others.
        let version = object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0);
        let status = object.status.unwrap_or_default();
        let (current, settings) =
            status.compliance.map_or((None, None), |compliance| (compliance.current, compliance.settings));
        let (current_order, grant) =
            current.map_or((None, None), |current| (Some(current.order_digest), current.grant));
        Self {
            uid,
            version,
            generation,
            written: None,
            enrolled,
            accepted_key: object.spec.accepted_key,
            lifecycle: object.spec.lifecycle,
            duplicate_resolved: object.spec.duplicate_resolved,
            inventory: status.inventory.unwrap_or_default(),
            current_order,
            grant,
            settings: settings.map(Arc::new),
        }
    }

    /// That several machines use the accepted key, as long as nobody has dealt with it.
    pub fn duplicate(&self) -> Option<&DuplicateIdentity> {
        let found = self.inventory.duplicate_identity.as_ref()?;
        Some(found).filter(|found| found.counts(self.accepted_key.as_deref(), self.duplicate_resolved))
    }

    /// Whether this device is believed by `key` now.
    pub fn admits(&self, device: &DeviceRef, key: &Fingerprint) -> Result<(), NotAdmitted> {
        if self.lifecycle == Lifecycle::Retired {
            return Err(NotAdmitted::Retired(device.clone()));
        }
        if self.accepted_key.as_deref() == Some(key.as_str()) {
            Ok(())
        } else {
            Err(NotAdmitted::OtherKey { device: device.clone(), key: key.clone() })
        }
    }

    /// Whether this device has `key`, accepted or to be accepted.
    pub fn has(&self, key: &Fingerprint) -> bool {
        [&self.accepted_key, &self.inventory.pending_key].into_iter().flatten().any(|it| it == key.as_str())
    }

    /// What was decided between `before` and this.
    fn decisions(&self, device: &DeviceRef, before: Option<&Self>) -> Vec<Decision> {
        let of_before = before.and_then(|before| before.accepted_key.as_ref());
        let was = before.map_or(Lifecycle::Active, |before| before.lifecycle);
        let about_key = match (of_before, &self.accepted_key) {
            (None, Some(_)) => Some("Accepted"),
            (Some(before), Some(after)) if before != after => Some("KeyChanged"),
            (Some(_), None) => Some("KeyRemoved"),
            (Some(_), Some(_)) | (None, None) => None,
        };
        let about_life = (was != self.lifecycle).then_some(match self.lifecycle {
            Lifecycle::Retired => "Retired",
            Lifecycle::Active => "Active",
        });
        let key = self.accepted_key.as_deref().unwrap_or("none");
        let detail = format!("spec.acceptedKey {key}, generation {}", self.generation);
        let decision = |outcome| Decision { device: device.clone(), outcome, detail: detail.clone() };
        about_key.into_iter().chain(about_life).map(decision).collect()
    }

    /// Whether this stays although the API server showed `other`.
    fn outlives(&self, other: &Self, own_only: bool) -> bool {
        let recent = self.written.is_some_and(|at| at.elapsed() < OWN_WRITE_COUNTS_FOR);
        self.uid == other.uid && self.version > other.version && (recent || !own_only)
    }
}

/// Why a device is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Out of use.
    #[error("DeviceInventory {0} is retired: spec.lifecycle")]
    Retired(DeviceRef),
    /// It is another key's.
    #[error("key {key} is not spec.acceptedKey of DeviceInventory {device}")]
    OtherKey {
        /// Which.
        device: DeviceRef,
        /// The key that was shown.
        key: Fingerprint,
    },
}

/// Why a device's resource could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It does not exist (any more).
    #[error("DeviceInventory {0} does not exist")]
    Gone(DeviceRef),
    /// Its namespace does not exist: a join token for a client that there is not.
    #[error("the namespace {0} does not exist")]
    NoNamespace(String),
    /// The API server will never accept what was written.
    #[error("DeviceInventory {device}: the API server refuses the status: {message}")]
    Invalid {
        /// Which.
        device: DeviceRef,
        /// Its words.
        message: String,
    },
    /// The API server cannot be asked now, or this gateway may not.
    #[error("DeviceInventory {device}: {source}")]
    Api {
        /// Which.
        device: DeviceRef,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl DeviceError {
    fn of(device: &DeviceRef, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 404 => Self::Gone(device.clone()),
            kube::Error::Api(status) if status.code == 422 => {
                Self::Invalid { device: device.clone(), message: status.message.clone() }
            }
            source => Self::Api { device: device.clone(), source: Box::new(source) },
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    seen: Option<Arc<Seen>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// Every DeviceInventory. Cheap to clone.
#[derive(Clone)]
pub struct Devices {
    client: Client,
    metrics: Metrics,
    entries: Arc<Mutex<HashMap<DeviceRef, Entry>>>,
    synced: tokio::sync::watch::Sender<bool>,
    decisions: Arc<(Mutex<Vec<Decision>>, Notify)>,
}

impl Devices {
    /// Knows nothing until [`Devices::run`] has listed.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            entries: Arc::default(),
            synced: tokio::sync::watch::Sender::new(false),
            decisions: Arc::default(),
        }
    }

    /// Whether the first list is complete.
    pub fn synced(&self) -> tokio::sync::watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// As when all devices have been listed.
    #[cfg(test)]
    pub(super) fn set_synced(&self) {
        self.synced.send_replace(true);
    }

    /// What was decided since this was asked last; waits until there is something.
    pub async fn decided(&self) -> Vec<Decision> {
        let (waiting, told) = &*self.decisions;
        loop {
            let decided = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !decided.is_empty() {
                return decided;
            }
            told.notified().await;
        }
    }

    /// What is known of a device; asks the API server for what the watch has not shown.
    pub async fn get(&self, device: &DeviceRef) -> Result<Arc<Seen>, DeviceError> {
        match self.cached(device) {
            Some(seen) => Ok(seen),
            None => self.fetch(device).await,
        }
    }

    /// What the watch has shown.
    pub fn cached(&self, device: &DeviceRef) -> Option<Arc<Seen>> {
        self.entries().get(device).and_then(|entry| entry.seen.clone())
    }

    /// Of those that match, the first ones after a device, by namespace and name; in one namespace or in all.
    pub fn page(
        &self,
        namespace: Option<&str>,
        after: Option<&DeviceRef>,
        limit: usize,
        matches: impl Fn(&DeviceRef, &Seen) -> bool,
    ) -> Vec<(DeviceRef, Arc<Seen>)> {
        let entries = self.entries();
        // No more than the page is kept and sorted.
        let mut first: BTreeMap<&DeviceRef, &Arc<Seen>> = BTreeMap::new();
        for (device, entry) in entries.iter() {
            let Some(seen) = &entry.seen else { continue };
            let is_there = namespace.is_none_or(|it| device.namespace == it) && after.is_none_or(|it| device > it);
            let is_beyond = first.len() == limit && first.last_key_value().is_some_and(|(last, _)| device > *last);
            if is_there && !is_beyond && matches(device, seen) {
                first.insert(device, seen);
                if first.len() > limit {
                    first.pop_last();
                }
            }
        }
        first.into_iter().map(|(device, seen)| (device.clone(), seen.clone())).collect()
    }

    /// All of a namespace, or of all; in no order.
    pub fn all(&self, namespace: Option<&str>) -> Vec<(DeviceRef, Arc<Seen>)> {
        let entries = self.entries();
        let there = entries.iter().filter(|(device, _)| namespace.is_none_or(|it| device.namespace == it));
        there.filter_map(|(device, entry)| Some((device.clone(), entry.seen.clone()?))).collect()
    }

    /// Asks the API server.
    pub async fn fetch(&self, device: &DeviceRef) -> Result<Arc<Seen>, DeviceError> {
        let object = self.api(device).get(&device.name).await.map_err(|error| DeviceError::of(device, error))?;
        Ok(self.remember(device, Seen::of(object), false))
    }

    /// Creates a device. `None`: it exists.
    pub async fn create(&self, object: &DeviceInventory) -> Result<Option<Arc<Seen>>, DeviceError> {
        let device = device_ref(object.meta());
        let parameters = PostParams { field_manager: Some(MANAGER_GATEWAY.to_owned()), ..PostParams::default() };
        match self.api(&device).create(&parameters, object).await {
            Ok(created) => {
                self.metrics.wrote("create", "deviceinventories");
                let seen = Seen { written: Some(Instant::now()), ..Seen::of(created) };
                Ok(Some(self.remember(&device, seen, false)))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(DeviceError::NoNamespace(device.namespace)),
            Err(error) => Err(DeviceError::of(&device, error)),
        }
    }

    /// Changes `status.inventory`; writes only if that makes a difference. True: it was written.
    pub async fn write(&self, device: &DeviceRef, change: impl FnOnce(&mut Inventory)) -> Result<bool, DeviceError> {
        let writing = self.entries().entry(device.clone()).or_default().writing.clone();
        let _one_at_a_time = writing.lock().await;
        let seen = self.get(device).await?;
        let mut wanted = seen.inventory.clone();
        change(&mut wanted);
        if wanted == seen.inventory {
            return Ok(false);
        }
        // With the uid, so that an object that was made anew meanwhile is not written to.
        let body = json!({
            "apiVersion": DeviceInventory::api_version(&()),
            "kind": DeviceInventory::kind(&()),
            "metadata": { "name": device.name, "namespace": device.namespace, "uid": seen.uid },
            "status": { "inventory": wanted },
        });
        let parameters = PatchParams::apply(MANAGER_GATEWAY).force();
        let written = self.api(device).patch_status(&device.name, &parameters, &Patch::Apply(&body)).await;
        let object = written.map_err(|error| DeviceError::of(device, error))?;
        self.metrics.wrote("patch", "deviceinventories/status");
        self.remember(device, Seen { written: Some(Instant::now()), ..Seen::of(object) }, false);
        Ok(true)
    }

    /// Devices that are online as far as the API server knows.
    pub fn online(&self) -> Vec<DeviceRef> {
        let is_online = |entry: &Entry| entry.seen.as_ref().is_some_and(|seen| seen.inventory.online);
        self.entries().iter().filter(|(_, entry)| is_online(entry)).map(|(device, _)| device.clone()).collect()
    }

    /// Follows the API server for ever, and tells sessions what concerns them.
    pub async fn run(self, sessions: Sessions) {
        let api: Api<DeserializeGuard<DeviceInventory>> = Api::all(self.client.clone());
        let events = watch(api, watcher::Config::default().page_size(PAGE_SIZE)).default_backoff();
        pin_mut!(events);
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.insert(device_ref(object.meta()));
                    self.apply(object, true, &sessions);
                }
                Ok(Event::InitDone) => {
                    self.keep_only(&std::mem::take(&mut listed), &sessions);
                    self.synced.send_replace(true);
                }
                Ok(Event::Apply(object)) => self.apply(object, false, &sessions),
                Ok(Event::Delete(object)) => self.forget(&device_ref(object.meta()), &sessions),
                Err(error) => tracing::warn!(%error, "watching DeviceInventories fails; trying again"),
            }
        }
    }

    /// One object, as the watch or a list shows it.
    pub(super) fn apply(&self, object: DeserializeGuard<DeviceInventory>, listing: bool, sessions: &Sessions) {
        let device = device_ref(object.meta());
        match object.0 {
            Ok(object) => {
                self.remember(&device, Seen::of(object), listing);
                sessions.changed(&device);
            }
            Err(error) => {
                tracing::warn!(%device, error = %error.error, "this DeviceInventory cannot be read: no sessions for it");
                self.forget(&device, sessions);
            }
        }
    }

    /// Keeps the newest; returns it.
    fn remember(&self, device: &DeviceRef, seen: Seen, listing: bool) -> Arc<Seen> {
        let mut entries = self.entries();
        let entry = entries.entry(device.clone()).or_default();
        match &entry.seen {
            Some(known) if known.outlives(&seen, listing) => known.clone(),
            known => {
                // What the first list shows was decided before.
                if known.is_some() || !listing || *self.synced.borrow() {
                    self.note(seen.decisions(device, known.as_deref()));
                }
                entry.seen.insert(Arc::new(seen)).clone()
            }
        }
    }

    fn note(&self, decisions: Vec<Decision>) {
        if !decisions.is_empty() {
            let (waiting, told) = &*self.decisions;
            waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(decisions);
            told.notify_one();
        }
    }

    pub(super) fn forget(&self, device: &DeviceRef, sessions: &Sessions) {
        self.entries().remove(device);
        sessions.changed(device);
    }

    fn keep_only(&self, listed: &HashSet<DeviceRef>, sessions: &Sessions) {
        let gone: Vec<_> = self
            .entries()
            .iter()
            .filter(|(device, entry)| {
                let recent = |seen: &Arc<Seen>| seen.written.is_some_and(|at| at.elapsed() < OWN_WRITE_COUNTS_FOR);
                !listed.contains(*device) && !entry.seen.as_ref().is_some_and(recent)
            })
            .map(|(device, _)| device.clone())
            .collect();
        for device in gone {
            self.forget(&device, sessions);
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<DeviceRef, Entry>> {
        // A panic while it was held left whole entries: each is replaced in one step.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, device: &DeviceRef) -> Api<DeviceInventory> {
        Api::namespaced(self.client.clone(), &device.namespace)
    }
}

fn device_ref(meta: &kube::core::ObjectMeta) -> DeviceRef {
    DeviceRef { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(version: u64, written: bool) -> Seen {
        let spec = serde_json::from_value(json!({})).unwrap();
        let mut seen = Seen::of(DeviceInventory::new("web", spec));
        seen.version = version;
        seen.written = written.then(Instant::now);
        seen
    }

    #[test]
    fn an_older_event_does_not_undo_a_newer_one() {
        assert!(seen(5, true).outlives(&seen(4, false), false));
        assert!(seen(5, false).outlives(&seen(4, false), false));
        assert!(!seen(5, true).outlives(&seen(6, false), false));
    }

    #[test]
    fn a_new_list_counts_unless_the_write_is_our_own_and_recent() {
        assert!(seen(5, true).outlives(&seen(4, false), true));
        assert!(!seen(5, false).outlives(&seen(4, false), true));
    }

    #[test]
    fn an_object_made_anew_replaces_its_predecessor() {
        let mut anew = seen(4, false);
        anew.uid = Some("another".into());
        assert!(!seen(5, true).outlives(&anew, false));
    }
}
