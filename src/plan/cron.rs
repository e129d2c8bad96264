//! Cron expressions: the five fields of crontab(5), on local dates and times.
//!
//! In: a text, or a local time. Out: an expression, or the next or last local time that it names. The crate croner
//! reads the fields and searches; what is accepted is decided here, and it is less than croner knows: only what every
//! cron in use reads in the same way. Zones are not its business: see `window`.
//!
//! ```text
//! 30 2 * * 1-5   minute 0-59, hour 0-23, day of the month 1-31, month 1-12 or JAN-DEC, day of the week 0-7 or SUN-SAT
//! *  a  a-b      all, one, from one to another                                (0 and 7 are both Sunday)
//! */n  a-b/n     every nth of them, from the first on
//! x,y            any of these
//! ```
//!
//! - Where both the day of the month and the day of the week are restricted, a day counts that is named by either.
//! - `*/n` for one of these two beside a restriction of the other is refused: Vixie's cron takes it for a star and asks
//!   for both, others take it for a restriction and ask for either. So is `a/n`: the end is a matter of opinion.
//! - What is accepted recurs within eight years (29 February around 1900 or 2100): a day that no month has is refused.
//!   The only horizon is croner's, the year 5000.

use std::fmt;
use std::sync::Arc;

use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{Date, DateTime};

use super::model::Invalid;

/// The longest text, in characters.
pub const MAX_CHARS: usize = 256;

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A year that has every day that any year has.
const LEAP_YEAR: i16 = 2000;

/// An expression that was read and names at least one day in eight years.
#[derive(Clone, PartialEq, Eq)]
pub struct Cron(Arc<croner::Cron>);

impl Cron {
    /// Reads `text`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.chars().count() > MAX_CHARS {
            return Err(Invalid(format!("longer than {MAX_CHARS} characters")));
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [_, _, day, _, weekday] = fields[..] else {
            let what = "minute, hour, day of the month, month and day of the week";
            return Err(Invalid(format!("{} fields where there should be five: {what}", fields.len())));
        };
        for (field, names) in fields.iter().zip([&[][..], &[], &[], &MONTHS, &WEEKDAYS]) {
            if let Some(item) = field.split(',').find(|item| !is_plain(item, names)) {
                return Err(Invalid(format!("`{item}` in `{field}` is none of *, a, a-b, */n and a-b/n")));
            }
        }
        for (one, other) in [(day, weekday), (weekday, day)] {
            if one.contains('*') && one != "*" && other != "*" {
                return Err(Invalid(format!(
                    "`{one}` for one of day of the month and day of the week beside `{other}` for the other is read in \
                     two ways by the crons in use: list the days"
                )));
            }
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = Self(Arc::new(parser.parse(text).map_err(|error| Invalid(error.to_string()))?));
        if cron.names_no_day() {
            return Err(Invalid(format!("no month of those that it names has a day {day}")));
        }
        Ok(cron)
    }

    /// The first local time after `after`.
    pub(super) fn next(&self, after: DateTime) -> Option<DateTime> {
        self.0.find_next_occurrence(&after, false).ok()
    }

    /// The last local time at or before `until`.
    pub(super) fn last(&self, until: DateTime) -> Option<DateTime> {
        self.0.find_previous_occurrence(&until, true).ok()
    }

    /// Whether only the day of the month counts, and no month that counts has one of those.
    fn names_no_day(&self) -> bool {
        let pattern = &self.0.pattern;
        let days_in = |month: u16| {
            let first = i8::try_from(month).ok().and_then(|month| Date::new(LEAP_YEAR, month, 1).ok());
            first.map_or(0, |first| first.days_in_month().unsigned_abs())
        };
        let longest = pattern.months.values().into_iter().map(days_in).max().unwrap_or_default();
        pattern.is_dow_wildcard() && pattern.days.values().into_iter().all(|day| day > longest.into())
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cron").field(&self.0.as_str()).finish()
    }
}

/// Whether it is one of the forms that all crons know, with no names but these. Whether its numbers are within bounds
/// is for the parser to say, which would take any name for a number in any field.
fn is_plain(item: &str, names: &[&str]) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = |text: &str| is_number(text) || names.iter().any(|name| name.eq_ignore_ascii_case(text));
    let span = |text: &str| text.split_once('-').is_some_and(|(first, last)| value(first) && value(last));
    match item.split_once('/') {
        Some((of, step)) => (of == "*" || span(of)) && is_number(step),
        None => item == "*" || value(item) || span(item),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_cron_reads_in_the_same_way_is_read() {
        for text in [
            "* * * * *",
            "30 2 * * 1-5",
            "0,15-45/15,59 */6 1-7,15 JAN-mar,10 *",
            " 0  0 29 2 * ",
            "0 0 31 2 MON",
            "0 0 */2 * *",
            "0 0 * * */2",
            "0 0 31 1,2 *",
            "0 0 * * FRI-SUN",
            "0 0 * * 0,7",
        ] {
            assert!(Cron::parse(text).is_ok(), "{text}: {:?}", Cron::parse(text));
        }
    }

    #[test]
    fn anything_else_is_refused_and_says_why() {
        for (text, why) in [
            ("", "0 fields where there should be five"),
            ("@daily", "1 fields where there should be five"),
            ("0 30 2 * * 1-5", "6 fields where there should be five"),
            ("60 * * * *", "bounds"),
            ("* 24 * * *", "bounds"),
            ("* * 0 * *", "bounds"),
            ("* * 32 * *", "bounds"),
            ("* * * 13 *", "bounds"),
            ("* * * 0 *", "bounds"),
            ("* * * * 8", "bounds"),
            ("30-10 * * * *", "bounds"),
            ("* * * * SAT-MON", "bounds"),
            ("*/0 * * * *", "zero"),
            ("99999999999 * * * *", "number"),
            ("MON * * * *", "`MON` in `MON` is none of"),
            ("* * 1-FRI * *", "`1-FRI` in `1-FRI` is none of"),
            ("* * * MON *", "`MON` in `MON` is none of"),
            ("* * * * 1,JAN", "`JAN` in `1,JAN` is none of"),
            ("* * * * MONDAY", "`MONDAY` in `MONDAY` is none of"),
            ("0 0 L * *", "`L` in `L` is none of"),
            ("0 0 15W * *", "is none of"),
            ("0 0 * * 5L", "is none of"),
            ("0 0 * * 5#2", "is none of"),
            ("0 0 ? * 1", "is none of"),
            ("0 0 * * +1", "is none of"),
            ("H * * * *", "is none of"),
            ("5/15 * * * *", "is none of"),
            ("/15 * * * *", "is none of"),
            ("1,,2 * * * *", "`` in `1,,2` is none of"),
            ("1, * * * *", "`` in `1,` is none of"),
            ("1-2-3 * * * *", "is none of"),
            ("-5 * * * *", "is none of"),
            ("1-*/2 * * * *", "is none of"),
            ("*/5/5 * * * *", "is none of"),
            ("*/ * * * *", "is none of"),
            ("*/MON * * * *", "is none of"),
            ("*/99999 * * * *", "step"),
            ("\u{ff11} * * * *", "is none of"),
            ("0 0 */2 * MON", "`*/2` for one of"),
            ("0 0 13 * */2", "`*/2` for one of"),
            ("0 0 *,13 * MON", "`*,13` for one of"),
            ("0 0 31 2 *", "has a day 31"),
            ("0 0 31 4,6,9,11 *", "has a day 31"),
            ("0 0 30-31 FEB *", "has a day 30-31"),
        ] {
            let Invalid(refusal) = Cron::parse(text).expect_err(text);
            assert!(refusal.to_lowercase().contains(&why.to_lowercase()), "{text}: \"{why}\" is not in: {refusal}");
        }
        assert!(Cron::parse(&format!("{}0 * * * *", "0,".repeat(130))).is_err());
        assert!(Cron::parse(&format!("{:>MAX_CHARS$}", "0 * * * *")).is_ok());
        assert!(Cron::parse(&format!("{:>1$}", "0 * * * *", MAX_CHARS + 1)).is_err());
    }

    #[test]
    fn the_search_is_strict_ahead_and_not_behind_and_ends_with_the_calendar() {
        let cron = Cron::parse("0 0 29 2 *").unwrap();
        let at = |text: &str| text.parse::<DateTime>().unwrap();
        let leap_day = at("2104-02-29T00:00");
        assert_eq!(cron.next(at("2096-02-29T00:00")), Some(leap_day));
        assert_eq!(cron.next(at("2104-02-28T23:59:59.999999999")), Some(leap_day));
        assert_eq!(cron.last(leap_day), Some(leap_day));
        assert_eq!(cron.last(at("2104-02-29T00:00:00.000000001")), Some(leap_day));
        assert_eq!(cron.last(at("2104-02-28T23:59:59.999999999")), Some(at("2096-02-29T00:00")));
        assert_eq!((cron.next(DateTime::MAX), cron.last(DateTime::MIN)), (None, None));
    }
}
