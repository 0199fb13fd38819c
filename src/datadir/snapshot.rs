//! The raft snapshot file (`member/snap/<term>-<index>.snap`): not the data, but the place in the log and the members.
//!
//! Sources: etcd `server/etcdserver/api/snap/{snapshotter.go,snappb/snap.proto}`, raft `raftpb/raft.proto`,
//! `server/etcdserver/api/v2store` for the content, which 3.5 and 3.6 read at boot and 3.7 no longer does.

use std::io;
use std::path::Path;

use serde_json::{Value as Json, json};
use thiserror::Error;

use super::identity::MemberIdentity;
use super::proto::{Fields, ProtoError, put_bytes, put_uint};
use super::schema::raft_attributes_json;
use super::wal::record::ConfState;
use crate::disk::Disk;
use crate::ids::{RaftIndex, Term};

/// Term and index of the raft snapshot of a written data dir: the one entry that adds the member.
pub const RESTORED: (Term, RaftIndex) = (Term(1), RaftIndex(1));

/// The v2 store keeps this many past events; its ring buffer is stored with all its slots.
const EVENT_SLOTS: usize = 1000;
/// Go's zero time, for nodes that do not expire.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A raft snapshot file's name.
pub fn file_name(term: Term, index: RaftIndex) -> String {
    format!("{:016x}-{:016x}.snap", term.0, index.0)
}

/// Term and index from a raft snapshot file's name.
pub fn parse_file_name(name: &str) -> Option<(Term, RaftIndex)> {
    let (term, index) = name.strip_suffix(".snap")?.split_once('-')?;
    Some((Term(hex16(term)?), RaftIndex(hex16(index)?)))
}

/// Sixteen lower-case hex digits.
pub(super) fn hex16(text: &str) -> Option<u64> {
    let canonical = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u64::from_str_radix(text, 16).ok() } else { None }
}

/// Why a raft snapshot file is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapError {
    /// It is empty or not a protobuf message.
    #[error("it is not a raft snapshot")]
    NotASnapshot,
    /// Its checksum does not fit.
    #[error("its checksum does not fit")]
    Checksum,
}

impl From<ProtoError> for SnapError {
    fn from(_: ProtoError) -> SnapError {
        SnapError::NotASnapshot
    }
}

/// The part of a raft snapshot file that we read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftSnapshot {
    /// The term of `index`.
    pub term: Term,
    /// Everything up to here is in the backend.
    pub index: RaftIndex,
    /// The configuration.
    pub conf_state: ConfState,
}

/// Decodes a raft snapshot file.
pub fn decode(file: &[u8]) -> Result<RaftSnapshot, SnapError> {
    let (mut crc, mut data) = (0, &[][..]);
    for field in Fields::new(file) {
        match field? {
            (1, value) => crc = value.uint()? as u32,
            (2, value) => data = value.bytes()?,
            _ => {}
        }
    }
    if data.is_empty() || crc == 0 {
        return Err(SnapError::NotASnapshot);
    }
    if crc32c::crc32c(data) != crc {
        return Err(SnapError::Checksum);
    }
    let mut metadata = &[][..];
    for field in Fields::new(data) {
        if let (2, value) = field? {
            metadata = value.bytes()?;
        }
    }
    let mut snapshot = RaftSnapshot { term: Term(0), index: RaftIndex(0), conf_state: ConfState::default() };
    for field in Fields::new(metadata) {
        match field? {
            (1, value) => snapshot.conf_state = ConfState::decode(value.bytes()?)?,
            (2, value) => snapshot.index = RaftIndex(value.uint()?),
            (3, value) => snapshot.term = Term(value.uint()?),
            _ => {}
        }
    }
    Ok(snapshot)
}

/// The bytes of the raft snapshot file of a new cluster of this one member.
pub fn restored_snapshot(member: &MemberIdentity) -> Vec<u8> {
    let (term, index) = RESTORED;
    let conf_state = ConfState { voters: vec![member.member_id().0], learners: vec![] };
    let mut metadata = Vec::new();
    put_bytes(&mut metadata, 1, &conf_state.encode());
    put_uint(&mut metadata, 2, index.0);
    put_uint(&mut metadata, 3, term.0);
    let mut data = Vec::new();
    put_bytes(&mut data, 1, &v2_store(member));
    put_bytes(&mut data, 2, &metadata);
    let mut file = Vec::new();
    put_uint(&mut file, 1, u64::from(crc32c::crc32c(&data)));
    put_bytes(&mut file, 2, &data);
    file
}

/// Writes the raft snapshot file into `dir`, which must exist. The caller syncs the directory.
pub fn write_snapshot(disk: &dyn Disk, dir: &Path, member: &MemberIdentity) -> io::Result<()> {
    let (term, index) = RESTORED;
    let mut file = disk.create(&dir.join(file_name(term, index)), 0o600)?;
    file.write_at(&restored_snapshot(member), 0)?;
    file.sync()
}

/// The v2 store that holds this one member. Its creation is the store's only event.
fn v2_store(member: &MemberIdentity) -> Vec<u8> {
    let attributes = String::from_utf8_lossy(&raft_attributes_json(member)).into_owned();
    let id = member.member_id().to_string();
    let directory = format!("/0/members/{id}");
    let attributes_path = format!("{directory}/raftAttributes");
    let leaf = node(&attributes_path, 1, &attributes, Json::Null);
    let member_node = node(&directory, 1, "", json!({ "raftAttributes": leaf }));
    let members = node("/0/members", 1, "", json!({ id: member_node }));
    let cluster = node("/0", 0, "", json!({ "members": members }));
    let root = node("/", 0, "", json!({ "0": cluster, "1": node("/1", 0, "", json!({})) }));
    let created = json!({
        "action": "create",
        "node": { "key": attributes_path, "value": attributes, "modifiedIndex": 1, "createdIndex": 1 },
    });
    let mut events = vec![Json::Null; EVENT_SLOTS];
    if let Some(slot) = events.first_mut() {
        *slot = created;
    }
    let queue = json!({ "Events": events, "Size": 1, "Front": 0, "Back": 1, "Capacity": EVENT_SLOTS });
    let counters = [
        "getsSuccess",
        "getsFail",
        "setsSuccess",
        "setsFail",
        "deleteSuccess",
        "deleteFail",
        "updateSuccess",
        "updateFail",
        "createSuccess",
        "createFail",
        "compareAndSwapSuccess",
        "compareAndSwapFail",
        "compareAndDeleteSuccess",
        "compareAndDeleteFail",
        "expireCount",
        "watchers",
    ];
    let stats: serde_json::Map<String, Json> =
        counters.iter().map(|name| (name.to_string(), json!(u8::from(*name == "createSuccess")))).collect();
    let store = json!({
        "Root": root,
        "WatcherHub": { "EventHistory": { "Queue": queue, "StartIndex": 1, "LastIndex": 1 } },
        "CurrentIndex": 1,
        "Stats": stats,
        "CurrentVersion": 2,
    });
    store.to_string().into_bytes()
}

/// A node of the v2 store: a directory has children, a leaf has none (`null`).
fn node(path: &str, index: u64, value: &str, children: Json) -> Json {
    json!({
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": NEVER,
        "Value": value,
        "Children": children,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> MemberIdentity {
        MemberIdentity {
            name: "pod-0".into(),
            peer_urls: vec!["http://127.0.0.1:5".into()],
            client_urls: vec![],
            token: "tok".into(),
        }
    }

    #[test]
    fn it_reads_its_own_file_and_notices_every_flipped_bit() {
        let file = restored_snapshot(&member());
        let want = RaftSnapshot {
            term: Term(1),
            index: RaftIndex(1),
            conf_state: ConfState { voters: vec![member().member_id().0], learners: vec![] },
        };
        assert_eq!(decode(&file), Ok(want.clone()));
        for bit in (0..file.len() * 8).step_by(7) {
            let mut broken = file.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&broken).is_err(), "bit {bit}");
        }
        for length in 0..file.len() {
            assert!(decode(&file[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn names_come_back() {
        assert_eq!(file_name(Term(1), RaftIndex(0x2711)), "0000000000000001-0000000000002711.snap");
        assert_eq!(parse_file_name("0000000000000001-0000000000002711.snap"), Some((Term(1), RaftIndex(0x2711))));
        for wrong in ["0000000000002711.snap.db", "1-1.snap", "000000000000000G-0000000000002711.snap", "db"] {
            assert_eq!(parse_file_name(wrong), None, "{wrong}");
        }
    }
}
