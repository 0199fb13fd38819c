//! Records of the write-ahead log and their framing.
//!
//! Sources: etcd `server/storage/wal/{encoder,decoder}.go`, `walpb/record.proto`, `etcdserverpb/etcdserver.proto`,
//! raft `raftpb/raft.proto`. Fields that the Go code writes even when they are zero are written so here.

use crate::datadir::proto::{Fields, ProtoError, put_bytes, put_uint};
use crate::ids::{ClusterId, MemberId, RaftIndex, Term};

/// Record type: member and cluster ID, at the head of every segment.
pub const TYPE_METADATA: u64 = 1;
/// Record type: a raft entry.
pub const TYPE_ENTRY: u64 = 2;
/// Record type: a HardState.
pub const TYPE_STATE: u64 = 3;
/// Record type: the checksum so far, at the head of every segment.
pub const TYPE_CRC: u64 = 4;
/// Record type: a raft snapshot was taken or received.
pub const TYPE_SNAPSHOT: u64 = 5;

/// Bytes of the length field before each record.
pub const FRAME: usize = 8;

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The member.
    pub member: MemberId,
    /// The cluster.
    pub cluster: ClusterId,
}

/// What raft must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: u64,
    /// Whom the member voted for in it, or 0.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A request.
    Normal,
    /// A change of the membership.
    ConfChange,
    /// A change of the membership in its second form, which etcd does not write.
    ConfChangeV2,
}

/// A raft entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'b> {
    /// What it is.
    pub kind: EntryKind,
    /// The term in which it was proposed.
    pub term: Term,
    /// Its place in the log.
    pub index: RaftIndex,
    /// Its content.
    pub data: &'b [u8],
}

/// The raft configuration at a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Voters.
    pub voters: Vec<u64>,
    /// Learners.
    pub learners: Vec<u64>,
}

/// A raft snapshot's place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Everything up to here is in the snapshot.
    pub index: u64,
    /// The term of that index.
    pub term: u64,
    /// The configuration; absent from logs of etcd before 3.5.
    pub conf_state: Option<ConfState>,
}

impl Metadata {
    /// The record's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_uint(&mut out, 1, self.member.0);
        put_uint(&mut out, 2, self.cluster.0);
        out
    }

    /// Decodes the record's content. Both IDs must be there: etcd never writes zero.
    pub fn decode(message: &[u8]) -> Result<Metadata, ProtoError> {
        let (mut member, mut cluster) = (0, 0);
        for field in Fields::new(message) {
            match field? {
                (1, value) => member = value.uint()?,
                (2, value) => cluster = value.uint()?,
                _ => {}
            }
        }
        if member == 0 || cluster == 0 {
            return Err(ProtoError);
        }
        Ok(Metadata { member: MemberId(member), cluster: ClusterId(cluster) })
    }
}

impl HardState {
    /// The record's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_uint(&mut out, 1, self.term);
        put_uint(&mut out, 2, self.vote);
        put_uint(&mut out, 3, self.commit);
        out
    }

    /// Decodes the record's content.
    pub fn decode(message: &[u8]) -> Result<HardState, ProtoError> {
        let mut state = HardState::default();
        for field in Fields::new(message) {
            match field? {
                (1, value) => state.term = value.uint()?,
                (2, value) => state.vote = value.uint()?,
                (3, value) => state.commit = value.uint()?,
                _ => {}
            }
        }
        Ok(state)
    }
}

impl<'b> Entry<'b> {
    /// The record's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let kind = match self.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
            EntryKind::ConfChangeV2 => 2,
        };
        put_uint(&mut out, 1, kind);
        put_uint(&mut out, 2, self.term.0);
        put_uint(&mut out, 3, self.index.0);
        if !self.data.is_empty() {
            put_bytes(&mut out, 4, self.data);
        }
        out
    }

    /// Decodes the record's content.
    pub fn decode(message: &'b [u8]) -> Result<Entry<'b>, ProtoError> {
        let mut entry = Entry { kind: EntryKind::Normal, term: Term(0), index: RaftIndex(0), data: &[] };
        for field in Fields::new(message) {
            match field? {
                (1, value) => {
                    entry.kind = match value.uint()? {
                        0 => EntryKind::Normal,
                        1 => EntryKind::ConfChange,
                        2 => EntryKind::ConfChangeV2,
                        _ => return Err(ProtoError),
                    }
                }
                (2, value) => entry.term = Term(value.uint()?),
                (3, value) => entry.index = RaftIndex(value.uint()?),
                (4, value) => entry.data = value.bytes()?,
                _ => {}
            }
        }
        Ok(entry)
    }
}

impl ConfState {
    /// The message `raftpb.ConfState`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for voter in &self.voters {
            put_uint(&mut out, 1, *voter);
        }
        for learner in &self.learners {
            put_uint(&mut out, 2, *learner);
        }
        put_uint(&mut out, 5, 0);
        out
    }

    /// Decodes `raftpb.ConfState`, with lists packed or not. Joint configurations, which etcd never makes, are refused.
    pub fn decode(message: &[u8]) -> Result<ConfState, ProtoError> {
        use crate::datadir::proto::{Value, read_packed};
        let mut state = ConfState::default();
        for field in Fields::new(message) {
            let (number, value) = field?;
            let list = match number {
                1 => &mut state.voters,
                2 => &mut state.learners,
                3 | 4 => return Err(ProtoError),
                _ => continue,
            };
            match value {
                Value::Bytes(packed) => read_packed(packed, list)?,
                single => list.push(single.uint()?),
            }
        }
        Ok(state)
    }
}

impl SnapshotRecord {
    /// The record's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_uint(&mut out, 1, self.index);
        put_uint(&mut out, 2, self.term);
        if let Some(state) = &self.conf_state {
            put_bytes(&mut out, 3, &state.encode());
        }
        out
    }

    /// Decodes the record's content.
    pub fn decode(message: &[u8]) -> Result<SnapshotRecord, ProtoError> {
        let mut record = SnapshotRecord::default();
        for field in Fields::new(message) {
            match field? {
                (1, value) => record.index = value.uint()?,
                (2, value) => record.term = value.uint()?,
                (3, value) => record.conf_state = Some(ConfState::decode(value.bytes()?)?),
                _ => {}
            }
        }
        Ok(record)
    }
}

/// A raft `ConfChange` that adds a voter; `context` is the member's JSON.
pub fn add_voter(member: MemberId, context: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_uint(&mut out, 1, 0);
    put_uint(&mut out, 2, 0);
    put_uint(&mut out, 3, member.0);
    put_bytes(&mut out, 4, context);
    out
}

/// `walpb.Record`: type, checksum, content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'b> {
    /// One of the `TYPE_` values.
    pub kind: u64,
    /// CRC-32C over all contents so far.
    pub crc: u32,
    /// The content.
    pub data: &'b [u8],
}

impl<'b> Record<'b> {
    /// Decodes a frame's bytes without padding.
    pub fn decode(message: &'b [u8]) -> Result<Record<'b>, ProtoError> {
        let mut record = Record { kind: 0, crc: 0, data: &[] };
        for field in Fields::new(message) {
            match field? {
                (1, value) => record.kind = value.uint()?,
                // A uint32 field: the Go code keeps the low half, too.
                (2, value) => record.crc = value.uint()? as u32,
                (3, value) => record.data = value.bytes()?,
                _ => {}
            }
        }
        Ok(record)
    }
}

/// Encodes records one after another, with the checksum chained through them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordEncoder {
    crc: u32,
    out: Vec<u8>,
}

impl RecordEncoder {
    /// An encoder that goes on from the checksum of the last record before, 0 for a new log.
    pub fn resume(crc: u32) -> RecordEncoder {
        RecordEncoder { crc, out: Vec::new() }
    }

    /// Appends a record.
    pub fn push(&mut self, kind: u64, data: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, data);
        let mut message = Vec::with_capacity(data.len() + 32);
        put_uint(&mut message, 1, kind);
        put_uint(&mut message, 2, u64::from(self.crc));
        if !data.is_empty() {
            put_bytes(&mut message, 3, data);
        }
        let (field, padding) = frame_of(message.len());
        self.out.extend_from_slice(&field.to_le_bytes());
        self.out.extend_from_slice(&message);
        self.out.resize(self.out.len() + padding, 0);
    }

    /// The records' bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }
}

/// The length field and the padding of a record: records start at multiples of eight.
fn frame_of(length: usize) -> (u64, usize) {
    let padding = length.next_multiple_of(8) - length;
    let mark = if padding > 0 { 0x80 | padding as u64 } else { 0 };
    (length as u64 | mark << 56, padding)
}

/// Splits a length field into bytes of the record and bytes of padding.
pub fn decode_frame(field: u64) -> (u64, u64) {
    let length = field & (u64::MAX >> 8);
    let padding = if field >> 63 == 1 { field >> 56 & 0x7 } else { 0 };
    (length, padding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_come_back() {
        for length in 0..40 {
            let (field, padding) = frame_of(length);
            assert_eq!(decode_frame(field), (length as u64, padding as u64));
            assert_eq!((length + padding) % 8, 0);
        }
    }

    proptest! {
        #[test]
        fn contents_come_back(member in 1u64.., cluster in 1u64.., numbers: [u64; 3], data: Vec<u8>, voters: Vec<u64>) {
            let metadata = Metadata { member: MemberId(member), cluster: ClusterId(cluster) };
            prop_assert_eq!(Metadata::decode(&metadata.encode()), Ok(metadata));
            let state = HardState { term: numbers[0], vote: numbers[1], commit: numbers[2] };
            prop_assert_eq!(HardState::decode(&state.encode()), Ok(state));
            let (term, index) = (Term(numbers[0]), RaftIndex(numbers[1]));
            let entry = Entry { kind: EntryKind::ConfChange, term, index, data: &data };
            let message = entry.encode();
            prop_assert_eq!(Entry::decode(&message), Ok(entry));
            let conf_state = Some(ConfState { voters: voters.clone(), learners: voters });
            let snapshot = SnapshotRecord { index: numbers[0], term: numbers[1], conf_state };
            prop_assert_eq!(SnapshotRecord::decode(&snapshot.encode()), Ok(snapshot));
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = (Metadata::decode(&bytes), HardState::decode(&bytes), Entry::decode(&bytes).is_ok());
            let _ = (SnapshotRecord::decode(&bytes), Record::decode(&bytes).is_ok());
        }
    }
}
