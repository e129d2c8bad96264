//! CISA's catalogue of known exploited vulnerabilities, as JSON and as CSV
//! (<https://www.cisa.gov/known-exploited-vulnerabilities-catalog>).

use std::collections::BTreeMap;
use std::io::Read;

use jiff::civil::Date;
use serde::Deserialize;

use crate::reading::{Fault, is_cve, shown};

/// What is known of one: since when it is in the catalogue.
pub(crate) type Catalogue = BTreeMap<String, Date>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    catalog_version: String,
    /// How many there are.
    count: u64,
    vulnerabilities: Vec<Vulnerability>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vulnerability {
    #[serde(rename = "cveID")]
    cve_id: String,
    date_added: String,
}

pub(crate) fn json(bytes: &[u8]) -> Result<Catalogue, Fault> {
    let document: Document = serde_json::from_slice(bytes).map_err(Fault::whole)?;
    let told = document.vulnerabilities.len();
    if document.count != told as u64 {
        let version = shown(&document.catalog_version);
        let reason = format!("has {told} vulnerabilities, and says that there are {}: get it again", document.count);
        return Err(Fault::at(format!("catalogue {version}"), reason));
    }
    let mut catalogue = Catalogue::new();
    for (at, Vulnerability { cve_id, date_added }) in document.vulnerabilities.into_iter().enumerate() {
        add(&mut catalogue, &cve_id, &date_added)
            .map_err(|reason| Fault::at(format!("vulnerabilities[{at}]"), reason))?;
    }
    full(catalogue)
}

/// Columns are known by their names in the first line.
pub(crate) fn csv(source: impl Read) -> Result<Catalogue, Fault> {
    let mut reader = csv::ReaderBuilder::new().from_reader(source);
    let header = reader.headers().map_err(Fault::whole)?;
    let column = |name: &str| {
        let found = header.iter().position(|column| column.trim_start_matches('\u{feff}') == name);
        found.ok_or_else(|| Fault::at("line 1", format!("has no column {name}: this is no KEV catalogue")))
    };
    let (cve_id, date_added) = (column("cveID")?, column("dateAdded")?);
    let mut catalogue = Catalogue::new();
    for record in reader.into_records() {
        let record = record.map_err(Fault::whole)?;
        let line = record.position().map_or(0, csv::Position::line);
        // The reader sees to it that each record has as many fields as the first line.
        let field = |at: usize| record.get(at).unwrap_or_default();
        add(&mut catalogue, field(cve_id), field(date_added))
            .map_err(|reason| Fault::at(format!("line {line}"), reason))?;
    }
    full(catalogue)
}

fn add(catalogue: &mut Catalogue, cve: &str, added: &str) -> Result<(), String> {
    if !is_cve(cve) {
        return Err(format!("cveID: `{}` is no CVE", shown(cve)));
    }
    let added = added.parse::<Date>().map_err(|error| format!("dateAdded: `{}`: {error}", shown(added)))?;
    match catalogue.insert(cve.to_owned(), added) {
        None => Ok(()),
        Some(_) => Err(format!("cveID: {cve} is there twice")),
    }
}

/// An empty one would take back what is known of every vulnerability.
fn full(catalogue: Catalogue) -> Result<Catalogue, Fault> {
    if catalogue.is_empty() { Err(Fault::whole("has no vulnerabilities: get it again")) } else { Ok(catalogue) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_csv_say_the_same() {
        let by_json = json(include_bytes!("../tests/data/known_exploited_vulnerabilities.json")).unwrap();
        let by_csv = csv(&include_bytes!("../tests/data/known_exploited_vulnerabilities.csv")[..]).unwrap();
        assert_eq!(by_json, by_csv);
        assert_eq!(by_json.get("CVE-2021-44228").map(Date::to_string).as_deref(), Some("2021-12-10"));
        assert_eq!(by_json.len(), 2);
    }

    #[test]
    fn what_is_not_whole_is_refused_with_its_place() {
        let entry = r#"{"cveID":"CVE-2021-44228","dateAdded":"2021-12-10"}"#;
        let catalogue = |count: u32, entries: &str| {
            format!(r#"{{"catalogVersion":"1","count":{count},"vulnerabilities":[{entries}]}}"#)
        };
        for (text, expected) in [
            (catalogue(2, entry), "says that there are 2"),
            (catalogue(0, ""), "has no vulnerabilities"),
            (catalogue(2, &format!("{entry},{entry}")), "vulnerabilities[1]: cveID: CVE-2021-44228 is there twice"),
            (catalogue(1, &entry.replace("12-10", "13-10")), "vulnerabilities[0]: dateAdded"),
            (catalogue(1, &entry.replace("CVE-", "")), "vulnerabilities[0]: cveID"),
            (catalogue(1, entry)[..60].to_owned(), "EOF"),
        ] {
            let fault = json(text.as_bytes()).unwrap_err();
            let said = format!("{}{}", fault.place, fault.reason);
            assert!(said.contains(expected), "{said}");
        }
        for (text, expected) in [
            ("cve,epss\nCVE-2021-44228,1\n", "line 1: has no column cveID"),
            ("cveID,dateAdded\nCVE-2021-44228,2021-12-10\nCVE-2021-44229,soon\n", "line 3: dateAdded"),
            ("cveID,dateAdded\nCVE-2021-44228\n", "fields"),
            ("cveID,dateAdded\n", "has no vulnerabilities"),
        ] {
            let fault = csv(text.as_bytes()).unwrap_err();
            let said = format!("{}{}", fault.place, fault.reason);
            assert!(said.contains(expected), "{said}");
        }
    }
}
