//! When a window is open.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use patchwarden_plan::model::{Calendar, Cron, Device, DeviceType, Name, Offer, Schedule, Snapshot, Zone};
use patchwarden_protocol::report::Power;

use super::approval::{approval, clock_from, known, update_of, windows_of};
use super::eligible::{What, expected, expected_with};
use super::selection::policy_of;

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

pub(super) fn last_start_within(
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
pub(super) fn by_windows(
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
pub(super) fn room(calendar: &Calendar, limit: SignedDuration) -> SignedDuration {
    calendar.cutoff.max(limit)
}

/// The latest instant, of the occurrences that `now` is in, that leaves so much room before the occurrence or a freeze
/// ends it; if `now` does not come after it.
pub(super) fn latest_in(
    calendar: &Calendar,
    zone: &TimeZone,
    room: SignedDuration,
    now: Timestamp,
) -> Option<Timestamp> {
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
pub(super) fn allows(field: &str, value: i8, lowest: i8) -> bool {
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

/// The calendars, if all of the windows exist and can be read.
pub(super) fn calendars<'a>(snapshot: &'a Snapshot, windows: &[Name]) -> Option<Vec<&'a Calendar>> {
    let window = |name: &Name| snapshot.windows.iter().find(|window| window.name == *name)?.calendar.as_ref().ok();
    windows.iter().map(window).collect()
}

/// The zone that the device sees the calendar in.
pub fn zone<'a>(calendar: &'a Calendar, device: &'a Device) -> Option<&'a TimeZone> {
    match (&calendar.zone, &device.zone) {
        (Zone::Fixed(zone), _) | (Zone::Device, Some(Ok(zone))) => Some(zone),
        (Zone::Device, _) => None,
    }
}

pub(super) fn dates(first: Date, last: Date) -> impl Iterator<Item = Date> {
    first.series(1.day()).take_while(move |date| *date <= last)
}
