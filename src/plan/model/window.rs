//! Maintenance windows.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{Cron, Invalid, Name};

/// A maintenance window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Name.
    pub name: Name,
    /// When it is open, if that could be read.
    pub calendar: Result<Calendar, Invalid>,
    /// Digest of its spec.
    pub spec: Name,
}

/// When a window is open.
#[derive(Clone, Debug)]
pub struct Calendar {
    /// Whose clock the schedules are on.
    pub zone: Zone,
    /// When it opens: any of these.
    pub schedules: Vec<Schedule>,
    /// How long it stays open (elapsed time).
    pub duration: SignedDuration,
    /// Nothing new starts in its last part, this long.
    pub cutoff: SignedDuration,
    /// Freezes.
    pub exclusions: Vec<Exclusion>,
}

/// Whose clock.
#[derive(Clone, Debug)]
pub enum Zone {
    /// A named one.
    Fixed(TimeZone),
    /// Each device's own.
    Device,
}

/// When a window opens, in local time.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// On the `week`th `weekday` of the month, `offset_days` later (negative: earlier).
    Monthly {
        /// 1 to 4, or -1 for the last.
        week: i8,
        /// The weekday.
        weekday: jiff::civil::Weekday,
        /// Days after it.
        offset_days: i32,
        /// Local time.
        at: Time,
    },
    /// On days of the week.
    Weekly {
        /// The days.
        weekdays: Vec<jiff::civil::Weekday>,
        /// Local time.
        at: Time,
    },
    /// Every day.
    Daily {
        /// Local time.
        at: Time,
    },
    /// Once.
    Once {
        /// Local date and time.
        at: DateTime,
    },
    /// At the local dates and times that an expression names.
    Cron(Cron),
}

/// A freeze: closed from `from` until before `to`.
#[derive(Clone, Debug)]
pub struct Exclusion {
    /// Name.
    pub name: Name,
    /// Start.
    pub from: Timestamp,
    /// End.
    pub to: Timestamp,
}
