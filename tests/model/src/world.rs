//! The state, the actions, and what each does.

use crate::boot::reset::{self, ResetStep};
use crate::boot::{BootDecision, Known, Marker, MarkerWrite, Notes, Record, Wait};
use crate::etcd::{Dir, Entry, Op, membership};
use crate::ids::ClusterId;
use crate::membership::leave::{self, LeaveStep};
use crate::membership::ready::PodManagement;
use crate::membership::{self as plans, Plan, Step};
use crate::observe;
use crate::rules::{Rule, Rules};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Boot(usize),
    BootBlind(usize),
    Do(usize),
    DoLate(usize),
    Land,
    Elect(usize),
    Copy(usize, usize),
    Commit(usize),
    Write(usize),
    Plan(usize),
    Upkeep(usize),
    Leave(usize),
    Hurry(usize),
    Create(usize),
    Delete(usize),
    Kill(usize),
    Lose(usize),
    Scale(u8),
    HostDown,
    HostUp,
    LoseMarker,
}

impl Action {
    pub fn is_fault(self) -> bool {
        use Action::*;
        matches!(
            self,
            BootBlind(_) | DoLate(_) | Kill(_) | Lose(_) | Scale(_) | HostDown | LoseMarker | Write(_) | Hurry(_)
        )
    }
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

    fn reaches(&self, cluster: u8, from: u8, id: u8) -> Option<usize> {
        self.runner(cluster, id).filter(|o| self.dir(*o).is_some_and(|d| !d.removed().contains(&from)))
    }

    /// Whether this pod leads and answers linearizable reads.
    pub fn serves(&self, o: usize) -> bool {
        let (Some(term), Some(dir)) = (self.pods[o].leads, self.dir(o)) else { return false };
        let peers = dir.peers();
        let voters = peers.iter().filter(|p| !p.learner);
        let up = voters.clone().filter(|p| {
            self.reaches(dir.cluster, dir.member, p.id).is_some_and(|f| self.dir(f).is_some_and(|d| d.term <= term))
        });
        self.runs(o)
            && peers.iter().any(|p| p.id == dir.member && !p.learner)
            && up.count() > voters.count() / 2
            && dir.commit > 0
            && dir.log[dir.commit - 1].term == term
    }

    pub fn server(&self, cluster: Option<u8>) -> Option<usize> {
        (0..self.pods.len())
            .find(|o| self.serves(*o) && cluster.is_none_or(|c| self.dir(*o).is_some_and(|d| d.cluster == c)))
    }

    fn stop_etcd(&mut self, o: usize, to: Process) {
        self.pods[o].process = to;
        self.pods[o].leads = None;
    }

    pub fn ready(&self, c: &Config, o: usize) -> bool {
        observe::ready(self, c, o)
    }

    pub fn actions(&self, c: &Config, out: &mut Vec<Action>) {
        use Action::*;
        let b = &self.budget;
        let n = self.pods.len();
        for o in 0..n {
            let pod = &self.pods[o];
            match &pod.process {
                Process::Off | Process::Waits(_) if pod.exists && !pod.terminating => {
                    out.push(Boot(o));
                    if b.blind > 0 {
                        out.push(BootBlind(o));
                    }
                }
                Process::Will(act) if pod.exists && !pod.terminating => {
                    out.push(Do(o));
                    if b.late > 0 && matches!(act, Act::Write(Some(_), _)) && self.late.is_none() {
                        out.push(DoLate(o));
                    }
                }
                Process::Etcd if !pod.terminating && self.server(self.dir(o).map(|d| d.cluster)).is_none() => {
                    out.push(Boot(o))
                }
                _ => {}
            }
            if pod.terminating {
                out.push(Leave(o));
                out.push(Hurry(o));
            }
            if pod.leads.is_none() {
                out.push(Elect(o));
            } else {
                out.extend((0..n).filter(|f| *f != o).map(|f| Copy(o, f)));
                out.push(Commit(o));
                if self.serves(o) {
                    out.push(Plan(o));
                    out.push(Upkeep(o));
                    if b.writes > 0 {
                        out.push(Write(o));
                    }
                }
            }
            if b.kills > 0 && pod.exists && pod.process != Process::Off {
                out.push(Kill(o));
            }
            if b.losses > 0 && pod.process == Process::Off && self.volumes[o].dir.is_some() {
                out.push(Lose(o));
            }
        }
        self.controller(c, out);
        if self.late.is_some() {
            out.push(Land);
        }
        if b.scales > 0 {
            out.extend(c.scale_to.iter().filter(|n| **n != self.desired).map(|n| Scale(*n)));
        }
        if c.host && !self.host_up {
            out.push(HostUp);
        }
        if b.host > 0 && self.host_up && c.host {
            out.push(HostDown);
        }
        if b.marker > 0 && self.marker.is_some() {
            out.push(LoseMarker);
        }
    }

    fn controller(&self, c: &Config, out: &mut Vec<Action>) {
        let desired = usize::from(self.desired);
        let ordered = c.policy == PodManagement::OrderedReady;
        let fine = |o: usize| self.pods[o].exists && !self.pods[o].terminating && self.ready(c, o);
        if let Some(o) = (0..desired).find(|o| !self.pods[*o].exists)
            && (!ordered || (0..o).all(fine))
        {
            out.push(Action::Create(o));
        }
        let calm = || self.pods.iter().all(|p| !p.terminating);
        let surplus = (desired..self.pods.len()).rev().find(|o| self.pods[*o].exists && !self.pods[*o].terminating);
        if let Some(o) = surplus {
            let lowest_unready = (0..self.pods.len()).find(|o| self.pods[*o].exists && !fine(*o));
            if !ordered || (calm() && (0..desired).all(fine) && (fine(o) || lowest_unready == Some(o))) {
                out.push(Action::Delete(o));
            }
        }
    }

    pub fn next(&self, c: &Config, action: Action) -> Option<World> {
        use Action::*;
        let mut w = self.clone();
        match action {
            Boot(o) => w.boot(c, o, false),
            BootBlind(o) => {
                w.budget.blind -= 1;
                w.boot(c, o, true);
            }
            Do(o) => w.act(c, o, false),
            DoLate(o) => {
                w.budget.late -= 1;
                w.act(c, o, true);
            }
            Land => {
                let write = w.late.take()?;
                w.swap(&write);
            }
            Elect(o) => w.elect(o)?,
            Copy(l, f) => w.copy(l, f)?,
            Commit(o) => w.commit(o)?,
            Write(o) => {
                w.budget.writes -= 1;
                let k = w.next_write;
                w.next_write += 1;
                w.append(o, Op::Write(k));
            }
            Plan(o) => w.plan(c, o),
            Upkeep(o) => {
                if !(c.host && w.host_up) {
                    return None;
                }
                let list = observe::list(w.dir(o)?);
                let write = crate::boot::marker::upkeep(&observe::marker(&w, c), &list, c.rules)?;
                w.swap(&write);
            }
            Leave(o) => w.leave(c, o, false),
            Hurry(o) => w.leave(c, o, true),
            Create(o) => {
                w.pods[o] = Pod { exists: true, ..Pod::default() };
                w.volumes[o].claim = true;
            }
            Delete(o) => {
                w.pods[o].terminating = true;
                if !matches!(w.pods[o].process, Process::Etcd) {
                    w.pods[o] = Pod::default();
                }
            }
            Kill(o) => {
                w.budget.kills -= 1;
                if w.pods[o].terminating {
                    w.pods[o] = Pod::default();
                } else {
                    w.stop_etcd(o, Process::Off);
                }
            }
            Lose(o) => {
                w.budget.losses -= 1;
                w.volumes[o] = Volume { claim: w.volumes[o].claim, ..Volume::default() };
            }
            Scale(n) => {
                w.budget.scales -= 1;
                w.desired = n;
                if n > 0 {
                    w.values = n;
                }
            }
            HostDown => {
                w.budget.host -= 1;
                w.host_up = false;
            }
            HostUp => w.host_up = true,
            LoseMarker => {
                w.budget.marker -= 1;
                w.marker = None;
            }
        }
        (w != *self).then_some(w)
    }

    fn boot(&mut self, c: &Config, o: usize, blind: bool) {
        let facts = observe::facts(self, c, o, blind);
        let decision = crate::boot::explained(&facts, c.rules).0;
        let will = Process::Will;
        let process = match decision {
            BootDecision::Start { .. } if self.runs(o) => return,
            BootDecision::Start { .. } => will(Act::Start),
            BootDecision::Form => will(Act::Form),
            BootDecision::Record(record) => will(match record {
                Record::Forming(write) => Act::Write(write, Note::Forming),
                Record::Formed(write) => Act::Write(Some(write), Note::Formed),
                Record::FormingDone => Act::Write(None, Note::Formed),
                Record::Withdrawn(write) => Act::Write(Some(write), Note::Withdrawn),
                Record::WithdrawnAlready => Act::Write(None, Note::Withdrawn),
                Record::Survivor(write) | Record::NoSurvivor(write) => Act::Write(Some(write), Note::None),
                Record::ResetDone => Act::Write(None, Note::ResetDone),
            }),
            BootDecision::Join { replace, .. } => will(Act::Join(replace.map(|id| id.0 as u8))),
            BootDecision::SetAside { .. } => will(Act::SetAside),
            BootDecision::Reset { .. } => will(Act::Reset),
            BootDecision::Wait(Wait::MajorityGone { replicas, .. }) => Process::Waits(Some(replicas as u8)),
            BootDecision::Wait(_) | BootDecision::Refuse(_) => Process::Waits(None),
            BootDecision::RunOnSqlite | BootDecision::Import { .. } => unreachable!("embedded etcd without a store"),
        };
        self.stop_etcd(o, process);
    }

    fn act(&mut self, c: &Config, o: usize, late: bool) {
        let Process::Will(act) = std::mem::take(&mut self.pods[o].process) else { return };
        match act {
            Act::Start => self.pods[o].process = Process::Etcd,
            Act::Form => {
                let fresh = c.rules.on(Rule::FreshToken);
                let (cluster, id) = if fresh { (self.next_cluster, self.next_id) } else { (1, 1) };
                self.next_cluster = self.next_cluster.max(cluster + 1);
                self.next_id = self.next_id.max(id + 1);
                // Documented: without a host API a lone pod's lost volume cannot be told from a first start.
                let alone = (0..self.pods.len()).all(|p| p == o || !self.pods[p].exists);
                if !c.host && (alone || self.volumes.iter().all(|v| v.dir.is_none())) {
                    self.acked = 0;
                }
                let log = vec![Entry { term: 1, op: Op::Found(id, o as u8) }];
                self.volumes[o].notes.forming = true;
                self.volumes[o].dir = Some(Dir { cluster, member: id, term: 1, log, commit: 1 });
                self.pods[o].process = Process::Waits(None);
            }
            Act::Write(write, note) => {
                if note == Note::Forming {
                    self.volumes[o].notes.forming = true;
                }
                if let Some(write) = write {
                    if late {
                        self.late = Some(write);
                        return;
                    }
                    if !self.host_up || !self.swap(&write) {
                        return;
                    }
                }
                let notes = &mut self.volumes[o].notes;
                match note {
                    Note::Formed => notes.forming = false,
                    Note::Withdrawn => notes.stopped = false,
                    Note::ResetDone => notes.resetting = false,
                    Note::Forming | Note::None => {}
                }
            }
            Act::SetAside => {
                let listed = |d: &Dir, id| d.peers().iter().any(|p| p.id == id);
                let mine = self.dir(o).map_or((0, 0), |d| (d.cluster, d.member));
                if self.server(Some(mine.0)).and_then(|s| self.dir(s)).is_some_and(|d| listed(d, mine.1)) {
                    self.bad_step = Some("sets a member's data dir aside");
                }
                let cluster = self.volumes[o].dir.take().map(|d| ClusterId(d.cluster.into()));
                self.volumes[o].notes = Notes { set_aside: cluster, ..Notes::default() };
            }
            Act::Reset => {
                let Volume { dir: Some(dir), notes, .. } = &mut self.volumes[o] else { return };
                if !notes.resetting {
                    notes.resetting = true;
                    if reset::steps(c.rules).any(|step| step == ResetStep::CommitAll) {
                        dir.commit = dir.log.len();
                    }
                    return;
                }
                dir.log.truncate(dir.commit);
                dir.log.push(Entry { term: dir.term, op: Op::Forced(dir.member) });
                dir.commit = dir.log.len();
            }
            Act::Join(replace) => {
                let cluster = self.server(None).and_then(|s| self.dir(s)).map(|d| ClusterId(d.cluster.into()));
                self.volumes[o].notes.set_aside = self.volumes[o].notes.set_aside.or(cluster);
                self.pods[o].process = Process::Will(Act::Join(replace));
                let Some(server) = self.server(None) else {
                    self.pods[o].process = Process::Waits(None);
                    return;
                };
                let Some(dir) = self.dir(server) else { return };
                let listed = dir.peers().into_iter().find(|p| usize::from(p.ordinal) == o);
                if let Some(peer) = listed.filter(|p| Some(p.id) != replace) {
                    let joined = Dir { cluster: dir.cluster, member: peer.id, term: 0, log: Vec::new(), commit: 0 };
                    self.volumes[o].dir = Some(joined);
                    self.volumes[o].notes.set_aside = None;
                    self.pods[o].process = Process::Etcd;
                }
            }
        }
    }

    /// A compare-and-swap of the marker.
    fn swap(&mut self, write: &MarkerWrite) -> bool {
        let now = self.marker.as_ref().map(|m| m.writes.to_string());
        let matches = now == write.expect;
        if matches {
            self.marker = Some(write.marker.clone());
        }
        matches
    }

    fn append(&mut self, o: usize, op: Op) {
        let Some(term) = self.pods[o].leads else { return };
        if let Some(dir) = &mut self.volumes[o].dir {
            dir.log.push(Entry { term, op });
        }
    }

    fn elect(&mut self, o: usize) -> Option<()> {
        let dir = self.dir(o).filter(|_| self.runs(o))?.clone();
        // No partitions: while a leader of the cluster can serve, nobody stands for election.
        if (0..self.pods.len()).any(|l| {
            self.pods[l].leads.is_some()
                && self.dir(l).is_some_and(|d| {
                    d.cluster == dir.cluster && self.quorum_up(l) && d.peers().iter().any(|p| p.id == dir.member)
                })
        }) {
            return None;
        }
        let peers = dir.peers();
        let voters: Vec<_> = peers.iter().filter(|p| !p.learner).map(|p| p.id).collect();
        let up: Vec<_> = voters.iter().filter_map(|id| self.reaches(dir.cluster, dir.member, *id)).collect();
        let term = up.iter().filter_map(|v| self.dir(*v)).map(|d| d.term).max()?.max(dir.term) + 1;
        let granting: Vec<_> =
            up.into_iter().filter(|v| self.dir(*v).is_some_and(|d| d.last() <= dir.last())).collect();
        if !voters.contains(&dir.member) || granting.len() <= voters.len() / 2 {
            return None;
        }
        self.lead(o, term, &granting);
        Some(())
    }

    fn quorum_up(&self, l: usize) -> bool {
        let Some(dir) = self.dir(l) else { return false };
        let peers = dir.peers();
        let voters = peers.iter().filter(|p| !p.learner);
        voters.clone().filter(|p| self.reaches(dir.cluster, dir.member, p.id).is_some()).count() > voters.count() / 2
    }

    fn lead(&mut self, o: usize, term: u8, granting: &[usize]) {
        for v in granting {
            self.pods[*v].leads = None;
            if let Some(dir) = &mut self.volumes[*v].dir {
                dir.term = term;
            }
        }
        self.pods[o].leads = Some(term);
        self.append(o, Op::Nop);
    }

    fn copy(&mut self, l: usize, f: usize) -> Option<()> {
        let leader = self.dir(l)?.clone();
        let term = self.pods[l].leads?;
        let follower = self.dir(f).filter(|_| self.runs(f))?;
        let known = leader.peers().iter().any(|p| p.id == follower.member);
        if follower.cluster != leader.cluster
            || !known
            || follower.term > term
            || follower.removed().contains(&leader.member)
        {
            return None;
        }
        self.pods[f].leads = None;
        let dir = self.volumes[f].dir.as_mut()?;
        dir.term = term;
        dir.commit = dir.commit.max(leader.commit);
        dir.log = leader.log;
        Some(())
    }

    fn commit(&mut self, l: usize) -> Option<()> {
        let term = self.pods[l].leads?;
        let before = self.dir(l)?.commit;
        loop {
            let dir = self.dir(l)?;
            let peers = dir.peers();
            let voters: Vec<_> = peers.iter().filter(|p| !p.learner).collect();
            let holds = |upto: usize| {
                let has = |p: &&&crate::etcd::Peer| {
                    let follower = self.reaches(dir.cluster, dir.member, p.id).and_then(|o| self.dir(o));
                    follower.is_some_and(|d| d.term <= term && d.log.len() >= upto && d.log[..upto] == dir.log[..upto])
                };
                voters.iter().filter(has).count() > voters.len() / 2
            };
            let upto = (dir.commit + 1..=dir.log.len()).find(|i| dir.log[*i - 1].term == term && holds(*i));
            // One membership change at a time takes effect.
            let Some(mut upto) = upto else { break };
            if let Some(change) = (dir.commit + 1..=upto).find(|i| dir.log[*i - 1].op.changes_membership()) {
                upto = upto.min(change.max(dir.commit + 1));
            }
            self.volumes[l].dir.as_mut()?.commit = upto;
        }
        let dir = self.dir(l)?;
        let acked = dir.writes();
        if dir.commit == before {
            return None;
        }
        let gone = !dir.peers().iter().any(|p| p.id == dir.member);
        self.acked |= acked;
        if gone {
            self.pods[l].leads = None;
        }
        Some(())
    }

    fn plan(&mut self, c: &Config, l: usize) {
        let Some(observed) = observe::observed(self, c, l) else { return };
        let Plan::Do(step) = plans::explained(&observed, c.rules).0 else { return };
        let Some(dir) = self.dir(l).cloned() else { return };
        let pending = dir.log[dir.commit..].iter().any(|e| e.op.changes_membership());
        let mut after = dir.log[..dir.commit].to_vec();
        let mut change = |op| {
            after.push(Entry { term: 0, op });
            op
        };
        let op = match step {
            Step::AddLearner(ordinal) => {
                if ordinal.0 >= u32::from(if c.host { self.desired } else { self.values }) && self.host_up {
                    self.bad_step = Some("adds a pod that is not wanted");
                }
                change(Op::AddLearner(self.next_id, ordinal.0 as u8))
            }
            Step::Promote(id) => change(Op::Promote(id.0 as u8)),
            Step::Remove(id) => {
                let id = id.0 as u8;
                let ordinal = dir.peers().iter().find(|p| p.id == id).map_or(0, |p| usize::from(p.ordinal));
                let replicas = usize::from(if c.host { self.desired } else { self.values });
                let wanted = ordinal < replicas || replicas == 0;
                let learner = dir.peers().iter().any(|p| p.id == id && p.learner);
                if wanted && !learner && self.dir(ordinal).is_some_and(|d| d.member == id) {
                    self.bad_step = Some("removes a wanted member that has its data");
                }
                if id == dir.member {
                    self.bad_step = Some("a leader removes itself");
                }
                change(Op::Remove(id))
            }
            Step::MoveLeader(id) => {
                let to = self.reaches(dir.cluster, dir.member, id.0 as u8);
                if let (Some(to), Some(term)) = (to, self.pods[l].leads)
                    && self.dir(to).is_some_and(|d| d.log == dir.log)
                {
                    self.lead(to, term + 1, &[l, to]);
                }
                return;
            }
            Step::UpdateOwnPeerUrl => return,
        };
        if pending {
            return;
        }
        let (peers, _) = membership(&after, after.len());
        // A voter counts if its etcd runs and its log is at most one entry behind.
        let sound = |id| {
            self.reaches(dir.cluster, dir.member, id)
                .and_then(|o| self.dir(o))
                .is_some_and(|d| d.log.len() + 1 >= dir.log.len())
        };
        let quorum = |peers: &[crate::etcd::Peer]| {
            let voters = || peers.iter().filter(|p| !p.learner);
            voters().filter(|p| sound(p.id)).count() > voters().count() / 2
        };
        if !matches!(op, Op::AddLearner(..)) && quorum(&dir.peers()) && !quorum(&peers) {
            self.bad_step = Some("loses the quorum");
        }
        if matches!(op, Op::AddLearner(..)) {
            self.next_id += 1;
            if dir.peers().iter().any(|p| p.learner) {
                self.bad_step = Some("adds a second learner, which etcd refuses");
            }
        }
        self.append(l, op);
    }

    fn leave(&mut self, c: &Config, o: usize, hurry: bool) {
        let leaving = observe::leaving(self, c, o, hurry);
        let gone = Pod::default();
        self.pods[o].asks_to_leave = false;
        match leave::explained(&leaving, c.rules).0 {
            LeaveStep::StopApiServer => unreachable!("the model has none"),
            LeaveStep::MoveLeader(id) => {
                let Some(dir) = self.dir(o).cloned() else { return };
                if let (Some(to), Some(term)) = (self.reaches(dir.cluster, dir.member, id.0 as u8), self.pods[o].leads)
                    && self.dir(to).is_some_and(|d| d.log == dir.log)
                {
                    self.lead(to, term + 1, &[o, to]);
                }
            }
            LeaveStep::AskRemoval => self.pods[o].asks_to_leave = true,
            LeaveStep::Wait(_) => {}
            LeaveStep::StopEtcd => self.stop_etcd(o, Process::Stopped),
            LeaveStep::SetAside => {
                let cluster = self.volumes[o].dir.take().map(|d| ClusterId(d.cluster.into()));
                self.volumes[o].notes = Notes { set_aside: cluster, ..Notes::default() };
                self.pods[o] = gone;
            }
            LeaveStep::NoteStopped => self.volumes[o].notes.stopped = true,
            LeaveStep::Announce(write) => {
                if !self.swap(&write) {
                    self.pods[o] = gone;
                }
            }
            LeaveStep::Exit => self.pods[o] = gone,
        }
    }
}

pub fn unknown<T>() -> Known<T> {
    Known::default()
}
