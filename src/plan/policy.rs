//! A policy with its windows looked up, and when its installs may start.
//!
//! A policy of which one part cannot be resolved is blocked as a whole, also while another of its windows is open.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::model::{Calendar, Policy, Settings, Window, Zone};
use super::outcome::Blocked;
use super::window::{Moment, earlier, later};

/// A policy and what could be made of it.
pub(super) struct Governor<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its settings and windows, or what a person must fix.
    pub resolved: Result<Resolved<'a>, Blocked>,
}

/// Settings whose windows all exist and can be read.
pub(super) struct Resolved<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// By name.
    windows: BTreeMap<&'a str, &'a Calendar>,
}

/// Whether an install may start at an instant, in the policy's windows as one device sees them.
pub(super) struct Opening {
    /// The last instant at which it may, or why it may not.
    pub last_start: Result<Timestamp, Blocked>,
    /// If it may not: when it may next.
    pub next_start: Option<Timestamp>,
    /// When any of this changes.
    pub changes: Option<Timestamp>,
}

impl<'a> Governor<'a> {
    pub(super) fn of(policy: &'a Policy, windows: &BTreeMap<&'a str, &'a Window>) -> Self {
        Self { policy, resolved: resolve(policy, windows) }
    }

    /// What a person must fix.
    pub(super) fn stalled(&self) -> Option<&Blocked> {
        self.resolved.as_ref().err()
    }
}

fn resolve<'a>(policy: &'a Policy, windows: &BTreeMap<&'a str, &'a Window>) -> Result<Resolved<'a>, Blocked> {
    let name = || policy.name.clone();
    let settings = policy.settings.as_ref().map_err(|_| Blocked::PolicyInvalid { policy: name() })?;
    if let Some(missing) = settings.windows.iter().filter(|window| !windows.contains_key(window.as_str())).min() {
        return Err(Blocked::WindowNotFound { policy: name(), window: missing.clone() });
    }
    let mut calendars = BTreeMap::new();
    let mut invalid = Vec::new();
    for window in settings.windows.iter().filter_map(|window| windows.get(window.as_str())) {
        match &window.calendar {
            Ok(calendar) => drop(calendars.insert(window.name.as_str(), calendar)),
            Err(_) => invalid.push(&window.name),
        }
    }
    if let Some(window) = invalid.into_iter().min() {
        return Err(Blocked::WindowInvalid { window: window.clone() });
    }
    let too_short = |calendar: &&Calendar| calendar.duration <= room(calendar, settings.install_limit);
    if !calendars.is_empty() && calendars.values().all(too_short) {
        return Err(Blocked::WindowTooShort { policy: name() });
    }
    Ok(Resolved { settings, windows: calendars })
}

impl<'a> Resolved<'a> {
    /// The first of its windows that is on the device's clock.
    pub(super) fn needs_zone(&self) -> Option<&'a str> {
        self.windows.iter().find(|(_, calendar)| matches!(calendar.zone, Zone::Device)).map(|(name, _)| *name)
    }

    /// Whether an install that takes `limit` may start at `now`. A window on the device's clock counts only if the
    /// device has a `zone`.
    pub(super) fn opening(&self, zone: Option<&TimeZone>, limit: SignedDuration, now: Timestamp) -> Opening {
        let mut changes = Vec::new();
        let (mut opens, mut next_start, mut last_start) = (None, None, None);
        let (mut frozen, mut ending) = (None, None);
        for (name, calendar) in &self.windows {
            let Some(zone) = calendar.zone(zone) else { continue };
            let room = room(calendar, limit);
            match calendar.at(zone, now) {
                Moment::Closed => {}
                Moment::Frozen { exclusion } => frozen = frozen.or(Some((*name, exclusion))),
                Moment::Open { until } => {
                    let last = earlier(until, room);
                    if now <= last {
                        last_start = last_start.max(Some(last));
                        // It may start at `last` itself.
                        changes.push(later(last, SignedDuration::from_nanos(1)));
                    } else {
                        ending = ending.or(Some(*name));
                    }
                }
            }
            opens = first(opens, calendar.next_opening(zone, now).map(|span| span.start));
            next_start = first(next_start, calendar.next_opening_with(zone, now, room));
            changes.extend(calendar.next_change(zone, now));
        }
        let last_start = match (last_start, ending, frozen) {
            (Some(last), _, _) => Ok(last),
            (None, Some(window), _) => Err(Blocked::WindowEnding { window: window.to_owned(), opens }),
            (None, None, Some((window, exclusion))) => {
                Err(Blocked::Frozen { window: window.to_owned(), exclusion: exclusion.to_owned(), opens })
            }
            (None, None, None) => Err(Blocked::WindowClosed { opens }),
        };
        Opening {
            next_start: next_start.filter(|_| last_start.is_err()),
            last_start,
            changes: changes.into_iter().min(),
        }
    }

    /// Whether one of its windows is open at `now`, and else when the next one opens; for UTC where the window is on the
    /// device's clock.
    pub(super) fn open_or_next(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let mut next = None;
        for calendar in self.windows.values() {
            let zone = calendar.zone_or_utc();
            if matches!(calendar.at(&zone, now), Moment::Open { .. }) {
                return (true, None);
            }
            next = first(next, calendar.next_opening(&zone, now).map(|span| span.start));
        }
        (false, next)
    }
}

/// How much of the window must be left where an install starts: it ends in the window, and starts before the cutoff.
fn room(calendar: &Calendar, limit: SignedDuration) -> SignedDuration {
    calendar.cutoff.max(limit)
}

/// The earlier of two instants that may be absent.
fn first(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
