//! What `system_profiler -json SPInstallHistoryDataType SPSoftwareDataType SPHardwareDataType` answers. Pure.
//!
//! Keys and values are Apple's, and not described anywhere; those that are not known are passed over. An entry that is not of the
//! known form is left out: what is not known to be installed is not installed.

use std::collections::BTreeMap;

use patchwarden_protocol::order::MAX_VERSION;
use serde::Deserialize;
use serde_json::Value;

use super::updates::encoded;
use crate::provider::rpm;

/// Longest text that is taken over, in characters.
const MAX_TEXT: usize = 128;

/// Most entries of the history: years of it have some hundred.
const MAX_ENTRIES: usize = 20_000;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    /// What was installed last of each title.
    pub(super) history: BTreeMap<String, Entry>,
    /// `macOS 26.7 (25G227)`; empty where it is not said.
    pub(super) system: String,
    /// `Mac16,1`; empty where it is not said.
    pub(super) model: String,
    /// Version of the firmware; empty where it is not said.
    pub(super) firmware: String,
    /// A processor of Apple's, not of Intel's: only the latter is called `cpu_type`.
    pub(super) is_apple_silicon: bool,
}

/// An install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) version: String,
    /// `2026-11-20T09:15:44Z`.
    pub(super) date: String,
    /// `package_source_apple`, `package_source_other`.
    pub(super) source: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "SPInstallHistoryDataType")]
    history: Vec<Value>,
    #[serde(rename = "SPSoftwareDataType", default)]
    software: Vec<Value>,
    #[serde(rename = "SPHardwareDataType", default)]
    hardware: Vec<Value>,
}

/// Reads it; or why it is no answer.
pub(super) fn parse(output: &str) -> Result<Profile, String> {
    let raw: Raw = serde_json::from_str(output).map_err(|error| format!("system_profiler's answer: {error}"))?;
    let mut profile = Profile {
        system: raw.software.first().and_then(|value| text(value, "os_version")).unwrap_or_default(),
        model: raw.hardware.first().and_then(|value| text(value, "machine_model")).unwrap_or_default(),
        firmware: raw.hardware.first().and_then(|value| text(value, "boot_rom_version")).unwrap_or_default(),
        is_apple_silicon: raw.hardware.first().is_some_and(|value| value.get("chip_type").is_some()),
        history: BTreeMap::new(),
    };
    for value in raw.history.iter().take(MAX_ENTRIES) {
        let (Some(title), Some(version)) = (text(value, "_name"), text(value, "install_version")) else { continue };
        if encoded(&version).len() > MAX_VERSION {
            continue;
        }
        let date = text(value, "install_date").unwrap_or_default();
        let source = text(value, "package_source").unwrap_or_default();
        let entry = Entry { version, date, source };
        let is_last = profile.history.get(&title).is_none_or(|before| is_after(&entry, before));
        if is_last {
            profile.history.insert(title, entry);
        }
    }
    Ok(profile)
}

/// Times of one form and zone are ordered as text. Of two at the same time the later version counts.
fn is_after(entry: &Entry, before: &Entry) -> bool {
    entry.date.cmp(&before.date).then_with(|| rpm::compare(&entry.version, &before.version)).is_gt()
}

/// A text that can be shown, or nothing.
fn text(value: &Value, key: &str) -> Option<String> {
    let text = value.get(key)?.as_str()?.trim();
    let is_good = !text.is_empty()
        && text.len() <= 4 * MAX_TEXT
        && !text.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER);
    is_good.then(|| text.chars().take(MAX_TEXT).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = include_str!("../../../tests/data/macos/profile.json");
    const INTEL: &str = include_str!("../../../tests/data/macos/profile-intel.json");

    fn versions(profile: &Profile) -> Vec<(&str, &str)> {
        profile.history.iter().map(|(title, entry)| (title.as_str(), entry.version.as_str())).collect()
    }

    #[test]
    fn of_each_title_the_last_install_counts() {
        let profile = parse(PROFILE).unwrap();
        let expected = [
            ("Command Line Tools for Xcode", "16.4"),
            ("Example Agent", "8.2.1"),
            ("Safari", "26.6"),
            ("XProtectPlistConfigData", "5325"),
            ("macOS 26.7", "26.7"),
        ];
        assert_eq!(versions(&profile), expected);
        assert_eq!(profile.history["Safari"].date, "2026-10-28T07:55:03Z");
        assert_eq!(profile.history["Example Agent"].source, "package_source_other");
        assert_eq!(profile.system, "macOS 26.7 (25G227)");
        assert_eq!((profile.model.as_str(), profile.firmware.as_str()), ("Mac16,1", "18000.120.36"));
        assert!(profile.is_apple_silicon);
    }

    #[test]
    fn a_mac_with_an_intel_processor_has_less_to_say() {
        let profile = parse(INTEL).unwrap();
        assert_eq!((profile.model.as_str(), profile.firmware.as_str()), ("MacBookPro15,1", "2069.0.0.0.0"));
        assert_eq!((profile.system.as_str(), profile.history.len(), profile.is_apple_silicon), ("", 0, false));
    }

    #[test]
    fn what_is_no_answer_is_refused_and_what_is_no_entry_left_out() {
        let half = &PROFILE[..PROFILE.len() / 2];
        for bad in ["", "null", "[]", "{}", "{\"SPInstallHistoryDataType\": 5}", half, "\u{fffd}", "No such data type"]
        {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("system_profiler's answer: "), "{bad:?}: {error}");
        }
        let deep = format!("{{\"SPInstallHistoryDataType\": {}", "[".repeat(100_000));
        assert!(parse(&deep).is_err(), "nothing so deep is read");
        let entry = |name: &str, version: &str| {
            format!("{{\"_name\": {name}, \"install_version\": {version}, \"install_date\": \"2026-01-01T00:00:00Z\"}}")
        };
        let long = format!("\"{}\"", "x".repeat(4 * MAX_TEXT + 1));
        let entries = [
            entry("\"good\"", "\"1\""),
            entry("\"a\"", "2"),
            entry("null", "\"1\""),
            entry("\"\"", "\"1\""),
            entry("\"\\u001b[2J\"", "\"1\""),
            entry("\"b\"", "\"1\\u0000\""),
            entry("\"c\\ufffd\"", "\"1\""),
            entry(&long, "\"1\""),
            entry("\"e\"", &format!("\"{}\"", "é".repeat(MAX_VERSION / 6 + 1))),
            "5".to_owned(),
            "{\"_name\": \"d\"}".to_owned(),
        ];
        let profile = parse(&format!("{{\"SPInstallHistoryDataType\": [{}]}}", entries.join(","))).unwrap();
        assert_eq!(versions(&profile), [("good", "1")]);
    }

    #[test]
    fn of_two_installs_at_the_same_time_the_later_version_counts() {
        let of = |first: &str, second: &str| {
            let entry = |version: &str| format!("{{\"_name\": \"a\", \"install_version\": \"{version}\"}}");
            parse(&format!("{{\"SPInstallHistoryDataType\": [{}, {}]}}", entry(first), entry(second))).unwrap()
        };
        assert_eq!(versions(&of("9.1", "10.0")), [("a", "10.0")]);
        assert_eq!(versions(&of("10.0", "9.1")), [("a", "10.0")]);
    }
}
