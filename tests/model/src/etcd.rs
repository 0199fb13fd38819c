//! etcd as far as membership and loss go: a log with terms, the commit index, the membership in effect.

use crate::boot::{LogFact, LogPosition, Member, Role};
use crate::ids::{MemberId, Ordinal, RaftIndex, Term};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The first entry of a formed cluster.
    Found(u8, u8),
    Nop,
    Write(u8),
    AddLearner(u8, u8),
    Promote(u8),
    Remove(u8),
    /// `--force-new-cluster`: everybody else is removed.
    Forced(u8),
}

impl Op {
    pub fn changes_membership(self) -> bool {
        !matches!(self, Op::Nop | Op::Write(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub term: u8,
    pub op: Op,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: u8,
    pub ordinal: u8,
    pub learner: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dir {
    pub cluster: u8,
    pub member: u8,
    /// The greatest term it has voted in.
    pub term: u8,
    pub log: Vec<Entry>,
    pub commit: usize,
}

/// The membership after the first `upto` entries, and every member ID that was removed by then.
pub fn membership(log: &[Entry], upto: usize) -> (Vec<Peer>, Vec<u8>) {
    let (mut peers, mut removed): (Vec<Peer>, Vec<u8>) = (Vec::new(), Vec::new());
    for entry in &log[..upto.min(log.len())] {
        match entry.op {
            Op::Found(id, ordinal) => peers.push(Peer { id, ordinal, learner: false }),
            Op::AddLearner(id, ordinal) => peers.push(Peer { id, ordinal, learner: true }),
            Op::Promote(id) => peers.iter_mut().filter(|p| p.id == id).for_each(|p| p.learner = false),
            Op::Remove(id) => {
                peers.retain(|p| p.id != id);
                removed.push(id);
            }
            Op::Forced(id) => {
                removed.extend(peers.iter().filter(|p| p.id != id).map(|p| p.id));
                peers.retain(|p| p.id == id);
            }
            Op::Nop | Op::Write(_) => {}
        }
    }
    (peers, removed)
}

/// The writes that these entries have.
pub fn written(log: &[Entry]) -> u8 {
    log.iter().fold(0, |set, e| if let Op::Write(n) = e.op { set | 1 << n } else { set })
}

impl Dir {
    pub fn peers(&self) -> Vec<Peer> {
        membership(&self.log, self.commit).0
    }

    pub fn removed(&self) -> Vec<u8> {
        membership(&self.log, self.commit).1
    }

    pub fn last(&self) -> (u8, usize) {
        (self.log.last().map_or(0, |e| e.term), self.log.len())
    }

    pub fn writes(&self) -> u8 {
        written(&self.log[..self.commit])
    }

    /// Whether it is a voter of the membership that the log's end brings.
    pub fn votes(&self) -> bool {
        membership(&self.log, self.log.len()).0.iter().any(|p| p.id == self.member && !p.learner)
    }

    pub fn position(&self) -> LogPosition {
        let (term, index) = self.last();
        LogPosition { term: Term(term.into()), index: RaftIndex(index as u64) }
    }

    /// What the shipped reader of the WAL's end says.
    pub fn fact(&self) -> LogFact {
        let (mut role, mut voters, mut others): (_, u32, Vec<Member>) = (Role::Voter, 0, Vec::new());
        let first = membership(&self.log, self.commit).0;
        if first.is_empty() {
            role = Role::Learner;
        }
        for upto in self.commit..=self.log.len() {
            let peers = membership(&self.log, upto).0;
            voters = voters.max(peers.iter().filter(|p| !p.learner).count() as u32);
            match peers.iter().find(|p| p.id == self.member) {
                None if peers.is_empty() => {}
                None => role = Role::Removed,
                Some(me) if me.learner && role == Role::Voter => role = Role::Learner,
                Some(_) => {}
            }
            for peer in peers.iter().filter(|p| p.id != self.member) {
                let member = member(*peer);
                match others.iter_mut().find(|other| other.id == member.id) {
                    Some(other) => other.learner &= member.learner,
                    None => others.push(member),
                }
            }
        }
        let now = first.iter().filter(|p| !p.learner && p.id != self.member);
        let voters_now = now.map(|p| MemberId(p.id.into())).collect();
        LogFact { last: self.position(), role, voters, others, voters_now }
    }
}

pub fn member(peer: Peer) -> Member {
    Member { id: MemberId(peer.id.into()), ordinal: Some(Ordinal(peer.ordinal.into())), learner: peer.learner }
}
