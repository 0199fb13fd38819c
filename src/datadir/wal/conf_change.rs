//! Changes of the membership, as they stand in the log.
//!
//! Sources: raft `raftpb/raft.proto`; etcd `server/etcdserver/api/membership/cluster.go` (`ConfigChangeContext`) for the
//! context: the JSON of the member, with `isPromote` if a learner becomes a voter.

use serde::Deserialize;

use crate::datadir::proto::{Fields, ProtoError, Value};
use crate::ids::{MemberId, RaftIndex, Term};

/// What an entry does to the membership, if etcd accepts it when it applies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfChange {
    /// A member is added, as a voter.
    AddVoter {
        /// Its ID.
        member: MemberId,
        /// Its peer URLs; etcd refuses one that another member has.
        peer_urls: Vec<String>,
    },
    /// A member is added, as a learner.
    AddLearner {
        /// Its ID.
        member: MemberId,
        /// Its peer URLs.
        peer_urls: Vec<String>,
    },
    /// A learner becomes a voter.
    Promote(MemberId),
    /// A member is removed.
    Remove(MemberId),
    /// A member's peer URLs change.
    Update {
        /// Its ID.
        member: MemberId,
        /// Its new peer URLs.
        peer_urls: Vec<String>,
    },
    /// Nothing: the leader put it in the place of a change that it refused.
    Nothing,
}

/// A change and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedChange {
    /// The term in which it was proposed.
    pub term: Term,
    /// Its place.
    pub index: RaftIndex,
    /// What it does.
    pub change: ConfChange,
}

/// The part of `ConfigChangeContext` that counts. Members that formed the cluster have no `isPromote`.
#[derive(Default, Deserialize)]
struct Context {
    #[serde(default, rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(default, rename = "isPromote")]
    is_promote: bool,
}

impl Context {
    fn decode(json: &[u8]) -> Result<Context, ProtoError> {
        if json.is_empty() { Ok(Context::default()) } else { serde_json::from_slice(json).map_err(|_| ProtoError) }
    }

    fn urls(self) -> Vec<String> {
        self.peer_urls.unwrap_or_default()
    }
}

impl ConfChange {
    /// Decodes `raftpb.ConfChange` {1 ID, 2 type, 3 member, 4 context}.
    pub fn decode(message: &[u8]) -> Result<ConfChange, ProtoError> {
        let (mut kind, mut member, mut context) = (0, 0, &[][..]);
        for field in Fields::new(message) {
            match field? {
                (2, value) => kind = value.uint()?,
                (3, value) => member = value.uint()?,
                (4, value) => context = value.bytes()?,
                _ => {}
            }
        }
        ConfChange::of(kind, member, context)
    }

    /// Decodes `raftpb.ConfChangeV2` {1 transition, 2 changes, 3 context}, which etcd up to 3.7 does not write. More than
    /// one change, or an explicit transition, would make a joint configuration: refused, as in a `ConfState`.
    pub fn decode_v2(message: &[u8]) -> Result<ConfChange, ProtoError> {
        let (mut single, mut context) = (None, &[][..]);
        for field in Fields::new(message) {
            match field? {
                (1, value) if value.uint()? != 0 => return Err(ProtoError),
                (2, Value::Bytes(change)) if single.is_none() => single = Some(change),
                (2, _) => return Err(ProtoError),
                (3, value) => context = value.bytes()?,
                _ => {}
            }
        }
        let Some(single) = single else { return Ok(ConfChange::Nothing) };
        let (mut kind, mut member) = (0, 0);
        for field in Fields::new(single) {
            match field? {
                (1, value) => kind = value.uint()?,
                (2, value) => member = value.uint()?,
                _ => {}
            }
        }
        ConfChange::of(kind, member, context)
    }

    fn of(kind: u64, member: u64, context: &[u8]) -> Result<ConfChange, ProtoError> {
        if member == 0 {
            return Ok(ConfChange::Nothing);
        }
        let member = MemberId(member);
        Ok(match kind {
            0 => {
                let context = Context::decode(context)?;
                if context.is_promote {
                    ConfChange::Promote(member)
                } else {
                    ConfChange::AddVoter { member, peer_urls: context.urls() }
                }
            }
            1 => ConfChange::Remove(member),
            2 => ConfChange::Update { member, peer_urls: Context::decode(context)?.urls() },
            3 => ConfChange::AddLearner { member, peer_urls: Context::decode(context)?.urls() },
            _ => return Err(ProtoError),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::proto::{put_bytes, put_uint};
    use proptest::prelude::*;

    fn encode(kind: u64, member: u64, context: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_uint(&mut out, 1, 99);
        put_uint(&mut out, 2, kind);
        put_uint(&mut out, 3, member);
        put_bytes(&mut out, 4, context.as_bytes());
        out
    }

    #[test]
    fn each_kind_is_read_with_its_context() {
        let urls = vec!["http://a:1".to_owned()];
        let member = MemberId(7);
        for (kind, context, want) in [
            (
                0,
                r#"{"id":7,"peerURLs":["http://a:1"],"name":"a"}"#,
                ConfChange::AddVoter { member, peer_urls: urls.clone() },
            ),
            (0, r#"{"id":7,"peerURLs":null,"isPromote":true}"#, ConfChange::Promote(member)),
            (
                0,
                r#"{"id":7,"peerURLs":["http://a:1"],"isPromote":false}"#,
                ConfChange::AddVoter { member, peer_urls: urls.clone() },
            ),
            (1, "", ConfChange::Remove(member)),
            (2, r#"{"id":7,"peerURLs":["http://a:1"]}"#, ConfChange::Update { member, peer_urls: urls.clone() }),
            (
                3,
                r#"{"id":7,"peerURLs":["http://a:1"],"isLearner":true}"#,
                ConfChange::AddLearner { member, peer_urls: urls.clone() },
            ),
        ] {
            assert_eq!(ConfChange::decode(&encode(kind, 7, context)), Ok(want), "{kind} {context}");
        }
        assert_eq!(ConfChange::decode(&encode(1, 0, "")), Ok(ConfChange::Nothing));
        // 3.7 leaves out a type that is zero.
        let mut short = Vec::new();
        put_uint(&mut short, 3, 7);
        put_bytes(&mut short, 4, br#"{"id":7,"isPromote":true}"#);
        assert_eq!(ConfChange::decode(&short), Ok(ConfChange::Promote(member)));
        for (kind, context) in [(4, ""), (0, "{"), (0, "7")] {
            assert_eq!(ConfChange::decode(&encode(kind, 7, context)), Err(ProtoError), "{kind} {context}");
        }
    }

    #[test]
    fn the_second_form_is_read_and_joint_configurations_are_refused() {
        let single = |kind, member| {
            let mut out = Vec::new();
            put_uint(&mut out, 1, kind);
            put_uint(&mut out, 2, member);
            out
        };
        let message = |transition, changes: &[Vec<u8>]| {
            let mut out = Vec::new();
            put_uint(&mut out, 1, transition);
            changes.iter().for_each(|change| put_bytes(&mut out, 2, change));
            out
        };
        assert_eq!(ConfChange::decode_v2(&message(0, &[single(1, 7)])), Ok(ConfChange::Remove(MemberId(7))));
        assert_eq!(ConfChange::decode_v2(&message(0, &[])), Ok(ConfChange::Nothing));
        assert_eq!(ConfChange::decode_v2(&message(0, &[single(1, 7), single(1, 8)])), Err(ProtoError));
        assert_eq!(ConfChange::decode_v2(&message(1, &[single(1, 7)])), Err(ProtoError));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = (ConfChange::decode(&bytes), ConfChange::decode_v2(&bytes));
        }
    }
}
