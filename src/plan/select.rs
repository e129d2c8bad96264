//! Which group and which policy a device has, and which others claim it and lost.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use super::expression::{DeviceField, Expression, Facts};
use super::model::{Device, Group, Labels, Name, Policy, Requirement, Selector, Specs};
use super::outcome::{Blocked, POSSIBLE_GROUPS};
use super::roster::Numbers;

/// The groups and policies of a client, strongest first.
pub(super) struct Selection<'a> {
    pub groups: Vec<&'a Group>,
    pub policies: Vec<&'a Policy>,
    /// Groups by the devices that they name, as positions in `groups`.
    named: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Policies by the devices that they exclude, as positions in `policies`.
    excluded: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Groups that may select a device.
    groups_by_label: ByLabel<'a>,
    /// Policies that may select a device.
    policies_by_label: ByLabel<'a>,
    rules: Rules<'a>,
}

/// Groups, by their positions, of which it cannot be told by their rules whether they have a device, and why.
pub(super) type Unknown = Box<[(usize, Name)]>;

/// What claims a device.
#[derive(Clone)]
pub(super) struct Claimants {
    /// Position of what has it.
    pub winner: Option<usize>,
    /// Positions of what lost, strongest first.
    pub shadowed: Box<[usize]>,
    /// It may be that the winner does not claim it: that cannot be told.
    pub doubt: Option<Arc<Blocked>>,
    /// Positions of what has it then, strongest first: all but the last one may not claim it either.
    pub instead: Box<[usize]>,
    /// Positions of what may claim it, and had it or may have had it when it was last planned, strongest first.
    pub kept: Box<[usize]>,
}

/// Claims one after another, strongest first.
#[derive(Default)]
struct Claims {
    winner: Option<usize>,
    shadowed: Vec<usize>,
    doubt: Option<Arc<Blocked>>,
    instead: Vec<usize>,
    kept: Vec<usize>,
}

impl<'a> Selection<'a> {
    pub(super) fn of(specs: Specs<'a>) -> Self {
        let mut groups: Vec<&Group> = specs.groups.iter().collect();
        groups.sort_by(|a, b| {
            b.level.cmp(&a.level).then_with(|| b.priority.cmp(&a.priority)).then_with(|| a.name.cmp(&b.name))
        });
        let mut policies: Vec<&Policy> = specs.policies.iter().collect();
        policies.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let selectors = groups.iter().map(|group| group.members.selector.as_ref());
        Self {
            named: positions(groups.iter().map(|group| &group.members.names)),
            excluded: positions(policies.iter().map(|policy| &policy.exclude)),
            groups_by_label: ByLabel::of(selectors),
            policies_by_label: ByLabel::of(policies.iter().map(|policy| Some(&policy.selector))),
            rules: Rules::of(&groups),
            groups,
            policies,
        }
    }

    /// A group that names the device beats one that selects it; then the nearest level; then priority; then name. With the
    /// groups whose rule alone could have it and cannot be evaluated.
    pub(super) fn group(&mut self, device: &Device) -> (Claimants, Unknown) {
        let answers = self.rules.answers(device);
        let named = self.named.get(&*device.name);
        let is_named = |position: usize| named.is_some_and(|named| named.contains(&position));
        let mut claimants = Claims::default();
        for position in named.into_iter().flatten() {
            claimants.add(*position, None);
        }
        // A group whose selector and whose rule both have it comes twice, the selector's word first.
        let mut claims: Vec<(usize, Option<&Name>)> = Vec::new();
        self.groups_by_label.candidates(&device.labels, |position| {
            let selector = self.groups.get(position).and_then(|group| group.members.selector.as_ref());
            if selector.is_some_and(|selector| selector.matches(&device.labels)) {
                claims.push((position, None));
            }
        });
        claims.extend(answers.iter().map(|(position, doubt)| (*position, doubt.as_ref())));
        claims.extend(self.rules.unreadable(device, &self.groups));
        claims.sort_unstable();
        claims.dedup_by_key(|(position, _)| *position);
        let mut failed = Vec::new();
        for (position, doubt) in claims.into_iter().filter(|(position, _)| !is_named(*position)) {
            let Some(group) = self.groups.get(position) else { continue };
            let unknown =
                |error: &Name| Blocked::MembershipUnknown { group: group.name.clone(), error: (**error).to_owned() };
            claimants.add(position, doubt.map(unknown));
            if doubt.is_some() && may_have_had(group, device) {
                claimants.kept.push(position);
            }
            // Of one that cannot be read the group itself tells.
            let is_read = matches!(group.members.rule, Some(Ok(_)));
            failed.extend(doubt.filter(|_| is_read).map(|error| (position, error.clone())));
        }
        (claimants.made(), failed.into())
    }

    /// The groups other than the winner that may have the device, or that kept it and may be its own once the winner is gone,
    /// strongest first. Of more than [`POSSIBLE_GROUPS`] those stay that were among them before.
    pub(super) fn possible(&self, device: &Device, of: &Claimants) -> Box<[Name]> {
        let all = of.instead.iter().chain(&of.kept).copied();
        let mut others: Vec<usize> = all.filter(|place| Some(*place) != of.winner).collect();
        others.sort_unstable();
        others.dedup();
        if others.len() > POSSIBLE_GROUPS {
            others.sort_by_key(|place| !self.groups.get(*place).is_some_and(|group| may_have_had(group, device)));
            others.truncate(POSSIBLE_GROUPS);
            others.sort_unstable();
        }
        others.into_iter().filter_map(|place| Some(self.groups.get(place)?.name.clone())).collect()
    }

    /// Selector, type and effective group, and not excluded; then priority; then name. A device is kept from a policy also
    /// where it may be of a group that the policy excludes.
    pub(super) fn policy(&self, device: &Device, of: &Claimants) -> Claimants {
        let excluded = self.excluded.get(&*device.name);
        let group = of.winner.and_then(|position| self.groups.get(position));
        let may_be_of = |names: &[Name]| {
            let mut groups = of.winner.iter().chain(&of.instead).filter_map(|position| self.groups.get(*position));
            !names.is_empty() && groups.any(|group| names.contains(&group.name))
        };
        let claims = |position: usize, policy: &Policy| {
            (policy.types.is_empty() || policy.types.contains(&device.device_type))
                && (policy.groups.is_empty() || group.is_some_and(|group| policy.groups.contains(&group.name)))
                && policy.selector.matches(&device.labels)
                && !may_be_of(&policy.exclude_groups)
                && !excluded.is_some_and(|excluded| excluded.contains(&position))
        };
        let mut candidates: Vec<usize> = Vec::new();
        self.policies_by_label.candidates(&device.labels, |position| candidates.push(position));
        candidates.sort_unstable();
        candidates.dedup();
        let mut claimants = Claims::default();
        for position in candidates {
            if self.policies.get(position).is_some_and(|policy| claims(position, policy)) {
                claimants.add(position, None);
            }
        }
        claimants.made()
    }
}

impl Claims {
    fn made(self) -> Claimants {
        let Self { winner, shadowed, doubt, instead, kept } = self;
        Claimants { winner, shadowed: shadowed.into(), doubt, instead: instead.into(), kept: kept.into() }
    }

    /// The next strongest.
    fn add(&mut self, position: usize, doubt: Option<Blocked>) {
        if self.winner.is_none() {
            self.winner = Some(position);
            self.doubt = doubt.map(Arc::new);
            return;
        }
        // The first that certainly claims it has it at last.
        if self.doubt.is_some() && self.shadowed.is_empty() {
            self.instead.push(position);
        }
        if doubt.is_none() {
            self.shadowed.push(position);
        }
    }
}

/// Selectors, by their positions, under a label that a device must have to be selected.
struct ByLabel<'a> {
    labels: BTreeMap<&'a str, BTreeMap<&'a str, Vec<usize>>>,
    /// Those that want no value of any label.
    others: Vec<usize>,
}

impl<'a> ByLabel<'a> {
    fn of(selectors: impl Iterator<Item = Option<&'a Selector>>) -> Self {
        let mut all = Self { labels: BTreeMap::new(), others: vec![] };
        for (position, selector) in selectors.enumerate() {
            let Some(selector) = selector else { continue };
            let wanted = selector.0.iter().find_map(|requirement| match requirement {
                Requirement::In(key, values) => Some((key, values)),
                Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::DoesNotExist(_) => None,
            });
            match wanted {
                None => all.others.push(position),
                Some((key, values)) => {
                    let label = all.labels.entry(key).or_default();
                    for value in values {
                        label.entry(value).or_default().push(position);
                    }
                }
            }
        }
        all
    }

    /// All that may select a device with such labels, perhaps more than once.
    fn candidates(&self, labels: &Labels, mut visit: impl FnMut(usize)) {
        let wanted = self.labels.iter().filter_map(|(key, values)| values.get(&**labels.get(key)?));
        wanted.flatten().chain(&self.others).for_each(|position| visit(*position));
    }
}

/// Groups that claim devices by an expression.
struct Rules<'a> {
    /// As positions of groups, in order.
    readable: Vec<(usize, &'a Expression)>,
    /// Those whose expressions cannot be read.
    unreadable: Vec<(usize, Name)>,
    /// All that the expressions read; nothing if one reads what cannot be listed.
    reads: Option<BTreeSet<&'a DeviceField>>,
    /// What has been read of devices, by numbers.
    read: Numbers,
    /// Who claims a device, by the numbers of all that the expressions read of it.
    answers: BTreeMap<Vec<Option<usize>>, Rc<Vec<RuleClaim>>>,
}

/// A group that claims a device by its rule, by its position, and why that cannot be told, if so.
type RuleClaim = (usize, Option<Name>);

impl<'a> Rules<'a> {
    fn of(groups: &[&'a Group]) -> Self {
        let (mut readable, mut unreadable) = (vec![], vec![]);
        for (position, group) in groups.iter().enumerate() {
            match &group.members.rule {
                None => {}
                Some(Ok(rule)) => readable.push((position, rule)),
                Some(Err(invalid)) => unreadable.push((position, invalid.0.as_str().into())),
            }
        }
        let is_listed = readable.iter().all(|(_, rule)| !rule.reads().more);
        let reads = is_listed.then(|| readable.iter().flat_map(|(_, rule)| &rule.reads().fields).collect());
        Self { readable, unreadable, reads, read: Numbers::default(), answers: BTreeMap::new() }
    }

    /// Who claims the device, or may. Worked out once for all that is read of it.
    fn answers(&mut self, device: &Device) -> Rc<Vec<RuleClaim>> {
        let Self { readable, reads, read, answers, .. } = self;
        if readable.is_empty() {
            return Rc::default();
        }
        let work_out = || {
            let facts = Facts::of_device(device);
            let ask = |(position, rule): &(usize, &Expression)| match facts
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|facts| rule.holds(facts))
            {
                Ok(false) => None,
                Ok(true) => Some((*position, None)),
                Err(error) => Some((*position, Some(error.into()))),
            };
            Rc::new(readable.iter().filter_map(ask).collect())
        };
        match reads {
            None => work_out(),
            Some(reads) => {
                let read = reads.iter().map(|field| field.number(device, read)).collect();
                answers.entry(read).or_insert_with(work_out).clone()
            }
        }
    }

    /// A rule that cannot be read claims the devices that it had when it could be, or may have had: they are not left to
    /// another group because of a typing error, and no others are kept from theirs.
    fn unreadable(&self, device: &Device, groups: &[&Group]) -> impl Iterator<Item = (usize, Option<&Name>)> {
        let had_it = |position: usize| groups.get(position).is_some_and(|group| may_have_had(group, device));
        self.unreadable
            .iter()
            .filter(move |(position, _)| had_it(*position))
            .map(|(position, why)| (*position, Some(why)))
    }
}

/// Whether the group had the device when that was last planned, or may have had it.
fn may_have_had(group: &Group, device: &Device) -> bool {
    device.last_group.iter().chain(&device.last_possible).any(|name| *name == group.name)
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
