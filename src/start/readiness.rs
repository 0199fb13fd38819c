//! What probes are told of a pod that does not serve (rule 4.8), and where its clients are led meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::watch;

use super::pod::{Look, Pod};
use crate::boot::{DataDirFact, Desired, Facts, Known, PeerFact, PodFact};
use crate::host::statefulset::{self, StatefulSet};
use crate::host::{self, Host, share};
use crate::ids::Ordinal;
use crate::membership::ready::{self, PodManagement};
use crate::peer::survey::Survey;
use crate::serve::health::Health;
use crate::settings::Settings;

/// Says whether this pod, whose etcd serves nothing or does not run, is ready all the same.
pub fn without_quorum(pod: &Pod, facts: &Facts, look: &Look, seed_is_older: Option<bool>) {
    let state = waiting(facts, policy(look), seed_is_older);
    pod.stands_by(ready::ready(&state).0, elsewhere(pod, &look.survey));
}

fn waiting(facts: &Facts, policy: Known<PodManagement>, seed_is_older: Option<bool>) -> ready::Pod {
    let above =
        |peer: &&PeerFact| peer.ordinal > facts.ordinal && facts.desired.wants(facts.seed, peer.ordinal) == Some(true);
    let missing = |peer: &PeerFact| if facts.host_configured { peer.pod.is_absent() } else { peer.dns.is_absent() };
    ready::Pod {
        stopping: false,
        serves: false,
        apiserver_ready: false,
        sound: true,
        empty: facts.data_dir == DataDirFact::Empty,
        seed: facts.ordinal == facts.seed,
        policy,
        wanted: facts.desired.wants(facts.seed, facts.ordinal),
        // Where there is a quorum, this pod only has to catch up.
        missing_above: match facts.members {
            Known::Present(_) => None,
            Known::Absent | Known::Unknown(_) => {
                facts.desired.known().map(|_| facts.peers.iter().filter(above).any(missing))
            }
        },
        wanted_above: match (&facts.members, &facts.data_dir) {
            (Known::Absent | Known::Unknown(_), DataDirFact::Valid { .. }) => {
                wanted_above(&facts.desired, facts.seed, facts.ordinal)
            }
            // Nor does scaling help a data dir that etcd cannot start from.
            _ => None,
        },
        seed_is_older,
    }
}

/// What a pod that waits for a Secret lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// What only the seed makes, and no cluster has been formed with it.
    Seeds,
    /// What another pod's volume has.
    Others,
    /// An answer of the API, or its leave.
    Api,
}

impl Lacks {
    /// By what it waits for. `never_formed`: the marker was read, and says that no cluster has been formed.
    pub fn of<I>(wait: &share::Wait<I>, never_formed: bool) -> Lacks {
        match wait {
            // It makes nothing while it runs by an older revision, and is replaced when this pod is ready.
            share::Wait::ForSeed(..) if never_formed => Lacks::Seeds,
            share::Wait::ForSeed(..) | share::Wait::Formed(..) => Lacks::Others,
            share::Wait::Away(_) | share::Wait::Denied(_) => Lacks::Api,
        }
    }
}

/// Says whether this pod, which waits for a Secret, is ready all the same: who puts into it what this pod lacks may be one that
/// comes, or is replaced, only then.
pub async fn without_secret(settings: &Settings, host: &Host, lacks: Lacks, health: &watch::Sender<Health>) {
    let set = host.set().await;
    let others = set.present().into_iter().flat_map(StatefulSet::ordinals);
    let others = host.pods(others.filter(|ordinal| *ordinal != settings.pod.ordinal), &set).await;
    let empty = !settings.etcd_dir().join("member/wal").exists();
    let state = waiting_for_secret(settings.pod.ordinal, empty, lacks, &set, &others);
    let stands_by = ready::ready(&state).0;
    // The seed serves until it is replaced, and leads nobody to a pod that waits like this one.
    let elsewhere = match set.present().map(|set| set.start) {
        Some(seed) if stands_by && lacks == Lacks::Seeds => host.ready_address(seed).await,
        _ => None,
    };
    stand_by(health, stands_by, elsewhere.map(|address| SocketAddr::new(address, settings.listen.front_port)));
}

/// Tells probes whether this pod is ready although it does not serve, and clients where they are served meanwhile.
pub fn stand_by(health: &watch::Sender<Health>, stands_by: bool, elsewhere: Option<SocketAddr>) {
    health.send_if_modified(|health| {
        let before = *health;
        (health.stands_by, health.elsewhere) = (stands_by, elsewhere.filter(|_| stands_by));
        *health != before
    });
}

fn waiting_for_secret(
    ordinal: Ordinal,
    empty: bool,
    lacks: Lacks,
    set: &Known<StatefulSet>,
    others: &BTreeMap<Ordinal, Known<PodFact>>,
) -> ready::Pod {
    let seed = set.present().map(|set| set.start);
    let pod_of_seed = seed.and_then(|seed| others.get(&seed)).and_then(Known::present);
    ready::Pod {
        stopping: false,
        serves: false,
        apiserver_ready: false,
        // One that the API keeps from what it needs would let a rollout take those that serve.
        sound: lacks != Lacks::Api,
        empty,
        seed: seed == Some(ordinal),
        policy: set.present().map_or_else(Known::default, |set| Known::Present(set.policy)),
        wanted: seed.and_then(|seed| statefulset::desired(set).wants(seed, ordinal)),
        missing_above: seed.map(|_| others.iter().any(|(other, pod)| *other > ordinal && pod.is_absent())),
        wanted_above: seed.and_then(|seed| wanted_above(&statefulset::desired(set), seed, ordinal)),
        seed_is_older: pod_of_seed
            .filter(|_| lacks == Lacks::Seeds)
            .and_then(|pod| pod.current_revision)
            .map(|current| !current),
    }
}

/// Says whether this pod, whose etcd serves, is ready although its API server may not be: as one that is not wanted any
/// more, so that nothing waits for it.
pub fn serving(pod: &Pod) {
    let seed = pod.seed();
    let state = ready::Pod {
        stopping: false,
        serves: true,
        apiserver_ready: false,
        sound: true,
        empty: false,
        seed: pod.settings.pod.ordinal == seed,
        policy: Known::<PodManagement>::default(),
        wanted: Desired::Values(pod.now.borrow().etcd.replicas).wants(seed, pod.settings.pod.ordinal),
        missing_above: None,
        wanted_above: None,
        seed_is_older: None,
    };
    pod.stands_by(ready::ready(&state).0, None);
}

/// Whether a pod above this one is wanted, if that is known: then the next one is.
fn wanted_above(desired: &Desired, seed: Ordinal, ordinal: Ordinal) -> Option<bool> {
    desired.wants(seed, Ordinal(ordinal.0.saturating_add(1)))
}

fn policy(look: &Look) -> Known<PodManagement> {
    look.host.as_ref().map_or_else(Known::default, host::View::policy)
}

/// The front port of the lowest pod that says that its API server is ready.
fn elsewhere(pod: &Pod, survey: &Survey) -> Option<SocketAddr> {
    let serving = survey.words.iter().filter(|(_, word)| word.serves_clients).find_map(|(o, _)| survey.pods.get(o))?;
    Some(SocketAddr::new(serving.address, pod.settings.listen.front_port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, MemberId};
    use crate::rules::Rule;

    fn set(policy: PodManagement) -> Known<StatefulSet> {
        Known::Present(StatefulSet {
            replicas: 3,
            start: Ordinal(0),
            policy,
            claim_templates: vec!["data".to_owned()],
            update_revision: Some("b".to_owned()),
        })
    }

    fn pod(current: bool) -> Known<PodFact> {
        Known::Present(PodFact { terminating: false, current_revision: Some(current) })
    }

    #[test]
    fn what_the_seed_makes_is_lacked_only_where_nothing_was_formed_with_it() {
        use share::Wait::{Away, Denied, ForSeed, Formed};
        let formed = Formed("ca", ClusterId(1));
        for (wait, never_formed, lacks) in [
            (ForSeed("ca", Ordinal(0)), true, Lacks::Seeds),
            (ForSeed("ca", Ordinal(0)), false, Lacks::Others),
            (formed, false, Lacks::Others),
            (Away("timeout".into()), true, Lacks::Api),
            (Denied("403".into()), true, Lacks::Api),
        ] {
            assert_eq!(Lacks::of(&wait, never_formed), lacks, "{wait:?}");
        }
    }

    #[test]
    fn a_pod_that_scaling_does_not_help_is_not_ready_for_its_sake() {
        use PodManagement::{OrderedReady, Parallel};
        let valid = DataDirFact::Valid { member: MemberId(1), cluster: ClusterId(1) };
        let by = |data_dir: DataDirFact, desired: u32, policy: PodManagement| {
            let above = PeerFact { pod: Known::Absent, ..PeerFact::new(Ordinal(1)) };
            let desired = Desired::Host(desired);
            let alone =
                Facts { desired, host_configured: true, peers: vec![above], ..Facts::serving(Ordinal(0), data_dir) };
            let (ready, rule) = ready::ready(&waiting(&alone, Known::Present(policy), Some(false)));
            ready.then_some(rule)
        };
        assert_eq!(by(valid.clone(), 1, OrderedReady), Some(Rule::ReadyWhileWaiting));
        for data_dir in [DataDirFact::Damaged, DataDirFact::Older, DataDirFact::Newer, DataDirFact::Unpromoted] {
            assert_eq!(by(data_dir("x".into()), 1, OrderedReady), None, "a rollout would be done");
            // In order the one above is created only then, and its word may be what sets the data dir aside.
            assert_eq!(by(data_dir("x".into()), 2, OrderedReady), Some(Rule::ReadyToBeJoined));
            assert_eq!(by(data_dir("x".into()), 2, Parallel), None);
        }
        assert_eq!(by(valid, 1, Parallel), None);
    }

    #[test]
    fn a_pod_that_waits_for_the_secret_holds_up_nobody_who_has_it() {
        use PodManagement::{OrderedReady, Parallel};
        let others = |pods: &[(u32, Known<PodFact>)]| pods.iter().map(|(o, pod)| (Ordinal(*o), pod.clone())).collect();
        let why_of = |lacks, ordinal, empty, policy, pods: &[(u32, Known<PodFact>)]| {
            let state = waiting_for_secret(Ordinal(ordinal), empty, lacks, &set(policy), &others(pods));
            let (ready, rule) = ready::ready(&state);
            ready.then_some(rule)
        };
        // The seed that makes it is replaced last; whoever has it may be above, and not be there.
        let older = [(0, pod(false)), (2, pod(true))];
        for policy in [Parallel, OrderedReady] {
            assert_eq!(why_of(Lacks::Seeds, 1, true, policy, &older), Some(Rule::ReadyForRollout));
            // Replaced, those that serve would wait as well.
            assert_eq!(why_of(Lacks::Others, 1, true, policy, &older), None);
            assert_eq!(why_of(Lacks::Api, 1, true, policy, &older), None);
        }
        let why = |ordinal, empty, policy, pods: &[_]| why_of(Lacks::Others, ordinal, empty, policy, pods);
        assert_eq!(why_of(Lacks::Seeds, 1, true, Parallel, &[(0, pod(true)), (2, pod(true))]), None);
        let missing = [(1, pod(true)), (2, Known::Absent)];
        assert_eq!(why(0, true, OrderedReady, &missing), Some(Rule::ReadyToBeJoined));
        assert_eq!(why_of(Lacks::Api, 0, true, OrderedReady, &missing), None);
        assert_eq!(why(0, true, Parallel, &missing), None);
        // The others are there: what it lacks comes from them.
        assert_eq!(why(0, false, OrderedReady, &[(1, pod(true)), (2, pod(true))]), None);
        assert_eq!(why(3, true, OrderedReady, &[(0, pod(true))]), Some(Rule::ReadySurplus));
        assert_eq!(why(1, true, OrderedReady, &[(0, Known::default()), (2, Known::default())]), None);
        let unknown = waiting_for_secret(Ordinal(0), true, Lacks::Seeds, &Known::default(), &BTreeMap::new());
        assert!(!ready::ready(&unknown).0);
    }
}
