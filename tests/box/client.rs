//! Starts a box and talks to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::coredns::Mood;
use super::protocol::{ApiMood, Config, LOG, NetworkMode, Policy, Program, Reply, Request, SOCKET, Status};

/// How long a box may take to come up, without its pods.
const UP_PATIENCE: Duration = Duration::from_secs(180);

impl Config {
    /// A StatefulSet `vc` in namespace `team-a` as the charts have it, in folder `dir`.
    pub fn new(dir: &Path, program: Program, coredns: PathBuf) -> Config {
        Config {
            dir: dir.to_owned(),
            name: "vc".to_owned(),
            namespace: "team-a".to_owned(),
            replicas: 1,
            policy: Policy::OrderedReady,
            program,
            coredns,
            grace_ms: 10_000,
            backoff_ms: (500, 10_000),
            probe_ms: 200,
            liveness_ms: 2000,
            ttl: 1,
            negative_ttl: 1,
            network: NetworkMode::Auto,
            first: 0,
            mounted_pki: true,
            env: BTreeMap::new(),
            host: None,
            die_with_parent: true,
        }
    }
}

/// A box that runs in this folder.
#[derive(Clone, Debug)]
pub struct Client {
    dir: PathBuf,
}

impl Client {
    /// The box in `dir`; whether one runs there shows when it is asked.
    pub fn new(dir: &Path) -> Client {
        Client { dir: dir.to_owned() }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        let socket = self.dir.join(SOCKET);
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("no box runs in {}", self.dir.display()))?;
        writeln!(stream, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the box in {} ended without an answer", self.dir.display());
        match serde_json::from_str(&line)? {
            Reply::Refused(why) => bail!("{why}"),
            reply => Ok(reply),
        }
    }

    fn order(&self, request: &Request) -> anyhow::Result<()> {
        self.ask(request).map(|_| ())
    }

    /// How it is.
    pub fn status(&self) -> anyhow::Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// Waits until its status is as wanted; says the last one if that is too late.
    pub fn wait(&self, what: &str, deadline: Duration, wanted: impl Fn(&Status) -> bool) -> anyhow::Result<Status> {
        let began = Instant::now();
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(began.elapsed() < deadline, "{what}: not within {deadline:?}; {status:#?}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until nothing is left to do.
    pub fn settle(&self, deadline: Duration) -> anyhow::Result<Status> {
        self.wait("all pods ready", deadline, |status| status.settled)
    }

    /// Changes the replicas, of the StatefulSet and in the values file. Does not wait.
    pub fn scale(&self, replicas: u32) -> anyhow::Result<()> {
        self.order(&Request::Scale { replicas, values: true })
    }

    /// Changes the replicas of the StatefulSet alone, as `kubectl scale` does. Does not wait.
    pub fn scale_only(&self, replicas: u32) -> anyhow::Result<()> {
        self.order(&Request::Scale { replicas, values: false })
    }

    /// Deletes a pod: SIGTERM, and SIGKILL after its grace.
    pub fn delete(&self, ordinal: u32) -> anyhow::Result<()> {
        self.order(&Request::Delete(ordinal))
    }

    /// Kills a pod with SIGKILL, as if its node had lost it.
    pub fn kill9(&self, ordinal: u32) -> anyhow::Result<()> {
        self.order(&Request::Kill(ordinal))
    }

    /// Kills a pod and sets its volume aside.
    pub fn lose_volume(&self, ordinal: u32) -> anyhow::Result<()> {
        self.order(&Request::LoseVolume(ordinal))
    }

    /// Begins a rolling update.
    pub fn roll(&self) -> anyhow::Result<()> {
        self.order(&Request::Roll)
    }

    /// Parts two pods.
    pub fn partition(&self, a: u32, b: u32) -> anyhow::Result<()> {
        self.order(&Request::Partition(a, b))
    }

    /// Ends all partitions.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.order(&Request::Heal)
    }

    /// What DNS does from now on.
    pub fn dns(&self, mood: Mood) -> anyhow::Result<()> {
        self.order(&Request::Dns(mood))
    }

    /// What the host cluster's API server does from now on.
    pub fn host_api(&self, mood: ApiMood) -> anyhow::Result<()> {
        self.order(&Request::HostApi(mood))
    }

    /// An address on this machine's loopback that leads to a pod's port.
    pub fn forward(&self, ordinal: u32, port: u16) -> anyhow::Result<SocketAddr> {
        match self.ask(&Request::Forward(ordinal, port))? {
            Reply::Address(address) => Ok(address),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// Ends the pods and the box; its folder stays.
    pub fn down(&self) -> anyhow::Result<()> {
        self.order(&Request::Down)
    }

    /// The kubeconfig of the host cluster's administrator, for use outside of the box.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("host/kubeconfig")
    }

    /// A pod's volume.
    pub fn volume(&self, pod: &str) -> PathBuf {
        self.dir.join("volumes").join(pod)
    }

    /// The files with which a pod's etcd can be asked.
    pub fn pki(&self, pod: &str) -> PathBuf {
        let mounted = self.dir.join("pki");
        if mounted.exists() { mounted } else { self.volume(pod).join("pki") }
    }

    /// What a pod of this name has printed.
    pub fn log(&self, pod: &str) -> String {
        fs::read_to_string(self.dir.join("logs").join(format!("{pod}.log"))).unwrap_or_default()
    }
}

/// Starts a box with the program `exe` (`statefulset`), and waits until it can be asked; not for its pods. Dropping the
/// child does not end it.
///
/// What an earlier box left in the folder is taken over: its volumes are kept, the rest is replaced.
pub fn up(exe: &Path, config: &Config) -> anyhow::Result<(Client, Child)> {
    fs::create_dir_all(&config.dir)?;
    let dir = fs::canonicalize(&config.dir)?;
    let config = Config { dir: dir.clone(), ..config.clone() };
    let client = Client::new(&dir);
    if client.status().is_ok() {
        bail!("a box runs in {} already: bring it down first", dir.display());
    }
    let log = File::options().create(true).append(true).open(dir.join(LOG))?;
    let mut command = Command::new(exe);
    command.arg("serve").arg(serde_json::to_string(&config)?);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.process_group(0);
    let mut daemon = command.spawn().with_context(|| format!("start {}", exe.display()))?;
    let began = Instant::now();
    while client.status().is_err() {
        if let Some(status) = daemon.try_wait()? {
            let log = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
            bail!("the box ended with {status}: {}", log.lines().last().unwrap_or_default());
        }
        ensure!(began.elapsed() < UP_PATIENCE, "the box does not answer; see {}", dir.join(LOG).display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((client, daemon))
}
