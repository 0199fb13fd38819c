//! Who decides which pods there are: the box's own controller, or those of a host cluster.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::ensure;

use super::super::controller::{Action, Event, Pod, StatefulSet};
use super::super::forward::{Addresses, forward};
use super::super::host::{self, Host, Reported, SetStatus};
use super::super::kubelet::{Duty, Kubelet, Listed};
use super::super::network::GATEWAY;
use super::{Daemon, Message, write};

/// Who decides which pods there are.
pub(super) enum Driver {
    /// The box.
    Own(StatefulSet),
    /// The controllers of a host cluster.
    Host(Box<HostDriver>),
}

pub(super) struct HostDriver {
    pub(super) host: Host,
    pub(super) kubelet: Kubelet,
    pub(super) set: SetStatus,
    /// Changes that we have asked the API for.
    pub(super) changes: Arc<AtomicU64>,
    /// Pods whose state the API did not take.
    pub(super) unreported: BTreeSet<u32>,
}

/// Between two looks at the host cluster's API.
const LIST_EVERY: Duration = Duration::from_millis(200);

impl Driver {
    /// The pods that exist, those whose process has ended too.
    pub(super) fn pods(&self) -> Vec<(&u32, &Pod)> {
        match self {
            Driver::Own(set) => set.pods.iter().collect(),
            Driver::Host(driver) => driver.kubelet.pods.iter().map(|(ordinal, s)| (ordinal, &s.pod)).collect(),
        }
    }

    pub(super) fn settled(&self) -> bool {
        match self {
            Driver::Own(set) => set.settled(),
            Driver::Host(driver) => {
                let pods = &driver.kubelet.pods;
                let well = pods.values().filter(|s| s.pod.ready && s.pod.terminating.is_none()).count();
                driver.set.settled && pods.len() == well && well == driver.set.replicas as usize
            }
        }
    }

    pub(super) fn gone(&self) -> bool {
        match self {
            Driver::Own(set) => set.gone(),
            Driver::Host(driver) => driver.kubelet.gone(),
        }
    }

    pub(super) fn next_tick(&self) -> Option<Duration> {
        match self {
            Driver::Own(set) => set.next_tick(),
            Driver::Host(driver) => driver.kubelet.next_tick(),
        }
    }
}

impl Daemon {
    /// Brings up the host cluster, if there is to be one, and hands the decisions to it.
    pub(super) fn start_host(&mut self) -> anyhow::Result<()> {
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
        self.driver = Driver::Host(Box::new(HostDriver { host, kubelet, set, changes, unreported: BTreeSet::new() }));
        Ok(())
    }

    /// Changes the StatefulSet: our own by an event, the host cluster's by its API.
    pub(super) fn change(
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

    pub(super) fn listed(&mut self, pods: &[Listed], set: SetStatus, seen: u64) {
        let now = self.began.elapsed();
        let Driver::Host(driver) = &mut self.driver else { return };
        let fresh = seen == driver.changes.load(Ordering::SeqCst);
        driver.set = SetStatus { settled: set.settled && fresh, ..set };
        let mut duties = driver.kubelet.listed(pods, now);
        // It answers again.
        duties.extend(std::mem::take(&mut driver.unreported).into_iter().map(Duty::Report));
        let failed = self.perform(duties);
        failed.into_iter().for_each(|event| self.happened(event));
    }

    /// Takes an event to who decides, and carries out the decisions.
    pub(super) fn happened(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if let Event::Exited { ordinal, incarnation } = event {
                self.bury(ordinal, incarnation);
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
    pub(super) fn perform(&mut self, duties: Vec<Duty>) -> Vec<Event> {
        let (mut failed, mut unreported) = (Vec::new(), Vec::new());
        for duty in duties {
            let what = format!("{duty:?}");
            let done = match duty {
                Duty::Process(action) => self.act(action).inspect_err(|_| {
                    if let Action::Start { ordinal, incarnation, .. } = action {
                        failed.push(Event::Exited { ordinal, incarnation });
                    }
                }),
                Duty::Report(ordinal) => self.report(ordinal).inspect_err(|_| unreported.push(ordinal)),
                Duty::Remove { ordinal, uid } => self.tell(move |api| api.remove(ordinal, &uid)),
            };
            match done {
                Ok(()) => self.say(&what),
                Err(e) => self.say(&format!("{what}: {e:#}")),
            }
        }
        if let Driver::Host(driver) = &mut self.driver {
            driver.unreported.extend(unreported);
        }
        failed
    }

    pub(super) fn report(&self, ordinal: u32) -> anyhow::Result<()> {
        let Driver::Host(driver) = &self.driver else { return Ok(()) };
        let Some(started) = driver.kubelet.pods.get(&ordinal) else { return Ok(()) };
        let uid = started.uid.clone();
        let live = self.live.get(&ordinal).filter(|live| live.incarnation == started.pod.incarnation);
        let live = live.filter(|_| !started.ended);
        let reported = Reported {
            address: live.map(|live| live.address),
            runs: live.is_some_and(|live| live.container.runs()),
            restarts: live.map_or(0, |live| live.container.restarts),
            ready: started.pod.ready,
        };
        self.tell(move |api| api.report(ordinal, &uid, &reported))
    }

    pub(super) fn tell(
        &self,
        call: impl FnOnce(&host::Api) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let Driver::Host(driver) = &self.driver else { return Ok(()) };
        let api = driver.host.api.clone();
        self.network.inside(move || call(&api))
    }
}
