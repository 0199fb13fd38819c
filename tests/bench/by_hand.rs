//! The same members without us: etcd with our timing and with mTLS, and a person with etcdctl who makes no mistake and loses no
//! time.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::peers::{Running, free_port};
use crate::scale::{Fleet, Grows, mtls};
use crate::store::program;
use crate::writers::Endpoints;

const PATIENCE: Duration = Duration::from_secs(120);

/// etcdctl, with the certificates of ours.
pub struct Etcdctl {
    /// Whom it asks.
    pub endpoint: String,
    /// The folder of etcd's certificates.
    pub pki: PathBuf,
}

impl Etcdctl {
    /// What it answers.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Value> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.pki.join(name).display());
        let output = Command::new(program("SYNCER_PARTS", "etcdctl")?)
            .args([format!("--endpoints={}", self.endpoint), "--write-out=json".to_owned()])
            .args([
                file("cacert", "ca.crt"),
                file("cert", "healthcheck-client.crt"),
                file("key", "healthcheck-client.key"),
            ])
            .args(args)
            .output()
            .context("run etcdctl")?;
        ensure!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        // `move-leader` prints a line whatever is asked for.
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Asks until it is done: etcd refuses for five seconds after a member connected, and while a learner lags.
    pub fn insist(&self, args: &[&str]) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Err(error) = self.run(args) {
            ensure!(began.elapsed() < PATIENCE, "{error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The ID of the member with this peer URL. IDs are numbers in etcdctl's JSON and hexadecimal in its arguments.
    pub fn id(&self, peer_url: &str) -> anyhow::Result<String> {
        let list = self.run(&["member", "list"])?;
        let members = list["members"].as_array().context("no members")?;
        let member = members.iter().find(|m| m["peerURLs"][0] == *peer_url).context("it is not listed")?;
        Ok(format!("{:x}", member["ID"].as_u64().context("no ID")?))
    }
}

/// How an etcd is started by hand.
pub struct Plan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its data dir.
    pub data_dir: &'a Path,
    /// The address that it listens on.
    pub listens: &'a str,
    /// The name that it is reached by.
    pub host: &'a str,
    /// For clients and for peers.
    pub ports: (u16, u16),
    /// The folder of etcd's certificates.
    pub pki: &'a Path,
    /// `--initial-cluster`.
    pub cluster: &'a str,
    /// `--initial-cluster-state`.
    pub state: &'a str,
}

/// With our timing and with mTLS.
pub fn etcd_args(plan: &Plan<'_>) -> Vec<String> {
    let Plan { name, data_dir, listens, host, ports: (client, peer), pki, cluster, state } = plan;
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
    vec![
        "--heartbeat-interval=100".into(),
        "--election-timeout=1000".into(),
        "--quota-backend-bytes=8589934592".into(),
        format!("--name={name}"),
        format!("--initial-cluster={cluster}"),
        format!("--data-dir={}", data_dir.display()),
        format!("--listen-client-urls=https://{listens}:{client}"),
        format!("--advertise-client-urls=https://{host}:{client}"),
        format!("--listen-peer-urls=https://{listens}:{peer}"),
        format!("--initial-advertise-peer-urls=https://{host}:{peer}"),
        "--client-cert-auth".into(),
        "--peer-client-cert-auth".into(),
        file("trusted-ca-file", "ca.crt"),
        file("peer-trusted-ca-file", "ca.crt"),
        file("cert-file", "server.crt"),
        file("key-file", "server.key"),
        file("peer-cert-file", "peer.crt"),
        file("peer-key-file", "peer.key"),
        format!("--initial-cluster-state={state}"),
        "--log-level=error".into(),
    ]
}

struct Member {
    client: u16,
    peer: u16,
    etcd: Option<Running>,
}

/// Members on loopback, with certificates in the layout of ours.
pub struct ByHand {
    dir: tempfile::TempDir,
    members: Vec<Member>,
}

impl ByHand {
    /// So many members, which form a cluster together.
    pub fn up(replicas: u32) -> anyhow::Result<ByHand> {
        let dir = tempfile::tempdir_in(program("SYNCER_BENCH_DIR", "")?)?;
        let mut members = Vec::new();
        for _ in 0..3 {
            members.push(Member { client: free_port()?, peer: free_port()?, etcd: None });
        }
        let issued = Command::new(program("SYNCER_RELEASE", "")?)
            .args(["certs", "--distro=none", "--dir"])
            .arg(dir.path().join("pki"))
            .stdout(Stdio::null())
            .status()
            .context("issue certificates")?;
        ensure!(issued.success(), "syncer certs: {issued}");
        let mut fleet = ByHand { dir, members };
        let cluster: Vec<_> = (0..replicas).map(|ordinal| fleet.initial(ordinal)).collect::<Result<_, _>>()?;
        for ordinal in 0..replicas {
            fleet.start(ordinal, "new", &cluster.join(","))?;
        }
        for ordinal in 0..replicas {
            fleet.serves(ordinal)?;
        }
        Ok(fleet)
    }

    fn member(&self, ordinal: u32) -> anyhow::Result<&Member> {
        self.members.get(ordinal as usize).context("no such member")
    }

    fn initial(&self, ordinal: u32) -> anyhow::Result<String> {
        Ok(format!("m{ordinal}=https://localhost:{}", self.member(ordinal)?.peer))
    }

    fn start(&mut self, ordinal: u32, state: &str, cluster: &str) -> anyhow::Result<()> {
        let member = self.member(ordinal)?;
        let (client, peer) = (member.client, member.peer);
        let etcd = Command::new(program("SYNCER_PARTS", "etcd")?)
            .args(etcd_args(&Plan {
                name: &format!("m{ordinal}"),
                data_dir: &self.dir.path().join(format!("m{ordinal}")),
                listens: "127.0.0.1",
                host: "localhost",
                ports: (client, peer),
                pki: &self.dir.path().join("pki/etcd"),
                cluster,
                state,
            }))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start etcd")?;
        self.members.get_mut(ordinal as usize).context("no such member")?.etcd = Some(Running(etcd));
        Ok(())
    }

    fn ctl(&self, ordinal: u32, args: &[&str]) -> anyhow::Result<Value> {
        self.etcdctl(ordinal)?.run(args)
    }

    fn insist(&self, args: &[&str]) -> anyhow::Result<()> {
        self.etcdctl(0)?.insist(args)
    }

    fn etcdctl(&self, ordinal: u32) -> anyhow::Result<Etcdctl> {
        let endpoint = format!("https://localhost:{}", self.member(ordinal)?.client);
        Ok(Etcdctl { endpoint, pki: self.dir.path().join("pki/etcd") })
    }

    fn serves(&self, ordinal: u32) -> anyhow::Result<()> {
        let (began, port) = (Instant::now(), self.member(ordinal)?.client);
        loop {
            let there = TcpStream::connect(("127.0.0.1", port)).is_ok();
            if there && self.ctl(ordinal, &["endpoint", "health"]).is_ok() {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "member {ordinal} does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn id(&self, ordinal: u32) -> anyhow::Result<String> {
        self.etcdctl(0)?.id(&format!("https://localhost:{}", self.member(ordinal)?.peer))
    }

    /// Leadership to member `to` if `from` has it.
    fn lead(&self, from: u32, to: u32) -> anyhow::Result<()> {
        // A member that was just promoted may open its client port only seconds later.
        self.serves(from)?;
        let status = self.ctl(from, &["endpoint", "status"])?;
        let status = &status[0]["Status"];
        if status["leader"] == status["header"]["member_id"] {
            self.ctl(from, &["move-leader", &self.id(to)?])?;
        }
        Ok(())
    }

    fn stop(&mut self, ordinal: u32) -> anyhow::Result<()> {
        let member = self.members.get_mut(ordinal as usize).context("no such member")?;
        let mut etcd = member.etcd.take().context("it does not run")?;
        kill(Pid::from_raw(i32::try_from(etcd.0.id())?), Signal::SIGTERM)?;
        etcd.0.wait()?;
        Ok(())
    }
}

impl Grows for ByHand {
    fn endpoints(&self, replicas: u32) -> anyhow::Result<Endpoints> {
        let urls = self.members.iter().take(replicas as usize).map(|m| format!("https://localhost:{}", m.client));
        Ok(Endpoints { urls: urls.collect(), options: mtls(&self.dir.path().join("pki"))? })
    }

    fn scale(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        for ordinal in (to..from).rev() {
            self.lead(ordinal, 0)?;
            self.insist(&["member", "remove", &self.id(ordinal)?])?;
            self.stop(ordinal)?;
            std::fs::remove_dir_all(self.dir.path().join(format!("m{ordinal}")))?;
        }
        for ordinal in from..to {
            let url = format!("--peer-urls=https://localhost:{}", self.member(ordinal)?.peer);
            self.insist(&["member", "add", &format!("m{ordinal}"), &url, "--learner"])?;
            let cluster: Vec<_> = (0..=ordinal).map(|o| self.initial(o)).collect::<Result<_, _>>()?;
            self.start(ordinal, "existing", &cluster.join(","))?;
            self.insist(&["member", "promote", &self.id(ordinal)?])?;
        }
        Ok(())
    }
}

impl Fleet for ByHand {
    fn led_by_the_lowest(&mut self) -> anyhow::Result<()> {
        let running = (1..).zip(self.members.iter().skip(1)).filter(|(_, member)| member.etcd.is_some());
        running.map(|(ordinal, _)| ordinal).try_for_each(|ordinal| self.lead(ordinal, 0))
    }

    fn roll(&mut self, replicas: u32) -> anyhow::Result<()> {
        for ordinal in (0..replicas).rev() {
            let next = if ordinal == 0 { 1 } else { 0 };
            self.lead(ordinal, next)?;
            self.stop(ordinal)?;
            let cluster: Vec<_> = (0..replicas).map(|o| self.initial(o)).collect::<Result<_, _>>()?;
            self.start(ordinal, "existing", &cluster.join(","))?;
            self.serves(ordinal)?;
        }
        Ok(())
    }
}
