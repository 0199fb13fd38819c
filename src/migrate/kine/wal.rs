//! The `-wal` of a SQLite store, and what its `-shm` says of it.
//!
//! Formats: <https://sqlite.org/fileformat2.html> (WAL 4, WAL-index) and <https://sqlite.org/walformat.html>.

use std::io::{self, Read};

use super::files::DatabaseHeader;

/// The WAL's magic number without its lowest bit, which tells the byte order of the checksums.
const WAL_MAGIC: u32 = 0x377f_0682;
const WAL_VERSION: u32 = 3_007_000;
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The byte at which SQLite's locks begin.
const LOCK_BYTE: u64 = 0x4000_0000;

/// What stands in the `-wal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalContent {
    /// Size of the file in bytes; 0 if there is none.
    pub bytes: u64,
    /// Frames up to the last committed transaction: what SQLite reads over the database.
    pub committed_frames: u64,
    /// What follows them cannot be read, and no `-shm` tells whether it had been committed.
    pub torn: bool,
}

/// The WAL-index's header, twice, and how far the WAL was checkpointed.
pub(super) const WAL_INDEX: usize = 136;

/// What the `-shm` says of the WAL, as of the last transaction.
pub(super) struct WalIndex {
    last_frame: u64,
    checkpointed: u64,
    pub(super) salt: [u8; 8],
}

impl WalIndex {
    pub(super) fn decode(shm: &[u8]) -> Option<WalIndex> {
        let index: &[u8; WAL_INDEX] = shm.first_chunk()?;
        let word = |offset: usize| {
            u32::from_le_bytes([index[offset], index[offset + 1], index[offset + 2], index[offset + 3]])
        };
        let initialised = index[12] == 1;
        if !initialised || word(0) != WAL_VERSION || index[..48] != index[48..96] {
            return None;
        }
        let salt = *index[32..].first_chunk()?;
        Some(WalIndex { last_frame: word(16).into(), checkpointed: word(96).into(), salt })
    }

    /// How many frames were there and are not in `wal` now. The index of another generation proves nothing: it is
    /// never synced, so that after a power failure it may be older than the WAL.
    pub(super) fn frames_missing_in(&self, wal: &WalFrames) -> Option<u64> {
        if wal.salt.is_some_and(|salt| salt != self.salt) || self.last_frame <= wal.committed {
            return None;
        }
        // Nothing is lost if all of them are in the database and none of the WAL's is read over it.
        let needless = wal.committed == 0 && self.checkpointed >= self.last_frame;
        (!needless).then(|| self.last_frame - wal.committed.max(self.checkpointed).min(self.last_frame - 1))
    }
}

/// Why a `-wal` with content cannot be what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenWal {
    /// SQLite would ignore the whole file.
    #[error("its header is not valid")]
    Header,
    /// Its frames are of another generation than its header.
    #[error("not one of its frames belongs to its header (the salts differ)")]
    Salt,
    /// Committed transactions stand behind a frame that cannot be read.
    #[error("frame {frame} cannot be read, and {commits} committed transactions stand behind it")]
    Torn {
        /// The first unreadable frame, from 1.
        frame: u64,
        /// Commits of the same generation behind it.
        commits: u64,
    },
    /// Its pages have another size than the database's.
    #[error("its pages have another size than the database's")]
    PageSize,
}

/// What was read of a WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WalFrames {
    /// Frames up to the last committed transaction.
    pub(super) committed: u64,
    /// What tells its generation from others; `None` if it has no header.
    pub(super) salt: Option<[u8; 8]>,
    /// Something of this generation follows that is not whole.
    pub(super) torn: bool,
    /// The first page of the store as of the last commit that is neither whole in the database nor in a committed frame.
    pub(super) missing: Option<u64>,
}

/// Pages behind the whole ones of a database, as they come in frames.
struct PagesBehind {
    whole: u64,
    /// One for each page behind `whole`, as many as there are frames, and that of the locks: if all are to be there, none
    /// is farther.
    seen: Vec<bool>,
    /// Of the transaction that is being read.
    pending: Vec<usize>,
    /// The store's pages as of the last commit.
    pages: u64,
}

impl PagesBehind {
    fn of(header: &DatabaseHeader, frames: u64) -> Self {
        // No file is so long that its frames cannot be counted.
        let seen = vec![false; usize::try_from(frames + 1).unwrap_or(0)];
        PagesBehind { whole: header.whole_pages(), seen, pending: Vec::new(), pages: 0 }
    }

    fn frame(&mut self, page: u32, pages_if_commit: u32) {
        let behind = u64::from(page).checked_sub(self.whole + 1).and_then(|behind| usize::try_from(behind).ok());
        self.pending.extend(behind.filter(|behind| *behind < self.seen.len()));
        if pages_if_commit != 0 {
            self.pages = pages_if_commit.into();
            for behind in self.pending.drain(..) {
                self.seen[behind] = true;
            }
        }
    }

    fn first_missing(&self, page_size: u32) -> Option<u64> {
        // SQLite never writes the page of its locks (file format, 1.4).
        let locks = LOCK_BYTE / u64::from(page_size) + 1;
        let is_there = |page: u64| {
            let seen = usize::try_from(page - self.whole - 1).ok().and_then(|behind| self.seen.get(behind));
            page == locks || seen.copied().unwrap_or(false)
        };
        (self.whole + 1..=self.pages).find(|page| !is_there(*page))
    }
}

/// Reads a WAL to its end and gives its committed frames. A torn frame behind the last commit is what a
/// killed writer leaves, and no error; so are frames of an earlier generation behind the valid ones.
pub(super) fn read_wal(
    wal: &mut dyn Read,
    bytes: u64,
    db: &DatabaseHeader,
) -> io::Result<Result<WalFrames, BrokenWal>> {
    let page_size = db.page_size;
    let mut header = [0; WAL_HEADER];
    if bytes < WAL_HEADER as u64 {
        // The header is written first: no frame was ever in it.
        return Ok(Ok(WalFrames::default()));
    }
    wal.read_exact(&mut header)?;
    let word = |b: &[u8], i: usize| u32::from_be_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    let magic = word(&header, 0);
    let mut sum = Checksum::new(magic & 1 == 1);
    sum.add(&header[..24]);
    if magic & !1 != WAL_MAGIC || word(&header, 4) != WAL_VERSION || sum.words != (word(&header, 24), word(&header, 28))
    {
        return Ok(Err(BrokenWal::Header));
    }
    if word(&header, 8) != page_size {
        return Ok(Err(BrokenWal::PageSize));
    }
    let mut salt = [0; 8];
    salt.copy_from_slice(&header[16..24]);
    let frame_size = FRAME_HEADER + page_size as usize;
    let frames = (bytes - WAL_HEADER as u64) / frame_size as u64;
    let mut frame = vec![0; frame_size];
    let (mut committed, mut first_broken, mut commits_behind) = (0, None, 0);
    let mut behind = PagesBehind::of(db, frames);
    for number in 1..=frames {
        wal.read_exact(&mut frame)?;
        let same_generation = frame[8..16] == salt;
        let commit = word(&frame, 4) != 0;
        if first_broken.is_none() {
            let mut next = sum;
            next.add(&frame[..8]);
            next.add(&frame[FRAME_HEADER..]);
            let valid = same_generation && word(&frame, 0) != 0 && next.words == (word(&frame, 16), word(&frame, 20));
            if valid {
                sum = next;
                behind.frame(word(&frame, 0), word(&frame, 4));
                if commit {
                    committed = number;
                }
                continue;
            }
            first_broken = Some((number, same_generation));
        } else if same_generation && commit {
            commits_behind += 1;
        }
    }
    Ok(match first_broken {
        // A killed writer's last frame may be half written, over frames of an earlier generation; its commit was
        // never acknowledged. Commits of this generation behind it were, whatever its own salts have become: a WAL is
        // written from its start to its end, so nothing of an earlier generation stands before them.
        Some((frame, _)) if commits_behind > 0 => Err(BrokenWal::Torn { frame, commits: commits_behind }),
        Some((1, false)) => Err(BrokenWal::Salt),
        broken => {
            let cut_off = broken.is_none() && WAL_HEADER as u64 + frames * frame_size as u64 != bytes;
            let torn = cut_off || broken.is_some_and(|(_, same_generation)| same_generation);
            Ok(WalFrames { committed, salt: Some(salt), torn, missing: behind.first_missing(page_size) })
        }
    })
}

/// The WAL's running checksum over 32-bit words, eight bytes at a time (WAL format, 4.2).
#[derive(Clone, Copy)]
struct Checksum {
    big_endian: bool,
    words: (u32, u32),
}

impl Checksum {
    fn new(big_endian: bool) -> Self {
        Checksum { big_endian, words: (0, 0) }
    }

    fn add(&mut self, bytes: &[u8]) {
        let (mut a, mut b) = self.words;
        for pair in bytes.chunks_exact(8) {
            let (x, y) = ([pair[0], pair[1], pair[2], pair[3]], [pair[4], pair[5], pair[6], pair[7]]);
            let (x, y) = if self.big_endian {
                (u32::from_be_bytes(x), u32::from_be_bytes(y))
            } else {
                (u32::from_le_bytes(x), u32::from_le_bytes(y))
            };
            a = a.wrapping_add(x).wrapping_add(b);
            b = b.wrapping_add(y).wrapping_add(a);
        }
        self.words = (a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::kine::files::{StoreFiles, inspect};
    use rusqlite::Connection;

    /// A WAL of three transactions as SQLite writes it.
    fn wal() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let connection = Connection::open(&db).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("create table t(x)").unwrap();
        for _ in 0..3 {
            connection.execute("insert into t values (zeroblob(100))", []).unwrap();
        }
        std::fs::read(StoreFiles::of(&db).wal).unwrap()
    }

    fn header(page_size: u32) -> DatabaseHeader {
        DatabaseHeader { bytes: 0, page_size, has_wal: true, pages: None }
    }

    fn read(wal: &[u8]) -> Result<WalFrames, BrokenWal> {
        read_wal(&mut &wal[..], wal.len() as u64, &header(4096)).unwrap()
    }

    fn judge(wal: &[u8]) -> Result<u64, BrokenWal> {
        read(wal).map(|frames| frames.committed)
    }

    const FRAME: usize = FRAME_HEADER + 4096;

    #[test]
    fn a_wal_of_sqlite_is_read_to_its_last_commit() {
        let wal = wal();
        let frames = ((wal.len() - WAL_HEADER) / FRAME) as u64;
        assert!(frames >= 4, "{frames}");
        assert_eq!(judge(&wal), Ok(frames));
        // Killed while writing the last frame.
        assert_eq!(judge(&wal[..wal.len() - 1]), Ok(frames - 1));
        let mut torn = wal.clone();
        *torn.last_mut().unwrap() ^= 1;
        assert_eq!(judge(&torn), Ok(frames - 1));
        let is_torn = |wal: &[u8]| read(wal).unwrap().torn;
        assert!(is_torn(&torn) && is_torn(&wal[..wal.len() - 1]) && !is_torn(&wal));
        assert_eq!(judge(&wal[..10]), Ok(0));
        assert_eq!(judge(&[]), Ok(0));
    }

    #[test]
    fn frames_of_an_earlier_generation_behind_the_valid_ones_are_no_damage() {
        let mut wal = wal();
        let mut old = wal[WAL_HEADER..WAL_HEADER + FRAME].to_vec();
        old[8] ^= 0xff;
        let frames = judge(&wal).unwrap();
        wal.extend(old);
        assert_eq!(judge(&wal), Ok(frames));
        assert!(!read(&wal).unwrap().torn);
    }

    #[test]
    fn damage_that_sqlite_would_pass_over_in_silence_is_seen() {
        let whole = wal();
        let broken = |f: &dyn Fn(&mut Vec<u8>)| {
            let mut wal = whole.clone();
            f(&mut wal);
            judge(&wal).unwrap_err()
        };
        assert_eq!(broken(&|w| w[0] ^= 1), BrokenWal::Header);
        assert_eq!(broken(&|w| w[20] ^= 1), BrokenWal::Header);
        assert_eq!(broken(&|w| w[..WAL_HEADER].fill(0)), BrokenWal::Header);
        assert_eq!(broken(&|w| (WAL_HEADER + 8..w.len()).step_by(FRAME).for_each(|at| w[at] ^= 1)), BrokenWal::Salt);
        for (frame, at) in [(1, WAL_HEADER), (2, WAL_HEADER + FRAME)] {
            let torn = broken(&|w| w[at + 8] ^= 1);
            assert!(matches!(torn, BrokenWal::Torn { frame: f, commits: 1.. } if f == frame), "{torn:?}");
        }
        assert!(matches!(broken(&|w| w[WAL_HEADER + 100] ^= 1), BrokenWal::Torn { frame: 1, commits: 1.. }));
        let other = read_wal(&mut &whole[..], whole.len() as u64, &header(8192)).unwrap();
        assert_eq!(other, Err(BrokenWal::PageSize));
    }

    #[test]
    fn a_wal_index_tells_of_frames_that_were_not_checkpointed() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let connection = Connection::open(&db).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("create table t(x)").unwrap();
        let files = StoreFiles::of(&db);
        let missing = || WalIndex::decode(&std::fs::read(&files.shm).unwrap()).unwrap();
        assert!(missing().frames_missing_in(&WalFrames::default()).unwrap() > 0);
        assert!(inspect(&files).unwrap().1.committed_frames > 0);
        connection.query_row("pragma wal_checkpoint", [], |_| Ok(())).unwrap();
        assert_eq!(missing().frames_missing_in(&WalFrames::default()), None);
    }

    #[test]
    fn an_index_of_the_same_generation_tells_of_every_frame_that_was_cut_off() {
        let index = |last_frame, checkpointed| WalIndex { last_frame, checkpointed, salt: [7; 8] };
        let wal = |committed, salt: u8| WalFrames { committed, salt: Some([salt; 8]), ..WalFrames::default() };
        for (index, wal, want) in [
            (index(9, 0), wal(9, 7), None),
            (index(9, 0), wal(12, 7), None),
            (index(9, 0), wal(8, 7), Some(1)),
            (index(9, 4), wal(2, 7), Some(5)),
            (index(9, 0), wal(0, 7), Some(9)),
            (index(9, 0), WalFrames::default(), Some(9)),
            // All are in the database: none is needed, but some of them would set pages back.
            (index(9, 9), wal(0, 7), None),
            (index(9, 9), WalFrames::default(), None),
            (index(9, 9), wal(4, 7), Some(1)),
            // Another generation.
            (index(9, 0), wal(4, 8), None),
            (index(0, 0), wal(0, 7), None),
        ] {
            assert_eq!(index.frames_missing_in(&wal), want, "{wal:?}");
        }
    }

    #[test]
    fn a_page_in_a_transaction_that_was_not_committed_is_not_there() {
        let db = DatabaseHeader { bytes: 4 * 4096 + 1, ..header(4096) };
        let missing = |frames: &[(u32, u32)]| {
            let mut behind = PagesBehind::of(&db, frames.len() as u64);
            frames.iter().for_each(|(page, commit)| behind.frame(*page, *commit));
            behind.first_missing(4096)
        };
        assert_eq!(missing(&[(2, 4)]), None);
        assert_eq!(missing(&[(2, 5)]), Some(5));
        assert_eq!(missing(&[(5, 0), (2, 5)]), None);
        assert_eq!(missing(&[(2, 5), (5, 0)]), Some(5));
        assert_eq!(missing(&[(6, 0), (2, 6)]), Some(5));
        assert_eq!(missing(&[(u32::MAX, u32::MAX)]), Some(5));
        // The page of the locks is never written.
        let locks = (LOCK_BYTE / 4096 + 1) as u32;
        let before = DatabaseHeader { bytes: LOCK_BYTE, ..db };
        let mut behind = PagesBehind::of(&before, 1);
        behind.frame(locks + 1, locks + 1);
        assert_eq!(behind.first_missing(4096), None);
    }
}
