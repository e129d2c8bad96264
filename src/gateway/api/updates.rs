//! Updates that devices lack.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::report::{Classification, DeviceRef, HeldReason, Update};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::{Caller, OfDevice};
use super::devices::{severity_word, word};
use super::page::{Cursor, Limit, Page, Params};
use super::problem::{Problem, Refusals};
use crate::gateway::devices::Seen;

/// Which updates.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Of this client; without it of all, for which one needs the right in all namespaces.
    #[param(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    namespace: Option<String>,
    /// This update: an advisory (`RHSA-2026:1234`, `KB5031356`) or a package URL with the new version.
    #[param(max_length = 253)]
    update: Option<String>,
    /// Those that name this CVE. apt tells none with its updates.
    #[param(max_length = 20)]
    cve: Option<String>,
    /// Those that bring this binary package to another version.
    #[param(max_length = 253)]
    package: Option<String>,
    /// Those of this kind: `Security`, `Updates`, `Unclassified`, `FirstInstall` or `Removal`.
    #[param(inline)]
    classification: Option<Kind>,
    /// Those with this text in their id or title; upper and lower case are the same.
    #[param(max_length = 200)]
    text: Option<String>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<Vec<String>>>,
}

/// Kind of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Kind {
    /// From a security suite or advisory.
    Security,
    /// Another one of the vendor's.
    Updates,
    /// The source of the packages does not say.
    Unclassified,
    /// An application that a policy wants and the device has not.
    FirstInstall,
    /// An application that the device has and a policy does not want.
    Removal,
}

/// An update that is not installed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// The advisory, or the package URL of the source package in its new version.
    pub update: String,
    /// One line for people.
    pub title: String,
    /// `Security`, `Updates`, `Unclassified`, `FirstInstall` or `Removal`.
    pub classification: String,
    /// `Critical`, `High`, `Medium`, `Low` or `Unknown`, by the vendor.
    pub severity: String,
    /// The CVEs that the device tells with it.
    pub cves: Vec<String>,
    /// When the vendor published it, where that is told.
    pub published: Option<Timestamp>,
    /// When a device of this client was first offered it.
    pub first_seen: Option<Timestamp>,
    /// The packages that it changes.
    pub packages: Vec<Change>,
    /// Where they come from.
    pub origin: String,
    /// Bytes to download.
    pub size_bytes: u64,
    /// Whether it needs a restart: `Yes`, `No` or `Unknown`.
    pub requires_restart: String,
    /// Whether the device itself holds it back.
    pub held: bool,
    /// As what: `Hold` (a hold, an exclude or a lock of its package manager, or its owner's limits), `Pinned` (a pin of apt's), `Phased` (the
    /// vendor brings it to some machines first) or `Unauthenticated` (no signature vouches for where it comes from).
    pub held_reason: Option<String>,
    /// Whether no signature vouches for where its packages come from.
    pub unauthenticated: bool,
    /// Whether all its files lie on the device.
    pub downloaded: bool,
}

/// A package that goes to another version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Binary package name.
    pub name: String,
    /// Architecture.
    pub arch: String,
    /// The version that is installed.
    pub installed: String,
    /// The version that it is brought to.
    pub candidate: String,
}

/// An update that a device lacks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingOn {
    /// The client.
    pub namespace: String,
    /// The device.
    pub device: String,
    /// The update.
    #[serde(flatten)]
    pub missing: Missing,
}

/// An update, and how many devices lack it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Offered {
    /// The client.
    pub namespace: String,
    /// The advisory, or the package URL of the source package in its new version.
    pub update: String,
    /// One line for people.
    pub title: String,
    /// `Security`, `Updates`, `Unclassified`, `FirstInstall` or `Removal`.
    pub classification: String,
    /// The worst that any device tells.
    pub severity: String,
    /// The CVEs that any device tells with it.
    pub cves: Vec<String>,
    /// When the vendor published it, where that is told.
    pub published: Option<Timestamp>,
    /// When a device of this client was first offered it.
    pub first_seen: Option<Timestamp>,
    /// How many devices lack it.
    pub devices: u64,
}

impl Filter {
    fn matches(&self, text: Option<&str>, update: &Update) -> bool {
        let kind = match update.classification {
            Classification::Security => Kind::Security,
            Classification::Updates => Kind::Updates,
            Classification::Unclassified => Kind::Unclassified,
            Classification::FirstInstall => Kind::FirstInstall,
            Classification::Removal => Kind::Removal,
        };
        let has = |text: &str| update.id.to_lowercase().contains(text) || update.title.to_lowercase().contains(text);
        self.update.as_ref().is_none_or(|id| update.id == *id)
            && self.cve.as_ref().is_none_or(|cve| update.cves.contains(cve))
            && self.package.as_ref().is_none_or(|name| update.packages.iter().any(|package| package.name == *name))
            && self.classification.is_none_or(|wanted| wanted == kind)
            && text.is_none_or(has)
    }
}

impl Missing {
    fn of(update: &Update, first_seen: Option<Timestamp>) -> Self {
        let packages = update.packages.iter().cloned().map(|package| Change {
            name: package.name,
            arch: package.arch,
            installed: package.installed,
            candidate: package.candidate,
        });
        Self {
            update: update.id.clone(),
            title: update.title.clone(),
            classification: classification_word(update.classification).to_owned(),
            severity: severity_word(update.severity).to_owned(),
            cves: update.cves.clone(),
            published: update.published,
            first_seen,
            packages: packages.collect(),
            origin: update.origin.clone(),
            size_bytes: update.size_bytes,
            requires_restart: word(update.requires_restart).to_owned(),
            held: update.held,
            held_reason: update.held.then(|| held_word(update.held_reason).to_owned()),
            unauthenticated: update.unauthenticated,
            downloaded: update.downloaded,
        }
    }
}

fn held_word(reason: HeldReason) -> &'static str {
    match reason {
        HeldReason::Hold => "Hold",
        HeldReason::Pinned => "Pinned",
        HeldReason::Phased => "Phased",
        HeldReason::Unauthenticated => "Unauthenticated",
    }
}

fn classification_word(classification: Classification) -> &'static str {
    match classification {
        Classification::Security => "Security",
        Classification::Updates => "Updates",
        Classification::Unclassified => "Unclassified",
        Classification::FirstInstall => "FirstInstall",
        Classification::Removal => "Removal",
    }
}

fn offered(seen: &Seen) -> &[Update] {
    seen.inventory.report.as_ref().map_or(&[], |report| report.updates.as_slice())
}

type Sightings = BTreeMap<(String, String), Timestamp>;

/// When updates were first offered to a client's devices.
async fn sightings(door: &Door, updates: Vec<(String, String)>) -> Result<Sightings, Problem> {
    door.ask(|store| async move { store.first_sightings(&updates).await }).await
}

/// What one device lacks.
pub(super) async fn of_device(door: &Door, device: &DeviceRef, seen: &Seen) -> Result<Vec<Missing>, Problem> {
    let key = |update: &Update| (device.namespace.clone(), update.id.clone());
    let first = sightings(door, offered(seen).iter().map(key).collect()).await?;
    Ok(offered(seen).iter().map(|update| Missing::of(update, first.get(&key(update)).copied())).collect())
}

/// A page of what one device lacks, by id.
pub async fn missing_on(
    door: &Door,
    of: &OfDevice,
    cursor: Option<Cursor<[String; 1]>>,
    limit: usize,
) -> Result<Page<Missing>, Problem> {
    let seen = super::devices::seen(door, of)?;
    let after = Cursor::read(cursor.as_ref())?.map(|[id]| id);
    let mut found = of_device(door, of.device(), &seen).await?;
    found.retain(|missing| after.as_ref().is_none_or(|after| missing.update > *after));
    found.sort_by(|a, b| a.update.cmp(&b.update));
    Ok(Page::of(found, limit, |missing| [missing.update.clone()]))
}

/// Lists updates by namespace and id, each with the number of devices that lack it.
#[utoipa::path(get, path = "/updates", tag = "updates", params(Filter), responses((status = 200, body = Page<Offered>), Refusals))]
pub async fn list(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Result<Json<Page<Offered>>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let after = Cursor::read(filter.cursor.as_ref())?.map(pair).transpose()?;
    let limit = filter.limit.get();
    let all = door.shared.devices.all(scope.namespace());
    let found = door.work_out(move || group(&filter, after.as_ref(), &all)).await?;
    let found: Vec<_> = found.into_values().take(limit + 1).collect();
    let mut page = Page::of(found, limit, |update| (update.namespace.clone(), update.update.clone()));
    let key = |update: &Offered| (update.namespace.clone(), update.update.clone());
    let first = sightings(&door, page.items.iter().map(key).collect()).await?;
    for update in &mut page.items {
        update.first_seen = first.get(&key(update)).copied();
    }
    Ok(Json(page))
}

fn group(
    filter: &Filter,
    after: Option<&(String, String)>,
    devices: &[(DeviceRef, Arc<Seen>)],
) -> BTreeMap<(String, String), Offered> {
    let text = filter.text.as_deref().map(str::to_lowercase);
    // By reference: a fleet offers the same updates many times over.
    let mut found: BTreeMap<(&str, &str), (Vec<&Update>, u64)> = BTreeMap::new();
    for (device, seen) in devices {
        for update in offered(seen).iter().filter(|update| filter.matches(text.as_deref(), update)) {
            let key = (device.namespace.as_str(), update.id.as_str());
            if after.is_some_and(|(namespace, id)| key <= (namespace.as_str(), id.as_str())) {
                continue;
            }
            let (tellings, devices) = found.entry(key).or_default();
            *devices += 1;
            // Devices mostly tell the same; what differs is worth remembering, within bounds.
            if tellings.len() < TELLINGS
                && !tellings.iter().any(|it| it.severity == update.severity && it.cves == update.cves)
            {
                tellings.push(update);
            }
        }
    }
    let one = |((namespace, id), (tellings, devices)): ((&str, &str), (Vec<&Update>, u64))| {
        let first = tellings.first()?;
        let mut cves: Vec<String> = tellings.iter().flat_map(|update| update.cves.iter().cloned()).collect();
        cves.sort();
        cves.dedup();
        let severity = tellings.iter().map(|update| update.severity).max()?;
        let offered = Offered {
            namespace: namespace.to_owned(),
            update: id.to_owned(),
            title: first.title.clone(),
            classification: classification_word(first.classification).to_owned(),
            severity: severity_word(severity).to_owned(),
            cves,
            published: tellings.iter().find_map(|update| update.published),
            first_seen: None,
            devices,
        };
        Some(((namespace.to_owned(), id.to_owned()), offered))
    };
    found.into_iter().filter_map(one).collect()
}

/// Different tellings of one update that are looked at.
const TELLINGS: usize = 8;

/// Lists what is missing where, by namespace, device and id: "where is KB5031356 missing?"
#[utoipa::path(
    get,
    path = "/updates/missing",
    tag = "updates",
    params(Filter),
    responses((status = 200, body = Page<MissingOn>), Refusals)
)]
pub async fn missing(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Result<Json<Page<MissingOn>>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let after = match Cursor::read(filter.cursor.as_ref())? {
        None => None,
        Some(key) => match <[String; 3]>::try_from(key) {
            Ok([namespace, name, update]) => Some((DeviceRef { namespace, name }, update)),
            Err(_) => return Err(Problem::bad("cursor", "must be `next` of the page before, of the same list")),
        },
    };
    let limit = filter.limit.get();
    let text = filter.text.as_deref().map(str::to_lowercase);
    // What is left of a device that the page before ended in comes first.
    let is_left =
        |device: &DeviceRef, update: &Update| after.as_ref().is_none_or(|(of, id)| (device, &update.id) > (of, id));
    let lacks =
        |device: &DeviceRef, update: &Update| filter.matches(text.as_deref(), update) && is_left(device, update);
    let matches = |device: &DeviceRef, seen: &Seen| offered(seen).iter().any(|update| lacks(device, update));
    let devices = door.shared.devices.page(scope.namespace(), None, limit + 1, matches);
    let mut found: Vec<(&DeviceRef, &Update)> = Vec::new();
    for (device, seen) in &devices {
        let mut updates: Vec<&Update> = offered(seen).iter().filter(|update| lacks(device, update)).collect();
        updates.sort_by(|a, b| a.id.cmp(&b.id));
        found.extend(updates.into_iter().map(|update| (device, update)));
        if found.len() > limit {
            break;
        }
    }
    let key = |(device, update): &(&DeviceRef, &Update)| (device.namespace.clone(), update.id.clone());
    let first = sightings(&door, found.iter().take(limit).map(key).collect()).await?;
    let page =
        Page::of(found, limit, |(device, update)| (device.namespace.clone(), device.name.clone(), update.id.clone()));
    Ok(Json(page.map(|(device, update)| MissingOn {
        namespace: device.namespace.clone(),
        device: device.name.clone(),
        missing: Missing::of(update, first.get(&key(&(device, update))).copied()),
    })))
}

fn pair(key: Vec<String>) -> Result<(String, String), Problem> {
    match <[String; 2]>::try_from(key) {
        Ok([namespace, id]) => Ok((namespace, id)),
        Err(_) => Err(Problem::bad("cursor", "must be `next` of the page before, of the same list")),
    }
}
