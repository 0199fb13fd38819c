//! Replays of made-up logs; those of real etcd are in `tests/it/datadir/log_tail.rs`.

use proptest::prelude::*;

use super::*;
use crate::datadir::members::Member;
use crate::datadir::wal::record::{
    Entry, EntryKind, HardState, RecordEncoder, SnapshotRecord, TYPE_ENTRY, TYPE_SNAPSHOT, TYPE_STATE, add_voter,
};
use crate::datadir::wal::{append_state, read_wal};
use crate::datadir::{DatadirWriter, InspectedDatadir, MemberIdentity, SchemaVersion, inspect};
use crate::disk::RealDisk;

const ME: MemberId = MemberId(1);

fn url(id: u64) -> Vec<String> {
    vec![format!("http://m{id}:1")]
}

fn voter(id: u64) -> ConfChange {
    ConfChange::AddVoter { member: MemberId(id), peer_urls: url(id) }
}

fn learner(id: u64) -> ConfChange {
    ConfChange::AddLearner { member: MemberId(id), peer_urls: url(id) }
}

fn promote(id: u64) -> ConfChange {
    ConfChange::Promote(MemberId(id))
}

fn remove(id: u64) -> ConfChange {
    ConfChange::Remove(MemberId(id))
}

/// A log from index 10 on with one change an entry, of which `applied` and `committed` entries are so.
struct Case {
    voters: Vec<u64>,
    learners: Vec<u64>,
    changes: Vec<ConfChange>,
    applied: u64,
    committed: u64,
}

impl Case {
    fn of(voters: &[u64], changes: &[ConfChange], applied: u64, committed: u64) -> Case {
        Case { voters: voters.to_vec(), learners: vec![], changes: changes.to_vec(), applied, committed }
    }

    fn logged(&self) -> Vec<LoggedChange> {
        let logged = |(n, change): (usize, &ConfChange)| LoggedChange {
            term: Term(2),
            index: RaftIndex(11 + n as u64),
            change: change.clone(),
        };
        self.changes.iter().enumerate().map(logged).collect()
    }

    /// The backend as etcd would have it after the applied entries.
    fn stored(&self) -> StoredMembers {
        let member = |learner: bool| {
            move |id: &u64| Member {
                id: MemberId(*id),
                name: String::new(),
                peer_urls: url(*id),
                client_urls: vec![],
                learner,
            }
        };
        let base: Vec<_> =
            self.voters.iter().map(member(false)).chain(self.learners.iter().map(member(true))).collect();
        let at_start = StoredMembers {
            members: base,
            removed: BTreeSet::new(),
            consistent_index: RaftIndex(10 + self.applied),
            revision: Revision(1),
        };
        let mut members = Members::stored(&at_start);
        for change in self.changes.iter().take(self.applied as usize) {
            members.apply(change);
        }
        let list = members
            .members
            .iter()
            .map(|(id, known)| Member { peer_urls: known.peer_urls.clone(), ..member(known.learner)(&id.0) });
        StoredMembers { members: list.collect(), removed: members.removed, ..at_start }
    }

    fn replay(&self) -> Result<Vec<Membership>, TailError> {
        self.replay_with(&self.stored())
    }

    fn replay_with(&self, stored: &StoredMembers) -> Result<Vec<Membership>, TailError> {
        let base = ConfState { voters: self.voters.clone(), learners: self.learners.clone() };
        let place = Place {
            member: ME,
            start: RaftIndex(10),
            applied: RaftIndex(10 + self.applied),
            committed: RaftIndex(10 + self.committed),
        };
        replay(&place, &base, &self.logged(), stored)
    }

    /// Index of the change, voters, learners, role.
    fn found(&self) -> Vec<(u64, Vec<u64>, Vec<u64>, Role)> {
        let ids = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        let row = |m: &Membership| (m.since.0, ids(&m.voters), ids(&m.learners), m.role);
        self.replay().unwrap().iter().map(row).collect()
    }
}

#[test]
fn every_membership_from_the_last_committed_entry_on_is_told() {
    use Role::{Absent, Learner, Voter};
    let none = Vec::<u64>::new;
    for (case, want) in [
        (Case::of(&[1, 2, 3], &[], 0, 0), vec![(10, vec![1, 2, 3], none(), Voter)]),
        // What is committed counts once, what is not counts at each step.
        (Case::of(&[1, 2, 3], &[remove(3), remove(2)], 0, 2), vec![(12, vec![1], none(), Voter)]),
        (
            Case::of(&[1, 2, 3], &[remove(3), remove(2)], 0, 1),
            vec![(11, vec![1, 2], none(), Voter), (12, vec![1], none(), Voter)],
        ),
        (
            Case::of(&[1, 2], &[learner(3), promote(3)], 1, 1),
            vec![(11, vec![1, 2], vec![3], Voter), (12, vec![1, 2, 3], none(), Voter)],
        ),
        (
            Case::of(&[2], &[learner(1), promote(1), remove(1)], 1, 1),
            vec![(11, vec![2], vec![1], Learner), (12, vec![1, 2], none(), Voter), (13, vec![2], none(), Absent)],
        ),
        (Case::of(&[2, 3], &[], 0, 0), vec![(10, vec![2, 3], none(), Absent)]),
        // Refused by etcd: added twice, promoted or removed without being there, added anew after a removal, promoted
        // twice, another's peer URL.
        (
            Case::of(&[1, 2], &[voter(2), learner(2), promote(3), remove(3), promote(2)], 0, 0),
            vec![(10, vec![1, 2], none(), Voter)],
        ),
        (
            Case::of(&[1, 2], &[remove(2), voter(2)], 0, 0),
            vec![(10, vec![1, 2], none(), Voter), (11, vec![1], none(), Voter)],
        ),
        (
            Case::of(&[1, 2], &[ConfChange::AddVoter { member: MemberId(4), peer_urls: url(2) }], 0, 0),
            vec![(10, vec![1, 2], none(), Voter)],
        ),
        // A peer URL is taken until it changes.
        (
            Case::of(
                &[1, 2],
                &[
                    ConfChange::Update { member: MemberId(2), peer_urls: url(9) },
                    ConfChange::AddVoter { member: MemberId(4), peer_urls: url(2) },
                ],
                0,
                2,
            ),
            vec![(12, vec![1, 2, 4], none(), Voter)],
        ),
        (Case::of(&[1], &[ConfChange::Nothing], 1, 1), vec![(10, vec![1], none(), Voter)]),
    ] {
        assert_eq!(case.found(), want, "{:?} {:?}", case.voters, case.changes);
    }
}

#[test]
fn log_and_backend_must_name_the_same_voters() {
    let case = Case::of(&[1], &[learner(2), promote(2)], 2, 2);
    assert_eq!(case.found(), [(12, vec![1, 2], vec![], Role::Voter)]);
    // A promotion that the backend does not know of.
    let mut stored = case.stored();
    stored.members[1].learner = true;
    let Err(TailError::Disagree { index, log, backend }) = case.replay_with(&stored) else { panic!() };
    assert_eq!((index.0, log.len(), backend.len()), (12, 2, 1));
    let error = case.replay_with(&stored).unwrap_err().to_string();
    assert_eq!(error, "at index 12 the WAL has the voters 1, 2, the backend 1");
}

#[test]
fn the_answers_about_all_memberships() {
    let tail = |memberships| LogTail {
        member: ME,
        cluster: ClusterId(9),
        term: Term(2),
        last_term: Term(2),
        last_index: RaftIndex(20),
        committed: RaftIndex(10),
        hard_state_commit: RaftIndex(10),
        consistent_index: RaftIndex(10),
        revision: Revision(5),
        memberships,
        before_change: None,
    };
    let of = |voters: &[u64], changes: &[ConfChange]| tail(Case::of(voters, changes, 0, 0).replay().unwrap());
    let alone = of(&[1], &[]);
    assert!(alone.is_alone() && alone.always_voter() && alone.voters_max() == 1);
    assert!(!of(&[1], &[learner(2)]).is_alone());
    let pair = of(&[1, 2], &[remove(2)]);
    assert!(pair.always_voter() && !pair.is_alone());
    assert_eq!((pair.voters_max(), pair.other_voters()), (2, BTreeSet::from([MemberId(2)])));
    let triple = of(&[1, 2, 3], &[remove(3)]);
    assert_eq!((triple.voters_max(), triple.always_voter()), (3, true));
    assert!(!of(&[1, 2], &[remove(1)]).always_voter());
    assert!(!tail(vec![]).always_voter() && !tail(vec![]).is_alone());
    // It is a plain value.
    let json = serde_json::to_string(&pair).unwrap();
    assert!(json.contains(r#""voters":["1","2"]"#) && json.contains(r#""role":"voter""#), "{json}");
    assert_eq!(serde_json::from_str::<LogTail>(&json).unwrap(), pair);
}

#[test]
fn the_membership_before_a_change_counts_until_the_leader_had_applied_it() {
    use Role::{Absent, Learner, Voter};
    let found = |case: &Case, last: u64| {
        let base = ConfState { voters: case.voters.clone(), learners: case.learners.clone() };
        let (applied, committed) = (RaftIndex(10 + case.applied), RaftIndex(10 + case.committed));
        let place = Place { member: ME, start: RaftIndex(10), applied, committed };
        let reach = Reach { first: RaftIndex(10), last: RaftIndex(last) };
        let before = before_change(&place, &reach, &base, &case.logged(), &case.stored());
        before.map(|m| (m.voters.iter().map(|id| id.0).collect::<Vec<_>>(), m.role))
    };
    let update = ConfChange::Update { member: MemberId(2), peer_urls: url(2) };
    let promoted = [learner(1), promote(1)];
    for (case, last, want) in [
        // Just promoted, just removed another, just joined.
        (Case::of(&[2], &promoted, 2, 2), 30, Some((vec![2], Learner))),
        (Case::of(&[1, 2, 3], &[remove(3)], 1, 1), 30, Some((vec![1, 2, 3], Voter))),
        (Case::of(&[2], &[voter(1)], 0, 1), 30, Some((vec![2], Absent))),
        // Another change, whatever it is, came after it; or thousands of entries.
        (Case::of(&[2], &[learner(1), promote(1), update.clone()], 3, 3), 30, None),
        (Case::of(&[1, 2, 3], &[remove(3), learner(4)], 2, 2), 30, None),
        (Case::of(&[2], &promoted, 2, 2), 12 + SETTLED - 1, Some((vec![2], Learner))),
        (Case::of(&[2], &promoted, 2, 2), 12 + SETTLED, None),
        // Not known to be committed: told with the memberships. Of learners alone, or refused: nobody counts otherwise.
        (Case::of(&[2], &promoted, 1, 1), 30, None),
        (Case::of(&[1, 2], &[learner(3)], 1, 1), 30, None),
        (Case::of(&[1, 2], &[promote(2)], 1, 1), 30, None),
        // A snapshot of which nothing before is known.
        (Case::of(&[1, 2], &[], 0, 0), 30, Some((vec![1, 2], Absent))),
        (Case::of(&[1, 2], &[], 0, 0), 10 + SETTLED, None),
    ] {
        assert_eq!(found(&case, last), want, "{:?} {:?} {last}", case.voters, case.changes);
    }

    // Changes that the snapshot holds the outcome of, and the members that formed the cluster.
    let logged = |index, term, change| LoggedChange { term: Term(term), index: RaftIndex(index), change };
    let found = |start: u64, voters: &[u64], changes: &[LoggedChange]| {
        let base = ConfState { voters: voters.to_vec(), learners: vec![] };
        let start = RaftIndex(start);
        let place = Place { member: ME, start, applied: start, committed: start };
        let stored = Case::of(voters, &[], 0, 0).stored();
        let before =
            before_change(&place, &Reach { first: RaftIndex(0), last: RaftIndex(40) }, &base, changes, &stored);
        before.map(|m| (m.voters.iter().map(|id| id.0).collect::<Vec<_>>(), m.role))
    };
    let formed = [logged(1, 1, voter(1)), logged(2, 1, voter(2))];
    assert_eq!(found(0, &[], &formed), None);
    assert_eq!(found(30, &[1, 2], &formed), None);
    assert_eq!(found(2, &[1, 2], &[]), None, "as a restore forms it");
    assert_eq!(found(30, &[1, 2], &[formed[0].clone(), logged(9, 1, voter(2))]), Some((vec![1], Voter)));
    assert_eq!(found(30, &[1, 2], &[logged(9, 2, promote(1))]), Some((vec![2], Absent)));
    assert_eq!(found(30, &[1, 2], &[logged(9, 2, remove(3))]), Some((vec![1, 2, 3], Voter)));
    assert_eq!(found(30, &[1, 2], &[logged(9, 2, remove(3)), logged(12, 2, update)]), None);
}

/// A data dir that we wrote, with records appended to its log.
struct Dir {
    home: tempfile::TempDir,
}

fn identity() -> MemberIdentity {
    MemberIdentity { name: "a".into(), peer_urls: url(1), client_urls: vec![], token: "t".into() }
}

impl Dir {
    fn new() -> Dir {
        let dir = Dir { home: tempfile::tempdir().unwrap() };
        let writer = DatadirWriter::create(&RealDisk, dir.home.path()).unwrap();
        writer.finish(Revision(7), &[], &identity()).unwrap();
        dir
    }

    fn append(&self, records: &[(u64, Vec<u8>)]) {
        let tail = read_wal(&self.home.path().join("member/wal")).unwrap().tail;
        let mut log = RecordEncoder::resume(tail.crc);
        records.iter().for_each(|(kind, data)| log.push(*kind, data));
        let mut bytes = fs::read(&tail.path).unwrap();
        bytes.truncate(tail.offset as usize);
        bytes.extend_from_slice(&log.into_bytes());
        fs::write(&tail.path, bytes).unwrap();
    }

    fn usable(&self) -> UsableDatadir {
        match inspect(self.home.path(), SchemaVersion { major: 3, minor: 6 }).unwrap() {
            InspectedDatadir::Usable(usable) => usable,
            other => panic!("{other:?}"),
        }
    }
}

fn entry(term: u64, index: u64, change: Option<&[u8]>) -> (u64, Vec<u8>) {
    let kind = if change.is_some() { EntryKind::ConfChange } else { EntryKind::Normal };
    let data = change.unwrap_or(b"x");
    (TYPE_ENTRY, Entry { kind, term: Term(term), index: RaftIndex(index), data }.encode())
}

fn state(term: u64, commit: u64) -> (u64, Vec<u8>) {
    (TYPE_STATE, HardState { term, vote: 0, commit }.encode())
}

#[test]
fn a_whole_data_dir_is_read() {
    let dir = Dir::new();
    let me = identity().member_id();
    let tail = log_tail(&dir.usable()).unwrap();
    assert_eq!((tail.member, tail.cluster, tail.revision), (me, identity().cluster_id(), Revision(7)));
    assert!(tail.is_alone() && tail.committed == RaftIndex(1));

    let second = add_voter(MemberId(2), br#"{"id":2,"peerURLs":["http://m2:1"]}"#);
    dir.append(&[entry(1, 2, Some(&second)), entry(1, 3, None), entry(1, 4, None), state(1, 2)]);
    // Another leader overwrote the last entry with a change, whose HardState was torn off.
    let third = add_voter(MemberId(3), br#"{"id":3,"peerURLs":["http://m3:1"]}"#);
    dir.append(&[entry(3, 4, Some(&third))]);
    let tail = log_tail(&dir.usable()).unwrap();
    assert_eq!((tail.term, tail.last_term, tail.last_index.0, tail.committed.0), (Term(3), Term(3), 4, 2));
    assert_eq!(tail.memberships.iter().map(|m| (m.since.0, m.voters.len())).collect::<Vec<_>>(), [(2, 2), (4, 3)]);
    // And the change was overwritten in turn.
    dir.append(&[entry(4, 4, None)]);
    let tail = log_tail(&dir.usable()).unwrap();
    assert_eq!((tail.last_term, tail.voters_max()), (Term(4), 2));

    // What a reset appends makes all of it committed.
    let wal = dir.usable().wal().clone();
    append_state(&RealDisk, &wal.tail, &HardState { term: 4, vote: 0, commit: 4 }).unwrap();
    let tail = log_tail(&dir.usable()).unwrap();
    assert_eq!((tail.committed.0, tail.hard_state_commit.0, tail.memberships.len()), (4, 4, 1));
}

#[test]
fn a_snapshot_without_voters_is_not_guessed() {
    let dir = Dir::new();
    // Of etcd before 3.5, whose records lack the configuration: the file of the same place has it.
    dir.append(&[
        entry(1, 2, None),
        state(1, 2),
        (TYPE_SNAPSHOT, SnapshotRecord { index: 1, term: 1, conf_state: None }.encode()),
    ]);
    assert!(log_tail(&dir.usable()).unwrap().is_alone());
    let usable = dir.usable();
    let snap = dir.home.path().join("member/snap").join(snapshot::file_name(Term(1), RaftIndex(1)));
    assert!(conf_state(&usable).is_ok());
    fs::remove_file(snap).unwrap();
    assert!(conf_state(&usable).is_ok(), "an older record of the same place has it");
}

fn any_change() -> impl Strategy<Value = ConfChange> {
    let id = 1u64..6;
    prop_oneof![
        (id.clone(), 1u64..8).prop_map(|(m, u)| ConfChange::AddVoter { member: MemberId(m), peer_urls: url(u) }),
        (id.clone(), 1u64..8).prop_map(|(m, u)| ConfChange::AddLearner { member: MemberId(m), peer_urls: url(u) }),
        (id.clone(), 1u64..8).prop_map(|(m, u)| ConfChange::Update { member: MemberId(m), peer_urls: url(u) }),
        id.clone().prop_map(promote),
        id.prop_map(remove),
        Just(ConfChange::Nothing),
    ]
}

proptest! {
    /// However much of a log is applied to the backend, the end is the same, and what is told is what is left after
    /// what is committed.
    #[test]
    fn the_backend_s_index_does_not_matter(
        voters in prop::collection::btree_set(1u64..6, 1..4),
        changes in prop::collection::vec(any_change(), 0..12),
        applied in 0u64..13,
        committed in 0u64..13,
    ) {
        let voters: Vec<u64> = voters.into_iter().collect();
        let committed = committed.min(changes.len() as u64);
        let applied = applied.min(committed);
        let from = |applied, committed| Case::of(&voters, &changes, applied, committed).replay();
        let all = from(0, 0).unwrap();
        let told = match from(applied, committed) {
            Ok(told) => told,
            // The peer URLs that a member had before it was removed or updated are not in the backend, so whether an
            // earlier addition repeated one is not known: nothing is told.
            Err(error) => {
                let forgets = |change: &ConfChange| matches!(change, ConfChange::Remove(_) | ConfChange::Update { .. });
                let disagree = matches!(error, TailError::Disagree { .. });
                prop_assert!(disagree && changes.iter().any(forgets), "{:?}", error);
                return Ok(());
            }
        };
        prop_assert_eq!(
            told.last().map(|m| (m.voters.clone(), m.learners.clone())),
            all.last().map(|m| (m.voters.clone(), m.learners.clone()))
        );
        prop_assert!(told.iter().skip(1).all(|m| m.since.0 > 10 + committed && !m.committed));
        let kept = all.iter().filter(|m| m.since.0 > 10 + committed).count();
        prop_assert_eq!(told.len(), kept + 1);
        for pair in told.windows(2) {
            let differ = pair[0].voters != pair[1].voters || pair[0].learners != pair[1].learners;
            prop_assert!(differ, "{:?}", pair);
        }
    }
}
