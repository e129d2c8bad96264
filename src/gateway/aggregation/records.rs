//! Records of the store as objects: by the API's own questions, device after device.
//!
//! A list goes through the devices of its namespaces in their order, so that a page ends with a place: the device, and where it stopped
//! among that one's records. A place gives no right: what may be seen is asked of the [`Scope`] again.

use std::time::Duration;

use axum::http::StatusCode;
use patchwarden_protocol::report::DeviceRef;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::kinds::{Kind, Source};
use super::options::{ListOptions, Selected};
use crate::gateway::api::auth::{OfDevice, Scope};
use crate::gateway::api::page::{Cursor, MAX_LIMIT, Page};
use crate::gateway::api::problem::Problem;
use crate::gateway::api::{Door, history, software, updates, vulnerabilities};

/// Devices that one page goes through at most: what is left is for the next one, which may be empty for that.
const DEVICES: usize = 500;

/// A page ends after this time, too: of devices without any vulnerability each takes a while to be found so.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// Objects of a list that is asked for as a whole: more must be asked for page by page. Some hundred bytes each.
const WHOLE: usize = 2_000;

/// Warnings of one answer: the last says how many there are beside them.
const WARNINGS: usize = 5;

/// Objects of one kind.
#[derive(Debug, Default)]
pub struct Listed {
    /// The objects.
    pub items: Vec<Value>,
    /// Where the next page begins; none on the last one.
    pub next: Option<String>,
    /// What is not in the list, and why.
    pub warnings: Vec<String>,
}

/// Where a page begins: at this device, after this place among its records, or after the device if there is none.
pub type Place = (String, String, Option<String>);

/// A list, or a page of it.
pub async fn list(door: &Door, kind: &Kind, scope: &Scope, options: &ListOptions) -> Result<Listed, Problem> {
    // Of vulnerabilities an empty list would look as if nothing were open.
    if matches!(kind.source, Source::Vulnerabilities | Source::Fixed) {
        vulnerabilities::imported(door).await?;
    }
    let is_whole = options.limit.is_none();
    let most = options.limit.map_or(WHOLE, |limit| limit.min(usize::from(MAX_LIMIT)));
    let mut place = options.place.clone();
    let mut listed = Listed::default();
    loop {
        let Paged { items, next, warnings } =
            page(door, kind, scope, &options.selected, place, most - listed.items.len()).await?;
        listed.items.extend(items);
        listed.warnings.extend(warnings);
        let Some(next) = next else { break };
        if !is_whole {
            listed.next = Some(Page::<()>::token(&next));
            break;
        }
        if listed.items.len() >= most {
            return Err(Problem::bad("limit", &format!("is needed: there are more than {WHOLE} of them")));
        }
        place = Some(next);
    }
    let others = listed.warnings.len().saturating_sub(WARNINGS);
    if others > 0 {
        listed.warnings.truncate(WARNINGS);
        listed.warnings.push(format!("and of {others} more devices"));
    }
    Ok(listed)
}

/// What [`list`] is made of, with the place as it is.
struct Paged {
    items: Vec<Value>,
    next: Option<Place>,
    warnings: Vec<String>,
}

/// A page of at most so many, from a place on.
async fn page(
    door: &Door,
    kind: &Kind,
    scope: &Scope,
    selected: &Selected,
    place: Option<Place>,
    most: usize,
) -> Result<Paged, Problem> {
    let mut paged = Paged { items: Vec::new(), next: None, warnings: Vec::new() };
    let is_elsewhere = |namespace: &String| scope.namespace().is_some_and(|scope| scope != namespace);
    if selected.namespace.as_ref().is_some_and(is_elsewhere) {
        return Ok(paged);
    }
    // Of a name the device is known, as of a selector; that one may be gone from the API server, with its records still there.
    let named = selected.name.as_deref().and_then(|name| name.split_once('.')).map(|(device, _)| device.to_owned());
    let wanted = selected.device.clone().or(named);
    let namespace = selected.namespace.as_deref().or(scope.namespace());
    let one = wanted.as_ref().zip(namespace).map(|(name, namespace)| device_ref(namespace, name));
    let begun = place.map(|(namespace, name, token)| (device_ref(&namespace, &name), token));
    // The device in which the page before has ended comes first.
    let (after, unfinished) = match begun {
        Some((device, Some(token))) => (Some(device.clone()), Some((device, token))),
        Some((device, None)) => (Some(device), None),
        None => (None, None),
    };
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
    let following: Vec<DeviceRef> = if let Some(one) = &one {
        let is_left = after.as_ref().is_none_or(|after| one > after);
        is_left.then(|| one.clone()).into_iter().collect()
    } else {
        let devices = &door.shared().devices;
        let found = devices.page(namespace, after.as_ref(), DEVICES, |device, _| is_wanted(&device.name));
        found.into_iter().map(|(device, _)| device).collect()
    };
    let is_last = following.len() < DEVICES;
    let mut last = after;
    let unfinished = unfinished.into_iter().map(|(device, token)| (device, Some(token)));
    let mut places = unfinished.chain(following.into_iter().map(|device| (device, None))).peekable();
    let asked_at = Instant::now();
    while let Some((device, mut token)) = places.next() {
        // A place that somebody has made up, or of another list.
        let Some(of) = scope.device(&device).filter(|_| is_wanted(&device.name)) else {
            return Err(Problem::bad("continue", "must be metadata.continue of the page before, of the same list"));
        };
        loop {
            let room = most - paged.items.len();
            if room == 0 {
                paged.next = last.map(|last| (last.namespace, last.name, None));
                return Ok(paged);
            }
            let records = match of_device(door, kind, &of, token, room.min(usize::from(MAX_LIMIT))).await {
                Ok(records) => records,
                // It has none of these, and why; the others have.
                Err(problem) if problem.status() == StatusCode::NOT_FOUND && one.is_none() => {
                    paged.warnings.push(problem.detail);
                    break;
                }
                Err(problem) => return Err(problem),
            };
            let objects = records.items.into_iter().map(|record| kind.object(&device, record));
            paged.items.extend(objects.filter(|object| {
                selected.name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str())
            }));
            token = records.next;
            if token.is_none() {
                break;
            }
            if paged.items.len() == most {
                paged.next = token.map(|token| (device.namespace, device.name, Some(token)));
                return Ok(paged);
            }
        }
        last = Some(device);
        if asked_at.elapsed() >= PAGE_TIME && places.peek().is_some() {
            break;
        }
    }
    if !is_last || places.peek().is_some() {
        paged.next = last.map(|last| (last.namespace, last.name, None));
    }
    Ok(paged)
}

fn device_ref(namespace: &str, name: &str) -> DeviceRef {
    DeviceRef { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// An object by its name.
pub async fn get(door: &Door, kind: &Kind, of: &OfDevice, name: &str) -> Result<Value, Problem> {
    let mut token = None;
    loop {
        let page = of_device(door, kind, of, token, usize::from(MAX_LIMIT)).await?;
        let objects = page.items.into_iter().map(|record| kind.object(of.device(), record));
        if let Some(object) = objects.into_iter().find(|object| object["metadata"]["name"] == name) {
            return Ok(object);
        }
        let Some(next) = page.next else {
            let resource = kind.resource;
            return Err(Problem::not_found(format!("{resource}.{} \"{name}\" not found", super::kinds::GROUP)));
        };
        token = Some(next);
    }
}

/// A page of a device's records: the API's own answer.
async fn of_device(
    door: &Door,
    kind: &Kind,
    of: &OfDevice,
    token: Option<String>,
    limit: usize,
) -> Result<Page<Map<String, Value>>, Problem> {
    match kind.source {
        Source::Software => written(software::packages(door, of.clone(), None, cursor(token), limit).await?),
        Source::Updates => written(updates::missing_on(door, of, cursor(token), limit).await?),
        Source::Changes => written(history::package_changes(door, of.clone(), cursor(token), limit).await?),
        Source::Installs => written(history::orders(door, of.clone(), cursor(token), limit).await?),
        Source::Vulnerabilities => {
            written(vulnerabilities::open_on(door, of.clone(), None, cursor(token), limit).await?)
        }
        Source::Fixed => written(vulnerabilities::fixed_on(door, of.clone(), cursor(token), limit).await?),
    }
}

fn cursor<K: DeserializeOwned>(token: Option<String>) -> Option<Cursor<K>> {
    token.map(Cursor::from)
}

fn written<T: Serialize>(page: Page<T>) -> Result<Page<Map<String, Value>>, Problem> {
    let mut items = Vec::with_capacity(page.items.len());
    for item in page.items {
        match serde_json::to_value(item) {
            Ok(Value::Object(record)) => items.push(record),
            other => {
                tracing::error!(?other, "a record of the store is no JSON object");
                return Err(Problem::unavailable("a record cannot be written; the gateway's log says which"));
            }
        }
    }
    Ok(Page { items, next: page.next })
}
