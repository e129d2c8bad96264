//! What an advisory says of one package of one release of a distribution.

use std::cmp::Ordering;
use std::sync::Arc;

use patchwarden_protocol::report::Severity;
use patchwarden_protocol::versions::{deb, rpm};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_VERSION, MAX_VERSIONS};
use crate::platform::Platform;
use crate::reading::shown;

/// One advisory's word on one package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Id of the record or document: `DSA-5532-1`, `RHSA-2026:1234`.
    pub advisory: String,
    /// The CVEs that it is about, sorted; none where it names none.
    pub cves: Vec<String>,
    /// In the vendor's words.
    pub severity: Severity,
    /// Of which distribution's release it speaks.
    pub platform: Platform,
    /// The package's name.
    pub package: String,
    /// Of what the name is.
    pub names: Names,
    /// Architectures; empty for all.
    pub arches: Vec<String>,
    /// Which versions it is about.
    pub affected: Affected,
}

/// What a package's name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Names {
    /// A source package: what is compared is its version.
    Source,
    /// A binary package.
    Binary,
    /// A binary package where there is one of that name, else a source package.
    Either,
}

/// Versions that are affected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affected {
    /// Where each ends before the next begins.
    pub spans: Vec<Span>,
    /// Those besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
}

/// From one version to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The first that is affected; none for all from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Arc<str>>,
    /// Where it ends.
    pub until: Until,
}

/// Where a span ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// Before this version, which has a fix.
    Fixed(Arc<str>),
    /// With this version.
    LastAffected(Arc<str>),
    /// There is no fix.
    Open,
}

/// Whose order of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// dpkg's.
    Deb,
    /// rpm's.
    Rpm,
}

impl Order {
    /// Which of two comes later.
    pub fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Deb => deb::compare(a, b),
            Self::Rpm => rpm::compare(a, b),
        }
    }

    /// Whether the package manager would take it for a version.
    pub fn is_valid(self, version: &str) -> bool {
        version.len() <= MAX_VERSION
            && match self {
                Self::Deb => deb::is_valid(version),
                Self::Rpm => rpm::is_valid(version),
            }
    }
}

/// An event of OSV's (<https://ossf.github.io/osv-schema/#affectedrangesevents-fields>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Introduced(String),
    Fixed(String),
    LastAffected(String),
}

impl Event {
    fn version(&self) -> &str {
        match self {
            Self::Introduced(version) | Self::Fixed(version) | Self::LastAffected(version) => version,
        }
    }

    /// `0` stands for the beginning of all versions.
    fn is_beginning(&self) -> bool {
        matches!(self, Self::Introduced(version) if version == "0")
    }
}

impl Affected {
    /// Of ranges of events and a list of versions. Nothing where a version is none to the package manager: then it cannot be told
    /// what is affected. The error says what is wrong.
    pub(crate) fn new(order: Order, ranges: Vec<Vec<Event>>, mut versions: Vec<String>) -> Result<Self, String> {
        let count = ranges.iter().map(Vec::len).sum::<usize>() + versions.len();
        if count > MAX_VERSIONS {
            return Err(format!("names {count} versions: at most {MAX_VERSIONS} are allowed"));
        }
        let told = ranges.iter().flatten().filter(|event| !event.is_beginning()).map(Event::version);
        if let Some(bad) = told.chain(versions.iter().map(String::as_str)).find(|version| !order.is_valid(version)) {
            return Err(format!("`{}` is no version", shown(bad)));
        }
        let mut spans: Vec<Span> = ranges.into_iter().flat_map(|events| spans(order, events)).collect();
        spans.dedup();
        let by_ranges = Self { spans, versions: Vec::new() };
        versions.retain(|version| by_ranges.span(order, version).is_none());
        Ok(Self { versions, ..by_ranges })
    }

    /// All before this version.
    pub(crate) fn before(fixed: String) -> Self {
        Self { spans: vec![Span { from: None, until: Until::Fixed(fixed.into()) }], versions: Vec::new() }
    }

    /// All versions.
    pub(crate) fn all() -> Self {
        Self { spans: vec![Span { from: None, until: Until::Open }], versions: Vec::new() }
    }

    /// Whether this version is affected.
    pub fn contains(&self, order: Order, version: &str) -> bool {
        self.span(order, version).is_some() || self.versions.iter().any(|it| order.compare(it, version).is_eq())
    }

    /// The version that has the fix for this one, if there is one; the latest where it takes several.
    pub fn fixed_in(&self, order: Order, version: &str) -> Option<&str> {
        let spans = self.spans.iter().filter(|span| span.contains(order, version));
        let fixes: Option<Vec<&str>> = spans.map(Span::fix).collect();
        fixes?.into_iter().max_by(|a, b| order.compare(a, b))
    }

    fn span(&self, order: Order, version: &str) -> Option<&Span> {
        self.spans.iter().find(|span| span.contains(order, version))
    }
}

impl Span {
    pub(crate) fn contains(&self, order: Order, version: &str) -> bool {
        let has_begun = self.from.as_ref().is_none_or(|from| order.compare(version, from).is_ge());
        has_begun
            && match &self.until {
                Until::Fixed(fixed) => order.compare(version, fixed).is_lt(),
                Until::LastAffected(last) => order.compare(version, last).is_le(),
                Until::Open => true,
            }
    }

    fn fix(&self) -> Option<&str> {
        match &self.until {
            Until::Fixed(fixed) => Some(fixed),
            Until::LastAffected(_) | Until::Open => None,
        }
    }
}

/// OSV's algorithm (<https://ossf.github.io/osv-schema/#evaluation>), done once instead of for each version: the events in the
/// order of their versions, of which an introduction opens a span and anything else closes it. Equal ones stay in their order.
fn spans(order: Order, mut events: Vec<Event>) -> Vec<Span> {
    events.sort_by(|a, b| match (a.is_beginning(), b.is_beginning()) {
        (false, false) => order.compare(a.version(), b.version()),
        (a, b) => b.cmp(&a),
    });
    let mut spans = Vec::new();
    let mut open: Option<Option<Arc<str>>> = None;
    for event in events {
        let is_beginning = event.is_beginning();
        open = match (open, event) {
            (None, Event::Introduced(version)) => Some((!is_beginning).then(|| version.into())),
            (Some(from), Event::Introduced(_)) => Some(from),
            (None, Event::Fixed(_) | Event::LastAffected(_)) => None,
            (Some(from), Event::Fixed(version)) => {
                spans.push(Span { from, until: Until::Fixed(version.into()) });
                None
            }
            (Some(from), Event::LastAffected(version)) => {
                spans.push(Span { from, until: Until::LastAffected(version.into()) });
                None
            }
        };
    }
    spans.extend(open.map(|from| Span { from, until: Until::Open }));
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affected(ranges: &[&[(&str, &str)]], versions: &[&str]) -> Affected {
        let event = |(kind, version): &(&str, &str)| match *kind {
            "introduced" => Event::Introduced((*version).into()),
            "fixed" => Event::Fixed((*version).into()),
            _ => Event::LastAffected((*version).into()),
        };
        let ranges = ranges.iter().map(|events| events.iter().map(event).collect()).collect();
        Affected::new(Order::Deb, ranges, versions.iter().map(|it| (*it).into()).collect()).unwrap()
    }

    #[test]
    fn a_version_is_affected_between_introduction_and_fix() {
        let it = affected(
            &[&[("fixed", "1.5"), ("introduced", "1.2"), ("introduced", "2.0"), ("last_affected", "2.3")]],
            &["3.1"],
        );
        for (version, expected, fix) in [
            ("1.1", false, None),
            ("1.2", true, Some("1.5")),
            ("1.5~rc1", true, Some("1.5")),
            ("1.5", false, None),
            ("2.0", true, None),
            ("2.3", true, None),
            ("2.3+b1", false, None),
            ("3.1", true, None),
            ("3.1-1", false, None),
        ] {
            assert_eq!(it.contains(Order::Deb, version), expected, "{version}");
            assert_eq!(it.fixed_in(Order::Deb, version), fix, "{version}");
        }
    }

    #[test]
    fn zero_is_before_all_and_an_open_span_has_no_fix() {
        let it = affected(&[&[("introduced", "0")]], &[]);
        assert!(it.contains(Order::Deb, "0~~") && it.fixed_in(Order::Deb, "1").is_none());
        let it = affected(&[&[("introduced", "0"), ("fixed", "0")]], &[]);
        assert!(it.contains(Order::Deb, "0~") && !it.contains(Order::Deb, "0"));
    }

    #[test]
    fn of_several_fixes_the_latest_is_what_it_takes() {
        let it = affected(&[&[("introduced", "0"), ("fixed", "2")], &[("introduced", "0"), ("fixed", "10")]], &[]);
        assert_eq!(it.fixed_in(Order::Deb, "1"), Some("10"));
        let it = affected(&[&[("introduced", "0"), ("fixed", "2")], &[("introduced", "0")]], &[]);
        assert_eq!(it.fixed_in(Order::Deb, "1"), None, "one of them has no fix");
    }

    #[test]
    fn versions_that_a_range_has_are_not_kept() {
        let it = affected(&[&[("introduced", "0"), ("fixed", "2")]], &["1", "1.5", "3"]);
        assert_eq!(it.versions, ["3"]);
    }

    #[test]
    fn what_is_no_version_says_nothing() {
        let bad = Affected::new(Order::Deb, vec![vec![Event::Fixed("<end-of-life>".into())]], vec![]).unwrap_err();
        assert!(bad.contains("<end-of-life>"), "{bad}");
        assert!(Affected::new(Order::Deb, vec![], vec!["1 2".into()]).is_err());
        assert!(Affected::new(Order::Rpm, vec![], vec!["1:2:3".into()]).is_err());
    }
}
