//! `kubectl patchwarden devices | device | updates | search | history | vulns`: what the gateway's store knows, over its API.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use kube::Client;
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use serde_json::Value;

use super::access::{Access, Gateway, escaped};
use super::hardware;
use super::screen;
use super::table::{self, Column, Output, cell};
use crate::gateway::tls::RENEWABLE_FOR;
use crate::shell;

/// What every one of these commands takes.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    access: Access,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Flags of `devices`.
#[derive(Debug, Args)]
pub struct Devices {
    /// Those with this text in their name, operating system, or its version.
    text: Option<String>,
    /// Those of this system: `debian`, `rhel`, `windows`.
    #[arg(long)]
    os: Option<String>,
    /// Those that are online, or that are not (`--online=false`).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    online: Option<bool>,
    /// Those that wait for a restart, or that do not (`--restart=false`).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    restart: Option<bool>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `device`.
#[derive(Debug, Args)]
pub struct Device {
    /// The device.
    name: String,
    /// What is installed on it, instead of what it lacks.
    #[arg(long)]
    software: bool,
    /// What it is made of: firmware, processor, memory, disks, network devices, kernel modules of others.
    #[arg(long, conflicts_with = "software")]
    hardware: bool,
    #[command(flatten)]
    common: Common,
}

/// Flags of `updates`.
#[derive(Debug, Args)]
pub struct Updates {
    /// Those with this text in their id or title.
    text: Option<String>,
    /// Where each is missing, instead of on how many devices.
    #[arg(long = "where")]
    is_where: bool,
    /// Exactly this update: KB5031356, RHSA-2026:1234.
    #[arg(long)]
    update: Option<String>,
    /// Those that name this CVE. apt tells none.
    #[arg(long)]
    cve: Option<String>,
    /// Those that change this package.
    #[arg(long)]
    package: Option<String>,
    /// Those of this kind.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    #[command(flatten)]
    common: Common,
}

/// Kind of an update.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Security,
    Updates,
    Unclassified,
}

/// Flags of `search`.
#[derive(Debug, Args)]
pub struct Search {
    /// The package.
    package: String,
    /// Those that are older, in the order of the device's own package manager.
    #[arg(long, value_name = "VERSION", group = "than")]
    older_than: Option<String>,
    /// Those that are newer.
    #[arg(long, value_name = "VERSION", group = "than")]
    newer_than: Option<String>,
    /// Those of this version.
    #[arg(long, value_name = "VERSION", group = "than")]
    version: Option<String>,
    /// PACKAGE is the source that packages were built from.
    #[arg(long)]
    source: bool,
    #[command(flatten)]
    common: Common,
}

/// Flags of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// The device.
    device: String,
    /// Orders and what came of them, instead of changes of packages.
    #[arg(long)]
    installs: bool,
    #[command(flatten)]
    common: Common,
}

/// Flags of `vulns`.
#[derive(Debug, Args)]
pub struct Vulns {
    /// The device; without it the devices that have --cve.
    #[arg(required_unless_present = "cve")]
    device: Option<String>,
    /// The devices that have this one (a CVE, or an advisory that names none).
    #[arg(long, conflicts_with = "device")]
    cve: Option<String>,
    /// What was fixed on the device, and by whom.
    #[arg(long, requires = "device", conflicts_with = "open")]
    fixed: bool,
    /// Only those of which it is certain that they are open.
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    common: Common,
}

const DEVICES: &[Column] = &[
    ("NAMESPACE", "/namespace", false),
    ("NAME", "/name", false),
    ("ONLINE", "/online", false),
    ("OS", "/report/os/name", false),
    ("VERSION", "/report/os/version", false),
    ("UPDATES", "/report/updates", false),
    ("SECURITY", "/report/security", false),
    ("RESTART", "/report/restart", false),
    ("ARCH", "/report/os/arch", true),
    ("KERNEL", "/report/os/kernel", true),
    ("PACKAGES", "/report/packages", true),
    ("OUTDATED", "/report/outdatedServices/count", true),
    ("AGENT", "/report/agentVersion", true),
    ("BOOTED", "/report/bootTime", true),
    ("SINCE", "/since", true),
    ("LIFECYCLE", "/lifecycle", true),
];

const MISSING: &[Column] = &[
    ("UPDATE", "/update", false),
    ("KIND", "/classification", false),
    ("SEVERITY", "/severity", false),
    ("FIRST SEEN", "/firstSeen", false),
    ("TITLE", "/title", true),
    ("RESTART", "/requiresRestart", true),
    ("BYTES", "/sizeBytes", true),
    ("ORIGIN", "/origin", true),
    ("CVES", "/cves", true),
];

const OFFERED: &[Column] = &[
    ("NAMESPACE", "/namespace", false),
    ("UPDATE", "/update", false),
    ("KIND", "/classification", false),
    ("SEVERITY", "/severity", false),
    ("DEVICES", "/devices", false),
    ("FIRST SEEN", "/firstSeen", false),
    ("TITLE", "/title", true),
    ("PUBLISHED", "/published", true),
    ("CVES", "/cves", true),
];

const INSTALLED: &[Column] = &[
    ("PACKAGE", "/name", false),
    ("ARCH", "/arch", false),
    ("VERSION", "/version", false),
    ("SOURCE", "/source", true),
    ("FIRST RECORDED", "/firstRecorded", true),
];

const CHANGES: &[Column] = &[
    ("FOUND", "/foundAt", false),
    ("PACKAGE", "/package", false),
    ("BEFORE", "/before", false),
    ("AFTER", "/after", false),
    ("BY", "/by", false),
    ("SEQUENCE", "/sequence", false),
    ("USER", "/run/user", false),
    ("ARCH", "/arch", true),
    ("COMMAND", "/run/command", true),
    ("MISSING BEFORE", "/missingBefore", true),
];

const INSTALLS: &[Column] = &[
    ("SEQUENCE", "/sequence", false),
    ("OUTCOME", "/outcome", false),
    ("REASON", "/reason", false),
    ("UPDATES", "/updates", false),
    ("STARTED", "/startedAt", false),
    ("FINISHED", "/finishedAt", false),
    ("POLICY", "/policy", true),
    ("RESTARTS", "/restarts", true),
    ("MESSAGE", "/message", true),
];

const OPEN: &[Column] = &[
    ("ID", "/id", false),
    ("STATUS", "/status", false),
    ("SEVERITY", "/severity", false),
    ("PACKAGE", "/package", false),
    ("VERSION", "/version", false),
    ("FIXED IN", "/fixedIn", false),
    ("DISCOVERED", "/discoveredAt", false),
    ("EXPLOITED SINCE", "/exploitedSince", false),
    ("EPSS", "/epss", false),
    ("ARCH", "/arch", true),
    ("INSTALLED SINCE", "/installedSince", true),
    ("ADVISORIES", "/advisories", true),
];

const FIXED: &[Column] = &[
    ("ID", "/id", false),
    ("PACKAGE", "/package", false),
    ("FROM", "/from", false),
    ("TO", "/to", false),
    ("DISCOVERED", "/discoveredAt", false),
    ("FIXED", "/fixedAt", false),
    ("BY", "/by", false),
    ("SEQUENCE", "/sequence", true),
    ("ARCH", "/arch", true),
];

/// The columns of lists of things on devices.
fn on_device(columns: &[Column]) -> Vec<Column> {
    [&[("NAMESPACE", "/namespace", false), ("DEVICE", "/device", false)], columns].concat()
}

fn of_device(gateway: &Gateway, name: &str, what: &str) -> anyhow::Result<String> {
    Ok(format!("/namespaces/{}/devices/{}{what}", escaped(gateway.one_namespace()?), escaped(name)))
}

/// `devices`.
pub async fn devices(client: &Client, arguments: Devices) -> anyhow::Result<()> {
    let Devices { text, os, online, restart, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    let namespace = gateway.namespace().map(str::to_owned);
    let (online, restart) = (online.map(|it| it.to_string()), restart.map(|it| it.to_string()));
    let filters = [
        ("namespace", namespace.as_deref()),
        ("text", text.as_deref()),
        ("os", os.as_deref()),
        ("online", online.as_deref()),
        ("restart", restart.as_deref()),
    ];
    table::list(DEVICES, &gateway.list("/devices", &filters).await?, output)
}

/// `device`.
pub async fn device(client: &Client, arguments: Device) -> anyhow::Result<()> {
    let Device { name, software, hardware: is_hardware, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    if is_hardware {
        let made_of = gateway.get(&of_device(&gateway, &name, "/hardware")?).await?;
        return hardware::show(&made_of, output);
    }
    if software {
        let path = of_device(&gateway, &name, "/software")?;
        return table::list(INSTALLED, &gateway.list(&path, &[]).await?, output);
    }
    let path = of_device(&gateway, &name, "")?;
    let device = gateway.get(&path).await?;
    match output {
        Output::Json | Output::Yaml => table::one(&device, output),
        Output::Csv => table::list(MISSING, missing(&device), output),
        Output::Table | Output::Wide => screen::print(&described(&device, output == Output::Wide, shell::now())),
    }
}

fn missing(device: &Value) -> &[Value] {
    device["missing"].as_array().map_or(&[], Vec::as_slice)
}

fn described(device: &Value, is_wide: bool, now: Timestamp) -> String {
    let mut text = table::fields(
        device,
        &[
            ("Device", &["/namespace", "/name"]),
            ("System", &["/report/os/name", "/report/os/version", "/report/os/arch"]),
            ("Kernel", &["/report/os/kernel"]),
            ("Online", &["/online"]),
            ("Since", &["/since"]),
            ("Last seen", &["/lastSeen"]),
            ("Booted", &["/report/bootTime"]),
            ("Restart", &["/report/restart"]),
            ("Because of", &["/report/restartReasons"]),
            ("Outdated", &["/report/outdatedServices/count", "/report/outdatedServices/names"]),
            ("Packages", &["/report/packages"]),
            ("Updates", &["/report/updates"]),
            ("Security", &["/report/security"]),
            ("Agent", &["/report/agentVersion"]),
            ("Lifecycle", &["/lifecycle"]),
        ],
    );
    if let Some(skew) = device.pointer("/clockSkewSeconds").and_then(Value::as_i64) {
        let direction = if skew < 0 { "ahead of" } else { "behind" };
        let refuses = if skew.abs() > MAX_CLOCK_SKEW_SECONDS { ": it takes no orders" } else { "" };
        let _ = writeln!(text, "{:<12} {} s {direction} the gateway's{refuses}", "Clock:", skew.unsigned_abs());
    }
    let until = device.pointer("/certificateUntil").and_then(Value::as_str).and_then(|until| until.parse().ok());
    let is_online = device.pointer("/online").and_then(Value::as_bool).unwrap_or_default();
    if let Some(until) = until {
        let _ = writeln!(text, "{:<12} {}", "Certificate:", certificate(until, is_online, now));
    }
    for problem in device.pointer("/report/problems").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(text, "{:<12} {}: {}", "Problem:", cell(problem.get("code")), cell(problem.get("message")));
    }
    if missing(device).is_empty() {
        text.push_str("\nThe device offers no updates.\n");
    } else {
        let _ = write!(text, "\n{}", table::table(MISSING, missing(device), is_wide));
    }
    text
}

/// What the end of a device's certificate means for it.
fn certificate(until: Timestamp, is_online: bool, now: Timestamp) -> String {
    let renewable = until.saturating_add(RENEWABLE_FOR).unwrap_or(Timestamp::MAX);
    if now < until {
        format!("until {until}")
    } else if is_online {
        format!(
            "ended at {until}, and is not renewed: the device keeps its session, and cannot begin another (patchwarden-agent doctor)"
        )
    } else if now < renewable {
        format!("ended at {until}; the device renews it when it is back, until {renewable}")
    } else {
        format!(
            "ended at {until}: too long ago to be renewed, so the device has to join anew (patchwarden-agent join --force)"
        )
    }
}

/// `updates`.
pub async fn updates(client: &Client, arguments: Updates) -> anyhow::Result<()> {
    let Updates { text, is_where, update, cve, package, kind, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    let namespace = gateway.namespace().map(str::to_owned);
    let kind = kind.map(|kind| format!("{kind:?}"));
    let filters = [
        ("namespace", namespace.as_deref()),
        ("text", text.as_deref()),
        ("update", update.as_deref()),
        ("cve", cve.as_deref()),
        ("package", package.as_deref()),
        ("classification", kind.as_deref()),
    ];
    if is_where {
        return table::list(&on_device(MISSING), &gateway.list("/updates/missing", &filters).await?, output);
    }
    table::list(OFFERED, &gateway.list("/updates", &filters).await?, output)
}

/// `search`.
pub async fn search(client: &Client, arguments: Search) -> anyhow::Result<()> {
    let Search { package, older_than, newer_than, version, source, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    let namespace = gateway.namespace().map(str::to_owned);
    let comparisons = [("older", older_than), ("newer", newer_than), ("same", version)];
    let comparison = comparisons.into_iter().find_map(|(than, version)| Some((than, version?)));
    let filters = [
        ("namespace", namespace.as_deref()),
        ("name", Some(package.as_str())),
        ("by", source.then_some("source")),
        ("than", comparison.as_ref().map(|(than, _)| *than)),
        ("version", comparison.as_ref().map(|(_, version)| version.as_str())),
    ];
    table::list(&on_device(INSTALLED), &gateway.list("/search/software", &filters).await?, output)
}

/// `history`.
pub async fn history(client: &Client, arguments: History) -> anyhow::Result<()> {
    let History { device, installs, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    if !installs {
        let path = of_device(&gateway, &device, "/changes")?;
        return table::list(CHANGES, &gateway.list(&path, &[]).await?, output);
    }
    let path = of_device(&gateway, &device, "/installs")?;
    let mut items = gateway.list(&path, &[]).await?;
    if !matches!(output, Output::Json | Output::Yaml) {
        for item in &mut items {
            let updates = item["actions"].as_array().into_iter().flatten().map(|action| action["update"].clone());
            item["updates"] = updates.collect();
        }
    }
    table::list(INSTALLS, &items, output)
}

/// `vulns`.
pub async fn vulns(client: &Client, arguments: Vulns) -> anyhow::Result<()> {
    let Vulns { device, cve, fixed, open, common: Common { access, output } } = arguments;
    let mut gateway = access.connect(client).await?;
    let status = open.then_some("Open");
    let Some(device) = device else {
        let namespace = gateway.namespace().map(str::to_owned);
        let filters = [("id", cve.as_deref()), ("namespace", namespace.as_deref()), ("status", status)];
        return table::list(&on_device(OPEN), &gateway.list("/vulnerabilities", &filters).await?, output);
    };
    if fixed {
        let path = of_device(&gateway, &device, "/vulnerabilities/fixed")?;
        return table::list(FIXED, &gateway.list(&path, &[]).await?, output);
    }
    let path = of_device(&gateway, &device, "/vulnerabilities")?;
    table::list(OPEN, &gateway.list(&path, &[("status", status)]).await?, output)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_tells_until_when_its_certificate_counts_and_what_follows_from_it() {
        let shown = |device: &Value, now: &str| {
            let text = described(device, false, now.parse().unwrap());
            text.lines().find(|line| line.starts_with("Certificate:")).map(str::to_owned)
        };
        let device = json!({ "namespace": "acme", "name": "web", "certificateUntil": "2026-01-08T00:00:00Z" });
        for (now, expected) in [
            ("2026-01-07T23:59:59Z", "Certificate: until 2026-01-08T00:00:00Z"),
            (
                "2026-01-08T00:00:00Z",
                "Certificate: ended at 2026-01-08T00:00:00Z; the device renews it when it is back, until 2026-07-07T00:00:00Z",
            ),
            (
                "2026-07-07T00:00:00Z",
                "Certificate: ended at 2026-01-08T00:00:00Z: too long ago to be renewed, so the device has to join anew (patchwarden-agent join --force)",
            ),
        ] {
            assert_eq!(shown(&device, now).as_deref(), Some(expected), "{now}");
        }
        let mut online = device;
        online["online"] = json!(true);
        let expected = "Certificate: ended at 2026-01-08T00:00:00Z, and is not renewed: the device keeps its session, and cannot begin another \
                        (patchwarden-agent doctor)";
        assert_eq!(shown(&online, "2026-01-08T00:00:00Z").as_deref(), Some(expected));
        assert_eq!(shown(&json!({ "namespace": "acme", "name": "web" }), "2026-01-01T00:00:00Z"), None);
    }
}
