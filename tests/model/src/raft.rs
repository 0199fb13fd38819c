//! Raft among the members that run: elections, copying, commits.

use crate::etcd::{Dir, Entry, Op, Peer};
use crate::world::World;

impl World {
    pub(crate) fn reaches(&self, cluster: u8, from: u8, id: u8) -> Option<usize> {
        let asks = self.runner(cluster, from);
        let reached = |o: &usize| asks.is_none_or(|asks| !self.apart(asks, *o));
        self.runner(cluster, id).filter(reached).filter(|o| self.dir(*o).is_some_and(|d| !d.removed().contains(&from)))
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

    /// A pod that serves this cluster, or any, and that this pod can ask.
    pub fn server_for(&self, o: usize, cluster: Option<u8>) -> Option<usize> {
        self.server(cluster).filter(|s| !self.apart(o, *s))
    }

    /// Another pod that serves and that this one finds.
    pub fn asked(&self, o: usize) -> Option<usize> {
        (0..self.pods.len()).find(|s| *s != o && self.serves(*s) && !self.apart(o, *s) && self.found(*s))
    }

    /// Whether this pod's etcd, which runs, answers linearizable reads. A removed member's does not: it ends.
    pub fn answers(&self, o: usize) -> bool {
        let Some(dir) = self.dir(o) else { return false };
        let server = self.server_for(o, Some(dir.cluster)).and_then(|s| self.dir(s));
        server.is_some_and(|server| server.peers().iter().any(|p| p.id == dir.member))
    }

    pub fn server(&self, cluster: Option<u8>) -> Option<usize> {
        (0..self.pods.len())
            .find(|o| self.serves(*o) && cluster.is_none_or(|c| self.dir(*o).is_some_and(|d| d.cluster == c)))
    }

    pub(crate) fn append(&mut self, o: usize, op: Op) {
        let Some(term) = self.pods[o].leads else { return };
        if let Some(dir) = &mut self.volumes[o].dir {
            dir.log.push(Entry { term, op });
        }
    }

    pub(crate) fn elect(&mut self, o: usize) -> Option<()> {
        let dir = self.dir(o).filter(|_| self.runs(o))?.clone();
        // While a leader of the cluster can serve, nobody stands for election: whoever is cut off finds no votes.
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

    pub(crate) fn quorum_up(&self, l: usize) -> bool {
        let Some(dir) = self.dir(l) else { return false };
        let peers = dir.peers();
        let voters = peers.iter().filter(|p| !p.learner);
        voters.clone().filter(|p| self.reaches(dir.cluster, dir.member, p.id).is_some()).count() > voters.count() / 2
    }

    pub(crate) fn lead(&mut self, o: usize, term: u8, granting: &[usize]) {
        for v in granting {
            self.pods[*v].leads = None;
            if *v != o {
                self.pods[*v].replacing = None;
            }
            if let Some(dir) = &mut self.volumes[*v].dir {
                dir.term = term;
            }
        }
        self.pods[o].leads = Some(term);
        self.append(o, Op::Nop);
    }

    /// Has another member lead. One that has not heard yet that it votes does not stand for election.
    pub(crate) fn move_leader(&mut self, l: usize, to: u8) {
        let Some(dir) = self.dir(l) else { return };
        let to = self.reaches(dir.cluster, dir.member, to);
        let knows = |d: &Dir| d.peers().iter().any(|p| p.id == d.member && !p.learner);
        let to = to.filter(|to| self.dir(*to).is_some_and(|d| d.log == dir.log && knows(d)));
        if let (Some(to), Some(term)) = (to, self.pods[l].leads) {
            self.lead(to, term + 1, &[l, to]);
        }
    }

    pub(crate) fn copy(&mut self, l: usize, f: usize) -> Option<()> {
        let leader = self.dir(l)?.clone();
        let term = self.pods[l].leads?;
        let follower = self.dir(f).filter(|_| self.runs(f))?;
        let known = leader.peers().iter().any(|p| p.id == follower.member);
        if follower.cluster != leader.cluster
            || !known
            || follower.removed().contains(&leader.member)
            || self.apart(l, f)
        {
            return None;
        }
        if follower.term > term {
            // It learns of the newer term, and steps down.
            let newer = follower.term;
            self.volumes[l].dir.as_mut()?.term = newer;
            self.pods[l].leads = None;
            self.pods[l].replacing = None;
            return Some(());
        }
        if leader.log.get(..follower.commit) != Some(&follower.log[..follower.commit]) {
            self.loss = Some("has let an entry be taken for committed that was not");
            return Some(());
        }
        self.pods[f].leads = None;
        self.pods[f].replacing = None;
        let dir = self.volumes[f].dir.as_mut()?;
        dir.term = term;
        dir.commit = dir.commit.max(leader.commit);
        dir.log = leader.log;
        Some(())
    }

    pub(crate) fn commit(&mut self, l: usize) -> Option<()> {
        let term = self.pods[l].leads?;
        let before = self.dir(l)?.commit;
        loop {
            let dir = self.dir(l)?;
            let peers = dir.peers();
            let voters: Vec<_> = peers.iter().filter(|p| !p.learner).collect();
            let holds = |upto: usize| {
                let has = |p: &&&Peer| {
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
        // Whoever restores says that what is written beside that is not wanted.
        if Some(dir.cluster) != self.stray && !self.was_replaced(dir.cluster) {
            self.acked |= acked;
        }
        if gone {
            self.pods[l].leads = None;
        }
        Some(())
    }
}
