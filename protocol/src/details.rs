//! What a device is made of, signed by its key. Sent when it has changed, and when a gateway has none of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Document;
use crate::report::{DeviceRef, Tristate};

/// At most so many entries of each list.
pub const MAX_PARTS: usize = 64;

/// Longest text, in bytes.
pub const MAX_PART: usize = 128;

/// What a device is made of, since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Details {
    /// Whose.
    pub device: DeviceRef,
    /// When a scan first found it so, by the device's clock.
    pub since: Timestamp,
    /// What.
    pub hardware: Hardware,
}

impl Document for Details {
    const TYPE: &'static str = "application/vnd.patchwarden.details.v1+json";
}

/// The machine. What it does not tell is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hardware {
    /// Who made it, by its firmware.
    pub vendor: String,
    /// The model, by its firmware.
    pub product: String,
    /// Its serial number. It tells one machine from all others: personal data where a person uses it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Firmware {
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// Its date, as it says it: mostly month/day/year.
    pub date: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// The kernel's name: `sda`.
    pub name: String,
    /// What it calls itself.
    pub model: String,
    /// Its size.
    pub bytes: u64,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// The system's name: `eth0`.
    pub name: String,
    /// Its address. It can be told where a machine is by it: personal data where a person uses it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Whether it has a link.
    pub link: Tristate,
}

/// A kernel module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its version, where it states one.
    pub version: String,
    /// The kernel's letters (Documentation/admin-guide/tainted-kernels.rst): `O` out of tree, `P` proprietary, `E` unsigned.
    pub taints: String,
}

impl Details {
    /// Whether it is within its limits. Names the field that is not.
    pub fn check(&self) -> Result<(), String> {
        let Hardware {
            vendor,
            product,
            serial,
            firmware,
            processor,
            processors: _,
            memory_bytes,
            disks,
            interfaces,
            modules,
        } = &self.hardware;
        let Firmware { vendor: maker, version, date } = firmware;
        let mut words = vec![
            ("vendor", vendor),
            ("product", product),
            ("serial", serial),
            ("firmware.vendor", maker),
            ("firmware.version", version),
            ("firmware.date", date),
            ("processor", processor),
        ];
        words.extend(disks.iter().flat_map(|disk| [("disks.name", &disk.name), ("disks.model", &disk.model)]));
        words.extend(interfaces.iter().flat_map(|one| [("interfaces.name", &one.name), ("interfaces.mac", &one.mac)]));
        words.extend(modules.iter().flat_map(|module| {
            [("modules.name", &module.name), ("modules.version", &module.version), ("modules.taints", &module.taints)]
        }));
        if let Some((field, _)) = words.into_iter().find(|(_, text)| text.len() > MAX_PART) {
            return Err(format!("hardware.{field}: is longer than {MAX_PART} bytes"));
        }
        for (field, count) in [("disks", disks.len()), ("interfaces", interfaces.len()), ("modules", modules.len())] {
            if count > MAX_PARTS {
                return Err(format!("hardware.{field}: {count} items, at most {MAX_PARTS} are allowed"));
            }
        }
        // RFC 8785 writes numbers as IEEE 754 doubles.
        let is_large = |bytes: u64| bytes > 1 << 53;
        if is_large(*memory_bytes) || disks.iter().any(|disk| is_large(disk.bytes)) {
            return Err("hardware.memoryBytes, hardware.disks.bytes: is too large".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_too_large_is_named() {
        let check = |spoil: fn(&mut Hardware)| {
            let mut hardware = Hardware::default();
            spoil(&mut hardware);
            let device = DeviceRef { namespace: "acme".into(), name: "web".into() };
            Details { device, since: Timestamp::UNIX_EPOCH, hardware }.check()
        };
        assert_eq!(check(|_| {}), Ok(()));
        let disk = |bytes| Disk { name: "sda".into(), model: "x".repeat(MAX_PART), bytes };
        assert_eq!(check(|hardware| hardware.product = "x".repeat(MAX_PART)), Ok(()));
        for (spoil, words) in [
            ((|one| one.serial = "x".repeat(129)) as fn(&mut Hardware), "hardware.serial: is longer"),
            (|one| one.firmware.date = "x".repeat(129), "hardware.firmware.date"),
            (|one| one.memory_bytes = (1 << 53) + 1, "hardware.memoryBytes"),
            (
                |one| one.modules = vec![Module { name: "m".into(), version: "x".repeat(129), taints: "O".into() }],
                "hardware.modules.version",
            ),
            (
                |one| {
                    let interface = Interface { name: "e".into(), mac: String::new(), link: Tristate::Yes };
                    one.interfaces = vec![interface; MAX_PARTS + 1];
                },
                "hardware.interfaces: 65 items",
            ),
        ] {
            let error = check(spoil).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut large = Details {
            device: DeviceRef { namespace: "acme".into(), name: "web".into() },
            since: Timestamp::UNIX_EPOCH,
            hardware: Hardware { disks: vec![disk(1 << 53)], ..Hardware::default() },
        };
        assert_eq!(large.check(), Ok(()));
        large.hardware.disks[0] = disk((1 << 53) + 1);
        assert!(large.check().is_err());
    }
}
