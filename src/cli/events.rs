//! `kubectl patchwarden events`: what happened to our objects, the oldest first; with -w also what happens from now on.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::Args;
use futures::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::screen::{self, Cell, PLAIN, WARNING, cell, plain};
use super::table::{self, Column, Output};
use crate::api::GROUP;

/// How many events are asked for at a time.
const PAGE: u32 = 500;

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Of this device. Without it of all devices, policies, groups and windows.
    device: Option<String>,
    /// Namespace of the client. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of all clients.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "device"])]
    all_namespaces: bool,
    /// Warnings only.
    #[arg(long)]
    warnings: bool,
    /// Go on with what happens from now on.
    #[arg(short, long)]
    watch: bool,
    /// How to answer; with --watch a table.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

const COLUMNS: &[Column] = &[
    ("NAMESPACE", "/namespace", false),
    ("TIME", "/time", false),
    ("TYPE", "/type", false),
    ("REASON", "/reason", false),
    ("OBJECT", "/object", false),
    ("MESSAGE", "/message", false),
    ("COUNT", "/count", true),
    ("FIRST", "/first", true),
    ("BY", "/by", true),
];

/// Shows them.
pub async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, namespace, all_namespaces, warnings, watch, output } = arguments;
    let namespace = (!all_namespaces).then(|| namespace.unwrap_or_else(|| client.default_namespace().to_owned()));
    let api: Api<Event> = match &namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut fields = vec![format!("involvedObject.apiVersion={GROUP}/v1alpha1")];
    if let Some(device) = &device {
        fields.push("involvedObject.kind=DeviceInventory".to_owned());
        fields.push(format!("involvedObject.name={device}"));
    }
    if warnings {
        fields.push("type=Warning".to_owned());
    }
    let fields = fields.join(",");
    if watch {
        return follow(api, &fields, all_namespaces).await;
    }
    let mut events = listed(&api, &fields).await?;
    events.sort_by_key(last);
    let items: Vec<Value> = events.iter().map(item).collect();
    let (first, rest) = COLUMNS.split_at(1);
    let columns: Vec<Column> = if all_namespaces { [first, rest].concat() } else { rest.to_vec() };
    table::list(&columns, &items, output)
}

async fn listed(api: &Api<Event>, fields: &str) -> anyhow::Result<Vec<Event>> {
    let mut params = ListParams::default().fields(fields).limit(PAGE);
    let mut events = vec![];
    loop {
        let page = api.list(&params).await.context("cannot list events")?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        events.extend(page.items);
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(events),
        }
    }
}

/// Those that there are, by time; then each as it comes, until the reader has seen enough.
async fn follow(api: Api<Event>, fields: &str, is_all: bool) -> anyhow::Result<()> {
    let stream = watcher(api, watcher::Config::default().fields(fields)).default_backoff();
    pin_mut!(stream);
    let mut told: BTreeMap<String, Option<Timestamp>> = BTreeMap::new();
    let mut begun = vec![];
    while let Some(event) = stream.next().await {
        let new = match event {
            Ok(watcher::Event::Init | watcher::Event::Delete(_)) => vec![],
            Ok(watcher::Event::InitApply(event)) => {
                begun.push(event);
                vec![]
            }
            Ok(watcher::Event::InitDone) => {
                let mut all = std::mem::take(&mut begun);
                all.sort_by_key(last);
                all
            }
            Ok(watcher::Event::Apply(event)) => vec![event],
            Err(error @ watcher::Error::InitialListFailed(_)) => return Err(error).context("cannot list events"),
            Err(error) => {
                screen::warn(&format!("{error}; trying again"));
                vec![]
            }
        };
        for event in new {
            // A watch that is opened anew lists again what was told.
            let at = last(&event);
            if told.insert(event.uid().unwrap_or_default(), at) != Some(at) {
                print_line(&event, is_all)?;
            }
        }
    }
    Ok(())
}

fn print_line(event: &Event, is_all: bool) -> anyhow::Result<()> {
    let Value::Object(item) = item(event) else { return Ok(()) };
    let text = |name: &str| table::cell(item.get(name));
    let is_warning = event.type_.as_deref() == Some("Warning");
    let mut row: Vec<Cell> = if is_all { vec![plain(&text("namespace"))] } else { vec![] };
    row.push(plain(&text("time")));
    row.push(cell(if is_warning { WARNING } else { PLAIN }, &text("reason")));
    row.push(plain(&text("object")));
    row.push(plain(&text("message")));
    screen::print(&screen::line(&row))
}

/// When it last happened.
fn last(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    series.or(last).or(event.event_time.as_ref().map(|time| time.0)).or(event.creation_timestamp().map(|time| time.0))
}

fn item(event: &Event) -> Value {
    let whole = |time: Timestamp| crate::convert::whole_seconds(time).to_string();
    let object = &event.involved_object;
    let count = event.series.as_ref().and_then(|series| series.count).or(event.count).unwrap_or(1);
    let by = event.reporting_component.clone().filter(|by| !by.is_empty());
    json!({
        "namespace": event.namespace(),
        "time": last(event).map(whole),
        "type": event.type_,
        "reason": event.reason,
        "object": format!("{}/{}", object.kind.as_deref().unwrap_or_default(), object.name.as_deref().unwrap_or_default()),
        "message": event.message,
        "count": count,
        "first": event.event_time.as_ref().map(|time| time.0).or(event.first_timestamp.as_ref().map(|time| time.0)).map(whole),
        "by": by.or_else(|| event.source.as_ref()?.component.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_any_age_and_kind_has_a_time_and_a_count() {
        let read = |value: Value| {
            let mut value = value;
            value["metadata"] = json!({"name": "e", "namespace": "acme", "creationTimestamp": "2026-01-01T00:00:00Z"});
            value["involvedObject"] = json!({"kind": "DeviceInventory", "name": "web-1"});
            let event: Event = serde_json::from_value(value).unwrap();
            let item = item(&event);
            (item["time"].as_str().unwrap().to_owned(), item["count"].as_i64().unwrap(), item["object"].clone())
        };
        let object = json!("DeviceInventory/web-1");
        assert_eq!(read(json!({})), ("2026-01-01T00:00:00Z".into(), 1, object.clone()));
        let new = json!({"eventTime": "2026-01-02T00:00:00.123456Z"});
        assert_eq!(read(new), ("2026-01-02T00:00:00Z".into(), 1, object.clone()));
        let again = json!({"lastTimestamp": "2026-01-02T00:00:00Z", "series": {"count": 3, "lastObservedTime": "2026-01-03T00:00:00.000000Z"}});
        assert_eq!(read(again), ("2026-01-03T00:00:00Z".into(), 3, object.clone()));
        let old = json!({"lastTimestamp": "2026-01-04T00:00:00Z", "count": 7});
        assert_eq!(read(old), ("2026-01-04T00:00:00Z".into(), 7, object));
    }
}
