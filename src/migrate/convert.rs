//! From rows of kine to records of etcd. Pure.
//!
//! kine keeps no version of a key and reports 0 for it, which in etcd means that the key does not exist. An imported
//! key therefore gets the lowest version that is true: 1 if it was never changed since it was created, else 2. Nothing
//! in Kubernetes compares versions of its own keys with more than that.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::datadir::LeaseRecord;
use crate::ids::Revision;

/// etcd's longest lease (`lease/lessor.go`, `MaxLeaseTTL`), in seconds.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;
/// So many keys share a lease at most: revoking one deletes its keys in a single transaction.
const KEYS_PER_LEASE: u32 = 1000;
/// So many leases that are not full are remembered at most. Beyond that some have fewer keys than they could.
const MAX_OPEN_LEASES: usize = 4096;
/// etcd's `--max-request-bytes` unless set: a larger value can be imported, but not written again.
pub const DEFAULT_REQUEST_BYTES: u64 = 3 << 19;

/// A row as it is stored, its key already text. Only rows that are live.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// `id`: the revision.
    pub id: i64,
    /// `name`.
    pub key: &'a [u8],
    /// `created`, 0 for NULL.
    pub created: i64,
    /// `create_revision`, 0 for NULL; only of meaning if `created` is 0.
    pub create_revision: i64,
    /// `lease`: the time to live in seconds.
    pub ttl: i64,
    /// `value`, empty for NULL.
    pub value: &'a [u8],
}

/// One live key, whatever store it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveKey<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
    /// The place within the transaction that made that revision, from 0.
    pub sub: i64,
    /// At least how many times it was written.
    pub version: i64,
    /// What makes it expire.
    pub lease: KeyLease,
}

/// What makes a key expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyLease {
    /// Nothing.
    #[default]
    None,
    /// A time to live in seconds, as kine stores it; it becomes a lease.
    Ttl(i64),
    /// A lease of etcd's with the time to live that it was granted; 0 if etcd has no lease of this ID, and then the key
    /// never expires.
    Held(LeaseRecord),
}

impl KeyLease {
    /// The time to live that was granted, in seconds; 0 for ever.
    pub const fn ttl(self) -> i64 {
        match self {
            KeyLease::None => 0,
            KeyLease::Ttl(ttl) => ttl,
            KeyLease::Held(lease) => lease.ttl,
        }
    }
}

/// Converts a live row. What had to be changed is counted in `warnings`.
pub fn convert<'a>(row: &Row<'a>, warnings: &mut Warnings) -> LiveKey<'a> {
    let create_revision = if row.created != 0 {
        row.id
    } else {
        let clamped = row.create_revision.clamp(1, row.id);
        if clamped != row.create_revision {
            warnings.create_revisions.note(row.key);
        }
        clamped
    };
    let ttl = row.ttl.clamp(0, MAX_LEASE_TTL);
    if ttl != row.ttl {
        warnings.ttls.note(row.key);
    }
    if row.value.len() as u64 + row.key.len() as u64 > DEFAULT_REQUEST_BYTES {
        warnings.large_values.note(row.key);
    }
    LiveKey {
        key: row.key,
        value: row.value,
        create_revision: Revision(create_revision),
        mod_revision: Revision(row.id),
        sub: 0,
        version: if create_revision == row.id { 1 } else { 2 },
        lease: if ttl > 0 { KeyLease::Ttl(ttl) } else { KeyLease::None },
    }
}

/// Something that was not as it should be and did not stop the import: how often, and one of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How often.
    pub count: u64,
    /// The first key of them, made printable.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub example: Option<String>,
}

impl Count {
    /// Counts one.
    pub fn note(&mut self, key: &[u8]) {
        self.add(1, || printable(key));
    }

    /// Counts several.
    pub fn add(&mut self, count: u64, example: impl FnOnce() -> String) {
        self.count += count;
        if count > 0 && self.example.is_none() {
            self.example = Some(example());
        }
    }
}

/// What an import met and went on from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warnings {
    /// Create revisions that were 0 or above the row's own revision, and were clamped.
    pub create_revisions: Count,
    /// Times to live below 0 (dropped: kine never expires such a key) or above etcd's longest (clamped).
    pub ttls: Count,
    /// Keys whose name is stored as a number: an old layout of kine altered what was written, `007` to `7` say.
    pub numeric_names: Count,
    /// Keys with more than one row below the compacted revision: a compaction broke off or missed rows, and what kine
    /// serves, and is imported, may be an object that was deleted (kine issue 408).
    pub broken_chains: Count,
    /// Keys whose value etcd refuses to take again unless `--max-request-bytes` is raised.
    pub large_values: Count,
    /// A `-wal` whose last transaction cannot be read and is left out. Without its `-shm` nothing tells whether it had
    /// been committed: a killed writer's was not.
    #[serde(default)]
    pub torn_wals: Count,
    /// Keys attached to a lease that etcd does not know: they never expire.
    #[serde(default)]
    pub lost_leases: Count,
    /// A snapshot file without the checksum that etcd puts at its end: a copy of a backend file.
    #[serde(default)]
    pub no_checksums: Count,
    /// Users and roles of a store with authentication, which are left behind.
    #[serde(default)]
    pub auth: Count,
}

impl Warnings {
    /// One line for each thing that happened.
    pub fn lines(&self) -> Vec<String> {
        [
            (&self.create_revisions, "create revisions were out of range and have been clamped"),
            (&self.ttls, "times to live were out of range and have been clamped"),
            (&self.numeric_names, "keys are stored as numbers; an old kine may have altered their names"),
            (
                &self.broken_chains,
                "keys have leftovers of an incomplete compaction; they are imported as kine serves them",
            ),
            (&self.large_values, "values are larger than etcd takes by default; etcd's limit is raised for them"),
            (
                &self.torn_wals,
                "-wal ends in a transaction that cannot be read and is left out, as a writer that was killed leaves it",
            ),
            (&self.lost_leases, "keys are attached to leases that etcd does not know; they never expire"),
            (&self.no_checksums, "file has no checksum at its end, so damage within values is not noticed"),
            (&self.auth, "users and roles are left behind, with authentication"),
        ]
        .into_iter()
        .filter(|(count, _)| count.count > 0)
        .map(|(count, text)| match &count.example {
            Some(key) => format!("{} {text} (for one, {key})", count.count),
            None => format!("{} {text}", count.count),
        })
        .collect()
    }
}

/// Gives each key with a time to live a lease, and each lease at most 1000 keys of the same time to live, in the order
/// in which the keys come. The IDs are the same for the same keys; they lie far from those that etcd generates, whose
/// upper two bytes are the member's ID and a clock.
#[derive(Debug, Default)]
pub struct LeaseAssigner {
    open: HashMap<i64, (i64, u32)>,
    leases: Vec<LeaseRecord>,
    held: usize,
}

/// `sync` in the upper half of an ID, a number from 1 in the lower.
const LEASE_ID_BASE: i64 = 0x7379_6e63 << 32;

impl LeaseAssigner {
    /// Goes on from leases that the source holds.
    pub fn with(held: Vec<LeaseRecord>) -> Self {
        LeaseAssigner { open: HashMap::new(), held: held.len(), leases: held }
    }

    /// The ID of the next key's lease, 0 for none.
    pub fn assign(&mut self, lease: KeyLease) -> i64 {
        let ttl = match lease {
            KeyLease::Held(lease) => return lease.id,
            KeyLease::Ttl(ttl) if ttl > 0 => ttl,
            KeyLease::Ttl(_) | KeyLease::None => return 0,
        };
        if let Some((id, keys)) = self.open.get_mut(&ttl)
            && *keys < KEYS_PER_LEASE
        {
            *keys += 1;
            return *id;
        }
        if self.open.len() >= MAX_OPEN_LEASES {
            self.open.clear();
        }
        let id = LEASE_ID_BASE + 1 + (self.leases.len() - self.held) as i64;
        self.open.insert(ttl, (id, 1));
        self.leases.push(LeaseRecord { id, ttl });
        id
    }

    /// Every lease that was held or given out.
    pub fn into_leases(self) -> Vec<LeaseRecord> {
        self.leases
    }
}

/// A key for a message: printable ASCII as it is, the rest escaped, at most 200 bytes of it.
pub fn printable(key: &[u8]) -> String {
    let shown = key.get(..200).unwrap_or(key);
    let mut text: String = shown.escape_ascii().to_string();
    if shown.len() < key.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, created: i64, create_revision: i64, ttl: i64) -> Row<'static> {
        Row { id, key: b"/a", created, create_revision, ttl, value: b"" }
    }

    #[test]
    fn create_revision_and_version_follow_the_row() {
        for (input, create, version, clamped) in [
            (row(7, 1, 0, 0), 7, 1, 0),
            // A created row's column is not looked at: kine does not either.
            (row(7, 1, 3, 0), 7, 1, 0),
            (row(7, 0, 3, 0), 3, 2, 0),
            (row(7, 0, 0, 0), 1, 2, 1),
            (row(7, 0, -5, 0), 1, 2, 1),
            (row(7, 0, 9, 0), 7, 1, 1),
            (row(1, 0, 0, 0), 1, 1, 1),
        ] {
            let mut warnings = Warnings::default();
            let key = convert(&input, &mut warnings);
            assert_eq!((key.create_revision.0, key.version), (create, version), "{input:?}");
            assert_eq!(warnings.create_revisions.count, clamped, "{input:?}");
            assert_eq!(key.mod_revision.0, input.id);
        }
    }

    #[test]
    fn absurd_times_to_live_are_clamped_and_counted() {
        for (ttl, want, counted) in [
            (0, 0, 0),
            (15, 15, 0),
            (-1, 0, 1),
            (i64::MIN, 0, 1),
            (MAX_LEASE_TTL, MAX_LEASE_TTL, 0),
            (i64::MAX, MAX_LEASE_TTL, 1),
        ] {
            let mut warnings = Warnings::default();
            assert_eq!(convert(&row(2, 1, 0, ttl), &mut warnings).lease.ttl(), want, "{ttl}");
            assert_eq!(warnings.ttls.count, counted, "{ttl}");
        }
    }

    #[test]
    fn a_value_that_etcd_would_refuse_is_counted() {
        let value = vec![0; DEFAULT_REQUEST_BYTES as usize];
        let mut warnings = Warnings::default();
        convert(&Row { value: &value, ..row(2, 1, 0, 0) }, &mut warnings);
        convert(&Row { value: &value[..100], ..row(3, 1, 0, 0) }, &mut warnings);
        assert_eq!(warnings.large_values, Count { count: 1, example: Some("/a".into()) });
        assert_eq!(warnings.lines().len(), 1);
    }

    #[test]
    fn a_lease_has_at_most_a_thousand_keys_of_one_time_to_live() {
        let ttl_of = |i: i32| KeyLease::Ttl(if i % 2 == 0 { 3660 } else { 15 });
        let mut assigner = LeaseAssigner::default();
        let ids: Vec<i64> = (0..2500).map(|i| assigner.assign(ttl_of(i))).collect();
        assert_eq!(assigner.assign(KeyLease::None), 0);
        let leases = assigner.into_leases();
        assert_eq!(leases.len(), 4);
        for lease in &leases {
            assert!(lease.id > 0);
            let keys: Vec<_> = ids.iter().enumerate().filter(|(_, id)| **id == lease.id).map(|(i, _)| i).collect();
            assert!((1..=1000).contains(&keys.len()));
            assert!(keys.iter().all(|i| lease.ttl == if i % 2 == 0 { 3660 } else { 15 }));
        }
        let mut again = LeaseAssigner::default();
        let same: Vec<i64> = (0..2500).map(|i| again.assign(ttl_of(i))).collect();
        assert_eq!(ids, same);
    }

    #[test]
    fn a_lease_that_the_source_holds_stays_what_it_is() {
        let held = LeaseRecord { id: 0x7587_0000_0000_0001, ttl: 60 };
        let mut assigner = LeaseAssigner::with(vec![held]);
        assert_eq!(assigner.assign(KeyLease::Held(held)), held.id);
        // One that is not there any more keeps its ID, and is not brought back.
        assert_eq!(assigner.assign(KeyLease::Held(LeaseRecord { id: 9, ttl: 0 })), 9);
        assert_eq!(assigner.assign(KeyLease::Ttl(60)), LEASE_ID_BASE + 1);
        assert_eq!(assigner.into_leases(), [held, LeaseRecord { id: LEASE_ID_BASE + 1, ttl: 60 }]);
    }

    #[test]
    fn endless_times_to_live_do_not_fill_the_memory() {
        let mut assigner = LeaseAssigner::default();
        for ttl in 1..20_000 {
            assigner.assign(KeyLease::Ttl(ttl));
        }
        assert!(assigner.open.len() <= MAX_OPEN_LEASES);
        let leases = assigner.into_leases();
        let ids: std::collections::HashSet<_> = leases.iter().map(|l| l.id).collect();
        assert_eq!(ids.len(), leases.len());
    }

    #[test]
    fn a_key_in_a_message_is_printable_and_short() {
        assert_eq!(printable(b"/a\0\xff\n"), "/a\\x00\\xff\\n");
        assert_eq!(printable(&[b'a'; 300]).len(), 203);
    }
}
