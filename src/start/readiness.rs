//! What probes are told of a pod that does not serve (rule 4.8), and where its clients are led meanwhile.

use std::net::SocketAddr;

use super::pod::{Look, Pod};
use crate::boot::{DataDirFact, Desired, Facts, Known, PeerFact};
use crate::membership::ready::{self, PodManagement};
use crate::peer::survey::Survey;

/// Says whether this pod, whose etcd serves nothing or does not run, is ready all the same.
pub fn without_quorum(pod: &Pod, facts: &Facts, look: &Look, seed_is_older: Option<bool>) {
    let above =
        |peer: &&PeerFact| peer.ordinal > facts.ordinal && facts.desired.wants(facts.seed, peer.ordinal) == Some(true);
    let missing = |peer: &PeerFact| if facts.host_configured { peer.pod.is_absent() } else { peer.dns.is_absent() };
    let state = ready::Pod {
        stopping: false,
        serves: false,
        apiserver_ready: false,
        sound: true,
        empty: facts.data_dir == DataDirFact::Empty,
        seed: facts.ordinal == facts.seed,
        policy: policy(look),
        wanted: facts.desired.wants(facts.seed, facts.ordinal),
        // Where there is a quorum, this pod only has to catch up.
        missing_above: match facts.members {
            Known::Present(_) => None,
            Known::Absent | Known::Unknown(_) => {
                facts.desired.known().map(|_| facts.peers.iter().filter(above).any(missing))
            }
        },
        seed_is_older,
    };
    pod.stands_by(ready::ready(&state).0, elsewhere(pod, &look.survey));
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
        seed_is_older: None,
    };
    pod.stands_by(ready::ready(&state).0, None);
}

fn policy(look: &Look) -> Known<PodManagement> {
    look.host.as_ref().map_or_else(Known::default, crate::host::View::policy)
}

/// The front port of the lowest pod that says that its API server is ready.
fn elsewhere(pod: &Pod, survey: &Survey) -> Option<SocketAddr> {
    let serving = survey.words.iter().filter(|(_, word)| word.serves_clients).find_map(|(o, _)| survey.pods.get(o))?;
    Some(SocketAddr::new(serving.address, pod.settings.listen.front_port))
}
