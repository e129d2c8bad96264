//! A policy with its windows looked up, and when its installs may start.
//!
//! A policy of which one part cannot be resolved is blocked as a whole, also while another of its windows is open. An
//! update that has a window of its own starts in that one only.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::catch_up::{self, Freeze};
use super::model::{Calendar, Group, Mode, Name, Policy, Settings, Window, Zone};
use super::outcome::Blocked;
use super::summary::is_organisations;
use super::window::{Moment, earlier, later};

/// A policy and what could be made of it.
pub(super) struct Governor<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its settings and windows, or what a person must fix.
    pub resolved: Result<Resolved<'a>, Arc<Blocked>>,
    /// Groups that it names and that the client does not have, in order: nobody is governed for them.
    pub missing_groups: Arc<[Name]>,
    /// Likewise of those whose devices it leaves out: nobody is left out for them.
    pub missing_excluded_groups: Arc<[Name]>,
}

/// Settings whose windows all exist and can be read.
pub(super) struct Resolved<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The windows.
    pub windows: Calendars<'a>,
}

/// Windows in any of which something may start, by name.
pub(super) struct Calendars<'a>(BTreeMap<&'a str, &'a Calendar>);

/// How some windows stand from an instant on, as one device sees them.
pub(super) struct Opening<'a> {
    /// The windows cannot be used at all.
    pub unusable: Option<Arc<Blocked>>,
    /// One of them is on the device's clock, and the device has none.
    pub no_zone: Option<Arc<Blocked>>,
    /// The last instant at which may start what needs no window and takes its limit, or the freeze that keeps it from
    /// starting.
    pub unscheduled: Result<Timestamp, Arc<Blocked>>,
    /// When any of this changes, but for the room that is left.
    pub changes: Option<Timestamp>,
    /// What the windows exclude.
    pub freezes: Vec<Freeze>,
    /// From when on all of it, the room that is left too, is to be worked out again.
    pub over: Option<Timestamp>,
    /// By this number it is known among others, if it is.
    pub number: Option<usize>,
    /// Whether an install that takes its limit may start.
    at_limit: (SignedDuration, Rc<Starts>),
    /// When something may start next that takes no time.
    next: Option<Timestamp>,
    calendars: Vec<(&'a Calendar, TimeZone)>,
    /// Those that are open: until when, and their cutoff.
    open: Vec<(Timestamp, SignedDuration)>,
    /// What to say where none is open for long enough.
    closed: Arc<Blocked>,
}

/// Whether an install that is expected to take so long may start: true until one of the two is over.
pub(super) struct Starts {
    /// The last instant at which it may, or why it may not.
    pub last: Result<Timestamp, Arc<Blocked>>,
    /// When it may next; while it may: again.
    pub next: Option<Timestamp>,
}

impl<'a> Governor<'a> {
    pub(super) fn of(
        policy: &'a Policy,
        windows: &BTreeMap<&'a str, &'a Window>,
        groups: &BTreeMap<&'a str, &'a Group>,
    ) -> Self {
        // The organisation's are nobody's own group.
        let is_missing = |name: &&Name| is_organisations(name) || !groups.contains_key(&***name);
        let missing = |names: &[Name]| -> Arc<[Name]> {
            let mut missing: Vec<Name> = names.iter().filter(is_missing).cloned().collect();
            missing.sort();
            missing.into()
        };
        Self {
            policy,
            resolved: resolve(policy, windows).map_err(Arc::new),
            missing_groups: missing(&policy.groups),
            missing_excluded_groups: missing(&policy.exclude_groups),
        }
    }

    /// What a person must fix before anything is installed.
    pub(super) fn stalled(&self) -> Option<&Arc<Blocked>> {
        self.resolved.as_ref().err()
    }

    /// Whether it acts in windows, and none of them is open at `now` or opens again.
    pub(super) fn never_opens(&self, now: Timestamp) -> bool {
        let acts = |resolved: &&Resolved<'a>| resolved.settings.mode != Mode::Audit;
        let windows = self.resolved.as_ref().ok().filter(acts).map(|resolved| &resolved.windows);
        windows.is_some_and(|windows| !windows.0.is_empty() && windows.all().all(|calendar| calendar.never_opens(now)))
    }
}

fn resolve<'a>(policy: &'a Policy, windows: &BTreeMap<&'a str, &'a Window>) -> Result<Resolved<'a>, Blocked> {
    let settings = policy.settings.as_ref().map_err(|_| Blocked::PolicyInvalid { policy: policy.name.clone() })?;
    let calendars = Calendars::of(&settings.windows, windows, || format!("PatchPolicy/{}", policy.name).into())?;
    if !calendars.0.is_empty() && calendars.all_too_short(settings.install_limit) {
        return Err(Blocked::WindowTooShort { policy: policy.name.clone() });
    }
    Ok(Resolved { settings, windows: calendars })
}

impl<'a> Calendars<'a> {
    /// Of `names`, if all exist and can be read; `by` names them.
    fn of(names: &[Name], windows: &BTreeMap<&'a str, &'a Window>, by: impl FnOnce() -> Name) -> Result<Self, Blocked> {
        if let Some(missing) = names.iter().filter(|name| !windows.contains_key(&***name)).min() {
            return Err(Blocked::WindowNotFound { by: by(), window: missing.clone() });
        }
        let mut calendars = BTreeMap::new();
        let mut invalid = Vec::new();
        for window in names.iter().filter_map(|name| windows.get(&**name)) {
            match &window.calendar {
                Ok(calendar) => drop(calendars.insert(&*window.name, calendar)),
                Err(_) => invalid.push(&window.name),
            }
        }
        match invalid.into_iter().min() {
            Some(window) => Err(Blocked::WindowInvalid { window: window.clone() }),
            None => Ok(Self(calendars)),
        }
    }

    /// The window that a group gives to an update, for the installs of a policy.
    pub(super) fn own(
        window: &Name,
        group: &Name,
        policy: &Name,
        limit: SignedDuration,
        windows: &BTreeMap<&'a str, &'a Window>,
    ) -> Result<Self, Arc<Blocked>> {
        let calendars = Self::of(std::slice::from_ref(window), windows, || format!("ApprovalGroup/{group}").into())?;
        if calendars.all_too_short(limit) {
            return Err(Arc::new(Blocked::OwnWindowTooShort { policy: policy.clone(), window: window.clone() }));
        }
        Ok(calendars)
    }

    fn all_too_short(&self, limit: SignedDuration) -> bool {
        self.0.values().all(|calendar| calendar.duration <= room(calendar, limit))
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> impl Iterator<Item = &'a Calendar> {
        self.0.values().copied()
    }

    /// The first that is on the device's clock.
    pub(super) fn needs_zone(&self) -> Option<&'a str> {
        self.0.iter().find(|(_, calendar)| matches!(calendar.zone, Zone::Device)).map(|(name, _)| *name)
    }

    /// How they stand at `now` for installs that take `limit` or less. A window on the device's clock counts only if the
    /// device has a `zone`.
    pub(super) fn opening(&self, zone: Option<&TimeZone>, limit: SignedDuration, now: Timestamp) -> Opening<'a> {
        let mut changes = Vec::new();
        let (mut opens, mut next) = (None, None);
        let (mut frozen, mut ending) = (None, None);
        let (mut calendars, mut open) = (vec![], vec![]);
        for (name, calendar) in &self.0 {
            let calendar: &'a Calendar = calendar;
            let Some(zone) = calendar.zone(zone) else { continue };
            calendars.push((calendar, zone.clone()));
            match calendar.at(zone, now) {
                Moment::Closed => {}
                Moment::Frozen { exclusion } => frozen = frozen.or(Some((*name, exclusion))),
                Moment::Open { until } => {
                    open.push((until, calendar.cutoff));
                    ending = ending.or(Some(*name));
                }
            }
            opens = first(opens, calendar.next_opening(zone, now).map(|span| span.start));
            next = first(next, calendar.next_opening_with(zone, now, calendar.cutoff));
            changes.extend(calendar.next_change(zone, now));
        }
        let closed = match (ending, frozen) {
            (Some(window), _) => Blocked::WindowEnding { window: window.into(), opens },
            (None, Some((window, exclusion))) => {
                Blocked::Frozen { window: window.into(), exclusion: exclusion.into(), opens }
            }
            (None, None) => Blocked::WindowClosed { opens },
        };
        let no_zone = self.needs_zone().filter(|_| zone.is_none());
        let mut opening = Opening {
            unusable: None,
            no_zone: no_zone.map(|window| Arc::new(Blocked::NoTimeZone { window: window.into() })),
            unscheduled: self.unscheduled(limit, now, &mut changes),
            changes: changes.into_iter().min(),
            over: None,
            freezes: catch_up::freezes(self.0.iter().map(|(name, calendar)| (*name, *calendar))),
            number: None,
            at_limit: (limit, Rc::new(Starts { last: Err(Arc::new(Blocked::WindowClosed { opens })), next: None })),
            next,
            calendars,
            open,
            closed: Arc::new(closed),
        };
        let starts = Starts { last: opening.last(limit, now), next: opening.next_for(limit, now) };
        opening.over = [opening.changes, opens, opening.next, starts.over()].into_iter().flatten().min();
        opening.at_limit.1 = Rc::new(starts);
        opening
    }

    /// What needs no window keeps clear of the freezes of all of them, and ends before one begins.
    fn unscheduled(
        &self,
        limit: SignedDuration,
        now: Timestamp,
        changes: &mut Vec<Timestamp>,
    ) -> Result<Timestamp, Arc<Blocked>> {
        let freezes = self.0.iter().map(|(name, calendar)| (*name, calendar.freeze_at(now)));
        let frozen = freezes.into_iter().find_map(|(name, freeze)| Some((name, freeze?)));
        let ahead = |(name, calendar): (&&'a str, &&'a Calendar)| {
            let freeze = calendar.next_freeze(now)?;
            Some((freeze.from, *name, &*freeze.name))
        };
        let next = self.0.iter().filter_map(ahead).min();
        changes.extend(next.map(|(from, _, _)| from));
        if let Some((window, exclusion)) = frozen {
            changes.extend(self.0.values().filter(|calendar| calendar.freeze_at(now).is_some()).map(|it| it.thaw(now)));
            let opens = self.next_unscheduled(limit, now);
            changes.extend(opens);
            let (window, exclusion) = (window.into(), exclusion.name.clone());
            return Err(Arc::new(Blocked::Frozen { window, exclusion, opens }));
        }
        let Some((from, window, exclusion)) = next else { return Ok(Timestamp::MAX) };
        let last = earlier(from, limit);
        if now > last {
            let opens = self.next_unscheduled(limit, now);
            changes.extend(opens);
            let (window, exclusion) = (window.into(), exclusion.into());
            return Err(Arc::new(Blocked::FreezeAhead { window, exclusion, opens }));
        }
        // It may start at `last` itself.
        changes.push(later(last, SignedDuration::from_nanos(1)));
        Ok(last)
    }

    /// The first instant from `after` on at which may start what needs no window.
    fn next_unscheduled(&self, limit: SignedDuration, after: Timestamp) -> Option<Timestamp> {
        let mut at = after;
        loop {
            let thawed = self.0.values().map(|calendar| calendar.thaw(at)).max().unwrap_or(at);
            if thawed == Timestamp::MAX {
                return None;
            }
            let next = self.0.values().filter_map(|calendar| Some(calendar.next_freeze(thawed)?.from)).min();
            match next {
                _ if thawed > at => at = thawed,
                Some(freeze) if at > earlier(freeze, limit) => at = freeze,
                Some(_) | None => return Some(at),
            }
        }
    }

    /// Whether one of them is open at `now` on a device in `zone`; else when the next one opens.
    pub(super) fn is_open(&self, zone: Option<&TimeZone>, now: Timestamp) -> Result<(), Option<Timestamp>> {
        let mut next = None;
        for calendar in self.0.values() {
            let Some(zone) = calendar.zone(zone) else { continue };
            if matches!(calendar.at(zone, now), Moment::Open { .. }) {
                return Ok(());
            }
            next = first(next, calendar.next_opening(zone, now).map(|span| span.start));
        }
        Err(next)
    }

    /// Whether one of them is open at `now`, and else when the next one opens; for UTC where the window is on the
    /// device's clock.
    pub(super) fn open_or_next(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let mut next = None;
        for calendar in self.0.values() {
            let zone = calendar.zone_or_utc();
            if matches!(calendar.at(&zone, now), Moment::Open { .. }) {
                return (true, None);
            }
            next = first(next, calendar.next_opening(&zone, now).map(|span| span.start));
        }
        (false, next)
    }
}

impl Opening<'_> {
    /// Of windows that cannot be used.
    pub(super) fn none(why: Arc<Blocked>, limit: SignedDuration) -> Self {
        Self {
            unusable: Some(why.clone()),
            no_zone: None,
            unscheduled: Err(why.clone()),
            changes: None,
            over: None,
            freezes: vec![],
            number: None,
            at_limit: (limit, Rc::new(Starts { last: Err(why.clone()), next: None })),
            next: None,
            calendars: vec![],
            open: vec![],
            closed: why,
        }
    }

    /// The same, known by a number.
    pub(super) fn numbered(self, number: Option<usize>) -> Self {
        Self { number, ..self }
    }

    /// Whether an install may start that takes its limit, as one does of which nothing was measured.
    pub(super) fn at_limit(&self) -> &Starts {
        &self.at_limit.1
    }

    /// Whether an install that is expected to take so long may start, if that is known without working it out.
    pub(super) fn known(&self, expected: SignedDuration) -> Option<Rc<Starts>> {
        (self.at_limit.0 == expected).then(|| self.at_limit.1.clone())
    }

    /// Whether an install that is expected to take so long may start at `now`.
    pub(super) fn starts(&self, expected: SignedDuration, now: Timestamp) -> Starts {
        // Whatever needs more room starts later: between two that start together all do.
        let (limit, at_limit) = &self.at_limit;
        let next =
            if at_limit.next == self.next && expected <= *limit { self.next } else { self.next_for(expected, now) };
        Starts { last: self.last(expected, now), next }
    }

    /// When the last of the open windows closes.
    pub(super) fn open_until(&self) -> Option<Timestamp> {
        self.open.iter().map(|(until, _)| *until).max()
    }

    /// What to say of an install that does not fit into what is left.
    pub(super) fn closed(&self) -> &Arc<Blocked> {
        &self.closed
    }

    fn last(&self, expected: SignedDuration, now: Timestamp) -> Result<Timestamp, Arc<Blocked>> {
        let lasts = self.open.iter().map(|(until, cutoff)| earlier(*until, expected.max(*cutoff)));
        lasts.filter(|last| now <= *last).max().ok_or_else(|| self.closed.clone())
    }

    fn next_for(&self, expected: SignedDuration, now: Timestamp) -> Option<Timestamp> {
        let next =
            |(calendar, zone): &(&Calendar, TimeZone)| calendar.next_opening_with(zone, now, room(calendar, expected));
        self.calendars.iter().filter_map(next).min()
    }
}

impl Starts {
    /// From when on it is to be worked out again.
    pub(super) fn over(&self) -> Option<Timestamp> {
        // It may start at the last instant itself.
        let last = self.last.as_ref().ok().filter(|last| **last < Timestamp::MAX);
        first(last.map(|last| later(*last, SignedDuration::from_nanos(1))), self.next)
    }
}

/// How much of the window must be left where an install starts: it is expected to end in the window, and starts before
/// the cutoff.
fn room(calendar: &Calendar, expected: SignedDuration) -> SignedDuration {
    calendar.cutoff.max(expected)
}

/// The earlier of two instants that may be absent.
fn first(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
