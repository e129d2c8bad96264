//! The limits of a report, read from the very schema that the API server will hold it to.
//!
//! A report that the API server would refuse must be refused as a whole, with the field's name, before anything of it
//! is kept: otherwise the store and the resource would tell different stories.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::CustomResourceExt as _;
use patchwarden_protocol::report::{
    MAX_REMOVABLE, MAX_REMOVABLE_BYTES, MAX_UPDATES, MAX_UPDATES_BYTES, Package, Report, Software,
};
use patchwarden_protocol::result::{InstallResult, MAX_PHASE, MAX_PHASES};
use patchwarden_protocol::{Envelope, canonical};
use serde::Serialize;
use serde_json::Value;

use crate::api::DeviceInventory;

/// RFC 8785 writes numbers as IEEE 754 doubles: larger integers would change.
const MAX_INTEGER: u64 = 1 << 53;

/// `sha256:` and 64 digits.
const MAX_DIGEST: usize = 71;

const HAS_NUL: &str = "has a NUL character";

/// Of a package in a software list, in bytes: what a row of PostgreSQL's index can hold (2,704 bytes) together with the device's name.
const MAX_PACKAGE_NAME: usize = 1024;
const MAX_PACKAGE_VERSION: usize = 512;
const MAX_PACKAGE_ARCH: usize = 128;

/// The schema cannot be found: a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("the schema of status.inventory.report is not in the CustomResourceDefinition")]
pub struct NoSchema;

/// A field over its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct OverLimit {
    /// Path of the field in the report.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The limits.
#[derive(Clone, Debug)]
pub struct Limits {
    report: JSONSchemaProps,
    result_payload: usize,
}

impl Limits {
    /// From the definition that this program was built with.
    pub fn new() -> Result<Self, NoSchema> {
        let definition = DeviceInventory::crd();
        let root = definition
            .spec
            .versions
            .into_iter()
            .next()
            .and_then(|version| version.schema)
            .and_then(|schema| schema.open_api_v3_schema)
            .ok_or(NoSchema)?;
        let inventory = property(property(root, "status")?, "inventory")?;
        let report = property(inventory.clone(), "report")?;
        let payload = property(property(inventory, "result")?, "payload")?;
        let result_payload = payload.max_length.and_then(|max| usize::try_from(max).ok()).ok_or(NoSchema)?;
        Ok(Self { report, result_payload })
    }

    /// Whether a report fits.
    pub fn check_report(&self, report: &Report) -> Result<(), OverLimit> {
        let refuse = |field: &str, problem: String| OverLimit { field: field.to_owned(), problem };
        let value = serde_json::to_value(report).map_err(|error| refuse("report", error.to_string()))?;
        check(&value, &self.report, "report")?;
        within("report.updates", &report.updates, MAX_UPDATES, MAX_UPDATES_BYTES)?;
        within("report.removable", &report.removable, MAX_REMOVABLE, MAX_REMOVABLE_BYTES)
    }

    /// Whether a result fits.
    pub fn check_result(&self, result: &InstallResult, envelope: &Envelope<InstallResult>) -> Result<(), OverLimit> {
        text_within("result.orderDigest", &result.order_digest, MAX_DIGEST)?;
        if result.phases.len() > MAX_PHASES {
            let problem = format!("{} items, at most {MAX_PHASES} are allowed", result.phases.len());
            return Err(OverLimit { field: "result.phases".into(), problem });
        }
        for phase in &result.phases {
            text_within("result.phases[].phase", &phase.phase, MAX_PHASE)?;
        }
        let length = envelope.payload.len();
        if length > self.result_payload {
            let problem = format!("{length} characters, at most {} are allowed", self.result_payload);
            return Err(OverLimit { field: "result.payload".into(), problem });
        }
        if envelope.signatures.len() != 1 {
            let problem = format!("{} signatures, exactly one is expected", envelope.signatures.len());
            return Err(OverLimit { field: "result.signatures".into(), problem });
        }
        Ok(())
    }
}

/// Whether a software list fits.
pub fn check_software(software: &Software) -> Result<(), OverLimit> {
    for (index, Package { name, arch, version, source, source_version }) in software.packages.iter().enumerate() {
        for (field, text, max) in [
            ("name", name, MAX_PACKAGE_NAME),
            ("arch", arch, MAX_PACKAGE_ARCH),
            ("version", version, MAX_PACKAGE_VERSION),
            ("source", source, MAX_PACKAGE_NAME),
            ("sourceVersion", source_version.as_ref().unwrap_or(&String::new()), MAX_PACKAGE_VERSION),
        ] {
            let field = format!("software.packages[{index}].{field}");
            text_within(&field, text, max)?;
            // No package manager has any, and places in lists are made of these.
            if text.chars().any(|one| one.is_control() || one == char::REPLACEMENT_CHARACTER) {
                return Err(OverLimit { field, problem: "has a control character".to_owned() });
            }
        }
    }
    Ok(())
}

/// So many bytes at most, none of them NUL: PostgreSQL keeps no such text.
fn text_within(field: &str, text: &str, max: usize) -> Result<(), OverLimit> {
    let problem = match text.len() {
        length if length > max => format!("{length} bytes, at most {max} are allowed"),
        _ if text.contains('\0') => HAS_NUL.to_owned(),
        _ => return Ok(()),
    };
    Err(OverLimit { field: field.to_owned(), problem })
}

fn property(schema: JSONSchemaProps, name: &str) -> Result<JSONSchemaProps, NoSchema> {
    schema.properties.and_then(|mut properties| properties.remove(name)).ok_or(NoSchema)
}

fn check(value: &Value, schema: &JSONSchemaProps, field: &str) -> Result<(), OverLimit> {
    let refuse = |problem: String| Err(OverLimit { field: field.to_owned(), problem });
    match value {
        Value::String(text) => {
            if text.contains('\0') {
                return refuse(HAS_NUL.to_owned());
            }
            // The API server counts code points.
            let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            if let Some(max) = schema.max_length.filter(|max| length > *max) {
                return refuse(format!("{length} characters, at most {max} are allowed"));
            }
            if let Some(min) = schema.min_length.filter(|min| length < *min) {
                return refuse(format!("{length} characters, at least {min} are needed"));
            }
        }
        Value::Array(items) => {
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            if let Some(max) = schema.max_items.filter(|max| length > *max) {
                return refuse(format!("{length} items, at most {max} are allowed"));
            }
            if let Some(min) = schema.min_items.filter(|min| length < *min) {
                return refuse(format!("{length} items, at least {min} are needed"));
            }
            if let Some(item) = item_schema(schema) {
                for (index, value) in items.iter().enumerate() {
                    check(value, item, &format!("{field}[{index}]"))?;
                }
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let Some(inner) = schema.properties.as_ref().and_then(|properties| properties.get(name)) else {
                    return refuse(format!("the field {name} is not known"));
                };
                check(value, inner, &format!("{field}.{name}"))?;
            }
        }
        Value::Number(number) => {
            if number.as_u64().is_some_and(|number| number > MAX_INTEGER) {
                return refuse(format!("{number} is too large"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    Ok(())
}

fn item_schema(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray as Items;
    match schema.items.as_ref()? {
        Items::Schema(item) => Some(item),
        Items::Schemas(_) => None,
    }
}

/// So many items at most, and so many bytes of canonical JSON.
fn within<T: Serialize>(field: &str, list: &[T], items: usize, bytes: usize) -> Result<(), OverLimit> {
    let refuse = |problem: String| OverLimit { field: field.to_owned(), problem };
    if list.len() > items {
        return Err(refuse(format!("{} items, at most {items} are allowed", list.len())));
    }
    let length = canonical::to_bytes(&list).map_err(|error| refuse(error.to_string()))?.len();
    if length > bytes {
        return Err(refuse(format!("{length} bytes, at most {bytes} are allowed")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{report, update};
    use patchwarden_protocol::report::Removable;

    #[test]
    fn an_ordinary_report_fits() {
        let mut document = report("acme", "web");
        document.updates = vec![update("DSA-1")];
        assert_eq!(Limits::new().unwrap().check_report(&document), Ok(()));
    }

    #[test]
    fn a_package_that_no_index_can_hold_is_named() {
        let list = |version: String| {
            let package =
                Package { name: "p".into(), arch: "amd64".into(), version, source: "p".into(), source_version: None };
            check_software(&Software { packages: vec![package] }).map_err(|error| error.field)
        };
        assert_eq!(list("1".repeat(512)), Ok(()));
        for version in ["1".repeat(513), "1\0".into()] {
            assert_eq!(list(version), Err("software.packages[0].version".to_owned()));
        }
    }

    #[test]
    fn what_is_too_long_is_named() {
        let limits = Limits::new().unwrap();
        let field = |change: &dyn Fn(&mut Report)| {
            let mut document = report("acme", "web");
            document.updates = vec![update("DSA-1")];
            change(&mut document);
            limits.check_report(&document).unwrap_err().field
        };
        assert_eq!(field(&|r| r.updates[0].title = "x".repeat(201)), "report.updates[0].title");
        assert_eq!(field(&|r| r.updates[0].id = String::new()), "report.updates[0].id");
        assert_eq!(field(&|r| r.updates[0].packages.clear()), "report.updates[0].packages");
        assert_eq!(field(&|r| r.updates[0].packages[0].name = "x".repeat(129)), "report.updates[0].packages[0].name");
        assert_eq!(field(&|r| r.os.kernel = "x".repeat(129)), "report.os.kernel");
        assert_eq!(field(&|r| r.updates[0].id = "a\0b".into()), "report.updates[0].id");
        assert_eq!(field(&|r| r.counter = (1 << 53) + 1), "report.counter");
        assert_eq!(field(&|r| r.restart.reasons = vec![String::new(); 17]), "report.restart.reasons");
        assert_eq!(field(&|r| r.updates = (0..25).map(|n| update(&format!("DSA-{n}"))).collect()), "report.updates");
        let removable =
            |id: String| Removable { id, packages: update("x").packages, artifacts_digest: "sha256:a".into() };
        assert_eq!(field(&|r| r.removable = (0..9).map(|n| removable(n.to_string())).collect()), "report.removable");
        assert_eq!(
            field(&|r| r.removable = (0..5).map(|n| removable(n.to_string().repeat(250))).collect()),
            "report.removable"
        );
        assert_eq!(field(&|r| r.updates = (0..65).map(|n| update(&format!("DSA-{n}"))).collect()), "report.updates");
    }
}
