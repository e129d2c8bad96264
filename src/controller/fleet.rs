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
use crate::plan::outcome::{DevicePlan, Install, Plan, PolicyPlan};
use crate::plan::{self, Grants, Snapshot, model};
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
    /// Whether it gets no turn for a while, because a write for it was refused.
    on_hold: bool,
    /// A new claim, to be written before its Job is made.
    claimed: Option<(Order, SignedOrder)>,
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
        let mut devices = settle(namespace, tenant, &self.holds, now);
        let mut snapshot = self.snapshot(namespace, tenant, &devices, now);
        let completed = self.recorder.complete(namespace, &mut snapshot);
        let first = self.plan(&snapshot, now);
        let mut policies = tenant.policies.clone();
        let waiting = self.recorder.waiting(namespace, policies.values());
        let policies_to_write = first.policies.iter().filter(|planned| !waiting.contains(&planned.name));
        let mut forgetful =
            self.write_progress(cache, &mut policies, &mut snapshot, policies_to_write, &completed, now).await;
        forgetful.extend(waiting.iter().cloned());
        let mut grants = Grants::new(&snapshot, now);
        for device in &mut devices {
            // Where it could not be written down how far updates have come, or is not known, nothing begins that goes by it.
            let claimed_for = device.compliance.current.as_ref().map(|current| current.policy.as_str());
            if !claimed_for.is_some_and(|policy| forgetful.contains(policy)) {
                self.answer_grant(device, tenant, &mut grants, now);
            }
            if let Some(install) = install_of(&first, device).filter(|install| !forgetful.contains(&install.policy)) {
                self.claim(device, install, &first, &snapshot.updates, now);
            }
        }
        // With the claims and grants in it, so that one write says all of it.
        for (model, device) in snapshot.devices.iter_mut().zip(&devices) {
            model.current = device.compliance.current.as_ref().map(convert::claim);
        }
        let plan = self.plan(&snapshot, now);
        self.measure(namespace, &plan, &devices);
        let written = self.write_devices(cache, devices, &plan, &snapshot.updates, now).await;
        self.release_jobs(cache, tenant, &written).await;
        self.write_others(cache, tenant, &policies, &plan, &waiting, now).await;
        self.recorder.note(namespace, &snapshot, &plan, &forgetful, now);
        let expiries = written.values().filter_map(|c| c.current.as_ref());
        let expiry =
            expiries.map(|current| convert::claim_expiry(&convert::claim(current))).filter(|at| *at > now).min();
        [plan.next_look, expiry].into_iter().flatten().min()
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

    fn snapshot(&self, namespace: &str, tenant: &Tenant, devices: &[Device], now: Timestamp) -> Snapshot {
        let groups_of = |of: &'_ str| {
            let of = of.to_owned();
            self.groups.iter().filter(move |((namespace, _), _)| *namespace == of).map(|(_, (_, _, group))| group)
        };
        let organisation = self.organisation.as_str();
        let shared = groups_of(organisation).map(|group| convert::shared_group(group, organisation));
        let groups = groups_of(namespace).cloned().chain(shared).collect();
        let mut snapshot = convert::snapshot(
            tenant.policies.values().map(AsRef::as_ref),
            groups,
            tenant.windows.values().map(AsRef::as_ref),
            devices.iter().map(|device| (&*device.object, &device.compliance)),
            now,
        );
        for (model, device) in snapshot.devices.iter_mut().zip(devices) {
            model.on_hold = device.on_hold;
        }
        snapshot
    }

    fn plan(&self, snapshot: &Snapshot, now: Timestamp) -> Plan {
        let timer = self.metrics.plan_seconds.start_timer();
        let plan = plan::plan(snapshot, now);
        timer.observe_duration();
        plan
    }

    /// Answers the device's question whether it may act, once for each nonce.
    fn answer_grant(&self, device: &mut Device, tenant: &Tenant, grants: &mut Grants<'_>, now: Timestamp) {
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
                Purpose::Act => grants.may_act(&device.reference.name),
                Purpose::Restart => grants.may_restart(&device.reference.name),
            };
            answer.map_or_else(|blocked| denied(&blocked), |()| Verdict::Granted)
        };
        let granted = verdict == Verdict::Granted;
        match self.sign_grant(&device.object, request, verdict, now) {
            Ok(signed) => {
                if granted {
                    current.phase = InstallPhase::Installing;
                }
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
    fn claim(&self, device: &mut Device, install: &Install, plan: &Plan, catalogue: &Catalogue, now: Timestamp) {
        match self.order(device, install, plan, catalogue, now) {
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
            }
            Err(why) => tracing::error!(device = %device.reference, why, "cannot make an order"),
        }
    }

    fn order(
        &self,
        device: &Device,
        install: &Install,
        plan: &Plan,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> Result<(Order, SignedOrder), String> {
        let report = convert::believed_report(&device.object).map_err(|why| format!("no report: {why:?}"))?;
        let key = device.object.spec.accepted_key.as_deref().unwrap_or_default();
        let key = key.parse().map_err(|error| format!("spec.acceptedKey: {error}"))?;
        let sequence = device.compliance.sequence.max(report.last_sequence.unwrap_or_default()).next();
        let decided: Vec<_> = plan
            .devices
            .iter()
            .filter(|planned| *planned.name == *device.reference.name)
            .flat_map(|planned| status::updates(planned, catalogue, &device.compliance.updates, now))
            .collect();
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
        plan: &Plan,
        catalogue: &Catalogue,
        now: Timestamp,
    ) -> BTreeMap<String, Compliance> {
        let plans: HashMap<&str, &DevicePlan> = plan.devices.iter().map(|plan| (&*plan.name, plan)).collect();
        let this = &*self;
        let plans = &plans;
        let results: Vec<_> = futures::stream::iter(devices)
            .map(|device| async move {
                let planned = plans.get(device.reference.name.as_str()).copied();
                this.write_device(cache, device, planned, catalogue, now).await
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
        let Device { reference, object, compliance, settled, on_hold: _, claimed } = device;
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

    /// Takes our finalizer off the Jobs whose claim is over or whose device is gone.
    async fn release_jobs(&self, cache: &Cache, tenant: &Tenant, devices: &BTreeMap<String, Compliance>) {
        for job in tenant.jobs.values().filter(|job| job.finalizers().iter().any(|f| f == FINALIZER_RESULT)) {
            let name = job.name_any();
            let compliance = job.labels().get(LABEL_DEVICE).and_then(|device| devices.get(device));
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
        snapshot: &mut Snapshot,
        plans: impl Iterator<Item = &PolicyPlan>,
        completed: &BTreeSet<model::Name>,
        now: Timestamp,
    ) -> BTreeSet<model::Name> {
        let mut forgetful = BTreeSet::new();
        for planned in plans {
            let Some(object) = policies.get(&*planned.name).cloned() else { continue };
            let recorded = snapshot.policies.iter_mut().find(|policy| policy.name == planned.name);
            let is_news =
                |policy: &model::Policy| policy.progress != planned.progress || completed.contains(&planned.name);
            let Some(recorded) = recorded.filter(|policy| is_news(policy)) else { continue };
            let wanted = status::policy(&object, planned, false, now);
            if status::tells_progress(object.status.as_ref(), &wanted) {
                continue;
            }
            match self.writer.status(&*object, &wanted).await {
                Ok(written) => {
                    self.events.progress(&written, &recorded.progress, &planned.progress).await;
                    recorded.progress = planned.progress.clone();
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
        plan: &Plan,
        waiting: &BTreeSet<model::Name>,
        now: Timestamp,
    ) {
        for planned in &plan.policies {
            let Some(object) = policies.get(&*planned.name) else { continue };
            let wanted = status::policy(object, planned, waiting.contains(&planned.name), now);
            if object.status.as_ref() != Some(&wanted) {
                note(&cache.policies, self.writer.status(&**object, &wanted).await, "PatchPolicy", &planned.name);
            }
        }
        for planned in &plan.groups {
            let Some(object) = tenant.groups.get(&*planned.name) else { continue };
            let wanted = status::group(object, planned, now);
            if object.status.as_ref() != Some(&wanted) {
                note(&cache.groups, self.writer.status(&**object, &wanted).await, "ApprovalGroup", &planned.name);
            }
        }
        for planned in &plan.windows {
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

    fn measure(&self, namespace: &str, plan: &Plan, devices: &[Device]) {
        use crate::plan::outcome::{Compliance as C, State};
        let running = devices.iter().filter(|device| device.compliance.current.is_some()).count();
        self.metrics.running.with_label_values(&[namespace]).set(i64::try_from(running).unwrap_or(i64::MAX));
        for kind in C::ALL {
            let name = format!("{kind:?}");
            let count = plan.devices.iter().filter(|device| device.compliance == kind).count();
            let gauge = self.metrics.devices.with_label_values(&[namespace, &name]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for policy in &plan.policies {
            let labels = [namespace, &*policy.name];
            let missing = policy.forecast.as_ref().map_or(0, |forecast| forecast.missing);
            self.metrics.overdue.with_label_values(&labels).set(i64::from(policy.overdue));
            self.metrics.forecast_missing.with_label_values(&labels).set(i64::from(missing));
        }
        for (kind, name) in [
            (State::Missing, "Missing"),
            (State::Downloaded, "Downloaded"),
            (State::Installed, "Installed"),
            (State::Pending, "Pending"),
            (State::Installing, "Installing"),
            (State::Failed, "Failed"),
            (State::Ignored, "Ignored"),
            (State::Held, "Held"),
            (State::RestartRequired, "RestartRequired"),
            (State::Unknown, "Unknown"),
        ] {
            let updates = plan.devices.iter().flat_map(|device| &device.updates);
            let count = updates.filter(|update| update.state == kind).count();
            let gauge = self.metrics.updates.with_label_values(&[namespace, name]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

fn settle(namespace: &str, tenant: &Tenant, holds: &HashMap<DeviceRef, Timestamp>, now: Timestamp) -> Vec<Device> {
    tenant
        .devices
        .values()
        .map(|object| {
            let mut compliance =
                object.status.as_ref().and_then(|status| status.compliance.clone()).unwrap_or_default();
            let job =
                compliance.current.as_ref().map_or(JobPresence::Absent, |current| job_presence(tenant, &current.job));
            let settled = install::settle(object, job, &mut compliance, convert::whole_seconds(now));
            let reference = DeviceRef { namespace: namespace.to_owned(), name: object.name_any() };
            let on_hold = holds.contains_key(&reference);
            Device { reference, object: object.clone(), compliance, settled, on_hold, claimed: None }
        })
        .collect()
}

fn install_of<'p>(plan: &'p Plan, device: &Device) -> Option<&'p Install> {
    plan.devices.iter().find(|planned| *planned.name == *device.reference.name)?.install.as_ref()
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
