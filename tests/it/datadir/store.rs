//! Made-up stores, and how they are written into a data dir.

use syncer::datadir::{DatadirWriter, KeyRecord, LeaseRecord, MemberIdentity, WrittenDatadir};
use syncer::disk::RealDisk;
use syncer::ids::Revision;

use crate::support::etcd::EtcdSpec;

/// A key as it is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create: i64,
    pub modified: i64,
    pub sub: i64,
    pub version: i64,
    pub lease: i64,
}

/// A store to be written.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub name: &'static str,
    pub keys: Vec<Key>,
    pub leases: Vec<LeaseRecord>,
    pub revision: i64,
}

impl Store {
    /// No key at all, at revision 4711.
    pub fn without_keys() -> Store {
        Store { name: "zero keys", revision: 4711, ..Store::default() }
    }

    /// One key, which is also the newest revision.
    pub fn one_key() -> Store {
        let key = Key { create: 7, modified: 7, ..plain(b"/registry/only", b"value") };
        Store { name: "one key", keys: vec![key], revision: 7, ..Store::default() }
    }

    /// Thousands of keys of very different sizes, with leases, empty and huge values, bytes that are no text, gaps
    /// between revisions, and several keys of one transaction.
    pub fn large(count: i64) -> Store {
        let leases = vec![LeaseRecord { id: 1, ttl: 3600 }, LeaseRecord { id: i64::MAX, ttl: 7200 }];
        let mut keys = Vec::new();
        for n in 0..count {
            let size = match n % 97 {
                0 => 0,
                1 => 9000,
                _ => (n * 7919 % 1500) as usize,
            };
            let key = if n % 89 == 0 {
                [b"/\0\xff\xfe".as_slice(), &n.to_be_bytes()].concat()
            } else {
                format!("/registry/things/{:07}", n * 7 % count * 10 + n % 7).into_bytes()
            };
            let value = (0..size).map(|at| (at as i64 * 31 + n) as u8).collect();
            let lease = match n % 50 {
                3 => 1,
                4 => i64::MAX,
                _ => 0,
            };
            // Three keys of each hundred share the revision of the one before.
            let (modified, sub) = if n % 100 < 4 { (1000 + (n - n % 100) * 3, n % 100) } else { (1000 + n * 3, 0) };
            keys.push(Key {
                key,
                value,
                create: (modified - n % 400).max(1),
                modified,
                sub,
                version: 1 + n % 400,
                lease,
            });
        }
        keys.push(Key {
            modified: 1000 + count * 3,
            create: 2,
            version: 1 << 40,
            value: pattern(1_900_000),
            ..plain(b"/big", b"")
        });
        Store { name: "large", keys, leases, revision: 1000 + count * 4 }
    }

    /// Writes the data dir of a member started by `spec`.
    pub fn write(&self, spec: &EtcdSpec) -> WrittenDatadir {
        let mut writer = DatadirWriter::create(&RealDisk, &spec.data_dir).expect("begin the data dir");
        for key in &self.keys {
            writer.put(&key.record()).expect("write a key");
        }
        writer.finish(Revision(self.revision), &self.leases, &identity(spec)).expect("finish the data dir")
    }
}

impl Key {
    pub fn record(&self) -> KeyRecord<'_> {
        KeyRecord {
            key: &self.key,
            value: &self.value,
            create_revision: Revision(self.create),
            mod_revision: Revision(self.modified),
            sub: self.sub,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// The identity of a member started by `spec`.
pub fn identity(spec: &EtcdSpec) -> MemberIdentity {
    MemberIdentity {
        name: spec.name.clone(),
        peer_urls: vec![spec.peer_url()],
        client_urls: vec![spec.client_url()],
        token: spec.token.clone(),
    }
}

/// A key that was written once, at revision 1.
pub fn plain(key: &[u8], value: &[u8]) -> Key {
    Key { key: key.to_vec(), value: value.to_vec(), create: 1, modified: 1, sub: 0, version: 1, lease: 0 }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}
