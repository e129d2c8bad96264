//! What the machine runs on, by what the kernel says of its power supplies.
//!
//! The files and their values are those of the kernel's `Documentation/ABI/testing/sysfs-class-power`: `type` (`Battery`, `UPS`,
//! `Mains`, `USB`, ...), `online` (0, 1, or 2 for a programmable supply), `status` (`Charging`, `Discharging`, `Not charging`,
//! `Full`, `Unknown`) and `scope` (`System`, or `Device` for the battery of a mouse).

use std::path::Path;
use std::{fs, io};

use patchwarden_protocol::report::Power;

/// Where the kernel says it.
pub(crate) const SUPPLIES: &str = "/sys/class/power_supply";

/// By the supplies in `directory`. A machine without a battery of its own runs on the mains; what cannot be read, and a battery
/// that is not being emptied though nothing feeds it, is unknown.
pub(crate) fn of(directory: &Path) -> Power {
    let supplies = match fs::read_dir(directory) {
        Ok(supplies) => supplies,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Power::Mains,
        Err(_) => return Power::Unknown,
    };
    let (mut has_battery, mut is_emptied, mut is_unreadable) = (false, false, false);
    for supply in supplies {
        let Ok(supply) = supply else {
            is_unreadable = true;
            continue;
        };
        let value = |name: &str| fs::read_to_string(supply.path().join(name)).map(|text| text.trim().to_owned());
        if value("scope").is_ok_and(|scope| scope == "Device") {
            continue;
        }
        match value("type").as_deref() {
            Ok("Battery" | "UPS") => {
                has_battery = true;
                is_emptied |= value("status").is_ok_and(|status| status == "Discharging");
            }
            Ok("Mains") => {
                if value("online").is_ok_and(|online| online != "0") {
                    return Power::Mains;
                }
            }
            Ok(kind) if kind.starts_with("USB") => {
                if value("online").is_ok_and(|online| online != "0") {
                    return Power::Mains;
                }
            }
            Ok(_) => {}
            Err(_) => is_unreadable = true,
        }
    }
    match (has_battery, is_emptied, is_unreadable) {
        (true, true, _) => Power::Battery,
        (false, _, false) => Power::Mains,
        (true, false, _) | (false, _, true) => Power::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Supplies by name, each with its files.
    fn with(supplies: &[(&str, &[(&str, &str)])]) -> Power {
        let directory = tempfile::tempdir().unwrap();
        for (name, files) in supplies {
            let supply = directory.path().join(name);
            fs::create_dir(&supply).unwrap();
            for (file, value) in *files {
                fs::write(supply.join(file), format!("{value}\n")).unwrap();
            }
        }
        of(directory.path())
    }

    #[test]
    fn a_laptop_is_on_mains_power_while_its_adapter_or_a_usb_supply_is_online() {
        let battery = |status| ("BAT0", [("type", "Battery"), ("status", status)]);
        let (full, emptied) = (battery("Full"), battery("Discharging"));
        let ac = |online| ("AC", [("type", "Mains"), ("online", online)]);
        let (on, off) = (ac("1"), ac("0"));
        let usb = ("ucsi", [("type", "USB"), ("online", "2")]);
        assert_eq!(with(&[(on.0, &on.1), (full.0, &full.1)]), Power::Mains);
        // A weak adapter: the mains all the same.
        assert_eq!(with(&[(on.0, &on.1), (emptied.0, &emptied.1)]), Power::Mains);
        assert_eq!(with(&[(off.0, &off.1), (usb.0, &usb.1), (full.0, &full.1)]), Power::Mains);
        assert_eq!(with(&[(off.0, &off.1), (emptied.0, &emptied.1)]), Power::Battery);
        assert_eq!(with(&[(emptied.0, &emptied.1)]), Power::Battery);
    }

    #[test]
    fn a_machine_without_a_battery_of_its_own_is_on_mains_power() {
        assert_eq!(of(Path::new("/nowhere/at/all")), Power::Mains);
        assert_eq!(with(&[]), Power::Mains);
        let mouse = [("type", "Battery"), ("scope", "Device"), ("status", "Discharging")];
        assert_eq!(with(&[("hid", &mouse)]), Power::Mains);
    }

    #[test]
    fn what_cannot_be_told_is_unknown() {
        assert_eq!(with(&[("BAT0", &[("type", "Battery"), ("status", "Not charging")])]), Power::Unknown);
        assert_eq!(with(&[("BAT0", &[("type", "Battery")])]), Power::Unknown);
        assert_eq!(with(&[("odd", &[])]), Power::Unknown);
    }
}
