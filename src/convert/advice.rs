//! What advisories say of the updates that devices offer.

use std::collections::BTreeMap;
use std::sync::Arc;

use patchwarden_protocol::report::{OperatingSystem, Severity, Update};
use patchwarden_protocol::versions::deb;
use patchwarden_vulnerabilities::Platform;
use patchwarden_vulnerabilities::advisories::{Advisories, Fixed};
use patchwarden_vulnerabilities::matching::Installed;

use crate::plan::model::Name;
use crate::plan::package::{deb_source_of, oldest, version_of};

/// Advisories, with what they were asked already: a fleet's devices go from few versions to few others.
#[derive(Clone, Debug, Default)]
pub struct Advice {
    advisories: Arc<Advisories>,
    asked: BTreeMap<Step, Arc<Fixed>>,
}

/// From one version of a source package to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    platform: Platform,
    source: String,
    before: Versions,
    after: Versions,
}

/// Of a source package, and of a binary package of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Versions {
    source: String,
    binary: String,
}

impl Advice {
    /// Of these advisories.
    pub fn new(advisories: Arc<Advisories>) -> Self {
        Self { advisories, asked: BTreeMap::new() }
    }

    /// What an update fixes, and how severe that is: what the device tells, and what advisories do. Of the severity the device's word
    /// counts where it has one.
    pub(super) fn of(&mut self, os: &OperatingSystem, update: &Update) -> (Vec<Name>, Severity) {
        let Some(fixed) = self.fixed(os, update) else { return (super::names(&update.cves), update.severity) };
        let severity = if update.severity == Severity::Unknown { fixed.severity } else { update.severity };
        let mut cves = super::names(&update.cves);
        cves.extend(fixed.ids.iter().filter(|id| !update.cves.iter().any(|told| **told == ***id)).cloned());
        (cves, severity)
    }

    fn fixed(&mut self, os: &OperatingSystem, update: &Update) -> Option<Arc<Fixed>> {
        let platform = Platform::of_device(&os.name, &os.version).filter(|it| self.advisories.knows(it))?;
        let step = step(platform, update)?;
        if let Some(known) = self.asked.get(&step) {
            return Some(known.clone());
        }
        let Step { platform, source, before, after } = &step;
        let [before, after] = [before, after].map(|versions| Installed {
            name: "",
            arch: "",
            version: &versions.binary,
            source,
            source_version: Some(&versions.source),
        });
        let fixed = Arc::new(self.advisories.fixed(platform, &before, &after));
        self.asked.insert(step, fixed.clone());
        Some(fixed)
    }
}

/// Nothing where the version of the installed source package is not known.
fn step(platform: Platform, update: &Update) -> Option<Step> {
    let oldest = update.packages.iter().min_by(|a, b| deb::compare(&a.installed, &b.installed))?;
    let before = Versions { source: installed_source(update)?.to_owned(), binary: oldest.installed.clone() };
    let after = Versions { source: version_of(&update.id)?, binary: oldest.candidate.clone() };
    Some(Step { platform, source: deb_source_of(&update.id)?, before, after })
}

/// The version of the source package that is installed: as the device tells it, or where a binary package has its source's version as
/// its own.
pub(super) fn installed_source(update: &Update) -> Option<&str> {
    if let Some(told) = &update.source_installed {
        return Some(told);
    }
    let version = version_of(&update.id)?;
    let same = update.packages.iter().filter(|package| package.candidate == version);
    oldest(&update.id, same.map(|package| package.installed.as_str()))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::order::PackageChange;
    use patchwarden_vulnerabilities::advisories::Reading;
    use patchwarden_vulnerabilities::statement::{Affected, Names, Span, Statement, Until};

    use super::*;
    use crate::gateway::testing::update;

    fn os(name: &str, version: &str) -> OperatingSystem {
        let (family, arch, kernel) = ("linux".into(), "amd64".into(), "6".into());
        OperatingSystem { family, name: name.into(), version: version.into(), arch, kernel }
    }

    fn statement(cve: &str, package: &str, fixed: &str) -> Statement {
        let until = Until::Fixed(fixed.into());
        Statement {
            advisory: format!("DEBIAN-{cve}"),
            cves: vec![cve.into()],
            severity: Severity::High,
            platform: Platform::of_device("debian", "12").unwrap(),
            package: package.into(),
            names: Names::Source,
            arches: vec![],
            affected: Affected { spans: vec![Span { from: None, until }], versions: vec![] },
        }
    }

    fn advice() -> Advice {
        let mut reading = Reading::default();
        reading.add(statement("CVE-2026-0001", "lvm2", "2.03.17-1"));
        reading.add(statement("CVE-2026-0002", "lvm2", "2.03.16-1"));
        reading.add(statement("CVE-2026-0003", "linux", "6.1.147-1"));
        Advice::new(Arc::new(reading.end()))
    }

    fn offered(id: &str, packages: &[(&str, &str, &str)], source_installed: Option<&str>) -> Update {
        let package = |(name, installed, candidate): &(&str, &str, &str)| PackageChange {
            name: (*name).into(),
            arch: "amd64".into(),
            installed: (*installed).into(),
            candidate: (*candidate).into(),
        };
        let packages = packages.iter().map(package).collect();
        Update { packages, source_installed: source_installed.map(Into::into), ..update(id) }
    }

    // covers BY-7
    #[test]
    fn an_update_fixes_what_the_versions_of_its_source_say() {
        let mut advice = advice();
        let mut told = |release: &str, update: &Update| {
            let (cves, severity) = advice.of(&os("debian", release), update);
            (cves.join(" "), severity)
        };
        let map = [("libdevmapper", "2:1.02.185-2", "2:1.02.186-1")];
        let lvm = |packages, installed| offered("pkg:deb/debian/lvm2@2.03.17-1", packages, installed);
        let nothing = (String::new(), Severity::Unknown);
        assert_eq!(told("12.11", &lvm(&map, Some("2.03.16-2"))), ("CVE-2026-0001".into(), Severity::High));
        assert_eq!(told("12", &lvm(&map, Some("2.02-1"))), ("CVE-2026-0001 CVE-2026-0002".into(), Severity::High));
        assert_eq!(told("12", &lvm(&map, None)), nothing, "by the binary's version nothing can be said");
        let both = [map[0], ("lvm2", "2.03.16-2", "2.03.17-1")];
        assert_eq!(told("12", &lvm(&both, None)), ("CVE-2026-0001".into(), Severity::High));
        assert_eq!(told("13", &lvm(&both, None)), nothing, "nothing is known of that release");
        let kernel = [("linux-image-6.1.0-38-amd64", "6.1.140-1", "6.1.147-1")];
        let kernel = offered("pkg:deb/debian/linux-signed-amd64@6.1.147%2B1", &kernel, Some("6.1.140+1"));
        assert_eq!(told("12", &kernel), ("CVE-2026-0003".into(), Severity::High));
    }

    #[test]
    fn what_a_device_tells_stays_and_its_severity_counts() {
        let packages = [("lvm2", "2.03.16-2", "2.03.17-1")];
        let update = Update {
            cves: vec!["CVE-2026-0001".into(), "CVE-2025-9999".into()],
            severity: Severity::Low,
            ..offered("pkg:deb/debian/lvm2@2.03.17-1", &packages, None)
        };
        let expected = (vec!["CVE-2026-0001".into(), "CVE-2025-9999".into()], Severity::Low);
        assert_eq!(advice().of(&os("debian", "12"), &update), expected);
        assert_eq!(Advice::default().of(&os("debian", "12"), &update), expected);
    }
}
