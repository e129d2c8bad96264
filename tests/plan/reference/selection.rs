//! Which policy and which group a device has, and what is wrong with them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use patchwarden_plan::model::{
    Approvals, Calendar, Device, DeviceType, Expression, Group, Level, Members, Mode, Name, Policy, Requirement,
    Selector, Snapshot, WhenEmpty, Zone,
};
use patchwarden_plan::outcome::{FailedExpression, Others, Overlap};

use super::approval::{Doubt, update_of, verdict};
use super::rings::{governed, ring_of};
use super::windows::{calendars, open, openings, room};
use crate::fleet::EXPRESSIONS;

/// The policy that governs the device.
pub fn policy_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Option<&'a Policy> {
    policies_of(snapshot, device).into_iter().next()
}

/// All policies that select the device, strongest first.
fn policies_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Vec<&'a Policy> {
    let group = group_of(snapshot, device).map(|group| group.name.clone());
    let mut policies: Vec<&Policy> = snapshot
        .policies
        .iter()
        .filter(|policy| selects(&policy.selector, device))
        .filter(|policy| policy.types.is_empty() || policy.types.contains(&device.device_type))
        .filter(|policy| policy.groups.is_empty() || policy.groups.iter().any(|one| Some(one) == group.as_ref()))
        .filter(|policy| !policy.exclude.contains(&device.name))
        .filter(|policy| !possible_groups_of(snapshot, device).iter().any(|it| policy.exclude_groups.contains(it)))
        .collect();
    policies.sort_by_key(|policy| (-policy.priority, &policy.name));
    policies
}

/// What the policy must say of devices that others select, too.
pub fn overlap(snapshot: &Snapshot, policy: &Policy) -> Option<Overlap> {
    let used = snapshot.devices.iter().filter(|device| !device.retired);
    let claims =
        used.map(|device| policies_of(snapshot, device)).filter(|all| all.iter().any(|it| it.name == policy.name));
    let (mut won, mut lost, mut outranked) = (0, 0, 0);
    let (mut tied, mut stronger) = (BTreeSet::new(), BTreeSet::new());
    let key = |policy: &Policy| (-policy.priority, policy.name.clone());
    for all in claims {
        if all[0].name == policy.name {
            let with: Vec<_> = all[1..].iter().filter(|other| other.priority == policy.priority).collect();
            won += u32::from(!with.is_empty());
            tied.extend(with.into_iter().map(|other| key(other)));
        } else if all[0].priority == policy.priority {
            lost += 1;
            tied.insert(key(all[0]));
        } else {
            outranked += 1;
            stronger.insert(key(all[0]));
        }
    }
    let others = |names: BTreeSet<(i32, Name)>| {
        let names: Vec<Name> = names.into_iter().map(|(_, name)| name).collect();
        Others { first: names.iter().take(3).cloned().collect(), more: names.len().saturating_sub(3) }
    };
    match (tied.is_empty(), stronger.is_empty()) {
        (false, _) => Some(Overlap::SamePriority { won, lost, others: others(tied) }),
        (true, false) => Some(Overlap::HigherPriority { lost: outranked, others: others(stronger) }),
        (true, true) => None,
    }
}

/// Those of the names that are of no device.
pub fn unknown(snapshot: &Snapshot, names: &[Name]) -> Others {
    let is_there = |name: &Name| snapshot.devices.iter().any(|device| device.name == *name);
    let mut unknown: Vec<Name> = names.iter().filter(|name| !is_there(name)).cloned().collect();
    unknown.sort();
    unknown.dedup();
    let more = unknown.len().saturating_sub(3);
    unknown.truncate(3);
    Others { first: unknown, more }
}

/// Whether a policy says which devices are a service, and no device that it governs can be of one.
pub fn unlabelled(snapshot: &Snapshot, policy: &Policy) -> bool {
    let servers: Vec<&Device> =
        governed(snapshot, policy).filter(|device| device.device_type == DeviceType::Server).collect();
    let has = |label: &str| servers.iter().any(|device| device.labels.iter().any(|(key, _)| **key == *label));
    !servers.is_empty() && policy.disruption.as_ref().is_some_and(|it| !has(&it.label))
}

/// The first ring that can never have as many devices with an update as it asks for, while devices come after it: its place, the
/// devices that it has, those of them of which nothing is heard, those that it needs, and those that come after it. A policy that
/// cannot be used has none.
pub fn unprovable(
    snapshot: &Snapshot,
    policy: &Policy,
    is_unknown: impl Fn(&Device) -> bool,
) -> Option<(usize, u32, u32, u32, u32)> {
    let settings = policy.settings.as_ref().ok()?;
    let calendars = calendars(snapshot, &settings.windows)?;
    let is_long = |it: &&Calendar| it.duration > room(it, settings.install_limit);
    let is_usable = calendars.is_empty() || calendars.iter().any(is_long);
    if !is_usable || matches!(settings.mode, Mode::Audit | Mode::DownloadOnly) {
        return None;
    }
    let places: Vec<(usize, bool)> =
        governed(snapshot, policy).map(|device| (ring_of(policy, device), is_unknown(device))).collect();
    let count =
        |counts: &dyn Fn(&(usize, bool)) -> bool| u32::try_from(places.iter().filter(|it| counts(it)).count()).ok();
    settings.rollout.rings.iter().enumerate().find_map(|(place, ring)| {
        let (has, after) = (count(&|it| it.0 == place)?, count(&|it| it.0 > place)?);
        let silent = count(&|it| *it == (place, true))?;
        let needs = u32::max(ring.min_successes, 1);
        let is_left_out = ring.when_empty == WhenEmpty::Promote && has == 0;
        (has - silent < needs && after > 0 && !is_left_out).then_some((place, has, silent, needs, after))
    })
}

/// Whether the policy acts in windows, all of them usable, and none is open or opens again.
pub fn policy_never_opens(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> bool {
    let Ok(settings) = &policy.settings else { return false };
    let Some(calendars) = calendars(snapshot, &settings.windows) else { return false };
    settings.mode != Mode::Audit
        && !calendars.is_empty()
        && calendars.iter().any(|it| it.duration > room(it, settings.install_limit))
        && calendars.iter().all(|calendar| never_opens(calendar, now))
}

/// Whether it is neither open nor opens again, wherever a device may be that has its own clock.
pub fn never_opens(calendar: &Calendar, now: Timestamp) -> bool {
    let zones: Vec<TimeZone> = match &calendar.zone {
        Zone::Fixed(zone) => vec![zone.clone()],
        Zone::Device => {
            let minutes = (-12 * 60..=14 * 60).step_by(15);
            minutes.map(|it| TimeZone::fixed(Offset::from_seconds(it * 60).expect("an offset"))).collect()
        }
    };
    zones.iter().all(|zone| !open(calendar, zone, now) && openings(calendar, zone, now, 1).is_empty())
}

/// What the group must say of expressions that cannot be evaluated.
pub fn failed(snapshot: &Snapshot, group: &Group, now: Timestamp) -> Option<(FailedExpression, Name, usize)> {
    let used = || snapshot.devices.iter().filter(|device| !device.retired);
    let is_read = matches!(group.members.rule, Some(Ok(_)));
    let devices = used().filter(|device| is_read && claims(group, device).is_none()).map(|device| device.name.clone());
    let devices: BTreeSet<Name> = devices.collect();
    if let Some(first) = devices.first() {
        return Some((FailedExpression::Members, first.clone(), devices.len() - 1));
    }
    let mut updates: BTreeSet<(Name, Name)> = BTreeSet::new();
    for (device, offer) in used()
        .flat_map(|device| device.report.iter().flat_map(move |it| it.offers.iter().map(move |offer| (device, offer))))
    {
        let update = update_of(snapshot, offer);
        if let Err(Doubt::Expression(of, rule)) = verdict(snapshot, device, update, now)
            && of.name == group.name
        {
            updates.insert((rule.name.clone(), update.id.clone()));
        }
    }
    let (rule, first) = updates.first()?.clone();
    let more = updates.iter().filter(|(of, _)| *of == rule).count() - 1;
    Some((FailedExpression::Rule { group: group.name.clone(), rule }, first, more))
}

/// The device's effective group, though it may be that it cannot be told.
pub fn group_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Option<&'a Group> {
    let candidates = snapshot.groups.iter().filter(|group| claims(group, device) != Some(false));
    candidates.min_by(|a, b| rank(a, device).cmp(&rank(b, device)))
}

/// Groups other than the effective one that are to be written down with the device: those that may be it, and those that
/// had it or may have had it and of which it cannot be told.
pub fn remembered_groups_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Vec<&'a Name> {
    let (winner, possible) = (group_of(snapshot, device), possible_groups_of(snapshot, device));
    let had_it = |group: &Group| device.last_group.iter().chain(&device.last_possible).any(|name| *name == group.name);
    let mut groups: Vec<&Group> = snapshot.groups.iter().collect();
    groups.sort_by(|a, b| {
        let strength = |group: &Group| (Reverse(group.level), Reverse(group.priority), group.name.clone());
        strength(a).cmp(&strength(b))
    });
    groups.retain(|group| {
        let is_kept = claims(group, device).is_none() && had_it(group);
        (possible.contains(&&group.name) || is_kept) && winner.is_none_or(|winner| winner.name != group.name)
    });
    groups.into_iter().map(|group| &group.name).collect()
}

/// Every group that may be the device's effective one: those that come before the first that certainly has it, and that.
fn possible_groups_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Vec<&'a Name> {
    let mut groups: Vec<&Group> = snapshot.groups.iter().filter(|group| claims(group, device) != Some(false)).collect();
    groups.sort_by(|a, b| rank(a, device).cmp(&rank(b, device)));
    let certain = groups.iter().position(|group| claims(group, device) == Some(true));
    groups.truncate(certain.map_or(groups.len(), |certain| certain + 1));
    groups.into_iter().map(|group| &group.name).collect()
}

/// The lowest is the nearest.
fn rank<'a>(group: &'a Group, device: &Device) -> (bool, Reverse<Level>, Reverse<i32>, &'a Name) {
    (!group.members.names.contains(&device.name), Reverse(group.level), Reverse(group.priority), &group.name)
}

/// The device's effective group, if it can be told.
pub fn certain_group_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Option<&'a Group> {
    group_of(snapshot, device).filter(|group| claims(group, device) == Some(true))
}

/// None if it cannot be told.
fn claims(group: &Group, device: &Device) -> Option<bool> {
    let Members { selector, names, rule } = &group.members;
    if names.contains(&device.name) || selector.as_ref().is_some_and(|selector| selects(selector, device)) {
        return Some(true);
    }
    match rule {
        Some(Err(_)) if device.last_group.as_ref() == Some(&group.name) => None,
        Some(Err(_)) if device.last_possible.contains(&group.name) => None,
        None | Some(Err(_)) => Some(false),
        Some(Ok(rule)) if says(rule, r#"device.type == "Server""#) => Some(device.device_type == DeviceType::Server),
        Some(Ok(_)) => device.labels.get("env").map(|env| &**env == "prod"),
    }
}

pub(super) fn says(expression: &Expression, text: &str) -> bool {
    EXPRESSIONS.iter().any(|(other, known)| *other == text && known == expression)
}

/// The group and its parents, nearest first, if all are there and can be read.
pub(super) fn line_of<'a>(snapshot: &'a Snapshot, group: &'a Group) -> Option<Vec<(&'a Group, &'a Approvals)>> {
    let mut line = vec![];
    let mut next = Some(group);
    while let Some(group) = next {
        // More than there are: round in a circle.
        if line.len() > snapshot.groups.len() {
            return None;
        }
        line.push((group, group.approvals.as_ref().ok()?));
        next = match &group.parent {
            Some(parent) => Some(snapshot.groups.iter().find(|other| other.name == *parent)?),
            None => None,
        };
    }
    Some(line)
}

pub(super) fn selects(selector: &Selector, device: &Device) -> bool {
    let label = |key: &String| device.labels.get(key).map(ToString::to_string);
    selector.0.iter().all(|requirement| match requirement {
        Requirement::In(key, values) => values.iter().any(|value| label(key).as_ref() == Some(value)),
        Requirement::NotIn(key, values) => values.iter().all(|value| label(key).as_ref() != Some(value)),
        Requirement::Exists(key) => label(key).is_some(),
        Requirement::DoesNotExist(key) => label(key).is_none(),
    })
}
