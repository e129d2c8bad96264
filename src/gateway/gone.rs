//! Finds out what is gone for good, so that the store drops what it has of it (`store::gone`).
//!
//! Each call looks at a page, and goes on where it has ended before: a fleet of 100,000 devices is gone through in some hours, and no call
//! takes long. That a device is gone is noted when the watch does not have it, and nothing is dropped before the API server has said so, too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use patchwarden_protocol::join::JoinToken;
use patchwarden_protocol::report::DeviceRef;

use super::{PRUNE, Shared, join};
use crate::api::DeviceInventory;
use crate::shell;
use crate::store::{OldUpdate, Remembered, Retention, StoreError};

/// Devices and updates of a page.
const PAGE: usize = 500;

/// Questions to the API server in one call, of devices and of tokens.
const ASKED: usize = 20;

/// That an update is still offered is noted this often.
const NOTED_EVERY: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why it cannot be found out.
#[derive(Debug, thiserror::Error)]
enum NotLooked {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The API server.
    #[error("cannot ask for {object}: {source}")]
    Api {
        /// What was asked for.
        object: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// Looks for what is gone by the clock, and by itself: nothing else waits for the API server with it.
pub(super) async fn run(shared: Arc<Shared>, retention: Retention) {
    let (mut sweep, mut tick) = (Sweep::default(), tokio::time::interval(PRUNE));
    loop {
        tick.tick().await;
        match sweep.step(&shared, retention, shell::now()).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "dropped what was kept of what is gone"),
            Err(error) => tracing::error!(%error, "what is gone cannot be dropped; trying again"),
        }
    }
}

/// Where the next call goes on.
#[derive(Debug, Default)]
struct Sweep {
    device: Option<DeviceRef>,
    token: String,
    update: (String, String),
}

impl Sweep {
    /// Looks at some devices, tokens and updates, and drops what was gone for long enough. Returns how many rows.
    async fn step(&mut self, shared: &Shared, retention: Retention, now: Timestamp) -> Result<u64, NotLooked> {
        // Until everything was listed nothing is known to be gone.
        if !*shared.devices.synced().borrow() {
            return Ok(0);
        }
        let devices = self.devices(shared, retention, now).await?;
        let tokens = self.tokens(shared, retention, now).await?;
        Ok(devices + tokens + self.updates(shared, retention, now).await?)
    }

    async fn devices(&mut self, shared: &Shared, retention: Retention, now: Timestamp) -> Result<u64, NotLooked> {
        let store = &shared.store;
        let page = store.remembered(self.device.as_ref(), PAGE).await?;
        let (mut new, mut back, mut old) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = page.last().filter(|_| page.len() == PAGE).map(|last| last.device.clone());
        for Remembered { device, gone } in page {
            match (shared.devices.cached(&device).is_some(), gone) {
                (true, Some(_)) => back.push(device),
                (false, None) => new.push(device),
                (false, Some(since)) if is_before(since, retention.gone, now) => {
                    old.push(device.clone());
                    if old.len() == ASKED {
                        next = Some(device);
                        break;
                    }
                }
                (true, None) | (false, Some(_)) => {}
            }
        }
        store.note_gone(&new, now).await?;
        let mut dropped = 0;
        for device in old {
            // The watch leaves out what this version cannot read.
            let api: Api<DeviceInventory> = Api::namespaced(shared.client.clone(), &device.namespace);
            let found = api.get_metadata_opt(&device.name).await.map_err(|source| NotLooked::Api {
                object: format!("DeviceInventory {device}"),
                source: Box::new(source),
            })?;
            if found.is_some() {
                back.push(device);
                continue;
            }
            let before = dropped;
            loop {
                match store.drop_gone(&device, retention, now).await? {
                    0 => break,
                    rows => dropped += rows,
                }
            }
            if dropped > before {
                tracing::info!(%device, rows = dropped - before, "dropped what was kept of a device that is gone");
            }
        }
        store.note_there(&back).await?;
        self.device = next;
        Ok(dropped)
    }

    async fn tokens(&mut self, shared: &Shared, retention: Retention, now: Timestamp) -> Result<u64, NotLooked> {
        let page = shared.store.used_tokens(&self.token, ASKED).await?;
        let next = page.last().filter(|_| page.len() == ASKED).map(|(token, _)| token.clone()).unwrap_or_default();
        let maps: Api<ConfigMap> = Api::namespaced(shared.client.clone(), &shared.namespace);
        let mut dropped = 0;
        for (token, last) in page {
            if !is_before(last, retention.gone, now) {
                continue;
            }
            let name = JoinToken::config_map_of(&token);
            let map = maps.get_opt(&name).await.map_err(|source| NotLooked::Api {
                object: format!("ConfigMap {}/{name}", shared.namespace),
                source: Box::new(source),
            })?;
            // One whose time is over may be given more, and its uses count then.
            if join::is_over(map.as_ref(), now.saturating_sub(retention.gone).unwrap_or(Timestamp::MIN)) {
                loop {
                    match shared.store.drop_token_uses(&token, retention, now).await? {
                        0 => break,
                        rows => dropped += rows,
                    }
                }
            }
        }
        self.token = next;
        Ok(dropped)
    }

    async fn updates(&mut self, shared: &Shared, retention: Retention, now: Timestamp) -> Result<u64, NotLooked> {
        let page = shared.store.known_updates(&self.update, PAGE).await?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|last| last.key.clone()).unwrap_or_default();
        let is_due = |update: &&OldUpdate| update.offered.is_none_or(|offered| is_before(offered, NOTED_EVERY, now));
        let due: Vec<&OldUpdate> = page.iter().filter(is_due).collect();
        // Of those that nobody has looked at yet the time begins now.
        let (new, known): (Vec<&OldUpdate>, Vec<&OldUpdate>) =
            due.into_iter().partition(|update| update.offered.is_none());
        let mut missed: HashMap<&str, HashSet<&str>> = HashMap::new();
        for (namespace, id) in known.iter().map(|update| &update.key) {
            missed.entry(namespace).or_default().insert(id);
        }
        let devices = if missed.is_empty() { vec![] } else { shared.devices.all(None) };
        for (device, seen) in &devices {
            let Some(missed) = missed.get_mut(device.namespace.as_str()) else { continue };
            for update in seen.inventory.report.iter().flat_map(|report| &report.updates) {
                missed.remove(update.id.as_str());
            }
        }
        let is_missed = |update: &&OldUpdate| {
            let (namespace, id) = &update.key;
            missed.get(namespace.as_str()).is_some_and(|missed| missed.contains(id.as_str()))
        };
        let (gone, offered): (Vec<&OldUpdate>, Vec<&OldUpdate>) = known.iter().copied().partition(is_missed);
        let keys = |updates: &[&OldUpdate]| updates.iter().map(|update| update.key.clone()).collect::<Vec<_>>();
        let (there, gone) = (keys(&[new, offered].concat()), keys(&gone));
        shared.store.note_offered(&there, now).await?;
        let dropped = shared.store.drop_updates(&gone, retention, now).await?;
        self.update = next;
        Ok(dropped)
    }
}

/// Whether something is longer ago than it is kept.
fn is_before(time: Timestamp, kept: SignedDuration, now: Timestamp) -> bool {
    now.duration_since(time) > kept
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::key::{Fingerprint, PrivateKey};
    use patchwarden_protocol::report::Report;
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::door_tests::World;
    use crate::gateway::refused_tests::api_server;
    use crate::gateway::testing;
    use crate::store::{StoredReport, TokenUse, TokenUser};

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const KEPT: Retention =
        Retention { audit: SignedDuration::MAX, history: SignedDuration::MAX, gone: SignedDuration::from_hours(240) };

    fn start() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    async fn keep(world: &World, name: &str, updates: &[&str], now: Timestamp) -> DeviceRef {
        let key = PrivateKey::generate();
        let mut report = testing::report("acme", name);
        report.updates = updates.iter().map(|id| testing::update(id)).collect();
        let envelope = Envelope::seal(&report, &key).unwrap();
        let kept = StoredReport { digest: envelope.digest(), counter: 1, envelope };
        world.shared.store.record_report(&key.public().fingerprint(), &report, &kept, None, now).await.unwrap();
        report.device
    }

    fn device(name: &str) -> (String, Value) {
        let metadata = json!({ "name": name, "namespace": "acme" });
        (
            name.to_owned(),
            json!({ "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory", "metadata": metadata }),
        )
    }

    fn map(token: &str, expires: Timestamp) -> (String, Value) {
        let name = JoinToken::config_map_of(token);
        let data = json!({ join::KEY_EXPIRES: expires.to_string() });
        (name.clone(), json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data }))
    }

    #[tokio::test]
    async fn what_is_kept_of_a_device_goes_when_neither_the_watch_nor_the_api_server_has_it() {
        let (world, now) = (World::with(api_server(HashMap::from([device("unreadable")]))).await, start());
        let key = PrivateKey::generate();
        world.show_device("there", &key, "Active", &json!({}));
        let [there, deleted, unreadable, returns] = ["there", "deleted", "unreadable", "returns"];
        for name in [there, deleted, unreadable, returns] {
            keep(&world, name, &[], now).await;
        }
        let known = async || {
            let all = world.shared.store.remembered(None, 10).await.unwrap();
            all.into_iter().map(|one| (one.device.name, one.gone.is_some())).collect::<Vec<_>>()
        };
        let all =
            |noted: &[(&str, bool)]| noted.iter().map(|(name, gone)| ((*name).to_owned(), *gone)).collect::<Vec<_>>();
        let mut sweep = Sweep::default();
        assert_eq!(sweep.step(&world.shared, KEPT, now).await.unwrap(), 0);
        let nothing = all(&[(deleted, false), (returns, false), (there, false), (unreadable, false)]);
        assert_eq!(known().await, nothing, "nothing is known to be gone before all was listed");
        world.shared.devices.set_synced();
        assert_eq!(sweep.step(&world.shared, KEPT, now).await.unwrap(), 0);
        assert_eq!(known().await, all(&[(deleted, true), (returns, true), (there, false), (unreadable, true)]));
        world.show_device(returns, &key, "Active", &json!({}));
        assert_eq!(sweep.step(&world.shared, KEPT, now + DAY * 10).await.unwrap(), 0, "it stays for ten days");
        assert_eq!(known().await[1], (returns.to_owned(), false));
        assert_eq!(sweep.step(&world.shared, KEPT, now + DAY * 11).await.unwrap(), 1);
        let left = all(&[(returns, false), (there, false), (unreadable, false)]);
        assert_eq!(known().await, left, "the API server has what this version cannot read");
    }

    #[tokio::test]
    async fn nothing_is_dropped_while_the_api_server_is_away() {
        let mut away = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        away.default_retry = false;
        let (world, now) = (World::with(kube::Client::try_from(away).unwrap()).await, start());
        world.shared.devices.set_synced();
        let device = keep(&world, "web", &[], now).await;
        let mut sweep = Sweep::default();
        assert_eq!(sweep.step(&world.shared, KEPT, now).await.unwrap(), 0);
        let refused = sweep.step(&world.shared, KEPT, now + DAY * 30).await.unwrap_err().to_string();
        assert!(refused.starts_with("cannot ask for DeviceInventory acme/web: "), "{refused}");
        assert!(world.shared.store.device(&device).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn uses_of_a_token_count_for_as_long_as_it_may_be_used() {
        let now = start();
        let maps = [map("good", now + DAY * 100), map("over", now + DAY), map("late", now + DAY * 8)];
        let world = World::with(api_server(HashMap::from(maps))).await;
        world.shared.devices.set_synced();
        let (key, device) = (Fingerprint::of(b"a"), testing::report("acme", "web").device);
        let used = async |token: &str, now| {
            let user = TokenUser { key: &key, device: &device, is_enrolled: false };
            world.shared.store.use_join_token(token, user, 1, now).await.unwrap()
        };
        for token in ["deleted", "good", "late", "over"] {
            assert_eq!(used(token, now).await, TokenUse::Spent);
        }
        let mut sweep = Sweep::default();
        assert_eq!(sweep.step(&world.shared, KEPT, now + DAY * 10).await.unwrap(), 0, "they stay for ten days");
        assert_eq!(sweep.step(&world.shared, KEPT, now + DAY * 12).await.unwrap(), 2);
        let left = world.shared.store.used_tokens("", 10).await.unwrap();
        assert_eq!(left.iter().map(|(token, _)| token.as_str()).collect::<Vec<_>>(), ["good", "late"]);
        assert_eq!(used("good", now + DAY * 12).await, TokenUse::Repeated);
    }

    #[tokio::test]
    async fn since_when_an_update_is_offered_is_known_while_any_device_offers_it() {
        let (world, now) = (World::with(api_server(HashMap::new())).await, start());
        world.shared.devices.set_synced();
        keep(&world, "web", &["DSA-1", "DSA-2"], now).await;
        let report = Report { updates: vec![testing::update("DSA-1")], ..testing::report("acme", "web") };
        let status = json!({ "inventory": { "online": true, "report": report } });
        world.show_device("web", &PrivateKey::generate(), "Active", &status);
        let mut sweep = Sweep::default();
        // Looked at for the first time, then too early, then long after.
        for (day, dropped) in [(1, 0), (11, 0), (12, 1), (40, 0)] {
            assert_eq!(sweep.step(&world.shared, KEPT, now + DAY * day).await.unwrap(), dropped, "day {day}");
        }
        let first = async |id: &str| world.shared.store.first_seen("acme", id).await.unwrap();
        assert!(first("DSA-1").await.is_some());
        assert_eq!(first("DSA-2").await, None);
    }
}
