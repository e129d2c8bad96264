//! `kubectl patchwarden device NAME --hardware`: what a device is made of, as the API tells it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::screen;
use super::table::{self, Column, Output, cell};

const DISKS: &[Column] = &[("DISK", "/name", false), ("MODEL", "/model", false), ("BYTES", "/bytes", false)];

const INTERFACES: &[Column] = &[("INTERFACE", "/name", false), ("ADDRESS", "/mac", false), ("LINK", "/link", false)];

const MODULES: &[Column] = &[("MODULE", "/name", false), ("VERSION", "/version", false), ("TAINTS", "/taints", false)];

/// Of all parts in one list.
const PARTS: &[Column] = &[
    ("PART", "/part", false),
    ("NAME", "/name", false),
    ("VENDOR", "/vendor", false),
    ("MODEL", "/model", false),
    ("VERSION", "/version", false),
    ("DATE", "/date", false),
    ("SERIAL", "/serial", false),
    ("COUNT", "/count", false),
    ("BYTES", "/bytes", false),
    ("ADDRESS", "/mac", false),
    ("LINK", "/link", false),
    ("TAINTS", "/taints", false),
];

/// Prints it.
pub fn show(device: &Value, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json | Output::Yaml => table::one(device, output),
        Output::Csv => table::list(PARTS, &parts(device), output),
        Output::Table | Output::Wide => screen::print(&described(device)),
    }
}

fn described(device: &Value) -> String {
    let told = &device["told"];
    if told.is_null() {
        let (namespace, name) = (cell(device.get("namespace")), cell(device.get("device")));
        return format!(
            "{namespace}/{name} has told nothing of what it is made of. Agents on Linux do with their first scan, as far as the \
             machine tells it; on Windows and macOS they do not.\n"
        );
    }
    let mut text = table::fields(
        device,
        &[
            ("Device", &["/namespace", "/device"]),
            ("Machine", &["/told/vendor", "/told/product"]),
            ("Serial", &["/told/serial"]),
            ("Firmware", &["/told/firmware/vendor", "/told/firmware/version", "/told/firmware/date"]),
            ("Processor", &["/told/processor"]),
            ("Processors", &["/told/processors"]),
            ("Memory", &["/told/memoryBytes"]),
            ("Since", &["/told/since"]),
            ("Recorded", &["/told/recorded"]),
            ("Key", &["/told/key"]),
        ],
    );
    for (columns, name) in [(DISKS, "disks"), (INTERFACES, "interfaces"), (MODULES, "modules")] {
        let items = told[name].as_array().map_or(&[][..], Vec::as_slice);
        if !items.is_empty() {
            let _ = write!(text, "\n{}", table::table(columns, items, false));
        }
    }
    text
}

/// What a device is made of, as one list.
fn parts(device: &Value) -> Vec<Value> {
    let told = &device["told"];
    if told.is_null() {
        return vec![];
    }
    let firmware = &told["firmware"];
    let mut parts = vec![
        json!({ "part": "machine", "vendor": told["vendor"], "model": told["product"], "serial": told["serial"] }),
        json!({ "part": "firmware", "vendor": firmware["vendor"], "version": firmware["version"], "date": firmware["date"] }),
        json!({ "part": "processor", "model": told["processor"], "count": told["processors"] }),
        json!({ "part": "memory", "bytes": told["memoryBytes"] }),
    ];
    for (part, name) in [("disk", "disks"), ("interface", "interfaces"), ("module", "modules")] {
        parts.extend(told[name].as_array().into_iter().flatten().map(|item| {
            let mut item = item.clone();
            item["part"] = json!(part);
            item
        }));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Value {
        json!({ "namespace": "acme", "device": "web", "told": {
            "key": "SHA256:k", "since": "2026-10-30T00:00:00Z", "recorded": "2026-11-01T00:00:00Z",
            "vendor": "ACME", "product": "X1\u{1b}[2J", "serial": "",
            "firmware": { "vendor": "Phoenix", "version": "1.0", "date": "02/03/2026" },
            "processor": "Fast", "processors": 8, "memoryBytes": 1024, "disks": [],
            "interfaces": [{ "name": "eth0", "mac": "00:11:22:33:44:55", "link": "Yes" }],
            "modules": [{ "name": "nvidia", "version": "", "taints": "PO" }],
        } })
    }

    // covers EM-1, EM-15
    #[test]
    fn what_a_device_is_made_of_is_shown_and_drives_no_terminal() {
        let text = described(&device());
        for line in [
            "Machine:     ACME X1 [2J",
            "Serial:      -",
            "Firmware:    Phoenix 1.0 02/03/2026",
            "Processors:  8",
            "Since:       2026-10-30T00:00:00Z",
            "eth0       00:11:22:33:44:55  Yes",
            "nvidia  -        PO",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("DISK"), "{text}");
    }

    #[test]
    fn a_device_that_has_told_nothing_says_so() {
        let silent = json!({ "namespace": "acme", "device": "web", "told": null });
        assert!(described(&silent).starts_with("acme/web has told nothing of what it is made of."));
        assert_eq!(parts(&silent), [json!(null); 0]);
    }

    #[test]
    fn as_a_list_each_part_is_a_line() {
        let parts = parts(&device());
        let told = |name: &str| parts.iter().find(|part| part["part"] == name).unwrap().clone();
        let names: Vec<&str> = parts.iter().map(|part| part["part"].as_str().unwrap()).collect();
        assert_eq!(names, ["machine", "firmware", "processor", "memory", "interface", "module"]);
        assert_eq!((&told("firmware")["version"], &told("processor")["count"]), (&json!("1.0"), &json!(8)));
        assert_eq!((&told("memory")["bytes"], &told("module")["taints"]), (&json!(1024), &json!("PO")));
        // What has a value is in a column.
        for (part, field) in parts.iter().flat_map(|part| part.as_object().unwrap().keys().map(move |key| (part, key)))
        {
            assert!(PARTS.iter().any(|(_, place, _)| place[1..] == **field), "{field}: {part}");
        }
    }
}
