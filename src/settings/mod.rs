//! The effective settings: what the values file, the environment and the flags say, validated once and immutable.
//!
//! [`values`] mirrors the chart as written, in both eras; [`Settings`] is what the rest of the program sees.

pub mod change;
pub mod chart_flags;
pub mod check;
pub mod env;
pub mod flags;
pub mod load;
pub mod provenance;
mod resolve;
pub mod values;
pub mod watch;
pub mod yaml;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::Ordinal;
use crate::snapshot::schedule::Schedule;
use crate::snapshot::target::Target;

/// Everything the program needs to know, validated. Built by `settings::load`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the virtual cluster: the StatefulSet's name.
    pub name: String,
    /// Namespace of the StatefulSet in the host cluster.
    pub namespace: String,
    /// Which pod this is.
    pub pod: PodIdentity,
    /// The volume; `/data` in a pod. etcd's data dir is [`Settings::etcd_dir`] in it.
    pub data_dir: PathBuf,
    /// Which API server runs here.
    pub distro: Distro,
    /// `embeddedEtcd` / `controlPlane.backingStore.etcd.embedded`.
    pub etcd: EtcdSettings,
    /// Where programs are and what the charts say of them.
    pub programs: Programs,
    /// Ports and addresses to listen on.
    pub listen: Listen,
    /// How the other pods' names are resolved.
    pub dns: DnsSettings,
    /// How the host cluster's API is reached, if it is.
    pub host_api: HostApi,
    /// Where the children read certificates: `/pki`, `<data>/pki` or `<data>/k0s/pki`.
    pub pki_dir: PathBuf,
    /// Additional names and addresses for serving certificates (`--tls-san`).
    pub tls_sans: Vec<String>,
    /// Range of Service addresses of the virtual cluster.
    pub service_cidr: String,
    /// DNS domain of the virtual cluster, `cluster.local` unless set.
    pub cluster_domain: String,
    /// Token of a k3s virtual cluster, if the values give one.
    pub k3s_token: Option<String>,
    /// Time from SIGTERM to the last child's end; the children are stopped within it.
    pub shutdown_grace: Duration,
    /// `start ... -- COMMAND`: supervised in the API server's place.
    pub wrapped: Option<Vec<OsString>>,
    /// The values file that was read, watched for changes.
    pub values_file: Option<PathBuf>,
    /// Form of the log lines; `None`: text on a terminal, JSON elsewhere.
    pub log_format: Option<flags::LogFormat>,
    /// What is logged: a level, or levels by part (`info,etcd=warn`).
    pub log_level: String,
}

/// Which pod of which StatefulSet this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Pod name, which is also the etcd member name.
    pub name: String,
    /// Its number in the StatefulSet.
    pub ordinal: Ordinal,
    /// Its address (`POD_IP`), if known.
    pub ip: Option<IpAddr>,
    /// Whether it runs in a pod (`POD_NAME` is set). On a laptop everything stays on loopback.
    pub in_pod: bool,
}

/// The Kubernetes distribution whose API server runs beside etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distro {
    /// k3s: one binary, which is its own API server, controller-manager and scheduler.
    K3s,
    /// Upstream kube-apiserver, controller-manager and (optionally) scheduler.
    K8s,
    /// The EKS build of the same programs.
    Eks,
    /// k0s: one binary, configured by a file.
    K0s,
    /// etcd alone.
    None,
}

impl Distro {
    /// The name in values, environment and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Distro::K3s => "k3s",
            Distro::K8s => "k8s",
            Distro::Eks => "eks",
            Distro::K0s => "k0s",
            Distro::None => "none",
        }
    }
}

/// Settings of the embedded etcd.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdSettings {
    /// Whether etcd runs here; otherwise the API server runs on SQLite.
    pub enabled: bool,
    /// Desired replicas as the values file says it.
    pub replicas: u32,
    /// A deployed etcd to move from (`migrateFromEtcd`, `--migrate-from`).
    pub migrate_from: Option<String>,
    /// Move the store back to SQLite.
    pub migrate_back: bool,
    /// `--snapshot-count`; 10000 unless set.
    pub snapshot_count: u64,
    /// Flags handed to etcd as they are, after ours.
    pub extra_args: Vec<String>,
    /// `--quota-backend-bytes`; `None`: 8 GiB, and never below the store's size.
    pub quota_backend_bytes: Option<u64>,
    /// Heartbeat interval and election timeout.
    pub timing: EtcdTiming,
    /// Whether the values set the timing. Otherwise a member that is alone has a quicker one.
    pub timing_set: bool,
    /// Backups on a schedule; `None`: none are taken.
    pub snapshots: Option<SnapshotSettings>,
}

/// Backups on a schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotSettings {
    /// When one is taken.
    pub schedule: Schedule,
    /// So many are kept; older ones are removed.
    pub keep: u32,
    /// Where they are kept.
    pub target: Target,
}

/// Raft's timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdTiming {
    /// `--heartbeat-interval`, 100 ms unless set.
    pub heartbeat: Duration,
    /// `--election-timeout`, 1 s unless set.
    pub election: Duration,
}

/// Programs, and the commands that the charts pass in the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Programs {
    /// Folders searched for programs, in order, before `PATH`: `--binaries`, `/binaries`, the folder of this binary.
    pub folders: Vec<PathBuf>,
    /// `VCLUSTER_COMMAND` (k3s, k0s).
    pub vcluster: Option<DistroCommand>,
    /// `APISERVER_COMMAND` (k8s, eks).
    pub apiserver: Option<DistroCommand>,
    /// `CONTROLLER_COMMAND` (k8s, eks).
    pub controller: Option<DistroCommand>,
    /// `SCHEDULER_COMMAND` (k8s, eks); the scheduler runs only if this is set or the values enable it.
    pub scheduler: Option<DistroCommand>,
    /// Whether the values enable the scheduler.
    pub scheduler_enabled: bool,
    /// Whether no controller-manager runs: none does where the charts give the API server's command and not its own
    /// (`controller.disabled`).
    pub controller_disabled: bool,
    /// Additional arguments for the API server, controller-manager and scheduler (or the one distro binary).
    pub apiserver_extra_args: Vec<String>,
    /// See [`Programs::apiserver_extra_args`].
    pub controller_extra_args: Vec<String>,
    /// See [`Programs::apiserver_extra_args`].
    pub scheduler_extra_args: Vec<String>,
    /// The whole k0s configuration, if the values give one (`config`; 0.20 and later: `controlPlane.distro.k0s.config`).
    pub k0s_config: Option<String>,
}

/// A command as the charts write it in an environment variable: YAML `{command: [...], args: [...]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistroCommand {
    /// Program and first arguments.
    pub command: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
}

/// Ports and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address for etcd's client and peer ports and for 8443: `0.0.0.0` in a pod, `127.0.0.1` on a laptop.
    pub address: IpAddr,
    /// etcd client port, 2379.
    pub client_port: u16,
    /// etcd peer port, 2380.
    pub peer_port: u16,
    /// etcd metrics and health port, loopback only, 2381.
    pub metrics_port: u16,
    /// Port on which this pod tells the others its state, over mTLS, 2382.
    pub state_port: u16,
    /// The port of the charts' Service and probes, 8443.
    pub front_port: u16,
    /// The API server's own port on loopback, 6443.
    pub apiserver_port: u16,
}

/// Where names are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// The server to ask; `None`: those of [`DnsSettings::resolv_conf`].
    pub server: Option<SocketAddr>,
    /// `/etc/resolv.conf`: servers, search list and options.
    pub resolv_conf: PathBuf,
}

/// How the API of the host cluster is reached. It is a fact of the pod's surroundings: one that is configured and does not
/// answer is unknown, and never taken for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostApi {
    /// There is none: outside a pod, or in one without a service account's token.
    None,
    /// As Kubernetes tells its pods: `KUBERNETES_SERVICE_HOST` and the mounted service account.
    InCluster,
    /// By a kubeconfig (`--host-kubeconfig`).
    Kubeconfig(PathBuf),
}

impl Settings {
    /// etcd's data dir, as vCluster has it.
    pub fn etcd_dir(&self) -> PathBuf {
        self.data_dir.join("etcd")
    }

    /// Where a SQLite store of this distro may be, most likely first.
    pub fn state_db_candidates(&self) -> Vec<PathBuf> {
        let k3s = self.data_dir.join("server/db/state.db");
        let k8s = self.data_dir.join("state.db");
        let k0s = self.data_dir.join("k0s/db/state.db");
        match self.distro {
            Distro::K3s => vec![k3s, k8s, k0s],
            Distro::K0s => vec![k0s, k8s, k3s],
            Distro::K8s | Distro::Eks | Distro::None => vec![k8s, k3s, k0s],
        }
    }

    /// The name under which peers reach this pod: in a pod its name in the headless service, else `localhost`.
    pub fn advertised_host(&self) -> String {
        if self.pod.in_pod {
            format!("{}.{}-headless.{}", self.pod.name, self.name, self.namespace)
        } else {
            "localhost".to_owned()
        }
    }

    /// This member's peer URL. A data dir made by vCluster has the same.
    pub fn peer_url(&self) -> String {
        format!("https://{}:{}", self.advertised_host(), self.listen.peer_port)
    }

    /// This member's client URL.
    pub fn client_url(&self) -> String {
        format!("https://{}:{}", self.advertised_host(), self.listen.client_port)
    }

    /// The file of a program: the first folder of [`Programs::folders`] that has it, else the bare name for `PATH`.
    pub fn program(&self, name: &str) -> PathBuf {
        find_program(&self.programs.folders, name)
    }
}

fn find_program(folders: &[PathBuf], name: &str) -> PathBuf {
    folders.iter().map(|f| f.join(name)).find(|p| p.is_file()).unwrap_or_else(|| Path::new(name).to_owned())
}
