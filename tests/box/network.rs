//! Addresses, links, and partitions.
//!
//! In namespaces: the box has a network namespace of its own, which routes between its pods: each pod has a namespace
//! with one link to it and one address of 10.244.0.0/16. The host's interfaces are not touched, any number of boxes may
//! run, and all of them have the same addresses. A partition is a pair of routing rules in the box's namespace that drop
//! without a word what one pod sends to the other, as a broken network does.
//!
//! On loopback, where namespaces cannot be had: each box has one network 127.n.0.0/16, each pod one address of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};

use super::protocol::NetworkMode;

/// The pods' way out, and what they see of the box.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
/// The DNS server's port on loopback, where 53 may not be ours.
const DNS_PORT_ON_LOOPBACK: u16 = 5353;
/// A port whose listener shows that a network 127.n.0.0/16 is taken.
const LOCK_PORT: u16 = 20_053;

type Job = Box<dyn FnOnce() + Send>;

/// The box's network.
pub struct Network {
    place: Place,
    first: [u8; 2],
    handed_out: u32,
    dropped: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// A thread inside that never ends: children die with the thread that made them.
    jobs: mpsc::Sender<Job>,
    _lock: Option<TcpListener>,
}

/// Where sockets are to be made to reach pods.
#[derive(Clone)]
pub struct Place(Option<Arc<File>>);

impl Place {
    /// Takes this thread there, for good.
    pub fn enter(&self) -> io::Result<()> {
        match &self.0 {
            Some(namespace) => Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?),
            None => Ok(()),
        }
    }
}

/// Becomes root of a user namespace, if this process is not root. It must have one thread only.
pub fn become_root() -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

impl Network {
    /// Makes it. [`NetworkMode::Auto`] takes loopback if namespaces cannot be had, and says so on standard error.
    pub fn new(mode: NetworkMode) -> anyhow::Result<Network> {
        match mode {
            NetworkMode::Namespaces => Network::in_namespaces(),
            NetworkMode::Loopback => Network::on_loopback(),
            NetworkMode::Auto => Network::in_namespaces().or_else(|e| {
                eprintln!("no namespaces ({e:#}): pods get addresses of loopback");
                Network::on_loopback()
            }),
        }
    }

    fn in_namespaces() -> anyhow::Result<Network> {
        let jobs = worker(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map(|file| Some(Arc::new(file)))
        });
        let (jobs, namespace) = jobs.context("make a network namespace")?;
        let network = Network {
            place: Place(namespace),
            first: [10, 244],
            handed_out: 0,
            dropped: BTreeSet::new(),
            jobs,
            _lock: None,
        };
        network.ip(&format!("link set lo up\naddress add {GATEWAY}/32 dev lo\naddress add {DNS}/32 dev lo\n"))?;
        network
            .inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .context("let the box route between its pods")?;
        Ok(network)
    }

    fn on_loopback() -> anyhow::Result<Network> {
        let from = std::process::id();
        let lock = (0..200).find_map(|step| {
            let n = u8::try_from(20 + (from + step) % 200).ok()?;
            TcpListener::bind((Ipv4Addr::new(127, n, 0, 1), LOCK_PORT)).ok().map(|lock| (n, lock))
        });
        let (n, lock) = lock.context("all networks of loopback are taken by other boxes")?;
        let (jobs, _) = worker(|| Ok(()))?;
        let (place, dropped) = (Place(None), BTreeSet::new());
        Ok(Network { place, first: [127, n], handed_out: 0, dropped, jobs, _lock: Some(lock) })
    }

    /// How pods have their addresses.
    pub fn mode(&self) -> NetworkMode {
        if self.namespaces() { NetworkMode::Namespaces } else { NetworkMode::Loopback }
    }

    /// Whether pods have namespaces.
    pub fn namespaces(&self) -> bool {
        self.place.0.is_some()
    }

    /// Where sockets are to be made to reach pods.
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Where the DNS server listens.
    pub fn dns(&self) -> SocketAddr {
        match self.namespaces() {
            true => SocketAddr::from((DNS, 53)),
            false => {
                let [a, b] = self.first;
                SocketAddr::from((Ipv4Addr::new(a, b, 0, 10), DNS_PORT_ON_LOOPBACK))
            }
        }
    }

    /// The network in which all addresses are, for reverse lookups: its first two octets.
    pub fn first_octets(&self) -> [u8; 2] {
        self.first
    }

    /// An address that no pod has had.
    pub fn new_address(&mut self) -> anyhow::Result<Ipv4Addr> {
        let (high, low) = (self.handed_out / 250, self.handed_out % 250);
        self.handed_out += 1;
        let [a, b] = self.first;
        let high = u8::try_from(high + 1).context("all addresses were handed out")?;
        Ok(Ipv4Addr::new(a, b, high, u8::try_from(low + 2)?))
    }

    /// Runs `f` on the thread inside, which never ends.
    pub fn inside<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || {
            // The receiver waits below.
            let _ = done.send(f());
        });
        self.jobs.send(job).expect("the thread inside takes jobs for as long as there is a sender");
        result.recv().expect("a job that panics ends the box")
    }

    /// Links the namespace of process `pid` to the box: it becomes `eth0` there, with nothing set on that side.
    pub fn attach(&self, pid: u32, incarnation: u64, address: Ipv4Addr) -> anyhow::Result<()> {
        let link = format!("pod{incarnation}");
        self.ip(&format!(
            "link add {link} type veth peer name eth0 netns {pid}\nlink set {link} up\n\
             route add {address}/32 dev {link} src {GATEWAY}\n"
        ))
    }

    /// Makes exactly these pairs of addresses unreachable for each other.
    pub fn drop_between(&mut self, pairs: BTreeSet<(Ipv4Addr, Ipv4Addr)>) -> anyhow::Result<()> {
        if !self.namespaces() {
            if pairs.is_empty() {
                return Ok(());
            }
            bail!("pods on loopback cannot be parted");
        }
        let rules = |verb: &str, pairs: Vec<&(Ipv4Addr, Ipv4Addr)>| {
            let both = pairs.into_iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
            both.map(|(a, b)| format!("rule {verb} priority 100 from {a} to {b} blackhole\n")).collect::<String>()
        };
        let batch = rules("add", pairs.difference(&self.dropped).collect())
            + &rules("delete", self.dropped.difference(&pairs).collect());
        self.ip(&batch)?;
        self.dropped = pairs;
        Ok(())
    }

    /// Runs commands of ip(8) inside, one a line.
    fn ip(&self, batch: &str) -> anyhow::Result<()> {
        let batch = batch.to_owned();
        self.inside(move || ip(&batch))
    }
}

/// Runs commands of ip(8) where this thread is, one a line.
pub fn ip(batch: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("run ip (of the package iproute2)")?;
    child.stdin.take().context("its input")?.write_all(batch.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("ip: {}; it was told:\n{batch}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// A thread that first calls `begin` and then runs jobs until the last sender is gone.
fn worker<T: Send + 'static>(
    begin: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<(mpsc::Sender<Job>, T)> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (begun, result) = mpsc::channel();
    std::thread::Builder::new().name("inside".into()).spawn(move || {
        let begin = begin();
        let failed = begin.is_err();
        if begun.send(begin).is_err() || failed {
            return;
        }
        while let Ok(job) = queue.recv() {
            job();
        }
    })?;
    let begun = result.recv().map_err(|_| io::Error::other("the thread inside is gone"))??;
    Ok((jobs, begun))
}
