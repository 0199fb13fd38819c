//! Revisions as kine can hold them. Pure.
//!
//! In kine a revision is a row's number, so no two keys share one; a transaction of etcd gives all its keys the same. The
//! rule: the first key of a transaction (the lowest place in it) keeps the revision. Each other takes the next revision
//! above its own that no live key has, so that no key's revision falls and none that a client holds is given to another
//! value; where none is left up to the store's revision, or too much waits for one, it takes one above the store's, which
//! thereby rises. The API server writes one key in a transaction, so in a store of Kubernetes nothing is moved.

use std::collections::VecDeque;

use super::convert::{Count, KeyLease, LiveKey};
use super::kine::name::is_bookkeeping;
use crate::ids::Revision;

/// So many bytes wait for a free revision at most.
const MAX_WAITING: usize = 16 << 20;

/// Gives each key a revision of its own. Keys come in ascending order of (mod revision, sub).
#[derive(Debug)]
pub struct Renumber {
    /// The store's revision.
    revision: i64,
    /// The highest revision given so far, up to the store's.
    last: i64,
    /// The highest revision given above the store's, or the store's.
    above: i64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    max_waiting: usize,
    moved: Count,
    dropped: Count,
}

#[derive(Debug)]
struct Waiting {
    key: Vec<u8>,
    value: Vec<u8>,
    create_revision: Revision,
    lease: KeyLease,
}

/// What is left when all keys have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renumbered {
    /// The revision that the store has with them, not below its own.
    pub revision: Revision,
    /// Whether a key has that revision.
    pub taken: bool,
    /// Keys that were moved to a revision of their own.
    pub moved: Count,
    /// Keys of the names that kine keeps to itself, left out: the API server's record of its compactions, which it
    /// begins anew.
    pub dropped: Count,
}

impl Renumber {
    /// For a store at `revision`.
    pub fn new(revision: Revision) -> Self {
        Renumber {
            revision: revision.0,
            last: 0,
            above: revision.0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            max_waiting: MAX_WAITING,
            moved: Count::default(),
            dropped: Count::default(),
        }
    }

    /// Takes a key; `out` is given it, and others that now have a revision.
    pub fn put(
        &mut self,
        key: &LiveKey<'_>,
        mut out: impl FnMut(&LiveKey<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if is_bookkeeping(key.key) {
            self.dropped.note(key.key);
            return Ok(());
        }
        let own = key.mod_revision.0;
        if own > self.last {
            self.fill(own - 1, &mut out)?;
            self.last = own;
            return out(&kine_key(key.key, key.value, key.create_revision, own, key.lease));
        }
        self.moved.note(key.key);
        self.waiting_bytes += key.key.len() + key.value.len();
        self.waiting.push_back(Waiting {
            key: key.key.to_vec(),
            value: key.value.to_vec(),
            create_revision: key.create_revision,
            lease: key.lease,
        });
        while self.waiting_bytes > self.max_waiting {
            self.above += 1;
            self.emit(self.above, &mut out)?;
        }
        Ok(())
    }

    /// Gives what still waits its revisions.
    pub fn finish(mut self, mut out: impl FnMut(&LiveKey<'_>) -> anyhow::Result<()>) -> anyhow::Result<Renumbered> {
        self.fill(self.revision, &mut out)?;
        while !self.waiting.is_empty() {
            self.above += 1;
            self.emit(self.above, &mut out)?;
        }
        Ok(Renumbered {
            revision: Revision(self.above),
            taken: self.above > self.revision || self.last == self.revision,
            moved: self.moved,
            dropped: self.dropped,
        })
    }

    /// Gives the free revisions up to `end` to those that wait.
    fn fill(&mut self, end: i64, out: &mut impl FnMut(&LiveKey<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        while self.last < end && !self.waiting.is_empty() {
            self.last += 1;
            self.emit(self.last, out)?;
        }
        Ok(())
    }

    fn emit(&mut self, revision: i64, out: &mut impl FnMut(&LiveKey<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(first) = self.waiting.pop_front() else { return Ok(()) };
        self.waiting_bytes -= first.key.len() + first.value.len();
        out(&kine_key(&first.key, &first.value, first.create_revision, revision, first.lease))
    }
}

/// A key as it is read from kine again: without a place in a transaction, its version 1 or 2, its lease a time to live.
fn kine_key<'a>(
    key: &'a [u8],
    value: &'a [u8],
    create_revision: Revision,
    revision: i64,
    lease: KeyLease,
) -> LiveKey<'a> {
    LiveKey {
        key,
        value,
        create_revision,
        mod_revision: Revision(revision),
        sub: 0,
        version: if create_revision.0 == revision { 1 } else { 2 },
        lease: if lease.ttl() > 0 { KeyLease::Ttl(lease.ttl()) } else { KeyLease::None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::LeaseRecord;
    use proptest::prelude::*;

    /// Keys as (mod revision, sub), named by both; what they become, in the order of their names, and the rest.
    fn renumber(keys: &[(i64, i64)], revision: i64, max_waiting: usize) -> (Vec<i64>, Renumbered) {
        let mut rule = Renumber { max_waiting, ..Renumber::new(Revision(revision)) };
        let mut given = Vec::new();
        let mut out = |key: &LiveKey<'_>| {
            assert_eq!(key.value, key.key);
            given.push((key.key.to_vec(), key.mod_revision.0));
            Ok(())
        };
        for (modified, sub) in keys {
            let name = [modified.to_be_bytes(), sub.to_be_bytes()].concat();
            let (create_revision, mod_revision) = (Revision(*modified), Revision(*modified));
            let lease = KeyLease::None;
            let key = LiveKey { key: &name, value: &name, create_revision, mod_revision, sub: *sub, version: 9, lease };
            rule.put(&key, &mut out).unwrap();
        }
        let rest = rule.finish(&mut out).unwrap();
        given.sort();
        (given.into_iter().map(|(_, revision)| revision).collect(), rest)
    }

    #[test]
    fn free_revisions_are_used_first_and_then_those_above() {
        for (keys, revision, want, end, moved) in [
            (&[][..], 7, &[][..], (7, false), 0),
            (&[(3, 0), (5, 0)], 7, &[3, 5], (7, false), 0),
            (&[(3, 0), (7, 0)], 7, &[3, 7], (7, true), 0),
            // Not the first operation of its transaction, but the only key of it that is left.
            (&[(3, 4)], 3, &[3], (3, true), 0),
            (&[(3, 0), (3, 1), (3, 2), (5, 0)], 7, &[3, 4, 6, 5], (7, false), 2),
            (&[(3, 0), (3, 1), (4, 0)], 5, &[3, 5, 4], (5, true), 1),
            (&[(3, 0), (3, 1), (3, 2), (4, 0)], 5, &[3, 5, 6, 4], (6, true), 2),
            (&[(3, 0), (3, 1)], 3, &[3, 4], (4, true), 1),
        ] {
            let (given, rest) = renumber(keys, revision, MAX_WAITING);
            assert_eq!(given, want, "{keys:?} at {revision}");
            assert_eq!((rest.revision.0, rest.taken, rest.moved.count), (end.0, end.1, moved), "{keys:?}");
        }
        // Nothing may wait: straight above.
        assert_eq!(renumber(&[(3, 0), (3, 1), (5, 0)], 9, 0).0, [3, 10, 5]);
    }

    #[test]
    fn what_kine_keeps_to_itself_is_left_out_and_counted() {
        let mut rule = Renumber::new(Revision(5));
        let mut names = Vec::new();
        let lease = KeyLease::Held(LeaseRecord { id: 1 << 60, ttl: 15 });
        for (n, key) in [&b"compact_rev_key"[..], b"/a", b"gap-7"].into_iter().enumerate() {
            let (create_revision, mod_revision) = (Revision(2), Revision(4));
            let key = LiveKey { key, value: b"", create_revision, mod_revision, sub: n as i64, version: 7, lease };
            rule.put(&key, |key| {
                assert_eq!((key.lease, key.version, key.create_revision.0), (KeyLease::Ttl(15), 2, 2));
                names.push((String::from_utf8_lossy(key.key).into_owned(), key.mod_revision.0));
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(names, [("/a".to_owned(), 4)]);
        let rest = rule.finish(|_| Ok(())).unwrap();
        assert_eq!((rest.dropped.count, rest.moved.count, rest.revision.0), (1, 1, 5));
    }

    proptest! {
        #[test]
        fn no_revision_falls_or_is_given_twice(
            sizes in prop::collection::vec((1..5_i64, 1..6_i64), 0..40), more in 0..10_i64, max in prop::sample::select(vec![0, 100, MAX_WAITING])
        ) {
            let (mut keys, mut revision) = (Vec::new(), 1);
            for (step, size) in sizes {
                revision += step;
                keys.extend((0..size).map(|sub| (revision, sub)));
            }
            let store = revision + more;
            let (given, rest) = renumber(&keys, store, max);
            prop_assert_eq!(given.len(), keys.len());
            let mut seen = std::collections::BTreeSet::new();
            for ((modified, sub), revision) in keys.iter().zip(&given) {
                prop_assert!(revision >= modified && (*sub > 0 || revision == modified));
                prop_assert!(seen.insert(*revision) && *revision <= rest.revision.0);
            }
            prop_assert!(rest.revision.0 >= store);
            prop_assert_eq!(rest.taken, seen.contains(&rest.revision.0));
            // The store's revision rises only if there is no other way.
            let free = store - keys.first().map_or(store, |first| first.0) + 1;
            if max == MAX_WAITING && (keys.len() as i64) <= free.min(more) {
                prop_assert_eq!(rest.revision.0, store);
            }
        }
    }
}
