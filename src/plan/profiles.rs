//! Which rules' conditions hold for an update, each different condition asked once of each update.
//!
//! Groups have much the same rules. All their conditions together, equal ones once, give an update its profile: what each
//! of them answers. There are few profiles, and a rule is about all updates of one or about none.

use std::collections::BTreeMap;

use super::expression::{Expression, UpdateFacts};
use super::model::{Approvals, Catalogue, Name, Specs, Update, UpdateId, UpdateMatch, Vulnerability};

/// The conditions of all groups' rules, and what they say of updates as far as somebody has asked.
pub(super) struct Profiles<'a> {
    vulnerabilities: Option<&'a BTreeMap<Name, Vulnerability>>,
    /// Each condition with the number of its expression.
    conditions: Vec<(&'a UpdateMatch, Option<usize>)>,
    numbers: BTreeMap<&'a UpdateMatch, usize>,
    expressions: Vec<&'a Expression>,
    /// By update: the number of its profile, and one; nothing yet where it is 0.
    of_update: Vec<u32>,
    /// By the profiles' numbers.
    answers: Vec<Vec<Answer>>,
    by_answers: BTreeMap<Vec<Answer>, u32>,
    /// By their numbers in answers.
    errors: Vec<String>,
    by_error: BTreeMap<String, u32>,
}

/// What the conditions say of some updates.
pub(super) struct Profile<'p> {
    answers: &'p [Answer],
    errors: &'p [String],
}

/// What a condition says of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    No,
    Yes,
    /// It cannot be told: nothing is known of vulnerabilities.
    Unknown,
    /// It cannot be told: the number of the reason.
    Error(u32),
}

/// Why it cannot be told whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt<'p> {
    /// Nothing is known of vulnerabilities.
    Vulnerabilities,
    /// What its expression says.
    Expression(&'p str),
}

impl<'a> Profiles<'a> {
    /// Of all groups' rules.
    pub(super) fn of(specs: Specs<'a>) -> Self {
        let mut profiles = Self {
            vulnerabilities: specs.vulnerabilities,
            conditions: vec![],
            numbers: BTreeMap::new(),
            expressions: vec![],
            of_update: vec![],
            answers: vec![],
            by_answers: BTreeMap::new(),
            errors: vec![],
            by_error: BTreeMap::new(),
        };
        let mut expressions: BTreeMap<&str, usize> = BTreeMap::new();
        let approvals = specs.groups.iter().filter_map(|group| group.approvals.as_ref().ok());
        for matches in approvals.flat_map(|approvals| &approvals.rules).map(|rule| &rule.matches) {
            let next = profiles.conditions.len();
            if *profiles.numbers.entry(matches).or_insert(next) != next {
                continue;
            }
            let expression = matches.expression.as_ref().map(|expression| {
                *expressions.entry(expression.text()).or_insert_with(|| {
                    profiles.expressions.push(expression);
                    profiles.expressions.len() - 1
                })
            });
            profiles.conditions.push((matches, expression));
        }
        profiles
    }

    /// The conditions of each of the rules, by their numbers.
    pub(super) fn conditions_of(&self, approvals: &Approvals) -> Vec<usize> {
        let number = |matches: &UpdateMatch| self.numbers.get(matches).copied().unwrap_or(usize::MAX);
        approvals.rules.iter().map(|rule| number(&rule.matches)).collect()
    }

    /// The number of the profile of an update of the catalogue, which is always the same one and only grows.
    pub(super) fn profile(&mut self, catalogue: &Catalogue, place: UpdateId) -> Option<usize> {
        if self.of_update.len() < catalogue.len() {
            self.of_update.resize(catalogue.len(), 0);
        }
        let known = *self.of_update.get(place.index())?;
        if let Some(known) = known.checked_sub(1) {
            return usize::try_from(known).ok();
        }
        let said = self.ask(catalogue.get(place)?);
        let Self { answers, by_answers, .. } = self;
        let number = *by_answers.entry(said).or_insert_with_key(|said| {
            answers.push(said.clone());
            number(answers.len() - 1)
        });
        *self.of_update.get_mut(place.index())? = number.saturating_add(1);
        usize::try_from(number).ok()
    }

    /// The profile of a number.
    pub(super) fn get(&self, number: usize) -> Profile<'_> {
        Profile { answers: self.answers.get(number).map(Vec::as_slice).unwrap_or_default(), errors: &self.errors }
    }

    /// Expressions last, and only where the rest of a condition holds.
    fn ask(&mut self, update: &Update) -> Vec<Answer> {
        let Self { vulnerabilities, conditions, expressions, errors, by_error, .. } = self;
        let known = vulnerabilities.map(|known| vulnerability(update, known));
        // Of what fixes nothing nobody need know anything.
        let known = known.or_else(|| update.cves.is_empty().then(Vulnerability::default));
        let mut facts = None;
        let mut asked: Vec<Option<Answer>> = vec![None; expressions.len()];
        let mut answer_of = |expression: usize| {
            let (Some(asked), Some(expression)) = (asked.get_mut(expression), expressions.get(expression)) else {
                return Answer::No;
            };
            *asked.get_or_insert_with(|| {
                match expression.holds_for(facts.get_or_insert_with(|| UpdateFacts::of(update))) {
                    Ok(true) => Answer::Yes,
                    Ok(false) => Answer::No,
                    Err(error) => Answer::Error(*by_error.entry(error).or_insert_with_key(|error| {
                        errors.push(error.clone());
                        number(errors.len() - 1)
                    })),
                }
            })
        };
        let ask = |(matches, expression): &(&UpdateMatch, Option<usize>)| match expression {
            _ if !matches.covers_plainly(update) => Answer::No,
            _ if matches.asks_vulnerabilities() && known.is_none() => Answer::Unknown,
            _ if known.is_some_and(|known| !matches.covers_what_is(known)) => Answer::No,
            None => Answer::Yes,
            Some(expression) => answer_of(*expression),
        };
        conditions.iter().map(ask).collect()
    }
}

impl<'p> Profile<'p> {
    /// Whether a condition, by its number, holds, or why that cannot be told.
    pub(super) fn holds(&self, condition: usize) -> Result<bool, Doubt<'p>> {
        match self.answers.get(condition) {
            None | Some(Answer::No) => Ok(false),
            Some(Answer::Yes) => Ok(true),
            Some(Answer::Unknown) => Err(Doubt::Vulnerabilities),
            Some(Answer::Error(number)) => {
                let error = usize::try_from(*number).ok().and_then(|number| self.errors.get(number));
                Err(Doubt::Expression(error.map(String::as_str).unwrap_or_default()))
            }
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

fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
