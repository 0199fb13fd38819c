//! How long to wait before a child that ended is started again.

use std::time::Duration;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait.
const CAP: Duration = Duration::from_secs(30);

/// A child that was ready for this long is taken for healthy: its next failure counts as the first.
pub const HEALTHY: Duration = Duration::from_secs(60);

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes a failure of a child that had been ready for `ready_for`, and says how long to wait.
    pub fn failed(&mut self, ready_for: Duration) -> Duration {
        if ready_for >= HEALTHY {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Failures in a row so far.
    pub fn failures(self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_anew_after_health() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.failed(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.failed(HEALTHY - Duration::from_millis(1)), CAP);
        assert_eq!(backoff.failed(HEALTHY), FIRST);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn it_never_overflows() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.failed(Duration::ZERO), CAP);
        assert_eq!(backoff.failures(), u32::MAX);
    }
}
