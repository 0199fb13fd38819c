//! The supervisor: etcd (or kine), the API server and its companions, from their start to the last one's end.
//!
//! [`state`] decides, [`run`] carries out: it starts children ([`child`]), asks whether they serve ([`probe`]), relays
//! what they write ([`relay`]), notices their ends by SIGCHLD, judges them ([`exit`]), and feeds all that back as
//! events. Once everything serves, etcd and the API server are asked every ten seconds, and nothing else is polled.

pub mod backoff;
pub mod child;
pub mod exit;
pub mod lines;
pub mod memory;
pub mod probe;
pub mod relay;
mod running;
pub mod signals;
pub mod spec;
pub mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::datadir::DatadirLock;
use crate::serve::health::Health;
use probe::{EtcdAccess, Watch};
use running::{Children, Running};
pub use signals::{StopSignals, stop_signal};
use spec::{ChildSpec, Role};
use state::Event;

/// What is left of the stop's time when the last SIGKILL has been sent. A process that does not end then never will.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// Signals that come within this time of the first are the same stop; a later one hurries it.
const ONE_STOP: Duration = Duration::from_millis(250);

/// Commands that may wait; more at once are a caller's mistake.
const COMMANDS_MAX: usize = 16;

/// What is to be run.
pub struct Plan {
    /// The children.
    pub specs: Vec<ChildSpec>,
    /// The data dir's lock, which the child that has the data open inherits.
    pub lock: Arc<DatadirLock>,
    /// How etcd is asked whether it serves.
    pub etcd: EtcdAccess,
    /// From the stop signal to the last child's end. The API server and its companions get what the datastore leaves.
    pub grace: Duration,
    /// How closely children that serve are watched.
    pub watch: Watch,
    /// What [`Control`] asks for.
    pub commands: Commands,
    /// Which ends of etcd are an end with [`Stopped::ByEtcd`].
    pub anew: Anew,
    /// Nothing above the datastore is started before [`Control::release`].
    pub hold: bool,
    /// Told, with the time by which all is to have ended, once only the datastore is left to be stopped. It is told to
    /// stop after [`Control::departed`], or when only what it needs itself is left of that time.
    pub depart: Option<oneshot::Sender<Instant>>,
}

/// By which ends of etcd everything is stopped, because its command line is to be decided anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anew {
    /// An end before it has ever served.
    pub unserved: bool,
    /// The cluster is not as the command line or the data dir says, or the member was removed from it.
    pub refused: bool,
    /// Its data is damaged, and others may have it.
    pub damaged: bool,
}

/// Why a supervisor has stopped everything.
#[derive(Debug)]
pub enum Stopped {
    /// By a signal, which may have come after [`Control::stop`].
    BySignal,
    /// By [`Control::stop`] alone.
    ByControl,
    /// By an end of etcd as [`Plan::anew`] says; the error that this is if it does not get better.
    ByEtcd(anyhow::Error),
}

/// What a running supervisor can be asked for.
#[derive(Debug)]
enum Command {
    /// End these children and start them again.
    Restart(Vec<Role>),
    /// Run the child of this role by this spec from now on.
    Replace(Box<ChildSpec>),
    /// The departure is done.
    Departed,
    /// What is above the datastore may be started.
    Release,
    /// Stop everything, as at a signal.
    Stop,
}

/// Asks a running supervisor for changes. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Command>);

/// The other end of a [`Control`].
#[derive(Debug)]
pub struct Commands(mpsc::Receiver<Command>);

/// A control and the end that goes into a [`Plan`].
pub fn control() -> (Control, Commands) {
    let (send, receive) = mpsc::channel(COMMANDS_MAX);
    (Control(send), Commands(receive))
}

impl Control {
    /// Ends the children of these roles and starts them again; those above them run on. False if it cannot be asked
    /// for: the supervisor has ended, or does not keep up.
    pub fn restart(&self, roles: &[Role]) -> bool {
        self.0.try_send(Command::Restart(roles.to_vec())).is_ok()
    }

    /// Runs the child of `spec`'s role by `spec` from now on: restarts it if it runs. Roles that are not run are left
    /// out with a warning. False as for [`Control::restart`].
    pub fn replace(&self, spec: ChildSpec) -> bool {
        self.0.try_send(Command::Replace(Box::new(spec))).is_ok()
    }

    /// The datastore may be told to stop ([`Plan::depart`]). False as for [`Control::restart`].
    pub fn departed(&self) -> bool {
        self.0.try_send(Command::Departed).is_ok()
    }

    /// What is above the datastore may be started ([`Plan::hold`]). False as for [`Control::restart`].
    pub fn release(&self) -> bool {
        self.0.try_send(Command::Release).is_ok()
    }

    /// Stops everything, as at a signal. Waits for a supervisor that does not keep up: who asks for it goes on with
    /// nothing else. To one that has ended it is nothing.
    pub async fn stop(&self) {
        let _ = self.0.send(Command::Stop).await;
    }
}

/// Runs the children until told to stop, or until one cannot be kept running, which is an error with its own exit code.
/// `stop` has been listened for since before anything was started.
///
/// While it runs, no other part of the process may start children: as PID 1 it reaps every child that it does not know.
pub async fn run(plan: Plan, stop: &mut StopSignals, health: watch::Sender<Health>) -> anyhow::Result<Stopped> {
    let mut ends = signal(SignalKind::child()).context("listen for SIGCHLD")?;
    let mut commands = plan.commands.0;
    let (mut told, mut killed) = (None::<Instant>, None::<Instant>);
    let Plan { specs, lock, etcd, watch, anew, .. } = plan;
    let children = Children { specs, lock, etcd, watch, anew };
    let (mut running, mut received) = Running::new(children, plan.grace, plan.hold, plan.depart, health);
    running.take(Event::Begin);
    // What ended before the signal was listened for.
    running.collect();
    while !running.finished() {
        let too_late =
            killed.or_else(|| running.stop_by().map(|by| by + AFTER_KILL)).map(tokio::time::Instant::from_std);
        tokio::select! {
            signal = stop.next() => match told {
                // One stop can come as several signals: to the process and to its group, as timeout(1) sends them.
                Some(at) if at.elapsed() < ONE_STOP => {}
                _ => {
                    let again = told.replace(Instant::now()).is_some();
                    tracing::info!(signal, again, "told to stop");
                    running.take(Event::Stop);
                }
            },
            _ = ends.recv() => running.collect(),
            Some(news) = received.recv() => running.told(news),
            Some(command) = commands.recv() => running.command(command),
            () = tokio::time::sleep_until(too_late.unwrap_or_else(far)), if too_late.is_some() => {
                // Where this process itself stood still, none may have been killed, and some have ended.
                running.collect();
                let again = killed.replace(Instant::now() + AFTER_KILL).is_some();
                running.kill();
                // The kernel ends them with us, if anything can.
                let left = running.left();
                anyhow::ensure!(!again || left.is_empty(), "{} did not end even after SIGKILL", left.join(" and "));
            }
        }
    }
    let by_etcd = running.result()?;
    Ok(match by_etcd {
        _ if told.is_some() => Stopped::BySignal,
        Some(error) => Stopped::ByEtcd(error),
        None => Stopped::ByControl,
    })
}

/// A time that does not come; only there to have a value.
fn far() -> tokio::time::Instant {
    tokio::time::Instant::from_std(Instant::now() + Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_is_not_lost_on_a_supervisor_that_does_not_keep_up() {
        let (control, Commands(mut commands)) = control();
        while control.release() {}
        let mut stop = Box::pin(control.stop());
        let early = tokio::time::timeout(Duration::from_millis(100), &mut stop).await;
        assert!(early.is_err(), "there is no room for it, and it says that it was asked for");
        let taken = async {
            let mut stops = false;
            for _ in 0..=COMMANDS_MAX {
                stops = matches!(commands.recv().await, Some(Command::Stop));
            }
            stops
        };
        let ((), stops) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(stop, taken) })
            .await
            .expect("once there is room, it comes");
        assert!(stops, "the last that comes is the stop");
        drop(commands);
        control.stop().await;
    }
}
