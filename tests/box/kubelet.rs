//! A small kubelet: which of the pods that the host cluster's API lists are started and ended, and what is reported. Pure.
//! A process that ends by itself is started again in its place: [`super::container`].
//!
//! A pod that the box kills is reported as failed, as if its node had lost it: the StatefulSet controller then deletes it
//! and creates another, which gets another address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::controller::{Action, Event, Pod};

/// A pod as the API lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its ordinal.
    pub ordinal: u32,
    /// Its identity: a pod that is deleted and created anew has another.
    pub uid: String,
    /// It is being deleted, with this much time to end.
    pub deleted: Option<Duration>,
    /// The revision of its template: a hash.
    pub revision: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// To a process.
    Process(Action),
    /// Tell the API how the pod is.
    Report(u32),
    /// Tell the API that the pod is gone.
    Remove {
        /// Its ordinal.
        ordinal: u32,
        /// Its identity.
        uid: String,
    },
}

/// A pod that the kubelet has started.
#[derive(Clone, Debug)]
pub struct Started {
    /// How it is.
    pub pod: Pod,
    /// Its identity.
    pub uid: String,
    /// The revision of its template.
    pub revision: String,
    /// Its process is gone for good.
    pub ended: bool,
    grace: Duration,
}

/// The pods of the node.
#[derive(Clone, Debug, Default)]
pub struct Kubelet {
    /// By ordinal.
    pub pods: BTreeMap<u32, Started>,
    lost: BTreeSet<u32>,
    incarnations: u64,
    down: bool,
}

impl Kubelet {
    /// Takes what the API lists.
    pub fn listed(&mut self, listed: &[Listed], now: Duration) -> Vec<Duty> {
        let mut duties = Vec::new();
        // Deleted without grace: the API no longer knows them.
        let forgotten: Vec<u32> = self
            .pods
            .iter()
            .filter(|(ordinal, started)| !listed.iter().any(|l| l.ordinal == **ordinal && l.uid == started.uid))
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in forgotten {
            if self.pods[&ordinal].ended {
                self.pods.remove(&ordinal);
            } else {
                self.kill(ordinal, &mut duties);
            }
        }
        for pod in listed {
            match self.pods.get_mut(&pod.ordinal) {
                Some(started) if started.uid == pod.uid => {
                    if let Some(grace) = pod.deleted {
                        if started.ended {
                            duties.push(Duty::Remove { ordinal: pod.ordinal, uid: pod.uid.clone() });
                        } else if started.pod.terminating.is_none() {
                            (started.pod.terminating, started.grace) = (Some(now), grace);
                            duties.push(Duty::Process(Action::Terminate(pod.ordinal)));
                        }
                    }
                }
                // The earlier one of this name is still ending.
                Some(_) => {}
                None if pod.deleted.is_some() => {
                    duties.push(Duty::Remove { ordinal: pod.ordinal, uid: pod.uid.clone() });
                }
                None if self.down => {}
                None => {
                    self.incarnations += 1;
                    let incarnation = self.incarnations;
                    let state =
                        Pod { incarnation, revision: 0, ready: false, since: now, terminating: None, killed: false };
                    let started = Started {
                        pod: state,
                        uid: pod.uid.clone(),
                        revision: pod.revision.clone(),
                        ended: false,
                        grace: Duration::ZERO,
                    };
                    self.pods.insert(pod.ordinal, started);
                    duties.push(Duty::Process(Action::Start { ordinal: pod.ordinal, incarnation, revision: 0 }));
                    duties.push(Duty::Report(pod.ordinal));
                }
            }
        }
        duties
    }

    /// Takes an event of a process in. What concerns the StatefulSet is the API's.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Duty> {
        let mut duties = Vec::new();
        match event {
            Event::Kill(ordinal) => self.kill(ordinal, &mut duties),
            Event::LoseVolume(ordinal) => match self.pods.get(&ordinal) {
                Some(started) if !started.ended => {
                    self.lost.insert(ordinal);
                    self.kill(ordinal, &mut duties);
                }
                _ => duties.push(Duty::Process(Action::LoseVolume(ordinal))),
            },
            Event::Ready { ordinal, incarnation, ready } => {
                if let Some(started) = self.pods.get_mut(&ordinal).filter(|s| s.pod.incarnation == incarnation) {
                    started.pod.ready = ready;
                    duties.push(Duty::Report(ordinal));
                }
            }
            Event::Exited { ordinal, incarnation } => {
                if let Some(started) = self.pods.get_mut(&ordinal).filter(|s| s.pod.incarnation == incarnation) {
                    (started.ended, started.pod.ready) = (true, false);
                    if self.lost.remove(&ordinal) {
                        duties.push(Duty::Process(Action::LoseVolume(ordinal)));
                    }
                    duties.push(match started.pod.terminating {
                        Some(_) => Duty::Remove { ordinal, uid: started.uid.clone() },
                        None => Duty::Report(ordinal),
                    });
                }
            }
            Event::Down => {
                self.down = true;
                for (ordinal, started) in &mut self.pods {
                    if started.pod.terminating.is_none() && !started.ended {
                        (started.pod.terminating, started.grace) = (Some(now), Duration::from_secs(10));
                        duties.push(Duty::Process(Action::Terminate(*ordinal)));
                    }
                }
            }
            Event::Tick | Event::Scale(_) | Event::Roll | Event::Delete(_) => {}
        }
        let overdue = |s: &Started| !s.ended && s.pod.terminating.is_some_and(|since| now >= since + s.grace);
        let overdue: Vec<u32> = self.pods.iter().filter(|(_, s)| overdue(s)).map(|(ordinal, _)| *ordinal).collect();
        for ordinal in overdue {
            self.kill(ordinal, &mut duties);
        }
        duties
    }

    /// When [`Event::Tick`] is next needed.
    pub fn next_tick(&self) -> Option<Duration> {
        let waiting = self.pods.values().filter(|s| !s.ended && !s.pod.killed);
        waiting.filter_map(|s| Some(s.pod.terminating? + s.grace)).min()
    }

    /// The node is shut down, and all its pods have ended.
    pub fn gone(&self) -> bool {
        self.down && self.pods.values().all(|started| started.ended)
    }

    fn kill(&mut self, ordinal: u32, duties: &mut Vec<Duty>) {
        if let Some(started) = self.pods.get_mut(&ordinal).filter(|s| !s.ended && !s.pod.killed) {
            started.pod.killed = true;
            duties.push(Duty::Process(Action::Kill(ordinal)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pod(ordinal: u32, uid: &str, deleted: Option<Duration>) -> Listed {
        Listed { ordinal, uid: uid.to_owned(), deleted, revision: "r".to_owned() }
    }

    fn start(ordinal: u32, incarnation: u64) -> Duty {
        Duty::Process(Action::Start { ordinal, incarnation, revision: 0 })
    }

    fn remove(ordinal: u32, uid: &str) -> Duty {
        Duty::Remove { ordinal, uid: uid.to_owned() }
    }

    fn running() -> Kubelet {
        let mut kubelet = Kubelet::default();
        assert_eq!(kubelet.listed(&[pod(0, "a", None)], s(0)), [start(0, 1), Duty::Report(0)]);
        assert_eq!(kubelet.listed(&[pod(0, "a", None)], s(1)), []);
        kubelet
    }

    const EXITED: Event = Event::Exited { ordinal: 0, incarnation: 1 };

    #[test]
    fn a_deleted_pod_ends_within_its_grace_and_is_then_removed() {
        let mut kubelet = running();
        let deleted = [pod(0, "a", Some(s(10)))];
        assert_eq!(kubelet.listed(&deleted, s(2)), [Duty::Process(Action::Terminate(0))]);
        assert_eq!((kubelet.listed(&deleted, s(3)), kubelet.next_tick()), (vec![], Some(s(12))));
        assert_eq!(kubelet.step(Event::Tick, s(12)), [Duty::Process(Action::Kill(0))]);
        assert_eq!(kubelet.step(EXITED, s(13)), [remove(0, "a")]);
        // Until the API has it.
        assert_eq!(kubelet.listed(&deleted, s(14)), [remove(0, "a")]);
        assert_eq!(kubelet.listed(&[pod(0, "b", None)], s(15)), [start(0, 2), Duty::Report(0)]);
    }

    #[test]
    fn a_pod_that_dies_is_reported_and_not_restarted() {
        let mut kubelet = running();
        assert_eq!(kubelet.step(Event::Kill(0), s(2)), [Duty::Process(Action::Kill(0))]);
        assert_eq!(kubelet.step(EXITED, s(2)), [Duty::Report(0)]);
        assert!(kubelet.pods[&0].ended);
        assert_eq!(kubelet.listed(&[pod(0, "a", None)], s(3)), []);
        assert_eq!(kubelet.listed(&[pod(0, "a", Some(s(10)))], s(3)), [remove(0, "a")]);
    }

    #[test]
    fn a_pod_that_the_api_forgot_is_killed_before_its_successor_starts() {
        let mut kubelet = running();
        assert_eq!(kubelet.listed(&[pod(0, "b", None)], s(2)), [Duty::Process(Action::Kill(0))]);
        assert_eq!(kubelet.listed(&[pod(0, "b", None)], s(2)), []);
        kubelet.step(EXITED, s(3));
        assert_eq!(kubelet.listed(&[pod(0, "b", None)], s(3)), [start(0, 2), Duty::Report(0)]);
    }

    #[test]
    fn a_lost_volume_is_taken_away_when_the_pod_has_ended() {
        let mut kubelet = running();
        assert_eq!(kubelet.step(Event::LoseVolume(0), s(1)), [Duty::Process(Action::Kill(0))]);
        assert_eq!(kubelet.step(EXITED, s(1)), [Duty::Process(Action::LoseVolume(0)), Duty::Report(0)]);
    }

    #[test]
    fn readiness_is_reported_and_down_ends_all() {
        let mut kubelet = running();
        let ready = Event::Ready { ordinal: 0, incarnation: 1, ready: true };
        assert_eq!(kubelet.step(ready, s(1)), [Duty::Report(0)]);
        assert!(kubelet.pods[&0].pod.ready);
        assert_eq!(kubelet.step(Event::Down, s(2)), [Duty::Process(Action::Terminate(0))]);
        assert_eq!(kubelet.listed(&[pod(0, "a", None), pod(1, "c", None)], s(3)), [], "none is started any more");
        assert!(!kubelet.gone());
        kubelet.step(EXITED, s(3));
        assert!(kubelet.gone());
    }
}
