//! The record of what we issued.
//!
//! Only a certificate that we issued is ever replaced. One that came with a mounted Secret belongs to somebody else,
//! who renews it in his own way and would be surprised by ours, so the two must be told apart; nothing in a
//! certificate does that, since ours look like kubeadm's on purpose. Hence a file beside them, `syncer-issued.json`,
//! with the SHA-256 of each file that we issued:
//!
//! ```json
//! {"version":1,"issued":{"etcd/server.crt":["<sha256 of the file, hex>"]}}
//! ```
//!
//! It is durable before the file that it speaks of, and names the old content too while that is being replaced: a run
//! that is killed in between finds either content to be ours. If the record is lost or damaged then nothing is ours:
//! everything is used, nothing renewed, and an expired certificate is refused like any other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const VERSION: u32 = 1;

/// What we issued: certificates and kubeconfigs, by path and SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    issued: BTreeMap<String, Vec<String>>,
}

impl Default for Record {
    fn default() -> Self {
        Record { version: VERSION, issued: BTreeMap::new() }
    }
}

impl Record {
    /// Reads the record's file.
    pub fn from_json(bytes: &[u8]) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if record.version == VERSION {
            Ok(record)
        } else {
            Err(format!("version {} is not {VERSION}, which this syncer knows", record.version))
        }
    }

    /// The record's file.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_else(|_| unreachable!("maps of strings are JSON"));
        bytes.push(b'\n');
        bytes
    }

    /// Whether we issued `bytes` as `file`.
    pub fn issued(&self, file: &str, bytes: &[u8]) -> bool {
        self.issued.get(file).is_some_and(|hashes| hashes.contains(&hash(bytes)))
    }

    /// Notes that `new` is about to replace `old`, if there is an old content.
    pub fn replace(&mut self, file: &str, old: Option<&[u8]>, new: &[u8]) {
        let old = old.filter(|old| self.issued(file, old)).map(hash);
        self.issued.insert(file.to_owned(), old.into_iter().chain([hash(new)]).collect());
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_contents_are_ours_while_one_replaces_the_other() {
        let mut record = Record::default();
        record.replace("a.crt", Some(b"mounted"), b"one");
        assert!(record.issued("a.crt", b"one") && !record.issued("a.crt", b"mounted"));
        record.replace("a.crt", Some(b"one"), b"two");
        let record = Record::from_json(&record.to_json()).unwrap();
        assert!(record.issued("a.crt", b"one") && record.issued("a.crt", b"two") && !record.issued("b.crt", b"two"));
        let mut record = record;
        record.replace("a.crt", Some(b"two"), b"three");
        assert!(!record.issued("a.crt", b"one"));
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        for bad in [&b""[..], b"{", b"[]", b"{\"version\":2,\"issued\":{}}", b"{\"version\":1,\"issued\":[]}"] {
            assert!(Record::from_json(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
