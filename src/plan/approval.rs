//! What approval says of an update: decisions, then rules, up the parents, then the default.
//!
//! In: the effective group of a device with its parents, and an update. Out: a [`Ruling`], which is the same for every
//! device of the group, and from it and what the device says of the update a [`Verdict`].
//!
//! - A locked decision beats everything beneath it: the farthest parent's come first.
//! - Then the nearest group first, its decisions before its rules, the first match wins; then its parent, and so on.
//! - Where nothing matches, the nearest default that a group states.
//! - What cannot be resolved (a parent that is not there, a circle, text that cannot be read, an expression that cannot
//!   be evaluated) approves nothing.
//! - An approval by a rule, a default or a pattern counts only once the exact version is known for a while
//!   (`min_artifact_age`): a brand-new build is not approved because an old vulnerability is fixed in it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::model::{
    AgeClock, Approvals, DecisionAction, Glob, Group, Name, Probability, Rule, RuleAction, Target, Update,
    UpdateDecision, UpdateMatch, Vulnerability,
};
use super::outcome::{Blocked, DecidedBy, Decision};
use super::profiles::Doubt;
use super::window::later;

/// How long an exact version must be known where no group says otherwise.
pub const DEFAULT_MIN_ARTIFACT_AGE: SignedDuration = SignedDuration::from_hours(24);

/// The most groups above one another, the effective one among them.
pub const MAX_PARENTS: usize = 16;

/// A group with its parents.
pub(super) struct Line<'a> {
    /// Nearest first, each with what it says; or what a person must fix before anything is approved.
    pub resolved: Result<Vec<(&'a Group, &'a Approvals)>, Arc<Blocked>>,
    /// Whether it can have devices, or one below it can.
    pub is_followed: bool,
}

/// A group of a line, and what of it has to do with one update.
pub(super) struct Voice<'a> {
    pub group: &'a Group,
    pub approvals: &'a Approvals,
    /// Its decisions that are in force and about the update, in order.
    pub decisions: Vec<&'a UpdateDecision>,
    /// The first of its rules that is about the update, or of which that cannot be told, and why.
    pub rule: Option<(&'a Rule, Result<bool, Doubt<'a>>)>,
}

/// What a group and its parents say of an update, whatever device offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruling {
    /// What it says; `Approved` for what may have to age first.
    says: Decision,
    /// What decided.
    pub by: Option<Arc<DecidedBy>>,
    /// It counts until before this; then approval is asked anew.
    pub until: Option<Timestamp>,
    /// What keeps it from being approved, if it is not.
    refusal: Option<Arc<Blocked>>,
    /// An approval must age first.
    after: SignedDuration,
    clock: AgeClock,
    /// The exact version must be known for so long.
    min_artifact_age: SignedDuration,
    /// What began before these two is old enough, which spares most updates the arithmetic.
    aged_since: Option<Timestamp>,
    known_since: Option<Timestamp>,
    /// A window of its own instead of the policy's, and the group that gives it.
    pub window: Option<(Name, Name)>,
    /// Failures before this do not count.
    pub retry_failed_before: Option<Timestamp>,
    /// From then on more of them do not.
    pub retry_from: Option<Timestamp>,
}

/// What approval says of an update on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What it says.
    pub decision: Decision,
    /// What keeps it from being approved, if it is not.
    pub refusal: Option<Arc<Blocked>>,
    /// When the clock alone approves it.
    pub approved_at: Option<Timestamp>,
    /// From when on the device lacks something approved: the update itself, or an earlier version of it.
    pub missing_from: Option<Timestamp>,
}

impl<'a> Line<'a> {
    /// Those of all `groups`, in their order.
    pub(super) fn all(groups: &[&'a Group]) -> Vec<Self> {
        let by_name: BTreeMap<&str, &Group> = groups.iter().map(|group| (&*group.name, *group)).collect();
        let lines: Vec<_> = groups.iter().map(|group| resolve(group, &by_name)).collect();
        let having = groups.iter().zip(&lines).filter(|(group, _)| !group.members.is_empty());
        let above = having.flat_map(|(group, line)| {
            let parents = line.iter().flatten().map(|(group, _)| &*group.name);
            parents.chain(std::iter::once(&*group.name))
        });
        let followed: BTreeSet<&str> = above.collect();
        let line = |(group, resolved): (&&Group, Result<_, Blocked>)| Self {
            resolved: resolved.map_err(Arc::new),
            is_followed: followed.contains(&*group.name),
        };
        groups.iter().zip(lines).map(line).collect()
    }
}

impl Ruling {
    /// What a line says of an update at `now`, nearest group first.
    pub(super) fn of(line: &[Voice<'_>], now: Timestamp) -> Self {
        let mut ruling = decide(line);
        ruling.aged_since = now.checked_sub(ruling.after).ok();
        ruling.known_since = now.checked_sub(ruling.min_artifact_age).ok();
        // What is still to come is no word on failures yet.
        ruling.retry_failed_before = retries(line).filter(|before| *before <= now).max();
        ruling.retry_from = retries(line).filter(|before| *before > now).min();
        ruling
    }

    /// What it comes to on a device: `since` when the client knows the very update, `lacking_since` when any version that the
    /// device lacks, and from `start` on that ages by [`Self::clock`].
    pub(super) fn on(&self, since: Timestamp, lacking_since: Timestamp, start: Timestamp, now: Timestamp) -> Verdict {
        if self.says != Decision::Approved {
            let refusal = self.refusal.clone();
            return Verdict { decision: self.says, refusal, approved_at: None, missing_from: None };
        }
        let approved =
            Verdict { decision: Decision::Approved, refusal: None, approved_at: None, missing_from: Some(now) };
        let is_before = |at: Timestamp, limit: Option<Timestamp>| limit.is_some_and(|limit| at <= limit);
        if is_before(start, self.aged_since) && is_before(since, self.known_since) {
            return approved;
        }
        let approved_at = later(start, self.after).max(later(since, self.min_artifact_age));
        if approved_at <= now {
            return approved;
        }
        let refusal = Some(Arc::new(Blocked::Aging { until: approved_at }));
        // A newer build does not make a device comply that lacks what was approved before it.
        let earlier = later(start, self.after).max(later(lacking_since, self.min_artifact_age));
        let missing_from = Some(earlier).filter(|_| lacking_since < since);
        Verdict { decision: Decision::Aging, refusal, approved_at: Some(approved_at), missing_from }
    }

    /// Since when the update, or an earlier version that the device lacks since `lacking_since` and that ages from `start` on, is
    /// old enough to be approved.
    pub(super) fn old_enough_since(&self, lacking_since: Timestamp, start: Timestamp) -> Option<Timestamp> {
        let since = later(start, self.after).max(later(lacking_since, self.min_artifact_age));
        (self.says == Decision::Approved).then_some(since)
    }

    /// By which clock updates age.
    pub(super) fn clock(&self) -> AgeClock {
        self.clock
    }

    /// What it comes to for an update that is installed: it is taken back, or it stays and nothing is to be said.
    pub(super) fn on_installed(&self) -> Option<Verdict> {
        let decision = self.says;
        let verdict = Verdict { decision, refusal: None, approved_at: None, missing_from: None };
        (decision == Decision::Remove).then_some(verdict)
    }

    /// What it says of failures, and nothing else.
    pub(super) fn of_failures(&self) -> Self {
        let Self { retry_failed_before, retry_from, .. } = *self;
        Self { retry_failed_before, retry_from, ..Self::says(Decision::AwaitingApproval, None) }
    }

    pub(super) fn refused(by: Option<DecidedBy>, why: Arc<Blocked>) -> Self {
        Self { refusal: Some(why), ..Self::says(Decision::AwaitingApproval, by) }
    }

    fn says(says: Decision, by: Option<DecidedBy>) -> Self {
        Self {
            says,
            by: by.map(Arc::new),
            until: None,
            refusal: None,
            after: SignedDuration::ZERO,
            clock: AgeClock::FirstSeen,
            min_artifact_age: SignedDuration::ZERO,
            aged_since: None,
            known_since: None,
            window: None,
            retry_failed_before: None,
            retry_from: None,
        }
    }

    fn of_action(action: RuleAction, by: DecidedBy) -> Self {
        let (says, refusal) = match action {
            RuleAction::Approve => (Decision::Approved, None),
            RuleAction::AwaitApproval => (Decision::AwaitingApproval, Some(Blocked::AwaitingApproval)),
            RuleAction::Ignore => (Decision::Ignored, Some(Blocked::Ignored)),
        };
        Self { refusal: refusal.map(Arc::new), ..Self::says(says, Some(by)) }
    }
}

fn resolve<'a>(
    group: &'a Group,
    groups: &BTreeMap<&str, &'a Group>,
) -> Result<Vec<(&'a Group, &'a Approvals)>, Blocked> {
    let mut line: Vec<(&Group, &Approvals)> = Vec::new();
    let mut next = Some(group);
    while let Some(group) = next {
        if line.iter().any(|(before, _)| before.name == group.name) {
            return Err(Blocked::ParentsInCircle { group: group.name.clone() });
        }
        if line.len() >= MAX_PARENTS {
            return Err(Blocked::TooManyParents { group: group.name.clone() });
        }
        let approvals = group.approvals.as_ref().map_err(|_| Blocked::GroupInvalid { group: group.name.clone() })?;
        line.push((group, approvals));
        next = match &group.parent {
            None => None,
            Some(parent) => Some(
                groups
                    .get(&**parent)
                    .copied()
                    .ok_or_else(|| Blocked::ParentNotFound { group: group.name.clone(), parent: parent.clone() })?,
            ),
        };
    }
    Ok(line)
}

fn decide(line: &[Voice<'_>]) -> Ruling {
    let min_artifact_age =
        line.iter().find_map(|voice| voice.approvals.min_artifact_age).unwrap_or(DEFAULT_MIN_ARTIFACT_AGE);
    for Voice { group, decisions, .. } in line.iter().rev() {
        let locked = decisions.iter().filter(|decision| decision.locked);
        if let Some(ruling) = first_decision(group, locked, min_artifact_age) {
            return ruling;
        }
    }
    for Voice { group, decisions, rule, .. } in line {
        if let Some(ruling) = first_decision(group, decisions.iter(), min_artifact_age) {
            return ruling;
        }
        let Some((rule, holds)) = rule else { continue };
        let by = DecidedBy::Rule { group: group.name.clone(), rule: rule.name.clone() };
        return match holds {
            Ok(_) => of_rule(group, rule, by, min_artifact_age),
            // It may be the rule that is against it: those that come after are not asked.
            Err(doubt) => {
                let (group, rule) = (group.name.clone(), rule.name.clone());
                let why = match doubt {
                    Doubt::Vulnerabilities => Blocked::VulnerabilitiesUnknown { group, rule },
                    Doubt::Expression(error) => Blocked::ExpressionFailed { group, rule, error: (*error).into() },
                };
                Ruling::refused(Some(by), Arc::new(why))
            }
        };
    }
    let stated = line.iter().find_map(|voice| voice.approvals.default.map(|default| (voice.group, default)));
    match (stated, line.first()) {
        (Some((group, default)), _) => {
            let by = DecidedBy::Default { group: group.name.clone() };
            Ruling { min_artifact_age, ..Ruling::of_action(default, by) }
        }
        (None, Some(voice)) => {
            Ruling::of_action(RuleAction::AwaitApproval, DecidedBy::Default { group: voice.group.name.clone() })
        }
        (None, None) => Ruling::refused(None, Arc::new(Blocked::AwaitingApproval)),
    }
}

fn of_rule(group: &Group, rule: &Rule, by: DecidedBy, min_artifact_age: SignedDuration) -> Ruling {
    let Rule { name: _, matches: _, action, after, clock, window } = rule;
    let window = window.clone().map(|window| (window, group.name.clone()));
    Ruling { after: *after, clock: *clock, min_artifact_age, window, ..Ruling::of_action(*action, by) }
}

/// The first that decides anything.
fn first_decision<'d>(
    group: &Group,
    mut decisions: impl Iterator<Item = &'d &'d UpdateDecision>,
    min_artifact_age: SignedDuration,
) -> Option<Ruling> {
    decisions.find_map(|decision| {
        let (says, refusal) = match (decision.action, decision.until) {
            (DecisionAction::Approve, _) => (Decision::Approved, None),
            (DecisionAction::Ignore, None) => (Decision::Ignored, Some(Blocked::Ignored)),
            (DecisionAction::Ignore, Some(until)) => (Decision::Waived, Some(Blocked::Waived { until })),
            (DecisionAction::DoNothing, _) => (Decision::AwaitingApproval, Some(Blocked::LeftAlone)),
            (DecisionAction::Uninstall, _) => (Decision::Remove, Some(Blocked::ToBeRemoved)),
            (DecisionAction::Reprocess { .. }, _) => return None,
        };
        let by = DecidedBy::Decision { group: group.name.clone(), update: decision.name.clone() };
        // Whoever names a version has seen it; a pattern was written before what it matches.
        let exact = matches!(decision.target, Target::Id(_));
        Some(Ruling {
            refusal: refusal.map(Arc::new),
            until: decision.until,
            min_artifact_age: if exact { SignedDuration::ZERO } else { min_artifact_age },
            window: decision.window.clone().map(|window| (window, group.name.clone())),
            ..Ruling::says(says, Some(by))
        })
    })
}

/// Until when failures do not count, as any group of the line says.
fn retries<'a>(line: &'a [Voice<'a>]) -> impl Iterator<Item = Timestamp> + 'a {
    line.iter().flat_map(|voice| &voice.decisions).filter_map(|decision| match decision.action {
        DecisionAction::Reprocess { failed_before } => Some(failed_before),
        DecisionAction::Approve | DecisionAction::Ignore | DecisionAction::DoNothing | DecisionAction::Uninstall => {
            None
        }
    })
}

impl UpdateDecision {
    /// A decision whose time is over is as if absent.
    pub(super) fn is_in_force(&self, update: &Update, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until) && self.target.covers(update)
    }
}

impl Target {
    fn covers(&self, update: &Update) -> bool {
        match self {
            Self::Id(id) => *id == update.id,
            Self::Ids(glob) => glob.matches(&update.id),
            Self::Cves(glob) => update.cves.iter().any(|cve| glob.matches(cve)),
            Self::From(version) => version.is_reached_by(&update.id),
        }
    }
}

impl UpdateMatch {
    /// Whether every given part matches that asks of the update alone, the expression aside.
    pub(super) fn covers_plainly(&self, update: &Update) -> bool {
        let Self { classifications, severities, packages, cves, .. } = self;
        let any = |globs: &[Glob], names: &[Name]| {
            globs.is_empty() || globs.iter().any(|glob| names.iter().any(|name| glob.matches(name)))
        };
        (classifications.is_empty() || classifications.contains(&update.classification))
            && (severities.is_empty() || severities.contains(&update.severity))
            && any(packages, &update.packages)
            && any(cves, &update.cves)
    }

    /// Whether every given part matches that asks what is known of the vulnerabilities that it fixes.
    pub(super) fn covers_what_is(&self, known: Vulnerability) -> bool {
        let Self { known_exploited, epss_at_least, .. } = self;
        known_exploited.is_none_or(|wanted| wanted == known.known_exploited)
            && epss_at_least.is_none_or(|least: Probability| known.epss.is_some_and(|epss| epss >= least))
    }
}

impl Glob {
    /// What every text that it matches begins with.
    pub(super) fn literal(&self) -> &str {
        let wild = self.0.bytes().position(|byte| matches!(byte, b'*' | b'?')).unwrap_or(self.0.len());
        self.0.split_at(wild).0
    }

    /// Whether it matches all of `text`. `*` also matches `/` and `@`: ids are not paths.
    pub fn matches(&self, text: &str) -> bool {
        // Most patterns name a package first and most texts are of another: that is told by comparing bytes.
        let literal = self.literal();
        let pattern = self.0.strip_prefix(literal).unwrap_or_default();
        let Some(rest) = text.strip_prefix(literal) else { return false };
        let (mut pattern, mut rest) = (pattern.chars(), rest.chars());
        // Where to go on when what follows the last `*` does not match: the `*` takes one character more.
        let mut again = None;
        loop {
            let matched = match pattern.next() {
                Some('*') => {
                    again = Some((pattern.clone(), rest.clone()));
                    true
                }
                Some(wanted) => rest.next().is_some_and(|found| wanted == '?' || wanted == found),
                None if rest.next().is_none() => return true,
                None => false,
            };
            if !matched {
                let Some((after_star, taken)) = &mut again else { return false };
                if taken.next().is_none() {
                    return false;
                }
                (pattern, rest) = (after_star.clone(), taken.clone());
            }
        }
    }
}
