//! A token bucket: so many at once, so many a second after that.

use std::time::Duration;

use tokio::time::Instant;

/// What may still be spent.
#[derive(Clone, Debug)]
pub struct Budget {
    burst: u32,
    every: Duration,
    /// When the bucket will be full again.
    full_at: Instant,
}

impl Budget {
    /// `burst` at once, then one `every`.
    pub fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, full_at: Instant::now() }
    }

    /// Spends one, also when there is none. The time from which one is there again.
    pub fn spend(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + self.every;
        self.full_at.checked_sub(self.every * self.burst).unwrap_or(now).max(now)
    }

    /// Spends one if there is one.
    pub fn try_spend(&mut self, now: Instant) -> bool {
        let available = self.full_at.max(now) + self.every <= now + self.every * self.burst;
        if available {
            self.spend(now);
        }
        available
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_at_a_time() {
        let second = Duration::from_secs(1);
        let mut budget = Budget::new(3, second);
        let now = Instant::now();
        assert!((0..3).all(|_| budget.try_spend(now)));
        assert!(!budget.try_spend(now));
        assert!(budget.try_spend(now + second));
        assert!(!budget.try_spend(now + second));
        assert!((0..3).all(|_| budget.try_spend(now + 10 * second)));
    }

    #[test]
    fn overspending_says_how_long_to_wait() {
        let second = Duration::from_secs(1);
        let mut budget = Budget::new(2, second);
        let now = Instant::now();
        assert_eq!(budget.spend(now), now);
        assert_eq!(budget.spend(now), now);
        assert_eq!(budget.spend(now), now + second);
    }
}
