//! What is open on a device and what was fixed, by the vulnerability data that the store has.
//!
//! Nothing is guessed: where the data name a source package whose version the device does not tell, it is `Unknown` whether the
//! vulnerability is open (docs/vulnerabilities.md).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::report::{DeviceRef, Package};
use patchwarden_vulnerabilities::matching::{self, Assessment, Installed};
use patchwarden_vulnerabilities::{Platform, Statement};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::{Caller, OfDevice};
use super::devices::severity_word;
use super::discovery::{Built, Scanned, discovered, exposed_since};
use super::history::by_whom;
use super::page::{Cursor, Limit, Page, Params, Segments};
use super::problem::{Problem, Refusals};
use crate::gateway::devices::{Devices, Seen};
use crate::store::{Exploitation, FoundPackage, Named, PackageKey, Store, StoreError};

/// Packages, or changes, that are looked at together.
const BATCH: usize = 200;

/// Batches that one request looks at: what is left is for the next page.
const BATCHES: usize = 20;

/// Statements about one vulnerability that are shown and compared: a CVE of a kernel is in some hundred packages' records.
const STATEMENTS: usize = 5_000;

/// Which vulnerabilities of a device.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct OpenFilter {
    /// Those that are open, or of which it cannot be told.
    #[param(inline)]
    status: Option<Status>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<(PackageKey, String)>>,
}

/// Which fixed vulnerabilities of a device.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct FixedFilter {
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<(i64, String)>>,
}

/// Which vulnerability, and where.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AffectedFilter {
    /// The CVE, or the advisory where it names no CVE.
    #[param(min_length = 1, max_length = 253)]
    id: String,
    /// Of this client; without it of all, for which one needs the right in all namespaces.
    #[param(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    namespace: Option<String>,
    /// Those on which it is open, or of which it cannot be told.
    #[param(inline)]
    status: Option<Status>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<(usize, PackageKey)>>,
}

/// Whether a vulnerability is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// It is, by the data.
    Open,
    /// The data are about this package, and its version is not known or cannot be compared.
    Unknown,
}

/// A vulnerability of a package of a device.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vulnerability {
    /// The CVE, or the advisory where it names no CVE.
    pub id: String,
    /// Whether it is open.
    #[schema(inline)]
    pub status: Status,
    /// The package.
    pub package: String,
    /// Architecture.
    pub arch: String,
    /// Installed version.
    pub version: String,
    /// Since when the package is recorded there in this version, where that is known: since then the device has been exposed to it.
    pub installed_since: Option<Timestamp>,
    /// When it was discovered: since then the package is recorded there in versions that have it, and data that say so were imported. Of one that is
    /// open, where both are known.
    pub discovered_at: Option<Timestamp>,
    /// The version with the fix, of the package that the advisory names; absent where there is none.
    pub fixed_in: Option<String>,
    /// The worst that is said, or `Unknown`.
    pub severity: String,
    /// Who says so.
    pub advisories: Vec<String>,
    /// Since when it is known to be exploited (KEV), a date.
    pub exploited_since: Option<String>,
    /// How likely it is exploited within 30 days (EPSS), from 0 to 1.
    pub epss: Option<f64>,
}

/// A vulnerability on a device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffectedDevice {
    /// The client.
    pub namespace: String,
    /// The device.
    pub device: String,
    /// The vulnerability.
    #[serde(flatten)]
    pub vulnerability: Vulnerability,
}

/// A vulnerability that is open no more.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FixedVulnerability {
    /// The CVE, or the advisory where it names no CVE.
    pub id: String,
    /// The package.
    pub package: String,
    /// Architecture.
    pub arch: String,
    /// The version in which it was open.
    pub from: String,
    /// The version in which it is not; absent where the package was removed.
    pub to: Option<String>,
    /// When it was discovered, as of one that is open; absent where it was fixed before the data were imported.
    pub discovered_at: Option<Timestamp>,
    /// When the device's scan found the new version, or none, by the device's clock.
    pub fixed_at: Timestamp,
    /// `Order`, `BesideOrder` or `SomebodyElse`.
    pub by: String,
    /// Sequence of that order, `epoch.number`.
    pub sequence: Option<String>,
}

/// What is known of a vulnerability, wherever it is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// The CVE or advisory.
    pub id: String,
    /// Since when it is known to be exploited (KEV), a date.
    pub exploited_since: Option<String>,
    /// How likely it is exploited within 30 days (EPSS), from 0 to 1.
    pub epss: Option<f64>,
    /// When the data were imported.
    pub imported_at: Timestamp,
    /// What advisories say of packages, at most 5,000.
    pub statements: Vec<Said>,
}

/// An advisory's word on a package.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// The advisory.
    pub advisory: String,
    /// Of which distribution's release: `debian:12`.
    pub platform: String,
    /// The package, binary or source.
    pub package: String,
    /// In the vendor's words.
    pub severity: String,
}

/// What is known of the exploitation of vulnerabilities.
type Exploited = BTreeMap<String, Exploitation>;

impl Vulnerability {
    /// All of a package, by id.
    fn all(found: &FoundPackage, assessment: &Assessment<'_>, status: Option<Status>) -> Vec<Self> {
        let new = |id: &str, status| Self {
            id: id.to_owned(),
            status,
            package: found.package.name.clone(),
            arch: found.package.arch.clone(),
            version: found.package.version.clone(),
            installed_since: found.first_recorded,
            discovered_at: None,
            fixed_in: None,
            severity: "Unknown".to_owned(),
            advisories: Vec::new(),
            exploited_since: None,
            epss: None,
        };
        let open = assessment.open.values().map(|open| Self {
            fixed_in: open.fixed_in.map(str::to_owned),
            severity: severity_word(open.severity).to_owned(),
            advisories: open.advisories.iter().map(|it| (*it).to_owned()).collect(),
            ..new(open.id, Status::Open)
        });
        let unknown = assessment.unknown.iter().map(|id| new(id, Status::Unknown));
        let mut all: Vec<Self> =
            open.chain(unknown).filter(|one| status.is_none_or(|wanted| one.status == wanted)).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn with(mut self, exploited: &Exploited) -> Self {
        if let Some(known) = exploited.get(&self.id) {
            (self.exploited_since, self.epss) = told(known);
        }
        self
    }
}

fn told(known: &Exploitation) -> (Option<String>, Option<f64>) {
    (known.added.map(|date| date.to_string()), known.epss.map(|units| f64::from(units) / 100_000.0))
}

pub(super) fn installed(package: &Package) -> Installed<'_> {
    let Package { name, arch, version, source, source_version } = package;
    // An older agent leaves it out where it is the binary package's: none says nothing.
    Installed { name, arch, version, source, source_version: source_version.as_deref() }
}

/// The names by which statements may be about a package.
pub(super) fn names(platform: &Platform, package: &Package, into: &mut BTreeSet<String>) {
    into.insert(package.name.clone());
    into.insert(package.source.clone());
    into.extend(platform.signed_kernel(&package.source));
}

/// The sources of packages that a statement about a source may be about: see [`Platform::signed_kernel`].
fn sources(package: &str) -> Vec<String> {
    let mut all = vec![package.to_owned()];
    match package.strip_prefix("linux") {
        Some("") => all.extend(["", "-amd64", "-arm64", "-i386"].map(|flavour| format!("linux-signed{flavour}"))),
        Some(rest) if rest.starts_with('-') => all.push(format!("linux-signed{rest}")),
        _ => {}
    }
    all
}

fn platform(seen: &Seen) -> Option<Platform> {
    let os = &seen.inventory.report.as_ref()?.os;
    Platform::of_device(&os.name, &os.version)
}

/// The platform of a device of which something can be said.
fn told_platform(seen: &Seen, device: &DeviceRef) -> Result<Platform, Problem> {
    platform(seen).ok_or_else(|| {
        let os = seen.inventory.report.as_ref().map(|report| format!("{} {}", report.os.name, report.os.version));
        let os = os.unwrap_or_else(|| "a system that it has not told".to_owned());
        Problem::not_found(format!(
            "nothing is known of vulnerabilities of {device}: it runs {os}, of which no data are understood"
        ))
    })
}

/// An empty list would look as if nothing were open.
pub async fn imported(door: &Door) -> Result<Timestamp, Problem> {
    let imported = door.ask(|store| async move { store.vulnerabilities_imported().await }).await?;
    imported.ok_or_else(|| {
        Problem::not_found("no vulnerability data are imported: start the gateway with --vulnerabilities DIRECTORY")
    })
}

async fn exploited(door: &Door, ids: BTreeSet<String>) -> Result<Exploited, Problem> {
    door.ask(|store| async move { store.exploitations(&ids).await }).await
}

/// Lists the vulnerabilities of a device by package and id.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/vulnerabilities",
    tag = "vulnerabilities",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        OpenFilter
    ),
    responses((status = 200, body = Page<Vulnerability>), Refusals)
)]
pub async fn of_device(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
    Params(filter): Params<OpenFilter>,
) -> Result<Json<Page<Vulnerability>>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    open_on(&door, of, filter.status, filter.cursor, filter.limit.get()).await.map(Json)
}

/// A page of what is open on a device.
pub async fn open_on(
    door: &Door,
    of: OfDevice,
    status: Option<Status>,
    cursor: Option<Cursor<(PackageKey, String)>>,
    limit: usize,
) -> Result<Page<Vulnerability>, Problem> {
    let seen = super::devices::seen(door, &of)?;
    let after = Cursor::read(cursor.as_ref())?;
    imported(door).await?;
    let platform = told_platform(&seen, of.device())?;
    let seen = Scanned { platform, enrolled: seen.enrolled };
    let found = door.ask(move |store| async move { open(&store, of.device(), &seen, after, status, limit).await });
    let page = found.await?;
    let exploited = exploited(door, page.items.iter().map(|one| one.id.clone()).collect()).await?;
    Ok(page.map(|one| one.with(&exploited)))
}

async fn open(
    store: &Store,
    device: &DeviceRef,
    seen: &Scanned,
    after: Option<(PackageKey, String)>,
    status: Option<Status>,
    limit: usize,
) -> Result<Page<Vulnerability>, StoreError> {
    let mut items: Vec<(PackageKey, Vulnerability)> = Vec::new();
    let key = |(package, one): &(PackageKey, Vulnerability)| (package.clone(), one.id.clone());
    // What is left of the package that the page before ended in comes first.
    let mut from = after.as_ref().map(|(package, _)| package.clone());
    let mut with_first = from.is_some();
    for _ in 0..BATCHES {
        let mut batch = Vec::new();
        if let (true, Some(first)) = (std::mem::take(&mut with_first), &from) {
            batch.extend(store.package(device, first).await?);
        }
        let following = store.packages_of(device, from.as_ref(), BATCH).await?;
        let is_last = following.len() < BATCH;
        batch.extend(following);
        let mut wanted = BTreeSet::new();
        for found in &batch {
            names(&seen.platform, &found.package, &mut wanted);
        }
        let statements = store.statements_about(&seen.platform, &wanted).await?;
        for found in &batch {
            let package = PackageKey::of(found);
            let all = Vulnerability::all(found, &matching::assess(&statements, &installed(&found.package)), status);
            let all = seen.discovered(store, &statements, found, all).await?;
            let is_left = |one: &Vulnerability| after.as_ref().is_none_or(|(of, id)| *of != package || one.id > *id);
            items.extend(all.into_iter().filter(is_left).map(|one| (package.clone(), one)));
            if items.len() > limit {
                return Ok(Page::of(items, limit, key).map(|(_, one)| one));
            }
        }
        if is_last {
            return Ok(Page::of(items, limit, key).map(|(_, one)| one));
        }
        from = batch.last().map(PackageKey::of);
    }
    let next = from.map(|package| Page::<()>::token(&(package, LAST_ID)));
    Ok(Page { next, ..Page::of(items, limit, key).map(|(_, one)| one) })
}

/// No id comes after it: the next page begins with the next package.
const LAST_ID: &str = "\u{10ffff}";

/// Lists what was fixed on a device, whoever did it, the latest first: by the changes of its packages and the data that are there now.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/vulnerabilities/fixed",
    tag = "vulnerabilities",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        FixedFilter
    ),
    responses((status = 200, body = Page<FixedVulnerability>), Refusals)
)]
pub async fn fixed(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
    Params(filter): Params<FixedFilter>,
) -> Result<Json<Page<FixedVulnerability>>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    fixed_on(&door, of, filter.cursor, filter.limit.get()).await.map(Json)
}

/// A page of what was fixed on a device.
pub async fn fixed_on(
    door: &Door,
    of: OfDevice,
    cursor: Option<Cursor<(i64, String)>>,
    limit: usize,
) -> Result<Page<FixedVulnerability>, Problem> {
    let seen = super::devices::seen(door, &of)?;
    let after = Cursor::read(cursor.as_ref())?;
    imported(door).await?;
    let platform = told_platform(&seen, of.device())?;
    let seen = Scanned { platform, enrolled: seen.enrolled };
    door.ask(move |store| async move { fixes(&store, of.device(), &seen, after, limit).await }).await
}

async fn fixes(
    store: &Store,
    device: &DeviceRef,
    seen: &Scanned,
    after: Option<(i64, String)>,
    limit: usize,
) -> Result<Page<FixedVulnerability>, StoreError> {
    let mut items: Vec<(i64, FixedVulnerability)> = Vec::new();
    let key = |(number, one): &(i64, FixedVulnerability)| (*number, one.id.clone());
    // The change that the page before ended in may have more.
    let mut before = after.as_ref().map(|(number, _)| number.saturating_add(1));
    for _ in 0..BATCHES {
        let batch = store.changes_before(device, before, BATCH).await?;
        let mut wanted = BTreeSet::new();
        for (_, recorded) in &batch {
            wanted.insert(recorded.change.name.clone());
        }
        let built = Built::of(store, batch.iter().map(|(_, recorded)| &recorded.change)).await?;
        built.names(&seen.platform, &mut wanted);
        let statements = store.statements_about(&seen.platform, &wanted).await?;
        for (number, recorded) in &batch {
            let change = &recorded.change;
            let Some(from) = &change.before else { continue };
            let (by, sequence) = by_whom(change.by);
            let installed = built.changed(change, from);
            let mut fixed = match &change.after {
                Some(to) => matching::fixes(&statements, &installed, &built.changed(change, to)).fixed,
                // What is not there is not vulnerable.
                None => matching::assess(&statements, &installed).open.into_keys().collect(),
            };
            fixed.retain(|id| after.as_ref().is_none_or(|(last, until)| last != number || *id > until.as_str()));
            let known = store.known_since(&seen.platform, &fixed.iter().map(|id| (*id).to_owned()).collect()).await?;
            let earlier = if fixed.is_empty() { Vec::new() } else { seen.before(store, device, recorded).await? };
            let built_earlier = Built::of(store, earlier.iter().map(|recorded| &recorded.change)).await?;
            for id in fixed {
                let is_open = |version: &str| {
                    matching::assess(&statements, &built_earlier.changed(change, version)).open.contains_key(id)
                };
                let exposed = exposed_since(&earlier, from, None, is_open).or(seen.enrolled);
                let fixed = FixedVulnerability {
                    id: id.to_owned(),
                    package: change.name.clone(),
                    arch: change.arch.clone(),
                    from: from.clone(),
                    to: change.after.clone(),
                    discovered_at: discovered(known.get(id).copied(), exposed, Some(recorded.found_at)),
                    fixed_at: recorded.found_at,
                    by: by.to_owned(),
                    sequence: sequence.clone(),
                };
                items.push((*number, fixed));
            }
            if items.len() > limit {
                return Ok(Page::of(items, limit, key).map(|(_, one)| one));
            }
        }
        if batch.len() < BATCH {
            return Ok(Page::of(items, limit, key).map(|(_, one)| one));
        }
        before = batch.last().map(|(number, _)| *number);
    }
    let next = before.map(|number| Page::<()>::token(&(number, LAST_ID)));
    Ok(Page { next, ..Page::of(items, limit, key).map(|(_, one)| one) })
}

/// Tells what is known of a vulnerability, wherever it is. It takes no right beyond a token that counts: nothing of it is about devices.
#[utoipa::path(
    get,
    path = "/vulnerabilities/{id}",
    tag = "vulnerabilities",
    params(("id" = String, Path, description = "The CVE, or the advisory where it names no CVE.", min_length = 1, max_length = 253)),
    responses((status = 200, body = Known), Refusals)
)]
pub async fn known(
    State(door): State<Arc<Door>>,
    _caller: Caller,
    Segments(id): Segments<String>,
) -> Result<Json<Known>, Problem> {
    super::page::check_text("id", &id)?;
    let imported_at = imported(&door).await?;
    let of = id.clone();
    let said = door.ask(move |store| async move { store.statements_on(&of, STATEMENTS).await }).await?;
    let exploited = exploited(&door, [id.clone()].into()).await?;
    if said.is_empty() && exploited.is_empty() {
        return Err(Problem::not_found(format!("nothing is known of {id}")));
    }
    let (exploited_since, epss) = exploited.get(&id).map(told).unwrap_or_default();
    let statements = said.into_iter().map(|statement| Said {
        advisory: statement.advisory,
        platform: statement.platform.to_string(),
        package: statement.package,
        severity: severity_word(statement.severity).to_owned(),
    });
    Ok(Json(Known { id, exploited_since, epss, imported_at, statements: statements.collect() }))
}

/// Lists the devices that have a vulnerability, by the package that an advisory names, namespace and device.
#[utoipa::path(
    get,
    path = "/vulnerabilities",
    tag = "vulnerabilities",
    params(AffectedFilter),
    responses((status = 200, body = Page<AffectedDevice>), Refusals)
)]
pub async fn affected(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<AffectedFilter>,
) -> Result<Json<Page<AffectedDevice>>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let after = Cursor::read(filter.cursor.as_ref())?;
    imported(&door).await?;
    let asked = Asked {
        id: filter.id,
        status: filter.status,
        namespace: scope.namespace().map(str::to_owned),
        devices: door.shared.devices.clone(),
    };
    let limit = filter.limit.get();
    let page = door.ask(move |store| async move { asked.answer(&store, after, limit).await }).await?;
    let exploited = exploited(&door, page.items.iter().map(|(_, one)| one.id.clone()).collect()).await?;
    Ok(Json(page.map(|(device, one)| AffectedDevice {
        namespace: device.namespace,
        device: device.name,
        vulnerability: one.with(&exploited),
    })))
}

/// Where a vulnerability is.
struct Asked {
    id: String,
    status: Option<Status>,
    namespace: Option<String>,
    devices: Devices,
}

impl Asked {
    async fn answer(
        &self,
        store: &Store,
        after: Option<(usize, PackageKey)>,
        limit: usize,
    ) -> Result<Page<(DeviceRef, Vulnerability)>, StoreError> {
        let statements = store.statements_on(&self.id, STATEMENTS).await?;
        let packages: BTreeSet<&str> = statements.iter().map(|statement| statement.package.as_str()).collect();
        // A package is found by its own name first; by its source's only where that is another one.
        let mut lookups: Vec<(Named, String)> = packages.iter().map(|it| (Named::Binary, (*it).to_owned())).collect();
        let sources: BTreeSet<String> = packages.iter().flat_map(|it| sources(it)).collect();
        lookups.extend(sources.into_iter().map(|source| (Named::Source, source)));
        let mut items: Vec<((usize, PackageKey), (DeviceRef, Vulnerability))> = Vec::new();
        let (first, mut from) = after.map_or((0, None), |(lookup, key)| (lookup, Some(key)));
        let mut left = BATCHES;
        for (number, (named, name)) in lookups.iter().enumerate().skip(first) {
            let mut from = std::mem::take(&mut from);
            loop {
                let batch = store.packages_named(*named, name, self.namespace.as_deref(), from.as_ref(), BATCH).await?;
                for found in &batch {
                    if *named == Named::Source && packages.contains(found.package.name.as_str()) {
                        continue;
                    }
                    let one = self.of(store, &statements, found).await?;
                    items.extend(one.map(|one| ((number, PackageKey::of(found)), (found.device.clone(), one))));
                }
                if items.len() > limit {
                    return Ok(Page::of(items, limit, |(key, _)| key.clone()).map(|(_, item)| item));
                }
                left -= 1;
                from = batch.last().map(PackageKey::of);
                if batch.len() < BATCH {
                    break;
                }
                if let (0, Some(from)) = (left, &from) {
                    let next = Some(Page::<()>::token(&(number, from)));
                    return Ok(Page { next, ..Page::of(items, limit, |(key, _)| key.clone()).map(|(_, item)| item) });
                }
            }
            if left == 0 && number + 1 < lookups.len() {
                let start = PackageKey::first();
                let next = Some(Page::<()>::token(&(number + 1, start)));
                return Ok(Page { next, ..Page::of(items, limit, |(key, _)| key.clone()).map(|(_, item)| item) });
            }
        }
        Ok(Page::of(items, limit, |(key, _)| key.clone()).map(|(_, item)| item))
    }

    async fn of(
        &self,
        store: &Store,
        statements: &[Statement],
        found: &FoundPackage,
    ) -> Result<Option<Vulnerability>, StoreError> {
        let Some(seen) = self.devices.cached(&found.device) else { return Ok(None) };
        let Some(platform) = platform(&seen) else { return Ok(None) };
        let of_platform: Vec<Statement> =
            statements.iter().filter(|statement| statement.platform == platform).cloned().collect();
        let assessment = matching::assess(&of_platform, &installed(&found.package));
        let mut all = Vulnerability::all(found, &assessment, self.status);
        all.retain(|one| one.id == self.id);
        let scanned = Scanned { platform, enrolled: seen.enrolled };
        Ok(scanned.discovered(store, &of_platform, found, all).await?.pop())
    }
}
