//! A sum over rows that does not depend on their order, to compare the table with its index on names.

use std::sync::{Mutex, PoisonError};

use rusqlite::types::ValueRef;

use super::error::SourceError;
use super::name::text_of_number;

/// How many rows, and a sum over their numbers and names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowSum {
    /// How many.
    pub rows: u64,
    sum: u64,
}

impl RowSum {
    /// Adds the row `id` with the column `name`.
    pub fn add(&mut self, id: i64, name: ValueRef<'_>) {
        match name {
            ValueRef::Text(name) => self.add_key(id, name),
            other => self.add_key(id, &text_of_number(other).unwrap_or_default()),
        }
    }

    /// Adds the row `id` of `key`.
    pub fn add_key(&mut self, id: i64, key: &[u8]) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(name_hash(id, key));
    }
}

/// The sum over the table, which two threads gather: the one that reads the rows, and the one that checks the file.
#[derive(Debug)]
pub struct TableSum {
    index: RowSum,
    first: Mutex<Option<RowSum>>,
}

impl TableSum {
    /// To be compared with the sum over the index.
    pub fn new(index: RowSum) -> Self {
        TableSum { index, first: Mutex::new(None) }
    }

    /// Adds one of the two parts. With the second, table and index are compared.
    pub fn add(&self, part: RowSum) -> Result<(), SourceError> {
        // What is in there is written in one step, so a panic elsewhere has not spoilt it.
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(other) = first.take() else {
            *first = Some(part);
            return Ok(());
        };
        let table = RowSum { rows: part.rows + other.rows, sum: part.sum.wrapping_add(other.sum) };
        if table == self.index {
            return Ok(());
        }
        let (table, index) = (table.rows, self.index.rows);
        Err(SourceError::Corrupt(format!("its table has {table} rows, its index on names {index}, and they differ")))
    }
}

/// A hash of an index entry, to compare the index with the table. It meets damage, not an adversary.
fn name_hash(id: i64, name: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |h: u64, word: u64| {
        let product = u128::from(h ^ word) * u128::from(K);
        (product >> 64) as u64 ^ product as u64
    };
    let mut hash = mix(K ^ name.len() as u64, id as u64);
    let (words, rest) = name.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(hash, u64::from_le_bytes(last)), K)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rows: &[(i64, &str)]) -> RowSum {
        let mut sum = RowSum::default();
        rows.iter().for_each(|(id, name)| sum.add(*id, ValueRef::Text(name.as_bytes())));
        sum
    }

    #[test]
    fn whichever_part_comes_second_finds_the_difference() {
        let index = sum(&[(1, "/a"), (2, "/b"), (3, "/c")]);
        let parts = [sum(&[(2, "/b")]), sum(&[(3, "/c"), (1, "/a")])];
        for order in [[0, 1], [1, 0]] {
            let table = TableSum::new(index);
            order.iter().for_each(|i| table.add(parts[*i]).unwrap());
        }
        for other in [&[][..], &[(2, "/B")], &[(4, "/b")], &[(2, "/b"), (2, "/b")]] {
            for first in [true, false] {
                let (table, other) = (TableSum::new(index), sum(other));
                let (a, b) = if first { (parts[1], other) } else { (other, parts[1]) };
                table.add(a).unwrap();
                assert!(table.add(b).is_err(), "{other:?}");
            }
        }
    }

    #[test]
    fn a_name_kept_as_a_number_counts_as_the_key_that_it_means() {
        let mut number = RowSum::default();
        number.add(7, ValueRef::Integer(12));
        assert_eq!(number, sum(&[(7, "12")]));
        assert_ne!(number, sum(&[(7, "12\0")]));
    }

    #[test]
    fn the_hash_tells_names_and_ids_apart() {
        let hashes = [(1, "/a"), (2, "/a"), (1, "/a\0"), (1, ""), (1, "/aaaaaaaa"), (1, "/aaaaaaab")]
            .map(|(id, name)| name_hash(id, name.as_bytes()));
        let distinct: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
    }
}
