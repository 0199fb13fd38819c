//! The state: volumes, pods, members, the marker, and what is on its way.

use std::collections::BTreeSet;

use crate::boot::{Marker, MarkerPhase, MarkerWrite, Notes, Stopped};
use crate::config::{Budget, Config, Start};
use crate::etcd::{Dir, Entry, Op, membership, written};
use crate::ids::{ClusterId, MemberId};
use crate::observe;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Volume {
    pub claim: bool,
    pub dir: Option<Dir>,
    pub notes: Notes,
    pub staged: Option<Restore>,
    /// etcd could not start from the data dir.
    pub damaged: bool,
    pub store: Option<Store>,
}

/// A `state.db` with the first write, and how far its move into etcd has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// It has not been begun.
    Sqlite,
    /// A data dir is in its place that nothing has verified, and that lacks the write.
    Importing,
    /// It is committed.
    Migrated,
}

/// What DNS goes on saying, by ordinals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stale {
    /// The pods that it names, present or not.
    pub named: u8,
    /// Those of them that are still where it says.
    pub right: u8,
}

/// A snapshot of the first write, staged to be restored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Restore {
    pub cluster: u8,
    pub member: u8,
    pub replaces: Option<u8>,
    pub begun: Option<Vec<ClusterId>>,
    /// Its data dir is not in its place yet.
    pub whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Process {
    #[default]
    Off,
    /// Booting, and about to do this.
    Will(Act),
    /// Starts nothing, or has exited for good with a remedy; decides again.
    Waits,
    /// Another program, which says nothing.
    Other,
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
    RestoreBegun(Vec<ClusterId>),
    PutRestored,
    RestoreDone,
    Import,
    CommitImport,
    WriteBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    Forming,
    Formed,
    Withdrawn,
    ResetDone,
    Survivor,
    NoSurvivor,
    Dropped,
    Overtaken,
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
    /// The pod in whose place it has removed a voter, and which it has not added yet.
    pub replacing: Option<u8>,
    /// Its API server is held back because of these clusters; none: it runs while etcd serves.
    pub held: BTreeSet<ClusterId>,
    /// A restore was staged when its process started.
    pub restores: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub volumes: Vec<Volume>,
    pub pods: Vec<Pod>,
    pub desired: u8,
    pub values: u8,
    pub host_up: bool,
    /// The host API answers, but for the marker.
    pub marker_hidden: bool,
    /// The pod that is cut off.
    pub cut: Option<usize>,
    pub stale: Option<Stale>,
    /// A lone volume was lost and formed anew although there had been data.
    pub anew: bool,
    pub marker: Option<Marker>,
    pub late: Option<MarkerWrite>,
    pub acked: u8,
    pub next_write: u8,
    pub next_id: u8,
    pub next_cluster: u8,
    pub budget: Budget,
    /// A quorum or a committed entry that is lost, whether or not anybody has seen it yet.
    pub loss: Option<&'static str>,
    /// A step that a rule forbids, by that rule's own words: what is lost with it may come much later.
    pub bad_step: Option<&'static str>,
    /// The host API knows no such StatefulSet, and nobody looks after its pods.
    pub orphaned: bool,
    /// Embedded etcd is on.
    pub enabled: bool,
    /// Each pod has a CA of its own.
    pub own_cas: bool,
    /// The membership was changed in this second.
    pub changed: bool,
    /// The IDs that were given in this second, after the ordinals that they were given to.
    pub given: Vec<(u8, u8)>,
    /// A cluster that was put on a volume by hand: nobody's data is counted there.
    pub stray: Option<u8>,
}

impl World {
    pub fn initial(c: &Config) -> World {
        let mut w = World {
            volumes: vec![Volume::default(); c.pods],
            pods: vec![Pod::default(); c.pods],
            desired: c.desired,
            values: c.desired.max(1),
            host_up: true,
            marker_hidden: false,
            cut: None,
            stale: None,
            anew: false,
            marker: None,
            late: None,
            acked: 0,
            next_write: 0,
            next_id: 1,
            next_cluster: 1,
            budget: c.budget,
            orphaned: false,
            enabled: true,
            own_cas: c.own_cas,
            changed: false,
            given: Vec::new(),
            loss: None,
            bad_step: None,
            stray: None,
        };
        if c.start == Start::OtherProgram {
            for o in 0..usize::from(c.desired) {
                w.volumes[o].claim = true;
                w.pods[o] = Pod { exists: true, process: Process::Other, ..Pod::default() };
            }
        }
        if c.start == Start::Store {
            w.volumes[0] = Volume { claim: true, store: Some(Store::Sqlite), ..Volume::default() };
            (w.acked, w.next_write) = (1, 1);
        }
        if !matches!(c.start, Start::Nothing | Start::OtherProgram | Start::Store) {
            let n = match c.start {
                Start::Stray => c.desired - 1,
                Start::Abandoned | Start::Learner => c.pods as u8,
                _ => c.desired,
            };
            let mut log = vec![Entry { term: 1, op: Op::Found(1, 0) }, Entry { term: 1, op: Op::Write(0) }];
            for o in 1..n {
                log.push(Entry { term: 1, op: Op::AddLearner(o + 1, o) });
                log.push(Entry { term: 1, op: Op::Promote(o + 1) });
            }
            for o in 0..usize::from(n) {
                let dir = Dir { cluster: 1, member: o as u8 + 1, term: 1, log: log.clone(), commit: log.len() };
                w.volumes[o] = Volume { claim: true, dir: Some(dir), ..Volume::default() };
                w.pods[o] = Pod { exists: true, process: Process::Etcd, ..Pod::default() };
            }
            w.pods[0].leads = Some(1);
            (w.acked, w.next_write, w.next_id, w.next_cluster) = (1, 1, n + 1, 2);
            w.marker = c.host.then(|| Marker::new(MarkerPhase::Formed(ClusterId(1))));
        }
        if c.start == Start::Staged {
            w.stage();
            w.stop_etcd(0, Process::Off);
            w.lead(1, 2, &(1..usize::from(c.desired)).collect::<Vec<_>>());
            for o in 2..usize::from(c.desired) {
                w.copy(1, o);
            }
            w.commit(1);
        }
        if c.start == Start::Stray {
            let (cluster, member, o) = (2, w.next_id, usize::from(c.desired) - 1);
            (w.stray, w.next_cluster, w.next_id) = (Some(cluster), cluster + 1, member + 1);
            let log = vec![Entry { term: 1, op: Op::Found(member, o as u8) }];
            let dir = Dir { cluster, member, term: 1, log, commit: 1 };
            w.volumes[o] = Volume { claim: true, dir: Some(dir), ..Volume::default() };
        }
        for o in usize::from(c.desired)..c.pods {
            match c.start {
                Start::Surplus => w.pods[o].exists = true,
                Start::Abandoned | Start::Learner => w.pods[o] = Pod::default(),
                _ => {}
            }
        }
        if c.start == Start::Lost {
            let last = usize::from(c.desired) - 1;
            w.pods[last] = Pod::default();
            w.volumes[last] = Volume { claim: true, ..Volume::default() };
        }
        if c.start == Start::Learner {
            let ops = [Op::Found(2, 1), Op::Write(0), Op::AddLearner(3, 0)];
            let log: Vec<_> = ops.into_iter().map(|op| Entry { term: 1, op }).collect();
            for (o, member) in [(0, 3), (1, 2)] {
                w.volumes[o].dir = Some(Dir { cluster: 1, member, term: 1, commit: log.len(), log: log.clone() });
            }
            (w.pods[0].leads, w.next_id) = (None, 4);
        }
        if c.start == Start::Behind
            && let Some(dir) = &mut w.volumes[1].dir
        {
            dir.commit -= 2;
        }
        if c.start == Start::Paused {
            w.desired = 0;
            w.pods = vec![Pod::default(); c.pods];
            for volume in w.volumes.iter_mut().filter(|_| c.host) {
                let (Some(dir), Some(marker)) = (&volume.dir, &mut w.marker) else { continue };
                volume.notes.stopped = true;
                marker.stopped.push(Stopped { member: MemberId(dir.member.into()), last: dir.position() });
            }
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
        self.pods[o].replacing = None;
        self.pods[o].held.clear();
    }

    /// Whether an API server writes to this cluster, if it serves.
    pub fn open(&self, cluster: u8) -> bool {
        let writes = |o: &usize| {
            let of = self.dir(*o).is_some_and(|d| d.cluster == cluster);
            of && self.runs(*o) && self.pods[*o].held.is_empty() && self.answers(*o)
        };
        (0..self.pods.len()).any(|o| writes(&o))
    }

    /// The writes that some data dir has, or a store that has not been moved into one.
    pub fn kept(&self) -> u8 {
        let stores = self.volumes.iter().any(|v| matches!(v.store, Some(Store::Sqlite | Store::Importing)));
        let dirs = self.volumes.iter().filter_map(|v| v.dir.as_ref());
        dirs.fold(u8::from(stores), |kept, dir| kept | written(&dir.log))
    }

    /// Whether a restore has replaced this cluster, whoever knows of it.
    pub fn was_replaced(&self, cluster: u8) -> bool {
        let id = ClusterId(cluster.into());
        let marked = self.marker.as_ref().is_some_and(|marker| marker.superseded.contains(&id));
        marked || self.volumes.iter().any(|volume| volume.notes.superseded.contains(&id))
    }

    /// Whether two pods cannot reach each other.
    pub fn apart(&self, a: usize, b: usize) -> bool {
        a != b && (self.own_cas || self.cut == Some(a) || self.cut == Some(b))
    }

    /// Whether the volumes that are left, but for this one, could elect a leader of this cluster by themselves.
    pub fn quorum_left(&self, cluster: u8, without: Option<usize>) -> bool {
        let volumes = || self.volumes.iter().enumerate().filter(|(o, v)| Some(*o) != without && !v.damaged);
        let dirs = || volumes().filter_map(|(_, v)| v.dir.as_ref()).filter(|d| d.cluster == cluster);
        let Some(latest) = dirs().max_by_key(|d| d.last()) else { return false };
        // Those in effect agree on what follows, also on the next.
        (latest.commit..=latest.log.len()).all(|upto| {
            let peers = membership(&latest.log, upto).0;
            let voters: Vec<_> = peers.into_iter().filter(|p| !p.learner).collect();
            voters.iter().filter(|p| dirs().any(|d| d.member == p.id)).count() > voters.len() / 2
        })
    }

    /// Whether DNS names this pod.
    pub fn named(&self, o: usize) -> bool {
        self.stale.map_or(self.pods[o].exists, |stale| stale.named >> o & 1 == 1)
    }

    /// Whether this pod, if it is there, is found where DNS says that it is.
    pub fn found(&self, o: usize) -> bool {
        self.stale.is_none_or(|stale| stale.right >> o & 1 == 1)
    }

    /// Whether DNS leads to this pod, which waits for that; as the only replica only for a moment.
    pub fn resolves_itself(&self, o: usize) -> bool {
        self.values <= 1 || (self.named(o) && self.found(o))
    }

    /// From now on DNS says what it says now.
    pub(crate) fn freeze_dns(&mut self) {
        let there = (0..self.pods.len()).filter(|o| self.pods[*o].exists).fold(0, |pods, o| pods | 1 << o);
        self.stale = Some(Stale { named: there, right: there });
    }

    /// A pod of this ordinal has come, with an address of its own.
    pub(crate) fn moved(&mut self, o: usize) {
        if let Some(stale) = &mut self.stale {
            stale.right &= !(1 << o);
        }
    }

    pub fn ready(&self, c: &Config, o: usize) -> bool {
        observe::ready(self, c, o)
    }
}
