//! One pass over everything: plan, and apply the difference.
//!
//! A device that fails (its Job is refused, its status conflicts) costs the others nothing: it is planned again at its next
//! change, or when its hold is over.

mod claims;
mod measure;
#[cfg(test)]
mod measure_tests;
mod settings;
mod traces;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::{Client, Resource as _, ResourceExt as _};
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::report::DeviceRef;
use tokio::sync::watch;

use super::apply::Writer;
use super::cache::{Cache, Tenant};
use super::client::{ClientPlan, MadeFrom};
use super::events::Events;
use super::keys::Keys;
use super::metrics::Metrics;
use super::record::Recorder;
use super::vulnerabilities::Known;
use crate::api::DeviceInventory;
use crate::api::device_inventory::Compliance;
use crate::build::RunnerSettings;
use crate::convert;
use crate::install::{self, JobPresence, Settled};
use crate::plan::{Snapshot, model};
use crate::telemetry::Traces;

/// After its Job or its status was refused a device gets no turn for so long: the others go on, and a quota or an
/// admission policy is not hammered.
const HOLD_AFTER_FAILURE: SignedDuration = SignedDuration::from_secs(30);

/// The fleet's side of the controller.
pub struct Fleet<'k> {
    writer: Writer,
    events: Events,
    keys: &'k Keys,
    runner: RunnerSettings,
    leader: String,
    metrics: Arc<Metrics>,
    holds: HashMap<DeviceRef, Timestamp>,
    /// Devices whose settings wait until they have settled.
    unsettled: HashMap<DeviceRef, Timestamp>,
    /// Patchwarden's own namespace, whose groups are the organisation's.
    organisation: String,
    groups: Groups,
    /// By namespace.
    clients: BTreeMap<String, ClientPlan>,
    recorder: &'k Recorder,
    known: watch::Receiver<Known>,
    traces: Traces,
}

/// Groups as the planner sees them, each converted once for each generation: its expressions are compiled then.
type Groups = HashMap<(String, String), (Option<String>, Option<i64>, model::Group)>;

/// A device on its way through a pass.
struct Device {
    reference: DeviceRef,
    object: Arc<DeviceInventory>,
    compliance: Compliance,
    settled: Settled,
    job: JobPresence,
    /// Whether it gets no turn for a while, because a write for it was refused.
    on_hold: bool,
    /// A new claim, to be written before its Job is made.
    claimed: Option<(Order, SignedOrder)>,
    /// Whether its claim is not what the planner knows.
    is_moved: bool,
}

/// What counts beside the objects in the cluster.
pub struct Beside<'k> {
    /// What the store remembers.
    pub recorder: &'k Recorder,
    /// What is known of vulnerabilities.
    pub known: watch::Receiver<Known>,
    /// Where spans go.
    pub traces: Traces,
}

impl<'k> Fleet<'k> {
    /// For the leader known by `leader`.
    pub fn new(
        client: Client,
        keys: &'k Keys,
        runner: RunnerSettings,
        leader: String,
        organisation: String,
        metrics: Arc<Metrics>,
        beside: Beside<'k>,
    ) -> Self {
        let Beside { recorder, known, traces } = beside;
        Self {
            writer: Writer::new(client.clone(), metrics.clone()),
            events: Events::new(client, &leader),
            keys,
            runner,
            leader,
            metrics,
            holds: HashMap::new(),
            unsettled: HashMap::new(),
            organisation,
            groups: Groups::new(),
            clients: BTreeMap::new(),
            recorder,
            known,
            traces,
        }
    }

    /// Plans and applies. Returns when the clock alone will change something.
    pub async fn pass(&mut self, cache: &Cache, now: Timestamp) -> Option<Timestamp> {
        let timer = self.metrics.pass_seconds.start_timer();
        self.metrics.queue.changes.set(0);
        self.holds.retain(|_, until| *until > now);
        let mut next_look = self.holds.values().min().copied();
        let tenants = cache.tenants();
        self.recorder.attend(tenants.keys()).await;
        self.convert_groups(&tenants);
        self.metrics.tenants.keep_only(|namespace| tenants.contains_key(namespace));
        self.clients.retain(|namespace, _| {
            let is_there = tenants.contains_key(namespace);
            if !is_there {
                self.metrics.forget(namespace);
            }
            is_there
        });
        for namespace in tenants.keys() {
            self.metrics.begin(namespace);
        }
        let is_there =
            |device: &DeviceRef| tenants.get(&device.namespace).is_some_and(|it| it.devices.contains_key(&device.name));
        self.unsettled.retain(|device, _| is_there(device));
        for (namespace, tenant) in &tenants {
            let next = self.tenant_pass(cache, namespace, tenant, now).await;
            next_look = [next_look, next].into_iter().flatten().min();
        }
        next_look = [next_look, self.unsettled.values().min().copied()].into_iter().flatten().min();
        self.metrics.queue.on_hold.set(measure::gauge(self.holds.len()));
        timer.observe_duration();
        self.metrics.passes.inc();
        self.metrics.last_pass.set(now.as_second());
        next_look
    }

    /// The steps of a pass, in their order.
    async fn tenant_pass(
        &mut self,
        cache: &Cache,
        namespace: &str,
        tenant: &Tenant,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut client = self.client(namespace, tenant, now);
        let mut devices = self.put_devices(&mut client, namespace, tenant, now);
        let mut changed: BTreeSet<model::Name> = self.plan(&mut client, now);
        let mut policies = tenant.policies.clone();
        let waiting = Recorder::waiting(client.readings(), policies.values());
        let mut forgetful = self.write_progress(cache, &mut policies, &mut client, &waiting, now).await;
        forgetful.extend(waiting.iter().cloned());
        for device in devices.values_mut() {
            // Where it could not be written down how far updates have come, or is not known, nothing begins that goes by it.
            let claimed_for = device.compliance.current.as_ref().map(|current| current.policy.as_str());
            if !claimed_for.is_some_and(|policy| forgetful.contains(policy)) {
                self.answer_grant(device, tenant, &mut client, now);
            }
        }
        self.claim_all(&client, &mut devices, namespace, tenant, &forgetful, now);
        // With the claims and grants in it, so that one write says all of it.
        for device in devices.values().filter(|device| device.is_moved) {
            client.put((&device.object, &device.compliance), device.job, device.on_hold, now);
        }
        changed.extend(self.plan(&mut client, now));
        self.metrics.tenants.measure(namespace, tenant, client.planner(), now);
        for name in changed {
            if let Some(object) = tenant.devices.get(&*name) {
                devices.entry(name.to_string()).or_insert_with(|| self.settled(namespace, tenant, object, now));
            }
        }
        let mut devices: Vec<Device> = devices.into_values().collect();
        for device in &mut devices {
            let planned = client.planner().device(&device.reference.name);
            let settles = planned.and_then(|planned| self.settle_settings(device, planned, tenant, now));
            match settles {
                Some(at) => self.unsettled.insert(device.reference.clone(), at),
                None => self.unsettled.remove(&device.reference),
            };
        }
        let written = self.write_devices(cache, devices, client.planner(), now).await;
        self.release_jobs(cache, tenant, &written).await;
        self.write_others(cache, tenant, &policies, client.planner(), &waiting, now).await;
        self.recorder.note(namespace, client.readings(), &client.take_news(&forgetful), now);
        let expiries = written.values().filter_map(|c| c.current.as_ref());
        let expiry = expiries.map(|current| convert::claim(current).expires()).filter(|at| *at > now).min();
        let next_look = [client.planner().next_look(), expiry].into_iter().flatten().min();
        self.clients.insert(namespace.to_owned(), client);
        next_look
    }

    /// The client's plan as it was left by the last pass, or a new one where it cannot go on.
    fn client(&mut self, namespace: &str, tenant: &Tenant, now: Timestamp) -> ClientPlan {
        let made_from = self.made_from(namespace, tenant);
        let kept = self.clients.remove(namespace);
        let kept = kept.and_then(|mut it| it.is_current(&made_from, &tenant.policies, now).then_some(it));
        kept.unwrap_or_else(|| {
            let mut specs = self.specs(namespace, tenant);
            let completed = self.recorder.complete(namespace, &mut specs);
            let advice = convert::Advice::new(self.known.borrow().vulnerabilities.advisories.clone());
            ClientPlan::new(specs, &tenant.policies, made_from, completed, advice, now)
        })
    }

    fn made_from(&self, namespace: &str, tenant: &Tenant) -> MadeFrom {
        fn of<'o, K: kube::Resource<DynamicType = ()> + 'o>(
            kind: &'static str,
            objects: impl Iterator<Item = &'o Arc<K>>,
        ) -> impl Iterator<Item = (&'static str, String, Option<String>, Option<i64>)> {
            objects.map(move |object| (kind, object.name_any(), object.uid(), object.meta().generation))
        }
        let organisation = self.groups.iter().filter(|((of, _), _)| *of == self.organisation);
        let organisation = organisation
            .map(|((_, name), (uid, generation, _))| ("organisation", name.clone(), uid.clone(), *generation));
        let mut objects: Vec<_> = of("policy", tenant.policies.values())
            .chain(of("group", tenant.groups.values()))
            .chain(of("window", tenant.windows.values()))
            .chain(organisation)
            .collect();
        objects.sort();
        let vulnerabilities = self.known.borrow().reading;
        MadeFrom { objects, readings: self.recorder.readings(namespace), vulnerabilities }
    }

    /// Settles and puts the devices that are not as they were, and those whose claim has come to something. Returns them, and
    /// all that hold one.
    fn put_devices(
        &self,
        client: &mut ClientPlan,
        namespace: &str,
        tenant: &Tenant,
        now: Timestamp,
    ) -> BTreeMap<String, Device> {
        client.keep_only(|name| tenant.devices.contains_key(name));
        let mut devices = BTreeMap::new();
        for (name, object) in &tenant.devices {
            let holds = object.status.as_ref().and_then(|status| status.compliance.as_ref()?.current.as_ref());
            let job = holds.map_or(JobPresence::Absent, |current| job_presence(tenant, &current.job));
            let reference = DeviceRef { namespace: namespace.to_owned(), name: name.clone() };
            let is_new = client.is_new(name, object, job, self.holds.contains_key(&reference));
            let has_settled = self.unsettled.get(&reference).is_some_and(|at| *at <= now);
            if !is_new && holds.is_none() && !has_settled {
                continue;
            }
            let device = self.settled(namespace, tenant, object, now);
            if is_new || device.is_moved {
                client.put((&device.object, &device.compliance), device.job, device.on_hold, now);
            }
            devices.insert(name.clone(), Device { is_moved: false, ..device });
        }
        devices
    }

    /// A device with its claim moved on as far as results and time allow.
    fn settled(&self, namespace: &str, tenant: &Tenant, object: &Arc<DeviceInventory>, now: Timestamp) -> Device {
        let mut compliance = object.status.as_ref().and_then(|status| status.compliance.clone()).unwrap_or_default();
        let job = compliance.current.as_ref().map_or(JobPresence::Absent, |current| job_presence(tenant, &current.job));
        let before = compliance.current.is_some();
        let settled = install::settle(object, job, &mut compliance, convert::whole_seconds(now));
        let is_moved = before != compliance.current.is_some();
        let reference = DeviceRef { namespace: namespace.to_owned(), name: object.name_any() };
        let on_hold = self.holds.contains_key(&reference);
        Device { reference, object: object.clone(), compliance, settled, job, on_hold, claimed: None, is_moved }
    }

    fn convert_groups(&mut self, tenants: &BTreeMap<String, Tenant>) {
        let mut before = std::mem::take(&mut self.groups);
        for (namespace, tenant) in tenants {
            for (name, object) in &tenant.groups {
                let key = (namespace.clone(), name.clone());
                let (uid, generation) = (object.uid(), object.metadata.generation);
                let known = before.remove(&key).filter(|(id, at, _)| (id, at) == (&uid, &generation));
                let mut group = known.unwrap_or_else(|| (uid, generation, convert::group(object, &self.organisation)));
                group.2.seen = object.status.as_ref().map(convert::seen).unwrap_or_default();
                self.groups.insert(key, group);
            }
        }
    }

    /// All but the devices.
    fn specs(&self, namespace: &str, tenant: &Tenant) -> Snapshot {
        let groups_of = |of: &'_ str| {
            let of = of.to_owned();
            self.groups.iter().filter(move |((namespace, _), _)| *namespace == of).map(|(_, (_, _, group))| group)
        };
        let organisation = self.organisation.as_str();
        let shared = groups_of(organisation).map(|group| convert::shared_group(group, organisation));
        Snapshot {
            policies: tenant.policies.values().map(|policy| convert::policy(policy)).collect(),
            groups: groups_of(namespace).cloned().chain(shared).collect(),
            windows: tenant.windows.values().map(|window| convert::window(window)).collect(),
            vulnerabilities: self.known.borrow().vulnerabilities.known.clone(),
            ..Snapshot::default()
        }
    }

    /// Returns the names of the devices for which something else is planned than before.
    fn plan(&self, client: &mut ClientPlan, now: Timestamp) -> BTreeSet<model::Name> {
        let timer = self.metrics.plan_seconds.start_timer();
        let changed = client.plan(now);
        timer.observe_duration();
        changed.into_iter().collect()
    }
}

fn job_presence(tenant: &Tenant, name: &str) -> JobPresence {
    match tenant.jobs.get(name) {
        None => JobPresence::Absent,
        Some(job) if is_terminating(job) => JobPresence::Terminating,
        Some(_) => JobPresence::Present,
    }
}

fn is_terminating(job: &Job) -> bool {
    job.meta().deletion_timestamp.is_some()
}
