//! Appends a HardState to a log, as etcd itself would go on from it.
//!
//! etcd treats what follows the last valid record in two ways (`server/storage/wal/{wal,repair}.go`): a torn record is
//! cut off (`Repair`), and anything behind a zero length field is zeroed (`ReadAll`, `ZeroToEnd`), because a record
//! written into the space before could otherwise be followed by the rest of an older write. Here both are cut off, unless
//! nothing but zeros follows. No byte before the end of the last valid record is written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use super::reader::{WalError, WalTail, read_wal};
use super::record::{HardState, RecordEncoder, TYPE_STATE};
use crate::crash_point;
use crate::disk::{Disk, at, parent_of};

/// Why nothing was appended, or what was cannot be relied on.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The last segment has no head, or its end is not where a record may begin.
    #[error("nothing can be appended to the WAL: {0}")]
    NoPlace(&'static str),
    /// The log does not end where it was said to.
    #[error("the WAL has changed since it was read")]
    Changed,
    /// What was appended is not what is read back.
    #[error("the WAL reads differently after the append")]
    NotReadBack,
    /// The log cannot be read.
    #[error("read the WAL")]
    Read(#[source] WalError),
    /// The disk failed.
    #[error("append to the WAL")]
    Io(#[source] io::Error),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> AppendError {
        AppendError::Io(error)
    }
}

/// Appends `state` after the log's last valid record, durably, and reads the log back.
///
/// `tail` must be that of the log as it is: the data dir's lock is held since it was read.
pub fn append_state(disk: &dyn Disk, tail: &WalTail, state: &HardState) -> Result<(), AppendError> {
    if tail.offset == 0 {
        return Err(AppendError::NoPlace("its last segment has no head"));
    }
    if !tail.offset.is_multiple_of(8) {
        return Err(AppendError::NoPlace("its last record is not padded"));
    }
    let dir = parent_of(&tail.path);
    if read_wal(&dir).map_err(AppendError::Read)?.tail != *tail {
        return Err(AppendError::Changed);
    }
    let mut log = RecordEncoder::resume(tail.crc);
    log.push(TYPE_STATE, &state.encode());
    let record = log.into_bytes();

    let clean = only_zeros_after(tail).map_err(|e| at(&tail.path, e))?;
    let mut file = disk.open(&tail.path)?;
    if tail.torn || !clean {
        file.truncate(tail.offset)?;
        file.sync()?;
    }
    crash_point!("reset-tail-cut");
    // In the preallocated space, or beyond the end of a segment that is full: etcd writes its last record so, too, and
    // begins the next segment afterwards.
    file.write_at(&record, tail.offset)?;
    file.sync()?;
    drop(file);

    let read = read_wal(&dir).map_err(AppendError::Read)?;
    let end = tail.offset + record.len() as u64;
    if read.hard_state != Some(*state) || (read.tail.offset, read.tail.torn) != (end, false) {
        return Err(AppendError::NotReadBack);
    }
    Ok(())
}

/// Whether nothing, or nothing but zeros, follows the last valid record.
fn only_zeros_after(tail: &WalTail) -> io::Result<bool> {
    let mut file = File::open(&tail.path)?;
    file.seek(SeekFrom::Start(tail.offset))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(true),
            Some(bytes) if bytes.iter().any(|byte| *byte != 0) => return Ok(false),
            Some(_) => {}
        }
    }
}
