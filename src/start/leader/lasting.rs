//! What goes wrong again and again. A moment of it is usual; what lasts, somebody must see to.

use std::time::{Duration, Instant};

/// From the beginning to the first word.
const LASTS: Duration = Duration::from_secs(15);
/// From one word to the next.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Since when it goes on, and when that was said last.
#[derive(Debug)]
pub(super) struct Lasting {
    since: Instant,
    said: Option<Instant>,
}

impl Lasting {
    /// It goes wrong for the first time.
    pub(super) fn since(now: Instant) -> Lasting {
        Lasting { since: now, said: None }
    }

    /// It goes wrong once more: for how long it has done so, if that is to be said now.
    pub(super) fn is_due(&mut self, now: Instant) -> Option<Duration> {
        let lasts = now.saturating_duration_since(self.since);
        let due = lasts >= LASTS && self.said.is_none_or(|at| now.saturating_duration_since(at) >= SAY_EVERY);
        due.then(|| {
            self.said = Some(now);
            lasts
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_and_not_too_often() {
        let begun = Instant::now();
        let mut lasting = Lasting::since(begun);
        let mut due = |seconds| lasting.is_due(begun + Duration::from_secs(seconds)).map(|d| d.as_secs());
        assert_eq!([due(0), due(14), due(15), due(44), due(45)], [None, None, Some(15), None, Some(45)]);
    }
}
