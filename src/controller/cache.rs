//! What the API server has, kept by watches, with what this controller has just written laid over them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, future};
use k8s_openapi::api::batch::v1::Job;
use kube::core::{DeserializeGuard, error_boundary::InvalidObject};
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use prometheus::IntGauge;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::api::{ApprovalGroup, DeviceInventory, LABEL_INSTALL, MaintenanceWindow, PatchPolicy};

/// Objects per list request: an answer of 500 devices would be 5 MB at once.
const PAGE: u32 = 100;

/// The caches. Dropping it ends the watches.
pub struct Cache {
    /// Policies.
    pub policies: Watched<PatchPolicy>,
    /// Groups.
    pub groups: Watched<ApprovalGroup>,
    /// Windows.
    pub windows: Watched<MaintenanceWindow>,
    /// Devices.
    pub devices: Watched<DeviceInventory>,
    /// Install Jobs.
    pub jobs: Watched<Job>,
    news: News,
    _watches: JoinSet<()>,
}

/// That something has changed, and how often since somebody looked.
#[derive(Clone)]
struct News {
    changed: Arc<Notify>,
    waiting: IntGauge,
}

/// One client's namespace, every kind by name.
#[derive(Default)]
pub struct Tenant {
    /// Policies.
    pub policies: BTreeMap<String, Arc<PatchPolicy>>,
    /// Groups.
    pub groups: BTreeMap<String, Arc<ApprovalGroup>>,
    /// Windows.
    pub windows: BTreeMap<String, Arc<MaintenanceWindow>>,
    /// Devices.
    pub devices: BTreeMap<String, Arc<DeviceInventory>>,
    /// Install Jobs.
    pub jobs: BTreeMap<String, Arc<Job>>,
}

impl Cache {
    /// Starts the watches and waits for their first lists. What they tell is added to `waiting`.
    pub async fn start(client: &Client, waiting: IntGauge) -> Result<Self, WriterDropped> {
        let news = News { changed: Arc::new(Notify::new()), waiting };
        let mut watches = JoinSet::new();
        let config = watcher::Config::default().page_size(PAGE);
        let installs = config.clone().labels(&format!("{LABEL_INSTALL}=true"));
        let cache = Self {
            policies: Watched::start(client, config.clone(), &news, &mut watches),
            groups: Watched::start(client, config.clone(), &news, &mut watches),
            windows: Watched::start(client, config.clone(), &news, &mut watches),
            devices: Watched::start(client, config, &news, &mut watches),
            jobs: Watched::start(client, installs, &news, &mut watches),
            news,
            _watches: watches,
        };
        cache.policies.store.wait_until_ready().await?;
        cache.groups.store.wait_until_ready().await?;
        cache.windows.store.wait_until_ready().await?;
        cache.devices.store.wait_until_ready().await?;
        cache.jobs.store.wait_until_ready().await?;
        Ok(cache)
    }

    /// Returns at the next change (or at once, if one came since the last call).
    pub async fn changed(&self) {
        self.news.changed.notified().await;
    }

    /// Everything, by namespace.
    pub fn tenants(&self) -> BTreeMap<String, Tenant> {
        let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
        for policy in self.policies.state() {
            tenants.entry(namespace(&*policy)).or_default().policies.insert(policy.name_any(), policy);
        }
        for group in self.groups.state() {
            tenants.entry(namespace(&*group)).or_default().groups.insert(group.name_any(), group);
        }
        for window in self.windows.state() {
            tenants.entry(namespace(&*window)).or_default().windows.insert(window.name_any(), window);
        }
        for device in self.devices.state() {
            tenants.entry(namespace(&*device)).or_default().devices.insert(device.name_any(), device);
        }
        for job in self.jobs.state() {
            tenants.entry(namespace(&*job)).or_default().jobs.insert(job.name_any(), job);
        }
        tenants
    }
}

/// A watched kind, with what was just written laid over it until the watch has come as far.
pub struct Watched<K: Resource<DynamicType = ()> + Clone + 'static> {
    store: Store<K>,
    written: Arc<Written<K>>,
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    fn start(client: &Client, config: watcher::Config, news: &News, watches: &mut JoinSet<()>) -> Self {
        let (store, writer) = reflector::store();
        let written = Arc::new(Written::default());
        let (news, overlay) = (news.clone(), written.clone());
        let known = store.clone();
        let events = watcher(Api::<DeserializeGuard<K>>::all(client.clone()), config).default_backoff();
        let events = events.filter_map(move |event| future::ready(readable(event, &known))).reflect(writer);
        watches.spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        overlay.watched(&event);
                        news.waiting.inc();
                        news.changed.notify_one();
                    }
                    Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch"),
                }
            }
        });
        Self { store, written }
    }

    /// Notes an object as the API server has just returned it.
    pub fn wrote(&self, object: K) {
        self.written.put(object);
    }

    fn state(&self) -> Vec<Arc<K>> {
        self.written.over(self.store.state())
    }
}

/// What can be read of an event. An object that the schema accepts and this program cannot read (of a later version, say) is as
/// it was when it could be read: neither gone, which would hand its devices to somebody else, nor in the way of the others.
fn readable<K>(
    event: Result<Event<DeserializeGuard<K>>, watcher::Error>,
    known: &Store<K>,
) -> Option<Result<Event<K>, watcher::Error>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let read = |DeserializeGuard(object): DeserializeGuard<K>| match object {
        Ok(object) => Some(object),
        Err(InvalidObject { error, metadata }) => {
            let name = metadata.name.as_deref().unwrap_or_default();
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            tracing::error!(kind = %K::kind(&()), namespace, name, error, "cannot be read: it counts as it was before");
            known.get(&ObjectRef::new(name).within(namespace)).map(|object| (*object).clone())
        }
    };
    let event = match event {
        Err(error) => return Some(Err(error)),
        Ok(event) => event,
    };
    Some(Ok(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(read(object)?),
        Event::Apply(object) => Event::Apply(read(object)?),
        Event::Delete(object) => Event::Delete(read(object)?),
    }))
}

/// What was just written.
struct Written<K: Resource<DynamicType = ()> + 'static>(Mutex<Overlay<K>>);

struct Overlay<K: Resource<DynamicType = ()> + 'static> {
    objects: HashMap<ObjectRef<K>, Arc<K>>,
    /// The highest version of the list that is coming in.
    listed: u128,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Default for Written<K> {
    fn default() -> Self {
        Self(Mutex::new(Overlay { objects: HashMap::new(), listed: 0 }))
    }
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Written<K> {
    fn put(&self, object: K) {
        let mut overlay = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        overlay.objects.insert(ObjectRef::from_obj(&object), Arc::new(object));
    }

    /// Forgets what the watch has caught up with, deletions included.
    fn watched(&self, event: &Event<K>) {
        let mut overlay = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => overlay.listed = 0,
            Event::InitApply(object) => overlay.listed = overlay.listed.max(version(object)),
            // A list that has something newer than a written object is the truth about that object, also if it is not in it.
            Event::InitDone => {
                let listed = overlay.listed;
                overlay.objects.retain(|_, written| version(&**written) > listed);
            }
            Event::Apply(object) | Event::Delete(object) => {
                let reference = ObjectRef::from_obj(object);
                if overlay.objects.get(&reference).is_some_and(|written| version(&**written) <= version(object)) {
                    overlay.objects.remove(&reference);
                }
            }
        }
    }

    fn over(&self, mut state: Vec<Arc<K>>) -> Vec<Arc<K>> {
        let overlay = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if overlay.objects.is_empty() {
            return state;
        }
        let mut unseen = overlay.objects.clone();
        for object in &mut state {
            if let Some(written) = unseen.remove(&ObjectRef::from_obj(&**object))
                && version(&*written) > version(&**object)
            {
                *object = written;
            }
        }
        state.extend(unseen.into_values());
        state
    }
}

/// Resource versions of one resource are ordered numbers (KEP-5504).
fn version<K: Resource>(object: &K) -> u128 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn namespace<K: Resource>(object: &K) -> String {
    object.meta().namespace.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(name: &str, version: u32) -> Job {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version.to_string()}}),
        )
        .unwrap()
    }

    fn versions(state: &[Arc<Job>]) -> Vec<(String, u128)> {
        let mut all: Vec<_> = state.iter().map(|job| (job.name_any(), version(&**job))).collect();
        all.sort();
        all
    }

    #[test]
    fn what_was_written_is_seen_until_the_watch_has_come_as_far() {
        let written = Written::default();
        written.put(job("a", 10));
        assert_eq!(versions(&written.over(vec![Arc::new(job("a", 9))])), [("a".into(), 10)]);
        assert_eq!(versions(&written.over(vec![])), [("a".into(), 10)]);
        written.watched(&Event::Apply(job("a", 9)));
        assert_eq!(versions(&written.over(vec![])), [("a".into(), 10)]);
        written.watched(&Event::Apply(job("a", 10)));
        assert_eq!(versions(&written.over(vec![])), []);
    }

    #[test]
    fn what_was_written_and_deleted_before_anybody_looked_is_gone() {
        let written = Written::default();
        written.put(job("a", 10));
        written.watched(&Event::Delete(job("a", 12)));
        assert_eq!(versions(&written.over(vec![])), []);
    }

    #[test]
    fn an_object_that_cannot_be_read_stays_as_it_was() {
        let (known, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(job("a", 1)));
        let guarded = |name: &str, parallelism: serde_json::Value| -> DeserializeGuard<Job> {
            let metadata = json!({"name": name, "namespace": "n", "resourceVersion": "2"});
            serde_json::from_value(json!({"metadata": metadata, "spec": {"parallelism": parallelism}})).unwrap()
        };
        let read = |event| match readable::<Job>(Ok(event), &known) {
            None => None,
            Some(Ok(Event::Apply(job) | Event::InitApply(job) | Event::Delete(job))) => {
                Some((job.name_any(), version(&job)))
            }
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(read(Event::Apply(guarded("a", json!(3)))), Some(("a".into(), 2)));
        for event in [Event::Apply, Event::InitApply, Event::Delete] {
            assert_eq!(read(event(guarded("a", json!("many")))), Some(("a".into(), 1)));
            assert_eq!(read(event(guarded("b", json!("many")))), None, "nothing was known of it");
        }
    }

    #[test]
    fn a_new_list_counts_against_what_is_older_than_it() {
        let written = Written::default();
        written.put(job("a", 10));
        written.put(job("b", 20));
        written.watched(&Event::Init);
        written.watched(&Event::InitApply(job("c", 15)));
        written.watched(&Event::InitDone);
        assert_eq!(versions(&written.over(vec![])), [("b".into(), 20)]);
    }
}
