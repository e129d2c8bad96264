//! The CustomResourceDefinitions in the cluster, against those that this plugin was built with.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::Finding;
use crate::api::crd;

const CHECK: &str = "CRDs";

/// So many fields are named.
const SHOWN: usize = 3;

/// One finding where all four are well, else one for each that is not.
pub(super) async fn check(client: &Client) -> Vec<Finding> {
    let own = match crd::all() {
        Ok(own) => own,
        Err(error) => return vec![Finding::error(CHECK, error.to_string(), "report a defect of this plugin")],
    };
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut findings = vec![];
    for (file, own) in own {
        let name = own.name_any();
        match api.get_opt(&name).await {
            Ok(Some(live)) => findings.extend(differs(&own, &live)),
            Ok(None) => {
                findings.push(Finding::error(
                    CHECK,
                    format!("{name} does not exist"),
                    format!("install Patchwarden, or apply crds/{file}"),
                ));
            }
            Err(error) => findings.push(Finding::unseen(CHECK, &format!("CustomResourceDefinition {name}"), &error)),
        }
    }
    if findings.is_empty() {
        let version = env!("CARGO_PKG_VERSION");
        findings.push(Finding::ok(CHECK, format!("all four have the fields of this plugin's version ({version})")));
    }
    findings
}

/// What is amiss with one of them.
pub(super) fn differs(own: &CustomResourceDefinition, live: &CustomResourceDefinition) -> Option<Finding> {
    let name = own.name_any();
    let conditions = live.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    if !conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
        let what = format!("{name} is not established");
        return Some(Finding::error(CHECK, what, format!("kubectl describe crd {name} says why")));
    }
    let version = own.spec.versions.first()?;
    let served = live.spec.versions.iter().find(|it| it.name == version.name && it.served);
    let Some(served) = served else {
        let what = format!("{name} does not serve {}", version.name);
        return Some(Finding::error(CHECK, what, "use a plugin of the cluster's version, or upgrade the CRDs"));
    };
    let fields = |schema: Option<&Value>| {
        let mut found = BTreeSet::new();
        gather(schema.unwrap_or(&Value::Null), "", &mut found);
        found
    };
    let schema = |version: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion| {
        serde_json::to_value(&version.schema).ok().map(|mut schema| schema["openAPIV3Schema"].take())
    };
    let (own, live) = (fields(schema(version).as_ref()), fields(schema(served).as_ref()));
    let lacks: Vec<&String> = own.difference(&live).collect();
    let more: Vec<&String> = live.difference(&own).collect();
    if !lacks.is_empty() {
        let what = format!("{name} is older than this plugin: it lacks {}", named(&lacks));
        return Some(Finding::error(
            CHECK,
            what,
            "upgrade Patchwarden's CRDs, or use a plugin of the cluster's version",
        ));
    }
    if !more.is_empty() {
        let what = format!("{name} is newer than this plugin: it has {} as well", named(&more));
        return Some(Finding::warning(CHECK, what, "use a plugin of the cluster's version"));
    }
    None
}

fn named(fields: &[&String]) -> String {
    let shown: Vec<&str> = fields.iter().take(SHOWN).map(|field| field.as_str()).collect();
    let more = fields.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more fields") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// The places of all fields.
fn gather(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        gather(inner, &path, found);
        found.insert(path);
    }
    if schema["items"].is_object() {
        gather(&schema["items"], path, found);
    }
}
