//! Workstations that were off while their windows were open catch up outside them.
//!
//! In: the windows that an update follows on a device, and since when the device has lacked it. Out: whether it may start though
//! no window is open.
//!
//! - Freezes hold it as they hold everything: none of its windows' may be on, and it must end before the next begins.
//! - Since when it is lacking is told by what does not change: the device's first sighting of any version of the package, and the
//!   time at which such a version was old enough to be approved. When a person approved it is not known here: what was
//!   approved by hand counts from the first sighting on the device.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::report::Power;

use super::model::{Calendar, CatchUp, Device, DeviceReport, DeviceType, Name};
use super::outcome::Blocked;
use super::window::{earlier, later};

/// From `from` until before `to` a window is closed, whatever its schedules say.
pub(super) struct Freeze {
    from: Timestamp,
    to: Timestamp,
    window: Name,
    exclusion: Name,
}

/// Whether an update may start outside its windows.
pub(super) struct Outside {
    /// The last instant at which it may, if it may now.
    pub until: Option<Timestamp>,
    /// If it may not: what is against it beside the windows, once it has waited for long enough.
    pub why: Option<Arc<Blocked>>,
    /// If it may not: the first instant at which the clock alone lets it.
    pub from: Option<Timestamp>,
    /// When any of this changes.
    pub changes: Option<Timestamp>,
}

/// What the windows exclude, by when it begins.
pub(super) fn freezes<'a>(calendars: impl Iterator<Item = (&'a str, &'a Calendar)>) -> Vec<Freeze> {
    let freezes = calendars.flat_map(|(name, calendar)| {
        let freezes = calendar.exclusions.iter().filter(|exclusion| exclusion.from < exclusion.to);
        freezes.map(move |it| Freeze { from: it.from, to: it.to, window: name.into(), exclusion: it.name.clone() })
    });
    let mut freezes: Vec<Freeze> = freezes.collect();
    freezes.sort_by(|a, b| (a.from, a.to, &a.window, &a.exclusion).cmp(&(b.from, b.to, &b.window, &b.exclusion)));
    freezes
}

/// From when on a device may start outside its windows what it is lacking since `since`, freezes aside; none if it never may.
pub(super) fn due(
    settings: CatchUp,
    (device, report): (&Device, &DeviceReport),
    since: Timestamp,
) -> Option<Timestamp> {
    let is_powered = !settings.require_mains || report.power == Power::Mains;
    (device.device_type == DeviceType::Workstation && is_powered).then(|| later(since, settings.after))
}

/// Whether an update that is lacking since `since` and takes `limit` may start at `now`, when its windows are closed for the
/// reason `closed`.
pub(super) fn outside(
    settings: CatchUp,
    (device, report): (&Device, &DeviceReport),
    (freezes, closed): (&[Freeze], &Blocked),
    since: Timestamp,
    limit: SignedDuration,
    now: Timestamp,
) -> Option<Outside> {
    let opens = match closed {
        Blocked::WindowClosed { opens } | Blocked::WindowEnding { opens, .. } | Blocked::Frozen { opens, .. } => *opens,
        _ => return None,
    };
    if device.device_type != DeviceType::Workstation {
        return None;
    }
    let due = later(since, settings.after);
    let from = first_start(freezes, due.max(now), limit);
    let is_powered = !settings.require_mains || report.power == Power::Mains;
    let next_freeze = freezes.iter().map(|freeze| freeze.from).filter(|from| *from > now).min();
    let last = next_freeze.map_or(Timestamp::MAX, |next| earlier(next, limit));
    let edges = freezes.iter().flat_map(|freeze| [freeze.from, freeze.to]).chain([due, later(last, NANOSECOND)]);
    let frozen = freezes.iter().filter(|freeze| freeze.from <= now && now < freeze.to).max_by_key(|freeze| freeze.to);
    let why = match frozen {
        _ if now < due => None,
        Some(Freeze { window, exclusion, .. }) => {
            Some(Blocked::Frozen { window: window.clone(), exclusion: exclusion.clone(), opens })
        }
        None if from == Some(now) && !is_powered => Some(Blocked::OnBattery),
        None => None,
    };
    Some(Outside {
        until: Some(last).filter(|_| from == Some(now) && is_powered),
        why: why.map(Arc::new),
        from: from.filter(|from| *from > now && is_powered),
        changes: edges.filter(|edge| *edge > now).min(),
    })
}

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

/// The first instant from `at` on that leaves `limit` before the next freeze, if there is one.
fn first_start(freezes: &[Freeze], mut at: Timestamp, limit: SignedDuration) -> Option<Timestamp> {
    for freeze in freezes {
        if at < freeze.to && later(at, limit) > freeze.from {
            at = freeze.to;
        }
    }
    (at < Timestamp::MAX).then_some(at)
}
