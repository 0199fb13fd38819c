//! The log reader on whole, torn and damaged logs.

use std::path::Path;

use proptest::prelude::*;

use super::record::{TYPE_CRC, TYPE_ENTRY, TYPE_METADATA, TYPE_SNAPSHOT, TYPE_STATE};
use super::*;
use crate::disk::RealDisk;
use crate::ids::{ClusterId, MemberId, RaftIndex, Term};

const OWNER: Metadata = Metadata { member: MemberId(0xA), cluster: ClusterId(0xC) };

fn entry(log: &mut RecordEncoder, term: u64, index: u64, size: usize) {
    let data = vec![index as u8 | 1; size];
    let entry = Entry { kind: EntryKind::Normal, term: Term(term), index: RaftIndex(index), data: &data };
    log.push(TYPE_ENTRY, &entry.encode());
}

fn head(log: &mut RecordEncoder) {
    log.push(TYPE_CRC, &[]);
    log.push(TYPE_METADATA, &OWNER.encode());
}

fn name(sequence: u64, index: u64) -> String {
    format!("{sequence:016x}-{index:016x}.wal")
}

/// Two segments: entries 1 to 5 and 6 to 9, a HardState in each, snapshot records 0 and 4. The checksum at the head of
/// the second is that of the first's end, as etcd cuts segments.
fn two_segments() -> (Vec<u8>, Vec<u8>) {
    let mut log = RecordEncoder::resume(0);
    head(&mut log);
    log.push(TYPE_SNAPSHOT, &SnapshotRecord::default().encode());
    for index in 1..=5 {
        entry(&mut log, 1, index, 40);
    }
    log.push(TYPE_STATE, &HardState { term: 1, vote: 0xA, commit: 5 }.encode());
    log.push(TYPE_SNAPSHOT, &SnapshotRecord { index: 4, term: 1, conf_state: None }.encode());
    let both = log.clone();
    let first = log.into_bytes();
    let mut log = both;
    head(&mut log);
    for index in 6..=9 {
        entry(&mut log, 2, index, 700);
    }
    log.push(TYPE_STATE, &HardState { term: 3, vote: 0xB, commit: 8 }.encode());
    let second = log.into_bytes().split_off(first.len());
    (first, second)
}

fn write(dir: &Path, segments: &[(String, &[u8])]) {
    for (name, bytes) in segments {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

fn read(segments: &[(u64, u64, &[u8])]) -> Result<WalSummary, WalError> {
    let dir = tempfile::tempdir().unwrap();
    let named: Vec<_> = segments.iter().map(|(seq, index, bytes)| (name(*seq, *index), *bytes)).collect();
    write(dir.path(), &named);
    read_wal(dir.path())
}

#[test]
fn a_log_of_several_segments_is_read_to_its_end() {
    let (first, second) = two_segments();
    let preallocated = [&second[..], &[0; 5000]].concat();
    // etcd's leftovers: a segment being prepared, and a copy of a torn one.
    let dir = tempfile::tempdir().unwrap();
    let junk = [("0.tmp".to_owned(), &[0; 10][..]), (format!("{}.broken", name(1, 6)), b"junk")];
    write(dir.path(), &junk);
    write(dir.path(), &[(name(0, 0), &first), (name(1, 6), &preallocated)]);
    let wal = read_wal(dir.path()).unwrap();
    assert_eq!(wal.metadata, OWNER);
    assert_eq!(wal.hard_state, Some(HardState { term: 3, vote: 0xB, commit: 8 }));
    assert_eq!(wal.entries, Some(EntryRun { first: RaftIndex(1), last: RaftIndex(9), term: Term(2) }));
    assert_eq!(wal.committed_snapshots().map(|s| s.index).collect::<Vec<_>>(), [0, 4]);
    assert_eq!((wal.tail.offset, wal.tail.torn), (second.len() as u64, false));
    assert_eq!(wal.tail.path, dir.path().join(name(1, 6)));

    // The second alone, as after a purge: its checksum is taken as it is.
    let alone = read(&[(1, 6, &second)]).unwrap();
    assert_eq!(alone.entries, Some(EntryRun { first: RaftIndex(6), last: RaftIndex(9), term: Term(2) }));
    assert_eq!(alone.tail.crc, wal.tail.crc);
}

#[test]
fn a_record_appended_at_the_tail_is_read() {
    let (first, second) = two_segments();
    let wal = read(&[(0, 0, &first), (1, 6, &[&second[..], &[0; 999]].concat())]).unwrap();
    let mut log = RecordEncoder::resume(wal.tail.crc);
    let state = HardState { term: 3, vote: 0xB, commit: 9 };
    log.push(TYPE_STATE, &state.encode());
    let at = wal.tail.offset as usize;
    let longer = [&second[..at], &log.into_bytes(), &[0; 900]].concat();
    assert_eq!(read(&[(0, 0, &first), (1, 6, &longer)]).unwrap().hard_state, Some(state));
}

#[test]
fn overwritten_entries_do_not_count() {
    let mut log = RecordEncoder::resume(0);
    head(&mut log);
    for (term, index) in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3)] {
        entry(&mut log, term, index, 8);
    }
    let wal = read(&[(0, 0, &log.clone().into_bytes())]).unwrap();
    assert_eq!(wal.entries, Some(EntryRun { first: RaftIndex(1), last: RaftIndex(3), term: Term(2) }));
    // After a snapshot that came from the leader the log goes on behind a gap.
    log.push(TYPE_SNAPSHOT, &SnapshotRecord { index: 100, term: 2, conf_state: None }.encode());
    entry(&mut log, 2, 101, 8);
    entry(&mut log, 2, 102, 8);
    let wal = read(&[(0, 0, &log.into_bytes())]).unwrap();
    assert_eq!(wal.entries, Some(EntryRun { first: RaftIndex(101), last: RaftIndex(102), term: Term(2) }));
}

#[test]
fn a_last_segment_cut_anywhere_is_a_torn_tail() {
    let (first, second) = two_segments();
    let mut ends = std::collections::BTreeSet::new();
    for length in 0..second.len() {
        let wal = read(&[(0, 0, &first), (1, 6, &second[..length])]).unwrap();
        assert_eq!(wal.metadata, OWNER);
        let end = wal.tail.offset as usize;
        assert!(end <= length && wal.tail.torn == (end != length), "{length} bytes: {:?}", wal.tail);
        ends.insert(end);
    }
    assert_eq!(ends.len(), 7, "one end before each of the seven records: {ends:?}");
    // The first alone, cut before its metadata is whole, names nobody.
    for length in 0..40 {
        assert!(matches!(read(&[(0, 0, &first[..length])]), Err(WalError::NoMetadata)), "{length}");
    }
}

#[test]
fn a_sector_of_zeros_in_the_last_record_is_a_torn_write() {
    let (first, second) = two_segments();
    // Entries of 700 bytes: the last spans two sectors. Its later part never reached the disk.
    let start = read(&[(0, 0, &first), (1, 6, &second)]).unwrap().tail.offset as usize - 750;
    let sector = start.next_multiple_of(512);
    let mut torn = second[..sector].to_vec();
    torn.resize(64_000, 0);
    let wal = read(&[(0, 0, &first), (1, 6, &torn)]).unwrap();
    assert!(wal.tail.torn && wal.tail.offset < sector as u64, "{:?}", wal.tail);
    // The same in a segment that others follow is damage.
    let error = read(&[(0, 0, &first), (1, 6, &torn), (2, 10, &[])]).unwrap_err();
    assert!(matches!(error, WalError::Damaged { .. }), "{error}");
}

#[test]
fn damage_is_told_from_a_torn_tail() {
    let (first, second) = two_segments();
    let mut flipped = second.clone();
    let at = second.len() - 1500;
    flipped[at] ^= 4;
    let error = read(&[(0, 0, &first), (1, 6, &flipped)]).unwrap_err();
    assert!(matches!(&error, WalError::Damaged { reason: "a checksum does not fit", .. }), "{error}");
    assert!(error.to_string().starts_with(&name(1, 6)), "{error}");

    let error = read(&[(0, 0, &first[..first.len() - 3]), (1, 6, &second)]).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
    let error = read(&[(0, 0, &first[..first.len() - 48]), (1, 6, &second)]).unwrap_err();
    assert!(error.to_string().contains("does not go on from"), "{error}");

    let mut foreign = RecordEncoder::resume(0);
    foreign.push(TYPE_CRC, &[]);
    foreign.push(TYPE_METADATA, &Metadata { member: MemberId(1), ..OWNER }.encode());
    foreign.push(TYPE_METADATA, &OWNER.encode());
    let error = read(&[(0, 0, &foreign.into_bytes())]).unwrap_err();
    assert!(error.to_string().contains("differs"), "{error}");

    let mut unknown = RecordEncoder::resume(0);
    unknown.push(9, b"x");
    assert!(matches!(read(&[(0, 0, &unknown.into_bytes())]), Err(WalError::Damaged { .. })));
}

/// Where each record of a segment begins.
fn places(segment: &[u8]) -> Vec<usize> {
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(frame) = segment.get(at..at + 8) {
        let (length, padding) = super::record::decode_frame(u64::from_le_bytes(frame.try_into().unwrap()));
        if length == 0 {
            break;
        }
        places.push(at);
        at += 8 + (length + padding) as usize;
    }
    places
}

/// etcd takes a record that points beyond the segment for the end, and cuts off all that follows.
#[test]
fn a_wrong_length_is_damage_wherever_it_stands() {
    let (first, second) = two_segments();
    let preallocated = [&second[..], &[0; 64_000]].concat();
    for last in [&second, &preallocated] {
        for place in places(&second) {
            for bit in 3..56 {
                let mut flipped = last.clone();
                flipped[place + bit / 8] ^= 1 << (bit % 8);
                let error = match read(&[(0, 0, &first), (1, 6, &flipped)]) {
                    Ok(wal) => panic!("bit {bit} of the length at {place} is a torn end: {:?}", wal.tail),
                    Err(error) => error,
                };
                assert!(matches!(error, WalError::Damaged { .. }), "bit {bit} of the length at {place}: {error}");
            }
        }
    }
}

/// Entries whose values have sectors of zeros, each in a batch of its own.
fn with_zeros() -> Vec<u8> {
    let mut log = RecordEncoder::resume(0);
    head(&mut log);
    log.push(TYPE_SNAPSHOT, &SnapshotRecord::default().encode());
    for index in 1..=4 {
        let data = [&[7; 600][..], &[0; 2000], &[7; 600]].concat();
        let entry = Entry { kind: EntryKind::Normal, term: Term(1), index: RaftIndex(index), data: &data };
        log.push(TYPE_ENTRY, &entry.encode());
        log.push(TYPE_STATE, &HardState { term: 1, vote: 0xA, commit: index }.encode());
    }
    log.into_bytes()
}

#[test]
fn a_record_that_later_writes_follow_was_not_torn() {
    let log = with_zeros();
    let places = places(&log);
    let entries: Vec<usize> = places.iter().copied().filter(|at| log[*at + 9] == 2).collect();
    let read = |bytes: &[u8]| read(&[(0, 0, &[bytes, &[0; 9000]].concat())]);
    assert!(!read(&log).unwrap().tail.torn);
    for (n, at) in entries.iter().enumerate() {
        // One bit of the value, and of its checksum.
        for byte in [300, 11] {
            let mut flipped = log.clone();
            flipped[at + byte] ^= 1;
            // Of the last batch nobody has been told that it is durable, as far as the log shows.
            match read(&flipped) {
                Ok(wal) => assert!(wal.tail.torn && n == 3, "byte {byte} of entry {n}: {:?}", wal.tail),
                Err(WalError::Damaged { .. }) => assert!(n < 3, "a torn last write, byte {byte}, is called damage"),
                Err(other) => panic!("byte {byte} of entry {n}: {other}"),
            }
        }
    }
    // A hole in the last batch, as the loss of power may leave it: what follows it was written with it.
    let mut hole = log.clone();
    let from = (entries[3] + 8).next_multiple_of(512);
    hole[from..from + 512].fill(0);
    let wal = read(&hole).unwrap();
    assert!(wal.tail.torn && wal.tail.offset == entries[3] as u64, "{:?}", wal.tail);
}

/// A killed etcd leaves the beginning of a write, with the end of the file or preallocated space behind it.
#[test]
fn a_write_that_was_cut_anywhere_is_a_torn_end() {
    let log = with_zeros();
    let [.., last, state] = places(&log)[..] else { panic!("a log of records") };
    for cut in last..log.len() {
        let end = read(&[(0, 0, &log[..cut])]).unwrap().entries.unwrap().last;
        assert_eq!(end, RaftIndex(if cut < state { 3 } else { 4 }), "cut at {cut}");
    }
    for cut in (last.next_multiple_of(512)..log.len()).step_by(512) {
        let mut preallocated = log[..cut].to_vec();
        preallocated.resize(64_000, 0);
        let wal = read(&[(0, 0, &preallocated)]).unwrap();
        assert!(wal.entries.unwrap().last.0 >= 3 && wal.tail.offset >= last as u64, "cut at {cut}: {:?}", wal.tail);
    }
}

#[test]
fn missing_segments_are_noticed() {
    let (first, second) = two_segments();
    assert!(matches!(read(&[(0, 0, &first), (2, 6, &second)]), Err(WalError::MissingSegment(1))));
    assert!(matches!(read(&[]), Err(WalError::NoSegment)));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("1-1.wal".into(), &first)]);
    assert!(matches!(read_wal(dir.path()), Err(WalError::NoSegment)));
    assert!(matches!(read_wal(&dir.path().join("none")), Err(WalError::Io(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is damaged: no panic, and never another owner.
    #[test]
    fn damage_never_gives_another_owner(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut first, mut second) = two_segments();
        let total = first.len() + second.len();
        for (at, with) in flips {
            let at = at.index(total);
            match at.checked_sub(first.len()) {
                None => first[at] ^= with,
                Some(at) => second[at] ^= with,
            }
        }
        second.truncate(cut.index(second.len() * 3));
        if let Ok(wal) = read(&[(0, 0, &first), (1, 6, &second)]) {
            prop_assert_eq!(wal.metadata, OWNER);
        }
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&[(0, 0, &bytes)]);
    }
}

/// Appends to the log of these segments; the last segment's bytes before and after, and where the record went.
fn appended(segments: &[(u64, u64, &[u8])]) -> (Vec<u8>, Vec<u8>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let named: Vec<_> = segments.iter().map(|(seq, index, bytes)| (name(*seq, *index), *bytes)).collect();
    write(dir.path(), &named);
    let tail = read_wal(dir.path()).unwrap().tail;
    let before = std::fs::read(&tail.path).unwrap();
    let state = HardState { term: 3, vote: 0xB, commit: 9 };
    append_state(&RealDisk, &tail, &state).unwrap();
    let after = std::fs::read(&tail.path).unwrap();
    let wal = read_wal(dir.path()).unwrap();
    assert_eq!(wal.hard_state, Some(state));
    assert_eq!(wal.tail.path, tail.path);
    assert!(!wal.tail.torn && wal.tail.offset > tail.offset);
    // Again, as after a kill: a second record of the same content.
    append_state(&RealDisk, &wal.tail, &state).unwrap();
    assert_eq!(read_wal(dir.path()).unwrap().hard_state, Some(state));
    (before, after, tail.offset as usize)
}

#[test]
fn a_state_is_appended_after_the_last_record_and_nothing_before_it_changes() {
    let (first, second) = two_segments();
    let whole = |tail: &[u8]| [&second[..], tail].concat();
    // Preallocated, with room; full to the last byte; room for less than a record.
    for tail in [&[0; 5000][..], &[], &[0; 16]] {
        let (before, after, at) = appended(&[(0, 0, &first), (1, 6, &whole(tail))]);
        assert_eq!((at, &before[..at]), (second.len(), &after[..at]));
        assert!(after.len() >= before.len() && after[at..].iter().any(|byte| *byte != 0));
    }
    // The rest of a torn record, with and without zeros behind it, and of an older write behind a frame of zero.
    let mut torn_sector = second[..(second.len() - 750).next_multiple_of(512)].to_vec();
    torn_sector.resize(64_000, 0);
    let mut behind = whole(&[0; 600]);
    behind.extend_from_slice(&[0xEE; 300]);
    for last in [&second[..second.len() - 5], &torn_sector, &behind, &whole(&[9, 0, 0])] {
        let (before, after, at) = appended(&[(0, 0, &first), (1, 6, last)]);
        assert_eq!(&before[..at], &after[..at]);
        assert!(at <= second.len() && after.len() <= at + 48, "what followed is gone: {at} {}", after.len());
    }
}

#[test]
fn nothing_is_appended_where_no_record_may_begin() {
    let (first, _) = two_segments();
    let dir = tempfile::tempdir().unwrap();
    // A last segment in which nothing stands; etcd renames one into place only when it has its head.
    write(dir.path(), &[(name(0, 0), &first), (name(1, 6), &[0; 64])]);
    let tail = read_wal(dir.path()).unwrap().tail;
    let error = append_state(&RealDisk, &tail, &HardState::default()).unwrap_err();
    assert_eq!(error.to_string(), "nothing can be appended to the WAL: its last segment has no head");
    let odd = WalTail { offset: 12, ..tail };
    assert!(matches!(append_state(&RealDisk, &odd, &HardState::default()), Err(AppendError::NoPlace(_))));
    // A tail that is not that of the log as it is.
    let before = std::fs::read(dir.path().join(name(0, 0))).unwrap();
    let stale = WalTail { path: dir.path().join(name(0, 0)), offset: 48, crc: 0, torn: false };
    assert!(matches!(append_state(&RealDisk, &stale, &HardState::default()), Err(AppendError::Changed)));
    assert_eq!(std::fs::read(dir.path().join(name(0, 0))).unwrap(), before);
}

#[test]
fn overwritten_membership_changes_are_forgotten() {
    use super::record::add_voter;
    let change = |log: &mut RecordEncoder, term, index, data: &[u8]| {
        let (term, index) = (Term(term), RaftIndex(index));
        log.push(TYPE_ENTRY, &Entry { kind: EntryKind::ConfChange, term, index, data }.encode());
    };
    let mut log = RecordEncoder::resume(0);
    head(&mut log);
    for index in 1..=4 {
        change(&mut log, 1, index, &add_voter(MemberId(index), b"{}"));
    }
    entry(&mut log, 2, 3, 8);
    change(&mut log, 2, 4, &add_voter(MemberId(9), b"{}"));
    let wal = read(&[(0, 0, &log.clone().into_bytes())]).unwrap();
    let places: Vec<_> = wal.changes.iter().map(|change| (change.term.0, change.index.0)).collect();
    assert_eq!(places, [(1, 1), (1, 2), (2, 4)]);
    change(&mut log, 2, 5, b"\x08");
    let error = read(&[(0, 0, &log.into_bytes())]).unwrap_err();
    assert!(error.to_string().contains("membership change is not valid"), "{error}");
}
