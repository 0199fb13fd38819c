//! The end of a stopped member's log, as decisions need it: how far it goes, what of it is known to be committed, and
//! every membership in effect from there on.
//!
//! # Which source is believed
//!
//! The log: raft itself takes its voters from the `ConfState` of the snapshot that it starts from and from the changes
//! in the entries after it (`etcdserver/bootstrap.go`, `GetEffectiveNodeIDsFromWALEntries`). The snapshot record in the
//! WAL holds that `ConfState` since 3.5; for a record of an older etcd it is read from the `.snap` file of the same
//! place, which 3.7 no longer reads. A change counts only if etcd accepts it when it applies it
//! (`membership/cluster.go`, `ValidateConfigurationChange`); a refused one changes nothing.
//!
//! The backend lists the members up to its consistent index, which may be behind the log and never is ahead of what is
//! committed. There both must name the same voters, or nothing is said at all: this is what a promotion that etcd before
//! 3.5.20 forgot to store looks like. From there on the backend's list is gone on from, as it knows the peer URLs and
//! the removed IDs by which etcd refuses a change.
//!
//! # When a change counts
//!
//! raft counts votes by the configuration that the leader has *applied*. What it committed together with a change, or
//! while it was still busy applying, needed the voters from before the change; a member may have the change and lack
//! that. So the membership before the last change of the voters counts as well ([`LogTail::before_change`]) until the log
//! shows that the leader had applied it: any later change of the membership does, as raft drops one while another is
//! pending (and a [`ConfChange::Update`] of a voter to the peer URLs that it has changes nothing else), or [`SETTLED`]
//! further entries. The members that formed a cluster together were in effect before its first entry.
//!
//! Where it is not sure whether a change is refused (a member of the snapshot that is gone from the backend, so that its
//! peer URL is not known), the change counts. That errs towards more voters, and a rule that allows something to few
//! voters then forbids.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::inspect::UsableDatadir;
use super::members::{MembersError, StoredMembers, stored_members};
use super::snapshot;
use super::wal::record::ConfState;
use super::wal::{ConfChange, LoggedChange};
use crate::disk::at;
use crate::ids::{ClusterId, MemberId, RaftIndex, Revision, Term};

/// So many entries behind a change, the leader had applied it: etcd refuses requests when what is committed is 5000
/// entries ahead of what is applied (`etcdserver/v3_server.go`, `maxGapBetweenApplyAndCommitIndex`), and no more than
/// this remainder are under way at a time.
const SETTLED: u64 = 5000 + 1000;

/// The end of a log. A plain value: what a decision about resetting or removing rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogTail {
    /// Whose log it is.
    pub member: MemberId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// The greater of the HardState's term and the last entry's.
    pub term: Term,
    /// Term of the last entry (or of the snapshot that no entry follows). Logs are compared by this, then by the index.
    pub last_term: Term,
    /// Index of the last entry (or of that snapshot).
    pub last_index: RaftIndex,
    /// Everything up to here is known to be committed: the greatest of the HardState's commit index, the backend's
    /// consistent index and the snapshot's index. More may be.
    pub committed: RaftIndex,
    /// The HardState's commit index alone, which lags: etcd stores it with the next entry.
    pub hard_state_commit: RaftIndex,
    /// The index up to which the backend holds everything.
    pub consistent_index: RaftIndex,
    /// The store's revision at that index.
    pub revision: Revision,
    /// The memberships in effect from the last entry known to be committed to the last entry, in order; at least one.
    pub memberships: Vec<Membership>,
    /// The membership before the last change of the voters, as long as the log does not show that the leader had applied
    /// that change: until then it counted by this one, and what it committed so may not be in this log.
    pub before_change: Option<Membership>,
}

/// Who voted from some index on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The entry that made it, or the snapshot that it comes from.
    pub since: RaftIndex,
    /// Whether that entry is known to be committed.
    pub committed: bool,
    /// Voters, in the order of their IDs.
    pub voters: Vec<MemberId>,
    /// Learners, in the order of their IDs.
    pub learners: Vec<MemberId>,
    /// What the log's own member is in it.
    pub role: Role,
}

/// A member's part in a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// It votes.
    Voter,
    /// It does not vote.
    Learner,
    /// It is not in it: not yet, or removed.
    Absent,
}

impl LogTail {
    /// The most voters of any membership by which an entry that counts may have been committed: from the last committed
    /// entry to the last, and [`LogTail::before_change`].
    pub fn voters_max(&self) -> usize {
        self.counting().map(|membership| membership.voters.len()).max().unwrap_or(0)
    }

    /// Whether the member votes in all of them.
    pub fn always_voter(&self) -> bool {
        !self.memberships.is_empty() && self.counting().all(|membership| membership.role == Role::Voter)
    }

    fn counting(&self) -> impl Iterator<Item = &Membership> {
        self.memberships.iter().chain(&self.before_change)
    }

    /// Whether the log's own member is the only voter, and nobody else is in the membership.
    pub fn is_alone(&self) -> bool {
        let alone = |m: &Membership| m.role == Role::Voter && m.voters.len() == 1 && m.learners.is_empty();
        !self.memberships.is_empty() && self.memberships.iter().all(alone)
    }

    /// Everybody else who is a voter in one of them.
    pub fn other_voters(&self) -> BTreeSet<MemberId> {
        let all = self.memberships.iter().flat_map(|membership| membership.voters.iter().copied());
        all.filter(|id| *id != self.member).collect()
    }
}

/// Why the end of a log tells nothing. None of these is ever guessed around.
#[derive(Debug, Error)]
pub enum TailError {
    /// The HardState promises more than the log holds: etcd panics.
    #[error("the WAL says that index {commit} is committed, and ends at {last}", commit = .commit.0, last = .last.0)]
    CommitBeyondEnd {
        /// The HardState's commit index.
        commit: RaftIndex,
        /// The last entry.
        last: RaftIndex,
    },
    /// The snapshot that the log begins with does not name its voters.
    #[error("the raft snapshot at index {} does not name its voters", .0.0)]
    NoConfState(RaftIndex),
    /// Log and backend name different voters at the backend's index.
    #[error(
        "at index {index} the WAL has the voters {}, the backend {}", ids(.log), ids(.backend), index = .index.0
    )]
    Disagree {
        /// The backend's consistent index.
        index: RaftIndex,
        /// The voters by the log.
        log: Vec<MemberId>,
        /// The voters by the backend.
        backend: Vec<MemberId>,
    },
    /// The backend cannot be read.
    #[error("read the members")]
    Members(#[from] MembersError),
    /// A file cannot be read.
    #[error("read the raft snapshot")]
    Io(#[source] io::Error),
}

fn ids(ids: &[MemberId]) -> String {
    let ids: Vec<String> = ids.iter().map(MemberId::to_string).collect();
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

/// Reads the end of the log of a data dir whose lock is held since it was inspected.
pub fn log_tail(dir: &UsableDatadir) -> Result<LogTail, TailError> {
    let stored = stored_members(dir.backend())?;
    let base = conf_state(dir)?;
    let hard_state_commit = dir.commit();
    if hard_state_commit > dir.last_index() {
        return Err(TailError::CommitBeyondEnd { commit: hard_state_commit, last: dir.last_index() });
    }
    let (_, start) = dir.start();
    let committed = hard_state_commit.max(dir.consistent_index()).max(start);
    let place = Place { member: dir.member(), start, applied: dir.consistent_index(), committed };
    let changes = &dir.wal().changes;
    let memberships = replay(&place, &base, changes, &stored)?;
    let (last_term, last_index) = dir.last();
    let reach = Reach { first: dir.wal().entries.map_or(start, |run| run.first.min(start)), last: last_index };
    let before_change = before_change(&place, &reach, &base, changes, &stored);
    Ok(LogTail {
        member: dir.member(),
        cluster: dir.cluster(),
        term: dir.term(),
        last_term,
        last_index,
        committed,
        hard_state_commit,
        consistent_index: dir.consistent_index(),
        revision: stored.revision,
        memberships,
        before_change,
    })
}

/// The configuration at the log's starting point.
pub(super) fn conf_state(dir: &UsableDatadir) -> Result<ConfState, TailError> {
    let (term, index) = dir.start();
    if index.0 == 0 {
        return Ok(ConfState::default());
    }
    let records = dir.wal().snapshots.iter().rev();
    let mut here = records.filter(|snapshot| (Term(snapshot.term), RaftIndex(snapshot.index)) == (term, index));
    if let Some(state) = here.find_map(|snapshot| snapshot.conf_state.clone()).filter(|state| !state.voters.is_empty())
    {
        return Ok(state);
    }
    let path = dir.path().join("member/snap").join(snapshot::file_name(term, index));
    let file = match fs::read(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(TailError::NoConfState(index)),
        Err(e) => return Err(TailError::Io(at(&path, e))),
    };
    match snapshot::decode(&file) {
        Ok(read) if (read.term, read.index) == (term, index) && !read.conf_state.voters.is_empty() => {
            Ok(read.conf_state)
        }
        _ => Err(TailError::NoConfState(index)),
    }
}

/// The indexes that count in a replay.
struct Place {
    member: MemberId,
    /// The snapshot's index.
    start: RaftIndex,
    /// The backend's consistent index.
    applied: RaftIndex,
    /// The last index known to be committed.
    committed: RaftIndex,
}

/// Applies the changes of the log to the configuration at its start; gives the memberships from the last committed entry
/// on.
fn replay(
    place: &Place,
    base: &ConfState,
    changes: &[LoggedChange],
    stored: &StoredMembers,
) -> Result<Vec<Membership>, TailError> {
    let mut members = Members::of(base, stored);
    let mut since = place.start;
    let mut changes = changes.iter().filter(|change| change.index > place.start).peekable();
    while let Some(change) = changes.next_if(|change| change.index <= place.applied) {
        if members.apply(&change.change) {
            since = change.index;
        }
    }
    let backend = Members::stored(stored);
    if members.voters() != backend.voters() {
        let (log, backend) = (members.voters(), backend.voters());
        return Err(TailError::Disagree { index: place.applied, log, backend });
    }
    members = backend;
    while let Some(change) = changes.next_if(|change| change.index <= place.committed) {
        if members.apply(&change.change) {
            since = change.index;
        }
    }
    let mut memberships = vec![members.membership(place.member, since, true)];
    for change in changes {
        if members.apply(&change.change) {
            memberships.push(members.membership(place.member, change.index, false));
        }
    }
    Ok(memberships)
}

/// How far the log reaches.
struct Reach {
    /// The first entry or the snapshot before it.
    first: RaftIndex,
    /// The last entry.
    last: RaftIndex,
}

/// The membership before the last change of the voters, unless the leader had applied that change for certain.
fn before_change(
    place: &Place,
    reach: &Reach,
    base: &ConfState,
    changes: &[LoggedChange],
    stored: &StoredMembers,
) -> Option<Membership> {
    let settled = |index: RaftIndex| reach.last.0.saturating_sub(index.0) >= SETTLED;
    let Some(last) = changes.last() else {
        // Formed at once, as by a restore or an import; or a snapshot of which nothing before is known.
        let formed = place.start.0 <= base.voters.len() as u64;
        let unknown = Membership {
            since: place.start,
            committed: true,
            voters: base.voters.iter().copied().map(MemberId).collect(),
            learners: vec![],
            role: Role::Absent,
        };
        return (!formed && !settled(reach.first)).then_some(unknown);
    };
    if last.index > place.committed || settled(last.index) || formed_together(changes) {
        return None;
    }
    let mut members = Members::of(base, stored);
    if last.index > place.start {
        let before = changes.iter().filter(|change| change.index > place.start && change.index < last.index);
        for change in before {
            members.apply(&change.change);
        }
        let (voters, mut after) = (members.voters(), members.clone());
        after.apply(&last.change);
        return (after.voters() != voters).then(|| members.membership(place.member, last.index, true));
    }
    // The snapshot holds its outcome.
    match &last.change {
        ConfChange::AddVoter { member, .. } | ConfChange::Promote(member) => {
            members.members.remove(member);
        }
        ConfChange::Remove(member) => {
            members.members.insert(*member, Known { learner: false, peer_urls: vec![] });
        }
        ConfChange::AddLearner { .. } | ConfChange::Update { .. } | ConfChange::Nothing => return None,
    }
    Some(members.membership(place.member, last.index, true))
}

/// Whether all changes are those that formed the cluster: the first entries, of term 1.
fn formed_together(changes: &[LoggedChange]) -> bool {
    let first = |(n, logged): (usize, &LoggedChange)| {
        logged.index.0 == n as u64 + 1 && logged.term == Term(1) && matches!(logged.change, ConfChange::AddVoter { .. })
    };
    changes.iter().enumerate().all(first)
}

/// The members as etcd's own list of them.
#[derive(Clone, Default)]
struct Members {
    members: BTreeMap<MemberId, Known>,
    removed: BTreeSet<MemberId>,
}

#[derive(Clone)]
struct Known {
    learner: bool,
    /// Empty if they are not known.
    peer_urls: Vec<String>,
}

impl Members {
    /// Those of a snapshot, with the peer URLs that the backend still knows.
    fn of(base: &ConfState, stored: &StoredMembers) -> Members {
        let urls = |id| stored.members.iter().find(|member| member.id == id).map(|member| member.peer_urls.clone());
        let known = |learner: bool| move |id: &u64| (MemberId(*id), learner);
        let all = base.voters.iter().map(known(false)).chain(base.learners.iter().map(known(true)));
        let members = all.map(|(id, learner)| (id, Known { learner, peer_urls: urls(id).unwrap_or_default() }));
        Members { members: members.collect(), removed: BTreeSet::new() }
    }

    /// Those of the backend.
    fn stored(stored: &StoredMembers) -> Members {
        let known = |m: &super::members::Member| Known { learner: m.learner, peer_urls: m.peer_urls.clone() };
        let members = stored.members.iter().map(|member| (member.id, known(member))).collect();
        Members { members, removed: stored.removed.clone() }
    }

    fn voters(&self) -> Vec<MemberId> {
        self.members.iter().filter(|(_, known)| !known.learner).map(|(id, _)| *id).collect()
    }

    /// Applies a change unless etcd would refuse it; whether voters or learners are others now.
    fn apply(&mut self, change: &ConfChange) -> bool {
        match change {
            ConfChange::AddVoter { member, peer_urls } => self.add(*member, peer_urls, false),
            ConfChange::AddLearner { member, peer_urls } => self.add(*member, peer_urls, true),
            ConfChange::Promote(member) => match self.members.get_mut(member) {
                Some(known) if known.learner => {
                    known.learner = false;
                    true
                }
                _ => false,
            },
            ConfChange::Remove(member) => {
                let gone = self.members.remove(member).is_some();
                if gone {
                    self.removed.insert(*member);
                }
                gone
            }
            ConfChange::Update { member, peer_urls } => {
                if !self.taken(peer_urls, Some(*member))
                    && let Some(known) = self.members.get_mut(member)
                {
                    known.peer_urls.clone_from(peer_urls);
                }
                false
            }
            ConfChange::Nothing => false,
        }
    }

    fn add(&mut self, member: MemberId, peer_urls: &[String], learner: bool) -> bool {
        if self.removed.contains(&member) || self.members.contains_key(&member) || self.taken(peer_urls, None) {
            return false;
        }
        self.members.insert(member, Known { learner, peer_urls: peer_urls.to_vec() });
        true
    }

    fn taken(&self, peer_urls: &[String], except: Option<MemberId>) -> bool {
        let mut others = self.members.iter().filter(|(id, _)| Some(**id) != except);
        others.any(|(_, known)| known.peer_urls.iter().any(|url| peer_urls.contains(url)))
    }

    fn membership(&self, me: MemberId, since: RaftIndex, committed: bool) -> Membership {
        let learners = self.members.iter().filter(|(_, known)| known.learner).map(|(id, _)| *id).collect();
        let role = match self.members.get(&me) {
            Some(known) if known.learner => Role::Learner,
            Some(_) => Role::Voter,
            None => Role::Absent,
        };
        Membership { since, committed, voters: self.voters(), learners, role }
    }
}

#[cfg(test)]
mod tests;
