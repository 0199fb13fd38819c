//! The supervisor and its etcd: real programs of every line, started, watched, broken and stopped.

mod dropped;
mod exits;
mod launch;
mod life;
mod table;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use syncer::etcd::args::{Bootstrap, EtcdLaunch, InitialMember, etcd_args};
use syncer::etcd::client::EtcdEndpoint;
use syncer::etcd::version::EtcdVersion;
use syncer::pki::{EtcdTlsFiles, throwaway};
use syncer::settings::EtcdTiming;
use syncer::supervise::probe::EtcdAccess;
use syncer::supervise::spec::{ChildSpec, LogFormat, Ready, Role};

use crate::support::etcd::program;
use crate::support::free_port;

/// A single member of one line of etcd, on loopback, with throwaway certificates.
struct Solo {
    line: &'static str,
    launch: EtcdLaunch,
    tls: EtcdTlsFiles,
    version: EtcdVersion,
}

impl Solo {
    fn new(line: &'static str, dir: &Path) -> Solo {
        let tls = throwaway(&dir.join("tls")).expect("make certificates");
        let (client_port, peer_port) = (free_port(), free_port());
        let peer_url = format!("https://localhost:{peer_port}");
        let launch = EtcdLaunch {
            name: "solo-0".into(),
            data_dir: dir.join("etcd"),
            listen: Ipv4Addr::UNSPECIFIED.into(),
            loopback_only: true,
            client_port,
            peer_port,
            metrics: (Ipv4Addr::LOCALHOST, free_port()).into(),
            bootstrap: Bootstrap::New {
                members: vec![InitialMember { name: "solo-0".into(), peer_url: peer_url.clone() }],
                token: "token".into(),
            },
            peer_url,
            client_url: format!("https://localhost:{client_port}"),
            tls: Some(tls.clone()),
            skip_peer_san: true,
            timing: EtcdTiming { heartbeat: Duration::from_millis(100), election: Duration::from_secs(1) },
            snapshot_count: 10_000,
            quota: None,
            store_size: 0,
            max_request_bytes: Some(3_000_000),
            unsynced: false,
            extra_args: vec!["--max-txn-ops=256".into()],
        };
        let version = EtcdVersion::of(&program("etcd", line)).expect("a known version");
        Solo { line, launch, tls, version }
    }

    fn restarting(mut self) -> Solo {
        self.launch.bootstrap = Bootstrap::Restart;
        self
    }

    fn args(&self) -> Vec<OsString> {
        etcd_args(&self.launch, self.version).expect("a valid launch")
    }

    fn spec(&self) -> ChildSpec {
        ChildSpec {
            role: Role::Etcd,
            program: program("etcd", self.line),
            args: self.args(),
            env: Default::default(),
            env_remove_prefixes: vec!["ETCD_"],
            cwd: None,
            ready: Ready::EtcdLinearizableRead,
            log: LogFormat::EtcdJson,
            stop_grace: Duration::from_secs(10),
        }
    }

    fn endpoint(&self) -> EtcdEndpoint {
        EtcdEndpoint { url: self.launch.client_url.clone(), tls: Some(self.tls.client()), server_name: None }
    }

    fn access(&self) -> EtcdAccess {
        EtcdAccess {
            port: self.launch.client_port,
            metrics_port: self.launch.metrics.port(),
            snap_dir: self.launch.data_dir.join("member/snap"),
            tls: self.tls.clone(),
        }
    }
}
