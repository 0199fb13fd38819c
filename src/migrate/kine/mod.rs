//! A SQLite store written by kine, as a source.
//!
//! One table, `kine`, one row for each write; a row's `id` is its revision. Facts and their sources in kine's code are
//! named where they are used. Reading order: [`files`] and [`wal`] (before SQLite opens it), [`guard`] (nobody else uses it),
//! [`schema`] (it is kine's), [`survey`] (which rows are live), [`rows`] (reading them), [`check`] (the whole file) and
//! [`sum`] (the table and its index).

pub mod check;
pub mod error;
pub mod files;
pub mod guard;
pub mod idset;
pub mod name;
pub mod rows;
pub mod schema;
pub mod sum;
pub mod survey;
pub mod wal;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rusqlite::Connection;

use super::convert::Warnings;
use super::source::{BatchSender, Extent, FileState, SideCheck, Source};
use crate::ids::Revision;
pub use error::{SourceError, name_source};
pub use files::StoreFiles;
use sum::TableSum;
use survey::Survey;
pub use wal::WalContent;

/// A store that is open, locked, and known to be kine's. Its files stay as they are.
pub struct KineStore {
    files: StoreFiles,
    connection: Connection,
    survey: Survey,
    /// Given to the check that runs beside the next reading.
    table: Option<Arc<TableSum>>,
    bytes: u64,
    wal: WalContent,
    // Last, so that it is released last.
    lock: guard::StoreLock,
}

impl KineStore {
    /// Opens the store at `db`, waiting up to `wait` for another process to let go of it.
    pub fn open(db: &Path, wait: Duration) -> Result<Self, SourceError> {
        let files = StoreFiles::of(db);
        // What is not a regular file is not locked either: opening it could block.
        match db.symlink_metadata() {
            Ok(meta) if !meta.is_file() => return Err(SourceError::NotAFile),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Err(SourceError::Absent);
            }
            Err(e) => return Err(crate::disk::at(db, e).into()),
            Ok(_) => {}
        }
        files::check_companions(&files)?;
        let lock = guard::acquire(&files, wait)?;
        let (header, wal) = files::inspect(&files)?;
        let connection = schema::open(&files.db, wal.committed_frames > 0)?;
        if wal.committed_frames > 0 {
            refuse_foreign_wal(&files, &connection)?;
        }
        schema::check(&connection)?;
        let survey = survey::survey(&connection)?;
        let bytes = header.bytes + wal.bytes;
        Ok(KineStore { files, connection, survey, table: None, bytes, wal, lock })
    }

    /// Its `-wal`.
    pub fn wal(&self) -> WalContent {
        self.wal
    }

    /// Its revision.
    pub fn revision(&self) -> Revision {
        self.survey.revision
    }

    /// What the walk over its index found.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    fn total_bytes(&self) -> Result<u64, SourceError> {
        let sql = "SELECT octet_length(name) + ifnull(octet_length(value), 0) FROM kine NOT INDEXED \
                   WHERE id = ?1 AND deleted = 0";
        let mut statement = self.connection.prepare(sql)?;
        let mut total = 0_u64;
        for id in self.survey.newest.chunks().flat_map(|chunk| chunk.ids()) {
            let mut rows = statement.query([id])?;
            if let Some(row) = rows.next()? {
                total = total.saturating_add(row.get::<_, i64>(0)?.unsigned_abs());
            }
        }
        Ok(total)
    }
}

/// SQLite reads any `-wal` of the same page size over a database, that of another store or of an older copy too, and one
/// that holds all of its store hides the whole database. Numbers of rows are never given out twice, so the database alone
/// cannot have gone further than the two together.
fn refuse_foreign_wal(files: &StoreFiles, with_wal: &Connection) -> Result<(), SourceError> {
    let alone = schema::last_row(&schema::open(&files.db, false)?).unwrap_or(0);
    let together = schema::last_row(with_wal).unwrap_or(0);
    if alone <= together {
        return Ok(());
    }
    Err(SourceError::ForeignWal { wal: files.wal.clone(), database: alone, with_wal: together })
}

impl Source for KineStore {
    fn name(&self) -> String {
        self.files.db.display().to_string()
    }

    fn extent(&self) -> Extent {
        Extent {
            revision: self.survey.revision,
            compacted: self.survey.compacted,
            source_bytes: self.bytes,
            rows: self.survey.index.rows,
            keys_at_most: self.survey.newest.len(),
            bytes_at_most: self.bytes,
        }
    }

    /// It reads every live row's header.
    fn live_bytes(&self) -> anyhow::Result<u64> {
        Ok(self.total_bytes()?)
    }

    fn is_exclusive(&self) -> bool {
        self.lock.exclusive
    }

    fn files(&self) -> anyhow::Result<Vec<FileState>> {
        let state = |path| FileState::of(path).context("look at the source");
        Ok(vec![state(&self.files.db)?, state(&self.files.wal)?])
    }

    fn read(&mut self, out: &mut BatchSender<'_>) -> anyhow::Result<Warnings> {
        let mut warnings = Warnings::default();
        let example = || self.survey.broken_chain_example.clone().unwrap_or_default();
        warnings.broken_chains.add(self.survey.broken_chains, example);
        warnings.torn_wals.add(self.wal.torn.into(), || self.files.wal.display().to_string());
        let read = rows::read_live(&self.connection, &self.survey.newest, &mut warnings, out)?;
        if let Some(table) = self.table.take() {
            table.add(read)?;
        }
        Ok(warnings)
    }

    fn side_check(&mut self) -> anyhow::Result<Option<Box<dyn SideCheck>>> {
        let connection = schema::open(&self.files.db, self.wal.committed_frames > 0)?;
        let table = Arc::new(TableSum::new(self.survey.index));
        self.table = Some(table.clone());
        Ok(Some(Box::new(check::FileCheck::new(connection, table, rows::unread(&self.survey.newest)))))
    }
}

#[cfg(test)]
mod tests;
