//! What etcd keeps in its backend: buckets, keys and values. Byte maps and decisions: `FORMAT.md`, section 2.
//!
//! Sources: etcd `server/storage/schema/*.go`, `server/storage/mvcc/{revision,hash,kvstore}.go`,
//! `api/mvccpb/kv.proto`, `server/lease/leasepb/lease.proto`, `etcdserver/api/membership/member.go`.

use serde::Serialize;

use super::identity::MemberIdentity;
use super::proto::{Fields, ProtoError, put_bytes, put_length, put_nonzero};
use super::writer::{KeyRecord, LeaseRecord};
use crate::ids::{MemberId, Revision};

/// Revisions and the keys written at them.
pub const BUCKET_KEY: &str = "key";
/// Indexes, revisions of compaction, versions.
pub const BUCKET_META: &str = "meta";
/// Leases.
pub const BUCKET_LEASE: &str = "lease";
/// Alarms raised.
pub const BUCKET_ALARM: &str = "alarm";
/// Cluster version and downgrade.
pub const BUCKET_CLUSTER: &str = "cluster";
/// Members.
pub const BUCKET_MEMBERS: &str = "members";
/// IDs of members that were removed and must not come back.
pub const BUCKET_MEMBERS_REMOVED: &str = "members_removed";

/// Whether authentication is on.
pub const BUCKET_AUTH: &str = "auth";
/// Users.
pub const BUCKET_AUTH_USERS: &str = "authUsers";
/// Roles.
pub const BUCKET_AUTH_ROLES: &str = "authRoles";

/// In `auth`: one byte, 1 where it is on.
pub const AUTH_ENABLED: &[u8] = b"authEnabled";
/// In `meta`: the raft index up to which the backend holds everything, u64 big endian.
pub const META_CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// In `meta`: the raft term of that index, u64 big endian.
pub const META_TERM: &[u8] = b"term";
/// In `meta`: the raft configuration, JSON.
pub const META_CONF_STATE: &[u8] = b"confState";
/// In `meta`: the revision up to which compaction was begun.
pub const META_SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
/// In `meta`: the revision up to which compaction was finished.
pub const META_FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
/// In `meta`: the schema's version, from 3.6 on.
pub const META_STORAGE_VERSION: &[u8] = b"storageVersion";
/// In `cluster`: the version that all members have.
pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// Bytes of a revision as a backend key.
pub const REVISION_BYTES: usize = 17;
/// The longest time to live that etcd grants, in seconds (`lease/lessor.go`, `MaxLeaseTTL`).
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// A revision as a backend key: main i64 big endian, `_`, sub i64 big endian.
pub fn revision_key(revision: Revision, sub: i64) -> [u8; REVISION_BYTES] {
    let mut key = [b'_'; REVISION_BYTES];
    key[..8].copy_from_slice(&revision.0.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// A decoded key of bucket `key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevisionKey {
    /// The transaction's revision.
    pub revision: Revision,
    /// The place within the transaction.
    pub sub: i64,
    /// The key was deleted at this revision.
    pub tombstone: bool,
}

/// Decodes a key of bucket `key`; `None` if it is not one.
pub fn decode_revision_key(bytes: &[u8]) -> Option<RevisionKey> {
    let (revision, tombstone) = match bytes.len() {
        REVISION_BYTES => (bytes, false),
        // etcd takes any other mark for no mark.
        18 => (bytes.get(..REVISION_BYTES)?, bytes.last() == Some(&b't')),
        _ => return None,
    };
    let main = i64::from_be_bytes(revision.get(..8)?.try_into().ok()?);
    let sub = i64::from_be_bytes(revision.get(9..)?.try_into().ok()?);
    if revision.get(8) != Some(&b'_') || main < 0 || sub < 0 {
        return None;
    }
    Some(RevisionKey { revision: Revision(main), sub, tombstone })
}

/// Puts the parts of `mvccpb.KeyValue` around the value into `head` and `tail`, so that the value is not copied.
pub fn encode_key_value(record: &KeyRecord<'_>, head: &mut Vec<u8>, tail: &mut Vec<u8>) {
    head.clear();
    tail.clear();
    if !record.key.is_empty() {
        put_bytes(head, 1, record.key);
    }
    put_nonzero(head, 2, record.create_revision.0);
    put_nonzero(head, 3, record.mod_revision.0);
    put_nonzero(head, 4, record.version);
    if !record.value.is_empty() {
        put_length(head, 5, record.value.len());
    }
    put_nonzero(tail, 6, record.lease);
}

/// Decodes a value of bucket `key`; `sub` is 0, as it stands in the backend's key alone.
pub fn decode_key_value(message: &[u8]) -> Result<KeyRecord<'_>, ProtoError> {
    let mut record = KeyRecord {
        key: &[],
        value: &[],
        create_revision: Revision(0),
        mod_revision: Revision(0),
        sub: 0,
        version: 0,
        lease: 0,
    };
    for field in Fields::new(message) {
        match field? {
            (1, value) => record.key = value.bytes()?,
            (2, value) => record.create_revision = Revision(value.uint()? as i64),
            (3, value) => record.mod_revision = Revision(value.uint()? as i64),
            (4, value) => record.version = value.uint()? as i64,
            (5, value) => record.value = value.bytes()?,
            (6, value) => record.lease = value.uint()? as i64,
            _ => {}
        }
    }
    Ok(record)
}

/// A lease's key: its ID, i64 big endian.
pub fn lease_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// A lease as `leasepb.Lease`.
pub fn encode_lease(lease: &LeaseRecord) -> Vec<u8> {
    let mut out = Vec::new();
    put_nonzero(&mut out, 1, lease.id);
    put_nonzero(&mut out, 2, lease.ttl);
    out
}

/// Decodes a value of bucket `lease`.
pub fn decode_lease(message: &[u8]) -> Result<LeaseRecord, ProtoError> {
    let mut lease = LeaseRecord { id: 0, ttl: 0 };
    for field in Fields::new(message) {
        match field? {
            (1, value) => lease.id = value.uint()? as i64,
            (2, value) => lease.ttl = value.uint()? as i64,
            _ => {}
        }
    }
    Ok(lease)
}

/// `membership.RaftAttributes` as JSON: what the v2 store keeps.
#[derive(Serialize)]
struct RaftAttributes<'m> {
    #[serde(rename = "peerURLs")]
    peer_urls: &'m [String],
}

/// `membership.Member` as JSON: the field order is etcd's.
#[derive(Serialize)]
struct Member<'m> {
    id: u64,
    #[serde(flatten)]
    raft: RaftAttributes<'m>,
    name: &'m str,
    #[serde(rename = "clientURLs", skip_serializing_if = "Option::is_none")]
    client_urls: Option<&'m [String]>,
}

/// The member as bucket `members` holds it. The client URLs are etcd's to publish, unless given.
pub fn member_json(member: &MemberIdentity, client_urls: bool) -> Vec<u8> {
    let urls = sorted(&member.peer_urls);
    let json = Member {
        id: member.member_id().0,
        raft: RaftAttributes { peer_urls: &urls },
        name: &member.name,
        client_urls: Some(member.client_urls.as_slice()).filter(|urls| client_urls && !urls.is_empty()),
    };
    to_json(&json)
}

/// The member's raft attributes as the v2 store holds them.
pub fn raft_attributes_json(member: &MemberIdentity) -> Vec<u8> {
    to_json(&RaftAttributes { peer_urls: &sorted(&member.peer_urls) })
}

/// A raft configuration of one voter, as `meta` holds it.
pub fn conf_state_json(member: MemberId) -> Vec<u8> {
    format!("{{\"voters\":[{}],\"auto_leave\":false}}", member.0).into_bytes()
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("structs of strings and numbers always serialize")
}

/// The first two numbers of a version such as `3.6.0` or `3.6`.
pub fn decode_version(text: &[u8]) -> Option<(u64, u64)> {
    let mut parts = std::str::from_utf8(text).ok()?.splitn(3, '.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_revision_key_has_etcd_s_bytes() {
        assert_eq!(revision_key(Revision(258), 3), *b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        let mut tombstone = revision_key(Revision(1), 0).to_vec();
        tombstone.push(b't');
        let decoded = decode_revision_key(&tombstone).unwrap();
        assert_eq!(decoded, RevisionKey { revision: Revision(1), sub: 0, tombstone: true });
        for wrong in [&tombstone[..16], &[0xFF; 17], &[0; 17], &[]] {
            assert_eq!(decode_revision_key(wrong), None);
        }
    }

    #[test]
    fn a_member_has_etcd_s_json() {
        let member = MemberIdentity {
            name: "pod-0".into(),
            peer_urls: vec!["http://127.0.0.1:5".into()],
            client_urls: vec!["http://127.0.0.1:6".into()],
            token: "tok".into(),
        };
        let json = r#"{"id":18189189590671692361,"peerURLs":["http://127.0.0.1:5"],"name":"pod-0"}"#;
        assert_eq!(String::from_utf8(member_json(&member, false)).unwrap(), json);
        assert_eq!(raft_attributes_json(&member), br#"{"peerURLs":["http://127.0.0.1:5"]}"#);
        assert_eq!(conf_state_json(MemberId(7)), br#"{"voters":[7],"auto_leave":false}"#);
    }

    #[test]
    fn versions() {
        assert_eq!(decode_version(b"3.6.0"), Some((3, 6)));
        assert_eq!(decode_version(b"3.7"), Some((3, 7)));
        assert_eq!(decode_version(b""), None);
        assert_eq!(decode_version(b"3.x"), None);
        assert_eq!(decode_version(b"\xFF.1"), None);
    }

    proptest! {
        #[test]
        fn a_record_comes_back(key: Vec<u8>, value: Vec<u8>, numbers: [i64; 4]) {
            let [create, modified, version, lease] = numbers;
            let record = KeyRecord {
                key: &key,
                value: &value,
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                sub: 0,
                version,
                lease,
            };
            let (mut head, mut tail) = (vec![1], vec![2]);
            encode_key_value(&record, &mut head, &mut tail);
            let message = [head, value.clone(), tail].concat();
            prop_assert_eq!(decode_key_value(&message), Ok(record));
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = (decode_key_value(&bytes), decode_lease(&bytes), decode_revision_key(&bytes), decode_version(&bytes));
        }
    }
}
