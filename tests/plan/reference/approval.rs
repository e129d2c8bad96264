//! What approves an update, and since when it is known.

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    AgeClock, DecisionAction, Device, Glob, Group, Name, Offer, PackageVersion, Rule, RuleAction, Seen, Snapshot,
    Target, Update, UpdateDecision, UpdateMatch, Vulnerability,
};
use patchwarden_protocol::report::Severity;

use super::selection::{certain_group_of, line_of, policy_of, says};
use crate::fleet::{EXPRESSIONS, IDS};

/// What approves an update.
pub(super) struct Approval<'a> {
    pub(super) after: SignedDuration,
    pub(super) published: bool,
    pub(super) artifact_age: SignedDuration,
    pub(super) window: Option<&'a Name>,
}

/// What approves the update, if anything does, whenever that counts.
pub(super) fn approval<'a>(
    snapshot: &'a Snapshot,
    device: &Device,
    update: &Update,
    now: Timestamp,
) -> Option<Approval<'a>> {
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

pub(super) enum Doubt<'a> {
    /// A rule's expression cannot be evaluated.
    Expression(&'a Group, &'a Rule),
    Other,
}

pub(super) enum Verdict<'a> {
    Approves(Approval<'a>),
    /// In a window of its own, or the policy's.
    Removes(Option<&'a Name>),
    Refuses,
}

pub(super) fn verdict<'a>(
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

pub(super) fn about(target: &Target, update: &Update) -> bool {
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
pub(super) fn known(snapshot: &Snapshot, device: &Device, offer: &Offer) -> (Timestamp, Timestamp) {
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
pub(super) fn clock_from(
    snapshot: &Snapshot,
    device: &Device,
    offer: &Offer,
    published: bool,
    lacking: Timestamp,
) -> Timestamp {
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
pub(super) fn told(snapshot: &Snapshot, id: &str) -> Vec<(Timestamp, Name)> {
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

pub(super) fn written<'a>(snapshot: &'a Snapshot, id: &'a str) -> impl Iterator<Item = &'a Seen> {
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
pub(super) fn windows_of(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Vec<Name>> {
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let own = own_window_of(snapshot, device, update, now);
    Some(own.map_or_else(|| settings.windows.clone(), |own| vec![own]))
}

pub(super) fn own_window_of(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> Option<Name> {
    match verdict(snapshot, device, update, now) {
        Ok(Verdict::Approves(approval)) => approval.window.cloned(),
        Ok(Verdict::Removes(window)) => window.cloned(),
        Ok(Verdict::Refuses) | Err(_) => None,
    }
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
