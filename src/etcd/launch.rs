//! The embedded etcd of this pod as a child: settings, certificates and what is on disk in, child spec out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{Bootstrap, EtcdLaunch, InitialMember, etcd_args};
use super::version::EtcdVersion;
use crate::datadir::MemberIdentity;
use crate::datadir::members::stored_members;
use crate::migrate::journal;
use crate::observe::notes;
use crate::pki::Pki;
use crate::restore::record;
use crate::settings::{EtcdTiming, Settings};
use crate::supervise::spec::{ChildSpec, LogFormat, OF_NO_USE, Ready, Role};

/// Heartbeat and election timeout of a member that is alone, unless the values set them. A restarted member waits for
/// up to an election timeout before it leads; alone, it has nobody whose heartbeat could be late.
const ALONE: EtcdTiming = EtcdTiming { heartbeat: Duration::from_millis(20), election: Duration::from_millis(200) };

/// From SIGTERM to SIGKILL: with its clients gone etcd stops within milliseconds.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Room for the request around the largest value, in bytes.
const REQUEST_OVERHEAD: u64 = 64 << 10;

/// What decides how etcd is started.
pub struct Launch<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Its certificates.
    pub pki: &'a Pki,
    /// How it comes to its cluster.
    pub bootstrap: Bootstrap,
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: EtcdVersion,
}

/// A new cluster of this member alone.
pub fn form(settings: &Settings, token: String) -> Bootstrap {
    let me = InitialMember { name: settings.pod.name.clone(), peer_url: settings.peer_url() };
    Bootstrap::New { members: vec![me], token }
}

/// This pod's member as the only one of a new cluster, for whoever writes its data dir.
pub fn identity(settings: &Settings, token: String) -> MemberIdentity {
    MemberIdentity {
        name: settings.pod.name.clone(),
        peer_urls: vec![settings.peer_url()],
        client_urls: vec![settings.client_url()],
        token,
    }
}

/// The child. Reads the size of the store and its member list, and what an import noted of its values.
pub fn spec(launch: &Launch<'_>) -> anyhow::Result<ChildSpec> {
    let settings = launch.settings;
    let backend = settings.etcd_dir().join("member/snap/db");
    let alone = match launch.bootstrap {
        Bootstrap::New { ref members, .. } => members.len() == 1,
        // A member that was killed right after forming has its list in the WAL only; one of several that is taken for
        // alone is at worst restless until the values say how many there are to be.
        Bootstrap::Restart => stored_members(&backend).map_or(true, |stored| stored.members.len() <= 1),
        Bootstrap::Existing { .. } | Bootstrap::ForceNewCluster => false,
    };
    let largest = largest_request(settings)?;
    let etcd = EtcdLaunch {
        name: settings.pod.name.clone(),
        data_dir: settings.etcd_dir(),
        listen: settings.listen.address,
        loopback_only: false,
        client_port: settings.listen.client_port,
        peer_port: settings.listen.peer_port,
        metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, settings.listen.metrics_port)),
        peer_url: settings.peer_url(),
        client_url: settings.client_url(),
        bootstrap: launch.bootstrap.clone(),
        tls: Some(launch.pki.paths.etcd_tls()),
        skip_peer_san: launch.pki.peer_skip_san,
        timing: timing(settings, alone),
        snapshot_count: settings.etcd.snapshot_count,
        quota: settings.etcd.quota_backend_bytes,
        store_size: store_size(&launch.bootstrap, &backend),
        max_request_bytes: largest.map(|bytes| bytes.saturating_add(REQUEST_OVERHEAD)),
        unsynced: false,
        extra_args: settings.etcd.extra_args.clone(),
    };
    Ok(ChildSpec {
        role: Role::Etcd,
        program: launch.program.clone(),
        args: etcd_args(&etcd, launch.version).map_err(|e| e.refused())?,
        env: BTreeMap::new(),
        env_remove_prefixes: OF_NO_USE.to_vec(),
        cwd: Some(settings.data_dir.clone()),
        ready: Ready::EtcdLinearizableRead,
        log: LogFormat::EtcdJson,
        stop_grace: STOP_GRACE,
    })
}

/// Bytes of the backend file, or of the one that a joiner is to be sent.
fn store_size(bootstrap: &Bootstrap, backend: &Path) -> u64 {
    match bootstrap {
        Bootstrap::Existing { store_bytes, .. } => *store_bytes,
        Bootstrap::New { .. } | Bootstrap::Restart | Bootstrap::ForceNewCluster => {
            std::fs::metadata(backend).map_or(0, |meta| meta.len())
        }
    }
}

/// The largest request that the store's values need, in bytes: of what was imported or restored here, or as another pod
/// said, whose store this pod's member has. etcd checks it in the member that is asked.
pub fn largest_request(settings: &Settings) -> anyhow::Result<Option<u64>> {
    let dir = &settings.data_dir;
    let told = notes::load(dir)?.request_bytes;
    Ok(journal::max_request_bytes(dir)?.max(record::max_request_bytes(dir)?).max(told))
}

/// Whether this etcd runs with the timing of one that is alone.
pub fn is_alone(spec: &ChildSpec) -> bool {
    let election = format!("--election-timeout={}", ALONE.election.as_millis());
    spec.role == Role::Etcd && spec.args.iter().any(|arg| *arg == *election)
}

/// Whether this etcd, started by these settings, has that timing by our choice, and not by the user's.
pub fn chosen_alone(spec: &ChildSpec, settings: &Settings) -> bool {
    is_alone(spec) && !settings.etcd.timing_set
}

/// The timing as set, or the quick one of a member that is alone; `start::timing` sees to it once it is not any more.
fn timing(settings: &Settings, alone: bool) -> EtcdTiming {
    let etcd = &settings.etcd;
    if alone && etcd.replicas == 1 && !etcd.timing_set { ALONE } else { etcd.timing }
}
