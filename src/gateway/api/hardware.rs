//! What a device is made of, as it has told and signed it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use patchwarden_protocol::details::{self, Details, Hardware};
use serde::Serialize;
use utoipa::ToSchema;

use super::Door;
use super::auth::Caller;
use super::devices::word;
use super::page::Segments;
use super::problem::{Problem, Refusals};
use crate::store::KeptDetails;

/// A device's hardware.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceHardware {
    /// Its client.
    pub namespace: String,
    /// The device.
    pub device: String,
    /// What it has told; absent where it has told nothing: so on Windows and macOS, and until its first scan.
    pub told: Option<ToldHardware>,
}

/// What a device has told last. Texts that the machine does not tell are empty, numbers 0.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToldHardware {
    /// Fingerprint of the key that has signed it.
    pub key: String,
    /// When a scan first found it so, by the device's clock.
    pub since: Timestamp,
    /// When it came to the gateway.
    pub recorded: Timestamp,
    /// Who made the machine, by its firmware.
    pub vendor: String,
    /// The model, by its firmware.
    pub product: String,
    /// Its serial number; empty also where the device leaves out personal data.
    pub serial: String,
    /// The firmware (BIOS, UEFI).
    pub firmware: Firmware,
    /// Model of the processor.
    pub processor: String,
    /// Logical processors.
    pub processors: u32,
    /// Memory that the system has, in bytes.
    pub memory_bytes: u64,
    /// Fixed disks, by name.
    pub disks: Vec<Disk>,
    /// Network devices, by name; none that only the system itself makes.
    pub interfaces: Vec<Interface>,
    /// Kernel modules that are not of the kernel's own tree or taint it otherwise, by name.
    pub modules: Vec<Module>,
}

/// The firmware.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// Its date, as it says it: mostly month/day/year.
    pub date: String,
}

/// A disk.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The kernel's name: `sda`.
    pub name: String,
    /// What it calls itself.
    pub model: String,
    /// Its size.
    pub bytes: u64,
}

/// A network device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The system's name: `eth0`.
    pub name: String,
    /// Its address; empty also where the device leaves out personal data.
    pub mac: String,
    /// Whether it has a link: `Yes`, `No` or `Unknown`.
    pub link: String,
}

/// A kernel module.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its version, where it states one.
    pub version: String,
    /// The kernel's letters: `O` out of tree, `P` proprietary, `E` unsigned.
    pub taints: String,
}

impl ToldHardware {
    /// The gateway has verified it when it came: what cannot be read is the database's fault.
    fn of(kept: &KeptDetails) -> Option<Self> {
        let KeptDetails { envelope, key, recorded } = kept;
        let Details { device: _, since, hardware } = envelope.peek()?;
        let Hardware {
            vendor,
            product,
            serial,
            firmware: details::Firmware { vendor: maker, version, date },
            processor,
            processors,
            memory_bytes,
            disks,
            interfaces,
            modules,
        } = hardware;
        let interface = |details::Interface { name, mac, link }| Interface { name, mac, link: word(link).to_owned() };
        Some(Self {
            key: key.to_string(),
            since,
            recorded: *recorded,
            vendor,
            product,
            serial,
            firmware: Firmware { vendor: maker, version, date },
            processor,
            processors,
            memory_bytes,
            disks: disks.into_iter().map(|details::Disk { name, model, bytes }| Disk { name, model, bytes }).collect(),
            interfaces: interfaces.into_iter().map(interface).collect(),
            modules: modules
                .into_iter()
                .map(|details::Module { name, version, taints }| Module { name, version, taints })
                .collect(),
        })
    }
}

/// Tells what a device is made of: firmware, processor, memory, disks, network devices, kernel modules of others.
#[utoipa::path(
    get,
    path = "/namespaces/{namespace}/devices/{name}/hardware",
    tag = "devices",
    params(
        ("namespace" = String, Path, description = "Its client.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        ("name" = String, Path, description = "Name of its DeviceInventory.", max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
    ),
    responses((status = 200, body = DeviceHardware), Refusals)
)]
pub async fn of_device(
    State(door): State<Arc<Door>>,
    caller: Caller,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Json<DeviceHardware>, Problem> {
    let of = caller.device(&door, &namespace, &name).await?;
    super::devices::known(&door, &of).await?;
    let device = of.device().clone();
    let kept = door.ask(|store| async move { store.details(&device).await }).await?;
    let told = match kept.as_ref().map(ToldHardware::of) {
        None => None,
        Some(Some(told)) => Some(told),
        Some(None) => {
            tracing::error!(device = %of.device(), "the hardware that is kept of a device cannot be read");
            return Err(Problem::unavailable("what is kept cannot be read; the gateway's log says of which device"));
        }
    };
    Ok(Json(DeviceHardware { namespace, device: name, told }))
}
