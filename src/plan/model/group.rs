//! Approval groups.

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::{Classification, Severity};

use super::{Expression, Invalid, Name, PackageVersion, Probability, Selector};
use crate::package::is_pattern;

/// An approval group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name.
    pub name: Name,
    /// The group that is asked where this one says nothing.
    pub parent: Option<Name>,
    /// How near to the single device it is: of groups that claim a device in the same way the nearest wins.
    pub level: Level,
    /// Who belongs to it.
    pub members: Members,
    /// Among groups of one level the highest wins.
    pub priority: i32,
    /// What it says of updates, if that could be read.
    pub approvals: Result<Approvals, Invalid>,
    /// Since when the client's devices know updates: what was written down, so that it outlasts the devices that saw them.
    pub seen: Vec<Seen>,
    /// Digest of its spec.
    pub spec: Name,
}

/// Since when an update is known in the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The update.
    pub id: Name,
    /// The first sighting.
    pub first: Timestamp,
    /// Whose that was. What one device tells does not count for the others.
    pub by: Name,
    /// The first by another device, from which on it counts for all.
    pub shared: Option<Timestamp>,
    /// When the vendor published it.
    pub dates: Dates,
}

/// When the vendor published an update, as devices tell it: the earliest that it ever was, so that one that is published again
/// has not become younger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dates {
    /// What several devices tell: it counts for all.
    pub shared: Option<Timestamp>,
    /// An earlier date that a single one tells, and which: it counts for that one.
    pub alone: Option<(Timestamp, Name)>,
}

/// How near to the single device a group is, farthest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All devices of a type.
    DeviceType,
    /// All devices of the client.
    Client,
    /// All devices of a site.
    Site,
    /// Some devices.
    #[default]
    Group,
    /// One device.
    Device,
}

/// Who belongs to a group: whoever is named, selected, or meets the rule.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Devices by labels; absent selects none.
    pub selector: Option<Selector>,
    /// Devices by name.
    pub names: Vec<Name>,
    /// Devices by an expression, if it could be read.
    pub rule: Option<Result<Expression, Invalid>>,
}

impl Members {
    /// Whether no device can be one.
    pub fn is_empty(&self) -> bool {
        self.selector.is_none() && self.names.is_empty() && self.rule.is_none()
    }
}

/// What a group says of updates.
#[derive(Clone, Debug, Default)]
pub struct Approvals {
    /// Decisions on single updates, in order.
    pub decisions: Vec<UpdateDecision>,
    /// Rules, in order.
    pub rules: Vec<Rule>,
    /// What holds when nothing matches, here and in the parents; absent leaves it to the parent.
    pub default: Option<RuleAction>,
    /// How long an exact version must be known in the client before a rule approves it; absent leaves it to the parent.
    pub min_artifact_age: Option<SignedDuration>,
}

/// A decision on single updates.
#[derive(Clone, Debug)]
pub struct UpdateDecision {
    /// As it is written: it is shown where the decision counts.
    pub name: Name,
    /// Which updates.
    pub target: Target,
    /// What it says.
    pub action: DecisionAction,
    /// It counts until then.
    pub until: Option<Timestamp>,
    /// No group beneath can say otherwise.
    pub locked: bool,
    /// Updates that it approves follow this window instead of the policy's.
    pub window: Option<Name>,
}

/// Which updates a decision is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one with this very id.
    Id(Name),
    /// Those whose ids match.
    Ids(Glob),
    /// Those that fix a vulnerability whose CVE matches.
    Cves(Glob),
    /// Those of a package in this version or a later one.
    From(PackageVersion),
}

impl Target {
    /// What is written: the id of an update, and what comes later of the same package with `or_later`; a glob over ids; or a glob
    /// over CVEs.
    pub fn read(text: &str, or_later: bool) -> Result<Self, Invalid> {
        Ok(if or_later {
            Self::From(PackageVersion::parse(text)?)
        } else if text.starts_with("CVE-") {
            Self::Cves(Glob(text.to_owned()))
        } else if is_pattern(text) {
            Self::Ids(Glob(text.to_owned()))
        } else {
            Self::Id(text.into())
        })
    }
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionAction {
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
    /// Leave it as it is: rules are not asked.
    DoNothing,
    /// Take it back where it is installed, and do not install it.
    Uninstall,
    /// Decides nothing: where it failed before then, it is tried once more.
    Reprocess {
        /// Failures since then count again.
        failed_before: Timestamp,
    },
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name.
    pub name: Name,
    /// Which updates.
    pub matches: UpdateMatch,
    /// What it says.
    pub action: RuleAction,
    /// An approval counts only so long after `clock`.
    pub after: SignedDuration,
    /// From when on `after` runs.
    pub clock: AgeClock,
    /// Updates that it approves follow this window instead of the policy's.
    pub window: Option<Name>,
}

/// Which updates a rule is about: every part must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateMatch {
    /// One of these kinds; empty for all.
    pub classifications: Vec<Classification>,
    /// One of these severities; empty for all.
    pub severities: Vec<Severity>,
    /// A package matches one of these; empty for all.
    pub packages: Vec<Glob>,
    /// A CVE that it fixes matches one of these; empty for all.
    pub cves: Vec<Glob>,
    /// Whether a vulnerability that it fixes is known to be exploited.
    pub known_exploited: Option<bool>,
    /// A vulnerability that it fixes is exploited with at least this likelihood.
    pub epss_at_least: Option<Probability>,
    /// It meets this.
    pub expression: Option<Expression>,
}

impl UpdateMatch {
    /// Whether it asks what is known of vulnerabilities.
    pub fn asks_vulnerabilities(&self) -> bool {
        self.known_exploited.is_some() || self.epss_at_least.is_some()
    }
}

/// From when on an update ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgeClock {
    /// Its first sighting.
    #[default]
    FirstSeen,
    /// The vendor's date, where one is known; else the first sighting.
    Published,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// A person decides.
    AwaitApproval,
    /// Install it.
    Approve,
    /// Do not install it.
    Ignore,
}

/// A pattern in which `*` stands for any text and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob(pub String);
