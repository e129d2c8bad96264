//! What the machine is made of, as the kernel tells it below `/sys` and `/proc`. What it does not tell is empty.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use patchwarden_protocol::details::{Disk, Firmware, Hardware, Interface, MAX_PART, MAX_PARTS, Module};
use patchwarden_protocol::report::Tristate;

use crate::provider::bounded;

/// The unit of `/sys/block/*/size`, whatever the disk's own is (Documentation/ABI/stable/sysfs-block).
const SECTOR: u64 = 512;

/// Of a file that the kernel makes no more is read: `/proc/cpuinfo` has some 1.5 KB for each processor.
const MAX_READ: u64 = 4 << 20;

/// Looks at the machine. Without what tells of people: serial number and network addresses.
pub(crate) fn hardware(root: &Path, is_impersonal: bool) -> Hardware {
    let dmi = |name: &str| line(&root.join("sys/class/dmi/id").join(name));
    let (processor, processors) = processors(&text(&root.join("proc/cpuinfo")));
    Hardware {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        serial: if is_impersonal { String::new() } else { dmi("product_serial") },
        firmware: Firmware { vendor: dmi("bios_vendor"), version: dmi("bios_version"), date: dmi("bios_date") },
        processor,
        processors,
        memory_bytes: memory(&text(&root.join("proc/meminfo"))),
        disks: disks(&root.join("sys/block")),
        interfaces: interfaces(&root.join("sys/class/net"), is_impersonal),
        modules: modules(&text(&root.join("proc/modules")), &root.join("sys/module")),
    }
}

/// Model and number of logical processors, by proc_cpuinfo(5). Not every architecture tells the model.
fn processors(text: &str) -> (String, u32) {
    let fields = || text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value));
    let model = fields().find(|(name, _)| *name == "model name").map(|(_, value)| clean(value));
    let count = fields().filter(|(name, _)| *name == "processor").count();
    (model.unwrap_or_default(), u32::try_from(count).unwrap_or(u32::MAX))
}

/// `MemTotal` of proc_meminfo(5), in bytes.
fn memory(text: &str) -> u64 {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.and_then(|kib| kib.checked_mul(1024)).filter(|bytes| *bytes <= 1 << 53).unwrap_or_default()
}

/// Disks that stay in the machine; none that are made of others (loop, RAID, LVM).
fn disks(place: &Path) -> Vec<Disk> {
    let disk = |name: &String| {
        let path = place.join(name);
        let is_fixed = path.join("device").exists() && line(&path.join("removable")) != "1";
        let bytes = line(&path.join("size")).parse::<u64>().ok()?.checked_mul(SECTOR)?;
        (is_fixed && (1..=1 << 53).contains(&bytes)).then(|| Disk {
            name: clean(name),
            model: line(&path.join("device/model")),
            bytes,
        })
    };
    names(place).iter().filter_map(disk).take(MAX_PARTS).collect()
}

/// Devices behind which there is hardware, or what a hypervisor shows as such.
fn interfaces(place: &Path, is_impersonal: bool) -> Vec<Interface> {
    let interface = |name: &String| {
        let path = place.join(name);
        path.join("device").exists().then(|| Interface {
            name: clean(name),
            mac: if is_impersonal { String::new() } else { line(&path.join("address")) },
            // Reading it fails while the interface is down (Documentation/ABI/testing/sysfs-class-net).
            link: match line(&path.join("carrier")).as_str() {
                "1" => Tristate::Yes,
                "0" => Tristate::No,
                _ => Tristate::Unknown,
            },
        })
    };
    names(place).iter().filter_map(interface).take(MAX_PARTS).collect()
}

/// Those with letters in parentheses at the end of their line in `/proc/modules` (proc_modules(5)).
fn modules(text: &str, place: &Path) -> Vec<Module> {
    let mut found: Vec<Module> = tainting(text)
        .map(|(name, taints)| Module {
            name: clean(name),
            version: line(&place.join(name).join("version")),
            taints: clean(taints),
        })
        .collect();
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    found.truncate(MAX_PARTS);
    found
}

fn tainting(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))?;
        // `+` and `-` say that it is being loaded or unloaded.
        let letters = words.next_back()?.strip_prefix('(')?.strip_suffix(')')?.trim_matches(['+', '-']);
        (!letters.is_empty()).then_some((name, letters))
    })
}

fn names(place: &Path) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn line(path: &Path) -> String {
    clean(&text(path))
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is as good as not told.
    let _ = File::open(path).and_then(|file| file.take(MAX_READ).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn clean(text: &str) -> String {
    let plain: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    bounded(plain.trim(), MAX_PART)
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let (model, count) = processors(text);
    assert!(model.len() <= MAX_PART && count as usize <= text.lines().count());
    assert!(memory(text) <= 1 << 53);
    assert!(tainting(text).all(|(name, letters)| !name.contains(['/', '.']) && !letters.is_empty()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = "\
nvidia 56823808 1215 nvidia_modeset,nvidia_uvm, Live 0xffffffffc1a00000 (POE)
ext4 1130496 1 - Live 0xffffffffc0a00000
zfs 6299648 6 - Live 0xffffffffc0200000 (OE+)
../../etc 1 0 - Live 0x0 (O)
odd
";

    #[test]
    fn what_the_kernel_tells_is_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(hardware(root.path(), false), Hardware::default(), "a machine that tells nothing");
        for (name, text) in [
            ("sys_vendor", "LENOVO\n"),
            ("product_name", "20XW0026\n"),
            ("product_serial", "PF3ABCDE\n"),
            ("bios_vendor", "LENOVO\n"),
            ("bios_version", "N32ET75W\u{1b} (1.51 )\n"),
            ("bios_date", "12/02/2021\n"),
        ] {
            write(&format!("sys/class/dmi/id/{name}"), text.as_bytes());
        }
        let processor = "processor\t: 0\nmodel name\t: Some CPU @ 3.00GHz\nflags\t: fpu\n\n";
        write("proc/cpuinfo", processor.repeat(8).as_bytes());
        write("proc/meminfo", b"MemTotal:       16113228 kB\nMemFree:  1 kB\n");
        write("proc/modules", MODULES.as_bytes());
        write("sys/module/zfs/version", b"2.1.11-1\n");
        write("etc/version", b"secret");
        for (disk, size, removable) in
            [("sda", "1000215216", "0"), ("loop0", "8", "0"), ("sdb", "4096", "1"), ("sdc", "0", "0")]
        {
            write(&format!("sys/block/{disk}/size"), size.as_bytes());
            write(&format!("sys/block/{disk}/removable"), removable.as_bytes());
            if disk != "loop0" {
                write(&format!("sys/block/{disk}/device/model"), b"Disk \xff 512\n");
            }
        }
        for (interface, carrier, is_real) in
            [("eth0", "1\n", true), ("wlan0", "", true), ("eth1", "0", true), ("veth9", "1", false)]
        {
            write(&format!("sys/class/net/{interface}/address"), b"00:11:22:33:44:55\n");
            write(&format!("sys/class/net/{interface}/carrier"), carrier.as_bytes());
            if is_real {
                write(&format!("sys/class/net/{interface}/device/vendor"), b"");
            }
        }
        let interface = |name: &str, link| Interface { name: name.into(), mac: "00:11:22:33:44:55".into(), link };
        let module = |name: &str, version: &str, taints: &str| Module {
            name: name.into(),
            version: version.into(),
            taints: taints.into(),
        };
        let expected = Hardware {
            vendor: "LENOVO".into(),
            product: "20XW0026".into(),
            serial: "PF3ABCDE".into(),
            firmware: Firmware {
                vendor: "LENOVO".into(),
                version: "N32ET75W  (1.51 )".into(),
                date: "12/02/2021".into(),
            },
            processor: "Some CPU @ 3.00GHz".into(),
            processors: 8,
            memory_bytes: 16_113_228 * 1024,
            disks: vec![Disk { name: "sda".into(), model: "Disk \u{fffd} 512".into(), bytes: 1_000_215_216 * 512 }],
            interfaces: vec![
                interface("eth0", Tristate::Yes),
                interface("eth1", Tristate::No),
                interface("wlan0", Tristate::Unknown),
            ],
            modules: vec![module("nvidia", "", "POE"), module("zfs", "2.1.11-1", "OE")],
        };
        assert_eq!(hardware(root.path(), false), expected);
        let impersonal = hardware(root.path(), true);
        let mut without = Hardware { serial: String::new(), ..expected };
        without.interfaces.iter_mut().for_each(|interface| interface.mac.clear());
        assert_eq!(impersonal, without);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        for (text, bytes) in [
            ("MemTotal: 1 kB\n", 1024),
            ("MemTotal: -1 kB\n", 0),
            ("MemTotal: 18446744073709551615 kB\n", 0),
            ("MemTotal: 9007199254740992 kB\n", 0),
            ("MemTotal:\n", 0),
        ] {
            assert_eq!(memory(text), bytes, "{text}");
        }
        assert_eq!(processors(&format!("model name: {}\n", "x".repeat(1000))).0.len(), MAX_PART);
    }
}
