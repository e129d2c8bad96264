//! Calendar arithmetic against dateutil, cronsim and zoneinfo: see `window_vectors/generate.py`.
//!
//! All vectors; with [`step`] 7 every seventh, which is all kinds of schedules, each in a few zones.

use std::fs;
use std::path::Path;
use std::thread;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{Calendar, Cron, Schedule, Zone};
use patchwarden_plan::window::Moment;

const DURATION: SignedDuration = SignedDuration::from_mins(10);

// covers MW-7, EM-7
#[test]
fn occurrences_over_ten_years_are_those_of_dateutil_cronsim_and_zoneinfo() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/plan/window_vectors/vectors.txt");
    let text = fs::read_to_string(path).expect("the vectors can be read");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() >= 500, "only {} vectors", lines.len());
    let step = step(1);
    let halves = [0, step].map(|first| lines.iter().skip(first).step_by(2 * step));
    let occurrences: usize = thread::scope(|scope| {
        let threads: Vec<_> =
            halves.into_iter().map(|half| scope.spawn(|| half.map(|line| check(line)).sum::<usize>())).collect();
        threads.into_iter().map(|thread| thread.join().expect("the occurrences agree")).sum()
    });
    assert!(occurrences > 500_000 / step, "only {occurrences} occurrences");
}

/// Of what is tried of windows only one of so many is: as many as `WINDOW_VECTORS_STEP` says, or else `usual`.
pub fn step(usual: usize) -> usize {
    std::env::var("WINDOW_VECTORS_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(usual)
}

/// Checks one line; how many occurrences it has.
fn check(line: &str) -> usize {
    let [zone, schedule, first, minutes] = line.split(" | ").collect::<Vec<_>>()[..] else { panic!("{line}") };
    let tz = TimeZone::get(zone).expect("a time zone");
    let calendar = Calendar {
        zone: Zone::Fixed(tz.clone()),
        schedules: vec![parse(schedule)],
        duration: DURATION,
        cutoff: SignedDuration::ZERO,
        exclusions: vec![],
    };
    let mut expected: Timestamp = first.parse().expect("an instant");
    let mut after = expected - SignedDuration::from_nanos(1);
    let mut occurrences = 0;
    for delta in std::iter::once(0).chain(deltas(minutes)) {
        expected += SignedDuration::from_mins(delta);
        let opening = calendar.next_opening(&tz, after).expect("another occurrence");
        assert_eq!((opening.start, opening.end), (expected, expected + DURATION), "{zone}, {schedule}, after {after}");
        // Looking back from just before it.
        if schedule.starts_with("cron") {
            let before = expected - SignedDuration::from_nanos(1);
            let until = Some(after + DURATION).filter(|until| *until > before && occurrences > 0);
            let moment = until.map_or(Moment::Closed, |until| Moment::Open { until });
            assert_eq!(calendar.at(&tz, before), moment, "{zone}, {schedule}, before {expected}");
        }
        // Looking back from inside it and from outside: monthly ones suffice, the rest would only take time.
        if schedule.starts_with("monthly") {
            let last = expected + DURATION - SignedDuration::from_nanos(1);
            assert_eq!(calendar.at(&tz, expected), Moment::Open { until: expected + DURATION }, "{zone}, {schedule}");
            assert_eq!(calendar.at(&tz, last), Moment::Open { until: expected + DURATION }, "{zone}, {schedule}");
            assert_eq!(calendar.at(&tz, expected + DURATION), Moment::Closed, "{zone}, {schedule}");
        }
        after = opening.start;
        occurrences += 1;
    }
    occurrences
}

/// `1440x3 1380` is 1440, 1440, 1440, 1380.
fn deltas(text: &str) -> impl Iterator<Item = i64> {
    text.split_whitespace().flat_map(|run| {
        let (minutes, times) = run.split_once('x').unwrap_or((run, "1"));
        std::iter::repeat_n(minutes.parse().expect("minutes"), times.parse().expect("a number"))
    })
}

fn parse(schedule: &str) -> Schedule {
    if let Some(expression) = schedule.strip_prefix("cron ") {
        return Schedule::Cron(Cron::parse(expression).expect("a cron expression"));
    }
    let words: Vec<&str> = schedule.split(' ').collect();
    let time = |at: &str| at.parse::<Time>().expect("a time");
    match words[..] {
        ["monthly", week, day, offset, at] => Schedule::Monthly {
            week: week.parse().expect("a week"),
            weekday: weekday(day),
            offset_days: offset.parse().expect("days"),
            at: time(at),
        },
        ["weekly", days, at] => Schedule::Weekly { weekdays: days.split(',').map(weekday).collect(), at: time(at) },
        ["daily", at] => Schedule::Daily { at: time(at) },
        _ => panic!("{schedule}"),
    }
}

fn weekday(name: &str) -> Weekday {
    match name {
        "MO" => Weekday::Monday,
        "TU" => Weekday::Tuesday,
        "WE" => Weekday::Wednesday,
        "TH" => Weekday::Thursday,
        "FR" => Weekday::Friday,
        "SA" => Weekday::Saturday,
        "SU" => Weekday::Sunday,
        other => panic!("{other}"),
    }
}
