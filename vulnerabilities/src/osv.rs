//! OSV records (<https://ossf.github.io/osv-schema/>, schema 1.x): a JSON object each, alone in a file or in an ecosystem's `all.zip`.

use std::fs::File;
use std::io::BufReader;

use jiff::Timestamp;
use patchwarden_protocol::report::Severity;
use serde::Deserialize;
use zip::ZipArchive;

use crate::directory::{Entry, Summary, Take};
use crate::limits::{MAX_ARCHIVE, MAX_CVES, MAX_ID, MAX_NAME, MAX_RECORD, MAX_RECORDS, MAX_STATEMENTS};
use crate::platform::Platform;
use crate::reading::{Fault, Halt, all, check_text, is_cve, shown};
use crate::statement::{Affected, Event, Statement};

#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    schema_version: Option<String>,
    /// Required by the schema: what has none, or no time there, is no OSV record.
    #[serde(rename = "modified")]
    _modified: Timestamp,
    #[serde(default)]
    withdrawn: Option<Timestamp>,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    upstream: Option<Vec<String>>,
    #[serde(default)]
    related: Option<Vec<String>>,
    #[serde(default)]
    severity: Option<Vec<Score>>,
    #[serde(default)]
    affected: Option<Vec<Part>>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    package: Option<Name>,
    #[serde(default)]
    severity: Option<Vec<Score>>,
    #[serde(default)]
    ranges: Option<Vec<Range>>,
    #[serde(default)]
    versions: Option<Vec<String>>,
    #[serde(default)]
    ecosystem_specific: Option<Urgency>,
}

#[derive(Deserialize)]
struct Name {
    ecosystem: String,
    name: String,
}

#[derive(Deserialize)]
struct Score {
    #[serde(rename = "type")]
    kind: String,
    score: String,
}

/// Debian's word on how bad it is; other databases have other things there.
#[derive(Default)]
struct Urgency(Option<String>);

impl<'de> Deserialize<'de> for Urgency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(value.get("urgency").and_then(serde_json::Value::as_str).map(str::to_owned)))
    }
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    events: Vec<Told>,
}

/// Exactly one of them is there.
#[derive(Deserialize)]
struct Told {
    introduced: Option<String>,
    fixed: Option<String>,
    last_affected: Option<String>,
    limit: Option<String>,
}

/// Reads one record.
pub(crate) fn record(bytes: &[u8], summary: &mut Summary, take: &mut Take<'_>) -> Result<(), Halt> {
    let record: Record = serde_json::from_slice(bytes).map_err(Fault::whole)?;
    let place = format!("record {}", shown(&record.id));
    let refuse = |reason: String| Halt::from(Fault::at(&place, reason));
    check_text("id", &record.id, MAX_ID).map_err(refuse)?;
    if let Some(version) = record.schema_version.as_deref().filter(|version| !version.starts_with("1.")) {
        return Err(refuse(format!("schema_version: {} is not 1.x, which is what is understood", shown(version))));
    }
    summary.records += 1;
    if record.withdrawn.is_some() {
        summary.withdrawn += 1;
        return Ok(());
    }
    let cves = cves(&record).map_err(refuse)?;
    let packages = record.affected.unwrap_or_default();
    if packages.len() > MAX_STATEMENTS {
        return Err(refuse(format!("affected: {} packages: at most {MAX_STATEMENTS} are allowed", packages.len())));
    }
    for (at, package) in packages.into_iter().enumerate() {
        let refuse = |reason: String| refuse(format!("affected[{at}]: {reason}"));
        // Without a package it is about commits of a repository.
        let Some(name) = package.package else { continue };
        check_text("package.ecosystem", &name.ecosystem, MAX_NAME).map_err(refuse)?;
        check_text("package.name", &name.name, MAX_NAME).map_err(refuse)?;
        let ranges = ranges(package.ranges.unwrap_or_default()).map_err(refuse)?;
        let Some(platform) = Platform::of_ecosystem(&name.ecosystem) else {
            summary.leave_out(&name.ecosystem);
            continue;
        };
        let severities = package.severity.iter().flatten().chain(record.severity.iter().flatten());
        let urgency = package.ecosystem_specific.unwrap_or_default().0;
        let severity = severities.filter_map(word).max().or_else(|| urgency.as_deref().map(by_word));
        match Affected::new(platform.order(), ranges, package.versions.unwrap_or_default()) {
            Ok(affected) => take(Entry::Statement(Statement {
                advisory: record.id.clone(),
                cves: cves.clone(),
                severity: severity.unwrap_or(Severity::Unknown),
                names: platform.names(),
                platform,
                package: name.name,
                arches: Vec::new(),
                affected,
            }))?,
            Err(_) => summary.unreadable += 1,
        }
    }
    Ok(())
}

/// Its own id, what it is an alias of, and what it stands upon. Records made before `upstream` was defined (schema 1.7) have the
/// CVEs of an advisory in `related`.
fn cves(record: &Record) -> Result<Vec<String>, String> {
    let named = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().filter(|id| is_cve(id)).cloned().collect()
    };
    let mut cves: Vec<String> = Some(record.id.clone()).filter(|id| is_cve(id)).into_iter().collect();
    cves.extend(named(&record.aliases));
    cves.extend(named(&record.upstream));
    if cves.is_empty() {
        cves = named(&record.related);
    }
    cves.sort();
    cves.dedup();
    if cves.len() > MAX_CVES {
        return Err(format!("names {} CVEs: at most {MAX_CVES} are allowed", cves.len()));
    }
    Ok(cves)
}

fn ranges(ranges: Vec<Range>) -> Result<Vec<Vec<Event>>, String> {
    let mut found = Vec::new();
    for (at, range) in ranges.into_iter().enumerate() {
        let events = range.events.into_iter().filter(|told| !told.is_limit()).map(|told| {
            event(told).ok_or_else(|| {
                format!("ranges[{at}].events: each must have one of introduced, fixed, last_affected and limit")
            })
        });
        let events: Vec<Event> = events.collect::<Result<_, _>>()?;
        if !events.iter().any(|event| matches!(event, Event::Introduced(_))) {
            return Err(format!("ranges[{at}].events: none is an introduction"));
        }
        match range.kind.as_str() {
            "ECOSYSTEM" => found.push(events),
            "GIT" | "SEMVER" => {}
            other => return Err(format!("ranges[{at}].type: {} is none of ECOSYSTEM, GIT and SEMVER", shown(other))),
        }
    }
    Ok(found)
}

impl Told {
    /// Of branches and not of versions.
    fn is_limit(&self) -> bool {
        matches!(self, Self { introduced: None, fixed: None, last_affected: None, limit: Some(_) })
    }
}

/// Nothing for what is none or several.
fn event(told: Told) -> Option<Event> {
    match told {
        Told { introduced: Some(version), fixed: None, last_affected: None, limit: None } => {
            Some(Event::Introduced(version))
        }
        Told { introduced: None, fixed: Some(version), last_affected: None, limit: None } => {
            Some(Event::Fixed(version))
        }
        Told { introduced: None, fixed: None, last_affected: Some(version), limit: None } => {
            Some(Event::LastAffected(version))
        }
        _ => None,
    }
}

/// Only a vendor's word: CVSS scores are the vulnerability's and not the package's.
fn word(score: &Score) -> Option<Severity> {
    (score.kind == "Ubuntu").then(|| by_word(&score.score))
}

/// Words of Debian, Ubuntu, Red Hat and SUSE. `negligible` and `unimportant` are what nobody hurries for.
pub(crate) fn by_word(word: &str) -> Severity {
    match word.to_ascii_lowercase().as_str() {
        "critical" => Severity::Critical,
        "important" | "high" => Severity::High,
        "moderate" | "medium" => Severity::Medium,
        "low" | "negligible" | "unimportant" => Severity::Low,
        _ => Severity::Unknown,
    }
}

/// Reads an ecosystem's archive, one record after another.
pub(crate) fn archive(file: File, summary: &mut Summary, take: &mut Take<'_>) -> Result<(), Halt> {
    let size = file.metadata().map_err(Fault::whole)?.len();
    if size > MAX_ARCHIVE {
        return Err(Fault::whole(format!("has {size} bytes: at most {MAX_ARCHIVE} are allowed")).into());
    }
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(Fault::whole)?;
    if archive.len() > MAX_RECORDS {
        return Err(Fault::whole(format!("has {} records: at most {MAX_RECORDS} are allowed", archive.len())).into());
    }
    let mut buffer = Vec::new();
    for at in 0..archive.len() {
        let entry = archive.by_index(at).map_err(|error| Fault::at(format!("entry {at}"), error))?;
        let name = entry.name().map_err(|error| Fault::at(format!("entry {at}"), error))?;
        let is_json = name.ends_with(".json");
        let name = shown(&name);
        if entry.is_dir() {
            continue;
        }
        if !is_json {
            return Err(Fault::at(name, "is no JSON file, and an archive of OSV's has no others").into());
        }
        all(entry, MAX_RECORD, &mut buffer).map_err(|fault| Fault::at(&name, fault.reason))?;
        record(&buffer, summary, take).map_err(|halt| match halt {
            Halt::Fault(fault) => Halt::Fault(Fault::at(&name, format!("{}{}", fault.place, fault.reason))),
            Halt::Stopped => Halt::Stopped,
        })?;
    }
    Ok(())
}
