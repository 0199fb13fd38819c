//! The record of a fence around an etcd that is moved from: that we have raised alarms there, and whose they are.
//!
//! Its form is that of [`crate::record_file`], with the magic `SYNCFEN1` and at most 4 KiB of payload. It is durable before
//! the first alarm is raised, so that whoever finds it knows that the source may refuse writes because of us.
//!
//! Legal transitions: none -> raised -> lifted -> raised ..., raised -> kept. From the commit of the move on the fence
//! stays where it is, as what the source took from then on would be lost: *raised* with the data dir in place that the move
//! has written, by the move's own journal, is *kept*, whether the record says so yet or not. Any other data dir is no commit.
//! Nothing leaves kept.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::journal;
use crate::boot::{FenceFact, Refusal};
use crate::datadir::inspect::owner;
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId};
use crate::record_file::{self, RecordError};

/// Its name in the directory that also holds `etcd/`.
pub const FILE_NAME: &str = "migration.fence";

const MAGIC: &[u8; 8] = b"SYNCFEN1";
const MAX_PAYLOAD: usize = 4 << 10;

/// Where a fence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FencePhase {
    /// It is about to be raised, or is: the source may refuse writes.
    Raised,
    /// It was taken down again; nothing was moved.
    Lifted,
    /// The move is committed: the source is to take no more writes.
    Kept,
}

/// The record's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FenceRecord {
    /// Where it stands.
    pub phase: FencePhase,
    /// The source's URL.
    pub source: String,
    /// The source's cluster: another one at that URL is not ours to change.
    pub cluster: ClusterId,
    /// In whose name the alarms are raised: a random ID, which no member of the source has. So they are told from the
    /// source's own, even if it raises one meanwhile.
    pub alarm: MemberId,
    /// When it was recorded, in seconds since 1970.
    pub since: u64,
    /// The client URLs of the source's members: other ways to them.
    #[serde(default)]
    pub members: Vec<String>,
}

/// The record on the volume at `data_dir`.
pub fn load(data_dir: &Path) -> Result<Option<FenceRecord>, RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, &path(data_dir))
}

/// Replaces the record, durably. A transition that is not legal is an error.
pub fn store(disk: &dyn Disk, data_dir: &Path, record: &FenceRecord) -> anyhow::Result<()> {
    use FencePhase::{Kept, Lifted, Raised};
    let present = load(data_dir).context("read the record of the fence that is to be replaced")?;
    let legal = match (present.as_ref().map(|present| present.phase), record.phase) {
        (None | Some(Lifted), Raised) | (Some(Raised), _) => true,
        (None | Some(Lifted | Kept), _) => present.as_ref() == Some(record),
    };
    anyhow::ensure!(legal, "the record of a fence, {present:?}, cannot become {record:?}");
    disk.write_durable(&path(data_dir), &record_file::encode(MAGIC, MAX_PAYLOAD, record)?, 0o600)
        .context("write the record of the fence")
}

/// What the boot decision looks at.
pub fn fact(data_dir: &Path) -> io::Result<FenceFact> {
    Ok(match load(data_dir) {
        Ok(None) => FenceFact::Absent,
        Ok(Some(FenceRecord { phase, source, .. })) => match phase {
            FencePhase::Raised => FenceFact::Raised { source, moved: moved(data_dir)? },
            FencePhase::Lifted => FenceFact::Lifted { source },
            FencePhase::Kept => FenceFact::Kept { source },
        },
        Err(e @ RecordError::Damaged { .. }) => FenceFact::Damaged(e.to_string()),
        Err(RecordError::Io(e)) => return Err(e),
    })
}

/// Whether the data dir on the volume at `data_dir` is the one that a move from a running etcd has written here. It is told by its
/// log, which a damaged one, or one of a newer etcd, has too; a journal that cannot be read tells of none.
pub fn moved(data_dir: &Path) -> io::Result<bool> {
    let journal = match journal::load(&data_dir.join(journal::FILE_NAME)) {
        Ok(journal) => journal.filter(|journal| journal.source.is_remote()),
        Err(RecordError::Damaged { .. }) => None,
        Err(RecordError::Io(e)) => return Err(e),
    };
    let Some(written) = journal.and_then(|journal| journal.written) else { return Ok(false) };
    Ok(owner(&data_dir.join("etcd")).is_some_and(|(_, cluster)| cluster == written.cluster))
}

/// Refuses to put a data dir on the volume at `data_dir` while a fence is raised from there.
///
/// # Errors
/// [`Exit::RefusedDataDir`].
pub fn refuse_raised(data_dir: &Path, fence: &FenceFact) -> anyhow::Result<()> {
    match fence {
        FenceFact::Raised { source, .. } => Err(refuse(
            Exit::RefusedDataDir,
            format!("the store of {source} is being moved to this volume"),
            format!(
                "let the pod finish that, or unset migrateFromEtcd and let it lift its fence; or, if that etcd is gone for good, \
                 move {} away; nothing has been changed",
                path(data_dir).display()
            ),
        )),
        FenceFact::Damaged(why) => Err(Refusal::DamagedJournal(why.clone()).error()),
        FenceFact::Absent | FenceFact::Lifted { .. } | FenceFact::Kept { .. } => Ok(()),
    }
}

/// The record's file on the volume at `data_dir`.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::{DatadirWriter, MemberIdentity};
    use crate::disk::RealDisk;
    use crate::ids::Revision;
    use crate::migrate::journal::{Journal, Phase, SourceFile, Written};
    use crate::migrate::source::FileState;

    fn record(phase: FencePhase) -> FenceRecord {
        let source = "https://vc-etcd:2379".to_owned();
        FenceRecord { phase, source, cluster: ClusterId(1), alarm: MemberId(2), since: 3, members: Vec::new() }
    }

    #[test]
    fn only_legal_transitions_are_written_and_each_is_a_fact() {
        use FencePhase::{Kept, Lifted, Raised};
        let source = || "https://vc-etcd:2379".to_owned();
        let facts = [
            (Raised, FenceFact::Raised { source: source(), moved: false }),
            (Lifted, FenceFact::Lifted { source: source() }),
            (Kept, FenceFact::Kept { source: source() }),
        ];
        for (from, fact_of_from) in &facts {
            for (to, fact_of_to) in &facts {
                let dir = tempfile::tempdir().unwrap();
                let data = dir.path();
                assert_eq!(fact(data).unwrap(), FenceFact::Absent);
                assert_eq!(store(&RealDisk, data, &record(*from)).is_ok(), *from == Raised);
                store(&RealDisk, data, &record(Raised)).ok();
                store(&RealDisk, data, &record(*from)).unwrap();
                assert_eq!(fact(data).unwrap(), *fact_of_from);
                let legal = from == to || *from == Raised || (*from, *to) == (Lifted, Raised);
                assert_eq!(store(&RealDisk, data, &record(*to)).is_ok(), legal, "{from:?} {to:?}");
                assert_eq!(fact(data).unwrap(), if legal { fact_of_to.clone() } else { fact_of_from.clone() });
            }
        }
    }

    /// Only what the move itself has written is its commit, whatever else somebody has put in the place.
    #[test]
    fn a_raised_fence_is_kept_for_the_data_dir_of_its_own_move_alone() {
        let identity = |token: &str| {
            let urls = vec!["http://localhost:2380".to_owned()];
            let (peer_urls, client_urls) = (urls.clone(), urls);
            MemberIdentity { name: "a".into(), peer_urls, client_urls, token: token.into() }
        };
        let writes = |dir: &Path, token: &str| {
            let writer = DatadirWriter::create(&RealDisk, &dir.join("etcd")).unwrap();
            writer.finish(Revision(1), &[], &identity(token)).unwrap().cluster_id
        };
        let of_move = |source: &str, written: Option<ClusterId>| Journal {
            phase: Phase::Importing,
            source: SourceFile { path: source.into(), bytes: 0, modified: 0, inode: 0 },
            source_revision: Revision(1),
            beside: FileState::default(),
            renames: false,
            started: 1,
            finished: None,
            written: written.map(|cluster| Written {
                cluster,
                revision: Revision(1),
                keys: 0,
                hash: 0,
                max_request_bytes: 0,
            }),
            file: None,
        };
        let url = "https://vc-etcd:2379";
        for (what, source, knows, want) in [
            ("its own", url, Some(true), true),
            ("another", url, Some(false), false),
            ("one before anything was written", url, None, false),
            ("one of a SQLite store's import", "state.db", Some(true), false),
        ] {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path();
            store(&RealDisk, dir, &record(FencePhase::Raised)).unwrap();
            let raised = |moved| FenceFact::Raised { source: url.into(), moved };
            assert_eq!(fact(dir).unwrap(), raised(false), "no journal, no data dir");
            let there = writes(dir, "a");
            assert_eq!(fact(dir).unwrap(), raised(false), "no journal");
            let written = knows.map(|own| if own { there } else { ClusterId(there.0 ^ 1) });
            let path = dir.join(journal::FILE_NAME);
            journal::store(&RealDisk, &path, &of_move(source, written)).unwrap();
            assert_eq!(fact(dir).unwrap(), raised(want), "a data dir that is {what}");
            // A backend that is damaged takes nothing away from the commit.
            std::fs::remove_file(dir.join("etcd/member/snap/db")).unwrap();
            assert_eq!(fact(dir).unwrap(), raised(want), "a damaged data dir that is {what}");
        }
    }

    #[test]
    fn damage_is_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        store(&RealDisk, dir.path(), &record(FencePhase::Raised)).unwrap();
        let mut bytes = std::fs::read(path(dir.path())).unwrap();
        bytes[30] ^= 1;
        std::fs::write(path(dir.path()), bytes).unwrap();
        assert!(matches!(fact(dir.path()).unwrap(), FenceFact::Damaged(why) if why.contains(FILE_NAME)));
    }
}
