//! The kinds of the aggregation layer: one record of the store each, named, and with the columns that `kubectl get` prints.

use patchwarden_protocol::report::DeviceRef;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// The group. That of the four kinds is another one: a group and version are served by the API server or by one service.
pub const GROUP: &str = "store.patchwarden.io";

/// Its version.
pub const VERSION: &str = "v1alpha1";

/// Characters of a record's own name that are in its object's.
const SLUG: usize = 40;

/// Characters of the digest in a name (40 bits): it tells apart what one device has of one kind.
const DIGEST: usize = 10;

/// What of the store is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Installed packages.
    Software,
    /// Updates that are not installed.
    Updates,
    /// Changes of packages.
    Changes,
    /// Orders and their results.
    Installs,
    /// Open vulnerabilities.
    Vulnerabilities,
    /// Those that were fixed.
    Fixed,
}

/// A kind.
#[derive(Debug)]
pub struct Kind {
    /// What it shows.
    pub source: Source,
    /// Resource, as in paths and RBAC.
    pub resource: &'static str,
    /// Its singular.
    pub singular: &'static str,
    /// Short name.
    pub short: &'static str,
    /// `kind` of an object.
    pub name: &'static str,
    /// Name of the schema of its status in the API's description.
    pub schema: &'static str,
    /// For people.
    pub about: &'static str,
    /// The field of which a name begins, after the device's.
    named: &'static str,
    /// Fields that tell one record of a device from all others.
    key: &'static [&'static str],
    /// After name and device.
    pub columns: &'static [Column],
}

/// A column of `kubectl get`.
#[derive(Debug)]
pub struct Column {
    /// Its head.
    pub name: &'static str,
    /// The field of the status, as a JSON pointer.
    pub field: &'static str,
    /// OpenAPI's type.
    pub kind: &'static str,
    /// 0, or 1 for `-o wide` alone.
    pub priority: i32,
}

const fn shown(name: &'static str, field: &'static str) -> Column {
    Column { name, field, kind: "string", priority: 0 }
}

const fn wide(name: &'static str, field: &'static str) -> Column {
    Column { name, field, kind: "string", priority: 1 }
}

/// All of them.
pub static KINDS: [Kind; 6] = [
    Kind {
        source: Source::Software,
        resource: "softwarepackages",
        singular: "softwarepackage",
        short: "swpkg",
        name: "SoftwarePackage",
        schema: "InstalledPackage",
        about: "A package that is installed on a device.",
        named: "/name",
        key: &["/name", "/arch", "/version"],
        columns: &[
            shown("Package", "/name"),
            shown("Version", "/version"),
            wide("Arch", "/arch"),
            wide("Source", "/source"),
            wide("First Recorded", "/firstRecorded"),
        ],
    },
    Kind {
        source: Source::Updates,
        resource: "missingupdates",
        singular: "missingupdate",
        short: "mupd",
        name: "MissingUpdate",
        schema: "Missing",
        about: "An update that a device is offered and has not installed.",
        named: "/title",
        key: &["/update"],
        columns: &[
            shown("Update", "/update"),
            shown("Classification", "/classification"),
            shown("Severity", "/severity"),
            wide("Title", "/title"),
            wide("First Seen", "/firstSeen"),
            wide("Restart", "/requiresRestart"),
            wide("CVEs", "/cves"),
        ],
    },
    Kind {
        source: Source::Changes,
        resource: "packagechanges",
        singular: "packagechange",
        short: "pkgchg",
        name: "PackageChange",
        schema: "PackageChange",
        about: "A change of a package on a device, whoever made it.",
        named: "/package",
        key: &["/foundAt", "/package", "/arch", "/before", "/after"],
        columns: &[
            shown("Found", "/foundAt"),
            shown("Package", "/package"),
            shown("Before", "/before"),
            shown("After", "/after"),
            shown("By", "/by"),
            wide("Arch", "/arch"),
            wide("Order", "/sequence"),
            wide("User", "/run/user"),
            wide("Command", "/run/command"),
        ],
    },
    Kind {
        source: Source::Installs,
        resource: "installrecords",
        singular: "installrecord",
        short: "instrec",
        name: "InstallRecord",
        schema: "Install",
        about: "An order that was carried to a device, and what came of it.",
        named: "/sequence",
        key: &["/sequence", "/order"],
        columns: &[
            shown("Order", "/sequence"),
            shown("Policy", "/policy"),
            shown("Outcome", "/outcome"),
            shown("Finished", "/finishedAt"),
            wide("Reason", "/reason"),
            wide("Message", "/message"),
            Column { name: "Restarts", field: "/restarts", kind: "integer", priority: 1 },
        ],
    },
    Kind {
        source: Source::Vulnerabilities,
        resource: "devicevulnerabilities",
        singular: "devicevulnerability",
        short: "dvuln",
        name: "DeviceVulnerability",
        schema: "Vulnerability",
        about: "A vulnerability of a package that is installed on a device, by the data that the gateway has imported.",
        named: "/id",
        key: &["/id", "/package", "/arch", "/version"],
        columns: &[
            shown("ID", "/id"),
            shown("Status", "/status"),
            shown("Severity", "/severity"),
            shown("Package", "/package"),
            shown("Version", "/version"),
            shown("Fixed In", "/fixedIn"),
            wide("Discovered", "/discoveredAt"),
            wide("Exploited", "/exploitedSince"),
            Column { name: "EPSS", field: "/epss", kind: "number", priority: 1 },
        ],
    },
    Kind {
        source: Source::Fixed,
        resource: "fixedvulnerabilities",
        singular: "fixedvulnerability",
        short: "fvuln",
        name: "FixedVulnerability",
        schema: "FixedVulnerability",
        about: "A vulnerability that was fixed on a device, whoever fixed it.",
        named: "/id",
        key: &["/id", "/package", "/arch", "/from", "/to", "/fixedAt"],
        columns: &[
            shown("ID", "/id"),
            shown("Package", "/package"),
            shown("From", "/from"),
            shown("To", "/to"),
            shown("Fixed", "/fixedAt"),
            shown("By", "/by"),
            wide("Discovered", "/discoveredAt"),
            wide("Order", "/sequence"),
        ],
    },
];

impl Kind {
    /// That of a resource.
    pub fn of(resource: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.resource == resource)
    }

    /// Of a list.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.name)
    }

    /// A record as an object. Its name is the same for as long as the record is.
    pub fn object(&self, device: &DeviceRef, mut record: Map<String, Value>) -> Value {
        let status = Value::Object(record.clone());
        let key: Vec<_> = self.key.iter().map(|field| status.pointer(field)).collect();
        // Fields of one and the same record, so it can be written.
        let digest = Sha256::digest(json!(key).to_string().as_bytes());
        let digest: String = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(DIGEST).map(hex).collect();
        let slug = slug(status.pointer(self.named).and_then(Value::as_str).unwrap_or_default());
        let name = format!("{}.{slug}.{digest}", device.name);
        record.insert("device".to_owned(), json!(device.name));
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": self.name,
            "metadata": { "name": name, "namespace": device.namespace },
            "status": record,
        })
    }

    /// The cells of an object's row.
    pub fn cells(&self, object: &Value) -> Vec<Value> {
        let own = [&object["metadata"]["name"], &object["status"]["device"]].map(Clone::clone);
        let others = self.columns.iter().map(|column| match object["status"].pointer(column.field) {
            None | Some(Value::Null) if column.kind == "string" => json!(""),
            None => Value::Null,
            Some(Value::Array(parts)) => json!(parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")),
            Some(value) => value.clone(),
        });
        own.into_iter().chain(others).collect()
    }
}

fn hex(digit: u8) -> char {
    char::from_digit(u32::from(digit), 16).unwrap_or('0')
}

/// What of a text may be in the name of an object (RFC 1123), for people who read it.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() == SLUG {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "record".to_owned() } else { slug.to_owned() }
}
