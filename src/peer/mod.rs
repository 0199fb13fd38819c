//! What the pods of a StatefulSet tell each other, over mTLS with etcd's peer certificates, on a port of its own (2382).
//!
//! * `GET /v1/state`: the pod's [`Word`]: what is on its volume, whether its etcd serves, and what it asks for. It is
//!   answered while etcd is down: that is what it is for.
//! * `POST /v1/wake`: look again now. Carries nothing and proves nothing; whoever is woken asks for himself.
//!
//! Nobody is ordered to do anything: a pod *says* that it wants to join or to leave, and the syncer beside the leader,
//! which alone changes membership (rule 5.1), reads that. A request that is lost is read a moment later, and one that is
//! seen twice is one request.
//!
//! [`server`] answers, [`dial`] asks, [`survey`] asks all and gives the facts that decisions rest on.

mod certificate;
pub mod dial;
mod named;
pub mod server;
pub mod survey;
mod tls;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::boot::{Notes, PeerState};
use crate::ids::{ClusterId, MemberId, Ordinal, RaftIndex};
use crate::membership::Request;
use crate::serve::health::{Health, Serves};
use crate::settings::Settings;

/// The path of a pod's word.
pub const STATE: &str = "/v1/state";
/// The path that wakes.
pub const WAKE: &str = "/v1/wake";

/// A pod's word on itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// Whose it is.
    pub ordinal: Ordinal,
    /// Its state; `None` while it is in between: nobody may rely on anything.
    pub state: Option<PeerState>,
    /// Cluster IDs that its volume notes as superseded.
    #[serde(default)]
    pub superseded: Vec<ClusterId>,
    /// Those that it has seen to be served by no pod.
    #[serde(default)]
    pub settled: Vec<ClusterId>,
    /// The members of its cluster that a reset of its data dir has dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<MemberId>,
    /// The cluster that its empty volume is to join.
    #[serde(default)]
    pub joins: Option<ClusterId>,
    /// What it asks for.
    #[serde(default)]
    pub request: Option<Request>,
    /// Its own API server is ready: clients can be led to its front port.
    #[serde(default)]
    pub serves_clients: bool,
    /// The last entry that its etcd has applied, while that runs and answers no clients yet.
    #[serde(default)]
    pub applied: Option<RaftIndex>,
    /// The largest request that the values of its store need, in bytes, as far as it knows.
    #[serde(default)]
    pub request_bytes: Option<u64>,
    /// Its etcd is to be started again by changed settings, and serves still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restarts: bool,
    /// Bytes of the store in its data dir, a snapshot that is on its way included, while its etcd runs.
    #[serde(default)]
    pub received: Option<u64>,
    /// Which CAs and key pair for tokens its k0s has, if it runs one and they are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k0s_cas: Option<String>,
}

impl Word {
    /// What this member's etcd has applied although it answers no clients yet.
    pub fn applied_as(&self, id: MemberId, in_cluster: ClusterId) -> Option<RaftIndex> {
        match self.state {
            Some(PeerState::Data { member, cluster, .. }) if (member, cluster) == (id, in_cluster) => self.applied,
            _ => None,
        }
    }

    /// The bytes of the store that this member's etcd has.
    pub fn received_as(&self, id: MemberId, in_cluster: ClusterId) -> Option<u64> {
        let runs = match self.state {
            Some(PeerState::Data { member, cluster, .. } | PeerState::Serving { member, cluster }) => {
                (member, cluster) == (id, in_cluster)
            }
            _ => false,
        };
        self.received.filter(|_| runs)
    }
}

/// This pod's own word, as its parts keep it up to date.
#[derive(Debug)]
pub struct Own {
    ordinal: Ordinal,
    says: Mutex<Says>,
    /// Somebody wants the leader's pod to look again.
    pub wake: Notify,
}

#[derive(Clone, Debug, Default)]
struct Says {
    /// What is on the volume while etcd does not run; `None`: it is being changed.
    volume: Option<PeerState>,
    /// Whose etcd runs.
    running: Option<(MemberId, ClusterId)>,
    superseded: Vec<ClusterId>,
    settled: Vec<ClusterId>,
    dropped: Vec<MemberId>,
    joins: Option<ClusterId>,
    request: Option<Request>,
    request_bytes: Option<u64>,
    due: bool,
}

impl Own {
    /// Of a pod of which nothing is known yet.
    pub fn new(ordinal: Ordinal) -> Own {
        Own { ordinal, says: Mutex::default(), wake: Notify::new() }
    }

    fn says(&self) -> MutexGuard<'_, Says> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on the volume, etcd not running. `None` before anything there is changed.
    pub fn volume(&self, state: Option<PeerState>, notes: &Notes) {
        let mut says = self.says();
        says.running = None;
        says.volume = state;
        says.superseded.clone_from(&notes.superseded);
        says.settled.clone_from(&notes.settled);
        says.joins = notes.set_aside;
    }

    /// The members that a reset of this data dir has dropped.
    pub fn drops(&self, members: &[MemberId]) {
        self.says().dropped = members.to_vec();
    }

    /// The cluster that the volume, which is empty, is to join from here on.
    pub fn joins(&self, cluster: ClusterId) {
        self.says().joins = Some(cluster);
    }

    /// From here on etcd runs, or may be about to write: as this member, if that is known already.
    pub fn runs(&self, member: Option<(MemberId, ClusterId)>) {
        let mut says = self.says();
        says.volume = None;
        says.joins = None;
        says.running = member;
    }

    /// That no pod serves these any more was seen, and is noted on the volume.
    pub fn settled(&self, clusters: &[ClusterId]) {
        self.says().settled.extend(clusters);
    }

    /// Whose etcd runs here.
    pub fn member(&self) -> Option<(MemberId, ClusterId)> {
        self.says().running
    }

    /// What is asked of the leader's pod from here on.
    pub fn ask(&self, request: Option<Request>) {
        self.says().request = request;
    }

    /// The largest request that the values of its store need, in bytes.
    pub fn needs(&self, request_bytes: Option<u64>) {
        self.says().request_bytes = request_bytes;
    }

    /// Whether its etcd is to be started again by changed settings.
    pub fn due(&self, due: bool) {
        self.says().due = due;
    }

    /// The word now.
    pub fn word(&self, health: Health) -> Word {
        let says = self.says().clone();
        let state = match says.running {
            Some((member, cluster)) if health.datastore_ready => Some(PeerState::Serving { member, cluster }),
            Some((member, cluster)) => Some(PeerState::Data { member, cluster, last: None }),
            None => says.volume,
        };
        let request = says.request.or(health.stopping.then_some(Request::Stop));
        let serves_clients = health.passes_through(Serves::ApiServer);
        Word {
            ordinal: self.ordinal,
            state,
            superseded: says.superseded,
            settled: says.settled,
            dropped: says.dropped,
            joins: says.joins,
            request,
            serves_clients,
            applied: None,
            request_bytes: says.request_bytes,
            restarts: says.due && health.datastore_ready,
            received: None,
            k0s_cas: None,
        }
    }
}

/// The name under which etcd and we reach a pod, which its certificate is for.
pub fn host_of(settings: &Settings, ordinal: Ordinal) -> String {
    format!("{0}-{ordinal}.{0}-headless.{1}", settings.name, settings.namespace)
}

/// The peer URL of a pod's member.
pub fn peer_url_of(settings: &Settings, ordinal: Ordinal) -> String {
    format!("https://{}:{}", host_of(settings, ordinal), settings.listen.peer_port)
}

/// The pod whose peer URL is among these, if it is one of this StatefulSet.
pub fn ordinal_of(settings: &Settings, peer_urls: &[String]) -> Option<Ordinal> {
    let suffix = format!(".{}-headless.{}:{}", settings.name, settings.namespace, settings.listen.peer_port);
    peer_urls.iter().find_map(|url| {
        let pod = url.strip_prefix("https://")?.strip_suffix(&suffix)?;
        let (set, ordinal) = Ordinal::of_pod(pod)?;
        (set == settings.name).then_some(ordinal)
    })
}

/// A member list as decisions take it.
pub fn list_of(settings: &Settings, list: &crate::etcd::client::MemberList) -> crate::boot::MemberList {
    let member = |m: &crate::etcd::client::Member| crate::boot::Member {
        id: m.id,
        ordinal: ordinal_of(settings, &m.peer_urls),
        learner: m.learner,
    };
    crate::boot::MemberList { cluster: list.cluster, members: list.members.iter().map(member).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::env::Env;
    use crate::settings::flags::Flags;
    use crate::settings::load::{Loader, Surroundings};

    fn settings() -> Settings {
        let surroundings =
            Surroundings { values_files: Vec::new(), namespace_file: "/nonexistent".into(), folders: Vec::new() };
        let env: Box<dyn Env> = Box::new(std::collections::BTreeMap::new());
        let settings = Loader { flags: Flags::default(), wrapped: None, env, surroundings }.load().unwrap().settings;
        Settings { name: "my".into(), namespace: "ns".into(), ..settings }
    }

    #[test]
    fn a_peer_url_tells_its_ordinal_and_no_other_does() {
        let settings = settings();
        for n in [0, 7, 12] {
            assert_eq!(ordinal_of(&settings, &[peer_url_of(&settings, Ordinal(n))]), Some(Ordinal(n)));
        }
        for other in [
            "https://my-0.my-headless.other:2380",
            "https://my-0.my-headless.ns:2379",
            "http://my-0.my-headless.ns:2380",
            "https://you-0.my-headless.ns:2380",
            "https://my-00.my-headless.ns:2380",
            "https://localhost:2380",
            "",
        ] {
            assert_eq!(ordinal_of(&settings, &[other.to_owned()]), None, "{other}");
        }
    }

    #[test]
    fn a_word_says_no_more_than_is_known() {
        let own = Own::new(Ordinal(1));
        let (id, cluster) = (MemberId(1), ClusterId(2));
        let serving = Health { datastore_ready: true, ..Health::default() };
        assert_eq!(own.word(serving).state, None);
        own.volume(Some(PeerState::Empty), &Notes::default());
        assert_eq!(own.word(serving).state, Some(PeerState::Empty));
        assert_eq!(own.word(serving).joins, None);
        own.joins(cluster);
        assert_eq!(own.word(serving).joins, Some(cluster));
        own.volume(Some(PeerState::Empty), &Notes { set_aside: Some(cluster), ..Notes::default() });
        assert_eq!(own.word(serving).joins, Some(cluster));
        own.runs(None);
        assert_eq!(own.word(serving).joins, None, "its etcd says more");
        assert_eq!(own.word(serving).state, None, "it may be writing");
        own.runs(Some((id, cluster)));
        assert_eq!(own.word(serving).state, Some(PeerState::Serving { member: id, cluster }));
        let state = Some(PeerState::Data { member: id, cluster, last: None });
        assert_eq!(own.word(Health::default()).state, state);
        assert_eq!(own.word(Health { stopping: true, ..serving }).request, Some(Request::Stop));
        assert!(!own.word(serving).serves_clients, "there is no API server");
        assert!(own.word(Health { apiserver_ready: true, ..serving }).serves_clients);
        let stands_by = Health { stands_by: true, ..Health::default() };
        assert!(!own.word(stands_by).serves_clients, "nobody is led here and on to another");
        let starting = Word { applied: Some(RaftIndex(7)), ..own.word(Health::default()) };
        assert_eq!(starting.applied_as(id, cluster), Some(RaftIndex(7)));
        assert_eq!(starting.applied_as(MemberId(9), cluster), None, "of another member");
        let starting = Word { received: Some(4096), ..starting };
        assert_eq!(starting.received_as(id, cluster), Some(4096));
        assert_eq!(starting.received_as(MemberId(9), cluster), None, "of another member");
        assert_eq!(starting.applied_as(id, ClusterId(9)), None, "of another cluster");
        own.ask(Some(Request::Leave));
        assert_eq!(own.word(Health { stopping: true, ..serving }).request, Some(Request::Leave));
    }
}
