//! The node: sets pods up, starts and ends their processes, and what follows their addresses.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;

use super::super::container::{Container, Due};
use super::super::controller::{Action, Event};
use super::super::host::Host;
use super::super::network::GATEWAY;
use super::super::pod::{self, PodSpec, Said, Sandbox};
use super::super::probe::{self, Every, Finding};
use super::super::protocol::Program;
use super::super::stand_in;
use super::super::way;
use super::driver::Driver;
use super::{Daemon, Message, rename};

/// A pod that is set up.
pub(super) struct Live {
    pub(super) incarnation: u64,
    pub(super) address: Ipv4Addr,
    pub(super) container: Container,
    /// Its process, while that runs.
    pub(super) process: Option<Process>,
    sandbox: Sandbox,
}

/// A pod's process. Dropped: it is not probed any more.
pub(super) struct Process {
    pub(super) pid: i32,
    /// `None`: it had ended before it could be opened, which is about to be heard of.
    descriptor: Option<OwnedFd>,
    stop_probes: Arc<AtomicBool>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop_probes.store(true, Ordering::Relaxed);
    }
}

/// A start of a pod's process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Which {
    ordinal: u32,
    incarnation: u64,
    /// How often it had been started again.
    restarts: u32,
}

/// What is heard of a pod's process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heard {
    /// It has ended.
    Ended,
    /// The pod that it was in is no more.
    Gone,
    /// What its probes have found.
    Probed(Finding),
}

impl Daemon {
    pub(super) fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Start { ordinal, incarnation, revision } => self.start(ordinal, incarnation, revision),
            Action::Terminate(ordinal) => self.end(ordinal, Signal::SIGTERM),
            Action::Kill(ordinal) => self.end(ordinal, Signal::SIGKILL),
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

    /// Ends a pod for good.
    fn end(&mut self, ordinal: u32, signal: Signal) -> anyhow::Result<()> {
        let Some(live) = self.live.get_mut(&ordinal) else { return Ok(()) };
        if live.container.tell() {
            let gone = Event::Exited { ordinal, incarnation: live.incarnation };
            return self.messages.send(Message::Happened(gone)).context("the box is going down");
        }
        self.signal(ordinal, signal)
    }

    /// By the process' own descriptor, so that no stranger with its number is hit.
    fn signal(&self, ordinal: u32, signal: Signal) -> anyhow::Result<()> {
        let process = self.live.get(&ordinal).and_then(|live| live.process.as_ref());
        let Some(descriptor) = process.and_then(|process| process.descriptor.as_ref()) else { return Ok(()) };
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a bare system call on a descriptor that we hold, with no information beside the signal and no flags.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, descriptor.as_raw_fd(), signal as libc::c_int, none, 0)
        };
        match std::io::Error::last_os_error() {
            error if sent == -1 && error.raw_os_error() != Some(libc::ESRCH) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn start(&mut self, ordinal: u32, incarnation: u64, revision: u64) -> anyhow::Result<()> {
        let address = self.network.new_address()?;
        let spec = self.spec(ordinal, revision, address)?;
        let messages = self.messages.clone();
        let mut restarts = 0..;
        let told = move |said: Said| {
            let heard = match said {
                Said::Ended => Heard::Ended,
                Said::Gone => Heard::Gone,
            };
            // Each start ends once.
            let which = Which { ordinal, incarnation, restarts: restarts.next().unwrap_or(u32::MAX) };
            // The box may have gone down.
            let _ = messages.send(Message::Heard(which, heard));
        };
        let mut sandbox = pod::set_up(&self.network, &self.exe, &spec, incarnation, told)?;
        let process = self.process(Which { ordinal, incarnation, restarts: 0 }, address, sandbox.start()?)?;
        let ms = Duration::from_millis;
        let backoff = (ms(self.config.backoff_ms.0), ms(self.config.backoff_ms.1));
        let container = Container::new(self.began.elapsed(), ms(self.config.grace_ms), backoff);
        self.live.insert(ordinal, Live { incarnation, address, container, process: Some(process), sandbox });
        self.addressed()
    }

    /// What goes with a process that has just been started.
    fn process(&self, which: Which, address: Ipv4Addr, pid: i32) -> anyhow::Result<Process> {
        // SAFETY: a bare system call; the launcher, which waits for the process, has told its number just now.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let descriptor = descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
        let process = Process { pid, descriptor, stop_probes: Arc::new(AtomicBool::new(false)) };
        let messages = self.messages.clone();
        let every = Every {
            ready: Duration::from_millis(self.config.probe_ms),
            live: Duration::from_millis(self.config.liveness_ms),
        };
        let server = SocketAddr::from((address, stand_in::PORT));
        probe::watch(self.network.place(), server, every, process.stop_probes.clone(), move |finding| {
            let _ = messages.send(Message::Heard(which, Heard::Probed(finding)));
        })?;
        Ok(process)
    }

    /// Takes what was heard of a pod's process, unless it is over.
    pub(super) fn heard(&mut self, which: Which, heard: Heard) {
        let Which { ordinal, incarnation, restarts } = which;
        let now = self.began.elapsed();
        let Some(live) = self.live.get_mut(&ordinal).filter(|live| live.incarnation == incarnation) else { return };
        let runs = live.process.is_some() && live.container.restarts == restarts;
        match heard {
            Heard::Gone => self.happened(Event::Exited { ordinal, incarnation }),
            _ if !runs => {}
            Heard::Probed(Finding::Ready(ready)) => self.happened(Event::Ready { ordinal, incarnation, ready }),
            Heard::Probed(Finding::NotLive) => {
                if live.container.not_live(now) {
                    self.say(&format!("{} is not live", self.name_of(ordinal)));
                    self.signalled(ordinal, Signal::SIGTERM);
                }
            }
            Heard::Ended => {
                live.process = None;
                let event = match live.container.ended(now) {
                    true => Event::Exited { ordinal, incarnation },
                    false => Event::Ready { ordinal, incarnation, ready: false },
                };
                self.say(&format!("the process of {} has ended", self.name_of(ordinal)));
                self.happened(event);
            }
        }
    }

    fn signalled(&self, ordinal: u32, signal: Signal) {
        if let Err(e) = self.signal(ordinal, signal) {
            self.say(&format!("{signal} to {}: {e:#}", self.name_of(ordinal)));
        }
    }

    /// Starts processes again whose time has come, and kills those that outlive their grace.
    pub(super) fn look_after_processes(&mut self) {
        let now = self.began.elapsed();
        let due = |(ordinal, live): (&u32, &mut Live)| Some((*ordinal, live.container.due(now)?));
        for (ordinal, due) in self.live.iter_mut().filter_map(due).collect::<Vec<_>>() {
            match due {
                Due::Kill => self.signalled(ordinal, Signal::SIGKILL),
                Due::Start => {
                    let Some(live) = self.live.get_mut(&ordinal) else { continue };
                    let (incarnation, address) = (live.incarnation, live.address);
                    let which = Which { ordinal, incarnation, restarts: live.container.restarts };
                    let process = live.sandbox.start().and_then(|pid| self.process(which, address, pid));
                    let event = match process {
                        Ok(process) => {
                            self.say(&format!("{} is started again", self.name_of(ordinal)));
                            self.live.entry(ordinal).and_modify(|live| live.process = Some(process));
                            Event::Ready { ordinal, incarnation, ready: false }
                        }
                        // Nothing is left of the pod that it could be started in.
                        Err(e) => {
                            self.say(&format!("{} is not started again: {e:#}", self.name_of(ordinal)));
                            Event::Exited { ordinal, incarnation }
                        }
                    };
                    self.happened(event);
                }
            }
        }
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
            env.insert("KUBERNETES_SERVICE_PORT".to_owned(), way::PORT.to_string());
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
    pub(super) fn bury(&mut self, ordinal: u32, incarnation: u64) {
        if self.live.get(&ordinal).is_some_and(|live| live.incarnation == incarnation) {
            self.live.remove(&ordinal);
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
