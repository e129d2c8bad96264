//! What the planner must answer, said another way: slowly, by trying everything, and sharing no code with it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};
use patchwarden_plan::model::{
    AgeClock, Amount, Approvals, Calendar, Cause, Claim, Cron, DecisionAction, Device, DeviceReport, DeviceType,
    Durations, Expression, FailedOn, Failure, Glob, Group, Level, Members, Mode, Name, Offer, PackageVersion, Policy,
    Progress, Requirement, RingMembers, Rule, RuleAction, Schedule, Seen, Selector, Settings, Snapshot, Target, Update,
    UpdateDecision, UpdateMatch, UpdateProgress, Vulnerability, WhenEmpty, Zone,
};

use patchwarden_plan::outcome::{FailedExpression, Others, Overlap};

use sha2::{Digest as _, Sha256};

use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::report::{Power, ProblemCode, Severity, Tristate};

use crate::fleet::{EXPRESSIONS, IDS};

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
        None | Some(Err(_)) => Some(false),
        Some(Ok(rule)) if says(rule, r#"device.type == "Server""#) => Some(device.device_type == DeviceType::Server),
        Some(Ok(_)) => device.labels.get("env").map(|env| &**env == "prod"),
    }
}

fn says(expression: &Expression, text: &str) -> bool {
    EXPRESSIONS.iter().any(|(other, known)| *other == text && known == expression)
}

/// The group and its parents, nearest first, if all are there and can be read.
fn line_of<'a>(snapshot: &'a Snapshot, group: &'a Group) -> Option<Vec<(&'a Group, &'a Approvals)>> {
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

/// What approves an update.
struct Approval<'a> {
    after: SignedDuration,
    published: bool,
    artifact_age: SignedDuration,
    window: Option<&'a Name>,
}

/// What approves the update, if anything does, whenever that counts.
fn approval<'a>(snapshot: &'a Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Approval<'a>> {
    match verdict(snapshot, device, update, now) {
        Ok(Verdict::Approves(approval)) => Some(approval),
        Ok(Verdict::Removes(_) | Verdict::Refuses) | Err(_) => None,
    }
}

/// Whether the device's group says to take the update back.
pub fn removes(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> bool {
    matches!(verdict(snapshot, device, update, now), Ok(Verdict::Removes(_)))
}

/// Whether it cannot be told if the update is approved.
pub fn doubtful(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> bool {
    verdict(snapshot, device, update_of(snapshot, offer), now).is_err()
}

enum Doubt<'a> {
    /// A rule's expression cannot be evaluated.
    Expression(&'a Group, &'a Rule),
    Other,
}

enum Verdict<'a> {
    Approves(Approval<'a>),
    /// In a window of its own, or the policy's.
    Removes(Option<&'a Name>),
    Refuses,
}

fn verdict<'a>(
    snapshot: &'a Snapshot,
    device: &Device,
    update: &Update,
    now: Timestamp,
) -> Result<Verdict<'a>, Doubt<'a>> {
    let approves = |says: bool, approval| if says { Verdict::Approves(approval) } else { Verdict::Refuses };
    let Some(group) = certain_group_of(snapshot, device) else { return Ok(Verdict::Refuses) };
    let line = line_of(snapshot, group).ok_or(Doubt::Other)?;
    let artifact_age = line.iter().find_map(|(_, it)| it.min_artifact_age).unwrap_or(SignedDuration::from_hours(24));
    let in_force = |it: &&UpdateDecision| it.until.is_none_or(|until| now < until) && about(&it.target, update);
    let decides = |it: &&UpdateDecision| !matches!(it.action, DecisionAction::Reprocess { .. });
    let locked = line.iter().rev().flat_map(|(_, it)| it.decisions.iter().filter(|it| it.locked));
    let mut candidates: Vec<Says<'a>> = locked.map(Says::Decision).collect();
    for (group, approvals) in &line {
        candidates.extend(approvals.decisions.iter().map(Says::Decision));
        candidates.extend(approvals.rules.iter().map(|rule| Says::Rule(group, rule)));
    }
    for candidate in candidates {
        match candidate {
            Says::Decision(decision) => {
                if !in_force(&decision) || !decides(&decision) {
                    continue;
                }
                let exact = matches!(decision.target, Target::Id(_));
                let approval = Approval {
                    after: SignedDuration::ZERO,
                    published: false,
                    artifact_age: if exact { SignedDuration::ZERO } else { artifact_age },
                    window: decision.window.as_ref(),
                };
                return Ok(match decision.action {
                    DecisionAction::Uninstall => Verdict::Removes(decision.window.as_ref()),
                    action => approves(action == DecisionAction::Approve, approval),
                });
            }
            Says::Rule(group, rule) => match covers(snapshot, &rule.matches, update) {
                Some(false) => {}
                Some(true) => {
                    let approval = Approval {
                        after: rule.after,
                        published: rule.clock == AgeClock::Published,
                        artifact_age,
                        window: rule.window.as_ref(),
                    };
                    return Ok(approves(rule.action == RuleAction::Approve, approval));
                }
                None if is_of_vulnerabilities(snapshot, &rule.matches, update) => return Err(Doubt::Other),
                None => return Err(Doubt::Expression(group, rule)),
            },
        }
    }
    let default = line.iter().find_map(|(_, it)| it.default);
    let approval = Approval { after: SignedDuration::ZERO, published: false, artifact_age, window: None };
    Ok(approves(default == Some(RuleAction::Approve), approval))
}

enum Says<'a> {
    Decision(&'a UpdateDecision),
    Rule(&'a Group, &'a Rule),
}

fn about(target: &Target, update: &Update) -> bool {
    match target {
        Target::Id(id) => *id == update.id,
        Target::Ids(pattern) => glob(&pattern.0, &update.id),
        Target::Cves(pattern) => update.cves.iter().any(|cve| glob(&pattern.0, cve)),
        // Two versions of one package are generated, and `1.0` comes before `1.1` also as text.
        Target::From(version) => IDS[2..].iter().any(|id| {
            *update.id >= **id
                && update.id.starts_with("pkg:")
                && *version == PackageVersion::parse(id).expect("a version")
        }),
    }
}

/// None if it cannot be told.
fn covers(snapshot: &Snapshot, matches: &UpdateMatch, update: &Update) -> Option<bool> {
    let told = snapshot.vulnerabilities.as_ref();
    let known: Vec<&Vulnerability> = update.cves.iter().filter_map(|cve| told?.get(cve)).collect();
    let exploited = known.iter().any(|it| it.known_exploited);
    let any = |globs: &[Glob], names: &[Name]| globs.iter().any(|it| names.iter().any(|name| glob(&it.0, name)));
    let without = (!matches.classifications.is_empty() && !matches.classifications.contains(&update.classification))
        || (!matches.severities.is_empty() && !matches.severities.contains(&update.severity))
        || (!matches.packages.is_empty() && !any(&matches.packages, &update.packages))
        || (!matches.cves.is_empty() && !any(&matches.cves, &update.cves));
    if !without && is_of_vulnerabilities(snapshot, matches, update) {
        return None;
    }
    let without = without
        || matches.known_exploited.is_some_and(|wanted| wanted != exploited)
        || matches.epss_at_least.is_some_and(|least| known.iter().all(|it| it.epss.is_none_or(|epss| epss < least)));
    match &matches.expression {
        _ if without => Some(false),
        None => Some(true),
        Some(expression) if says(expression, EXPRESSIONS[0].0) => {
            Some(&*update.id == "u1" || update.severity == Severity::Critical)
        }
        Some(_) => update.packages.get(1).map(|package| &**package == "nano"),
    }
}

/// Whether it asks of the update what nobody has told.
fn is_of_vulnerabilities(snapshot: &Snapshot, matches: &UpdateMatch, update: &Update) -> bool {
    let asks = matches.known_exploited.is_some() || matches.epss_at_least.is_some();
    asks && snapshot.vulnerabilities.is_none() && !update.cves.is_empty()
}

/// Whether the device's group approves the update at `now`.
pub fn approved(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> bool {
    aged(snapshot, device, offer, now).0
}

/// Whether it is approved, or an earlier version would be that the device lacks.
pub fn missing(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> bool {
    let (approved, earlier) = aged(snapshot, device, offer, now);
    approved || earlier
}

/// Until when it must be installed, if it is missing and the policy says so.
pub fn deadline(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> Option<Timestamp> {
    let deadlines = &policy_of(snapshot, device)?.settings.as_ref().ok()?.deadlines.0;
    let update = update_of(snapshot, offer);
    let said = deadlines.iter().filter(|(severity, _)| severity.is_none_or(|it| it == update.severity));
    // Whatever is said of the severity comes after what is said of all.
    let (_, deadline) = said.max_by_key(|(severity, _)| severity.is_some())?;
    let (_, lacking) = known(snapshot, device, offer);
    let start = clock_from(snapshot, device, offer, deadline.clock == AgeClock::Published, lacking);
    missing(snapshot, device, offer, now).then_some(start + deadline.within)
}

fn aged(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> (bool, bool) {
    let update = update_of(snapshot, offer);
    let Some(approval) = approval(snapshot, device, update, now) else { return (false, false) };
    let (since, lacking) = known(snapshot, device, offer);
    let clock = clock_from(snapshot, device, offer, approval.published, lacking);
    let old_enough = now >= clock + approval.after;
    let earlier = lacking < since && old_enough && now >= lacking + approval.artifact_age;
    (old_enough && now >= since + approval.artifact_age, earlier)
}

/// Since when the update is known for the device, and since when any version that it lacks.
fn known(snapshot: &Snapshot, device: &Device, offer: &Offer) -> (Timestamp, Timestamp) {
    let update = update_of(snapshot, offer);
    let written = snapshot.groups.iter().flat_map(|group| &group.seen).filter(|seen| seen.id == update.id);
    let own = written.filter(|seen| seen.by == device.name).map(|seen| seen.first).min();
    let since = shared(snapshot, &update.id).into_iter().chain(own).fold(offer.first_seen, Timestamp::min);
    let mut lacking = since.min(offer.missing_since);
    // Two versions of one package are generated.
    let known: Vec<(&str, Timestamp)> =
        IDS[2..].iter().filter_map(|id| Some((*id, shared(snapshot, &Name::from(*id))?))).collect();
    if IDS[2..].contains(&&*update.id) {
        let lacks = |id: &str| lacks(offer, id);
        lacking = known.iter().filter(|(id, _)| lacks(id)).map(|(_, since)| *since).fold(lacking, Timestamp::min);
    }
    (since, lacking)
}

/// Whether a device that offers a version of the package lacks this one, by what it says that it has installed.
fn lacks(offer: &Offer, id: &str) -> bool {
    match offer.installed.as_deref() {
        Some("0.9") => true,
        Some("1.0") => id.ends_with("1.1"),
        _ => false,
    }
}

/// From when on the update ages: from the earliest date that is known of it, or of another version that the device lacks.
fn clock_from(snapshot: &Snapshot, device: &Device, offer: &Offer, published: bool, lacking: Timestamp) -> Timestamp {
    if !published {
        return lacking;
    }
    let update = update_of(snapshot, offer);
    let mut dates: Vec<Timestamp> = update.published.into_iter().collect();
    for id in IDS {
        let is_lacked = IDS[2..].contains(&&*update.id) && IDS[2..].contains(&id) && lacks(offer, id);
        if *update.id == *id || is_lacked {
            dates.extend(published_for(snapshot, &device.name, id));
        }
    }
    dates.into_iter().min().unwrap_or(lacking)
}

/// The dates of an update that count for a device: those that it tells or is known to have told, and what several tell.
fn published_for(snapshot: &Snapshot, device: &Name, id: &str) -> Vec<Timestamp> {
    let own = told(snapshot, id).into_iter().filter(|(_, by)| by == device).map(|(at, _)| at);
    own.chain(vendors_dates(snapshot, id).0).collect()
}

/// The dates of an update that devices tell or are known to have told alone.
fn told(snapshot: &Snapshot, id: &str) -> Vec<(Timestamp, Name)> {
    let offers = snapshot.devices.iter().flat_map(|device| {
        let offers = device.report.iter().flat_map(|report| &report.offers);
        offers.map(move |offer| (update_of(snapshot, offer), &device.name))
    });
    let offered = offers.filter(|(update, _)| *update.id == *id);
    let offered = offered.filter_map(|(update, by)| Some((update.published?, by.clone())));
    offered.chain(written(snapshot, id).filter_map(|seen| seen.dates.alone.clone())).collect()
}

/// The earliest date that several devices tell, each no later than that, or were known to; and an earlier one with who tells it.
pub fn vendors_dates(snapshot: &Snapshot, id: &str) -> (Option<Timestamp>, Option<(Timestamp, Name)>) {
    let told = told(snapshot, id);
    let others = |(at, by): &&(Timestamp, Name)| told.iter().any(|(other, teller)| teller != by && other <= at);
    let confirmed = told.iter().filter(others).map(|(at, _)| *at);
    let shared = confirmed.chain(written(snapshot, id).filter_map(|seen| seen.dates.shared)).min();
    let alone = told.iter().min().filter(|(at, _)| shared.is_none_or(|shared| *at < shared));
    (shared, alone.cloned())
}

fn written<'a>(snapshot: &'a Snapshot, id: &'a str) -> impl Iterator<Item = &'a Seen> {
    snapshot.groups.iter().flat_map(|group| &group.seen).filter(move |seen| *seen.id == *id)
}

/// When a second device had seen the update; by what devices offer and by what was written down.
pub fn shared(snapshot: &Snapshot, id: &Name) -> Option<Timestamp> {
    let offered = snapshot.devices.iter().filter_map(|device| {
        let mut offers = device.report.as_ref().ok()?.offers.iter();
        Some((device.name.clone(), offers.find(|it| update_of(snapshot, it).id == *id)?.first_seen))
    });
    let written = || snapshot.groups.iter().flat_map(|group| &group.seen).filter(|seen| seen.id == *id);
    let alone = written().map(|seen| (seen.by.clone(), seen.first));
    let mut firsts: Vec<(Name, Timestamp)> = offered.chain(alone).collect();
    firsts.sort();
    // The first of each device.
    firsts.dedup_by(|later, earlier| later.0 == earlier.0);
    let mut firsts: Vec<Timestamp> = firsts.into_iter().map(|(_, since)| since).collect();
    firsts.sort();
    let together = written().filter_map(|seen| seen.shared).min();
    firsts.get(1).copied().into_iter().chain(together).min()
}

/// The update that is offered.
pub fn update_of<'a>(snapshot: &'a Snapshot, offer: &Offer) -> &'a Update {
    snapshot.updates.get(offer.update).expect("an update of the snapshot")
}

/// The windows that the update follows on the device: its own, or the policy's.
fn windows_of(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Vec<Name>> {
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let own = own_window_of(snapshot, device, update, now);
    Some(own.map_or_else(|| settings.windows.clone(), |own| vec![own]))
}

fn own_window_of(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Name> {
    match verdict(snapshot, device, update, now) {
        Ok(Verdict::Approves(approval)) => approval.window.cloned(),
        Ok(Verdict::Removes(window)) => window.cloned(),
        Ok(Verdict::Refuses) | Err(_) => None,
    }
}

/// The devices that the policy governs.
fn governed<'a>(snapshot: &'a Snapshot, policy: &'a Policy) -> impl Iterator<Item = &'a Device> + Clone {
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    snapshot.devices.iter().filter(governs).filter(|device| !device.retired)
}

/// What a plan would write down of the policy's updates at `now`.
pub fn progress(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> Progress {
    let durations = durations(snapshot, policy, now);
    let mut progress = Progress { durations, ..(*policy.progress).clone() };
    for id in IDS.map(Name::from) {
        let ring = policy.settings.as_ref().ok().and_then(|settings| settings.rollout.rings.first());
        let ring = ring.map(|it| it.name.clone());
        let (opened, reached, stopped_at) = (now, None, None);
        let blank =
            UpdateProgress { ring, opened, reached, stopped: stopped_at, installed: 0, anywhere: 0, failed: vec![] };
        let (failing, gone) = failed_on(snapshot, policy, &id, now);
        let mut failed: Vec<FailedOn> = failing.into_iter().chain(gone).collect();
        failed.sort();
        if !failed.is_empty() || progress.updates.contains_key(&id) {
            progress.updates.entry(id.clone()).or_insert(blank.clone()).failed = failed;
        }
        if let Some(since) = stopped(snapshot, policy, &id, now) {
            progress.updates.entry(id).or_insert(blank).stopped = Some(since);
        }
    }
    let Ok(settings) = &policy.settings else { return progress };
    let rollout = &settings.rollout;
    let resumed = rollout.resumed.filter(|resumed| *resumed <= now);
    progress.paused = progress.paused.filter(|since| resumed.is_none_or(|resumed| resumed < *since));
    if let Some(budget) = rollout.failure_budget {
        let after = |last: Timestamp| resumed.is_none_or(|resumed| last > resumed);
        let told = governed(snapshot, policy).filter(|device| {
            device.failures.iter().any(|it| it.attempts > 0 && it.cause != Cause::Passing && after(it.last))
        });
        let gone: Vec<FailedOn> =
            policy.progress.updates.keys().flat_map(|id| failed_on(snapshot, policy, id, now).1).collect();
        let gone = gone.iter().filter(|it| after(it.last)).map(|it| &it.device);
        let failed = told.map(|device| &device.name).chain(gone).collect::<BTreeSet<_>>().len();
        let devices = governed(snapshot, policy).count();
        let allowed = match budget {
            Amount::Count(count) => count as usize,
            Amount::Percent(percent) => devices * percent as usize / 100,
        };
        progress.paused = progress.paused.or((failed > allowed).then_some(now));
    }
    progress
}

/// Devices of the policy on which the update counts as failed by its own fault, and those on which it does though they are deleted,
/// retired, made anew or in no policy.
pub fn failed_on(snapshot: &Snapshot, policy: &Policy, id: &Name, now: Timestamp) -> (Vec<FailedOn>, Vec<FailedOn>) {
    let failing = governed(snapshot, policy).filter(|device| !is_pardoned(snapshot, device, id, now));
    let failing: Vec<FailedOn> = failing
        .filter_map(|device| {
            let last = device.failures.iter().filter(|it| is_of_update(it, id)).map(|it| it.last).max()?;
            let settings = policy.settings.as_ref().ok();
            let ring = settings.and_then(|it| it.rollout.rings.get(ring_of(policy, device))).map(|it| it.name.clone());
            Some(FailedOn { device: device.name.clone(), last, ring })
        })
        .collect();
    let known = Update::by_id(id.clone());
    let own = snapshot.groups.iter().filter(|group| !group.name.contains('/'));
    let again = own.filter_map(|group| reprocessed(&line_of(snapshot, group)?, &known, now)).max();
    let is_gone = |name: &Name| {
        let Some(device) = snapshot.devices.iter().find(|device| device.name == *name) else { return true };
        let is_whole = |report: &DeviceReport| {
            !report.truncated && report.problems.iter().all(|problem| *problem == ProblemCode::JournalCorrupt)
        };
        let offers = |report: &DeviceReport| report.offers.iter().any(|it| update_of(snapshot, it).id == *id);
        if device.failures.iter().any(|it| is_of_update(it, id)) {
            return device.retired || policy_of(snapshot, device).is_none();
        }
        device.retired || device.report.as_ref().map_or(true, |report| !is_whole(report) || offers(report))
    };
    let known = policy.progress.updates.get(id).into_iter().flat_map(|update| update.failed.clone());
    let others = known.filter(|it| failing.iter().all(|failing| failing.device != it.device));
    let counted = others.filter(|it| is_gone(&it.device) && again.is_none_or(|again| it.last >= again));
    let gone = counted.collect();
    (failing, gone)
}

fn is_of_update(failure: &Failure, id: &Name) -> bool {
    failure.update == *id && !matches!(failure.cause, Cause::Other | Cause::Passing) && failure.attempts > 0
}

/// Whether somebody has said since the update failed on the device that it is to be tried again.
fn is_pardoned(snapshot: &Snapshot, device: &Device, id: &Name, now: Timestamp) -> bool {
    if seen_to(snapshot, device, id, now) {
        return true;
    }
    let offers = device.report.iter().flat_map(|report| &report.offers);
    let mut offered = offers.map(|offer| update_of(snapshot, offer)).filter(|update| update.id == *id);
    let before = offered.find_map(|update| pardoned_before(snapshot, device, update, now));
    worst(device, id).zip(before).is_some_and(|(failure, before)| failure.last < before)
}

/// Since when the update is stopped in the policy, if that is decided at `now`.
fn stopped(snapshot: &Snapshot, policy: &Policy, id: &Name, now: Timestamp) -> Option<Timestamp> {
    let before = snapshot.policies.iter().filter_map(|policy| policy.progress.updates.get(id)?.stopped).max();
    let counts = |it: &&Failure| is_of_update(it, id) && before.is_none_or(|before| it.last > before);
    let counted = || snapshot.devices.iter().filter(|device| !is_pardoned(snapshot, device, id, now));
    let failed = counted().filter(|device| device.failures.iter().find(counts).is_some()).count();
    let of_policies = || snapshot.policies.iter().flat_map(|policy| failed_on(snapshot, policy, id, now).1);
    // A retired one tells it itself.
    let tells = |name: &Name| {
        counted().any(|device| device.name == *name && device.failures.iter().any(|it| is_of_update(it, id)))
    };
    let mut gone: BTreeMap<Name, Timestamp> = BTreeMap::new();
    for FailedOn { device, last, .. } in of_policies().filter(|it| !tells(&it.device)) {
        gone.entry(device).and_modify(|known| *known = last.max(*known)).or_insert(last);
    }
    let gone = || gone.values().filter(|last| before.is_none_or(|before| **last > before));
    let failed = failed + gone().count();
    let told = snapshot.devices.iter().filter(|device| has_installed(snapshot, device, id)).count();
    let written =
        snapshot.policies.iter().filter_map(|policy| Some(policy.progress.updates.get(id)?.anywhere as usize));
    let installed = written.max().unwrap_or(0).max(told);
    let is_bad = failed >= 3 && failed * 100 >= 5 * (failed + installed);
    let affected = |device: &&Device| {
        let offers = device.report.iter().flat_map(|report| &report.offers);
        device.failures.iter().any(|failure| failure.update == *id)
            || offers.into_iter().any(|offer| update_of(snapshot, offer).id == *id)
    };
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    let told = failed_on(snapshot, policy, id, now);
    let is_told = !told.0.is_empty() || !told.1.is_empty();
    let here = is_told || snapshot.devices.iter().filter(governs).any(|device| affected(&device));
    let last = counted().flat_map(|device| device.failures.iter().filter(counts)).map(|it| it.last);
    let last = last.chain(gone().copied()).max();
    (is_bad && here).then_some(now.max(last.unwrap_or(now)))
}

/// Which ring of the policy the device is in.
pub fn ring_of(policy: &Policy, device: &Device) -> usize {
    let Ok(settings) = &policy.settings else { return 0 };
    let digest = Sha256::digest(format!("{}\0{}", policy.name, device.name));
    let share = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % 10_000;
    let mut upto = 0;
    for (number, ring) in settings.rollout.rings.iter().enumerate() {
        let fits = match &ring.members {
            RingMembers::Selector(selector) => selects(selector, device),
            RingMembers::Percent(percent) => {
                let from = upto;
                upto += 100 * percent;
                from <= share && share < upto
            }
        };
        if fits {
            return number;
        }
    }
    settings.rollout.rings.len()
}

/// Whether the device's ring has the update, by what `progress` says of it.
fn ring_has_it(policy: &Policy, progress: &Progress, device: &Device, id: &Name) -> bool {
    let Ok(settings) = &policy.settings else { return true };
    let rings = &settings.rollout.rings;
    let open = match progress.updates.get(id).map(|progress| &progress.ring) {
        Some(None) => rings.len(),
        Some(Some(name)) => rings.iter().position(|ring| ring.name == *name).unwrap_or(0),
        None => 0,
    };
    ring_of(policy, device) <= open
}

/// Whether nothing but other devices keeps the update from being installed at `now`, by the policy's own limit; what the
/// policies' updates have come to is as it was written down.
pub fn eligible(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> bool {
    if let What::Install(_) = what {
        return install(snapshot, device, now).is_some_and(|(ids, _)| ids.contains(&what.id(snapshot)));
    }
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let limit = settings.map(|settings| settings.install_limit);
    limit.is_some_and(|limit| eligible_within(snapshot, device, what, (limit, limit), now))
}

/// Whether it could be done if it were the only thing to do.
pub fn eligible_by_itself(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> bool {
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let limit = settings.map(|settings| settings.install_limit);
    let expected = expected(snapshot, device, &[what]);
    limit.zip(expected).is_some_and(|(limit, expected)| eligible_within(snapshot, device, what, (expected, limit), now))
}

/// What could be done on a device.
#[derive(Clone, Copy)]
pub enum What<'a> {
    Install(&'a Offer),
    Download(&'a Offer),
    TakeBack(&'a Update),
    Restart,
}

impl<'a> What<'a> {
    /// What the device's policy does with what the device offers.
    pub fn with(snapshot: &Snapshot, device: &Device, offer: &'a Offer) -> Self {
        match policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) {
            Some(settings) if settings.mode == Mode::DownloadOnly => Self::Download(offer),
            _ => Self::Install(offer),
        }
    }

    fn offer(self) -> Option<&'a Offer> {
        match self {
            Self::Install(offer) | Self::Download(offer) => Some(offer),
            Self::TakeBack(_) | Self::Restart => None,
        }
    }

    fn id(self, snapshot: &Snapshot) -> Name {
        match self {
            Self::Install(offer) | Self::Download(offer) => update_of(snapshot, offer).id.clone(),
            Self::TakeBack(update) => update.id.clone(),
            Self::Restart => "restart".into(),
        }
    }

    /// The windows in which it is done; none if it is not to be done.
    fn windows(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> Option<Vec<Name>> {
        match self {
            Self::Install(offer) | Self::Download(offer) => {
                windows_of(snapshot, device, update_of(snapshot, offer), now)
            }
            Self::TakeBack(update) => windows_of(snapshot, device, update, now),
            Self::Restart => Some(policy_of(snapshot, device)?.settings.as_ref().ok()?.windows.clone()),
        }
    }

    fn has_own_window(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
        match self {
            Self::Install(offer) | Self::Download(offer) => {
                own_window_of(snapshot, device, update_of(snapshot, offer), now).is_some()
            }
            Self::TakeBack(update) => own_window_of(snapshot, device, update, now).is_some(),
            Self::Restart => false,
        }
    }

    /// Whether it may be done at any time.
    fn needs_no_window(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
        let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
        settings.is_some_and(|settings| match self {
            Self::Download(_) if settings.mode == Mode::DownloadOnly => settings.windows.is_empty(),
            Self::Download(offer) | Self::Install(offer) => {
                settings.mode == Mode::InstallImmediately
                    && offer.requires_restart == Tristate::No
                    && offer.interrupts_service == Tristate::No
            }
            Self::TakeBack(_) | Self::Restart => false,
        }) && !self.has_own_window(snapshot, device, now)
    }
}

/// Until when a restart that follows it may begin, if it starts in one of the policy's windows.
pub fn restart_until(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> Option<Timestamp> {
    if what.has_own_window(snapshot, device, now) || what.needs_no_window(snapshot, device, now) {
        return None;
    }
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let expected = expected_with(snapshot, device, what, now)?;
    let latest = |calendar: &Calendar, room| latest_in(calendar, zone(calendar, device)?, room, now);
    let calendars = calendars(snapshot, &settings.windows)?;
    let starts = calendars.iter().any(|it| latest(it, room(it, expected)).is_some());
    let ends = calendars.iter().filter_map(|it| latest(it, SignedDuration::ZERO));
    ends.max().filter(|_| starts)
}

/// Whether the device may restart after it has done what it holds a claim for.
pub fn may_restart(snapshot: &Snapshot, device: &Device, claim: &Claim, now: Timestamp) -> bool {
    let Some(policy) = policy_of(snapshot, device) else { return false };
    let Ok(settings) = &policy.settings else { return false };
    let (Ok(report), Some(calendars)) = (&device.report, calendars(snapshot, &settings.windows)) else { return false };
    let is_open = |calendar: &&Calendar| zone(calendar, device).is_some_and(|zone| open(calendar, zone, now));
    let fits = |calendar: &&Calendar| calendar.duration > room(calendar, settings.install_limit);
    claim.granted
        && policy.name == claim.policy
        && certain_group_of(snapshot, device).is_some()
        && settled(snapshot, device, settings.settle, now)
        && settings.restart.when != RestartWhen::Never
        && settings.mode != Mode::Audit
        && !settings.suspended
        && (policy.progress.paused.is_none() || claim.verb == Verb::Uninstall)
        && !device.suspended
        && !device.retired
        && !report.problems.iter().any(|code| code.blocks_installs())
        && (calendars.is_empty() || calendars.iter().any(fits))
        && calendars.iter().any(is_open)
}

/// Whether the policy does such a thing.
fn does(snapshot: &Snapshot, settings: &Settings, what: What<'_>) -> bool {
    let in_mode = match what {
        What::Install(_) | What::TakeBack(_) => matches!(settings.mode, Mode::Install | Mode::InstallImmediately),
        What::Restart => {
            matches!(settings.mode, Mode::Install | Mode::InstallImmediately)
                && settings.restart.when != RestartWhen::Never
        }
        // One that was claimed goes on where the policy installs by now: it is the smaller part of that.
        What::Download(offer) => match settings.mode {
            Mode::DownloadOnly => !offer.downloaded,
            Mode::Install | Mode::InstallImmediately => true,
            Mode::Audit => false,
        },
    };
    let filters = &settings.filters;
    let left_out = what.offer().is_some_and(|offer| {
        let update = update_of(snapshot, offer);
        (filters.skip_restart && offer.requires_restart == Tristate::Yes)
            || !(filters.classifications.is_empty() || filters.classifications.contains(&update.classification))
            || filters.exclude_packages.iter().any(|it| update.packages.iter().any(|name| glob(&it.0, name)))
    });
    in_mode && !left_out
}

/// Whether its windows let an install of the update alone start.
pub fn starts_alone(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> bool {
    let what = What::with(snapshot, device, offer);
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let alone = expected(snapshot, device, &[what]).zip(settings.map(|settings| settings.install_limit));
    alone.is_some_and(|alone| last_start_within(snapshot, device, what, alone, now, now).is_some())
}

/// What is installed together if it is the device's turn, and how long that is expected to take.
pub fn install(snapshot: &Snapshot, device: &Device, now: Timestamp) -> Option<(Vec<Name>, SignedDuration)> {
    let limit = policy_of(snapshot, device)?.settings.as_ref().ok()?.install_limit;
    let mut taken: Vec<What<'_>> = vec![];
    for offer in &device.report.as_ref().ok()?.offers {
        let what = What::Install(offer);
        let mut more = taken.clone();
        more.push(what);
        let together = expected(snapshot, device, &more)?;
        let fits = |it: &What<'_>| {
            !goes_by_windows(snapshot, device, *it, now)
                || by_windows(snapshot, device, *it, together, now, now).is_some()
        };
        if eligible_within(snapshot, device, what, (expected(snapshot, device, &[what])?, limit), now)
            && more.iter().all(fits)
        {
            taken = more;
        }
    }
    let ids = taken.iter().map(|what| what.id(snapshot)).collect();
    Some((ids, expected(snapshot, device, &taken)?))
}

/// How long they are expected to take together: by the policy's own words, minute for minute.
fn expected(snapshot: &Snapshot, device: &Device, together: &[What<'_>]) -> Option<SignedDuration> {
    let policy = policy_of(snapshot, device)?;
    let limit = policy.settings.as_ref().ok()?.install_limit;
    let known = &policy.progress.durations;
    let mut half_seconds = 120;
    for what in together {
        let What::Install(offer) = what else { return Some(limit) };
        let update = update_of(snapshot, offer);
        let failed = device.failures.iter().any(|failure| failure.update == update.id && failure.attempts > 0);
        match known.updates.get(&update.id).or(known.kinds.get(&update.classification)) {
            Some(seconds) if !failed => half_seconds += 3 * i64::from(*seconds),
            _ => return Some(limit),
        }
    }
    let mut minutes = 0;
    while minutes * 120 < half_seconds {
        minutes += 1;
    }
    Some(limit.min(SignedDuration::from_mins(minutes)))
}

/// How long the order is expected to take in which it would be carried out at `now`.
fn expected_with(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> Option<SignedDuration> {
    match what {
        What::Install(_) => Some(install(snapshot, device, now)?.1),
        What::Download(_) | What::TakeBack(_) | What::Restart => {
            Some(policy_of(snapshot, device)?.settings.as_ref().ok()?.install_limit)
        }
    }
}

/// The longest that was ever written down, or measured in the last hour.
pub fn durations(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> Durations {
    let mut known = policy.progress.durations.clone();
    let governed = |it: &&Device| policy_of(snapshot, it).is_some_and(|governs| governs.name == policy.name);
    for measured in snapshot.devices.iter().filter(governed).flat_map(|device| &device.measured) {
        let number = u32::try_from(measured.updates.len()).expect("few");
        if measured.at + SignedDuration::from_hours(1) <= now || number == 0 {
            continue;
        }
        let share = (0..=measured.seconds).find(|share| share * number >= measured.seconds).expect("that much");
        for id in &measured.updates {
            let longest = known.updates.get(id).copied().unwrap_or(0);
            known.updates.insert(id.clone(), longest.max(share));
        }
        for kind in &measured.kinds {
            let longest = known.kinds.get(kind).copied().unwrap_or(0);
            known.kinds.insert(*kind, longest.max(share));
        }
    }
    known
}

/// The same for an order of which nothing is known but how long it is expected to take, and how long it may.
pub fn eligible_within(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    (expected, limit): (SignedDuration, SignedDuration),
    now: Timestamp,
) -> bool {
    let id = what.id(snapshot);
    let Some(settings) = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) else {
        return false;
    };
    let Ok(report) = &device.report else { return false };
    // Also those that it does not follow must be there and of some use.
    let usable = |names: &[Name], limit: SignedDuration| {
        let fits = |calendar: &&Calendar| calendar.duration > room(calendar, limit);
        calendars(snapshot, names).is_some_and(|calendars| calendars.is_empty() || calendars.iter().any(fits))
    };
    let windows = what.windows(snapshot, device, now).unwrap_or_default();
    let has_zone = matches!(device.zone, Some(Ok(_)));
    let needs_zone =
        calendars(snapshot, &windows).is_some_and(|them| them.iter().any(|it| matches!(it.zone, Zone::Device)));
    let pardoned = match what {
        What::Install(offer) | What::Download(offer) => {
            pardoned_before(snapshot, device, update_of(snapshot, offer), now)
        }
        What::TakeBack(update) => pardoned_before(snapshot, device, update, now),
        What::Restart => None,
    };
    let worst = device.failures.iter().filter(|it| it.update == id).max_by_key(|it| (it.attempts, it.last));
    let rested = worst.is_none_or(|failure| {
        let mut wait = settings.retry_backoff;
        for _ in 1..failure.attempts {
            wait += wait;
        }
        let passes = failure.cause == Cause::Passing;
        if passes && wait > settings.retry_backoff {
            wait = wait.min(SignedDuration::from_hours(12).max(settings.retry_backoff));
        }
        let counts = pardoned.is_none_or(|before| failure.last >= before);
        pardoned.is_some_and(|before| failure.again < before)
            || (now >= failure.again + wait
                && (!counts
                    || ((failure.cause != Cause::RolledBack || matches!(what, What::TakeBack(_)))
                        && (passes || failure.attempts <= settings.retry_limit))))
    });
    let decided = match what {
        What::Install(offer) | What::Download(offer) => approved(snapshot, device, offer, now) && !offer.held,
        What::TakeBack(update) => removes(snapshot, device, update, now),
        What::Restart => certain_group_of(snapshot, device).is_some() && report.restart_required == Tristate::Yes,
    };
    let is_install = matches!(what, What::Install(_));
    decided
        && does(snapshot, settings, what)
        && !settings.suspended
        && usable(&settings.windows, settings.install_limit)
        && usable(&windows, settings.install_limit)
        && policy_of(snapshot, device).is_some_and(|policy| {
            let stops = snapshot.policies.iter().filter_map(|it| it.progress.updates.get(&id)?.stopped);
            let stopped = stops.max().is_some_and(|since| pardoned.is_none_or(|pardoned| pardoned <= since));
            (policy.progress.paused.is_none() || matches!(what, What::TakeBack(_)))
                && (what.offer().is_none() || !stopped)
                && (!is_install || ring_has_it(policy, &policy.progress, device, &id))
        })
        && !device.suspended
        && !device.retired
        && (has_zone || !needs_zone)
        && device.online
        && device.clock_off.is_none()
        && !report.problems.iter().any(|code| code.blocks_installs())
        && rested
        && device.current.is_none()
        && settled(snapshot, device, settings.settle, now)
        && !held(snapshot, device)
        && last_start_within(snapshot, device, what, (expected, limit), now, now).is_some()
}

/// Whether specs wait for a person, and it was not eligible before; as it was written down.
fn held(snapshot: &Snapshot, device: &Device) -> bool {
    policy_of(snapshot, device).is_some_and(|policy| policy.progress.blast.pending.is_some()) && !device.eligible
}

/// Whether the specs have updates installed on the device, now or later: whatever it is itself, whatever is open.
pub fn allowed(snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
    let Some(settings) = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) else {
        return false;
    };
    let usable = |names: &[Name]| {
        let fits = |calendar: &&Calendar| calendar.duration > room(calendar, settings.install_limit);
        calendars(snapshot, names).is_some_and(|calendars| calendars.is_empty() || calendars.iter().any(fits))
    };
    let Ok(report) = &device.report else { return false };
    let installs = matches!(settings.mode, Mode::Install | Mode::InstallImmediately)
        && usable(&settings.windows)
        && certain_group_of(snapshot, device).is_some();
    let counts = |offer: &&Offer| !(offer.held && approved(snapshot, device, offer, now));
    let mut offers = report.offers.iter().filter(counts).peekable();
    let allows = |offer: &Offer| {
        let update = update_of(snapshot, offer);
        let ages = !approved(snapshot, device, offer, now);
        approval(snapshot, device, update, now).is_some()
            && (ages
                || (does(snapshot, settings, What::Install(offer))
                    && windows_of(snapshot, device, update, now).is_some_and(|windows| usable(&windows))))
    };
    let removals = report.removable.iter().map(|update| &**snapshot.updates.get(*update).expect("interned"));
    let mut removals = removals.filter(|update| removes(snapshot, device, update, now)).peekable();
    let takes_back = |update: &Update| windows_of(snapshot, device, update, now).is_some_and(|it| usable(&it));
    let restarts = report.restart_required == Tristate::Yes && settings.restart.when != RestartWhen::Never;
    let nothing_to_do = offers.peek().is_none() && removals.peek().is_none() && !restarts;
    installs && (nothing_to_do || restarts || offers.any(allows) || removals.any(takes_back))
}

/// Whether its policy and group are those that it had when it was last planned, and for long enough.
fn settled(snapshot: &Snapshot, device: &Device, settle: SignedDuration, now: Timestamp) -> bool {
    let policy = policy_of(snapshot, device).map(|policy| policy.name.clone());
    let group = group_of(snapshot, device).map(|group| group.name.clone());
    assert_eq!((&policy, &group), (&device.last_policy, &device.last_group), "as it was written down");
    device.moved.as_ref().is_none_or(|moved| now >= moved.since + settle)
}

/// Whether the last failure of the update is of a check after it, and a person has said since that the device was seen to: by what the
/// id alone tells of an update that may not be offered any more.
pub fn seen_to(snapshot: &Snapshot, device: &Device, id: &Name, now: Timestamp) -> bool {
    let known = Update::by_id(id.clone());
    let before = pardoned_before(snapshot, device, &known, now);
    worst(device, id).zip(before).is_some_and(|(failure, before)| {
        matches!(failure.cause, Cause::Check(_)) && failure.attempts > 0 && failure.last < before
    })
}

/// Updates that a check has found something of and that are told of in no other way, with when that was: those that are there and
/// to which nobody has seen, eight at most.
pub fn checked(snapshot: &Snapshot, device: &Device, now: Timestamp) -> Vec<(Timestamp, Name)> {
    let Ok(report) = &device.report else { return vec![] };
    let is_told = |id: &Name| {
        let is_removed = |update: &&Update| update.id == *id && removes(snapshot, device, update, now);
        report.offers.iter().any(|offer| update_of(snapshot, offer).id == *id)
            || report.removable.iter().filter_map(|it| snapshot.updates.get(*it)).any(|it| is_removed(&&**it))
            || (report.restart_required == Tristate::Yes && **id == *"restart")
    };
    let ids: BTreeSet<&Name> = device.failures.iter().map(|failure| &failure.update).collect();
    let mut found: Vec<(Timestamp, Name)> = vec![];
    for id in ids {
        let Some(failure) = worst(device, id) else { continue };
        let is_found = matches!(failure.cause, Cause::Check(_)) && failure.attempts > 0;
        if is_found && !is_told(id) && !seen_to(snapshot, device, id, now) {
            found.push((failure.last, id.clone()));
        }
    }
    found.sort();
    found.split_off(found.len().saturating_sub(8))
}

/// Whether something that failed is left on the device, or is to be tried again.
pub fn has_failed(snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
    let offers =
        |id: &Name| device.report.iter().flat_map(|it| &it.offers).any(|offer| update_of(snapshot, offer).id == *id);
    device.failures.iter().filter(|it| it.attempts > 0).any(|it| match it.cause {
        Cause::Passing => false,
        Cause::Update | Cause::Other => true,
        Cause::RolledBack => offers(&it.update),
        Cause::Check(_) => !seen_to(snapshot, device, &it.update, now),
    })
}

fn worst<'d>(device: &'d Device, id: &Name) -> Option<&'d Failure> {
    device.failures.iter().filter(|it| it.update == *id).max_by_key(|it| (it.attempts, it.last))
}

/// Until when failures do not count.
fn pardoned_before(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Timestamp> {
    reprocessed(&line_of(snapshot, certain_group_of(snapshot, device)?)?, update, now)
}

/// Until when failures of the update do not count, by what a group and those above it decide.
fn reprocessed(line: &[(&Group, &Approvals)], update: &Update, now: Timestamp) -> Option<Timestamp> {
    let decisions = line.iter().flat_map(|(_, approvals)| &approvals.decisions);
    decisions
        .filter(|it| it.until.is_none_or(|until| now < until) && about(&it.target, update))
        .filter_map(|it| match it.action {
            DecisionAction::Reprocess { failed_before } => Some(failed_before).filter(|before| *before <= now),
            _ => None,
        })
        .max()
}

/// The last instant at which an install of it may start, if it may at `at`; by the windows alone, which are those that
/// it follows at `now`.
pub fn last_start(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    now: Timestamp,
    at: Timestamp,
) -> Option<Timestamp> {
    let limit = policy_of(snapshot, device)?.settings.as_ref().ok()?.install_limit;
    let expected = expected_with(snapshot, device, what, now)?;
    if goes_by_windows(snapshot, device, what, now) {
        return by_windows(snapshot, device, what, expected, now, at);
    }
    last_start_within(snapshot, device, what, (expected, limit), now, at)
}

fn last_start_within(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    (expected, limit): (SignedDuration, SignedDuration),
    now: Timestamp,
    at: Timestamp,
) -> Option<Timestamp> {
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    if what.needs_no_window(snapshot, device, now) {
        let calendars = calendars(snapshot, &settings.windows)?;
        let freezes = || calendars.iter().flat_map(|it| &it.exclusions).filter(|it| it.from < it.to && it.to > at);
        if freezes().any(|it| it.from <= at) {
            return None;
        }
        let last = freezes().map(|it| it.from - limit).min().unwrap_or(Timestamp::MAX);
        return (at <= last).then_some(last);
    }
    by_windows(snapshot, device, what, expected, now, at)
        .or_else(|| catches_up(snapshot, device, what.offer()?, limit, now, at))
}

/// Whether its windows let it start at `now` by itself: then they must let all start that it is done with.
pub fn goes_by_windows(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> bool {
    let alone = expected(snapshot, device, &[what]);
    !what.needs_no_window(snapshot, device, now)
        && alone.is_some_and(|alone| by_windows(snapshot, device, what, alone, now, now).is_some())
}

/// The last instant at which it may start in its windows at `at`, which are those that it follows at `now`.
fn by_windows(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    expected: SignedDuration,
    now: Timestamp,
    at: Timestamp,
) -> Option<Timestamp> {
    let windows = what.windows(snapshot, device, now)?;
    let starts = calendars(snapshot, &windows)?
        .into_iter()
        .filter_map(|calendar| latest_in(calendar, zone(calendar, device)?, room(calendar, expected), at));
    starts.max()
}

/// The last instant at which it may start at `at` though no window is open.
fn catches_up(
    snapshot: &Snapshot,
    device: &Device,
    offer: &Offer,
    limit: SignedDuration,
    now: Timestamp,
    at: Timestamp,
) -> Option<Timestamp> {
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let catch_up = settings.catch_up.filter(|_| device.device_type == DeviceType::Workstation)?;
    let update = update_of(snapshot, offer);
    let approval = approval(snapshot, device, update, now).filter(|it| it.window.is_none())?;
    let (_, lacking) = known(snapshot, device, offer);
    let clock = clock_from(snapshot, device, offer, approval.published, lacking);
    let since = offer.missing_since.max(clock + approval.after).max(lacking + approval.artifact_age);
    let powered = device.report.as_ref().is_ok_and(|report| report.power == Power::Mains);
    let windows = windows_of(snapshot, device, update, now)?;
    let mut last = Timestamp::MAX;
    for freeze in
        calendars(snapshot, &windows)?.iter().flat_map(|it| &it.exclusions).filter(|it| at < it.to && it.from < it.to)
    {
        last = last.min(freeze.from - limit);
    }
    (at >= since + catch_up.after && at <= last && (powered || !catch_up.require_mains)).then_some(last)
}

/// Until when one of the windows that it follows is open then.
pub fn open_until(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    now: Timestamp,
    at: Timestamp,
) -> Option<Timestamp> {
    let windows = what.windows(snapshot, device, now)?;
    let calendars = calendars(snapshot, &windows)?;
    calendars.into_iter().filter_map(|it| latest_in(it, zone(it, device)?, SignedDuration::ZERO, at)).max()
}

/// Of no use if it can start in the very instant of the opening only.
fn room(calendar: &Calendar, limit: SignedDuration) -> SignedDuration {
    calendar.cutoff.max(limit)
}

/// The latest instant, of the occurrences that `now` is in, that leaves so much room before the occurrence or a freeze
/// ends it; if `now` does not come after it.
fn latest_in(calendar: &Calendar, zone: &TimeZone, room: SignedDuration, now: Timestamp) -> Option<Timestamp> {
    if frozen(calendar, now) {
        return None;
    }
    let freezes = calendar.exclusions.iter().filter(|it| it.from < it.to && it.from > now).map(|it| it.from).min();
    starts(calendar, zone, now - SignedDuration::from_hours(24 * 4), now)
        .into_iter()
        .map(|start| start + calendar.duration)
        .filter(|end| *end > now)
        .map(|end| end.min(freezes.unwrap_or(Timestamp::MAX)) - room)
        .filter(|last| now <= *last)
        .max()
}

/// Whether it is open.
pub fn open(calendar: &Calendar, zone: &TimeZone, at: Timestamp) -> bool {
    let from = at - SignedDuration::from_hours(24 * 4);
    !frozen(calendar, at)
        && starts(calendar, zone, from, at).into_iter().any(|start| start <= at && at < start + calendar.duration)
}

/// Whether an exclusion is on.
pub fn frozen(calendar: &Calendar, at: Timestamp) -> bool {
    calendar.exclusions.iter().any(|exclusion| exclusion.from <= at && at < exclusion.to)
}

/// Every start of every schedule from `from` to `to`, exclusions aside.
pub fn starts(calendar: &Calendar, zone: &TimeZone, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let first = zone.to_datetime(from).date().saturating_sub(3.days());
    let last = zone.to_datetime(to).date().saturating_add(3.days());
    let mut locals: Vec<DateTime> = Vec::new();
    for schedule in &calendar.schedules {
        match schedule {
            Schedule::Once { at } => locals.push(*at),
            Schedule::Cron(cron) => locals.extend(named(cron, first, last)),
            Schedule::Daily { at } => locals.extend(dates(first, last).map(|date| date.to_datetime(*at))),
            Schedule::Weekly { weekdays, at } => {
                let dates = dates(first, last).filter(|date| weekdays.contains(&date.weekday()));
                locals.extend(dates.map(|date| date.to_datetime(*at)));
            }
            Schedule::Monthly { week, weekday, offset_days, at } => {
                // Wherever the offset leads from, the month is one of these.
                let earliest = first.saturating_sub(60.days()).first_of_month();
                for month in earliest.series(1.month()).take_while(|month| *month < last.saturating_add(60.days())) {
                    let anchor = month.nth_weekday_of_month(*week, *weekday).expect("four of each weekday in a month");
                    locals.push(anchor.saturating_add(offset_days.days()).to_datetime(*at));
                }
            }
        }
    }
    let instants = locals.into_iter().map(|local| zone.to_ambiguous_timestamp(local).compatible().expect("in range"));
    instants.filter(|instant| from <= *instant && *instant <= to).collect()
}

/// The first openings after `after`, from when until when: starts that are not frozen, and ends of freezes in between.
pub fn openings(calendar: &Calendar, zone: &TimeZone, after: Timestamp, count: usize) -> Vec<(Timestamp, Timestamp)> {
    let mut found = vec![];
    // The rarest that is generated comes once a year.
    for days in [2, 40, 400, 2_500] {
        let horizon = after + SignedDuration::from_hours(24 * days);
        let starts = starts(calendar, zone, after - SignedDuration::from_hours(24 * 4), horizon);
        let ends_at = |at: Timestamp| starts.iter().filter(|it| **it <= at).map(|it| *it + calendar.duration).max();
        let thaws = calendar.exclusions.iter().map(|it| it.to).filter(|to| ends_at(*to).is_some_and(|end| *to < end));
        let mut opens: Vec<Timestamp> = starts.iter().copied().chain(thaws).collect();
        opens.retain(|at| after < *at && *at <= horizon && !frozen(calendar, *at));
        opens.sort();
        opens.dedup();
        let freezes = |at: Timestamp| calendar.exclusions.iter().map(|it| it.from).filter(move |from| *from > at).min();
        let until = |at: Timestamp| ends_at(at).into_iter().chain(freezes(at)).min().expect("it is open then");
        found = opens.into_iter().take(count).map(|at| (at, until(at))).collect();
        if found.len() == count {
            break;
        }
    }
    found
}

/// Every minute of every day from `first` to `last` that each field of the expression allows.
fn named(cron: &Cron, first: Date, last: Date) -> Vec<DateTime> {
    let text = cron.to_string();
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else { panic!("{text}") };
    let minutes: Vec<i8> = (0..60).filter(|it| allows(minute, *it, 0)).collect();
    let hours: Vec<i8> = (0..24).filter(|it| allows(hour, *it, 0)).collect();
    let mut locals = Vec::new();
    for date in dates(first, last).filter(|date| allows(month, date.month(), 1)) {
        let sunday_is_zero = date.weekday().to_sunday_zero_offset();
        let in_month = allows(day, date.day(), 1);
        let in_week = allows(weekday, sunday_is_zero, 0) || (sunday_is_zero == 0 && allows(weekday, 7, 0));
        let counts = match (day, weekday) {
            ("*", _) => in_week,
            (_, "*") => in_month,
            _ => in_month || in_week,
        };
        if counts {
            let times = hours.iter().flat_map(|hour| minutes.iter().map(move |minute| (*hour, *minute)));
            locals.extend(times.map(|(hour, minute)| date.at(hour, minute, 0, 0)));
        }
    }
    locals
}

/// Whether a field of an expression, whose values begin with `lowest`, allows the value.
fn allows(field: &str, value: i8, lowest: i8) -> bool {
    const NAMES: [(&str, i8); 6] = [("SUN", 0), ("MON", 1), ("TUE", 2), ("FRI", 5), ("MAR", 3), ("MAY", 5)];
    let number = |text: &str| {
        let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        named.unwrap_or_else(|| text.parse().expect("a number"))
    };
    field.split(',').any(|part| {
        let (span, step) = part.split_once('/').map_or((part, 1), |(span, step)| (span, number(step)));
        let (low, high) = match span.split_once('-') {
            None if span == "*" => (lowest, i8::MAX),
            None => (number(span), number(span)),
            Some((low, "SUN")) => (number(low), 7),
            Some((low, high)) => (number(low), number(high)),
        };
        low <= value && value <= high && (value - low) % step == 0
    })
}

/// How many devices the policy allows at a time.
pub fn places(snapshot: &Snapshot, policy: &Policy) -> usize {
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    let devices = snapshot.devices.iter().filter(governs).filter(|device| !device.retired).count();
    policy.settings.as_ref().map_or(0, |settings| some_of(settings.rollout.max_concurrent, devices))
}

/// Of a percentage at least one.
pub fn some_of(amount: Amount, devices: usize) -> usize {
    match amount {
        Amount::Count(count) => count as usize,
        Amount::Percent(percent) => (devices * percent as usize / 100).max(1),
    }
}

/// The calendars, if all of the windows exist and can be read.
fn calendars<'a>(snapshot: &'a Snapshot, windows: &[Name]) -> Option<Vec<&'a Calendar>> {
    let window = |name: &Name| snapshot.windows.iter().find(|window| window.name == *name)?.calendar.as_ref().ok();
    windows.iter().map(window).collect()
}

/// Whether it tells that an order installed the update.
pub fn has_installed(snapshot: &Snapshot, device: &Device, id: &Name) -> bool {
    device.installed.iter().any(|number| snapshot.updates.id(*number) == Some(id))
}

/// The zone that the device sees the calendar in.
pub fn zone<'a>(calendar: &'a Calendar, device: &'a Device) -> Option<&'a TimeZone> {
    match (&calendar.zone, &device.zone) {
        (Zone::Fixed(zone), _) | (Zone::Device, Some(Ok(zone))) => Some(zone),
        (Zone::Device, _) => None,
    }
}

fn selects(selector: &Selector, device: &Device) -> bool {
    let label = |key: &String| device.labels.get(key).map(ToString::to_string);
    selector.0.iter().all(|requirement| match requirement {
        Requirement::In(key, values) => values.iter().any(|value| label(key).as_ref() == Some(value)),
        Requirement::NotIn(key, values) => values.iter().all(|value| label(key).as_ref() != Some(value)),
        Requirement::Exists(key) => label(key).is_some(),
        Requirement::DoesNotExist(key) => label(key).is_none(),
    })
}

/// By every way to split the text.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut rest = text.chars();
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => (0..=text.len()).any(|at| text.get(at..).is_some_and(|tail| glob(&pattern[1..], tail))),
        Some(wanted) => {
            let found = rest.next();
            found.is_some_and(|found| wanted == '?' || wanted == found)
                && glob(&pattern[wanted.len_utf8()..], rest.as_str())
        }
    }
}

fn dates(first: Date, last: Date) -> impl Iterator<Item = Date> {
    first.series(1.day()).take_while(move |date| *date <= last)
}
