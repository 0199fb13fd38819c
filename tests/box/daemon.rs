//! The process that is the box: it carries out what the controller decides, as the kubelet and the cluster's DNS would,
//! and answers clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{SigSet, Signal};

use super::controller::{Action, Event, Pod, StatefulSet};
use super::coredns::{Mood, Records, Zone, corefile, reverse_name};
use super::forward::{Addresses, forward};
use super::host::{self, Host, SetStatus};
use super::kubelet::{Duty, Kubelet, Listed};
use super::network::{GATEWAY, Network, become_root};
use super::pod::{self, PodSpec};
use super::probe;
use super::protocol::{Config, NetworkMode, PodPhase, PodStatus, Program, Reply, Request, SOCKET, Status};
use super::stand_in;

/// How long CoreDNS may take to listen.
const DNS_PATIENCE: Duration = Duration::from_secs(30);

/// What the daemon waits for.
enum Message {
    Asked(Request, mpsc::Sender<Reply>),
    Happened(Event),
    /// What the host cluster's API lists, and how many of our changes it had seen before.
    Listed(Vec<Listed>, SetStatus, u64),
    Stop,
}

/// Who decides which pods there are.
enum Driver {
    /// The box.
    Own(StatefulSet),
    /// The controllers of a host cluster.
    Host(Box<HostDriver>),
}

struct HostDriver {
    host: Host,
    kubelet: Kubelet,
    set: SetStatus,
    /// Changes that we have asked the API for.
    changes: Arc<AtomicU64>,
}

/// Between two looks at the host cluster's API.
const LIST_EVERY: Duration = Duration::from_millis(200);

/// A pod's process, and what goes with it.
struct Live {
    incarnation: u64,
    revision: u64,
    address: Ipv4Addr,
    pid: i32,
    process: OwnedFd,
    stop_probes: Arc<AtomicBool>,
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

    /// Brings up the host cluster, if there is to be one, and hands the decisions to it.
    fn start_host(&mut self) -> anyhow::Result<()> {
        let Some(programs) = self.config.host.clone() else { return Ok(()) };
        ensure!(self.network.namespaces(), "a host cluster needs namespaces");
        let dir = self.path("host");
        let host = Host::up(&self.network, &dir, &programs.parts, &programs.certs, &self.config)?;
        let gateway = Addresses::default();
        gateway.lock().unwrap_or_else(PoisonError::into_inner).insert(0, GATEWAY.into());
        let outside = forward(self.network.place(), gateway, 0, host::PORT)?;
        write(&dir.join("kubeconfig"), &host.api.kubeconfig(outside, &dir.join("pki/ca.crt")))?;
        let changes = Arc::new(AtomicU64::new(0));
        let (api, place, seen, messages) =
            (host.api.clone(), self.network.place(), changes.clone(), self.messages.clone());
        std::thread::Builder::new().name("list".into()).spawn(move || {
            if let Err(e) = place.enter() {
                eprintln!("the host cluster's API cannot be asked: {e}");
            }
            loop {
                let before = seen.load(Ordering::SeqCst);
                match api.pods().and_then(|pods| Ok((pods, api.set()?))) {
                    Ok((pods, set)) => {
                        if messages.send(Message::Listed(pods, set, before)).is_err() {
                            return;
                        }
                    }
                    Err(e) => eprintln!("list the pods: {e:#}"),
                }
                std::thread::sleep(LIST_EVERY);
            }
        })?;
        let (kubelet, set) = (Kubelet::default(), SetStatus::default());
        self.driver = Driver::Host(Box::new(HostDriver { host, kubelet, set, changes }));
        Ok(())
    }

    fn start_dns(&mut self) -> anyhow::Result<()> {
        self.write_zone()?;
        self.write_corefile()?;
        let log = File::options().create(true).append(true).open(self.path("logs/coredns.log"))?;
        let mut command = Command::new(&self.config.coredns);
        command.arg("-conf").arg(self.path("dns/Corefile"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        pod::dies_with_parent(&mut command);
        let coredns = self.config.coredns.display().to_string();
        let child = self.network.inside(move || command.spawn()).with_context(|| format!("start {coredns}"))?;
        self.dns = Some(child);
        let (server, began) = (self.network.dns(), Instant::now());
        while !self.network.inside(move || TcpStream::connect(server).is_ok()) {
            let ended = self.dns.as_mut().and_then(|child| child.try_wait().ok().flatten());
            ensure!(ended.is_none(), "CoreDNS ended; see logs/coredns.log");
            ensure!(began.elapsed() < DNS_PATIENCE, "CoreDNS does not listen on {server}; see logs/coredns.log");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn write_corefile(&self) -> anyhow::Result<()> {
        let (zone, reverse) = (self.path("dns/zone"), self.path("dns/reverse"));
        let names = [self.zone.domain.clone(), reverse_name(self.network.first_octets())];
        let files = [(names[0].clone(), zone.as_path()), (names[1].clone(), reverse.as_path())];
        let kubeconfig = self.path("host/pki/admin.conf");
        let records = match self.driver {
            Driver::Own(_) => Records::Files(&files),
            Driver::Host(_) => Records::Kubernetes(&names, &kubeconfig, self.config.ttl),
        };
        write(&self.path("dns/Corefile"), &corefile(self.network.dns(), records, self.mood))
    }

    fn write_zone(&mut self) -> anyhow::Result<()> {
        self.serial += 1;
        write(&self.path("dns/zone"), &self.zone.file(self.serial))?;
        write(&self.path("dns/reverse"), &self.zone.reverse_file(self.network.first_octets(), self.serial))
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
        while !self.gone() {
            let tick = self.next_tick().map(|at| at.saturating_sub(self.began.elapsed()));
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
                Ok(Message::Listed(pods, set, seen)) => self.listed(&pods, set, seen),
                Ok(Message::Stop) => self.happened(Event::Down),
                Err(_) => self.happened(Event::Tick),
            }
        }
        if let Driver::Host(driver) = &mut self.driver {
            driver.host.stop();
        }
        if let Some(mut dns) = self.dns.take() {
            let _ = dns.kill();
            let _ = dns.wait();
        }
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
                self.write_corefile()?;
                let dns = self.dns.as_ref().context("CoreDNS runs")?;
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(dns.id())?), Signal::SIGUSR1)?;
            }
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
        for (ordinal, pod) in self.pods() {
            let live = self.live.get(ordinal).filter(|live| live.incarnation == pod.incarnation);
            let status = PodStatus {
                name: self.name_of(*ordinal),
                address: live.map(|live| live.address.into()),
                phase: if pod.terminating.is_some() { PodPhase::Terminating } else { PodPhase::Running },
                ready: pod.ready && pod.terminating.is_none(),
                incarnation: pod.incarnation,
                revision: pod.revision,
                failures: failures(ordinal).unwrap_or(0),
                pid: live.map(|live| live.pid),
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
            settled: self.settled(),
        }
    }

    /// The pods that exist, those whose process has ended too.
    fn pods(&self) -> Vec<(&u32, &Pod)> {
        match &self.driver {
            Driver::Own(set) => set.pods.iter().collect(),
            Driver::Host(driver) => driver.kubelet.pods.iter().map(|(ordinal, s)| (ordinal, &s.pod)).collect(),
        }
    }

    fn settled(&self) -> bool {
        match &self.driver {
            Driver::Own(set) => set.settled(),
            Driver::Host(driver) => {
                let pods = &driver.kubelet.pods;
                let well = pods.values().filter(|s| s.pod.ready && s.pod.terminating.is_none()).count();
                driver.set.settled && pods.len() == well && well == driver.set.replicas as usize
            }
        }
    }

    fn gone(&self) -> bool {
        match &self.driver {
            Driver::Own(set) => set.gone(),
            Driver::Host(driver) => driver.kubelet.gone(),
        }
    }

    fn next_tick(&self) -> Option<Duration> {
        match &self.driver {
            Driver::Own(set) => set.next_tick(),
            Driver::Host(driver) => driver.kubelet.next_tick(),
        }
    }

    /// Changes the StatefulSet: our own by an event, the host cluster's by its API.
    fn change(
        &mut self,
        event: Event,
        call: impl FnOnce(&host::Api) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        match &mut self.driver {
            Driver::Own(_) => self.happened(event),
            Driver::Host(driver) => {
                let api = driver.host.api.clone();
                self.network.inside(move || call(&api))?;
                // What was listed before does not say how it is after.
                driver.changes.fetch_add(1, Ordering::SeqCst);
                driver.set.settled = false;
            }
        }
        Ok(())
    }

    fn listed(&mut self, pods: &[Listed], set: SetStatus, seen: u64) {
        let now = self.began.elapsed();
        let Driver::Host(driver) = &mut self.driver else { return };
        let fresh = seen == driver.changes.load(Ordering::SeqCst);
        driver.set = SetStatus { settled: set.settled && fresh, ..set };
        let duties = driver.kubelet.listed(pods, now);
        let failed = self.perform(duties);
        failed.into_iter().for_each(|event| self.happened(event));
    }

    /// Takes an event to who decides, and carries out the decisions.
    fn happened(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::Exited { ordinal, incarnation } = event {
                self.buried(ordinal, incarnation);
            }
            let now = self.began.elapsed();
            let duties = match &mut self.driver {
                Driver::Own(set) => set.step(event, now).into_iter().map(Duty::Process).collect(),
                Driver::Host(driver) => driver.kubelet.step(event, now),
            };
            events.extend(self.perform(duties));
        }
    }

    /// Carries out what was decided; pods that could not be started have ended.
    fn perform(&mut self, duties: Vec<Duty>) -> Vec<Event> {
        let mut failed = Vec::new();
        for duty in duties {
            let what = format!("{duty:?}");
            let done = match duty {
                Duty::Process(action) => self.act(action).inspect_err(|_| {
                    if let Action::Start { ordinal, incarnation, .. } = action {
                        failed.push(Event::Exited { ordinal, incarnation });
                    }
                }),
                Duty::Report(ordinal) => self.report(ordinal),
                Duty::Remove { ordinal, uid } => self.tell(move |api| api.remove(ordinal, &uid)),
            };
            match done {
                Ok(()) => self.say(&what),
                Err(e) => self.say(&format!("{what}: {e:#}")),
            }
        }
        failed
    }

    fn report(&self, ordinal: u32) -> anyhow::Result<()> {
        let Driver::Host(driver) = &self.driver else { return Ok(()) };
        let Some(started) = driver.kubelet.pods.get(&ordinal) else { return Ok(()) };
        let (uid, ready) = (started.uid.clone(), started.pod.ready);
        let live = self.live.get(&ordinal).filter(|live| live.incarnation == started.pod.incarnation);
        let address = live.map(|live| live.address).filter(|_| !started.ended);
        self.tell(move |api| api.report(ordinal, &uid, address, ready))
    }

    fn tell(&self, call: impl FnOnce(&host::Api) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
        let Driver::Host(driver) = &self.driver else { return Ok(()) };
        let api = driver.host.api.clone();
        self.network.inside(move || call(&api))
    }

    fn say(&self, text: &str) {
        eprintln!("{:8.3} {text}", self.began.elapsed().as_secs_f64());
    }

    fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Start { ordinal, incarnation, revision } => self.start(ordinal, incarnation, revision),
            Action::Terminate(ordinal) => self.signal(ordinal, Signal::SIGTERM),
            Action::Kill(ordinal) => self.signal(ordinal, Signal::SIGKILL),
            Action::LoseVolume(ordinal) => {
                let volume = self.volume(&self.name_of(ordinal));
                let aside = (0..).map(|n| volume.with_extension(format!("lost-{n}"))).find(|path| !path.exists());
                match aside {
                    Some(aside) if volume.exists() => rename(&volume, &aside),
                    _ => Ok(()),
                }
            }
        }
    }

    /// By the process' own descriptor, so that no stranger with its number is hit.
    fn signal(&self, ordinal: u32, signal: Signal) -> anyhow::Result<()> {
        let Some(live) = self.live.get(&ordinal) else { return Ok(()) };
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a bare system call on a descriptor that we hold, with no information beside the signal and no flags.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, live.process.as_raw_fd(), signal as libc::c_int, none, 0)
        };
        match std::io::Error::last_os_error() {
            error if sent == -1 && error.raw_os_error() != Some(libc::ESRCH) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn start(&mut self, ordinal: u32, incarnation: u64, revision: u64) -> anyhow::Result<()> {
        let address = self.network.new_address()?;
        let spec = self.spec(ordinal, revision, address)?;
        let pod::Started { mut launcher, pid } = pod::start(&self.network, &self.exe, &spec, incarnation)?;
        // SAFETY: a bare system call; the launcher that would wait for the process holds its number until then.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let messages = self.messages.clone();
        let log = spec.log.clone();
        std::thread::Builder::new().name("wait".into()).spawn(move || {
            if let (Ok(status), Ok(mut log)) = (launcher.wait(), File::options().append(true).open(log)) {
                let _ = writeln!(log, "-- the pod has ended: {status}");
            }
            let _ = messages.send(Message::Happened(Event::Exited { ordinal, incarnation }));
        })?;
        ensure!(process >= 0, "the pod has ended already");
        // SAFETY: the descriptor is new and nobody else's.
        let process = unsafe { OwnedFd::from_raw_fd(i32::try_from(process)?) };
        let stop_probes = Arc::new(AtomicBool::new(false));
        let messages = self.messages.clone();
        let every = Duration::from_millis(self.config.probe_ms);
        let server = SocketAddr::from((address, stand_in::PORT));
        probe::watch(self.network.place(), server, every, stop_probes.clone(), move |ready| {
            let _ = messages.send(Message::Happened(Event::Ready { ordinal, incarnation, ready }));
        })?;
        self.live.insert(ordinal, Live { incarnation, revision, address, pid, process, stop_probes });
        self.addressed()
    }

    fn spec(&self, ordinal: u32, revision: u64, address: Ipv4Addr) -> anyhow::Result<PodSpec> {
        let name = self.name_of(ordinal);
        let volume = self.volume(&name);
        fs::create_dir_all(&volume)?;
        let mut env = self.identity(ordinal);
        env.insert("POD_IP".to_owned(), address.to_string());
        env.insert("POD_REVISION".to_owned(), revision.to_string());
        if matches!(self.driver, Driver::Host(_)) {
            env.insert("KUBERNETES_SERVICE_HOST".to_owned(), GATEWAY.to_string());
            env.insert("KUBERNETES_SERVICE_PORT".to_owned(), host::PORT.to_string());
        }
        let mut own_dns = Vec::new();
        if !self.network.namespaces() {
            own_dns.push(format!("--dns-server={}", self.network.dns()));
            own_dns.push(format!("--resolv-conf={}", self.resolv_conf().display()));
        }
        let (program, mut args) = match &self.config.program {
            Program::StandIn => {
                let listen = format!("--listen={address}:{}", stand_in::PORT);
                (self.exe.clone(), vec!["stand-in".to_owned(), format!("--data-dir={}", volume.display()), listen])
            }
            Program::Syncer { file, binaries, args } => {
                let mut all = vec![
                    "start".to_owned(),
                    format!("--values={}", self.path("values.yaml").display()),
                    format!("--data-dir={}", volume.display()),
                    format!("--pki-dir={}", self.path("pki").display()),
                    format!("--binaries={}", binaries.display()),
                ];
                if !self.network.namespaces() {
                    // 127.0.0.1 is everybody's there.
                    all.push(format!("--listen-address={address}"));
                    all.push(format!("--metrics-port={}", free_port()?));
                    all.push(format!("--apiserver-port={}", free_port()?));
                }
                all.extend(args.iter().cloned());
                (file.clone(), all)
            }
        };
        args.extend(own_dns);
        Ok(PodSpec {
            log: self.path("logs").join(format!("{name}.log")),
            name,
            address,
            namespaces: self.network.namespaces(),
            resolv_conf: self.resolv_conf(),
            service_account: match self.driver {
                Driver::Own(_) => None,
                Driver::Host(_) => Some(Host::service_account(&self.path("host"))),
            },
            read_only: Some(self.path("pki")).filter(|pki| pki.exists()).into_iter().collect(),
            program,
            args,
            env,
        })
    }

    /// A pod is gone: so is its record.
    fn buried(&mut self, ordinal: u32, incarnation: u64) {
        if self.live.get(&ordinal).is_some_and(|live| live.incarnation == incarnation)
            && let Some(live) = self.live.remove(&ordinal)
        {
            live.stop_probes.store(true, Ordering::Relaxed);
            if let Err(e) = self.addressed() {
                self.say(&format!("after the end of {}: {e:#}", self.name_of(ordinal)));
            }
        }
    }

    /// Brings DNS, forwards and partitions up to date with the pods' addresses.
    fn addressed(&mut self) -> anyhow::Result<()> {
        let addresses = self.live.iter().map(|(ordinal, live)| (*ordinal, IpAddr::V4(live.address)));
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.collect();
        let pods = self.live.iter().map(|(ordinal, live)| (self.name_of(*ordinal), live.address.into()));
        self.zone.pods = pods.collect();
        self.write_zone()?;
        self.part()
    }

    fn part(&mut self) -> anyhow::Result<()> {
        let address = |ordinal: &u32| self.live.get(ordinal).map(|live| live.address);
        let pairs = self.partitions.iter().filter_map(|(a, b)| Some((address(a)?, address(b)?))).collect();
        self.network.drop_between(pairs)
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

/// A port of 127.0.0.1 that nobody listens on now, below those that outgoing connections get.
fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = (0..5000).map(|_| 21_000 + (std::process::id() * 50 + NEXT.fetch_add(1, Ordering::Relaxed)) % 9000);
    let port = ports.find_map(|port| {
        let port = u16::try_from(port).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(port)
    });
    port.context("no port of loopback is free")
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
