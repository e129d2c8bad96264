//! Writing what differs: status, Jobs, finalizers, figures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::ResourceExt as _;
use patchwarden_protocol::order::{Order, SignedOrder};
use patchwarden_protocol::report::DeviceRef;

use super::measure::gauge;
use super::{Device, Fleet, HOLD_AFTER_FAILURE};
use crate::api::device_inventory::Compliance;
use crate::api::{DeviceInventory, FINALIZER_RESULT, LABEL_DEVICE, PatchPolicy};
use crate::build;
use crate::controller::cache::{Cache, Tenant, Watched};
use crate::controller::client::ClientPlan;
use crate::install::Settled;
use crate::plan::Planner;
use crate::plan::model::{self, Catalogue};
use crate::plan::outcome::DevicePlan;
use crate::shell;
use crate::status::{self, DeviceStatus};
use crate::telemetry::trace_id;

/// Writes under way at a time: what one API server answers without queueing.
const CONCURRENT_WRITES: usize = 16;

impl Fleet<'_> {
    /// Writes each device's status where it differs, then makes the Jobs of the claims that were written. Returns what is
    /// true of each device now.
    pub(super) async fn write_devices(
        &mut self,
        cache: &Cache,
        devices: Vec<Device>,
        planner: &Planner<'_, model::Device>,
        now: Timestamp,
    ) -> BTreeMap<String, Compliance> {
        let this = &*self;
        let waiting = &self.metrics.queue.writes;
        waiting.set(gauge(devices.len()));
        let results: Vec<_> = futures::stream::iter(devices)
            .map(|device| async move {
                let plan = planner.device(&device.reference.name);
                this.write_device(cache, device, plan, planner.updates(), now).await
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .inspect(|_| waiting.dec())
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
        self.tell_settled(&reference, before.current.as_ref(), &settled, now);
        self.events.settled(&object, &settled).await;
        let refused = match claimed {
            Some((order, signed)) => {
                let digest = signed.order.digest();
                self.tell_claimed(&order, &digest, now);
                !Box::pin(self.create_job(cache, &object, &order, &signed, &digest)).await
            }
            None => false,
        };
        (reference, wanted.compliance, refused)
    }

    /// Whether the Job is there now.
    async fn create_job(
        &self,
        cache: &Cache,
        device: &DeviceInventory,
        order: &Order,
        signed: &SignedOrder,
        digest: &str,
    ) -> bool {
        let name = build::job_name(&order.device.name, order.sequence);
        let job = match build::job(device, order, signed, &self.runner, &self.leader) {
            Ok(job) => job,
            Err(error) => {
                tracing::error!(job = name, %error, "cannot make the Job");
                return false;
            }
        };
        let since = shell::now();
        let created = self.writer.create_job(&job).await;
        self.tell_job(order, digest, &name, since, created.is_ok());
        let trace_id = trace_id(digest);
        match created {
            Ok(job) => {
                tracing::info!(device = %order.device, job = name, updates = order.actions.len(), trace_id, "created an install Job");
                cache.jobs.wrote(job);
                true
            }
            Err(error) => {
                tracing::warn!(device = %order.device, job = name, %error, trace_id, "cannot create the install Job");
                self.events.job_refused(device, &name, &error).await;
                false
            }
        }
    }

    /// Takes our finalizer off the Jobs whose claim is over or whose device is gone. `written` is what is true now of devices that
    /// were looked at.
    pub(super) async fn release_jobs(&self, cache: &Cache, tenant: &Tenant, written: &BTreeMap<String, Compliance>) {
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
    pub(super) async fn write_progress(
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

    pub(super) async fn write_others(
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
        match settled {
            Settled::Recorded(past) => {
                self.metrics.deployed(namespace, past);
                let outcome = past.outcome.map_or_else(|| "Unknown".to_owned(), |outcome| format!("{outcome:?}"));
                self.metrics.ended(&outcome, past.reason);
            }
            Settled::TimedOut(_) => self.metrics.ended("TimedOut", None),
            Settled::Released(_) => self.metrics.ended("Released", None),
            Settled::NoClaim | Settled::Holds | Settled::ResultRefused(_) => {}
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}

fn note<K>(cache: &Watched<K>, written: Result<K, kube::Error>, kind: &str, name: &str)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    match written {
        Ok(object) => cache.wrote(object),
        Err(error) if is_conflict(&error) => tracing::debug!(kind, name, "it changed while it was planned"),
        Err(error) => tracing::warn!(kind, name, %error, "cannot write status"),
    }
}
