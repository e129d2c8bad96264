//! The CustomResourceDefinitions, from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};

/// A definition that cannot be generated: a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate the CustomResourceDefinition: {0}")]
pub struct NotGenerated(#[from] serde_json::Error);

/// All four, by file name.
pub fn all() -> Result<Vec<(String, CustomResourceDefinition)>, NotGenerated> {
    [DeviceInventory::crd(), ApprovalGroup::crd(), MaintenanceWindow::crd(), PatchPolicy::crd()]
        .into_iter()
        .map(|crd| {
            let file = format!("{}.yaml", crd.spec.names.plural);
            let mut value = serde_json::to_value(&crd)?;
            drop_rust_formats(&mut value);
            say_that_nothing_is_observed(&mut value);
            Ok((file, serde_json::from_value(value)?))
        })
        .collect()
}

/// An object of which no status was written yet has observed no generation of its spec: without this kstatus, and so Flux, would
/// take it for current before the controller has looked at it.
fn say_that_nothing_is_observed(definition: &mut Value) {
    let versions = definition["spec"]["versions"].as_array_mut();
    for version in versions.into_iter().flatten() {
        if let Some(status) = version.pointer_mut("/schema/openAPIV3Schema/properties/status") {
            status["default"] = json!({"observedGeneration": -1});
        }
    }
}

/// `uint32` and the like are no formats of OpenAPI: the API server would warn of each.
fn drop_rust_formats(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(drop_rust_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_rust_formats),
        _ => {}
    }
}
