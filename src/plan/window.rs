//! When a maintenance window is open: calendar arithmetic, in a zone.
//!
//! In: a [`Calendar`], a time zone, an instant. Out: whether it is open then and until when, what freezes it, when it
//! opens next, and when the answer changes.
//!
//! ```text
//! occurrences   [==========)     [==========)      elapsed time from each local start
//! exclusion          [#####)                       closed, whatever the schedules say
//! open          [====)     [)    [==========)      an occurrence ends where a freeze begins, and reopens after it
//! ```
//!
//! - A local time in a gap is read with the offset before the gap, one that exists twice is the first of the two
//!   (RFC 5545, 3.3.5).
//! - Occurrences may overlap or touch. An instant in several belongs to the one that ends last; they are not merged
//!   into one long occurrence, so that a window that is opened every day for a whole day still has a last part each
//!   day, in which its cutoff counts.
//! - So an expression that names local times within a repeated hour names instants in the first of the two only, and
//!   those that it names within a gap come after it, between the others.
//! - Nothing here searches for so long and gives up: a schedule recurs within 35 days (a cron expression within eight
//!   years) or never, and every exclusion is stepped over once. The only horizon is the end of the calendar, the year
//!   9999 (5000 for a cron expression).

use std::iter;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::model::{Calendar, Cron, Exclusion, Schedule, Zone};

/// From the first weekday of a month to the first of the next it is 28 or 35 days: no schedule recurs later.
const LONGEST_RECURRENCE: i32 = 35;

/// Days on either side of a local date in which its instant may lie. Offsets differ by 26 hours at most, and the
/// greatest jump of a clock was a whole day (Samoa skipped 2011-12-30).
const DAYS_OF_SLACK: i32 = 2;

/// How far clocks are from UTC, in quarters of an hour: from Baker Island to the Line Islands. All that are in use differ from it by
/// some of these.
const OFFSETS: std::ops::RangeInclusive<i32> = -4 * 12..=4 * 14;

/// The shortest time there is.
const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

/// How a calendar stands at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// No occurrence.
    Closed,
    /// An occurrence, and an exclusion that closes it.
    Frozen {
        /// Of those that close it the one that ends last.
        exclusion: &'a str,
    },
    /// Open.
    Open {
        /// Until before this: the end of the occurrence, or the next freeze.
        until: Timestamp,
    },
}

/// From `start` until before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start.
    pub start: Timestamp,
    /// End.
    pub end: Timestamp,
}

impl Calendar {
    /// The zone that it is read in for a device whose own zone is `device`; none if it needs that and there is none.
    pub fn zone<'a>(&'a self, device: Option<&'a TimeZone>) -> Option<&'a TimeZone> {
        match &self.zone {
            Zone::Fixed(zone) => Some(zone),
            Zone::Device => device,
        }
    }

    /// The zone that it is read in where no device is asked about: UTC for a calendar on the device's clock.
    pub fn zone_or_utc(&self) -> TimeZone {
        self.zone(None).cloned().unwrap_or(TimeZone::UTC)
    }

    /// Whether it is neither open at `now` nor opens again: one that is on the device's clock, on no clock that there is.
    pub fn never_opens(&self, now: Timestamp) -> bool {
        let is_over = |zone: &TimeZone| {
            !matches!(self.at(zone, now), Moment::Open { .. }) && self.next_opening(zone, now).is_none()
        };
        self.clocks().all(|zone| is_over(&zone))
    }

    /// The first instant after `now` at which that may be otherwise.
    pub(super) fn next_change_anywhere(&self, now: Timestamp) -> Option<Timestamp> {
        self.clocks().filter_map(|zone| self.next_change(&zone, now)).min()
    }

    /// The zones in which it may be read. Whatever a device's clock makes of a local time, one of these does so, too.
    fn clocks(&self) -> impl Iterator<Item = TimeZone> {
        let (fixed, offsets) = match &self.zone {
            Zone::Fixed(zone) => (Some(zone.clone()), None),
            Zone::Device => (None, Some(OFFSETS)),
        };
        let offsets = offsets.into_iter().flatten();
        let offsets = offsets.filter_map(|quarters| Offset::from_seconds(quarters * 15 * 60).ok());
        fixed.into_iter().chain(offsets.map(TimeZone::fixed))
    }

    /// How it stands at `now`.
    pub fn at(&self, zone: &TimeZone, now: Timestamp) -> Moment<'_> {
        match (self.scheduled_until(zone, now), self.freeze_at(now)) {
            (None, _) => Moment::Closed,
            (Some(_), Some(exclusion)) => Moment::Frozen { exclusion: &exclusion.name },
            (Some(end), None) => Moment::Open { until: self.cut(now, end) },
        }
    }

    /// The first instant after `after` at which it opens: an occurrence starts, or goes on after a freeze.
    pub fn next_opening(&self, zone: &TimeZone, after: Timestamp) -> Option<Span> {
        let (start, thaw) = (self.next_start(zone, after), self.next_thaw(zone, after));
        match (start, thaw) {
            (Some(start), Some(thaw)) if thaw < start => self.opening_at_thaw(zone, thaw),
            (None, Some(thaw)) => self.opening_at_thaw(zone, thaw),
            (Some(start), _) => self.opening_at_start(start),
            (None, None) => None,
        }
    }

    /// The last instant before `before` at which it opened, likewise. Of all openings that start before `before` none ends later.
    pub fn last_opening(&self, zone: &TimeZone, before: Timestamp) -> Option<Span> {
        let (start, thaw) = (self.last_start(zone, before), self.last_thaw(zone, before));
        match (start, thaw) {
            (Some(start), Some(thaw)) if thaw > start => self.opening_at_thaw(zone, thaw),
            (None, Some(thaw)) => self.opening_at_thaw(zone, thaw),
            (Some(start), _) => self.opening_at_start(start),
            (None, None) => None,
        }
    }

    /// The opening of an occurrence that starts then: none that has started by then ends later.
    fn opening_at_start(&self, start: Timestamp) -> Option<Span> {
        let end = Some(later(start, self.duration)).filter(|end| *end > start)?;
        Some(Span { start, end: self.cut(start, end) })
    }

    /// What a freeze that ends then leaves of an occurrence.
    fn opening_at_thaw(&self, zone: &TimeZone, thaw: Timestamp) -> Option<Span> {
        let end = self.scheduled_until(zone, thaw)?;
        Some(Span { start: thaw, end: self.cut(thaw, end) })
    }

    /// The openings after `after`, in order.
    pub fn openings(&self, zone: &TimeZone, after: Timestamp) -> impl Iterator<Item = Span> {
        iter::successors(self.next_opening(zone, after), |span| self.next_opening(zone, span.start))
    }

    /// The first opening after `after` that leaves at least `room`. While it is open the room only shrinks until the
    /// next opening, so no other instant can be the first.
    pub fn next_opening_with(&self, zone: &TimeZone, after: Timestamp, room: SignedDuration) -> Option<Timestamp> {
        if self.duration < room {
            return None;
        }
        let mut after = after;
        loop {
            let span = self.next_opening(zone, after)?;
            if later(span.start, room) <= span.end {
                return Some(span.start);
            }
            // Cut short by a freeze: so is every other opening before it. Otherwise this is the rest that a freeze left.
            let frozen = self.freezes().any(|freeze| freeze.from == span.end);
            after = if frozen { just_before(span.end) } else { span.start };
        }
    }

    /// The first instant after `now` at which [`Self::at`] or [`Self::next_opening`] may say something else.
    pub fn next_change(&self, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
        let end = match self.at(zone, now) {
            Moment::Closed => None,
            Moment::Open { until } => Some(until),
            // Which exclusion is named depends on all that are on, so each start and end counts.
            Moment::Frozen { .. } => {
                let edges = self.freezes().flat_map(|freeze| [freeze.from, freeze.to]).filter(|edge| *edge > now);
                edges.chain(self.scheduled_until(zone, now)).min()
            }
        };
        // Also one that a freeze keeps closed: from then on it is the freeze that closes it.
        let start = self.next_scheduled(zone, now);
        [end, start, self.next_thaw(zone, now)].into_iter().flatten().min()
    }

    /// When the occurrence that `now` is in ends, freezes aside. All last equally long: the last to start ends last.
    fn scheduled_until(&self, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
        let start = self.schedules.iter().filter_map(|schedule| schedule.last_start(zone, now)).max()?;
        Some(later(start, self.duration)).filter(|end| *end > now)
    }

    /// The next start of an occurrence, freezes aside.
    fn next_scheduled(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        self.schedules.iter().filter_map(|schedule| schedule.next_start(zone, after)).min()
    }

    /// The next start of an occurrence that no freeze closes.
    fn next_start(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let mut after = after;
        loop {
            let start = self.next_scheduled(zone, after)?;
            let thaw = self.thaw(start);
            if thaw == start {
                return Some(start);
            }
            after = just_before(thaw);
        }
    }

    /// The last start of an occurrence before `before` that no freeze closes.
    fn last_start(&self, zone: &TimeZone, before: Timestamp) -> Option<Timestamp> {
        let mut until = just_before(before);
        loop {
            let start = self.schedules.iter().filter_map(|schedule| schedule.last_start(zone, until)).max()?;
            match self.freeze_at(start) {
                None => return Some(start),
                Some(freeze) => until = just_before(freeze.from),
            }
        }
    }

    /// The next end of a freeze in the middle of an occurrence.
    fn next_thaw(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        self.thaws(zone, move |end| end > after).min()
    }

    /// The last such end before `before`.
    fn last_thaw(&self, zone: &TimeZone, before: Timestamp) -> Option<Timestamp> {
        self.thaws(zone, move |end| end < before).max()
    }

    /// Of the ends of freezes in the middle of an occurrence those that are asked for.
    fn thaws(&self, zone: &TimeZone, is_asked: impl Fn(Timestamp) -> bool) -> impl Iterator<Item = Timestamp> {
        let ends = self.freezes().map(|freeze| freeze.to).filter(move |end| is_asked(*end) && self.thaw(*end) == *end);
        ends.filter(|end| self.scheduled_until(zone, *end).is_some())
    }

    /// Exclusions that exclude anything.
    fn freezes(&self) -> impl Iterator<Item = &Exclusion> {
        self.exclusions.iter().filter(|exclusion| exclusion.from < exclusion.to)
    }

    /// The next freeze that begins after `after`; of several the one whose name sorts first.
    pub(super) fn next_freeze(&self, after: Timestamp) -> Option<&Exclusion> {
        self.freezes().filter(|freeze| freeze.from > after).min_by_key(|freeze| (freeze.from, &freeze.name))
    }

    /// Of the exclusions that are on the one that ends last, then the one whose name sorts first.
    pub(super) fn freeze_at(&self, at: Timestamp) -> Option<&Exclusion> {
        self.freezes()
            .filter(|freeze| freeze.from <= at && at < freeze.to)
            .max_by(|a, b| a.to.cmp(&b.to).then_with(|| b.name.cmp(&a.name)))
    }

    /// The first instant from `at` on that nothing excludes.
    pub(super) fn thaw(&self, at: Timestamp) -> Timestamp {
        let mut at = at;
        while let Some(freeze) = self.freeze_at(at) {
            at = freeze.to;
        }
        at
    }

    /// `end`, or the first freeze that starts between `after` and it.
    fn cut(&self, after: Timestamp, end: Timestamp) -> Timestamp {
        self.freezes().map(|freeze| freeze.from).filter(|from| *from > after && *from < end).min().unwrap_or(end)
    }
}

impl Schedule {
    /// The first start after `after`.
    fn next_start(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let (at, offset) = match self {
            Self::Once { at } => return instant(zone, *at).filter(|start| *start > after),
            Self::Cron(cron) => return next_named(cron, zone, after),
            Self::Monthly { at, offset_days, .. } => (*at, whole_days(*offset_days)),
            Self::Weekly { at, .. } | Self::Daily { at } => (*at, SignedDuration::ZERO),
        };
        let first = zone.to_datetime(after).date().saturating_sub(whole_days(DAYS_OF_SLACK));
        let mut day = first.checked_sub(offset).ok()?;
        for _ in 0..=LONGEST_RECURRENCE + 2 * DAYS_OF_SLACK {
            if let Some(start) = self.start_from(zone, day, offset, at).filter(|start| *start > after) {
                return Some(start);
            }
            day = day.tomorrow().ok()?;
        }
        None
    }

    /// The last start at or before `until`.
    fn last_start(&self, zone: &TimeZone, until: Timestamp) -> Option<Timestamp> {
        let (at, offset) = match self {
            Self::Once { at } => return instant(zone, *at).filter(|start| *start <= until),
            Self::Cron(cron) => return last_named(cron, zone, until),
            Self::Monthly { at, offset_days, .. } => (*at, whole_days(*offset_days)),
            Self::Weekly { at, .. } | Self::Daily { at } => (*at, SignedDuration::ZERO),
        };
        let last = zone.to_datetime(until).date().saturating_add(whole_days(DAYS_OF_SLACK));
        let mut day = last.checked_sub(offset).ok()?;
        for _ in 0..=LONGEST_RECURRENCE + 2 * DAYS_OF_SLACK {
            if let Some(start) = self.start_from(zone, day, offset, at).filter(|start| *start <= until) {
                return Some(start);
            }
            day = day.yesterday().ok()?;
        }
        None
    }

    /// The start that comes `offset` after `day`, if the schedule names `day`.
    fn start_from(&self, zone: &TimeZone, day: Date, offset: SignedDuration, at: Time) -> Option<Timestamp> {
        let named = match self {
            Self::Monthly { week: -1, weekday, .. } => day.weekday() == *weekday && day.day() + 7 > day.days_in_month(),
            Self::Monthly { week, weekday, .. } => day.weekday() == *weekday && (day.day() - 1) / 7 + 1 == *week,
            Self::Weekly { weekdays, .. } => weekdays.contains(&day.weekday()),
            Self::Daily { .. } => true,
            // These do not go by days.
            Self::Once { .. } | Self::Cron(_) => false,
        };
        if !named {
            return None;
        }
        instant(zone, day.checked_add(offset).ok()?.to_datetime(at))
    }
}

/// The first instant after `after` of a local time that `cron` names.
fn next_named(cron: &Cron, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let now = Stretch::at(zone, after);
    // What the one before has in the gap that ended it may still come, for as long as clocks jump.
    let is_new = now.begin.is_some_and(|begin| after < later(begin, whole_days(DAYS_OF_SLACK)));
    let mut stretch = if is_new { now.before(zone).unwrap_or(now) } else { now };
    let mut next: Option<Timestamp> = None;
    loop {
        if next.zip(stretch.instant_of(stretch.from)).is_some_and(|(next, from)| next <= from) {
            return next;
        }
        let local = cron.next(stretch.offset.to_datetime(after).max(local_before(stretch.from)));
        let Some(local) = local else { return next };
        if local < stretch.to {
            next = [next, instant(zone, local)].into_iter().flatten().min();
        }
        // Nothing of those that follow comes before they begin.
        if next.zip(stretch.end).is_some_and(|(next, end)| next <= end) {
            return next;
        }
        stretch = match stretch.after(zone) {
            Some(after) => after,
            None => return next,
        };
    }
}

/// The last instant at or before `until` of a local time that `cron` names.
fn last_named(cron: &Cron, zone: &TimeZone, until: Timestamp) -> Option<Timestamp> {
    let mut stretch = Stretch::at(zone, until);
    let mut last: Option<Timestamp> = None;
    loop {
        if last.zip(stretch.instant_of(stretch.to)).is_some_and(|(last, to)| last >= to) {
            return last;
        }
        let local = cron.last(stretch.offset.to_datetime(until).min(local_before(stretch.to)));
        let Some(local) = local else { return last };
        if local >= stretch.from {
            last = last.max(instant(zone, local));
        }
        // Those before it end when it begins, or with the gap that ended them: for as long as clocks jump.
        let ended = stretch.begin.map(|begin| later(begin, whole_days(DAYS_OF_SLACK)));
        if last.zip(ended).is_some_and(|(last, ended)| last >= ended) {
            return last;
        }
        stretch = match stretch.before(zone) {
            Some(before) => before,
            None => return last,
        };
    }
}

/// Local time, from one change of the clock to the next, that is read with one offset.
///
/// ```text
/// a gap        the old stretch goes on to the end of the gap: what is in it is read with the offset before it
/// an overlap   the old stretch goes on to the end of the overlap: what exists twice is the first of the two
/// ```
///
/// So the stretches of a zone follow each other in local time and leave nothing out, and in one of them instants come
/// in the order of local times. The instants of two overlap after a gap.
#[derive(Clone, Copy)]
struct Stretch {
    offset: Offset,
    from: DateTime,
    /// It ends before this.
    to: DateTime,
    /// The change at which its offset came.
    begin: Option<Timestamp>,
    /// The change at which it went.
    end: Option<Timestamp>,
}

impl Stretch {
    /// The one whose offset is in force at `at`.
    fn at(zone: &TimeZone, at: Timestamp) -> Self {
        let offset = zone.to_offset(at);
        let begin = zone.preceding(later(at, NANOSECOND)).next().map(|change| change.timestamp());
        let end = zone.following(at).next().map(|change| change.timestamp());
        let border = |change: Timestamp, other: Offset| offset.max(other).to_datetime(change);
        Self {
            offset,
            from: begin.map_or(DateTime::MIN, |change| border(change, zone.to_offset(just_before(change)))),
            to: end.map_or(DateTime::MAX, |change| border(change, zone.to_offset(change))),
            begin,
            end,
        }
    }

    fn before(&self, zone: &TimeZone) -> Option<Self> {
        Some(Self::at(zone, just_before(self.begin?)))
    }

    fn after(&self, zone: &TimeZone) -> Option<Self> {
        Some(Self::at(zone, self.end?))
    }

    /// The instant of a local time in it; none beyond the ends of time.
    fn instant_of(&self, local: DateTime) -> Option<Timestamp> {
        self.offset.to_timestamp(local).ok()
    }
}

/// `at` and then `duration`, or the end of time.
pub(super) fn later(at: Timestamp, duration: SignedDuration) -> Timestamp {
    within_time(at.as_duration().saturating_add(duration))
}

/// `at` less `duration`, or the beginning of time.
pub(super) fn earlier(at: Timestamp, duration: SignedDuration) -> Timestamp {
    within_time(at.as_duration().saturating_sub(duration))
}

/// The instant so long after 1970 began, or the nearest that there is.
fn within_time(since_epoch: SignedDuration) -> Timestamp {
    let edge = if since_epoch.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_duration(since_epoch).unwrap_or(edge)
}

/// The last instant before `at`.
fn just_before(at: Timestamp) -> Timestamp {
    earlier(at, NANOSECOND)
}

/// The last local time before `local`.
fn local_before(local: DateTime) -> DateTime {
    local.saturating_sub(NANOSECOND)
}

/// `to_timestamp` reads gaps and repeated times as the module says.
fn instant(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    zone.to_timestamp(local).ok()
}

fn whole_days(days: i32) -> SignedDuration {
    SignedDuration::from_hours(24 * i64::from(days))
}
