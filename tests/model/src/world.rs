//! The state: volumes, pods, members, the marker, and what is on its way.

use crate::boot::{Marker, MarkerWrite, Notes};
use crate::etcd::{Dir, Entry, Op};
use crate::ids::ClusterId;
use crate::membership::ready::PodManagement;
use crate::observe;
use crate::rules::Rules;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub kills: u8,
    pub losses: u8,
    pub scales: u8,
    pub writes: u8,
    pub blind: u8,
    pub late: u8,
    pub host: u8,
    pub marker: u8,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub name: &'static str,
    pub pods: usize,
    pub host: bool,
    pub policy: PodManagement,
    pub rules: Rules,
    pub budget: Budget,
    /// Replicas at first; a cluster of them runs already if `running`.
    pub desired: u8,
    pub running: bool,
    /// The replica counts that may be scaled to.
    pub scale_to: &'static [u8],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Volume {
    pub claim: bool,
    pub dir: Option<Dir>,
    pub notes: Notes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Process {
    #[default]
    Off,
    /// Booting, and about to do this.
    Will(Act),
    /// Starts nothing, or has exited for good with a remedy; decides again.
    Waits(Option<u8>),
    /// etcd runs, and listens to its peers.
    Etcd,
    /// Told to stop, etcd stopped.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    Start,
    Form,
    Write(Option<MarkerWrite>, Note),
    Join(Option<u8>),
    SetAside,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    Forming,
    Formed,
    Withdrawn,
    ResetDone,
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pod {
    pub exists: bool,
    pub terminating: bool,
    pub asks_to_leave: bool,
    pub process: Process,
    /// The term that it leads in.
    pub leads: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub volumes: Vec<Volume>,
    pub pods: Vec<Pod>,
    pub desired: u8,
    pub values: u8,
    pub host_up: bool,
    pub marker: Option<Marker>,
    pub late: Option<MarkerWrite>,
    pub acked: u8,
    pub next_write: u8,
    pub next_id: u8,
    pub next_cluster: u8,
    pub budget: Budget,
    pub bad_step: Option<&'static str>,
}

impl World {
    pub fn initial(c: &Config) -> World {
        let mut w = World {
            volumes: vec![Volume::default(); c.pods],
            pods: vec![Pod::default(); c.pods],
            desired: c.desired,
            values: c.desired.max(1),
            host_up: true,
            marker: None,
            late: None,
            acked: 0,
            next_write: 0,
            next_id: 1,
            next_cluster: 1,
            budget: c.budget,
            bad_step: None,
        };
        if c.running {
            let n = c.desired;
            let mut log = vec![Entry { term: 1, op: Op::Found(1, 0) }, Entry { term: 1, op: Op::Write(0) }];
            for o in 1..n {
                log.push(Entry { term: 1, op: Op::AddLearner(o + 1, o) });
                log.push(Entry { term: 1, op: Op::Promote(o + 1) });
            }
            for o in 0..usize::from(n) {
                let dir = Dir { cluster: 1, member: o as u8 + 1, term: 1, log: log.clone(), commit: log.len() };
                w.volumes[o] = Volume { claim: true, dir: Some(dir), notes: Notes::default() };
                w.pods[o] = Pod { exists: true, process: Process::Etcd, ..Pod::default() };
            }
            w.pods[0].leads = Some(1);
            (w.acked, w.next_write, w.next_id, w.next_cluster) = (1, 1, n + 1, 2);
            w.marker = c.host.then(|| Marker::new(crate::boot::MarkerPhase::Formed(ClusterId(1))));
        }
        w
    }

    pub fn dir(&self, o: usize) -> Option<&Dir> {
        self.volumes[o].dir.as_ref()
    }

    pub fn runs(&self, o: usize) -> bool {
        self.pods[o].process == Process::Etcd
    }

    /// The pod whose etcd runs as this member of this cluster.
    pub fn runner(&self, cluster: u8, id: u8) -> Option<usize> {
        (0..self.pods.len())
            .find(|o| self.runs(*o) && self.dir(*o).is_some_and(|d| d.cluster == cluster && d.member == id))
    }
    pub(crate) fn stop_etcd(&mut self, o: usize, to: Process) {
        self.pods[o].process = to;
        self.pods[o].leads = None;
    }

    pub fn ready(&self, c: &Config, o: usize) -> bool {
        observe::ready(self, c, o)
    }
}
