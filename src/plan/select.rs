//! Which group and which policy a device has, and which others claim it and lost.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use super::expression::{Expression, Facts};
use super::model::{Device, DeviceType, Group, Name, Os, Policy, Requirement, Selector, Snapshot};
use super::outcome::Blocked;

/// The groups and policies of a snapshot, strongest first.
pub(super) struct Selection<'a> {
    pub groups: Vec<&'a Group>,
    pub policies: Vec<&'a Policy>,
    /// Groups by the devices that they name, as positions in `groups`.
    named: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Policies by the devices that they exclude, as positions in `policies`.
    excluded: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Groups that claim devices by an expression, as positions in `groups`.
    by_rule: Vec<usize>,
    /// Labels that these expressions read.
    labels: BTreeSet<&'a str>,
    /// What the expressions say, by all that they read.
    answers: BTreeMap<Read<'a>, Rc<Vec<Answer>>>,
}

/// What expressions read of a device: its type, its operating system, and the labels that any of them reads.
type Read<'a> = (DeviceType, Option<&'a Os>, Vec<Option<&'a str>>);

/// What an expression says of a device.
type Answer = Result<bool, String>;

/// What claims a device.
pub(super) struct Claimants {
    /// Position of what has it.
    pub winner: Option<usize>,
    /// What lost, strongest first.
    pub shadowed: Vec<Name>,
    /// It may be that the winner does not claim it: that cannot be told.
    pub doubt: Option<Arc<Blocked>>,
}

/// How a group claims a device.
enum Claims {
    Yes,
    No,
    /// It cannot be told.
    Perhaps(String),
}

impl<'a> Selection<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut groups: Vec<&Group> = snapshot.groups.iter().collect();
        groups.sort_by(|a, b| {
            b.level.cmp(&a.level).then_with(|| b.priority.cmp(&a.priority)).then_with(|| a.name.cmp(&b.name))
        });
        let mut policies: Vec<&Policy> = snapshot.policies.iter().collect();
        policies.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let named = positions(groups.iter().map(|group| &group.members.names));
        let excluded = positions(policies.iter().map(|policy| &policy.exclude));
        let has_rule = |(position, group): (usize, &&Group)| group.members.rule.is_some().then_some(position);
        let by_rule: Vec<usize> = groups.iter().enumerate().filter_map(has_rule).collect();
        let labels = groups.iter().filter_map(|group| rule(group)).flat_map(|rule| &rule.reads().labels);
        let labels = labels.map(String::as_str).collect();
        Self { groups, policies, named, excluded, by_rule, labels, answers: BTreeMap::new() }
    }

    /// What each of `by_rule` says of the device. Worked out once for all that it reads.
    fn answers(&mut self, device: &'a Device) -> Rc<Vec<Answer>> {
        let Self { groups, by_rule, labels, answers, .. } = self;
        if by_rule.is_empty() {
            return Rc::default();
        }
        let rules = || by_rule.iter().map(|place| groups.get(*place).and_then(|group| rule(group)));
        let work_out = || {
            let facts = Facts::of_device(device);
            let ask = |rule: Option<&Expression>| match (rule, &facts) {
                (Some(rule), Ok(facts)) => rule.holds(facts),
                (Some(_), Err(error)) => Err(error.clone()),
                (None, _) => Ok(false),
            };
            Rc::new(rules().map(ask).collect())
        };
        if rules().flatten().any(|rule| rule.reads().more) {
            return work_out();
        }
        let os = device.report.as_ref().ok().map(|report| &*report.os);
        let values = labels.iter().map(|label| device.labels.get(*label).map(String::as_str)).collect();
        answers.entry((device.device_type, os, values)).or_insert_with(work_out).clone()
    }

    /// A group that names the device beats one that selects it; then the nearest level; then priority; then name.
    pub(super) fn group(&mut self, device: &'a Device) -> Claimants {
        let answers = self.answers(device);
        let named = self.named.get(&*device.name);
        let is_named = |position: usize| named.is_some_and(|named| named.contains(&position));
        let answer = |position: usize| {
            let place = self.by_rule.binary_search(&position).ok()?;
            answers.get(place)
        };
        let mut claimants = Claimants { winner: None, shadowed: vec![], doubt: None };
        for position in named.into_iter().flatten() {
            claimants.add(*position, self.groups.get(*position).map(|group| &group.name), None);
        }
        for (position, group) in self.groups.iter().enumerate().filter(|(position, _)| !is_named(*position)) {
            match claims(group, device, answer(position)) {
                Claims::No => {}
                Claims::Yes => claimants.add(position, Some(&group.name), None),
                Claims::Perhaps(error) => {
                    let doubt = Blocked::MembershipUnknown { group: group.name.clone(), error };
                    claimants.add(position, Some(&group.name), Some(doubt));
                }
            }
        }
        claimants
    }

    /// Selector, type and effective group, and not excluded; then priority; then name.
    pub(super) fn policy(&self, device: &Device, group: Option<&Group>) -> Claimants {
        let excluded = self.excluded.get(&*device.name);
        let claims = |position: usize, policy: &Policy| {
            (policy.types.is_empty() || policy.types.contains(&device.device_type))
                && (policy.groups.is_empty() || group.is_some_and(|group| policy.groups.contains(&group.name)))
                && policy.selector.matches(&device.labels)
                && !excluded.is_some_and(|excluded| excluded.contains(&position))
        };
        let mut claimants = Claimants { winner: None, shadowed: vec![], doubt: None };
        for (position, policy) in
            self.policies.iter().enumerate().filter(|(position, policy)| claims(*position, policy))
        {
            claimants.add(position, Some(&policy.name), None);
        }
        claimants
    }
}

impl Claimants {
    /// The next strongest.
    fn add(&mut self, position: usize, name: Option<&Name>, doubt: Option<Blocked>) {
        if self.winner.is_none() {
            self.winner = Some(position);
            self.doubt = doubt.map(Arc::new);
        } else if doubt.is_none() {
            self.shadowed.extend(name.cloned());
        }
    }
}

/// By its selector or its rule. A rule that cannot be read claims the devices that it had when it could be: they are
/// not left to another group because of a typing error, and no others are kept from theirs.
fn claims(group: &Group, device: &Device, answer: Option<&Answer>) -> Claims {
    if group.members.selector.as_ref().is_some_and(|selector| selector.matches(&device.labels)) {
        return Claims::Yes;
    }
    let had_it = device.last_group.as_ref() == Some(&group.name);
    match (&group.members.rule, answer) {
        (None, _) | (Some(Ok(_)), Some(Ok(false))) => Claims::No,
        (Some(Err(invalid)), _) => {
            if had_it {
                Claims::Perhaps(invalid.0.clone())
            } else {
                Claims::No
            }
        }
        (Some(Ok(_)), Some(Ok(true))) => Claims::Yes,
        (Some(Ok(_)), Some(Err(error))) => Claims::Perhaps(error.clone()),
        (Some(Ok(_)), None) => Claims::Perhaps("nothing is known of the device".to_owned()),
    }
}

/// The expression of its members, if it has one that can be read.
fn rule(group: &Group) -> Option<&Expression> {
    group.members.rule.as_ref()?.as_ref().ok()
}

impl Selector {
    /// Whether all requirements hold. None at all selects everything.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => !labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }
}

fn positions<'a>(lists: impl Iterator<Item = &'a Vec<Name>>) -> BTreeMap<&'a str, BTreeSet<usize>> {
    let mut positions: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (position, names) in lists.enumerate() {
        for name in names {
            positions.entry(name).or_default().insert(position);
        }
    }
    positions
}
