//! A set of row ids in little memory: two bytes for an id where they are far apart, one bit where they are dense.
//!
//! Ids are split at 16 bits; each 65,536 of them are a sorted list until that would be larger than the bitmap.

use std::collections::BTreeMap;

/// Ids in a list cost two bytes each, a bitmap costs 8 KiB.
const MAX_LIST: usize = 4096;

/// A set of positive row ids.
#[derive(Debug, Default)]
pub struct IdSet {
    chunks: BTreeMap<i64, Chunk>,
    len: u64,
}

#[derive(Debug)]
enum Chunk {
    List(Vec<u16>),
    Bits(Box<[u64; 1024]>, u32),
}

/// The ids of one chunk, in ascending order of chunks.
#[derive(Clone, Copy, Debug)]
pub struct ChunkView<'a> {
    first: i64,
    chunk: &'a Chunk,
}

impl IdSet {
    /// Adds an id; adding one twice changes nothing.
    pub fn insert(&mut self, id: i64) {
        let low = (id & 0xffff) as u16;
        let chunk = self.chunks.entry(id >> 16).or_insert_with(|| Chunk::List(Vec::new()));
        let added = match chunk {
            Chunk::List(list) => match list.binary_search(&low) {
                Ok(_) => false,
                Err(place) => {
                    list.insert(place, low);
                    true
                }
            },
            Chunk::Bits(bits, count) => {
                let (word, bit) = (&mut bits[usize::from(low >> 6)], 1 << (low & 63));
                let added = *word & bit == 0;
                *word |= bit;
                *count += u32::from(added);
                added
            }
        };
        self.len += u64::from(added);
        if let Chunk::List(list) = chunk
            && list.len() > MAX_LIST
        {
            let mut bits = Box::new([0_u64; 1024]);
            for low in &*list {
                bits[usize::from(low >> 6)] |= 1 << (low & 63);
            }
            *chunk = Chunk::Bits(bits, MAX_LIST as u32 + 1);
        }
    }

    /// How many ids.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunks that have ids, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkView<'_>> {
        self.chunks.iter().map(|(high, chunk)| ChunkView { first: high << 16, chunk })
    }
}

impl<'a> ChunkView<'a> {
    /// The lowest and the highest id of the chunk.
    pub fn bounds(self) -> (i64, i64) {
        let (mut low, mut high) = (self.first, self.first);
        if let Some(first) = self.ids().next() {
            low = first;
        }
        high = match self.chunk {
            Chunk::List(list) => list.last().map_or(high, |l| self.first | i64::from(*l)),
            Chunk::Bits(bits, _) => match bits.iter().rposition(|w| *w != 0) {
                Some(word) => self.first | (word as i64) << 6 | i64::from(63 - bits[word].leading_zeros()),
                None => high,
            },
        };
        (low, high)
    }

    /// How many ids.
    pub fn len(self) -> u64 {
        match self.chunk {
            Chunk::List(list) => list.len() as u64,
            Chunk::Bits(_, count) => u64::from(*count),
        }
    }

    /// Whether there is none: never, for a chunk that a set gave out.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether `id`, which must be within [`ChunkView::bounds`], is in the set.
    pub fn contains(self, id: i64) -> bool {
        let low = (id & 0xffff) as u16;
        match self.chunk {
            Chunk::List(list) => list.binary_search(&low).is_ok(),
            Chunk::Bits(bits, _) => bits[usize::from(low >> 6)] & (1 << (low & 63)) != 0,
        }
    }

    /// The ids, ascending.
    pub fn ids(self) -> Box<dyn Iterator<Item = i64> + 'a> {
        let first = self.first;
        match self.chunk {
            Chunk::List(list) => Box::new(list.iter().map(move |l| first | i64::from(*l))),
            Chunk::Bits(bits, _) => Box::new(
                (0..0x1_0000_i64)
                    .filter(move |l| {
                        // The word's index is below 1024, as l is below 65,536.
                        bits[(l >> 6) as usize] & (1 << (l & 63)) != 0
                    })
                    .map(move |l| first | l),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(ids: impl IntoIterator<Item = i64>) {
        let (mut set, mut model) = (IdSet::default(), BTreeSet::new());
        for id in ids {
            set.insert(id);
            model.insert(id);
        }
        assert_eq!(set.len(), model.len() as u64);
        assert_eq!(
            set.chunks().flat_map(ChunkView::ids).collect::<Vec<_>>(),
            model.iter().copied().collect::<Vec<_>>()
        );
        assert_eq!(set.chunks().map(ChunkView::len).sum::<u64>(), set.len());
        for chunk in set.chunks() {
            let (low, high) = chunk.bounds();
            assert_eq!(chunk.ids().next(), Some(low));
            assert_eq!(chunk.ids().last(), Some(high));
            for id in low..=high.min(low.saturating_add(5000)) {
                assert_eq!(chunk.contains(id), model.contains(&id), "{id}");
            }
        }
    }

    #[test]
    fn dense_and_sparse_sets_hold_what_was_put_in() {
        check([]);
        check([1]);
        check([i64::MAX, 1, 65_535, 65_536, 65_537, 1]);
        check((1..20_000).rev());
        check((1..200_000).step_by(3));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_set_holds_what_was_put_in(ids in proptest::collection::vec(1_i64..300_000, 0..3000)) {
            check(ids);
        }
    }
}
