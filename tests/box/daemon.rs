//! The process that is the box: it carries out what the controller decides, as the kubelet and the cluster's DNS would,
//! and answers clients.

mod dns;
mod driver;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{SigSet, Signal};

use super::controller::{Event, StatefulSet};
use super::coredns::{Mood, Zone};
use super::forward::{Addresses, forward};
use super::host::SetStatus;
use super::kubelet::Listed;
use super::network::{Network, become_root};
use super::protocol::{Config, NetworkMode, PodPhase, PodStatus, Program, Reply, Request, SOCKET, Status};
use driver::Driver;
use node::{Heard, Live, Which};

/// What the daemon waits for.
enum Message {
    Asked(Request, mpsc::Sender<Reply>),
    Happened(Event),
    /// What was heard of this start of a pod's process.
    Heard(Which, Heard),
    /// What the host cluster's API lists, and how many of our changes it had seen before.
    Listed(Vec<Listed>, SetStatus, u64),
    Stop,
}

struct Daemon {
    config: Config,
    exe: PathBuf,
    driver: Driver,
    network: Network,
    live: BTreeMap<u32, Live>,
    addresses: Addresses,
    forwards: BTreeMap<(u32, u16), SocketAddr>,
    partitions: BTreeSet<(u32, u32)>,
    zone: Zone,
    serial: u32,
    dns: Option<Child>,
    mood: Mood,
    began: Instant,
    messages: mpsc::Sender<Message>,
}

/// Runs a box until it is told to go down. `config` is JSON.
pub fn serve(config: &str) -> anyhow::Result<()> {
    let config: Config = serde_json::from_str(config).context("read the configuration")?;
    if config.die_with_parent {
        // SAFETY: prctl with these arguments only sets a number of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    }
    // Before any thread: they inherit it.
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    if config.network != NetworkMode::Loopback
        && let Err(e) = become_root()
    {
        ensure!(config.network == NetworkMode::Auto, "become root in a user namespace: {e}");
    }
    let (messages, inbox) = mpsc::channel();
    let mut daemon = Daemon::new(config, messages.clone())?;
    daemon.start_host()?;
    daemon.start_dns()?;
    daemon.listen(messages.clone())?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.wait();
        let _ = messages.send(Message::Stop);
    })?;
    daemon.run(&inbox)
}

impl Daemon {
    fn new(config: Config, messages: mpsc::Sender<Message>) -> anyhow::Result<Daemon> {
        for folder in ["volumes", "logs", "dns"] {
            fs::create_dir_all(config.dir.join(folder))?;
        }
        let ms = Duration::from_millis;
        let backoff = (ms(config.backoff_ms.0), ms(config.backoff_ms.1));
        let set = StatefulSet::new(config.policy, config.replicas, ms(config.grace_ms), backoff);
        let zone =
            Zone { ttl: config.ttl, negative_ttl: config.negative_ttl, ..Zone::new(&config.name, &config.namespace) };
        let daemon = Daemon {
            exe: std::env::current_exe()?,
            driver: Driver::Own(set),
            network: Network::new(config.network)?,
            live: BTreeMap::new(),
            addresses: Addresses::default(),
            forwards: BTreeMap::new(),
            partitions: BTreeSet::new(),
            zone,
            serial: 0,
            dns: None,
            mood: Mood::Well,
            began: Instant::now(),
            messages,
            config,
        };
        daemon.fits(daemon.config.replicas)?;
        write(&daemon.resolv_conf(), &daemon.zone.resolv_conf(daemon.network.dns().ip()))?;
        daemon.write_values(daemon.config.replicas)?;
        daemon.make_pki()?;
        Ok(daemon)
    }

    /// etcd listens on 127.0.0.1:2379 whatever other address it has, so there is room for one on loopback.
    fn fits(&self, replicas: u32) -> anyhow::Result<()> {
        let syncer = matches!(self.config.program, Program::Syncer { .. });
        ensure!(
            self.network.namespaces() || !syncer || replicas <= 1,
            "pods of syncer need namespaces of their own; on loopback there can be one"
        );
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.dir.join(name)
    }

    fn resolv_conf(&self) -> PathBuf {
        self.path("resolv.conf")
    }

    fn volume(&self, pod: &str) -> PathBuf {
        self.path("volumes").join(pod)
    }

    fn name_of(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.config.name)
    }

    /// The chart's values, as they are mounted into each pod.
    fn write_values(&self, replicas: u32) -> anyhow::Result<()> {
        let values = format!("pro: true\nembeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: {replicas}\n");
        write(&self.path("values.yaml"), &values)
    }

    /// One PKI for all pods, as a Secret mounted into each of them.
    fn make_pki(&self) -> anyhow::Result<()> {
        let Program::Syncer { file, .. } = &self.config.program else { return Ok(()) };
        if !self.config.mounted_pki {
            return Ok(());
        }
        let pki = self.path("pki");
        let mut command = Command::new(file);
        command.arg("certs").arg("--dir").arg(&pki).arg("--data-dir").arg(self.path("volumes"));
        command.args(["--etcd-embedded=true", "--distro=k8s", "--etcd-replicas=5"]);
        let made = command.envs(self.identity(0)).output().context("run syncer certs")?;
        ensure!(made.status.success(), "syncer certs: {}", String::from_utf8_lossy(&made.stderr).trim());
        Ok(())
    }

    /// The variables by which the charts tell a pod who it is.
    fn identity(&self, ordinal: u32) -> BTreeMap<String, String> {
        [
            ("POD_NAME", self.name_of(ordinal)),
            ("NAMESPACE", self.config.namespace.clone()),
            ("VCLUSTER_NAME", self.config.name.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn listen(&self, messages: mpsc::Sender<Message>) -> anyhow::Result<()> {
        let socket = self.path(SOCKET);
        // The client has made sure that nobody answers there.
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        std::thread::Builder::new().name("clients".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                let messages = messages.clone();
                let _ = std::thread::Builder::new().spawn(move || {
                    // A client that goes away is its own affair.
                    let _ = attend(client, &messages);
                });
            }
        })?;
        Ok(())
    }

    fn run(mut self, inbox: &mpsc::Receiver<Message>) -> anyhow::Result<()> {
        let mut waiting = Vec::new();
        self.happened(Event::Tick);
        while !self.driver.gone() {
            let due = self.live.values().filter_map(|live| live.container.next_due());
            let tick = self.driver.next_tick().into_iter().chain(due).min();
            let tick = tick.map(|at| at.saturating_sub(self.began.elapsed()));
            match inbox.recv_timeout(tick.unwrap_or(Duration::from_secs(3600))) {
                Ok(Message::Asked(Request::Down, client)) => {
                    waiting.push(client);
                    self.happened(Event::Down);
                }
                Ok(Message::Asked(request, client)) => {
                    let reply = self.answer(request).unwrap_or_else(|e| Reply::Refused(format!("{e:#}")));
                    // It may have gone.
                    let _ = client.send(reply);
                }
                Ok(Message::Happened(event)) => self.happened(event),
                Ok(Message::Heard(which, heard)) => self.heard(which, heard),
                Ok(Message::Listed(pods, set, seen)) => self.listed(&pods, set, seen),
                Ok(Message::Stop) => self.happened(Event::Down),
                Err(_) => self.happened(Event::Tick),
            }
            self.look_after_processes();
        }
        if let Driver::Host(driver) = &mut self.driver {
            driver.host.stop();
        }
        self.stop_dns();
        fs::remove_file(self.path(SOCKET))?;
        for client in waiting {
            let _ = client.send(Reply::Done);
        }
        // For the last answer to be written.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    fn answer(&mut self, request: Request) -> anyhow::Result<Reply> {
        match request {
            Request::Status => return Ok(Reply::Status(Box::new(self.status()))),
            Request::Forward(ordinal, port) => return Ok(Reply::Address(self.forwarded(ordinal, port)?)),
            Request::Scale { replicas, values } => {
                self.fits(replicas)?;
                if values {
                    self.write_values(replicas)?;
                }
                self.change(Event::Scale(replicas), move |api| api.scale(replicas))?;
            }
            Request::Delete(ordinal) => {
                self.running(ordinal)?;
                self.change(Event::Delete(ordinal), move |api| api.delete(ordinal))?;
            }
            Request::Kill(ordinal) => {
                self.running(ordinal)?;
                self.happened(Event::Kill(ordinal));
            }
            Request::LoseVolume(ordinal) => self.happened(Event::LoseVolume(ordinal)),
            Request::Roll => self.change(Event::Roll, |api| api.roll())?,
            Request::Partition(a, b) => {
                ensure!(a != b, "a pod always reaches itself");
                ensure!(self.network.namespaces(), "pods on loopback cannot be parted");
                self.partitions.insert((a.min(b), a.max(b)));
                self.part()?;
            }
            Request::Heal => {
                self.partitions.clear();
                self.part()?;
            }
            Request::Dns(mood) => {
                self.mood = mood;
                self.stop_dns();
                self.start_dns()?;
            }
            Request::HostApi(mood) => match &mut self.driver {
                Driver::Own(_) => bail!("there is no host cluster: bring the box up with one"),
                Driver::Host(driver) => {
                    driver.host.set_mood(&self.network, mood)?;
                    driver.changes.fetch_add(1, Ordering::SeqCst);
                    driver.set.settled = false;
                }
            },
            // Answered when it is done.
            Request::Down => bail!("going down"),
        }
        Ok(Reply::Done)
    }

    fn running(&self, ordinal: u32) -> anyhow::Result<&Live> {
        self.live.get(&ordinal).with_context(|| format!("{} does not run", self.name_of(ordinal)))
    }

    fn forwarded(&mut self, ordinal: u32, port: u16) -> anyhow::Result<SocketAddr> {
        if let Some(address) = self.forwards.get(&(ordinal, port)) {
            return Ok(*address);
        }
        let address = forward(self.network.place(), self.addresses.clone(), ordinal, port)?;
        self.forwards.insert((ordinal, port), address);
        Ok(address)
    }

    fn status(&self) -> Status {
        let mut pods = BTreeMap::new();
        let (replicas, revision) = match &self.driver {
            Driver::Own(set) => (set.replicas, set.revision),
            Driver::Host(driver) => (driver.set.replicas, driver.set.generation),
        };
        let failures = |ordinal: &u32| match &self.driver {
            Driver::Own(set) => set.failures.get(ordinal).map(|f| f.count),
            Driver::Host(_) => None,
        };
        for (ordinal, pod) in self.driver.pods() {
            let live = self.live.get(ordinal).filter(|live| live.incarnation == pod.incarnation);
            let phase = match live {
                _ if pod.terminating.is_some() => PodPhase::Terminating,
                Some(live) if !live.container.runs() => PodPhase::Backoff,
                _ => PodPhase::Running,
            };
            let status = PodStatus {
                name: self.name_of(*ordinal),
                address: live.map(|live| live.address.into()),
                phase,
                ready: pod.ready && pod.terminating.is_none(),
                incarnation: pod.incarnation,
                revision: pod.revision,
                failures: failures(ordinal).unwrap_or(0),
                restarts: live.map_or(0, |live| live.container.restarts),
                pid: live.and_then(|live| live.process.as_ref()).map(|process| process.pid),
            };
            pods.insert(*ordinal, status);
        }
        for (ordinal, failures) in (0..replicas).filter_map(|ordinal| Some((ordinal, failures(&ordinal)?))) {
            pods.entry(ordinal).or_insert_with(|| PodStatus {
                name: self.name_of(ordinal),
                address: None,
                phase: PodPhase::Backoff,
                ready: false,
                incarnation: 0,
                revision: 0,
                failures,
                restarts: 0,
                pid: None,
            });
        }
        Status {
            replicas,
            policy: self.config.policy,
            revision,
            network: self.network.mode(),
            dns: self.network.dns(),
            pods,
            partitions: self.partitions.clone(),
            settled: self.driver.settled(),
        }
    }

    fn say(&self, text: &str) {
        eprintln!("{:8.3} {text}", self.began.elapsed().as_secs_f64());
    }
}

/// Answers one client.
fn attend(client: UnixStream, messages: &mpsc::Sender<Message>) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line)?;
    let (reply, replies) = mpsc::channel();
    messages.send(Message::Asked(serde_json::from_str(&line)?, reply))?;
    let reply = replies.recv()?;
    writeln!(&client, "{}", serde_json::to_string(&reply)?)?;
    Ok(())
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    rename(&new, path)
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    use nix::fcntl::{AT_FDCWD, renameat};
    renameat(AT_FDCWD, from, AT_FDCWD, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}
