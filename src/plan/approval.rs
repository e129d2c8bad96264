//! What a group says of an update: decisions, then rules, then the default; the first that matches counts.

use jiff::Timestamp;

use super::model::{DecisionAction, Glob, Group, Rule, RuleAction, Update, UpdateDecision};
use super::outcome::{DecidedBy, Decision};

/// What approval says of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it says.
    pub decision: Decision,
    /// What decided.
    pub by: DecidedBy,
    /// It counts until before this; then approval is asked anew.
    pub until: Option<Timestamp>,
}

/// What `group` says of `update` at `now`. A decision whose time is over is as if absent.
pub fn decide(group: &Group, update: &Update, now: Timestamp) -> Verdict {
    let in_force = |decision: &&UpdateDecision| decision.until.is_none_or(|until| now < until);
    if let Some(decision) = group.decisions.iter().filter(in_force).find(|one| one.update.matches(&update.id)) {
        let says = match (decision.action, decision.until) {
            (DecisionAction::Approve, _) => Decision::Approved,
            (DecisionAction::Ignore, None) => Decision::Ignored,
            (DecisionAction::Ignore, Some(_)) => Decision::Waived,
        };
        let by = DecidedBy::Decision { group: group.name.clone(), update: decision.update.0.clone() };
        return Verdict { decision: says, by, until: decision.until };
    }
    let (action, by) = match group.rules.iter().find(|rule| applies(rule, update)) {
        Some(rule) => (rule.action, DecidedBy::Rule { group: group.name.clone(), rule: rule.name.clone() }),
        None => (group.default, DecidedBy::Default { group: group.name.clone() }),
    };
    let decision = match action {
        RuleAction::AwaitApproval => Decision::AwaitingApproval,
        RuleAction::Approve => Decision::Approved,
        RuleAction::Ignore => Decision::Ignored,
    };
    Verdict { decision, by, until: None }
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

/// Every given part must match.
fn applies(rule: &Rule, update: &Update) -> bool {
    let Rule { name: _, classifications, severities, packages, action: _ } = rule;
    (classifications.is_empty() || classifications.contains(&update.classification))
        && (severities.is_empty() || severities.contains(&update.severity))
        && (packages.is_empty() || packages.iter().any(|glob| update.packages.iter().any(|name| glob.matches(name))))
}
