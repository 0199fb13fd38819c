//! The same by hand where our pods are: in the same box, with its DNS, its network and its certificates. A pod runs etcd by the
//! arguments that somebody puts on its volume.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::ConnectOptions;

use crate::by_hand::{Etcdctl, Plan, etcd_args};
use crate::peers::Running;
use crate::scale::{Grows, mtls};
use crate::statefulset_box::client::{self, Client};
use crate::statefulset_box::protocol::{Config, Policy, Program};
use crate::store::program;
use crate::writers::Endpoints;

const PATIENCE: Duration = Duration::from_secs(120);

/// What a pod runs, in the place of `syncer start`; the box has its certificates issued by the real one.
const POD: &str = r#"#!/bin/sh
case $1 in start) ;; *) exec SYNCER "$@" ;; esac
for argument in "$@"; do
  case $argument in --data-dir=*) cd "${argument#*=}" ;; esac
done
while [ ! -e go ]; do sleep 0.02; done
exec ETCD $(cat arguments)
"#;

/// One member in a box, which another is to join.
pub struct BoxedByHand {
    client: Client,
    options: ConnectOptions,
    _daemon: Running,
    _dir: tempfile::TempDir,
}

impl BoxedByHand {
    /// It serves.
    pub fn up() -> anyhow::Result<BoxedByHand> {
        let dir = tempfile::tempdir_in(program("SYNCER_BENCH_DIR", "")?)?;
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
        let syncer = program("SYNCER_RELEASE", "")?.display().to_string();
        let etcd = program("SYNCER_PARTS", "etcd")?.display().to_string();
        let file = dir.path().join("pod");
        std::fs::write(&file, POD.replace("SYNCER", &syncer).replace("ETCD", &etcd))?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755))?;
        let runs = Program::Syncer { file, binaries: program("SYNCER_PARTS", "")?, args: Vec::new() };
        let mut config = Config::new(dir.path(), runs, program("SYNCER_PARTS", "coredns")?);
        (config.replicas, config.policy) = (1, Policy::Parallel);
        let (client, daemon) = client::up(&program("SYNCER_STATEFULSET", "")?, &config)?;
        let options = mtls(&client.dir().join("pki"))?;
        let boxed = BoxedByHand { client, options, _daemon: Running(daemon), _dir: dir };
        boxed.start(0, "new", &boxed.initial(0))?;
        boxed.etcdctl()?.insist(&["endpoint", "health"])?;
        Ok(boxed)
    }

    fn host(&self, ordinal: u32) -> String {
        format!("vc-{ordinal}.vc-headless.team-a")
    }

    fn initial(&self, ordinal: u32) -> String {
        format!("vc-{ordinal}=https://{}:2380", self.host(ordinal))
    }

    fn pki(&self) -> PathBuf {
        self.client.dir().join("pki/etcd")
    }

    fn etcdctl(&self) -> anyhow::Result<Etcdctl> {
        let port = self.client.forward(0, 2379)?.port();
        Ok(Etcdctl { endpoint: format!("https://localhost:{port}"), pki: self.pki() })
    }

    /// As soon as the pod has its volume.
    fn start(&self, ordinal: u32, state: &str, cluster: &str) -> anyhow::Result<()> {
        let (name, began) = (format!("vc-{ordinal}"), Instant::now());
        let volume = self.client.dir().join("volumes").join(&name);
        while !volume.exists() {
            ensure!(began.elapsed() < PATIENCE, "{name} has no volume");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (data_dir, pki, host) = (volume.join("etcd"), self.pki(), self.host(ordinal));
        let arguments = etcd_args(&Plan {
            name: &name,
            data_dir: &data_dir,
            listens: "0.0.0.0",
            host: &host,
            ports: (2379, 2380),
            pki: &pki,
            cluster,
            state,
        });
        std::fs::write(volume.join("arguments"), arguments.join(" "))?;
        std::fs::write(volume.join("go"), "").context("tell the pod")
    }
}

impl Grows for BoxedByHand {
    fn endpoints(&self, _: u32) -> anyhow::Result<Endpoints> {
        Ok(Endpoints { urls: vec![self.etcdctl()?.endpoint], options: self.options.clone() })
    }

    fn scale(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        self.client.scale(to)?;
        let etcdctl = self.etcdctl()?;
        for ordinal in from..to {
            let url = format!("https://{}:2380", self.host(ordinal));
            etcdctl.insist(&["member", "add", &format!("vc-{ordinal}"), &format!("--peer-urls={url}"), "--learner"])?;
            let cluster: Vec<_> = (0..=ordinal).map(|o| self.initial(o)).collect();
            self.start(ordinal, "existing", &cluster.join(","))?;
            etcdctl.insist(&["member", "promote", &etcdctl.id(&url)?])?;
        }
        Ok(())
    }
}
