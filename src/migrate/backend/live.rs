//! Which rows of bucket `key` are live, in bounded memory.
//!
//! The bucket is in the order of revisions, so a key is live if the last row of its name is no tombstone, which only the
//! end of the bucket tells. A walk keeps the last row of each name in a table of bounded size, by a hash of the name. If
//! the names do not fit, it goes on with the lower half of the hashes, and the next walk does the rest: one walk for up to
//! [`NAMES_AT_ONCE`] live names, more for more. What is kept in the end is one bit for each row.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use super::error::BackendError;
use super::rows::{Row, walk};
use crate::datadir::bolt::{BoltReader, Bucket};

/// So many names are kept at once. The table has room for twice as many, so that it never grows: 17 bytes for each of
/// 2^21 places are 34 MiB, of which only what is used is ever touched.
pub const NAMES_AT_ONCE: usize = 900_000;

/// Which rows are live, by their place in the bucket.
#[derive(Debug, Default)]
pub struct LiveRows {
    bits: Vec<u64>,
    /// Rows in all.
    pub rows: u64,
    /// Live ones.
    pub keys: u64,
}

impl LiveRows {
    /// Whether the row at this place is live.
    pub fn contains(&self, place: u32) -> bool {
        self.bits.get(place as usize / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    fn insert(&mut self, place: u32) {
        let word = place as usize / 64;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if let Some(bits) = self.bits.get_mut(word) {
            *bits |= 1 << (place % 64);
        }
        self.keys += 1;
    }
}

/// 96 bits of a hash of a name, keyed at random: two of ten million names are the same with a probability of 1e-15, and
/// nobody can choose names that are.
type NameHash = [u32; 3];

/// The table's own hash of what is one already.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u32(&mut self, word: u32) {
        // Both ends of it are used: for the place, and to tell places apart.
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// Finds the live rows, with at most `at_once` names in memory.
pub fn find(reader: &BoltReader<File>, bucket: &Bucket, at_once: usize) -> Result<LiveRows, BackendError> {
    let keys = [RandomState::new(), RandomState::new()];
    let hash = |name: &[u8]| -> NameHash {
        let [a, b] = [0, 1].map(|n| keys.get(n).map_or(0, |key: &RandomState| key.hash_one(name)));
        [(a >> 32) as u32, a as u32, b as u32]
    };
    let mut live = LiveRows::default();
    // Twice as many, so that places of removed names never make it grow.
    let mut newest: HashMap<NameHash, u32, BuildHasherDefault<Folded>> =
        HashMap::with_capacity_and_hasher(2 * at_once, BuildHasherDefault::default());
    let mut begin = 0_u64;
    while begin < 1 << 32 {
        let mut end = 1_u64 << 32;
        newest.clear();
        let mut rows = 0;
        walk(reader, bucket, |row: &Row<'_>| {
            rows = u64::from(row.place) + 1;
            let name = hash(row.record.key);
            if !(begin..end).contains(&u64::from(name[0])) {
                return Ok(());
            }
            if row.tombstone {
                newest.remove(&name);
                return Ok(());
            }
            newest.insert(name, row.place);
            while newest.len() > at_once {
                if end - begin == 1 {
                    return Err(BackendError::TooManyNames);
                }
                end = begin + (end - begin) / 2;
                newest.retain(|name, _| u64::from(name[0]) < end);
            }
            Ok(())
        })?;
        live.rows = rows;
        newest.values().for_each(|place| live.insert(*place));
        begin = end;
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::bolt::BoltWriter;
    use crate::datadir::bolt::writer::BucketTree;
    use crate::datadir::{KeyRecord, schema};
    use crate::disk::RealDisk;
    use crate::ids::Revision;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Writes to names by number, in transactions of up to three; a deletion is `true`.
    fn check(writes: &[(u16, bool)], at_once: usize) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db");
        let mut writer = BoltWriter::create(&RealDisk, &path).unwrap();
        let mut tree = BucketTree::new();
        let mut model = BTreeMap::new();
        for (place, (name, deleted)) in writes.iter().enumerate() {
            let (revision, sub) = (Revision(2 + place as i64 / 3), place as i64 % 3);
            let key = format!("/key/{name}");
            let record = KeyRecord {
                key: key.as_bytes(),
                value: b"",
                create_revision: revision,
                mod_revision: revision,
                sub,
                version: 1,
                lease: 0,
            };
            let (mut head, mut tail) = (Vec::new(), Vec::new());
            schema::encode_key_value(&record, &mut head, &mut tail);
            let mut row = schema::revision_key(revision, sub).to_vec();
            if *deleted {
                row.push(b't');
                model.remove(name);
            } else {
                model.insert(*name, place as u32);
            }
            writer.put(&mut tree, &row, &[&head, &tail]).unwrap();
        }
        writer.end_bucket(schema::BUCKET_KEY, tree).unwrap();
        writer.finish().unwrap();
        let reader = BoltReader::open(File::open(&path).unwrap()).unwrap();
        let bucket = reader.bucket(schema::BUCKET_KEY).unwrap().unwrap();
        let live = find(&reader, &bucket, at_once).unwrap();
        assert_eq!((live.rows, live.keys), (writes.len() as u64, model.len() as u64));
        let mut want: Vec<u32> = model.into_values().collect();
        want.sort_unstable();
        let found: Vec<u32> = (0..writes.len() as u32 + 100).filter(|place| live.contains(*place)).collect();
        assert_eq!(found, want, "{at_once} at once");
    }

    #[test]
    fn one_walk_or_many_find_the_same() {
        let writes: Vec<(u16, bool)> = (0..1500_u16).map(|n| (n * 7 % 499, n % 5 == 0)).collect();
        for at_once in [30, 100, 1000] {
            check(&writes, at_once);
        }
        check(&[(1, false), (2, false), (3, false), (1, true)], 1);
        check(&[], 10);
        check(&[(1, true)], 10);
    }

    proptest! {
        #[test]
        fn any_history_is_read_as_it_ended(writes in prop::collection::vec((0..40_u16, prop::bool::weighted(0.3)), 0..100),
            at_once in 4..50_usize) {
            check(&writes, at_once);
        }
    }
}
