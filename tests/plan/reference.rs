//! What the planner must answer, said another way: slowly, by trying everything, and sharing no code with it.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use patchwarden::plan::model::{
    Calendar, Concurrency, DecisionAction, Device, Group, Mode, Policy, Requirement, RuleAction, Schedule, Selector,
    Settings, Snapshot, Update, Zone,
};

/// The policy that governs the device.
pub fn policy_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Option<&'a Policy> {
    let group = group_of(snapshot, device).map(|group| group.name.clone());
    snapshot
        .policies
        .iter()
        .filter(|policy| selects(&policy.selector, device))
        .filter(|policy| policy.types.is_empty() || policy.types.contains(&device.device_type))
        .filter(|policy| policy.groups.is_empty() || policy.groups.iter().any(|one| Some(one) == group.as_ref()))
        .filter(|policy| !policy.exclude.contains(&device.name))
        .min_by_key(|policy| (-policy.priority, &policy.name))
}

/// The device's effective group.
pub fn group_of<'a>(snapshot: &'a Snapshot, device: &Device) -> Option<&'a Group> {
    let by_name = |group: &&Group| group.names.contains(&device.name);
    let by_selector = |group: &&Group| group.selector.as_ref().is_some_and(|selector| selects(selector, device));
    let candidates = snapshot.groups.iter().filter(|group| by_name(group) || by_selector(group));
    candidates.min_by_key(|group| (!by_name(group), -group.priority, &group.name))
}

/// Whether the device's group approves the update at `now`.
pub fn approved(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> bool {
    let Some(group) = group_of(snapshot, device) else { return false };
    for decision in &group.decisions {
        if decision.until.is_some_and(|until| until <= now) || !glob(&decision.update.0, &update.id) {
            continue;
        }
        return decision.action == DecisionAction::Approve;
    }
    for rule in &group.rules {
        let wrong_class = !rule.classifications.is_empty() && !rule.classifications.contains(&update.classification);
        let wrong_severity = !rule.severities.is_empty() && !rule.severities.contains(&update.severity);
        let any_package = rule.packages.iter().any(|it| update.packages.iter().any(|name| glob(&it.0, name)));
        if wrong_class || wrong_severity || (!rule.packages.is_empty() && !any_package) {
            continue;
        }
        return rule.action == RuleAction::Approve;
    }
    group.default == RuleAction::Approve
}

/// Whether nothing but other devices keeps the update from being installed at `now`.
pub fn eligible(snapshot: &Snapshot, device: &Device, update: &Update, now: Timestamp) -> bool {
    let Some(settings) = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) else {
        return false;
    };
    let Some(calendars) = calendars(snapshot, settings) else { return false };
    let Ok(report) = &device.report else { return false };
    let has_zone = matches!(device.zone, Some(Ok(_)));
    let needs_zone = calendars.iter().any(|calendar| matches!(calendar.zone, Zone::Device));
    let worst = device.failures.iter().filter(|it| it.update == update.id).max_by_key(|it| (it.attempts, it.last));
    let rested = worst.is_none_or(|failure| {
        let mut wait = settings.retry_backoff;
        for _ in 1..failure.attempts {
            wait += wait;
        }
        failure.attempts <= settings.retry_limit && now >= failure.last + wait
    });
    approved(snapshot, device, update, now)
        && !update.held
        && settings.mode == Mode::Install
        && !settings.suspended
        && !device.suspended
        && !device.retired
        && (has_zone || !needs_zone)
        && device.online
        && !report.problems.iter().any(|code| code.blocks_installs())
        && rested
        && device.current.is_none()
        && last_start(snapshot, device, now).is_some()
}

/// The last instant at which an install may start, if it may at `now`; by the windows alone.
pub fn last_start(snapshot: &Snapshot, device: &Device, now: Timestamp) -> Option<Timestamp> {
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let calendars = calendars(snapshot, settings)?;
    // Of no use if it can start in the very instant of the opening only.
    let room = |calendar: &Calendar| calendar.cutoff.max(settings.install_limit);
    if calendars.iter().all(|calendar| calendar.duration <= room(calendar)) {
        return None;
    }
    let starts =
        calendars.iter().filter_map(|calendar| latest_in(calendar, zone(calendar, device)?, room(calendar), now));
    starts.max()
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

/// How many devices the policy allows at a time.
pub fn places(snapshot: &Snapshot, policy: &Policy) -> usize {
    let governs = |device: &&Device| policy_of(snapshot, device).is_some_and(|one| one.name == policy.name);
    let devices = snapshot.devices.iter().filter(governs).filter(|device| !device.retired).count();
    match policy.settings.as_ref().map(|settings| settings.max_concurrent) {
        Ok(Concurrency::Count(count)) => count as usize,
        Ok(Concurrency::Percent(percent)) => (devices * percent as usize / 100).max(1),
        Err(_) => 0,
    }
}

/// The policy's calendars, if all of its windows exist and can be read.
fn calendars<'a>(snapshot: &'a Snapshot, settings: &Settings) -> Option<Vec<&'a Calendar>> {
    let window = |name: &String| snapshot.windows.iter().find(|window| window.name == *name)?.calendar.as_ref().ok();
    settings.windows.iter().map(window).collect()
}

/// The zone that the device sees the calendar in.
pub fn zone<'a>(calendar: &'a Calendar, device: &'a Device) -> Option<&'a TimeZone> {
    match (&calendar.zone, &device.zone) {
        (Zone::Fixed(zone), _) | (Zone::Device, Some(Ok(zone))) => Some(zone),
        (Zone::Device, _) => None,
    }
}

fn selects(selector: &Selector, device: &Device) -> bool {
    let label = |key: &String| device.labels.get(key);
    selector.0.iter().all(|requirement| match requirement {
        Requirement::In(key, values) => values.iter().any(|value| label(key) == Some(value)),
        Requirement::NotIn(key, values) => values.iter().all(|value| label(key) != Some(value)),
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
