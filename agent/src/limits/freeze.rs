//! Times in which nothing begins, on the machine's own clock. Pure.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _, civil};
use serde::Deserialize;
use toml::value::Datetime;

/// A freeze as it is written: two dates, two dates with times, or two times of day.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    from: Datetime,
    to: Datetime,
    #[serde(default)]
    weekdays: Vec<Weekday>,
}

/// As in a MaintenanceWindow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// One freeze. Its beginning belongs to it, its end does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freeze {
    Once {
        from: DateTime,
        to: DateTime,
    },
    /// Beginning on these days, or on every day; until the next day where `to` is not later than `from`.
    Daily {
        from: Time,
        to: Time,
        weekdays: Vec<civil::Weekday>,
    },
}

/// What a TOML date-time is without an offset.
enum Local {
    Date(Date),
    DateTime(DateTime),
    Time(Time),
}

impl TryFrom<Written> for Freeze {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { from, to, weekdays } = written;
        let (from, to) = (local("from", &from)?, local("to", &to)?);
        if !weekdays.is_empty() && !matches!(from, Local::Time(_)) {
            return Err("weekdays: they are for times of day, and from is a date".to_owned());
        }
        let once = |from: DateTime, to: DateTime| {
            if from < to { Ok(Self::Once { from, to }) } else { Err("to: must be later than from".to_owned()) }
        };
        match (from, to) {
            // The last day belongs to it as a whole.
            (Local::Date(from), Local::Date(to)) => {
                let after = to.tomorrow().map_err(|error| format!("to: {error}"))?;
                once(from.at(0, 0, 0, 0), after.at(0, 0, 0, 0))
            }
            (Local::DateTime(from), Local::DateTime(to)) => once(from, to),
            (Local::Time(from), Local::Time(to)) => {
                Ok(Self::Daily { from, to, weekdays: weekdays.into_iter().map(Weekday::civil).collect() })
            }
            _ => Err("from and to: both are dates, both dates with times, or both times of day".to_owned()),
        }
    }
}

fn local(field: &str, written: &Datetime) -> Result<Local, String> {
    if written.offset.is_some() {
        return Err(format!("{field}: {written} has an offset; it is to be on this machine's own clock"));
    }
    let wrong = |error: jiff::Error| format!("{field}: {error}");
    let day = |date: toml::value::Date| -> Result<Date, String> {
        let text = date.to_string();
        text.parse().map_err(wrong)
    };
    let time = |time: toml::value::Time| -> Result<Time, String> {
        let text = time.to_string();
        text.parse().map_err(wrong)
    };
    match (written.date, written.time) {
        (Some(date), None) => Ok(Local::Date(day(date)?)),
        (Some(date), Some(at)) => Ok(Local::DateTime(day(date)?.to_datetime(time(at)?))),
        (None, Some(at)) => Ok(Local::Time(time(at)?)),
        (None, None) => Err(format!("{field}: neither a date nor a time of day")),
    }
}

impl Freeze {
    /// If it holds at this instant: when it ends.
    pub(super) fn end(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Once { from, to } => holds(*from, *to, at, zone),
            Self::Daily { from, to, weekdays } => {
                let today = zone.to_datetime(at).date();
                // That of yesterday may go on; that of tomorrow may have begun, where the clock is changed at midnight.
                let days = [-1, 0, 1].into_iter().filter_map(|days: i64| moved(today, days.days()));
                let days = days.filter(|day| weekdays.is_empty() || weekdays.contains(&day.weekday()));
                let ends = days.filter_map(|day| {
                    let last = if to > from { Some(day) } else { moved(day, 1.day()) };
                    holds(day.to_datetime(*from), last?.to_datetime(*to), at, zone)
                });
                ends.max()
            }
        }
    }
}

/// A local time that does not exist, or exists twice, has two readings: the longer freeze counts. What lies outside of
/// all time that can be counted is never over.
fn holds(from: DateTime, to: DateTime, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let begin = zone.to_ambiguous_timestamp(from).earlier().unwrap_or(Timestamp::MIN);
    let end = zone.to_ambiguous_timestamp(to).later().unwrap_or(Timestamp::MAX);
    (begin <= at && at < end).then_some(end)
}

fn moved(day: Date, by: Span) -> Option<Date> {
    day.checked_add(by).ok()
}

impl Weekday {
    fn civil(self) -> civil::Weekday {
        match self {
            Self::Monday => civil::Weekday::Monday,
            Self::Tuesday => civil::Weekday::Tuesday,
            Self::Wednesday => civil::Weekday::Wednesday,
            Self::Thursday => civil::Weekday::Thursday,
            Self::Friday => civil::Weekday::Friday,
            Self::Saturday => civil::Weekday::Saturday,
            Self::Sunday => civil::Weekday::Sunday,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(text: &str) -> Result<Freeze, String> {
        let written: Written = toml::from_str(text).map_err(|error| error.to_string())?;
        Freeze::try_from(written)
    }

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn end(text: &str, at: &str) -> Option<String> {
        let at: Timestamp = at.parse().unwrap();
        freeze(text).unwrap().end(at, &berlin()).map(|end| end.to_string())
    }

    fn holds_at(text: &str, at: &str) -> bool {
        end(text, at).is_some()
    }

    const OFFICE: &str =
        "from = 08:00:00\nto = 18:30:00\nweekdays = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday']";

    #[test]
    fn a_time_of_day_is_on_the_machines_clock_in_summer_and_in_winter() {
        // Friday the 5th of June (UTC+2), Friday the 4th of December (UTC+1).
        for (at, expected) in [
            ("2026-06-05T05:59:59Z", None),
            ("2026-06-05T06:00:00Z", Some("2026-06-05T16:30:00Z")),
            ("2026-06-05T16:29:59Z", Some("2026-06-05T16:30:00Z")),
            ("2026-06-05T16:30:00Z", None),
            ("2026-12-04T06:59:59Z", None),
            ("2026-12-04T07:00:00Z", Some("2026-12-04T17:30:00Z")),
            ("2026-12-04T17:30:00Z", None),
            // Saturday, Sunday, Monday.
            ("2026-12-05T12:00:00Z", None),
            ("2026-12-06T12:00:00Z", None),
            ("2026-12-07T12:00:00Z", Some("2026-12-07T17:30:00Z")),
        ] {
            assert_eq!(end(OFFICE, at).as_deref(), expected, "{at}");
        }
    }

    #[test]
    fn one_that_ends_before_it_begins_goes_on_the_next_day() {
        let friday_night = "from = 22:00:00\nto = 06:00:00\nweekdays = ['Friday']";
        for (at, expected) in [
            ("2026-12-04T20:59:59Z", false),
            ("2026-12-04T21:00:00Z", true),
            ("2026-12-05T04:59:59Z", true),
            ("2026-12-05T05:00:00Z", false),
            ("2026-12-05T22:00:00Z", false),
            ("2026-12-04T02:00:00Z", false),
        ] {
            assert_eq!(holds_at(friday_night, at), expected, "{at}");
        }
        let sundays = "from = 00:00:00\nto = 00:00:00\nweekdays = ['Sunday']";
        assert_eq!(end(sundays, "2026-12-05T23:00:00Z").as_deref(), Some("2026-12-06T23:00:00Z"));
        assert_eq!(end(sundays, "2026-12-05T22:59:59Z"), None);
    }

    #[test]
    fn dates_include_the_last_day_and_dates_with_times_end_at_their_time() {
        let days = "from = 2026-12-20\nto = 2027-01-06";
        for (at, expected) in [
            ("2026-12-19T22:59:59Z", false),
            ("2026-12-19T23:00:00Z", true),
            ("2027-01-06T22:59:59Z", true),
            ("2027-01-06T23:00:00Z", false),
        ] {
            assert_eq!(holds_at(days, at), expected, "{at}");
        }
        let sale = "from = 2026-11-27T06:00:00\nto = 2026-11-30T23:00:00";
        assert!(!holds_at(sale, "2026-11-27T04:59:59Z") && holds_at(sale, "2026-11-27T05:00:00Z"));
        assert!(holds_at(sale, "2026-11-30T21:59:59Z") && !holds_at(sale, "2026-11-30T22:00:00Z"));
        assert!(holds_at("from = 2026-12-24\nto = 2026-12-24", "2026-12-24T12:00:00Z"), "one day");
    }

    /// The 29th of March: 02:00 +1 is followed by 03:00 +2. The 25th of October: 03:00 +2 is followed by 02:00 +1.
    #[test]
    fn where_the_clock_is_changed_the_longer_reading_counts() {
        for (text, first, end) in [
            // Neither is changed: it is an hour shorter, or longer.
            ("from = 01:00:00\nto = 04:00:00", "2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z"),
            ("from = 01:00:00\nto = 04:00:00", "2026-10-24T23:00:00Z", "2026-10-25T03:00:00Z"),
            // 02:30 does not exist.
            ("from = 02:30:00\nto = 05:00:00", "2026-03-29T00:30:00Z", "2026-03-29T03:00:00Z"),
            ("from = 00:30:00\nto = 02:30:00", "2026-03-28T23:30:00Z", "2026-03-29T01:30:00Z"),
            // 02:30 exists twice.
            ("from = 02:30:00\nto = 05:00:00", "2026-10-25T00:30:00Z", "2026-10-25T04:00:00Z"),
            ("from = 00:30:00\nto = 02:30:00", "2026-10-24T22:30:00Z", "2026-10-25T01:30:00Z"),
        ] {
            let freeze = freeze(text).unwrap();
            let (first, end): (Timestamp, Timestamp) = (first.parse().unwrap(), end.parse().unwrap());
            let ends = |at: Timestamp| freeze.end(at, &berlin());
            assert_eq!((ends(first - 1.second()), ends(end)), (None, None), "{text}");
            assert_eq!((ends(first), ends(end - 1.second())), (Some(end), Some(end)), "{text}");
        }
    }

    #[test]
    fn what_is_no_freeze_is_refused_by_its_field() {
        for (text, words) in [
            ("from = 08:00:00", "missing field `to`"),
            ("from = '08:00'\nto = 09:00:00", "from"),
            ("from = 08:00:00\nto = 2026-12-24", "both are dates"),
            ("from = 2026-12-24\nto = 2026-12-24T12:00:00", "both are dates"),
            ("from = 2026-12-24\nto = 2026-12-23", "to: must be later than from"),
            ("from = 2026-12-24T12:00:00\nto = 2026-12-24T12:00:00", "to: must be later than from"),
            ("from = 2026-12-24T12:00:00Z\nto = 2026-12-25T12:00:00Z", "from: 2026-12-24T12:00:00Z has an offset"),
            ("from = 2026-12-24\nto = 2026-12-25\nweekdays = ['Monday']", "weekdays: they are for times of day"),
            ("from = 08:00:00\nto = 09:00:00\nweekdays = ['Mon']", "unknown variant `Mon`"),
            ("from = 08:00:00\nto = 09:00:00\nname = 'x'", "unknown field `name`"),
            ("from = 2026-02-30\nto = 2026-03-01", "from"),
        ] {
            let error = freeze(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(freeze("from = 08:00\nto = 09:00").is_ok(), "TOML 1.1: without seconds");
    }
}
