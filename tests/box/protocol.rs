//! What a box is made of, what can be asked of it, and what it says about itself. One JSON line each way on the socket
//! `box.sock` in its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The socket in a box's folder.
pub const SOCKET: &str = "box.sock";
/// The daemon's own log in a box's folder.
pub const LOG: &str = "box.log";

/// A box, as it is brought up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Where its volumes, logs and socket are. Kept when it goes down.
    pub dir: PathBuf,
    /// The StatefulSet's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Desired replicas at first.
    pub replicas: u32,
    /// `podManagementPolicy`.
    pub policy: Policy,
    /// What runs in the pods.
    pub program: Program,
    /// The program `coredns`.
    pub coredns: PathBuf,
    /// `terminationGracePeriodSeconds`, in milliseconds.
    pub grace_ms: u64,
    /// First and longest wait before a failed pod is replaced, or a process that ended started again, in milliseconds.
    pub backoff_ms: (u64, u64),
    /// From one readiness probe to the next, in milliseconds.
    pub probe_ms: u64,
    /// From one liveness probe to the next, in milliseconds.
    pub liveness_ms: u64,
    /// Seconds that DNS records hold.
    pub ttl: u32,
    /// Seconds that their absence holds.
    pub negative_ttl: u32,
    /// How pods get their addresses.
    pub network: NetworkMode,
    /// `spec.ordinals.start`, with a host cluster.
    pub first: u32,
    /// Mount one PKI into every pod. Without it each has its own, on its volume.
    pub mounted_pki: bool,
    /// Environment of every pod, beside its identity.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Run a host cluster, whose controllers decide.
    pub host: Option<HostPrograms>,
    /// End when the process that started it ends.
    pub die_with_parent: bool,
}

/// The programs of a host cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostPrograms {
    /// The folder of etcd, kube-apiserver and kube-controller-manager.
    pub parts: PathBuf,
    /// A `syncer`, which issues the certificates.
    pub certs: PathBuf,
}

/// `podManagementPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum Policy {
    /// One after another, each when all before it are ready.
    OrderedReady,
    /// All at once.
    Parallel,
}

/// What runs in the pods.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Program {
    /// `syncer start`.
    Syncer {
        /// The program.
        file: PathBuf,
        /// The folder of etcd and the API server's programs.
        binaries: PathBuf,
        /// More arguments.
        args: Vec<String>,
    },
    /// The box's own [`super::stand_in`].
    StandIn,
}

/// How pods get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum NetworkMode {
    /// Namespaces where they can be had, else loopback.
    Auto,
    /// Each pod has network, PID, mount and UTS namespaces of its own. As root, or where users may make namespaces.
    Namespaces,
    /// Each pod has an address 127.x.y.z. No partitions; programs that read /etc/resolv.conf find no pods.
    Loopback,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// How it is.
    Status,
    /// Changes the StatefulSet's replicas, and in the values file too if `values` is set.
    Scale {
        /// Desired replicas.
        replicas: u32,
        /// Change the values file as well, as `helm upgrade` would.
        values: bool,
    },
    /// Deletes a pod: SIGTERM, and SIGKILL when its grace is over. It is replaced.
    Delete(u32),
    /// Kills a pod with SIGKILL, as if its node had lost it. It is replaced, after a while if it often fails.
    Kill(u32),
    /// Kills a pod and takes its volume away. It is replaced with an empty one.
    LoseVolume(u32),
    /// A new revision of the pod template: a rolling update.
    Roll,
    /// These two pods do not reach each other any more, whatever addresses they will have.
    Partition(u32, u32),
    /// All pods reach each other again.
    Heal,
    /// What DNS does from now on.
    Dns(super::coredns::Mood),
    /// What the host cluster's API server does from now on.
    HostApi(ApiMood),
    /// An address outside of the box that leads to a pod's port, wherever the pod runs.
    Forward(u32, u16),
    /// Ends all pods, as deleting the StatefulSet does, then the box.
    Down,
}

/// What a host cluster's API server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum ApiMood {
    /// It answers.
    Well,
    /// Pods hear its answers late, and soon enough for most.
    Slow,
    /// It does what pods ask for, and they hear that when they have given up.
    Late,
    /// It takes requests and says nothing.
    Hangs,
    /// Nobody listens.
    Gone,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Forward`].
    Address(SocketAddr),
    /// It is done, or begun.
    Done,
    /// It cannot be done.
    Refused(String),
}

/// How a box is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Desired replicas.
    pub replicas: u32,
    /// `podManagementPolicy`.
    pub policy: Policy,
    /// The revision to which pods are updated; with a host cluster the StatefulSet's generation.
    pub revision: u64,
    /// How pods have their addresses.
    pub network: NetworkMode,
    /// The DNS server, inside.
    pub dns: SocketAddr,
    /// Pods by ordinal, those that wait to be replaced too.
    pub pods: BTreeMap<u32, PodStatus>,
    /// Pairs of pods that do not reach each other.
    pub partitions: BTreeSet<(u32, u32)>,
    /// Nothing is left to do: all desired pods are ready and of the revision, and there are no others.
    pub settled: bool,
}

impl Status {
    /// The ordinals of the ready pods.
    pub fn ready(&self) -> Vec<u32> {
        self.pods.iter().filter(|(_, pod)| pod.ready).map(|(ordinal, _)| *ordinal).collect()
    }
}

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// Its address, which it has for as long as it exists.
    pub address: Option<IpAddr>,
    /// How far it is.
    pub phase: PodPhase,
    /// Whether its last readiness probes succeeded.
    pub ready: bool,
    /// Counts all pods that the box has started.
    pub incarnation: u64,
    /// The revision that it was started with; with a host cluster it is not known here.
    pub revision: u64,
    /// How often a pod of this name was killed since one was last well.
    pub failures: u32,
    /// How often its process was started again in its place.
    pub restarts: u32,
    /// Its process, if it runs, as seen from outside; PID 1 inside.
    pub pid: Option<i32>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// It runs.
    Running,
    /// It was told to end.
    Terminating,
    /// It was killed and is going to be replaced, or its process has ended and is going to be started again.
    Backoff,
}
