//! What an update fixes, where its repository does not tell: Debian's and Ubuntu's name no CVEs, their OSV records do.
//!
//! Held in memory for many questions: names and versions once, however many statements have them. Statements about other
//! distributions are not kept: there the package manager tells an update's CVEs itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use patchwarden_protocol::report::Severity;

use crate::matching::Installed;
use crate::platform::Platform;
use crate::statement::{Order, Span, Statement, Until};

/// Statements by the source package of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advisories {
    packages: BTreeMap<Platform, BTreeMap<Arc<str>, Vec<Word>>>,
}

/// A statement, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    /// CVEs, or the advisory's id where it names none.
    ids: Box<[Arc<str>]>,
    severity: Severity,
    affected: Box<[Span]>,
}

/// What an update fixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// CVEs, or advisories that name none, sorted.
    pub ids: Vec<Arc<str>>,
    /// The worst that is said of any of them.
    pub severity: Severity,
}

/// Advisories that are being read.
#[derive(Debug, Default)]
pub struct Reading {
    read: Advisories,
    texts: BTreeSet<Arc<str>>,
}

impl Reading {
    /// Keeps a statement, if it is about a distribution whose repositories do not tell.
    pub fn add(&mut self, statement: Statement) {
        if statement.platform.order() != Order::Deb {
            return;
        }
        let Statement { advisory, cves, severity, platform, package, names: _, arches: _, affected } = statement;
        let ids = if cves.is_empty() { vec![advisory] } else { cves };
        let ids = ids.iter().map(|id| self.text(id)).collect();
        let one =
            |version: String| Span { from: Some(version.clone().into()), until: Until::LastAffected(version.into()) };
        let spans = affected.spans.into_iter().chain(affected.versions.into_iter().map(one));
        let affected = spans.map(|span| self.span(span)).collect();
        let package = self.text(&package);
        let of_release = self.read.packages.entry(platform).or_default();
        of_release.entry(package).or_default().push(Word { ids, severity, affected });
    }

    /// All that was read.
    pub fn end(mut self) -> Advisories {
        for words in self.read.packages.values_mut().flat_map(BTreeMap::values_mut) {
            words.shrink_to_fit();
        }
        self.read
    }

    fn span(&mut self, span: Span) -> Span {
        let from = span.from.map(|version| self.text(&version));
        let until = match span.until {
            Until::Fixed(version) => Until::Fixed(self.text(&version)),
            Until::LastAffected(version) => Until::LastAffected(self.text(&version)),
            Until::Open => Until::Open,
        };
        Span { from, until }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}

impl Advisories {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// Whether anything is known of a release.
    pub fn knows(&self, platform: &Platform) -> bool {
        self.packages.contains_key(platform)
    }

    /// What is open in the one and not in the other. Nothing where either version is not known, or none to the package manager.
    pub fn fixed(&self, platform: &Platform, before: &Installed<'_>, after: &Installed<'_>) -> Fixed {
        let open = |installed: &Installed<'_>| self.open(platform, installed);
        let (Some(mut before), Some(after)) = (open(before), open(after)) else { return Fixed::default() };
        before.retain(|id, _| !after.contains_key(id));
        let severity = before.values().copied().max().unwrap_or_default();
        Fixed { ids: before.into_keys().cloned().collect(), severity }
    }

    fn open(&self, platform: &Platform, installed: &Installed<'_>) -> Option<BTreeMap<&Arc<str>, Severity>> {
        let order = platform.order();
        // Its version is the kernel's: see there.
        let signed_kernel = platform.signed_kernel(installed.source);
        let (package, version) = match &signed_kernel {
            Some(kernel) => (kernel.as_str(), Some(installed.version)),
            None => (installed.source, installed.source_version),
        };
        let version = version.filter(|version| order.is_valid(version))?;
        let words = self.packages.get(platform).and_then(|of_release| of_release.get(package));
        let mut open = BTreeMap::new();
        for word in
            words.into_iter().flatten().filter(|word| word.affected.iter().any(|span| span.contains(order, version)))
        {
            for id in &word.ids {
                let worst: &mut Severity = open.entry(id).or_default();
                *worst = word.severity.max(*worst);
            }
        }
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching;
    use crate::statement::{Affected, Names};

    fn statement(advisory: &str, cves: &[&str], package: &str, fixed: Option<&str>) -> Statement {
        let affected = fixed.map_or_else(Affected::all, |version| Affected::before(version.into()));
        Statement {
            advisory: advisory.into(),
            cves: cves.iter().map(|it| (*it).into()).collect(),
            severity: Severity::High,
            platform: Platform::of_device("debian", "12").unwrap(),
            package: package.into(),
            names: Names::Source,
            arches: vec![],
            affected,
        }
    }

    fn installed<'a>(source: &'a str, version: &'a str, source_version: Option<&'a str>) -> Installed<'a> {
        Installed { name: "binary", arch: "amd64", version, source, source_version }
    }

    fn advisories(statements: &[Statement]) -> Advisories {
        let mut reading = Reading::default();
        statements.iter().cloned().for_each(|one| reading.add(one));
        reading.end()
    }

    #[test]
    fn an_update_fixes_what_is_open_before_it_and_not_after_it() {
        let statements = [
            statement("DEBIAN-CVE-2026-0001", &["CVE-2026-0001"], "openssl", Some("3.0.17-1")),
            Statement {
                severity: Severity::Critical,
                ..statement("DSA-1", &["CVE-2026-0002", "CVE-2026-0003"], "openssl", Some("3.0.16-1"))
            },
            // Another says that this one stays.
            statement("DEBIAN-CVE-2026-0003", &["CVE-2026-0003"], "openssl", None),
            statement("DSA-2", &[], "openssl", Some("3.0.17-1")),
            statement("DSA-3", &["CVE-2026-0004"], "curl", Some("9")),
        ];
        let all = advisories(&statements);
        let platform = &statements[0].platform;
        let fixed = |before, after| {
            let [before, after] = [before, after].map(|version| installed("openssl", "1", Some(version)));
            let found = all.fixed(platform, &before, &after);
            let oracle = matching::fixes(&statements, &before, &after);
            assert_eq!(found.ids.iter().map(|id| &**id).collect::<BTreeSet<_>>(), oracle.fixed);
            (found.ids.join(" "), found.severity)
        };
        assert_eq!(fixed("3.0.15-1", "3.0.17-1"), ("CVE-2026-0001 CVE-2026-0002 DSA-2".into(), Severity::Critical));
        assert_eq!(fixed("3.0.16-1", "3.0.17-1"), ("CVE-2026-0001 DSA-2".into(), Severity::High));
        assert_eq!(fixed("3.0.17-1", "3.0.18-1"), (String::new(), Severity::Unknown));
        assert_eq!(fixed("no version", "3.0.18-1"), (String::new(), Severity::Unknown));
    }

    #[test]
    fn a_version_that_is_not_known_fixes_nothing() {
        let all = advisories(&[statement("DSA-1", &["CVE-2026-0001"], "lvm2", Some("2.03.17"))]);
        let platform = Platform::of_device("debian", "12").unwrap();
        // By the binary's version it would be affected.
        let found = all.fixed(&platform, &installed("lvm2", "1", None), &installed("lvm2", "2", Some("2.03.17")));
        assert_eq!(found, Fixed::default());
    }

    #[test]
    fn signed_kernels_have_the_version_of_what_they_were_made_of() {
        let all = advisories(&[statement("DSA-1", &["CVE-2026-0001"], "linux", Some("6.1.147-1"))]);
        let platform = Platform::of_device("debian", "12").unwrap();
        let [before, after] =
            ["6.1.140-1", "6.1.147-1"].map(|version| installed("linux-signed-amd64", version, Some("6.1.147+1")));
        assert_eq!(all.fixed(&platform, &before, &after).ids, ["CVE-2026-0001".into()]);
    }

    #[test]
    fn other_distributions_are_not_kept() {
        let platform = Platform::of_device("rhel", "9").unwrap();
        let other =
            Statement { platform: platform.clone(), ..statement("RHSA-1", &["CVE-2026-0001"], "openssl", None) };
        let all = advisories(&[other]);
        assert!(all.is_empty() && !all.knows(&platform));
    }
}
