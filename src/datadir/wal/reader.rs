//! Reads a write-ahead log of any origin: whose it is, how far it goes, and whether etcd could go on from it.
//!
//! The rules are those of etcd `server/storage/wal/{wal,decoder,repair}.go`: a log ends at the end of its last segment,
//! at a zero length field (preallocated space), or at a record that was torn, which etcd cuts off. Anything else that
//! does not fit is damage. Memory is bounded by one record.
//! What etcd takes for torn beyond that is damage here too: `torn.rs`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::conf_change::{ConfChange, LoggedChange};
use super::record::{
    Entry, EntryKind, FRAME, HardState, Metadata, Record, SnapshotRecord, TYPE_CRC, TYPE_ENTRY, TYPE_METADATA,
    TYPE_SNAPSHOT, TYPE_STATE, decode_frame,
};
use super::torn::{Followed, Followers, HEAD, Head, head_of, zeros};
use crate::datadir::snapshot::hex16;
use crate::disk::at;
use crate::ids::{RaftIndex, Term};

/// A torn record is known by a sector of zeros in it (`decoder.go`, `minSectorSize`).
const SECTOR: u64 = 512;
const OTHER_LENGTH: &str = "a record's length is not that of its content";
/// The largest record that is read into memory. etcd's requests end far below.
const MAX_RECORD: u64 = 256 << 20;
/// More segments than this are not etcd's: it keeps five of its own accord.
const MAX_SEGMENTS: usize = 100_000;
/// How many of the newest snapshot records are kept.
const MAX_SNAPSHOTS: usize = 10_000;
/// More changes of the membership than this are not etcd's: it drops those before a snapshot with their segments.
const MAX_CHANGES: usize = 100_000;
/// Read ahead.
const BUFFER: usize = 256 << 10;

/// Why a log cannot be gone on from.
#[derive(Debug, Error)]
pub enum WalError {
    /// There is no segment.
    #[error("there is no segment in the WAL")]
    NoSegment,
    /// A segment is missing between two.
    #[error("WAL segment {0:016x} is missing")]
    MissingSegment(u64),
    /// A record is not what was written.
    #[error("{segment} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The segment's name.
        segment: String,
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The log does not say whose it is.
    #[error("the WAL does not name its member and cluster")]
    NoMetadata,
    /// The files could not be read.
    #[error("read the WAL")]
    Io(#[source] io::Error),
}

/// A segment of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its file's name.
    pub name: String,
    /// Its number.
    pub sequence: u64,
    /// The index that its first entry was expected to have.
    pub index: RaftIndex,
}

/// Where the log ends: what is needed to append to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalTail {
    /// The last segment.
    pub path: PathBuf,
    /// The byte after the last valid record.
    pub offset: u64,
    /// The checksum to go on from ([`super::RecordEncoder::resume`]).
    pub crc: u32,
    /// Something follows that is not a valid record: the rest of a torn write, which etcd cuts off.
    pub torn: bool,
}

/// What a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSummary {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The last HardState, if there is one.
    pub hard_state: Option<HardState>,
    /// The first index of the last run of entries without a gap, and the last entry.
    pub entries: Option<EntryRun>,
    /// Snapshot records in the order of the log; the first is usually index 0.
    pub snapshots: Vec<SnapshotRecord>,
    /// Changes of the membership in the order of the log, without those that were overwritten.
    pub changes: Vec<LoggedChange>,
    /// The segments read.
    pub segments: Vec<Segment>,
    /// The last entry that is a request of etcd's first API, as 3.5 writes some for its own ends.
    pub last_v2: Option<RaftIndex>,
    /// The end.
    pub tail: WalTail,
}

/// Entries that follow one another without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRun {
    /// The first's index.
    pub first: RaftIndex,
    /// The last's index.
    pub last: RaftIndex,
    /// The last's term.
    pub term: Term,
}

impl WalSummary {
    /// Snapshot records that the HardState vouches for, as etcd picks its starting point from them.
    pub fn committed_snapshots(&self) -> impl DoubleEndedIterator<Item = &SnapshotRecord> {
        let commit = self.hard_state.unwrap_or_default().commit;
        self.snapshots.iter().filter(move |snapshot| snapshot.index <= commit)
    }
}

/// The segments in `dir` in order, checked for gaps. Other files are ignored, as etcd ignores them.
pub fn segments(dir: &Path) -> Result<Vec<Segment>, WalError> {
    let io = |e| WalError::Io(at(dir, e));
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(segment) = name.to_str().and_then(parse_segment) else { continue };
        segments.push(segment);
        if segments.len() > MAX_SEGMENTS {
            return Err(WalError::NoSegment);
        }
    }
    segments.sort_by_key(|segment| segment.sequence);
    for pair in segments.windows(2) {
        if let [one, next] = pair
            && one.sequence.checked_add(1) != Some(next.sequence)
        {
            return Err(WalError::MissingSegment(one.sequence.saturating_add(1)));
        }
    }
    if segments.is_empty() { Err(WalError::NoSegment) } else { Ok(segments) }
}

fn parse_segment(name: &str) -> Option<Segment> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    Some(Segment { name: name.to_owned(), sequence: hex16(sequence)?, index: RaftIndex(hex16(index)?) })
}

/// Whose log this is, by the first record that tells: each segment begins with it, so that damage further on takes
/// nothing away.
pub fn owner(dir: &Path) -> Option<Metadata> {
    segments(dir).ok()?.iter().find_map(|segment| {
        let file = File::open(dir.join(&segment.name)).ok()?;
        let length = file.metadata().ok()?.len();
        let source = BufReader::with_capacity(SECTOR as usize, file);
        let mut reader = SegmentReader { source, name: &segment.name, length, offset: 0, is_last: false };
        let mut log = Log::default();
        // A checksum and the metadata.
        for _ in 0..2 {
            reader.next(&mut log).ok()?;
        }
        log.metadata
    })
}

/// Reads the whole log in `dir`.
pub fn read_wal(dir: &Path) -> Result<WalSummary, WalError> {
    let segments = segments(dir)?;
    let mut log = Log::default();
    let mut tail = None;
    for (at_segment, segment) in segments.iter().enumerate() {
        let path = dir.join(&segment.name);
        let is_last = at_segment + 1 == segments.len();
        let file = File::open(&path).map_err(|e| WalError::Io(at(&path, e)))?;
        let length = file.metadata().map_err(|e| WalError::Io(at(&path, e)))?.len();
        let source = BufReader::with_capacity(BUFFER, file);
        let mut reader = SegmentReader { source, name: &segment.name, length, offset: 0, is_last };
        let torn = loop {
            match reader.next(&mut log)? {
                Step::Record => {}
                Step::End => break false,
                Step::Torn => break true,
            }
        };
        tail = Some(WalTail { path, offset: reader.offset, crc: log.crc, torn });
    }
    let tail = tail.ok_or(WalError::NoSegment)?;
    let metadata = log.metadata.ok_or(WalError::NoMetadata)?;
    let Log { hard_state, entries, snapshots, changes, last_v2, .. } = log;
    Ok(WalSummary { metadata, hard_state, entries, snapshots, changes, segments, last_v2, tail })
}

/// What was read so far.
#[derive(Default)]
struct Log {
    crc: u32,
    metadata: Option<Metadata>,
    hard_state: Option<HardState>,
    entries: Option<EntryRun>,
    snapshots: Vec<SnapshotRecord>,
    changes: Vec<LoggedChange>,
    last_v2: Option<RaftIndex>,
}

impl Log {
    /// Takes in a record; the error says what is wrong with it.
    fn apply(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        match record.kind {
            TYPE_METADATA => {
                let metadata = Metadata::decode(record.data).map_err(|_| "the metadata is not valid")?;
                if self.metadata.is_some_and(|known| known != metadata) {
                    return Err("the metadata differs from that of an earlier segment");
                }
                self.metadata = Some(metadata);
            }
            TYPE_ENTRY => {
                let entry = Entry::decode(record.data).map_err(|_| "the entry is not valid")?;
                // A lower index overwrites what was there: the log was truncated when a leader changed.
                let first = match self.entries {
                    Some(run) if entry.index.0 <= run.last.0.saturating_add(1) => run.first.min(entry.index),
                    _ => entry.index,
                };
                // What an entry overwrites is gone, and another such request would be needed to be one again.
                self.last_v2 = self.last_v2.filter(|last| *last < entry.index);
                if entry.kind == EntryKind::Normal && is_v2_request(entry.data) {
                    self.last_v2 = Some(entry.index);
                }
                self.entries = Some(EntryRun { first, last: entry.index, term: entry.term });
                self.apply_change(&entry)?;
            }
            TYPE_STATE => {
                self.hard_state = Some(HardState::decode(record.data).map_err(|_| "the HardState is not valid")?);
            }
            TYPE_SNAPSHOT => {
                let snapshot = SnapshotRecord::decode(record.data).map_err(|_| "the snapshot record is not valid")?;
                if self.snapshots.len() == MAX_SNAPSHOTS {
                    self.snapshots.remove(0);
                }
                self.snapshots.push(snapshot);
            }
            _ => return Err("a record of an unknown type"),
        }
        Ok(())
    }

    /// Keeps a change of the membership, and forgets those that the entry overwrites.
    fn apply_change(&mut self, entry: &Entry<'_>) -> Result<(), &'static str> {
        while self.changes.last().is_some_and(|change| change.index >= entry.index) {
            self.changes.pop();
        }
        let change = match entry.kind {
            EntryKind::Normal => return Ok(()),
            EntryKind::ConfChange => ConfChange::decode(entry.data),
            EntryKind::ConfChangeV2 => ConfChange::decode_v2(entry.data),
        };
        let change = change.map_err(|_| "the membership change is not valid")?;
        if self.changes.len() == MAX_CHANGES {
            return Err("there are more membership changes than etcd makes");
        }
        self.changes.push(LoggedChange { term: entry.term, index: entry.index, change });
        Ok(())
    }
}

/// Whether an entry is a bare `etcdserverpb.Request` (ID = 1, method = 2: `PUT` and the like) and not an
/// `InternalRaftRequest`, which from 3.7 on is all that etcd reads.
fn is_v2_request(data: &[u8]) -> bool {
    let Some((0x08, rest)) = data.split_first().map(|(tag, rest)| (*tag, rest)) else { return false };
    let Some(end) = rest.iter().take(10).position(|byte| byte & 0x80 == 0) else { return false };
    let method = rest.get(end + 1..).unwrap_or_default();
    ["PUT", "POST", "DELETE", "QGET", "GET", "HEAD", "SYNC"].iter().any(|name| {
        let head = [&[0x12, name.len() as u8], name.as_bytes()].concat();
        method.starts_with(&head)
    })
}

enum Step {
    Record,
    End,
    Torn,
}

struct SegmentReader<'n> {
    source: BufReader<File>,
    name: &'n str,
    length: u64,
    /// The byte after the last valid record.
    offset: u64,
    is_last: bool,
}

impl SegmentReader<'_> {
    fn damaged(&self, reason: &'static str) -> WalError {
        WalError::Damaged { segment: self.name.to_owned(), offset: self.offset, reason }
    }

    /// A record that is cut short: the end of the log in the last segment, damage in any other.
    fn cut_short(&self) -> Result<Step, WalError> {
        if self.is_last { Ok(Step::Torn) } else { Err(self.damaged("a record is cut short, and segments follow")) }
    }

    fn next(&mut self, log: &mut Log) -> Result<Step, WalError> {
        let left = self.length.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Step::End);
        }
        if left < FRAME as u64 {
            return self.cut_short();
        }
        let mut frame = [0; FRAME];
        self.fill(&mut frame)?;
        let frame = u64::from_le_bytes(frame);
        if frame == 0 {
            let place = self.offset + FRAME as u64;
            let in_sector = place.next_multiple_of(SECTOR) - place;
            let mut next = vec![0; in_sector.min(FRAME as u64).min(left - FRAME as u64) as usize];
            self.fill(&mut next)?;
            // A sector reaches the disk as a whole: the record's beginning is there, and so was its length.
            return if zeros(&next) { Ok(Step::End) } else { Err(self.damaged("a record has no length")) };
        }
        let (length, padding) = decode_frame(frame);
        let whole = length + padding;
        if whole > MAX_RECORD {
            return Err(self.damaged("a record is larger than anything etcd writes"));
        }
        if whole > left - FRAME as u64 {
            let mut start = vec![0; (left - FRAME as u64).min(HEAD) as usize];
            self.fill(&mut start)?;
            return match self.head(&start) {
                Head::Of(own) if own != length => Err(self.damaged(OTHER_LENGTH)),
                Head::Bad => Err(self.damaged("a record is not valid")),
                Head::Of(_) | Head::Unknown => self.cut_short(),
            };
        }
        let mut bytes = vec![0; whole as usize];
        self.fill(&mut bytes)?;
        let message = bytes.get(..length as usize).unwrap_or_default();
        let Ok(record) = Record::decode(message) else {
            return self.torn_or("a record is not valid", length, &bytes);
        };
        if record.kind == TYPE_CRC {
            // The first segment at hand may not be the log's first: its checksum is taken as it is.
            if log.crc != 0 && log.crc != record.crc {
                return Err(self.damaged("it does not go on from the segment before"));
            }
            log.crc = record.crc;
        } else {
            let crc = crc32c::crc32c_append(log.crc, record.data);
            if crc != record.crc {
                return self.torn_or("a checksum does not fit", length, &bytes);
            }
            log.crc = crc;
            log.apply(&record).map_err(|reason| self.damaged(reason))?;
        }
        self.offset += FRAME as u64 + whole;
        Ok(Step::Record)
    }

    /// The end of the log if the record has a sector of zeros and stands in the last segment, and nothing speaks against that;
    /// else damage.
    fn torn_or(&mut self, reason: &'static str, length: u64, bytes: &[u8]) -> Result<Step, WalError> {
        if !self.is_last || !self.sectors(bytes).any(zeros) {
            return Err(self.damaged(reason));
        }
        match self.head(bytes) {
            Head::Of(own) if own != length => return Err(self.damaged(OTHER_LENGTH)),
            Head::Bad => return Err(self.damaged(reason)),
            Head::Of(_) | Head::Unknown => {}
        }
        let mut left = self.length - self.offset - FRAME as u64 - bytes.len() as u64;
        let mut followers = Followers::behind(bytes);
        while left >= FRAME as u64 {
            let mut frame = [0; FRAME];
            self.fill(&mut frame)?;
            let frame = u64::from_le_bytes(frame);
            left -= FRAME as u64;
            let (length, padding) = decode_frame(frame);
            let whole = length + padding;
            if frame == 0 || whole > left || whole > MAX_RECORD {
                break;
            }
            let mut bytes = vec![0; whole as usize];
            self.fill(&mut bytes)?;
            left -= whole;
            let record = Record::decode(bytes.get(..length as usize).unwrap_or_default());
            match record.map(|record| followers.take(&record)) {
                Ok(Followed::On) => {}
                Ok(Followed::Durable) => return Err(self.damaged("a record does not fit, and later writes follow it")),
                Ok(Followed::Nothing) | Err(_) => break,
            }
        }
        Ok(Step::Torn)
    }

    /// The parts of the record at hand that lie in one sector each.
    fn sectors<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let start = self.offset + FRAME as u64;
        let first = ((SECTOR - start % SECTOR) as usize).min(bytes.len());
        let (head, rest) = bytes.split_at(first);
        std::iter::once(head).chain(rest.chunks(SECTOR as usize))
    }

    /// How long the record at hand is by its own beginning.
    fn head(&self, bytes: &[u8]) -> Head {
        // Of a sector that never reached the disk nothing is known, and of what was never written.
        let known: usize = self.sectors(bytes).take_while(|sector| !zeros(sector)).map(<[u8]>::len).sum();
        let known = bytes.get(..known).unwrap_or_default();
        let written = known.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        head_of(known.get(..written).unwrap_or_default())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), WalError> {
        self.source.read_exact(buffer).map_err(|e| WalError::Io(at(Path::new(self.name), e)))
    }
}
