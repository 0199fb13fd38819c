//! The supervisor: etcd (or kine), the API server and its companions, from their start to the last one's end.
//!
//! [`state`] decides, [`run`] carries out: it starts children ([`child`]), asks whether they serve ([`probe`]), relays
//! what they write ([`relay`]), notices their ends by SIGCHLD, and feeds all that back as events. Once everything
//! serves, nothing is polled.

pub mod backoff;
pub mod child;
pub mod lines;
pub mod probe;
mod relay;
pub mod signals;
pub mod spec;
pub mod state;

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::datadir::DatadirLock;
use crate::serve::health::Health;
use crate::telemetry::{self, Phase};
use child::Child;
use probe::EtcdAccess;
use signals::StopSignals;
pub use signals::stop_signal;
use spec::{ChildSpec, Role};
use state::{Action, Event, Index, State};

/// Orphans that PID 1 reaps at one SIGCHLD; the others' turn comes with the next.
const REAPED_AT_ONCE: usize = 64;

/// What is to be run.
pub struct Plan {
    /// The children.
    pub specs: Vec<ChildSpec>,
    /// The data dir's lock, which etcd inherits.
    pub lock: DatadirLock,
    /// How etcd is asked whether it serves.
    pub etcd: EtcdAccess,
    /// From the stop signal to the last child's end. The API server and its companions get what the datastore leaves.
    pub grace: Duration,
}

/// Runs the children until told to stop, or until one cannot be kept running, which is an error.
pub async fn run(plan: Plan, health: watch::Sender<Health>) -> anyhow::Result<()> {
    let mut stop = StopSignals::new().context("listen for stop signals")?;
    let mut ends = signal(SignalKind::child()).context("listen for SIGCHLD")?;
    let (events, mut received) = mpsc::unbounded_channel();
    let mut running = Running {
        state: State::new(plan.specs.iter().map(|spec| spec.role)),
        children: plan.specs.iter().map(|_| None).collect(),
        plan,
        health,
        events,
        failure: None,
        finished: false,
        stop_by: None,
    };
    running.take(Event::Begin);
    while !running.finished {
        tokio::select! {
            signal = stop.next() => {
                tracing::info!(signal, "told to stop");
                running.take(Event::Stop);
            }
            _ = ends.recv() => running.collect(),
            Some((child, started, event)) = received.recv() => {
                // What was asked about an earlier process of this child says nothing about the present one.
                if running.started(child) == started {
                    running.take(event);
                }
            }
        }
    }
    match running.failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// A child that runs.
struct Live {
    child: Child,
    ready: Option<Instant>,
    started: Instant,
    probe: AbortHandle,
}

struct Running {
    plan: Plan,
    state: State,
    children: Vec<Option<Live>>,
    health: watch::Sender<Health>,
    /// Child, when its process was started (if it runs), and what happened.
    events: mpsc::UnboundedSender<(Index, Option<Instant>, Event)>,
    failure: Option<anyhow::Error>,
    finished: bool,
    stop_by: Option<Instant>,
}

impl Running {
    fn started(&self, child: Index) -> Option<Instant> {
        self.children.get(child)?.as_ref().map(|live| live.started)
    }

    /// Feeds an event to the state and carries out what comes of it.
    fn take(&mut self, event: Event) {
        if let Event::Ready(child) = event
            && let Some(Some(live)) = self.children.get_mut(child)
        {
            live.ready = Some(Instant::now());
            let took = live.started.elapsed();
            tracing::info!(child = live.child.role().name(), took_ms = took.as_millis() as u64, "serves");
            if live.child.role() == Role::Etcd {
                crate::crash_point!("start-etcd-serving");
            }
        }
        let actions = self.state.next(event);
        if self.state.stopping() && self.stop_by.is_none() {
            self.stop_by = Some(Instant::now() + self.plan.grace);
            telemetry::set_phase(Phase::Stop);
        }
        self.publish();
        for action in actions {
            self.carry_out(action);
        }
    }

    fn publish(&self) {
        let has = |role| self.plan.specs.iter().any(|spec| spec.role == role);
        let datastore = if has(Role::Etcd) { Some(Role::Etcd) } else { has(Role::Kine).then_some(Role::Kine) };
        let now = Health {
            // A distro that keeps its own store (k3s on SQLite) answers for it with its own readiness.
            datastore_ready: datastore.is_none_or(|role| self.state.serves(role)),
            apiserver_ready: has(Role::ApiServer) && self.state.serves(Role::ApiServer),
            stopping: self.state.stopping(),
        };
        let changed = self.health.send_if_modified(|health| std::mem::replace(health, now) != now);
        if changed && !now.stopping {
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
                let grace = self.grace(child);
                self.signal(child, Signal::SIGTERM);
                self.later(child, grace, Event::GraceOver(child));
            }
            Action::Kill(child) => self.signal(child, Signal::SIGKILL),
            Action::Finished => self.finished = true,
            Action::GiveUp(child) => {
                let name = self.plan.specs.get(child).map_or("child", |spec| spec.role.name());
                let why = format!("{name} ended {} times in a row; its last lines are in the log", state::FAILURES_MAX);
                self.failure = Some(anyhow::anyhow!(why));
            }
        }
    }

    fn start(&mut self, child: Index) {
        let Some(spec) = self.plan.specs.get(child) else { return };
        let lock = (spec.role == Role::Etcd).then_some(&self.plan.lock);
        let (process, output) = match child::spawn(spec, lock) {
            Ok(started) => started,
            Err(error) => {
                let may_pass = error.may_pass();
                tracing::error!(child = spec.role.name(), "{:#}", anyhow::Error::from(error));
                if !may_pass {
                    let program = spec.program.display();
                    let what = format!("{} cannot be started: there is no program {program} to run", spec.role.name());
                    let remedy = "put it into a folder that --binaries names, or choose another --distro";
                    self.failure = Some(crate::exit::refuse(crate::exit::Exit::Usage, what, remedy));
                    let _ = self.events.send((child, None, Event::Stop));
                }
                let _ = self.events.send((child, None, Event::Exited(child, Duration::ZERO)));
                return;
            }
        };
        tracing::info!(child = spec.role.name(), process = process.pid().as_raw(), "started");
        relay::follow(spec.role, spec.log, output);
        if spec.role == Role::ApiServer {
            crate::crash_point!("start-apiserver-spawned");
        }
        let started = Instant::now();
        let (ready, etcd, events) = (spec.ready.clone(), self.plan.etcd.clone(), self.events.clone());
        let probe = tokio::spawn(async move {
            probe::serves(&ready, &etcd).await;
            let _ = events.send((child, Some(started), Event::Ready(child)));
        });
        let live = Live { child: process, ready: None, started, probe: probe.abort_handle() };
        if let Some(slot) = self.children.get_mut(child) {
            *slot = Some(live);
        }
    }

    /// The child's own grace; within the pod's, of which the API server's tiers leave the datastore half.
    fn grace(&self, child: Index) -> Duration {
        let Some(spec) = self.plan.specs.get(child) else { return Duration::ZERO };
        let left = self.stop_by.map_or(self.plan.grace, |by| by.saturating_duration_since(Instant::now()));
        let datastore = matches!(spec.role, Role::Etcd | Role::Kine);
        spec.stop_grace.min(if datastore { left } else { left / 2 })
    }

    fn signal(&self, child: Index, signal: Signal) {
        if let Some(Some(live)) = self.children.get(child) {
            live.child.signal(signal);
        }
    }

    fn later(&self, child: Index, after: Duration, event: Event) {
        let (events, started) = (self.events.clone(), self.started(child));
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = events.send((child, started, event));
        });
    }

    /// Sees to the children that have ended, and, as PID 1, to orphans that are nobody's.
    fn collect(&mut self) {
        for child in 0..self.children.len() {
            let Some(Some(live)) = self.children.get_mut(child) else { continue };
            let status = match live.child.try_wait() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(child = live.child.role().name(), %error, "look at the child");
                    continue;
                }
            };
            let role = live.child.role();
            let ready_for = live.ready.map_or(Duration::ZERO, |since| since.elapsed());
            live.probe.abort();
            if let Some(slot) = self.children.get_mut(child) {
                *slot = None;
            }
            self.note_end(role, status);
            self.take(Event::Exited(child, ready_for));
        }
        if nix::unistd::getpid() == Pid::from_raw(1) {
            self.reap_orphans();
        }
    }

    fn note_end(&self, role: Role, status: ExitStatus) {
        if self.state.stopping() {
            tracing::info!(child = role.name(), %status, "ended");
        } else {
            tracing::error!(child = role.name(), %status, "ended by itself; it is started again");
        }
    }

    fn reap_orphans(&self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        for _ in 0..REAPED_AT_ONCE {
            let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) else { return };
            // Our own are seen to above, at their next SIGCHLD at the latest.
            if self.children.iter().flatten().any(|live| live.child.pid() == pid) {
                return;
            }
            let _ = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
    }
}
