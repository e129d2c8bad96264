//! Tells the API server by which CA it knows gateways as a part of itself: `spec.caBundle` of the APIService (docs/aggregation.md).
//!
//! The CA is made in the cluster and replaced there, so no chart can hold it. It is the controller that has it, and one leader at a time
//! writes; a gateway that could write it could have the API server believe somebody else.

use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client};
use serde_json::json;

use crate::api::MANAGER_CONTROLLER;
use crate::gateway::aggregation::api_service;

/// After the API server did not take it.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the bundle for ever. The object is whoever's who installs it: one that is not there is waited for.
pub async fn keep(client: &Client, ca_pem: &str) {
    let (api, name) = (Api::<APIService>::all(client.clone()), api_service());
    loop {
        if let Err(error) = follow(&api, &name, ca_pem).await {
            tracing::warn!(%name, %error, "the CA cannot be written to the APIService; trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Until it cannot be written, or the watch ends.
async fn follow(api: &Api<APIService>, name: &str, ca_pem: &str) -> Result<(), kube::Error> {
    let events =
        watch(api.clone(), watcher::Config::default().fields(&format!("metadata.name={name}"))).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) if lacks(&object, ca_pem) => {
                write(api, name, ca_pem).await?;
                tracing::info!(%name, "the CA is written to the APIService");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%name, %error, "watching the APIService fails; trying again"),
        }
    }
    Ok(())
}

fn lacks(object: &APIService, ca_pem: &str) -> bool {
    let bundle = object.spec.as_ref().and_then(|spec| spec.ca_bundle.as_ref());
    bundle.is_none_or(|bundle| bundle.0 != ca_pem.as_bytes())
}

/// A merge, which makes no object where there is none any more, and says nothing of its other fields.
async fn write(api: &Api<APIService>, name: &str, ca_pem: &str) -> Result<(), kube::Error> {
    let parameters = PatchParams { field_manager: Some(MANAGER_CONTROLLER.to_owned()), ..PatchParams::default() };
    let bundle = json!({ "spec": { "caBundle": ByteString(ca_pem.as_bytes().to_vec()) } });
    match api.patch(name, &parameters, &Patch::Merge(&bundle)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceSpec;

    use super::*;

    #[test]
    fn only_another_bundle_is_written_over() {
        let with = |bundle: Option<&str>| APIService {
            spec: Some(APIServiceSpec {
                ca_bundle: bundle.map(|it| ByteString(it.as_bytes().to_vec())),
                ..APIServiceSpec::default()
            }),
            ..APIService::default()
        };
        assert!(lacks(&APIService::default(), "new") && lacks(&with(None), "new") && lacks(&with(Some("old")), "new"));
        assert!(!lacks(&with(Some("new")), "new"));
    }
}
