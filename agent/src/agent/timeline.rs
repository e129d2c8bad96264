//! When an order came into its phases, for its result: whoever reads it sees what took its time.

use std::cell::RefCell;
use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{MAX_PHASES, PhaseTime};
use tokio::time::Instant;

use crate::journal::Active;

/// The phases of the order at work.
#[derive(Debug, Default)]
pub(crate) struct Timeline(RefCell<Option<Begun>>);

#[derive(Debug)]
struct Begun {
    /// Digest of the order.
    digest: String,
    /// This process has it since then.
    since: Instant,
    /// How long it was accepted before.
    before: Duration,
    phases: Vec<PhaseTime>,
}

impl Timeline {
    /// An order is accepted now.
    pub(crate) fn begin(&self, digest: &str, since: Instant) {
        self.replace(digest, since, Duration::ZERO, Vec::new());
    }

    /// An order goes on. Of what was before this process there is only what the journal has, by the clock.
    pub(crate) fn take_up(&self, active: &Active, now: Timestamp, since: Instant) {
        let Active { accepted, started, guarded: _, restarting, rolling_back: _ } = active;
        if self.0.borrow().as_ref().is_some_and(|begun| begun.digest == accepted.digest) {
            return;
        }
        let after = |at: Timestamp| Duration::try_from(at.duration_since(accepted.at)).unwrap_or_default();
        let known = [
            Some((Phase::Verified, Duration::ZERO)),
            started.as_ref().map(|started| (Phase::Installing, after(started.since()))),
            restarting.as_ref().map(|restarting| (Phase::Restarting, after(restarting.at))),
        ];
        let phases = known.into_iter().flatten().map(|(phase, after)| phase_time(phase, after)).collect();
        self.replace(&accepted.digest, since, after(now), phases);
    }

    /// It comes into a phase, if it is not in it.
    pub(crate) fn note(&self, digest: &str, phase: Phase, now: Instant) {
        let mut begun = self.0.borrow_mut();
        let Some(begun) = begun.as_mut().filter(|begun| begun.digest == digest) else { return };
        let is_in_it = begun.phases.last().is_some_and(|last| last.phase == phase.as_str());
        if !is_in_it && begun.phases.len() < MAX_PHASES {
            let after = begun.before.saturating_add(now.duration_since(begun.since));
            // Where the clock was set back nothing was before what is known to have been.
            let last = begun.phases.last().map_or(0, |last| last.after_millis);
            let time = phase_time(phase, after);
            begun.phases.push(PhaseTime { after_millis: time.after_millis.max(last), ..time });
        }
    }

    /// The phases of an order.
    pub(crate) fn of(&self, digest: &str) -> Vec<PhaseTime> {
        let begun = self.0.borrow();
        begun.as_ref().filter(|begun| begun.digest == digest).map(|begun| begun.phases.clone()).unwrap_or_default()
    }

    fn replace(&self, digest: &str, since: Instant, before: Duration, phases: Vec<PhaseTime>) {
        self.0.replace(Some(Begun { digest: digest.to_owned(), since, before, phases }));
    }
}

fn phase_time(phase: Phase, after: Duration) -> PhaseTime {
    let after_millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    PhaseTime { phase: phase.as_str().to_owned(), after_millis }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;
    use crate::journal::tests::accepted;

    fn phases(timeline: &Timeline, digest: &str) -> Vec<(String, u64)> {
        timeline.of(digest).into_iter().map(|time| (time.phase, time.after_millis)).collect()
    }

    #[test]
    fn a_phase_begins_once_and_its_time_is_measured() {
        let (timeline, began) = (Timeline::default(), Instant::now());
        let note = |digest: &str, phase, millis| timeline.note(digest, phase, began + Duration::from_millis(millis));
        note("d", Phase::Delivered, 0);
        assert_eq!(phases(&timeline, "d"), [], "it was not accepted");
        timeline.begin("d", began);
        note("d", Phase::Verified, 0);
        note("d", Phase::Simulated, 1500);
        note("d", Phase::Simulated, 2000);
        note("other", Phase::Installing, 2000);
        note("d", Phase::Downloaded, 2000);
        let expected = [("Verified".to_owned(), 0), ("Simulated".to_owned(), 1500), ("Downloaded".to_owned(), 2000)];
        assert_eq!(phases(&timeline, "d"), expected);
        for _ in 0..MAX_PHASES {
            note("d", Phase::Guarding, 3000);
            note("d", Phase::Granted, 3000);
        }
        assert_eq!(timeline.of("d").len(), MAX_PHASES);
    }

    #[test]
    fn what_was_before_a_crash_is_known_by_the_journal() {
        let Record::Accepted(accepted) = accepted(1) else { panic!("another record") };
        let (at, digest) = (accepted.at, accepted.digest.clone());
        let (timeline, active, began) = (Timeline::default(), Active::new(*accepted), Instant::now());
        timeline.take_up(&active, at + Duration::from_mins(1), began);
        timeline.note(&digest, Phase::Checking, began + Duration::from_secs(1));
        let expected = [("Verified".to_owned(), 0), ("Checking".to_owned(), 61_000)];
        assert_eq!(phases(&timeline, &digest), expected);
        // It is in the same process: nothing begins anew.
        timeline.take_up(&active, at + Duration::from_mins(10), began);
        assert_eq!(phases(&timeline, &digest), expected);
        // The clock was set back meanwhile.
        let timeline = Timeline::default();
        timeline.take_up(&active, at - Duration::from_mins(1), began);
        timeline.note(&digest, Phase::Checking, began);
        assert_eq!(phases(&timeline, &digest), [("Verified".to_owned(), 0), ("Checking".to_owned(), 0)]);
    }
}
