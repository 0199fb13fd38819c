//! The record, beside the data dir, of a migration that was begun: what lets a boot tell a data dir of an uncommitted
//! import, which is rebuilt, from any other, which is never touched.
//!
//! ```text
//! offset  size  content
//!      0     8  magic "SYNCMIG1"; the last byte is the format's version
//!      8     4  length of the payload, u32 little endian, at most 64 KiB
//!     12     4  CRC-32C of the payload, u32 little endian
//!     16     n  payload: JSON of [`Journal`]
//! ```
//!
//! It is replaced as a whole, by a durable rename. Legal transitions: none -> importing -> importing (begun anew, or
//! what was written is now known) -> done. Nothing leaves done.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::boot::JournalFact;
use crate::disk::{Disk, at, parent_of};
use crate::ids::{ClusterId, Revision};

/// Its name in the directory that also holds `etcd/`.
pub const FILE_NAME: &str = "migration.journal";

const MAGIC: &[u8; 8] = b"SYNCMIG1";
const HEADER: usize = 16;
const MAX_PAYLOAD: usize = 64 << 10;

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Begun. The source is the truth as long as it bears its name.
    Importing,
    /// Committed and cleaned up after.
    Done,
}

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Journal {
    /// Where the migration stands.
    pub phase: Phase,
    /// What is moved.
    pub source: SourceFile,
    /// When it was begun, in seconds since 1970.
    pub started: u64,
    /// When it was done.
    pub finished: Option<u64>,
    /// What was written; known once the staging directory is durable, and always before the flip.
    pub written: Option<Written>,
}

/// The SQLite file that is moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceFile {
    /// Its path; relative to the journal's directory if it is below that, so that a volume may be mounted elsewhere.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its modification time, in nanoseconds since 1970.
    pub modified: i128,
    /// Its inode.
    pub inode: u64,
}

/// What stands in the data dir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Written {
    /// The data dir's cluster, which tells it from any other.
    pub cluster: ClusterId,
    /// The store's revision.
    pub revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// `HashKV` at that revision.
    pub hash: u32,
    /// The largest request that the values need, in bytes: etcd's limit must not be below it, at this start or any later.
    pub max_request_bytes: u64,
}

/// Why a journal cannot be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Not one of ours, of another version, or damaged.
    #[error("{} is not a whole journal: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Journal {
    /// Whether `next` may replace `self`: the same source, and nothing after the end.
    pub fn may_become(&self, next: &Journal) -> bool {
        self.phase == Phase::Importing && self.source.path == next.source.path
    }

    /// The bytes of the file.
    fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let payload = serde_json::to_vec(self).context("encode the journal")?;
        anyhow::ensure!(payload.len() <= MAX_PAYLOAD, "the journal would be larger than {MAX_PAYLOAD} bytes");
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Journal, String> {
        let (header, payload) = bytes.split_first_chunk::<HEADER>().ok_or("it is too short")?;
        let (magic, rest) = header.split_first_chunk::<8>().ok_or("it is too short")?;
        if magic != MAGIC {
            return Err(if magic.starts_with(&MAGIC[..7]) {
                "it was written by another version of syncer".to_owned()
            } else {
                "it does not begin as one".to_owned()
            });
        }
        let (length, crc) = (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), &rest[4..8]);
        if length as usize != payload.len() {
            return Err(format!("it has {} bytes where it promises {length}", payload.len()));
        }
        if crc32c::crc32c(payload).to_le_bytes() != crc {
            return Err("its checksum differs".to_owned());
        }
        serde_json::from_slice(payload).map_err(|e| e.to_string())
    }
}

/// Reads the journal at `path`, if there is one.
pub fn load(path: &Path) -> Result<Option<Journal>, JournalError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(at(path, e).into()),
    };
    let mut bytes = Vec::new();
    let limit = (HEADER + MAX_PAYLOAD + 1) as u64;
    file.take(limit).read_to_end(&mut bytes).map_err(|e| at(path, e))?;
    Journal::decode(&bytes).map(Some).map_err(|reason| JournalError::Damaged { path: path.to_owned(), reason })
}

/// Replaces the journal at `path`, durably. A transition that is not legal is an error.
pub fn store(disk: &dyn Disk, path: &Path, journal: &Journal) -> anyhow::Result<()> {
    if let Some(present) = load(path).context("read the journal that is to be replaced")? {
        anyhow::ensure!(
            present.may_become(journal),
            "{} says {:?} of {}, which cannot become {:?} of {}",
            path.display(),
            present.phase,
            present.source.path.display(),
            journal.phase,
            journal.source.path.display()
        );
    }
    disk.write_durable(path, &journal.encode()?, 0o600).context("write the journal")
}

/// What the boot decision looks at: the journal in `data_dir`.
pub fn fact(data_dir: &Path) -> io::Result<JournalFact> {
    let path = data_dir.join(FILE_NAME);
    Ok(match load(&path) {
        Ok(None) => JournalFact::Absent,
        Ok(Some(journal)) => {
            let source = absolute(&path, &journal.source.path);
            match journal.phase {
                Phase::Importing => JournalFact::Importing { source },
                Phase::Done => JournalFact::Done { source },
            }
        }
        Err(e @ JournalError::Damaged { .. }) => JournalFact::Damaged(e.to_string()),
        Err(JournalError::Io(e)) => return Err(e),
    })
}

/// The largest request that the values imported into `data_dir` need, in bytes; `None` if nothing was imported.
pub fn max_request_bytes(data_dir: &Path) -> Result<Option<u64>, JournalError> {
    Ok(load(&data_dir.join(FILE_NAME))?.and_then(|journal| journal.written).map(|written| written.max_request_bytes))
}

/// A source's path as the journal at `journal` keeps it.
pub fn relative(journal: &Path, source: &Path) -> PathBuf {
    source.strip_prefix(parent_of(journal)).unwrap_or(source).to_owned()
}

/// The path that [`relative`] was made from.
pub fn absolute(journal: &Path, source: &Path) -> PathBuf {
    parent_of(journal).join(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn journal(phase: Phase, path: &str) -> Journal {
        Journal {
            phase,
            source: SourceFile { path: path.into(), bytes: 7, modified: 1_700_000_000_000_000_001, inode: 3 },
            started: 1,
            finished: (phase == Phase::Done).then_some(2),
            written: Some(Written {
                cluster: ClusterId(5),
                revision: Revision(6),
                keys: 7,
                hash: 8,
                max_request_bytes: 9,
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_and_maps_to_a_fact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(load(&path).unwrap(), None);
        assert_eq!(fact(dir.path()).unwrap(), JournalFact::Absent);
        let db = dir.path().join("server/db/state.db");
        let name = relative(&path, &db);
        assert_eq!(name, Path::new("server/db/state.db"));
        for (phase, want) in [
            (Phase::Importing, JournalFact::Importing { source: db.clone() }),
            (Phase::Done, JournalFact::Done { source: db.clone() }),
        ] {
            let journal = journal(phase, name.to_str().unwrap());
            store(&RealDisk, &path, &journal).unwrap();
            assert_eq!(load(&path).unwrap(), Some(journal));
            assert_eq!(fact(dir.path()).unwrap(), want);
        }
        assert_eq!(relative(&path, Path::new("/elsewhere/state.db")), Path::new("/elsewhere/state.db"));
        assert_eq!(absolute(&path, Path::new("/elsewhere/state.db")), Path::new("/elsewhere/state.db"));
    }

    #[test]
    fn only_legal_transitions_are_written() {
        use Phase::{Done, Importing};
        for (from, to, legal) in [
            ((Importing, "a"), (Importing, "a"), true),
            ((Importing, "a"), (Done, "a"), true),
            ((Importing, "a"), (Importing, "b"), false),
            ((Importing, "a"), (Done, "b"), false),
            ((Done, "a"), (Done, "a"), false),
            ((Done, "a"), (Importing, "a"), false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE_NAME);
            store(&RealDisk, &path, &journal(from.0, from.1)).unwrap();
            assert_eq!(store(&RealDisk, &path, &journal(to.0, to.1)).is_ok(), legal, "{from:?} {to:?}");
        }
    }

    #[test]
    fn every_single_damaged_byte_is_seen() {
        let bytes = journal(Phase::Importing, "state.db").encode().unwrap();
        assert!(Journal::decode(&bytes).is_ok());
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x20;
            assert!(Journal::decode(&damaged).is_err(), "byte {i}");
            assert!(Journal::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), &bytes[..20]).unwrap();
        assert!(matches!(fact(dir.path()).unwrap(), JournalFact::Damaged(_)));
        std::fs::write(dir.path().join(FILE_NAME), vec![b'x'; 1 << 20]).unwrap();
        assert!(matches!(fact(dir.path()).unwrap(), JournalFact::Damaged(_)));
    }
}
