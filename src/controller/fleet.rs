//! One pass over everything: plan, and apply the difference.
//!
//! A device that fails (its Job is refused, its status conflicts) costs the others nothing: it is planned again at its next
//! change, or when its hold is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::{Client, Resource as _, ResourceExt as _};
use patchwarden_protocol::Envelope;
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::grant::{Grant, Purpose, SignedGrant, Verdict};
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::report::DeviceRef;

use super::apply::Writer;
use super::cache::{Cache, Tenant};
use super::client::{ClientPlan, MadeFrom};
use super::events::Events;
use super::keys::Keys;
use super::metrics::Metrics;
use super::record::Recorder;
use crate::api::device_inventory::{
    AnsweredGrant, Compliance, CurrentInstall, GrantRequest, InstallPhase, KnownUpdate,
};
use crate::api::{DeviceInventory, FINALIZER_RESULT, LABEL_DEVICE, PatchPolicy};
use crate::build::{self, RunnerSettings};
use crate::install::{self, JobPresence, Settled};
use crate::plan::model::Catalogue;
use crate::plan::outcome::{DevicePlan, Install};
use crate::plan::{Planner, Snapshot, model};
use crate::status::{self, DeviceStatus};
use crate::{convert, plan::Blocked};

/// Writes under way at a time: what one API server answers without queueing.
const CONCURRENT_WRITES: usize = 16;

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
    /// Patchwarden's own namespace, whose groups are the organisation's.
    organisation: String,
    groups: Groups,
    /// By namespace.
    clients: BTreeMap<String, ClientPlan>,
    /// Policies by namespace and name, as of the last pass.
    policies: BTreeSet<(String, String)>,
    recorder: &'k Recorder,
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

impl<'k> Fleet<'k> {
    /// For the leader known by `leader`.
    pub fn new(
        client: Client,
        keys: &'k Keys,
        runner: RunnerSettings,
        leader: String,
        organisation: String,
        metrics: Arc<Metrics>,
        recorder: &'k Recorder,
    ) -> Self {
        Self {
            writer: Writer::new(client.clone(), metrics.clone()),
            events: Events::new(client, &leader),
            keys,
            runner,
            leader,
            metrics,
            holds: HashMap::new(),
            organisation,
            groups: Groups::new(),
            clients: BTreeMap::new(),
            policies: BTreeSet::new(),
            recorder,
        }
    }

    /// Plans and applies. Returns when the clock alone will change something.
    pub async fn pass(&mut self, cache: &Cache, now: Timestamp) -> Option<Timestamp> {
        self.holds.retain(|_, until| *until > now);
        let mut next_look = self.holds.values().min().copied();
        let tenants = cache.tenants();
        self.recorder.attend(tenants.keys()).await;
        self.convert_groups(&tenants);
        self.forget_policies(&tenants);
        self.clients.retain(|namespace, _| tenants.contains_key(namespace));
        for (namespace, tenant) in &tenants {
            let next = self.tenant_pass(cache, namespace, tenant, now).await;
            next_look = [next_look, next].into_iter().flatten().min();
        }
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
        let waiting = self.recorder.waiting(namespace, policies.values());
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
        self.measure(namespace, client.planner());
        for name in changed {
            if let Some(object) = tenant.devices.get(&*name) {
                devices.entry(name.to_string()).or_insert_with(|| self.settled(namespace, tenant, object, now));
            }
        }
        let written = self.write_devices(cache, devices.into_values().collect(), client.planner(), now).await;
        self.release_jobs(cache, tenant, &written).await;
        self.write_others(cache, tenant, &policies, client.planner(), &waiting, now).await;
        self.recorder.note(namespace, &client.take_news(&forgetful), now);
        let expiries = written.values().filter_map(|c| c.current.as_ref());
        let expiry =
            expiries.map(|current| convert::claim_expiry(&convert::claim(current))).filter(|at| *at > now).min();
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
            ClientPlan::new(specs, &tenant.policies, made_from, completed, now)
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
        MadeFrom { objects, readings: self.recorder.readings(namespace) }
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
            if !is_new && holds.is_none() {
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

    /// Claims every device that is to install something.
    fn claim_all(
        &self,
        client: &ClientPlan,
        devices: &mut BTreeMap<String, Device>,
        namespace: &str,
        tenant: &Tenant,
        forgetful: &BTreeSet<model::Name>,
        now: Timestamp,
    ) {
        for planned in client.planner().devices() {
            let install = planned.install.as_ref().filter(|install| !forgetful.contains(&install.policy));
            let (Some(install), Some(object)) = (install, tenant.devices.get(&*planned.name)) else { continue };
            let device = devices.entry(planned.name.to_string());
            let device = device.or_insert_with(|| self.settled(namespace, tenant, object, now));
            self.claim(device, install, planned, client.planner().updates(), now);
        }
    }

    /// A policy that is gone has no series any more.
    fn forget_policies(&mut self, tenants: &BTreeMap<String, Tenant>) {
        let names = |(namespace, tenant): (&String, &Tenant)| -> Vec<(String, String)> {
            tenant.policies.keys().map(|name| (namespace.clone(), name.clone())).collect()
        };
        let policies: BTreeSet<(String, String)> = tenants.iter().flat_map(names).collect();
        for (namespace, name) in self.policies.difference(&policies) {
            self.metrics.forget_policy(namespace, name);
        }
        self.policies = policies;
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

    /// Answers the device's question whether it may act, once for each nonce.
    fn answer_grant(&self, device: &mut Device, tenant: &Tenant, client: &mut ClientPlan, now: Timestamp) {
        let Some(request) = grant_request(&device.object) else { return };
        let Some(current) = &mut device.compliance.current else { return };
        let answered = current.grant.as_ref().is_some_and(|grant| grant.nonce == request.nonce);
        if answered || request.order_digest != current.order_digest {
            return;
        }
        let verdict = if current.phase == InstallPhase::Claimed
            && job_presence(tenant, &current.job) != JobPresence::Present
        {
            // Whoever deletes the Job of an install that has not begun does not want it.
            Verdict::Denied { reason: "JobDeleted".to_owned(), message: format!("its Job {} was deleted", current.job) }
        } else {
            let answer = match request.purpose {
                Purpose::Act => client.ask(|planner| planner.may_act(&device.reference.name, now)),
                Purpose::Restart => client.ask(|planner| planner.may_restart(&device.reference.name, now)),
            };
            answer.map_or_else(|blocked| denied(&blocked), |()| Verdict::Granted)
        };
        let granted = verdict == Verdict::Granted;
        match self.sign_grant(&device.object, request, verdict, now) {
            Ok(signed) => {
                if granted {
                    current.phase = InstallPhase::Installing;
                }
                device.is_moved = true;
                current.grant = Some(AnsweredGrant { nonce: request.nonce.clone(), signed });
                let label = if granted { "granted" } else { "denied" };
                self.metrics.grants.with_label_values(&[label]).inc();
                tracing::info!(device = %device.reference, sequence = %current.sequence, label, "answered a grant request");
            }
            Err(error) => tracing::error!(device = %device.reference, %error, "cannot sign a grant"),
        }
    }

    fn sign_grant(
        &self,
        device: &DeviceInventory,
        request: &GrantRequest,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<SignedGrant, NotCanonical> {
        // The accepted key is a valid fingerprint: the schema allows no other, and the report that led here was signed by it.
        let key = device.spec.accepted_key.as_deref().and_then(|key| key.parse().ok());
        let grant = Grant {
            device_key: key.unwrap_or_else(|| self.keys.root.fingerprint()),
            order_digest: request.order_digest.clone(),
            nonce: request.nonce.clone(),
            purpose: request.purpose,
            issued_at: now,
            verdict,
        };
        Ok(SignedGrant {
            grant: Envelope::seal(&grant, &self.keys.order_key)?,
            delegation: self.keys.delegation.clone(),
        })
    }

    /// Makes the order and puts the claim into the status to be written.
    fn claim(
        &self,
        device: &mut Device,
        install: &Install,
        planned: &DevicePlan,
        catalogue: &Catalogue,
        now: Timestamp,
    ) {
        match self.order(device, install, planned, catalogue, now) {
            Ok((order, signed)) => {
                device.compliance.sequence = order.sequence;
                device.compliance.current = Some(CurrentInstall {
                    sequence: order.sequence,
                    job: build::job_name(&order.device.name, order.sequence),
                    order_digest: signed.order.digest(),
                    policy: order.policy.clone(),
                    verb: install.verb,
                    phase: InstallPhase::Claimed,
                    since: convert::whole_seconds(now),
                    not_after: order.not_after,
                    limit_seconds: order.limit_seconds,
                    restart_seconds: build::restart_seconds(&order),
                    expected_seconds: u32::try_from(install.expected.as_secs()).ok(),
                    known: known(install, &order, catalogue),
                    updates: order.actions.iter().map(|action| action.update.clone()).collect(),
                    grant: None,
                });
                device.claimed = Some((order, signed));
                device.is_moved = true;
            }
            Err(why) => tracing::error!(device = %device.reference, why, "cannot make an order"),
        }
    }

    fn order(
        &self,
        device: &Device,
        install: &Install,
        planned: &DevicePlan,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> Result<(Order, SignedOrder), String> {
        let report = convert::believed_report(&device.object).map_err(|why| format!("no report: {why:?}"))?;
        let key = device.object.spec.accepted_key.as_deref().unwrap_or_default();
        let key = key.parse().map_err(|error| format!("spec.acceptedKey: {error}"))?;
        let sequence = device.compliance.sequence.max(report.last_sequence.unwrap_or_default()).next();
        let decided: Vec<_> = status::updates(planned, catalogue, &device.compliance.updates, now).collect();
        let order =
            build::order(&device.reference, key, report, install, &decided, sequence, convert::whole_seconds(now))
                .map_err(|error| error.to_string())?;
        let signed = SignedOrder {
            order: Envelope::seal(&order, &self.keys.order_key).map_err(|error| error.to_string())?,
            delegation: self.keys.delegation.clone(),
        };
        Ok((order, signed))
    }

    /// Writes each device's status where it differs, then makes the Jobs of the claims that were written. Returns what is
    /// true of each device now.
    async fn write_devices(
        &mut self,
        cache: &Cache,
        devices: Vec<Device>,
        planner: &Planner<'_, model::Device>,
        now: Timestamp,
    ) -> BTreeMap<String, Compliance> {
        let this = &*self;
        let results: Vec<_> = futures::stream::iter(devices)
            .map(|device| async move {
                let plan = planner.device(&device.reference.name);
                this.write_device(cache, device, plan, planner.updates(), now).await
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .collect()
            .await;
        let mut written = BTreeMap::new();
        for (reference, compliance, refused) in results {
            if refused {
                let until = now.saturating_add(HOLD_AFTER_FAILURE).unwrap_or(now);
                self.holds.insert(reference.clone(), until);
            }
            written.insert(reference.name, compliance);
        }
        written
    }

    async fn write_device(
        &self,
        cache: &Cache,
        device: Device,
        planned: Option<&DevicePlan>,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> (DeviceRef, Compliance, bool) {
        let Device { reference, object, compliance, settled, claimed, .. } = device;
        let before = object.status.as_ref().and_then(|status| status.compliance.clone()).unwrap_or_default();
        let Some(planned) = planned else { return (reference, before, false) };
        let refused_result = match &settled {
            Settled::ResultRefused(why) => Some(why.as_str()),
            _ => None,
        };
        let wanted = status::device(&object, compliance, planned, catalogue, refused_result, now);
        if DeviceStatus::of(&object).as_ref() == Some(&wanted) {
            return (reference, before, false);
        }
        let object = match self.writer.device_status(&object, &wanted).await {
            Ok(written) => {
                cache.devices.wrote(written.clone());
                written
            }
            Err(error) if is_conflict(&error) => {
                tracing::debug!(device = %reference, "the device changed while it was planned");
                return (reference, before, false);
            }
            Err(error) => {
                tracing::warn!(device = %reference, %error, "cannot write status");
                return (reference, before, true);
            }
        };
        self.count_settled(&reference.namespace, &settled);
        self.events.settled(&object, &settled).await;
        let refused = match claimed {
            Some((order, signed)) => !self.create_job(cache, &object, &order, &signed).await,
            None => false,
        };
        (reference, wanted.compliance, refused)
    }

    /// Whether the Job is there now.
    async fn create_job(&self, cache: &Cache, device: &DeviceInventory, order: &Order, signed: &SignedOrder) -> bool {
        let name = build::job_name(&order.device.name, order.sequence);
        let job = match build::job(device, order, signed, &self.runner, &self.leader) {
            Ok(job) => job,
            Err(error) => {
                tracing::error!(job = name, %error, "cannot make the Job");
                return false;
            }
        };
        match self.writer.create_job(&job).await {
            Ok(job) => {
                tracing::info!(device = %order.device, job = name, updates = order.actions.len(), "created an install Job");
                cache.jobs.wrote(job);
                true
            }
            Err(error) => {
                tracing::warn!(device = %order.device, job = name, %error, "cannot create the install Job");
                self.events.job_refused(device, &name, &error).await;
                false
            }
        }
    }

    /// Takes our finalizer off the Jobs whose claim is over or whose device is gone. `written` is what is true now of devices that
    /// were looked at.
    async fn release_jobs(&self, cache: &Cache, tenant: &Tenant, written: &BTreeMap<String, Compliance>) {
        let as_it_was = |device: &String| tenant.devices.get(device)?.status.as_ref()?.compliance.as_ref();
        for job in tenant.jobs.values().filter(|job| job.finalizers().iter().any(|f| f == FINALIZER_RESULT)) {
            let name = job.name_any();
            let device = job.labels().get(LABEL_DEVICE);
            let compliance = device.and_then(|device| written.get(device).or_else(|| as_it_was(device)));
            let claimed = compliance.and_then(|c| c.current.as_ref()).is_some_and(|current| current.job == name);
            if claimed {
                continue;
            }
            match self.writer.remove_finalizer(job).await {
                // A Job that was being deleted goes with its last finalizer: then there is nothing left to overlay.
                Ok(written) if written.metadata.deletion_timestamp.is_none() => cache.jobs.wrote(written),
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(error) => tracing::warn!(job = name, %error, "cannot remove the finalizer"),
            }
        }
    }

    /// Writes down how far updates have come before anything follows from it. Returns the policies for which that could
    /// not be done: nothing is started for them.
    async fn write_progress(
        &self,
        cache: &Cache,
        policies: &mut BTreeMap<String, Arc<PatchPolicy>>,
        client: &mut ClientPlan,
        waiting: &BTreeSet<model::Name>,
        now: Timestamp,
    ) -> BTreeSet<model::Name> {
        let mut forgetful = BTreeSet::new();
        for (planned, before) in client.to_write().into_iter().filter(|(planned, _)| !waiting.contains(&planned.name)) {
            let Some(object) = policies.get(&*planned.name).cloned() else { continue };
            let wanted = status::policy(&object, &planned, false, now);
            if status::tells_progress(object.status.as_ref(), &wanted) {
                client.wrote(&planned, &object);
                continue;
            }
            match self.writer.status(&*object, &wanted).await {
                Ok(written) => {
                    self.events.progress(&written, &before, &planned.progress).await;
                    client.wrote(&planned, &written);
                    cache.policies.wrote(written.clone());
                    policies.insert(planned.name.to_string(), Arc::new(written));
                }
                Err(error) => {
                    if !is_conflict(&error) {
                        tracing::warn!(policy = &*planned.name, %error, "cannot write how far updates have come");
                    }
                    forgetful.insert(planned.name.clone());
                }
            }
        }
        forgetful
    }

    async fn write_others(
        &self,
        cache: &Cache,
        tenant: &Tenant,
        policies: &BTreeMap<String, Arc<PatchPolicy>>,
        planner: &Planner<'_, model::Device>,
        waiting: &BTreeSet<model::Name>,
        now: Timestamp,
    ) {
        for planned in planner.policies() {
            let Some(object) = policies.get(&*planned.name) else { continue };
            let wanted = status::policy(object, planned, waiting.contains(&planned.name), now);
            if object.status.as_ref() != Some(&wanted) {
                note(&cache.policies, self.writer.status(&**object, &wanted).await, "PatchPolicy", &planned.name);
            }
        }
        for planned in planner.groups() {
            let Some(object) = tenant.groups.get(&*planned.name) else { continue };
            let wanted = status::group(object, planned, now);
            if object.status.as_ref() != Some(&wanted) {
                note(&cache.groups, self.writer.status(&**object, &wanted).await, "ApprovalGroup", &planned.name);
            }
        }
        for planned in planner.windows() {
            let Some(object) = tenant.windows.get(&*planned.name) else { continue };
            let wanted = status::window(object, planned, now);
            if object.status.as_ref() != Some(&wanted) {
                note(&cache.windows, self.writer.status(&**object, &wanted).await, "MaintenanceWindow", &planned.name);
            }
        }
    }

    /// Once, with the write that records it.
    fn count_settled(&self, namespace: &str, settled: &Settled) {
        let outcome = match settled {
            Settled::Recorded(past) => {
                self.metrics.deployed(namespace, past);
                past.outcome.map_or_else(|| "Unknown".to_owned(), |outcome| format!("{outcome:?}"))
            }
            Settled::TimedOut(_) => "TimedOut".to_owned(),
            Settled::Released(_) => "Released".to_owned(),
            Settled::NoClaim | Settled::Holds | Settled::ResultRefused(_) => return,
        };
        self.metrics.installs.with_label_values(&[outcome.as_str()]).inc();
    }

    fn measure(&self, namespace: &str, planner: &Planner<'_, model::Device>) {
        use crate::plan::outcome::{Compliance as C, State};
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mut states: BTreeMap<State, usize> = BTreeMap::new();
        for update in planner.devices().flat_map(|device| &device.updates) {
            *states.entry(update.state).or_default() += 1;
        }
        self.metrics.running.with_label_values(&[namespace]).set(gauge(planner.at_work()));
        for kind in C::ALL {
            let count = planner.devices().filter(|device| device.compliance == kind).count();
            self.metrics.devices.with_label_values(&[namespace, &format!("{kind:?}")]).set(gauge(count));
        }
        for policy in planner.policies() {
            let labels = [namespace, &*policy.name];
            let missing = policy.forecast.as_ref().map_or(0, |forecast| forecast.missing);
            self.metrics.overdue.with_label_values(&labels).set(i64::from(policy.overdue));
            self.metrics.forecast_missing.with_label_values(&labels).set(i64::from(missing));
        }
        for state in State::ALL {
            let count = states.get(&state).copied().unwrap_or_default();
            self.metrics.updates.with_label_values(&[namespace, &format!("{state:?}")]).set(gauge(count));
        }
    }
}

/// What is known of the updates of an order, for whoever records what came of it.
fn known(install: &Install, order: &Order, catalogue: &Catalogue) -> Vec<KnownUpdate> {
    let known = |id: &str| {
        let since = install.updates.iter().zip(&install.since).find(|(other, _)| &***other == id);
        let update = catalogue.of_id(id)?;
        let first_seen = convert::whole_seconds(*since?.1);
        Some(KnownUpdate { classification: update.classification, first_seen, published: update.published })
    };
    // All of them or none: they go by their places.
    order.actions.iter().map(|action| known(&action.update)).collect::<Option<_>>().unwrap_or_default()
}

fn grant_request(device: &DeviceInventory) -> Option<&GrantRequest> {
    device.status.as_ref()?.inventory.as_ref()?.grant_request.as_ref()
}

fn denied(blocked: &Blocked) -> Verdict {
    Verdict::Denied { reason: blocked.code().to_owned(), message: blocked.to_string() }
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

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}

fn note<K>(cache: &super::cache::Watched<K>, written: Result<K, kube::Error>, kind: &str, name: &str)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    match written {
        Ok(object) => cache.wrote(object),
        Err(error) if is_conflict(&error) => tracing::debug!(kind, name, "it changed while it was planned"),
        Err(error) => tracing::warn!(kind, name, %error, "cannot write status"),
    }
}
