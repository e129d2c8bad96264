//! CSAF 2.0 documents (<https://docs.oasis-open.org/csaf/csaf/v2.0/os/csaf-v2.0-os.html>): advisories and VEX, as Red Hat and SUSE
//! publish them.
//!
//! A status names a product: a relationship `default_component_of` between a package, known by its package URL (`pkg:rpm/...`), and a
//! product, known by its CPE. What has not both, or is a package of a module stream, a container or of a product that is no
//! distribution of [`crate::platform`]'s, says nothing of a device: it is left out and counted. `fixed`, `first_fixed` and `recommended`
//! (which is what SUSE uses) name the version with the fix: what comes before it counts as affected. `known_affected` without a
//! version is a package that has no fix. `known_not_affected` and `under_investigation` say that nothing is open, and so does their
//! absence.

mod tree;

use std::collections::{BTreeMap, BTreeSet};

use patchwarden_protocol::report::Severity;
use serde::Deserialize;

use self::tree::{Component, Products, Tree};
use crate::directory::{Entry, Summary, Take};
use crate::limits::{MAX_ID, MAX_STATEMENTS};
use crate::osv::by_word;
use crate::platform::Platform;
use crate::reading::{Fault, Halt, check_text, is_cve, shown};
use crate::statement::{Affected, Names, Statement};

#[derive(Deserialize)]
struct Csaf {
    document: Meta,
    #[serde(default)]
    product_tree: Tree,
    #[serde(default)]
    vulnerabilities: Vec<Vulnerability>,
}

#[derive(Deserialize)]
struct Meta {
    csaf_version: String,
    tracking: Tracking,
    #[serde(default)]
    aggregate_severity: Option<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
struct Tracking {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct Vulnerability {
    #[serde(default)]
    cve: Option<String>,
    #[serde(default)]
    product_status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    fixed: Vec<String>,
    first_fixed: Vec<String>,
    recommended: Vec<String>,
    known_affected: Vec<String>,
    first_affected: Vec<String>,
    last_affected: Vec<String>,
    known_not_affected: Vec<String>,
    under_investigation: Vec<String>,
}

/// What is said of a package of a release: the version with the fix or that is affected, and for which architectures.
type Said<'p> = BTreeMap<(Platform, &'p str, Names, What<'p>), BTreeSet<&'p str>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What<'t> {
    FixedIn(&'t str),
    Affected(&'t str),
    AllAffected,
}

/// Reads a document.
pub(crate) fn document(bytes: &[u8], summary: &mut Summary, take: &mut Take<'_>) -> Result<(), Halt> {
    let Csaf { document, product_tree, vulnerabilities } = serde_json::from_slice(bytes).map_err(Fault::whole)?;
    let id = &document.tracking.id;
    let place = format!("document {}", shown(id));
    let refuse = |reason: String| Halt::from(Fault::at(&place, reason));
    check_text("document.tracking.id", id, MAX_ID).map_err(refuse)?;
    if document.csaf_version != "2.0" {
        return Err(refuse(format!(
            "csaf_version: {} is not 2.0, which is what is understood",
            shown(&document.csaf_version)
        )));
    }
    if document.tracking.status == "draft" {
        return Err(refuse("document.tracking.status: a draft is not to be used (CSAF 2.0, 3.2.1.12.7)".to_owned()));
    }
    let products = Products::of(&product_tree).map_err(refuse)?;
    summary.records += 1;
    let severity = document.aggregate_severity.map_or(Severity::Unknown, |it| by_word(&it.text));
    let mut count = 0;
    for (at, vulnerability) in vulnerabilities.iter().enumerate() {
        let refuse = |reason: String| refuse(format!("vulnerabilities[{at}].{reason}"));
        let cves: Vec<String> = vulnerability.cve.iter().cloned().collect();
        if let Some(bad) = cves.iter().find(|cve| !is_cve(cve)) {
            return Err(refuse(format!("cve: `{}` is no CVE", shown(bad))));
        }
        let said = said(&vulnerability.product_status, &products, summary).map_err(refuse)?;
        count += said.len();
        if count > MAX_STATEMENTS {
            return Err(refuse(format!("product_status: more than {MAX_STATEMENTS} statements in one document")));
        }
        for ((platform, package, names, what), arches) in said {
            let version = match what {
                What::FixedIn(version) | What::Affected(version) => version,
                What::AllAffected => "0",
            };
            if !platform.order().is_valid(version) {
                summary.unreadable += 1;
                continue;
            }
            let affected = match what {
                What::FixedIn(version) => Affected::before(version.to_owned()),
                What::Affected(version) => Affected { versions: vec![version.to_owned()], ..Affected::default() },
                What::AllAffected => Affected::all(),
            };
            // Packages without an architecture of their own are on devices of each.
            let is_everywhere = arches.iter().any(|arch| matches!(*arch, "" | "noarch" | "src" | "nosrc"));
            let arches = if is_everywhere { Vec::new() } else { arches.into_iter().map(str::to_owned).collect() };
            take(Entry::Statement(Statement {
                advisory: id.clone(),
                cves: cves.clone(),
                severity,
                platform,
                package: package.to_owned(),
                names,
                arches,
                affected,
            }))?;
        }
    }
    Ok(())
}

fn said<'p>(status: &Status, products: &'p Products<'_>, summary: &mut Summary) -> Result<Said<'p>, String> {
    let Status {
        fixed,
        first_fixed,
        recommended,
        known_affected,
        first_affected,
        last_affected,
        known_not_affected,
        under_investigation,
    } = status;
    let mut said = Said::new();
    for (field, list) in [("fixed", fixed), ("first_fixed", first_fixed), ("recommended", recommended)] {
        for component in components(field, list, products, summary)? {
            match component.version.as_deref() {
                Some(version) => add(&mut said, component, What::FixedIn(version)),
                None => summary.leave_out("a fix without its version"),
            }
        }
    }
    for (field, list) in
        [("known_affected", known_affected), ("first_affected", first_affected), ("last_affected", last_affected)]
    {
        for component in components(field, list, products, summary)? {
            let what = component.version.as_deref().map_or(What::AllAffected, What::Affected);
            add(&mut said, component, what);
        }
    }
    // They must exist like the others.
    for (field, list) in [("known_not_affected", known_not_affected), ("under_investigation", under_investigation)] {
        for id in list {
            products.check(id).map_err(|reason| format!("product_status.{field}: {reason}"))?;
        }
    }
    // The binaries of a fix are what devices have; the source says the same once more.
    let fixed: BTreeSet<(Platform, &str)> = said
        .keys()
        .filter(|(_, _, names, what)| *names == Names::Binary && matches!(what, What::FixedIn(_)))
        .map(|(platform, _, _, what)| (platform.clone(), version_of(*what)))
        .collect();
    said.retain(|(platform, _, names, what), _| {
        *names == Names::Binary
            || !matches!(what, What::FixedIn(_))
            || !fixed.contains(&(platform.clone(), version_of(*what)))
    });
    Ok(said)
}

fn version_of(what: What<'_>) -> &str {
    match what {
        What::FixedIn(version) | What::Affected(version) => version,
        What::AllAffected => "",
    }
}

fn components<'p>(
    field: &str,
    list: &[String],
    products: &'p Products<'_>,
    summary: &mut Summary,
) -> Result<Vec<&'p Component>, String> {
    let mut found = Vec::new();
    for id in list {
        match products.component(id).map_err(|reason| format!("product_status.{field}: {reason}"))? {
            Ok(component) => found.push(component),
            Err(why) => summary.leave_out(why),
        }
    }
    Ok(found)
}

fn add<'p>(said: &mut Said<'p>, component: &'p Component, what: What<'p>) {
    let is_source = matches!(component.arch.as_str(), "src" | "nosrc");
    let names = if is_source { Names::Source } else { Names::Binary };
    let key = (component.platform.clone(), component.package.as_str(), names, what);
    said.entry(key).or_default().insert(component.arch.as_str());
}
