//! What to ask when: what was learnt and how long it holds, backoff, and the budget. Pure: times are arguments.
//!
//! The budget of one pod, in datagrams to all servers together:
//!
//! * **At rest at most 12 a minute.** One question for the headless service's SRV records, which name all pods at once,
//!   every 15 s; every fourth time one for our own name as well: five to seven a minute with the jitter. Failures
//!   double the time between up to 60 s, as each may cost one datagram to each of up to three servers.
//! * **When somebody wants to know** (booting, joining, scaling): 20 at once, then one every 2 s. An answer is not asked
//!   for again while its TTL runs, a failure not before 0.1 s, doubling up to 10 s. Every time is jittered by a quarter,
//!   so that pods started together do not ask together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::answer::Answer;

/// How fast questions may follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// Between two looks at the service at rest.
    pub rest: Duration,
    /// The same at most, after failures.
    pub rest_max: Duration,
    /// Our own name is looked at with every so many looks at the service.
    pub own_every: u32,
    /// Before a failed question is asked again; doubled with each failure.
    pub retry: Duration,
    /// The same at most.
    pub retry_max: Duration,
    /// Questions that may be asked at once.
    pub burst: u32,
    /// Time in which one more is allowed.
    pub refill: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            rest: Duration::from_secs(15),
            rest_max: Duration::from_secs(60),
            own_every: 4,
            retry: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
            burst: 20,
            refill: Duration::from_secs(2),
        }
    }
}

impl Pace {
    /// The time to the next look at the service, after so many failures in a row. `jitter` is from 0 to 1.
    pub fn next_rest(&self, failures: u32, jitter: f64) -> Duration {
        spread(doubled(self.rest, failures, self.rest_max), jitter)
    }

    /// The time before a question that failed so many times in a row (at least once) is asked again.
    pub fn next_retry(&self, failures: u32, jitter: f64) -> Duration {
        spread(doubled(self.retry, failures.saturating_sub(1), self.retry_max), jitter)
    }

    /// All times multiplied by `factor`: for tests.
    pub fn scaled(&self, factor: f64) -> Pace {
        Pace {
            rest: self.rest.mul_f64(factor),
            rest_max: self.rest_max.mul_f64(factor),
            retry: self.retry.mul_f64(factor),
            retry_max: self.retry_max.mul_f64(factor),
            refill: self.refill.mul_f64(factor),
            ..*self
        }
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(most)
}

/// From three to five quarters of `time`.
fn spread(time: Duration, jitter: f64) -> Duration {
    time.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// What to do about a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Next<T> {
    /// The answer is known and still holds for the TTL in it.
    Known(Answer<T>),
    /// Ask. The budget has been charged.
    Ask,
    /// Not now: why, and from when on.
    Later {
        /// The first moment at which it may be asked.
        at: Instant,
        /// Why it is not known.
        why: String,
    },
}

/// Answers by question, and the budget.
#[derive(Clone, Debug)]
pub struct Memory<K, T> {
    pace: Pace,
    entries: BTreeMap<K, Entry<T>>,
    /// Questions that may be asked now. Below zero after questions that cost more than one datagram.
    tokens: f64,
    counted: Instant,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    answer: Answer<T>,
    at: Instant,
    failures: u32,
    not_before: Instant,
}

impl<K: Ord + Clone, T: Clone> Memory<K, T> {
    /// Nothing known, and the whole burst allowed.
    pub fn new(pace: Pace, now: Instant) -> Memory<K, T> {
        let tokens = f64::from(pace.burst);
        Memory { pace, entries: BTreeMap::new(), tokens, counted: now }
    }

    /// What to do about a question.
    pub fn next(&mut self, question: &K, now: Instant) -> Next<T> {
        self.refill(now);
        if let Some(answer) = self.holding(question, now) {
            return Next::Known(answer);
        }
        let entry = self.entries.get(question);
        let was = entry.map_or("not asked yet".to_owned(), |entry| match &entry.answer {
            Answer::Unknown(why) => why.clone(),
            Answer::Present { .. } => "the last answer's time is over".to_owned(),
            Answer::Absent { .. } => "the last answer (no such name) is no longer to be trusted".to_owned(),
        });
        if let Some(at) = entry.map(|e| e.not_before).filter(|at| *at > now) {
            return Next::Later { at, why: was };
        }
        if self.tokens < 1.0 {
            let wait = self.pace.refill.mul_f64(1.0 - self.tokens);
            return Next::Later { at: now + wait, why: format!("too many DNS queries for now; {was}") };
        }
        self.tokens -= 1.0;
        // Another caller does not ask the same while we do.
        let not_before = now + self.pace.retry;
        match self.entries.get_mut(question) {
            Some(entry) => entry.not_before = not_before,
            None => {
                let answer = Answer::Unknown("being asked".to_owned());
                self.entries.insert(question.clone(), Entry { answer, at: now, failures: 0, not_before });
            }
        }
        Next::Ask
    }

    /// Remembers an answer that took `sent` datagrams. `jitter` is from 0 to 1.
    pub fn learn(&mut self, question: &K, answer: Answer<T>, sent: u32, now: Instant, jitter: f64) {
        self.refill(now);
        // One was charged when the question was allowed. The debt is bounded, so that it is paid in bounded time.
        let least = -f64::from(self.pace.burst);
        self.tokens = (self.tokens - f64::from(sent.saturating_sub(1))).max(least);
        let failures = match &answer {
            Answer::Unknown(_) => self.entries.get(question).map_or(0, |e| e.failures).saturating_add(1),
            _ => 0,
        };
        let not_before = now + self.pace.next_retry(failures, jitter);
        self.entries.insert(question.clone(), Entry { answer, at: now, failures, not_before });
    }

    /// Lets an absence be asked for again although it still holds: for who waits for a record to appear.
    pub fn doubt(&mut self, question: &K) {
        if let Some(entry) = self.entries.get_mut(question)
            && matches!(entry.answer, Answer::Absent { .. })
        {
            entry.answer = Answer::Absent { ttl: Duration::ZERO };
        }
    }

    /// The same for a record that does not say what is waited for.
    pub fn doubt_unless(&mut self, question: &K, says: impl Fn(&T) -> bool) {
        if let Some(Entry { answer: Answer::Present { value, ttl }, .. }) = self.entries.get_mut(question)
            && !says(value)
        {
            *ttl = Duration::ZERO;
        }
    }

    /// Charges datagrams that were sent without asking [`Memory::next`].
    pub fn charge(&mut self, sent: u32, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens - f64::from(sent)).max(-f64::from(self.pace.burst));
    }

    /// An answer that still holds, with what is left of its TTL.
    pub fn holding(&self, question: &K, now: Instant) -> Option<Answer<T>> {
        let entry = self.entries.get(question)?;
        let left = entry.answer.ttl()?.checked_sub(now.saturating_duration_since(entry.at))?;
        match &entry.answer {
            _ if left.is_zero() => None,
            Answer::Present { value, .. } => Some(Answer::Present { value: value.clone(), ttl: left }),
            Answer::Absent { .. } => Some(Answer::Absent { ttl: left }),
            Answer::Unknown(_) => None,
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        self.tokens = (self.tokens + passed.div_duration_f64(self.pace.refill)).min(f64::from(self.pace.burst));
        self.counted = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn memory() -> (Memory<u32, u8>, Instant) {
        let now = Instant::now();
        (Memory::new(Pace::default(), now), now)
    }

    fn later(next: Next<u8>) -> (Instant, String) {
        match next {
            Next::Later { at, why } => (at, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_holds_for_its_ttl_and_no_longer() {
        let (mut memory, now) = memory();
        for (question, answer) in
            [(1, Answer::Present { value: 7, ttl: ms(5000) }), (2, Answer::Absent { ttl: ms(5000) })]
        {
            assert_eq!(memory.next(&question, now), Next::Ask);
            memory.learn(&question, answer, 1, now, 0.5);
            let left = |next| match next {
                Next::Known(answer) => answer.ttl(),
                _ => None,
            };
            assert_eq!(left(memory.next(&question, now)), Some(ms(5000)));
            assert_eq!(left(memory.next(&question, now + ms(4999))), Some(ms(1)));
            assert_eq!(memory.next(&question, now + ms(5000)), Next::Ask);
        }
    }

    #[test]
    fn an_absence_is_never_trusted_past_its_ttl_even_if_nothing_can_be_asked() {
        let (mut memory, now) = memory();
        assert_eq!(memory.next(&1, now), Next::Ask);
        memory.learn(&1, Answer::Absent { ttl: ms(1000) }, 1, now, 0.5);
        memory.charge(100, now + ms(999));
        let (_, why) = later(memory.next(&1, now + ms(1000)));
        assert!(why.contains("too many DNS queries") && why.contains("no longer to be trusted"), "{why}");
    }

    #[test]
    fn a_zero_ttl_holds_for_nobody_else_and_makes_no_storm() {
        let (mut memory, now) = memory();
        assert_eq!(memory.next(&1, now), Next::Ask);
        memory.learn(&1, Answer::Absent { ttl: ms(0) }, 1, now, 0.5);
        let (at, _) = later(memory.next(&1, now));
        assert_eq!(at, now + ms(100));
        assert_eq!(memory.next(&1, at), Next::Ask);
    }

    #[test]
    fn failures_back_off_and_success_ends_that() {
        let (mut memory, mut now) = memory();
        let mut waits = vec![];
        for _ in 0..8 {
            assert_eq!(memory.next(&1, now), Next::Ask);
            memory.learn(&1, Answer::Unknown("SERVFAIL".into()), 1, now, 0.5);
            let (at, why) = later(memory.next(&1, now));
            assert_eq!(why, "SERVFAIL");
            waits.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000]);
        assert_eq!(memory.next(&1, now), Next::Ask);
        memory.learn(&1, Answer::Present { value: 1, ttl: ms(0) }, 1, now, 0.5);
        let (at, _) = later(memory.next(&1, now));
        assert_eq!(at - now, ms(100));
    }

    #[test]
    fn who_waits_for_a_record_asks_before_its_absence_is_over_but_no_faster_than_others() {
        let (mut memory, now) = memory();
        for question in [1, 2] {
            assert_eq!(memory.next(&question, now), Next::Ask);
        }
        memory.learn(&1, Answer::Absent { ttl: ms(30_000) }, 1, now, 0.5);
        memory.learn(&2, Answer::Present { value: 1, ttl: ms(30_000) }, 1, now, 0.5);
        memory.doubt(&1);
        memory.doubt(&2);
        assert!(matches!(memory.next(&1, now), Next::Later { .. }));
        assert_eq!(memory.next(&1, now + ms(100)), Next::Ask);
        assert!(matches!(memory.next(&2, now + ms(100)), Next::Known(_)), "what is there is not doubted");
    }

    #[test]
    fn an_answer_that_lacks_what_is_waited_for_is_asked_for_again_and_no_faster_than_others() {
        let (mut memory, now) = memory();
        assert_eq!(memory.next(&1, now), Next::Ask);
        memory.learn(&1, Answer::Present { value: 7, ttl: ms(30_000) }, 1, now, 0.5);
        memory.doubt_unless(&1, |value| *value == 7);
        assert!(matches!(memory.next(&1, now), Next::Known(_)));
        memory.doubt_unless(&1, |value| *value == 8);
        assert_eq!(later(memory.next(&1, now)).0, now + ms(100));
        assert_eq!(memory.next(&1, now + ms(100)), Next::Ask);
    }

    #[test]
    fn two_callers_ask_once() {
        let (mut memory, now) = memory();
        assert_eq!(memory.next(&1, now), Next::Ask);
        assert!(matches!(memory.next(&1, now), Next::Later { .. }));
        assert_eq!(memory.next(&2, now), Next::Ask);
    }

    #[test]
    fn rest_fits_the_budget_with_the_worst_jitter() {
        let pace = Pace::default();
        let a_minute = |seconds: f64, each: f64| 60.0 / seconds * each;
        let quickest = pace.next_rest(0, 0.0).as_secs_f64();
        assert!(a_minute(quickest, 1.0 + 1.0 / f64::from(pace.own_every)) <= 7.0);
        // Three servers that do not answer: the first minute, and every later one.
        let failing: Vec<f64> = (1..6).map(|n| pace.next_rest(n, 0.0).as_secs_f64()).collect();
        assert_eq!(failing, [22.5, 45.0, 45.0, 45.0, 45.0]);
        assert!(a_minute(failing[1], 3.0 * (1.0 + 1.0 / f64::from(pace.own_every))) <= 12.0);
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        for (jitter, want) in [(0.0, 750), (0.5, 1000), (1.0, 1250), (-3.0, 750), (9.0, 1250)] {
            assert_eq!(spread(ms(1000), jitter), ms(want));
        }
    }

    proptest! {
        /// However eagerly many names are asked for, and however they answer, the budget holds over any time.
        #[test]
        fn no_caller_makes_a_storm(
            steps in proptest::collection::vec((0u64..400, 0u32..10, 0u8..4, 0.0f64..1.0, 1u32..4), 1..600),
        ) {
            let start = Instant::now();
            let pace = Pace::default();
            let mut memory: Memory<u32, u8> = Memory::new(pace.clone(), start);
            let (mut now, mut sent) = (start, 0);
            for (wait, question, kind, jitter, cost) in steps {
                now += ms(wait);
                if memory.next(&question, now) == Next::Ask {
                    sent += cost;
                    let answer = match kind {
                        0 => Answer::Present { value: 0, ttl: ms(0) },
                        1 => Answer::Absent { ttl: ms(0) },
                        2 => Answer::Absent { ttl: ms(5000) },
                        _ => Answer::Unknown("x".into()),
                    };
                    memory.learn(&question, answer, cost, now, jitter);
                }
                let allowed = f64::from(pace.burst) + (now - start).div_duration_f64(pace.refill);
                // The last question may have cost two datagrams more than were left.
                prop_assert!(f64::from(sent) <= allowed + 3.0, "{sent} sent, {allowed} allowed");
            }
        }
    }
}
