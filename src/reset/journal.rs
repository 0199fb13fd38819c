//! The record of a reset, beside the data dir: what lets the next attempt go on instead of beginning anew.
//!
//! Its form is that of [`crate::record_file`], with the magic `SYNCRST1`. Legal transitions: none -> copying ->
//! resetting -> (bumping ->) done; copying may begin anew, and done may be followed by another reset.
//!
//! | phase | the data dir | the copy |
//! |---|---|---|
//! | copying | as it was found | not there, partial, or whole |
//! | resetting | with or without the HardState, with or without etcd's own changes on top | whole |
//! | bumping | of one member, its revision raised or not | whole |
//! | done | of one member | whole |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::datadir::LogTail;
use crate::disk::Disk;
use crate::ids::{ClusterId, MemberId, Revision};
use crate::record_file::{self, RecordError};

/// Its name in the directory that also holds `etcd/`.
pub const FILE_NAME: &str = "reset.journal";

const MAGIC: &[u8; 8] = b"SYNCRST1";
const MAX_PAYLOAD: usize = 1 << 20;

/// What allows a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Permission {
    /// At most two voters in every membership from the last committed to the last entry, the member always one of them:
    /// lossless. Checked again here.
    TwoVoters,
    /// Every other voter, its etcd stopped, has announced a last log that is not above this one's: lossless, by the
    /// caller's word.
    StopRecord,
    /// An operator accepts that acknowledged writes may be missing; the store's revision is raised by `bump`.
    LossAccepted {
        /// By how much: more than there can be missing revisions.
        bump: i64,
    },
}

/// Where a reset stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The copy is being made; the data dir is untouched.
    Copying,
    /// The data dir is being changed into that of one member.
    Resetting,
    /// The revision is being raised.
    Bumping,
    /// All is done; etcd may be started as usual.
    Done,
}

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResetJournal {
    /// Where the reset stands.
    pub phase: Phase,
    /// What allowed it.
    pub permission: Permission,
    /// The log as it was found.
    pub before: LogTail,
    /// The copy's name beside the data dir.
    pub copy: String,
    /// When it was begun, in seconds since 1970.
    pub started: u64,
    /// When it was done.
    pub finished: Option<u64>,
    /// The revision to which the store is raised; known from the phase of bumping on.
    pub bump_to: Option<Revision>,
    /// The store's revision at the end.
    pub after: Option<Revision>,
    /// Whom earlier resets of the same member have dropped.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dropped_before: BTreeSet<MemberId>,
}

impl ResetJournal {
    /// The members that are dropped with this reset and with those before it.
    pub fn drops(&self) -> BTreeSet<MemberId> {
        let memberships = self.before.memberships.iter().chain(&self.before.before_change);
        let ids = memberships.flat_map(|membership| membership.voters.iter().chain(&membership.learners)).copied();
        let others = ids.filter(|id| *id != self.before.member);
        others.chain(self.dropped_before.iter().copied()).collect()
    }

    /// Whether `next` may replace `self`.
    pub fn may_become(&self, next: &ResetJournal) -> bool {
        let same = (self.before.member, self.before.cluster) == (next.before.member, next.before.cluster);
        match (self.phase, next.phase) {
            (Phase::Copying | Phase::Done, Phase::Copying) => true,
            (Phase::Copying, Phase::Resetting)
            | (Phase::Resetting, Phase::Bumping | Phase::Done)
            | (Phase::Bumping, Phase::Done) => same && self.permission == next.permission,
            _ => false,
        }
    }
}

/// The journal's path for the directory that holds `etcd/`.
pub fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

/// Reads the journal in `data_dir`, if there is one.
pub fn load(data_dir: &Path) -> Result<Option<ResetJournal>, RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, &path_in(data_dir))
}

/// A reset that was begun and has changed, or may have changed, the data dir: it must be gone on with before etcd is
/// started in any other way.
pub fn pending(data_dir: &Path) -> Result<Option<ResetJournal>, RecordError> {
    Ok(load(data_dir)?.filter(|journal| matches!(journal.phase, Phase::Resetting | Phase::Bumping)))
}

/// The members that the resets which made `member` of `cluster` the only one have dropped; none if there was no such.
pub fn dropped(data_dir: &Path, member: MemberId, cluster: ClusterId) -> Result<Vec<MemberId>, RecordError> {
    let of = load(data_dir)?.filter(|journal| (journal.before.member, journal.before.cluster) == (member, cluster));
    Ok(match of {
        Some(journal) if journal.phase == Phase::Done => journal.drops().into_iter().collect(),
        // Another is about to begin; what was done before stands.
        Some(journal) if journal.phase == Phase::Copying => journal.dropped_before.into_iter().collect(),
        _ => Vec::new(),
    })
}

/// Removes the journal in `data_dir`, if there is one: the data dir that it is of is about to be set aside.
pub fn forget(disk: &dyn Disk, data_dir: &Path) -> std::io::Result<()> {
    match disk.remove_file(&path_in(data_dir)) {
        Ok(()) => disk.sync_dir(data_dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Replaces the journal in `data_dir`, durably. A transition that is not legal is an error.
pub fn store(disk: &dyn Disk, data_dir: &Path, journal: &ResetJournal) -> anyhow::Result<()> {
    if let Some(present) = load(data_dir).context("read the journal that is to be replaced")? {
        anyhow::ensure!(
            present.may_become(journal),
            "the reset of member {} is {:?}, which cannot become {:?} of member {}",
            present.before.member,
            present.phase,
            journal.phase,
            journal.before.member,
        );
    }
    let bytes = record_file::encode(MAGIC, MAX_PAYLOAD, journal)?;
    disk.write_durable(&path_in(data_dir), &bytes, 0o600).context("write the reset's journal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::{Membership, Role};
    use crate::disk::RealDisk;
    use crate::ids::{ClusterId, MemberId, RaftIndex, Term};

    fn journal(phase: Phase, member: u64) -> ResetJournal {
        let voters = vec![MemberId(member), MemberId(9)];
        let (since, last_index) = (RaftIndex(3), RaftIndex(7));
        ResetJournal {
            phase,
            permission: Permission::LossAccepted { bump: 5 },
            before: LogTail {
                member: MemberId(member),
                cluster: ClusterId(2),
                term: Term(3),
                last_term: Term(3),
                last_index,
                committed: since,
                hard_state_commit: since,
                consistent_index: since,
                revision: Revision(4),
                memberships: vec![Membership { since, committed: true, voters, learners: vec![], role: Role::Voter }],
                before_change: None,
            },
            copy: "etcd.aside-x".into(),
            started: 1,
            finished: None,
            bump_to: None,
            after: None,
            dropped_before: BTreeSet::new(),
        }
    }

    #[test]
    fn whom_an_earlier_reset_has_dropped_stays_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let of = |member| dropped(dir.path(), MemberId(member), ClusterId(2)).unwrap();
        let mut present = journal(Phase::Copying, 1);
        for (phase, expected) in
            [(Phase::Copying, vec![]), (Phase::Resetting, vec![]), (Phase::Done, vec![MemberId(9)])]
        {
            present.phase = phase;
            store(&RealDisk, dir.path(), &present).unwrap();
            assert_eq!((of(1), of(3)), (expected, vec![]), "{phase:?}");
        }
        let mut next = journal(Phase::Copying, 1);
        next.dropped_before = present.drops();
        next.before.memberships.iter_mut().for_each(|membership| membership.voters = vec![MemberId(1), MemberId(8)]);
        store(&RealDisk, dir.path(), &next).unwrap();
        assert_eq!(of(1), [MemberId(9)], "while the second is only begun");
        for phase in [Phase::Resetting, Phase::Done] {
            next.phase = phase;
            store(&RealDisk, dir.path(), &next).unwrap();
        }
        assert_eq!(of(1), [MemberId(8), MemberId(9)]);
    }

    #[test]
    fn it_comes_back_and_only_legal_transitions_are_written() {
        use Phase::{Bumping, Copying, Done, Resetting};
        for (from, to, legal) in [
            (Copying, Copying, true),
            (Copying, Resetting, true),
            (Resetting, Bumping, true),
            (Resetting, Done, true),
            (Bumping, Done, true),
            (Done, Copying, true),
            (Copying, Done, false),
            (Resetting, Copying, false),
            (Bumping, Resetting, false),
            (Done, Resetting, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut present = journal(Copying, 1);
            present.phase = from;
            let bytes = record_file::encode(MAGIC, MAX_PAYLOAD, &present).unwrap();
            std::fs::write(path_in(dir.path()), bytes).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(present.clone()));
            assert_eq!(pending(dir.path()).unwrap().is_some(), matches!(from, Resetting | Bumping));
            assert_eq!(store(&RealDisk, dir.path(), &journal(to, 1)).is_ok(), legal, "{from:?} {to:?}");
            let other = store(&RealDisk, dir.path(), &journal(to, 5));
            assert!(other.is_err() || to == Copying || from == Done, "{from:?} {to:?} of another member");
        }
    }

    #[test]
    fn a_forgotten_reset_is_pending_no_more() {
        let dir = tempfile::tempdir().unwrap();
        store(&RealDisk, dir.path(), &journal(Phase::Copying, 1)).unwrap();
        store(&RealDisk, dir.path(), &journal(Phase::Resetting, 1)).unwrap();
        assert!(pending(dir.path()).unwrap().is_some());
        forget(&RealDisk, dir.path()).unwrap();
        forget(&RealDisk, dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
    }

    #[test]
    fn every_single_damaged_byte_is_seen() {
        let bytes = record_file::encode(MAGIC, MAX_PAYLOAD, &journal(Phase::Resetting, 1)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x20;
            assert!(record_file::decode::<ResetJournal>(MAGIC, &damaged).is_err(), "byte {i}");
            assert!(record_file::decode::<ResetJournal>(MAGIC, &bytes[..i]).is_err(), "cut at {i}");
        }
        std::fs::write(path_in(dir.path()), &bytes[..20]).unwrap();
        assert!(matches!(pending(dir.path()), Err(RecordError::Damaged { .. })));
        assert!(store(&RealDisk, dir.path(), &journal(Phase::Copying, 1)).is_err(), "never overwritten unread");
    }
}
