//! A pod's process, as a kubelet looks after it: started again in its place when it ends by itself, whatever its exit code
//! (`restartPolicy: Always`), and ended when its liveness fails. Pure: state and event to what is to be done; `now` is the
//! time since the box came up.
//!
//! Pods that are told to end, or killed by the box as if their node had lost them, are over with their process: whether
//! there is to be another pod is the controller's affair.

use std::time::Duration;

/// What runs for so long after failures has recovered.
pub const RECOVERED_AFTER: Duration = Duration::from_secs(30);

/// How long to wait after so many failures in a row, between the first wait and the longest.
pub fn pause(failures: u32, (first, most): (Duration, Duration)) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(most)
}

/// The process of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// How often it was started again.
    pub restarts: u32,
    state: State,
    /// It was told to end: it is not started again.
    told: bool,
    failures: u32,
    grace: Duration,
    backoff: (Duration, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It runs, since then.
    Runs(Duration),
    /// Its liveness has failed: it was sent SIGTERM, and has until then; `None`: SIGKILL too.
    Stopping { since: Duration, until: Option<Duration> },
    /// It has ended, and is started again then: `CrashLoopBackOff`.
    Waits(Duration),
}

/// What is due by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Start it again.
    Start,
    /// SIGKILL: its grace is over.
    Kill,
}

impl Container {
    /// One that has just been started.
    pub fn new(now: Duration, grace: Duration, backoff: (Duration, Duration)) -> Container {
        Container { restarts: 0, state: State::Runs(now), told: false, failures: 0, grace, backoff }
    }

    /// Whether there is a process.
    pub fn runs(&self) -> bool {
        !matches!(self.state, State::Waits(_))
    }

    /// The pod is to end. `true`: there is no process that could, so it is over.
    pub fn tell(&mut self) -> bool {
        self.told = true;
        !self.runs()
    }

    /// The process has ended. `true`: the pod is over.
    pub fn ended(&mut self, now: Duration) -> bool {
        if let State::Runs(since) | State::Stopping { since, .. } = self.state {
            let recovered = now.saturating_sub(since) >= RECOVERED_AFTER;
            self.failures = if recovered { 1 } else { self.failures.saturating_add(1) };
            self.state = State::Waits(now + pause(self.failures, self.backoff));
        }
        self.told
    }

    /// Its liveness has failed too often. `true`: it is to be sent SIGTERM.
    pub fn not_live(&mut self, now: Duration) -> bool {
        match self.state {
            State::Runs(since) if !self.told => {
                self.state = State::Stopping { since, until: Some(now + self.grace) };
                true
            }
            _ => false,
        }
    }

    /// What is due now. Each is given once.
    pub fn due(&mut self, now: Duration) -> Option<Due> {
        match self.state {
            State::Waits(until) if !self.told && now >= until => {
                self.restarts += 1;
                self.state = State::Runs(now);
                Some(Due::Start)
            }
            State::Stopping { since, until: Some(until) } if now >= until => {
                self.state = State::Stopping { since, until: None };
                Some(Due::Kill)
            }
            _ => None,
        }
    }

    /// When something is next due.
    pub fn next_due(&self) -> Option<Duration> {
        match self.state {
            State::Waits(until) if !self.told => Some(until),
            State::Stopping { until, .. } => until,
            State::Waits(_) | State::Runs(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn container() -> Container {
        Container::new(s(0), s(10), (s(1), s(8)))
    }

    #[test]
    fn what_ends_by_itself_is_started_again_after_a_growing_while() {
        let mut container = container();
        let mut now = s(5);
        for (restarts, wait) in (1..).zip([1, 2, 4, 8, 8]) {
            assert!(!container.ended(now) && !container.runs());
            assert_eq!(container.next_due(), Some(now + s(wait)));
            assert_eq!(container.due(now + s(wait) - Duration::from_millis(1)), None);
            now += s(wait);
            assert_eq!((container.due(now), container.restarts), (Some(Due::Start), restarts));
            assert!(container.runs());
            assert_eq!((container.due(now), container.next_due()), (None, None));
        }
        now += RECOVERED_AFTER;
        assert!(!container.ended(now));
        assert_eq!(container.next_due(), Some(now + s(1)), "it had recovered");
    }

    #[test]
    fn a_pod_that_is_told_to_end_is_over_with_its_process() {
        let mut container = container();
        assert!(!container.tell(), "its process is to end");
        assert!(container.ended(s(1)));
        assert_eq!((container.due(s(100)), container.next_due()), (None, None));
    }

    #[test]
    fn a_pod_that_is_told_to_end_while_it_waits_is_over_at_once() {
        let mut container = container();
        assert!(!container.ended(s(1)));
        assert!(container.tell());
        assert_eq!((container.due(s(100)), container.next_due()), (None, None));
    }

    #[test]
    fn what_is_not_live_has_its_grace_and_is_started_again() {
        let mut container = container();
        assert!(container.not_live(s(2)));
        assert!(!container.not_live(s(3)), "once");
        assert_eq!((container.due(s(11)), container.next_due()), (None, Some(s(12))));
        assert_eq!((container.due(s(12)), container.due(s(13))), (Some(Due::Kill), None));
        assert!(!container.ended(s(13)));
        assert_eq!(container.due(s(14)), Some(Due::Start));
    }

    #[test]
    fn whoever_ends_is_not_asked_whether_it_lives() {
        let mut container = container();
        container.tell();
        assert!(!container.not_live(s(2)));
    }
}
