//! The members as the backend lists them: what etcd has made of the log up to the backend's consistent index.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::bolt::{BoltError, BoltReader};
use super::schema;
use crate::disk::at;
use crate::ids::{MemberId, RaftIndex, Revision};

/// More members, removed ones included, than any cluster has had.
const MAX_MEMBERS: usize = 100_000;

/// A member as etcd tells it: in bucket `members`, over HTTP and over gRPC. The first two are this JSON
/// (`membership.Member` in `server/etcdserver/api/membership/member.go`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its ID.
    #[serde(deserialize_with = "number")]
    pub id: MemberId,
    /// Its name; empty until it has started for the first time.
    #[serde(default)]
    pub name: String,
    /// Its peer URLs.
    #[serde(default, rename = "peerURLs", deserialize_with = "or_none")]
    pub peer_urls: Vec<String>,
    /// Its client URLs; empty until it has started for the first time.
    #[serde(default, rename = "clientURLs", deserialize_with = "or_none")]
    pub client_urls: Vec<String>,
    /// Whether it does not vote.
    #[serde(default, rename = "isLearner")]
    pub learner: bool,
}

/// Here an ID is a number, not the hexadecimal text that it is elsewhere.
fn number<'de, D: Deserializer<'de>>(json: D) -> Result<MemberId, D::Error> {
    u64::deserialize(json).map(MemberId)
}

/// Go writes a list that was never made as null.
fn or_none<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(json).map(Option::unwrap_or_default)
}

/// What a backend says beside its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMembers {
    /// The members, by ID.
    pub members: Vec<Member>,
    /// The IDs of removed members.
    pub removed: BTreeSet<MemberId>,
    /// The index up to which the log is applied to it.
    pub consistent_index: RaftIndex,
    /// The store's revision.
    pub revision: Revision,
}

/// Why a backend does not tell its members.
#[derive(Debug, Error)]
pub enum MembersError {
    /// The file is damaged or cannot be read.
    #[error("read the members of the backend")]
    Backend(#[from] BoltError),
    /// A member that is not as etcd stores one.
    #[error("the backend's member {0:?} is not valid")]
    BadMember(String),
}

/// Reads members, consistent index and revision of a backend file.
pub fn stored_members(backend: &Path) -> Result<StoredMembers, MembersError> {
    let file = File::open(backend).map_err(|e| BoltError::Io(at(backend, e)))?;
    let reader = BoltReader::open(file)?;
    let mut found = StoredMembers {
        members: Vec::new(),
        removed: BTreeSet::new(),
        consistent_index: RaftIndex(0),
        revision: revision(&reader)?,
    };
    let bad = |key: &[u8]| MembersError::BadMember(String::from_utf8_lossy(key).into_owned());
    let id_of = |key: &[u8]| std::str::from_utf8(key).ok()?.parse::<MemberId>().ok();
    if let Some(bucket) = reader.bucket(schema::BUCKET_MEMBERS)? {
        let mut cursor = reader.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next()? {
            let member: Member = serde_json::from_slice(value).map_err(|_| bad(key))?;
            if id_of(key) != Some(member.id) || found.members.len() == MAX_MEMBERS {
                return Err(bad(key));
            }
            found.members.push(member);
        }
    }
    if let Some(bucket) = reader.bucket(schema::BUCKET_MEMBERS_REMOVED)? {
        let mut cursor = reader.cursor(&bucket)?;
        while let Some((key, _)) = cursor.next()? {
            if found.removed.len() == MAX_MEMBERS {
                return Err(bad(key));
            }
            found.removed.insert(id_of(key).ok_or_else(|| bad(key))?);
        }
    }
    if let Some(meta) = reader.bucket(schema::BUCKET_META)? {
        let index = reader.get(&meta, schema::META_CONSISTENT_INDEX)?;
        let index = index.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        found.consistent_index = RaftIndex(index.unwrap_or(0));
    }
    found.members.sort_by_key(|member| member.id);
    Ok(found)
}

/// The store's revision as etcd takes it at start (`mvcc/kvstore.go`, `restore`): the greatest of the last key's and of
/// the revisions of compaction; 1 if there is none.
pub fn revision(reader: &BoltReader<File>) -> Result<Revision, BoltError> {
    let mut newest = Revision(1);
    if let Some(bucket) = reader.bucket(schema::BUCKET_KEY)?
        && let Some((key, _)) = reader.last(&bucket)?
        && let Some(last) = schema::decode_revision_key(&key)
    {
        newest = newest.max(last.revision);
    }
    Ok(newest.max(compacted(reader)?))
}

/// The revision up to which compaction was begun or done; 0 if never.
pub fn compacted(reader: &BoltReader<File>) -> Result<Revision, BoltError> {
    let Some(meta) = reader.bucket(schema::BUCKET_META)? else { return Ok(Revision(0)) };
    let mut newest = Revision(0);
    for key in [schema::META_SCHEDULED_COMPACT, schema::META_FINISHED_COMPACT] {
        let mark = reader.get(&meta, key)?.and_then(|bytes| schema::decode_revision_key(&bytes));
        newest = newest.max(mark.map_or(newest, |mark| mark.revision));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::bolt::writer::{BoltWriter, BucketTree};
    use crate::disk::RealDisk;

    type Pairs<'a> = &'a [(&'a [u8], &'a [u8])];

    fn backend(buckets: &[(&str, Pairs<'_>)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db");
        let mut writer = BoltWriter::create(&RealDisk, &path).unwrap();
        for (name, pairs) in buckets {
            let mut tree = BucketTree::new();
            for (key, value) in *pairs {
                writer.put(&mut tree, key, &[value]).unwrap();
            }
            writer.end_bucket(name, tree).unwrap();
        }
        writer.finish().unwrap();
        (home, path)
    }

    #[test]
    fn members_removed_ones_and_revisions_are_read() {
        let (first, last) = (schema::revision_key(Revision(5), 0), schema::revision_key(Revision(9), 2));
        let compacted = schema::revision_key(Revision(12), 0);
        let (_home, path) = backend(&[
            (schema::BUCKET_KEY, &[(&first, b"x"), (&last, b"y")]),
            (
                schema::BUCKET_META,
                &[(schema::META_CONSISTENT_INDEX, &77u64.to_be_bytes()), (schema::META_FINISHED_COMPACT, &compacted)],
            ),
            (
                schema::BUCKET_MEMBERS,
                &[
                    (b"10", br#"{"id":16,"peerURLs":["http://b:1"],"isLearner":true,"clientURLs":null}"#),
                    (b"a", br#"{"id":10,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]}"#),
                ],
            ),
            (schema::BUCKET_MEMBERS_REMOVED, &[(b"c", b"removed")]),
        ]);
        let found = stored_members(&path).unwrap();
        assert_eq!(found.members.iter().map(|m| (m.id.0, m.learner)).collect::<Vec<_>>(), [(10, false), (16, true)]);
        assert_eq!((&*found.members[0].name, &*found.members[0].client_urls[0]), ("a", "http://a:2"));
        assert_eq!(found.removed, BTreeSet::from([MemberId(12)]));
        assert_eq!((found.consistent_index, found.revision), (RaftIndex(77), Revision(12)));
    }

    #[test]
    fn a_member_under_another_s_key_or_without_json_is_refused() {
        for value in [&br#"{"id":11}"#[..], b"{", b"[]"] {
            let (_home, path) = backend(&[(schema::BUCKET_MEMBERS, &[(b"a", value)])]);
            assert!(matches!(stored_members(&path), Err(MembersError::BadMember(key)) if key == "a"));
        }
        let (_home, path) = backend(&[(schema::BUCKET_MEMBERS, &[])]);
        assert_eq!(stored_members(&path).unwrap().revision, Revision(1));
    }
}
