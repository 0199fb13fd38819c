//! The syncer beside the leader: one step of the membership plan.

use crate::config::Config;
use crate::etcd::{Dir, Entry, Op, Peer, membership};
use crate::membership::{self as plans, Plan, Step};
use crate::observe;
use crate::rules::Rule;
use crate::world::World;

impl World {
    /// A pass by the syncer of pod `by`, which is beside the leader `l` by rule 5.1.
    pub(crate) fn plan(&mut self, c: &Config, l: usize, by: usize) {
        let Some(mut observed) = observe::observed(self, c, l, by) else { return };
        observed.replacing = observed.kept_places();
        self.pods[by].replacing = observed.replacing.first().map(|ordinal| ordinal.0 as u8);
        let (plan, rule) = plans::explained(&observed, c.rules);
        let plan = if self.pods[by].terminating { plans::while_stopping(plan, rule) } else { plan };
        let Plan::Do(step) = plan else { return };
        let Some(dir) = self.dir(l).cloned() else { return };
        let pending = dir.log[dir.commit..].iter().any(|e| e.op.changes_membership());
        let mut after = dir.log[..dir.commit].to_vec();
        let mut change = |op| {
            after.push(Entry { term: 0, op });
            op
        };
        if let Step::Remove(id) = step {
            self.pods[by].replacing = observed.makes_room(id).map(|ordinal| ordinal.0 as u8);
        }
        let op = match step {
            Step::AddLearner(ordinal) => {
                if ordinal.0 >= u32::from(if c.host { self.desired } else { self.values }) && self.host_up {
                    self.bad_step = Some("adds a pod that is not wanted");
                }
                let given = self.given.iter().find(|(to, _)| c.seconds && u32::from(*to) == ordinal.0);
                change(Op::AddLearner(given.map_or(self.next_id, |(_, id)| *id), ordinal.0 as u8))
            }
            Step::Promote(id) => change(Op::Promote(id.0 as u8)),
            Step::Remove(id) => {
                let id = id.0 as u8;
                let ordinal = dir.peers().iter().find(|p| p.id == id).map_or(0, |p| usize::from(p.ordinal));
                let replicas = usize::from(if c.host { self.desired } else { self.values });
                let wanted = ordinal < replicas || replicas == 0;
                let learner = dir.peers().iter().any(|p| p.id == id && p.learner);
                // Without a host API a pod goes by its own values file, which may be the newer one; it comes back as a joiner.
                let asks = !c.host && self.pods[ordinal].asks_to_leave;
                if wanted && !asks && !learner && self.dir(ordinal).is_some_and(|d| d.member == id) {
                    self.bad_step = Some("removes a wanted member that has its data");
                }
                // Whom DNS hides cannot say that it is there; it is not wanted, and the others are a quorum.
                let stays =
                    |p: usize| self.pods[p].exists && !self.pods[p].terminating && self.runs(p) && self.found(p);
                if !learner && self.runner(dir.cluster, id).is_some_and(stays) {
                    self.bad_step = Some("removes a voter that runs and was not told to stop");
                }
                if id == dir.member {
                    self.bad_step = Some("a leader removes itself");
                }
                change(Op::Remove(id))
            }
            Step::MoveLeader(id) => return self.move_leader(l, id.0 as u8),
            Step::UpdateOwnPeerUrl => return,
        };
        if pending {
            return;
        }
        let (mut peers, _) = membership(&after, after.len());
        // A voter counts if its etcd runs and its log is at most one entry behind.
        let sound = |id| {
            self.reaches(dir.cluster, dir.member, id)
                .and_then(|o| self.dir(o))
                .is_some_and(|d| d.log.len() + 1 >= dir.log.len())
        };
        let quorum = |peers: &[Peer]| {
            let voters = || peers.iter().filter(|p| !p.learner);
            voters().filter(|p| sound(p.id)).count() > voters().count() / 2
        };
        if let (Op::AddLearner(id, _), false) = (op, c.rules.on(Rule::AskLeader)) {
            peers.iter_mut().filter(|p| p.id == id).for_each(|p| p.learner = false);
        }
        let adds_learner = matches!(op, Op::AddLearner(..)) && c.rules.on(Rule::AskLeader);
        if !adds_learner && quorum(&dir.peers()) && !quorum(&peers) {
            self.loss = Some("loses the quorum");
        }
        if let Op::AddLearner(id, ordinal) = op {
            self.next_id = self.next_id.max(id + 1);
            self.pods[by].replacing = None;
            self.given.extend(c.seconds.then_some((ordinal, id)));
            if let Some(refused) = refused(&dir, id, ordinal) {
                self.bad_step = Some(refused);
                return;
            }
        }
        self.changed = c.seconds;
        self.append(l, op);
        if let (Op::AddLearner(id, _), false) = (op, c.rules.on(Rule::AskLeader)) {
            self.append(l, Op::Promote(id));
        }
    }
}

/// Why etcd itself does not take this learner.
fn refused(dir: &Dir, id: u8, ordinal: u8) -> Option<&'static str> {
    let peers = dir.peers();
    if peers.iter().any(|p| p.id == id) || dir.removed().contains(&id) {
        return Some("adds a member by an ID that there was, which etcd refuses");
    }
    if peers.iter().any(|p| p.ordinal == ordinal) {
        return Some("adds a member by a URL that is listed, which etcd refuses");
    }
    peers.iter().any(|p| p.learner).then_some("adds a second learner, which etcd refuses")
}
