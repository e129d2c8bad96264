//! A group and what it says.

use kube::ResourceExt as _;

use super::{digest, names, optional_duration, selector};
use crate::api;
use crate::plan::expression::Subject;
use crate::plan::model::{
    AgeClock, Approvals, Dates, DecisionAction, Expression, Glob, Group, Invalid, Level, Members, Name, Probability,
    Rule, RuleAction, Seen, Target, UpdateDecision, UpdateMatch,
};

/// A group of a client's namespace. `organisation` is the namespace of the organisation's groups: Patchwarden's own.
pub fn group(object: &api::ApprovalGroup, organisation: &str) -> Group {
    let spec = &object.spec;
    let members = spec.members.as_ref();
    Group {
        name: object.name_any().into(),
        parent: spec.parent.as_ref().map(|parent| match parent.scope {
            api::approval_group::Scope::Client => parent.name.as_str().into(),
            api::approval_group::Scope::Organisation => shared_name(organisation, &parent.name),
        }),
        level: match spec.level {
            api::approval_group::Level::DeviceType => Level::DeviceType,
            api::approval_group::Level::Client => Level::Client,
            api::approval_group::Level::Site => Level::Site,
            api::approval_group::Level::Group => Level::Group,
            api::approval_group::Level::Device => Level::Device,
        },
        members: Members {
            selector: members.and_then(|members| members.selector.as_ref()).map(selector),
            names: members.map(|members| names(&members.names)).unwrap_or_default(),
            rule: members
                .and_then(|members| members.rule.as_deref())
                .map(|rule| expression("spec.members.rule", rule, Subject::Device)),
        },
        priority: spec.priority,
        approvals: approvals(spec),
        seen: object.status.as_ref().map(seen).unwrap_or_default(),
        spec: digest(spec),
    }
}

/// What was written down of a group's updates.
pub fn seen(status: &api::ApprovalGroupStatus) -> Vec<Seen> {
    let alone = |alone: &api::approval_group::PublishedAlone| (alone.at, alone.by.as_str().into());
    let seen = |seen: &api::approval_group::SeenUpdate| Seen {
        id: seen.id.as_str().into(),
        first: seen.first,
        by: seen.by.as_str().into(),
        shared: seen.since,
        dates: Dates { shared: seen.published, alone: seen.published_alone.as_ref().map(alone) },
    };
    status.seen.iter().map(seen).collect()
}

/// A group of the organisation's namespace, as it is known among a client's groups: a parent, and nobody's own group.
pub fn shared_group(group: &Group, organisation: &str) -> Group {
    let shared = |name: &Name| if name.contains('/') { name.clone() } else { shared_name(organisation, name) };
    Group {
        name: shared(&group.name),
        parent: group.parent.as_ref().map(shared),
        members: Members::default(),
        // That is what another client's devices have seen.
        seen: vec![],
        ..group.clone()
    }
}

/// No group of a client can have such a name.
fn shared_name(organisation: &str, name: &str) -> Name {
    format!("{organisation}/{name}").into()
}

fn approvals(spec: &api::ApprovalGroupSpec) -> Result<Approvals, Invalid> {
    let decisions = spec.decisions.iter().enumerate();
    let rules = spec.rules.iter().enumerate();
    Ok(Approvals {
        decisions: decisions.map(|(index, one)| decision(index, one)).collect::<Result<_, _>>()?,
        rules: rules.map(|(index, one)| rule(index, one)).collect::<Result<_, _>>()?,
        default: spec.default.map(rule_action),
        min_artifact_age: optional_duration("spec.minArtifactAge", spec.min_artifact_age.as_deref())?,
    })
}

fn decision(index: usize, spec: &api::approval_group::UpdateDecision) -> Result<UpdateDecision, Invalid> {
    use api::approval_group::DecisionAction as Action;
    let field = |name: &str| format!("spec.decisions[{index}].{name}");
    let update = spec.update.as_str();
    let target = Target::read(update, spec.or_later == Some(true))
        .map_err(|Invalid(why)| Invalid(format!("{}: {why}", field("orLater"))))?;
    let action = match (spec.action, spec.failed_before) {
        (Action::Approve, _) => DecisionAction::Approve,
        (Action::Ignore, _) => DecisionAction::Ignore,
        (Action::DoNothing, _) => DecisionAction::DoNothing,
        (Action::Uninstall, _) => DecisionAction::Uninstall,
        (Action::Reprocess, Some(failed_before)) => DecisionAction::Reprocess { failed_before },
        (Action::Reprocess, None) => {
            return Err(Invalid(format!("{}: must be given for Reprocess", field("failedBefore"))));
        }
    };
    Ok(UpdateDecision {
        name: update.into(),
        target,
        action,
        until: spec.until,
        locked: spec.locked == Some(true),
        window: spec.window.as_deref().map(Into::into),
    })
}

/// `0.36`, exact in the five places that EPSS publishes.
fn probability(field: &str, text: &str) -> Result<Probability, Invalid> {
    let invalid =
        || Invalid(format!("{field}: {text:?} is no number from 0 to 1 with at most five decimal places: 0.36"));
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 5 {
        return Err(invalid());
    }
    let number = |part: &str| part.parse::<u32>().map_err(|_| invalid());
    let units = number(whole)?
        .checked_mul(100_000)
        .and_then(|units| units.checked_add(number(&format!("{decimals:0<5}")).ok()?));
    units.filter(|units| *units <= 100_000).map(Probability).ok_or_else(invalid)
}

fn rule(index: usize, spec: &api::approval_group::ApprovalRule) -> Result<Rule, Invalid> {
    let field = |name: &str| format!("spec.rules[{index}].{name}");
    let globs = |patterns: &[String]| patterns.iter().cloned().map(Glob).collect();
    let matches = spec.matches.as_ref().map(|matches| {
        let expression = matches.expression.as_deref();
        Ok(UpdateMatch {
            classifications: matches.classifications.clone(),
            severities: matches.severities.clone(),
            packages: globs(&matches.packages),
            cves: globs(&matches.cves),
            known_exploited: matches.known_exploited,
            epss_at_least: matches
                .epss_at_least
                .as_deref()
                .map(|text| probability(&field("match.epssAtLeast"), text))
                .transpose()?,
            expression: expression
                .map(|text| self::expression(&field("match.expression"), text, Subject::Update))
                .transpose()?,
        })
    });
    Ok(Rule {
        name: spec.name.as_str().into(),
        matches: matches.transpose()?.unwrap_or_default(),
        action: rule_action(spec.action),
        after: optional_duration(&field("after"), spec.after.as_deref())?.unwrap_or_default(),
        clock: age_clock(spec.clock),
        window: spec.window.as_deref().map(Into::into),
    })
}

pub(super) fn age_clock(clock: Option<api::approval_group::AgeClock>) -> AgeClock {
    match clock {
        None | Some(api::approval_group::AgeClock::FirstSeen) => AgeClock::FirstSeen,
        Some(api::approval_group::AgeClock::Published) => AgeClock::Published,
    }
}

/// Compiled where there is room for the parser, which takes much stack for text that is deeply nested, and where a
/// defect of it ends nothing else.
fn expression(field: &str, text: &str, subject: Subject) -> Result<Expression, Invalid> {
    /// Some hundred KiB for each level of nesting in a debug build.
    const STACK: usize = 64 << 20;
    let invalid = |why: &str| Invalid(format!("{field}: {why}"));
    let owned = text.to_owned();
    let compiling = std::thread::Builder::new().stack_size(STACK).spawn(move || Expression::compile(&owned, subject));
    let compiled = compiling.map_err(|error| invalid(&format!("cannot be compiled: {error}")))?.join();
    compiled.map_err(|_| invalid("cannot be compiled"))?.map_err(|Invalid(why)| invalid(&why))
}

fn rule_action(action: api::approval_group::RuleAction) -> RuleAction {
    match action {
        api::approval_group::RuleAction::AwaitApproval => RuleAction::AwaitApproval,
        api::approval_group::RuleAction::Approve => RuleAction::Approve,
        api::approval_group::RuleAction::Ignore => RuleAction::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_likelihood_is_exact_in_five_decimal_places() {
        let read = |text: &str| probability("spec.rules[0].match.epssAtLeast", text).map_err(|invalid| invalid.0);
        let good = [("0", 0), ("1", 100_000), ("1.00000", 100_000), ("0.1", 10_000), ("0.36", 36_000), ("0.00001", 1)];
        for (text, units) in good {
            assert_eq!(read(text), Ok(Probability(units)), "{text}");
        }
        for text in
            ["", ".", "1.", ".5", "1.00001", "2", "0.000001", "-0.1", "+0.1", "10%", "1e-1", "0,1", "99999999999"]
        {
            let why = read(text).unwrap_err();
            assert!(
                why.starts_with("spec.rules[0].match.epssAtLeast: ") && why.contains("from 0 to 1"),
                "{text}: {why}"
            );
        }
    }
}
