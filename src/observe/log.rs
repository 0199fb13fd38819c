//! The end of a data dir's log, as the boot decision takes it.

use std::collections::{BTreeMap, BTreeSet};

use crate::boot::{LogFact, LogPosition, Member, Role};
use crate::datadir::members::{MembersError, StoredMembers, stored_members};
use crate::datadir::wal::{ConfChange, LoggedChange};
use crate::datadir::{self, LogTail, TailError, UsableDatadir, log_tail};
use crate::ids::{MemberId, Ordinal};

/// Why the end of the log is not known.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It tells nothing.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// The backend tells no peer URLs.
    #[error(transparent)]
    Members(#[from] MembersError),
}

/// Reads it. `ordinal_of` names the pod whose peer URL is among those given.
pub fn log_fact(dir: &UsableDatadir, ordinal_of: impl Fn(&[String]) -> Option<Ordinal>) -> Result<LogFact, LogError> {
    let tail = log_tail(dir)?;
    let urls = peer_urls(&stored_members(dir.backend())?, &dir.wal().changes);
    let ordinals = urls.into_iter().map(|(id, urls)| (id, ordinal_of(&urls))).collect();
    Ok(fact(&tail, &ordinals))
}

/// The peer URLs of all members that the backend or the log after it names, by the last word on each.
fn peer_urls(stored: &StoredMembers, changes: &[LoggedChange]) -> BTreeMap<MemberId, Vec<String>> {
    let mut urls: BTreeMap<_, _> = stored.members.iter().map(|m| (m.id, m.peer_urls.clone())).collect();
    for change in changes.iter().filter(|change| change.index > stored.consistent_index) {
        if let ConfChange::AddVoter { member, peer_urls }
        | ConfChange::AddLearner { member, peer_urls }
        | ConfChange::Update { member, peer_urls } = &change.change
        {
            urls.insert(*member, peer_urls.clone());
        }
    }
    urls
}

/// `voters` counts the membership before the last change as long as the leader may have counted by it; `others` are
/// those with whom this member would have to agree from here on.
fn fact(tail: &LogTail, ordinals: &BTreeMap<MemberId, Option<Ordinal>>) -> LogFact {
    let mut counting = tail.memberships.iter().chain(&tail.before_change);
    let role = if tail.always_voter() {
        Role::Voter
    } else if counting.all(|membership| membership.role != datadir::Role::Absent) {
        Role::Learner
    } else {
        Role::Removed
    };
    let others: BTreeSet<_> = tail
        .memberships
        .iter()
        .flat_map(|m| m.voters.iter().chain(&m.learners))
        .filter(|id| **id != tail.member)
        .collect();
    let voters = tail.other_voters();
    let ordinal = |id: &MemberId| {
        // etcd refuses two members of one URL: one of the two words was not heeded, and which is not looked for.
        let ordinal = ordinals.get(id).copied().flatten()?;
        let claims = |other: &MemberId| ordinals.get(other).copied().flatten() == Some(ordinal);
        (others.iter().filter(|other| claims(other)).count() == 1).then_some(ordinal)
    };
    LogFact {
        last: LogPosition { term: tail.last_term, index: tail.last_index },
        role,
        voters: u32::try_from(tail.voters_max()).unwrap_or(u32::MAX),
        others: others
            .iter()
            .map(|id| Member { id: **id, ordinal: ordinal(id), learner: !voters.contains(id) })
            .collect(),
        voters_now: tail
            .memberships
            .first()
            .map_or_else(Vec::new, |now| now.voters.iter().copied().filter(|id| *id != tail.member).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::Membership;
    use crate::ids::{ClusterId, RaftIndex, Revision, Term};

    fn membership(voters: &[u64], learners: &[u64]) -> Membership {
        let ids = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<Vec<_>>();
        let role = match 1 {
            me if voters.contains(&me) => datadir::Role::Voter,
            me if learners.contains(&me) => datadir::Role::Learner,
            _ => datadir::Role::Absent,
        };
        Membership { since: RaftIndex(3), committed: true, voters: ids(voters), learners: ids(learners), role }
    }

    fn of(memberships: Vec<Membership>, before_change: Option<Membership>) -> LogFact {
        let (member, cluster) = (MemberId(1), ClusterId(2));
        let (term, index) = (Term(3), RaftIndex(9));
        let tail = LogTail {
            member,
            cluster,
            term,
            last_term: term,
            last_index: index,
            committed: index,
            hard_state_commit: index,
            consistent_index: index,
            revision: Revision(4),
            memberships,
            before_change,
        };
        // Member n is pod n - 1; 8 and 9 both claim to be pod 7.
        let ordinal = |id: u64| Some(Ordinal(u32::try_from(id).unwrap().saturating_sub(1).min(7)));
        fact(&tail, &(1..=9).map(|id| (MemberId(id), ordinal(id))).collect())
    }

    fn other(id: u64, learner: bool) -> Member {
        Member { id: MemberId(id), ordinal: Some(Ordinal(u32::try_from(id).unwrap() - 1)), learner }
    }

    #[test]
    fn every_membership_that_may_have_counted_counts() {
        let two = of(vec![membership(&[1, 2], &[])], None);
        assert_eq!((two.role, two.voters, two.others), (Role::Voter, 2, vec![other(2, false)]));
        assert_eq!(two.last, LogPosition { term: Term(3), index: RaftIndex(9) });
        // A third voter that may have counted until a moment ago counts, though nobody has to agree with it any more.
        let unfenced = of(vec![membership(&[1, 2], &[])], Some(membership(&[1, 2, 3], &[])));
        assert_eq!((unfenced.voters, unfenced.others), (3, vec![other(2, false)]));
        let promoted = of(vec![membership(&[1, 2], &[3]), membership(&[1, 2, 3], &[])], None);
        assert_eq!((promoted.voters, promoted.others), (3, vec![other(2, false), other(3, false)]));
        assert_eq!(promoted.voters_now, [MemberId(2)], "who must agree on it");
        let alone = of(vec![membership(&[1], &[2])], None);
        assert_eq!((alone.voters, alone.others), (1, vec![other(2, true)]));
    }

    #[test]
    fn only_who_voted_in_all_of_them_is_a_voter() {
        assert_eq!(of(vec![membership(&[2], &[1])], None).role, Role::Learner);
        assert_eq!(of(vec![membership(&[1, 2], &[])], Some(membership(&[2], &[1]))).role, Role::Learner);
        assert_eq!(of(vec![membership(&[1, 2], &[]), membership(&[2], &[])], None).role, Role::Removed);
    }

    #[test]
    fn whom_two_members_claim_to_be_is_nobody() {
        let both = of(vec![membership(&[1, 8, 9], &[])], None);
        assert!(both.others.iter().all(|other| other.ordinal.is_none()), "{both:?}");
    }

    #[test]
    fn the_log_knows_peer_urls_better_than_the_backend_before_it() {
        let change = |index, change| LoggedChange { term: Term(1), index: RaftIndex(index), change };
        let url = |url: &str| vec![url.to_owned()];
        let stored = StoredMembers {
            members: vec![crate::datadir::members::Member {
                id: MemberId(2),
                name: String::new(),
                peer_urls: url("b"),
                client_urls: vec![],
                learner: false,
            }],
            removed: BTreeSet::new(),
            consistent_index: RaftIndex(5),
            revision: Revision(1),
        };
        let changes = [
            change(4, ConfChange::Update { member: MemberId(2), peer_urls: url("older") }),
            change(6, ConfChange::AddLearner { member: MemberId(3), peer_urls: url("c") }),
            change(7, ConfChange::Update { member: MemberId(3), peer_urls: url("d") }),
        ];
        let urls = peer_urls(&stored, &changes);
        assert_eq!(urls, BTreeMap::from([(MemberId(2), url("b")), (MemberId(3), url("d"))]));
    }
}
