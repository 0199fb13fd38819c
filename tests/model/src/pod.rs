//! A pod's syncer: the boot decision and its steps, and a stop.

use std::collections::BTreeSet;

use crate::boot::beside::{self, Beside, NotesRead};
use crate::boot::reset::{self, ResetStep};
use crate::boot::restored;
use crate::boot::{BootDecision, MarkerWrite, Notes, Record};
use crate::config::Config;
use crate::etcd::{Dir, Entry, Op};
use crate::ids::{ClusterId, MemberId};
use crate::membership::leave::{self, LeaveStep};
use crate::observe::{self, Look, Patience};
use crate::rules::Rule;
use crate::world::{Act, Note, Pod, Process, Restore, Volume, World};

impl World {
    pub(crate) fn boot(&mut self, c: &Config, o: usize, blind: bool) {
        if self.pods[o].process == Process::Off {
            self.pods[o].restores = self.volumes[o].staged.is_some();
        }
        let facts = observe::facts(self, c, o, if blind { Look::BLIND } else { Look::BOOT });
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
                Record::Survivor(write) => Act::Write(Some(write), Note::Survivor),
                Record::NoSurvivor(write) => Act::Write(Some(write), Note::NoSurvivor),
                Record::ResetDone => Act::Write(None, Note::ResetDone),
                Record::Dropped(_) => Act::Write(None, Note::Dropped),
                Record::Overtaken(_) => Act::Write(None, Note::Overtaken),
                Record::RestoreBegun(replaced) => Act::RestoreBegun(replaced),
                Record::Restored(write) => Act::Write(Some(write), Note::None),
                Record::RestoreDone => Act::RestoreDone,
                Record::FenceKept => unreachable!("nothing is moved from a deployed etcd in the model"),
                Record::Released(write) => Act::Write(Some(write), Note::None),
                Record::WentBack => unreachable!("nothing is written back in the model that came from SQLite"),
            }),
            BootDecision::Join { replace, .. } => will(Act::Join(replace.map(|id| id.0 as u8))),
            BootDecision::SetAside { .. } => will(Act::SetAside),
            BootDecision::Reset { .. } => will(Act::Reset),
            BootDecision::PutRestored { .. } => will(Act::PutRestored),
            BootDecision::Wait(_) | BootDecision::Refuse(_) => Process::Waits,
            BootDecision::Import { .. } => will(Act::Import),
            BootDecision::MigrateBack { .. } => will(Act::WriteBack),
            BootDecision::RunOnSqlite => {
                self.on_sqlite(c, o);
                Process::Waits
            }
            BootDecision::MigrateFrom | BootDecision::LiftFence { .. } => {
                unreachable!("nothing is moved from a deployed etcd in the model")
            }
        };
        self.stop_etcd(o, process);
        if matches!(self.pods[o].process, Process::Will(Act::Start | Act::Join(_))) {
            self.pods[o].held = restored::replaced(&facts);
        }
    }

    pub(crate) fn release(&mut self, c: &Config, o: usize, blind: bool) {
        let look = Look { dns: !blind, ..Look::RELEASE };
        let facts = observe::facts(self, c, o, look);
        let mut known: BTreeSet<_> = self.pods[o].held.union(&restored::replaced(&facts)).copied().collect();
        if let Some(dir) = self.dir(o) {
            known.remove(&ClusterId(dir.cluster.into()));
        }
        if restored::held(&facts, &known, c.rules).is_none() {
            self.volumes[o].notes.settled.extend(restored::unnoted(&facts, &known));
            self.pods[o].held.clear();
        }
    }

    pub(crate) fn compare(&mut self, c: &Config, o: usize) {
        let facts = observe::facts(self, c, o, Look::BESIDE);
        let Some(cluster) = self.dir(o).map(|d| ClusterId(d.cluster.into())) else { return };
        if !beside::another(&facts, cluster) {
            return;
        }
        match beside::beside(&facts, cluster, NotesRead::Yes, c.rules) {
            Some((Beside::Superseded | Beside::Overtaken(_) | Beside::Outnumbered(_), _)) => {
                self.stop_etcd(o, Process::Waits)
            }
            Some((Beside::Stray(_), _)) | None => {}
        }
    }

    pub(crate) fn act(&mut self, c: &Config, o: usize, late: bool) {
        let Process::Will(act) = std::mem::take(&mut self.pods[o].process) else { return };
        match act {
            Act::Start => {
                self.pods[o].process = Process::Etcd;
                (self.volumes[o].notes.set_aside, self.volumes[o].notes.left) = (None, None);
            }
            Act::Form => {
                let fresh = c.rules.on(Rule::FreshToken);
                let (cluster, id) = if fresh { (self.next_cluster, self.next_id) } else { (1, 1) };
                self.next_cluster = self.next_cluster.max(cluster.saturating_add(1));
                self.next_id = self.next_id.max(id.saturating_add(1));
                // Documented: without a host API a lone pod's lost volume cannot be told from a first start.
                let alone = (0..self.pods.len()).all(|p| p == o || !self.pods[p].exists);
                let empty = |d: &Dir| d.log.is_empty();
                let excused = alone || self.volumes.iter().all(|v| v.dir.as_ref().is_none_or(empty));
                let tells = |p: usize| {
                    let speaks = self.pods[p].exists && !matches!(self.pods[p].process, Process::Off | Process::Other);
                    speaks && !self.apart(o, p) && self.volumes[p].notes.set_aside.is_some()
                };
                if !c.host
                    && excused
                    && !(0..self.pods.len())
                        .any(|p| if p == o { self.volumes[o].notes.set_aside.is_some() } else { tells(p) })
                {
                    self.anew |= self.acked != 0;
                    self.acked = 0;
                }
                let log = vec![Entry { term: 1, op: Op::Found(id, o as u8) }];
                self.volumes[o].notes.forming = true;
                self.volumes[o].dir = Some(Dir { cluster, member: id, term: 1, log, commit: 1 });
                self.pods[o].process = Process::Waits;
            }
            Act::Write(write, note) => {
                if note == Note::Forming {
                    self.volumes[o].notes.forming = true;
                }
                let marked = write.as_ref().map(|write| write.marker.dropped.clone()).unwrap_or_default();
                if let Some(write) = write {
                    if late {
                        self.late = Some(write);
                        return;
                    }
                    if !self.host_up || self.marker_hidden || !self.swap(&write) {
                        return;
                    }
                }
                let dropped = self.dir(o).map(observe::dropped).unwrap_or_default();
                let mine = self.dir(o).map(|d| MemberId(d.member.into()));
                let notes = &mut self.volumes[o].notes;
                match note {
                    Note::Survivor => notes.dropped = marked,
                    Note::NoSurvivor => notes.dropped.clear(),
                    Note::Dropped => notes.dropped = dropped,
                    Note::Overtaken => notes.overtaken = mine,
                    Note::Formed => notes.forming = false,
                    Note::Withdrawn => notes.stopped = false,
                    Note::ResetDone => notes.resetting = false,
                    Note::Forming | Note::None => {}
                }
            }
            Act::SetAside => {
                let listed = |d: &Dir, id| d.peers().iter().any(|p| p.id == id);
                let mine = self.dir(o).map_or((0, 0), |d| (d.cluster, d.member));
                if std::mem::take(&mut self.volumes[o].damaged) {
                    if !self.quorum_left(mine.0, Some(o)) {
                        self.bad_step = Some("sets a damaged data dir aside that the others cannot make up for");
                    }
                } else if self.server(Some(mine.0)).and_then(|s| self.dir(s)).is_some_and(|d| listed(d, mine.1)) {
                    self.bad_step = Some("sets a member's data dir aside");
                }
                let cluster = self.volumes[o].dir.take().map(|d| ClusterId(d.cluster.into()));
                let notes = &mut self.volumes[o].notes;
                let (superseded, settled) = (std::mem::take(&mut notes.superseded), std::mem::take(&mut notes.settled));
                *notes = Notes { set_aside: cluster, superseded, settled, ..Notes::default() };
            }
            Act::RestoreBegun(replaced) => {
                let Volume { staged: Some(staged), notes, .. } = &mut self.volumes[o] else { return };
                let first = staged.begun.is_none();
                if first {
                    staged.begun = Some(replaced.clone());
                }
                if !first || replaced.is_empty() {
                    // From here on the snapshot is what there is to be kept.
                    self.acked = 1;
                    notes.superseded.retain(|old| !replaced.contains(old));
                    notes.settled.retain(|old| !replaced.contains(old));
                    notes.superseded.extend(replaced);
                }
            }
            Act::PutRestored => {
                let Volume { staged: Some(staged), dir, damaged, .. } = &mut self.volumes[o] else { return };
                *damaged = false;
                if dir.take().is_some() {
                    return;
                }
                let (cluster, id) = (staged.cluster, staged.member);
                staged.whole = false;
                let log = vec![Entry { term: 1, op: Op::Found(id, o as u8) }, Entry { term: 1, op: Op::Write(0) }];
                *dir = Some(Dir { cluster, member: id, term: 1, log, commit: 2 });
            }
            Act::RestoreDone => {
                let notes = &mut self.volumes[o].notes;
                let (superseded, settled) = (std::mem::take(&mut notes.superseded), std::mem::take(&mut notes.settled));
                *notes = Notes { superseded, settled, ..Notes::default() };
                self.volumes[o].staged = None;
                self.pods[o].restores = false;
            }
            Act::Reset => {
                if self.volumes[o].notes.resetting {
                    self.force_alone(o);
                } else {
                    let others = self.dir(o).map(|d| d.fact().others).unwrap_or_default();
                    self.volumes[o].notes.dropped = others.into_iter().map(|other| other.id).collect();
                    self.begin_reset(c, o);
                }
            }
            Act::Import => self.import(o),
            Act::CommitImport => self.commit_import(o),
            Act::WriteBack => self.write_back(o),
            Act::Join(replace) => {
                let cluster = self.asked(o).and_then(|s| self.dir(s)).map(|d| ClusterId(d.cluster.into()));
                self.volumes[o].notes.set_aside = self.volumes[o].notes.set_aside.or(cluster);
                self.pods[o].process = Process::Will(Act::Join(replace));
                let Some(server) = self.asked(o) else {
                    self.pods[o].process = Process::Waits;
                    return;
                };
                let Some(dir) = self.dir(server) else { return };
                let listed = dir.peers().into_iter().find(|p| usize::from(p.ordinal) == o);
                if let Some(peer) = listed.filter(|p| Some(p.id) != replace) {
                    let joined = Dir { cluster: dir.cluster, member: peer.id, term: 0, log: Vec::new(), commit: 0 };
                    self.volumes[o].dir = Some(joined);
                    self.pods[o].process = Process::Etcd;
                }
            }
        }
    }

    /// A reset is noted, and all of the log is said to be committed.
    pub(crate) fn begin_reset(&mut self, c: &Config, o: usize) {
        let Volume { dir: Some(dir), notes, .. } = &mut self.volumes[o] else { return };
        if !dir.votes() {
            self.bad_step = Some("resets a data dir that is no voter's, on which etcd panics");
        }
        notes.resetting = true;
        if reset::steps(c.rules).any(|step| step == ResetStep::CommitAll) {
            dir.commit = dir.log.len();
        }
    }

    /// etcd has run with `--force-new-cluster`; on what is no voter's it panics.
    pub(crate) fn force_alone(&mut self, o: usize) {
        let Some(dir) = self.volumes[o].dir.as_mut().filter(|dir| dir.votes()) else { return };
        dir.log.truncate(dir.commit);
        dir.log.push(Entry { term: dir.term, op: Op::Forced(dir.member) });
        dir.commit = dir.log.len();
    }

    /// Every pod is there anew, with the settings of now.
    pub(crate) fn restart_all(&mut self) {
        for pod in &mut self.pods {
            *pod = Pod { exists: pod.exists && !pod.terminating, ..Pod::default() };
        }
    }

    pub(crate) fn tell_to_stop(&mut self, o: usize) {
        self.pods[o].terminating = true;
        if !matches!(self.pods[o].process, Process::Etcd) {
            self.pods[o] = Pod::default();
        }
    }

    /// A snapshot of the first write is staged on the seed's volume, beside whatever runs.
    pub(crate) fn stage(&mut self) {
        let (cluster, member) = (self.next_cluster, self.next_id);
        (self.next_cluster, self.next_id) = (cluster + 1, member + 1);
        let replaces = self.dir(0).map(|d| d.cluster);
        self.volumes[0].staged = Some(Restore { cluster, member, replaces, begun: None, whole: true });
    }

    /// A compare-and-swap of the marker.
    pub(crate) fn swap(&mut self, write: &MarkerWrite) -> bool {
        let now = self.marker.as_ref().map(|m| m.writes.to_string());
        let matches = now == write.expect;
        if matches {
            self.marker = Some(write.marker.clone());
        }
        matches
    }

    pub(crate) fn leave(&mut self, c: &Config, o: usize, patience: Patience) {
        let leaving = observe::leaving(self, c, o, patience);
        let gone = Pod::default();
        self.pods[o].asks_to_leave = false;
        match leave::explained(&leaving, c.rules).0 {
            LeaveStep::StopApiServer => unreachable!("the model has none"),
            LeaveStep::MoveLeader(id) => self.move_leader(o, id.0 as u8),
            LeaveStep::AskRemoval => {
                if o < usize::from(if c.host { self.desired } else { self.values }) && (self.host_up || !c.host) {
                    self.bad_step = Some("a wanted pod asks to leave");
                }
                self.pods[o].asks_to_leave = true;
            }
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
