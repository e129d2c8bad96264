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

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::expression::Facts;
use super::model::{
    AgeClock, Approvals, DecisionAction, Glob, Group, Name, Probability, Rule, RuleAction, Target, Update,
    UpdateDecision, UpdateMatch, Vulnerability,
};
use super::outcome::{Blocked, DecidedBy, Decision};
use super::window::later;

/// How long an exact version must be known where no group says otherwise.
pub const DEFAULT_MIN_ARTIFACT_AGE: SignedDuration = SignedDuration::from_hours(24);

/// The most groups above one another, the effective one among them.
pub const MAX_PARENTS: usize = 16;

/// A group with its parents.
pub(super) struct Line<'a> {
    /// Nearest first, each with what it says; or what a person must fix before anything is approved.
    pub resolved: Result<Vec<(&'a Group, &'a Approvals)>, Arc<Blocked>>,
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
    /// Of `group`, among `groups` by name.
    pub(super) fn of(group: &'a Group, groups: &BTreeMap<&str, &'a Group>) -> Self {
        Self { resolved: resolve(group, groups).map_err(Arc::new) }
    }

    /// What it says of `update` at `now`. A decision whose time is over is as if absent.
    pub(super) fn rule(&self, update: &Update, known: &BTreeMap<Name, Vulnerability>, now: Timestamp) -> Ruling {
        let groups = match &self.resolved {
            Ok(groups) => groups.as_slice(),
            Err(blocked) => return Ruling::refused(None, blocked.clone()),
        };
        let subject = Subject { update, known: vulnerability(update, known), now };
        let mut ruling = decide(groups, &subject);
        let retries = || retries(groups, &subject);
        // What is still to come is no word on failures yet.
        ruling.retry_failed_before = retries().filter(|before| *before <= now).max();
        ruling.retry_from = retries().filter(|before| *before > now).min();
        ruling
    }
}

impl Ruling {
    /// What it comes to on a device: `since` when the client knows the very update, and `lacking_since` when any version
    /// that the device lacks.
    pub(super) fn on(&self, update: &Update, since: Timestamp, lacking_since: Timestamp, now: Timestamp) -> Verdict {
        if self.says != Decision::Approved {
            let refusal = self.refusal.clone();
            return Verdict { decision: self.says, refusal, approved_at: None, missing_from: None };
        }
        let start = match self.clock {
            AgeClock::FirstSeen => lacking_since,
            AgeClock::Published => update.published.unwrap_or(lacking_since),
        };
        let approved_at = later(start, self.after).max(later(since, self.min_artifact_age));
        if approved_at <= now {
            return Verdict { decision: Decision::Approved, refusal: None, approved_at: None, missing_from: Some(now) };
        }
        let refusal = Some(Arc::new(Blocked::Aging { until: approved_at }));
        // A newer build does not make a device comply that lacks what was approved before it.
        let earlier = later(start, self.after).max(later(lacking_since, self.min_artifact_age));
        let missing_from = Some(earlier).filter(|_| lacking_since < since);
        Verdict { decision: Decision::Aging, refusal, approved_at: Some(approved_at), missing_from }
    }

    /// What it comes to for an update that is installed: it is taken back, or it stays and nothing is to be said.
    pub(super) fn on_installed(&self) -> Option<Verdict> {
        let decision = self.says;
        let verdict = Verdict { decision, refusal: None, approved_at: None, missing_from: None };
        (decision == Decision::Remove).then_some(verdict)
    }

    fn refused(by: Option<DecidedBy>, why: Arc<Blocked>) -> Self {
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

/// The update that is asked about.
struct Subject<'a> {
    update: &'a Update,
    known: Vulnerability,
    now: Timestamp,
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

fn decide(groups: &[(&Group, &Approvals)], subject: &Subject<'_>) -> Ruling {
    let min_artifact_age =
        groups.iter().find_map(|(_, approvals)| approvals.min_artifact_age).unwrap_or(DEFAULT_MIN_ARTIFACT_AGE);
    for (group, approvals) in groups.iter().rev() {
        let locked = approvals.decisions.iter().filter(|decision| decision.locked);
        if let Some(ruling) = first_decision(group, locked, subject, min_artifact_age) {
            return ruling;
        }
    }
    for (group, approvals) in groups {
        if let Some(ruling) = first_decision(group, approvals.decisions.iter(), subject, min_artifact_age) {
            return ruling;
        }
        for rule in &approvals.rules {
            let by = DecidedBy::Rule { group: group.name.clone(), rule: rule.name.clone() };
            match rule.matches.covers(subject) {
                Ok(false) => {}
                Ok(true) => return of_rule(group, rule, by, min_artifact_age),
                // It may be the rule that is against it: those that come after are not asked.
                Err(error) => {
                    let (group, rule) = (group.name.clone(), rule.name.clone());
                    return Ruling::refused(Some(by), Arc::new(Blocked::ExpressionFailed { group, rule, error }));
                }
            }
        }
    }
    let stated = groups.iter().find_map(|(group, approvals)| approvals.default.map(|default| (*group, default)));
    match (stated, groups.first()) {
        (Some((group, default)), _) => {
            let by = DecidedBy::Default { group: group.name.clone() };
            Ruling { min_artifact_age, ..Ruling::of_action(default, by) }
        }
        (None, Some((group, _))) => {
            Ruling::of_action(RuleAction::AwaitApproval, DecidedBy::Default { group: group.name.clone() })
        }
        (None, None) => Ruling::refused(None, Arc::new(Blocked::AwaitingApproval)),
    }
}

fn of_rule(group: &Group, rule: &Rule, by: DecidedBy, min_artifact_age: SignedDuration) -> Ruling {
    let Rule { name: _, matches: _, action, after, clock, window } = rule;
    let window = window.clone().map(|window| (window, group.name.clone()));
    Ruling { after: *after, clock: *clock, min_artifact_age, window, ..Ruling::of_action(*action, by) }
}

/// The first that is in force, is about the update, and decides anything.
fn first_decision<'d>(
    group: &Group,
    decisions: impl Iterator<Item = &'d UpdateDecision>,
    subject: &Subject<'_>,
    min_artifact_age: SignedDuration,
) -> Option<Ruling> {
    decisions.filter(|decision| decision.is_in_force(subject)).find_map(|decision| {
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
fn retries<'a>(
    groups: &'a [(&'a Group, &'a Approvals)],
    subject: &'a Subject<'a>,
) -> impl Iterator<Item = Timestamp> + 'a {
    let decisions = groups.iter().flat_map(|(_, approvals)| &approvals.decisions);
    decisions.filter(|decision| decision.is_in_force(subject)).filter_map(|decision| match decision.action {
        DecisionAction::Reprocess { failed_before } => Some(failed_before),
        DecisionAction::Approve | DecisionAction::Ignore | DecisionAction::DoNothing | DecisionAction::Uninstall => {
            None
        }
    })
}

impl UpdateDecision {
    fn is_in_force(&self, subject: &Subject<'_>) -> bool {
        self.until.is_none_or(|until| subject.now < until) && self.target.covers(subject.update)
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
    /// Every given part must match; an error is the expression's, which is asked last.
    fn covers(&self, subject: &Subject<'_>) -> Result<bool, String> {
        let Self { classifications, severities, packages, cves, known_exploited, epss_at_least, expression } = self;
        let Subject { update, known, now: _ } = subject;
        let any = |globs: &[Glob], names: &[Name]| {
            globs.is_empty() || globs.iter().any(|glob| names.iter().any(|name| glob.matches(name)))
        };
        let plain = (classifications.is_empty() || classifications.contains(&update.classification))
            && (severities.is_empty() || severities.contains(&update.severity))
            && any(packages, &update.packages)
            && any(cves, &update.cves)
            && known_exploited.is_none_or(|wanted| wanted == known.known_exploited)
            && epss_at_least.is_none_or(|least: Probability| known.epss.is_some_and(|epss| epss >= least));
        match expression {
            Some(expression) if plain => expression.holds(&Facts::of_update(update)?),
            Some(_) | None => Ok(plain),
        }
    }
}

/// The worst of all that the update fixes.
fn vulnerability(update: &Update, known: &BTreeMap<Name, Vulnerability>) -> Vulnerability {
    update.cves.iter().filter_map(|cve| known.get(cve)).fold(Vulnerability::default(), |worst, one| Vulnerability {
        known_exploited: worst.known_exploited || one.known_exploited,
        epss: worst.epss.max(one.epss),
    })
}

impl Glob {
    /// Whether it matches all of `text`. `*` also matches `/` and `@`: ids are not paths.
    pub fn matches(&self, text: &str) -> bool {
        // Most patterns name a package first and most texts are of another: that is told by comparing bytes.
        let wild = self.0.bytes().position(|byte| matches!(byte, b'*' | b'?')).unwrap_or(self.0.len());
        let (literal, pattern) = self.0.split_at(wild);
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
