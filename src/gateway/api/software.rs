//! What is installed where.

use std::cmp::Ordering;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::versions::{deb, rpm};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::{Caller, OfDevice, Scope};
use super::page::{Cursor, Limit, Page, Params, Segments};
use super::problem::{Problem, Refusals};
use crate::store::{FoundPackage, Named, PackageKey, Store, StoreError};

/// Packages that are read at a time where some are left out.
const BATCH: usize = 1_000;

/// Batches that one request reads at most: what is left is for the next page, which may be empty for that.
const BATCHES: usize = 20;

/// Which packages of a device.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct OfDeviceFilter {
    /// Those with this text in their name or their source's; upper and lower case are the same.
    #[param(max_length = 200)]
    text: Option<String>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<PackageKey>>,
}

/// Which packages, on which devices.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SearchFilter {
    /// Of this client; without it of all, for which one needs the right in all namespaces.
    #[param(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    namespace: Option<String>,
    /// The package's name, as it is.
    #[param(min_length = 1, max_length = 253)]
    name: String,
    /// Whether that is the name of the package itself, or of the source that it was built from.
    #[serde(default)]
    #[param(inline)]
    by: By,
    /// Those whose version compares with `version` like this. With each device's own order: dpkg's or rpm's.
    #[param(inline)]
    than: Option<Than>,
    /// The version to compare with.
    #[param(min_length = 1, max_length = 253)]
    version: Option<String>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<PackageKey>>,
}

/// Whose name a name is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The package's.
    #[default]
    Package,
    /// Of the source package that it was built from.
    Source,
}

/// How a version compares with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Than {
    /// It is older.
    Older,
    /// It is the same to the package manager.
    Same,
    /// It is newer.
    Newer,
}

/// A package somewhere.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstalledOn {
    /// The client.
    pub namespace: String,
    /// The device.
    pub device: String,
    /// The package.
    #[serde(flatten)]
    pub package: InstalledPackage,
}

/// An installed package.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstalledPackage {
    /// Binary package name.
    pub name: String,
    /// Architecture.
    pub arch: String,
    /// Installed version.
    pub version: String,
    /// The package that it was built from.
    pub source: String,
    /// When it was first recorded there in this version, where that is known.
    pub first_recorded: Option<Timestamp>,
}

impl InstalledPackage {
    fn of(found: FoundPackage) -> Self {
        let FoundPackage { device: _, package, first_recorded } = found;
        Self {
            name: package.name,
            arch: package.arch,
            version: package.version,
            source: package.source,
            first_recorded,
        }
    }
}

/// Whose order of versions a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// dpkg's.
    Deb,
    /// rpm's.
    Rpm,
}

impl Order {
    /// By `ID` of a device's os-release(5): that of the distributions on which the agent works with apt, dnf or zypper.
    pub(super) fn of(os: &str) -> Option<Self> {
        match os {
            "debian" | "ubuntu" | "raspbian" | "linuxmint" | "pop" | "kali" | "devuan" => Some(Self::Deb),
            "rhel"
            | "centos"
            | "fedora"
            | "rocky"
            | "almalinux"
            | "ol"
            | "amzn"
            | "sles"
            | "sled"
            | "opensuse-leap"
            | "opensuse-tumbleweed" => Some(Self::Rpm),
            _ => None,
        }
    }

    fn is_version(self, version: &str) -> bool {
        match self {
            Self::Deb => deb::is_valid(version),
            Self::Rpm => rpm::is_valid(version),
        }
    }

    fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Deb => deb::compare(a, b),
            Self::Rpm => rpm::compare(a, b),
        }
    }
}

impl Than {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Older => ordering.is_lt(),
            Self::Same => ordering.is_eq(),
            Self::Newer => ordering.is_gt(),
        }
    }
}

/// Lists the packages of a device, by name.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/software",
    tag = "software",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        OfDeviceFilter
    ),
    responses((status = 200, body = Page<InstalledPackage>), Refusals)
)]
pub async fn of_device(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
    Params(filter): Params<OfDeviceFilter>,
) -> Result<Json<Page<InstalledPackage>>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    packages(&door, of, filter.text, filter.cursor, filter.limit.get()).await.map(Json)
}

/// A page of the packages of a device.
pub async fn packages(
    door: &Door,
    of: OfDevice,
    text: Option<String>,
    cursor: Option<Cursor<PackageKey>>,
    limit: usize,
) -> Result<Page<InstalledPackage>, Problem> {
    super::devices::known(door, &of).await?;
    let after = Cursor::read(cursor.as_ref())?;
    let text = text.map(|text| text.to_lowercase());
    let matches = move |found: &FoundPackage| {
        let has = |text: &String| {
            found.package.name.to_lowercase().contains(text) || found.package.source.to_lowercase().contains(text)
        };
        text.as_ref().is_none_or(has)
    };
    let found = door.ask(move |store| async move { sift(&store, &Among::Of(of), limit, after, matches).await });
    Ok(found.await?.map(InstalledPackage::of))
}

/// Lists where a package is installed, by namespace, device and package: "which devices have openssl older than 3.0.17?"
#[utoipa::path(
    get,
    path = "/search/software",
    tag = "software",
    params(SearchFilter),
    responses((status = 200, body = Page<InstalledOn>), Refusals)
)]
pub async fn search(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<SearchFilter>,
) -> Result<Json<Page<InstalledOn>>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let after = Cursor::read(filter.cursor.as_ref())?;
    let comparison = match (filter.than, filter.version.clone()) {
        (Some(than), Some(version)) if deb::is_valid(&version) || rpm::is_valid(&version) => Some((than, version)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(Problem::bad("version", "is no version to dpkg or rpm")),
        (Some(_), None) => return Err(Problem::bad("version", "is needed where `than` is given")),
        (None, Some(_)) => {
            return Err(Problem::bad("than", "is needed where `version` is given: older, same or newer"));
        }
    };
    let devices = door.shared.devices.clone();
    let matches = move |found: &FoundPackage| {
        // The store keeps what a machine had that is no device any more.
        let Some(seen) = devices.cached(&found.device) else { return false };
        let Some((than, version)) = &comparison else { return true };
        // What has no known order, or no version in it, is neither older nor newer.
        let order = seen.inventory.report.as_ref().and_then(|report| Order::of(&report.os.name));
        order.is_some_and(|order| {
            let installed = &found.package.version;
            order.is_version(installed) && order.is_version(version) && than.holds(order.compare(installed, version))
        })
    };
    let limit = filter.limit.get();
    let named = match filter.by {
        By::Package => Named::Binary,
        By::Source => Named::Source,
    };
    let among = Among::Named(named, filter.name, scope);
    let found = door.ask(move |store| async move { sift(&store, &among, limit, after, matches).await });
    Ok(Json(found.await?.map(|found| InstalledOn {
        namespace: found.device.namespace.clone(),
        device: found.device.name.clone(),
        package: InstalledPackage::of(found),
    })))
}

/// Packages that are gone through.
enum Among {
    /// All of a device.
    Of(OfDevice),
    /// Those of a name.
    Named(Named, String, Scope),
}

impl Among {
    async fn batch(&self, store: &Store, after: Option<&PackageKey>) -> Result<Vec<FoundPackage>, StoreError> {
        match self {
            Self::Of(device) => store.packages_of(device.device(), after, BATCH).await,
            Self::Named(named, name, scope) => {
                store.packages_named(*named, name, scope.namespace(), after, BATCH).await
            }
        }
    }
}

/// A page of those that match. Batch by batch, so that memory is bounded; a page may end early, where many do not match.
async fn sift(
    store: &Store,
    among: &Among,
    limit: usize,
    mut after: Option<PackageKey>,
    matches: impl Fn(&FoundPackage) -> bool,
) -> Result<Page<FoundPackage>, StoreError> {
    let mut items = Vec::new();
    for _ in 0..BATCHES {
        let batch = among.batch(store, after.as_ref()).await?;
        let is_last = batch.len() < BATCH;
        if let Some(last) = batch.last() {
            after = Some(PackageKey::of(last));
        }
        items.extend(batch.into_iter().filter(|found| matches(found)));
        if items.len() > limit || is_last {
            return Ok(Page::of(items, limit, PackageKey::of));
        }
    }
    let mut page = Page::of(items, limit, PackageKey::of);
    page.next = after.as_ref().map(Page::<FoundPackage>::token);
    Ok(page)
}
