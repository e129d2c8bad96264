//! Which group and which policy a device has, and which others claim it and lost.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Device, Group, Policy, Requirement, Selector, Snapshot};

/// The groups and policies of a snapshot, strongest first.
pub(super) struct Selection<'a> {
    groups: Vec<&'a Group>,
    policies: Vec<&'a Policy>,
    /// Groups by the devices that they name, as positions in `groups`.
    named: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Policies by the devices that they exclude, as positions in `policies`.
    excluded: BTreeMap<&'a str, BTreeSet<usize>>,
}

/// What claims a device.
pub(super) struct Claimants<'a, T> {
    /// What has it.
    pub winner: Option<&'a T>,
    /// What lost, strongest first.
    pub shadowed: Vec<String>,
}

impl<'a> Selection<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut groups: Vec<&Group> = snapshot.groups.iter().collect();
        groups.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let mut policies: Vec<&Policy> = snapshot.policies.iter().collect();
        policies.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let named = positions(groups.iter().map(|group| &group.names));
        let excluded = positions(policies.iter().map(|policy| &policy.exclude));
        Self { groups, policies, named, excluded }
    }

    /// A group that names the device beats one that selects it; then priority; then name.
    pub(super) fn group(&self, device: &Device) -> Claimants<'a, Group> {
        let named = self.named.get(device.name.as_str());
        let is_named = |position: &usize| named.is_some_and(|named| named.contains(position));
        let by_name = named.into_iter().flatten().filter_map(|position| self.groups.get(*position));
        let by_labels = self.groups.iter().enumerate().filter(|(position, group)| {
            group.selector.as_ref().is_some_and(|selector| selector.matches(&device.labels)) && !is_named(position)
        });
        Claimants::of(by_name.chain(by_labels.map(|(_, group)| group)).copied(), |group| &group.name)
    }

    /// Selector, type and effective group, and not excluded; then priority; then name.
    pub(super) fn policy(&self, device: &Device, group: Option<&Group>) -> Claimants<'a, Policy> {
        let excluded = self.excluded.get(device.name.as_str());
        let claims = |position: usize, policy: &Policy| {
            (policy.types.is_empty() || policy.types.contains(&device.device_type))
                && (policy.groups.is_empty() || group.is_some_and(|group| policy.groups.contains(&group.name)))
                && policy.selector.matches(&device.labels)
                && !excluded.is_some_and(|excluded| excluded.contains(&position))
        };
        let claiming = self.policies.iter().enumerate().filter(|(position, policy)| claims(*position, policy));
        Claimants::of(claiming.map(|(_, policy)| *policy), |policy| &policy.name)
    }
}

impl<'a, T> Claimants<'a, T> {
    fn of(mut strongest_first: impl Iterator<Item = &'a T>, name: impl Fn(&T) -> &String) -> Self {
        let winner = strongest_first.next();
        Self { winner, shadowed: strongest_first.map(|one| name(one).clone()).collect() }
    }
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

fn positions<'a>(lists: impl Iterator<Item = &'a Vec<String>>) -> BTreeMap<&'a str, BTreeSet<usize>> {
    let mut positions: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (position, names) in lists.enumerate() {
        for name in names {
            positions.entry(name).or_default().insert(position);
        }
    }
    positions
}
