//! The StatefulSet controller: which pod is started and ended when. Pure: state and event to actions; `now` is the time
//! since the box came up.
//!
//! The rules are those of Kubernetes (pkg/controller/statefulset/stateful_set_control.go): desired pods first, from the
//! lowest ordinal, and under `OrderedReady` each only when all before it are ready; then pods that are no longer desired,
//! from the highest; then, whatever the policy, one pod of an old revision at a time, from the highest, once all above it
//! are ready. A pod that is not ready therefore also stops scaling down under `OrderedReady`, and a rolling update under
//! either policy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::container::{RECOVERED_AFTER, pause};
use super::protocol::Policy;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// Desired replicas.
    Scale(u32),
    /// The pod template has changed.
    Roll,
    /// A pod is to be deleted.
    Delete(u32),
    /// A pod is to be killed, as if its node had lost it.
    Kill(u32),
    /// A pod's volume is lost.
    LoseVolume(u32),
    /// A pod's readiness.
    Ready {
        /// Which pod.
        ordinal: u32,
        /// Which of its incarnations.
        incarnation: u64,
        /// Whether it is ready.
        ready: bool,
    },
    /// A pod is over: its process has ended, and is not started again in its place.
    Exited {
        /// Which pod.
        ordinal: u32,
        /// Which of its incarnations.
        incarnation: u64,
    },
    /// The StatefulSet is deleted.
    Down,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a pod with a new address, on its volume.
    Start {
        /// Which pod.
        ordinal: u32,
        /// Its incarnation.
        incarnation: u64,
        /// The revision of its template.
        revision: u64,
    },
    /// SIGTERM.
    Terminate(u32),
    /// SIGKILL.
    Kill(u32),
    /// Take its volume away; it does not run.
    LoseVolume(u32),
}

/// A pod that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Counts all pods that were started.
    pub incarnation: u64,
    /// The revision of its template.
    pub revision: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// When it was started.
    pub since: Duration,
    /// When it was told to end.
    pub terminating: Option<Duration>,
    /// SIGKILL was sent.
    pub killed: bool,
}

impl Pod {
    fn healthy(&self) -> bool {
        self.ready && self.terminating.is_none()
    }
}

/// Failures in a row of the pods of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// No replacement before.
    pub until: Duration,
}

/// A StatefulSet and its pods.
#[derive(Clone, Debug)]
pub struct StatefulSet {
    /// `podManagementPolicy`.
    pub policy: Policy,
    /// Desired replicas.
    pub replicas: u32,
    /// The revision to which pods are updated.
    pub revision: u64,
    /// The revision that they had when they were last all alike.
    pub current: u64,
    /// Pods by ordinal.
    pub pods: BTreeMap<u32, Pod>,
    /// Failures by ordinal.
    pub failures: BTreeMap<u32, Failures>,
    grace: Duration,
    backoff: (Duration, Duration),
    lost: BTreeSet<u32>,
    incarnations: u64,
    down: bool,
}

impl StatefulSet {
    /// One without pods.
    pub fn new(policy: Policy, replicas: u32, grace: Duration, backoff: (Duration, Duration)) -> StatefulSet {
        StatefulSet {
            policy,
            replicas,
            revision: 1,
            current: 1,
            pods: BTreeMap::new(),
            failures: BTreeMap::new(),
            grace,
            backoff,
            lost: BTreeSet::new(),
            incarnations: 0,
            down: false,
        }
    }

    /// Takes an event in and says what is to be done.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Scale(replicas) => self.replicas = replicas,
            Event::Roll => self.revision += 1,
            Event::Delete(ordinal) => self.terminate(ordinal, now, &mut actions),
            Event::Kill(ordinal) => self.kill(ordinal, &mut actions),
            Event::LoseVolume(ordinal) => {
                if self.pods.contains_key(&ordinal) {
                    self.lost.insert(ordinal);
                    self.kill(ordinal, &mut actions);
                } else {
                    actions.push(Action::LoseVolume(ordinal));
                }
            }
            Event::Ready { ordinal, incarnation, ready } => {
                if let Some(pod) = self.pods.get_mut(&ordinal).filter(|pod| pod.incarnation == incarnation) {
                    pod.ready = ready;
                }
            }
            Event::Exited { ordinal, incarnation } => self.exited(ordinal, incarnation, now, &mut actions),
            Event::Down => self.down = true,
        }
        self.reconcile(now, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is next needed.
    pub fn next_tick(&self) -> Option<Duration> {
        let graces = self.pods.values().filter(|p| !p.killed).filter_map(|p| Some(p.terminating? + self.grace));
        let waits = (0..self.replicas).filter(|i| !self.pods.contains_key(i) && !self.down);
        graces.chain(waits.filter_map(|i| self.failures.get(&i)).map(|f| f.until)).min()
    }

    /// All desired pods are ready and of the revision, and there are no others.
    pub fn settled(&self) -> bool {
        let wanted = if self.down { 0 } else { self.replicas };
        self.pods.len() == wanted as usize
            && (0..wanted).all(|i| self.pods.get(&i).is_some_and(|p| p.healthy() && p.revision == self.revision))
    }

    /// The StatefulSet was deleted, and all its pods are gone.
    pub fn gone(&self) -> bool {
        self.down && self.pods.is_empty()
    }

    fn exited(&mut self, ordinal: u32, incarnation: u64, now: Duration, actions: &mut Vec<Action>) {
        let Some(pod) = self.pods.get(&ordinal).filter(|pod| pod.incarnation == incarnation) else { return };
        let (asked, lived) = (pod.terminating.is_some(), now.saturating_sub(pod.since));
        self.pods.remove(&ordinal);
        if self.lost.remove(&ordinal) {
            actions.push(Action::LoseVolume(ordinal));
        }
        if asked {
            self.failures.remove(&ordinal);
            return;
        }
        let failures = self.failures.entry(ordinal).or_default();
        failures.count = if lived >= RECOVERED_AFTER { 1 } else { failures.count.saturating_add(1) };
        failures.until = now + pause(failures.count, self.backoff);
    }

    fn terminate(&mut self, ordinal: u32, now: Duration, actions: &mut Vec<Action>) {
        if let Some(pod) = self.pods.get_mut(&ordinal).filter(|pod| pod.terminating.is_none()) {
            pod.terminating = Some(now);
            actions.push(Action::Terminate(ordinal));
        }
    }

    fn kill(&mut self, ordinal: u32, actions: &mut Vec<Action>) {
        if let Some(pod) = self.pods.get_mut(&ordinal).filter(|pod| !pod.killed) {
            pod.killed = true;
            actions.push(Action::Kill(ordinal));
        }
    }

    fn reconcile(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let overdue: Vec<u32> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.terminating.is_some_and(|since| now >= since + self.grace))
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in overdue {
            self.kill(ordinal, actions);
        }
        if self.down {
            for ordinal in self.pods.keys().copied().collect::<Vec<_>>() {
                self.terminate(ordinal, now, actions);
            }
            return;
        }
        if self.create(now, actions) && self.condemn(now, actions) {
            self.update(now, actions);
        }
    }

    /// Creates missing pods. `false`: nothing else may be done yet.
    fn create(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        let ordered = self.policy == Policy::OrderedReady;
        for ordinal in 0..self.replicas {
            match self.pods.get(&ordinal) {
                Some(pod) if ordered && !pod.healthy() => return false,
                Some(_) => {}
                None if self.failures.get(&ordinal).is_some_and(|f| f.until > now) => {
                    if ordered {
                        return false;
                    }
                }
                None => {
                    let revision = self.revision_of_new(ordinal);
                    self.incarnations += 1;
                    let incarnation = self.incarnations;
                    let pod = Pod { incarnation, revision, ready: false, since: now, terminating: None, killed: false };
                    self.pods.insert(ordinal, pod);
                    actions.push(Action::Start { ordinal, incarnation, revision });
                    if ordered {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// During a rolling update, pods that it has not come to yet are replaced by ones of the old revision.
    fn revision_of_new(&self, ordinal: u32) -> u64 {
        let old = self.pods.values().filter(|p| p.revision == self.current && p.terminating.is_none()).count();
        if (ordinal as usize) < old { self.current } else { self.revision }
    }

    /// Ends pods that are no longer desired. `false`: nothing else may be done yet.
    fn condemn(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        let ordered = self.policy == Policy::OrderedReady;
        let condemned: Vec<u32> = self.pods.range(self.replicas..).map(|(ordinal, _)| *ordinal).collect();
        let first_unhealthy = self.pods.iter().find(|(_, pod)| !pod.healthy()).map(|(ordinal, _)| *ordinal);
        for ordinal in condemned.iter().rev().copied() {
            let pod = &self.pods[&ordinal];
            let waits = pod.terminating.is_some() || (!pod.ready && Some(ordinal) != first_unhealthy);
            if ordered && waits {
                return false;
            }
            self.terminate(ordinal, now, actions);
            if ordered {
                return false;
            }
        }
        condemned.is_empty()
    }

    fn update(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for ordinal in (0..self.replicas).rev() {
            let Some(pod) = self.pods.get(&ordinal) else { return };
            if pod.revision != self.revision && pod.terminating.is_none() {
                self.terminate(ordinal, now, actions);
                return;
            }
            if !pod.healthy() {
                return;
            }
        }
        self.current = self.revision;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn set(policy: Policy, replicas: u32) -> StatefulSet {
        StatefulSet::new(policy, replicas, s(10), (s(1), s(8)))
    }

    /// Brings all pods up, and says in which order they were started and ended on the way: `+` and `-` with the ordinal.
    fn run(set: &mut StatefulSet, event: Event, now: Duration) -> String {
        let mut story = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = set.step(event, now);
            // What was asked first happens first.
            for action in actions.into_iter().rev() {
                match action {
                    Action::Start { ordinal, incarnation, .. } => {
                        story.push(format!("+{ordinal}"));
                        events.push(Event::Ready { ordinal, incarnation, ready: true });
                    }
                    Action::Terminate(ordinal) | Action::Kill(ordinal) => {
                        story.push(format!("-{ordinal}"));
                        let incarnation = set.pods[&ordinal].incarnation;
                        events.push(Event::Exited { ordinal, incarnation });
                    }
                    Action::LoseVolume(ordinal) => story.push(format!("x{ordinal}")),
                }
            }
        }
        story.join(" ")
    }

    fn up(policy: Policy, replicas: u32) -> StatefulSet {
        let mut set = set(policy, replicas);
        run(&mut set, Event::Tick, s(0));
        assert!(set.settled());
        set
    }

    fn ready(set: &StatefulSet, ordinal: u32, ready: bool) -> Event {
        Event::Ready { ordinal, incarnation: set.pods[&ordinal].incarnation, ready }
    }

    fn exited(set: &StatefulSet, ordinal: u32) -> Event {
        Event::Exited { ordinal, incarnation: set.pods[&ordinal].incarnation }
    }

    fn start(ordinal: u32, incarnation: u64) -> Action {
        Action::Start { ordinal, incarnation, revision: 1 }
    }

    #[test]
    fn ordered_pods_wait_for_those_before_them() {
        let mut set = set(Policy::OrderedReady, 3);
        assert_eq!(set.step(Event::Tick, s(0)), [start(0, 1)]);
        assert_eq!(set.step(Event::Tick, s(1)), []);
        let event = ready(&set, 0, true);
        assert_eq!(set.step(event, s(2)), [start(1, 2)]);
        // Pod 0 is no longer ready: pod 1's readiness does not bring pod 2.
        let event = ready(&set, 0, false);
        assert_eq!(set.step(event, s(3)), []);
        let event = ready(&set, 1, true);
        assert_eq!(set.step(event, s(4)), []);
        let event = ready(&set, 0, true);
        assert_eq!(set.step(event, s(5)), [start(2, 3)]);
    }

    #[test]
    fn parallel_pods_do_not_wait() {
        let mut set = set(Policy::Parallel, 3);
        assert_eq!(set.step(Event::Tick, s(0)), [start(0, 1), start(1, 2), start(2, 3)]);
        assert_eq!(
            set.step(Event::Scale(1), s(1)),
            [Action::Terminate(2), Action::Terminate(1)],
            "ready or not, all at once"
        );
    }

    #[test]
    fn ordered_pods_leave_one_by_one_from_the_highest() {
        let mut set = up(Policy::OrderedReady, 4);
        assert_eq!(set.step(Event::Scale(1), s(1)), [Action::Terminate(3)]);
        assert_eq!(set.step(Event::Tick, s(2)), []);
        let event = exited(&set, 3);
        assert_eq!(set.step(event, s(3)), [Action::Terminate(2)]);
        let event = exited(&set, 2);
        assert_eq!(run(&mut set, event, s(4)), "-1");
        assert!(set.settled());
    }

    #[test]
    fn an_unready_pod_stops_scaling_down_in_order() {
        let mut set = up(Policy::OrderedReady, 3);
        let event = ready(&set, 0, false);
        set.step(event, s(1));
        assert_eq!(set.step(Event::Scale(1), s(1)), [], "pod 0 is desired and not ready");
        let event = ready(&set, 0, true);
        assert_eq!(set.step(event, s(2)), [Action::Terminate(2)]);
        let mut set = up(Policy::OrderedReady, 3);
        let event = ready(&set, 1, false);
        set.step(event, s(1));
        assert_eq!(set.step(Event::Scale(1), s(1)), [Action::Terminate(2)], "2 is ready");
        let event = exited(&set, 2);
        assert_eq!(set.step(event, s(2)), [Action::Terminate(1)], "the first unhealthy one may go");
    }

    #[test]
    fn pause_and_resume() {
        for (policy, back) in [(Policy::OrderedReady, "+0 +1 +2"), (Policy::Parallel, "+2 +1 +0")] {
            let mut set = up(policy, 3);
            let mut away = run(&mut set, Event::Scale(0), s(1)).split(' ').map(str::to_owned).collect::<Vec<_>>();
            if policy == Policy::Parallel {
                away.sort_by(|a, b| b.cmp(a));
            }
            assert_eq!(away, ["-2", "-1", "-0"]);
            assert!(set.settled() && set.pods.is_empty());
            assert_eq!(run(&mut set, Event::Scale(3), s(2)), back);
        }
    }

    #[test]
    fn a_failed_pod_is_replaced_after_a_growing_while() {
        let mut set = up(Policy::Parallel, 2);
        let mut now = s(5);
        for wait in [1, 2, 4, 8, 8] {
            let event = exited(&set, 1);
            assert_eq!(set.step(event, now), []);
            assert_eq!(set.next_tick(), Some(now + s(wait)));
            assert_eq!(set.step(Event::Tick, now + s(wait) - Duration::from_millis(1)), []);
            now += s(wait);
            assert!(matches!(set.step(Event::Tick, now)[..], [Action::Start { ordinal: 1, .. }]));
        }
        assert_eq!(set.failures[&1].count, 5);
        now += RECOVERED_AFTER;
        let event = exited(&set, 1);
        set.step(event, now);
        assert_eq!(set.next_tick(), Some(now + s(1)), "it had recovered");
    }

    #[test]
    fn a_deleted_pod_is_replaced_at_once_and_killed_when_its_grace_is_over() {
        let mut set = up(Policy::OrderedReady, 1);
        assert_eq!(set.step(Event::Delete(0), s(1)), [Action::Terminate(0)]);
        assert_eq!(set.step(Event::Delete(0), s(2)), []);
        assert_eq!(set.next_tick(), Some(s(11)));
        assert_eq!(set.step(Event::Tick, s(10)), []);
        assert_eq!(set.step(Event::Tick, s(11)), [Action::Kill(0)]);
        assert_eq!((set.next_tick(), set.step(Event::Tick, s(12))), (None, vec![]));
        let event = exited(&set, 0);
        assert_eq!(set.step(event, s(13)), [start(0, 2)]);
    }

    #[test]
    fn a_lost_volume_is_taken_away_before_the_replacement_starts() {
        let mut set = up(Policy::Parallel, 2);
        assert_eq!(set.step(Event::LoseVolume(1), s(1)), [Action::Kill(1)]);
        let event = exited(&set, 1);
        assert_eq!(set.step(event, s(2)), [Action::LoseVolume(1)]);
        assert_eq!(set.step(Event::LoseVolume(1), s(2)), [Action::LoseVolume(1)], "it does not run");
        assert_eq!(set.step(Event::Tick, s(3)), [start(1, 3)]);
    }

    #[test]
    fn a_rolling_update_goes_from_the_highest_one_at_a_time() {
        for policy in [Policy::OrderedReady, Policy::Parallel] {
            let mut set = up(policy, 3);
            assert_eq!(set.step(Event::Roll, s(1)), [Action::Terminate(2)]);
            let event = exited(&set, 2);
            assert_eq!(set.step(event, s(2)), [Action::Start { ordinal: 2, incarnation: 4, revision: 2 }]);
            assert_eq!(set.step(Event::Tick, s(3)), [], "it is not ready yet");
            let event = ready(&set, 2, true);
            assert_eq!(set.step(event, s(4)), [Action::Terminate(1)]);
            let event = exited(&set, 1);
            assert_eq!(run(&mut set, event, s(5)), "+1 -0 +0");
            assert!(set.settled());
            assert_eq!(set.current, 2);
        }
    }

    #[test]
    fn a_pod_that_the_update_has_not_come_to_is_replaced_as_it_was() {
        let mut set = up(Policy::Parallel, 3);
        set.step(Event::Roll, s(1));
        let event = exited(&set, 0);
        set.step(event, s(2));
        let actions = set.step(Event::Tick, s(3));
        assert_eq!(actions, [Action::Start { ordinal: 0, incarnation: 4, revision: 1 }]);
    }

    #[test]
    fn what_an_earlier_incarnation_does_does_not_count() {
        let mut set = up(Policy::OrderedReady, 1);
        let (late, gone) = (ready(&set, 0, false), exited(&set, 0));
        set.step(Event::Delete(0), s(1));
        run(&mut set, gone, s(1));
        assert_eq!((set.step(late, s(2)), set.step(gone, s(2))), (vec![], vec![]));
        assert!(set.settled());
    }

    #[test]
    fn down_ends_all_pods_at_once_and_starts_none() {
        let mut set = up(Policy::OrderedReady, 2);
        assert_eq!(set.step(Event::Down, s(1)), [Action::Terminate(0), Action::Terminate(1)]);
        let event = exited(&set, 0);
        assert_eq!(set.step(event, s(2)), []);
        assert!(!set.gone());
        let event = exited(&set, 1);
        assert_eq!(set.step(event, s(2)), []);
        assert!(set.gone() && set.settled());
    }
}
