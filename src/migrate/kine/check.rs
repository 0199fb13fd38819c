//! The check of the whole file that runs beside the reading.
//!
//! `quick_check` walks every page of every tree, but does not compare an index with its table. A key that the index on
//! names does not have would be lost without a word, so both are compared by count and by a sum over all entries: over
//! the rows that the reading comes by by the reading itself, over the others here.

use std::sync::Arc;

use rusqlite::{Connection, InterruptHandle};

use super::error::SourceError;
use super::sum::{RowSum, TableSum};
use crate::migrate::source::SideCheck;

/// So many findings are read at most.
const MAX_FINDINGS: usize = 10_000;

/// The check, on a connection of its own.
pub struct FileCheck {
    connection: Connection,
    interrupt: Arc<InterruptHandle>,
    table: Arc<TableSum>,
    unread: Vec<(i64, i64)>,
}

impl FileCheck {
    /// A check of the file that adds to `table` the rows of the ranges `unread`, which the reading does not come by.
    pub fn new(connection: Connection, table: Arc<TableSum>, unread: Vec<(i64, i64)>) -> Self {
        let interrupt = Arc::new(connection.get_interrupt_handle());
        FileCheck { connection, interrupt, table, unread }
    }

    fn check(&self) -> Result<(), SourceError> {
        self.table.add(self.unread_rows()?)?;
        let mut statement = self.connection.prepare(&format!("PRAGMA quick_check({MAX_FINDINGS})"))?;
        let mut findings = statement.query([])?;
        let mut count = 0;
        while let Some(finding) = findings.next()? {
            let text: String = finding.get(0)?;
            count += 1;
            // A file whose column was declared anew as TEXT (kine's KINE_SCHEMA_MIGRATION) keeps old numbers.
            if text != "ok" && !text.starts_with("NUMERIC value in kine.name") {
                // It tells a hundred faults of one tree in one piece; the first say enough.
                let first: Vec<_> = text.lines().take(3).collect();
                return Err(SourceError::Corrupt(first.join("; ")));
            }
        }
        if count >= MAX_FINDINGS {
            return Err(SourceError::Corrupt("there are too many findings to read them all".to_owned()));
        }
        Ok(())
    }

    fn unread_rows(&self) -> Result<RowSum, SourceError> {
        let sql = "SELECT id, name FROM kine NOT INDEXED WHERE id BETWEEN ?1 AND ?2 ORDER BY id";
        let mut statement = self.connection.prepare(sql)?;
        let mut sum = RowSum::default();
        for (low, high) in &self.unread {
            let mut rows = statement.query([low, high])?;
            while let Some(row) = rows.next()? {
                sum.add(row.get(0)?, row.get_ref(1)?);
            }
        }
        Ok(sum)
    }
}

impl SideCheck for FileCheck {
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let interrupt = self.interrupt.clone();
        Box::new(move || interrupt.interrupt())
    }

    fn run(self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.check()?)
    }
}
