//! Which refusals go into the audit: peers that repeat themselves, and peers that only want to fill the disk, do not.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::Budget;

/// The same refusal of the same object is told once in this time; a retired machine asks every minute for ever.
const SAME: Duration = Duration::from_hours(1);

/// Refusals remembered; beyond it some are told again.
const REMEMBERED: usize = 10_000;

/// Refusals told: so many at once, then one a second. The rest is in the metrics and the log.
const TOLD: (u32, Duration) = (200, Duration::from_secs(1));

/// What was told lately.
#[derive(Debug)]
pub struct Refusals {
    told: HashMap<(String, String, &'static str), Instant>,
    budget: Budget,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { told: HashMap::new(), budget: Budget::new(TOLD.0, TOLD.1) }
    }
}

impl Refusals {
    /// Whether this refusal goes into the audit.
    pub fn tell(&mut self, what: &str, object: &str, reason: &'static str, now: Instant) -> bool {
        let key = (what.to_owned(), object.to_owned(), reason);
        if self.told.get(&key).is_some_and(|at| now.duration_since(*at) < SAME) || !self.budget.try_spend(now) {
            return false;
        }
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_an_hour() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        assert!(refusals.tell("Session", "acme/web", "Retired", now));
        assert!(!refusals.tell("Session", "acme/web", "Retired", now));
        assert!(refusals.tell("Session", "acme/db", "Retired", now));
        assert!(refusals.tell("Session", "acme/web", "OtherKey", now));
        assert!(refusals.tell("Session", "acme/web", "Retired", now + SAME));
    }

    #[test]
    fn a_flood_is_cut() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        let told = (0..10_000).filter(|n| refusals.tell("Enroll", &n.to_string(), "TokenWrong", now)).count();
        assert_eq!(told, 200);
    }
}
