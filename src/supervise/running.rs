//! The processes behind the state: carries out what [`super::state`] decides, and tells it what happens.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::child::{self, Child};
use super::exit::{ExitCause, INCONSISTENT};
use super::memory;
use super::probe::{self, EtcdAccess, Watch};
use super::relay::{self, Relay};
use super::spec::{ChildSpec, Role};
use super::state::{Action, Event, FAILURES_MAX, Index, State};
use super::{Anew, Command};
use crate::datadir::DatadirLock;
use crate::exit::{Exit, refuse};
use crate::membership::leave::FOR_ETCD;
use crate::serve::health::{Health, Startup};
use crate::telemetry::{self, Phase};

/// Orphans that PID 1 reaps at one SIGCHLD; the others' turn comes with the next.
const REAPED_AT_ONCE: usize = 64;

/// A child that runs, or has ended and is being judged.
struct Live {
    child: Child,
    ready: Option<Instant>,
    started: Instant,
    probe: AbortHandle,
    /// Taken when it has ended.
    relay: Option<Relay>,
    /// What the kernel had killed for lack of memory when it was started.
    oom_kills: Option<u64>,
}

/// What tasks tell the loop: of which child, of which of its processes (by its start), and what.
pub struct Told {
    child: Index,
    process: Option<Instant>,
    what: What,
}

enum What {
    Event(Event),
    Ended(ExitStatus, ExitCause),
}

/// What is run, and how it is looked after.
pub struct Children {
    pub specs: Vec<ChildSpec>,
    pub lock: Arc<DatadirLock>,
    pub etcd: EtcdAccess,
    pub watch: Watch,
    pub anew: Anew,
}

/// All children.
pub struct Running {
    specs: Vec<ChildSpec>,
    lock: Arc<DatadirLock>,
    etcd: EtcdAccess,
    watch: Watch,
    grace: Duration,
    depart: Option<oneshot::Sender<Instant>>,
    state: State,
    children: Vec<Option<Live>>,
    /// Why each child ended the last time.
    causes: Vec<Option<ExitCause>>,
    health: watch::Sender<Health>,
    tell: mpsc::UnboundedSender<Told>,
    failure: Option<anyhow::Error>,
    anew: Anew,
    /// Why etcd's command line is to be decided anew.
    by_etcd: Option<anyhow::Error>,
    finished: bool,
    stop_by: Option<Instant>,
}

impl Running {
    /// Nothing runs yet.
    pub fn new(
        children: Children,
        grace: Duration,
        hold: bool,
        depart: Option<oneshot::Sender<Instant>>,
        health: watch::Sender<Health>,
    ) -> (Running, mpsc::UnboundedReceiver<Told>) {
        // Bounded by the tasks: each child has one probe, one judge and a timer or two, each of which tells rarely.
        let (tell, told) = mpsc::unbounded_channel();
        let Children { specs, lock, etcd, watch, anew } = children;
        let state = State::new(specs.iter().map(|spec| spec.role));
        let state = if hold { state.holding() } else { state };
        let running = Running {
            state: if depart.is_some() { state.departing() } else { state },
            depart,
            children: specs.iter().map(|_| None).collect(),
            causes: specs.iter().map(|_| None).collect(),
            specs,
            lock,
            etcd,
            watch,
            grace,
            health,
            tell,
            failure: None,
            anew,
            by_etcd: None,
            finished: false,
            stop_by: None,
        };
        (running, told)
    }

    /// Whether all have ended for good.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// When the last child is to have ended, once a stop has begun.
    pub fn stop_by(&self) -> Option<Instant> {
        self.stop_by
    }

    /// The names of the children that run.
    pub fn left(&self) -> Vec<&'static str> {
        let runs = |live: &&Live| live.relay.is_some();
        self.children.iter().flatten().filter(runs).map(|live| live.child.role().name()).collect()
    }

    /// SIGKILL to whatever runs.
    pub fn kill(&self) {
        self.children.iter().flatten().for_each(|live| live.child.signal(Signal::SIGKILL));
    }

    /// Why it all ended; `Some`: by an end of etcd as [`Anew`] says.
    pub fn result(self) -> anyhow::Result<Option<anyhow::Error>> {
        self.failure.map_or(Ok(self.by_etcd), Err)
    }

    /// Hears what a task has to tell.
    pub fn told(&mut self, told: Told) {
        // What is said of an earlier process of this child says nothing about the present one.
        if self.started(told.child) != told.process {
            return;
        }
        match told.what {
            What::Event(event) => self.take(event),
            What::Ended(status, cause) => self.ended(told.child, status, cause),
        }
    }

    /// Carries out a command.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::Restart(roles) => {
                for child in self.of_roles(&roles) {
                    self.take(Event::Restart(child));
                }
            }
            Command::Replace(spec) => {
                let children = self.of_roles(&[spec.role]);
                if children.is_empty() {
                    tracing::warn!(child = spec.role.name(), "it is not run in this pod: restart the pod to run it");
                }
                for child in children {
                    if let Some(present) = self.specs.get_mut(child).filter(|present| **present != *spec) {
                        present.clone_from(&spec);
                        self.take(Event::Restart(child));
                    }
                }
            }
            Command::Departed => self.take(Event::Departed),
            Command::Release => self.take(Event::Release),
            Command::Stop => self.take(Event::Stop),
        }
    }

    fn of_roles(&self, roles: &[Role]) -> Vec<Index> {
        self.specs.iter().enumerate().filter(|(_, spec)| roles.contains(&spec.role)).map(|(child, _)| child).collect()
    }

    fn started(&self, child: Index) -> Option<Instant> {
        self.children.get(child)?.as_ref().map(|live| live.started)
    }

    fn name(&self, child: Index) -> &'static str {
        self.specs.get(child).map_or("child", |spec| spec.role.name())
    }

    /// Feeds an event to the state and carries out what comes of it.
    pub fn take(&mut self, event: Event) {
        self.note(event);
        let actions = self.state.next(event);
        if self.state.stopping() && self.stop_by.is_none() {
            self.stop_by = Some(Instant::now() + self.grace);
            telemetry::set_phase(Phase::Stop);
        }
        self.publish();
        for action in actions {
            self.carry_out(action);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Ready(child) => {
                let Some(Some(live)) = self.children.get_mut(child) else { return };
                let name = live.child.role().name();
                if live.ready.is_some() {
                    tracing::info!(child = name, "serves again");
                    return;
                }
                live.ready = Some(Instant::now());
                tracing::info!(child = name, took_ms = live.started.elapsed().as_millis() as u64, "serves");
                if live.child.role() == Role::Etcd {
                    crate::crash_point!("start-etcd-serving");
                }
            }
            Event::Lost(child) => tracing::warn!(child = self.name(child), "serves no longer"),
            Event::Restart(child) if !self.state.told_to_end(child) => {
                tracing::info!(child = self.name(child), "is started anew");
            }
            _ => {}
        }
    }

    fn publish(&self) {
        let has = |role| self.specs.iter().any(|spec| spec.role == role);
        let datastore = if has(Role::Etcd) { Some(Role::Etcd) } else { has(Role::Kine).then_some(Role::Kine) };
        let now = Health {
            // A distro that keeps its own store (k3s on SQLite) answers for it with its own readiness.
            datastore_ready: datastore.is_none_or(|role| self.state.serves(role)),
            apiserver_ready: has(Role::ApiServer) && self.state.serves(Role::ApiServer),
            stopping: self.state.stopping(),
            ..Health::default()
        };
        // What has ended is not started before the datastore serves, or the boot has begun anew.
        let runs = self.children.iter().flatten().any(|live| live.child.role() == Role::ApiServer);
        let may_start = runs || now.datastore_ready && !now.stopping;
        // What is told elsewhere stays.
        self.health.send_if_modified(|health| {
            let Health { stands_by, elsewhere, startup, .. } = *health;
            let startup = if may_start || startup == Startup::First { startup } else { Startup::Again };
            let now = Health { stands_by, elsewhere, startup, ..now };
            std::mem::replace(health, now) != now
        });
        if !now.stopping {
            telemetry::set_phase(match (now.datastore_ready, has(Role::ApiServer), now.apiserver_ready) {
                (false, ..) => Phase::Etcd,
                (true, true, false) => Phase::ApiServer,
                (true, ..) => Phase::Run,
            });
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start(child) => self.start(child),
            Action::Pause(child, pause) => self.later(child, pause, Event::PauseOver(child)),
            Action::Terminate(child) => {
                // No connection of ours is to hold it up.
                if let Some(Some(live)) = self.children.get(child) {
                    live.probe.abort();
                }
                let grace = self.grace_of(child);
                self.signal(child, Signal::SIGTERM);
                self.later(child, grace, Event::GraceOver(child));
            }
            Action::Kill(child) => {
                tracing::info!(child = self.name(child), "did not end in its time: killed");
                self.signal(child, Signal::SIGKILL);
            }
            Action::Depart => self.depart(),
            Action::Finished => self.finished = true,
            Action::GiveUp(child) => {
                let failure = self.give_up(child);
                self.failure.get_or_insert(failure);
            }
        }
    }

    fn depart(&mut self) {
        let by = self.stop_by.unwrap_or_else(Instant::now);
        let asked = self.depart.take().is_some_and(|depart| depart.send(by).is_ok());
        let left = by.saturating_duration_since(Instant::now()).saturating_sub(FOR_ETCD);
        let wait = if asked { left } else { Duration::ZERO };
        if let Some(etcd) = self.of_roles(&[Role::Etcd]).first() {
            self.later(*etcd, wait, Event::Departed);
        }
    }

    /// The command after `--`, if the child is one.
    fn command_of(&self, child: Index) -> Option<std::path::Display<'_>> {
        self.specs.get(child).filter(|spec| spec.is_command()).map(|spec| spec.program.display())
    }

    /// The child and why it ended, in words.
    fn said(&self, child: Index, cause: &ExitCause) -> String {
        match self.command_of(child) {
            Some(program) => format!("the command {program} {cause}"),
            None => cause.to_string(),
        }
    }

    /// What to do about the end of a child.
    fn remedy(&self, child: Index, cause: &ExitCause) -> &'static str {
        match cause {
            ExitCause::Finished | ExitCause::Unknown(_) | ExitCause::Panic(_) if self.command_of(child).is_some() => {
                "look at its own output above: syncer knows nothing of it but that it ended"
            }
            cause => cause.remedy(),
        }
    }

    fn give_up(&self, child: Index) -> anyhow::Error {
        let name = match self.command_of(child) {
            Some(program) => format!("the command {program}"),
            None => self.name(child).to_owned(),
        };
        let Some(Some(cause)) = self.causes.get(child) else {
            return anyhow::anyhow!("{name} could not be started {FAILURES_MAX} times in a row");
        };
        let times = if cause.restart_helps() { format!("{FAILURES_MAX} times in a row, ") } else { String::new() };
        refuse(cause.exit(), format!("{times}{name} {cause}"), self.remedy(child, cause))
    }

    fn start(&mut self, child: Index) {
        let Some(spec) = self.specs.get(child) else { return };
        let lock = self.has_the_data(spec.role).then_some(&*self.lock);
        let oom_kills = memory::oom_kills();
        let (process, output) = match child::spawn(spec, lock) {
            Ok(started) => started,
            Err(error) => {
                let event = if error.may_pass() {
                    Event::Exited(child, Duration::ZERO)
                } else {
                    let program = spec.program.display();
                    let what = format!("{} cannot be started: {program}: {}", spec.role.name(), error.source);
                    let remedy = match spec.is_command() {
                        true => "correct the command after `--`",
                        false => "put the program into a folder that --binaries names, or choose another --distro",
                    };
                    self.failure.get_or_insert(refuse(Exit::Usage, what, remedy));
                    Event::Broken(child)
                };
                tracing::error!(child = spec.role.name(), "{:#}", anyhow::Error::from(error));
                let _ = self.tell.send(Told { child, process: None, what: What::Event(event) });
                return;
            }
        };
        tracing::info!(child = spec.role.name(), process = process.pid().as_raw(), "started");
        let relay = relay::follow(spec.role, spec.log, output);
        if spec.role == Role::Etcd {
            crate::crash_point!("start-etcd-spawned");
        }
        if spec.role == Role::ApiServer {
            // Whoever answered in its place leaves the port to it.
            let started = |health: &mut Health| std::mem::replace(&mut health.startup, Startup::Started);
            self.health.send_if_modified(|health| started(health) != Startup::Started);
            crate::crash_point!("start-apiserver-spawned");
        }
        let started = Instant::now();
        let (ready, etcd, watch, tell) = (spec.ready.clone(), self.etcd.clone(), self.watch, self.tell.clone());
        let probe = tokio::spawn(async move {
            let say = |found| {
                let event = match found {
                    probe::Found::Serves => Event::Ready(child),
                    probe::Found::Lost => Event::Lost(child),
                    probe::Found::Hangs => Event::Restart(child),
                };
                let _ = tell.send(Told { child, process: Some(started), what: What::Event(event) });
            };
            probe::follow(&ready, &etcd, watch, say).await;
        });
        let probe = probe.abort_handle();
        if let Some(slot) = self.children.get_mut(child) {
            *slot = Some(Live { child: process, ready: None, started, probe, relay: Some(relay), oom_kills });
        }
    }

    /// Whether this child is the one that has the data open: the datastore, or a distro that keeps its own.
    fn has_the_data(&self, role: Role) -> bool {
        let datastore = |role| matches!(role, Role::Etcd | Role::Kine);
        datastore(role) || (role == Role::ApiServer && !self.specs.iter().any(|spec| datastore(spec.role)))
    }

    /// The child's own grace; when all stop, within the pod's, of which the upper tiers leave the datastore half.
    fn grace_of(&self, child: Index) -> Duration {
        let Some(spec) = self.specs.get(child) else { return Duration::ZERO };
        let left = self.stop_by.map_or(self.grace, |by| by.saturating_duration_since(Instant::now()));
        let datastore = matches!(spec.role, Role::Etcd | Role::Kine);
        spec.stop_grace.min(if datastore { left } else { left / 2 })
    }

    fn signal(&self, child: Index, signal: Signal) {
        if let Some(Some(live)) = self.children.get(child) {
            live.child.signal(signal);
        }
    }

    fn later(&self, child: Index, after: Duration, event: Event) {
        let (tell, process) = (self.tell.clone(), self.started(child));
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = tell.send(Told { child, process, what: What::Event(event) });
        });
    }

    /// Sees to the children that have ended, and, as PID 1, to orphans that are nobody's.
    pub fn collect(&mut self) {
        for (child, slot) in self.children.iter_mut().enumerate() {
            let Some(live) = slot else { continue };
            if live.relay.is_none() {
                continue;
            }
            let status = match live.child.try_wait() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(child = live.child.role().name(), %error, "look at the child");
                    continue;
                }
            };
            live.probe.abort();
            let Some(relay) = live.relay.take() else { continue };
            let (role, process, tell) = (live.child.role(), Some(live.started), self.tell.clone());
            let asked = self.state.told_to_end(child);
            let (before, after) = (live.oom_kills, memory::oom_kills());
            tokio::spawn(async move {
                let cause = ExitCause::of(role, status, asked, &relay.last_words().await).with_oom_kills(before, after);
                let _ = tell.send(Told { child, process, what: What::Ended(status, cause) });
            });
        }
        if nix::unistd::getpid() == Pid::from_raw(1) {
            self.reap_orphans();
        }
    }

    fn ended(&mut self, child: Index, status: ExitStatus, cause: ExitCause) {
        let Some(live) = self.children.get_mut(child).and_then(Option::take) else { return };
        let name = live.child.role().name();
        let again = cause.restart_helps();
        let anew = live.child.role() == Role::Etcd && self.decides_anew(live.ready.is_some(), &cause);
        let (said, remedy) = (self.said(child, &cause), self.remedy(child, &cause));
        match &cause {
            _ if anew => tracing::error!(child = name, %status, remedy, "{said}; what is started is decided anew"),
            ExitCause::StoppedAsAsked => tracing::info!(child = name, %status, "ended"),
            // The last word on it is the program's error.
            _ if !again => tracing::error!(child = name, %status, "{said}"),
            _ => tracing::error!(child = name, %status, remedy, "{said}; it is started again"),
        }
        if let Some(slot) = self.causes.get_mut(child) {
            *slot = Some(cause);
        }
        let ready_for = live.ready.map_or(Duration::ZERO, |since| since.elapsed());
        if anew {
            self.by_etcd = Some(self.give_up(child));
            self.take(Event::Exited(child, ready_for));
            return self.take(Event::Stop);
        }
        self.take(if again { Event::Exited(child, ready_for) } else { Event::Broken(child) });
    }

    fn decides_anew(&self, served: bool, cause: &ExitCause) -> bool {
        !self.state.stopping()
            && match cause {
                ExitCause::StoppedAsAsked => false,
                ExitCause::Removed | ExitCause::BootstrapRefused(_) => self.anew.refused,
                // Where members differ, nothing tells which of them is right.
                ExitCause::Corrupt(said) => self.anew.damaged && !said.contains(INCONSISTENT),
                cause => cause.restart_helps() && !served && self.anew.unserved,
            }
    }

    fn reap_orphans(&self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        for _ in 0..REAPED_AT_ONCE {
            let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) else { return };
            // Our own are seen to in `collect`, at their own SIGCHLD at the latest.
            if self.children.iter().flatten().any(|live| live.child.pid() == pid) {
                return;
            }
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}
