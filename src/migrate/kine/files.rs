//! What the files of a SQLite store say by themselves, before SQLite is asked to open them.
//!
//! SQLite treats a missing or unreadable `-wal` as an empty one and says nothing, and it plays back a hot rollback
//! journal, which changes the store. Both must be known before it is opened.
//!
//! Formats: <https://sqlite.org/fileformat2.html> (database header 1.3, rollback journal 3); of the `-wal` and the `-shm`, see [`wal`](super::wal).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::wal::{WAL_INDEX, WalContent, WalFrames, WalIndex, read_wal};
use crate::disk::at;

/// The first bytes of every SQLite 3 file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The first bytes of a rollback journal that must be played back.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The names of a store's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFiles {
    /// `state.db`.
    pub db: PathBuf,
    /// `state.db-wal`.
    pub wal: PathBuf,
    /// `state.db-shm`.
    pub shm: PathBuf,
    /// `state.db-journal`.
    pub journal: PathBuf,
}

impl StoreFiles {
    /// The files of the store at `db`.
    pub fn of(db: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = db.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        StoreFiles { db: db.to_owned(), wal: beside("-wal"), shm: beside("-shm"), journal: beside("-journal") }
    }
}

/// What the database's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Size of a page in bytes.
    pub page_size: u32,
    /// Whether its changes go to a `-wal` first.
    pub has_wal: bool,
    /// How many pages it has, where that was written with the last change of its header.
    pub pages: Option<u32>,
}

impl DatabaseHeader {
    /// Pages that are whole in the file.
    pub(super) fn whole_pages(&self) -> u64 {
        self.bytes / u64::from(self.page_size)
    }

    /// The first page of the store that is not whole in the file, and not in its WAL either. SQLite fills a last page that is
    /// cut short with zeros, and every check of its own finds them in order.
    fn first_missing(&self, wal: &WalFrames) -> Option<u64> {
        if wal.committed > 0 {
            return wal.missing;
        }
        let partial = self.whole_pages() * u64::from(self.page_size) != self.bytes;
        let missing = self.pages.map_or(partial, |pages| u64::from(pages) > self.whole_pages());
        missing.then(|| self.whole_pages() + 1)
    }
}

/// Refuses if something else than a regular file bears the name of one of the files beside the database: opening it
/// could block for ever, and what a link points to is not moved with it.
pub fn check_companions(files: &StoreFiles) -> Result<(), SourceError> {
    for path in [&files.wal, &files.shm, &files.journal] {
        match path.symlink_metadata() {
            Ok(meta) if !meta.is_file() => return Err(SourceError::CompanionNotAFile(path.clone())),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(path, e).into()),
            _ => {}
        }
    }
    Ok(())
}

/// Judges the files of a store without changing any.
pub fn inspect(files: &StoreFiles) -> Result<(DatabaseHeader, WalContent), SourceError> {
    let header = inspect_database(&files.db)?;
    inspect_journal(&files.journal)?;
    let (bytes, frames) = match File::open(&files.wal) {
        Ok(file) => {
            let bytes = file.metadata().map_err(|e| at(&files.wal, e))?.len();
            let mut reader = io::BufReader::with_capacity(1 << 18, file);
            let frames = read_wal(&mut reader, bytes, &header)
                .map_err(|e| at(&files.wal, e))?
                .map_err(|broken| SourceError::BrokenWal { wal: files.wal.clone(), broken })?;
            (bytes, frames)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => (0, WalFrames::default()),
        Err(e) => return Err(at(&files.wal, e).into()),
    };
    let links = files.db.metadata().map_err(|e| at(&files.db, e))?.nlink();
    if links > 1 && header.has_wal && bytes == 0 {
        return Err(SourceError::OtherNames { links: links - 1 });
    }
    let index = WalIndex::decode(&read_start(&files.shm, WAL_INDEX)?);
    if let Some(lost) = index.as_ref().and_then(|index| index.frames_missing_in(&frames)) {
        let wal = files.wal.clone();
        return Err(match bytes {
            0 => SourceError::WalMissing { wal, frames: lost },
            _ => SourceError::WalShort { wal, frames: lost },
        });
    }
    if let Some(page) = header.first_missing(&frames) {
        return Err(SourceError::Corrupt(format!(
            "it is cut short: page {page} is not whole, and no -wal file has it"
        )));
    }
    let told = index.is_some_and(|index| Some(index.salt) == frames.salt);
    Ok((header, WalContent { bytes, committed_frames: frames.committed, torn: frames.torn && !told }))
}

fn inspect_database(path: &Path) -> Result<DatabaseHeader, SourceError> {
    let meta = path.symlink_metadata().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::Absent,
        _ => at(path, e).into(),
    })?;
    if !meta.is_file() {
        return Err(SourceError::NotAFile);
    }
    if meta.len() == 0 {
        return Err(SourceError::Empty);
    }
    parse_database_header(&read_start(path, 100)?, meta.len())
}

/// The newest format of a database's schema (file format, 1.3.9).
const NEWEST_FORMAT: u32 = 4;

fn parse_database_header(header: &[u8], bytes: u64) -> Result<DatabaseHeader, SourceError> {
    let header: &[u8; 100] = header.first_chunk().filter(|h| h.starts_with(MAGIC)).ok_or(SourceError::NotSqlite)?;
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size if size >= 512 && size.is_power_of_two() => u32::from(size),
        _ => return Err(SourceError::NotSqlite),
    };
    // SQLite itself calls that an error of the statement, not of the file.
    let format = u32::from_be_bytes([header[44], header[45], header[46], header[47]]);
    if format > NEWEST_FORMAT {
        return Err(SourceError::Corrupt(format!("its schema is of format {format}, and there are {NEWEST_FORMAT}")));
    }
    let encoding = u32::from_be_bytes([header[56], header[57], header[58], header[59]]);
    if encoding > 1 {
        return Err(SourceError::NotUtf8Database);
    }
    // Only while the change counter is the one for which it was written (file format, 1.3.8).
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let counted = pages > 0 && header[24..28] == header[92..96];
    Ok(DatabaseHeader { bytes, page_size, has_wal: header[18] == 2, pages: counted.then_some(pages) })
}

/// A rollback journal with a valid header is one that SQLite would play back into the database.
fn inspect_journal(path: &Path) -> Result<(), SourceError> {
    if read_start(path, JOURNAL_MAGIC.len())? == JOURNAL_MAGIC {
        return Err(SourceError::HotJournal { journal: path.to_owned() });
    }
    Ok(())
}

/// Up to `len` bytes from the start of a file; empty if there is none.
fn read_start(path: &Path, len: usize) -> Result<Vec<u8>, SourceError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(at(path, e).into()),
    };
    let mut start = Vec::with_capacity(len);
    file.take(len as u64).read_to_end(&mut start).map_err(|e| at(path, e))?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// Each page must be whole in the file or in the WAL, whichever of them holds it.
    #[test]
    fn a_database_that_is_cut_short_is_noticed_however_little_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let files = StoreFiles::of(&db);
        let connection = Connection::open(&db).unwrap();
        connection.execute_batch("pragma journal_mode = wal; create table t(x)").unwrap();
        let write = |rows: u32| {
            let row = "insert into t values (zeroblob(3000))";
            (0..rows).for_each(|_| assert_eq!(connection.execute(row, []), Ok(1)));
        };
        let copied = |to: &Path, cut: u64, grown: u64, with_wal: bool| {
            let copy = StoreFiles::of(&to.join("b.db"));
            std::fs::copy(&files.db, &copy.db).unwrap();
            let file = File::options().write(true).open(&copy.db).unwrap();
            file.set_len(file.metadata().unwrap().len() - cut + grown).unwrap();
            if with_wal {
                std::fs::copy(&files.wal, &copy.wal).unwrap();
            }
            inspect(&copy).map(|_| ()).map_err(|e| e.to_string())
        };
        let judge = |cut, grown, with_wal| copied(tempfile::tempdir().unwrap().path(), cut, grown, with_wal);
        let is_cut_short = |judged: Result<(), String>| judged.is_err_and(|e| e.contains("it is cut short: page"));
        write(20);
        connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
        assert_eq!(judge(0, 0, false), Ok(()));
        for cut in [1, 100, 4095, 4096, 10_000] {
            assert!(is_cut_short(judge(cut, 0, false)), "{cut}");
        }
        // What lies behind the pages that count is nobody's.
        assert_eq!(judge(0, 5000, false), Ok(()));
        // Pages that are in the WAL alone, and others that are in the file alone.
        write(20);
        assert_eq!(judge(0, 0, true), Ok(()));
        assert_eq!(judge(0, 2048, true), Ok(()), "a checkpoint that was killed");
        for cut in [1, 4096, 40_000] {
            assert!(is_cut_short(judge(cut, 0, true)), "{cut}");
        }
    }

    #[test]
    fn what_is_no_database_of_ours_is_named() {
        let header = |f: &dyn Fn(&mut [u8])| {
            let mut h = vec![0; 100];
            h[..16].copy_from_slice(MAGIC);
            h[16] = 16;
            f(&mut h);
            parse_database_header(&h, 4096)
        };
        assert_eq!(header(&|_| {}).unwrap().page_size, 4096);
        assert!(matches!(header(&|h| h[0] = 0), Err(SourceError::NotSqlite)));
        assert!(matches!(header(&|h| h[16] = 17), Err(SourceError::NotSqlite)));
        assert!(matches!(header(&|h| h[59] = 2), Err(SourceError::NotUtf8Database)));
        assert!(header(&|h| h[47] = 4).is_ok());
        assert!(matches!(header(&|h| h[47] = 20), Err(SourceError::Corrupt(why)) if why.contains("format 20")));
        assert!(matches!(parse_database_header(b"SQLite format 3\0", 16), Err(SourceError::NotSqlite)));
    }
}
