//! Who will miss a deadline if things go on as they do: from the windows, the places, and how long installs take.
//!
//! In: for each device of a policy that has a deadline its [`Outlook`]. Out: a [`Forecast`]. It is a plain model, in which
//! the earliest deadline comes first:
//!
//! ```text
//! occurrence  [=========================)
//! place 1      [device][device][device]      each as long as it is expected to take
//! place 2      [device     ][device]         what could not end any more begins in the next occurrence
//! ```
//!
//! - Devices that only a person, or the device itself, can help (blocked for good, offline) are never done.
//! - What ages begins when it is approved, what waits for its ring after the soak times of the rings before it.
//! - Windows are the policy's, on UTC where they are on the device's clock. What needs no window (`InstallImmediately`), and what a
//!   workstation has lacked for long enough to catch up, begins at any time, clear of the exclusions of all of them. Failures, services
//!   of which only some may be unavailable, power, and updates that are yet to come are left out.
//! - It begins at the full hour, so that it stays the same within it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::look::Look;
use super::model::Calendar;
use super::outcome::Forecast;
use super::policy::Resolved;
use super::window::{Moment, Span, later};

/// The model looks at no more occurrences ...
const OCCURRENCES: usize = 200;
/// ... and no further ahead.
const HORIZON: SignedDuration = SignedDuration::from_hours(366 * 24);

/// Seconds of an hour, and of a day.
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// What a device has before it. Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outlook {
    /// Its earliest deadline.
    pub deadline: i64,
    /// From when on its install can begin; never if only a person can help.
    pub ready: Option<i64>,
    /// How long its install is expected to take.
    pub takes: i64,
    /// From when on it may begin outside of windows; never if it needs one.
    pub outside: Option<i64>,
}

/// Devices of which the same is true.
struct Alike {
    outlook: Outlook,
    ready: i64,
    left: u32,
}

/// When a policy's windows are open from a full hour on, as far as somebody has asked.
#[derive(Default)]
pub(super) struct Prospect<'a> {
    /// The full hour, in seconds.
    from: Option<i64>,
    known: Vec<Occurrence>,
    rest: Option<Box<dyn Iterator<Item = Occurrence> + 'a>>,
    /// What was said last.
    said: Option<Said>,
}

/// A forecast, which stays the same while its outlooks do.
struct Said {
    /// For so many devices at a time.
    places: u32,
    forecast: Option<Forecast>,
    /// When it is to be looked at again, in any case.
    look: Option<Timestamp>,
    /// Until before this second: then a deadline is over, or a time in which installs could begin, or the hour.
    until: i64,
}

/// A time in which installs may begin. Seconds.
#[derive(Clone, Copy)]
struct Occurrence {
    start: i64,
    end: i64,
    cutoff: i64,
}

/// An occurrence, or the time between two of them.
#[derive(Clone, Copy)]
struct Stretch {
    start: i64,
    end: i64,
    /// Absent between occurrences.
    cutoff: Option<i64>,
}

/// Who may begin when, as far as that has been given out.
struct Places {
    /// By when they are free.
    free: BTreeMap<i64, u32>,
    /// What windows exclude, by when it begins: from then until before this.
    freezes: Vec<(i64, i64)>,
}

impl<'a> Prospect<'a> {
    /// The same until the hour is over.
    fn renew(&mut self, calendars: &[&'a Calendar], hour: i64, from: Timestamp) {
        if self.from != Some(hour) {
            let rest = occurrences(calendars, from);
            *self = Self { from: Some(hour), known: vec![], rest: Some(Box::new(rest)), said: None };
        }
    }

    /// In order.
    fn occurrence(&mut self, nth: usize) -> Option<Occurrence> {
        if nth >= self.known.len() {
            self.known.extend(self.rest.as_mut().and_then(Iterator::next));
        }
        self.known.get(nth).copied()
    }
}

/// The beginning of the day of `now`, from when on soak times that have not begun are counted.
pub(super) fn today(now: Timestamp) -> i64 {
    now.as_second() - now.as_second().rem_euclid(DAY)
}

/// When the next day begins.
pub(super) fn tomorrow(now: Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(today(now) + DAY).ok()
}

/// What comes of `outlooks`, so many devices of each, all of one policy that allows so many at a time; none where no device
/// has a deadline. Where the outlooks are those of the last time, what was said then is said again while it holds.
pub(super) fn forecast<'a>(
    (resolved, prospect): (Option<&Resolved<'a>>, &mut Prospect<'a>),
    places: u32,
    (outlooks, are_new): (&BTreeMap<Outlook, u32>, bool),
    now: Timestamp,
    look: &mut Look,
) -> Option<Forecast> {
    let holds = |said: &&Said| !are_new && said.places == places && now.as_second() < said.until;
    if let Some(said) = prospect.said.as_ref().filter(holds) {
        look.at(said.look);
        return said.forecast.clone();
    }
    let mut own = Look::after(now);
    let forecast = work_out((resolved, prospect), places, outlooks, now, &mut own);
    let hour = now.as_second() - now.as_second().rem_euclid(HOUR) + HOUR;
    let is_to_come = |at: &i64| *at > now.as_second();
    let deadline = outlooks.keys().map(|outlook| outlook.deadline).find(is_to_come);
    let ends = prospect.known.iter().map(|occurrence| occurrence.end).filter(is_to_come);
    let until = ends.chain(deadline).fold(hour, i64::min);
    look.at(own.next());
    prospect.said = Some(Said { places, forecast: forecast.clone(), look: own.next(), until });
    forecast
}

fn work_out<'a>(
    (resolved, prospect): (Option<&Resolved<'a>>, &mut Prospect<'a>),
    places: u32,
    outlooks: &BTreeMap<Outlook, u32>,
    now: Timestamp,
    look: &mut Look,
) -> Option<Forecast> {
    if outlooks.is_empty() {
        return None;
    }
    let hour = now.as_second() - now.as_second().rem_euclid(HOUR);
    let calendars: Vec<&Calendar> = resolved.map(|resolved| resolved.windows.all().collect()).unwrap_or_default();
    let rooms: Vec<(i64, i64)> = calendars.iter().map(|it| (it.cutoff.as_secs(), it.duration.as_secs())).collect();
    let (mut of, mut missing) = (0_u32, 0);
    let mut alike: Vec<Alike> = Vec::with_capacity(outlooks.len());
    for (outlook, devices) in outlooks {
        of = of.saturating_add(*devices);
        let fits = |(cutoff, duration): &(i64, i64)| room(*cutoff, outlook.takes) <= *duration;
        let may_begin = places > 0 && (outlook.outside.is_some() || rooms.iter().any(fits));
        let Some(ready) = outlook.ready.filter(|_| may_begin) else {
            missing += devices;
            continue;
        };
        alike.push(Alike { outlook: *outlook, ready, left: *devices });
    }
    if alike.is_empty() {
        return Some(Forecast { missing, of, done: None });
    }
    let from = Timestamp::from_second(hour).unwrap_or(now);
    look.at(Some(later(from, SignedDuration::from_secs(HOUR))));
    let mut done: Option<i64> = None;
    prospect.renew(&calendars, hour, from);
    // Those that are over left out: not before they are one, for what one window leaves to the others is no news.
    let occurrences =
        (0..).map_while(|nth| prospect.occurrence(nth)).filter(|occurrence| occurrence.end > now.as_second());
    let occurrences = occurrences.take(OCCURRENCES);
    let goes_outside = alike.iter().any(|alike| alike.outlook.outside.is_some());
    let end = later(from, HORIZON).as_second();
    let mut places = Places { free: BTreeMap::from([(hour, places)]), freezes: freezes(&calendars) };
    for stretch in stretches(occurrences, (hour, end)).filter(|stretch| goes_outside || stretch.cutoff.is_some()) {
        places.fill(&stretch, &mut alike, |finish, outlook, devices| {
            if finish > outlook.deadline || outlook.deadline <= now.as_second() {
                missing += devices;
            }
            done = done.max(Some(finish));
        });
        alike.retain(|alike| alike.left > 0);
        if alike.is_empty() {
            break;
        }
    }
    missing += alike.iter().map(|alike| alike.left).sum::<u32>();
    let full_hour =
        |at: i64| Timestamp::from_second(at.div_euclid(HOUR) * HOUR + if at.rem_euclid(HOUR) > 0 { HOUR } else { 0 });
    Some(Forecast { missing: missing.min(of), of, done: done.and_then(|at| full_hour(at).ok()) })
}

impl Places {
    /// Begins as many as can begin in the stretch, and tells when they end.
    fn fill(&mut self, stretch: &Stretch, alike: &mut [Alike], mut ends: impl FnMut(i64, &Outlook, u32)) {
        self.pass(stretch.start);
        let last = alike.iter().filter_map(|alike| stretch.last(&alike.outlook)).max().unwrap_or(i64::MIN);
        // Nobody waits for a place that is kept for one who is not ready yet.
        for later in [false, true] {
            let is_now = |alike: &&mut Alike| (stretch.from(alike) > stretch.start) == later;
            for alike in alike.iter_mut().filter(is_now) {
                while alike.left > 0 {
                    let Some(free) = self.free.first_key_value().map(|(free, _)| *free) else { return };
                    let Some(begin) = self.begin(stretch, alike, free) else { break };
                    let finish = begin.saturating_add(alike.outlook.takes);
                    let devices = self.take(free, alike.left);
                    *self.free.entry(finish).or_default() += devices;
                    alike.left -= devices;
                    ends(finish, &alike.outlook, devices);
                }
            }
            if self.free.first_key_value().is_none_or(|(free, _)| *free > last) {
                return;
            }
        }
    }

    /// Places that are free before `start` are free from it on.
    fn pass(&mut self, start: i64) {
        let busy = self.free.split_off(&start);
        let free: u32 = std::mem::replace(&mut self.free, busy).into_values().sum();
        if free > 0 {
            *self.free.entry(start).or_default() += free;
        }
    }

    /// When one begins that gets a place which is free from `free` on, if it does in the stretch.
    fn begin(&self, stretch: &Stretch, alike: &Alike, free: i64) -> Option<i64> {
        let Alike { outlook, ready, .. } = alike;
        let at = free.max(*ready);
        if stretch.last_in_window(outlook).is_some_and(|last| at <= last) {
            return Some(at);
        }
        let mut at = at.max(outlook.outside?);
        for (from, to) in &self.freezes {
            if at < *to && at.saturating_add(outlook.takes) > *from {
                at = *to;
            }
        }
        (at < stretch.end).then_some(at)
    }

    /// As many of the places that are free from `free` on as there are, and no more than `wanted`.
    fn take(&mut self, free: i64, wanted: u32) -> u32 {
        let Some(places) = self.free.get_mut(&free) else { return 0 };
        let taken = (*places).min(wanted);
        *places -= taken;
        if *places == 0 {
            self.free.remove(&free);
        }
        taken
    }
}

impl Stretch {
    /// From when on one may begin in it.
    fn from(&self, alike: &Alike) -> i64 {
        match (self.cutoff, alike.outlook.outside) {
            (None, Some(outside)) => alike.ready.max(outside),
            (Some(_), _) | (None, None) => alike.ready,
        }
    }

    /// The last instant at which one may begin that needs a window.
    fn last_in_window(&self, outlook: &Outlook) -> Option<i64> {
        self.cutoff.map(|cutoff| self.end - room(cutoff, outlook.takes))
    }

    /// The last instant at which one may begin.
    fn last(&self, outlook: &Outlook) -> Option<i64> {
        if outlook.outside.is_some() { Some(self.end - 1) } else { self.last_in_window(outlook) }
    }
}

/// Occurrences, and what is between them, before the first and after the last, from an instant to another.
fn stretches(occurrences: impl Iterator<Item = Occurrence>, (from, to): (i64, i64)) -> impl Iterator<Item = Stretch> {
    let mut before = from;
    let ends = std::iter::once(Occurrence { start: to, end: to, cutoff: 0 });
    occurrences.chain(ends).flat_map(move |Occurrence { start, end, cutoff }| {
        let between = Stretch { start: before, end: start, cutoff: None };
        before = before.max(end);
        let of_window = Stretch { start, end, cutoff: Some(cutoff) };
        [between, of_window].into_iter().filter(|stretch| stretch.start < stretch.end)
    })
}

/// What windows exclude, by when it begins.
fn freezes(calendars: &[&Calendar]) -> Vec<(i64, i64)> {
    let exclusions = calendars.iter().flat_map(|calendar| &calendar.exclusions).filter(|it| it.from < it.to);
    let mut freezes: Vec<(i64, i64)> = exclusions.map(|it| (it.from.as_second(), it.to.as_second())).collect();
    freezes.sort_unstable();
    freezes
}

fn room(cutoff: i64, takes: i64) -> i64 {
    cutoff.max(takes)
}

/// When the windows are open from `from` on, in order; of some that overlap one, which ends with the last.
fn occurrences<'a>(calendars: &[&'a Calendar], from: Timestamp) -> impl Iterator<Item = Occurrence> + use<'a> {
    let mut all: Vec<_> = calendars.iter().map(|calendar| Upcoming::of(calendar, from)).collect();
    std::iter::from_fn(move || {
        let starts = all.iter_mut().enumerate().filter_map(|(place, them)| Some((them.next_start()?, place)));
        let (_, place) = starts.min()?;
        let mut open = all.get_mut(place)?.take_next()?;
        loop {
            let before = open.end;
            for them in &mut all {
                open = them.take_all_before(open.end).map_or(open, |last| open.with(last));
            }
            if open.end == before {
                return Some(open);
            }
        }
    })
}

/// What of a calendar's openings is still to come.
struct Upcoming<'a> {
    calendar: &'a Calendar,
    zone: TimeZone,
    horizon: Timestamp,
    /// Those that start by then were taken.
    taken: Timestamp,
    next: Next,
}

/// The next opening, if there is one.
#[derive(Clone, Copy)]
enum Next {
    /// Nobody has asked.
    Unasked,
    Known(Option<Span>),
}

impl<'a> Upcoming<'a> {
    fn of(calendar: &'a Calendar, from: Timestamp) -> Self {
        let zone = calendar.zone_or_utc();
        // The rest of one that is open.
        let next = match calendar.at(&zone, from) {
            Moment::Open { until } => Next::Known(Some(Span { start: from, end: until })),
            Moment::Closed | Moment::Frozen { .. } => Next::Unasked,
        };
        Self { calendar, zone, horizon: later(from, HORIZON), taken: from, next }
    }

    fn next(&mut self) -> Option<Span> {
        let next = match self.next {
            Next::Known(next) => next,
            Next::Unasked => {
                self.calendar.next_opening(&self.zone, self.taken).filter(|span| span.start < self.horizon)
            }
        };
        self.next = Next::Known(next);
        next
    }

    fn next_start(&mut self) -> Option<Timestamp> {
        self.next().map(|span| span.start)
    }

    fn take_next(&mut self) -> Option<Occurrence> {
        let span = self.next()?;
        (self.taken, self.next) = (span.start, Next::Unasked);
        Some(self.occurrence(span))
    }

    /// Takes all that start before a second, and tells the last, which is the last to end. What lies between is not gone through: a window may
    /// open every minute.
    fn take_all_before(&mut self, second: i64) -> Option<Occurrence> {
        let next = self.next().filter(|next| next.start.as_second() < second)?;
        let before = Timestamp::from_second(second).map_or(self.horizon, |at| at.min(self.horizon));
        let last = self.calendar.last_opening(&self.zone, before).filter(|last| last.start > next.start);
        let last = last.unwrap_or(next);
        (self.taken, self.next) = (last.start, Next::Unasked);
        Some(self.occurrence(last))
    }

    fn occurrence(&self, Span { start, end }: Span) -> Occurrence {
        Occurrence { start: start.as_second(), end: end.as_second(), cutoff: self.calendar.cutoff.as_secs() }
    }
}

impl Occurrence {
    /// Both, which overlap: it ends with the one that ends last, of two that end together with the one that lets more begin.
    fn with(self, other: Self) -> Self {
        let (end, Reverse(cutoff)) = (self.end, Reverse(self.cutoff)).max((other.end, Reverse(other.cutoff)));
        Self { start: self.start.min(other.start), end, cutoff }
    }
}
