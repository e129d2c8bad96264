//! Objects, lists and tables as clients of Kubernetes read them.

use axum::Json;
use axum::http::header::{HeaderValue, WARNING};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::kinds::{GROUP, Kind, VERSION};
use super::options::{Form, Include};
use super::records::Listed;

/// A list as an answer.
pub fn list(kind: &Kind, form: Form, include: Include, listed: Listed) -> Response {
    let Listed { items, next, warnings } = listed;
    let metadata = next.map_or_else(|| json!({}), |next| json!({ "continue": next }));
    let body = match form {
        Form::Table => table(kind, include, &metadata, items),
        Form::Objects | Form::Discovery => json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": kind.list_kind(),
            "metadata": metadata,
            "items": items,
        }),
    };
    let mut response = Json(body).into_response();
    for warning in warnings.iter().filter_map(|warning| header(warning)) {
        response.headers_mut().append(WARNING, warning);
    }
    response
}

/// An object as an answer.
pub fn object(kind: &Kind, form: Form, include: Include, object: Value) -> Response {
    match form {
        Form::Table => Json(table(kind, include, &json!({}), vec![object])).into_response(),
        Form::Objects | Form::Discovery => Json(object).into_response(),
    }
}

fn table(kind: &Kind, include: Include, metadata: &Value, items: Vec<Value>) -> Value {
    let column = |name: &str, kind: &str, format: &str, priority: i32, about: &str| json!({ "name": name, "type": kind, "format": format, "priority": priority, "description": about });
    let own = [
        column("Name", "string", "name", 0, "Name of the object."),
        column("Device", "string", "", 0, "Name of the device's DeviceInventory."),
    ];
    let others = kind.columns.iter().map(|it| {
        let about = format!("status{}", it.field.replace('/', "."));
        column(it.name, it.kind, "", it.priority, &about)
    });
    let row = |object: Value| {
        let cells = kind.cells(&object);
        match include {
            Include::None => json!({ "cells": cells }),
            Include::Object => json!({ "cells": cells, "object": object }),
            Include::Metadata => json!({
                "cells": cells,
                "object": {
                    "apiVersion": "meta.k8s.io/v1",
                    "kind": "PartialObjectMetadata",
                    "metadata": object["metadata"],
                },
            }),
        }
    };
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "Table",
        "metadata": metadata,
        "columnDefinitions": own.into_iter().chain(others).collect::<Vec<_>>(),
        "rows": items.into_iter().map(row).collect::<Vec<_>>(),
    })
}

/// A warning that kubectl prints (RFC 9111, section 5.5 in its earlier form; "299" is Kubernetes').
fn header(text: &str) -> Option<HeaderValue> {
    let quoted: String =
        text.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).take(250).collect();
    HeaderValue::from_str(&format!("299 - \"{quoted}\"")).ok()
}
