//! Writer and reader against each other, and the reader against damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::page::{FLAG_BRANCH, PAGE_HEADER, PAGE_SIZE};
use super::writer::{BoltWriteError, BucketTree};
use super::{BoltError, BoltReader, BoltWriter};
use crate::disk::RealDisk;

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writes buckets, all of them unfinished at the same time, and gives the file's bytes.
fn write(buckets: &BTreeMap<String, Content>) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("db");
    let mut writer = BoltWriter::create(&RealDisk, &path).unwrap();
    let mut trees: Vec<_> = buckets.iter().map(|(name, content)| (name, BucketTree::new(), content.iter())).collect();
    let mut left = true;
    while left {
        left = false;
        for (_, tree, content) in &mut trees {
            if let Some((key, value)) = content.next() {
                let (one, two) = value.split_at(value.len() / 2);
                writer.put(tree, key, &[one, two]).unwrap();
                left = true;
            }
        }
    }
    for (name, tree, _) in trees.into_iter().rev() {
        writer.end_bucket(name, tree).unwrap();
    }
    let length = writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

/// Everything in a file, or the first error.
fn read(bytes: &[u8]) -> Result<BTreeMap<String, Content>, BoltError> {
    let reader = BoltReader::open(bytes)?;
    let mut found = BTreeMap::new();
    for name in reader.bucket_names()? {
        let Some(bucket) = reader.bucket(&name)? else { continue };
        let mut content = Content::new();
        let mut cursor = reader.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next()? {
            content.insert(key.to_owned(), value.to_owned());
        }
        found.insert(name, content);
    }
    Ok(found)
}

fn numbered(count: u32, value: usize) -> Content {
    (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value])).collect()
}

fn one(content: Content) -> BTreeMap<String, Content> {
    BTreeMap::from([("key".to_owned(), content)])
}

#[test]
fn trees_of_every_height_come_back() {
    // 0 keys: inline; then one leaf; one branch; two levels; three levels of small pages of long keys.
    for (count, value) in [(0, 0), (1, 0), (3, 100), (5, 4000), (200, 1000), (30_000, 100), (4, 3_000_000)] {
        let content = one(numbered(count, value));
        assert_eq!(read(&write(&content)).unwrap(), content, "{count} values of {value} bytes");
    }
    let long: Content = (0..600u32).map(|n| ([&n.to_be_bytes()[..], &[7; 30_000]].concat(), vec![])).collect();
    assert_eq!(read(&write(&one(long.clone()))).unwrap(), one(long));
}

#[test]
fn every_page_is_used_once() {
    // Without a freelist page bbolt takes every page below the high-water mark that no tree reaches for a leak.
    let bytes = write(&BTreeMap::from([("a".into(), numbered(20_000, 90)), ("b".into(), numbered(9, 9000))]));
    let mut at = 2 * PAGE_SIZE;
    let (mut pages, mut branches) = (0, 0);
    while at < bytes.len() {
        let header = super::page::PageHeader::decode(&bytes[at..]).unwrap();
        assert_eq!(header.id, (at / PAGE_SIZE) as u64);
        pages += 1;
        branches += u32::from(header.flags == FLAG_BRANCH);
        at += (header.overflow as usize + 1) * PAGE_SIZE;
    }
    assert_eq!(at, bytes.len());
    assert!(pages > 100 && branches >= 2, "{pages} pages, {branches} branches");
}

#[test]
fn keys_are_found_and_others_are_not() {
    let content: Content = (0..5000u32).map(|n| ((n * 2).to_be_bytes().to_vec(), n.to_le_bytes().to_vec())).collect();
    let bytes = write(&one(content.clone()));
    let reader = BoltReader::open(bytes.as_slice()).unwrap();
    let bucket = reader.bucket("key").unwrap().unwrap();
    for n in (0..10_001u32).step_by(7) {
        let key = n.to_be_bytes();
        assert_eq!(reader.get(&bucket, &key).unwrap().as_ref(), content.get(key.as_slice()), "{n}");
        let mut cursor = reader.cursor(&bucket).unwrap();
        assert!(cursor.seek(&key).unwrap());
        let next = cursor.next().unwrap().map(|(key, _)| key.to_vec());
        assert_eq!(next.as_ref(), content.range(key.to_vec()..).next().map(|(key, _)| key), "{n}");
    }
    let last = content.last_key_value().map(|(key, value)| (key.clone(), value.clone()));
    assert_eq!(reader.last(&bucket).unwrap(), last);
    assert!(reader.bucket("kex").unwrap().is_none() && reader.bucket("kez").unwrap().is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut writer = BoltWriter::create(&RealDisk, &home.path().join("db")).unwrap();
    let mut tree = BucketTree::new();
    writer.put(&mut tree, b"b", &[]).unwrap();
    for key in [&b"b"[..], b"a"] {
        assert!(matches!(writer.put(&mut tree, key, &[]), Err(BoltWriteError::NotAscending)));
    }
    assert!(matches!(writer.put(&mut tree, b"", &[]), Err(BoltWriteError::Size { .. })));
    assert!(matches!(writer.put(&mut tree, &[b'c'; 32_769], &[]), Err(BoltWriteError::Size { .. })));
    writer.end_bucket("x", tree).unwrap();
    assert!(matches!(writer.end_bucket("x", BucketTree::new()), Err(BoltWriteError::DuplicateBucket(_))));
    assert!(BoltWriter::create(&RealDisk, &home.path().join("db")).is_err(), "an existing file is never overwritten");
}

#[test]
fn the_newer_valid_meta_page_counts() {
    let mut bytes = write(&one(numbered(3, 10)));
    let content = read(&bytes).unwrap();
    assert_eq!(BoltReader::open(bytes.as_slice()).unwrap().meta().txid, 1);
    // The newer one broken: the older one is used, and the other way round.
    bytes[PAGE_SIZE + PAGE_HEADER + 20] ^= 1;
    assert_eq!(BoltReader::open(bytes.as_slice()).unwrap().meta().txid, 0);
    assert_eq!(read(&bytes).unwrap(), content);
    bytes[PAGE_SIZE + PAGE_HEADER + 20] ^= 1;
    bytes[PAGE_HEADER] ^= 1;
    assert_eq!(BoltReader::open(bytes.as_slice()).unwrap().meta().txid, 1);
    assert_eq!(read(&bytes).unwrap(), content);
    bytes[PAGE_SIZE + PAGE_HEADER] ^= 1;
    assert!(matches!(BoltReader::open(bytes.as_slice()), Err(BoltError::NoMeta)));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = write(&one(numbered(300, 100)));
    for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let error = BoltReader::open(&bytes[..length]).unwrap_err();
        assert!(matches!(error, BoltError::NoMeta | BoltError::Truncated { .. }), "{length}: {error}");
    }
}

/// Pages that point at each other must not send the reader round in circles.
#[test]
fn cycles_and_shared_pages_are_refused() {
    let bytes = write(&one(numbered(30_000, 100)));
    let page = |at: usize| &bytes[at * PAGE_SIZE..];
    let is_branch = |at: &usize| super::page::PageHeader::decode(page(*at)).unwrap().flags == FLAG_BRANCH;
    let branches: Vec<usize> = (2..bytes.len() / PAGE_SIZE).filter(is_branch).collect();
    assert!(branches.len() > 2);
    for branch in branches {
        for child in [branch as u64, 2, bytes.len() as u64, u64::MAX] {
            let mut broken = bytes.clone();
            let pointer = branch * PAGE_SIZE + PAGE_HEADER + 16 + 8;
            broken[pointer..pointer + 8].copy_from_slice(&child.to_le_bytes());
            let error = read(&broken).unwrap_err();
            assert!(matches!(error, BoltError::BadPage { .. }), "page {branch} -> {child}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_content_comes_back(
        buckets in prop::collection::btree_map("[a-z]{1,12}", prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..300), prop::collection::vec(any::<u8>(), 0..3000), 0..60,
        ), 0..6)
    ) {
        prop_assert_eq!(read(&write(&buckets)).unwrap(), buckets);
    }

    #[test]
    fn damage_never_panics_and_never_hangs(
        count in 0u32..800, value in 0usize..3000, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)
    ) {
        let mut bytes = write(&BTreeMap::from([("a".into(), numbered(count, value % 50)), ("b".into(), numbered(9, value))]));
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn damaged_structure_never_panics_and_never_hangs(
        count in 1u32..800, flips in prop::collection::vec((any::<prop::sample::Index>(), 0usize..80, any::<u8>()), 1..30)
    ) {
        let mut bytes = write(&one(numbered(count, 20)));
        for (page, at, with) in flips {
            // Headers and the first elements; meta pages have a checksum and would only be refused.
            let page = 2 + page.index(bytes.len() / PAGE_SIZE - 2);
            bytes[page * PAGE_SIZE + at] = with;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        prop_assert!(read(&bytes).is_err());
    }
}
