//! The node: starts and ends the pods' processes, and what follows their addresses.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::super::controller::{Action, Event};
use super::super::host::{self, Host};
use super::super::network::GATEWAY;
use super::super::pod::{self, PodSpec};
use super::super::protocol::Program;
use super::super::{probe, stand_in};
use super::driver::Driver;
use super::{Daemon, Message, rename};

/// A pod's process, and what goes with it.
pub(super) struct Live {
    pub(super) incarnation: u64,
    pub(super) revision: u64,
    pub(super) address: Ipv4Addr,
    pub(super) pid: i32,
    pub(super) process: OwnedFd,
    pub(super) stop_probes: Arc<AtomicBool>,
}

impl Daemon {
    pub(super) fn act(&mut self, action: Action) -> anyhow::Result<()> {
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
    pub(super) fn signal(&self, ordinal: u32, signal: Signal) -> anyhow::Result<()> {
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

    pub(super) fn start(&mut self, ordinal: u32, incarnation: u64, revision: u64) -> anyhow::Result<()> {
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

    pub(super) fn spec(&self, ordinal: u32, revision: u64, address: Ipv4Addr) -> anyhow::Result<PodSpec> {
        let name = self.name_of(ordinal);
        let volume = self.volume(&name);
        fs::create_dir_all(&volume)?;
        let mut env = self.config.env.clone();
        env.extend(self.identity(ordinal));
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
                    format!("--binaries={}", binaries.display()),
                ];
                if self.config.mounted_pki {
                    all.push(format!("--pki-dir={}", self.path("pki").display()));
                }
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
    pub(super) fn buried(&mut self, ordinal: u32, incarnation: u64) {
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
    pub(super) fn addressed(&mut self) -> anyhow::Result<()> {
        let addresses = self.live.iter().map(|(ordinal, live)| (*ordinal, IpAddr::V4(live.address)));
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.collect();
        let pods = self.live.iter().map(|(ordinal, live)| (self.name_of(*ordinal), live.address.into()));
        self.zone.pods = pods.collect();
        self.write_zone()?;
        self.part()
    }

    pub(super) fn part(&mut self) -> anyhow::Result<()> {
        let address = |ordinal: &u32| self.live.get(ordinal).map(|live| live.address);
        let pairs = self.partitions.iter().filter_map(|(a, b)| Some((address(a)?, address(b)?))).collect();
        self.network.drop_between(pairs)
    }
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
