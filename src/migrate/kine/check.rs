//! The check of the whole file that runs beside the reading.
//!
//! `quick_check` walks every page of every tree, but does not compare an index with its table. A key that the index on
//! names does not have would be lost without a word, so both are compared by count and by a sum over all entries.

use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle};

use super::error::SourceError;
use super::name::{name_hash, text_of_number};
use crate::migrate::source::SideCheck;

/// So many findings are read at most.
const MAX_FINDINGS: usize = 10_000;

/// The check, on a connection of its own.
pub struct FileCheck {
    connection: Connection,
    interrupt: Arc<InterruptHandle>,
    rows: u64,
    fingerprint: u64,
}

impl FileCheck {
    /// A check that expects the table to have `rows` rows that sum up to `fingerprint`.
    pub fn new(connection: Connection, rows: u64, fingerprint: u64) -> Self {
        let interrupt = Arc::new(connection.get_interrupt_handle());
        FileCheck { connection, interrupt, rows, fingerprint }
    }

    fn check(&self) -> Result<(), SourceError> {
        self.compare_table()?;
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

    fn compare_table(&self) -> Result<(), SourceError> {
        let mut statement = self.connection.prepare("SELECT id, name FROM kine NOT INDEXED ORDER BY id")?;
        let mut rows = statement.query([])?;
        let (mut count, mut fingerprint) = (0_u64, 0_u64);
        while let Some(row) = rows.next()? {
            let hash = match row.get_ref(1)? {
                ValueRef::Text(name) => name_hash(row.get(0)?, name),
                other => name_hash(row.get(0)?, &text_of_number(other).unwrap_or_default()),
            };
            count += 1;
            fingerprint = fingerprint.wrapping_add(hash);
        }
        if (count, fingerprint) != (self.rows, self.fingerprint) {
            let text = format!("its table has {count} rows, its index on names {}, and they differ", self.rows);
            return Err(SourceError::Corrupt(text));
        }
        Ok(())
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
