//! Writes to the API server: each one only if something is different, each counted.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::metrics::Metrics;
use crate::api::{DeviceInventory, FINALIZER_RESULT, MANAGER_CONTROLLER};
use crate::status::DeviceStatus;

/// Writes.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Through `client`.
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics }
    }

    /// The controller's part of a device's status, on the very version that it was planned on: a conflict means that the device
    /// has changed and must be planned again.
    pub async fn device_status(
        &self,
        device: &DeviceInventory,
        status: &DeviceStatus,
    ) -> Result<DeviceInventory, kube::Error> {
        let DeviceStatus { compliance, conditions, observed_generation } = status;
        self.status(
            device,
            &json!({"compliance": compliance, "conditions": conditions, "observedGeneration": observed_generation}),
        )
        .await
    }

    /// A whole status.
    pub async fn status<K>(&self, object: &K, status: &impl Serialize) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": object.name_any(), "resourceVersion": object.meta().resource_version},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER_CONTROLLER).force();
        let written = self.api(object).patch_status(&object.name_any(), &params, &Patch::Apply(body)).await;
        self.count(&K::plural(&()), "patch", written)
    }

    /// A new Job.
    pub async fn create_job(&self, job: &Job) -> Result<Job, kube::Error> {
        let created = self.api(job).create(&PostParams::default(), job).await;
        self.count("jobs", "create", created)
    }

    /// Lets a Job go.
    pub async fn remove_finalizer(&self, job: &Job) -> Result<Job, kube::Error> {
        let others: Vec<_> = job.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER_RESULT).collect();
        let patch = json!({"metadata": {"finalizers": others, "resourceVersion": job.metadata.resource_version}});
        let patched = self.api(job).patch(&job.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        self.count("jobs", "patch", patched)
    }

    fn api<K>(&self, object: &K) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), object.meta().namespace.as_deref().unwrap_or_default())
    }

    fn count<T>(&self, resource: &str, verb: &str, written: Result<T, kube::Error>) -> Result<T, kube::Error> {
        match &written {
            Ok(_) => self.metrics.api_writes.with_label_values(&[resource, verb]).inc(),
            // Somebody else was faster, as happens; it is looked at again.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
            Err(_) => self.metrics.api_errors.with_label_values(&[resource]).inc(),
        }
        written
    }
}
