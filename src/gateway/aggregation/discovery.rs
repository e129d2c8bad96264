//! What there is, for the API server and for kubectl: discovery in both of its forms, and OpenAPI v3, of the API's own types.

use axum::Json;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::kinds::{GROUP, KINDS, Kind, VERSION};
use super::options::Form;
use crate::gateway::api::history::{Install, PackageChange};
use crate::gateway::api::problem::Problem;
use crate::gateway::api::software::InstalledPackage;
use crate::gateway::api::updates::Missing;
use crate::gateway::api::vulnerabilities::{FixedVulnerability, Vulnerability};

const AGGREGATED: HeaderValue =
    HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");

/// Before the names of schemas in the description.
const SCHEMAS: &str = "io.patchwarden.store.v1alpha1.";

/// `/apis`.
pub async fn groups(headers: HeaderMap) -> Result<Response, Problem> {
    Ok(match Form::accepted(&headers, &[Form::Discovery, Form::Objects])? {
        Form::Discovery => {
            let mut response = Json(aggregated()).into_response();
            response.headers_mut().insert(CONTENT_TYPE, AGGREGATED);
            response
        }
        Form::Objects | Form::Table => {
            Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group_itself()] })).into_response()
        }
    })
}

/// `/apis/GROUP`.
pub async fn group() -> Json<Value> {
    let mut group = group_itself();
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    Json(group)
}

/// `/apis/GROUP/VERSION`.
pub async fn resources() -> Json<Value> {
    let resources = KINDS.iter().map(|kind| {
        json!({
            "name": kind.resource,
            "singularName": kind.singular,
            "namespaced": true,
            "kind": kind.name,
            "verbs": ["get", "list"],
            "shortNames": [kind.short],
        })
    });
    let resources: Vec<_> = resources.collect();
    let version = group_version();
    Json(json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources }))
}

/// `/openapi/v3`.
pub async fn openapi_paths() -> Json<Value> {
    let path = format!("apis/{}", group_version());
    Json(json!({ "paths": { &path: { "serverRelativeURL": format!("/openapi/v3/{path}") } } }))
}

/// `/openapi/v3/apis/GROUP/VERSION`.
pub async fn openapi() -> Result<Json<Value>, Problem> {
    description().map(Json).map_err(|error| {
        tracing::error!(%error, "the aggregation layer's OpenAPI cannot be written");
        Problem::unavailable("the description cannot be written; the gateway's log says why")
    })
}

fn group_version() -> String {
    format!("{GROUP}/{VERSION}")
}

fn group_itself() -> Value {
    let version = json!({ "groupVersion": group_version(), "version": VERSION });
    json!({ "name": GROUP, "versions": [version], "preferredVersion": version })
}

fn aggregated() -> Value {
    let resources = KINDS.iter().map(|kind| {
        json!({
            "resource": kind.resource,
            "responseKind": gvk(kind.name),
            "scope": "Namespaced",
            "singularResource": kind.singular,
            "verbs": ["get", "list"],
            "shortNames": [kind.short],
        })
    });
    let resources: Vec<_> = resources.collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [{
            "metadata": { "name": GROUP },
            "versions": [{ "version": VERSION, "resources": resources, "freshness": "Current" }],
        }],
    })
}

fn gvk(kind: &str) -> Value {
    json!({ "group": GROUP, "version": VERSION, "kind": kind })
}

#[derive(OpenApi)]
#[openapi(components(schemas(InstalledPackage, Missing, PackageChange, Install, Vulnerability, FixedVulnerability)))]
struct Records;

/// OpenAPI 3.0, as the API server publishes its own, and as `kubectl explain` reads it.
pub fn description() -> Result<Value, serde_json::Error> {
    let records = serde_json::to_value(Records::openapi())?;
    let mut schemas = Map::new();
    for (name, schema) in records["components"]["schemas"].as_object().into_iter().flatten() {
        schemas.insert(format!("{SCHEMAS}{name}"), of_3_0(schema.clone()));
    }
    let mut paths = Map::new();
    for kind in &KINDS {
        let record = format!("{SCHEMAS}{}", kind.schema);
        // The record's own fields, and the device's: `kubectl explain` shows no `allOf` of several.
        let mut status = schemas.get(&record).cloned().unwrap_or_default();
        status["properties"]["device"] =
            json!({ "type": "string", "description": "Name of the device's DeviceInventory." });
        let (name, status_name, list_name) = names(kind);
        schemas.insert(status_name.clone(), status);
        schemas.insert(name.clone(), object_schema(kind, &status_name));
        schemas.insert(list_name.clone(), list_schema(kind, &name));
        let operation = |action: &str, schema: &str| {
            json!({ "get": {
                "operationId": format!("{action}{}", kind.name),
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk(kind.name),
                "responses": { "200": {
                    "description": "OK",
                    "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } },
                } },
            } })
        };
        let root = format!("/apis/{}", group_version());
        paths.insert(format!("{root}/{}", kind.resource), operation("list", &list_name));
        let within = format!("{root}/namespaces/{{namespace}}/{}", kind.resource);
        paths.insert(format!("{within}/{{name}}"), operation("get", &name));
        paths.insert(within, operation("list", &list_name));
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": { "title": "Patchwarden's store", "version": VERSION },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

/// Names of the schemas of an object, its status and its list. A record that is called like its kind has the status' name.
fn names(kind: &Kind) -> (String, String, String) {
    let name = |what: &str| format!("{SCHEMAS}objects.{}{what}", kind.name);
    (name(""), name("Status"), name("List"))
}

fn object_schema(kind: &Kind, status: &str) -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "type": "object",
        "description": kind.about,
        "properties": {
            "apiVersion": text("Group and version."),
            "kind": text("The kind."),
            "metadata": {
                "type": "object",
                "description": "Name and namespace.",
                "properties": {
                    "name": text("The device's name, something of the record's own, and a digest of what tells it from others."),
                    "namespace": text("The client."),
                },
            },
            "status": {
                "description": "The record, as /api/v1 has it.",
                "allOf": [{ "$ref": format!("#/components/schemas/{status}") }],
            },
        },
        "x-kubernetes-group-version-kind": [gvk(kind.name)],
    })
}

fn list_schema(kind: &Kind, item: &str) -> Value {
    json!({
        "type": "object",
        "description": format!("A list of {}.", kind.name),
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object", "properties": { "continue": { "type": "string" } } },
            "items": { "type": "array", "items": { "$ref": format!("#/components/schemas/{item}") } },
        },
        "x-kubernetes-group-version-kind": [gvk(&kind.list_kind())],
    })
}

/// What 3.1 says of what may be absent, in the words of 3.0; and references by the names that schemas have here.
fn of_3_0(schema: Value) -> Value {
    match schema {
        Value::Array(parts) => parts.into_iter().map(of_3_0).collect(),
        Value::Object(fields) => {
            let mut out: Map<String, Value> = fields.into_iter().map(|(name, value)| (name, of_3_0(value))).collect();
            if let Some(Value::String(reference)) = out.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", &format!("#/components/schemas/{SCHEMAS}"));
            }
            if let Some(kind) = without_null(out.get("type")) {
                out.insert("type".to_owned(), kind);
                out.insert("nullable".to_owned(), json!(true));
            }
            let is_null = |one: &Value| one["type"] == "null";
            if let Some(Value::Array(either)) = out.remove("oneOf") {
                let is_nullable = either.iter().any(is_null);
                let others: Vec<_> = either.into_iter().filter(|one| !is_null(one)).collect();
                out.insert(if is_nullable { "allOf" } else { "oneOf" }.to_owned(), json!(others));
                if is_nullable {
                    out.insert("nullable".to_owned(), json!(true));
                }
            }
            Value::Object(out)
        }
        other => other,
    }
}

fn without_null(kind: Option<&Value>) -> Option<Value> {
    let kinds = kind?.as_array()?;
    kinds.iter().find(|kind| *kind != "null").cloned()
}
