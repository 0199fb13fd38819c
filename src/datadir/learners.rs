//! Which members etcd takes for learners when it starts from a data dir of 3.5.
//!
//! etcd 3.5.1 to 3.5.19 stored promotions in the v2 store alone, which 3.5 believes; the backend, which 3.6 believes, goes on
//! calling whoever was promoted a learner until that member has published its URLs anew (etcd#19557). 3.6 first takes over what
//! the raft snapshot's v2 store says, then counts the learners, and ends if there are more than one; promotions that are in
//! the log alone come too late for that.

use std::collections::BTreeSet;

use super::inspect::UsableDatadir;
use super::log_tail::{TailError, conf_state};
use super::members::{StoredMembers, stored_members};
use super::wal::record::ConfState;
use crate::ids::MemberId;

/// The learners by a data dir, as etcd 3.6 counts them before it replays the log.
pub fn learners_at_start(dir: &UsableDatadir) -> Result<BTreeSet<MemberId>, TailError> {
    Ok(counted(&stored_members(dir.backend())?, &conf_state(dir)?))
}

/// Those that the backend calls learners and the raft snapshot no voters.
fn counted(stored: &StoredMembers, snapshot: &ConfState) -> BTreeSet<MemberId> {
    let learners = stored.members.iter().filter(|member| member.learner).map(|member| member.id);
    learners.filter(|id| !snapshot.voters.contains(&id.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::members::Member;
    use crate::ids::{RaftIndex, Revision};

    #[test]
    fn whom_the_raft_snapshot_calls_a_voter_is_no_learner() {
        let member = |(id, learner)| Member {
            id: MemberId(id),
            name: String::new(),
            peer_urls: vec![],
            client_urls: vec![],
            learner,
        };
        let stored = StoredMembers {
            members: [(1, false), (2, true), (3, true)].map(member).to_vec(),
            removed: BTreeSet::new(),
            consistent_index: RaftIndex(9),
            revision: Revision(1),
        };
        let count = |voters: &[u64], learners: &[u64]| {
            counted(&stored, &ConfState { voters: voters.to_vec(), learners: learners.to_vec() })
        };
        assert_eq!(count(&[], &[]), BTreeSet::from([MemberId(2), MemberId(3)]));
        assert_eq!(count(&[1], &[2]), BTreeSet::from([MemberId(2), MemberId(3)]));
        assert_eq!(count(&[1, 2], &[3]), BTreeSet::from([MemberId(3)]));
        assert!(count(&[1, 2, 3], &[]).is_empty());
    }
}
