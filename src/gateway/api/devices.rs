//! Devices: what they are, and what they lack.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::report::{
    self, DeviceRef, OperatingSystem, Problem as Trouble, ProblemCode, Severity, Tristate,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Door;
use super::auth::{Caller, OfDevice};
use super::page::{Cursor, Limit, Page, Params, Segments};
use super::problem::{Problem, Refusals};
use super::updates::Missing;
use crate::api::device_inventory::Lifecycle;
use crate::gateway::devices::Seen;

/// Which devices.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Of this client; without it of all, for which one needs the right in all namespaces.
    #[param(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    namespace: Option<String>,
    /// Those with this text in their name, operating system, or its version; upper and lower case are the same.
    #[param(max_length = 200)]
    text: Option<String>,
    /// `ID` of os-release(5): `debian`.
    #[param(max_length = 63)]
    os: Option<String>,
    /// Those that have a session, or that have none.
    online: Option<bool>,
    /// Those that wait for a restart, or that do not.
    restart: Option<bool>,
    /// Entries of the page.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 100)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, max_length = 2000)]
    cursor: Option<Cursor<(String, String)>>,
}

/// A device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its client.
    pub namespace: String,
    /// Name of its DeviceInventory.
    pub name: String,
    /// Whether it is in use: `Active` or `Retired`.
    pub lifecycle: String,
    /// Whether it has a session.
    pub online: bool,
    /// Since when it has one, or has none.
    pub since: Option<Timestamp>,
    /// By how many seconds its clock was behind the gateway's when its session began, negative: ahead; absent where that was 30 or less.
    /// With more than 120 it takes no orders.
    pub clock_skew_seconds: Option<i64>,
    /// Until when the certificate counts with which it began its last session; absent where it has had none.
    pub certificate_until: Option<Timestamp>,
    /// Its key waits for a person who accepts it.
    pub key_pending: bool,
    /// What it has reported; absent where it has not.
    pub report: Option<Told>,
}

/// What a device has reported last.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The operating system.
    pub os: Os,
    /// The agent's version.
    pub agent_version: String,
    /// When the machine started.
    pub boot_time: Timestamp,
    /// Whether it waits for a restart: `Yes`, `No` or `Unknown`.
    pub restart: String,
    /// Why.
    pub restart_reasons: Vec<String>,
    /// Services that still run what was replaced under them; absent where the device does not tell.
    pub outdated_services: Option<OutdatedServices>,
    /// How many updates it offers.
    pub updates: u32,
    /// Of these, security updates.
    pub security: u32,
    /// How many packages it has.
    pub packages: u32,
    /// Whether it offers more updates than its report has room for.
    pub truncated: bool,
    /// What is wrong with it.
    pub problems: Vec<DeviceProblem>,
}

/// Services that still run what was replaced or removed under them: a library, or their own program.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutdatedServices {
    /// How many.
    pub count: u32,
    /// Their units, the first by name.
    pub names: Vec<String>,
    /// Not every process could be looked at: there may be more.
    pub partial: bool,
}

/// An operating system.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Os {
    /// `linux`, `windows` or `macos`.
    pub family: String,
    /// `ID` of os-release(5).
    pub name: String,
    /// `VERSION_ID` of os-release(5), or the point release.
    pub version: String,
    /// The package manager's architecture.
    pub arch: String,
    /// Release of the running kernel.
    pub kernel: String,
}

/// What is wrong with a device, in its own words.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProblem {
    /// A code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A device, with all that it offers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Detailed {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// When it was last heard of, to some seconds; absent where the store does not know it.
    pub last_seen: Option<Timestamp>,
    /// The updates that it offers, as far as its report has room for them.
    pub missing: Vec<Missing>,
}

impl Device {
    pub(super) fn of(device: &DeviceRef, seen: &Seen) -> Self {
        let inventory = &seen.inventory;
        let lifecycle = match seen.lifecycle {
            Lifecycle::Active => "Active",
            Lifecycle::Retired => "Retired",
        };
        Self {
            namespace: device.namespace.clone(),
            name: device.name.clone(),
            lifecycle: lifecycle.to_owned(),
            online: inventory.online,
            since: inventory.last_transition_time,
            clock_skew_seconds: inventory.clock_skew_seconds,
            certificate_until: inventory.certificate_until,
            key_pending: inventory.pending_key.is_some(),
            report: inventory.report.as_ref().map(|report| Told {
                os: Os::of(&report.os),
                agent_version: report.agent_version.clone(),
                boot_time: report.boot_time,
                restart: word(report.restart.required).to_owned(),
                restart_reasons: report.restart.reasons.clone(),
                outdated_services: report.outdated_services.as_ref().map(OutdatedServices::of),
                updates: report.counts.updates,
                security: report.counts.security,
                packages: report.counts.packages,
                truncated: report.truncated,
                problems: report.problems.iter().map(DeviceProblem::of).collect(),
            }),
        }
    }
}

impl OutdatedServices {
    fn of(told: &report::OutdatedServices) -> Self {
        let report::OutdatedServices { count, names, partial } = told.clone();
        Self { count, names, partial }
    }
}

impl Os {
    fn of(os: &OperatingSystem) -> Self {
        let OperatingSystem { family, name, version, arch, kernel } = os.clone();
        Self { family, name, version, arch, kernel }
    }
}

impl DeviceProblem {
    fn of(Trouble { code, message }: &Trouble) -> Self {
        Self { code: code_of(*code).to_owned(), message: message.clone() }
    }
}

fn code_of(code: ProblemCode) -> &'static str {
    match code {
        ProblemCode::JournalCorrupt => "JournalCorrupt",
        ProblemCode::RepositoryUnavailable => "RepositoryUnavailable",
        ProblemCode::PackageManagerBroken => "PackageManagerBroken",
        ProblemCode::ScanFailed => "ScanFailed",
        ProblemCode::Unsupported => "Unsupported",
        ProblemCode::LimitsInvalid => "LimitsInvalid",
        ProblemCode::UpdateTooLarge => "UpdateTooLarge",
        ProblemCode::RecipesRefused => "RecipesRefused",
    }
}

/// As it is written everywhere.
pub(super) fn word(state: Tristate) -> &'static str {
    match state {
        Tristate::Yes => "Yes",
        Tristate::No => "No",
        Tristate::Unknown => "Unknown",
    }
}

/// As it is written everywhere.
pub(super) fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Unknown => "Unknown",
        Severity::Low => "Low",
        Severity::Medium => "Medium",
        Severity::High => "High",
        Severity::Critical => "Critical",
    }
}

/// Lists devices, by namespace and name.
#[utoipa::path(get, path = "/devices", tag = "devices", params(Filter), responses((status = 200, body = Page<Device>), Refusals))]
pub async fn list(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Result<Json<Page<Device>>, Problem> {
    let scope = caller.scope(&door, filter.namespace.as_deref()).await?;
    let after = Cursor::read(filter.cursor.as_ref())?.map(|(namespace, name)| DeviceRef { namespace, name });
    let limit = filter.limit.get();
    let text = filter.text.as_deref().map(str::to_lowercase);
    let matches = |device: &DeviceRef, seen: &Seen| {
        let report = seen.inventory.report.as_ref();
        let has = |text: &str| {
            let os = report.map(|report| format!("{} {}", report.os.name, report.os.version)).unwrap_or_default();
            device.name.to_lowercase().contains(text) || os.to_lowercase().contains(text)
        };
        let restart = report.map_or(Tristate::Unknown, |report| report.restart.required);
        filter.online.is_none_or(|online| seen.inventory.online == online)
            && filter.os.as_ref().is_none_or(|os| report.is_some_and(|report| report.os.name == *os))
            && filter.restart.is_none_or(|is_due| (restart == Tristate::Yes) == is_due)
            && text.as_deref().is_none_or(has)
    };
    let found = door.shared.devices.page(scope.namespace(), after.as_ref(), limit + 1, matches);
    let page = Page::of(found, limit, |(device, _)| (device.namespace.clone(), device.name.clone()));
    Ok(Json(page.map(|(device, seen)| Device::of(&device, &seen))))
}

/// One device, with the updates that it offers.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}",
    tag = "devices",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
    ),
    responses((status = 200, body = Detailed), Refusals)
)]
pub async fn one(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Json<Detailed>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    let seen = seen(&door, &of)?;
    let device = of.device().clone();
    let record = door.ask(|store| async move { store.device(&device).await }).await?;
    let missing = super::updates::of_device(&door, of.device(), &seen).await?;
    let device = Device::of(of.device(), &seen);
    Ok(Json(Detailed { device, last_seen: record.map(|record| record.last_seen), missing }))
}

/// What the watch has shown of a device.
pub(super) fn seen(door: &Door, of: &OfDevice) -> Result<Arc<Seen>, Problem> {
    let none = || Problem::not_found(format!("DeviceInventory {} does not exist", of.device()));
    door.shared.devices.cached(of.device()).ok_or_else(none)
}

/// Nothing where neither the watch nor the store knows the device: what has happened on one outlasts its object.
pub(super) async fn known(door: &Door, of: &OfDevice) -> Result<(), Problem> {
    if door.shared.devices.cached(of.device()).is_some() {
        return Ok(());
    }
    let device = of.device().clone();
    if door.ask(|store| async move { store.knows(&device).await }).await? {
        return Ok(());
    }
    Err(Problem::not_found(format!("nothing is known of the device {}", of.device())))
}
